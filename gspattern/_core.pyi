"""The C core: types of what csrc/python defines."""

from typing import Any

import numpy as np
import numpy.typing as npt

class PatternError(ValueError): ...
class FormatError(ValueError):
    rule: str

def set_num_threads(threads: int, /) -> None: ...
def get_num_threads() -> int: ...

# masks
def choose(
    choices: tuple[tuple[Any, ...], ...], keep: int, greedy: bool, /
) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...] | None, float]: ...
def max_bundles(pattern: tuple[Any, ...], cols: int, group_rows: int, /) -> int: ...
def check_mask(
    mask: npt.NDArray[np.bool_], pattern: tuple[Any, ...], row_order: npt.NDArray[np.uint32] | None, /
) -> list[tuple[int, int, int, int, int]]: ...
def complete_mask(
    mask: npt.NDArray[np.bool_], pattern: tuple[Any, ...], row_order: npt.NDArray[np.uint32] | None, /
) -> None: ...
