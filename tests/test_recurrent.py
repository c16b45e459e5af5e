"""LSTM and GRU on every backend, against a float64 oracle in NumPy that carries a bound of the error along.

A sum of so many terms is held to 2 * (terms + 2) * eps * sum |w| |x|, as in test_plans.py, plus what the error of the
state makes of it; sigmoid is no steeper than 1/4 and tanh than 1, and each rounds by 2 eps. The oracle itself is held
to torch's layers in float64.
"""

import itertools
import threading

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

import gspattern as gs
from sample_matrices import rounded

BACKENDS = gs.backends()
# Around the lanes of every register.
SIZES = [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65]
PATTERNS = ["gs(cpu)", "gs(4,4)", "gs(4,1)", "gs(4,1)+scatter", "gs(4,2)", "irregular", "block(1,4)",
            "block(4,1)", "block(4,16)", "2:4"]  # fmt: skip
rng = np.random.default_rng(5)


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


# -------------------------------------------------------------------- oracle


def sums(weight, x, error, eps):
    """W x, and how far a kernel's sum may be from it if x is off by `error`."""
    terms = (weight != 0).sum(axis=1).max(initial=0)
    size = np.abs(weight)
    return weight @ x, 2 * (terms + 2) * eps * (size @ np.abs(x)) + size @ error


def plus(a, b, eps):
    """The sum of two values that are off."""
    return a[0] + b[0], a[1] + b[1] + eps * np.abs(a[0] + b[0])


def times(a, b, eps):
    off = np.abs(a[0]) * b[1] + np.abs(b[0]) * a[1] + a[1] * b[1]
    return a[0] * b[0], off + eps * np.abs(a[0] * b[0])


def sigmoid(a, eps):
    return scipy.special.expit(a[0]), a[1] / 4 + 2 * eps


def tanh(a, eps):
    return np.tanh(a[0]), a[1] + 2 * eps


def off_by_rounding(x):
    """x and a bound of its error, rounded to 8 bits of its range: by half a step of what is there."""
    low, high = min(0, (x[0] - x[1]).min()), max(0, (x[0] + x[1]).max())
    return x[0], x[1] + (high - low) / 255 * (0.5 + 1e-4)


def step(kind, weights, x, h, c, eps, operand=None):
    """One step of one sample, in pairs of value and bound; weights are float64."""
    w_ih, w_hh, b_ih, b_hh = weights
    before = h
    if operand == "int8":
        x, h = off_by_rounding(x), off_by_rounding(h)
    a, b = sums(w_ih, *x, eps), sums(w_hh, *h, eps)
    return step_of_sums(kind, a, b, (b_ih, b_hh), before, c, eps)


def step_of_sums(kind, a, b, biases, h, c, eps):
    """The same from W_ih x and W_hh h."""
    a, b = (
        plus(part, (bias, 2 * eps * np.abs(bias)), 2 * eps)
        for part, bias in zip((a, b), biases, strict=True)
    )
    count = 4 if kind == "LSTM" else 3
    a, b = (list(zip(*(np.split(part, count) for part in pair), strict=True)) for pair in (a, b))
    if kind == "LSTM":
        i, f, g, o = (plus(p, q, eps) for p, q in zip(a, b, strict=True))
        i, f, o = (sigmoid(gate, eps) for gate in (i, f, o))
        c = plus(times(f, c, eps), times(i, tanh(g, eps), eps), eps)
        return times(o, tanh(c, eps), eps), c
    r, z = (sigmoid(plus(a[k], b[k], eps), eps) for k in (0, 1))
    n = tanh(plus(a[2], times(r, b[2], eps), eps), eps)
    away = plus(h, (-n[0], n[1]), eps)
    return plus(n, times(z, away, eps), eps), c


