"""Encoding and compact matrices: bit for bit, bundle by bundle, and one refusal for every rule."""

import copy
import itertools
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import gspattern as gs
from gspattern.matrices import Matrix

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(t) for t in (np.float64, np.float32, np.float16, BF16, np.int8)]
BITS = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}

GS_PATTERNS = [
    "gs(1,1)",
    "gs(4,1)",
    "gs(4,2)",
    "gs(4,4)",
    "gs(6,2)",
    "gs(16,16)",
    "gs(5,1,contiguous)",
    "gs(6,3,contiguous)",
    "gs(16,16,contiguous)",
    "gs(16,1)+scatter",
    "gs(8,2,contiguous)+scatter",
    "gs(16,16)+scatter",
    "gs(cpu)",
    "bank_balanced(3)",
    "bank_balanced(16)",
]
OTHER_PATTERNS = [
    "irregular",
    "block(1,4)",
    "block(4,1)",
    "block(3,5)",
    "2:4",
    "1:3",
    "3:16",
    "5:17",
]
SHAPES = [(1, 16), (15, 17), (16, 16), (17, 31), (31, 33), (33, 64), (3, 65), (0, 20), (37, 37)]


# ------------------------------------------------------------------- oracles


def banks_of(pattern, cols):
    """The bank of every column, from the definition."""
    if pattern.layout == "interleaved":
        return np.arange(cols) % pattern.banks
    begins = [b * cols // pattern.banks for b in range(pattern.banks + 1)]
    return np.repeat(np.arange(pattern.banks), np.diff(begins))


def group_positions(pattern, rows):
    step = pattern.banks // pattern.per_row
    return [np.arange(first, min(first + step, rows)) for first in range(0, rows, step)]


def valid_mask(pattern, shape, rng, most=4, row_order=None):
    """A random valid mask: bundles of the pattern, one over the other, wherever they are disjoint."""
    rows, cols = shape
    mask = np.zeros(shape, bool)
    if isinstance(pattern, gs.Irregular):
        return rng.random(shape) < 0.3
    if isinstance(pattern, gs.Block):
        blocks = rng.random((-(-rows // pattern.rows), -(-cols // pattern.cols))) < 0.4
        return np.kron(blocks, np.ones((pattern.rows, pattern.cols), bool))[:rows, :cols]
    if isinstance(pattern, gs.NM):
        for i, first in itertools.product(range(rows), range(0, cols, pattern.m)):
            width = min(pattern.m, cols - first)
            mask[i, first + rng.permutation(width)[: rng.integers(0, pattern.n + 1)]] = True
        return mask
    bank = banks_of(pattern, cols)
    members = [np.flatnonzero(bank == b) for b in range(pattern.banks)]
    equal = int(rng.integers(0, min(map(len, members)) + 1))
    for positions in group_positions(pattern, rows):
        if isinstance(pattern, gs.BankBalanced):
            for columns in members:
                mask[positions, rng.permutation(columns)[:equal]] = True
            continue
        of_group = positions if row_order is None else row_order[positions]
        for _ in range(rng.integers(0, most + 1)):
            slots = rng.permutation(pattern.banks)[: len(of_group) * pattern.per_row]
            of_slot = np.repeat(of_group, pattern.per_row)
            free = [members[b][~mask[i, members[b]]] for i, b in zip(of_slot, slots, strict=True)]
            if all(map(len, free)):
                mask[of_slot, [rng.choice(columns) for columns in free]] = True
    return mask


def random_weights(shape, dtype, rng):
    """Any bits: NaN payloads, infinities, subnormals and negative zeros among them."""
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    bits[rng.random(shape) < 0.1] = 0
    return bits.view(dtype).reshape(shape)


def bits_of(array):
    return np.ascontiguousarray(array).view(BITS[array.dtype.itemsize])


def expected_dense(weights, mask):
    return np.where(mask, bits_of(weights), bits_of(weights).dtype.type(0))


def order_for(pattern, rows, rng):
    return rng.permutation(rows) if pattern.scatter else None


def scales_for(dtype, rows):
    return np.linspace(0.5, 2, rows, dtype=np.float32) if dtype == np.int8 else None


def sample(pattern, shape, dtype=np.float32, seed=0):
    """Weights, a valid mask, and the matrix of both."""
    rng = np.random.default_rng(seed)
    pattern = gs.parse_pattern(pattern).resolve(shape)
    order = order_for(pattern, shape[0], rng)
    mask = valid_mask(pattern, shape, rng, row_order=order)
    weights = random_weights(shape, np.dtype(dtype), rng)
    scales = scales_for(weights.dtype, shape[0])
    return weights, mask, gs.encode(weights, pattern, mask, order, scales=scales)


def fits(pattern, shape):
    try:
        gs.parse_pattern(pattern).resolve(shape)
    except gs.PatternError:
        return False
    return True


def check_bundles(m, weights, mask):
    """Every bundle of a GSMatrix against the definitions, without the library's decoder."""
    p, (rows, cols) = m.pattern, m.shape
    bank = banks_of(p, cols)
    seen = np.zeros(mask.shape, bool)
    columns = m.columns().astype(int)
    for group, positions in enumerate(group_positions(p, rows)):
        of_group = positions if m.row_order is None else m.row_order[positions].astype(int)
        first_columns = []
        for unit in range(m.indptr[group], m.indptr[group + 1]):
            used = len(of_group) * p.per_row
            assert not bits_of(m.values[unit, used:]).any()
            assert not m.indices[unit, used:].any()
            assert not columns[unit, used:].any()
            in_banks = bank[columns[unit, :used]]
            assert len(set(in_banks)) == used
            assert (np.diff(in_banks.reshape(-1, p.per_row), axis=1) > 0).all()
            if p.per_row == p.banks:
                first = [np.flatnonzero(bank == b)[m.indices[unit, b]] for b in range(p.banks)]
                assert (columns[unit] == first).all()
            else:
                assert (columns[unit] == m.indices[unit]).all()
            of_slot = np.repeat(of_group, p.per_row)
            assert not seen[of_slot, columns[unit, :used]].any()
            seen[of_slot, columns[unit, :used]] = True
            first_columns.append(columns[unit, 0])
            stored = bits_of(m.values[unit, :used])
            assert (stored == bits_of(weights)[of_slot, columns[unit, :used]]).all()
        assert (np.diff(first_columns) > 0).all()
    assert (seen == mask).all()


# ------------------------------------------------------------------- encoding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", GS_PATTERNS + OTHER_PATTERNS)
def test_round_trip_is_bit_for_bit(pattern, dtype):
    for seed, shape in enumerate(SHAPES):
        if not fits(pattern, shape):
            continue
        weights, mask, m = sample(pattern, shape, dtype, seed)
        dense = m.to_dense()
        assert dense.dtype == m.dtype == dtype
        assert dense.shape == m.shape == shape
        assert (bits_of(dense) == expected_dense(weights, mask)).all()
        if not isinstance(m.pattern, gs.NM):
            assert (m.mask() == mask).all()
            assert m.nnz == mask.sum()


@pytest.mark.parametrize("pattern", GS_PATTERNS)
def test_bundles_obey_the_definition(pattern):
    for seed, shape in enumerate(SHAPES):
        if fits(pattern, shape):
            weights, mask, m = sample(pattern, shape, seed=seed)
            check_bundles(m, weights, mask)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_valid_mask_packs(data):
    banks = data.draw(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 12, 16, 30]), "banks")
    per_row = data.draw(st.sampled_from([k for k in range(1, banks + 1) if banks % k == 0]), "k")
    layout = data.draw(st.sampled_from(["interleaved", "contiguous"]), "layout")
    scatter = data.draw(st.booleans(), "scatter")
    rows = data.draw(st.integers(0, 40), "rows")
    cols = data.draw(st.integers(banks, 70), "cols")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    pattern = gs.GS(banks, per_row, scatter, layout)
    order = order_for(pattern, rows, rng)
    mask = valid_mask(pattern, (rows, cols), rng, most=12, row_order=order)
    weights = random_weights((rows, cols), np.dtype(np.float32), rng)
    check_bundles(gs.encode(weights, pattern, mask, order), weights, mask)


@pytest.mark.parametrize("pattern", ["gs(16,1)", "gs(16,4)", "gs(16,16)", "gs(7,1)", "gs(64,1)"])
def test_full_matrices_pack(pattern):
    p = gs.parse_pattern(pattern)
    weights = np.arange(64 * p.banks * 3, dtype=np.float32).reshape(64, -1) + 1
    rows = 64 - 64 % p.group_rows
    m = gs.encode(weights[:rows], p)
    assert m.nnz == weights[:rows].size
    check_bundles(m, weights[:rows], np.ones((rows, weights.shape[1]), bool))


@pytest.mark.parametrize(
    ("banks", "per_row", "bundles"), [(1024, 1, 24), (3072, 2, 7), (4093, 1, 5)]
)
def test_many_banks_pack(banks, per_row, bundles):
    """A circulant superposition: degree `bundles`, too large for anything quadratic to pass unseen."""
    rows, cols = banks // per_row, banks * 2
    mask = np.zeros((rows, cols), bool)
    rng = np.random.default_rng(3)
    for t in range(bundles):
        slots = (np.arange(banks) + t * per_row + t) % banks
        mask[np.repeat(np.arange(rows), per_row), slots + banks * rng.integers(0, 2, banks)] = True
    in_row = mask.sum(axis=1)
    in_bank = mask.reshape(rows, 2, banks).sum(axis=(0, 1))
    if not (in_row == bundles * per_row).all():  # two bundles took one element: only where k > 1
        pytest.fail("the test's mask is wrong")
    assert (in_bank == bundles).all()
    weights = rng.standard_normal((rows, cols)).astype(np.float32)
    check_bundles(gs.encode(weights, gs.GS(banks, per_row), mask), weights, mask)


def test_same_input_same_arrays_with_any_number_of_threads():
    for pattern in ["gs(16,1)", "gs(8,4)", "gs(16,16)", "irregular", "block(2,2)", "2:4", "3:16"]:
        before = gs.get_num_threads()
        made = []
        try:
            for threads in (1, 2, 5):
                gs.set_num_threads(threads)
                made.append(sample(pattern, (67, 64))[2])
        finally:
            gs.set_num_threads(before)
        for name, array in made[0].arrays().items():
            for other in made[1:]:
                assert array.tobytes() == other.arrays()[name].tobytes()
        assert made[2].to_dense().tobytes() == made[0].to_dense().tobytes()


@pytest.mark.parametrize(
    ("pattern", "cols", "dtype"),
    [
        ("gs(16,16)", 4096, np.uint8),
        ("gs(16,16)", 4097, np.uint16),
        ("gs(2,2,contiguous)", 512, np.uint8),
        ("gs(2,2,contiguous)", 513, np.uint16),
        ("gs(1,1)", 65536, np.uint16),
        ("gs(1,1)", 65537, np.uint32),
        ("gs(16,1)", 16, np.uint16),
        ("gs(16,1)", 65536, np.uint16),
        ("gs(16,1)", 65537, np.uint32),
        ("irregular", 65536, np.uint16),
        ("irregular", 65537, np.uint32),
        ("block(1,2)", 131072, np.uint16),
        ("block(1,2)", 131073, np.uint32),
        ("2:4", 65540, np.uint8),
    ],
)
def test_index_is_as_narrow_as_the_format_says(pattern, cols, dtype):
    rng = np.random.default_rng(0)
    pattern = gs.parse_pattern(pattern)
    shape = (pattern.group_rows, cols)
    mask = valid_mask(pattern, shape, rng, most=3)
    if isinstance(pattern, gs.Irregular):
        mask[:, -1] = True  # the largest column of all
    weights = rng.standard_normal(shape).astype(np.float32)
    m = gs.encode(weights, pattern, mask)
    assert m.indices.dtype == dtype
    assert (m.to_dense() == weights * mask).all()


@pytest.mark.parametrize(
    ("pattern", "bits"), [("1:2", 2), ("2:4", 2), ("3:5", 4), ("4:16", 4), ("4:17", 8)]
)
def test_positions_are_packed(pattern, bits):
    weights, mask, m = sample(pattern, (5, 37))
    n, width = m.pattern.n, m.pattern.m
    kept = []
    for i, first in itertools.product(range(5), range(0, 37, width)):
        window = np.flatnonzero(mask[i, first : first + width])
        free = np.setdiff1d(np.arange(min(width, 37 - first)), window)
        slots = min(n, width, 37 - first)
        for place in np.sort(np.concatenate([window, free[: slots - len(window)]])):
            kept.append((i, int(place), first + int(place)))
    stream = sum(place << (at * bits) for at, (_, place, _) in enumerate(kept))
    assert m.indices.tobytes() == stream.to_bytes(-(-len(kept) * bits // 8), "little")
    assert (m.columns() == [col for _, _, col in kept]).all()
    values = [expected_dense(weights, mask)[i, col] for i, _, col in kept]
    assert (bits_of(m.values) == values).all()
    assert (np.diff(m.indptr) == len(kept) // 5).all()


def test_zeros_of_the_mask_are_kept():
    weights = np.zeros((4, 8), np.float32)
    weights[0, :4] = -0.0
    mask = np.zeros((4, 8), bool)
    mask[:, :4] = True
    for pattern in ["gs(4,4)", "gs(4,1)", "irregular", "block(2,4)"]:
        m = gs.encode(weights, pattern, mask)
        assert m.nnz == 16
        assert (bits_of(m.to_dense()) == bits_of(weights)).all()


@pytest.mark.parametrize("pattern", [*GS_PATTERNS, "irregular", "block(3,5)"])
def test_without_a_mask_the_nonzeros_are_completed(pattern):
    rng = np.random.default_rng(1)
    for shape in [(33, 64), (17, 95), (5, 48)]:
        if not fits(pattern, shape):
            continue
        weights = rng.standard_normal(shape).astype(np.float32)
        weights[rng.random(shape) < 0.97] = 0
        m = Matrix.from_dense(weights, pattern)
        assert (m.to_dense() == weights).all()
        assert gs.check(m.mask(), m.pattern, m.row_order)
        if m.row_order is not None:
            counts = (weights != 0).sum(axis=1)
            assert (m.row_order == np.argsort(-counts, kind="stable")).all()


def test_bank_balanced_completes_to_the_fullest_bank():
    weights = np.zeros((3, 9), np.float32)
    weights[1, [3, 5]] = 1
    m = gs.encode(weights, "bank_balanced(3)")
    assert (m.bundles == 2).all()
    assert m.mask().sum(axis=1).tolist() == [6, 6, 6]
    assert m.mask()[0].nonzero()[0].tolist() == [0, 1, 3, 4, 6, 7]
    with pytest.raises(gs.PatternError, match=r"holds 3 nonzeros.*narrowest bank has 2 columns"):
        gs.encode(np.ones((2, 8), np.float32), "bank_balanced(3)")


def test_default_row_orders():
    rng = np.random.default_rng(2)
    p = gs.parse_pattern("gs(4,4)+scatter")
    mask = valid_mask(p, (20, 16), rng)
    m = gs.encode(np.ones((20, 16), np.float32), p, mask)
    assert (m.row_order == np.argsort(-mask.sum(axis=1), kind="stable")).all()
    vertical = gs.parse_pattern("gs(4,1)+scatter")
    mask = valid_mask(vertical, (20, 16), rng)
    m = gs.encode(np.ones((20, 16), np.float32), vertical, mask)
    assert (m.row_order == np.arange(20)).all()


def test_convolutions():
    rng = np.random.default_rng(3)
    for shape in [(8, 4, 3, 3), (8, 6, 5), (3, 4, 1, 2)]:
        weights = rng.standard_normal(shape).astype(np.float32)
        expected = np.stack([w.reshape(shape[1], -1).T.ravel() for w in weights])
        flat = gs.as_matrix(weights)
        assert (flat == expected).all()
        assert (gs.from_matrix(flat, shape) == weights).all()
        m = gs.encode(weights, "irregular", mask=weights > 0)
        assert m.kernel_shape == shape
        assert (gs.from_matrix(m.to_dense(), shape) == np.where(weights > 0, weights, 0)).all()
        for other in (
            pickle.loads(pickle.dumps(m)),
            copy.copy(m),
            m.astype("float64"),
            m.quantize(),
        ):
            assert other.kernel_shape == shape
    flat = rng.standard_normal((3, 4))
    assert (gs.as_matrix(flat) == flat).all()
    assert (gs.from_matrix(flat, (3, 4)) == flat).all()
    with pytest.raises(ValueError, match="2 dimensions, or 3 or 4"):
        gs.as_matrix(np.zeros(5))
    with pytest.raises(ValueError, match=r"matrix of \(8, 36\), got \(8, 35\)"):
        gs.from_matrix(np.zeros((8, 35)), (8, 4, 3, 3))


# ------------------------------------------------------------------- inputs


def test_inputs_in_any_layout():
    rng = np.random.default_rng(4)
    for dtype in DTYPES:
        weights, mask, m = sample("gs(4,2)", (10, 24), dtype)
        scales = scales_for(dtype, 10)
        room = np.zeros(weights.nbytes + 1, np.uint8)
        misaligned = room[1:].view(dtype).reshape(10, 24)
        misaligned[...] = weights
        readonly = weights.copy()
        readonly.flags.writeable = False
        wide = rng.integers(0, 9, (10, 48)).astype(dtype)
        wide[:, ::2] = weights
        forms = [np.asfortranarray(weights), readonly, misaligned, wide[:, ::2]]
        forms.append(np.ascontiguousarray(weights[::-1])[::-1])
        if dtype != BF16:
            forms.append(weights.astype(dtype.newbyteorder(">")))
        masks = [np.asfortranarray(mask), np.repeat(mask, 2, axis=1)[:, ::2], mask.tolist()]
        for form in forms:
            other = gs.encode(form, "gs(4,2)", mask, scales=scales)
            assert other.dtype == dtype
            assert other.values.tobytes() == m.values.tobytes()
        for form in masks:
            other = gs.encode(weights, "gs(4,2)", form, scales=scales)
            assert other.indices.tobytes() == m.indices.tobytes()


def test_wrong_inputs_say_what_is_right():
    w = np.ones((4, 8), np.float32)
    mask = np.ones((4, 8), bool)
    for weights in (w.astype(int), w.astype(complex), w > 0, w.astype(np.longdouble)):
        with pytest.raises(TypeError, match=r"float64, float32, float16, bfloat16 and int8, got "):
            gs.encode(weights, "irregular")
    with pytest.raises(TypeError, match="did you mean mask != 0"):
        gs.encode(w, "irregular", mask.astype(np.float32))
    with pytest.raises(ValueError, match=r"shape of the weights \(4, 8\), got \(8, 4\)"):
        gs.encode(w, "irregular", mask.T)
    with pytest.raises(ValueError, match="2 dimensions"):
        gs.encode(w[0], "irregular")
    with pytest.raises(gs.PatternError, match=r"gs\(4,1\) takes no row_order; did you mean"):
        gs.encode(w, "gs(4,1)", mask, np.arange(4))
    with pytest.raises(gs.PatternError, match=r"irregular takes no row_order$"):
        gs.encode(w, "irregular", mask, np.arange(4))
    for order in ([0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="permutation"):
            gs.encode(w, "gs(4,1)+scatter", mask, order)
    for order in ([0, 1, 2], [0.0, 1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="4 integers"):
            gs.encode(w, "gs(4,1)+scatter", mask, order)
    with pytest.raises(TypeError, match="need scales"):
        gs.encode(w.astype(np.int8), "irregular")
    with pytest.raises(TypeError, match="belong to int8"):
        gs.encode(w, "irregular", scales=np.ones(4))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        gs.encode(w.astype(np.int8), "irregular", scales=np.ones(5))
    with pytest.raises(ValueError, match="finite in float32, got inf for row 2"):
        gs.encode(w.astype(np.int8), "irregular", scales=[1, 1, np.inf, 1])
    with pytest.raises(gs.PatternError, match="at least 16 columns"):
        gs.encode(w, "gs(16,16)")
    with pytest.raises(TypeError, match="encode"):
        gs.GSMatrix()
    with pytest.raises(TypeError, match=r"got a Selection; pass its \.mask and"):
        gs.encode(w, "irregular", gs.choose_mask(w, "irregular", 0.5))
    with pytest.raises(
        gs.PatternError, match=r"^2:4: group 0 .*; prune with gspattern.choose_mask"
    ):
        gs.encode(w, "2:4")
    with pytest.raises(TypeError, match="weights are a CSRMatrix already"):
        gs.encode(gs.encode(w, "irregular"), "gs(4,1)")
    with pytest.raises(ValueError, match="weights must be a rectangle"):
        gs.encode([[1.0], [1.0, 2.0]], "irregular")
    chosen = gs.choose_mask(np.arange(32, dtype=np.float32).reshape(4, 8), "gs(2,1)+scatter", 0.7)
    with pytest.raises(gs.PatternError, match="give the row_order that the mask was chosen with"):
        gs.encode(w, "gs(2,1)+scatter", np.eye(4, 8, dtype=bool) & (np.arange(4) > 0)[:, None])
    assert gs.encode(w, "gs(2,1)+scatter", chosen.mask, chosen.row_order).nnz == chosen.mask.sum()
    for shape in (32, (4.0, 8.0)):
        with pytest.raises(ValueError, match="2, 3 or 4 whole numbers"):
            gs.from_matrix(w, shape)
    with pytest.raises(TypeError, match="dtype must be one of"):
        gs.encode(w, "irregular").astype(None)
    with pytest.raises(TypeError, match=r"write matrix @ x .* or matrix.linear"):
        np.ones(4, np.float32) @ gs.encode(w, "irregular")


def test_a_mask_may_have_the_shape_of_the_kernel_or_of_its_matrix():
    kernel = np.random.default_rng(1).standard_normal((6, 4, 3, 3)).astype(np.float32)
    chosen = gs.choose_mask(np.abs(gs.as_matrix(kernel)), "gs(4,2)", 0.7)
    matrices = [
        gs.encode(kernel, "gs(4,2)", mask)
        for mask in (chosen.mask, gs.from_matrix(chosen.mask, kernel.shape))
    ]
    for m in matrices:
        assert m.kernel_shape == kernel.shape
        assert (m.to_dense() == gs.as_matrix(kernel) * chosen.mask).all()


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("gs(4,4)", r"group 1, row 1 holds 7 where 8"),
        ("gs(4,1)", r"gs\(4,1\): group 0, (row 1|bank 3) holds 7"),
        ("bank_balanced(2)", r"group 1, row 1 holds 7 where 8"),
        ("block(2,4)", r"group 0, bank 1 holds 7 where 8"),
        ("3:4", r"group 0, bank 0 holds 4 where 3"),
    ],
)
def test_invalid_mask_points_to_its_first_fault(pattern, match):
    mask = np.ones((4, 8), bool)
    mask[1, 7] = False
    with pytest.raises(gs.PatternError, match=match) as caught:
        gs.encode(np.ones((4, 8), np.float32), pattern, mask)
    assert "gspattern.check" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_masks_are_encoded_if_and_only_if_they_are_valid(data):
    """By the theorem: rows hold n * k, banks at most n. One element more or less breaks it."""
    pattern = gs.parse_pattern(
        data.draw(st.sampled_from(["gs(2,1)", "gs(4,2)", "gs(3,3)", "gs(4,1)"]))
    )
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(4, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = valid_mask(pattern, (rows, cols), rng)
    for _ in range(data.draw(st.integers(0, 2))):
        mask[rng.integers(rows), rng.integers(cols)] ^= True
    valid = True
    for positions in group_positions(pattern, rows):
        in_row = mask[positions].sum(axis=1)
        in_bank = np.bincount(banks_of(pattern, cols), mask[positions].sum(axis=0), pattern.banks)
        n = in_row[0] // pattern.per_row
        valid &= (in_row == n * pattern.per_row).all() and (in_bank <= n).all()
    weights = np.ones((rows, cols), np.float32)
    if valid:
        assert (gs.encode(weights, pattern, mask).to_dense() == mask).all()
    else:
        with pytest.raises(gs.PatternError, match="not valid for"):
            gs.encode(weights, pattern, mask)


# ------------------------------------------------------------------- matrices


@pytest.mark.parametrize("pattern", GS_PATTERNS + OTHER_PATTERNS)
def test_sizes_and_copies(pattern):
    for dtype in (np.float32, np.int8):
        weights, _, m = sample(pattern, (33, 64), dtype)
        assert m.nbytes == sum(array.nbytes for array in m.arrays().values())
        assert m.sparsity == pytest.approx(1 - m.nnz / weights.size)
        assert m.columns().shape == (m.indices.shape if m.values.ndim == 2 else m.values.shape)
        for array in m.arrays().values():
            assert array.ctypes.data % 64 == 0
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        m._plans["n"] = object()
        copies = [pickle.loads(pickle.dumps(m)), copy.copy(m), copy.deepcopy(m)]
        copies.append(Matrix.from_arrays(m.pattern, m.shape, **m.arrays()))
        for other in copies:
            assert type(other) is type(m)
            assert (other.pattern, other.shape, other.dtype) == (m.pattern, m.shape, m.dtype)
            assert not other._plans
            for name, array in m.arrays().items():
                assert other.arrays()[name].dtype == array.dtype
                assert other.arrays()[name].tobytes() == array.tobytes()
                assert not other.arrays()[name].flags.writeable


def test_repr_tells_a_person():
    m = gs.encode(
        np.ones((64, 64), np.float32),
        "gs(16,16)",
        np.eye(4, dtype=bool).repeat(16, 0).repeat(16, 1),
    )
    assert repr(m) == (
        "<GSMatrix 64x64 gs(16,16) float32: 1,024 nonzeros, 75.0 % sparse, 5.38 KB = 32.8 % of dense>"
    )
    assert m.nbytes == 64 * 16 * 5 + 65 * 4
    assert "uint8 [64, 16]" in m._repr_html_()
    assert repr(gs.encode(np.ones((0, 4), np.float32), "gs(2,1)")) == (
        "<GSMatrix 0x4 gs(2,1) float32: 0 nonzeros>"
    )


@pytest.mark.parametrize(
    "pattern", ["gs(4,2)", "gs(8,8,contiguous)+scatter", "block(3,5)", "2:4", "irregular"]
)
def test_scipy_and_back(pattern):
    rng = np.random.default_rng(5)
    p = gs.parse_pattern(pattern)
    order = order_for(p, 22, rng)
    mask = valid_mask(p, (22, 33), rng, row_order=order)
    weights = rng.standard_normal((22, 33)).astype(np.float32)
    weights[mask & (rng.random(mask.shape) < 0.2)] = 0
    m = gs.encode(weights, p, mask, order)
    csr = m.to_csr()
    assert csr.has_canonical_format
    assert csr.nnz == m.nnz
    assert csr.indices.dtype == csr.indptr.dtype == np.int32  # as SciPy has them
    assert (csr.toarray() == weights * mask).all()
    if isinstance(p, gs.Irregular):
        back = Matrix.from_csr(csr, p)
        assert back.nnz == m.nnz  # the zeros that are stored, too
        assert (back.mask() == mask).all()
    half = gs.encode(weights.astype(BF16), p, mask, order).to_csr()
    assert half.dtype == np.float32
    assert (half.toarray() == (weights.astype(BF16).astype(np.float32) * mask)).all()


def test_from_csr_adds_up_what_is_stored_twice():
    a = scipy.sparse.coo_matrix(([1.0, 2.0, 5.0], ([0, 0, 1], [3, 3, 0])), shape=(2, 4))
    for form in (a, a.tocsc(), scipy.sparse.coo_array(a)):
        m = Matrix.from_csr(form, "gs(2,1)")
        assert (m.to_dense() == [[0, 0, 0, 3], [5, 0, 0, 0]]).all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 8), (4, 8)])
@pytest.mark.parametrize(
    "pattern", ["gs(4,1)", "gs(4,2)+scatter", "block(2,3)", "2:4", "irregular"]
)
def test_scipy_of_matrices_with_nothing_in_them(pattern, shape):
    for weights in (np.zeros(shape, np.float32), np.zeros(shape, np.int8)):
        scales = np.ones(shape[0]) if weights.dtype == np.int8 else None
        csr = gs.encode(weights, pattern, scales=scales).to_csr()
        assert csr.shape == shape
        assert csr.dtype == weights.dtype
        assert not csr.toarray().any()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8"])
def test_numpy_takes_matrices_for_arrays(dtype):
    weights = np.array([[0, 1.5, 0, -2], [3, 0, 0, 0.25]])
    matrix = gs.encode(weights, "irregular").astype("float32")
    matrix = matrix.quantize("int8") if dtype == "int8" else matrix.astype(dtype)
    # By hand: each row in 127ths of its largest.
    codes = np.array([[0, 95, 0, -127], [127, 0, 0, 11]])
    expected = codes if dtype == "int8" else weights
    for array in (np.asarray(matrix), np.array(matrix), np.array(matrix, copy=True)):
        assert (array.dtype, array.shape) == (matrix.dtype, (2, 4))
        assert np.array_equal(array.astype(np.float64), expected)
        assert array.flags.writeable
    assert np.array_equal(np.asarray(matrix, matrix.dtype), np.asarray(matrix))
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(matrix, copy=False)
    if dtype == "int8":
        with pytest.raises(TypeError, match="has scales"):
            np.asarray(matrix, np.float32)
    else:
        array = np.asarray(matrix, np.float64)
        assert array.dtype == np.float64
        assert np.array_equal(array, weights)
    for use in (lambda: gs.check(matrix, "irregular"), lambda: matrix.linear(matrix)):
        with pytest.raises(TypeError, match="must be an array of numbers, got CSRMatrix"):
            use()
    for function in (np.multiply, np.add, np.matmul):  # arithmetic does not make it dense unasked
        with pytest.raises(TypeError):
            function(np.ones((4, 2)), matrix)


def test_from_dense_and_from_csr_make_what_their_class_stores():
    dense = np.eye(4, dtype=np.float32)
    csr = scipy.sparse.csr_array(dense)
    assert (gs.CSRMatrix.from_csr(csr).to_dense() == dense).all()
    for make, form in ((gs.GSMatrix.from_csr, csr), (gs.GSMatrix.from_dense, dense)):
        assert isinstance(make(form, "gs(2,1)"), gs.GSMatrix)
        with pytest.raises(
            TypeError, match="irregular is stored as a CSRMatrix, not as a GSMatrix"
        ):
            make(form, "irregular")
    with pytest.raises(TypeError, match="sparse matrix of SciPy, got ndarray; from_dense"):
        Matrix.from_csr(dense, "irregular")


def test_scipy_is_needed_for_csr_alone():
    program = (
        "import sys; sys.modules['scipy'] = None; import numpy, gspattern as gs\n"
        "m = gs.encode(numpy.eye(4), 'irregular')\n"
        "try: m.to_csr()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install scipy" in done.stdout


# ------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    "pattern", ["gs(4,2)", "gs(4,4)+scatter", "gs(4,1)", "irregular", "block(3,5)", "2:4"]
)
def test_astype_rounds_as_numpy_does(pattern):
    rng = np.random.default_rng(6)
    p = gs.parse_pattern(pattern)
    order = order_for(p, 10, rng)
    mask = valid_mask(p, (10, 12), rng, row_order=order)
    weights = rng.standard_normal((10, 12))
    m = gs.encode(weights, p, mask, order)
    for dtype in (np.float64, np.float32, "float16", "bfloat16", ml_dtypes.bfloat16):
        other = m.astype(dtype)
        expected = np.where(mask, weights, 0).astype(np.dtype(dtype))
        assert other.dtype == np.dtype(dtype)
        assert (bits_of(other.to_dense()) == bits_of(expected)).all()
        assert other.indices.tobytes() == m.indices.tobytes()
        assert not other._plans
        assert not other.values.flags.writeable
    assert m.astype(np.float64) is m
    with pytest.raises(TypeError, match="quantize"):
        m.astype("int8")
    for dtype in ("int32", "nonsense", ">f4"):
        with pytest.raises(TypeError, match="must be one of float64"):
            m.astype(dtype)


@pytest.mark.parametrize(
    "pattern", ["gs(4,2)", "gs(4,4)+scatter", "irregular", "block(3,5)", "2:4"]
)
def test_quantize_moves_nothing_by_more_than_half_a_scale(pattern):
    rng = np.random.default_rng(7)
    p = gs.parse_pattern(pattern)
    order = order_for(p, 10, rng)
    mask = valid_mask(p, (10, 12), rng, row_order=order)
    weights = (rng.standard_normal((10, 12)) * np.exp(rng.standard_normal((10, 1)))).astype(
        np.float32
    )
    weights[3] = 0
    m = gs.encode(weights, p, mask, order)
    q = m.quantize("int8")
    kept = np.where(mask, weights, 0)
    largest = np.abs(kept).max(axis=1)
    assert (
        q.scales == np.where(largest > 0, (largest.astype(float) / 127).astype(np.float32), 1)
    ).all()
    back = q.to_dense() * q.scales[:, None].astype(float)
    assert (np.abs(back - kept) <= q.scales[:, None] * 0.5001).all()
    assert (np.abs(q.to_dense().astype(int)).max(axis=1) == np.where(largest > 0, 127, 0)).all()
    assert q.nnz == m.nnz
    assert (q.astype("float32").to_dense() == back.astype(np.float32)).all()
    assert (q.astype("float32").mask() == m.mask()).all()
    assert q.quantize() is q
    with pytest.raises(TypeError, match="int8 only"):
        m.quantize("float16")
    with pytest.raises(ValueError, match=r"got nan in row 1, column 2"):
        gs.encode(np.array([[1.0, 0, 0], [0, 0, np.nan]]), "irregular").quantize()


@pytest.mark.parametrize("pattern", ["gs(4,2)+scatter", "gs(4,1,contiguous)", "block(3,5)", "2:4"])
def test_quantized_matrices_keep_their_arrays_and_the_zeros_outside(pattern):
    weights, mask, m = sample(pattern, (10, 13))
    m = gs.encode(-np.abs(weights), pattern, mask, m.row_order)
    q = m.quantize()
    assert q.indices.tobytes() == m.indices.tobytes()
    turned = Matrix.from_arrays(q.pattern, q.shape, **{**q.arrays(), "scales": -q.scales})
    for made in (q, turned.astype("float32"), turned.astype("bfloat16")):
        again = Matrix.from_arrays(made.pattern, made.shape, **made.arrays())
        assert again.indices.tobytes() == m.indices.tobytes()
    with pytest.raises(ValueError, match="finite in float32, got inf for row 0"):
        gs.encode(np.full((2, 4), 1e300), "irregular").quantize()


# ------------------------------------------------------------------- sizes


def test_sizes_are_the_true_bytes():
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((64, 128)).astype(np.float32)
    chosen = gs.choose_mask(np.abs(weights), "gs(16,16)", 0.75)
    m = gs.encode(weights, "gs(16,16)", chosen.mask)
    table = gs.sizes(m, ["block(1,16)", "gs(16,16)", "gs(16,1)", "gs(256,256)"])
    assert list(table.bytes) == [
        "dense",
        "scipy csr",
        "csr",
        "gs(16,16)",
        "block(1,16)",
        "gs(16,1)",
    ]
    csr = scipy.sparse.csr_array(m.to_dense())
    assert table["dense"] == weights.nbytes
    assert table["scipy csr"] == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    assert table["csr"] == m.nnz * 6 + 4 * 65
    assert table["gs(16,16)"] == m.nbytes == m.nnz * 5 + 4 * 65
    assert table["block(1,16)"] == m.nnz * 4 + m.nnz // 16 * 2 + 4 * 65
    assert table["gs(16,1)"] == m.nnz * 6 + 4 * 5
    assert set(table.nonzeros.values()) == {weights.size, m.nnz}
    lines = str(table).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["64x128", "float32", "nonzeros", "bytes", "of", "dense"]
    assert lines[4].split() == [
        "gs(16,16)",
        "2,048",
        f"{m.nbytes:,}",
        f"{100 * m.nbytes / weights.nbytes:.1f}",
        "%",
    ]
    assert gs.sizes(m.to_dense(), [])["csr"] == table["csr"]
    assert gs.sizes(m.quantize(), [])["dense"] == weights.size + 4 * 64


# ------------------------------------------------------------------- arrays from elsewhere

# Two full groups and a short one, of gs(4,2): rows 0 and 1, 2 and 3, and 4; 9 columns.
SMALL = {
    "values": np.array(
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 0, 0]],
        np.float32,
    ),
    "indices": np.array([[0, 1, 2, 3], [2, 7, 4, 1], [4, 2, 1, 3], [8, 3, 0, 0]], np.uint16),
    "indptr": np.array([0, 2, 3, 4], np.uint32),
}


def refused(rule, pattern="gs(4,2)", shape=(5, 9), match=None, **changes):
    arrays = {name: array.copy() for name, array in SMALL.items()} | changes
    with pytest.raises(gs.FormatError, match=match) as caught:
        Matrix.from_arrays(pattern, shape, **arrays)
    assert caught.value.rule == rule


def changed(name, place, value):
    array = SMALL[name].copy()
    array[place] = value
    return {name: array}


def test_arrays_from_elsewhere_make_a_matrix():
    m = Matrix.from_arrays("gs(4,2)", (5, 9), **SMALL)
    dense = np.zeros((5, 9), np.float32)
    for (unit, slot), col in np.ndenumerate(SMALL["indices"]):
        if (unit, slot) not in [(3, 2), (3, 3)]:
            dense[[0, 0, 2, 4][unit] + slot // 2, col] = SMALL["values"][unit, slot]
    assert (m.to_dense() == dense).all()
    assert m.nnz == 14
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in SMALL.items()}
    assert Matrix.from_arrays("gs(4,2)", (5, 9), **swapped).values.tobytes() == m.values.tobytes()
    strided = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in SMALL.items()}
    assert Matrix.from_arrays("gs(4,2)", (5, 9), **strided).indices.tobytes() == m.indices.tobytes()
    assert isinstance(m, gs.GSMatrix)
    assert gs.GSMatrix.from_arrays("gs(4,2)", (5, 9), **SMALL).nnz == 14
    with pytest.raises(TypeError, match="stored as a GSMatrix"):
        gs.CSRMatrix.from_arrays("gs(4,2)", (5, 9), **SMALL)


