"""Latent actions from motion: an encoder that sees matching costs, a decoder that moves pixels.

A network that paints the next frame has to discover motion before it can name it, and an action
that it names describes what was hard to paint. Here motion is built in on both sides, as in optical
flow (PWC-Net, arXiv 1709.02371) and in video prediction by moved pixels (CDNA, arXiv 1605.07157):

- The encoder receives, for every cell of a grid and every displacement up to `radius`, how badly
  the first frame so displaced matches the second one. It sees no colours.
- The decoder chooses for every cell, from the first frame and the action's code, a distribution
  over the same displacements; its prediction is the mixture of the displaced frames. A correction,
  painted per cell, explains what no displacement does: things that appear or change their colour.

Both work on frames whose sides are reduced by `reduce`. Letters of names: M transitions, P cells,
Q pixels of a cell times colours, S displacements.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers
from genie_fn.errors import UserError
from genie_fn.tree import ParamSpec, Tree

SMALL_START = 0.1
"""The scale of the decoder's last layers, whose first predictions are nearly the same everywhere."""
COST_SCALE = 4.0
"""Centred matching costs of frames in [-1, 1] times this are of the order of 1."""


@dataclass(frozen=True)
class FlowConfig:
    """A grid of cells, each with a distribution over displacements."""

    reduce: int = 2
    """The factor by which the frames' sides are reduced before anything else."""
    radius: int = 6
    """The largest displacement along each axis, in pixels of the reduced frame."""
    cell: int = 4
    """Pixels of the reduced frame per side of a cell."""
    hidden: int = 64
    """Channels of both networks."""
    pool: Literal["mean", "attention"] = "mean"
    """How the encoder summarises the cells: by their mean, or weighted by learned scores, so that a
    small thing that moves before a still camera can decide."""
    paint: bool = True
    """Whether the decoder also paints a correction of the displaced frames."""

    def __post_init__(self):
        if min(self.reduce, self.radius, self.cell, self.hidden) < 1:
            raise UserError(
                "--cfg.model.flow.reduce, .radius, .cell and .hidden must be at least 1"
            )

    @property
    def side(self) -> int:
        """Pixels of a frame per side of a cell."""
        return self.reduce * self.cell

    @property
    def displacements(self) -> int:
        """The number of displacements, S."""
        return (2 * self.radius + 1) ** 2

    @property
    def values(self) -> int:
        """Pixels of a cell times colours, Q."""
        return 3 * self.cell**2


