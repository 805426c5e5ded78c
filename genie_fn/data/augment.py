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
            "leave it out"
        )
    return [list(names).index(name) for name in flipped]


def flip_odd_steps(batch: Batch, step: Tensor, swap_A: Tensor | None) -> Batch:
    """A batch of tensors, its frames flipped horizontally if `step` is odd.

    Recorded actions are then mapped by `swap_A` (see `flipped_actions`). Without `swap_A` actions
    stay, because latent actions are inferred from the flipped frames. Only the step number decides,
    so a resumed run and every process of several flip the same batches.
    """
    odd = step % 2 == 1
    frames = torch.where(odd, batch.frames.flip(-2), batch.frames)
    if swap_A is None:
        return Batch(frames, batch.actions)
    return Batch(frames, torch.where(odd, swap_A[batch.actions], batch.actions))
