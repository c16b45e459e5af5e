"""What every operation of the benchmark has in common: layers, those who compute them, and their errors.

An operation is two files: `*_bench.py` has its `Layer`, which says what is computed, exactly and by us, and
`*_peers.py` how other libraries do it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gspattern import roofline
from gspattern.bench.fairness import BenchError
from gspattern.bench.shapes import Shape
from gspattern.masks import choose_mask
from gspattern.matrices import Matrix, as_matrix, encode
from gspattern.patterns import PatternError
from gspattern.plans import Plan
from gspattern.roofline import Bound

__all__ = [
    "DTYPES",
    "Contender",
    "Floats",
    "Layer",
    "Peer",
    "Product",
    "UnsupportedError",
    "check",
    "load_peers",
    "make_weights",
    "prune",
    "quantize_rows",
    "stored",
]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dtype:
    """How weights are stored.

    Attributes
    ----------
    nbytes : int
        Of an element.
    eps : float
        What errors are counted in.
    slack : float
        How many of these a product may be off, whatever its size.
    """

    nbytes: int
    eps: float
    slack: float


# int8 stands for int8 weights with a scale for each row and activations that are quantized when they come, to 7 or 8
# bits: rounding them moves each by up to 1 / 127 of the largest.
DTYPES = {
    "float32": Dtype(4, 2.0**-23, 10),
    "bfloat16": Dtype(2, 2.0**-7, 4),
    "int8": Dtype(1, 1 / 127, 2),
}


# ------------------------------------------------------------------- weights


def make_weights(rows: int, cols: int, seed: int = 0) -> Floats:
    """Gaussian x log-normal(0.3) row scales, float32 [rows, cols]: magnitudes as those of a trained layer."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, cols), dtype=np.float32)
    weights *= rng.lognormal(0, 0.3, (rows, 1)).astype(np.float32)
    return weights


def quantize_rows(weights: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """int8 [M, K] and scales [M, 1], symmetric: as `Matrix.quantize` does it."""
    scales = (np.abs(weights).max(axis=1, keepdims=True) / 127).astype(np.float32)
    scales[scales == 0] = 1
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), scales


def stored(weights: Floats, dtype: str) -> Floats:
    """Weights [M, K] as they are after they were stored in this dtype."""
    if dtype == "bfloat16":
        return weights.astype(ml_dtypes.bfloat16).astype(np.float32)
    if dtype == "int8":
        codes, scales = quantize_rows(weights)
        return codes * scales
    return weights


def prune(weights: Floats, pattern: str, sparsity: float, dtype: str = "float32") -> Matrix:
    """Choose a mask by magnitude and store what it keeps.

    Raises
    ------
    PatternError
        If the pattern does not fit.
    """
    scores = np.ascontiguousarray(np.abs(as_matrix(weights)))
    chosen = choose_mask(scores, pattern, None if ":" in pattern else sparsity)
    matrix = encode(weights, pattern, chosen.mask, chosen.row_order)
    return matrix.quantize() if dtype == "int8" else matrix.astype(dtype)


# ---------------------------------------------------------------- contenders


