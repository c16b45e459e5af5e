"""The benchmark: its arithmetic against numbers made by hand, what it refuses, and one quick run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rich", reason="the extra `bench` is not installed")
pytest.importorskip("threadpoolctl", reason="the extra `bench` is not installed")
pytest.importorskip("tqdm", reason="the extra `bench` is not installed")

import gspattern as gs
from gspattern import _core, bench, peers, roofline

ROOT = Path(__file__).parent.parent
CLEAN = {name: value for name, value in os.environ.items() if name not in bench.CRIPPLING}
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


@pytest.mark.parametrize("name", ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ONEDNN_MAX_CPU_ISA"])
def test_settings_that_cripple_others_are_refused(name):
    bench.check_environment({"PATH": "/bin"}, [1], 1)
    with pytest.raises(bench.BenchError, match=f"{name}=512 would make .* run `env -u {name} "):
        bench.check_environment({name: "512"}, [1], 1)


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_are_limited_by_cores(threads):
    with pytest.raises(bench.BenchError, match=f"from 1 to 2, .* got {threads}"):
        bench.check_environment({}, [1, threads], 2)


def test_unequal_threads_are_refused():
    pools = [
        {"prefix": "libgomp", "num_threads": 2, "internal_api": "openmp"},
        {"prefix": "libopenblas", "num_threads": 1, "internal_api": "openblas"},
    ]
    bench._check_pools(pools[:1], 2)
    with pytest.raises(bench.BenchError, match="libopenblas uses 1, the others 2; unset OPENBLAS_"):
        bench._check_pools(pools, 2)


def test_threads_are_given_back():
    with bench._threads(["numpy"], 1):
        assert gs.get_num_threads() == 1
    before = gs.get_num_threads()
    gs.set_num_threads(2)
    try:
        with bench._threads([], 1):
            assert gs.get_num_threads() == 1
        assert gs.get_num_threads() == 2
    finally:
        gs.set_num_threads(before)


# ------------------------------------------------------------------ shapes


def test_shapes(tmp_path):
    file = tmp_path / "shapes.txt"
    file.write_text("# rows cols n name\n\n 64 32 - a layer  # twice\n1000 2048 1 fc\n")
    assert bench.read_shapes(str(file)) == [
        bench.Shape("a layer", 64, 32),
        bench.Shape("fc", 1000, 2048, 1),
    ]
    assert bench.read_shapes("16x48") == [bench.Shape("16x48", 16, 48)]
    for text in ("16", "16x", "axb", "no-such-file.txt"):
        with pytest.raises(bench.BenchError, match="a file of shapes or such as 1024x1024"):
            bench.read_shapes(text)
    with pytest.raises(bench.BenchError, match="must be positive"):
        bench.read_shapes("0x4")
    file.write_text("64 32 - a\n64 32 b\n")
    with pytest.raises(bench.BenchError, match=r"line 2: expected `rows cols n name`"):
        bench.read_shapes(str(file))


def test_shapes_of_the_models():
    """Against the published sizes of the models."""
    folder = ROOT / "benchmarks" / "shapes"
    if not folder.exists():
        pytest.skip("installed without the benchmarks")
    gnmt = bench.read_shapes(str(folder / "gnmt.txt"))
    assert tuple(shape.size for shape in gnmt) == bench.SHAPES
    resnet = bench.read_shapes(str(folder / "resnet50.txt"))
    work = sum(s.rows * s.cols * s.n * _count(s.name) for s in resnet)
    # 53 convolutions and fc take 4.089 GMAC; conv1 0.118; the 16 3x3 ones 13 * .1156 + 3 * .1156.
    assert work == pytest.approx(4.089e9 - 0.118e9 - 16 * 115_605_504, rel=2e-3)
    jasper = bench.read_shapes(str(folder / "jasper.txt"))
    weights = sum(s.rows * s.cols * _count(s.name) for s in jasper)
    assert weights == pytest.approx(12.9e6 + 896 * 1024, rel=5e-3)


def _count(name):
    return int(name.rpartition("(")[2].rstrip(")")) if name.endswith(")") else 1


# ------------------------------------------------------------------- peers


class Ghost:
    title = "Ghost"
    sparse = False

    def __init__(self, threads):
        import no_such_module  # noqa: F401


def test_missing_peers_are_listed(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "ghost", (Ghost, ("ghost-package",)))
    found, versions, missing = peers.load_peers(["ghost", "numpy"], 1)
    assert list(found) == ["numpy"]
    assert versions == {"numpy": np.__version__}
    assert list(missing) == ["ghost"]
    assert "no_such_module" in missing["ghost"]
    assert "pip install ghost-package" in missing["ghost"]
    with pytest.raises(ValueError, match="there is no 'numpyy'"):
        peers.load_peers(["numpyy"], 1)


@pytest.mark.parametrize("name", list(peers.PEERS))
@pytest.mark.parametrize("n", [1, 3, 17])
def test_peers_multiply(name, n):
    found, _, missing = peers.load_peers([name], 1)
    if missing:
        pytest.skip(missing[name])
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 33), dtype=np.float32)
    weights[rng.random(weights.shape) < 0.8] = 0
    x = rng.standard_normal((33, n), dtype=np.float32)
    exact = weights.astype(np.float64) @ x
    scale = np.abs(weights).astype(np.float64) @ np.abs(x)
    peer = found[name]
    products = peer.products(peer.prepare(weights), x)
    assert products
    for product in products:
        y = product.result(product.call())
        assert y.shape == (40, n)
        assert (np.abs(y - exact) <= 40 * np.finfo(np.float32).eps * scale).all()


# ----------------------------------------------------------------- measure


def test_alternate_takes_turns():
    order = []

    def call(name):
        order.append(name)
        time.sleep(2 * bench.BATCH)

    times = bench.alternate({name: partial(call, name) for name in "ab"}, rounds=2, turn=0)
    assert order == ["a", "a", "b", "b"] * 2  # one call that does not count, one that does
    assert [len(times[name]) for name in "ab"] == [2, 2]
    assert all(2 * bench.BATCH <= each < 1 for each in times["a"])


def test_alternate_runs_three_rounds_at_least():
    shares = []
    work = partial(time.sleep, bench.BATCH)
    times = bench.alternate({"a": work}, 9, seconds=1e-9, turn=0, progress=shares.append)
    assert len(times["a"]) == bench.LEAST_ROUNDS
    assert shares[-1] == 1


def test_the_cpu_clock_counts_work_only():
    times = bench.alternate({"a": partial(time.sleep, 0.02)}, 3, turn=0, clock=bench.CLOCKS["cpu"])
    assert max(times["a"]) < 0.01
    assert 0 <= bench._busy() < 1
    bench.check_clock("cpu", (1,))
    bench.check_clock("wall", (1, 2))
    with pytest.raises(bench.BenchError, match="cpu for one thread; got cpu for 1, 2"):
        bench.check_clock("cpu", (1, 2))
    with pytest.raises(bench.BenchError, match="got sun for 1"):
        bench.check_clock("sun", (1,))


def test_errors_are_those_of_float64():
    layer = bench._make_layer(bench.Shape("", 50, 16), 0.5, ("gs(4,4)",), {})
    x = np.random.default_rng(0).standard_normal((16, 2), dtype=np.float32)
    eps = float(np.finfo(np.float32).eps)
    weights = layer.matrices["gs(4,4)"].to_dense().astype(np.float64)
    exact = weights @ x
    wrong = exact.copy()
    wrong[49, 1] += 12 * eps * (np.abs(weights[49]) @ np.abs(x[:, 1]))

    def contender(name, which, y):
        product = peers.Product("columns", lambda: None, lambda _: y)
        return bench._Contender(name, "", product, which)

    dense = layer.weights.astype(np.float64) @ x
    found = bench._check(
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
            bench.BenchError, match="ghost computes something else for 50x16 at 50%"
        ):
            bench._check(layer, [contender("ghost", "gs(4,4)", y)], x)


# --------------------------------------------------------------- summarise


def line(name, kind, best, **other):
    usual = {"shape": "s", "rows": 4096, "cols": 1024, "sparsity": 0.9, "n": 1, "threads": 1}
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
    assert bench.geometric_mean([1, 2, 4]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("sparsity", "n", "compact", "dense", "goal"),
    [
        (0.9, 1, 500_000, 4 << 20, 15),  # fits L2, the dense one does not
        (0.9, 1, 100_000, 1 << 20, 8),  # both in L2, and the bytes would allow 9.4
        (0.9, 1, 2 << 20, 16 << 20, 0.9 * 8),  # both in L3
        (0.8, 1, 4 << 20, 16 << 20, 0.9 * 4),
        (0.8, 5, 4 << 20, 16 << 20, 3.5),
        (0.9, 1, 20 << 20, 128 << 20, 8),  # L3 and memory
        (0.9, 640, 2 << 20, 16 << 20, 6),
        (0.95, 1, 2 << 20, 16 << 20, None),
        (0.9, 7, 2 << 20, 16 << 20, None),
    ],
)
def test_goals(sparsity, n, compact, dense, goal):
    result = line("gs(cpu)", "pattern", 1, sparsity=sparsity, n=n, bytes=compact)
    assert bench.goal_of(result, dense, CACHES) == (goal and pytest.approx(goal))
    assert bench.goal_of(result | {"name": "irregular"}, dense, CACHES) is None


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
    (found,) = bench.summarise(results, CACHES)["summary"]
    assert found["goal"] == pytest.approx(6)
    assert found["holds"] == verdict


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


LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}


@pytest.mark.parametrize("backend", gs.backends())
@pytest.mark.parametrize("kind", ["read", "ahead", "permute", "step", "fma", "load_fma"])
def test_probes_count_their_work(backend, kind):
    lanes = LANES[backend]
    items, width, result = _core.probe(backend, kind, aligned(3072), 5)
    assert (items, width) == (5 * 3072 // 4 // lanes, lanes)
    assert math.isfinite(result)


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


@pytest.mark.parametrize(("form", "loads"), [("fours", 150), ("stacks", 7.5)])
def test_bounds_of_products_with_columns(known_cpu, form, loads):
    kernel = f"gsp_f32_spmm_{form}__avx512"
    plan = SimpleNamespace(kernel=kernel, backend="avx512", columns=True, slots=10, bytes=100)
    # 33 columns are three registers; x is [7, 33] and y [3, 33].
    moved = (100 + 4 * 33 * 10) / 100
    assert roofline.bound(plan, (3, 7), 33).parts == {"bytes": moved, "loads": loads, "fma": 120}
    assert roofline.dense_bound((3, 16), 2).parts == {"bytes": 4 * 48 / 100, "fma": 48 * 2 / 16 * 4}


@pytest.mark.parametrize("backend", gs.backends())
@pytest.mark.parametrize("pattern", bench.PATTERNS)
def test_every_kernel_has_a_bound(backend, pattern):
    """By its form: a kernel of a form that the roofline does not know would get too loose a bound."""
    layer = bench._make_layer(bench.Shape("", 96, 64), 0.8, (pattern,), {})
    matrix = layer.matrices[pattern]
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
            "fours",
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
