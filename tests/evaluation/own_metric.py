"""Metrics as a user defines them, in a module of their own: one of each record, one of all records at once."""

from vadapter.evaluation.metrics import Metric, Texts, register


def words(prediction: str, references) -> float:
    """Words of a caption."""
    return float(len(prediction.split()))


def distinct(texts: Texts) -> tuple[float, list[float]]:
    """Different captions among all; a record's score is how many others say the same."""
    return float(len(set(texts.predictions))), [float(texts.predictions.count(text)) for text in texts.predictions]


WORDS = register(Metric("own_words", "words", "words of a caption", score=words, higher_is_better=False))
DISTINCT = register(
    Metric("own_distinct", "distinct", "different captions", score_set=distinct, interval=None, form="{:.0f}")
)
