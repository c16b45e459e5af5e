from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gspattern as gs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["numpy", "torch"])
def test_examples_run(code: str, tmp_path: Path) -> None:
    if "torch" in code:
        pytest.importorskip("torch", reason="the example is for PyTorch")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if "torch" in code:
        assert re.search(r"^with torch\.no_grad\(\):\n    y = fast\(.*\)\n\Z", code, re.MULTILINE)
    if "print" in code:
        share, error = re.fullmatch(r"(\d+)% of the bytes, error (\S+)\n", done.stdout).groups()
        assert 12 <= int(share) <= 14
        assert float(error) < 1e-4


def test_extras_exist() -> None:
    named = set(re.findall(r"pip install (?:-e )?'\.\[(\w+)\]'", README))
    assert named == {"cli", "notebooks", "torch"}
    assert named <= set(
        re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8"])
def test_limits_of_kernels(dtype: str) -> None:
    """What the README says of dtypes: which are fast, and what their plans hold."""
    limits = README.partition("## Limits")[2].partition("\n## ")[0]
    fast = limits.partition(" weights have fast kernels (AVX2, AVX-512, NEON)")[0]
    weights = gs.encode(np.tri(256, dtype=np.float32), "irregular")
    matrix = weights.quantize("int8") if dtype == "int8" else weights.astype(dtype)
    for backend in gs.backends():
        with gs.use_backend(backend):
            for n in (1, 16):
                plan = matrix.plan(n)
                quick = backend != "scalar" and dtype in re.findall(r"\w+", fast)
                assert plan.backend == (backend.removesuffix("_base") if quick else "scalar")
                assert not quick or (plan.bytes >= 4 * matrix.nnz) == (dtype != "int8")
        if dtype == "bfloat16" and backend != "scalar":
            with gs.use_backend(backend):
                assert gs.plans.plan_for(matrix, 1, matrix.dtype).bytes < 4 * matrix.nnz


def test_the_first_example_is_short() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line]) == 8


def test_targets_are_in_the_menu() -> None:
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # they would change what make prints
    menu = subprocess.run(
        ["make", "-s", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name not in inherited},
    ).stdout
    lines = [re.fullmatch(r"  (make [a-z-]+ {2,})(\S.*)", line) for line in menu.splitlines()]
    assert all(lines)
    assert len({len(line[1]) for line in lines}) == 1  # in columns
    targets = {line[1].strip() for line in lines}
    assert targets >= {f"make {name}" for name in re.findall(r"(?:    |`)make ([a-z-]+)", README)}


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), target
