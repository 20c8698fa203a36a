"""Which records of an evaluation are shown: the best, the worst, and some at random."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
KINDS = ("best", "worst", "random")


@dataclasses.dataclass(frozen=True)
class Example:
    """A record that is shown.

    Attributes:
        kind: best, worst or random.
        record: with its scores.
        scores: (label, value) of those that are shown.
        picture: a JPEG data URI, a strip of frames if it is a video; None where none was kept.
    """

    kind: str
    record: Record
    scores: Sequence[tuple[str, float]] = ()
    picture: str | None = None


def choose(
    records: Sequence[Record], count: int, rank: Callable[[Record], float | None], seed: int = 0
) -> list[Example]:
    """Chooses `count` records of each kind, captions and questions apart.

    Among equal scores those with a picture come first, and else chance decides, so that many right answers are not all
    of the first images. No record is both among the best and among the worst, however few there are.

    Args:
        records: scored or not; one that is not scored can be chosen at random only.
        count: of each kind.
        rank: what a record is ranked by, more is better; None where it is not scored. See `Scoring.rank`.
        seed: the same records and seed give the same examples.

    Returns:
        The best from the best down, the worst from the worst up, then the random ones in the order of the records;
        captions before questions.
    """
    chosen = []
    for questions in (False, True):
        members = [r for r in records if bool(r.get("question")) == questions]
        shuffled = random.Random(seed).sample(members, len(members))
        shuffled.sort(key=lambda r: "picture" not in r)
        scored = [(s, r) for r in shuffled if (s := rank(r)) is not None]
        scored.sort(key=lambda pair: -pair[0])
        most = min(count, (len(scored) + 1) // 2)
        best, rest = scored[:most], scored[most:]
        worst = sorted(rest, key=lambda pair: pair[0])[:count]
        drawn = random.Random(seed + 1).sample(range(len(members)), min(count, len(members)))
        chosen += [Example("best", r) for _, r in best] + [Example("worst", r) for _, r in worst]
        chosen += [Example("random", members[i]) for i in sorted(drawn)]
    return chosen
