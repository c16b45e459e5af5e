"""Runs suites, case by case: all contenders of a case take turns on the same weights, threads and x."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
from tqdm import tqdm

import gspattern
from gspattern import plans, roofline
from gspattern.bench.fairness import (
    BenchError,
    blas,
    check_clock,
    check_environment,
    same_threads,
)
from gspattern.bench.layers import Layer, Peer, check, load_peers, make_weights, prune
from gspattern.bench.shapes import Shape
from gspattern.bench.suites import LAYERS, SUITES, Settings, Suite, peer_names, suites_of
from gspattern.bench.summary import CASE, summarise
from gspattern.bench.timing import CLOCKS, alternate, busy
from gspattern.matrices import encode

__all__ = ["run"]

VERSION = 1  # of the JSON
Result = dict[str, Any]


def run(
    settings: Settings,
    command: Sequence[str] = (),
    each: Callable[[list[Result]], object] = lambda case: None,
    save: Callable[[dict[str, Any]], object] = lambda report: None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the benchmark; Ctrl-C ends it early, and what is done is reported.

    Parameters
    ----------
    settings : Settings
    command : sequence of str
        What the user typed, for the report.
    each : callable
        Given the results of each case as it is done.
    save : callable
        Given the report each time that all cases of a shape and sparsity are done.
    before : mapping, optional
        A report to go on with: cases that it has are not run again.

    Returns
    -------
    dict
        What is written as JSON: machine, versions, peers, command, date, probes, results, and what `summarise` makes
        of them. "interrupted" tells whether cases are left.

    Raises
    ------
    BenchError
        If the comparison would be unfair, a setting makes no sense, or the report to go on with is of another machine
        or of other versions.
    """
    return _Run(settings, command, each, save, before).run()


