"""`vadapter plan --device`: what a small recipe takes of one GPU, by the CPU compiler."""

import dataclasses
import json
import re

import pytest

from vadapter.base import exit_codes
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.planning import cards
from vadapter.recipes import experiments
from vadapter.runs import card_planner

RECIPE = "experiments/scenes_tiny.gin"


@pytest.fixture(scope="module")
def experiment():
    return experiments.unopened([RECIPE])


def test_what_fits_a_card_is_told_with_its_bytes(experiment):
    plan = card_planner.plan("tiny", experiment, cards.card("4090"))
    assert plan.fits and plan.rows == experiment.data.batch_size
    assert plan.argument_bytes > 0 and plan.temporary_bytes > 0
    assert "tiny on RTX 4090" in plan.text() and ": fits." in plan.text()
    assert plan.step_seconds is None  # it computes in float32, for which no speed is known
    assert plan.to_json()["peak_bytes"] == plan.argument_bytes + plan.temporary_bytes


def made(peak: int, usable: int) -> card_planner.CardPlan:
    return card_planner.CardPlan("r", "c", 64, 1, peak // 2, peak - peak // 2, usable, 1e12, 0.5)


def test_what_does_not_fit_is_told_with_what_would_help():
    text = made(30 * cards.GIB, 22 * cards.GIB).text()
    assert "does not fit" in text and "BATCH_SIZE" in text and "examples a second" not in text
    text = made(60 * cards.GIB, 22 * cards.GIB).text()  # the weights alone do not
    assert "int8" in text and "BATCH_SIZE" not in text
    assert "128 examples a second" in made(20 * cards.GIB, 22 * cards.GIB).text()


def test_the_largest_batch_is_searched_in_whole_micro_batches(experiment, monkeypatch):
    train = experiment.train
    train = dataclasses.replace(train, optimizer=dataclasses.replace(train.optimizer, accumulate=4))
    experiment = dataclasses.replace(experiment, train=train)
    asked = []

    def plan(recipe, experiment, card, rows, video):
        asked.append(rows)
        return dataclasses.replace(made(rows, card.usable_bytes), rows=rows)

    monkeypatch.setattr(card_planner, "plan", plan)
    best = card_planner.largest("r", experiment, cards.Card("small", 1000))
    assert best is not None and 920 * 7 / 8 <= best.rows <= 920
    assert all(rows % 4 == 0 for rows in asked)
    assert card_planner.largest("r", experiment, cards.Card("tiny", 3)) is None


@pytest.mark.parametrize(("rows", "accumulate"), [(0, 1), (-8, 1), (9, 2), (8, 0)])
def test_batches_without_rows_in_each_micro_batch_are_refused(experiment, rows, accumulate):
    train = experiment.train
    train = dataclasses.replace(train, optimizer=dataclasses.replace(train.optimizer, accumulate=accumulate))
    with pytest.raises(UserError, match=f"found batches of {rows} rows. Change BATCH_SIZE"):
        card_planner.plan("r", dataclasses.replace(experiment, train=train), cards.card("l4"), rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device=banana",), "RTX 4090.*--memory"),
        (("--memory=lots",), "24GiB"),
        (("--device=l4", "--search", "--price=2"), "--search, --price: for TPUs only"),
        (("--device=l4", "--gin.MeshConfig.data=2"), "does not fit 1 devices"),
        (("--topology=v5e:2x4", "--largest_batch"), "--largest_batch is for one GPU"),
    ],
)
def test_mistakes_are_explained(capsys, arguments, message):
    assert main(["plan", f"--gin_file={RECIPE}", *arguments]) == exit_codes.USER
    assert re.search(message, capsys.readouterr().err)


def test_the_command_tells_the_largest_batch_and_ends_with_3_if_none_fits(monkeypatch, capsys, tmp_path):
    def plan(recipe, experiment, card, rows=None, video=False):
        rows = experiment.data.batch_size if rows is None else rows
        return dataclasses.replace(made(rows * 10**8, card.usable_bytes), recipe=recipe, card=card.name, rows=rows)

    monkeypatch.setattr(card_planner, "plan", plan)
    path = tmp_path / "plan.json"
    assert main(["plan", f"--gin_file={RECIPE}", "--memory=24GB", "--largest_batch", f"--json={path}"]) == 0
    assert "largest batch that fits" in capsys.readouterr().out
    assert 220 * 7 / 8 <= json.loads(path.read_text())["rows"] <= 220
    assert main(["plan", f"--gin_file={RECIPE}", "--memory=0.05GB", "--largest_batch"]) == exit_codes.NO
    assert "does not fit" in capsys.readouterr().out
