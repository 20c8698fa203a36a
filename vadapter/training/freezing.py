"""Trainable and frozen parameters are two trees: what is frozen has no gradient, no optimizer state, no decay."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vadapter.base import quantization, trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError


def partition(params: trees.Tree, trainable: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters (or their shapes, or shardings) into (trainable, frozen). Changes no leaf.

    Args:
        params: nested dict.
        trainable: regexes; a parameter whose whole path one of them matches is trained, the others are frozen.

    Raises:
        UserError: a pattern matches nothing, or there are no patterns; or LoRA stands beside a trained kernel, or one
            of its two parts is trained alone.
    """
    if not trainable:
        raise UserError(
            "No parameter is trainable: the list of trainable patterns is empty. Give regexes of parameter paths, such "
            "as 'adapter/.*'."
        )
    trained, frozen = trees.split(params, trainable, "trainable pattern")
    _check_lora(trees.flatten(trained), trees.flatten(frozen))
    return trained, frozen


def _check_lora(trained: dict[str, Any], frozen: dict[str, Any]) -> None:
    """A low-rank map stands beside a frozen kernel, and is trained itself; both of its parts are."""
    for path in trained:
        place, _, name = path.rpartition("/")
        if name in ("lora_a", "lora_b") and f"{place}/kernel" in trained:
            raise UserError(
                f"{place} has LoRA, and its kernel is trained already. Take the kernel out of the trainable patterns, "
                "or the map out of LoraConfig.targets."
            )
    for path in frozen:
        place, _, name = path.rpartition("/")
        other = f"{place}/lora_{'b' if name == 'lora_a' else 'a'}"
        if name in ("lora_a", "lora_b") and other in trained:
            raise UserError(
                f"{other} is trained and {path} is frozen. Choose both or neither: the trainable pattern for LoRA is "
                "'.*/lora_[ab]'."
            )


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns `{slash path: leaf}` of any pytree, such as an optimizer state (`0/mu/adapter/...`)."""

    def name(key: Any) -> str:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                return str(getattr(key, attribute))
        return str(key)

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(name(k) for k in path): leaf for path, leaf in leaves}


def parameter_of(state_path: str, params: dict[str, Any]) -> str | None:
    """Returns the parameter whose path ends `state_path` (`0/mu/adapter/x` ends with `adapter/x`), or None."""
    words = state_path.split("/")
    return next((p for i in range(len(words)) if (p := "/".join(words[i:])) in params), None)


def part_of(path: str) -> str:
    """Returns the part that a parameter counts to: `encoder`, `decoder`, `adapter/lm`, ..."""
    words = path.split("/")
    return "/".join(words[: 2 if words[0] == "adapter" else 1])


@dataclasses.dataclass(frozen=True)
class PartSummary:
    """One row of the start-up table. Sizes are of the whole array, wherever its shards lie."""

    part: str
    trainable: bool
    parameters: int
    weight_bytes: int
    optimizer_bytes: int


def _sum_by(leaves: dict[str, Any], key: Callable[[str], str | None], size: Callable[[Any], int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for path, leaf in leaves.items():
        if (part := key(path)) is not None:
            sums[part] = sums.get(part, 0) + size(leaf)
    return sums


def summarize(trainable: trees.Tree, frozen: trees.Tree, opt_state: PyTree) -> list[PartSummary]:
    """Counts parameters and bytes of each part. Leaves may be arrays, quantised or not, or shape structs."""
    flat = trees.flatten(trainable)

    def optimizer_part(path: str) -> str | None:
        parameter = parameter_of(path, flat)
        return parameter and part_of(parameter)

    optimizer = _sum_by(named_leaves(opt_state), optimizer_part, quantization.nbytes)
    rows = []
    for is_trainable, leaves in ((True, flat), (False, trees.flatten(frozen))):
        counts = _sum_by(leaves, part_of, lambda x: math.prod(x.shape))
        sizes = _sum_by(leaves, part_of, quantization.nbytes)
        for part, count in counts.items():
            moments = optimizer.get(part, 0) if is_trainable else 0
            rows.append(PartSummary(part, is_trainable, count, sizes[part], moments))
    return sorted(rows, key=lambda r: (r.part, not r.trainable))


def size_text(n: int) -> str:
    """Returns a number of bytes for people, such as `1.2 GB`."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def table(rows: Sequence[PartSummary]) -> str:
    """Returns the start-up table as text, with a total of what is trained and of everything."""
    trained = [r for r in rows if r.trainable]
    lines = [("part", "trained?", "parameters", "weights", "optimizer")]
    for r in rows:
        trained_word, optimizer = ("yes", size_text(r.optimizer_bytes)) if r.trainable else ("frozen", "-")
        lines.append((r.part, trained_word, f"{r.parameters:,}", size_text(r.weight_bytes), optimizer))
    for name, chosen in (("all trained", trained), ("all", rows)):
        sums = [sum(getattr(r, f) for r in chosen) for f in ("parameters", "weight_bytes", "optimizer_bytes")]
        lines.append((name, "", f"{sums[0]:,}", size_text(sums[1]), size_text(sums[2])))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    columns = [str.ljust] * 2 + [str.rjust] * 3
    rendered = ([f(c, w) for f, c, w in zip(columns, line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells) for cells in rendered)
