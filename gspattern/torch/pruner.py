"""Pruning while a model trains: masks that hold, whatever the optimiser does."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gspattern.masks import Selection, choose_mask, choose_masks
from gspattern.matrices import encode
from gspattern.patterns import GS, NM, Auto, Pattern, PatternError, parse_pattern
from gspattern.report import DenseReport, LayerReport, Report, kept_share
from gspattern.torch.criteria import Context, Criterion, Magnitude, criterion_of
from gspattern.torch.schedules import Schedule
from gspattern.torch.sharing import Ranks, is_sharded, local, placed_like, unwrapped, whole
from gspattern.torch.targets import (
    Names,
    PrunedWeight,
    Target,
    as_matrix,
    find_targets,
    from_matrix,
    lookup,
    matches,
)

logger = logging.getLogger("gspattern")

Patterns = str | Pattern | Mapping[str, str | Pattern]
PerLayer = float | Mapping[str, float]
M = TypeVar("M", bound=nn.Module)

# The sparsity at some step, from the final one.
SparsityAt = Callable[[float], float]

# Types that NumPy does not compute in: such weights go through float32, which holds them exactly.
HALF = {torch.bfloat16: "bfloat16", torch.float16: "float16"}

# The integers as wide as a floating-point type, by its bytes.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# `auto` leaves smaller matrices dense: 16 KiB of float32 lie in any L1 cache, there is nothing to win.
AUTO_LEAST_WEIGHTS = 4096
AUTO_CANDIDATES: tuple[Pattern, ...] = (GS(16, 16), GS(16, 1, scatter=True))

# Who prunes which parameter, so that no two Pruners do.
_claims: weakref.WeakValueDictionary[int, Pruner] = weakref.WeakValueDictionary()


@dataclass
class _Entry:
    """A target with its pattern and what is masked of it now."""

    target: Target
    pattern: Pattern  # resolved
    sparsity: float | None  # the final one; None for n:m, and where nobody knows it
    pruned: PrunedWeight | None = None
    bits: torch.Tensor | None = None  # the parameter's shape: all ones to keep, 0 to hold at zero
    saved: torch.Tensor | None = None  # the values that were dropped, for as long as masks change
    goal: torch.Tensor | None = None  # ADMM: Z - U, towards which the weight is drawn
    dual: torch.Tensor | None = None  # ADMM: U
    kept: float = 1.0  # the score kept, relative to the irregular mask of the same count
    empty_rows: int = 0

    def forget(self) -> None:
        """Be as before the first mask."""
        self.pruned = self.bits = self.saved = self.goal = self.dual = None
        self.kept, self.empty_rows = 1.0, 0
        self.target.detach()


@dataclass(frozen=True)
class _Choice:
    """The mask that was chosen for a weight, in the matrix view."""

    bits: npt.NDArray[np.uint8]  # packed
    row_order: npt.NDArray[np.integer] | None
    kept: float
    sparsity: float
    nothing: bool  # whether it keeps no score at all

    @classmethod
    def of(cls, selection: Selection, scores: npt.NDArray[np.float32]) -> _Choice:
        return cls(
            np.packbits(selection.mask),
            selection.row_order,
            kept_share(scores, selection.mask),
            selection.sparsity,
            selection.score == 0 or not selection.mask.any(),
        )


class Pruner:
    """Prunes the weights of a model and keeps them pruned while it trains.

    After every step of the optimiser the masked weights are zero, and so is the optimiser's state of them
    (momentum, moments). On the steps of a schedule `step()` chooses the masks anew.

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
        16 inputs, dense. Convolutions are pruned in the matrix view, Co x (kh, kw, Ci).
    sparsity : float, or dict of glob to float
        Share of zeros in the pruned weights, in [0, 1); None only where all patterns are n:m, which have one
        of their own (and take it at the first step of a schedule). With a dict, the first glob that names a
        weight counts.
    optimizer : Optimizer, optional
        Weights are masked after every step of it, and its state of them as well. Give it wherever the model
        is trained.
    scope : {"layer", "global"}
        The same sparsity in every layer, or in all of them together, where the scores decide (not for n:m and
        bank-balanced, whose sparsity is not free).
    schedule : Schedule, optional
        None prunes once, now; see `cubic`, `linear`, `one_shot`, `iterative`, `admm`.
    criterion : str or callable
        "magnitude", "taylor", "snip", "movement", "wanda" (see the classes `Taylor` and so on), or
        `criterion(name, weight, context)`, which gives the scores, finite and >= 0, in the weight's shape.
    include, exclude : list of str or type, optional
        Names of layers or parameters, globs, or types of layers; "*" is every prunable layer and `exclude`
        wins. By default the first convolution, the last Linear, and weights shared with an embedding, stay
        dense (this is logged, and `report()` says it).
    method : {"exact", "greedy"}
        See `choose_mask`.
    min_per_group : int
        Least number of bundles in every group of a GS pattern.
    min_sparsity, max_sparsity : float, or dict of glob to float
        With scope="global": limits for every layer, so that, say, none is emptied.
    normalize : bool
        With scope="global": whether the scores of every weight are divided by their root mean square.
    rewindable : bool
        Whether to keep a copy of the whole model for `rewind()`; it is part of `state_dict()`.
    process_group : ProcessGroup, optional
        The processes that train this model together, by default all there are.

    Notes
    -----
    With DistributedDataParallel or `fully_shard` (FSDP2), wrap the model first and make the Pruner in every
    process, with the same arguments. The first process chooses the masks for all; methods that read or change
    masks (`step`, `report`, `state_dict`, ...) must be called by all.

    Raises
    ------
    PatternError
        If a pattern does not fit a weight, or cannot have the sparsity; found now, not when the schedule ends.
    ValueError
        If an argument is out of its range, a name means nothing in the model, or another Pruner that is
        not finalized prunes the same weight.

    Examples
    --------
    >>> pruner = Pruner(model, "gs(16,16)", sparsity=0.9, optimizer=opt, schedule=cubic(100, 1000))
    >>> for batch in data:
    ...     (loss(batch) + pruner.penalty()).backward()
    ...     opt.step()
    ...     opt.zero_grad()
    ...     pruner.step()
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    sparsity: PerLayer | None
    scope: str
    schedule: Schedule | None
    steps: int
    _bare: nn.Module  # without what wraps it
    _ranks: Ranks
    _entries: list[_Entry]
    _dense: dict[str, str]  # why each other parameter is dense
    _initial: dict[str, torch.Tensor] | None
    _finalized: bool
    _handles: list[Any]  # of hooks on the optimiser
    _applied: bool  # whether its step has masked the weights since the last step()
    _versions: list[tuple[int, int]]  # of the parameters when they were masked last

    def __init__(
        self,
        model: nn.Module,
        pattern: Patterns,
        sparsity: PerLayer | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scope: str = "layer",
        schedule: Schedule | None = None,
        criterion: str | Criterion = "magnitude",
        include: Names | None = None,
        exclude: Names | None = None,
        *,
        method: Literal["exact", "greedy"] = "exact",
        min_per_group: int = 0,
        min_sparsity: PerLayer = 0.0,
        max_sparsity: PerLayer = 1.0,
        normalize: bool = False,
        rewindable: bool = True,
        process_group: Any = None,
    ) -> None:
        if scope not in ("layer", "global"):
            raise ValueError(f'scope must be "layer" or "global", got {scope!r}')
        if schedule is not None and not (callable(schedule) and hasattr(schedule, "end")):
            raise TypeError(f"schedule must be None or such as cubic(start, end), got {schedule!r}")
        for what, limit in (("min_sparsity", min_sparsity), ("max_sparsity", max_sparsity)):
            for value in limit.values() if isinstance(limit, Mapping) else [limit]:
                if not 0 <= value <= 1:
                    raise ValueError(f"{what} must be in [0, 1], got {value!r}")
        if scope != "global" and (min_sparsity != 0 or max_sparsity != 1 or normalize):
            raise ValueError(
                "min_sparsity, max_sparsity and normalize are for layers under scope=\"global\"; with "
                'scope="layer" all have `sparsity`'
            )  # fmt: skip
        if scope == "global" and (method != "exact" or not isinstance(sparsity, int | float)):
            raise ValueError('scope="global" needs one sparsity, and method="exact"')
        rewinds = getattr(schedule, "rewind_to", None) is not None
        self._settle(model, optimizer, process_group, rewindable or rewinds)
        self.sparsity = sparsity
        self.scope = scope
        self.schedule = schedule
        self._method = method
        self._min_per_group = min_per_group
        self._min_sparsity, self._max_sparsity = min_sparsity, max_sparsity
        self._normalize = normalize
        self._criterion = criterion_of(criterion)
        targets = find_targets(self._bare, include, exclude)
        self._dense = targets.dense
        self._claim(targets.chosen)
        if hasattr(self._criterion, "attach"):
            self._criterion.attach(self._bare, targets.chosen)
        if hasattr(self._criterion, "observe"):
            if schedule is not None and optimizer is None:
                raise ValueError(
                    f"criterion {type(self._criterion).__name__} learns before every step of the optimizer: "
                    "give optimizer="
                )
            for target in targets.chosen:
                self._observe(target, target.parameter.detach())
        self._entries = self._resolve(targets.chosen, pattern, sparsity)
        if min_per_group and not any(isinstance(e.pattern, GS) for e in self._entries):
            raise ValueError("min_per_group counts the bundles of GS patterns, and there is none")
        for what, given in (
            ("pattern", pattern), ("sparsity", sparsity),
            ("min_sparsity", min_sparsity), ("max_sparsity", max_sparsity),
        ):  # fmt: skip
            self._check_globs(what, given)
        self._ranks.check("the weights to prune", [
            f"{e.target.name} {e.pattern} {e.sparsity} {tuple(e.target.parameter.shape)}".encode()
            for e in self._entries
        ])  # fmt: skip
        # Choosing at the final sparsity now finds out whether it can be given before hours are spent.
        if schedule is None:
            self._mask(self._choose(_final, self._weight))
            self._stop_learning()
        else:
            if isinstance(self._criterion, Magnitude):
                self._choose(_final, self._weight)
            self._update(0)
        self.apply()

    @classmethod
    def from_zeros(
        cls,
        model: nn.Module,
        pattern: Patterns,
        optimizer: torch.optim.Optimizer | None = None,
        include: Names | None = None,
        exclude: Names | None = None,
        *,
        process_group: Any = None,
    ) -> Pruner:
        """A Pruner whose masks are the nonzeros of a model that was pruned before, such as a bare checkpoint.

        Where zeros do not make a valid mask of the pattern, the fewest of them are kept, to be trained again.

        Parameters
        ----------
        model, pattern, optimizer, include, exclude, process_group
            As for `Pruner`. Without `include`, weights that are less than half zeros stay dense.

        Raises
        ------
        PatternError
            If a pattern does not fit a weight, or no mask of it holds all the nonzeros.
        ValueError
            If nothing of the model has zeros, or as for `Pruner`.
        """
        self = cls.__new__(cls)
        self._settle(model, optimizer, process_group, rewindable=False)
        self.sparsity, self.scope, self.schedule = None, "layer", None
        self._method, self._min_per_group = "exact", 0
        self._min_sparsity, self._max_sparsity, self._normalize = 0.0, 1.0, False
        self._criterion = criterion_of("magnitude")
        targets = find_targets(self._bare, include, exclude)
        self._dense = targets.dense
        chosen = []
        for target in targets.chosen:
            zeros = float((whole(target.parameter.detach()) == 0).double().mean())
            if include is None and zeros < 0.5:
                self._leave_dense(target, f"only {zeros:.0%} of it are zeros")
            else:
                chosen.append(target)
        if not chosen:
            raise ValueError(
                "no weight of this model is at least half zeros: prune it with Pruner(model, pattern, sparsity)"
            )
        self._claim(chosen)
        self._entries = self._resolve(chosen, pattern, None)
        self._check_globs("pattern", pattern)
        for entry in self._entries:
            weight = _numpy(entry.target.parameter)
            try:
                matrix = encode(weight, entry.pattern)
            except ValueError as error:
                raise type(error)(f"{entry.target.name}: {error}") from None
            entry.kept = kept_share(np.abs(weight, dtype=np.float32), matrix.mask())
            self._set_mask(entry, matrix.mask(), matrix.row_order)
            entry.saved = None
        self.apply()
        return self

    # ------------------------------------------------------------- in training

    def penalty(self) -> torch.Tensor | float:
        """What to add to the loss: with the schedule `admm`, until its end, rho / 2 * |W - Z + U|^2; else 0."""
        rho: float | None = getattr(self.schedule, "rho", None)
        drawn = [(e.target.parameter, e.goal) for e in self._entries if e.goal is not None]
        if rho is None or not drawn:
            return 0.0
        distances = [(p - goal.to(p.dtype)).square().sum() for p, goal in drawn]
        return torch.stack([whole(distance) for distance in distances]).sum() * (rho / 2)

    def step(self) -> None:
        """Call it after every `optimizer.step()`: chooses the masks anew on the steps of the schedule, and
        masks weights and the optimiser's state.

        Raises
        ------
        RuntimeError
            After `finalize()`.
        """
        if self._finalized:
            raise RuntimeError("this Pruner is finalized: make a new one to go on training")
        self.steps += 1
        rewinds = getattr(self.schedule, "rewind_to", None)
        if rewinds == self.steps:
            self._remember()
        if self._update(self.steps) or not self._applied or self._written():
            self.apply()
        self._applied = False
        if self._masks_are_final():
            self._stop_learning()
            for entry in self._entries:
                entry.saved = entry.goal = entry.dual = None

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Put zeros wherever weights are masked: in the weights and in the optimiser's state.

        It happens after every step of the optimiser; call it yourself after anything else that writes weights.

        Parameters
        ----------
        model : Module, optional
            Another model with the same parameters, such as a moving average of the weights, to be masked in
            place of the Pruner's own.
        """
        if model is not None:
            other = unwrapped(model)
            for entry in self._entries:
                if entry.bits is not None:
                    _and(other.get_parameter(entry.target.name), entry.bits)
            return
        states = {} if self.optimizer is None else self.optimizer.state
        for entry in self._entries:
            if entry.bits is None:
                continue
            parameter = entry.target.parameter
            self._follow(entry)
            _and(parameter, entry.bits)
            for value in states.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    _and(value, entry.bits)
        self._versions = self._current_versions()

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of every weight that is pruned: {parameter name: bool tensor of the parameter's shape},
        on the parameter's device, True where it is kept. Before the schedule starts, all True."""
        masks = {}
        for entry in self._entries:
            parameter = entry.target.parameter
            if entry.pruned is None:
                mask = torch.ones(parameter.shape, dtype=torch.bool)
            else:
                mask = from_matrix(torch.from_numpy(entry.pruned.mask), parameter.shape)
            masks[entry.target.name] = mask.to(local(parameter).device, copy=True)
        return masks

    @torch.no_grad()
    def rewind(self) -> nn.Module:
        """Put every parameter and buffer of the model back to its value at construction (or at the step that
        the schedule names), with the masks kept, and clear the optimiser's state: the lottery ticket of
        Frankle and Carbin (arXiv 1803.03635).

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
        for key, value in _tensors(self._bare):
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
        """Fix the masks as they are now, remove all hooks, forget all that only training needs, and return
        the model."""
        if self.schedule is not None and self.steps < self.schedule.end:
            logger.warning(
                "finalized at step %d, before the schedule's end at step %d: "
                "the sparsity asked for is not reached",
                self.steps,
                self.schedule.end,
            )
        self.apply()
        for entry in self._entries:
            entry.saved = entry.goal = entry.dual = None
            _claims.pop(id(entry.target.parameter), None)
        self._initial = None
        self._finalized = True
        self._unhook()
        return self.model

    # ------------------------------------------------------------- what was done

    def report(self) -> Report:
        """What is pruned at this moment, weight by weight, and why every other parameter is dense.

        `print(pruner.report())` shows a table, `pruner.report().to_json()` is for programs.
        """
        rows = []
        for entry in self._entries:
            parameter = entry.target.parameter
            weight = _numpy(parameter)
            nbytes = dense = weight.size * parameter.element_size()
            if entry.pruned is not None:
                pruned = entry.pruned
                matrix = encode(
                    weight, pruned.pattern, mask=pruned.mask, row_order=pruned.row_order
                )
                half = HALF.get(parameter.dtype)
                nbytes = (matrix if half is None else matrix.astype(half)).nbytes
            rows.append(
                LayerReport(
                    name=entry.target.name,
                    shape=(weight.shape[0], weight.shape[1]),
                    pattern=str(entry.pattern),
                    asked=entry.sparsity,
                    sparsity=1 - float(entry.pruned.mask.mean()) if entry.pruned else 0.0,
                    kept=entry.kept,
                    empty_rows=entry.empty_rows,
                    nbytes=nbytes,
                    dense_nbytes=dense,
                )
            )
        parameters = dict(self._bare.named_parameters())
        dense_rows = tuple(
            DenseReport(name, tuple(p.shape), p.numel() * p.element_size(), self._dense[name])
            for name, p in parameters.items()
            if name in self._dense
        )
        return Report(tuple(rows), dense_rows)

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
                state["kept"] = entry.kept
            for key in ("saved", "goal", "dual"):
                value = getattr(entry, key)
                state[key] = None if value is None else whole(value).clone()
            weights[entry.target.name] = state
        initial = self._initial
        state_of = getattr(self._criterion, "state_dict", None)
        return {
            "steps": self.steps,
            "finalized": self._finalized,
            "weights": weights,
            "criterion": None if state_of is None else state_of(),
            "initial": None if initial is None else {k: whole(v).clone() for k, v in initial.items()},
        }  # fmt: skip

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
        if self._finalized:
            self._unhook()
        tensors = dict(_tensors(self._bare))
        self._initial = None
        if state["initial"] is not None:
            self._initial = {
                key: placed_like(value, tensors[key]).clone()
                for key, value in state["initial"].items()
            }
        if state.get("criterion") is not None:
            cast(Any, self._criterion).load_state_dict(state["criterion"])
        for entry in self._entries:
            own = weights[entry.target.name]
            parameter = entry.target.parameter
            # What the making of this Pruner dropped comes back, unless the model was loaded since then.
            if entry.bits is not None and not _any_outside(parameter, entry.bits):
                self._unmask(entry)
            if "mask" in own:
                shape = entry.target.shape
                bits = np.unpackbits(own["mask"].cpu().numpy(), count=parameter.numel())
                order = own["row_order"]
                self._set_mask(
                    entry,
                    bits.astype(bool).reshape(shape),
                    None if order is None else order.cpu().numpy(),
                )
                entry.kept = float(own["kept"])
            else:
                entry.forget()
            for key in ("saved", "goal", "dual"):
                value = own[key]
                placed = None if value is None else placed_like(value, parameter).clone()
                setattr(entry, key, placed)
        self.apply()

    def __repr__(self) -> str:
        done = "" if self.schedule is None else f" of {self.schedule.end}"
        return (
            f"<Pruner of {len(self._entries)} weights to sparsity {self.sparsity}, scope {self.scope}, "
            f"step {self.steps}{done}{', finalized' if self._finalized else ''}>"
        )

    # ------------------------------------------------------------- beginning

    def _settle(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, group: Any, rewindable: bool
    ) -> None:  # fmt: skip
        """What any Pruner begins with."""
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer that is made already, got {optimizer!r}"
            )
        self.model = model
        self.optimizer = optimizer
        self.steps = 0
        self._bare = unwrapped(model)
        self._ranks = Ranks(group)
        self._finalized = False
        self._entries = []
        self._handles = []
        self._applied = False
        self._versions = []
        self._initial = None
        if rewindable:
            self._remember()

    def _remember(self) -> None:
        """Keep a copy of the model to rewind to."""
        self._initial = {key: value.clone() for key, value in _tensors(self._bare)}

    def _claim(self, targets: list[Target]) -> None:
        """Be the only Pruner of these weights, and follow the optimiser."""
        for target in targets:
            if target.parameter.is_inference():
                raise ValueError(
                    f"{target.name} was made under torch.inference_mode() and cannot be changed: "
                    "make the model outside of it, and load the weights into that one"
                )
            other = _claims.get(id(target.parameter))
            if other is not None and any(
                e.target.parameter is target.parameter for e in other._entries
            ):
                raise ValueError(
                    f"{target.name} is pruned by another Pruner: finalize() that one first, or exclude it here"
                )  # fmt: skip
        for target in targets:
            _claims[id(target.parameter)] = self
        if self.optimizer is None:
            return
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not any(id(target.parameter) in trained for target in targets):
            raise ValueError(
                "this optimizer trains none of the weights that are pruned: give the one of this model"
            )
        ours = weakref.ref(self)

        def before(*_: Any) -> None:
            pruner = ours()
            if pruner is None or pruner._masks_are_final():
                return
            if hasattr(pruner._criterion, "observe"):
                for entry in pruner._entries:
                    pruner._observe(entry.target, pruner._weight(entry))

        def after(*_: Any) -> None:
            pruner = ours()
            if pruner is not None:
                pruner.apply()
                pruner._applied = True

        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
        ]

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stop_learning()

    def _stop_learning(self) -> None:
        if hasattr(self._criterion, "detach"):
            self._criterion.detach()

    def _masks_are_final(self) -> bool:
        return self.schedule is None or self.steps >= self.schedule.end

    def _current_versions(self) -> list[tuple[int, int]]:
        """Changes when somebody writes to a weight or puts another in its place."""
        return [(id(p), p._version) for p in (entry.target.parameter for entry in self._entries)]

    def _written(self) -> bool:
        return self._current_versions() != self._versions

    def _leave_dense(self, target: Target, reason: str) -> None:
        logger.info("%s stays dense: %s", target.name, reason)
        self._dense[target.name] = reason

    def _check_globs(self, what: str, given: object) -> None:
        """Refuse a dict with a glob that names no weight which is pruned."""
        if not isinstance(given, Mapping):
            return
        names = [entry.target.name for entry in self._entries]
        for glob in given:
            if not any(matches(name, glob) for name in names):
                raise ValueError(
                    f"{what} names {glob!r}, which is no weight that is pruned; there are: "
                    + ", ".join(names)
                )

    def _resolve(
        self, targets: list[Target], pattern: Patterns, sparsity: PerLayer | None
    ) -> list[_Entry]:
        """The targets with their patterns; those without one, or too small for "auto", are left out."""
        table = pattern if isinstance(pattern, Mapping) else {"*": pattern}
        if not table:
            raise ValueError("pattern is an empty dict: it names no weight to prune")
        parsed = {glob: parse_pattern(value) for glob, value in table.items()}
        shares = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
        entries = []
        for target in targets:
            shape = target.shape
            wanted = lookup(target.name, parsed)
            share = cast("float | None", lookup(target.name, shares))
            why = "no pattern for it" if wanted is None else ""
            if isinstance(wanted, Auto):
                why = _auto_leaves_dense(*shape)
                wanted = None if why else self._auto(target, share)
            if wanted is None:
                _claims.pop(id(target.parameter), None)
                self._leave_dense(target, why)
                continue
            try:
                resolved = wanted.resolve(shape)
            except PatternError as error:
                raise PatternError(f"{target.name}: {error}") from None
            fixed = isinstance(resolved, NM)
            if sparsity is not None and share is None and not fixed:
                raise ValueError(
                    f'sparsity has no value for {target.name}: add one, such as "*": 0.9 as its last entry'
                )
            entries.append(_Entry(target, resolved, None if fixed else share))
        if not entries:
            raise ValueError(
                "nothing to prune: none of the weights has a pattern; there are "
                + ", ".join(target.name for target in targets)
            )
        return entries

    def _auto(self, target: Target, sparsity: float | None) -> Pattern:
        """The pattern of "auto" for one weight."""
        scores = self._scores(target, target.parameter.detach())

        def shares() -> list[float]:
            return [
                kept_share(scores, choose_mask(scores, candidate, sparsity, method="greedy").mask)
                for candidate in AUTO_CANDIDATES
            ]

        kept = self._ranks.from_first(shares)
        best = int(np.argmax(kept))
        logger.info(
            "%s: auto is %s, which keeps %.3f of irregular", target.name, AUTO_CANDIDATES[best], kept[best]
        )  # fmt: skip
        return AUTO_CANDIDATES[best]

    # ------------------------------------------------------------- choosing

    def _context(self, target: Target) -> Context:
        module, attribute = target.owners[0]
        gradient = target.parameter.grad
        return Context(module, attribute, None if gradient is None else whole(gradient), self.steps)

    def _follow(self, entry: _Entry) -> None:
        """Move the mask to where the weight is: the model may have been moved or cast."""
        weight = local(entry.target.parameter)
        if entry.bits is not None and not is_sharded(entry.bits):
            entry.bits = entry.bits.to(weight.device, INTEGERS[weight.element_size()])

    def _weight(self, entry: _Entry) -> torch.Tensor:
        """The values of a weight, together with those that its mask has dropped."""
        weight = entry.target.parameter.detach()
        if entry.bits is None or entry.saved is None:
            return weight
        self._follow(entry)
        return torch.where(entry.bits != 0, weight, entry.saved.to(weight))

    @torch.no_grad()
    def _observe(self, target: Target, weight: torch.Tensor) -> None:
        cast(Any, self._criterion).observe(target.name, whole(weight), self._context(target))

    def _scores(self, target: Target, weight: torch.Tensor) -> npt.NDArray[np.float32]:
        """The scores of a weight, float32 [M, K] in C order."""
        weight = whole(weight)
        with torch.no_grad():
            scores = self._criterion(target.name, weight, self._context(target))
        if tuple(scores.shape) != tuple(weight.shape):
            raise ValueError(
                f"the criterion must return scores of the parameter's shape, {tuple(weight.shape)} "
                f"for {target.name}, got {tuple(scores.shape)}"
            )
        scores = scores.detach().float()
        # The weights are the same everywhere, what else goes into scores need not be.
        same = isinstance(self._criterion, Magnitude)
        return _numpy(scores if same else self._ranks.mean(scores))

    def _choose(
        self, at: SparsityAt, weight_of: Callable[[_Entry], torch.Tensor]
    ) -> dict[str, _Choice | None]:
        """A mask for every weight; None where the pattern cannot be so full yet."""
        scores = {e.target.name: self._scores(e.target, weight_of(e)) for e in self._entries}
        together = self._choose_together if self.scope == "global" else self._choose_each
        return self._ranks.from_first(lambda: together(scores, at))

    def _choose_together(
        self, scores: Mapping[str, npt.NDArray[np.float32]], at: SparsityAt
    ) -> dict[str, _Choice | None]:
        sparsity = at(cast(float, self.sparsity))
        used = dict(scores)
        if self._normalize:
            for name, values in scores.items():
                size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
                used[name] = values if size == 0 else (values / size).astype(np.float32)

        def limits(given: PerLayer, default: float, bound: Any) -> dict[str, float]:
            shares = given if isinstance(given, Mapping) else {"*": given}
            found = {name: lookup(name, shares) for name in scores}
            # On the way to a limit nothing has to keep it.
            return {n: bound(sparsity, default if v is None else v) for n, v in found.items()}

        selections = choose_masks(
            used,
            {entry.target.name: entry.pattern for entry in self._entries},
            sparsity,
            min_sparsity=limits(self._min_sparsity, 0.0, min),
            max_sparsity=limits(self._max_sparsity, 1.0, max),
            min_per_group=self._min_per_group,
        )
        return {name: _Choice.of(s, scores[name]) for name, s in selections.items()}

    def _choose_each(
        self, scores: Mapping[str, npt.NDArray[np.float32]], at: SparsityAt
    ) -> dict[str, _Choice | None]:
        choices: dict[str, _Choice | None] = {}
        for entry in self._entries:
            name = entry.target.name
            fixed = isinstance(entry.pattern, NM)
            if entry.sparsity is None and not fixed:
                raise ValueError(
                    "sparsity is needed: the share of zeros, such as 0.9 (only n:m patterns have one of "
                    "their own)"
                )
            sparsity = at(1.0 if entry.sparsity is None else entry.sparsity)
            choices[name] = None
            if sparsity <= 0 and at is not _final:
                continue
            try:
                selection = choose_mask(
                    scores[name],
                    entry.pattern,
                    sparsity=None if fixed else sparsity,
                    method=self._method,
                    min_per_group=self._min_per_group if isinstance(entry.pattern, GS) else 0,
                )
            except PatternError as error:
                # Uneven banks cannot be nearly full: dense until the sparsity is one that they can give.
                if sparsity == entry.sparsity:
                    raise PatternError(f"{name}: {error}") from None
                logger.debug("%s: sparsity %.4f cannot be given yet", name, sparsity)
            except ValueError as error:
                raise type(error)(f"{name}: {error}") from None
            else:
                choices[name] = _Choice.of(selection, scores[name])
        return choices

    @torch.no_grad()
    def _update(self, step: int) -> bool:
        """Choose the masks anew if the schedule says so at this step; whether it did."""
        schedule = self.schedule
        if schedule is None:
            return False

        def at(final: float) -> float:
            return schedule(step, final) or 0.0

        # Patterns that have a sparsity of their own take it with the first masks.
        if all(at(1.0 if e.sparsity is None else e.sparsity) <= 0 for e in self._entries):
            return False
        if getattr(schedule, "rho", None) is not None and step < schedule.end:
            self._draw()
            return False
        try:
            choices = self._choose(at, self._weight)
        except PatternError:
            if self.scope == "layer" or step == schedule.end:
                raise
            logger.debug("step %d: this sparsity cannot be given yet", step)
            return False
        for entry in self._entries:
            self._unmask(entry)
        self._mask(choices)
        if getattr(schedule, "rewind_to", None) is not None:
            self.rewind()
        return True

    def _draw(self) -> None:
        """ADMM: Z becomes the projection of W + U, and U grows by W - Z; weights are not masked."""

        def total(entry: _Entry) -> torch.Tensor:
            weight = entry.target.parameter.detach()
            return weight if entry.dual is None else weight + entry.dual

        choices = self._choose(_final, total)
        for entry in self._entries:
            choice = choices[entry.target.name]
            assert choice is not None
            projected = total(entry).clone()
            _and(projected, self._bits(entry, self._unpack(entry, choice)))
            entry.dual = total(entry) - projected
            entry.goal = projected - entry.dual
            entry.kept = choice.kept

    def _unpack(self, entry: _Entry, choice: _Choice) -> npt.NDArray[np.bool_]:
        shape = entry.target.shape
        count = shape[0] * shape[1]
        return np.unpackbits(choice.bits, count=count).astype(bool).reshape(shape)

    def _mask(self, choices: Mapping[str, _Choice | None]) -> None:
        for entry in self._entries:
            choice = choices[entry.target.name]
            if choice is None:
                entry.forget()
                continue
            entry.kept = choice.kept
            self._set_mask(entry, self._unpack(entry, choice), choice.row_order)
            if choice.nothing:
                logger.warning(
                    "%s keeps nothing at sparsity %.4f: exclude it%s",
                    entry.target.name,
                    choice.sparsity,
                    ", or set max_sparsity" if self.scope == "global" else " or lower the sparsity",
                )

    def _bits(self, entry: _Entry, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
        """A mask in the matrix view as bits in the parameter's shape, placed as the parameter is."""
        parameter = entry.target.parameter
        keep = from_matrix(torch.from_numpy(mask), parameter.shape)
        keep = keep.to(INTEGERS[parameter.element_size()]).neg_().contiguous()
        return placed_like(keep, parameter)

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
        entry.goal = entry.dual = None
        entry.bits = self._bits(entry, mask)
        self._save(entry)

    def _save(self, entry: _Entry) -> None:
        """Set the values aside that the mask drops."""
        assert entry.bits is not None
        entry.saved = entry.target.parameter.detach().clone()
        local(entry.saved).view(INTEGERS[entry.saved.element_size()]).bitwise_and_(
            ~local(entry.bits)
        )

    def _unmask(self, entry: _Entry) -> None:
        """Give the dropped weights back the values that they had, if these are still known."""
        entry.target.parameter.detach().copy_(self._weight(entry))


