"""The roofline: what this CPU can load, permute and multiply, and the least time that a plan needs for it.

Probes are loops in C (csrc/kernels/probe_*.c) that are timed here, a few milliseconds each. A bound is computed from
what a plan says of itself: its bytes, its slots and the form of its kernel. Nothing of a kernel is timed for it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern.plans import cpu_info

if TYPE_CHECKING:
    from gspattern.plans import Plan

__all__ = ["Bound", "Probes", "bound", "dense_bound", "probe", "read_time", "together"]

BLOCK = 1024  # bytes: the memory of a probe is a multiple
IN_L1 = 16 * BLOCK
MOST_MEMORY = 1 << 28  # bytes: no larger memory is probed
REPEATS = 15


@dataclass(frozen=True)
class Probes:
    """What one core does, with one instruction set.

    Attributes
    ----------
    backend : str
    lanes : int
        Floats of a register.
    load, permute, step, fma, load_fma : float
        Seconds of one aligned load of a register from L1, of one look-up of a register in a register table, of a
        look-up and a multiply-add, of a multiply-add from registers, and of one with an aligned operand from L1.
    bandwidth : dict of str to float
        Bytes per second that are loaded from "L1d", "L2", "L3" and "memory".
    narrow : dict of str to float
        Seconds of a look-up of a register of 16-bit ("pairs") or 8-bit numbers ("bytes") and a dot product with what it
        gives; of what this CPU has.
    """

    backend: str
    lanes: int
    load: float
    permute: float
    step: float
    fma: float
    load_fma: float
    bandwidth: dict[str, float]
    narrow: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """The least time of a product, and what sets it.

    Attributes
    ----------
    parts : dict of str to float
        Seconds that each resource needs by itself: "bytes", "steps" (permutes with their multiply-adds), "loads",
        "fma".
    """

    parts: dict[str, float]

    @property
    def limit(self) -> str:
        """The resource that needs longest."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def seconds(self) -> float:
        return self.parts[self.limit]


# -------------------------------------------------------------------- probes


