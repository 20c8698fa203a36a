"""Runs a sweep: each training is a process of its own, so that one that dies takes nothing with it."""

import contextlib
import fcntl
import math
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from vadapter.base import exit_codes, files
from vadapter.base.errors import UserError
from vadapter.runs import sweep_table
from vadapter.runs.sweep import FILE, Arm, Run, Setting, Sweep, edges, ranked, to_json
from vadapter.runs.sweep_table import LOG, Line, loss_at

LOCK = "sweep.lock"
WORKER = "{worker}"
# Of a training that was told to stop, by itself or by a signal: the same command goes on with it.
_STOPPED = (exit_codes.INTERRUPTED, exit_codes.STOPPED, -signal.SIGTERM, -signal.SIGINT)
Command = Callable[[Run, int | None], Sequence[str]]
Say = Callable[[str], None]


class StoppedError(Exception):
    """The sweep was told to stop; what was running has saved where it could."""


class _Workers:
    """Processes, so many at a time, that end together when the sweep is told to stop."""

    def __init__(self, number: int, environment: Mapping[str, str], lock: IO[str]):
        self.pool = ThreadPoolExecutor(number)
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for worker in range(number):
            self.free.put(worker)
        self.environment, self.lock = environment, lock
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.guard = threading.Lock()

    def run(self, command: Sequence[str], log: Path) -> int:
        """Runs a command, adds what it prints to its log, and returns its exit status."""
        worker = self.free.get()
        try:
            named = {name: value.replace(WORKER, str(worker)) for name, value in self.environment.items()}
            with log.open("ab") as written:
                with self.guard:
                    if self.stopping:
                        return exit_codes.STOPPED
                    # In a group of its own: Ctrl-C reaches the sweep alone, which lets its trainings save. They hold
                    # the sweep's lock with it, also where it is killed and they live on.
                    process = subprocess.Popen(
                        command,
                        stdout=written,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env={**os.environ, **named},
                        start_new_session=True,
                        pass_fds=(self.lock.fileno(),),
                    )
                    self.running.add(process)
                status = process.wait()
            with self.guard:
                self.running.discard(process)
            return status
        finally:
            self.free.put(worker)

    def stop(self) -> None:
        """Tells all processes to save and end, and starts no more."""
        with self.guard:
            self.stopping = True
            for process in self.running:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()


