"""How long y = W x takes for one vector, against dense and SciPy, with the error of every contender.

    python benchmarks/bench_spmv.py [--shapes 512x512,1024x1024,4096x1024] [--sparsities 0.8,0.9] [--backends avx512]
                                    [--threads 1] [--rounds 40] [--json FILE]

All contenders run in one process on the same float32 weights, one after the other in every round; a turn is a few
calls that do not count, so that a layer that fits the cache is there, and then the calls that are timed. Best and
median are over rounds, as seen from Python; the ratio is that of the bests to dense torch. Error is the largest
|y - exact| / (|W| |x|) over rows, in units of the float32 epsilon; exact is NumPy in float64. Efficiency is useful
elements over those that the kernel multiplies. OpenBLAS reads its number of threads when it is loaded, and
OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE cripple it, so the program starts itself once more with these settled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

import gspattern as gs

PATTERNS = (
    "gs(cpu)",
    "gs(16,16)",
    "gs(16,16,contiguous)",
    "gs(16,1)+scatter",
    "irregular",
    "block(1,4)",
    "block(1,16)",
    "block(16,1)",
)


def make_weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Gaussian x log-normal(0.3) row scales, float32: magnitudes as those of a trained layer."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, cols), dtype=np.float32)
    return weights * rng.lognormal(0, 0.3, (rows, 1)).astype(np.float32)


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds for one call of every contender, in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"\r\033[Kround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        for name, call in calls.items():
            for _ in range(3):
                call()
            start = time.perf_counter()
            call()
            once = time.perf_counter() - start
            times = max(5, min(100, int(5e-4 / once)))
            start = time.perf_counter()
            for _ in range(times):
                call()
            seconds[name].append((time.perf_counter() - start) / times)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return seconds


def contenders(
    weights: np.ndarray, sparsity: float, backends: list[str], x: np.ndarray
) -> dict[str, dict[str, Any]]:
    """By name: a call that gives y, the dense float64 weights that it stands for, and what is said of it."""
    found: dict[str, dict[str, Any]] = {}
    tensor, tensor_x = torch.from_numpy(weights), torch.from_numpy(x)
    found["dense torch"] = {"call": lambda: torch.mv(tensor, tensor_x), "weights": weights}
    found["dense numpy"] = {"call": lambda: weights @ x, "weights": weights}
    irregular = None
    for pattern in PATTERNS:
        chosen = gs.choose_mask(np.abs(weights), pattern, sparsity=sparsity)
        matrix = gs.encode(weights, pattern, mask=chosen.mask, row_order=chosen.row_order)
        pruned = np.where(chosen.mask, weights, 0)
        if pattern == "irregular":
            irregular = pruned
        for backend in backends:
            with gs.use_backend(backend):
                plan = matrix.plan(1)
            name = pattern if len(backends) == 1 else f"{pattern} {backend}"
            found[name] = {
                "call": lambda plan=plan: plan.multiply(x),
                "weights": pruned,
                "kernel": plan.kernel,
                "bytes": plan.bytes,
                "efficiency": plan.efficiency,
            }
    csr = scipy.sparse.csr_array(irregular)
    found["scipy csr"] = {"call": lambda: csr @ x, "weights": irregular}
    return found


def run(
    rows: int, cols: int, sparsity: float, backends: list[str], rounds: int
) -> list[dict[str, Any]]:
    weights = make_weights(rows, cols)
    x = np.random.default_rng(1).standard_normal(cols, dtype=np.float32)
    found = contenders(weights, sparsity, backends, x)
    seconds = measure({name: entry["call"] for name, entry in found.items()}, rounds)
    dense = min(seconds["dense torch"])
    results = []
    for name, entry in found.items():
        exact = entry["weights"].astype(np.float64) @ x
        scale = np.abs(entry["weights"]).astype(np.float64) @ np.abs(x)
        error = np.abs(np.asarray(entry["call"]()) - exact) / np.where(scale > 0, scale, 1)
        results.append(
            {
                "rows": rows,
                "cols": cols,
                "sparsity": sparsity,
                "name": name,
                "kept": int(np.count_nonzero(entry["weights"])),
                "best_us": 1e6 * min(seconds[name]),
                "median_us": 1e6 * statistics.median(seconds[name]),
                "ratio": dense / min(seconds[name]),
                "error_eps": float(error.max() / np.finfo(np.float32).eps),
                **{key: entry.get(key) for key in ("kernel", "bytes", "efficiency")},
            }
        )
    return results


def show(results: list[dict[str, Any]]) -> None:
    first = results[0]
    print(f"\n{first['rows']}x{first['cols']} at {first['sparsity']:.0%}")
    print(
        f"{'':28} {'best us':>8} {'median':>8} {'x dense':>8} {'error eps':>9} {'eff.':>5} {'KB':>7}  kernel"
    )
    for r in results:
        plan = (
            f"{r['efficiency']:5.2f} {r['bytes'] / 1000:7.0f}  {r['kernel']}" if r["kernel"] else ""
        )
        print(
            f"{r['name']:28} {r['best_us']:8.2f} {r['median_us']:8.2f} {r['ratio']:8.2f} "
            f"{r['error_eps']:9.2f} {plan}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="512x512,1024x1024,4096x1024")
    parser.add_argument("--sparsities", default="0.8,0.9")
    parser.add_argument(
        "--backends", default=gs.backend(), help="comma-separated; default: the best"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    wanted |= {
        "OPENBLAS_NUM_THREADS": str(options.threads),
        "OMP_NUM_THREADS": str(options.threads),
    }
    if dict(os.environ) != wanted:
        raise SystemExit(subprocess.call([sys.executable, *sys.argv], env=wanted))
    gs.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    cpu = gs.cpu_info()
    print(f"{cpu.name}, caches {cpu.caches}, {options.threads} thread(s), float32, N = 1")
    results = []
    for shape in options.shapes.split(","):
        rows, cols = (int(n) for n in shape.split("x"))
        for sparsity in options.sparsities.split(","):
            part = run(rows, cols, float(sparsity), options.backends.split(","), options.rounds)
            show(part)
            results += part
    if options.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
                    "scipy": scipy.__version__}  # fmt: skip
        machine = {
            "cpu": cpu.name,
            "caches": cpu.caches,
            "threads": options.threads,
            "versions": versions,
        }
        options.json.write_text(
            json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
