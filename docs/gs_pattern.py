"""Draws docs/gs_pattern.svg: three GS patterns with their banks, groups and bundles.

python docs/gs_pattern.py
"""

from pathlib import Path

import matplotlib
import numpy as np

import gspattern as gs

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "gspattern", "svg.fonttype": "none"})
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

ROWS, COLS, BANKS = 4, 12, 4
COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44"]
TITLES = {
    "gs(4,4)": "GS(4,4): a bundle is 4 in one row",
    "gs(4,2)": "GS(4,2): 2 in each of 2 rows",
    "gs(4,1)": "GS(4,1): 1 in each of 4 rows",
}


def draw(ax: Axes, pattern: str) -> None:
    """One matrix: kept elements in the colour of their bank, with the letter of their bundle."""
    scores = np.random.default_rng(7).random((ROWS, COLS), np.float32)
    mask = gs.choose_mask(scores, pattern, sparsity=0.5).mask
    matrix = gs.encode(scores, pattern, mask=mask)
    columns, group_rows = matrix.columns(), matrix.pattern.group_rows
    for col in range(COLS):
        ax.add_patch(Rectangle((col, -0.45), 0.92, 0.3, color=COLOURS[col % BANKS], lw=0))
        for row in range(ROWS):
            ax.add_patch(Rectangle((col, row), 0.92, 0.92, color="#eeeeee", lw=0))
    for group in range(len(matrix.indptr) - 1):
        for bundle in range(matrix.indptr[group], matrix.indptr[group + 1]):
            for slot in range(BANKS):
                row, col = (
                    group * group_rows + slot // matrix.pattern.per_row,
                    columns[bundle, slot],
                )
                ax.add_patch(Rectangle((col, row), 0.92, 0.92, color=COLOURS[col % BANKS], lw=0))
                letter = chr(ord("a") + int(bundle))
                ax.text(col + 0.46, row + 0.48, letter, ha="center", va="center", color="white")
        top, height = group * group_rows - 0.04, group_rows
        ax.add_patch(Rectangle((-0.04, top), COLS, height, fill=False, color="black", lw=1.2))
    ax.set(xlim=(-0.3, COLS + 0.2), ylim=(ROWS + 0.2, -0.8), aspect="equal", title=TITLES[pattern])
    ax.axis("off")


def main() -> None:
    """Write the picture beside this file."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 2.2), layout="constrained")
    for ax, pattern in zip(axes, TITLES, strict=True):
        draw(ax, pattern)
    target = Path(__file__).with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    # matplotlib ends some lines with a blank
    lines = target.read_text().splitlines()
    target.write_text("\n".join(line.rstrip() for line in lines) + "\n")


if __name__ == "__main__":
    main()
