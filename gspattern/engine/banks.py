"""The banks of the engine, cycle by cycle: what serves a slot, what serves it late for a conflict, what idles.

A picture has one line for each bank and one column for each cycle. The slots of an access (a gather, or a plain load)
are issued in order, and the next access begins when all of them are served, as `replay` counts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gspattern.engine.bundles import NO_ROW, ConvLayer, Weights, make_stream
from gspattern.engine.cycles import Integers, _access, _grid, utilization
from gspattern.engine.processor import NO_BANK, Engine, find_engine
from gspattern.masks import choose_mask
from gspattern.matrices import Matrix, as_matrix, encode, from_matrix
from gspattern.patterns import NM, Banked, Pattern, parse_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["BankTimeline", "BankView", "view"]

Window = int | tuple[int, int]
Span = tuple[str, str]  # text and its style

IDLE, SERVED, LATE = range(3)
BLUES = ("#4477aa", "#88bbdd")  # of accesses in turns
RED, GREY, PALE, INK = "#dd3322", "#999999", "#eceef1", "#333333"
MOST_LINES = 64  # of banks and lanes in a terminal
BAR = 8  # characters of the longest


@dataclass(frozen=True, eq=False)
class BankTimeline:
    """What the banks do for one matrix.

    Attributes
    ----------
    name : str
        The pattern.
    shape : (int, int)
        Of the matrix.
    rows : (int, int)
        Those that are counted, first and one past the last, as grouped.
    group_rows : int
        Rows of a group.
    nonzeros, accesses, cycles, conflicts : int
        Of these rows: slots that are used; gathers and loads; cycles until all are served, and those of them that slots
        take longer because they share a bank.
    bank_load, lane_load, group_load : ndarray of int64
        Nonzeros of these rows in each bank, lane and row group.
    window : (int, int)
        Cycles that are drawn, first and one past the last.
    states : ndarray of int8 [banks, cycles drawn]
        0: idle, 1: serves, 2: serves a slot later than if the slot were alone.
    access, group : ndarray of int64 [cycles drawn]
        Which access is served, counted from the first of these rows, and for which row group.
    note : str
        Why a balanced pattern has conflicts on this engine, if it has.
    """

    name: str
    shape: tuple[int, int]
    rows: tuple[int, int]
    group_rows: int
    nonzeros: int
    accesses: int
    cycles: int
    conflicts: int
    bank_load: Integers
    lane_load: Integers
    group_load: Integers
    window: tuple[int, int]
    states: npt.NDArray[np.int8]
    access: Integers
    group: Integers
    note: str

    @property
    def loads(self) -> dict[str, Integers]:
        """The loads by "bank", "lane", and "row" or "group"."""
        last = "row" if self.group_rows == 1 else "group"
        return {"bank": self.bank_load, "lane": self.lane_load, last: self.group_load}

    @property
    def starts(self) -> list[tuple[int, int]]:
        """Cycle, counted from the first one drawn, and number of each row group that begins among those drawn."""
        at = np.flatnonzero(np.diff(self.group, prepend=-1))
        return [(int(t), int(self.group[t])) for t in at]

    def lines(self) -> list[str]:
        """What there is to say: of all that is counted, and of what is left out."""
        rows, cols = self.shape
        text = [
            f"{self.cycles:,} cycles for {self.accesses:,} accesses "
            f"({self.cycles / max(1, self.accesses):.2f} each): {self.conflicts:,} lost to conflicts",
            f"{self.nonzeros:,} nonzeros in {_span(*self.rows, rows, 'rows')} of {cols:,} columns",
        ]
        if self.window != (0, self.cycles):
            text[1] += f"; drawn: {_span(*self.window, self.cycles, 'cycles')}"
        return text + [self.note] * bool(self.note)


@dataclass(frozen=True, eq=False, repr=False)
class BankView:
    """What `view` found: print it, show it in a notebook, or save it as a picture.

    Attributes
    ----------
    panels : tuple of BankTimeline
        One, or before and after balancing.
    engine : Engine
    """

    panels: tuple[BankTimeline, ...]
    engine: Engine

    @property
    def ratio(self) -> str:
        """Before against after, in words; empty for one panel."""
        if len(self.panels) == 1:
            return ""
        before, after = self.panels
        times = before.cycles / max(1, after.cycles)
        return (
            f"{before.name} takes {before.cycles:,} cycles, {after.name} {after.cycles:,}: "
            f"{times:.2f} times as long"
        )

    def __str__(self) -> str:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self._lines(None))

    def __repr__(self) -> str:
        return str(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in self._lines(options.max_width):
            yield Text.assemble(*line, no_wrap=True, overflow="ellipsis")

    def _repr_png_(self) -> bytes | None:
        picture = io.BytesIO()
        try:
            self.figure().savefig(picture, format="png", dpi=110)
        except ModuleNotFoundError:  # then a notebook shows the text
            return None
        return picture.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the picture, PNG or SVG by the name of the file, the same bytes each time.

        Raises
        ------
        ModuleNotFoundError
            Without the extra `plot`.
        ValueError
            If the name ends with another format.
        """
        if Path(path).suffix.lower() not in (".png", ".svg"):
            raise ValueError(f"a picture is .png or .svg, got {str(path)!r}")
        figure = self.figure()
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": "gspattern", "svg.fonttype": "none"}):
            svg = Path(path).suffix.lower() == ".svg"
            figure.savefig(path, dpi=150, metadata={"Date": None} if svg else None)

    def figure(self) -> Any:
        """Draw a matplotlib.figure.Figure, for which the extra `plot` must be there."""
        from gspattern.plots import _pyplot

        heights = [0.155 * min(max(panel.bank_load.size, 8), 64) + 0.35 for panel in self.panels]
        inches = sum(heights) + 0.85 * len(heights) + 0.8
        figure = _pyplot().Figure(figsize=(12.5, inches), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.05, wspace=0.02, hspace=0.04)
        grid = figure.subplots(
            len(heights), 4, squeeze=False, width_ratios=(10, 1, 1, 1), height_ratios=heights
        )
        longest = max(panel.states.shape[1] for panel in self.panels)
        for panel, (ax, *sides) in zip(self.panels, grid, strict=True):
            _draw_cells(ax, panel, longest)
            for side, (unit, load) in zip(sides, panel.loads.items(), strict=True):
                _draw_load(side, unit, load)
        grid[-1][0].set_xlabel("cycle", color=INK)
        from matplotlib.patches import Patch

        kinds = {
            "serves": BLUES[0],
            "serves the next access": BLUES[1],
            "conflict: late": RED,
            "idle": PALE,
        }
        figure.legend(
            [Patch(color=colour) for colour in kinds.values()], kinds, loc="outside lower left",
            ncols=len(kinds), frameon=False, fontsize=9, handlelength=1, handleheight=1,
        )  # fmt: skip
        if self.ratio:
            figure.suptitle(self.ratio, x=0.01, ha="left", color=INK, fontsize=13, weight="bold")
        return figure

    def _lines(self, width: int | None) -> Iterator[list[Span]]:
        yield [
            ("■", BLUES[0]),
            ("■", BLUES[1]),
            (" serves  ", ""),
            ("x", RED),
            (" late  ", ""),
            ("·", GREY),
            (" idle", ""),
        ]
        for panel in self.panels:
            yield [("", "")]
            yield [(panel.name, "bold")]
            yield from _panel_lines(panel, width)
        if self.ratio:
            yield [("", "")]
            yield [(self.ratio, "bold")]


