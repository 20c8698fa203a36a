"""Scores of captions by pycocoevalcap: CIDEr-D, BLEU, ROUGE-L, and with Java METEOR and SPICE.

The scorers are the official ones. The official tokenizer, and METEOR and SPICE themselves, are Java programs that
pycocoevalcap brings along. Without Java the other scores run on tokens of `vadapter.evaluation.tokenizer`, which agree.
All scores are times 100, as papers report them.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vadapter.evaluation.tokenizer import PUNCTUATION, ptb_tokenize

PTB_JAVA = "ptb-java"
PYTHON = "python"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        means: by name: `cider`, `bleu1` to `bleu4`, `rouge_l`, and `meteor` and `spice` where they could run. BLEU and
            METEOR are of the whole set, not means of `each`.
        each: the score of each caption, by the same names.
        tokenizer: `ptb-java` or `python`.
        left_out: scores that could not run, and why.
    """

    means: dict[str, float]
    each: dict[str, list[float]]
    tokenizer: str
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


# --- tokens ---------------------------------------------------------------------------------------------------------


@functools.cache
def java_version() -> str:
    """What `java -version` says first; empty where Java is absent or does not run."""
    if not shutil.which("java"):
        return ""
    run = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    lines = [line for line in (run.stderr + run.stdout).splitlines() if "version" in line]
    return lines[0].strip() if run.returncode == 0 and lines else ""


def tokenize(captions: Sequence[str], tokenizer: str) -> list[str]:
    """The tokens of captions as the COCO evaluation counts them, joined by spaces.

    Args:
        captions: texts; a line break in one is a space.
        tokenizer: `ptb-java` starts Java once; `python` starts no program.

    Raises:
        RuntimeError: Java failed.
    """
    lines = [" ".join(caption.splitlines()) for caption in captions]
    return _java_tokens(lines) if tokenizer == PTB_JAVA else ptb_tokenize(lines)


def _java_tokens(lines: list[str]) -> list[str]:
    """Runs pycocoevalcap's tokenizer. Not through its class: that writes into site-packages and trusts the locale."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not any(line.strip() for line in lines):
        return [""] * len(lines)
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    run = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input="\n".join(lines).encode(), capture_output=True, check=False
    )
    # Lines end in \n alone; the program drops empty lines at the end.
    found = run.stdout.decode().split("\n")
    if run.returncode or len(found) > len(lines) + 1:
        raise RuntimeError(f"the PTB tokenizer failed on {len(lines)} captions: {run.stderr.decode()[-500:]}")
    found += [""] * (len(lines) - len(found))
    return [" ".join(t for t in line.rstrip().split(" ") if t not in PUNCTUATION) for line in found[: len(lines)]]


def caption_tokens(caption: str) -> list[str]:
    """The words of a caption: lower case, clitics split off (`man 's`), punctuation dropped. Starts no program."""
    return tokenize([caption], PYTHON)[0].split()


def caption_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether a caption equals one of the references, word for word, after `caption_tokens`."""
    words = caption_tokens(prediction)
    return any(words == caption_tokens(reference) for reference in references)


# --- scores ---------------------------------------------------------------------------------------------------------


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """CIDEr-D of a set of captions, without Java: `caption_scores` for one score.

    Document frequencies come from the references of this very set, so scores of sets of different sizes do not
    compare, and a set of one image scores 0.

    Returns:
        The score of the set, and of each image. (0.0, []) for no images.

    Raises:
        ValueError: as `caption_scores`.
    """
    scores = caption_scores(predictions, references, tokenizer=PYTHON, names=("cider",))
    return scores.means["cider"], scores.each["cider"]


ALL = ("cider", "bleu", "rouge_l", "meteor", "spice")


