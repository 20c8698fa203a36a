"""Line charts as plain SVG text: no plotting library, colours by CSS, so that they follow light and dark themes."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

# (light, dark) colours that stay apart for the common kinds of colour blindness, after Okabe and Ito. Marks differ too.
PALETTE = [
    ("#5d6673", "#a3adba"),
    ("#0b66b5", "#5ab4f5"),
    ("#c74e00", "#ff9452"),
    ("#00805f", "#35cf9f"),
    ("#9b3d8f", "#ea97d6"),
    ("#8a6d00", "#e9c53c"),
    ("#2b8aa0", "#8fd8ea"),
    ("#a11f3f", "#ff8fa6"),
]
_MARKS = "osdtx"
_FONT = 12
_CHAR = 6.6  # average width of a character at that size
_MAX_POINTS = 240
_CROSSING = "first step at or below it"


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: its name, (x, value) points by rising x, mostly steps, its place in the palette, and (x, low, high) of a
    band around it."""

    name: str
    points: Sequence[tuple[float, float]]
    index: int
    band: Sequence[tuple[float, float, float]] = ()


def slot(index: int) -> int:
    """The palette's colour for the index-th run; CSS classes `c0`, `c1`, ... carry it."""
    return index % len(PALETTE)


def style() -> str:
    """CSS for charts: theme colours as variables on `:root`, the colour classes, and the parts of a chart."""
    light = "".join(f"--c{i}:{c[0]};" for i, c in enumerate(PALETTE))
    dark = "".join(f"--c{i}:{c[1]};" for i, c in enumerate(PALETTE))
    light += "--ink:#1a1f27;--soft:#5b6472;--rule:#e3e6eb;--paper:#fff;--page:#f6f7f9;--good:#00704f;--bad:#b3261e;"
    dark += "--ink:#e8ebf0;--soft:#9aa4b2;--rule:#2c333d;--paper:#181c22;--page:#101318;--good:#4fd6a4;--bad:#ff8a80;"
    classes = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(PALETTE)))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
        f"svg text{{font:{_FONT}px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--soft)}}"
        "svg .grid{stroke:var(--rule);stroke-width:1}"
        "svg .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
        "svg .band{fill:var(--c);opacity:.16;stroke:none}"
        "svg .mark{fill:var(--c);stroke:var(--paper);stroke-width:1.5}"
        "svg .ring{fill:var(--paper);stroke:var(--c);stroke-width:2}"
        "svg .lead{stroke:var(--c);stroke-width:1;opacity:.5}"
        "svg .target{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}"
        "svg .key{--c:var(--soft)}svg text.name{fill:var(--c);font-weight:600}"
        "svg tspan.value{fill:var(--soft);font-weight:400}"
        "svg text.halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px}"
    )


