"""What `lint-imports` does not hold: scripts are not imported, and nothing has hidden state."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genie_fn"
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


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
    banned = {
        f"torch.{f}"
        for f in ("manual_seed", "seed", "rand", "randn", "randint", "randperm", "rand_like")
    }
    banned |= {
        "torch.randn_like",
        "torch.bernoulli",
        "torch.multinomial",
        "torch.Generator",
        "torch.set_rng_state",
    }
    banned |= {"F.dropout", "nn.Module", "nn.Parameter", "torch.nn.Parameter"}
    if name != "export.graphs":  # torch's exporter takes modules alone; this one has no state
        banned.add("torch.nn.Module")
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


def lacks_encoding(call):
    """Whether a call reads or writes text in the encoding of the machine."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in options:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name == "open":
        modes = [*call.args, *options.values()]
        modes = [node.value for node in modes if isinstance(node, ast.Constant)]
        modes = [mode for mode in modes if isinstance(mode, str) and not set(mode) - set("rwaxbt+")]
        plain = isinstance(function, ast.Name) and not modes
        return plain or any("b" not in mode for mode in modes)
    return any(name in options for name in ("text", "universal_newlines"))


TEXT_FILES = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]
TEXT_FILES += [
    path for name in ("benchmarks", "tools", "docs") for path in (ROOT / name).rglob("*.py")
]


@pytest.mark.parametrize("path", TEXT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_read_and_written_in_a_stated_encoding(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    found = [ast.unparse(call) for call in calls if lacks_encoding(call)]
    found = [text for text in found if not text.startswith(("av.open", "files.write_text"))]
    assert not found, f"{path.name}: these need encoding=..., as 'utf-8': {found}"