class SweepRunner:
    """Trains what a sweep still lacks, and keeps its table."""

    def __init__(
        self,
        sweep: Sweep,
        out: Path,
        command: Command,
        *,
        configurations: Mapping[Path, str] | None = None,
        retry: bool = False,
        say: Say = print,
    ):
        """Nothing is started yet.

        Args:
            sweep: what to train.
            out: its folder.
            command: gives the command that trains a run up to a step, or with None to its end.
            configurations: by the folder of a setting, what its gin files say; kept there as `config.gin`.
            retry: whether runs are tried again that failed by a user's mistake.
            say: is told of each run that ends.
        """
        self.sweep, self.out, self.command, self.retry, self.say = sweep, out, command, retry, say
        self.configurations = configurations or {}
        self.failed: dict[tuple[str, str, int], tuple[int, str]] = {}
        self.cut: dict[tuple[str, str], str] = {}  # (arm, setting): why it did not go on
        self.chosen: dict[str, Setting] = {}
        self.guard = threading.Lock()
        for found in sweep_table.read(out):
            if found["status"] == "failed":
                key = (found["arm"], found["name"], found["seed"])
                self.failed[key] = (found.get("exit_status", 1), found["note"])

    def run(self, workers: int = 1, environment: Mapping[str, str] | None = None) -> list[Line]:
        """Trains, a rung after the other, and returns the table.

        Args:
            workers: trainings at a time.
            environment: variables of their processes; `{worker}` in a value is the worker's number, from 0.

        Raises:
            UserError: another sweep is at work in this folder.
            StoppedError: it was told to stop (SIGTERM, Ctrl-C).
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out) as lock:
            files.write_json(self.out / FILE, to_json(self.sweep))
            for folder, text in self.configurations.items():
                folder.mkdir(parents=True, exist_ok=True)
                files.write_text(folder / "config.gin", text)
            self.workers = _Workers(workers, environment or {}, lock)
            if self.retry:
                self.failed.clear()
            else:  # what would fail again is left as it is; what was killed is tried again
                self.failed = {k: v for k, v in self.failed.items() if v[0] == UserError.exit_status}
            with self.workers.pool, _told_to_stop(self.workers.stop):
                try:
                    self._all()
                except KeyboardInterrupt:
                    self.workers.stop()
                    raise
            return self.write()

    def _all(self) -> None:
        sweep = self.sweep
        alive = {arm.name: arm.settings() for arm in sweep.arms}
        for step, keep in sweep.rungs:
            self._train(sweep.runs(alive, sweep.choosing), step)
            for arm in sweep.arms:
                alive[arm.name] = self._best(arm, alive[arm.name], step, keep)
        self._train(sweep.runs(alive, sweep.choosing))
        for arm in sweep.arms:
            mine = [self._line(Run(arm, s, seed)) for s in alive[arm.name] for seed in sweep.choosing]
            loss, setting = ranked(sweep, arm, alive[arm.name], self._loss(None))[0]
            # A training that was stopped from outside goes on at the next call, which then chooses.
            if math.isfinite(loss) and not any(found["status"] == "paused" for found in mine):
                self.chosen[arm.name] = setting
        self.write()
        self._train(sweep.runs({name: [setting] for name, setting in self.chosen.items()}, sweep.seeds))

    def _best(self, arm: Arm, settings: Sequence[Setting], step: int, keep: int) -> list[Setting]:
        order = ranked(self.sweep, arm, settings, self._loss(step))
        kept = {setting for _, setting in order[:keep]}
        for loss, setting in order[keep:]:
            self.cut[arm.name, setting.name] = (
                f"stopped early: validation loss {loss:.4g} at step {step} was not among the best {keep}"
            )
        self.write()
        return [setting for setting in settings if setting in kept]

    def _loss(self, step: int | None) -> Callable[[Run], float | None]:
        return lambda run: loss_at(self._line(run), step)

    def _line(self, run: Run) -> Line:
        found = sweep_table.line(self.sweep, run, self.out)
        if (cut := self.cut.get(run.key[:2])) and found["status"] == "paused":
            found |= {"status": "stopped", "note": cut}
        if found["status"] != "done" and run.key in self.failed:
            status, note = self.failed[run.key]
            found |= {"status": "failed", "exit_status": status, "note": note}
        if run.setting == self.chosen.get(run.arm.name):
            found |= {"chosen": True, "edge": " ".join(edges(run.arm, run.setting))}
        return found

    def write(self) -> list[Line]:
        """Writes the table of all runs that were begun or failed, and returns its lines."""
        with self.guard:
            every = self.sweep.runs({arm.name: arm.settings() for arm in self.sweep.arms}, self.sweep.seeds)
            order = [arm.name for arm in self.sweep.arms]
            lines = [found for found in map(self._line, every) if found["status"] != "waiting"]
            lines.sort(key=lambda found: order.index(found["arm"]))
            sweep_table.write(self.out, lines)
        return lines

    def _train(self, runs: Sequence[Run], until: int | None = None) -> None:
        waiting = [run for run in runs if self._is_waiting(run, until)]
        for _ in self.workers.pool.map(lambda run: self._one(run, until), waiting):
            pass  # an error of a worker is raised here
        if self.workers.stopping:
            self.write()
            raise StoppedError

    def _is_waiting(self, run: Run, until: int | None) -> bool:
        found = self._line(run)
        if found["status"] in ("done", "failed"):
            return False
        return until is None or not any(step >= until for step, _ in found["curve"])

    def _one(self, run: Run, until: int | None) -> None:
        if self.workers.stopping:
            return
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        status = self.workers.run(self.command(run, until), folder / LOG)
        paused = status == exit_codes.STOPPED and until is not None and not self.workers.stopping
        if status and status not in _STOPPED and not files.read_record(folder / "done.json"):
            self.failed[run.key] = (status, _last_line(folder / LOG))
        self.write()
        found = self._line(run)
        text = {"done": "done", "failed": f"FAILED: {found['note']}"}.get(
            found["status"], f"at step {until}" if paused else "stopped; the same command goes on with it"
        )
        loss = found["validation"]["last"]
        self.say(f"{run}: {text}{'' if loss is None else f'  validation loss {loss:.4f}'}")


def _last_line(log: Path) -> str:
    lines = [text.strip() for text in log.read_text(errors="replace").splitlines() if text.strip()]
    return lines[-1] if lines else "it printed nothing"


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another sweep, or a training that one has left, is at work in {out}. Wait for its end, or end it."
            ) from error
        yield file


@contextlib.contextmanager
def _told_to_stop(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at SIGTERM for as long as it is open; in other threads than the main one it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