def _memory(nbytes: int) -> npt.NDArray[np.float32]:
    """Float32 [nbytes / 4], aligned to 64 bytes; written, since pages that never were are all one page of zeros."""
    raw = np.full(nbytes // 4 + 16, 1e-3, np.float32)
    first = -raw.ctypes.data % 64 // 4
    return raw[first : first + nbytes // 4]


def _time(backend: str, kind: str, memory: npt.NDArray[np.float32], seconds: float) -> float:
    """Seconds of one item, best of several rounds of about `seconds`."""
    start = time.perf_counter()
    _core.probe(backend, kind, memory, 1)
    once = time.perf_counter() - start
    rounds = max(1, int(seconds / once / REPEATS))
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        items, _, _ = _core.probe(backend, kind, memory, rounds)
        best = min(best, (time.perf_counter() - start) / items)
    return best


def read_time(nbytes: int) -> float:
    """Seconds that one core needs at least to load so many bytes again and again, from wherever they fit."""
    # Sixteen sizes for each doubling are measured; the next smaller one is not slower.
    blocks = max(1, min(nbytes, MOST_MEMORY) // BLOCK)
    grain = 1 << max(0, blocks.bit_length() - 5)
    return nbytes * _time_of_a_byte(blocks // grain * grain * BLOCK)


@functools.cache
def _time_of_a_byte(size: int) -> float:
    memory, backend = _memory(size), _core.backends()[0]
    lanes = _core.probe(backend, "read", memory, 1)[1]
    return min(_time(backend, kind, memory, 0.02) for kind in ("read", "ahead")) / (4 * lanes)


def _caches() -> dict[str, int]:
    """Bytes of each level, smallest first."""
    return dict(sorted(cpu_info().caches.items(), key=lambda level: level[1]))


@functools.cache
def probe(backend: str | None = None) -> Probes:
    """Measure this CPU; the second call gives what the first has measured.

    Parameters
    ----------
    backend : str, optional
        One of `gspattern.backends`; None for the best.

    Raises
    ------
    ValueError
        If this CPU does not run it.
    """
    name = backend or _core.backends()[0]
    memory = _memory(IN_L1)
    lanes = _core.probe(name, "read", memory, 1)[1]
    kinds = {
        "load": "read",
        "permute": "permute",
        "step": "step",
        "fma": "fma",
        "load_fma": "load_fma",
    }
    seconds = {field: _time(name, kind, memory, 0.02) for field, kind in kinds.items()}
    caches = _caches() or {"L1d": 2 * IN_L1}
    sizes = {level: size // 2 for level, size in caches.items()}
    sizes["memory"] = 3 * max(caches.values())
    return Probes(
        backend=name,
        lanes=lanes,
        bandwidth={level: nbytes / read_time(nbytes) for level, nbytes in sizes.items()},
        narrow=_narrow(name, memory),
        **seconds,
    )


def _narrow(backend: str, memory: npt.NDArray[np.float32]) -> dict[str, float]:
    found = {}
    for kind in ("pairs", "bytes"):
        with contextlib.suppress(ValueError):  # this CPU has no such instructions
            found[kind] = _time(backend, kind, memory, 0.02)
    return found


# -------------------------------------------------------------------- bounds


def bound(
    plan: Plan,
    shape: tuple[int, int],
    n: int,
    others: int | None = None,
    read: Callable[[int], float] | None = None,
) -> Bound:
    """Give the least time of ``y = W x`` by the design of a plan's kernel on one core of this CPU.

    The plan is loaded at least once, from where all of it fits. A slot of SpMV takes a lane of a step for every
    sample, and registers are loaded for values and positions, and from x. A slot of SpMM takes a multiply-add for
    every register of samples, with an operand from L1 unless rows share it; x and y are moved once.

    Parameters
    ----------
    plan : Plan
    shape : (int, int)
        Rows and columns of the matrix.
    n : int
        Columns of x, samples, or pixels of y.
    others : int, optional
        Bytes of x and y, if they are not those of a matrix product.
    read : callable, optional
        Gives the seconds that so many bytes take; `read_time` if not given.
    """
    read = read or read_time
    probes = probe(plan.backend)
    form = re.search(r"_(?:spmv|spmm)_([a-z]+)(\d*)__", plan.kernel)
    kind, width = (form[1], int(form[2] or 0)) if form else ("", 0)
    lanes = probes.lanes
    if kind == "tiles":
        # Tiles are dense; what it takes to expand them is not known without measuring the kernel.
        dtype = "int8" if "_i8_" in plan.kernel else "bfloat16"
        size = 4 if dtype == "int8" else 2
        moved = plan.bytes + size * n * (shape[0] + shape[1])
        products = _PRODUCTS[dtype][0][1]
        seconds = plan.slots * n / lanes / products * probes.fma
        return Bound({"bytes": read(moved), "fma": seconds})
    if plan.columns:
        registers = plan.slots * -(-n // lanes)
        # Four rows of a block share the register that is loaded; else every multiply-add has its own.
        loads = registers / 4 * probes.load if kind == "stacks" else registers * probes.load_fma
        moved = plan.bytes + (4 * n * (shape[0] + shape[1]) if others is None else others)
        return Bound({"bytes": read(moved), "loads": loads, "fma": registers * probes.fma})
    # A lane of a step takes one slot, or as many as a dot product adds up.
    steps = plan.slots / lanes / {"pairs": 2, "bytes": 4}.get(kind, 1)
    parts = {"bytes": read(plan.bytes), "fma": steps * n * probes.fma}
    # Registers that a step loads: values and positions or columns, for all samples, and of x for each of them.
    # Four steps of floats share a word of positions, and a table at best; two of narrower numbers share theirs.
    held, own = {
        "tables": (1.25, width / lanes / 4),
        "floats": (1.25, width / lanes / 4),
        "pairs": (1.5, 1),
        "bytes": (2, 1),
        "gather": (2, lanes),
        "loads": (1.25, lanes),
        "wide": (1, 1),
        "tall": (1, 1),
    }.get(kind, (1, 1))
    parts["loads"] = steps * (held + n * own) * probes.load
    if kind in probes.narrow:
        parts["steps"] = steps * n * probes.narrow[kind]
    if kind in ("tables", "floats"):
        entries = {"avx512": 32, "avx2": 8, "neon": 16}[plan.backend]  # that one permute looks up
        permutes = max(1, width // entries)
        parts["steps"] = steps * n * (probes.step + (permutes - 1) * probes.permute)
    return Bound(parts)


def dense_bound(
    shape: tuple[int, int],
    n: int,
    dtype: str = "float32",
    read: Callable[[int], float] | None = None,
) -> Bound:
    """Give the least time of a dense product: its weights loaded once, and all multiply-adds from registers.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the weights.
    n : int
        Columns of x.
    dtype : {"float32", "bfloat16", "int8"}
        Dot products of two bfloat16 or four int8 numbers are counted as fast as a multiply-add of float32, where the
        CPU has them, and matrix units as sixteen times as fast as float32 or, for int8, as 32 times.
    read : callable, optional
        Gives the seconds that so many bytes take; `read_time` if not given.
    """
    read = read or read_time
    probes = probe()
    size = shape[0] * shape[1]
    features = cpu_info().features
    products = next((count for name, count in _PRODUCTS[dtype] if name in features), 1)
    parts = {"bytes": read(_BYTES[dtype] * size)}
    return Bound(parts | {"fma": size * n / probes.lanes / products * probes.fma})


# What a CPU may have, best first, and how many multiply-adds it does in the time of one of float32.
_PRODUCTS = {
    "float32": (),
    "bfloat16": (("amx_bf16", 16), ("avx512_bf16", 2)),
    "int8": (("amx_int8", 32), ("avx512_vnni", 4), ("avx_vnni", 4)),
}
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def together(first: Bound, step: Bound, steps: int) -> Bound:
    """Give the bound of work that is done once, and of steps that wait for each other.

    Parameters
    ----------
    first, step : Bound
    steps : int
        How often `step` is done.

    Returns
    -------
    Bound
        Of the sum, by what limits the greater part of it.
    """
    work = ((first.seconds, first.limit), (steps * step.seconds, step.limit))
    return Bound({max(work)[1]: sum(seconds for seconds, _ in work)})


def as_dict(probes: Probes) -> dict[str, Any]:
    """Probes in units for people: items per nanosecond and GB/s."""
    return {
        "backend": probes.backend,
        "lanes": probes.lanes,
        "loads_per_ns": 1e-9 / probes.load,
        "permutes_per_ns": 1e-9 / probes.permute,
        "steps_per_ns": 1e-9 / probes.step,
        "fma_per_ns": 1e-9 / probes.fma,
        "load_fma_per_ns": 1e-9 / probes.load_fma,
        **{f"{kind}_per_ns": 1e-9 / seconds for kind, seconds in probes.narrow.items()},
        "gmacs_registers": 1e-9 * probes.lanes / probes.fma,
        "gmacs_l1": 1e-9 * probes.lanes / probes.load_fma,
        "gbytes_per_s": {level: 1e-9 * rate for level, rate in probes.bandwidth.items()},
    }
