"""Operators of torch for compact weights: what compilers, exporters and gradients see of a converted layer.

Their weights come as two tensors: the values, which may want a gradient, and a structure, the bytes of everything
else. So a program that was exported holds all that it needs. Behind them stands a `Matrix` with its plans, which is
found again as long as neither tensor changes.

Only forward passes run the kernels. Backward passes make dense weights, multiply by these, and pick what belongs to
the values. Under the transforms of torch.func and in forward mode, layers are torch's own with weights that are made
of the values by torch too, so that everything goes through them that goes through dense layers.
"""

from __future__ import annotations

import json
import math
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from gspattern import _core, files, recurrent
from gspattern.conv import conv1d, conv2d
from gspattern.matrices import Matrix
from gspattern.plans import (
    ACTIVATIONS,
    Activation,
    _activation_number,
    plan_for_samples,
    set_num_threads,
)

MOST_THREADS = 256  # that set_num_threads takes

# An activation as operators take it: its name, and the limits of a clamp.
Named = tuple[str, float, float]


# ------------------------------------------------------------------ matrices behind tensors


class _Known:
    """The matrix behind two tensors, as they were in one version."""

    __slots__ = ("_places", "copied", "matrix", "structure", "values", "version")

    def __init__(self, values: torch.Tensor, structure: torch.Tensor, like: Matrix) -> None:
        """Know the matrix that has these values, and is otherwise like another one."""
        key = id(values)

        def forget(reference: weakref.ref[torch.Tensor]) -> None:
            known = _known.get(key)
            if known is not None and known.values is reference:
                del _known[key]

        self.values = weakref.ref(values, forget)
        self.structure = weakref.ref(structure)
        self.version = _version(values, structure)
        self.copied = values.requires_grad or values.is_inference()
        # Values that stay as they are are not copied: a plan copies them once more, and that is enough.
        array = _array(values).copy() if self.copied else _array(values)
        if like.nnz != like.values.size:  # places outside the matrix must stay 0
            array = np.where(like._places()[1], array, np.zeros((), array.dtype))
        arrays = {**like.arrays(), "values": array}
        self.matrix = like._make(like.pattern, like.shape, arrays, like.kernel_shape)
        self._places: tuple[torch.Tensor, torch.Tensor | None] | None = None
        _known[key] = self

    def is_current(self, values: torch.Tensor, structure: torch.Tensor) -> bool:
        """Whether the tensors are still these, as they were.

        While values are trained they are compared: some write to them behind the back of their version counter
        (``p.data``), as tensors made in inference mode have none.
        """
        if (
            self.values() is not values
            or self.structure() is not structure
            or self.version != _version(values, structure)
        ):
            return False
        if self.copied or values.requires_grad:
            return self.copied and np.array_equal(self.matrix.values, _array(values))
        return True

    def places(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where elements are in a dense matrix, and which slots of the values they are if not all."""
        if self._places is None:
            rows, there = self.matrix._places()
            cols = self.matrix.shape[1]
            at = rows.astype(np.int64) * cols + self.matrix.columns().reshape(rows.shape)
            slots = None if there.all() else torch.from_numpy(np.flatnonzero(there))
            self._places = torch.from_numpy(at[there]), slots
        return self._places


# By the id of the values. It is no leak: an entry goes with its values.
_known: dict[int, _Known] = {}


def _version(values: torch.Tensor, structure: torch.Tensor) -> tuple[int, ...]:
    """What is another after each change of the tensors that torch knows of."""
    try:
        return values._version, values.data_ptr(), structure._version, structure.data_ptr()
    except RuntimeError:  # tensors of inference mode count no changes
        return values.data_ptr(), structure.data_ptr(), zlib.crc32(_array(structure).data)


def tensors_of(matrix: Matrix) -> tuple[torch.nn.Parameter, torch.Tensor]:
    """Values and structure of a matrix, for operators."""
    arrays = matrix.arrays()
    values = torch.nn.Parameter(tensor_of(arrays.pop("values")), requires_grad=False)
    text = files._canonical(files._describe(matrix))
    data = np.frombuffer(files._container(arrays, {files.KEY: text}), np.uint8)
    structure = torch.from_numpy(data.copy())
    _Known(values, structure, matrix)
    return values, structure


def check(values: torch.Tensor, structure: torch.Tensor) -> Matrix:
    """Make a matrix of two tensors that may come from anywhere; it shares nothing with them.

    Raises
    ------
    FormatError
        If they do not hold a valid matrix.
    """
    data = _array(structure).tobytes()
    try:
        tensors: dict[str, Any] = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
        entry = json.loads(header["__metadata__"][files.KEY])
        files._check_keys("the structure", entry, False, files.ENTRY, {"kernel_shape"})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise files._error("container", f"this is no structure of a matrix: {error}") from None
    parts = {name: files._array(name, tensor) for name, tensor in tensors.items()}
    return files._matrix("the structure", entry, {**parts, "values": _array(values)})


def _find(values: torch.Tensor, structure: torch.Tensor) -> _Known:
    known = _known.get(id(values))
    if known is not None and known.is_current(values, structure):
        return known
    same = (
        known is not None
        and known.values() is values
        and known.structure() is structure
        and known.version[2:] == _version(values, structure)[2:]
        and known.matrix.values.shape == tuple(values.shape)
        and (known.matrix.dtype == np.int8) == (values.dtype is torch.int8)
    )
    if known is None or not same:
        return _Known(values, structure, check(values, structure))
    after = _Known(values, structure, known.matrix)
    after._places = known._places
    return after


def matrix_of(values: torch.Tensor, structure: torch.Tensor) -> Matrix:
    """Give the matrix behind two tensors, with the plans that it has.

    Its values are those of the tensor, in the same memory: it is for a product that follows, and nothing to keep.

    Raises
    ------
    FormatError
        If the tensors do not hold a valid matrix.
    """
    known = _known.get(id(values))
    # As `is_current` says, for the case that is as frequent as calls of layers are.
    if (
        known is not None
        and not known.copied
        and not values.requires_grad
        and known.values() is values
        and known.structure() is structure
        and known.version == _version(values, structure)
    ):
        return known.matrix
    return _find(values, structure).matrix


def _shaped(values: torch.Tensor, structure: torch.Tensor, rows: int, cols: int) -> Matrix:
    """The matrix behind two tensors, which a program says to be of this shape."""
    matrix = matrix_of(values, structure)
    if matrix.shape != (rows, cols):
        raise ValueError(f"the matrix must have shape {(rows, cols)}, got {matrix.shape}")
    return matrix


def tensor_of(array: npt.NDArray[Any]) -> torch.Tensor:
    """A copy of a NumPy array as a tensor; bfloat16 too, which `torch.from_numpy` does not know."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor as a NumPy array in the same memory."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()


def _plain(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor of a type that NumPy has as an array in the same memory, with its strides."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """The way back from `_array`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# ------------------------------------------------------------------ who watches

_is_compiled = torch.compiler.is_dynamo_compiling
_tracing = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active


def is_watched(*tensors: torch.Tensor | None) -> bool:
    """Whether a product of these must be an operator: for a gradient, a compiler, an exporter or another mode.

    Otherwise kernels are called at once, which spares a small layer most of its time.
    """
    if _is_compiled():
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    if _tracing() is not None or _modes() or is_transformed():
        return True
    kind = type(tensors[0])
    return kind is not torch.Tensor and kind is not torch.nn.Parameter


def is_transformed() -> bool:
    """Whether there is a transform of torch.func, or forward mode, which operators know nothing of."""
    return _transforms() or (forward_ad._current_level >= 0 and not _is_compiled())


def use_torch_threads() -> None:
    """Let kernels use as many threads as torch may."""
    threads = torch.get_num_threads()
    if threads != _core.get_num_threads():
        set_num_threads(min(threads, MOST_THREADS))


def named(activation: Activation) -> Named:
    """An activation as operators take it."""
    if activation is None:
        return "none", 0.0, 0.0
    number = _activation_number(activation)
    if isinstance(number, tuple):
        return "clamp", number[1], number[2]
    return ACTIVATIONS[number], 0.0, 0.0


def _activation(name: str, low: float, high: float) -> Activation:
    return (name, low, high) if name == "clamp" else name


# ------------------------------------------------------------------ dense weights


@torch.library.custom_op(
    "gspattern::dense",
    mutates_args=(),
    schema="(Tensor values, Tensor structure, int[] shape) -> Tensor",
    device_types="cpu",
)
def dense(values: torch.Tensor, structure: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Weights [M, K] in float32, or in float64 if the values are; those of int8 times their scales."""
    matrix = _shaped(values, structure, *shape)
    wide = matrix if matrix.dtype == np.float64 else matrix.astype(np.float32)
    return torch.from_numpy(wide.to_dense())


@dense.register_fake
def _(values: torch.Tensor, structure: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return values.new_empty(tuple(shape), dtype=_sum_dtype(values.dtype))


@torch.library.custom_op(
    "gspattern::kept",
    mutates_args=(),
    schema="(Tensor dense, Tensor values, Tensor structure) -> Tensor",
    device_types="cpu",
)
def kept(dense: torch.Tensor, values: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
    """What dense weights [M, K] hold at the places of values, in their shape and dtype; 0 where there is no place."""
    index, slots = _find(values, structure).places()
    picked = dense.reshape(-1)[index].to(values.dtype)
    if slots is None:
        return picked.reshape(values.shape)
    return torch.zeros(values.numel(), dtype=values.dtype).scatter_(0, slots, picked).reshape(values.shape)  # fmt: skip


@kept.register_fake
def _(dense: torch.Tensor, values: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def scattered(
    values: torch.Tensor, structure: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """What `dense` gives, in any type, made by torch, so that all its transforms go through it to the values."""
    known_values, size = values, tuple(values.shape)
    with torch._C._DisableFuncTorch():
        if torch._C._functorch.is_functorch_wrapped_tensor(values):
            # Places do not depend on what the values are.
            known_values = torch.zeros(size, dtype=values.dtype)
        known = _find(known_values, structure)
        index, slots = known.places()
        scales = known.matrix.scales
    flat = values.to(_sum_dtype(values.dtype)).flatten()  # int8 has scales in float32
    if slots is not None:
        flat = flat[slots]
    rows, cols = shape
    weights = torch.zeros(rows * cols, dtype=flat.dtype).scatter(0, index, flat).view(rows, cols)
    if scales is not None:
        weights = weights * torch.from_numpy(scales)[:, None]
    return weights.to(dtype)


def _sum_dtype(values: torch.dtype) -> torch.dtype:
    """What kernels add in."""
    return torch.float64 if values is torch.float64 else torch.float32


def operand_dtype(values: torch.dtype, x: torch.dtype) -> torch.dtype:
    """What linear products and convolutions take x, bias and residual as."""
    if values is x is torch.bfloat16:
        return x
    return _sum_dtype(values)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,  # of what was just computed
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def finished(
    y: torch.Tensor, residual: torch.Tensor | None, activation: Activation
) -> torch.Tensor:
    """Compute activation(y + residual) by torch; y may be written to."""
    if residual is not None:
        y = y + residual
    name, low, high = named(activation)
    return y.clamp(low, high) if name == "clamp" else FUNCTIONS[name](y)


def _before(
    grad: torch.Tensor,
    y: Any,
    activation: Named,
    sums: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """The gradient in front of an activation whose result is y; `sums` computes what it was called with."""
    name, low, high = activation
    before: torch.Tensor = grad
    match name:
        case "relu":
            before = grad * (y > 0)
        case "sigmoid":
            before = grad * (y * (1 - y))
        case "tanh":
            before = grad * (1 - y * y)
        case "clamp":
            before = grad * ((y > low) & (y < high))
        case "gelu":
            before = torch.ops.aten.gelu_backward(grad, sums())
        case "silu":
            before = torch.ops.aten.silu_backward(grad, sums())
    return before


# ------------------------------------------------------------------ linear


def linear_product(
    matrix: Matrix,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Activation,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """What `linear` computes, by the kernels; types are those of `operand_dtype`."""
    use_torch_threads()
    if x.dtype is torch.bfloat16:
        arrays = (None if tensor is None else _array(tensor) for tensor in (bias, residual))
        return _tensor(matrix.linear(_array(x), next(arrays), activation, next(arrays)))
    # Small layers take two microseconds: what follows converts nothing that is right already.
    array = _plain(x if x.is_contiguous() else x.contiguous())
    addend = None if bias is None else _plain(bias)
    other = None if residual is None else _plain(residual.contiguous())
    number = 0 if activation is None else _activation_number(activation)
    plan = plan_for_samples(matrix, array.size // max(1, matrix.shape[1]))
    return torch.from_numpy(plan.linear(array, addend, number, other, None))


@torch.library.custom_op(
    "gspattern::linear",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor values, Tensor structure, int[] shape, Tensor? bias, Tensor? residual, "
        "str activation, float low, float high) -> Tensor"
    ),
    device_types="cpu",
)
def linear(
    x: torch.Tensor,
    values: torch.Tensor,
    structure: torch.Tensor,
    shape: Sequence[int],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    low: float,
    high: float,
) -> torch.Tensor:
    """Compute ``activation(x W^T + bias + residual)``: x [..., K], weights of shape [M, K], residual [..., M].

    x, bias and residual are float64 if the values are, bfloat16 or float32 if the values are bfloat16, else float32.
    `low` and `high` are the limits of the activation "clamp".
    """
    matrix = _shaped(values, structure, *shape)
    return linear_product(matrix, x, bias, _activation(activation, low, high), residual)


@linear.register_fake
def _(
    x: torch.Tensor,
    values: torch.Tensor,
    structure: torch.Tensor,
    shape: Sequence[int],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    low: float,
    high: float,
) -> torch.Tensor:
    rows, cols = shape
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x must have shape [..., {cols}], got {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], rows))


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, values, structure, shape, bias, residual, *activation = inputs
    ctx.activation, ctx.shape, ctx.residual = tuple(activation), shape, residual is not None
    summed = activation[0] in ("gelu", "silu")  # their gradients need the sums, others the result
    addends = (bias, residual) if summed else (None, None)
    ctx.save_for_backward(x, values, structure, *addends, None if summed else output)


def _linear_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, values, structure, bias, residual, y = ctx.saved_tensors
    need_x, need_values, _, _, need_bias, need_residual, *_ = ctx.needs_input_grad
    rows, cols = ctx.shape
    given = x.dtype
    wide = _sum_dtype(values.dtype)
    weights = dense(values, structure, ctx.shape)

    def sums() -> torch.Tensor:
        z = functional.linear(x.to(wide), weights, None if bias is None else bias.to(wide))
        return z if residual is None else z + residual

    grad = _before(grad.to(wide), None if y is None else y.to(wide), ctx.activation, sums)
    flat = grad.reshape(-1, rows)
    return (
        (grad @ weights).to(given) if need_x else None,
        kept(flat.T @ x.reshape(-1, cols).to(wide), values, structure) if need_values else None,
        None,
        None,
        flat.sum(0).to(given) if need_bias else None,
        grad.to(given) if need_residual else None,
        None,
        None,
        None,
    )


linear.register_autograd(_linear_backward, setup_context=_setup_linear)


# ------------------------------------------------------------------ convolutions


def convolution(
    matrix: Matrix,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    activation: Activation,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """What `convolve` computes, by the kernels."""
    use_torch_threads()
    array = _array if x.dtype is torch.bfloat16 else _plain
    y = (conv1d if len(stride) == 1 else conv2d)(
        array(x),
        matrix,
        None if bias is None else array(bias),
        stride,
        padding,
        dilation,
        activation=activation,
        residual=None if residual is None else array(residual),
    )
    return _tensor(y)


@torch.library.custom_op(
    "gspattern::convolve",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor values, Tensor structure, int[] kernel_shape, int[] stride, int[] padding, "
        "int[] dilation, Tensor? bias, Tensor? residual, str activation, float low, float high) -> Tensor"
    ),
    device_types="cpu",
)
def convolve(
    x: torch.Tensor,
    values: torch.Tensor,
    structure: torch.Tensor,
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    low: float,
    high: float,
) -> torch.Tensor:
    """Compute ``activation(convolution(x, W) + bias + residual)`` in one or two dimensions.

    x is [N, Ci, ...] or [Ci, ...], by channel or channels_last, `kernel_shape` [Co, Ci, ...]; types are those of
    `linear`. No `padding` at all stands for "same".
    """
    given = padding or "same"
    matrix = _shaped(values, structure, kernel_shape[0], math.prod(kernel_shape[1:]))
    how = _activation(activation, low, high)
    return convolution(matrix, x, bias, stride, given, dilation, how, residual)


@convolve.register_fake
def _(
    x: torch.Tensor,
    values: torch.Tensor,
    structure: torch.Tensor,
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    low: float,
    high: float,
) -> torch.Tensor:
    out, channels, *kernel = kernel_shape
    dims = len(kernel)
    if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
        raise ValueError(
            f"input must have {dims + 2} dimensions, or {dims + 1} without a batch, and {channels} channels, "
            f"got shape {tuple(x.shape)}"
        )
    size = []
    for i, n in enumerate(x.shape[-dims:]):
        covered = dilation[i] * (kernel[i] - 1)
        zeros = 2 * padding[i] if padding else covered
        size.append((n + zeros - covered - 1) // stride[i] + 1)
    last = (*range(x.dim() - dims - 1), *range(x.dim() - dims, x.dim()), x.dim() - dims - 1)
    if x.is_contiguous() or not x.permute(last).is_contiguous():
        return x.new_empty((*x.shape[: -dims - 1], out, *size))
    return x.new_empty((*x.shape[: -dims - 1], *size, out)).movedim(-1, -dims - 1)


def _setup_convolve(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, values, structure, *ctx.geometry, bias, residual, name, low, high = inputs
    ctx.activation = (name, low, high)
    summed = name in ("gelu", "silu")
    addends = (bias, residual) if summed else (None, None)
    ctx.save_for_backward(x, values, structure, *addends, None if summed else output)


def _convolve_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, values, structure, bias, residual, y = ctx.saved_tensors
    need_x, need_values, _, _, _, _, _, need_bias, need_residual, *_ = ctx.needs_input_grad
    (out, channels, *kernel), stride, padding, dilation = ctx.geometry
    dims = len(kernel)
    # [Co, K] with channels fastest is [Co, ..., Ci]; torch wants [Co, Ci, ...].
    flat = dense(values, structure, (out, channels * math.prod(kernel)))
    weights = flat.reshape(out, *kernel, channels).movedim(-1, 1)
    pads = []
    if not padding:
        padding = [0] * dims
        for taps, tap in reversed([*zip(kernel, dilation, strict=True)]):
            both = tap * (taps - 1)
            pads += [both // 2, both - both // 2]
    batched = x.dim() == dims + 2
    given, wide = x.dtype, flat.dtype
    images = functional.pad((x if batched else x[None]).to(wide), pads)

    def sums() -> torch.Tensor:
        function = functional.conv1d if dims == 1 else functional.conv2d
        addend = None if bias is None else bias.to(wide)
        z = function(images, weights, addend, stride, padding, dilation)
        z = z if batched else z[0]
        return z if residual is None else z + residual

    grad = _before(grad.to(wide), None if y is None else y.to(wide), ctx.activation, sums)
    grad_x, grad_weights, grad_bias = torch.ops.aten.convolution_backward(
        grad if batched else grad[None], images, weights, [out], stride, padding, dilation,
        False, [0] * dims, 1, [need_x, need_values, need_bias],
    )  # fmt: skip
    if need_x:
        grad_x = functional.pad(grad_x, [-pad for pad in pads]).to(given)
        grad_x = grad_x if batched else grad_x[0]
    if need_values:
        grad_weights = kept(grad_weights.movedim(1, -1).reshape(out, -1), values, structure)
    return (
        grad_x if need_x else None,
        grad_weights if need_values else None,
        *(None,) * 5,
        grad_bias.to(given) if need_bias else None,
        grad.to(given) if need_residual else None,
        *(None,) * 3,
    )


convolve.register_autograd(_convolve_backward, setup_context=_setup_convolve)


# ------------------------------------------------------------------ recurrent layers

LSTM, GRU = "lstm", "gru"
_GATES = {LSTM: 4, GRU: 3}


def recurrence(
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `recur` computes, by the kernels."""
    use_torch_threads()
    params: list[Any] = []
    for i in range(0, len(values), 2):
        params += matrix_of(values[i], structures[i]), matrix_of(values[i + 1], structures[i + 1])
        for bias in biases[i : i + 2]:
            params.append(_plain(bias) if bias.numel() else None)
    lengths = None if batch_sizes is None else batch_sizes.numpy()
    given, h = _plain(x), None if h_0 is None else _plain(h_0)
    if cell == LSTM:
        hx = None if c_0 is None or h is None else (h, _plain(c_0))
        y, (h_n, c_n) = recurrent.lstm(
            given, params, hx, batch_sizes=lengths, bidirectional=bidirectional
        )
        return torch.from_numpy(y), torch.from_numpy(h_n), torch.from_numpy(c_n)
    y, h_n = recurrent.gru(given, params, h, batch_sizes=lengths, bidirectional=bidirectional)
    return torch.from_numpy(y), torch.from_numpy(h_n), x.new_empty(0)


@torch.library.custom_op(
    "gspattern::recurrent",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor[] values, Tensor[] structures, Tensor[] biases, Tensor? h_0, Tensor? c_0, "
        "Tensor? batch_sizes, str cell, int hidden, bool bidirectional) -> (Tensor, Tensor, Tensor)"
    ),
    device_types="cpu",
)
def recur(
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run an "lstm" or a "gru" over sequences; gives the output, h_n and, of an LSTM, c_n.

    x is [T, N, features] or, with batch_sizes, packed; then h_0 must be given. Weights are two for each layer and
    direction, for the input and for the state, and so are the biases, if there are any; an empty one is none.
    x, biases and states have one type, float64 if the values do, else float32.
    """
    return recurrence(
        x, values, structures, biases, h_0, c_0, batch_sizes, cell, hidden, bidirectional
    )


@recur.register_fake
def _(
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = x.shape[1] if h_0 is None else h_0.shape[1]
    y = x.new_empty((*x.shape[:-1], hidden * (2 if bidirectional else 1)))
    h_n = x.new_empty((len(values) // 2, batch, hidden))
    return y, h_n, torch.empty_like(h_n) if cell == LSTM else x.new_empty(0)


@torch.library.custom_op(
    "gspattern::recurrent_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_y, Tensor grad_h, Tensor grad_c, Tensor x, Tensor[] values, Tensor[] structures, "
        "Tensor[] biases, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, str cell, int hidden, "
        "bool bidirectional) -> Tensor[]"
    ),
    device_types="cpu",
)
def recur_backward(
    grad_y: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> list[torch.Tensor]:
    """Gradients of `recur` to x, h_0, c_0, values and biases, one after the other; an empty one where there is none.

    The forward pass is repeated by dense weights, and kept.
    """
    directions = 2 if bidirectional else 1
    there = _there(batch_sizes)
    if there is not None:
        x, grad_y = (_padded(packed, there) for packed in (x, grad_y))

    def weights(i: int, shape: tuple[int, int]) -> torch.Tensor:
        result: torch.Tensor = dense(values[i], structures[i], shape)
        return result

    runs = _run_all(x, weights, len(values) // 2, biases, h_0, c_0, there, cell, hidden, bidirectional)  # fmt: skip
    zeros = x.new_zeros(x.shape[1], hidden)
    grads_h, grads_c, grads_values, grads_biases = [], [], [], []
    grad = grad_y
    for first in reversed(range(0, len(runs), directions)):
        parts = grad.chunk(directions, -1)
        grad = torch.zeros_like(runs[first].x)
        for i in reversed(range(first, first + directions)):
            end_c = grad_c[i] if cell == LSTM else zeros
            found = runs[i].backward(parts[i - first], grad_h[i], end_c)
            grad = grad + found.x
            grads_h.append(found.h)
            grads_c.append(found.c)
            for j in (1, 0):
                place = 2 * i + j
                floating = values[place].is_floating_point()
                grads_values.append(
                    kept(found.weights[j], values[place], structures[place]) if floating else x.new_empty(0)
                )  # fmt: skip
                if biases:
                    has = biases[place].numel() > 0
                    grads_biases.append(found.biases[j] if has else x.new_empty(0))
    return [
        grad.contiguous() if there is None else grad[there],
        torch.stack(grads_h[::-1]) if h_0 is not None else x.new_empty(0),
        torch.stack(grads_c[::-1]) if c_0 is not None else x.new_empty(0),
        *grads_values[::-1],
        *grads_biases[::-1],
    ]


@recur_backward.register_fake
def _(
    grad_y: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    *_: Any,
) -> list[torch.Tensor]:
    def like(tensor: torch.Tensor | None) -> torch.Tensor:
        if tensor is None or not tensor.is_floating_point():
            return x.new_empty(0)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    return [like(tensor) for tensor in (x, h_0, c_0, *values, *biases)]


def _there(batch_sizes: torch.Tensor | None) -> torch.Tensor | None:
    """Which sequences, longest first, have which steps, [T, N]; None if all have."""
    if batch_sizes is None:
        return None
    return torch.arange(int(batch_sizes[0])) < batch_sizes[:, None]


def _padded(packed: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    index = there.flatten().cumsum(0).sub_(1).view(there.shape)
    return torch.where(there[..., None], packed[index], 0.0)


class _Gradients(NamedTuple):
    x: torch.Tensor
    h: torch.Tensor
    c: torch.Tensor
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]


class _Run:
    """All steps of one layer in one direction, by dense weights [gates H, features] and [gates H, H].

    A sequence that is over, or has not begun in the second direction, keeps its state: `there` is [T, N], None if all
    are as long.
    """

    def __init__(
        self,
        cell: str,
        x: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        there: torch.Tensor | None,
        reverse: bool,
    ) -> None:
        self.x, self._cell, self._weights, self._reverse = x, cell, weights, reverse
        self._there = x.new_ones(x.shape[:2], dtype=torch.bool) if there is None else there
        self._saved: list[tuple[torch.Tensor, ...]] = []
        h, c = states
        self._outputs: dict[int, torch.Tensor] = {}
        for_input, for_state = biases or (0.0, 0.0)
        sums = x @ weights[0].T + for_input
        for t in self._times():
            state = h @ weights[1].T + for_state
            if cell == LSTM:
                i, f, g, o = (sums[t] + state).chunk(4, -1)
                i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                next_c = f * c + i * g
                next_h = o * next_c.tanh()
                self._saved.append((h, c, i, f, g, o, next_c.tanh()))
            else:
                r, z = (sums[t] + state).chunk(3, -1)[:2]
                r, z, s = r.sigmoid(), z.sigmoid(), state.chunk(3, -1)[2]
                n = (sums[t].chunk(3, -1)[2] + r * s).tanh()
                next_h, next_c = n + z * (h - n), c
                self._saved.append((h, r, z, n, s))
            on = self._there[t][:, None]
            self._outputs[t] = next_h * on
            h, c = torch.where(on, next_h, h), torch.where(on, next_c, c)
        self.h, self.c = h, c

    def _times(self) -> Sequence[int]:
        steps = range(self.x.shape[0])
        return steps[::-1] if self._reverse else steps

    def output(self) -> torch.Tensor:
        return torch.stack([self._outputs[t] for t in range(self.x.shape[0])])

    def backward(
        self, grad_y: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
    ) -> _Gradients:
        """From the gradients of the output and of the last states."""
        steps, batch, _ = self.x.shape
        rows = self._weights[0].shape[0]
        for_input, for_state = (self.x.new_empty(steps, batch, rows) for _ in range(2))
        states = self.x.new_empty(steps, batch, grad_h.shape[-1])
        h, c = grad_h, grad_c
        for t, saved in zip(reversed(self._times()), reversed(self._saved), strict=True):
            on = self._there[t][:, None]
            states[t] = saved[0]
            new_h, new_c = (h + grad_y[t]) * on, c * on
            if self._cell == LSTM:
                _, old_c, i, f, g, o, squashed = saved
                new_c = new_c + new_h * o * (1 - squashed * squashed)
                gates = [
                    new_c * g * i * (1 - i),
                    new_c * old_c * f * (1 - f),
                    new_c * i * (1 - g * g),
                    new_h * squashed * o * (1 - o),
                ]
                for_input[t] = for_state[t] = torch.cat(gates, -1)
                direct, passed = torch.zeros_like(new_h), new_c * f
            else:
                old_h, r, z, n, s = saved
                candidate = new_h * (1 - z) * (1 - n * n)
                gates = [candidate * s * r * (1 - r), new_h * (old_h - n) * z * (1 - z)]
                for_input[t] = torch.cat([*gates, candidate], -1)
                for_state[t] = torch.cat([*gates, candidate * r], -1)
                direct, passed = new_h * z, new_c
            h = torch.where(on, for_state[t] @ self._weights[1] + direct, h)
            c = torch.where(on, passed, c)
        flat_input, flat_state = for_input.flatten(0, 1), for_state.flatten(0, 1)
        return _Gradients(
            for_input @ self._weights[0],
            h,
            c,
            [flat_input.T @ self.x.flatten(0, 1), flat_state.T @ states.flatten(0, 1)],
            [flat_input.sum(0), flat_state.sum(0)],
        )


def _run_all(
    x: torch.Tensor,
    weights: Callable[[int, tuple[int, int]], torch.Tensor],
    count: int,
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    there: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> list[_Run]:
    """Run `count` layers and directions over x [T, N, features]; `weights` gives a matrix by number and shape."""
    directions = 2 if bidirectional else 1
    zeros = x.new_zeros(x.shape[1], hidden)
    rows = _GATES[cell] * hidden
    inputs, runs = x, list[_Run]()
    for i in range(count):
        if i and i % directions == 0:
            inputs = torch.cat([run.output() for run in runs[-directions:]], -1)
        own = [weights(2 * i, (rows, inputs.shape[-1])), weights(2 * i + 1, (rows, hidden))]
        addends = [b if b.numel() else x.new_zeros(rows) for b in biases[2 * i : 2 * i + 2]]
        states = [zeros if state is None else state[i] for state in (h_0, c_0)]
        runs.append(_Run(cell, inputs, own, addends, states, there, bool(i % directions)))
    return runs


def recur_by_torch(
    x: torch.Tensor,
    values: Sequence[torch.Tensor],
    structures: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    h_0: torch.Tensor | None,
    c_0: torch.Tensor | None,
    batch_sizes: torch.Tensor | None,
    cell: str,
    hidden: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `recur` computes, by dense weights and functions that all transforms of torch go through."""
    there = _there(batch_sizes)
    x = x if there is None else _padded(x, there)

    def weights(i: int, shape: tuple[int, int]) -> torch.Tensor:
        return scattered(values[i], structures[i], shape, x.dtype)

    runs = _run_all(x, weights, len(values) // 2, biases, h_0, c_0, there, cell, hidden, bidirectional)  # fmt: skip
    y = torch.cat([run.output() for run in runs[-2 if bidirectional else -1 :]], -1)
    if there is not None:
        y = y.flatten(0, 1)[there.flatten().nonzero()[:, 0]]
    return y, torch.stack([run.h for run in runs]), torch.stack([run.c for run in runs])


def _setup_recur(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, structures, biases, *states, ctx.cell, ctx.hidden, ctx.bidirectional = inputs
    ctx.counts = len(values), len(biases)
    ctx.save_for_backward(x, *values, *structures, *biases, *states)


def _recur_backward(
    ctx: Any, grad_y: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
) -> tuple[Any, ...]:
    weights, biases = ctx.counts
    saved = iter(ctx.saved_tensors)
    x = next(saved)
    lists = [[next(saved) for _ in range(n)] for n in (weights, weights, biases)]
    how = ctx.cell, ctx.hidden, ctx.bidirectional
    h_0, c_0, batch_sizes = saved
    grads = recur_backward(grad_y, grad_h, grad_c, x, *lists, h_0, c_0, batch_sizes, *how)
    given = (x, h_0, c_0, *lists[0], *lists[2])
    wanted = [
        grad if tensor is not None and tensor.requires_grad else None
        for tensor, grad in zip(given, grads, strict=True)
    ]
    return (
        wanted[0], wanted[3 : 3 + weights], [None] * weights, wanted[3 + weights :], *wanted[1:3],
        None, None, None, None,
    )  # fmt: skip


recur.register_autograd(_recur_backward, setup_context=_setup_recur)
