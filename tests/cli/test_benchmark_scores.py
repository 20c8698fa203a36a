"""Every benchmark from its official files to its score, against the official scorers.

`vadapter build`, then `vadapter eval` of a tiny model write a submission and scores. From the submission and the
official file, read here anew, the score is computed once more: captions by pycocoevalcap itself, answers by the
published rules, written down below. The model knows nothing, and equal zeros would show little: it generates, but in
the place of its words come texts that are partly right.

    python -m tests.cli.test_benchmark_scores    # prints the table: benchmark, official score, ours
"""

import contextlib
import csv
import functools
import io
import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.benchmarks import official_files
from tests.cli import official_choices
from tests.tiny_bundle import write_bundle
from vadapter.benchmarks import table as benchmarks
from vadapter.cli.main import main
from vadapter.evaluation import tokens
from vadapter.runs import experiment

pytestmark = pytest.mark.slow

ITEMS = 8
EXAMPLE = "Given Question: Is it red ? Answer: yes"
NEXT = f" {EXAMPLE}"  # how a base model goes on after its answer


# The official files and submissions, read anew: {id: references}, {id: prediction}


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _grouped(pairs):
    groups = defaultdict(list)
    for key, value in pairs:
        groups[str(key)].append(value)
    return dict(groups)


def _coco(path):
    return _grouped((row["image_id"], row["caption"]) for row in _json(path)["annotations"])


def _karpathy(folder):
    images = [image for image in _json(folder / "dataset_coco.json")["images"] if image["split"] == "test"]
    return {str(image["cocoid"]): [sentence["raw"] for sentence in image["sentences"]] for image in images}


def _msrvtt(folder):
    rows = _json(folder / "test_videodatainfo.json")["sentences"]
    return _grouped((row["video_id"], row["caption"]) for row in rows)


def _msvd(folder):
    lines = [line.split() for line in (folder / "youtube_mapping.txt").read_text().splitlines()]
    test = {name for name, number in lines if int(number[3:]) > 1300}
    pairs = (line.split(" ", 1) for line in (folder / "AllVideoDescriptions.txt").read_text().splitlines() if line)
    return _grouped((name, caption) for name, caption in pairs if name in test)


def _people(rows, key, answers):
    return {str(row[key]): answers(row) for row in rows}


def _vqa(path):
    return _people(_json(path)["annotations"], "question_id", lambda row: [a["answer"] for a in row["answers"]])


def _ivqa(folder):
    with open(folder / "test.csv", encoding="utf-8", newline="") as file:
        return _people(csv.DictReader(file), "video_id", lambda row: [row[f"answer{i}"] for i in range(1, 6)])


def _pope(folder):
    kinds = ("random", "popular", "adversarial")
    lines = [(kind, (folder / f"coco_pope_{kind}.json").read_text().splitlines()) for kind in kinds]
    rows = [(kind, json.loads(line)) for kind, found in lines for line in found]
    return {f"{kind}_{row['question_id']}": [row["label"]] for kind, row in rows}


OFFICIAL = {
    "coco_caption": lambda folder: _coco(folder / "annotations" / "captions_val2014.json"),
    "coco_karpathy": _karpathy,
    "nocaps": lambda folder: _coco(folder / "nocaps_val_4500_captions.json"),
    "msrvtt_caption": _msrvtt,
    "vatex_caption": lambda folder: {
        row["videoID"]: row["enCap"] for row in _json(folder / "vatex_public_test_english_v1.1.json")
    },
    "msvd_caption": _msvd,
    "vqav2": lambda folder: _vqa(folder / "v2_mscoco_val2014_annotations.json"),
    "textvqa": lambda folder: _people(
        _json(folder / "TextVQA_0.5.1_val.json")["data"], "question_id", lambda row: row["answers"]
    ),
    "vizwiz_vqa": lambda folder: _people(
        _json(folder / "val.json"), "image", lambda row: [a["answer"] for a in row["answers"]]
    ),
    "okvqa": lambda folder: _vqa(folder / "mscoco_val2014_annotations.json"),
    "gqa": lambda folder: {
        key: [row["answer"]] for key, row in _json(folder / "testdev_balanced_questions.json").items()
    },
    "msrvtt_qa": lambda folder: _people(_json(folder / "test_qa.json"), "id", lambda row: [row["answer"]]),
    "msvd_qa": lambda folder: _people(_json(folder / "test_qa.json"), "id", lambda row: [row["answer"]]),
    "ivqa": _ivqa,
    "pope": _pope,
    "docvqa": lambda folder: _people(
        _json(folder / "val_v1.0_withQT.json")["data"], "questionId", lambda row: row["answers"]
    ),
    "chartqa": lambda folder: {
        f"{kind}_{i}": [row["label"]]
        for kind in ("human", "augmented")
        for i, row in enumerate(_json(folder / "test" / f"test_{kind}.json"))
    },
    **official_choices.OFFICIAL,
}
CAPTIONED = tuple(OFFICIAL)[:6]
EXACT = ("gqa", "msrvtt_qa", "msvd_qa", "ivqa")


