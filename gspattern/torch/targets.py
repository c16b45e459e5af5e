"""Which weights of a model are pruned, how each is seen as a matrix, and what a pruned module knows of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from gspattern.patterns import Pattern

logger = logging.getLogger("gspattern")

# The attribute of a pruned module. It stands outside the state_dict, whose keys never change.
ATTRIBUTE = "gs_pruned"

# Types of which `weight` is no matrix that a product reads.
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)

Names = Sequence[str | type[nn.Module]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PrunedWeight:
    """What a pruned module knows of one of its weights.

    Attributes
    ----------
    pattern : Pattern
        The pattern, resolved for the shape of the weight.
    mask : ndarray of bool, [M, K]
        True where a weight is kept, in the matrix view.
    row_order : ndarray of int, [M], or None
        The rows as they are grouped, if the pattern has scatter.
    """

    pattern: Pattern
    mask: npt.NDArray[np.bool_]
    row_order: npt.NDArray[np.integer] | None


@dataclass(frozen=True, eq=False)
class Target:
    """One weight that is to be pruned; `owners` are all the modules that share it, by attribute."""

    name: str
    owners: tuple[tuple[nn.Module, str], ...]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now: `load_state_dict(assign=True)` and the like replace it."""
        module, attribute = self.owners[0]
        parameter = getattr(module, attribute)
        if not isinstance(parameter, nn.Parameter):
            raise RuntimeError(
                f"{self.name} is no parameter any more but computed from others: parametrize it before "
                "the Pruner is made, or not at all"
            )
        return parameter

    @property
    def kind(self) -> str:
        """The type of the layer, such as "Linear"."""
        return type(self.owners[0][0]).__name__

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns in the matrix view."""
        shape = self.parameter.shape
        return shape[0], shape[1:].numel()

    def attach(self, pruned: PrunedWeight) -> None:
        """Note on every owner what was pruned."""
        for module, attribute in self.owners:
            # A new dict each time: a copy of the model never shares it.
            setattr(module, ATTRIBUTE, {**carried(module), attribute: pruned})

    def detach(self) -> None:
        """Take the note from every owner."""
        for module, attribute in self.owners:
            left = {key: value for key, value in carried(module).items() if key != attribute}
            if left:
                setattr(module, ATTRIBUTE, left)
            else:
                module.__dict__.pop(ATTRIBUTE, None)


@dataclass(frozen=True)
class Targets:
    """The weights of a model: those to prune, and why each other parameter stays dense.

    Attributes
    ----------
    chosen : list of Target
        In the model's order.
    dense : dict of str to str
        The reason, by the name of the parameter.
    """

    chosen: list[Target]
    dense: dict[str, str]


def carried(module: nn.Module) -> dict[str, PrunedWeight]:
    """What `module` carries of its pruned weights, by their names in the module; empty if nothing."""
    return cast("dict[str, PrunedWeight]", module.__dict__.get(ATTRIBUTE, {}))


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """A weight in the matrix view [M, K]: convolutions become Co x (kh, kw, Ci), Ci fastest."""
    return weight if weight.ndim == 2 else weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The way back from the matrix view to a weight of this shape."""
    if len(shape) == 2:
        return matrix
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob means this parameter: it may name the parameter or its layer."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def lookup(name: str, table: Mapping[str, T]) -> T | None:
    """The value of the first glob of `table` that means the parameter `name`, None if there is none."""
    return next((value for key, value in table.items() if matches(name, key)), None)


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """The weight matrices of a layer that can be pruned, by their names in the module."""
    if isinstance(module, nn.Linear) or (
        isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    ):
        return ("weight",)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return tuple(name for name in module._parameters if name.startswith("weight_"))
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return tuple(name for name in names if module._parameters.get(name) is not None)
    return ()