def view(
    weights: Weights | ConvLayer,
    engine: str | Engine = "paper128",
    *,
    pattern: str | Pattern | None = None,
    sparsity: float | None = None,
    compare: bool = False,
    rows: Window | None = None,
    cycles: Window = 64,
) -> BankView:
    """Show which bank of the engine's scratchpad serves which slot in every cycle.

    Parameters
    ----------
    weights : Matrix, array_like, SciPy sparse matrix or ConvLayer
        A matrix of any pattern; or a mask of another library, or weights: what is not 0 is kept. Their elements go row
        by row through the lanes, in the order of columns.
    engine : Engine or str
        Or the name of one of `PRESETS`.
    pattern : str or Pattern, optional
        To prune the weights to, by magnitude.
    sparsity : float, optional
        To prune them to, in [0, 1); that of the weights if not given, and not for N:M. Without a pattern, irregularly.
    compare : bool
        Before and after balancing: draw the weights as they are, too; or, where `sparsity` is given or nothing is 0, an
        irregular mask of as many nonzeros from the same magnitudes.
    rows : int or (int, int), optional
        How many rows are counted and drawn, or the first and one past the last, as they are grouped; whole groups are
        taken. All if not given.
    cycles : int or (int, int)
        How many cycles are drawn, or the first and one past the last.

    Returns
    -------
    BankView

    Raises
    ------
    ValueError
        If arguments make no sense together; PatternError if the pattern does not fit.

    Examples
    --------
    >>> import gspattern as gs
    >>> import numpy as np
    >>> mask = np.zeros((1, 16), np.bool_)
    >>> mask[0, [0, 4, 8, 9]] = True
    >>> shown = view(mask, gs.engine.Engine(lanes=4, banks=4, gather_issue=4))
    >>> shown.panels[0].states.tolist()
    [[1, 2, 2], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    """
    machine = find_engine(engine)
    layers = _layers(weights, pattern, sparsity, compare)
    counts = [_matrix_shape(layer)[0] for _, layer in layers]
    step = math.lcm(*(_group_rows(layer) for _, layer in layers))
    first, last = _window("rows", counts[0] if rows is None else rows)
    if first >= counts[0]:
        raise ValueError(f"rows begin at {first}, but there are {counts[0]}")
    first, last = first // step * step, min(counts[0], -(-last // step) * step)
    drawn = _window("cycles", cycles)
    return BankView(
        tuple(_timeline(name, layer, machine, (first, last), drawn) for name, layer in layers),
        machine,
    )


