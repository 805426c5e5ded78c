"""The latent action model: it infers which of A discrete actions led from each frame to the next.

Genie (arXiv 2402.15391), section 2.1: the encoder sees frames 1..t+1 and infers action t; the
decoder sees frames 1..t and action t and predicts frame t+1, so that the few bits of the action
have to carry what changed. There are two departures from the paper, both against collapse: the
models also see the difference to the preceding frame, in which motion is easy to detect, and errors
count more where the picture changes.

`arch="motion"`, the demo's, departs further: both sides see two frames alone, the encoder as matching
costs, and the decoder predicts by moving pixels (genie_fn/nets/flow.py).

`arch="blueprint"` builds both sides from blueprints over a grid of patches: the encoder may reduce
the grid; the decoder may start from a coarser grid and refine it, conditioned on the action's code.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize, tree
from genie_fn.errors import UserError
from genie_fn.layers import DtypeName, STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import blueprint, flow
from genie_fn.nets.blueprint import Blueprint, Blueprints
from genie_fn.nets.designs import (
    LATENT_ACT_DEC,
    LATENT_ACT_ENC,
    Description,
    conv_decoder,
    conv_encoder,
    latent_act_decoder,
    latent_act_encoder,
)
from genie_fn.nets.flow import FlowConfig
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree

SMALL_START = 0.1
"""The scale of the decoder's last layer; the first predictions hardly change the last frame."""


def _six_codes() -> QuantizerConfig:
    return QuantizerConfig(kind="vq", codes=6)


@dataclass(frozen=True)
class LamConfig:
    """`quantizer.codes` is the number of latent actions, A."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """These two are not flags; the data determine them."""
    patch: int = 16
    """Pixels per side of a patch."""
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=_six_codes)
    motion: float = 0.9
    """Share of the error's weight that is proportional to |x_{t+1} - x_t|; the rest is uniform. The
    paper's loss has 0."""
    history: bool = True
    """Whether the decoder sees all past frames, not only the last, which shows no velocities."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The networks of the architecture `motion`, the demo's, in which `patch`, `encoder`, `decoder` and
    `history` have no effect."""
    arch: Suppress[Literal["motion", "st_vivit", "blueprint"]] = "st_vivit"
    """`motion` consists of `flow`; `st_vivit` of `encoder` and `decoder`; `blueprint` of
    `blueprints`."""
    blueprints: Suppress[Blueprints] = field(default_factory=Blueprints)

    def __post_init__(self):
        layers.check_patch(self.patch)
        if self.quantizer.pairs and self.arch != "motion":
            raise UserError(
                "codes in pairs of mirror images need an encoder with that symmetry, which the demo "
                "preset has: use it, or add --cfg.model.quantizer.pairs 0"
            )
        if self.arch == "blueprint":
            self._check_blueprints()
        if self.arch == "motion":
            self._check_cells()
        else:
            advice = "choose a --cfg.model.patch that divides both sides"
            layers.check_divisible(self.height, self.width, self.patch, advice)
        if not 0 <= self.motion <= 1:
            raise UserError(f"--cfg.model.motion must be between 0 and 1, not {self.motion}")

    def _check_cells(self) -> None:
        if min(self.height, self.width) < self.flow.side:
            raise UserError(
                f"{self.height}x{self.width} frames have no cell of {self.flow.side} pixels: choose "
                "--cfg.model.flow.cell and --cfg.model.flow.reduce with a smaller product"
            )

    def _check_blueprints(self) -> None:
        encoder = self.blueprints.encoder
        decoder = self.blueprints.decoder
        width = self.quantizer.width
        if not encoder or not decoder:
            raise UserError(
                "the architecture blueprint needs the blueprints of an encoder and of a decoder: "
                "give both"
            )
        changes_time = any(
            blueprint.divides_time(net) or blueprint.multiplies_time(net)
            for net in (encoder, decoder)
        )
        if changes_time or blueprint.growth(decoder)[1].denominator != 1:
            raise UserError(
                "a latent action model keeps the frame rate in every layer, and its decoder does "
                "not shrink the grid that it starts from: change its blueprints"
            )
        if blueprint.conditions(encoder) or blueprint.conditions(decoder) != {width}:
            raise UserError(
                "the decoder's layers, and only they, need a condition of the width of an "
                f"action's code, {width}: give one of them has_ext, and that width as key_dim or "
                "dim_cond"
            )
        advice = "the decoder starts from these, so choose another --cfg.model.patch"
        layers.check_divisible(self.height, self.width, self.coarse_patch, advice)

    @property
    def coarse_patch(self) -> int:
        """Pixels per side of a patch in the grid that a blueprint's decoder starts from."""
        return self.patch * int(blueprint.growth(self.blueprints.decoder)[1])

    @property
    def actions(self) -> int:
        """The number of latent actions, A."""
        return self.quantizer.codes

    @property
    def frames_before(self) -> int:
        """How many frames before a transition's two the encoder is meant to see, at least.

        An encoder of past frames sees velocities, which the first frame of a clip does not show.
        That of `motion` sees the two frames alone.
        """
        return 0 if self.arch == "motion" else 1


