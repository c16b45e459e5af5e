"""The benchmark: compact matrices against dense and sparse libraries, on this machine.

``python -m gspattern bench`` is its command line. All contenders run in one process on the same float32 weights,
threads and x, one after the other in every round, and every time stands beside the error against float64. It refuses to
run against a crippled baseline. Needs the extra `bench`; peers (the extra `peers`) are found at run time.
"""

from __future__ import annotations

import gc
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import gspattern
from gspattern import plans, roofline
from gspattern.masks import choose_mask
from gspattern.matrices import Matrix, encode
from gspattern.patterns import PatternError
from gspattern.peers import PEERS, Floats, Peer, Product, load_peers

try:
    from rich.console import Console
    from rich.table import Table
    from threadpoolctl import threadpool_info, threadpool_limits
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'the benchmark needs {error.name}: pip install "gspattern[bench,peers]"'
    ) from error

__all__ = [
    "BenchError",
    "Settings",
    "Shape",
    "alternate",
    "check_environment",
    "geometric_mean",
    "make_weights",
    "print_report",
    "print_table",
    "read_shapes",
    "run",
    "summarise",
]

VERSION = 1  # of the JSON

# The linear layers of GNMT that the goals are about; benchmarks/shapes has those of more models.
SHAPES = ("1024x1024", "4096x1024", "4096x2048", "32320x1024")
SPARSITIES = (0.8, 0.9)
COLUMNS = (1, 5, 32, 128, 640)
PATTERNS = (
    "gs(cpu)", "gs(16,16)", "gs(16,1)+scatter", "irregular", "block(1,16)", "block(16,1)", "block(1,4)", "2:4",
)  # fmt: skip

# Times dense: what this pattern must reach, by sparsity and N; others are listed beside it.
GOAL_PATTERN = "gs(cpu)"
GOALS = {
    0.8: {1: 4.0, 5: 3.5, 32: 3.0, 128: 3.0, 640: 3.0},
    0.9: {1: 8.0, 5: 7.0, 32: 6.0, 128: 6.0, 640: 6.0},
}
GOAL_IN_L2 = 15.0  # N = 1, 90 %: where the plan fits L2 and the dense weights do not
OF_BYTES = 0.9  # N <= 5: where both stream from one level, no more than this of the ratio of bytes is asked for
SPARSE_GOAL = 2.0  # times the fastest sparse library
THREADS_GOAL = 1.7  # two threads over one, for products above
LONG = 200e-6  # seconds
OVERHEAD_GOAL = 3e-6  # seconds of a small call that are not work
SHARE = 0.85  # of its own bound: a kernel that reaches it has done what it can
WORST = 0.8  # of its goal: what every single shape must reach

TURN = 5e-3  # seconds of a contender's turn in a round, at least one call
BATCH = 2e-4  # seconds that are timed together, at least one call
LEAST_ROUNDS = 3
BUSY = 0.05  # share of a core that other programs may have

# Settings that make libraries slower than they are.
CRIPPLING = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES",
)  # fmt: skip


class BenchError(ValueError):
    """The benchmark would not be fair, or cannot be run as asked."""


