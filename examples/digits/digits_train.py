"""Training, and pruning while training goes on."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from digits_data import Digits
from digits_model import mlp
from torch import nn
from tqdm import tqdm

from gspattern.torch import Pruner, cubic

BATCH = 64


def steps_per_epoch(data: Digits) -> int:
    return len(data.x_train) // BATCH


def train(
    model: nn.Module,
    data: Digits,
    epochs: int,
    seed: int,
    bar: tqdm,
    pattern: str | None = None,
    sparsity: float = 0.9,
    lr: float = 1e-3,
) -> nn.Module:
    """Train `model` in place with Adam, and with a pattern prune it: the masks grow over the first half."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    steps = epochs * steps_per_epoch(data)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pruner = None
    if pattern is not None:
        schedule = cubic(0, steps // 2, every=20)
        pruner = Pruner(model, pattern, sparsity, optimizer=optimizer, schedule=schedule)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: steps_per_epoch(data) * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            decay.step()
            if pruner is not None:
                pruner.step()
            bar.update()
    if pruner is not None:
        pruner.finalize()
    return model.eval()


def train_dense(data: Digits, epochs: int, seed: int, bar: tqdm) -> nn.Module:
    torch.manual_seed(seed)
    return train(mlp(), data, epochs, seed, bar)


def prune(
    dense: nn.Module, data: Digits, pattern: str, epochs: int, seed: int, bar: tqdm
) -> nn.Module:
    """A copy of a trained model, pruned to `pattern` while it trains on."""
    return train(copy.deepcopy(dense), data, epochs, seed + 1000, bar, pattern, lr=5e-4)


@torch.inference_mode()
def predict(model: nn.Module, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The outputs of the network, float32 [samples, 10]."""
    return np.array(model(torch.from_numpy(x)))