def _st_vivit(patch: int, stack: STConfig) -> LamConfig:
    return LamConfig(patch=patch, encoder=stack, decoder=stack)


def _motion_preset() -> LamConfig:
    quantizer = QuantizerConfig(
        kind="vq", codes=10, latent_dim=8, sphere=True, pairs=3, reset_below=0.15
    )
    return LamConfig(arch="motion", quantizer=quantizer, motion=0.5)


def _conv_demo() -> LamConfig:
    return LamConfig(
        patch=8,
        quantizer=QuantizerConfig(kind="vq", codes=6, reset_below=0.3),
        arch="blueprint",
        blueprints=Blueprints(conv_encoder(), conv_decoder()),
        motion=0.2,
    )


def _open_genie(
    patch: int, encoder: Description, decoder: Description, dtype: DtypeName
) -> LamConfig:
    quantizer = QuantizerConfig(codes=2**8, commit=0.25, entropy=0.1)
    nets = Blueprints(encoder, decoder, dtype)
    return LamConfig(patch=patch, arch="blueprint", blueprints=nets, quantizer=quantizer)


PRESETS = {
    "demo": _motion_preset(),
    "small": _motion_preset(),
    "coinrun": _st_vivit(16, STConfig(layers=8, dim=512, heads=8, dtype="bfloat16")),
    "conv-demo": _conv_demo(),
    "open-genie-demo": _open_genie(
        4,
        latent_act_encoder(dim=64, repeats=1),
        latent_act_decoder(dim=64, repeats=1),
        "float32",
    ),
    "open-genie-coinrun": _open_genie(2, LATENT_ACT_ENC, LATENT_ACT_DEC, "bfloat16"),
}
"""The models of train_lam.py's presets, and of train_dynamics.py's if the latent action model is
trained jointly; `coinrun` is the paper's Appendix F.3."""


def context(cfg: LamConfig, frames: int) -> int:
    """How many of a clip's `frames` last frames its last action depends on."""
    return 2 if cfg.arch == "motion" else frames


