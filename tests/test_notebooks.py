"""Every notebook runs from top to bottom, and is committed with what it printed."""

import os
import time
from pathlib import Path

import pytest

from .conftest import X64

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 240
"""Seconds: four times what a notebook may take on two idle cores."""

pytestmark = pytest.mark.notebook


def read(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert {"00_quickstart", "01_sns_sinkhorn"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_outputs(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "execute the notebook before committing it"
    assert any(cell.outputs for cell in cells)
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert "assert" in cells[-1].source, "the last cell asserts what the notebook claims"


@pytest.mark.skipif(not X64, reason="notebooks choose their precision themselves: one run is enough")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
    nbclient = pytest.importorskip("nbclient")
    notebook = read(path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_ENABLE")}
    environment |= {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    start = time.monotonic()
    client.execute(env=environment)
    assert time.monotonic() - start < LIMIT
