"""Layers for inference that hold compact matrices and run the C kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gspattern import _core
from gspattern.matrices import Matrix, as_matrix, encode
from gspattern.patterns import Pattern
from gspattern.plans import Activation, _activation_number, plan_for_samples, set_num_threads
from gspattern.torch.targets import ATTRIBUTE, PrunedWeight, carried

MOST_THREADS = 256  # that set_num_threads takes

R = TypeVar("R")


class Compact(nn.Module):
    """A layer whose weights are compact matrices. It is for inference on the CPU."""

    @property
    def weights(self) -> dict[str, Matrix]:
        """The matrices, by the names of the parameters that they stand for."""
        raise NotImplementedError

    def _call(self, function: Callable[..., R], *args: Any) -> R:
        """Call what runs the kernels, from between the graphs of a compiled model if need be."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(
                f"{type(self).__name__} cannot be traced: a trace would hold the answer to its example as a "
                "constant; use torch.compile, or trace the dense model"
            )
        if torch.compiler.is_compiling():
            uncompiled: Callable[..., R]  # nothing is imported for it before
            uncompiled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return uncompiled(*args)
        return function(*args)

    def _check(self, x: torch.Tensor) -> None:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} is for inference and has no gradient: use torch.no_grad(), "
                "or train the pruned dense model and convert it afterwards"
            )
        if not x.is_cpu:
            raise RuntimeError(
                f"{type(self).__name__} runs on the CPU, got a tensor on {x.device}: use x.cpu()"
            )


class OneMatrix(Compact):
    """A compact layer of one matrix, `weight`, and a bias for its rows.

    The state_dict holds `bias` and, as extra state, the arrays of the matrix.
    """

    matrix: Matrix
    bias: torch.Tensor | None

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self._compute = compute_dtype(matrix)
        if bias is not None:
            if tuple(bias.shape) != (matrix.shape[0],):
                raise ValueError(
                    f"bias must have shape ({matrix.shape[0]},), got {tuple(bias.shape)}"
                )
            bias = bias.detach().to("cpu", self._compute, copy=True)
        self.register_buffer("bias", bias)

    @property
    def weights(self) -> dict[str, Matrix]:
        return {"weight": self.matrix}

    def get_extra_state(self) -> dict[str, Any]:
        return state_of(self.matrix)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.matrix = matrix_of(state, self.matrix)
        self._compute = compute_dtype(self.matrix)


