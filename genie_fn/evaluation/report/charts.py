"""Charts as SVG elements within a page: lines with intervals, and bars.

Colours come from the page's style, by class.

matplotlib would embed its own fonts and colours; these follow the page's light and dark style.
"""

import math
from typing import NamedTuple

from markupsafe import Markup

from genie_fn.evaluation.record import Curve

WIDTH = 420
HEIGHT = 250
LEFT = 40
RIGHT = 8
TOP = 12
BOTTOM = 34
ROW = 24  # height of a bar with its margin


class Line(NamedTuple):
    """A curve over frames 1, 2, …; `name` is its class.

    Without `low` and `high` it has no interval.
    """

    name: str
    mean: list[float]
    low: list[float] = []  # noqa: RUF012, never changed
    high: list[float] = []  # noqa: RUF012, never changed


def line(name: str, curve: Curve) -> Line:
    """A curve with its interval."""
    return Line(name, curve.mean, curve.low, curve.high)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    if high - low < 1e-6:
        low -= 0.5
        high += 0.5
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, last + 1)]


class Axes(NamedTuple):
    """The scale of a chart of lines."""

    marks: list[float]
    frames: int

    def x(self, t: float) -> float:
        """Where frame t is drawn."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (t - 1) / max(self.frames - 1, 1)

    def y(self, value: float) -> float:
        """Where a value is drawn."""
        share = (self.marks[-1] - value) / (self.marks[-1] - self.marks[0])
        return TOP + (HEIGHT - TOP - BOTTOM) * share

    def points(self, values: list[float]) -> list[str]:
        """A curve's points as SVG writes them."""
        return [f"{self.x(t):.1f},{self.y(value):.1f}" for t, value in enumerate(values, 1)]


def lines(curves: list[Line], title: str, unit: str, zero: bool = False) -> Markup:
    """Curves with their intervals over the frames; `zero` includes 0 in the scale and marks it.

    Copies of the prompt frame do not affect the scale beside other curves, because they may be far
    above: they are clipped.
    """
    scaling = [curve for curve in curves if not curve.name.startswith("copy_")] or curves
    values = [x for curve in scaling for x in (*curve.mean, *curve.low, *curve.high)]
    values += [0.0] if zero else []
    axes = Axes(ticks(min(values), max(values)), len(curves[0].mean))
    across = WIDTH - LEFT - RIGHT
    down = HEIGHT - TOP - BOTTOM
    clipped = Markup('<svg x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">')
    return _figure(
        [
            *_frame(axes, zero),
            clipped.format(LEFT, TOP, across, down),  # an inner picture clips what leaves it
            *(_band(axes, curve) for curve in curves if curve.low),
            *(_curve(axes, curve) for curve in curves),
            Markup("</svg>"),
        ],
        HEIGHT,
        title,
        unit,
    )


def _frame(axes: Axes, zero: bool) -> list[Markup]:
    """The grid and the labels of both axes."""
    parts = []
    for mark in axes.marks:
        style = "zero" if zero and mark == 0 else "grid"
        parts.append(_line(LEFT, axes.y(mark), WIDTH - RIGHT, axes.y(mark), style))
        parts.append(_text(LEFT - 6, axes.y(mark) + 4, f"{mark:g}", "end"))
    for t in range(1, axes.frames + 1):
        parts.append(_text(axes.x(t), HEIGHT - BOTTOM + 16, str(t), "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, "frame t after the prompt", "middle"))
    return parts


def _band(axes: Axes, curve: Line) -> Markup:
    points = " ".join(axes.points(curve.low) + axes.points(curve.high)[::-1])
    return Markup('<polygon class="band {}" points="{}"/>').format(curve.name, points)


def _curve(axes: Axes, curve: Line) -> Markup:
    points = " ".join(axes.points(curve.mean))
    return Markup('<polyline class="line {}" points="{}"/>').format(curve.name, points)


class Bar(NamedTuple):
    """A share with its label and, where known, its interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def bars(rows: list[Bar], title: str, name: str, left: int = 70) -> Markup:
    """Shares as horizontal bars of class `name` with their percentages.

    The labels are `left` wide.
    """
    largest = max([1e-6, *(row.value for row in rows), *(row.high or 0 for row in rows)])
    scale = (WIDTH - left - 52) / largest
    parts = [part for i, row in enumerate(rows) for part in _bar(row, ROW * i, left, scale, name)]
    return _figure(parts, ROW * len(rows) + 4, title, "")


def _bar(row: Bar, top: float, left: int, scale: float, name: str) -> list[Markup]:
    width = row.value * scale
    end = width
    shape = Markup('<rect class="bar {}" x="{}" y="{}" width="{:.1f}" height="{}"/>')
    parts = [
        _text(left - 8, top + 17, row.label, "end"),
        shape.format(name, left, top + 4, width, ROW - 7),
    ]
    if row.low is not None and row.high is not None and row.high > row.low:
        low, high = row.low * scale, row.high * scale
        middle = top + 0.5 * (ROW + 1)
        end = max(width, high)
        parts.append(_line(left + low, middle, left + high, middle, "zero"))
        parts += [_line(left + x, middle - 4, left + x, middle + 4, "zero") for x in (low, high)]
    parts.append(_text(left + end + 6, top + 17, f"{row.value:.1%}", "start"))
    return parts


def _figure(parts: list[Markup], height: float, title: str, unit: str) -> Markup:
    caption = Markup("{} <small>{}</small>").format(title, unit) if unit else Markup.escape(title)
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    drawn = svg.format(WIDTH, height, title, Markup("").join(parts))
    figure = Markup("<figure class=chart><figcaption>{}</figcaption>{}</figure>")
    return figure.format(caption, drawn)


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> Markup:
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(name, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    shape = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(x, y, anchor, text)