def spec(cfg: FlowConfig, latent: int) -> Tree:
    """The parameters of both networks for latents of `latent` channels."""
    hidden = cfg.hidden
    encoder = {
        "costs": layers.linear_spec(cfg.displacements, hidden, bias=True),
        "around": _conv_spec(hidden, hidden, 3),
        "latent": layers.linear_spec(hidden, latent, bias=True),
    }
    if cfg.pool == "attention":
        encoder["score"] = layers.linear_spec(hidden, 1, bias=True)
    decoder = {
        "look": layers.linear_spec(cfg.values, hidden // 2, bias=True),
        "around": _conv_spec(hidden // 2, hidden, 3),
        "modulate": layers.linear_spec(latent, 2 * hidden, bias=True),
        "move": layers.linear_spec(hidden, cfg.displacements, bias=True, scale=SMALL_START),
        "camera": layers.linear_spec(latent, cfg.displacements),
    }
    if cfg.paint:
        decoder["paint"] = layers.linear_spec(hidden, cfg.values, bias=True, scale=SMALL_START)
    return {"encoder": encoder, "decoder": decoder}


def _conv_spec(inputs: int, outputs: int, kernel: int) -> Tree:
    return {
        "w": ParamSpec((outputs, inputs, kernel, kernel), std=(inputs * kernel**2) ** -0.5),
        "b": ParamSpec((outputs,), "zeros", decay=False),
    }


def _conv(params: Tree, x_MHWC: Tensor) -> Tensor:
    """A convolution with zero padding that keeps the size of the grid."""
    pad = params["w"].shape[-1] // 2
    y = F.conv2d(x_MHWC.permute(0, 3, 1, 2), params["w"], params["b"], padding=pad)
    return y.permute(0, 2, 3, 1)


# Frames


class Shape(NamedTuple):
    """The grid of cells."""

    rows: int
    columns: int


def inside(frames: Tensor, side: int) -> Tensor:
    """The largest part of frames (..., H, W, 3) in their middle that consists of whole cells of `side`
    pixels, as a view."""
    height, width = (length // side * side for length in frames.shape[-3:-1])
    top, left = ((frames.shape[-3] - height) // 2, (frames.shape[-2] - width) // 2)
    return frames[..., top : top + height, left : left + width, :]


def reduced(frames: Tensor, cfg: FlowConfig) -> Tensor:
    """The cells of frames (..., H, W, 3) with both sides divided by `reduce`, by the mean of the
    pixels. Of frames whose sides are no multiples of a cell's, a border is left out, which is equal on
    both sides if that is possible."""
    factor = cfg.reduce
    frames = inside(frames, cfg.side)
    return reduce(frames, "... (h p) (w q) c -> ... h w c", "mean", p=factor, q=factor)


def cells(frames_MHWC: Tensor, side: int) -> Tensor:
    """Frames as a grid of cells of `side` pixels in row-major order, (M, P, Q)."""
    return layers.patchify(frames_MHWC[:, None], side)[:, 0]


def candidates(frames_MHWC: Tensor, radius: int, *, side: int, step: int = 1) -> Tensor:
    """Every cell of `side` pixels under every displacement of up to `radius` steps, (M, P, S, Q).

    Displacement (dy, dx), in steps of `step` pixels, shows at (y, x) what was at (y + dy, x + dx).
    Beyond its border a frame repeats its outermost pixels.
    """
    batch, height, width, colours = frames_MHWC.shape
    padded = F.pad(frames_MHWC.permute(0, 3, 1, 2), (radius * step,) * 4, mode="replicate")
    shifted_MCyxHW = padded.unfold(2, height, step).unfold(3, width, step)
    split = shifted_MCyxHW.unflatten(5, (-1, side)).unflatten(4, (-1, side))
    return rearrange(split, "m c y x r p k q -> m (r k) (y x) (p q c)")


class Transitions(NamedTuple):
    """The M transitions between successive frames."""

    candidates_MPSQ: Tensor
    """The first frames under every displacement."""
    before_MPQ: Tensor
    after_MPQ: Tensor
    shape: Shape


def transitions(small_BTHWC: Tensor, cfg: FlowConfig) -> Transitions:
    """The B·(T-1) transitions of a reduced video."""
    before = small_BTHWC[:, :-1].flatten(0, 1)
    after = small_BTHWC[:, 1:].flatten(0, 1)
    shape = Shape(before.shape[1] // cfg.cell, before.shape[2] // cfg.cell)
    moved = candidates(before, cfg.radius, side=cfg.cell)
    return Transitions(moved, cells(before, cfg.cell), cells(after, cfg.cell), shape)


# Encoder and decoder


def costs(pairs: Transitions) -> Tensor:
    """How badly each displacement of a cell fits: mean absolute differences, (M, P, S).

    `cdist` holds no differences in memory: they would take as much as all candidates.
    """
    after_MP1Q = pairs.after_MPQ[:, :, None]
    distance_MP1S = torch.cdist(after_MP1Q, pairs.candidates_MPSQ, p=1.0)
    return distance_MP1S[:, :, 0] / after_MP1Q.shape[-1]


def encode(params: Tree, pairs: Transitions, *, paired: bool = False) -> Tensor:
    """The latents (M, K) of transitions, before quantisation.

    With `paired`, the first half of the channels does not change if both frames are flipped
    horizontally, and the second half changes its sign.
    """
    cost_MPS = costs(pairs)
    centred = COST_SCALE * (cost_MPS - cost_MPS.mean(-1, keepdim=True))
    if not paired:
        return _summarise(params, centred, pairs.shape)
    z = _summarise(params, centred, pairs.shape)
    flipped = _summarise(params, flip(centred, pairs.shape), pairs.shape)
    even = (z + flipped).chunk(2, -1)[0] / 2
    odd = (z - flipped).chunk(2, -1)[1] / 2
    return torch.cat((even, odd), -1)


def flip(costs_MPS: Tensor, shape: Shape) -> Tensor:
    """The matching costs of the horizontally flipped frames."""
    window = round(costs_MPS.shape[-1] ** 0.5)
    grid = costs_MPS.unflatten(2, (window, window)).unflatten(1, shape)
    return grid.flip((2, 4)).flatten(3, 4).flatten(1, 2)


def _summarise(params: Tree, costs_MPS: Tensor, shape: Shape) -> Tensor:
    """The encoder's network: (M, K)."""
    hidden = F.silu(layers.linear(params["costs"], costs_MPS))
    grid_MHWD = F.silu(_conv(params["around"], hidden.unflatten(1, shape)))
    hidden = grid_MHWD.flatten(1, 2)
    if "score" not in params:
        return layers.linear(params["latent"], hidden.mean(1))
    weight_MP1 = layers.linear(params["score"], hidden).softmax(1)
    return layers.linear(params["latent"], (weight_MP1 * hidden).sum(1))


class Prediction(NamedTuple):
    """What the decoder says of the next frame."""

    weight_MPS: Tensor
    """Of the displacements of every cell; the sum is 1."""
    paint_MPQ: Tensor | None
    """A correction of the values of every cell; None without `paint`."""


def decode(params: Tree, before_MPQ: Tensor, codes_MK: Tensor, shape: Shape) -> Prediction:
    """What follows the cells of (reduced) frames and the codes of actions."""
    look = F.silu(layers.linear(params["look"], before_MPQ))
    scale, shift = layers.linear(params["modulate"], codes_MK)[:, None].chunk(2, -1)
    around = _conv(params["around"], look.unflatten(1, shape)).flatten(1, 2)
    hidden = F.silu(around * (1 + scale) + shift)
    camera = layers.linear(params["camera"], codes_MK)[:, None]
    weight = (layers.linear(params["move"], hidden) + camera).softmax(-1)
    paint = layers.linear(params["paint"], hidden) if "paint" in params else None
    return Prediction(weight, paint)


def _displaced(candidates_MPSQ: Tensor, weight_MPS: Tensor) -> Tensor:
    return (weight_MPS[:, :, None] @ candidates_MPSQ)[:, :, 0]


def reconstruct(params: Tree, pairs: Transitions, codes_MK: Tensor, cfg: FlowConfig) -> Tensor:
    """The predicted second frames of transitions, reduced, (M, h, w, 3)."""
    prediction = decode(params, pairs.before_MPQ, codes_MK, pairs.shape)
    values = _displaced(pairs.candidates_MPSQ, prediction.weight_MPS)
    if prediction.paint_MPQ is not None:
        values = values + prediction.paint_MPQ
    return _frames(values, cfg.cell, pairs.shape)


def predict(params: Tree, frames_MHWC: Tensor, codes_MK: Tensor, cfg: FlowConfig) -> Tensor:
    """The frames (M, H, W, 3) that follow frames at their own resolution.

    The border that `reduced` leaves out stays as it is.
    """
    predicted = _predict_cells(params, inside(frames_MHWC, cfg.side), codes_MK, cfg)
    height, width = predicted.shape[1:3]
    top, left = ((frames_MHWC.shape[1] - height) // 2, (frames_MHWC.shape[2] - width) // 2)
    rows = frames_MHWC[:, top : top + height]
    beside = (rows[:, :, :left], predicted, rows[:, :, left + width :])
    middle = torch.cat(beside, 2)
    return torch.cat((frames_MHWC[:, :top], middle, frames_MHWC[:, top + height :]), 1)


def _predict_cells(params: Tree, frames_MHWC: Tensor, codes_MK: Tensor, cfg: FlowConfig) -> Tensor:
    """`predict` for frames whose sides are multiples of a cell's."""
    small = reduced(frames_MHWC, cfg)
    shape = Shape(frames_MHWC.shape[1] // cfg.side, frames_MHWC.shape[2] // cfg.side)
    prediction = decode(params, cells(small, cfg.cell), codes_MK, shape)
    moved = candidates(frames_MHWC, cfg.radius, side=cfg.side, step=cfg.reduce)
    frames = _frames(_displaced(moved, prediction.weight_MPS), cfg.side, shape)
    if prediction.paint_MPQ is None:
        return frames
    paint = _frames(prediction.paint_MPQ, cfg.cell, shape)
    enlarged = paint.repeat_interleave(cfg.reduce, 1).repeat_interleave(cfg.reduce, 2)
    return frames + enlarged


def _frames(values_MPQ: Tensor, side: int, shape: Shape) -> Tensor:
    """The inverse of `cells`."""
    return layers.unpatchify(values_MPQ[:, None], side, side * shape.rows)[:, 0]
