"""Tries changed files on every reader for some time, and keeps those that fail: python -m tests.fuzz --minutes 30

A file that fails, takes longer than 20 seconds or needs more than 6 GB goes into tests/fuzz/corpus, which the tests try
from then on.
"""

import argparse
import collections
import hashlib
import logging
import resource
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import hang
from tests.fuzz import targets
from tests.tiny_bundle import write_bundle

CORPUS = Path(__file__).parent / "corpus"
ROUND, SECONDS, BYTES = 50, 20, 6 << 30


def main() -> int:
    """Returns 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each after it has the next one")
    parser.add_argument("--only", choices=targets.NAMES, action="append", help="this reader; may be repeated")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known = targets.targets((write_bundle(Path(folder)) / "bundle.json").read_text())
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    logging.disable(logging.WARNING)  # what readers leave out they say; here that is most of it
    names = args.only or targets.NAMES
    begin, turn, failed, tried = time.monotonic(), args.seed, set(), collections.Counter()
    while (spent := time.monotonic() - begin) < 60 * args.minutes and len(failed) < len(names):
        print(f"{spent / 60:.1f} of {args.minutes:g} minutes: {_totals(tried, failed)}", flush=True)
        for name in names:
            if name not in failed and time.monotonic() - begin < 60 * args.minutes:
                tried[name] += ROUND
                if failure := _round(known[name], turn):
                    failed.add(name)
                    _keep(name, *failure)
        turn += 1
    each = "  ".join(f"{name} {count}" for name, count in tried.items())
    print(f"Done, with seeds {args.seed} to {turn - 1}: {_totals(tried, failed)}\n{each}")
    return int(bool(failed))


def _totals(tried: collections.Counter[str], failed: set[str]) -> str:
    return f"about {tried.total()} files tried; failed: {', '.join(sorted(failed)) or 'nothing'}."


def _round(target: targets.Target, turn: int) -> tuple[bytes, str] | None:
    """Tries files; returns one that fails, with the traceback."""
    latest = [b""]
    options = {"max_examples": ROUND, "deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}

    @settings(**options, phases=[Phase.generate], report_multiple_bugs=False)
    @seed(turn)
    @given(target.inputs)
    def attempt(data: bytes) -> None:
        with hang.stopped(SECONDS):
            try:
                target(data)
            except BaseException:
                latest[0] = data
                raise

    try:
        attempt()
    except Exception:
        return latest[0], traceback.format_exc()
    return None


def _keep(name: str, data: bytes, said: str) -> None:
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"{name.replace(' ', '_')}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{name}: {path}\n{said}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
