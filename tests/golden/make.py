"""Makes the files of this folder again: python tests/golden/make.py

Everything is written by hand here and packed by tests/format_reader.py, so that gspattern has no
part in it. `good/*.safetensors` hold a matrix `w` and, as the plain array `expected`, what it
decodes to in float64. `bad/<rule>__<what>.safetensors` break that one rule of docs/FORMAT.md; their
checksum is right unless the rule comes before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from format_reader import Tensor, canonical, checksum, seal, write_container  # noqa: E402

NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I8": "i1",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
}
Tensors = dict[str, Tensor]
Description = dict[str, Any]


def tensor(dtype: str, values: Any) -> Tensor:
    if dtype == "BF16":
        array = (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2")
    else:
        array = np.asarray(values, NUMPY[dtype])
    return Tensor(dtype, array.shape, array.tobytes())


def description(pattern: str, shape: list[int], **more: Any) -> Description:
    entry = {"pattern": pattern, "shape": shape, **more}
    return {"format": "gspattern", "matrices": {"w": entry}, "metadata": {}, "version": [1, 0]}


def matrix(
    pattern: str,
    expected: Any,
    values: tuple[str, Any],
    indices: tuple[str, Any],
    indptr: list[int],
    row_order: list[int] | None = None,
    scales: list[float] | None = None,
    **more: Any,
) -> tuple[Tensors, Description]:
    expected = np.asarray(expected, float)
    tensors = {
        "w.values": tensor(*values),
        "w.indices": tensor(*indices),
        "w.indptr": tensor("U32", indptr),
        "expected": tensor("F64", expected),
    }
    if row_order is not None:
        tensors["w.row_order"] = tensor("U32", row_order)
    if scales is not None:
        tensors["w.scales"] = tensor("F32", scales)
    return tensors, description(pattern, list(expected.shape), **more)


def example() -> tuple[Tensors, Description]:
    """Section 8 of docs/FORMAT.md; alone there, so without `expected`."""
    tensors, about = matrix(
        "gs(2,1)",
        [[1, 0, 0, 2], [0, 3, 4, 0], [0, 0, 5, 0]],
        ("F32", [[1, 3], [2, 4], [5, 0]]),
        ("U16", [[0, 1], [3, 2], [2, 0]]),
        [0, 2, 3],
    )
    del tensors["expected"]
    return tensors, about


def good() -> dict[str, tuple[Tensors, Description]]:
    # Banks of 6 columns mod 4: {0, 4}, {1, 5}, {2}, {3}.
    horizontal = matrix(
        "gs(4,4)",
        [[1, 0, -3, 4, 0, 2], [0, 0, 0, 0, 0, 0], [0, 6, 7, 8, 5, 0]],
        ("F32", [[1, 2, -3, 4], [5, 6, 7, 8]]),
        ("U8", [[0, 1, 0, 0], [1, 0, 0, 0]]),
        [0, 1, 1, 2],
    )
    # Banks of 7 columns in 3 runs: {0, 1}, {2, 3}, {4, 5, 6}.
    contiguous = matrix(
        "gs(3,3,contiguous)+scatter",
        [[0, 1, 2, 0, 0, 0, 3], [4, 5, 6, 7, 8, 0, 9]],
        ("BF16", [[4, 6, 8], [5, 7, 9], [1, 2, 3]]),
        ("U8", [[0, 0, 0], [1, 1, 2], [1, 0, 2]]),
        [0, 2, 3],
        row_order=[1, 0],
    )
    # Positions 0..4 are rows 4 2 0 1 3; groups {4, 2}, {0, 1}, the short {3}; banks are mod 4.
    hybrid = matrix(
        "gs(4,2)+scatter",
        [
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 3, 0, 4, 0, 0, 0, 0],
            [0, 0, 0, 7, 9, 8, 6, 0],
            [1, 0, 0, 0, 0, 0, 2, 0],
        ],
        ("F16", [[1, 2, 3, 4], [9, 7, 0, 0], [8, 6, 0, 0]]),
        ("U16", [[0, 6, 1, 3], [4, 3, 0, 0], [5, 6, 0, 0]]),
        [0, 1, 1, 3],
        row_order=[4, 2, 0, 1, 3],
    )
    # The bundles of the example's first group the other way round: any order is right.
    any_order = matrix(
        "gs(2,1)",
        [[1, 0, 0, 2], [0, 3, 4, 0], [0, 0, 5, 0]],
        ("F32", [[2, 4], [1, 3], [5, 0]]),
        ("U16", [[3, 2], [0, 1], [2, 0]]),
        [0, 2, 3],
    )
    hybrid_contiguous = matrix(
        "gs(4,2,contiguous)",
        [[1, 0, 0, 2, 0, 0], [0, 3, 0, 0, 4, 0]],
        ("F64", [[1, 2, 3, 4]]),
        ("U16", [[0, 3, 1, 4]]),
        [0, 1],
    )
    bank_balanced = matrix(
        "bank_balanced(2)",
        [[1, 0, 0, 2], [0, 3, 4, 0]],
        ("I8", [[1, 2], [3, 4]]),
        ("U8", [[0, 1], [1, 0]]),
        [0, 1, 2],
        scales=[0.5, -2.0],
    )
    block = matrix(
        "block(2,3)",
        [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 7]],
        ("F32", [[[1, 2, 3], [4, 5, 6]], [[7, 0, 0], [0, 0, 0]]]),
        ("U16", [0, 1]),
        [0, 1, 2],
    )
    irregular = matrix(
        "irregular",
        [[0, 1.5, 0], [0, 0, 0], [-0.0, 0, np.inf]],
        ("F32", [1.5, -0.0, 0.0, np.inf]),
        ("U16", [1, 0, 1, 2]),
        [0, 1, 1, 4],
    )
    # Windows of 6 columns: {0..3} with two slots, {4, 5} with two. Positions 1 3 0 1 and 0 2 0 1.
    two_four = matrix(
        "2:4",
        [[0, 1, 0, 2, 3, 4], [5, 0, 6, 0, 0, 7]],
        ("F32", [1, 2, 3, 4, 5, 6, 0, 7]),
        ("U8", [0b01_00_11_01, 0b01_00_10_00]),
        [0, 4, 8],
    )
    # One slot for {0..4}, one for {5, 6}; 4 bits each; three rows share bytes.
    one_five = matrix(
        "1:5",
        [[0, 0, 0, 0, 1, 2, 0], [3, 0, 0, 0, 0, 0, 4], [0, 0, 5, 0, 0, 0, 6]],
        ("F32", [1, 2, 3, 4, 5, 6]),
        ("U8", [0x04, 0x10, 0x12]),
        [0, 2, 4, 6],
    )
    # Five 2-bit positions and six bits left over.
    one_two_odd = matrix(
        "1:2",
        [[0, 1, 2, 0, 0, 3, 0, 4, 5]],
        ("F32", [1, 2, 3, 4, 5]),
        ("U8", [0b01_01_00_01, 0]),
        [0, 5],
    )
    # 9-bit positions would be needed: the one bank is 300 wide.
    wide_row = np.zeros((1, 300))
    wide_row[0, [3, 299]] = [1, 2]
    wide = matrix("gs(1,1)", wide_row, ("F32", [[1], [2]]), ("U16", [[3], [299]]), [0, 2])
    # (2, 2, 2, 2): channel 1 at height 0, width 1 is column (0 * 2 + 1) * 2 + 1 = 3.
    kernel = matrix(
        "irregular",
        [[0, 0, 0, 7, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 8]],
        ("F32", [7, 8]),
        ("U16", [3, 7]),
        [0, 1, 2],
        kernel_shape=[2, 2, 2, 2],
    )
    empty = matrix(
        "gs(2,1)", np.zeros((3, 2)), ("F32", np.zeros((0, 2))), ("U16", np.zeros((0, 2))), [0, 0, 0]
    )
    nothing = matrix("irregular", np.zeros((0, 0)), ("F32", []), ("U16", []), [0])
    notes = matrix("irregular", [[1.0]], ("F32", [1]), ("U16", [0]), [0, 1])
    notes[1]["metadata"] = {"author": "gr\u00fc\u00df \U0001f600", "epoch": "3"}
    notes[0]["fc.bias \u00e9"] = tensor("F16", [1, 2, 3])
    return {
        "example": example(),
        "horizontal": horizontal,
        "contiguous": contiguous,
        "hybrid": hybrid,
        "any_order": any_order,
        "hybrid_contiguous": hybrid_contiguous,
        "bank_balanced": bank_balanced,
        "block": block,
        "irregular": irregular,
        "two_four": two_four,
        "one_five": one_five,
        "one_two_odd": one_two_odd,
        "wide": wide,
        "kernel": kernel,
        "empty": empty,
        "nothing": nothing,
        "notes": notes,
    }


def _with(name: str, part: str, values: tuple[str, Any]) -> bytes:
    """A good file with one tensor replaced and the checksum made right."""
    return _plus(name, f"w.{part}", values)


def _entry(name: str, **changes: Any) -> bytes:
    """A good file with members of the matrix's entry replaced and the checksum made right."""
    tensors, about = good()[name]
    about["matrices"]["w"].update(changes)
    return seal(tensors, about)


