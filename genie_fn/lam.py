"""The latent action model: which of A discrete actions led from each frame to the next, learned without labels.

Genie (arXiv 2402.15391), section 2.1: the encoder sees frames 1..t+1 and names action t; the decoder sees frames
1..t and action t, and predicts frame t+1, so that the few bits of the action must carry what changed. Two departures,
both against collapse: the models also read the difference to the frame before, in which motion is easy to see, and
errors count more where the picture truly changes.

With `facing` an action also tells which way the agent looks (genie_fn/nets/facing.py): codes for what the scene
does, times two. The keys that are pressed show there, where the scene shows mostly the speed that they led to.

`arch="blueprint"` builds both sides from blueprints over a grid of patches instead: the encoder may reduce the grid;
the decoder may start from a coarser one and refine it, its layers conditioned on the action's code.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import blueprint, facing
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.facing import FacingConfig
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree


def latent_act_encoder(
    dim: int = 256, heads: int = 4, head_dim: int = 16, repeats: int = 2
) -> tuple:
    """The blueprint of Open-Genie's encoder: space-time attention, before and after halving the grid."""
    block = (
        "space-time_attn",
        {"n_rep": repeats, "n_embd": dim, "n_head": heads, "d_head": head_dim},
    )
    return (
        block,
        ("spacetime_downsample", {"in_channels": dim, "time_factor": 1, "space_factor": 2}),
        block,
    )


def latent_act_decoder(
    dim: int = 256, heads: int = 4, head_dim: int = 16, repeats: int = 2, condition: int = 8
) -> tuple:
    """Its mirror image: attention conditioned on the action's code, before and after doubling the grid."""
    external = {"has_ext": True, "time_attn_kw": {"key_dim": condition}}
    sizes = {"n_rep": repeats, "n_embd": dim, "n_head": heads, "d_head": head_dim}
    block = ("space-time_attn", sizes | external)
    return (
        block,
        ("spacetime_upsample", {"in_channels": dim, "time_factor": 1, "space_factor": 2}),
        block,
    )


def conv_encoder(dim: int = 64) -> tuple:
    """A small convolutional encoder, which sees motion sooner than attention does: frame pairs, reduced by four."""
    halve = ("image-residual", {"in_channels": dim, "downsample": (1, 2)})
    return (
        halve,
        ("video-residual", {"in_channels": dim}),
        halve,
        ("group_norm", {"num_channels": dim}),
        "silu",
    )


def conv_decoder(dim: int = 64, condition: int = 32, blocks: int = 3) -> tuple:
    """Its decoder: each frame and its difference to the last, modulated by the action's code before every block."""
    modulate = ("adaptive_group_norm", {"num_channels": dim, "dim_cond": condition})
    block = (modulate, ("image-residual", {"in_channels": dim}))
    return (*block * blocks, ("group_norm", {"num_channels": dim}), "silu")


LATENT_ACT_ENC, LATENT_ACT_DEC = latent_act_encoder(), latent_act_decoder()


