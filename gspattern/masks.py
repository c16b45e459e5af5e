"""Masks: which elements to keep, chosen from scores, with a proof of how good the choice is.

Choosing is an exact problem. A group that holds n bundles keeps n * per_row elements in each row and n in
each bank: a transportation problem, whose optimum is integral and has dual prices. The best score of a
group is concave in n, so bundles go to the groups in the order of what they add. The C core does both
(`csrc/pattern`); `verify` repeats the proof here from the prices alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern._core import PatternError
from gspattern.patterns import NM, BankBalanced, Banked, Block, Pattern, parse_pattern

__all__ = [
    "Check",
    "Prices",
    "Selection",
    "Selections",
    "Verdict",
    "Violation",
    "check",
    "choose_mask",
    "choose_masks",
    "verify",
]

Method = Literal["exact", "greedy"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What rounding may do to sums of scores, relative to the sum or the largest score: `verify` lets so much
# pass, and a bound that is above the score by no more than EQUAL is taken for the score.
ROUNDING = 1e-9
EQUAL = 1e-12


@dataclass(frozen=True)
class Prices:
    """Dual prices of a GS mask: a certificate of how much any mask can keep.

    Entry e says: group[e], holding bundles[e] = n bundles, keeps at most ::

        sum_r n * per_row * row[e, r] + sum_b n * bank[e, b]
            + sum over its scores of max(0, score - row[e, r] - bank[e, b])

    whatever its mask, by weak duality (in a short last group bank prices must not be negative). The bound of
    the whole matrix follows because the best score of a group is concave in n.

    Attributes
    ----------
    group, bundles : ndarray of int64 [entries]
        Sorted; those of one group have no gaps.
    row : ndarray of float64 [entries, rows of a group]
        By place in the group; 0 for the rows that a short group lacks.
    bank : ndarray of float64 [entries, banks]
    """

    group: Ints
    bundles: Ints
    row: Floats
    bank: Floats


@dataclass(frozen=True, repr=False)
class Selection:
    """A chosen mask.

    Attributes
    ----------
    mask : ndarray of bool [M, K]
        What to keep.
    row_order : ndarray of int64 [M] or None
        With scatter: the row at every grouped position.
    bundles : ndarray of int64 [groups] or None
        Bundles of every group; None unless the pattern is GS or bank-balanced.
    score : float
        Sum of the scores kept.
    sparsity : float
        Part of the matrix that is not kept.
    empty_rows : int
        Rows of which nothing is kept.
    pattern : Pattern
        The pattern, resolved for this matrix.
    """

    mask: npt.NDArray[np.bool_]
    row_order: Ints | None
    bundles: Ints | None
    score: float
    sparsity: float
    empty_rows: int
    pattern: Pattern
    _budget: _Budget
    _scores: npt.NDArray[np.float32] | None = None
    _proof: _Proof | None = None

    @property
    def prices(self) -> Prices | None:
        """The dual prices for this row order; None for patterns without banks.

        Those of a greedy mask are computed on first use, from the scores, which it keeps for that.
        """
        proof = self._certificate()
        return None if proof is None else proof.prices

    @property
    def upper_bound(self) -> float:
        """No valid mask within the budget and of this row order has a larger score.

        For irregular and block masks the bound is that of the linear program (blocks that the edges cut
        short leave it above what whole blocks can keep), for N:M the score itself.
        """
        proof = self._certificate()
        return self.score if proof is None else max(self.score, proof.bound)

    @property
    def gap(self) -> float:
        """How far the score may be from the best, relative to the upper bound: 0 is proven optimal."""
        bound = self.upper_bound
        return 0.0 if bound <= 0 else max(0.0, (bound - self.score) / bound)

    def _certificate(self) -> _Proof | None:
        if self._proof is None and self._scores is not None:
            object.__setattr__(self, "_proof", _prove(self._scores, self))
            object.__setattr__(self, "_scores", None)
        return self._proof

    def __getstate__(self) -> dict[str, Any]:
        self._certificate()
        return dict(self.__dict__)

    def __repr__(self) -> str:
        rows, cols = self.mask.shape
        empty = f", {self.empty_rows} empty rows" if self.empty_rows else ""
        return (
            f"<Selection {rows}x{cols} {self.pattern}: {np.count_nonzero(self.mask):,} kept, "
            f"{self.sparsity:.1%} sparse, score {self.score:.6g}{empty}>"
        )


class _Budget(NamedTuple):
    """What was asked for: nonzeros at most, and bundles of every group."""

    keep: int
    low: int
    high: int | None


class _Proof(NamedTuple):
    prices: Prices | None
    bound: float


class Selections(dict[str, Selection]):
    """The masks of several matrices under one budget, by name.

    Attributes
    ----------
    score : float
        Sum of the scores kept.
    sparsity : float
        Part of all matrices together that is not kept.
    upper_bound : float
        No masks within the limits that keep as few nonzeros as asked for have a larger score.
    gap : float
        How far the score may be from the best, relative to the upper bound.
    """

    def __init__(self, selections: Mapping[str, Selection], upper_bound: float) -> None:
        super().__init__(selections)
        size = sum(s.mask.size for s in self.values())
        kept = sum(int(np.count_nonzero(s.mask)) for s in self.values())
        self.score = math.fsum(s.score for s in self.values())
        self.sparsity = 1 - kept / size if size else 0.0
        self.upper_bound = max(self.score, upper_bound)

    @property
    def gap(self) -> float:
        bound = self.upper_bound
        return 0.0 if bound <= 0 else (bound - self.score) / bound


@dataclass(frozen=True)
class Violation:
    """One place where a mask breaks its pattern.

    A row (or a bank; the other is None) of a group holds `count` nonzeros where `expected` would be right:
    n * per_row and n, with n the nearest to what the group holds; in a short group a bank may hold fewer.
    For blocks `group` is the row and `bank` the column of the block; for N:M they are the row and the window.
    """

    group: int
    row: int | None
    bank: int | None
    count: int
    expected: int


@dataclass(frozen=True)
class Check:
    """Whether a mask is valid: true or false, and every violation."""

    violations: tuple[Violation, ...]

    def __bool__(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        if self:
            return "valid"
        first = self.violations[0]
        place = f"bank {first.bank}" if first.row is None else f"row {first.row}"
        return (
            f"{len(self.violations)} violations; the first: group {first.group}, {place} holds {first.count}, "
            f"expected {first.expected}"
        )


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: true if everything holds, else `problems` says what does not.

    Attributes
    ----------
    upper_bound : float
        The bound, computed again from the scores and the prices alone.
    problems : tuple of str
    """

    upper_bound: float
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


