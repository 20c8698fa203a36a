"""Preprocessors are dataclasses that anybody can add: in tasks, the data check and the record of a model."""

import dataclasses
import json
import sys

import pytest

from tests.data.files import picture
from tests.data.loaders import make_loader
from vadapter.base.errors import UserError
from vadapter.data.rows import preprocessors
from vadapter.data.rows.preprocessors import REGISTRY, Caption, Preprocessor, Question, preprocessor

MODULE = '''
import dataclasses

import numpy as np

from vadapter.data.rows import prompts
from vadapter.data.rows import preprocessors
from vadapter.data.rows.preprocessors import Preprocessor, preprocessor


@preprocessor
@dataclasses.dataclass(frozen=True)
class Shouted(Preprocessor):
    """Captions in capital letters."""

    prompt: str = "Shout what is in <media> :"
    mark: str = "!"

    def example(self, record, vocabulary):
        inputs, prompt = prompts.write(self.prompt, vocabulary)
        text = record["captions"][0].upper() + self.mark
        targets = np.asarray(vocabulary.answer(text), np.int32)
        return {**record, "prompt": prompt, "inputs": inputs, "targets": targets, "references": [text]}

    def templates(self, media):
        return {"caption": self.prompt}
'''


@pytest.fixture
def shouted(tmp_path, monkeypatch):
    """The class of a module outside of the package, which is forgotten after the test."""
    monkeypatch.setattr(preprocessors.REGISTRY, "_classes", dict(preprocessors.REGISTRY._classes))
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("their_module", None)
    return __import__("their_module").Shouted


@pytest.fixture
def captions(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "all.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a ring"}))
    return str(tmp_path / "all.jsonl")


def test_one_of_ones_own_makes_the_rows(shouted, captions):
    from vadapter.data import tasks

    name = tasks.jsonl_task("loud", captions, captions, captions=shouted(mark="?"), vocabulary="scenes")
    made = make_loader(name, split="validation", batch_size=1)
    ((batch, (row,)),) = made.eval_batches()
    assert made.vocabulary.decode(batch.target_ids[0]) == " A RING?"
    assert row["prompt"] == "Shout what is in <media> :" and row["references"] == ["A RING?"]


def test_one_of_ones_own_is_in_the_check_and_in_the_record_of_a_model(shouted, captions):
    from vadapter.data import mixture_description, tasks
    from vadapter.data.check import scan
    from vadapter.data.order.config import LoaderConfig
    from vadapter.data.rows.sizes import Sizes

    name = tasks.jsonl_task("loud", captions, captions, captions=shouted(), vocabulary="scenes")
    report = scan.check([scan.Part(LoaderConfig(name), Sizes(16, 1, 3), training=True)])
    assert not report.problems and report.examples[0].references == ("A RING!",)
    found = mixture_description.describe(name)
    assert found["prompts"] == {"caption": "Shout what is in <media> :"}
    settings = {"name": "Shouted", "prompt": "Shout what is in <media> :", "mark": "!"}
    assert found["preprocessors"] == {"loud_image_caption": [settings]}


def test_gin_binds_the_settings_of_ones_own(shouted, captions):
    import gin

    from vadapter.data import tasks
    from vadapter.recipes import gin_front

    gin_front.register([tasks.jsonl_task], list(REGISTRY))
    bindings = [
        f"TRAIN_JSONL='{captions}'",
        "VOCABULARY='scenes'",
        "jsonl_task.captions=@Shouted()",
        "Shouted.mark='.'",
    ]
    gin_front.parse_gin(["data/jsonl.gin"], [*bindings, "PROMPT_FORMAT='plain'", "VALIDATION_JSONL=%TRAIN_JSONL"])
    made = make_loader(gin.get_configurable("jsonl_task")(), split="validation", batch_size=1)
    ((_, (row,)),) = made.eval_batches()
    assert row["references"] == ["A RING."]


def test_what_is_no_preprocessor_is_refused(shouted):
    @dataclasses.dataclass(frozen=True)
    class Other(Preprocessor):
        pass

    with pytest.raises(UserError, match="with the method `example`; .*Other is not"):
        preprocessor(Other)
    with pytest.raises(UserError, match="subclass of Preprocessor"):
        preprocessor(int)

    class Loose(Preprocessor):
        def example(self, record, vocabulary):
            return dict(record)

    with pytest.raises(UserError, match="a frozen dataclass.*Loose is not"):
        preprocessor(Loose)

    @dataclasses.dataclass(frozen=True)
    class Shouted(Preprocessor):
        def example(self, record, vocabulary):
            return dict(record)

    with pytest.raises(UserError, match="under the name Shouted: their_module and tests.data.test_preprocessors"):
        preprocessor(Shouted)


@pytest.mark.parametrize(
    ("make", "message"), [(lambda: Caption("no"), "one of caption"), (lambda: Question("<media> a"), "<question>")]
)
def test_bad_prompts_are_refused_when_the_task_is_made(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_one_of_texts_is_chosen_by_the_records_choice():
    from vadapter.data.rows import vocabulary

    words = vocabulary.load_vocabulary("scenes")
    record = {"id": "x", "error": "", "captions": ["a", "b", "c"]}
    texts = [words.decode(Caption().example({**record, "choice": c}, words)["targets"]).strip() for c in range(4)]
    assert texts == ["a", "b", "c", "a"]
    pairs = {"id": "x", "error": "", "questions": ["q", "r"], "answers": ["1", "2"], "question_types": ["s", "t"]}
    found = Question().example({**pairs, "choice": 3}, words)
    assert (found["question"], found["answers"], found["question_type"]) == ("r", ["2"], "t")
