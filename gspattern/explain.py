"""What this CPU will do with each layer, dense and sparse: predicted, then measured, and what would be faster.

A prediction is the time of a call without work, and the bound of the product (`gspattern.roofline`) over the share of
its bound that the same contender reaches on *reference layers*: random matrices of `REFERENCES`, pruned alike. The
layer itself is not timed for it. Everything is one product y = W x with one thread; a convolution counts as the
product with its pixels, without making them a matrix, and recurrent layers as their products, without gates.
"""

from __future__ import annotations

import functools
import html
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gspattern import roofline
from gspattern._core import PatternError
from gspattern.files import load_file
from gspattern.masks import _check_sparsity, choose_mask
from gspattern.matrices import Matrix, as_matrix, encode
from gspattern.patterns import NM, Auto, Pattern, parse_pattern
from gspattern.plans import plan_for_samples
from gspattern.report import _table
from gspattern.roofline import Bound

if TYPE_CHECKING:
    from gspattern.bench.layers import Layer, Peer

__all__ = ["Estimate", "Explanation", "LayerExplanation", "explain"]

REFERENCES = ((192, 160), (768, 640), (2304, 1280))  # rows and columns
SMALLEST = (16, 16)  # has next to no work: what it takes is the call
SPARSITIES = (0.5, 0.8, 0.9, 0.95)  # of reference layers: the nearest one counts
MOST_COLUMNS = 128  # of reference layers
DTYPES = ("float32", "bfloat16", "int8")
LIBRARIES = ("torch", "numpy", "scipy")
WORDS = {"bytes": "bytes", "steps": "permutes", "loads": "loads from L1", "fma": "multiply-adds"}
KINDS = {"dense": "dense", "sparse": "csr", "pattern": "compact"}  # of the benchmark's contenders


@dataclass(frozen=True)
class Estimate:
    """One contender of a layer.

    Attributes
    ----------
    predicted : float
        Seconds of one product.
    measured : float or None
        The same, best of several rounds in turns; None if there was no time for it.
    bound : str
        What sets the least time: "bytes", "permutes", "loads from L1" or "multiply-adds".
    """

    predicted: float
    measured: float | None
    bound: str

    @property
    def seconds(self) -> float:
        """Measured, or predicted where nothing was."""
        return self.predicted if self.measured is None else self.measured

    @property
    def error(self) -> float | None:
        """Of the prediction, relative to what was measured."""
        return None if self.measured is None else self.predicted / self.measured - 1


