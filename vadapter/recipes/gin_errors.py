"""gin's errors as one paragraph each: what was expected, what was found and where, what to change."""

import ast
import inspect
import re
import tokenize
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from vadapter.recipes.gin_files import RENAMED

Registered = Mapping[str, Callable[..., Any]]

_LOCATION = re.compile(r'\n\s*In (?:file "(?P<file>.+?)",|bindings string) line (?P<line>\d+)\n\s*(?P<text>.*)')
_UNKNOWN_NAME = re.compile(r"No configurable matching (?:reference )?'@?(?P<name>[^']+?)(?:\(\))?'")
_UNKNOWN_PARAMETER = re.compile(r"Configurable '(?P<name>[^']+)' doesn't have a parameter named '(?P<parameter>[^']+)'")
_UNKNOWN_MACRO = re.compile(r"No bindings specified for '(?P<macro>.+)/(?:gin\.)?macro' in config string")
_REQUIRED = re.compile(r"(?P<key>\S+) set to `%gin\.REQUIRED` but not")
_UNBOUND = re.compile(r"Required bindings for `(?P<name>.+?)` not provided in config: (?P<parameters>\[.*?\])")
_UNSUPPLIED = re.compile(
    r"No values supplied by Gin or caller for arguments: (?P<parameters>\[.*?\])"
    r".*?In call to configurable '(?P<name>.+?)'",
    re.DOTALL,
)
_NO_FILE = re.compile(r"Unable to open file: (?P<file>.+)\. Searched config paths")
_ANY = (_LOCATION, _UNKNOWN_NAME, _UNKNOWN_PARAMETER, _UNKNOWN_MACRO, _REQUIRED, _UNBOUND, _UNSUPPLIED, _NO_FILE)


def is_gin_error(error: BaseException) -> bool:
    """Whether gin raised the error because of what a configuration says (or does not say)."""
    if isinstance(error, SyntaxError | tokenize.TokenError):
        return any(frame.filename.endswith(("gin/config.py", "gin\\config.py")) for frame in _frames(error))
    kinds = (ValueError, TypeError, RuntimeError, OSError, ImportError, AttributeError, LookupError, NameError)
    return isinstance(error, kinds) and any(pattern.search(str(error)) for pattern in _ANY)


def paragraph(error: BaseException, registered: Registered, searched: Sequence[str]) -> str:
    """Returns the message for an error that `is_gin_error` recognises.

    Args:
        error: what gin raised.
        registered: the configurables, to name near misses.
        searched: the folders in which gin files were looked for.
    """
    if isinstance(error, SyntaxError | tokenize.TokenError):
        return _explain_syntax(error)
    text = str(error)
    rules = (
        (_UNKNOWN_NAME, lambda m: _explain_name(m["name"], registered)),
        (_UNKNOWN_PARAMETER, lambda m: _explain_parameter(m["name"], m["parameter"], registered)),
        (_UNKNOWN_MACRO, lambda m: _explain_macro(m["macro"])),
        (_REQUIRED, lambda m: _explain_required()),
        (_UNBOUND, lambda m: _explain_unbound(m["name"], ast.literal_eval(m["parameters"]))),
        (_UNSUPPLIED, lambda m: _explain_unbound(m["name"], ast.literal_eval(m["parameters"]))),
        (_NO_FILE, lambda m: _explain_file(m["file"], searched)),
    )
    for pattern, explanation in rules:
        if found := pattern.search(text):
            return explanation(found) + _where(text)
    return f"The gin configuration cannot be used: {_LOCATION.split(text)[0].strip()}." + _where(text)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _where(text: str) -> str:
    found = _LOCATION.search(text)
    if not found:
        return ""
    place = f"{found['file']}, line {found['line']}" if found["file"] else "the command line"
    return f" Found in {place}: {found['text'].strip()}"


def _near(name: str, known: Sequence[str]) -> str:
    from vadapter.base.trees import nearest  # Imports flax; only needed once something went wrong.

    return ", ".join(nearest(name, known)) or "(none)"


def _explain_name(name: str, registered: Registered) -> str:
    return (
        f"gin knows no configurable called {name}; the nearest are: {_near(name.split('.')[-1], list(registered))}. "
        "Correct the name in the gin file or in --gin."
    )


def _explain_parameter(name: str, parameter: str, registered: Registered) -> str:
    thing = registered.get(name.split(".")[-1])
    known = list(inspect.signature(thing).parameters) if thing else []
    return (
        f"{name} has no parameter {parameter}; the nearest are: {_near(parameter, known)}. "
        "Correct the name in the gin file or in --gin."
    )


def _explain_macro(macro: str) -> str:
    if new := RENAMED.get(macro):
        return f"The macro %{macro} is called %{new} now. Rename it."
    known = [name for name, _ in _macros() if name != macro]
    return (
        f"The macro %{macro} is used and has no value; the macros with values are: {_near(macro, known)}. "
        f"Give it one with --gin.{macro}=VALUE, in a gin file with {macro} = VALUE, or correct its name."
    )


def _explain_required() -> str:
    missing = [name for name, value in _bindings() if value == "%gin.REQUIRED"]
    flags = " ".join(f"--gin.{name}=VALUE" for name in missing)
    return (
        f"The gin files leave these to you: {', '.join(missing)}. Give each a value, for instance with {flags} "
        "(strings need quotes inside the shell's: --gin.NAME='\"text\"')."
    )


def _explain_unbound(name: str, parameters: Sequence[str]) -> str:
    flags = " ".join(f"--gin.{name}.{parameter}=VALUE" for parameter in parameters)
    return (
        f"{name} needs a value for {', '.join(parameters)} and the configuration gives none. "
        f"Add it to a gin file, or give {flags}."
    )


def _explain_file(file: str, searched: Sequence[str]) -> str:
    return (
        f"The gin file {file} was not found in any of: {', '.join(searched)}. "
        "Correct the path, or name its folder with --gin_search_paths=DIR."
    )


def _explain_syntax(error: SyntaxError | tokenize.TokenError) -> str:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}" if error.filename else "the command line"
        reason = error.msg.splitlines()[-1]
        line = f": {error.text.strip()}" if error.text else ""
        return (
            f"The gin configuration has a syntax error in {place}{line} ({reason.strip(' .')}). Expected "
            "'name.parameter = VALUE', 'MACRO = VALUE', "
            "'include \"file.gin\"' or 'import module'; a VALUE is a Python literal (strings "
            "in quotes), %MACRO, @configurable or @configurable()."
        )
    return f"A gin file ends inside a statement ({error.args[0]}): a bracket or a quote is not closed."


def _bindings() -> list[tuple[str, str]]:
    """(name, value) of the one-line bindings of the current configuration, macros included."""
    return re.findall(r"^([\w/.]+) = (.+)$", gin.config_str(max_line_length=10_000), re.MULTILINE)


def _macros() -> list[tuple[str, str]]:
    return [(name, value) for name, value in _bindings() if "." not in name]
