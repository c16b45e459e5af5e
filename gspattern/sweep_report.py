"""What a sweep found, as tables and pictures: accuracy against sparsity, bytes and measured time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gspattern.sweep import Results

__all__ = ["rows", "write_report"]

HEADS = (
    "pattern", "sparsity", "seeds", "score", "spread", "against irregular", "of dense bytes", "ms",
    "times dense",
)  # fmt: skip


def rows(results: Results) -> list[dict[str, Any]]:
    """One row for each model, pattern and sparsity, over its seeds.

    "score" is the mean of the converted network's, "spread" the standard deviation of what the seeds were drawn from
    (nan for one seed). "difference" and its spread are from irregular at the same sparsity, seed by seed.
    Bytes are the file's, "ms" the mean over seeds of the median time of one sample, "times" the fastest dense form's
    time in the same process over it.
    """
    found: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        # A pattern such as 2:4 is what it is, whatever the flag says.
        asked = result["options"]["sparsity"] if result["pattern"] != "dense" else 0.0
        if ":" in result["pattern"]:
            asked = round(result["sparsity"], 4)
        found[result["model"], result["pattern"], asked][result["seed"]] = result
    return [_row(key, seeds, found.get((key[0], "irregular", key[2]), {})) for key, seeds in found.items()]  # fmt: skip


def _row(
    key: tuple[str, str, float], seeds: dict[int, dict[str, Any]], irregular: dict[int, Any]
) -> dict[str, Any]:
    model, pattern, sparsity = key
    scores = [_score(result) for result in seeds.values()]
    paired = [_score(r) - _score(irregular[s]) for s, r in seeds.items() if s in irregular]
    kind = "dense" if pattern == "dense" else "compact"
    own = [1e3 * _own_time(result) for result in seeds.values()]
    dense = [1e3 * _dense_time(result) for result in seeds.values()]
    some = next(iter(seeds.values()))
    return {
        "model": model,
        "pattern": pattern,
        "sparsity": sparsity,
        "metric": some["metric"],
        "seeds": len(seeds),
        "score": float(np.mean(scores)),
        "spread": _spread(scores),
        "difference": float(np.mean(paired)) if paired else float("nan"),
        "difference_spread": _spread(paired),
        "bytes": float(np.mean([result["bytes"][kind] for result in seeds.values()])),
        "dense_bytes": float(np.mean([result["bytes"]["dense"] for result in seeds.values()])),
        "ms": float(np.mean(own)),
        "times": float(np.mean(np.array(dense) / np.array(own))),
    }


def _score(result: dict[str, Any]) -> float:
    scores = result["scores"]
    return float(scores.get("compact", scores["dense"])[result["metric"]])


def _dense_time(result: dict[str, Any]) -> float:
    pruned = result["pattern"] if result["pattern"] != "dense" else None
    return min(float(t["median"]) for name, t in result["latency"].items() if name != pruned)


def _own_time(result: dict[str, Any]) -> float:
    if result["pattern"] == "dense":
        return _dense_time(result)
    return float(result["latency"][result["pattern"]]["median"])


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["pattern"], f"{row['sparsity']:.0%}", str(row["seeds"]), f"{row['score']:.2f}",
        _number(row["spread"], "{:.2f}"), _number(row["difference"], "{:+.2f}"),
        f"{row['bytes'] / row['dense_bytes']:.1%}", f"{row['ms']:.3f}", f"{row['times']:.2f}",
    )  # fmt: skip


def _number(value: float, how: str) -> str:
    return "" if np.isnan(value) else how.format(value)


def write_report(results: Results, folder: Path, console: Console) -> None:
    """Print a table for each model; write report.md, and MODEL.png for each, to the folder."""
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(results):
        by_model[row["model"]].append(row)
    text = ""
    for model, several in by_model.items():
        several.sort(key=lambda row: (row["sparsity"], row["pattern"]))
        title = f"{model}: {several[0]['metric']}"
        table = Table(title=title)
        for head in HEADS:
            table.add_column(head, justify="left" if head == "pattern" else "right")
        lines = [HEADS, ("---", *["---:"] * (len(HEADS) - 1))]
        for row in several:
            table.add_row(*_cells(row))
            lines.append(_cells(row))
        console.print(table)
        text += f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
        _draw(several, folder / f"{model}.png")
    (folder / "report.md").write_text(text, "utf-8")
    print(f"{folder}: report.md, {', '.join(f'{model}.png' for model in by_model)}")


def _draw(several: list[dict[str, Any]], path: Path) -> None:
    from gspattern.plots import _pyplot

    pyplot = _pyplot()
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(1, 3, sharey=True, figsize=(15, 5), layout="constrained")
    names = {"sparsity": "sparsity", "bytes": "bytes on disk", "ms": "ms for one sample, measured"}
    for ax, (key, label) in zip(axes, names.items(), strict=True):
        for i, pattern in enumerate(dict.fromkeys(row["pattern"] for row in several)):
            chosen = [row for row in several if row["pattern"] == pattern]
            ax.errorbar(
                [row[key] for row in chosen], [row["score"] for row in chosen],
                yerr=np.nan_to_num([row["spread"] for row in chosen]),
                marker="osD^vP*X<>hd"[i % 12], capsize=3, label=pattern,
            )  # fmt: skip
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(several[0]["metric"])
    axes[-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
