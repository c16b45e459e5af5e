"""How sparse the weights are at which training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """What `Pruner` asks of a schedule; `cubic` makes the usual one.

    Attributes
    ----------
    end : int
        The step after which masks no longer change.
    """

    @property
    def end(self) -> int: ...

    def __call__(self, step: int, sparsity: float) -> float | None:
        """The sparsity of the masks to be chosen at `step`, on the way to the final `sparsity`.

        None means that the masks stay as they are. Step 0 is the making of the `Pruner`, step t is its
        t-th call of `step()`.
        """


@dataclass(frozen=True)
class Cubic:
    """Gradual pruning: fast at first, when there is much to spare, then ever slower; see `cubic`."""

    start: int
    end: int
    every: int
    initial: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"a schedule needs 0 <= start < end, in steps, got start={self.start}, end={self.end}"
            )
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial must be a sparsity in [0, 1), got {self.initial}")

    def __call__(self, step: int, sparsity: float) -> float | None:
        if not self.start <= step <= self.end:
            return None
        if step != self.end and (step - self.start) % self.every:
            return None
        left = (self.end - step) / (self.end - self.start)
        return sparsity + (self.initial - sparsity) * left**3


def cubic(start: int, end: int, every: int = 100, initial: float = 0.0) -> Cubic:
    """Gradual pruning after a cubic curve.

    The masks are chosen anew at the steps start, start + every, ... and at `end`, with the sparsity
    ``s + (initial - s) * (1 - (t - start) / (end - start))**3``; s is the final sparsity. Afterwards they
    are fixed. Leave at least as many steps after `end` for recovery.

    Parameters
    ----------
    start, end : int
        First and last step at which masks are chosen, counted in calls of `Pruner.step()`.
    every : int
        Steps between two choices.
    initial : float
        Sparsity at `start`.

    Raises
    ------
    ValueError
        If not 0 <= start < end, every < 1, or initial is outside [0, 1).

    References
    ----------
    M. Zhu, S. Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression.
    arXiv 1710.01878, 2017.
    """
    return Cubic(start, end, every, initial)
