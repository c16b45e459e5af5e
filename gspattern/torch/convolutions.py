"""Convolutions that hold compact matrices: torch's own, but for the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from gspattern.matrices import Matrix
from gspattern.patterns import Pattern
from gspattern.plans import Activation
from gspattern.torch import operators
from gspattern.torch.modules import OneMatrix, autocast, encode_weight
from gspattern.torch.operators import (
    finished,
    is_transformed,
    is_watched,
    matrix_of,
    named,
    operand_dtype,
    scattered,
)
from gspattern.torch.targets import from_matrix

C = TypeVar("C", bound="GSConv")

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class GSConv(OneMatrix):
    """What the convolutions share.

    Parameters
    ----------
    matrix : Matrix
        Encoded from weights [Co, Ci, ...], so that it knows the size of its kernel.
    bias : Tensor, optional
        [Co].
    stride, padding, dilation, padding_mode
        As for torch's layer.
    """

    dense: ClassVar[Any]  # torch's layer
    dims: ClassVar[int]

    def __init__(
        self,
        matrix: Matrix,
        bias: torch.Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(matrix, bias)
        shape = matrix.kernel_shape
        if shape is None or len(shape) != self.dims + 2:
            raise ValueError(
                f"{type(self).__name__} wants a matrix that was encoded from {self.dims + 2}-dimensional weights, "
                f"got one of kernel shape {shape}"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}"
            )
        self.out_channels, self.in_channels, *kernel = shape
        self.kernel_size = tuple(kernel)
        self.stride = self._each(stride)
        self.dilation = self._each(dilation)
        self.padding = padding if isinstance(padding, str) else self._each(padding)
        self.padding_mode = padding_mode

    def _each(self, value: int | Sequence[int]) -> tuple[int, ...]:
        return (value,) * self.dims if isinstance(value, int) else tuple(value)

    @classmethod
    def from_conv(
        cls: type[C],
        layer: _ConvNd,
        pattern: str | Pattern | None = None,
        dtype: str | None = None,
    ) -> C:
        """The compact form of a pruned convolution.

        Parameters
        ----------
        layer : Module
            torch's layer of the same kind, pruned by `Pruner` or `prune_`, or by anything else if `pattern` is
            given: then its nonzeros are kept, and with them the fewest zeros that make the mask valid.
        pattern : str or Pattern, optional
            For a layer that does not carry its own.
        dtype : str, optional
            "float32", "float64", "float16", "bfloat16" or "int8"; None for that of the layer.

        Raises
        ------
        TypeError
            If the layer is of another kind.
        ValueError
            If neither the layer nor the caller knows a pattern, weights outside the mask are not zero, or the layer has
            groups.
        """
        if not isinstance(layer, cls.dense):
            raise TypeError(
                f"{cls.__name__} is made from torch.nn.{cls.dense.__name__}, got {type(layer).__name__}"
            )
        if layer.groups != 1:
            raise ValueError(f"convolutions with groups stay dense, got {layer.groups} groups")
        compact = cls(
            encode_weight(layer, "weight", pattern, dtype),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.padding_mode,
        )
        compact.dense_dtype = layer.weight.dtype
        return compact

    def to_dense(self) -> _ConvNd:
        """The same layer as a dense one of torch that can be trained and knows its mask."""
        matrix = self.matrix
        assert matrix.kernel_shape is not None
        weight = from_matrix(self._dense_weight(matrix), matrix.kernel_shape)
        # With strides of its own: those of 1 x 1 kernels could be read as channels_last too, which torch goes by.
        weight = weight.clone(memory_format=torch.contiguous_format)
        layer: _ConvNd = self.dense(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
        )
        return self._filled(layer, matrix, weight)

    def forward(
        self,
        input: torch.Tensor,
        residual: torch.Tensor | None = None,
        activation: Activation = None,
    ) -> torch.Tensor:
        """Convolve; by channel or channels_last, as the input lies, and of its type.

        Parameters
        ----------
        input : Tensor
            As for torch's layer, on the CPU. Under autocast it is converted first, as there.
        residual : Tensor, optional
            Of the shape of the result; added before the activation.
        activation : str or tuple, optional
            As for `gspattern.conv2d`.

        Raises
        ------
        RuntimeError
            If the input is on another device.
        ValueError
            If the input has other dimensions or channels.
        """
        weight: Any = self._modules["weight"]
        values, structure = weight._parameters["values"], weight._buffers["structure"]
        bias: torch.Tensor | None = self._parameters["bias"]
        x = autocast(input)
        given = x.dtype
        compute = operand_dtype(values.dtype, given)
        if given is not compute:
            x = x.to(compute)
        if bias is not None and bias.dtype is not compute:
            bias = bias.to(compute)
        if residual is not None and residual.dtype is not compute:
            residual = residual.to(compute)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = functional.pad(x, self._pads(), self.padding_mode)
            padding = (0,) * self.dims
        elif padding == "valid":
            padding = (0,) * self.dims
        if is_watched(x, values, bias, residual):
            shape = (self.out_channels, self.in_channels, *self.kernel_size)
            y: torch.Tensor
            if is_transformed():
                size = shape[0], math.prod(shape[1:])
                weights = from_matrix(scattered(values, structure, size, compute), shape)
                product = functional.conv1d if self.dims == 1 else functional.conv2d
                y = product(x, weights, bias, self.stride, padding, self.dilation)
                y = finished(y, residual, activation)
            else:
                pads = () if isinstance(padding, str) else padding
                how = named(activation)
                y = operators.convolve(
                    x,
                    values,
                    structure,
                    shape,
                    self.stride,
                    pads,
                    self.dilation,
                    bias,
                    residual,
                    *how,
                )
        else:
            self._check(x)
            matrix = matrix_of(values, structure)
            y = operators.convolution(
                matrix, x, bias, self.stride, padding, self.dilation, activation, residual
            )
        return y if given is compute else y.to(given)

    def _pads(self) -> list[int]:
        """What `torch.nn.functional.pad` takes: before and behind, the last dimension first."""
        pads = []
        for dim in reversed(range(self.dims)):
            if self.padding == "same":
                both = self.dilation[dim] * (self.kernel_size[dim] - 1)
                pads += [both // 2, both - both // 2]
            else:
                each = 0 if isinstance(self.padding, str) else self.padding[dim]
                pads += [each, each]
        return pads

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )


class GSConv1d(GSConv):
    """`torch.nn.Conv1d` with a compact weight, on the CPU; parameters are those of `GSConv`."""

    dense, dims = nn.Conv1d, 1


class GSConv2d(GSConv):
    """`torch.nn.Conv2d` with a compact weight, on the CPU; parameters are those of `GSConv`."""

    dense, dims = nn.Conv2d, 2