# ------------------------------------------------------------------- choosing


def choose_mask(
    scores: npt.NDArray[np.float32],
    pattern: Pattern | str,
    sparsity: float | None = None,
    method: Method = "exact",
    *,
    min_per_group: int = 0,
    max_per_group: int | None = None,
) -> Selection:
    """Choose what to keep of one matrix.

    Parameters
    ----------
    scores : ndarray of float32 [M, K]
        How much each element is worth: finite, not negative, in C order; often the magnitudes of weights.
    pattern : Pattern or str
        What `parse_pattern` reads.
    sparsity : float
        Part of the elements to drop, in [0, 1). With T = round((1 - sparsity) * M * K), at most T are kept and
        more than T less a bundle (bank-balanced: less a bundle in every row). None for N:M, which has its own.
    method : {"exact", "greedy"}
        "exact" keeps the largest total score of all valid masks, for the row order that it chose where the
        pattern has scatter. "greedy" takes the largest score that still fits, again and again, as the
        paper's authors do; it differs for GS with per_row < banks only.
    min_per_group, max_per_group : int, optional
        Bundles that every group of a GS pattern has at least and at most.

    Returns
    -------
    Selection

    Raises
    ------
    PatternError
        If the pattern does not fit the matrix, or cannot give this sparsity.
    ValueError
        If the sparsity or a score is not possible; the first bad score is named.

    Notes
    -----
    The same input gives the same mask on every machine, with any number of threads. Of equal scores in one
    row and bank the leftmost are kept.
    """
    scores = _as_scores(scores, "scores")
    resolved = parse_pattern(pattern).resolve((scores.shape[0], scores.shape[1]))
    if method not in ("exact", "greedy"):
        raise ValueError(f'method must be "exact" or "greedy", got {method!r}')
    budget = _budget(resolved, scores.shape, sparsity, min_per_group, max_per_group)
    try:
        (result,), prices, bound = _core.choose(
            (_choice(scores, resolved, budget),), budget.keep, method == "greedy"
        )
    except PatternError:
        raise _cannot_give(resolved, scores.shape, budget, sparsity) from None
    selection = _selection(result, resolved, budget)
    if isinstance(resolved, Banked):
        if prices is None:
            object.__setattr__(selection, "_scores", scores)
        else:
            object.__setattr__(
                selection, "_proof", _proof_of(prices, selection, float(scores.max(initial=0)))
            )
    elif not isinstance(resolved, NM):
        object.__setattr__(selection, "_proof", _Proof(None, bound))
    return selection


