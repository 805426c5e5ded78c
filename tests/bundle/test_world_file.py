"""World files: what was written is read again, rounded; invalid files are refused."""

import copy
import io
import json
import pickle
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genie_fn import bundle, dynamics, lam, random, tokenizer, tree, world
from genie_fn.bundle import Bundle, Dataset, action_map, format
from genie_fn.bundle.action_effects import ActionEffects
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.maskgit import SampleConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.quantize import QuantizerConfig
from tests.conftest import LAM, STACK, TOKENIZER

STARTS = random.randint(random.key(9), (3, 32, 32, 3), 0, 256).to(torch.uint8)
NAMES = ["LEFT", "RIGHT"]
META = {"collection": {"env": "coinrun", "distribution_mode": "hard"}}


def bundle_of(made: world.World) -> Bundle:
    """A world with everything that a world file holds."""
    mapping = action_map.make(NAMES, [[3, 0, 1, 0], [0, 2, 0, 5]], 0.5, 0.4)
    dataset = Dataset("there", "0", META)
    card = {"licence": "MIT"}
    motion = [[1, -0.5], None, [0, 0], [0, 0]]
    shares = [0.5, 0, 0.25, 0.25]
    effects = ActionEffects(motion, shares, 8, [1, 0, 0, 0], [png(32, 64), b"", b"", b""])
    return Bundle(made, "here", STARTS.numpy(), tuple(NAMES), dataset, mapping, card, effects)


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def packed():
    """A world with latent actions from blueprints, and its file's content."""
    nets = Blueprints(lam.conv_encoder(8), lam.conv_decoder(8, condition=8, blocks=1))
    quantizer = QuantizerConfig(kind="vq", codes=4, latent_dim=8)
    lam_cfg = replace(
        LAM,
        patch=8,
        quantizer=quantizer,
        arch="blueprint",
        blueprints=nets,
    )
    model = DynamicsConfig(
        TOKENIZER.quantizer.codes, TOKENIZER.tokens, lam_cfg.actions, stack=STACK
    )
    stages = ((tokenizer, TOKENIZER), (dynamics, model), (lam, lam_cfg))
    original = world.World(
        *(world.Stage(c, tree.init(m.spec(c), random.key(i))) for i, (m, c) in enumerate(stages))
    )
    return original, bundle.encode(bundle_of(original))


@pytest.fixture
def file(packed, tmp_path):
    path = tmp_path / "there.safetensors"
    path.write_bytes(packed[1])
    return path


def opened(content: bytes) -> tuple[dict, bytes]:
    """The header, with what its metadata holds as JSON understood too, and the rest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["content"] = json.loads(header["__metadata__"]["content"])
    return header, content[8 + length :]


def closed(header, data: bytes) -> bytes:
    if (
        isinstance(header, dict)
        and isinstance(metadata := header.get("__metadata__"), dict)
        and "content" in metadata
    ):
        header = header | {"__metadata__": metadata | {"content": json.dumps(metadata["content"])}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_rollouts_are_those_of_the_rounded_parameters_bit_for_bit(packed, file, clip):
    """As a run's would be: implementations are chosen for this machine, too."""
    loaded = bundle.load(file).world
    whole = world.World(
        *(s._replace(backend=other.backend) for s, other in zip(packed[0], loaded, strict=True))
    )
    rounded = world.World(
        *(s._replace(params=tree.map(lambda x: x.bfloat16().float(), s.params)) for s in whole)
    )
    prompt, chosen = clip[:, :1], torch.tensor([[0, 3, 1], [2, 2, 0]])
    options = random.key(3), SampleConfig(steps=3)
    frames = [world.rollout(model, prompt, chosen, *options) for model in (loaded, rounded, whole)]
    assert torch.equal(*frames[:2]) and not torch.equal(*frames[1:])
    assert torch.equal(*(world.infer_actions(w, clip) for w in (rounded, loaded)))
    assert [s.cfg for s in loaded] == [s.cfg for s in bundle.load(file).world]


