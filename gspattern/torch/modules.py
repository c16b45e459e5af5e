"""Layers that hold compact matrices and run the C kernels, on the CPU."""

from __future__ import annotations

from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from gspattern.matrices import Matrix, as_matrix, encode
from gspattern.patterns import Pattern
from gspattern.plans import Activation
from gspattern.torch import operators
from gspattern.torch.operators import (
    finished,
    is_transformed,
    is_watched,
    matrix_of,
    named,
    operand_dtype,
    scattered,
    tensor_of,
)
from gspattern.torch.targets import ATTRIBUTE, PrunedWeight, carried

L = TypeVar("L", bound=nn.Module)


class CompactWeight(nn.Module):
    """The weight of a compact layer, as tensors that torch can save, copy, export and train.

    Parameters
    ----------
    matrix : Matrix
        [M, K]. It is copied.

    Attributes
    ----------
    values : Parameter
        The values of the matrix, in their shape and type. They want no gradient until `requires_grad_` says so, which
        those of int8 cannot.
    structure : Tensor of uint8
        Everything else, as a safetensors file has it: the other arrays, pattern and shape.
    shape : (int, int)
    kernel_shape : tuple of int, or None
    """

    values: nn.Parameter
    structure: torch.Tensor

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.shape, self.kernel_shape = matrix.shape, matrix.kernel_shape
        with torch.inference_mode(False):  # tensors that are made in it could never be trained
            values, structure = operators.tensors_of(matrix)
        self.values = values
        self.register_buffer("structure", structure)

    @property
    def matrix(self) -> Matrix:
        """A copy of the matrix, with the values of now. Making it takes as long as copying them."""
        known = matrix_of(self.values, self.structure)
        return known._with_values(known.values, known.scales)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        # The other matrix may have another pattern, so that nothing fits in the old tensors.
        values, structure = (state_dict.get(prefix + key) for key in ("values", "structure"))
        if values is not None and structure is not None:
            shape = operators.check(values, structure).shape
            if shape != self.shape:
                raise ValueError(f"this layer is {self.shape}, the state that of {shape}")
            if not local_metadata.get("assign_to_params_buffers", False):
                self.structure = structure.detach().to("cpu", copy=True)
                if (values.shape, values.dtype) != (self.values.shape, self.values.dtype):
                    wanted = self.values.requires_grad and values.is_floating_point()
                    self.values = nn.Parameter(torch.empty_like(values, device="cpu"), wanted)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        m = matrix_of(self.values, self.structure)
        return f"pattern={m.pattern}, dtype={m.dtype}, nnz={m.nnz}"


class Compact(nn.Module):
    """A layer whose weights are compact matrices. It runs on the CPU, and is trained by dense products.

    Attributes
    ----------
    dense_dtype : dtype, or None
        Of the layer that it was made from, and that `to_dense` gives; None for that of the values, or float32 if these
        are shorter.
    """

    dense_dtype: torch.dtype | None = None

    def _dense_weight(self, matrix: Matrix) -> torch.Tensor:
        """Weights to train: values of int8 go back through their scales."""
        long = matrix.dtype == np.float64
        weight = tensor_of((matrix if long else matrix.astype("float32")).to_dense())
        return weight if self.dense_dtype is None else weight.to(self.dense_dtype)

    @property
    def weights(self) -> dict[str, Matrix]:
        """Copies of the matrices, by the names of the parameters that they stand for."""
        return {
            name: child.matrix
            for name, child in self.named_children()
            if isinstance(child, CompactWeight)
        }

    def _check(self, x: torch.Tensor) -> None:
        if not x.is_cpu:
            raise RuntimeError(
                f"{type(self).__name__} runs on the CPU, got a tensor on {x.device}: use x.cpu()"
            )


class OneMatrix(Compact):
    """A compact layer of one matrix, `weight`, and a bias for its rows.

    The state_dict holds `weight.values`, `weight.structure` and `bias`. It loads into any such layer of the same
    shape, whatever the pattern of either.
    """

    weight: CompactWeight
    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = CompactWeight(matrix)
        if bias is not None and tuple(bias.shape) != (matrix.shape[0],):
            raise ValueError(f"bias must have shape ({matrix.shape[0]},), got {tuple(bias.shape)}")
        self.register_parameter("bias", bias_of(bias, matrix))

    @property
    def matrix(self) -> Matrix:
        """A copy of the matrix, as it is now."""
        return self.weight.matrix

    def _filled(self, layer: L, matrix: Matrix, weight: torch.Tensor) -> L:
        """A dense layer with the values of this one, which carries its mask."""
        layer.weight = nn.Parameter(weight)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().to(weight.dtype, copy=True))
        pruned = PrunedWeight(matrix.pattern, matrix.mask(), matrix.row_order)
        setattr(layer, ATTRIBUTE, {"weight": pruned})
        return layer


