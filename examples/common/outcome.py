"""After training: convert the model, score it with the C kernels, measure it, and write table, picture and JSON."""

from __future__ import annotations

import json
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

import gspattern as gs
from examples.common.journal import draw
from examples.common.loop import StoppedError, Trained, _replace, evaluate, train
from examples.common.options import Options
from examples.common.processes import Processes
from examples.common.task import Tally, Task
from gspattern.bench.timing import alternate
from gspattern.torch import convert, load, save

VERSION = 1  # of result.json
ROUNDS = 200  # of timing, at most

# Of the converted model: all pruned layers compact, or dense where dense is faster at this size on this machine.
FORMS: dict[str, Literal["auto"] | bool] = {"compact": False, "fastest": "auto"}

Times = dict[str, dict[str, float]]
Given = TypeVar("Given", bound=Options)


def main(make_task: Callable[[Given], Task], options: Given) -> None:
    """Everything that a training script does: train, convert, score, measure, report.

    `make_task` gives the task from the options. In the folder of the options are then checkpoint.pt, log.csv,
    dense.safetensors, compact.safetensors, fastest.safetensors, curves.png and result.json.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    result = options.out / "result.json"
    if result.exists() and options.resume:
        print(f"{result} is there: this run has ended")
        return
    torch.set_num_threads(options.cores)
    gs.set_num_threads(options.cores)
    task = make_task(options)
    with Processes(options) as processes:
        try:
            trained = train(task, processes)
        except StoppedError:
            if processes.first:
                print(f"saved in {options.out}: the same command with --resume goes on")
            raise SystemExit(130) from None
    if processes.first:
        report = finish(task, trained)
        text = json.dumps(report, indent=1) + "\n"
        _replace(result, lambda path: path.write_text(text, "utf-8"))
        draw(trained.rows, task.metric, options.out / "curves.png")
        print_table(report)
        print(f"{options.out}: result.json, log.csv, curves.png, *.safetensors")


def finish(task: Task, trained: Trained) -> dict[str, Any]:
    """Convert, score and measure what was trained; what result.json holds."""
    options = task.options
    example = task.example()
    files = {"dense": options.out / "dense.safetensors"}
    models = {"dense": _loaded(task.build, files["dense"])}
    calls = task.dense_forms(models["dense"])
    layers: list[dict[str, Any]] = []
    sparsity = 0.0
    if trained.report is not None:
        models["masked"] = trained.model.eval()
        for name, keep in FORMS.items():
            models[name] = fast = convert(
                trained.model, dtype=options.dtype, example_inputs=example, keep_dense=keep
            )
            files[name] = options.out / f"{name}.safetensors"
            save(fast, files[name])
            calls[name] = task.call(fast)
        layers = [asdict(row) for row in trained.report]
        sparsity = trained.report.sparsity
    tallies = {name: evaluate(task, model) for name, model in tqdm(models.items(), desc="scoring")}
    memory = peak_memory(task.build, files, example)
    return {
        "version": VERSION,
        "task": type(task).__name__,
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "options": options.recorded(),
        "pattern": options.pattern,
        "sparsity": sparsity,
        "seed": options.seed,
        "metric": task.metric,
        "scores": {
            name: task.metrics(tally) | task.figures(models[name])
            for name, tally in tallies.items()
        },
        "tallies": {name: _lists(tally) for name, tally in tallies.items()},
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "peak_memory": memory,
        "latency": latencies(calls, options.seconds),
        "threads": options.cores,
        "training_seconds": trained.seconds,
        "layers": layers,
        "epochs": trained.rows,
        "machine": asdict(gs.cpu_info()) | {"system": platform.platform(), "backend": gs.backend()},
        "versions": {
            "gspattern": gs.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def evaluation(make_task: Callable[[Given], Task], kind: type[Given]) -> Callable[..., None]:
    """What an evaluate.py runs by typer: `report_file`, with the options of the run that wrote the file."""

    def evaluate(
        file: Annotated[
            Path, typer.Argument(help="dense.safetensors or compact.safetensors of a run.")
        ],
        data: Annotated[str, typer.Option(help="Other data than the run's.")] = "",
        threads: Annotated[int, typer.Option(help="Of the CPU; 0 takes one per core.")] = 0,
    ) -> None:
        """Score and time a network that train.py has written, dense or compact."""
        changes = {"data": data} if data else {}
        report_file(make_task(kind.read(file.parent, threads=threads, **changes)), file)

    return evaluate


def report_file(task: Task, file: Path) -> None:
    """Print score, bytes, time and peak memory of one network from its file."""
    torch.set_num_threads(task.options.cores)
    gs.set_num_threads(task.options.cores)
    model = _loaded(task.build, file)
    example = task.example()
    times = latencies({"": task.call(model)}, task.options.seconds)[""]
    scores = task.metrics(evaluate(task, model)) | task.figures(model)
    figures = {name: f"{value:.4f}" for name, value in scores.items()}
    figures |= {
        "bytes": f"{file.stat().st_size:,}",
        "ms for one sample, median": f"{1e3 * times['median']:.3f}",
        "ms for one sample, p99": f"{1e3 * times['p99']:.3f}",
        "threads": str(task.options.cores),
        "peak MiB": f"{peak_memory(task.build, {'': file}, example)[''] / 2**20:.1f}",
    }
    table = Table("", str(file), show_header=True)
    for name, value in figures.items():
        table.add_row(name, value)
    Console().print(table)


def latencies(calls: Mapping[str, Callable[[], Any]], seconds: float) -> Times:
    """Seconds of single calls that take turns: {name: {"best", "median", "p99"}}."""
    with torch.inference_mode():
        times = alternate(calls, rounds=ROUNDS, seconds=seconds, turn=0)
    return {
        name: {
            "best": min(each),
            "median": float(np.median(each)),
            "p99": float(np.percentile(each, 99)),
        }
        for name, each in times.items()
    }


def peak_memory(
    build: Callable[[], nn.Module], files: Mapping[str, Path], example: tuple[Any, ...]
) -> dict[str, int]:
    """Bytes that a process of its own needs at most to load a model from its file and call it once.

    What the interpreter and the libraries take is not counted.
    """
    plain = [a.numpy() if isinstance(a, torch.Tensor) else a for a in example]
    jobs = [(build, file, plain) for file in files.values()]
    with multiprocessing.get_context("spawn").Pool(len(jobs), maxtasksperchild=1) as pool:
        return dict(zip(files, pool.starmap(_peak, jobs, chunksize=1), strict=True))


def _peak(build: Callable[[], nn.Module], file: Path, arguments: list[Any]) -> int:
    torch.set_num_threads(1)
    nn.Linear(8, 8)(nn.Conv2d(1, 8, 3)(torch.ones(1, 1, 8, 10)))  # has torch load what it needs
    with suppress(OSError):  # where it is forbidden, the peak of loading libraries may be more
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    model = _loaded(build, file)
    with torch.inference_mode():
        model(*[torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments])
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _loaded(build: Callable[[], nn.Module], file: Path) -> nn.Module:
    """A model from its file, without its weights being made twice."""
    with torch.device("meta"):
        model = build()
    return load(file, model)


def print_table(report: Mapping[str, Any]) -> None:
    """What was lost and what was won, dense against compact."""
    scores, latency, size = report["scores"], report["latency"], report["bytes"]
    table = Table(
        title=f"{report['pattern']}, {report['sparsity']:.1%} of the pruned weights are zeros"
    )
    table.add_column("")
    metrics = list(scores["dense"])
    for head in (*metrics, "bytes", "of dense", "peak MiB", "ms, median", "p99", "times dense"):
        table.add_column(head, justify="right")
    forms = [name for name in latency if name not in size or name == "dense"]  # of the dense model
    rows = [("dense", "dense", name) for name in forms]
    if report["layers"]:
        rows += [("masked", "", ""), *((name, name, name) for name in FORMS)]
    best = min(latency[name]["median"] for name in forms)
    for kind, file, call in rows:
        times = latency.get(call)
        table.add_row(
            call or kind,
            *(f"{scores[kind][metric]:.4f}" for metric in metrics),
            *((f"{size[file]:,}", f"{size[file] / size['dense']:.1%}") if file else ("", "")),
            f"{report['peak_memory'][file] / 2**20:.1f}" if file else "",
            *([f"{1e3 * times[key]:.3f}" for key in ("median", "p99")] if times else ("", "")),
            f"{best / times['median']:.2f}" if times else "",
        )
    table.caption = (
        f"One sample, {report['threads']} thread(s), in turns; {report['machine']['name']}"
    )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _lists(tally: Tally) -> dict[str, Any]:
    return {name: value.tolist() for name, value in tally.items()}
