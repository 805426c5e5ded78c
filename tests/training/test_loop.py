"""The training step compiled and eager, its purity, and checkpoints: what is saved, resumed, refused."""

import json
import os
import signal
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from torch._dynamo.utils import counters

from genie_fn import quantize, random, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import stored_config
from genie_fn.runtime.stored_config import from_dict
from genie_fn.runtime.versions import NewerVersion
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint, loop, setup
from genie_fn.training.checkpointer import Checkpointer
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, TrainState, init_state

SMALL = STConfig(layers=1, dim=32, heads=2, mlp=2, window=3)
MODEL = TokenizerConfig(32, 32, 16, SMALL, SMALL, QuantizerConfig(kind="vq", codes=8, latent_dim=4))
# A large eps, so that gradients of the size of rounding errors do not become whole steps.
OPTIM = OptimConfig(lr=3e-3, schedule="cosine", warmup=2, ema=0.9, weight_decay=0.1, eps=1e-3)
CFG = RunConfig(steps=6, compile="off", optim=OPTIM, save_every=2, sample_every=100)
KEY = random.key(5)


def make(cfg=CFG, model=MODEL, noise=0.0, bad=()):
    """A step that uses all that a step can have: clipping, weight decay, averages, a codebook with dead codes.

    The loss of the steps `bad` is NaN.
    """

    def loss(params, batch, key, step, microbatch):
        value, aux = tokenizer.loss(params, batch, model)
        for number in bad:
            value = torch.where(step == number, torch.nan, value)
        return value * (1 + noise * random.normal(key)) if noise else value, aux

    update = quantize.codebook_update(model.quantizer)
    objective = Objective(loss, summarise=tokenizer.summarise, update=update)
    return make_step(objective, tokenizer.spec(model), cfg)


def fresh(model=MODEL):
    return init_state(
        tokenizer.spec(model), random.key(0), OPTIM, quantize.initial_use(model.quantizer)
    )


def batch_of(step):
    return random.randint(random.fold_in(random.key(8), step), (2, 3, 32, 32, 3), 0, 256).to(
        torch.uint8
    )


def run(step, state, first=0, last=3):
    metrics = []
    for s in range(first, last):
        state, row = step(state, batch_of(s), KEY)
        metrics.append({name: float(value) for name, value in row.items()})
    return state, metrics


