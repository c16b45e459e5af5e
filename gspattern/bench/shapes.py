"""Shapes of layers, and the text that they are read from.

A line is one layer; # begins a comment, and - stands for what is the user's choice:

    rows cols n name                                                a matrix; n is the number of columns of x
    conv1d inputs outputs kernel stride dilation length name        such as conv1d 256 384 13 1 1 352
    conv2d inputs outputs kernel stride dilation size name          such as conv2d 64 64 3x3 1 1 56x56
    lstm inputs hidden steps batch name

Convolutions are padded by dilation * (kernel - 1) / 2, as those of the three models are. `models` has files of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gspattern.bench.fairness import BenchError

__all__ = ["ConvShape", "LinearShape", "LSTMShape", "Shape", "models", "read_shapes"]

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class LinearShape:
    """A matrix.

    Attributes
    ----------
    name : str
    rows, cols : int
    n : int or None
        Columns of x that this layer has; None where it is the user's choice.
    """

    name: str
    rows: int
    cols: int
    n: int | None = None

    operation: ClassVar[str] = "linear"
    steps: ClassVar[int] = 1

    @property
    def size(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def uses(self) -> int:
        """How often each weight is used for one n."""
        return 1


@dataclass(frozen=True)
class ConvShape:
    """A convolution; n is the number of pictures or sequences.

    Attributes
    ----------
    name : str
    inputs, outputs : int
        Channels.
    kernel : tuple of int
        (width,) or (height, width).
    stride, dilation : int
        The same for height and width.
    length : tuple of int
        Of the input: (width,) or (height, width).
    n : int or None
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: int
    dilation: int
    length: tuple[int, ...]
    n: int | None = None

    operation: ClassVar[str] = "conv"
    steps: ClassVar[int] = 1

    @property
    def rows(self) -> int:
        return self.outputs

    @property
    def cols(self) -> int:
        return self.inputs * math.prod(self.kernel)

    @property
    def size(self) -> str:
        kernel = "x".join(map(str, self.kernel))
        stride = f"/{self.stride}" if self.stride > 1 else ""
        dilation = f" dilation {self.dilation}" if self.dilation > 1 else ""
        length = "x".join(map(str, self.length))
        return f"{self.inputs}->{self.outputs} {kernel}{stride}{dilation} @ {length}"

    @property
    def padding(self) -> tuple[int, ...]:
        return tuple(self.dilation * (k - 1) // 2 for k in self.kernel)

    @property
    def out_length(self) -> tuple[int, ...]:
        return tuple(
            (size + 2 * pad - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, pad, k in zip(self.length, self.padding, self.kernel, strict=True)
        )

    @property
    def uses(self) -> int:
        """How often each weight is used for one n, edges included."""
        return math.prod(self.out_length)


@dataclass(frozen=True)
class LSTMShape:
    """A layer of an LSTM, in one direction; n is the batch.

    Attributes
    ----------
    name : str
    inputs, hidden : int
    steps : int
    n : int or None
    """

    name: str
    inputs: int
    hidden: int
    steps: int
    n: int | None = None

    operation: ClassVar[str] = "lstm"

    @property
    def rows(self) -> int:
        return 4 * self.hidden

    @property
    def cols(self) -> int:
        return self.inputs + self.hidden

    @property
    def size(self) -> str:
        return f"{self.inputs}->{self.hidden}, {self.steps} step(s)"

    @property
    def uses(self) -> int:
        """How often each weight is used for one n."""
        return self.steps


Shape = LinearShape | ConvShape | LSTMShape


def models() -> tuple[str, ...]:
    """Names of the files that come with the benchmark."""
    return tuple(sorted(path.stem for path in MODELS.glob("*.txt")))


def read_shapes(text: str, operation: str | None = None) -> list[Shape]:
    """Read a model, a file of shapes, or one shape.

    Parameters
    ----------
    text : str
        One of `models`, the path of a file, "1024x1024", or a line as it stands in a file.
    operation : {"linear", "conv", "lstm"}, optional
        Other shapes are left out.

    Raises
    ------
    BenchError
        If there is no such file, a line is something else, or no shape is left.
    """
    path = MODELS / f"{text}.txt" if text in models() else Path(text)
    if path.exists():
        lines = path.read_text("utf-8").splitlines()
        found = [
            _read_line(content, f"{text}, line {number}")
            for number, line in enumerate(lines, 1)
            if (content := line.partition("#")[0].strip())
        ]
    else:
        one = text.lower()
        rows, _, cols = one.partition("x")
        if rows.isdigit() and cols.isdigit():
            one = f"{rows} {cols} - {text}"
        if len(one.split()) < 4:
            raise BenchError(
                f"a shape is one of {', '.join(models())}, a file of shapes, such as 1024x1024, or a line of a file, "
                f"got {text!r}"
            )
        found = [_read_line(one, text)]
    found = [shape for shape in found if operation in (None, shape.operation)]
    if not found:
        raise BenchError(f"{text} has no shape for {operation}")
    return found


_FORMS = {
    "conv1d": "conv1d inputs outputs kernel stride dilation length name",
    "conv2d": "conv2d inputs outputs kernel stride dilation size name",
    "lstm": "lstm inputs hidden steps batch name",
    "linear": "rows cols n name",
}


def _read_line(line: str, where: str) -> Shape:
    first = line.split()[0]
    kind = first if first in _FORMS else "linear"
    form = _FORMS[kind]
    # The name, which may have spaces, is what follows the other fields.
    fields = line.split(maxsplit=len(form.split()) - 1)
    try:
        shape = _shape(kind, fields)
    except (ValueError, IndexError):
        raise BenchError(f"{where}: expected `{form}`, got {line!r}") from None
    if min(_numbers(shape)) < 1:
        raise BenchError(f"{where}: sizes and n must be positive")
    return shape


def _shape(kind: str, fields: list[str]) -> Shape:
    if kind == "linear":
        rows, cols, n, name = fields
        return LinearShape(name.strip(), int(rows), int(cols), _choice(n))
    if kind == "lstm":
        _, inputs, hidden, steps, n, name = fields
        return LSTMShape(name.strip(), int(inputs), int(hidden), int(steps), _choice(n))
    _, inputs, outputs, kernel, stride, dilation, size, name = fields
    sizes, lengths = _sizes(kernel), _sizes(size)
    if not len(sizes) == len(lengths) == int(kind[4]):
        raise ValueError
    return ConvShape(
        name.strip(), int(inputs), int(outputs), sizes, int(stride), int(dilation), lengths
    )


def _choice(text: str) -> int | None:
    return None if text == "-" else int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def _numbers(shape: Shape) -> Iterator[int]:
    yield from (shape.rows, shape.cols, shape.n or 1, shape.steps)
    if isinstance(shape, ConvShape):
        yield from (shape.inputs, shape.stride, shape.dilation, *shape.kernel, *shape.out_length)
    if isinstance(shape, LSTMShape):
        yield from (shape.inputs, shape.hidden)