# ------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Shape:
    """A matrix of a model.

    Attributes
    ----------
    name : str
    rows, cols : int
    n : int or None
        Columns of x that this layer has; None where it is the user's choice.
    """

    name: str
    rows: int
    cols: int
    n: int | None = None

    @property
    def size(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes
    ----------
    shapes : tuple of str
        Files of shapes, or such as "1024x1024".
    sparsities : tuple of float
        Ignored by N:M patterns, which fix their own.
    columns : tuple of int or None
        N; None for a file's own, or the usual ones.
    patterns, peers : tuple of str
    threads : tuple of int
        With more than one, the speed-up by threads is shown too.
    seconds : float
        Of a case (one shape, sparsity, N and number of threads), at least three rounds.
    rounds : int
        Of a case, at most.
    clock : {"wall", "cpu"}
        "cpu" counts the time that the threads of this process run, which leaves out what other programs take on a busy
        machine; for one thread only.
    """

    shapes: tuple[str, ...] = SHAPES
    sparsities: tuple[float, ...] = SPARSITIES
    columns: tuple[int, ...] | None = None
    patterns: tuple[str, ...] = PATTERNS
    peers: tuple[str, ...] = tuple(PEERS)
    threads: tuple[int, ...] = (1,)
    seconds: float = 4.0
    rounds: int = 40
    clock: str = "wall"


# Whether everything runs; its figures mean little.
QUICK = Settings(
    shapes=("256x192",),
    sparsities=(0.9,),
    columns=(1, 32),
    patterns=("gs(cpu)", "irregular", "2:4"),
    rounds=2,
)


def read_shapes(text: str) -> list[Shape]:
    """Read a file of shapes, or one shape such as "1024x1024".

    A line of a file is ``rows cols n name``, with - for n where it is not the layer's own; # begins a comment.

    Raises
    ------
    BenchError
        If there is no such file, or a line is something else.
    """
    path = Path(text)
    if not path.exists():
        try:
            rows, cols = (int(part) for part in text.lower().split("x"))
        except ValueError:
            raise BenchError(
                f"a shape is a file of shapes or such as 1024x1024, got {text!r}"
            ) from None
        return [_checked(Shape(text, rows, cols), text)]
    shapes = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = line.partition("#")[0].split(maxsplit=3)
        if not fields:
            continue
        where = f"{text}, line {number}"
        try:
            n = None if fields[2] == "-" else int(fields[2])
            shape = Shape(fields[3].strip(), int(fields[0]), int(fields[1]), n)
        except (ValueError, IndexError):
            raise BenchError(f"{where}: expected `rows cols n name`, got {line!r}") from None
        shapes.append(_checked(shape, where))
    return shapes


def _checked(shape: Shape, where: str) -> Shape:
    if min(shape.rows, shape.cols, shape.n or 1) < 1:
        raise BenchError(f"{where}: rows, columns and n must be positive")
    return shape


# -------------------------------------------------------------- environment


def check_environment(environment: Mapping[str, str], threads: Iterable[int], cores: int) -> None:
    """Refuse what would make the comparison unfair.

    Parameters
    ----------
    environment : mapping of str to str
        Such as os.environ.
    threads : iterable of int
        That will be used.
    cores : int
        That this process may use.

    Raises
    ------
    BenchError
        With a sentence that says what to do.
    """
    found = [name for name in CRIPPLING if name in environment]
    if found:
        settings = ", ".join(f"{name}={environment[name]}" for name in found)
        unset = " ".join(f"-u {name}" for name in found)
        raise BenchError(
            f"{settings} would make the libraries that we compare with slower than they are; "
            f"run `env {unset} python -m gspattern bench`"
        )
    for count in threads:
        if not 1 <= count <= cores:
            raise BenchError(
                f"threads must be from 1 to {cores}, the cores that this process may use, got {count}"
            )


def check_clock(clock: str, threads: Sequence[int]) -> None:
    """Refuse a clock that there is not, or the CPU clock for several threads: it adds theirs up.

    Raises
    ------
    BenchError
    """
    if clock not in CLOCKS or (clock == "cpu" and set(threads) != {1}):
        raise BenchError(
            f"the clock is wall, or cpu for one thread; got {clock} for {', '.join(map(str, threads))}"
        )


def _check_pools(pools: Iterable[Mapping[str, Any]], threads: int) -> None:
    """All libraries must use the same number of threads; OpenBLAS takes no more than it was started with."""
    for pool in pools:
        if pool["num_threads"] != threads:
            name = pool.get("prefix") or pool["internal_api"]
            raise BenchError(
                f"threads would be unequal: {name} uses {pool['num_threads']}, the others {threads}; unset "
                f"OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and MKL_NUM_THREADS, or set them all to {threads}"
            )


@contextmanager
def _threads(
    names: Sequence[str], threads: int
) -> Iterator[tuple[dict[str, Peer], dict[str, str], dict[str, str]]]:
    """Peers and ourselves with this number of threads; before is restored."""
    peers, versions, missing = load_peers(list(names), threads)
    before = plans.get_num_threads()
    with threadpool_limits(threads):
        _check_pools(threadpool_info(), threads)
        plans.set_num_threads(threads)
        try:
            yield peers, versions, missing
        finally:
            plans.set_num_threads(before)


# ------------------------------------------------------------------- measure


def make_weights(rows: int, cols: int, seed: int = 0) -> Floats:
    """Gaussian x log-normal(0.3) row scales, float32 [rows, cols]: magnitudes as those of a trained layer."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, cols), dtype=np.float32)
    weights *= rng.lognormal(0, 0.3, (rows, 1)).astype(np.float32)
    return weights


def _settle() -> None:
    """Wait until no thread of this process spins: some pools do so for a while after their work."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < 2e-4:
            return


def _busy() -> float:
    """The share of a core that other programs have at this moment."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.02:
        pass
    used = time.process_time() - cpu
    return max(0.0, 1 - used / (time.perf_counter() - wall))


def alternate(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = float("inf"),
    turn: float = TURN,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, list[float]]:
    """Time calls one after the other, round after round.

    In its turn a contender is called a few times uncounted, so that its data is in the caches as in a loop of its own,
    and then in timed batches.

    Parameters
    ----------
    calls : mapping of str to callable
    rounds : int
        At most.
    seconds : float
        No round begins later, once there are three.
    turn : float
        Seconds of one turn; at least one call.
    clock : callable
        Gives seconds.
    progress : callable
        Told the share of the work that is done, up to 1.

    Returns
    -------
    dict of str to list of float
        Seconds of one call, for every batch.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            used = time.perf_counter() - begin
            if number >= LEAST_ROUNDS and used > seconds:
                break
            for name, call in calls.items():
                _settle()
                once = _seconds(call, 1, clock)
                if once < turn:
                    once = min(_seconds(call, 1, clock), _seconds(call, 1, clock))
                batch = max(1, int(BATCH / once))
                for _ in range(max(1, int(turn / (batch * once)))):
                    times[name].append(_seconds(call, batch, clock) / batch)
            used = time.perf_counter() - begin
            progress(min(1.0, max((number + 1) / rounds, used / seconds)))
    finally:
        if collecting:
            gc.enable()
    progress(1.0)
    return times


def _seconds(call: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class _Contender:
    """One product of one contender in one case."""

    name: str
    kind: str  # "dense", "sparse" or "pattern"
    product: Product
    weights: str  # those that it stands for, as _Layer.dense takes them
    plan: plans.Plan | None = None


@dataclass(frozen=True)
class _Layer:
    """What all cases of one shape and sparsity share."""

    shape: Shape
    sparsity: float
    weights: Floats
    matrices: dict[str, Matrix]  # by pattern; those that fit the shape
    irregular: Matrix  # for the sparse libraries

    def dense(self, which: str) -> Floats:
        """Weights that were not pruned ("dense"), those of the sparse libraries ("sparse"), or of a pattern."""
        if which == "dense":
            return self.weights
        matrix = self.irregular if which == "sparse" else self.matrices[which]
        return matrix.to_dense()


def _make_layer(
    shape: Shape, sparsity: float, patterns: Sequence[str], unfit: dict[str, str]
) -> _Layer:
    weights = make_weights(shape.rows, shape.cols)
    scores = np.abs(weights)
    matrices: dict[str, Matrix] = {}
    for pattern in patterns:
        try:
            chosen = choose_mask(scores, pattern, None if ":" in pattern else sparsity)
            matrices[pattern] = encode(weights, pattern, chosen.mask, chosen.row_order)
        except PatternError as error:
            unfit[f"{pattern}, {shape.size}, {sparsity:g}"] = str(error)
    irregular = matrices.get("irregular")
    if irregular is None:
        irregular = encode(weights, "irregular", choose_mask(scores, "irregular", sparsity).mask)
    return _Layer(shape, sparsity, weights, matrices, irregular)


def _own_products(matrix: Matrix, x: Floats) -> list[tuple[Product, plans.Plan]]:
    if x.shape[1] == 1:
        vector = np.ascontiguousarray(x[:, 0])
        product = Product("columns", lambda: matrix @ vector, lambda y: y[:, None])
        return [(product, matrix.plan())]
    rows = np.ascontiguousarray(x.T)
    out = np.empty((x.shape[1], matrix.shape[0]), np.float32)
    return [
        (Product("columns", lambda: matrix @ x, lambda y: y), matrix.plan(x.shape[1])),
        (
            Product("rows", lambda: matrix.linear(rows, out=out), lambda y: y.T),
            plans.plan_for_samples(matrix, len(rows)),
        ),
    ]


def _contenders(
    layer: _Layer, x: Floats, peers: Mapping[str, Peer], prepared: dict[str, Any]
) -> list[_Contender]:
    found = []
    for name, peer in peers.items():
        kind = "sparse" if peer.sparse else "dense"
        if name not in prepared:
            prepared[name] = peer.prepare(layer.dense(kind))
        for product in peer.products(prepared[name], x):
            found.append(_Contender(peer.title, kind, product, kind))
    for pattern, matrix in layer.matrices.items():
        for product, plan in _own_products(matrix, x):
            found.append(_Contender(pattern, "pattern", product, pattern, plan))
    return found


def _check(layer: _Layer, contenders: Sequence[_Contender], x: Floats) -> list[dict[str, Any]]:
    """Nonzeros of every contender, and its error in units of the float32 epsilon.

    That is the largest |y - exact| / (|W| |x|); exact is in float64. BenchError if it is more than rounding can do.
    """
    found: list[dict[str, Any]] = [{} for _ in contenders]
    wide, size = x.astype(np.float64), np.abs(x).astype(np.float64)
    for which in dict.fromkeys(contender.weights for contender in contenders):
        weights = layer.dense(which).astype(np.float64)
        exact, scale = weights @ wide, np.abs(weights) @ size
        scale[scale == 0] = 1
        kept = int(np.count_nonzero(weights))
        for i, contender in enumerate(contenders):
            if contender.weights != which:
                continue
            y = contender.product.result(contender.product.call())
            error = float(np.max(np.abs(y - exact) / scale)) / float(np.finfo(np.float32).eps)
            if not error <= layer.shape.cols + 10:  # so is a NaN
                raise BenchError(
                    f"{contender.name} computes something else for {layer.shape.size} at {layer.sparsity:.0%} and "
                    f"N = {x.shape[1]}: its error is {error:.3g} epsilon; please report it where it comes from"
                )
            found[i] = {"error_eps": error, "kept": kept}
    return found


def _case(
    layer: _Layer,
    n: int,
    threads: int,
    peers: Mapping[str, Peer],
    prepared: dict[str, Any],
    settings: Settings,
    progress: Callable[[float], object],
) -> list[dict[str, Any]]:
    """One table: a line for every product of every contender."""
    x = np.random.default_rng(1).standard_normal((layer.shape.cols, n), dtype=np.float32)
    contenders = _contenders(layer, x, peers, prepared)
    calls = {str(i): contender.product.call for i, contender in enumerate(contenders)}
    times = alternate(
        calls, settings.rounds, settings.seconds, clock=CLOCKS[settings.clock], progress=progress
    )
    checks = _check(layer, contenders, x)
    size = (layer.shape.rows, layer.shape.cols)
    results = []
    for contender, seconds, check in zip(contenders, times.values(), checks, strict=True):
        best, plan = min(seconds), contender.plan
        result: dict[str, Any] = {
            "shape": layer.shape.name,
            "rows": size[0],
            "cols": size[1],
            "sparsity": layer.sparsity,
            "n": n,
            "threads": threads,
            "name": contender.name,
            "kind": contender.kind,
            "layout": contender.product.layout,
            "best_us": 1e6 * best,
            "median_us": 1e6 * statistics.median(seconds),
            "samples": len(seconds),
            "gmacs": 1e-9 * check["kept"] * n / best,
            **check,
        }
        limit = None
        if plan is not None:
            result |= {"kernel": plan.kernel, "bytes": plan.bytes, "efficiency": plan.efficiency}
            limit = roofline.bound(plan, size, n)
        elif contender.kind == "dense":
            result |= {"bytes": layer.weights.nbytes}
            limit = roofline.dense_bound(size, n)
        if limit is not None and threads == 1:
            result |= {
                "bound_us": 1e6 * limit.seconds,
                "limit": limit.limit,
                "share": limit.seconds / best,
            }
        results.append(result)
    return results


def call_overhead() -> dict[str, float]:
    """Microseconds of ``m.linear(x)`` for a 256x256 matrix: at 90 % gs(cpu), and without nonzeros, so without work."""
    weights = make_weights(256, 256)
    chosen = choose_mask(np.abs(weights), "gs(cpu)", 0.9)
    x = np.ones(256, np.float32)
    full = encode(weights, "gs(cpu)", chosen.mask, chosen.row_order)
    empty = encode(np.zeros_like(weights), "gs(cpu)")
    times = alternate({"full": lambda: full.linear(x), "empty": lambda: empty.linear(x)}, 20)
    return {"linear_us": 1e6 * min(times["full"]), "overhead_us": 1e6 * min(times["empty"])}


def run(
    settings: Settings,
    command: Sequence[str] = (),
    each: Callable[[list[dict[str, Any]]], object] = lambda case: None,
) -> dict[str, Any]:
    """Run the benchmark.

    Parameters
    ----------
    settings : Settings
    command : sequence of str
        What the user typed, for the report.
    each : callable
        Given the results of each case as it is done.

    Returns
    -------
    dict
        What is written as JSON: machine, versions, peers, command, date, probes, results, and what `summarise` makes
        of them.

    Raises
    ------
    BenchError
        If the comparison would be unfair, or a setting makes no sense.
    """
    cpu = plans.cpu_info()
    check_environment(os.environ, settings.threads, cpu.cores)
    check_clock(settings.clock, settings.threads)
    shapes = [shape for text in settings.shapes for shape in read_shapes(text)]
    cases = sum(
        len(_columns(shape, settings)) * len(settings.sparsities) * len(settings.threads)
        for shape in shapes
    )
    results: list[dict[str, Any]] = []
    versions = {"gspattern": gspattern.__version__, "numpy": np.__version__}
    missing: dict[str, str] = {}
    unfit: dict[str, str] = {}
    found: dict[str, str] = {}
    blas: list[str] = []
    busy: list[float] = []
    with tqdm(total=cases, unit="case", disable=None, leave=False) as bar:
        bar.set_description("probes")
        probes = {name: roofline.as_dict(roofline.probe(name)) for name in plans.backends()}
        with _threads((), 1):
            overhead = call_overhead()
        for shape in shapes:
            for sparsity in settings.sparsities:
                bar.set_description(f"masks of {shape.size} at {sparsity:.0%}")
                layer = _make_layer(shape, sparsity, settings.patterns, unfit)
                for threads in settings.threads:
                    with _threads(settings.peers, threads) as (peers, new, missing):
                        versions |= new
                        found = {name: peer.title for name, peer in peers.items()}
                        blas = _blas()
                        prepared: dict[str, Any] = {}
                        for n in _columns(shape, settings):
                            bar.set_description(f"{shape.size} at {sparsity:.0%}, N = {n}")
                            busy.append(_busy())
                            done = bar.n

                            def tell(share: float, done: float = done) -> None:
                                bar.update(done + share - bar.n)

                            part = _case(layer, n, threads, peers, prepared, settings, tell)
                            with tqdm.external_write_mode():
                                each(part)
                            results += part
    report = {
        "version": VERSION,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": asdict(cpu)
        | {"system": platform.platform(), "python": platform.python_version()},
        "versions": versions,
        "peers": found,
        "missing": missing,
        "blas": blas,
        "unfit": unfit,
        "settings": asdict(settings),
        "probes": probes,
        "overhead": overhead,
        "busy": statistics.fmean(busy),
        "results": results,
    }
    return report | summarise(results, cpu.caches)


def _columns(shape: Shape, settings: Settings) -> tuple[int, ...]:
    if settings.columns is not None:
        return settings.columns
    return COLUMNS if shape.n is None else (shape.n,)


def _blas() -> list[str]:
    """Libraries that compute NumPy's and other products, with the core that they take this one for."""
    return [
        f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'core not told')})"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