def submitted(path):
    """The predictions of a submission, in whichever of the benchmarks' formats."""
    rows = _json(path)
    if isinstance(rows, dict):
        return rows.get("results", rows)
    return {str(next(iter(row.values()))): list(row.values())[-1] for row in rows}


# The published rules of answers. Of contractions and stems what the fixtures have.

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
CONTRACTIONS = {"dont": "don't", "isnt": "isn't", "wont": "won't"}
STEMS = {"riding": "ride", "rides": "ride", "horses": "horse", "dogs": "dog"}


def normalized(answer):
    """visualqa.org/evaluation: marks, then lower case, digits, articles, contractions."""
    text = re.sub(r"[\n\t]", " ", answer).strip()
    comma = re.search(r"\d,\d", text)
    marks = {m: "" if comma or f"{m} " in text or f" {m}" in text else " " for m in ';/[]"{}()=+\\_-><@`,?!'}
    words = re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(marks))).lower().split()
    words = [NUMBERS.get(word, word) for word in words if NUMBERS.get(word, word) not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def stemmed(answer):
    return " ".join(STEMS.get(word, word) for word in normalized(answer).split())


def leave_one_out(prediction, answers, clean=normalized):
    """Each person is left out in turn; of the others, three who agree are enough. Equal answers are not normalised."""
    if len(set(answers)) > 1:
        prediction, answers = clean(prediction), [clean(answer) for answer in answers]
    parts = [min(1, (answers[:i] + answers[i + 1 :]).count(prediction) / 3) for i in range(len(answers))]
    return sum(parts) / len(parts)


def okvqa(prediction, answers):
    answers = [stemmed(answer) for answer in answers]
    return leave_one_out(stemmed(prediction), answers, clean=str)


def distance(one, other):
    """Levenshtein's, by its recursion."""

    @functools.cache
    def edits(i, j):
        if not i or not j:
            return i + j
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return edits(len(one), len(other))


def anls(said, answers):
    """rrc.cvc.uab.es, challenge 17."""
    best = max(1 - distance(said.lower(), answer.lower()) / max(len(said), len(answer)) for answer in answers)
    return best if best >= 0.5 else 0


RULES = {
    **dict.fromkeys(("vqav2", "textvqa", "vizwiz_vqa"), {"vqa_accuracy": leave_one_out}),
    "okvqa": {"vqa_accuracy": okvqa, "vqa_accuracy_unstemmed": leave_one_out},
    **dict.fromkeys(("gqa", "msrvtt_qa", "msvd_qa"), {"accuracy": lambda said, answers: said == answers[0]}),
    "docvqa": {"anls": anls},
    "chartqa": {"relaxed_accuracy": lambda said, answers: said.lower() == answers[0].lower()},  # no numbers here
    "ivqa": {"accuracy": lambda said, answers: min(answers.count(said) / 2, 1)},
}


def pope(predictions, references):
    """github.com/AoiDragon/POPE, evaluate.py."""
    said = {
        k: not {"No", "not", "no"} & set(p.split(".")[0].replace(",", "").split(" ")) for k, p in predictions.items()
    }
    right = {k: answers == ["yes"] for k, answers in references.items()}
    hits = sum(said[k] and right[k] for k in said)
    precision, recall = hits / sum(said.values()), hits / sum(right.values())
    found = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}
    found |= {
        "accuracy": sum(said[k] == right[k] for k in said) / len(said),
        "yes_ratio": sum(said.values()) / len(said),
    }
    return {score: 100 * value for score, value in found.items()}


def official_scores(name, predictions, references, meteor):
    """Scores by name, in percent; METEOR, which takes as long as all others, if `meteor`."""
    if name == "pope":
        return pope(predictions, references)
    if name not in CAPTIONED:
        rules = RULES[name].items()
        return {
            score: 100 * float(np.mean([rule(predictions[key], answers) for key, answers in references.items()]))
            for score, rule in rules
        }
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truths = PTBTokenizer().tokenize({key: [{"caption": c} for c in captions] for key, captions in references.items()})
    said = PTBTokenizer().tokenize({key: [{"caption": predictions[key]}] for key in references})
    scorers = {"cider": Cider(), "rouge_l": Rouge()} | ({"meteor": Meteor()} if meteor else {})
    found = {score: scorer.compute_score(truths, said)[0] for score, scorer in scorers.items()}
    bleu = Bleu(4).compute_score(truths, said, verbose=0)[0]
    found |= {f"bleu{n}": value for n, value in enumerate(bleu, 1)}
    return {score: 100 * float(value) for score, value in found.items()}


# What the model says


