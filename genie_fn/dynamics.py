"""The dynamics model: a space-time transformer that predicts the tokens of the next frame.

Genie (arXiv 2402.15391), section 2.1, after MaskGIT (Chang et al. 2022, arXiv 2202.04200). Training
hides tokens and predicts them from the others and the actions; `maskgit` samples frames. Since
temporal attention is causal, the keys and values of past frames are computed once and cached.

Three options extend the paper. In training the previous frame is masked as well, while in sampling it
is complete. With `neighbourhood`, a linear map of the unmasked tokens around its position in that
frame is added to every token; with `pointer`, the logits of the ids that stand there are raised. An
id of several codebooks consists of several factors; with `chain` their values, the digits of the id,
are predicted one after another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Suppress

from genie_fn import layers, random
from genie_fn.errors import UserError
from genie_fn.layers import Cache, STConfig, Visibility
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree

FACTORED_FROM = 2**14
"""The number of codes from which ids are factorised by default."""


@dataclass(frozen=True)
class DynamicsConfig:
    """`codes` ids per token, `tokens` per frame, `actions` to choose from."""

    codes: Suppress[int] = 1024
    tokens: Suppress[int] = 64
    actions: Suppress[int] = 6
    columns: Suppress[int] = 8
    """Columns of the grid of a frame's tokens. These four are not flags; the earlier stages determine
    them."""
    occurring: Suppress[tuple[int, ...]] = ()
    """The recorded actions that occur in the training data; none: any may. The embeddings of the
    others are not trained."""
    prototypes: Suppress[tuple[tuple[float, ...], ...]] = ()
    """Where actions are vectors: those that the numbers of actions stand for, in units of the data's
    standard deviation. Every action's embedding is then a linear map of its vector."""
    action_mode: Literal["add", "prepend"] = "add"
    """`add`: an embedding of the action is added to every token of its frame; `prepend`: it is a
    token of its own."""
    stack: STConfig = field(default_factory=STConfig)
    mask_low: float = 0.5
    """In training, the share of masked tokens is uniform on [mask_low, 1] for each clip."""
    corrupt: float = 0.0
    """In training, a share of the visible tokens, uniform on [0, corrupt] for each clip, becomes
    random, because generated frames contain errors that recorded ones do not."""
    neighbourhood: int = 0
    """Side of a square of tokens, an odd number. Every token sees, unmasked, those of the frame before
    in the square around its own position. 0: only attention sees the frame before, and in training
    masked."""
    neighbour_dim: int = 48
    """The width of these tokens' embeddings."""
    pointer: bool = False
    """Whether every token's logits are raised, by a number for each token of that square, at the ids
    that stand there, so that what stays or moves by whole tokens is copied."""
    chain: bool = False
    """Whether the factors of an id are predicted autoregressively, each given the values of those before
    it, as by Lee et al. 2022 (RQ-Transformer, arXiv 2203.01941, section 3.2). Otherwise their values
    are sampled independently of each other, and may not belong together."""
    factors: int = 0
    """The number of factors into which the bits of an id are divided, each with its own embedding and
    softmax. 0: one for each codebook of a VQ tokenizer with several, otherwise two from 2^14 codes
    on, and one below."""
    distilled: Suppress[float] = 0.0
    """The scale of the guidance that distillation has put into the weights; 0: none."""

    def __post_init__(self):
        if any(type(a) is not int or not 0 <= a < self.actions for a in self.occurring):
            raise UserError(
                f"the actions that occur must be numbers from 0 to {self.actions - 1}, not "
                f"{self.occurring}: train again"
            )
        if self.prototypes and len(self.prototypes) != self.actions:
            raise UserError(
                f"there are {len(self.prototypes)} prototypes for {self.actions} actions: train again"
            )
        if len({len(vector) for vector in self.prototypes}) > 1 or () in self.prototypes:
            raise UserError("the prototypes of actions are not of one length: train again")
        if not 0 <= self.mask_low <= 1:
            raise UserError(f"--cfg.model.mask-low must be from 0 to 1, not {self.mask_low}")
        if not 0 <= self.corrupt <= 1:
            raise UserError(f"--cfg.model.corrupt must be from 0 to 1, not {self.corrupt}")
        if self.neighbourhood < 0 or self.neighbourhood and self.neighbourhood % 2 == 0:
            raise UserError(
                f"--cfg.model.neighbourhood must be odd, or 0, not {self.neighbourhood}"
            )
        if self.neighbour_dim < 1:
            raise UserError(
                f"--cfg.model.neighbour-dim must be at least 1, not {self.neighbour_dim}"
            )
        if self.pointer and not self.neighbourhood:
            raise UserError(
                "--cfg.model.pointer points into the neighbourhood: set --cfg.model.neighbourhood, "
                "for example to 3"
            )
        indivisible = self.codes.bit_count() > 1 or self.codes.bit_length() <= self.factors
        if self.factors < 0 or self.factors > 1 and indivisible:
            raise UserError(
                f"{self.codes} codes cannot be divided into {self.factors} factors, which needs a "
                "power of two with at least a bit per factor: change --cfg.model.factors"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The vocabulary size of each factor, lowest bits first; their product is `codes`."""
        count = self.factors
        if count == 0:
            factorise = self.codes >= FACTORED_FROM and self.codes.bit_count() == 1
            count = 2 if factorise else 1
        if count == 1:
            return (self.codes,)
        bits = self.codes.bit_length() - 1
        return tuple(2 ** ((bits + i) // count) for i in range(count))

    @property
    def is_chained(self) -> bool:
        """Whether an id has several digits, and `chain` is set."""
        return self.chain and len(self.sizes) > 1


PRESETS = {
    "demo": DynamicsConfig(
        stack=STConfig(layers=4, dim=128, heads=4, window=8), neighbourhood=3, pointer=True
    ),
    "small": DynamicsConfig(
        stack=STConfig(layers=8, dim=384, heads=6, dtype="bfloat16"), neighbourhood=3, pointer=True
    ),
    "coinrun": DynamicsConfig(stack=STConfig(layers=12, dim=512, heads=8, dtype="bfloat16")),
}
"""The models of train_dynamics.py's presets; `coinrun` is the paper's Appendix F.3."""


class Memory(NamedTuple):
    """What is kept of past frames."""

    cache: Cache
    """The temporal layers' keys and values."""
    newest_BN: Tensor
    """The ids of the newest frame, or the mask id before any frame."""


def digits(ids: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """The factors of ids, lowest first: id = Σ digit_i · Π_{j<i} size_j.

    The factors of the mask id V are the sizes, one beyond the valid digits.
    """
    hidden = ids == math.prod(sizes)
    rest = ids
    factors: list[Tensor] = []
    for size in sizes:
        factors.append(torch.where(hidden, size, rest % size))
        rest = rest // size
    return factors


def composed(factors: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The ids of which these are the factors, the inverse of `digits` for valid ids."""
    terms: list[Tensor] = []
    below = 1
    for factor, size in zip(factors, sizes, strict=True):
        terms.append(factor * below)
        below *= size
    return total(terms)


def check_clips(cfg: DynamicsConfig, frames: int) -> None:
    """Raise UserError unless the model can be trained on clips of so many frames."""
    if frames < 2:
        raise UserError(
            "a dynamics model predicts frames from the ones before, so clips need at least 2, "
            f"not {frames}: raise --cfg.num-frames"
        )


def spec(cfg: DynamicsConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`.

    The token table has the rows of all factors; each factor's last row is that of the mask. The
    last row of the action table, `actions`, means that no action led into a frame. Where actions are
    vectors, the rows before it are the weight and the bias of their linear map.
    """
    dim = cfg.stack.dim
    rows = len(cfg.prototypes[0]) + 1 if cfg.prototypes else cfg.actions
    places = cfg.tokens + (cfg.action_mode == "prepend")
    params = {
        "token": _table_spec(cfg.sizes, dim),
        "action": ParamSpec((rows + 1, dim), std=0.5, decay=False),
        "place": ParamSpec((places, dim), std=0.5, decay=False),
        "stack": layers.st_spec(cfg.stack),
        "head": layers.linear_spec(dim, sum(cfg.sizes), bias=True),
    }
    if cfg.neighbourhood:
        inputs = cfg.neighbourhood**2 * cfg.neighbour_dim
        params["neighbourhood"] = {
            "token": _table_spec(cfg.sizes, cfg.neighbour_dim),
            # A stack of one matrix, so that Muon updates it as it does those of the blocks.
            "w": ParamSpec((1, inputs, dim), std=inputs**-0.5),
        }
    if cfg.pointer:
        params["pointer"] = layers.linear_spec(dim, cfg.neighbourhood**2, bias=True)
    if cfg.is_chained:
        params["chain"] = _chain_spec(cfg)
    return params


def _table_spec(sizes: Sequence[int], dim: int) -> ParamSpec:
    """Embeddings of the digits of each factor and of the mask id."""
    rows = sum(sizes) + len(sizes)
    return ParamSpec((rows, dim), std=0.5 * len(sizes) ** -0.5, decay=False)


def _chain_spec(cfg: DynamicsConfig) -> Tree:
    """For each factor but the first, two linear layers of what is known of the digits before it."""
    dim = cfg.stack.dim
    later = len(cfg.sizes) - 1
    params = {
        "token": _table_spec(cfg.sizes[:-1], dim),
        "up": ParamSpec((later, dim, dim), std=dim**-0.5),
        "down": ParamSpec((later, dim, dim), "zeros"),
    }
    if cfg.pointer:
        params["pointer"] = layers.linear_spec(dim, cfg.neighbourhood**2, bias=True)
    return params


def adapt_to_codes(params: Tree, codes: Sequence[Tensor], key: Tensor, cfg: DynamicsConfig) -> Tree:
    """Initial parameters that know which ids look alike.

    `codes` (V_i, K_i) describe the values of each factor (`quantize.factor_codes`). The embeddings
    of ids, and the columns of the head, become random linear maps of them, of the same variance as
    before. So similar codes have similar embeddings and similar logits from the first step on.
    Embeddings of the mask id stay.
    """
    keys = random.split(key, 3).unbind(0)
    adapted = params | {
        "token": _adapted_table(params["token"], codes, keys[0]),
        "head": params["head"] | {"w": _adapted_head(params["head"]["w"], codes, keys[1])},
    }
    if cfg.neighbourhood:
        old = params["neighbourhood"]
        table = _adapted_table(old["token"], codes, keys[2])
        adapted["neighbourhood"] = old | {"token": table}
    if cfg.is_chained:
        old = params["chain"]
        adapted["chain"] = old | {
            "token": _adapted_table(old["token"], codes[:-1], random.fold_in(key, 3))
        }
    return adapted


def _adapted_table(table: Tensor, codes: Sequence[Tensor], key: Tensor) -> Tensor:
    """A table of embeddings, in which those of ids are linear maps of their codes."""
    rows = torch.split(table, [len(x) + 1 for x in codes])
    parts: list[Tensor] = []
    for i, (old_VD, codes_VK) in enumerate(zip(rows, codes, strict=True)):
        channels = codes_VK.shape[1]
        if not channels:  # all codes are equal
            parts.append(old_VD)
            continue
        map_KD = random.normal(random.fold_in(key, i), (channels, table.shape[1]))
        std = old_VD.std(correction=0)
        parts += [codes_VK @ map_KD * (std * channels**-0.5), old_VD[-1:]]
    return torch.cat(parts)


def _adapted_head(weight_DV: Tensor, codes: Sequence[Tensor], key: Tensor) -> Tensor:
    """A head's weight, in which the columns of ids are linear maps of their codes."""
    std = weight_DV.std(correction=0)
    columns = torch.split(weight_DV, [len(x) for x in codes], 1)
    parts: list[Tensor] = []
    for i, (old_DV, codes_VK) in enumerate(zip(columns, codes, strict=True)):
        channels = codes_VK.shape[1]
        if not channels:
            parts.append(old_DV)
            continue
        map_DK = random.normal(random.fold_in(key, i), (len(weight_DV), channels))
        parts.append(map_DK @ codes_VK.T * (std * channels**-0.5))
    return torch.cat(parts, 1)


def empty_memory(
    cfg: DynamicsConfig, batch: int, device: torch.device | str | None = None
) -> Memory:
    """The memory before any frame, for `batch` sessions."""
    places = cfg.tokens + (cfg.action_mode == "prepend")
    cache = layers.empty_cache(cfg.stack, batch, places, device)
    return Memory(cache, torch.full((batch, cfg.tokens), cfg.codes, device=device))


# Logits


def entering(actions_BT: Tensor, cfg: DynamicsConfig) -> Tensor:
    """Actions between T+1 frames (B, T) → the action that led into each frame, (B, T+1).

    For the first frame this is `cfg.actions`, no action. Vectors (B, T, A) become (B, T+1, A), with
    NaN for no action.
    """
    if actions_BT.is_floating_point():
        return F.pad(actions_BT, (0, 0, 1, 0), value=math.nan)
    return F.pad(actions_BT, (1, 0), value=cfg.actions)


def action_numbers(actions_BT: Tensor, cfg: DynamicsConfig) -> Tensor:
    """Actions (B, T) as numbers: of vectors (B, T, A) those of the nearest prototypes."""
    if not actions_BT.is_floating_point():
        return actions_BT
    prototypes_KA = torch.tensor(cfg.prototypes, device=actions_BT.device)
    return torch.cdist(actions_BT, prototypes_KA.expand(len(actions_BT), -1, -1)).argmin(-1)


def _embed_actions(params: Tree, actions_BT: Tensor, cfg: DynamicsConfig) -> Tensor:
    """Actions (B, T), or vectors (B, T, A), → (B, T, D)."""
    if not actions_BT.is_floating_point():
        return F.embedding(actions_BT, action_table(params, cfg))
    table = params["action"]
    none_BT1 = actions_BT.isnan().any(-1, keepdim=True)
    embedded_BTD = actions_BT.nan_to_num() @ table[:-2] + table[-2]
    return torch.where(none_BT1, table[-1], embedded_BTD)


def action_table(params: Tree, cfg: DynamicsConfig) -> Tensor:
    """The embeddings of the numbers of actions, (actions + 1, D) or more."""
    if "action_table" in params:  # of `guidance`
        return params["action_table"]
    table = params["action"]
    if not cfg.prototypes:
        return table
    prototypes_KA = torch.tensor(cfg.prototypes, device=table.device)
    return torch.cat((prototypes_KA @ table[:-2] + table[-2], table[-1:]))


Chained = Callable[[Sequence[Tensor]], Tensor]
"""Given the digits of the first factors, what they add to the logits of the next one."""


class Prediction(NamedTuple):
    """What is predicted of frames."""

    logits_BTNV: Tensor
    """Of all factors, concatenated; with `chain`, without what the digits before them add."""
    chained: Chained | None
    """With `chain`, for digits (B, T, N) and logits (B, T, N, V_i)."""

    def rearranged(
        self, logits: Callable[[Tensor], Tensor], digit: Callable[[Tensor], Tensor]
    ) -> "Prediction":
        """The prediction with its logits changed by one function, for digits that another one turns
        into those that the chain takes."""
        chained = self.chained
        if chained is None:
            return Prediction(logits(self.logits_BTNV), None)

        def changed(known: Sequence[Tensor]) -> Tensor:
            return logits(chained([digit(x) for x in known]))

        return Prediction(logits(self.logits_BTNV), changed)


def logits_next(  # noqa: PLR0913 (those of `predict_next`, and the ids that digits are given)
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    memory: Memory | None,
    cfg: DynamicsConfig,
    *,
    extend: bool = True,
    unmasked_BTN: Tensor | None = None,
    given_BTN: Tensor | None = None,
    visibility: Visibility | None = None,
    backend: Backend = AUTO,
) -> tuple[Tensor, Memory | None]:
    """The logits of `predict_next`, concatenated, and its memory.

    With `chain`, those of each digit are given the digits before it of `given_BTN`, by default of
    `unmasked_BTN`.
    """
    prediction, extended = predict_next(
        params,
        ids_BTN,
        actions_BT,
        memory,
        cfg,
        extend=extend,
        unmasked_BTN=unmasked_BTN,
        visibility=visibility,
        backend=backend,
    )
    known_BTN = ids_BTN if unmasked_BTN is None else unmasked_BTN
    return given_digits(prediction, known_BTN if given_BTN is None else given_BTN, cfg), extended


def given_digits(prediction: Prediction, ids_BTN: Tensor, cfg: DynamicsConfig) -> Tensor:
    """The logits of each factor, given the digits of `ids_BTN` before it, concatenated."""
    if prediction.chained is None:
        return prediction.logits_BTNV
    first, *later = parts(prediction.logits_BTNV, cfg.sizes, -1)
    known = digits(ids_BTN, cfg.sizes)
    added = [prediction.chained(known[: i + 1]) for i in range(len(later))]
    return torch.cat((first, *[x + more for x, more in zip(later, added, strict=True)]), -1)


def predict_next(  # noqa: PLR0913 (what the model sees, the memory of the past, how to compute)
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    memory: Memory | None,
    cfg: DynamicsConfig,
    *,
    extend: bool = True,
    unmasked_BTN: Tensor | None = None,
    visibility: Visibility | None = None,
    backend: Backend = AUTO,
) -> tuple[Prediction, Memory | None]:
    """Logits (B, T, N, V) of the frames after those in memory; with `extend` the new memory, too.

    `ids_BTN` may hold the mask id V. `unmasked_BTN` are the same ids without it, by default
    `ids_BTN`; each frame sees those of the frame before it as its neighbourhood, never its own.
    `actions_BT[t]` led into frame t; it is `cfg.actions` if none did. Vectors
    (B, T, A), of a model with `prototypes`, hold NaN then. `visibility` is as for
    `layers.st_transformer`. With several factors their logits are concatenated, so that V is the sum
    of `sizes`.
    """
    known_BTN = ids_BTN if unmasked_BTN is None else unmasked_BTN
    x_BTND = _embed(params["token"], ids_BTN, cfg.sizes)
    before_BTN = _frames_before(known_BTN, memory, cfg)
    if cfg.neighbourhood:
        x_BTND = x_BTND + _embed_neighbourhood(params["neighbourhood"], before_BTN, cfg)
    action_BT1D = _embed_actions(params, actions_BT, cfg)[:, :, None]
    prepend = cfg.action_mode == "prepend"
    x = torch.cat((action_BT1D, x_BTND), 2) if prepend else x_BTND + action_BT1D
    y, cache = layers.st_transformer(
        params["stack"],
        x + params["place"],
        cfg.stack,
        None if memory is None else memory.cache,
        extend=extend,
        visibility=visibility,
        backend=backend,
    )
    y_BTND = y[:, :, -cfg.tokens :]
    logits = layers.linear(params["head"], y_BTND, backend.products).float()
    around = _digits_around(before_BTN, cfg) if cfg.pointer else []
    if cfg.pointer:
        logits = _point(params["pointer"], y_BTND, logits, around, cfg)

    def chained(known: Sequence[Tensor]) -> Tensor:
        return _chain(params, y_BTND, around, known, cfg, backend)

    prediction = Prediction(logits, chained if cfg.is_chained else None)
    return prediction, None if cache is None else Memory(cache, known_BTN[:, -1])


def _chain(
    params: Tree,
    y_BTND: Tensor,
    around: Sequence[Tensor],
    known: Sequence[Tensor],
    cfg: DynamicsConfig,
    backend: Backend,
) -> Tensor:
    """What the digits (B, T, N) of the first factors add to the logits (B, T, N, V_i) of the next one.

    With `pointer`, ids of the frame before that begin with these digits are raised further; `around`
    are those of `_digits_around`.
    """
    own = params["chain"]
    factor = len(known)
    tables = parts(own["token"], [size + 1 for size in cfg.sizes[:-1]], 0)[:factor]
    x_BTND = y_BTND + total([F.embedding(*pair) for pair in zip(known, tables, strict=True)])
    up, down = ({"w": own[name][factor - 1]} for name in ("up", "down"))
    inner_BTND = F.gelu(layers.linear(up, x_BTND, backend.products), approximate="tanh")
    moved_BTND = layers.linear(down, inner_BTND, backend.products)
    columns = {"w": parts(params["head"]["w"], cfg.sizes, 1)[factor]}
    logits = layers.linear(columns, moved_BTND, backend.products).float()
    if not cfg.pointer:
        return logits
    weight_BTNS = layers.linear(own["pointer"], y_BTND).float()
    for digit_BTNS, digit in zip(around, known, strict=False):
        weight_BTNS = weight_BTNS * (digit_BTNS == digit[..., None])
    return _raise(logits, weight_BTNS, around[factor])


def _frames_before(ids_BTN: Tensor, memory: Memory | None, cfg: DynamicsConfig) -> Tensor:
    """The ids of the frame before each frame; the mask id before the first."""
    if memory is None:
        newest_BN = torch.full_like(ids_BTN[:, 0], cfg.codes)
    else:
        newest_BN = memory.newest_BN
    return torch.cat((newest_BN[:, None], ids_BTN[:, :-1]), 1)


def _embed_neighbourhood(params: Tree, ids_BTN: Tensor, cfg: DynamicsConfig) -> Tensor:
    """A linear map of the embedded ids in the square around each place, (B, T, N, D).

    Places outside the frame are zeros.
    """
    x_BTNE = _embed(params["token"], ids_BTN, cfg.sizes)
    joined_BTNE = torch.cat(_neighbours(x_BTNE, cfg), -1)
    return joined_BTNE @ params["w"][0]


def _neighbours(x_BTNE: Tensor, cfg: DynamicsConfig, outside: float = 0.0) -> list[Tensor]:
    """What stands at each place of the square around each token, (B, T, N, E), row by row."""
    side = cfg.neighbourhood
    rows = cfg.tokens // cfg.columns
    margin = side // 2
    grid_BTHWE = x_BTNE.view(*x_BTNE.shape[:2], rows, cfg.columns, x_BTNE.shape[-1])
    padded = F.pad(grid_BTHWE, (0, 0, margin, margin, margin, margin), value=outside)
    return [
        padded[:, :, i : i + rows, j : j + cfg.columns].flatten(2, 3)
        for i in range(side)
        for j in range(side)
    ]


def _point(
    params: Tree,
    y_BTND: Tensor,
    logits_BTNV: Tensor,
    around: Sequence[Tensor],
    cfg: DynamicsConfig,
) -> Tensor:
    """Logits raised at the ids of the square of each token in the frame before, whose digits are
    `around`.

    After pointer networks (Vinyals et al. 2015, arXiv 1506.03134) and pointer-sentinel mixtures (Merity
    et al. 2016, arXiv 1609.07843); a sum of logits instead of a mixture of distributions.
    """
    weight_BTNS = layers.linear(params, y_BTND).float()
    factors = parts(logits_BTNV, cfg.sizes, -1)
    pairs = zip(factors, around, strict=True)
    pointed = [_raise(factor, weight_BTNS, digit) for factor, digit in pairs]
    return torch.cat(pointed, -1) if len(pointed) > 1 else pointed[0]


def _digits_around(ids_BTN: Tensor, cfg: DynamicsConfig) -> list[Tensor]:
    """The digits of the ids in the square around each token, (B, T, N, S) for each factor; those of the
    mask id outside the frame."""
    ids_BTNS = torch.cat(_neighbours(ids_BTN[..., None], cfg, cfg.codes), -1)
    return digits(ids_BTNS, cfg.sizes)


def _raise(logits_BTNV: Tensor, weight_BTNS: Tensor, digit_BTNS: Tensor) -> Tensor:
    """The logits of one factor, to which the weights of the digits of a square are added."""
    last = logits_BTNV.shape[-1] - 1
    known = digit_BTNS <= last  # not outside the frame, and not before any frame
    weight = _of_first(weight_BTNS * known, digit_BTNS)
    return logits_BTNV.scatter_add(-1, digit_BTNS.clamp(max=last), weight)


def _of_first(weight_BTNS: Tensor, digit_BTNS: Tensor) -> Tensor:
    """The weights of equal digits at one place, summed at the first of them and zero at the others.

    So `scatter_add` adds one number to each logit, and its order, which is not fixed on a GPU, does not
    matter.
    """
    side = digit_BTNS.shape[-1]
    same = digit_BTNS[..., :, None] == digit_BTNS[..., None, :]
    before = torch.ones(side, side, dtype=torch.bool, device=same.device).tril(-1)
    is_first = ~(same & before).any(-1)
    return (same * weight_BTNS[..., None, :]).sum(-1) * is_first


def _embed(table: Tensor, ids_BTN: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The sum of the embeddings of each id's factors, (B, T, N, D)."""
    tables = parts(table, [size + 1 for size in sizes], 0)
    pairs = zip(digits(ids_BTN, sizes), tables, strict=True)
    return total([F.embedding(digit, rows) for digit, rows in pairs])


def parts(x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
    """The parts of a tensor along an axis, one for each factor; a single one without the copy that the
    gradient of torch.split would make."""
    return torch.split(x, list(sizes), axis) if len(sizes) > 1 else (x,)


def total(tensors: list[Tensor]) -> Tensor:
    """The sum of at least one tensor, from the first to the last."""
    total = tensors[0]
    for x in tensors[1:]:
        total = total + x
    return total


# Training


def sample_mask(
    key: Tensor, batch: int, frames: int, cfg: DynamicsConfig, first: int | Tensor = 0
) -> Tensor:
    """Which tokens training hides, bool (B, T, N), none of them in the first frame.

    The share of hidden tokens is uniform on [mask_low, 1] for each clip. `first` is the index of
    the first of these clips in the whole batch, of whose mask this is a part.
    """
    rate_key, mask_key = random.split(key).unbind(0)
    rate_B = random.uniform(rate_key, (batch,), cfg.mask_low, 1.0, row=first)
    mask_BTN = random.bernoulli(
        mask_key, rate_B[:, None, None], (batch, frames, cfg.tokens), row=first
    )
    return mask_BTN & (torch.arange(frames, device=key.device) > 0)[:, None]


def corrupt(key: Tensor, ids_BTN: Tensor, cfg: DynamicsConfig, first: int | Tensor = 0) -> Tensor:
    """The ids that training shows: a share of `ids_BTN` is replaced by uniformly random ones.

    The share is uniform on [0, cfg.corrupt] for each clip; `first` as in `sample_mask`.
    """
    if not cfg.corrupt:
        return ids_BTN
    rate_key, place_key, id_key = random.split(key, 3).unbind(0)
    rate_B = random.uniform(rate_key, ids_BTN.shape[:1], 0.0, cfg.corrupt, row=first)
    wrong_BTN = random.bernoulli(place_key, rate_B[:, None, None], ids_BTN.shape, row=first)
    digit_keys = random.split(id_key, len(cfg.sizes))
    random_digits = [
        (random.uniform(digit_key, ids_BTN.shape, row=first) * size).long()
        for digit_key, size in zip(digit_keys, cfg.sizes, strict=True)
    ]
    random_BTN = composed(random_digits, cfg.sizes)
    return torch.where(wrong_BTN, random_BTN, ids_BTN)


def statistics(mask_BTN: Tensor) -> dict[str, Tensor]:
    """The statistic, by name, whose average over the whole batch `loss` uses."""
    return {"hidden_tokens": mask_BTN.sum().float()}


def loss(  # noqa: PLR0913 (the paper's arguments)
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    mask_BTN: Tensor,
    cfg: DynamicsConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    shown_BTN: Tensor | None = None,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict[str, Tensor], tuple[()]]]:
    """Cross-entropy of the hidden tokens, in nats per token, given the others and the actions.

    With `chain` each digit is given the true ones before it.

    `actions_BT` are the T-1 actions between the frames. Where tokens are not hidden, the model sees
    `shown_BTN` (by default `ids_BTN`). Returns the scalar loss and (metrics, ()).
    """
    visible = ids_BTN if shown_BTN is None else shown_BTN
    masked = torch.where(mask_BTN, cfg.codes, visible)
    logits, _ = logits_next(
        params,
        masked,
        entering(actions_BT, cfg),
        None,
        cfg,
        unmasked_BTN=visible,
        given_BTN=ids_BTN,
        backend=backend,
    )
    weight = hidden_weight(mask_BTN, microbatch)
    nats: list[Tensor] = []
    right = torch.ones_like(mask_BTN)
    factors = parts(logits, cfg.sizes, -1)
    for factor, target in zip(factors, digits(ids_BTN, cfg.sizes), strict=True):
        flat = F.cross_entropy(factor.flatten(0, 2), target.flatten(), reduction="none")
        nats.append(flat.reshape(mask_BTN.shape))
        right = right & (factor.argmax(-1) == target)
    cross_entropy = (total(nats) * weight).sum()
    accuracy = (right * weight).sum()
    return cross_entropy, ({"cross_entropy": cross_entropy, "accuracy": accuracy}, ())


def hidden_weight(mask_BTN: Tensor, microbatch: Microbatch) -> Tensor:
    """The weight of each hidden token in an average over those of the whole batch."""
    hidden_tokens = microbatch.mean("hidden_tokens", statistics(mask_BTN)["hidden_tokens"])
    return mask_BTN.float() / hidden_tokens.clamp(min=1 / microbatch.count)
