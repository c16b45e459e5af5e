"""Layers for inference that hold compact matrices and run the C kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gspattern import _core
from gspattern.matrices import Matrix, encode
from gspattern.patterns import Pattern
from gspattern.plans import plan_for_samples, set_num_threads
from gspattern.torch.targets import ATTRIBUTE, PrunedWeight, carried

MOST_THREADS = 256  # that set_num_threads takes


class GSLinear(nn.Module):
    """A linear layer with a compact matrix for its weight: y = x W^T + b, for inference on the CPU.

    It takes the same inputs as `torch.nn.Linear`, [..., K] to [..., M], and as many threads as
    `torch.get_num_threads()` says. Float32 inputs (float64 for a float64 matrix) are read where they lie;
    other types are converted, and the output has the type of the input.

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

    bias: torch.Tensor | None

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        # Kernels add in float32 (float64), whatever the type of the values.
        self._compute = _compute_dtype(matrix)
        if bias is not None:
            if tuple(bias.shape) != (self.out_features,):
                raise ValueError(
                    f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}"
                )
            bias = bias.detach().to("cpu", self._compute, copy=True)
        self.register_buffer("bias", bias)

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
        weight = layer.weight.detach().cpu()
        known = carried(layer).get("weight")
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
            stray = np.count_nonzero(array[~known.mask])
            if stray:
                raise ValueError(
                    f"{stray} weights outside the mask are not zero; "
                    "call pruner.step() after every optimizer.step(), or pruner.finalize() now"
                )
            matrix = encode(array, known.pattern, mask=known.mask, row_order=known.row_order)
        return cls(
            cast_matrix(matrix, dtype or str(weight.dtype).removeprefix("torch.")), layer.bias
        )

    def to_dense(self) -> nn.Linear:
        """The same layer as a dense `torch.nn.Linear` that can be trained and knows its mask."""
        # Whole numbers are no weights to train: int8 goes back through its scales.
        values = self.matrix.astype("float32") if self.matrix.scales is not None else self.matrix
        weight = tensor_of(values.to_dense())
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(weight)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.to(weight.dtype, copy=True))
        pruned = PrunedWeight(self.matrix.pattern, self.matrix.mask(), self.matrix.row_order)
        setattr(layer, ATTRIBUTE, {"weight": pruned})
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Parameters
        ----------
        x : Tensor, [..., K]
            On the CPU.

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
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(
                "GSLinear cannot be traced: a trace would hold the answer to its example as a constant; "
                "use torch.compile, or trace the dense model"
            )
        if torch.compiler.is_compiling():
            # A compiled model calls the kernels from between its graphs. (Nothing is imported for it before.)
            uncompiled: Callable[[torch.Tensor], torch.Tensor]
            uncompiled = torch.compiler.disable(self._multiply)  # type: ignore[no-untyped-call]
            return uncompiled(x)
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "GSLinear is for inference and has no gradient: use torch.no_grad(), "
                "or train the pruned dense model and convert it afterwards"
            )
        if not x.is_cpu:
            raise RuntimeError(f"GSLinear runs on the CPU, got a tensor on {x.device}: use x.cpu()")
        threads = min(torch.get_num_threads(), MOST_THREADS)
        if threads != _core.get_num_threads():
            set_num_threads(threads)
        # Small layers take two microseconds: what follows converts nothing that is right already.
        compute = self._compute
        given = x.detach() if x.dtype is compute else x.detach().to(compute)
        array = given.contiguous().numpy()
        bias = self._buffers["bias"]
        if bias is not None and bias.dtype is not compute:
            bias = bias.to(compute)
        addend = None if bias is None else bias.numpy()
        plan = plan_for_samples(self.matrix, array.size // max(1, self.in_features))
        y = torch.from_numpy(plan.linear(array, addend, 0, None, None))
        return y if x.dtype is compute else y.to(x.dtype)

    def extra_repr(self) -> str:
        m = self.matrix
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={m.pattern}, dtype={m.dtype}, nnz={m.nnz}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        arrays = {key: tensor_of(value) for key, value in self.matrix.arrays().items()}
        return {"pattern": str(self.matrix.pattern), "shape": list(self.matrix.shape), **arrays}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        shape = (int(state["shape"][0]), int(state["shape"][1]))
        if shape != self.matrix.shape:
            raise ValueError(f"this layer is {self.matrix.shape}, the state that of {shape}")
        arrays: dict[str, Any] = {
            key: array_of(value) for key, value in state.items() if isinstance(value, torch.Tensor)
        }
        self.matrix = Matrix.from_arrays(state["pattern"], shape, **arrays)
        self._compute = _compute_dtype(self.matrix)


def matrices(model: nn.Module) -> dict[str, Matrix | npt.NDArray[Any]]:
    """All parameters and buffers of a converted model, by the names that they had before it was converted.

    Compact layers give a `Matrix`, everything else is a plain array: what `gspattern.save_file` takes.
    """
    tensors: dict[str, Matrix | npt.NDArray[Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, GSLinear):
            tensors[f"{name}.weight" if name else "weight"] = module.matrix
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            tensors[name] = array_of(value)
    return tensors


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


def _compute_dtype(matrix: Matrix) -> torch.dtype:
    return torch.float64 if matrix.dtype == np.float64 else torch.float32
