"""`--print_config` and docs/settings.md: what is set, where, and what it means."""

import runpy
from pathlib import Path

import pytest

from vadapter.base import resources
from vadapter.cli.main import main
from vadapter.recipes import experiments, settings
from vadapter.recipes import gin_front as config

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.name for path in (resources.folder("gin") / "experiments").glob("*.gin"))
RUN = ["--gin_file=experiments/own_stage2.gin", "--print_config"]


def lines(capsys) -> dict[str, tuple[str, str]]:
    """{name: (value and what follows, group)} of what was printed."""
    found, group = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, _, rest = line.strip().partition(" = ")
            assert name not in found, "one line each"
            found[name] = (" ".join(rest.split()), group)
        elif line:
            group = line
    return found


def of_run(*files: str, bindings: tuple[str, ...] = ()) -> dict[str, settings.Setting]:
    experiments.register()
    return {s.name: s for s in settings.of_run(config.parse_gin(files, bindings, complete=False))}


def test_every_setting_has_its_value_its_place_and_its_meaning(capsys, tmp_path):
    (tmp_path / "mine.gin").write_text("\nOptimizerConfig.learning_rate = 1e-4\n")
    given = [f"--gin_file={tmp_path / 'mine.gin'}", "--gin.BATCH_SIZE=64", "--gin.large/decoder.norm_eps=1e-5"]
    assert main(["train", *RUN, *given]) == 0
    found = lines(capsys)
    assert found["BATCH_SIZE"] == (
        "64 --gin.BATCH_SIZE rows of the global batch, over all hosts (LoaderConfig.batch_size)",
        "Data",
    )
    rate, group = found["OptimizerConfig.learning_rate"]
    assert rate.startswith(f"0.0001 {tmp_path / 'mine.gin'}:2 the highest") and group == "Training"
    assert found["TRAIN_STEPS"][0].startswith("200 experiments/own_stage2.gin:")
    assert found["OptimizerConfig.eps"][0].startswith("1e-08 default added to")
    assert found["large/decoder.norm_eps"][0].startswith("1e-05 --gin.large/decoder.norm_eps")
    assert found["tiny/decoder.norm_eps"][0].startswith("1e-06 default")
    assert found["SEED"][0].endswith("(LoaderConfig.seed, Experiment.seed)")
    assert {group for _, group in found.values()} == set(settings.GROUPS)


def test_what_is_missing_is_shown_as_required_and_nothing_is_opened(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *RUN, "--gin.ENCODER_WEIGHTS='nowhere'", "--gin.TRAIN_JSONL='nowhere.jsonl'"]) == 0
    found = lines(capsys)
    assert found["MODEL_DIR"][0].startswith("REQUIRED runs/train.gin:")
    assert found["ENCODER_WEIGHTS"][0].startswith("'nowhere' --gin.ENCODER_WEIGHTS")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["check", "plan --topology=v5e:8x8"])
def test_other_commands_print_the_same(command, capsys):
    assert main([*command.split(), *RUN]) == 0
    assert lines(capsys)["TRAIN_STEPS"][0].startswith("200 ")


def test_a_mistake_is_refused_before_anything_is_printed(capsys):
    assert main(["train", *RUN, "--gin.BATCHSIZE=8"]) == 2
    out, err = capsys.readouterr()
    assert not out and "BATCH_SIZE" in err


def test_a_variant_s_fields_are_shown_with_their_origin():
    found = of_run("experiments/open_stage2.gin", "models/siglip2_gemma3.gin", bindings=("encoder.image_size=448",))
    assert found["large/decoder.depth"][2:4] == ("34", "the variant")
    assert found["tiny/decoder.depth"][2:4] == ("18", "the variant")
    assert found["encoder.image_size"][2:4] == ("448", "--gin.encoder.image_size")
    assert found["VOCABULARY"].value == "REQUIRED (%LARGE_WEIGHTS)"


def test_macros_within_lists_are_shown():
    found = of_run("experiments/paper_stage2.gin")
    assert found["IMAGE_RATE"].value == "2.0" and found["IMAGE_FILES"].value == "REQUIRED"
    assert found["IMAGE_RATE"].sets == ("add_mixture.rates",)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_of_every_experiment_has_a_meaning(name):
    found = of_run(f"experiments/{name}").values()
    assert len(found) > 60
    assert not [setting.name for setting in found if not setting.meaning or not setting.origin]


def test_every_parameter_that_gin_may_bind_has_a_meaning():
    experiments.register()
    ours = {name: thing for name, thing in config.registered().items() if thing.__module__.startswith("vadapter.")}
    missing = [
        f"{name}.{parameter.name}"
        for name, thing in ours.items()
        for parameter in settings.parameters(thing)
        if not parameter.meaning
    ]
    assert not missing, "Say under Attributes: or Args: of the docstring what these are, with their unit."


def test_the_page_of_all_settings_is_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "settings_page.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text() == made, "python docs/settings_page.py"
