"""Prints cases and reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gspattern.bench.suites import GOAL_PATTERN, SUITES
from gspattern.bench.summary import SPARSE_GOAL, THREADS_GOAL, grouped

__all__ = ["print_case", "print_report", "print_table"]

OVERHEAD_GOAL = 3e-6  # seconds of a small call that are not work
BUSY = 0.05  # share of a core that other programs may have


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], width: int = 110
) -> None:
    """Print a table; the first column is text, all others are numbers."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)  # the same width in a pipe


def _number(value: Any, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def _work(line: Mapping[str, Any]) -> str:
    """What n counts, and how many steps there are."""
    return f"{line['n']}" if line["steps"] == 1 else f"{line['steps']} x {line['n']}"


def print_case(case: Sequence[Mapping[str, Any]]) -> None:
    """Print one case: every contender with the better of its layouts."""
    first = case[0]
    lines = [
        min(group, key=lambda line: float(line["best_us"]))
        for group in grouped(case, ("name",)).values()
    ]
    dense = min((line["best_us"] for line in lines if line["kind"] == "dense"), default=None)
    low, vector = first["dtype"] != "float32", (first["operation"], first["n"]) == ("linear", 1)
    rows = [
        [
            line["name"] if vector else f"{line['name']} ({line['layout']})",
            _number(line["best_us"], ".1f"),
            _number(line["median_us"], ".1f"),
            _number(dense and dense / line["best_us"]),
            _number(line["gmacs"], ".1f"),
            _number(line["error_eps"], ".2f"),
            *([_number(line["error_float32"], ".2%")] if low else []),
            _number(line.get("efficiency")),
            _number(line.get("bound_us"), ".1f"),
            _number(line.get("share"), ".0%"),
            line.get("limit", ""),
            line.get("kernel", "").removeprefix("gsp_"),
        ]
        for line in lines
    ]
    print_table(
        f"{first['suite']}: {first['shape']}, {first['size']} at {first['sparsity']:.0%}, N = {_work(first)}, "
        f"{first['threads']} thread(s)",
        [
            "", "best us", "median", "x dense", "GMAC/s", "error", *(["of f32"] if low else []), "eff.", "bound us",
            "share", "by", "kernel",
        ],
        rows,
        150,
    )  # fmt: skip


def print_report(report: Mapping[str, Any]) -> None:
    """Print machine, versions, probes, and the summary against the goals."""
    _print_machine(report)
    for suite, threads in sorted({(line["suite"], line["threads"]) for line in report["summary"]}):
        lines = [
            line
            for line in report["summary"]
            if (line["suite"], line["threads"]) == (suite, threads)
        ]
        _print_summary(suite, threads, lines)
    if report["scaling"]:
        rows = [
            [
                line["name"],
                line["shape"],
                f"{line['sparsity']:.0%}",
                _work(line),
                str(line["threads"]),
                _number(line["one_us"], ".0f"),
                _number(line["speedup"]),
            ]
            for line in report["scaling"]
        ]
        print_table(
            f"Threads (goal for two: {THREADS_GOAL})",
            ["", "shape", "sparsity", "N", "threads", "one: us", "speed-up"],
            rows,
        )
    _print_goals([line for line in report["summary"] if line["holds"]])
    if report.get("interrupted"):
        print("interrupted: cases are left; --resume goes on with them")


def _print_machine(report: Mapping[str, Any]) -> None:
    machine = report["machine"]
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
    print(f"{machine['name']}, {machine['cores']} core(s), {caches}; {report['date']}")
    print(
        "versions: "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    )
    print("BLAS: " + ("; ".join(report["blas"]) or "none known"))
    for name, why in report["missing"].items():
        print(f"missing: {name}: {why}")
    for name, why in report["unfit"].items():
        print(f"left out: {name}: {why}")
    if report["settings"]["clock"] == "wall" and report["busy"] > BUSY:
        print(
            f"other programs had {report['busy']:.0%} of a core: that makes long products look slower than short ones; "
            "stop them, or use --clock cpu"
        )
    if report["settings"]["clock"] == "cpu":
        print("times are CPU times: what other programs took of the core is left out")
    print("all calls are made from Python, as users make them")
    for best in list(report["probes"].values())[:1]:
        rates = ", ".join(f"{level} {rate:.0f}" for level, rate in best["gbytes_per_s"].items())
        print(
            f"one core, {best['backend']}: {best['gmacs_registers']:.0f} GMAC/s from registers, "
            f"{best['gmacs_l1']:.0f} with an operand from L1, {best['permutes_per_ns']:.1f} permutes and "
            f"{best['steps_per_ns']:.1f} steps per ns; GB/s: {rates}"
        )
    overhead = report["overhead"]
    if overhead:
        print(
            f"256 x 256 at 90 %: m.linear(x) in {overhead['linear_us']:.2f} us, of which {overhead['overhead_us']:.2f} "
            f"us are the call (goal: under {1e6 * OVERHEAD_GOAL:.0f})"
        )


def _print_summary(suite: str, threads: int, lines: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            line["name"],
            f"{line['sparsity']:.0%}",
            _work(line),
            _number(line["dense"]),
            _number(line["dense_least"]),
            _number(line["dense_median"]),
            _number(line["goal"]),
            line["holds"] or "",
            _number(line["share_least"], ".0%"),
            _number(line["sparse"]),
            _number(line["sparse_least"]),
        ]
        for line in sorted(lines, key=lambda line: (line["sparsity"], line["steps"], line["n"]))
    ]
    print_table(
        f"{SUITES[suite].title}: times the fastest dense and sparse library, geometric means over shapes, "
        f"{threads} thread(s)",
        ["", "sparsity", "N", "x dense", "least", "median", "goal", "holds", "of bound", "x sparse", "least"],
        rows,
        130,
    )  # fmt: skip


def _print_goals(lines: Sequence[Mapping[str, Any]]) -> None:
    """All goals in one table."""
    if not lines:
        return
    rows = [
        [
            line["suite"],
            str(line["threads"]),
            f"{line['sparsity']:.0%}",
            _work(line),
            str(line["shapes"]),
            _number(line["goal"]),
            _number(line["dense"]),
            _number(line["dense_least"]),
            _number(line["share_least"], ".0%"),
            line["holds"],
            _number(line["sparse_least"]),
            line["worst"],
        ]
        for line in lines
    ]
    print_table(
        f"Goals: {GOAL_PATTERN}, times the fastest dense library",
        [
            "", "threads", "sparsity", "N", "shapes", "goal", "mean", "least", "of bound", "holds",
            f"least x sparse ({SPARSE_GOAL:.0f})", "furthest from its goal",
        ],
        rows,
        150,
    )  # fmt: skip
