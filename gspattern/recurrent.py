"""LSTM and GRU with compact weights: whole sequences, and single steps.

Gates, weights and biases are those of `torch.nn.LSTM` and `torch.nn.GRU`: for every layer and direction a matrix for
the input and one for the state, each of 4 H (3 H) rows, gate after gate in the order i f g o (r z n), and a bias for
each. The C core runs all steps of a call; `csrc/kernels/gsp_recurrent.c` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern.masks import _as_array
from gspattern.matrices import Matrix
from gspattern.plans import _BFLOAT16, _dtype_of, _operand, plan_for_samples

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell"]

Array = npt.NDArray[Any]
Params = Sequence["Matrix | npt.ArrayLike | None"]
State = tuple[npt.ArrayLike, npt.ArrayLike]


class Cell(NamedTuple):
    number: int  # of gsp_cell
    gates: int


LSTM = Cell(0, 4)
GRU = Cell(1, 3)

# As many samples, at most, have the sums of their inputs computed at once: see RUN_SAMPLES.
_RUN_SAMPLES = 64


# ------------------------------------------------------------------- weights


class Weights(NamedTuple):
    """Weights of all layers and directions, checked: two matrices and two biases for each."""

    matrices: tuple[Matrix, ...]
    biases: tuple[Array | None, ...]
    directions: int
    features: int
    hidden: int
    dtype: np.dtype[Any]


def parameter_name(kind: str, index: int, directions: int) -> str:
    """What torch calls this parameter."""
    return f"{kind}_l{index // directions}" + ("_reverse" if index % directions else "")


def _check_matrix(matrix: object, name: str, shape: tuple[int | None, int | None]) -> Matrix:
    if not isinstance(matrix, Matrix):
        hint = ""
        if isinstance(matrix, np.ndarray) and matrix.ndim == 2:
            hint = "; encode(w, 'block(4,16)', mask=numpy.ones(w.shape, bool)) keeps all of a dense one"
        raise TypeError(f"{name} must be a Matrix, got {type(matrix).__name__}{hint}")
    got = matrix.shape
    if got != shape and any(shape[i] not in (None, got[i]) for i in (0, 1)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{expected}], got {list(matrix.shape)}")
    return matrix


def check_params(params: Params, cell: Cell, directions: int) -> Weights:
    """Check the parameters of a stack of layers, in torch's order, and tell what they are for."""
    params = list(params)
    biased = len(params) > 2 and not isinstance(params[2], Matrix) and np.ndim(params[2]) < 2  # type: ignore[arg-type]
    each = 4 if biased else 2
    if not params or len(params) % (each * directions):
        raise ValueError(
            f"params must hold weight_ih, weight_hh{', bias_ih, bias_hh' if biased else ''} for every layer"
            f"{' in both directions' if directions == 2 else ''}, got {len(params)} of them"
        )
    matrices: list[Matrix] = []
    biases: list[Array | None] = []
    hidden = features = 0
    for i in range(len(params) // each):
        own = params[i * each : (i + 1) * each]
        if i == 0:
            state = _check_matrix(own[1], parameter_name("weight_hh", i, directions), (None, None))
            hidden = state.shape[1]
        rows, cols = cell.gates * hidden, None
        if i > 0:
            cols = features if i < directions else directions * hidden
        dtype = _dtype_of(state)
        for matrix, kind, width in zip(
            own, ("weight_ih", "weight_hh"), (cols, hidden), strict=False
        ):
            name = parameter_name(kind, i, directions)
            checked = _check_matrix(matrix, name, (rows, width))
            if _dtype_of(checked) != dtype:
                raise TypeError(
                    f"float64 matrices must be among themselves, {name} is {checked.dtype}"
                )
            matrices.append(checked)
        features = matrices[0].shape[1]
        for j, kind in enumerate(("bias_ih", "bias_hh"), 2):
            bias = own[j] if biased else None
            if bias is None:
                biases.append(None)
                continue
            if isinstance(bias, np.ndarray) and bias.dtype is dtype and bias.flags.carray:
                array = bias  # as most are: kept short
            else:
                name = parameter_name(kind, i, directions)
                array = np.ascontiguousarray(_operand(bias, dtype, name))
            if array.shape != (rows,):
                name = parameter_name(kind, i, directions)
                raise ValueError(f"{name} must have shape [{rows}], got {list(array.shape)}")
            biases.append(array)
    return Weights(tuple(matrices), tuple(biases), directions, features, hidden, dtype)


# ----------------------------------------------------------------- sequences


class _Packing(NamedTuple):
    """Sequences of unlike length as a packed one: place p of it is step[p] of sequence[p]."""

    batch_sizes: npt.NDArray[np.int64]
    order: npt.NDArray[np.intp]  # longest first
    step: npt.NDArray[np.intp]
    sequence: npt.NDArray[np.intp]


def _pack(lengths: npt.ArrayLike, steps: int, batch: int) -> _Packing:
    given = _as_array(lengths, "lengths")
    if given.shape != (batch,) or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"lengths must be {batch} whole numbers, one for each sequence, got {given.dtype} "
            f"of shape {list(given.shape)}"
        )
    if batch and not (given.min() >= 1 and given.max() <= steps):
        raise ValueError(f"lengths must be from 1 to {steps}, got {given.min()} to {given.max()}")
    order = np.argsort(-given.astype(np.int64), kind="stable")
    there = np.arange(steps)[:, None] < given[order]
    step, place = np.nonzero(there)
    sizes = there.sum(axis=1)
    return _Packing(sizes[sizes > 0], order, step, order[place])