def test_arrays_are_copied():
    arrays = {name: array.copy() for name, array in SMALL.items()}
    m = Matrix.from_arrays("gs(4,2)", (5, 9), **arrays)
    for array in arrays.values():
        array[...] = 99
    assert m.values.tobytes() == SMALL["values"].tobytes()
    assert m.indices.tobytes() == SMALL["indices"].tobytes()
    assert m.indptr.tobytes() == SMALL["indptr"].tobytes()


def test_rule_shape():
    refused("shape", shape=(7, 9), match=r"indptr must have shape \[5\]")
    refused("shape", shape=(5, -9), match="below 2")
    refused("shape", shape=(5, 2**32 - 1))
    refused("shape", shape=(5, 9, 1))
    refused("shape", shape=(5, 9.0))
    refused("shape", values=SMALL["values"][:3], match=r"indices must have shape \[3, 4\]")
    refused("shape", values=SMALL["values"][:, :3])
    refused("shape", values=SMALL["values"].ravel())
    refused("shape", values=np.array(1, np.float32))
    refused("shape", indices=SMALL["indices"].ravel())
    refused("shape", indptr=SMALL["indptr"][:-1])
    refused("shape", row_order=np.arange(4, dtype=np.uint32), pattern="gs(4,2)+scatter")
    refused("shape", scales=np.ones(4, np.float32), values=SMALL["values"].astype(np.int8))
    refused("shape", kernel_shape=(5, 2, 4))
    refused("shape", kernel_shape=(5, 9))
    refused("shape", kernel_shape=(5, -9, -1))


