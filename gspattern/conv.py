"""Convolutions by a compact matrix: `conv1d` and `conv2d`, as torch.nn.functional names their arguments.

Weights [Co, Ci, ...] are encoded as a matrix of Co rows and kernel size x Ci columns (`gspattern.as_matrix`). The input
is not unfolded in memory: a kernel takes what it needs of it, a tile at a time.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gspattern import _core, plans
from gspattern.plans import Activation

if TYPE_CHECKING:
    from gspattern.matrices import Matrix

__all__ = ["conv1d", "conv1d_lengths", "conv2d"]

Array = npt.NDArray[Any]
Sizes = tuple[int, ...]

# Larger numbers could overflow where places in images are computed: see GSPI_MOST_PIXELS.
_MOST = 2**30


def conv2d(
    input: npt.ArrayLike,
    weight: Matrix,
    bias: npt.ArrayLike | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    kernel_size: int | Sequence[int] | None = None,
    activation: Activation = None,
    residual: npt.ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Compute ``activation(conv2d(input, weight) + bias + residual)``.

    Parameters
    ----------
    input : array_like
        [N, Ci, H, W], or [Ci, H, W]; float64 for a float64 matrix, float32 or bfloat16 for a bfloat16 one, and float32
        for all others, as are bias, residual and out. Sums of bfloat16 are float32, and rounded once. Images may lie by
        channel (C order) or with adjacent channels (channels_last: [N, H, W, Ci] in C order, seen through
        ``transpose(0, 3, 1, 2)``); what is neither is copied once.
    weight : Matrix
        [Co, kernel height x kernel width x Ci], Ci fastest: weights [Co, Ci, height, width] as `encode` and
        `as_matrix` lay them out.
    bias : array_like, optional
        [Co].
    stride, dilation : int or two ints
        Pixels from one place of the kernel to the next, and from one of its taps to the next.
    padding : int, two ints, "valid" or "same"
        Zeros on every side. "valid" is none; "same" (stride 1 only) keeps the size.
    groups : int
        1. The matrix of each group of a grouped convolution is multiplied by a call of its own.
    kernel_size : int or two ints, optional
        Height and width of the kernel, if the matrix does not know them (`Matrix.kernel_shape`) and is not of a
        1 x 1 kernel.
    activation : str or tuple, optional
        As for `gspattern.linear`.
    residual : array_like, optional
        Of the shape of the result; added before the activation. Read as it is if it lies as the result does.
    out : ndarray, optional
        Of the shape of the result, by channel or channels_last; written and returned.

    Returns
    -------
    ndarray
        [N, Co, H', W'] (or without N, like the input), laid out as the input: in a chain of convolutions nothing is
        copied or converted.

    Raises
    ------
    TypeError
        If something has another dtype: nothing is converted silently.
    ValueError
        If a shape does not fit, the kernel size is not known, the kernel is larger than the padded input, groups is
        not 1, the activation is unknown, or out cannot be written.

    Notes
    -----
    An infinite or NaN pixel may make NaN of outputs at places that meet it whose weight for it is no element: see
    `gspattern.multiply`.
    """
    return _convolve(
        2, input, weight, bias, stride, padding, dilation, groups, kernel_size, activation, residual, out, None
    )  # fmt: skip


def conv1d(
    input: npt.ArrayLike,
    weight: Matrix,
    bias: npt.ArrayLike | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    kernel_size: int | Sequence[int] | None = None,
    activation: Activation = None,
    residual: npt.ArrayLike | None = None,
    out: Array | None = None,
    lengths: npt.ArrayLike | None = None,
) -> Array:
    """Compute ``activation(conv1d(input, weight) + bias + residual)``.

    Parameters
    ----------
    input : array_like
        [N, Ci, T], or [Ci, T]; else as for `conv2d`.
    weight : Matrix
        [Co, kernel size x Ci], Ci fastest.
    bias, stride, padding, dilation, groups, activation, residual, out
        As for `conv2d`.
    kernel_size : int, optional
        If the matrix does not know it, and it is not 1.
    lengths : array_like of int, optional
        [N], in 0 to T: of sequence i the input beyond ``lengths[i]`` counts as zero, whatever it holds, and the
        result beyond ``conv1d_lengths(lengths, ...)[i]`` is zero: a batch of padded sequences gives what each of them
        would give alone. No time is spent on what is beyond.

    Returns
    -------
    ndarray
        [N, Co, T'], or without N, like the input.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`; also if lengths are no whole numbers of the batch, or out of range.
    """
    return _convolve(
        1, input, weight, bias, stride, padding, dilation, groups, kernel_size, activation, residual, out, lengths
    )  # fmt: skip


