"""How long choosing a mask takes, as a ratio to torch.topk of the same scores in the same run.

    python benchmarks/bench_masks.py [--rows 4096] [--cols 1024] [--sparsity 0.9] [--rounds 15] [--json FILE]

`torch.topk(scores.flatten(), keep)` is the usual way to an irregular mask. All contenders run in one process,
on one thread, one after the other in every round; best and median are over rounds, and so are the ratios
to topk. Peak memory is what a call adds to the resident size of a fresh process without torch, the mask
that it returns included, as a multiple of the size of the scores. Kept is the score that a mask keeps,
relative to the irregular mask of the same number of nonzeros. "topk unsorted" is topk with sorted=False.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import gspattern as gs
from gspattern.bench import alternate, make_weights, print_table

# Pattern, method, and the goals: time as a multiple of topk's, peak memory as a multiple of the scores'.
CONTENDERS = [
    ("gs(16,16)", "exact", 1, 3),
    ("gs(16,1)", "greedy", 2, 3),
    ("gs(16,1)", "exact", 5, 3),
    ("gs(16,4)", "exact", 8, 3),
    ("gs(16,16)+scatter", "exact", 3, 3),
    ("gs(16,1)+scatter", "greedy", 6, 3),
    ("gs(16,1)+scatter", "exact", 15, 3),
    ("gs(16,4)+scatter", "exact", 24, 3),
]


def make_scores(rows: int, cols: int) -> np.ndarray:
    return np.abs(make_weights(rows, cols))


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def memory_of_call(rows: int, cols: int, sparsity: float, pattern: str, method: str) -> float:
    """Peak memory of one call in this process, as a multiple of the scores; run in a process of its own."""
    gs.set_num_threads(1)
    gs.choose_mask(
        make_scores(64, 64), pattern, 0.5, method=method
    )  # code is paged in before the count
    scores = make_scores(rows, cols)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident("VmRSS")
    gs.choose_mask(scores, pattern, sparsity, method=method)
    return (resident("VmHWM") - before) / scores.nbytes


def peak_memory(arguments: argparse.Namespace, pattern: str, method: str) -> float:
    sizes = [str(arguments.rows), str(arguments.cols), str(arguments.sparsity)]
    command = [sys.executable, __file__, "--memory-of", *sizes, pattern, method]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(arguments: argparse.Namespace) -> dict[str, object]:
    import torch

    torch.set_num_threads(1)
    gs.set_num_threads(1)
    rows, cols, sparsity = arguments.rows, arguments.cols, arguments.sparsity
    scores = make_scores(rows, cols)
    flat = torch.from_numpy(scores).flatten()
    keep = round((1 - sparsity) * rows * cols)

    def choose(pattern: str, method: str) -> Callable[[], object]:
        return lambda: gs.choose_mask(scores, pattern, sparsity, method=method)

    calls: dict[str, Callable[[], object]] = {
        "topk": lambda: torch.topk(flat, keep),
        "topk unsorted": lambda: torch.topk(flat, keep, sorted=False),
    }
    for pattern, method, _, _ in CONTENDERS:
        calls[f"{pattern} {method}"] = choose(pattern, method)
    with tqdm(total=1, leave=False, disable=None) as bar:
        seconds = alternate(
            calls, arguments.rounds, turn=0, progress=lambda share: bar.update(share - bar.n)
        )

    ordered = np.sort(scores, axis=None)[::-1].astype(np.float64).cumsum()
    results: list[dict[str, object]] = []
    for name, times in seconds.items():
        best, median = min(times), statistics.median(times)
        results.append(
            {
                "name": name,
                "best_ms": best * 1e3,
                "median_ms": median * 1e3,
                "best_ratio": best / min(seconds["topk"]),
                "median_ratio": median / statistics.median(seconds["topk"]),
            }
        )
    for result, (pattern, method, goal, memory_goal) in zip(results[2:], CONTENDERS, strict=True):
        selection = gs.choose_mask(scores, pattern, sparsity, method=method)
        result["goal"] = goal
        result["memory"] = peak_memory(arguments, pattern, method)
        result["memory_goal"] = memory_goal
        result["kept"] = selection.score / float(ordered[int(selection.mask.sum()) - 1])
    return {
        "rows": rows,
        "cols": cols,
        "sparsity": sparsity,
        "rounds": arguments.rounds,
        "threads": 1,
        "machine": gs.cpu_info().name,
        "torch": torch.__version__,
        "results": results,
    }


HEADINGS = [
    "",
    "best ms",
    "median ms",
    "best/topk",
    "median/topk",
    "goal",
    "memory",
    "goal",
    "kept",
]


def cells(result: dict[str, object]) -> list[str]:
    row = [
        str(result["name"]),
        f"{result['best_ms']:.1f}",
        f"{result['median_ms']:.1f}",
        f"{result['best_ratio']:.2f}",
        f"{result['median_ratio']:.2f}",
    ]
    if "goal" not in result:
        return row + [""] * 4
    return [
        *row,
        f"<= {result['goal']}",
        f"{result['memory']:.2f}",
        f"<= {result['memory_goal']}",
        f"{result['kept']:.4f}",
    ]


def show(report: dict[str, object]) -> None:
    title = (
        f"{report['rows']} x {report['cols']} at {report['sparsity']:.0%}, one thread, "
        f"{report['rounds']} rounds, {report['machine']}, torch {report['torch']}"
    )
    rows = [cells(result) for result in report["results"]]  # type: ignore[attr-defined]
    print_table(title, HEADINGS, rows)


def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:
        rows, cols, sparsity, pattern, method = sys.argv[2:]
        print(memory_of_call(int(rows), int(cols), float(sparsity), pattern, method))
        return
    parser = argparse.ArgumentParser(
        description="Time choose_mask against torch.topk of the same scores."
    )
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=1024)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    report = run(arguments)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
