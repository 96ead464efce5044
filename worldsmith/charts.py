"""Line charts as inline SVG, without a library: they take the page's colours, light or dark, from its CSS.

A chart is 440 units wide and scales with the page; numbers enter as numbers and text is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 38.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    name: str
    css: str
    """A class of the page's style sheet: series-1, series-2, faint."""
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point with an interval."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    x_label: str
    y_label: str
    percent: bool = False
    """y is a share, shown as per cent from 0 to at least 50."""
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def line_chart(lines: Sequence[Line], axes: Axes, marks: Sequence[Mark] = ()) -> Markup:
    """The chart, or an empty string where there is nothing to draw yet."""
    xs = [x for line in lines for x, _ in line.points] + [mark.x for mark in marks]
    ys = [y for line in lines for _, y in line.points]
    ys += [bound for mark in marks for bound in (mark.low, mark.high)]
    if not xs:
        return Markup("")
    log = axes.log_y and min(ys) > 0
    low, high = _y_range(ys, percent=axes.percent, log=log)
    x_scale = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_scale = Scale(low, high, HEIGHT - BOTTOM, TOP, log)
    y_ticks = log_ticks(low, high) if log else ticks(low, high, 5)
    body = [_y_axis(y_ticks, y_scale, axes), _x_axis(x_scale, axes)]
    body += [_line(line, x_scale, y_scale) for line in lines if line.points]
    body += [_mark(mark, x_scale, y_scale) for mark in marks]
    label = escape(f"{axes.y_label} by {axes.x_label}")
    return Markup(f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{label}">') + (
        Markup("").join(body) + Markup("</svg>")
    )


def sparkline(values: Sequence[float]) -> Markup:
    """A curve of 120 by 32 units, without axes."""
    if len(values) < 2:
        return Markup("")
    x = Scale(0, len(values) - 1, 2, 118)
    y = Scale(min(values), max(values), 29, 3)
    path = _path([(x(i), y(value)) for i, value in enumerate(values)])
    return Markup(f'<svg class="spark" viewBox="0 0 120 32" aria-hidden="true"><path d="{path}"/></svg>')


def trailing_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each y as the mean of itself and those before it, `window` in all: it never shows what was to come."""
    smooth = []
    for i in range(len(points)):
        recent = [y for _, y in points[max(0, i - window + 1) : i + 1]]
        smooth.append((points[i][0], sum(recent) / len(recent)))
    return smooth


def thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most about `most` of the points, evenly, the last one among them."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; the powers alone where those are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(exponents) <= 3 else (1,)
    values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _y_range(ys: Sequence[float], *, percent: bool, log: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if percent:
        return 0.0, min(1.0, max(0.5, math.ceil(high * 10 + 0.2) / 10))
    if log:
        return low / 1.1, high * 1.1
    room = (high - low or abs(high) or 1.0) * 0.06
    return (0.0 if 0 <= low < high / 3 else low - room), high + room


def _y_axis(values: Sequence[float], scale: Scale, axes: Axes) -> Markup:
    parts = []
    for value in values:
        y = scale(value)
        text = f"{100 * value:.0f}%" if axes.percent else f"{value:.4g}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    return Markup("".join(parts))


def _x_axis(scale: Scale, axes: Axes) -> Markup:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for value in ticks(scale.low, scale.high, 6):
        parts.append(
            f'<text x="{scale(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:,.6g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = escape(axes.x_label)
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{name}</text>')
    return Markup("".join(parts))


def _line(line: Line, x: Scale, y: Scale) -> Markup:
    points = [(x(px), y(py)) for px, py in line.points]
    title = Markup("<title>{}</title>").format(line.name)
    if len(points) == 1:
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.5">{}</circle>').format(
            line.css, *points[0], title
        )
    return Markup('<path class="line {}" d="{}">{}</path>').format(line.css, _path(points), title)


def _mark(mark: Mark, x: Scale, y: Scale) -> Markup:
    at, low, high = x(mark.x), y(mark.low), y(mark.high)
    title = Markup("<title>{}</title>").format(mark.title)
    return Markup(
        f'<g class="mark"><line x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<line x1="{at - 4:.1f}" x2="{at + 4:.1f}" y1="{low:.1f}" y2="{low:.1f}"/>'
        f'<line x1="{at - 4:.1f}" x2="{at + 4:.1f}" y1="{high:.1f}" y2="{high:.1f}"/>'
        f'<circle cx="{at:.1f}" cy="{y(mark.y):.1f}" r="4"/>{title}</g>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