def caption_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str | None = None,
    names: Sequence[str] = ALL,
) -> CaptionScores:
    """Scores captions as COCO's evaluation does.

    Args:
        predictions: one caption an image.
        references: the image's reference captions, at least one each.
        tokenizer: `ptb-java`, `python`, or None for Java where it is.
        names: of the scores, among `ALL`; `bleu` is four.

    Raises:
        ValueError: the lengths differ, or an image has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if any(not refs for refs in references):
        raise ValueError("an image has no reference caption")
    tokenizer = tokenizer or best_tokenizer()
    flat = iter(tokenize([r for refs in references for r in refs], tokenizer))
    truths = {i: [next(flat) for _ in refs] for i, refs in enumerate(references)}
    hypotheses = {i: [tokens] for i, tokens in enumerate(tokenize(predictions, tokenizer))}

    means: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    wordless = not any(text for texts in truths.values() for text in texts)
    for name in names:
        reason = _missing(name)
        if reason:
            left_out[name] = reason
            _say_once(f"{name} is left out: {reason}")
            continue
        # The scorers cannot count over references without a word.
        found = _zeros(name, len(predictions)) if wordless else _SCORERS[name](truths, hypotheses)
        for key, (mean, values) in found.items():
            means[key], each[key] = 100.0 * float(mean), [100.0 * float(v) for v in values]
    return CaptionScores(means, each, tokenizer, left_out)


def best_tokenizer() -> str:
    """`ptb-java` where Java runs, else `python`, which is said once."""
    if java_version():
        return PTB_JAVA
    _say_once(
        "Java is not on PATH (install a runtime of version 8 or later): captions are scored on vadapter's Python "
        "tokenizer, which agrees with the official one, and METEOR and SPICE are left out."
    )
    return PYTHON


def scorer_versions() -> dict[str, str]:
    """What the scores of captions depend on, by name."""
    return {"pycocoevalcap": metadata.version("pycocoevalcap"), "java": java_version() or "absent"}


@functools.cache
def _say_once(message: str) -> None:
    logging.warning(message)


def _missing(name: str) -> str:
    """Why a score cannot run; empty if it can."""
    if name not in ("meteor", "spice"):
        return ""
    if not java_version():
        return "it is a Java program, and java is not on PATH"
    if name == "spice" and not _spice_ready():
        return (
            f"{' and '.join(_SPICE_JARS)} are not in {_spice_folder() / 'lib'}. `python -m "
            "pycocoevalcap.spice.get_stanford_models` downloads them; vadapter downloads nothing by itself"
        )
    return ""


def _spice_folder() -> Path:
    from pycocoevalcap import spice

    return Path(str(spice.__file__)).parent


def _spice_ready() -> bool:
    return all((_spice_folder() / "lib" / jar).is_file() for jar in _SPICE_JARS)


# A scorer takes {image: [tokens]} of references and predictions, and gives (score, score of each image) by name, as
# numpy's or Python's numbers.
_Texts = dict[int, list[str]]
_Found = dict[str, tuple[Any, Any]]


def _zeros(name: str, count: int) -> _Found:
    keys = [f"bleu{n}" for n in range(1, 5)] if name == "bleu" else [name]
    return {key: (0.0, [0.0] * count) for key in keys}


def _cider(truths: _Texts, hypotheses: _Texts) -> _Found:
    from pycocoevalcap.cider.cider import Cider  # here and below, so that importing this module stays fast

    return {"cider": Cider().compute_score(truths, hypotheses)}


def _bleu(truths: _Texts, hypotheses: _Texts) -> _Found:
    from pycocoevalcap.bleu.bleu import Bleu

    with contextlib.redirect_stdout(io.StringIO()):
        scores, each = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    return {f"bleu{n}": (scores[n - 1], each[n - 1]) for n in range(1, 5)}


def _rouge(truths: _Texts, hypotheses: _Texts) -> _Found:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"rouge_l": Rouge().compute_score(truths, hypotheses)}


def _meteor(truths: _Texts, hypotheses: _Texts) -> _Found:
    from pycocoevalcap.meteor.meteor import Meteor

    return {"meteor": Meteor().compute_score(truths, hypotheses)}


def _spice(truths: _Texts, hypotheses: _Texts) -> _Found:
    from pycocoevalcap.spice.spice import Spice

    mean, parts = Spice().compute_score(truths, hypotheses)
    each = [part["All"]["f"] for part in parts]
    return {"spice": (mean, [0.0 if math.isnan(value) else value for value in each])}


_SCORERS: dict[str, Callable[[_Texts, _Texts], Any]] = {
    "cider": _cider, "bleu": _bleu, "rouge_l": _rouge, "meteor": _meteor, "spice": _spice,
}  # fmt: skip