def test_rule_dtype():
    refused("dtype", values=SMALL["values"].astype(np.int16))
    refused("dtype", indices=SMALL["indices"].astype(np.int16))
    refused("dtype", indices=SMALL["indices"].astype(np.uint32), match="4 bytes, but must have 2")
    refused("dtype", indices=SMALL["indices"].astype(np.uint8), match="1 bytes, but must have 2")
    refused("dtype", indptr=SMALL["indptr"].astype(np.int64))
    refused("dtype", row_order=np.arange(5), pattern="gs(4,2)+scatter")
    refused("dtype", scales=np.ones(5), values=SMALL["values"].astype(np.int8))
    with pytest.raises(TypeError, match="values must be a NumPy array, got list"):
        Matrix.from_arrays("gs(4,2)", (5, 9), **(SMALL | {"values": SMALL["values"].tolist()}))


def test_rule_tensors():
    refused("tensors", row_order=np.arange(5, dtype=np.uint32))
    refused("tensors", pattern="gs(4,2)+scatter")
    refused("tensors", scales=np.ones(5, np.float32))
    refused("tensors", values=SMALL["values"].astype(np.int8))


def test_rule_pattern():
    with pytest.raises(gs.PatternError, match="columns"):
        Matrix.from_arrays("gs(4,2)", (5, 3), **SMALL)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [2**32 - 1, 1, 2, 3, 4]])
