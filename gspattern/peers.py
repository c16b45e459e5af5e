"""What else multiplies on this CPU: dense and sparse libraries, as the benchmark calls them.

Each is imported when asked for; `import gspattern` needs none. A peer computes y = W x for x as columns
([K, N]), as rows ([N, K]), or both; weights are laid out beforehand wherever the library offers it, and outputs are
written into memory that is there already wherever it takes some.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["PEERS", "Peer", "Product", "load_peers"]

Floats = npt.NDArray[np.float32]
Layout = Literal["columns", "rows"]


@dataclass(frozen=True)
class Product:
    """One way to compute y = W x.

    Attributes
    ----------
    layout : {"columns", "rows"}
        Whether x is [K, N] or [N, K].
    call : callable
        Computes; this is what is timed.
    result : callable
        Turns what `call` returned into float32 [M, N].
    """

    layout: Layout
    call: Callable[[], Any]
    result: Callable[[Any], Floats]


class Peer(Protocol):
    """A library, set up for a number of threads.

    Attributes
    ----------
    title : str
    sparse : bool
        Whether it multiplies the sparse matrix.
    """

    title: str
    sparse: bool

    def __init__(self, threads: int) -> None: ...

    def prepare(self, weights: Floats) -> Any:
        """Lay out weights [M, K] once, for any number of products."""

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        """Give the products of prepared weights with x [K, N], C-contiguous."""


class Torch:
    title = "PyTorch"
    sparse = False

    def __init__(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)

    def prepare(self, weights: Floats) -> Any:
        return self.torch.from_numpy(weights)

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        torch, weights = self.torch, prepared
        columns, rows = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(x.T))
        n, count = x.shape[1], weights.shape[0]
        if n == 1:
            vector, y = rows[0], torch.empty(count)
            return [
                Product(
                    "columns",
                    lambda: torch.mv(weights, vector, out=y),
                    lambda y: y.numpy()[:, None],
                )
            ]
        across, down, turned = torch.empty(count, n), torch.empty(n, count), weights.t()
        return [
            Product("columns", lambda: torch.mm(weights, columns, out=across), lambda y: y.numpy()),
            Product("rows", lambda: torch.mm(rows, turned, out=down), lambda y: y.numpy().T),
        ]


class OnnxRuntime:
    title = "ONNX Runtime"
    sparse = False

    def __init__(self, threads: int) -> None:
        self.runtime = importlib.import_module("onnxruntime")
        self.onnx = importlib.import_module("onnx")
        self.threads = threads

    def prepare(self, weights: Floats) -> Any:
        """A session for x [N, K] of any N: weights are packed once, as it likes them."""
        helper, floats = self.onnx.helper, self.onnx.TensorProto.FLOAT
        rows, cols = weights.shape
        initial = self.onnx.numpy_helper.from_array(np.ascontiguousarray(weights.T), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", floats, ["n", cols])],
            [helper.make_tensor_value_info("y", floats, ["n", rows])],
            [initial],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session, rows

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        session, count = prepared
        rows = np.ascontiguousarray(x.T)
        y = np.empty((x.shape[1], count), np.float32)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def call(keep: Any = rows) -> None:  # the binding holds its address only
            session.run_with_iobinding(binding)

        return [Product("rows", call, lambda _: y.T)]


class OpenVino:
    title = "OpenVINO"
    sparse = False

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

    def prepare(self, weights: Floats) -> Any:
        return weights

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        """Compile for this N: with a fixed shape it packs the weights best."""
        rows = np.ascontiguousarray(x.T)
        y = np.empty((x.shape[1], prepared.shape[0]), np.float32)
        parameter = self.operations.parameter(list(rows.shape), np.float32)
        product = self.operations.matmul(parameter, self.operations.constant(prepared), False, True)
        model = self.openvino.Model([product], [parameter])
        request = self.core.compile_model(model, "CPU", self.settings).create_infer_request()
        request.set_input_tensor(self.openvino.Tensor(rows, shared_memory=True))
        request.set_output_tensor(self.openvino.Tensor(y, shared_memory=True))

        def call(keep: Any = rows) -> None:  # the tensor holds its address only
            request.infer()

        return [Product("rows", call, lambda _: y.T)]


class OpenBlas:
    title = "NumPy"
    sparse = False

    def __init__(self, threads: int) -> None:
        pass  # the benchmark sets all pools that threadpoolctl knows

    def prepare(self, weights: Floats) -> Any:
        return weights

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        n, count, turned = x.shape[1], prepared.shape[0], prepared.T
        rows = np.ascontiguousarray(x.T)
        if n == 1:
            vector, y = rows[0], np.empty(count, np.float32)
            return [
                Product("columns", lambda: np.matmul(prepared, vector, out=y), lambda y: y[:, None])
            ]
        across, down = np.empty((count, n), np.float32), np.empty((n, count), np.float32)
        return [
            Product("columns", lambda: np.matmul(prepared, x, out=across), lambda y: y),
            Product("rows", lambda: np.matmul(rows, turned, out=down), lambda y: y.T),
        ]


class ScipyCsr:
    title = "SciPy CSR"
    sparse = True

    def __init__(self, threads: int) -> None:
        self.scipy = importlib.import_module("scipy.sparse")

    def prepare(self, weights: Floats) -> Any:
        return self.scipy.csr_array(weights)

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        if x.shape[1] == 1:
            vector = np.ascontiguousarray(x[:, 0])
            return [Product("columns", lambda: prepared @ vector, lambda y: y[:, None])]
        return [Product("columns", lambda: prepared @ x, lambda y: y)]


class TorchCsr:
    title = "PyTorch CSR"
    sparse = True

    def __init__(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)

    def prepare(self, weights: Floats) -> Any:
        """With 32-bit indices, which are faster than its usual ones."""
        torch = self.torch
        rows, cols = np.nonzero(weights)
        starts = np.zeros(len(weights) + 1, np.int32)
        np.cumsum(np.bincount(rows, minlength=len(weights)), out=starts[1:])
        with warnings.catch_warnings():  # that this is in beta
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(cols.astype(np.int32)),
                torch.from_numpy(weights[rows, cols]),
                size=weights.shape,
                check_invariants=False,
            )

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        torch = self.torch
        if x.shape[1] == 1:
            vector = torch.from_numpy(np.ascontiguousarray(x[:, 0]))
            return [Product("columns", lambda: prepared @ vector, lambda y: y.numpy()[:, None])]
        columns, y = torch.from_numpy(x), torch.zeros(prepared.shape[0], x.shape[1])
        return [
            Product(
                "columns",
                lambda: torch.addmm(y, prepared, columns, beta=0, out=y),
                lambda y: y.numpy(),
            )
        ]


class SparseLab:
    title = "sparselab"
    sparse = True

    def __init__(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.sparselab = importlib.import_module("sparselab")

    def prepare(self, weights: Floats) -> Any:
        with warnings.catch_warnings():  # that PyTorch's CSR, which it uses, is in beta
            warnings.simplefilter("ignore")
            return self.sparselab.PaddedCSR.from_dense(self.torch.from_numpy(weights))

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        columns, spmm = self.torch.from_numpy(x), self.sparselab.spmm
        return [Product("columns", lambda: spmm(prepared, columns), lambda y: y.numpy())]


# By the name that `--peers` takes: the class, and the distributions that it needs.
PEERS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "torch": (Torch, ("torch",)),
    "onnxruntime": (OnnxRuntime, ("onnxruntime", "onnx")),
    "openvino": (OpenVino, ("openvino",)),
    "numpy": (OpenBlas, ("numpy",)),
    "scipy": (ScipyCsr, ("scipy",)),
    "torch-csr": (TorchCsr, ("torch",)),
    "sparselab": (SparseLab, ("sparselab",)),
}


def load_peers(
    names: list[str], threads: int
) -> tuple[dict[str, Peer], dict[str, str], dict[str, str]]:
    """Import and set up peers.

    Parameters
    ----------
    names : list of str
        Keys of `PEERS`.
    threads : int

    Returns
    -------
    peers : dict of str to Peer
        Those that could be imported.
    versions : dict of str to str
        Of the distributions that they are.
    missing : dict of str to str
        Why the others could not.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    peers: dict[str, Peer] = {}
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers are {', '.join(PEERS)}; there is no {name!r}")
        kind, distributions = PEERS[name]
        try:
            peers[name] = kind(threads)
            versions |= {each: metadata.version(each) for each in distributions}
        except (ImportError, metadata.PackageNotFoundError) as error:
            peers.pop(name, None)
            missing[name] = f"{error} (pip install {' '.join(distributions)})"
    return peers, versions, missing