@dataclass(frozen=True)
class LayerExplanation:
    """One product of a layer.

    Attributes
    ----------
    name : str
    shape : (int, int)
        Rows M and columns K.
    pattern : str
        Of the compact matrix, resolved; empty if the one asked for does not fit.
    sparsity : float
        Share of zeros.
    n : int
        Columns of x.
    dtype : str
        Of the weights.
    count : int
        How often the product is computed.
    contenders : dict of str to Estimate
        "dense": the fastest of PyTorch and NumPy; "csr": SciPy's, for float32; "compact": this library.
    advice : str
        What to change for the most speed, by prediction.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    sparsity: float
    n: int
    dtype: str
    count: int
    contenders: dict[str, Estimate]
    advice: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: iterate over its `rows`, or print it.

    Attributes
    ----------
    rows : tuple of LayerExplanation
    """

    rows: tuple[LayerExplanation, ...]

    def __iter__(self) -> Iterator[LayerExplanation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def total(self, contender: str) -> float:
        """Seconds of all products, each as often as it is computed.

        Parameters
        ----------
        contender : {"dense", "csr", "compact", "best"}
            "best" takes the faster of dense and compact for each; where a layer lacks the contender, dense counts.
        """
        if contender not in ("dense", "csr", "compact", "best"):
            raise ValueError(f"contender must be dense, csr, compact or best, got {contender!r}")
        sums = 0.0
        for row in self.rows:
            dense = row.contenders["dense"]
            seconds = row.contenders.get(contender, dense).seconds
            if contender == "best":
                seconds = min(dense.seconds, row.contenders.get("compact", dense).seconds)
            sums += row.count * seconds
        return sums

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a head, a line for each product, and the sum of them all."""
        head = (
            "layer", "shape", "pattern", "sparsity", "dtype", "n", "times",
            "dense us", "", "csr us", "", "compact us", "", "bound by", "x dense",
        )  # fmt: skip
        lines = []
        for row in self.rows:
            dense, compact = row.contenders["dense"], row.contenders.get("compact")
            lines.append(
                (
                    row.name,
                    f"{row.shape[0]} x {row.shape[1]}",
                    row.pattern,
                    f"{row.sparsity:.4f}",
                    row.dtype,
                    str(row.n),
                    str(row.count),
                    *(cell for key in KINDS.values() for cell in _cells(row.contenders.get(key))),
                    compact.bound if compact else dense.bound,
                    f"{dense.seconds / compact.seconds:.1f}" if compact else "",
                )
            )
        totals = {key: self.total(key) for key in KINDS.values()}
        last = (
            "all", "", "", "", "", "", "",
            *(cell for key in totals for cell in (f"{1e6 * totals[key]:,.1f}", "")),
            "", f"{totals['dense'] / totals['compact']:.1f}",
        )  # fmt: skip
        return [head, *lines, last]

    def __str__(self) -> str:
        notes = [f"{row.name or 'it'}: {row.advice}" for row in self.rows]
        best = self.total("dense") / self.total("best")
        notes.append(
            f"the faster of dense and compact for each layer: {1e6 * self.total('best'):,.1f} us, {best:.1f} x dense"
        )
        notes.append(
            "us are measured (predicted where nothing was); % is the error of the prediction"
        )
        return "\n".join([*_table(self.cells(), left=(0, 2, 4, 13)), *notes])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """All that the table says: "rows" and, in seconds, "total"."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "total": {key: self.total(key) for key in ("dense", "csr", "compact", "best")},
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1)


