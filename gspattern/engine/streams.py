"""Index streams: the addresses that a matrix gathers and scatters, and suites of them for Spatter.

Spatter (github.com/hpcgarage/spatter) measures gathers and scatters of real machines. Its suites are JSON lists of
configurations: a kernel, indices that are read or written, and how far they move from one repetition to the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gspattern.engine.bundles import NO_ROW, Weights, make_stream
from gspattern.engine.cycles import Integers, replay
from gspattern.engine.processor import Engine, find_engine
from gspattern.matrices import Matrix, as_matrix

__all__ = [
    "KERNELS", "ORDERS", "IndexStream", "SpatterReplay", "SpatterRun", "read_suite", "replay_run", "stream",
    "write_suite",
]  # fmt: skip

KERNELS = ("gather", "scatter", "gs", "multigather", "multiscatter")
ORDERS = ("stored", "rows", "banks")
MOST_SLOTS = 1 << 26  # that are expanded at once
SIZES = "access-sizes"  # ours: slots of each access. Spatter ignores keys that it does not know.

Kernel = Literal["gather", "scatter", "gs", "multigather", "multiscatter"]
Order = Literal["stored", "rows", "banks"]
Side = Literal["reads", "writes"]


@dataclass(frozen=True, eq=False)
class IndexStream:
    """What a matrix accesses for one vector x.

    Attributes
    ----------
    gathers, targets : ndarray of int64 [bundles, lanes]
        The column that every slot multiplies, and the row that it adds to; -1 for a slot that does nothing.
    stores : ndarray of int64 [stores, lanes]
        The rows that are stored at once; -1 where there are fewer.
    order : ndarray of int64 [rows]
        The row at every grouped position.
    cols : int
        Of the matrix.
    """

    gathers: Integers
    targets: Integers
    stores: Integers
    order: Integers
    cols: int


def stream(
    weights: Weights, order: Order = "stored", engine: str | Engine = "paper128"
) -> IndexStream:
    """Give the addresses that every bundle of a matrix gathers, and the rows that are stored.

    Parameters
    ----------
    weights : Matrix or array_like
        A matrix of any pattern; of an array, [M, K] or a kernel, what is not 0.
    order : {"stored", "rows", "banks"}
        Slots as they are stored; all elements row by row, by column, as of an irregular matrix; or as they are stored,
        but in each bundle by bank.
    engine : Engine or str
        Says how many lanes a bundle has, and the banks.

    Raises
    ------
    ValueError
        If the order is not known, or the weights are no matrix.

    Examples
    --------
    >>> import gspattern as gs
    >>> eye = gs.encode(np.eye(4, dtype=np.float32), "gs(4,1)")
    >>> stream(eye, engine=Engine(lanes=4, banks=4)).gathers.tolist()
    [[0, 1, 2, 3]]
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    machine = find_engine(engine)
    if not isinstance(weights, Matrix):
        weights = as_matrix(np.asarray(weights)) != 0
    elif order == "rows":
        weights = weights.mask()
    made = make_stream(weights, machine, with_values=False)
    assert made.columns is not None
    assert made.slot_rows is not None
    used = made.slot_rows != NO_ROW
    gathers = np.where(used, made.columns.astype(np.int64), -1)
    targets = np.where(used, made.slot_rows.astype(np.int64), -1)
    if order == "banks":
        banks = np.where(used, machine.bank_of(gathers, made.cols), machine.banks)
        by_bank = np.argsort(banks, axis=1, kind="stable")
        gathers = np.take_along_axis(gathers, by_bank, axis=1)
        targets = np.take_along_axis(targets, by_bank, axis=1)
    grouped = np.arange(made.rows) if made.row_order is None else made.row_order.astype(np.int64)
    return IndexStream(
        gathers, targets, _stores(made.heights, grouped, machine), grouped, made.cols
    )


