"""Other programs' questions: their answers are those of `vadapter infer`, whatever the program."""

import json
import sys
import types

import pytest
from PIL import Image

from tests.data.files import picture
from tests.tiny_bundle import write_bundle
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.contrib.asking import Asker, decoding_of, interleaved
from vadapter.generation.config import DecodingConfig

QUESTION = "what colour"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    write_bundle(folder, lengths={"inputs": 48, "targets": 16})
    for i, colour in enumerate([(220, 30, 30), (30, 220, 30), (30, 30, 220)]):
        picture(folder / f"{i}.png", colour)
    return folder


@pytest.fixture(scope="module")
def inferred(folder):
    """What `vadapter infer` says to a question about each picture."""
    paths, out = [str(folder / f"{i}.png") for i in range(3)], str(folder / "said.jsonl")
    options = [f"--bundle={folder / 'bundle'}", f"--question={QUESTION}", f"--out={out}"]
    assert main(["infer", *options, "--media", *paths]) == 0
    with open(out, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture(scope="module")
def asker(folder):
    return Asker(str(folder / "bundle"))


def pictures(folder):
    return [Image.open(folder / f"{i}.png") for i in range(3)]


def test_answers_are_those_of_infer(folder, inferred, asker):
    questions = [interleaved(QUESTION, [x]) for x in pictures(folder)]
    assert asker.ask_all(questions, DecodingConfig()) == inferred
    assert asker.ask(interleaved(f"<image>\n{QUESTION}", [str(folder / "1.png")]), DecodingConfig()) == inferred[1]


def test_questions_about_several_pictures_or_none_are_conversations(folder, asker):
    first, second, _ = pictures(folder)
    content = [{"type": "image", "image": x} for x in (first, second)] + [{"type": "text", "text": QUESTION}]
    wanted = asker.model.chat([{"role": "user", "content": content}])
    assert asker.ask(interleaved(QUESTION, [first, second]), DecodingConfig()) == wanted
    assert asker.ask(interleaved(QUESTION, []), DecodingConfig()) == asker.model.chat(
        [{"role": "user", "content": QUESTION}]
    )


def test_parts_are_in_the_order_of_the_marks(folder):
    assert interleaved("a <image> b <image>", ["1.png", "2.mp4"]) == [
        *[("text", "a "), ("image", "1.png"), ("text", " b "), ("video", "2.mp4")]
    ]
    assert interleaved("a <image>", ["1.png", "2.png"]) == [
        ("image", "1.png"),
        ("image", "2.png"),
        ("text", "a <image>"),
    ]
    assert interleaved("a", []) == [("text", "a")]


def test_decoding_by_the_names_of_transformers():
    assert decoding_of({"temperature": 0, "num_beams": 1, "until": ["\n"]}, 0) == DecodingConfig()
    assert decoding_of({"max_new_tokens": 5, "do_sample": False, "temperature": 1}, 0).max_new_tokens == 5
    assert decoding_of({"max_new_tokens": 5}, 7).max_new_tokens == 7
    sample = DecodingConfig(method="sample", temperature=0.5, top_p=0.9)
    assert decoding_of({"temperature": 0.5, "top_p": 0.9}, 0) == sample
    assert decoding_of({"num_beams": 3, "top_p": None}, 0) == DecodingConfig(method="beam", beams=3)


def test_mistakes_are_said(folder, asker):
    with pytest.raises(UserError, match="bundle=bundles/owl; found ''"):
        Asker("")
    with pytest.raises(UserError, match="inputs to be a number of tokens.*found -1"):
        Asker(str(folder / "bundle"), inputs=-1)
    long = interleaved(" ".join(["what"] * 60), pictures(folder)[:1])
    with pytest.raises(UserError, match=r"there is room for 48: give inputs=\d+"):
        asker.ask(long, DecodingConfig())
    assert isinstance(Asker(str(folder / "bundle"), inputs=400).ask(long, DecodingConfig()), str)


# lmms-eval


@pytest.fixture
def lmms_eval():
    pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed", exc_type=ImportError)
    from vadapter.contrib import lmms_eval

    return lmms_eval


def requests(folder, texts, **settings):
    from lmms_eval.api.instance import Instance

    documents = [{"shown": [x]} for x in pictures(folder)]
    made = [
        Instance(
            request_type="generate_until",
            arguments=(text, settings, lambda document: document["shown"], i, "colours", "test"),
            idx=0,
            metadata={"task": "colours", "doc_id": i, "repeats": 1},
        )
        for i, text in enumerate(texts)
    ]
    return made, {"colours": {"test": documents}}


def test_lmms_eval(folder, inferred, lmms_eval):
    from lmms_eval.models import MODEL_REGISTRY_V2

    MODEL_REGISTRY_V2.register_manifest(lmms_eval.manifest(), overwrite=True)
    cls = MODEL_REGISTRY_V2.get_model_class("vadapter")
    options = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    model = cls.create_from_arg_string(f"bundle={folder / 'bundle'}", options)
    asked, model.task_dict = requests(folder, [QUESTION] * 3, until=["\n\n"], temperature=0)
    assert model.generate_until(asked) == inferred
    stop = inferred[0][2:4]
    asked, _ = requests(folder, [QUESTION], until=stop)
    assert model.generate_until(asked) == [inferred[0].split(stop)[0]]
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(UserError, match="Choose another"):
            method(asked)


def test_arguments_of_lmms_eval_that_are_wrong(folder, lmms_eval):
    with pytest.raises(UserError, match="found pretrained"):
        lmms_eval.Vadapter(bundle=str(folder / "bundle"), pretrained="x")
    with pytest.raises(UserError, match="batch_size to be a number.*'auto'"):
        lmms_eval.Vadapter(bundle=str(folder / "bundle"), batch_size="auto")


# VLMEvalKit


@pytest.fixture
def vlmevalkit():
    pytest.importorskip("vlmeval.vlm.base", reason="VLMEvalKit is not installed", exc_type=ImportError)
    from vadapter.contrib import vlmevalkit

    return vlmevalkit


def test_vlmevalkit(folder, inferred, vlmevalkit, monkeypatch):
    config = types.ModuleType("vlmeval.config")
    config.supported_VLM = {}
    monkeypatch.setitem(sys.modules, "vlmeval.config", config)  # which imports each of its models
    vlmevalkit.register("owl", bundle=str(folder / "bundle"))
    model = config.supported_VLM["owl"]()
    assert [model.generate([str(folder / f"{i}.png"), QUESTION], dataset="MMStar") for i in range(3)] == inferred
    assert isinstance(model.generate([str(folder / "0.png"), str(folder / "1.png"), QUESTION]), str)
    with pytest.raises(UserError, match="a model 'owl' in VLMEvalKit already"):
        vlmevalkit.register("owl", bundle="x")
