"""Reads the text of a compiled program (HLO): computations, their instructions, shapes and source lines.

Only what a cost can be read from is kept. Instructions of the entry computation and of loop bodies stand in the order
in which the device runs them (`is_scheduled=true`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMES = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CLOSING = re.compile(r"^\}(, execution_thread=.*)?$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result's type.

    Attributes:
        dtype: as in HLO (`bf16`).
        dims: sizes.
        layout: text between the braces (`1,0:T(8,128)S(1)`), "" if none.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def in_hbm(self) -> bool:
        """False for on-chip memories: S(1) is VMEM, others are scalar memories and flags."""
        return "S(" not in self.layout or "S(0)" in self.layout

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return math.ceil(self.elements * bits(self.dtype) / 8)

    def text(self) -> str:
        """As HLO writes it, without layout."""
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def bits(dtype: str) -> int:
    """Returns the bits of an element of an HLO type; 0 for tokens and opaque types."""
    if dtype == "pred":
        return 8
    number = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    return int(number.group(1)) if number else 0


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type, those of a tuple in order."""
    return tuple(Array(d, tuple(int(n) for n in s.split(",") if n), layout) for d, s, layout in _ARRAY.findall(text))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without `%`.
        opcode: such as `fusion`.
        type: text of the result's type.
        inputs: text between the parentheses: operands, or a constant's value.
        attributes: text after them.
        root: whether it is the computation's result.
    """

    name: str
    opcode: str
    type: str
    inputs: str
    attributes: str
    root: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of the result."""
        return arrays(self.type)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_NAMES.findall(self.inputs))

    def attribute(self, key: str) -> str | None:
        """Returns the computation or number that `key=` names, None if there is none."""
        found = re.search(rf"[ ,]{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    @property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that a fusion, call or async start runs."""
        found = re.findall(r"[ ,](?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)", self.attributes)
        return tuple(found)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the computations that a conditional chooses from."""
        many = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if many:
            return tuple(_NAMES.findall(many.group(1)))
        return tuple(re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes))

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's estimate, None where it makes none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found.group(1)) if found else None

    @property
    def op_name(self) -> str:
        """The jax operation that it comes from, "" if unknown."""
        found = re.search(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found.group(1) if found else ""


class Computation:
    """Instructions in order, and by name."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: list[Instruction] = []
        self.by_name: dict[str, Instruction] = {}

    def add(self, instruction: Instruction) -> None:
        """Appends an instruction."""
        self.instructions.append(instruction)
        self.by_name[instruction.name] = instruction

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in instruction.operands:
                found.setdefault(operand, []).append(instruction)
        return found


class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the one that the program starts with.
    """

    def __init__(self, text: str):
        """Reads the text of `compiled.as_text()`.

        Raises:
            ValueError: the text has no entry computation.
        """
        self.computations: dict[str, Computation] = {}
        self.tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        entry = ""
        current: Computation | None = None
        table: dict[int, str] | None = None
        for line in _statements(text):
            if current is not None:
                if _CLOSING.match(line):
                    current = None
                elif instruction := parse_instruction(line):
                    current.add(instruction)
            elif header := _HEADER.match(line):
                table = None
                current = self.computations.setdefault(header.group(2), Computation(header.group(2)))
                entry = header.group(2) if header.group(1) else entry
            elif line in self.tables:
                table = self.tables[line]
            elif table is not None and (row := re.match(r"(\d+) (.*)", line)):
                table[int(row.group(1))] = row.group(2).strip('"')
        if not entry:
            raise ValueError("not the text of a compiled program: it has no ENTRY computation")
        self.entry = self.computations[entry]

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instructions of the computations that an instruction calls, and of those that they call."""
        for name in instruction.calls:
            if computation := self.computations.get(name):
                for inner in computation.instructions:
                    yield computation, inner
                    yield from self.inside(inner)

    def by_name(self, name: str) -> Instruction | None:
        """Returns the instruction of that name, None if there is none. Names are unique in a module."""
        return next((c.by_name[name] for c in self.computations.values() if name in c.by_name), None)

    def op_name(self, instruction: Instruction) -> str:
        """Returns the jax operation that an instruction comes from; of a fusion without one, that of what it makes."""
        inner = [i for _, i in self.inside(instruction)]
        made = [instruction, *sorted(inner, key=lambda i: i.opcode != "dynamic-update-slice")]
        return next((i.op_name for i in made if "/" in i.op_name), "")

    def source(self, instruction: Instruction) -> str:
        """Returns the file and line that an instruction comes from, the innermost outside of installed packages.

        "" if it is not known; of a fusion without one, that of what it makes.
        """
        made = [instruction, *sorted((i for _, i in self.inside(instruction)), key=lambda i: not i.root)]
        return next((place for place in map(self._source, made) if place), "")

    def _source(self, instruction: Instruction) -> str:
        named = re.search(r'source_file="([^"]*)"(?:[^}]*?source_line=(\d+))?', instruction.attributes)
        if named:
            return f"{named.group(1)}:{named.group(2) or 0}"
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self._frame(int(frame.group(1))) if frame else ""

    def _frame(self, frame: int) -> str:
        """Parents are numbered from 1 or from 0 (0 or 1 is no frame): the first frame, which has none, tells."""
        first, seen = "", set()
        shift = _numbers(self.tables["StackFrames"].get(1, "")).get("parent_frame_id", 0)
        while frame in self.tables["StackFrames"] and frame not in seen:
            seen.add(frame)
            row = _numbers(self.tables["StackFrames"][frame])
            location = _numbers(self.tables["FileLocations"].get(row.get("file_location_id", 0), ""))
            file = self.tables["FileNames"].get(location.get("file_name_id", 0), "")
            place = f"{file}:{location.get('line', 0)}" if file else ""
            if place and "site-packages" not in file:
                return place
            first = first or place
            frame = row.get("parent_frame_id", 0) - shift
        return first

    def trip_count(self, loop: Instruction, around: Computation) -> int | None:
        """Returns how often a while loop runs its body, None if that is not known before it runs.

        The compiler's `known_trip_count` where it writes one; else the bound that the loop's condition compares its
        counter with. Of a condition with more parts (decoding stops early) that is the most that it can run.

        Args:
            loop: the while instruction.
            around: the computation that it is in, which has the counter's first value.
        """
        known = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition") or ""]
        body = self.computations[loop.attribute("body") or ""]
        compares = [i for i in condition.instructions if i.opcode == "compare"]
        for call in condition.instructions:
            compares += [i for _, i in self.inside(call) if i.opcode == "compare"]
        for compare in compares:
            bounds = _bounds(compare, condition, loop, around)
            if bounds:
                index, first, last = bounds
                step = _step(body, index)
                return max(0, math.ceil((last - first) / step))
        return None


def _statements(text: str) -> Iterator[str]:
    """Lines of a program, each instruction as one: the metadata of kernels have line breaks in them."""
    inside, statement = False, ""
    for line in text.splitlines():
        if inside and not _CLOSING.match(line) and not _INSTRUCTION.match(line):
            statement += line
            continue
        yield statement
        statement = line
        inside = bool(_HEADER.match(line)) or inside and not _CLOSING.match(line)
    yield statement


def parse_instruction(line: str) -> Instruction | None:
    """Returns the instruction on a line, None if there is none."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    root, name, rest = found.groups()
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:cut], rest[cut:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    end = _closing(rest, opening)
    return Instruction(name, rest[:opening], kind, rest[opening + 1 : end], rest[end + 1 :], bool(root))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _numbers(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}


def constant(computation: Computation, name: str) -> int | None:
    """Returns the value of a whole scalar constant, through copies of it; None if it is none."""
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = computation.by_name.get(instruction.operands[0])
    if instruction is not None and instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.inputs):
        return int(instruction.inputs)
    return None


def _element(computation: Computation, name: str) -> int | None:
    """The number of the loop's state that an instruction reads."""
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.by_name.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute("index") or 0)


