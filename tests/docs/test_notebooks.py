"""The notebooks run from top to bottom, and are committed with their outputs."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = ("antialias_your_own",)  # trains two models
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Paths on somebody's machine: "/home/...", "C:\\...", but not "and/or" or "https://...".
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:\w[\w.-]*/)+\w|\b[A-Z]:\\\\")


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@by_name
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert any("image/png" in o.get("data", {}) for c in cells for o in c["outputs"])
    assert [o for c in cells for o in c["outputs"] if o.get("name") == "stderr"] == []


@by_name
def test_no_path_of_a_machine_is_in_it(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    assert ABSOLUTE.findall(json.dumps(notebook)) == []


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())
        for path in NOTEBOOKS
    ],
)
def test_it_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # one epoch suffices to run; the outputs are of full training
        cell.source = re.sub(r"(epochs(?:: int)? ?= ?)\d+", r"\g<1>1", cell.source)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
