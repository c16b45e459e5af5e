"""Train a small network on handwritten digits as the large examples are trained: seconds, for sweeps and tests.

python -m examples.digits.train --pattern "gs(16,1)" --sparsity 0.95
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer import Option

from examples.common.options import Options, run
from examples.common.outcome import main
from examples.common.task import Phase, Tally, Task
from examples.digits.digits_data import digits


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsOptions(Options):
    """Flags of this script beside those of all."""

    out: Annotated[Path, Option(help="Folder to write to: checkpoint, logs, models, results.")] = (
        Path("build/digits-train")
    )
    width: Annotated[int, Option(help="Of the two hidden layers.")] = 128
    lr: Annotated[float, Option(help="Highest rate of Adam, dense.")] = 2e-3
    prune_lr: Annotated[float, Option(help="The same, while pruning and fine-tuning.")] = 1e-3
    epochs: Annotated[int, Option(help="Of dense training; 0 goes on from --weights.")] = 15
    prune_epochs: Annotated[int, Option(help="Of pruning, with fine-tuning.")] = 20
    seconds: Annotated[float, Option(help="Time the networks for that long in the end.")] = 1


def network(width: int) -> nn.Sequential:
    """64 - width - width - 10 with ReLU between."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, width), relu1=nn.ReLU(),
            fc2=nn.Linear(width, width), relu2=nn.ReLU(),
            fc3=nn.Linear(width, 10),
        )
    )  # fmt: skip


class Digits(Task):
    """Images of 8 x 8 pixels to digits, by a network of three layers."""

    metric = "top1"

    def __init__(self, options: DigitsOptions) -> None:
        super().__init__(options)
        self.o = options
        data = digits()
        # In their own order, pixel i of a row of 8 is in bank i or 8 + i of 16: a quarter of the banks would hold
        # nothing but the margins of the images, which say nothing.
        pixels = np.random.default_rng(0).permutation(64)
        self.x, self.y = torch.from_numpy(data.x_train[:, pixels]), torch.from_numpy(data.y_train)
        self.test = torch.from_numpy(data.x_test[:, pixels]), torch.from_numpy(data.y_test)
        self.build = partial(network, options.width)

    def optimizer(self, model: nn.Module, phase: Phase, ranks: int) -> torch.optim.Optimizer:
        lr = self.o.lr if phase == "dense" else self.o.prune_lr
        return torch.optim.Adam(model.parameters(), lr=lr)

    def rate(self, phase: Phase, step: int, steps: int) -> float:
        """Half a cosine down to 0."""
        return 0.5 + 0.5 * math.cos(math.pi * step / steps)

    def steps(self, ranks: int) -> int:
        steps = len(self.x) // (self.o.batch * ranks)
        if steps == 0:
            raise SystemExit(f"{len(self.x)} images do not fill a batch of {self.o.batch}")
        return steps

    def batches(self, epoch: int, first: int, rank: int, ranks: int) -> Iterable[Any]:
        steps, batch = self.steps(ranks), self.o.batch
        order = np.random.default_rng((self.o.seed, epoch)).permutation(len(self.x))
        rows = order[: steps * ranks * batch].reshape(steps, ranks, batch)
        for chosen in rows[first:, rank]:
            yield self.x[chosen], self.y[chosen]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return cross_entropy(model(x), y)

    def test_batches(self, rank: int, ranks: int) -> Iterable[Any]:
        x, y = self.test
        return [(x[rank::ranks], y[rank::ranks])]

    def tally(self, model: nn.Module, batch: Any) -> Tally:
        x, y = batch
        logits = model(x)
        return {
            "right": (logits.argmax(dim=1) == y).sum(),
            "loss": cross_entropy(logits, y, reduction="sum"),
            "count": torch.tensor(len(y)),
        }

    def metrics(self, tally: Tally) -> dict[str, float]:
        count = float(tally["count"])
        return {
            "top1": 100 * float(tally["right"]) / count,
            "test_loss": float(tally["loss"]) / count,
        }

    def example(self) -> tuple[torch.Tensor]:
        return (self.test[0][:1],)


def train(options: DigitsOptions) -> None:
    """Train a small network on handwritten digits, prune it, convert it, and measure what came out."""
    main(Digits, options)


if __name__ == "__main__":
    run(train, DigitsOptions)
