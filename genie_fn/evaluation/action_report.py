"""What the actions of a world mean: how they are used, what they tell of the recorded ones, and what each of them does.

Transitions come in clips. Neighbours within a clip resemble each other, so errors, tests and halves are made over whole
clips or whole levels, never over single transitions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, metrics, random
from genie_fn.bundle import action_map
from genie_fn.bundle.action_map import ActionMap
from genie_fn.data import Store
from genie_fn.evaluation import statistics
from genie_fn.training import setup

PERMUTATIONS = 999
SIDES = ("left", "none", "right")


class Transitions(NamedTuple):
    """M clips of T - 1 transitions: what a model calls each, `codes` (M, T-1); what was recorded, `true` (M, T-1), None
    where nothing was; the clip's `level` (M,); and by how many pixels the picture moved, `moved` (M, T-1, 2)."""

    codes: Tensor
    true: Tensor | None
    level: Tensor
    moved: Tensor


def spread_clips(store: Store, split: str, num_frames: int, count: int) -> np.ndarray:
    """Offsets of at most `count` clips, evenly spread over a split; they hardly overlap."""
    starts = data.clip_starts(store, split, num_frames)
    apart = starts[np.unique(starts // num_frames, return_index=True)[1]]
    return apart[np.linspace(0, len(apart) - 1, min(count, len(apart))).round().astype(int)]


def label(
    store: Store, offsets: np.ndarray, num_frames: int, name: Callable, device: torch.device
) -> Tensor:
    """`name(frames, recorded actions)` of the clips, read a few at a time, as one tensor on the CPU: (M, ...)."""
    found = []
    for part in np.array_split(offsets, -(-len(offsets) // 32)):
        found.append(name(*setup.to_device(data.read_clips(store, part, num_frames), device)).cpu())
    return torch.cat(found)


def gather(store: Store, offsets: np.ndarray, num_frames: int, codes: Tensor) -> Transitions:
    """The transitions of clips whose `codes` are known."""

    def look(frames: Tensor, actions: Tensor) -> Tensor:
        return torch.cat(
            (metrics.displacement(frames[:, :-1], frames[:, 1:]), actions[..., None]), -1
        )

    seen = label(store, offsets, num_frames, look, torch.device("cpu"))
    level = torch.from_numpy(
        np.asarray(store.arrays["level_seeds"][offsets].read().result()).astype(np.int64)
    )
    return Transitions(codes, seen[..., 2] if store.num_actions else None, level, seen[..., :2])


def sides(names: tuple[str, ...]) -> Tensor | None:
    """Which of SIDES each recorded action belongs to, by its name; None where no name says."""
    found = [0 if "LEFT" in name else 2 if "RIGHT" in name else 1 for name in names]
    return torch.tensor(found) if {0, 2} <= set(found) else None


def usage(codes: Tensor, actions: int) -> dict:
    """How often each action occurs, and in words whether the actions have collapsed."""
    share = torch.bincount(codes.flatten(), minlength=actions) / codes.numel()
    used = int((share > 0.01).sum())
    return {
        "actions": actions,
        "share": rounded(share),
        "used": used,
        "perplexity": round(torch.special.entr(share).sum().exp().item(), 4),
        "state": _state(share, used),
    }


def _state(share: Tensor, used: int) -> str:
    most = share.max().item()
    if most >= 0.9:
        return f"collapsed: {most:.0%} of transitions have one code"
    if used < len(share) / 2:
        return f"partly collapsed: only {used} of {len(share)} codes have more than 1% of the transitions"
    return f"in use: {used} of {len(share)} codes have more than 1% of the transitions"


def halves(level: Tensor) -> tuple[Tensor, Tensor]:
    """The clips of every other level, and those of the rest; every other clip where all are of one level."""
    levels, rank = level.unique(return_inverse=True)
    order = rank if len(levels) > 1 else torch.arange(len(level))
    return order % 2 == 0, order % 2 == 1


def tables(
    codes: Tensor, true: Tensor, level: Tensor, actions: int, kinds: int
) -> tuple[Tensor, Tensor]:
    """The contingency tables of true (rows) and latent actions on either half of the levels."""
    return tuple(
        metrics.contingency(true[half], codes[half], kinds, actions) for half in halves(level)
    )


def meaning(table: Tensor) -> Tensor:
    """The recorded action that most often meets each code, (A,); of a code never met, the commonest of all."""
    return (table + 1e-6 * table.sum(1, keepdim=True)).argmax(0)


def agreement(
    codes: Tensor, true: Tensor, level: Tensor, actions: int, kinds: int, key: Tensor
) -> dict:
    """How much codes tell of recorded actions (of so many `kinds`), and whether that holds on other levels.

    `information` is their normalised mutual information, `by_chance` its mean where clips are given other clips' codes,
    with the p-value of that test; `accuracy` is that of the best map from code to action, fitted on one half of the
    levels and tested on the other, both ways, and `chance` that of the commonest action, fitted likewise; `stability`
    is the share of transitions whose code means the same in both halves.
    """
    fits = tables(codes, true, level, actions, kinds)
    whole, maps = sum(fits), [meaning(table) for table in fits]
    common = [table.sum(1).argmax() for table in fits]
    right = [_hits(table, guess) for table, guess in zip(fits, reversed(maps), strict=True)]
    even = [int(table[guess].sum()) for table, guess in zip(fits, reversed(common), strict=True)]
    mixed = [
        metrics.information(metrics.contingency(true, codes[order], kinds, actions))
        for order in _orders(key, len(codes))
    ]
    found, total = metrics.information(whole), int(whole.sum())
    return {
        "table": whole.tolist(),
        "information": round(found, 4),
        "by_chance": round(sum(mixed) / len(mixed), 4),
        "p": _p_value(found, mixed),
        "halves_of": "levels" if len(level.unique()) > 1 else "clips",
        "halves": [round(metrics.information(table), 4) for table in fits],
        "accuracy": round(sum(right) / total, 4),
        "chance": round(sum(even) / total, 4),
        "stability": round(whole.sum(0)[maps[0] == maps[1]].sum().item() / total, 4),
    }


def _hits(table: Tensor, guess: Tensor) -> int:
    return int(table.gather(0, guess[None]).sum())


def _orders(key: Tensor, clips: int) -> Tensor:
    """Random orders of the clips, (PERMUTATIONS, clips)."""
    return random.uniform(key, (PERMUTATIONS, clips)).argsort(1)


def _p_value(found: float, mixed: list[float]) -> float:
    """How probable a value like this is by chance: of a permutation test, so at least 1 / (permutations + 1)."""
    return round((1 + sum(x >= found - 1e-12 for x in mixed)) / (1 + len(mixed)), 4)


def displacements(codes: Tensor, moved: Tensor, actions: int, key: Tensor) -> dict:
    """The mean movement of the picture under each action, in pixels per frame, to the right (dx) and down (dy).

    Standard errors of its difference to the mean of all transitions by bootstrap over clips; the p-values are of the
    hypothesis that all actions move it alike, from the variance between actions where clips are given other clips'
    codes. `left` and `right` list the actions under which the picture moves further that way than on average, by more
    than three standard errors. The view follows the agent, so the picture moves against it.
    """
    member = torch.nn.functional.one_hot(codes, actions).float()  # (M, T-1, A)
    count, boot_key = member.sum(1), random.fold_in(key, 1)
    weight = statistics.resampling(boot_key, len(codes))
    orders = _orders(key, len(codes))
    result: dict = {}
    for axis, name in enumerate(("dx", "dy")):
        value = moved[..., axis].float()
        total = (member * value[..., None]).sum(1)
        mean, overall = total.sum(0) / count.sum(0), total.sum() / count.sum()
        drawn, drawn_count = weight @ total, weight @ count
        resampled = drawn / drawn_count - drawn.sum(1, keepdim=True) / drawn_count.sum(
            1, keepdim=True
        )
        known = ~resampled.isnan()  # a resample may lack a rare action
        centre = resampled.nanmean(0)
        spread = (
            torch.where(known, resampled - centre, 0).square().sum(0) / (known.sum(0) - 1)
        ).sqrt()
        mixed = [
            _between(torch.bincount(codes[o].flatten(), value.flatten(), actions), count.sum(0))
            for o in orders
        ]
        result |= {
            name: rounded(mean),
            f"{name}_error": rounded(spread),
            f"{name}_all": round(overall.item(), 4),
        }
        result[f"{name}_p"] = _p_value(_between(total.sum(0), count.sum(0)), mixed)
        if name == "dx":
            ways = {"left": mean - overall < -3 * spread, "right": mean - overall > 3 * spread}
            result |= {way: sure.nonzero().flatten().tolist() for way, sure in ways.items()}
    return result


def _between(total: Tensor, count: Tensor) -> float:
    """Σ n_a · mean_a²: up to constants the variance between groups, the numerator of an analysis of variance."""
    return (total.double().square() / count.clamp(min=1)).sum().item()


def describe(
    found: Transitions, actions: int, names: tuple[str, ...], latent: bool, key: Tensor
) -> dict:
    """The whole report on actions, ready for JSON. Latent ones are compared with the recorded ones where there are."""
    levels = len(found.level.unique())
    own = [f"code {i}" for i in range(actions)] if latent else recorded(names, actions)
    result = {"kind": "latent" if latent else "true", "names": own}
    result |= {"transitions": found.codes.numel(), "clips": len(found.codes), "levels": levels}
    result |= usage(found.codes, actions)
    result["displacement"] = displacements(found.codes, found.moved, actions, key)
    if latent and found.true is not None:
        result["true"] = compare(found, actions, names, key)
    return result


def compare(found: Transitions, actions: int, names: tuple[str, ...], key: Tensor) -> dict:
    """`agreement` with all recorded actions, and with left / none / right where the names tell; what each does."""
    true, side = found.true, sides(names)
    kinds = max(len(names), int(true.max()) + 1)
    result: dict = {"names": recorded(names, kinds)}
    result["displacement"] = displacements(true, found.moved, kinds, key)
    result["all"] = agreement(found.codes, true, found.level, actions, kinds, key)
    if side is not None:
        result["sides"] = agreement(found.codes, side[true], found.level, actions, len(SIDES), key)
    return result


def recorded(names: tuple[str, ...], count: int) -> list[str]:
    """The names of recorded actions, numbers where a store has none."""
    return [*names, *map(str, range(len(names), count))]


def to_map(report: dict) -> ActionMap:
    """What play needs of the report: the table of real and latent actions, and what follows from it."""
    true, fit = report["true"], report["true"]["all"]
    return action_map.make(true["names"], fit["table"], fit["accuracy"], fit["chance"])


def rounded(values: Tensor) -> list[float | None]:
    """Four digits; None for what is not a number, such as the mean of nothing."""
    return [round(x, 4) if x == x else None for x in values.tolist()]


def examples(codes: Tensor, actions: int, count: int) -> list[list[tuple[int, int]]]:
    """For each action up to `count` of its transitions as (clip, t), each the first of its clip, from all over."""
    found = []
    for action in range(actions):
        has = (codes == action).any(1).nonzero().flatten()
        clips = has[
            torch.linspace(0, max(len(has) - 1, 0), min(count, len(has))).round().long()
        ].tolist()
        found.append([(clip, int((codes[clip] == action).int().argmax())) for clip in clips])
    return found
