"""How fast is a training step on one GPU, and beside PyTorch? Is what it computes right there?

python benchmarks/gpu_day.py --out gpu_day              # everything, within 13 minutes
python benchmarks/gpu_day.py --out gpu_day --small      # a rehearsal of some minutes, which a CPU does
python benchmarks/gpu_day.py --tables gpu_day           # the tables of docs/performance.md

Each stage is a process of its own with a time limit, and writes <out>/<stage>.json as it goes: what one stage loses, or
a cut of the whole, costs no other figure. docs/performance.md says what the figures mean.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

# In the order in which they run: seconds that are kept for a stage while those before it run, and the most that it may
# take. A first compilation of a step of full size takes 35 s, and a stage begins with 15 s of imports and weights.
STAGES = {
    "ceiling": (20, 30),
    "peer_vitl_1b": (60, 120),
    "peer_vitg_8b": (60, 110),
    "decode": (45, 75),
    "words": (60, 120),
    "packing": (30, 60),
    "startup": (45, 130),
    "int8": (80, 110),
    "tests": (90, 150),
    "step_vitl_1b": (80, 150),
    "step_vitg_8b": (60, 150),
}
_VARIANTS = {"vitg_8b": ("vit_g", "palm_8b"), "vitl_1b": ("vit_l", "palm_1b")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, by comma (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a rehearsal on a CPU")
    parser.add_argument("--budget", type=float, default=780, help="seconds for all stages (default: %(default)s)")
    parser.add_argument("--merge", help="a file that gets the results of all stages, again after each of them")
    parser.add_argument("--tables", metavar="PATH", help="print the tables of a folder or merged file of results")
    parser.add_argument("--stage", choices=STAGES, help="run one stage in this process")
    parser.add_argument("--limit", type=float, help="seconds for --stage")
    args = parser.parse_args()
    if args.tables:
        from gpu_stages import tables

        return print(tables.markdown(load(args.tables)))
    if not args.out:
        parser.error("--out is needed")
    os.makedirs(args.out, exist_ok=True)
    args.out = os.path.abspath(args.out)
    if args.stage:
        return run_stage(args.stage, args.out, args.small, args.limit or STAGES[args.stage][1])
    names = args.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"there are no stages {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    run_all(names, args)


def run_all(names: list[str], args: argparse.Namespace) -> None:
    """Runs stages one after the other, whatever becomes of each, and prints what they found."""
    from gpu_stages import tables

    end = time.monotonic() + args.budget
    for place, name in enumerate(names, 1):
        kept = sum(STAGES[later][0] for later in names[place:])
        limit = min(STAGES[name][1], end - time.monotonic() - kept)
        if limit < 10:
            print(f"{name}: no time left of the {args.budget:.0f} s", flush=True)
            continue
        run_child(name, limit, args)
        if args.merge:
            with open(args.merge, "w") as file:
                json.dump(load(args.out), file, indent=1)
    print(tables.summary(load(args.out)), flush=True)


def run_child(name: str, limit: float, args: argparse.Namespace) -> None:
    """Runs one stage in a process of its own, and ends it at its limit."""
    path = os.path.join(args.out, f"{name}.json")
    if os.path.exists(path):
        os.remove(path)  # of an earlier run
    # The stage plans for a little less than it has: to stop by itself is better than to be stopped.
    command = [
        sys.executable,
        os.path.abspath(__file__),
        "--stage",
        name,
        "--out",
        args.out,
        "--limit",
        f"{limit - 5:.0f}",
    ]
    start, log_path = time.monotonic(), os.path.join(args.out, f"{name}.log")
    print(f"== {name}, at most {limit:.0f} s", flush=True)
    with open(log_path, "w") as log:
        child = subprocess.Popen(
            command + ["--small"] * args.small,
            env=environment(name, args.small),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "done" if child.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "cut at its time limit"
        finally:
            _end(child)
    with open(log_path, errors="replace") as log:
        lines = log.read().splitlines()
    found = load(args.out).get(name, {"stage": name, "figures": {}})
    if status != "done":
        found |= {"status": status, "last_lines": lines[-25:]}
        with open(path, "w") as file:
            json.dump(found, file, indent=1)
    print("\n".join(line[:300] for line in lines if line.startswith("[")), flush=True)
    print(f"== {name}: {found.get('status')}, {time.monotonic() - start:.0f} s", flush=True)
    if status != "done":
        print("\n".join(lines[-12:]), flush=True)


def _end(child: subprocess.Popen) -> None:
    """Ends a stage and what it started, such as the workers of its tests."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def environment(name: str, small: bool) -> dict[str, str]:
    """Returns the environment of a stage."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    env["PYTHONUNBUFFERED"] = "1"
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    env.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "gpu_day_compiled"))
    env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Steps have the card for themselves; elsewhere PyTorch or other processes need a share of it.
    alone = name.startswith("step") or name == "int8"
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if alone else "false"
    env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.93"
    if name.startswith("peer"):
        env["JAX_PLATFORMS"] = "cpu"  # only counts
    if small and not name.startswith("peer"):
        env.setdefault("JAX_PLATFORMS", "cpu")
        # A rehearsal compiles more than it runs.
        env.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    return env


def run_stage(name: str, out: str, small: bool, limit: float) -> None:
    """Runs one stage in this process. Its file says how it ended."""
    from gpu_stages.record import Record

    record = Record(os.path.join(out, f"{name}.json"), name, small, limit)
    try:
        _stage(name)(record, out)
        record.note(status="done")
    except Exception:
        record.note(status="failed", last_lines=traceback.format_exc().splitlines()[-25:])
        raise


def _stage(name: str):
    if name == "tests":
        from gpu_stages import numerics

        return numerics.tests
    if name == "words":
        from gpu_stages import words

        return words.words
    if name == "packing":
        from gpu_stages import rows

        return rows.packed
    if name == "startup":
        from gpu_stages import start

        return start.start
    if name == "decode":
        from gpu_stages import decoding

        return decoding.decode
    kind, _, variant = name.partition("_")
    if kind == "peer":
        from gpu_stages import peer

        encoder, decoder = _VARIANTS[variant]
        return functools.partial(peer.peer, encoder=encoder, decoder=decoder)
    from gpu_stages import training

    if kind == "step":
        encoder, decoder = _VARIANTS[variant]
        return functools.partial(training.step, encoder=encoder, decoder=decoder)
    return {"ceiling": training.ceiling, "int8": training.int8}[name]


def load(directory: str) -> dict[str, dict]:
    """Reads the stages' files that are there, or the one file that `--merge` made of them."""
    if os.path.isfile(directory):
        with open(directory) as file:
            return json.load(file)
    found = {}
    for name in STAGES:
        path = os.path.join(directory, f"{name}.json")
        if os.path.exists(path):
            with open(path) as file:
                found[name] = json.load(file)
    return found


if __name__ == "__main__":
    main()
