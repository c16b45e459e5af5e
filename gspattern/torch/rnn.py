"""LSTM and GRU layers that hold compact matrices: torch's own, but for the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from gspattern.matrices import Matrix, encode
from gspattern.patterns import Block, Pattern
from gspattern.recurrent import GRU, LSTM, Cell, check_params, parameter_name
from gspattern.torch import operators
from gspattern.torch.modules import (
    Compact,
    CompactWeight,
    autocast,
    bias_of,
    cast_matrix,
    encode_weight,
)
from gspattern.torch.operators import is_transformed, is_watched
from gspattern.torch.targets import ATTRIBUTE, PrunedWeight, carried, weights_of

# How a weight that keeps all its elements is laid out: blocks that fill registers in every kernel.
FULL = Block(4, 16)

Params = Sequence["Matrix | torch.Tensor | None"]
# h and c of an LSTM, h of a GRU.
State = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
R = TypeVar("R", bound="GSRecurrent")


class GSRecurrent(Compact):
    """What the recurrent layers share: weights and biases by the names of torch's parameters.

    A weight is a `CompactWeight`, so that the state_dict holds weight_ih_l0.values, weight_ih_l0.structure and so on.
    """

    dense: ClassVar[type[nn.Module]]
    cell: ClassVar[Cell]

    def __init__(self, params: Params, directions: int) -> None:
        super().__init__()
        first = next((m for m in params if isinstance(m, Matrix)), None)
        dtype = np.float64 if first is not None and first.dtype == np.float64 else np.float32
        arrays = [
            value.detach().to("cpu", torch.float64).numpy().astype(dtype)
            if isinstance(value, torch.Tensor)
            else value
            for value in params
        ]
        checked = check_params(arrays, self.cell, directions)
        self.input_size, self.hidden_size = checked.features, checked.hidden
        self.bias = any(bias is not None for bias in checked.biases)
        self._weights: list[str] = []  # names, two for each layer and direction
        self._biases: list[str] = []
        for i in range(len(checked.matrices)):
            kinds = ("weight_ih", "bias_ih"), ("weight_hh", "bias_hh")
            weight, bias = (self._name(kind, i // 2, directions) for kind in kinds[i % 2])
            self.add_module(weight, CompactWeight(checked.matrices[i]))
            addend = checked.biases[i]
            given = None if addend is None else torch.from_numpy(addend)
            self.register_parameter(bias, bias_of(given, checked.matrices[i]))
            self._weights.append(weight)
            self._biases.append(bias)

    @staticmethod
    def _name(kind: str, index: int, directions: int) -> str:
        return parameter_name(kind, index, directions)

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Copies of the matrices, as they are now, by the names of torch's parameters."""
        return self.weights

    @classmethod
    def from_module(
        cls: type[R],
        layer: nn.Module,
        pattern: str | Pattern | Mapping[str, Pattern | None] | None = None,
        dtype: str | None = None,
    ) -> R:
        """The compact form of a pruned layer.

        Parameters
        ----------
        layer : Module
            torch's layer of the same kind, pruned by `Pruner` or `prune_`, or by anything else if `pattern` is
            given: then nonzeros are kept, and with them the fewest zeros that make the mask valid.
        pattern : str, Pattern, or dict of parameter name to Pattern, optional
            For weights that do not carry their own. Weights that have none, nor carry one, keep all elements.
        dtype : str, optional
            "float32", "float64", "float16", "bfloat16" or "int8"; None for that of the layer.

        Raises
        ------
        TypeError
            If the layer is of another kind.
        ValueError
            If no weight has a pattern, weights outside a mask are not zero, or the layer has projections.
        """
        if not isinstance(layer, cls.dense):
            raise TypeError(
                f"{cls.__name__} is made from torch.nn.{cls.dense.__name__}, got {type(layer).__name__}"
            )
        names = weights_of(layer)
        if getattr(layer, "proj_size", 0):
            raise ValueError("recurrent layers with projections (proj_size) stay dense")
        given = pattern if isinstance(pattern, Mapping) else dict.fromkeys(names, pattern)
        known = carried(layer)
        if not any(name in known or given.get(name) is not None for name in names):
            raise ValueError(
                "this layer was not pruned by a Pruner: give the pattern of its zeros, "
                'pattern="gs(16,16)" or pattern="irregular"'
            )
        params: list[Matrix | torch.Tensor | None] = []
        for name in _names(layer):
            if name not in names:
                params.append(getattr(layer, name))
            elif name in known or given.get(name) is not None:
                own = None if name in known else given[name]
                params.append(encode_weight(layer, name, own, dtype))
            else:
                params.append(_full(getattr(layer, name), dtype))
        compact = cls._from(layer, params)
        compact.dense_dtype = getattr(layer, names[0]).dtype
        return compact

    @classmethod
    def _from(cls: type[R], layer: nn.Module, params: Params) -> R:
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The same layer as a dense one of torch that can be trained and knows its masks."""
        layer = self._dense()
        notes = {}
        matrices = self.matrices
        for name in _names(layer):
            if name in matrices:
                matrix = matrices[name]
                value = self._dense_weight(matrix)
                mask = matrix.mask()
                if not mask.all():
                    notes[name] = PrunedWeight(matrix.pattern, mask, matrix.row_order)
            else:
                bias = self._parameters[name]
                zeros = torch.zeros_like(getattr(layer, name))
                value = zeros if bias is None else bias.detach().clone()
                value = value if self.dense_dtype is None else value.to(self.dense_dtype)
            setattr(layer, name, nn.Parameter(value))
        if notes:
            setattr(layer, ATTRIBUTE, notes)
        return layer

    def _dense(self) -> nn.Module:
        raise NotImplementedError

    def _recur(
        self, x: torch.Tensor, hx: Sequence[torch.Tensor], batch_sizes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The output and the states behind the last step, from x [T, N, features] or a packed one."""
        weights: list[Any] = [self._modules[name] for name in self._weights]
        values = [weight._parameters["values"] for weight in weights]
        structures = [weight._buffers["structure"] for weight in weights]
        given = x.dtype
        compute = torch.float64 if values[0].dtype is torch.float64 else torch.float32
        biases: list[torch.Tensor] = []
        for name in self._biases if self.bias else ():
            bias = self._parameters[name]
            biases.append(torch.empty(0, dtype=compute) if bias is None else _as(bias, compute))
        x = _as(x, compute)
        states = [_as(state, compute) for state in hx]
        if is_watched(x, *states, *values, *biases):
            if batch_sizes is not None and not states:
                shape = len(weights) // 2, int(batch_sizes[0]), self.hidden_size
                states = [x.new_zeros(shape) for _ in range(2 if self.cell is LSTM else 1)]
            run: Any = operators.recur_by_torch if is_transformed() else operators.recur
        else:
            self._check(x)
            run = operators.recurrence
        h_0, c_0 = (*states, None, None)[:2]
        cell = "lstm" if self.cell is LSTM else "gru"
        how = cell, self.hidden_size, getattr(self, "bidirectional", False)
        y, h_n, c_n = run(x, values, structures, biases, h_0, c_0, batch_sizes, *how)
        results = (y, h_n, c_n) if self.cell is LSTM else (y, h_n)
        return tuple(_as(result, given) for result in results)

    def _states(self, hx: Any) -> tuple[torch.Tensor, ...]:
        """The states that were given: two, one or none."""
        if hx is None:
            return ()
        if self.cell is GRU:
            return (hx,)
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            raise TypeError("hx must be a pair (h_0, c_0)")
        return tuple(hx)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class _Stack(GSRecurrent):
    """Layers that go through whole sequences."""

    def __init__(
        self, params: Params, bidirectional: bool = False, batch_first: bool = False
    ) -> None:
        super().__init__(params, 2 if bidirectional else 1)
        self.bidirectional, self.batch_first = bidirectional, batch_first
        self.num_layers = len(self._weights) // (4 if bidirectional else 2)

    @classmethod
    def _from(cls: type[R], layer: nn.Module, params: Params) -> R:
        assert isinstance(layer, nn.RNNBase)
        return cls(params, layer.bidirectional, layer.batch_first)  # type: ignore[call-arg]

    def _dense(self) -> nn.Module:
        return self.dense(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias,
            batch_first=self.batch_first, bidirectional=self.bidirectional,
        )  # fmt: skip

    def _sequence(self, x: torch.Tensor | PackedSequence, hx: State | None) -> Any:
        states = self._states(hx)
        y: Any
        if isinstance(x, PackedSequence):
            order = x.sorted_indices
            if order is not None:
                states = tuple(state.index_select(1, order) for state in states)
            data, *states_n = self._recur(autocast(x.data), states, x.batch_sizes)
            order = x.unsorted_indices
            if order is not None:
                states_n = [state.index_select(1, order) for state in states_n]
            y = PackedSequence(data, x.batch_sizes, x.sorted_indices, order)
        else:
            x = autocast(x)
            if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
                leading = "batch, steps" if self.batch_first else "steps, batch"
                raise ValueError(
                    f"x must have shape [{leading}, {self.input_size}], got {list(x.shape)}"
                )
            single = x.dim() == 2
            if single:
                x, states = x.unsqueeze(1), tuple(state.unsqueeze(1) for state in states)
            elif self.batch_first:
                x = x.transpose(0, 1)
            y, *states_n = self._recur(x, states)
            if single:
                y, states_n = y.squeeze(1), [state.squeeze(1) for state in states_n]
            elif self.batch_first:
                y = y.transpose(0, 1)
        return y, tuple(states_n) if self.cell is LSTM else states_n[0]


