"""Handles of the libraries that peers of every operation share: sessions, requests, and what they lack."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gspattern.bench.layers import UnsupportedError

__all__ = ["OnnxGraphs", "OpenVinoModels", "only"]

Array = npt.NDArray[Any]


def only(dtype: str, dtypes: Sequence[str], lack: str) -> None:
    """Refuse other dtypes than these.

    Raises
    ------
    UnsupportedError
    """
    if dtype not in dtypes:
        raise UnsupportedError(f"{lack} in {dtype}")


def load_torch(threads: int) -> Any:
    """PyTorch, with so many threads and without gradients."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    return torch


class OnnxGraphs:
    """Makes sessions of ONNX Runtime with all its optimisations: weights are packed once, as it likes them."""

    def __init__(self, threads: int) -> None:
        self.runtime = importlib.import_module("onnxruntime")
        self.onnx = importlib.import_module("onnx")
        self.node = self.onnx.helper.make_node
        self.threads = threads

    def session(
        self,
        nodes: Sequence[Any],
        x: Sequence[int | str],
        y: Sequence[int | str],
        weights: dict[str, Array],
    ) -> Any:
        """Compile a graph.

        Parameters
        ----------
        nodes : sequence of onnx.NodeProto
            From "x" to "y", both float32.
        x, y : sequence of int or str
            Their shapes; a name where any size is taken.
        weights : dict of str to ndarray
        """
        helper, floats = self.onnx.helper, self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            list(nodes),
            "layer",
            [helper.make_tensor_value_info("x", floats, x)],
            [helper.make_tensor_value_info("y", floats, y)],
            [
                self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
                for name, array in weights.items()
            ],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @staticmethod
    def call(session: Any, x: Array, y: Array) -> Callable[[], None]:
        """Give what computes y, which is there already, from x."""
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def call(keep: Any = (x, y)) -> None:  # the binding holds addresses only
            session.run_with_iobinding(binding)

        return call


class OpenVinoModels:
    """Compiles models of OpenVINO for one shape of x: weights are packed once, as it likes them."""

    def __init__(self, threads: int) -> None:
        self.openvino = importlib.import_module("openvino")
        self.operations = importlib.import_module("openvino.opset13")
        self.core = self.openvino.Core()
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }

    def request(self, model: Any, x: Array, y: Array, **settings: Any) -> Callable[[], None]:
        """Give what computes y, which is there already, from x.

        Parameters
        ----------
        model : openvino.Model
            With one input and one output.
        x, y : ndarray
            float32, or bfloat16 as `ml_dtypes` has it.
        **settings
            Of the CPU plugin, in place of the usual ones.
        """
        request = self.core.compile_model(model, "CPU", self.settings | settings)
        request = request.create_infer_request()
        request.set_input_tensor(self._tensor(x))
        request.set_output_tensor(self._tensor(y))

        def call(keep: Any = (x, y)) -> None:  # tensors hold addresses only
            request.infer()

        return call

    def _tensor(self, array: Array) -> Any:
        if array.dtype == np.float32:
            return self.openvino.Tensor(array, shared_memory=True)
        carrier = array.view(np.uint16)
        return self.openvino.Tensor(carrier, array.shape, self.openvino.Type.bf16)
