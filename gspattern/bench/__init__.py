"""The benchmark: compact matrices against dense and sparse libraries, on this machine.

``python -m gspattern bench`` is its command line. All contenders run in one process on the same weights, dtype,
threads and x, one after the other in every round, and every time stands beside the error against float64. Calls are
made from Python, as users make them. It refuses to run against a crippled baseline. Needs the extra `bench`; peers (the
extra `peers`) are found at run time.

`suites` says what is run and what must be reached, `runner` runs it, `summary` compares. An operation is a `*_bench`
module (what is computed, exactly and by us) and a `*_peers` module (how libraries do it), and a row in `suites`.
"""

import importlib

try:
    for _name in ("rich", "threadpoolctl", "tqdm"):
        importlib.import_module(_name)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'the benchmark needs {error.name}: pip install "gspattern[bench,peers]"'
    ) from error

from gspattern.bench.fairness import BenchError
from gspattern.bench.layers import make_weights
from gspattern.bench.pages import markdown
from gspattern.bench.runner import run
from gspattern.bench.shapes import read_shapes
from gspattern.bench.suites import QUICK, SETS, SUITES, Settings
from gspattern.bench.summary import summarise
from gspattern.bench.tables import print_case, print_report, print_table
from gspattern.bench.timing import alternate

__all__ = [
    "BenchError",
    "QUICK",
    "SETS",
    "SUITES",
    "Settings",
    "alternate",
    "make_weights",
    "markdown",
    "print_case",
    "print_report",
    "print_table",
    "read_shapes",
    "run",
    "summarise",
]
