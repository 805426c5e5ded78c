"""A trained world: prompt frames in, then one action after another, one frame after another.

A session is a pytree, `State`: the caches of the dynamics and of the decoder. `step` is a pure function of it, so a
session can be kept, branched and replayed.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import checkpoint, dynamics, graphs, impls, lam, layers, quantize, random, tokenizer, tree, world_file
from genie_fn.dynamics import DynamicsConfig, SampleConfig, Step
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import Cache
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.tree import Tree


class Stage(NamedTuple):
    """One trained model: its configuration and its parameters."""

    cfg: TokenizerConfig | LamConfig | DynamicsConfig
    params: Tree


class World(NamedTuple):
    """The three models; `lam` is None where the dynamics was trained on true actions."""

    tokenizer: Stage
    dynamics: Stage
    lam: Stage | None


class State(NamedTuple):
    """A session of B players."""

    dynamics: Cache
    decoder: Tree


class Frame(NamedTuple):
    """What a step shows: pixels (B, H, W, 3) uint8, ids (B, N), the probability of each id (B, N), and the MaskGIT step
    1..steps that revealed it (B, N)."""

    pixels: Tensor
    ids: Tensor
    probability: Tensor
    step: Tensor


class Programs(NamedTuple):
    """The functions called for every frame, so that a caller can pass compiled ones."""

    unmask: Callable = dynamics.unmask
    remember: Callable = dynamics.remember
    decode: Callable = tokenizer.decode_next


EAGER = Programs()


def compiled(device: torch.device | str = "cpu", programs: Programs = EAGER) -> Programs:
    """`Programs` compiled for one batch size, and on a GPU replayed as CUDA graphs."""
    fast = (torch.compile(f, fullgraph=True, dynamic=False) for f in programs)
    return Programs(*(map(graphs.recorded, fast) if torch.device(device).type == "cuda" else fast))


def vmapped(programs: Programs = EAGER) -> Programs:
    """`Programs` for M sessions, each with its own key, temperature and past: everything has an axis more in front."""
    each, shared = 0, None
    return Programs(
        torch.func.vmap(programs.unmask, (shared, each, each, each, Step(shared, shared, each), each, shared, shared)),
        torch.func.vmap(programs.remember, (shared, each, each, each, shared)),
        torch.func.vmap(programs.decode, (shared, each, each, shared)),
    )


MOST_STARTS = 1024  # frames to start from, in a world file
LARGEST_STATE = 1 << 30  # bytes of a session of a world that comes from a file
MODULES = {"tokenizer": (tokenizer, TokenizerConfig), "lam": (lam, LamConfig), "dynamics": (dynamics, DynamicsConfig)}


def load_stage(
    run: str | Path, stage: str, device: torch.device | str = "cpu", compiled: bool = False
) -> tuple[Stage, dict]:
    """A trained stage (`tokenizer`, `lam` or `dynamics`) from its run's folder, and the whole stored configuration.

    Its implementations are chosen for `device`, and for being compiled or not, wherever it was trained.
    """
    loaded = checkpoint.load(run, stage=stage, device=device)
    model, weights = loaded.config.get("model"), checkpoint.weights(loaded)
    if not isinstance(model, dict):
        raise UserError(f"{run} does not hold a {stage}: pass the folder of a run of train_{stage}.py")
    if stage == "lam" and loaded.config.get("train_lam"):  # a dynamics run that trained its latent actions along
        model, weights = loaded.config["lam_model"], weights["lam"]
    cfg, spec = describe(stage, model, run)
    cfg = impls.resolve(cfg, torch.device(device), compiled, anew=True)
    own = {name: weights[name] for name in spec.keys() & weights.keys()}  # a run may train other networks along
    return Stage(cfg, checkpoint.check(own, spec, f"the {stage} in {run}")), loaded.config


def describe(stage: str, model: dict, run: str | Path) -> tuple[TokenizerConfig | LamConfig | DynamicsConfig, Tree]:
    """The configuration that a run has stored of a stage's model, and the spec of its parameters."""
    module, config = MODULES[stage]
    try:
        cfg = checkpoint.from_dict(config, model)
        return cfg, module.spec(cfg)
    except UserError:
        raise
    except Exception as error:  # numbers that make no sense fail wherever they are first used
        raise UserError(f"the configuration of the {stage} in {run} makes no sense: train it again") from error