def _bounds(
    compare: Instruction, condition: Computation, loop: Instruction, around: Computation
) -> tuple[int, int, int] | None:
    """The counter's number in the loop's state, its first value, and the first value that ends the loop."""
    start = around.by_name.get(loop.operands[0]) if loop.operands else None

    def value(name: str) -> int | None:
        known = constant(condition, name)
        element = _element(condition, name)
        if known is None and element is not None and start is not None and start.opcode == "tuple":
            known = constant(around, start.operands[element])
        return known

    left, right = compare.operands[:2]
    direction = compare.attribute("direction") or ""
    if direction in ("GT", "GE"):
        left, right, direction = right, left, {"GT": "LT", "GE": "LE"}[direction]
    index, last = _element(condition, left), value(right)
    if direction not in ("LT", "LE", "NE") or index is None or last is None:
        return None
    first = value(left) or 0
    return index, first, last + (direction == "LE")


def _step(body: Computation, index: int) -> int:
    """What the body adds to its counter, 1 if that cannot be seen."""
    if body.root.opcode == "tuple" and index < len(body.root.operands):
        added = body.by_name.get(body.root.operands[index])
        while added is not None and added.opcode in ("copy", "bitcast"):
            added = body.by_name.get(added.operands[0])
        if added is not None and added.opcode == "add":
            return next((c for c in (constant(body, o) for o in added.operands) if c and c > 0), 1)
    return 1
