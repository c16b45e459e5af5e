"""Choosing masks: optimal, valid, within budget, the same everywhere, and clear about what cannot be.

Everything is compared with mask_oracles, which knows the definitions and not the program.
"""

import dataclasses
import functools
import itertools
import pickle

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, hstack, kron, vstack

import gspattern as gs
import mask_oracles as oracle
from gspattern import _core, masks

LAYOUTS = ["interleaved", "contiguous"]


# --------------------------------------------------------------------- cases

SCORES = {
    "small integers": lambda rng, shape: rng.integers(0, 9, shape),
    "gaussian": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "ties and zeros": lambda rng, shape: rng.integers(0, 3, shape),
    "rows of different scale": lambda rng, shape: (
        np.abs(rng.standard_normal(shape)) * rng.lognormal(0, 1, (shape[0], 1))
    ),
    "integers, banks of different scale": lambda rng, shape: (
        rng.integers(0, 5, shape) * rng.integers(0, 9, (1, shape[1]))
    ),
    "mostly zero": lambda rng, shape: rng.random(shape) * (rng.random(shape) < 0.3),
    "large integers": lambda rng, shape: rng.integers(0, 1 << 20, shape),
    "many magnitudes": lambda rng, shape: 10 ** rng.uniform(-12, 12, shape),
}


def make_scores(kind, rng, shape):
    return SCORES[kind](rng, shape).astype(np.float32)


def is_integral(scores):
    return bool((scores == np.round(scores)).all())


class Case:
    """A small random matrix with a pattern and a number of nonzeros that it can keep."""

    def __init__(self, seed, scatter=False, least=0, most=None):
        rng = np.random.default_rng(seed)
        banks = int(rng.choice([1, 2, 3, 4, 4, 5, 6, 6, 8]))
        per_row = int(rng.choice([k for k in range(1, banks + 1) if banks % k == 0]))
        layout = LAYOUTS[seed // len(SCORES) % 2]
        self.pattern = gs.GS(banks, per_row, scatter, layout)
        self.rows = int(rng.integers(1, min(3 * self.pattern.group_rows + 2, 12)))
        self.cols = int(rng.integers(banks, min(3 * banks + 3, 20)))
        self.kind = list(SCORES)[seed % len(SCORES)]
        self.scores = make_scores(self.kind, rng, (self.rows, self.cols))
        self.least, self.most = least, most
        counts = oracle.possible_counts(self.pattern, self.rows, self.cols, least, most)
        low = rng.choice(counts)
        self.keep = int(min(max(1, low + rng.integers(0, banks)), self.rows * self.cols))
        self.sparsity = oracle.sparsity_for(self.keep, self.rows, self.cols)
        self.exactly = is_integral(self.scores)

    @functools.cached_property
    def values(self):
        return oracle.group_values(self.scores, self.pattern)

    def best(self, values=None):
        values = self.values if values is None else values
        return oracle.best_total(values, self.pattern, self.rows, self.keep, self.least, self.most)

    def choose(self, method="exact", **options):
        return gs.choose_mask(self.scores, self.pattern, self.sparsity, method=method, **options)


@functools.cache
def case_of(seed):
    return Case(seed)


def same(score, expected, exactly):
    return score == expected if exactly else score == pytest.approx(expected, rel=1e-9, abs=1e-30)


def assert_sound(selection, scores, pattern, keep):
    """Everything that a selection says of itself, and that its mask is valid and within budget."""
    rows, cols = scores.shape
    mask = selection.mask
    assert mask.dtype == np.bool_
    assert mask.shape == (rows, cols)
    if pattern.scatter:
        assert np.sort(selection.row_order).tolist() == list(range(rows))
    else:
        assert selection.row_order is None
    kept = int(mask.sum())
    assert keep - pattern.banks < kept <= keep
    bundles = oracle.bundles_of(mask, pattern, selection.row_order)
    assert selection.bundles.tolist() == bundles
    assert selection.empty_rows == rows - int(mask.any(axis=1).sum())
    assert selection.score == pytest.approx(scores.astype(np.float64)[mask].sum(), rel=1e-12)
    assert selection.sparsity == pytest.approx(1 - kept / (rows * cols), abs=1e-15)


# ----------------------------------------------------------- exact is optimal

RANDOM = range(400)


@pytest.mark.parametrize("seed", RANDOM)
def test_exact_is_the_optimum_of_the_linear_programs(seed):
    case = case_of(seed)
    selection = case.choose()
    assert_sound(selection, case.scores, case.pattern, case.keep)
    assert same(selection.score, case.best(), case.exactly)


@pytest.mark.parametrize("seed", RANDOM)
def test_exact_comes_with_its_proof(seed):
    case = case_of(seed)
    selection = case.choose()
    best = case.best()
    assert selection.upper_bound >= best * (1 - 1e-12)
    assert selection.upper_bound == pytest.approx(best, rel=1e-9, abs=1e-30)
    assert 0 <= selection.gap <= 1e-9
    assert gs.verify(selection, case.scores)


@pytest.mark.parametrize("seed", RANDOM)
def test_greedy_is_valid_and_its_bound_is_the_optimum(seed):
    case = case_of(seed)
    selection = case.choose("greedy")
    assert_sound(selection, case.scores, case.pattern, case.keep)
    best = case.best()
    assert selection.score <= best * (1 + 1e-12)
    assert selection.upper_bound == pytest.approx(best, rel=1e-9, abs=1e-30)
    assert selection.gap >= 0
    assert gs.verify(selection, case.scores)


TINY = list(
    itertools.product([(2, 4), (3, 4), (2, 5), (3, 3), (4, 3)], [(2, 1), (2, 2), (3, 1), (3, 3)])
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "sizes"), TINY)
def test_exact_is_the_best_union_of_bundles(shape, sizes, layout):
    """Every budget of a tiny matrix, against all masks that are unions of bundles by definition."""
    pattern = gs.GS(*sizes, layout=layout)
    rows, cols = shape
    scores = np.random.default_rng(rows * cols).integers(0, 8, shape).astype(np.float32)
    by_definition = oracle.best_by_definition(scores, pattern)
    for keep in range(1, rows * cols + 1):
        allowed = [s for t, s in by_definition.items() if keep - pattern.banks < t <= keep]
        sparsity = oracle.sparsity_for(keep, rows, cols)
        if not allowed:
            with pytest.raises(gs.PatternError):
                gs.choose_mask(scores, pattern, sparsity)
            continue
        selection = gs.choose_mask(scores, pattern, sparsity)
        assert_sound(selection, scores, pattern, keep)
        assert selection.score == max(allowed)


