"""Reading run folders back into a report, and writing predictions safely."""

import json

import numpy as np
import pytest

from vadapter.base import pictures
from vadapter.base.errors import UserError
from vadapter.reports import comparison
from vadapter.reports.files import (
    comparison_of_runs,
    load_evaluations,
    load_predictions,
    load_run,
    save_metrics,
    save_predictions,
)
from vadapter.reports.summary import paragraph

PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def make_run(folder, finished=True):
    folder.mkdir(parents=True)
    lines = [
        {"step": 1, "split": "train", "loss": 4.0},
        {"step": 10, "split": "val", "loss": 2.0, "perplexity": 7.4},
        {"step": 20, "split": "val", "loss": 1.5},
        {"step": 10, "split": "val", "loss": 1.9},  # logged again after a resume
        {"step": 20, "split": "train", "loss": 1.2},
        {"step": 20, "split": "captions", "cider": 81.0, "exact_match": 0.5},
        {"step": 20, "split": "reliance", "reliance/right": 1.5, "reliance/shuffled": 2.5, "reliance/blank": 2.0},
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "spl')
    (folder / "config.gin").write_text("train.steps = 20\n")
    if finished:
        done = {"step": 20, "seconds": 61.5, "trainable_params": 115_000}
        (folder / "done.json").write_text(json.dumps(done))


def test_load_run(tmp_path):
    make_run(tmp_path / "queries")
    save_metrics(tmp_path / "queries", {"scores": {"old": 1.0}})
    save_metrics(tmp_path / "queries", {"scores": {"vqa_accuracy": 0.6, "cider": 83.0, "exact_match": None}})
    run = load_run(tmp_path / "queries", description="one")
    assert (run.name, run.description) == ("queries", "one")
    assert run.curve == [(10, 1.9), (20, 1.5)] and run.train_curve == [(1, 4.0), (20, 1.2)]
    assert (run.steps, run.seconds, run.trainable_params, run.val_loss) == (20, 61.5, 115_000, 1.5)
    assert run.scores == {"cider": 83.0, "vqa_accuracy": 0.6, "exact_match": 0.5}
    assert run.reliance == {"right": 1.5, "shuffled": 2.5, "blank": 2.0}
    assert run.config_text == "train.steps = 20\n"


def test_an_unfinished_run_is_reported_as_far_as_it_went(tmp_path):
    make_run(tmp_path / "a", finished=False)
    run = load_run(tmp_path / "a")
    assert run.steps == 20 and run.seconds is None and run.trainable_params is None


@pytest.mark.parametrize(
    ("found", "goodput"),
    [({"steps": 30.0, "compile": 10.0}, 0.75), ({}, None), ("much", None), ({"steps": None, "data": "x"}, None)],
)
def test_the_share_of_time_that_updates_took(tmp_path, found, goodput):
    make_run(tmp_path / "a")
    (tmp_path / "a/done.json").write_text(json.dumps({"step": 20, "goodput": found}))
    run = load_run(tmp_path / "a")
    assert run.goodput == goodput
    comparison.write(comparison_of_runs([tmp_path / "a"]), tmp_path / "page.html")
    assert ("goodput" in (tmp_path / "page.html").read_text()) == (goodput is not None)


def test_predictions_come_back(tmp_path):
    video = np.stack([PICTURE, 255 - PICTURE])
    records = [
        {"id": "../../evil", "prediction": "a <b>", "references": ["x", "y"], "score": 1.0, "thumbnail": PICTURE},
        {"id": 2, "prediction": "é", "references": [], "question": "q?", "thumbnail": pictures.data_uri(video)},
        {"id": 3, "prediction": "", "references": ["z"]},
    ]
    save_predictions(tmp_path / "run", records)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["run/predictions.jsonl", "run/thumbnails/00000.png", "run/thumbnails/00001.webp"]
    first, second, third = load_predictions(tmp_path / "run")
    assert (first.id, first.prediction, first.references, first.score) == ("../../evil", "a <b>", ("x", "y"), 1.0)
    assert np.array_equal(pictures.frames_in(first.thumbnail)[0], PICTURE)
    assert (second.question, second.prediction, second.score) == ("q?", "é", None)
    assert np.array_equal(np.stack(pictures.frames_in(second.thumbnail)), video)
    assert third.thumbnail is None


def test_a_thumbnail_outside_the_folder_or_of_another_kind_is_left_out(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(pictures.bytes_of(pictures.data_uri(PICTURE))[1])
    (run / "page.html").write_text("<script>")
    names = [
        "../secret.png",
        str(secret),
        "page.html",
        "none.png",
        "data:text/html;base64,PGI+",
        "data:image/png;base64,PGI+",
    ]
    lines = [json.dumps({"id": n, "prediction": "p", "thumbnail": n}) for n in names]
    (run / "predictions.jsonl").write_text("\n".join(lines))
    assert [row.thumbnail for row in load_predictions(run)] == [None] * len(names)


def test_records_of_the_loop_are_found_at_their_latest_step(tmp_path):
    folder = tmp_path / "inference_eval"
    folder.mkdir()
    for name, text in {"captions-9": "old", "captions-100": "new", "a-b-7": "other"}.items():
        record = {"id": 1, "prediction": text, "thumbnail": pictures.data_uri(PICTURE)}
        (folder / f"{name}.jsonl").write_text(json.dumps(record))
    rows = load_predictions(tmp_path)
    assert sorted(row.prediction for row in rows) == ["new", "other"]
    assert all(row.thumbnail for row in rows)


def test_comparison_of_runs(tmp_path):
    make_run(tmp_path / "one" / "run")
    make_run(tmp_path / "two" / "run")
    report = comparison_of_runs([tmp_path / "one" / "run", tmp_path / "two" / "run"], baseline="one/run", seed=3)
    assert [run.name for run in report.runs] == ["one/run", "two/run"]
    assert report.runs[1].steps_to_baseline == 20 and report.seed == 3


def test_stages_of_one_line_are_no_rivals_and_the_seed_is_there(tmp_path):
    """Found as: a report of stage 1 and stage 2 named the better one, and said "seed: not recorded"."""
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        make_run(tmp_path / name)
        lines = f"SEED = {seed}\nExperiment.seed = %SEED\nMODEL_DIR = '{tmp_path / name}'\n"
        lines += f"STAGE1_RUN = \\\n    '{tmp_path / 'first'}'\n" if name == "second" else ""
        (tmp_path / name / "config.gin").write_text(lines)
    report = comparison_of_runs([tmp_path / "first", tmp_path / "second"])
    said = paragraph(report)
    assert "first is an earlier stage of second: losses of different stages are not compared." in said
    assert "lowest" not in said and report.seed_text == "3" and report.seed == 3
    rivals = comparison_of_runs([tmp_path / "second", tmp_path / "other"])
    assert "lowest" in paragraph(rivals) and rivals.seed_text == "3 (second), 4 (other)"


@pytest.mark.parametrize(
    ("run_folder", "named"),
    [
        ("runs/second", "runs/first"),
        ("./runs/second/", "runs/x/../first"),
        ("../project/runs/second", "../project/runs/first"),
        ("second", "first/checkpoint_20"),
        ("{}/project/runs/second", "runs/first"),
        ("{}/project/runs/second", "first"),
        ("runs/renamed_since", "runs/first"),
    ],
)
def test_stages_are_known_from_relative_paths_in_any_working_folder(tmp_path, monkeypatch, run_folder, named):
    runs = tmp_path / "project" / "runs"
    for name in ("first", "second"):
        make_run(runs / name)
    (runs / "second" / "config.gin").write_text(
        f"MODEL_DIR = \\\n    '{run_folder.format(tmp_path)}'\nSTAGE1_RUN = '{named}'\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert comparison_of_runs([runs / "first", "../project/runs/second"]).runs[1].begins_with == ["first"]


def test_a_run_whose_settings_have_the_name_of_another_is_its_rival(tmp_path):
    for name in ("float32", "bfloat16"):
        make_run(tmp_path / name)
        (tmp_path / name / "config.gin").write_text(f"MODEL_DIR = '{tmp_path / name}'\ndecoder.dtype = 'float32'\n")
    assert not any(run.begins_with for run in comparison_of_runs([tmp_path / "float32", tmp_path / "bfloat16"]).runs)


def test_evaluations_of_a_run_are_in_its_report(tmp_path):
    run = tmp_path / "run #1"
    make_run(run)
    assert load_evaluations(run) == []
    content = {"checkpoint": "run at step 20", "scores": {"vqav2/vqa_accuracy": 61.5, "vqav2/n": 3.0, "x": None}}
    save_metrics(run / "vqav2", content | {"intervals": {"vqav2/vqa_accuracy": [58.25, 64.0]}})
    (run / "vqav2" / "evaluation.html").write_text("")
    save_metrics(run, {"scores": {"val/loss": 1.25}})
    own, benchmark = load_evaluations(run)
    assert own.scores == {"val/loss": 1.25} and own.page is None
    assert benchmark.intervals == {"vqav2/vqa_accuracy": (58.25, 64.0)}
    comparison.write(comparison_of_runs([run]), tmp_path / "reports" / "report.html")
    page = (tmp_path / "reports" / "report.html").read_text()
    assert 'href="../run%20%231/vqav2/evaluation.html"' in page
    for expected in ("run at step 20", "61.5", "58.2 to 64.0", "1.250"):
        assert expected in page


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found neither"):
        load_run(tmp_path)
    (tmp_path / "curve.jsonl").write_text('{"step": \n{"step": 1, "split": "val", "loss": 1}\n')
    with pytest.raises(UserError, match="Line 1 of"):
        load_run(tmp_path)


def test_large_pictures_are_made_small():
    frames = pictures.frames_in(pictures.data_uri(np.zeros((400, 800, 3), np.uint8)))
    assert frames[0].shape == (96, 192, 3)
