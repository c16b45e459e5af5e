"""What a sweep found, as tables and pictures: accuracy against sparsity, bytes and measured time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from gspattern.patterns import GS, BankBalanced, Block, CpuGS, parse_pattern
from gspattern.sweep import Cells

__all__ = ["Equal", "at_equal_score", "draw", "is_block", "is_gs", "rows", "write_report"]

Row = dict[str, Any]
LOWER = ("loss", "wer")  # ends of the names of metrics that are better when they are lower

HEADS = (
    "pattern", "sparsity", "seeds", "score", "spread", "against irregular", "spread of that", "of dense bytes",
    "ms", "times dense",
)  # fmt: skip


def is_gs(pattern: str) -> bool:
    """Whether a pattern is balanced over banks."""
    return pattern != "dense" and isinstance(parse_pattern(pattern), GS | CpuGS | BankBalanced)


def is_block(pattern: str) -> bool:
    """Whether a pattern is of blocks."""
    return pattern != "dense" and isinstance(parse_pattern(pattern), Block)


def rows(cells: Cells) -> list[Row]:
    """One row for each model, pattern and sparsity, over its seeds.

    "score" is the mean of the converted network's, "spread" the standard deviation of what the seeds were drawn from
    (nan for one seed). "difference" and its spread are from irregular at the same sparsity, seed by seed. "bytes" are
    those of the file with all pruned layers compact; "ms" is the mean over seeds of the median time of one sample, of
    the form in which each layer is compact or dense, whichever is faster, and "times" the time of the fastest dense
    form in the same process over it.
    """
    found: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for cell in cells:
        found[cell["model"], cell["pattern"], cell["sparsity"]][cell["seed"]] = cell
    return [
        _row(key, seeds, found.get((key[0], "irregular", key[2]), {}))
        for key, seeds in found.items()
    ]


def _row(
    key: tuple[str, str, float], seeds: dict[int, dict[str, Any]], irregular: dict[int, Any]
) -> Row:
    model, pattern, sparsity = key
    metric = next(iter(seeds.values()))["metric"]
    scores = [cell["scores"][metric] for cell in seeds.values()]
    paired = [
        cell["scores"][metric] - irregular[seed]["scores"][metric]
        for seed, cell in seeds.items()
        if seed in irregular
    ]
    own = np.array([_time(cell) for cell in seeds.values()])
    dense = np.array([_dense_time(cell) for cell in seeds.values()])
    size = "dense" if pattern == "dense" else "compact"
    return {
        "model": model,
        "pattern": pattern,
        "sparsity": sparsity,
        "metric": metric,
        "seeds": len(seeds),
        "score": float(np.mean(scores)),
        "spread": _spread(scores),
        "difference": float(np.mean(paired)) if paired else float("nan"),
        "difference_spread": _spread(paired),
        "bytes": float(np.mean([cell["bytes"][size] for cell in seeds.values()])),
        "dense_bytes": float(np.mean([cell["bytes"]["dense"] for cell in seeds.values()])),
        "ms": float(own.mean()),
        "times": float(np.mean(dense / own)),
    }


def _time(cell: dict[str, Any]) -> float:
    return float(cell["ms"]["fastest"]) if "fastest" in cell["ms"] else _dense_time(cell)


def _dense_time(cell: dict[str, Any]) -> float:
    return min(float(ms) for form, ms in cell["ms"].items() if form not in ("compact", "fastest"))


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


# ------------------------------------------------------------ equal accuracy


class Equal(NamedTuple):
    """What two families of patterns need for the same score."""

    score: float
    first: float
    second: float

    @property
    def ratio(self) -> float:
        return self.first / self.second


def at_equal_score(
    several: Sequence[Row],
    first: Callable[[str], bool],
    second: Callable[[str], bool],
    key: str = "ms",
) -> list[Equal]:
    """What the best patterns of two families need (`key`: "ms", "bytes") for the same score, of one model.

    A family's need for a score is the least over its patterns; a pattern's is interpolated linearly between neighbours
    in sparsity. Scores are those of the points of the second family; where the first never reaches a score, it is left
    out.

    Parameters
    ----------
    several : sequence of dict
        Rows of one model.
    first, second : callable
        Which patterns, by name, make a family.
    """
    found = []
    better = _sign(several)
    for row in sorted((r for r in several if second(r["pattern"])), key=lambda r: r["score"]):
        needs = [_need(several, family, better * row["score"], key) for family in (first, second)]
        if all(need < float("inf") for need in needs):
            found.append(Equal(row["score"], *needs))
    return found


def _sign(several: Sequence[Row]) -> int:
    """1 where a higher score is better, or -1."""
    return -1 if several[0]["metric"].endswith(LOWER) else 1


def _need(several: Sequence[Row], family: Callable[[str], bool], score: float, key: str) -> float:
    """The least of `key` with which a family reaches a score (better when higher); infinite if it does not."""
    better = _sign(several)
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in several:
        if family(row["pattern"]):
            curves[row["pattern"]].append((row["sparsity"], better * row["score"], row[key]))
    least = float("inf")
    for curve in curves.values():
        points = [(s, cost) for _, s, cost in sorted(curve)]
        least = min([least, *(cost for s, cost in points if s >= score)])
        for (s, cost), (t, other) in pairwise(points):
            if min(s, t) < score < max(s, t):
                least = min(least, cost + (score - s) / (t - s) * (other - cost))
    return least


# -------------------------------------------------------- tables and pictures


def write_report(cells: Cells, folder: Path, console: Console) -> None:
    """Print a table for each model; write report.md, and MODEL.png for each, to the folder."""
    text = ""
    by_model = _by_model(rows(cells))
    for model, several in by_model.items():
        several.sort(key=lambda row: (row["sparsity"], row["pattern"]))
        title = f"{model}: {several[0]['metric']}"
        table = Table(title=title)
        for head in HEADS:
            table.add_column(head, justify="left" if head == "pattern" else "right")
        lines = [HEADS, ("---", *["---:"] * (len(HEADS) - 1))]
        for row in several:
            table.add_row(*_texts(row))
            lines.append(_texts(row))
        console.print(table)
        text += f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
        for said in _said(several):
            console.print(said)
            text += said + "\n\n"
        draw(several, folder / f"{model}.png")
    (folder / "report.md").write_text(text, "utf-8")
    print(f"{folder}: report.md, {', '.join(f'{model}.png' for model in by_model)}")


def _by_model(several: Iterable[Row]) -> dict[str, list[Row]]:
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in several:
        by_model[row["model"]].append(row)
    return by_model


def _said(several: Sequence[Row]) -> list[str]:
    equal = at_equal_score(several, is_block, is_gs)
    if not equal:
        return ["No block pattern reaches the score of a GS pattern."]
    ratios = [each.ratio for each in equal]
    return [
        f"Run time of the best block pattern over that of the best GS pattern at equal {several[0]['metric']}: "
        f"{min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}, at {len(ratios)} scores of "
        f"{equal[0].score:.2f} to {equal[-1].score:.2f}."
    ]


def _texts(row: Row) -> tuple[str, ...]:
    return (
        row["pattern"], f"{row['sparsity']:.0%}", str(row["seeds"]), f"{row['score']:.2f}",
        _number(row["spread"], "{:.2f}"), _number(row["difference"], "{:+.2f}"),
        _number(row["difference_spread"], "{:.2f}"), f"{row['bytes'] / row['dense_bytes']:.1%}",
        f"{row['ms']:.3f}", f"{row['times']:.2f}",
    )  # fmt: skip


def _number(value: float, how: str) -> str:
    return "" if np.isnan(value) else how.format(value)


def draw(several: Sequence[Row], path: Path | None = None) -> Any:
    """Score against sparsity, bytes and time, a curve for each pattern of one model.

    Curves leave the picture where the score is further from the best than thrice the distance of the median pattern.

    Returns
    -------
    matplotlib Figure
        Written to `path` too, if one is given.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    names = {
        "sparsity": "sparsity of pruned layers", "bytes": "bytes on disk", "ms": "ms for one sample, measured",
    }  # fmt: skip
    for ax, (key, label) in zip(axes, names.items(), strict=True):
        for i, pattern in enumerate(dict.fromkeys(row["pattern"] for row in several)):
            chosen = sorted((r for r in several if r["pattern"] == pattern), key=lambda r: r["sparsity"])  # fmt: skip
            style = "-" if is_gs(pattern) else "--" if is_block(pattern) else ":"
            ax.errorbar(
                [row[key] for row in chosen], [row["score"] for row in chosen],
                yerr=np.nan_to_num([row["spread"] for row in chosen]), linestyle=style,
                marker="osD^vP*X<>hd"[i % 12], capsize=3, label=pattern, color=colormaps["tab20"](i % 20),
            )  # fmt: skip
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(several[0]["metric"])
    better = _sign(several)
    scores = better * np.array([row["score"] for row in several])
    best, away = scores.max(), 3 * (scores.max() - np.median(scores))
    if away > 0:
        worst = max(scores.min(), best - away)
        margin = 0.05 * (best - worst)
        axes[0].set_ylim(*(better * score for score in (worst - margin, best + margin)))
    elif better < 0:
        axes[0].invert_yaxis()
    axes[-1].legend(fontsize="small")
    if path is not None:
        figure.savefig(path, dpi=100)
    return figure
