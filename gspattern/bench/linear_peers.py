"""Dense and sparse libraries that compute y = W x, as the benchmark calls them.

Each is imported when asked for. A peer computes for x as columns ([K, N]), as rows ([N, K]), or both; weights are laid
out beforehand wherever the library offers it, and outputs are written into memory that is there already wherever it
takes some. Low precision: bfloat16 in, bfloat16 out; int8 weights with a scale for each row, float32 in and out.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gspattern.bench.layers import Floats, Peers, Product, UnsupportedError, quantize_rows
from gspattern.bench.libraries import OnnxGraphs, OpenVinoModels, load_torch, only
from gspattern.bench.shapes import LinearShape
from gspattern.plans import cpu_info

__all__ = ["PEERS"]


class Torch:
    """Its own product and, where it has one, oneDNN's with weights that are packed for this N."""

    title = "PyTorch"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        self.torch = load_torch(threads)
        self.dtype = dtype
        if dtype == "int8" and not hasattr(self.torch, "_make_per_channel_quantized_tensor"):
            raise UnsupportedError("this PyTorch quantizes no weights")

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
        if self.dtype == "int8":
            return self._packed_int8(weights)
        return self.torch.from_numpy(weights).to(getattr(self.torch, self.dtype))

    def _packed_int8(self, weights: Floats) -> dict[str, Any]:
        """Packed weights by engine."""
        torch = self.torch
        codes, scales = quantize_rows(weights)
        with warnings.catch_warnings():  # that a later PyTorch will not have these
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(
                torch.from_numpy(codes),
                torch.from_numpy(scales[:, 0].astype(np.float64)),
                torch.zeros(len(codes), dtype=torch.long),
                0,
            )
        engines, before = torch.backends.quantized, torch.backends.quantized.engine
        packed = {}
        try:
            for engine in {"fbgemm", "onednn"}.intersection(engines.supported_engines):
                engines.engine = engine
                packed[engine] = torch.ops.quantized.linear_prepack(quantized, None)
        finally:
            engines.engine = before
        return packed

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        if self.dtype == "int8":
            return self._products_int8(prepared, x)
        torch, weights = self.torch, prepared
        columns = torch.from_numpy(x).to(weights.dtype)
        rows = torch.from_numpy(np.ascontiguousarray(x.T)).to(weights.dtype)
        n, count = x.shape[1], weights.shape[0]
        found = self._packed(weights, rows)
        if n == 1:
            vector, y = rows[0], torch.empty(count, dtype=weights.dtype)
            own = Product(
                "columns",
                lambda: torch.mv(weights, vector, out=y),
                lambda y: y.float().numpy()[:, None],
            )
            return [own, *found]
        across = torch.empty(count, n, dtype=weights.dtype)
        down, turned = torch.empty(n, count, dtype=weights.dtype), weights.t()
        return [
            Product(
                "columns",
                lambda: torch.mm(weights, columns, out=across),
                lambda y: y.float().numpy(),
            ),
            Product(
                "rows", lambda: torch.mm(rows, turned, out=down), lambda y: y.float().numpy().T
            ),
            *found,
        ]

    def _packed(self, weights: Any, rows: Any) -> list[Product]:
        operations = self.torch.ops.mkldnn
        if not hasattr(operations, "_linear_pointwise"):
            return []
        packed = operations._reorder_linear_weight(weights, len(rows))
        product = operations._linear_pointwise
        return [
            Product(
                "rows, packed",
                lambda: product(rows, packed, None, "none", [], ""),
                lambda y: y.float().numpy().T,
            )
        ]

    def _products_int8(self, prepared: Any, x: Floats) -> list[Product]:
        rows, product = (
            self.torch.from_numpy(np.ascontiguousarray(x.T)),
            self.torch.ops.quantized.linear_dynamic,
        )
        # Sums of two products of 8 bits do not fit the 16 bits of CPUs that lack a dot product: it takes 7 bits there.
        reduced = not {"avx512_vnni", "avx_vnni"}.intersection(cpu_info().features)

        def made(engine: str, packed: Any) -> Product:
            return Product(
                f"rows, {engine}",
                lambda: product(rows, packed, reduced),
                lambda y: y.numpy().T,
            )

        return [made(engine, packed) for engine, packed in sorted(prepared.items())]


class OnnxRuntime:
    """MatMul, or DynamicQuantizeLinear and MatMulInteger, which it fuses."""

    title = "ONNX Runtime"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32", "int8"), "ONNX Runtime has no MatMul for the CPU")
        self.graphs = OnnxGraphs(threads)
        self.dtype = dtype

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
        """A session for x [N, K] of any N."""
        node, one = self.graphs.node, self.graphs.onnx.TensorProto.FLOAT
        if self.dtype == "float32":
            nodes, initial = [node("MatMul", ["x", "w"], ["y"])], {"w": weights.T}
        else:
            codes, scales = quantize_rows(weights)
            initial = {"w": codes.T, "scales": scales[:, 0]}
            nodes = [
                node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
                node("MatMulInteger", ["codes", "w", "zero"], ["whole"]),
                node("Cast", ["whole"], ["sums"], to=one),
                node("Mul", ["scale", "scales"], ["factors"]),
                node("Mul", ["sums", "factors"], ["y"]),
            ]
        return self.graphs.session(nodes, ["n", shape.cols], ["n", shape.rows], initial), shape.rows

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        session, count = prepared
        y = np.empty((x.shape[1], count), np.float32)
        call = self.graphs.call(session, np.ascontiguousarray(x.T), y)
        return [Product("rows", call, lambda _: y.T)]


