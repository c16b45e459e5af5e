"""The demo runs, and its table is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "sklearn", "matplotlib", "rich", "tqdm", "scipy"):
    pytest.importorskip(package, reason=f"the demo needs {package}")

import gspattern as gs  # noqa: E402

DEMO = Path(__file__).parent.parent / "examples" / "digits" / "demo.py"
PATTERNS = ["irregular", "gs(16,16)", "gs(16,1)+scatter", "gs(cpu)", "block(1,16)", "block(16,1)"]


def test_the_demo(tmp_path):
    command = [sys.executable, str(DEMO), "--quick", "--out", str(tmp_path)]
    # The program under test is the one that this process imported, installed or not.
    environment = {**os.environ, "PYTHONPATH": str(Path(gs.__file__).parent.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "of 540 predictions, at least 540 are those of torch" in done.stdout
    rows = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃|]", line)]
        if len(cells) > 4:
            rows[cells[1]] = cells[2:]
    files = {path.name: path for path in tmp_path.glob("*.safetensors")}
    assert len(files) == 7
    sizes = {f"{path.stat().st_size:,}" for path in files.values()}
    for name in ["dense, torch", *PATTERNS]:
        accuracy, nbytes = rows[name][:2]
        assert float(accuracy) > 60
        assert nbytes in sizes
    for path in files.values():
        tensors = gs.load_file(path)
        weight = tensors["fc2.weight"]
        if isinstance(weight, np.ndarray):
            continue
        assert 0 <= round(0.1 * 512 * 512) - weight.nnz < 16
        assert isinstance(tensors["fc3.weight"], np.ndarray)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