def test_rule_row_order(order):
    refused("row_order", row_order=np.array(order, np.uint32), pattern="gs(4,2)+scatter")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_rule_scales(scale):
    scales = np.array([1, 1, 1, scale, 1], np.float32)
    refused(
        "scales", scales=scales, values=SMALL["values"].astype(np.int8), match=r"scales\[3\] is"
    )


def test_rule_indptr():
    for place, value in [(0, 1), (1, 4), (1, 2**32 - 1), (2, 1), (3, 3), (3, 5), (3, 2**32 - 1)]:
        refused("indptr", **changed("indptr", place, value), match=r"indptr\[\d\] is")
    refused(
        "indptr",
        pattern="bank_balanced(2)",
        shape=(2, 8),
        values=np.ones((3, 2), np.float32),
        indices=np.array([[0, 0], [1, 1], [2, 2]], np.uint8),
        indptr=np.array([0, 1, 3], np.uint32),
        match="row 0 holds 1 and row 1 holds 2",
    )


def test_rule_index():
    refused("index", **changed("indices", (1, 1), 9), match=r"indices\[1, 1\] is 9.*less than 9")
    refused("index", **changed("indices", (1, 1), 65535))


def test_rule_banks():
    refused("banks", **changed("indices", (0, 3), 4), match=r"indices\[0, 3\] is 4.*in bank 0")
    refused("banks", **changed("indices", (0, 1), 8))


