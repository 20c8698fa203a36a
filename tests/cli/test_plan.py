"""`vadapter plan`: from gin files to figures. The compiler is replaced; tests/planning asks the real one."""

import dataclasses
import json
import re

import jax
import pytest

from tests.planning import plans_made
from vadapter.base import exit_codes, trees
from vadapter.base.errors import UserError
from vadapter.cli import plan as command
from vadapter.cli.main import main
from vadapter.generation.decoding import DecodingConfig
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.vlm import VLMConfig
from vadapter.planning import search
from vadapter.planning.topologies import Topology
from vadapter.recipes import experiments
from vadapter.runs import plan_parts as planned
from vadapter.runs import planner

GIB = plans_made.GIB
RECIPE = "experiments/scenes_paper.gin"


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for the TPU compiler: 64 of this machine's kind of devices, and a table of peaks by mesh."""
    lowered = []

    def compile_program(program, topology, mesh, cache_dir=None):
        lowered.append((program.name, dict(mesh.shape)))
        peak = compiler_peak(dict(mesh.shape))
        return plans_made.compiled(peak, name=program.name, topology=topology.name, slices=topology.slices)

    peaks = {}
    compiler_peak = lambda mesh: peaks.get("all", 10 * GIB) / mesh["tensor"]  # noqa: E731
    monkeypatch.setattr(planner, "compile_program", compile_program)
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[: self.num_devices])
    return peaks, lowered


def plan(*arguments: str, recipe: str = RECIPE) -> int:
    return main(["plan", f"--gin_file={recipe}", "--topology=v5e:2x4", *arguments])


def test_a_plan_is_printed_and_written_with_nothing_but_a_recipe_and_a_topology(compiler, tmp_path, capsys):
    html, data = tmp_path / "deep" / "plan.html", tmp_path / "plan.json"
    assert plan("--price=1.5", f"--html={html}", f"--json={data}") == 0
    printed = capsys.readouterr().out
    assert "scenes_paper on v5e:2x4 (8 chips)" in printed and "PaliGemma" in printed
    written = json.loads(data.read_text())
    parts = {part["name"]: part for part in written["parts"]}
    assert parts["decoder"]["trained"] is False and parts["adapter/lm"]["trained"] is True
    assert parts["adapter/lm"]["optimizer_bytes"] == 2 * parts["adapter/lm"]["weight_bytes"]
    assert written["mesh"]["data"] == 8 and written["chips"] == 8
    assert "<h1>scenes_paper on v5e:2x4</h1>" in html.read_text()


def test_what_does_not_fit_ends_with_status_1_and_says_what_helps(compiler, capsys):
    compiler[0]["all"] = 20 * GIB
    assert plan() == exit_codes.NO
    printed = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in printed and "4.25 GiB are missing" in printed and "What would help" in printed


def test_search_ranks_what_it_compiled(compiler, tmp_path, capsys):
    compiler[0]["all"] = 20 * GIB  # only two or more devices on tensor fit
    data = tmp_path / "plan.json"
    assert plan("--search", "--search_limit=8", f"--json={data}") == 0
    written = json.loads(data.read_text())
    assert written["setting"]["tensor"] > 1 and written["fits"]
    outcomes = written["search"]["outcomes"]
    assert [o["fits"] for o in outcomes] == sorted((o["fits"] for o in outcomes), reverse=True)
    assert len(outcomes) <= 8
    assert "data x fsdp x tensor" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_shows_what_is_known(compiler, monkeypatch, capsys):
    compiler[0]["all"] = 20 * GIB
    seen = []

    def interrupted(self, setting):
        if seen:
            raise KeyboardInterrupt
        seen.append(setting)
        return original(self, setting)

    original = planner.Planner.outcome
    monkeypatch.setattr(planner.Planner, "outcome", interrupted)
    assert plan("--search") == exit_codes.NO
    printed = capsys.readouterr()
    assert "It was interrupted." in printed.out and "Interrupted" in printed.err


def test_decode_plans_the_generation_of_text_too(compiler, tmp_path):
    data = tmp_path / "plan.json"
    assert plan("--decode", "--decode_rows=16", f"--json={data}") == 0
    assert [name for name, _ in compiler[1]] == ["train step", "decode"]
    decode = json.loads(data.read_text())["decode"]
    assert decode["rows"] == 16 and decode["new_tokens"] == 20 and decode["method"] == "greedy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gin.MeshConfig.fsdp=3",), "v5e:2x4, 1 slices: The mesh .*fsdp=3.* does not fit 8 devices"),
        (("--topology=v9:2x2",), "v5e.*v5p"),
        (("--gin.TRAIN_STEPS=%gin.REQUIRED",), "leave these to you: .*TRAIN_STEPS"),
        (("--price=-1",), "price must not be negative"),
        (("--gin_file=nowhere.gin",), "nowhere.gin was not found"),
    ],
)
def test_mistakes_are_explained(compiler, capsys, arguments, message):
    assert plan(*arguments) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture(scope="module")
