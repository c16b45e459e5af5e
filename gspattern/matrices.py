"""Compact matrices: weights that keep only what their mask keeps, in the arrays of docs/FORMAT.md.

`encode` makes one from weights, `Matrix.from_arrays` from arrays that somebody else wrote. There is no
third way, and matrices do not change, so whatever holds one may trust it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gspattern import _core, plans
from gspattern._core import FormatError, PatternError
from gspattern.masks import _as_array, _as_row_order, check, choose_mask
from gspattern.patterns import (
    GS,
    NM,
    BankBalanced,
    Banked,
    Block,
    Irregular,
    Pattern,
    parse_pattern,
)

if TYPE_CHECKING:
    from gspattern.plans import Activation, Plan

__all__ = [
    "BlockMatrix",
    "CSRMatrix",
    "GSMatrix",
    "Matrix",
    "SizeTable",
    "as_matrix",
    "encode",
    "from_matrix",
    "sizes",
]

Array = npt.NDArray[Any]
AnyMatrix = TypeVar("AnyMatrix", bound="Matrix")

# In the order of gsp_dtype: a dtype, and the one that carries its bits to C.
DTYPES: tuple[tuple[np.dtype[Any], np.dtype[Any]], ...] = (
    (np.dtype(np.float64), np.dtype(np.float64)),
    (np.dtype(np.float32), np.dtype(np.float32)),
    (np.dtype(np.float16), np.dtype(np.uint16)),
    (np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)),
    (np.dtype(np.int8), np.dtype(np.int8)),
)
FLOATS = tuple(dtype for dtype, _ in DTYPES[:4])


# ------------------------------------------------------------------- matrices


class Matrix:
    """A compact matrix of `shape` (M, K): what `encode` returns and files hold.

    Matrices are immutable, their arrays are not writeable, and everything in them was checked. There is
    a class for each way to store one: `GSMatrix`, `BlockMatrix` and `CSRMatrix`.

    Attributes
    ----------
    pattern : Pattern
        Resolved: with numbers for this shape.
    shape : (int, int)
        Rows M (outputs) and columns K (inputs).
    values : ndarray
        float64, float32, float16, bfloat16 or int8, as `dtype`; read-only, as all arrays here.
    indices : ndarray
        uint8, uint16 or uint32; what an index means depends on the class, `columns` does not.
    indptr : ndarray of uint32
        [groups + 1], where each group begins in `values`.
    row_order : ndarray of uint32, or None
        [M], for patterns with scatter: grouped position p holds row ``row_order[p]``.
    scales : ndarray of float32, or None
        [M], for int8: what the values of a row are multiplied by.
    kernel_shape : tuple of int, or None
        Shape of the convolution's weight, [M, Ci, ...], if the matrix came from one.

    Examples
    --------
    >>> encode(np.eye(4, dtype=np.float32), "gs(2,1)")
    <GSMatrix 4x4 gs(2,1) float32: 4 nonzeros, 75.0 % sparse, 36 B = 56.2 % of dense>
    """

    __slots__ = (
        "__weakref__",
        "_indices",
        "_indptr",
        "_kernel_shape",
        "_pattern",
        "_plans",
        "_row_order",
        "_scales",
        "_shape",
        "_values",
    )

    _pattern: Pattern
    _shape: tuple[int, int]
    _values: Array
    _indices: Array
    _indptr: npt.NDArray[np.uint32]
    _row_order: npt.NDArray[np.uint32] | None
    _scales: npt.NDArray[np.float32] | None
    _kernel_shape: tuple[int, ...] | None
    _plans: dict[Any, Any]  # made and read by gspattern.plans; a cache, so neither copied nor saved

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError(
            f"a {type(self).__name__} is made by gspattern.encode(weights, pattern), or by "
            "Matrix.from_arrays(...) from its arrays"
        )

    # ---- making

    @classmethod
    def from_arrays(
        cls: type[AnyMatrix],
        pattern: str | Pattern,
        shape: Sequence[int],
        values: Array,
        indices: Array,
        indptr: Array,
        row_order: Array | None = None,
        scales: Array | None = None,
        kernel_shape: Sequence[int] | None = None,
    ) -> AnyMatrix:
        """Make a matrix of arrays that may come from anywhere: every rule of docs/FORMAT.md is checked.

        The arrays are copied, so that later changes of them do no harm.

        Parameters
        ----------
        pattern : str or Pattern
            With numbers; "gs(cpu)" is resolved for the shape.
        shape : (int, int)
            Rows M and columns K.
        values, indices, indptr, row_order, scales : ndarray
            As the attributes, exactly in their dtypes (any byte order, strides and alignment).
        kernel_shape : sequence of int, optional
            Of a convolution's weight, [M, Ci, ...].

        Returns
        -------
        GSMatrix, BlockMatrix or CSRMatrix

        Raises
        ------
        PatternError
            If the pattern does not fit the shape.
        FormatError
            If any other rule is broken; `rule` is its name in docs/FORMAT.md, the message says where.
        TypeError
            If something is not an array.
        """
        shape = _shape(shape)
        pattern = parse_pattern(pattern).resolve(shape)
        kind = cls._kind_of(pattern)
        given = {
            "values": values,
            "indices": indices,
            "indptr": indptr,
            "row_order": row_order,
            "scales": scales,
        }
        arrays: dict[str, Array] = {}
        for name, array in given.items():
            if array is None:
                continue
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
            arrays[name] = array
        _check_arrays(pattern, shape, arrays)
        matrix = kind._make(
            pattern,
            shape,
            {name: _aligned(array) for name, array in arrays.items()},
            _kernel_shape(kernel_shape, shape),
        )
        matrix._validate()
        return matrix

    @classmethod
    def from_dense(
        cls: type[AnyMatrix], weights: npt.ArrayLike, pattern: str | Pattern
    ) -> AnyMatrix:
        """Store the nonzeros of weights: `encode` without a mask, which says what is taken and raised.

        A TypeError is raised as well if another class than this one stores the pattern.
        """
        matrix = encode(weights, pattern)
        cls._kind_of(matrix.pattern)
        return cast(AnyMatrix, matrix)

    @classmethod
    def from_csr(
        cls: type[AnyMatrix], matrix: Any, pattern: str | Pattern = "irregular"
    ) -> AnyMatrix:
        """Store a sparse matrix of SciPy.

        Parameters
        ----------
        matrix : scipy.sparse array or matrix
            [M, K] in any format of SciPy, float64, float32 or (with scales 1) int8. Elements that are
            stored are kept, zeros included; one that is stored twice counts as the sum.
        pattern : str or Pattern
            As few more elements are kept as make a valid mask. With scatter, rows are ordered by falling
            number of elements: the row order of a matrix that `to_csr` was called on is not known here.

        Returns
        -------
        GSMatrix, BlockMatrix or CSRMatrix

        Raises
        ------
        PatternError
            If no valid mask of the pattern holds all these elements.
        TypeError
            If it is no sparse matrix of SciPy, has another dtype, or another class stores the pattern.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(
                f"from_csr takes a sparse matrix of SciPy, got {type(matrix).__name__}; "
                "from_dense takes arrays"
            )
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        mask = np.zeros(csr.shape, np.bool_)
        mask[np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)), csr.indices] = True
        pattern = parse_pattern(pattern).resolve(csr.shape)
        cls._kind_of(pattern)
        order = _by_count(mask) if pattern.scatter else None
        scales = np.ones(csr.shape[0], np.float32) if csr.dtype == np.int8 else None
        mask = _complete(mask, pattern, order)
        made = encode(csr.toarray(), pattern, mask=mask, row_order=order, scales=scales)
        return cast(AnyMatrix, made)

    @classmethod
    def _kind_of(cls: type[AnyMatrix], pattern: Pattern) -> type[AnyMatrix]:
        """The class that stores a resolved pattern, which must be this one or derived from it."""
        kind = _class_of(pattern)
        if not issubclass(kind, cls):
            raise TypeError(f"{pattern} is stored as a {kind.__name__}, not as a {cls.__name__}")
        return kind

    @classmethod
    def _make(
        cls: type[AnyMatrix],
        pattern: Pattern,
        shape: tuple[int, int],
        arrays: Mapping[str, Array],
        kernel_shape: tuple[int, ...] | None,
    ) -> AnyMatrix:
        """Make a matrix of arrays that nobody else can write to, without a check."""
        self = object.__new__(cls)
        self._pattern = pattern
        self._shape = shape
        self._values = _freeze(arrays["values"])
        self._indices = _freeze(arrays["indices"])
        self._indptr = _freeze(arrays["indptr"])
        row_order, scales = arrays.get("row_order"), arrays.get("scales")
        self._row_order = None if row_order is None else _freeze(row_order)
        self._scales = None if scales is None else _freeze(scales)
        self._kernel_shape = kernel_shape
        self._plans = {}
        return self

    def _validate(self) -> None:
        if self.pattern.scatter != (self._row_order is not None):
            what = "needs" if self.pattern.scatter else "has no"
            raise _error("tensors", f"{self.pattern} {what} row_order")
        if (self.dtype == np.int8) != (self._scales is not None):
            what = "needs" if self.dtype == np.int8 else "has no"
            raise _error("tensors", f"a matrix of {self.dtype} {what} scales")
        fault = _core.validate(*self.core())
        if fault is not None:
            raise _fault_error(self, *fault)
        if isinstance(self.pattern, BankBalanced) and (row := _uneven_row(self._indptr)):
            bundles = np.diff(self._indptr)
            raise _error(
                "indptr",
                f"all rows of {self.pattern} must hold equally many bundles, but row 0 holds "
                f"{bundles[0]} and row {row} holds {bundles[row]}",
            )

    # ---- reading

    @property
    def pattern(self) -> Pattern:
        return self._pattern

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def values(self) -> Array:
        return self._values

    @property
    def indices(self) -> Array:
        return self._indices

    @property
    def indptr(self) -> npt.NDArray[np.uint32]:
        return self._indptr

    @property
    def row_order(self) -> npt.NDArray[np.uint32] | None:
        return self._row_order

    @property
    def scales(self) -> npt.NDArray[np.float32] | None:
        return self._scales

    @property
    def kernel_shape(self) -> tuple[int, ...] | None:
        return self._kernel_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value; ``ml_dtypes.bfloat16`` for bfloat16."""
        return self._values.dtype

    def arrays(self) -> dict[str, Array]:
        """Give the arrays that there are by their names: what `from_arrays` takes."""
        given = {
            "values": self._values,
            "indices": self._indices,
            "indptr": self._indptr,
            "row_order": self._row_order,
            "scales": self._scales,
        }
        return {name: array for name, array in given.items() if array is not None}

    @property
    def nnz(self) -> int:
        """Elements that are stored, whatever their value: for N:M all slots, as in `mask`.

        Places outside the matrix, in short groups and in blocks at the edge, do not count.
        """
        return self._values.size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def sparsity(self) -> float:
        """Fraction of the elements that is not kept; 0 for a matrix without elements."""
        elements = self._shape[0] * self._shape[1]
        return 1 - self.nnz / elements if elements else 0.0

    def core(self) -> tuple[Any, ...]:
        """Give what the C core takes: pattern, shape, number of the dtype, and the five arrays.

        Values of float16 and bfloat16 are shown as uint16; what is not there is None.
        """
        number, carrier = _number_of(self.dtype)
        return (
            self._pattern.core(),
            self._shape,
            number,
            self._values.view(carrier),
            self._indices,
            self._indptr,
            self._row_order,
            self._scales,
        )

    def columns(self) -> npt.NDArray[np.uint32]:
        """Give the column of every value.

        Returns
        -------
        ndarray of uint32
            The shape of `values`; 0 at places that stand for no element.
        """
        columns: npt.NDArray[np.uint32] = _core.columns(*self.core())
        return columns

    def mask(self) -> npt.NDArray[np.bool_]:
        """Give what is kept, zeros included.

        Returns
        -------
        ndarray of bool
            [M, K]. For N:M it is all places that are stored, so min(n, width) in every window.
        """
        pattern, shape, _, values, indices, indptr, row_order, _ = self.core()
        ones = np.ones(values.shape, np.int8)
        number, _ = _number_of(ones.dtype)
        kept = _core.decode(pattern, shape, number, ones, indices, indptr, row_order, None)
        return np.asarray(kept.view(np.bool_))

    def to_dense(self) -> Array:
        """Give the weights back, bit for bit, with 0 where nothing is kept.

        Returns
        -------
        ndarray
            [M, K] in `dtype`. int8 stays int8; `astype` of a float dtype applies the scales.
        """
        return np.asarray(_core.decode(*self.core()).view(self.dtype))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        # What np.asarray calls: to_dense, so codes without scales for int8, and those in no other dtype.
        if copy is False:
            raise ValueError(
                f"a {type(self).__name__} cannot be an array without a copy; leave copy out"
            )
        if dtype is not None and self.dtype == np.int8 and np.dtype(dtype) != np.int8:
            raise TypeError(
                f"a matrix of int8 has scales, which an array of {np.dtype(dtype)} would lack; "
                'use matrix.astype("float32").to_dense()'
            )
        return self.to_dense().astype(self.dtype if dtype is None else dtype, copy=False)

    def to_csr(self) -> Any:
        """Give a ``scipy.sparse.csr_array`` with the elements that are kept, zeros included.

        Returns
        -------
        scipy.sparse.csr_array
            [M, K], columns ascending. SciPy knows neither float16 nor bfloat16: they become float32,
            exactly. int8 stays int8, without its scales.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        """
        try:
            from scipy.sparse import coo_array
        except ImportError as error:
            raise ImportError("to_csr needs SciPy; install it with `pip install scipy`") from error
        rows, there = self._places()
        values = self._values[there]
        if values.dtype in (DTYPES[2][0], DTYPES[3][0]):
            values = values.astype(np.float32)
        index = np.int32 if max(self._shape) < 2**31 else np.int64  # as SciPy chooses by itself
        row, column = rows[there].astype(index), self.columns()[there].astype(index)
        csr = coo_array((values, (row, column)), shape=self._shape).tocsr()
        csr.sort_indices()
        return csr

    def _places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The row of every value, and whether there is such an element; in the shape of `values`."""
        pattern, (rows, cols) = self._pattern, self._shape
        group = np.repeat(np.arange(len(self._indptr) - 1), np.diff(self._indptr))
        inside = np.ones(self._values.shape, np.bool_)
        if isinstance(pattern, Banked):
            slot = np.arange(pattern.banks)
            position = group[:, None] * pattern.group_rows + slot // pattern.per_row
        elif isinstance(pattern, Block):
            left = self._indices.astype(np.int64) * pattern.cols
            inside &= left[:, None, None] + np.arange(pattern.cols) < cols
            position = (group * pattern.rows)[:, None, None] + np.arange(pattern.rows)[:, None]
        else:
            position = group
        inside &= position < rows
        row = np.minimum(position, rows - 1)
        if self._row_order is not None:
            row = self._row_order.astype(np.int64)[row]
        return np.broadcast_to(row, inside.shape), inside

    # ---- converting

    def astype(self, dtype: npt.DTypeLike) -> Matrix:
        """Convert the values, rounding to nearest even, and keep the pattern and the mask.

        Parameters
        ----------
        dtype : dtype
            float64, float32, float16 or bfloat16 (``"bfloat16"`` or ``ml_dtypes.bfloat16``). From
            int8, the values are multiplied by the scales of their rows.

        Raises
        ------
        TypeError
            For any other dtype.
        """
        target = _as_dtype(dtype)
        if target == np.int8 and self.dtype != np.int8:
            raise TypeError('int8 needs scales, which astype does not choose; use quantize("int8")')
        if target == self.dtype:
            return self
        if self._scales is not None:
            rows, there = self._places()
            scaled = self._values.astype(np.float64) * self._scales[rows]
            return self._with_values(np.where(there, scaled, 0).astype(target))
        return self._with_values(self._values.astype(target))

    def quantize(self, dtype: npt.DTypeLike = "int8") -> Matrix:
        """Round the values to int8, with one scale for each row: symmetric, no zero point.

        The scale of a row is its largest absolute value / 127, in float32, so that no value moves by
        more than half a scale. Rows of zeros have scale 1.

        Parameters
        ----------
        dtype : dtype
            int8 is the only one.

        Raises
        ------
        TypeError
            For another dtype.
        ValueError
            If a value is NaN or infinite.
        """
        if _as_dtype(dtype) != np.int8:
            raise TypeError(f"quantize makes int8 only, got {dtype}; use astype for float types")
        if self.dtype == np.int8:
            return self
        values = self._values.astype(np.float64)
        rows, _ = self._places()
        finite = np.isfinite(values)
        if not finite.all():
            at = np.unravel_index(int(np.argmin(finite)), values.shape)
            raise ValueError(
                f"values must be finite to be quantized, got {values[at]} in row {rows[at]}, "
                f"column {self.columns()[at]}"
            )
        largest = np.zeros(self._shape[0])
        np.maximum.at(largest, rows, np.abs(values))
        with np.errstate(over="ignore"):
            scales = _as_scales(largest / 127, self._shape[0], np.dtype(np.int8))
        scales[scales == 0] = 1
        steps = np.clip(np.rint(values / scales.astype(np.float64)[rows]), -127, 127)
        return self._with_values(steps.astype(np.int8), scales)

    def scale_rows(self, factors: npt.ArrayLike) -> Matrix:
        """Multiply each row by a factor: in float64 for a float64 matrix, else in float32.

        Parameters
        ----------
        factors : array_like
            [M].

        Raises
        ------
        ValueError
            If there is not one for each row.
        """
        each = np.asarray(factors, np.float64)
        if each.shape != (self._shape[0],):
            raise ValueError(
                f"factors must have shape ({self._shape[0]},), one for each row, got {each.shape}"
            )
        wide = self.astype(np.float64 if self.dtype == np.float64 else np.float32)
        rows, there = self._places()
        scaled = wide._values * each[rows]
        return wide._with_values(np.where(there, scaled, 0).astype(wide.dtype))

    def _with_values(
        self: AnyMatrix, values: Array, scales: npt.NDArray[np.float32] | None = None
    ) -> AnyMatrix:
        """The same matrix but for its values and scales; places outside of it must hold 0."""
        arrays = {**self.arrays(), "values": _aligned(values)}
        arrays.pop("scales", None)
        if scales is not None:
            arrays["scales"] = _aligned(scales)
        return self._make(self._pattern, self._shape, arrays, self._kernel_shape)

    # ---- multiplying

    __array_ufunc__ = None  # NumPy leaves `x @ matrix` to __rmatmul__

    def __rmatmul__(self, x: object) -> Array:
        raise TypeError(
            "x @ matrix is not there; write matrix @ x for W x, or matrix.linear(x) for x W^T"
        )

    def __matmul__(self, x: npt.ArrayLike) -> Array:
        return plans.multiply(self, x)

    def linear(
        self,
        x: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        activation: Activation = None,
        residual: npt.ArrayLike | None = None,
        out: Array | None = None,
    ) -> Array:
        """Compute ``activation(x @ W.T + bias + residual)``; see `gspattern.plans.linear`.

        Parameters
        ----------
        x : array_like
            [..., K].
        bias : array_like, optional
            [M].
        activation : str or tuple, optional
            Its name, such as "relu", or ("clamp", low, high).
        residual, out : ndarray, optional
            [..., M].

        Returns
        -------
        ndarray
            [..., M].
        """
        return plans.linear(self, x, bias=bias, activation=activation, residual=residual, out=out)

    def plan(self, n: int = 1) -> Plan:
        """Give the plan by which this CPU multiplies the matrix with `n` columns."""
        return plans.plan_for(self, n)

    # ---- showing, copying, pickling

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._summary()}>"

    def _summary(self) -> str:
        rows, cols = self._shape
        text = f"{rows}x{cols} {self._pattern} {self.dtype}: {self.nnz:,} nonzeros"
        dense = rows * cols * self.dtype.itemsize
        if dense == 0:
            return text
        return (
            f"{text}, {self.sparsity:.1%} sparse, {_bytes(self.nbytes)} = "
            f"{self.nbytes / dense:.1%} of dense"
        ).replace("%", " %")

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{array.dtype} {list(array.shape)}</td>"
            f"<td>{array.nbytes:,} B</td></tr>"
            for name, array in self.arrays().items()
        )
        return f"<table><caption>{type(self).__name__} {self._summary()}</caption>{rows}</table>"

    def __copy__(self: AnyMatrix) -> AnyMatrix:
        return self._make(self._pattern, self._shape, self.arrays(), self._kernel_shape)

    def __deepcopy__(self: AnyMatrix, _: dict[int, Any]) -> AnyMatrix:
        return self.__copy__()  # what cannot change may be shared

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._pattern, self._shape, self.arrays(), self._kernel_shape)


