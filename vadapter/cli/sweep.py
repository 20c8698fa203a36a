"""Trains arms (gin files with a name) over a grid of settings and over seeds, and keeps one table of results.

vadapter sweep --out=sweeps/open --seeds=0,1,2 --over OptimizerConfig.learning_rate=1e-4,3e-4,1e-3 \\
  --arm perceiver=experiments/open_perceiver.gin --arm words=experiments/open_stage2.gin \\
  --arm_gin words:STAGE1_RUN='"runs/stage1/seed{seed}"' --gin_file=... --gin.TRAIN_JSONL='"photos/photos.jsonl"'

The validation loss of the first seed chooses each arm's setting; the other seeds are trained at that setting. Each run
is a MODEL_DIR of its own, OUT/ARM/SETTING/seedN, trained as by vadapter train. The same command goes on with a sweep
that was stopped, and does nothing where it is finished. `vadapter report OUT` makes a page of it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vadapter.base import exit_codes, terminal
from vadapter.base.errors import UserError
from vadapter.cli.arguments import add_gin_arguments

if TYPE_CHECKING:
    from vadapter.runs.sweep import Arm, Run, Sweep

_OWN = ("MODEL_DIR", "SEED")  # macros that the sweep sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--arm",
        action="append",
        required=True,
        metavar="NAME=FILE,FILE",
        help="an arm and its gin files, which come before those of --gin_file; repeat it for each arm",
    )
    parser.add_argument(
        "--arm_gin",
        action="append",
        default=[],
        metavar="ARM:NAME=VALUE",
        help="a setting of one arm, as --gin.NAME=VALUE is of all; {seed} in a value of either is the run's seed",
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="a setting and its values; several make a grid. ARM:NAME=V1,V2 is for one arm, in place of NAME of all",
    )
    parser.add_argument("--seeds", default="0", metavar="N,N", help="the first chooses (default: %(default)s)")
    parser.add_argument("--all_seeds", action="store_true", help="train every setting with every seed; all choose")
    parser.add_argument(
        "--stop_after", default="", metavar="STEP,STEP", help="measure here, and let only the best settings go on"
    )
    parser.add_argument("--keep", default="", metavar="K,K", help="settings of an arm that go on, for each such step")
    parser.add_argument(
        "--validation", default="val", metavar="NAME", help="evaluation whose loss chooses (default: %(default)s)"
    )
    parser.add_argument(
        "--test",
        default="",
        metavar="NAME/SCALAR",
        help="figure of the last evaluation to compare arms by, such as generation/cider; it chooses nothing",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument(
        "--worker_env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the trainings' environment; {worker} in it is the worker's number, from 0: "
        "CUDA_VISIBLE_DEVICES={worker} gives each a GPU of its own",
    )
    parser.add_argument("--retry", action="store_true", help="also try the runs again that failed by their settings")
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the trainings' commands, stop")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains and prints a table. Returns 0; 3 where a run failed; 143 where some were stopped and go on next time."""
    from vadapter.runs.sweep import check_same
    from vadapter.runs.sweep_run import StoppedError, SweepRunner

    sweep, out = _sweep(args), Path(args.out)
    if args.workers < 1:
        raise UserError(f"--workers={args.workers} was given; expected 1 or more.")
    environment = dict(_pair(text, "--worker_env", "NAME=VALUE") for text in args.worker_env)
    _check_alone()
    check_same(sweep, out)
    if args.print_config:
        return _print_config(sweep)
    texts = _checked(sweep, out)
    if args.dry_run:
        return _print_commands(sweep, out)

    def command(run: "Run", until: int | None) -> list[str]:
        return _command(sweep, run, out, until)

    runner = SweepRunner(sweep, out, command, configurations=texts, retry=args.retry, say=_say)
    try:
        lines = runner.run(args.workers, environment)
    except StoppedError:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return exit_codes.STOPPED
    _print_table(sweep, lines)
    place = terminal.line(out)
    print(f"\nResults: {place}/results.jsonl, {place}/results.parquet\nA page of them: vadapter report {place}")
    statuses = {line["status"] for line in lines}
    return exit_codes.NO if "failed" in statuses else exit_codes.STOPPED if "paused" in statuses else exit_codes.DONE