def best_of_integer_program(scores, pattern, keep):
    """Optimum of matrix and allotment in one program, integral in the bundles of the groups.

    All groups must be full and `keep` a multiple of the banks; the gains of these scores are positive.
    """
    rows, cols = scores.shape
    assert rows % pattern.group_rows == 0
    assert keep % pattern.banks == 0
    groups = rows // pattern.group_rows
    banks = oracle.banks_of(pattern, cols)
    group_of_row = np.eye(groups)[np.arange(rows) // pattern.group_rows]
    in_row = kron(np.eye(rows), np.ones((1, cols)))
    in_bank = kron(group_of_row.T, np.eye(pattern.banks)[:, banks])
    row_share = csr_matrix(-pattern.per_row * group_of_row)
    bank_share = kron(np.eye(groups), -np.ones((pattern.banks, 1)))
    total = hstack([csr_matrix((1, rows * cols)), np.full((1, groups), pattern.banks)])
    sums = vstack([hstack([in_row, row_share]), hstack([in_bank, bank_share]), total], format="csr")
    right = np.zeros(sums.shape[0])
    right[-1] = keep
    solution = milp(
        np.concatenate([-scores.astype(np.float64).ravel(), np.zeros(groups)]),
        constraints=LinearConstraint(sums, right, right),
        bounds=Bounds(0, np.concatenate([np.ones(rows * cols), np.full(groups, np.inf)])),
        integrality=np.concatenate([np.zeros(rows * cols), np.ones(groups)]),
        options={"mip_rel_gap": 0},
    )
    assert solution.status == 0, solution.message
    return -solution.fun


@pytest.mark.parametrize(
    ("pattern", "shape", "keep"),
    [
        ("gs(16,1)", (64, 64), 26 * 16),
        ("gs(16,1,contiguous)", (32, 100), 100 * 16),
        ("gs(16,4)", (48, 67), 31 * 16),
        ("gs(16,8,contiguous)", (34, 130), 160 * 16),
        ("gs(16,16)", (64, 64), 26 * 16),
        ("gs(32,2)", (32, 96), 40 * 32),
        ("gs(33,11,contiguous)", (9, 127), 10 * 33),
        ("gs(64,1)", (64, 64), 20 * 64),
    ],
)
def test_exact_at_the_size_of_small_layers(pattern, shape, keep):
    rng = np.random.default_rng(keep)
    pattern = gs.parse_pattern(pattern)
    scores = make_scores("rows of different scale", rng, shape)
    selection = gs.choose_mask(scores, pattern, oracle.sparsity_for(keep, *shape))
    assert_sound(selection, scores, pattern, keep)
    assert selection.mask.sum() == keep
    assert selection.score == pytest.approx(
        best_of_integer_program(scores, pattern, keep), rel=1e-9
    )
    greedy = gs.choose_mask(scores, pattern, oracle.sparsity_for(keep, *shape), method="greedy")
    assert 0.9 * selection.score < greedy.score <= selection.score * (1 + 1e-12)


def test_a_bundle_that_costs_score_is_taken_if_the_budget_asks_for_it():
    """With banks of 2, 1 and 1 columns the best scores of 0 to 3 bundles are 0, 27, 54 and 45."""
    scores = np.array([[9, 0, 0, 9], [0, 9, 9, 0], [0, 9, 9, 0]], np.float32)
    for keep, score in ((3, 27), (6, 54), (8, 54), (9, 45), (11, 45)):
        selection = gs.choose_mask(scores, "gs(3,1)", oracle.sparsity_for(keep, 3, 4))
        assert selection.score == score
        assert selection.mask.sum() == keep // 3 * 3
    twice = np.vstack([scores, scores])
    selection = gs.choose_mask(twice, "gs(3,1)", oracle.sparsity_for(15, 6, 4))
    assert selection.score == 99
    assert sorted(selection.bundles) == [2, 3]


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 31, 32, 33, 63, 65])
@pytest.mark.parametrize("text", ["gs(1,1)", "gs(4,4)", "gs(4,2)", "gs(4,1)", "gs(4,1,contiguous)"])
def test_horizontal_groups_keep_the_largest_of_every_bank(text, cols):
    """One row of per_row = banks: f(n) is a running sum of the t-th largest of every bank."""
    pattern = gs.parse_pattern(text)
    if pattern.banks > cols:
        with pytest.raises(gs.PatternError, match=f"has {cols}; use {cols} banks|at most {cols}"):
            gs.choose_mask(np.ones((4, cols), np.float32), pattern, 0.5)
        return
    scores = make_scores("gaussian", np.random.default_rng(cols), (1, cols))
    if pattern.group_rows > 1:
        scores = np.repeat(
            scores, pattern.group_rows, axis=0
        )  # equal rows: any of them may hold any
    banks = oracle.banks_of(pattern, cols)
    keep = pattern.banks
    selection = gs.choose_mask(scores, pattern, oracle.sparsity_for(keep, *scores.shape))
    expected = sum(float(scores[0, banks == b].max()) for b in range(pattern.banks))
    assert selection.score == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "method", "at_80", "at_90"),
    [
        ("gs(16,16)", "exact", 0.993, 0.986),
        ("gs(16,1)", "exact", 0.921, 0.914),
        ("gs(16,1)", "greedy", 0.919, 0.91),
        ("gs(16,1)+scatter", "exact", 0.99, 0.99),
        ("block(1,16)", "exact", 0.68, 0.61),
        ("block(16,1)", "exact", 0.55, 0.48),
    ],
)
def test_how_much_is_kept_relative_to_irregular(text, method, at_80, at_90):
    """Figures found by other means for Gaussian x log-normal row scales, which vary by about .015."""
    for sparsity, expected in ((0.8, at_80), (0.9, at_90)):
        kept = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            scores = np.abs(rng.standard_normal((64, 1024))) * rng.lognormal(0, 0.3, (64, 1))
            scores = scores.astype(np.float32)
            selection = gs.choose_mask(scores, text, sparsity, method=method)
            best = oracle.irregular_score(scores, int(selection.mask.sum()))
            kept.append(selection.score / best)
        assert np.mean(kept) == pytest.approx(expected, abs=0.02)


# -------------------------------------------------------------------- budget


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.75, 0.9, 0.95, 0.999, 0.9999999])
@pytest.mark.parametrize("text", ["gs(4,2)", "gs(4,4)", "gs(4,1)+scatter", "gs(4,1,contiguous)"])
def test_never_more_is_kept_than_was_asked(text, sparsity):
    pattern = gs.parse_pattern(text)
    for shape in [(8, 16), (7, 17), (1, 64), (64, 4), (33, 31)]:
        scores = make_scores("gaussian", np.random.default_rng(1), shape)
        keep = oracle.budget(sparsity, *shape)
        counts = oracle.possible_counts(pattern, *shape)
        if any(keep - pattern.banks < c <= keep for c in counts):
            assert_sound(gs.choose_mask(scores, pattern, sparsity), scores, pattern, keep)
        else:
            with pytest.raises(gs.PatternError):
                gs.choose_mask(scores, pattern, sparsity)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (3, 5), (8, 4), (6, 11)])
@pytest.mark.parametrize("per_row", [1, 2, 4])
def test_every_budget_is_kept_or_refused_with_what_can_be_given(per_row, shape, layout):
    pattern = gs.GS(4, per_row, layout=layout)
    scores = make_scores("gaussian", np.random.default_rng(2), shape)
    counts = oracle.possible_counts(pattern, *shape)
    for keep in range(1, scores.size + 1):
        sparsity = oracle.sparsity_for(keep, *shape)
        if any(keep - 4 < c <= keep for c in counts):
            assert_sound(gs.choose_mask(scores, pattern, sparsity), scores, pattern, keep)
        else:
            assert keep > counts[-1]
            with pytest.raises(gs.PatternError) as error:
                gs.choose_mask(scores, pattern, sparsity)
            assert str(counts[-1]) in str(error.value)
            assert "sparsity" in str(error.value)


