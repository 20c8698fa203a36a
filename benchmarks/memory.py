"""How much memory does a training step need, ours beside PyTorch? The peak of a process of its own for each arm.

    python benchmarks/memory.py
    python benchmarks/memory.py --arms f32_full f32_dots f32_none torch_f32 --rows=8

Arms are those of `benchmarks/train_step.py`, which each process runs for two steps; libraries, initial parameters and
compilation are in the peak, as in a user's process. `floor` is what no way of training can do without: parameters,
gradients and the two moments of AdamW in f32, and the frozen parameters. It prints one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages import record

STEP = Path(__file__).with_name("train_step.py")


def peak(arm: str, sizes: str, rows: int) -> tuple[int, dict[str, Any]]:
    """Returns the most bytes that a process of an arm had at a time, and what it found of itself."""
    command = [sys.executable, str(STEP), f"--sizes={sizes}", f"--rows={rows}", "--rounds=1", "--arms", arm]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"{arm} ended with {child.returncode}: run {' '.join(command)}"
    return used.ru_maxrss * 1024, json.loads(said)["facts"][arm]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="open", choices=["open", "demo"])
    parser.add_argument("--arms", nargs="+", default=["f32_none", "f32_dots", "f32_full", "torch_f32", "torch_bf16"])
    parser.add_argument("--rows", type=int, default=16)
    args = parser.parse_args()
    found = {arm: peak(arm, args.sizes, args.rows) for arm in args.arms}
    counts = next(iter(found.values()))[1]["parameters"]
    floor = 16 * counts["trained"] + 4 * counts["frozen"]
    gib = {arm: round(size / 2**30, 2) for arm, (size, _) in found.items()}
    print(
        json.dumps(
            {
                "question": "peak memory of a process that trains stage 1, in GiB",
                "peak_gib": gib,
                "times_floor": {arm: round(size / floor, 2) for arm, (size, _) in found.items()},
                "floor_gib": round(floor / 2**30, 2),
                "compiler_gib": {
                    arm: facts["planned_gib"] for arm, (_, facts) in found.items() if "planned_gib" in facts
                },
                "sizes": {"model": args.sizes, "rows": args.rows},
                "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
                "date": time.strftime("%Y-%m-%d"),
                "versions": record.versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
