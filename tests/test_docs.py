"""The recipes of docs/TRAINING.md, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("sklearn", reason="the digits come from scikit-learn")

from torch import nn  # noqa: E402

import gspattern as gs  # noqa: E402

ROOT = Path(__file__).parents[1]


def recipes():
    """The Python blocks of the page, by the comment in their first line."""
    text = (ROOT / "docs" / "TRAINING.md").read_text("utf-8")
    blocks = re.findall(r"```python\n# (.+?)\n(.+?)```", text, re.DOTALL)
    return dict(blocks)


def test_every_recipe_is_short_and_tested():
    assert list(recipes()) == [
        *("setup", "one-shot", "gradual", "admm", "global budget", "ddp", "after training")
    ]
    assert all(len(code.splitlines()) <= 10 for name, code in recipes().items() if name != "setup")


@pytest.mark.parametrize(
    ("recipe", "sparsity", "least"),
    [
        ("one-shot", 0.8, 0.85),
        ("after training", 0.8, 0.85),
        ("gradual", 0.9, 0.85),
        ("admm", 0.9, 0.85),
        ("global budget", 0.9, 0.8),
    ],
)
def test_recipes(recipe, sparsity, least, capsys):
    variables = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = recipes()["one-shot"] if recipe == "after training" else ""
        exec(recipes()["setup"] + before + recipes()[recipe], variables)
    finally:
        torch.set_num_threads(threads)
    model, pruner = variables["model"], variables["pruner"]
    assert capsys.readouterr().out
    assert pruner.report().sparsity == pytest.approx(sparsity, abs=0.005)
    for name, mask in pruner.masks.items():
        assert gs.check(mask.numpy(), "gs(8,8)")
        assert torch.count_nonzero(model.get_parameter(name)[~mask]) == 0
    assert variables["accuracy"](model) > least
    if recipe == "after training":
        assert variables["program"].module()(variables["x"][:1]).shape == (1, 10)
        assert variables["accuracy"](variables["fast"]) > least
    if recipe == "one-shot":
        assert variables["accuracy"](variables["fast"]) == variables["accuracy"](model)


def test_recipe_for_several_processes(tmp_path):
    script = tmp_path / "train.py"
    # Threads of torch that are still there at the end may abort the process, all work done.
    leave = "\nimport os\nos._exit(0)\n"
    script.write_text(recipes()["setup"] + recipes()["ddp"] + leave, "utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    state = torch.load(tmp_path / "checkpoint.pt")
    assert state["pruner"]["steps"] == 150
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    model.load_state_dict(state["model"])
    for index in (0, 2):
        assert 0.9 <= (model[index].weight == 0).double().mean() < 0.91
