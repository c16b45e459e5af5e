"""Draws docs/engine.svg: the units of the modelled processor, and what passes between them.

python docs/engine.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "gspattern", "svg.fonttype": "none"})
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402

COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44"]
UNITS = [
    ("weights\narrive", "dram_bytes_per_cycle\nl1, l2, prefetch"),
    ("x is gathered", "lanes, gather_issue\nindex_bytes, fused_gather"),
    ("products,\nsums of a row", "fma_lanes, vector_width\nfma_latency"),
    ("rows are\nstored", "vector_width;\nscatter: banks, ports"),
]


def box(ax: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """A unit or a memory."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec="#555555", lw=1,
        )
    )  # fmt: skip


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """What passes between two."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1.3})


def banks(ax: Axes, x: float, y: float, title: str) -> None:
    """Half of the scratchpad: elements in columns of one bank each."""
    for bank, colour in enumerate(COLOURS):
        for level in range(3):
            place = (x + 0.46 * bank, y + 0.26 * level)
            ax.add_patch(Rectangle(place, 0.42, 0.22, fc=colour, alpha=0.45 + 0.2 * level, lw=0))
    ax.text(x + 0.9, y - 0.12, title, ha="center", va="top", fontsize=9)


def main() -> None:
    """The whole picture."""
    figure, ax = plt.subplots(figsize=(10, 3.4), layout="constrained")
    for unit, (name, parameters) in enumerate(UNITS):
        x = 3 * unit
        box(ax, x, 2.0, 2.2, 0.95, "#f2f2f2")
        ax.text(x + 1.1, 2.475, name, ha="center", va="center", fontsize=10.5, weight="bold")
        ax.text(x + 1.1, 3.1, parameters, ha="center", va="bottom", fontsize=8, color="#555555")
        if unit:
            arrow(ax, (x - 0.75, 2.475), (x - 0.05, 2.475))
    for x, text in ((2.6, "bundles"), (5.6, "+ bank_\nlatency"), (8.6, "groups")):
        ax.text(x, 2.35, text, ha="center", va="top", fontsize=7.5, color="#333333")
    box(ax, 2.7, 0.0, 8.9, 1.35, "#ffffff")
    middle = {"ha": "center", "va": "center", "fontsize": 9}
    ax.text(7.15, 0.72, "scratchpad_bytes\nin banks with ports", color="#555555", **middle)
    banks(ax, 3.2, 0.45, "x, one half")
    banks(ax, 9.2, 0.45, "y, the other")
    arrow(ax, (4.1, 1.4), (4.1, 1.95))
    arrow(ax, (10.1, 1.95), (10.1, 1.4))
    ax.text(4.25, 1.66, "a bank serves ports slots a cycle", fontsize=8, va="center")
    box(ax, 0, 0.0, 2.0, 1.35, "#ffffff")
    ax.text(1.0, 0.68, "memory,\nL2, L1", **middle)
    arrow(ax, (1.1, 1.4), (1.1, 1.95))
    arrow(ax, (2.05, 0.68), (2.65, 0.68))
    ax.text(2.35, 0.5, "tiling", ha="center", va="top", fontsize=7.5)
    ax.set(xlim=(-0.1, 11.8), ylim=(-0.1, 3.7), aspect="equal")
    ax.axis("off")
    figure.savefig(Path(__file__).with_name("engine.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