class GSLinear(OneMatrix):
    """A linear layer with a compact matrix for its weight: y = x W^T + b, for inference on the CPU.

    It takes the same inputs as `torch.nn.Linear`, [..., K] to [..., M], and as many threads as
    `torch.get_num_threads()` says. Float32 inputs (float64 for a float64 matrix, bfloat16 too for a bfloat16
    one) are read where they lie; other types are converted, and the output has the type of the input.

    Parameters
    ----------
    matrix : Matrix
        [M, K].
    bias : Tensor, optional
        [M].

    Notes
    -----
    The state_dict holds `bias` and, as extra state, the arrays of the matrix. It loads into any GSLinear
    of the same shape.
    """

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None = None) -> None:
        super().__init__(matrix, bias)
        self.out_features, self.in_features = matrix.shape

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        pattern: str | Pattern | None = None,
        dtype: str | None = None,
    ) -> GSLinear:
        """The compact form of a pruned layer.

        Parameters
        ----------
        layer : Linear
            Pruned by `Pruner` or `prune_`, or by anything else if `pattern` is given: then its nonzeros
            are kept, and with them the fewest zeros that make the mask valid.
        pattern : str or Pattern, optional
            For a layer that does not carry its own.
        dtype : str, optional
            "float32", "float64", "float16", "bfloat16" or "int8"; None for that of the layer.

        Raises
        ------
        ValueError
            If neither the layer nor the caller knows a pattern, or weights outside the mask are not zero.
        """
        return cls(encode_weight(layer, "weight", pattern, dtype), layer.bias)

    def to_dense(self) -> nn.Linear:
        """The same layer as a dense `torch.nn.Linear` that can be trained and knows its mask."""
        weight = tensor_of(trainable(self.matrix))
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(weight)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.to(weight.dtype, copy=True))
        pruned = PrunedWeight(self.matrix.pattern, self.matrix.mask(), self.matrix.row_order)
        setattr(layer, ATTRIBUTE, {"weight": pruned})
        return layer

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        activation: Activation = None,
    ) -> torch.Tensor:
        """Multiply.

        Parameters
        ----------
        x : Tensor, [..., K]
            On the CPU.
        residual : Tensor, [..., M], optional
            Added before the activation.
        activation : str or tuple, optional
            As for `gspattern.linear`.

        Returns
        -------
        Tensor, [..., M]
            Of the type of `x`.

        Raises
        ------
        RuntimeError
            If a gradient is wanted, or `x` is on another device.
        ValueError
            If the last dimension of `x` is not K.
        """
        return self._call(self._multiply, x, residual, activation)

    def _multiply(
        self, x: torch.Tensor, residual: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        self._check(x)
        use_torch_threads()
        # Small layers take two microseconds: what follows converts nothing that is right already.
        compute = self._compute
        if x.dtype is torch.bfloat16 and self.matrix.dtype == ml_dtypes.bfloat16:
            return self._multiply_bfloat16(x.detach(), residual, activation)
        given = x.detach() if x.dtype is compute else x.detach().to(compute)
        array = given.contiguous().numpy()
        bias = self._buffers["bias"]
        if bias is not None and bias.dtype is not compute:
            bias = bias.to(compute)
        addend = None if bias is None else bias.numpy()
        number = 0 if activation is None else _activation_number(activation)
        other = None
        if residual is not None:
            other = residual.detach().to(compute).contiguous().numpy()
        plan = plan_for_samples(self.matrix, array.size // max(1, self.in_features))
        y = torch.from_numpy(plan.linear(array, addend, number, other, None))
        return y if x.dtype is compute else y.to(x.dtype)

    def _multiply_bfloat16(
        self, x: torch.Tensor, residual: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        bias = self._buffers["bias"]
        array = x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        addend = None if bias is None else array_of(bias.bfloat16())
        other = None if residual is None else array_of(residual.bfloat16())
        y = self.matrix.linear(array, addend, activation, other)
        return torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)

    def extra_repr(self) -> str:
        m = self.matrix
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={m.pattern}, dtype={m.dtype}, nnz={m.nnz}"
        )


def matrices(model: nn.Module) -> dict[str, Matrix | npt.NDArray[Any]]:
    """All parameters and buffers of a converted model, by the names that they had before it was converted.

    Compact layers give a `Matrix`, everything else is a plain array: what `gspattern.save_file` takes.
    """
    tensors: dict[str, Matrix | npt.NDArray[Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, Compact):
            tensors.update((prefix + key, matrix) for key, matrix in module.weights.items())
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            tensors[name] = array_of(value)
    return tensors


# ------------------------------------------------------------------ what layers share


def use_torch_threads() -> None:
    """Let kernels use as many threads as torch may."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads != _core.get_num_threads():
        set_num_threads(threads)


def encode_weight(
    layer: nn.Module, name: str, pattern: str | Pattern | None, dtype: str | None
) -> Matrix:
    """The compact form of one weight of a layer: with its own mask, or the nonzeros under `pattern`."""
    weight = getattr(layer, name).detach().cpu()
    known = carried(layer).get(name)
    array = (weight if weight.dtype == torch.float64 else weight.float()).numpy()
    array = np.ascontiguousarray(array)
    if pattern is not None:
        matrix = encode(array, pattern)
    elif known is None:
        raise ValueError(
            "this layer was not pruned by a Pruner: give the pattern of its zeros, "
            'pattern="gs(16,16)" or pattern="irregular"'
        )
    else:
        stray = np.count_nonzero(as_matrix(array)[~known.mask])
        if stray:
            raise ValueError(
                f"{stray} weights outside the mask are not zero; "
                "call pruner.step() after every optimizer.step(), or pruner.finalize() now"
            )
        matrix = encode(array, known.pattern, mask=known.mask, row_order=known.row_order)
    return cast_matrix(matrix, dtype or str(weight.dtype).removeprefix("torch."))


def trainable(matrix: Matrix) -> npt.NDArray[Any]:
    """Dense weights. Whole numbers are no weights to train: int8 goes back through its scales."""
    return (matrix.astype("float32") if matrix.scales is not None else matrix).to_dense()


def state_of(matrix: Matrix) -> dict[str, Any]:
    """The arrays of a matrix as tensors, for a state_dict."""
    arrays = {key: tensor_of(value) for key, value in matrix.arrays().items()}
    return {"pattern": str(matrix.pattern), "shape": list(matrix.shape), **arrays}


def matrix_of(state: dict[str, Any], like: Matrix) -> Matrix:
    """The way back from `state_of`, for a layer that has a matrix of the same shape."""
    shape = (int(state["shape"][0]), int(state["shape"][1]))
    if shape != like.shape:
        raise ValueError(f"this layer is {like.shape}, the state that of {shape}")
    arrays: dict[str, Any] = {
        key: array_of(value) for key, value in state.items() if isinstance(value, torch.Tensor)
    }
    return Matrix.from_arrays(state["pattern"], shape, **arrays, kernel_shape=like.kernel_shape)


def cast_matrix(matrix: Matrix, dtype: str) -> Matrix:
    """`matrix` with values of the named type; int8 gets a scale per row."""
    if dtype == str(matrix.dtype):
        return matrix
    return matrix.quantize("int8") if dtype == "int8" else matrix.astype(dtype)


def tensor_of(array: npt.NDArray[Any]) -> torch.Tensor:
    """A copy of a NumPy array as a tensor; bfloat16 too, which `torch.from_numpy` does not know."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor as a NumPy array; bfloat16 as that of ml_dtypes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.array(tensor.numpy())


def compute_dtype(matrix: Matrix) -> torch.dtype:
    """What kernels add in, and take inputs and biases as."""
    return torch.float64 if matrix.dtype == np.float64 else torch.float32
