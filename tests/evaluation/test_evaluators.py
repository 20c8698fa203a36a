"""Evaluators with fake losses and a fake decoder: what counts, what does not, and that images are really changed."""

import base64
import dataclasses
import io
import json
import math
import threading

import numpy as np
import pytest
from PIL import Image

from vadapter.base import pictures
from vadapter.base.batch import Batch
from vadapter.base.evaluator import EvalResult, Evaluator
from vadapter.benchmarks import table
from vadapter.evaluation import loss_evaluators, text_evaluator
from vadapter.evaluation.loss_evaluators import LossEvaluator, RelianceEvaluator
from vadapter.evaluation.text_evaluator import GenerationEvaluator


@dataclasses.dataclass
class Sums:
    loss_sum: float
    weight_sum: float
    correct_sum: float


def make_batch(shades, weights=None, media=1):
    """One row a shade: a 2x2 image of that shade, one target whose id is the shade."""
    rows = len(shades)
    images = np.broadcast_to(np.array(shades, np.uint8)[:, None, None, None, None, None], (rows, media, 1, 2, 2, 3))
    text = np.zeros((rows, 4), np.int32)
    targets = np.array(shades, np.int32)[:, None]
    weights = np.ones((rows, 1), np.float32) if weights is None else np.array(weights, np.float32)[:, None]
    return Batch(text, text, text, text - 1, targets * 0, targets, weights, images.copy())


def rows_of(batch, valid=None):
    valid = [True] * len(batch.tokens) if valid is None else valid
    return [{"id": i, "references": ["x"], "valid": v} for i, v in enumerate(valid)]


def image_loss(params, batch):
    """Loss: how far the row's image is from its target's shade. A right answer is a right image."""
    shade = batch.media[:, 0, 0, 0, 0, 0].astype(np.float64) if batch.media.shape[1] else batch.target_ids[:, 0]
    distance = np.abs(shade - batch.target_ids[:, 0]) + params
    weight = batch.target_weights[:, 0]
    return Sums(float((distance * weight).sum()), float(weight.sum()), float(((distance == 0) * weight).sum()))


def batches_of(*batches, valid=None):
    return lambda: iter([(b, rows_of(b, valid)) for b in batches])


def test_loss_is_weighted_over_all_batches():
    batches = batches_of(make_batch([1, 2, 3]), make_batch([4, 5], weights=[1, 0]))
    result = LossEvaluator(image_loss, batches, put=lambda b: b)(2.0)
    assert isinstance(result, EvalResult)
    assert result.scalars["loss"] == pytest.approx(2.0)
    assert result.scalars["perplexity"] == pytest.approx(math.exp(2.0))
    assert result.scalars["accuracy"] == 0.0
    assert result.scalars["target_tokens"] == 4


def test_loss_is_nan_without_targets():
    assert math.isnan(LossEvaluator(image_loss, batches_of(), lambda b: b)(0.0).scalars["loss"])


def test_evaluators_follow_the_protocol():
    parts = (image_loss, batches_of(), lambda b: b)
    assert isinstance(LossEvaluator(*parts), Evaluator)
    assert isinstance(RelianceEvaluator(*parts), Evaluator)
    assert isinstance(GenerationEvaluator(*parts, vocabulary=Words()), Evaluator)


def test_reliance_tells_right_shuffled_and_blank_images_apart():
    batch = make_batch([10, 20, 40])
    scalars = RelianceEvaluator(image_loss, batches_of(batch), lambda b: b)(0.0).scalars
    assert scalars["reliance/right"] == 0.0
    assert scalars["reliance/shuffled"] == pytest.approx((10 + 20 + 30) / 3)  # 20 for 10, 40 for 20, 10 for 40
    assert scalars["reliance/blank"] == pytest.approx((117 + 107 + 87) / 3)
    assert scalars["reliance/shuffled_gap"] == scalars["reliance/shuffled"]
    assert batch.media[0, 0, 0, 0, 0, 0] == 10  # the caller's batch is as it was


