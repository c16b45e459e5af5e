"""Plans and products, on every backend of this CPU, against float64 NumPy on weights that no code of gspattern packed.

The bound of every comparison is that of a sum in any order: c * (terms + 2) * eps * sum |w| |x|.
"""

import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.special
import torch

import gspattern as gs
from gspattern import GS, NM, Block, Irregular, _core, plans
from gspattern._core import plan as make_plan
from sample_matrices import DTYPES, Sample, exact_int8, sample_matrix

PATTERNS = [
    GS(16, 16),
    GS(16, 16, layout="contiguous"),
    GS(16, 16, scatter=True),
    GS(7, 7, layout="contiguous", scatter=True),
    GS(16, 1),
    GS(16, 1, scatter=True),
    GS(16, 4),
    GS(8, 2, layout="contiguous", scatter=True),
    GS(1, 1),
    Irregular(),
    Block(1, 16),
    Block(16, 1),
    Block(1, 4),
    Block(4, 3),
    Block(40, 1),
    Block(2, 33),
    NM(2, 4),
    NM(1, 7),
    NM(3, 17),
]
SIZES = [1, 15, 16, 17, 31, 33, 63, 65, 127]
BACKENDS = gs.backends()
BEST_OF_FLOATS = next(name for name in BACKENDS if name != "amx")  # which has others only
rng = np.random.default_rng(7)


def type_of(sample):
    return np.float64 if sample.dtype == np.float64 else np.float32


def product_and_bound(sample, x):
    """W x in float64, and how far a sum in the kernel's precision may be from it. x [K, ...]."""
    return exact_int8(sample, x) if sample.dtype == np.int8 else wide_product_and_bound(sample, x)


def wide_product_and_bound(sample, x):
    """The same where x is multiplied as it is."""
    exact = sample.dense @ x.astype(np.float64)
    # Weights and scales are exact in the kernel's type: only products and sums round.
    eps = np.finfo(type_of(sample)).eps
    return exact, 2 * (sample.nnz_row + 2) * eps * (
        np.abs(sample.dense) @ np.abs(x.astype(np.float64))
    )


def assert_product(y, sample, x):
    exact, bound = product_and_bound(sample, x)
    assert y.shape == exact.shape
    assert y.dtype == type_of(sample)
    worst = np.abs(y - exact) - bound
    assert (worst <= 0).all(), f"off by {worst.max(initial=0)} beyond the bound"


def vector(sample, *more):
    return rng.normal(size=(sample.shape[1], *more)).astype(type_of(sample))


# ------------------------------------------------------------------ products


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_vector_and_columns_at_lane_edges(pattern, backend):
    """Rows and columns around every register's edge, each with one and with several columns of x."""
    least = pattern.banks if isinstance(pattern, GS) else 1
    with gs.use_backend(backend):
        for i, rows in enumerate(SIZES):
            cols = max(least, SIZES[(3 * i + 1) % len(SIZES)])
            sample = sample_matrix(pattern, (rows, cols), seed=i)
            x = vector(sample)
            assert_product(plans.multiply(sample, x), sample, x)
            columns = vector(sample, 1 + i % 5)
            assert_product(plans.multiply(sample, columns), sample, columns)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dtypes(pattern, dtype, backend):
    sample = sample_matrix(pattern, (37, 101), dtype=dtype)
    with gs.use_backend(backend):
        for x in (vector(sample), vector(sample, 3)):
            assert_product(plans.multiply(sample, x), sample, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values_of_halves(backend):
    """All 65,536 bit patterns of both halves become the float32 that NumPy and ml_dtypes say."""
    for dtype in ("float16", "bfloat16"):
        bits = np.arange(65536, dtype=np.uint16)
        values = bits.view(DTYPES[dtype])
        core = (("irregular",), (65536, 1), list(DTYPES).index(dtype), bits, np.zeros(65536, np.uint16),
                np.arange(65537, dtype=np.uint32), None, None)  # fmt: skip
        y = make_plan(core, backend, 1).multiply(np.ones(1, np.float32))
        np.testing.assert_array_equal(y, values.astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 17, 33])
