"""What the paper's processor, as modelled, makes of GNMT, ResNet50 and Jasper at their real shapes.

    python benchmarks/bench_engine.py [--preset paper128] [--models gnmt resnet50 jasper] [--json FILE] [--picture FILE]
    python benchmarks/bench_engine.py --sweep docs/sweeps/resnet18.json [--picture FILE]

Cycles of the dense network over those of one whose layers are pruned by magnitude (random weights), at batch 1, with
as many banks as the processor has lanes: a table for each model, and a picture. What is modelled: docs/ENGINE.md.

With --sweep: accuracy against cycles, for the network of sweeps/resnet50.toml (a narrow ResNet-18), and what the best
block pattern needs over what the best GS pattern does for the same accuracy.
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
from gspattern.patterns import NM, parse_pattern
from gspattern.sweep import read
from gspattern.sweep_report import Row, at_equal_score, is_block, is_gs, rows

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# The ResNet-18 of sweeps/resnet50.toml: what is pruned, and what is not.
RESNET18 = """
conv2d 16 16 3x3 1 1 8x8 layer1 (4)
conv2d 16 32 3x3 2 1 8x8 layer2.0.conv1
conv2d 16 32 1x1 2 1 8x8 layer2.0.downsample
conv2d 32 32 3x3 1 1 4x4 layer2 (3)
conv2d 32 64 3x3 2 1 4x4 layer3.0.conv1
conv2d 32 64 1x1 2 1 4x4 layer3.0.downsample
conv2d 64 64 3x3 1 1 2x2 layer3 (3)
conv2d 64 128 3x3 2 1 2x2 layer4.0.conv1
conv2d 64 128 1x1 2 1 2x2 layer4.0.downsample
conv2d 128 128 3x3 1 1 1x1 layer4 (3)
"""
RESNET18_DENSE = """
conv2d 3 16 7x7 2 1 32x32 conv1
62 128 1 fc
"""
POINTS = 8  # below the best accuracy, what is looked at
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


def scored(path: Path, preset: str) -> list[Row]:
    """What a sweep of the narrow ResNet-18 found, with cycles."""
    several = [row for row in rows(read(path)) if row["model"] == "resnet18"]
    for row in several:
        given = row["pattern"]
        fixed = given == "dense" or isinstance(parse_pattern(given), NM)
        sparsity = None if fixed else row["sparsity"]
        layers = [
            layer
            for text, pattern in ((RESNET18, given), (RESNET18_DENSE, "dense"))
            for line in text.strip().splitlines()
            for layer in network_cycles(line, pattern, sparsity, preset)
        ]
        row["cycles"] = total_cycles(layers).total
    return several


def print_scored(several: list[Row]) -> None:
    dense = next(row["cycles"] for row in several if row["pattern"] == "dense")
    print("| pattern | sparsity | top-1 | cycles | dense over that |\n|---|---:|---:|---:|---:|")
    for row in sorted(several, key=lambda row: (row["sparsity"], -row["score"])):
        print(
            f"| {row['pattern']} | {row['sparsity']:.0%} | {row['score']:.2f} | {row['cycles']:,} | "
            f"{dense / row['cycles']:.2f} |"
        )
    best = max(row["score"] for row in several)
    for name, family in (("block", is_block), ("irregular", lambda p: p == "irregular")):
        for each in at_equal_score(several, family, is_gs, "cycles"):
            if each.score > best - POINTS:
                print(
                    f"{each.score:.2f}: {name} {each.first:,.0f}, GS {each.second:,.0f}, {each.ratio:.2f} times"
                )


def draw_scored(several: list[Row], preset: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    best = max(row["score"] for row in several)
    for i, pattern in enumerate(dict.fromkeys(row["pattern"] for row in several)):
        points = sorted((r["cycles"], r["score"], r["spread"]) for r in several if r["pattern"] == pattern)  # fmt: skip
        style = "-" if is_gs(pattern) else "--" if is_block(pattern) else ":"
        cycles, score, spread = zip(*points, strict=True)
        ax.errorbar(
            cycles, score, spread, linestyle=style, marker="osD^vP*X<>hd"[i % 12], capsize=3, label=pattern,
            color=f"C{i}" if i < 10 else ("black", "grey")[i % 2],
        )  # fmt: skip
    ax.set(
        xlabel=f"cycles for one picture, {preset}", ylabel="top-1", ylim=(best - POINTS, best + 1)
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper128")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--sweep", type=Path, help="cells of a sweep, as gspattern.sweep.write has them"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.sweep:
        several = scored(arguments.sweep, arguments.preset)
        print_scored(several)
        if arguments.picture:
            draw_scored(several, arguments.preset, arguments.picture)
        return
    report = run(arguments.models, arguments.preset)
    found = ratios(report["cells"])
    print_tables(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if arguments.picture:
        draw(found, arguments.preset, arguments.picture)


if __name__ == "__main__":
    main()