@dataclass(frozen=True)
class LamConfig:
    """`quantizer.codes` is the number of latent actions, A; with `facing` A is twice as many."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """The data's; not flags."""
    patch: int = 16
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(kind="vq", codes=6))
    motion: float = 0.9
    """Share of the error's weight that follows |x_{t+1} - x_t|; the rest is uniform (0 is the paper's loss)."""
    history: bool = True
    """Whether the decoder sees more than the last frame, from which alone it has to guess how things were moving."""
    facing: FacingConfig = field(default_factory=FacingConfig)
    """For games whose view follows an agent that looks left and right; its `side` turns it on."""
    arch: Suppress[str] = "st_vivit"
    """`st_vivit`, of `encoder` and `decoder`, or `blueprint`, of `blueprints`."""
    blueprints: Suppress[Blueprints] = field(default_factory=Blueprints)

    def __post_init__(self):
        if self.arch == "blueprint":
            self._check_blueprints()
        elif self.arch != "st_vivit":
            raise UserError(
                f"a latent action model's architecture is st_vivit or blueprint, not {self.arch!r}"
            )
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                f"{self.height}x{self.width} frames cannot be cut into {self.patch}x{self.patch} patches: "
                "choose a --cfg.model.patch that divides both sides"
            )
        if not 0 <= self.motion <= 1:
            raise UserError(f"--cfg.model.motion is a share between 0 and 1, not {self.motion}")

        if self.facing.side > min(self.height, self.width):
            raise UserError(
                f"--cfg.model.facing.side {self.facing.side} is more than the {self.height}x{self.width} frames have"
            )

    def _check_blueprints(self) -> None:
        both, width = (self.blueprints.encoder, self.blueprints.decoder), self.quantizer.width
        if not all(both):
            raise UserError(
                "the architecture blueprint needs the blueprints of an encoder and of a decoder: give both"
            )
        changes_time = any(
            blueprint.divides_time(net) or blueprint.multiplies_time(net) for net in both
        )
        if changes_time or blueprint.growth(both[1])[1].denominator != 1:
            raise UserError(
                "a latent action model keeps the frame rate in every layer, and its decoder does not shrink the grid "
                "that it starts from: change its blueprints"
            )
        if blueprint.conditions(both[0]) or blueprint.conditions(both[1]) != {width}:
            raise UserError(
                f"the decoder's layers, and only they, need a condition of the width of an action's code, {width}: "
                "give one of them has_ext, and that width as key_dim or dim_cond"
            )
        side = self.coarse_patch
        if self.height % side or self.width % side:
            raise UserError(
                f"{self.height}x{self.width} frames cannot be cut into {side}x{side} patches, those that the "
                "decoder starts from: choose another --cfg.model.patch"
            )

    @property
    def coarse_patch(self) -> int:
        """Pixels per side of a place that a blueprint's decoder starts from."""
        return self.patch * int(blueprint.growth(self.blueprints.decoder)[1])

    @property
    def actions(self) -> int:
        """The number of latent actions, A."""
        return self.quantizer.codes * (2 if self.facing.side else 1)


def _st_vivit(patch: int, stack: STConfig) -> LamConfig:
    return LamConfig(patch=patch, encoder=stack, decoder=stack)


def _demo() -> LamConfig:
    return LamConfig(
        patch=8,
        quantizer=QuantizerConfig(kind="vq", codes=3, reset_below=0.3),
        facing=FacingConfig(side=12),
        arch="blueprint",
        blueprints=Blueprints(conv_encoder(), conv_decoder()),
        motion=0.2,
    )


def _open_genie(patch: int, encoder: tuple, decoder: tuple, dtype: str) -> LamConfig:
    quantizer = QuantizerConfig(codes=2**8, commit=0.25, entropy=0.1)
    nets = Blueprints(encoder, decoder, dtype)
    return LamConfig(patch=patch, arch="blueprint", blueprints=nets, quantizer=quantizer)


PRESETS = {
    "demo": _demo(),
    "small": _st_vivit(8, STConfig(layers=4, dim=384, heads=6, dtype="bfloat16")),
    "coinrun": _st_vivit(16, STConfig(layers=8, dim=512, heads=8, dtype="bfloat16")),
    "open-genie-demo": _open_genie(
        4,
        latent_act_encoder(dim=64, repeats=1),
        latent_act_decoder(dim=64, repeats=1),
        "float32",
    ),
    "open-genie-coinrun": _open_genie(2, LATENT_ACT_ENC, LATENT_ACT_DEC, "bfloat16"),
}
"""The models of train_lam.py's presets, and of train_dynamics.py's where the latent action model is trained jointly;
`coinrun` is the paper's Appendix F.3."""


