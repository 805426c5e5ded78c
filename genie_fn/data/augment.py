"""Training batches in a mirror: left and right are then equally well known, though the data goes one way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genie_fn.data import Batch
from genie_fn.errors import UserError

SWAPPED = {"LEFT": "RIGHT", "RIGHT": "LEFT"}


def actions(names: Sequence[str]) -> list[int]:
    """For each recorded action the one that it is in a mirror: LEFT and RIGHT, in names such as LEFT+UP, swapped."""
    found = ["+".join(SWAPPED.get(key, key) for key in name.split("+")) for name in names]
    if sorted(found) != sorted(names) or found == list(names):
        told = ", ".join(names) or "without names"
        raise UserError(
            f"--cfg.mirror swaps LEFT and RIGHT, but the actions are {told}: leave it out"
        )
    return [list(names).index(name) for name in found]


def every_second(batch: Batch, step: Tensor, swap_A: Tensor | None) -> Batch:
    """A batch of tensors as step number `step` sees it: turned if that is odd, recorded actions through `swap_A`.

    Latent actions (no `swap_A`) are inferred from what is seen. By the step's number alone, so that a resumed run, and
    one of many processes, sees what any other would.
    """
    turned = step % 2 == 1
    pressed = (
        batch.actions
        if swap_A is None
        else torch.where(turned, swap_A[batch.actions], batch.actions)
    )
    return Batch(torch.where(turned, batch.frames.flip(-2), batch.frames), pressed)