def check_clips(cfg: LamConfig, frames: int) -> None:
    """Raise UserError unless the model can be trained on clips of so many frames, of its size."""
    if frames < 2:
        raise UserError(
            f"a latent action lies between two frames, so clips need at least 2, not {frames}: "
            "raise --cfg.num-frames"
        )
    if cfg.arch == "blueprint":
        nets = cfg.blueprints
        for net, patch, what in (
            (nets.encoder, cfg.patch, "the encoder"),
            (nets.decoder, cfg.coarse_patch, "the decoder"),
        ):
            blueprint.check_grid(net, cfg.height // patch, cfg.width // patch, patch, what)


# Parameters


def spec(cfg: LamConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    return SPECS[cfg.arch](cfg)


def label_spec(cfg: LamConfig, recorded: int) -> Tree:
    """The parameters that `label_loss` adds: a linear classifier of latents by recorded action.

    Only training uses it.
    """
    return layers.linear_spec(cfg.quantizer.width, recorded, bias=True)


def _st_vivit_spec(cfg: LamConfig) -> Tree:
    pixels = 3 * cfg.patch**2
    latent = cfg.quantizer.width
    tokens = (cfg.height // cfg.patch) * (cfg.width // cfg.patch)
    return {
        "encoder": layers.grid_spec(cfg.encoder, 2 * pixels, latent, tokens),
        "quantizer": quantize.spec(cfg.quantizer),
        "action": layers.linear_spec(latent, cfg.decoder.dim),
        "decoder": layers.grid_spec(cfg.decoder, 2 * pixels, pixels, tokens, scale=SMALL_START),
    }


def _blueprint_spec(cfg: LamConfig) -> Tree:
    nets = cfg.blueprints
    pixels = 3 * cfg.patch**2
    coarse_pixels = 3 * cfg.coarse_patch**2
    return {
        "encoder": _net_spec(nets.encoder, 2 * pixels, cfg.quantizer.width),
        "quantizer": quantize.spec(cfg.quantizer),
        "decoder": _net_spec(nets.decoder, 2 * coarse_pixels, pixels, scale=SMALL_START),
    }


def _motion_spec(cfg: LamConfig) -> Tree:
    networks = flow.spec(cfg.flow, cfg.quantizer.width)
    return networks | {"quantizer": quantize.spec(cfg.quantizer)}


SPECS = {"motion": _motion_spec, "st_vivit": _st_vivit_spec, "blueprint": _blueprint_spec}
"""The parameters of each architecture."""


def encoder(params: Tree) -> Tree:
    """The part of the parameters, or of their spec, that infers actions, without the decoder."""
    return {"encoder": params["encoder"], "quantizer": params["quantizer"]}


# Blueprints over a grid of patches


def _net_spec(net: Blueprint, inputs: int, outputs: int, *, scale: float = 1.0) -> Tree:
    """A blueprint with a linear layer at each end."""
    first, last = blueprint.channels(net)
    return {
        "embed": layers.linear_spec(inputs, first, bias=True),
        "net": blueprint.spec(net),
        "head": layers.linear_spec(last, outputs, bias=True, scale=scale),
    }


def _run_net(
    params: Tree,
    x_BTNI: Tensor,
    net: Blueprint,
    *,
    width: int,
    dtype: DtypeName,
    condition: Tensor | None = None,
    backend: Backend,
) -> Tensor:
    """A network of `_net_spec` on a grid with rows of `width`: (B, T, N', outputs), float32."""
    x = layers.linear(params["embed"], x_BTNI).to(layers.DTYPES[dtype])
    batch, frames, _, channels = x.shape
    x_BTHWC = x.reshape(batch, frames, -1, width, channels)
    y, _ = blueprint.apply(params["net"], x_BTHWC, net, condition=condition, backend=backend)
    return layers.linear(params["head"], y).float().flatten(2, 3)


# Encoder and decoder


def _patches(video_BTHWC: Tensor, patch: int) -> Tensor:
    """Patches of every frame and of its difference to the preceding one (zero for the first)."""
    difference = torch.diff(video_BTHWC, dim=1, prepend=video_BTHWC[:, :1])
    return layers.patchify(torch.cat((video_BTHWC, difference), dim=-1), patch)


def encode(params: Tree, video_BTHWC: Tensor, cfg: LamConfig, *, backend: Backend = AUTO) -> Tensor:
    """Video in [-1, 1] → a latent for each transition, (B, T-1, K), before quantisation.

    It is the mean over the grid of the transition's second frame; that of `motion` depends on the
    transition's two frames alone.
    """
    if cfg.arch == "motion":
        pairs = flow.transitions(flow.reduced(video_BTHWC, cfg.flow), cfg.flow)
        return _encode_motion(params, pairs, cfg, clips=len(video_BTHWC))
    patches_BTNP = _patches(video_BTHWC, cfg.patch)
    if cfg.arch == "blueprint":
        z_BTNK = _run_net(
            params["encoder"],
            patches_BTNP,
            cfg.blueprints.encoder,
            width=cfg.width // cfg.patch,
            dtype=cfg.blueprints.dtype,
            backend=backend,
        )
    else:
        z_BTNK, _ = layers.grid_transformer(
            params["encoder"], patches_BTNP, cfg.encoder, backend=backend
        )
    return z_BTNK[:, 1:].mean(2)


def _encode_motion(params: Tree, pairs: flow.Transitions, cfg: LamConfig, *, clips: int) -> Tensor:
    """`encode` of the transitions of so many clips."""
    z_MK = flow.encode(params["encoder"], pairs, paired=cfg.quantizer.pairs > 0)
    return z_MK.reshape(clips, -1, z_MK.shape[-1])


def infer_actions(
    params: Tree, video_BTHWC: Tensor, cfg: LamConfig, *, backend: Backend = AUTO
) -> Tensor:
    """uint8 video of T >= 2 frames → latent actions (B, T-1); action t depends on frames <= t+1."""
    video = layers.to_float(video_BTHWC)
    z_BTK = encode(params, video, cfg, backend=backend)
    return quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, backend=backend).ids


def lookup(params: Tree, actions: Tensor, cfg: LamConfig) -> Tensor:
    """The codes (..., K) of actions (...), as `decode` takes them."""
    return quantize.lookup(params["quantizer"], actions, cfg.quantizer)


def decode(
    params: Tree,
    video_BTHWC: Tensor,
    codes_BTK: Tensor,
    cfg: LamConfig,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """The predicted frame after each frame of a video in [-1, 1], (B, T, H, W, 3).

    `codes_BTK[t]` is the code of the action that follows frame t.
    """
    if cfg.arch == "motion":
        frames = video_BTHWC.flatten(0, 1)
        predicted = flow.predict(params["decoder"], frames, codes_BTK.flatten(0, 1), cfg.flow)
        return predicted.reshape(video_BTHWC.shape)
    if not cfg.history and video_BTHWC.shape[1] > 1:
        frames_MTHWC = video_BTHWC.flatten(0, 1)[:, None]  # every frame as a video of its own
        codes_MTK = codes_BTK.flatten(0, 1)[:, None]
        predicted = decode(params, frames_MTHWC, codes_MTK, cfg, backend=backend)
        return predicted.reshape(video_BTHWC.shape)
    if cfg.arch == "blueprint":
        change_BTNP = _run_net(
            params["decoder"],
            _patches(video_BTHWC, cfg.coarse_patch),
            cfg.blueprints.decoder,
            width=cfg.width // cfg.coarse_patch,
            dtype=cfg.blueprints.dtype,
            condition=codes_BTK,
            backend=backend,
        )
    else:
        action_BT1D = layers.linear(params["action"], codes_BTK)[:, :, None]
        change_BTNP, _ = layers.grid_transformer(
            params["decoder"],
            _patches(video_BTHWC, cfg.patch),
            cfg.decoder,
            condition=action_BT1D,
            backend=backend,
        )
    return video_BTHWC + layers.unpatchify(change_BTNP, cfg.patch, cfg.height)


# Training


def _motion(video_BTHWC: Tensor) -> Tensor:
    """|x_{t+1} - x_t| per pixel of a video in [-1, 1], the mean over colours: (B, T-1, H, W, 1)."""
    return (video_BTHWC[:, 1:] - video_BTHWC[:, :-1]).abs().mean(-1, keepdim=True)


def _seen(video_BTHWC: Tensor, cfg: LamConfig) -> Tensor:
    """A video in [-1, 1] at the resolution at which predictions are compared with it."""
    return flow.reduced(video_BTHWC, cfg.flow) if cfg.arch == "motion" else video_BTHWC


class _Autoencoded(NamedTuple):
    """A video as `_seen`, the prediction of its frames but the first, the quantised latents."""

    seen_BTHWC: Tensor
    predicted_BTHWC: Tensor
    quantized: Quantized


def _autoencode(
    params: Tree, video_BTHWC: Tensor, cfg: LamConfig, microbatch: Microbatch, backend: Backend
) -> _Autoencoded:
    if cfg.arch == "motion":
        return _autoencode_motion(params, video_BTHWC, cfg, microbatch, backend)
    z_BTK = encode(params, video_BTHWC, cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, microbatch, backend=backend)
    predicted = decode(params, video_BTHWC[:, :-1], q.codes, cfg, backend=backend)
    return _Autoencoded(video_BTHWC, predicted, q)


def _autoencode_motion(
    params: Tree, video_BTHWC: Tensor, cfg: LamConfig, microbatch: Microbatch, backend: Backend
) -> _Autoencoded:
    """Both sides share the displaced frames, which take most of the memory."""
    seen = _seen(video_BTHWC, cfg)
    clips = len(seen)
    pairs = flow.transitions(seen, cfg.flow)
    z_BTK = _encode_motion(params, pairs, cfg, clips=clips)
    q = quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, microbatch, backend=backend)
    codes_MK = q.codes.flatten(0, 1)
    predicted = flow.reconstruct(params["decoder"], pairs, codes_MK, cfg.flow)
    return _Autoencoded(seen, predicted.reshape(seen[:, 1:].shape), q)


def statistics(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: LamConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> dict[str, Tensor]:
    """The statistics of uint8 video, by name, whose averages over the whole batch `loss` uses."""
    video = layers.to_float(video_BTHWC)
    values = {"motion": _motion(_seen(video, cfg)).mean()}
    if quantize.has_statistics(cfg.quantizer):
        z_BTK = encode(params, video, cfg, backend=backend)
        q = quantize.quantize(
            params["quantizer"], z_BTK, cfg.quantizer, microbatch, backend=backend
        )
        values |= quantize.statistics(q, cfg.quantizer, microbatch, backend=backend)
    return values


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics from average scores of `loss`: with PSNR and use of actions."""
    return quantize.summarise(scores) | {"psnr": metrics.psnr(scores["mse"])}


def loss(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: LamConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict[str, Tensor], Quantized]]:
    """Motion-weighted squared error of predicted frames plus the quantiser's loss, on uint8 video.

    Returns the scalar loss and (metrics, quantised latents); the ids among the latter are the
    actions. The metric `mse` is unweighted.
    """
    video = layers.to_float(video_BTHWC)
    seen, predicted, q = _autoencode(params, video, cfg, microbatch, backend)
    error = (predicted - seen[:, 1:]).square()
    motion = _motion(seen)
    mean_motion = microbatch.mean("motion", motion.mean()).clamp(min=1e-6)
    weight = (1 - cfg.motion) + cfg.motion * motion / mean_motion
    weighted_mse = (weight * error).mean()
    scores = {"mse": error.mean(), "weighted_mse": weighted_mse} | q.metrics
    return weighted_mse + q.loss, (scores, q)


def label_loss(
    params: Tree,
    video_BTHWC: Tensor,
    recorded_B: Tensor,
    cfg: LamConfig,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the recorded actions of the last transitions of uint8 video, and metrics.

    It is the mean of two. The linear classifier `params["labels"]` learns from the latents before
    quantisation, in which actions can differ although their codes are the same. Its predictions from
    the codes, by which it is not changed, move a latent until its code is one of its action.
    """
    z_BTK = encode(params, layers.to_float(video_BTHWC), cfg, backend=backend)[:, -1:]
    q = quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, backend=backend)
    latent_BK = quantize.unquantized(params["quantizer"], z_BTK, cfg.quantizer)[:, 0]
    by_latent_BA = layers.linear(params["labels"], latent_BK)
    fixed = tree.map(torch.Tensor.detach, params["labels"])
    by_code_BA = layers.linear(fixed, q.codes[:, 0])
    value = (
        F.cross_entropy(by_latent_BA, recorded_B) + F.cross_entropy(by_code_BA, recorded_B)
    ) / 2
    accuracy = (by_code_BA.argmax(-1) == recorded_B).float().mean()
    return value, {"label_loss": value, "label_accuracy": accuracy}
