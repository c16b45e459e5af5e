"""Patterns: which elements of a matrix may be kept together.

A matrix has M rows (outputs) and K columns (inputs). Every column belongs to one of `banks` banks,
and rows form groups. A *bundle* is what a gather engine with that many banks loads in one step:
`per_row` elements in each row of one group, no two of them in the same bank. A group keeps whole
bundles only.
The patterns are those of Sun et al., arXiv 2112.10898, and the ones they are compared with.
"""

from __future__ import annotations

import difflib
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from gspattern._core import PatternError

__all__ = [
    "GS",
    "NM",
    "Auto",
    "BankBalanced",
    "Banked",
    "Block",
    "CpuGS",
    "Irregular",
    "Layout",
    "Pattern",
    "PatternError",
    "parse_pattern",
]

Layout = Literal["interleaved", "contiguous"]

MAX_BANKS = 65536
MAX_BLOCK = 65536
MAX_WINDOW = 256  # a position in a window of N:M is stored in at most one byte
MAX_TEXT = 100
CPU_BANK_WIDTH = 32  # columns that two AVX-512 registers of float32 hold


class Pattern(ABC):
    """What all patterns have in common.

    A pattern is immutable, hashable, and equal by its parameters; `str(pattern)` is what
    `parse_pattern` reads back.

    Attributes
    ----------
    scatter : bool
        Whether choosing a mask also chooses the order of the rows.
    """

    scatter: bool = False

    @property
    def group_rows(self) -> int:
        """Rows of a full group: banks / per_row for GS, the rows of a block for blocks, else 1."""
        return 1

    @property
    def bundle_size(self) -> int:
        """Elements of a full bundle, which are kept or dropped together.

        It is banks for GS, rows * cols for blocks, n for N:M, and 1 for irregular.
        """
        return 1

    def groups(self, rows: int) -> int:
        """Count the row groups in a matrix of `rows` rows, with the last and perhaps short one."""
        return -(-rows // self.group_rows)

    def resolve(self, shape: tuple[int, int]) -> Pattern:
        """Fit the pattern to a matrix of this shape, with all its numbers.

        Parameters
        ----------
        shape : (int, int)
            Rows M and columns K.

        Raises
        ------
        PatternError
            If no matrix of this shape can have the pattern.
        """
        _matrix_shape(shape)
        return self

    @abstractmethod
    def core(self) -> tuple[Any, ...]:
        """Give the tuple that the C core takes.

        It is ("gs", banks, per_row, 0 or 1 for contiguous), ("irregular",), ("block", rows, cols)
        or ("nm", n, m).
        """


class Banked(Pattern):
    """A pattern over banks: `GS` and `BankBalanced`.

    Attributes
    ----------
    banks : int
        Banks B.
    per_row : int
        Elements of a bundle in each row of its group.
    layout : {"interleaved", "contiguous"}
        How columns belong to banks.
    """

    banks: int
    per_row: int
    layout: Layout

    @property
    def group_rows(self) -> int:
        return self.banks // self.per_row

    @property
    def bundle_size(self) -> int:
        return self.banks

    def core(self) -> tuple[Any, ...]:
        return ("gs", self.banks, self.per_row, int(self.layout == "contiguous"))

    def bank_of(self, columns: npt.ArrayLike, cols: int) -> npt.NDArray[np.int64]:
        """Give the bank of every column in `columns`.

        Parameters
        ----------
        columns : array_like of int
            Any shape; each in [0, cols).
        cols : int
            Columns K of the matrix.

        Returns
        -------
        ndarray of int64
            The shape of `columns`; each in [0, banks).
        """
        j = np.asarray(columns)
        if j.size == 0:
            return np.zeros(j.shape, np.int64)
        if j.dtype.kind not in "iu":
            raise TypeError(f"columns must be integers, got dtype {j.dtype}")
        bad = (j < 0) | (j >= cols)
        if bad.any():
            raise IndexError(f"column {j[bad].flat[0]} is not in [0, {cols})")
        j = j.astype(np.int64)
        if self.layout == "interleaved":
            return np.asarray(j % self.banks)
        # The last bank that begins at or before the column: floor(b * cols / banks) <= j.
        return np.asarray(((j + 1) * self.banks - 1) // cols)

    def bank_starts(self, cols: int) -> npt.NDArray[np.int64]:
        """Give the lowest column of every bank, for `cols` >= banks: int64 [banks]."""
        b = np.arange(self.banks, dtype=np.int64)
        return b if self.layout == "interleaved" else b * cols // self.banks

    def bank_widths(self, cols: int) -> npt.NDArray[np.int64]:
        """Count the columns in every bank, `cols` in all: int64 [banks].

        Widths are floor(cols / banks) or one more, in both layouts.
        """
        b = np.arange(self.banks, dtype=np.int64)
        if self.layout == "interleaved":
            return cols // self.banks + (b < cols % self.banks).astype(np.int64)
        return np.asarray((b + 1) * cols // self.banks - b * cols // self.banks)

    def resolve(self, shape: tuple[int, int]) -> Banked:
        _, cols = _matrix_shape(shape)
        if self.banks > cols:
            raise PatternError(
                f"{self} needs at least {self.banks} columns, one for each bank, but the matrix "
                f"has {cols}; {self._that_fits(cols)}"
            )
        return self

    def _that_fits(self, cols: int) -> str:
        """Advice: the pattern with the most banks that `cols` columns allow."""
        if cols == 0:
            return "a matrix without columns has nothing to keep: leave it dense"
        if isinstance(self, GS) and self.per_row < self.banks:
            banks = cols - cols % self.per_row
            if banks:
                why = f", the most that fit and are a multiple of per_row = {self.per_row}"
                return (
                    f"use {banks} banks{why}: {GS(banks, self.per_row, self.scatter, self.layout)}"
                )
            rows = min(self.group_rows, cols)
            banks = cols - cols % rows
            fit = GS(banks, banks // rows, self.scatter, self.layout)
            return f"at most {cols} banks fit, and per_row must be lowered with them: use {fit}"
        if isinstance(self, GS):
            return (
                f"use {cols} banks, the most that fit: {GS(cols, cols, self.scatter, self.layout)}"
            )
        return f"use {cols} banks, the most that fit: {BankBalanced(cols)}"


@dataclass(frozen=True)
class GS(Banked):
    """The gather-scatter pattern GS(B, k).

    A group is banks / per_row consecutive rows, and each of its bundles holds `per_row` elements in
    every one of these rows and one element in every bank. `per_row == banks` is the horizontal
    pattern (a group is one row), `per_row == 1` the vertical one, anything between is a hybrid.
    Groups may differ in bundles.

    Parameters
    ----------
    banks : int
        Banks B, from 1 to 65,536.
    per_row : int
        Elements k of a bundle in each row; divides `banks`.
    scatter : bool
        Rows are put into an order of their own before they are grouped.
    layout : {"interleaved", "contiguous"}
        Column j is in bank j % banks, or banks are equal runs of columns.

    Raises
    ------
    PatternError
        If a parameter is out of its range.
    """

    banks: int
    per_row: int
    scatter: bool = False
    layout: Layout = "interleaved"

    def __post_init__(self) -> None:
        banks = _integer("banks", self.banks, 1, MAX_BANKS)
        per_row = _integer("per_row", self.per_row, 1)
        if banks % per_row:
            raise PatternError(
                f"per_row must divide banks, got banks = {banks} and per_row = {per_row}; "
                f"divisors nearby: {_join(_divisors_near(banks, per_row))}"
            )
        if not isinstance(self.scatter, bool | np.bool):
            raise PatternError(f"scatter must be True or False, got {_shown(self.scatter)}")
        object.__setattr__(self, "banks", banks)
        object.__setattr__(self, "per_row", per_row)
        object.__setattr__(self, "scatter", bool(self.scatter))
        object.__setattr__(self, "layout", _layout(self.layout))

    def __str__(self) -> str:
        layout = "" if self.layout == "interleaved" else f",{self.layout}"
        return f"gs({self.banks},{self.per_row}{layout})" + "+scatter" * self.scatter


@dataclass(frozen=True)
class BankBalanced(Banked):
    """The bank-balanced pattern: every row keeps equally many elements in every bank.

    Banks are equal runs of columns. It is GS(banks, banks) with contiguous banks and the same
    number of bundles in all rows.

    Parameters
    ----------
    banks : int
        From 1 to 65,536.
    """

    banks: int
    per_row: int = field(init=False, repr=False, compare=False)
    layout: Layout = field(init=False, repr=False, compare=False, default="contiguous")

    def __post_init__(self) -> None:
        banks = _integer("banks", self.banks, 1, MAX_BANKS)
        object.__setattr__(self, "banks", banks)
        object.__setattr__(self, "per_row", banks)

    def __str__(self) -> str:
        return f"bank_balanced({self.banks})"


@dataclass(frozen=True)
class Irregular(Pattern):
    """Any element may be kept: unstructured sparsity."""

    def core(self) -> tuple[Any, ...]:
        return ("irregular",)

    def __str__(self) -> str:
        return "irregular"


@dataclass(frozen=True)
class Block(Pattern):
    """Whole blocks of rows x cols elements are kept; the edges of the matrix may cut them short.

    Parameters
    ----------
    rows, cols : int
        From 1 to 65,536.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _integer("rows", self.rows, 1, MAX_BLOCK))
        object.__setattr__(self, "cols", _integer("cols", self.cols, 1, MAX_BLOCK))

    @property
    def group_rows(self) -> int:
        return self.rows

    @property
    def bundle_size(self) -> int:
        return self.rows * self.cols

    def core(self) -> tuple[Any, ...]:
        return ("block", self.rows, self.cols)

    def __str__(self) -> str:
        return f"block({self.rows},{self.cols})"


@dataclass(frozen=True)
class NM(Pattern):
    """At most n of every m consecutive columns of a row are kept; the last window may be short.

    Parameters
    ----------
    n, m : int
        1 <= n <= m <= 256.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        n = _integer("n", self.n, 1)
        m = _integer("m", self.m, 1, MAX_WINDOW)
        if n > m:
            raise PatternError(
                f"n must be at most m, got {n}:{m}, {n} of every {m} columns; "
                + (f"did you mean {m}:{n}?" if n <= MAX_WINDOW else f"give n from 1 to {m}")
            )
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", m)

    @property
    def bundle_size(self) -> int:
        return self.n

    def core(self) -> tuple[Any, ...]:
        return ("nm", self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class CpuGS(Pattern):
    """`gs(cpu)`: the GS pattern that runs fastest on a CPU with vector permutes.

    It resolves per matrix to the horizontal pattern over contiguous banks of at most 32 columns,
    with the rows ordered by their counts.
    """

    scatter = True

    @property
    def group_rows(self) -> int:
        return 1

    @property
    def bundle_size(self) -> int:
        return _unresolved(self)

    def resolve(self, shape: tuple[int, int]) -> GS:
        _, cols = _matrix_shape(shape)
        if cols == 0:
            raise PatternError(
                f"{self} needs at least one column; a matrix without columns has nothing to keep: "
                "leave it dense"
            )
        banks = -(-cols // CPU_BANK_WIDTH)
        if banks > MAX_BANKS:
            raise PatternError(
                f"{self} takes at most {MAX_BANKS * CPU_BANK_WIDTH} columns ({MAX_BANKS} banks of "
                f"{CPU_BANK_WIDTH}), but the matrix has {cols}; split the matrix or use "
                f"{GS(MAX_BANKS, MAX_BANKS, True, 'contiguous')}"
            )
        return GS(banks, banks, scatter=True, layout="contiguous")

    def core(self) -> tuple[Any, ...]:
        return _unresolved(self)

    def __str__(self) -> str:
        return "gs(cpu)"


@dataclass(frozen=True)
class Auto(Pattern):
    """`auto`: the Pruner picks a pattern for every layer."""

    @property
    def group_rows(self) -> int:
        return _only_pruner(self)

    @property
    def bundle_size(self) -> int:
        return _only_pruner(self)

    def groups(self, rows: int) -> int:
        return _only_pruner(self)

    def resolve(self, shape: tuple[int, int]) -> Pattern:
        _matrix_shape(shape)
        return _only_pruner(self)

    def core(self) -> tuple[Any, ...]:
        return _only_pruner(self)

    def __str__(self) -> str:
        return "auto"


# ------------------------------------------------------------------- parsing

_EXAMPLES = {
    "gs": "gs(16,4), gs(16,4,contiguous), gs(16,1)+scatter or gs(cpu)",
    "bank_balanced": "bank_balanced(16)",
    "block": "block(1,16)",
    "irregular": "irregular",
    "auto": "auto",
    "n:m": "2:4",
}
_OTHER_NAMES = {"unstructured": "irregular", "bankbalanced": "bank_balanced", "bcsr": "block"}
_LAYOUTS = ("interleaved", "contiguous")

_WINDOW = re.compile(r"\s*([+-]?\d+)\s*:\s*([+-]?\d+)\s*", re.ASCII)
_CALL = re.compile(
    r"\s*(?P<name>[a-z][a-z_-]*)\s*(?P<call>\((?P<arguments>[^()]*)\))?\s*(?P<flags>(\+[^+]*)*)",
    re.ASCII,
)
_NUMBER = re.compile(r"[+-]?\d+", re.ASCII)


def parse_pattern(pattern: str | Pattern) -> Pattern:
    """Read a pattern from its text; a `Pattern` is returned as it is.

    Parameters
    ----------
    pattern : str or Pattern
        One of ``gs(16,4)``, ``gs(16,4,contiguous)``, ``gs(16,1)+scatter``, ``gs(cpu)``,
        ``bank_balanced(16)``, ``block(1,16)``, ``2:4``, ``irregular`` and ``auto``, with numbers of
        your own. Case does not matter, nor do blanks around words, numbers and signs.

    Returns
    -------
    Pattern
        So that ``parse_pattern(str(p)) == p``.

    Raises
    ------
    PatternError
        With what was wrong and what to write instead.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise PatternError(
            f"a pattern must be a text such as 'gs(16,16)' or a Pattern, got {_shown(pattern)}"
        )
    if len(pattern) > MAX_TEXT:
        raise PatternError(f"a pattern has at most {MAX_TEXT} characters, got {len(pattern)}")
    text = pattern.lower()
    if window := _WINDOW.fullmatch(text):
        return NM(_number(pattern, "n", window[1]), _number(pattern, "m", window[2]))
    forms = f"patterns look like {_join(_EXAMPLES.values())}"
    parts = _CALL.fullmatch(text)
    if parts is None:
        raise PatternError(f"cannot read the pattern {pattern!r}; {forms}")
    name = parts["name"].replace("-", "_")
    if name not in _EXAMPLES:
        close = _OTHER_NAMES.get(name) or _closest(name, _EXAMPLES)
        hint = f"did you mean {_EXAMPLES[close]}?" if close else forms
        raise PatternError(f"unknown pattern {parts['name']!r}; {hint}")
    arguments = [word.strip() for word in parts["arguments"].split(",")] if parts["call"] else []
    flags = [flag.strip() for flag in parts["flags"].split("+")[1:]]
    scatter = _scatter(pattern, name, arguments, flags)
    if name == "gs":
        return _parse_gs(pattern, arguments, scatter)
    expected = {"bank_balanced": ("banks",), "block": ("rows", "cols")}.get(name, ())
    if len(arguments) != len(expected) or (parts["call"] and not expected):
        takes = f"{_join(expected, 'and')} in parentheses" if expected else "no parentheses"
        raise PatternError(f"{name} takes {takes}, got {pattern!r}; write {_EXAMPLES[name]}")
    numbers = [_number(pattern, *pair) for pair in zip(expected, arguments, strict=True)]
    if name == "bank_balanced":
        return BankBalanced(*numbers)
    if name == "block":
        return Block(*numbers)
    return Irregular() if name == "irregular" else Auto()


def _parse_gs(pattern: str, arguments: list[str], scatter: bool) -> Pattern:
    if arguments == ["cpu"]:
        return CpuGS()
    if len(arguments) == 1 and arguments[0].isalpha():
        close = _closest(arguments[0], ["cpu"])
        hint = "did you mean gs(cpu)?" if close else f"write {_EXAMPLES['gs']}"
        raise PatternError(f"gs takes banks and per_row, or cpu, got {pattern!r}; {hint}")
    if len(arguments) not in (2, 3):
        raise PatternError(
            f"gs takes banks and per_row, and perhaps a layout, got {pattern!r}; "
            f"write {_EXAMPLES['gs']}"
        )
    banks = _number(pattern, "banks", arguments[0])
    per_row = _number(pattern, "per_row", arguments[1])
    return GS(
        banks, per_row, scatter, _layout(arguments[2]) if len(arguments) == 3 else "interleaved"
    )


def _scatter(pattern: str, name: str, arguments: list[str], flags: list[str]) -> bool:
    """Whether the flags after a pattern ask for scatter; PatternError for any other flag."""
    for flag in flags:
        if flag != "scatter":
            hint = (
                "did you mean +scatter?"
                if _closest(flag, ["scatter"])
                else "the only option is +scatter"
            )
            raise PatternError(f"unknown option '+{flag}' in {pattern!r}; {hint}")
    if len(flags) > 1:
        raise PatternError(f"+scatter is given {len(flags)} times in {pattern!r}; once is enough")
    if flags and arguments == ["cpu"] and name == "gs":
        raise PatternError(f"gs(cpu) orders the rows by itself; leave +scatter out of {pattern!r}")
    if flags and name != "gs":
        raise PatternError(
            f"only gs takes +scatter, got {pattern!r}; leave it out, or write gs(16,1)+scatter"
        )
    return bool(flags)


# ------------------------------------------------------------------- checking


def _number(pattern: str, name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise PatternError(f"{name} must be an integer, got {text!r} in {pattern!r}")
    return int(text)


def _integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value` as an int in [least, most]; bool is not an integer here."""
    if isinstance(value, bool | np.bool):
        raise PatternError(f"{name} must be an integer, got {_shown(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise PatternError(f"{name} must be an integer, got {_shown(value)}") from None
    if number < least or (most is not None and number > most):
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise PatternError(f"{name} must be {span}, got {number}")
    return number


def _layout(value: object) -> Layout:
    if value == "interleaved":
        return "interleaved"
    if value == "contiguous":
        return "contiguous"
    close = _closest(value, _LAYOUTS) if isinstance(value, str) else None
    hint = f"; did you mean {close}?" if close else ""
    raise PatternError(f"layout must be interleaved or contiguous, got {value!r}{hint}")


def _matrix_shape(shape: object) -> tuple[int, int]:
    sizes = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(sizes) != 2:
        raise PatternError(
            f"shape must be (rows, columns), got {shape!r}; as_matrix turns the weights of a "
            "convolution into a matrix"
        )
    return _integer("rows", sizes[0], 0), _integer("columns", sizes[1], 0)


def _divisors_near(number: int, wanted: int) -> list[int]:
    """Give the two divisors of `number` below `wanted` and the two above, if there are."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = [d for d in divisors if d < wanted][-2:]
    return below + [d for d in divisors if d > wanted][:2]


def _closest(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(words), n=1)), None)


def _join(items: Iterable[object], conjunction: str = "or") -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f" {conjunction} {texts[-1]}"


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def _unresolved(pattern: Pattern) -> NoReturn:
    raise PatternError(
        f"{pattern} has no numbers before it is resolved; call resolve((rows, columns)) first"
    )


def _only_pruner(pattern: Pattern) -> NoReturn:
    raise PatternError(
        f"only the Pruner of gspattern.torch resolves {pattern}; name a pattern, such as gs(16,16)"
    )