class GSLSTM(_Stack):
    """`torch.nn.LSTM` with compact weights, on the CPU.

    It is called in the same way, packed sequences and all, and gives the same; there is no dropout between layers.
    Inputs other than float32 (float64 for float64 matrices) are converted, and outputs have the type of the input.

    Parameters
    ----------
    params : sequence of Matrix or Tensor
        For every layer, and in it for every direction: weight_ih, weight_hh and, if there are biases, bias_ih, bias_hh.
    bidirectional, batch_first : bool
        As for `torch.nn.LSTM`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, ... : CompactWeight
    bias_ih_l0, ... : Parameter, or None
    """

    dense, cell = nn.LSTM, LSTM

    def forward(
        self, input: torch.Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[torch.Tensor | PackedSequence, tuple[torch.Tensor, torch.Tensor]]:
        """Run the sequences; returns the output and (h_n, c_n), as `torch.nn.LSTM`."""
        return self._sequence(input, hx)  # type: ignore[no-any-return]


class GSGRU(_Stack):
    """`torch.nn.GRU` with compact weights, on the CPU: see `GSLSTM`."""

    dense, cell = nn.GRU, GRU

    def forward(
        self, input: torch.Tensor | PackedSequence, hx: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | PackedSequence, torch.Tensor]:
        """Run the sequences; returns the output and h_n, as `torch.nn.GRU`."""
        return self._sequence(input, hx)  # type: ignore[no-any-return]


class _Cell(GSRecurrent):
    """One step of one layer."""

    def __init__(self, params: Params) -> None:
        count = sum(isinstance(value, Matrix) for value in params)
        if count > 2:
            raise ValueError(f"a cell has 2 matrices, got {count}")
        super().__init__(params, 1)

    @staticmethod
    def _name(kind: str, index: int, directions: int) -> str:
        return kind

    @classmethod
    def _from(cls: type[R], layer: nn.Module, params: Params) -> R:
        return cls(params)  # type: ignore[call-arg]

    def _dense(self) -> nn.Module:
        return self.dense(self.input_size, self.hidden_size, bias=self.bias)

    def _step(self, x: torch.Tensor, hx: State | None) -> tuple[torch.Tensor, ...]:
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"x must have shape [batch, {self.input_size}] or [{self.input_size}], got {list(x.shape)}"
            )
        states = self._states(hx)
        batched = x.dim() == 2
        if not batched:
            x, states = x.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
        _, *after = self._recur(x.unsqueeze(0), [state.unsqueeze(0) for state in states])
        after = [state.squeeze(0) for state in after]
        return tuple(after) if batched else tuple(state.squeeze(0) for state in after)


