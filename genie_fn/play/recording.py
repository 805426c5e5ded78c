"""Recordings: what generates a session again, as JSON; what is read is checked throughout."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from genie_fn.data import images
from genie_fn.errors import UserError
from genie_fn.play.session import MAX_RECORDS, ActionRecord, Session
from genie_fn.runtime import versions

VERSION = 1
FORMAT = {"format": "genie_fn recording", "version": VERSION}
MAX_STEPS = 64
MAX_TEMPERATURE = 10.0
MAX_LEVEL = 10**9
MAX_SEED = 2**53  # JavaScript represents larger integers only approximately


class Recording(NamedTuple):
    """A recording that was read."""

    start: np.ndarray
    """The start image, (H, W, 3) uint8."""
    seed: int
    level: int | None
    """The level of the real game that ran in parallel."""
    records: tuple[ActionRecord, ...]
    """What led to each frame."""


def number(message: dict, name: str, low: int, high: int, default: int | None = None) -> int:
    """An integer of a message. Raises UserError unless it is one from `low` to `high`."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"the {name} should be a whole number from {low} to {high}")
    return value


def temperature(message: dict, default: float | None = None) -> float:
    """The temperature of a message. Raises UserError unless it is from 0 to MAX_TEMPERATURE."""
    value = message.get("temperature", default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= MAX_TEMPERATURE
    ):
        raise UserError(f"the temperature should be a number from 0 to {MAX_TEMPERATURE:g}")
    return float(value)


def write(session: Session, identity: str) -> dict:
    """The recording of a session up to its present frame; `identity` is the world's fingerprint."""
    past = (moment.record for moment in session.past() if moment.record is not None)
    records = (*session.records, *past)
    if len(records) > MAX_RECORDS or len(records) < session.at:
        raise UserError(
            f"a recording holds {MAX_RECORDS:,} frames, and this session is longer: "
            "start a new one, or go back"
        )
    image = io.BytesIO()
    Image.fromarray(session.start).save(image, "png")
    return FORMAT | {
        "world": identity,
        "start": base64.b64encode(image.getvalue()).decode(),
        "seed": session.seed,
        "level": session.level,
        "frames": [_as_json(record) for record in records],
    }


def _as_json(record: ActionRecord) -> dict:
    """A record under the names of the format, in which the recorded action is called "real"."""
    fields = record._asdict()
    recorded = fields.pop("recorded")
    return fields | {"real": recorded}


def read(content: Any, identity: str, size: tuple[int, int], choices: int) -> Recording:
    """A recording for a world with `choices` actions and frames of `size` (H, W).

    Raises UserError for anything but a valid recording made in this world, and NewerVersion for one
    of a later version.
    """
    if isinstance(content, dict) and content.get("format") == FORMAT["format"]:
        versions.check("this recording", content.get("version"), VERSION)
    if not isinstance(content, dict) or {name: content.get(name) for name in FORMAT} != FORMAT:
        raise UserError(
            "this is not a recording that this version can read: "
            "choose a JSON file that this page has saved"
        )
    if content.get("world") != identity:
        raise UserError("this recording was made in another world: play that world to replay it")
    seed = number(content, "seed", 0, MAX_SEED)
    level = content.get("level")
    if level is not None:
        level = number(content, "level", 0, MAX_LEVEL)
    records = _records(content.get("frames"), choices)
    return Recording(_image(content.get("start"), size), seed, level, records)


def _records(frames: Any, choices: int) -> tuple[ActionRecord, ...]:
    if not isinstance(frames, list) or len(frames) > MAX_RECORDS:
        raise UserError(
            f"this recording is damaged: it should hold a list of at most {MAX_RECORDS:,} frames"
        )
    records = []
    for t, frame in enumerate(frames, 1):
        try:
            records.append(_record(frame, choices))
        except UserError as error:
            raise UserError(f"frame {t} of this recording is damaged: {error}") from error
    return tuple(records)


def _record(frame: Any, choices: int) -> ActionRecord:
    if not isinstance(frame, dict) or not isinstance(frame.get("hash"), str):
        raise UserError("it should be an object with a hash")
    recorded = frame.get("real")
    if recorded is not None:
        recorded = number(frame, "real", 0, 255)
    return ActionRecord(
        number(frame, "action", 0, choices - 1),
        recorded,
        temperature(frame),
        number(frame, "steps", 1, MAX_STEPS),
        frame.get("compiled") is True,
        frame["hash"],
    )


def _image(text: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise UserError("this recording is damaged: its first frame cannot be read") from error
    return images.decode_image(content, *size, "the first frame of this recording")
