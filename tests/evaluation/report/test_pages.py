"""The pages: they parse, ask for nothing from outside, and contain what the record contains."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from genie_fn import random
from genie_fn.evaluation import record_file
from genie_fn.evaluation.record import Evaluation
from genie_fn.evaluation.report import headlines, pages
from genie_fn.evaluation.report.pages import Pictures
from genie_fn.evaluation.report.pictures import Picture
from genie_fn.evaluation.report.references import REFERENCES
from genie_fn.evaluation.report.verdicts import verdicts
from tests.evaluation import examples

VOID = {"meta", "img", "br", "line", "rect", "polygon", "polyline"}


class Reader(HTMLParser):
    """Collects text, attributes, and the tags left open."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, text):
        self.texts.append(text)


def check(text: str) -> Reader:
    """A whole page that needs nothing but itself."""
    read = Reader(text)
    assert read.open == []
    tags = {tag for tag, *_ in read.attributes}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    sources = [
        value
        for _, name, value in read.attributes
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert all(value.startswith("data:image/") for value in sources)
    assert "@import" not in text and "url(" not in text and "http" not in text.lower()
    assert ("meta", "name", "viewport") in read.attributes and "prefers-color-scheme: dark" in text
    return read


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return examples.evaluation()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    frames = random.randint(random.key(4), (3, 32, 16, 3), 0, 256).to(torch.uint8).numpy()
    clip = Picture(frames, "level 9: <12.3 dB>")
    return Pictures(
        [clip] * 2, [clip], [Picture(frames[:1], "code 0")], Picture(frames[:1], "decoded")
    )


def with_actions(evaluation: Evaluation, **changes) -> Evaluation:
    return replace(evaluation, actions=replace(evaluation.actions, **changes))


def test_the_page_needs_nothing_and_contains_the_record(evaluation, pictures):
    text = pages.report(evaluation, pictures)
    read = check(text)
    said = re.sub(r"\s+", " ", " ".join(read.texts))
    for row in headlines.ROWS:
        values = headlines.value(evaluation, row)
        if values is not None and not row.label.startswith("gain"):
            shown = headlines.show(values, row.digits)
            assert shown in said.replace(" dB", "").replace(" nats", ""), row.label
    for fact in (
        "f" * 64,
        "0123456789ab",
        "a machine",
        "runs/a & b/dynamics",
        "12,345",
        "0.123",
        "45.678",
        "7 steps",
    ):
        assert fact in said, fact
    for sentence in verdicts(evaluation):
        assert sentence in said
    for reference in REFERENCES:
        assert reference.published in said and reference.source in said
    other = replace(evaluation, data=replace(evaluation.data, meta={"import": {}}))
    assert "Beside published results" in text
    assert "Beside published results" not in pages.report(other, pictures)
    assert "<b>" in said and "level 9: <12.3 dB>" in said  # names are text, never markup
    gifs = [
        value
        for _, name, value in read.attributes
        if name == "src" and value.startswith("data:image/gif")
    ]
    assert len(gifs) == 3


def test_the_page_of_a_world_of_recorded_actions_and_of_unlabelled_video(evaluation, pictures):
    other = with_actions(evaluation, recorded=None, inverse_dynamics=None)
    assert "Dependence on the recorded" in pages.report(evaluation, pictures)
    assert "Dependence on the recorded" not in pages.report(other, pictures)
    other = with_actions(other, kind="recorded", names=["LEFT", "NOOP", "RIGHT", "JUMP"])
    said = " ".join(check(pages.report(other, pictures)).texts)
    assert "JUMP" in said and "conditioned on the recorded actions" in said
    assert "another kind of world" in said


def test_headlines_are_read_from_the_record(evaluation):
    curve = evaluation.rollouts["1"].moving.delta["random"]
    fourth = [curve.mean[3], curve.low[3], curve.high[3]]
    assert headlines.score("delta", "random", 4)(evaluation) == fourth
    assert headlines.score("delta", "random", "average")(evaluation) == curve.average
    assert headlines.score("delta", "random", 7)(evaluation) is None  # there are 6 frames
    assert headlines.value(evaluation, headlines.TOKENIZER_PSNR) == [23.456]
    assert headlines.score("psnr", "own_actions", 1, prompt=9)(evaluation) is None
    assert headlines.show([12.468, 11.9, 13.02], 2, " dB") == "12.47 dB [11.90, 13.02]"
    assert headlines.show(None) == "–"


def test_verdicts_follow_the_intervals(evaluation):
    control, copying, used, nmi, moves, transferred, labels, long = verdicts(evaluation)
    assert control.startswith("Controllability is significant")
    assert "at every frame" in copying and "in use" in used
    assert "125% of that of" in nmi
    assert "further left under 2" in moves and "further right under 0" in moves
    assert "correlation of 0.31 [0.20, 0.42]" in transferred and "0.61 from" in transferred
    assert "has dissolved by frame 50" in long
    assert "Fitted on 10, 50, 200 labelled" in labels and "100% of the transitions" in labels

    scores = evaluation.rollouts["1"].moving
    delta = {name: replace(curve, low=[-0.1] * 6) for name, curve in scores.delta.items()}
    protocol = replace(evaluation.rollouts["1"], moving=replace(scores, delta=delta))
    displacement = replace(evaluation.actions.displacement, dx_p=0.4, dy_p=0.3)
    other = with_actions(
        replace(evaluation, rollouts={"1": protocol}),
        displacement=displacement,
        state="collapsed: 97% of transitions have one code",
        inverse_dynamics=None,
    )
    control, copying, used, nmi, moves, *_ = verdicts(other)
    assert control.startswith("Controllability is not significant")
    assert "interval contains 0" in control and "at no frame" in copying
    assert "collapsed: 97%" in used and "inverse dynamics" not in nmi
    assert "does not differ significantly" in moves


def test_worlds_side_by_side(evaluation, tmp_path):
    other = with_actions(evaluation, recorded=None)
    other = replace(other, reconstruction=replace(other.reconstruction, psnr=31.25))
    for name, content in (("a", evaluation), ("b/evaluation", other)):
        (tmp_path / name).mkdir(parents=True)
        record_file.write(content, tmp_path / name)
    read = {name: record_file.read(tmp_path / name) for name in ("a", "b")}
    rows = {row[0]: row[1:] for row in headlines.table(read)}
    assert rows["tokenizer, PSNR"] == ["23.46 dB", "31.25 dB"]
    assert rows["NMI with recorded actions"][1] == "–"
    said = " ".join(check(pages.compare(read)).texts)
    assert "31.25 dB" in said and "not measured on the same clips" not in said
    elsewhere = replace(other, data=replace(other.data, hash="e" * 64))
    text = pages.compare({"a": evaluation, "b": elsewhere})
    assert "not measured on the same clips" in text
    former = pages.compare({"a": evaluation, "b": replace(other, of_schema=2)})
    assert "b: made by an earlier version" in former and "same clips" not in former
    both = {name: replace(evaluation, of_schema=2) for name in "ab"}
    assert pages.warnings(both) == []
