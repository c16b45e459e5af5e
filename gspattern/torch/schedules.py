"""How sparse the weights are at which training step, and what else happens there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Shape = Literal["cubic", "linear"]


class Schedule(Protocol):
    """What `Pruner` asks of a schedule; `cubic`, `linear`, `one_shot`, `iterative` and `admm` make them.

    A schedule may also have ``rewind_to``, a step: weights go back to their values of that step whenever the
    masks change; and ``rho``, a number: until `end` weights are not masked but drawn to the masks by
    `Pruner.penalty()`.

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
class Gradual:
    """From an initial sparsity to the final one, along a curve; see `cubic` and `linear`."""

    start: int
    end: int  # of all changes
    every: int
    initial: float
    reached: int  # the step at which the sparsity is the final one
    power: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.reached:
            raise ValueError(
                f"a schedule needs 0 <= start < end, in steps, got start={self.start}, end={self.reached}"
            )
        if self.end < self.reached:
            raise ValueError(
                f"masks can regrow until the schedule's end or longer, got end={self.reached}, "
                f"regrow_until={self.end}"
            )
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial must be a sparsity in [0, 1), got {self.initial}")

    def __call__(self, step: int, sparsity: float) -> float | None:
        if not self.start <= step <= self.end:
            return None
        if step not in (self.reached, self.end) and (step - self.start) % self.every:
            return None
        left = max(0, self.reached - step) / (self.reached - self.start)
        return sparsity + (self.initial - sparsity) * left**self.power


@dataclass(frozen=True)
class OneShot:
    """All at once at one step; see `one_shot`."""

    end: int

    def __post_init__(self) -> None:
        if self.end < 0:
            raise ValueError(f"a step must not be negative, got {self.end}")

    def __call__(self, step: int, sparsity: float) -> float | None:
        return sparsity if step == self.end else None


@dataclass(frozen=True)
class Iterative:
    """A share of the weights that are left in every round; see `iterative`."""

    start: int
    rounds: int
    every: int
    rewind_to: int | None

    def __post_init__(self) -> None:
        if self.start < 0 or self.rounds < 1 or self.every < 1:
            raise ValueError(
                "iterative pruning needs start >= 0, rounds >= 1 and every >= 1, got "
                f"start={self.start}, rounds={self.rounds}, every={self.every}"
            )
        if self.rewind_to is not None and not 0 <= self.rewind_to <= self.start:
            raise ValueError(
                f"rewind_to must be a step from 0 to start={self.start}, got {self.rewind_to}"
            )

    @property
    def end(self) -> int:
        return self.start + (self.rounds - 1) * self.every

    def __call__(self, step: int, sparsity: float) -> float | None:
        if not self.start <= step <= self.end or (step - self.start) % self.every:
            return None
        done = (step - self.start) // self.every + 1
        return sparsity if done == self.rounds else 1 - (1 - sparsity) ** (done / self.rounds)


@dataclass(frozen=True)
class Admm:
    """Weights are drawn to the pattern, and masked at the end; see `admm`."""

    start: int
    end: int
    every: int
    rho: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end or self.every < 1:
            raise ValueError(
                "ADMM needs 0 <= start < end and every >= 1, in steps, got "
                f"start={self.start}, end={self.end}, every={self.every}"
            )
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def __call__(self, step: int, sparsity: float) -> float | None:
        if not self.start <= step <= self.end:
            return None
        due = step == self.end or (step - self.start) % self.every == 0
        return sparsity if due else None


def _steps(time: float, steps_per_epoch: int | None) -> int:
    """A time in steps: given as such, or in epochs."""
    if steps_per_epoch is None:
        if time != int(time):
            raise ValueError(
                f"steps are whole numbers, got {time}; for epochs give steps_per_epoch"
            )
        return int(time)
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
    return round(time * steps_per_epoch)


def _gradual(
    start: float,
    end: float,
    every: float | None,
    initial: float,
    regrow_until: float | None,
    steps_per_epoch: int | None,
    power: int,
) -> Gradual:
    if every is None:
        every = 100 if steps_per_epoch is None else 1
    reached = _steps(end, steps_per_epoch)
    return Gradual(
        start=_steps(start, steps_per_epoch),
        end=reached if regrow_until is None else _steps(regrow_until, steps_per_epoch),
        every=_steps(every, steps_per_epoch),
        initial=initial,
        reached=reached,
        power=power,
    )