def oracle(kind, weights, x, h0, c0, lengths=None, directions=1, eps=2.0**-23, operand=None):
    """y, h_n and c_n of time-major sequences, each a pair of values and bounds.

    weights[layer * directions + direction] is (w_ih, w_hh, b_ih, b_hh).
    """
    steps, batch, _ = x.shape
    lengths = np.full(batch, steps) if lengths is None else lengths
    hidden = weights[0][1].shape[1]
    below = x.astype(np.float64), np.zeros(x.shape)
    h_n, c_n = (np.zeros((2, len(weights), batch, hidden)) for _ in range(2))
    for layer in range(len(weights) // directions):
        y = np.zeros((2, steps, batch, directions * hidden))
        for way, s in itertools.product(range(directions), range(batch)):
            k = layer * directions + way
            h, c = ((a[k, s].astype(np.float64), np.zeros(hidden)) for a in (h0, c0))
            order = range(lengths[s])
            for t in reversed(order) if way else order:
                h, c = step(kind, weights[k], (below[0][t, s], below[1][t, s]), h, c, eps, operand)
                y[:, t, s, way * hidden : (way + 1) * hidden] = h
            h_n[:, k, s], c_n[:, k, s] = h, c
        below = y
    return below, h_n, c_n


def assert_within(got, exact, most=1e-3):
    assert got.shape == exact[0].shape
    assert np.median(exact[1]) < most, "a bound that says nothing"
    worst = np.abs(got - exact[0]) - exact[1]
    assert (worst <= 0).all(), f"off by {worst.max()} beyond the bound"


# --------------------------------------------------------------------- cases


def matrix(rows, cols, pattern="irregular", sparsity=0.6, scale=0.25, dtype=np.float32):
    weight = (rng.normal(size=(rows, cols)) * scale / np.sqrt(cols)).astype(np.float32)
    if pattern == "block(4,16)":
        mask = np.ones(weight.shape, bool)
        return gs.encode(weight.astype(dtype), pattern, mask=mask)
    sparsity = None if ":" in pattern else sparsity
    s = gs.choose_mask(np.abs(weight), pattern, sparsity)
    return gs.encode(weight.astype(dtype), pattern, mask=s.mask, row_order=s.row_order)


class Case:
    """A stack of layers with its parameters here and as the oracle wants them."""

    def __init__(
        self, kind, features, hidden, layers=1, directions=1, bias=True, dtype="float32", **how
    ):
        rows = (4 if kind == "LSTM" else 3) * hidden
        wide = np.float64 if dtype == "float64" else np.float32
        self.kind, self.directions, self.eps = kind, directions, np.finfo(wide).eps
        self.hidden, self.params, self.weights = hidden, [], []
        for i in range(layers * directions):
            cols = features if i < directions else directions * hidden
            own = [matrix(rows, cols, dtype=wide, **how), matrix(rows, hidden, dtype=wide, **how)]
            own = [m.quantize() if dtype == "int8" else m.astype(dtype) for m in own]
            biases = [normal(rows, dtype=wide) for _ in range(2)] if bias else []
            self.params += own + biases
            zero = np.zeros(rows)
            dense = [m.astype("float64").to_dense() for m in own]
            self.weights.append((*dense, *(biases or [zero, zero])))
        self.function = gs.lstm if kind == "LSTM" else gs.gru

    def run(self, x, state, **options):
        hx = state if self.kind == "LSTM" or state is None else state[0]
        y, last = self.function(x, self.params, hx, bidirectional=self.directions == 2, **options)
        return (y, *last) if self.kind == "LSTM" else (y, last)

    def states(self, batch, dtype=np.float32):
        shape = len(self.weights), batch, self.hidden
        return normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)

    def check(self, x, state=None, lengths=None, **options):
        """Run x [steps, batch, features] and compare all that comes back."""
        given = self.states(x.shape[1], x.dtype) if state is None else state
        if lengths is not None:
            options["lengths"] = lengths
        got = self.run(x, given, **options)
        if options.get("batch_first"):
            raise AssertionError("give time-major x")
        exact = oracle(self.kind, self.weights, x, *given, lengths, self.directions, self.eps)
        for a, b in zip(got, exact, strict=False):
            assert_within(a, b)
        return got


KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU"])
EVERYWHERE = pytest.mark.parametrize("backend", BACKENDS)


@KINDS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_oracle_is_torch(kind, bidirectional):
    torch.manual_seed(3)
    module = getattr(nn, kind)(7, 5, 2, bidirectional=bidirectional).double()
    flat = [p.detach().numpy() for p in module._flat_weights]
    weights = [tuple(flat[i : i + 4]) for i in range(0, len(flat), 4)]
    x = normal(4, 3, 7, dtype=np.float64)
    h, c = (normal(len(weights), 3, 5, dtype=np.float64) for _ in range(2))
    lengths = np.array([2, 4, 3])
    y, h_n, c_n = oracle(kind, weights, x, h, c, lengths, 1 + bidirectional)
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
    )
    hx = (torch.from_numpy(h), torch.from_numpy(c)) if kind == "LSTM" else torch.from_numpy(h)
    with torch.no_grad():
        out, state = module(packed, hx)
    out, _ = nn.utils.rnn.pad_packed_sequence(out)
    state = state if kind == "LSTM" else (state,)
    for a, b in zip((y, h_n, c_n), (out, *state), strict=False):
        np.testing.assert_allclose(a[0], b.numpy(), rtol=1e-12, atol=1e-12)


