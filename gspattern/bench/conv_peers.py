"""Dense libraries that convolve, in every layout that they are good at.

A convolution in one dimension is one of height 1. No sparse library convolves on CPUs without making a matrix of the
input first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gspattern.bench.layers import Floats, Peers, Product
from gspattern.bench.libraries import OnnxGraphs, OpenVinoModels, load_torch, only
from gspattern.bench.shapes import ConvShape

__all__ = ["PEERS"]


def _two(sizes: tuple[int, ...], first: int) -> tuple[int, int]:
    """Sizes of height and width; the height of a convolution in one dimension is `first`."""
    return (first, *sizes)[-2:]  # type: ignore[return-value]


class _Plane:
    """A convolution as one in two dimensions."""

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape
        self.kernel = _two(shape.kernel, 1)
        self.padding = _two(shape.padding, 0)
        one = len(shape.kernel) == 1
        self.stride = _two((shape.stride,) if one else (shape.stride,) * 2, 1)
        self.dilation = _two((shape.dilation,) if one else (shape.dilation,) * 2, 1)
        self.out = _two(shape.out_length, 1)

    def weights(self, weights: Floats) -> Floats:
        return weights.reshape(self.shape.outputs, self.shape.inputs, *self.kernel)

    def inputs(self, x: Floats) -> Floats:
        return x.reshape(len(x), self.shape.inputs, *_two(self.shape.length, 1))

    def output(self, y: Floats) -> Floats:
        """[N, Co, height, width] as the shape has it."""
        return y.reshape(len(y), self.shape.outputs, *self.shape.out_length)

    def empty(self, n: int, last: bool = False) -> Floats:
        channels = self.shape.outputs
        size = (n, *self.out, channels) if last else (n, channels, *self.out)
        return np.empty(size, np.float32)


class Torch:
    """Its own convolution, and oneDNN's with packed weights; in both, x as it stands and with the channels last."""

    title = "PyTorch"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no convolution of PyTorch")
        self.torch = load_torch(threads)

    def prepare(self, weights: Floats, shape: ConvShape) -> Any:
        plane = _Plane(shape)
        return plane, self.torch.from_numpy(plane.weights(weights))

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        torch, (plane, weights) = self.torch, prepared
        usual = torch.from_numpy(plane.inputs(x))
        last = usual.contiguous(memory_format=torch.channels_last)
        moved = weights.contiguous(memory_format=torch.channels_last)
        return [
            *self._products(plane, usual, weights, "channels first"),
            *self._products(plane, last, moved, "channels last"),
        ]

    def _products(self, plane: _Plane, x: Any, weights: Any, layout: str) -> list[Product]:
        torch, operations = self.torch, self.torch.ops.mkldnn

        def result(y: Any) -> Floats:
            return plane.output(y.contiguous().numpy())

        def inference(function: Callable[..., Any], *arguments: Any) -> Product:
            def call() -> Any:
                with torch.inference_mode():
                    return function(x, *arguments)

            name = layout if function is torch.nn.functional.conv2d else f"{layout}, packed"
            return Product(name, call, result)

        own = inference(
            torch.nn.functional.conv2d, weights, None, plane.stride, plane.padding, plane.dilation
        )
        if not hasattr(operations, "_convolution_pointwise"):
            return [own]
        sizes = (plane.padding, plane.stride, plane.dilation, 1)
        packed = operations._reorder_convolution_weight(weights, *sizes, list(x.shape))
        product = operations._convolution_pointwise
        return [own, inference(product, packed, None, *sizes, "none", [], "")]


class OnnxRuntime:
    title = "ONNX Runtime"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no convolution of ONNX Runtime")
        self.graphs = OnnxGraphs(threads)

    def prepare(self, weights: Floats, shape: ConvShape) -> Any:
        """A session for x of any N."""
        plane = _Plane(shape)
        node = self.graphs.node(
            "Conv",
            ["x", "w"],
            ["y"],
            kernel_shape=list(plane.kernel),
            strides=list(plane.stride),
            pads=[*plane.padding, *plane.padding],
            dilations=list(plane.dilation),
        )
        session = self.graphs.session(
            [node],
            ["n", shape.inputs, *_two(shape.length, 1)],
            ["n", shape.outputs, *plane.out],
            {"w": plane.weights(weights)},
        )
        return plane, session

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        plane, session = prepared
        y = plane.empty(len(x))
        call = self.graphs.call(session, plane.inputs(x), y)
        return [Product("channels first", call, lambda _: plane.output(y))]


class OpenVino:
    title = "OpenVINO"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "the benchmark has no convolution of OpenVINO")
        self.models = OpenVinoModels(threads)
        self.preprocess = importlib.import_module("openvino.preprocess")

    def prepare(self, weights: Floats, shape: ConvShape) -> Any:
        plane = _Plane(shape)
        return plane, plane.weights(weights)

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        """Compile for this N: with a fixed shape it packs the weights best."""
        plane, weights = prepared
        planes = plane.inputs(x)
        last = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
        y, y_last = plane.empty(len(x)), plane.empty(len(x), last=True)
        turned = self._turned(self._model(plane, weights, planes.shape))
        return [
            Product(
                "channels first",
                self.models.request(self._model(plane, weights, planes.shape), planes, y),
                lambda _: plane.output(y),
            ),
            Product(
                "channels last",
                self.models.request(turned, last, y_last),
                lambda _: plane.output(np.moveaxis(y_last, -1, 1)),
            ),
        ]

    def _model(self, plane: _Plane, weights: Floats, size: tuple[int, ...]) -> Any:
        operations = self.models.operations
        x = operations.parameter(list(size), np.float32)
        pads = list(plane.padding)
        y = operations.convolution(
            x, operations.constant(weights), list(plane.stride), pads, pads, list(plane.dilation)
        )
        return self.models.openvino.Model([y], [x])

    def _turned(self, model: Any) -> Any:
        """The model with x and y in memory with the channels last."""
        layout, turn = self.models.openvino.Layout, self.preprocess.PrePostProcessor(model)
        for side in (turn.input(), turn.output()):
            side.tensor().set_layout(layout("NHWC"))
            side.model().set_layout(layout("NCHW"))
        return turn.build()


PEERS: Peers = {
    "torch": (Torch, ("torch",)),
    "onnxruntime": (OnnxRuntime, ("onnxruntime", "onnx")),
    "openvino": (OpenVino, ("openvino",)),
}