def spec(cfg: LamConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    return _scene_spec(cfg) | ({"facing": facing.spec(cfg.facing)} if cfg.facing.side else {})


def encoder(params: Tree) -> Tree:
    """Of the parameters, or of their spec, those that infer actions, without those that predict frames from them."""
    turned = (
        {name: params["facing"][name] for name in ("look", "latent", "code")}
        if "facing" in params
        else None
    )
    return {name: params[name] for name in ("encoder", "quantizer")} | (
        {"facing": turned} if turned else {}
    )


def _scene_spec(cfg: LamConfig) -> Tree:
    pixels, latent, tokens = (
        3 * cfg.patch**2,
        cfg.quantizer.width,
        (cfg.height // cfg.patch) * (cfg.width // cfg.patch),
    )
    if cfg.arch == "blueprint":
        encoder = _net_spec(cfg.blueprints.encoder, 2 * pixels, latent)
        decoder = _net_spec(cfg.blueprints.decoder, 6 * cfg.coarse_patch**2, pixels, scale=0.1)
        return {"encoder": encoder, "quantizer": quantize.spec(cfg.quantizer), "decoder": decoder}
    return {
        "encoder": layers.grid_spec(cfg.encoder, 2 * pixels, latent, tokens),
        "quantizer": quantize.spec(cfg.quantizer),
        "action": layers.linear_spec(latent, cfg.decoder.dim),
        # A small last layer: the prediction, a change to the last frame, begins near no change.
        "decoder": layers.grid_spec(cfg.decoder, 2 * pixels, pixels, tokens, scale=0.1),
    }


def _net_spec(net: tuple, inputs: int, outputs: int, *, scale: float = 1.0) -> Tree:
    first, last = blueprint.channels(net)
    head = layers.linear_spec(last, outputs, bias=True, scale=scale)
    return {
        "embed": layers.linear_spec(inputs, first, bias=True),
        "net": blueprint.spec(net),
        "head": head,
    }


def _run_net(
    params: Tree,
    x_BTNI: Tensor,
    net: tuple,
    *,
    width: int,
    dtype: str,
    condition: Tensor | None = None,
    backend: Backend,
) -> Tensor:
    """Patches in rows of `width` through a blueprint with a linear layer at each end: (B, T, N', outputs), float32."""
    x = layers.linear(params["embed"], x_BTNI).to(layers.DTYPES[dtype]).unflatten(2, (-1, width))
    y, _ = blueprint.apply(params["net"], x, net, condition=condition, backend=backend)
    return layers.linear(params["head"], y).float().flatten(2, 3)


def _patches(video_BTHWC: Tensor, patch: int) -> Tensor:
    """Patches of every frame and of its difference to the frame before (zero for the first)."""
    difference = torch.diff(video_BTHWC, dim=1, prepend=video_BTHWC[:, :1])
    return layers.patchify(torch.cat((video_BTHWC, difference), dim=-1), patch)


def encode(params: Tree, video_BTHWC: Tensor, cfg: LamConfig, *, backend: Backend = AUTO) -> Tensor:
    """Video in [-1, 1] → one latent per transition, (B, T-1, K), before quantisation: the mean over the grid."""
    patches, nets = _patches(video_BTHWC, cfg.patch), cfg.blueprints
    if cfg.arch == "blueprint":
        z_BTNK = _run_net(
            params["encoder"],
            patches,
            nets.encoder,
            width=cfg.width // cfg.patch,
            dtype=nets.dtype,
            backend=backend,
        )
    else:
        z_BTNK, _ = layers.grid_transformer(
            params["encoder"], patches, cfg.encoder, backend=backend
        )
    return z_BTNK[:, 1:].mean(2)


def infer_actions(
    params: Tree, video_BTHWC: Tensor, cfg: LamConfig, *, backend: Backend = AUTO
) -> Tensor:
    """uint8 video of T >= 2 frames → latent actions (B, T-1); action t depends on frames <= t+1 alone.

    The scene's code, or with `facing` twice that plus the bit.
    """
    video = layers.to_float(video_BTHWC)
    z_BTK = encode(params, video, cfg, backend=backend)
    ids = quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, backend=backend).ids
    return 2 * ids + facing.infer(params["facing"], video, cfg.facing) if cfg.facing.side else ids


def lookup(params: Tree, actions: Tensor, cfg: LamConfig) -> Tensor:
    """The scene's codes (..., K) of actions (...), as `decode` takes them."""
    return quantize.lookup(
        params["quantizer"], actions // 2 if cfg.facing.side else actions, cfg.quantizer
    )


def decode(
    params: Tree,
    video_BTHWC: Tensor,
    codes_BTK: Tensor,
    cfg: LamConfig,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """Predict the frame after each frame of a video in [-1, 1], given the action's code there: (B, T, H, W, 3)."""
    if not cfg.history and video_BTHWC.shape[1] > 1:  # every frame becomes a video of its own
        alone = (x.flatten(0, 1)[:, None] for x in (video_BTHWC, codes_BTK))
        return decode(params, *alone, cfg, backend=backend).reshape(video_BTHWC.shape)
    if cfg.arch == "blueprint":
        side, nets = cfg.coarse_patch, cfg.blueprints
        change = _run_net(
            params["decoder"],
            _patches(video_BTHWC, side),
            nets.decoder,
            width=cfg.width // side,
            dtype=nets.dtype,
            condition=codes_BTK,
            backend=backend,
        )
    else:
        action = layers.linear(params["action"], codes_BTK)[:, :, None]
        patches = _patches(video_BTHWC, cfg.patch)
        change, _ = layers.grid_transformer(
            params["decoder"], patches, cfg.decoder, condition=action, backend=backend
        )
    return video_BTHWC + layers.unpatchify(change, cfg.patch, cfg.height)


def _motion(video_BTHWC: Tensor) -> Tensor:
    """|x_{t+1} - x_t| per pixel of video in [-1, 1], (B, T-1, H, W, 1): the mean over the colours."""
    return (video_BTHWC[:, 1:] - video_BTHWC[:, :-1]).abs().mean(-1, keepdim=True)


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
    values = {"motion": _motion(video).mean()}
    if quantize.has_statistics(cfg.quantizer):
        z_BTK = encode(params, video, cfg, backend=backend)
        q = quantize.quantize(
            params["quantizer"], z_BTK, cfg.quantizer, microbatch, backend=backend
        )
        values |= quantize.statistics(q, cfg.quantizer, microbatch, backend=backend)
    if cfg.facing.side:
        values |= facing.statistics(video, cfg.facing, microbatch)
    return values


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics, from the scores of `loss` averaged over a batch: with PSNR and use of the actions."""
    return quantize.summarise(scores) | {"psnr": metrics.psnr(scores["mse"])}


def loss(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: LamConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict, Quantized]]:
    """Motion-weighted squared error of the predicted next frames plus the quantiser's loss, on uint8 video; with
    `facing` its loss too.

    Returns the scalar loss and (metrics, quantised latents), whose ids are the actions, while the rest of them is the
    scene's; `mse` is unweighted.
    """
    video = layers.to_float(video_BTHWC)
    past, target = video[:, :-1], video[:, 1:]
    z_BTK = encode(params, video, cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTK, cfg.quantizer, microbatch, backend=backend)
    error = (decode(params, past, q.codes, cfg, backend=backend) - target).square()
    moved = _motion(video)
    weight = (1 - cfg.motion) + cfg.motion * moved / microbatch.mean("motion", moved.mean()).clamp(
        min=1e-6
    )
    weighted, mse = (weight * error).mean(), error.mean()
    scores = {"mse": mse, "weighted_mse": weighted}
    if not cfg.facing.side:
        return weighted + q.loss, (scores | q.metrics, q)
    turned, (more, bits) = facing.loss(params["facing"], video, cfg.facing, microbatch)
    actions = 2 * q.ids + bits
    used = {"use": quantize.code_use(actions, cfg.actions)}
    return weighted + q.loss + turned, (scores | q.metrics | more | used, q._replace(ids=actions))
