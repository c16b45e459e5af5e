"""The command line: `gspattern check | info | prune | convert` on safetensors files, and `bench`, `explain`, `sweep`,
`engine`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from gspattern.files import _replace, load_file, read_metadata, save_file
from gspattern.masks import _check_sparsity, choose_mask
from gspattern.masks import check as check_mask
from gspattern.matrices import Matrix, as_matrix, encode, from_matrix
from gspattern.patterns import NM, PatternError, parse_pattern
from gspattern.report import LayerReport, Report, kept_share

try:
    import typer
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(
        f"the command line needs {(error.name or '').partition('.')[0]}: "
        "pip install \"gspattern[cli]\", or in a checkout pip install '.[cli]'"
    )

Arrays = dict[str, "Matrix | npt.NDArray[Any]"]
FLOATS = ("float64", "float32", "float16", "bfloat16")
MOST_VIOLATIONS = 10  # shown for one tensor

Method = Literal["exact", "greedy"]

app = typer.Typer(
    help="Load-balanced gather-scatter (GS) patterns for sparse neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FileArgument = Annotated[Path, typer.Argument(help="A safetensors file, dense or compact.")]
PatternOption = Annotated[
    str, typer.Option("--pattern", "-p", help='Such as "gs(16,16)", "gs(16,1)+scatter", "2:4".')
]


@app.command()
def info(file: FileArgument) -> None:
    """List what a file holds: matrices with pattern, nonzeros and bytes, and plain tensors."""
    with _plain_errors():
        tensors = load_file(file)
    table = Table(title=str(file))
    for head in ("name", "pattern", "shape", "dtype"):
        table.add_column(head, overflow="fold")
    for head in ("nonzeros", "bytes", "of dense"):
        table.add_column(head, justify="right")
    total = dense_total = 0
    for name, tensor in sorted(tensors.items()):
        size = int(np.prod(tensor.shape, dtype=np.int64))
        dense = size * np.dtype(tensor.dtype).itemsize
        compact = isinstance(tensor, Matrix)
        nonzeros = tensor.nnz if isinstance(tensor, Matrix) else int(np.count_nonzero(tensor))
        total += tensor.nbytes
        dense_total += dense
        table.add_row(
            name,
            str(tensor.pattern) if isinstance(tensor, Matrix) else "",
            " x ".join(map(str, tensor.shape)),
            str(tensor.dtype),
            f"{nonzeros:,}" + (f" ({nonzeros / size:.1%})" if size else ""),
            f"{tensor.nbytes:,}",
            f"{tensor.nbytes / dense:.1%}" if compact and dense else "",
        )
    table.add_section()
    ratio = f"{total / dense_total:.1%}" if dense_total else ""
    table.add_row("all", "", "", "", "", f"{total:,}", ratio)
    _console().print(table)


@app.command()
def check(
    file: FileArgument,
    pattern: PatternOption,
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", "-t", help="Name or glob; again for more. Default: all weights."),
    ] = None,
) -> None:
    """Say whether the zeros of weights have a pattern; exit status 1 if not.

    A weight without a zero has most patterns: the share of zeros stands beside each.
    Rows of a dense tensor are taken in their natural order:
    only a compact file knows the order that scatter has chosen.
    """
    with _plain_errors():
        wanted = parse_pattern(pattern)
        tensors = _weights(load_file(file), tensor, None)
        valid = True
        for name, weight in tensors.items():
            if isinstance(weight, Matrix):
                array, order = weight.mask(), weight.row_order
            else:
                array, order = as_matrix(weight) != 0, None
            zeros = f"{1 - array.mean():.1%} zeros" if array.size else "no elements"
            try:
                resolved = wanted.resolve((array.shape[0], array.shape[1]))
            except PatternError as error:
                valid = False
                print(f"{name}: not {wanted}, {zeros}: {error}")
                continue
            result = check_mask(array, resolved, row_order=order)
            valid &= bool(result)
            if result:
                print(f"{name}: valid, {zeros}")
                continue
            print(f"{name}: not {wanted}, {zeros}, {len(result.violations)} violations")
            if wanted.scatter and order is None:
                print(
                    "  (the file does not say how rows are ordered: taken in their natural order)"
                )
            for v in result.violations[:MOST_VIOLATIONS]:
                where = f"group {v.group}"
                where += "" if v.row is None else f", row {v.row}"
                where += "" if v.bank is None else f", bank {v.bank}"
                print(f"  {where}: {v.count} nonzeros, expected {v.expected}")
            if len(result.violations) > MOST_VIOLATIONS:
                print(f"  ... and {len(result.violations) - MOST_VIOLATIONS} more")
    if not valid:
        raise typer.Exit(1)


@app.command()
def prune(
    source: Annotated[Path, typer.Argument(help="A safetensors file of dense tensors.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    pattern: PatternOption,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", "-s", help="Share of zeros in [0, 1); not for n:m."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Name or glob of weights to prune; again for more. Default: all."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Name or glob of weights to leave dense.")
    ] = None,
    method: Annotated[Method, typer.Option(help="How masks are chosen.")] = "exact",
    dense: Annotated[
        bool, typer.Option("--dense", help="Write dense tensors with zeros, not compact matrices.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Prune the weights of a file once, by magnitude, each to the same sparsity.

    Weights are all floating-point tensors of two to four dimensions.
    Embeddings, the first convolution and the last layer are best left dense: --exclude them.
    """
    with _plain_errors():
        wanted = parse_pattern(pattern)
        if isinstance(wanted, NM):
            if sparsity is not None:
                raise ValueError(f"{wanted} has a sparsity of its own: leave --sparsity out")
        elif sparsity is None:
            raise ValueError("--sparsity is needed: the share of zeros, such as 0.9")
        else:
            _check_sparsity("--sparsity", sparsity)
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; give --force to overwrite it")
        tensors = load_file(source)
        weights = _weights(tensors, include, exclude)
        result: Arrays = dict(tensors)
        rows = []
        bar = track(weights.items(), "pruning", console=Console(stderr=True), transient=True)
        for name, weight in bar:
            if isinstance(weight, Matrix):
                raise ValueError(f"{name} is compact already ({weight.pattern}); --exclude it")
            matrix, row = _prune_one(name, weight, pattern, sparsity, method)
            rows.append(row)
            result[name] = _masked(weight, matrix) if dense else matrix
        if dense:
            _save_dense(result, target, _notes(source))
        else:
            save_file(result, target, _notes(source))
    _print_report(Report(tuple(rows)), source, target)


