"""Write a compact matrix and an input as a folder of .npy files, for run_matrix.

    python export_arrays.py FOLDER [PATTERN]

writes a random 256x512 matrix at 90 % sparsity (n:m has its own), x and, to compare with, y.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import gspattern as gs


def export(matrix: gs.Matrix, x: np.ndarray, folder: str | Path) -> None:
    """Write the arrays of the matrix, its twelve numbers and x into a folder."""
    core = matrix.pattern.core()
    number = dict.fromkeys(
        ["kind", "banks", "per_row", "layout", "block_rows", "block_cols", "n", "m"], 0
    )
    number["kind"] = ["gs", "irregular", "block", "nm"].index(core[0])
    places = {"gs": ["banks", "per_row", "layout"], "block": ["block_rows", "block_cols"]}
    number.update(zip(places.get(core[0], ["n", "m"]), core[1:], strict=False))
    index_bytes = matrix.indices.itemsize
    if core[0] == "nm":  # positions are packed: their bits
        index_bytes = 2 if core[2] <= 4 else 4 if core[2] <= 16 else 8

    arrays = {
        "matrix": np.array([*number.values(), *matrix.shape, len(matrix.values), index_bytes]),
        "values": matrix.values,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "row_order": matrix.row_order,
        "scales": matrix.scales,
        "x": x.astype(np.float64 if matrix.dtype == np.float64 else np.float32),
    }
    if matrix.dtype.name == "bfloat16":  # a type of which .npy files know only the bits
        arrays["values"] = matrix.values.view(np.uint16)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        if array is None:
            path.unlink(missing_ok=True)  # of a matrix that was here before
        else:
            np.save(path, np.ascontiguousarray(array))


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: export_arrays.py FOLDER [PATTERN]")
    folder = sys.argv[1]
    try:
        pattern = gs.parse_pattern(sys.argv[2] if len(sys.argv) == 3 else "gs(16,16)")
        pattern = pattern.resolve((256, 512))
    except gs.PatternError as error:
        sys.exit(f"usage: export_arrays.py FOLDER [PATTERN]: {error}")
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((256, 512)).astype(np.float32)
    sparsity = None if isinstance(pattern, gs.NM) else 0.9
    selection = gs.choose_mask(np.abs(weights), pattern, sparsity=sparsity)
    matrix = gs.encode(
        weights * selection.mask, pattern, mask=selection.mask, row_order=selection.row_order
    )
    x = rng.standard_normal(512).astype(np.float32)
    export(matrix, x, folder)
    np.savetxt(Path(folder) / "y.txt", matrix @ x)


if __name__ == "__main__":
    main()
