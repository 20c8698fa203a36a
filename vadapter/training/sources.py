"""What a run takes from other runs: by path rules, known from metadata, recorded with a hash to be found again.

A checkpoint's metadata have its paths, shapes and dtypes, so that everything here is decided, checked and told before
an array is read. `vadapter.training.initialize` then reads what was chosen, to where it belongs.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vadapter.base import fingerprints, patterns, trees
from vadapter.base.errors import UserError
from vadapter.training import checkpoints, freezing


@dataclasses.dataclass(frozen=True)
class Source:
    r"""A run, or imported weights, to take parameters from.

    Attributes:
        path: folder of a run (its MODEL_DIR) or of imported weights, or one of the `checkpoint_<step>` folders in it.
        rules: (regex, replacement): a parameter whose whole path matches is taken, under the path that the replacement
            gives, such as `("decoder/(.*)", r"adapter/lm/\1")`. The first match counts; what none matches is not taken.
        step: which checkpoint, or `best`; default the latest.
    """

    path: str
    rules: tuple[tuple[str, str], ...] = (("(.*)", r"\1"),)
    step: int | str | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What was taken from a source, as the checkpoint records it.

    Attributes:
        path: MODEL_DIR of the source, relative to that of the run that took it (so that a folder of runs can be moved).
        step: its checkpoint.
        rules: as in `Source`.
        sha256: `Offer.sha256` of what was taken.
        frozen: parameters (paths) taken that the run did not train: those that must be found again.
        initial: parameters taken as a start only.
    """

    path: str
    step: int
    rules: tuple[tuple[str, str], ...]
    sha256: str
    frozen: int
    initial: int

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict."""
        return {**dataclasses.asdict(self), "rules": [list(r) for r in self.rules]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Reference":
        """Reads `to_json`'s dict."""
        patterns.check((pattern for pattern, _ in record["rules"]), f"The checkpoint's record of {record['path']}")
        return cls(**{**record, "rules": tuple((a, b) for a, b in record["rules"])})


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Position embeddings `[1, tokens, D]` of a source that had images of another size than the model has.

    Attributes:
        stored: tokens of the source.
        tokens: tokens of the model.
        extra: of either, those before the grid of patches: 1 with a class token.
    """

    stored: int
    tokens: int
    extra: int

    @property
    def grid(self) -> int:
        """Patches along each side of the source's images."""
        return math.isqrt(self.stored - self.extra)

    def __str__(self) -> str:
        after = math.isqrt(self.tokens - self.extra)
        return f"resampled from {self.grid} x {self.grid} to {after} x {after} patches"


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a source gives a model.

    Attributes:
        folder: MODEL_DIR of the source.
        step: its checkpoint.
        rules: as in `Source`.
        taken: path in the model to path in the checkpoint.
        stored: path in the checkpoint to shape and dtype, of all that it holds.
        resampled: path in the model to what has to be done, of position embeddings that do not fit.
    """

    folder: str
    step: int
    rules: tuple[tuple[str, str], ...]
    taken: Mapping[str, str]
    stored: Mapping[str, jax.ShapeDtypeStruct]
    resampled: Mapping[str, Resampling]

    def sha256(self) -> str:
        """Returns the hash of what is taken: under its paths in the model, as stored."""
        return fingerprints.combine(self.hashes(self.taken))

    def hashes(self, paths: Collection[str]) -> dict[str, fingerprints.ArrayHash]:
        """Returns the hashes of some of what is taken, by its paths in the model, as stored."""
        recorded = fingerprints.load(self.folder, self.step) or {}
        places = {path: self.taken[path] for path in paths}
        hashes = {path: recorded[old] for path, old in places.items() if self._is_of(recorded.get(old), old)}
        if unknown := places.keys() - hashes.keys():
            # A trained run records no hashes, and those of parts cannot be joined to that of the whole, which must not
            # depend on the mesh. So every process reads these arrays once more: whole, but one at a time.
            with checkpoints.Checkpointer(self.folder, read_only=True) as checkpointer:
                for path in sorted(unknown):
                    old = self.taken[path]
                    array = checkpointer.read(self.step, {old: self.stored[old]})[old]
                    hashes[path] = fingerprints.of_array(array)
        return hashes

    def _is_of(self, known: fingerprints.ArrayHash | None, stored: str) -> bool:
        struct = self.stored[stored]
        return known is not None and (known.shape, known.dtype) == (struct.shape, np.dtype(struct.dtype).name)

    def check_table(self, grid: int | None) -> None:
        """Raises `UserError` if the encoder has another table of positions than the source.

        Args:
            grid: the encoder's `position_grid`; None where the table is resampled at loading.
        """
        if grid and (how := self.resampled.get("encoder/pos_embedding")):
            raise UserError(
                f"{self.folder} has positions of {how.grid} x {how.grid} patches, and the encoder's position_grid is "
                f"{grid}. Set position_grid to {how.grid}, or name the variant that these weights are of; image_size "
                "may be any."
            )

    def reference(self, path: str, frozen: Collection[str]) -> Reference:
        """Returns the record of what is taken.

        Args:
            path: to record for the folder.
            frozen: paths that the run does not train.
        """
        count = len(self.taken.keys() & set(frozen))
        return Reference(path, self.step, self.rules, self.sha256(), count, len(self.taken) - count)

    def summary(self) -> str:
        """Returns a line that says what is taken and what is left behind."""
        size = sum(x.size * np.dtype(x.dtype).itemsize for x in (self.stored[p] for p in self.taken.values()))
        parts = ", ".join(sorted({freezing.part_of(path) for path in self.taken}))
        count = f"{len(self.taken)} parameter{'s' * (len(self.taken) != 1)}"
        line = f"{self.folder} checkpoint_{self.step}: took {count} ({freezing.size_text(size)}) for {parts}"
        line += "".join(f"; {path} {how}" for path, how in self.resampled.items())
        left = sorted(self.stored.keys() - set(self.taken.values()))
        if not left:
            return line
        roots = list(dict.fromkeys(_root(path, self.taken.values()) for path in left))
        named = ", ".join(roots[:5]) + (f" and {len(roots) - 5} more" if len(roots) > 5 else "")
        tables = {"decoder/embedder/embedding", "decoder/head/embedding"}
        if tables & set(left) and any(path.startswith("adapter/lm/") for path in self.taken):
            named += " (vocabulary tables of the tiny LM do not carry over: the adapter reads no text)"
        return f"{line}; left {len(left)}: {named}"


def _root(path: str, taken: Collection[str]) -> str:
    """Returns the shortest prefix of a path under which nothing was taken."""
    words = path.split("/")
    prefixes = ("/".join(words[:i]) for i in range(1, len(words)))
    return next((p for p in prefixes if not any(t.startswith(p + "/") for t in taken)), path)


def look(source: Source, abstract: Mapping[str, Any]) -> Offer:
    """Finds what a source gives a model, without reading an array.

    Args:
        source: where from.
        abstract: `{slash path: shape struct}` of all of the model's parameters.

    Raises:
        UserError: the source or a match is missing, another version of vadapter wrote it, or a parameter has no place
            in the model or another shape.
    """
    folder, step = checkpoints.locate(source.path, source.step)
    where = f"{folder}/checkpoint_{step}"
    with checkpoints.Checkpointer(folder, read_only=True) as checkpointer:
        record = checkpointer.run(step)  # refuses what another version wrote
        stored = checkpointer.shapes(step)
    try:
        taken = rename({path: path for path in stored}, source.rules, where)
    except UserError as error:
        frozen = [x["path"] for x in record.get("sources", ()) if x["frozen"]]
        if not frozen:
            raise
        raise UserError(
            f"{error} The checkpoint holds what its run trained; what the run froze is in {', '.join(frozen)} (seen "
            "from the run's folder). Give that as a source of its own."
        ) from None
    resampled = {}
    for path, old in taken.items():
        if path in abstract and (how := _resampling(path, stored[old].shape, abstract[path].shape)):
            resampled[path] = how
    check_fits({p: stored[old] for p, old in taken.items() if p not in resampled}, abstract, where)
    return Offer(folder, step, source.rules, taken, stored, resampled)


def rename(flat: Mapping[str, Any], rules: Sequence[tuple[str, str]], where: str) -> dict[str, Any]:
    """Applies a source's rules to `{path: value}`.

    Raises:
        UserError: a rule matches nothing or is malformed, or two parameters get the same path.
    """
    matched = trees.match([pattern for pattern, _ in rules], flat, f"rule of the source {where}:")
    renamed: dict[str, Any] = {}
    for path, index in matched.items():
        pattern, replacement = rules[index]
        try:
            match = re.fullmatch(pattern, path)
            assert match is not None
            new = match.expand(replacement)
        except (re.error, IndexError) as e:
            raise UserError(f"The replacement {replacement!r} of {where} is malformed: {e}. Change the rule.") from e
        if new in renamed:
            raise UserError(f"Two parameters of the source {where} get the path {new}. Change its rules.")
        renamed[new] = flat[path]
    return renamed


def check_fits(found: Mapping[str, Any], abstract: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` if a parameter has no place in the model or another shape.

    Args:
        found: path in the model to what has a shape.
        abstract: `{slash path: shape struct}` of all of the model's parameters.
        where: what gives them, named in the error.
    """
    for path, x in found.items():
        if path not in abstract:
            raise UserError(
                f"{where} gives the parameter {path}, which the model does not have; the nearest are "
                f"{', '.join(trees.nearest(path, abstract))}. Change the source's rules or the model."
            )
        if tuple(x.shape) != tuple(abstract[path].shape):
            raise UserError(
                f"{where} gives {path} with the shape {tuple(x.shape)}; the model expects "
                f"{tuple(abstract[path].shape)}. Use the model that wrote it, or change the source or its rules."
            )


def check_same(recorded: Reference, now: Reference, what: str) -> None:
    """Raises `UserError` if a source does not give the weights that `what`, such as "The run x", had from it."""
    if recorded.sha256 != now.sha256:
        raise UserError(
            f"{what} was trained with weights whose sha256 is {recorded.sha256}; {now.path} at step {now.step} gives "
            f"{now.sha256}. Give it the weights that it was trained with (the same model imported with another --dtype "
            "counts as another), or train anew."
        )


def _resampling(path: str, stored: Sequence[int], wanted: Sequence[int]) -> Resampling | None:
    if path.split("/")[-1] != "pos_embedding" or len(stored) != 3 or (stored[0], stored[2]) != (1, wanted[-1]):
        return None
    for extra in (0, 1):  # two squares of patches differ by more than one, so at most one of these fits both
        grids = [n - extra for n in (stored[1], wanted[1])]
        if stored[1] != wanted[1] and all(n > 0 and math.isqrt(n) ** 2 == n for n in grids):
            return Resampling(stored[1], wanted[1], extra)
    return None
