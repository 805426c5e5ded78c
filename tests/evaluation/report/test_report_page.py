"""The page and the comparison: they parse, ask for nothing from outside, and say what the record says."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from genie_fn import random
from genie_fn.errors import UserError
from genie_fn.evaluation import action_report, rollouts
from genie_fn.evaluation.action_report import Transitions
from genie_fn.evaluation.report import headlines, report_page
from genie_fn.evaluation.report.pictures import Picture
from genie_fn.evaluation.report.report_page import Pictures

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
def record() -> dict:
    real = random.randint(random.key(0), (8, 6, 16, 16, 3), 0, 256).to(torch.uint8)
    ways = [way for way in report_page.WAYS if way != "true_past"]
    scale = dict(zip(ways, (20, 40, 50, 30, 60), strict=True))

    def noisy(way: str) -> torch.Tensor:
        noise = random.randint(random.key(scale[way]), real.shape, -scale[way], scale[way] + 1)
        return (real.int() + noise).clamp(0, 255).to(torch.uint8)

    scores = rollouts.score(real, {way: noisy(way) for way in ways}, random.key(1))
    true, level = random.randint(random.key(2), (40, 5), 0, 3), torch.arange(40) // 10
    moved = torch.stack((1 - true, torch.zeros_like(true)), -1)
    names, seen = ("LEFT", "<b>", "RIGHT"), Transitions(true, true, level, moved)
    report = action_report.describe(seen, 4, names, True, random.key(3))
    report["probe"] = {"parameters": 10, "encoder_parameters": 20, "steps": 7, "seconds": 3.0}
    report["probe"] |= {"ratio": {"all": 1.25, "sides": None}}
    report["probe"] |= {kind: {"information": 0.8, "accuracy": 0.9} for kind in ("all", "sides")}
    made = {"psnr": 23.456, "ssim": 0.654, "codes": 1024, "codes_used": 853}
    where = {"device": "a machine", "threads": 2, "torch": "2.13"}
    return {
        "schema": headlines.SCHEMA,
        "config": {"run": "runs/a & b/dynamics", "frames": 6},
        "machine": where | {"commit": "0123456789abcdef", "date": "2026-01-01"},
        "models": {"tokenizer": 12345, "dynamics": 67890, "lam": 4242},
        "data": {
            "root": "data",
            "hash": "f" * 64,
            "split": "test",
            "clips": 8,
            "levels": 4,
            "meta": {"collection": {"env": "coinrun"}},
        },
        "seconds": {"tokenizer": 1.0},
        "reconstruction": made | {"unigram_entropy": 5.85, "perplexity": 347.0},
        "dynamics": {"cross_entropy": 3.412, "accuracy": 0.31},
        "rollouts": {"1": scores, "4": scores},
        "actions": report,
        "perceptual": {"reconstruction": {"lpips": 0.123}, "1": {"fid": 45.678}, "4": {}},
    }


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    frames = random.randint(random.key(4), (3, 32, 16, 3), 0, 256).to(torch.uint8).numpy()
    clip = Picture(frames, "level 9: <12.3 dB>")
    return Pictures(
        [clip] * 2, [clip], [Picture(frames[:1], "code 0")], Picture(frames[:1], "decoded")
    )


def test_the_page_needs_nothing_and_says_what_the_record_says(record, pictures):
    text = report_page.page(record, pictures)
    read = check(text)
    said = re.sub(r"\s+", " ", " ".join(read.texts))
    for row in headlines.ROWS:
        values = headlines.find(record, row.path)
        if values is not None and not row.label.startswith("gain"):
            assert headlines.show(values, row.digits) in said.replace(" dB", "").replace(
                " nats", ""
            ), row.label
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
    for sentence in headlines.verdicts(record):
        assert sentence in said
    assert all(
        reference.published in said and reference.source in said
        for reference in headlines.REFERENCES
    )
    other = record | {"data": record["data"] | {"meta": {"import": {}}}}
    assert (
        "Beside published results" in text
        and "Beside published results" not in report_page.page(other, pictures)
    )
    assert "<b>" in said and "level 9: <12.3 dB>" in said  # names are text, never markup
    assert (
        sum(
            name == "src" and value.startswith("data:image/gif")
            for _, name, value in read.attributes
        )
        == 3
    )


def test_the_page_of_a_world_of_true_actions_and_of_unlabelled_video(record, pictures):
    other = copy.deepcopy(record)
    for part in ("true", "probe"):
        del other["actions"][part]
    assert "told of the recorded" not in report_page.page(other, pictures)
    other["actions"] |= {"kind": "true", "names": ["LEFT", "NOOP", "RIGHT", "JUMP"]}
    said = " ".join(check(report_page.page(other, pictures)).texts)
    assert (
        "JUMP" in said and "takes the recorded actions" in said and "another kind of world" in said
    )


def test_nothing_that_json_cannot_hold(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_numbers_are_found_by_their_path(record):
    curve = record["rollouts"]["1"]["moving"]["delta"]["random"]
    fourth = [curve[end][3] for end in ("mean", "low", "high")]
    assert headlines.find(record, "rollouts.1.moving.delta.random@4") == fourth
    assert headlines.find(record, "rollouts.1.moving.delta.random@average") == curve["average"]
    assert headlines.find(record, "rollouts.1.moving.delta.random@7") is None  # there are 6 frames
    assert (
        headlines.find(record, "reconstruction.psnr") == [23.456]
        and headlines.find(record, "no.such") is None
    )
    assert (
        headlines.show([12.468, 11.9, 13.02], 2, " dB") == "12.47 dB [11.90, 13.02]"
        and headlines.show(None) == "–"
    )


def test_verdicts_follow_the_intervals(record):
    first, dreams, used, told, moves = headlines.verdicts(record)
    assert first.startswith("The world obeys") and "at every frame" in dreams and "in use" in used
    assert "125% of what" in told
    assert "further left under 2" in moves and "further right under 0" in moves
    other = copy.deepcopy(record)
    delta = other["rollouts"]["1"]["moving"]["delta"]
    delta["shuffled"]["low"] = delta["copy_last"]["low"] = [-0.1] * 6
    other["actions"]["displacement"] |= {"dx_p": 0.4, "dy_p": 0.3}
    other["actions"]["state"] = "collapsed: 97% of transitions have one code"
    del other["actions"]["probe"]
    first, dreams, used, told, moves = headlines.verdicts(other)
    assert first.startswith("It is not shown that the world obeys") and "at no frame" in dreams
    assert "collapsed: 97%" in used and "probe" not in told and "not shown" in moves


def test_worlds_side_by_side(record, tmp_path):
    other = copy.deepcopy(record)
    other["reconstruction"]["psnr"] = 31.25
    del other["actions"]["true"]
    for name, content in (("a", record), ("b/evaluation", other)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    records = {name: headlines.read(str(tmp_path / name)) for name in ("a", "b")}
    rows = {row[0]: row[1:] for row in report_page.comparison(records)}
    assert rows["tokenizer, PSNR"] == ["23.46 dB", "31.25 dB"]
    assert rows["information with recorded actions (NMI)"][1] == "–"
    said = " ".join(check(report_page.compare_page(records)).texts)
    assert "31.25 dB" in said and "not measured on the same clips" not in said
    other["data"]["hash"] = "e" * 64
    assert "not measured on the same clips" in report_page.compare_page({"a": record, "b": other})


def test_what_cannot_be_compared_is_refused(record, tmp_path):
    with pytest.raises(UserError, match="evaluate.py --cfg.run"):
        headlines.read(str(tmp_path))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        headlines.read(str(tmp_path))
    (tmp_path / "metrics.json").write_text(json.dumps(record | {"schema": 0}))
    with pytest.raises(UserError, match="schema 0"):
        headlines.read(str(tmp_path))
