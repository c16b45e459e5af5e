"""Files: compact matrices and plain arrays on disk, and the exchange layouts of the paper's authors.

docs/FORMAT.md says what every byte means. The container is safetensors; what this module adds are the
names of a matrix's arrays, one description in canonical JSON, and a checksum over all of it. Whatever
is loaded went through `Matrix.from_arrays`, which checks every index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import unicodedata
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors

from gspattern._core import FormatError, PatternError
from gspattern.matrices import GSMatrix, Matrix
from gspattern.patterns import Banked, Pattern, parse_pattern

__all__ = [
    "load_file",
    "read_joined",
    "read_metadata",
    "read_text",
    "save_file",
    "write_joined",
    "write_text",
]

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

VERSION = (1, 0)
KEY = "gspattern"
DESCRIPTION: dict[str, type] = {
    "format": str,
    "matrices": dict,
    "metadata": dict,
    "sha256": str,
    "version": list,
}
ENTRY: dict[str, type] = {"pattern": str, "shape": list}
PARTS = ("values", "indices", "indptr", "row_order", "scales")
# Checking a matrix takes a few bytes for each of its columns, so that a small file with an absurd
# number of columns would take all of a machine's memory.
MAX_COLUMNS = 2**24

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _error(rule: str, message: str) -> FormatError:
    """A FormatError of the rule of docs/FORMAT.md, section 7."""
    error = FormatError(f"[{rule}] {message}")
    error.rule = rule
    return error


# ---------------------------------------------------------------------------- saving


def save_file(
    tensors: Mapping[str, Matrix | Array],
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save matrices and plain arrays in one file of docs/FORMAT.md, a safetensors file.

    The file appears under its name when it is complete: a reader never sees half of one, and a file
    that was there is replaced or left alone. Equal content gives equal bytes.

    Parameters
    ----------
    tensors : mapping of str to Matrix or ndarray
        What to save. Arrays (biases, norms) may be bool, integers, float16, bfloat16, float32 or
        float64, of any shape, byte order and strides.
    path : path
        Where to.
    metadata : mapping of str to str, optional
        Notes to keep with them; `read_metadata` gives them back.

    Raises
    ------
    TypeError
        For what is neither a Matrix nor an array, and for metadata that are not texts.
    ValueError
        For a dtype that files do not have, for matrices of more than 2**24 columns, and for a name
        that is empty, holds control characters, or that a matrix's own arrays need.
    OSError
        If the file cannot be written.
    """
    _replace(path, _to_bytes(tensors, metadata))


def _to_bytes(tensors: Mapping[str, Matrix | Array], metadata: Mapping[str, str] | None) -> bytes:
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"save_file takes a dict of names to matrices and arrays, got {_kind(tensors)}; "
            'write save_file({"name": matrix}, path)'
        )
    arrays: dict[str, Array] = {}
    matrices: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"names must be texts, got {name!r} ({type(name).__name__})")
        if wrong := _wrong_name(name):
            raise ValueError(f"a name in a file {wrong}, got {name!r}; rename it")
        if isinstance(value, Matrix):
            if value.shape[1] > MAX_COLUMNS:
                raise ValueError(
                    f"{name} has {value.shape[1]} columns, and files hold at most {MAX_COLUMNS}; "
                    "split it"
                )
            matrices[name] = _describe(value)
            for part, array in value.arrays().items():
                arrays[f"{name}.{part}"] = _storable(f"{name}.{part}", array)
        elif isinstance(value, np.ndarray):
            continue
        else:
            raise TypeError(
                f"{name} must be a Matrix or a NumPy array, got {type(value).__name__}; "
                "np.asarray makes arrays of most things"
            )
    for name, value in tensors.items():
        if isinstance(value, Matrix):
            continue
        owner, _, part = name.rpartition(".")
        if owner in matrices and part in PARTS:
            raise ValueError(
                f"the name {name!r} is that of an array of the matrix {owner!r}; rename one of them"
            )
        arrays[name] = _storable(name, value)
    for name in matrices:
        if name in arrays:
            raise ValueError(
                f"the name {name!r} is both a matrix and an array of a matrix; rename one of them"
            )
    description = {
        "format": KEY,
        "matrices": matrices,
        "metadata": _checked_metadata(metadata or {}),
        "version": list(VERSION),
    }
    description["sha256"] = _checksum(
        description,
        {name: (DTYPE_NAMES[a.dtype], list(a.shape), _bytes_of(a)) for name, a in arrays.items()},
    )
    return _container(arrays, {KEY: _canonical(description)})


