"""Reads the compiler's buffer assignment: what lies in HBM, and which operations made it.

The compiler writes it beside the program when it is asked to (`xla_dump_to`), also when the program is refused for
being too large.
"""

import dataclasses
import re

from vadapter.planning import hlo


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A place in HBM, and the values that it holds in turn.

    Attributes:
        bytes: of it, with padding.
        use: `argument`, `constant`, `output` or `temporary`.
        values: names of instructions, with the type of each.
    """

    bytes: int
    use: str
    values: tuple[tuple[str, str], ...]


_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(.*):$")
_VALUE = re.compile(r" value: <\d+ ([\w.\-]+)(?:\{[\d,]*\})?[^>]*> \(size=(\d+),offset=(\d+)\): (.*)$")


def read(text: str) -> tuple[list[Buffer], dict[str, int]]:
    """Reads the text of a buffer assignment.

    Returns:
        The buffers in HBM, and the bytes of HBM by their use (of temporaries together less than of each, as they take
        turns).
    """
    totals: dict[str, int] = {"argument": 0, "constant": 0, "output": 0, "temporary": 0}
    places: dict[tuple[int, int, int], list[tuple[str, str]]] = {}
    uses: list[str] = []
    for line in text.splitlines():
        if line.startswith("Used values"):
            break
        if found := _ALLOCATION.match(line):
            uses.append(_use(found.group(2)))
            if uses[-1]:
                totals[uses[-1]] += int(found.group(1))
        elif uses and uses[-1] and (value := _VALUE.match(line)):
            name, size, offset, kind = value.groups()
            places.setdefault((len(uses) - 1, int(offset), int(size)), []).append((name, kind))
    buffers = [Buffer(size, uses[n], tuple(values)) for (n, _, size), values in places.items()]
    return sorted(buffers, key=lambda b: -b.bytes), totals


def _use(description: str) -> str:
    """The use of an allocation, "" if it is not in HBM: other memories have a color."""
    if re.search(r"color [1-9]", description):
        return ""
    for word, use in (("parameter", "argument"), ("constant", "constant"), ("live-out", "output")):
        if word in description:
            return use
    return "temporary"


def describe(buffer: Buffer, module: hlo.Module) -> tuple[str, str, str]:
    """Returns shape, operation and source line of a buffer, by those of its values that say most.

    Args:
        buffer: with an array.
        module: whose instructions the values name.
    """
    best = ("", "", "")
    passes_on = ("while", "parameter", "get-tuple-element", "tuple", "conditional")
    for name, kind in buffer.values:
        found = module.by_name(name)
        shapes = hlo.arrays(kind)
        if found is None or not shapes or (best[0] and found.opcode in passes_on):
            continue
        best = best if best[0] else (shapes[0].text(), "", "")
        known = found.opcode not in passes_on
        op, source = (module.op_name(found), module.source(found)) if known else ("", "")
        if (bool(source), bool(op)) > (bool(best[2]), bool(best[1])):
            best = (shapes[0].text(), op, source)
    return best
