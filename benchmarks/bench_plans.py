"""How long making a plan takes, as a multiple of a product of the same matrix in SciPy's CSR and a vector.

    python benchmarks/bench_plans.py [-p PATTERN]... [-n 1]... [--shape 4096x1024]... [--sparsity 0.9]... [--json FILE]

Times are those of `gsp_plan_create` and the release of the plan, in one process, on one thread, in turns with
`csr @ x`; the best of all rounds. Nothing is kept from one plan to the next: matrices are checked every time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import gspattern as gs
from gspattern import _core
from gspattern.bench import alternate, make_weights, print_table

PATTERNS = [
    "gs(cpu)", "gs(16,16)", "gs(16,1)+scatter", "gs(16,4)", "irregular",
    "2:4", "block(1,4)", "block(1,16)", "block(16,1)",
]  # fmt: skip
SHAPES = ["1024x1024", "4096x1024", "4096x2048", "32320x1024"]
GOAL = 20


def make_matrix(weights: np.ndarray, pattern: str, sparsity: float) -> gs.Matrix:
    kept = None if pattern == "2:4" else sparsity
    selection = gs.choose_mask(np.abs(weights), pattern, kept, method="greedy")
    return gs.encode(weights, pattern, selection.mask, selection.row_order)


def measure(
    shape: tuple[int, int], pattern: str, sparsity: float, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    matrix = make_matrix(make_weights(*shape), pattern, sparsity)
    csr = matrix.to_csr()
    x = np.random.default_rng(1).standard_normal(shape[1], dtype=np.float32)

    def plan(n: int) -> Callable[[], object]:
        core, backend = matrix.core(), gs.plans.backend()
        return lambda: _core.plan(core, backend, n)

    calls: dict[str, Callable[[], object]] = {"scipy": lambda: csr @ x}
    calls |= {str(n): plan(n) for n in arguments.n}
    clock = {"cpu": time.process_time, "wall": time.perf_counter}[arguments.clock]
    best = {
        name: min(times) for name, times in alternate(calls, arguments.rounds, 2, 0, clock).items()
    }
    return [
        {
            "shape": f"{shape[0]}x{shape[1]}",
            "pattern": pattern,
            "sparsity": 1 - matrix.nnz / (shape[0] * shape[1]),
            "n": n,
            "kernel": matrix.plan(n).kernel,
            "plan_us": best[str(n)] * 1e6,
            "scipy_us": best["scipy"] * 1e6,
            "products": best[str(n)] / best["scipy"],
        }
        for n in arguments.n
    ]


def show(results: list[dict[str, object]], title: str) -> None:
    rows = [
        [
            str(r["shape"]),
            f"{r['sparsity']:.0%}",
            str(r["pattern"]),
            str(r["n"]),
            f"{r['plan_us']:,.0f}",
            f"{r['scipy_us']:,.1f}",
            f"{r['products']:.1f}",
            str(r["kernel"]),
        ]
        for r in results
    ]
    headings = ["shape", "sparsity", "pattern", "N", "plan us", "csr @ x us", "ratio", "kernel"]
    print_table(title, headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time plans against products with SciPy's CSR.")
    parser.add_argument("-p", "--pattern", action="append", help="default: nine of them")
    parser.add_argument("--shape", action="append", help="ROWSxCOLS; default: four of them")
    parser.add_argument("--sparsity", action="append", type=float, help="default: 0.8 and 0.9")
    parser.add_argument("-n", action="append", type=int, help="columns; default: 1 and 128")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    arguments.n = arguments.n or [1, 128]
    cases = [
        (tuple(int(size) for size in shape.split("x")), pattern, sparsity)
        for shape in arguments.shape or SHAPES
        for pattern in arguments.pattern or PATTERNS
        for sparsity in ([0.5] if pattern == "2:4" else arguments.sparsity or [0.8, 0.9])
    ]
    gs.set_num_threads(1)
    results = []
    for case in tqdm(cases, leave=False, disable=None):
        results += measure(*case, arguments)
    worst = max(float(result["products"]) for result in results)
    title = f"plans in products of SciPy's CSR with a vector, {gs.cpu_info().name}, one thread"
    show(results, f"{title}: at most {worst:.1f}, goal below {GOAL}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
