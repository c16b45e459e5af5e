"""From a pruned model to one that is smaller and faster."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten

from gspattern.patterns import Pattern, parse_pattern
from gspattern.report import Conversion, ConvertedLayer
from gspattern.torch.convolutions import GSConv, GSConv1d, GSConv2d
from gspattern.torch.fusing import Call, fuse_calls, fused, unfuse
from gspattern.torch.modules import Compact, GSLinear
from gspattern.torch.pruner import Patterns, Pruner
from gspattern.torch.rnn import GSGRU, GSLSTM, GSGRUCell, GSLSTMCell
from gspattern.torch.targets import carried, lookup, weights_of

logger = logging.getLogger("gspattern")

# The attribute of a converted model that holds its report, outside the state_dict.
CONVERSION = "gs_conversion"

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
    fuse: bool = True,
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
        "auto" keeps every layer dense that is faster so: measured on `example_inputs`, or without them by a rule,
        `stays_dense`. False converts all; True none.
    example_inputs : Tensor, tuple, or dict of keywords, optional
        What the model is called with, for "auto" to measure at the sizes that count, and to see that fused calls
        give what the model gives.
    fuse : bool
        Let layers compute the batch norms, residual sums and activations behind them in the same pass, in evaluation
        mode: see `gspattern.torch.fusing`.

    Returns
    -------
    Module
        A copy, of the same class; `conversion(fast)` says what became of its layers. Call it under
        `torch.inference_mode()` or `torch.no_grad()`.

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
    chosen, reasons = _layers(model, pattern)
    if not chosen:
        raise ValueError(
            "nothing to convert: no layer of this model carries a mask; prune it with Pruner or "
            'prune_, or give the pattern of its zeros, such as pattern="irregular"'
        )
    fast = copy.deepcopy(model)
    if keep_dense is True:
        return fast
    modes = {name: module.training for name, module in fast.named_modules()}
    fast.eval()
    inputs, answer = _record(model, list(chosen), example_inputs)
    calls, notes = _fuse(fast, example_inputs, answer) if fuse else ({}, ())
    rows: list[ConvertedLayer] = []
    # One layer that stands in several places becomes one compact layer in all of them.
    made: dict[int, tuple[nn.Module, ConvertedLayer]] = {}
    for name, given in chosen.items():
        layer = fast.get_submodule(name)
        if id(layer) not in made:
            try:
                compact = _compact(layer, given, dtype)
            except ValueError as error:
                raise type(error)(f"{name or 'the model'}: {error}") from None
            times: tuple[float | None, float | None] = None, None
            wins, reason = False, "keep_dense=False"
            if keep_dense == "auto" and name in inputs:
                with torch.inference_mode():
                    call = _caller(fast, layer, calls.get(name), inputs[name])
                    times = dense, sparse = _times(layer, compact, call)
                wins, reason = dense < sparse, "it is faster on the example"
            elif keep_dense == "auto":
                found = stays_dense(layer, compact)
                wins, reason = found is not None, found or "of its size and sparsity"
            row = _row(name, layer, compact, wins, reason, times)
            logger.info("%s", _sentence(row, inputs.get(name)))
            made[id(layer)] = layer if wins else compact, row
        now, row = made[id(layer)]
        rows.append(replace(row, name=name, fused=str(calls.get(name, ""))))
        if not name:
            fast = now  # type: ignore[assignment]
            break
        parent, _, attribute = name.rpartition(".")
        setattr(fast.get_submodule(parent), attribute, now)
    _leave_fast_paths(fast)
    for name, mode in modes.items():  # children come behind their parents
        fast.get_submodule(name).train(mode)
    for name in {**reasons, **calls}:
        if name not in chosen:
            kind = type(model.get_submodule(name)).__name__
            reason = reasons.get(name, "it was not pruned")
            fused = str(calls.get(name, ""))
            rows.append(
                ConvertedLayer(name, kind, "", None, False, reason, None, None, 0, 0, fused)
            )
    setattr(fast, CONVERSION, Conversion(tuple(rows), bool(calls), notes))
    return fast


def conversion(model: nn.Module) -> Conversion:
    """What `convert` made of a model; it prints as a table. Files of `save` keep it.

    Raises
    ------
    ValueError
        If the model was not converted.
    """
    found = model.__dict__.get(CONVERSION)
    if not isinstance(found, Conversion):
        raise ValueError(
            "this model was not made by convert, nor loaded from a file of one that was"
        )
    return found


def stays_dense(layer: nn.Module, compact: Compact) -> str | None:
    """Why a layer stays dense if there is no example to measure it on; None if it becomes compact.

    Dense are float64 layers, which only scalar kernels multiply, layers of which less than half are zeros, and
    linear layers of less than 2**14 weights, where a call takes longer than the product. Everything else was faster
    in all that was measured: at half zeros from 1.2 times (256 x 256, one sample) to 3.7 times (1024 x 1024, 64).
    """
    weights = compact.weights.values()
    if any(m.dtype == np.float64 for m in weights):
        return "only scalar kernels multiply float64"
    if sum(m.nnz for m in weights) * 2 > sum(math.prod(m.shape) for m in weights):
        return "less than half are zeros"
    if isinstance(layer, nn.Linear) and layer.weight.numel() < 2**14:
        return "it has less than 16,384 weights"
    return None


def _row(
    name: str,
    layer: nn.Module,
    compact: Compact,
    wins: bool,
    reason: str,
    times: tuple[float | None, float | None],
) -> ConvertedLayer:
    weights = compact.weights
    size = sum(math.prod(m.shape) for m in weights.values())
    return ConvertedLayer(
        name,
        type(layer).__name__,
        " and ".join(sorted({str(m.pattern) for m in weights.values()})),
        1 - sum(m.nnz for m in weights.values()) / max(size, 1),
        not wins,
        reason,
        times[0] and times[0] * 1e6,
        times[1] and times[1] * 1e6,
        sum(m.nbytes for m in weights.values()),
        sum(getattr(layer, key).nbytes for key in weights),
        "",
    )


def _sentence(row: ConvertedLayer, example: Arguments | None) -> str:
    became = "compact" if row.compact else "stays dense"
    if row.dense_us is None or example is None:
        return f"{row.name or 'the model'}: {became}: {row.reason}"
    given = (*example[0], *example[1].values())[0]
    shape = tuple((given.data if isinstance(given, PackedSequence) else given).shape)
    return (
        f"{row.name or 'the model'}: dense {row.dense_us:.1f} us, {row.pattern} {row.compact_us:.1f} us "
        f"for an input of {shape}: {became}"
    )


def _fuse(fast: nn.Module, example: Any, answer: Any) -> tuple[dict[str, Call], tuple[str, ...]]:
    """Fuse what torch.fx shows, and take it back if the model then gives another answer to the example."""
    calls, untraced = fuse_calls(fast)
    notes = [
        f"not fused: the code of {name or 'the model'}, which torch.fx cannot read ({why})"
        for name, why in untraced.items()
    ]
    if calls and example is not None:
        try:
            wrong = (
                "" if _close(_answer(fast, example), answer) else "another answer to the example"
            )
        except Exception as error:  # whatever the model's own code raises
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            unfuse(fast)
            calls = {}
            notes.append(f"nothing is fused: what torch.fx reads gives {wrong}")
    for note in notes:
        logger.info("%s", note)
    return calls, tuple(notes)


def _close(found: Any, expected: Any) -> bool:
    """Whether two answers are the same but for rounding."""
    ours, theirs = (tree_flatten(value)[0] for value in (found, expected))
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            if a.shape != b.shape or a.dtype != b.dtype:
                return False
            most = float(b.abs().max()) if b.numel() else 0.0
            if not torch.allclose(
                a, b, rtol=0, atol=most * torch.finfo(a.dtype).eps ** 0.5, equal_nan=True
            ):
                return False
    return True


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


def _layers(model: nn.Module, pattern: Patterns | None) -> tuple[dict[str, Chosen], dict[str, str]]:
    """The layers to convert, each with its weights that become compact, and why other pruned ones stay dense."""
    table = None
    if pattern is not None:
        by_name = isinstance(pattern, Mapping)
        table = {
            glob: parse_pattern(p)
            for glob, p in (pattern.items() if isinstance(pattern, Mapping) else [("*", pattern)])
        }
    chosen: dict[str, Chosen] = {}
    reasons: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # A subclass with a forward of its own, or one whose weight others read, is not simply a product.
        known = type(module) in (nn.Linear, *CONVOLUTIONS, *RECURRENT)
        # Projections and groups are matrices more than these layers know of.
        other = getattr(module, "proj_size", None) or getattr(module, "groups", 1) != 1
        if not known or other:
            if carried(module):
                reasons[name] = f"{type(module).__name__} is not converted"
                logger.info("%s stays dense: %s", name, reasons[name])
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
    return chosen, reasons


def _copied(value: Any) -> Any:
    """A copy of what a layer is called with, which nothing that comes later changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, PackedSequence):
        return PackedSequence(*map(_copied, value))
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _answer(model: nn.Module, example: Any) -> Any:
    """What the model gives for the example in evaluation mode."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in training.items():
            module.training = mode


def _record(model: nn.Module, names: list[str], example: Any) -> tuple[dict[str, Arguments], Any]:
    """The arguments of the first call of every named layer when the example is run, and the answer to it."""
    if example is None:
        return {}, None
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
    try:
        return seen, _answer(model, example)
    finally:
        for hook in hooks:
            hook.remove()


def _caller(
    model: nn.Module, layer: nn.Module, call: Call | None, example: Arguments
) -> Callable[[nn.Module], Any]:
    """What calls a layer on the example, with all that it computes in the same pass."""
    args, keywords = example
    if call is None or keywords or len(args) != 1:
        return lambda module: module(*args, **keywords)
    norm = None if call.norm is None else model.get_submodule(call.norm)
    residual = torch.zeros_like(layer(*args)) if call.residual else None
    return lambda module: fused(module, args[0], norm, residual, call.activation)


def _times(
    layer: nn.Module,
    compact: Compact,
    call: Callable[[nn.Module], Any],
    rounds: int = 30,
) -> tuple[float, float]:
    """Seconds of a call, dense and compact: best of `rounds`, taken in turns."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + 1
    for done in range(rounds):  # the first make the plan and warm the caches
        if done >= 5 and time.perf_counter() > end:
            break
        for i, module in enumerate((layer, compact)):
            start = time.perf_counter()
            call(module)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]
