"""Counting cycles: event by event in C, and by a formula."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern.engine.bundles import ConvLayer, Grid, LSTMLayer, Stream, Weights, make_stream
from gspattern.engine.processor import NO_BANK, Engine, check_integer, find_engine
from gspattern.matrices import Matrix

__all__ = ["Cycles", "Replay", "estimate", "gather_cycles", "replay", "simulate", "utilization"]

Layer = Weights | ConvLayer | LSTMLayer
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cycles:
    """What a product or a layer costs, in cycles.

    The units work at the same time: `total` is at least the most that one of them is busy, and less than their sum.

    Attributes
    ----------
    total : int
        From the first byte of the weights to the last row stored, with `tiling` and `gates`.
    streaming : float
        Weights on their way, from memory or again from a cache.
    gather : int
        Issue of loads and gathers of activations, and of loads of indices.
    conflicts : int
        What gathers take longer because slots share a bank.
    fma, reduction, stores : int
        Products; adds that sum the slots of a row; stores of rows, with their conflicts under scatter.
    tiling : int
        Activations that do not fit: tiles of x are loaded, and y and sums that do not fit go out. No unit works
        meanwhile. That weights stream again for each tile is in `streaming`.
    gates : int
        What an LSTM does with the sums of a step.
    products : int
        Slots multiplied.
    y : ndarray or None
        The product, if `simulate` was given x.
    """

    total: int = 0
    streaming: float = 0.0
    gather: int = 0
    conflicts: int = 0
    fma: int = 0
    reduction: int = 0
    stores: int = 0
    tiling: int = 0
    gates: int = 0
    products: int = 0
    y: npt.NDArray[np.float64] | None = None

    @property
    def binds(self) -> str:
        """What takes longest: "streaming", "gather", "arithmetic", "stores", "tiling" or "gates"."""
        busy = {
            "streaming": self.streaming,
            "gather": self.gather + self.conflicts,
            "arithmetic": self.fma + self.reduction,
            "stores": self.stores,
            "tiling": self.tiling,
            "gates": self.gates,
        }
        return max(busy, key=lambda name: busy[name])

    def plus(self, other: Cycles, times: int = 1) -> Cycles:
        """Give the sum with so many others, one after the other; without y."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "y"]
        return Cycles(
            **{name: getattr(self, name) + times * getattr(other, name) for name in names}
        )


@dataclass(frozen=True, eq=False)
class Replay:
    """What accesses of the scratchpad cost.

    Attributes
    ----------
    cycles : ndarray of int64
        [accesses], of each.
    conflicts : ndarray of int64
        [accesses], those of `cycles` that slots take longer because they share a bank.
    total : int
        From the first access to the data of the last.
    """

    cycles: Integers
    conflicts: Integers
    total: int


