"""From the log-probabilities of CTC to text.

References
----------
A. Graves et al.: Connectionist temporal classification. ICML 2006. A. Hannun et al.: First-pass large vocabulary
continuous speech recognition using bi-directional recurrent DNNs. arXiv 1408.2873, 2014 (the prefix search).
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
import torch

from examples.jasper.model import BLANK, CHARACTERS


def encode(text: str) -> list[int]:
    """The classes of a text in lower case; what is not among the characters is left out."""
    return [CHARACTERS.index(c) for c in text.lower() if c in CHARACTERS]


def decode(classes: list[int]) -> str:
    return "".join(CHARACTERS[c] for c in classes)


def greedy(chances: torch.Tensor, lengths: torch.Tensor | None = None) -> list[str]:
    """The likeliest path of every recording, [N, T, 29]: repeats are joined, blanks left out."""
    texts = []
    for i, path in enumerate(chances.argmax(dim=2)):
        whole = path if lengths is None else path[: lengths[i]]
        texts.append(decode([c for c in whole.unique_consecutive().tolist() if c != BLANK]))
    return texts


def prefix_search(chances: npt.NDArray[np.float32], beam: int = 32, least: float = -9.0) -> str:
    """The likeliest text of one recording, [T, 29], all its alignments together.

    Parameters
    ----------
    beam : int
        Texts that are followed; with all that there are, the result is exact.
    least : float
        Classes whose log-probability is below this do not continue a text; the likeliest always may.
    """
    never = -np.inf
    # For each text, the log-probabilities of the alignments that end in a blank and of those that do not.
    texts: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for row in chances.astype(np.float64):
        kept = np.flatnonzero(row >= min(least, row.max()))
        following: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(text: tuple[int, ...], blank: float, other: float, into: dict = following) -> None:
            before = into.get(text, (never, never))
            into[text] = (
                float(np.logaddexp(before[0], blank)),
                float(np.logaddexp(before[1], other)),
            )

        for text, (blank, other) in texts.items():
            both = np.logaddexp(blank, other)
            for c in kept:
                if c == BLANK:
                    add(text, both + row[c], never)
                elif text and text[-1] == c:
                    add(text, never, other + row[c])
                    add((*text, int(c)), never, blank + row[c])
                else:
                    add((*text, int(c)), never, both + row[c])
        texts = dict(
            heapq.nlargest(beam, following.items(), key=lambda item: np.logaddexp(*item[1]))
        )
    return decode(list(max(texts.items(), key=lambda item: np.logaddexp(*item[1]))[0]))
