"""The gin front, with t5x's conventions: repeated `--gin_file`, `--gin.NAME=VALUE`, `--gin_search_paths`.

The library does not know gin. Commands register its config classes and functions here under their plain names, parse
the user's files, and ask gin for the objects. `gin_errors.py` turns gin's errors into messages.
"""

import argparse
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import gin
from etils import epath
from gin import config as gin_config

from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.cli.gin_errors import explain, is_gin_error

__all__ = [
    "add_gin_arguments",
    "config_text",
    "friendly_gin_error",
    "is_gin_error",
    "parse_gin",
    "parse_gin_arguments",
    "register",
    "save_config",
]

_registered: dict[str, Any] = {}
_search_paths: list[Path] = []


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--gin_file`, `--gin.NAME=VALUE` and `--gin_search_paths`."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; may be repeated, later files override earlier ones",
    )
    group.add_argument(
        "--gin.NAME",  # Only for the help: main rewrites --gin.NAME=VALUE to --gin_bindings=NAME=VALUE.
        "--gin_bindings",
        dest="gin_bindings",
        action="append",
        default=[],
        metavar="VALUE",
        help="set a macro or a parameter over the files; strings need quotes: --gin.MODEL_DIR='\"runs/a\"'",
    )
    group.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR,DIR",
        help="folders to look for gin files in, after the working directory and before the shipped gin folder",
    )


def parse_gin_arguments(args: argparse.Namespace) -> None:
    """Parses what `add_gin_arguments` declared. Raises as `parse_gin`."""
    paths = [path for path in args.gin_search_paths.split(",") if path]
    parse_gin(args.gin_file, args.gin_bindings, paths)


def parse_gin(gin_files: Sequence[str] = (), bindings: Sequence[str] = (), search_paths: Sequence[str] = ()) -> None:
    """Replaces the gin configuration by files and then bindings, and checks it.

    A relative file, also in an `include`, is looked for in the working directory, then in `search_paths`, then in the
    shipped gin folder and in the folder that holds it (so `runs/train.gin` and `gin/runs/train.gin` both work).

    Args:
        gin_files: later ones override earlier ones.
        bindings: `NAME=VALUE` each, over the files.
        search_paths: more folders to look in.

    Raises:
        UserError: a file is missing or has a syntax error; a configurable, parameter or macro is unknown; a macro is
            still REQUIRED.
    """
    shipped = resources.folder("gin")
    _search_paths[:] = [*(Path(path) for path in search_paths), shipped, shipped.parent]
    _use_search_paths()
    gin.clear_config()
    try:
        for gin_file in gin_files:
            gin.parse_config_file(gin_file)
        for binding in bindings:
            _parse_binding(binding)
        gin.finalize()
    except Exception as error:
        if isinstance(error, UserError) or not is_gin_error(error):
            raise
        raise UserError(friendly_gin_error(error)) from error


def friendly_gin_error(error: BaseException) -> str:
    """Returns the paragraph for an error of gin: what was expected, found (with file and line), and to be changed."""
    return explain(error, _registered, ["the working directory", *map(str, _search_paths)])


def _parse_binding(binding: str) -> None:
    name, equals, value = binding.partition("=")
    name = name.strip()
    if not name or not equals or not value.strip():
        raise UserError(f"--gin.{binding} was given; expected the form --gin.NAME=VALUE.")
    try:
        gin.parse_config(binding)
    except SyntaxError as error:
        raise UserError(
            f"The value of --gin.{name}={value} cannot be read by gin. A string needs quotes inside the shell's: "
            f"--gin.{name}='\"{value}\"'. Other values are Python literals, %MACRO, @configurable or @configurable()."
        ) from error


def _find(path: str) -> str:
    """The place of a gin file: itself, or in the first of the search paths that has it."""
    places = [epath.Path(path), *(folder / path for folder in _search_paths)]  # a run's may be in a bucket
    return next((str(place) for place in places if place.is_file()), path)


def _open(path: str) -> IO[str]:
    return epath.Path(_find(path)).open()


def _exists(path: str) -> bool:
    return epath.Path(_find(path)).is_file()


def _use_search_paths() -> None:
    # gin's own search paths can only be added to, and its reader of Python resources logs an error for each file that
    # it does not have. gin has no public way to replace readers.
    readers: list[Any] = gin_config._FILE_READERS
    readers[:] = [(_open, _exists)]


def register(*things: ModuleType | Callable[..., Any] | Iterable[Any]) -> None:
    """Makes dataclasses and functions configurable by gin under their plain names.

    gin calls them through a wrapper with the same signature: the objects come out as the very class, with lists as
    tuples (config objects are hashable), and unknown parameter names are refused when the file is read. Registering a
    thing twice does nothing.

    Args:
        *things: dataclasses; functions; modules, of which the public frozen dataclasses and the functions named in
            `__all__` are taken; or lists of these.

    Raises:
        ValueError: another thing has the name already.
    """
    for thing in things:
        if isinstance(thing, ModuleType):
            register(*_public(thing))
        elif callable(thing):
            _register_one(thing)
        else:
            register(*thing)


def _public(module: ModuleType) -> list[Any]:
    """The module's own public frozen dataclasses (flax modules are not frozen), and the functions of its `__all__`."""
    exported = getattr(module, "__all__", ())
    return [
        member
        for name, member in vars(module).items()
        if (inspect.isfunction(member) and name in exported)
        or (inspect.isclass(member) and _is_frozen(member) and not name.startswith("_"))
        if member.__module__ == module.__name__
    ]


def _is_frozen(thing: type) -> bool:
    return dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _register_one(thing: Callable[..., Any]) -> None:
    name = thing.__name__
    if _registered.get(name, thing) is not thing:
        taken = _registered[name].__module__
        raise ValueError(f"the gin name {name} is wanted for {thing.__module__} and taken by {taken}")
    if name not in _registered:
        _registered[name] = thing
        with gin.unlock_config():
            gin.external_configurable(_wrapper(thing), name=name, module=thing.__module__)


def _wrapper(thing: Callable[..., Any]) -> Callable[..., Any]:
    convert = _tuples if inspect.isclass(thing) else lambda value: value

    def call(*args: Any, **kwargs: Any) -> Any:
        return thing(*map(convert, args), **{name: convert(value) for name, value in kwargs.items()})

    functools.update_wrapper(call, thing, updated=())
    del call.__wrapped__
    call.__signature__ = inspect.signature(thing)  # type: ignore[attr-defined]
    return call


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if type(value) in (list, tuple) else value


def save_config(model_dir: str | Path) -> None:
    """Writes `config.gin` (`config_text`) and `operative_config.gin` (what was used) into `model_dir`.

    Call it after the objects are made, on one process only. `config.gin` alone, as `--gin_file`, repeats the run.
    """
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(config_text())
    (folder / "operative_config.gin").write_text(_without_hosts(gin.operative_config_str()))


def config_text() -> str:
    """Returns all that is configured, as gin, but for the processes: those of a run are not those of its evaluation."""
    return _without_hosts(gin.config_str())


def _without_hosts(text: str) -> str:
    section = r"^# Parameters for (?:\S*[/.])?HostsConfig:\n.*?(?=^# Parameters for |\Z)"
    return re.sub(section, "", text, flags=re.MULTILINE | re.DOTALL)
