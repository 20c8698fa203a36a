"""A plan for people."""

import dataclasses
import json
import re

from tests.planning.plans_made import GIB, plan
from vadapter.planning import page
from vadapter.planning.calibration import PALIGEMMA
from vadapter.planning.plans import advice
from vadapter.planning.search import Outcome, Search, Space

SLOWER = 1 / PALIGEMMA.factor  # calibrated times are longer


def cells(table: page.Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_the_summary_of_a_plan_that_fits():
    text = page.summary(plan())
    assert "fits, 10.00 GiB of 15.75 GiB" in text and "64 chips" in text
    assert "1.000 s" in text and f"{SLOWER:.3f} s calibrated" in text and f"MFU 50.0% ({50 / SLOWER:.1f}%)" in text


def test_the_summary_of_one_that_does_not_says_by_how_much():
    assert "does not fit, a device needs 20.00 GiB and has 15.75 GiB: 4.25 GiB are missing" in page.summary(
        plan(20 * GIB)
    )


def test_tables_have_the_figures_of_the_plan():
    tables = {t.title: t for t in page.tables(plan(price=1.2))}
    assert cells(tables["Memory of a device"])["left"] == ("5.75",)
    assert cells(tables["Parameters"])["decoder"][:2] == ("frozen", "bfloat16")
    assert cells(tables["Where a step's time goes"])["matrix products"] == ("800.0", "80.0")
    assert tables["Communication"].rows[0] == ("all-gather", "fsdp", "in a scan", "48", "19,073", "200.0", "66.7")
    speed = cells(tables["Speed and cost"])
    assert any("USD" in name and row == ("77", f"{76.8 * SLOWER:.0f}") for name, row in speed.items())
    assert "Largest temporaries of a device" not in tables


def test_what_does_not_fit_shows_its_largest_temporaries_by_source_line_and_what_helps():
    large = plan(20 * GIB)
    tables = {t.title: t for t in page.tables(large)}
    assert tables["Largest temporaries of a device"].rows[0][0] == "models/decoder.py:10"
    assert "Speed and cost" not in tables
    help_ = " ".join(advice(large))
    assert "remat = 'full' for encoder, decoder" in help_
    assert "accumulate above 2" in help_ and "16 rows" in help_  # 2,048 rows over 64 devices in 2 parts
    assert "MeshConfig.fsdp = 64 saves 1.75 GiB" in help_  # of 17.2 GB, an eighth less a 64th
    assert "int8" in help_ and "more chips" in help_
    assert any("What would help" in note for note in page.notes(large))


def test_the_calibration_and_measured_runs_stand_beside_the_estimate():
    text = " ".join(page.notes(plan()))
    assert "PaliGemma" in text and "0.74" in text and "5,189 tokens/s/chip" in text
    assert "TPU v5e" in text and "55%" in text


def test_kernels_of_unknown_cost_are_told_of():
    found = plan()
    unknown = dataclasses.replace(found, compiled=dataclasses.replace(found.compiled, unknown_kernels=3))
    assert not any("cost_estimate" in note for note in page.notes(found))
    assert any("3 hand-written kernels" in note and "cost_estimate" in note for note in page.notes(unknown))


def test_the_page_is_self_contained_and_escapes_what_it_shows():
    large = plan(20 * GIB)
    text = page.html("a < b", page.summary(large), page.tables(large), page.notes(large), large)
    assert "a &lt; b" in text and "&lt;mlp&gt;" in text and "<mlp>" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe)|https?://", text)


def test_bars_fill_their_width():
    for _, pieces in page.bars(plan()):
        assert abs(sum(percent for *_, percent in pieces) - 100) < 1e-6


def test_markdown_has_a_row_a_line_with_as_many_cells_as_columns():
    table = page.tables(plan())[0]
    lines = page.markdown(table).splitlines()
    assert len(lines) == 2 + len(table.rows)
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}


def test_the_ranking_of_a_search():
    fits, not_ = plan(), plan(20 * GIB)
    search = Search(Space(lambda setting: None, ((64, 1, 1),)), ended="It stopped.")
    for p, seconds in ((not_, float("inf")), (fits, 1.0)):
        m = p.compiled.memory
        setting = dataclasses.replace(p.setting, accumulate=1 if p is not_ else 2)
        search.outcomes.append(Outcome(setting, p.fits, seconds, m.peak, m.limit, plan=p))
    rows = page.ranking(search).rows
    assert [row[4] for row in rows] == ["yes", "no"]
    assert rows[0][-3:] == ("1.000", f"{SLOWER:.3f}", "50.0") and rows[1][-3:] == ("", "", "")


def test_a_plan_is_plain_json():
    data = json.loads(json.dumps(plan(price=1.0).to_json()))
    assert data["fits"] is True and data["chips"] == 64
    assert data["compiled"]["memory"]["peak"] == 10 * GIB
    assert data["estimate"]["cost_usd"] == 64.0
    assert data["work"]["useful_flops"]["decoder"] == 4000e12


def test_the_overview_has_a_row_for_every_plan_also_for_those_that_failed():
    plans = [json.loads(json.dumps(p.to_json())) for p in (plan(), plan(20 * GIB))]
    table = page.overview([*plans, {"recipe": "odd", "error": "heads do not divide"}])
    fits, large, failed = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (fits["fits"], fits["step (s)"], fits["MFU (%)"], fits["trained (millions)"]) == (
        "yes",
        "1.00",
        "50.0",
        "100",
    )
    assert (large["fits"], large["step (s)"], large["HBM a device (GiB)"]) == ("no", "", "20.00")
    assert failed["recipe"] == "odd" and "heads do not divide" in failed.values()