def _describe(matrix: Matrix) -> dict[str, Any]:
    entry: dict[str, Any] = {"pattern": str(matrix.pattern), "shape": list(matrix.shape)}
    if matrix.kernel_shape is not None:
        entry["kernel_shape"] = list(matrix.kernel_shape)
    return entry


def _storable(name: str, array: Array) -> Array:
    """The array in C order and little-endian; a copy only if it is not."""
    dtype = array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"{name} has dtype {array.dtype}, which files do not have; "
            f"convert it to one of {', '.join(sorted(str(d) for d in DTYPE_NAMES))}"
        )
    return np.asarray(array, dtype=dtype, order="C")


def _wrong_name(name: str) -> str | None:
    if not name:
        return "must not be empty"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "must not hold control characters or surrogates"
    return "must not be __metadata__" if name == "__metadata__" else None


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must map texts to texts, got {_kind(metadata)}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"metadata must map texts to texts, got {key!r}: {value!r}; json.dumps makes texts"
            )
    return dict(metadata)


def _bytes_of(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(
    description: Mapping[str, Any], tensors: Mapping[str, tuple[str, list[int], Any]]
) -> str:
    """SHA-256 of docs/FORMAT.md, section 4; tensors are name: (dtype, shape, bytes)."""
    rest = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(_canonical(rest).encode("ascii") + b"\n")
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(_canonical([name, dtype, shape]).encode("ascii") + b"\n")
        digest.update(data)
    return digest.hexdigest()


def _container(arrays: dict[str, Array], metadata: dict[str, str]) -> bytes:
    # Newer versions of safetensors take addresses, older ones copies of the bytes.
    specs: dict[str, Any] = {}
    for name, array in arrays.items():
        dtype, shape = array.dtype.name, array.shape
        if hasattr(safetensors, "TensorSpec"):
            specs[name] = safetensors.TensorSpec(
                dtype=dtype, shape=shape, data_ptr=array.ctypes.data, data_len=array.nbytes
            )
        else:
            specs[name] = {"dtype": dtype, "shape": shape, "data": array.tobytes()}
    return bytes(safetensors.serialize(specs, metadata=metadata))


def _replace(path: PathLike, data: bytes) -> None:
    """Write a file under another name first, so that nobody sees half of it."""
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError):  # it names the draft, which the caller has never heard of
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise


# ---------------------------------------------------------------------------- loading


def load_file(path: PathLike) -> dict[str, Matrix | Array]:
    """Load what `save_file` saved, and trust none of it.

    An ordinary safetensors file gives its tensors as plain arrays.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict of str to Matrix or ndarray
        By name, ascending.

    Raises
    ------
    FormatError
        If the file breaks a rule of docs/FORMAT.md; its attribute `rule` names which.
    OSError
        If the file cannot be read: FileNotFoundError, say.
    """
    return _read(path)[0]


def read_metadata(path: PathLike) -> dict[str, str]:
    """Give the notes that were saved with a file; none for an ordinary safetensors file.

    Raises
    ------
    FormatError
        As `load_file`: notes of a damaged file are not given.
    OSError
        If the file cannot be read.
    """
    return _read(path)[1]


def _read(path: PathLike) -> tuple[dict[str, Matrix | Array], dict[str, str]]:
    data = Path(path).read_bytes()
    try:
        return _from_bytes(data)
    except FormatError as error:
        message = str(error).removeprefix(f"[{error.rule}] ")
        raise _error(error.rule, f"{os.fspath(path)}: {message}") from None


def _from_bytes(data: bytes) -> tuple[dict[str, Matrix | Array], dict[str, str]]:
    try:
        tensors: dict[str, dict[str, Any]] = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise _error("container", f"not a safetensors file, or cut short: {error}") from None
    arrays = {name: _array(name, tensor) for name, tensor in tensors.items()}
    description = _description(header.get("__metadata__") or {})
    if description is None:
        return {name: arrays[name] for name in sorted(arrays)}, {}
    found = _checksum(
        description, {name: (t["dtype"], t["shape"], t["data"]) for name, t in tensors.items()}
    )
    if description["sha256"] != found:
        raise _error(
            "checksum",
            f"the file was changed after it was saved: its SHA-256 is {found}, "
            f"expected {description['sha256']}; get the file again",
        )
    matrices: dict[str, dict[str, Any]] = description["matrices"]
    for name in (*tensors, *matrices):
        if wrong := _wrong_name(name):
            raise _error("name", f"a name {wrong}, got {name!r}")
    result: dict[str, Matrix | Array] = dict(arrays)
    for name, entry in matrices.items():
        if name in arrays:
            raise _error("tensors", f"{name} is both a matrix and a tensor")
        parts = {p: arrays[f"{name}.{p}"] for p in PARTS if f"{name}.{p}" in arrays}
        for part in parts:
            del result[f"{name}.{part}"]
        result[name] = _matrix(name, entry, parts)
    return {name: result[name] for name in sorted(result)}, description["metadata"]