def _check_batch_sizes(batch_sizes: npt.ArrayLike, samples: int) -> npt.NDArray[np.int64]:
    sizes = _as_array(batch_sizes, "batch_sizes")
    if sizes.ndim != 1 or not sizes.size or not np.issubdtype(sizes.dtype, np.integer):
        raise ValueError(
            f"batch_sizes must be whole numbers, one for each step, got {sizes.dtype} of shape {list(sizes.shape)}"
        )
    if sizes.min() < 1 or (sizes[1:] > sizes[:-1]).any():
        raise ValueError(
            "batch_sizes must be positive and never rise: sort sequences, longest first"
        )
    if sizes.sum() != samples:
        raise ValueError(f"batch_sizes must sum to the {samples} rows of x, got {sizes.sum()}")
    return np.ascontiguousarray(sizes, np.int64)


def _state(state: npt.ArrayLike, name: str, weights: Weights, shape: tuple[int, ...]) -> Array:
    array = _operand(state, weights.dtype, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    return array


def _states(cell: Cell, hx: Any, weights: Weights, shape: tuple[int, ...]) -> list[Array | None]:
    """h0 and c0, None where there is none."""
    if hx is None:
        return [None, None]
    if cell is GRU:
        return [_state(hx, "hx", weights, shape), None]
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise TypeError("hx must be a pair (h_0, c_0)")
    return [_state(hx[0], "h_0", weights, shape), _state(hx[1], "c_0", weights, shape)]


def _call(
    cell: Cell,
    weights: Weights,
    x: Array,
    batch_sizes: npt.NDArray[np.int64] | None,
    states: Sequence[Array | None],
    operand: npt.DTypeLike | None,
) -> tuple[Array, Array, Array | None]:
    """The steps themselves: x [steps, batch, features] or, with batch_sizes, [samples, features]."""
    if operand is not None and np.dtype(operand) == _BFLOAT16:
        raise TypeError(
            "x and the states are not rounded to bfloat16: operand may be float32 or int8"
        )
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    samples = x.shape[0] * batch if batch_sizes is None else x.shape[0]
    many = min(samples, max(batch, _RUN_SAMPLES))
    plans = tuple(
        plan_for_samples(matrix, batch if i % 2 else many, operand)
        for i, matrix in enumerate(weights.matrices)
    )
    h0, c0 = (None if state is None else np.ascontiguousarray(state) for state in states)
    return _core.recurrent(
        cell.number,
        weights.directions,
        plans,
        weights.biases,
        np.ascontiguousarray(x),
        batch_sizes,
        h0,
        c0,
    )


def _sequence(
    cell: Cell,
    x: npt.ArrayLike,
    params: Params,
    hx: Any,
    lengths: npt.ArrayLike | None,
    batch_sizes: npt.ArrayLike | None,
    bidirectional: bool,
    batch_first: bool,
    operand: npt.DTypeLike | None,
) -> tuple[Array, Array, Array | None]:
    weights = check_params(params, cell, 2 if bidirectional else 1)
    array = _operand(x, weights.dtype, "x")
    dims = (2,) if batch_sizes is not None else (3,) if lengths is not None else (2, 3)
    if array.ndim not in dims or array.shape[-1] != weights.features:
        padded = "batch, steps" if batch_first else "steps, batch"
        leading = padded if batch_sizes is None else "samples"
        raise ValueError(
            f"x must have shape [{leading}, {weights.features}], got {list(array.shape)}"
        )
    if lengths is not None and batch_sizes is not None:
        raise ValueError("give lengths for a padded x or batch_sizes for a packed one, not both")
    count = len(weights.matrices) // 2
    if batch_sizes is not None:
        sizes = _check_batch_sizes(batch_sizes, array.shape[0])
        states = _states(cell, hx, weights, (count, int(sizes[0]), weights.hidden))
        return _call(cell, weights, array, sizes, states, operand)
    single = array.ndim == 2
    if single:
        array = array[:, None]
    elif batch_first:
        array = array.swapaxes(0, 1)
    steps, batch, _ = array.shape
    if steps == 0:
        raise ValueError("x must have at least one step")
    shape = (count, weights.hidden) if single else (count, batch, weights.hidden)
    states = _states(cell, hx, weights, shape)
    if single:
        states = [None if state is None else state[:, None] for state in states]
        y, h_n, c_n = _call(cell, weights, array, None, states, operand)
        return y[:, 0], h_n[:, 0], None if c_n is None else c_n[:, 0]
    packing = None if lengths is None else _pack(lengths, steps, batch)
    if packing is None or batch == 0:
        y, h_n, c_n = _call(cell, weights, array, None, states, operand)
    else:
        ordered = [None if state is None else state[:, packing.order] for state in states]
        data = array[packing.step, packing.sequence]
        packed, h_n, c_n = _call(cell, weights, data, packing.batch_sizes, ordered, operand)
        y = np.zeros((steps, batch, packed.shape[1]), packed.dtype)
        y[packing.step, packing.sequence] = packed
        back = np.argsort(packing.order)
        h_n, c_n = h_n[:, back], None if c_n is None else c_n[:, back]
    return y.swapaxes(0, 1) if batch_first else y, h_n, c_n


def lstm(
    x: npt.ArrayLike,
    params: Params,
    hx: State | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    batch_sizes: npt.ArrayLike | None = None,
    bidirectional: bool = False,
    batch_first: bool = False,
    operand: npt.DTypeLike | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run a stack of LSTM layers over sequences, as `torch.nn.LSTM` does.

    Parameters
    ----------
    x : array_like
        [T, N, features], [N, T, features] with `batch_first`, or [T, features] for one sequence; with `batch_sizes`
        [samples, features]. float64 for float64 matrices, float32 for all others, as are the biases and states.
    params : sequence
        For every layer, and in it for every direction: weight_ih [4 H, features], weight_hh [4 H, H] and, if there
        are biases, bias_ih and bias_hh [4 H] or None. Weights are matrices that `encode` made, of any pattern. Layers
        above the first have H features, 2 H if bidirectional. (torch's order, `module._flat_weights`.)
    hx : (array_like, array_like), optional
        h_0 and c_0, each [layers * directions, N, H], or [layers * directions, H] for one sequence; else zeros.
    lengths : array_like of int, optional
        [N], how many steps of each sequence count, in any order. What lies behind is not read.
    batch_sizes : array_like of int, optional
        x is packed: step t has the next ``batch_sizes[t]`` rows of it, one of each sequence that is still going on,
        longest first (the data and batch_sizes of `torch.nn.utils.rnn.PackedSequence`).
    bidirectional : bool
        Whether there are two directions; the second begins at the end of each sequence.
    batch_first : bool
        Whether x and the output begin with the batch. It does not matter for one sequence or a packed x.
    operand : dtype, optional
        That in which x and h are multiplied with matrices of int8: "int8", each sample of x and of h at each step
        rounded to 8 bits of its own range, as `linear` does (and if not given); or "float32", not rounded, at the
        price of a plan 2.5 times as large. Sums, gates and c are float32 (float64) in any case. Other matrices take
        none but their own.

    Returns
    -------
    output : ndarray
        h of the last layer at every step, as x with H (bidirectional: 2 H) in place of the features; 0 behind the
        end of a sequence.
    (h_n, c_n) : ndarray
        The states behind the last step of each sequence, shaped as h_0.

    Raises
    ------
    TypeError
        If a weight is no Matrix, something has another dtype (nothing is converted silently), or a weight is not
        multiplied in that of `operand`.
    ValueError
        If shapes do not fit.
    """
    output, h_n, c_n = _sequence(
        LSTM, x, params, hx, lengths, batch_sizes, bidirectional, batch_first, operand
    )
    assert c_n is not None
    return output, (h_n, c_n)


def gru(
    x: npt.ArrayLike,
    params: Params,
    hx: npt.ArrayLike | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    batch_sizes: npt.ArrayLike | None = None,
    bidirectional: bool = False,
    batch_first: bool = False,
    operand: npt.DTypeLike | None = None,
) -> tuple[Array, Array]:
    """Run a stack of GRU layers over sequences, as `torch.nn.GRU` does.

    Parameters
    ----------
    x, lengths, batch_sizes, bidirectional, batch_first, operand
        As for `lstm`.
    params : sequence
        As for `lstm`, with 3 H rows.
    hx : array_like, optional
        h_0, [layers * directions, N, H], or [layers * directions, H] for one sequence; else zeros.

    Returns
    -------
    output : ndarray
        As of `lstm`.
    h_n : ndarray
        The state behind the last step of each sequence, shaped as h_0.

    Raises
    ------
    TypeError, ValueError
        As of `lstm`.
    """
    output, h_n, _ = _sequence(
        GRU, x, params, hx, lengths, batch_sizes, bidirectional, batch_first, operand
    )
    return output, h_n


# --------------------------------------------------------------------- cells


def _step(
    cell: Cell, x: npt.ArrayLike, hx: Any, params: Params, operand: npt.DTypeLike | None
) -> tuple[Array, Array | None]:
    weights = check_params(params, cell, 1)
    array = _operand(x, weights.dtype, "x")
    if array.ndim not in (1, 2) or array.shape[-1] != weights.features:
        raise ValueError(
            f"x must have shape [batch, {weights.features}] or [{weights.features}], got {list(array.shape)}"
        )
    shape = (*array.shape[:-1], weights.hidden)
    states = _states(cell, hx, weights, shape)
    rows = array.reshape(1, -1, weights.features)
    states = [None if state is None else state.reshape(1, -1, weights.hidden) for state in states]
    _, h_n, c_n = _call(cell, weights, rows, None, states, operand)
    return h_n.reshape(shape), None if c_n is None else c_n.reshape(shape)


def lstm_cell(
    x: npt.ArrayLike,
    hx: State | None,
    weight_ih: Matrix,
    weight_hh: Matrix,
    bias_ih: npt.ArrayLike | None = None,
    bias_hh: npt.ArrayLike | None = None,
    *,
    operand: npt.DTypeLike | None = None,
) -> tuple[Array, Array]:
    """Do one step of an LSTM, as `torch.nn.LSTMCell` does.

    Parameters
    ----------
    x : array_like
        [N, features] or [features]; dtypes as for `lstm`.
    hx : (array_like, array_like) or None
        h and c of the step before, [N, H] or [H]; None for zeros.
    weight_ih, weight_hh : Matrix
        [4 H, features] and [4 H, H], made by `encode`.
    bias_ih, bias_hh : array_like, optional
        [4 H].
    operand : dtype, optional
        As for `lstm`.

    Returns
    -------
    h, c : ndarray
        [N, H] or [H].

    Raises
    ------
    TypeError, ValueError
        As of `lstm`.
    """
    h, c = _step(LSTM, x, hx, (weight_ih, weight_hh, bias_ih, bias_hh), operand)
    assert c is not None
    return h, c


def gru_cell(
    x: npt.ArrayLike,
    hx: npt.ArrayLike | None,
    weight_ih: Matrix,
    weight_hh: Matrix,
    bias_ih: npt.ArrayLike | None = None,
    bias_hh: npt.ArrayLike | None = None,
    *,
    operand: npt.DTypeLike | None = None,
) -> Array:
    """Do one step of a GRU, as `torch.nn.GRUCell` does.

    Parameters
    ----------
    x : array_like
        [N, features] or [features]; dtypes as for `lstm`.
    hx : array_like or None
        h of the step before, [N, H] or [H]; None for zeros.
    weight_ih, weight_hh : Matrix
        [3 H, features] and [3 H, H], made by `encode`.
    bias_ih, bias_hh : array_like, optional
        [3 H].
    operand : dtype, optional
        As for `lstm`.

    Returns
    -------
    ndarray
        The new h, [N, H] or [H].

    Raises
    ------
    TypeError, ValueError
        As of `lstm`.
    """
    return _step(GRU, x, hx, (weight_ih, weight_hh, bias_ih, bias_hh), operand)[0]