def conv1d_lengths(
    lengths: npt.ArrayLike,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> npt.NDArray[np.int64]:
    """Give the lengths of the results of `conv1d` for sequences of such lengths.

    Parameters
    ----------
    lengths : array_like of int
    kernel_size, stride, padding, dilation : int
        Those of the convolution.

    Returns
    -------
    ndarray
        (lengths + 2 padding - dilation (kernel_size - 1) - 1) // stride + 1, at least 0.

    Raises
    ------
    TypeError, ValueError
        If lengths are no whole numbers, or the others no numbers that `conv1d` takes.
    """
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be whole numbers, got {array.dtype}")
    (kernel,), (step,), (tap,) = (
        _sizes(value, name, 1, 1)
        for value, name in (
            (kernel_size, "kernel_size"),
            (stride, "stride"),
            (dilation, "dilation"),
        )
    )
    (zeros,) = _sizes(padding, "padding", 1, 0)
    return _lengths_of_result(array.astype(np.int64), kernel, step, 2 * zeros, tap)


def _lengths_of_result(
    lengths: npt.NDArray[np.int64], kernel: int, stride: int, zeros: int, dilation: int
) -> npt.NDArray[np.int64]:
    results = (lengths + zeros - dilation * (kernel - 1) - 1) // stride + 1
    return np.where(results > 0, results, 0)


# --------------------------------------------------------------- arguments


def _sizes(value: int | Sequence[int], name: str, dims: int, least: int) -> Sizes:
    """An int, or one for each dimension."""
    words = ("an integer", "an integer or two")[dims - 1]
    try:
        sizes = tuple(
            operator.index(n) for n in (value if isinstance(value, Sequence) else (value,))
        )
    except TypeError:
        raise TypeError(f"{name} must be {words}, got {value!r}") from None
    if len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or min(sizes) < least or max(sizes) > _MOST:
        raise ValueError(f"{name} must be {words}, from {least} to 2**30, got {value!r}")
    return sizes


def _kernel_size(
    known: Sizes | None, cols: int, channels: int, dims: int, given: int | Sequence[int] | None
) -> Sizes:
    """Sizes of the kernel: as given, as the matrix knows them, or 1."""
    if known is not None and len(known) != dims + 2:
        raise ValueError(
            f"conv{dims}d wants the weights of a {dims}-dimensional convolution, got a matrix of kernel shape {known}"
        )
    if given is not None:
        sizes = _sizes(given, "kernel_size", dims, 1)
        if known is not None and sizes != known[2:]:
            raise ValueError(f"kernel_size must be {known[2:]}, that of the matrix, got {given!r}")
    elif known is not None:
        sizes = known[2:]
    elif cols == channels:
        sizes = (1,) * dims
    else:
        raise ValueError(
            f"a matrix of {cols} columns does not say the size of its kernel for {channels} channels; encode weights "
            f"of {dims + 2} dimensions, or pass kernel_size"
        )
    if math.prod(sizes) * channels != cols:
        raise ValueError(
            f"input must have {cols // math.prod(sizes)} channels for a matrix of {cols} columns and a kernel of size "
            f"{sizes}, got {channels}"
        )
    return sizes


def _padding(
    padding: int | Sequence[int] | str, dims: int, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> tuple[Sizes, Sizes]:
    """Zeros before the input, and before and behind it together."""
    if not isinstance(padding, str):
        before = _sizes(padding, "padding", dims, 0)
        return before, tuple(2 * n for n in before)
    if padding == "valid":
        return (0,) * dims, (0,) * dims
    if padding != "same":
        raise ValueError(f'padding must be numbers, "valid" or "same", got {padding!r}')
    if max(stride) > 1:
        raise ValueError(f'padding "same" needs stride 1, got {stride}')
    both = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return tuple(n // 2 for n in both), both


@dataclass(frozen=True)
class _Layer:
    """What is known of a convolution of inputs of one size.

    Attributes
    ----------
    size : tuple of int
        Of the result.
    zeros : tuple of int
        Padding before and behind the input together.
    geometry : tuple of pairs
        As the core takes it: kernel, stride, dilation, padding before the input.
    """

    size: Sizes
    zeros: Sizes
    geometry: tuple[Sizes, ...]


def _hashable(sizes: Any) -> Any:
    return tuple(sizes) if type(sizes).__hash__ is None else sizes


# Reading the arguments again takes longer than small convolutions do.
@functools.lru_cache(maxsize=1024, typed=True)
def _layer(
    channels_and_size: Sizes,
    cols: int,
    kernel_shape: Sizes | None,
    kernel_size: int | Sequence[int] | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> _Layer:
    channels, *size = channels_and_size
    dims = len(size)
    steps = _sizes(stride, "stride", dims, 1)
    taps = _sizes(dilation, "dilation", dims, 1)
    kernel = _kernel_size(kernel_shape, cols, channels, dims, kernel_size)
    before, zeros = _padding(padding, dims, kernel, steps, taps)
    padded = tuple(n + p for n, p in zip(size, zeros, strict=True))
    covered = tuple(d * (k - 1) + 1 for d, k in zip(taps, kernel, strict=True))
    if any(c > n for n, c in zip(padded, covered, strict=True)):
        raise ValueError(
            f"the kernel covers {covered}, but the input with its padding has {padded}"
        )
    one = (1,) * (2 - dims)
    return _Layer(
        tuple((n - c) // s + 1 for n, c, s in zip(padded, covered, steps, strict=True)),
        zeros,
        (one + kernel, one + steps, one + taps, (0,) * (2 - dims) + before),
    )


def _as_images(array: Array, dims: int, batched: bool) -> Array:
    """[N, C, H, W]; sequences are images of one row."""
    if not batched:
        array = array[None]
    return array if dims == 2 else array[:, :, None]


def _as_last(images: Array) -> Array:
    moved: Array = images.transpose(0, 2, 3, 1)
    return moved


def _is_last(images: Array) -> bool:
    return not images.flags.c_contiguous and bool(_as_last(images).flags.c_contiguous)


def _in_memory_order(images: Array, last: bool) -> Array:
    """[N, C, H, W] or, with `last`, [N, H, W, C], in C order: a view if it lies so."""
    ordered: Array = np.ascontiguousarray(_as_last(images) if last else images)
    return ordered


def _lengths(lengths: npt.ArrayLike, batch: int, most: int) -> npt.NDArray[np.int64]:
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.shape != (batch,):
        raise ValueError(
            f"lengths must be whole numbers of shape ({batch},), got {array.dtype} of shape {array.shape}"
        )
    if array.size and not 0 <= array.min() <= array.max() <= most:
        raise ValueError(f"lengths must be from 0 to {most}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, np.int64)


def _convolve(
    dims: int,
    input: npt.ArrayLike,
    weight: Matrix,
    bias: npt.ArrayLike | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    kernel_size: int | Sequence[int] | None,
    activation: Activation,
    residual: npt.ArrayLike | None,
    out: Array | None,
    lengths: npt.ArrayLike | None,
) -> Array:
    if groups != 1:
        raise ValueError(
            f"groups must be 1, got {groups!r}; convolve the channels of each group with a matrix of its own"
        )
    dtype = plans._dtype_of(weight, input)
    x = plans._operand(input, dtype, "input")
    batched = x.ndim == dims + 2
    if not batched and x.ndim != dims + 1:
        raise ValueError(
            f"input must have {dims + 2} dimensions, or {dims + 1} without a batch, got shape {x.shape}"
        )
    number = plans._activation_number(activation)
    images = _as_images(x, dims, batched)
    how = (_hashable(sizes) for sizes in (kernel_size, stride, padding, dilation))
    layer = _layer(x.shape[-dims - 1 :], weight.shape[1], weight.kernel_shape, *how)
    size = layer.size
    shape = (*x.shape[: -dims - 1], weight.shape[0], *size)

    x_last = y_last = _is_last(images)
    y: Array
    if out is None:
        batch = images.shape[0]
        full = (batch, weight.shape[0], *((1,) * (2 - dims)), *size)
        y = np.empty([full[i] for i in (0, 2, 3, 1)] if y_last else full, dtype)
    else:
        if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
            got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else repr(out)
            raise ValueError(f"out must be an array of {dtype} and shape {shape}, got {got}")
        y = _as_images(out, dims, batched)
        y_last = _is_last(y)
        y = _as_last(y) if y_last else y
        if not y.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous or channels_last, got strides {out.strides}"
            )
    if bias is not None:
        bias = np.ascontiguousarray(plans._operand(bias, dtype, "bias"))
        if bias.shape != (weight.shape[0],):
            raise ValueError(f"bias must have shape ({weight.shape[0]},), got {bias.shape}")
    if residual is not None:
        residual = plans._operand(residual, dtype, "residual")
        if residual.shape != shape:
            raise ValueError(f"residual must have shape {shape}, got {residual.shape}")
        residual = _in_memory_order(_as_images(residual, dims, batched), y_last)
    x_cols = y_cols = None
    if lengths is not None:
        x_cols = _lengths(lengths, images.shape[0], x.shape[-1])
        (_, kernel), (_, step), (_, dilation), _ = layer.geometry
        y_cols = _lengths_of_result(x_cols, kernel, step, layer.zeros[0], dilation)
    # At least a register of pixels: plans for fewer columns of x are of another kind.
    plan = plans.plan_for(
        weight, max(images.shape[0] * math.prod(size), 16), plans._dtype_of(weight)
    )
    _core.convolve(
        plan,
        plans._bits(_in_memory_order(images, x_last), dtype),
        plans._bits(y, dtype),
        x_last,
        y_last,
        layer.geometry,
        plans._bits(bias, dtype),
        number,
        plans._bits(residual, dtype),
        x_cols,
        y_cols,
    )
    if out is not None:
        return out
    return (y.transpose(0, 3, 1, 2) if y_last else y).reshape(shape)
