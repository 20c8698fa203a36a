"""FLOPs and bytes of HBM of single instructions of a compiled program."""

import re
from collections.abc import Iterable

import numpy as np

from vadapter.planning import hlo

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency", "domain", "send-done"),
}
"""Instructions that take no time."""

NAMING = {
    *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding"),
}
"""Custom calls that only name memory."""


class Costs:
    """Costs of the instructions of a module."""

    def __init__(self, module: hlo.Module):
        self.module = module
        self._known: dict[str, float] = {}

    def flops(self, around: hlo.Computation, instruction: hlo.Instruction) -> float:
        """Returns the FLOPs of an instruction and of what it calls: matrix products, convolutions and kernels.

        Elementwise operations count nothing: they do not use the matrix units that the peak is of. Of kernels, see
        `kernel_flops`.
        """
        if instruction.opcode == "custom-call":
            return kernel_flops(around, instruction) or 0.0
        return matmul_flops(around, instruction) + sum(self._called(name) for name in instruction.calls)

    def _called(self, name: str) -> float:
        if name not in self._known and name in self.module.computations:
            called = self.module.computations[name]
            self._known[name] = sum(self.flops(called, i) for i in called.instructions)
        return self._known.get(name, 0.0)

    def traffic(self, around: hlo.Computation, instruction: hlo.Instruction) -> float:
        """Returns the bytes of HBM that an instruction reads and writes.

        Of an operand that a fusion only slices it counts the slices; of a result that it updates in place, the update.
        """
        opcode = instruction.opcode
        if opcode in FREE or target(instruction) in NAMING:
            return 0.0
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2.0 * hbm_bytes(instruction.arrays)
        if opcode == "dynamic-update-slice":
            return 2.0 * hbm_bytes(operand_arrays(around, instruction.operands[1]))
        called = self.module.computations.get(instruction.calls[0]) if opcode == "fusion" else None
        aliased = aliases(instruction)
        results = list(instruction.arrays)
        total = float(hbm_bytes(a for n, a in enumerate(results) if n not in aliased))
        if called:
            total += sum(
                _updated(called, n) - a.bytes for n, a in enumerate(results) if _in_place(called, n) and a.in_hbm
            )
        for number, name in enumerate(instruction.operands):
            if number not in aliased.values():
                whole = hbm_bytes(operand_arrays(around, name))
                total += min(whole, self._read(called, number)) if called else whole
        return max(total, 0.0)

    def _read(self, called: hlo.Computation, number: int) -> float:
        """Bytes that a fusion reads of one operand; infinite if it reads all of it."""
        parameter = next((i for i in called.instructions if i.opcode == "parameter" and i.inputs == str(number)), None)
        if parameter is None:
            return float("inf")
        total = 0.0
        pending = [parameter]
        while pending:
            name = pending.pop().name
            for user in called.users.get(name, []):
                inner = self.module.computations.get(user.calls[0]) if user.opcode == "fusion" else None
                if user.opcode == "bitcast":
                    pending.append(user)
                elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                    total += sum(a.bytes for a in user.arrays)
                elif inner is not None:
                    total += sum(self._read(inner, n) for n, operand in enumerate(user.operands) if operand == name)
                elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                    return float("inf")
        return total


def hbm_bytes(arrays: Iterable[hlo.Array]) -> int:
    """Returns the bytes of those that lie in HBM; single numbers do not matter."""
    return sum(a.bytes for a in arrays if a.in_hbm and a.dims)


def operand_arrays(around: hlo.Computation, name: str) -> tuple[hlo.Array, ...]:
    """Returns the arrays of an operand."""
    found = around.by_name.get(name)
    return found.arrays if found else ()


def target(instruction: hlo.Instruction) -> str:
    """Returns what a custom call calls, "" for other instructions."""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found.group(1) if found and instruction.opcode == "custom-call" else ""


def aliases(instruction: hlo.Instruction) -> dict[int, int]:
    """Returns which results are operands that are passed on: number of the result to number of the operand."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", found.group(1)) if found else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _result(called: hlo.Computation, number: int) -> hlo.Instruction | None:
    """The instruction that makes one result of a fusion."""
    made: hlo.Instruction | None = called.root
    if made.opcode == "tuple":
        made = called.by_name.get(made.operands[number]) if number < len(made.operands) else None
    while made is not None and made.opcode in ("bitcast", "copy") and made.operands:
        made = called.by_name.get(made.operands[0])
    return made


def _in_place(called: hlo.Computation, number: int) -> bool:
    made = _result(called, number)
    return made is not None and made.opcode == "dynamic-update-slice"


def _updated(called: hlo.Computation, number: int) -> int:
    made = _result(called, number)
    return sum(a.bytes for a in operand_arrays(called, made.operands[1])) if made else 0


def matmul_flops(around: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Returns the FLOPs of a matrix product or convolution, 0 for other instructions.

    The TPU compiler writes matrix products as convolutions, batch dimensions as spatial ones with padding or dilation.
    Products with padding or with the holes of a dilation do not count.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (operand_arrays(around, name)[0].dims for name in instruction.operands[:2])
    result = instruction.arrays[0]
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(n) for n in found.group(1).split(",") if n] if found else []
        return 2.0 * result.elements * float(np.prod([left[n] for n in contracted], initial=1.0))
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    if labels is None:
        return 0.0
    of_left, of_right, of_result = labels.groups()
    pairs = 1.0
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    settings = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}
    for axis in sorted(c for c in of_left if c.isdigit()):
        sizes = (left[of_left.index(axis)], right[of_right.index(axis)], result.dims[of_result.index(axis)])
        pairs *= _pairs(*sizes, {key: value.split("x")[int(axis)] for key, value in settings.items()})
    rows = result.dims[of_result.index("b")]
    return 2.0 * rows * result.dims[of_result.index("f")] * right[of_right.index("i")] * pairs


def kernel_flops(around: hlo.Computation, instruction: hlo.Instruction) -> float | None:
    """Returns the FLOPs of a custom call; None where they are unknown.

    They are what the kernel's author declared (`cost_estimate`). The kernels of jax's splash attention declare nothing
    and are known by their names. All of their blocks count, though those that a mask hides are skipped when it runs;
    heads are padded to the 128 lanes.
    """
    declared = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    if declared:
        return float(declared.group(1))
    found = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", instruction.name)
    if found is None:
        return None
    operands = [a for name in instruction.operands for a in operand_arrays(around, name)]
    query, key = [a.dims for a in operands if a.dtype in ("bf16", "f32") and len(a.dims) > 3][:2]
    product = 2.0 * np.prod(query[:-1]) * key[-2] * (-(-query[-1] // 128) * 128)  # of one matrix product
    # Forward: logits, values. Keys and values: logits, dV, dP, dK, and dQ where the kernel makes it too, in a result
    # with an axis of blocks of keys. Queries: logits, dP, dQ.
    fused = any(len(a.dims) > len(query) for a in instruction.arrays)
    return product * {"fwd": 2, "dkv": 5 if fused else 4, "dq": 3}[found.group(1)]


def _pairs(inputs: int, kernel: int, outputs: int, settings: dict[str, str]) -> int:
    """Products of an input with a kernel element along one spatial dimension, over all outputs."""
    low = int(settings.get("pad", "0_0").split("_")[0])
    stride, of_input, of_kernel = (int(settings.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    starts = np.arange(outputs) * stride - low
    total = 0
    for element in range(kernel):
        places = starts + element * of_kernel
        inside = (places >= 0) & (places <= (inputs - 1) * of_input) & (places % of_input == 0)
        total += int(inside.sum())
    return total
