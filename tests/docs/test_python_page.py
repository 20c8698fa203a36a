"""The programs of docs/python.md run as they are printed, one after the other, and do what the page says."""

import re

import pytest

from tests.docs import workspace

PAGE = (workspace.ROOT / "docs" / "python.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_a_loop_of_ones_own_has_at_most_30_lines():
    use, loop, train = PROGRAMS
    assert "vadapter.load(" in use and "vadapter.train(" in train
    assert len([line for line in loop.splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_the_programs_run_in_the_order_of_the_page(tmp_path):
    workspace.make(tmp_path)
    out = workspace.run("\n".join(PROGRAMS), tmp_path)
    losses = [float(loss) for loss in re.findall(r"^(?:10|20) ([\d.]+)$", out, re.MULTILINE)]
    assert len(losses) == 2 and losses[-1] < losses[0]
    assert (tmp_path / "bundles" / "mine" / "adapter.safetensors").is_file()
    assert (tmp_path / "runs" / "perceiver" / "model.json").is_file()
    assert "step 10/10" in out
