from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import struct
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import format_reader
import gspattern as gs
from gspattern import files

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
GOOD = sorted((GOLDEN / "good").glob("*.safetensors"))
BAD = sorted((GOLDEN / "bad").glob("*.safetensors"))
FORMAT = (ROOT / "docs" / "FORMAT.md").read_text()
DTYPES = ["float64", "float32", "float16", "bfloat16", "int8"]
PATTERNS = [
    "gs(4,4)",
    "gs(4,1)",
    "gs(4,2)",
    "gs(6,2,contiguous)",
    "gs(5,5,contiguous)",
    "gs(8,1)+scatter",
    "gs(4,4,contiguous)+scatter",
    "gs(1,1)",
    "bank_balanced(4)",
    "irregular",
    "block(1,4)",
    "block(3,2)",
    "block(16,1)",
    "2:4",
    "3:7",
    "5:17",
    "1:1",
]
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))


def random_mask(
    p: gs.Pattern, shape: tuple[int, int], row_order: Any, rng: np.random.Generator
) -> np.ndarray:
    """A valid mask, put together bundle by bundle (block by block, window by window)."""
    rows, cols = shape
    mask = np.zeros(shape, bool)
    if isinstance(p, gs.Irregular):
        return rng.random(shape) < 0.3
    if isinstance(p, gs.Block):
        blocks = rng.random((-(-rows // p.rows), -(-cols // p.cols))) < 0.3
        return np.kron(blocks, np.ones((p.rows, p.cols), bool))[:rows, :cols].astype(bool)
    if isinstance(p, gs.NM):
        for row in mask:
            for begin in range(0, cols, p.m):
                width = min(p.m, cols - begin)
                row[begin + rng.permutation(width)[: rng.integers(0, p.n + 1)]] = True
        return mask
    bank_of = p.bank_of(np.arange(cols), cols)
    for begin in range(0, rows, p.group_rows):
        group = np.asarray(row_order[begin : begin + p.group_rows])
        for _ in range(1 if isinstance(p, gs.BankBalanced) else rng.integers(0, 4)):
            banks = rng.permutation(p.banks)[: len(group) * p.per_row]
            free = [
                np.flatnonzero((bank_of == bank) & ~mask[row])
                for bank, row in zip(banks, np.repeat(group, p.per_row), strict=True)
            ]
            if all(map(len, free)):
                for row, columns in zip(np.repeat(group, p.per_row), free, strict=True):
                    mask[row, rng.choice(columns)] = True
    return mask


def example_matrix(
    pattern: str, shape: tuple[int, int] = (13, 21), dtype: str = "float32", seed: int = 0
) -> gs.Matrix:
    """A matrix with a random mask, weights with signs, and some zeros that the mask keeps."""
    rng = np.random.default_rng(seed)
    p = gs.parse_pattern(pattern).resolve(shape)
    row_order = rng.permutation(shape[0]) if p.scatter else np.arange(shape[0])
    mask = random_mask(p, shape, row_order, rng)
    order = row_order if p.scatter else None
    if dtype == "int8":
        weights = rng.integers(-128, 128, shape).astype(np.int8)
        scales = rng.random(shape[0], np.float32)
        return gs.encode(weights, p, mask=mask, row_order=order, scales=scales)
    weights = np.round(rng.standard_normal(shape) * 4).astype(np.dtype(dtype)) / np.dtype(
        dtype
    ).type(3)
    return gs.encode(weights, p, mask=mask, row_order=order)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))


def assert_same(matrix: gs.Matrix, decoded: format_reader.Decoded) -> None:
    """That gspattern and the independent reader see the same matrix."""
    assert str(matrix.pattern) == decoded.pattern
    assert matrix.shape == decoded.dense.shape
    assert files.DTYPE_NAMES[np.dtype(matrix.values.dtype)] == decoded.dtype
    np.testing.assert_array_equal(bits(matrix.to_dense()), bits(decoded.dense))
    np.testing.assert_array_equal(matrix.mask(), decoded.stored)
    for mine, theirs in ((matrix.row_order, decoded.row_order), (matrix.scales, decoded.scales)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs)
    kernel = None if matrix.kernel_shape is None else list(matrix.kernel_shape)
    assert kernel == decoded.kernel_shape


def golden_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------ golden files


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_golden_file(path: Path, tmp_path: Path) -> None:
    loaded = gs.load_file(path)
    independent = format_reader.read_bytes(path.read_bytes())
    assert sorted(loaded) == sorted(independent)
    assert_same(loaded["w"], independent["w"])
    if path.stem != "example":
        dense = loaded["w"].to_dense().astype(np.float64)
        np.testing.assert_array_equal(dense, loaded["expected"])
    copy = tmp_path / "copy.safetensors"
    gs.save_file(loaded, copy, gs.read_metadata(path))
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_golden_file(path: Path) -> None:
    rule = path.stem.split("__")[0]
    with pytest.raises(format_reader.RefusedError) as refused:
        format_reader.read_bytes(path.read_bytes())
    assert refused.value.rule == rule
    with pytest.raises(gs.FormatError, match=rf"^\[{rule}\] ") as error:
        gs.load_file(path)
    assert error.value.rule == rule


def test_golden_files_are_what_their_script_makes() -> None:
    make = golden_make()
    good = {name: format_reader.seal(*content) for name, content in make.good().items()}
    assert {path.stem: path.read_bytes() for path in GOOD} == good
    assert {path.stem: path.read_bytes() for path in BAD} == make.bad()


def test_every_rule_has_a_bad_file() -> None:
    table = FORMAT[FORMAT.index("| rule |") :]
    rules = re.findall(r"^\| `(\w+)` \|", table[: table.index("\n\n")], re.MULTILINE)
    assert len(rules) >= 17
    assert {path.stem.split("__")[0] for path in BAD} == set(rules)


def test_the_example_of_the_page_is_the_golden_file() -> None:
    section = FORMAT[FORMAT.index("## 8.") : FORMAT.index("## 9.")]
    lines = re.findall(r"^    ([0-9a-f]{3})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})", section, re.MULTILINE)
    data = b""
    for offset, octets in lines:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(octets)
    assert data == (GOLDEN / "good" / "example.safetensors").read_bytes()


def test_the_sizes_of_the_page() -> None:
    text = FORMAT[FORMAT.index("## 9.") : FORMAT.index("## 10.")].replace("\n", " ")
    dense, horizontal, csr, scipy_csr = (
        int(number.replace(",", ""))
        for number in re.search(
            r"takes ([\d,]+) bytes dense, about ([\d,]+) as `gs\(16,16\)`, ([\d,]+) as CSR .*? and ([\d,]+) in SciPy",
            text,
        ).groups()
    )
    weights = np.ones((1024, 1024), np.float32)
    assert weights.nbytes == dense
    # 6553 bundles of 16, the most that a tenth of the elements allows: 6 or 7 in a row.
    bundles = 6 + (np.arange(1024) < 6553 - 6 * 1024)
    mask = np.arange(1024) < 16 * bundles[:, None]
    assert gs.encode(weights, "gs(16,16)", mask=mask).nbytes == pytest.approx(horizontal, abs=500)
    irregular = gs.encode(weights, "irregular", mask=mask)
    assert irregular.nbytes == pytest.approx(csr, abs=500)
    as_scipy = scipy.sparse.csr_array(weights * mask)
    total = as_scipy.data.nbytes + as_scipy.indices.nbytes + as_scipy.indptr.nbytes
    assert total == pytest.approx(scipy_csr, abs=500)


# -------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_round_trip(pattern: str, dtype: str, tmp_path: Path) -> None:
    matrix = example_matrix(pattern, dtype=dtype)
    path = tmp_path / "m.safetensors"
    gs.save_file({"layer.weight": matrix}, path)
    loaded = gs.load_file(path)["layer.weight"]
    assert type(loaded) is type(matrix)
    assert loaded.pattern == matrix.pattern
    assert loaded.arrays().keys() == matrix.arrays().keys()
    for part, array in matrix.arrays().items():
        np.testing.assert_array_equal(bits(loaded.arrays()[part]), bits(array))
        assert loaded.arrays()[part].dtype == array.dtype
    assert_same(matrix, format_reader.read_bytes(path.read_bytes())["layer.weight"])

    again = tmp_path / "again.safetensors"
    gs.save_file({"layer.weight": loaded}, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "shape", [(0, 8), (1, 8), (8, 8), (1, 300), (17, 64), (5, 70_000)], ids=str
)
@pytest.mark.parametrize(
    "pattern", ["gs(4,4)", "gs(4,1)+scatter", "irregular", "block(2,3)", "2:4"]
)
def test_round_trip_of_shapes(pattern: str, shape: tuple[int, int], tmp_path: Path) -> None:
    matrix = example_matrix(pattern, shape)
    gs.save_file({"w": matrix}, tmp_path / "m")
    loaded = gs.load_file(tmp_path / "m")["w"]
    np.testing.assert_array_equal(loaded.to_dense(), matrix.to_dense())
    if shape[1] < 1000:
        assert_same(matrix, format_reader.read_bytes((tmp_path / "m").read_bytes())["w"])


@settings(FUZZ, max_examples=100)
@given(
    pattern=st.sampled_from(PATTERNS),
    shape=st.tuples(st.integers(1, 20), st.integers(8, 40)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_matrix_is_read_alike_by_both_readers(
    pattern: str, shape: tuple[int, int], dtype: str, seed: int
) -> None:
    matrix = example_matrix(pattern, shape, dtype, seed)
    data = files._to_bytes({"w": matrix}, None)
    assert_same(matrix, format_reader.read_bytes(data)["w"])
    assert_same(files._from_bytes(data)[0]["w"], format_reader.read_bytes(data)["w"])


ARRAYS = {
    "bool": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((3, 0, 2), np.int16),
    "strided": np.arange(24, dtype=np.float64).reshape(4, 6)[::2, ::-3],
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big_endian": np.arange(5, dtype=">u4"),
    "bfloat16": np.array([1.5, -2, np.inf], ml_dtypes.bfloat16),
    "half": np.array([[1, 2]], np.float16),
    "u8": np.arange(3, dtype=np.uint8),
    "i8": np.arange(3, dtype=np.int8),
    "u16": np.arange(3, dtype=np.uint16),
    "i64": np.array([-(2**63)]),
    "u64": np.array([2**64 - 1], np.uint64),
}


def test_plain_arrays_beside_matrices(tmp_path: Path) -> None:
    matrix = example_matrix("gs(4,2)")
    gs.save_file({**ARRAYS, "w": matrix}, tmp_path / "m")
    loaded = gs.load_file(tmp_path / "m")
    assert list(loaded) == sorted([*ARRAYS, "w"])
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert loaded[name].shape == array.shape
    independent = format_reader.read_bytes((tmp_path / "m").read_bytes())
    for name, array in ARRAYS.items():
        theirs = independent[name].array()
        mine = array.view(np.uint16) if name == "bfloat16" else array
        np.testing.assert_array_equal(theirs, mine)


def test_order_of_the_mapping_does_not_matter(tmp_path: Path) -> None:
    tensors = {**ARRAYS, "w": example_matrix("gs(4,2)"), "v": example_matrix("2:4")}
    gs.save_file(tensors, tmp_path / "a", {"x": "1", "y": "2"})
    gs.save_file(
        dict(reversed(tensors.items())),
        tmp_path / "b",
        dict(reversed({"x": "1", "y": "2"}.items())),
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata(tmp_path: Path) -> None:
    notes = {"author": "grüß \U0001f600\n", "": ""}
    gs.save_file({"b": np.zeros(2)}, tmp_path / "m", notes)
    assert gs.read_metadata(tmp_path / "m") == notes
    assert list(gs.load_file(tmp_path / "m")) == ["b"]
    gs.save_file({}, tmp_path / "m")
    assert gs.read_metadata(tmp_path / "m") == {}
    assert gs.load_file(tmp_path / "m") == {}


def test_ordinary_safetensors_file(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int64)}
    safetensors.numpy.save_file(arrays, tmp_path / "m", {"format": "pt"})
    loaded = gs.load_file(tmp_path / "m")
    assert list(loaded) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert gs.read_metadata(tmp_path / "m") == {}


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    matrix = example_matrix("gs(4,4)")
    gs.save_file({"w": matrix}, tmp_path / "m")
    arrays = safetensors.numpy.load_file(tmp_path / "m")
    np.testing.assert_array_equal(arrays["w.values"], matrix.values)
    np.testing.assert_array_equal(arrays["w.indices"], matrix.indices)


def test_a_later_minor_version_may_add_keys() -> None:
    tensors, about = golden_make().example()
    about["version"] = [1, 7]
    about["hint"] = [1.5, None]
    about["matrices"]["w"]["speed"] = "high"
    data = format_reader.seal(tensors, about)
    assert_same(files._from_bytes(data)[0]["w"], format_reader.read_bytes(data)["w"])


# ---------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("tensors", "error", "match"),
    [
        (None, TypeError, "takes a dict of names to matrices and arrays, got NoneType"),
        (np.zeros(1), TypeError, r"write save_file\({"),
        ({"": np.zeros(1)}, ValueError, "must not be empty"),
        ({"a\nb": np.zeros(1)}, ValueError, "control characters"),
        ({"a\ud800": np.zeros(1)}, ValueError, "surrogates"),
        ({"__metadata__": np.zeros(1)}, ValueError, "__metadata__"),
        ({3: np.zeros(1)}, TypeError, "names must be texts, got 3"),
        ({"a": [1.0]}, TypeError, "a must be a Matrix or a NumPy array, got list"),
        ({"a": np.zeros(1, complex)}, ValueError, "a has dtype complex128"),
        ({"a": np.array(["x"])}, ValueError, "a has dtype <U1"),
        ({"a": np.array([None])}, ValueError, "a has dtype object"),
        ({"a": np.zeros(1, np.longdouble)}, ValueError, "a has dtype"),
    ],
)
def test_wrong_tensors(tensors: Any, error: type, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        gs.save_file(tensors, tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, ["a"]])
def test_wrong_metadata(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must map texts to texts"):
        gs.save_file({}, tmp_path / "m", metadata)


def test_names_that_collide(tmp_path: Path) -> None:
    matrix = example_matrix("irregular")
    for part in ("values", "indices", "indptr", "row_order", "scales"):
        with pytest.raises(ValueError, match=f"'w.{part}' is that of an array of the matrix 'w'"):
            gs.save_file({"w": matrix, f"w.{part}": np.zeros(1)}, tmp_path / "m")
    with pytest.raises(ValueError, match=r"'w.values' is both a matrix and an array"):
        gs.save_file({"w": matrix, "w.values": matrix}, tmp_path / "m")
    gs.save_file({"w": matrix, "w.bias": np.zeros(1), "w.values.b": matrix}, tmp_path / "m")
    assert list(gs.load_file(tmp_path / "m")) == ["w", "w.bias", "w.values.b"]


def test_more_columns_than_can_be_loaded(tmp_path: Path) -> None:
    weights = np.zeros((1, 2**24 + 1), np.int8)
    matrix = gs.encode(weights, "irregular", mask=weights != 0, scales=[1.0])
    with pytest.raises(ValueError, match="w has 16777217 columns, and files hold at most"):
        gs.save_file({"w": matrix}, tmp_path / "m")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gs.load_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        gs.read_metadata(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        gs.save_file({}, tmp_path / "none" / "m")
    with pytest.raises(IsADirectoryError):
        gs.load_file(tmp_path)


@pytest.mark.parametrize("name", ["none/m", "file/m", "folder"])
def test_a_failed_save_names_the_path_that_was_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        gs.save_file({}, tmp_path / name)
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / name), None)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(GOOD[0].read_bytes()[:-1])
    for read in (gs.load_file, gs.read_metadata):
        with pytest.raises(gs.FormatError) as caught:
            read(path)
        assert str(caught.value).startswith(f"[{caught.value.rule}] {path}: ")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    gs.save_file({"a": np.zeros(3)}, path)
    before = path.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        gs.save_file({"a": np.ones(3)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    gs.save_file({"a": np.zeros(3)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert list(gs.load_file(tmp_path / "real")) == ["a"]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    contents = [{"a": np.full(200_000, fill)} for fill in (0.0, 1.0)]
    gs.save_file(contents[0], path)
    done = threading.Event()

    def save() -> None:
        for i in range(10):
            gs.save_file(contents[i % 2], path)
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    while not done.is_set():
        array = gs.load_file(path)["a"]
        assert len(array) == 200_000
        assert len(np.unique(array)) == 1
    thread.join()


# ----------------------------------------------------------------------- hostile bytes


def both_read(data: bytes) -> bool:
    """Whether gspattern accepts a file. What it accepts the independent reader, which checks every
    rule by itself, must accept too, and see the same in it."""
    try:
        mine = files._from_bytes(data)[0]
    except gs.FormatError as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert str(error).startswith(f"[{error.rule}] ")
        return False
    theirs = format_reader.read_bytes(data)
    assert sorted(mine) == sorted(theirs)
    for name, value in mine.items():
        if isinstance(value, gs.Matrix):
            assert_same(value, theirs[name])
        else:
            tensor = theirs[name]
            assert value.tobytes() == tensor.data
            assert value.shape == tensor.shape
    return True


def their_verdict(data: bytes) -> bool:
    try:
        format_reader.read_bytes(data)
    except format_reader.RefusedError:
        return False
    return True


CONTENTS = [format_reader.read_container(path.read_bytes()) for path in GOOD]


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_any_byte_flipped(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(GOOD)).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    # Some flips in the header leave its meaning as it is, so that accepting them is right.
    assert not both_read(bytes(content)) or at < 8 + int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("path", GOOD[:4], ids=lambda path: path.stem)
def test_any_truncation(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        with pytest.raises(gs.FormatError, match=r"^\[container\]"):
            files._from_bytes(content[:length])


@settings(FUZZ, max_examples=600)
@given(data=st.data())
def test_any_tensor_changed_under_a_right_checksum(data: st.DataObject) -> None:
    tensors, metadata = data.draw(st.sampled_from(CONTENTS))
    tensors = {name: tensor for name, tensor in tensors.items() if name != "expected"}
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    content = bytearray(tensor.data)
    if content:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.one_of(st.integers(0, 4), st.integers(0, 255)))
    tensors[name] = format_reader.Tensor(tensor.dtype, tensor.shape, bytes(content))
    about = json.loads(metadata["gspattern"])
    sealed = format_reader.seal(tensors, about)
    assert both_read(sealed) == their_verdict(sealed)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 20),
        st.sampled_from([2**16, 2**31, 2**32 - 2, 2**32, 2**63, 2**64, 10**30]),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from([*PATTERNS, "auto", "gs(cpu)", "GS(4,4)", "F32", "U8", "I64", "BF16", "w"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutate(data: st.DataObject, value: Any) -> Any:
    """`value` with one of its members, at any depth, replaced, removed or added."""
    choices = ["replace"]
    if isinstance(value, dict | list) and value:
        choices += ["inside", "inside", "inside", "remove"]
    if isinstance(value, dict | list):
        choices += ["add"]
    choice = data.draw(st.sampled_from(choices))
    if choice == "replace":
        return data.draw(JSON)
    copy = dict(value) if isinstance(value, dict) else list(value)
    keys = sorted(copy) if isinstance(copy, dict) else list(range(len(copy)))
    if choice == "inside":
        key = data.draw(st.sampled_from(keys))
        copy[key] = mutate(data, copy[key])
    elif choice == "remove":
        del copy[data.draw(st.sampled_from(keys))]
    elif isinstance(copy, dict):
        copy[data.draw(st.text(max_size=5))] = data.draw(JSON)
    else:
        copy.insert(data.draw(st.integers(0, len(copy))), data.draw(JSON))
    return copy


@settings(FUZZ, max_examples=600)
@given(data=st.data(), right_checksum=st.booleans())
def test_any_change_of_the_description(data: st.DataObject, right_checksum: bool) -> None:
    tensors, metadata = data.draw(st.sampled_from(CONTENTS))
    about = mutate(data, json.loads(metadata["gspattern"]))
    if right_checksum and isinstance(about, dict):
        sealed = format_reader.seal(tensors, about)
    else:
        sealed = format_reader.write_container(
            tensors, {"gspattern": format_reader.canonical(about)}
        )
    assert both_read(sealed) == their_verdict(sealed)


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_any_change_of_the_header(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(GOOD)).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = mutate(data, json.loads(content[8 : 8 + length]))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    both_read(struct.pack("<Q", len(text)) + text + content[8 + length :])


@settings(FUZZ, max_examples=300)
@given(data=st.data())
def test_any_tensor_reshaped_under_a_right_checksum(data: st.DataObject) -> None:
    tensors, metadata = data.draw(st.sampled_from(CONTENTS))
    tensors = dict(tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtype = data.draw(st.sampled_from(sorted(format_reader.DTYPES)))
    size = np.dtype(format_reader.DTYPES[dtype]).itemsize
    shape = data.draw(
        st.one_of(st.just(tensors[name].shape), st.lists(st.integers(0, 5), max_size=4).map(tuple))
    )
    count = int(np.prod(shape, dtype=np.int64)) * size
    content = (tensors[name].data + bytes(count))[:count]
    tensors[name] = format_reader.Tensor(dtype, shape, content)
    sealed = format_reader.seal(tensors, json.loads(metadata["gspattern"]))
    assert both_read(sealed) == their_verdict(sealed)


@settings(FUZZ, max_examples=200)
@given(content=st.binary(max_size=200), length=st.integers(0, 64))
def test_any_bytes(content: bytes, length: int) -> None:
    both_read(content)
    both_read(struct.pack("<Q", length) + content)


# --------------------------------------------------------------------- exchange layouts

# What the authors' kernels read, by hand: GS(4,2) of 3 x 6, so one full group of 2 rows and a short
# one. Banks mod 4: {0, 4}, {1, 5}, {2}, {3}. Slots of a row fall in magnitude; index 6 is padding.
#     row 0:  0  -5   0   2   0   0
#     row 1:  1   0   4   0   0   0
#     row 2:  0   0   3   0  -7   0
HAND_DENSE = np.array([[0, -5, 0, 2, 0, 0], [1, 0, 4, 0, 0, 0], [0, 0, 3, 0, -7, 0]])
HAND_VALUES = np.array([[-5, 2, 4, 1], [-7, 3, 0, 0]])
HAND_COLUMNS = np.array([[1, 3, 2, 0], [4, 2, 6, 6]])
HAND_INDPTR = np.array([0, 1, 2], np.uint32)
HAND_V = "-5 2 4 1\n1 3 2 0\n-7 3 0 0\n4 2 6 6\n"
HAND_PTR = "3 6\n4\n2\n1\n1\n"


def hand_joined(columns: Any = HAND_COLUMNS, values: Any = HAND_VALUES, wide: bool = False) -> Any:
    value, word = (np.float32, np.uint32) if wide else (np.float16, np.uint16)
    pairs = [np.asarray(values, value).view(word), np.asarray(columns, word)]
    return np.concatenate(pairs, axis=1).reshape(-1)


@pytest.mark.parametrize("wide", [False, True])
def test_read_joined_by_hand(wide: bool) -> None:
    matrix = gs.read_joined(hand_joined(wide=wide), HAND_INDPTR, shape=(3, 6), pattern="gs(4,2)")
    np.testing.assert_array_equal(matrix.to_dense(), HAND_DENSE)
    assert matrix.values.dtype == (np.float32 if wide else np.float16)
    np.testing.assert_array_equal(matrix.indices, [[1, 3, 0, 2], [4, 2, 0, 0]])


def test_read_joined_scatter_by_hand() -> None:
    matrix = gs.read_joined(
        hand_joined(),
        HAND_INDPTR,
        np.array([2, 0, 1], np.uint16),
        shape=(3, 6),
        pattern="gs(4,2)+scatter",
    )
    np.testing.assert_array_equal(matrix.to_dense()[[2, 0, 1]], HAND_DENSE)


def test_read_joined_horizontal_by_hand() -> None:
    # GS(2,2) of 2 x 4: bundles in the authors' order, largest first.
    joined = hand_joined([[3, 2], [0, 1], [1, 2]], [[9, -8], [7, 6], [5, 4]])
    matrix = gs.read_joined(joined, np.array([0, 2, 3]), shape=(2, 4), pattern="gs(2,2)")
    np.testing.assert_array_equal(matrix.to_dense(), [[7, 6, -8, 9], [0, 5, 4, 0]])


def test_write_joined_by_hand() -> None:
    mask = HAND_DENSE != 0
    matrix = gs.encode(HAND_DENSE.astype(np.float16), "gs(4,2)", mask=mask)
    joined, indptr, rowind = gs.write_joined(matrix)
    assert joined.dtype == np.uint16
    assert indptr.dtype == np.uint32
    assert rowind is None
    bundles = joined.reshape(-1, 2, 4)
    # In a row by ascending bank: 1 and 3, 0 and 2, 0 (column 4) and 2.
    np.testing.assert_array_equal(bundles[:, 1], [[1, 3, 0, 2], [4, 2, 6, 6]])
    np.testing.assert_array_equal(bundles[:, 0].view(np.float16), [[-5, 2, 1, 4], [-7, 3, 0, 0]])
    np.testing.assert_array_equal(indptr, [0, 1, 2])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "pattern",
    ["gs(4,4)", "gs(4,2)", "gs(4,1)", "gs(4,1)+scatter", "gs(8,2)+scatter", "gs(4,4)+scatter"],
)
def test_joined_round_trip(pattern: str, dtype: str) -> None:
    matrix = example_matrix(pattern, dtype=dtype)
    joined, indptr, rowind = gs.write_joined(matrix)
    assert (rowind is not None) == matrix.pattern.scatter

    # An oracle in three loops: y = W x as the authors' kernels compute it.
    p = matrix.pattern
    dense = np.zeros((13, 22), matrix.values.dtype)  # a column for the padding
    lanes = joined.reshape(-1, 2, p.banks)
    for group in range(len(indptr) - 1):
        for bundle in range(indptr[group], indptr[group + 1]):
            for slot in range(p.banks):
                position = group * p.group_rows + slot // p.per_row
                if position < 13:
                    row = position if rowind is None else rowind[position]
                    dense[row, lanes[bundle, 1, slot]] += lanes[bundle, 0].view(dense.dtype)[slot]
                else:
                    assert lanes[bundle, 1, slot] == 21
                    assert lanes[bundle, 0, slot] == 0
    np.testing.assert_array_equal(dense[:, :21], matrix.to_dense())

    back = gs.read_joined(joined, indptr, rowind, shape=matrix.shape, pattern=pattern)
    for part, array in matrix.arrays().items():
        np.testing.assert_array_equal(back.arrays()[part], array)


@settings(FUZZ, max_examples=60)
@given(seed=st.integers(0, 2**32), pattern=st.sampled_from(["gs(4,4)", "gs(4,2)", "gs(8,1)"]))
def test_joined_in_any_order_of_slots_and_bundles(seed: int, pattern: str) -> None:
    rng = np.random.default_rng(seed)
    matrix = example_matrix(pattern, dtype="float16", seed=seed % 97)
    joined, indptr, _ = gs.write_joined(matrix)
    per_row = matrix.pattern.per_row
    bundles = joined.reshape(-1, 2, matrix.pattern.banks).copy()
    for begin, end in itertools.pairwise(indptr):
        bundles[begin:end] = bundles[begin:end][rng.permutation(int(end - begin))]
    for bundle in bundles:
        for row in range(0, matrix.pattern.banks, per_row):
            order = row + rng.permutation(per_row)
            bundle[:, row : row + per_row] = bundle[:, order]
    back = gs.read_joined(bundles.reshape(-1), indptr, shape=matrix.shape, pattern=pattern)
    np.testing.assert_array_equal(back.to_dense(), matrix.to_dense())


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ("index", {"joined": hand_joined([[1, 3, 6, 0], [4, 2, 6, 6]])}),
        ("index", {"joined": hand_joined([[1, 3, 7, 0], [4, 2, 6, 6]])}),
        # Padding where the group is not short, although its value is 0.
        (
            "index",
            {"joined": hand_joined([[1, 6, 2, 0], [4, 2, 6, 6]], [[1, 0, 1, 1], [1, 1, 0, 0]])},
        ),
        ("padding", {"joined": hand_joined(HAND_COLUMNS, [[-5, 2, 4, 1], [-7, 3, 0, 1]])}),
        ("padding", {"joined": hand_joined([[1, 3, 2, 0], [4, 2, 6, 5]])}),
        ("banks", {"joined": hand_joined([[1, 3, 2, 3], [4, 2, 6, 6]])}),
        ("banks", {"joined": hand_joined([[1, 5, 2, 0], [4, 2, 6, 6]])}),
        (
            "duplicate",
            {
                "joined": hand_joined(
                    [[1, 3, 2, 0], [1, 3, 2, 4], [4, 2, 6, 6]],
                    [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]],
                ),
                "indptr": np.array([0, 2, 3]),
            },
        ),
        ("indptr", {"indptr": np.array([0, 1, 1])}),
        ("indptr", {"indptr": np.array([1, 1, 2])}),
        ("indptr", {"indptr": np.array([0, 3, 2])}),
        ("indptr", {"indptr": np.array([0, -1, 2])}),
        ("shape", {"indptr": np.array([0, 2])}),
        ("shape", {"joined": hand_joined()[:-1]}),
        ("shape", {"joined": hand_joined().reshape(2, 8)}),
        ("dtype", {"joined": hand_joined().astype(np.float32)}),
        ("dtype", {"joined": [1, 2]}),
        ("dtype", {"indptr": np.array([0.0, 1, 2])}),
        ("tensors", {"rowind": np.array([0, 1, 2], np.uint16)}),
        ("tensors", {"pattern": "gs(4,2)+scatter"}),
        ("row_order", {"pattern": "gs(4,2)+scatter", "rowind": np.array([0, 1, 1], np.uint16)}),
        ("row_order", {"pattern": "gs(4,2)+scatter", "rowind": np.array([0, 1, 3], np.uint16)}),
        ("shape", {"pattern": "gs(4,2)+scatter", "rowind": np.array([0, 1], np.uint16)}),
        ("dtype", {"pattern": "gs(4,2)+scatter", "rowind": np.array([0, 1, 2])}),
    ],
)
def test_wrong_joined(rule: str, arguments: dict[str, Any]) -> None:
    right = {"joined": hand_joined(), "indptr": HAND_INDPTR, "shape": (3, 6), "pattern": "gs(4,2)"}
    with pytest.raises(gs.FormatError, match=rf"^\[{rule}\] ") as error:
        gs.read_joined(**(right | arguments))
    assert error.value.rule == rule


def test_joined_of_the_wrong_pattern() -> None:
    for pattern in ("irregular", "gs(8,8)", "2:4"):
        with pytest.raises(gs.PatternError):
            gs.read_joined(hand_joined(), HAND_INDPTR, shape=(3, 6), pattern=pattern)
    with pytest.raises(TypeError, match="exchange layouts hold a GSMatrix, got CSRMatrix"):
        gs.write_joined(example_matrix("irregular"))
    with pytest.raises(ValueError, match="float16 or float32 values, got bfloat16"):
        gs.write_joined(example_matrix("gs(4,4)", dtype="bfloat16"))
    with pytest.raises(ValueError, match="uint16 reaches 65535 columns"):
        gs.write_joined(example_matrix("gs(4,4)", (1, 70_000), "float16"))


def write_hand_text(folder: Path, v: str = HAND_V, ptr: str = HAND_PTR) -> tuple[Path, Path]:
    (folder / "V_hand.txt").write_text(v)
    (folder / "PTR_hand.txt").write_text(ptr)
    return folder / "V_hand.txt", folder / "PTR_hand.txt"


def test_read_text_by_hand(tmp_path: Path) -> None:
    matrix = gs.read_text(*write_hand_text(tmp_path))
    np.testing.assert_array_equal(matrix.to_dense(), HAND_DENSE)
    assert str(matrix.pattern) == "gs(4,2)"
    assert matrix.values.dtype == np.float32


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pattern", ["gs(4,4)", "gs(4,2)", "gs(4,1)"])
def test_text_round_trip(pattern: str, dtype: str, tmp_path: Path) -> None:
    matrix = example_matrix(pattern, dtype=dtype)
    assert (matrix.to_dense() < 0).any()  # signs are kept
    v, ptr = tmp_path / "V_a.txt", tmp_path / "PTR_a.txt"
    gs.write_text(matrix, v, ptr)
    lines = ptr.read_text().splitlines()
    assert lines[:3] == ["13 21", "4", str(matrix.pattern.per_row)]
    np.testing.assert_array_equal(np.diff(matrix.indptr), np.array(lines[3:], int))
    assert len(v.read_text().splitlines()) == 2 * len(matrix.values)
    back = gs.read_text(v, ptr, np.dtype(dtype))
    for part, array in matrix.arrays().items():
        np.testing.assert_array_equal(back.arrays()[part], array)


def test_text_without_signs_warns(tmp_path: Path) -> None:
    weights = np.abs(np.random.default_rng(0).standard_normal((8, 16))).astype(np.float32) + 1
    matrix = gs.encode(weights, "gs(4,4)", mask=np.ones((8, 16), bool))
    gs.write_text(matrix, tmp_path / "v", tmp_path / "ptr")
    with pytest.warns(UserWarning, match="the authors' writer loses signs"):
        back = gs.read_text(tmp_path / "v", tmp_path / "ptr")
    np.testing.assert_array_equal(back.to_dense(), matrix.to_dense())


@pytest.mark.parametrize(
    ("rule", "v", "ptr"),
    [
        ("shape", HAND_V, ""),
        ("shape", HAND_V, "3 6\n4"),
        ("shape", HAND_V, HAND_PTR + "1\n"),
        ("shape", HAND_V + "1", HAND_PTR),
        ("shape", "", HAND_PTR),
        ("container", HAND_V.replace("-5", "x"), HAND_PTR),
        ("container", HAND_V, HAND_PTR.replace("4", "4.0")),
        ("container", HAND_V, HAND_PTR.replace("4", "9" * 100)),
        ("index", HAND_V.replace("1 3 2 0", "1 3.5 2 0"), HAND_PTR),
        ("index", HAND_V.replace("1 3 2 0", "1 -3 2 0"), HAND_PTR),
        ("index", HAND_V.replace("1 3 2 0", "1 nan 2 0"), HAND_PTR),
        ("index", HAND_V.replace("1 3 2 0", "1 6 2 0"), HAND_PTR),
        ("index", HAND_V.replace("1 3 2 0", "1 1e30 2 0"), HAND_PTR),
        ("banks", HAND_V.replace("1 3 2 0", "1 3 2 1"), HAND_PTR),
        ("padding", HAND_V.replace("-7 3 0 0", "-7 3 0 2"), HAND_PTR),
        ("pattern", HAND_V, HAND_PTR.replace("4\n2", "4\n3")),
        ("pattern", HAND_V, HAND_PTR.replace("4\n2", "0\n0")),
        ("pattern", HAND_V, HAND_PTR.replace("3 6", "3 2")),
        ("indptr", HAND_V, HAND_PTR.replace("1\n1", "-1\n3")),
        ("shape", HAND_V, HAND_PTR.replace("3 6", "999999999999 6")),
    ],
)
def test_wrong_text(rule: str, v: str, ptr: str, tmp_path: Path) -> None:
    with pytest.raises(gs.FormatError, match=rf"^\[{rule}\] ") as error:
        gs.read_text(*write_hand_text(tmp_path, v, ptr))
    assert error.value.rule == rule


def test_what_text_files_do_not_hold(tmp_path: Path) -> None:
    paths = tmp_path / "v", tmp_path / "ptr"
    with pytest.raises(ValueError, match="no row order"):
        gs.write_text(example_matrix("gs(4,1)+scatter"), *paths)
    with pytest.raises(ValueError, match="interleaved banks only"):
        gs.write_text(example_matrix("gs(4,4,contiguous)"), *paths)
    with pytest.raises(ValueError, match="no scales"):
        gs.write_text(example_matrix("gs(4,4)", dtype="int8"), *paths)
    with pytest.raises(TypeError, match="GSMatrix"):
        gs.write_text(example_matrix("2:4"), *paths)
    with pytest.raises(FileNotFoundError):
        gs.read_text(*paths)
    assert os.listdir(tmp_path) == []
