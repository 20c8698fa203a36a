"""A run that goes on is still the run that was begun: a user's view of other settings, other data and a full disk."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import threading
import types

import pytest
from PIL import Image

from tests.models import small
from tests.training import processes
from vadapter.base import checksums, exit_codes
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.data import mixture_description, tasks
from vadapter.data.order import loader
from vadapter.data.order.config import LoaderConfig
from vadapter.models.vlm import VLMConfig
from vadapter.runs import lock, train
from vadapter.runs.experiment import Experiment
from vadapter.training import checkpoints, loop, writing
from vadapter.training.optimizers import OptimizerConfig

EVALUATION = "--gin.EVALUATIONS=[]"


def contents(folder):
    """Every file of a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


# ---- by the command line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of data and of the finished run `run`."""
    folder = tmp_path_factory.mktemp("finished")
    assert main([*processes.command(folder, "run"), EVALUATION]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run, and the command that trains in it; at another place, as after a move."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "data").symlink_to(finished / "data")
    return tmp_path / "run", [*processes.command(tmp_path, "run"), EVALUATION]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("BATCH_SIZE=16", "the batch size was 8 and is now 16"),
        ("SEED=1", "the seed of the data was 0 and is now 1"),
        ("TASK_FEATURE_LENGTHS={'inputs': 1, 'targets': 24}", "the length of targets was 40 and is now 24"),
        ("TrainConfig.frozen_dtype='int8'", "frozen_dtype was 'float32' and is now 'int8'"),
        ("OptimizerConfig.learning_rate=1e-5", "OptimizerConfig.learning_rate was .* and is now 1e-05"),
        ("TRAINABLE=['decoder/layers.*']", "what is trained was"),
        ("TrainConfig.log_every=0", "log_every=0 must be 1 or more"),
    ],
)
def test_a_finished_run_refuses_other_settings_and_stays_as_it_was(run, capsys, setting, said):
    folder, command = run
    before = contents(folder)
    assert main([*command, f"--gin.{setting}"]) == exit_codes.USER
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(said, error), error
    assert contents(folder) == before


def test_a_finished_run_given_the_same_again_trains_nothing_and_stays_as_it_was(run):
    folder, command = run
    kept = {name: text for name, text in contents(folder).items() if name != "curve.jsonl"}
    assert main(command) == 0
    assert {name: contents(folder)[name] for name in kept} == kept


def test_a_run_that_goes_on_with_another_rate_says_so(run, capsys):
    folder, command = run
    assert main([*command, "--gin.TRAIN_STEPS=3", "--gin.OptimizerConfig.learning_rate=1e-5"]) == 0
    said = capsys.readouterr().out
    assert "goes on from step 2 with another setting: the number of steps was 2 and is now 3." in said
    assert "another setting: OptimizerConfig.learning_rate was" in said
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert json.loads((folder / "model.json").read_text())["training"]["optimizer"]["learning_rate"] == 1e-5


def test_a_run_of_an_older_version_goes_on(run, monkeypatch):
    folder, command = run
    record = json.loads((folder / "model.json").read_text())
    record["training"] = {"steps": 2}
    (folder / "model.json").write_text(json.dumps(record))
    old = ("mixture", "split", "seed", "batch_size")
    read = checkpoints.Checkpointer.run
    monkeypatch.setattr(
        checkpoints.Checkpointer,
        "run",
        lambda self, step: {**(r := read(self, step)), "data": {k: r["data"][k] for k in old}},
    )
    assert main([*command, "--gin.TRAIN_STEPS=3"]) == 0
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["done.json", "model.json"])
def test_a_run_with_a_file_that_was_cut_is_ended_again(run, capsys, name):
    folder, command = run
    (folder / name).write_text((folder / name).read_text()[:20])
    with (folder / "curve.jsonl").open("a") as file:
        file.write('{"step": 2, "split": "v')
    assert main(command) == 0
    assert f"{name} was cut or is no JSON" in capsys.readouterr().out
    assert json.loads((folder / name).read_text())
    assert [row["step"] for row in rows(folder)] == [1, 2]