def test_rule_order():
    refused("order", **changed("indices", 0, [1, 0, 2, 3]), match=r"indices\[0, 1\] is 0")
    refused("order", **changed("indices", 0, [0, 1, 3, 2]))


def test_rule_duplicate():
    indices = SMALL["indices"].copy()
    indices[1] = [0, 7, 5, 6]  # row 0 holds column 0 in both bundles of its group
    refused("duplicate", indices=indices, match=r"indices\[1, 0\] is 0")


def test_rule_padding():
    refused("padding", **changed("indices", (3, 3), 9), match=r"indices\[3, 3\] is 9")
    refused("padding", **changed("values", (3, 2), 1), match=r"values\[3, 2\] is 1")
    refused("padding", **changed("values", (3, 3), -0.0), match=r"values\[3, 3\] is -0")


def refused_other(rule, pattern, shape, values, indices, indptr, match=None):
    arrays = {"values": values, "indices": indices, "indptr": np.array(indptr, np.uint32)}
    with pytest.raises(gs.FormatError, match=match) as caught:
        Matrix.from_arrays(pattern, shape, **arrays)
    assert caught.value.rule == rule


def test_rules_of_short_indices():
    ones = np.ones((2, 3), np.float32)
    for pattern, widths in [("gs(3,3)", (3, 3, 2)), ("gs(3,3,contiguous)", (2, 3, 3))]:
        good = np.array([[0, 0, 0], [1, 1, 1]], np.uint8)
        assert Matrix.from_arrays(pattern, (1, 8), ones, good, np.array([0, 2], np.uint32)).nnz == 6
        for bank, width in enumerate(widths):
            bad = good.copy()
            bad[1, bank] = width - 1
            Matrix.from_arrays(pattern, (1, 8), ones, bad, np.array([0, 2], np.uint32))
            bad[1, bank] = width
            refused_other("index", pattern, (1, 8), ones, bad, [0, 2], rf"\[1, {bank}\] is {width}")
            bad[1, bank] = 0
            refused_other("duplicate", pattern, (1, 8), ones, bad, [0, 2])


