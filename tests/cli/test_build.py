"""`vadapter build`, and the gin file that evaluates on what it built."""

import pytest

from tests.benchmarks import official_files
from vadapter.cli.main import main
from vadapter.recipes import experiments
from vadapter.recipes.gin_front import parse_gin, register


@pytest.fixture
def official(tmp_path):
    official_files.write("vqav2", tmp_path / "official")
    return tmp_path / "official"


def build(tmp_path, official, *more):
    return main(["build", "--dataset=vqav2", f"--manual_dir={official}", f"--data_dir={tmp_path / 'built'}", *more])


def test_build_writes_a_split_and_the_examples(tmp_path, official, capsys):
    assert build(tmp_path, official) == 0
    printed = capsys.readouterr().out
    assert "vqav2 validation: 3 rows, in" in printed and "vqav2 train: 8 questions for examples" in printed
    assert build(tmp_path, official, "--split=train", "--split=test_dev", "--no_examples") == 0
    printed = capsys.readouterr().out
    assert "train: 8 rows" in printed and "test_dev: 2 rows" in printed and "examples" not in printed


def test_mistakes_are_messages(tmp_path, official, capsys):
    assert build(tmp_path, official, "--split=val") == 2
    assert "found 'val'" in capsys.readouterr().err
    (official / "val2014" / "COCO_val2014_000000262148.jpg").unlink()
    assert build(tmp_path, official) == 2
    assert "2 rows cannot be used" in capsys.readouterr().err
    assert build(tmp_path, official, "--max_bad_share=0.7") == 0
    assert "validation: 1 rows, 2 left out" in capsys.readouterr().out


def test_the_gin_file_of_benchmarks_follows_a_run(tmp_path, official):
    from vadapter.benchmarks import table, tasks
    from vadapter.data.order.loader import Loader
    from vadapter.data.rows.sizes import Sizes

    experiments.register()
    register([tasks.benchmark_task, table.benchmark_split])
    bindings = ["MODEL_DIR='run'", "BENCHMARK='vqav2'", f"DATA_DIR='{tmp_path / 'built'}'", f"MANUAL_DIR='{official}'"]
    parse_gin(["experiments/scenes_tiny.gin", "data/benchmarks.gin"], [*bindings, "SHOTS=2", "EVAL_LIMIT=2"])
    (evaluation,) = experiments.made().evaluations
    assert (evaluation.name, evaluation.kind, evaluation.data.split) == ("vqav2", "generation", "validation")
    _, rows = next(Loader(evaluation.data, Sizes(16, 1, 3)).eval_batches(for_decoding=True))
    assert [row["id"] for row in rows if row["valid"]] == ["262148000", "262148001"]
    assert rows[0]["prompt"].count("Given Question") == 2
