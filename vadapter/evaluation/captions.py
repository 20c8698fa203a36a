"""Metrics of captions by pycocoevalcap: CIDEr-D, BLEU, ROUGE-L, and with Java METEOR and SPICE; and exact match.

The scorers are the official ones. The official tokenizer, and METEOR and SPICE themselves, are Java programs that
pycocoevalcap brings along. Without Java the other scores run on tokens of `vadapter.evaluation.ptb`, which agree.
The official scores are times 100, as papers report them.
"""

import contextlib
import functools
import io
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vadapter.evaluation import bootstrap, tokens
from vadapter.evaluation.metrics import Metric, Texts, register

_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_BLEU_ORDER = 4

# A scorer takes {record: [tokens]} of references and predictions, and gives (score, score of each record), as numpy's
# or Python's numbers.
_Tokens = dict[int, list[str]]
_Scorer = Callable[[_Tokens, _Tokens], tuple[Any, Sequence[Any]]]


def scorer_versions() -> dict[str, str]:
    """What the scores of captions depend on, by name."""
    return {"pycocoevalcap": metadata.version("pycocoevalcap"), "java": tokens.java_version() or "absent"}


def caption_match(prediction: str, references: Sequence[str]) -> float:
    """Whether a caption equals one of the references, word for word, after `tokens.caption_tokens`: 1.0 or 0.0."""
    words = tokens.caption_tokens(prediction)
    return float(any(words == tokens.caption_tokens(reference) for reference in references))


# --- the scorers ----------------------------------------------------------------------------------------------------


def _of_tokens(scorer: _Scorer) -> Callable[[Texts], tuple[float, list[float]]]:
    """Makes a scorer of pycocoevalcap the `score_set` of a metric, times 100."""

    def score_set(texts: Texts) -> tuple[float, list[float]]:
        truths, hypotheses = texts.tokens()
        if not any(text for found in truths.values() for text in found):
            return 0.0, [0.0] * len(texts)  # the scorers cannot count over references without a word
        mean, each = scorer(truths, hypotheses)
        return 100.0 * float(mean), [100.0 * float(v) for v in each]

    return score_set


def _cider(truths: _Tokens, hypotheses: _Tokens) -> tuple[Any, Any]:
    from pycocoevalcap.cider.cider import Cider  # here and below, so that importing this module stays fast

    return Cider().compute_score(truths, hypotheses)


def _rouge(truths: _Tokens, hypotheses: _Tokens) -> tuple[Any, Any]:
    from pycocoevalcap.rouge.rouge import Rouge

    return Rouge().compute_score(truths, hypotheses)


def _bleu(texts: Texts, order: int) -> tuple[float, list[float]]:
    def all_orders() -> list[tuple[float, list[float]]]:
        from pycocoevalcap.bleu.bleu import Bleu

        def one(n: int, found: Any) -> _Scorer:
            return lambda *_: (found[0][n], found[1][n])

        truths, hypotheses = texts.tokens()
        found: Any = ([0.0] * _BLEU_ORDER, [[0.0] * len(texts)] * _BLEU_ORDER)
        if any(text for refs in truths.values() for text in refs):
            with contextlib.redirect_stdout(io.StringIO()):
                found = Bleu(_BLEU_ORDER).compute_score(truths, hypotheses, verbose=0)
        return [_of_tokens(one(n, found))(texts) for n in range(_BLEU_ORDER)]

    return texts.once("bleu", all_orders)[order - 1]


def _meteor(truths: _Tokens, hypotheses: _Tokens) -> tuple[Any, Any]:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return scorer.compute_score(truths, hypotheses)
    except Exception as error:
        if scorer.lock.locked():
            scorer.lock.release()  # its destructor waits for the lock, which it holds still where it has failed
        scorer.meteor_p.kill()
        words = scorer.meteor_p.communicate()[1].decode(errors="replace").splitlines()
        raise RuntimeError(_last(words) or str(error)) from error


def _spice(truths: _Tokens, hypotheses: _Tokens) -> tuple[Any, Any]:
    from pycocoevalcap.spice.spice import Spice

    with _own_stderr() as said:
        try:
            mean, parts = Spice().compute_score(truths, hypotheses)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(_last(said()) or str(error)) from error
    each = [part["All"]["f"] for part in parts]
    return mean, [0.0 if math.isnan(value) else value for value in each]


