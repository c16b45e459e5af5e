"""The oracles of the masks against each other: enumeration, search for bundles, linear programs."""

import numpy as np
import pytest

import gspattern as gs
import mask_oracles as oracle

# rows, cols, banks, per_row: full and short groups, even and uneven banks, as small as they come.
TINY = [
    (2, 4, 2, 1),
    (2, 5, 2, 1),
    (3, 4, 2, 1),
    (3, 3, 2, 1),
    (2, 5, 2, 2),
    (2, 6, 4, 2),
    (3, 4, 4, 2),
    (2, 5, 3, 1),
    (3, 3, 3, 1),
    (4, 3, 3, 1),
    (1, 7, 3, 3),
    (1, 6, 4, 1),
    (2, 5, 4, 1),
]
LAYOUTS = ["interleaved", "contiguous"]


def tiny_scores(case, shape):
    return np.random.default_rng(case).integers(0, 8, shape).astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", range(len(TINY)))
def test_row_and_bank_sums_are_all_there_is_to_a_bundle(case, layout):
    """The theorem: enumerating unions of bundles gives what linear programs on the sums give."""
    rows, cols, banks, per_row = TINY[case]
    pattern = gs.GS(banks, per_row, layout=layout)
    scores = tiny_scores(case, (rows, cols))
    by_definition = oracle.best_by_definition(scores, pattern)
    values = oracle.group_values(scores, pattern)
    totals = oracle.best_totals(values, oracle.group_sizes(pattern, rows), rows * cols)
    assert {t: s for t, s in enumerate(totals) if s > -np.inf} == by_definition
    assert oracle.possible_counts(pattern, rows, cols) == sorted(by_definition)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", range(len(TINY)))
def test_linear_programs_find_what_enumeration_finds(case, layout):
    rows, cols, banks, per_row = TINY[case]
    pattern = gs.GS(banks, per_row, layout=layout)
    scores = tiny_scores(100 + case, (rows, cols))
    values = oracle.group_values(scores, pattern)
    for group, value in zip(oracle.row_groups(pattern, rows), values, strict=True):
        forced = oracle.group_values_by_force(
            scores[group.start : group.stop],
            oracle.banks_of(pattern, cols),
            per_row,
            len(group) == pattern.group_rows,
        )
        assert dict(enumerate(value)) == forced


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_values_are_concave(layout):
    scores = np.random.default_rng(0).integers(0, 99, (7, 9)).astype(np.float32)
    for value in oracle.group_values(scores, gs.GS(4, 2, layout=layout)):
        assert len(value) > 2
        assert (np.diff(value, 2) <= 0).all()


def test_one_more_bundle_can_cost_score():
    """With banks of 2, 1 and 1 columns a third bundle forces row 0 out of its second column of bank 0."""
    scores = np.array([[9, 0, 0, 9], [0, 9, 9, 0], [0, 9, 9, 0]], np.float32)
    (value,) = oracle.group_values(scores, gs.GS(3, 1))
    assert value.tolist() == [0, 27, 54, 45]


def test_validity_by_search_agrees_with_the_sums():
    rng = np.random.default_rng(3)
    pattern = gs.GS(4, 2)
    banks = oracle.banks_of(pattern, 6)
    seen = {True: 0, False: 0}
    for _ in range(4000):
        mask = np.zeros((2, 6), bool)
        for row in mask:
            row[rng.permutation(6)[: 2 * rng.integers(0, 3)]] = True
        by_search = len(set(mask.sum(1))) == 1 and oracle.splits_into_bundles(mask, banks, 2)
        try:
            oracle.bundles_of(mask, pattern)
            by_sums = True
        except AssertionError:
            by_sums = False
        assert by_search == by_sums
        seen[by_sums] += 1
    assert min(seen.values()) > 100


def test_budget_rounds_as_python_does():
    assert oracle.budget(0.9, 4096, 1024) == 419430
    assert oracle.budget(0.5, 3, 3) == 4
    assert oracle.budget(0.5, 7, 1) == 4
    assert all(oracle.budget(oracle.sparsity_for(k, 7, 9), 7, 9) == k for k in range(64))


def test_other_patterns_on_a_matrix_done_by_hand():
    scores = np.array([[5, 1, 2, 8, 3], [4, 0, 7, 6, 9]], np.float32)
    assert oracle.irregular_score(scores, 3) == 9 + 8 + 7
    assert oracle.block_sums(scores, 1, 2).tolist() == [[6, 10, 3], [4, 13, 9]]
    assert oracle.block_sums(scores, 2, 2).tolist() == [[10, 23, 12]]
    assert oracle.nm_score(scores, 1, 2) == 5 + 8 + 3 + 4 + 7 + 9
    assert oracle.bank_balanced_score(scores, 2, 1) == 5 + 8 + 4 + 9