def test_reliance_of_a_model_that_ignores_the_image_is_zero():
    def blind(params, batch):
        return Sums(float(batch.target_weights.sum()), float(batch.target_weights.sum()), 0.0)

    scalars = RelianceEvaluator(blind, batches_of(make_batch([1, 2])), lambda b: b)(0.0).scalars
    assert scalars["reliance/shuffled_gap"] == 0.0 and scalars["reliance/blank_gap"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_a_row_never_gets_its_own_image(seed):
    rng = np.random.default_rng(seed)
    media = make_batch(rng.integers(0, 4, 12).tolist()).media
    usable = rng.random(12) < 0.8
    source = loss_evaluators.other_image(media, usable)
    for row, other in enumerate(source):
        if other < 0:
            same = [(media[i] == media[row]).all() for i in np.flatnonzero(usable)]
            assert not usable[row] or all(same)
        else:
            assert usable[row] and usable[other] and (media[row] != media[other]).any()


def test_rows_without_another_image_count_in_none_of_the_losses():
    seen = []

    def loss(params, batch):
        seen.append(batch.target_weights[:, 0].tolist())
        return image_loss(params, batch)

    alone = make_batch([7, 9], weights=[1, 0])  # one valid row: nothing to shuffle with
    text = make_batch([3, 4], media=0)
    same = make_batch([5, 5, 6])
    scalars = RelianceEvaluator(loss, batches_of(alone, text, same), lambda b: b)(0.0).scalars
    assert seen == [[0, 0]] * 3 + [[1, 1, 1]] * 3
    assert scalars["reliance/shuffled"] == 1.0  # each 5 got the 6, the 6 a 5


def test_reliance_of_one_picture_says_that_there_are_too_few():
    """Not nan, which came into the cards of bundles."""
    same = batches_of(make_batch([5, 5, 6]), valid=[True, False, False])
    result = RelianceEvaluator(image_loss, same, lambda b: b)(0.0)
    assert result.scalars == {} and "too few records" in result.notes[0] and result.intervals() == {}


def test_intervals_of_losses_are_drawn_from_batches_if_there_are_enough():
    rng = np.random.default_rng(0)
    batches = [make_batch(rng.integers(0, 250, 4).tolist()) for _ in range(40)]
    few = LossEvaluator(image_loss, batches_of(*batches[:3]), lambda b: b)
    assert few(2.0).intervals() == {}

    def noisy(params, batch):
        sums = image_loss(params, batch)
        return Sums(sums.loss_sum + float(batch.target_ids.sum()) / 100, sums.weight_sum, sums.correct_sum)

    loss = LossEvaluator(noisy, batches_of(*batches), lambda b: b)
    found = loss(0.0)
    assert found.intervals()["loss"][0] < found.scalars["loss"] < found.intervals()["loss"][1]
    reliance = RelianceEvaluator(noisy, batches_of(*batches), lambda b: b)
    found = reliance(0.0)
    assert set(found.intervals()) == set(found.scalars) == set(found.explanations)
    for name, (low, high) in found.intervals().items():
        assert low < found.scalars[name] < high, name
    blind = RelianceEvaluator(lambda p, b: Sums(8.0, 4.0, 0.0), batches_of(*batches), lambda b: b)
    assert blind(None).intervals()["reliance/shuffled_gap"] == (0.0, 0.0)


class Words:
    """A vocabulary of six words."""

    eos_id = 1
    words = ["<pad>", "<eos>", "a", "red", "square", "2"]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


def generation(rows, ids, **options):
    batch = make_batch(list(range(len(rows))))
    evaluator = GenerationEvaluator(
        lambda params, batch: np.array(ids), lambda: iter([(batch, rows)]), lambda b: b, Words(), **options
    )
    return evaluator(None)


PICTURE = np.zeros((1, 8, 8, 3), np.uint8)
VIDEO = np.arange(4, dtype=np.uint8).repeat(8 * 8 * 3).reshape(4, 8, 8, 3)


def test_captions_and_questions_are_scored_apart():
    rows = [
        {"id": "c0", "references": ["A red square.", "red"], "valid": True, "thumbnail": PICTURE},
        {"id": "c1", "references": ["a square"], "valid": True, "thumbnail": PICTURE},
        {"id": "q0", "question": "how many?", "references": [], "answers": ["two"], "valid": True, "thumbnail": VIDEO},
        {"id": "q1", "question": "colour?", "references": ["blue"], "valid": True},
        {"id": "bad", "references": ["a"], "valid": False},
    ]
    ids = [[2, 3, 4, 1, 5], [2, 3, 4, -1, 5], [5, 1, 0, 0, 0], [3, 1, 0, 0, 0], [2, 2, 2, 2, 2]]
    result = generation(rows, ids)
    assert result.scalars["captions"] == 2 and result.scalars["questions"] == 2
    assert result.scalars["exact_match"] == 0.5 and result.scalars["vqa_accuracy"] == 0.5
    assert result.scalars["cider"] > 0
    assert [r["id"] for r in result.records] == ["c0", "c1", "q0", "q1"]
    assert [r["prediction"] for r in result.records] == ["a red square", "a red square", "2", "red"]
    assert [r["score"] for r in result.records] == [1.0, 0.0, 1.0, 0.0]
    json.dumps(result.records)


def test_a_stream_of_texts_gives_the_records_that_batches_give():
    rows = [{"id": i, "references": ["a red square"], "valid": i < 3, "thumbnail": PICTURE} for i in range(4)]
    ids = np.array([[2, 3, 4, 1], [2, 4, -1, -1], [5, 1, 0, 0], [2, 2, 2, 2]])

    def stream(params, batches):
        return ((ids, other) for _, other in batches)

    plain, streamed = generation(rows, ids), generation(rows, None, stream=stream)
    assert [r["prediction"] for r in streamed.records] == ["a red square", "a square", "2"]
    assert streamed.records == plain.records and streamed.scalars == plain.scalars


def test_pictures_carry_predictions():
    row = {"question": "how many?", "references": ["2"], "valid": True, "thumbnail": VIDEO}
    rows = [{"id": i, **row} for i in range(70)]
    result = generation(rows, [[5, 1]] * 70)
    assert len(result.images) == 8
    picture, caption = result.images[0]
    assert picture.dtype == np.uint8 and picture.shape == (128, 512, 3)  # four frames side by side, enlarged
    assert "how many?" in caption and "-> 2" in caption
    assert ["thumbnail" in r for r in result.records] == [True] * 64 + [False] * 6
    assert result.records[0]["thumbnail"].startswith("data:image/webp;base64,")


def test_accuracy_of_each_question_type():
    kinds = ["count", "count", "colour"]
    rows = [
        {"id": i, "question": "?", "question_type": k, "answers": ["2"], "valid": True} for i, k in enumerate(kinds)
    ]
    scalars = generation(rows, [[5, 1], [3, 1], [5, 1]]).scalars
    assert scalars["vqa_accuracy/count"] == 0.5 and scalars["vqa_accuracy/colour"] == 1.0
    assert scalars["vqa_accuracy"] == pytest.approx(2 / 3)


def test_scores_without_rows_are_left_out():
    result = generation([{"id": 0, "references": ["a"], "valid": False}], [[2, 1]])
    assert result.scalars == {"captions": 0.0, "questions": 0.0} and result.records == []


def test_an_empty_prediction_is_empty_text():
    assert text_evaluator.text_of(np.array([-1, 3, 3]), Words()) == ""
    assert text_evaluator.text_of(np.array([1, 3, 3]), Words()) == ""


def test_a_protocol_scores_the_records_of_its_benchmark():
    answers = ["2"] * 9 + ["3"]
    row = {
        "question": "how many?",
        "answers": answers,
        "answer_type": "number",
        "prompt": "Q: how many?",
        "valid": True,
    }
    result = generation(
        [{"id": 7, **row}, {"id": 8, **row}], [[5, 1], [3, 1]], scoring=table.benchmark("vqav2").protocol
    )
    assert result.scalars["vqav2/vqa_accuracy"] == 50.0 and result.scalars["vqav2/vqa_accuracy/number"] == 50.0
    assert [r["score"] for r in result.records] == [1.0, 0.0]
    assert result.records[0]["prompt"] == "Q: how many?" and result.records[0]["answer_type"] == "number"


def test_each_process_gives_the_pictures_of_its_own_rows(monkeypatch):
    """Two processes as two threads, which meet where processes gather."""
    meet, parts, mine = threading.Barrier(2, timeout=60), {}, threading.local()

    def gather(records):
        parts[mine.rank] = records
        meet.wait()
        everything = parts[0] + parts[1]
        meet.wait()
        return everything

    monkeypatch.setattr(text_evaluator, "gather_records", gather)
    found = {}

    def process(rank):
        mine.rank = rank
        numbers = [2 * i + rank for i in range(4)]
        row = {"question": "?", "answers": ["2"], "valid": True}
        rows = [row | {"id": n, "thumbnail": np.full((1, 8, 8, 3), 20 * n, np.uint8)} for n in numbers]
        ids = [[5 if n in (1, 2) else 3, 1] for n in numbers]
        evaluator = GenerationEvaluator(
            lambda params, batch: np.array(ids), lambda: iter([(None, rows)]), lambda b: b, Words()
        )  # fmt: skip
        predictions = evaluator.predict(None, pictures.Pictures())
        evaluator.score(predictions)
        found[rank] = evaluator.examples(predictions, 2)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sorted(e.record["id"] for e in found[0] if e.kind == "best") == ["1", "2"]
    for example in found[0]:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(example.picture.partition(",")[2]))))
        assert abs(picture.mean() - 20 * int(example.record["id"])) < 2


