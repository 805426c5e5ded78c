"""Horizontal-flip augmentation, for data in which one direction prevails."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genie_fn.data.clips import Batch
from genie_fn.errors import UserError

OPPOSITE = {"LEFT": "RIGHT", "RIGHT": "LEFT"}


def flipped_actions(names: Sequence[str]) -> list[int]:
    """For every recorded action, the index of the action that it is in a flipped video.

    LEFT and RIGHT are swapped, also in combinations such as LEFT+UP. Raises UserError if the names
    are not closed under this swap, or if it changes none.
    """
    flipped = ["+".join(OPPOSITE.get(key, key) for key in name.split("+")) for name in names]
    if sorted(flipped) != sorted(names) or flipped == list(names):
        listed = ", ".join(names) or "unnamed"
        raise UserError(
            f"--cfg.flip swaps the actions LEFT and RIGHT, but those of the dataset are {listed}: "
            "pass --cfg.no-flip"
        )
    return [list(names).index(name) for name in flipped]


def flip_half(batch: Batch, step: Tensor, first_clip: int | Tensor, swap_A: Tensor | None) -> Batch:
    """A batch of tensors with every second clip flipped horizontally, the others at the next step.

    Recorded actions of flipped clips are mapped by `swap_A` (see `flipped_actions`). Without
    `swap_A` actions stay, because latent actions are inferred from the flipped frames. `first_clip`
    is the index in the whole batch of the first clip. Only that index and the step decide, so a
    resumed run and any number of processes flip the same clips.
    """
    clips = len(batch.frames)
    index_B = first_clip + torch.arange(clips, device=batch.frames.device)
    odd_B = (index_B + step) % 2 == 1
    frames = torch.where(odd_B[:, None, None, None, None], batch.frames.flip(-2), batch.frames)
    if swap_A is None:
        return Batch(frames, batch.actions)
    return Batch(frames, torch.where(odd_B[:, None], swap_A[batch.actions], batch.actions))
