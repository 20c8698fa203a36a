r"""Compiles a run's real training step for a TPU slice, on a machine without TPU, and says what it needs.

vadapter plan --gin_file=experiments/paper_stage2.gin --topology=v5e:8x8 --price=1.2 --html=plan.html

Memory is known to the byte, the time of a step as the compiler estimates it. No data are read and no weights opened:
their places in the gin files need no values. With --search it also looks for a faster setting, or for one that fits:

vadapter plan --gin_file=experiments/paper_stage2.gin --topology=v5e:8x8 --search

Needs libtpu: pip install 'vadapter[tpu]'. For one GPU, by an estimate that needs no libtpu:

vadapter plan --gin_file=experiments/paper_stage2.gin --device="RTX 4090" --largest_batch

Exit status 3 says that nothing fits.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vadapter.base import exit_codes, terminal

if TYPE_CHECKING:
    from vadapter.planning.plans import Plan
    from vadapter.planning.search import Outcome, Search, Setting
    from vadapter.runs.planner import Planner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_gin_arguments

    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", metavar="TYPE:AxB", help="one slice, such as v5e:8x8 or v5p:4x4x8")
    where.add_argument("--device", metavar="GPU", help="one GPU, by estimate, such as 'RTX 4090' or a100-80g")
    where.add_argument("--memory", metavar="24GB", help="one GPU of which only the memory is known")
    parser.add_argument("--largest_batch", action="store_true", help="of a GPU: find the largest batch that fits")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices of it (default: %(default)s)")
    parser.add_argument("--price", type=float, metavar="USD", help="price of a chip, in USD an hour")
    parser.add_argument("--video", action="store_true", help="batches of videos (default: of still images)")
    parser.add_argument("--decode", action="store_true", help="compile the generation of text as well")
    parser.add_argument("--decode_rows", type=int, metavar="N", help="prompts at once (default: the training batch)")
    search = parser.add_argument_group("search")
    search.add_argument("--search", action="store_true", help="look for faster settings, or for one that fits")
    search.add_argument(
        "--search_limit", type=int, default=12, metavar="N", help="settings to compile at most (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the plan as JSON")
    output.add_argument("--html", metavar="FILE", help="write the plan as one HTML page")
    output.add_argument("--cache_dir", metavar="DIR", help="where results are kept (default: ~/.cache/vadapter/plan)")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints and writes the plan; returns `exit_codes.NO` if it does not fit."""
    from pathlib import Path

    from vadapter.planning import cards
    from vadapter.planning.topologies import Topology, prepare

    prepare()  # before anything uses a device
    from vadapter.base.errors import UserError
    from vadapter.cli.arguments import parse_gin_arguments
    from vadapter.recipes import experiments
    from vadapter.recipes.gin_front import make
    from vadapter.runs import planner

    if args.price is not None and args.price < 0 or args.search_limit < 1:
        raise UserError("--price must not be negative, and --search_limit must be 1 or more.")
    _check_options(args)
    card = None
    if args.topology is None:
        card = cards.card(args.device) if args.device is not None else cards.memory(args.memory)
    topology = None if card else Topology.parse(args.topology or "", args.slices)
    if args.print_config:
        experiments.register()
        parse_gin_arguments(args)  # prints and exits
    paths = [path for path in args.gin_search_paths.split(",") if path]
    experiment = experiments.unopened(args.gin_file, args.gin_bindings, paths)
    recipe = Path(args.gin_file[0]).stem if args.gin_file else "experiment"
    if card is not None:
        return _on_card(recipe, experiment, card, args)
    assert topology is not None
    planned = planner.Planner(recipe, experiment, topology, args.price, args.video, args.cache_dir)
    search = None
    if args.search:
        search, plan = _searched(planned, args)
        if plan is None:
            raise UserError(f"{recipe} on {topology.name}: {search.ended}")
    else:
        plan = waited("Compiling the training step", planned.plan)
    if args.decode and plan.compiled.fits:
        train: Plan = plan
        decoding = make("DecodingConfig")
        plan = waited(
            "Compiling the generation of text", lambda: planned.with_decode(train, decoding, args.decode_rows)
        )
    _report(plan, search, args)
    return exit_codes.DONE if plan.fits else exit_codes.NO


