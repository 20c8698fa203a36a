"""A picture for a README: the curves and a few examples in one standalone SVG file."""

import html
from pathlib import Path

from vadapter.base import pictures
from vadapter.reports import chart as charts
from vadapter.reports import comparison
from vadapter.reports.data import Comparison, Prediction, final_loss

_WIDTH, _CHART, _MARGIN = 960, 400, 24
_EXAMPLES = 4  # in the strip
_SIDE, _LINE = 148, 17  # of an example's picture, of a line of text


def write_picture(content: Comparison, path: str | Path) -> None:
    """Writes a standalone SVG: the loss chart, and below it a strip of the first records of the gallery.

    Their predictions are those of the run with the lowest loss and of the baseline.

    Args:
        content: the runs.
        path: the SVG file; its folder is made if missing.
    """
    shown = _two_runs(content)
    examples = comparison.gallery(content, _EXAMPLES)
    strip = _SIDE + 5 * _LINE + len(shown) * 3.5 * _LINE + _MARGIN
    height = round(_CHART + 2 * _MARGIN + (strip if examples else 0))
    chart = charts.line_chart(
        comparison.chart_series(content), _WIDTH - 2 * _MARGIN, _CHART, **comparison.chart_options(content)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' role="img" aria-label="{html.escape(content.title, quote=True)}">',
        f"<style>{charts.style()}.back{{fill:var(--paper);stroke:var(--rule)}}"
        "svg text.said{fill:var(--ink)}.good{fill:var(--good);font-weight:700}.bad{fill:var(--bad);font-weight:700}"
        "image.small{image-rendering:pixelated}</style>",
        f'<rect class="back" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="14"/>',
        f'<g transform="translate({_MARGIN} {_MARGIN})">{chart}</g>',
    ]
    column = (_WIDTH - _MARGIN) / _EXAMPLES
    for i, example in enumerate(examples):
        parts.append(f'<g transform="translate({_MARGIN + i * column:.1f} {_CHART + 2 * _MARGIN})">')
        parts.append(_example(example, shown, content, column - _MARGIN) + "</g>")
    parts.append("</svg>\n")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(parts), encoding="utf-8")


def _two_runs(content: Comparison) -> list[str]:
    known = [a for a in content.runs if final_loss(a) is not None]
    best = min(known, key=lambda a: final_loss(a) or 0.0, default=content.runs[0]).name
    return [best] + ([content.baseline] if content.baseline not in (None, best) else [])


def _example(example: comparison.SideBySide, shown: list[str], content: Comparison, width: float) -> str:
    """A picture, the question or reference, and the shown runs' predictions, drawn at (0, 0)."""
    uri = pictures.data_uri(pictures.strip(pictures.frames_in(example.row.thumbnail or "")[0]))
    most = int(width / 6.4)
    reference = example.row.references[0] if example.row.references else ""
    heading = [("said", line) for line in _wrap(example.row.question or "(caption)", most, 2)]
    heading += [("", line) for line in _wrap(reference, most, 2)]
    small = ' class="small"' if example.is_small else ""
    parts = [f'<image{small} href="{uri}" width="{_SIDE}" height="{_SIDE}" preserveAspectRatio="xMinYMin meet"/>']
    for i, (css, line) in enumerate(heading):
        parts.append(f'<text class="{css}" x="0" y="{_SIDE + 20 + _LINE * i}">{html.escape(line)}</text>')
    y = _SIDE + 20 + 4.2 * _LINE
    slots = {name: charts.slot(index) for name, index in comparison.colours(content).items()}
    for name, row in example.predictions:
        if name not in shown:
            continue
        mark, css = _verdict(row)
        parts.append(f'<g class="c{slots[name]}"><text class="name" x="0" y="{y:.1f}">{html.escape(name)}</text></g>')
        for i, line in enumerate(_wrap(row.prediction if row else "not measured", most - 2, 2)):
            lead = f'<tspan class="{css}">{mark}</tspan>' if i == 0 else ""
            parts.append(f'<text class="said" x="0" y="{y + _LINE * (i + 1):.1f}">{lead}{html.escape(line)}</text>')
        y += 3.5 * _LINE
    return "".join(parts)


def _verdict(row: Prediction | None) -> tuple[str, str]:
    if row is None or row.score is None:
        return "", ""
    return ("✓ ", "good") if row.score >= 0.995 else ("✗ ", "bad")


def _wrap(text: str, most: int, lines: int) -> list[str]:
    """Breaks a text into at most `lines` lines of about `most` characters; what does not fit ends in an ellipsis."""
    found = [""]
    for word in text.split():
        if found[-1] and len(found[-1]) + 1 + len(word) > most:
            found.append(word)
        else:
            found[-1] = f"{found[-1]} {word}".strip()
    if len(found) > lines:
        found = found[:lines]
        found[-1] = found[-1][: most - 1].rstrip() + "…"
    return [line if len(line) <= most else line[: most - 1] + "…" for line in found]