class GSMatrix(Matrix):
    """A matrix with a `GS` or `BankBalanced` pattern, stored as bundles.

    `values` and `indices` are [bundles, banks], `indptr` counts bundles. Slot s of a bundle belongs to
    row s // per_row of its group, and the slots of a row ascend by bank. An index is the column; where
    per_row is banks it is the place among the columns of bank s, which mostly fits one byte. The slots
    that a short last group lacks are 0.
    """

    __slots__ = ()

    @property
    def nnz(self) -> int:
        assert isinstance(self._pattern, Banked)
        rows = self._shape[0] % self._pattern.group_rows
        if rows == 0:
            return self._values.size
        missing = self._pattern.banks - rows * self._pattern.per_row
        return self._values.size - int(self._indptr[-1] - self._indptr[-2]) * missing

    @property
    def bundles(self) -> npt.NDArray[np.uint32]:
        """Bundles of every group: uint32 [groups]."""
        return np.diff(self._indptr)


class BlockMatrix(Matrix):
    """A matrix with a `Block` pattern.

    `values` is [blocks, rows, cols] (0 outside the matrix), `indices` [blocks] numbers the block's
    columns from the left, `indptr` counts blocks.
    """

    __slots__ = ()

    @property
    def nnz(self) -> int:
        assert isinstance(self._pattern, Block)
        height, width = self._pattern.rows, self._pattern.cols
        groups = np.repeat(np.arange(len(self._indptr) - 1), np.diff(self._indptr))
        rows = np.minimum(height, self._shape[0] - groups * height)
        cols = np.minimum(width, self._shape[1] - self._indices.astype(np.int64) * width)
        return int((rows * cols).sum())


