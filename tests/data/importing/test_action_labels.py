"""Files of recorded actions: what is read, and the file and the line in the message of an error."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genie_fn.data.importing import action_labels
from genie_fn.errors import UserError


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


READ = {
    "names.csv": ("action\nLEFT\nRIGHT\n", "row", [0, 1], ["LEFT", "RIGHT"]),
    "bare.csv": ("3\n0\n\n2\n", "row", [0, 1, 2], [3, 0, 2]),
    "frames.csv": (
        '\ufeffFrame,Action,fps\n0,LEFT,30\r\n7,"A, B",30\r\n',
        "frame",
        [0, 7],
        ["LEFT", "A, B"],
    ),
    "times.csv": ("action,time\n1,0\n2,0.25\n", "time", [0, 0.25], [1, 2]),
    "bare.jsonl": ('"LEFT"\n"RIGHT"\n', "row", [0, 1], ["LEFT", "RIGHT"]),
    "frames.jsonl": (
        '{"frame": 0, "action": 2}\n\n{"frame": 9, "action": 0, "x": [1]}\n',
        "frame",
        [0, 9],
        [2, 0],
    ),
    "whole.csv": ("action\n3.0\n0.0\n", "row", [0, 1], [3, 0]),
    "whole.jsonl": ("3.0\n0\n", "row", [0, 1], [3, 0]),
    "pairs.csv": (
        'action\n"0, 1"\n1 0\n1_0\n',
        "row",
        [0, 1, 2],
        ["0, 1", "1 0", "1_0"],
    ),
    "times.jsonl": (
        '{"time": 0, "action": "A"}\n{"time": 1.5, "action": "B"}',
        "time",
        [0, 1.5],
        ["A", "B"],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_rows_are_read_with_their_positions(tmp_path, name):
    text, by, at, actions = READ[name]
    file = action_labels.read(write(tmp_path, name, text))
    assert (file.by, file.at.tolist(), file.actions) == (by, at, actions)


WRONG = {
    "empty.csv": ("\n\n", "holds no actions"),
    "header.csv": ("frame,action\n", "holds no actions"),
    "latin.csv": ("action\nÄ".encode("latin-1"), "UTF-8"),
    "cells.csv": ("frame,action\n0,1\n1,2,3\n", "line 3 has 3 cells for 2 columns"),
    "two.csv": ("0,LEFT\n1,RIGHT\n", "line 1 names no column for the action"),
    "quotes.csv": ('action\n"LEFT\n', "is not CSV"),
    "late.csv": ("frame,action\n3,LEFT\n", "line 2 is the first, and begins at frame 3"),
    "order.csv": ("frame,action\n0,1\n2,1\n2,0\n", "line 4 has the frame '2', not after"),
    "half.csv": ("frame,action\n0,1\n1.5,1\n", "line 3 has the frame '1.5'"),
    "nan.csv": ("time,action\n0,1\nnan,1\n", "line 3 has the time 'nan'"),
    "both.csv": ("time,frame,action\n0,0,1\n", "line 2 needs an action"),
    "nothing.csv": ("frame,action\n0,\n", "line 2 has the action ''"),
    "large.csv": ("action\n65536\n", "line 2 has the action '65536'"),
    "long.csv": ("action\n" + "x" * 41 + "\n", "line 2 has the action"),
    "json.jsonl": ("3\n{\n", "line 2 is not JSON"),
    "deep.jsonl": ("[" * 100_000, "line 1 "),
    "list.jsonl": ("[1]", "line 1 has the action"),
    "digits.jsonl": ("1" * 5000, "line 1 is not JSON"),
    "float.jsonl": ("1.5", "line 1 has the action 1.5"),
    "real.csv": ("action\n1\n-0.018\n", "line 3 has the action '-0.018', a continuous value"),
    "tiny.csv": ("action\n2e-3\n", "line 2 has the action '2e-3', a continuous value"),
    "vector.csv": ('action\n"[0.1, 1]"\n', "line 2 has the action '[0.1, 1]', a continuous value"),
    "vector.jsonl": ("[0.1, 1]", "line 1 has the action [0.1, 1], a continuous value"),
    "negative.csv": ("action\n-1\n", "line 2 has the action '-1'"),
    "infinite.csv": ("action\ninf\n", "line 2 has the action 'inf'"),
    "truth.jsonl": ("true", "line 1 has the action True"),
    "null.jsonl": ('{"frame": null, "action": 1}', "line 1 has the frame None"),
    "missing.jsonl": ('{"frame": 1}', "line 1 needs an action"),
    "fields.jsonl": ('{"frame": 0, "action": 1}\n2\n', "line 2 has other fields than line 1"),
    "infinite.jsonl": (
        '{"time": 0, "action": 1}\n{"time": Infinity, "action": 1}',
        "line 2 has the time inf",
    ),
    "huge.jsonl": (
        '{"time": 0, "action": 1}\n{"time": ' + "9" * 400 + ', "action": 1}',
        "line 2 has the time",
    ),
}


def one_sentence(error):
    message = str(error.value)
    return "\n" not in message and not message.endswith(".") and len(message) < 400


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_one_sentence_with_the_line(tmp_path, name):
    text, words = WRONG[name]
    with pytest.raises(UserError, match=re.escape(words)) as error:
        action_labels.read(write(tmp_path, name, text))
    assert name in str(error.value) and one_sentence(error)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = write(tmp_path, "a.csv", "")
    with open(path, "wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match="larger than 64 MB"):
        action_labels.read(path)


def labels(tmp_path, name, *actions):
    return action_labels.read(
        write(tmp_path, name, "action\n" + "\n".join(map(str, actions)) + "\n")
    )


def test_names_are_sorted_and_numbers_are_their_own_names(tmp_path):
    first, second = labels(tmp_path, "a.csv", "UP", "LEFT"), labels(tmp_path, "b.csv", "NOOP", "UP")
    assert action_labels.action_names([first, second]) == ("LEFT", "NOOP", "UP")
    assert action_labels.to_ids(first, ("LEFT", "NOOP", "UP")).ids.tolist() == [2, 0]
    numbers = labels(tmp_path, "c.csv", 3, 0)
    assert action_labels.action_names([numbers]) == ("0", "1", "2", "3")
    assert action_labels.to_ids(numbers, ("0", "1", "2", "3")).ids.tolist() == [3, 0]
    assert action_labels.action_names([]) == ()


def test_inconsistent_actions_are_refused(tmp_path):
    names, numbers = labels(tmp_path, "a.csv", "UP"), labels(tmp_path, "b.csv", 1)
    with pytest.raises(UserError, match=r"b\.csv are numbers and those of .*a\.csv names"):
        action_labels.action_names([names, numbers])
    with pytest.raises(
        UserError, match=r"a\.csv line 2 has the action 'UP', which is none of LEFT, RIGHT"
    ):
        action_labels.to_ids(names, ("LEFT", "RIGHT"))
    with pytest.raises(UserError, match="65537 different actions"):
        action_labels.action_names([labels(tmp_path, "c.csv", *(f"a{i}" for i in range(65_537)))])


def test_many_vectors_of_numbers_are_refused(tmp_path):
    pairs = [f"0,{i:03d}" for i in range(65)]  # such as decimal commas
    few = labels(tmp_path, "a.csv", *(f'"{pair}"' for pair in pairs[:64]))
    assert len(action_labels.action_names([few])) == 64
    with pytest.raises(UserError, match="65 different groups of numbers, such as '0,000'"):
        action_labels.action_names([labels(tmp_path, "b.csv", *(f'"{pair}"' for pair in pairs))])


def test_an_action_holds_until_the_next_row(tmp_path):
    table = write(tmp_path, "a.csv", "frame,action\n0,5\n2,7\n4,5\n")
    track = action_labels.to_ids(action_labels.read(table), tuple(map(str, range(8))))
    assert action_labels.per_frame(track, 1, np.zeros(5)).tolist() == [5, 7, 7, 5, 5]
    assert action_labels.mismatch(track, 5) == "" and "4" in action_labels.mismatch(track, 4)


def fuzz(tmp_path, content, suffix):
    path = write(tmp_path, f"fuzzed{suffix}", content)
    try:
        file = action_labels.read(path)
        action_labels.to_ids(file, action_labels.action_names([file]))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500


WORDS = [
    "action",
    "frame",
    "time",
    ",",
    ",",
    "\n",
    "\n",
    "\r",
    "0",
    "1",
    "7",
    "1e999",
    "-1",
    "LEFT",
    '"',
    "{",
    "}",
    ":",
]
WORDS += [
    '{"action": 1}\n',
    '{"frame": 0, "action": "A"}\n',
    "action\n",
    "frame,action\n",
    "[",
    "NaN",
    "null",
    "\0",
    "é",
]
CASES = given(
    st.one_of(
        st.lists(st.sampled_from(WORDS), max_size=30).map(lambda words: "".join(words).encode()),
        st.binary(),
    ),
    st.sampled_from([".csv", ".jsonl"]),
)
QUIETLY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=200, **QUIETLY)
@CASES
def test_any_text_is_read_or_refused(tmp_path, careful, content, suffix):
    fuzz(tmp_path, content, suffix)


@pytest.mark.slow
@settings(max_examples=2000, **QUIETLY)
@CASES
def test_any_text_is_read_or_refused_at_length(tmp_path, careful, content, suffix):
    fuzz(tmp_path, content, suffix)
