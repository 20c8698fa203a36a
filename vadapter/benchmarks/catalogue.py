"""The table of benchmarks in data/README.md, made of their records. To make it anew:

python -m vadapter.benchmarks.catalogue
"""

from collections.abc import Iterable

from vadapter.benchmarks import table
from vadapter.benchmarks.benchmark import Benchmark, Split

_COLUMNS = (
    "task",
    "official site",
    "annotation files, in `manual_dir` or its `annotations/`",
    "media in `manual_dir`",
    "splits (rows)",
)


def row(benchmark: Benchmark) -> str:
    """The line of a benchmark, in Markdown."""
    splits = benchmark.splits.values()
    files = _code(name for split in splits for name in split.files)
    first = [f"{split.folders[0]}/" for split in splits if split.folders]
    other = [f"{folder}/" for split in splits for folder in split.folders[1:] if f"{folder}/" not in first]
    media = _code(first) + (f" (or {_code(other)})" if other else "")
    media += f", such as `{benchmark.example}`" if benchmark.example else ""
    cells = (
        f"`{benchmark.name}`",
        benchmark.site,
        _noted(files, benchmark.files_note),
        _noted(media, benchmark.media_note),
        ", ".join(_split(name, split, name == benchmark.evaluated) for name, split in benchmark.splits.items()),
    )
    return f"| {' | '.join(cells)} |"


def markdown() -> str:
    """The whole table."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "| --- " * len(_COLUMNS) + "|"]
    return "\n".join([*lines, *map(row, table.SHIPPED)])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _noted(text: str, note: str) -> str:
    return "; ".join(filter(None, (text, note)))


def _split(name: str, split: Split, evaluated: bool) -> str:
    said = [f"{split.size:,}"] if split.size else []
    said += [split.note] if split.note else []
    return (f"**{name}**" if evaluated else name) + (f" ({'; '.join(said)})" if said else "")


if __name__ == "__main__":
    print(markdown())