class CSRMatrix(Matrix):
    """A matrix with the `Irregular` or an `NM` pattern.

    `values` is [nonzeros], row by row. Irregular: `indices` [nonzeros] are the columns, ascending. N:M:
    every window of m columns has the same number of values, and `indices` (uint8) packs their positions
    in the window at 2, 4 or 8 bits each. `indptr` [M + 1] counts values.
    """

    __slots__ = ()


def _unpickle(
    pattern: Pattern,
    shape: tuple[int, int],
    arrays: dict[str, Array],
    kernel_shape: tuple[int, ...] | None,
) -> Matrix:
    return Matrix.from_arrays(pattern, shape, **arrays, kernel_shape=kernel_shape)


# ------------------------------------------------------------------- encoding


def encode(
    weights: npt.ArrayLike,
    pattern: str | Pattern,
    mask: npt.ArrayLike | None = None,
    row_order: npt.ArrayLike | None = None,
    *,
    scales: npt.ArrayLike | None = None,
) -> Matrix:
    """Store weights compactly.

    Every group of rows is split into bundles by an edge colouring of its rows and banks (Koenig), which
    any valid mask has. The result depends on the arguments alone: same input, same arrays.

    Parameters
    ----------
    weights : array_like
        [M, K], or a convolution's [Co, Ci, ...]; float64, float32, float16, bfloat16 or int8. Values are
        kept bit for bit where the mask is true, and dropped elsewhere.
    pattern : str or Pattern
        Resolved for the shape, so "gs(cpu)" is fine.
    mask : array_like of bool, optional
        The shape of `weights`, or of their matrix [M, K]; true is kept, zeros included. Without one, the
        elements that are not 0 are kept (-0.0 is 0), and as few more as make a valid mask.
    row_order : array_like of int, optional
        [M], for patterns with scatter: the row at every grouped position, as `choose_mask` gives it.
        Without one: rows by falling number of elements if there is no mask or if per_row is banks, else
        their natural order.
    scales : array_like of float, optional
        [M], for int8 only and needed there: what the values of a row are multiplied by.

    Returns
    -------
    GSMatrix, BlockMatrix or CSRMatrix

    Raises
    ------
    PatternError
        If the pattern does not fit the shape, or the mask is not valid for it; the message says where.
    TypeError
        For another dtype.
    ValueError
        If shapes do not agree.
    """
    if isinstance(weights, Matrix):
        raise TypeError(
            f"weights are a {type(weights).__name__} already; encode its to_dense(), or convert it by "
            "astype or quantize"
        )
    array = _as_array(weights, "weights")
    number, carrier = _number_of(array.dtype)
    kernel_shape = None if array.ndim == 2 else array.shape
    array = as_matrix(array)
    kept = None if mask is None else _as_mask(mask, kernel_shape, array.shape)
    shape = (array.shape[0], array.shape[1])
    pattern = parse_pattern(pattern).resolve(shape)
    kind = _class_of(pattern)
    native = array.dtype.newbyteorder("=")
    array = np.require(array, native, ["C_CONTIGUOUS", "ALIGNED"])

    arrays: dict[str, Array] = {}
    order = None
    if row_order is not None:
        if not pattern.scatter:
            hint = f"; did you mean {pattern}+scatter?" if isinstance(pattern, GS) else ""
            raise PatternError(f"{pattern} takes no row_order{hint}")
        order = _as_row_order(row_order, shape[0])
    chosen = array != 0 if kept is None else kept
    if pattern.scatter and order is None:
        order = np.arange(shape[0], dtype=np.uint32)
        if kept is None or (isinstance(pattern, Banked) and pattern.per_row == pattern.banks):
            order = _by_count(chosen)
    chosen = np.require(chosen, np.bool_, ["C_CONTIGUOUS", "ALIGNED"])
    if kept is None:
        chosen = _complete(chosen, pattern, order)
    if order is not None:
        arrays["row_order"] = _aligned(order)
    if scales is not None or native == np.int8:
        arrays["scales"] = _as_scales(scales, shape[0], native)
    try:
        packed = _core.encode(array.view(carrier), chosen, pattern.core(), order, number)
    except PatternError:
        if check(chosen, pattern, order):
            raise
        raise _mask_error(chosen, pattern, order, row_order is not None) from None
    arrays["values"] = packed[0].view(native)
    arrays["indices"], arrays["indptr"] = packed[1:]
    if isinstance(pattern, BankBalanced) and _uneven_row(arrays["indptr"]):
        raise _mask_error(chosen, pattern, order, row_order is not None)
    return kind._make(pattern, shape, arrays, kernel_shape)