def check_resolution(stage: Stage | None, height: int, width: int, run: str | Path) -> None:
    """Raise UserError if a trained stage expects frames of another size."""
    if stage is not None and (stage.cfg.height, stage.cfg.width) != (height, width):
        raise UserError(
            f"the model in {run} was trained on {stage.cfg.height}x{stage.cfg.width} frames, but these are "
            f"{height}x{width}: train it on this data, or pass data of its size"
        )


def check_framewise(stage: Stage, run: str | Path) -> None:
    """Raise UserError if a tokenizer codes several frames at once: an action per frame needs a grid per frame."""
    if stage.cfg.time_factor != 1:
        raise UserError(
            f"the tokenizer in {run} codes {stage.cfg.time_factor} frames at once, but every action needs a frame of "
            "its own: train one that does not compress time, such as --cfg.preset magvit2-framewise"
        )


def load(run: str | Path, device: torch.device | str = "cpu", compiled: bool = False) -> World:
    """The world of a dynamics run, with the tokenizer and the latent actions that it was trained on; or that of a world
    file."""
    if Path(run).is_file():
        return unpack(run, device, compiled)[0]
    stage, config = load_stage(run, "dynamics", device, compiled)
    along = run if config["train_lam"] else config["lam"]
    actions = load_stage(along, "lam", device, compiled)[0] if config["actions"] == "latent" else None
    return World(load_stage(config["tokenizer"], "tokenizer", device, compiled)[0], stage, actions)


def _used(world: Tree) -> Tree:
    """Of the models' parameters, or specs, by name, those that are used once a world is trained."""
    return {name: lam.encoder(params) if name == "lam" else params for name, params in world.items()}


def pack(world: World, starts_MHWC: Tensor, about: dict) -> bytes:
    """The content of a world file: the world in bfloat16, uint8 frames to start from, and what is told about it."""
    stages = {name: stage for name, stage in world._asdict().items() if stage is not None}
    used = tree.paths(_used({name: stage.params for name, stage in stages.items()}))
    tensors = {path: x.detach().to("cpu", torch.bfloat16) for path, x in used.items()} | {"starts": starts_MHWC}
    models = {name: asdict(stage.cfg) for name, stage in stages.items()}
    return world_file.pack(models, about | {"starts": len(starts_MHWC)}, tensors)


def unpack(path: str | Path, device: torch.device | str = "cpu", compiled: bool = False) -> tuple[World, Tensor, dict]:
    """What `pack` was given, of a world file: the world in float32 on `device`, the frames to start from, and what is
    told about it. Of its latent action model there is what infers actions. Raises UserError for anything else.
    """
    head = world_file.header(path)
    try:
        cfgs = {name: checkpoint.from_dict(MODULES[name][1], cfg) for name, cfg in head.models.items()}
        spec, starts = _used({name: MODULES[name][0].spec(cfg) for name, cfg in cfgs.items()}), head.about["starts"]
        sound = isinstance(starts, int) and 0 < starts <= MOST_STARTS and _agree(**cfgs)
    except UserError as error:
        raise world_file.damaged(path, str(error)) from error
    except Exception as error:  # a configuration from outside may be wrong in any way
        raise world_file.damaged(path, f"its configurations are impossible: {error!r:.200}") from error
    if not sound:
        raise world_file.damaged(path, "its models do not fit together")
    wanted = {name: world_file.Spec("BF16", leaf.shape) for name, leaf in tree.paths(spec).items()}
    frames = world_file.Spec("U8", (starts, cfgs["tokenizer"].height, cfgs["tokenizer"].width, 3))
    tensors = world_file.tensors(path, head, wanted | {"starts": frames})
    params = tree.map_with_path(lambda name, _: tensors[name].to(device, torch.float32), spec)
    settled = {n: impls.resolve(cfg, torch.device(device), compiled, anew=True) for n, cfg in cfgs.items()}
    stages = {name: Stage(cfg, params[name]) for name, cfg in settled.items()}
    return World(**{"lam": None} | stages), tensors["starts"], head.about


def _agree(tokenizer: TokenizerConfig, dynamics: DynamicsConfig, lam: LamConfig | None = None) -> bool:
    """Whether models make a world, one whose sessions take no more memory than any trained world's."""
    side, state = (tokenizer.height, tokenizer.width), empty_state(tokenizer, dynamics, 1, "meta")
    return (
        (dynamics.codes, dynamics.tokens) == (tokenizer.quantizer.codes, tokenizer.tokens)
        and tokenizer.time_factor == 1
        and (lam is None or (lam.actions, lam.height, lam.width) == (dynamics.actions, *side))
        and sum(x.numel() * x.element_size() for x in tree.leaves(state)) <= LARGEST_STATE
    )


