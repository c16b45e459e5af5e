"""The flags that all training scripts have, as a dataclass; a script adds its own in a subclass."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import typer
from typer import Option
from typing_extensions import Self

Device = Literal["auto", "cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every script can be told."""

    out: Annotated[Path, Option(help="Folder to write to: checkpoint, logs, models, results.")]
    pattern: Annotated[
        str,
        Option(help='Such as "gs(16,16)", "gs(cpu)", "auto", "irregular"; "dense" prunes nothing.'),
    ] = "gs(16,16)"
    sparsity: Annotated[float, Option(help="Share of zeros in the pruned weights.")] = 0.9
    schedule: Annotated[
        Literal["cubic", "linear", "one-shot", "iterative", "admm"],
        Option(help="How sparsity is reached in the first 45 % of the pruning steps."),
    ] = "cubic"
    scope: Annotated[
        Literal["layer", "global"], Option(help="The same sparsity in all layers, or one budget.")
    ] = "layer"
    criterion: Annotated[
        Literal["magnitude", "taylor", "snip", "movement", "wanda"],
        Option(help="The scores that decide which weights are kept."),
    ] = "magnitude"
    include: Annotated[list[str] | None, Option(help="Name or glob to prune; again for more.")] = (
        None
    )
    exclude: Annotated[list[str] | None, Option(help="Name or glob to leave dense.")] = None
    min_per_group: Annotated[int, Option(help="Least bundles in every group of a GS pattern.")] = 0
    epochs: Annotated[int, Option(help="Of dense training; 0 goes on from --weights.")] = 90
    prune_epochs: Annotated[int, Option(help="Of pruning, with fine-tuning.")] = 30
    batch: Annotated[int, Option(help="Samples of a step, in every process.")] = 64
    weights: Annotated[Path | None, Option(help="Start from these: .pt, .pth or .safetensors.")] = (
        None
    )
    seed: Annotated[int, Option(help="Of the first weights, the data's order, and all noise.")] = 0
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        Option(help="Of the compact values in the converted model."),
    ] = "float32"
    amp: Annotated[bool, Option("--amp", help="Train with automatic mixed precision, bf16.")] = (
        False
    )
    device: Annotated[Device, Option(help="To train on; the converted model runs on the CPU.")] = (
        "auto"
    )
    parallel: Annotated[
        Literal["ddp", "fsdp"], Option(help="How processes of torchrun share the model.")
    ] = "ddp"
    threads: Annotated[int, Option(help="Of every process; 0 takes one per core.")] = 0
    seconds: Annotated[float, Option(help="Time the networks for that long in the end.")] = 20
    resume: Annotated[
        bool, Option("--resume", help="Go on where the run in --out was, or begin it.")
    ] = False
    save_minutes: Annotated[float, Option(help="Save that often, and after every epoch.")] = 10
    tensorboard: Annotated[
        bool, Option("--tensorboard", help="Log for TensorBoard too, to OUT/tensorboard.")
    ] = False

    # Flags that may differ when a run goes on: they change nothing of its result.
    FREE: ClassVar = ("out", "seconds", "resume", "save_minutes", "tensorboard")

    @property
    def cores(self) -> int:
        """The number of threads that this process uses."""
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.threads or max(1, share)

    def recorded(self) -> dict[str, Any]:
        """All that decides the result, for checkpoints and results: numbers, strings, lists."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in self.FREE
        }

    def write(self) -> None:
        """Note in the folder what is recorded."""
        text = json.dumps(self.recorded(), indent=1) + "\n"
        (self.out / "options.json").write_text(text, "utf-8")

    @classmethod
    def read(cls, folder: Path, **changes: Any) -> Self:
        """The options of the run in a folder.

        Raises
        ------
        SystemExit
            If there is none.
        """
        file = folder / "options.json"
        if not file.exists():
            raise SystemExit(f"{file} is missing: {folder} is no folder of a run")
        values = json.loads(file.read_text("utf-8"))
        hints = get_type_hints(cls)
        for name, value in values.items():
            if value is not None and Path in (hints[name], *get_args(hints[name])):
                values[name] = Path(value)
        return cls(**{**values, "out": folder, **changes})


Given = TypeVar("Given", bound=Options)


def run(main: Callable[[Given], Any], kind: type[Given]) -> None:
    """Call `main` with options from the command line: one flag for every field of the dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
        )
        for field in dataclasses.fields(kind)
    ]

    def command(**values: Any) -> None:
        main(kind(**values))

    command.__doc__ = inspect.getmodule(kind).__doc__
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()
