"""Pruning while a model trains: masks that hold, whatever the optimiser does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gspattern.masks import Selection, choose_mask, choose_masks
from gspattern.matrices import encode
from gspattern.patterns import GS, NM, Auto, Pattern, PatternError, parse_pattern
from gspattern.report import LayerReport, Report, kept_share
from gspattern.torch.schedules import Schedule
from gspattern.torch.targets import PrunedWeight, Target, find_targets, lookup

logger = logging.getLogger("gspattern")

Criterion = Callable[[str, torch.Tensor], torch.Tensor]
Patterns = str | Pattern | Mapping[str, str | Pattern]
M = TypeVar("M", bound=nn.Module)

# Types that NumPy does not compute in: such weights go through float32, which holds them exactly.
HALF = {torch.bfloat16: "bfloat16", torch.float16: "float16"}

# The integers as wide as a floating-point type, by its bytes.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# `auto` leaves smaller matrices dense: 16 KiB of float32 lie in any L1 cache, there is nothing to win.
AUTO_LEAST_WEIGHTS = 4096
AUTO_CANDIDATES: tuple[Pattern, ...] = (GS(16, 16), GS(16, 1, scatter=True))


@dataclass
class _Entry:
    """A target with its pattern and what is masked of it now."""

    target: Target
    pattern: Pattern  # resolved
    pruned: PrunedWeight | None = None
    bits: torch.Tensor | None = None  # the parameter's shape: all ones to keep, 0 to hold at zero
    saved: torch.Tensor | None = None  # the values that were dropped, for as long as masks change
    kept: float = 1.0  # the score kept, relative to the irregular mask of the same count
    empty_rows: int = 0

    def forget(self) -> None:
        """Be as before the first mask."""
        self.pruned = self.bits = self.saved = None
        self.kept, self.empty_rows = 1.0, 0
        self.target.detach()


class Pruner:
    """Prunes the weights of a model and keeps them pruned while it trains.

    After every optimiser step, `step()` puts the masked weights back to zero, and the optimiser's state
    (momentum, moments) with them. On the steps of a schedule it chooses the masks anew.

    A weight that is masked keeps its last value aside for as long as the schedule runs, as in Zhu and
    Gupta's own implementation: the score by which masks are chosen is that of the weights trained so far
    together with these frozen ones, so a weight may come back, with the value that it had. When the
    schedule has ended they are forgotten.

    Parameters
    ----------
    model : Module
        Changed in place; the keys of its state_dict stay as they are. Every pruned module carries pattern,
        mask and row order in its attribute `gs_pruned`, which deepcopy, pickle and torch.save keep.
    pattern : str, Pattern, or dict of glob to these
        With a dict, the first glob that names a weight counts, and those that none names stay dense.
        "auto" takes, for every layer, the one of gs(16,16) and gs(16,1)+scatter that keeps the larger share
        of what an irregular mask of the same count keeps, and leaves layers of fewer than 4,096 weights, or
        16 inputs, dense.
    sparsity : float
        Share of zeros in the pruned weights, in [0, 1); None only where all patterns are n:m, which have one
        of their own (and take it at the first step of a schedule).
    optimizer : Optimizer, optional
        Its state of the pruned weights is masked as well. Give it wherever the model is trained.
    scope : {"layer", "global"}
        The same sparsity in every layer, or in all of them together, where the scores decide (not for n:m and
        bank-balanced, whose sparsity is not free).
    schedule : Schedule, optional
        None prunes once, now; see `cubic`.
    criterion : "magnitude" or callable
        `criterion(name, parameter)` gives the scores, finite and >= 0, in the parameter's shape.
    include, exclude : list of str, optional
        Names of layers or parameters, or globs; "*" is every prunable layer and `exclude` wins. By default
        the last Linear, and weights shared with an embedding, stay dense (this is logged).
    method : {"exact", "greedy"}
        See `choose_mask`.
    min_per_group : int
        Least number of bundles in every group of a GS pattern.
    max_sparsity : float
        With scope="global": no layer is pruned further than this, so that none is emptied.
    rewindable : bool
        Whether to keep a copy of the whole model for `rewind()`; it is part of `state_dict()`.

    Notes
    -----
    With DistributedDataParallel, wrap the model first and make the Pruner of every rank from the wrapped one:
    then all start from the same weights, and the same weights give the same masks.

    Raises
    ------
    PatternError
        If a pattern does not fit a weight, or cannot have the sparsity; found now, not when the schedule ends.
    ValueError
        If an argument is out of its range, or a name means nothing in the model.

    Examples
    --------
    >>> pruner = Pruner(model, "gs(16,16)", sparsity=0.9, optimizer=opt, schedule=cubic(100, 1000))
    >>> for batch in data:
    ...     (loss(batch) + pruner.penalty()).backward()
    ...     opt.step()
    ...     opt.zero_grad()
    ...     pruner.step()
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: Patterns,
        sparsity: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scope: str = "layer",
        schedule: Schedule | None = None,
        criterion: str | Criterion = "magnitude",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        *,
        method: Literal["exact", "greedy"] = "exact",
        min_per_group: int = 0,
        max_sparsity: float = 1.0,
        rewindable: bool = True,
    ) -> None:
        if scope not in ("layer", "global"):
            raise ValueError(f'scope must be "layer" or "global", got {scope!r}')
        if criterion != "magnitude" and not callable(criterion):
            raise ValueError(
                'criterion must be "magnitude" or a function of (name, parameter) that returns scores, '
                f"got {criterion!r}"
            )
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer that is made already, got {optimizer!r}"
            )
        if schedule is not None and not (callable(schedule) and hasattr(schedule, "end")):
            raise TypeError(f"schedule must be None or such as cubic(start, end), got {schedule!r}")
        if not 0 <= max_sparsity <= 1:
            raise ValueError(f"max_sparsity must be in [0, 1], got {max_sparsity!r}")
        if max_sparsity < 1 and scope != "global":
            raise ValueError(
                'max_sparsity limits the layers under scope="global"; with scope="layer" all have `sparsity`'
            )
        if scope == "global" and (method != "exact" or sparsity is None):
            raise ValueError('scope="global" needs a sparsity, and method="exact"')
        self.model = model
        self.optimizer = optimizer
        self.sparsity = sparsity
        self.scope = scope
        self.schedule = schedule
        self.steps = 0
        self._method = method
        self._min_per_group = min_per_group
        self._max_sparsity = max_sparsity
        self._criterion: Criterion = magnitude if isinstance(criterion, str) else criterion
        self._finalized = False
        self._entries = self._resolve(find_targets(model, include, exclude), pattern)
        if sparsity is None and not all(isinstance(e.pattern, NM) for e in self._entries):
            raise ValueError(
                "sparsity is needed: the share of zeros, such as 0.9 (only n:m patterns have one of their own)"
            )
        if min_per_group and not any(isinstance(e.pattern, GS) for e in self._entries):
            raise ValueError("min_per_group counts the bundles of GS patterns, and there is none")
        self._check_optimizer()
        self._initial: dict[str, torch.Tensor] | None = None
        if rewindable:
            self._initial = {key: value.clone() for key, value in _tensors(model)}
        # Choosing at the final sparsity now finds out whether it can be given before hours are spent.
        selections = self._choose(sparsity)
        if schedule is None:
            self._mask(selections)
        else:
            self._update(0)
        self.apply()

    # ------------------------------------------------------------- in training

    def penalty(self) -> float:
        """What to add to the loss: 0, as masks alone prune here."""
        return 0.0

    def step(self) -> None:
        """Call it after every `optimizer.step()`: masks weights and the optimiser's state, and chooses the
        masks anew on the steps of the schedule.

        Raises
        ------
        RuntimeError
            After `finalize()`.
        """
        if self._finalized:
            raise RuntimeError("this Pruner is finalized: make a new one to go on training")
        self.steps += 1
        self._update(self.steps)
        self.apply()
        if self.schedule is None or self.steps >= self.schedule.end:
            for entry in self._entries:
                entry.saved = None

    @torch.no_grad()
    def apply(self) -> None:
        """Put zeros wherever weights are masked: in the weights and in the optimiser's state.

        `step()` does it; call it yourself after anything else that writes weights.
        """
        states = {} if self.optimizer is None else self.optimizer.state
        for entry in self._entries:
            if entry.bits is None:
                continue
            parameter = entry.target.parameter
            # The model may have been moved or cast since the mask was chosen.
            entry.bits = entry.bits.to(parameter.device, INTEGERS[parameter.element_size()])
            _and(parameter, entry.bits)
            for value in states.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    _and(value, entry.bits)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of every weight that is pruned: {parameter name: bool tensor of the parameter's shape},
        on the parameter's device, True where it is kept. Before the schedule starts, all True."""
        return {
            entry.target.name: torch.ones_like(entry.target.parameter, dtype=torch.bool)
            if entry.bits is None
            else entry.bits != 0
            for entry in self._entries
        }

    @torch.no_grad()
    def rewind(self) -> nn.Module:
        """Put every parameter and buffer of the model back to its value at construction, with the masks kept,
        and clear the optimiser's state: the lottery ticket of Frankle and Carbin (arXiv 1803.03635).

        Returns
        -------
        Module
            The model.

        Raises
        ------
        RuntimeError
            If the Pruner was made with rewindable=False, or is finalized.
        """
        if self._initial is None:
            raise RuntimeError(
                "nothing to rewind to: the Pruner was finalized or made with rewindable=False"
            )
        for key, value in _tensors(self.model):
            value.copy_(self._initial[key])
        for entry in self._entries:
            if entry.saved is not None:
                self._save(entry)
        if self.optimizer is not None:
            self.optimizer.state.clear()
        self.apply()
        return self.model

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Fix the masks as they are now, forget all that only training needs, and return the model."""
        if self.schedule is not None and self.steps < self.schedule.end:
            logger.warning(
                "finalized at step %d, before the schedule's end at step %d: "
                "the sparsity asked for is not reached",
                self.steps,
                self.schedule.end,
            )
        self.apply()
        for entry in self._entries:
            entry.saved = None
        self._initial = None
        self._finalized = True
        return self.model

    # ------------------------------------------------------------- what was done

    def report(self) -> Report:
        """What is pruned at this moment, layer by layer; `print(pruner.report())`."""
        rows = []
        for entry in self._entries:
            weight = _matrix(entry.target.parameter)
            nbytes = dense = weight.size * entry.target.parameter.element_size()
            if entry.pruned is not None:
                pruned = entry.pruned
                matrix = encode(
                    weight, pruned.pattern, mask=pruned.mask, row_order=pruned.row_order
                )
                half = HALF.get(entry.target.parameter.dtype)
                nbytes = (matrix if half is None else matrix.astype(half)).nbytes
            rows.append(
                LayerReport(
                    name=entry.target.name,
                    shape=(weight.shape[0], weight.shape[1]),
                    pattern=str(entry.pattern),
                    asked=None if isinstance(entry.pattern, NM) else self.sparsity,
                    sparsity=1 - float(entry.pruned.mask.mean()) if entry.pruned else 0.0,
                    kept=entry.kept,
                    empty_rows=entry.empty_rows,
                    nbytes=nbytes,
                    dense_nbytes=dense,
                )
            )
        return Report(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume; save it beside the state of model and optimiser.

        Tensors, numbers and strings only, so that `torch.load(weights_only=True)` reads it.
        """
        weights = {}
        for entry in self._entries:
            state: dict[str, Any] = {"pattern": str(entry.pattern)}
            if entry.pruned is not None:
                order = entry.pruned.row_order
                state["mask"] = torch.from_numpy(np.packbits(entry.pruned.mask))
                state["row_order"] = (
                    None if order is None else torch.from_numpy(order.astype(np.int64))
                )
                state["saved"] = None if entry.saved is None else entry.saved.clone()
                state["kept"] = entry.kept
            weights[entry.target.name] = state
        initial = self._initial
        return {
            "steps": self.steps,
            "finalized": self._finalized,
            "weights": weights,
            "initial": None if initial is None else {k: v.clone() for k, v in initial.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the Pruner that gave `state` was.

        Load model and optimiser too, in any order: before this Pruner is made, or before or after this call.

        Raises
        ------
        ValueError
            If it is the state of other weights or other patterns, or of something else.
        """
        if not isinstance(state, Mapping) or "weights" not in state:
            raise ValueError(f"this is no state of a Pruner: {_first_words(state)}")
        weights = state["weights"]
        mine = {entry.target.name: str(entry.pattern) for entry in self._entries}
        theirs = {name: entry["pattern"] for name, entry in weights.items()}
        if mine != theirs:
            raise ValueError(
                f"this state is of other weights or patterns: it has {theirs}, the Pruner {mine}"
            )
        self.steps = int(state["steps"])
        self._finalized = bool(state["finalized"])
        if state["initial"] is None:
            self._initial = None
        else:
            self._initial = {key: value.clone() for key, value in state["initial"].items()}
        for entry in self._entries:
            own = weights[entry.target.name]
            parameter = entry.target.parameter
            # What the making of this Pruner dropped comes back, unless the model was loaded since then.
            if entry.bits is not None and not _any_outside(parameter, entry.bits):
                self._unmask(entry)
            if "mask" not in own:
                entry.forget()
                continue
            shape = tuple(parameter.shape)
            bits = np.unpackbits(own["mask"].cpu().numpy(), count=parameter.numel())
            order = own["row_order"]
            self._set_mask(
                entry,
                bits.astype(bool).reshape(shape),
                None if order is None else order.cpu().numpy(),
            )
            entry.kept = float(own["kept"])
            saved = own["saved"]
            entry.saved = None if saved is None else saved.to(parameter.device, copy=True)
        self.apply()

    def __repr__(self) -> str:
        done = "" if self.schedule is None else f" of {self.schedule.end}"
        return (
            f"<Pruner of {len(self._entries)} weights to sparsity {self.sparsity}, scope {self.scope}, "
            f"step {self.steps}{done}{', finalized' if self._finalized else ''}>"
        )

    # ------------------------------------------------------------- choosing

    def _check_optimizer(self) -> None:
        """Refuse an optimiser that trains none of the weights: its state could not be masked."""
        if self.optimizer is None:
            return
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not any(id(entry.target.parameter) in trained for entry in self._entries):
            raise ValueError(
                "this optimizer trains none of the weights that are pruned: give the one of this model"
            )

    def _resolve(self, targets: list[Target], pattern: Patterns) -> list[_Entry]:
        """The targets with their patterns; those without one, or too small for "auto", are left out."""
        table = pattern if isinstance(pattern, Mapping) else {"*": pattern}
        if not table:
            raise ValueError("pattern is an empty dict: it names no weight to prune")
        parsed = {glob: parse_pattern(value) for glob, value in table.items()}
        entries = []
        for target in targets:
            shape = _matrix(target.parameter).shape
            wanted = lookup(target.name, parsed)
            if isinstance(wanted, Auto):
                wanted = self._auto(target)
            if wanted is None:
                logger.info("%s stays dense: no pattern for it", target.name)
                continue
            try:
                resolved = wanted.resolve((shape[0], shape[1]))
            except PatternError as error:
                raise PatternError(f"{target.name}: {error}") from None
            entries.append(_Entry(target, resolved))
        if not entries:
            raise ValueError(
                "nothing to prune: none of the weights has a pattern; there are "
                + ", ".join(target.name for target in targets)
            )
        return entries

    def _auto(self, target: Target) -> Pattern | None:
        """The pattern of "auto" for one weight, None for dense."""
        rows, cols = _matrix(target.parameter).shape
        if rows * cols < AUTO_LEAST_WEIGHTS or cols < 16:
            return None
        scores = self._scores(target)
        best, most = None, 0.0
        for candidate in AUTO_CANDIDATES:
            kept = kept_share(
                scores, choose_mask(scores, candidate, self.sparsity, method="greedy").mask
            )
            if kept > most:
                best, most = candidate, kept
        logger.info("%s: auto is %s, which keeps %.3f of irregular", target.name, best, most)
        return best

    def _scores(self, target: Target) -> npt.NDArray[np.float32]:
        """The scores of a weight, float32 [M, K] in C order."""
        with torch.no_grad():
            scores = self._criterion(target.name, target.parameter.detach())
        if tuple(scores.shape) != tuple(target.parameter.shape):
            raise ValueError(
                f"the criterion must return scores of the parameter's shape, {tuple(target.parameter.shape)} "
                f"for {target.name}, got {tuple(scores.shape)}"
            )
        return np.ascontiguousarray(_matrix(scores.detach().float()))

    def _choose(self, sparsity: float | None) -> dict[str, tuple[Selection, float]]:
        """A selection for every weight, with its kept score relative to irregular."""
        scores = {entry.target.name: self._scores(entry.target) for entry in self._entries}
        selections: Mapping[str, Selection]
        if self.scope == "global":
            assert sparsity is not None
            patterns = {entry.target.name: entry.pattern for entry in self._entries}
            selections = choose_masks(
                scores,
                patterns,
                sparsity,
                # On the way to a limit nothing has to stay below it.
                max_sparsity=max(sparsity, self._max_sparsity),
                min_per_group=self._min_per_group,
            )
        else:
            selections = dict(self._choose_each(scores, sparsity))
        return {name: (s, kept_share(scores[name], s.mask)) for name, s in selections.items()}

    def _choose_each(
        self, scores: Mapping[str, npt.NDArray[np.float32]], sparsity: float | None
    ) -> Iterator[tuple[str, Selection]]:
        for entry in self._entries:
            name = entry.target.name
            fixed = isinstance(entry.pattern, NM)
            try:
                yield (
                    name,
                    choose_mask(
                        scores[name],
                        entry.pattern,
                        sparsity=None if fixed else sparsity,
                        method=self._method,
                        min_per_group=self._min_per_group if isinstance(entry.pattern, GS) else 0,
                    ),
                )
            except ValueError as error:
                raise type(error)(f"{name}: {error}") from None

    @torch.no_grad()
    def _update(self, step: int) -> None:
        """Choose the masks anew if the schedule says so at this step."""
        if self.schedule is None:
            return
        sparsity = self.schedule(step, 1.0 if self.sparsity is None else self.sparsity)
        if sparsity is None or sparsity <= 0:
            return
        for entry in self._entries:
            self._unmask(entry)
        try:
            self._mask(self._choose(sparsity))
        except PatternError:
            # Uneven banks cannot be nearly full: the masks wait until the sparsity is one they can give.
            if step == self.schedule.end:
                raise
            logger.debug("step %d: sparsity %.4f cannot be given yet", step, sparsity)

    def _mask(self, selections: Mapping[str, tuple[Selection, float]]) -> None:
        for entry in self._entries:
            selection, entry.kept = selections[entry.target.name]
            self._set_mask(entry, selection.mask, selection.row_order)
            if selection.score == 0 or not selection.mask.any():
                logger.warning(
                    "%s keeps nothing at sparsity %.4f: exclude it%s",
                    entry.target.name,
                    selection.sparsity,
                    ", or set max_sparsity" if self.scope == "global" else " or lower the sparsity",
                )

    def _set_mask(
        self,
        entry: _Entry,
        mask: npt.NDArray[np.bool_],
        row_order: npt.NDArray[np.integer] | None,
    ) -> None:
        """Take a mask in the matrix view, and set aside what it drops."""
        entry.pruned = PrunedWeight(entry.pattern, mask, row_order)
        entry.target.attach(entry.pruned)
        entry.empty_rows = int((~mask.any(axis=1)).sum())
        parameter = entry.target.parameter
        keep = torch.from_numpy(mask).reshape(parameter.shape).to(parameter.device)
        entry.bits = keep.to(INTEGERS[parameter.element_size()]).neg_()
        self._save(entry)

    def _save(self, entry: _Entry) -> None:
        """Set the values aside that the mask drops."""
        assert entry.bits is not None
        entry.saved = entry.target.parameter.detach().clone()
        _and(entry.saved, ~entry.bits)

    def _unmask(self, entry: _Entry) -> None:
        """Give the dropped weights back the values that they had, if these are still known."""
        if entry.bits is not None and entry.saved is not None:
            parameter = entry.target.parameter
            saved = entry.saved.to(parameter)
            parameter.copy_(torch.where(entry.bits.to(parameter.device) != 0, parameter, saved))


def prune_(
    model: M,
    pattern: Patterns,
    sparsity: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    **options: Any,
) -> M:
    """Prune a model once, in place, and return it.

    Parameters
    ----------
    model, pattern, sparsity, include, exclude
        As for `Pruner`.
    **options
        Any other argument of `Pruner`: scope, criterion, method, min_per_group.
    """
    Pruner(
        model,
        pattern,
        sparsity,
        include=include,
        exclude=exclude,
        rewindable=False,
        **options,
    ).finalize()
    return model


def magnitude(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The usual criterion: the absolute value of every weight."""
    return parameter.abs()


def _and(tensor: torch.Tensor, bits: torch.Tensor) -> None:
    """Put 0 where `bits` is 0, in place. A mask over bits is as fast as memory, and it leaves neither NaN nor -0."""
    integers = INTEGERS[tensor.element_size()]
    tensor.detach().view(integers).bitwise_and_(bits.to(tensor.device, integers))


def _any_outside(parameter: torch.Tensor, bits: torch.Tensor) -> bool:
    """Whether a weight outside a mask is not 0."""
    return bool((parameter.detach()[bits.to(parameter.device) == 0] != 0).any())


def _first_words(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _matrix(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A weight in the matrix view, [M, K], float32 unless it is float64."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a model, shared ones once."""
    yield from ((name, value.detach()) for name, value in model.named_parameters())
    yield from model.named_buffers()