@dataclass(frozen=True)
class Product:
    """One way to compute a layer's output.

    Attributes
    ----------
    layout : str
        How x lies, and whatever else tells it from the others of its contender.
    call : callable
        Computes; this is what is timed.
    result : callable
        Turns what `call` returned into floats, shaped as `Layer.exact` has them.
    """

    layout: str
    call: Callable[[], Any]
    result: Callable[[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class Contender:
    """One product of one contender in one case.

    Attributes
    ----------
    name : str
    kind : {"dense", "sparse", "pattern"}
    product : Product
    weights : str
        Those that it stands for, as `Layer.weights` takes them.
    facts : mapping
        What is reported beside its times: "kernel", "bytes", "efficiency".
    bound : callable, optional
        Gives the least time that its design allows on one core.
    """

    name: str
    kind: str
    product: Product
    weights: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    bound: Callable[[], Bound] | None = None


def facts_of(plan: Plan) -> dict[str, Any]:
    """What a plan tells of itself, for the report."""
    return {"kernel": plan.kernel, "bytes": plan.bytes, "efficiency": plan.efficiency}


class UnsupportedError(Exception):
    """A library does not have this operation in this dtype; the message says what it lacks."""


class Peer(Protocol):
    """A library, set up for one operation, dtype and number of threads.

    The constructor raises ImportError if the library is not there, and UnsupportedError if it lacks the dtype.

    Attributes
    ----------
    title : str
    sparse : bool
        Whether it multiplies the sparse matrix.
    """

    title: str
    sparse: bool

    def __init__(self, threads: int, dtype: str) -> None: ...

    def prepare(self, weights: Any, shape: Any) -> Any:
        """Lay out weights, as `Layer.weights` gives them, as far as the library can for any x."""

    def products(self, prepared: Any, x: Any) -> list[Product]:
        """Give the products of prepared weights with x, as `Layer.inputs` gives it."""


# By the name that `--peers` takes: the class, and the distributions that it needs.
Peers = Mapping[str, tuple[type[Any], tuple[str, ...]]]


def load_peers(
    peers: Peers, names: Sequence[str], threads: int, dtype: str
) -> tuple[dict[str, Peer], dict[str, str], dict[str, str]]:
    """Import and set up those of an operation's peers that are asked for.

    Parameters
    ----------
    peers : mapping
        Of the operation.
    names : sequence of str
        Others than `peers` has are left out.
    threads : int
    dtype : str

    Returns
    -------
    found : dict of str to Peer
        Those that could be imported.
    versions : dict of str to str
        Of the distributions that they are.
    missing : dict of str to str
        Why the others could not.
    """
    found: dict[str, Peer] = {}
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        if name not in peers:
            continue
        kind, distributions = peers[name]
        try:
            peer = kind(threads, dtype)
            versions |= {each: metadata.version(each) for each in distributions}
            found[name] = peer
        except (ImportError, metadata.PackageNotFoundError) as error:
            missing[name] = f"{error} (pip install {' '.join(distributions)})"
        except UnsupportedError as error:
            missing[name] = str(error)
    return found, versions, missing


# -------------------------------------------------------------------- layers

AnyShape = TypeVar("AnyShape", bound=Shape)


class Layer(ABC, Generic[AnyShape]):
    """The weights of one shape at one sparsity: what all cases of these share.

    Parameters
    ----------
    shape : Shape
    dtype : str
        Of the weights that contenders hold.
    sparsity : float
    patterns : sequence of str
    unfit : dict of str to str
        Is told why a pattern does not fit.
    """

    peers: ClassVar[Peers]

    def __init__(
        self,
        shape: AnyShape,
        dtype: str,
        sparsity: float,
        patterns: Sequence[str],
        unfit: dict[str, str],
    ) -> None:
        self.shape, self.dtype, self.sparsity = shape, dtype, sparsity
        # As matrices, [M, K]; more than one where the layer has more.
        self._dense = tuple(self._make(*size, seed) for seed, size in enumerate(self._sizes()))
        self.matrices: dict[str, tuple[Matrix, ...]] = {}
        self._sparse: tuple[Matrix, ...] | None = None
        for pattern in patterns:
            try:
                self.matrices[pattern] = self._prune(pattern)
            except PatternError as error:
                unfit[f"{pattern}, {shape.size}, {sparsity:g}"] = str(error)

    def _sizes(self) -> Sequence[tuple[int, int]]:
        """Rows and columns of each matrix."""
        return ((self.shape.rows, self.shape.cols),)

    def _make(self, rows: int, cols: int, seed: int) -> Floats:
        return make_weights(rows, cols, seed)

    def _shaped(self, weights: Floats) -> Floats:
        """A matrix as the weights that it is the view of."""
        return weights

    def _prune(self, pattern: str) -> tuple[Matrix, ...]:
        return tuple(
            prune(self._shaped(each), pattern, self.sparsity, self.dtype) for each in self._dense
        )

    def full(self, which: str, dtype: str = "float32") -> tuple[Floats, ...]:
        """Give the weights that a contender stands for, as they are after they were stored in this dtype.

        Parameters
        ----------
        which : str
            "dense", before pruning; "sparse", those of the sparse libraries; or a pattern.
        dtype : str

        Returns
        -------
        tuple of ndarray of float32
            [M, K] each.
        """
        if which == "dense":
            return tuple(stored(each, dtype) for each in self._dense)
        matrices = self._irregular() if which == "sparse" else self.matrices[which]
        if dtype == self.dtype:
            return tuple(each.astype(np.float32).to_dense() for each in matrices)
        kept = zip(matrices, self._dense, strict=True)
        return tuple(np.where(each.mask(), dense, np.float32(0)) for each, dense in kept)

    def _irregular(self) -> tuple[Matrix, ...]:
        if self._sparse is None:
            self._sparse = self.matrices.get("irregular") or self._prune("irregular")
        return self._sparse

    @abstractmethod
    def inputs(self, n: int) -> Any:
        """Give x for n columns, pictures, or sequences."""

    @abstractmethod
    def weights(self, which: str) -> Any:
        """Give float32 weights as peers take them; `which` as for `full`."""

    @abstractmethod
    def own(self, x: Any) -> list[Contender]:
        """Give our products with x."""

    @abstractmethod
    def exact(self, which: str, x: Any, dtype: str) -> tuple[Doubles, Doubles]:
        """Compute in float64, with weights stored in this dtype.

        Returns
        -------
        y : ndarray of float64
        scale : ndarray of float64, positive, of y's shape
            |W| |x|, or what else the errors of y are relative to.
        """

    def dense_bound(self, n: int) -> Bound:
        """Give the least time of a dense library on one core."""
        size = (self.shape.rows, self.shape.cols)
        return roofline.dense_bound(size, n * self.shape.uses, self.dtype)

    def contenders(
        self, x: Any, n: int, peers: Mapping[str, Peer], prepared: dict[str, Any]
    ) -> list[Contender]:
        """Give all products with x, of peers and our own.

        Parameters
        ----------
        x : object
            As `inputs` gives it.
        n : int
        peers : mapping of str to Peer
        prepared : dict
            Keeps what peers prepare from one call to the next.
        """
        found = []
        for name, peer in peers.items():
            kind = "sparse" if peer.sparse else "dense"
            if name not in prepared:
                prepared[name] = peer.prepare(self.weights(kind), self.shape)
            facts, bound = {}, None
            if kind == "dense":
                size = self.shape.rows * self.shape.cols
                facts = {"bytes": DTYPES[self.dtype].nbytes * size}
                bound = lambda: self.dense_bound(n)  # noqa: E731
            for product in peer.products(prepared[name], x):
                found.append(Contender(peer.title, kind, product, kind, facts, bound))
        return found + self.own(x)


def check(layer: Layer[Any], contenders: Sequence[Contender], x: Any) -> list[dict[str, Any]]:
    """Give nonzeros and errors of every contender.

    "error_eps" is the largest |y - exact| / (|W| |x|), or relative to what else `Layer.exact` gives, in units of the
    dtype's epsilon; exact is in float64 and has the weights that the contender stands for, as they are stored.
    "error_float32", for other dtypes, is the distance from what the same weights give in float32, |y - exact| / |exact|
    of the whole output.

    Raises
    ------
    BenchError
        If an error is more than rounding can do.
    """
    found: list[dict[str, Any]] = [{} for _ in contenders]
    dtype = DTYPES[layer.dtype]
    for which in dict.fromkeys(contender.weights for contender in contenders):
        exact, scale = layer.exact(which, x, layer.dtype)
        full = exact if layer.dtype == "float32" else layer.exact(which, x, "float32")[0]
        size = float(np.linalg.norm(full)) or 1.0
        kept = sum(int(np.count_nonzero(each)) for each in layer.full(which))
        for i, contender in enumerate(contenders):
            if contender.weights != which:
                continue
            y = contender.product.result(contender.product.call())
            error = float(np.max(np.abs(y - exact) / scale)) / dtype.eps
            limit = dtype.slack + layer.shape.cols * layer.shape.steps * 2.0**-23 / dtype.eps
            if not error <= limit:  # so is a NaN
                raise BenchError(
                    f"{contender.name} ({contender.product.layout}) computes something else for {layer.shape.size} in "
                    f"{layer.dtype} at {layer.sparsity:.0%}: its error is {error:.3g} epsilon; please report it where "
                    "it comes from"
                )
            found[i] = {"error_eps": error, "kept": kept}
            if layer.dtype != "float32":
                found[i]["error_float32"] = float(np.linalg.norm(y - full)) / size
    return found
