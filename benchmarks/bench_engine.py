"""What the paper's processor, as modelled, makes of GNMT, ResNet50 and Jasper at their real shapes.

    python benchmarks/bench_engine.py [--preset paper128] [--models gnmt resnet50 jasper] [--json FILE] [--picture FILE]

Cycles of the dense network over those of one whose layers are pruned by magnitude (random weights), at batch 1, with
as many banks as the processor has lanes: a table for each model, and a picture. What is modelled: docs/ENGINE.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gspattern.engine import PRESETS, network_cycles, total_cycles
from gspattern.engine.networks import NETWORKS

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Ratios = dict[str, dict[str, list[float]]]  # model, pattern: one for each sparsity


def run(models: list[str], preset: str) -> dict[str, Any]:
    """Cycles of every model, pattern and sparsity."""
    lanes = PRESETS[preset].lanes
    patterns = (
        "irregular", f"gs({lanes},{lanes})", f"gs({lanes},4)", f"gs({lanes},1)", f"gs({lanes},1)+scatter",
        f"block(1,{lanes})", f"block({lanes},1)", "block(1,4)",
    )  # fmt: skip
    cells: list[dict[str, Any]] = []
    todo = [(m, "dense", None) for m in models]
    todo += [(m, p, s) for m in models for p in patterns for s in SPARSITIES]
    for model, pattern, sparsity in tqdm(todo, unit="network"):
        cycles = total_cycles(network_cycles(model, pattern, sparsity, preset))
        values = dataclasses.asdict(cycles)
        del values["y"]
        cells.append({"model": model, "pattern": pattern, "sparsity": sparsity, **values})
    return {"preset": preset, "engine": dataclasses.asdict(PRESETS[preset]), "cells": cells}


def ratios(cells: list[dict[str, Any]]) -> Ratios:
    """Dense cycles over those of every pattern."""
    found: Ratios = {}
    dense = {cell["model"]: cell["total"] for cell in cells if cell["pattern"] == "dense"}
    for cell in cells:
        if cell["pattern"] != "dense":
            of_model = found.setdefault(cell["model"], {})
            ratio = dense[cell["model"]] / cell["total"]
            of_model.setdefault(cell["pattern"], []).append(ratio)
    return found


def print_tables(found: Ratios) -> None:
    for model, patterns in found.items():
        print(f"| {model} | " + " | ".join(f"{s:.0%}" for s in SPARSITIES) + " |")
        print("|---|" + "---:|" * len(SPARSITIES))
        for pattern, each in patterns.items():
            print(f"| {pattern} | " + " | ".join(f"{ratio:.2f}" for ratio in each) + " |")
        print()


def draw(found: Ratios, preset: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for ax, (model, patterns) in zip(axes, found.items(), strict=True):
        for i, (pattern, each) in enumerate(patterns.items()):
            style = "-" if pattern.startswith("gs") else "--" if "block" in pattern else ":"
            ax.plot(SPARSITIES, each, style, marker="osD^vP*X"[i], label=pattern)
        ax.plot(SPARSITIES, [1 / (1 - s) for s in SPARSITIES], color="#bbbbbb", lw=1, label="1 / density")  # fmt: skip
        ax.set(title=f"{model}, {preset}", xlabel="sparsity of pruned layers", yscale="log")
        ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("dense cycles over cycles")
    axes[-1].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper128")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    report = run(arguments.models, arguments.preset)
    found = ratios(report["cells"])
    print_tables(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if arguments.picture:
        draw(found, arguments.preset, arguments.picture)


if __name__ == "__main__":
    main()
