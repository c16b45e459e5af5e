"""Runs networks from their files, without torch: NumPy, and the C kernels of gspattern.

    python digits_run.py INPUTS.npy OUTPUTS.npz NETWORK.safetensors ...

The outputs hold one array [samples, 10] for every file, by the file's stem.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gspattern as gs

LAYERS = ("fc1", "fc2", "fc3")


def forward(tensors: dict[str, Any], x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The network of digits_model.py: compact layers where the file has them, dense ones else."""
    for layer in LAYERS:
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        activation = None if layer == LAYERS[-1] else "relu"
        if isinstance(weight, np.ndarray):
            x = x @ weight.T + bias
            x = np.maximum(x, 0) if activation else x
        else:
            x = weight.linear(x, bias=bias, activation=activation)
    return x


def main(inputs: str, outputs: str, *files: str) -> None:
    x = np.load(inputs)
    results = {Path(file).stem: forward(gs.load_file(file), x) for file in files}
    if "torch" in sys.modules:
        sys.exit("torch was imported: this program is to show that it is not needed")
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
