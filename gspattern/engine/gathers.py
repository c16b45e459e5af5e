"""What an ordinary CPU does with the engine's index streams: its real gather and scatter rates.

In the terms of Spatter (Lavin et al., MEMSYS 2020): useful bytes, of what is gathered or scattered, over the least time
of several runs. Elements are float32, where Spatter's are 8 bytes. Indices are int32 and are all loaded, once for each
slot, where Spatter repeats a short list of them: a stream of a pruned matrix does not repeat. Loops are in C
(csrc/kernels/gathers_*.c), one instruction each, and add up the bits of what they gather.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern.engine.processor import Engine, check_integer, find_engine
from gspattern.report import _table
from gspattern.roofline import IN_L1, _caches, _memory

__all__ = ["GatherBench", "GatherRate", "gather_bench", "make_indices"]

STREAMS = ("gs", "stride 1", "stride 16", "same bank", "random")
BYTES = 4  # of an element, and of an index

Cell = tuple[str, str, str]  # where, stream, instruction


@dataclass(frozen=True)
class GatherRate:
    """What one instruction does with one stream.

    Attributes
    ----------
    instruction : str
        "load" and "store" are those of single floats; "avx512 gather", "avx512 scatter", ...; "avx512 permute" looks
        up registers.
    stream, where : str
    bytes : int
        Of what is gathered or scattered in one pass over the stream; neither indices nor what else is in a line count.
    seconds : float
        Of one pass, in the fastest run; CPU time.
    """

    instruction: str
    stream: str
    where: str
    bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds


@dataclass(frozen=True)
class GatherBench:
    """Rates of one core.

    Attributes
    ----------
    rates : tuple of GatherRate
    lanes, banks : int
        Slots of a bundle of the streams, and banks.
    sizes : dict of str to int
        Bytes of the array that is gathered from, in each place; the indices of a stream are as many bytes again.
    stream_bytes : int
        Bytes of an array of STREAM's copy.
    stream_bytes_per_second : float
        Of STREAM's copy, reads and writes counted: what the memory gives when nothing is gathered.
    """

    rates: tuple[GatherRate, ...]
    lanes: int
    banks: int
    sizes: dict[str, int]
    stream_bytes: int
    stream_bytes_per_second: float

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, in GB/s: a head, a line for every place and stream, and STREAM's copy."""
        instructions = list(dict.fromkeys(rate.instruction for rate in self.rates))
        found = {
            (rate.where, rate.stream, rate.instruction): f"{1e-9 * rate.bytes_per_second:.2f}"
            for rate in self.rates
        }
        lines = [
            (where, stream, *(found.get((where, stream, each), "") for each in instructions))
            for where, stream in dict.fromkeys((rate.where, rate.stream) for rate in self.rates)
        ]
        copy = f"{1e-9 * self.stream_bytes_per_second:.2f}"
        last = ("memory", "STREAM copy", copy, *[""] * (len(instructions) - 1))
        return [("from", "stream", *instructions), *lines, last]

    def __str__(self) -> str:
        sizes = ", ".join(f"{where} {size:,}" for where, size in self.sizes.items())
        return "\n".join(
            [
                *_table(self.cells(), left=(0, 1)),
                f"GB/s of useful bytes, float32; bundles of {self.lanes}, {self.banks} banks; "
                f"bytes, and of indices as many again: {sizes}",
                f"the copy, of {self.stream_bytes:,} bytes, counts what is read and what is written",
            ]
        )