def half(text, second=False):
    words = text.split()
    return " ".join(words[len(words) // 2 :] if second else words[: len(words) // 2])


def plan(references, question):
    """{id: text}, of the references, partly right."""
    keys = sorted(references)  # not as in the file, whose order may be any
    said = {}
    for i, key in enumerate(keys):
        mine, other = references[key], references[keys[(i + 1) % len(keys)]]
        if question:
            texts = [
                *(mine[0], f"The {mine[0].upper()}!", f"{mine[0]}.{NEXT}", mine[-1]),
                *(mine[0].capitalize(), mine[0].replace("'", ""), f"{mine[0].split()[-1]}s", f"{mine[0]}\n{EXAMPLE}"),
            ]
        else:
            texts = [
                *(mine[0], f"{mine[1].upper()} !!", half(mine[0]), other[0], f"{half(mine[0])} {half(mine[1], True)}"),
                *(f"{mine[2]}\nDescribe the following", f"({mine[1]})", half(mine[1], True)),
            ]
        said[key] = texts[i % len(texts)]
    return said


def saying(texts):
    """While this holds, evaluators of generation read `texts[id]` where the model generated something else."""
    made = experiment.Parts.evaluator

    def evaluator(parts, evaluation):
        found = made(parts, evaluation)
        batches, generate, vocabulary, current = found.batches, found.generate, found.vocabulary, []

        def watched():
            for batch, rows in batches():
                current[:] = rows
                yield batch, rows

        def say(params, batch):
            own = np.asarray(generate(params, batch))
            assert own.shape[0] == len(current)
            ids = [[*vocabulary.encode(texts[row["id"]]), vocabulary.eos_id] for row in current]
            longest = max(map(len, ids))
            return np.array([row + [-1] * (longest - len(row)) for row in ids])

        found.batches, found.generate = watched, say
        return found

    return mock.patch.object(experiment.Parts, "evaluator", evaluator)


# From files to scores


def scores(name, folder, model, meteor=True):
    """Returns (official scores, our scores of the same names, the submission)."""
    official, output = folder / "official", folder / "results"
    official_files.write(name, official, ITEMS)
    references = OFFICIAL[name](official)
    assert len(references) == (28 if name == "mme" else ITEMS)
    assert main(["build", f"--dataset={name}", f"--manual_dir={official}", f"--data_dir={folder / 'data'}"]) == 0
    macros = {"BENCHMARK": name, "DATA_DIR": str(folder / "data"), "MANUAL_DIR": None, "BATCH_SIZE": ITEMS}
    macros |= {
        "MAX_NEW_TOKENS": 2,
        "SHOTS": 0 if name in official_files.WITHOUT_EXAMPLES else 2,
        "VOCABULARY": "scenes",
    }
    files = ["--gin_file=runs/benchmark.gin"]
    given = [f"--gin.{macro}={value!r}" for macro, value in macros.items()]
    slow = mock.patch("pycocoevalcap.meteor.meteor.Meteor", side_effect=RuntimeError("slow"))
    ran = contextlib.nullcontext() if meteor else slow
    with saying(plan(references, name not in CAPTIONED)), ran:
        assert main(["eval", f"--bundle={model}", f"--output={output}", *files, *given]) == 0
    (side,) = output.glob("*.meta.json")
    predictions = submitted(side.with_name(side.name.replace(".meta", "")))
    assert predictions.keys() == references.keys()
    if name in official_choices.SCORES:
        wanted = official_choices.SCORES[name](official, predictions)
    else:
        wanted = official_scores(name, predictions, references, meteor)
    found = _json(output / "metrics.json")["scores"]
    return wanted, {score: found[f"{name}/{score}"] for score in wanted}, predictions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("model"))


def test_every_benchmark_is_here():
    assert set(OFFICIAL) == {benchmark.name for benchmark in benchmarks.SHIPPED}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_score_is_the_official_scorers(model, tmp_path, name):
    if name in CAPTIONED and not tokens.java_version():
        pytest.skip("the official tokenizer of captions is a Java program")
    official, ours, predictions = scores(name, tmp_path, model, meteor=name == "coco_caption")
    assert ours == pytest.approx(official, rel=1e-6)
    if name in official_choices.SCORES:
        assert 0 < next(iter(official.values())) < 2_800
    else:
        limits = {"cider": 4 * 99, "recall": 101}
        assert all(5 < score < limits.get(kind, 99) for kind, score in official.items())
    assert all("Given Question" not in str(text) and "\n" not in str(text) for text in predictions.values())


def table():
    """Prints benchmark x official score x ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_bundle(folder)
        print(f"{'benchmark':<16}{'score':<24}{'official':>12}{'vadapter':>12}")
        for benchmark in OFFICIAL:
            with contextlib.redirect_stdout(io.StringIO()):
                official, ours, _ = scores(benchmark, folder / benchmark, model)
            for score, value in official.items():
                print(f"{benchmark:<16}{score:<24}{value:>12.4f}{ours[score]:>12.4f}")


if __name__ == "__main__":
    table()
