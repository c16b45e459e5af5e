"""The C core: types of what csrc/python defines."""

from typing import Any

import numpy as np
import numpy.typing as npt

class PatternError(ValueError): ...

class FormatError(ValueError):
    rule: str

def set_num_threads(threads: int, /) -> None: ...
def get_num_threads() -> int: ...

# masks
def choose(
    choices: tuple[tuple[Any, ...], ...], keep: int, greedy: bool, /
) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...] | None, float]: ...
def max_bundles(pattern: tuple[Any, ...], cols: int, group_rows: int, /) -> int: ...
def check_mask(
    mask: npt.NDArray[np.bool_],
    pattern: tuple[Any, ...],
    row_order: npt.NDArray[np.uint32] | None,
    /,
) -> list[tuple[int, int, int, int, int]]: ...
def complete_mask(
    mask: npt.NDArray[np.bool_],
    pattern: tuple[Any, ...],
    row_order: npt.NDArray[np.uint32] | None,
    /,
) -> None: ...

# matrices: core is (pattern, shape, dtype, values, indices, indptr, row_order, scales)
def encode(
    weights: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    pattern: tuple[Any, ...],
    row_order: npt.NDArray[np.uint32] | None,
    dtype: int,
    /,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint32]]: ...
def validate(*core: Any) -> tuple[str, str, str | None, int, int, int] | None: ...
def decode(*core: Any) -> npt.NDArray[Any]: ...
def columns(*core: Any) -> npt.NDArray[np.uint32]: ...
def aligned_copy(array: npt.NDArray[Any], /) -> npt.NDArray[Any]: ...

# plans
class Plan:
    @property
    def kernel(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def columns(self) -> bool: ...
    @property
    def strided(self) -> bool: ...
    @property
    def efficiency(self) -> float: ...
    @property
    def why(self) -> str: ...
    @property
    def most(self) -> int: ...
    def multiply(self, x: npt.NDArray[Any], /) -> npt.NDArray[Any]: ...
    def try_multiply(self, x: object, /) -> npt.NDArray[Any] | None: ...
    def linear(
        self,
        x: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None,
        activation: int | tuple[int, float, float],
        residual: npt.NDArray[Any] | None,
        out: npt.NDArray[Any] | None,
        /,
    ) -> npt.NDArray[Any]: ...
    def try_linear(
        self,
        x: object,
        bias: object,
        activation: int | tuple[int, float, float],
        residual: object,
        out: object,
        /,
    ) -> npt.NDArray[Any] | None: ...

def backends() -> tuple[str, ...]: ...
def missing_backends() -> dict[str, str]: ...
def plan(
    core: tuple[Any, ...], backend: str, n: int, x: int = -1, typenum: int = -1, /
) -> Plan: ...

# conv: x and y lie as [images, channels, rows, cols] or, with x_last or y_last, [images, rows, cols, channels];
# geometry is (kernel, stride, dilation, padding before), a pair each
def convolve(
    plan: Plan,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    x_last: bool,
    y_last: bool,
    geometry: tuple[tuple[int, ...], ...],
    bias: npt.NDArray[Any] | None,
    activation: int | tuple[int, float, float],
    residual: npt.NDArray[Any] | None,
    x_cols: npt.NDArray[np.int64] | None,
    y_cols: npt.NDArray[np.int64] | None,
    /,
) -> None: ...

# recurrent layers
def recurrent(
    cell: int,
    directions: int,
    plans: tuple[Plan, ...],
    biases: tuple[npt.NDArray[Any] | None, ...],
    x: npt.NDArray[Any],
    batch_sizes: npt.NDArray[np.int64] | None,
    h0: npt.NDArray[Any] | None,
    c0: npt.NDArray[Any] | None,
    /,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]: ...

# probes: kinds are "read", "ahead", "permute", "step", "fma", "load_fma", and "pairs" and "bytes" where the CPU can
def probe(
    backend: str, kind: str, memory: npt.NDArray[np.float32], rounds: int, /
) -> tuple[int, int, float]: ...

# name, lanes, reach of a look-up in registers or 0, whether it scatters
def gathers() -> list[tuple[str, int, int, bool]]: ...

# -> seconds of CPU time, sum of the bits of what was gathered; a scatter stores the bits of the number of each slot
def gather(
    name: str, indices: npt.NDArray[np.int32], table: npt.NDArray[np.float32], rounds: int, /
) -> tuple[float, int]: ...

# banks_of [accesses, slots] -> cycles [accesses]
def engine_access(
    banks: int, ports: int, issue: int, banks_of: npt.NDArray[np.uint16], /
) -> npt.NDArray[np.int64]: ...

# engine: (bank_latency, fma_latency, accumulators, line_latency, line_bytes, bytes_per_cycle, prefetch); stream: (load,
# multiply, bytes, indptr, repeats, store, again, reduction, index_load) -> total, stream, load, fma, reduction, store
def engine_run(
    engine: tuple[Any, ...], stream: tuple[Any, ...], n: int, /
) -> tuple[int, float, int, int, int, int]: ...