def _array(name: str, tensor: dict[str, Any]) -> Array:
    dtype = DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise _error("dtype", f"{name} has dtype {tensor['dtype']}, expected {', '.join(DTYPES)}")
    data = tensor["data"]
    if dtype == np.bool_ and any(data.translate(None, b"\0\1")):
        raise _error("dtype", f"{name} has dtype BOOL, but bytes other than 0 and 1")
    try:
        array: Array = np.ndarray(tensor["shape"], dtype, buffer=data)
    except (ValueError, OverflowError):  # more dimensions or larger ones than NumPy has
        raise _error("shape", f"{name} has the impossible shape {tensor['shape']}") from None
    return array


def _description(metadata: dict[str, str]) -> dict[str, Any] | None:
    """The checked description of docs/FORMAT.md, section 3; None for an ordinary safetensors file."""
    if KEY not in metadata:
        if any('"format":"gspattern"' in text for text in metadata.values()):
            raise _error("metadata", f"the description does not stand under the key {KEY!r}")
        return None
    if len(metadata) > 1:
        raise _error("metadata", f"expected the key {KEY!r} alone, got {sorted(metadata)}")
    text = metadata[KEY]
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _error("metadata", f"the description is not JSON: {error}") from None
    if not isinstance(description, dict) or description.get("format") != KEY:
        raise _error("metadata", f"the description is not that of the format {KEY!r}")
    version = description.get("version")
    if not (isinstance(version, list) and len(version) == 2 and all(map(_is_count, version))):
        raise _error("metadata", f"version must be two numbers, got {version!r}")
    if version[0] != VERSION[0]:
        raise _error(
            "version",
            f"this is version {version[0]}.{version[1]} of the format, and this reader knows "
            f"{VERSION[0]}.{VERSION[1]}; use a gspattern that knows it",
        )
    if _canonical(description) != text:
        raise _error("metadata", "the description is not canonical JSON")
    newer = version[1] > VERSION[1]
    _check_keys("the description", description, newer, DESCRIPTION)
    for key, value in description["metadata"].items():
        if not isinstance(value, str):
            raise _error("metadata", f"metadata must be texts, got {key!r}: {value!r}")
    for name, entry in description["matrices"].items():
        if not isinstance(entry, dict):
            raise _error("metadata", f"the entry of {name} is not an object")
        _check_keys(f"the entry of {name}", entry, newer, ENTRY, {"kernel_shape"})
    return description


def _check_keys(
    what: str,
    entry: dict[str, Any],
    newer: bool,
    required: dict[str, type],
    optional: Collection[str] = (),
) -> None:
    for key, kind in required.items():
        if not isinstance(entry.get(key), kind):
            raise _error("metadata", f"{what} has no {key!r} of type {kind.__name__}")
    if not newer and (unknown := sorted(entry.keys() - required.keys() - set(optional))):
        raise _error("metadata", f"{what} has the unknown key {unknown[0]!r}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _matrix(name: str, entry: dict[str, Any], parts: dict[str, Array]) -> Matrix:
    sizes = entry["shape"], entry.get("kernel_shape", [])
    if not all(isinstance(size, list) and all(map(_is_count, size)) for size in sizes):
        raise _error("shape", f"{name}: shape and kernel_shape must be sizes, got {sizes}")
    shape = entry["shape"]
    if len(shape) != 2 or shape[1] > MAX_COLUMNS:
        raise _error(
            "shape",
            f"{name}: shape must be rows and at most {MAX_COLUMNS} columns, got {shape}",
        )
    pattern = _pattern(name, entry["pattern"], (shape[0], shape[1]))
    for part in ("values", "indices", "indptr"):
        if part not in parts:
            raise _error("tensors", f"the matrix {name} has no {name}.{part}")
    try:
        return Matrix.from_arrays(pattern, shape, **parts, kernel_shape=entry.get("kernel_shape"))
    except FormatError as error:
        raise _error(error.rule, f"{name}: {error}") from None


def _pattern(name: str, text: str, shape: tuple[int, int]) -> Pattern:
    try:
        pattern = parse_pattern(text)
        resolved = pattern.resolve(shape)
    except PatternError as error:
        raise _error("pattern", f"{name}: {error}") from None
    if resolved != pattern or str(pattern) != text:
        raise _error("pattern", f"{name}: expected {str(resolved)!r}, got {text!r}")
    return pattern


# ------------------------------------------------------- exchange layouts: joined arrays

# dtype of joined arrays: that of the values whose bits they hold.
JOINED: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.uint16): np.dtype(np.float16),
    np.dtype(np.uint32): np.dtype(np.float32),
}


