"""What is run, and what must be reached: a suite is an operation in a dtype, with its shapes and goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gspattern.bench.conv_bench import ConvLayer
from gspattern.bench.fairness import BenchError
from gspattern.bench.layers import Layer
from gspattern.bench.linear_bench import LinearLayer
from gspattern.bench.lstm_bench import LSTMLayer
from gspattern.bench.shapes import Shape, read_shapes

__all__ = [
    "GOAL_PATTERN",
    "QUICK",
    "SETS",
    "SUITES",
    "Settings",
    "Suite",
    "suites_of",
]

LAYERS: dict[str, type[Layer[Any]]] = {"linear": LinearLayer, "conv": ConvLayer, "lstm": LSTMLayer}

GOAL_PATTERN = "gs(cpu)"  # times dense: what this pattern must reach; others are listed beside it
PATTERNS = (
    "gs(cpu)", "gs(16,16)", "gs(16,1)+scatter", "irregular", "block(1,16)", "block(16,1)", "block(1,4)", "2:4",
)  # fmt: skip
SPARSITIES = (0.8, 0.9)
# The linear layers of GNMT.
MATRICES = ("1024x1024", "4096x1024", "4096x2048", "32320x1024")


@dataclass(frozen=True)
class Suite:
    """An operation in a dtype.

    Attributes
    ----------
    title : str
    operation : {"linear", "conv", "lstm"}
    dtype : {"float32", "bfloat16", "int8"}
    shapes : tuple of str
        As `read_shapes` takes them.
    columns : tuple of int
        n of shapes that have none of their own: columns of x, pictures, or sequences.
    goals : mapping
        By sparsity and n: times the fastest dense library.
    in_l2 : mapping
        By sparsity: the goal at n = 1 where the plan that each step reads fits L2 and the dense weights do not.
    quick : tuple of str
        Shapes that only tell whether everything runs.
    """

    title: str
    operation: str
    dtype: str
    shapes: tuple[str, ...]
    columns: tuple[int, ...]
    goals: Mapping[float, Mapping[int, float]]
    in_l2: Mapping[float, float] = field(default_factory=dict)
    quick: tuple[str, ...] = ()

    def read(self, shapes: Sequence[str]) -> list[Shape]:
        """Read shapes of this operation; others that a file has are left out."""
        return [shape for text in shapes for shape in read_shapes(text, self.operation)]


SUITES = {
    "linear": Suite(
        "y = W x, float32",
        "linear",
        "float32",
        MATRICES,
        (1, 5, 32, 128, 640),
        {
            0.8: {1: 4.0, 5: 3.5, 32: 3.0, 128: 3.0, 640: 3.0},
            0.9: {1: 8.0, 5: 7.0, 32: 6.0, 128: 6.0, 640: 6.0},
        },
        {0.9: 15.0},
        ("256x192",),
    ),
    "bfloat16": Suite(
        "y = W x, bfloat16",
        "linear",
        "bfloat16",
        MATRICES,
        (1, 5, 32, 128, 640),
        {
            0.8: {1: 3.5, 5: 3.5, 32: 1.4, 128: 1.3, 640: 1.0},
            0.9: {1: 6.0, 5: 6.0, 32: 1.4, 128: 1.4, 640: 1.0},
        },
        quick=("256x192",),
    ),
    "int8": Suite(
        "y = W x, int8 weights, x quantized when it comes",
        "linear",
        "int8",
        MATRICES,
        (1, 5),
        {0.8: {1: 2.5, 5: 2.5}, 0.9: {1: 5.0, 5: 5.0}},
        quick=("256x192",),
    ),
    "resnet50": Suite(
        "convolutions of ResNet50, float32",
        "conv",
        "float32",
        ("resnet50",),
        (1, 8),
        {0.8: {1: 3.0, 8: 3.0}, 0.9: {1: 6.0, 8: 6.0}},
        quick=("conv2d 32 48 3x3 1 1 14x14 3x3", "conv2d 32 48 1x1 2 1 14x14 1x1"),
    ),
    "jasper": Suite(
        "convolutions of Jasper, 352 frames, float32",
        "conv",
        "float32",
        ("jasper",),
        (1,),
        {0.8: {1: 3.0}, 0.9: {1: 6.0}},
        quick=("conv1d 32 48 11 1 2 64 wide", "conv1d 32 48 5 2 1 64 strided"),
    ),
    "lstm": Suite(
        "LSTM, float32",
        "lstm",
        "float32",
        ("gnmt",),
        (1,),
        {0.8: {1: 4.0, 32: 4.0}, 0.9: {1: 7.0, 32: 6.0}},
        {0.9: 10.0},
        ("lstm 48 64 3 2 short",),
    ),
}

# Several at once.
SETS = {"conv": ("resnet50", "jasper"), "kernels": tuple(SUITES)}


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes
    ----------
    suites : tuple of str
        Keys of `SUITES` or `SETS`.
    shapes : tuple of str or None
        As `read_shapes` takes them; None for those of the suite.
    sparsities : tuple of float
        Ignored by N:M patterns, which fix their own.
    columns : tuple of int or None
        n; None for a shape's own, or the suite's.
    patterns : tuple of str
    peers : tuple of str or None
        Libraries to compare with; None for all.
    threads : tuple of int
        With more than one, the speed-up by threads is shown too.
    seconds : float
        Of a case (one shape, sparsity, n and number of threads), at least three rounds.
    rounds : int
        Of a case, at most.
    clock : {"wall", "cpu"}
        "cpu" counts the time that the threads of this process run, which leaves out what other programs take on a busy
        machine; for one thread only.
    quick : bool
        Small shapes, and n of at most 32.
    """

    suites: tuple[str, ...] = ("linear",)
    shapes: tuple[str, ...] | None = None
    sparsities: tuple[float, ...] = SPARSITIES
    columns: tuple[int, ...] | None = None
    patterns: tuple[str, ...] = PATTERNS
    peers: tuple[str, ...] | None = None
    threads: tuple[int, ...] = (1,)
    seconds: float = 4.0
    rounds: int = 40
    clock: str = "wall"
    quick: bool = False

    def shapes_of(self, suite: Suite) -> list[Shape]:
        """Shapes to run of a suite."""
        return suite.read(self.shapes or (suite.quick if self.quick else suite.shapes))

    def columns_of(self, suite: Suite, shape: Shape) -> tuple[int, ...]:
        """n to run of a shape."""
        if self.columns is not None:
            return self.columns
        if shape.n is not None:
            return (shape.n,)
        return tuple(n for n in suite.columns if n <= FEW) if self.quick else suite.columns


# Whether everything runs; its figures mean little.
FEW = 32
QUICK = Settings(
    sparsities=(0.9,), patterns=("gs(cpu)", "irregular", "2:4"), rounds=2, seconds=0.1, quick=True
)


def peer_names() -> tuple[str, ...]:
    """What `--peers` takes: the libraries of all operations."""
    return tuple(dict.fromkeys(name for layer in LAYERS.values() for name in layer.peers))


def suites_of(names: Sequence[str]) -> dict[str, Suite]:
    """Give suites by name, sets of them taken apart.

    Raises
    ------
    BenchError
        If there is none of a name.
    """
    found: dict[str, Suite] = {}
    for name in names:
        if name not in SUITES and name not in SETS:
            raise BenchError(
                f"suites are {', '.join(SUITES)}, and sets of them {', '.join(SETS)}; there is no {name!r}"
            )
        found |= {each: SUITES[each] for each in SETS.get(name, (name,))}
    return found
