"""Layers as the engine runs them: bundles of slots, group by group, and the places of x that they read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gspattern.engine.processor import Engine, check_integer
from gspattern.matrices import CSRMatrix, Matrix, as_matrix
from gspattern.patterns import NM, Banked, Block, Irregular

__all__ = ["ConvLayer", "Grid", "LSTMLayer", "Stream", "make_stream"]

NO_ROW = np.uint32(0xFFFFFFFF)
POINTER_BYTES = 4  # per group, in all formats of docs/FORMAT.md

Weights = Matrix | npt.ArrayLike


# -------------------------------------------------------------------- layers


@dataclass(frozen=True, eq=False)
class ConvLayer:
    """A convolution, channels last, over an input that is padded in memory.

    Attributes
    ----------
    weights : Matrix or array_like
        [Co, Ci, width] or [Co, Ci, height, width]; a matrix must come from one of these.
    length : tuple of int
        Of the input: (width,) or (height, width); an int is (width,).
    stride, dilation : int
        The same for height and width.
    padding : tuple of int, optional
        On either side; ``dilation * (kernel - 1) // 2`` if not given.

    Raises
    ------
    ValueError
        If the sizes do not agree, or no position is left.
    """

    weights: Weights
    length: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("length", "padding"):
            if isinstance(getattr(self, name), int):
                object.__setattr__(self, name, (getattr(self, name),))
        shape = self.shape
        if len(shape) not in (3, 4) or len(self.length) != len(shape) - 2:
            raise ValueError(
                "a convolution needs weights [Co, Ci, width] and length (width,), or [Co, Ci, height, width] and "
                f"(height, width), got weights {shape} and length {self.length}"
            )
        for name in ("stride", "dilation"):
            check_integer(name, getattr(self, name), 1)
        if self.padding is None:
            same = tuple(self.dilation * (k - 1) // 2 for k in shape[2:])
            object.__setattr__(self, "padding", same)
        if len(self.pads) != len(self.length) or min(self.pads) < 0:
            raise ValueError(f"padding must be one number from 0 for each of {self.length}")
        if min(self.out_length) < 1:
            raise ValueError(f"a kernel of {shape[2:]} has no position in {self.length}")

    @property
    def shape(self) -> tuple[int, ...]:
        if isinstance(self.weights, Matrix):
            return self.weights.kernel_shape or self.weights.shape
        return np.shape(self.weights)

    @property
    def pads(self) -> tuple[int, ...]:
        return self.padding or ()

    @property
    def out_length(self) -> tuple[int, ...]:
        return tuple(
            (size + 2 * pad - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, pad, k in zip(self.length, self.pads, self.shape[2:], strict=True)
        )


@dataclass(frozen=True, eq=False)
class LSTMLayer:
    """A layer of an LSTM in one direction: the input products of all steps at once, then step by step.

    Attributes
    ----------
    input_weights, hidden_weights : Matrix or array_like
        [4 H, I] and [4 H, H].
    steps : int

    Raises
    ------
    ValueError
        If the sizes do not agree.
    """

    input_weights: Weights
    hidden_weights: Weights
    steps: int = 1

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 1, None)
        shapes = [
            each.shape if isinstance(each, Matrix) else np.shape(each)
            for each in (self.input_weights, self.hidden_weights)
        ]
        if any(len(shape) != 2 for shape in shapes) or not (
            shapes[0][0] == shapes[1][0] == 4 * shapes[1][1]
        ):
            raise ValueError(f"an LSTM needs weights [4 H, I] and [4 H, H], got {shapes}")

    @property
    def hidden(self) -> int:
        shape = (
            self.hidden_weights.shape
            if isinstance(self.hidden_weights, Matrix)
            else np.shape(self.hidden_weights)
        )
        return int(shape[1])


# --------------------------------------------------------------------- grids


@dataclass(frozen=True)
class Grid:
    """Where the columns of a product lie in x: pictures [height, width, channels], padded, read window by window.

    A matrix with n columns is a row of n positions with K channels and a window of one.

    Attributes
    ----------
    pictures : int
    out, kernel : (int, int)
        Height and width: positions of a picture, and elements of a window.
    padded : (int, int)
        Height and width of a picture with its padding.
    channels, stride, dilation : int
    """

    pictures: int
    out: tuple[int, int]
    kernel: tuple[int, int]
    padded: tuple[int, int]
    channels: int
    stride: int = 1
    dilation: int = 1

    @classmethod
    def of_columns(cls, cols: int, n: int) -> Grid:
        return cls(1, (1, n), (1, 1), (1, n), cols)

    @classmethod
    def of_conv(cls, layer: ConvLayer, n: int) -> Grid:
        def two(sizes: tuple[int, ...], missing: int) -> tuple[int, int]:
            return (missing, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

        height, width = two(layer.length, 1)
        above, left = two(layer.pads, 0)
        return cls(
            n, two(layer.out_length, 1), two(layer.shape[2:], 1),
            (height + 2 * above, width + 2 * left), layer.shape[1], layer.stride, layer.dilation,
        )  # fmt: skip

    @property
    def positions(self) -> int:
        return self.pictures * self.out[0] * self.out[1]

    @property
    def elements(self) -> int:
        """Of x, with padding."""
        return self.pictures * self.padded[0] * self.padded[1] * self.channels

    def offsets(self) -> npt.NDArray[np.int64]:
        """Give the address of every column of the matrix in the window at address 0."""
        rows, cols = np.arange(self.kernel[0]), np.arange(self.kernel[1])
        place = (rows[:, None] * self.padded[1] + cols) * self.dilation
        return (place[:, :, None] * self.channels + np.arange(self.channels)).reshape(-1)

    def bases(self) -> npt.NDArray[np.int64]:
        """Give the address of the window of every position."""
        picture = np.arange(self.pictures)[:, None, None] * self.padded[0]
        row = picture + np.arange(self.out[0])[:, None] * self.stride
        place = row * self.padded[1] + np.arange(self.out[1]) * self.stride
        return (place * self.channels).reshape(-1)

    def covered(self, rows: int, cols: int) -> int:
        """Elements of x under windows at rows x cols positions side by side."""
        height = (rows - 1) * self.stride + (self.kernel[0] - 1) * self.dilation + 1
        width = (cols - 1) * self.stride + (self.kernel[1] - 1) * self.dilation + 1
        return height * width * self.channels


# ------------------------------------------------------------------- streams


@dataclass(frozen=True, eq=False)
class Stream:
    """A matrix in bundles of `lanes` slots.

    Attributes
    ----------
    rows, cols : int
    reduction_steps : int
        Adds of all slots that sum those of one row.
    row_order : ndarray or None
        The row at every grouped position, under scatter.
    columns, slot_rows : ndarray of uint32 [bundles, lanes], or None
        What a slot multiplies, and where it adds to; NO_ROW for a slot that does nothing. None for a dense matrix
        that is only counted.
    values : ndarray of float64 [bundles, lanes], or None
    gathers : bool
        Else slots lie side by side, or share one element: plain loads, never a conflict.
    active : ndarray of int64 [bundles]
        Slots that do something.
    bytes : ndarray of float64 [bundles]
    indptr, repeats : ndarray of int64
        [groups + 1], [groups]: which bundles are a group, and how many groups in a row are like it.
    heights : ndarray of int64 [groups]
        Rows of a group.
    """

    rows: int
    cols: int
    reduction_steps: int
    row_order: npt.NDArray[Any] | None
    columns: npt.NDArray[np.uint32] | None
    slot_rows: npt.NDArray[np.uint32] | None
    values: npt.NDArray[np.float64] | None
    gathers: bool
    active: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.float64]
    indptr: npt.NDArray[np.int64]
    repeats: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]

    @property
    def weight_bytes(self) -> float:
        each = np.repeat(self.repeats, np.diff(self.indptr))
        return float(self.bytes @ each)

    def group_bytes(self) -> npt.NDArray[np.float64]:
        """Bytes of one group each."""
        total = np.concatenate(([0.0], np.cumsum(self.bytes)))
        return np.asarray(np.diff(total[self.indptr]))

    def multiply(
        self, x: npt.NDArray[np.float64], bases: npt.NDArray[np.int64], offsets: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Multiply slot by slot: [positions, rows], x flat."""
        assert self.columns is not None
        assert self.slot_rows is not None
        assert self.values is not None
        there = self.slot_rows != NO_ROW
        rows, values = self.slot_rows[there], self.values[there]
        places = offsets[self.columns[there]]
        return np.stack(
            [np.bincount(rows, values * x[base + places], minlength=self.rows) for base in bases]
        )


