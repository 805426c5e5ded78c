"""A trained world: prompt frames in, then one action after another in, one frame after another out.

The state of a session is a pytree, `State`: what the dynamics model and the decoder keep of past
frames. `step` is a pure function of it, so a session can be kept, branched and replayed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from genie_fn import dynamics, lam, layers, maskgit, quantize, random, tokenizer
from genie_fn.dynamics import DynamicsConfig, Memory
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.maskgit import Noise, SampleConfig
from genie_fn.runtime import compilation
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.tree import Tree

ConfigT = TypeVar("ConfigT", bound=TokenizerConfig | LamConfig | DynamicsConfig)


class Stage(NamedTuple, Generic[ConfigT]):
    """One trained model: its configuration, its parameters, and how it is computed."""

    cfg: ConfigT
    params: Tree
    backend: Backend = AUTO


class World(NamedTuple):
    """The three models; `lam` is None where the dynamics was trained on recorded actions."""

    tokenizer: Stage[TokenizerConfig]
    dynamics: Stage[DynamicsConfig]
    lam: Stage[LamConfig] | None


class State(NamedTuple):
    """The state of B sessions."""

    dynamics: Memory
    decoder: Tree


class Prompt(NamedTuple):
    """Prompt frames as the tokenizer encodes them."""

    pixels: Tensor
    """The decoded frames, (B, T, H, W, 3) uint8."""
    ids: Tensor
    """Token ids, (B, T, N)."""


class Frame(NamedTuple):
    """A generated frame of each session."""

    pixels: Tensor
    """(B, H, W, 3) uint8."""
    ids: Tensor
    """Token ids, (B, N)."""
    probability: Tensor
    """The probability of each id, (B, N)."""
    step: Tensor
    """The MaskGIT step, 1..steps, that revealed each id, (B, N)."""


class Programs(NamedTuple):
    """The functions called for every frame, so that a caller can pass compiled ones."""

    unmask: Callable = maskgit.unmask
    remember: Callable = maskgit.remember
    decode: Callable = tokenizer.decode_next


EAGER = Programs()


def compiled(device: torch.device | str = "cpu", programs: Programs = EAGER) -> Programs:
    """`Programs` compiled for one batch size; on a GPU they run as CUDA graphs."""
    cuda_graph = torch.device(device).type == "cuda"
    return Programs(*(compilation.compiled(f, cuda_graph=cuda_graph) for f in programs))


def in_float32(world: World) -> World:
    """The world, computed in float32: ONNX Runtime and NumPy know no bfloat16 on a CPU."""
    cfg = world.dynamics.cfg
    own = replace(cfg, stack=replace(cfg.stack, dtype="float32"))
    sizes = world.tokenizer.cfg
    own_sizes = replace(
        sizes,
        encoder=replace(sizes.encoder, dtype="float32"),
        decoder=replace(sizes.decoder, dtype="float32"),
        blueprints=replace(sizes.blueprints, dtype="float32"),
    )
    tokenizer_stage = world.tokenizer._replace(cfg=own_sizes)
    return world._replace(tokenizer=tokenizer_stage, dynamics=world.dynamics._replace(cfg=own))


def chunks(*clips: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with a leading axis of clips, a few clips at a time.

    On a CPU chunks are so small that intermediate results stay in its caches.
    """
    size = 64 if clips[0].is_cuda else 8
    return zip(*(x.split(size) for x in clips), strict=True)


def infer_actions(world: World, video_BTHWC: Tensor) -> Tensor:
    """The latent actions between the frames of a uint8 video, (B, T-1)."""
    if world.lam is None:
        raise UserError(
            "this world was trained on recorded actions and has no latent action model: "
            "pass the actions themselves"
        )
    model = world.lam
    return lam.infer_actions(model.params, video_BTHWC, model.cfg, backend=model.backend)


def empty_state(
    tokenizer_cfg: TokenizerConfig,
    dynamics_cfg: DynamicsConfig,
    batch: int,
    device: torch.device | str,
) -> State:
    """The state of sessions before their first frame."""
    return State(
        dynamics.empty_memory(dynamics_cfg, batch, device),
        tokenizer.empty_cache(tokenizer_cfg, batch, device),
    )


