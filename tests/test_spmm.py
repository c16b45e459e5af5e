"""Products with many columns, on every backend, against float64 NumPy; and the epilogue that they carry.

Sums are held to the bound of a sum in any order, as in test_plans.py; activations to so many units in the last place
of their float64 value.
"""

import itertools

import numpy as np
import pytest
import scipy.special
import torch

import gspattern as gs
from gspattern import GS, NM, Block, Irregular, plans
from sample_matrices import sample_matrix

PATTERNS = [
    GS(16, 16, layout="contiguous", scatter=True),
    GS(16, 1, scatter=True),
    GS(8, 2),
    Irregular(),
    Block(1, 16),
    Block(16, 1),
    Block(1, 4),
    Block(2, 33),
    Block(5, 3),
    Block(200, 1),
    NM(2, 4),
]
BACKENDS = gs.backends()
VECTOR_BACKENDS = [name for name in BACKENDS if name != "scalar"]
COLUMNS = [9, 15, 16, 17, 31, 33, 63, 65, 127, 640]
# Around strips of four rows, units of 128, and blocks of 96 to 256 columns.
SHAPES = [(1, 1), (3, 700), (129, 65), (260, 31), (131, 257), (64, 1), (1, 64)]
rng = np.random.default_rng(11)


def bound_of(sample, x):
    """W x in float64, and how far a float32 sum in any order may be from it."""
    wide = x.astype(np.float64)
    eps = np.finfo(np.float32).eps
    return sample.dense @ wide, 2 * (sample.nnz_row + 2) * eps * (
        np.abs(sample.dense) @ np.abs(wide)
    )


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_columns_and_samples_at_the_edges_of_tiles(pattern, backend):
    """x [K, N] and x [N, K], with N around every register and tile, and a bias that is added in the kernel."""
    least = pattern.banks if isinstance(pattern, GS) else 1
    with gs.use_backend(backend):
        for (rows, cols), n in zip(itertools.cycle(SHAPES), COLUMNS, strict=False):
            sample = sample_matrix(pattern, (rows, max(cols, least)), seed=n)
            x, bias = normal(sample.shape[1], n), normal(rows)
            exact, bound = bound_of(sample, x)
            y = plans.multiply(sample, x)
            assert y.shape == exact.shape
            assert (np.abs(y - exact) <= bound).all()
            z = plans.linear(sample, np.ascontiguousarray(x.T), bias)
            off = np.abs(z.T - exact - bias[:, None])
            assert (off <= bound + 2e-7 * (np.abs(exact) + np.abs(bias[:, None]))).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float64"])
def test_other_dtypes(dtype, backend):
    sample = sample_matrix(GS(8, 8, scatter=True), (37, 101), dtype=dtype)
    x = normal(101, 33).astype(np.float64 if dtype == "float64" else np.float32)
    exact, bound = bound_of(sample, x)
    with gs.use_backend(backend):
        y = plans.plan_for(sample, 33, x.dtype).multiply(x)
        assert (np.abs(y - exact) <= bound).all()
        plan = plans.plan_for_samples(sample, 33, x.dtype)
        y = plan.linear(np.ascontiguousarray(x.T), None, 0, None, None)
        assert (np.abs(y.T - exact) <= bound).all()


@pytest.mark.parametrize("backend", VECTOR_BACKENDS)
def test_rows_of_a_block_share_their_columns_where_it_pays(backend):
    kernels = {}
    with gs.use_backend(backend):
        for height in (1, 2, 3, 4, 5, 16):
            kernels[height] = plans.plan_for(sample_matrix(Block(height, 2), (48, 40)), 32)
    assert {height: "stacks" in plan.kernel for height, plan in kernels.items()} == {
        1: False, 2: False, 3: True, 4: True, 5: False, 16: True,
    }  # fmt: skip
    assert kernels[16].efficiency == 1


