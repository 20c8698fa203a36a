"""examples/open/run.py: which commands the parts run, in their order, and that nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "open"


def option(command, name):
    """The value of an argument of a command; None where it is not given."""
    return next((a.removeprefix(f"{name}=") for a in command if a.startswith(f"{name}=")), None)


def finished(folder, loss):
    """A finished run with that validation loss."""
    folder.mkdir(parents=True)
    curve = [{"step": 1, "split": "val", "loss": 9.0}, {"step": 2, "split": "val", "loss": loss}]
    (folder / "curve.jsonl").write_text("\n".join(map(json.dumps, curve)))
    done = {"step": 2, "seconds": 3.0, "trainable_params": 1200}
    (folder / "done.json").write_text(json.dumps(done))


class Vadapter:
    """Stands in for vadapter's commands: notes each, and leaves the files that it would."""

    def __init__(self, losses):
        self.commands, self.losses = [], losses

    def __call__(self, *command):
        self.commands.append(command)
        if command[0] == "import":
            Path(option(command, "--out")).mkdir(parents=True)
        if command[0] == "train":
            folder = Path(json.loads(option(command, "--gin.MODEL_DIR")))
            finished(folder, self.losses.get(folder.name, 5.0))
        if command[0] == "eval":
            out = Path(option(command, "--output"))
            out.mkdir(exist_ok=True)
            scores = {"reliance/right": 3.5, "generation/cider": 12.25, "reliance/shuffled_gap": 1.5}
            (out / "metrics.json").write_text(json.dumps({"scores": scores}))
        if command[0] == "export":
            Path(option(command, "--out")).mkdir()

    def of(self, name):
        return [command for command in self.commands if command[0] == name]