def as_matrix(weights: npt.ArrayLike) -> Array:
    """Show weights as a matrix of outputs x inputs.

    Parameters
    ----------
    weights : array_like
        [M, K], or a convolution's [Co, Ci, length] or [Co, Ci, height, width].

    Returns
    -------
    ndarray
        [M, K] as it is; [Co, length * Ci] or [Co, height * width * Ci] with Ci fastest.

    Raises
    ------
    ValueError
        For another number of dimensions.
    """
    array = np.asarray(weights)
    if array.ndim == 2:
        return array
    if array.ndim not in (3, 4):
        raise ValueError(
            f"weights must have 2 dimensions, or 3 or 4 for a convolution, got shape {array.shape}"
        )
    moved = np.moveaxis(array, 1, -1)
    return moved.reshape(array.shape[0], math.prod(array.shape[1:]))


def from_matrix(matrix: npt.ArrayLike, shape: Sequence[int]) -> Array:
    """Undo `as_matrix`.

    Parameters
    ----------
    matrix : array_like
        [M, K].
    shape : sequence of int
        The shape of the weights: (M, K), or a convolution's (Co, Ci, ...).

    Raises
    ------
    ValueError
        If the sizes do not agree.
    """
    array = np.asarray(matrix)
    shape = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(shape) not in (2, 3, 4) or not all(isinstance(n, int | np.integer) for n in shape):
        raise ValueError(f"shape must have 2, 3 or 4 whole numbers, got {shape}")
    if array.shape != (shape[0], math.prod(shape[1:])):
        raise ValueError(
            f"weights of shape {shape} are a matrix of {(shape[0], math.prod(shape[1:]))}, got "
            f"{array.shape}"
        )
    if len(shape) == 2:
        return array
    return np.moveaxis(array.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


# ------------------------------------------------------------------- sizes


@dataclass(frozen=True)
class SizeTable:
    """Bytes of one matrix in several forms, as `sizes` gives them; ``table["csr"]`` is a number.

    Attributes
    ----------
    shape : (int, int)
        Rows M and columns K.
    dtype : str
        Of the values.
    bytes : dict of str to int
        By the name of the form, "dense" first.
    nonzeros : dict of str to int
        How many elements each form keeps.
    """

    shape: tuple[int, int]
    dtype: str
    bytes: dict[str, int]
    nonzeros: dict[str, int]

    def __getitem__(self, form: str) -> int:
        return self.bytes[form]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        dense = self.bytes["dense"]
        return [
            (
                form,
                f"{self.nonzeros[form]:,}",
                f"{size:,}",
                f"{100 * size / dense:.1f} %" if dense else "-",
            )
            for form, size in self.bytes.items()
        ]

    def __str__(self) -> str:
        head = (f"{self.shape[0]}x{self.shape[1]} {self.dtype}", "nonzeros", "bytes", "of dense")
        rows = [head, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            row[0].ljust(widths[0])
            + "".join("  " + cell.rjust(widths[i + 1]) for i, cell in enumerate(row[1:]))
            for row in rows
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = f"{self.shape[0]}x{self.shape[1]} {self.dtype}", "nonzeros", "bytes", "of dense"
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{body}</table>"


def sizes(
    weights: Matrix | npt.ArrayLike,
    patterns: Sequence[str | Pattern] = ("block(1,16)", "block(16,1)", "gs(16,16)", "gs(16,1)"),
) -> SizeTable:
    """Compare the true bytes of forms that keep as much of a matrix.

    "dense" is all elements; "csr" are the nonzeros as `irregular`, with 2-byte columns where they fit;
    "scipy csr" has the 4-byte columns of SciPy. A `Matrix` also stands there as it is. For every pattern,
    the largest |w| are chosen at the sparsity of the nonzeros, and encoded.

    Parameters
    ----------
    weights : Matrix or array_like
        [M, K], a float type; elements that are 0 count as pruned. Of a Matrix, what it keeps counts.
    patterns : sequence of str or Pattern
        Those that cannot give the sparsity are left out.

    Returns
    -------
    SizeTable
        Which prints as a table.
    """
    if isinstance(weights, Matrix):
        dense, mask = weights.to_dense(), weights.mask()
    else:
        dense = as_matrix(np.asarray(weights))
        mask = dense != 0
    scales = np.ones(dense.shape[0], np.float32) if dense.dtype == np.int8 else None
    irregular = encode(dense, Irregular(), mask=mask, scales=scales)
    # The matrices compared differ in their structure, not in what belongs to the rows.
    per_row = 0 if scales is None else scales.nbytes
    size = {"dense": dense.nbytes + per_row}
    nonzeros = {"dense": dense.size}
    size["scipy csr"] = irregular.nnz * (dense.itemsize + 4) + 4 * (dense.shape[0] + 1) + per_row
    size["csr"] = irregular.nbytes
    nonzeros["scipy csr"] = nonzeros["csr"] = irregular.nnz
    if isinstance(weights, Matrix) and weights.pattern != irregular.pattern:
        size[str(weights.pattern)] = weights.nbytes
        nonzeros[str(weights.pattern)] = weights.nnz
    scores = np.abs(dense.astype(np.float32))
    for form in patterns:
        try:
            pattern = parse_pattern(form).resolve((dense.shape[0], dense.shape[1]))
            if str(pattern) in size:
                continue
            share = None if isinstance(pattern, NM) else irregular.sparsity
            chosen = choose_mask(scores, pattern, sparsity=share)
        except PatternError:
            continue
        matrix = encode(dense, pattern, chosen.mask, chosen.row_order, scales=scales)
        size[str(pattern)] = matrix.nbytes
        nonzeros[str(pattern)] = matrix.nnz
    return SizeTable((dense.shape[0], dense.shape[1]), str(dense.dtype), size, nonzeros)


# ------------------------------------------------------------------- checking


def _error(rule: str, message: str) -> FormatError:
    """A FormatError of the rule of docs/FORMAT.md that this name has."""
    error = FormatError(message)
    error.rule = rule
    return error


def _fault_error(
    matrix: Matrix, rule: str, text: str, name: str | None, element: int, value: int, bound: int
) -> FormatError:
    """Say where and how a rule is broken, from what the C core found."""
    if name is None:
        return _error(rule, text)
    if rule == "shape":
        return _error(rule, f"{name} has {value:,} bytes, but the shape and pattern need {bound:,}")
    if rule == "dtype":
        return _error(rule, f"{name} has elements of {value} bytes, but must have {bound}")
    array = matrix.arrays()[name]
    packed = name == "indices" and isinstance(matrix.pattern, NM)
    place = [element] if packed else [int(i) for i in np.unravel_index(element, array.shape)]
    if rule in ("scales", "padding") and not packed:
        value = array[tuple(place)]
    detail = {
        "index": f"; it must be less than {bound}",
        "banks": f"; another slot of the bundle is in bank {bound} already",
        "indptr": f" where {bound} would be right" if bound != value else "",
    }.get(rule, "")
    return _error(rule, f"{name}{place} is {value}{detail}: {text}")


def _class_of(pattern: Pattern) -> type[Matrix]:
    if isinstance(pattern, Banked):
        return GSMatrix
    return BlockMatrix if isinstance(pattern, Block) else CSRMatrix


def _shape(shape: Sequence[int]) -> tuple[int, int]:
    sizes = tuple(shape)
    if len(sizes) != 2 or any(
        not isinstance(n, int | np.integer) or not 0 <= n < 2**32 - 1 for n in sizes
    ):
        raise _error("shape", f"shape must be (rows, columns), both below 2^32 - 1, got {shape}")
    return int(sizes[0]), int(sizes[1])


def _kernel_shape(kernel: Sequence[int] | None, shape: tuple[int, int]) -> tuple[int, ...] | None:
    if kernel is None:
        return None
    sizes = tuple(int(n) for n in kernel)
    if (
        len(sizes) not in (3, 4)
        or min(sizes) < 0
        or sizes[0] != shape[0]
        or math.prod(sizes[1:]) != shape[1]
    ):
        raise _error("shape", f"kernel_shape {sizes} does not give a matrix of shape {shape}")
    return sizes


def _check_arrays(pattern: Pattern, shape: tuple[int, int], arrays: Mapping[str, Array]) -> None:
    """Check dtypes and dimensions; the lengths are checked in C."""
    values = arrays["values"]
    if all(values.dtype.newbyteorder("=") != dtype for dtype, _ in DTYPES):
        raise _error("dtype", f"values must have a dtype of {_names(DTYPES)}, got {values.dtype}")
    per_unit: tuple[int, ...] = ()
    if isinstance(pattern, Banked):
        per_unit = (pattern.banks,)
    elif isinstance(pattern, Block):
        per_unit = (pattern.rows, pattern.cols)
    units = values.shape[0] if values.ndim else 0
    expected: dict[str, tuple[int, ...]] = {
        "values": (units, *per_unit),
        "indices": (units, *per_unit) if isinstance(pattern, Banked) else (units,),
        "indptr": (pattern.groups(shape[0]) + 1,),
        "row_order": (shape[0],),
        "scales": (shape[0],),
    }
    kinds = {
        "indices": ("u1", "u2", "u4"),
        "indptr": ("u4",),
        "row_order": ("u4",),
        "scales": ("f4",),
    }
    if isinstance(pattern, NM):
        bits = 2 if pattern.m <= 4 else 4 if pattern.m <= 16 else 8
        expected["indices"] = (-(-units * bits // 8),)
        kinds["indices"] = ("u1",)
    for name, array in arrays.items():
        native = array.dtype.newbyteorder("=")
        if name in kinds and all(native != np.dtype(kind) for kind in kinds[name]):
            names = " or ".join(np.dtype(kind).name for kind in kinds[name])
            raise _error("dtype", f"{name} must have dtype {names}, got {array.dtype}")
        if array.shape != expected[name]:
            raise _error(
                "shape",
                f"{name} must have shape {list(expected[name])} for {shape[0]}x{shape[1]} "
                f"{pattern}, got {list(array.shape)}",
            )


def _names(dtypes: Sequence[tuple[np.dtype[Any], np.dtype[Any]]]) -> str:
    names: list[str] = [dtype.name for dtype, _ in dtypes]
    return ", ".join(names[:-1]) + " and " + names[-1]


def _number_of(dtype: np.dtype[Any]) -> tuple[int, np.dtype[Any]]:
    """The number of a dtype in C, and the dtype that carries it there."""
    for number, (known, carrier) in enumerate(DTYPES):
        if dtype.newbyteorder("=") == known:
            return number, carrier
    hint = "; convert them first, say by .astype(numpy.float32)"
    raise TypeError(f"weights must have a dtype of {_names(DTYPES)}, got {dtype}{hint}")


def _as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        wanted = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:
        wanted = None
    if wanted is None or all(wanted != known for known, _ in DTYPES):
        raise TypeError(f"dtype must be one of {_names(DTYPES)}, got {dtype!r}")
    return wanted


def _as_mask(
    mask: npt.ArrayLike, kernel: tuple[int, ...] | None, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """The mask of weights of a shape, or of a convolution's of shape `kernel`, as a matrix."""
    array = _as_array(mask, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be of bool, got {array.dtype}; did you mean mask != 0?")
    if array.shape != shape and array.shape != kernel:
        raise ValueError(
            f"mask must have the shape of the weights {kernel or shape}, got {array.shape}"
        )
    return as_matrix(array)


def _by_count(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """The rows by falling number of elements, equal ones in their order."""
    return np.argsort(-np.count_nonzero(mask, axis=1), kind="stable").astype(np.uint32)


def _as_scales(
    scales: npt.ArrayLike | None, rows: int, dtype: np.dtype[Any]
) -> npt.NDArray[np.float32]:
    if dtype != np.int8:
        raise TypeError(f"scales belong to int8 weights, got {dtype}; leave them out")
    if scales is None:
        raise TypeError("int8 weights need scales, a float32 array with one factor for each row")
    array = np.asarray(scales)
    if array.shape != (rows,):
        raise ValueError(f"scales must have shape ({rows},), got {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"scales must be finite in float32, got {array[row]} for row {row}")
    return np.asarray(_aligned(array))


def _complete(
    mask: npt.NDArray[np.bool_], pattern: Pattern, order: npt.NDArray[np.uint32] | None
) -> npt.NDArray[np.bool_]:
    """Add the fewest elements that make a mask valid."""
    if isinstance(pattern, BankBalanced):
        return _complete_balanced(mask, pattern)
    mask = mask.copy()
    try:
        _core.complete_mask(mask, pattern.core(), order)
    except PatternError as error:
        raise PatternError(f"{pattern}: {error}; prune with gspattern.choose_mask first") from None
    return mask


def _complete_balanced(mask: npt.NDArray[np.bool_], pattern: BankBalanced) -> npt.NDArray[np.bool_]:
    """Fill every bank of every row up to the fullest of all, by the leftmost free columns."""
    mask = mask.copy()
    starts, widths = pattern.bank_starts(mask.shape[1]), pattern.bank_widths(mask.shape[1])
    banks = [mask[:, s : s + w] for s, w in zip(starts, widths, strict=True)]
    most = max(int(bank.sum(axis=1).max(initial=0)) for bank in banks)
    if most > widths.min():
        raise PatternError(
            f"some bank of some row holds {most} nonzeros, and {pattern} keeps as many in every bank; "
            f"its narrowest bank has {widths.min()} columns; prune with gspattern.choose_mask first"
        )
    for bank in banks:
        missing = most - bank.sum(axis=1, keepdims=True)
        bank |= ~bank & (np.cumsum(~bank, axis=1) <= missing)
    return mask


def _uneven_row(indptr: Array) -> int:
    """The first row with more or fewer bundles than row 0, or 0."""
    bundles = np.diff(indptr)
    return int(np.argmax(bundles != bundles[0])) if bundles.size else 0


def _mask_error(
    mask: npt.NDArray[np.bool_],
    pattern: Pattern,
    order: npt.NDArray[np.uint32] | None,
    order_given: bool,
) -> PatternError:
    """Say where a mask breaks its pattern first."""
    first = check(mask, pattern, order).violations[0]
    where = f"group {first.group}"
    if first.row is not None:
        where += f", row {first.row}"
    if first.bank is not None:
        where += f", bank {first.bank}"
    hint = "gspattern.check lists all such places, gspattern.choose_mask makes valid masks"
    if pattern.scatter and not order_given:
        hint = "give the row_order that the mask was chosen with"
    return PatternError(
        f"the mask is not valid for {pattern}: {where} holds {first.count} where {first.expected} "
        f"would be right; {hint}"
    )


# ------------------------------------------------------------------- helpers


def _bytes(count: int) -> str:
    """A number of bytes with three digits: 526 KB, 4.19 MB."""
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 999.5:
            return f"{count} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _aligned(array: Array) -> Array:
    """A copy in C order and native byte order that begins at a multiple of 64 bytes."""
    native = array.dtype.newbyteorder("=")
    if native == DTYPES[3][0]:  # C sees bfloat16 as an unknown type
        return np.asarray(
            _core.aligned_copy(np.asarray(array, native).view(np.uint16)).view(native)
        )
    return np.asarray(_core.aligned_copy(array))


def _freeze(array: Array) -> Array:
    """Make an array of `aligned_copy` or of the C core read-only, and the memory under it as well."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base.flags.writeable = False
        base = base.base
    return array