class GSLSTMCell(_Cell):
    """`torch.nn.LSTMCell` with compact weights, on the CPU: see `GSLSTM`."""

    dense, cell = nn.LSTMCell, LSTM

    def forward(
        self, input: torch.Tensor, hx: State | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step; returns (h, c), as `torch.nn.LSTMCell`."""
        h, c = self._step(input, hx)
        return h, c


class GSGRUCell(_Cell):
    """`torch.nn.GRUCell` with compact weights, on the CPU: see `GSLSTM`."""

    dense, cell = nn.GRUCell, GRU

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        """Do one step; returns h, as `torch.nn.GRUCell`."""
        return self._step(input, hx)[0]


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A step of a small cell takes no longer than a few conversions that change nothing.
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _names(layer: nn.Module) -> list[str]:
    """The parameters of a layer of torch in its own order, biases that it lacks left out."""
    return [name for name, value in layer._parameters.items() if value is not None]


def _full(weight: torch.Tensor, dtype: str | None) -> Matrix:
    """A weight with all its elements."""
    wide = weight.dtype == torch.float64
    array = weight.detach().to("cpu", torch.float64 if wide else torch.float32).numpy()
    matrix = encode(np.ascontiguousarray(array), FULL, mask=np.ones(array.shape, np.bool_))
    return cast_matrix(matrix, dtype or str(weight.dtype).removeprefix("torch."))
