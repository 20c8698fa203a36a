"""What an earlier commit wrote (tests/fixtures) is still read, and says the same; another format is refused."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.fixtures import make_stored as made
from vadapter.base import resources
from vadapter.cli.main import main

FIXTURES = Path(made.__file__).parent
SAID = json.loads((FIXTURES / "stored.json").read_text())
ASK = [*(f"--media={path}" for path in made.ASKED), "--max_new_tokens=8"]
QUESTION = [f"--media={made.ASKED[0]}", f"--question={made.QUESTION}", "--max_new_tokens=8"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(FIXTURES / "stored.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def stored(unpacked, tmp_path, monkeypatch):
    """A copy of the fixtures, as the working directory: their paths are relative to it."""
    shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def near(expected):
    """Equal but for rounding: another CPU, library or version of vadapter may add in another order."""
    return pytest.approx(expected, rel=1e-6, abs=0)


def today(bindings):
    """Settings with the names that they have now."""
    renamed = "ENCODER_WEIGHTS" in (resources.folder("gin") / "runs" / "stage2.gin").read_text()
    names = {"ENCODER_RUN": "ENCODER_WEIGHTS", "LARGE_RUN": "LARGE_WEIGHTS"} if renamed else {}
    pairs = [binding.split("=", 1) for binding in bindings]
    return [f"--gin.{names.get(name, name)}={value}" for name, value in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [("--model_dir=stage1", "stage1"), ("--model_dir=stage2", "stage2"), ("--bundle=bundle", "stage2")],
)
def test_a_stored_model_says_what_it_said(stored, capsys, model, said):
    (stored / "stage2" / "config.gin").unlink()  # gin files are not needed
    assert main(["infer", model, *ASK]) == 0
    assert capsys.readouterr().out == SAID["captions"][said]
    assert main(["infer", model, *QUESTION]) == 0
    assert capsys.readouterr().out == SAID["answers"][said]


@pytest.mark.slow
def test_a_stored_run_goes_on_as_it_did(stored):
    every = [*made.SIZES, *made.COMMON, *made.STAGE2, f"TRAIN_STEPS={made.STEPS + 3}", "TrainConfig.log_every=1"]
    files = ["--gin_file=experiments/own_stage2.gin", f"--gin_file={made.QUERIES}"]
    assert main(["train", *files, *today(every)]) == 0
    curve = [json.loads(line) for line in (stored / "stage2" / "curve.jsonl").read_text().splitlines()]
    losses = {str(x["step"]): x["loss"] for x in curve if x["split"] == "train" and x["step"] > made.STEPS}
    assert losses == pytest.approx(SAID["resumed"], rel=2e-6)  # the step is compiled anew with each version
    assert json.loads((stored / "stage2" / "done.json").read_text())["evals"]["val"]["loss"] == pytest.approx(
        SAID["resumed_validation"], rel=2e-6
    )


@pytest.mark.slow
def test_a_stored_bundle_has_the_loss_that_it_had(stored):
    given = [x for x in (*made.OWN, "BATCH_SIZE=8") if not x.startswith("ENCODER")]
    files = ["--gin_file=runs/eval.gin", "--gin_file=data/jsonl.gin", "--gin.EVALUATIONS=[@val/Evaluation()]"]
    assert main(["eval", "--bundle=bundle", "--output=results", *files, *today(given)]) == 0
    assert json.loads((stored / "results" / "metrics.json").read_text())["scores"] == near(SAID["validation"])


@pytest.mark.slow
def test_a_stored_gin_configuration_is_read_or_refused_in_words(stored, capsys):
    """Names of settings may change between versions; what is not known any more is said."""
    status = main(["eval", "--model_dir=stage2", "--output=results"])
    if status == 0:
        assert json.loads((stored / "results" / "metrics.json").read_text())["scores"] == near(SAID["validation"])
        return
    error = capsys.readouterr().err
    assert status == 2
    assert error.splitlines()[-1].startswith("vadapter: error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("file", "command"),
    [
        (f"stage2/checkpoint_{made.STEPS}/run/metadata", ["infer", "--model_dir=stage2", *ASK]),
        ("stage2/model.json", ["infer", "--model_dir=stage2", *ASK]),
        (f"stage2/checkpoint_{made.STEPS}/run/metadata", ["export", "--checkpoint=stage2", "--out=new"]),
        ("stage2/model.json", ["export", "--checkpoint=stage2", "--out=new"]),
        ("bundle/bundle.json", ["infer", "--bundle=bundle", *ASK]),
        (f"vit/checkpoint_{made.VIT_STEPS}/run/metadata", ["infer", "--bundle=bundle", *ASK]),
    ],
)
def test_another_format_is_refused(stored, capsys, file, command):
    path = stored / file
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "format": record["format"] + 1}))
    assert main(command) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("vadapter: error: ")
    assert path.parts[-3 if path.name == "metadata" else -1] in last
    assert f"{record['format'] + 1}" in last
    assert "Use the version that wrote it" in last
