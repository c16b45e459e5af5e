"""Which weights of a model are pruned, and what a pruned layer carries."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gspattern.patterns import Pattern

logger = logging.getLogger("gspattern")

# The layers that can be pruned; `weights_of` names their weight matrices.
PRUNABLE = (nn.Linear, nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)

# The attribute of a pruned module. It stands outside the state_dict, whose keys never change.
ATTRIBUTE = "gs_pruned"

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
        return cast(nn.Parameter, getattr(module, attribute))

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


def carried(module: nn.Module) -> dict[str, PrunedWeight]:
    """What `module` carries of its pruned weights, by their names in the module; empty if nothing."""
    return cast("dict[str, PrunedWeight]", module.__dict__.get(ATTRIBUTE, {}))


def matches(name: str, pattern: str) -> bool:
    """Whether a glob means this parameter: it may name the parameter or its layer."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def lookup(name: str, table: Mapping[str, T]) -> T | None:
    """The value of the first glob of `table` that means the parameter `name`, None if there is none."""
    return next((value for key, value in table.items() if matches(name, key)), None)


def find_targets(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[Target]:
    """The weights of `model` to prune, in the model's order.

    Parameters
    ----------
    include, exclude : sequence of str, optional
        Names of layers or parameters, or globs; "*" is every prunable layer, `exclude` wins. Without
        `include` all are pruned but weights shared with an embedding, subclasses of Linear (the output of
        torch's attention is one; `convert` leaves them dense) and the last Linear: it is small, and it
        decides most. (A model that is itself one Linear is pruned.)

    Raises
    ------
    ValueError
        If a name means nothing in the model, or nothing is left to prune.
    """
    embedded = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    found: dict[str, nn.Parameter] = {}
    last_linear: nn.Parameter | None = None
    for prefix, module in model.named_modules():
        for attribute in weights_of(module):
            parameter = module._parameters.get(attribute)
            if not isinstance(parameter, nn.Parameter) or not torch.is_floating_point(parameter):
                logger.info("%s is left as it is: its weight is not a plain parameter", prefix)
                continue
            if isinstance(module, nn.Linear):
                last_linear = parameter
            if id(parameter) not in owners:
                found[f"{prefix}.{attribute}" if prefix else attribute] = parameter
            owners.setdefault(id(parameter), []).append((module, attribute))

    for label, globs in (("include", include), ("exclude", exclude)):
        _check_globs(label, globs, found)

    targets = []
    for name, parameter in found.items():
        if exclude is not None and any(matches(name, glob) for glob in exclude):
            reason = "excluded"
        elif include is not None:
            reason = "" if any(matches(name, glob) for glob in include) else "not included"
        elif id(parameter) in embedded:
            reason = "shared with an embedding; include it by name to prune it"
        elif type(owners[id(parameter)][0][0]) not in PRUNABLE:
            kind = type(owners[id(parameter)][0][0]).__name__
            reason = f"{kind} uses its weight in a way of its own; include it by name to prune it"
        elif parameter is last_linear and not isinstance(model, nn.Linear):
            reason = "the last Linear; include it by name to prune it"
        else:
            reason = ""
        if reason:
            logger.info("%s stays dense: %s", name, reason)
        else:
            targets.append(Target(name, tuple(owners[id(parameter)])))
    if not targets:
        known = ", ".join(found) or "none"
        raise ValueError(
            f"nothing to prune: of the prunable weights ({known}) none is chosen; "
            'the last Linear is left dense by default, include=["*"] prunes all'
        )
    return targets


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """The parameters of a layer that are weight matrices, [outputs, inputs], in its own order.

    Those of a recurrent layer with projections are not: nothing here multiplies by them.
    """
    if isinstance(module, nn.Linear):
        return ("weight",)
    if not isinstance(module, PRUNABLE) or getattr(module, "proj_size", None):
        return ()
    return tuple(name for name in module._parameters if name.startswith("weight_"))


def _check_globs(label: str, globs: Sequence[str] | None, names: Iterable[str]) -> None:
    if isinstance(globs, str):
        raise ValueError(
            f'{label} must be a list of names, got a string; did you mean ["{globs}"]?'
        )
    known = list(names)
    for glob in globs or ():
        if not any(matches(name, glob) for name in known):
            raise ValueError(
                f"{label} names {glob!r}, which is no prunable weight; there are: "
                + (", ".join(known) or "none")
            )