def _check_options(args: argparse.Namespace) -> None:
    from vadapter.base.errors import UserError

    if args.topology is not None:
        if args.largest_batch:
            raise UserError("--largest_batch is for one GPU (--device or --memory). For TPUs take --search.")
        return
    given = {"--search": args.search, "--decode": args.decode, "--html": args.html, "--slices": args.slices != 1}
    given |= {"--price": args.price is not None, "--decode_rows": args.decode_rows, "--cache_dir": args.cache_dir}
    if wrong := [name for name, value in given.items() if value]:
        raise UserError(
            f"{', '.join(wrong)}: for TPUs only (--topology), found with --device or --memory. Leave it out."
        )


def _on_card(recipe: str, experiment: Any, card: Any, args: argparse.Namespace) -> int:
    """Plans for one GPU."""
    import json
    from pathlib import Path

    from vadapter.planning import cards
    from vadapter.runs import card_planner

    def work() -> Any:
        if args.largest_batch and (found := card_planner.largest(recipe, experiment, card, args.video)):
            return found
        return card_planner.plan(recipe, experiment, card, video=args.video)

    plan = waited("Compiling the training step", work)
    if args.largest_batch and plan.fits:
        more = " (no larger one was tried)" if plan.rows >= cards.MOST * plan.accumulate else ""
        print(f"The largest batch that fits, to within an eighth{more}:")
    print(f"{plan.text()}\n\n{cards.BASIS}")
    if args.json:
        _write(Path(args.json), json.dumps(plan.to_json(), indent=2) + "\n")
        print(terminal.line(f"Wrote {args.json}."))
    return exit_codes.DONE if plan.fits else exit_codes.NO


def waited(what: str, work: Callable[[], Any]) -> Any:
    """Runs `work` in a thread with a progress line, so that Ctrl-C is heard while the compiler runs.

    Args:
        what: the line.
        work: to do; what it raises is raised here.
    """
    import contextvars
    import sys
    import threading

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    result: list[Any] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # A daemon: a compilation cannot be stopped, and the command does not wait for one that nobody wants any more.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(body,), daemon=True)
    thread.start()
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        progress.add_task(what, total=None)
        while thread.is_alive():
            thread.join(0.2)
    if failure:
        raise failure[0]
    return result[0]


def _searched(planned: "Planner", args: argparse.Namespace) -> "tuple[Search, Plan | None]":
    """Searches; what is known when Ctrl-C is pressed is the result."""
    import sys

    from vadapter.planning.search import Search

    search = Search(planned.space(), args.search_limit)

    def measure(setting: "Setting") -> "Outcome":
        number = f"{len(search.outcomes) + 1} of {args.search_limit} at most"
        outcome = waited(f"Setting {number}: {setting.text()}", lambda: planned.outcome(setting))
        verdict = f"{outcome.seconds:.3f} s" if outcome.fits else "does not fit"
        print(f"{number}: {setting.text()}: {verdict}", file=sys.stderr, flush=True)
        return outcome

    try:
        search.run(planned.start, measure)
    except KeyboardInterrupt:
        print("Interrupted; what is known so far:", file=sys.stderr)
    ranked = search.ranked()
    return search, ranked[0].plan if ranked else None


def _report(plan: "Plan", search: "Search | None", args: argparse.Namespace) -> None:
    from pathlib import Path

    from vadapter.planning import page

    lead, shown = page.summary(plan), page.tables(plan)
    notes = page.notes(plan)
    if search is not None:
        shown = [page.ranking(search), *shown]
    page.show([*notes, "", lead], shown)
    written = []
    if args.json:
        _write(Path(args.json), as_json(plan, search))
        written.append(args.json)
    if args.html:
        _write(Path(args.html), page.html(f"{plan.recipe} on {plan.topology}", lead, shown, notes, plan))
        written.append(args.html)
    if written:
        print(terminal.line(f"Wrote {' and '.join(written)}."))


def as_json(plan: "Plan", search: "Search | None" = None) -> str:
    """Returns the plan, and what else a search compiled, as JSON."""
    import dataclasses
    import json

    content = plan.to_json()
    if search is not None:
        content["search"] = {
            "ended": search.ended,
            "outcomes": [dataclasses.asdict(dataclasses.replace(o, plan=None)) for o in search.ranked()],
            "refused": [{"setting": dataclasses.asdict(s), "reason": r} for s, r in search.refused.items()],
        }
        for outcome in content["search"]["outcomes"]:
            del outcome["plan"]
            if not outcome["fits"]:
                outcome["seconds"] = None
    return json.dumps(content, indent=2) + "\n"


def _write(path: Any, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
