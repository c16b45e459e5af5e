"""What makes a comparison unfair, and is refused: settings that slow others down, and unequal threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits

from gspattern import plans
from gspattern.bench.timing import CLOCKS

__all__ = ["CRIPPLING", "BenchError", "blas", "check_clock", "check_environment", "same_threads"]

# Settings that make libraries slower than they are.
CRIPPLING = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES",
)  # fmt: skip


class BenchError(ValueError):
    """The benchmark would not be fair, or cannot be run as asked."""


def check_environment(environment: Mapping[str, str], threads: Iterable[int], cores: int) -> None:
    """Refuse what would make the comparison unfair.

    Parameters
    ----------
    environment : mapping of str to str
        Such as os.environ.
    threads : iterable of int
        That will be used.
    cores : int
        That this process may use.

    Raises
    ------
    BenchError
        With a sentence that says what to do.
    """
    found = [name for name in CRIPPLING if name in environment]
    if found:
        settings = ", ".join(f"{name}={environment[name]}" for name in found)
        unset = " ".join(f"-u {name}" for name in found)
        raise BenchError(
            f"{settings} would make the libraries that we compare with slower than they are; "
            f"run `env {unset} python -m gspattern bench`"
        )
    for count in threads:
        if not 1 <= count <= cores:
            raise BenchError(
                f"threads must be from 1 to {cores}, the cores that this process may use, got {count}"
            )


def check_clock(clock: str, threads: Sequence[int]) -> None:
    """Refuse a clock that there is not, or the CPU clock for several threads: it adds theirs up.

    Raises
    ------
    BenchError
    """
    if clock not in CLOCKS or (clock == "cpu" and set(threads) != {1}):
        raise BenchError(
            f"the clock is wall, or cpu for one thread; got {clock} for {', '.join(map(str, threads))}"
        )


def check_pools(pools: Iterable[Mapping[str, Any]], threads: int) -> None:
    """Refuse libraries with another number of threads; OpenBLAS takes no more than it was started with.

    Raises
    ------
    BenchError
    """
    for pool in pools:
        if pool["num_threads"] != threads:
            name = pool.get("prefix") or pool["internal_api"]
            raise BenchError(
                f"threads would be unequal: {name} uses {pool['num_threads']}, the others {threads}; unset "
                f"OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and MKL_NUM_THREADS, or set them all to {threads}"
            )


@contextmanager
def same_threads(threads: int) -> Iterator[None]:
    """Give ourselves and every pool that is loaded this number of threads; before is restored.

    Raises
    ------
    BenchError
        If one of them does not take it.
    """
    before = plans.get_num_threads()
    with threadpool_limits(threads):
        check_pools(threadpool_info(), threads)
        plans.set_num_threads(threads)
        try:
            yield
        finally:
            plans.set_num_threads(before)


def blas() -> list[str]:
    """Libraries that compute NumPy's and other products, with the core that they take this one for."""
    return [
        f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'core not told')})"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