# ------------------------------------------------------------------- weights


def _layers(
    weights: Weights | ConvLayer,
    pattern: str | Pattern | None,
    sparsity: float | None,
    compare: bool,
) -> list[tuple[str, Weights | ConvLayer]]:
    """What is drawn, with names."""
    wrap: Callable[[Weights], Weights | ConvLayer] = lambda given: given  # noqa: E731
    if isinstance(weights, ConvLayer):
        conv, weights = weights, weights.weights
        wrap = lambda given: replace(conv, weights=given)  # noqa: E731
    if compare and pattern is None:
        raise ValueError('compare needs a pattern to balance to, such as "gs(16,16)"')
    if isinstance(weights, Matrix):
        name, given = str(weights.pattern), weights
        array = from_matrix(weights.to_dense(), weights.kernel_shape or weights.shape)
    else:
        array = weights.toarray() if hasattr(weights, "toarray") else np.asarray(weights)
        if array.ndim not in (2, 3, 4) or not array.size or array.dtype.kind not in "biufV":
            raise ValueError(
                "weights must be numbers or bool in 2 to 4 dimensions, not empty, got "
                f"{array.dtype} of shape {array.shape}"
            )
        name, given = "as given", array != 0
    if pattern is None and sparsity is None:
        return [(name, wrap(given))]

    wanted = parse_pattern("irregular" if pattern is None else pattern)
    array = np.ascontiguousarray(array, np.float32)
    zeros = 1 - np.count_nonzero(array) / array.size
    share = zeros if sparsity is None else sparsity
    if sparsity is None and zeros == 0 and not isinstance(wanted, NM):
        raise ValueError("sparsity is needed, such as 0.9: nothing of the weights is 0")
    after = _pruned(array, wanted, None if isinstance(wanted, NM) else share)
    layers = [(str(after.pattern), wrap(after))]
    if compare and sparsity is None and zeros:
        layers.insert(0, (name, wrap(given)))
    elif compare:
        if not after.nnz:
            raise ValueError(f"{wanted} keeps nothing of this matrix at sparsity {share}")
        before = _pruned(array, parse_pattern("irregular"), 1 - after.nnz / array.size)
        layers.insert(0, ("irregular", wrap(before)))
    return layers