def make_stream(weights: Weights, engine: Engine, with_values: bool) -> Stream:
    """Cut a matrix into the bundles of an engine; `with_values`, so that it can be multiplied."""
    lanes, element, index = engine.lanes, engine.element_bytes, float(engine.index_bytes)
    if not isinstance(weights, Matrix):
        array = np.asarray(weights)
        if array.ndim not in (2, 3, 4):
            raise ValueError(
                "weights must be a Matrix, or an array of 2 to 4 dimensions, got "
                f'{type(weights).__name__} of shape {array.shape}; gspattern.encode(array, "irregular") makes one of a '
                "sparse matrix's toarray()"
            )
        if array.dtype != np.bool_:
            return _dense(array, engine, with_values)
        kept = as_matrix(array)
        row, column = np.nonzero(kept)
        indptr = np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(np.int64)
        slots = _rows_to_slots(np.ones(len(row)), column, row, indptr, lanes)
        return _finish(slots, kept.shape, element + index, POINTER_BYTES, lanes, with_values)

    pattern, shape = weights.pattern, weights.shape
    wide = weights.astype(np.float64) if with_values else weights
    values = wide.values if with_values else np.zeros(wide.values.shape)
    places, there = wide._places()
    row = np.where(there, places, NO_ROW).astype(np.uint32)
    if isinstance(pattern, Irregular | NM):
        assert isinstance(weights, CSRMatrix)
        pointers = POINTER_BYTES
        if isinstance(pattern, NM):
            index, pointers = max(1, math.ceil(math.log2(pattern.m))) / 8, 0
        slots = _rows_to_slots(values, wide.columns(), row, wide.indptr.astype(np.int64), lanes)
        return _finish(slots, shape, element + index, pointers, lanes, with_values)

    assert isinstance(pattern, Banked | Block)
    size = pattern.bundle_size
    # A bundle takes several steps; or several blocks that fill less than half of the lanes one step, as a gather.
    parts = -(-size // lanes)
    together = lanes // size if isinstance(pattern, Block) and 2 * size <= lanes else 1
    indptr = wide.indptr.astype(np.int64)
    counts = np.diff(indptr)
    starts = np.concatenate(([0], np.cumsum(-(-counts // together)))) * parts
    within = np.arange(len(values)) - np.repeat(indptr[:-1], counts)
    place, nth = np.divmod(within, together)
    at = ((np.repeat(starts[:-1], counts) + place * parts) * lanes + nth * size)[:, None]

    def cut(array: npt.NDArray[Any], filler: float) -> npt.NDArray[Any]:
        """Bundles of the matrix in those of the engine."""
        full = np.full(int(starts[-1]) * lanes, filler, array.dtype)
        full[at + np.arange(size)] = array.reshape(-1, size)
        return full.reshape(-1, lanes)

    slots = cut(values, 0.0), cut(wide.columns(), 0), cut(row, int(NO_ROW)), starts
    if isinstance(pattern, Block):
        cost, run = element + index / size, min(together * pattern.cols, lanes)
    else:
        cost, run = element + index, min(pattern.per_row, lanes)
    # Slots that a short group or an edge lacks are stored, and so they are streamed.
    stored = np.bincount(at[:, 0] // lanes, minlength=int(starts[-1])) * float(size)
    if parts > 1:
        stored = np.full(int(starts[-1]), size / parts)
    return _finish(
        slots, shape, cost, POINTER_BYTES, run, with_values, pattern.group_rows, wide.row_order,
        engine.index_bytes, isinstance(pattern, Banked) or together > 1, stored,
    )  # fmt: skip


def _dense(array: npt.NDArray[Any], engine: Engine, with_values: bool) -> Stream:
    """Lanes are rows, all with the same element of x: neither a gather nor a reduction."""
    lanes, rows, cols = engine.lanes, array.shape[0], math.prod(array.shape[1:])
    whole, short = divmod(rows, lanes)
    heights = np.array([lanes] * (whole > 0) + [short] * (short > 0), np.int64)
    repeats = np.array([whole] * (whole > 0) + [1] * (short > 0), np.int64)
    columns = slot_rows = values = None
    if with_values:
        groups = whole + (short > 0)
        row = np.arange(groups * lanes, dtype=np.uint32).reshape(groups, 1, lanes)
        row = np.where(row < rows, row, NO_ROW)
        full = np.zeros((groups * lanes, cols))
        full[:rows] = as_matrix(array)
        shape = (groups * cols, lanes)
        slot_rows = np.broadcast_to(row, (groups, cols, lanes)).reshape(shape)
        column = np.arange(cols, dtype=np.uint32)[:, None]
        columns = np.broadcast_to(column, (groups, cols, lanes)).reshape(shape)
        values = full.reshape(groups, lanes, cols).swapaxes(1, 2).reshape(shape)
        heights = np.minimum(lanes, rows - np.arange(groups, dtype=np.int64) * lanes)
        repeats = np.ones(groups, np.int64)
    active = np.repeat(heights, cols)
    return Stream(
        rows=rows, cols=cols, reduction_steps=0, row_order=None, columns=columns, slot_rows=slot_rows,
        values=values, gathers=False, active=active,
        bytes=(active * engine.element_bytes).astype(np.float64),
        indptr=np.arange(len(heights) + 1, dtype=np.int64) * cols, repeats=repeats,
        heights=heights,
    )  # fmt: skip


# values, columns, rows: [bundles, lanes]; indptr
Slots = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]


def _rows_to_slots(
    values: npt.NDArray[Any],
    columns: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    indptr: npt.NDArray[np.int64],
    lanes: int,
) -> Slots:
    """Cut the elements of each row, in their order, into bundles; the last of a row may be short."""
    counts = np.diff(indptr)
    starts = np.concatenate(([0], np.cumsum(-(-counts // lanes)))).astype(np.int64)
    within = np.arange(len(values)) - np.repeat(indptr[:-1], counts)
    at = np.repeat(starts[:-1], counts) * lanes + within
    full = [
        np.full(int(starts[-1]) * lanes, filler, dtype)
        for filler, dtype in ((0, np.float64), (0, np.uint32), (int(NO_ROW), np.uint32))
    ]
    for target, source in zip(full, (values, columns, rows), strict=True):
        target[at] = source
    shaped = [array.reshape(-1, lanes) for array in full]
    return shaped[0], shaped[1], shaped[2], starts


def _finish(
    slots: Slots,
    shape: tuple[int, ...],
    element_cost: float,
    pointer_bytes: int,
    run: int,
    with_values: bool,
    group_rows: int = 1,
    row_order: npt.NDArray[Any] | None = None,
    order_bytes: int = 0,
    gathers: bool = True,
    stored: npt.NDArray[Any] | None = None,
) -> Stream:
    values, columns, slot_rows, indptr = slots
    rows, cols = shape
    active = (slot_rows != NO_ROW).sum(axis=1).astype(np.int64)
    each = element_cost * np.asarray(active if stored is None else stored, np.float64)
    # The pointer of a group and, under scatter, the places of its rows come with its first bundle.
    filled = np.diff(indptr) > 0
    heights = np.minimum(group_rows, rows - np.arange(len(filled), dtype=np.int64) * group_rows)
    each[indptr[:-1][filled]] += pointer_bytes
    if row_order is not None:
        each[indptr[:-1][filled]] += order_bytes * heights[filled]
    return Stream(
        rows=rows, cols=cols, reduction_steps=math.ceil(math.log2(run)),
        row_order=row_order, columns=np.ascontiguousarray(columns, np.uint32),
        slot_rows=np.ascontiguousarray(slot_rows, np.uint32),
        values=np.ascontiguousarray(values, np.float64) if with_values else None, gathers=gathers,
        active=active, bytes=np.asarray(each, np.float64), indptr=indptr,
        repeats=np.ones(len(indptr) - 1, np.int64), heights=heights,
    )  # fmt: skip