def test_numbers_of_columns(n, backend):
    for pattern in (GS(16, 16), GS(16, 1, scatter=True), Irregular(), Block(1, 16)):
        sample = sample_matrix(pattern, (50, 67))
        x = vector(sample, n)
        with gs.use_backend(backend):
            for given in (x, np.asfortranarray(x)):
                assert_product(plans.multiply(sample, given), sample, x)
            y = plans.linear(sample, np.ascontiguousarray(x.T))
            assert_product(y.T, sample, x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_few_samples_in_any_layout(pattern, backend):
    """Kernels take up to five samples at once: every number of them, x by sample and by column, aligned and not."""
    least = pattern.banks if isinstance(pattern, GS) else 1
    with gs.use_backend(backend):
        for rows, cols in ((17, 16), (65, 33), (70, 127)):
            sample = sample_matrix(pattern, (rows, max(least, cols)), seed=cols)
            room = rng.normal(size=12 * sample.shape[1] + 32).astype(type_of(sample))
            for n in range(1, 13):
                for offset in (0, 1, 16):
                    x = room[offset : offset + n * sample.shape[1]].reshape(n, -1)
                    assert_product(plans.linear(sample, x).T, sample, x.T)
                assert_product(plans.multiply(sample, x.reshape(-1, n)), sample, x.reshape(-1, n))
            assert plans.plan_for(sample).strided


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_columns_than_a_copy_holds(backend):
    """x of 40,000 columns is read where it is; several columns of it go to the kernel for many."""
    for pattern in (GS(16, 16), Irregular()):
        sample = sample_matrix(pattern, (20, 40000), density=0.002)
        x = vector(sample, 3)
        with gs.use_backend(backend):
            assert_product(plans.multiply(sample, x), sample, x)
            assert_product(plans.linear(sample, np.ascontiguousarray(x.T)).T, sample, x)
            plan = plans.plan_for(sample)
            assert plan.strided == (backend == "scalar")
            if not plan.strided:
                assert plans.plan_for(sample, 3).columns
                assert_product(plan.multiply(np.ascontiguousarray(x[:, 0])), sample, x[:, 0])
                with pytest.raises(ValueError, match="sizes do not agree"):
                    plan.multiply(np.ascontiguousarray(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_sizes(backend):
    empty = np.zeros(0, np.uint16)
    for rows, cols in ((0, 5), (5, 0), (0, 0), (3, 4)):
        core = (("irregular",), (rows, cols), 1, np.zeros(0, np.float32), empty,
                np.zeros(rows + 1, np.uint32), None, None)  # fmt: skip
        plan = make_plan(core, backend, 1)
        np.testing.assert_array_equal(plan.multiply(np.ones(cols, np.float32)), np.zeros(rows))
        assert plan.efficiency == 1
        bias = np.arange(rows, dtype=np.float32)
        y = plan.linear(np.ones((2, 0, 3, cols), np.float32), bias, 0, None, None)
        assert y.shape == (2, 0, 3, rows)
        y = plan.linear(np.ones((2, cols), np.float32), bias, 0, None, None)
        np.testing.assert_array_equal(y, np.tile(bias, (2, 1)))
        plan = make_plan(core, backend, 3)
        np.testing.assert_array_equal(
            plan.multiply(np.ones((cols, 3), np.float32)), np.zeros((rows, 3))
        )


def irregular_of(dense):
    """The matrix of the nonzeros of a dense one."""
    rows, cols = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=1))]).astype(np.uint32)
    indices = cols.astype(np.uint16 if dense.shape[1] <= 1 << 16 else np.uint32)
    return Sample(
        Irregular(), dense.shape, dense.dtype, dense[rows, cols], indices, indptr,
        None, None, dense.astype(np.float64),
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_unlike_rows(backend):
    """Empty rows, one full row and everything between in one strip: rows come back where they belong."""
    dense = (rng.random((200, 300)) < np.linspace(0, 1, 200)[:, None]) * rng.normal(size=(200, 300))
    sample = irregular_of(rng.permutation(dense).astype(np.float32))
    x = vector(sample)
    with gs.use_backend(backend):
        assert_product(plans.multiply(sample, x), sample, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_over_many_columns(backend):
    """Elements in a few places far apart, where columns of a plan are looked at 65,536 at a time: at the ends of these,
    and beyond."""
    dense = np.zeros((20, 300_000), np.float32)
    for middle in (0, 4096, 65_536, 65_700, 131_072, 196_000, 299_950):
        here = dense[:, max(0, middle - 60) : middle + 61]
        here[:] = (rng.random(here.shape) < 0.4) * rng.normal(size=here.shape)
    sample = irregular_of(dense)
    x = vector(sample)
    with gs.use_backend(backend):
        assert_product(plans.multiply(sample, x), sample, x)
        assert backend == "scalar" or "tables" in plans.plan_for(sample).kernel
        slots = plans.plan_for(sample).slots
    # The same without what lies between: windows find as much there.
    used = irregular_of(dense[:, (dense != 0).any(axis=0)])
    with gs.use_backend(backend):
        assert slots <= 1.2 * plans.plan_for(used).slots


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_and_sparse(backend):
    """A matrix too sparse for register tables, and columns beyond 16 bits."""
    sample = sample_matrix(Irregular(), (40, 70000), density=0.0004)
    assert sample.indices.dtype == np.uint32
    x = vector(sample)
    with gs.use_backend(backend):
        assert_product(plans.multiply(sample, x), sample, x)
        assert backend != "avx512" or "gather" in plans.plan_for(sample).kernel


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_with_scalar(backend):
    for pattern in PATTERNS:
        sample = sample_matrix(pattern, (97, 130), seed=3)
        x = vector(sample)
        with gs.use_backend("scalar"):
            expected = plans.multiply(sample, x)
        with gs.use_backend(backend):
            y = plans.multiply(sample, x)
        assert (np.abs(y - expected) <= 2 * product_and_bound(sample, x)[1]).all()


# -------------------------------------------------------------------- inputs


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layouts_of_x(backend):
    sample = sample_matrix(GS(16, 16), (33, 65))
    x = vector(sample, 6)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(x.shape)
    misaligned[:] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    strided = np.zeros((130, 12), np.float32)[::2, ::2]
    strided[:] = x
    with gs.use_backend(backend):
        for given in (
            np.asfortranarray(x),
            misaligned,
            read_only,
            strided,
            x[::-1][::-1],
            x.astype(">f4"),
        ):
            before = given.copy()
            assert_product(plans.multiply(sample, given), sample, x)
            assert_product(plans.multiply(sample, given[:, 2]), sample, x[:, 2])
            assert_product(plans.linear(sample, given.T).T, sample, x)
            np.testing.assert_array_equal(given, before)
        y = plans.multiply(sample, np.asfortranarray(x))
        assert y.flags.f_contiguous


def test_nothing_is_read_past_the_end():
    """What lies behind x is NaN: one over-read element would spread."""
    for pattern in PATTERNS:
        for cols in (16, 17, 31, 33, 40, 63, 65):
            sample = sample_matrix(pattern, (35, cols))
            room = np.full(cols + 64, np.nan, np.float32)
            x = room[32 : 32 + cols]
            x[:] = vector(sample)
            for backend in BACKENDS:
                with gs.use_backend(backend):
                    assert_product(plans.multiply(sample, x), sample, x)


def test_wrong_inputs_are_errors():
    sample = sample_matrix(GS(4, 4), (8, 12))
    with pytest.raises(TypeError, match=r"float32 .* got float64; use x.astype\(numpy.float32\)"):
        plans.multiply(sample, np.ones(12))
    with pytest.raises(TypeError, match="got int64"):
        plans.linear(sample, [1] * 12)
    with pytest.raises(ValueError, match=r"\[12\] or \[12, N\] .* got \[13\]"):
        plans.multiply(sample, np.ones(13, np.float32))
    with pytest.raises(ValueError, match=r"got \[12, 1, 1\]"):
        plans.multiply(sample, np.ones((12, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"got \[\]"):
        plans.multiply(sample, np.float32(3))
    with pytest.raises(ValueError, match=r"\[..., 12\]"):
        plans.linear(sample, np.ones((12, 3), np.float32))
    with pytest.raises(ValueError, match="bias must have 8"):
        plans.linear(sample, np.ones(12, np.float32), bias=np.ones(7, np.float32))
    with pytest.raises(ValueError, match="residual must have"):
        plans.linear(sample, np.ones((2, 12), np.float32), residual=np.ones((3, 8), np.float32))
    with pytest.raises(ValueError, match="one of none, relu"):
        plans.linear(sample, np.ones(12, np.float32), activation="swish")
    with pytest.raises(ValueError, match="must not be negative"):
        plans.plan_for(sample, -1)
    for x, words in (
        ([1.0] * 12, r"use numpy.asarray\(x, numpy.float32\)"),
        (None, "x must be an array of numbers, got NoneType"),
        (["a"] * 12, "x must be an array of numbers, got <U1"),
    ):
        for product in (plans.multiply, plans.linear):
            with pytest.raises(TypeError, match=words):
                product(sample, x)
    with pytest.raises(ValueError, match="x must be a rectangle of numbers"):
        plans.multiply(sample, [[1.0], [1.0, 2.0]])
    for activation in (["relu"], 1, np.tanh):
        with pytest.raises(ValueError, match="activation must be one of none, relu"):
            plans.linear(sample, np.ones(12, np.float32), activation=activation)
    x, wrong = np.ones((2, 12), np.float32), np.ones((2, 7), np.float32)
    for given in (wrong, wrong[0]):
        for name in ("residual", "out"):
            with pytest.raises(
                ValueError, match=rf"{name} must have shape \(2, 8\), got \(.*7,?\)"
            ):
                plans.linear(sample, x, **{name: given})
    with pytest.raises(ValueError, match="bias must have 1 dimension, got 2"):
        plans.linear(sample, x, bias=wrong)
    for n in (1.5, "1", None):
        with pytest.raises(TypeError, match="n must be an integer, got"):
            plans.plan_for(sample, n)
    assert plans.plan_for(sample, 10**30) is plans.plan_for(sample, np.int64(64))
    wide = sample_matrix(GS(4, 4), (8, 12), dtype="float64")
    with pytest.raises(TypeError, match=r"float64 .* got float32"):
        plans.multiply(wide, np.ones(12, np.float32))


def test_the_core_refuses_what_is_not_valid():
    sample = sample_matrix(Irregular(), (8, 12))
    core = list(sample.core())
    bad = sample.indices.copy()
    bad[0] = 12
    with pytest.raises(gs.FormatError) as error:
        make_plan((*core[:4], bad, *core[5:]), "scalar", 1)
    assert error.value.rule == ""
    with pytest.raises(ValueError, match="sizes do not agree"):
        make_plan((*core[:5], sample.indptr[:-1].copy(), *core[6:]), "scalar", 1)
    with pytest.raises(ValueError, match="unknown backend: 'sse9'"):
        make_plan(tuple(core), "sse9", 1)
    plan = make_plan(tuple(core), "scalar", 1)
    with pytest.raises(ValueError, match="C-contiguous"):
        plan.multiply(np.ones(24, np.float32)[::2])
    with pytest.raises(TypeError, match="float32"):
        plan.multiply(np.ones(12))


# -------------------------------------------------------------------- linear


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
@pytest.mark.parametrize("activation", [None, *plans.ACTIVATIONS])
def test_epilogue(activation, dtype, backend):
    """Bias, residual and activation against torch in float64, with the bound carried through the activation."""
    sample = sample_matrix(GS(8, 8), (21, 40), dtype=dtype)
    type_ = type_of(sample)
    x = rng.normal(size=(2, 3, 40)).astype(type_)
    bias, residual = rng.normal(size=21).astype(type_), rng.normal(size=(2, 3, 21)).astype(type_)
    with gs.use_backend(backend):
        y = plans.linear(sample, x, bias, activation, residual)
    exact, bound = product_and_bound(sample, x.reshape(6, 40).T)
    exact = exact.T.reshape(2, 3, 21) + bias + residual
    eps = np.finfo(type_).eps
    bound = bound.T.reshape(2, 3, 21) + 4 * eps * (np.abs(exact) + np.abs(bias) + np.abs(residual))
    functions = {
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
    }
    function = functions.get(activation, lambda t: t)
    expected = function(torch.from_numpy(exact)).numpy()
    # No activation is steeper than 1.13; its own arithmetic rounds a few times.
    assert (np.abs(y - expected) <= 1.2 * bound + 8 * eps * np.maximum(np.abs(exact), 1)).all()
    assert y.dtype == type_


def test_activations_far_out():
    sample = sample_matrix(Irregular(), (1, 1), density=0.0)
    far = np.array(
        [[-np.inf], [-1e4], [-90.0], [-0.0], [90.0], [1e4], [np.inf], [np.nan]], np.float32
    )
    nothing = np.zeros((8, 1), np.float32)
    exact = far.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = {
            "relu": np.where(exact < 0, 0, exact),
            "sigmoid": scipy.special.expit(exact),
            "tanh": np.tanh(exact),
        }
    for name, values in expected.items():
        y = plans.linear(sample, nothing, residual=far, activation=name)
        np.testing.assert_allclose(y, values, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out(backend):
    sample = sample_matrix(GS(16, 1, scatter=True), (33, 40))
    x = rng.normal(size=(5, 40)).astype(np.float32)
    with gs.use_backend(backend):
        out = np.full((5, 33), np.nan, np.float32)
        assert plans.linear(sample, x, out=out) is out
        assert_product(out.T, sample, x.T)
        square = sample_matrix(GS(8, 8), (40, 40))
        with pytest.raises(ValueError, match="out must not share memory with x"):
            plans.linear(square, x, out=x)
        room = np.zeros(5 * 40 + 20, np.float32)
        with pytest.raises(ValueError, match="share memory"):
            plans.linear(square, room[:200].reshape(5, 40), out=room[20:].reshape(5, 40))
        with pytest.raises(ValueError, match="share memory"):
            plans.linear(sample, x, residual=out, out=out)
        with pytest.raises(ValueError, match="out must have"):
            plans.linear(sample, x, out=np.zeros((5, 34), np.float32))
        with pytest.raises(TypeError, match="out must have dtype float32"):
            plans.linear(sample, x, out=np.zeros((5, 33)))
        with pytest.raises(ValueError, match="out must be C-contiguous"):
            plans.linear(sample, x, out=np.zeros((33, 5), np.float32).T)
        out.flags.writeable = False
        with pytest.raises(ValueError, match="out must be writeable, got a read-only array"):
            plans.linear(sample, x, out=out)
        with pytest.raises(ValueError, match="out must be writeable, got a read-only array"):
            plans.linear(sample, x, out=np.broadcast_to(out[:1], (5, 33)))


# --------------------------------------------------------------------- plans


def test_a_plan_owns_what_it_needs():
    for backend in BACKENDS:
        sample = sample_matrix(GS(16, 4, scatter=True), (40, 70), dtype="int8")
        dense_before = sample.dense.copy()
        plan = make_plan(sample.core(), backend, 1)
        for array in (
            sample.values,
            sample.indices,
            sample.indptr,
            sample.row_order,
            sample.scales,
        ):
            array[...] = 0
        x = vector(sample)
        sample.dense = dense_before
        exact, bound = wide_product_and_bound(sample, x)
        assert (np.abs(plan.multiply(x) - exact) <= bound).all()


def test_a_plan_is_immutable_and_described():
    sample = sample_matrix(GS(16, 16), (64, 64), density=0.25)
    plan = plans.plan_for(sample)
    assert plans.plan_for(sample) is plan
    assert plans.plan_for(sample, 2) is plans.plan_for(sample, plan.most) is plan
    assert plans.plan_for(sample, plan.most + 1) is plans.plan_for(sample, 16) is not plan
    assert plans.plan_for(sample, 49) is plans.plan_for(sample, 1000) is not plan
    assert plan.backend == BEST_OF_FLOATS
    assert plan.kernel.endswith(BEST_OF_FLOATS)
    assert plan.entries == np.count_nonzero(sample.dense)
    assert plan.slots >= plan.entries
    assert plan.efficiency == plan.entries / plan.slots
    assert plan.bytes >= 5 * plan.slots or BACKENDS[0] == "scalar"
    with pytest.raises(AttributeError):
        plan.kernel = "other"
    with pytest.raises(TypeError):
        type(plan).kernel = "other"
    with pytest.raises(TypeError):
        gs.Plan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_plans_change_where_the_one_for_many_is_faster(pattern, dtype, backend):
    """The C core and Python both change plans behind `most`, and either plan is right on both sides of it."""
    sample = sample_matrix(pattern, (70, 127), dtype=dtype)
    with gs.use_backend(backend):
        few, many = plans.plan_for(sample), plans.plan_for(sample, 16)
        assert (few.columns, many.columns, many.most) == (False, True, 0)
        assert 1 <= few.most < 16
        for n in (few.most, few.most + 1):
            right = many if n > few.most else few
            assert plans.plan_for(sample, n) is right
            made = make_plan(sample.core(), few.backend, n)
            assert (made.kernel, made.most, made.slots) == (right.kernel, right.most, right.slots)
            x = vector(sample, n)
            assert_product(plans.multiply(sample, x), sample, x)
            assert_product(plans.linear(sample, np.ascontiguousarray(x.T)).T, sample, x)
            for plan in (few, many, made):
                assert_product(plan.multiply(x), sample, x)
                rows = plan.linear(np.ascontiguousarray(x.T), None, 0, None, None)
                assert_product(rows.T, sample, x)


def test_padding_brings_the_plan_for_many_nearer():
    """The sparser an irregular mask is, the more of its strips is padding, and the fewer samples they serve."""
    dense, middle, sparse = (
        plans.plan_for(sample_matrix(Irregular(), (256, 512), density=density)).most
        for density in (0.8, 0.2, 0.05)
    )
    assert dense >= middle >= sparse
    assert BACKENDS[0] == "scalar" or dense > sparse


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this CPU has no AVX-512")
def test_balanced_masks_need_little_padding():
    """Equal counts in every bank of every row leave the register tables no padding at all."""
    rows, cols, banks, bundles = 128, 256, 8, 3
    for layout in ("contiguous", "interleaved"):
        indices = np.argsort(rng.random((rows, banks, cols // banks)))[:, :, :bundles]
        indices = np.sort(indices).transpose(0, 2, 1).reshape(rows * bundles, banks)
        core = (("gs", banks, banks, int(layout == "contiguous")), (rows, cols), 1,
                rng.normal(size=indices.shape).astype(np.float32), indices.astype(np.uint8),
                np.arange(0, rows * bundles + 1, bundles, dtype=np.uint32), None, None)  # fmt: skip
        assert make_plan(core, "avx512", 1).efficiency == 1


def balanced(bundles, cols, banks):
    """A horizontal mask with contiguous banks, row r with bundles[r] bundles; its core and its dense weights."""
    rows, width = len(bundles), cols // banks
    dense = np.zeros((rows, cols), np.float32)
    values, indices = [], []
    for row, count in enumerate(bundles):
        picked = np.array([rng.choice(width, count, replace=False) for _ in range(banks)])
        for index in picked.reshape(banks, count).T:
            weights = rng.normal(size=banks).astype(np.float32)
            values.append(weights)
            indices.append(index.astype(np.uint8))
            dense[row, np.arange(banks) * width + index] = weights
    indptr = np.concatenate([[0], np.cumsum(bundles)]).astype(np.uint32)
    return (("gs", banks, banks, 1), (rows, cols), 1, np.array(values), np.array(indices), indptr, None,
            None), dense  # fmt: skip


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this CPU has no AVX-512")
@pytest.mark.parametrize("last", [0, 1, 15, 17, 63])
def test_strips_of_unlike_rows_are_laid_out_apart(last):
    """Where the count changes inside four strips of 16 rows, each strip has its own steps, and nothing is padded but
    the last one; sums come back to their rows for any number of samples."""
    bundles = [3] * 80 + [1] * (48 + last)
    order = rng.permutation(len(bundles))
    core, dense = balanced(np.array(bundles)[order], 256, 8)
    plan = make_plan(core, "avx512", 1)
    padded = 16 * 8 * -(-last // 16) if last < 63 else 64 * 8
    assert plan.entries == 8 * (240 + 48 + last)
    assert plan.slots <= 8 * (240 + 48) + padded
    for n in range(1, 8):
        x = rng.normal(size=(n, 256)).astype(np.float32)
        exact = x.astype(np.float64) @ dense.T
        bound = 2 * 26 * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(dense).T)
        assert (np.abs(plan.linear(x, None, 0, None, None) - exact) <= bound).all()


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this CPU has no AVX-512")
@pytest.mark.parametrize("density", [0.03, 0.1, 0.2, 0.5])
def test_windows_pad_no_more_than_tables_in_fixed_places(density):
    """Against the count of steps that tables at multiples of their width would take, from the mask alone."""
    sample = sample_matrix(Irregular(), (256, 512), density=density)
    plan = make_plan(sample.core(), "avx512", 1)
    width = int(plan.kernel.split("tables")[1][:2])
    counts = (sample.dense != 0).reshape(256, 512 // width, width).sum(axis=2)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    fixed = 64 * counts[order].reshape(4, 64, -1).max(axis=1).sum()
    assert plan.slots < fixed


def test_results_do_not_depend_on_threads():
    # Enough work for threads to be started, by samples and by rows.
    sample = sample_matrix(Irregular(), (256, 512), density=0.2)
    x = rng.normal(size=(700, 512)).astype(np.float32)
    results = []
    before = gs.get_num_threads()
    try:
        for threads in (1, 2, 3):
            gs.set_num_threads(threads)
            assert gs.get_num_threads() == threads
            results.append(
                (plans.linear(sample, x), plans.multiply(sample, np.ascontiguousarray(x.T)))
            )
    finally:
        gs.set_num_threads(before)
    for rows, columns in results[1:]:
        np.testing.assert_array_equal(rows, results[0][0])
        np.testing.assert_array_equal(columns, results[0][1])
    assert_product(results[0][0].T, sample, x.T)
    for bad in (0, -1, 257, 10**30):
        with pytest.raises(ValueError, match=f"from 1 to 256, got {bad}"):
            gs.set_num_threads(bad)
    for wrong in ("2", 2.0, None):
        with pytest.raises(TypeError, match="threads must be an integer, got"):
            gs.set_num_threads(wrong)


def test_many_threads_share_a_plan():
    sample = sample_matrix(GS(16, 16), (120, 333))
    xs = [vector(sample) for _ in range(4)]
    alone = [plans.multiply(sample, x) for x in xs]
    wrong = []

    def work(i):
        for _ in range(300):
            if not np.array_equal(plans.multiply(sample, xs[i]), alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ------------------------------------------------------------------- backends


def test_backends_are_listed_best_first():
    assert BACKENDS[-1] == "scalar"
    assert list(BACKENDS) == [
        name
        for name in ("amx", "neon", "avx512", "avx512_base", "avx2", "scalar")
        if name in BACKENDS
    ]
    flags = gs.cpu_info().features
    if sys.platform == "linux" and flags:
        assert ("avx2" in BACKENDS) == ("avx2" in flags and "fma" in flags)
    assert gs.cpu_info().backends == BACKENDS
    assert not set(gs.cpu_info().missing) & set(BACKENDS)
    assert all(gs.cpu_info().missing.values())
    if "amx" not in BACKENDS:
        assert gs.cpu_info().missing["amx"]
        with pytest.raises(ValueError, match=r"got 'amx': (the|it)"), gs.use_backend("amx"):
            pass


def test_use_backend_is_of_one_thread_and_ends():
    before = gs.backend()
    seen = []
    with gs.use_backend("scalar"):
        assert gs.backend() == "scalar"
        thread = threading.Thread(target=lambda: seen.append(gs.backend()))
        thread.start()
        thread.join()
        sample = sample_matrix(Irregular(), (5, 5))
        assert plans.plan_for(sample).backend == "scalar"
    assert seen == [before]
    assert gs.backend() == before
    assert plans.plan_for(sample).backend == BEST_OF_FLOATS
    with pytest.raises(ValueError, match=r"one of .*scalar.* got 'neon9'"), gs.use_backend("neon9"):
        pass


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("GSPATTERN_BACKEND", "scalar", "scalar 1"),
        ("GSPATTERN_BACKEND", "", f"{BACKENDS[0]} 1"),
        ("GSPATTERN_BACKEND", "quantum", "GSPATTERN_BACKEND must be one of"),
        ("GSPATTERN_NUM_THREADS", "3", f"{BACKENDS[0]} 3"),
        ("GSPATTERN_NUM_THREADS", "many", "GSPATTERN_NUM_THREADS must be a number from 1 to 256"),
        ("GSPATTERN_NUM_THREADS", "0", "GSPATTERN_NUM_THREADS must be a number from 1 to 256"),
    ],
)
def test_environment(variable, value, expected):
    program = "import gspattern as gs; print(gs.backend(), gs.get_num_threads())"
    env = {k: v for k, v in os.environ.items() if not k.startswith("GSPATTERN_")} | {
        variable: value
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == ("must" not in expected)


def test_matrix_methods_use_the_plans():
    weights = rng.normal(size=(40, 64)).astype(np.float32)
    chosen = gs.choose_mask(np.abs(weights), "gs(8,8)", sparsity=0.75)
    matrix = gs.encode(weights, "gs(8,8)", mask=chosen.mask)
    pruned = np.where(chosen.mask, weights, 0).astype(np.float64)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    bound = 2 * 18 * np.finfo(np.float32).eps * (np.abs(pruned) @ np.abs(x))
    assert (np.abs(matrix @ x - pruned @ x) <= bound).all()
    assert (np.abs(matrix.linear(x.T.copy()).T - pruned @ x) <= bound).all()
    assert matrix.plan(1) is plans.plan_for(matrix)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", ["gs(16,16)", "gs(16,1)", "gs(16,4)", "gs(8,8,contiguous)"])
@pytest.mark.parametrize("n", [1, 40])
def test_a_column_twice_in_a_row_is_refused(pattern, backend, n):
    weights = np.random.default_rng(3).standard_normal((32, 64)).astype(np.float32)
    chosen = gs.choose_mask(np.abs(weights), pattern, 0.5)
    core = list(gs.encode(weights, pattern, chosen.mask).core())
    core[4] = core[4].copy()
    core[4][1] = core[4][0]  # slot 0 of the first two bundles
    with pytest.raises(gs.FormatError, match="twice"):
        _core.plan(tuple(core), backend, n)


def test_plans_say_why():
    """The kernel is the cheapest: what the next best would cost is at least as much, and more the more it pads."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((256, 512)).astype(np.float32)
    selection = gs.choose_mask(np.abs(weights), "gs(cpu)", 0.9)
    matrix = gs.encode(weights, "gs(cpu)", selection.mask, selection.row_order)
    with gs.use_backend("scalar"):
        assert matrix.plan().why == "the only kernel of scalar that takes this matrix and product"
    for backend in gs.backends()[:-1]:
        with gs.use_backend(backend):
            plan = matrix.plan()
            found = re.fullmatch(
                r"by its slots and their cost; (\S+), the next best, would cost ([\d.]+) times as much",
                plan.why,
            )
            assert found, plan.why
            assert found[1] != plan.kernel
            assert float(found[2]) >= 1
            assert matrix.plan(128).why.startswith("the only kernel of ")
    block = gs.encode(
        weights, "block(16,1)", gs.choose_mask(np.abs(weights), "block(16,1)", 0.9).mask
    )
    if len(gs.backends()) > 1:
        assert "strips" in block.plan(128).why  # the stacks' next best
