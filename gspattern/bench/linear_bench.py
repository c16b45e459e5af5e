"""y = W x: x as columns ([K, N]) or as rows ([N, K])."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from gspattern import plans, roofline
from gspattern.bench import linear_peers
from gspattern.bench.layers import Contender, Doubles, Floats, Layer, Product, facts_of, stored
from gspattern.bench.shapes import LinearShape
from gspattern.matrices import Array, Matrix

__all__ = ["GivenLayer", "LinearLayer"]


class LinearLayer(Layer[LinearShape]):
    """Weights are [M, K], x is float32 [K, N]; for bfloat16 it holds numbers of that dtype alone."""

    peers = linear_peers.PEERS

    def inputs(self, n: int) -> Floats:
        x = np.random.default_rng(1).standard_normal((self.shape.cols, n), dtype=np.float32)
        return x.astype(ml_dtypes.bfloat16).astype(np.float32) if self.dtype == "bfloat16" else x

    def weights(self, which: str) -> Floats:
        return self.full(which)[0]

    def exact(self, which: str, x: Floats, dtype: str) -> tuple[Doubles, Doubles]:
        weights = self.full(which, dtype)[0].astype(np.float64)
        # Numbers of 8 bits are as far apart for small entries of x as for the largest.
        size = np.abs(x).max(axis=0, keepdims=True) if self.dtype == "int8" else np.abs(x)
        y, scale = weights @ x.astype(np.float64), np.abs(weights) @ np.broadcast_to(size, x.shape)
        scale[scale == 0] = 1
        return y, scale

    def own(self, x: Floats) -> list[Contender]:
        return [
            self._contender(pattern, product, plan, x.shape[1])
            for pattern, (matrix,) in self.matrices.items()
            for product, plan in _own_products(matrix, x)
        ]

    def _contender(self, pattern: str, product: Product, plan: plans.Plan, n: int) -> Contender:
        size = (self.shape.rows, self.shape.cols)
        return Contender(
            pattern,
            "pattern",
            product,
            pattern,
            facts_of(plan),
            lambda: roofline.bound(plan, size, n),
        )


class GivenLayer(LinearLayer):
    """A layer whose weights are known, not made.

    Parameters
    ----------
    weights : ndarray of float32
        [M, K], of the dense libraries.
    kept : Matrix
        Of the sparse ones.
    matrix : Matrix, optional
        Ours.
    dtype : str
    """

    def __init__(self, weights: Floats, kept: Matrix, matrix: Matrix | None, dtype: str) -> None:
        rows, cols = weights.shape
        super().__init__(LinearShape("given", rows, cols), dtype, kept.sparsity, (), {})
        self._given, self._sparse = weights, (kept,)
        if matrix is not None:
            self.matrices[str(matrix.pattern)] = (matrix,)

    def full(self, which: str, dtype: str = "float32") -> tuple[Floats, ...]:
        if which == "dense":
            return (stored(self._given, dtype),)
        matrices = self._irregular() if which == "sparse" else self.matrices[which]
        return tuple(each.astype(np.float32).to_dense() for each in matrices)

    def _sizes(self) -> tuple[()]:
        return ()


def _own_products(matrix: Matrix, x: Floats) -> list[tuple[Product, plans.Plan]]:
    """A bfloat16 matrix takes x in bfloat16, and gives y so, or in float32."""
    if matrix.dtype != ml_dtypes.bfloat16:
        return _products_of(matrix, x, "")
    return [
        *_products_of(matrix, x.astype(ml_dtypes.bfloat16), ""),
        *_products_of(matrix, x, ", from float32"),
    ]


def _products_of(matrix: Matrix, x: Array, note: str) -> list[tuple[Product, plans.Plan]]:
    # An int8 matrix rounds a float32 x to int8 by itself.
    dtype = np.dtype(np.int8) if matrix.dtype == np.int8 else x.dtype
    columns = plans.plan_for(matrix, x.shape[1], dtype)
    if x.shape[1] == 1:
        vector = np.ascontiguousarray(x[:, 0])
        product = Product(f"columns{note}", lambda: matrix @ vector, lambda y: _floats(y)[:, None])
        return [(product, columns)]
    rows = np.ascontiguousarray(x.T)
    out = np.empty((len(rows), matrix.shape[0]), x.dtype)
    return [
        (Product(f"columns{note}", lambda: matrix @ x, _floats), columns),
        (
            Product(f"rows{note}", lambda: matrix.linear(rows, out=out), lambda y: _floats(y).T),
            plans.plan_for_samples(matrix, len(rows), dtype),
        ),
    ]


def _floats(y: Array) -> Floats:
    return y.astype(np.float32, copy=False)