def choose_masks(
    scores: Mapping[str, npt.NDArray[np.float32]],
    patterns: Mapping[str, Pattern | str] | Pattern | str,
    sparsity: float,
    *,
    min_sparsity: Mapping[str, float] | float = 0.0,
    max_sparsity: Mapping[str, float] | float = 1.0,
    min_per_group: int = 0,
    max_per_group: int | None = None,
) -> Selections:
    """Choose what to keep of several matrices under one budget.

    Bundles of all matrices are taken in the order of score per nonzero until the next does not fit. That is
    the best choice for what it keeps, and the best of all where bundles are of one size; else `gap` says how
    far it may be from the best.

    Parameters
    ----------
    scores : mapping of str to ndarray of float32 [M, K]
        As for `choose_mask`; matrices may differ in shape.
    patterns : Pattern or str, or a mapping of them with the same names
        Any but N:M and bank-balanced, whose sparsity is not free.
    sparsity : float
        Part of all elements together to drop, in [0, 1).
    min_sparsity, max_sparsity : float, or a mapping of some names to floats
        Limits for every matrix.
    min_per_group, max_per_group : int, optional
        As for `choose_mask`.

    Returns
    -------
    Selections
        A dict with the names of `scores`.

    Raises
    ------
    PatternError, ValueError
        As for `choose_mask`; also if the limits leave no choice.
    """
    if not isinstance(scores, Mapping):
        raise TypeError(
            "choose_masks takes a mapping of names to scores, got "
            f"{type(scores).__name__}; choose_mask takes one matrix"
        )
    if not scores:
        raise ValueError("choose_masks needs at least one matrix, got none")
    _check_sparsity("sparsity", sparsity)
    for what, given in (
        ("patterns", patterns),
        ("min_sparsity", min_sparsity),
        ("max_sparsity", max_sparsity),
    ):
        if isinstance(given, Mapping) and (unknown := [n for n in given if n not in scores]):
            raise ValueError(f"{what} has an entry for {unknown[0]!r}, which scores lacks")
    choices, resolved, budgets = [], {}, {}
    total = sum(np.size(matrix) for matrix in scores.values())
    for name, values in scores.items():
        matrix = _as_scores(values, f"scores[{name!r}]")
        if isinstance(patterns, Mapping):
            if name not in patterns:
                raise ValueError(f"patterns has no entry for {name!r}")
            pattern = parse_pattern(patterns[name])
        else:
            pattern = parse_pattern(patterns)
        if isinstance(pattern, (NM, BankBalanced)):
            raise PatternError(
                f"{pattern} has no bundles to share among matrices; choose its mask with choose_mask"
            )
        try:
            pattern = pattern.resolve((matrix.shape[0], matrix.shape[1]))
        except PatternError as error:
            raise PatternError(f"{name!r}: {error}") from None
        least = _part_of(min_sparsity, name, 0.0, "min_sparsity")
        most = _part_of(max_sparsity, name, 1.0, "max_sparsity")
        if least > most:
            raise ValueError(f"{name!r}: min_sparsity {least} is above max_sparsity {most}")
        low, high = _group_limits(pattern, min_per_group, max_per_group)
        budget = _Budget(round((1 - least) * matrix.size), low, high)
        choices.append(
            _choice(
                matrix,
                pattern,
                budget,
                min_keep=round((1 - most) * matrix.size),
                max_keep=-1 if least == 0 else budget.keep,
            )
        )
        resolved[name], budgets[name] = pattern, budget
    keep = round((1 - sparsity) * total)
    try:
        results, _, bound = _core.choose(tuple(choices), keep, False)
    except PatternError:
        raise PatternError(
            f"sparsity {sparsity} asks for {keep} nonzeros of {total}, which the patterns and the limits of the "
            "matrices do not allow in whole bundles; widen min_sparsity, max_sparsity, min_per_group or max_per_group"
        ) from None
    except ValueError:
        for name, (matrix, *_) in zip(resolved, choices, strict=True):
            _check_finite(matrix, f"{name!r}: scores")
        raise
    chosen = {}
    for name, (matrix, *_), result in zip(resolved, choices, results, strict=True):
        budget = budgets[name]._replace(keep=result[-1])
        selection = _selection(result, resolved[name], budget)
        if isinstance(resolved[name], Banked):
            # On first use, what this matrix could keep with as many nonzeros as it was given.
            object.__setattr__(selection, "_scores", matrix)
        chosen[name] = selection
    return Selections(chosen, bound)


