"""A metric is one record. `captions` and `answers` define those of vadapter; a user's own module defines more.

    from vadapter.evaluation.metrics import Metric, register

    def words(prediction, references):
        return len(prediction.split())

    register(Metric("words", "words", "words of a caption", score=words))

`Evaluation.metrics = ["words"]` then scores generated captions by it, and the pages show it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.evaluation import bootstrap, tokens

Kind = Literal["captions", "answers"]
KINDS: tuple[Kind, ...] = ("captions", "answers")


class Texts:
    """Predictions, each with its references.

    Attributes:
        predictions: one a record.
        references: right captions or answers of each record, at least one.
        tokenizer: that `tokens` are made with: `ptb-java` or `python`.
        records: what else is known of each, such as its `id`, `image` and `options`.
    """

    def __init__(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        tokenizer: str = tokens.PYTHON,
        records: Sequence[Mapping[str, Any]] = (),
    ):
        """Raises `ValueError` where the lengths differ or a record has no reference."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} lists of references")
        if any(not refs for refs in references):
            raise ValueError("a record has no reference")
        self.predictions, self.references, self.tokenizer = predictions, references, tokenizer
        self.records = records or [{}] * len(predictions)
        self._kept: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.predictions)

    def tokens(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """{record: tokens of its references}, {record: [tokens of its prediction]}. Tokens are joined by spaces."""
        return self.once("tokens", self._tokens)

    def _tokens(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        flat = iter(tokens.tokenize([r for refs in self.references for r in refs], self.tokenizer))
        truths = {i: [next(flat) for _ in refs] for i, refs in enumerate(self.references)}
        said = tokens.tokenize(self.predictions, self.tokenizer)
        return truths, {i: [text] for i, text in enumerate(said)}

    def once(self, name: Any, find: Callable[[], Any]) -> Any:
        """Returns what `find` gave when it was first called by this name: metrics share it."""
        if name not in self._kept:
            self._kept[name] = find()
        return self._kept[name]

    def part(self, members: Sequence[int]) -> "Texts":
        """Some of the records."""
        chosen = [self.predictions[i] for i in members], [self.references[i] for i in members]
        return Texts(*chosen, self.tokenizer, [self.records[i] for i in members])


def mean_interval(texts: Texts, values: Sequence[float], seed: int = 0) -> bootstrap.Interval:
    """The bootstrap interval of the mean of the records' values."""
    return bootstrap.bootstrap(values, seed)


def never_missing() -> str:
    """Nothing keeps the metric from running."""
    return ""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of generated texts.

    Give `score` where each record is scored by itself; the metric of a set is then the mean. Give `score_set` where a
    record's score depends on the others, or a program scores all of them.

    Attributes:
        name: of its scalar, such as `cider`.
        label: heading of a column.
        explanation: what it measures, in a few words, with its unit.
        of: which records it scores: captions, or answers to questions.
        score: (prediction, references) -> the record's score. `ValueError` says that the record cannot be scored.
        score_set: texts -> (score of the set, score of each record).
        scale: a metric of `score` is the mean times this; 100 gives percent, while a record keeps 0..1.
        interval: (texts, scores of the records times `scale`, seed) -> 95% interval; None where there is none.
        higher_is_better: which records are the best ones.
        form: how a value of the set is written, such as `{:.1%}`.
        missing: says why it cannot run here; empty where it can.
        versions: name and version of what computes it, for the side files.
        least: records that it needs to say anything.
        on_cards: whether an example on a page shows it.
    """

    name: str
    label: str
    explanation: str
    of: Kind = "captions"
    score: Callable[[str, Sequence[str]], float] | None = None
    score_set: Callable[[Texts], tuple[float, Sequence[float]]] | None = None
    scale: float = 1.0
    interval: Callable[[Texts, Sequence[float], int], bootstrap.Interval] | None = mean_interval
    higher_is_better: bool = True
    form: str = "{:.3g}"
    missing: Callable[[], str] = never_missing
    versions: Callable[[], Mapping[str, str]] = dict
    least: int = 1
    on_cards: bool = True

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise UserError(f"Expected a metric's name without '/', as it is a part of names; found {self.name!r}.")
        if (self.score is None) == (self.score_set is None):
            raise UserError(
                f"Expected the metric {self.name!r} to have either score, of one record, or score_set, of all at once; "
                f"found {'neither' if self.score is None else 'both'}. Give one of them."
            )
        if self.of not in KINDS:
            raise UserError(f"Expected the metric {self.name!r} to be of captions or answers; found {self.of!r}.")


_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Makes a metric known by its name, for `Evaluation.metrics` and the columns of reports, and returns it.

    Raises:
        UserError: another one has the name.
    """
    if _METRICS.setdefault(metric.name, metric) != metric:
        raise UserError(f"There is a metric {metric.name!r} already. Give the new one another name.")
    return metric


def registered() -> list[Metric]:
    """All registered metrics."""
    from vadapter.evaluation import answers, captions  # which register theirs

    del answers, captions
    return list(_METRICS.values())


def metric(name: str) -> Metric:
    """Returns a registered metric by its name. Raises `UserError` if there is none."""
    known = {m.name: m for m in registered()}
    if name not in known:
        near = trees.nearest(name, known, 1)[0] if name else "cider"
        raise UserError(
            f"Expected the name of a metric, one of {', '.join(known)}; found {name!r}. Did you mean {near!r}? A "
            "metric of your own is known once the module that registers it is imported."
        )
    return known[name]
