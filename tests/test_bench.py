"""The benchmark: its arithmetic against numbers made by hand, what it refuses, and one quick run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rich", reason="the extra `bench` is not installed")
pytest.importorskip("threadpoolctl", reason="the extra `bench` is not installed")
pytest.importorskip("tqdm", reason="the extra `bench` is not installed")

import gspattern as gs
from gspattern import _core, bench, roofline
from gspattern.bench import conv_bench, fairness, layers, suites, summary, timing
from gspattern.bench.shapes import ConvShape, LinearShape, LSTMShape, read_shapes

ROOT = Path(__file__).parent.parent
CLEAN = {name: value for name, value in os.environ.items() if name not in fairness.CRIPPLING}
CACHES = {"L1d": 48 << 10, "L2": 1 << 20, "L3": 32 << 20}


def gspattern_bench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gspattern", "bench", *map(str, arguments)],
        env=CLEAN | {"MPLBACKEND": "Agg"} | environment,
        capture_output=True,
        text=True,
    )


# ---------------------------------------------------------------- one run


def test_a_quick_run(tmp_path):
    pytest.importorskip("scipy", reason="the extra `bench` is not installed")
    pytest.importorskip("typer", reason="the extra `cli` is not installed")
    target = tmp_path / "report.json"
    done = gspattern_bench(
        "--quick", "--peers", "numpy", "--peers", "scipy", "--patterns", "gs(cpu)", "--patterns", "2:4",
        "--patterns", "block(1,96)", "--patterns", "gs(193,1)", "--n", 1, "--n", 3, "--json", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text("utf-8"))
    assert report["version"] == 1
    assert report["command"].startswith("python -m gspattern bench --quick --peers numpy")
    assert report["machine"]["name"] == gs.cpu_info().name
    assert report["versions"]["numpy"] == np.__version__
    assert report["peers"] == {"numpy": "NumPy", "scipy": "SciPy CSR"}
    assert report["missing"] == {}
    assert list(report["unfit"]) == ["gs(193,1), 256x192, 0.9"]
    assert "192" in report["unfit"]["gs(193,1), 256x192, 0.9"]
    assert set(report["probes"]) == set(gs.backends())
    assert report["overhead"]["linear_us"] > 0
    assert 0 <= report["busy"] < 1
    lines = {(line["name"], line["n"], line["layout"]): line for line in report["results"]}
    both = [("NumPy", 3), ("gs(cpu)", 3), ("2:4", 3), ("block(1,96)", 3)]
    assert set(lines) == {
        *((name, 1, "columns") for name in ("NumPy", "SciPy CSR", "gs(cpu)", "2:4", "block(1,96)")),
        ("SciPy CSR", 3, "columns"),
        *((name, n, layout) for name, n in both for layout in ("columns", "rows")),
    }
    for (name, n, _), line in lines.items():
        assert 0 < line["best_us"] <= line["median_us"]
        assert line["error_eps"] < 20
        assert line["gmacs"] == pytest.approx(line["kept"] * n / line["best_us"] / 1e3)
        if name == "NumPy":
            assert line["kept"] == 256 * 192
            assert line["bytes"] == 4 * 256 * 192
        if name == "2:4":
            assert line["kept"] == 256 * 192 / 2
            assert line["kernel"].startswith("gsp_f32_")
            assert line["share"] == pytest.approx(line["bound_us"] / line["best_us"])
    assert bench.summarise(report["results"], report["machine"]["caches"]) == {
        key: report[key] for key in ("ratios", "summary", "scaling")
    }
    for line in report["summary"]:
        assert line["name"] in done.stdout


def test_the_command_line_refuses_a_crippled_baseline():
    pytest.importorskip("typer", reason="the extra `cli` is not installed")
    done = gspattern_bench("--quick", OPENBLAS_CORETYPE="Haswell")
    assert done.returncode == 2
    assert "OPENBLAS_CORETYPE=Haswell would make" in done.stderr
    assert "env -u OPENBLAS_CORETYPE python -m gspattern bench" in done.stderr


# ---------------------------------------------------------------- refusals


@pytest.mark.slow
def test_every_suite_runs(tmp_path):
    """With all libraries that are installed, and in pictures."""
    pytest.importorskip("torch", reason="the extra `torch`, which has all operations, is missing")
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    pytest.importorskip("typer", reason="the extra `cli` is not installed")
    target = tmp_path / "report.json"
    done = gspattern_bench(
        "--quick", "--suite", "kernels", "-p", "gs(cpu)", "--json", target, "--plot", tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text("utf-8"))
    assert not report["interrupted"]
    lines = [line for line in report["results"] if line["name"] == "gs(cpu)"]
    assert {line["suite"] for line in lines} == set(suites.SUITES)
    for line in lines:
        suite = suites.SUITES[line["suite"]]
        assert (line["operation"], line["dtype"]) == (suite.operation, suite.dtype)
        assert 0 < line["share"]
        assert ("error_float32" in line) == (suite.dtype != "float32")
    assert {line["suite"] for line in report["summary"] if line["goal"]} == set(suites.SUITES) - {
        "lstm"
    }
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{kind}-{suite}.png" for kind in ("speedups", "roofline") for suite in suites.SUITES
    }


def small_run(tmp_path, **changes):
    settings = suites.Settings(
        suites=("linear", "lstm"), patterns=("gs(4,4)",), peers=("numpy",), rounds=1, quick=True,
        columns=(1, 2), sparsities=(0.5,),
    )  # fmt: skip
    return replace(settings, **changes)


def test_a_run_goes_on(tmp_path, monkeypatch):
    """Ctrl-C in the last case: what is done is reported, and not run again."""
    for name in fairness.CRIPPLING:
        monkeypatch.delenv(name, raising=False)
    settings, seen, saved = small_run(tmp_path), [], []

    def stop(case):
        seen.append((case[0]["suite"], case[0]["n"]))
        if len(seen) == 3:
            raise KeyboardInterrupt

    report = bench.run(settings, each=stop, save=saved.append)
    assert seen == [("linear", 1), ("linear", 2), ("lstm", 1)]
    assert report["interrupted"]
    assert len(saved) == 1
    assert {line["suite"] for line in report["results"]} == {"linear"}
    seen.clear()
    before = json.loads(json.dumps(report))
    whole = bench.run(settings, each=lambda case: seen.append(case[0]["suite"]), before=before)
    assert seen == ["lstm"] * 2
    assert not whole["interrupted"]
    assert whole["results"][: len(report["results"])] == report["results"]
    assert {(line["suite"], line["n"]) for line in whole["summary"]} == {
        (suite, n) for suite in ("linear", "lstm") for n in (1, 2)
    }
    with pytest.raises(
        bench.BenchError, match="of another machine, or was made with another clock"
    ):
        bench.run(replace(settings, rounds=2), before=before)
    before["versions"]["numpy"] = "1.0"
    with pytest.raises(bench.BenchError, match=r"has numpy 1\.0, here is"):
        bench.run(replace(settings, columns=(3,)), before=before)


def test_suites_and_peers_are_known():
    assert list(suites.suites_of(["conv", "lstm"])) == ["resnet50", "jasper", "lstm"]
    assert set(suites.suites_of(["kernels"])) == set(suites.SUITES)
    with pytest.raises(bench.BenchError, match="sets of them conv, kernels; there is no 'fft'"):
        suites.suites_of(["fft"])
    with pytest.raises(bench.BenchError, match=r"peers are torch, .*; there is no 'numpyy'"):
        bench.run(suites.Settings(peers=("numpyy",)))


@pytest.mark.parametrize("name", ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ONEDNN_MAX_CPU_ISA"])
def test_settings_that_cripple_others_are_refused(name):
    fairness.check_environment({"PATH": "/bin"}, [1], 1)
    with pytest.raises(bench.BenchError, match=f"{name}=512 would make .* run `env -u {name} "):
        fairness.check_environment({name: "512"}, [1], 1)


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_are_limited_by_cores(threads):
    with pytest.raises(bench.BenchError, match=f"from 1 to 2, .* got {threads}"):
        fairness.check_environment({}, [1, threads], 2)


def test_unequal_threads_are_refused():
    pools = [
        {"prefix": "libgomp", "num_threads": 2, "internal_api": "openmp"},
        {"prefix": "libopenblas", "num_threads": 1, "internal_api": "openblas"},
    ]
    fairness.check_pools(pools[:1], 2)
    with pytest.raises(bench.BenchError, match="libopenblas uses 1, the others 2; unset OPENBLAS_"):
        fairness.check_pools(pools, 2)


def test_threads_are_given_back():
    with fairness.same_threads(1):
        assert gs.get_num_threads() == 1
    before = gs.get_num_threads()
    gs.set_num_threads(2)
    try:
        with fairness.same_threads(1):
            assert gs.get_num_threads() == 1
        assert gs.get_num_threads() == 2
    finally:
        gs.set_num_threads(before)


# ------------------------------------------------------------------ shapes


def test_shapes(tmp_path):
    file = tmp_path / "shapes.txt"
    file.write_text(
        "# rows cols n name\n\n 64 32 - a layer  # twice\n1000 2048 1 fc\n"
        "conv2d 8 16 3x5 2 1 9x12 a plane\nconv1d 8 16 11 1 2 30 wide\nlstm 32 64 7 - a sentence\n"
    )
    linear = [LinearShape("a layer", 64, 32), LinearShape("fc", 1000, 2048, 1)]
    convolutions = [
        ConvShape("a plane", 8, 16, (3, 5), 2, 1, (9, 12)),
        ConvShape("wide", 8, 16, (11,), 1, 2, (30,)),
    ]
    lstm = [LSTMShape("a sentence", 32, 64, 7)]
    assert read_shapes(str(file)) == [*linear, *convolutions, *lstm]
    assert read_shapes(str(file), "linear") == linear
    assert read_shapes(str(file), "conv") == convolutions
    assert read_shapes(str(file), "lstm") == lstm
    assert read_shapes("16x48") == [LinearShape("16x48", 16, 48)]
    assert read_shapes("lstm 32 64 7 - a sentence") == lstm
    for text in ("16", "16x", "axb", "no-such-file.txt"):
        with pytest.raises(bench.BenchError, match="one of gnmt, jasper, resnet50, a file of shap"):
            read_shapes(text)
    with pytest.raises(bench.BenchError, match="16x48 has no shape for conv"):
        read_shapes("16x48", "conv")
    for text in ("0x4", "conv1d 8 16 11 1 1 0 a", "conv1d 0 16 11 1 1 9 a", "lstm 0 4 1 1 a"):
        with pytest.raises(bench.BenchError, match="must be positive"):
            read_shapes(text)
    file.write_text("64 32 - a\n64 32 b\n")
    with pytest.raises(bench.BenchError, match=r"line 2: expected `rows cols n name`"):
        read_shapes(str(file))
    for text in ("conv2d 8 16 3 1 1 9x9 a", "conv2d 8 16 3x3 1 1 9 a", "conv1d 8 16 11 1 2 a"):
        with pytest.raises(bench.BenchError, match=f"expected `{text[:6]} inputs outputs kernel "):
            read_shapes(text)


def test_sizes_of_shapes():
    plane = ConvShape("a plane", 8, 16, (3, 5), 2, 1, (9, 12))
    assert (plane.rows, plane.cols, plane.padding) == (16, 120, (1, 2))
    assert (plane.out_length, plane.uses) == ((5, 6), 30)
    assert plane.size == "8->16 3x5/2 @ 9x12"
    wide = ConvShape("wide", 8, 16, (11,), 1, 2, (30,))
    assert (wide.padding, wide.out_length, wide.size) == ((10,), (30,), "8->16 11 dilation 2 @ 30")
    lstm = LSTMShape("a sentence", 32, 64, 7)
    assert (lstm.rows, lstm.cols, lstm.uses, lstm.size) == (256, 96, 7, "32->64, 7 step(s)")


def test_shapes_of_the_models():
    """Against the published sizes of the models."""
    gnmt = read_shapes("gnmt", "linear")
    assert tuple(shape.size for shape in gnmt) == suites.MATRICES
    assert [(s.steps, s.n) for s in read_shapes("gnmt", "lstm")] == [(1, 1), (30, 1), (30, 32)]
    resnet = read_shapes("resnet50")
    work = sum(s.rows * s.cols * s.uses * _count(s.name) for s in resnet)
    assert sum(_count(s.name) for s in resnet) == 53
    assert work == pytest.approx(4.089e9 - 0.118e9, rel=1e-3)  # all but conv1
    jasper = read_shapes("jasper")
    weights = sum(s.rows * s.cols * _count(s.name) for s in jasper)
    assert sum(_count(s.name) for s in jasper) == 53 + 55
    assert weights == pytest.approx(333e6, rel=5e-3)


def _count(name):
    return int(name.rpartition("(")[2].rstrip(")")) if name.endswith(")") else 1


# ------------------------------------------------------------------- peers


class Ghost:
    title = "Ghost"
    sparse = False

    def __init__(self, threads, dtype):
        import no_such_module  # noqa: F401


def test_missing_peers_are_listed():
    table = {"ghost": (Ghost, ("ghost-package",))} | dict(layers_of("linear").peers)
    found, versions, missing = layers.load_peers(table, ["ghost", "numpy", "other"], 1, "float32")
    assert list(found) == ["numpy"]
    assert versions == {"numpy": np.__version__}
    assert list(missing) == ["ghost"]
    assert "no_such_module" in missing["ghost"]
    assert "pip install ghost-package" in missing["ghost"]
    found, _, missing = layers.load_peers(table, ["numpy"], 1, "int8")
    assert (found, missing) == ({}, {"numpy": "NumPy has no product by BLAS in int8"})


def layers_of(operation):
    return suites.LAYERS[operation]


SMALL = {
    "linear": LinearShape("small", 40, 33),
    "conv2d": ConvShape("plane", 9, 20, (3, 3), 2, 1, (8, 11)),
    "1x1": ConvShape("1x1", 16, 20, (1, 1), 1, 1, (5, 6)),
    "conv1d": ConvShape("sequence", 9, 20, (5,), 1, 2, (19,)),
    "lstm": LSTMShape("lstm", 17, 24, 3),
}


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("dtype", layers.DTYPES)
@pytest.mark.parametrize("n", [1, 3, 17])
def test_peers_compute_the_same(shape, dtype, n):
    """As do our own products; each is held to what the weights give in float64."""
    kind = layers_of(shape.operation)
    layer = kind(shape, dtype, 0.75, ["irregular"], {})
    x = layer.inputs(n)
    found, _, _ = layers.load_peers(kind.peers, list(kind.peers), 1, dtype)
    contenders = layer.contenders(x, n, found, {})
    assert contenders[-1].name == "irregular"
    assert {each.name for each in contenders} == {"irregular", *(p.title for p in found.values())}
    for each, checked in zip(contenders, layers.check(layer, contenders, x), strict=True):
        dense = each.kind == "dense"
        total = sum(weights.size for weights in layer.full("dense"))
        assert (checked["kept"] == total) if dense else (checked["kept"] < 0.26 * total)
        assert (
            each.product.result(each.product.call()).shape
            == layer.exact(each.weights, x, dtype)[0].shape
        )
        if dtype != "float32":
            assert 0 < checked["error_float32"] < 0.02


def test_exact_convolutions():
    """Against the sum over all taps, written out."""
    shape = ConvShape("plane", 3, 4, (3, 2), 2, 2, (7, 8))
    layer = conv_bench.ConvLayer(shape, "float32", 0.5, [], {})
    x, weights = layer.inputs(2), layer.weights("dense").astype(np.float64)
    y, scale = layer.exact("dense", x, "float32")
    assert y.shape == scale.shape == (2, 4, *shape.out_length)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in shape.padding)])
    expected = np.zeros(y.shape)
    for i, j in np.ndindex(*shape.out_length):
        for a, b in np.ndindex(*shape.kernel):
            pixel = padded[:, :, 2 * i + 2 * a, 2 * j + 2 * b]
            expected[:, :, i, j] += pixel @ weights[:, :, a, b].T
    assert np.abs(y - expected).max() < 1e-12
    assert (np.abs(y) <= scale * (1 + 1e-6)).all()


def test_an_exact_lstm():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    layer = layers_of("lstm")(SMALL["lstm"], "float32", 0.5, [], {})
    x, weights = layer.inputs(2), layer.weights("dense")
    y, scale = layer.exact("dense", x, "float32")
    module = torch.nn.LSTM(17, 24, dtype=torch.float64).requires_grad_(False)
    values = (*weights, np.zeros_like(weights.bias))
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.copy_(torch.from_numpy(value))
    sequence, h, c = (torch.from_numpy(each).double() for each in x)
    expected = module(sequence, (h[None], c[None]))[0].numpy()
    assert y.shape == scale.shape == expected.shape
    assert np.abs(y - expected).max() < 1e-12
    assert scale.min() > 1


def test_weights_are_stored_as_matrices_store_them():
    weights = layers.make_weights(20, 33)
    weights[3] = 0
    for dtype in ("bfloat16", "int8"):
        matrix = layers.prune(weights, "irregular", 0, dtype)
        same = matrix.astype(np.float32).to_dense()
        assert np.abs(layers.stored(weights, dtype) - same).max() <= 1e-6 * np.abs(weights).max()
    assert layers.stored(weights, "float32") is weights


# ----------------------------------------------------------------- measure


def test_alternate_takes_turns():
    order = []

    def call(name):
        order.append(name)
        time.sleep(2 * timing.BATCH)

    times = timing.alternate({name: partial(call, name) for name in "ab"}, rounds=2, turn=0)
    assert order == ["a", "a", "b", "b"] * 2  # one call that does not count, one that does
    assert [len(times[name]) for name in "ab"] == [2, 2]
    assert all(2 * timing.BATCH <= each < 1 for each in times["a"])


def test_alternate_runs_three_rounds_at_least():
    shares = []
    work = partial(time.sleep, timing.BATCH)
    times = timing.alternate({"a": work}, 9, seconds=1e-9, turn=0, progress=shares.append)
    assert len(times["a"]) == timing.LEAST_ROUNDS
    assert shares[-1] == 1


def test_the_cpu_clock_counts_work_only():
    times = timing.alternate(
        {"a": partial(time.sleep, 0.02)}, 3, turn=0, clock=timing.CLOCKS["cpu"]
    )
    # Threads of libraries that other tests have used may still spin; the wall clock would give 0.02 each time.
    assert min(times["a"]) < 0.01
    assert 0 <= timing.busy() < 1
    fairness.check_clock("cpu", (1,))
    fairness.check_clock("wall", (1, 2))
    with pytest.raises(bench.BenchError, match="cpu for one thread; got cpu for 1, 2"):
        fairness.check_clock("cpu", (1, 2))
    with pytest.raises(bench.BenchError, match="got sun for 1"):
        fairness.check_clock("sun", (1,))


def test_errors_are_those_of_float64():
    layer = layers_of("linear")(LinearShape("", 50, 16), "float32", 0.5, ["gs(4,4)"], {})
    x = np.random.default_rng(0).standard_normal((16, 2), dtype=np.float32)
    eps = float(np.finfo(np.float32).eps)
    weights = layer.matrices["gs(4,4)"][0].to_dense().astype(np.float64)
    exact = weights @ x
    wrong = exact.copy()
    wrong[49, 1] += 12 * eps * (np.abs(weights[49]) @ np.abs(x[:, 1]))

    def contender(name, which, y):
        product = layers.Product("columns", lambda: None, lambda _: y)
        return layers.Contender(name, "", product, which)

    dense = layer.full("dense")[0].astype(np.float64) @ x
    found = layers.check(
        layer,
        [
            contender("", "gs(4,4)", exact),
            contender("", "dense", dense),
            contender("", "gs(4,4)", wrong),
        ],
        x,
    )
    assert [each["error_eps"] for each in found] == [0, 0, pytest.approx(12)]
    assert [each["kept"] for each in found] == [400, 800, 400]
    wrong[3, 0] = np.nan
    for y in (wrong, exact + 1):
        with pytest.raises(
            bench.BenchError,
            match=r"ghost \(columns\) computes something else for 50x16 in float32 at 50%",
        ):
            layers.check(layer, [contender("ghost", "gs(4,4)", y)], x)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_errors_of_low_precision(dtype):
    """Two errors: of the sum, with the weights that are stored, and of these weights."""
    layer = layers_of("linear")(LinearShape("", 50, 16), dtype, 0.5, [], {})
    x = layer.inputs(2)
    weights = layer.full("dense", dtype)[0].astype(np.float64)

    def contender(y):
        return layers.Contender("", "", layers.Product("", lambda: None, lambda _: y), "dense")

    size = np.abs(x).max(axis=0) * np.ones_like(x) if dtype == "int8" else np.abs(x)
    y, scale = weights @ x, np.abs(weights) @ size
    full = layer.full("dense")[0].astype(np.float64) @ x
    limit = layers.DTYPES[dtype]
    exact, off = layers.check(layer, [contender(y), contender(y + limit.eps * scale)], x)
    assert (exact["error_eps"], off["error_eps"]) == (0, pytest.approx(1))
    assert exact["error_float32"] == pytest.approx(np.linalg.norm(y - full) / np.linalg.norm(full))
    with pytest.raises(bench.BenchError, match=f"in {dtype} at 50%"):
        layers.check(layer, [contender(y + (limit.slack + 1) * limit.eps * scale)], x)


# --------------------------------------------------------------- summarise


def line(name, kind, best, **other):
    usual = {"shape": "s", "rows": 4096, "cols": 1024, "sparsity": 0.9, "n": 1, "threads": 1}
    usual |= {"suite": "linear", "steps": 1, "uses": 1, "size": "4096x1024"}
    usual |= {"layout": "columns", "median_us": 2 * best, "bytes": 2 << 20}
    return usual | {"name": name, "kind": kind, "best_us": best} | other


def test_ratios_and_geometric_means():
    results = [
        line("A", "dense", 100, layout="rows"),
        line("A", "dense", 120),
        line("B", "dense", 80, median_us=300),
        line("C", "sparse", 50),
        line("p", "pattern", 20, share=0.5, limit="bytes"),
        line("p", "pattern", 10, layout="rows", median_us=25, share=0.9, limit="fma"),
        line("A", "dense", 30, shape="t"),
        line("p", "pattern", 15, shape="t", share=0.6, limit="bytes"),
    ]
    found = bench.summarise(results, CACHES)
    first, second = found["ratios"]
    assert (first["dense"], first["sparse"], first["layout"], first["limit"]) == (
        8,
        5,
        "rows",
        "fma",
    )
    assert first["dense_median"] == 200 / 25
    assert (second["dense"], second["sparse"]) == (2, None)
    (mean,) = found["summary"]
    assert mean["shapes"] == 2
    assert mean["dense"] == pytest.approx(4)
    assert (mean["dense_least"], mean["sparse_least"], mean["share_least"]) == (2, 5, 0.6)
    assert mean["sparse"] == pytest.approx(5)
    assert (mean["goal"], mean["holds"]) == (None, None)
    assert summary.geometric_mean([1, 2, 4]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("sparsity", "n", "compact", "size", "goal"),
    [
        (0.9, 1, 500_000, (1024, 1024), 15),  # fits L2, the dense one does not
        (0.9, 1, 100_000, (512, 512), 8),  # both in L2, and the bytes would allow 9.4
        (0.9, 1, 2 << 20, (4096, 1024), 0.9 * 8),  # both in L3
        (0.8, 1, 4 << 20, (4096, 1024), 0.9 * 4),
        (0.8, 5, 4 << 20, (4096, 1024), 3.5),
        (0.9, 1, 20 << 20, (32320, 1024), 8),  # L3 and memory
        (0.9, 640, 2 << 20, (4096, 1024), 6),
        (0.95, 1, 2 << 20, (4096, 1024), None),
        (0.9, 7, 2 << 20, (4096, 1024), None),
    ],
)
def test_goals(sparsity, n, compact, size, goal):
    rows, cols = size
    result = line(
        "gs(cpu)", "pattern", 1, sparsity=sparsity, n=n, bytes=compact, rows=rows, cols=cols
    )
    assert summary.goal_of(result, CACHES) == (goal and pytest.approx(goal))
    assert summary.goal_of(result | {"name": "irregular"}, CACHES) is None


@pytest.mark.parametrize(
    ("suite", "sparsity", "n", "goal"),
    [
        ("bfloat16", 0.9, 5, 0.9 * 4),  # both in L3: half the bytes of float32
        ("bfloat16", 0.9, 32, 1.4),
        ("bfloat16", 0.9, 640, 1),
        ("int8", 0.9, 1, 0.9 * 2),
        ("int8", 0.9, 32, None),
        ("resnet50", 0.9, 8, 6),
        ("jasper", 0.8, 1, 3),
        ("lstm", 0.9, 1, 7),
        ("lstm", 0.8, 32, 4),
        ("lstm", 0.9, 32, 6),
    ],
)
def test_goals_of_other_suites(suite, sparsity, n, goal):
    """Those that are not of a matrix product know no ratio of bytes."""
    nbytes = 2_097_152 + 10
    result = line("gs(cpu)", "pattern", 1, suite=suite, sparsity=sparsity, n=n, bytes=nbytes)
    assert summary.goal_of(result, CACHES) == (goal and pytest.approx(goal, rel=1e-4))


def test_a_layout_of_more_bytes_does_not_lower_the_goal():
    results = [
        line("gs(cpu)", "pattern", 2, bytes=2 << 20),
        line("gs(cpu)", "pattern", 1, layout="rows", bytes=4 << 20),
    ]
    (ratio,) = bench.summarise(results, CACHES)["ratios"]
    assert (ratio["best_us"], ratio["goal"]) == (1, pytest.approx(0.9 * 8))


def test_the_goal_of_an_lstm_whose_steps_stay_in_l2():
    result = line("gs(cpu)", "pattern", 1, suite="lstm", bytes=2 << 20, step_bytes=1 << 20)
    assert summary.goal_of(result, CACHES) == 10
    assert summary.goal_of(result | {"step_bytes": 2 << 20}, CACHES) == 7
    assert summary.goal_of(result | {"n": 32}, CACHES) == 6


def test_every_goal_has_shapes():
    """And the shapes of a suite that have a goal at all are all run."""
    for suite in suites.SUITES.values():
        settings = suites.Settings()
        shapes = settings.shapes_of(suite)
        run = {n for shape in shapes for n in settings.columns_of(suite, shape)}
        assert set(suite.goals) == set(suites.SPARSITIES)
        assert all(set(goals) == run for goals in suite.goals.values())
        assert suites.QUICK.shapes_of(suite)


@pytest.mark.parametrize(
    ("times", "shares", "verdict"),
    [
        ((10, 10), (0.1, 0.1), "yes"),  # 6x and 6x
        ((12, 9), (0.1, 0.1), "no"),  # 5 and 6.67: the mean is 5.8
        ((6, 13), (0.1, 0.1), "no"),  # the mean is enough, but 4.6 is less than 80 % of 6
        ((12, 12), (0.85, 0.9), "by roofline"),
        ((12, 12), (0.84, 0.9), "no"),
    ],
)
def test_verdicts(times, shares, verdict):
    results = []
    for shape, best, share in zip("st", times, shares, strict=True):
        results += [
            line("A", "dense", 60, shape=shape, n=32),
            line("gs(cpu)", "pattern", best, shape=shape, n=32, share=share, limit="fma"),
        ]
    results += [line("A", "dense", 9, n=32, suite="jasper")]
    (found,) = bench.summarise(results, CACHES)["summary"]
    assert found["goal"] == pytest.approx(6)
    assert found["holds"] == verdict
    assert found["worst"] == ("s" if times[0] >= times[1] else "t")


def test_tables_in_markdown():
    results = [
        line("A", "dense", 60, error_eps=1.25),
        line("C", "sparse", 30, error_eps=0.5),
        line("gs(cpu)", "pattern", 10, share=0.5, limit="bytes", error_eps=2),
        line("gs(cpu)", "pattern", 12, layout="rows", share=0.4, limit="bytes", error_eps=3),
        line("gs(cpu)", "pattern", 2000, suite="lstm", steps=30, shape="a sentence", error_eps=0),
        line(
            "gs(cpu)",
            "pattern",
            1000,
            suite="lstm",
            steps=30,
            shape="a sentence",
            threads=2,
            error_eps=0,
        ),
    ]
    report = bench.summarise(results, CACHES) | {
        "results": results, "machine": {"name": "a CPU", "cores": 2, "caches": CACHES}, "busy": 0.25,
        "versions": {"numpy": "2"}, "blas": [], "date": "2026-01-02T00", "command": "gspattern bench",
        "settings": {"clock": "cpu"},
    }  # fmt: skip
    text = bench.markdown(report)
    assert "    gspattern bench\n\na CPU, 2 core(s), L1d 48 KiB," in text
    assert "CPU times, the best of all batches; other programs had 25% of a core" in text
    assert "### y = W x, float32, 1 thread(s)" in text
    assert "| 90% | 1 | 7.2 | 6.0 (6.0) | yes | 50% | s | 3.0 (3.0) |" not in text  # 6 < 7.2
    assert "| 90% | 1 | 7.2 | 6.0 (6.0) | no | 50% | s | 3.0 (3.0) |" in text
    assert "| s: 4096x1024 | 90% | 60.0 / 30.0 / **10.0** (50%, bytes) |" in text
    assert "at most 3.0 epsilon for all patterns, 1.2 epsilon for the libraries" in text
    assert "| gs(cpu) | lstm | a sentence | 90% | 30 x 1 | 2 | 2,000 | 2.00 |" in text
    for table in (part.splitlines() for part in text.split("\n\n") if part.startswith("|")):
        assert len({row.count("|") for row in table}) == 1


def test_scaling_is_of_long_products():
    results = [
        line("p", "pattern", 300),
        line("p", "pattern", 150, threads=2),
        line("p", "pattern", 199, shape="short"),
        line("p", "pattern", 100, shape="short", threads=2),
    ]
    (found,) = bench.summarise(results, CACHES)["scaling"]
    assert (found["shape"], found["threads"], found["speedup"]) == ("s", 2, 2)


# ---------------------------------------------------------------- roofline


def aligned(nbytes):
    return roofline._memory(nbytes)


LANES = {"amx": 16, "avx512": 16, "avx512_base": 16, "avx2": 8, "neon": 4, "scalar": 1}


@pytest.mark.parametrize("backend", gs.backends())
@pytest.mark.parametrize("kind", ["read", "ahead", "permute", "step", "fma", "load_fma"])
def test_probes_count_their_work(backend, kind):
    lanes = LANES[backend]
    items, width, result = _core.probe(backend, kind, aligned(3072), 5)
    assert (items, width) == (5 * 3072 // 4 // lanes, lanes)
    assert math.isfinite(result)


@pytest.mark.parametrize(("kind", "feature"), [("pairs", "avx512_bf16"), ("bytes", "avx512_vnni")])
def test_probes_of_narrow_numbers(kind, feature):
    """Only where the CPU has dot products of them, and only in the backend that uses them."""
    features = gs.cpu_info().features
    has = feature in features and {"avx512_vbmi", "avx512vbmi"}.intersection(features)
    for backend in gs.backends():
        if backend in ("amx", "avx512") and has:
            items, width, result = _core.probe(backend, kind, aligned(3072), 5)
            assert (items, width) == (5 * 48, 16)
            assert math.isfinite(result)
            assert 0 < roofline.probe(backend).narrow[kind] < 1e-7
        else:
            with pytest.raises(ValueError, match="cannot run that backend"):
                _core.probe(backend, kind, aligned(3072), 5)
            assert kind not in roofline.probe(backend).narrow


def test_probes_refuse_what_they_cannot_read():
    memory = aligned(4096)
    for wrong in (memory[1:257], memory[:255], memory[:0]):
        with pytest.raises(ValueError, match="a multiple of 1024 bytes, aligned to 64"):
            _core.probe("scalar", "read", wrong, 1)
    with pytest.raises(TypeError, match="float32"):
        _core.probe("scalar", "read", memory.view(np.int32), 1)
    with pytest.raises(ValueError, match="unknown backend or kind of probe: scalar, write"):
        _core.probe("scalar", "write", memory, 1)
    with pytest.raises(ValueError, match="unknown backend"):
        _core.probe("sse", "read", memory, 1)


def test_a_probe_measures():
    found = roofline.probe()
    assert found is roofline.probe()
    assert found.lanes == LANES[gs.backends()[0]]
    assert list(found.bandwidth)[-1] == "memory"
    assert all(rate > 1e8 for rate in found.bandwidth.values())
    assert 0 < found.fma < 1e-7
    assert roofline.read_time(1 << 20) > roofline.read_time(1 << 14) > 0


@pytest.fixture
def known_cpu(monkeypatch):
    """Loads take 1 s, permutes 2, steps 3, multiply-adds 4 and those with an operand 5, and a byte 1/100."""
    probes = roofline.Probes("avx512", 16, 1, 2, 3, 4, 5, {})
    monkeypatch.setattr(roofline, "probe", lambda backend=None: probes)
    monkeypatch.setattr(roofline, "read_time", lambda nbytes: nbytes / 100)


@pytest.mark.parametrize(
    ("kernel", "slots", "n", "parts"),
    [
        ("gsp_f32_spmv_tables32__avx512", 64, 1, {"fma": 16, "loads": 4 * 1.75, "steps": 12}),
        ("gsp_f32_spmv_tables64__avx512", 64, 2, {"fma": 32, "loads": 4 * 3.25, "steps": 8 * 5}),
        ("gsp_f32_spmv_gather__avx512", 64, 1, {"fma": 16, "loads": 4 * 18}),
        ("gsp_f32_spmv_wide__avx512", 64, 3, {"fma": 48, "loads": 16}),
        ("gsp_f32_spmv__scalar", 64, 1, {"fma": 16, "loads": 8}),
    ],
)
def test_bounds_of_spmv(known_cpu, kernel, slots, n, parts):
    plan = SimpleNamespace(kernel=kernel, backend="avx512", columns=False, slots=slots, bytes=500)
    found = roofline.bound(plan, (16, 16), n)
    assert found.parts == parts | {"bytes": 5}
    assert found.seconds == max(parts.values())
    assert found.parts[found.limit] == found.seconds


@pytest.mark.parametrize(("form", "loads"), [("strips", 150), ("stacks", 7.5)])
def test_bounds_of_products_with_columns(known_cpu, form, loads):
    kernel = f"gsp_f32_spmm_{form}__avx512"
    plan = SimpleNamespace(kernel=kernel, backend="avx512", columns=True, slots=10, bytes=100)
    # 33 columns are three registers; x is [7, 33] and y [3, 33].
    moved = (100 + 4 * 33 * 10) / 100
    assert roofline.bound(plan, (3, 7), 33).parts == {"bytes": moved, "loads": loads, "fma": 120}
    assert roofline.dense_bound((3, 16), 2).parts == {"bytes": 4 * 48 / 100, "fma": 48 * 2 / 16 * 4}


def test_bounds_of_low_precision_and_of_steps(known_cpu, monkeypatch):
    cpu = SimpleNamespace(features=("avx512_bf16", "amx_tile"))
    monkeypatch.setattr(roofline, "cpu_info", lambda: cpu)
    found = roofline.dense_bound((3, 16), 2, "bfloat16").parts
    assert found == {"bytes": 2 * 48 / 100, "fma": 48 * 2 / 32 * 4}
    found = roofline.dense_bound((3, 16), 2, "int8").parts  # without VNNI
    assert found == {"bytes": 48 / 100, "fma": 48 * 2 / 16 * 4}
    cpu.features += ("avx512_vnni", "amx_int8")
    assert roofline.dense_bound((3, 16), 2, "int8").parts["fma"] == 48 * 2 / 512 * 4
    once, step = roofline.Bound({"bytes": 5, "fma": 4}), roofline.Bound({"bytes": 1, "fma": 2})
    assert roofline.together(once, step, 2).parts == {"bytes": 9}
    assert roofline.together(once, step, 3).parts == {"fma": 11}


@pytest.mark.parametrize("backend", gs.backends())
@pytest.mark.parametrize("pattern", suites.PATTERNS)
def test_every_kernel_has_a_bound(backend, pattern):
    """By its form: a kernel of a form that the roofline does not know would get too loose a bound."""
    layer = layers_of("linear")(LinearShape("", 96, 64), "float32", 0.8, [pattern], {})
    (matrix,) = layer.matrices[pattern]
    for n in (1, 5, 32):
        with gs.use_backend(backend):
            plan = matrix.plan(n)
        found = roofline.bound(plan, matrix.shape, n)
        assert 0 < found.seconds < 1e-3
        known = (
            "tables",
            "gather",
            "wide",
            "tall",
            "strips",
            "stacks",
            "spmv__scalar",
            "spmm__scalar",
        )
        assert any(form in plan.kernel for form in known)


# ---------------------------------------------------------------- pictures


def test_pictures():
    matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    from gspattern.plots import plot_roofline, plot_speedups

    results = [line("A", "dense", 60, n=n, share=0.5, kept=100, gmacs=90) for n in (1, 32)] + [
        line("p", "pattern", 20, n=n, share=0.5, kept=10, gmacs=20) for n in (1, 32)
    ]
    report = bench.summarise(results, CACHES) | {
        "results": results,
        "machine": {"name": "a CPU"},
        "probes": {
            "avx512": {
                "backend": "avx512",
                "gmacs_registers": 100,
                "gmacs_l1": 70,
                "gbytes_per_s": {"L2": 50},
            }
        },
    }
    figure = plot_speedups(report)
    assert [ax.get_title() for ax in figure.axes] == ["N = 1", "N = 32"]
    assert [ax.lines[0].get_ydata() for ax in figure.axes] == [pytest.approx([3])] * 2
    pyplot.close(figure)
    figure = plot_roofline(report)
    points = {text.get_text(): handle for text, handle in zip(
        figure.axes[0].get_legend().get_texts(), figure.axes[0].get_legend().legend_handles, strict=True
    )}  # fmt: skip
    assert list(points) == ["dense", "p"]
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(drawn["p"].get_xdata()) == [10 / (2 << 20), 320 / (2 << 20)]
    assert list(drawn["p"].get_ydata()) == [20, 20]
    pyplot.close(figure)
    with pytest.raises(ValueError, match="2 thread"):
        plot_speedups(report, threads=2)