@pytest.mark.parametrize("backend", VECTOR_BACKENDS)
@pytest.mark.parametrize("n", [1 << 15, (1 << 15) + 5])
def test_long_results(backend, n):
    """Results of 32 MiB and more are written past the caches, where they are aligned."""
    rows = 260
    sample = sample_matrix(Irregular(), (rows, 24), seed=5)
    x, bias = normal(24, n), normal(rows)
    with gs.use_backend(backend):
        y = plans.multiply(sample, x)
        assert y.ctypes.data % 64 == 0
        exact, bound = bound_of(sample, x)
        assert (np.abs(y - exact) <= bound).all()
        z = plans.linear(sample, np.ascontiguousarray(x[:, :48].T), bias, "relu")
        np.testing.assert_allclose(
            z.T, np.maximum(y[:, :48] + bias[:, None], 0), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinity_and_nan_stay_in_their_column(backend):
    """Padding may spread them over rows, as the notes of multiply say, never over samples."""
    sample = sample_matrix(Irregular(), (70, 90), seed=3)
    x = normal(90, 40)
    with gs.use_backend(backend):
        clean = plans.multiply(sample, x)
        x[:, 7], x[5, 20] = np.nan, np.inf
        for y in (
            plans.multiply(sample, x),
            plans.linear(sample, np.ascontiguousarray(x.T)).T,
        ):
            others = np.delete(np.arange(40), [7, 20])
            np.testing.assert_array_equal(np.isfinite(y[:, others]), True)
            assert np.abs(y[:, others] - clean[:, others]).max() < 1e-4
            assert np.isnan(y[sample.dense.any(1), 7]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [GS(16, 1), Block(16, 1)], ids=str)
def test_a_sample_does_not_depend_on_its_place(pattern, backend):
    """The same bits in any column, with any number of threads, and in either layout."""
    sample = sample_matrix(pattern, (300, 200))
    x, residual = normal(200, 200), normal(200, 300)
    order = rng.permutation(200)
    before = gs.get_num_threads()
    with gs.use_backend(backend):
        try:
            y = plans.multiply(sample, x)
            np.testing.assert_array_equal(
                plans.multiply(sample, np.ascontiguousarray(x[:, order])), y[:, order]
            )
            xt = np.ascontiguousarray(x.T)
            z = plans.linear(sample, xt, None, "gelu", residual)
            moved = np.ascontiguousarray(xt[order]), np.ascontiguousarray(residual[order])
            np.testing.assert_array_equal(
                plans.linear(sample, moved[0], None, "gelu", moved[1]), z[order]
            )
            np.testing.assert_array_equal(plans.linear(sample, xt).T, y)
            for threads in (2, 7):
                gs.set_num_threads(threads)
                np.testing.assert_array_equal(plans.multiply(sample, x), y)
                np.testing.assert_array_equal(plans.linear(sample, xt, None, "gelu", residual), z)
        finally:
            gs.set_num_threads(before)


# ------------------------------------------------------------------ epilogue

EXACT = {
    "relu": lambda t: np.where(t < 0, 0, t),
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "gelu": lambda t: t * scipy.special.ndtr(t),
    "silu": lambda t: t * scipy.special.expit(t),
    ("clamp", -1.5, 6.0): lambda t: np.clip(t, -1.5, 6),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, *EXACT], ids=str)
def test_epilogue_of_many_samples(activation, backend):
    """Scale, bias, residual and activation in the kernel, against torch in float64."""
    sample = sample_matrix(GS(8, 8), (21, 40), dtype="int8")
    x, bias, residual = normal(35, 40), normal(21), normal(5, 7, 21)
    with gs.use_backend(backend):
        plan = plans.plan_for_samples(sample, 35, x.dtype)  # which does not round x
        number = plans._activation_number(activation)
        y = plan.linear(x.reshape(5, 7, 40), bias, number, residual, None)
    exact, bound = bound_of(sample, x.T)
    exact = exact.T.reshape(5, 7, 21) + bias + residual
    eps = np.finfo(np.float32).eps
    bound = bound.T.reshape(5, 7, 21) + 4 * eps * (np.abs(exact) + np.abs(bias) + np.abs(residual))
    functions = {
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        ("clamp", -1.5, 6.0): lambda t: torch.clamp(t, -1.5, 6.0),
    }
    function = functions.get(activation, lambda t: t)
    expected = function(torch.from_numpy(exact)).numpy()
    assert (np.abs(y - expected) <= 1.2 * bound + 8 * eps * np.maximum(np.abs(exact), 1)).all()


