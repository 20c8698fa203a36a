"""One process at a time in a run's folder: `MODEL_DIR/run.lock` says which one.

The file is made only where there is none, which disks and network file systems do in one step. Its process gives a
sign of life by the file's time of change. Of a lock that a process left when it was killed, another of the same host
sees that the process is gone; on another host it watches for a while, and takes the lock over where no sign comes.
Clocks of hosts are not compared. A bucket has no such step: there nothing is locked.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vadapter.base import json_text, terminal
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote

FILE = "run.lock"
BEAT = 15.0  # seconds between two signs of life
PATIENCE = 90.0  # seconds without one after which the process of another host is taken for gone
_TRIES = 20  # of making the file; each failure is another process that was quicker


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        token: tells this lock from others.
        host: name of its machine.
        machine: what tells apart machines, and containers, of one name.
        pid: its number there.
        started: when it started, in the kernel's ticks; tells it from a later process of the same number.
        folder: device and number of the folder, so that the lock in a copy of the folder is known to be a copy.
        since: when it took the lock, in UTC.
    """

    token: str = ""
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    started: str = ""
    folder: str = ""
    since: str = "an unknown time"

    @classmethod
    def here(cls, folder: Path) -> "Holder":
        """Returns this process, as holder of the lock of a folder."""
        stat, pid = folder.stat(), os.getpid()
        since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        place = f"{stat.st_dev}:{stat.st_ino}"
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid), place, since)

    def is_gone(self, here: "Holder") -> bool | None:
        """Whether it does not run any more, or holds the lock of another folder; None where that cannot be seen."""
        if (self.host, self.machine) != (here.host, here.machine):
            return None
        return self.folder != here.folder or _started(self.pid) != self.started or not _runs(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def held(
    model_dir: str, *, say: Callable[[str], None] = print, wait: Callable[[float], object] = time.sleep
) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if it is not there and removed if nothing came into it.

    Args:
        model_dir: the folder; of a bucket nothing is locked.
        say: is given a line where a lock is taken over or watched.
        wait: sleeps for so many seconds.

    Raises:
        UserError: another process holds it.
        OSError: the folder cannot be written to.
    """
    if is_remote(model_dir):
        yield
        return
    folder = Path(model_dir).absolute()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, ended = folder / FILE, threading.Event()
    beat = None
    try:
        mine = _take(path, Holder.here(folder), say, wait)
        beat = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True, name="run lock")
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            _remove(path, mine)
    finally:
        with contextlib.suppress(OSError):  # something is in it
            for place in made:
                place.rmdir()


def _take(path: Path, mine: Holder, say: Callable[[str], None], wait: Callable[[float], object]) -> Holder:
    for _ in range(_TRIES):
        try:
            _make(path, mine)
            return mine
        except FileExistsError:
            pass
        found = _read(path)
        if found is None:
            continue
        if found.token == mine.token:  # a network file system may make it and say that it was there
            return mine
        gone = found.is_gone(mine)
        if gone is None:
            say(f"{path} is held by {found}: looking for up to {PATIENCE:.0f} s whether that process still runs.")
            gone = not _shows_life(path, wait)
            if _read(path) is None:  # it was given up meanwhile
                continue
        if not gone:
            raise _busy(path, found)
        _remove(path, found)
        say(f"Took over {path}, which was left by {found}.")
    raise _busy(path, _read(path) or Holder())


def _busy(path: Path, holder: Holder) -> UserError:
    return UserError(
        f"Another process writes into {path.parent}: {holder}. Two would spoil the run. Wait for its end or end it, or "
        f"give another MODEL_DIR. If you are sure that no such process runs, delete {path}."
    )


def _make(path: Path, holder: Holder) -> None:
    number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(number, "w") as file:
            file.write(json.dumps(dataclasses.asdict(holder)) + "\n")
    except BaseException:
        path.unlink(missing_ok=True)  # a full disk: an empty lock would hold up the next process
        raise


def _read(path: Path) -> Holder | None:
    """The holder that a lock names, an unknown one where it does not say; None where there is no lock."""
    try:
        content: Any = json_text.loads(path.read_bytes())
        return Holder(**content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):  # it is just being written, or was cut
        return Holder()


def _remove(path: Path, holder: Holder) -> None:
    """Removes the lock if it is this holder's: under another name first, for two may want to at once."""
    aside = path.with_name(f"{FILE}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        if _read(path) != holder:
            return
        path.rename(aside)
        if _read(aside) != holder:  # another process took it over in between
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _shows_life(path: Path, wait: Callable[[float], object]) -> bool:
    before = _sign(path)
    for _ in range(round(PATIENCE / BEAT * 2)):
        wait(BEAT / 2)
        if _sign(path) != before:
            return True
    return False


def _sign(path: Path) -> tuple[bytes, int] | None:
    """What changes with each sign of life. Opening the file asks a network file system for its present state."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _beat(path: Path, mine: Holder, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk in trouble is told of where something is written
            found = _read(path)
            if found is None:
                _make(path, mine)
            elif found.token != mine.token:
                print(
                    f"vadapter: {terminal.line(path)} is now held by {found}. Two processes write into one run: "
                    "end one of them.",
                    file=sys.stderr,
                    flush=True,
                )
                return
            os.utime(path)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _started(pid: int) -> str:
    """When a process started; "" where it has ended or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _machine() -> str:
    """What tells this start of this machine, and this container, from others."""
    found = []
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)
