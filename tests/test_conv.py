"""Convolutions on every backend, against torch in float64.

Sums are held to the bound of a sum in any order, as in test_plans.py.
"""

import itertools
import random

import ml_dtypes
import numpy as np
import pytest
import torch

import gspattern as gs
from gspattern import GS, NM, Block, Irregular, _core
from sample_matrices import sample_matrix

PATTERNS = [
    GS(16, 16, layout="contiguous", scatter=True),
    GS(16, 1, scatter=True),
    GS(8, 2),
    Irregular(),
    Block(1, 16),
    Block(16, 1),
    Block(1, 4),
    Block(4, 1),
    Block(5, 3),
    NM(2, 4),
]
BACKENDS = gs.backends()
CONV = {1: gs.conv1d, 2: gs.conv2d}
TORCH = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EPS = np.finfo(np.float32).eps
rng = np.random.default_rng(17)


@pytest.fixture(autouse=True)
def _threads_are_given_back():
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def channels_last(x):
    """The same numbers, seen as before, with adjacent channels in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def conv_matrix(pattern, weight_shape, density=0.3, dtype="float32", seed=0):
    """A random matrix of a convolution and its weights [Co, Ci, ...] in float64."""
    cols = int(np.prod(weight_shape[1:]))
    sample = sample_matrix(pattern, (weight_shape[0], cols), density, dtype, seed)
    sample.kernel_shape = tuple(weight_shape)
    return sample, gs.from_matrix(sample.dense, weight_shape)


def exact(x, weights, *args):
    """The convolution in float64, and how far sums in float32 may be from it."""
    dims = x.ndim - 2
    wide, weights = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weights)
    y = TORCH[dims](wide, weights, None, *args).numpy()
    size = TORCH[dims](wide.abs(), weights.abs(), None, *args).numpy()
    terms = int((weights != 0).flatten(1).sum(1).max()) + 2
    return y, 2 * terms * EPS * size


def assert_near(y, expected, bound, added=0):
    assert y.shape == expected.shape
    off = np.abs(y - (expected + added))
    assert (off <= bound + 4 * EPS * (np.abs(expected) + np.abs(added))).all(), off.max()


# -------------------------------------------------------- any convolution


def draw(seed):
    """A random convolution: weights' shape, input's shape, and stride, padding, dilation."""
    choose = random.Random(seed)
    dims = choose.choice([1, 2])
    while True:
        kernel = [choose.choice([1, 1, 2, 3, 3, 5, 7]) for _ in range(dims)]
        stride = tuple(choose.choice([1, 1, 2, 2, 3, 4]) for _ in range(dims))
        dilation = tuple(choose.choice([1, 1, 2, 3]) for _ in range(dims))
        padding = choose.choice(["valid", "same", None, None, None])
        if padding is None:
            padding = tuple(choose.choice([0, 1, 2, 3, 6]) for _ in range(dims))
        if padding == "same":
            stride = (1,) * dims
        most = 80 if dims == 1 else 30
        size = [
            choose.choice([1, 4, 7, 8, 14, 15, 16, 17, choose.randrange(1, most)]) for _ in stride
        ]
        zeros = (0,) * dims if isinstance(padding, str) else padding
        fits = all(
            n + 2 * p >= d * (k - 1) + 1
            for n, p, d, k in zip(size, zeros, dilation, kernel, strict=True)
        )
        if fits or padding == "same":
            break
    cin = choose.choice([1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 130])
    cout = choose.choice([1, 4, 5, 16, 17, 64, 129])
    batch = choose.choice([1, 1, 2, 3, 5])
    return (cout, cin, *kernel), (batch, cin, *size), (stride, padding, dilation)


# torch says that it pads a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(120))
def test_any_convolution(seed, backend):
    """Kernel, stride, padding, dilation, batch, channels, pattern and memory format at random."""
    weight_shape, input_shape, how = draw(seed)
    least = int(np.prod(weight_shape[1:]))
    pattern = [p for p in PATTERNS if not isinstance(p, GS) or p.banks <= least][seed % 7 - 7]
    matrix, weights = conv_matrix(pattern, weight_shape, seed=seed)
    x, bias = normal(*input_shape), normal(weight_shape[0])
    if seed % 3 == 0:
        x = channels_last(x)
    y, bound = exact(x, weights, *how)
    residual = normal(*y.shape)
    if seed % 4 == 0:
        residual = channels_last(residual)
    convolve = CONV[x.ndim - 2]
    with gs.use_backend(backend):
        assert_near(convolve(x, matrix, None, *how), y, bound)
        full = convolve(x, matrix, bias, *how, residual=residual, activation="relu")
    added = bias.reshape(-1, *[1] * (x.ndim - 2)) + residual.astype(np.float64)
    off = np.abs(full - np.maximum(y + added, 0))
    assert (off <= bound + 4 * EPS * (np.abs(y) + np.abs(added) + 1)).all()


# torch says that it pads a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(200, 260))
def test_bfloat16(seed, backend):
    """Sums are those of float32, and rounded once: to within half of the last of eight bits."""
    weight_shape, input_shape, how = draw(seed)
    least = int(np.prod(weight_shape[1:]))
    pattern = [p for p in PATTERNS if not isinstance(p, GS) or p.banks <= least][seed % 7 - 7]
    matrix, weights = conv_matrix(pattern, weight_shape, dtype="bfloat16", seed=seed)
    x, bias = (
        normal(*input_shape).astype(BFLOAT16),
        normal(weight_shape[0]).astype(BFLOAT16),
    )
    if seed % 3 == 0:
        x = channels_last(x)
    y, bound = exact(x, weights, *how)
    residual = normal(*y.shape).astype(BFLOAT16)
    if seed % 4 == 0:
        residual = channels_last(residual)
    added = bias.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2)) + residual.astype(np.float64)
    activation = [None, "relu", "silu"][seed % 3]
    with gs.use_backend(backend):
        z = CONV[x.ndim - 2](x, matrix, bias, *how, residual=residual, activation=activation)
    assert z.dtype == BFLOAT16
    assert z.shape == y.shape
    sums = y + added
    wanted = {None: sums, "relu": np.maximum(sums, 0), "silu": sums / (1 + np.exp(-sums))}[
        activation
    ]
    off = np.abs(z.astype(np.float64) - wanted)
    float32 = 1.2 * (bound + 8 * EPS * (np.abs(y) + np.abs(added) + 1))
    assert (off <= float32 + 2.0**-8 * (np.abs(wanted) + float32)).all()


def test_bfloat16_needs_a_matrix_of_bfloat16():
    matrix, _ = conv_matrix(Irregular(), (5, 7, 1, 1))
    x = normal(1, 7, 3, 3).astype(BFLOAT16)
    with pytest.raises(TypeError, match="bfloat16"):
        gs.conv2d(x, matrix)
    matrix, _ = conv_matrix(Irregular(), (5, 7, 1, 1), dtype="bfloat16")
    with pytest.raises(TypeError, match="bias"):
        gs.conv2d(x, matrix, normal(5))
    with pytest.raises(ValueError, match="out must be an array of bfloat16"):
        gs.conv2d(x, matrix, out=normal(1, 5, 3, 3))
    y = gs.conv2d(x, matrix, out=np.empty((1, 5, 3, 3), BFLOAT16))
    np.testing.assert_array_equal(y, gs.conv2d(x[0], matrix)[None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_to_bfloat16(backend):
    """Ties go to even, what is too large becomes infinite, and a NaN stays one."""
    matrix = gs.encode(np.eye(2, dtype=np.float32), "irregular").astype("bfloat16")
    values = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.39e38, np.inf, -np.inf, np.nan, -0.0, 1e-40]
    high = np.array(values, np.float32).astype(BFLOAT16)
    with np.errstate(invalid="ignore"):
        low = np.array(values, np.float32) - high.astype(np.float32)
    low = np.where(np.isfinite(low), low, 0).astype(BFLOAT16)
    x = np.zeros((1, 2, 1, 37), BFLOAT16)
    x[0, 0, 0, : len(values)] = high
    residual = np.zeros_like(x)
    residual[0, 0, 0, : len(values)] = low
    with np.errstate(over="ignore"):
        expected = (high.astype(np.float32) + low.astype(np.float32)).astype(BFLOAT16)
    with gs.use_backend(backend):
        for images in (np.ascontiguousarray, channels_last):
            y = gs.conv2d(images(x), matrix, residual=images(residual))
            got = y[0, 0, 0, : len(values)].astype(np.float32)
            np.testing.assert_array_equal(got, expected.astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern(pattern, backend):
    """More rows than a unit, more columns than a block, in both memory formats."""
    matrix, weights = conv_matrix(pattern, (131, 48, 3, 3))
    x, bias = normal(3, 48, 10, 9), normal(131)
    y, bound = exact(x, weights, 1, 1)
    with gs.use_backend(backend):
        for images in (x, channels_last(x)):
            z = gs.conv2d(images, matrix, bias, padding=1)
            assert_near(z, y, bound, bias[:, None, None].astype(np.float64))
            assert z.strides == np.empty_like(z if images is x else channels_last(z)).strides


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float64"])
def test_other_dtypes(dtype, backend):
    matrix, weights = conv_matrix(GS(8, 8, scatter=True), (37, 24, 3), dtype=dtype)
    x = normal(2, 24, 41).astype(np.float64 if dtype == "float64" else np.float32)
    bias = rng.normal(size=37).astype(x.dtype)
    y, bound = exact(x, weights, 2, 1)
    with gs.use_backend(backend):
        for signals in (x, channels_last(x)):
            z = gs.conv1d(signals, matrix, bias, 2, 1)
            assert z.dtype == x.dtype
            assert_near(z, y, bound, bias[:, None].astype(np.float64))


RESNET50 = [  # Co, Ci, kernel, pixels, stride
    (64, 64, 1, 56, 1), (64, 64, 3, 56, 1), (256, 64, 1, 56, 1), (128, 128, 3, 56, 2),
    (512, 256, 1, 56, 2), (128, 512, 1, 28, 1), (128, 128, 3, 28, 1), (256, 256, 3, 14, 1),
    (512, 512, 3, 14, 2), (512, 512, 3, 7, 1), (2048, 512, 1, 7, 1), (2048, 1024, 1, 14, 2),
]  # fmt: skip
JASPER = [  # Co, Ci, kernel, stride, dilation
    (256, 64, 11, 2, 1), (256, 256, 11, 1, 1), (384, 384, 13, 1, 1), (512, 512, 17, 1, 1),
    (768, 768, 25, 1, 1), (896, 768, 29, 1, 2), (1024, 896, 1, 1, 1),
]  # fmt: skip
VECTOR_BACKENDS = [name for name in BACKENDS if name != "scalar"]


def sparse_weights(*shape):
    """A tenth of them, drawn quickly."""
    weights = normal(*shape)
    weights[rng.random(shape, np.float32) > 0.1] = 0
    return weights


@pytest.mark.parametrize("shape", RESNET50, ids=str)
def test_layers_of_resnet50(shape):
    cout, cin, k, pixels, stride = shape
    weights = sparse_weights(cout, cin, k, k)
    matrix = gs.encode(weights, Irregular())
    x = normal(2, cin, pixels, pixels)
    y, bound = exact(x, weights.astype(np.float64), stride, k // 2)
    for backend, images in itertools.product(VECTOR_BACKENDS, (x, channels_last(x))):
        with gs.use_backend(backend):
            assert_near(gs.conv2d(images, matrix, None, stride, k // 2), y, bound)


@pytest.mark.parametrize("shape", JASPER, ids=str)
def test_layers_of_jasper(shape):
    cout, cin, k, stride, dilation = shape
    weights = sparse_weights(cout, cin, k)
    matrix = gs.encode(weights, Irregular())
    x = normal(1, cin, 352 * stride)
    how = stride, dilation * (k - 1) // 2, dilation
    y, bound = exact(x, weights.astype(np.float64), *how)
    for backend, signals in itertools.product(VECTOR_BACKENDS, (x, channels_last(x))):
        with gs.use_backend(backend):
            assert_near(gs.conv1d(signals, matrix, None, *how), y, bound)


# ------------------------------------------------------------ what is alike


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "scalar"])
@pytest.mark.parametrize("floats", [0, 1, 12, 16])
@pytest.mark.parametrize(
    ("size", "long"), [((88, 96), True), ((89, 96), True), ((8, 96), False), ((29, 33), False)]
)
def test_results_begin_at_any_place_of_a_line(size, long, floats, backend):
    """Results of 8 MiB and more are written past the caches, where a register is a line of memory."""
    shape = (1, 260, *size)
    assert (4 * np.prod(shape) >= 2**23) == long
    sample, weights = conv_matrix(Irregular(), (260, 24, 1, 1), seed=5)
    room = np.full(int(np.prod(shape)) + 64, 7, np.float32)
    first = -(room.ctypes.data // 4) % 16 + floats
    y = room[first : first + np.prod(shape)].reshape(shape)
    x, residual = normal(1, 24, *size), normal(*shape)
    with gs.use_backend(backend):
        gs.conv2d(x, sample, residual=residual, out=y)
    expected, bound = exact(x, weights)
    assert_near(y, expected, bound, residual)
    assert (room[:first] == 7).all()
    assert (room[first + y.size :] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [GS(16, 1), Block(16, 1)], ids=str)
def test_a_pixel_does_not_depend_on_its_place(pattern, backend):
    """The same bits in any place of the batch, in either memory format, and with any number of threads."""
    matrix, _ = conv_matrix(pattern, (300, 40, 3, 3))
    x, bias, residual = normal(5, 40, 13, 11), normal(300), normal(5, 300, 13, 11)
    order = [3, 0, 4, 1, 2]

    def convolve(images, added):
        return gs.conv2d(images, matrix, bias, 1, 1, activation="gelu", residual=added)

    with gs.use_backend(backend):
        y = convolve(x, residual)
        np.testing.assert_array_equal(convolve(x[order], residual[order]), y[order])
        np.testing.assert_array_equal(convolve(x[2], residual[2]), y[2])
        last = channels_last(x)
        np.testing.assert_array_equal(convolve(last, residual), y)
        for threads in (2, 7):
            gs.set_num_threads(threads)
            for _ in range(3):
                np.testing.assert_array_equal(convolve(x, residual), y)
                np.testing.assert_array_equal(convolve(last, residual), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_of_one_pixel_is_a_product(backend):
    matrix, _ = conv_matrix(GS(16, 16, scatter=True), (70, 96, 1, 1))
    x = normal(1, 96, 9, 15)
    with gs.use_backend(backend):
        np.testing.assert_array_equal(
            gs.conv2d(x, matrix).reshape(70, -1), gs.multiply(matrix, x.reshape(96, -1))
        )


@pytest.mark.parametrize("memory", [np.ascontiguousarray, channels_last])
def test_a_chain_copies_nothing(memory, monkeypatch):
    """Every layer reads what the one before wrote, and residuals, where they lie."""
    one, _ = conv_matrix(Irregular(), (24, 24, 3, 3))
    two, _ = conv_matrix(Irregular(), (24, 24, 1, 1), seed=1)
    seen = []
    convolve = _core.convolve
    monkeypatch.setattr(_core, "convolve", lambda *args: (seen.append(args), convolve(*args)))
    x = memory(normal(2, 24, 12, 12))
    y = gs.conv2d(x, one, padding=1, activation="relu")
    z = gs.conv2d(y, two, residual=x)
    assert [call[3:5] for call in seen] == [(memory is channels_last,) * 2] * 2
    for array, used in ((x, seen[0][1]), (y, seen[0][2]), (y, seen[1][1]), (z, seen[1][2])):
        assert np.shares_memory(array, used)
    assert np.shares_memory(x, seen[1][8])


def test_out_is_written_in_its_own_layout():
    matrix, weights = conv_matrix(Irregular(), (20, 6, 3, 3))
    x = normal(2, 6, 9, 9)
    y, bound = exact(x, weights, 2, 1)
    for images, out in itertools.product(
        (x, channels_last(x)), (np.empty_like(y, np.float32), channels_last(y.astype(np.float32)))
    ):
        out[:] = np.nan
        assert gs.conv2d(images, matrix, None, 2, 1, out=out) is out
        assert_near(out, y, bound)


def test_inputs_of_any_strides_are_copied_once():
    matrix, weights = conv_matrix(Irregular(), (8, 5, 3, 2))
    x = normal(4, 10, 21, 18)[::2, ::2, 1:, ::-1]
    y, bound = exact(np.ascontiguousarray(x), weights)
    assert_near(gs.conv2d(x, matrix), y, bound)
    misaligned = np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(np.float32)
    misaligned = misaligned.reshape(x.shape)
    misaligned[:] = x
    assert_near(gs.conv2d(misaligned, matrix), y, bound)
    x.flags.writeable = False
    assert_near(gs.conv2d(x, matrix), y, bound)


def test_without_a_batch_and_with_nothing():
    matrix, weights = conv_matrix(Irregular(), (8, 5, 3))
    x = normal(1, 5, 30)
    y, bound = exact(x, weights, 1, 1)
    assert_near(gs.conv1d(x[0], matrix, padding=1), y[0], bound[0])
    assert gs.conv1d(x[:0], matrix).shape == (0, 8, 28)
    empty, _ = conv_matrix(Irregular(), (8, 5, 3), density=0)
    assert_near(gs.conv1d(x, empty, np.ones(8, np.float32)), np.ones((1, 8, 28)), 0.0)


def test_the_size_of_the_kernel():
    """From the matrix, from the argument, or 1 x 1 where that is all it can be."""
    weights = sparse_weights(16, 8, 2, 3)
    x = normal(1, 8, 9, 9)
    y, bound = exact(x, weights.astype(np.float64))
    known = gs.encode(weights, Irregular())
    assert known.kernel_shape == (16, 8, 2, 3)
    plain = gs.encode(gs.as_matrix(weights), Irregular())
    assert_near(gs.conv2d(x, known), y, bound)
    assert_near(gs.conv2d(x, plain, kernel_size=(2, 3)), y, bound)
    single = gs.encode(sparse_weights(16, 8), Irregular())
    assert gs.conv2d(x, single).shape == (1, 16, 9, 9)
    with pytest.raises(ValueError, match="does not say the size of its kernel for 8 channels"):
        gs.conv2d(x, plain)
    with pytest.raises(ValueError, match=r"kernel_size must be \(2, 3\), that of the matrix"):
        gs.conv2d(x, known, kernel_size=(3, 2))
    with pytest.raises(ValueError, match="1-dimensional convolution"):
        gs.conv1d(x[0], known)


# ------------------------------------------------------- padded batches


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(11, 1, 5, 1), (11, 2, 5, 1), (5, 1, 4, 2), (1, 3, 0, 1)],
)
def test_lengths(kernel, stride, padding, dilation, backend):
    """Each sequence gives what it gives alone; what lies beyond is neither read as a number nor left unwritten."""
    matrix, weights = conv_matrix(Irregular(), (40, 12, kernel))
    lengths = np.array([50, 0, 83, 17, 1])
    how = stride, padding, dilation
    x, bias = normal(5, 12, 83), normal(40)
    results = gs.conv1d_lengths(lengths, kernel, *how)
    expected = []
    for sequence, length in zip(x, lengths, strict=True):
        zeroed = sequence[None].copy()
        zeroed[..., length:] = 0
        expected.append(exact(zeroed, weights, *how))
    for i, length in enumerate(lengths):
        x[i, :, length:] = np.nan
    y_shape = (5, 40, expected[0][0].shape[-1])
    residual = normal(*y_shape)
    for memory in (np.ascontiguousarray, channels_last):
        with gs.use_backend(backend):
            out = memory(np.full(y_shape, np.nan, np.float32))
            gs.conv1d(memory(x), matrix, bias, *how, lengths=lengths, residual=residual, out=out)
        for i, (y, bound) in enumerate(expected):
            end = results[i]
            added = bias[:, None].astype(np.float64) + residual[i, :, :end]
            assert_near(out[i, :, :end], y[0, :, :end], bound[0, :, :end], added)
            assert (out[i, :, end:] == 0).all()


def test_lengths_of_results_are_those_of_torch():
    for kernel, stride, padding, dilation in itertools.product(
        (1, 2, 5), (1, 2, 3), (0, 1, 4), (1, 2)
    ):
        covered = dilation * (kernel - 1) + 1
        for n in range(12):
            if n + 2 * padding < covered:
                expected = 0
            else:
                y = (
                    TORCH[1](
                        torch.zeros(1, 1, n),
                        torch.zeros(1, 1, kernel),
                        None,
                        stride,
                        padding,
                        dilation,
                    )
                    if n
                    else None
                )
                expected = (2 * padding - covered) // stride + 1 if y is None else y.shape[-1]
            assert gs.conv1d_lengths([n], kernel, stride, padding, dilation) == [expected]


# ------------------------------------------------------------------- errors

X = normal(2, 4, 10, 10)
MATRIX, _ = conv_matrix(Irregular(), (6, 4, 3, 3))
LINE, _ = conv_matrix(Irregular(), (6, 4, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": X[:, :3]}, ValueError, "4 channels .* got 3"),
        ({"input": X[0, 0]}, ValueError, "4 dimensions, or 3 without a batch"),
        ({"input": X.astype(np.float64)}, TypeError, "input must have dtype float32"),
        ({"input": X[:, :, :2]}, ValueError, r"covers \(3, 3\), but the input with its padding has \(2, 10\)"),
        ({"dilation": 5}, ValueError, r"covers \(11, 11\)"),
        ({"stride": 0}, ValueError, "stride must be an integer or two, from 1 to .* got 0"),
        ({"stride": (1, 2, 3)}, ValueError, "stride must be"),
        ({"stride": 1.5}, TypeError, "stride must be"),
        ({"dilation": (1, 0)}, ValueError, "dilation must be"),
        ({"dilation": 2**62, "padding": 2**62}, ValueError, "dilation must be"),
        ({"stride": 2**70}, ValueError, "stride must be"),
        ({"padding": 2**31}, ValueError, "padding must be"),
        ({"padding": -1}, ValueError, "padding must be"),
        ({"padding": "full"}, ValueError, '"valid" or "same"'),
        ({"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
        ({"groups": 2}, ValueError, "groups must be 1, got 2"),
        ({"kernel_size": 2}, ValueError, "that of the matrix"),
        ({"bias": np.zeros(5, np.float32)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        ({"bias": np.zeros(6)}, TypeError, "bias must have dtype float32"),
        ({"activation": "swish"}, ValueError, "activation must be one of"),
        ({"residual": X}, ValueError, r"residual must have shape \(2, 6, 8, 8\), got \(2, 4, 10, 10\)"),
        ({"residual": np.zeros((2, 6, 8, 8))}, TypeError, "residual must have dtype float32"),
        ({"out": np.zeros((2, 6, 8, 9), np.float32)}, ValueError, r"shape \(2, 6, 8, 8\), got"),
        ({"out": np.zeros((2, 6, 8, 8))}, ValueError, "out must be an array of float32"),
        ({"out": np.zeros((2, 6, 8, 16), np.float32)[..., ::2]}, ValueError, "out must be C-contiguous or"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        gs.conv2d(**{"input": X, "weight": MATRIX, **arguments})


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([10], r"lengths must be whole numbers of shape \(2,\)"),
        ([10.0, 3.0], "whole numbers"),
        ([11, 3], "lengths must be from 0 to 10, got 3 to 11"),
        ([-1, 3], "lengths must be from 0 to 10"),
    ],
)
def test_wrong_lengths(lengths, message):
    with pytest.raises(ValueError, match=message):
        gs.conv1d(X[:, :, 0], LINE, lengths=lengths)


def test_wrong_arguments_of_lengths():
    for arguments, error, message in [
        (([1.5], 3), TypeError, "lengths must be whole numbers"),
        (([5], 3, 0), ValueError, "stride must be an integer, from 1"),
        (([5], 0), ValueError, "kernel_size must be"),
        (([5], 3, 1, -1), ValueError, "padding must be"),
    ]:
        with pytest.raises(error, match=message):
            gs.conv1d_lengths(*arguments)


def test_out_must_be_apart_and_writeable():
    memory = np.zeros(2 * 4 * 100 + 2 * 6 * 64, np.float32)
    x = memory[:800].reshape(2, 4, 10, 10)
    with pytest.raises(ValueError, match="out must not share memory"):
        gs.conv2d(x, MATRIX, out=memory[400:1168].reshape(2, 6, 8, 8))
    out = memory[800:1568].reshape(2, 6, 8, 8)
    with pytest.raises(ValueError, match="out must not share memory"):
        gs.conv2d(x, MATRIX, residual=out, out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        gs.conv2d(x, MATRIX, out=out)