def test_training_keeps_no_pictures_of_all_records():
    row = {"question": "?", "answers": ["2"], "valid": True, "thumbnail": PICTURE}
    result = generation([{"id": i, **row} for i in range(3)], [[5, 1]] * 3)
    assert not any("picture" in r for r in result.records)


def test_records_with_a_picture_have_the_words_of_its_soft_tokens():
    asked = []

    def words(params, batch):
        asked.append(batch)
        return [[[("red", 0.12345), ("blue", 0.1)], [("2", 1.0), ("3", 0.5)]]] * 40

    row = {"question": "?", "answers": ["2"], "valid": True}
    parts = [[row | {"id": f"{n}/{i}", "thumbnail": PICTURE} for i in range(40)] for n in range(3)]
    parts[0][1].pop("thumbnail")
    evaluator = GenerationEvaluator(
        lambda params, batch: np.array([[5, 1]] * 40), lambda: iter(enumerate(parts)), lambda b: b, Words(), words=words
    )  # fmt: skip
    records = evaluator.predict(None).records
    assert asked == [0, 1], "batches without pictures that are shown cost nothing"
    assert records[0]["words"] == [[["red", 0.123], ["blue", 0.1]], [["2", 1.0], ["3", 0.5]]]
    assert ["words" in r for r in records] == ["thumbnail" in r for r in records]
    assert "words" not in records[1]


