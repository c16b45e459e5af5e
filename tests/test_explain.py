"""Explanations: sums and bounds against numbers made by hand, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich", reason="the extra `bench` is not installed")
pytest.importorskip("scipy", reason="the extra `bench` is not installed")
pytest.importorskip("threadpoolctl", reason="the extra `bench` is not installed")
pytest.importorskip("tqdm", reason="the extra `bench` is not installed")

import gspattern as gs
from gspattern.bench import fairness, make_weights
from gspattern.roofline import probe

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in fairness.CRIPPLING:
        monkeypatch.delenv(name, raising=False)


def row_of(name, count, dense, csr, compact):
    estimates = {
        key: gs.Estimate(predicted, measured, "bytes")
        for key, (predicted, measured) in {"dense": dense, "csr": csr, "compact": compact}.items()
    }
    return gs.LayerExplanation(name, (4, 4), "gs(2,2)", 0.5, 1, "float32", count, estimates, "")


def test_totals_are_sums_of_layers_times_counts():
    rows = (
        row_of("a", 3, (2.0, 4.0), (1.0, None), (8.0, 5.0)),
        row_of("b", 1, (2.0, None), (3.0, 6.0), (1.0, 0.5)),
    )
    found = gs.Explanation(rows)
    assert rows[0].contenders["dense"].error == -0.5
    assert rows[1].contenders["dense"].error is None
    assert found.total("dense") == 3 * 4 + 2
    assert found.total("csr") == 3 * 1 + 6
    assert found.total("compact") == 3 * 5 + 0.5
    assert found.total("best") == 3 * 4 + 0.5  # dense is faster in a, compact in b
    assert json.loads(found.to_json())["total"]["best"] == 12.5
    with pytest.raises(ValueError, match="must be dense, csr"):
        found.total("sparse")


def test_prediction_is_a_bound_over_a_share_of_at_most_about_one():
    weights = make_weights(512, 512)
    (row,) = gs.explain(weights, sparsity=0.9, n=64, seconds=0, clock="cpu")
    assert set(row.contenders) == {"dense", "csr", "compact"}
    assert all(each.measured is None for each in row.contenders.values())
    assert (row.shape, row.n, row.count, row.dtype) == ((512, 512), 64, 1, "float32")
    assert 0.9 <= row.sparsity < 0.91
    # A multiply-add of a register for 16 products (AVX-512) is the least that dense can take.
    least = 512 * 512 * 64 / probe().lanes * probe().fma
    assert row.contenders["dense"].predicted > 0.7 * least
    assert row.contenders["dense"].bound == "multiply-adds"
    assert row.contenders["compact"].predicted < row.contenders["dense"].predicted


def test_dense_stays_dense():
    (row,) = gs.explain(make_weights(384, 384), n=64, seconds=0.3, clock="cpu")
    assert row.sparsity == 0
    assert row.advice.startswith("stay dense: ")
    assert row.contenders["dense"].measured < row.contenders["compact"].measured


def test_files_and_matrices(tmp_path):
    weights = np.triu(make_weights(64, 48))
    matrix = gs.encode(weights, "irregular")
    gs.save_file({"m": matrix, "w": weights, "bias": weights[0]}, tmp_path / "w.safetensors")
    found = gs.explain(tmp_path / "w.safetensors", seconds=0.2, clock="cpu")
    assert [row.name for row in found] == ["m", "w"]
    assert found.rows[0].pattern == "irregular"
    assert found.rows[0].sparsity == pytest.approx((weights == 0).mean())
    assert all(each.measured > 0 for row in found for each in row.contenders.values())
    text = str(found)
    assert "m: " in text
    assert "all" in text
    assert found._repr_html_() == f"<pre>{text}</pre>"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 1.5}, "n must be an integer"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, int8"),
        ({"sparsity": 90}, r"must be in \[0, 1\), got 90"),
        ({"pattern": "gs(16"}, "pattern"),
        ({"pattern": "auto"}, "chosen by a Pruner"),
        ({"seconds": -1}, "seconds must be"),
        ({"clock": "sun"}, "the clock is"),
        ({"example_inputs": 1}, "belong to a torch model"),
    ],
)
def test_refuses(arguments, error):
    with pytest.raises((ValueError, TypeError), match=error):
        gs.explain(make_weights(8, 8), **arguments)


def test_refuses_what_has_no_layers():
    with pytest.raises(TypeError, match="explain takes a torch model"):
        gs.explain(3)
    with pytest.raises(TypeError, match="int64"):
        gs.explain(np.ones((4, 4), np.int64))
    with pytest.raises(ValueError, match="no matrix to explain"):
        gs.explain({"bias": np.ones(4, np.float32)})


def test_models():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from gspattern.torch import prune_
    from gspattern.torch.explain import works

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(8, 16, 3, padding=1)
            self.lstm = torch.nn.LSTM(16, 32, batch_first=True)
            self.out = torch.nn.Linear(32, 64)

        def forward(self, x):
            return self.out(self.lstm(self.conv(x).transpose(1, 2))[0])

    model = Net()
    x = torch.randn(2, 8, 5)
    found = {each.name: (each.n, each.count) for each in works(model, None, x)}
    # Two sequences of five steps; only the state waits for the step before.
    assert found == {
        "conv.weight": (10, 1),
        "lstm.weight_ih_l0": (10, 1),
        "lstm.weight_hh_l0": (2, 5),
        "out.weight": (10, 1),
    }
    with pytest.raises(ValueError, match="give example_inputs"):
        works(model, 4, None)
    with pytest.raises(ValueError, match="not both"):
        works(model, 4, x)
    with pytest.raises(ValueError, match="nothing to explain"):
        works(torch.nn.ReLU(), 1, None)
    linear = torch.nn.Linear(64, 64)
    prune_(linear, "gs(16,16)", 0.75, include=["*"])
    (row,) = gs.explain(linear, seconds=0)
    assert (row.pattern, row.sparsity) == ("gs(16,16)", 0.75)


def test_command_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in fairness.CRIPPLING}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "gspattern", "explain", *arguments],
            env=environment | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

    file = tmp_path / "found.json"
    done = run("--shape", "64x96", "-s", "0.9", "--seconds", "0.1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "64 x 96" in done.stdout
    assert json.loads(file.read_text())["rows"][0]["shape"] == [64, 96]
    for arguments in ((), ("--shape", "64"), ("--shape", "64x96")):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
