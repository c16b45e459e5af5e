"""Accuracy sweeps: a training script run for every model, seed, pattern and sparsity, each in a process of its own.

A cell is a folder MODEL/seed-N/PATTERN that ends up with result.json, as examples/common writes it. The dense network
of a model and seed is a cell too, on which the pruned ones wait and from whose weights they begin. State is in the
folders alone: a cell with a result is skipped, any other goes on by the script's --resume.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gspattern.patterns import NM, parse_pattern

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Cell", "Cells", "Config", "cells", "read", "read_config", "run", "write"]

POLL = 0.1  # seconds between looks at a process
Flags = Mapping[str, Any]
Cells = list[dict[str, Any]]
Submit = Callable[["Cell"], "Future[Cell]"]


@dataclass(frozen=True)
class Config:
    """What a sweep runs.

    Attributes
    ----------
    module : str
        The training script, as for `python -m`.
    out : Path
        Folder of the cells.
    seeds : tuple of int
    sparsities : tuple of float
        For patterns that do not have one of their own, as n:m has.
    patterns : tuple of str
    options, dense, prune : dict
        Flags of all runs, of dense ones, and of pruned ones: {"prune-epochs": 10}.
    models : dict of str to dict
        More flags for each model, by the model's name.
    """

    module: str
    out: Path
    seeds: tuple[int, ...]
    sparsities: tuple[float, ...]
    patterns: tuple[str, ...]
    options: Flags = field(default_factory=dict)
    dense: Flags = field(default_factory=dict)
    prune: Flags = field(default_factory=dict)
    models: Mapping[str, Flags] = field(default_factory=lambda: {"model": {}})


@dataclass(frozen=True)
class Cell:
    """One run of the training script.

    Attributes
    ----------
    folder : Path
        Where it writes.
    command : tuple of str
    needs : Path or None
        The folder of the dense run that it begins from.
    """

    folder: Path
    command: tuple[str, ...]
    needs: Path | None = None

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").exists()


class CellError(Exception):
    """A training script that failed."""


class _StoppedError(Exception):
    """The sweep is being stopped."""


def read_config(path: Path) -> Config:
    """Read a sweep from a TOML file whose keys are the attributes of `Config`.

    Raises
    ------
    ValueError
        If the file is no TOML, lacks a key, has one that is unknown, or names a pattern or sparsity that is none.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    needed = {"module", "out", "seeds", "sparsities", "patterns"}
    known = set(Config.__dataclass_fields__)
    if missing := needed - set(values):
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    if unknown := set(values) - known:
        raise ValueError(
            f"{path} has unknown keys {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}"
        )
    for pattern in values["patterns"]:
        parse_pattern(pattern)
    for sparsity in values["sparsities"]:
        if not 0 <= sparsity < 1:
            raise ValueError(f"{path}: sparsities must be in [0, 1), got {sparsity}")
    lists = {key: tuple(values[key]) for key in ("seeds", "sparsities", "patterns")}
    return Config(**{**values, **lists, "out": Path(values["out"])})


def cells(config: Config, threads: int = 1) -> list[Cell]:
    """All cells of a sweep: of each model and seed the dense one first, then a pattern after another.

    `threads` is the number that each cell may use.
    """
    result = []
    for (model, more), seed in itertools.product(config.models.items(), config.seeds):
        base = config.out.absolute() / model / f"seed-{seed}"
        general = {**config.options, **more, "seed": seed, "threads": threads}

        def cell(name: str, flags: Flags, needs: Path | None, base: Path = base) -> Cell:
            command = (sys.executable, "-m", config.module, "--out", str(base / name), "--resume")
            return Cell(base / name, (*command, *_arguments(flags)), needs)

        dense = cell("dense", {**general, **config.dense, "pattern": "dense"}, None)
        result.append(dense)
        start = {"epochs": 0, "weights": str(dense.folder / "dense.safetensors")}
        for pattern in config.patterns:
            fixed = parse_pattern(pattern)
            own = isinstance(fixed, NM)
            for sparsity in (None,) if own else config.sparsities:
                name = re.sub(r"[^\w+]+", "_", pattern).strip("_")
                flags = {**general, **config.prune, **start, "pattern": pattern}
                if sparsity is not None:
                    name, flags["sparsity"] = f"{name}-{sparsity}", sparsity
                result.append(cell(name, flags, dense.folder))
    return result


def _arguments(flags: Flags) -> list[str]:
    """{"width": 16, "amp": true, "include": ["a", "b"]} as flags of a command line."""
    arguments = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(flag)
        elif value is not False:
            each = value if isinstance(value, list) else [value]
            arguments += [part for v in each for part in (flag, str(v))]
    return arguments


def run(todo: Sequence[Cell], jobs: int = 1, ray: bool = False) -> dict[Path, str]:
    """Run the cells that have no result, `jobs` at a time here, or on a Ray cluster.

    Parameters
    ----------
    todo : sequence of Cell
    jobs : int
        Processes at a time on this machine; on a cluster, Ray decides by the CPUs that it has.
    ray : bool
        Connects as `ray.init()` does, so RAY_ADDRESS says where. All nodes need the same folders.

    Returns
    -------
    dict of Path to str
        What went wrong, by the folder of the cell; empty if nothing did.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, when the running cells have saved.
    """
    start = _ray(todo) if ray else _local(jobs)
    with start as submit:
        return _run_all(todo, submit)


