"""The report: what it says, that it loads nothing and escapes everything, and the format of results.json."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.evaluation import own_metric  # noqa: F401  # registers its metrics
from vadapter.base import pictures
from vadapter.base.errors import UserError
from vadapter.reports import chart as charts
from vadapter.reports import comparison as comparisons
from vadapter.reports import summary as words
from vadapter.reports.comparison import gallery, results_json
from vadapter.reports.data import Comparison, Prediction, Run, compare, steps_to_baseline
from vadapter.reports.picture import write_picture

EVIL = "<script src='http://evil.example/x.js'></script>&\"'"
IMAGE = pictures.data_uri(np.full((8, 8, 3), 200, np.uint8))
VIDEO = pictures.data_uri(np.arange(3, dtype=np.uint8).repeat(192).reshape(3, 8, 8, 3))


def _scores(cider, exact_match, vqa_accuracy):
    return {"cider": cider, "exact_match": exact_match, "vqa_accuracy": vqa_accuracy}


def make_report(text="plain", **fields):
    def rows(right):
        return [
            Prediction("1", "a red square" if right else text, ("a red square", text), None, float(right), IMAGE),
            Prediction("2", text, ("2",), f"how many {text}?", 0.6, VIDEO),
            Prediction("3", "blue", ("blue",), None, 1.0, None),
        ]

    arms = [
        Run(
            "perceiver", text, 218_000, 20, 61.0, [(0, 4.0), (10, 1.0), (20, 0.7)], scores=_scores(28.0, 0.04, 0.61),
            reliance={"right": 0.7, "shuffled": 1.8, "blank": 1.5}, predictions=rows(False),
        ),
        Run(
            "queries", "", 15_600, 20, 60.5, [(0, 4.1), (10, 0.65), (20, 0.4)], scores=_scores(80.0, 0.41, 0.68),
            reliance={"right": 0.4, "shuffled": 0.41, "blank": 0.4}, predictions=rows(True),
            config_text=text,
        ),
        Run("paper", curve=[(0, 4.0), (20, 0.9)], scores={"cider": float("nan")}),
    ]  # fmt: skip
    settings = {"baseline": "perceiver", "config_text": text, "seed": 0, "environment": {text: text}}
    return Comparison(f"Demo {text}", compare(arms, "perceiver"), **(settings | fields))


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
        "goodput": None,
    }
    assert results["arms"]["perceiver"]["steps_to_baseline"] == 20
    assert results["arms"]["paper"]["steps_to_baseline"] is None
    assert results["arms"]["paper"]["cider"] is None
    assert results["seed"] == 0 and results["configuration"] == "plain"


def test_page_loads_nothing_from_elsewhere(tmp_path):
    comparisons.write(make_report(EVIL), tmp_path / "new" / "report.html")
    page = Page(tmp_path / "new" / "report.html")
    assert page.loads and all(load.startswith("data:image/") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "new" / "report.html").read_text(), re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_all_text_is_escaped(tmp_path):
    comparisons.write(make_report(EVIL), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script" in html


def test_page_shows_figures_examples_and_configuration(tmp_path):
    comparisons.write(make_report("xyz"), tmp_path / "report.html")
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


def test_page_shows_the_words_of_soft_tokens_of_every_run(tmp_path):
    plain, other = make_report().runs[:2]
    near = [[("crimson", 0.51), (EVIL, 0.4)], [("square", 0.2)]]

    def having(run, words):
        return dataclasses.replace(run, predictions=[dataclasses.replace(r, words=words) for r in run.predictions])

    runs = [having(plain, near), having(other, [[("triangle", -0.25)]])]
    comparisons.write(Comparison("Two", runs), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = Page(tmp_path / "report.html")
    for expected in ("Nearest words of each soft token", "crimson", "square", "triangle"):
        assert expected in page.text
    assert "crimson 0.51" in html and "triangle -0.25" in html and "<script" not in html
    comparisons.write(make_report(), tmp_path / "without.html")
    assert "Nearest words" not in (tmp_path / "without.html").read_text()


def test_page_of_a_run_that_has_nothing_but_a_loss(tmp_path):
    comparisons.write(Comparison("One", [Run("run", val_loss=1.25)]), tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "1.250" in page.text and "CIDEr" not in page.text and "svg" not in page.tags


def test_summary_says_what_the_figures_say():
    text = words.paragraph(make_report())
    assert "queries ends with the lowest validation loss, 0.400, with 15.6k trained parameters" in text
    assert "queries is at or below that loss after 10 steps, 2.0 times fewer than the baseline's 20" in text
    assert "paper does not reach it" in text
    assert "queries hardly uses the image" in text
    assert "seed 0" in text


def test_summary_admits_that_no_arm_reaches_the_baseline():
    arms = [Run("base", curve=[(10, 0.5)], steps=10), Run("new", curve=[(10, 0.9)], steps=10)]
    text = words.paragraph(Comparison("t", compare(arms, "base"), "base"))
    assert "base ends with the lowest validation loss" in text
    assert "new does not reach it" in text and "fewer" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (999, "999"), (15_600, "15.6k"), (999_900, "1M"), (108e6, "108M"), (1.6e9, "1.6B")],
)
def test_count(value, expected):
    assert words.count(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(59.6, "1 min 00 s"), (5, "5 s"), (7380, "2 h 03 min")])
def test_duration(value, expected):
    assert words.duration(value) == expected


def test_a_report_refuses_names_that_do_not_fit():
    arm = Run("a")
    with pytest.raises(UserError, match="at least one run"):
        Comparison("t", [])
    with pytest.raises(UserError, match="must differ"):
        Comparison("t", [arm, arm])
    with pytest.raises(UserError, match="baseline must be one of"):
        Comparison("t", [arm], baseline="b")


def test_the_gallery_has_the_first_of_each_kind_in_turn():
    rows = [Prediction(str(i), "p", ("r",), "q?" if i > 3 else None, 0.0, IMAGE) for i in range(8)]
    chosen = gallery(Comparison("t", [Run("a", predictions=rows)]), 4)
    assert [e.row.id for e in chosen] == ["0", "4", "1", "5"]


def test_a_record_in_the_gallery_keeps_a_place_for_an_arm_without_a_prediction():
    row = Prediction("1", "p", ("r",), None, 1.0, IMAGE)
    (example,) = gallery(Comparison("t", [Run("a", predictions=[row]), Run("b")]), 4)
    assert example.predictions == [("a", row), ("b", None)]


def svg(content, width=900, height=400):
    return ET.fromstring(f'<svg viewBox="0 0 {width} {height}">{content}</svg>')


def test_chart_draws_in_range_and_skips_what_a_log_axis_cannot_show():
    series = [
        charts.Series("a<b", [(0, 5.0), (10, float("nan")), (20, 0.0), (30, 0.5)], 0),
        charts.Series("empty", [], 1),
    ]
    drawn = svg(charts.line_chart(series, 900, 400, target=("final", 0.6), crossings={"a<b": 30}))
    (line,) = drawn.iter("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    assert len(points) == 2
    assert all(0 <= x <= 900 and 0 <= y <= 400 for x, y in points)
    assert points[0][1] < points[1][1]  # a higher loss is higher up
    assert "a<b" in "".join(drawn.itertext()) and "final" in "".join(drawn.itertext())


def test_chart_labels_do_not_overlap():
    series = [charts.Series(f"arm{i}", [(0, 4.0), (100, 0.5 + 1e-4 * i)], i) for i in range(6)]
    drawn = svg(charts.line_chart(series, 900, 400))
    heights = sorted(float(t.get("y")) for t in drawn.iter("text") if t.get("class") == "name")
    assert len(heights) == 6 and min(np.diff(heights)) >= 12


def test_chart_of_nothing_is_empty():
    assert charts.line_chart([], 900, 400) == ""
    assert "polyline" in charts.line_chart([charts.Series("a", [(0, 1.0)], 0)], 900, 400)


@pytest.mark.parametrize(("low", "high"), [(0.3, 5.0), (0.361, 0.365), (1e-3, 1e4), (2.2, 2.9)])
def test_log_ticks_are_few_and_in_range(low, high):
    ticks = charts.log_ticks(low, high, 8)
    assert 0 < len(ticks) <= 10 and all(low <= t <= high for t in ticks) and ticks == sorted(ticks)


def test_picture_is_one_well_formed_svg(tmp_path):
    write_picture(make_report(EVIL), tmp_path / "p" / "picture.svg")
    drawn = ET.parse(tmp_path / "p" / "picture.svg").getroot()
    names = [e.tag.rpartition("}")[2] for e in drawn.iter()]
    assert names.count("image") == 2 and names.count("polyline") == 3 and "script" not in names
    assert all(e.get("href").startswith("data:image/png") for e in drawn.iter() if e.tag.endswith("}image"))


def test_an_arm_by_any_name_is_escaped(tmp_path):
    arm = dataclasses.replace(make_report().runs[1], name=EVIL)
    report = Comparison("t", [arm, Run("b", curve=[(0, 1.0)])])
    comparisons.write(report, tmp_path / "report.html")
    write_picture(report, tmp_path / "picture.svg")
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "<script" not in (tmp_path / "picture.svg").read_text()


def test_a_metric_of_ones_own_is_a_column_and_a_figure(tmp_path):
    runs = [Run("a", scores={"own_words": 4.0, "own_distinct": 12.0}), Run("b", scores={"own_words": 3.0})]
    report = Comparison("t", runs)
    comparisons.write(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "words of a caption" in page and ">12<" in page
    assert '<td data-label="words" class="best"><span>3</span>' in page  # fewer are better
    arms = results_json(report)["arms"]
    assert arms["a"]["own_words"] == 4.0 and arms["a"]["cider"] is None and "own_distinct" not in arms["b"]