# --- what was asked for ---------------------------------------------------------------------------------------------


def _sweep(args: argparse.Namespace) -> "Sweep":
    from vadapter.runs.sweep import Sweep

    steps, keep = _numbers(args.stop_after, "--stop_after"), _numbers(args.keep, "--keep")
    if len(steps) != len(keep):
        raise UserError(
            f"--stop_after has {len(steps)} steps and --keep {len(keep)} numbers; expected one number to keep for each "
            "step, such as --stop_after=200 --keep=2."
        )
    if args.test and not all(args.test.partition("/")):
        raise UserError(f"--test={args.test} was given; expected EVALUATION/SCALAR, such as generation/cider.")
    return Sweep(
        arms=tuple(_arms(args)),
        seeds=tuple(_numbers(args.seeds, "--seeds")),
        gin_files=tuple(args.gin_file),
        bindings=tuple(_allowed(text) for text in args.gin_bindings),
        search_paths=tuple(path for path in args.gin_search_paths.split(",") if path),
        modules=tuple(args.module),
        rungs=tuple(zip(steps, keep, strict=True)),
        all_seeds=args.all_seeds,
        validation=args.validation,
        test=args.test,
    )


def _arms(args: argparse.Namespace) -> "list[Arm]":
    from vadapter.runs.sweep import Arm

    named = [_pair(text, "--arm", "NAME=FILE,FILE") for text in args.arm]
    names = [name for name, _ in named]
    bindings = [_of_arm(text, names, "--arm_gin") for text in args.arm_gin]
    grids = [_of_arm(text, names, "--over") for text in args.over]
    for arm, text in bindings:
        if not arm:
            raise UserError(f"--arm_gin={text} names no arm; expected ARM:NAME=VALUE. For all arms: --gin.{text}.")
    found = []
    for name, files in named:
        grid: dict[str, tuple[str, ...]] = {}
        for owner in ("", name):
            for text in (text for arm, text in grids if arm == owner):
                swept, values = _pair(_allowed(text), "--over", "NAME=V1,V2")
                grid[swept] = tuple(_values(values))
        own = tuple(_allowed(text) for arm, text in bindings if arm == name)
        found.append(Arm(name, tuple(file for file in files.split(",") if file), own, grid))
    return found


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name.strip() or not value.strip():
        raise UserError(f"{flag} {text} was given; expected the form {flag} {form}.")
    return name.strip(), value


def _of_arm(text: str, arms: Sequence[str], flag: str) -> tuple[str, str]:
    """(arm, rest) of `ARM:NAME=VALUE`; the arm is "" where none is named."""
    before, colon, after = text.partition("=")[0].partition(":")
    if not colon:
        return "", text
    if before not in arms:
        raise UserError(f"{flag} {text} names the arm {before}; expected one of {', '.join(arms)}.")
    return before, after + text[len(before) + 1 + len(after) :]


def _allowed(binding: str) -> str:
    name = binding.partition("=")[0].strip()
    if name in _OWN:
        raise UserError(f"{name} was given; a sweep sets {' and '.join(_OWN)} of each run. Use --out and --seeds.")
    return binding


