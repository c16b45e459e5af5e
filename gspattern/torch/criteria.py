"""What makes a weight worth keeping: criteria give every weight a score, and masks keep the largest sums.

A criterion is any callable of (name, weight, context) that returns scores, finite and >= 0, in the weight's
shape. `weight` holds the values that masks have dropped as well, as far as they are known. Those here that
learn from gradients or inputs do it while the model trains, and the `Pruner` saves what they have learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from gspattern.torch.targets import Target

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Context:
    """What a criterion may want to know besides the weight.

    Attributes
    ----------
    module : Module
        The layer that the weight belongs to.
    attribute : str
        The weight's name in the layer.
    gradient : Tensor or None
        The gradient of the parameter as it stands now, in the weight's shape.
    step : int
        Steps of the `Pruner` so far.
    """

    module: nn.Module
    attribute: str
    gradient: torch.Tensor | None
    step: int


Criterion = Callable[[str, torch.Tensor, Context], torch.Tensor]


class Magnitude:
    """|w|: the usual criterion, which needs no data."""

    def __call__(self, name: str, weight: torch.Tensor, context: Context) -> torch.Tensor:
        return weight.abs()


class _FromGradients:
    """A criterion that sums up something of weight and gradient before every step of the optimiser."""

    def __init__(self) -> None:
        self._sums: State = {}

    def _of(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _add(self, total: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        return new if total is None else total + new

    def observe(self, name: str, weight: torch.Tensor, context: Context) -> None:
        """Learn from a gradient; the `Pruner` calls it before every step of its optimizer."""
        if context.gradient is not None:
            new = self._of(weight, context.gradient.to(weight.dtype))
            self._sums[name] = self._add(self._sums.get(name), new)

    def _sum(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        total = self._sums.get(name)
        if total is None:
            raise RuntimeError(
                f"{type(self).__name__} has seen no gradient of {name}: call loss.backward() on some batches "
                "before the Pruner is made, or give it optimizer= and a schedule that starts after step 0"
            )
        return total.to(weight.device)

    def state_dict(self) -> State:
        """The sums, by the names of the weights."""
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._sums = {name: total.clone() for name, total in state.items()}


class Taylor(_FromGradients):
    """|w * g|, the change of the loss to first order if the weight became zero; g is a mean over steps.

    Parameters
    ----------
    decay : float
        In [0, 1): what an earlier gradient counts for with every further step.

    References
    ----------
    P. Molchanov et al.: Importance estimation for neural network pruning. arXiv 1906.10771, 2019.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay

    def _of(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    def _add(self, total: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        return new if total is None else total.lerp(new, 1 - self.decay)

    def __call__(self, name: str, weight: torch.Tensor, context: Context) -> torch.Tensor:
        return (weight * self._sum(name, weight)).abs()


class Snip(_FromGradients):
    """|w * g| with the sum of the gradients of the first batches: prunes once, before training.

    References
    ----------
    N. Lee et al.: SNIP: single-shot network pruning based on connection sensitivity. arXiv 1810.02340, 2018.
    """

    def _of(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    def __call__(self, name: str, weight: torch.Tensor, context: Context) -> torch.Tensor:
        return (weight * self._sum(name, weight)).abs()


class Movement(_FromGradients):
    """-sum of w * g over the steps: weights that training moves away from zero are kept.

    The sums have signs; as masks of one matrix keep a fixed number of weights, its least sum is taken from
    all of them.

    References
    ----------
    V. Sanh et al.: Movement pruning: adaptive sparsity by fine-tuning. arXiv 2005.07683, 2020.
    """

    def _of(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return -weight * gradient

    def __call__(self, name: str, weight: torch.Tensor, context: Context) -> torch.Tensor:
        total = self._sum(name, weight)
        return total - total.min()


class Wanda:
    """|w| * the norm of the input that it is multiplied by.

    Norms are gathered by hooks on linear, convolution, LSTM and GRU layers and their cells, as the model is
    called: on `data` when the `Pruner` is made, and then in training for as long as masks may change. The
    layers inside an LSTM or GRU are run once more for it, without dropout, since torch shows the outputs of
    the last one only; the inputs of a recurrent weight are those outputs, shifted by a step. Weights of
    attention are scored as if their inputs had equal norms.

    Parameters
    ----------
    data : iterable, optional
        What the model is called with, one after the other: a tensor, a tuple of arguments, or a dict of keywords.
        Needed for pruning at once.

    References
    ----------
    M. Sun et al.: A simple and effective pruning approach for large language models. arXiv 2306.11695, 2023.
    """

    def __init__(self, data: Iterable[Any] | None = None) -> None:
        self._data = data
        self._squares: State = {}
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Begin to gather norms; runs the model on `data` first."""
        names: dict[nn.Module, dict[str, str]] = {}
        for target in targets:
            module, attribute = target.owners[0]
            names.setdefault(module, {})[attribute] = target.name
        for module, attributes in names.items():
            gather = _gatherer(module)
            if gather is not None:
                self._handles.append(
                    module.register_forward_hook(
                        self._hook(gather, attributes), with_kwargs=True, always_call=False
                    )
                )
        if self._data is not None:
            training = {module: module.training for module in model.modules()}
            model.eval()
            try:
                with torch.no_grad():
                    for batch in self._data:
                        if isinstance(batch, Mapping):
                            model(**batch)
                        else:
                            model(*batch) if isinstance(batch, tuple) else model(batch)
            finally:
                for module, mode in training.items():
                    module.training = mode
            self._data = None

    def detach(self) -> None:
        """Stop to gather norms."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, gather: Any, names: Mapping[str, str]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with torch.no_grad():
                for attribute, squares in gather(module, args, kwargs, names):
                    name = names[attribute]
                    known = self._squares.get(name)
                    self._squares[name] = squares if known is None else known + squares

        return hook

    def __call__(self, name: str, weight: torch.Tensor, context: Context) -> torch.Tensor:
        squares = self._squares.get(name)
        if squares is None:
            if _gatherer(context.module) is None:
                return weight.abs()
            raise RuntimeError(
                f"Wanda has seen no input of {name}: give it data, Wanda([batch, ...]), or a schedule that "
                "starts after step 0"
            )
        shape = weight.shape[1:]
        return weight.abs() * squares.to(weight.device, weight.dtype).sqrt().reshape(shape)

    def state_dict(self) -> State:
        """Sums of squared inputs, by the names of the weights."""
        return {name: squares.clone() for name, squares in self._squares.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._squares = {name: squares.clone() for name, squares in state.items()}
        self._data = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Wanda:
        twin = Wanda()
        twin._data, twin._squares = self._data, copy.deepcopy(self._squares, memo)
        return twin


CRITERIA: dict[str, Callable[[], Criterion]] = {
    "magnitude": Magnitude,
    "taylor": Taylor,
    "snip": Snip,
    "movement": Movement,
    "wanda": Wanda,
}


def criterion_of(given: str | Criterion) -> Criterion:
    """A criterion by its name, or the callable itself."""
    if isinstance(given, str) and given in CRITERIA:
        return CRITERIA[given]()
    if callable(given) and not isinstance(given, type):
        return given
    raise ValueError(
        f"criterion must be one of {', '.join(map(repr, CRITERIA))}, or a function of (name, weight, context) "
        f"that returns scores, got {given!r}"
    )


# ------------------------------------------------------------------ inputs of layers


def _squares(x: torch.Tensor) -> torch.Tensor:
    """Sums of squares over all but the last dimension, in float32 at least."""
    x = x.detach().reshape(-1, x.shape[-1])
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=0)


def _gatherer(module: nn.Module) -> Any:
    """What finds the squared inputs of a layer's weights, None for layers that nothing is known of."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # attention reads its weight and never calls it
    if isinstance(module, nn.Linear):
        return _of_linear
    if isinstance(module, _ConvNd):
        return _of_convolution
    if isinstance(module, nn.RNNBase):
        return _of_recurrent
    if isinstance(module, nn.RNNCellBase):
        return _of_cell
    return None


def _first(args: Sequence[Any], kwargs: Mapping[str, Any], position: int = 0) -> Any:
    if len(args) > position:
        return args[position]
    return kwargs.get(("input", "hx")[position])


def _of_linear(module: nn.Linear, args: Any, kwargs: Any, names: Any) -> Any:
    yield "weight", _squares(_first(args, kwargs))


def _of_convolution(module: _ConvNd, args: Any, kwargs: Any, names: Any) -> Any:
    """Sums over the windows of the input, for every channel and tap: a convolution of the squares with ones."""
    x = _first(args, kwargs).detach()
    dims = len(module.kernel_size)
    x = x.to(torch.promote_types(x.dtype, torch.float32)).square()
    if x.ndim == dims + 1:
        x = x.unsqueeze(0)
    pad = list(module._reversed_padding_repeated_twice)
    x = functional.pad(
        x, pad, "constant" if module.padding_mode == "zeros" else module.padding_mode
    )
    channels = x.sum(dim=0).unsqueeze(1)  # [Ci, 1, ...]: every channel is a sample
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    outputs = [
        (size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, module.stride, strict=True)
    ]
    ones = channels.new_ones(1, 1, *outputs)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
    taps = convolve(channels, ones, stride=module.dilation, dilation=module.stride)
    for dim, size in enumerate(module.kernel_size):
        taps = taps.narrow(dim + 2, 0, size)
    yield "weight", taps.squeeze(1)


def _of_cell(module: nn.RNNCellBase, args: Any, kwargs: Any, names: Any) -> Any:
    x, state = _first(args, kwargs), _first(args, kwargs, 1)
    if "weight_ih" in names:
        yield "weight_ih", _squares(x)
    if "weight_hh" in names and state is not None:
        yield "weight_hh", _squares(state[0] if isinstance(state, tuple) else state)


def _of_recurrent(module: nn.RNNBase, args: Any, kwargs: Any, names: Any) -> Any:
    """Runs the layers one by one, since torch shows the outputs of the last only."""
    x, state = _first(args, kwargs), _first(args, kwargs, 1)
    lengths = None
    if isinstance(x, nn.utils.rnn.PackedSequence):
        x, lengths = nn.utils.rnn.pad_packed_sequence(x, module.batch_first)
        if state is not None and not isinstance(state, tuple):
            state = (state,)
    elif state is not None and not isinstance(state, tuple):
        state = (state,)
    if x.ndim == 2:  # no batch
        x = x.unsqueeze(0 if module.batch_first else 1)
        state = None if state is None else tuple(s.unsqueeze(1) for s in state)
    if module.batch_first:
        x = x.transpose(0, 1)
    directions = 2 if module.bidirectional else 1
    options: dict[str, Any] = {"proj_size": module.proj_size} if module.proj_size else {}
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            single = type(module)(
                x.shape[-1], module.hidden_size, bias=module.bias, device="meta", dtype=x.dtype, **options
            )  # fmt: skip
            own = {
                name.replace(f"_l{layer}", "_l0").removesuffix("_reverse"): parameter.detach()
                for name, parameter in module._parameters.items()
                if parameter is not None and name.endswith(suffix)
            }
            at = layer * directions + direction
            start = None if state is None else tuple(s[at : at + 1].contiguous() for s in state)
            hx = None if start is None else start[0] if len(start) == 1 else start
            run = _reverse(x, lengths) if direction else x
            if lengths is not None:
                run = nn.utils.rnn.pack_padded_sequence(run, lengths, enforce_sorted=False)
            y, _ = torch.func.functional_call(single, own, (run, hx))
            if lengths is not None:
                y, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])
            if f"weight_ih{suffix}" in names:
                yield f"weight_ih{suffix}", _squares(x)
            if f"weight_hh{suffix}" in names:
                before = _used(y[:-1], lengths)
                squares = _squares(before)
                yield (
                    f"weight_hh{suffix}",
                    squares if start is None else squares + _squares(start[0]),
                )
            outputs.append(_reverse(y, lengths) if direction else y)
        x = torch.cat(outputs, dim=-1)


def _reverse(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Sequences [T, batch, ...] from their ends on; what lies behind them stays behind."""
    if lengths is None:
        return x.flip(0)
    return torch.cat(
        [
            torch.cat([x[: int(n), b : b + 1].flip(0), x[int(n) :, b : b + 1]])
            for b, n in enumerate(lengths)
        ],
        dim=1,
    )


def _used(y: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Outputs [T - 1, batch, ...] that a further step has as its input: zeros elsewhere."""
    if lengths is None:
        return y
    steps = torch.arange(y.shape[0], device=y.device)
    used = steps[:, None] < (lengths.to(y.device) - 1)[None, :]
    return y * used[..., None]