def test_a_second_process_in_the_folder_is_refused_before_anything_is_loaded(run, capsys):
    folder, command = run
    before = contents(folder)
    with lock.held(str(folder)):
        assert main([*command, "--gin.TRAIN_STEPS=3"]) == exit_codes.USER
    assert "Another process writes into" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize("given", ['""', '"FOLDER/file"', '"FOLDER/file/run"', "None"])
def test_what_cannot_be_a_folder_is_refused_before_data_are_made(tmp_path, capsys, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    command = [*processes.command(tmp_path, "run"), f"--gin.MODEL_DIR={given.replace('FOLDER', str(tmp_path))}"]
    assert main(command) == exit_codes.USER
    assert "MODEL_DIR is" in capsys.readouterr().err
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    "where", [(writing.CurveFile, "add"), (checkpoints.Checkpointer, "save"), (checksums, "write")]
)
def test_a_disk_that_fills_up_ends_the_run_with_one_paragraph(run, capsys, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder, command = run
    monkeypatch.setattr(*where, full)
    assert main([*command, "--gin.TRAIN_STEPS=3"]) == exit_codes.USER
    error = capsys.readouterr().err
    assert "had to end: no space is left on the device. Its last good checkpoint is that of step 2" in error
    assert "Traceback" not in error
    assert not (folder / lock.FILE).exists()
    monkeypatch.undo()
    assert main([*command, "--gin.TRAIN_STEPS=3"]) == 0
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]


# ---- data


