"""Products with x in bfloat16 and of int8 matrices, on every backend, pattern and number of samples.

int8 is held to whole numbers: every backend must give the sums of integers, rounded to float32 and scaled, bit for bit.
bfloat16 is held to float64: a sum in float32 in any order, rounded once; and denormal entries may count as 0."""

import ml_dtypes
import numpy as np
import pytest
import torch

import gspattern as gs
from gspattern import GS, Irregular, plans
from gspattern.torch import GSLinear
from sample_matrices import exact_int8, rounded, sample_matrix
from test_plans import BACKENDS, PATTERNS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TINY = float(np.finfo(np.float32).tiny)
rng = np.random.default_rng(3)
SHAPES = [(1, 16), (33, 65), (17, 127), (70, 150)]


def bfloat16(*shape):
    return rng.normal(size=shape).astype(BFLOAT16)


def assert_bfloat16(y, sample, x):
    wide = x.astype(np.float64)
    exact = sample.dense @ wide
    size = np.abs(sample.dense) @ np.abs(wide)
    most = (1 + np.abs(sample.dense).max(initial=0)) * (1 + np.abs(wide).max(initial=0))
    sums = 2 * (sample.nnz_row + 2) * (2.0**-23 * size + TINY * most)
    assert y.dtype == BFLOAT16
    assert y.shape == exact.shape
    assert (np.abs(y.astype(np.float64) - exact) <= 2.0**-8 * (np.abs(exact) + sums) + sums).all()