def read_joined(
    joined: Array,
    indptr: Array,
    rowind: Array | None = None,
    *,
    shape: tuple[int, int],
    pattern: str | Pattern,
) -> GSMatrix:
    """Build a matrix from the arrays that the kernels of the paper's authors read.

    Parameters
    ----------
    joined : ndarray of uint16 or uint32, [bundles * 2 * B]
        For each bundle the bits of B float16 (or float32) values, then B absolute columns.
    indptr : ndarray of uint32, [groups + 1]
        First bundle of every group.
    rowind : ndarray of uint16 or uint32, [M], optional
        Row at each grouped position; given if and only if the pattern has scatter.
    shape : (int, int)
        M and K, which the arrays do not hold.
    pattern : str or Pattern
        A GS pattern.

    Returns
    -------
    GSMatrix
        float16 or float32, with the same bundles; their slots are put in the order of docs/FORMAT.md.

    Raises
    ------
    FormatError
        If the arrays are no matrix of that pattern; its attribute `rule` names why.
    PatternError
        If the pattern is not GS or does not fit the shape.
    """
    p = _banked(pattern, shape)
    value_dtype = JOINED.get(getattr(joined, "dtype", np.dtype(object)))
    if value_dtype is None:
        raise _error("dtype", f"joined must be uint16 or uint32, got {_kind(joined)}")
    if joined.ndim != 1 or joined.size % (2 * p.banks):
        raise _error(
            "shape",
            f"joined must be 1-D with a multiple of 2 * banks = {2 * p.banks} elements, "
            f"got shape {joined.shape}",
        )
    bundles = np.ascontiguousarray(joined).reshape(-1, 2, p.banks)
    values = np.ascontiguousarray(bundles[:, 0]).view(value_dtype)
    return _from_slots(values, bundles[:, 1], indptr, rowind, shape, p)


def write_joined(matrix: GSMatrix) -> tuple[Array, Array, Array | None]:
    """Give the arrays that the kernels of the paper's authors read.

    Parameters
    ----------
    matrix : GSMatrix
        float16, or float32 for their 32-bit variant.

    Returns
    -------
    joined : ndarray of uint16 or uint32, [bundles * 2 * B]
    indptr : ndarray of uint32, [groups + 1]
    rowind : ndarray of uint16, [M], or None without scatter
        uint32 if joined is.

    Raises
    ------
    ValueError
        For another dtype, and for columns (with scatter, rows) that do not fit the integers.
    """
    _require_gs(matrix)
    word = next((w for w, v in JOINED.items() if v == matrix.values.dtype), None)
    if word is None:
        raise ValueError(
            f"joined arrays hold float16 or float32 values, got {matrix.dtype}; "
            'use matrix.astype("float16")'
        )
    limit = int(np.iinfo(word).max)
    rows, cols = matrix.shape
    if cols > limit or (matrix.row_order is not None and rows > limit):
        raise ValueError(
            f"{word.name} reaches {limit} columns, and rows with scatter, got shape "
            f'{matrix.shape}; use matrix.astype("float32")'
        )
    columns, values = _to_slots(matrix)
    joined = np.stack([values.view(word), columns.astype(word)], axis=1).reshape(-1)
    row_order = None if matrix.row_order is None else matrix.row_order.astype(word)
    return joined, matrix.indptr.copy(), row_order


# ---------------------------------------------------------- exchange layouts: text files