def photos(folder, captions=("a", "b", "c", "d")):
    folder.mkdir(exist_ok=True)
    lines = []
    for i, caption in enumerate(captions):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": caption}))
    (folder / "photos.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "photos.jsonl")


def described(path, **settings):
    name = tasks.jsonl_task("own", path, path, vocabulary="scenes", **settings)
    return mixture_description.contents(name, "train")


def test_data_are_told_apart_by_what_they_hold_not_by_where_they_lie(tmp_path):
    here = described(photos(tmp_path / "a"))
    assert here["own_image_caption"]["records"] == 4
    assert described(photos(tmp_path / "b")) == here
    assert described(photos(tmp_path / "c", ("a", "b", "c", "another"))) != here
    assert described(photos(tmp_path / "d", ("a", "b", "c"))) != here


def test_files_at_scale_are_told_apart_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def of(path, holdout=0.5):
        name = tasks.pairs_task("pairs", path, holdout=holdout, vocabulary="scenes")
        return mixture_description.contents(name, "train")

    here = of(photos(tmp_path / "a"))
    assert of(photos(tmp_path / "b")) == here
    assert of(photos(tmp_path / "c", ("a", "b", "c", "e"))) != here  # of the same size
    assert of(photos(tmp_path / "a"), holdout=0.25) != here


def experiment(path, run, steps=1):
    model = VLMConfig(small.decoder(vocab_size=512), small.vit(), small.mlp())
    data = LoaderConfig(
        tasks.jsonl_task("own", path, path, vocabulary="scenes"),
        batch_size=8,
        lengths={"inputs": 8, "targets": 8},
    )
    config = loop.TrainConfig(steps=steps, optimizer=OptimizerConfig(warmup_steps=0), tensorboard=False)
    return Experiment(model, str(run), data, config)


def test_a_run_on_edited_data_is_refused_and_one_that_was_moved_goes_on(tmp_path):
    folder = tmp_path / "run"
    train.run(experiment(photos(tmp_path / "a"), folder))
    other = photos(tmp_path / "b", ("a", "b", "c", "e"))
    before = contents(folder)
    with pytest.raises(UserError, match=r"is finished.*contents of the data own_image_caption.*another MODEL_DIR"):
        train.run(experiment(other, folder))
    with pytest.raises(UserError, match=r"would not give the result of one run: the contents of the data"):
        train.run(experiment(other, folder, steps=2))
    assert contents(folder) == before
    moved = shutil.move(folder, tmp_path / "moved")
    photographs = shutil.move(tmp_path / "a", tmp_path / "photographs") / "photos.jsonl"
    assert train.run(experiment(str(photographs), moved, steps=2)).step == 2
    with pytest.raises(UserError, match=r"model\.decoder\.\S+ was .* and is now"):
        again = experiment(str(photographs), moved, steps=3)
        wider = VLMConfig(small.decoder(vocab_size=512, rope_base=5.0), small.vit(), small.mlp())
        train.run(dataclasses.replace(again, model=wider))


def test_the_same_command_goes_on_when_the_checkpoint_that_it_goes_back_to_is_no_longer_kept(tmp_path, capsys):
    path, folder = photos(tmp_path / "a"), tmp_path / "run"

    def told(steps, back_to=None):
        begun = experiment(path, folder, steps)
        settings = dataclasses.replace(begun.train, checkpoint_every=1, keep_checkpoints=2)
        return train.run(dataclasses.replace(begun, train=settings, resume_step=back_to)).step

    told(3)
    told(4, back_to=2)
    assert checkpoints.steps(str(folder)) == [3, 4]
    assert told(4, back_to=2) == 4
    assert told(5, back_to=2) == 5
    assert capsys.readouterr().out.count("went back to step 2 before: it goes on from checkpoint_4") == 2


def test_a_run_that_is_stopped_while_its_reader_hangs_is_interrupted_and_no_more(tmp_path, monkeypatch):
    given, never = loader.Loader.batches, threading.Event()

    def batches(self, start):
        for step, batch in enumerate(given(self, start), start):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                never.wait()
            yield batch

    monkeypatch.setattr(loader.Loader, "batches", batches)
    ended = train.run(experiment(photos(tmp_path / "a"), tmp_path / "run", steps=3))
    never.set()
    assert (ended.interrupted, ended.step, ended.signal) == (True, 2, signal.SIGTERM)
    assert checkpoints.steps(str(tmp_path / "run")) == [2]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_told_to_stop_says_so_by_its_status(tmp_path, monkeypatch, number, status):
    ended = types.SimpleNamespace(interrupted=True, signal=number)
    monkeypatch.setattr(train, "run", lambda _, accepted: ended)
    sizes = [f"--gin.ScenesConfig.{part}=16" for part in ("train", "validation", "test", "text_train", "text_eval")]
    assert main(["demo", f"--output={tmp_path}", "--parts=vit", *sizes]) == status


@pytest.mark.slow
def test_a_refusal_of_the_first_of_two_processes_ends_both(run):
    folder, command = run
    before = contents(folder)
    with lock.held(str(folder)):
        arguments = ["vadapter", *command, "--gin.TRAIN_STEPS=3", "--gin.HostsConfig.initialization_timeout=120"]
        printed = processes.run_processes(2, arguments, status=exit_codes.USER)
    assert "Another process writes into" in printed[0]
    assert "The first process of this run may not write into" in printed[1]
    assert contents(folder) == before


@pytest.mark.parametrize("part", ["splash", "cudnn"])
def test_a_run_of_an_accelerator_is_evaluated_on_a_cpu(run, part):
    folder, _ = run
    record = json.loads((folder / "model.json").read_text())
    record["model"]["decoder"]["attention_impl"] = part
    (folder / "model.json").write_text(json.dumps(record))
    with (folder / "config.gin").open("a") as file:
        file.write(f"\ndecoder.attention_impl = {part!r}\nEVALUATIONS = [@val/Evaluation()]\n")
    assert main(["eval", f"--model_dir={folder}", "--num_examples=0"]) == 0
    assert json.loads((folder / "metrics.json").read_text())["scores"]["val/loss"] > 0
