"""Which samples of unequal length make a batch, for one process of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

POOL = 64  # batches that are sorted by length together


def alike(
    lengths: Sequence[float], size: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1
) -> list[list[int]]:
    """The rows of every full batch of an epoch: those of alike length stand together, batches do not."""
    generator = np.random.default_rng((seed, epoch))
    rows = generator.permutation(len(lengths))
    measure = np.array(lengths)
    cut = []
    for start in range(0, len(rows), POOL * size):
        pool = rows[start : start + POOL * size]
        pool = pool[np.argsort(measure[pool], kind="stable")]
        cut += [pool[i : i + size].tolist() for i in range(0, len(pool), size)]
    whole = [batch for batch in cut if len(batch) == size]
    order = generator.permutation(len(whole))[: len(whole) // ranks * ranks]
    return [whole[i] for i in order[rank::ranks]]


def longest_first(
    lengths: Sequence[float], size: int, rank: int = 0, ranks: int = 1
) -> Iterator[list[int]]:
    """All rows in batches, the longest first."""
    rows = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cut = [rows[i : i + size] for i in range(0, len(rows), size)]
    return iter(cut[rank::ranks])
