"""Fuzz tests of everything that is read from disk: a UserError or a correct result, with bounded
memory."""

import ctypes
import json
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import data, tree
from genie_fn.bundle import action_effects, action_map, run
from genie_fn.bundle.action_effects import ActionEffects
from genie_fn.data import storage, token_cache
from genie_fn.errors import UserError
from genie_fn.training import checkpoint, checkpointer
from tests.faults import rig

LIMIT = 2**20  # kilobytes
numbers = st.sampled_from(
    [0, -1, 1, 7, 10**9, 2**31, 2**53, 2**63, 10**30, 1e308, float("nan"), float("inf")]
)
leaves = (
    st.none()
    | st.booleans()
    | numbers
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just("\ud800" * 9)
)
junk = st.recursive(
    leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=9), x, max_size=3)
)


def places(value, path=()):
    """Every path into nested lists and dicts."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value, path, act):
    """A copy of nested lists and dicts with `act(container, key)` done at a path."""
    value = json.loads(json.dumps(value))
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    act(inner, path[-1])
    return value


@st.composite
def damaged(draw, valid):
    """JSON like `valid`, with a few values replaced, removed or repeated; or arbitrary JSON."""
    value = valid
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([*places(value)]))
        if not path:
            return draw(junk)
        new = draw(junk)
        how = draw(st.sampled_from(["put", "put", "put", "remove", "double"]))
        if how == "put":
            value = changed(value, path, lambda inner, key, new=new: inner.__setitem__(key, new))
        elif how == "remove":
            value = changed(value, path, lambda inner, key: inner.__delitem__(key))
        elif isinstance(path[-1], int):
            value = changed(value, path, lambda inner, key: inner.append(inner[key]))
    return value


def as_bytes(valid) -> st.SearchStrategy[bytes]:
    """A file's content: damaged JSON, truncated JSON, or no JSON."""
    text = json.dumps(valid).encode()
    cut = st.integers(0, len(text)).map(lambda end: text[:end])
    deep = st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"\xff" * 99, b"1" * 9_999])
    whole = damaged(valid).map(lambda value: json.dumps(value).encode())
    return st.one_of(whole, whole, whole, cut, st.binary(max_size=50), deep)


def fuzz(read: Callable, inputs: st.SearchStrategy, count: int) -> None:
    """Call `read` on `count` inputs: it may raise UserError and nothing else, and take at most a GB
    of memory."""

    def attempt(content):
        try:
            read(content)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000

    before = peak(anew=True)
    checks = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
    options = {
        "deadline": None,
        "database": None,
        "derandomize": True,
        "suppress_health_check": checks,
    }
    hypothesis.settings(max_examples=count, **options)(hypothesis.given(inputs)(attempt))()
    assert peak() - before < LIMIT


