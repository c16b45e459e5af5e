"""From a pruned model to one that is smaller and faster."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from gspattern.patterns import Pattern, parse_pattern
from gspattern.torch.convolutions import GSConv, GSConv1d, GSConv2d
from gspattern.torch.modules import Compact, GSLinear
from gspattern.torch.pruner import Patterns, Pruner
from gspattern.torch.rnn import GSGRU, GSLSTM, GSGRUCell, GSLSTMCell
from gspattern.torch.targets import carried, lookup, weights_of

logger = logging.getLogger("gspattern")

M = TypeVar("M", bound=nn.Module)

# Of one call of a layer.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Of every weight that becomes compact, the pattern that was given for it, None where it carries its own.
Chosen = dict[str, Pattern | None]

CONVOLUTIONS: dict[type[nn.Module], type[GSConv]] = {nn.Conv1d: GSConv1d, nn.Conv2d: GSConv2d}
RECURRENT: dict[type[nn.Module], type[GSLSTM | GSLSTMCell | GSGRU | GSGRUCell]] = {
    kind.dense: kind for kind in (GSLSTM, GSLSTMCell, GSGRU, GSGRUCell)
}


def convert(
    model: M,
    pruner: Pruner | None = None,
    pattern: Patterns | None = None,
    dtype: str | None = None,
    keep_dense: Literal["auto"] | bool = "auto",
    example_inputs: Any = None,
) -> M:
    """A copy of a pruned model whose pruned layers are compact and run the C kernels.

    Parameters
    ----------
    model : Module
        Pruned by `Pruner` or `prune_`: its layers know their masks. It is not changed.
    pruner : Pruner, optional
        The one that pruned the model: weights are masked once more, so that nothing stray is left.
    pattern : str, Pattern, or dict of glob to these, optional
        For layers that were pruned by other means: every weight of a linear, convolution or recurrent layer that
        is named (without a dict: at least half zeros) and carries no pattern of its own is encoded with this one.
    dtype : str, optional
        Of the compact values: "float32", "float64", "float16", "bfloat16" or "int8"; None for the model's.
    keep_dense : "auto" or bool
        "auto" measures every layer, and keeps it dense where dense is faster (this is logged). False
        converts all; True none.
    example_inputs : Tensor, tuple, or dict of keywords, optional
        What the model is called with, for "auto" to measure at the sizes that count. Without it, layers
        are measured with one sample, convolutions with 16 pixels on a side.

    Returns
    -------
    Module
        A copy, of the same class.

    Raises
    ------
    ValueError
        If there is nothing to convert, or weights outside a mask are not zero.
    """
    if keep_dense not in ("auto", True, False):
        raise ValueError(f'keep_dense must be "auto", True or False, got {keep_dense!r}')
    if pruner is not None:
        if pruner.model is not model:
            raise ValueError("this Pruner belongs to another model")
        pruner.apply()
        if pruner.schedule is not None and not any(map(carried, model.modules())):
            raise ValueError(
                f"the schedule has not begun to prune (step {pruner.steps} of {pruner.schedule.end}): "
                "train on, calling pruner.step() after every optimizer.step()"
            )
    chosen = _layers(model, pattern)
    if not chosen:
        raise ValueError(
            "nothing to convert: no layer of this model carries a mask; prune it with Pruner or "
            'prune_, or give the pattern of its zeros, such as pattern="irregular"'
        )
    fast = copy.deepcopy(model)
    if keep_dense is True:
        return fast
    inputs = _record(model, list(chosen), example_inputs) if keep_dense == "auto" else {}
    # One layer that stands in several places becomes one compact layer in all of them.
    made: dict[int, nn.Module] = {}
    for name, given in chosen.items():
        layer = fast.get_submodule(name)
        if id(layer) not in made:
            try:
                compact = _compact(layer, given, dtype)
            except ValueError as error:
                raise type(error)(f"{name or 'the model'}: {error}") from None
            compact.train(layer.training)
            wins = keep_dense == "auto" and _dense_wins(name, layer, compact, inputs.get(name))
            made[id(layer)] = layer if wins else compact
        if not name:
            return made[id(layer)]  # type: ignore[return-value]
        parent, _, attribute = name.rpartition(".")
        setattr(fast.get_submodule(parent), attribute, made[id(layer)])
    _leave_fast_paths(fast)
    return fast


def _leave_fast_paths(model: nn.Module) -> None:
    """Have torch's transformer layers call their linear layers, which its fused kernels go around."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(child, GSLinear) for child in (module.linear1, module.linear2)
        ):
            # What it asks before its fused path; its activation itself stays what it is.
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and any(
            isinstance(child, GSLinear) for child in module.modules()
        ):
            module.use_nested_tensor = False