def read_text(v_path: PathLike, ptr_path: PathLike, dtype: npt.DTypeLike = np.float32) -> GSMatrix:
    """Read a pair of text files of the paper's authors, ``V_<layer>.txt`` and ``PTR_<layer>.txt``.

    A warning is given if no value is negative: the authors' own writer stores absolute values, so
    that its files are good for timing and for nothing else. `write_text` keeps signs.

    Parameters
    ----------
    v_path, ptr_path : path
        Values and columns; shape, banks, per_row and the number of bundles of every group.
    dtype : dtype
        float64, float32, float16 or bfloat16.

    Returns
    -------
    GSMatrix
        Without scatter, which these files do not hold.

    Raises
    ------
    FormatError
        If the files are no matrix; its attribute `rule` names why.
    OSError
        If a file cannot be read.
    """
    numbers = _integers(_words(ptr_path), ptr_path)
    if len(numbers) < 4:
        raise _error("shape", f"{ptr_path}: expected rows, columns, banks, per_row and counts")
    rows, cols, banks, per_row, *counts = numbers
    try:
        p = _banked(f"gs({banks},{per_row})", (rows, cols))
    except PatternError as error:
        raise _error("pattern", f"{ptr_path}: {error}") from None
    if min(counts, default=0) < 0 or sum(counts) > 2**32 - 1:
        raise _error("indptr", f"{ptr_path}: counts must be from 0 to 2**32 - 1 in all")
    words = _words(v_path)
    if len(words) != 2 * p.banks * sum(counts):
        raise _error(
            "shape",
            f"{v_path}: expected {2 * p.banks * sum(counts)} numbers for {sum(counts)} bundles, "
            f"got {len(words)}",
        )
    try:
        numbers_of_v = np.array(words, np.float64).reshape(-1, 2, p.banks)
    except ValueError as error:
        raise _error("container", f"{v_path}: {error}") from None
    columns = numbers_of_v[:, 1]
    if not np.all((columns >= 0) & (columns <= cols) & (columns == np.floor(columns))):
        raise _error("index", f"{v_path}: columns must be whole numbers from 0 to {cols}")
    with np.errstate(over="ignore"):
        values = numbers_of_v[:, 0].astype(np.dtype(dtype))
    if np.count_nonzero(values) > 16 and not np.any(np.signbit(values)):
        warnings.warn(
            f"{v_path}: no value is negative; the authors' writer loses signs, and then the matrix "
            "is good for timing alone",
            stacklevel=2,
        )
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return _from_slots(values, columns.astype(np.int64), indptr, None, (rows, cols), p)


def write_text(matrix: GSMatrix, v_path: PathLike, ptr_path: PathLike) -> None:
    """Write a pair of text files as the paper's authors have them, but with the signs of the values.

    Parameters
    ----------
    matrix : GSMatrix
        Without scatter, with interleaved banks, and of any dtype but int8.
    v_path, ptr_path : path
        Where to.

    Raises
    ------
    ValueError
        If the matrix has what text files do not hold.
    OSError
        If a file cannot be written.
    """
    _require_gs(matrix)
    pattern = cast(Banked, matrix.pattern)
    if matrix.row_order is not None:
        raise ValueError(f"text files hold no row order, got {pattern}; use write_joined")
    if pattern.layout != "interleaved":
        raise ValueError(f"text files hold interleaved banks only, got {pattern}")
    if matrix.scales is not None:
        raise ValueError('text files hold no scales, got int8; use matrix.astype("float32")')
    columns, values = _to_slots(matrix)
    digits = ".17g" if values.dtype == np.float64 else ".9g"
    lines = []
    for bundle, cols in zip(values.astype(np.float64), columns, strict=True):
        lines.append(" ".join(format(value, digits) for value in bundle))
        lines.append(" ".join(str(col) for col in cols))
    rows, cols = matrix.shape
    counts = np.diff(matrix.indptr.astype(np.int64)).tolist()
    header = [f"{rows} {cols}", pattern.banks, pattern.per_row, *counts]
    _replace(v_path, "".join(f"{line}\n" for line in lines).encode("ascii"))
    _replace(ptr_path, "".join(f"{line}\n" for line in header).encode("ascii"))


def _words(path: PathLike) -> list[str]:
    return Path(path).read_text(encoding="ascii", errors="replace").split()


def _integers(words: list[str], path: PathLike) -> list[int]:
    numbers = []
    for word in words:
        if not word.removeprefix("-").isdecimal() or len(word) > 18:
            raise _error("container", f"{path}: expected whole numbers, got {word[:40]!r}")
        numbers.append(int(word))
    return numbers


# -------------------------------------------------------------- between the two orders


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _require_gs(matrix: object) -> None:
    if not isinstance(matrix, GSMatrix):
        raise TypeError(f"exchange layouts hold a GSMatrix, got {type(matrix).__name__}")