@pytest.fixture
def place(tmp_path):
    """A folder where everything is fetched and written."""
    for file in ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf", "vit_s_focus.onnx"):
        (tmp_path / "data" / "raw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "raw" / file).touch()
    (tmp_path / "data" / "models" / "vit").mkdir(parents=True)
    sets = tmp_path / "data" / "sets"
    sets.mkdir()
    for name in ("train", "validation", "test", "unseen_hand"):
        (sets / f"captions_{name}.jsonl").write_text('{"image": "pictures/a.png", "caption": "a"}\n')
    return tmp_path


@pytest.fixture
def run(example, monkeypatch):
    module = example("run")
    for name in ("DATA", "RUNS", "ARMS", "SEEDS", "STEPS", "LIMIT", "TRAIN_ON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "vadapter", Vadapter({"mlp": 3.0}))
    return module


def do(run, place, *arguments):
    parts, settings = run.parse([*arguments, f"--data={place / 'data'}", f"--runs={place / 'runs'}"])
    for part in parts:
        run.PARTS[part](settings)
    return settings


LATER = ("import", "stage1", "arms", "evaluate", "export", "report")


def test_all_parts_in_their_order_and_a_second_run_does_nothing_twice(run, place, capsys):
    do(run, place, *LATER, "--arms=perceiver,mlp,queries")
    names = [command[0] for command in run.vadapter.commands]
    assert names == ["import"] * 3 + ["train"] * 4 + ["eval"] * 6 + ["export", "report"]
    trained = [Path(json.loads(option(c, "--gin.MODEL_DIR"))).name for c in run.vadapter.of("train")]
    assert trained == ["stage1", "perceiver", "mlp", "queries"]
    assert [bool(option(c, "--gin.STAGE1_RUN")) for c in run.vadapter.of("train")] == [False, False, False, True]
    # The arm that validation chose is exported.
    assert Path(option(run.vadapter.of("export")[0], "--checkpoint")).name == "mlp"
    said = capsys.readouterr().out
    assert "3.500  1.500     12.250" in said and "infer --bundle" in said
    results = json.loads((place / "runs" / "results.json").read_text())
    assert [r["arm"] for r in results] == ["perceiver", "mlp", "queries"]
    assert results[0]["captions_unseen_hand"]["reliance/right"] == 3.5

    run.vadapter.commands.clear()
    do(run, place, *LATER, "--arms=perceiver,mlp,queries")
    assert [command[0] for command in run.vadapter.commands] == ["report"]


def test_tests_are_measured_on_what_no_run_has_seen(run, place):
    do(run, place, "import", "stage1", "arms", "evaluate", "--arms=queries")
    for command in run.vadapter.of("train"):
        assert option(command, "--gin.TRAIN_JSONL").endswith('captions_train.jsonl"')
        assert option(command, "--gin.VALIDATION_JSONL").endswith('captions_validation.jsonl"')
    measured = [Path(json.loads(option(c, "--gin.VALIDATION_JSONL"))).stem for c in run.vadapter.of("eval")]
    assert measured == ["captions_test", "captions_unseen_hand"]


def test_a_third_stage_goes_on_from_the_bundle_and_is_measured_before_and_after(run, place, capsys):
    sets = place / "data" / "sets"
    for name in ("train", "validation", "test"):
        (sets / f"chats_{name}.jsonl").touch()
    do(run, place, "import", "stage1", "arms", "--arms=queries_frozen")
    run.vadapter.commands.clear()
    do(run, place, "tune")
    assert [command[0] for command in run.vadapter.commands] == ["export", "train", "eval", "eval", "export"]
    adapted, trained, before, after, tuned = run.vadapter.commands
    assert Path(option(adapted, "--checkpoint")).name == "queries_frozen"
    assert option(trained, "--bundle") == option(before, "--bundle") == option(adapted, "--out")
    assert option(trained, "--gin.CHAT_FILES").endswith('chats_train.jsonl"')
    for command in (before, after):
        assert option(command, "--gin.VALIDATION_FILES").endswith('chats_test.jsonl"')
    assert option(after, "--model_dir") == option(tuned, "--checkpoint")
    assert "generation/cider" in capsys.readouterr().out
    run.vadapter.commands.clear()
    do(run, place, "tune")
    assert run.vadapter.commands == []
    assert "tune" not in run.parse([])[0]  # only where it is named


def test_chats_ask_as_often_about_each_picture(example):
    captions = [{"id": str(i), "image": f"{i}.png", "caption": f"thing {i // 2}"} for i in range(101)]
    made = example("chats").chats(captions)
    assert made == example("chats").chats(captions) and len(made) > 40
    answers = [chat["messages"][1]["content"] for chat in made]
    assert abs(answers.count("the first") - answers.count("the second")) < 4
    for chat in made:
        names = [f"thing {int(image.removesuffix('.png')) // 2}" for image in chat["images"]]
        asked, answer, _, other = (turn["content"] for turn in chat["messages"])
        which = ("the first", "the second").index(answer)
        assert f'"{names[which]}"' in asked and other == names[1 - which] and names[0] != names[1]


def test_arms_without_stage_1_do_not_train_it(run, place):
    do(run, place, "import", "stage1", "arms", "--arms=mlp")
    assert len(run.vadapter.of("train")) == 1


def test_settings_by_environment_and_arguments(run, place, monkeypatch):
    monkeypatch.setenv("STEPS", "40")
    monkeypatch.setenv("SEEDS", "0,1")
    monkeypatch.setenv("ARMS", "mlp,perceiver")
    do(run, place, "import", "arms", "--arms=mlp", "--gin=BATCH_SIZE=4")
    commands = run.vadapter.of("train")
    assert [option(c, "--gin.SEED") for c in commands] == ["0", "1"]
    for command in commands:
        assert option(command, "--gin.TRAIN_STEPS") == "40"
        assert int(option(command, "--gin.OptimizerConfig.warmup_steps")) < 40
        assert "--gin.BATCH_SIZE=4" in command


@pytest.mark.parametrize(
    "wrong", (["shop"], ["--arms=magic"], ["--seeds=one"], ["--train_on=cats"], ["--steps=0"], ["--limit=-1"])
)
def test_wrong_arguments_are_refused(run, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.parse(wrong)
    assert stopped.value.code == 2
    assert "expected" in (said := capsys.readouterr().err) or "choose from" in said


@pytest.mark.parametrize(
    ("part", "missing", "first"),
    (
        ("import", "vit_s_focus.onnx", "fetch"),
        ("data", "emoji.json", "fetch"),
        ("stage1", "captions_train.jsonl", "data"),
        ("evaluate", "done.json", "arms"),
    ),
)
def test_a_part_without_what_it_needs_names_the_part_to_run_first(run, tmp_path, part, missing, first):
    with pytest.raises(run.Failed, match=rf"{missing} is missing. .*make open-{first}"):
        do(run, tmp_path, part)


def test_data_are_written_of_all_packages_or_of_none(run, tmp_path):
    listed = tmp_path / "data" / "raw" / "emoji-datasource-twitter" / "emoji.json"
    listed.parent.mkdir(parents=True)
    listed.write_text("[]")
    with pytest.raises(run.Failed, match=r"google/emoji.json is missing. .*make open-fetch"):
        do(run, tmp_path, "data")


def test_the_command_ends_with_status_2_and_the_message(tmp_path):
    command = [sys.executable, str(EXAMPLE / "run.py"), "stage1", f"--data={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ARMS": "queries"})
    assert done.returncode == 2
    assert "run.py: error:" in done.stderr and "make open-data" in done.stderr


def test_there_is_a_gin_file_for_each_arm_and_a_target_for_each_part(run):
    for name in ("stage1", *run.ARMS):
        assert (EXAMPLE / "gin" / f"{name}.gin").is_file()
    makefile = (EXAMPLE.parents[1] / "Makefile").read_text()
    (listed,) = [line for line in makefile.splitlines() if line.startswith("OPEN :=")]
    assert listed.split()[2:] == list(run.PARTS)
