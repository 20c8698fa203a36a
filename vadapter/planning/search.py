"""Finds settings of a step that fit a topology and are fast, with few compilations: each can take more than a minute.

From the recipe's own setting, the search compiles neighbours of the best one known and goes on from there. What the
compiler said of it decides which neighbours come first: one that does not fit is given less to hold at a time, one that
fits spends the room that is left. Nothing is compiled whose arguments alone are too large, whose sizes do not divide,
or that asks for more memory than a setting which did not fit.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vadapter.base.errors import UserError

POLICIES = ("full", "dots", "none")
"""Remat policies by rising memory and falling recomputation; see `models.layers.remat`."""

Choices = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the search may change of an experiment; nothing of it changes what is learned.

    Attributes:
        data: devices along the mesh axis data, of each slice.
        fsdp: likewise.
        tensor: likewise.
        accumulate: parts that each batch is computed in, one after the other.
        remat: (part, policy) of each stack of layers, such as ("decoder", "full").
        attention: (part, implementation) of each stack of layers.
    """

    data: int
    fsdp: int
    tensor: int
    accumulate: int = 1
    remat: Choices = ()
    attention: Choices = ()

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Sizes of data, fsdp and tensor."""
        return self.data, self.fsdp, self.tensor

    def text(self) -> str:
        """One line for people."""
        mesh = f"data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}"
        return f"{mesh}; {self.accumulate} micro-batches; remat {said(self.remat)}; attention {said(self.attention)}"


def said(choices: Choices) -> str:
    """Returns choices of parts as words: one word where all parts agree."""
    values = {value for _, value in choices}
    if len(values) == 1:
        return values.pop()
    return ", ".join(f"{part} {value}" for part, value in choices) or "none"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is known of a setting after its compilation.

    Attributes:
        setting: that was compiled.
        fits: whether a device holds it.
        seconds: estimated for a step.
        peak_bytes: that a device needs.
        limit_bytes: that a device has.
        communication: share of the step in which devices only communicate, 0..1.
        plan: everything else that is known of it, for who shows it.
    """

    setting: Setting
    fits: bool
    seconds: float
    peak_bytes: float
    limit_bytes: float
    communication: float = 0.0
    plan: Any = None

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts what fits first, by time; then what does not, by the memory that is missing."""
        return (not self.fits, self.seconds if self.fits else self.peak_bytes - self.limit_bytes)


@dataclasses.dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        refusal: why a setting cannot be compiled or cannot fit, found without compiling; None if it may.
        remat: policies that make a difference, for each part, by rising memory.
        attention: implementations, for each part.
        meshes: (data, fsdp, tensor) of a slice, all that its chips allow.
        accumulate: numbers of micro-batches, rising.
    """

    refusal: Callable[[Setting], str | None]
    meshes: tuple[tuple[int, int, int], ...]
    remat: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    attention: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    accumulate: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass
class Search:
    """A search under way. What it knows stays readable when it is interrupted.

    Attributes:
        space: what may be tried.
        limit: compilations at most.
        patience: compilations in a row without a gain of 1%, after which it stops (once something fits).
        outcomes: of what was compiled, in that order.
        refused: settings that were not compiled, and why.
        ended: why it stopped.
    """

    space: Space
    limit: int = 12
    patience: int = 6
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    refused: dict[Setting, str] = dataclasses.field(default_factory=dict)
    ended: str = "It was interrupted."

    def ranked(self) -> list[Outcome]:
        """Returns what was compiled, the best first."""
        return sorted(self.outcomes, key=lambda o: o.rank)

    def run(self, start: Setting, measure: Callable[[Setting], Outcome]) -> list[Outcome]:
        """Searches from `start` and returns `ranked()`.

        Args:
            start: the recipe's own setting; if it is refused, the search begins at the meshes that hold most.
            measure: compiles a setting; called at most `limit` times.
        """
        self.ended = "It was interrupted."
        stale = 0
        for seed in self._seeds(start):
            if self._measure(seed, measure):
                break
        while self.outcomes:
            best = self.ranked()[0]
            if len(self.outcomes) >= self.limit:
                self.ended = f"It stopped after {self.limit} compilations (--search_limit)."
                break
            if best.fits and stale >= self.patience:
                self.ended = f"It stopped: {stale} compilations in a row brought no gain of 1%."
                break
            setting = next((s for s in moves(best, self.space) if self._may(s)), None)
            if setting is None:
                self.ended = "It stopped: no change of one thing is left that could improve the best."
                break
            found = self._measure(setting, measure)
            if found is None:
                continue
            gained = found.fits and (not best.fits or found.seconds < 0.99 * best.seconds)
            stale = 0 if gained or not found.fits and found.rank < best.rank else stale + 1
        if not self.outcomes:
            self.ended = "Nothing was compiled: " + "; ".join(dict.fromkeys(self.refused.values()))
        return self.ranked()

    def _seeds(self, start: Setting) -> Iterator[Setting]:
        """The start, then the meshes that share parameters over more and more devices, with more micro-batches."""
        yield start
        for accumulate in (a for a in self.space.accumulate if a >= start.accumulate):
            for mesh in sorted(self.space.meshes, key=lambda m: (m[2], -m[1])):
                yield with_mesh(dataclasses.replace(start, accumulate=accumulate), mesh)

    def _measure(self, setting: Setting, measure: Callable[[Setting], Outcome]) -> Outcome | None:
        """Compiles a setting if it may be, and remembers what came of it. Some sizes show only when it is traced."""
        if not self._may(setting):
            return None
        try:
            found = measure(setting)
        except UserError as error:
            self.refused[setting] = str(error)
            return None
        self.outcomes.append(found)
        return found

    def _may(self, setting: Setting) -> bool:
        if setting in self.refused or any(o.setting == setting for o in self.outcomes):
            return False
        reason = self.space.refusal(setting)
        if reason is None:
            worse = next((o for o in self.outcomes if not o.fits and asks_more(setting, o.setting)), None)
            reason = (
                f"asks for more memory than a setting that does not fit ({worse.setting.text()})" if worse else None
            )
        if reason is not None:
            self.refused[setting] = reason
        return reason is None