def int8_bits(sample, x):
    """y as the definition in gspattern.h rounds it."""
    steps, scale = rounded(x)
    weights = np.rint(sample.dense / sample.scales[:, None].astype(np.float64)).astype(np.int64)
    return (weights @ steps).astype(np.float32) * scale * sample.scales[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_both_layouts_of_x(pattern, backend):
    least = pattern.banks if isinstance(pattern, GS) else 1
    with gs.use_backend(backend):
        for i, (rows, cols) in enumerate(SHAPES):
            for n in (1 + i % 3, 5 + i, 47):
                half = sample_matrix(pattern, (rows, max(least, cols)), dtype="bfloat16", seed=n)
                x = bfloat16(half.shape[1], n)
                assert_bfloat16(plans.multiply(half, x), half, x)
                assert_bfloat16(plans.multiply(half, np.asfortranarray(x)), half, x)
                assert_bfloat16(plans.multiply(half, x[:, 0]), half, x[:, 0])
                assert_bfloat16(plans.linear(half, np.ascontiguousarray(x.T)).T, half, x)
                byte = sample_matrix(pattern, (rows, max(least, cols)), dtype="int8", seed=n)
                x = (rng.normal(size=x.shape) + rng.integers(-2, 3)).astype(np.float32)
                bits = int8_bits(byte, x)
                np.testing.assert_array_equal(plans.multiply(byte, x), bits)
                np.testing.assert_array_equal(plans.multiply(byte, np.asfortranarray(x)), bits)
                np.testing.assert_array_equal(plans.linear(byte, np.ascontiguousarray(x.T)).T, bits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_read_past_the_end(backend):
    for dtype, type_ in (("bfloat16", BFLOAT16), ("int8", np.float32)):
        for cols in (16, 31, 33, 63, 64, 65, 127, 129):
            sample = sample_matrix(GS(16, 16), (35, cols), dtype=dtype)
            room = np.full(cols + 256, np.nan, np.float32).astype(type_)
            for begin in (64, 65, 80):
                x = room[begin : begin + cols]
                x[:] = rng.normal(size=cols)
                with gs.use_backend(backend):
                    assert np.isfinite(plans.multiply(sample, x).astype(np.float32)).all()
                x[:] = np.nan


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_at_the_ends_of_floats(backend):
    sample = sample_matrix(Irregular(), (40, 50), dtype="int8", density=0.5)
    for size in (0, 1e-45, 1e-38, 1e-30, 1, 1e30, 3.4e38):
        x = (rng.uniform(-1, 1, (50, 3)) * size).astype(np.float32)
        with gs.use_backend(backend), np.errstate(all="ignore"):
            np.testing.assert_array_equal(plans.multiply(sample, x), int8_bits(sample, x))
    for wrong in (np.nan, np.inf, -np.inf):
        x = rng.normal(size=(50, 3)).astype(np.float32)
        x[7, 1] = wrong
        with gs.use_backend(backend):
            y = plans.multiply(sample, x)
        assert np.isnan(y[:, 1]).all()
        np.testing.assert_array_equal(y[:, [0, 2]], int8_bits(sample, x[:, [0, 2]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_does_not_saturate(backend):
    """Rows of 2,000 weights of 127, whose float32 sums would round: another kernel takes them."""
    sample = sample_matrix(Irregular(), (20, 2000), dtype="int8", density=1.0)
    signs = np.where(rng.random(2000) < 0.05, -1, 1)
    sample.values[:] = 127
    sample.dense[:] = np.where(sample.dense != 0, 127.0 * sample.scales[:, None], 0)
    x = (rng.uniform(0.9, 1, 2000) * signs).astype(np.float32)[:, None]
    with gs.use_backend(backend):
        np.testing.assert_array_equal(plans.multiply(sample, x), int8_bits(sample, x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_matrices(backend):
    """More columns than a copy of x holds, or than sums of bytes are exact for."""
    for cols in (40000, 70000):
        with gs.use_backend(backend):
            half = sample_matrix(Irregular(), (20, cols), density=0.002, dtype="bfloat16")
            x = bfloat16(cols, 3)
            assert_bfloat16(plans.multiply(half, x), half, x)
            byte = sample_matrix(Irregular(), (20, cols), density=0.002, dtype="int8")
            x = rng.normal(size=(cols, 3)).astype(np.float32)
            np.testing.assert_array_equal(plans.multiply(byte, x), int8_bits(byte, x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, *plans.ACTIVATIONS, ("clamp", -0.5, 0.5)], ids=str)
def test_epilogue_in_bfloat16(activation, backend):
    """Bias, residual and activation in float32, and one rounding at the end."""
    sample = sample_matrix(GS(8, 8, scatter=True), (37, 40), dtype="bfloat16")
    x, bias, residual = bfloat16(11, 40), bfloat16(37), bfloat16(11, 37)
    out = np.zeros((11, 37), BFLOAT16)
    with gs.use_backend(backend):
        y = plans.linear(sample, x, bias, activation, residual, out)
    assert y is out
    exact = x.astype(np.float64) @ sample.dense.T + bias.astype(float) + residual.astype(float)
    functions = {
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        ("clamp", -0.5, 0.5): lambda t: torch.clamp(t, -0.5, 0.5),
    }
    expected = functions.get(activation, lambda t: t)(torch.from_numpy(exact)).numpy()
    off = np.abs(y.astype(np.float64) - expected)
    assert (off <= 2.0**-8 * np.abs(expected) + 1e-4).all()


def test_results_do_not_depend_on_threads():
    half = sample_matrix(Irregular(), (600, 512), dtype="bfloat16", density=0.2)
    byte = sample_matrix(Irregular(), (600, 512), dtype="int8", density=0.2)
    x = rng.normal(size=(130, 512)).astype(np.float32)
    before = gs.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            gs.set_num_threads(threads)
            results.append(
                [plans.linear(byte, x[:n]) for n in (1, 8, 130)]
                + [plans.linear(half, x[:n].astype(BFLOAT16)).view(np.uint16) for n in (1, 8, 130)]
            )
    finally:
        gs.set_num_threads(before)
    for others in results[1:]:
        for y, first in zip(others, results[0], strict=True):
            np.testing.assert_array_equal(y, first)


def test_plans_and_their_errors():
    half = sample_matrix(GS(4, 4), (8, 12), dtype="bfloat16")
    byte = sample_matrix(GS(4, 4), (8, 12), dtype="int8")
    assert plans.plan_for(half, 50, "bfloat16") is plans.plan_for(half, 1, BFLOAT16)
    assert plans.plan_for(half, 1, "bfloat16") is not plans.plan_for(half)
    assert plans.plan_for(byte) is plans.plan_for(byte, 50, "int8")
    assert plans.plan_for(byte, 1, "float32") is not plans.plan_for(byte)
    x = rng.normal(size=(12, 3)).astype(np.float32)
    exact = byte.dense @ x
    y = plans.plan_for(byte, 1, "float32").multiply(x)  # weights alone are rounded
    assert np.abs(y - exact).max() <= 1e-5 * np.abs(exact).max()
    assert (
        np.abs(plans.multiply(byte, x) - exact_int8(byte, x)[0]) <= exact_int8(byte, x)[1]
    ).all()
    for matrix, x in ((half, "int8"), (byte, "bfloat16"), (half, "float64")):
        with pytest.raises(TypeError, match="is not multiplied with x in"):
            plans.plan_for(matrix, 1, x)
    x = bfloat16(12)
    with pytest.raises(TypeError, match="float32"):
        plans.multiply(byte, x)
    with pytest.raises(TypeError, match="bias must have dtype bfloat16"):
        plans.linear(half, x, np.zeros(8, np.float32))
    with pytest.raises(TypeError, match="out must have dtype bfloat16"):
        plans.linear(half, x, out=np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=r"\[12\]"):
        plans.multiply(half, bfloat16(13))


@pytest.mark.skipif("avx512" not in BACKENDS, reason="this CPU has no AVX-512")
def test_the_base_of_avx512_needs_no_more():
    features = set(gs.cpu_info().features)
    for dtype, x, needs in (
        ("bfloat16", "bfloat16", {"avx512_bf16"}),
        ("int8", "int8", {"avx512_vnni"}),
    ):
        sample = sample_matrix(GS(16, 16), (64, 256), dtype=dtype)
        with gs.use_backend("avx512_base"):
            assert plans.plan_for(sample, 1, x).kernel.endswith("floats32__avx512")
        with gs.use_backend("avx512"):
            own = bool(features & {"avx512_vbmi", "avx512vbmi"}) and needs <= features
            assert plans.plan_for(sample, 1, x).kernel.endswith("__avx512") != own


def test_layers_of_torch_take_bfloat16():
    layer = torch.nn.Linear(40, 33).bfloat16()
    compact = GSLinear.from_linear(layer, "irregular", "bfloat16")
    x = torch.randn(2, 7, 40).bfloat16()
    with torch.no_grad():
        y, wide = (
            compact(x),
            torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()),
        )
    assert y.dtype == torch.bfloat16
    assert ((y.double() - wide).abs() <= 2.0**-8 * wide.abs() + 1e-4).all()
