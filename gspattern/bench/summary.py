"""Compares patterns with the fastest dense and the fastest sparse library, and both with the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gspattern.bench.layers import DTYPES
from gspattern.bench.suites import GOAL_PATTERN, SUITES

__all__ = [
    "CASE",
    "SPARSE_GOAL",
    "THREADS_GOAL",
    "geometric_mean",
    "goal_of",
    "grouped",
    "summarise",
]

# Matrix products of at most FEW columns that stream from the same level as dense ones: no more than this of the ratio
# of bytes is asked for.
OF_BYTES = 0.9
FEW = 5
SPARSE_GOAL = 2.0  # times the fastest sparse library, on every shape
THREADS_GOAL = 1.7  # two threads over one, for work above
LONG = 200e-6  # seconds
SHARE = 0.85  # of its own bound: a kernel that reaches it has done what it can
WORST = 0.8  # of its goal: what every single shape must reach

# Fields that tell one case from another, and those of a line of the summary, whose shapes are taken together.
CASE = ("suite", "shape", "rows", "cols", "sparsity", "steps", "n", "threads")
MEAN = ("suite", "threads", "sparsity", "steps", "n", "name")


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product."""
    return statistics.geometric_mean(values)


def goal_of(line: Mapping[str, Any], caches: Mapping[str, int]) -> float | None:
    """Times dense that one shape must reach; None where no goal is set.

    Parameters
    ----------
    line : mapping
        A result of the pattern.
    caches : mapping of str to int
        Bytes of each level.
    """
    suite = SUITES[line["suite"]]
    goal = suite.goals.get(line["sparsity"], {}).get(line["n"])
    if goal is None or line["name"] != GOAL_PATTERN:
        return None
    nbytes = line.get("step_bytes", line["bytes"])  # that are read again and again
    dense_bytes = DTYPES[suite.dtype].nbytes * line["rows"] * line["cols"]
    compact, dense = _level(nbytes, caches), _level(dense_bytes, caches)
    if line["n"] == 1 and compact <= "L2" < dense:
        goal = suite.in_l2.get(line["sparsity"], goal)
    if suite.operation == "linear" and line["n"] <= FEW and compact == dense:
        goal = min(goal, OF_BYTES * dense_bytes / nbytes)
    return goal


def _level(nbytes: int, caches: Mapping[str, int]) -> str:
    """ "L1d" < "L2" < "L3" < "memory": in the order of the alphabet."""
    sizes = sorted(caches.items(), key=lambda cache: cache[1])
    return next((name for name, size in sizes if nbytes <= size), "memory")


def summarise(results: Sequence[Mapping[str, Any]], caches: Mapping[str, int]) -> dict[str, Any]:
    """Compare patterns with the fastest dense and the fastest sparse library of each case.

    Every contender counts with the better of its layouts, by its best time.

    Parameters
    ----------
    results : sequence of dict
        Lines of all cases, as `run` makes them.
    caches : mapping of str to int
        Bytes of each level, for the goals.

    Returns
    -------
    dict
        "ratios": a line for each pattern in each case. "summary": their geometric means over the shapes, with the goal
        and whether it holds. "scaling": for products that take long, the speed-up by threads.
    """
    ratios = []
    for case in grouped(results, CASE).values():
        fastest = {
            kind: min((line["best_us"] for line in case if line["kind"] == kind), default=None)
            for kind in ("dense", "sparse")
        }
        medians = [line["median_us"] for line in case if line["kind"] == "dense"]
        for name, lines in grouped([r for r in case if r["kind"] == "pattern"], ("name",)).items():
            best = min(lines, key=lambda line: float(line["best_us"]))
            median = min(line["median_us"] for line in lines)
            line = {key: best[key] for key in (*CASE, "size")}
            line |= {"name": name[0], "layout": best["layout"], "best_us": best["best_us"]}
            line["dense"] = fastest["dense"] and fastest["dense"] / best["best_us"]
            line["dense_median"] = min(medians) / median if medians else None
            line["sparse"] = fastest["sparse"] and fastest["sparse"] / best["best_us"]
            # A layout that reads more bytes does not lower what is asked for.
            goals = [goal for each in lines if (goal := goal_of(each, caches))]
            line["goal"] = max(goals, default=None)
            line["share"] = best.get("share")
            line["limit"] = best.get("limit")
            ratios.append(line)
    summary = []
    for key, lines in grouped(ratios, MEAN).items():
        line = dict(zip(MEAN, key, strict=True))
        line["shapes"] = len(lines)
        for kind in ("dense", "dense_median", "sparse"):
            values = [each[kind] for each in lines if each[kind]]
            line[kind] = geometric_mean(values) if values else None
            line[f"{kind}_least"] = min(values) if values else None
        goals = [each["goal"] for each in lines]
        line["goal"] = geometric_mean(goals) if all(goals) else None
        shares = [each["share"] for each in lines if each["share"]]
        line["share_least"] = min(shares) if shares else None
        line["worst"] = _worst(lines)
        line["holds"] = _verdict(line, lines)
        summary.append(line)
    return {"ratios": ratios, "summary": summary, "scaling": _scaling(ratios)}


def _worst(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """The shape that is furthest below its goal, or, without goals, least above dense."""
    compared = [line for line in lines if line["dense"]]
    if not compared:
        return None
    worst = min(compared, key=lambda line: float(line["dense"] / (line["goal"] or 1)))
    return str(worst["shape"])


def _verdict(line: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]]) -> str | None:
    """ "yes", "by roofline" or "no"; None without a goal or without dense libraries."""
    if line["goal"] is None or line["dense"] is None:
        return None
    if line["dense"] >= line["goal"] and all(
        shape["dense"] >= WORST * shape["goal"] for shape in shapes
    ):
        return "yes"
    return "by roofline" if (line["share_least"] or 0) >= SHARE else "no"


def _scaling(ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for group in grouped(ratios, ("name", *(key for key in CASE if key != "threads"))).values():
        one = next((line for line in group if line["threads"] == 1), None)
        if one is None or one["best_us"] * 1e-6 < LONG:
            continue
        for line in group:
            if line["threads"] > 1:
                same = {key: line[key] for key in ("name", *CASE)}
                lines.append(
                    same | {"speedup": one["best_us"] / line["best_us"], "one_us": one["best_us"]}
                )
    return lines


def grouped(
    lines: Iterable[Mapping[str, Any]], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Lines that have the same values for these keys, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    return groups