def fingerprint(*stages: Stage | None) -> str:
    """A hash of what models compute: their parameters, bit for bit, and their configurations."""
    digest = hashlib.sha256()
    for stage in stages:
        if stage is not None:
            settled = impls.resolve(stage.cfg, torch.device("cpu"), compiled=False, anew=True)  # the same everywhere
            digest.update(repr(settled).encode())
            for path, value in sorted(tree.paths(stage.params).items()):
                digest.update(path.encode() + value.detach().cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def chunks(*clips: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with a leading axis of clips, a few at a time: on a CPU so few that what is computed stays cached."""
    size = 64 if clips[0].is_cuda else 8
    return zip(*(x.split(size) for x in clips), strict=True)


def infer_actions(world: World, video_BTHWC: Tensor) -> Tensor:
    """The latent actions between the frames of a uint8 video, (B, T-1)."""
    if world.lam is None:
        raise UserError("this world was trained on true actions and has no latent ones: pass the actions themselves")
    return lam.infer_actions(world.lam.params, video_BTHWC, world.lam.cfg)


def empty_state(coder: TokenizerConfig, model: DynamicsConfig, batch: int, device: torch.device | str) -> State:
    """Sessions that have seen no frame."""
    return State(dynamics.empty_cache(model, batch, device), tokenizer.empty_cache(coder, batch, device))


def reset(
    world: World, prompt_BTHWC: Tensor, actions_BT: Tensor | None = None, programs: Programs = EAGER
) -> tuple[State, Tensor]:
    """Start B sessions from T prompt frames (uint8) and the T-1 actions between them (none for a single frame).

    Returns the state and the prompt as the tokenizer sees it, uint8.
    """
    coder, model = world.tokenizer, world.dynamics
    batch, device = len(prompt_BTHWC), prompt_BTHWC.device
    codes, ids = tokenizer.tokenize(coder.params, prompt_BTHWC, coder.cfg)
    if actions_BT is None:
        actions_BT = torch.zeros((batch, 0), dtype=torch.int64, device=device)
    entering = dynamics.entering(actions_BT, model.cfg)
    empty = empty_state(coder.cfg, model.cfg, batch, device)
    cache = programs.remember(model.params, ids, entering, empty.dynamics, model.cfg)
    video, decoder = programs.decode(coder.params, codes, empty.decoder, coder.cfg)
    return State(cache, decoder), layers.to_uint8(video)


def step(
    world: World,
    state: State,
    action_B: Tensor,
    key: Tensor,
    sample: SampleConfig,
    programs: Programs = EAGER,
    temperature: Tensor | None = None,
) -> tuple[State, Frame]:
    """The next frame of every session, given its action. Pure: the same state, action and key give the same frame.

    A tensor `temperature` takes the place of the configuration's. With `vmapped` programs, everything has an axis more
    in front.
    """
    coder, model = world.tokenizer, world.dynamics
    ids, probability, step_of, cache = dynamics.next_frame(
        model.params, action_B, state.dynamics, key, model.cfg, sample, dynamics.Programs(*programs[:2]), temperature
    )
    codes = quantize.lookup(coder.params["quantizer"], ids.unsqueeze(-2), coder.cfg.quantizer)
    video, decoder = programs.decode(coder.params, codes, state.decoder, coder.cfg)
    return State(cache, decoder), Frame(layers.to_uint8(video.squeeze(-4)), ids, probability, step_of)


def played(world: World, sample: SampleConfig) -> SampleConfig:
    """How a world is played: unless that is chosen, with guidance 1 if its actions are recorded ones, which are then
    obeyed more often, and with none if they are latent, where it only costs (docs/LOG.md)."""
    return replace(sample, guidance=0.0 if world.lam else 1.0) if sample.guidance is None else sample


def rollout(
    world: World,
    prompt_BTHWC: Tensor,
    actions_BT: Tensor,
    key: Tensor,
    sample: SampleConfig,
    programs: Programs = EAGER,
) -> Tensor:
    """Continue T prompt frames given all T-1+F actions: the F dreamed frames, uint8 (B, F, H, W, 3)."""
    given = prompt_BTHWC.shape[1] - 1
    state, _ = reset(world, prompt_BTHWC, actions_BT[:, :given], programs)
    frames = []
    for t in range(given, actions_BT.shape[1]):
        state, frame = step(world, state, actions_BT[:, t], random.fold_in(key, t), sample, programs)
        frames.append(frame.pixels)
    return torch.stack(frames, 1)
