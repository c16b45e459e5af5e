"""The notebooks run from top to bottom, and git holds their sources alone."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are read and run by nbclient")
nbclient = pytest.importorskip("nbclient", reason="notebooks are read and run by nbclient")
for needed in ("ipykernel", "matplotlib", "rich", "sklearn", "torch"):
    pytest.importorskip(needed, reason=f"the notebooks need {needed}")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120  # of a whole notebook, on a machine that does other work as well


def read(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_notebooks_and_the_readme_names_them() -> None:
    assert NOTEBOOKS
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"notebooks/{path.name}" in text for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            stripped = not cell.outputs and cell.execution_count is None
            assert stripped, f"{path.name} has outputs: clear those of all cells before you save it"
        assert not cell.metadata


@pytest.mark.slow
# Of the libraries that start a kernel, not of ours, which runs in another process.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(path)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=where).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", ())]
    assert len(pictures) >= 4