def _pruned(weights: npt.NDArray[np.float32], pattern: Pattern, sparsity: float | None) -> Matrix:
    scores = np.ascontiguousarray(np.abs(as_matrix(weights)))
    chosen = choose_mask(scores, pattern, sparsity)
    return encode(weights, pattern, from_matrix(chosen.mask, weights.shape), chosen.row_order)


def _matrix_shape(layer: Weights | ConvLayer) -> tuple[int, int]:
    weights = layer.weights if isinstance(layer, ConvLayer) else layer
    shape = weights.shape if isinstance(weights, Matrix) else np.shape(weights)
    return shape[0], math.prod(shape[1:])


def _group_rows(layer: Weights | ConvLayer) -> int:
    weights = layer.weights if isinstance(layer, ConvLayer) else layer
    return weights.pattern.group_rows if isinstance(weights, Matrix) else 1


def _window(name: str, given: Window) -> tuple[int, int]:
    first, last = (0, given) if isinstance(given, int | np.integer) else given
    if not 0 <= first < last:
        raise ValueError(
            f"{name} must be how many, or the first and one past the last, got {given!r}"
        )
    return int(first), int(last)


# -------------------------------------------------------------------- events


def _timeline(
    name: str,
    layer: Weights | ConvLayer,
    engine: Engine,
    rows: tuple[int, int],
    cycles: tuple[int, int],
) -> BankTimeline:
    weights = layer.weights if isinstance(layer, ConvLayer) else layer
    stream = make_stream(weights, engine, with_values=False)
    assert stream.columns is not None
    assert stream.slot_rows is not None
    grid, height = _grid(layer, 1), _group_rows(layer)
    elements, length = np.arange(stream.cols), stream.cols
    if engine.mapping == "address":
        elements, length = grid.offsets(), grid.elements
    first, last = rows[0] // height, -(-rows[1] // height)
    bundles = slice(int(stream.indptr[first]), int(stream.indptr[last]))
    group = np.repeat(np.arange(first, last), np.diff(stream.indptr[first : last + 1]))
    used, active = stream.slot_rows[bundles] != NO_ROW, stream.active[bundles]
    banks = engine.bank_of(elements[stream.columns[bundles]], length)

    # What is loaded side by side, or as one element for all slots, never conflicts.
    at_once = engine.gather_issue if stream.gathers else engine.vector_width
    issue = np.maximum(1, -(-active // at_once))
    taken = (
        np.maximum(issue, _access(np.where(used, banks, NO_BANK), engine))
        if stream.gathers
        else issue
    )
    ends = np.cumsum(taken)
    total = int(taken.sum())
    begin, end = min(cycles[0], total), min(cycles[1], total)
    if begin == end and total:
        raise ValueError(f"cycles begin at {cycles[0]}, but {name} takes {total}")
    drawn = np.searchsorted(ends, (begin, end - 1), "right")
    some = slice(int(drawn[0]), int(drawn[1]) + 1)

    issued = (np.cumsum(used[some], axis=1) - 1) // at_once
    served = _serve(banks[some], used[some], issued, engine) if stream.gathers else issued
    cycle = served + (ends - taken)[some, None] - begin
    states = np.zeros((engine.banks, end - begin), np.int8)
    here = used[some] & (cycle >= 0) & (cycle < end - begin)
    np.maximum.at(
        states, (banks[some][here], cycle[here]), np.where(served > issued, LATE, SERVED)[here]
    )
    access = np.repeat(np.arange(len(taken)), taken)[begin:end]
    conflicts = total - int(issue.sum())
    note = ""
    pattern = weights.pattern if isinstance(weights, Matrix) else None
    if conflicts and isinstance(pattern, Banked):
        note = (
            f"{pattern} balances {pattern.banks} {pattern.layout} banks; the engine has {engine.banks} "
            f"with mapping {engine.mapping!r}"
        )
    return BankTimeline(
        name, _matrix_shape(layer), rows, height, int(active.sum()), len(taken), total, conflicts,
        np.bincount(banks[used], minlength=engine.banks), used.sum(axis=0),
        np.bincount(group - first, active, last - first).astype(np.int64),
        (begin, end), states, access, group[access], note,
    )  # fmt: skip


def _serve(
    banks: Integers, used: npt.NDArray[np.bool_], issued: Integers, engine: Engine
) -> Integers:
    """Give the cycle of its access in which each slot is served, [accesses, slots]: as gsp_engine.c."""
    now = np.full((len(banks), engine.banks), -1)  # the cycle in which each bank serves
    count = np.zeros_like(now)  # slots in that cycle
    served = np.zeros(banks.shape, np.int64)
    for slot in range(banks.shape[1]):
        access = np.flatnonzero(used[:, slot])
        at = access, banks[access, slot]
        when = np.maximum(issued[access, slot], now[at] + (count[at] == engine.ports))
        count[at] = np.where(when > now[at], 1, count[at] + 1)
        now[at] = served[access, slot] = when
    return served


# ------------------------------------------------------------------ terminal


def _panel_lines(panel: BankTimeline, width: int | None) -> Iterator[list[Span]]:
    banks, cycles = panel.states.shape
    lanes = len(panel.lane_load)
    label = len(str(max(banks, lanes) - 1))
    side = label + 2 * (BAR + 10)
    if width is not None:
        cycles = max(8, min(cycles, width - side))
        panel = replace(
            panel, window=(panel.window[0], min(panel.window[1], panel.window[0] + cycles))
        )
    yield from ([(line, "")] for line in panel.lines())
    shares = (f"{unit}s {utilization(load):.3f}" for unit, load in panel.loads.items())
    yield [(f"utilization: {', '.join(shares)}", "")]
    ruler = _ruler([(t, str(group)) for t, group in panel.starts], cycles)
    unit = list(panel.loads)[-1]
    heads = (f"{text:<{BAR + 8}}" for text in ("per bank", "per lane"))
    yield [(f"{'':{label}} {ruler}  {'  '.join(heads)}  ({unit} above)", GREY)]
    for line in range(min(max(banks, lanes), MOST_LINES)):
        spans: list[Span] = [(f"{line:{label}} ", GREY)]
        if line < banks:
            for t, state in enumerate(panel.states[line, :cycles]):
                blue = BLUES[panel.access[t] % 2]
                spans.append((("·", GREY), ("■", blue), ("x", RED))[state])
        else:
            spans.append((" " * cycles, ""))
        for load in (panel.bank_load, panel.lane_load):
            spans += _bar(load, line)
        yield spans
    if max(banks, lanes) > MOST_LINES:
        yield [(f"and {max(banks, lanes) - MOST_LINES} more", GREY)]
    first = panel.window[0]
    ticks = [(t - first, str(t)) for t in range(-(-first // 10) * 10, first + cycles, 10)]
    yield [(f"{'':{label}} {_ruler(ticks, cycles)}  cycle", GREY)]


def _ruler(marks: list[tuple[int, str]], width: int) -> str:
    """Write each mark at its place, where the one before leaves room."""
    text = ""
    for at, mark in marks:
        if at + len(mark) <= width and (not text or at > len(text)):
            text = text.ljust(at) + mark
    return text.ljust(width)


def _bar(load: Integers, at: int) -> list[Span]:
    if at >= len(load):
        return [(" " * (BAR + 10), "")]
    filled = round(BAR * int(load[at]) / max(1, int(load.max())))
    return [("  " + "▬" * filled, BLUES[0]), (" " * (BAR - filled) + f" {int(load[at]):<7,}", GREY)]


def _span(first: int, last: int, count: int, what: str) -> str:
    return (
        f"all {count:,} {what}"
        if (first, last) == (0, count)
        else f"{what} {first:,} to {last - 1:,} of {count:,}"
    )


# ------------------------------------------------------------------- picture


def _draw_cells(ax: Axes, panel: BankTimeline, longest: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    banks = len(panel.states)
    first = panel.window[0]
    odd = np.broadcast_to(panel.access % 2 == 1, panel.states.shape)
    gap = 0.1 if max(longest, banks) <= 128 else 0.0
    kinds = (
        (BLUES[0], (panel.states == SERVED) & ~odd), (BLUES[1], (panel.states == SERVED) & odd),
        (RED, panel.states == LATE), (PALE, panel.states == IDLE),
    )  # fmt: skip
    for colour, cells in kinds:
        # Of one colour, one path: small files.
        y, x = np.nonzero(cells)
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * (1 - gap) + gap / 2
        points = np.stack((x + first, y), axis=1)[:, None] + corners
        codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(points)
        if len(points):
            ax.add_patch(
                PathPatch(Outline(points.reshape(-1, 2), codes), color=colour, linewidth=0)
            )
    ax.set(xlim=(first, first + max(1, longest)), ylim=(banks, 0))
    ax.set_ylabel("bank", color=INK)
    ax.set_yticks([t + 0.5 for t in range(0, banks, max(1, -(-banks // 16)))])
    ax.set_yticklabels([str(bank) for bank in range(0, banks, max(1, -(-banks // 16)))])
    if first + longest > panel.window[1] == panel.cycles:
        ax.text(
            panel.cycles + longest / 150, banks / 2, "done", color=INK, va="center", fontsize=11,
            style="italic",
        )  # fmt: skip

    # Where rows begin, on top, as many as there is room for.
    marks = panel.starts
    room = longest / 32
    shown = marks[:1]
    for mark in marks[1:]:
        if mark[0] - shown[-1][0] >= room * (2 if len(shown) == 1 else 1):  # the first has a word
            shown.append(mark)
    unit = list(panel.loads)[-1]
    top = ax.secondary_xaxis("top")
    top.set_xticks([t + first for t, _ in shown])
    top.set_xticklabels(
        [f"{unit} {group}" if i == 0 else str(group) for i, (_, group) in enumerate(shown)],
        ha="left",
    )
    for axis in (ax, top):
        axis.tick_params(length=0, labelsize=8, labelcolor=INK, pad=2)
        for spine in axis.spines.values():
            spine.set_visible(False)
    title = ax.set_title(panel.name, loc="left", color=INK, fontsize=12, weight="bold", pad=20)
    said = ax.annotate(
        "   " + ";  ".join(panel.lines()[:2]), (1, 0), xycoords=title, va="bottom", color=INK,
        fontsize=8.5, annotation_clip=False,
    )  # fmt: skip
    said.set_in_layout(False)
    if panel.note:
        ax.annotate(
            panel.note,
            (0, 0),
            (0, -18),
            "axes fraction",
            "offset points",
            va="top",
            color=RED,
            fontsize=8.5,
        )


def _draw_load(ax: Axes, unit: str, load: Integers) -> None:
    ax.barh(
        np.arange(len(load)) + 0.5, load, height=0.85 if len(load) <= 64 else 1.0, color=BLUES[0]
    )
    ax.set(xlim=(0, 1.08 * max(1, int(load.max(initial=0)))), ylim=(len(load), 0), yticks=[])
    ax.set_xticks([int(load.max(initial=0))])
    ax.set_title(f"per {unit}\n{utilization(load):.2f} utilized", color=INK, fontsize=7.5, pad=4)
    ax.tick_params(length=0, labelsize=8, labelcolor=INK, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_facecolor("#f7f8fa")
