"""The report: what it says, that it loads nothing and escapes everything, and the format of results.json."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from vadapter.base import pictures
from vadapter.base.errors import UserError
from vadapter.reports import chart as report_chart
from vadapter.reports import summary as report_summary
from vadapter.reports.picture import write_picture
from vadapter.reports.report import (
    ArmReport,
    PredictionRow,
    Report,
    compare,
    examples,
    results_json,
    steps_to_baseline,
    write_report,
)

EVIL = "<script src='http://evil.example/x.js'></script>&\"'"
IMAGE = pictures.data_uri(np.full((8, 8, 3), 200, np.uint8))
VIDEO = pictures.data_uri(np.arange(3, dtype=np.uint8).repeat(192).reshape(3, 8, 8, 3))


def make_report(text="plain", **fields):
    def rows(right):
        return [
            PredictionRow("1", "a red square" if right else text, ("a red square", text), None, float(right), IMAGE),
            PredictionRow("2", text, ("2",), f"how many {text}?", 0.6, VIDEO),
            PredictionRow("3", "blue", ("blue",), None, 1.0, None),
        ]

    arms = [
        ArmReport(
            "perceiver", text, 218_000, 20, 61.0, [(0, 4.0), (10, 1.0), (20, 0.7)], cider=28.0, exact_match=0.04,
            vqa_accuracy=0.61, reliance={"right": 0.7, "shuffled": 1.8, "blank": 1.5}, predictions=rows(False),
        ),
        ArmReport(
            "queries", "", 15_600, 20, 60.5, [(0, 4.1), (10, 0.65), (20, 0.4)], cider=80.0, exact_match=0.41,
            vqa_accuracy=0.68, reliance={"right": 0.4, "shuffled": 0.41, "blank": 0.4}, predictions=rows(True),
            config_text=text,
        ),
        ArmReport("paper", curve=[(0, 4.0), (20, 0.9)], cider=float("nan")),
    ]  # fmt: skip
    settings = {"baseline": "perceiver", "config_text": text, "seed": 0, "environment": {text: text}, "notes": [text]}
    return Report(f"Demo {text}", compare(arms, "perceiver"), **(settings | fields))


class Page(HTMLParser):
    """Collects tags, the addresses they load, and the visible text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href", "data", "action", "poster")]

    def handle_data(self, data):
        self.text += data


def test_steps_to_baseline():
    curve = [(0, 3.0), (10, 0.7), (20, 0.8), (30, 0.6)]
    assert steps_to_baseline(curve, 0.7) == 10
    assert steps_to_baseline(curve, 0.65) == 30
    assert steps_to_baseline(curve, 0.5) is None
    assert steps_to_baseline(curve, None) is None
    assert steps_to_baseline([], 1.0) is None


def test_results_json():
    report = make_report()
    results = results_json(report)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(results["arms"]) == ["perceiver", "queries", "paper"]
    assert results["arms"]["queries"] == {
        "trainable_params": 15_600,
        "steps": 20,
        "val_loss": 0.4,
        "curve": [[0, 4.1], [10, 0.65], [20, 0.4]],
        "cider": 80.0,
        "exact_match": 0.41,
        "vqa_accuracy": 0.68,
        "steps_to_baseline": 10,
        "seconds": 60.5,
    }
    assert results["arms"]["perceiver"]["steps_to_baseline"] == 20
    assert results["arms"]["paper"]["steps_to_baseline"] is None
    assert results["arms"]["paper"]["cider"] is None
    assert results["seed"] == 0 and results["configuration"] == "plain"


def test_page_loads_nothing_from_elsewhere(tmp_path):
    write_report(make_report(EVIL), tmp_path / "new" / "report.html")
    page = Page(tmp_path / "new" / "report.html")
    assert page.loads and all(load.startswith("data:image/") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "new" / "report.html").read_text(), re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_all_text_is_escaped(tmp_path):
    write_report(make_report(EVIL), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script" in html


def test_page_shows_figures_examples_and_configuration(tmp_path):
    write_report(make_report("xyz"), tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    for expected in (
        "218k",
        "15.6k",
        "1 min 01 s",
        "0.400",
        "80.0",
        "41.0%",
        "68.0%",
        "+1.10",
        "how many xyz?",
        "0.60",
    ):
        assert expected in page.text, expected
    assert page.tags.count("img") == 2 and page.tags.count("svg") == 2
    assert "right" in page.text and "wrong" in page.text
    assert page.tags.count("pre") == 2


def test_page_of_a_run_that_has_nothing_but_a_loss(tmp_path):
    write_report(Report("One", [ArmReport("run", val_loss=1.25)]), tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "1.250" in page.text and "CIDEr" not in page.text and "svg" not in page.tags


def test_summary_says_what_the_figures_say():
    text = report_summary.paragraph(make_report())
    assert "queries ends with the lowest validation loss, 0.400, with 15.6k trained parameters" in text
    assert "queries is at or below that loss after 10 steps, 2.0 times fewer than the baseline's 20" in text
    assert "paper does not reach it" in text
    assert "queries hardly uses the image" in text
    assert "seed 0" in text


def test_summary_admits_that_no_arm_reaches_the_baseline():
    arms = [ArmReport("base", curve=[(10, 0.5)], steps=10), ArmReport("new", curve=[(10, 0.9)], steps=10)]
    text = report_summary.paragraph(Report("t", compare(arms, "base"), "base"))
    assert "base ends with the lowest validation loss" in text
    assert "new does not reach it" in text and "fewer" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (999, "999"), (15_600, "15.6k"), (999_900, "1M"), (108e6, "108M"), (1.6e9, "1.6B")],
)
def test_count(value, expected):
    assert report_summary.count(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(59.6, "1 min 00 s"), (5, "5 s"), (7380, "2 h 03 min")])