def line_chart(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    target: tuple[str, float] | None = None,
    crossings: Mapping[str, int] | None = None,
    log_x: str = "",
    y: str = "validation loss",
) -> str:
    """Draws lines over a linear step axis, or another logarithmic one, and a logarithmic value axis.

    Values that are not finite and positive are left out.

    Args:
        series: the lines; each is labelled at its end.
        width, height: of the drawing, in its own units. Below 500 wide, lines are not labelled: give a legend.
        target: (label, value) of a dashed horizontal line.
        crossings: step at which a series reaches the target, marked with a ring and its number.
        log_x: name of a logarithmic x axis in place of the steps; every point is marked.
        y: name of the values.

    Returns:
        The content of an `<svg viewBox="0 0 width height">` element that `style` is applied to; "" without points.
    """
    series = [dataclasses.replace(s, points=_clean(s.points)) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return ""
    labelled = width >= 500
    right = min(0.3 * width, 26 + _CHAR * (6 + 1.1 * max(len(s.name) for s in series))) if labelled else 12
    frame = _Frame(44, 26, width - right, height - 40, series, target, log_x)
    parts = [_axes(frame, y), *(_band(frame, s) for s in series if s.band)]
    if target is not None:
        parts.append(_target(frame, target))
    parts += [_line(frame, s) for s in series]
    if target is not None and crossings:
        parts.append(_crossings(frame, series, target[1], crossings))
    if labelled:
        parts.append(_end_labels(frame, series))
    return "".join(parts)


class _Frame:
    """The plot area and its two scales."""

    def __init__(self, left, top, right, bottom, series: Sequence[Series], target, log_x=""):
        self.left, self.top, self.right, self.bottom, self.log_x = left, top, right, bottom, log_x
        self.xs = sorted({p[0] for s in series for p in s.points})
        values = [p[1] for s in series for p in s.points] + ([target[1]] if target and target[1] > 0 else [])
        values += [value for s in series for point in s.band for value in point[1:]]
        self.last = self.xs[-1] if log_x else max(self.xs[-1], 1)
        low, high = math.log(min(values)), math.log(max(values))
        pad = max(0.06 * (high - low), 0.02)
        self.low, self.high = low - pad, high + pad

    def x(self, step: float) -> float:
        share = step / self.last
        if self.log_x:  # with room at both sides, since the outermost points matter most
            span = math.log(self.last / self.xs[0])
            share = 0.06 + 0.88 * (math.log(step / self.xs[0]) / span if span else 0.5)
        return self.left + (self.right - self.left) * share

    def y(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.bottom - (self.bottom - self.top) * share


def _clean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    kept = [(s, float(v)) for s, v in points if v is not None and math.isfinite(v) and v > 0]
    every = -(-len(kept) // _MAX_POINTS)
    return kept[::every] + (kept[-1:] if every > 1 and kept[-1] != kept[::every][-1] else []) if kept else []


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{html.escape(text)}</text>'


def _axes(f: _Frame, y_name: str) -> str:
    parts = [_text(f.left - 36, f.top - 12, f"{y_name} (log scale)")]
    for value in log_ticks(math.exp(f.low), math.exp(f.high), int((f.bottom - f.top) / 36)):
        y = f.y(value)
        parts.append(f'<line class="grid" x1="{f.left}" x2="{f.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(f.left - 8, y + 4, f"{value:g}", anchor="end"))
    parts += _log_x_labels(f) if f.log_x else _step_labels(f)
    parts.append(_text((f.left + f.right) / 2, f.bottom + 36, f.log_x or "step", anchor="middle"))
    return "".join(parts)


def _step_labels(f: _Frame) -> list[str]:
    parts = []
    for step in linear_ticks(int(f.last), max(2, int((f.right - f.left) / 90))):
        anchor = "start" if step == 0 else "end" if f.x(step) > f.right - 10 else "middle"
        parts.append(_text(f.x(step), f.bottom + 18, f"{step:,}", anchor=anchor))
    return parts


def _log_x_labels(f: _Frame) -> list[str]:
    """The values that were tried, but for those that have no room beside the one before."""
    parts, end = [], -math.inf
    for value in f.xs:
        if f.x(value) - end >= 46:
            end = f.x(value)
            parts.append(_text(end, f.bottom + 18, f"{value:g}", anchor="middle"))
    return parts


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within [low, high], at most about `most`: the finest suitable choice of every decade, or equal
    steps where the range is too narrow for that."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for mantissas in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]):
        ticks = [float(f"{m * 10.0**d:.3g}") for d in decades for m in mantissas]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) > most and found:
            break
        found = ticks
    if len(found) < 3:
        step = _round_step((high - low) / max(most, 1))
        first = math.ceil(low / step)
        found = [float(f"{i * step:.6g}") for i in range(first, math.floor(high / step) + 1)]
    return found[:: -(-len(found) // max(most, 1))] if found else []


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    size = 10.0 ** math.floor(math.log10(least))
    return next(m * size for m in (1, 2, 5, 10) if m * size >= least * (1 - 1e-9))


def linear_ticks(last: int, most: int) -> list[int]:
    """0 and round steps up to `last`, at most about `most`."""
    return list(range(0, last + 1, round(_round_step(max(last / max(most, 1), 1)))))


def _mark(x: float, y: float, index: int) -> str:
    shape = _MARKS[index % len(_MARKS)]
    if shape == "o":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    paths = {"s": "M-4-4h8v8h-8z", "d": "M0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z", "t": "M0-5.5l5.2 9h-10.4z",
             "x": "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z"}  # fmt: skip
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{paths[shape]}"/>'


def _line(f: _Frame, s: Series) -> str:
    points = [(f.x(step), f.y(value)) for step, value in s.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    place = f"{f.log_x} {s.points[-1][0]:g}" if f.log_x else f"step {s.points[-1][0]:,}"
    title = f"<title>{html.escape(s.name)}: {s.points[-1][1]:.3f} at {html.escape(place)}</title>"
    marks = "".join(_mark(x, y, s.index) for x, y in (points if f.log_x else points[-1:]))
    line = f'<polyline class="line" points="{path}"/>{marks}'
    return f'<g class="c{slot(s.index)}">{title}{line}</g>'


def _band(f: _Frame, s: Series) -> str:
    around = [(x, high) for x, _, high in s.band] + [(x, low) for x, low, _ in reversed(s.band)]
    path = " ".join(f"{f.x(x):.1f},{f.y(value):.1f}" for x, value in around)
    return f'<g class="c{slot(s.index)}"><polygon class="band" points="{path}"/></g>'


def _target(f: _Frame, target: tuple[str, float]) -> str:
    """The dashed line, and its key at the top right, where falling curves leave room."""
    y, key = f.y(target[1]), f.right - _CHAR * max(len(target[0]), len(_CROSSING)) - 4
    line = f'<line class="target" x1="{f.left}" x2="{f.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    dash = f'<line class="target" x1="{key - 32:.1f}" x2="{key - 8:.1f}" y1="{f.top + 16}" y2="{f.top + 16}"/>'
    ring = f'<g class="key"><circle class="ring" cx="{key - 20:.1f}" cy="{f.top + 34}" r="4"/></g>'
    names = _text(key, f.top + 20, target[0], css="halo") + _text(key, f.top + 38, _CROSSING, css="halo")
    return line + dash + ring + names


def _crossings(f: _Frame, series: Sequence[Series], value: float, crossings: Mapping[str, int]) -> str:
    """Rings on the target line, each with its step above or below, unless neighbours' numbers are in the way."""
    parts, taken = [], {-10: -math.inf, 20: -math.inf}
    for step, s in sorted(((crossings[s.name], s) for s in series if s.name in crossings), key=lambda c: c[0]):
        x, y = f.x(step), f.y(value)
        title = f"<title>{html.escape(s.name)}: baseline's final loss at step {step:,}</title>"
        text = ""
        if (offset := next((o for o, end in taken.items() if x - end >= 34), None)) is not None:
            text, taken[offset] = _text(x, y + offset, f"{step:,}", anchor="middle", css="name halo"), x
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        parts.append(f'<g class="c{slot(s.index)}">{title}{ring}{text}</g>')
    return "".join(parts)


def _end_labels(f: _Frame, series: Sequence[Series]) -> str:
    """Names at the right, pushed apart where lines end close together."""
    ends = sorted(((f.y(s.points[-1][1]), s) for s in series), key=lambda e: e[0])
    gap, places = _FONT + 4, []
    for y, _ in ends:
        places.append(max(y, places[-1] + gap) if places else y)
    for i in range(len(places) - 1, -1, -1):
        limit = f.bottom if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit)
    parts = []
    for (y, s), place in zip(ends, places, strict=True):
        x = f.x(s.points[-1][0])
        lead = ""
        if abs(place - y) > 3 or x < f.right - 1:
            lead = f'<line class="lead" x1="{x + 6:.1f}" y1="{y:.1f}" x2="{f.right + 11:.1f}" y2="{place:.1f}"/>'
        name = _text(f.right + 14, place + 4, s.name, css="name")
        name = name.replace("</text>", f'<tspan class="value" dx="6">{s.points[-1][1]:.3f}</tspan></text>')
        parts.append(f'<g class="c{slot(s.index)}">{lead}{name}</g>')
    return "".join(parts)
