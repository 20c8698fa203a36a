"""95% bootstrap intervals of the scores of generated texts.

Each score is resampled as what it is: a mean over records (CIDEr-D with the document frequencies of its set, ROUGE-L,
SPICE, accuracies, also those of a type of question), or BLEU, whose counts of n-grams are summed over the set. METEOR
is put together from counts that its program does not give, so it has no interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vadapter.evaluation import captions, protocols
from vadapter.evaluation.metrics import Intervals, bootstrap, bootstrap_sums

Record = Mapping[str, Any]
_MEANS = ("cider", "rouge_l", "spice")
_BLEU_ORDER = 4


def of_plain(records: Sequence[Record], seed: int = 0) -> Intervals:
    """Intervals of the scalars of `evaluators.score_records`, by their names; `records` are scored."""
    scored = [r for r in records if "score" in r]
    captioned = [r for r in scored if "question" not in r]
    asked = [r for r in scored if "question" in r]
    values = {
        "cider": [r["cider"] for r in captioned],
        "exact_match": [r["score"] for r in captioned],
        "vqa_accuracy": [r["score"] for r in asked],
    }
    for kind in {r["question_type"] for r in asked if "question_type" in r}:
        values[f"vqa_accuracy/{kind}"] = [r["score"] for r in asked if r.get("question_type") == kind]
    return {name: bootstrap(scores, seed) for name, scores in values.items() if scores}


def of_benchmark(
    protocol: protocols.Protocol, records: Sequence[Record], tokenizer: str = captions.PYTHON, seed: int = 0
) -> Intervals:
    """Intervals of the scalars of a benchmark, by their names without the benchmark's.

    Args:
        protocol: the benchmark's.
        records: with the scores that it gave them.
        tokenizer: that captions were scored with.
        seed: of the draws.
    """
    scored = [r for r in records if "score" in r]
    if not scored:
        return {}
    groups = protocols.groups(scored, protocol.by)
    if protocol.answer_score is None:
        return _captions(protocol, scored, groups, tokenizer, seed)
    found = {
        name: bootstrap([100 * r[name] for r in scored], seed) for name in (protocol.primary, *protocol.more_scores)
    }
    values = [100 * r[protocol.primary] for r in scored]
    for group, members in groups.items():
        found[f"{protocol.primary}/{group}"] = bootstrap([values[i] for i in members], seed)
    return found


def _captions(
    protocol: protocols.Protocol,
    records: Sequence[Record],
    groups: Mapping[str, Sequence[int]],
    tokenizer: str,
    seed: int,
) -> Intervals:
    predictions = [protocol.clean(r["prediction"]) for r in records]
    targets = [protocols.references(r) for r in records]
    found = {name: bootstrap([r[name] for r in records], seed) for name in _MEANS if name in records[0]}
    if len(records) > 1:  # of a single caption pycocoevalcap takes another length, so that there is nothing to resample
        bounds = bootstrap_sums(bleu_statistics(predictions, targets, tokenizer), bleu, seed)
        found |= {f"bleu{n + 1}": (float(bounds[0, n]), float(bounds[1, n])) for n in range(_BLEU_ORDER)}
    for group, members in groups.items():
        # A group's CIDEr counts document frequencies over the group alone.
        part = [predictions[i] for i in members], [targets[i] for i in members]
        each = captions.caption_scores(*part, tokenizer, ("cider",)).each["cider"]
        found[f"cider/{group}"] = bootstrap(each, seed)
    return found


def bleu_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> np.ndarray:
    """What each caption adds to BLEU's sums, as pycocoevalcap counts it.

    Returns:
        [n, 10]: matched n-grams of 1 to 4 words, n-grams of 1 to 4 words, words, words of the reference that is
        closest in length.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    tokens = iter(captions.tokenize([*(r for refs in references for r in refs), *predictions], tokenizer))
    truths = [[next(tokens) for _ in refs] for refs in references]
    scorer = BleuScorer(n=_BLEU_ORDER)
    for truth, prediction in zip(truths, tokens, strict=True):
        scorer += (prediction, truth)
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
