"""Pictures: masks with their banks, accuracy against size, and measured times. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gspattern.patterns import Banked, Pattern, parse_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gspattern.engine import GatherBench


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'pictures need matplotlib: pip install "gspattern[plot]"'
        ) from error
    return pyplot


def mask_image(
    mask: npt.ArrayLike,
    pattern: str | Pattern,
    row_order: npt.ArrayLike | None = None,
) -> npt.NDArray[np.uint8]:
    """A mask as an image: every kept element in the colour of its bank, the others white.

    Parameters
    ----------
    mask : array_like of bool, [M, K]
    pattern : str or Pattern
        Patterns without banks come out in one colour.
    row_order : array_like of int, [M], optional
        Rows are drawn as they are grouped.

    Returns
    -------
    ndarray of uint8, [M, K, 3]
        Red, green, blue.

    Raises
    ------
    ValueError
        If the mask is not two-dimensional.
    """
    kept = np.asarray(mask, dtype=bool)
    if kept.ndim != 2:
        raise ValueError(f"mask must be [rows, columns], got shape {kept.shape}")
    if row_order is not None:
        kept = kept[np.asarray(row_order)]
    rows, cols = kept.shape
    resolved = parse_pattern(pattern).resolve((rows, cols))
    image = np.full((rows, cols, 3), 255, np.uint8)
    if isinstance(resolved, Banked):
        colours = bank_colours(resolved.banks)[resolved.bank_of(np.arange(cols), cols)]
    else:
        colours = np.broadcast_to(np.array([31, 119, 180], np.uint8), (cols, 3))
    row, column = np.nonzero(kept)
    image[row, column] = colours[column]
    return image


def bank_colours(banks: int) -> npt.NDArray[np.uint8]:
    """One colour for every bank, uint8 [banks, 3]: around the colour circle, neighbours far apart in lightness."""
    from colorsys import hls_to_rgb

    return np.array(
        [
            [round(255 * part) for part in hls_to_rgb(b / banks, (0.35, 0.55)[b % 2], 0.8)]
            for b in range(banks)
        ],
        np.uint8,
    )


def plot_mask(
    mask: npt.ArrayLike,
    pattern: str | Pattern,
    row_order: npt.ArrayLike | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a mask with its banks coloured; the parameters of `mask_image`, the axes and a title.

    Groups of more than one row are set apart by lines while there are few enough to be seen.
    """
    if ax is None:
        ax = _pyplot().subplots()[1]
    image = mask_image(mask, pattern, row_order)
    rows, cols = image.shape[:2]
    ax.imshow(image, interpolation="nearest", aspect="auto")
    resolved = parse_pattern(pattern).resolve((rows, cols))
    if resolved.group_rows > 1 and rows / resolved.group_rows <= 64:
        for edge in range(resolved.group_rows, rows, resolved.group_rows):
            ax.axhline(edge - 0.5, color="0.6", linewidth=0.5)
    ax.set_xlabel("column")
    ax.set_ylabel("row" if row_order is None else "row, as grouped")
    ax.set_title(str(parse_pattern(pattern)) if title is None else title)
    return ax


