"""What was pruned, as a table."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    Attributes
    ----------
    name : str
        Of the parameter.
    shape : (int, int)
        Rows M and columns K.
    pattern : str
        Resolved.
    asked, sparsity : float or None, float
        The share of zeros that was asked for (None where the pattern fixes it), and the one that it has now.
    kept : float
        Score kept when the mask was chosen, relative to the irregular mask of the same count.
    empty_rows : int
        Outputs that have lost all their inputs.
    nbytes, dense_nbytes : int
        Bytes of the matrix in its compact format, and dense.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    asked: float | None
    sparsity: float
    kept: float
    empty_rows: int
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True)
class DenseReport:
    """One parameter that is not pruned.

    Attributes
    ----------
    name : str
        Of the parameter.
    shape : tuple of int
    nbytes : int
    reason : str
        Why it is dense.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Report:
    """A table of pruned weights: iterate over its `rows`, or print it.

    Attributes
    ----------
    rows : tuple of LayerReport
        The weights that are pruned.
    dense : tuple of DenseReport
        All other parameters of the model, where there is one.
    """

    rows: tuple[LayerReport, ...]
    dense: tuple[DenseReport, ...] = ()

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sparsity(self) -> float:
        """The share of zeros in all these weights together."""
        sizes = [row.shape[0] * row.shape[1] for row in self.rows]
        zeros = sum(row.sparsity * size for row, size in zip(self.rows, sizes, strict=True))
        return zeros / sum(sizes)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def dense_nbytes(self) -> int:
        return sum(row.dense_nbytes for row in self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a head, a line for each weight, and the sum of them all."""
        head = (
            "weight", "shape", "pattern", "asked", "sparsity", "kept", "empty rows", "bytes", "of dense",
        )  # fmt: skip
        lines = [
            (
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                row.pattern,
                "" if row.asked is None else f"{row.asked:.4f}",
                f"{row.sparsity:.4f}",
                f"{row.kept:.4f}",
                str(row.empty_rows),
                f"{row.nbytes:,}",
                f"{row.nbytes / row.dense_nbytes:.1%}",
            )
            for row in self.rows
        ]
        total = (
            "all", "", "", "", f"{self.sparsity:.4f}", "", str(sum(r.empty_rows for r in self.rows)),
            f"{self.nbytes:,}", f"{self.nbytes / self.dense_nbytes:.1%}",
        )  # fmt: skip
        return [head, *lines, total]

    def __str__(self) -> str:
        return "\n".join([*_table(self.cells(), left=(0, 2)), *self._dense_lines()])

    def _dense_lines(self) -> list[str]:
        """Dense matrices one by one; vectors, which are many and small, together for every reason."""
        lines = []
        vectors: dict[str, int] = {}
        for row in self.dense:
            if len(row.shape) < 2:
                vectors[row.reason] = vectors.get(row.reason, 0) + 1
            else:
                shape = " x ".join(map(str, row.shape))
                lines.append(f"dense: {row.name}, {shape}, {row.nbytes:,} bytes: {row.reason}")
        lines += [f"dense: {count} vectors: {reason}" for reason, count in vectors.items()]
        return lines

    def to_json(self) -> str:
        """All that the table says, as a JSON object with the members "pruned", "dense" and "total"."""
        total = {
            "sparsity": self.sparsity,
            "nbytes": self.nbytes,
            "dense_nbytes": self.dense_nbytes,
        }
        return json.dumps(
            {
                "pruned": [asdict(row) for row in self.rows],
                "dense": [asdict(row) for row in self.dense],
                "total": total,
            },
            indent=1,
        )


@dataclass(frozen=True)
class ConvertedLayer:
    """What became of one layer of a model that was converted.

    Attributes
    ----------
    name, kind : str
        Of the layer, and of its type in the dense model, such as "Conv2d".
    pattern : str
        Of its weights, resolved; empty if it was not pruned.
    sparsity : float or None
        The share of zeros in its pruned weights; None if it was not pruned.
    compact : bool
        Whether it is compact now.
    reason : str
        Why it is, or why it is dense.
    dense_us, compact_us : float or None
        Microseconds of a call on the example, if they were measured.
    nbytes, dense_nbytes : int
        Bytes of the pruned weights, compact (whether they are now or not) and dense; 0 if it was not pruned.
    fused : str
        What is computed in the same pass: "batch norm", "sum" and the name of an activation, with commas.
    """

    name: str
    kind: str
    pattern: str
    sparsity: float | None
    compact: bool
    reason: str
    dense_us: float | None
    compact_us: float | None
    nbytes: int
    dense_nbytes: int
    fused: str


@dataclass(frozen=True)
class Conversion:
    """What `gspattern.torch.convert` made of a model: iterate over its `rows`, or print it.

    Attributes
    ----------
    rows : tuple of ConvertedLayer
        Layers that carry a mask, and others that compute more than they did.
    fuse : bool
        Whether batch norms, sums and activations are fused.
    notes : tuple of str
        What could not be fused, and why.
    """

    rows: tuple[ConvertedLayer, ...]
    fuse: bool = False
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ConvertedLayer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a head, a line for each layer, and the sum of them all."""
        head = (
            "layer", "type", "pattern", "is", "because", "fused", "sparsity", "dense us", "compact us",
            "bytes", "of dense",
        )  # fmt: skip
        lines = [
            (
                row.name or "the model",
                row.kind,
                row.pattern,
                "compact" if row.compact else "dense",
                row.reason,
                row.fused,
                "" if row.sparsity is None else f"{row.sparsity:.4f}",
                "" if row.dense_us is None else f"{row.dense_us:,.1f}",
                "" if row.compact_us is None else f"{row.compact_us:,.1f}",
                f"{row.nbytes:,}" if row.dense_nbytes else "",
                f"{row.nbytes / row.dense_nbytes:.1%}" if row.dense_nbytes else "",
            )
            for row in self.rows
        ]
        measured = [row for row in self.rows if row.dense_us is not None]
        times = [sum(getattr(row, key) for row in measured) for key in ("dense_us", "compact_us")]
        size, dense = (sum(getattr(row, key) for row in self.rows) for key in ("nbytes", "dense_nbytes"))  # fmt: skip
        total = (
            "all", "", "", "", "", "", "",
            *(f"{time:,.1f}" if measured else "" for time in times),
            f"{size:,}", f"{size / dense:.1%}" if dense else "",
        )  # fmt: skip
        return [head, *lines, total]

    def __str__(self) -> str:
        return "\n".join([*_table(self.cells(), left=range(6)), *self.notes])

    def to_json(self) -> str:
        """All that the table says, as a JSON object with the members "rows", "fuse" and "notes"."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Conversion:
        """The way back from `to_json`.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            found = json.loads(text)
            rows = tuple(ConvertedLayer(**row) for row in found["rows"])
            return cls(rows, bool(found["fuse"]), tuple(map(str, found["notes"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no report of a conversion: {error}") from None


def _table(cells: list[tuple[str, ...]], left: Container[int]) -> list[str]:
    """Lines of text: a head, a rule, the body, a rule, and the sum; columns of `left` flush left."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(map(len, text))
    return [text[0], rule, *text[1:-1], rule, text[-1]]


def kept_share(scores: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """The score that a mask keeps, relative to what the irregular mask of the same count keeps.

    Parameters
    ----------
    scores : ndarray of float32, [M, K]
    mask : ndarray of bool, [M, K]
    """
    count = int(mask.sum())
    if count in (0, scores.size):
        return 1.0
    largest = np.partition(scores, scores.size - count, axis=None)[-count:]
    most = float(largest.sum(dtype=np.float64))
    return float(scores[mask].sum(dtype=np.float64)) / most if most > 0 else 1.0