BAD = {"question": "how many?", "answers": ["2"] * 10, "valid": False, "error": "not a readable image"}


def test_a_record_that_cannot_be_read_counts_in_a_benchmark_and_is_named():
    """Found as: 2 of 250 pictures were unreadable, the submission had 248 rows, and nothing told."""
    rows = [BAD | {"id": 1, "valid": True, "error": ""}, BAD | {"id": 2}, BAD | {"id": 3, "error": ""}]  # 3 is padding
    ids = [[5, 1]] * 3
    result = generation(rows, ids, scoring=table.benchmark("vqav2").protocol)
    assert [(r["id"], r["prediction"], r["score"]) for r in result.records] == [("1", "2", 1.0), ("2", "", 0.0)]
    assert result.records[1]["skipped"] == "not a readable image" and "skipped" not in result.records[0]
    assert result.scalars["vqav2/vqa_accuracy"] == 50.0
    assert result.facts()["skipped"] == 1 and result.facts()["skipped_ids"] == ["2"]
    assert "1 records have an image or video that cannot be read (2)" in result.notes[0]


def test_a_record_that_cannot_be_read_does_not_count_elsewhere_and_is_named():
    result = generation([BAD | {"id": 1, "valid": True, "error": ""}, BAD | {"id": 2}], [[5, 1]] * 2)
    assert [r["id"] for r in result.records] == ["1"] and result.scalars["vqa_accuracy"] == 1.0
    assert result.facts()["skipped_ids"] == ["2"] and "they do not count" in result.notes[0]
