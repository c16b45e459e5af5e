"""Converted models in files, and the ways back: to dense layers, and to valid masks from other tools' zeros."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from gspattern.files import _read, load_file, save_file
from gspattern.matrices import Matrix
from gspattern.report import Conversion
from gspattern.torch.convert import CONVERSION, CONVOLUTIONS, RECURRENT
from gspattern.torch.fusing import fuse_calls, unfuse
from gspattern.torch.modules import Compact, GSLinear, first_names, matrices
from gspattern.torch.operators import tensor_of
from gspattern.torch.pruner import Patterns, Pruner
from gspattern.torch.targets import Names, find_targets

logger = logging.getLogger("gspattern")

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model, in its file and otherwise.

    Attributes
    ----------
    compact : int
        Of the file.
    dense : int
        Of the same weights, zeros included, in the same types.
    zipped : int
        Of these, compressed by zlib at its usual level: what a zip file or a compressed download makes of them.
    """

    compact: int
    dense: int
    zipped: int

    def __str__(self) -> str:
        return (
            f"{self.compact:,} bytes: {self.compact / self.dense:.1%} of dense ({self.dense:,}), "
            f"{self.compact / self.zipped:.1%} of dense and zipped ({self.zipped:,})"
        )


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Save a converted model: compact weights as they are, everything else as plain arrays.

    The file is a safetensors file of docs/FORMAT.md, under the names that parameters and buffers had before
    the model was converted. Nothing is pickled; the classes of the model are not in it.

    Parameters
    ----------
    model : Module
        As `convert` gives it.
    path : path

    Raises
    ------
    ValueError
        If modules other than the compact ones have extra state, which is no tensor.
    """
    compact = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Compact)
    }
    for key, value in model.state_dict().items():
        owner = key.rpartition(".")[0]
        if not isinstance(value, torch.Tensor) and owner not in compact:
            raise ValueError(
                f"{key} is no tensor ({type(value).__name__}): the file cannot hold it"
            )
    made = model.__dict__.get(CONVERSION)
    notes = {CONVERSION: made.to_json()} if isinstance(made, Conversion) else None
    save_file(matrices(model), path, notes)


def load(path: str | PathLike[str], model: M) -> M:
    """Load what `save` saved into a model of the same architecture, in place.

    Layers whose weights are compact in the file are replaced by compact ones, without dense weights being made on
    the way; those that were kept dense stay so, and what was fused is fused again. Make the model on the "meta" device
    to spare its memory as well::

        with torch.device("meta"):
            model = Net()
        fast = load("net.safetensors", model)

    Parameters
    ----------
    path : path
    model : Module
        Dense, as it was before it was pruned; its weights are lost.

    Returns
    -------
    Module
        The model, in evaluation mode; or, if it is a single layer, the compact one.

    Raises
    ------
    ValueError
        If the file is of another architecture: something is missing, left over, or of another shape.
    FormatError
        If the file is damaged.
    """
    tensors, notes = _read(path)
    made_by_convert = Conversion.from_json(notes[CONVERSION]) if CONVERSION in notes else None
    compact: Compact | None = None
    made: dict[int, Compact] = {}  # a layer that stands in several places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        prefix = f"{name}." if name else ""
        own = {
            key.removeprefix(prefix): tensors[key]
            for key in (prefix + own_key for own_key in module._parameters)
            if key in tensors
        }
        if id(module) in made:  # the file has it under its first name, or under all
            for key in own:
                tensors.pop(prefix + key)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made[id(module)])
            continue
        if not any(isinstance(value, Matrix) for value in own.values()):
            continue
        _check_shapes(prefix, module, own)
        compact = made[id(module)] = _compact_from(name, module, own)
        weights = (p.dtype for p in module._parameters.values() if p is not None)
        compact.dense_dtype = next(weights)
        for key in own:
            tensors.pop(prefix + key)
        if not name:
            break
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, compact)
    result: Any = compact if isinstance(compact, Compact) and not _children(model) else model
    _fill(result, tensors)
    result.eval()
    if made_by_convert is not None:
        setattr(result, CONVERSION, made_by_convert)
        if made_by_convert.fuse:
            fuse_calls(result)
    return result  # type: ignore[no-any-return]


def sizes(path: str | PathLike[str]) -> Sizes:
    """Compare a file of `save` with the same weights dense, and dense and zipped.

    It makes every matrix dense, one after the other, and compresses it: some seconds for 100 million weights.
    """
    dense = zipped = 0
    for value in load_file(path).values():
        array = value.to_dense() if isinstance(value, Matrix) else np.asarray(value)
        dense += array.nbytes
        zipped += len(zlib.compress(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data))
    return Sizes(Path(path).stat().st_size, dense, zipped)


def revert(model: M) -> M:
    """Make a converted model dense again, in place, to be trained on.

    Weights are those of the matrices, in the types of the model that was converted: bit for bit its own, unless
    `convert` rounded them to a smaller type, which is logged as a warning; int8 goes back through its scales.
    Batch norms were never touched. Every layer carries its pattern and mask, as after `Pruner.finalize()`:
    `Pruner.from_zeros` keeps them in training.

    Returns
    -------
    Module
        The model; or, if it is a single compact layer, the dense one.
    """
    unfuse(model)
    model.__dict__.pop(CONVERSION, None)
    _warn_of_rounding(model)
    if isinstance(model, Compact):
        return model.to_dense()  # type: ignore[no-any-return, operator]
    made: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, Compact):
            if id(module) not in made:
                made[id(module)] = module.to_dense().train(module.training)  # type: ignore[operator]
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made[id(module)])
    return model


def _warn_of_rounding(model: nn.Module) -> None:
    rounded: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Compact):
            for key, matrix in module.weights.items():
                same = str(module.dense_dtype) == f"torch.{matrix.dtype}"
                if matrix.dtype not in (np.float32, np.float64) and not same:
                    rounded.setdefault(str(matrix.dtype), []).append(
                        f"{name}.{key}" if name else key
                    )
    for dtype, names in rounded.items():
        logger.warning(
            "%d weights go back as %s rounded them, not as they were trained: %s",
            len(names), dtype, ", ".join(names),
        )  # fmt: skip


def repair(
    model: M, pattern: Patterns, include: Names | None = None, exclude: Names | None = None
) -> M:
    """Give every weight that has zeros the valid mask of a pattern that is nearest to them, in place.

    Of all masks with no more elements than the weight has nonzeros, it is one that keeps the most of these, and
    among those the one that keeps the largest (with scatter, of the row order that `choose_mask` finds for them);
    what it lacks is regrown as zeros that can be trained. This is the balancing step of u-Ticket, made exact.

    Parameters
    ----------
    model : Module
        Pruned by any tool; see `absorb_masks` for masks that are not in the weights yet.
    pattern, include, exclude
        As for `Pruner`. Without `include`, weights that are less than half zeros stay dense.

    Returns
    -------
    Module
        The model; its layers carry pattern and mask, for `convert` and `Pruner.from_zeros`.

    Raises
    ------
    PatternError
        If the pattern does not fit a weight, or cannot have so few nonzeros.
    ValueError
        If nothing of the model has zeros.

    References
    ----------
    R. Yin et al.: Workload-balanced pruning for sparse spiking neural networks. arXiv 2302.06746, 2023.
    """

    def nearest(name: str, weight: torch.Tensor, context: Any) -> torch.Tensor:
        size = weight.abs()
        # More for a nonzero than any two sizes differ by; sums of float32 scores are made in float64.
        return size / size.max().clamp_min(torch.finfo(size.dtype).tiny) / 4096 + (weight != 0)

    shares = {}
    for target in find_targets(model, include, exclude).chosen:
        share = float((target.parameter.detach() == 0).double().mean())
        if include is not None or share >= 0.5:
            shares[target.name] = share
    if not shares:
        raise ValueError(
            "no weight of this model is at least half zeros: there is nothing to repair"
        )
    Pruner(
        model, pattern, shares, criterion=nearest, include=list(shares), rewindable=False
    ).finalize()
    return model


def absorb_masks(model: nn.Module) -> list[str]:
    """Put the masks that other tools keep beside the weights into the weights, and take the masks away.

    Known are those of torch.nn.utils.prune (`weight_orig` and `weight_mask`) and of NVIDIA's apex ASP
    (buffers `__weight_mma_mask`). Afterwards `Pruner.from_zeros`, `repair` and `convert` see plain zeros.

    Returns
    -------
    list of str
        The names of the weights.
    """
    absorbed = []
    for prefix, module in model.named_modules():
        masks = [key.removesuffix("_mask") for key in module._buffers if key.endswith("_mask")]
        for key in masks:
            if f"{key}_orig" in module._parameters:
                prune.remove(module, key)  # type: ignore[no-untyped-call]
            elif key.startswith("__") and key.endswith("_mma"):
                mask = module._buffers.pop(f"{key}_mask")
                key = key.removeprefix("__").removesuffix("_mma")
                with torch.no_grad():
                    module.get_parameter(key).mul_(mask)
            else:
                continue
            absorbed.append(f"{prefix}.{key}" if prefix else key)
    return absorbed


# ------------------------------------------------------------------ loading


def _children(model: nn.Module) -> bool:
    return next(model.children(), None) is not None


def _check_shapes(prefix: str, module: nn.Module, own: Mapping[str, Any]) -> None:
    for key, value in own.items():
        wanted = tuple(module._parameters[key].shape)  # type: ignore[union-attr]
        found = (value.kernel_shape or value.shape) if isinstance(value, Matrix) else value.shape
        if tuple(found) != wanted:
            raise ValueError(
                f"{prefix}{key} has shape {wanted} in the model, and {tuple(found)} in the file"
            )


def _compact_from(name: str, module: nn.Module, own: Mapping[str, Any]) -> Compact:
    """The compact layer that stands for a dense one of torch."""
    bias = own.get("bias")
    addend = None if bias is None else tensor_of(bias)
    if type(module) is nn.Linear:
        return GSLinear(own["weight"], addend)
    if type(module) in CONVOLUTIONS:
        layer: Any = module
        return CONVOLUTIONS[type(module)](
            own["weight"], addend, layer.stride, layer.padding, layer.dilation, layer.padding_mode
        )
    if type(module) in RECURRENT:
        kind: Any = RECURRENT[type(module)]
        params = [
            value if isinstance(value, Matrix) else tensor_of(value)
            for value in (own[key] for key, p in module._parameters.items() if p is not None)
        ]
        return kind._from(module, params)  # type: ignore[no-any-return]
    raise ValueError(f"{name} is compact in the file, and a {type(module).__name__} in the model")


def _fill(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Give all that is not compact its values."""
    wanted = {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }
    compact = {
        f"{name}." if name else ""
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Compact)
    }
    wanted = {k: v for k, v in wanted.items() if not any(k.startswith(p) for p in compact)}
    first = first_names(model)
    # A tensor of several names may be in the file under any of them.
    found = {first[key]: tensors[key] for key in wanted if key in tensors}
    tensors = {key: found[first[key]] for key in wanted if first[key] in found} | dict(tensors)
    missing, left = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or left:
        raise ValueError(
            "the file is of another architecture"
            + (f"; it lacks {', '.join(missing)}" if missing else "")
            + (f"; the model lacks {', '.join(left)}" if left else "")
        )
    for key, value in wanted.items():
        if tuple(value.shape) != tuple(tensors[key].shape):
            raise ValueError(
                f"{key} has shape {tuple(value.shape)} in the model, and {tensors[key].shape} in the file"
            )
    made: dict[str, torch.Tensor] = {}
    for key, value in wanted.items():
        if first[key] not in made:
            tensor = tensor_of(tensors[key])
            trained = isinstance(value, nn.Parameter)
            made[first[key]] = nn.Parameter(tensor, value.requires_grad) if trained else tensor
    values = {key: made[first[key]] for key in wanted}
    model.load_state_dict(values, strict=False, assign=True)
