"""Which records of an evaluation are shown: the best, the worst, and some at random."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
KINDS = ("best", "worst", "random")


@dataclasses.dataclass(frozen=True)
class Example:
    """A record that is shown.

    Attributes:
        kind: best, worst or random.
        record: with its scores.
        picture: a JPEG data URI, a strip of frames if it is a video; None where none was kept.
    """

    kind: str
    record: Record
    picture: str | None = None

    @property
    def score(self) -> float | None:
        return score_of(self.record)


def score_of(record: Record) -> float | None:
    """The score that records are ranked by: CIDEr of a caption, accuracy of an answer; None where it has none."""
    value = record.get("cider", record.get("score"))
    return None if value is None else float(value)


def choose(records: Sequence[Record], count: int, seed: int = 0) -> list[Example]:
    """Chooses `count` records of each kind, captions and questions apart.

    Among equal scores those with a picture come first, and else chance decides, so that many right answers are not all
    of the first images. No record is both among the best and among the worst, however few there are.

    Args:
        records: scored or not; one that is not scored can be chosen at random only.
        count: of each kind.
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
        scored = [(s, r) for r in shuffled if (s := score_of(r)) is not None]
        scored.sort(key=lambda pair: -pair[0])
        most = min(count, (len(scored) + 1) // 2)
        best, rest = scored[:most], scored[most:]
        worst = sorted(rest, key=lambda pair: pair[0])[:count]
        drawn = random.Random(seed + 1).sample(range(len(members)), min(count, len(members)))
        chosen += [Example("best", r) for _, r in best] + [Example("worst", r) for _, r in worst]
        chosen += [Example("random", members[i]) for i in sorted(drawn)]
    return chosen
