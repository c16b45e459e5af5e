"""What a run writes while it goes on: log.csv, for TensorBoard on demand, and curves.png at the end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """A row of numbers for every epoch.

    Attributes
    ----------
    rows : list of dict
        Part of a checkpoint, so that a run that goes on has the rows of an unbroken one.
    """

    def __init__(self, folder: Path, rows: list[Row], tensorboard: bool) -> None:
        self.rows = rows
        self._file = folder / "log.csv"
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise SystemExit(
                    "--tensorboard needs a package of that name: pip install tensorboard"
                ) from error
            begin = rows[-1]["step"] + 1 if rows else None
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=begin)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self._file.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(self.rows)
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()


def draw(rows: list[Row], metric: str, path: Path) -> None:
    """Loss, score and sparsity after every epoch, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [row["epoch"] for row in rows]
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 7), layout="constrained")
    names = (("train_loss", "test_loss"), (metric,), ("sparsity",))
    for ax, shown in zip(axes, names, strict=True):
        for name in shown:
            ax.plot(epochs, [row.get(name, float("nan")) for row in rows], ".-", label=name)
        ax.grid(alpha=0.3)
        ax.legend()
        for row in rows:
            if row["phase"] == "prune":
                ax.axvspan(row["epoch"] - 1, row["epoch"], color="C1", alpha=0.08, linewidth=0)
    axes[-1].set_xlabel("epoch (shaded: pruning with fine-tuning)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
