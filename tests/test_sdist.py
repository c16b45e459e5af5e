"""The source distribution holds all that is needed to build the package, and what it builds works."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import gspattern as gs

ROOT = Path(__file__).parents[1]

USE = """
import importlib.metadata
import numpy as np
import gspattern as gs

weights = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
selection = gs.choose_mask(np.abs(weights), "gs(16,16)", sparsity=0.5)
matrix = gs.encode(weights * selection.mask, "gs(16,16)", mask=selection.mask)
x = np.arange(96, dtype=np.float32)
error = np.abs(matrix @ x - (weights * selection.mask).astype(np.float64) @ x)
assert error.max() < 0.05, error.max()
print(gs.__file__)
print(gs.backends())
print(gs.__version__ == importlib.metadata.version("gspattern"))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_sdist_builds_and_works(tmp_path: Path) -> None:
    python = sys.executable
    run(python, "-m", "build", "-q", "--sdist", "--no-isolation", "-o", tmp_path, cwd=ROOT)
    archive = tmp_path / f"gspattern-{gs.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    tracked = [
        *ROOT.glob("csrc/**/*.[ch]"),
        *ROOT.glob("csrc/**/*.inc"),
        *ROOT.glob("csrc/**/*.mk"),
    ]
    tracked += [*ROOT.glob("gspattern/**/*.py"), *ROOT.glob("gspattern/*.pyi")]
    tracked += ROOT.glob("gspattern/bench/models/*.txt")
    tracked += [ROOT / name for name in ("LICENSE", "README.md", "gspattern/py.typed", "Makefile")]
    missing = {str(path.relative_to(ROOT)) for path in tracked} - held
    assert not missing
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]

    # Dependencies and build tools are those of this environment: nothing is fetched.
    site, pip = tmp_path / "site", [python, "-m", "pip", "install", "-q", "--no-deps"]
    run(*pip, "--no-build-isolation", "--target", site, archive, cwd=tmp_path)
    said = run(python, "-W", "error", "-c", USE, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()
    assert Path(said[0]).is_relative_to(site)
    # No instruction set was lost on the way.
    here = run(python, "-c", "import gspattern as gs; print(gs.backends())", cwd=ROOT)
    assert said[1:] == [here.strip(), "True"]