def _banked(pattern: str | Pattern, shape: tuple[int, int]) -> Banked:
    p = parse_pattern(pattern).resolve(shape)
    if not isinstance(p, Banked):
        raise PatternError(f"exchange layouts hold GS patterns, got {p}; write gs(16,16), say")
    return p


def _used_slots(pattern: Banked, rows: int, indptr: Array) -> Array:
    """Whether a slot stands for an element, bool [bundles, banks]: not where the last group is short."""
    groups = pattern.groups(rows)
    bounds: npt.NDArray[np.int64] = indptr.astype(np.int64)
    group = np.repeat(np.arange(groups), bounds[1:] - bounds[:-1])
    have = np.minimum(rows - group * pattern.group_rows, pattern.group_rows)
    return np.arange(pattern.banks) < (have * pattern.per_row)[:, None]


def _to_slots(matrix: GSMatrix) -> tuple[Array, Array]:
    """Absolute columns (int64) and values of every slot; K and 0 in the slots that a short group lacks."""
    used = _used_slots(cast(Banked, matrix.pattern), matrix.shape[0], matrix.indptr)
    return np.where(used, matrix.columns().astype(np.int64), matrix.shape[1]), matrix.values


def _from_slots(
    values: Array,
    columns: Array,
    indptr: Array,
    row_order: Array | None,
    shape: tuple[int, int],
    p: Banked,
) -> GSMatrix:
    """A matrix from bundles with absolute columns, in any order inside a row."""
    rows, cols = shape
    bounds = _bounds(indptr, p.groups(rows), len(values))
    used = _used_slots(p, rows, bounds)
    columns = columns.astype(np.int64)
    if np.any(values[~used] != 0) or np.any((columns[~used] != cols) & (columns[~used] != 0)):
        raise _error("padding", f"slots that a short group lacks need value 0 and index {cols}")
    if np.any(columns[used] >= cols):
        worst = int(columns[used].max())
        raise _error("index", f"column {worst} is outside a matrix of {cols} columns")
    # Absent slots get a bank beyond all others, so that sorting leaves them where they are.
    columns[~used] = 0
    values = np.where(used, values, np.zeros((), values.dtype))
    banks = np.where(used, p.bank_of(columns, cols), p.banks)
    order = np.argsort(banks.reshape(-1, p.per_row), axis=-1, kind="stable")

    def sort(array: Array) -> Array:
        return np.take_along_axis(array.reshape(-1, p.per_row), order, -1).reshape(array.shape)

    values, columns, banks = sort(values), sort(columns), sort(banks)
    if p.per_row == p.banks:
        if np.any(banks != np.arange(p.banks)):
            raise _error("banks", "two slots of a bundle share a bank")
        columns = columns - p.bank_starts(cols)
        if p.layout == "interleaved":
            columns //= p.banks
        widest = int(p.bank_widths(cols).max())
        dtype = np.uint8 if widest <= 256 else np.uint16 if widest <= 65536 else np.uint32
    else:
        dtype = np.uint16 if cols <= 65536 else np.uint32
    group = np.repeat(np.arange(p.groups(rows)), np.diff(bounds))
    bundles = np.lexsort((columns[:, 0], group))
    arrays: dict[str, Any] = {
        "values": np.ascontiguousarray(values[bundles]),
        "indices": columns[bundles].astype(dtype),
        "indptr": bounds.astype(np.uint32),
    }
    if row_order is not None:
        if not isinstance(row_order, np.ndarray) or row_order.dtype.kind != "u":
            raise _error("dtype", f"rowind must be unsigned integers, got {_kind(row_order)}")
        arrays["row_order"] = row_order.astype(np.uint32)
    try:
        return cast(GSMatrix, Matrix.from_arrays(p, shape, **arrays))
    except FormatError as error:
        raise _error(error.rule, str(error)) from None


def _bounds(indptr: Array, groups: int, bundles: int) -> npt.NDArray[np.int64]:
    """`indptr` as int64 if it divides so many bundles among the groups."""
    if not isinstance(indptr, np.ndarray) or indptr.dtype.kind not in "iu":
        raise _error("dtype", f"indptr must be integers, got {_kind(indptr)}")
    if indptr.shape != (groups + 1,):
        raise _error(
            "shape",
            f"indptr must have {groups + 1} elements for {groups} groups, got {indptr.shape}",
        )
    bounds = indptr.astype(np.int64)
    if bounds[0] != 0 or bounds[-1] != bundles or np.any(np.diff(bounds) < 0):
        raise _error("indptr", f"indptr must ascend from 0 to the number of bundles, {bundles}")
    return bounds