class GSLinear(OneMatrix):
    """A linear layer with a compact matrix for its weight: y = x W^T + b, on the CPU.

    It takes the same inputs as `torch.nn.Linear`, [..., K] to [..., M], and as many threads as
    `torch.get_num_threads()` says. Float32 inputs (float64 for a float64 matrix, bfloat16 too for a bfloat16
    one) are read where they lie; other types are converted, and the output has the type of the input.

    Parameters
    ----------
    matrix : Matrix
        [M, K].
    bias : Tensor, optional
        [M].

    Attributes
    ----------
    weight : CompactWeight
    bias : Parameter, or None
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
        compact = cls(encode_weight(layer, "weight", pattern, dtype), layer.bias)
        compact.dense_dtype = layer.weight.dtype
        return compact

    def to_dense(self) -> nn.Linear:
        """The same layer as a dense `torch.nn.Linear` that can be trained and knows its mask."""
        matrix = self.matrix
        weight = self._dense_weight(matrix)
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        return self._filled(layer, matrix, weight)

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
            On the CPU. Under autocast it is converted first, as for `torch.nn.Linear`.
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
            If `x` is on another device.
        ValueError
            If the last dimension of `x` is not K.
        """
        # Small layers take two microseconds, so that attributes are not looked for in vain.
        weight: Any = self._modules["weight"]
        values, structure = weight._parameters["values"], weight._buffers["structure"]
        bias: torch.Tensor | None = self._parameters["bias"]
        if torch.is_autocast_enabled("cpu"):
            x = autocast(x)
        given = x.dtype
        compute = operand_dtype(values.dtype, given)
        if given is not compute:
            x = x.to(compute)
        if bias is not None and bias.dtype is not compute:
            bias = bias.to(compute)
        if residual is not None and residual.dtype is not compute:
            residual = residual.to(compute)
        if is_watched(x, values, bias, residual):
            shape = (self.out_features, self.in_features)
            y: torch.Tensor
            if is_transformed():
                y = functional.linear(x, scattered(values, structure, shape, x.dtype), bias)
                y = finished(y, residual, activation)
            else:
                how = named(activation)
                y = operators.linear(x, values, structure, shape, bias, residual, *how)
        else:
            self._check(x)
            matrix = matrix_of(values, structure)
            y = operators.linear_product(matrix, x, bias, activation, residual)
        return y if given is compute else y.to(given)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def matrices(model: nn.Module) -> dict[str, Matrix | npt.NDArray[Any]]:
    """All parameters and buffers of a converted model, by the names that they had before it was converted.

    Compact layers give a `Matrix`, everything else is a plain array: what `gspattern.save_file` takes. What has several
    names, such as an embedding that encoder and decoder share, is there once, under the first.
    """
    values = model.state_dict()
    first = first_names(model)
    compact: dict[str, Matrix | npt.NDArray[Any]] = {
        name: module.matrix
        for name, module in model.named_modules()
        if isinstance(module, CompactWeight)
    }
    inside = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CompactWeight)
    }
    plain = {
        name: array_of(values[name])
        for name in first
        if name == first[name] and name.rpartition(".")[0] not in inside
    }
    return {**compact, **plain}


def first_names(model: nn.Module) -> dict[str, str]:
    """Of every tensor in the state_dict its first name: that of another one if several modules share it."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(value), name)
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }


# ------------------------------------------------------------------ what layers share


def autocast(x: torch.Tensor) -> torch.Tensor:
    """What torch's own layers make of their input under autocast."""
    if torch.is_autocast_enabled("cpu") and x.is_floating_point() and x.dtype is not torch.float64:
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def bias_of(bias: torch.Tensor | None, matrix: Matrix) -> nn.Parameter | None:
    """A copy of a bias for a layer with this matrix, which wants no gradient yet."""
    if bias is None:
        return None
    dtype = torch.float64 if matrix.dtype == np.float64 else torch.float32
    with torch.inference_mode(False):
        return nn.Parameter(bias.detach().to("cpu", dtype, copy=True), requires_grad=False)


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


def cast_matrix(matrix: Matrix, dtype: str) -> Matrix:
    """`matrix` with values of the named type; int8 gets a scale per row."""
    if dtype == str(matrix.dtype):
        return matrix
    return matrix.quantize("int8") if dtype == "int8" else matrix.astype(dtype)


def array_of(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor as a NumPy array; bfloat16 as that of ml_dtypes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.array(tensor.numpy())
