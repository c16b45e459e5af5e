"""Random compact matrices with their dense weights, built from the definitions alone: no code of gspattern packs
or decodes them, so that plans can be held against NumPy before and without the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from gspattern import GS, NM, Block, Irregular, Pattern

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
}


@dataclass
class Sample:
    """What the plans read of a matrix, and `dense`: the weights in float64, scales applied."""

    pattern: Pattern
    shape: tuple[int, int]
    dtype: np.dtype
    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    row_order: np.ndarray | None
    scales: np.ndarray | None
    dense: np.ndarray
    kernel_shape: tuple[int, ...] | None = None
    _plans: dict = field(default_factory=dict)

    def core(self) -> tuple:
        number = list(DTYPES).index(self.dtype.name)
        values = self.values.view(np.uint16) if self.dtype.itemsize == 2 else self.values
        return (
            self.pattern.core(), self.shape, number, values, self.indices, self.indptr,
            self.row_order, self.scales,
        )  # fmt: skip

    @property
    def nnz_row(self) -> int:
        return int((self.dense != 0).sum(axis=1).max(initial=0))


def sample_matrix(
    pattern: Pattern,
    shape: tuple[int, int],
    density: float = 0.2,
    dtype: str = "float32",
    seed: int = 0,
) -> Sample:
    """A random valid matrix of about this density; rows and groups differ in their counts."""
    rng = np.random.default_rng([seed, *shape])
    build = {GS: _gs, Block: _block, Irregular: _irregular, NM: _nm}[type(pattern)]
    row_order = rng.permutation(shape[0]).astype(np.uint32) if pattern.scatter else None
    # Entries are (unit, slot within unit or (), row, col, index).
    entries, units, indptr, unit_shape, index_dtype = build(pattern, shape, density, rng, row_order)
    values = np.zeros((units, *unit_shape), DTYPES[dtype])
    indices = np.zeros((units, *unit_shape) if isinstance(pattern, GS) else units, np.int64)
    scales = rng.uniform(0.5, 2, shape[0]).astype(np.float32) if dtype == "int8" else None
    dense = np.zeros(shape)
    for unit, slot, row, col, index in entries:
        raw = rng.integers(1, 128) * rng.choice([-1, 1]) if dtype == "int8" else rng.normal()
        values[(unit, *slot)] = raw
        indices[(unit, *slot) if isinstance(pattern, GS) else unit] = index
        assert dense[row, col] == 0
        dense[row, col] = np.float64(values[(unit, *slot)]) * (
            1 if scales is None else np.float64(scales[row])
        )
    if isinstance(pattern, NM):
        bits = 2 if pattern.m <= 4 else 4 if pattern.m <= 16 else 8
        planes = (indices[:, None] >> np.arange(bits)) & 1
        indices = np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")
    return Sample(
        pattern, shape, values.dtype, values, indices.astype(index_dtype), np.array(indptr, np.uint32),
        row_order, scales, dense,
    )  # fmt: skip


def _bank_columns(pattern: GS, cols: int, bank: int) -> np.ndarray:
    if pattern.layout == "interleaved":
        return np.arange(bank, cols, pattern.banks)
    return np.arange(bank * cols // pattern.banks, (bank + 1) * cols // pattern.banks)


def _gs(pattern, shape, density, rng, row_order):
    rows, cols = shape
    banks, per_row = pattern.banks, pattern.per_row
    group_rows = banks // per_row
    columns = [_bank_columns(pattern, cols, bank) for bank in range(banks)]
    short = per_row == banks
    entries, indptr, unit = [], [0], 0
    for first in range(0, rows, group_rows):
        here = min(group_rows, rows - first)
        # Half of the narrowest bank at most, so that random picks find room.
        most = max(1, min(len(c) for c in columns) // 2) if cols else 0
        want = rng.poisson(density * cols / per_row)
        used = [set() for _ in range(here)]
        for _ in range(min(want, most)):
            order = rng.permutation(banks)
            for place in range(here):
                for slot, bank in enumerate(sorted(order[place * per_row : (place + 1) * per_row])):
                    free = [i for i, col in enumerate(columns[bank]) if col not in used[place]]
                    i = rng.choice(free)
                    col = columns[bank][i]
                    used[place].add(col)
                    row = first + place if row_order is None else row_order[first + place]
                    entries.append((unit, (place * per_row + slot,), row, col, i if short else col))
            unit += 1
        indptr.append(unit)
    widest = -(-cols // banks)
    reach = widest if short else cols
    index_dtype = (
        np.uint8 if short and widest <= 256 else np.uint16 if reach <= 65536 else np.uint32
    )
    return entries, unit, indptr, (banks,), index_dtype


def _irregular(pattern, shape, density, rng, row_order):
    rows, cols = shape
    entries, indptr, unit = [], [0], 0
    for row in range(rows):
        for col in np.flatnonzero(rng.random(cols) < density * rng.uniform(0, 2)):
            entries.append((unit, (), row, col, col))
            unit += 1
        indptr.append(unit)
    return entries, unit, indptr, (), np.uint16 if cols <= 65536 else np.uint32


def _block(pattern, shape, density, rng, row_order):
    rows, cols = shape
    height, width = pattern.rows, pattern.cols
    entries, indptr, unit = [], [0], 0
    for top in range(0, rows, height):
        for block in np.flatnonzero(rng.random(-(-cols // width)) < density):
            for row in range(top, min(top + height, rows)):
                for col in range(block * width, min((block + 1) * width, cols)):
                    entries.append((unit, (row - top, col - block * width), row, col, block))
            unit += 1
        indptr.append(unit)
    return entries, unit, indptr, (height, width), np.uint16


def _nm(pattern, shape, density, rng, row_order):
    rows, cols = shape
    entries, indptr, unit = [], [0], 0
    for row in range(rows):
        for left in range(0, cols, pattern.m):
            width = min(pattern.m, cols - left)
            for position in sorted(rng.choice(width, min(pattern.n, width), replace=False)):
                entries.append((unit, (), row, left + position, position))
                unit += 1
        indptr.append(unit)
    return entries, unit, indptr, (), np.uint8


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [K, ...] as an int8 matrix multiplies it: whole numbers q - zero, and the scale of each sample.

    In float32, as gspattern.h defines it."""
    one = np.float32(1)
    low = np.minimum(x.min(axis=0, initial=0), np.float32(0))
    high = np.maximum(x.max(axis=0, initial=0), np.float32(0))
    scale = np.maximum(high / np.float32(255) - low / np.float32(255), np.float32(2.0**-126))
    zero = np.rint(-low * (one / scale))
    q = np.clip(np.rint(x * (one / scale)) + zero, 0, 255)
    return (q - zero).astype(np.int64), scale


def exact_int8(sample: Sample, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W x of an int8 sample and how far from it y may be: the sum of whole numbers is exact, and float32 rounds it
    and two products with scales."""
    steps, scale = rounded(x)
    weights = np.rint(sample.dense / sample.scales[:, None].astype(np.float64)).astype(np.int64)
    sums = (weights @ steps).astype(np.float64)
    scales = sample.scales.astype(np.float64).reshape(-1, *(1,) * (x.ndim - 1))
    exact = sums * scale.astype(np.float64) * scales
    return exact, 2 * np.finfo(np.float32).eps * np.abs(exact)
