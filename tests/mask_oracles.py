"""What masks ought to be, computed the slow way and from the definitions alone.

Three oracles of decreasing independence and increasing reach:

- `best_by_definition` enumerates every mask of a tiny matrix and looks for a decomposition into bundles;
- `group_values_by_force` enumerates the masks of one group with the right row and bank sums;
- `group_values` solves one linear program (HiGHS) for every number of bundles of every group.

`best_total` then allots bundles to groups by dynamic programming over the number of nonzeros, so it needs
no concavity, and a short last group is nothing special to it.
"""

import itertools
from fractions import Fraction

import numpy as np
import scipy.sparse
from scipy.optimize import linprog


def budget(sparsity, rows, cols):
    """T, the number of nonzeros that a sparsity asks for."""
    return round((1 - sparsity) * rows * cols)


def sparsity_for(keep, rows, cols):
    """A sparsity whose budget is `keep`."""
    sparsity = 1 - keep / (rows * cols)
    assert budget(sparsity, rows, cols) == keep
    return sparsity


# ------------------------------------------------------------------ geometry


def banks_of(pattern, cols):
    """The bank of every column, from the definition: j mod B, or the run of columns that j is in."""
    banks = pattern.banks
    if pattern.layout == "interleaved":
        return np.array([j % banks for j in range(cols)], int)
    widths = [(b + 1) * cols // banks - b * cols // banks for b in range(banks)]
    return np.repeat(np.arange(banks), widths)


def row_groups(pattern, rows):
    """Positions of the rows of every group."""
    step = pattern.banks // pattern.per_row
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def capacity(widths, group_rows, per_row):
    """Most bundles that a group can hold: each bank gives a row at most its width and at most its share."""
    bundles = 0
    while True:
        share = Fraction(bundles + 1, group_rows)
        if sum(min(Fraction(int(w)), share) for w in widths) < (bundles + 1) * per_row:
            return bundles
        bundles += 1


def capacities(pattern, rows, cols):
    widths = np.bincount(banks_of(pattern, cols), minlength=pattern.banks)
    return [capacity(widths, len(g), pattern.per_row) for g in row_groups(pattern, rows)]


# ------------------------------------------------------------------ validity


def splits_into_bundles(group, banks, per_row):
    """Whether a group's mask is a union of bundles, by search: the definition itself."""
    if not group.any():
        return True
    choices = [list(itertools.combinations(np.flatnonzero(row), per_row)) for row in group]
    for bundle in itertools.product(*choices):
        taken = [banks[j] for columns in bundle for j in columns]
        if len(set(taken)) == len(taken):
            rest = group.copy()
            for row, columns in zip(rest, bundle, strict=True):
                row[list(columns)] = False
            if splits_into_bundles(rest, banks, per_row):
                return True
    return False


def faults_of_group(group, banks, pattern, bundles):
    """Rows and banks of a group whose sums are wrong for so many bundles: two dicts of the counts."""
    full = len(group) == pattern.banks // pattern.per_row
    row_sums = group.sum(1)
    bank_sums = np.bincount(banks, weights=group.sum(0), minlength=pattern.banks).astype(int)
    wrong = bank_sums != bundles if full else bank_sums > bundles
    return (
        {i: int(s) for i, s in enumerate(row_sums) if s != bundles * pattern.per_row},
        {b: int(bank_sums[b]) for b in np.flatnonzero(wrong)},
    )


def bundles_of(mask, pattern, row_order=None):
    """Bundles of every group, or an AssertionError that says which group is not valid."""
    rows, cols = mask.shape
    ordered = mask if row_order is None else mask[row_order]
    banks = banks_of(pattern, cols)
    result = []
    for number, group in enumerate(row_groups(pattern, rows)):
        block = ordered[group.start : group.stop]
        bundles, rest = divmod(int(block[0].sum()), pattern.per_row)
        assert not rest, f"group {number}: {block[0].sum()} in a row, per_row is {pattern.per_row}"
        faults = faults_of_group(block, banks, pattern, bundles)
        assert faults == ({}, {}), f"group {number} with {bundles} bundles: rows, banks {faults}"
        result.append(bundles)
    return result


# ------------------------------------------------------------------- optimum


def group_values_by_force(scores, banks, per_row, full):
    """Best score of one group for every number of bundles: a dict, without those that do not fit.

    `full` says that the group has all its rows, so that every bank must hold as many as there are bundles.
    """
    number_of_banks = int(banks.max()) + 1
    best = {}
    for bundles in range(len(banks) // per_row + 1):
        columns = list(itertools.combinations(range(len(banks)), bundles * per_row))
        for rows in itertools.product(columns, repeat=len(scores)):
            sums = np.bincount([banks[j] for row in rows for j in row], minlength=number_of_banks)
            if (sums == bundles).all() if full else (sums <= bundles).all():
                score = sum(float(scores[i, j]) for i, row in enumerate(rows) for j in row)
                best[bundles] = max(score, best.get(bundles, score))
    return best


def group_values(scores, pattern):
    """Best score of every group for 0, 1, ... bundles as far as they fit: a list of float64 arrays.

    One linear program holds them all as blocks of its diagonal. The vertices of each block are masks
    (the matrix of a transportation problem is totally unimodular), and the simplex method ends in one.
    """
    rows, cols = scores.shape
    banks = banks_of(pattern, cols)
    groups = row_groups(pattern, rows)
    most = capacities(pattern, rows, cols)
    blocks, costs, row_sums, bank_sums, sizes = [], [], [], [], []
    for group, limit in zip(groups, most, strict=True):
        r = len(group)
        in_row = scipy.sparse.kron(np.eye(r), np.ones((1, cols)))
        in_bank = scipy.sparse.csr_matrix(np.tile(np.eye(pattern.banks)[:, banks], (1, r)))
        for bundles in range(1, limit + 1):
            blocks.append((in_row, in_bank))
            costs.append(scores[group.start : group.stop].astype(np.float64).ravel())
            row_sums.append(np.full(r, bundles * pattern.per_row))
            bank_sums.append(np.full(pattern.banks, bundles))
            sizes.append(r * cols)
    kept = []
    if blocks:
        cost = np.concatenate(costs)
        # The solver's tolerance is absolute: bring the scores to a size where it is as good as none.
        scale = 2.0 ** (10 - np.frexp(cost.max())[1])
        solution = linprog(
            -cost * scale,
            A_ub=scipy.sparse.block_diag([b for _, b in blocks], format="csr"),
            b_ub=np.concatenate(bank_sums),
            A_eq=scipy.sparse.block_diag([r for r, _ in blocks], format="csr"),
            b_eq=np.concatenate(row_sums),
            bounds=(0, 1),
            method="highs-ds",
            options={"dual_feasibility_tolerance": 1e-10},
        )
        assert solution.status == 0, solution.message
        assert np.abs(solution.x - np.round(solution.x)).max() < 1e-6
        ends = np.cumsum(sizes)
        kept = [
            c[x > 0.5].sum() for c, x in zip(costs, np.split(solution.x, ends[:-1]), strict=True)
        ]
    values, first = [], 0
    for limit in most:
        values.append(np.array([0.0, *kept[first : first + limit]]))
        first += limit
    return values


def best_totals(values, sizes, keep, least=0, most=None):
    """Best total score for every number of nonzeros from 0 to `keep`; -inf where it cannot be had.

    values[g][n] is the score of group g with n bundles of sizes[g] nonzeros; least and most bound n.
    """
    best = np.full(keep + 1, -np.inf)
    best[0] = 0
    for value, size in zip(values, sizes, strict=True):
        after = np.full(keep + 1, -np.inf)
        last = len(value) - 1 if most is None else min(most, len(value) - 1)
        for bundles in range(least, last + 1):
            shift = bundles * size
            if shift <= keep:
                moved = best[: keep + 1 - shift] + value[bundles]
                after[shift:] = np.maximum(after[shift:], moved)
        best = after
    return best


def group_sizes(pattern, rows):
    """Nonzeros of one bundle of every group."""
    return [len(group) * pattern.per_row for group in row_groups(pattern, rows)]


def best_total(values, pattern, rows, keep, least=0, most=None):
    """The optimum under the budget rule, more than keep - banks and at most keep nonzeros; None if empty."""
    totals = best_totals(values, group_sizes(pattern, rows), keep, least, most)
    best = totals[max(0, keep - pattern.banks + 1) :].max()
    return None if best == -np.inf else float(best)


def possible_counts(pattern, rows, cols, least=0, most=None):
    """All numbers of nonzeros that valid masks have."""
    counts = {0}
    for limit, size in zip(
        capacities(pattern, rows, cols), group_sizes(pattern, rows), strict=True
    ):
        last = limit if most is None else min(limit, most)
        counts = {c + n * size for c in counts for n in range(least, last + 1)}
    return sorted(counts)


def best_by_definition(scores, pattern):
    """Best score of every number of nonzeros of a tiny matrix, over all masks that are unions of bundles."""
    rows, cols = scores.shape
    banks = banks_of(pattern, cols)
    group_best = []
    for group in row_groups(pattern, rows):
        block = scores[group.start : group.stop].astype(np.float64)
        best = {}
        for bits in itertools.product([False, True], repeat=block.size):
            mask = np.reshape(bits, block.shape)
            if len(set(mask.sum(1))) == 1 and splits_into_bundles(mask, banks, pattern.per_row):
                kept, score = int(mask.sum()), float(block[mask].sum())
                best[kept] = max(score, best.get(kept, score))
        group_best.append(best)
    total = {0: 0.0}
    for best in group_best:
        after = {}
        for (a, x), (b, y) in itertools.product(total.items(), best.items()):
            after[a + b] = max(x + y, after.get(a + b, -np.inf))
        total = after
    return total


# -------------------------------------------------------------- other patterns


def irregular_score(scores, keep):
    return float(np.sort(scores.astype(np.float64), axis=None)[::-1][:keep].sum())


def block_sums(scores, rows, cols):
    """Scores of all blocks; those at the lower and right edge may be cut short."""
    starts = np.arange(0, scores.shape[0], rows), np.arange(0, scores.shape[1], cols)
    down = np.add.reduceat(scores.astype(np.float64), starts[0], axis=0)
    return np.add.reduceat(down, starts[1], axis=1)


def nm_score(scores, n, m):
    """Sum of the n largest of every m columns."""
    total = 0.0
    for first in range(0, scores.shape[1], m):
        window = np.sort(scores[:, first : first + m].astype(np.float64), axis=1)[:, ::-1]
        total += float(window[:, :n].sum())
    return total


def bank_balanced_score(scores, banks, bundles):
    """Sum of the so many largest of every one of `banks` runs of columns of every row."""
    cols = scores.shape[1]
    total = 0.0
    for b in range(banks):
        bank = scores[:, b * cols // banks : (b + 1) * cols // banks].astype(np.float64)
        total += float(np.sort(bank, axis=1)[:, ::-1][:, :bundles].sum())
    return total
