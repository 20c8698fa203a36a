"""Waiting for batches: a thread asks for them, so that the run sees signals meanwhile and can say what it waits for."""

import contextlib
import datetime
import faulthandler
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from vadapter.base import signals
from vadapter.base.paths import is_remote

FILE = "waiting.txt"
_LOOK = 0.2  # seconds between two looks whether the run is told to stop
_END: Any = object()


class Feed:
    """Gives the items of an iterator, and watches over the wait for each.

    When one does not come for `patience` seconds, a line says what is waited for and since when, and the stacks of all
    threads go to MODEL_DIR/waiting.txt (to stderr where MODEL_DIR is in a bucket or cannot be written to); then again
    after twice the time, and so on. A run of one process that is told to stop does not wait on.

    Args:
        items: asked for one at a time, in a thread of its own. Its `close()` is called at the end, if it has one.
        what: is waited for, such as "the training data".
        patience: seconds; 0 says nothing, however long it takes.
        model_dir: folder of the run.
        say: is given the line.
    """

    def __init__(
        self,
        items: Iterator[Any],
        what: str,
        patience: float,
        model_dir: str,
        say: Callable[[str], None] = signals.say,
    ):
        self._items, self._what, self._patience, self._model_dir, self._say = items, what, patience, model_dir, say
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._waiting = False
        # A daemon: a reader that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True, name="feed")
        self._thread.start()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Any:
        """Returns the next item.

        Raises:
            signals.Stopped: the run is told to stop before it came.
        """
        self._waiting = True
        self._wanted.put(True)
        item, error = self._wait()
        self._waiting = False
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Ends the thread and closes the iterator. One that hangs is left alone."""
        if self._waiting:
            return
        self._wanted.put(False)
        self._thread.join()
        getattr(self._items, "close", lambda: None)()

    def _work(self) -> None:
        while self._wanted.get():
            try:
                self._found.put((next(self._items, _END), None))
            except BaseException as error:
                self._found.put((None, error))

    def _wait(self) -> tuple[Any, BaseException | None]:
        started, since = time.monotonic(), datetime.datetime.now()
        patience = self._patience or float("inf")
        while True:
            left = started + patience - time.monotonic()
            with contextlib.suppress(queue.Empty):
                return self._found.get(timeout=max(0.0, min(_LOOK, left)))
            if (current := signals.current()) and current.asked_alone():
                raise signals.Stopped
            if time.monotonic() - started >= patience:
                self._tell(since, patience)
                patience *= 2

    def _tell(self, since: datetime.datetime, seconds: float) -> None:
        where = f"{self._model_dir}/{FILE}"
        title = f"{self._what}: nothing came for {seconds:g} s, since {since:%H:%M:%S}"
        try:
            if is_remote(self._model_dir):
                raise OSError("the stacks need a file with a descriptor")
            with open(epath.Path(self._model_dir) / FILE, "a") as file:
                print(title, flush=True, file=file)
                faulthandler.dump_traceback(file)
        except OSError:  # or the folder is not there, as of an evaluation, or takes no more
            where = "stderr"
            faulthandler.dump_traceback(sys.__stderr__ or 2)
        process = f" (process {jax.process_index()})" if jax.process_count() > 1 else ""
        self._say(f"Waiting for {title}{process}. What each thread does is in {where}. Is the storage reachable?")


def watched(
    batches: Callable[[], Iterator[Any]], what: str, patience: float, model_dir: str
) -> Callable[[], Iterator[Any]]:
    """Returns batches of an evaluation that is left between two of them when the run is told to stop; see `Feed`.

    Where processes are many, each must have the same number of batches.
    """

    def again() -> Iterator[Any]:
        with contextlib.closing(Feed(batches(), what, patience, model_dir)) as feed:
            signals.point()
            for batch in feed:
                yield batch
                signals.point()

    return again