def _cells(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    error = "" if estimate.error is None else f"{estimate.error:+.0%}"
    return f"{1e6 * estimate.seconds:,.1f}", error


# ------------------------------------------------------------------ what is explained


@dataclass(frozen=True)
class Work:
    """One product that is to be explained; weights are [M, K] in float32, or a matrix."""

    name: str
    weights: Matrix | npt.NDArray[Any]
    n: int
    count: int = 1
    pattern: str | Pattern | None = None  # its own


def explain(
    model_or_matrix: Any,
    n: int | None = None,
    dtype: str | None = None,
    *,
    pattern: str | Pattern = "gs(cpu)",
    sparsity: float | None = None,
    example_inputs: Any = None,
    seconds: float = 10.0,
    clock: str = "wall",
) -> Explanation:
    """Say what this CPU does with each layer dense, as CSR and compact, and what to change for more speed.

    Parameters
    ----------
    model_or_matrix : Matrix, array, SciPy sparse matrix, file, mapping of names to these, or torch Module
        Of a model: linear, convolution, recurrent and attention layers, dense, pruned or converted. Of a file or a
        mapping, all matrices and all floating-point arrays of two to four dimensions.
    n : int, optional
        Columns of x (samples, or pixels of a convolution's result); 1 if not given. Not with `example_inputs`.
    dtype : {"float32", "bfloat16", "int8"}, optional
        Of the weights of all contenders; that of a matrix or, if it is none of these, float32.
    pattern : str or Pattern
        For weights that have none of their own: as many of them are kept as are not zero.
    sparsity : float, optional
        In [0, 1): as if weights that have no pattern of their own were pruned so.
    example_inputs : Tensor, tuple, or dict of keywords, optional
        What a torch model is called with, which says n of each layer. Models with convolutions need it.
    seconds : float
        For measuring, all layers together; the most expensive ones first, the others are predicted only. 0 measures
        none. Probes and reference layers come on top, some two seconds when a process asks for the first time.
    clock : {"wall", "cpu"}
        "cpu" leaves out what other programs take of a busy machine.

    Returns
    -------
    Explanation

    Raises
    ------
    ModuleNotFoundError
        Without the extra `bench`.
    TypeError
        If it is nothing that has layers, or n is no integer.
    ValueError
        If there is no layer in it, or an argument makes no sense.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if n is not None and not isinstance(n, int | np.integer):
        raise TypeError(f"n must be an integer, got {n!r}")
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if sparsity is not None:
        _check_sparsity("sparsity", sparsity)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be a number from 0 on, got {seconds}")
    if isinstance(parse_pattern(pattern), Auto):
        raise ValueError('pattern "auto" is chosen by a Pruner alone; give another')
    from gspattern.bench import fairness

    fairness.check_environment(os.environ, (1,), 1)
    fairness.check_clock(clock, (1,))
    works = _works(model_or_matrix, None if n is None else int(n), example_inputs)
    with fairness.same_threads(1):
        return _explain(works, dtype, pattern, sparsity, seconds, clock)


def _works(given: Any, n: int | None, example_inputs: Any) -> list[Work]:
    if any(kind.__module__.startswith("torch.nn") for kind in type(given).__mro__):
        from gspattern.torch.explain import works

        return works(given, n, example_inputs)
    if example_inputs is not None:
        raise ValueError("example_inputs belong to a torch model; give n, the columns of x")
    n = n or 1
    if isinstance(given, str | Path):
        given = load_file(given)
    if not isinstance(given, Mapping):
        return [_work("", given, n)]
    found = [
        _work(name, each, n)
        for name, each in given.items()
        if isinstance(each, Matrix) or hasattr(each, "tocsr") or (np.ndim(each) in (2, 3, 4))
    ]
    if not found:
        raise ValueError("there is no matrix to explain: only vectors and single numbers")
    return found


def _work(name: str, given: Any, n: int) -> Work:
    if isinstance(given, Matrix):
        return Work(name, given, n)
    array = given.toarray() if hasattr(given, "tocsr") else np.asarray(given)
    if array.dtype.kind not in "fV" or array.ndim not in (2, 3, 4) or not array.size:
        raise TypeError(
            "explain takes a torch model, a Matrix, a file of them, or an array of weights of floats in 2 to 4 "
            f"dimensions, got {type(given).__name__} of {array.dtype} and shape {array.shape}"
        )
    return Work(name, np.ascontiguousarray(as_matrix(array), np.float32), n)


# ------------------------------------------------------------------------ products


@dataclass(frozen=True)
class _Product:
    """A product with all that its contenders need."""

    work: Work
    layer: Layer[Any]
    pattern: str
    dtype: str
    sparsity: float
    bounds: dict[str, Bound]


def _cast(matrix: Matrix, dtype: str) -> Matrix:
    return matrix.quantize() if dtype == "int8" else matrix.astype(dtype)


def _dtype(work: Work, dtype: str | None) -> str:
    own = str(work.weights.dtype)
    return dtype or (own if own in DTYPES else "float32")


def _prepare(
    work: Work, dtype: str | None, pattern: str | Pattern, sparsity: float | None
) -> _Product:
    """Prune weights that have no pattern of their own, and compute the bounds."""
    from gspattern.bench.linear_bench import GivenLayer

    dtype = _dtype(work, dtype)
    matrix: Matrix | None
    if isinstance(work.weights, Matrix):
        floats = work.weights.astype(np.float32)
        dense, matrix = floats.to_dense(), _cast(work.weights, dtype)
        kept = encode(dense, "irregular", mask=floats.mask())
    else:
        dense = work.weights
        scores = np.abs(dense)
        zeros = float((dense == 0).mean())
        share = zeros if sparsity is None or work.pattern is not None else sparsity
        mask = choose_mask(scores, "irregular", share).mask if share != zeros else dense != 0
        kept = encode(dense, "irregular", mask=mask)
        matrix = _prune(dense, work.pattern or pattern, share, dtype)
    shape = (int(dense.shape[0]), int(dense.shape[1]))
    bounds = {"dense": roofline.dense_bound(shape, work.n, dtype, _read_time)}
    if dtype == "float32":
        bounds["csr"] = _csr_bound(kept.nnz, work.n)
    if matrix is not None:
        plan = plan_for_samples(matrix, work.n, None if dtype == "float32" else matrix.dtype)
        bounds["compact"] = roofline.bound(plan, shape, work.n, read=_read_time)
    sparse = kept.sparsity if matrix is None else matrix.sparsity
    layer = GivenLayer(dense, _cast(kept, dtype), matrix, dtype)
    return _Product(work, layer, str(matrix.pattern) if matrix else "", dtype, sparse, bounds)


def _prune(
    dense: npt.NDArray[np.float32], pattern: str | Pattern, sparsity: float, dtype: str
) -> Matrix | None:
    """Keep the largest; None if the pattern does not fit."""
    try:
        resolved = parse_pattern(pattern).resolve((dense.shape[0], dense.shape[1]))
        share = None if isinstance(resolved, NM) else sparsity
        chosen = choose_mask(np.abs(dense), resolved, share)
        return _cast(encode(dense, resolved, chosen.mask, chosen.row_order), dtype)
    except PatternError:
        return None


def _csr_bound(nnz: int, n: int) -> Bound:
    """A CSR matrix with 4-byte columns: an element takes a load of its value, of its column and of x, or of y."""
    registers = nnz * (1 if n == 1 else -(-n // roofline.probe().lanes))
    return Bound({"bytes": _read_time(8 * nnz), "loads": 3 * registers * roofline.probe().load})


def _read_time(nbytes: int) -> float:
    """`roofline.read_time`, by two probes for each doubling."""
    power = 1 << max(10, nbytes.bit_length() - 1)
    size = next(each for each in (power, power * 3 // 2, 2 * power) if nbytes <= each)
    return nbytes * roofline.read_time(size) / size


@functools.cache
def _peers(dtype: str) -> dict[str, Peer]:
    from gspattern.bench.layers import load_peers
    from gspattern.bench.linear_peers import PEERS

    found, _, missing = load_peers(PEERS, LIBRARIES, 1, dtype)
    if all(peer.sparse for peer in found.values()):
        raise ValueError(
            f"no library multiplies dense {dtype} here, so that nothing can be compared: {missing}"
        )
    return found


def _measure(product: _Product, seconds: float, clock: str, turn: float = 2e-3) -> dict[str, float]:
    """Seconds of each contender, the best of its layouts."""
    from gspattern.bench.timing import CLOCKS, alternate

    x = product.layer.inputs(product.work.n)
    contenders = product.layer.contenders(x, product.work.n, _peers(product.dtype), {})
    calls: dict[str, Callable[[], object]] = {
        str(i): each.product.call for i, each in enumerate(contenders)
    }
    times = alternate(calls, 30, seconds, turn, CLOCKS[clock])
    best: dict[str, float] = {}
    for contender, each in zip(contenders, times.values(), strict=True):
        kind = KINDS[contender.kind]
        best[kind] = min(best.get(kind, math.inf), *each)
    return best


# ---------------------------------------------------------------------- references


@functools.cache
def _reference(
    shape: tuple[int, int], pattern: str, sparsity: float, dtype: str, n: int, clock: str
) -> tuple[dict[str, float], dict[str, Bound]]:
    """Seconds and bounds of the contenders of a reference layer."""
    from gspattern.bench.layers import make_weights

    weights = make_weights(*shape, seed=7)
    resolved = _prune(weights, pattern, sparsity, dtype)
    fits = pattern if resolved is not None else "irregular"
    product = _prepare(Work("", weights, n), dtype, fits, sparsity)
    return _measure(product, 0.03, clock, 1e-3), product.bounds


def _predict(product: _Product, key: str, clock: str) -> float:
    """Seconds of a contender: those of a call without work, and its bound over the share that is expected.

    The share is interpolated between those of reference layers by the number of weights.
    """
    likeness = _likeness(product)
    # So small a matrix has a plan for many columns sooner than others do: few columns are called as one is.
    columns = likeness[-1] if likeness[-1] > 16 else 1
    call = _reference(SMALLEST, *likeness[:-1], columns, clock)[0][key]
    sizes, shares = [], []
    for shape in REFERENCES:
        seconds, bounds = _reference(shape, *likeness, clock)
        work = max(seconds[key] - call, seconds[key] / 4)
        sizes.append(math.log(math.prod(shape)))
        shares.append(math.log(bounds[key].seconds / work))
    at = math.log(product.layer.shape.rows * product.layer.shape.cols)
    share = math.exp(float(np.interp(at, sizes, shares)))
    return call + product.bounds[key].seconds / share


def _likeness(product: _Product) -> tuple[str, float, str, int]:
    """Pattern, sparsity, dtype and n of the reference layers of a product."""
    sparsity = min(SPARSITIES, key=lambda each: abs(each - product.sparsity))
    n = min(product.work.n, MOST_COLUMNS)
    n = n if n <= 16 else 1 << round(math.log2(n))
    pattern, shape = product.pattern or "irregular", product.layer.shape
    # It has as many banks as the columns of a reference layer ask for.
    if pattern == str(parse_pattern("gs(cpu)").resolve((shape.rows, shape.cols))):
        pattern = "gs(cpu)"
    return pattern, sparsity, product.dtype, n


# ------------------------------------------------------------------------- answers


def _explain(
    works: Sequence[Work],
    dtype: str | None,
    pattern: str | Pattern,
    sparsity: float | None,
    seconds: float,
    clock: str,
) -> Explanation:
    from tqdm import tqdm

    products, predictions = [], []
    for work in tqdm(works, "predicting", disable=None, leave=False):
        product = _prepare(work, dtype, pattern, sparsity)
        products.append(product)
        predictions.append({key: _predict(product, key, clock) for key in product.bounds})
    order = sorted(range(len(works)), key=lambda i: -works[i].count * max(predictions[i].values()))
    measured: dict[int, dict[str, float]] = {}
    end = time.perf_counter() + seconds
    for done, i in enumerate(tqdm(order, "measuring", disable=None, leave=False)):
        left = end - time.perf_counter()
        if left <= 0:
            break
        measured[i] = _measure(products[i], left / (len(order) - done), clock)
    rows = []
    for i, product in enumerate(products):
        contenders = {
            key: Estimate(predictions[i][key], measured.get(i, {}).get(key), WORDS[bound.limit])
            for key, bound in product.bounds.items()
        }
        rows.append(
            LayerExplanation(
                product.work.name,
                (product.layer.shape.rows, product.layer.shape.cols),
                product.pattern,
                product.sparsity,
                product.work.n,
                product.dtype,
                product.work.count,
                contenders,
                _advice(product, contenders, clock),
            )
        )
    return Explanation(tuple(rows))


def _advice(product: _Product, contenders: Mapping[str, Estimate], clock: str) -> str:
    """Whether to stay dense, and the one change of pattern, sparsity or dtype that gains most on a reference layer."""
    dense, compact = contenders["dense"], contenders.get("compact")
    if compact is None:
        return "stay dense: the pattern does not fit this shape"
    times = dense.seconds / compact.seconds
    now = (
        f"{product.pattern} is {times:.1f} x dense"
        if times > 1
        else f"stay dense: {product.pattern} takes {1 / times:.1f} times as long"
    )
    pattern, sparsity, dtype, n = _likeness(product)
    own = _reference(REFERENCES[1], pattern, sparsity, dtype, n, clock)[0]["compact"]
    changes: dict[str, tuple[str, float, str]] = {
        f"with {other}": (other, sparsity, dtype)
        for other in ("gs(cpu)", "irregular")
        if other != pattern
    }
    changes |= {
        f"at {other:.0%}": (pattern, other, dtype)
        for other in SPARSITIES[1:]
        if other > product.sparsity + 0.02
    }
    changes |= {f"in {other}": (pattern, sparsity, other) for other in DTYPES if other != dtype}
    gains = {}
    for name, change in changes.items():
        try:
            seconds = _reference(REFERENCES[1], *change, n, clock)[0]["compact"]
        except ValueError:  # no library has a dense product in this dtype
            continue
        gains[name] = times * own / seconds
    found = [
        f"{name} about {gain:.1f}"
        for name, gain in sorted(gains.items(), key=lambda item: -item[1])
        if gain > max(1.0, 1.1 * times)
    ]
    return f"{now}; {', '.join(found)}" if found else f"{now}; no other choice gains more"