def _about(name: str, change: Callable[[Description], Any]) -> bytes:
    tensors, about = good()[name]
    change(about)
    return seal(tensors, about)


def _without(name: str, part: str) -> bytes:
    tensors, about = good()[name]
    del tensors[f"w.{part}"]
    return seal(tensors, about)


def _plus(name: str, extra: str, values: tuple[str, Any]) -> bytes:
    tensors, about = good()[name]
    tensors[extra] = tensor(*values)
    return seal(tensors, about)


def _bool_of_two() -> bytes:
    tensors, about = example()
    tensors["mask"] = Tensor("BOOL", (3,), b"\0\1\2")
    return seal(tensors, about)


def _many_columns() -> bytes:
    tensors, _ = matrix("gs(1,1)", [[0]], ("F32", [[1]]), ("U32", [[0]]), [0, 1])
    return seal(tensors, description("gs(1,1)", [1, 2**32 - 2]))


def bad() -> dict[str, bytes]:
    whole = seal(*example())
    tensors, about = example()
    sealed = dict(about, sha256=checksum(tensors, about))
    text = canonical(sealed)
    newer = dict(about, version=[2, 0])
    return {
        "container__nothing": b"",
        "container__half": whole[: len(whole) // 2],
        "container__one_byte_less": whole[:-1],
        "container__one_byte_more": whole + b"\0",
        "container__length": b"\xff" * 8 + whole[8:],
        "container__words": b"This is a text and no matrix at all.\n",
        "metadata__blank": write_container(tensors, {"gspattern": text.replace(",", ", ")}),
        "metadata__other_key": write_container(tensors, {"gspattern": text, "format": "pt"}),
        "metadata__renamed": write_container(tensors, {"gspatterm": text}),
        "metadata__not_json": write_container(tensors, {"gspattern": text[:-1]}),
        "metadata__deep": write_container(tensors, {"gspattern": "[" * 5000}),
        "metadata__no_checksum": write_container(tensors, {"gspattern": canonical(about)}),
        "metadata__unknown_key": _about("example", lambda d: d.update(extra=1)),
        "metadata__unknown_key_of_matrix": _entry("example", nnz=5),
        "metadata__no_pattern": _about("example", lambda d: d["matrices"]["w"].pop("pattern")),
        "metadata__pattern_is_number": _entry("example", pattern=4),
        "metadata__notes_not_text": _about("example", lambda d: d.update(metadata={"epoch": 3})),
        "version__newer": seal(tensors, newer),
        "version__older": _about("example", lambda d: d.update(version=[0, 9])),
        "checksum__values": whole[:-4] + b"\1" + whole[-3:],
        "checksum__digest": write_container(
            tensors, {"gspattern": canonical(dict(sealed, sha256="0" * 64))}
        ),
        "name__control": _plus("example", "a\nb", ("F32", [1.0])),
        "name__empty": _plus("example", "", ("F32", [1.0])),
        "pattern__auto": _entry("example", pattern="auto"),
        "pattern__cpu": _entry("example", pattern="gs(cpu)"),
        "pattern__blank": _entry("example", pattern="gs(2, 1)"),
        "pattern__not_divided": _entry("example", pattern="gs(2,3)"),
        "pattern__too_many_banks": _entry("example", pattern="gs(8,8)"),
        "tensors__no_indptr": _without("example", "indptr"),
        "tensors__no_row_order": _without("hybrid", "row_order"),
        "tensors__no_scales": _without("bank_balanced", "scales"),
        "tensors__row_order": _plus("example", "w.row_order", ("U32", [0, 1, 2])),
        "tensors__scales": _plus("example", "w.scales", ("F32", [1, 1, 1])),
        "tensors__plain_array_of_that_name": _plus("example", "w", ("F32", [1.0])),
        "dtype__indices_wide": _with("example", "indices", ("U32", [[0, 1], [3, 2], [2, 0]])),
        "dtype__values": _with("example", "values", ("U32", [[1, 3], [2, 4], [5, 0]])),
        "dtype__bool": _bool_of_two(),
        "dtype__indptr": _with("example", "indptr", ("U16", [0, 2, 3])),
        "shape__rows": _entry("example", shape=[5, 4]),
        "shape__negative": _entry("example", shape=[-3, 4]),
        "shape__three": _entry("example", shape=[3, 4, 1]),
        "shape__huge": _entry("nothing", shape=[2**32, 0]),
        "shape__many_columns": _many_columns(),
        "shape__values": _with("example", "values", ("F32", [1, 3, 2, 4, 5, 0])),
        "shape__indices": _with("example", "indices", ("U16", [[0, 1], [3, 2]])),
        "shape__no_kernel": _entry("kernel", kernel_shape=None),
        "shape__kernel": _entry("kernel", kernel_shape=[2, 2, 2, 3]),
        "row_order__twice": _with("hybrid", "row_order", ("U32", [4, 2, 0, 1, 1])),
        "row_order__outside": _with("hybrid", "row_order", ("U32", [4, 2, 0, 1, 5])),
        "scales__nan": _with("bank_balanced", "scales", ("F32", [1, np.nan])),
        "indptr__start": _with("example", "indptr", ("U32", [1, 2, 3])),
        "indptr__falls": _with("horizontal", "indptr", ("U32", [0, 2, 1, 2])),
        "indptr__end": _with("example", "indptr", ("U32", [0, 2, 4])),
        "indptr__huge": _with("horizontal", "indptr", ("U32", [0, 2**32 - 1, 1, 2])),
        "indptr__unequal": _with("bank_balanced", "indptr", ("U32", [0, 0, 2])),
        "indptr__window": _with("two_four", "indptr", ("U32", [0, 3, 8])),
        "index__column": _with("example", "indices", ("U16", [[0, 1], [3, 4], [2, 0]])),
        "index__uneven_bank": _with("horizontal", "indices", ("U8", [[0, 1, 1, 0], [1, 0, 0, 0]])),
        "index__contiguous_bank": _with(
            "contiguous", "indices", ("U8", [[0, 2, 0], [1, 1, 2], [1, 0, 2]])
        ),
        "index__irregular": _with("irregular", "indices", ("U16", [1, 0, 1, 3])),
        "index__block": _with("block", "indices", ("U16", [0, 2])),
        "index__window": _with("two_four", "indices", ("U8", [0b10_00_11_01, 0b01_00_10_00])),
        "banks__shared": _with("example", "indices", ("U16", [[0, 2], [3, 2], [2, 0]])),
        "order__slots": _with(
            "hybrid", "indices", ("U16", [[6, 0, 1, 3], [4, 3, 0, 0], [5, 6, 0, 0]])
        ),
        "duplicate__bundles": _with("example", "indices", ("U16", [[0, 1], [0, 3], [2, 0]])),
        "duplicate__horizontal": seal(
            *matrix("gs(1,1)", [[0, 0]], ("F32", [[1], [2]]), ("U8", [[0], [0]]), [0, 2])
        ),
        "duplicate__irregular": _with("irregular", "indices", ("U16", [1, 1, 1, 2])),
        "order__irregular": _with("irregular", "indices", ("U16", [1, 2, 1, 0])),
        "order__block": seal(
            *matrix("block(1,1)", [[0, 0]], ("F32", [[[1]], [[2]]]), ("U16", [1, 0]), [0, 2])
        ),
        "order__window": _with("two_four", "indices", ("U8", [0b01_00_01_11, 0b01_00_10_00])),
        "duplicate__block": seal(
            *matrix("block(1,1)", [[0, 0]], ("F32", [[[1]], [[2]]]), ("U16", [1, 1]), [0, 2])
        ),
        "duplicate__window": _with("two_four", "indices", ("U8", [0b01_00_01_01, 0b01_00_10_00])),
        "padding__value": _with("example", "values", ("F32", [[1, 3], [2, 4], [5, 6]])),
        "padding__minus_zero": _with("example", "values", ("F32", [[1, 3], [2, 4], [5, -0.0]])),
        "padding__index": _with("example", "indices", ("U16", [[0, 1], [3, 2], [2, 1]])),
        "padding__block": _with(
            "block", "values", ("F32", [[[1, 2, 3], [4, 5, 6]], [[7, 8, 0], [0, 0, 0]]])
        ),
        "padding__bits": _with("one_two_odd", "indices", ("U8", [0b01_01_00_01, 0b100])),
    }


def main() -> None:
    for folder, files in (("good", {n: seal(*f) for n, f in good().items()}), ("bad", bad())):
        (HERE / folder).mkdir(exist_ok=True)
        for old in (HERE / folder).glob("*.safetensors"):
            old.unlink()
        for name, data in files.items():
            (HERE / folder / f"{name}.safetensors").write_bytes(data)


if __name__ == "__main__":
    main()