def test_all_that_play_needs_is_there_and_no_more(packed, file):
    loaded = bundle.load(file, data="no such dataset")
    expected = bundle_of(packed[0])
    assert np.array_equal(loaded.start_frames, STARTS.numpy())
    assert loaded.action_names == tuple(NAMES)
    assert loaded.action_map == expected.action_map and loaded.dataset == expected.dataset
    assert loaded.effects == expected.effects
    assert loaded.card == {"licence": "MIT"} and loaded.describe() == "licence MIT"
    assert bundle.encode(loaded)[-1000:] == packed[1][-1000:]
    held = format.read_header(file).tensors
    assert {name.split("/")[0] for name in held} == {
        "tokenizer",
        "dynamics",
        "lam",
        "starts",
        "strips",
    }
    assert not [name for name in held if name.startswith("lam/decoder")]
    assert (
        len(packed[1])
        < 2 * sum(tree.count(stage.params) for stage in packed[0]) + STARTS.numel() + 50_000
    )


def test_a_world_of_recorded_actions_has_no_third_model(packed, tmp_path):
    path = tmp_path / "recorded.safetensors"
    recorded = packed[0]._replace(lam=None)
    bundle.save(path, bundle_of(recorded)._replace(action_map=None))
    loaded = bundle.load(path)
    assert loaded.world.lam is None and loaded.action_map is None


def changed(header: dict, path: tuple, value=None) -> dict:
    """A copy with the value at a path replaced, or the key removed where it is None."""
    whole = part = copy.deepcopy(header)
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return whole


