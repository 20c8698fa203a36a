"""docs/quickstart.ipynb runs from its first cell to its last, and is stored without outputs."""

import nbformat
import pytest

from tests.docs import workspace

NOTEBOOK = workspace.ROOT / "docs" / "quickstart.ipynb"


def test_the_notebook_has_no_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
def test_the_notebook_runs_and_its_model_learns_the_captions(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name, value in workspace.environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown, captions = printed(notebook.cells[1]), printed(notebook.cells[6])
    assert captions == shown


def printed(cell) -> str:
    return "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
