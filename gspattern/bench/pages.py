"""A report as the tables of docs/RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gspattern.bench.suites import GOAL_PATTERN, SUITES
from gspattern.bench.summary import THREADS_GOAL, grouped

__all__ = ["markdown"]

Line = Mapping[str, Any]


def markdown(report: Mapping[str, Any]) -> str:
    """Give the tables of every suite of a report.

    Parameters
    ----------
    report : mapping
        What `run` returns.

    Returns
    -------
    str
        For each suite and number of threads, means over shapes, then every shape; then the speed-up by threads.
    """
    parts = [_machine(report)]
    for (suite, threads), lines in grouped(report["summary"], ("suite", "threads")).items():
        mine = [
            line
            for line in report["results"]
            if (line["suite"], line["threads"]) == (suite, threads)
        ]
        parts.append(f"### {SUITES[suite].title}, {threads} thread(s)")
        parts.append(_means(lines))
        parts.append(
            "Microseconds of the fastest dense library / the fastest sparse one, where there is one / "
            f"**{GOAL_PATTERN}** (the share of its own bound that it reached, and what bounds it):"
        )
        parts.append(_shapes(mine))
        parts.append(_errors(mine))
    if report["scaling"]:
        parts.append(f"### Threads (goal for two: {THREADS_GOAL})")
        rows = (
            [
                line["name"], line["suite"], line["shape"], f"{line['sparsity']:.0%}", _n(line), str(line["threads"]),
                f"{line['one_us']:,.0f}", f"{line['speedup']:.2f}",
            ]
            for line in report["scaling"]
        )  # fmt: skip
        head = [
            "pattern",
            "suite",
            "shape",
            "sparsity",
            "N",
            "threads",
            "one thread, us",
            "speed-up",
        ]
        parts.append(_table(head, rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    clock = "CPU times" if report["settings"]["clock"] == "cpu" else "wall-clock times"
    return (
        f"    {report['command']}\n\n{machine['name']}, {machine['cores']} core(s), {caches}; {report['date'][:10]}; "
        f"{versions}; {', '.join(report['blas'])}. {clock}, the best of all batches; other programs had "
        f"{report['busy']:.0%} of a core."
    )


def _means(lines: Sequence[Line]) -> str:
    """Times dense by pattern, means and the least; then whether the goal is reached."""
    names = list(dict.fromkeys(line["name"] for line in lines))
    sparse = any(line["sparse"] for line in lines)
    head = [
        "sparsity",
        "N",
        "goal",
        *names,
        "holds",
        "least share of its bound",
        "furthest from its goal",
    ]
    rows = []
    for group in grouped(lines, ("sparsity", "steps", "n")).values():
        by_name = {line["name"]: line for line in group}
        ours = by_name.get(GOAL_PATTERN, group[0])
        row = [f"{ours['sparsity']:.0%}", _n(ours), _number(ours["goal"], ".1f")]
        row += [_mean(by_name.get(name), "dense") for name in names]
        row += [ours["holds"] or "", _number(ours["share_least"], ".0%"), ours["worst"] or ""]
        rows.append(row + ([_mean(ours, "sparse")] if sparse else []))
    return _table(head + ([f"{GOAL_PATTERN} over sparse libraries"] if sparse else []), rows)


def _mean(line: Line | None, kind: str) -> str:
    if line is None or line[kind] is None:
        return ""
    return f"{line[kind]:.1f} ({line[f'{kind}_least']:.1f})"


def _shapes(lines: Sequence[Line]) -> str:
    """A row for each shape and sparsity, a column for each n."""
    columns = sorted({(line["steps"], line["n"]) for line in lines})
    rows = []
    for (_, _, sparsity), shape in grouped(lines, ("shape", "size", "sparsity")).items():
        first, found = shape[0], []
        for steps, n in columns:
            case = [line for line in shape if (line["steps"], line["n"]) == (steps, n)]
            times = [_fastest(case, kind="dense"), _fastest(case, kind="sparse")]
            ours = _fastest(case, name=GOAL_PATTERN)
            cell = [f"{line['best_us']:,.1f}" for line in times if line]
            if ours:
                share = f" ({ours['share']:.0%}, {ours['limit']})" if "share" in ours else ""
                cell.append(f"**{ours['best_us']:,.1f}**{share}")
            found.append(" / ".join(cell))
        name = "" if first["shape"] == first["size"] else f"{first['shape']}: "
        rows.append([name + first["size"], f"{sparsity:.0%}", *found])
    names = [f"N = {n}" if steps == 1 else f"{steps} steps, N = {n}" for steps, n in columns]
    return _table(["shape", "sparsity", *names], rows)


def _fastest(case: Sequence[Line], **wanted: str) -> Line | None:
    mine = [line for line in case if all(line[key] == value for key, value in wanted.items())]
    return min(mine, key=lambda line: float(line["best_us"]), default=None)


def _errors(lines: Sequence[Line]) -> str:
    found = []
    for what, wanted in (("all patterns", True), ("the libraries", False)):
        mine = [line for line in lines if (line["kind"] == "pattern") == wanted]
        if mine:
            text = f"{max(line['error_eps'] for line in mine):.1f} epsilon for {what}"
            if "error_float32" in mine[0]:
                text += (
                    f" ({max(line['error_float32'] for line in mine):.2%} of the float32 result)"
                )
            found.append(text)
    return (
        f"Errors against float64, the largest |y - exact| / (|W| |x|): at most {', '.join(found)}."
    )


def _n(line: Line) -> str:
    return str(line["n"]) if line["steps"] == 1 else f"{line['steps']} x {line['n']}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In pipes; the first column is text, all others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
