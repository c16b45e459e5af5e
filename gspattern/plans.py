"""Plans and products: a compact matrix laid out for this CPU, and y = W x with it.

A plan is made when a matrix is first multiplied, and kept with the matrix. Which kernels there are depends on the
CPU: `backends` lists them, `use_backend` and the environment variable GSPATTERN_BACKEND choose one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gspattern import _core
from gspattern._core import Plan
from gspattern.masks import _as_array

if TYPE_CHECKING:
    from gspattern.matrices import Matrix

__all__ = [
    "ACTIVATIONS",
    "CpuInfo",
    "Plan",
    "backend",
    "backends",
    "cpu_info",
    "get_num_threads",
    "linear",
    "multiply",
    "plan_for",
    "set_num_threads",
    "use_backend",
]

Array = npt.NDArray[Any]

# Columns of x from which every matrix has a plan for many: see GSPI_MANY_COLUMNS.
_MANY_COLUMNS = 16

# In the order of gsp_activation.
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "gelu", "silu")
_CLAMP = len(ACTIVATIONS)
Activation = str | tuple[str, float, float] | None
_ACTIVATION_NUMBERS = {name: i for i, name in enumerate(ACTIVATIONS)}

# None: the choice of the environment, or the best there is.
_chosen: ContextVar[str | None] = ContextVar("gspattern_backend", default=None)


# ------------------------------------------------------------------ settings


def backends() -> tuple[str, ...]:
    """Names of the instruction sets that this CPU and this build can run, best first; "scalar" is the last.

    `CpuInfo.missing` says why another is not among them.
    """
    return _core.backends()


def _check_backend(name: str, what: str) -> str:
    if name not in backends():
        why = _core.missing_backends().get(name)
        raise ValueError(
            f"{what} must be one of {', '.join(backends())} on this CPU, got {name!r}"
            + (f": {why}" if why else "")
        )
    return name


@functools.cache
def _default_backend() -> str:
    name = os.environ.get("GSPATTERN_BACKEND")
    return backends()[0] if not name else _check_backend(name, "GSPATTERN_BACKEND")


def backend() -> str:
    """Name of the backend that plans are made for here: by `use_backend`, GSPATTERN_BACKEND, or the best.

    Raises
    ------
    ValueError
        If GSPATTERN_BACKEND names none that this CPU runs.
    """
    return _chosen.get() or _default_backend()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use this backend inside a ``with`` block, in this thread only.

    A backend falls back on the kernels of lesser ones where it has none of its own: `Plan.backend` tells.

    Raises
    ------
    ValueError
        If this CPU does not run it.
    """
    token = _chosen.set(_check_backend(name, "backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


_threads_known = False


def _read_threads() -> None:
    """Take GSPATTERN_NUM_THREADS over, unless that or a setting by hand came before."""
    global _threads_known
    text = os.environ.get("GSPATTERN_NUM_THREADS")
    if text and not _threads_known:
        try:
            _core.set_num_threads(int(text))
        except (ValueError, OverflowError):
            raise ValueError(
                f"GSPATTERN_NUM_THREADS must be a number from 1 to 256, got {text!r}"
            ) from None
    _threads_known = True


# Choosing and encoding use threads too. What is no number is an error where the first plan is made.
with contextlib.suppress(ValueError):
    _read_threads()


def get_num_threads() -> int:
    """Threads that one call may use: 1, GSPATTERN_NUM_THREADS, or what `set_num_threads` said."""
    _read_threads()
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Let every call use up to so many threads, in this process. Results do not depend on it.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is not from 1 to 256.
    """
    global _threads_known
    _core.set_num_threads(_whole("threads", threads))
    _threads_known = True


def _whole(name: str, number: object) -> int:
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {number!r} ({type(number).__name__})"
        ) from None


@dataclass(frozen=True)
class CpuInfo:
    """What is known of this CPU.

    Attributes
    ----------
    name : str
        As the operating system gives it.
    features : tuple of str
        Those of its instruction sets that matter here.
    cores : int
        That this process may use.
    caches : dict of str to int
        Bytes of "L1d", "L2", "L3", as far as known.
    backends : tuple of str
        Names that `use_backend` takes, best first.
    missing : dict of str to str
        Why it does not take each of the others.
    """

    name: str
    features: tuple[str, ...]
    cores: int
    caches: dict[str, int]
    backends: tuple[str, ...]
    missing: dict[str, str]


_FEATURES = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vbmi", "avx512vbmi", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve",
)  # fmt: skip


def cpu_info() -> CpuInfo:
    """Describe this CPU; what the operating system does not tell is left out."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text("utf-8").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 2**10, "M": 2**20}.get(size[-1], 1)
            caches[f"L{level}" + ("d" if kind == "Data" else "")] = int(size.rstrip("KM")) * unit
    affinity = getattr(os, "sched_getaffinity", None)
    return CpuInfo(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        features=tuple(name for name in _FEATURES if name in flags),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        caches=caches,
        backends=backends(),
        missing=_core.missing_backends(),
    )


# --------------------------------------------------------------------- plans


_FLOAT64, _FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)
_BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_INT8 = np.dtype(np.int8)
_NARROW_NUMBERS = {_BFLOAT16: 3, _INT8: 4}  # of gsp_dtype


def _usual_operand(matrix: Matrix) -> np.dtype[Any]:
    """What x is multiplied in if nobody says another: it is rounded for int8."""
    return _INT8 if matrix.dtype == _INT8 else _dtype_of(matrix)


def plan_for(matrix: Matrix, n: int = 1, x: npt.DTypeLike | None = None) -> Plan:
    """Give the plan for products with `n` columns of x; it is made once and kept with the matrix.

    Parameters
    ----------
    matrix : Matrix
    n : int
        Columns of x (``m @ x``), or samples (`linear`). Up to `Plan.most` have the plan for one; it serves any number
        of samples, if more slowly.
    x : dtype, optional
        That in which x is multiplied: int8 (each sample rounded to 8 bits) for an int8 matrix, if not given;
        bfloat16 for a bfloat16 matrix and bfloat16 x; float64 for a float64 matrix; else float32.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError
        If n is no integer, or the matrix is not multiplied in that dtype.
    ValueError
        If n is negative, or GSPATTERN_BACKEND or GSPATTERN_NUM_THREADS hold nonsense.
    """
    n = _whole("n", n)
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    usual = _usual_operand(matrix)
    dtype = usual if x is None else np.dtype(x)
    if dtype not in (usual, _dtype_of(matrix)) and not dtype == matrix.dtype == _BFLOAT16:
        raise TypeError(f"a matrix of {matrix.dtype} is not multiplied with x in {dtype}")
    if 1 < n and (n < _MANY_COLUMNS or dtype in _NARROW_NUMBERS):
        few = plan_for(matrix, 1, dtype)
        if n <= few.most and (few.strided or dtype in _NARROW_NUMBERS):
            return few
        n = max(n, _MANY_COLUMNS)
    # Plans for columns are made for tiles of 16, 32, 48 or 64 of them, and serve any number.
    key: Any = _chosen.get() if n == 1 else (_chosen.get(), max(1, min(-(-n // 16), 4)))
    if dtype != usual:
        key = (key, dtype)
    plan: Plan | None = matrix._plans.get(key)
    if plan is None:
        _read_threads()
        number = _NARROW_NUMBERS.get(dtype, -1)
        plan = _core.plan(matrix.core(), backend(), min(n, 2**31), number, dtype.num)
        matrix._plans[key] = plan
    return plan


def plan_for_samples(matrix: Matrix, samples: int, x: npt.DTypeLike | None = None) -> Plan:
    """Give the plan for so many samples that lie one after the other, as `linear` takes them.

    Scalar kernels go through such samples one by one.
    """
    if matrix.dtype == _FLOAT64 or backend() == "scalar":
        return plan_for(matrix, 1, x)
    if samples < _MANY_COLUMNS:
        few = plan_for(matrix, 1, x)
        if samples <= few.most:
            return few
    return plan_for(matrix, max(samples, _MANY_COLUMNS), x)


def _operand(x: npt.ArrayLike, dtype: np.dtype[Any], name: str) -> Array:
    """x as an array of this dtype, aligned and in native byte order, in any memory layout."""
    array = _as_array(x, name)
    if array.dtype != dtype:
        if array.dtype.newbyteorder("=") == dtype:
            return array.astype(dtype)
        hint = (
            f"{name}.astype(numpy.{dtype})"
            if isinstance(x, np.ndarray)
            else f"numpy.asarray({name}, numpy.{dtype})"
        )
        raise TypeError(
            f"{name} must have dtype {dtype} for this matrix, got {array.dtype}; use {hint}"
        )
    return array if array.flags.aligned else array.copy()


def _dtype_of(matrix: Matrix, x: object = None) -> np.dtype[Any]:
    """That of x and y."""
    if matrix.dtype == _BFLOAT16 and getattr(x, "dtype", None) == _BFLOAT16:
        return _BFLOAT16
    return _FLOAT64 if matrix.dtype == _FLOAT64 else _FLOAT32


def _bits(array: Array | None, dtype: np.dtype[Any]) -> Any:
    """What convolutions of the core take: uint16 for bfloat16, which NumPy does not have."""
    return array.view(np.uint16) if array is not None and dtype == _BFLOAT16 else array


def _plan_at_hand(matrix: Matrix) -> Plan | None:
    """The plan that most calls want, if it is there: for one sample, and for bfloat16 if there is none for floats."""
    chosen = _chosen.get()
    plan: Plan | None = matrix._plans.get(chosen) or matrix._plans.get((chosen, _BFLOAT16))
    return plan


def multiply(matrix: Matrix, x: npt.ArrayLike) -> Array:
    """Compute y = W x; this is ``matrix @ x``.

    Parameters
    ----------
    matrix : Matrix
        [M, K].
    x : array_like
        [K] or [K, N]; float64 for a float64 matrix, float32 or bfloat16 (that of ml_dtypes) for a bfloat16
        one, float32 for all others. An x that is neither C- nor Fortran-contiguous is copied once.

    Returns
    -------
    ndarray
        [M] or [M, N] in x's dtype and, if x is Fortran-contiguous, in that order too.

    Raises
    ------
    TypeError
        If x has another dtype: nothing is converted silently.
    ValueError
        If x has another shape.

    Notes
    -----
    Kernels pad rows with zeros, and 0 times an infinite or NaN entry of x is NaN: rows that do not use the
    entry may get one in its column, as they do in a dense product. The scalar backend never pads.

    Sums are float32 (float64), whatever the type of the values; y in bfloat16 is rounded once, at the end.

    An int8 matrix rounds x too, each column to 8 bits of its own range (scale and zero point, as dynamic
    quantization does elsewhere), and adds whole numbers exactly. ``matrix.astype("float32")`` multiplies the
    same weights with an unrounded x.
    """
    plan = _plan_at_hand(matrix)
    if plan is not None:
        done = plan.try_multiply(x)  # the way of most calls, kept short
        if done is not None:
            return done
    dtype = _dtype_of(matrix, x)
    array = _operand(x, dtype, "x")
    if array.ndim not in (1, 2) or array.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"x must have shape [{matrix.shape[1]}] or [{matrix.shape[1]}, N] for a matrix of shape "
            f"{list(matrix.shape)}, got {list(array.shape)}"
        )
    y: Array
    if dtype == _BFLOAT16 or matrix.dtype == _INT8:
        samples = 1 if array.ndim == 1 else array.shape[1]
        plan = plan_for(matrix, max(1, samples), dtype if dtype == _BFLOAT16 else None)
        if array.ndim == 1 or (array.flags.c_contiguous and plan.strided):
            y = plan.multiply(np.ascontiguousarray(array))
        else:
            y = plan.linear(np.ascontiguousarray(array.T), None, 0, None, None).T
        return y
    if array.ndim == 1:
        return plan_for(matrix).multiply(np.ascontiguousarray(array))
    if array.flags.f_contiguous:
        y = plan_for_samples(matrix, array.shape[1]).linear(array.T, None, 0, None, None).T
    else:
        y = plan_for(matrix, array.shape[1]).multiply(np.ascontiguousarray(array))
    return y


def _activation_number(activation: Activation) -> int | tuple[int, float, float]:
    """The activation as the core takes it."""
    match activation:
        case None:
            return 0
        case str() if activation in _ACTIVATION_NUMBERS:
            return _ACTIVATION_NUMBERS[activation]
        case (
            "clamp",
            int() | float() | np.number() as low,
            int() | float() | np.number() as high,
        ) if low <= high:
            return _CLAMP, float(low), float(high)
    raise ValueError(
        f"activation must be one of {', '.join(ACTIVATIONS)} or ('clamp', low, high), got {activation!r}"
    )


def linear(
    matrix: Matrix,
    x: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    activation: Activation = None,
    residual: npt.ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Compute ``activation(x @ W.T + bias + residual)``, as ``torch.nn.functional.linear`` lays it out.

    Parameters
    ----------
    matrix : Matrix
        [M, K].
    x : array_like
        [..., K]; float64 for a float64 matrix, float32 or bfloat16 (that of ml_dtypes) for a bfloat16 one,
        float32 for all others; bias, residual and out have the same. What is not C-contiguous is copied once.
    bias : array_like, optional
        [M].
    activation : str or tuple, optional
        "relu", "sigmoid", "tanh", "gelu" (by erf), "silu" or "none"; or ("clamp", low, high), low <= high.
    residual : array_like, optional
        [..., M], added before the activation.
    out : ndarray, optional
        [..., M], C-contiguous, sharing no memory with the others; it is written and returned.

    Returns
    -------
    ndarray
        [..., M].

    Raises
    ------
    TypeError
        If something has another dtype: nothing is converted silently.
    ValueError
        If a shape does not fit, the activation is unknown, or out cannot be written.

    Notes
    -----
    See `multiply` for what int8 and bfloat16 matrices round. An infinite or NaN entry of x may make NaN of outputs
    of its own sample that do not use it, and makes NaN of all of them in a product with an int8 matrix.
    """
    number = _activation_number(activation)
    plan = _plan_at_hand(matrix)
    if plan is not None:
        done = plan.try_linear(x, bias, number, residual, out)  # the way of most calls, kept short
        if done is not None:
            return done
    dtype = _dtype_of(matrix, x)
    array = _as_array(x, "x")
    if array.ndim == 0 or array.shape[-1] != matrix.shape[1]:
        raise ValueError(
            f"x must have shape [..., {matrix.shape[1]}] for a matrix of shape "
            f"{list(matrix.shape)}, got {list(array.shape)}"
        )
    array = np.ascontiguousarray(_operand(x, dtype, "x"))
    if bias is not None:
        bias = np.ascontiguousarray(_operand(bias, dtype, "bias"))
    if residual is not None:
        residual = np.ascontiguousarray(_operand(residual, dtype, "residual"))
    samples = math.prod(array.shape[:-1])
    half = dtype == _BFLOAT16
    plan = plan_for(matrix, max(1, samples), dtype) if half else plan_for_samples(matrix, samples)
    return plan.linear(array, bias, number, residual, out)
