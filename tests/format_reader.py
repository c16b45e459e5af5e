"""A reader and writer of docs/FORMAT.md in plain Python and NumPy, written from that page alone.

It shares no code with gspattern and does not use the safetensors library, so that the tests compare
two programs that agree only if the page is right. It is slow and meant to be read beside the page.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

# Section 2: the name of a dtype in the file, and its NumPy type. BF16 has none: its bits are kept.
DTYPES = {
    "BOOL": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": np.uint16,
    "F32": np.float32,
    "F64": np.float64,
}
ORDER = ["BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"]
VALUE_DTYPES = ("F64", "F32", "F16", "BF16", "I8")
PARTS = ("values", "indices", "indptr", "row_order", "scales")
LIMIT = 2**32 - 1


class RefusedError(Exception):
    """The file breaks the rule of section 7 that `rule` names."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(f"[{rule}] {why}")
        self.rule = rule


def require(condition: bool, rule: str, why: str = "") -> None:
    if not condition:
        raise RefusedError(rule, why)


@dataclass
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, np.dtype(DTYPES[self.dtype]).newbyteorder("<")).reshape(
            self.shape
        )


@dataclass
class Decoded:
    """A matrix of a file. `dense` holds bits for BF16 and is 0 where `stored` is false."""

    pattern: str
    dtype: str
    dense: np.ndarray
    stored: np.ndarray
    row_order: np.ndarray | None
    scales: np.ndarray | None
    kernel_shape: list[int] | None


# ------------------------------------------------------------------ container and checksum