def _compact(layer: nn.Module, chosen: Chosen, dtype: str | None) -> Compact:
    if isinstance(layer, nn.Linear):
        return GSLinear.from_linear(layer, chosen["weight"], dtype)
    if isinstance(layer, _ConvNd):
        return CONVOLUTIONS[type(layer)].from_conv(layer, chosen["weight"], dtype)
    return RECURRENT[type(layer)].from_module(layer, chosen, dtype)


def _layers(model: nn.Module, pattern: Patterns | None) -> dict[str, Chosen]:
    """The layers to convert, each with its weights that become compact."""
    table = None
    if pattern is not None:
        by_name = isinstance(pattern, Mapping)
        table = {
            glob: parse_pattern(p)
            for glob, p in (pattern.items() if isinstance(pattern, Mapping) else [("*", pattern)])
        }
    chosen: dict[str, Chosen] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # A subclass with a forward of its own, or one whose weight others read, is not simply a product.
        known = type(module) in (nn.Linear, *CONVOLUTIONS, *RECURRENT)
        # Projections and groups are matrices more than these layers know of.
        other = getattr(module, "proj_size", None) or getattr(module, "groups", 1) != 1
        if not known or other:
            if carried(module):
                logger.info("%s stays dense: %s is not converted", name, type(module).__name__)
            continue
        here: Chosen = {}
        for weight in weights_of(module):
            if weight in carried(module):
                here[weight] = None
            elif table is not None:
                found = lookup(f"{name}.{weight}" if name else weight, table)
                zeros = float((getattr(module, weight).detach() == 0).double().mean())
                if found is not None and (by_name or zeros >= 0.5):
                    here[weight] = found
        if here:
            chosen[name] = here
    return chosen


def _copied(value: Any) -> Any:
    """A copy of what a layer is called with, which nothing that comes later changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, PackedSequence):
        return PackedSequence(*map(_copied, value))
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _record(model: nn.Module, names: list[str], example: Any) -> dict[str, Arguments]:
    """The arguments of the first call of every named layer when the model is called with the example."""
    if example is None:
        return {}
    seen: dict[str, Arguments] = {}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if name not in seen:
                kept = {key: _copied(value) for key, value in keywords.items()}
                seen[name] = _copied(args), kept

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(hook_for(name), with_kwargs=True)
        for name in names
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return seen


def _one_sample(layer: nn.Module) -> torch.Tensor:
    """Something to call a layer with: a vector, or an image of 16 pixels or more on each side."""
    weight = getattr(layer, weights_of(layer)[0])
    sides = [
        max(16, dilation * (taps - 1) + 1)
        for taps, dilation in zip(weight.shape[2:], getattr(layer, "dilation", ()), strict=True)
    ]
    count = weight.shape[1] * math.prod(sides)
    return torch.linspace(-1, 1, count, dtype=weight.dtype).reshape(1, -1, *sides)


def _dense_wins(
    name: str, layer: nn.Module, compact: Compact, example: Arguments | None, rounds: int = 30
) -> bool:
    """Whether the dense layer is the faster one: best of `rounds`, taken in turns."""
    args, keywords = example or ((_one_sample(layer),), {})
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + 1
    with torch.inference_mode():
        for done in range(rounds):  # the first make the plan and warm the caches
            if done >= 5 and time.perf_counter() > end:
                break
            for i, module in enumerate((layer, compact)):
                start = time.perf_counter()
                module(*args, **keywords)
                best[i] = min(best[i], time.perf_counter() - start)
    dense, sparse = best
    given = (*args, *keywords.values())[0]
    patterns = sorted({str(matrix.pattern) for matrix in compact.weights.values()})
    logger.info(
        "%s: dense %.1f us, %s %.1f us for an input of %s: %s",
        name, dense * 1e6, " and ".join(patterns), sparse * 1e6,
        tuple((given.data if isinstance(given, PackedSequence) else given).shape),
        "stays dense" if dense < sparse else "compact",
    )  # fmt: skip
    return dense < sparse
