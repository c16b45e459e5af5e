"""The error of the predictions of `gspattern.explain` over the matrices of GNMT and others.

python benchmarks/bench_explain.py [--clock cpu] [--seconds 0.3]
"""

from __future__ import annotations

import argparse
import statistics

import gspattern as gs
from gspattern.bench import make_weights

SHAPES = ((256, 256), (512, 2048), (1024, 1024), (4096, 1024), (4096, 2048))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    options = parser.parse_args()
    errors: dict[tuple[str, int], list[float]] = {}
    print("shape, sparsity, n: error of dense, csr and compact")
    for rows, cols in SHAPES:
        weights = make_weights(rows, cols)
        for sparsity in (0.8, 0.9):
            for n in (1, 5, 32, 128):
                (row,) = gs.explain(
                    weights, n, sparsity=sparsity, seconds=options.seconds, clock=options.clock
                )
                for key, each in row.contenders.items():
                    assert each.error is not None
                    errors.setdefault((key, n), []).append(each.error)
                cells = ", ".join(f"{each.error:+.0%}" for each in row.contenders.values())
                print(f"{rows} x {cols}, {sparsity:.0%}, {n}: {cells}", flush=True)
    print("median and largest |error|")
    for (key, n), found in errors.items():
        sizes = [abs(error) for error in found]
        print(f"{key}, n = {n}: {statistics.median(sizes):.0%}, {max(sizes):.0%}")


if __name__ == "__main__":
    main()