def with_mesh(setting: Setting, mesh: tuple[int, int, int]) -> Setting:
    """Returns the setting on another mesh."""
    return dataclasses.replace(setting, data=mesh[0], fsdp=mesh[1], tensor=mesh[2])


def replaced(choices: Choices, part: str, value: str) -> Choices:
    """Returns choices with that of one part changed."""
    return tuple((p, value if p == part else v) for p, v in choices)


def asks_more(a: Setting, b: Setting) -> bool:
    """Whether `a` surely needs as much memory as `b`: the same but for fewer micro-batches or less recomputation."""
    if a.mesh != b.mesh or a.attention != b.attention or a.accumulate > b.accumulate:
        return False
    remat = dict(b.remat)
    return all(POLICIES.index(policy) >= POLICIES.index(remat[part]) for part, policy in a.remat)


def meshes(devices: int, largest_tensor: int = 8) -> tuple[tuple[int, int, int], ...]:
    """Returns the (data, fsdp, tensor) of powers of two times what is odd in the number of devices.

    Args:
        devices: of a slice.
        largest_tensor: devices along tensor at most; each layer waits for its neighbours there.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    tensors = [n for n in divisors if n <= largest_tensor]
    return tuple((devices // t // f, f, t) for t in tensors for f in divisors if (devices // t) % f == 0)


def moves(outcome: Outcome, space: Space) -> Iterator[Setting]:
    """Yields the neighbours of a setting, the most promising first."""
    setting = outcome.setting
    if not outcome.fits:
        yield from _smaller(setting, space)
        yield from _meshes_near(setting, space, more_sharing=True)
        return
    if outcome.communication > 0.15:
        yield from _meshes_near(setting, space, more_sharing=False)
    yield from _attention(setting, space)
    full = outcome.peak_bytes > 0.85 * outcome.limit_bytes
    for neighbours in (_traded, _larger) if full else (_larger, _traded):
        yield from neighbours(setting, space)
    yield from _meshes_near(setting, space, more_sharing=False)
    yield from _meshes_near(setting, space, more_sharing=True)


def _step(values: tuple[Any, ...], now: Any, by: int) -> Any:
    """The neighbour of a value in a list, None at its end. A value outside of the list has none."""
    at = values.index(now) + by if now in values else -1
    return values[at] if 0 <= at < len(values) else None


def _with_remat(setting: Setting, space: Space, by: int) -> Iterator[Setting]:
    for part, policy in setting.remat:
        if other := _step(space.remat.get(part, ()), policy, by):
            yield dataclasses.replace(setting, remat=replaced(setting.remat, part, other))


def _with_accumulate(setting: Setting, space: Space, by: int) -> Iterator[Setting]:
    if other := _step(space.accumulate, setting.accumulate, by):
        yield dataclasses.replace(setting, accumulate=other)


def _smaller(setting: Setting, space: Space) -> Iterator[Setting]:
    """Less memory, in bold steps: what fits can be made faster again, what does not says little."""
    least = tuple((part, (space.remat.get(part) or (policy,))[0]) for part, policy in setting.remat)
    recomputed = dataclasses.replace(setting, remat=least)
    yield recomputed
    data, fsdp, tensor = setting.mesh
    for mesh in ((1, data * fsdp, tensor), (1, data * fsdp // 2, tensor * 2)):
        if mesh in space.meshes:
            yield with_mesh(recomputed, mesh)
    for parts in (a for a in space.accumulate if a > setting.accumulate):
        yield dataclasses.replace(recomputed, accumulate=parts)
    yield from _attention(setting, space)


def _larger(setting: Setting, space: Space) -> Iterator[Setting]:
    """More memory: recompute less, or larger micro-batches, which gather weights less often."""
    yield from _with_remat(setting, space, +1)
    yield from _with_accumulate(setting, space, -1)


def _traded(setting: Setting, space: Space) -> Iterator[Setting]:
    """Smaller micro-batches whose memory is spent on recomputing less."""
    for smaller in _with_accumulate(setting, space, +1):
        yield from _with_remat(smaller, space, +1)


def _attention(setting: Setting, space: Space) -> Iterator[Setting]:
    """Other implementations: first for all parts that have it, then for one part."""
    others = dict.fromkeys(other for names in space.attention.values() for other in names)
    for other in others:
        offered = {part for part, names in space.attention.items() if other in names}
        everywhere = tuple((part, other if part in offered else now) for part, now in setting.attention)
        for choices in (everywhere, *(replaced(setting.attention, part, other) for part in offered)):
            if choices != setting.attention:
                yield dataclasses.replace(setting, attention=choices)


def _meshes_near(setting: Setting, space: Space, more_sharing: bool) -> Iterator[Setting]:
    """Meshes that differ in one move of devices between two axes, the nearest first."""
    now = setting.mesh

    def sharing(mesh: tuple[int, int, int]) -> float:
        return mesh[1] * mesh[2] / (now[1] * now[2])

    near = [m for m in space.meshes if m != now and sum(a != b for a, b in zip(m, now, strict=True)) == 2]
    chosen = [m for m in near if (sharing(m) >= 1) == more_sharing]
    for mesh in sorted(chosen, key=lambda m: (abs(m[2] - now[2]), abs(m[1] - now[1]))):
        yield with_mesh(setting, mesh)