def experiment():
    return experiments.unopened([RECIPE])


def test_the_step_is_the_one_that_training_compiles(experiment):
    """The same inputs and outputs, shapes and placements as `training.loop` makes of real arrays."""
    parts = planned.PlannedParts(experiment, jax.devices())
    lowered = parts.program.lower()
    (state, frozen, batch), _ = lowered.args_info
    assert trees.flatten(frozen).keys() == trees.flatten(parts.program.abstract_params[1]).keys()
    assert all(not p.startswith("adapter/") for p in trees.flatten(frozen))
    assert {x.shape[0] for x in jax.tree.leaves(batch)} == {experiment.data.batch_size}
    assert trees.flatten(state.params).keys() == trees.flatten(parts.program.abstract_params[0]).keys()


def test_rows_that_do_not_divide_are_refused_before_anything_is_traced(experiment):
    data = dataclasses.replace(experiment.data, batch_size=12)
    parts = planned.PlannedParts(dataclasses.replace(experiment, data=data), jax.devices())
    with pytest.raises(UserError, match="batch of 12 rows does not divide over 8"):
        parts.program.lower()
    with pytest.raises(UserError, match="batch of 3 rows does not divide over 8"):
        parts.lower_decode(DecodingConfig(), 3)


def test_int8_halves_the_frozen_kernels(experiment):
    train = dataclasses.replace(experiment.train, frozen_dtype="bfloat16")
    int8 = dataclasses.replace(experiment.train, frozen_dtype="int8")
    rows = {}
    for config in (train, int8):
        parts = planned.PlannedParts(dataclasses.replace(experiment, train=config), jax.devices())
        rows[config.frozen_dtype] = {p.name: p for p in planner.part_rows(parts)}
    assert rows["bfloat16"]["decoder"].dtype == "bfloat16" and rows["int8"]["decoder"].dtype == "int8"
    assert rows["int8"]["decoder"].weight_bytes < 0.7 * rows["bfloat16"]["decoder"].weight_bytes
    assert rows["int8"]["adapter/lm"] == rows["bfloat16"]["adapter/lm"]


def test_sharing_over_devices_lowers_what_a_device_must_hold(experiment):
    start = planned.setting_of(experiment, planned.PlannedParts(experiment, jax.devices()))
    sizes = []
    for mesh in ((8, 1, 1), (1, 8, 1)):
        changed = planned.with_setting(experiment, search.with_mesh(start, mesh))
        sizes.append(planned.PlannedParts(changed, jax.devices()).argument_bytes())
    assert sizes[1] < 0.5 * sizes[0]


def test_a_setting_reaches_every_part_of_the_model(experiment):
    start = planned.setting_of(experiment, planned.PlannedParts(experiment, jax.devices()))
    assert [part for part, _ in start.remat] == ["adapter/lm", "decoder"]  # nothing before the encoder is trained
    setting = search.Setting(2, 2, 2, 4, (("adapter/lm", "dots"), ("decoder", "full")), start.attention)
    changed = planned.with_setting(experiment, setting)
    assert isinstance(changed.model, VLMConfig) and isinstance(changed.model.adapter, LMAdapterConfig)
    assert changed.model.decoder.remat == "full" and changed.model.adapter.lm.remat == "dots"
    assert changed.train.optimizer.accumulate == 4
    assert planned.setting_of(changed, planned.PlannedParts(changed, jax.devices())) == setting


def test_videos_cost_the_encoder_more(experiment):
    image, video = (planned.PlannedParts(experiment, jax.devices(), video=v) for v in (False, True))
    frames = experiment.model.num_frames
    assert video.example.media.shape[2] == frames
    assert video.useful_flops()["encoder"] == pytest.approx(frames * image.useful_flops()["encoder"])


def test_a_classifier_has_no_videos_and_no_texts():
    experiment = experiments.unopened(["experiments/scenes_vit.gin"])
    with pytest.raises(UserError, match="--video"):
        _ = planned.PlannedParts(experiment, jax.devices(), video=True).example
    with pytest.raises(UserError, match="--decode"):
        planned.PlannedParts(experiment, jax.devices()).lower_decode(None, 8)  # type: ignore[arg-type]


def test_errors_of_the_work_behind_a_progress_line_arrive():
    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        command.waited("failing", fail)
    assert command.waited("adding", lambda: 1 + 1) == 2
