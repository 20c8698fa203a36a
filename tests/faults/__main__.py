"""Strikes small training runs with faults, and compares what comes out with a run that nothing happened to.

python -m tests.faults --n 200 --seed 0
python -m tests.faults --n 20 --seed 0 --recipe
python -m tests.faults --n 1 --faults SIGKILL "damage: flip"

A trial draws from its seed one to three faults. After each the run is started again, until it is done; parameters,
optimizer state, losses by step and done.json must then be, bit by bit, those of the uninterrupted run, every exit
status one that `vadapter.base.exit_codes` has for it, and nothing that was damaged may have been restored. The exit
status is 1 if any trial went wrong; `--only N` repeats the trial N of a seed. Moments are waited for by what a run
prints and writes, so a repeated trial strikes at the same place, but not in the same microsecond.
"""

import argparse
import collections
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults import environment  # isort: skip  # before jax

import orbax.checkpoint  # noqa: F401

from tests.faults import kinds, struck
from tests.faults.run import Run, Subject, Wrong
from tests.faults.sessions import Hangs

PAIRS = 0.1  # share of the trials that have two processes


class Trials:
    """All trials of a seed, and what came of them by kind of fault."""

    def __init__(
        self,
        subject: Subject,
        seed: int,
        work: Path,
        pairs: float,
        disk: bool,
        group: str | None = None,
        faults: Sequence[str] = (),
    ):
        self.subject, self.seed, self.work, self.pairs, self.disk = subject, seed, work, pairs, disk
        self.faults = list(faults)
        self.of_one = kinds.ONE | (kinds.OF_DATA if subject.shards() else {})
        self.group = kinds.GROUPS[group] if group else (*self.of_one, *kinds.TWO)
        self.whole: dict[tuple[int, int], dict] = {}
        self.table: dict[str, collections.Counter[str]] = {}

    def one(self, number: int) -> str | None:
        """Runs a trial; returns what was wrong."""
        chance = random.Random(f"{self.seed}/{number}")
        two, names = self._draw(chance)
        known = kinds.TWO if two else self.of_one
        if not self.disk:
            names = [name for name in names if name != "disk full"] or ["SIGKILL"]
        folder = self.work / f"trial-{number}"
        folder.mkdir()
        with kinds.Disk(folder / "disk", self.subject.disk) as disk:
            place = disk.folder / "run"
            run = Run(self.subject, place, folder, 2 if two else 1, chance)
            wrong, seen = None, []
            try:
                for name in names:
                    before = run.refused
                    seen.append((name, 0))
                    known[name](run)
                    seen[-1] = name, run.refused - before
                run.finish()
                run.compare(self._uninterrupted(run))
            except (Wrong, Hangs) as e:
                wrong = str(e)
            finally:
                run.close()
                self._keep(run, place, folder, wrong)
        for name, refused in seen:
            row = self.table.setdefault(name, collections.Counter())
            row.update({"trials": 1, "bit-exact": wrong is None, "refused": refused, "wrong": wrong is not None})
        if wrong is None:
            shutil.rmtree(folder)
            return None
        return f"trial {number} ({', '.join(names)}): {wrong}\n" + "\n".join(f"    {line}" for line in run.log)

    def _draw(self, chance: random.Random) -> tuple[bool, list[str]]:
        """Whether a trial has two processes, and its faults."""
        if self.faults:
            return self.faults[0] in kinds.TWO, self.faults
        two = chance.random() < self.pairs and not set(self.group).isdisjoint(kinds.TWO)
        known = [name for name in sorted(kinds.TWO if two else self.of_one) if name in self.group]
        return two, chance.choices(known, k=chance.choice((1, 2, 2, 3)) if not two else 1)

    def _keep(self, run: Run, place: Path, folder: Path, wrong: str | None) -> None:
        if wrong is not None and place.exists():
            shutil.copytree(place, folder / "run")  # the disk goes

    def _uninterrupted(self, like: Run) -> dict:
        """What comes of a run that nothing happens to."""
        key = like.count, like.every
        if key not in self.whole:
            scratch = self.work / f"whole-{like.count}-{like.every}"
            scratch.mkdir()
            run = Run(self.subject, scratch / "run", scratch, like.count, random.Random(0))
            run.every = like.every
            try:
                run.finish()
                self.whole[key] = run.outcome()
            finally:
                run.close()
        return self.whole[key]

    def print(self) -> None:
        columns = ("trials", "bit-exact", "refused", "wrong")
        print(f"{'fault':<26}" + "".join(f"{name:>11}" for name in columns))
        for name, row in sorted(self.table.items()):
            print(f"{name:<26}" + "".join(f"{row[column]:>11}" for column in columns))


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=200, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="this trial alone")
    parser.add_argument("--pairs", type=float, default=PAIRS, help="share of trials with two processes")
    parser.add_argument("--kinds", choices=sorted(kinds.GROUPS), help="faults of this group alone")
    parser.add_argument("--faults", nargs="+", metavar="NAME", help="these faults, in this order, in each trial")
    parser.add_argument("--minutes", type=float, help="begin no trial after so many")
    parser.add_argument("--recipe", action="store_true", help="strike the command `train`, not a small loop")
    args = parser.parse_args()
    if args.kinds == "data" and not args.recipe:
        parser.error("--kinds data needs --recipe: the small loop reads no files of data")
    of_one = kinds.ONE | (kinds.OF_DATA if args.recipe else {})
    if args.faults and not (set(args.faults) <= of_one.keys() or set(args.faults) <= kinds.TWO.keys()):
        known = (", ".join(sorted(some)) for some in (of_one, kinds.TWO))
        parser.error(f"--faults takes faults of one process ({next(known)}) or of two ({next(known)}), not of both")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # disks are unmounted
    if args.recipe:
        from tests.faults import recipe

        recipe.prepare()
        subject = recipe.SUBJECT
    else:
        subject = struck.SUBJECT
    began, work = time.monotonic(), Path(environment.WORK)
    with kinds.Disk(work / "probe", 1 << 20) as probe:
        disk = probe.mounted
    if not disk:
        print("No disk can be mounted here: trials of a full one are left out.")
    trials, wrong, done = Trials(subject, args.seed, work, args.pairs, disk, args.kinds, args.faults or ()), 0, 0
    for number in range(args.n) if args.only is None else (args.only,):
        if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
            break
        said, done = trials.one(number), done + 1
        if said:
            wrong += 1
            group = " --recipe" * args.recipe + (f" --kinds {args.kinds}" if args.kinds else "")
            group += f" --faults {shlex.join(args.faults)}" if args.faults else ""
            print(f"{said}\n    Again: python -m tests.faults --seed {args.seed}{group} --only {number}", flush=True)
    trials.print()
    print(f"{done} trials of seed {args.seed} in {time.monotonic() - began:.0f} s, {wrong} wrong.")
    if wrong:
        print(f"What the wrong ones left is in {work}.")
    else:
        shutil.rmtree(work)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
