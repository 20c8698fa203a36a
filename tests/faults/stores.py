"""Strikes runs whose folder is in a bucket, of the stand-in for Cloud Storage.

python -m tests.faults.stores
python -m tests.faults.stores --only "kill at checksums.json"

A run is made without trouble. Others meet answers that are refused, slow, cut or lost, or are killed while they write
an object of a checkpoint, and are started again until they are done. Each must end with the same numbers, bit by bit.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.faults import environment  # isort: skip  # before jax

from tests.faults import cloud_storage, struck
from tests.faults.run import NUMBERS, Wrong, expect
from tests.faults.sessions import Hangs, Session
from vadapter.base import exit_codes

EVERY, KEEP = 8, 1
# Every so many answers are spoiled: some ten in each checkpoint.
SPOILED = 23
# Where in a checkpoint's writing the process is killed, in the order of their writing: pattern, and whether the object
# is in the bucket then.
KILLS = {
    "kill at arrays": (r"checkpoint_12/params/.*/d/", False),
    "kill at a manifest": (r"checkpoint_12/optimizer/manifest", True),
    "kill at run": (r"checkpoint_12/run/metadata", False),
    "kill at checksums.json": (r"checkpoint_12/checksums\.json", False),
    "kill after checksums.json": (r"checkpoint_12/checksums\.json", True),
    "kill at the mark": (r"checkpoint_12/commit_success\.txt", False),
    "kill after the mark": (r"checkpoint_12/commit_success\.txt", True),
    "kill at the curve": (r"curve\.jsonl$", False),
    "kill at done.json": (r"done\.json$", False),
}
SPOILS = {f"answers: {kind}": [kind] for kind in cloud_storage.FAULTS} | {"answers: all": [*cloud_storage.FAULTS]}


class Bucket:
    """The stand-in, in a process of its own."""

    def __init__(self, folder: Path):
        self.store = cloud_storage.Store(folder)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.store.serve_forever()
            finally:
                os._exit(0)
        self.environment = self.store.environment()
        self.address = f"http://127.0.0.1:{self.store.server_port}"
        self.store.socket.close()

    def ask(self, path: str, content: Any = None) -> bytes:
        data = None if content is None else json.dumps(content).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.address + path, data, timeout=60) as answer:
            return answer.read()

    def plan(self, **plan: Any) -> None:
        self.ask("/-/plan", plan)

    def state(self) -> dict[str, Any]:
        return json.loads(self.ask("/-/state"))

    def read(self, name: str) -> bytes:
        return self.ask(f"/storage/v1/b/runs/o/{name.replace('/', '%2F')}?alt=media")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Runs:
    """Runs in the bucket; each has a folder of its own."""

    def __init__(self, bucket: Bucket, scratch: Path):
        self.bucket, self.scratch, self.count = bucket, scratch, 0

    def start(self, name: str) -> Session:
        self.count += 1
        arguments = f"gs://runs/{name}", str(self.scratch / f"{name}.json"), EVERY, KEEP
        output = self.scratch / f"{name}-{self.count}.txt"
        self.last = Session(lambda: struck.run(*arguments), output, self.bucket.environment)
        return self.last

    def finish(self, session: Session) -> str:
        """Waits for a session that must end well; returns what it printed."""
        try:
            status = session.end()
        finally:
            session.destroy()
        said = session.said()
        expect("Traceback" not in said, f"a traceback\n{said}")
        expect(status == exit_codes.DONE, f"exit status {status}\n{said}")
        return said

    def outcome(self, name: str) -> dict[str, Any]:
        """All of a finished run that must not depend on what happened to it."""
        lines = self.bucket.read(f"{name}/curve.jsonl").decode().splitlines()
        rows = [json.loads(line) for line in lines]
        curve = {f"{row['split']} {row['step']}": {n: row[n] for n in NUMBERS if n in row} for row in rows}
        expect(len(curve) == len(rows), "two lines of a step in curve.jsonl")
        done = json.loads(self.bucket.read(f"{name}/done.json"))
        last = {n: done["metrics"].get(n) for n in NUMBERS}
        hashes = json.loads((self.scratch / f"{name}.json").read_text())
        return {"hashes": hashes, "curve": curve, "step": done["step"], "last": last, "evals": done["evals"]}

    def spoiled(self, name: str, kinds: list[str]) -> str:
        before = self.bucket.state()["spoiled"]
        self.bucket.plan(every=SPOILED, kinds=kinds)
        self.finish(self.start(name))
        self.bucket.plan()
        after = self.bucket.state()["spoiled"]
        expect(all(after[kind] > before[kind] for kind in kinds), "no answer was spoiled")
        return f"{sum(after.values()) - sum(before.values())} answers spoiled"

    def killed(self, name: str, pattern: str, stored: bool) -> str:
        session = self.start(name)
        self.bucket.plan(kill=f"{name}/{pattern}", pid=session.pid, stored=stored)
        status = session.end()
        expect(self.bucket.state()["plan"] == {"killed": True}, f"it was not killed there:\n{session.said()}")
        expect(status == -signal.SIGKILL, f"exit status {status}")
        self.bucket.plan()
        said = self.finish(self.start(name))
        return next((line for line in said.splitlines() if line.startswith("Resuming")), "began anew")


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.faults.stores", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases alone")
    args = parser.parse_args()
    import tensorflow  # noqa: F401  # for the processes that are forked

    wrong, whole = 0, None
    folder = Path(environment.WORK)
    bucket = Bucket(folder)
    runs = Runs(bucket, folder)
    try:
        for number, case in enumerate(["nothing", *SPOILS, *KILLS]):
            if args.only and case not in args.only and case != "nothing":
                continue
            name, began, came = f"run{number}", time.monotonic(), ""
            try:
                if case in SPOILS:
                    came = runs.spoiled(name, SPOILS[case])
                elif case in KILLS:
                    came = runs.killed(name, *KILLS[case])
                else:
                    runs.finish(runs.start(name))
                found = runs.outcome(name)
                whole = whole or found
                differ = [key for key in whole if found[key] != whole[key]]
                expect(not differ, f"{differ} differ from those of the uninterrupted run")
                names = [n for n in bucket.state()["names"] if n.startswith(f"{name}/checkpoint_")]
                more = [n for n in names if f"/checkpoint_{struck.STEPS}/" not in n]
                expect(names and not more, f"{more} were left\n{runs.last.said()}")
            except (Wrong, Hangs, OSError) as e:
                wrong, came = wrong + 1, f"WRONG: {e}"
            print(f"{case}: {came or 'done'} ({time.monotonic() - began:.0f} s)", flush=True)
        print(f"Requests: {bucket.state()['asked']}. Wrong: {wrong}.")
    finally:
        bucket.close()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
