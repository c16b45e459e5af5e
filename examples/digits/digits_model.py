"""The network of the demo, wide enough that its weights matter."""

from __future__ import annotations

import itertools
from collections import OrderedDict

from torch import nn

WIDTHS = (64, 512, 512, 10)


def mlp() -> nn.Sequential:
    """64 - 512 - 512 - 10 with ReLU between: layers fc1, fc2 and fc3."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS), start=1):
        layers[f"fc{i}"] = nn.Linear(inputs, outputs)
        if i < len(WIDTHS) - 1:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)
