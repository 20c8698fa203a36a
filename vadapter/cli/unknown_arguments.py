"""What a user meant by an argument that a command does not know. Light: reads the shipped gin files as text."""

import argparse
import ast
import difflib
import re
from collections.abc import Sequence

from vadapter.base import resources


def message(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Returns the paragraph on arguments that a command's parser did not take."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    first = unknown[0]
    name, _, value = first.partition("=")
    text = f"{parser.prog} does not know {first}."
    if not name.startswith("--"):
        return f"{text} It takes no such argument; values of options come after = or a space, in quotes if need be."
    near = difflib.get_close_matches(name, options, 1, cutoff=0.75)
    binding = _binding(name.removeprefix("--")) if "--gin_bindings" in options else None
    if binding:
        return f"{text} Settings of a run are given through gin: --gin.{binding}={_quoted(value)}"
    if near:
        return f"{text} Did you mean {near[0]}?"
    return f"{text} Its options are {', '.join(option for option in options if option != '--gin_bindings')}."


def _binding(name: str) -> str | None:
    """The macro, or the parameter, of the shipped gin files that has the name."""
    texts = [path.read_text() for path in sorted(resources.folder("gin").rglob("*.gin"))]
    macros = {found for text in texts for found in re.findall(r"^([A-Z][A-Z_0-9]*) *=", text, re.MULTILINE)}
    pairs = (pair for text in texts for pair in re.findall(r"^(?:\w+/)?(\w+)\.(\w+) *=", text, re.MULTILINE))
    parameters = {parameter: f"{thing}.{parameter}" for thing, parameter in pairs}
    wanted = name.replace("-", "_")
    if wanted.upper() in macros:
        return wanted.upper()
    if {"steps", "learning_rate"} & {wanted}:
        return {"steps": "TRAIN_STEPS", "learning_rate": "OptimizerConfig.learning_rate"}[wanted]
    near = difflib.get_close_matches(wanted.upper(), sorted(macros), 1, cutoff=0.85)
    return parameters.get(wanted) or (near[0] if near else None)


def _quoted(value: str) -> str:
    """A value as gin reads it behind a shell: texts have quotes of their own."""
    if not value:
        return "VALUE"
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return f"'\"{value}\"'"
    return value
