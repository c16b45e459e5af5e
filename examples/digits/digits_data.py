"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


@dataclass(frozen=True)
class Digits:
    """x: float32 [samples, 64] in [0, 1]; y: int64 [samples], the digit."""

    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]


def digits() -> Digits:
    """1,257 images to train with and 540 to test with, the same ones every time."""
    images = load_digits()
    x = (images.data / 16).astype(np.float32)
    y = images.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.3, random_state=0, stratify=y
    )
    return Digits(x_train, y_train, x_test, y_test)