def make_indices(
    stream: str, count: int, entries: int, lanes: int = 16, banks: int = 16, seed: int = 0
) -> npt.NDArray[np.int32]:
    """Make a stream of indices, bundle after bundle, into an array of so many entries.

    Parameters
    ----------
    stream : str
        "gs": the slots of a bundle are in different banks, index modulo `banks` (if there are more slots than banks,
        as evenly as possible), and anywhere else. "same bank": all of them are in one, another for each bundle.
        "random": anywhere. "stride S": S apart, and from the start again, one further, until all entries were there.
        "table T": as "gs" within a table of T entries that begins at a multiple of T, another for each bundle; what
        a look-up in registers can do.
    count : int
        Slots; the last bundle may be short.
    entries : int
        From `banks`, S or T up; but for "random", what is beyond the last multiple of it is not used.
    lanes, banks : int
        Slots of a bundle, and banks.
    seed : int

    Returns
    -------
    ndarray of int32 [count]

    Raises
    ------
    ValueError
        If there is no such stream, or the array is too small for it.
    """
    check_integer("count", count, 0, None)
    check_integer("lanes", lanes, 1)
    check_integer("banks", banks, 1)
    match = re.fullmatch(r"(gs|same bank|random)|(stride|table) ([1-9]\d*)", stream)
    if match is None:
        raise ValueError(
            f"stream must be gs, same bank, random, stride S or table T, got {stream!r}"
        )
    kind, size = match[1] or match[2], int(match[3] or banks)
    check_integer("entries", entries, size, 2**31 - 1)
    if kind == "table" and size % banks != 0:
        raise ValueError(
            f"the entries of a table must be a multiple of banks = {banks}, got {stream!r}"
        )
    random = np.random.default_rng(seed)
    if kind == "random":
        return random.integers(0, entries, count, np.int32)
    if kind == "stride":
        turn = np.arange(0, entries // size * size, size, dtype=np.int32)
        starts = np.arange(min(size, -(-count // turn.size)), dtype=np.int32)
        return np.resize(starts[:, None] + turn, count)
    bundles = -(-count // lanes)
    bank = random.integers(0, banks, (bundles, 1), np.int32)
    if kind != "same bank":
        bank = (bank + np.arange(lanes, dtype=np.int32)) % np.int32(banks)
    first: npt.NDArray[np.int32] | int = 0
    lines = entries // banks
    if kind == "table":
        first = size * random.integers(0, entries // size, (bundles, 1), np.int32)
        lines = size // banks
    line = random.integers(0, lines, (bundles, lanes), np.int32)
    line *= banks
    line += bank
    line += first
    return line.reshape(-1)[:count]


def gather_bench(
    engine: str | Engine = "paper128",
    seconds: float = 0.1,
    sizes: Mapping[str, int] | None = None,
    instructions: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    runs: int = 10,
    track: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
) -> GatherBench:
    """Measure how fast one core of this CPU gathers and scatters along streams of indices.

    Times are CPU times of this thread, so that other programs do not count; a run begins with what the one before has
    left in the caches.

    Parameters
    ----------
    engine : Engine or str
        Gives the lanes and banks of the streams; nothing else of it counts.
    seconds : float
        Of all runs of one rate together, about. A run is as many passes over a stream as fit, but at least one.
    sizes : mapping of str to int, optional
        Bytes of the array that is gathered from, by the name of where it is; rounded down. Default: a third of the
        first cache ("L1") and of the second ("L2"), so that the indices fit as well, and four times the last one
        ("memory"), as STREAM wants it. Large pages are used where NumPy and the system use them.
    instructions : sequence of str, optional
        Default: all that this CPU has.
    streams : sequence of str, optional
        As for `make_indices`. Default: gs, stride 1, stride 16, same bank, random, and a table for each look-up in
        registers that the CPU has. A look-up is only measured on tables of its own size.
    runs : int
        The fastest one counts; Spatter has ten.
    track : callable
        Goes through the (where, stream, instruction) that are measured: a progress bar.

    Returns
    -------
    GatherBench

    Raises
    ------
    ValueError
        If an argument is out of its range, or this CPU has no such instruction.
    """
    machine = find_engine(engine)
    check_integer("runs", runs, 1)
    if not seconds >= 0:
        raise ValueError(f"seconds must not be negative, got {seconds}")
    known = {name: (lanes, reach) for name, lanes, reach, _ in _core.gathers()}
    chosen = list(known) if instructions is None else list(instructions)
    for name in chosen:
        if name not in known:
            raise ValueError(f"this CPU has {', '.join(known)}; got {name!r}")
    tables = {f"table {reach}": lanes for lanes, reach in known.values() if reach}
    if streams is None:
        streams = (*STREAMS, *tables)

    def lanes_and_banks(stream: str) -> tuple[int, int]:
        """Of a table: as many as the look-up has lanes."""
        lanes = tables.get(stream)
        return (lanes, lanes) if lanes else (machine.lanes, machine.banks)

    grain = math.lcm(machine.banks, 64)
    sizes = {
        where: size // (BYTES * grain) * BYTES * grain
        for where, size in (_sizes() if sizes is None else sizes).items()
    }
    if min(sizes.values(), default=0) < 1:
        raise ValueError(f"sizes must be from {BYTES * grain} bytes up for {machine.banks} banks")
    for stream in streams:  # what is wrong is said at once
        make_indices(stream, 0, min(sizes.values()) // BYTES, *lanes_and_banks(stream))

    work = [
        (where, stream, name)
        for where in sizes
        for stream in streams
        for name in chosen
        if known[name][1] == 0 or stream == f"table {known[name][1]}"
    ]
    rates: list[GatherRate] = []
    made: tuple[str, str] | None = None
    table = indices = _memory(0)
    for where, stream, name in track(work):
        if made != (where, stream):
            table, indices = _memory(sizes[where]), _memory(sizes[where])
            shape = lanes_and_banks(stream)
            indices.view(np.int32)[:] = make_indices(stream, table.size, table.size, *shape)
            made = where, stream
        least = _least(name, indices.view(np.int32), table, seconds, runs)
        rates.append(GatherRate(name, stream, where, indices.nbytes, least))
    memory = _sizes()["memory"]
    return GatherBench(
        tuple(rates), machine.lanes, machine.banks, sizes, memory, _copy(memory, runs)
    )


def _sizes() -> dict[str, int]:
    caches = list((_caches() or {"L1d": 2 * IN_L1}).values())
    return {
        "L1": caches[0] // 3,
        "L2": caches[min(1, len(caches) - 1)] // 3,
        "memory": 4 * caches[-1],
    }


def _least(
    name: str,
    indices: npt.NDArray[np.int32],
    table: npt.NDArray[np.float32],
    seconds: float,
    runs: int,
) -> float:
    """Seconds of one pass, in the fastest of the runs."""
    once = _core.gather(name, indices, table, 1)[0]
    rounds = max(1, int(seconds / runs / max(once, 1e-9)))
    return min(_core.gather(name, indices, table, rounds)[0] for _ in range(runs)) / rounds


def _copy(nbytes: int, runs: int) -> float:
    """Bytes per second of STREAM's copy, which counts what is read and what is written."""
    source, target = _memory(nbytes), _memory(nbytes)
    least = math.inf
    for _ in range(runs):
        start = time.thread_time()
        np.copyto(target, source)
        least = min(least, time.thread_time() - start)
    return 2 * nbytes / least
