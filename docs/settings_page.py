"""Writes docs/settings.md: every macro of the shipped gin files, and every parameter that gin can bind.

python docs/settings_page.py
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vadapter.recipes import experiments, gin_files
from vadapter.recipes import gin_front as config
from vadapter.recipes.settings import GROUPS, made_by, parameters, value_text

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

_GROUP_OF_PACKAGE = {
    "models": "Model",
    "data": "Data",
    "benchmarks": "Data",
    "training": "Training",
    "generation": "Evaluation",
    "partitioning": "Devices",
}
_GROUP_OF_THING = {"Experiment": "The run", "Evaluation": "Evaluation", "Source": "Folders"}
_HEAD = """# Settings

All that a run can be told, as gin knows it. `vadapter train --print_config ...` prints the settings of one run, each
with its value and the file and line that set it. [gin.md](gin.md) explains how to set them.
`python docs/settings_page.py` makes this page.

## Macros

A macro is one name that sets one or several parameters: `--gin.BATCH_SIZE=64`, or `BATCH_SIZE = 64` in a file.

"""


def page() -> str:
    """Returns docs/settings.md: the macros of the shipped files, then all configurables with their parameters."""
    experiments.register()
    groups: dict[str, list[str]] = {group: [] for group in ("The run", *GROUPS)}
    for name, thing in sorted(config.registered().items()):
        library, package, *_ = [*thing.__module__.split("."), ""]
        if library == "vadapter":
            groups[_GROUP_OF_THING.get(name) or _GROUP_OF_PACKAGE.get(package, "The run")].append(name)
    lines = [_HEAD + _table(("macro", "what it is", "sets", "set in"), _macro_rows(gin_files.read_shipped()))]
    for group, names in groups.items():
        lines.append(f"## {group}\n")
        lines += [_section(name) for name in names]
    return "\n".join(lines)


def _macro_rows(found: gin_files.Statements) -> Iterator[tuple[str, ...]]:
    for macro in sorted(found.used):
        sets = found.sets.get(macro, [])
        files = dict.fromkeys(place.included_as for place in found.places.get(macro, []))
        meaning = next((_meaning_of(name) for name in sets if "." in name), "")
        yield f"`{macro}`", meaning, ", ".join(f"`{name}`" for name in sets), ", ".join(_but_few(list(files)))


def _but_few(files: list[str]) -> list[str]:
    return files if len(files) <= 4 else [*files[:3], f"{len(files) - 3} more"]


def _meaning_of(name: str) -> str:
    thing, _, parameter = name.rpartition("/")[2].partition(".")
    found = config.registered()[thing]
    known = [*parameters(found), *(parameters(made) if (made := made_by(found)) else ())]
    return next(p.meaning for p in known if p.name == parameter)


def _section(name: str) -> str:
    thing = config.registered()[name]
    summary = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    rows = []
    for parameter in parameters(thing):
        default = "required" if parameter.default is inspect.Parameter.empty else f"`{value_text(parameter.default)}`"
        rows.append((f"`{parameter.name}`", default, parameter.meaning))
    more = f"\n`{name}` takes the fields of `{made.__name__}` as well.\n" if (made := made_by(thing)) else ""
    return f"### {name}\n\n{summary}\n\n" + _table(("parameter", "default", "meaning"), rows) + more


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"Wrote {PAGE}.")
