"""The faults that come upon a run. Each is done at a moment by chance, and says what it did in the run's log."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.faults import damage
from tests.faults.run import Run, expect
from vadapter.base import exit_codes

KILLED = -signal.SIGKILL
AGAIN = (exit_codes.PASSING, exit_codes.STOPPED, KILLED, -signal.SIGABRT, -signal.SIGTERM, -signal.SIGSEGV)
Fault = Callable[[Run], None]


def sigkill(run: Run) -> None:
    """The processes are gone."""
    sessions = run.start()
    run.log.append(f"SIGKILL: {run.moment(sessions[0])}")
    for session in sessions:
        session.send(signal.SIGKILL)
    run.ended(sessions, (KILLED, exit_codes.DONE))


def one_signal(number: int) -> Fault:
    def fault(run: Run) -> None:
        sessions = run.start()
        began = sessions[0].until(lambda: "The process has begun." in sessions[0].said())
        run.log.append(f"signal {number}: {run.moment(sessions[0])}")
        expect(began or sessions[0].poll() is not None, "the process did not begin")
        run.chance.choice(sessions).send(number)
        # A process that ends at once, before its first step, is lost to the other.
        run.ended(sessions, (128 + number, exit_codes.DONE, *(AGAIN if len(sessions) > 1 else ())))

    return fault


def two_signals(run: Run) -> None:
    """The second one comes a little later, or so soon that the first has not been dealt with."""
    (session,) = sessions = run.start()
    session.until(lambda: "The process has begun." in session.said())
    first, second = run.chance.choices((signal.SIGINT, signal.SIGTERM), k=2)
    run.log.append(f"signals {first}, {second}: {run.moment(session)}")
    session.send(first)
    session.until(lambda: True, run.chance.choice((0.0, run.chance.uniform(0, 0.1))))
    session.send(second)
    run.ended(sessions, (128 + first, 128 + second, exit_codes.DONE))


def _stop_with_a_checkpoint(run: Run) -> Path:
    """Kills the run when it has a new checkpoint, or lets it end. Returns the newest."""
    sessions = run.start()
    sessions[0].until(lambda: run.checkpoints() != run.before, run.chance.uniform(0, 0.3))
    for session in sessions:
        session.send(signal.SIGKILL)
    run.ended(sessions, (KILLED, exit_codes.DONE))
    return damage.checkpoints(run.folder)[-1]


def damaged(kind: str) -> Fault:
    def fault(run: Run) -> None:
        newest = _stop_with_a_checkpoint(run)
        file = run.chance.choice(damage.files(newest))
        before = file.read_bytes()
        damage.KINDS[kind](file, run.chance)
        run.log.append(f"{kind} {file.relative_to(run.folder)}")
        if not file.exists() or file.read_bytes() != before:
            run.damaged[int(newest.name.removeprefix("checkpoint_"))] = file.name
        run.finish()

    return fault


def empty_folder(run: Run) -> None:
    newest = _stop_with_a_checkpoint(run)
    damage.empty_folder(newest)
    run.log.append(f"{newest.name} is empty")
    run.damaged[int(newest.name.removeprefix("checkpoint_"))] = "everything"
    run.finish()


def half_a_line(run: Run) -> None:
    """The last line of the curve ends early. It is lost, unless the run makes its step again."""
    sigkill(run)
    curve = run.folder / "curve.jsonl"
    lines = curve.read_bytes().splitlines(keepends=True) if curve.exists() else []
    if not lines:
        return
    cut = run.chance.randrange(1, len(lines[-1]) - 1)
    curve.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    if b'"step": ' in lines[-1]:
        run.lost.add(int(lines[-1].split(b'"step": ')[1].split(b",")[0]))
    run.log.append(f"the last line of {len(lines)} has {cut} bytes")


def cut_done(run: Run) -> None:
    run.finish()
    done = run.folder / "done.json"
    content = done.read_bytes()
    size = run.chance.randrange(len(content) - 1)
    done.write_bytes(content[:size])
    run.log.append(f"done.json has {size} bytes of {len(content)}")
    run.finish()


def disk_full(run: Run) -> None:
    """No room is left but a few KB, from a moment on; then there is."""
    (session,) = sessions = run.start()
    moment, filler = run.moment(session), run.folder / "filler"
    disk = os.statvfs(run.folder)
    room = disk.f_bavail * disk.f_frsize - 4096 * run.chance.randrange(24)
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(room, 4096))
    except OSError as e:  # the run has just taken that room
        moment += f", {e.strerror}"
    run.log.append(f"the disk is full: {moment}")
    session.end()
    filler.unlink(missing_ok=True)
    (status,) = run.ended(sessions, (exit_codes.USER, exit_codes.DONE))
    if status == exit_codes.USER:
        said = session.said()
        expect(
            "no space is left" in said or "disk is full" in said or "room" in said, "a full disk without a word on it"
        )
        run.refused += 1


def second_process(run: Run) -> None:
    """It is refused, and the first one does not notice. That one is held still meanwhile, so that it is there."""
    (session,) = sessions = run.start()
    there = session.until(lambda: "step " in session.said(), run.chance.uniform(0, 0.1))
    run.log.append("a second process")
    if there:
        session.send(signal.SIGSTOP)
        held = (run.folder / "run.lock").exists()
        second = run.process({})
        status = second.end()
        session.send(signal.SIGCONT)
        expect(status == exit_codes.USER or not held, f"the second process ended with {status}")
        if held:
            expect("Another process writes into" in second.said(), "the second process was refused for another reason")
            run.refused += 1
    run.ended(sessions, (exit_codes.DONE,))


def shard_cut(run: Run) -> None:
    """A file of the data ends early when the run is to go on. That would be another run, and is refused."""
    newest = _stop_with_a_checkpoint(run)
    shard = run.chance.choice(run.subject.shards())
    whole = shard.read_bytes()
    size = run.chance.randrange(len(whole))
    shard.write_bytes(whole[:size])
    run.log.append(f"{shard.parent.name}/{shard.name} has {size} bytes of {len(whole)}; {newest.name} is there")
    try:
        (session,) = sessions = run.start()
        run.ended(sessions, (exit_codes.USER,))
        expect(re.search(r"vadapter: error: .*(data|record|file)", session.said()), "a refusal for another reason")
        run.refused += 1
    finally:
        shard.write_bytes(whole)


def one_of_two(run: Run) -> None:
    """The other one must end too, with a status that has both started again."""
    sessions = run.start()
    which = run.chance.randrange(len(sessions))
    run.log.append(f"SIGKILL of process {which}: {run.moment(sessions[0])}")
    sessions[which].send(signal.SIGKILL)
    (status,) = set(run.ended(sessions, (*AGAIN, exit_codes.DONE))[1 - which : 2 - which])
    if status == exit_codes.PASSING:
        said = sessions[1 - which].said()
        expect("Another process of this run was lost" in said, "no word on the process that was lost")


def lost_host(run: Run) -> None:
    """One process is killed and does not come back: the other ends, also when it is started again alone, in bounded
    time, says for whom it waited, and has a status with which the launcher starts it again."""
    one_of_two(run)
    if run.done():
        return
    sessions = run.start(missing=(lost := run.chance.randrange(run.count)))
    run.log.append(f"process {lost} does not come")
    run.ended(sessions, (exit_codes.STOPPED,))
    expect(re.search(rf"[Pp]rocess(es)? .*{lost}", sessions[0].said()), "no word on the process that is missing")


ONE: dict[str, Fault] = {
    "SIGKILL": sigkill,
    "SIGTERM": one_signal(signal.SIGTERM),
    "SIGINT": one_signal(signal.SIGINT),
    "two signals": two_signals,
    **{f"damage: {kind}": damaged(kind) for kind in damage.KINDS},
    "empty checkpoint": empty_folder,
    "half a line of the curve": half_a_line,
    "done.json cut": cut_done,
    "disk full": disk_full,
    "second process": second_process,
}
OF_DATA: dict[str, Fault] = {"shard cut": shard_cut}
"""For what reads files of data."""
TWO: dict[str, Fault] = {
    "two: one killed": one_of_two,
    "two: lost host": lost_host,
    "two: both killed": sigkill,
    "two: SIGTERM to one": one_signal(signal.SIGTERM),
    "two: damage": damaged("flip"),
}
GROUPS = {
    "kill": (
        "SIGKILL",
        "SIGTERM",
        "SIGINT",
        "two signals",
        "two: one killed",
        "two: lost host",
        "two: both killed",
        "two: SIGTERM to one",
    ),
    "data": tuple(OF_DATA),
    "disk": ("disk full",),
    "damage": (*(f"damage: {kind}" for kind in damage.KINDS), "empty checkpoint", "two: damage"),
}


class Disk:
    """A disk of so many bytes in a folder, where this process may mount one."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size, self.mounted = folder, size, False
        folder.mkdir()

    def __enter__(self) -> "Disk":
        if shutil.which("mount"):
            command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder)]
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)