def assert_same(a, b):
    a, b = tree.paths(a), tree.paths(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype and torch.equal(a[path], b[path]), path


@pytest.mark.compile
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("step", "lfq"),
        pytest.param("step", "vq", marks=pytest.mark.slow),
        pytest.param("split", "vq", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager_and_compiles_once(mode, kind):
    """Compilers drop, reorder and overwrite; and a second compilation would be a value burnt into the graph."""
    model = replace(MODEL, quantizer=QuantizerConfig(kind=kind, codes=8, latent_dim=4))
    eager, compiled = make(model=model, bad=(1,)), make(replace(CFG, compile=mode), model, bad=(1,))
    before = counters["stats"]["unique_graphs"]
    expected, state = fresh(model), fresh(model)
    for s in range(8):
        with torch._dynamo.config.patch(error_on_recompile=s > 0):
            state, row = compiled(state, batch_of(s), KEY)
        if s < 3:
            expected, expected_row = eager(expected, batch_of(s), KEY)
            for name, value in expected_row.items():
                torch.testing.assert_close(
                    row[name],
                    value,
                    rtol=1e-3,
                    atol=1e-5,
                    equal_nan=True,
                    msg=lambda m, name=name: f"{name}: {m}",
                )
            torch.testing.assert_close(
                tree.paths(state), tree.paths(expected), rtol=1e-3, atol=2e-5
            )
    assert counters["stats"]["unique_graphs"] - before == {"step": 1, "split": 2}[mode]
    assert state.step.item() == 8 and state.skipped.tolist() == [1, 0]


def test_the_pure_step_leaves_its_state_alone():
    state = fresh()
    before = tree.map(torch.clone, state)
    new, _ = make()(state, batch_of(0), KEY)
    assert_same(state, before)
    changed = {
        path for path, x in tree.paths(new).items() if not torch.equal(x, tree.paths(before)[path])
    }
    for path in tree.paths(state.params):
        assert {f"params/{path}", f"ema/{path}", f"opt/m/{path}", f"opt/v/{path}"} <= changed, path
    assert {"step", "stats/use"} <= changed


def test_a_step_that_is_not_finite_changes_nothing_but_counts():
    step, state = make(bad=(2, 3, 5)), fresh()
    for s in range(6):
        before, (state, row) = state, step(state, batch_of(s), KEY)
        if s in (2, 3, 5):
            assert_same(state._replace(step=before.step, skipped=before.skipped), before)
        else:
            assert not torch.equal(tree.leaves(state.params)[0], tree.leaves(before.params)[0])
        assert int(state.step) == s + 1
    assert state.skipped.tolist() == [3, 1] == [row["skipped"], row["skipped_in_a_row"]]


def test_a_step_is_a_function_of_state_batch_and_key():
    step = make(noise=1e-3)
    (a, rows_a), (b, rows_b) = run(step, fresh()), run(step, fresh())
    assert_same(a, b)
    assert rows_a == rows_b
    _, (row, *_) = run(lambda state, batch, _: step(state, batch, random.key(6)), fresh())
    assert row["loss"] != rows_a[0]["loss"], "the key does not reach the loss"


def test_without_averages_or_statistics_their_trees_are_empty():
    state = init_state(tokenizer.spec(MODEL), KEY, replace(OPTIM, ema=0.0), {})
    assert state.ema == {} and state.stats == {}


def test_training_lowers_the_loss():
    step, state, losses = (
        make(replace(CFG, steps=60, optim=replace(OPTIM, schedule="constant"))),
        fresh(),
        [],
    )
    for _ in range(60):
        state, metrics = step(state, batch_of(0)[:, :1] // 4, KEY)
        losses.append(metrics["mse"].item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_given_total_replaces_the_number_of_steps_in_the_schedule(accumulate):
    step = make(replace(CFG, accumulate=accumulate))
    state = run(step, fresh())[0]
    _, usual = step(state, batch_of(3), KEY)
    _, same = step(state, batch_of(3), KEY, torch.tensor(float(CFG.steps)))
    _, longer = step(state, batch_of(3), KEY, torch.tensor(100.0))
    assert float(same["lr"]) == pytest.approx(float(usual["lr"]))
    assert float(longer["lr"]) > float(usual["lr"]), "its decay has hardly begun"


@pytest.mark.slow
@pytest.mark.compile
def test_totals_that_change_compile_once():
    step = make(replace(CFG, compile="step"))
    state = fresh()
    for s in range(4):
        with torch._dynamo.config.patch(error_on_recompile=s > 0):
            state, row = step(state, batch_of(s), KEY, torch.tensor(6.0 + s))
    expected = run(lambda *args: make()(*args, torch.tensor(9.0)), state, 4, 5)[1][0]["lr"]
    assert float(step(state, batch_of(4), KEY, torch.tensor(9.0))[1]["lr"]) == pytest.approx(
        expected
    )


# Checkpoints


@pytest.fixture(scope="module")
def trained():
    return run(make(), fresh())[0]


@dataclass(frozen=True)
class Config(RunConfig):
    model: TokenizerConfig = field(default_factory=TokenizerConfig)


def test_saved_and_loaded_is_bit_identical(tmp_path, trained):
    cfg = Config(model=MODEL, optim=OPTIM)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, trained, cfg)
    assert checkpoint.latest(tmp_path) == 3
    loaded = checkpoint.load(tmp_path, stage="tokenizer")
    restored = TrainState(**loaded.state)
    assert_same(restored, trained)
    assert_same(checkpoint.weights(loaded), trained.ema)
    assert loaded.step == 3 and from_dict(Config, loaded.config) == cfg


def test_empty_trees_survive_and_weights_fall_back_to_the_parameters(tmp_path, trained):
    state = trained._replace(ema={}, stats={})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state, CFG)
    loaded = checkpoint.load(tmp_path, stage="tokenizer")
    assert loaded.state["ema"] == loaded.state["stats"] == {}
    assert_same(checkpoint.weights(loaded), trained.params)


def test_a_save_is_not_corrupted_by_the_steps_after_it(tmp_path, trained):
    """Saving is asynchronous, and a compiled step overwrites its state in place."""
    state = tree.map(torch.clone, trained)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, CFG)
        for leaf in tree.leaves(state):
            leaf.zero_()
    assert_same(TrainState(**checkpoint.load(tmp_path, stage="tokenizer").state), trained)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    spec, stats = tokenizer.spec(MODEL), quantize.initial_use(MODEL.quantizer)

    def batches(first, stop_at=None):
        for s in range(first, CFG.steps):
            if s == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch_of(s)

    def go(out, stop_at=None, resume=False):
        cfg = replace(CFG, out=str(tmp_path / out), resume=resume)
        state = setup.start(spec, stats, cfg, "tokenizer", torch.device("cpu"))
        return loop.fit(
            make(), state, batches(int(state.step), stop_at), cfg, lambda weights, path: None
        )

    whole = go("whole")
    with pytest.raises(SystemExit) as left:
        go("stopped", stop_at=3)
    assert left.value.code == 143, "what needs the run must not go on"
    assert checkpoint.latest(tmp_path / "stopped") == 3
    with pytest.raises(UserError, match="resume"):
        go("stopped")
    assert_same(
        go("stopped", resume=True), whole
    )  # the order of leaves counts: the gradient norm sums over them
    rows = [
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("whole", "stopped")
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert rows[0][-1]["loss"] == rows[1][-1]["loss"]


def test_a_checkpoint_of_a_newer_version_is_a_sentence(tmp_path, trained, monkeypatch):
    """Not one to be passed over for an older one."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, trained, CFG)
        monkeypatch.setattr(stored_config, "VERSION", stored_config.VERSION + 1)
        checkpointer.save(2, trained, CFG)
    monkeypatch.undo()
    for read in (
        lambda: checkpoint.load(tmp_path, stage="tokenizer"),
        lambda: checkpoint.read_config(tmp_path),
    ):
        with pytest.raises(NewerVersion, match="checkpoints/2 was written by a newer .*: update"):
            read()
    assert checkpoint.read_config(tmp_path / "checkpoints" / "1")


def test_a_missing_or_broken_checkpoint_is_a_sentence(tmp_path, trained):
    with pytest.raises(UserError, match="train_lam"):
        checkpoint.load(tmp_path / "nowhere", stage="lam")
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path, stage="lam")


def test_check_names_the_first_difference(trained):
    spec = tokenizer.spec(MODEL)
    shuffled = dict(reversed(trained.params.items()))
    checked = checkpoint.check(shuffled, spec, "it")
    assert_same(checked, trained.params)
    assert list(tree.paths(checked)) == list(tree.paths(spec)), (
        "sums over leaves would round in another order"
    )
    wider = tokenizer.spec(replace(MODEL, encoder=replace(SMALL, dim=64)))
    with pytest.raises(UserError, match="encoder/.* is .*, not "):
        checkpoint.check(trained.params, wider, "it")
    for params, wanted in (({}, spec), (trained.params | {"extra": torch.ones(2)}, spec)):
        with pytest.raises(UserError, match="it does not fit"):
            checkpoint.check(params, wanted, "it")


CONFIGS = [
    Config(model=MODEL, optim=OPTIM, seed=3),
    OptimConfig(schedule="wsd"),
    LamConfig(32, 64, 16, motion=0.3, quantizer=QuantizerConfig(codes=4)),
    DynamicsConfig(codes=5, action_mode="prepend", stack=SMALL),
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: type(cfg).__name__)
def test_a_config_survives_json(cfg):
    back = from_dict(type(cfg), json.loads(json.dumps(asdict(cfg))))
    assert back == cfg and hash(back) == hash(cfg)


def test_a_stored_config_with_other_fields_is_a_sentence():
    @dataclass(frozen=True)
    class Sized:
        size: int
        names: tuple[str, ...] = ()

    with pytest.raises(UserError, match="a stored Sized .* differ in size:"):
        from_dict(Sized, {"names": []})
    with pytest.raises(NewerVersion, match="^runs/x was written by a newer .* holds colour"):
        from_dict(Config, asdict(Config()) | {"colour": 1}, "runs/x")
    with pytest.raises(NewerVersion, match="^a stored OptimConfig was written by a newer version"):
        from_dict(Config, asdict(Config()) | {"optim": asdict(OptimConfig()) | {"colour": 1}})
    with pytest.raises(UserError, match="a stored OptimConfig .* differ in colour:"):
        from_dict(Config, asdict(Config()) | {"optim": {"colour": 1}})  # of another kind
    for steps in ("9", None, 2**60, 1.5, True):
        with pytest.raises(UserError, match="invalid steps"):
            from_dict(Config, asdict(Config()) | {"steps": steps})


def test_fields_that_a_stored_config_is_too_old_for_take_their_defaults():
    """Otherwise every new option would make all checkpoints unreadable."""
    cfg = Config(model=MODEL, seed=3)
    stored = asdict(cfg)
    del stored["model"]["quantizer"]["bias"], stored["optim"]
    assert from_dict(Config, stored) == replace(cfg, optim=OptimConfig())


def test_bad_run_configs_are_a_sentence():
    for bad in ({"steps": 0}, {"batch_size": -1}, {"accumulate": 0}, {"save_every": 0}):
        with pytest.raises(UserError, match="at least 1"):
            RunConfig(**bad)
    for name in ("compile", "sharding", "damaged", "log"):
        with pytest.raises(UserError, match=f"invalid {name}"):
            from_dict(RunConfig, {name: "yes"})
