"""A run that faults come upon: it is started again after each, and what must hold then is checked."""

import dataclasses
import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import damage
from tests.faults.sessions import Session
from tests.training.processes import free_port
from vadapter.base import exit_codes

# Files that say when and where, but nothing of what is in a checkpoint.
HARMLESS = ("commit_success.txt", "_CHECKPOINT_METADATA")
# Of a line of the curve, what does not depend on the clock.
NUMBERS = ("loss", "accuracy", "learning_rate", "grad_norm", "skipped_steps")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is struck.

    Attributes:
        name: in tables.
        steps: updates of a run.
        run: trains in this process, given the folder, a file for hashes of what came of it, the steps between two
            checkpoints and how many are kept. Returns the exit status.
        read_back: writes those hashes, given the folder and the file, where `run` does not.
        disk: bytes of a disk that a run just fits on.
        shards: the files of its data.
    """

    name: str
    steps: int
    run: Callable[[str, str, int, int], int]
    read_back: Callable[[str, str], int] | None
    disk: int
    shards: Callable[[], list[Path]] = list


class Wrong(Exception):
    """Something that vadapter promises was not so."""


def expect(so: object, text: str) -> None:
    if not so:
        raise Wrong(text)


class Run:
    """A run.

    Args:
        subject: what is run.
        folder: of the run.
        scratch: a folder for what its processes print.
        count: processes.
        chance: of this trial.

    Attributes:
        refused: how often it was refused, rightly.
        log: what was done and what came of it, for who looks into a wrong trial.
    """

    def __init__(self, subject: Subject, folder: Path, scratch: Path, count: int, chance: random.Random):
        self.subject, self.folder, self.scratch, self.count, self.chance = subject, folder, scratch, count, chance
        self.every, self.keep = chance.choice((2, 3, 4)), chance.choice((1, 2))
        self.sessions: list[Session] = []
        self.log: list[str] = []
        self.refused = 0
        self.resumed: list[int] = []  # steps that sessions went on from
        self.lost: set[int] = set()  # steps whose lines were taken from the curve
        self.damaged: dict[int, str] = {}  # checkpoints, and the file of each that was damaged
        self.report = scratch / "report.json"

    def start(self, missing: int | None = None) -> list[Session]:
        """Starts the processes of a session; all but one that is missing, for which the others wait a few seconds."""
        self.report.unlink(missing_ok=True)
        self.before = self.checkpoints()
        environment = {}
        if self.count > 1:
            environment = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
                "JAX_NUM_PROCESSES": str(self.count),
                "PATIENCE": "60" if missing is None else "4",  # less than the harness waits for them
            }
        return [
            self.process(environment | {"JAX_PROCESS_ID": str(i)} if environment else {})
            for i in range(self.count)
            if i != missing
        ]

    def process(self, environment: dict[str, str]) -> Session:
        """Starts a process in the run's folder."""
        arguments = str(self.folder), str(self.report), self.every, self.keep
        output = self.scratch / f"session-{len(self.sessions)}.txt"
        self.sessions.append(Session(lambda: self.subject.run(*arguments), output, environment))
        return self.sessions[-1]

    def checkpoints(self) -> list[int]:
        """The checkpoints in the folder, finished as their names say, that nobody has damaged."""
        found = [int(path.name.removeprefix("checkpoint_")) for path in damage.checkpoints(self.folder)]
        return [step for step in found if step not in self.damaged]

    def moment(self, session: Session) -> str:
        """Waits until a moment by chance, in the midst of a session; returns which it was."""
        draw, old = self.chance, {path.name for path in self.folder.glob("checkpoint_*")}

        def new() -> list[Path]:
            return [path for path in self.folder.glob("checkpoint_*") if path.name not in old]

        def written(files: int) -> bool:
            return sum(len(names) for path in new() for _, _, names in os.walk(path)) >= files

        kind = draw.choice(("beginning", "step", "writing", "writing", "file", "written", "end"))
        delay = draw.uniform(0, {"beginning": 1.0, "step": 0.04, "writing": 0.06}.get(kind, 0.02))
        step = draw.randint(max(self.before, default=0), self.subject.steps)
        files = draw.randint(1, 24)
        conditions = {
            "beginning": lambda: "The process has begun." in session.said(),
            "step": lambda: f"step {step}/" in session.said(),
            "writing": new,
            "file": lambda: written(files),
            "written": lambda: any(path.name.removeprefix("checkpoint_").isdecimal() for path in new()),
            "end": lambda: f"step {self.subject.steps}/" in session.said(),
        }
        there = session.until(conditions[kind], delay)
        return f"{kind} + {1000 * delay:.0f} ms" if there else "after its end"

    def ended(self, sessions: list[Session], allowed: tuple[int, ...]) -> list[int]:
        """Waits for a session's end and checks what it said. Returns the exit statuses."""
        found = [session.end() for session in sessions]
        self.log.append(f"  ended with {found}")
        said = sessions[0].said()
        for session, status in zip(sessions, found, strict=True):
            expect("Traceback" not in session.said() or self.count > 1, "a traceback")
            last = "\n".join(session.said().splitlines()[-5:])
            expect(status in allowed, f"exit status {status}; expected one of {allowed}. It said last:\n{last}")
        went_on = re.search(r"Resuming .* at step (\d+)\.", said)
        if went_on:
            self._went_on(int(went_on.group(1)), said)
        elif re.search(r"^step \d+/", said, re.MULTILINE):
            expect(not self.before, f"it began anew beside whole checkpoints of the steps {self.before}")
        saved = re.search(r"Stopped early: saved at step (\d+)", said)
        if saved:
            expect(int(saved.group(1)) in self.checkpoints(), f"it saved step {saved.group(1)}, which is not there")
        if set(found) & {128 + signal.SIGINT, 128 + signal.SIGTERM}:
            told = saved or "ended at once" in said or self.count > 1
            expect(told, "it was told to stop and neither saved nor said that it could not")
        if set(found) == {exit_codes.DONE}:
            expect(self.done().get("step") == self.subject.steps, "exit status 0 without a whole done.json")
        return found

    def _went_on(self, step: int, said: str) -> None:
        self.resumed.append(step)
        self.log.append(f"  went on from step {step}")
        if step in self.damaged:
            expect(self.damaged[step] in HARMLESS, f"the damaged checkpoint_{step} was restored in silence")
        else:
            expect(step == max(self.before, default=None), f"it went on from {step}; there were {self.before}")
            for other in self.damaged:
                if other > step:
                    expect(f"left out checkpoint_{other}, which is damaged" in said, f"no word on checkpoint_{other}")
        self.damaged = {}  # has been dealt with; what is left of them is saved over

    def done(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "done.json").read_text())
        except (OSError, ValueError):
            return {}

    def finish(self) -> None:
        """Starts the run again until it is done; where nothing whole is left, after it was refused."""
        if self.damaged and not self.checkpoints():
            harmless = set(self.damaged.values()) <= set(HARMLESS)  # may be noticed, or not
            sessions = self.start()
            allowed = (exit_codes.USER, exit_codes.DONE) if harmless else (exit_codes.USER,)
            if exit_codes.USER in self.ended(sessions, allowed):
                said = "".join(session.said() for session in sessions)
                expect("has no whole checkpoint" in said, "another refusal than that nothing is whole")
                expect(len(damage.checkpoints(self.folder)) == len(self.damaged), "a refusal that changed the run")
                self.refused += 1
                for path in damage.checkpoints(self.folder):  # as the message says
                    damage.empty_folder(path)
                    path.rmdir()
            self.damaged = {}
        self.ended(self.start(), (exit_codes.DONE,))

    def outcome(self) -> dict[str, Any]:
        """All of a finished run that must not depend on what happened to it."""
        rows = [json.loads(line) for line in (self.folder / "curve.jsonl").read_text().splitlines()]
        curve: dict[str, Any] = {}
        for row in rows:
            key = f"{row['split']} {row['step']}"
            expect(key not in curve, f"two lines of {key} in curve.jsonl")
            curve[key] = {name: row[name] for name in NUMBERS if name in row}
        done = self.done()
        if read_back := self.subject.read_back:
            arguments = str(self.folder), str(self.report)
            reading = Session(lambda: read_back(*arguments), self.scratch / "read back.txt")
            expect(reading.end() == exit_codes.DONE, f"it could not be read:\n{reading.said()}")
        last = {name: done["metrics"].get(name) for name in NUMBERS}
        return {
            "hashes": json.loads(self.report.read_text()),
            "curve": curve,
            "done": {"step": done["step"], "metrics": last, "evals": done["evals"]},
        }

    def compare(self, whole: dict[str, Any]) -> None:
        """Compares the finished run with one that nothing happened to, bit by bit."""
        found = self.outcome()
        for path, value in whole["hashes"].items():
            expect(found["hashes"].get(path) == value, f"{path} differs from that of the uninterrupted run")
        expect(found["hashes"].keys() == whole["hashes"].keys(), "other arrays than those of the uninterrupted run")
        expect(found["done"] == whole["done"], f"done.json has {found['done']}; expected {whole['done']}")
        for key, value in whole["curve"].items():
            split, step = key.split()
            if key not in found["curve"] and int(step) in self.lost:
                continue
            expect(found["curve"].get(key) == value, f"the curve has {found['curve'].get(key)} of {key}, not {value}")
        expect(found["curve"].keys() <= whole["curve"].keys(), "more lines in the curve than the uninterrupted run has")
        left = [path.name for path in self.folder.iterdir() if "tmp" in path.name or path.name.endswith(".partial")]
        expect(not left, f"{left} were left in the folder")
        expect(not (self.folder / "run.lock").exists(), "run.lock was left in the folder")

    def close(self) -> None:
        """Ends what still runs."""
        for session in self.sessions:
            session.destroy()