def test_rules_of_irregular_and_block():
    ones = np.ones(3, np.float32)
    blocks = np.ones((3, 2, 2), np.float32)
    blocks[:, :, 1] = [[1, 1], [1, 1], [0, 0]]  # the third is at the right edge of 5 columns
    for pattern, shape, values, last in [
        ("irregular", (1, 3), ones, 3),
        ("block(2,2)", (2, 5), blocks, 3),
    ]:
        good = np.array([0, 1, 2], np.uint16)
        assert Matrix.from_arrays(
            pattern, shape, values, good, np.array([0, 3], np.uint32)
        ).nnz in (3, 10)
        for rule, bad in [("index", [0, 1, last]), ("order", [0, 2, 1]), ("duplicate", [0, 1, 1])]:
            refused_other(rule, pattern, shape, values, np.array(bad, np.uint16), [0, 3])
        refused_other("dtype", pattern, shape, values, good.astype(np.uint8), [0, 3])
        refused_other("indptr", pattern, shape, values, good, [0, 2])
    edge = blocks.copy()
    edge[2, 1, 1] = 7
    refused_other("padding", "block(2,2)", (2, 5), edge, good, [0, 3], r"values\[2, 1, 1\] is 7")
    low = np.ones((1, 2, 2), np.float32)
    refused_other("padding", "block(2,2)", (1, 4), low, good[:1], [0, 1], r"values\[0, 1, 0\] is 1")


