"""Some changed files for each reader, and those that once failed. `python -m tests.fuzz` tries for longer."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests import hang
from tests.fuzz import targets
from tests.tiny_bundle import write_bundle

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {"checkpoint": 5}  # Orbax takes its time


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory):
    written = write_bundle(tmp_path_factory.mktemp("fuzz"))
    return targets.targets((written / "bundle.json").read_text())


@pytest.mark.parametrize("name", targets.NAMES)
def test_a_changed_file_is_read_or_refused_in_a_paragraph(all_targets, name):
    target = all_targets[name]

    options = {"max_examples": EXAMPLES.get(name, 25), "suppress_health_check": [*HealthCheck]}

    @settings(**options, deadline=None, derandomize=True, database=None)
    @given(target.inputs)
    def attempt(data):
        target(data)

    with hang.stopped(120):
        attempt()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*-*")), ids=lambda path: path.name)
def test_what_once_failed_is_read_or_refused(all_targets, path):
    with hang.stopped():
        all_targets[path.name.rpartition("-")[0].replace("_", " ")](path.read_bytes())