def find_targets(
    model: nn.Module, include: Names | None = None, exclude: Names | None = None
) -> Targets:
    """The weights of `model` to prune: of linear, convolution, LSTM, GRU, RNN and attention layers.

    Parameters
    ----------
    include, exclude : sequence of str or type, optional
        Names of layers or parameters, globs, or types of layers; "*" is every prunable layer, `exclude` wins.
        Without `include` all are pruned but weights shared with an embedding, subclasses of Linear and of
        convolutions (whose forward is their own), the first convolution, and the last Linear: these are small,
        and they decide most. (A model that is itself one layer is pruned.)

    Raises
    ------
    TypeError
        If they hold anything but names and types.
    ValueError
        If they are no lists, a name or type means nothing in the model, or nothing is left to prune.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    found: dict[str, nn.Parameter] = {}  # those that can be pruned
    impossible: dict[str, str] = {}
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, _EMBEDDINGS)}
    ends: dict[str, nn.Parameter] = {}
    for name, module, attribute in _matrices(model):
        reason = _cannot(module, attribute)
        if reason:
            impossible[name] = reason
            continue
        parameter = module._parameters[attribute]
        assert parameter is not None
        if isinstance(module, nn.Linear) and module is not model:
            ends["the last Linear"] = parameter
        if isinstance(module, _ConvNd) and module is not model:
            ends.setdefault("the first convolution", parameter)
        if id(parameter) not in owners:
            found[name] = parameter
        owners.setdefault(id(parameter), []).append((module, attribute))
    kinds = {name: owners[id(parameter)][0][0] for name, parameter in found.items()}
    for label, names in (("include", include), ("exclude", exclude)):
        _check_names(label, names, kinds, impossible)

    chosen, dense = [], {}
    for name, parameter in found.items():
        module = kinds[name]
        own = not type(module).forward.__module__.startswith("torch.nn.modules.")
        if exclude is not None and _means(name, module, exclude):
            reason = "excluded"
        elif include is not None:
            reason = "" if _means(name, module, include) else "not included"
        elif id(parameter) in embedded:
            reason = "shared with an embedding; include it by name to prune it"
        elif own:
            kind = type(module).__name__
            reason = f"{kind} uses its weight in a way of its own; include it by name to prune it"
        else:
            reason = next(
                (f"{end}; include it by name to prune it" for end, p in ends.items() if p is parameter), ""
            )  # fmt: skip
        if reason:
            dense[name] = reason
        else:
            chosen.append(Target(name, tuple(owners[id(parameter)])))
    for name, reason in {**dense, **impossible}.items():
        logger.info("%s stays dense: %s", name, reason)
    if not chosen:
        raise ValueError(
            f"nothing to prune: of the prunable weights ({', '.join(found) or 'none'}) none is chosen; "
            'the first convolution and the last Linear are left dense by default, include=["*"] prunes all'
        )
    taken = {target.name for target in chosen}
    reasons = {}
    for name, parameter in model.named_parameters():
        if name not in taken:
            reasons[name] = dense.get(name) or impossible.get(name) or _role(model, name, parameter)
    return Targets(chosen, reasons)


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and attribute of every weight matrix of a layer, also where it cannot be pruned."""
    for prefix, module in model.named_modules():
        if prefix.endswith("parametrizations") or ".parametrizations." in f".{prefix}.":
            continue
        names: Iterable[str] = weights_of(module)
        if isinstance(module, _ConvTransposeNd | nn.Bilinear):
            names = ("weight",)
        if parametrize.is_parametrized(module):
            parametrized = cast(nn.ModuleDict, module.parametrizations)
            names = (*names, *(n for n in parametrized if n.startswith("weight")))
        for attribute in dict.fromkeys(names):
            yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute


def _cannot(module: nn.Module, attribute: str) -> str:
    """Why a weight matrix cannot be pruned; empty if it can."""
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolutions are not pruned"
    if isinstance(module, nn.Bilinear):
        return "bilinear layers are not pruned"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return f"its {module.groups} groups are matrices of their own, which is not supported"
    if parametrize.is_parametrized(module, attribute):
        return "it is parametrized: remove that before the Pruner is made to prune it"
    parameter = module._parameters.get(attribute)
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "it has no shape yet: call the model once before the Pruner is made"
    if not isinstance(parameter, nn.Parameter) or not torch.is_floating_point(parameter):
        return "it is no plain parameter of floating-point numbers"
    return ""


def _role(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """What a parameter is that is no weight matrix."""
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, _EMBEDDINGS):
        return "embedding"
    if isinstance(module, _NORMS):
        return "norm"
    if name.rpartition(".")[2].startswith(("bias", "in_proj_bias")):
        return "bias"
    return f"no weight matrix that {type(module).__name__} is known to multiply by"


def _means(name: str, module: nn.Module, names: Names) -> bool:
    return any(
        matches(name, given) if isinstance(given, str) else isinstance(module, given)
        for given in names
    )


def _check_names(
    label: str,
    names: Names | None,
    found: Mapping[str, nn.Module],
    impossible: Mapping[str, str],
) -> None:
    if isinstance(names, str | type):
        shown = f'"{names}"' if isinstance(names, str) else names.__name__
        raise ValueError(
            f"{label} must be a list of names or types, got {shown}; did you mean [{shown}]?"
        )
    for given in names or ():
        if not isinstance(given, str) and not (
            isinstance(given, type) and issubclass(given, nn.Module)
        ):
            raise TypeError(
                f"{label} must hold names or types of layers such as nn.Conv2d, got {given!r}"
            )
        if any(_means(name, module, [given]) for name, module in found.items()):
            continue
        if isinstance(given, str):
            for name, reason in impossible.items():
                if label == "exclude" and matches(name, given):
                    break
                if matches(name, given):
                    raise ValueError(f"{name} cannot be pruned: {reason}")
            else:
                raise ValueError(
                    f"{label} names {given!r}, which is no prunable weight; there are: "
                    + (", ".join(found) or "none")
                )
        else:
            raise ValueError(
                f"{label} has {given.__name__}, and the model no prunable layer of it; there are: "
                + (", ".join(sorted({type(m).__name__ for m in found.values()})) or "none")
            )
