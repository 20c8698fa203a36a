"""`preflight`'s result as one HTML file without anything from elsewhere."""

from pathlib import Path

from vadapter.base import pages
from vadapter.data.check.findings import MAX_NAMES, Lengths, Report

_WIDTH, _HEIGHT = 320, 90


def write(report: Report, path: str | Path, title: str = "Data check") -> None:
    """Writes the page."""
    content = {"report": report, "title": title, "bars": bars, "width": _WIDTH, "height": _HEIGHT}
    content["max_names"] = MAX_NAMES
    text = pages.render(Path(__file__).parent / "templates" / "check.html.j2", content)
    Path(path).write_text(text, encoding="utf-8")


def bars(lengths: Lengths) -> dict:
    """Returns a histogram as rectangles: (x, y, width, height, whether it is cut, what it says), and `limit`, the x of
    the room that a row has."""
    bins = lengths.bins()
    top = max((count for *_, count in bins), default=0)
    step = _WIDTH / max(len(bins), 1)
    found = []
    for i, (first, last, count) in enumerate(bins):
        tall = _HEIGHT * count / top
        name = f"{first}" if first == last else f"{first} to {last}"
        if count:
            found.append(
                (i * step, _HEIGHT - tall, step - 1, tall, last > lengths.room, f"{name} tokens: {count} texts")
            )
    width = bins[0][1] + 1 if bins else 1
    return {"rectangles": found, "limit": (lengths.room + 1) / width * step}