def replay(
    addresses: npt.ArrayLike, engine: str | Engine = "paper128", length: int | None = None
) -> Replay:
    """Run any accesses, gathers or scatters, through the banks of an engine.

    Parameters
    ----------
    addresses : array_like of int
        [accesses, slots], elements of the scratchpad; below 0 for a slot that does nothing. There may be more or fewer
        slots than the engine has lanes.
    engine : Engine or str
    length : int, optional
        Of what is addressed; matters for the mapping "contiguous". One more than the largest address if not given.

    Raises
    ------
    ValueError
        If addresses are no such array, or beyond `length`.

    Examples
    --------
    >>> run = replay([[0, 1, 2, 3], [0, 16, 32, -1]])
    >>> run.cycles, run.conflicts, run.total
    (array([1, 3]), array([0, 2]), 6)
    """
    engine = find_engine(engine)
    where = np.asarray(addresses)
    if where.size == 0:
        where = where.astype(np.int64)
    if where.ndim != 2 or where.dtype.kind not in "iu":
        raise ValueError(
            f"addresses must be integers [accesses, slots], got {where.dtype} of shape {where.shape}"
        )
    there = where >= 0
    most = int(where.max(initial=-1))
    if length is None:
        length = max(1, most + 1)
    if most >= length:
        raise ValueError(f"addresses must be below length, {length}, got {most}")
    banks = np.where(there, engine.bank_of(where, length), NO_BANK)
    cycles = _access(banks, engine)
    conflicts = cycles - -(-there.sum(axis=1) // engine.gather_issue)
    total = int(cycles.sum())
    return Replay(cycles, conflicts, total + (engine.bank_latency if total else 0))


def simulate(
    layer: Layer,
    engine: str | Engine = "paper128",
    n: int = 1,
    x: npt.ArrayLike | None = None,
) -> Cycles:
    """Run a layer on the engine, bundle by bundle.

    Parameters
    ----------
    layer : Matrix, array_like, ConvLayer or LSTMLayer
        A matrix of any pattern. An array of numbers [M, K] is a dense matrix, one of bool an irregular mask.
    engine : Engine or str
        Or the name of one of `PRESETS`.
    n : int
        Columns of x, pictures or sequences, or a batch.
    x : array_like, optional
        To be multiplied as well, by the very slots that are counted: [K] or [K, n] for a matrix, with weights 1 for a
        mask; [n, ..., Ci], channels last and not padded, for a convolution. Not for LSTMs.

    Returns
    -------
    Cycles
        With `y`, [M], [M, n] or [n, ..., Co], if there is x.

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
    engine = find_engine(engine)
    operand = None if x is None else np.asarray(x, np.float64)
    if operand is not None and not isinstance(layer, LSTMLayer):
        n = _columns_of(layer, operand)
    check_integer("n", n, 1, None)
    if operand is None:
        return _count(layer, engine, n, _run)
    if isinstance(layer, LSTMLayer):
        raise ValueError("x is not for an LSTM; simulate its matrices one by one")
    weights = layer.weights if isinstance(layer, ConvLayer) else layer
    stream = make_stream(weights, engine, with_values=True)
    cycles = _count(layer, engine, n, _run)
    grid = _grid(layer, n)
    if isinstance(layer, ConvLayer):
        pads = [(0, 0), *((pad, pad) for pad in layer.pads), (0, 0)]
        flat = np.pad(operand, pads).reshape(-1)
        y = stream.multiply(flat, grid.bases(), grid.offsets())
        return replace(cycles, y=y.reshape(n, *layer.out_length, stream.rows))
    y = stream.multiply(operand.T.reshape(-1), grid.bases(), grid.offsets())
    return replace(cycles, y=y[0] if operand.ndim == 1 else np.ascontiguousarray(y.T))


def estimate(layer: Layer, engine: str | Engine = "paper128", n: int = 1) -> Cycles:
    """Compute by a formula what `simulate` counts: the longest of the units, and what fills and drains them.

    Takes and raises what `simulate` does, without x.
    """
    engine = find_engine(engine)
    check_integer("n", n, 1, None)
    return _count(layer, engine, n, _formula)


def gather_cycles(
    columns: npt.NDArray[Any],
    engine: str | Engine,
    length: int,
    there: npt.NDArray[np.bool_] | None = None,
) -> Integers:
    """Compute the cycles in which banks serve each of many accesses: `replay` by a formula.

    A bank is done when its last slot is served: the largest, over slots of the access, of the cycle in which the slot
    is issued and the slots from there on in its bank over the ports of a bank, rounded up.

    Parameters
    ----------
    columns : ndarray of int
        [accesses, slots], elements of a vector of `length`.
    engine : Engine or str
    length : int
    there : ndarray of bool, optional
        [accesses, slots], which slots are used; all if not given.

    Returns
    -------
    ndarray of int64
        [accesses].
    """
    engine = find_engine(engine)
    accesses, slots = columns.shape
    used = np.ones(columns.shape, np.bool_) if there is None else there
    bank = engine.bank_of(columns, length)
    issued = (np.cumsum(used, axis=1) - 1) // engine.gather_issue
    hits = np.zeros((accesses, engine.banks), np.int64)
    cycles = np.zeros(accesses, np.int64)
    for slot in reversed(range(slots)):
        at = np.flatnonzero(used[:, slot])
        hits[at, bank[at, slot]] += 1
        queue = -(-hits[at, bank[at, slot]] // engine.ports)
        cycles[at] = np.maximum(cycles[at], issued[at, slot] + queue)
    return cycles


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


# --------------------------------------------------------------------- costs


def _access(banks: npt.NDArray[Any], engine: Engine) -> Integers:
    banks = np.ascontiguousarray(banks, np.uint16)
    cycles: Integers = _core.engine_access(engine.banks, engine.ports, engine.gather_issue, banks)
    return cycles


@dataclass(frozen=True, eq=False)
class _Costs:
    """Cycles of the bundles and groups of a stream, for one column of x."""

    stream: Stream
    issue: Integers  # bundles
    load: Integers  # bundles; issue and conflicts
    multiply: Integers  # bundles
    store: Integers  # groups
    reduction: int
    index_load: int

    @property
    def filled(self) -> npt.NDArray[np.bool_]:
        return np.diff(self.stream.indptr) > 0


def _costs(
    stream: Stream, engine: Engine, elements: npt.NDArray[Any], length: int, exact: bool
) -> _Costs:
    """Costs of loads of `elements` (of every column, what its bank is chosen by); `exact`: by events."""

    def served(places: npt.NDArray[Any], used: npt.NDArray[np.bool_], size: int) -> Integers:
        if not exact:
            return gather_cycles(places, engine, size, used)
        return _access(np.where(used, engine.bank_of(places, size), NO_BANK), engine)

    width = engine.vector_width
    index_load = 0
    if stream.gathers:
        assert stream.columns is not None
        assert stream.slot_rows is not None
        issue = np.maximum(1, -(-stream.active // engine.gather_issue))
        used = stream.slot_rows != np.uint32(0xFFFFFFFF)
        load = np.maximum(issue, served(elements[stream.columns], used, length))
        index_load = 0 if engine.fused_gather else -(-engine.lanes // width)
    else:
        issue = load = np.maximum(1, -(-stream.active // width))
    multiply = np.maximum(1, -(-stream.active // engine.fma_lanes))

    if stream.row_order is None:
        store = -(-stream.heights // width)
    else:
        # The rows of a group, in parts of a register.
        parts = -(-stream.heights // engine.lanes)
        most = int(parts.max(initial=0)) * engine.lanes
        at = np.cumsum(stream.heights) - stream.heights
        places = at[:, None] + np.arange(most)
        used = np.arange(most) < stream.heights[:, None]
        rows = stream.row_order[np.where(used, places, 0)]
        each = served(
            rows.reshape(-1, engine.lanes), used.reshape(-1, engine.lanes), max(1, stream.rows)
        )
        store = each.reshape(len(stream.heights), -1).sum(axis=1)
    reduction = stream.reduction_steps * -(-engine.lanes // width)
    return _Costs(stream, issue, load, multiply, np.asarray(store, np.int64), reduction, index_load)


# -------------------------------------------------------------------- passes


@dataclass(frozen=True)
class _Tiling:
    """Tiles of positions: the weights pass once for each.

    Attributes
    ----------
    tiles : tuple of (int, int)
        Positions of a tile, and how many tiles are like it.
    nbytes : float
        Of activations that come and go.
    """

    tiles: tuple[tuple[int, int], ...]
    nbytes: float


def _tilings(grid: Grid, rows: int, engine: Engine) -> Iterator[_Tiling]:
    """Ways to tile, all of which fit: by pictures, by rows of positions, or by a part of one row."""
    half = (engine.scratchpad_bytes or engine.l1_bytes) // 2
    element, positions = engine.element_bytes, grid.positions
    picture = grid.padded[0] * grid.padded[1] * grid.channels * element
    y = positions * rows * element
    out = float(y if y > half else 0)
    if grid.pictures * picture <= half:
        yield _Tiling(((positions, 1),), out)
        return

    def repeated(parts: list[tuple[int, int, int]]) -> _Tiling:
        """Parts (positions, elements covered, times); what does not fit is cut by channels, too."""
        moved = out
        for count, covered, times in parts:
            moved += covered * element * times
            slices = -(-covered * element // half)
            sums = count * rows * element
            if slices > 1 and sums > half:
                moved += 2 * (slices - 1) * sums * times
        return _Tiling(tuple((count, times) for count, _, times in parts), moved)

    height, width = grid.out
    if picture <= half:
        together = half // picture
        whole, rest = divmod(grid.pictures, together)
        each = height * width
        parts = [(together * each, together * picture // element, whole)]
        yield repeated(parts + [(rest * each, rest * picture // element, 1)] * (rest > 0))
        return
    for taken in range(1, height + 1):
        whole, rest = divmod(height, taken)
        parts = [(taken * width, grid.covered(taken, width), whole * grid.pictures)]
        parts += [(rest * width, grid.covered(rest, width), grid.pictures)] * (rest > 0)
        yield repeated(parts)
    for taken in range(1, width):
        whole, rest = divmod(width, taken)
        times = height * grid.pictures
        parts = [(taken, grid.covered(1, taken), whole * times)]
        yield repeated(parts + [(rest, grid.covered(1, rest), times)] * (rest > 0))


def _tiling(grid: Grid, stream: Stream, engine: Engine) -> tuple[_Tiling, int]:
    """The tiling that moves least, in cycles; and those that its activations take."""
    if grid.positions == 0:
        return _Tiling((), 0.0), 0
    rate = engine.dram_bytes_per_cycle
    if not engine.scratchpad_bytes and grid.elements * engine.element_bytes <= engine.l2_bytes:
        rate = engine.l2_bytes_per_cycle
    weights = stream.weight_bytes / _again_rate(stream, engine)

    def cycles(tiling: _Tiling) -> float:
        return tiling.nbytes / rate + weights * sum(times for _, times in tiling.tiles)

    best = min(_tilings(grid, stream.rows, engine), key=cycles)
    return best, math.ceil(best.nbytes / rate)


def _again_rate(stream: Stream, engine: Engine) -> float:
    """Bytes per cycle of weights that pass once more."""
    fits = stream.weight_bytes <= engine.l2_bytes
    return engine.l2_bytes_per_cycle if fits else engine.dram_bytes_per_cycle


def _grid(layer: Weights | ConvLayer, n: int) -> Grid:
    if isinstance(layer, ConvLayer):
        return Grid.of_conv(layer, n)
    shape = layer.shape if isinstance(layer, Matrix) else np.shape(layer)
    return Grid.of_columns(math.prod(shape[1:]), n)


def _columns_of(layer: Weights | ConvLayer, x: npt.NDArray[np.float64]) -> int:
    """The n of x, which must fit the layer."""
    if isinstance(layer, ConvLayer):
        expected = (*layer.length, layer.shape[1])
        if x.ndim != len(expected) + 1 or x.shape[1:] != expected:
            raise ValueError(f"x must have shape (n, {str(expected)[1:]}, got {x.shape}")
        return len(x)
    cols = _grid(layer, 1).channels
    if x.ndim not in (1, 2) or x.shape[0] != cols:
        raise ValueError(f"x must have shape ({cols},) or ({cols}, n), got {x.shape}")
    return 1 if x.ndim == 1 else int(x.shape[1])


def _count(layer: Layer, engine: Engine, n: int, run: Any) -> Cycles:
    if isinstance(layer, LSTMLayer):
        given = _count(layer.input_weights, engine, n * layer.steps, run)
        first, again = _passes(layer.hidden_weights, engine, n, run)
        gates = engine.gate_operations * n * -(-layer.hidden // engine.vector_width)
        total = given.plus(first).plus(again, layer.steps - 1)
        return total.plus(Cycles(total=gates, gates=gates), layer.steps)
    return _passes(layer, engine, n, run)[0]


def _passes(layer: Weights | ConvLayer, engine: Engine, n: int, run: Any) -> tuple[Cycles, Cycles]:
    """Cycles of a layer whose weights come from memory; and of one whose weights were used before."""
    weights = layer.weights if isinstance(layer, ConvLayer) else layer
    stream = make_stream(weights, engine, with_values=False)
    grid = _grid(layer, n)
    if engine.mapping == "address":
        elements, length = grid.offsets(), grid.elements
    else:
        elements, length = np.arange(stream.cols), stream.cols
        if isinstance(layer, ConvLayer):  # unfolded in memory
            grid = Grid.of_columns(stream.cols, grid.positions)
    costs = _costs(stream, engine, elements, length, exact=run is _run)
    tiling, moved = _tiling(grid, stream, engine)
    in_l2 = stream.weight_bytes <= engine.l2_bytes

    first = again = Cycles(total=moved, tiling=moved)
    for index, (positions, times) in enumerate(tiling.tiles):
        later = run(costs, engine, positions, in_l2)
        again = again.plus(later, times)
        if index == 0 and times > 0:
            first = first.plus(run(costs, engine, positions, False))
            times -= 1
        first = first.plus(later, times)
    return first, again


def _rates(costs: _Costs, engine: Engine, in_l2: bool) -> tuple[float, int, Any]:
    """Bytes per cycle and latency of a pass, and bytes per cycle of each group when it is used again."""
    first = engine.l2_bytes_per_cycle if in_l2 else engine.dram_bytes_per_cycle
    latency = engine.l2_latency if in_l2 else engine.dram_latency
    group = costs.stream.group_bytes()
    beyond = np.where(
        group <= engine.l2_bytes, engine.l2_bytes_per_cycle, engine.dram_bytes_per_cycle
    )
    return first, latency, np.where(group <= engine.l1_bytes, engine.l1_bytes_per_cycle, beyond)


def _run(costs: _Costs, engine: Engine, n: int, in_l2: bool) -> Cycles:
    """One pass of the weights over n positions, by events."""
    stream = costs.stream
    rate, latency, again = _rates(costs, engine, in_l2)
    total, streaming, load, fma, reduction, stores = _core.engine_run(
        (
            engine.bank_latency, engine.fma_latency, engine.accumulators, latency,
            float(engine.line_bytes), float(rate), engine.prefetch,
        ),
        (
            np.ascontiguousarray(costs.load), np.ascontiguousarray(costs.multiply), stream.bytes,
            stream.indptr, stream.repeats, costs.store, again, costs.reduction, costs.index_load,
        ),
        n,
    )  # fmt: skip
    each = np.repeat(stream.repeats, np.diff(stream.indptr))
    conflicts = n * int((costs.load - costs.issue) @ each)
    return Cycles(
        total, streaming, load - conflicts, conflicts, fma, reduction, stores,
        products=n * int(stream.active @ each),
    )  # fmt: skip


def _formula(costs: _Costs, engine: Engine, n: int, in_l2: bool) -> Cycles:
    """The same, from sums."""
    stream, filled = costs.stream, costs.filled
    rate, latency, again = _rates(costs, engine, in_l2)
    each = np.repeat(stream.repeats, np.diff(stream.indptr))
    turns = -(-n // engine.accumulators)  # in which a group takes all columns
    conflicts = n * int((costs.load - costs.issue) @ each)
    gather = n * int(costs.issue @ each) + turns * costs.index_load * int(each.sum())
    fma = n * int(costs.multiply @ each)
    reduction = n * costs.reduction * int(stream.repeats[filled].sum())
    stores = n * int(costs.store @ stream.repeats)
    arithmetic = fma + reduction

    # Of every group: what it streams first, and what again.
    nbytes = stream.group_bytes()
    once, more = nbytes / rate, (turns - 1) * nbytes / again
    streaming = float(more @ stream.repeats)
    if engine.prefetch:
        streaming += float(once @ stream.repeats)
        waits = 0.0
    else:
        # Lines are asked for when the bundle before is gathered, so that the two never overlap; a gather begins with a
        # cycle.
        line = latency + engine.line_bytes / rate
        asked = np.diff(np.ceil(np.cumsum(stream.bytes) / engine.line_bytes), prepend=0) * line
        arrivals = math.ceil(stream.weight_bytes / engine.line_bytes) * line
        waits = arrivals + float((np.ceil(asked) - asked) @ each)
        streaming += arrivals
    counted = Cycles(
        streaming=streaming, gather=gather, conflicts=conflicts, fma=fma, reduction=reduction,
        stores=stores, products=n * int(stream.active @ each),
    )  # fmt: skip
    if not filled.any():
        return replace(counted, total=stores + engine.fma_latency * bool(len(filled)))

    width, last = min(n, engine.accumulators), n - (turns - 1) * engine.accumulators
    of_group = np.diff(np.concatenate(([0], np.cumsum(costs.load)))[stream.indptr])
    index_loads = costs.index_load * np.diff(stream.indptr)
    later = (n - width) * of_group + (turns - 1) * index_loads
    if engine.prefetch:
        # From some group on gathers never wait: from its first bundle, or from the last of its first turn; of groups
        # that are like it, the first or the last.
        arrival = float(stream.bytes[0]) / rate
        loaded, streamed = width * of_group + index_loads + later, once + more
        before = np.cumsum(streamed * stream.repeats) - streamed * stream.repeats
        after = np.cumsum((loaded * stream.repeats)[::-1])[::-1]
        last_load = costs.index_load + width * costs.load[np.maximum(stream.indptr[1:] - 1, 0)]
        from_turn = once - arrival + last_load + later - loaded
        ahead = before + after + np.maximum(0, np.where(filled, from_turn, 0))
        to_last = (stream.repeats - 1) * (streamed - loaded)
        gathered = max(
            arrival + float((ahead + np.maximum(0, to_last)).max()),
            streaming + costs.index_load + last * int(costs.load[-1]),
        )
    else:
        arrival = 0.0
        each_group = width * of_group + index_loads + np.maximum(later, more)
        gathered = waits + float(each_group @ stream.repeats)

    first, final_group = np.flatnonzero(filled)[[0, -1]].tolist()
    bundle = slice(int(stream.indptr[first]), int(stream.indptr[first + 1]))
    load, multiply = int(costs.load[0]), int(costs.multiply[0])
    # The last sums, and the zeros of rows after them.
    beyond = n * int(costs.store[final_group + 1 :] @ stream.repeats[final_group + 1 :])
    final = last * int(costs.store[final_group]) + beyond
    busy_group = max(
        width * int(costs.load[bundle].sum()),
        width * int(costs.multiply[bundle].sum()),
        (float(stream.bytes[bundle].sum()) / rate) if engine.prefetch else 0.0,
    )
    ends = (
        gathered + engine.bank_latency + multiply + last * costs.reduction + engine.fma_latency
        + final,
        arrival + costs.index_load + load + engine.bank_latency + arithmetic
        + engine.fma_latency + final,
        arrival + busy_group + engine.bank_latency + width * costs.reduction + engine.fma_latency
        + stores,
    )  # fmt: skip
    return replace(counted, total=math.ceil(max(ends)))