# ----------------------------------------------------------------- summarise


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product."""
    return statistics.geometric_mean(values)


def goal_of(result: Mapping[str, Any], dense_bytes: int, caches: Mapping[str, int]) -> float | None:
    """Times dense that one shape must reach; None where no goal is set."""
    goal = GOALS.get(result["sparsity"], {}).get(result["n"])
    if goal is None or result["name"] != GOAL_PATTERN:
        return None
    compact, dense = _level(result["bytes"], caches), _level(dense_bytes, caches)
    if result["n"] == 1 and result["sparsity"] == 0.9 and compact <= "L2" < dense:
        goal = GOAL_IN_L2
    if result["n"] <= 5 and compact == dense:
        goal = min(goal, OF_BYTES * dense_bytes / result["bytes"])
    return goal


def _level(nbytes: int, caches: Mapping[str, int]) -> str:
    """ "L1d" < "L2" < "L3" < "memory": in the order of the alphabet."""
    sizes = sorted(caches.items(), key=lambda cache: cache[1])
    return next((name for name, size in sizes if nbytes <= size), "memory")


def summarise(results: Sequence[Mapping[str, Any]], caches: Mapping[str, int]) -> dict[str, Any]:
    """Compare patterns with the fastest dense and the fastest sparse library of each case.

    Every contender counts with the better of its layouts, by its best time.

    Parameters
    ----------
    results : sequence of dict
        Lines of all cases, as `run` makes them.
    caches : mapping of str to int
        Bytes of each level, for the goals.

    Returns
    -------
    dict
        "ratios": a line for each pattern in each case. "summary": their geometric means over the shapes, with the goal
        and whether it holds. "scaling": for products that take long, the speed-up by threads.
    """
    ratios = []
    for case in _grouped(results, ("threads", "sparsity", "n", "shape", "rows", "cols")).values():
        fastest = {
            kind: min((line["best_us"] for line in case if line["kind"] == kind), default=None)
            for kind in ("dense", "sparse")
        }
        medians = [line["median_us"] for line in case if line["kind"] == "dense"]
        for name, lines in _grouped([r for r in case if r["kind"] == "pattern"], ("name",)).items():
            best = min(lines, key=lambda line: float(line["best_us"]))
            median = min(line["median_us"] for line in lines)
            line = {key: best[key] for key in ("shape", "rows", "cols", "sparsity", "n", "threads")}
            line |= {"name": name[0], "layout": best["layout"], "best_us": best["best_us"]}
            line["dense"] = fastest["dense"] and fastest["dense"] / best["best_us"]
            line["dense_median"] = min(medians) / median if medians else None
            line["sparse"] = fastest["sparse"] and fastest["sparse"] / best["best_us"]
            line["goal"] = goal_of(best, 4 * best["rows"] * best["cols"], caches)
            line["share"] = best.get("share")
            line["limit"] = best.get("limit")
            ratios.append(line)
    summary = []
    for key, lines in _grouped(ratios, ("threads", "sparsity", "n", "name")).items():
        line = dict(zip(("threads", "sparsity", "n", "name"), key, strict=True))
        line["shapes"] = len(lines)
        for kind in ("dense", "dense_median", "sparse"):
            values = [each[kind] for each in lines if each[kind]]
            line[kind] = geometric_mean(values) if values else None
            line[f"{kind}_least"] = min(values) if values else None
        goals = [each["goal"] for each in lines]
        line["goal"] = geometric_mean(goals) if all(goals) else None
        shares = [each["share"] for each in lines if each["share"]]
        line["share_least"] = min(shares) if shares else None
        line["holds"] = _verdict(line, lines)
        summary.append(line)
    return {"ratios": ratios, "summary": summary, "scaling": _scaling(ratios)}


def _verdict(line: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]]) -> str | None:
    """ "yes", "by roofline" or "no"; None without a goal or without dense libraries."""
    if line["goal"] is None or line["dense"] is None:
        return None
    if line["dense"] >= line["goal"] and all(
        shape["dense"] >= WORST * shape["goal"] for shape in shapes
    ):
        return "yes"
    return "by roofline" if (line["share_least"] or 0) >= SHARE else "no"


def _scaling(ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for group in _grouped(ratios, ("name", "shape", "rows", "cols", "sparsity", "n")).values():
        one = next((line for line in group if line["threads"] == 1), None)
        if one is None or one["best_us"] * 1e-6 < LONG:
            continue
        for line in group:
            if line["threads"] > 1:
                same = {key: line[key] for key in ("name", "shape", "sparsity", "n", "threads")}
                lines.append(
                    same | {"speedup": one["best_us"] / line["best_us"], "one_us": one["best_us"]}
                )
    return lines


def _grouped(
    lines: Iterable[Mapping[str, Any]], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    return groups


# --------------------------------------------------------------------- print


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], width: int = 110
) -> None:
    """Print a table; the first column is text, all others are numbers."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)  # the same width in a pipe