def peak(anew: bool = False) -> int:
    """The peak memory of this process in kilobytes; with `anew`, Linux starts to measure it again, after
    malloc has returned what it keeps.

    Otherwise the memory of an earlier test would hide that of a reader.
    """
    try:
        if anew:
            with suppress(AttributeError):  # of glibc alone
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets what was taken before"
)
def test_memory_that_a_reader_takes_is_noticed(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", LIMIT // 10)
    ballast = np.ones(2**25)  # a quarter of a GB, before
    del ballast
    with pytest.raises(AssertionError):
        fuzz(lambda content: np.ones(2**24).sum(), st.binary(max_size=1), 1)


counts = pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rig.make_data(tmp_path_factory.mktemp("fuzz") / "data", 12)


def use(root) -> None:
    """Use a dataset as programs do."""
    store = data.open_store(root)
    starts = data.clip_starts(store, "train", 3)
    data.read_clips(store, starts[:: max(1, len(starts) // 3)][:4], 3)
    data.read_segment(store, store.segments[-1])


@counts
def test_store_manifests(store, tmp_path, count):
    root = shutil.copytree(store.root, tmp_path / "data")
    header = asdict(replace(store, arrays={}, root=""))
    valid = {name: header[name] for name in storage.HEADER} | {"version": storage.VERSION}
    valid["segments"] = [segment._asdict() for segment in store.segments[:2]]

    def read(content: bytes) -> None:
        try:  # with the right hash, or nothing beyond it would ever be reached
            header = json.loads(content)
            body = {name: header[name] for name in header}
            content = json.dumps(body | {"sha256": storage.sha256(body)}).encode()
        except (ValueError, TypeError, LookupError, RecursionError):
            pass
        (root / data.MANIFEST).write_bytes(content)
        use(root)

    fuzz(read, as_bytes(valid), count)


@counts
def test_array_metadata(store, tmp_path, count):
    root = shutil.copytree(store.root, tmp_path / "data")
    for name in ("frames", "episode_starts"):
        path = root / name / "zarr.json"
        valid = path.read_bytes()

        def read(content: bytes, path=path) -> None:
            path.write_bytes(content)
            use(root)

        fuzz(read, as_bytes(json.loads(valid)), count // 2)
        path.write_bytes(valid)


def test_a_claim_of_great_size_is_one_sentence(store, tmp_path):
    """A manifest and metadata that agree on frames of 10^9 pixels, or on 10^12 frames."""
    for changes in (
        {"height": 10**9},
        {"segments": [store.segments[0]._asdict() | {"length": 10**12}]},
    ):
        root = shutil.copytree(store.root, tmp_path / str(len(changes)), dirs_exist_ok=True)
        manifest = json.loads((root / data.MANIFEST).read_bytes()) | changes
        del manifest["sha256"]
        manifest["sha256"] = storage.sha256(manifest)
        (root / data.MANIFEST).write_text(json.dumps(manifest))
        for path in root.glob("*/zarr.json"):
            metadata = json.loads(path.read_bytes())
            metadata["shape"][0] = 10**13
            path.write_text(json.dumps(metadata))
        with pytest.raises(UserError):
            use(root)


CONFIGS = {"tokenizer": train_tokenizer, "lam": train_lam, "dynamics": train_dynamics}


@pytest.mark.parametrize(
    ("stage", "preset"),
    [("tokenizer", "magvit2-demo"), ("lam", "demo"), ("dynamics", "demo")],
    ids=lambda x: x,
)
@counts
def test_checkpoint_configurations(stage, preset, count):
    valid = json.loads(json.dumps(asdict(CONFIGS[stage].PRESETS[preset]().model)))

    def read(model) -> None:
        if isinstance(model, dict):  # as `load_stage` makes sure
            cfg, spec = run.read_config(stage, model, "runs/x")
            tree.count(spec)

    fuzz(read, damaged(valid), count)


@counts
def test_action_maps(tmp_path, count):
    valid = action_map.make(["LEFT", "NOOP"], [[3, 4, 5], [0, 1, 2]], 0.5, 0.25)._asdict()

    def read(content: bytes) -> None:
        (tmp_path / action_map.FILE).write_bytes(content)
        found = action_map.load(tmp_path, 3)
        assert found is None or all(0 <= latent < 3 for latent in found.to_latent)

    fuzz(read, as_bytes(valid), count)


@counts
def test_action_effects(tmp_path, world_model, count):
    none = [b""] * 5
    valid = ActionEffects([[1.0, 0.5], None, [0, 0], [0, 0], [0, 0]], [0.2] * 5, 9, [0] * 5, none)
    path = action_effects.save(valid, world_model, tmp_path)
    stored = json.loads(path.read_text())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = action_effects.load(world_model, tmp_path)
        assert found is None or len(found.motion) == 5

    fuzz(read, as_bytes(stored), count)


@counts
def test_token_cache_manifests(store, tmp_path, count):
    encoder = token_cache.Encoder(
        lambda frames: np.zeros((*frames.shape[:2], 2), np.int64), "x", "past", (2,), 16
    )
    cache = token_cache.open_cache(store, 3, encoder, tmp_path)

    def read(content: bytes) -> None:
        (cache.root / token_cache.MANIFEST).write_bytes(content)
        token_cache.open_cache(store, 3, encoder, tmp_path)

    fuzz(read, as_bytes([[0, 5], [1000, 7]]), count)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_checkpoints(tmp_path, count):
    """A checkpoint with changed bytes in any file loads the right state, or raises UserError."""
    state = {"params": {"w": np.ones((3, 4), np.float32)}, "ema": {}, "step": np.array(3)}
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpointer.write(run, 3, state, {"model": {}}, seconds=0.0, keep=2)
    folder = run / "checkpoints" / "3"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    valid = {path: path.read_bytes() for path in files}

    def read(damage) -> None:
        index, at, new = damage
        path = files[index % len(files)]
        content = valid[path]
        at = int(at * len(content))
        path.write_bytes(content[:at] + new + content[at + len(new) :])
        try:
            loaded = checkpoint.load(run, stage="lam")
            assert (
                loaded.config == {"model": {}} and (loaded.state["params"]["w"].numpy() == 1).all()
            )
        finally:
            path.write_bytes(content)

    fuzz(
        read,
        st.tuples(st.integers(0, 99), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
        count,
    )
