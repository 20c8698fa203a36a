"""The commands one after the other, as a user types them, on a tiny world and for a few steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vadapter
from tests import saved
from tests.benchmarks import official_files
from vadapter.cli.main import main

pytestmark = pytest.mark.slow

SAMPLE = str(Path(__file__).parents[2] / "data" / "samples" / "one.jpg")
SMALL = [
    "--gin.TRAIN_STEPS=3",
    "--gin.BATCH_SIZE=8",
    "--gin.OptimizerConfig.warmup_steps=1",
    "--gin.val/LoaderConfig.eval_limit=8",
    "--gin.MeshConfig.data=2",
    "--gin.MeshConfig.fsdp=2",
    "--gin.MeshConfig.tensor=2",
    *(f"--gin.ScenesConfig.{split}=32" for split in ("train", "validation", "test", "video_train", "video_eval")),
    *(f"--gin.ScenesConfig.{split}=32" for split in ("text_train", "text_eval")),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished rehearsal of the demo, two arms of it."""
    folder = tmp_path_factory.mktemp("demo")
    parts = "--parts=vit,tiny,large,stage1,perceiver,queries,report"
    assert main(["demo", f"--output={folder}", parts, *SMALL]) == 0
    return folder


def test_demo_writes_figures_and_a_report(demo):
    results = json.loads((demo / "results.json").read_text())
    assert results["seed"] == 0
    assert list(results["arms"]) == ["perceiver", "queries"]
    for arm in results["arms"].values():
        assert arm["steps"] == 3
        assert arm["curve"][-1][0] == 3
        assert np.isfinite(arm["val_loss"])
        assert arm["trainable_params"] > 10_000
        assert {"cider", "exact_match", "vqa_accuracy", "steps_to_baseline", "seconds"} <= arm.keys()
    page = (demo / "report.html").read_text()
    assert "queries" in page
    assert "data:image" in page