def plot_tradeoff(
    points: Mapping[str, tuple[float, float, float]],
    ax: Axes | None = None,
    xlabel: str = "bytes on disk",
    ylabel: str = "accuracy",
) -> Axes:
    """Draw accuracy against size, or any quality against any cost.

    Parameters
    ----------
    points : dict of label to (x, y, spread of y)
    """
    if ax is None:
        ax = _pyplot().subplots()[1]
    markers = "osD^vP*X<>hd"
    for i, (label, (x, y, spread)) in enumerate(points.items()):
        marker = markers[i % len(markers)]
        ax.errorbar([x], [y], yerr=[spread], fmt=marker, capsize=3, label=label)
    ax.set_xscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def plot_schedule(
    schedule: Callable[[int, float], float | None],
    sparsity: float,
    steps: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw the sparsity at every step, with a mark wherever masks are chosen anew.

    Parameters
    ----------
    schedule : callable
        Such as `gspattern.torch.cubic` makes: (step, final sparsity) to the sparsity, or None for no change.
    sparsity : float
        The final one.
    steps : int
        Of the whole training.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If masks are never chosen in so many steps.
    """
    chosen = [(t, s) for t in range(steps + 1) if (s := schedule(t, sparsity)) is not None]
    if not chosen:
        raise ValueError(f"this schedule chooses no masks in {steps} steps")
    if ax is None:
        ax = _pyplot().subplots()[1]
    times, shares = zip(*chosen, strict=True)
    ax.step((0, *times, steps), (0.0, *shares, shares[-1]), where="post")
    ax.plot(times, shares, "o", markersize=3)
    ax.set_xlabel("step")
    ax.set_ylabel("sparsity")
    ax.set_ylim(0, 1)
    ax.grid(alpha=0.3)
    return ax


def plot_speedups(report: Mapping[str, Any], threads: int = 1, suite: str = "linear") -> Any:
    """Draw the speed-up over the fastest dense library against sparsity, one panel for each N.

    Parameters
    ----------
    report : mapping
        What `gspattern.bench.run` returns.
    threads : int
    suite : str
        Whose results are drawn.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the report holds no comparison with dense libraries for these threads.
    """
    lines = [
        line
        for line in report["summary"]
        if line["dense"] and (line["threads"], line["suite"]) == (threads, suite)
    ]
    if not lines:
        raise ValueError(
            f"the report compares nothing of {suite} with dense libraries on {threads} thread(s)"
        )
    columns = sorted({(line["steps"], line["n"]) for line in lines})
    figure, axes = _pyplot().subplots(
        1,
        len(columns),
        figsize=(3.2 * len(columns), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    names = list(dict.fromkeys(line["name"] for line in lines))
    for ax, (steps, n) in zip(axes[0], columns, strict=True):
        for number, name in enumerate(names):
            points = sorted(
                (100 * line["sparsity"], line["dense"])
                for line in lines
                if (line["steps"], line["n"], line["name"]) == (steps, n, name)
            )
            label = name if ":" not in name else f"{name} (a sparsity of its own)"
            if points:
                ax.plot(
                    *zip(*points, strict=True), "o-", color=f"C{number}", label=label, markersize=4
                )
        ax.axhline(1, color="grey", linewidth=0.8)
        ax.set_title(f"N = {n}" if steps == 1 else f"{steps} steps, N = {n}")
        ax.set_xlabel("sparsity, %")
        ax.set_xticks(sorted({100 * line["sparsity"] for line in lines}))
    axes[0][0].set_ylabel("times the fastest dense library")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    return figure


def plot_roofline(report: Mapping[str, Any], suite: str = "linear") -> Any:
    """Draw GMAC/s of every pattern and of dense libraries against multiply-adds per byte, under what one core can do.

    Multiply-adds are useful ones, and bytes are those of a plan or of the dense weights, so that padding shows as a
    distance from the roof.

    Parameters
    ----------
    report : mapping
        What `gspattern.bench.run` returns; results of one thread are drawn.
    suite : str
        Whose results are drawn.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the report holds no results of one thread.
    """
    lines = [
        line
        for line in report["results"]
        if line.get("share") and (line["threads"], line["suite"]) == (1, suite)
    ]
    if not lines:
        raise ValueError(f"the report holds no results of {suite} on one thread that have a bound")
    probes = next(iter(report["probes"].values()))
    figure, ax = _pyplot().subplots(figsize=(8, 5), layout="constrained")
    reach = np.logspace(-2, 3, 200)
    for level, rate in probes["gbytes_per_s"].items():
        ax.plot(
            reach, np.minimum(probes["gmacs_registers"], reach * rate), color="grey", linewidth=0.8
        )
        height = probes["gmacs_registers"] / 6
        ax.text(height / rate, height, f"{level} ", color="grey", fontsize="small", ha="right")
    ax.axhline(probes["gmacs_l1"], color="grey", linestyle=":", linewidth=0.8)
    ax.axhline(probes["gmacs_registers"], color="grey", linewidth=0.8)
    names = ["dense", *dict.fromkeys(line["name"] for line in lines if line["kind"] == "pattern")]
    for number, name in enumerate(names):
        mine = [
            line
            for line in lines
            if name == (line["name"] if line["kind"] == "pattern" else "dense")
        ]
        ax.plot(
            [line["kept"] * line["n"] * line["uses"] / line["bytes"] for line in mine],
            [line["gmacs"] for line in mine],
            "x" if name == "dense" else "o",
            color="black" if name == "dense" else f"C{number - 1}",
            label=name,
            markersize=5,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.5, 1.5 * probes["gmacs_registers"])
    ax.set_xlabel("multiply-adds per byte of weights")
    ax.set_ylabel("GMAC/s, one core")
    ax.set_title(f"{report['machine']['name']}, {probes['backend']}")
    ax.legend(fontsize="small")
    return figure


def plot_gathers(bench: GatherBench) -> Any:
    """Draw what `gspattern.engine.gather_bench` has measured: a panel for each place, a bar for each instruction.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = list(bench.sizes)
    figure, axes = _pyplot().subplots(
        len(panels), 1, figsize=(9, 2.4 * len(panels)), squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(rate.instruction for rate in bench.rates))
    streams = list(dict.fromkeys(rate.stream for rate in bench.rates))
    width = 0.8 / max(1, len(names))
    for ax, where in zip(axes[:, 0], panels, strict=True):
        for number, name in enumerate(names):
            mine = [r for r in bench.rates if (r.where, r.instruction) == (where, name)]
            ax.bar(
                [streams.index(rate.stream) + (number + 0.5) * width - 0.4 for rate in mine],
                [1e-9 * rate.bytes_per_second for rate in mine],
                width,
                color=f"C{number}",
                label=name,
            )
        if where == "memory":
            ax.axhline(1e-9 * bench.stream_bytes_per_second, color="grey", linewidth=0.8)
        ax.set_xticks(range(len(streams)), streams)
        ax.set_yscale("log")
        ax.set_ylabel(f"GB/s, {where}")
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    return figure


def save_bench(report: Mapping[str, Any], folder: Path) -> None:
    """Write the pictures of every suite of a report to a folder: speedups-*.png and roofline-*.png.

    Parameters
    ----------
    report : mapping
        What `gspattern.bench.run` returns.
    folder : Path
        Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suite in dict.fromkeys(line["suite"] for line in report["results"]):
        mine = [line for line in report["summary"] if line["suite"] == suite and line["dense"]]
        threads = min((line["threads"] for line in mine), default=None)
        if threads is not None:
            figure = plot_speedups(report, threads, suite)
            figure.savefig(folder / f"speedups-{suite}.png", dpi=150)
            _pyplot().close(figure)
        if any(line.get("share") for line in report["results"] if line["suite"] == suite):
            figure = plot_roofline(report, suite)
            figure.savefig(folder / f"roofline-{suite}.png", dpi=150)
            _pyplot().close(figure)
