"""Score and time a network that train.py has written, dense or compact.

python -m examples.jasper.evaluate build/jasper/compact.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.common.outcome import report_file
from examples.jasper.train import JasperOptions, Transcribe


def evaluate(
    file: Annotated[
        Path, typer.Argument(help="dense.safetensors or compact.safetensors of a run.")
    ],
    data: Annotated[str, typer.Option(help="Other data than the run's.")] = "",
    threads: Annotated[int, typer.Option(help="Of the CPU; 0 takes one per core.")] = 0,
) -> None:
    """Score and time a network that train.py has written, dense or compact."""
    changes = {"data": data} if data else {}
    options = JasperOptions.read(file.parent, threads=threads, **changes)
    report_file(Transcribe(options), file)


if __name__ == "__main__":
    typer.run(evaluate)
