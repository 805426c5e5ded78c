"""Charts: round ticks, and SVG that parses, with every point where it belongs."""

from xml.etree import ElementTree

import pytest

from genie_fn.evaluation.report import charts
from genie_fn.evaluation.report.charts import Bar, Line


def picture(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.rindex("</svg>") + 6])


def points(svg: ElementTree.Element, css: str) -> list[tuple[float, float]]:
    (found,) = [node for node in svg.iter() if node.get("class") == css]
    return [tuple(map(float, pair.split(","))) for pair in found.get("points").split()]


@pytest.mark.parametrize("low, high", [(0, 1), (-0.7, 13.2), (12.01, 12.02), (5, 5), (0, 900)])
def test_ticks_are_round_few_and_cover_the_range(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in zip(found, found[1:], strict=False)}
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


def test_lines_lie_at_their_values():
    curve = Line("own", [1.0, 2.0, 4.0], [0.0, 1.0, 3.0], [2.0, 3.0, 5.0])
    svg = picture(charts.lines([curve], "a <title>", "dB"))
    (x1, y1), (x2, y2), (x3, y3) = points(svg, "line own")
    assert x2 - x1 == pytest.approx(x3 - x2) and (y2 - y3) == pytest.approx(2 * (y1 - y2), abs=0.3)
    assert len(points(svg, "band own")) == 6
    assert svg.get("aria-label") == "a <title>"


def test_a_copy_that_scores_100_does_not_set_the_scale():
    curves = [
        Line("own", [12.0] * 3, [11.0] * 3, [13.0] * 3),
        Line("copy_last", [90, 12, 11], [80, 11, 10], [100, 13, 12]),
    ]
    svg = picture(charts.lines(curves, "PSNR", "dB"))
    labels = [
        float(node.text) for node in svg.iter() if (node.text or "").replace(".", "").isdigit()
    ]
    assert max(labels) == 13
    inner = [node for node in svg if node.tag == "svg"]
    assert (
        len(inner) == 1 and len(inner[0]) == 4
    )  # what leaves the scale is cut off by the inner picture


def test_bars_are_as_long_as_their_shares():
    svg = picture(charts.bars([Bar("a", 0.5), Bar("b&", 0.25), Bar("c", 0.0)], "use", "own"))
    widths = [float(node.get("width")) for node in svg if node.tag == "rect"]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2) and widths[2] == 0
    assert [node.text for node in svg if node.tag == "text"] == [
        "a",
        "50.0%",
        "b&",
        "25.0%",
        "c",
        "0.0%",
    ]


def test_bars_have_their_intervals():
    svg = picture(
        charts.bars([Bar("a", 0.5, 0.4, 0.8), Bar("b", 0.2, 0.2, 0.2)], "solved", "own", left=100)
    )
    (width, _) = (float(node.get("width")) for node in svg if node.tag == "rect")
    marks = [(float(node.get("x1")), float(node.get("x2"))) for node in svg if node.tag == "line"]
    assert [(a - 100) / width for a, _ in marks] == pytest.approx(
        [0.8, 0.8, 1.6], abs=0.01
    )  # b's has no length
    assert (marks[0][1] - 100) / width == pytest.approx(1.6, abs=0.01)
    assert [float(node.get("x")) for node in svg if node.text == "50.0%"][0] > marks[0][1]
