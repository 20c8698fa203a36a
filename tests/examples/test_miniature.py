"""examples/miniature: its arms are what gin can make, and the page says what the results say."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from vadapter.base.batch import Batch
from vadapter.cli.modules import import_modules
from vadapter.models.adapters import MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig
from vadapter.recipes import experiments

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "miniature"
RUN = runpy.run_path(str(FOLDER / "run.py"))
sys.path.append(str(FOLDER))  # as Python does for a script
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
sys.path.remove(str(FOLDER))
ARMS = {name: arm for arms in RUN["SWEEPS"].values() for name, arm in arms.items()}


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_an_experiment(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    arm = ARMS[name]
    import_modules([arm.module] if arm.module else [])
    bindings = [f"{macro}={value}" for macro, value in arm.macros.items() if macro not in RUN["WEIGHTS"]]
    made = experiments.unopened([*arm.files, f"{RUN['GIN']}/measure.gin"], bindings)
    assert made.train.steps == int(arm.macros.get("TRAIN_STEPS", 480))
    assert made.data.batch_size == 32
    handed = "STAGE1_RUN" in arm.macros and "HANDOFF" not in arm.macros and name != "paper"
    assert (made.handoff is not None) == handed


def test_the_page_and_the_demo_say_what_the_results_say():
    lines = TABLES["results"]()
    assert TABLES["tables"](lines) in (ROOT / "docs" / "experiments.md").read_text(), (
        "python examples/miniature/tables.py"
    )
    assert TABLES["scale_figure"](lines) == (ROOT / "docs" / "experiments_scales.svg").read_text()
    said = json.loads((ROOT / "data" / "scenes" / "miniature.json").read_text())["test_loss"]
    arms = {arm.name: arm for arm in TABLES["summaries"](lines, "test/loss")}
    assert {"perceiver", "queries_random", "queries", "words"} <= said.keys()
    for name, text in said.items():
        assert text == TABLES["estimate_text"](arms[name].test)


def test_the_readme_has_the_figures_of_the_page():
    page = (ROOT / "docs" / "experiments.md").read_text().partition("### Arms")[2].partition("###")[0]
    lines = (ROOT / "README.md").read_text().partition("## Python")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len(rows) == 5
    for what, parameters, loss, fewer, seeds in rows:
        arm = what.partition(":")[0]
        found = next(line for line in page.splitlines() if line.startswith(f"| {arm} | {parameters} | {loss} |"))
        assert f"| {fewer} |" in found if fewer else arm == "`perceiver`"
        assert found.endswith(f"| {seeds} |")


def test_a_crossing_lies_between_two_measurements():
    crossing = TABLES["crossing"]
    assert crossing([(30, 1.0), (60, 0.5)], 0.75) == pytest.approx(45)
    assert crossing([(30, 1.0), (60, 0.5)], 1.5) == 30
    assert crossing([(30, 1.0), (60, 0.5)], 0.4) is None


def test_the_supervised_arm_keeps_the_loss_of_stage_1(monkeypatch):
    monkeypatch.chdir(ROOT)
    arm = ARMS["words_supervised"]
    made = experiments.unopened([*arm.files, f"{RUN['GIN']}/measure.gin"])
    assert made.objective.tiny_loss == 1.0 and made.tiny_lm == made.handoff.source
    assert made.train.trainable == ("adapter/.*",)  # its table of words too


def test_a_contrastive_row_without_a_weight_takes_no_part_and_swapped_captions_are_wrong():
    import_modules(["examples.miniature.contrastive"])
    from examples.miniature.contrastive import ContrastiveConfig

    decoder = DecoderConfig(vocab_size=32, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)
    encoder = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=32)
    model = ContrastiveConfig(decoder, encoder, MlpConfig(depth=1)).make()
    batch = _batch(np.random.default_rng(0).integers(0, 256, (2, 1, 1, 8, 8, 3), dtype=np.uint8), 4)
    params = nn.unbox(model.init(jax.random.key(0), batch)["params"])

    def sums(batch):
        return model.apply({"params": params}, batch, method="loss_sums")

    right, swapped = sums(batch), sums(dataclasses.replace(batch, target_ids=batch.target_ids[::-1]))
    # Of two rows the logits are a 2 x 2 matrix; swapping captions swaps its columns, so the margin changes its sign.
    assert right.correct_sum + swapped.correct_sum == 2
    assert (right.loss_sum < swapped.loss_sum) == (right.correct_sum > swapped.correct_sum)
    alone = sums(dataclasses.replace(batch, target_weights=np.array([[1, 1], [0, 0]], np.float32)))
    assert (float(alone.weight_sum), float(alone.correct_sum)) == (1, 1)
    np.testing.assert_allclose(alone.loss_sum, 0, atol=1e-6)  # one caption to choose from


def _batch(media, slots):
    """Two rows, `ab<medium>cde` and `a<medium>bc`, whose last two words are targets."""
    length = slots + 5
    tokens, media_index = np.zeros((2, length), np.int32), np.full((2, length), -1, np.int32)
    segments, at, ids = np.zeros((2, length), np.int32), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.int32)
    for row, (before, after) in enumerate((([5, 6], [7, 8, 9]), ([10], [11, 12]))):
        words = [*before, *[0] * slots, *after]
        tokens[row, : len(words)], segments[row, : len(words)] = words, 1
        media_index[row, len(before) : len(before) + slots] = np.arange(slots)
        at[row], ids[row] = [len(words) - 3, len(words) - 2], words[-2:]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Batch(tokens, segments, positions, media_index, at, ids, np.ones((2, 2), np.float32), media)