class OpenVino:
    """MatMul in the precision of its hint; for int8 weights, x is quantized when it comes, or has a known range."""

    title = "OpenVINO"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        self.models = OpenVinoModels(threads)
        self.dtype = dtype

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
        return quantize_rows(weights) if self.dtype == "int8" else weights

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        rows = np.ascontiguousarray(x.T)
        if self.dtype == "int8":
            return self._products_int8(prepared, rows)
        if self.dtype == "float32":
            return [self._product(prepared, rows, "rows")]
        # It takes either: bfloat16 needs no conversion, float32 costs it one.
        return [
            self._product(prepared, each, layout, INFERENCE_PRECISION_HINT="bf16")
            for each, layout in (
                (rows.astype(ml_dtypes.bfloat16), "rows"),
                (rows, "rows, from float32"),
            )
        ]

    def _product(
        self, weights: Floats, rows: npt.NDArray[Any], layout: str, **settings: Any
    ) -> Product:
        operations, kind = self.models.operations, "f32" if rows.dtype == np.float32 else "bf16"
        x = operations.parameter(list(rows.shape), getattr(self.models.openvino.Type, kind))
        constant = operations.constant(weights)
        if kind == "bf16":
            constant = operations.convert(constant, kind)
        product = operations.matmul(x, constant, False, True)
        y = np.empty((len(rows), len(weights)), rows.dtype)
        return self._made(x, product, rows, y, layout, **settings)

    def _made(
        self, x: Any, product: Any, rows: Any, y: Any, layout: str, **settings: Any
    ) -> Product:
        model = self.models.openvino.Model([product], [x])
        call = self.models.request(model, rows, y, **settings)
        return Product(layout, call, lambda _: y.astype(np.float32).T)

    def _products_int8(self, prepared: Any, rows: Floats) -> list[Product]:
        operations, (codes, scales) = self.models.operations, prepared
        found = []
        for layout in ("rows", "rows, range known"):
            x = operations.parameter(list(rows.shape), np.float32)
            codes_as_float = operations.convert(operations.constant(codes), np.float32)
            weights = operations.multiply(codes_as_float, operations.constant(scales))
            quantized = x
            if layout == "rows, range known":
                low, high = (operations.constant(each) for each in (rows.min(), rows.max()))
                quantized = operations.fake_quantize(x, low, high, low, high, 256)
            product = operations.matmul(quantized, weights, False, True)
            y = np.empty((len(rows), len(codes)), np.float32)
            # The group of x that gets one scale: as long as it takes, which is what costs least.
            found.append(
                self._made(x, product, rows, y, layout, DYNAMIC_QUANTIZATION_GROUP_SIZE=128)
            )
        return found


class OpenBlas:
    title = "NumPy"
    sparse = False

    def __init__(self, threads: int, dtype: str) -> None:
        # The benchmark sets the threads of all pools that threadpoolctl knows.
        only(dtype, ("float32",), "NumPy has no product by BLAS")

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
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

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "SciPy has no product")
        self.scipy = importlib.import_module("scipy.sparse")

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
        return self.scipy.csr_array(weights)

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        if x.shape[1] == 1:
            vector = np.ascontiguousarray(x[:, 0])
            return [Product("columns", lambda: prepared @ vector, lambda y: y[:, None])]
        return [Product("columns", lambda: prepared @ x, lambda y: y)]


class TorchCsr:
    title = "PyTorch CSR"
    sparse = True

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "PyTorch has no product of CSR matrices by MKL")
        self.torch = load_torch(threads)

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
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

    def __init__(self, threads: int, dtype: str) -> None:
        only(dtype, ("float32",), "sparselab has no product")
        self.torch = load_torch(threads)
        self.sparselab = importlib.import_module("sparselab")

    def prepare(self, weights: Floats, shape: LinearShape) -> Any:
        with warnings.catch_warnings():  # that PyTorch's CSR, which it uses, is in beta
            warnings.simplefilter("ignore")
            return self.sparselab.PaddedCSR.from_dense(self.torch.from_numpy(weights))

    def products(self, prepared: Any, x: Floats) -> list[Product]:
        columns, spmm = self.torch.from_numpy(x), self.sparselab.spmm
        return [Product("columns", lambda: spmm(prepared, columns), lambda y: y.numpy())]


PEERS: Peers = {
    "torch": (Torch, ("torch",)),
    "onnxruntime": (OnnxRuntime, ("onnxruntime", "onnx")),
    "openvino": (OpenVino, ("openvino",)),
    "numpy": (OpenBlas, ("numpy",)),
    "scipy": (ScipyCsr, ("scipy",)),
    "torch-csr": (TorchCsr, ("torch",)),
    "sparselab": (SparseLab, ("sparselab",)),
}