def reset(
    world: World, prompt_BTHWC: Tensor, actions_BT: Tensor | None = None, programs: Programs = EAGER
) -> tuple[State, Prompt]:
    """Start B sessions from T prompt frames (uint8) and the T-1 actions between them.

    A prompt of a single frame needs no actions. Returns the state and the encoded prompt.
    """
    cfg, params, backend = world.tokenizer
    codes, ids = tokenizer.tokenize(params, prompt_BTHWC, cfg, backend=backend)
    if actions_BT is None:
        actions_BT = ids.new_zeros((len(ids), 0))
    state, frames = start(world, codes, ids, actions_BT, programs)
    return state, Prompt(frames, ids)


def start(
    world: World,
    codes_BTNK: Tensor,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    programs: Programs = EAGER,
) -> tuple[State, Tensor]:
    """Start B sessions from a tokenized prompt. Returns the state and the decoded prompt, uint8."""
    cfg = world.dynamics.cfg
    empty = empty_state(world.tokenizer.cfg, cfg, len(ids_BTN), ids_BTN.device)
    entering_BT = dynamics.entering(actions_BT, cfg)
    return observe(world, empty, codes_BTNK, ids_BTN, entering_BT, programs)


def observe(
    world: World,
    state: State,
    codes_BTNK: Tensor,
    ids_BTN: Tensor,
    entering_BT: Tensor,
    programs: Programs = EAGER,
) -> tuple[State, Tensor]:
    """Append T frames of tokens to a session, given the action that led into each.

    Returns the state and the decoded frames, uint8.
    """
    cfg, params, backend = world.dynamics
    memory = programs.remember(params, ids_BTN, entering_BT, state.dynamics, cfg, backend)
    cfg, params, backend = world.tokenizer
    video, decoder = programs.decode(params, codes_BTNK, state.decoder, cfg, backend)
    return State(memory, decoder), layers.to_uint8(video)


def step(
    world: World,
    state: State,
    action_B: Tensor,
    key: Tensor,
    sample: SampleConfig,
    programs: Programs = EAGER,
    noise: Noise | None = None,
) -> tuple[State, Frame]:
    """The next frame of every session, given its action.

    The function is pure: the same state, action and key give the same frame. `noise` is that of
    `maskgit.draw` for the key, if it has been drawn before.
    """
    cfg, params, backend = world.dynamics
    ids, probability, revealed, memory = maskgit.next_frame(
        params,
        action_B,
        state.dynamics,
        key,
        cfg,
        sample,
        maskgit.Programs(programs.unmask, programs.remember),
        noise=noise,
        backend=backend,
    )
    cfg, params, backend = world.tokenizer
    codes = quantize.lookup(params["quantizer"], ids.unsqueeze(-2), cfg.quantizer)
    video, decoder = programs.decode(params, codes, state.decoder, cfg, backend)
    pixels = layers.to_uint8(video.squeeze(-4))
    return State(memory, decoder), Frame(pixels, ids, probability, revealed)


def play_sample(sample: SampleConfig, cfg: DynamicsConfig) -> SampleConfig:
    """The sampling settings for play: `sample`, with guidance where its guidance is None.

    Guidance of scale 1 makes recorded and latent actions controllable more often (docs/LOG.md). A model
    into which distillation has put it needs none.
    """
    if sample.guidance is not None:
        return sample
    return replace(sample, guidance=0.0 if cfg.distilled else 1.0)


def rollout(
    world: World,
    prompt_BTHWC: Tensor,
    actions_BT: Tensor,
    key: Tensor,
    sample: SampleConfig,
    programs: Programs = EAGER,
) -> Tensor:
    """The F frames that continue T prompt frames, given T-1+F actions: uint8 (B, F, H, W, 3)."""
    first = prompt_BTHWC.shape[1] - 1
    state, _ = reset(world, prompt_BTHWC, actions_BT[:, :first], programs)
    return generate(world, state, actions_BT[:, first:], key, sample, programs, first=first)


def generate(
    world: World,
    state: State,
    actions_BT: Tensor,
    key: Tensor,
    sample: SampleConfig,
    programs: Programs = EAGER,
    *,
    first: int = 0,
) -> Tensor:
    """Continue a session by one frame per action: uint8 (B, T, H, W, 3).

    The frame that action t leads to is sampled with fold_in(key, t), with t counted from `first`.
    """
    frames = []
    for t, action_B in enumerate(actions_BT.unbind(1), first):
        state, frame = step(world, state, action_B, random.fold_in(key, t), sample, programs)
        frames.append(frame.pixels)
    return torch.stack(frames, 1)
