"""The processor that is modelled: its parameters and presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["NO_BANK", "PRESETS", "Engine"]

NO_BANK = np.uint16(0xFFFF)  # GSPI_NO_BANK of csrc/engine
MOST = 65535
MAPPINGS = ("address", "interleaved", "contiguous")

Mapping = Literal["address", "interleaved", "contiguous"]


def check_integer(name: str, value: object, least: int, most: int | None = MOST) -> None:
    """Raise ValueError unless the value is an integer of a range."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not ok or (most is not None and isinstance(value, int) and value > most):
        limit = "up" if most is None else f"to {most}"
        raise ValueError(f"{name} must be an integer from {least} {limit}, got {value!r}")


@dataclass(frozen=True)
class Engine:
    """The processor. Defaults are those of the preset "paper128".

    "Derived" is what follows from published kernels of the paper's authors or from the width of a register; "guess" is
    what no source gives: neither the paper's timing nor its simulator's parameters are public.

    Attributes
    ----------
    lanes : int
        Slots of one gather. 16: derived (256 bits of float16).
    banks : int
        Banks of the scratchpad, each one element wide. 16: derived, as many as lanes.
    ports : int
        Accesses that a bank serves in a cycle. 1: guess, the least.
    bank_latency : int
        Cycles from an access of the scratchpad (or of L1, without one) to its data. 2: guess.
    gather_issue : int
        Slots that a gather issues in a cycle. 16: derived, all lanes at once.
    vector_width : int
        Elements that a plain load or store, or an add of a reduction, takes in a cycle. 16: derived, a register.
    fma_lanes : int
        Products in a cycle. 16: derived, a register.
    fma_latency : int
        Cycles from the last product to its sum. 4: guess, as in common vector units.
    accumulators : int
        Columns of x (positions of a convolution) whose sums stay in registers at once, so that a group of rows is
        multiplied with as many before its weights are used again. 8: guess; 32 registers have room for them.
    scratchpad_bytes : int
        Bytes of the scratchpad: x in one half, y in the other. 65,536: derived, the authors' kernels do so.
        0 is a processor without: activations are then in L1, which is loaded from L2 or memory.
    l1_bytes : int
        Bytes of the first cache. 32,768: guess. Weights of a group that fit are used again from here.
    l1_bytes_per_cycle : float
        Of weights from L1. 64: guess, a register of values and one of indices.
    l2_bytes : int
        Bytes of the second cache. 1,048,576: guess. Weights of a layer that fit are used again from here.
    l2_bytes_per_cycle : float
        64: guess, a line.
    l2_latency : int
        Cycles until a line of L2 begins to arrive; counts only without prefetch. 14: guess.
    dram_bytes_per_cycle : float
        Bytes that arrive in a cycle. 64: guess, a register of values and one of indices.
    dram_latency : int
        Cycles until a line begins to arrive; counts only without prefetch. 100: guess.
    line_bytes : int
        Bytes asked for at once; counts only without prefetch. 64: guess, a line of common caches.
    element_bytes : int
        Bytes of a value and of an activation. 2: derived (float16).
    index_bytes : int
        Bytes of the index of a column, or of a row under scatter. 2: derived, from the authors' format.
    gate_operations : int
        Vector instructions for the gates of an LSTM, for each register of hidden units. 30: guess, five
        activations of five and five products and sums.
    mapping : {"address", "interleaved", "contiguous"}
        Which bank an element is in. "address": its address modulo banks; derived. The others go by the column of the
        matrix: column modulo banks, or equal runs of columns. Only a convolution tells "address" from "interleaved";
        by columns, it has its input unfolded.
    fused_gather : bool
        A gather reads its indices itself; else they are loaded first, in cycles of their own. True: derived.
    prefetch : bool
        Weights are streamed ahead of their use; else a line is asked for when the bundle before is gathered. True:
        derived.

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
    vector_width: int = 16
    fma_lanes: int = 16
    fma_latency: int = 4
    accumulators: int = 8
    scratchpad_bytes: int = 65536
    l1_bytes: int = 32768
    l1_bytes_per_cycle: float = 64.0
    l2_bytes: int = 1048576
    l2_bytes_per_cycle: float = 64.0
    l2_latency: int = 14
    dram_bytes_per_cycle: float = 64.0
    dram_latency: int = 100
    line_bytes: int = 64
    element_bytes: int = 2
    index_bytes: int = 2
    gate_operations: int = 30
    mapping: Mapping = "address"
    fused_gather: bool = True
    prefetch: bool = True

    def __post_init__(self) -> None:
        positive = ("lanes", "banks", "ports", "gather_issue", "vector_width", "fma_lanes")
        for name in (*positive, "accumulators", "line_bytes", "element_bytes", "index_bytes"):
            check_integer(name, getattr(self, name), 1)
        latencies = ("bank_latency", "fma_latency", "l2_latency", "dram_latency")
        for name in (*latencies, "gate_operations"):
            check_integer(name, getattr(self, name), 0)
        check_integer("l1_bytes", self.l1_bytes, 2 * self.element_bytes, None)
        check_integer("l2_bytes", self.l2_bytes, 0, None)
        check_integer("scratchpad_bytes", self.scratchpad_bytes, 0, None)
        if 0 < self.scratchpad_bytes < 2 * self.element_bytes:
            raise ValueError(
                f"scratchpad_bytes must be 0, or hold two elements of {self.element_bytes} bytes, "
                f"got {self.scratchpad_bytes}"
            )
        for name in ("l1_bytes_per_cycle", "l2_bytes_per_cycle", "dram_bytes_per_cycle"):
            rate = getattr(self, name)
            if not (isinstance(rate, int | float) and math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name} must be a number above 0, got {rate!r}")
        if self.mapping not in MAPPINGS:
            raise ValueError(f"mapping must be one of {', '.join(MAPPINGS)}, got {self.mapping!r}")

    def bank_of(self, elements: npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
        """Give the bank of elements (addresses or columns) of a vector of `length`, in their shape."""
        j = np.asarray(elements, np.int64)
        if self.mapping != "contiguous":
            return np.asarray(j % self.banks)
        return np.asarray(((j + 1) * self.banks - 1) // length)


_PAPER128 = Engine()
PRESETS: dict[str, Engine] = {
    # 8 slots of float16 in 128 bits, as in the authors' kernels; the streams are guesses as above.
    "paper64": replace(
        _PAPER128,
        lanes=8,
        banks=8,
        gather_issue=8,
        vector_width=8,
        fma_lanes=8,
        l1_bytes_per_cycle=32.0,
        l2_bytes_per_cycle=32.0,
        dram_bytes_per_cycle=32.0,
    ),
    "paper128": _PAPER128,
    # Shared memory of a GPU: 32 banks of 4 bytes. Latencies and streams, one line a cycle, are guesses.
    "gpu_shared": replace(
        _PAPER128,
        lanes=32,
        banks=32,
        gather_issue=32,
        bank_latency=23,
        vector_width=32,
        fma_lanes=32,
        element_bytes=4,
        l1_bytes_per_cycle=128.0,
        l2_bytes_per_cycle=128.0,
        dram_bytes_per_cycle=128.0,
        fused_gather=False,
    ),
    # An ordinary core: two loads a cycle from any address of L1, indices loaded first. The rest as above.
    "no_engine": replace(
        _PAPER128,
        banks=1,
        ports=2,
        gather_issue=2,
        bank_latency=5,
        scratchpad_bytes=0,
        fused_gather=False,
    ),
}


def find_engine(engine: str | Engine) -> Engine:
    """Give the preset of a name, or the engine itself."""
    if isinstance(engine, Engine):
        return engine
    if engine not in PRESETS:
        raise ValueError(f"engine must be an Engine or one of {', '.join(PRESETS)}, got {engine!r}")
    return PRESETS[engine]


def changed(engine: Engine, settings: list[str]) -> Engine:
    """Give an engine with other values of parameters, each written as ``name=value``.

    Raises
    ------
    ValueError
        If there is no such parameter, or the value is none of its type.
    """
    types = {field.name: type(getattr(engine, field.name)) for field in fields(engine)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in types:
            raise ValueError(
                f"a setting is name=value, with one of {', '.join(types)}; got {setting!r}"
            )
        kind = types[name]
        try:
            values[name] = (
                {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            )
        except (ValueError, KeyError):
            raise ValueError(f"{name} must be of type {kind.__name__}, got {text!r}") from None
    return replace(engine, **values)