def _print_report(report: Report, source: Path, target: Path) -> None:
    table = Table()
    head, *lines, total = report.cells()
    for i, cell in enumerate(head):
        table.add_column(cell, justify="left" if i in (0, 2) else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    table.add_section()
    table.add_row(*total)
    _console().print(table)
    print(f"{target}: {target.stat().st_size:,} bytes, {source}: {source.stat().st_size:,} bytes")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A safetensors file of weights that have zeros.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    pattern: Annotated[
        str, typer.Option("--pattern", "-p", help="What the zeros are; irregular is always right.")
    ] = "irregular",
    include: Annotated[
        list[str] | None,
        typer.Option(help="Name or glob of weights; again for more. Default: at least half zeros."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Name or glob of weights to leave dense.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the compact values: float32, float16, bfloat16 or int8."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="The other way: make compact matrices dense.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Store weights compactly that were pruned by any tool, as the checkpoint of a training has them.

    Nonzeros are kept, and with them the fewest zeros that the pattern needs. No value changes, unless --dtype says so.
    """
    with _plain_errors():
        parse_pattern(pattern)
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; give --force to overwrite it")
        tensors = load_file(source)
        result: Arrays = dict(tensors)
        rows = []
        if dense:
            for name, weight in tensors.items():
                if isinstance(weight, Matrix):
                    shape = weight.kernel_shape or weight.shape
                    whole = weight.astype("float32") if weight.scales is not None else weight
                    result[name] = np.ascontiguousarray(from_matrix(whole.to_dense(), shape))
            _save_dense(result, target, _notes(source))
        else:
            weights = _weights(tensors, include, exclude)
            bar = track(weights.items(), "encoding", console=Console(stderr=True), transient=True)
            for name, weight in bar:
                if isinstance(weight, Matrix):
                    raise ValueError(f"{name} is compact already ({weight.pattern}); --exclude it")
                if include is None and np.count_nonzero(weight) > weight.size / 2:
                    continue
                result[name], row = _encode_one(name, weight, pattern, dtype)
                rows.append(row)
            if not rows:
                raise ValueError(
                    f"no weight of {source} is at least half zeros; --include some, or prune them"
                )
            save_file(result, target, _notes(source))
    if rows:
        _print_report(Report(tuple(rows)), source, target)
    else:
        print(
            f"{target}: {target.stat().st_size:,} bytes, {source}: {source.stat().st_size:,} bytes"
        )


def _encode_one(
    name: str, weight: npt.NDArray[Any], pattern: str, dtype: str | None
) -> tuple[Matrix, LayerReport]:
    try:
        matrix = encode(weight, pattern)
    except ValueError as error:
        raise ValueError(f"{name}: {error} (or --exclude it)") from None
    if dtype is not None:
        matrix = matrix.quantize("int8") if dtype == "int8" else matrix.astype(dtype)
    return matrix, _row_of(name, weight, matrix, asked=None)


def _row_of(
    name: str, weight: npt.NDArray[Any], matrix: Matrix, asked: float | None
) -> LayerReport:
    mask = matrix.mask()
    return LayerReport(
        name=name,
        shape=matrix.shape,
        pattern=str(matrix.pattern),
        asked=asked,
        sparsity=1 - float(mask.mean()),
        kept=kept_share(np.abs(as_matrix(weight).astype(np.float32)), mask),
        empty_rows=int((~mask.any(axis=1)).sum()),
        nbytes=matrix.nbytes,
        dense_nbytes=weight.nbytes,
    )


def _prune_one(
    name: str, weight: npt.NDArray[Any], pattern: str, sparsity: float | None, method: Method
) -> tuple[Matrix, LayerReport]:
    flat = np.ascontiguousarray(as_matrix(weight))
    shape = (flat.shape[0], flat.shape[1])
    try:
        resolved = parse_pattern(pattern).resolve(shape)
        scores = np.abs(flat.astype(np.float32))
        selection = choose_mask(scores, resolved, sparsity, method=method)
        mask = from_matrix(selection.mask, weight.shape)
        matrix = encode(weight, resolved, mask=mask, row_order=selection.row_order)
    except ValueError as error:
        raise ValueError(f"{name}: {error} (or --exclude it)") from None
    return matrix, _row_of(name, weight, matrix, sparsity)


def _masked(weight: npt.NDArray[Any], matrix: Matrix) -> npt.NDArray[Any]:
    return np.ascontiguousarray(from_matrix(matrix.to_dense(), weight.shape))


def _notes(file: Path) -> dict[str, str]:
    """The metadata of a file, such as the "format" that other programs ask for."""
    with safetensors.safe_open(file, framework="np") as opened:
        notes: dict[str, str] = opened.metadata() or {}
    return read_metadata(file) if "gspattern" in notes else notes


def _save_dense(tensors: Arrays, target: Path, notes: dict[str, str]) -> None:
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    _replace(target, safetensors.numpy.save(arrays, notes or None))


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="linear, bfloat16, int8, resnet50, jasper, lstm; conv is both convolutions, kernels all. Again for "
            "more. Default: linear.",
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes",
            help="gnmt, resnet50, jasper, a file of shapes, such as 1024x1024, or a line of a file; again for more.",
        ),
    ] = None,
    patterns: Annotated[
        list[str] | None, typer.Option("--patterns", "-p", help="Again for more.")
    ] = None,
    n: Annotated[
        list[int] | None,
        typer.Option("--n", help="Columns of x, pictures, or sequences; again for more."),
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option("--sparsity", "-s", help="Again for more.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", help="Again to see how it scales.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peers", help="Libraries to compare with; again for more.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="For each table (4); at least three rounds are run.")
    ] = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(help="cpu leaves out what other programs take of a busy machine; one thread."),
    ] = "wall",
    quick: Annotated[
        bool, typer.Option("--quick", help="A small shape and few rounds: does it run?")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all figures to this file, as they come."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the file of --json, if there is one.")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Write tables as those of docs/RESULTS.md to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write pictures of each suite to this folder (needs matplotlib)."),
    ] = None,
) -> None:
    """Time compact matrices against dense and sparse libraries on this machine."""
    try:
        from gspattern import bench as benchmark
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    usual = benchmark.QUICK if quick else benchmark.Settings()
    with _plain_errors():
        if resume and json_file is None:
            raise ValueError("--resume needs --json, the file to go on with")
        settings = benchmark.Settings(
            suites=tuple(suites) if suites else usual.suites,
            shapes=tuple(shapes) if shapes else usual.shapes,
            sparsities=tuple(sparsity) if sparsity else usual.sparsities,
            columns=tuple(n) if n else usual.columns,
            patterns=tuple(patterns) if patterns else usual.patterns,
            peers=tuple(peers) if peers else usual.peers,
            threads=tuple(threads) if threads else usual.threads,
            seconds=usual.seconds if seconds is None else seconds,
            rounds=usual.rounds,
            clock=clock,
            quick=quick,
        )

        def save(report: dict[str, Any]) -> None:
            if json_file is not None:
                _replace(json_file, (json.dumps(report, indent=1) + "\n").encode())

        before = None
        if resume and json_file is not None and json_file.exists():
            before = json.loads(json_file.read_text("utf-8"))
        command = ["python", "-m", "gspattern", *sys.argv[1:]]
        report = benchmark.run(settings, command, benchmark.print_case, save, before)
        benchmark.print_report(report)
        save(report)
        if markdown is not None:
            markdown.write_text(benchmark.markdown(report), "utf-8")
        if plot is not None:
            from gspattern.plots import save_bench

            save_bench(report, plot)
        if report["interrupted"]:
            raise typer.Exit(130)


@app.command()
def explain(
    file: Annotated[
        Path | None, typer.Argument(help="A safetensors file, dense or compact.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Such as 1024x1024, random weights, in place of a file.")
    ] = None,
    pattern: Annotated[
        str, typer.Option("--pattern", "-p", help="For weights that have none of their own.")
    ] = "gs(cpu)",
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", "-s", help="As if pruned so; needed with --shape."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Columns of x.")] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: float32, bfloat16 or int8.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="For measuring; 0 only predicts.")] = 10.0,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(help="cpu leaves out what other programs take of a busy machine."),
    ] = "wall",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Say what this CPU does with each layer, dense and sparse, and what would be faster."""
    try:
        from gspattern.bench import make_weights
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    from gspattern.explain import explain as explain_weights

    with _plain_errors():
        if (file is None) == (shape is None):
            raise ValueError("give a file or --shape, such as --shape 1024x1024")
        given: Any = file
        if shape is not None:
            sizes = shape.lower().split("x")
            if len(sizes) != 2 or not all(size.isdigit() and int(size) for size in sizes):
                raise ValueError(
                    f"--shape must be rows x columns, such as 1024x1024, got {shape!r}"
                )
            if sparsity is None:
                raise ValueError("--sparsity is needed: the share of zeros, such as 0.9")
            given = {shape: make_weights(int(sizes[0]), int(sizes[1]))}
        found = explain_weights(
            given, n, dtype, pattern=pattern, sparsity=sparsity, seconds=seconds, clock=clock
        )
        print(found)
        if json_file is not None:
            _replace(json_file, (found.to_json() + "\n").encode())


@app.command()
def sweep(
    config: Annotated[
        Path | None, typer.Option(help="A TOML file such as sweeps/digits.toml.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the cells; default: what the file says.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of each cell.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells only.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Print the results in this folder, or file of cells, and write cells.json, report.md and pictures."
        ),
    ] = None,
) -> None:
    """Train and prune networks for every pattern, sparsity and seed of a file, each in a process of its own.

    A sweep that was stopped goes on with the same command.
    """
    from dataclasses import replace

    from gspattern import sweep as sweeps

    with _plain_errors():
        if (config is None) == (report is None):
            raise ValueError("give --config to run a sweep, or --report to see its results")
        if report is not None:
            from gspattern.sweep_report import write_report

            found = sweeps.read(report)
            folder = report.parent if report.is_file() else report
            if report != folder / "cells.json":
                sweeps.write(found, folder / "cells.json")
            write_report(found, folder, _console())
            return
        assert config is not None
        settings = sweeps.read_config(config)
        todo = sweeps.cells(settings if out is None else replace(settings, out=out), threads)
        if dry_run:
            for cell in todo:
                print(f"{'done' if cell.done else 'to do'}  {cell.folder}")
            return
        try:
            errors = sweeps.run(todo, jobs, ray)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if errors:
        print(f"{len(errors)} of {len(todo)} cells have failed", file=sys.stderr)
        raise typer.Exit(1)


Preset = Annotated[str, typer.Option(help="paper64, paper128, gpu_shared or no_engine.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value of a parameter, such as ports=2; again."),
]


@app.command()
def engine(
    file: Annotated[
        Path | None, typer.Argument(help="A safetensors file, dense or compact.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Such as 1024x1024, random weights; or a line of a file of shapes."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="gnmt, jasper or resnet50: all layers at their real shapes.")
    ] = None,
    patterns: Annotated[
        list[str] | None,
        typer.Option("--pattern", "-p", help="dense, or any; again for more. Default: a choice."),
    ] = None,
    sparsity: Annotated[
        float, typer.Option("--sparsity", "-s", help="Of random weights; not for n:m.")
    ] = 0.9,
    preset: Preset = "paper128",
    set_: Settings = None,
    n: Annotated[int, typer.Option("--n", help="Columns of x, pictures or sequences.")] = 1,
    gather_bench: Annotated[
        bool,
        typer.Option(
            "--gather-bench",
            help="Instead measure this CPU: gathers and scatters, with the lanes and banks of the preset.",
        ),
    ] = False,
) -> None:
    """Count the cycles of layers on a model of the paper's processor.

    For each layer of a file, or of a model or a shape with random weights pruned by magnitude.
    """
    from gspattern import engine as cycle_model
    from gspattern.engine import networks, processor

    heads = (
        "total", "streaming", "gather", "conflicts", "fma", "reduction", "stores", "tiling", "gates",
    )  # fmt: skip
    shown: list[cycle_model.LayerCycles] = []
    with _plain_errors():
        if (file is not None) + (shape is not None) + (model is not None) + gather_bench != 1:
            raise ValueError("give one of a file, --shape, --model and --gather-bench")
        machine = processor.changed(processor.find_engine(preset), set_ or [])

        def bar(what: str) -> Any:
            return partial(track, description=what, console=Console(stderr=True), transient=True)

        if gather_bench:
            print(cycle_model.gather_bench(machine, track=bar("measuring")))
            return
        totals = {}
        if file is not None:
            for name, weight in bar(str(file))(_weights(load_file(file), None, None).items()):
                given = weight if isinstance(weight, Matrix) else as_matrix(weight)
                pattern = str(weight.pattern) if isinstance(weight, Matrix) else "dense"
                cycles = cycle_model.simulate(given, machine, n)
                size = "x".join(map(str, given.shape))
                shown.append(cycle_model.LayerCycles(name, size, 1, pattern, cycles))
            totals["all"] = networks.total_cycles(shown)
        else:
            for pattern in patterns or networks.USUAL:
                layers = cycle_model.network_cycles(
                    model or shape or "", pattern, sparsity, machine, n, bar(pattern)
                )
                totals[pattern] = networks.total_cycles(layers)
                shown += layers
    largest = max(each.total for each in totals.values())
    unit, each_unit = ("thousand cycles", 1e3) if largest >= 1e7 else ("cycles", 1.0)
    with_settings = f" with {', '.join(set_)}" if set_ else ""
    title = f"{unit} on {preset}{with_settings}, n = {n}"

    def parts(cycles: cycle_model.Cycles) -> list[str]:
        return [*(f"{getattr(cycles, head) / each_unit:,.0f}" for head in heads), cycles.binds]

    if len(shown) > len(totals):
        table = Table("layer", "size", "pattern", title=title)
        for head in (*heads, "binds"):
            table.add_column(head, justify="right")
        for layer in shown:
            name = f"{layer.name} ({layer.count})" if layer.count > 1 else layer.name
            table.add_row(name, layer.size, layer.pattern, *parts(layer.cycles))
        _console().print(table)
        title = f"in all, {title}"
    table = Table("pattern", title=title)
    for head in (*heads, "binds", *(["times dense"] if "dense" in totals else [])):
        table.add_column(head, justify="right")
    for pattern, cycles in totals.items():
        dense = [f"{totals['dense'].total / cycles.total:.2f}"] if "dense" in totals else []
        table.add_row(pattern, *parts(cycles), *dense)
    _console().print(table)


spatter = typer.Typer(
    help="Index streams for Spatter, the benchmark of gathers and scatters.", no_args_is_help=True
)
app.add_typer(spatter, name="spatter")


@spatter.command("export")
def spatter_export(
    target: Annotated[Path, typer.Argument(help="The suite to write, JSON.")],
    file: Annotated[
        Path | None, typer.Option(help="A safetensors file; of dense weights, what is not 0.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Such as 1024x1024: random weights, pruned.")
    ] = None,
    pattern: Annotated[str, typer.Option("--pattern", "-p", help="For --shape.")] = "gs(16,16)",
    sparsity: Annotated[float, typer.Option("--sparsity", "-s", help="For --shape.")] = 0.9,
    kernel: Annotated[
        str, typer.Option(help="gather, scatter, gs, multigather or multiscatter.")
    ] = "gather",
    order: Annotated[
        str, typer.Option(help="stored; rows: row by row; banks: each bundle by bank.")
    ] = "stored",
    n: Annotated[int, typer.Option("--n", help="Vectors x, one after the other.")] = 1024,
    preset: Preset = "paper128",
    set_: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Write what the bundles of each matrix gather or scatter as a suite that Spatter runs."""
    from gspattern.engine import SpatterRun, networks, processor, stream, write_suite

    with _plain_errors():
        if (file is not None) + (shape is not None) != 1:
            raise ValueError("give one of --file and --shape")
        if target.exists() and not force:
            raise ValueError(f"{target} is there; give --force to overwrite it")
        processor.check_integer("n", n, 1, None)
        machine = processor.changed(processor.find_engine(preset), set_ or [])
        if file is not None:
            weights: dict[str, Any] = _weights(load_file(file), None, None)
        else:
            rows, _, cols = (shape or "").lower().partition("x")
            if not (rows.isdigit() and cols.isdigit()):
                raise ValueError(f"--shape must be such as 1024x1024, got {shape!r}")
            name = f"{shape} {pattern}"
            weights = {name: networks.pruned((int(rows), int(cols)), pattern, sparsity)}
        how: Any = order
        what: Any = kernel
        runs = [
            SpatterRun.of(stream(weight, how, machine), what, n, name)
            for name, weight in weights.items()
        ]
        write_suite(runs, target)
    print(f"{target}: {len(runs)} {kernel}; spatter -f {target}")


@spatter.command("replay")
def spatter_replay(
    suite: Annotated[Path, typer.Argument(help="A suite, JSON.")],
    preset: Preset = "paper128",
    set_: Settings = None,
) -> None:
    """Run a suite of Spatter through the banks of the paper's processor."""
    from gspattern.engine import processor, read_suite, replay_run

    with _plain_errors():
        machine = processor.changed(processor.find_engine(preset), set_ or [])
        table = Table("configuration", "kernel", title=f"{suite} on {preset}")
        for head in (
            "accesses",
            "slots",
            "cycles",
            "conflicts",
            "cycles an access",
            "bytes a cycle",
        ):
            table.add_column(head, justify="right")
        runs = read_suite(suite)
        bar = track(runs, str(suite), console=Console(stderr=True), transient=True)
        for number, run in enumerate(bar):
            done = replay_run(run, machine)
            table.add_row(
                run.name or str(number), run.kernel, f"{done.accesses:,}", f"{done.slots:,}",
                f"{done.cycles:,}", f"{done.conflicts:,}",
                f"{done.cycles / max(1, done.accesses):.2f}", f"{done.bytes_per_cycle:.1f}",
            )  # fmt: skip
    _console().print(table)


@app.command()
def view(
    file: Annotated[
        Path | None, typer.Argument(help="A safetensors file, dense or compact.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Which of the file, by name; the first if not given.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Such as 64x256: random weights.")] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", "-p", help="To prune to, by magnitude.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="To prune to; 0.9 for --shape.")
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Before and after balancing, where there is a pattern.")
    ] = True,
    rows: Annotated[int | None, typer.Option(help="How many rows are counted; all.")] = None,
    cycles: Annotated[int, typer.Option(help="How many cycles are drawn.")] = 64,
    preset: Preset = "paper128",
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="A picture to write, PNG or SVG.")] = None,
) -> None:
    """Show which bank serves which slot in every cycle, and where slots wait for a bank."""
    from gspattern.engine import processor
    from gspattern.engine import view as view_banks

    with _plain_errors():
        if (file is not None) + (shape is not None) != 1:
            raise ValueError("give one of a file and --shape")
        machine = processor.changed(processor.find_engine(preset), set_ or [])
        weight: Any
        if file is not None:
            weights = _weights(load_file(file), None if layer is None else [layer], None)
            weight = next(iter(weights.values()))
        else:
            height, _, width = (shape or "").lower().partition("x")
            if not (height.isdigit() and width.isdigit()):
                raise ValueError(f"--shape must be such as 64x256, got {shape!r}")
            weight = np.random.default_rng(0).standard_normal((int(height), int(width)), np.float32)
            sparsity = 0.9 if sparsity is None else sparsity
        shown = view_banks(
            weight, machine, pattern=pattern, sparsity=sparsity,
            compare=compare and pattern is not None, rows=rows, cycles=cycles,
        )  # fmt: skip
        _console().print(shown)
        if out is not None:
            shown.save(out)
            print(out)


def _weights(tensors: Arrays, include: list[str] | None, exclude: list[str] | None) -> Arrays:
    """The tensors that are weights and are asked for; ValueError if a glob means none."""
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, Matrix)
        or (2 <= tensor.ndim <= 4 and str(tensor.dtype) in FLOATS and tensor.size)
    }
    for glob in (include or []) + (exclude or []):
        if not any(fnmatchcase(name, glob) for name in weights):
            raise ValueError(
                f"{glob!r} means no weight of this file; there are: {', '.join(weights) or 'none'}"
            )
    chosen = {
        name: tensor
        for name, tensor in weights.items()
        if (not include or any(fnmatchcase(name, glob) for glob in include))
        and not any(fnmatchcase(name, glob) for glob in exclude or ())
    }
    if not chosen:
        raise ValueError("no weights are left: the file has " + (", ".join(weights) or "none"))
    return chosen


def _console() -> Console:
    # A table that is piped on is not cut to the width of a terminal that is not there.
    return Console() if sys.stdout.isatty() else Console(width=160)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that the user can mend are one line and exit status 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line."""
    app(prog_name="gspattern")