class _Run:
    """One run of the benchmark, and what its report will hold."""

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        each: Callable[[list[Result]], object],
        save: Callable[[dict[str, Any]], object],
        before: Mapping[str, Any] | None,
    ) -> None:
        self.settings, self.command, self.each, self.save = settings, command, each, save
        self.cpu = plans.cpu_info()
        check_environment(os.environ, settings.threads, self.cpu.cores)
        check_clock(settings.clock, settings.threads)
        self.suites = suites_of(settings.suites)
        for name in settings.peers or ():
            if name not in peer_names():
                raise BenchError(f"peers are {', '.join(peer_names())}; there is no {name!r}")
        self.versions = {"gspattern": gspattern.__version__, "numpy": np.__version__}
        self.found: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        self.blas: list[str] = []
        self.busy: list[float] = []
        self.results: list[Result] = []
        self.probes: dict[str, Any] = {}
        self.overhead: dict[str, float] = {}
        self.interrupted = True
        self.before = before
        if before is not None:
            self._go_on(before)
        self.done = {tuple(line[key] for key in CASE) for line in self.results}

    def _go_on(self, before: Mapping[str, Any]) -> None:
        """Take the results of a report over; versions are compared when libraries are loaded."""
        same = asdict(self.cpu)["name"] == before["machine"]["name"] and all(
            before["settings"].get(key) == asdict(self.settings)[key]
            for key in ("clock", "seconds", "rounds", "quick")
        )
        if not same:
            raise BenchError(
                "the report to go on with is of another machine, or was made with another clock, seconds or rounds; "
                "write to a new file"
            )
        self.results = list(before["results"])
        self.unfit |= before["unfit"]
        self.missing |= before["missing"]
        self.found |= before["peers"]
        self.versions |= before["versions"]
        self.blas = before["blas"]

    def run(self) -> dict[str, Any]:
        tasks = list(self._tasks())
        with tqdm(total=sum(len(each[-1]) for each in tasks), unit="case", disable=None) as bar:
            self.bar = bar
            try:
                self._probe()
                for name, shape, sparsity, cases in tasks:
                    self._layer(name, SUITES[name], shape, sparsity, cases)
                    self.save(self._report())
                self.interrupted = False
            except KeyboardInterrupt:
                bar.write("interrupted: what is done is reported")
        return self._report()

    def _probe(self) -> None:
        if self.before is not None and self.before["overhead"]:
            self.probes, self.overhead = self.before["probes"], self.before["overhead"]
            return
        self.bar.set_description("probes")
        for name in plans.backends():
            self.probes[name] = roofline.as_dict(roofline.probe(name))
        with same_threads(1):
            self.overhead = call_overhead()

    def _tasks(self) -> Iterator[tuple[str, Shape, float, list[tuple[int, int]]]]:
        """Suite, shape, sparsity, and the (threads, n) that are not done yet."""
        for name, suite in self.suites.items():
            for shape in self.settings.shapes_of(suite):
                for sparsity in self.settings.sparsities:
                    head = (name, shape.name, shape.rows, shape.cols, sparsity, shape.steps)
                    cases = [
                        (threads, n)
                        for threads in self.settings.threads
                        for n in self.settings.columns_of(suite, shape)
                        if (*head, n, threads) not in self.done
                    ]
                    if cases:
                        yield name, shape, sparsity, cases

    def _layer(
        self, name: str, suite: Suite, shape: Shape, sparsity: float, cases: list[tuple[int, int]]
    ) -> None:
        """All cases of one shape and sparsity."""
        self.bar.set_description(f"{name}: masks of {shape.size} at {sparsity:.0%}")
        kind, settings = LAYERS[suite.operation], self.settings
        layer = kind(shape, suite.dtype, sparsity, settings.patterns, self.unfit)
        for threads in dict.fromkeys(threads for threads, _ in cases):
            peers = self._peers(name, suite, threads)
            with same_threads(threads):
                self.blas = blas()
                prepared: dict[str, Any] = {}
                for n in (n for number, n in cases if number == threads):
                    self.bar.set_description(f"{name}: {shape.size} at {sparsity:.0%}, N = {n}")
                    self.busy.append(busy())
                    case = self._case(name, layer, n, threads, peers, prepared)
                    with tqdm.external_write_mode():
                        self.each(case)
                    self.results += case

    def _peers(self, name: str, suite: Suite, threads: int) -> dict[str, Peer]:
        kind, asked = LAYERS[suite.operation], self.settings.peers
        peers, versions, missing = load_peers(
            kind.peers, asked or list(kind.peers), threads, suite.dtype
        )
        if self.before is not None:
            for library, version in versions.items():
                old = self.before["versions"].get(library, version)
                if old != version:
                    raise BenchError(
                        f"the report to go on with has {library} {old}, here is {version}; write to a new file"
                    )
        self.versions |= versions
        self.found |= {key: peer.title for key, peer in peers.items()}
        self.missing |= {f"{key}, {name}": why for key, why in missing.items()}
        return peers

    def _case(
        self,
        suite: str,
        layer: Layer[Any],
        n: int,
        threads: int,
        peers: Mapping[str, Peer],
        prepared: dict[str, Any],
    ) -> list[Result]:
        """One table: a line for every product of every contender."""
        done = self.bar.n

        def tell(share: float) -> None:
            self.bar.update(done + share - self.bar.n)

        settings, shape = self.settings, layer.shape
        x = layer.inputs(n)
        contenders = layer.contenders(x, n, peers, prepared)
        calls = {str(i): contender.product.call for i, contender in enumerate(contenders)}
        clock = CLOCKS[settings.clock]
        times = alternate(calls, settings.rounds, settings.seconds, clock=clock, progress=tell)
        checks = check(layer, contenders, x)
        results = []
        for contender, seconds, checked in zip(contenders, times.values(), checks, strict=True):
            best = min(seconds)
            result: Result = {
                "suite": suite,
                "operation": shape.operation,
                "dtype": layer.dtype,
                "shape": shape.name,
                "size": shape.size,
                "rows": shape.rows,
                "cols": shape.cols,
                "sparsity": layer.sparsity,
                "steps": shape.steps,
                "n": n,
                "uses": shape.uses,
                "threads": threads,
                "name": contender.name,
                "kind": contender.kind,
                "layout": contender.product.layout,
                "best_us": 1e6 * best,
                "median_us": 1e6 * statistics.median(seconds),
                "samples": len(seconds),
                "gmacs": 1e-9 * checked["kept"] * n * shape.uses / best,
                **checked,
                **contender.facts,
            }
            if contender.bound is not None and threads == 1:
                bound = contender.bound()
                result |= {
                    "bound_us": 1e6 * bound.seconds,
                    "limit": bound.limit,
                    "share": bound.seconds / best,
                }
            results.append(result)
        return results

    def _report(self) -> dict[str, Any]:
        found = [*self.busy, *([self.before["busy"]] if self.before else [])]
        report = {
            "version": VERSION,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(self.command),
            "interrupted": self.interrupted,
            "machine": asdict(self.cpu)
            | {"system": platform.platform(), "python": platform.python_version()},
            "versions": self.versions,
            "peers": self.found,
            "missing": self.missing,
            "blas": self.blas,
            "unfit": self.unfit,
            "settings": asdict(self.settings),
            "probes": self.probes,
            "overhead": self.overhead,
            "busy": statistics.fmean(found) if found else 0.0,
            "results": self.results,
        }
        return report | summarise(self.results, self.cpu.caches)


def call_overhead() -> dict[str, float]:
    """Microseconds of ``m.linear(x)`` for a 256x256 matrix: at 90 % gs(cpu), and without nonzeros, so without work."""
    weights = make_weights(256, 256)
    x = np.ones(256, np.float32)
    full = prune(weights, "gs(cpu)", 0.9)
    empty = encode(np.zeros_like(weights), "gs(cpu)")
    times = alternate({"full": lambda: full.linear(x), "empty": lambda: empty.linear(x)}, 20)
    return {"linear_us": 1e6 * min(times["full"]), "overhead_us": 1e6 * min(times["empty"])}
