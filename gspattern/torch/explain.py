"""The products of a torch model, for `gspattern.explain`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from gspattern.explain import Work
from gspattern.torch.convert import _answer
from gspattern.torch.convolutions import GSConv
from gspattern.torch.modules import Compact, encode_weight
from gspattern.torch.rnn import GSRecurrent
from gspattern.torch.targets import as_matrix, carried, weights_of

# Of a layer: samples or pixels, and steps.
Sizes = tuple[int, int]


def works(model: nn.Module, n: int | None, example_inputs: Any) -> list[Work]:
    """Give the products of every layer that has weights to prune, or compact ones.

    Raises
    ------
    ValueError
        If there is none, n and an example are given, or a model with convolutions has no example.
    """
    if n is not None and example_inputs is not None:
        raise ValueError("give n or example_inputs, not both: the example says n of each layer")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Compact) or (weights_of(module) and getattr(module, "groups", 1) == 1)
    }
    if not layers:
        raise ValueError(
            "there is nothing to explain: the model has no linear, convolution, recurrent or attention layer"
        )
    sizes = _sizes(model, layers, example_inputs) if example_inputs is not None else None
    found = []
    for name, module in layers.items():
        if sizes is None and isinstance(module, _ConvNd | GSConv):
            raise ValueError(f"{name} is a convolution: give example_inputs, which say its pixels")
        if sizes is not None and name not in sizes:
            continue  # not called for this example
        samples, steps = (n or 1, 1) if sizes is None else sizes[name]
        compact = module.weights if isinstance(module, Compact) else {}
        for weight in compact or weights_of(module):
            given: Any = compact.get(weight)
            if given is None and weight in carried(module):
                given = encode_weight(module, weight, None, "float32")
            elif given is None:
                array = getattr(module, weight).detach().to("cpu", torch.float32)
                given = as_matrix(array).contiguous().numpy()
            at_once = not weight.startswith("weight_hh")
            found.append(
                Work(
                    f"{name}.{weight}" if name else weight,
                    given,
                    samples * steps if at_once else samples,
                    1 if at_once else steps,
                )
            )
    return found


def _sizes(model: nn.Module, layers: dict[str, nn.Module], example: Any) -> dict[str, Sizes]:
    """Of each layer's first call samples and, for recurrent layers, steps."""
    found: dict[str, Sizes] = {}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any, result: Any) -> None:
            given = (*args, *keywords.values())[0]
            if name not in found:
                found[name] = _size(module, given, result)

        return hook

    hooks = [
        module.register_forward_hook(hook_for(name), with_kwargs=True)
        for name, module in layers.items()
    ]
    try:
        _answer(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _size(module: nn.Module, given: Any, result: Any) -> Sizes:
    if isinstance(given, PackedSequence):
        steps = len(given.batch_sizes)
        return max(1, given.data.shape[0] // steps), steps
    if isinstance(module, _ConvNd | GSConv):
        return max(1, result.numel() // module.out_channels), 1
    if isinstance(module, nn.RNNBase | GSRecurrent) and given.dim() > 1 and not _is_cell(module):
        if given.dim() == 2:
            return 1, given.shape[0]
        first = bool(getattr(module, "batch_first", False))
        return (given.shape[0], given.shape[1]) if first else (given.shape[1], given.shape[0])
    return max(1, math.prod(given.shape[:-1])), 1


def _is_cell(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Cell")
