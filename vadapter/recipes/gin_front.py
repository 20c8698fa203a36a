"""The gin front, with t5x's conventions: repeated `--gin_file`, `--gin.NAME=VALUE`, `--gin_search_paths`.

The library does not know gin. Commands register its config classes and functions here under their plain names, parse
the user's files, and ask gin for the objects. `gin_files.py` finds and reads files, `gin_errors.py` turns gin's errors
into messages, `settings.py` lists what is set.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from etils import epath
from gin import config as gin_config

from vadapter.base.errors import UserError
from vadapter.base.files import write_text
from vadapter.recipes import gin_errors, gin_files
from vadapter.recipes.gin_errors import is_gin_error

__all__ = [
    "bound",
    "config_text",
    "explain",
    "is_gin_error",
    "macro",
    "make",
    "parse_gin",
    "register",
    "registered",
    "save_config",
    "share",
]

_registered: dict[str, Callable[..., Any]] = {}


def parse_gin(
    files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    complete: bool = True,
    of_model: Mapping[str, str] | None = None,
) -> gin_files.Statements:
    """Replaces the gin configuration by files and then bindings, and checks it.

    A relative file, also in an `include`, is looked for in the working directory, then in `search_paths`, then in the
    shipped gin folder and in the folder that holds it (so `runs/train.gin` and `gin/runs/train.gin` both work).

    Args:
        files: later ones override earlier ones.
        bindings: `NAME=VALUE` each, over the files.
        search_paths: more folders to look in.
        complete: whether everything that files leave to the user must have a value.
        of_model: texts for macros, which a trained model brings along. They replace what files say, where files have
            such a macro, and not what bindings say.

    Returns:
        What was said, with its places.

    Raises:
        UserError: a file is missing or has a syntax error; a configurable, parameter or macro is unknown; a macro is
            still REQUIRED.
    """
    gin_files.use_search_paths(search_paths)
    gin.clear_config()
    try:
        for file in files:
            gin.parse_config_file(file)
        for name, text in (of_model or {}).items():
            if name in gin_files.read(files, ()).macros:
                gin.bind_parameter(f"{name}/gin.macro.value", text)
        for binding in bindings:
            _parse_binding(binding)
        statements = gin_files.read(files, bindings)
        gin_files.check_macros(statements)
        if complete:
            _leave_out_spare(statements)
            gin.finalize()
    except (RecursionError, MemoryError) as error:
        raise UserError(
            "The gin configuration has brackets or quotes that are nested too deeply to be read. Write the value flat."
        ) from error
    except UserError as error:  # to which gin has added lines of where it was
        raise UserError(str(error).split("\n")[0]) from error
    except Exception as error:
        if not is_gin_error(error):
            raise
        raise UserError(explain(error)) from error
    return statements


def _leave_out_spare(statements: gin_files.Statements) -> None:
    """Gives None to what is REQUIRED and not reached by the experiment, such as that of a replaced data file."""
    keys = {name: f"{name}/gin.macro.value" for name in statements.macros}
    required = [name for name, key in keys.items() if repr(gin.query_parameter(key)) == "%gin.REQUIRED"]
    if not required or not any(name.startswith("Experiment.") for name in statements.places):
        return
    from vadapter.recipes import settings

    for name in {*required} - settings.macros_of_run(statements):
        gin.bind_parameter(keys[name], None)


def explain(error: BaseException) -> str:
    """Returns the paragraph for an error of gin: what was expected, found (with file and line), and to be changed."""
    return gin_errors.paragraph(error, _registered, gin_files.searched())


def _parse_binding(binding: str) -> None:
    name, equals, value = binding.partition("=")
    name = name.strip()
    if not name or not equals or not value.strip():
        raise UserError(f"--gin.{binding} was given; expected the form --gin.NAME=VALUE.")
    gin_files.check(binding, f"{gin_files.FLAG}{name}")
    try:
        gin.parse_config(binding)
    except SyntaxError as error:
        raise UserError(
            f"The value of --gin.{name}={value} cannot be read by gin. A string needs quotes inside the shell's: "
            f"--gin.{name}='\"{value}\"'. Other values are Python literals, %MACRO, @configurable or @configurable()."
        ) from error


def macro(name: str, otherwise: Any = None) -> Any:
    """Returns the value of a macro, or something else where it has none of its own."""
    try:
        value = gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        return otherwise
    return otherwise if isinstance(value, gin_config.ConfigurableReference) else value


def make(name: str) -> Any:
    """Returns what a registered class or function makes of the current configuration."""
    return gin.get_configurable(name)()


def register(*things: Callable[..., Any] | Iterable[Any]) -> None:
    """Makes dataclasses and functions configurable by gin under their plain names.

    gin calls them through a wrapper with the same signature: the objects come out as the very class, with lists as
    tuples (config objects are hashable), and unknown parameter names are refused when the file is read. Registering a
    thing twice does nothing.

    Args:
        *things: dataclasses, functions, or lists of these.

    Raises:
        UserError: another thing has the name already.
    """
    for thing in things:
        if callable(thing):
            _register_one(thing)
        else:
            register(*thing)


def share() -> None:
    """Makes what was registered known in a process whose gin another package configures.

    Its files may use gin's dynamic registration, which looks a class up by itself and not by its name; and may include
    shipped ones.
    """
    for thing in _registered.values():
        known = gin_config._REGISTRY[f"{thing.__module__}.{thing.__name__}"]
        gin_config._INVERSE_REGISTRY[thing] = known._replace(wrapped=thing)
    gin_files.find_shipped()


def bound(parameter: str) -> dict[str, Any]:
    """Returns what all parameters of a name are bound to, in any scope and of any configurable.

    Args:
        parameter: its own name, such as `batch_size`.

    Returns:
        `{whole name as gin writes it: value}`.
    """
    return {
        f"{scope}/{selector}.{parameter}" if scope else f"{selector}.{parameter}": values[parameter]
        for (scope, selector), values in gin_config._CONFIG.items()
        if parameter in values
    }


def registered() -> Mapping[str, Callable[..., Any]]:
    """Returns what was registered, by its name in gin."""
    return _registered


def _register_one(thing: Callable[..., Any]) -> None:
    name = thing.__name__
    known = _registered.get(name, thing)
    if (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
        raise UserError(
            f"The name {name} in gin is wanted for {thing.__module__}.{name} and taken by {known.__module__}.{name}. "
            "Rename one of them."
        )
    if _registered.get(name) is not thing:  # it is new, or its module was run again, as a cell of a notebook is
        _registered[name] = thing
        with gin.unlock_config(), gin_config.interactive_mode():
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
    write_text(folder / "config.gin", config_text())
    write_text(folder / "operative_config.gin", _without_hosts(gin.operative_config_str()))


def config_text() -> str:
    """Returns all that is configured, as gin, but for the processes: those of a run are not those of its evaluation."""
    return _without_hosts(gin.config_str())


def _without_hosts(text: str) -> str:
    section = r"^# Parameters for (?:\S*[/.])?HostsConfig:\n.*?(?=^# Parameters for |\Z)"
    return re.sub(section, "", text, flags=re.MULTILINE | re.DOTALL)
