"""LSTM and GRU layers for inference that hold compact matrices: torch's own, but for the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from gspattern import recurrent
from gspattern.matrices import Matrix, encode
from gspattern.patterns import Block, Pattern
from gspattern.recurrent import GRU, LSTM, Cell, check_params, parameter_name
from gspattern.torch.modules import (
    Compact,
    cast_matrix,
    compute_dtype,
    encode_weight,
    matrix_of,
    state_of,
    tensor_of,
    trainable,
    use_torch_threads,
)
from gspattern.torch.targets import ATTRIBUTE, PrunedWeight, carried, weights_of

# How a weight that keeps all its elements is laid out: blocks that fill registers in every kernel.
FULL = Block(4, 16)

Params = Sequence["Matrix | torch.Tensor | None"]
# h and c of an LSTM, h of a GRU.
State = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
R = TypeVar("R", bound="GSRecurrent")


class GSRecurrent(Compact):
    """What the recurrent layers share: `matrices` by the names of torch's parameters, and biases as buffers.

    The state_dict holds the biases and, as extra state, the arrays of the matrices.
    """

    dense: ClassVar[type[nn.Module]]
    cell: ClassVar[Cell]

    def __init__(self, params: Params, directions: int) -> None:
        super().__init__()
        self._compute = next(
            (compute_dtype(m) for m in params if isinstance(m, Matrix)), torch.float32
        )
        arrays = [
            value.detach().to("cpu", self._compute).numpy()
            if isinstance(value, torch.Tensor)
            else value
            for value in params
        ]
        checked = check_params(arrays, self.cell, directions)
        self.input_size, self.hidden_size = checked.features, checked.hidden
        self.bias = any(bias is not None for bias in checked.biases)
        self.matrices: dict[str, Matrix] = {}
        self._names: list[str] = []  # of all parameters, in torch's order
        for i in range(len(checked.matrices) // 2):
            for j, kind in enumerate(("weight_ih", "weight_hh")):
                name = self._name(kind, i, directions)
                self.matrices[name] = checked.matrices[2 * i + j]
                self._names.append(name)
            for j, kind in enumerate(("bias_ih", "bias_hh")):
                name, bias = self._name(kind, i, directions), checked.biases[2 * i + j]
                self.register_buffer(name, None if bias is None else tensor_of(bias))
                self._names.append(name)

    @staticmethod
    def _name(kind: str, index: int, directions: int) -> str:
        return parameter_name(kind, index, directions)

    @property
    def weights(self) -> dict[str, Matrix]:
        return self.matrices

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
        return cls._from(layer, params)

    @classmethod
    def _from(cls: type[R], layer: nn.Module, params: Params) -> R:
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The same layer as a dense one of torch that can be trained and knows its masks."""
        layer = self._dense()
        notes = {}
        for name in _names(layer):
            if name in self.matrices:
                matrix = self.matrices[name]
                value = tensor_of(trainable(matrix))
                mask = matrix.mask()
                if not mask.all():
                    notes[name] = PrunedWeight(matrix.pattern, mask, matrix.row_order)
            else:
                bias = self._buffers[name]
                value = torch.zeros_like(getattr(layer, name)) if bias is None else bias.clone()
            setattr(layer, name, nn.Parameter(value))
        if notes:
            setattr(layer, ATTRIBUTE, notes)
        return layer

    def _dense(self) -> nn.Module:
        raise NotImplementedError

    def _arrays(self) -> list[Matrix | npt.NDArray[Any] | None]:
        """All parameters as `gspattern.lstm` takes them."""
        arrays: list[Matrix | npt.NDArray[Any] | None] = []
        for name in self._names:
            if name in self.matrices:
                arrays.append(self.matrices[name])
            else:
                bias = self._buffers[name]
                arrays.append(None if bias is None else bias.to(self._compute).numpy())
        return arrays

    def _array(self, x: torch.Tensor) -> npt.NDArray[Any]:
        self._check(x)
        return x.detach().to(self._compute).numpy()

    def _state(self, hx: State | None, order: torch.Tensor | None = None) -> Any:
        """States as arrays, sequences in this order."""
        if hx is None:
            return None
        if isinstance(hx, tuple | list):
            return tuple(self._state(part, order) for part in hx)
        return self._array(hx if order is None else hx.index_select(1, order))

    def extra_repr(self) -> str:
        first = next(iter(self.matrices.values()))
        patterns = sorted({str(matrix.pattern) for matrix in self.matrices.values()})
        return (
            f"{self.input_size}, {self.hidden_size}, bias={self.bias}, pattern={', '.join(patterns)}, "
            f"dtype={first.dtype}, nnz={sum(matrix.nnz for matrix in self.matrices.values())}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {name: state_of(matrix) for name, matrix in self.matrices.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if set(state) != set(self.matrices):
            raise ValueError(f"this layer has {list(self.matrices)}, the state {list(state)}")
        self.matrices = {
            name: matrix_of(state[name], matrix) for name, matrix in self.matrices.items()
        }
        self._compute = compute_dtype(next(iter(self.matrices.values())))


class _Stack(GSRecurrent):
    """Layers that go through whole sequences."""

    def __init__(
        self, params: Params, bidirectional: bool = False, batch_first: bool = False
    ) -> None:
        super().__init__(params, 2 if bidirectional else 1)
        self.bidirectional, self.batch_first = bidirectional, batch_first
        self.num_layers = len(self.matrices) // (4 if bidirectional else 2)

    @classmethod
    def _from(cls: type[R], layer: nn.Module, params: Params) -> R:
        assert isinstance(layer, nn.RNNBase)
        return cls(params, layer.bidirectional, layer.batch_first)  # type: ignore[call-arg]

    def _dense(self) -> nn.Module:
        return self.dense(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias,
            batch_first=self.batch_first, bidirectional=self.bidirectional,
        )  # fmt: skip

    def _run(self, x: torch.Tensor, hx: Any, **options: Any) -> tuple[Any, ...]:
        """The output and the states, as tensors."""
        function: Any = recurrent.lstm if self.cell is LSTM else recurrent.gru
        params, both = self._arrays(), self.bidirectional
        output, state = function(self._array(x), params, hx, bidirectional=both, **options)
        states = state if isinstance(state, tuple) else (state,)
        return tuple(torch.from_numpy(array).to(x.dtype) for array in (output, *states))

    def _sequence(self, x: torch.Tensor | PackedSequence, hx: State | None) -> Any:
        use_torch_threads()
        if isinstance(x, PackedSequence):
            hx = self._state(hx, x.sorted_indices)
            data, *states = self._run(x.data, hx, batch_sizes=x.batch_sizes.numpy())
            order = x.unsorted_indices
            y: Any = PackedSequence(data, x.batch_sizes, x.sorted_indices, order)
            if order is not None:
                states = [state.index_select(1, order) for state in states]
        else:
            y, *states = self._run(x, self._state(hx), batch_first=self.batch_first)
        return y, tuple(states) if self.cell is LSTM else states[0]


class GSLSTM(_Stack):
    """`torch.nn.LSTM` with compact weights, for inference on the CPU.

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
    matrices : dict of str to Matrix
        By the names of torch's parameters, weight_ih_l0 and so on.
    """

    dense, cell = nn.LSTM, LSTM

    def forward(
        self, input: torch.Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[torch.Tensor | PackedSequence, tuple[torch.Tensor, torch.Tensor]]:
        """Run the sequences; returns the output and (h_n, c_n), as `torch.nn.LSTM`."""
        result: tuple[torch.Tensor | PackedSequence, tuple[torch.Tensor, torch.Tensor]] = (
            self._call(self._sequence, input, hx)
        )
        return result


class GSGRU(_Stack):
    """`torch.nn.GRU` with compact weights, for inference on the CPU: see `GSLSTM`."""

    dense, cell = nn.GRU, GRU

    def forward(
        self, input: torch.Tensor | PackedSequence, hx: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | PackedSequence, torch.Tensor]:
        """Run the sequences; returns the output and h_n, as `torch.nn.GRU`."""
        result: tuple[torch.Tensor | PackedSequence, torch.Tensor] = self._call(
            self._sequence, input, hx
        )
        return result


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

    def _step(self, x: torch.Tensor, hx: State | None) -> Any:
        use_torch_threads()
        function: Any = recurrent.lstm_cell if self.cell is LSTM else recurrent.gru_cell
        state = function(self._array(x), self._state(hx), *self._arrays())
        if isinstance(state, tuple):
            return tuple(torch.from_numpy(part).to(x.dtype) for part in state)
        return torch.from_numpy(state).to(x.dtype)


class GSLSTMCell(_Cell):
    """`torch.nn.LSTMCell` with compact weights, for inference on the CPU: see `GSLSTM`."""

    dense, cell = nn.LSTMCell, LSTM

    def forward(
        self, input: torch.Tensor, hx: State | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step; returns (h, c), as `torch.nn.LSTMCell`."""
        result: tuple[torch.Tensor, torch.Tensor] = self._call(self._step, input, hx)
        return result


class GSGRUCell(_Cell):
    """`torch.nn.GRUCell` with compact weights, for inference on the CPU: see `GSLSTM`."""

    dense, cell = nn.GRUCell, GRU

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        """Do one step; returns h, as `torch.nn.GRUCell`."""
        result: torch.Tensor = self._call(self._step, input, hx)
        return result


def _names(layer: nn.Module) -> list[str]:
    """The parameters of a layer of torch in its own order, biases that it lacks left out."""
    return [name for name, value in layer._parameters.items() if value is not None]


def _full(weight: torch.Tensor, dtype: str | None) -> Matrix:
    """A weight with all its elements."""
    wide = weight.dtype == torch.float64
    array = weight.detach().to("cpu", torch.float64 if wide else torch.float32).numpy()
    matrix = encode(np.ascontiguousarray(array), FULL, mask=np.ones(array.shape, np.bool_))
    return cast_matrix(matrix, dtype or str(weight.dtype).removeprefix("torch."))
