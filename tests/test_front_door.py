"""What a script or a notebook gets from `import vadapter`, and how a trained model is asked."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vadapter
from tests.tiny_bundle import write_bundle
from vadapter.base import terminal
from vadapter.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, a photo and a clip of frames beside it."""
    path = tmp_path_factory.mktemp("front")
    write_bundle(path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path / "photo.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return vadapter.load(str(folder / "bundle"))


def python(code: str, cwd=None) -> str:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_else():
    heavy = python(
        "import sys, vadapter; print([m for m in sys.modules if m.split('.')[0] in ('jax', 'numpy', 'flax')])"
    )
    assert heavy == "[]"


def test_captioning_needs_no_tensorflow(folder):
    code = (
        "import sys, vadapter; print(repr(vadapter.load('bundle').caption('photo.png')));"
        "print([m for m in ('tensorflow', 'seqio', 'gin', 'torch') if m in sys.modules])"
    )
    said, loaded = python(code, cwd=folder).splitlines()[-2:]
    assert loaded == "[]" and eval(said) is not None


def test_every_public_name_is_there_and_says_what_it_is():
    assert 20 <= len(vadapter.__all__) <= 30
    for name in vadapter.__all__:
        thing = getattr(vadapter, name)
        assert len(inspect.getdoc(thing) or "") > 40, name
    assert set(vadapter.__all__) <= set(dir(vadapter))
    with pytest.raises(AttributeError, match="no attribute 'captions'"):
        _ = vadapter.captions


def test_a_model_says_the_same_of_a_picture_however_it_is_given(folder, model, capsys):
    path = str(folder / "photo.png")
    image = Image.open(path)
    one = model.caption(path)
    assert isinstance(one, str) and one
    assert model.caption([image, np.asarray(image), path, [path, image]]) == [
        one,
        one,
        one,
        model.caption([[image, image]])[0],
    ]
    assert main(["infer", f"--bundle={folder / 'bundle'}", f"--media={path}"]) == 0
    assert capsys.readouterr().out.strip() == one


def test_a_question_and_its_command_give_the_same_answer(folder, model, capsys):
    path = str(folder / "photo.png")
    said = model.answer([path, path], ["what ?", "who ?"])
    assert said[0] == model.answer(path, "what ?") and len(said) == 2
    assert (
        main(["infer", f"--bundle={folder / 'bundle'}", f"--media={path}", f"--media={path}", "--question=what ?"]) == 0
    )
    assert capsys.readouterr().out == f"{terminal.line(f'{path}: {said[0]}')}\n" * 2


def test_sampling_and_beams_are_settings(folder, model):
    path = str(folder / "photo.png")
    sampled = vadapter.DecodingConfig(method="sample", seed=3, max_new_tokens=4)
    assert model.caption(path, decoding=sampled) == model.caption(path, decoding=sampled)
    assert model.caption(path, decoding=vadapter.DecodingConfig(max_new_tokens=1)) != model.caption(path)


def test_the_loss_is_that_of_the_model_by_record(folder, model):
    path, texts = str(folder / "photo.png"), ["a red circle", "two dogs", "a red circle"]
    by_record = model.loss([path] * 3, texts)
    assert by_record.shape == (3,) and by_record[0] == pytest.approx(by_record[2], rel=1e-5)
    config = model.description.model
    batch = vadapter.make_batch(
        config, [path], texts[:1], vocabulary=model.vocabulary, lengths=model.description.text.lengths
    )
    sums = model.model.apply({"params": model.params}, batch, method="loss_sums")
    assert by_record[0] == pytest.approx(float(sums.loss_sum / sums.weight_sum), rel=1e-4)


def test_a_picture_is_cropped_once(folder, model):
    resize, path, texts = "center_crop bicubic 256/224", str(folder / "photo.png"), ["a red circle"]
    published = dataclasses.replace(model, description=dataclasses.replace(model.description, resize=resize))
    lengths = model.description.text.lengths
    given = {"vocabulary": model.vocabulary, "lengths": lengths, "resize": resize}
    batch = vadapter.make_batch(model.description.model, [path], texts, **given)
    sums = model.model.apply({"params": model.params}, batch, method="loss_sums")
    assert published.loss([path], texts)[0] == pytest.approx(float(sums.loss_sum / sums.weight_sum), rel=1e-5)
    assert published.loss([path], texts)[0] != pytest.approx(model.loss([path], texts)[0], rel=1e-5)


def test_a_bundle_is_evaluated_on_pictures_as_it_was_trained(folder, tmp_path):
    write_bundle(tmp_path, resize="pad")
    (tmp_path / "own.jsonl").write_text(f'{{"image": "{folder / "photo.png"}", "caption": "a red circle"}}\n')
    files = ["--gin_file=runs/eval.gin", "--gin_file=data/jsonl.gin", "--gin.EVALUATIONS=[@val/Evaluation()]"]
    files += [f"--gin.{name}_JSONL={str(tmp_path / 'own.jsonl')!r}" for name in ("TRAIN", "VALIDATION")]
    files += [f"--gin.jsonl_task.media_folders=[{str(folder)!r}]"]
    files += ["--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 16}"]

    def loss(*more):
        assert main(["eval", f"--bundle={tmp_path / 'bundle'}", f"--output={tmp_path}", *files, *more]) == 0
        return json.loads((tmp_path / "metrics.json").read_text())["scores"]["val/loss"]

    assert loss() == loss("--gin.jsonl_task.resize='pad'") != loss("--gin.jsonl_task.resize='stretch'")


def test_a_logit_a_target_and_word(model, folder):
    config = model.description.model
    batch = vadapter.make_batch(config, [str(folder / "photo.png")], "a dog", vocabulary=model.vocabulary)
    logits = model.model.apply({"params": model.params}, batch, method="logits")
    assert logits.shape == (1, 64, 512) and logits.dtype == np.float32


def test_a_soft_token_says_its_nearest_words(folder, model):
    path = str(folder / "photo.png")
    said = model.words(path, count=2)
    media = vadapter.make_batch(model.description.model, [path], ["x"], vocabulary=model.vocabulary).media
    soft = np.asarray(model.model.apply({"params": model.params}, media, method="soft_tokens"))[0]
    table = np.asarray(model.params["decoder"]["embedder"]["embedding"])
    cosines = soft @ table.T / np.linalg.norm(soft, axis=-1)[:, None] / np.linalg.norm(table, axis=-1)
    for words, row in zip(said, cosines, strict=True):
        nearest = np.argsort(-row)[:2]
        assert [text for text, _ in words] == [model.vocabulary.word(int(i)) for i in nearest]
        np.testing.assert_allclose([x for _, x in words], row[nearest], atol=1e-4)
    several = model.words([path, [path, path]], count=2)
    assert several[0] == said and len(several[1]) == len(said)
    with pytest.raises(vadapter.UserError, match="1 to 512 words"):
        model.words(path, count=0)


def test_mistakes_are_one_paragraph(folder, model):
    path = str(folder / "photo.png")
    with pytest.raises(vadapter.UserError, match="nowhere is not there. Give the folder of a run"):
        vadapter.load("nowhere")
    with pytest.raises(vadapter.UserError, match="checkpoint was expected in"):
        vadapter.load(str(folder))
    with pytest.raises(vadapter.UserError, match="image 2 of 3, .*missing.png"):
        model.caption([path, "missing.png", path])
    with pytest.raises(vadapter.UserError, match="image 1 of 1: expected RGB pixels 0..255"):
        model.caption([np.zeros((4, 4, 3))])
    with pytest.raises(vadapter.UserError, match="tokens with the start token; the model reads 16, so .* do not fit"):
        model.answer(path, "what is this ? " * 20)
    with pytest.raises(vadapter.UserError, match="target.* tokens with its end token; the model reads 16"):
        model.loss([path], ["a very long text " * 10])
    with pytest.raises(vadapter.UserError, match="Expected a text for each of 2 images; found 1"):
        model.loss([path, path], ["a dog"])
    with pytest.raises(vadapter.UserError, match="one for each of 2 images; found 3 questions"):
        model.answer([path, path], ["a", "b", "c"])
    with pytest.raises(vadapter.UserError, match="weights names the part 'encoderr'"):
        vadapter.train(model.description.model, "a.jsonl", "run", weights={"encoderr": "x"}, vocabulary="scenes")
