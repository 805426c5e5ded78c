"""The architecture of docs and DESIGN, held by parsing the sources: who imports whom, and nothing but functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genie_fn"
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
MODULES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
for _folder in ("kernels", "player"):
    MODULES |= {f"{_folder}.{path.stem}": path for path in (PACKAGE / _folder).glob("*.py") if path.stem != "__init__"}

# A module may import modules of a lower rank only; modules of one rank never import each other.
RANKS = {
    0: {"random", "errors"},
    1: {"action_files", "tree", "metrics", "video", "impls", "machine", "charts", "headlines", "parts", "files"},
    2: {"kernels", "optim", "storage", "checkpoint", "sharding", "graphs", "action_map"},
    3: {"layers", "data", "step", "world_file"},
    4: {"quantize", "conv", "tokens", "pictures", "sources", "mirror"},
    5: {"registry", "facing", "markup", "readers"},
    6: {"blueprint", "report_page", "importing"},
    7: {"tokenizer", "lam", "dynamics", "adversarial"},
    8: {"world", "train", "perceptual"},
    9: {"surroundings", "rollouts", "fidelity", "action_report", "scale"},
    10: {"player", "probe"},
    11: {"cloning", "control"},
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
MODELS = {
    "kernels",
    "layers",
    "quantize",
    "conv",
    "registry",
    "blueprint",
    "facing",
    "tokenizer",
    "lam",
    "dynamics",
    "adversarial",
    "world",
}
TRAINING = {"optim", "data", "storage", "tokens", "sharding", "step", "train"}


def parse(path):
    return ast.parse(path.read_text(), filename=str(path))


def imports(path):
    """Every module that a file imports, at its top or inside a function, with full names: `genie_fn.layers`."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def family(name):
    """`genie_fn.layers.STConfig` → `layers`; None outside the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "genie_fn" and len(parts) > 1 else None


def package_imports(name):
    return {family(found) for found in imports(MODULES[name])} - {None, name.split(".")[0]}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name):
    own = name.split(".")[0]
    assert own in RANK, f"genie_fn/{own} has no place in the order: give it one in RANKS"
    for other in package_imports(name):
        assert RANK[other] < RANK[own], f"{name} imports {other}, which is not below it"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_models_and_training_do_not_know_each_other(name):
    own = name.split(".")[0]
    for side, other_side in ((MODELS, TRAINING), (TRAINING, MODELS)):
        if own in side:
            assert not package_imports(name) & other_side


def test_the_three_models_never_import_each_other():
    for name in ("tokenizer", "lam", "dynamics"):
        assert not package_imports(name) & {"tokenizer", "lam", "dynamics"}


def test_random_and_tree_are_the_lowest():
    assert package_imports("random") == set()
    assert package_imports("tree") == {"random"}


@pytest.mark.parametrize("name", sorted(MODULES) + sorted(SCRIPTS))
def test_nobody_imports_a_script(name):
    found = {other.split(".")[0] for other in imports((MODULES | SCRIPTS)[name])}
    assert not found & (SCRIPTS.keys() - {name}), "what two scripts share belongs in the package"


def dotted(node):
    """`torch.nn.Module` of an attribute chain."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("name", sorted(MODULES) + sorted(SCRIPTS))
def test_there_are_no_modules_and_no_global_randomness(name):
    """Hidden state, in whichever form torch offers it: nn.Module, buffers, the global generator."""
    path = (MODULES | SCRIPTS)[name]
    banned = {f"torch.{f}" for f in ("manual_seed", "seed", "rand", "randn", "randint", "randperm", "rand_like")}
    banned |= {"torch.randn_like", "torch.bernoulli", "torch.multinomial", "torch.Generator", "torch.set_rng_state"}
    banned |= {"F.dropout", "torch.nn.Module", "nn.Module", "nn.Parameter", "torch.nn.Parameter"}
    used = {dotted(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
    assert not used & banned
    from_nn = {found for found in imports(path) if found.startswith("torch.nn")}
    assert from_nn <= {"torch.nn", "torch.nn.functional"}, "layers are functions here"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs_only_as_main(name):
    """Importing a script must not parse a command line."""
    for node in parse(SCRIPTS[name]).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno} runs at import"
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