@contextlib.contextmanager
def _own_stderr() -> Iterator[Callable[[], list[str]]]:
    """Programs started meanwhile write their errors to a file. Gives a function that reads its lines."""
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def lines() -> list[str]:
            file.seek(0)
            return file.read().decode(errors="replace").splitlines()

        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _no_java() -> str:
    return "" if tokens.java_version() else "it is a Java program, and java is not on PATH"


def _no_spice() -> str:
    if reason := _no_java():
        return reason
    if all((_spice_folder() / "lib" / jar).is_file() for jar in _SPICE_JARS):
        return ""
    return (
        f"{' and '.join(_SPICE_JARS)} are not in {_spice_folder() / 'lib'}. `python -m "
        "pycocoevalcap.spice.get_stanford_models` downloads them; vadapter downloads nothing by itself"
    )


def _spice_folder() -> Path:
    from pycocoevalcap import spice

    return Path(str(spice.__file__)).parent


# --- BLEU's interval: its counts of n-grams are summed over the set ---------------------------------------------------


def bleu_statistics(texts: Texts) -> np.ndarray:
    """What each caption adds to BLEU's sums, as pycocoevalcap counts it.

    Returns:
        [n, 10]: matched n-grams of 1 to 4 words, n-grams of 1 to 4 words, words, words of the reference that is
        closest in length.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    truths, hypotheses = texts.tokens()
    scorer = BleuScorer(n=_BLEU_ORDER)
    for i in range(len(texts)):
        scorer += (hypotheses[i][0], truths[i])
    rows = []
    for counts in scorer.ctest:
        words = counts["testlen"]
        closest = min(counts["reflen"], key=lambda length: (abs(length - words), length))
        rows.append([*counts["correct"], *counts["guess"], words, closest])
    return np.array(rows, np.float64)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4, times 100, [S, 4] of sums [S, 10] of `bleu_statistics`, as pycocoevalcap has them."""
    correct, guess = sums[:, :_BLEU_ORDER], sums[:, _BLEU_ORDER : 2 * _BLEU_ORDER]
    # Its two small numbers, which keep it from dividing by zero.
    precision = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=1) ** (1 / np.arange(1, _BLEU_ORDER + 1))
    ratio = (sums[:, -2] + 1e-15) / (sums[:, -1] + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return 100 * precision * brevity[:, None]


def _bleu_interval(texts: Texts, values: Sequence[float], seed: int, order: int) -> bootstrap.Interval:
    if len(texts) < 2:  # of a single caption pycocoevalcap takes another length, so that there is nothing to resample
        return math.nan, math.nan
    bounds = texts.once(("bleu interval", seed), lambda: bootstrap.bootstrap_sums(bleu_statistics(texts), bleu, seed))
    return float(bounds[0, order - 1]), float(bounds[1, order - 1])


# --- the metrics ------------------------------------------------------------------------------------------------------


def _official(name: str, label: str, score_set: Callable[[Texts], Any], **options: Any) -> Metric:
    explanation = options.pop("explanation", f"{label}, times 100")
    settings = {"score_set": score_set, "form": "{:.1f}", "versions": scorer_versions} | options
    return register(Metric(name, label, explanation, **settings))


CIDER = _official("cider", "CIDEr", _of_tokens(_cider), explanation="CIDEr-D of captions, times 100", least=2)
BLEU = tuple(
    _official(
        *(f"bleu{n}", f"BLEU-{n}", functools.partial(_bleu, order=n)),
        interval=functools.partial(_bleu_interval, order=n),
        on_cards=n == _BLEU_ORDER,
    )
    for n in range(1, _BLEU_ORDER + 1)
)
ROUGE_L = _official("rouge_l", "ROUGE-L", _of_tokens(_rouge))
# METEOR is put together from counts that its program does not give, so it has no interval.
METEOR = _official("meteor", "METEOR", _of_tokens(_meteor), interval=None, missing=_no_java)
SPICE = _official("spice", "SPICE", _of_tokens(_spice), missing=_no_spice)
EXACT_MATCH = register(
    Metric("exact_match", "exact match", "captions equal to a reference", score=caption_match, form="{:.1%}")
)

OFFICIAL = (CIDER, *BLEU, ROUGE_L, METEOR, SPICE)