@pytest.mark.parametrize(
    "text", ["gs(4,2)", "gs(4,4)", "gs(4,1)+scatter", "irregular", "block(2,2)"]
)
def test_sparsity_zero_keeps_everything_where_banks_are_even(text):
    scores = make_scores("gaussian", np.random.default_rng(3), (8, 12))
    selection = gs.choose_mask(scores, text, 0)
    assert selection.mask.all()
    assert selection.sparsity == 0


@pytest.mark.parametrize("text", ["gs(4,2)", "gs(4,4)", "gs(4,1)", "irregular", "block(2,2)"])
def test_a_budget_of_nothing_keeps_nothing(text):
    scores = make_scores("gaussian", np.random.default_rng(3), (8, 12))
    selection = gs.choose_mask(scores, text, 0.9999)
    assert not selection.mask.any()
    assert selection.score == 0
    assert selection.empty_rows == 8
    assert selection.sparsity == 1


# -------------------------------------------------------------------- limits


@pytest.mark.parametrize("seed", range(120))
def test_floor_and_ceiling_are_kept_exactly(seed):
    rng = np.random.default_rng(seed)
    most_possible = min(
        oracle.capacities(case_of(seed).pattern, case_of(seed).rows, case_of(seed).cols)
    )
    least = int(rng.integers(0, most_possible + 1))
    most = int(rng.integers(max(1, least), most_possible + 2)) if seed % 3 else None
    case = Case(seed, least=least, most=most)
    selection = case.choose(min_per_group=least, max_per_group=most)
    assert_sound(selection, case.scores, case.pattern, case.keep)
    assert selection.bundles.min() >= least
    assert most is None or selection.bundles.max() <= most
    assert same(selection.score, case.best(), case.exactly)
    assert selection.gap <= 1e-9
    assert gs.verify(selection, case.scores)
    greedy = case.choose("greedy", min_per_group=least, max_per_group=most)
    assert_sound(greedy, case.scores, case.pattern, case.keep)
    assert greedy.bundles.min() >= least
    assert most is None or greedy.bundles.max() <= most


@pytest.mark.parametrize("text", ["gs(4,4)", "gs(4,2)", "gs(4,1,contiguous)", "gs(4,4)+scatter"])
def test_equal_floor_and_ceiling_give_equal_counts(text):
    pattern = gs.parse_pattern(text)
    scores = make_scores("rows of different scale", np.random.default_rng(5), (8, 16))
    sparsity = oracle.sparsity_for(2 * 4 * 8 // pattern.group_rows, 8, 16)
    selection = gs.choose_mask(scores, pattern, sparsity, min_per_group=2, max_per_group=2)
    assert set(selection.bundles.tolist()) == {2}
    assert set(selection.mask.sum(1)) == {2 * pattern.per_row}
    assert selection.empty_rows == 0


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize(
    ("sparsity", "limits", "numbers"),
    [
        (0.9, {"min_per_group": 2}, ["2", "64"]),
        (0.1, {"max_per_group": 2}, ["2", "64"]),
        (0.5, {"min_per_group": 5}, []),
        (0.5, {"min_per_group": 3, "max_per_group": 2}, ["3", "2"]),
        (0.5, {"min_per_group": -1}, ["-1"]),
        (0.5, {"max_per_group": -1}, ["-1"]),
    ],
)
def test_limits_that_cannot_be_kept(sparsity, limits, numbers, method):
    scores = make_scores("gaussian", np.random.default_rng(5), (8, 16))
    with pytest.raises(ValueError, match=r"per_group|sparsity") as error:
        gs.choose_mask(scores, "gs(4,4)", sparsity, method=method, **limits)
    for number in numbers:
        assert number in str(error.value)


# ------------------------------------------------------------------- scatter


def order_by_count(scores, keep):
    """The authors' order: rows by how many scores are above the keep-th largest, ascending, stable."""
    threshold = np.sort(scores, axis=None)[-keep]
    return np.argsort((scores > threshold).sum(1), kind="stable")


@pytest.mark.parametrize("seed", range(160))
def test_scatter_is_optimal_for_its_order_and_no_worse_than_others(seed):
    case = Case(seed, scatter=True)
    selection = case.choose()
    assert_sound(selection, case.scores, case.pattern, case.keep)

    def best(order):
        return case.best(oracle.group_values(case.scores[order], case.pattern))

    own = best(selection.row_order)
    assert same(selection.score, own, case.exactly)
    assert selection.gap <= 1e-9
    assert gs.verify(selection, case.scores)
    for other in [np.arange(case.rows), order_by_count(case.scores, case.keep)]:
        assert selection.score >= best(other) * (1 - 1e-12)
    greedy = case.choose("greedy")
    assert_sound(greedy, case.scores, case.pattern, case.keep)
    assert greedy.score <= best(greedy.row_order) * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(64, 64), (65, 100), (96, 40), (31, 33)])
@pytest.mark.parametrize("sparsity", [0.7, 0.9])
@pytest.mark.parametrize("text", ["gs(16,1)", "gs(16,4)", "gs(16,1,contiguous)"])
def test_scatter_at_the_size_of_small_layers(text, sparsity, shape):
    scores = make_scores("rows of different scale", np.random.default_rng(7), shape)
    keep = oracle.budget(sparsity, *shape)
    scattered = gs.choose_mask(scores, text + "+scatter", sparsity)
    assert_sound(scattered, scores, gs.parse_pattern(text + "+scatter"), keep)
    again = gs.choose_mask(scores[scattered.row_order], text, sparsity)
    assert scattered.score == pytest.approx(again.score, rel=1e-12)
    for order in [np.arange(len(scores)), order_by_count(scores, keep)]:
        other = gs.choose_mask(np.ascontiguousarray(scores[order]), text, sparsity)
        assert scattered.score >= other.score * (1 - 1e-12)


@pytest.mark.parametrize("text", ["gs(8,8)+scatter", "gs(8,8,contiguous)+scatter", "gs(cpu)"])
def test_scatter_of_single_rows_only_orders_them_by_count(text):
    scores = make_scores("rows of different scale", np.random.default_rng(8), (40, 70))
    pattern = gs.parse_pattern(text).resolve(scores.shape)
    selection = gs.choose_mask(scores, text, 0.8)
    assert_sound(selection, scores, pattern, oracle.budget(0.8, 40, 70))
    plain = gs.choose_mask(
        scores, gs.GS(pattern.banks, pattern.per_row, False, pattern.layout), 0.8
    )
    assert (selection.mask == plain.mask).all()
    steps = np.diff(selection.mask.sum(1)[selection.row_order])
    assert (steps >= 0).all() or (steps <= 0).all()


def test_scatter_finds_rows_that_belong_together():
    """Heavy and light rows alternate: side by side they cost a bundle each, sorted they do not."""
    rng = np.random.default_rng(9)
    scores = make_scores("gaussian", rng, (32, 32)) + 1
    scores[::2] *= 1e-3
    selection = gs.choose_mask(scores, "gs(8,1)+scatter", 0.5)
    assert selection.score > 0.999 * scores[1::2].sum()
    assert gs.choose_mask(scores, "gs(8,1)", 0.5).score < 0.8 * selection.score