def prune_(
    model: M,
    pattern: Patterns,
    sparsity: PerLayer | None = None,
    include: Names | None = None,
    exclude: Names | None = None,
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


def _auto_leaves_dense(rows: int, cols: int) -> str:
    """Why "auto" leaves a weight of this shape dense; empty if it prunes it."""
    banks = max(pattern.bundle_size for pattern in AUTO_CANDIDATES)
    if rows * cols < AUTO_LEAST_WEIGHTS:
        return f"auto leaves weights of less than {AUTO_LEAST_WEIGHTS:,} elements dense"
    if cols < banks:
        return f"auto needs {banks} inputs, one for each bank, and there are {cols}"
    return ""


def _final(sparsity: float) -> float:
    """The sparsity after all steps."""
    return sparsity


def _and(tensor: torch.Tensor, bits: torch.Tensor) -> None:
    """Put 0 where `bits` is 0, in place. A mask over bits is as fast as memory, and it leaves neither NaN nor -0."""
    integers = INTEGERS[tensor.element_size()]
    here = local(tensor.detach())
    here.view(integers).bitwise_and_(local(bits).to(here.device, integers))


def _any_outside(parameter: torch.Tensor, bits: torch.Tensor) -> bool:
    """Whether a weight outside a mask is not 0."""
    weight = local(parameter.detach())
    return bool((weight[local(bits).to(weight.device) == 0] != 0).any())


def _first_words(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A weight in the matrix view, [M, K] in C order, float32 unless it is float64."""
    tensor = as_matrix(whole(tensor.detach())).cpu()
    return np.ascontiguousarray(
        (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a model, shared ones once."""
    yield from ((name, value.detach()) for name, value in model.named_parameters())
    yield from model.named_buffers()