def _run_all(todo: Sequence[Cell], submit: Submit) -> dict[Path, str]:
    """Submit every cell as soon as what it needs is there."""
    errors: dict[Path, str] = {}
    waiting = [cell for cell in todo if not cell.done]
    running: dict[Future[Cell], Cell] = {}
    with tqdm(total=len(todo), initial=len(todo) - len(waiting), unit="cell") as bar:
        while waiting or running:
            unfinished = {cell.folder for cell in (*waiting, *running.values())}
            ready = [cell for cell in waiting if cell.needs not in unfinished]
            waiting = [cell for cell in waiting if cell.needs in unfinished]
            for cell in ready:
                if cell.needs in errors:
                    errors[cell.folder] = f"{cell.needs} has failed"
                    bar.update()
                else:
                    running[submit(cell)] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                if (error := future.exception()) is not None:
                    errors[cell.folder] = str(error)
                    tqdm.write(f"{cell.folder}: {error}")
                bar.update()
    return errors


@contextmanager
def _local(jobs: int) -> Any:
    stop: list[bool] = []

    def terminate(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda cell: pool.submit(run_cell, cell, lambda: bool(stop))
    except KeyboardInterrupt:
        tqdm.write("stopping: the running cells save; the same command goes on")
        stop.append(True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ray(todo: Sequence[Cell]) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("--ray needs Ray: pip install ray") from error
    ray.init(ignore_reinit_error=True)
    threads = [
        c.command[c.command.index("--threads") + 1] for c in todo if "--threads" in c.command
    ]
    remote: Any = ray.remote(num_cpus=max(map(int, threads), default=1))(run_cell)
    try:
        yield lambda cell: remote.remote(cell, None, os.getcwd()).future()
    finally:
        ray.shutdown()


def run_cell(
    cell: Cell, stopped: Callable[[], bool] | None = None, folder: str | None = None
) -> Cell:
    """Run a cell to its end, or until `stopped` says so; it then gets the time to save.

    The process holds a lock on its folder as long as it lives: if this process is killed, the next sweep waits for it
    rather than running the cell twice.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (
        (cell.folder / "lock").open("w") as lock,
        (cell.folder / "output.txt").open("ab") as output,
    ):
        while not _locked(lock):
            if stopped is not None and stopped():
                raise _StoppedError("stopped")
            time.sleep(POLL)
        if cell.done:  # by the one that held the lock
            return cell
        process = subprocess.Popen(
            cell.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            pass_fds=[lock.fileno()], start_new_session=True, cwd=folder,
        )  # fmt: skip
        told = False
        try:
            while process.poll() is None:
                if not told and stopped is not None and stopped():
                    told = True
                    process.send_signal(signal.SIGINT)
                time.sleep(POLL)
        except BaseException:  # Ray cancels by an exception
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if told:
        raise _StoppedError("stopped")
    if process.returncode or not cell.done:
        tail = (cell.folder / "output.txt").read_text("utf-8", "replace").splitlines()[-3:]
        raise CellError(
            f"exit status {process.returncode}, see output.txt there: " + " / ".join(tail)
        )
    if (
        cell.needs is not None
    ):  # a large copy of what the dense run has, and what only --resume needs
        for name in ("dense.safetensors", "checkpoint.pt"):
            (cell.folder / name).unlink(missing_ok=True)
    return cell


def _locked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read(path: Path) -> Cells:
    """What the finished cells of a sweep found, from its folder, or from the one file that `write` makes of it.

    Returns
    -------
    list of dict
        "model", "pattern", "sparsity" (asked for, or that of an n:m pattern; 0 of dense), "seed", "metric" (the first
        of the scores), "scores" of the dense or the converted network, "bytes" of the files, "ms" (median time of one
        sample, by the form of the network), "training_seconds", "threads", "date", "machine", "versions".

    Raises
    ------
    ValueError
        If there are none.
    """
    if path.is_file():
        found: Cells = json.loads(path.read_text("utf-8"))
        return found
    files = sorted(path.glob("*/seed-*/*/result.json"))
    if not files:
        raise ValueError(f"{path} holds no results (MODEL/seed-N/PATTERN/result.json)")
    return [_summary(f.parts[-4], json.loads(f.read_text("utf-8"))) for f in files]


def _summary(model: str, result: Mapping[str, Any]) -> dict[str, Any]:
    pattern, scores = result["pattern"], result["scores"]
    sparsity = 0.0
    if pattern != "dense":
        asked = parse_pattern(pattern)
        # n:m is what it is, whatever the flag says.
        sparsity = 1 - asked.n / asked.m if isinstance(asked, NM) else result["options"]["sparsity"]
    kept = ("seed", "metric", "bytes", "training_seconds", "threads", "date", "machine", "versions")  # fmt: skip
    return {
        "model": model,
        "pattern": pattern,
        "sparsity": sparsity,
        "scores": scores.get("compact", scores["dense"]),
        "ms": {form: 1e3 * times["median"] for form, times in result["latency"].items()},
        **{key: result[key] for key in kept},
    }


def write(found: Cells, path: Path) -> None:
    """Write cells into one file, a line each, for `read`."""
    lines = ",\n".join(json.dumps(cell) for cell in found)
    path.write_text(f"[\n{lines}\n]\n", "utf-8")
