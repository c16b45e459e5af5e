"""The whole way on real handwriting: train, prune to a pattern, compress, save, and run without torch.

Run it with `make demo`. A network of 64 - 512 - 512 - 10 learns scikit-learn's handwritten digits; for each
pattern a copy is pruned to 90 % while it trains on, converted, saved, and run by a process of its own that
has no torch. One table says what was lost and what was won, one picture shows it.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import digits_run
import numpy as np
import numpy.typing as npt
import torch
from digits_data import Digits, digits
from digits_model import WIDTHS
from digits_train import predict, prune, steps_per_epoch, train_dense
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file as save_dense
from torch import nn
from tqdm import tqdm

import gspattern as gs
from gspattern.plots import plot_mask, plot_tradeoff
from gspattern.torch import convert, matrices

SPARSITY = 0.9
PATTERNS = (
    "irregular",
    "gs(16,16)",
    "gs(16,1)+scatter",
    "gs(cpu)",
    "block(1,16)",
    "block(16,1)",
)
SHOWN = "gs(16,1)+scatter"  # whose mask is in the picture


@dataclass
class Result:
    """What was measured of one kind of network, over all seeds."""

    accuracy: list[float] = field(default_factory=list)  # per cent
    empty_rows: int = 0
    nbytes: int = 0


class Times(NamedTuple):
    """Microseconds per sample."""

    best: float
    median: float

    def __str__(self) -> str:
        return f"{self.best:.1f} / {self.median:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, help="networks per pattern (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="train little: for tests")
    parser.add_argument("--out", type=Path, default=Path("build/digits"), help="folder to write to")
    arguments = parser.parse_args()
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    dense_epochs, prune_epochs = (3, 4) if arguments.quick else (20, 40)
    rounds = 20 if arguments.quick else 400
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    # One thread everywhere: layers of this size do not gain from more, and the figures compare.
    torch.set_num_threads(1)
    gs.set_num_threads(1)

    data = digits()
    results = {name: Result() for name in ("dense", *PATTERNS)}
    steps = seeds * (dense_epochs + len(PATTERNS) * prune_epochs) * steps_per_epoch(data)
    models: dict[str, nn.Module] = {}  # of the first seed, to be timed and drawn
    with tqdm(total=steps, unit="step") as bar:
        for seed in range(seeds):
            for name in results:
                bar.set_description(f"seed {seed}: {name}")
                if name == "dense":
                    dense = model = train_dense(data, dense_epochs, seed, bar)
                else:
                    model = prune(dense, data, name, prune_epochs, seed, bar)
                logits = predict(model, data.x_test)
                results[name].accuracy.append(100 * float((logits.argmax(1) == data.y_test).mean()))
                if seed == 0:
                    models[name] = model

    files = save(models, out)
    check(models, files, data, out)
    for name, file in files.items():
        results[name].nbytes = file.stat().st_size
        if name != "dense":
            results[name].empty_rows = sum(
                int((~pruned.mask.any(axis=1)).sum()) for pruned in masks(models[name]).values()
            )
    times = time_all(models, files, data, rounds)
    print_table(results, times, seeds)
    picture(models, results, out / "digits.png")
    cpu = gs.cpu_info()
    print(f"machine: {cpu.name}, {gs.backend()}")
    print(f"picture: {out / 'digits.png'}, networks: {out}/*.safetensors")


def save(models: dict[str, nn.Module], out: Path) -> dict[str, Path]:
    """One file per network, compact but for the dense one."""
    files = {}
    for i, (name, model) in enumerate(models.items()):
        stem = "".join(c if c.isalnum() else "_" for c in name).strip("_")
        files[name] = out / f"{i}_{stem}.safetensors"
        if name == "dense":
            save_dense(model.state_dict(), files[name])
        else:
            gs.save_file(matrices(convert(model, keep_dense=False)), files[name])
    return files


def check(models: dict[str, nn.Module], files: dict[str, Path], data: Digits, out: Path) -> None:
    """Run all files in a process that has no torch, and hold the outputs against torch's."""
    np.save(out / "inputs.npy", data.x_test)
    command = [sys.executable, digits_run.__file__, out / "inputs.npy", out / "outputs.npz"]
    subprocess.run([*map(str, command), *map(str, files.values())], check=True)
    outputs = np.load(out / "outputs.npz")
    same = []
    for name, file in files.items():
        expected, actual = predict(models[name], data.x_test), outputs[file.stem]
        error = float(np.abs(actual - expected).max() / np.abs(expected).max())
        if error > 1e-5:
            sys.exit(f"{name}: the file gives other outputs than the model, by {error:.1e}")
        same.append(int((actual.argmax(1) == expected.argmax(1)).sum()))
    print(
        f"{len(files)} files run in a process without torch: of {len(data.x_test)} predictions, "
        f"at least {min(same)} are those of torch"
    )


