"""A trained world: prompt frames in, then one action after another, one frame after another.

A session is a pytree, `State`: the caches of the dynamics and of the decoder. `step` is a pure function of it, so a
session can be kept, branched and replayed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import dynamics, lam, layers, quantize, random, tokenizer
from genie_fn.dynamics import DynamicsConfig, SampleConfig, Step
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import Cache
from genie_fn.runtime import graphs
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
        torch.func.vmap(
            programs.unmask,
            (shared, each, each, each, Step(shared, shared, each), each, shared, shared),
        ),
        torch.func.vmap(programs.remember, (shared, each, each, each, shared)),
        torch.func.vmap(programs.decode, (shared, each, each, shared)),
    )


def chunks(*clips: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with a leading axis of clips, a few at a time: on a CPU so few that what is computed stays cached."""
    size = 64 if clips[0].is_cuda else 8
    return zip(*(x.split(size) for x in clips), strict=True)


def infer_actions(world: World, video_BTHWC: Tensor) -> Tensor:
    """The latent actions between the frames of a uint8 video, (B, T-1)."""
    if world.lam is None:
        raise UserError(
            "this world was trained on true actions and has no latent ones: pass the actions themselves"
        )
    return lam.infer_actions(world.lam.params, video_BTHWC, world.lam.cfg)


def empty_state(
    coder: TokenizerConfig, model: DynamicsConfig, batch: int, device: torch.device | str
) -> State:
    """Sessions that have seen no frame."""
    return State(
        dynamics.empty_cache(model, batch, device), tokenizer.empty_cache(coder, batch, device)
    )


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
        model.params,
        action_B,
        state.dynamics,
        key,
        model.cfg,
        sample,
        dynamics.Programs(*programs[:2]),
        temperature,
    )
    codes = quantize.lookup(coder.params["quantizer"], ids.unsqueeze(-2), coder.cfg.quantizer)
    video, decoder = programs.decode(coder.params, codes, state.decoder, coder.cfg)
    return State(cache, decoder), Frame(
        layers.to_uint8(video.squeeze(-4)), ids, probability, step_of
    )


def played(world: World, sample: SampleConfig) -> SampleConfig:
    """How a world is played: unless that is chosen, with guidance 1 if its actions are recorded ones, which are then
    obeyed more often, and with none if they are latent, where it only costs (docs/LOG.md)."""
    return (
        replace(sample, guidance=0.0 if world.lam else 1.0) if sample.guidance is None else sample
    )


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
        state, frame = step(
            world, state, actions_BT[:, t], random.fold_in(key, t), sample, programs
        )
        frames.append(frame.pixels)
    return torch.stack(frames, 1)
