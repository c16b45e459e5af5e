"""Times of calls that take turns, and what other programs take of the core meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

__all__ = ["CLOCKS", "alternate", "busy"]

TURN = 5e-3  # seconds of a contender's turn in a round, at least one call
BATCH = 2e-4  # seconds that are timed together, at least one call
LEAST_ROUNDS = 3

# "cpu" counts the time that the threads of this process run.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def _settle() -> None:
    """Wait until no thread of this process spins: some pools do so for a while after their work."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < 2e-4:
            return


def busy() -> float:
    """The share of a core that other programs have at this moment."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.02:
        pass
    used = time.process_time() - cpu
    return max(0.0, 1 - used / (time.perf_counter() - wall))


def alternate(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = float("inf"),
    turn: float = TURN,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, list[float]]:
    """Time calls one after the other, round after round.

    In its turn a contender is called a few times uncounted, so that its data is in the caches as in a loop of its own,
    and then in timed batches.

    Parameters
    ----------
    calls : mapping of str to callable
    rounds : int
        At most.
    seconds : float
        No round begins later, once there are three.
    turn : float
        Seconds of one turn; at least one call.
    clock : callable
        Gives seconds.
    progress : callable
        Told the share of the work that is done, up to 1.

    Returns
    -------
    dict of str to list of float
        Seconds of one call, for every batch.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            used = time.perf_counter() - begin
            if number >= LEAST_ROUNDS and used > seconds:
                break
            for name, call in calls.items():
                _settle()
                once = _seconds(call, 1, clock)
                if once < turn:
                    once = min(_seconds(call, 1, clock), _seconds(call, 1, clock))
                batch = max(1, int(BATCH / once))
                for _ in range(max(1, int(turn / (batch * once)))):
                    times[name].append(_seconds(call, batch, clock) / batch)
            used = time.perf_counter() - begin
            progress(min(1.0, max((number + 1) / rounds, used / seconds)))
    finally:
        if collecting:
            gc.enable()
    progress(1.0)
    return times


def _seconds(call: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start
