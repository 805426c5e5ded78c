"""A few labelled transitions, whose recorded actions are used beside unlabelled clips.

A labelled transition is the last one of a short clip, which holds as many frames before it as the
model looks at. Which transitions these are depends on the dataset and the seed alone, and which of
them a step uses on the seed and the step, so a run that is continued uses the same ones.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import data, random
from genie_fn.data import Batch, Store, augment
from genie_fn.errors import UserError
from genie_fn.microbatch import Microbatch
from genie_fn.training import processes, setup
from genie_fn.training.config import RunConfig


class Labelled(NamedTuple):
    """N labelled transitions."""

    clips: Batch
    """(N, T, H, W, 3) uint8, and the recorded actions (N, 1) of their last transitions."""
    swap_A: Tensor | None
    """With --cfg.flip, the action that each is in a flipped clip: see `augment.flipped_actions`."""


def read(
    store: Store, cfg: RunConfig, count: int, num_frames: int, device: torch.device
) -> Labelled:
    """`count` transitions of the train split, at the ends of clips of `num_frames` frames.

    They are spread evenly over as many levels as possible. Raises UserError for datasets without
    recorded actions, with different ones, or with fewer transitions, and for names of actions that
    --cfg.flip cannot swap.
    """
    data.check_recorded_actions(store, "--cfg.labels")
    swap_A = None
    if cfg.flip:
        swap_A = torch.tensor(augment.flipped_actions(store.action_names), device=device)
    clips = processes.on_all(lambda: _read_clips(store, cfg, count, num_frames))
    frames, actions = setup.to_device(clips, device)
    return Labelled(Batch(frames, actions[:, -1:]), swap_A)


def _read_clips(store: Store, cfg: RunConfig, count: int, num_frames: int) -> Batch:
    reader = setup.clip_reader(store, "train", replace(cfg, num_frames=num_frames))
    available = len(data.clip_starts(reader.readable, "train", num_frames, reader.flags))
    if available < count:
        raise UserError(
            f"the train split of {store.name} has {available} transitions with {num_frames} frames, "
            f"fewer than --cfg.labels {count}: choose at most {available}"
        )
    return reader.fixed_batch(count, cfg.seed)


def draw(
    labelled: Labelled, key: Tensor, step: Tensor, clips: int, microbatch: Microbatch
) -> Batch:
    """The labelled transitions that a step uses in a microbatch of `clips` clips.

    There are as many of them as clips, drawn with replacement. With flips, every second one is flipped.
    """
    first = microbatch.first_clip(clips)
    row_B = random.bits(key, (clips,), row=first) % len(labelled.clips.actions)
    batch = Batch(labelled.clips.frames[row_B], labelled.clips.actions[row_B])
    if labelled.swap_A is None:
        return batch
    return augment.flip_half(batch, step, first, labelled.swap_A)