def _as_scores(scores: Any, name: str) -> npt.NDArray[np.float32]:
    if not isinstance(scores, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array of float32, got {type(scores).__name__}")
    if scores.ndim != 2:
        raise ValueError(
            f"{name} must be 2-D [M, K], got {scores.ndim}-D; gspattern.as_matrix views conv weights"
        )
    if scores.dtype != np.float32 or not scores.dtype.isnative:
        raise TypeError(
            f"{name} must be native float32, got {scores.dtype}; use .astype(np.float32)"
        )
    return np.require(scores, requirements=("C", "A"))


def _check_finite(scores: npt.NDArray[np.float32], name: str) -> None:
    bad = ~((scores >= 0) & (scores < np.inf))
    if bad.any():
        row, col = np.unravel_index(int(np.argmax(bad)), scores.shape)
        raise ValueError(
            f"{name}[{row}, {col}] is {scores[row, col]:g}: a score is NaN, infinite or negative"
        )


def _check_sparsity(name: str, value: Any, *, all_of_it: bool = False) -> None:
    """Refuse what is not a part of a matrix; all of it only as a limit."""
    span = "[0, 1]" if all_of_it else "[0, 1)"
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number in {span}, got {value!r}")
    if not 0 <= value < 1 and not (all_of_it and value == 1):
        hint = f"; did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise ValueError(f"{name} must be in {span}, got {value!r}{hint}")


def _part_of(parts: Mapping[str, float] | float, name: str, default: float, what: str) -> float:
    part = parts.get(name, default) if isinstance(parts, Mapping) else parts
    _check_sparsity(what, part, all_of_it=True)
    return float(part)


def _group_limits(pattern: Pattern, low: int, high: int | None) -> tuple[int, int | None]:
    for name, value in (("min_per_group", low), ("max_per_group", high)):
        if value is None and name == "max_per_group":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ValueError(f"{name} must be a whole number of bundles, 0 or more, got {value!r}")
    if high is not None and low > high:
        raise ValueError(f"min_per_group {low} is above max_per_group {high}")
    if not isinstance(pattern, Banked) and (low or high is not None):
        raise PatternError(
            f"min_per_group and max_per_group count bundles, which {pattern} does not have"
        )
    # No group holds 2^32 bundles; larger numbers would not fit the integers of the C core.
    return min(int(low), 2**32), None if high is None else min(int(high), 2**32)


def _budget(
    pattern: Pattern, shape: tuple[int, ...], sparsity: Any, low: int, high: int | None
) -> _Budget:
    size = shape[0] * shape[1]
    low, high = _group_limits(pattern, low, high)
    if isinstance(pattern, NM):
        if sparsity is not None:
            raise PatternError(
                f"{pattern} has a sparsity of its own: leave sparsity out, got {sparsity!r}"
            )
        return _Budget(size, low, high)
    if sparsity is None:
        raise ValueError(f"{pattern} needs a sparsity, such as 0.9")
    _check_sparsity("sparsity", sparsity)
    keep = round((1 - sparsity) * size)
    if isinstance(pattern, Block) and not (shape[0] % pattern.rows or shape[1] % pattern.cols):
        keep -= keep % pattern.bundle_size  # all blocks are whole, so that no mask keeps more
    if isinstance(pattern, BankBalanced) and size:
        if low or high is not None:
            raise PatternError(
                f"{pattern} has as many bundles in every row; use gs with contiguous banks for limits"
            )
        each = keep // (pattern.banks * shape[0])
        return _Budget(each * pattern.banks * shape[0], each, each)
    return _Budget(keep, low, high)


def _group_sizes(
    pattern: Banked, shape: tuple[int, ...], budget: _Budget
) -> tuple[Ints, Ints, Ints]:
    """Nonzeros of a bundle, and the fewest and most bundles, of every group."""
    rows = np.full(pattern.groups(shape[0]), pattern.group_rows, np.int64)
    if rows.size and shape[0] % pattern.group_rows:
        rows[-1] = shape[0] % pattern.group_rows
    most = {r: _core.max_bundles(pattern.core(), shape[1], r) for r in set(rows.tolist())}
    high = np.array([most[r] for r in rows.tolist()], np.int64)
    if budget.high is not None:
        high = np.minimum(high, budget.high)
    return rows * pattern.per_row, np.full(rows.size, budget.low, np.int64), high


def _cannot_give(
    pattern: Pattern, shape: tuple[int, ...], budget: _Budget, sparsity: Any
) -> PatternError:
    size = shape[0] * shape[1]
    asked = f"sparsity {sparsity} asks for {budget.keep} nonzeros of {size}"
    if not isinstance(pattern, Banked):
        return PatternError(f"{asked}, which {pattern} cannot keep")
    bundle, low, high = _group_sizes(pattern, shape, budget)
    tight = np.flatnonzero(low > high)
    if tight.size:
        group = int(tight[0])
        return PatternError(
            f"{pattern} in a {shape[0]}x{shape[1]} matrix: group {group} can hold at most {high[group]} bundles, "
            f"but min_per_group is {low[group]}"
        )
    least, most = int(bundle @ low), int(bundle @ high)
    return PatternError(
        f"{asked}, but {pattern} can keep from {least} to {most} in a {shape[0]}x{shape[1]} matrix"
        f"{' with these limits per group' if budget.low or budget.high is not None else ''}; "
        f"choose a sparsity from {math.ceil((1 - most / size) * 1e4) / 1e4:g} to "
        f"{math.floor((1 - least / size) * 1e4) / 1e4:g}"
    )


def _choice(
    scores: npt.NDArray[np.float32],
    pattern: Pattern,
    budget: _Budget,
    *,
    scatter: bool | None = None,
    order: npt.NDArray[np.uint32] | None = None,
    min_keep: int = 0,
    max_keep: int = -1,
) -> tuple[Any, ...]:
    """One matrix as the C core takes it; -1 stands for no limit."""
    return (
        scores,
        pattern.core(),
        pattern.scatter if scatter is None else scatter,
        order,
        budget.low,
        -1 if budget.high is None else budget.high,
        min_keep,
        max_keep,
    )


def _selection(result: Any, pattern: Pattern, budget: _Budget) -> Selection:
    mask, row_order, bundles, score, kept = result
    return Selection(
        mask=mask,
        row_order=None if row_order is None else row_order.astype(np.int64),
        bundles=None if bundles is None else bundles.astype(np.int64),
        score=score,
        sparsity=1 - kept / mask.size if mask.size else 0.0,
        empty_rows=int(mask.shape[0] - np.count_nonzero(mask.any(axis=1))),
        pattern=pattern,
        _budget=budget,
    )


# ------------------------------------------------------------------ certificate


def _prove(scores: npt.NDArray[np.float32], selection: Selection) -> _Proof:
    """Prices for the row order of a selection, from its scores: those of the best mask."""
    budget = selection._budget
    order = None if selection.row_order is None else selection.row_order.astype(np.uint32)
    choice = _choice(scores, selection.pattern, budget, scatter=False, order=order)
    _, prices, _ = _core.choose((choice,), budget.keep, False)
    return _proof_of(prices, selection, 0.0)


def _proof_of(found: Any, selection: Selection, largest: float) -> _Proof:
    """The proof from what the C core found; `largest` is the largest score if the mask is the best one.

    Of the best mask score and bound are equal but for rounding, which that of the largest score may be.
    """
    group, bundles, row, bank, _, values = found
    prices = Prices(group, bundles, row, bank)
    bound = _bound(prices, values, selection)
    same = bound - selection.score <= EQUAL * max(selection.score, largest)
    return _Proof(prices, selection.score if same else bound)


def _bound(prices: Prices, values: Floats, selection: Selection) -> float:
    """Bound the score of all masks within the budget, from bounds for single groups.

    values[e] bounds group[e] with bundles[e]. Other numbers n of a group's bundles are bounded from the entry
    at its edge by the same prices, which is linear in n. The sum over groups is bounded by giving bundles a
    price of their own, lambda (Lagrange); any lambda is valid, and the marginal one is the best.
    """
    pattern, budget, shape = selection.pattern, selection._budget, selection.mask.shape
    assert isinstance(pattern, Banked)
    size, low, high = _group_sizes(pattern, shape, budget)
    if not size.size:
        return 0.0
    groups = np.arange(size.size)
    first = np.searchsorted(prices.group, groups)
    last = np.searchsorted(prices.group, groups, side="right") - 1
    slope = pattern.per_row * prices.row.sum(axis=1) + prices.bank.sum(axis=1)
    down, up = slope[first], slope[last]
    below, above = prices.bundles[first] - low, high - prices.bundles[last]
    inner = np.diff(values)
    same = np.diff(prices.group) == 0

    # What a further bundle adds, and to how many of them that applies, largest first.
    gains = np.concatenate([down, up, inner[same]])
    counts = np.concatenate([below, above, np.ones(int(same.sum()), np.int64)])
    owner = np.concatenate([groups, groups, prices.group[:-1][same]])
    short = size[-1] < pattern.banks
    full = owner < size.size - short
    order = np.argsort(-gains[full], kind="stable")
    ranked, reached = gains[full][order], np.cumsum(counts[full][order])

    def at(price: float) -> Floats:
        """The best of every group if a bundle costs `price`."""
        best = np.maximum.reduceat(values - price * prices.bundles, first)
        best = np.maximum(best, values[first] - below * down - price * low)
        return np.asarray(np.maximum(best, values[last] + above * up - price * high))

    def full_groups(bundles: int) -> float:
        """The best of the full groups together with so many bundles."""
        if ranked.size == 0:
            return 0.0
        rank = np.searchsorted(reached, bundles - int(low[: size.size - short].sum()))
        price = float(ranked[min(int(rank), ranked.size - 1)])
        return math.fsum(at(price)[: size.size - short]) + price * bundles

    if not short:
        return full_groups(budget.keep // pattern.banks)
    best = 0.0
    least, most = int(low[:-1].sum()), int(high[:-1].sum())
    own = prices.group == size.size - 1
    for n in range(int(low[-1]), int(high[-1]) + 1):
        rest = (budget.keep - n * int(size[-1])) // pattern.banks
        if not least <= rest <= most:
            continue
        e = int(np.clip(n, prices.bundles[first[-1]], prices.bundles[last[-1]])) - int(
            prices.bundles[first[-1]]
        )
        value = values[own][e] + (n - prices.bundles[own][e]) * slope[own][e]
        best = max(best, float(value) + full_groups(rest))
    return best


def verify(selection: Selection, scores: npt.NDArray[np.float32]) -> Verdict:
    """Check a mask and its certificate, from the scores and the prices alone.

    Nothing of how the mask was found is used: validity is counted, the score summed, and the bound recomputed
    by weak duality in float64.

    Parameters
    ----------
    selection : Selection
        A mask, exact or greedy.
    scores : ndarray of float32 [M, K]
        The scores that it was chosen for.

    Returns
    -------
    Verdict
        True if the mask is valid and within its budget, its score is right, and the prices prove its
        `upper_bound` (which for an exact mask is its score).
    """
    if not isinstance(selection, Selection):
        raise TypeError(
            f"verify takes a Selection of choose_mask, got {type(selection).__name__}; of choose_masks, "
            "verify each one"
        )
    scores = _as_scores(scores, "scores")
    if scores.shape != selection.mask.shape:
        raise ValueError(
            f"scores must have the mask's shape {selection.mask.shape}, got {scores.shape}"
        )
    _check_finite(scores, "scores")
    problems = list(_broken_rules(selection))
    largest = float(scores.max(initial=0.0))
    score = float(np.sum(scores, dtype=np.float64, where=selection.mask))
    slack = ROUNDING * max(score, largest)
    if not abs(score - selection.score) <= slack:
        problems.append(f"the score is {score!r}, not {selection.score!r}")
    bound = selection.upper_bound
    if isinstance(selection.pattern, Banked):
        problems += _broken_prices(selection, largest)
    if not problems:
        bound = _bound_again(selection, scores)
        if not bound <= selection.upper_bound + slack:
            problems.append(
                f"the proof gives no bound below {bound!r}, not {selection.upper_bound!r}"
            )
    if score > bound + slack:
        problems.append(
            f"the score {score!r} is above the bound {bound!r}, so the proof is not that of the scores"
        )
    return Verdict(bound, tuple(problems))


def _bound_again(selection: Selection, scores: npt.NDArray[np.float32]) -> float:
    """The bound, from the scores and, for patterns with banks, the prices."""
    pattern, prices = selection.pattern, selection.prices
    if prices is not None:
        prices = _usable(prices, selection)
        return _bound(prices, _entry_bounds(prices, selection, scores), selection)
    rows, cols = scores.shape
    if scores.size == 0:
        return 0.0
    if isinstance(pattern, NM):
        windows = np.zeros((rows, -(-cols // pattern.m) * pattern.m), np.float32)
        windows[:, :cols] = scores
        ranked = np.sort(windows.reshape(-1, pattern.m), axis=1)
        return float(ranked[:, pattern.m - pattern.n :].sum(dtype=np.float64))
    height, width = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (1, 1)
    tops, lefts = np.arange(0, rows, height), np.arange(0, cols, width)
    value = np.add.reduceat(np.add.reduceat(scores.astype(np.float64), tops, 0), lefts, 1)
    size = np.minimum(height, rows - tops)[:, None] * np.minimum(width, cols - lefts)
    # The linear program takes blocks by score per nonzero, and of the last one a part.
    order = np.argsort(-(value / size), axis=None, kind="stable")
    size, value = size.ravel()[order], value.ravel()[order]
    room = selection._budget.keep - (np.cumsum(size) - size)
    return float((value * np.clip(room / size, 0, 1)).sum())


def _broken_rules(selection: Selection) -> Iterator[str]:
    if (selection.row_order is not None) != selection.pattern.scatter:
        yield f"{selection.pattern} has a row order if it has scatter, and only then"
    found = check(selection.mask, selection.pattern, selection.row_order)
    if not found:
        yield f"the mask is not valid: {found}"
    kept, budget = int(np.count_nonzero(selection.mask)), selection._budget
    bundle = 1 if isinstance(selection.pattern, NM) else selection.pattern.bundle_size
    if kept > budget.keep or (
        kept <= budget.keep - bundle and not isinstance(selection.pattern, NM)
    ):
        yield f"it keeps {kept} nonzeros, not at most {budget.keep} and more than {budget.keep - bundle}"
    if isinstance(selection.pattern, Banked):
        bundles = selection.bundles
        order = (
            np.arange(selection.mask.shape[0])
            if selection.row_order is None
            else selection.row_order
        )
        in_row = np.count_nonzero(selection.mask, axis=1)[order]
        expected = in_row[:: selection.pattern.group_rows] // selection.pattern.per_row
        if bundles is None or not np.array_equal(bundles, expected):
            yield "the bundles are not those of the mask"
        elif bundles.size and (
            bundles.min() < budget.low or (budget.high is not None and bundles.max() > budget.high)
        ):
            yield f"a group has fewer than {budget.low} or more than {budget.high} bundles"


def _broken_prices(selection: Selection, largest: float) -> Iterator[str]:
    """What is wrong with the form of the prices; `largest` is the largest score."""
    pattern, prices = selection.pattern, selection.prices
    assert isinstance(pattern, Banked)
    if prices is None:
        yield "there are no prices"
        return
    entries = prices.group.size
    shapes = (prices.bundles.shape, prices.row.shape, prices.bank.shape)
    # The best prices differ by at most a score along a chain of rows and banks. Rounding would eat the
    # scores beside others that are much larger, or beside many bundles.
    limit = 2 * (pattern.group_rows + pattern.banks) * largest
    if shapes != ((entries,), (entries, pattern.group_rows), (entries, pattern.banks)):
        yield "the prices do not have the shapes of the pattern"
    elif prices.group.dtype.kind != "i" or prices.bundles.dtype.kind != "i":
        yield "groups and bundles of prices must be integers"
    elif not np.array_equal(
        np.unique(prices.group), np.arange(pattern.groups(selection.mask.shape[0]))
    ):
        yield "a group has no prices"
    elif not (np.abs(prices.row) <= limit).all() or not (np.abs(prices.bank) <= limit).all():
        yield f"a price is not within {limit!r} of 0, beyond which none is of use"
    elif ((prices.bundles < 0) | (prices.bundles > selection.mask.shape[1])).any():
        yield "prices are for a number of bundles that no group can hold"
    else:
        same = np.diff(prices.group)
        if (same < 0).any() or (np.diff(prices.bundles)[same == 0] != 1).any():
            yield "the entries of a group are not sorted or have gaps"


def _usable(prices: Prices, selection: Selection) -> Prices:
    """The prices with what a short last group needs: none of a bank is negative, absent rows have 0."""
    pattern = selection.pattern
    present = selection.mask.shape[0] % pattern.group_rows
    if not present:
        return prices
    own = prices.group == pattern.groups(selection.mask.shape[0]) - 1
    row, bank = prices.row.copy(), prices.bank.copy()
    row[own, present:] = 0
    bank[own] = np.maximum(bank[own], 0)
    return Prices(prices.group, prices.bundles, row, bank)


def _entry_bounds(prices: Prices, selection: Selection, scores: npt.NDArray[np.float32]) -> Floats:
    """The bound of every entry, from the scores."""
    pattern, rows = selection.pattern, scores.shape[0]
    assert isinstance(pattern, Banked)
    bank_of = pattern.bank_of(np.arange(scores.shape[1]), scores.shape[1])
    order = np.arange(rows) if selection.row_order is None else selection.row_order
    bounds = np.empty(prices.group.size)
    for e, (g, n) in enumerate(zip(prices.group.tolist(), prices.bundles.tolist(), strict=True)):
        own = order[g * pattern.group_rows : (g + 1) * pattern.group_rows]
        row, bank = prices.row[e, : own.size], prices.bank[e]
        above = scores[own] - row[:, None] - bank[bank_of]
        bounds[e] = n * (pattern.per_row * row.sum() + bank.sum()) + above[above > 0].sum()
    return bounds


# --------------------------------------------------------------------- checking


def check(
    mask_or_weights: npt.ArrayLike, pattern: Pattern | str, row_order: npt.ArrayLike | None = None
) -> Check:
    """Say whether a mask, or the nonzeros of weights, are valid for a pattern, and list what is not.

    Valid for GS means: in every group all rows hold n * per_row nonzeros and every bank n (in a short last
    group at most n), for some n. Such a mask always splits into n bundles.

    Parameters
    ----------
    mask_or_weights : array_like [M, K]
        bool, or numbers of which the nonzeros count.
    pattern : Pattern or str
    row_order : array_like of int [M], optional
        The row at every grouped position; None is the natural order.

    Returns
    -------
    Check
        True if valid; `violations` lists every place that is not. It takes time linear in the matrix.

    Raises
    ------
    PatternError
        If the pattern does not fit a matrix of this shape.
    FormatError
        If the row order is not a permutation.
    """
    mask = _as_array(mask_or_weights, "a mask")
    if mask.ndim != 2:
        raise ValueError(
            f"a mask must be 2-D [M, K], got {mask.ndim}-D; gspattern.as_matrix views conv weights"
        )
    mask = np.ascontiguousarray(mask if mask.dtype == np.bool_ else mask != 0)
    resolved = parse_pattern(pattern).resolve((mask.shape[0], mask.shape[1]))
    order = None if row_order is None else _as_row_order(row_order, mask.shape[0])
    found = [
        Violation(group, None if row < 0 else row, None if bank < 0 else bank, count, expected)
        for group, row, bank, count, expected in _core.check_mask(mask, resolved.core(), order)
    ]
    if isinstance(resolved, BankBalanced) and not found and mask.size:
        in_row = np.count_nonzero(mask, axis=1)
        expected = int(np.bincount(in_row).argmax())
        found = [
            Violation(row, row, None, int(in_row[row]), expected)
            for row in np.flatnonzero(in_row != expected).tolist()
        ]
    return Check(tuple(found))


def _as_array(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Numbers or truth values as an array; what is one already is not copied."""
    if isinstance(values, Selection):
        raise TypeError(f"{what} must be an array, got a Selection; pass its .mask and .row_order")
    if not isinstance(values, np.ndarray):
        from gspattern.matrices import Matrix  # which imports this module

        if isinstance(values, Matrix):  # NumPy would take its values, and leave the rest out
            raise TypeError(
                f"{what} must be an array of numbers, got {type(values).__name__}; "
                "call its mask() or to_dense()"
            )
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise ValueError(
            f"{what} must be a rectangle of numbers, got rows of different lengths"
        ) from None
    if array.dtype.kind in "OSUMm":
        kind = type(values).__name__ if array.ndim == 0 else array.dtype
        raise TypeError(f"{what} must be an array of numbers, got {kind}")
    return array


def _as_row_order(row_order: npt.ArrayLike, rows: int) -> npt.NDArray[np.uint32]:
    order = np.asarray(row_order)
    if order.shape != (rows,) or (order.dtype.kind not in "iu" and rows):
        raise ValueError(
            f"row_order must be {rows} integers, one for each row, got {order.dtype} of shape {order.shape}"
        )
    if not np.array_equal(np.sort(order), np.arange(rows)):
        error = _core.FormatError(
            f"row_order must be a permutation: every row from 0 to {rows - 1} once"
        )
        error.rule = "row_order"
        raise error
    return np.ascontiguousarray(order, dtype=np.uint32)