# ------------------------------------------------------------ edges and input

EVERY = [
    "gs(4,4)",
    "gs(4,2)",
    "gs(4,1)",
    "gs(4,1,contiguous)+scatter",
    "gs(cpu)",
    "bank_balanced(4)",
    "irregular",
    "block(2,2)",
    "1:4",
]


def sparsity_of(text, sparsity):
    return None if ":" in text else sparsity


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (1, 4), (16, 4), (3, 64), (17, 33)])
@pytest.mark.parametrize("fill", [0, 1, 3e38, 1e-45])
def test_all_scores_equal(text, method, shape, fill):
    scores = np.full(shape, fill, np.float32)
    selection = gs.choose_mask(scores, text, sparsity_of(text, 0.75), method=method)
    assert selection.mask.shape == shape
    assert selection.score == pytest.approx(
        float(np.float32(fill)) * selection.mask.sum(), rel=1e-9
    )
    pattern = gs.parse_pattern(text).resolve(shape)
    assert gs.check(selection.mask, pattern, selection.row_order)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 5)])
def test_empty_matrices(shape):
    scores = np.zeros(shape, np.float32)
    for text in ("irregular", "block(2,2)", "1:4"):
        selection = gs.choose_mask(scores, text, sparsity_of(text, 0.5))
        assert selection.mask.shape == shape
        assert selection.score == 0
        assert selection.empty_rows == shape[0]
    if shape[1] == 0:
        with pytest.raises(gs.PatternError, match="columns"):
            gs.choose_mask(scores, "gs(4,2)", 0.5)
    else:
        assert gs.choose_mask(scores, "gs(4,2)", 0.5).bundles.shape == (0,)


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-0.5, "-0.5")]
)
def test_the_first_bad_score_is_named(text, value, shown):
    scores = make_scores("gaussian", np.random.default_rng(0), (9, 16))
    scores[6, 5] = value
    scores[7, 0] = value
    scores[8, 15] = np.nan
    with pytest.raises(ValueError, match="score") as error:
        gs.choose_mask(scores, text, sparsity_of(text, 0.75))
    message = str(error.value)
    assert shown in message
    assert "6" in message
    assert "5" in message


def test_minus_zero_is_zero():
    scores = make_scores("ties and zeros", np.random.default_rng(0), (8, 16))
    negated = np.where(scores == 0, np.float32(-0.0), scores)
    one, other = (gs.choose_mask(s, "gs(4,2)", 0.5) for s in (scores, negated))
    assert one.score == other.score
    assert (one.mask == other.mask).all()


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [
        (90, ["[0, 1", "90", "did you mean 0.9?"]),
        (95.5, ["[0, 1", "95.5", "did you mean 0.955?"]),
        (-0.1, ["[0, 1", "-0.1"]),
        (float("nan"), ["[0, 1", "nan"]),
        (float("inf"), ["[0, 1", "inf"]),
        ("0.9", ["'0.9'"]),
        (None, []),
        (True, ["sparsity", "True"]),
    ],
)
@pytest.mark.parametrize("text", ["gs(4,2)", "irregular", "block(1,4)", "bank_balanced(4)"])
def test_sparsities_that_are_none(text, sparsity, words):
    scores = np.ones((8, 16), np.float32)
    with pytest.raises((ValueError, TypeError)) as error:
        gs.choose_mask(scores, text, sparsity)
    for word in ["sparsity", *words]:
        assert word in str(error.value)


def test_n_of_m_sets_its_own_sparsity():
    scores = np.ones((8, 16), np.float32)
    with pytest.raises(ValueError, match="sparsity") as error:
        gs.choose_mask(scores, "2:4", 0.5)
    assert "2:4" in str(error.value)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.ones((8, 16)), ["float32", ".astype(np.float32)"]),
        (np.ones((8, 16), np.float16), ["float32"]),
        (np.ones((8, 16), int), ["float32"]),
        (np.ones((8, 16), bool), ["float32"]),
        (np.ones((8, 16), ">f4"), ["float32"]),
        (np.ones(16, np.float32), ["2", "1"]),
        (np.ones((8, 4, 3, 3), np.float32), ["2", "4"]),
        ([[1.0, 2.0]], ["array", "list"]),
        (None, ["array", "NoneType"]),
    ],
)
def test_scores_of_the_wrong_kind(scores, words):
    with pytest.raises((TypeError, ValueError), match="scores") as error:
        gs.choose_mask(scores, "gs(2,1)", 0.5)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", EVERY)
def test_strided_scores_are_chosen_from_as_if_they_were_copied(text):
    wide = make_scores("gaussian", np.random.default_rng(4), (16, 64))
    for scores in (wide[::2, ::2], wide[:, ::-1], wide.T, np.asfortranarray(wide)):
        copied = gs.choose_mask(np.ascontiguousarray(scores), text, sparsity_of(text, 0.75))
        selection = gs.choose_mask(scores, text, sparsity_of(text, 0.75))
        assert (selection.mask == copied.mask).all()


def test_read_only_and_misaligned_scores():
    scores = make_scores("gaussian", np.random.default_rng(4), (8, 16))
    expected = gs.choose_mask(scores, "gs(4,2)", 0.5).mask
    scores.flags.writeable = False
    assert (gs.choose_mask(scores, "gs(4,2)", 0.5).mask == expected).all()
    raw = np.zeros(scores.nbytes + 1, np.uint8)
    raw[1:] = scores.view(np.uint8).ravel()
    misaligned = raw[1:].view(np.float32).reshape(scores.shape)
    assert not misaligned.flags.aligned
    assert (gs.choose_mask(misaligned, "gs(4,2)", 0.5).mask == expected).all()


def test_scores_are_not_written_to():
    scores = make_scores("gaussian", np.random.default_rng(4), (16, 64))
    before = scores.copy()
    for text in EVERY:
        gs.choose_mask(scores, text, sparsity_of(text, 0.75))
    assert (scores == before).all()


def test_patterns_that_do_not_fit_and_methods_that_do_not_exist():
    scores = np.ones((8, 16), np.float32)
    with pytest.raises(gs.PatternError, match=r"the most that fit: gs\(16,16\)"):
        gs.choose_mask(scores, "gs(32,32)", 0.5)
    with pytest.raises(gs.PatternError, match="only the Pruner"):
        gs.choose_mask(scores, "auto", 0.5)
    with pytest.raises(gs.PatternError, match="did you mean irregular"):
        gs.choose_mask(scores, "iregular", 0.5)
    with pytest.raises(ValueError, match="exact") as error:
        gs.choose_mask(scores, "gs(4,4)", 0.5, method="exakt")
    assert "exakt" in str(error.value)
    assert "greedy" in str(error.value)


# --------------------------------------------------------------- determinism


