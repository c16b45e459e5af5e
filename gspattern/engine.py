"""A cycle model of the processor of GS patterns: a scratchpad in banks and an engine that gathers from it.

Nobody can buy it; here it can be studied. `simulate` runs a matrix bundle by bundle (csrc/engine), computes the product
as well, and counts cycles; `estimate` is a formula for the same. docs/ENGINE.md says what is modelled and what is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern.matrices import CSRMatrix, Matrix
from gspattern.patterns import NM, Banked, Block, Irregular, Layout

__all__ = ["PRESETS", "Cycles", "Engine", "estimate", "gather_cycles", "simulate", "utilization"]

NO_ROW = np.uint32(0xFFFFFFFF)
INDPTR_BYTES = 4  # per group, in all formats of docs/FORMAT.md
MOST = 65536


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise ValueError(f"{name} must be an integer from {least} to {MOST}, got {value!r}")


@dataclass(frozen=True)
class Engine:
    """The processor. Defaults are those of the preset "paper128".

    "Derived" is what follows from published kernels of the paper's authors or from the width of a register; "guess" is
    what no source gives: neither the paper's timing nor its simulator's parameters are public.

    Attributes
    ----------
    lanes : int
        Slots of one gather and of a vector register. 16: derived (256 bits of float16).
    banks : int
        Banks of the scratchpad, each one element wide. 16: derived, as many as lanes.
    ports : int
        Accesses that a bank serves in a cycle. 1: guess, the least.
    bank_latency : int
        Cycles from an access of the scratchpad to its data. 2: guess.
    gather_issue : int
        Slots that a gather issues in a cycle. 16: derived, all lanes at once.
    scratchpad_bytes : int
        Bytes of the scratchpad. 65,536: derived, the authors' kernels use so many.
    dram_bytes_per_cycle : float
        Bytes of weights that arrive in a cycle. 64: guess, a register of values and one of indices.
    dram_latency : int
        Cycles until a line begins to arrive; counts only without prefetch. 100: guess.
    line_bytes : int
        Bytes asked for at once; counts only without prefetch. 64: guess, a line of common caches.
    fma_lanes : int
        Products in a cycle. 16: derived, a register.
    fma_latency : int
        Cycles from the last product to its sum. 4: guess, as in common vector units.
    element_bytes : int
        Bytes of a value and of an activation. 2: derived (float16).
    index_bytes : int
        Bytes of an index. 2: derived, from the authors' format.
    mapping : {"interleaved", "contiguous"}
        Which bank element j of a vector is in: j % banks, or banks are equal runs. Interleaved: derived.
    fused_gather : bool
        A gather reads its indices itself; else they are loaded first, in a cycle of their own. True: derived.
    prefetch : bool
        Weights are streamed ahead of their use; else each line is waited for. True: derived.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    lanes: int = 16
    banks: int = 16
    ports: int = 1
    bank_latency: int = 2
    gather_issue: int = 16
    scratchpad_bytes: int = 65536
    dram_bytes_per_cycle: float = 64.0
    dram_latency: int = 100
    line_bytes: int = 64
    fma_lanes: int = 16
    fma_latency: int = 4
    element_bytes: int = 2
    index_bytes: int = 2
    mapping: Layout = "interleaved"
    fused_gather: bool = True
    prefetch: bool = True

    def __post_init__(self) -> None:
        counts = ("lanes", "banks", "ports", "gather_issue", "fma_lanes", "line_bytes")
        for name in (*counts, "element_bytes", "index_bytes"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("bank_latency", "dram_latency", "fma_latency"):
            _check_integer(name, getattr(self, name), 0)
        if not isinstance(self.scratchpad_bytes, int) or self.scratchpad_bytes < self.element_bytes:
            raise ValueError(
                f"scratchpad_bytes must hold an element of {self.element_bytes} bytes, "
                f"got {self.scratchpad_bytes!r}"
            )
        if not (math.isfinite(self.dram_bytes_per_cycle) and self.dram_bytes_per_cycle > 0):
            raise ValueError(
                f"dram_bytes_per_cycle must be a number above 0, got {self.dram_bytes_per_cycle!r}"
            )
        if self.mapping not in ("interleaved", "contiguous"):
            raise ValueError(f'mapping must be "interleaved" or "contiguous", got {self.mapping!r}')

    def core(self) -> tuple[Any, ...]:
        """Give the tuple that the C core takes."""
        return (
            self.lanes,
            self.banks,
            self.ports,
            self.bank_latency,
            self.gather_issue,
            self.fma_lanes,
            self.fma_latency,
            self.dram_latency,
            float(self.line_bytes),
            float(self.dram_bytes_per_cycle),
            self.mapping == "contiguous",
            self.fused_gather,
            self.prefetch,
        )

    def bank_of(self, elements: npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
        """Give the bank of elements of a vector of `length`, in the shape of `elements`."""
        j = elements.astype(np.int64)
        if self.mapping == "interleaved":
            return np.asarray(j % self.banks)
        return np.asarray(((j + 1) * self.banks - 1) // length)


_PAPER128 = Engine()
PRESETS: dict[str, Engine] = {
    # 8 slots of float16 in 128 bits, as in the authors' kernels; the stream is a guess as above.
    "paper64": replace(
        _PAPER128, lanes=8, banks=8, gather_issue=8, fma_lanes=8, dram_bytes_per_cycle=32.0
    ),
    "paper128": _PAPER128,
    # Shared memory of a GPU: 32 banks of 4 bytes. Latencies and the stream, one line a cycle, are guesses.
    "gpu_shared": Engine(
        lanes=32,
        banks=32,
        gather_issue=32,
        bank_latency=23,
        fma_lanes=32,
        element_bytes=4,
        dram_bytes_per_cycle=128.0,
        fused_gather=False,
    ),
    # An ordinary core: two loads a cycle from any address, indices loaded first. The rest as above.
    "no_engine": replace(
        _PAPER128, banks=1, ports=2, gather_issue=2, bank_latency=5, fused_gather=False
    ),
}


@dataclass(frozen=True, eq=False)
class Cycles:
    """What a product costs, in cycles.

    The units work at the same time: `total` is at least the most that one of them is busy, and less than their sum.

    Attributes
    ----------
    total : int
        From the first byte of the weights to the last row stored, with `tiling`.
    streaming : float
        Weights on their way.
    gather : int
        Issue of loads and gathers from the scratchpad, and of loads of indices.
    conflicts : int
        What gathers take longer because slots share a bank.
    fma, reduction, stores : int
        Products; adds that sum the slots of a row; stores of rows, with their conflicts under scatter.
    tiling : int
        Activations that do not fit the scratchpad: x is loaded in tiles, sums are put aside and fetched again.
    products : int
        Slots multiplied.
    y : ndarray or None
        The product, float64 [M, n] ([M] for a vector); None from `estimate`.
    """

    total: int
    streaming: float
    gather: int
    conflicts: int
    fma: int
    reduction: int
    stores: int
    tiling: int
    products: int
    y: npt.NDArray[np.float64] | None = None

    @property
    def binds(self) -> str:
        """The unit that is busy longest: "streaming", "gather", "arithmetic", "stores" or "tiling"."""
        busy = {
            "streaming": self.streaming,
            "gather": self.gather + self.conflicts,
            "arithmetic": self.fma + self.reduction,
            "stores": self.stores,
            "tiling": self.tiling,
        }
        return max(busy, key=lambda name: busy[name])


def simulate(
    matrix: Matrix | npt.ArrayLike,
    engine: str | Engine = "paper128",
    n: int = 1,
    x: npt.ArrayLike | None = None,
) -> Cycles:
    """Run a product on the engine, bundle by bundle.

    Parameters
    ----------
    matrix : Matrix or array_like
        Of any pattern. An array of numbers [M, K] is a dense matrix, one of bool an irregular mask, with weights 1.
    engine : Engine or str
        Or the name of one of `PRESETS`.
    n : int
        Columns of x, where x is not given. Every bundle is loaded once and used for all of them.
    x : array_like, optional
        [K] or [K, n]; ones if not given.

    Returns
    -------
    Cycles
        With `y`.

    Raises
    ------
    ValueError
        If x does not fit, or the preset is not known.

    Examples
    --------
    >>> import gspattern as gs
    >>> cycles = simulate(gs.encode(np.eye(16, dtype=np.float32), "gs(16,1)"), "paper128")
    >>> cycles.gather, cycles.conflicts, cycles.products
    (1, 0, 16)
    """
    engine = _engine(engine)
    stream = _stream(matrix, engine)
    vector = x is None and n == 1
    if x is None:
        _check_integer("n", n, 1)
        operand = np.ones((stream.cols, n))
    else:
        given = np.asarray(x, np.float64)
        if given.ndim not in (1, 2) or given.shape[0] != stream.cols:
            raise ValueError(
                f"x must have shape ({stream.cols},) or ({stream.cols}, n), got {given.shape}"
            )
        vector = given.ndim == 1
        operand = np.ascontiguousarray(given.reshape(stream.cols, -1))
    counts, y = _core.engine_run(engine.core(), stream.core(), operand)
    total, streaming, gather, conflicts, fma, reduction, stores, products = counts
    tiling = _tiling(stream, engine, operand.shape[1])
    return Cycles(
        total + tiling, streaming, gather, conflicts, fma, reduction, stores, tiling, products,
        y[:, 0] if vector else y,
    )  # fmt: skip


def estimate(
    matrix: Matrix | npt.ArrayLike, engine: str | Engine = "paper128", n: int = 1
) -> Cycles:
    """Compute by a formula what `simulate` counts: the longest of the units, and what fills and drains them.

    Takes and raises what `simulate` does; `y` of the result is None.
    """
    engine = _engine(engine)
    _check_integer("n", n, 1)
    stream = _stream(matrix, engine)
    there = stream.slot_rows != NO_ROW
    active = there.sum(axis=1)
    bundles = len(active)
    issue = np.ones(bundles, np.int64)
    conflicts = np.zeros(bundles, np.int64)
    index_loads = 0
    if stream.gathers:
        issue = np.maximum(1, -(-active // engine.gather_issue))
        served = gather_cycles(stream.columns, engine, stream.cols, there)
        conflicts = np.maximum(0, served - issue)
        index_loads = 0 if engine.fused_gather else bundles
    filled = int(np.count_nonzero(np.diff(stream.indptr)))
    gather = index_loads + n * int(issue.sum())
    fma = n * int(np.maximum(1, -(-active // engine.fma_lanes)).sum())
    reduction = n * filled * stream.reduction_steps
    stores = n * int(_store_cycles(stream, engine).sum())

    weight_bytes = float(stream.bytes.sum())
    line = engine.dram_latency + engine.line_bytes / engine.dram_bytes_per_cycle
    streaming = weight_bytes / engine.dram_bytes_per_cycle
    loads = gather + n * int(conflicts.sum())
    waits, first = streaming, streaming / max(1, bundles)
    if not engine.prefetch:
        # A line is asked for when the bundle before is gathered, so that the two never overlap.
        streaming = math.ceil(weight_bytes / engine.line_bytes) * line
        loads, waits, first = loads + int(streaming), 0.0, 0.0
    busy = np.array([waits, loads, fma + reduction, stores], np.float64)
    items = n * max(1, bundles)
    once = np.array([first, loads / items, fma / items + stream.reduction_steps, 1.0])
    total = float((busy + once.sum() - once).max()) if bundles else float(stores)
    total += engine.fma_latency + (engine.bank_latency if bundles else 0)
    tiling = _tiling(stream, engine, n)
    return Cycles(
        math.ceil(total) + tiling, streaming, gather, n * int(conflicts.sum()), fma, reduction,
        stores, tiling, n * int(active.sum()),
    )  # fmt: skip


def gather_cycles(
    columns: npt.NDArray[Any],
    engine: str | Engine,
    length: int,
    there: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Count the cycles in which the banks serve each of many gathers.

    It is the largest number of slots in one bank, over the ports of a bank, rounded up.

    Parameters
    ----------
    columns : ndarray of int
        [gathers, slots], elements of a vector of `length`.
    engine : Engine or str
    length : int
    there : ndarray of bool, optional
        [gathers, slots], which slots are used; all if not given.

    Returns
    -------
    ndarray of int64
        [gathers].
    """
    engine = _engine(engine)
    gathers = len(columns)
    if columns.size == 0:
        return np.zeros(gathers, np.int64)
    bank = engine.bank_of(columns, length) + np.arange(gathers)[:, None] * engine.banks
    used = bank.reshape(-1) if there is None else bank[there]
    hits = np.bincount(used, minlength=gathers * engine.banks).reshape(gathers, engine.banks)
    return np.asarray(-(-hits.max(axis=1) // engine.ports), np.int64)


def utilization(load: npt.ArrayLike) -> float:
    """Give u-Ticket's utilization of units that wait for the one with the largest load.

    ``1 - (max - mean) / max * n / (n - 1)``: 1 where all of the n loads are equal, 0 where one unit has it all
    (Yin et al., arXiv 2302.06746). 1 for one unit, or where nothing is loaded.

    Parameters
    ----------
    load : array_like
        [n], at least 0.

    Raises
    ------
    ValueError
        If it is no vector of numbers from 0 up.
    """
    each = np.asarray(load, np.float64)
    if each.ndim != 1 or each.size == 0 or not (each >= 0).all():
        raise ValueError(f"load must be a vector of numbers from 0 up, got {load!r}")
    most = float(each.max())
    if each.size == 1 or most == 0:
        return 1.0
    return 1 - (most - float(each.mean())) / most * each.size / (each.size - 1)


# ------------------------------------------------------------------- streams


@dataclass(frozen=True, eq=False)
class _Stream:
    """A matrix as the engine runs it; gsp_engine.h describes the arrays."""

    rows: int
    cols: int
    reduction_steps: int
    gathers: bool
    scatters: bool
    values: npt.NDArray[np.float64]
    columns: npt.NDArray[np.uint32]
    slot_rows: npt.NDArray[np.uint32]
    bytes: npt.NDArray[np.float64]
    indptr: npt.NDArray[np.int64]
    store_ptr: npt.NDArray[np.int64]
    store_rows: npt.NDArray[np.uint32]

    def core(self) -> tuple[Any, ...]:
        return (
            self.rows, self.cols, self.reduction_steps, self.gathers, self.scatters, self.values,
            self.columns, self.slot_rows, self.bytes, self.indptr, self.store_ptr, self.store_rows,
        )  # fmt: skip


def _stream(matrix: Matrix | npt.ArrayLike, engine: Engine) -> _Stream:
    lanes, element, index = engine.lanes, engine.element_bytes, float(engine.index_bytes)
    if not isinstance(matrix, Matrix):
        dense = np.asarray(matrix)
        if dense.ndim != 2:
            raise ValueError(f"a matrix must have two dimensions, got shape {dense.shape}")
        kept = dense if dense.dtype == np.bool_ else np.ones(dense.shape, np.bool_)
        row, column = np.nonzero(kept)
        indptr = np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(np.int64)
        gathers = dense.dtype == np.bool_
        cost = element + (index if gathers else 0.0)
        slots = _rows_to_slots(dense[row, column], column, row, indptr, lanes)
        return _finish(slots, dense.shape, cost, INDPTR_BYTES * gathers, None, 1, lanes, gathers)

    pattern, shape = matrix.pattern, matrix.shape
    wide = matrix.astype(np.float64)
    places, there = wide._places()
    row = np.where(there, places, NO_ROW).astype(np.uint32)
    if isinstance(pattern, Irregular | NM):
        assert isinstance(matrix, CSRMatrix)
        if isinstance(pattern, NM):
            index = max(1, math.ceil(math.log2(pattern.m))) / 8
        slots = _rows_to_slots(
            wide.values, wide.columns(), row, wide.indptr.astype(np.int64), lanes
        )
        pointers = 0 if isinstance(pattern, NM) else INDPTR_BYTES
        return _finish(slots, shape, element + index, pointers, None, 1, lanes, True)

    assert isinstance(pattern, Banked | Block)
    bundles, size = len(wide.values), pattern.bundle_size
    parts = -(-size // lanes)

    def cut(array: npt.NDArray[Any], filler: float) -> npt.NDArray[Any]:
        """Bundles in parts of one register."""
        full = np.full((bundles, parts * lanes), filler, array.dtype)
        full[:, :size] = array.reshape(bundles, size)
        return full.reshape(bundles * parts, lanes)

    slots = (
        cut(wide.values, 0.0),
        cut(wide.columns(), 0),
        cut(row, int(NO_ROW)),
        wide.indptr.astype(np.int64) * parts,
    )
    if isinstance(pattern, Block):
        cost, run = element + index / size, min(pattern.cols, lanes)
    else:
        cost, run = element + index, min(pattern.per_row, lanes)
    stream = _finish(
        slots, shape, cost, INDPTR_BYTES, wide.row_order, pattern.group_rows, run,
        isinstance(pattern, Banked),
    )  # fmt: skip
    # Slots that a short group or an edge lacks are stored, and so they are streamed.
    padded = np.full(bundles * parts, size * cost / parts)
    return replace(
        stream, bytes=padded + (stream.bytes - cost * (stream.slot_rows != NO_ROW).sum(1))
    )


_Slots = tuple[
    npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]
]  # values, columns, rows: [bundles, lanes]; indptr


def _rows_to_slots(
    values: npt.NDArray[Any],
    columns: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    indptr: npt.NDArray[np.int64],
    lanes: int,
) -> _Slots:
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
    slots: _Slots,
    shape: tuple[int, ...],
    element_cost: float,
    pointer_bytes: int,
    row_order: npt.NDArray[Any] | None,
    group_rows: int,
    run: int,
    gathers: bool,
) -> _Stream:
    values, columns, slot_rows, indptr = slots
    rows, cols = shape
    groups = len(indptr) - 1
    each = element_cost * (slot_rows != NO_ROW).sum(axis=1)
    filled = np.diff(indptr) > 0
    each[indptr[:-1][filled]] += pointer_bytes  # a group's pointer comes with its first bundle
    if row_order is not None:
        each[indptr[:-1][filled]] += 2 * group_rows  # and so do its rows
    return _Stream(
        rows=rows,
        cols=cols,
        reduction_steps=math.ceil(math.log2(run)),
        gathers=gathers,
        scatters=row_order is not None,
        values=np.ascontiguousarray(values, np.float64),
        columns=np.ascontiguousarray(columns, np.uint32),
        slot_rows=np.ascontiguousarray(slot_rows, np.uint32),
        bytes=each,
        indptr=indptr,
        store_ptr=np.minimum(np.arange(groups + 1, dtype=np.int64) * group_rows, rows),
        store_rows=np.ascontiguousarray(
            np.arange(rows) if row_order is None else row_order, np.uint32
        ),
    )


def _store_cycles(stream: _Stream, engine: Engine) -> npt.NDArray[np.int64]:
    """Cycles of the stores of each group, for one column of x."""
    counts = np.diff(stream.store_ptr)
    vectors = np.asarray(-(-counts // engine.lanes), np.int64)
    if not stream.scatters or stream.rows == 0:
        return vectors
    one = np.ones(len(stream.store_rows))
    order = stream.store_rows
    slots = _rows_to_slots(one, order, order, stream.store_ptr, engine.lanes)
    return gather_cycles(slots[1], engine, stream.rows, slots[2] != NO_ROW)


def _tiling(stream: _Stream, engine: Engine, n: int) -> int:
    """Cycles for activations that do not fit: x comes in tiles, and all sums go out and in between two of them."""
    vector = n * stream.cols * engine.element_bytes
    tiles = -(-vector // engine.scratchpad_bytes)
    if tiles <= 1:
        return 0
    sums = 2 * (tiles - 1) * n * stream.rows * engine.element_bytes
    return math.ceil((vector + sums) / engine.dram_bytes_per_cycle)


# -------------------------------------------------------------------- checks


def _engine(engine: str | Engine) -> Engine:
    if isinstance(engine, Engine):
        return engine
    if engine not in PRESETS:
        raise ValueError(f"engine must be an Engine or one of {', '.join(PRESETS)}, got {engine!r}")
    return PRESETS[engine]