CONTENT = ("__metadata__", "content")
MODEL = (*CONTENT, "models", "dynamics")
WRONG = {
    "another version": (
        ("__metadata__", "version"),
        "7",
        "newer version of genie_fn",
    ),
    "no version": (("__metadata__", "version"), "٣", "format version is '٣'"),
    "another format": (("__metadata__", "format"), "other", "not a world file"),
    "an unknown key": (("__metadata__", "new"), "x", "other keys than a world file's"),
    "an unknown part": ((*CONTENT, "new"), {}, "other keys than a world file's"),
    "an unknown model": ((*CONTENT, "models", "new"), {}, "damaged .*new"),
    "a missing model": (MODEL, None, "damaged .*dynamics"),
    "an unknown option": ((*MODEL, "new"), 1, r"newer version of genie_fn \(it holds new, "),
    "an unknown inner option": (
        (*MODEL, "stack", "new"),
        1,
        r"newer version of genie_fn \(it holds new, ",
    ),
    "an unknown description": (
        (*CONTENT, "about", "new"),
        1,
        r"newer version of genie_fn \(it holds new, ",
    ),
    "an unknown field of the map": (
        (*CONTENT, "about", "map", "new"),
        1,
        r"newer version of genie_fn \(it holds new, ",
    ),
    "an unknown field of the dataset": (
        (*CONTENT, "about", "data", "new"),
        1,
        r"newer version of genie_fn \(it holds new, ",
    ),
    "an option of another type": ((*MODEL, "actions"), "4", "invalid actions"),
    "an impossible option": ((*MODEL, "stack", "heads"), 0, "cannot have 0 heads"),
    "a giant": ((*MODEL, "stack", "layers"), 2**40, "impossible values"),
    "giant codebooks": ((*MODEL, "codes"), 2**54, "impossible values"),
    "larger codebooks": ((*MODEL, "codes"), 2**30, "do not fit together"),
    "a long memory": ((*MODEL, "stack", "window"), 2**20, "do not fit together"),
    "other models": ((*MODEL, "actions"), 5, "do not fit together"),
    "deeper models": ((*MODEL, "stack", "layers"), 3, r"BF16 \[2, 32\], not BF16 \[3, 32\]"),
    "no frames": ((*CONTENT, "about", "starts"), 0, "do not fit together"),
    "more frames": (
        (*CONTENT, "about", "starts"),
        4,
        r"starts is U8 \[3, 32, 32, 3\], not U8 \[4, 32, 32, 3\]",
    ),
    "another dtype": (("dynamics/action", "dtype"), "F32", "dynamics/action is F32"),
    "a missing tensor": (("dynamics/action",), None, "lacks 'dynamics/action'"),
    "an unknown tensor": (
        ("new",),
        {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
        "unknown tensor, 'new'",
    ),
    "overlapping tensors": (
        ("starts", "data_offsets"),
        [0, 9216],
        "not laid out as they should be",
    ),
    "a map to nowhere": (
        (*CONTENT, "about", "map", "to_latent"),
        [0, 4],
        "its actions or its data is impossible",
    ),
    "effects of fewer actions": (
        (*CONTENT, "about", "effects", "share"),
        [0.5],
        "effects of its actions are impossible",
    ),
    "effects without motion": (
        (*CONTENT, "about", "effects", "motion"),
        None,
        "effects of its actions cannot be parsed",
    ),
    "more examples": (
        (*CONTENT, "about", "effects", "examples"),
        [2, 0, 0, 0],
        "effects of its actions are impossible",
    ),
    "longer examples": (
        (*CONTENT, "about", "effects", "strips"),
        [2**20, 0, 0, 0],
        r"strips is U8 \[\d+\], not U8 \[1048576\]",
    ),
    "no names": ((*CONTENT, "about", "names"), None, "its actions or its data cannot be parsed"),
    "no game's name": (
        (*CONTENT, "about", "data", "meta", "collection", "env"),
        3,
        "its actions or its data",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_belong_is_named(packed, file, what):
    path, value, words = WRONG[what]
    header, data = opened(packed[1])
    file.write_bytes(closed(changed(header, path, value), data))
    with pytest.raises(UserError, match=words):
        bundle.load(file)


def test_files_of_other_kinds_are_refused(packed, file, tmp_path):
    content = packed[1]
    foreign = [
        b"",
        b"hello",
        pickle.dumps({"a": 1}),
        (2**62).to_bytes(8, "little") + b"{}",
        content[:200],
    ]
    foreign += [closed([], b""), closed({}, b""), (9**5).to_bytes(8, "little") + b"[" * 9**5]
    for other in foreign:
        file.write_bytes(other)
        with pytest.raises(UserError, match="not a world file"):
            bundle.load(file)
    for other, words in (
        (content[:-1], "bytes follow its header"),
        (content + b"x", "bytes follow its header"),
    ):
        file.write_bytes(other)
        with pytest.raises(UserError, match=words):
            bundle.load(file)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its content was changed"):
        bundle.load(file)
    with pytest.raises(UserError, match="cannot be read"):
        format.read_header(tmp_path / "none.safetensors")


NUMBERS = (
    st.sampled_from([0, 1, -1, 2, 3, 33, 2**20, 2**31, 2**64, 10**30, 0.5, 32.0, 1e308])
    | st.floats()
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=5)
    | st.sampled_from(["vq", "lfq", "silu", "BF16", "magvit2"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """The paths of everything in nested dicts and lists."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def spoiled(draw, content: bytes) -> bytes:
    """A file with bits flipped, cut off somewhere, or with its header edited."""
    kind = draw(st.sampled_from(["flip", "cut", "edit", "edit", "edit"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "flip":
        made, most = bytearray(content), draw(st.sampled_from([8, len(content) // 3, len(content)]))
        for at in draw(st.lists(st.integers(0, 8 * most - 1), min_size=1, max_size=8)):
            made[at // 8] ^= 1 << at % 8
        return bytes(made)
    header, data = opened(content)
    for _ in range(draw(st.integers(1, 3))):
        header = changed(header, draw(st.sampled_from(list(places(header)))), draw(VALUES))
    return closed(header, data)


def try_all(packed, file, examples: int) -> None:
    """Nothing but a UserError, no hang, and no allocation above 1 GB, for damaged files."""
    outcomes = []

    def hang(*_):
        raise AssertionError("this file takes a minute to read")

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data):
        file.write_bytes(spoiled(data.draw, packed[1]))
        signal.alarm(60)
        try:
            bundle.load(file)
            outcomes.append("")
        except UserError as error:
            assert not isinstance(error.__cause__, MemoryError) and "alloc" not in str(
                error.__cause__
            )
            assert "\n" not in str(error) and len(str(error)) < 1000
            outcomes.append(str(error)[len(str(file)) :])
        finally:
            signal.alarm(0)

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    try:
        attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)
    kinds = (
        "not a world file",
        "bytes follow its header",
        "its content was changed",
        "impossible",
        "newer version",
    )
    reached = [kind for kind in kinds if any(kind in outcome for outcome in outcomes)]
    assert len(reached) >= 3, (
        "the examples are all alike"
    )  # which ones they are is up to hypothesis


def test_spoiled_files_are_refused(packed, file):
    try_all(packed, file, 250)


@pytest.mark.slow
def test_many_spoiled_files_are_refused(packed, file):
    try_all(packed, file, 3000)
