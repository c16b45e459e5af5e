"""Dense libraries that run an LSTM over a sequence: as they offer it, and as a loop over their products.

Gates come in torch's order (input, forget, cell, output), and others have theirs. The first state is not zero, so that
nothing of the first step can be left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gspattern.bench.layers import Floats, Peers, Product
from gspattern.bench.libraries import OnnxGraphs, OpenVinoModels, load_torch, only
from gspattern.bench.shapes import LSTMShape

__all__ = ["PEERS", "Inputs", "Weights"]


class Weights(NamedTuple):
    """Of one layer in one direction, float32: [4 H, features], [4 H, H] and [4 H] for the sum of both biases."""

    inputs: Floats
    hidden: Floats
    bias: Floats

    def ordered(self, order: str) -> tuple[Floats, Floats, Floats]:
        """With the gates in this order, such as "ifco"."""
        size = len(self.bias) // 4
        places = ["ifco".index(gate) * size for gate in order]
        rows = np.concatenate([np.arange(place, place + size) for place in places])
        return self.inputs[rows], self.hidden[rows], self.bias[rows]


class Inputs(NamedTuple):
    """x [T, N, features], and the states h and c before the first step [N, H]."""

    x: Floats
    h: Floats
    c: Floats


class Torch:
    """nn.LSTM, and a loop over steps with oneDNN's product of weights that are packed."""

    title = "PyTorch"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no LSTM of PyTorch")
        self.torch = load_torch(threads)

    def prepare(self, weights: Weights, shape: LSTMShape) -> Any:
        torch = self.torch
        module = torch.nn.LSTM(shape.inputs, shape.hidden).requires_grad_(False)
        values = (weights.inputs, weights.hidden, weights.bias, np.zeros_like(weights.bias))
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(value))
        return module

    def products(self, prepared: Any, x: Inputs) -> list[Product]:
        torch, module = self.torch, prepared
        sequence, h, c = (torch.from_numpy(each) for each in x)
        state = (h[None], c[None])

        def call() -> Any:
            with torch.inference_mode():
                return module(sequence, state)[0]

        found = [Product("nn.LSTM", call, lambda y: y.numpy())]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            found.append(self._loop(module, sequence, h, c))
        return found

    def _loop(self, module: Any, x: Any, h0: Any, c0: Any) -> Product:
        torch, operations = self.torch, self.torch.ops.mkldnn
        steps, batch, features = x.shape
        hidden, product = h0.shape[1], operations._linear_pointwise
        inputs = operations._reorder_linear_weight(module.weight_ih_l0.data, steps * batch)
        recurrent = operations._reorder_linear_weight(module.weight_hh_l0.data, batch)
        bias = module.bias_ih_l0.data
        flat, y = x.reshape(-1, features), torch.empty(steps, batch, hidden)

        def call() -> Any:
            with torch.inference_mode():
                gates = product(flat, inputs, bias, "none", [], "").view(steps, batch, -1)
                h, c = h0, c0
                for t in range(steps):
                    sums = product(h, recurrent, None, "none", [], "").add_(gates[t])
                    cell = torch.tanh(sums[:, 2 * hidden : 3 * hidden])
                    sums.sigmoid_()
                    c = sums[:, hidden : 2 * hidden] * c + sums[:, :hidden] * cell
                    h = torch.mul(sums[:, 3 * hidden :], torch.tanh(c), out=y[t])
            return y

        return Product("steps, packed", call, lambda y: y.numpy())


class OnnxRuntime:
    title = "ONNX Runtime"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no LSTM of ONNX Runtime")
        self.graphs = OnnxGraphs(threads)

    def prepare(self, weights: Weights, shape: LSTMShape) -> Any:
        return weights.ordered("iofc")

    def products(self, prepared: Any, x: Inputs) -> list[Product]:
        inputs, hidden, bias = prepared
        steps, batch, features = x.x.shape
        y = np.empty((steps, 1, *x.h.shape), np.float32)
        node = self.graphs.node(
            "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y"], hidden_size=x.h.shape[1]
        )
        both = np.concatenate([bias, np.zeros_like(bias)])
        session = self.graphs.session(
            [node],
            [steps, batch, features],
            y.shape,
            {"w": inputs[None], "r": hidden[None], "b": both[None], "h": x.h[None], "c": x.c[None]},
        )
        return [Product("LSTM", self.graphs.call(session, x.x, y), lambda _: y[:, 0])]


class OpenVino:
    title = "OpenVINO"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no LSTM of OpenVINO")
        self.models = OpenVinoModels(threads)

    def prepare(self, weights: Weights, shape: LSTMShape) -> Any:
        return weights.ordered("fico")

    def products(self, prepared: Any, x: Inputs) -> list[Product]:
        operations, constant = self.models.operations, self.models.operations.constant
        steps, batch, features = x.x.shape
        parameter = operations.parameter([batch, steps, features], np.float32)
        layer = operations.lstm_sequence(
            parameter,
            constant(x.h[:, None]),
            constant(x.c[:, None]),
            constant(np.full(batch, steps, np.int64)),
            *(constant(each[None]) for each in prepared),
            x.h.shape[1],
            "forward",
        )
        model = self.models.openvino.Model([layer.output(0)], [parameter])
        y = np.empty((batch, 1, steps, x.h.shape[1]), np.float32)
        call = self.models.request(model, np.ascontiguousarray(x.x.swapaxes(0, 1)), y)
        return [Product("LSTMSequence", call, lambda _: y[:, 0].swapaxes(0, 1))]


class OpenBlas:
    """A loop over steps."""

    title = "NumPy"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "NumPy has no product by BLAS")

    def prepare(self, weights: Weights, shape: LSTMShape) -> Any:
        return weights

    def products(self, prepared: Any, x: Inputs) -> list[Product]:
        weights: Weights = prepared
        return [Product("steps", lambda: run_steps(weights, x), lambda y: y)]


def run_steps(weights: Weights, x: Inputs) -> Any:
    """h of every step, [T, N, H], in the dtype of the arrays."""
    steps, batch, features = x.x.shape
    gates = x.x.reshape(-1, features) @ weights.inputs.T
    gates += weights.bias
    y = np.empty((steps, *x.h.shape), x.h.dtype)
    h, c = x.h, x.c
    for step, sums in zip(y, gates.reshape(steps, batch, -1), strict=True):
        sums += h @ weights.hidden.T
        i, f, cell, o = np.split(sums, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(cell)
        h = np.multiply(_sigmoid(o), np.tanh(c), out=step)
    return y


def _sigmoid(x: Any) -> Any:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


PEERS: Peers = {
    "torch": (Torch, ("torch",)),
    "onnxruntime": (OnnxRuntime, ("onnxruntime", "onnx")),
    "openvino": (OpenVino, ("openvino",)),
    "numpy": (OpenBlas, ("numpy",)),
}