def cubic(
    start: float,
    end: float,
    every: float | None = None,
    initial: float = 0.0,
    *,
    regrow_until: float | None = None,
    steps_per_epoch: int | None = None,
) -> Gradual:
    """Gradual pruning after a cubic curve: fast at first, when there is much to spare, then ever slower.

    The masks are chosen anew at the steps start, start + every, ... and at `end`, with the sparsity
    ``s + (initial - s) * (1 - (t - start) / (end - start))**3``; s is the final sparsity. Leave at least as
    many steps after `end` for recovery.

    Parameters
    ----------
    start, end : float
        First step at which masks are chosen, and the one that reaches the final sparsity, counted in calls
        of `Pruner.step()`; or in epochs, if `steps_per_epoch` is given.
    every : float, optional
        Steps between two choices, 100 by default; or epochs, 1 by default.
    initial : float
        Sparsity at `start`.
    regrow_until : float, optional
        Masks are chosen anew, at the final sparsity, until then, so that weights may still come back. By
        default they are fixed at `end`.
    steps_per_epoch : int, optional
        Calls of `Pruner.step()` in an epoch: times are then in epochs.

    Raises
    ------
    ValueError
        If not 0 <= start < end, every < 1 step, or initial is outside [0, 1).

    References
    ----------
    M. Zhu, S. Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression.
    arXiv 1710.01878, 2017.
    """
    return _gradual(start, end, every, initial, regrow_until, steps_per_epoch, power=3)


def linear(
    start: float,
    end: float,
    every: float | None = None,
    initial: float = 0.0,
    *,
    regrow_until: float | None = None,
    steps_per_epoch: int | None = None,
) -> Gradual:
    """Gradual pruning in equal steps; arguments and errors are those of `cubic`."""
    return _gradual(start, end, every, initial, regrow_until, steps_per_epoch, power=1)


def one_shot(at: float = 0, *, steps_per_epoch: int | None = None) -> OneShot:
    """All at once, after `at` steps (or epochs) of training; the weights then recover under fixed masks.

    Raises
    ------
    ValueError
        If it is negative.
    """
    return OneShot(_steps(at, steps_per_epoch))


def iterative(
    rounds: int,
    every: float,
    start: float | None = None,
    *,
    rewind_to: float | None = None,
    steps_per_epoch: int | None = None,
) -> Iterative:
    """Pruning in rounds, each of which drops the same share of the weights that are left.

    Parameters
    ----------
    rounds : int
        How many; the last reaches the final sparsity.
    every : float
        Steps (or epochs) of training in a round.
    start : float, optional
        The end of the first training, `every` by default.
    rewind_to : float, optional
        After each round all parameters go back to their values of this step, and the optimizer's state is
        cleared: 0 is the lottery ticket, a later step is late resetting. By default training goes on.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    J. Frankle, M. Carbin: The lottery ticket hypothesis. arXiv 1803.03635, 2018. J. Frankle et al.: Linear
    mode connectivity and the lottery ticket hypothesis. arXiv 1912.05671, 2019.
    """
    length = _steps(every, steps_per_epoch)
    return Iterative(
        start=length if start is None else _steps(start, steps_per_epoch),
        rounds=rounds,
        every=length,
        rewind_to=None if rewind_to is None else _steps(rewind_to, steps_per_epoch),
    )


def admm(
    start: float,
    end: float,
    every: float | None = None,
    rho: float = 1e-3,
    *,
    steps_per_epoch: int | None = None,
) -> Admm:
    """The alternating direction method of multipliers: weights are trained towards the pattern, then masked.

    From `start` on, ``rho / 2 * |W - Z + U|^2`` is added to the loss by `Pruner.penalty()`; every so many steps
    Z becomes the projection of W + U onto the pattern, and U grows by W - Z. At `end` weights are masked,
    and the masks stay. Authors let the learning rate fall between two projections and rise again.

    Parameters
    ----------
    start, end : float
        First projection, and the step at which weights are masked; in epochs, if `steps_per_epoch` is given.
    every : float, optional
        Steps between two projections, 100 by default; or epochs, 1 by default.
    rho : float
        Weight of the penalty.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    T. Zhang et al.: A systematic DNN weight pruning framework using alternating direction method of
    multipliers. arXiv 1804.03294, 2018.
    """
    if every is None:
        every = 100 if steps_per_epoch is None else 1
    return Admm(
        _steps(start, steps_per_epoch), _steps(end, steps_per_epoch), _steps(every, steps_per_epoch), rho
    )  # fmt: skip
