"""Each benchmark's score on a few records, its submission format, and the side file."""

import json

import pytest

from vadapter.base.errors import UserError
from vadapter.benchmarks import table
from vadapter.evaluation import captions, tokens
from vadapter.evaluation.metrics import Texts
from vadapter.evaluation.scoring import facts


def protocol(name):
    return table.benchmark(name).protocol


@pytest.fixture(autouse=True)
def python_tokens(monkeypatch):
    """Java is tried elsewhere."""
    monkeypatch.setattr(tokens, "java_version", lambda: "")


def caption(name, prediction, *references, **fields):
    return {"id": name, "prediction": prediction, "references": list(references), **fields}


def question(name, prediction, answers, **fields):
    return {"id": name, "question": "?", "prediction": prediction, "answers": answers, **fields}


@pytest.mark.parametrize("benchmark", table.SHIPPED, ids=lambda b: b.name)
def test_every_benchmark_has_a_protocol_of_its_kind(benchmark):
    kinds = {metric.of for metric in benchmark.protocol.metrics}
    assert benchmark.protocol.name == benchmark.name
    assert kinds == {"answers" if benchmark.question else "captions"}


def test_another_name_is_a_message():
    with pytest.raises(UserError, match="one of coco_caption, .*found 'vqav3'. Did you mean 'vqav2'"):
        protocol("vqav3")


def test_captions_are_scored_over_the_records_with_references():
    records = [
        caption("1", "a red bus\nCaption: more", "a red bus", "the bus"),
        caption("2", "two dogs run", "dogs run fast"),
        caption("3", "anything"),
    ]
    scores = protocol("coco_karpathy").score(records)
    texts = Texts(["a red bus", "two dogs run"], [["a red bus", "the bus"], ["dogs run fast"]])
    for metric in (captions.CIDER, *captions.BLEU, captions.ROUGE_L):
        assert scores.scalars[metric.name] == metric.score_set(texts)[0]
    assert scores.scalars["records"] == 3 and scores.scalars["unscored"] == 1
    assert scores.records[0]["score"] == scores.records[0]["cider"] > 0 and scores.records[2] == {}
    assert scores.details["tokenizer"] == "python" and "java" in scores.details["meteor_left_out"]


def test_nocaps_domains_count_their_own_documents():
    near = [caption("1", "a red bus", "a red bus"), caption("2", "a dog", "a cat")]
    far = [caption("3", "a zebra runs", "a zebra runs"), caption("4", "a tree", "the tree")]
    records = [r | {"domain": "near-domain"} for r in near] + [r | {"domain": "out-domain"} for r in far]
    scalars = protocol("nocaps").score(records).scalars
    assert scalars["cider/near-domain"] == pytest.approx(protocol("nocaps").score(near).scalars["cider"])
    assert scalars["cider/out-domain"] == pytest.approx(protocol("nocaps").score(far).scalars["cider"])


def test_vqa_family():
    records = [
        question("1", " Yes. ", ["yes"] * 9 + ["no"], answer_type="yes/no"),
        question("2", "3", ["three"] * 2 + ["4"] * 8, answer_type="number"),
    ]
    third = (8 * 2 / 3 + 2 * 1 / 3) / 10
    for name in ("vqav2", "textvqa", "vizwiz_vqa"):
        scores = protocol(name).score(records)
        assert scores.scalars["vqa_accuracy"] == pytest.approx(100 * (1 + third) / 2)
        assert [r["score"] for r in scores.records] == pytest.approx([1.0, third])
    scalars = protocol("vqav2").score(records).scalars
    assert scalars["vqa_accuracy/yes-no"] == 100.0 and scalars["vqa_accuracy/number"] == pytest.approx(100 * third)
    with pytest.raises(UserError, match="record 7 .*at least 2 answers"):
        protocol("vqav2").score([question("7", "a", ["a"])])


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("red bus", "red bus"),
        ("\n Red bus \nGiven Question: why", "Red bus"),
        ("red bus Given Question: why ? Answer: so Given Question: who", "red bus"),
        ("red bus. Image question: why", "red bus."),
        ("red bus Question : why ? Answer: so", "red bus"),
        ("red bus  Q: why A: so", "red bus"),
        ("a question of taste", "a question of taste"),
        ("Question: why", "Question: why"),  # nothing before it: the model's answer, however wrong
    ],
)
def test_an_answer_ends_where_the_next_example_begins(generated, answer):
    rows = protocol("textvqa").submission([question("1", generated, [])])[1]
    assert rows == [{"question_id": 1, "answer": answer}]
    exact = protocol("msvd_qa").submission([question("1", generated, [])])[1]
    assert exact == [{"id": "1", "answer": answer.lower().removesuffix(".")}]


