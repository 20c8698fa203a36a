"""Scores of captions against pycocoevalcap's own pipeline, and what happens without Java."""

import dataclasses
import logging
import shutil
import subprocess

import pytest
from pycocoevalcap.cider.cider import Cider

from tests.evaluation.awkward_captions import awkward_captions
from vadapter.evaluation import captions, tokens
from vadapter.evaluation.metrics import Texts
from vadapter.evaluation.scoring import Scoring


def cider(predictions, references):
    return captions.CIDER.score_set(Texts(predictions, references))


def scored(predictions, references, metrics=captions.OFFICIAL, tokenizer=None):
    records = [
        {"id": i, "prediction": p, "references": r}
        for i, (p, r) in enumerate(zip(predictions, references, strict=True))
    ]
    return Scoring(metrics=tuple(metrics), tokenizer=tokenizer).score(records)


needs_java = pytest.mark.skipif(not shutil.which("java"), reason="java is not on PATH")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Man, riding (fast)!", "a man riding -lrb- fast -rrb-"),
        ("A man's dog doesn't run; it can't.", "a man 's dog does n't run it ca n't"),
        ("a man\u2019s 3.5 ft black-and-white dog at 10:30", "a man 's 3.5 ft black-and-white dog at 10:30"),
        ('"hi" -- `x` ...', "hi x"),
        ("they cannot", "they can not"),
        ("salt & pepper", "salt & pepper"),
    ],
)
def test_caption_tokens(caption, expected):
    assert " ".join(tokens.caption_tokens(caption)) == expected


def test_cider_is_the_official_scorers():
    predictions = ["a red square", "a cat on a mat", "two dogs run"]
    references = [["a big red square", "a red square"], ["a cat on the mat"], ["dogs are running", "two dogs run fast"]]
    mean, each = cider(["A red square.", "a cat, on a mat", "Two dogs run!"], references)
    hypotheses = {i: [p] for i, p in enumerate(predictions)}
    expected, expected_each = Cider().compute_score(dict(enumerate(references)), hypotheses)
    assert mean == pytest.approx(100 * expected) and mean > 0
    assert each == pytest.approx([100 * e for e in expected_each])