def masks(model: nn.Module) -> dict[str, Any]:
    """What the pruned layers carry, by layer."""
    return {
        name: layer.gs_pruned["weight"]
        for name, layer in model.named_children()
        if hasattr(layer, "gs_pruned")
    }


def time_all(
    models: dict[str, nn.Module], files: dict[str, Path], data: Digits, rounds: int
) -> dict[str, Times]:
    """Time all contenders in turns, one sample at a time: the networks, and dense and CSR in other libraries."""
    torch_model = models["dense"]
    contenders: dict[str, Callable[[npt.NDArray[np.float32]], Any]] = {
        "dense": lambda x: torch_model(torch.from_numpy(x))
    }
    for name, file in files.items():
        tensors = gs.load_file(file)
        contenders["numpy" if name == "dense" else name] = lambda x, t=tensors: digits_run.forward(
            t, x
        )
        if name != "dense":
            contenders[f"csr {name}"] = csr_network(tensors)
    samples = itertools.cycle(data.x_test)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for _ in tqdm(range(rounds), desc="timing", unit="round"):
            for name, run in contenders.items():
                batch = [next(samples) for _ in range(10)]
                start = time.perf_counter()
                for x in batch:
                    run(x)
                times[name].append((time.perf_counter() - start) / len(batch) * 1e6)
    return {name: Times(min(all_), float(np.median(all_))) for name, all_ in times.items()}


def csr_network(tensors: dict[str, Any]) -> Callable[[npt.NDArray[np.float32]], Any]:
    """The same network with SciPy's CSR matrices."""
    layers = [
        (weight if isinstance(weight, np.ndarray) else weight.to_csr(), tensors[f"{layer}.bias"])
        for layer in digits_run.LAYERS
        for weight in [tensors[f"{layer}.weight"]]
    ]

    def run(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        for weight, bias in layers[:-1]:
            x = np.maximum(weight @ x + bias, 0)
        weight, bias = layers[-1]
        return weight @ x + bias

    return run


def print_table(results: dict[str, Result], times: dict[str, Times], seeds: int) -> None:
    dense = results["dense"]
    table = Table(
        title="Handwritten digits: " + " - ".join(map(str, WIDTHS)),
        caption=(
            f"Pruned: fc1 and fc2, to {SPARSITY:.0%} each; the last layer stays dense (the default). "
            f"Accuracy on the test images: mean and standard deviation of {seeds} seeds. "
            "us: microseconds per sample for the whole network, one sample at a time, one thread, best / median, "
            "all in turns. CSR: the same weights in SciPy's CSR. x: how much faster than dense, by the best times."
        ),
    )
    table.add_column("pattern", no_wrap=True)
    heads = ("accuracy %", "bytes", "of dense", "empty rows", "us", "us CSR", "x torch", "x numpy")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, r in results.items():
        spread = f" ± {deviation(r.accuracy):.2f}" if seeds > 1 else ""
        about = (
            f"{np.mean(r.accuracy):.2f}{spread}",
            f"{r.nbytes:,}",
            f"{r.nbytes / dense.nbytes:.1%}",
            "" if name == "dense" else str(r.empty_rows),
        )
        if name == "dense":
            table.add_row("dense, torch", *about, *speed(times, name, ""))
            table.add_row("dense, numpy", "", "", "", "", *speed(times, "numpy", ""))
            table.add_section()
        else:
            table.add_row(name, *about, *speed(times, name, f"csr {name}"))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)


def deviation(values: list[float]) -> float:
    """Standard deviation of what these few were drawn from."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def speed(times: dict[str, Times], name: str, csr: str) -> tuple[str, str, str, str]:
    own = times[name].best
    return (
        str(times[name]),
        str(times.get(csr, "")),
        f"{times['dense'].best / own:.1f}",
        f"{times['numpy'].best / own:.1f}",
    )


def picture(models: dict[str, nn.Module], results: dict[str, Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    pruned = masks(models[SHOWN])["fc2"]
    order = pruned.row_order[256:320]
    plot_mask(
        pruned.mask[order][:, :128],
        pruned.pattern,
        ax=left,
        title=f"{SHOWN}: 64 rows of fc2, 128 columns, a colour per bank",
    )
    points = {
        name: (float(r.nbytes), float(np.mean(r.accuracy)), deviation(r.accuracy))
        for name, r in results.items()
    }
    plot_tradeoff(points, ax=right, ylabel="accuracy, %")
    right.set_title(f"{SPARSITY:.0%} of fc1 and fc2 pruned")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