@KINDS
@EVERYWHERE
def test_layers_directions_and_lengths(kind, backend):
    with gs.use_backend(backend):
        for layers, directions, bias in itertools.product((1, 2, 3), (1, 2), (True, False)):
            case = Case(kind, 19, 13, layers, directions, bias)
            for steps, batch in ((1, 1), (5, 2), (3, 11)):
                x = normal(steps, batch, 19)
                case.check(x)
                case.check(x, lengths=rng.integers(1, steps + 1, batch))


@KINDS
@EVERYWHERE
def test_sizes_at_lane_edges(kind, backend):
    with gs.use_backend(backend):
        for i, hidden in enumerate(SIZES):
            case = Case(kind, SIZES[(5 * i + 2) % len(SIZES)], hidden)
            features = case.params[0].shape[1]
            for batch in (1, 17):
                case.check(normal(2, batch, features))


@KINDS
@EVERYWHERE
def test_every_batch(kind, backend):
    case = Case(kind, 12, 20)
    with gs.use_backend(backend):
        for batch in range(1, 41):
            case.check(normal(2, batch, 12))
        case.check(normal(3, 70, 12), lengths=rng.integers(1, 4, 70))


@KINDS
@EVERYWHERE
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(kind, pattern, backend):
    case = Case(kind, 36, 24, pattern=pattern)
    with gs.use_backend(backend):
        for steps, batch in ((3, 1), (2, 6), (2, 18)):
            case.check(normal(steps, batch, 36))