def activate(values, name, samples):
    """An activation of single values: the sums of an empty matrix, with them as residual."""
    rows = 16
    sample = sample_matrix(Irregular(), (rows, 1), density=0.0)
    padded = np.zeros(-(-len(values) // (rows * samples)) * rows * samples, np.float32)
    padded[: len(values)] = values
    parts = padded.reshape(-1, samples, rows)
    x = np.zeros((samples, 1), np.float32)
    done = [plans.linear(sample, x, None, name, part) for part in parts]
    return np.concatenate(done).ravel()[: len(values)]


@pytest.mark.parametrize("backend", VECTOR_BACKENDS)
@pytest.mark.parametrize(("name", "ulps"), [("sigmoid", 2), ("tanh", 2), ("gelu", 12), ("silu", 3)])
def test_activations_over_all_exponents(name, ulps, backend):
    """Units in the last place of the exact value, or of the least normal float where that is more.

    Below -17, sigmoid is e^x, since 1 more in its denominator is nothing: exp is held to 1 there. Where e^x is no
    normal float, x times it carries x times its error.
    """
    bits = np.concatenate(
        [np.arange(0x33000000, 0x43400000, 1531), np.arange(0, 0x33000000, 99991)]
    )
    x = bits.astype(np.uint32).view(np.float32)
    x = np.concatenate([x, -x])
    exact = EXACT[name](x.astype(np.float64))
    with gs.use_backend(backend):
        y = activate(x, name, 64)
        np.testing.assert_array_equal(activate(x[:999], name, 1), y[:999])
    unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32))
    underflow = np.where(x < -87, np.abs(x) / 2, 0) if name == "silu" else 0
    worst = np.abs(y - exact) / unit - underflow
    if name == "sigmoid":
        assert worst[x < -17].max() <= 1
    assert worst.max() <= ulps, f"{worst.max()} at {x[worst.argmax()]}"


@pytest.mark.parametrize("samples", [1, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_activations_far_out_and_nan(backend, samples):
    """As torch has them: gelu and silu of -inf are NaN, their limit notwithstanding."""
    far = np.array([-np.inf, -1e30, -90, -0.0, 90, 1e30, np.inf, np.nan], np.float32)
    expected = {
        "relu": [0, 0, 0, 0, 90, 1e30, np.inf, np.nan],
        "sigmoid": [0, 0, 0, 0.5, 1, 1, 1, np.nan],
        "tanh": [-1, -1, -1, 0, 1, 1, 1, np.nan],
        "gelu": [np.nan, 0, 0, 0, 90, 1e30, np.inf, np.nan],
        "silu": [np.nan, 0, 0, 0, 90, 1e30, np.inf, np.nan],
        ("clamp", -2, 3): [-2, -2, -2, 0, 3, 3, 3, np.nan],
    }
    for name, values in expected.items():
        with gs.use_backend(backend):
            y = activate(far, name, samples)
        np.testing.assert_allclose(y, np.array(values, np.float32), rtol=1e-7, atol=1e-36)
        if isinstance(
            name, str
        ):  # what torch's gelu has for +inf depends on the number of elements
            some = far[far < np.inf]
            torchs = getattr(torch.nn.functional, name)(torch.from_numpy(some)).numpy()
            np.testing.assert_allclose(y[far < np.inf], torchs, rtol=1e-7, atol=1e-36)


@pytest.mark.parametrize(
    "activation",
    [("clamp", 2, 1), ("clamp", 0), ("clamp", 0, np.nan), ("relu", 0, 1), ["clamp"], 3],
)
def test_wrong_activations_are_errors(activation):
    sample = sample_matrix(Irregular(), (3, 4))
    with pytest.raises(ValueError, match=r"one of none, relu, .* or \('clamp', low, high\)"):
        plans.linear(sample, np.zeros(4, np.float32), activation=activation)
