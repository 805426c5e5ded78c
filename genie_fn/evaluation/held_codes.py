"""Whether a held action moves generated pictures as it moves recorded ones.

Every action that is used is held from every start frame. It is followed if the generated picture is
displaced, in sum, in the direction of the mean displacement of recorded transitions with that
action: their scalar product is positive. An action under which recorded pictures hardly move is
followed if the generated picture hardly moves either. `others` is the chance level: how often the
same is true of pictures generated under the other actions, as in a world that drifts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import metrics
from genie_fn.bundle.action_effects import STILL
from genie_fn.evaluation import rollouts, statistics
from genie_fn.evaluation.clips import infer_actions, tokenize
from genie_fn.evaluation.record import HeldCodes
from genie_fn.maskgit import SampleConfig
from genie_fn.world import World

FRAMES = 10
"""Frames for which an action is held."""
MIN_SHARE = 0.05
"""Actions in fewer transitions than this are not tested."""


class Held(NamedTuple):
    """Rollouts from N start frames under each of A' held actions."""

    actions: Tensor
    """(A',), the held actions."""
    frames: Tensor
    """(A', N, FRAMES + 1, H, W, 3) uint8, with the start frames, on the CPU."""


def tested(codes: Tensor, choices: int) -> Tensor:
    """The actions that occur in at least MIN_SHARE of the transitions `codes`, int64."""
    share = torch.bincount(codes.flatten(), minlength=choices) / codes.numel()
    return (share >= MIN_SHARE).nonzero().flatten()


def hold(world: World, starts: Tensor, actions: Tensor, key: Tensor, sample: SampleConfig) -> Held:
    """Rollouts from start frames (N, 1, H, W, 3), with the same random numbers for every action."""
    codes, ids = tokenize(world, starts.to(key.device))
    videos = []
    for action in actions.tolist():
        held = torch.full((len(starts), FRAMES), action, device=key.device)
        frames = rollouts.free_running(world, codes, ids, held, key, sample)
        videos.append(torch.cat((starts.cpu(), frames.cpu()), 1))
    return Held(actions, torch.stack(videos))


def agrees(shift: Tensor, expected: Tensor, frames: int) -> Tensor:
    """Whether displacements (..., 2) in sum over `frames` frames are as `expected` (2,) per frame."""
    if expected.norm() < STILL:
        return shift.float().norm(dim=-1) < STILL * frames
    return (shift.float() * expected).sum(-1) > 0


def score(world: World, held: Held, codes: Tensor, shift: Tensor, key: Tensor) -> HeldCodes:
    """How held actions, at least one, are followed.

    `codes` (M, T-1) and `shift` (M, T-1, 2) are those of recorded transitions.
    """
    expected = metrics.mean_displacement(codes, shift, held.actions)
    generated = metrics.displacement(held.frames[:, :, :-1], held.frames[:, :, 1:])
    total = generated.sum(2)  # (A', N, 2)
    # [a, b, n]: whether the rollout under action b from start n agrees with action a
    table = torch.stack([agrees(total, direction, FRAMES) for direction in expected]).float()
    own = table.diagonal(dim1=0, dim2=1).T  # (A', N)
    different = ~torch.eye(len(held.actions), dtype=torch.bool)
    others = table.mean(-1)[different]
    recorded = [
        agrees(shift[codes == action], direction, 1).float().mean()
        for action, direction in zip(held.actions.tolist(), expected, strict=True)
    ]
    read_back = _read_back(world, held) if world.lam is not None else None
    return HeldCodes(
        frames=FRAMES,
        starts=held.frames.shape[1],
        actions=held.actions.tolist(),
        followed=_rounded(own.mean(1)),
        average=_with_interval(own.mean(0), key),
        others=_rounded(others.mean()[None])[0] if len(others) else None,
        recorded=_rounded(torch.stack(recorded)),
        expected=[_rounded(direction) for direction in expected],
        reinferred=None if read_back is None else _with_interval(read_back, key),
    )


def _read_back(world: World, held: Held) -> Tensor:
    """By start (N,), the share of generated transitions whose inferred action is the held one."""
    rows = []
    for action, videos in zip(held.actions.tolist(), held.frames, strict=True):
        device = world.dynamics.params["token"].device
        inferred = infer_actions(world, videos.to(device))
        rows.append((inferred == action).float().mean(1).cpu())
    return torch.stack(rows).mean(0)


def _with_interval(values_N: Tensor, key: Tensor) -> list[float]:
    """[mean, low, high] over start frames."""
    return _rounded(torch.stack(statistics.bootstrap(values_N, key)))


def _rounded(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.tolist()]
