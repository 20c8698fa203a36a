"""The command `vadapter`. Help answers at once: a command's module is imported when it is chosen, jax when it runs."""

import argparse
import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import vadapter
from vadapter.base import exit_codes, quiet, terminal
from vadapter.base.errors import UserError
from vadapter.cli import failures, modules, unknown_arguments

GIN_FLAG = "--gin."


class Command(NamedTuple):
    """A subcommand. Its module has `add_arguments(parser)` and `run(args) -> int | None` and is light to import."""

    name: str
    summary: str
    module: str


COMMANDS = (
    Command("check", "read the data of a run and say what would spoil it", "vadapter.cli.check"),
    Command("plan", "compile a run for a TPU slice and say what it needs, without a TPU", "vadapter.cli.plan"),
    Command("cache", "write once what a run's frozen parts make of its pictures", "vadapter.cli.cache"),
    Command("train", "train one stage, as gin files describe it", "vadapter.cli.train"),
    Command("sweep", "train arms over settings and seeds, and choose each arm's setting", "vadapter.cli.sweep"),
    Command("build", "write a benchmark's official files in the form that is read at random", "vadapter.cli.build"),
    Command("eval", "run the evaluators on a trained model", "vadapter.cli.eval"),
    Command("import", "take open weights into a folder that runs can use", "vadapter.cli.import_weights"),
    Command("infer", "caption an image or a video, or answer a question about it", "vadapter.cli.infer"),
    Command("embed", "write what the adapter makes of pictures and videos, as embeddings", "vadapter.cli.embed"),
    Command("serve", "serve trained models after OpenAI's interface of chat completions", "vadapter.cli.serve"),
    Command("export", "write what a run trained as one folder: the adapter bundle", "vadapter.cli.export"),
    Command("report", "write one HTML file with the curves, figures and examples of some runs", "vadapter.cli.report"),
    Command("demo", "run the whole method in miniature, from pretraining to report", "vadapter.cli.demo"),
)


def _table() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(["commands:", *lines, "", "'vadapter COMMAND --help' describes a command."])


def _front_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vadapter",
        description="Progressively aligned vision-language adapters.",
        epilog=_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vadapter {vadapter.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", metavar="COMMAND", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")
    return parser


def _command(name: str) -> Command:
    names = [command.name for command in COMMANDS]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"There is no command {name}. {meant}The commands are {', '.join(names)}.")
    return COMMANDS[names.index(name)]


def _command_parser(command: Command) -> tuple[argparse.ArgumentParser, object]:
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"vadapter {command.name}",
        description=module.__doc__ or command.summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    modules.add_module_argument(parser)
    module.add_arguments(parser)
    return parser, module.run


def rewrite_gin_flags(argv: Sequence[str]) -> list[str]:
    """Returns `argv` with each `--gin.NAME=VALUE` as `--gin_bindings=NAME=VALUE`, which argparse can declare."""
    return [f"--gin_bindings={arg.removeprefix(GIN_FLAG)}" if arg.startswith(GIN_FLAG) else arg for arg in argv]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status, one of `vadapter.base.exit_codes`.

    A bug is raised: after its traceback the status is 1. One process of many ends at once after an error, without
    returning (`hosts.stop_after_error`).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads data here; its start-up log is noise.
    quiet.import_quietly("tensorflow")
    terminal.log_printable()
    terminal.print_anything()
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        front = _front_parser().parse_args(argv)
        parser, run = _command_parser(_command(front.command))
        args, unknown = parser.parse_known_args(rewrite_gin_flags(front.arguments))
        if unknown:
            raise UserError(unknown_arguments.message(unknown, parser))
        modules.import_modules(args.module)
        status = run(args)  # type: ignore[operator]
        sys.stdout.flush()  # here, where it can be told that nobody reads it any more
        return int(status or exit_codes.DONE)
    except SystemExit as error:  # argparse: help, version, or a message that it has printed
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        failure = failures.explain(error)
        if failure is None:
            _stop_after_error(exit_codes.BUG, error)
            raise
        if debug:
            traceback.print_exc()
        _say(failure)
        _stop_after_error(failure.status)
        return failure.status


def _say(failure: failures.Failure) -> None:
    if failure.status == exit_codes.PIPE:  # what is still to be printed goes nowhere, without a second error
        with contextlib.suppress(OSError, ValueError):  # it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif failure.status == exit_codes.INTERRUPTED:
        print(f"vadapter: {failure.message}", file=sys.stderr)
    else:
        print(f"vadapter: error: {terminal.printable(failure.message)}", file=sys.stderr)


def _stop_after_error(status: int, bug: BaseException | None = None) -> None:
    """Ends this process if it is one of many in a run, after the traceback of a bug; otherwise it returns."""
    hosts = sys.modules.get("vadapter.partitioning.hosts")  # not loaded: not one of many
    if hosts is None or not hosts.is_connected():
        return
    if bug is not None:
        traceback.print_exception(bug)
    hosts.stop_after_error(status)


if __name__ == "__main__":
    sys.exit(main())
