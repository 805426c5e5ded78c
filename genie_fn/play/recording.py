"""Recordings: all that it takes to dream a session again, as JSON; what comes from outside is checked throughout."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from genie_fn.data import video
from genie_fn.errors import UserError
from genie_fn.play.session import NOTES, Note, Session

FORMAT = {"format": "genie_fn recording", "version": 1}
MAX_STEPS = 64
MAX_TEMPERATURE = 10.0
MAX_LEVEL = 10**9
MAX_SEED = 2**53  # beyond, a page could not keep it exactly


class Recording(NamedTuple):
    """A recording that was read: where it starts, and what was done frame by frame."""

    start: np.ndarray  # (H, W, 3) uint8
    seed: int
    level: int | None
    notes: tuple[Note, ...]


def number(message: dict, name: str, low: int, high: int, default: int | None = None) -> int:
    """An integer of a message, if it is one in the range."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"the {name} should be a whole number from {low} to {high}")
    return value


def temperature(message: dict, default: float | None = None) -> float:
    """The temperature of a message."""
    value = message.get("temperature", default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= MAX_TEMPERATURE
    ):
        raise UserError(f"the temperature should be a number from 0 to {MAX_TEMPERATURE:g}")
    return float(value)


def made(session: Session, identity: str) -> dict:
    """The recording of a session up to its present frame; `identity` is the world's."""
    notes = (*session.notes, *(moment.note for moment in session.past() if moment.note is not None))
    if len(notes) > NOTES or len(notes) < session.at:
        raise UserError(
            f"a recording holds {NOTES:,} frames, and this session is longer: start anew, or go back"
        )
    image = io.BytesIO()
    Image.fromarray(session.start).save(image, "png")
    start = base64.b64encode(image.getvalue()).decode()
    fields = {"world": identity, "start": start, "seed": session.seed, "level": session.level}
    return FORMAT | fields | {"frames": [note._asdict() for note in notes]}


def read(content: Any, identity: str, size: tuple[int, int], choices: int) -> Recording:
    """A recording from outside, for a world with `choices` actions and frames of `size` (H, W).

    Raises UserError, in a sentence, for anything but a recording made in this world.
    """
    if not isinstance(content, dict) or {name: content.get(name) for name in FORMAT} != FORMAT:
        raise UserError(
            "this is not a recording that this version can read: choose a JSON file that was saved here"
        )
    if content.get("world") != identity:
        raise UserError("this recording was made in another world: play that one to see it again")
    frames = content.get("frames")
    if not isinstance(frames, list) or len(frames) > NOTES:
        raise UserError(
            f"this recording is damaged: it should hold a list of at most {NOTES:,} frames"
        )
    notes = []
    for t, frame in enumerate(frames, 1):
        try:
            notes.append(_note(frame, choices))
        except UserError as error:
            raise UserError(f"frame {t} of this recording is damaged: {error}") from error
    seed, level = number(content, "seed", 0, MAX_SEED), content.get("level")
    level = None if level is None else number(content, "level", 0, MAX_LEVEL)
    return Recording(_image(content.get("start"), size), seed, level, tuple(notes))


def _note(frame: Any, choices: int) -> Note:
    if not isinstance(frame, dict) or not isinstance(frame.get("hash"), str):
        raise UserError("it should be an object with a hash")
    real = None if frame.get("real") is None else number(frame, "real", 0, 255)
    action, steps = number(frame, "action", 0, choices - 1), number(frame, "steps", 1, MAX_STEPS)
    return Note(
        action, real, temperature(frame), steps, frame.get("compiled") is True, frame["hash"]
    )


def _image(text: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise UserError("this recording is damaged: its first frame cannot be read") from error
    return video.decode_image(content, *size, "the first frame of this recording")