def read_container(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file (section 2)."""
    require(len(data) >= 8, "container", "shorter than its length field")
    (length,) = struct.unpack("<Q", data[:8])
    require(length <= len(data) - 8, "container", "header longer than the file")

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len({k for k, _ in pairs}) == len(pairs), "container", "a key stands twice")
        return dict(pairs)

    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=no_twins)
    except (ValueError, RecursionError):
        raise RefusedError("container", "the header is not JSON") from None
    require(isinstance(header, dict), "container", "the header is not an object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    require(
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
        "container",
        "metadata are not strings",
    )
    body, tensors, spans = data[8 + length :], {}, []
    for name, entry in header.items():
        require(
            isinstance(entry, dict) and set(entry) >= {"dtype", "shape", "data_offsets"},
            "container",
            name,
        )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        require(
            isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list),
            "container",
            name,
        )
        require(
            all(type(i) is int and i >= 0 for i in shape + offsets) and len(offsets) == 2,
            "container",
            name,
        )
        require(dtype in DTYPES, "dtype", f"{name}: {dtype}")
        begin, end = offsets
        require(
            end - begin == math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize, "container", name
        )
        spans.append((begin, end))
        tensors[name] = Tensor(dtype, tuple(shape), body[begin:end])
        require(
            dtype != "BOOL" or set(body[begin:end]) <= {0, 1}, "dtype", f"{name}: no truth value"
        )
    at = 0
    for begin, end in sorted(spans):
        require(begin == at, "container", "tensors overlap or leave a hole")
        at = end
    require(at == len(body), "container", "bytes that belong to no tensor")
    return tensors, metadata


def write_container(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    # As the safetensors library: by dtype, the largest first, then by name.
    order = sorted(tensors, key=lambda name: (-ORDER.index(tensors[name].dtype), name))
    for name in order:
        tensor = tensors[name]
        end = at + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name].data for name in order)


def canonical(value: Any) -> str:
    """Section 3."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def checksum(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Section 4."""
    rest = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(canonical(rest).encode("ascii") + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical([name, tensor.dtype, list(tensor.shape)]).encode("ascii") + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def seal(tensors: dict[str, Tensor], description: dict[str, Any]) -> bytes:
    """A file with a right checksum over whatever it is given."""
    sealed = dict(description, sha256=checksum(tensors, description))
    return write_container(tensors, {"gspattern": canonical(sealed)})


# ------------------------------------------------------------------------------- patterns

GS = re.compile(r"gs\(([1-9]\d*),([1-9]\d*)(,contiguous)?\)(\+scatter)?")
BANK_BALANCED = re.compile(r"bank_balanced\(([1-9]\d*)\)")
BLOCK = re.compile(r"block\(([1-9]\d*),([1-9]\d*)\)")
NM = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass
class Pattern:
    kind: str
    a: int = 1  # banks, block rows, or n
    b: int = 1  # nonzeros per row of a bundle, block columns, or m
    contiguous: bool = False
    scatter: bool = False
    equal_counts: bool = False


def parse(text: str, cols: int) -> Pattern:
    """Section 3, the grammar of patterns."""
    if m := GS.fullmatch(text):
        p = Pattern(
            "gs", int(m[1]), int(m[2]), contiguous=m[3] is not None, scatter=m[4] is not None
        )
        require(p.a <= 65536 and p.a % p.b == 0 and p.a <= cols, "pattern", text)
    elif m := BANK_BALANCED.fullmatch(text):
        p = Pattern("gs", int(m[1]), int(m[1]), contiguous=True, equal_counts=True)
        require(p.a <= 65536 and p.a <= cols, "pattern", text)
    elif text == "irregular":
        p = Pattern("irregular")
    elif m := BLOCK.fullmatch(text):
        p = Pattern("block", int(m[1]), int(m[2]))
        require(p.a <= LIMIT and p.b <= LIMIT, "pattern", text)
    elif m := NM.fullmatch(text):
        p = Pattern("nm", int(m[1]), int(m[2]))
        require(p.a <= p.b <= 256, "pattern", text)
    else:
        raise RefusedError("pattern", text)
    return p


# ------------------------------------------------------------------------------- matrices


def column_dtype(count: int) -> str:
    return "U16" if count <= 65536 else "U32"


def bank_begin(bank: int, cols: int, banks: int) -> int:
    return bank * cols // banks


def decode(name: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> Decoded:
    """Section 5: the matrix, or RefusedError."""
    shape, kernel_shape = entry["shape"], entry.get("kernel_shape")
    require(
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(n) is int and 0 <= n < LIMIT for n in shape),
        "shape",
        name,
    )
    rows, cols = shape
    if "kernel_shape" in entry:
        require(isinstance(kernel_shape, list) and len(kernel_shape) in (3, 4), "shape", name)
        require(all(type(n) is int and n >= 0 for n in kernel_shape), "shape", name)
        require(kernel_shape[0] == rows and math.prod(kernel_shape[1:]) == cols, "shape", name)
    require(isinstance(entry["pattern"], str), "metadata", name)
    p = parse(entry["pattern"], cols)

    parts = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
    require("values" in parts, "tensors", name)
    values = parts["values"]
    require(values.dtype in VALUE_DTYPES, "dtype", name)
    wanted = {"values", "indices", "indptr"}
    wanted |= {"row_order"} if p.scatter else set()
    wanted |= {"scales"} if values.dtype == "I8" else set()
    require(set(parts) == wanted, "tensors", name)

    group_rows = {"gs": p.a // p.b, "block": p.a}.get(p.kind, 1)
    groups = -(-rows // group_rows)
    units = values.shape[0] if values.shape else 0
    if p.kind == "gs":
        short = p.b == p.a
        widest = -(-cols // p.a)
        index_dtype = "U8" if short and widest <= 256 else column_dtype(widest if short else cols)
        shapes = {"values": (units, p.a), "indices": (units, p.a)}
    elif p.kind == "block":
        index_dtype = column_dtype(-(-cols // p.b))
        shapes = {"values": (units, p.a, p.b), "indices": (units,)}
    elif p.kind == "irregular":
        index_dtype = column_dtype(cols)
        shapes = {"values": (units,), "indices": (units,)}
    else:
        index_dtype = "U8"
        bits = 2 if p.b <= 4 else 4 if p.b <= 16 else 8
        shapes = {"values": (units,), "indices": (-(-units * bits // 8),)}
    shapes |= {"indptr": (groups + 1,), "row_order": (rows,), "scales": (rows,)}
    dtypes = {"indices": index_dtype, "indptr": "U32", "row_order": "U32", "scales": "F32"}
    for part, tensor in parts.items():
        require(part == "values" or tensor.dtype == dtypes[part], "dtype", f"{name}.{part}")
        require(tensor.shape == shapes[part], "shape", f"{name}.{part}")

    row_order = None
    if p.scatter:
        row_order = parts["row_order"].array().astype(np.int64)
        require(np.array_equal(np.sort(row_order), np.arange(rows)), "row_order", name)
    scales = None
    if values.dtype == "I8":
        scales = parts["scales"].array()
        require(bool(np.all(np.isfinite(scales))), "scales", name)

    indptr = parts["indptr"].array().astype(np.int64)
    require(
        indptr[0] == 0 and indptr[-1] == units and bool(np.all(np.diff(indptr) >= 0)),
        "indptr",
        name,
    )
    if p.equal_counts:
        require(len(set(np.diff(indptr).tolist())) <= 1, "indptr", name)

    raw = values.array()
    indices = parts["indices"].array()
    require(rows * cols <= 2**24, "shape", "too large for this reader")
    dense = np.zeros((rows, cols), raw.dtype)
    stored = np.zeros((rows, cols), bool)
    decoders = {
        "gs": _decode_gs,
        "block": _decode_block,
        "irregular": _decode_irregular,
        "nm": _decode_nm,
    }
    decoders[p.kind](p, raw, indices, indptr, row_order, dense, stored)
    return Decoded(entry["pattern"], values.dtype, dense, stored, row_order, scales, kernel_shape)


def _is_zero(slots: np.ndarray) -> bool:
    """All bits zero; -0.0 is not."""
    return not any(slots.tobytes())


def _decode_gs(
    p: Pattern, raw: Any, indices: Any, indptr: Any, row_order: Any, dense: Any, stored: Any
) -> None:
    rows, cols = dense.shape
    group_rows = p.a // p.b
    for group in range(len(indptr) - 1):
        here = min(group_rows, rows - group * group_rows)
        used = here * p.b
        for unit in range(indptr[group], indptr[group + 1]):
            require(_is_zero(raw[unit, used:]) and _is_zero(indices[unit, used:]), "padding")
            banks = []
            for slot in range(used):
                index = int(indices[unit, slot])
                if p.b == p.a:
                    bank = slot
                    if p.contiguous:
                        first, end = bank_begin(bank, cols, p.a), bank_begin(bank + 1, cols, p.a)
                        require(index < end - first, "index")
                        col = first + index
                    else:
                        col = index * p.a + bank
                        require(col < cols, "index")
                else:
                    col = index
                    require(col < cols, "index")
                    if p.contiguous:
                        bank = next(b for b in range(p.a) if col < bank_begin(b + 1, cols, p.a))
                    else:
                        bank = col % p.a
                    require(slot % p.b == 0 or bank >= banks[-1], "order")
                banks.append(bank)
                position = group * group_rows + slot // p.b
                row = position if row_order is None else row_order[position]
                require(not stored[row, col], "duplicate")
                stored[row, col] = True
                dense[row, col] = raw[unit, slot]
            require(len(set(banks)) == used, "banks")


def _decode_block(
    p: Pattern, raw: Any, indices: Any, indptr: Any, row_order: Any, dense: Any, stored: Any
) -> None:
    rows, cols = dense.shape
    for group in range(len(indptr) - 1):
        last = -1
        for unit in range(indptr[group], indptr[group + 1]):
            index = int(indices[unit])
            require(index < -(-cols // p.b), "index")
            require(index != last, "duplicate")
            require(index > last, "order")
            last = index
            here = (
                slice(group * p.a, min((group + 1) * p.a, rows)),
                slice(index * p.b, min((index + 1) * p.b, cols)),
            )
            inside = raw[unit, : here[0].stop - here[0].start, : here[1].stop - here[1].start]
            outside = raw[unit].copy()
            outside[: inside.shape[0], : inside.shape[1]] = 0
            require(_is_zero(outside), "padding")
            dense[here] = inside
            stored[here] = True


def _decode_irregular(
    p: Pattern, raw: Any, indices: Any, indptr: Any, row_order: Any, dense: Any, stored: Any
) -> None:
    for row in range(dense.shape[0]):
        last = -1
        for unit in range(indptr[row], indptr[row + 1]):
            col = int(indices[unit])
            require(col < dense.shape[1], "index")
            require(col != last, "duplicate")
            require(col > last, "order")
            last = col
            dense[row, col] = raw[unit]
            stored[row, col] = True


def _decode_nm(
    p: Pattern, raw: Any, indices: Any, indptr: Any, row_order: Any, dense: Any, stored: Any
) -> None:
    rows, cols = dense.shape
    bits = 2 if p.b <= 4 else 4 if p.b <= 16 else 8
    packed = np.unpackbits(indices, bitorder="little").reshape(-1, bits).astype(np.int64)
    positions = packed @ (1 << np.arange(bits))
    require(not np.any(positions[len(raw) :]), "padding")
    widths = [min(p.b, cols - begin) for begin in range(0, cols, p.b)]
    slots = sum(min(p.a, width) for width in widths)
    require(np.array_equal(indptr, slots * np.arange(rows + 1)), "indptr")
    unit = 0
    for row in range(rows):
        for window, width in enumerate(widths):
            last = -1
            for _ in range(min(p.a, width)):
                position = int(positions[unit])
                require(position < width, "index")
                require(position != last, "duplicate")
                require(position > last, "order")
                last = position
                col = window * p.b + position
                dense[row, col] = raw[unit]
                stored[row, col] = True
                unit += 1


# ---------------------------------------------------------------------------------- files


def read_bytes(data: bytes) -> dict[str, Decoded | Tensor]:
    """Every matrix and plain array of a file, or RefusedError."""
    tensors, metadata = read_container(data)
    if "gspattern" not in metadata:
        for value in metadata.values():
            require('"format":"gspattern"' not in value, "metadata", "under another key")
        return dict(tensors)
    require(len(metadata) == 1, "metadata", "a key besides gspattern")
    text = metadata["gspattern"]
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedError("metadata", "not JSON") from None
    require(
        isinstance(description, dict) and description.get("format") == "gspattern",
        "metadata",
        "format",
    )
    version = description.get("version")
    require(
        isinstance(version, list)
        and len(version) == 2
        and all(type(n) is int and n >= 0 for n in version),
        "metadata",
        "version",
    )
    require(version[0] == 1, "version", str(version))
    require(canonical(description) == text, "metadata", "not canonical")
    known = {"format", "matrices", "metadata", "sha256", "version"}
    require(known <= set(description), "metadata", "a key is missing")
    require(set(description) == known or version[1] > 0, "metadata", "unknown key")
    require(description["sha256"] == checksum(tensors, description), "checksum")
    notes = description["metadata"]
    require(
        isinstance(notes, dict) and all(isinstance(v, str) for v in notes.values()),
        "metadata",
        "metadata",
    )
    matrices = description["matrices"]
    require(isinstance(matrices, dict), "metadata", "matrices")
    for name in [*tensors, *matrices]:
        require(name != "" and not re.search(r"[\x00-\x1f\x7f-\x9f]", name), "name", repr(name))

    result: dict[str, Decoded | Tensor] = dict(tensors)
    for name, entry in matrices.items():
        require(isinstance(entry, dict) and {"pattern", "shape"} <= set(entry), "metadata", name)
        extra = set(entry) - {"pattern", "shape", "kernel_shape"}
        require(not extra or version[1] > 0, "metadata", name)
        require(name not in tensors, "tensors", name)
        for part in PARTS:
            result.pop(f"{name}.{part}", None)
        result[name] = decode(name, entry, tensors)
    return result
