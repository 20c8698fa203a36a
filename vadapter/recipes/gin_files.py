"""Gin files: where they are found, and what they say line by line.

gin keeps values and forgets where they were set, and it takes any macro, also one that nothing uses. So the files are
read here once more: for the place of each value, and to refuse a macro that has a wrong name.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from etils import epath
from gin import config as gin_config
from gin import config_parser

from vadapter.base import local_files, resources
from vadapter.base.errors import UserError

# The macros' former names.
RENAMED = {"ENCODER_RUN": "ENCODER_WEIGHTS", "TINY_RUN": "TINY_WEIGHTS", "LARGE_RUN": "LARGE_WEIGHTS"}
SAVED = ("config.gin", "operative_config.gin")  # what a run wrote; nobody misspelt a name there
FLAG = "--gin."

_MAX_BYTES, _MAX_FILES, _MAX_DEPTH = 4 << 20, 1000, 20  # of a file; files of a configuration, and how they nest

_search_paths: list[Path] = []
_imports: set[str] = set()  # modules that files may name, as --module has imported them
_open_now: list[str] = []  # files that include one another
_opened: list[str] = []  # since the configuration was begun


class Place(NamedTuple):
    """Where a value was set: a file as it was found and a line of it, or a flag (line 0)."""

    file: str
    line: int

    def __str__(self) -> str:
        return self.file if self.is_flag else f"{self.included_as}:{self.line}"

    @property
    def is_flag(self) -> bool:
        """Whether a flag set it, not a file."""
        return not self.line

    @property
    def included_as(self) -> str:
        """The name by which the file can be included: that of a shipped one is relative to the shipped folder."""
        path = Path(self.file).absolute()
        return str(path.relative_to(_shipped())) if _shipped() in path.parents else self.file


@dataclasses.dataclass
class Statements:
    """What files and flags say.

    Attributes:
        places: where each name was set; the last place wins. A name is a macro's, or a parameter's in the form
            `scope/configurable.parameter`.
        used: macros that some value refers to.
        sets: the parameters that have a macro as their value or in it, by macro.
    """

    places: dict[str, list[Place]] = dataclasses.field(default_factory=dict)
    used: set[str] = dataclasses.field(default_factory=set)
    sets: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def macros(self) -> list[str]:
        """Names of the macros that have a value."""
        return [name for name in self.places if "." not in name]


def allow_imports(modules: Iterable[str]) -> None:
    """Lets gin files import modules, which do nothing then: they are imported already."""
    _imports.update(modules)


def check(text: str, file: str = "") -> None:
    """Refuses text that would do more than set values, before gin reads any of it.

    gin's own `import` runs a module, and with its dynamic registration a file may call whatever Python has.

    Raises:
        UserError: it imports a module that is not allowed.
    """
    try:
        for statement in config_parser.ConfigParser(text, _Uses(set())):
            if not isinstance(statement, config_parser.ImportStatement):
                continue
            if statement.module not in _imports:
                raise UserError(_import_refused(statement, f"{file}, line {statement.location.line_num}"))
    except UserError:
        raise
    except Exception:  # what is wrong with the form, gin says
        return


def _import_refused(statement: config_parser.ImportStatement, place: str) -> str:
    if statement.module.startswith("__gin__"):
        return (
            f"A gin file turns on a feature of gin, {statement.module}, by which it could call any function of Python. "
            "Expected values of what vadapter and your --module name. Remove the line, and register your parts in a "
            f"module. Found in {place}: {statement.format()}"
        )
    return (
        f"A gin file imports {statement.module}, which would run that module. Expected imports of what --module names. "
        f"If you trust it, add --module={statement.module}; otherwise remove the line. Found in {place}: "
        f"{statement.format()}"
    )


def use_search_paths(paths: Sequence[str]) -> None:
    """Lets gin find files in the working directory, then in `paths`, then in the shipped gin folder."""
    _opened.clear()
    _open_now.clear()
    _search_paths[:] = [*(Path(path) for path in paths), _shipped(), _shipped().parent]
    # gin's own search paths can only be added to, and its reader of Python resources logs an error for each file that
    # it does not have. gin has no public way to replace readers.
    readers: list[Any] = gin_config._FILE_READERS
    readers[:] = [(_open, _exists)]


def find_shipped() -> None:
    """Lets gin find shipped files in a process whose gin another package configures, with readers of its own."""

    def place(name: str) -> Path | None:
        return next((path for folder in (_shipped(), _shipped().parent) if (path := folder / name).is_file()), None)

    # After the reader of files as they are, and before that of Python resources, which takes the `data` of a name such
    # as data/scenes.gin for a package. gin itself only appends.
    readers: list[Any] = gin_config._FILE_READERS
    readers.insert(1, (lambda name: (place(name) or Path(name)).open(), lambda name: place(name) is not None))


def searched() -> list[str]:
    """Returns the names of the folders in which files are looked for."""
    return ["the working directory", *map(str, _search_paths)]


def read(files: Sequence[str], flags: Sequence[str]) -> Statements:
    """Reads what gin has parsed before, so that it has no mistakes of form.

    Args:
        files: in their order.
        flags: `NAME=VALUE` each, over the files.
    """
    found = Statements()
    for file in files:
        _read_file(_find(file), found)
    for flag in flags:
        place = Place(FLAG + flag.partition("=")[0].strip(), 0)
        for _ in _statements(flag, place, found):
            pass
    return found


def read_shipped() -> Statements:
    """Reads all shipped files, each once and without what it includes."""
    found = Statements()
    for path in sorted(_shipped().rglob("*.gin")):
        for _ in _statements(path.read_text(), Place(str(path), 1), found):
            pass
    return found


def check_macros(found: Statements) -> None:
    """Refuses macros that have no effect: a former name, or a name that nothing uses.

    Some files go with several experiments: those that experiments include, and those of imported weights. So a file may
    set a macro that only others use, and a saved configuration any.

    Raises:
        UserError: there is one.
    """
    for name, new in RENAMED.items():
        if name in found.places and (name not in found.used or new in found.places):
            raise UserError(
                f"The macro {name} is called {new} now: it takes a run and imported weights alike. Rename it. "
                f"Found in {found.places[name][-1]}."
            )
    if found.used - found.places.keys():
        return  # gin says which macro has no value
    unused = sorted({*found.macros} - found.used - _spare(found))
    shipped = read_shipped() if unused else Statements()
    known = shipped.used | _spare(shipped)
    for name in unused:
        place = found.places[name][-1]
        if place.is_flag or name not in known:
            raise UserError(_unused(name, place, sorted(found.used)))


def _spare(found: Statements) -> set[str]:
    """The macros that nothing has to use: those of shipped files for experiments to include, and of saved ones."""

    def may_be(place: Place) -> bool:
        path = Path(place.file).absolute()
        included = _shipped() in path.parents and path.parent.name != "experiments"
        return not place.is_flag and (included or path.name in SAVED)

    return {name for name in found.macros if any(map(may_be, found.places[name]))}


def _unused(name: str, place: Place, used: Sequence[str]) -> str:
    from vadapter.base.trees import nearest  # Imports flax; only needed once something went wrong.

    if not used:
        return (
            f"No gin file was given that uses the macro {name}. Name one or more, such as "
            "--gin_file=experiments/scenes_stage1.gin; the shipped ones are listed in docs/gin.md."
        )
    return (
        f"Nothing uses the macro {name}, so it would have no effect; the nearest are: "
        f"{', '.join(nearest(name, used))}. Correct the name, or remove it. Found in {place}."
    )


@dataclasses.dataclass(frozen=True)
class _Macro:
    """A macro as the value of something."""

    name: str


class _Uses(config_parser.ParserDelegate):
    """Notes which macros a value refers to, and makes nothing of it."""

    def __init__(self, used: set[str]):
        self.used = used

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        return None

    def macro(self, macro_name: str) -> "_Macro | None":
        if macro_name.startswith("gin."):  # %gin.REQUIRED is a constant
            return None
        self.used.add(macro_name)
        return _Macro(macro_name)


def _read_file(path: str, found: Statements) -> None:
    for statement in _statements(_content(path), Place(path, 1), found):
        if isinstance(statement, config_parser.IncludeStatement):
            _read_file(_find(statement.filename), found)


def _statements(text: str, place: Place, found: Statements) -> Iterator[Any]:
    """Parses text, enters what it binds into `found`, and yields each statement in its turn."""
    for statement in config_parser.ConfigParser(text, _Uses(found.used)):
        if isinstance(statement, config_parser.BindingStatement):
            name = _name(statement)
            found.places.setdefault(name, []).append(Place(place.file, place.line and statement.location.line_num))
            for macro in _macros_in(statement.value):
                if name not in found.sets.setdefault(macro, []):
                    found.sets[macro].append(name)
        yield statement


def _macros_in(value: Any) -> Iterator[str]:
    if isinstance(value, _Macro):
        yield value.name
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _macros_in(item)


def _name(statement: config_parser.BindingStatement) -> str:
    configurable = statement.selector.split(".")[-1]
    scoped = f"{statement.scope}/{configurable}" if statement.scope else configurable
    return f"{scoped}.{statement.arg_name}" if statement.arg_name else scoped


def _shipped() -> Path:
    return resources.folder("gin")


def _find(path: str) -> str:
    """The place of a gin file: itself, or in the first of the search paths that has it."""
    places = [epath.Path(path), *(folder / path for folder in _search_paths)]  # a run's may be in a bucket
    return next((str(place) for place in places if place.is_file()), path)


class _Text(io.StringIO):
    """A file that gin parses, under its name. While it is open, so are those that include it."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name
        _open_now.append(name)

    def close(self) -> None:
        if not self.closed and _open_now[-1:] == [self.name]:
            _open_now.pop()
        super().close()


def _open(path: str) -> IO[str]:
    place = _find(path)
    _opened.append(place)
    if place in _open_now or len(_open_now) >= _MAX_DEPTH:
        chain = " -> ".join([*_open_now, place][-4:])
        raise UserError(f"Gin files include one another without end: {chain}. Remove one of the includes.")
    if len(_opened) > _MAX_FILES:
        raise UserError(f"More than {_MAX_FILES} gin files are included, the last by {_open_now[-1:]}. Include fewer.")
    text = _content(place)
    check(text, place)
    return _Text(text, place)


def _content(path: str) -> str:
    try:
        text = local_files.content_of(path, _MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Expected a gin file in UTF-8 at {path}; {e}. Correct the path or the file.") from e
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _exists(path: str) -> bool:
    return epath.Path(_find(path)).is_file()