def test_an_adapter_of_one_s_own_is_trained_exported_and_asked(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text('include "experiments/scenes_perceiver.gin"\nADAPTER = @AveragePoolConfig()\n')
    weights = {"ENCODER_WEIGHTS": demo / "vit", "LARGE_WEIGHTS": demo / "large", "DATA_DIR": demo / "data"}
    given = [f"--gin.{name}={str(path)!r}" for name, path in {"MODEL_DIR": "run", **weights}.items()]
    module = "--module=tests.models.own_parts"
    assert main(["train", module, "--gin_file=mine.gin", *given, *SMALL]) == 0
    assert main(["export", module, "--checkpoint=run", "--out=bundle"]) == 0
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(picture)
    capsys.readouterr()
    assert main(["infer", module, "--bundle=bundle", f"--media={picture}"]) == 0
    said = capsys.readouterr().out.strip()
    model = vadapter.load("bundle")
    assert type(model.description.model.adapter).__name__ == "AveragePoolConfig"
    assert model.caption(str(picture)) == said
    assert "adapter" in (tmp_path / "run" / "model-info.txt").read_text()


def test_a_second_demo_trains_nothing(demo, capsys):
    before = {p: p.stat().st_mtime_ns for p in demo.rglob("checkpoint_*")}
    assert main(["demo", f"--output={demo}", "--parts=vit,queries", *SMALL]) == 0
    assert capsys.readouterr().out.count("is finished") == 2
    assert before == {p: p.stat().st_mtime_ns for p in demo.rglob("checkpoint_*")}
    assert main(["demo", f"--output={demo}", "--parts=queries", *SMALL, "--gin.TRAIN_STEPS=4"]) == 2
    assert "--fresh" in capsys.readouterr().err


def test_frozen_parts_are_not_in_the_checkpoint(demo):
    assert {path.split("/")[0] for path in saved.load_params(str(demo / "queries"))} == {"adapter"}
    assert {path.split("/")[0] for path in saved.load_params(str(demo / "stage1"))} == {"adapter", "decoder"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_infer_reads_an_image(demo, tmp_path, capsys, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(path)
    assert main(["infer", f"--model_dir={demo / 'queries'}", f"--media={path}", "--max_new_tokens=3"]) == 0
    assert capsys.readouterr().err.count("error") == 0


def test_infer_answers_about_a_video(demo, capsys):
    from vadapter.base import resources

    clip = resources.folder("data") / "samples" / "moves.mp4"
    command = ["infer", f"--model_dir={demo / 'queries'}", f"--media={clip}", "--max_new_tokens=3"]
    assert main([*command, "--question=what moves ?"]) == 0
    assert main([*command, "--prompt=no place for the video"]) == 2
    assert "<media>" in capsys.readouterr().err


def test_eval_repeats_what_training_measured(demo):
    assert main(["eval", f"--model_dir={demo / 'queries'}"]) == 0
    scalars = json.loads((demo / "queries" / "metrics.json").read_text())["scores"]
    done = json.loads((demo / "queries" / "done.json").read_text())
    assert scalars["val/loss"] == pytest.approx(done["evals"]["val"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "score"), [("coco_caption", "cider"), ("vqav2", "vqa_accuracy"), ("msvd_qa", "accuracy")]
)
def test_a_benchmark_goes_from_official_files_to_official_scores(demo, tmp_path, name, score):
    expected = official_files.write(name, tmp_path / "files")
    output = tmp_path / "results"
    macros = {"BENCHMARK": name, "DATA_DIR": str(tmp_path / "data"), "MANUAL_DIR": str(tmp_path / "files")}
    given = [f"--gin.{macro}={value!r}" for macro, value in macros.items()]
    command = ["eval", f"--model_dir={demo / 'queries'}", f"--output={output}", "--gin_file=data/benchmarks.gin"]
    assert main([*command, *given, "--gin.MAX_NEW_TOKENS=3"]) == 0
    found = json.loads((output / "metrics.json").read_text())
    scalars, (low, high) = found["scores"], found["intervals"][f"{name}/{score}"]
    assert 0 <= low <= scalars[f"{name}/{score}"] <= high <= 1000
    assert (output / "evaluation.html").read_text().count("data:image/jpeg") >= len(expected)
    assert scalars[f"{name}/records"] == len(expected)
    (side_file,) = output.glob("*.meta.json")
    rows = json.loads((output / side_file.name.replace(".meta", "")).read_text())
    assert len(rows) == len(expected)
    side = json.loads(side_file.read_text())
    assert side["decoding"]["method"] == "greedy"
    assert side["prompts"]


def test_runs_can_be_moved_together_but_not_changed(demo, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(demo, moved)
    assert main(["infer", f"--model_dir={moved / 'queries'}", "--media", str(demo / "no.jpg")]) == 2
    assert "no.jpg" in capsys.readouterr().err
    shutil.rmtree(moved / "vit")
    assert main(["infer", f"--model_dir={moved / 'queries'}", "--media", SAMPLE]) == 2
    assert "vit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No experiment"),
        (["--gin_file=experiments/scenes_stage9.gin"], "scenes_stage9"),
        (["--gin_file=experiments/scenes_vit.gin"], "DATA_DIR"),
        (["--gin_file=experiments/scenes_vit.gin", "--gin.OptimizerConfig.learning_rat=1"], "learning_rate"),
        (["--gin_file=experiments/scenes_vit.gin", "--gin.OptimizerConfg.eps=1"], "OptimizerConfig"),
    ],
)
def test_wrong_configurations_are_explained(arguments, words, capsys):
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (["--gin.TRAINABLE=['adaptor/.*']"], "adapter/"),
        (["--gin.BATCH_SIZE=7"], "multiple of"),
        (["--gin.TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 8}"], "inputs"),
        (["--gin.MeshConfig.data=3"], "devices"),
        (["--gin.tiny/decoder.width=48"], "shape"),
        (["--gin.OptimizerConfig.warmup_steps=3"], "warm"),
    ],
)
def test_wrong_settings_of_a_stage_are_explained(demo, tmp_path, bindings, words, capsys):
    macros = {
        "MODEL_DIR": tmp_path / "run",
        "DATA_DIR": demo / "data",
        "ENCODER_WEIGHTS": demo / "vit",
        "TINY_WEIGHTS": demo / "tiny",
    }
    given = [f"--gin.{name}={str(value)!r}" for name, value in macros.items()]
    assert main(["train", "--gin_file=experiments/scenes_stage1.gin", *SMALL, *given, *bindings]) == 2
    assert words in capsys.readouterr().err