@KINDS
@EVERYWHERE
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8"])
def test_dtypes(kind, dtype, backend):
    case = Case(kind, 20, 17, 2, 2, dtype=dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    with gs.use_backend(backend):
        for batch in (1, 12):
            options = {"operand": "float32"} if dtype == "int8" else {}
            x, lengths = normal(3, batch, 20, dtype=wide), np.arange(batch) % 3 + 1
            got = case.check(x, lengths=lengths, **options)
            assert all(array.dtype == wide for array in got)


def whole_numbers(matrix):
    """Values of an int8 matrix [M, K], and their scales."""
    scales = matrix.scales.astype(np.float64)[:, None]
    return np.rint(matrix.astype("float64").to_dense() / scales).astype(np.int64), matrix.scales


def product_of_whole_numbers(matrix, x):
    """W x as an int8 matrix defines it: a sum of integers, scaled in float32."""
    values, scales = whole_numbers(matrix)
    numbers, scale = rounded(x)
    return ((values @ numbers).astype(np.float32) * scale * scales).astype(np.float64)


@KINDS
@EVERYWHERE
def test_int8_products_are_sums_of_integers(kind, backend):
    """At every step of both directions the products are those of integers with x and the h of the step before, which
    is in the output: only the gates are float. A whole number that were off by one would be beyond the bound."""
    case = Case(kind, 20, 17, 1, 2, dtype="int8", scale=3)
    eps = 2.0**-23
    for steps, batch in ((1, 1), (4, 3), (2, 18)):
        x, (h0, c0) = normal(steps, batch, 20), case.states(batch)
        with gs.use_backend(backend):
            y, h_n, *_ = case.run(x, (h0, c0))
        for way, s in itertools.product((0, 1), range(batch)):
            w_ih, w_hh, b_ih, b_hh = case.params[4 * way : 4 * way + 4]
            h, c = h0[way, s], (c0[way, s].astype(np.float64), np.zeros(17))
            for t in reversed(range(steps)) if way else range(steps):
                a, b = product_of_whole_numbers(w_ih, x[t, s]), product_of_whole_numbers(w_hh, h)
                off = 2 * eps * (np.abs(a) + np.abs(b))
                exact, c = step_of_sums(
                    kind, (a, off), (b, off), (b_ih, b_hh), (h.astype(np.float64), 0), c, eps
                )
                got = y[t, s, 17 * way : 17 * way + 17]
                assert_within(got, exact, 2e-5)
                h = got
            np.testing.assert_array_equal(h_n[way, s], h)


@KINDS
@EVERYWHERE
def test_int8_states_are_rounded_sample_by_sample(kind, backend):
    """So no sample depends on those beside it, a stack is its layers one after the other, and scalar kernels differ by
    the rounding of gates alone."""
    case = Case(kind, 19, 13, 2, dtype="int8")
    x, state = normal(5, 20, 19), case.states(20)
    lengths = rng.integers(1, 6, 20)
    with gs.use_backend(backend):
        y, *last = case.run(x, state, lengths=lengths)
        for s in range(0, 20, 7):
            alone = case.run(x[: lengths[s], s], [part[:, s] for part in state])
            np.testing.assert_array_equal(y[: lengths[s], s], alone[0])
            for a, b in zip(last, alone[1:], strict=True):
                np.testing.assert_array_equal(a[:, s], b)
        whole = case.run(x, state, operand="int8")
        below = x
        for layer in range(2):
            own = [part[layer : layer + 1] for part in state]
            hx = own if kind == "LSTM" else own[0]
            below = case.function(below, case.params[4 * layer : 4 * layer + 4], hx)[0]
        np.testing.assert_array_equal(whole[0], below)


@KINDS
@EVERYWHERE
def test_int8_is_near_float32(kind, backend):
    """Within what half a step of x and of h at each step makes of it."""
    case = Case(kind, 20, 17, 2, 2, dtype="int8", scale=0.1)
    x, state = normal(4, 9, 20), case.states(9)
    with gs.use_backend(backend):
        got = case.run(x, state)
    exact = oracle(kind, case.weights, x, *state, None, 2, case.eps, "int8")
    for a, b in zip(got, exact, strict=False):
        assert_within(a, b, 0.05)
        assert np.abs(a - b[0]).max() > 1e-5, "nothing was rounded"


@KINDS
@EVERYWHERE
def test_long_sequences_are_cut_into_runs(kind, backend):
    """More samples than the sums of one run, in both directions, and runs that end between steps.

    Weights are small, so that the bound does not grow from step to step.
    """
    case = Case(kind, 9, 10, 1, 2, scale=0.05)
    with gs.use_backend(backend):
        case.check(normal(150, 1, 9))
        case.check(normal(20, 7, 9), lengths=rng.integers(1, 21, 7))
        case.check(normal(9, 30, 9), lengths=rng.integers(1, 10, 30))


# -------------------------------------------------------------- ways to call


@KINDS
def test_layouts(kind):
    """batch_first, one sequence, no state, and packed sequences give the same bits."""
    case = Case(kind, 19, 13, 2, 2)
    x, state = normal(6, 4, 19), case.states(4)
    y, *last = case.check(x, state)
    for given in (np.ascontiguousarray(x.swapaxes(0, 1)), x.swapaxes(0, 1)):
        swapped, *same = case.run(given, state, batch_first=True)
        np.testing.assert_array_equal(swapped.swapaxes(0, 1), y)
        for a, b in zip(same, last, strict=True):
            np.testing.assert_array_equal(a, b)
    one = [part[:, 1] for part in state]
    alone = case.run(x[:, 1], one)
    assert_within(alone[0], (y[:, 1].astype(np.float64), np.full(y[:, 1].shape, 1e-5)))
    assert alone[1].shape == (4, 13)
    zeros = [np.zeros_like(part) for part in state]
    for a, b in zip(case.run(x, None), case.run(x, zeros), strict=True):
        np.testing.assert_array_equal(a, b)

    lengths = np.array([6, 5, 2, 2])
    padded = case.run(x, state, lengths=lengths)
    sizes = (np.arange(6)[:, None] < lengths).sum(axis=1)
    there = np.arange(6)[:, None] < lengths
    packed = case.run(x[there], state, batch_sizes=sizes)
    np.testing.assert_array_equal(packed[0], padded[0][there])
    assert not padded[0][~there].any()
    for a, b in zip(packed[1:], padded[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    # What lies behind the end of a sequence is not read.
    spoilt = np.where(there[:, :, None], x, np.nan).astype(np.float32)
    np.testing.assert_array_equal(case.run(spoilt, state, lengths=lengths)[0], padded[0])


@EVERYWHERE
def test_cells(backend):
    with gs.use_backend(backend):
        for kind, cell in (("LSTM", gs.lstm_cell), ("GRU", gs.gru_cell)):
            case = Case(kind, 19, 21)
            for shape in ((), (1,), (5,), (20,)):
                x, h, c = normal(*shape, 19), normal(*shape, 21), normal(*shape, 21)
                hx = (h, c) if kind == "LSTM" else h
                got = cell(x, hx, *case.params)
                got = got if kind == "LSTM" else (got,)
                rows = x.reshape(1, -1, 19)
                states = [a.reshape(1, -1, 21) for a in (h, c)]
                _, *exact = oracle(kind, case.weights, rows, *states)
                for a, b in zip(got, exact, strict=False):
                    assert a.shape == (*shape, 21)
                    assert_within(a.reshape(1, -1, 21), b)
            first = cell(x, None, *case.params[:2])
            zero = np.zeros_like(h)
            hx = (zero, zero) if kind == "LSTM" else zero
            np.testing.assert_array_equal(first, cell(x, hx, *case.params[:2]))


@KINDS
@EVERYWHERE
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_results_do_not_depend_on_threads(kind, backend, dtype):
    """Large enough that products and gates are shared, and called by several at once."""
    case = Case(kind, 256, 256, 1, 2, sparsity=0.5, dtype=dtype)
    steps = 20 if dtype == "float32" else 5
    cases = [(normal(steps, batch, 256), case.states(batch)) for batch in (1, 5, 40)]
    before = gs.get_num_threads()
    with gs.use_backend(backend):
        try:
            one = [case.run(*args) for args in cases]
            for threads in (2, 7):
                gs.set_num_threads(threads)
                for args, expected in zip(cases, one, strict=True):
                    for _ in range(3):
                        for a, b in zip(case.run(*args), expected, strict=True):
                            np.testing.assert_array_equal(a, b)
        finally:
            gs.set_num_threads(before)


@KINDS
@EVERYWHERE
def test_no_features_on_threads(kind, backend):
    """Nothing to turn before the product, by threads that turn x together."""
    case = Case(kind, 0, 256, sparsity=0.5)
    before = gs.get_num_threads()
    gs.set_num_threads(2)
    try:
        with gs.use_backend(backend):
            case.check(normal(1, 64, 0))
    finally:
        gs.set_num_threads(before)


@KINDS
def test_empty_batch(kind):
    case = Case(kind, 19, 12, 2, 2)
    for options in ({}, {"lengths": np.zeros(0, int)}):
        y, *last = case.run(normal(3, 0, 19), case.states(0), **options)
        assert y.shape == (3, 0, 24)
        assert all(state.shape == (4, 0, 12) for state in last)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_batch_sizes_of_any_whole_dtype(dtype):
    case = Case("GRU", 19, 12)
    x, state, sizes = normal(6, 19), case.states(3), [3, 2, 1]
    expected = case.run(x, state, batch_sizes=sizes)
    got = case.run(x, state, batch_sizes=np.array(sizes, dtype))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_python_threads_at_once():
    case = Case("LSTM", 64, 64, 2)
    x, state = normal(10, 12, 64), case.states(12)
    expected = case.run(x, state)[0]
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(case.run(x, state)[0], expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@KINDS
@EVERYWHERE
def test_large_and_invalid_numbers(kind, backend):
    """Gates saturate without a NaN of their own, and a NaN stays in its sequence."""
    case = Case(kind, 16, 16)
    with gs.use_backend(backend):
        for batch in (3, 20):
            x = normal(4, batch, 16)
            for size in (1e4, 1e30):
                y = case.run(x * np.float32(size), None)[0]
                assert np.abs(y).max() <= 1
            clean = case.run(x, None)[0]
            x[1, 1] = np.nan
            y = case.run(x, None)[0]
            others = np.arange(batch) != 1
            np.testing.assert_array_equal(y[:, others], clean[:, others])
            np.testing.assert_array_equal(y[0], clean[0])
            assert np.isnan(y[1:, 1]).all()


# -------------------------------------------------------------------- errors


def test_wrong_weights_are_errors():
    x = normal(2, 3, 19)
    w_ih, w_hh, b_ih, b_hh = Case("LSTM", 19, 12).params
    for params, message in [
        ([], "params must hold weight_ih, weight_hh for every layer, got 0"),
        ([w_ih, w_hh, b_ih], "params must hold weight_ih, weight_hh, bias_ih, bias_hh for every layer, got 3"),
        ([w_ih, w_ih], r"weight_ih_l0 must have shape \[76, any\], got \[48, 19\]"),
        ([w_hh, w_hh, w_ih, w_hh], r"weight_ih_l1 must have shape \[48, 12\], got \[48, 19\]"),
        ([w_ih, w_hh, b_ih[:-1], b_hh], r"bias_ih_l0 must have shape \[48\], got \[47\]"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gs.lstm(x, params)
    with pytest.raises(ValueError, match="in both directions, got 4"):
        gs.lstm(x, [w_ih, w_hh, b_ih, b_hh], bidirectional=True)
    with pytest.raises(
        ValueError, match=r"weight_ih_l0 must have shape \[36, any\], got \[48, 19\]"
    ):
        gs.gru(x, [w_ih, w_hh])
    with pytest.raises(
        TypeError, match=r"weight_ih_l0 must be a Matrix, got ndarray; encode\(w, 'block"
    ):
        gs.lstm(x, [w_ih.to_dense(), w_hh, b_ih, b_hh])
    with pytest.raises(TypeError, match="weight_hh_l0 must be a Matrix, got NoneType"):
        gs.lstm(x, [w_ih, None])
    with pytest.raises(
        TypeError, match="float64 matrices must be among themselves, weight_ih_l0 is float64"
    ):
        gs.lstm(x, [w_ih.astype("float64"), w_hh])
    for operand in ("int8", "float64"):
        with pytest.raises(TypeError, match=f"of float32 is not multiplied with x in {operand}"):
            gs.lstm(x, [w_ih, w_hh], operand=operand)
    with pytest.raises(TypeError, match="not rounded to bfloat16: operand may be float32 or int8"):
        gs.lstm(x, [w_ih.astype("bfloat16"), w_hh.astype("bfloat16")], operand="bfloat16")
    with pytest.raises(TypeError, match="bias_hh_l0 must have dtype float32"):
        gs.lstm(x, [w_ih, w_hh, b_ih, b_hh.astype(np.float64)])
    # What the hint says, works.
    dense = np.ascontiguousarray(w_ih.to_dense())
    whole = gs.encode(dense, "block(4,16)", mask=np.ones(dense.shape, bool))
    got, same = gs.lstm(x, [whole, w_hh])[0], gs.lstm(x, [w_ih, w_hh])[0]
    assert np.abs(got - same).max() < 1e-5


def test_wrong_inputs_are_errors():
    case = Case("LSTM", 19, 12)
    x, (h, c) = normal(2, 3, 19), case.states(3)
    for given, options, message in [
        (normal(2, 3, 18), {}, r"x must have shape \[steps, batch, 19\], got \[2, 3, 18\]"),
        (normal(19), {"batch_first": True}, r"x must have shape \[batch, steps, 19\]"),
        (x, {"batch_sizes": [3, 3]}, r"x must have shape \[samples, 19\]"),
        (x[:, 0], {"lengths": [2]}, r"x must have shape \[steps, batch, 19\]"),
        (x[:0], {}, "at least one step"),
        (x, {"hx": (h[:, :2], c)}, r"h_0 must have shape \[1, 3, 12\], got \[1, 2, 12\]"),
        (x, {"hx": (h, c[0])}, r"c_0 must have shape \[1, 3, 12\], got \[3, 12\]"),
        (x, {"lengths": [1, 2]}, "lengths must be 3 whole numbers"),
        (x, {"lengths": [1.0, 2.0, 2.0]}, "lengths must be 3 whole numbers"),
        (x, {"lengths": [1, 3, 2]}, "lengths must be from 1 to 2, got 1 to 3"),
        (x, {"lengths": [0, 1, 2]}, "lengths must be from 1 to 2, got 0 to 2"),
        (x[0], {"batch_sizes": [1, 2]}, "never rise"),
        (x[0], {"batch_sizes": [2, 1, 0]}, "must be positive"),
        (x[0], {"batch_sizes": [2, 2]}, "must sum to the 3 rows of x, got 4"),
        (x[0], {"batch_sizes": []}, "one for each step"),
    ]:
        with pytest.raises(ValueError, match=message):
            gs.lstm(given, case.params, **options)
    with pytest.raises(ValueError, match="not both"):
        gs.lstm(x[0], case.params, lengths=[1], batch_sizes=[3])
    for hx in (h, (h,), (h, c, c)):
        with pytest.raises(TypeError, match=r"hx must be a pair \(h_0, c_0\)"):
            gs.lstm(x, case.params, hx)
    with pytest.raises(TypeError, match="x must have dtype float32"):
        gs.lstm(x.astype(np.float64), case.params)
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 19\] or \[19\]"):
        gs.lstm_cell(x, None, *case.params)
    with pytest.raises(ValueError, match=r"hx must have shape \[3, 12\]"):
        gs.gru_cell(x[0], h, *Case("GRU", 19, 12).params)
