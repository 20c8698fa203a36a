"""Progress bars on a terminal, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives `show(name, done, total)`, which moves the bar of that name on stderr, and makes it when it is new."""
    from rich import progress
    from rich.console import Console

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    made: dict[str, Any] = {}
    with progress.Progress(
        *(*columns, progress.TimeRemainingColumn()), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as drawn:

        def show(name: str, done: int, total: int) -> None:
            if name not in made:
                made[name] = drawn.add_task(name, total=total)
            drawn.update(made[name], completed=done)

        yield show
