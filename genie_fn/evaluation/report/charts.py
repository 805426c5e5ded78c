"""Charts as SVG that stands in a page: lines with intervals, and bars. Colours are the page's, by class."""

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 40, 8, 12, 34


class Line(NamedTuple):
    """A curve over frames 1, 2, …: its class (and colour), its values, and the ends of their intervals, if any."""

    name: str
    mean: list[float]
    low: list[float] = []
    high: list[float] = []


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [round(step * i, 10) for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def lines(curves: list[Line], title: str, unit: str, zero: bool = False) -> str:
    """Curves with their intervals over the frames; `zero` draws the line at 0.

    The scale is that of the others where `copy_last`, which may leave it by far, is among them: it is cut off.
    """
    scaling = [curve for curve in curves if curve.name != "copy_last"] or curves
    values = [x for curve in scaling for x in (*curve.mean, *curve.low, *curve.high)] + [0.0] * zero
    marks = ticks(min(values), max(values))
    frames = len(curves[0].mean)

    def x(t: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (t - 1) / max(frames - 1, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (marks[-1] - value) / (marks[-1] - marks[0])

    def points(values: list[float]) -> list[str]:
        return [f"{x(t):.1f},{y(value):.1f}" for t, value in enumerate(values, 1)]

    parts = [
        _line(LEFT, y(m), WIDTH - RIGHT, y(m), "zero" if zero and m == 0 else "grid") for m in marks
    ]
    parts += [_text(LEFT - 6, y(m) + 4, f"{m:g}", "end") for m in marks]
    parts += [_text(x(t), HEIGHT - BOTTOM + 16, str(t), "middle") for t in range(1, frames + 1)]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 3, "frame t after the prompt", "middle"))
    across, down = (
        WIDTH - LEFT - RIGHT,
        HEIGHT - TOP - BOTTOM,
    )  # an inner picture cuts off what leaves it
    parts.append(
        f'<svg x="{LEFT}" y="{TOP}" width="{across}" height="{down}" viewBox="{LEFT} {TOP} {across} {down}">'
    )
    for curve in curves:
        band = " ".join(points(curve.low) + points(curve.high)[::-1])
        parts += [f'<polygon class="band {curve.name}" points="{band}"/>'] if band else []
    for curve in curves:
        parts.append(
            f'<polyline class="line {curve.name}" points="{" ".join(points(curve.mean))}"/>'
        )
    parts.append("</svg>")
    return _figure(parts, HEIGHT, title, unit)


def bars(
    values: list[float],
    labels: list[str],
    title: str,
    name: str,
    ends: list[tuple[float, float]] | None = None,
    left: int = 70,
) -> str:
    """Shares as horizontal bars with their percentages and, where given, the `ends` of their intervals. The labels take
    the `left` part."""
    row, ends = 24, ends or [(value, value) for value in values]
    most, parts = max([*values, *(high for _, high in ends), 1e-6]), []
    for i, (value, label, interval) in enumerate(zip(values, labels, ends, strict=True)):
        width, low, high = ((WIDTH - left - 52) * x / most for x in (value, *interval))
        parts.append(_text(left - 8, row * i + 17, label, "end"))
        parts.append(
            f'<rect class="bar {name}" x="{left}" y="{row * i + 4}" width="{width:.1f}" height="{row - 7}"/>'
        )
        if high > low:
            middle = row * i + 0.5 * (row + 1)
            parts.append(_line(left + low, middle, left + high, middle, "zero"))
            parts += [
                _line(left + x, middle - 4, left + x, middle + 4, "zero") for x in (low, high)
            ]
        parts.append(_text(left + max(width, high) + 6, row * i + 17, f"{value:.1%}", "start"))
    return _figure(parts, row * len(values) + 4, title, "")


def _figure(parts: list[str], height: float, title: str, unit: str) -> str:
    caption = escape(title) + (f" <small>{escape(unit)}</small>" if unit else "")
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure class=chart><figcaption>{caption}</figcaption>{svg}</figure>"


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