def test_duration(value, expected):
    assert report_summary.duration(value) == expected


def test_a_report_refuses_names_that_do_not_fit():
    arm = ArmReport("a")
    with pytest.raises(UserError, match="at least one run"):
        Report("t", [])
    with pytest.raises(UserError, match="must differ"):
        Report("t", [arm, arm])
    with pytest.raises(UserError, match="baseline must be one of"):
        Report("t", [arm], baseline="b")


def test_examples_are_the_first_of_each_kind_in_turn():
    rows = [PredictionRow(str(i), "p", ("r",), "q?" if i > 3 else None, 0.0, IMAGE) for i in range(8)]
    chosen = examples(Report("t", [ArmReport("a", predictions=rows)]), 4)
    assert [e.row.id for e in chosen] == ["0", "4", "1", "5"]


def test_an_example_keeps_a_place_for_an_arm_without_a_prediction():
    row = PredictionRow("1", "p", ("r",), None, 1.0, IMAGE)
    (example,) = examples(Report("t", [ArmReport("a", predictions=[row]), ArmReport("b")]), 4)
    assert example.predictions == [("a", row), ("b", None)]


def svg(content, width=900, height=400):
    return ET.fromstring(f'<svg viewBox="0 0 {width} {height}">{content}</svg>')


def test_chart_draws_in_range_and_skips_what_a_log_axis_cannot_show():
    series = [
        report_chart.Series("a<b", [(0, 5.0), (10, float("nan")), (20, 0.0), (30, 0.5)], 0),
        report_chart.Series("empty", [], 1),
    ]
    drawn = svg(report_chart.line_chart(series, 900, 400, target=("final", 0.6), crossings={"a<b": 30}))
    (line,) = drawn.iter("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    assert len(points) == 2
    assert all(0 <= x <= 900 and 0 <= y <= 400 for x, y in points)
    assert points[0][1] < points[1][1]  # a higher loss is higher up
    assert "a<b" in "".join(drawn.itertext()) and "final" in "".join(drawn.itertext())


def test_chart_labels_do_not_overlap():
    series = [report_chart.Series(f"arm{i}", [(0, 4.0), (100, 0.5 + 1e-4 * i)], i) for i in range(6)]
    drawn = svg(report_chart.line_chart(series, 900, 400))
    heights = sorted(float(t.get("y")) for t in drawn.iter("text") if t.get("class") == "name")
    assert len(heights) == 6 and min(np.diff(heights)) >= 12


def test_chart_of_nothing_is_empty():
    assert report_chart.line_chart([], 900, 400) == ""
    assert "polyline" in report_chart.line_chart([report_chart.Series("a", [(0, 1.0)], 0)], 900, 400)


@pytest.mark.parametrize(("low", "high"), [(0.3, 5.0), (0.361, 0.365), (1e-3, 1e4), (2.2, 2.9)])
def test_log_ticks_are_few_and_in_range(low, high):
    ticks = report_chart.log_ticks(low, high, 8)
    assert 0 < len(ticks) <= 10 and all(low <= t <= high for t in ticks) and ticks == sorted(ticks)


def test_picture_is_one_well_formed_svg(tmp_path):
    write_picture(make_report(EVIL), tmp_path / "p" / "picture.svg")
    drawn = ET.parse(tmp_path / "p" / "picture.svg").getroot()
    names = [e.tag.rpartition("}")[2] for e in drawn.iter()]
    assert names.count("image") == 2 and names.count("polyline") == 3 and "script" not in names
    assert all(e.get("href").startswith("data:image/png") for e in drawn.iter() if e.tag.endswith("}image"))


def test_an_arm_by_any_name_is_escaped(tmp_path):
    arm = dataclasses.replace(make_report().arms[1], name=EVIL)
    report = Report("t", [arm, ArmReport("b", curve=[(0, 1.0)])])
    write_report(report, tmp_path / "report.html")
    write_picture(report, tmp_path / "picture.svg")
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "<script" not in (tmp_path / "picture.svg").read_text()