@pytest.fixture
def threads():
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("kind", ["gaussian", "ties and zeros"])
@pytest.mark.parametrize("text", [*EVERY, "gs(16,4)+scatter", "gs(16,1)+scatter", "gs(16,16)"])
def test_the_same_mask_with_any_number_of_threads(text, kind, method, threads):
    scores = make_scores(kind, np.random.default_rng(6), (130, 96))
    first = None
    for number in (1, 2, 4, 1):
        threads(number)
        selection = gs.choose_mask(scores, text, sparsity_of(text, 0.8), method=method)
        first = first or selection
        assert (selection.mask == first.mask).all()
        assert selection.score == first.score
        if first.row_order is not None:
            assert (selection.row_order == first.row_order).all()
        if first.bundles is not None:
            assert (selection.bundles == first.bundles).all()


# ------------------------------------------------------------- many matrices


def many(seed, banks, whole):
    """A few small matrices with patterns of these banks; `whole`: without short groups."""
    rng = np.random.default_rng(seed)
    scores, patterns = {}, {}
    for number, b in enumerate(banks):
        per_row = int(rng.choice([k for k in range(1, b + 1) if b % k == 0]))
        pattern = gs.GS(b, per_row, layout=LAYOUTS[seed % 2])
        rows = int(rng.integers(1, 8))
        if whole:
            rows = max(1, rows // pattern.group_rows) * pattern.group_rows
        shape = (rows, int(rng.integers(b, 2 * b + 4)))
        kind = ["small integers", "large integers", "ties and zeros"][seed % 3]
        scores[f"layer{number}"] = make_scores(kind, rng, shape)
        patterns[f"layer{number}"] = pattern
    size = sum(s.size for s in scores.values())
    most = sum(oracle.possible_counts(patterns[name], *scores[name].shape)[-1] for name in scores)
    keep = int(rng.integers(1, most + 1))
    return scores, patterns, size, keep


def totals_of_many(scores, patterns, keep):
    """Best score of all matrices together for every number of nonzeros up to `keep`."""
    values, sizes = [], []
    for name, pattern in patterns.items():
        values += oracle.group_values(scores[name], pattern)
        sizes += oracle.group_sizes(pattern, len(scores[name]))
    return oracle.best_totals(values, sizes, keep)


@pytest.mark.parametrize("seed", range(60))
def test_one_budget_over_matrices_with_equal_bundles_is_exact(seed):
    scores, patterns, size, keep = many(
        seed, [[4, 4, 4], [3, 3], [6, 6], [1, 1, 1]][seed % 4], True
    )
    selections = gs.choose_masks(scores, patterns, 1 - keep / size)
    assert list(selections) == list(scores)
    kept = sum(int(s.mask.sum()) for s in selections.values())
    banks = patterns["layer0"].banks
    assert keep - banks < kept <= keep
    for name, selection in selections.items():
        bundles = oracle.bundles_of(selection.mask, patterns[name])
        assert selection.bundles.tolist() == bundles
        assert selection.score == scores[name].astype(np.float64)[selection.mask].sum()
    totals = totals_of_many(scores, patterns, keep)
    total = sum(s.score for s in selections.values())
    assert total == totals[max(0, keep - banks + 1) :].max()


@pytest.mark.parametrize("seed", range(60))
def test_one_budget_over_matrices_with_other_bundles_is_optimal_for_its_count(seed):
    scores, patterns, size, keep = many(seed, [[4, 3], [8, 2, 3], [6, 4], [5, 1]][seed % 4], False)
    selections = gs.choose_masks(scores, patterns, 1 - keep / size)
    kept = sum(int(s.mask.sum()) for s in selections.values())
    assert kept <= keep
    for name, selection in selections.items():
        assert selection.bundles.tolist() == oracle.bundles_of(selection.mask, patterns[name])
    total = sum(s.score for s in selections.values())
    assert total == pytest.approx(totals_of_many(scores, patterns, keep)[kept], rel=1e-9)


# -------------------------------------------------------------- certificates


def chosen(method="exact", text="gs(4,2)", shape=(7, 18), keep=40):
    scores = make_scores("gaussian", np.random.default_rng(11), shape)
    return scores, gs.choose_mask(scores, text, oracle.sparsity_for(keep, *shape), method=method)


@pytest.mark.parametrize("seed", range(60))
def test_one_budget_keeps_the_limits_of_every_matrix(seed):
    scores, patterns, size, _ = many(seed, [[4, 4, 4], [3, 2]][seed % 2], seed % 4 < 2)
    rng = np.random.default_rng(seed)
    keep, least, most = 0, {}, {}
    for name, matrix in scores.items():
        counts = oracle.possible_counts(patterns[name], *matrix.shape)
        least[name] = int(rng.choice(counts[: len(counts) // 2 + 1]))
        most[name] = least[name] + int(rng.integers(0, matrix.size - least[name] + 1))
        keep += most[name]
    keep = max(int(keep * rng.uniform(0.8, 1)), sum(least.values()), 1)

    def part(kept):
        return {name: 1 - n / scores[name].size for name, n in kept.items()}

    selections = gs.choose_masks(
        scores, patterns, 1 - keep / size, min_sparsity=part(most), max_sparsity=part(least)
    )
    best = np.zeros(1)
    for name, selection in selections.items():
        assert least[name] <= selection.mask.sum() <= most[name]
        totals = oracle.best_totals(
            oracle.group_values(scores[name], patterns[name]),
            oracle.group_sizes(patterns[name], len(scores[name])),
            most[name],
        )
        totals[: least[name]] = -np.inf
        both = np.add.outer(best, totals)
        counts = np.add.outer(np.arange(len(best)), np.arange(len(totals)))
        best = np.full(len(best) + len(totals) - 1, -np.inf)
        np.maximum.at(best, counts, both)
    kept = sum(int(s.mask.sum()) for s in selections.values())
    assert kept <= keep
    assert selections.score <= best[kept] * (1 + 1e-12)
    if all(len(m) % patterns[name].group_rows == 0 for name, m in scores.items()):
        assert selections.score == pytest.approx(best[kept], rel=1e-9)
    assert selections.upper_bound >= best[kept] * (1 - 1e-12)
    if all(matrix.shape[1] % patterns[name].banks == 0 for name, matrix in scores.items()):
        assert selections.upper_bound >= best[: keep + 1].max() * (1 - 1e-12)  # no gain is negative


@pytest.mark.parametrize("first", [(0, 4), (3, 0), (4, 4)])
def test_a_bad_score_is_named_whatever_stands_before_its_matrix(first):
    scores = {"first": np.ones(first, np.float32), "bad": np.ones((4, 4), np.float32)}
    scores["bad"][2, 1] = np.nan
    with pytest.raises(ValueError, match=r"scores\[2, 1\] is nan"):
        gs.choose_masks(scores, "irregular", 0.5)


def test_one_pattern_for_all_and_what_choose_masks_refuses():
    scores = {n: make_scores("gaussian", np.random.default_rng(n), (8, 16)) for n in (1, 2)}
    chosen = gs.choose_masks(scores, "gs(4,2)+scatter", 0.5)
    for name, selection in chosen.items():
        assert gs.check(selection.mask, "gs(4,2)", selection.row_order)
        assert gs.verify(selection, scores[name])
    with pytest.raises(ValueError, match="at least one matrix"):
        gs.choose_masks({}, "gs(4,2)", 0.5)
    with pytest.raises(ValueError, match="no entry for 2"):
        gs.choose_masks(scores, {1: "gs(4,2)"}, 0.5)
    with pytest.raises(ValueError, match=r"did you mean 0\.5"):
        gs.choose_masks(scores, "gs(4,2)", 50)
    with pytest.raises(ValueError, match="scores"):
        gs.choose_masks({1: scores[1], 2: -scores[2]}, "gs(4,2)", 0.5)
    with pytest.raises(TypeError, match="takes a mapping of names to scores, got list"):
        gs.choose_masks([scores[1]], "gs(4,2)", 0.5)
    for extra in (
        {"patterns": {1: "gs(4,2)", 2: "gs(4,2)", 3: "gs(4,2)"}},
        {"min_sparsity": {3: 0.5}},
    ):
        with pytest.raises(ValueError, match="has an entry for 3, which scores lacks"):
            gs.choose_masks(**{"scores": scores, "patterns": "gs(4,2)", "sparsity": 0.5, **extra})
    with pytest.raises(gs.PatternError, match=r"^2: gs\(16,16\) needs at least 16 columns"):
        gs.choose_masks({1: scores[1], 2: scores[2][:, :8]}, "gs(16,16)", 0.5)
    with pytest.raises(ValueError, match=r"^2: scores\[0, 0\] is -"):
        gs.choose_masks({1: scores[1], 2: -1 - scores[2]}, "gs(4,2)", 0.5)


# -------------------------------------------------------------- certificates


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("seed", range(60))
def test_prices_bound_every_group_from_above(seed, method):
    """The documented formula, in NumPy, against the linear programs: above them all, equal if exact."""
    case = case_of(seed)
    prices = case.choose(method).prices
    banks = oracle.banks_of(case.pattern, case.cols)
    groups = oracle.row_groups(case.pattern, case.rows)
    for e, (g, n) in enumerate(zip(prices.group, prices.bundles, strict=True)):
        rows = groups[g]
        row, bank = prices.row[e][: len(rows)], prices.bank[e]
        block = case.scores[rows.start : rows.stop].astype(np.float64)
        above = np.maximum(0, block - row[:, None] - bank[banks])
        bound = n * (case.pattern.per_row * row.sum() + bank.sum()) + above.sum()
        assert len(rows) == case.pattern.group_rows or (bank >= 0).all()
        assert bound == pytest.approx(case.values[g][n], rel=1e-9, abs=1e-9 * block.sum())


CERTIFIED = [("gs(4,2)", (7, 18)), ("gs(4,1,contiguous)", (8, 13)), ("gs(4,4)", (6, 12))]


def certified(text, shape, method="exact"):
    scores = make_scores("gaussian", np.random.default_rng(11), shape)
    selection = gs.choose_mask(scores, text, oracle.sparsity_for(40, *shape), method=method)
    assert gs.verify(selection, scores)
    return scores, selection


def with_prices(selection, bound=None, **changes):
    """The selection with other prices and perhaps another claim."""
    proof = selection._proof
    prices = dataclasses.replace(proof.prices, **changes)
    bound = proof.bound if bound is None else bound
    return dataclasses.replace(selection, _proof=proof._replace(prices=prices, bound=bound))


@pytest.mark.parametrize(("text", "shape"), CERTIFIED)
def test_verify_refuses_other_prices(text, shape):
    scores, selection = certified(text, shape)
    prices = selection.prices
    assert gs.verify(with_prices(selection), scores)
    for change in (
        {"row": prices.row - 0.25},
        {"row": prices.row + 0.25},
        {"bank": prices.bank - 0.25},
        {"row": 0 * prices.row, "bank": 0 * prices.bank},
        {"row": prices.row * np.nan},
        {"bank": prices.bank - np.inf},
        {"row": prices.row[:-1]},
        {"group": prices.group[:0], "bundles": prices.bundles[:0]},
        {"group": prices.group[::-1]},
    ):
        verdict = gs.verify(with_prices(selection, **change), scores)
        assert not verdict, change
        assert verdict.problems


@pytest.mark.parametrize("seed", range(100))
def test_whatever_the_prices_the_bound_is_above_the_optimum(seed):
    """Weak duality, through the allotment: no prices prove a bound that is too small."""
    case = case_of(seed)
    selection = case.choose("greedy" if seed % 2 else "exact")
    prices, best = selection.prices, case.best()
    rng = np.random.default_rng(seed)
    scale = case.scores.mean(dtype=np.float64) + 1e-3
    for size in (0.01, 0.3, 3):
        changes = {
            "row": prices.row + size * scale * rng.standard_normal(prices.row.shape),
            "bank": prices.bank + size * scale * rng.standard_normal(prices.bank.shape),
        }
        if size == 3:
            changes = {name: changes[name] - rng.uniform(0, 3) * scale for name in changes}
        if seed % 3 == 0:
            changes["bundles"] = prices.bundles + rng.integers(0, 3)
        verdict = gs.verify(with_prices(selection, bound=1e300, **changes), case.scores)
        assert verdict.upper_bound >= best * (1 - 1e-12)


@pytest.mark.parametrize(("text", "shape"), CERTIFIED)
def test_verify_refuses_a_bound_that_the_prices_do_not_prove(text, shape):
    scores, greedy = certified(text, shape, "greedy")
    assert greedy.upper_bound >= greedy.score
    low = greedy.score * (1 - 1e-6)
    for claim in (low, 0.0, greedy.upper_bound * (1 - 1e-6)):
        claimed = with_prices(greedy, bound=claim)
        if claimed.upper_bound < greedy.upper_bound * (1 - 1e-8):
            assert not gs.verify(claimed, scores)
    lowered = with_prices(greedy, bound=low, row=greedy.prices.row - 0.25)
    assert not gs.verify(lowered, scores)


@pytest.mark.parametrize(("text", "shape"), CERTIFIED)
def test_verify_refuses_another_mask_score_or_order(text, shape):
    scores, selection = certified(text, shape)
    more, less, moved = (selection.mask.copy() for _ in range(3))
    more[tuple(np.argwhere(~selection.mask)[0])] = True
    less[tuple(np.argwhere(selection.mask)[0])] = False
    moved[[0, -1]] = moved[[-1, 0]]
    for change in (
        {"mask": more},
        {"mask": less},
        {"mask": moved},
        {"mask": np.zeros_like(selection.mask)},
        {"score": selection.score * (1 + 1e-6)},
        {"score": selection.score * (1 - 1e-6)},
        {"bundles": selection.bundles[::-1] + 1},
        {"row_order": np.zeros(shape[0], int)},
    ):
        try:
            verdict = gs.verify(dataclasses.replace(selection, **change), scores)
        except ValueError:  # a row order that is none
            assert "row_order" in change
        else:
            assert not verdict, change
    assert not gs.verify(selection, scores * np.float32(1.001))
    assert not gs.verify(selection, scores[::-1].copy())
    with pytest.raises(ValueError, match="shape"):
        gs.verify(selection, scores[:-1].copy())


@pytest.mark.parametrize("seed", range(100))
def test_prices_of_a_short_group_prove_nothing_by_rows_and_signs_that_it_lacks(seed):
    case = case_of(seed)
    short = case.rows % case.pattern.group_rows
    selection = case.choose("greedy")
    prices, last = selection.prices, case.rows // case.pattern.group_rows
    own = np.flatnonzero(prices.group == last)
    if short:
        # One entry alone has to bound all numbers of bundles of this group.
        kept = np.delete(np.arange(prices.group.size), own[1:])
        row, bank = prices.row[kept].copy(), prices.bank[kept].copy()
        row[own[0], short:] = -case.scores.max()
        bank[own[0]] = np.where(bank[own[0]] > 0, bank[own[0]], -case.scores.max())
        changes = {"group": prices.group[kept], "bundles": prices.bundles[kept]}
        claimed = with_prices(selection, bound=1e300, row=row, bank=bank, **changes)
        verdict = gs.verify(claimed, case.scores)
        assert verdict, verdict.problems
        assert verdict.upper_bound >= case.best() * (1 - 1e-12)


def test_verify_refuses_prices_that_hide_scores_by_rounding():
    scores = np.float32([[1.4, 1.4, 1, 1]])
    best = gs.choose_mask(scores, "gs(1,1)", 0.5)
    large = 2.0**53
    forged = with_prices(
        dataclasses.replace(best, mask=scores == 1, score=2.0),
        bound=2.0,
        group=np.zeros(1, int),
        bundles=np.full(1, 2),
        row=np.full((1, 1), large),
        bank=np.full((1, 1), 1 - large),
    )
    assert gs.verify(best, scores)
    assert not gs.verify(forged, scores)
    far = {"row": np.ones((1, 1)), "bank": np.zeros((1, 1)), "bundles": np.full(1, 2**60)}
    assert not gs.verify(with_prices(forged, **far), scores)


@pytest.mark.parametrize("text", ["gs(4,2)", "irregular", "block(1,4)", "2:4", "bank_balanced(4)"])
def test_verify_refuses_a_bad_mask_without_a_proof(text):
    rng = np.random.default_rng(23)
    scores = make_scores("gaussian", rng, (8, 16))
    worst = gs.choose_mask(scores.max() - scores, text, sparsity_of(text, 0.5))
    score = float(scores[worst.mask].sum(dtype=np.float64))
    forged = dataclasses.replace(worst, score=score, _proof=masks._Proof(None, score))
    assert not gs.verify(forged, scores)


def test_verify_refuses_what_is_not_a_number_and_limits_that_are_not_kept():
    scores, selection = certified("gs(4,2)", (8, 16))
    assert not gs.verify(dataclasses.replace(selection, score=np.nan), scores)
    limits = selection._budget._replace(high=0)
    assert not gs.verify(dataclasses.replace(selection, _budget=limits), scores)
    assert not gs.verify(dataclasses.replace(selection, row_order=np.arange(8)), scores)
    for bad in (np.nan, np.inf, -1):
        wrong = scores.copy()
        wrong[3, 5] = bad
        with pytest.raises(ValueError, match=r"scores\[3, 5\] is"):
            gs.verify(selection, wrong)
    with pytest.raises(TypeError, match="takes a Selection of choose_mask, got ndarray"):
        gs.verify(selection.mask, scores)


@pytest.mark.parametrize("text", EVERY)
def test_the_gap_of_an_exact_mask_is_nothing(text):
    for kind in SCORES:
        scores = make_scores(kind, np.random.default_rng(5), (32, 64))
        assert gs.choose_mask(scores, text, sparsity_of(text, 0.83)).gap == 0, kind


def test_a_gap_that_is_rounding_is_none_beside_scores_of_other_magnitudes():
    scores = np.float32([[4e17, 2e-4, 4e-3], [9e-6, 2e-17, 1e17]])
    selection = gs.choose_mask(scores, "gs(2,1)", 0.76)
    assert selection.score == 0
    assert selection.gap == 0
    # A greedy mask that is worse stays worse beside a score that no mask can keep.
    scores = np.zeros((3, 6), np.float32)
    scores[1, 2], scores[2, 0], scores[2, 1] = 7e19, 0.25, 0.375
    greedy, best = (gs.choose_mask(scores, "gs(4,2)", 0.9, m) for m in ("greedy", "exact"))
    assert greedy.score == best.gap == 0
    assert best.score == greedy.upper_bound == 0.625
    assert greedy.gap == 1


def test_a_worse_mask_is_verified_with_its_true_gap():
    scores = make_scores("gaussian", np.random.default_rng(17), (32, 48))
    exact, greedy = (gs.choose_mask(scores, "gs(8,1)", 0.8, method=m) for m in ("exact", "greedy"))
    assert greedy.score < exact.score
    assert greedy.gap == pytest.approx(1 - greedy.score / exact.score, rel=1e-6)
    swapped = dataclasses.replace(
        exact, mask=greedy.mask, bundles=greedy.bundles, score=greedy.score
    )
    assert gs.verify(swapped, scores)
    assert swapped.gap == pytest.approx(greedy.gap, rel=1e-6)


@pytest.mark.parametrize("method", ["exact", "greedy"])
@pytest.mark.parametrize("text", EVERY)
def test_selections_can_be_pickled(text, method):
    scores = make_scores("gaussian", np.random.default_rng(18), (16, 32))
    selection = gs.choose_mask(scores, text, sparsity_of(text, 0.75), method=method)
    again = pickle.loads(pickle.dumps(selection))
    assert (again.mask == selection.mask).all()
    assert again.upper_bound == selection.upper_bound
    assert gs.verify(again, scores)


# ------------------------------------------------------------ other patterns


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (16, 1), (13, 31), (64, 65)])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_irregular_keeps_the_largest(kind, shape, method):
    scores = make_scores(kind, np.random.default_rng(12), shape)
    for sparsity in (0, 0.1, 0.5, 0.9, 0.999):
        keep = oracle.budget(sparsity, *shape)
        selection = gs.choose_mask(scores, "irregular", sparsity, method=method)
        assert selection.mask.sum() == keep
        assert selection.mask.dtype == np.bool_
        expected = oracle.irregular_score(scores, keep)
        assert selection.score == pytest.approx(expected, rel=1e-12)
        assert scores.astype(np.float64)[selection.mask].sum() == pytest.approx(expected, rel=1e-12)
        assert selection.bundles is None
        assert selection.row_order is None
        assert selection.gap == pytest.approx(0, abs=1e-12)
        assert gs.verify(selection, scores)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(
    ("shape", "block"),
    [((8, 16), (2, 4)), ((8, 16), (1, 16)), ((16, 8), (16, 1)), ((6, 6), (1, 1)), ((4, 4), (4, 4))],
)
def test_blocks_keep_the_blocks_of_largest_sum(kind, shape, block):
    scores = make_scores(kind, np.random.default_rng(13), shape)
    rows, cols = block
    for sparsity in (0, 0.1, 0.5, 0.9, 0.999):
        keep = oracle.budget(sparsity, *shape)
        selection = gs.choose_mask(scores, gs.Block(rows, cols), sparsity)
        blocks = selection.mask.reshape(shape[0] // rows, rows, shape[1] // cols, cols)
        whole = blocks.all(axis=(1, 3))
        assert (whole == blocks.any(axis=(1, 3))).all()
        assert whole.sum() == keep // (rows * cols)
        sums = np.sort(oracle.block_sums(scores, rows, cols), axis=None)[::-1]
        assert selection.score == pytest.approx(sums[: whole.sum()].sum(), rel=1e-9)
        assert selection.bundles is None


@pytest.mark.parametrize("shape", [(7, 17), (1, 5), (33, 31), (3, 3)])
@pytest.mark.parametrize("block", [(2, 4), (1, 16), (16, 1), (4, 4)])
def test_blocks_that_the_edge_cuts_short(shape, block):
    rows, cols = block
    scores = make_scores("gaussian", np.random.default_rng(14), shape)
    for sparsity in (0, 0.3, 0.5, 0.9):
        keep = oracle.budget(sparsity, *shape)
        mask = gs.choose_mask(scores, gs.Block(rows, cols), sparsity).mask
        assert keep - rows * cols < mask.sum() <= keep
        kept = oracle.block_sums(mask, rows, cols)
        assert ((kept == 0) | (kept == oracle.block_sums(np.ones(shape), rows, cols))).all()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("shape", [(1, 4), (9, 16), (5, 18), (3, 31), (2, 3), (7, 1)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8), (4, 4), (3, 17)])
def test_n_of_m_keeps_the_n_largest_of_every_window(kind, shape, n, m):
    scores = make_scores(kind, np.random.default_rng(15), shape)
    selection = gs.choose_mask(scores, gs.NM(n, m), None)
    for first in range(0, shape[1], m):
        window = selection.mask[:, first : first + m]
        assert (window.sum(1) == min(n, window.shape[1])).all()
    assert selection.score == pytest.approx(oracle.nm_score(scores, n, m), rel=1e-12)
    assert selection.sparsity == pytest.approx(1 - selection.mask.mean(), abs=1e-15)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("shape", [(1, 16), (9, 16), (5, 18), (3, 31), (2, 4)])
@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_bank_balanced_keeps_the_largest_of_every_bank_of_every_row(kind, shape, method):
    scores = make_scores(kind, np.random.default_rng(16), shape)
    for sparsity in (0.2, 0.5, 0.7, 0.9):
        bundles = oracle.budget(sparsity, *shape) // (4 * shape[0])
        if bundles > shape[1] // 4:
            continue
        selection = gs.choose_mask(scores, "bank_balanced(4)", sparsity, method=method)
        for b in range(4):
            bank = selection.mask[:, b * shape[1] // 4 : (b + 1) * shape[1] // 4]
            assert (bank.sum(1) == bundles).all()
        expected = oracle.bank_balanced_score(scores, 4, bundles)
        assert selection.score == pytest.approx(expected, rel=1e-12)


def test_of_equal_scores_the_leftmost_is_kept():
    scores = np.ones((4, 8), np.float32)
    for text in ("bank_balanced(2)", "2:4"):
        mask = gs.choose_mask(scores, text, sparsity_of(text, 0.5)).mask
        assert (mask == np.tile([True, True, False, False] * 2, (4, 1))).all(), text


# --------------------------------------------------------------------- check


def brute_check(mask, pattern, row_order):
    """For every group, the possible sets of violations: one for each number of bundles it might hold."""
    rows, cols = mask.shape
    order = np.arange(rows) if row_order is None else row_order
    banks = oracle.banks_of(pattern, cols)
    result = []
    for group in oracle.row_groups(pattern, rows):
        block = mask[order[group.start : group.stop]]
        sets = {}
        for bundles in range(cols * pattern.group_rows + 1):
            in_rows, in_banks = oracle.faults_of_group(block, banks, pattern, bundles)
            sets[bundles] = {
                *((int(order[group.start + i]), None, c) for i, c in in_rows.items()),
                *((None, int(b), c) for b, c in in_banks.items()),
            }
        result.append(sets)
    return result


@pytest.mark.parametrize("seed", range(80))
def test_check_lists_every_violation(seed):
    case = case_of(seed)
    rng = np.random.default_rng(seed)
    pattern = case.pattern
    mask = case.choose().mask.copy()
    order = None
    if seed % 2:
        order = rng.permutation(case.rows)
        mask = mask[np.argsort(order)]
    assert gs.check(mask, pattern, order)
    for _ in range(int(rng.integers(1, 4))):
        i, j = rng.integers(0, case.rows), rng.integers(0, case.cols)
        mask[i, j] = not mask[i, j]
    result = gs.check(mask, pattern, order)
    possible = brute_check(mask, pattern, order)
    valid = all(any(not faults for faults in sets.values()) for sets in possible)
    assert bool(result) == valid
    assert bool(result) == (len(result.violations) == 0)
    for number, sets in enumerate(possible):
        listed = [v for v in result.violations if v.group == number]
        found = {(v.row, v.bank, v.count) for v in listed}
        assert len(found) == len(listed)
        matching = [n for n, faults in sets.items() if faults == found]
        assert matching, f"group {number}: no number of bundles leaves just {found}"
        for v in listed:
            expected = {n if v.row is None else n * pattern.per_row for n in matching}
            assert v.expected in expected
            assert v.count != v.expected


def test_limits_of_any_size_and_kind():
    scores = np.ones((8, 16), np.float32)
    assert gs.choose_mask(scores, "gs(4,2)", 0.5, max_per_group=10**30).gap == 0
    with pytest.raises(gs.PatternError, match="min_per_group"):
        gs.choose_mask(scores, "gs(4,2)", 0.5, min_per_group=10**30)
    with pytest.raises(ValueError, match=r"min_per_group must .*, got None"):
        gs.choose_mask(scores, "gs(4,2)", 0.5, min_per_group=None)


def test_check_refuses_what_is_no_mask():
    scores = np.ones((4, 8), np.float32)
    selection = gs.choose_mask(scores, "gs(4,2)", 0.5)
    for given, words in (
        (selection, "got a Selection; pass its .mask"),
        (None, "got NoneType"),
        (np.array([["a", "b"]]), "got <U1"),
        ("gs(4,2)", "got str"),
        (gs.encode(scores, "irregular"), "got CSRMatrix"),
    ):
        with pytest.raises(TypeError, match=words):
            gs.check(given, "gs(4,2)")
    with pytest.raises(ValueError, match="rows of different lengths"):
        gs.check([[1, 0], [1]], "gs(2,1)")
    for order in ([0, 0, 1, 2], [0, 1, 2, 4], [-1, 0, 1, 2]):
        with pytest.raises(
            gs.FormatError, match="permutation: every row from 0 to 3 once"
        ) as error:
            gs.check(selection.mask, "gs(4,2)", order)
        assert error.value.rule == "row_order"
    assert gs.check(np.zeros((0, 8), bool), "gs(4,2)+scatter", [])


def test_a_selection_says_in_one_line_what_it_is():
    scores = np.zeros((3, 8), np.float32)
    scores[0] = 1
    text = repr(gs.choose_mask(scores, "gs(4,4)", 0.6))
    assert text == "<Selection 3x8 gs(4,4): 8 kept, 66.7% sparse, score 8, 2 empty rows>"