def _stores(heights: Integers, order: Integers, engine: Engine) -> Integers:
    """The rows of each group, in parts of a register."""
    lanes = engine.lanes
    parts = -(-heights // lanes)
    stores = np.full((int(parts.sum()), lanes), -1, np.int64)
    within = np.arange(len(order)) - np.repeat(np.cumsum(heights) - heights, heights)
    first = np.repeat(np.cumsum(parts) - parts, heights)
    stores[first + within // lanes, within % lanes] = order
    return stores


# ------------------------------------------------------------------- Spatter


@dataclass(frozen=True)
class SpatterRun:
    """A configuration of a Spatter suite.

    In repetition i, of `count`, "gather" reads and "scatter" writes pattern[j] + delta i for all j; "gs" reads
    pattern_gather[j] + delta_gather i and writes pattern_scatter[j] + delta_scatter i; "multigather" reads
    pattern[pattern_gather[j]] + delta i, "multiscatter" writes pattern[pattern_scatter[j]] + delta i. The other side of
    all but "gs" is contiguous, and begins again after `wrap` repetitions.

    Attributes
    ----------
    kernel : str
        One of `KERNELS`.
    pattern, pattern_gather, pattern_scatter : tuple of int
        Empty if the kernel has none.
    delta, delta_gather, delta_scatter, count, wrap : int
    name : str
    sizes : tuple of int
        Slots of each access of one repetition, which Spatter does not know; empty: as many as the engine has lanes.
    """

    kernel: str
    pattern: tuple[int, ...] = ()
    pattern_gather: tuple[int, ...] = ()
    pattern_scatter: tuple[int, ...] = ()
    delta: int = 8
    delta_gather: int = 8
    delta_scatter: int = 8
    count: int = 1024
    wrap: int = 1
    name: str = ""
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, given: IndexStream, kernel: Kernel = "gather", n: int = 1, name: str = ""
    ) -> SpatterRun:
        """Make a configuration that accesses what a matrix does, for n vectors one after the other.

        "gather" reads x as bundles do; "scatter" writes rows as they are stored; "gs" reads columns and writes the
        rows that they are added to; "multigather" reads by way of the slots that are used, and "multiscatter" writes
        by way of the order of rows.

        Raises
        ------
        ValueError
            If the kernel is not known, or the stream has no access.
        """
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        from_stores = kernel in ("scatter", "multiscatter")
        accesses = given.stores if from_stores else given.gathers
        used = accesses >= 0
        if not used.any():
            raise ValueError("the matrix accesses nothing")
        sizes = tuple(size for size in used.sum(axis=1).tolist() if size)
        width, rows = given.cols, len(given.order)
        places: dict[str, Any]
        if kernel == "gs":
            places = {
                "pattern_gather": _integers(accesses[used]), "pattern_scatter": _integers(given.targets[used]),
            }  # fmt: skip
        elif kernel == "multigather":
            slots = np.flatnonzero(used)
            stored = np.maximum(accesses, 0).ravel()
            places = {"pattern": _integers(stored), "pattern_gather": _integers(slots)}
        elif kernel == "multiscatter":
            at = np.empty(rows, np.int64)
            at[given.order] = np.arange(rows)
            places = {"pattern": _integers(given.order), "pattern_scatter": _integers(at[accesses[used]])}  # fmt: skip
        else:
            places = {"pattern": _integers(accesses[used])}
        return cls(
            kernel, **places, delta=rows if from_stores else width, delta_gather=width, delta_scatter=rows,
            count=n, name=name, sizes=sizes,
        )  # fmt: skip

    @property
    def reads(self) -> tuple[int, ...]:
        """Indices that one repetition reads, in order; empty for kernels that only write them."""
        if self.kernel == "multigather":
            return tuple(self.pattern[j] for j in self.pattern_gather)
        return {"gather": self.pattern, "gs": self.pattern_gather}.get(self.kernel, ())

    @property
    def writes(self) -> tuple[int, ...]:
        """Indices that one repetition writes, in order; empty for kernels that only read them."""
        if self.kernel == "multiscatter":
            return tuple(self.pattern[j] for j in self.pattern_scatter)
        return {"scatter": self.pattern, "gs": self.pattern_scatter}.get(self.kernel, ())

    def accesses(self, side: Side, lanes: int = 16) -> Integers:
        """Give all accesses, [accesses, slots], -1 for none: by `sizes`, or `lanes` slots at a time.

        Raises
        ------
        ValueError
            If there are more than 2**26 slots in all.
        """
        indices = np.array(self.reads if side == "reads" else self.writes, np.int64)
        if len(indices) * self.count > MOST_SLOTS:
            raise ValueError(
                f"{len(indices)} indices {self.count} times are more than {MOST_SLOTS}; lower the count"
            )
        full, rest = divmod(len(indices), lanes)
        sizes = np.array(self.sizes or [lanes] * full + [rest] * (rest > 0), np.int64)
        if not len(indices):
            return np.empty((0, lanes), np.int64)
        one = np.full((len(sizes), int(sizes.max())), -1, np.int64)
        one[np.arange(one.shape[1]) < sizes[:, None]] = indices
        of_gs = self.delta_gather if side == "reads" else self.delta_scatter
        delta = of_gs if self.kernel == "gs" else self.delta
        moved = one[None] + delta * np.arange(self.count)[:, None, None]
        return np.where(one[None] < 0, -1, moved).reshape(-1, one.shape[1])

    def as_json(self) -> dict[str, Any]:
        """Give what stands in a suite."""
        found: dict[str, Any] = {"name": self.name} if self.name else {}
        found["kernel"] = self.kernel
        for key in ("pattern", "pattern_gather", "pattern_scatter"):
            if getattr(self, key):
                found[key.replace("_", "-")] = list(getattr(self, key))
        deltas = ("delta_gather", "delta_scatter") if self.kernel == "gs" else ("delta",)
        for key in (*deltas, "count", "wrap"):
            found[key.replace("_", "-")] = getattr(self, key)
        # Spatter takes indices modulo this; its own choice is too small for long suites.
        largest = max(self.pattern + self.pattern_gather + self.pattern_scatter)
        found["boundary"] = largest + 1
        return {**found, SIZES: list(self.sizes)} if self.sizes else found


def _integers(array: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(array.tolist())


def write_suite(runs: Iterable[SpatterRun], path: str | Path) -> None:
    """Write configurations as a suite that Spatter reads: `spatter -f FILE`."""
    lines = ",\n".join(json.dumps(run.as_json()) for run in runs)
    Path(path).write_text(f"[\n{lines}\n]\n", "utf-8")


def read_suite(path: str | Path) -> list[SpatterRun]:
    """Read a suite. What it leaves out is as in Spatter: a gather, deltas of 8, 1,024 times.

    Patterns may be lists, or UNIFORM:length:stride, with :delta or :NR (no reuse), MS1:length:places:gaps, and
    LAPLACIAN:dimension:order:size.

    Raises
    ------
    ValueError
        If it is no such suite.
    """
    try:
        suite = json.loads(Path(path).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(suite, list) or not all(isinstance(each, dict) for each in suite):
        raise ValueError(
            f"{path} must be a list of configurations, such as [{{'pattern': [0, 8]}}]"
        )
    found = []
    for number, each in enumerate(suite):
        try:
            found.append(_run_of(each))
        except ValueError as error:
            raise ValueError(f"{path}, configuration {number}: {error}") from None
    return found


NEEDS = {
    "gather": ("pattern",), "scatter": ("pattern",), "gs": ("pattern-gather", "pattern-scatter"),
    "multigather": ("pattern", "pattern-gather"), "multiscatter": ("pattern", "pattern-scatter"),
}  # fmt: skip


def _run_of(given: dict[str, Any]) -> SpatterRun:
    kernel = str(given.get("kernel", "gather")).lower()
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    values: dict[str, Any] = {}
    for key, least in {
        "delta": 0,
        "delta-gather": 0,
        "delta-scatter": 0,
        "count": 1,
        "wrap": 1,
    }.items():
        if key in given:
            value = given[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{key} must be an integer from {least} up, got {value!r}")
            values[key.replace("-", "_")] = value
    for key in NEEDS[kernel]:
        if key not in given:
            raise ValueError(f"{kernel} needs {key}")
        indices, delta = _expand(given[key])
        values[key.replace("-", "_")] = indices
        if delta is not None:
            values[key.replace("pattern", "delta").replace("-", "_")] = delta
    run = SpatterRun(kernel, **values, name=str(given.get("name", "")), sizes=_sizes(given))
    if kernel == "gs" and len(run.pattern_gather) != len(run.pattern_scatter):
        raise ValueError("pattern-gather and pattern-scatter must be of one length")
    if kernel.startswith("multi"):
        inner = run.pattern_gather or run.pattern_scatter
        if max(inner) >= len(run.pattern):
            raise ValueError(
                f"{NEEDS[kernel][1]} must be below {len(run.pattern)}, got {max(inner)}"
            )
    if run.sizes and sum(run.sizes) != len(run.reads or run.writes):
        raise ValueError(
            f"{SIZES} must sum to {len(run.reads or run.writes)}, got {sum(run.sizes)}"
        )
    return run


def _sizes(given: dict[str, Any]) -> tuple[int, ...]:
    sizes = given.get(SIZES, [])
    if not isinstance(sizes, list) or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"{SIZES} must be a list of integers from 1 up")
    return tuple(sizes)


def _expand(pattern: Any) -> tuple[tuple[int, ...], int | None]:
    """The indices of a pattern, and the delta that it brings."""
    if isinstance(pattern, list):
        indices = [i for i in pattern if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
        if not pattern or len(indices) < len(pattern):
            raise ValueError(f"a pattern must have integers from 0 up, got {str(pattern)[:60]}")
        return tuple(pattern), None
    form, *arguments = str(pattern).split(":")
    forms: dict[str, Callable[[Sequence[str]], tuple[list[int], int | None]]] = {
        "UNIFORM": _uniform, "MS1": _mostly_stride_1, "LAPLACIAN": _laplacian,
    }  # fmt: skip
    try:
        built, delta = forms[form](arguments)
    except (KeyError, ValueError, IndexError):
        raise ValueError(
            "a pattern must be a list of indices, UNIFORM:length:stride[:delta or NR], MS1:length:places:gaps or "
            f"LAPLACIAN:dimension:order:size, with integers, got {pattern!r}"
        ) from None
    return tuple(built), delta


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _uniform(arguments: Sequence[str]) -> tuple[list[int], int | None]:
    if len(arguments) not in (2, 3):
        raise ValueError
    length, stride = map(_positive, arguments[:2])
    delta = None
    if len(arguments) == 3:
        delta = length * stride if arguments[2] == "NR" else _positive(arguments[2])
    return [stride * i for i in range(length)], delta


def _mostly_stride_1(arguments: Sequence[str]) -> tuple[list[int], None]:
    """Steps of 1, but at some places of a gap."""
    length, places, gaps = arguments
    where, steps = ([int(each) for each in text.split(",")] for text in (places, gaps))
    if min(where + steps) < 0 or len(steps) not in (1, len(where)):
        raise ValueError
    jumps = np.ones(_positive(length), np.int64)
    jumps[0] = 0
    for place, step in zip(where, steps * len(where) if len(steps) == 1 else steps, strict=True):
        jumps[place] = step if place else step - 1
    indices: list[int] = np.cumsum(jumps).tolist()
    if min(indices) < 0:
        raise ValueError
    return indices, None


def _laplacian(arguments: Sequence[str]) -> tuple[list[int], int]:
    """A stencil: `order` neighbours on either side in each dimension, and the point itself."""
    dimension, order, size = map(_positive, arguments)
    away = [(j + 1) * size**axis for axis in range(dimension) for j in range(order)]
    offsets = [-each for each in reversed(away)] + [0, *away]
    return [each + away[-1] for each in offsets], 1


# -------------------------------------------------------------------- replay


@dataclass(frozen=True)
class SpatterReplay:
    """What a configuration costs on an engine; both sides of "gs" one after the other.

    Attributes
    ----------
    run : SpatterRun
    accesses, slots, cycles, conflicts : int
        `conflicts` are those of `cycles` that slots take longer because they share a bank.
    bytes_per_cycle : float
        Useful: one element for every slot.
    """

    run: SpatterRun
    accesses: int
    slots: int
    cycles: int
    conflicts: int
    bytes_per_cycle: float


def replay_run(run: SpatterRun, engine: str | Engine = "paper128") -> SpatterReplay:
    """Run a configuration through the banks of an engine, as `replay`.

    Raises
    ------
    ValueError
        If it has more than 2**26 slots.
    """
    machine = find_engine(engine)
    accesses = slots = cycles = conflicts = 0
    sides: tuple[Side, ...] = ("reads", "writes")
    for side in sides:
        addresses = run.accesses(side, machine.lanes)
        if addresses.size:
            done = replay(addresses, machine)
            accesses += len(addresses)
            slots += int((addresses >= 0).sum())
            cycles += done.total
            conflicts += int(done.conflicts.sum())
    return SpatterReplay(
        run, accesses, slots, cycles, conflicts, slots * machine.element_bytes / max(1, cycles)
    )
