"""The settings of a run, one a line: its value, where it was set, and what it means.

`--print_config` prints those of a run; `docs/settings_page.py` makes docs/settings.md of all that there are.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin

from vadapter.base.errors import UserError
from vadapter.base.parameters import Parameter, made_by, parameters
from vadapter.recipes import gin_front as config
from vadapter.recipes.gin_files import Statements

# Parameters of the experiment by the groups in which a person looks for them.
_GROUP_OF = {
    "model": "Model",
    "data": "Data",
    "train": "Training",
    "objective": "Training",
    "seed": "Training",
    "evaluations": "Evaluation",
    "mesh": "Devices",
    "rules": "Devices",
    "model_dir": "Folders",
    "sources": "Folders",
    "bundle": "Folders",
    "handoff": "Training",
}
GROUPS = tuple(dict.fromkeys(_GROUP_OF.values()))
_LONGEST = 60  # characters of a value on a line
_MISSING = inspect.Parameter.empty  # a parameter without default
_UNBOUND = object()
_REQUIRED = "%gin.REQUIRED"


class Setting(NamedTuple):
    """One setting of a run.

    Attributes:
        group: one of `GROUPS`.
        name: the macro or parameter that sets it, as `--gin.NAME=VALUE` takes it.
        value: as gin writes it.
        origin: a file and its line, a flag, a variant, or "default".
        meaning: what it is, with its unit.
        sets: the parameters that a macro sets.
    """

    group: str
    name: str
    value: str
    origin: str
    meaning: str
    sets: tuple[str, ...] = ()


def of_run(statements: Statements) -> list[Setting]:
    """Returns every setting of the experiment that gin was given. Nothing is opened; what is missing is `REQUIRED`.

    Args:
        statements: what was said, as `config.parse_gin` returns it.
    """
    return sorted(_Reader(statements).found.values(), key=lambda setting: GROUPS.index(setting.group))


def macros_of_run(statements: Statements) -> set[str]:
    """Returns the macros that the experiment reaches."""
    return _Reader(statements).macros


class _Reader:
    """Walks through what gin was given, from the experiment to its leaves.

    Attributes:
        found: the settings, by name.
        macros: those that lead to a value.
    """

    def __init__(self, statements: Statements):
        self.found: dict[str, Setting] = {}
        self.macros: set[str] = set()
        self._places = statements.places
        for parameter in parameters(config.registered()["Experiment"]):
            self._group = _GROUP_OF.get(parameter.name, "Training")
            self.read_parameter("Experiment", [], parameter)
        self._group = "Devices"
        self.read("HostsConfig", [])

    def read(self, name: str, scope: Sequence[str]) -> None:
        """Reads all parameters of a configurable in a scope."""
        thing = config.registered().get(name)
        if thing is None:  # of gin itself
            return
        for parameter in parameters(thing):
            self.read_parameter(name, scope, parameter)
        if made := made_by(thing):
            fields = _made_in(name, scope)
            for parameter in parameters(made):
                self.read_parameter(name, scope, parameter, fields)

    def read_parameter(
        self, name: str, scope: Sequence[str], parameter: Parameter, made: dict[str, Any] | None = None
    ) -> None:
        """Reads one parameter and what its value refers to. `made` has the fields that a variant gives."""
        key, value = _bound(name, scope, parameter.name)
        if value is _UNBOUND:
            default = parameter.default
            value = default if made is None else made.get(parameter.name, default)
            origin = "default" if value == default else "the variant"
            if made is not None and "/".join(scope) not in self._places:  # each scope has a variant of its own
                key = "/".join([*scope, key])
            self.add(Setting(self._group, key, value_text(value), origin, parameter.meaning))
            return
        if (macro := _macro_of(value)) is None:
            self.add(Setting(self._group, key, value_text(value), self._origin(key), parameter.meaning))
            self.follow(value, scope, parameter.meaning, key)
        else:
            self.read_macro(macro, parameter.meaning, key)

    def read_macro(self, macro: str, meaning: str, sets: str) -> None:
        """Reads a macro and what its value refers to. `sets` is the parameter that it gives a value."""
        through = [macro]
        while (inner := _macro_of(value := _query(f"{through[-1]}/gin.macro.value"))) is not None:
            through.append(inner)
        self.macros.update(through)
        text = value_text(value) + "".join(f" (%{name})" for name in through[1:])
        self.add(Setting(self._group, macro, text, self._origin(macro), meaning, (sets,)))
        self.follow(value, through[-1:], meaning, sets)

    def follow(self, value: Any, scope: Sequence[str], meaning: str, sets: str) -> None:
        """Reads what a value refers to: configurables, and macros within lists."""
        if isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                self.follow(item, scope, meaning, sets)
        elif (macro := _macro_of(value)) is not None:
            self.read_macro(macro, meaning, sets)
        elif _is_reference(value) and repr(value) != _REQUIRED:
            self.read(value.selector.split(".")[-1], value.scopes or scope)

    def add(self, setting: Setting) -> None:
        """Enters a setting. Of one that was met before, it adds what else the macro sets."""
        known = self.found.setdefault(setting.name, setting)
        self.found[setting.name] = known._replace(sets=tuple(dict.fromkeys([*known.sets, *setting.sets])))

    def _origin(self, name: str) -> str:
        return str(self._places[name][-1]) if name in self._places else ""


def _query(key: str) -> Any:
    try:
        return gin.query_parameter(key)
    except ValueError:  # nothing is bound
        return _UNBOUND


def _bound(name: str, scope: Sequence[str], parameter: str) -> tuple[str, Any]:
    """The innermost binding of a parameter in a scope: (its name for gin, its value)."""
    for depth in range(len(scope), -1, -1):
        key = "/".join([*scope[:depth], f"{name}.{parameter}"])
        if (value := _query(key)) is not _UNBOUND:
            return key, value
    return f"{name}.{parameter}", _UNBOUND


def _made_in(name: str, scope: Sequence[str]) -> dict[str, Any]:
    """The fields of what a function makes in a scope; none as long as something is missing."""
    try:
        with gin.config_scope(list(scope)):
            made = gin.get_configurable(name)()
    except (UserError, ValueError, TypeError, RuntimeError):
        return {}
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _is_reference(value: Any) -> bool:
    return isinstance(value, gin.config.ConfigurableReference)


def _macro_of(value: Any) -> str | None:
    """The name of the macro that a value refers to, or None."""
    is_macro = _is_reference(value) and repr(value).startswith("%") and repr(value) != _REQUIRED
    return "/".join(value.scopes) if is_macro else None


def value_text(value: Any) -> str:
    """Returns a value as gin writes it, cut to one line."""
    if value is _MISSING or value is _UNBOUND or repr(value) == _REQUIRED:
        return "REQUIRED"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}()" if value == _plain(type(value)) else _short(repr(value))
    return _short(repr(value))


def _plain(kind: type) -> Any:
    """An instance of all defaults, or None if there is none."""
    try:
        return kind()
    except TypeError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def text(settings: Sequence[Setting]) -> str:
    """Returns the settings as lines in columns, a group after the other."""
    named = [f"{setting.name} = {setting.value}" for setting in settings]
    widths = min(max(map(len, named)), 56), max(len(setting.origin) for setting in settings)
    lines, group = [], ""
    for name, setting in zip(named, settings, strict=True):
        if setting.group != group:
            group = setting.group
            lines += ["", group]
        sets = f" ({', '.join(setting.sets)})" if setting.sets else ""
        lines.append(f"  {name:<{widths[0]}}  {setting.origin:<{widths[1]}}  {setting.meaning}{sets}".rstrip())
    return "\n".join(lines[1:])
