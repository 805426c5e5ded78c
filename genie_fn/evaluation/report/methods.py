"""Names and colours of the methods that frames are predicted by."""

from typing import NamedTuple

from genie_fn.evaluation.record import Method


class Style(NamedTuple):
    """How a method appears on a page: its name, and its colour in light and dark."""

    name: str
    light: str
    dark: str


METHODS: dict[Method, Style] = {
    "own_actions": Style("the clip's own actions", "#1f62d0", "#6ea8ff"),
    "shuffled": Style("another clip's actions", "#c2570c", "#f59a4e"),
    "random": Style("random actions", "#b3205f", "#f272a8"),
    "joint": Style("own actions, joint decoding", "#12805c", "#4cc99c"),
    "teacher_forcing": Style("own actions, teacher forcing", "#7a4ccf", "#b394ff"),
    "copy_last": Style("copy of the last prompt frame", "#6b7280", "#a3adbb"),
    "copy_displaced": Style("the same, moved as the recorded picture", "#8a6d3b", "#c9a96a"),
}
