"""What a `Pruner` costs in training: an update of all masks, and the masking after every step.

    python benchmarks/bench_training.py [-p PATTERN]... [--model resnet50]... [--batch 32] [--json FILE]

The models are the pruned layers of `gspattern bench`, as often as they stand in ResNet50 and GNMT v2, without what
lies between them. A training step is forward, backward and the optimiser's step (SGD with momentum for ResNet50, Adam
for GNMT, of 25 tokens a sentence) of each layer by itself; a whole model takes longer, so the shares are upper bounds.
Masking is timed as one call of `Pruner.apply`, which is what `optimizer.step()` and `Pruner.step()` do between them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import gspattern as gs
from gspattern.bench import print_table, read_shapes
from gspattern.bench.shapes import ConvShape, LinearShape
from gspattern.torch import Pruner, cubic

PATTERNS = ["gs(16,16)", "gs(16,1)+scatter", "gs(cpu)"]
GOALS = {"resnet50": 2.0, "gnmt": 8.0}  # seconds for one update
SHARE = 0.02  # of a step
TOKENS = 25  # of a sentence


def layers_of(model: str) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Every layer with the shape of its input, without the batch."""
    layers: list[tuple[nn.Module, tuple[int, ...]]] = []
    for shape in read_shapes(model):
        count = re.search(r"\((\d+)\)$", shape.name)
        for _ in range(int(count[1]) if count else 1):
            if isinstance(shape, ConvShape):
                kernel, width = shape.kernel[0], shape.dilation
                layer: nn.Module = nn.Conv2d(
                    shape.inputs, shape.outputs, kernel, shape.stride, width * (kernel - 1) // 2, width, bias=False
                )  # fmt: skip
                layers.append((layer, (shape.inputs, *shape.length)))
            elif isinstance(shape, LinearShape):
                tokens = (TOKENS,) if model == "gnmt" else ()
                layers.append((nn.Linear(shape.cols, shape.rows), (*tokens, shape.cols)))
    return layers


def best(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def train(layers: list[tuple[nn.Module, tuple[int, ...]]], batch: int) -> None:
    """Forward and backward of every layer."""
    for layer, shape in layers:
        x = torch.randn(batch, *shape, requires_grad=True)
        layer(x).square().mean().backward()


def measure(model: str, pattern: str, batch: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = layers_of(model)
    net = nn.Sequential(*(layer for layer, _ in layers))
    optimizer: torch.optim.Optimizer
    if model == "resnet50":
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(net.parameters())
    pruner = Pruner(
        net, pattern, 0.9, schedule=cubic(1, 3, every=1, initial=0.8), include=["*"], rewindable=False
    )  # fmt: skip
    update = best(pruner.step, 3)
    pruner.finalize()
    pruner = Pruner.from_zeros(net, "irregular", optimizer, include=["*"])
    train(layers, 1)
    optimizer.step()  # makes its state, which is masked too
    masking = best(pruner.apply, 5)
    pruner.finalize()
    step = best(lambda: (train(layers, batch), optimizer.step()), 1)
    return {
        "model": model,
        "pattern": pattern,
        "weights": sum(layer.weight.numel() for layer, _ in layers),
        "batch": batch,
        "update_s": update,
        "goal_s": GOALS[model],
        "step_s": step,
        "masking_s": masking,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time what a Pruner adds to training.")
    parser.add_argument("-p", "--pattern", action="append", help="default: three of them")
    parser.add_argument("--model", action="append", choices=sorted(GOALS), help="default: both")
    parser.add_argument("--batch", type=int, default=32, help="pictures, or sentences")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gs.set_num_threads(1)
    cases = [
        (model, pattern)
        for model in arguments.model or sorted(GOALS)
        for pattern in arguments.pattern or PATTERNS
    ]
    results = [measure(*case, arguments.batch) for case in tqdm(cases, leave=False, disable=None)]
    rows = [
        [
            r["model"],
            r["pattern"],
            f"{r['weights'] / 1e6:.1f}",
            f"{r['update_s']:.2f}",
            f"{r['goal_s']:.0f}",
            f"{r['masking_s'] * 1e3:.1f}",
            f"{r['step_s']:.1f}",
            f"{r['masking_s'] / r['step_s']:.2%}",
        ]
        for r in results
    ]
    headings = [
        "model",
        "pattern",
        "million weights",
        "update s",
        "goal",
        "masking ms",
        "step s",
        "share",
    ]
    title = f"one thread of {gs.cpu_info().name}, batch {arguments.batch}, 90 % sparse; goal: {SHARE:.0%} of a step"
    print_table(title, headings, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