def test_okvqa_stems_and_says_what_it_is_without():
    scalars = protocol("okvqa").score([question("1", "racing", ["race"] * 9 + ["run"])]).scalars
    assert scalars["vqa_accuracy"] == 100.0 and scalars["vqa_accuracy_unstemmed"] == 0.0


def test_exact_benchmarks():
    records = [
        question("1", "Dog.", ["dog"], question_type="what"),
        question("2", "cats", ["cat"], question_type="who"),
    ]
    for name in ("gqa", "msrvtt_qa", "msvd_qa"):
        scalars = protocol(name).score(records).scalars
        assert scalars["accuracy"] == 50.0 and scalars["accuracy/what"] == 100.0 and scalars["accuracy/who"] == 0.0
    five = ["car", "car", "van", "bus", "cart"]
    scores = protocol("ivqa").score([question("1", "Car", five), question("2", "van", five), question("3", "x", five)])
    assert scores.scalars["accuracy"] == 50.0 and [r["score"] for r in scores.records] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("name", "record", "file", "content"),
    [
        ("coco_caption", "42", "captions_val2014_vadapter_results.json", [{"image_id": 42, "caption": "a dog"}]),
        ("coco_karpathy", "42", "captions_val2014_vadapter_results.json", [{"image_id": 42, "caption": "a dog"}]),
        ("nocaps", "0", "nocaps_val2014_results.json", [{"image_id": 0, "caption": "a dog"}]),
        ("msrvtt_caption", "video7010", "msrvtt_caption_val2014_results.json",
         [{"image_id": "video7010", "caption": "a dog"}]),
        ("vatex_caption", "G9zN5TTuGO4_000179_000189", "vatex_caption_val2014_results.json",
         {"G9zN5TTuGO4_000179_000189": "a dog"}),
        ("vqav2", "262148000", "vqa_val2014_vadapter_results.json", [{"question_id": 262148000, "answer": "a dog"}]),
        ("okvqa", "2971475", "okvqa_val2014_results.json", [{"question_id": 2971475, "answer": "a dog"}]),
        ("textvqa", "34602", "textvqa_val2014_results.json", [{"question_id": 34602, "answer": "a dog"}]),
        ("vizwiz_vqa", "VizWiz_test_00000000.jpg", "vizwiz_vqa_val2014_results.json",
         [{"image": "VizWiz_test_00000000.jpg", "answer": "a dog"}]),
        ("gqa", "201307251", "gqa_val2014_results.json", [{"questionId": "201307251", "prediction": "a dog"}]),
        ("msrvtt_qa", "158581", "msrvtt_qa_val2014_results.json", [{"id": "158581", "answer": "a dog"}]),
        ("ivqa", "a_1", "ivqa_val2014_results.json", [{"id": "a_1", "answer": "a dog"}]),
    ],
)  # fmt: skip
def test_submission_formats(name, record, file, content):
    assert protocol(name).submission([caption(record, " a dog\n")], "val2014") == (file, content)


def test_duplicate_and_wrong_ids_are_named():
    twice = [caption(str(i % 3), "a") for i in range(5)]
    with pytest.raises(UserError, match="2 ids come more than once: 0, 1"):
        protocol("vatex_caption").submission(twice)
    with pytest.raises(UserError, match="whole numbers.*'photo'"):
        protocol("coco_caption").submission([caption("photo", "a")])


def test_the_side_file_says_how_the_predictions_came_about():
    records = [caption("1", "ein Hund", prompt="caption en"), caption("2", "a cat", "a cat", prompt="caption en")]
    of = protocol("nocaps")
    file, rows = of.submission(records, "val")
    skipped = [{"id": "1", "error": "no picture"}]
    known = facts(of, records, of.score(records), skipped)
    name, meta = of.side_file(file, "val", known | {"checkpoint": "runs/a at step 10", "decoding": {"beams": 4}})
    assert (file, name) == ("nocaps_val_results.json", "nocaps_val_results.meta.json")
    assert rows[0] == {"image_id": 1, "caption": "ein Hund"}
    assert json.loads(json.dumps(meta)) == meta
    assert meta["prompts"] == ["caption en"] and meta["distinct_prompts"] == 1 and meta["records"] == 2
    assert (meta["skipped"], meta["skipped_ids"]) == (1, ["1"])
    assert meta["checkpoint"] == "runs/a at step 10" and meta["decoding"] == {"beams": 4}
    assert meta["scorers"]["tokenizer"] == "python" and meta["scorers"]["java"] == "absent"
    assert meta["prediction"] == "the first line with text"
    assert meta["scorers"]["pycocoevalcap"] and meta["vadapter"] and "commit" in meta