def test_rules_of_nm():
    ones = np.ones(3, np.float32)  # 2:4 in 5 columns: two slots, then one

    def packed(*positions):
        return np.array([sum(p << (2 * i) for i, p in enumerate(positions))], np.uint8)

    m = Matrix.from_arrays("2:4", (1, 5), ones, packed(1, 3, 0), np.array([0, 3], np.uint32))
    assert m.columns().tolist() == [1, 3, 4]
    refused_other("index", "2:4", (1, 5), ones, packed(1, 3, 1), [0, 3], r"indices\[2\] is 1")
    refused_other("order", "2:4", (1, 5), ones, packed(3, 1, 0), [0, 3])
    refused_other("duplicate", "2:4", (1, 5), ones, packed(3, 3, 0), [0, 3])
    refused_other("padding", "2:4", (1, 5), ones, packed(1, 3, 0, 1), [0, 3])
    refused_other("shape", "2:4", (1, 5), ones, np.zeros(2, np.uint8), [0, 3])
    refused_other("dtype", "2:4", (1, 5), ones, packed(1, 3, 0).astype(np.uint16), [0, 3])
    refused_other("indptr", "2:4", (2, 5), np.ones(6, np.float32), np.zeros(2, np.uint8), [0, 2, 6])
    refused_other("indptr", "2:4", (1, 5), np.ones(4, np.float32), packed(0, 1, 0), [0, 4])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_an_array_is_refused_or_valid(data):
    """Whatever is accepted obeys the definitions: it encodes again to an equal matrix of weights."""
    pattern = data.draw(
        st.sampled_from(["gs(4,2)", "gs(4,1)+scatter", "gs(3,3)", "block(2,3)", "irregular", "3:5"])
    )
    _, _, m = sample(pattern, (7, 13), seed=data.draw(st.integers(0, 50)))
    arrays = {name: array.copy() for name, array in m.arrays().items()}
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name].reshape(-1)
    if array.size == 0:
        return
    at = data.draw(st.integers(0, array.size - 1))
    if name == "values":
        bits_of(array)[at] ^= data.draw(st.integers(1, 2**32 - 1))
    else:
        array[at] = data.draw(st.integers(0, np.iinfo(array.dtype).max) | st.integers(0, 13))
    try:
        other = Matrix.from_arrays(m.pattern, m.shape, **arrays)
    except gs.FormatError:
        return
    again = gs.encode(other.to_dense(), other.pattern, other.mask(), other.row_order)
    assert again.nnz == other.nnz == other.mask().sum()
    assert again.to_dense().tobytes() == other.to_dense().tobytes()


def test_validation_does_not_take_memory_for_absurd_shapes():
    """A few bytes must not ask for gigabytes: 2^32 - 2 columns need half a gigabyte of bits at most."""
    empty = np.zeros((0, 16), np.float32)
    m = Matrix.from_arrays(
        "gs(16,1)", (0, 2**32 - 2), empty, empty.astype(np.uint32), np.zeros(1, np.uint32)
    )
    assert m.nnz == 0
    wide = Matrix.from_arrays(
        "irregular",
        (1, 2**32 - 2),
        np.ones(1, np.float32),
        np.array([2**32 - 3], np.uint32),
        np.array([0, 1], np.uint32),
    )
    assert wide.columns().tolist() == [2**32 - 3]
