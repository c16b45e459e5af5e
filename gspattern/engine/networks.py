"""Whole networks on the engine: their layers at real shapes, pruned, and what each costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspattern.engine.bundles import ConvLayer, LSTMLayer, Weights
from gspattern.engine.cycles import Cycles, Layer, simulate
from gspattern.engine.processor import Engine, find_engine
from gspattern.masks import choose_mask
from gspattern.matrices import encode, from_matrix
from gspattern.patterns import NM, parse_pattern

__all__ = [
    "NETWORKS",
    "USUAL",
    "LayerCycles",
    "network_cycles",
    "network_layers",
    "pruned",
    "total_cycles",
]

# A sentence of 30 words, translated into 30, greedily: the decoder goes step by step.
_GNMT = """
lstm 1024 1024 30 - encoder LSTM (4)
lstm 2048 1024 30 - encoder LSTM, second
lstm 1024 1024 1 - decoder LSTM, first (30)
lstm 2048 1024 1 - decoder LSTM (90)
1024 1024 1 attention query (30)
1024 1024 30 attention key
32320 1024 1 classifier (30)
"""
# What the files of gspattern.bench leave out, because it stays dense.
_DENSE = {
    "resnet50": "conv2d 3 64 7x7 2 1 224x224 conv1",
    "jasper": "conv1d 1024 29 1 1 1 352 decoder",
}
NETWORKS = ("gnmt", "jasper", "resnet50")
USUAL = (
    "dense", "irregular", "gs(16,16)", "gs(16,1)", "gs(16,1)+scatter", "block(1,16)", "block(16,1)",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkLayer:
    """A layer of a network; `shape` is one of gspattern.bench.shapes.

    Attributes
    ----------
    name : str
    shape : Shape
    count : int
        How many layers are like it, or how often it runs.
    pruned : bool
    """

    name: str
    shape: Any
    count: int
    pruned: bool


@dataclass(frozen=True, eq=False)
class LayerCycles:
    """Cycles of one layer of a network.

    Attributes
    ----------
    name, size : str
    count : int
        How many layers are like it; `cycles` are those of one.
    pattern : str
    cycles : Cycles
    """

    name: str
    size: str
    count: int
    pattern: str
    cycles: Cycles


def network_layers(network: str) -> list[NetworkLayer]:
    """Give the layers of one of `NETWORKS`, or of a file of shapes as of `gspattern bench`.

    Raises
    ------
    ValueError
        If there is no such network or file.
    """
    from gspattern.bench import shapes  # which needs what the benchmark needs

    if network == "gnmt":
        found = [s for line in _GNMT.strip().splitlines() for s in shapes.read_shapes(line)]
    else:
        found = shapes.read_shapes(network)
    dense = shapes.read_shapes(_DENSE[network]) if network in _DENSE else []
    layers = []
    for shape in [*dense, *found]:
        match = re.fullmatch(r"(.*?)(?: \((\d+)\))?", shape.name)
        assert match is not None
        layers.append(NetworkLayer(match[1], shape, int(match[2] or 1), pruned=shape not in dense))
    return layers


def network_cycles(
    network: str,
    pattern: str,
    sparsity: float | None,
    engine: str | Engine = "paper128",
    n: int = 1,
    track: Callable[[Sequence[NetworkLayer]], Iterable[NetworkLayer]] = iter,
) -> list[LayerCycles]:
    """Simulate a network whose weights are pruned by magnitude.

    Weights are random, as those of the benchmark; how many are kept matters, and how they are spread over rows.

    Parameters
    ----------
    network : str
        As for `network_layers`.
    pattern : str
        "dense", or any pattern that fits all layers.
    sparsity : float or None
        None for N:M and dense.
    engine : Engine or str
    n : int
        Pictures or sequences; columns where a shape leaves them open.
    track : callable
        Goes through the layers: a progress bar.

    Returns
    -------
    list of LayerCycles

    Raises
    ------
    ValueError
        If the pattern does not fit a layer, or there is no such network or preset.
    """
    engine = find_engine(engine)
    found = []
    for layer in track(network_layers(network)):
        used = pattern if layer.pruned else "dense"
        built = _layer(layer.shape, used, sparsity)
        cycles = simulate(built, engine, n=layer.shape.n or n)
        found.append(LayerCycles(layer.name, layer.shape.size, layer.count, used, cycles))
    return found


def total_cycles(layers: Iterable[LayerCycles]) -> Cycles:
    """Sum the cycles of layers that run one after the other."""
    total = Cycles()
    for layer in layers:
        total = total.plus(layer.cycles, layer.count)
    return total


def pruned(shape: tuple[int, ...], pattern: str, sparsity: float | None, seed: int = 0) -> Weights:
    """Give random weights of a shape as a matrix of a pattern, or as a dense array that takes no memory."""
    if pattern == "dense":
        return np.broadcast_to(np.float32(1), shape)
    from gspattern.bench.layers import make_weights

    rows, cols = shape[0], int(np.prod(shape[1:]))
    weights = make_weights(rows, cols, seed)
    fixed = isinstance(parse_pattern(pattern), NM)
    # How much of the random scores a mask keeps does not matter here.
    chosen = choose_mask(np.abs(weights), pattern, None if fixed else sparsity, method="greedy")
    return encode(
        np.ascontiguousarray(from_matrix(weights, shape)),
        pattern,
        from_matrix(chosen.mask, shape),
        chosen.row_order,
    )


def _layer(shape: Any, pattern: str, sparsity: float | None) -> Layer:
    if shape.operation == "lstm":
        rows = 4 * shape.hidden
        given = pruned((rows, shape.inputs), pattern, sparsity)
        return LSTMLayer(given, pruned((rows, shape.hidden), pattern, sparsity, 1), shape.steps)
    if shape.operation == "conv":
        weights = pruned((shape.outputs, shape.inputs, *shape.kernel), pattern, sparsity)
        return ConvLayer(weights, shape.length, shape.stride, shape.dilation, shape.padding)
    return pruned((shape.rows, shape.cols), pattern, sparsity)