def _values(text: str) -> list[str]:
    """Splits at commas that are outside of brackets and quotes."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    values = [value.strip() for value in found]
    if not all(values):
        raise UserError(f"The values {text!r} of --over have an empty one; expected V1,V2 with something in each.")
    return values


def _numbers(text: str, flag: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{flag}={text} was given; expected whole numbers with commas between, such as {flag}=0,1,2.")
    return [int(part) for part in parts]


def _check_alone() -> None:
    from vadapter.partitioning import hosts

    number = hosts.settings(hosts.HostsConfig()).get("num_processes", 1)
    if number > 1:
        raise UserError(
            f"JAX_NUM_PROCESSES says that this is one of {number} processes; a sweep's runs are each of one. Start it "
            "on one host only, with JAX_NUM_PROCESSES=1."
        )


def _checked(sweep: "Sweep", out: Path) -> dict[Path, str]:
    """Reads the gin files of every setting, and returns what each says, by its folder."""
    from vadapter.recipes import experiments
    from vadapter.runs.sweep import Run, check_configuration

    texts = {}
    for arm in sweep.arms:
        for number, setting in enumerate(arm.settings()):
            first = Run(arm, setting, sweep.seeds[0])
            given, swept = sweep.bindings_of(first, "MODEL_DIR"), [] if number else list(arm.grid)
            try:
                text = experiments.checked(sweep.files_of(arm, first.seed), given, sweep.search_paths, swept)
            except Exception as error:
                raise _in_arm(arm.name, error) from error
            folder = out / arm.name / setting.name
            check_configuration(folder, text)
            texts[folder] = text
    return texts


def _in_arm(name: str, error: Exception) -> Exception:
    from vadapter.recipes import gin_front

    if isinstance(error, UserError):
        return UserError(f"Arm {name}: {error}")
    return UserError(f"Arm {name}: {gin_front.explain(error)}") if gin_front.is_gin_error(error) else error


def _command(sweep: "Sweep", run: "Run", out: Path, until: int | None) -> list[str]:
    """The training of a run, up to a step or to its end."""
    bindings = sweep.bindings_of(run, str(out / run.folder))
    if until is not None:
        bindings.append(f"TrainConfig.pause_at={until}")
    return [
        *(sys.executable, "-m", "vadapter", "train"),
        *(f"--module={name}" for name in sweep.modules),
        *([f"--gin_search_paths={','.join(sweep.search_paths)}"] if sweep.search_paths else []),
        *(f"--gin_file={file}" for file in sweep.files_of(run.arm, run.seed)),
        *(f"--gin.{binding}" for binding in bindings),
    ]


# --- what is printed ------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, flush=True)


def _print_commands(sweep: "Sweep", out: Path) -> int:
    import shlex

    grid = {arm.name: arm.settings() for arm in sweep.arms}
    for run in sweep.runs(grid, sweep.choosing):
        print(shlex.join(["vadapter", *_command(sweep, run, out, None)[3:]]))
    later = len(sweep.arms) * (len(sweep.seeds) - len(sweep.choosing))
    print(f"{len(sweep.runs(grid, sweep.choosing))} runs choose the settings; {later} follow at those chosen.")
    return 0


def _print_config(sweep: "Sweep") -> int:
    from vadapter.recipes import gin_front, settings
    from vadapter.runs.sweep import Run

    for arm in sweep.arms:
        first = Run(arm, arm.settings()[0], sweep.seeds[0])
        given = sweep.bindings_of(first, "MODEL_DIR")
        said = gin_front.parse_gin(sweep.files_of(arm, first.seed), given, sweep.search_paths, False)
        print(f"# {first}\n{settings.text(settings.of_run(said))}\n")
    return 0


def _print_table(sweep: "Sweep", lines: Sequence[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    from vadapter.reports.sweep_data import summaries

    columns = ["arm", "setting", "seeds", "trained", "validation loss", *([sweep.test] if sweep.test else []), ""]
    table = Table(*columns)
    for arm in summaries(lines, sweep.test):
        trained = f"{arm.trained_parameters:,}" if arm.trained_parameters else "-"
        tested = [arm.text(arm.test)] if sweep.test else []
        seeds = ",".join(map(str, arm.seeds)) or "-"
        table.add_row(arm.name, arm.setting, seeds, trained, arm.text(arm.validation), *tested, arm.warning)
    Console(width=max(100, Console().width)).print(table)