def test_cider_starts_no_program(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    assert cider(["a b", "c d"], [["a b"], ["c e"]])[0] > 0


def test_cider_of_nothing_and_of_empty_text():
    assert cider([], []) == (0.0, [])
    assert cider(["", "a dog"], [["."], [""]]) == (0.0, [0.0, 0.0])
    assert cider(["", "a dog runs"], [["a cat sits"], ["a dog runs"]])[1][0] == 0.0


def test_cider_rejects_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="1 predictions for 2"):
        cider(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no reference"):
        cider(["a"], [[]])


def test_caption_match():
    assert captions.caption_match("A red square.", ["a blue square", "a red square"]) == 1.0
    assert not captions.caption_match("a red", ["a red square"])


def fixture(images=30, seed=11):
    """Predictions and five references an image; two of three predictions share words with a reference."""
    texts = awkward_captions(6 * images, seed)
    references = [texts[images + 5 * i : images + 5 * i + 5] for i in range(images)]
    predictions = [texts[i] if i % 3 == 0 else references[i][0][: 20 + i] for i in range(images)]
    return ["", *predictions], [["a cat sits"], *references]


def official(predictions, references):
    """pycocoevalcap's own steps, as COCOEvalCap.evaluate runs them (but for SPICE, which downloads)."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truths = PTBTokenizer().tokenize({i: [{"caption": r} for r in refs] for i, refs in enumerate(references)})
    found = PTBTokenizer().tokenize({i: [{"caption": p}] for i, p in enumerate(predictions)})
    scores = {"cider": Cider().compute_score(truths, found), "rouge_l": Rouge().compute_score(truths, found)}
    bleu, each = Bleu(4).compute_score(truths, found, verbose=0)
    scores |= {f"bleu{n + 1}": (bleu[n], each[n]) for n in range(4)}
    scores["meteor"] = Meteor().compute_score(truths, found)
    return scores


@pytest.mark.slow
@needs_java
def test_all_scores_are_the_official_pipelines():
    predictions, references = fixture()
    expected = official(predictions, references)
    scores = scored(predictions, references)
    assert scores.details["tokenizer"] == "ptb-java"
    found = {m.name: m for m in scores.measured}
    assert set(found) - {"spice"} == set(expected)
    for name, (mean, each) in expected.items():
        assert found[name].value == pytest.approx(100 * mean, abs=1e-9), name
        assert found[name].each == pytest.approx([100 * e for e in each], abs=1e-9), name
        assert each[0] < 1e-3, "an empty prediction scores nothing"
    without = scored(predictions, references, (captions.CIDER, *captions.BLEU, captions.ROUGE_L), tokens.PYTHON)
    for measured in without.measured:
        assert measured.value == pytest.approx(found[measured.name].value, abs=1e-9), measured.name


@pytest.fixture
def no_java(monkeypatch):
    """A PATH without java."""
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    tokens.java_version.cache_clear()
    tokens.say_once.cache_clear()
    yield
    tokens.java_version.cache_clear()


def test_without_java_three_scores_remain_and_it_is_said_once(no_java, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scores = scored(["a b", "c d"], [["a b"], ["c e"]])
    assert {m.name for m in scores.measured} == {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"}
    assert scores.details["tokenizer"] == "python"
    assert {"meteor_left_out", "spice_left_out"} < set(scores.details)
    assert sum("Java is not on PATH" in r.message for r in caplog.records) == 1


@needs_java
def test_spice_is_never_downloaded(monkeypatch, tmp_path):
    def download(*_, **__):
        raise AssertionError("something was downloaded")

    monkeypatch.setattr("urllib.request.urlretrieve", download)
    monkeypatch.setattr(captions, "_spice_folder", lambda: tmp_path)
    scores = scored(["a b"], [["a b"]], (captions.SPICE,))
    assert not scores.measured and "get_stanford_models" in scores.details["spice_left_out"]


def always(metric):
    """The metric, as if all that it needs were here."""
    return dataclasses.replace(metric, missing=lambda: "")


def test_spice_runs_where_its_files_are(monkeypatch):
    class Spice:
        def compute_score(self, truths, hypotheses):
            return 0.25, [{"All": {"f": 0.5}}, {"All": {"f": float("nan")}}]

    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    (spice,) = scored(["a", "b"], [["a"], ["b"]], (always(captions.SPICE),), "python").measured
    assert spice.value == 25.0 and spice.each == [50.0, 0.0]


def test_a_program_that_fails_is_named_with_its_last_words_and_other_scores_stay(monkeypatch, tmp_path, capfd):
    """Found as: SPICE's files are there, Java fails, and with it the whole evaluation."""
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'Error: could not reserve memory' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    class Spice:
        def compute_score(self, truths, hypotheses):
            subprocess.check_call(["java", "-jar"])

    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    metrics = (captions.CIDER, always(captions.METEOR), always(captions.SPICE))
    scores = scored(["a b", "c d"], [["a b"], ["c e"]], metrics, "python")
    assert [m.name for m in scores.measured] == ["cider"]
    assert scores.details["spice_left_out"] == "it failed: Error: could not reserve memory"
    assert scores.details["meteor_left_out"] == "it failed: Error: could not reserve memory"
    assert set(scores.records[0]) == {"cider", "score"}


@needs_java
@pytest.mark.parametrize("tokenizer", [tokens.PTB_JAVA, tokens.PYTHON])
def test_line_breaks_and_empty_captions_stay_in_their_place(tokenizer):
    texts = ["", "a man\r\nin a hat", "two\u2028dogs", "\u0085", "...", "a cat", ""]
    assert tokens.tokenize(texts, tokenizer) == ["", "a man in a hat", "two dogs", "", "", "a cat", ""]
    assert tokens.tokenize(["", " "], tokenizer) == ["", ""]


@needs_java
def test_a_failing_java_is_an_error_with_its_words(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, b"", b"no memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="no memory"):
        tokens.tokenize(["a"], tokens.PTB_JAVA)


def test_half_a_surrogate_pair_is_a_replacement_character():
    assert tokens.tokenize(["a \ud83d dog"], tokens.PYTHON) == tokens.tokenize(["a \ufffd dog"], tokens.PYTHON)
    assert cider(["a \ud83d dog", "a cat"], [["a dog"], ["the cat"]])[0] > 0