def _number(value: Any, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def print_case(case: Sequence[Mapping[str, Any]]) -> None:
    """Print one case: every contender with the better of its layouts."""
    first = case[0]
    lines = [
        min(group, key=lambda line: float(line["best_us"]))
        for group in _grouped(case, ("name",)).values()
    ]
    dense = min((line["best_us"] for line in lines if line["kind"] == "dense"), default=None)
    rows = [
        [
            f"{line['name']} ({line['layout']})" if first["n"] > 1 else line["name"],
            _number(line["best_us"], ".1f"),
            _number(line["median_us"], ".1f"),
            _number(dense and dense / line["best_us"]),
            _number(line["gmacs"], ".1f"),
            _number(line["error_eps"], ".2f"),
            _number(line.get("efficiency")),
            _number(line.get("bound_us"), ".1f"),
            _number(line.get("share"), ".0%"),
            line.get("limit", ""),
            line.get("kernel", "").removeprefix("gsp_f32_"),
        ]
        for line in lines
    ]
    print_table(
        f"{first['shape']}: {first['rows']} x {first['cols']} at {first['sparsity']:.0%}, N = {first['n']}, "
        f"{first['threads']} thread(s)",
        [
            "",
            "best us",
            "median",
            "x dense",
            "GMAC/s",
            "error",
            "eff.",
            "bound us",
            "share",
            "by",
            "kernel",
        ],
        rows,
        140,
    )


def print_report(report: Mapping[str, Any]) -> None:
    """Print machine, versions, probes, and the summary against the goals."""
    machine, best = report["machine"], next(iter(report["probes"].values()))
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
    print(f"{machine['name']}, {machine['cores']} core(s), {caches}; {report['date']}")
    print(
        "versions: "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    )
    print("BLAS: " + ("; ".join(report["blas"]) or "none known"))
    for name, why in report["missing"].items():
        print(f"missing: {name}: {why}")
    for name, why in report["unfit"].items():
        print(f"left out: {name}: {why}")
    if report["settings"]["clock"] == "wall" and report["busy"] > BUSY:
        print(
            f"other programs had {report['busy']:.0%} of a core: that makes long products look slower than short ones; "
            "stop them, or use --clock cpu"
        )
    if report["settings"]["clock"] == "cpu":
        print("times are CPU times: what other programs took of the core is left out")
    rates = ", ".join(f"{level} {rate:.0f}" for level, rate in best["gbytes_per_s"].items())
    print(
        f"one core, {best['backend']}: {best['gmacs_registers']:.0f} GMAC/s from registers, "
        f"{best['gmacs_l1']:.0f} with an operand from L1, {best['permutes_per_ns']:.1f} permutes and "
        f"{best['steps_per_ns']:.1f} steps per ns; GB/s: {rates}"
    )
    overhead = report["overhead"]
    print(
        f"256 x 256 at 90 %: m.linear(x) in {overhead['linear_us']:.2f} us, of which {overhead['overhead_us']:.2f} us "
        f"are the call (goal: under {1e6 * OVERHEAD_GOAL:.0f})"
    )
    for threads in sorted({line["threads"] for line in report["summary"]}):
        rows = [
            [
                line["name"],
                f"{line['sparsity']:.0%}",
                str(line["n"]),
                _number(line["dense"]),
                _number(line["dense_least"]),
                _number(line["dense_median"]),
                _number(line["goal"]),
                line["holds"] or "",
                _number(line["share_least"], ".0%"),
                _number(line["sparse"]),
                _number(line["sparse_least"]),
            ]
            for line in sorted(report["summary"], key=lambda line: (line["sparsity"], line["n"]))
            if line["threads"] == threads
        ]
        print_table(
            f"Times the fastest dense and sparse library, geometric means over shapes, {threads} thread(s)",
            [
                "", "sparsity", "N", "x dense", "least", "median", "goal", "holds", "of bound", "x sparse", "least",
            ],
            rows,
            130,
        )  # fmt: skip
    if report["scaling"]:
        rows = [
            [
                line["name"],
                line["shape"],
                f"{line['sparsity']:.0%}",
                str(line["n"]),
                str(line["threads"]),
                _number(line["one_us"], ".0f"),
                _number(line["speedup"]),
            ]
            for line in report["scaling"]
        ]
        print_table(
            f"Threads (goal for two: {THREADS_GOAL})",
            ["", "shape", "sparsity", "N", "threads", "one: us", "speed-up"],
            rows,
        )