def test_own_photographs_train_both_stages(demo, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for i in range(16):
        shade = np.full((40, 60, 3), 16 * i, np.uint8)
        Image.fromarray(shade).save(photos / f"{i}.jpg")
        lines.append({"image": f"{i}.jpg", "caption": f"Photo n° {i}, a grey wall"})
        lines.append({"image": f"{i}.jpg", "question": "What colour is it?", "answers": ["grey"]})
    (photos / "photos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    macros = {"TRAIN_JSONL": photos / "photos.jsonl", "ENCODER_WEIGHTS": demo / "vit"}
    stage1 = {"MODEL_DIR": tmp_path / "own1", "TINY_WEIGHTS": demo / "tiny", **macros}
    stage2 = {
        "MODEL_DIR": tmp_path / "own2",
        "LARGE_WEIGHTS": demo / "large",
        "STAGE1_RUN": tmp_path / "own1",
        **macros,
    }
    small = [flag for flag in SMALL if "ScenesConfig" not in flag]
    for name, values in (("own_stage1", stage1), ("own_stage2", stage2)):
        given = [f"--gin.{macro}={str(value)!r}" for macro, value in values.items()]
        assert main(["train", f"--gin_file=experiments/{name}.gin", *small, *given]) == 0
    picture = f"--media={photos / '3.jpg'}"
    assert main(["infer", f"--model_dir={tmp_path / 'own2'}", picture, "--question=What colour is it?"]) == 0


@pytest.fixture(scope="module")
def bundle(demo):
    """The arm `queries` as a bundle."""
    assert main(["export", f"--checkpoint={demo / 'queries'}", f"--out={demo / 'bundle'}"]) == 0
    return demo / "bundle"


def test_a_bundle_says_what_its_run_says(demo, bundle, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "picture.png")
    for name in ("vit", "large", "queries"):  # neither the training data nor the gin configuration are needed
        shutil.copytree(demo / name, tmp_path / name)
        (tmp_path / name / "config.gin").unlink()
    ask = [f"--media={tmp_path / 'picture.png'}", "--max_new_tokens=6"]
    capsys.readouterr()
    assert main(["infer", f"--model_dir={tmp_path / 'queries'}", *ask]) == 0
    said = capsys.readouterr().out
    assert main(["infer", f"--bundle={bundle}", *ask, "--mesh=2,2,2"]) == 0
    assert capsys.readouterr().out == said != ""
    shutil.move(tmp_path / "vit", tmp_path / "encoder")
    shutil.copytree(bundle, tmp_path / "bundle")
    assert main(["infer", f"--bundle={tmp_path / 'bundle'}", *ask]) == 2
    assert "--encoder=DIR" in capsys.readouterr().err
    assert main(["infer", f"--bundle={tmp_path / 'bundle'}", f"--encoder={tmp_path / 'encoder'}", *ask]) == 0
    assert capsys.readouterr().out == said


def test_infer_refuses_a_mixture_of_run_and_bundle(demo, bundle, capsys):
    ask = [f"--media={SAMPLE}"]
    assert main(["infer", f"--bundle={bundle}", "--step=3", *ask]) == 2
    assert "Leave it out" in capsys.readouterr().err
    assert main(["infer", f"--model_dir={demo / 'queries'}", "--encoder=nowhere", *ask]) == 2
    assert "expected in nowhere; found no such folder" in capsys.readouterr().err
    assert main(["infer", f"--bundle={bundle}", f"--model_dir={demo}", *ask]) == 2
    assert "not allowed with" in capsys.readouterr().err


WORLD = [flag for flag in SMALL if "ScenesConfig" in flag or "MeshConfig" in flag]


def test_eval_of_a_bundle_repeats_what_training_measured(demo, bundle, tmp_path, capsys):
    data = [f"--gin.DATA_DIR={str(demo / 'data')!r}", "--gin.NUM_FRAMES=2", "--gin.BATCH_SIZE=8", *WORLD]
    files = ["--gin_file=runs/eval.gin", "--gin_file=data/scenes.gin", "--gin.EVALUATIONS=[@val/Evaluation()]"]
    given = [f"--bundle={bundle}", *files, *data, "--gin.val/LoaderConfig.eval_limit=8"]
    assert main(["eval", *given, f"--output={tmp_path}"]) == 0
    done = json.loads((demo / "queries" / "done.json").read_text())
    scalars = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert scalars["val/loss"] == pytest.approx(done["evals"]["val"]["loss"], rel=1e-4)
    assert main(["eval", *given]) == 2
    assert "--output" in capsys.readouterr().err


def test_training_goes_on_from_a_bundle(demo, bundle, tmp_path, capsys):
    macros = {
        "MODEL_DIR": tmp_path / "more",
        "DATA_DIR": demo / "data",
        "ENCODER_WEIGHTS": demo / "vit",
        "LARGE_WEIGHTS": demo / "large",
        "STAGE1_RUN": demo / "stage1",
    }
    given = [f"--gin.{name}={str(value)!r}" for name, value in macros.items()]
    still = ["--gin.OptimizerConfig.learning_rate=1e-12", "--gin.EVALUATIONS=[@val/Evaluation()]"]
    command = ["train", "--gin_file=experiments/scenes_queries.gin", *SMALL, "--gin.TRAIN_STEPS=2", *given, *still]
    assert main([*command, f"--bundle={bundle}"]) == 0
    before, after = (json.loads((d / "done.json").read_text()) for d in (demo / "queries", tmp_path / "more"))
    assert after["evals"]["val"]["loss"] == pytest.approx(before["evals"]["val"]["loss"], rel=1e-4)
    capsys.readouterr()
    assert main(command) == 2  # the bundle is a source of the run as the others are
    assert "was started from 4 sources" in capsys.readouterr().err
