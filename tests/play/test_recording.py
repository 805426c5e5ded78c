"""Recordings: what is written is read again, and invalid ones are refused."""

import base64
import copy
import json

import numpy as np
import pytest

from genie_fn.errors import UserError
from genie_fn.play import recording
from genie_fn.play.session import ActionRecord, Moment, Session

START = np.random.default_rng(0).integers(0, 256, (6, 8, 3), "u1")
RECORDS = (
    ActionRecord(2, None, 1.0, 8, False, "00000000"),
    ActionRecord(0, 7, 0.3, 1, True, "ffffffff"),
)


def played(records=RECORDS, kept=1, **fields):
    """A session of which the last `kept` generated frames are still there."""
    moments = tuple(
        Moment(START, START, START, START, None, record)
        for record in records[len(records) - kept :]
    )
    first = len(records) - kept + 1
    return Session(
        moments, len(records), 3, START, first=first, records=tuple(records[: first - 1]), **fields
    )


@pytest.fixture
def made():
    return json.loads(json.dumps(recording.write(played(), "me")))


def read(content):
    return recording.read(content, "me", (6, 8), 3)


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("level", [None, 12])
def test_what_is_written_is_read_again(kept, level):
    content = json.loads(json.dumps(recording.write(played(kept=kept, level=level), "me")))
    again = read(content)
    assert np.array_equal(again.start, START) and again[1:] == (3, level, RECORDS)


def test_a_recording_of_an_older_page_was_not_compiled(made):
    for frame in made["frames"]:
        del frame["compiled"]
    assert not any(record.compiled for record in read(made).records)


def test_a_session_longer_than_a_recording_is_refused(monkeypatch):
    monkeypatch.setattr(recording, "MAX_RECORDS", 1)
    with pytest.raises(UserError, match="longer"):
        recording.write(played(), "me")
    monkeypatch.undo()
    with pytest.raises(UserError, match="longer"):
        recording.write(Session((), 30_000, 0, START, records=RECORDS), "me")


WRONG = {
    "not a recording": ["format", "version"],
    "another world": ["world"],
    "damaged": ["frames"],
    "first frame": ["start"],
    "seed": ["seed"],
    "level": ["level"],
}
VALUES = [-1, 1.5, "x", True, [1], {"a": 1}, 2**80]


@pytest.mark.parametrize(
    ("words", "field"), [(words, field) for words, fields in WRONG.items() for field in fields]
)
@pytest.mark.parametrize("value", VALUES)
def test_a_wrong_field_is_a_sentence(made, words, field, value):
    value = False if field == "version" and value is True else value  # true is 1 here
    words = "newer version" if field == "version" and value == 2**80 else words
    with pytest.raises(UserError, match=words):
        read(made | {field: value})


@pytest.mark.parametrize("field", ["action", "real", "temperature", "steps", "hash"])
@pytest.mark.parametrize("value", [-1, [1], {"a": 1}, True, 2**2000, float("nan")])
def test_a_wrong_frame_is_named(made, field, value):
    made["frames"][1][field] = value
    with pytest.raises(UserError, match="^frame 2 of this recording is damaged"):
        read(made)


@pytest.mark.parametrize("content", [None, 3, [], "x", {}])
def test_what_is_no_recording_is_a_sentence(content):
    with pytest.raises(UserError, match="not a recording"):
        read(content)


def test_long_lists_and_files_that_are_no_image_are_refused(made):
    with pytest.raises(UserError, match="at most 10,000"):
        read(made | {"frames": made["frames"][:1] * 10_001})
    for start in (base64.b64encode(b"MZ").decode(), "no base64", None):
        with pytest.raises(UserError, match="first frame"):
            read(copy.deepcopy(made) | {"start": start})
    with pytest.raises(UserError, match="frame 1"):
        read(made | {"frames": ["x"]})
