"""Held-out clips for other programs to predict, and the frames that these have generated.

A folder holds `clips.npz`, which `write` makes, and one NumPy file per method, which any program
may make: `own_actions.npy`, and if it can `shuffled.npy`, `random.npy` and `reconstruction.npy`.
"""

import io
import tokenize
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, random
from genie_fn.data import Store
from genie_fn.errors import UserError
from genie_fn.evaluation import rollouts
from genie_fn.evaluation.record import Method
from genie_fn.evaluation.rollouts import Videos
from genie_fn.runtime import files

FILE = "clips.npz"
RECONSTRUCTION = "reconstruction.npy"
METHODS: tuple[Method, ...] = ("own_actions", "shuffled", "random")
"""Those whose frames other programs generate; each has its own actions."""
MAX_BYTES = 4 << 30
"""Of a file."""
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,  # and its NotImplementedError, for flags of archives
    BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What NumPy raises for files that are damaged, or that claim to be larger than any memory."""


class Task(NamedTuple):
    """Clips whose frames after the prompt are to be predicted."""

    frames: np.ndarray
    """(B, T, H, W, 3) uint8, of which the first `prompt` may be looked at."""
    prompt: int
    level: np.ndarray
    """(B,) int64."""
    actions: dict[Method, np.ndarray]
    """By method, (B, T-1) int64: recorded actions; none for data without them."""
    about: str
    """The dataset, its split and its stride."""

    @property
    def future(self) -> Tensor:
        """The frames to predict, (B, F, H, W, 3)."""
        return torch.from_numpy(self.frames[:, self.prompt :])


def make(store: Store, split: str, clips: int, prompt: int, frames: int, seed: int) -> Task:
    """Clips of a split, spread over its levels, and the actions of every method.

    Raises UserError if there are too few.
    """
    length = prompt + frames
    flags = "--cfg.clips, --cfg.frames or --cfg.prompt"
    offsets = data.eval_clips(store, split, length, clips, seed, flags)
    batch = data.read_clips(store, offsets, length)
    level = np.asarray(store.arrays["level_seeds"][offsets].read().result()).astype(np.int64)
    actions: dict[Method, np.ndarray] = {}
    if store.num_actions:
        own = torch.from_numpy(batch.actions.astype(np.int64))
        sequences = rollouts.action_sequences(own, prompt, random.key(seed))
        actions = {method: values.numpy() for method, values in sequences.items()}
    about = (
        f"{Path(store.root).name}, {split}, stride {store.stride}, {store.data_hash}, seed {seed}"
    )
    return Task(batch.frames, prompt, level, actions, about)


def write(task: Task, folder: Path) -> Path:
    """Write clips.npz; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    arrays: dict[str, Any] = {
        "frames": task.frames,
        "prompt": np.array(task.prompt),
        "level": task.level,
        "about": np.array(task.about),
    }
    arrays |= {f"actions_{method}": values for method, values in task.actions.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    files.write_atomically(path, content.getvalue())
    return path


def read(folder: str | Path) -> Task:
    """The clips in a folder. Raises UserError if there are none, or the file is damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"there is no {FILE} in {folder}: write it with "
            f"`python evaluate_frames.py --cfg.clips-to {folder}`"
        )
    _check_size(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            task = Task(
                frames=stored["frames"],
                prompt=int(stored["prompt"]),
                level=stored["level"].astype(np.int64),
                actions={
                    method: stored[f"actions_{method}"]
                    for method in METHODS
                    if f"actions_{method}" in stored
                },
                about=str(stored["about"]),
            )
    except DAMAGE as error:
        raise UserError(f"{path} is damaged: write it again") from error
    frames = task.frames
    fits = frames.ndim == 5 and frames.dtype == np.uint8 and task.level.shape == (len(frames),)
    if not fits or not 1 <= task.prompt <= frames.shape[1] - rollouts.HEADLINE:
        raise UserError(f"{path} is damaged: write it again")
    return task


def holds(folder: str | Path, task: Task) -> bool:
    """Whether the clips in a folder are those of `task`."""
    try:
        stored = read(folder)
    except UserError:
        return False
    same = stored.about == task.about and stored.prompt == task.prompt
    return same and np.array_equal(stored.frames, task.frames)


def generated(folder: str | Path) -> list[str]:
    """The files of generated frames in a folder."""
    names = [*(f"{method}.npy" for method in METHODS), RECONSTRUCTION]
    return [name for name in names if (Path(folder) / name).is_file()]


def read_videos(folder: str | Path, task: Task) -> Videos:
    """The frames that another program has generated, and those of the baselines.

    Raises UserError for a file that is missing, damaged or of another shape.
    """
    videos: Videos = {}
    for method in METHODS:
        path = Path(folder) / f"{method}.npy"
        if method == "own_actions" or path.is_file():
            videos[method] = _read_array(path, tuple(task.future.shape))
    return videos | rollouts.baselines(torch.from_numpy(task.frames[:, task.prompt - 1 :]))


def read_reconstruction(folder: str | Path, task: Task) -> Tensor | None:
    """Reconstructions of all frames of the clips; None without the file."""
    path = Path(folder) / RECONSTRUCTION
    return _read_array(path, task.frames.shape) if path.is_file() else None


def _read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    wanted = f"an array of {shape}, uint8"
    if not path.is_file():
        raise UserError(f"there is no {path}: save the generated frames there, {wanted}")
    _check_size(path)
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read: save {wanted}, with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.uint8:
        found = f"{array.shape}, {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} holds {found}: save {wanted}")
    return torch.from_numpy(array)


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 30} GiB: use fewer clips")
