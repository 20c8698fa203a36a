"""What a benchmark wants: its scores, and the file in which it takes predictions.

All scores are in percent (CIDEr times 100), as papers' tables are; a record's own score is 0..1 for an answer and CIDEr
times 100 for a caption. `table` has the protocol of each benchmark.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vadapter.base import versions
from vadapter.base.errors import UserError
from vadapter.evaluation import answers
from vadapter.evaluation.captions import OFFICIAL
from vadapter.evaluation.metrics import Metric
from vadapter.evaluation.scoring import Record, Scoring, first_answer, first_line, plain_answer

MakeRow = Callable[[Record, str], Mapping[str, Any]]


def row(record_id: str, prediction: str, to_id: Callable[[Any], Any] = str) -> MakeRow:
    """Returns what makes a row of a submission: `{record_id: the id, prediction: the text}`.

    `to_id` makes the id; `ValueError` says that it is no id of the benchmark.
    """
    return lambda record, text: {record_id: to_id(record["id"]), prediction: text}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(Scoring):
    """The scores of a benchmark and the format of its submission.

    Attributes:
        metrics, by, clean, shown, tokenizer: as of `Scoring`. The first metric is the one that papers compare. `clean`
            makes what is submitted, too.
        name: the benchmark's; its record sets it.
        row: (record, prediction) -> a row of the submission.
        file: name of the submission.
        as_mapping: the submission is one object, of each row its first value -> its last.
        under: the key of an object that has the submission; "" for none.
        texts: (records, `clean`) -> text files that belong to the submission too, {path: content}; None for none.
        keeps_skipped: a submission has a row for each id. So a record that cannot be read has an empty prediction.
    """

    row: MakeRow = row("id", "prediction")
    file: str = "{name}_{split}_results.json"
    as_mapping: bool = False
    under: str = ""
    texts: Callable[[Sequence[Record], Callable[[str], str]], Mapping[str, str]] | None = None
    keeps_skipped: bool = True

    def submission(self, records: Sequence[Record], split: str = "test") -> tuple[str, Any]:
        """The predictions in the benchmark's own format.

        Args:
            records: all predictions; those without references, too.
            split: for the file's name.

        Returns:
            (name of the file, what it has as JSON).

        Raises:
            UserError: an id comes twice, or is not what the benchmark has for ids.
        """
        counts = Counter(str(r["id"]) for r in records)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise UserError(
                f"{self.name}: a submission has one prediction for each id, but {len(twice)} ids come more than once: "
                f"{', '.join(twice[:10])}{', ...' if len(twice) > 10 else ''}. Evaluate each record once (no repeats, "
                "one task)."
            )
        rows: Any = [self._checked_row(r) for r in records]
        if self.as_mapping:
            pairs = [tuple(row.values()) for row in rows]
            rows = {str(pair[0]): pair[-1] for pair in pairs}
        return self.file.format(name=self.name, split=split), {self.under: rows} if self.under else rows

    def _checked_row(self, record: Record) -> Mapping[str, Any]:
        try:
            return self.row(record, self.clean(record["prediction"]))
        except ValueError:
            raise UserError(
                f"{self.name}: ids are whole numbers in its submissions, but one is {record['id']!r}. Keep the "
                "annotation file's ids as `id` of the records."
            ) from None

    def side_file(self, submission: str, split: str, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """What lies beside a submission and says how it came about.

        Args:
            submission: name of its file.
            split: of the benchmark.
            facts: as of `scoring.facts`, and what else is known: checkpoint, decoding.

        Returns:
            (name of the file, what it has as JSON).
        """
        here = versions.here()
        scorers = {"vadapter": here["vadapter"], **facts.get("scorers", {})}
        content = {"benchmark": self.name, "split": split, **here, **facts, "scorers": scorers}
        return f"{submission.removesuffix('.json')}.meta.json", content


def captions(to_id: Callable[[Any], Any] = str, **options: Any) -> Protocol:
    """Returns the protocol of captions: all scores of COCO's evaluation, the first line of a text, rows of COCO's."""
    settings = {"metrics": OFFICIAL, "clean": first_line, "row": row("image_id", "caption", to_id)} | options
    return Protocol(**settings)


def questions(
    key: str, to_id: Callable[[Any], Any] = str, metrics: Sequence[Metric] = (answers.VQA_ACCURACY,), **options: Any
) -> Protocol:
    """Returns the protocol of questions with several people's answers. `key` names the id in a row."""
    settings = {"metrics": tuple(metrics), "clean": first_answer, "row": row(key, "answer", to_id)} | options
    return Protocol(**settings)


def exact(metric: Metric = answers.EXACT_ACCURACY, **options: Any) -> Protocol:
    """Returns the protocol of questions whose answers are compared to the letter."""
    return questions("id", metrics=(metric,), **({"clean": plain_answer} | options))
