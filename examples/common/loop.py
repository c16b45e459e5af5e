"""The training loop of all examples: dense, then with a Pruner; it can stop at any step and go on with the same bits.

`train` runs a `Task` in this process or, under torchrun, in many (DistributedDataParallel or FSDP2). Every step sets
the seed of torch's generator from the run's seed and the step, and batches and learning rates follow from the step as
well, so that a checkpoint needs only weights, the optimiser's state, the Pruner's state and the step.

A script of its own is a subclass of `Options` with its flags, one of `Task`, and
`run(partial(main, MyTask), MyOptions)`: see examples/resnet50/train.py, and outcome.py for what follows training.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from tqdm import tqdm

from examples.common.journal import Journal, Row
from examples.common.options import Options
from examples.common.processes import Processes
from examples.common.task import Phase, Tally, Task
from gspattern import NM, parse_pattern
from gspattern.torch import (
    Pruner,
    Report,
    Schedule,
    admm,
    cubic,
    iterative,
    linear,
    one_shot,
    prune_,
)

PHASES: tuple[Phase, ...] = ("dense", "prune")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
PLACED = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
RAMP = 0.45  # share of the pruning steps in which sparsity grows; in the rest weights recover
CHOICES = 20  # of masks, on the way to the final sparsity
LOOK = 10  # steps between two looks at the loss, for which a GPU must finish what it does
GO, SAVE, STOP = range(3)


class StoppedError(Exception):
    """Ctrl-C or a signal to end: the run is saved."""


@dataclass
class Place:
    """Where a run is."""

    phase: int = 0
    step: int = 0  # steps of the phase that are done
    seconds: float = 0.0  # of training
    loss: float = 0.0  # sum over the steps of this epoch
    rows: list[Row] = field(default_factory=list)


@dataclass
class Trained:
    """What training gives.

    Attributes
    ----------
    model : Module
        On the CPU, not wrapped; its pruned layers carry their masks.
    report : Report or None
        Of the Pruner; None for a run that prunes nothing.
    rows : list of dict
        One for every epoch.
    seconds : float
        Of training, all sittings together.
    """

    model: nn.Module
    report: Report | None
    rows: list[Row]
    seconds: float


def train(task: Task, processes: Processes) -> Trained:
    """Train a task as its options say, or go on with a run.

    Raises
    ------
    StoppedError
        After a signal to stop, when everything is saved.
    SystemExit
        If the folder holds another run.
    """
    return _Run(task, processes).train()


class _Run:
    def __init__(self, task: Task, processes: Processes) -> None:
        self.task = task
        self.options = task.options
        self.processes = processes
        self.steps = task.steps(processes.ranks)  # of an epoch
        self.place = Place()
        self.checkpoint = self.options.out / "checkpoint.pt"
        self.state = self._found()  # of the checkpoint, until it is taken
        if processes.first:
            self.options.write()
        if self.state is not None:
            self.place = Place(**self.state["place"])
        elif self.options.pattern != "dense":
            # What cannot be pruned so is found out now, not after all the epochs before.
            prune_(task.build(), **_pruning(self.options))
        model = task.initial()
        self.model = processes.share(model, task.blocks(model))
        self.journal = Journal(
            self.options.out, self.place.rows, self.options.tensorboard and processes.first
        )
        self.optimizer: torch.optim.Optimizer | None = None
        self.pruner: Pruner | None = None
        self.signal = GO

    def _found(self) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        if not self.checkpoint.exists():
            return None
        if not self.options.resume:
            raise SystemExit(
                f"{self.options.out} holds a run: add --resume to go on with it, or give another --out"
            )
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        now, then = self.options.recorded(), state["options"]
        differ = [
            f"{k} was {then.get(k)!r} and is {now.get(k)!r}"
            for k in {**then, **now}
            if then.get(k) != now.get(k)
        ]
        if differ:
            raise SystemExit(f"{self.options.out} holds another run: " + "; ".join(differ))
        return state

    def train(self) -> Trained:
        phases = PHASES[:1] if self.options.pattern == "dense" else PHASES
        with self._signals():
            while self.place.phase < len(phases):
                self._train_phase(phases[self.place.phase])
                if phases[self.place.phase] == "dense":
                    self._save_dense()
                if self.place.phase + 1 == len(phases):
                    break
                self.place.phase, self.place.step = self.place.phase + 1, 0
                self.optimizer = None
        report = None if self.pruner is None else self.pruner.report()
        return Trained(self._plain(), report, self.place.rows, self.place.seconds)

    def _train_phase(self, phase: Phase) -> None:
        """One phase, from where it is to its end."""
        task, options, place = self.task, self.options, self.place
        epochs = options.epochs if phase == "dense" else options.prune_epochs
        before = 0 if phase == "dense" else options.epochs
        steps = epochs * self.steps
        optimizer = self.optimizer = task.optimizer(self.model, phase, self.processes.ranks)
        rates = [group["lr"] for group in optimizer.param_groups]
        if phase == "prune":
            self.pruner = make_pruner(self.model, optimizer, options, steps)
        if self.state is not None:
            self._take_state()
        if steps == 0 and (phase == "prune" or not place.rows):
            self._end_epoch(phase, before)
        saved = time.monotonic()
        while place.step < steps:
            epoch, first = divmod(place.step, self.steps)
            start, earlier = time.monotonic(), place.seconds
            self.model.train()
            loss = torch.tensor(place.loss, dtype=torch.float64, device=self.processes.device)
            batches = task.batches(before + epoch, first, self.processes.rank, self.processes.ranks)
            with tqdm(
                total=self.steps, initial=first, unit="step", disable=not self.processes.first,
                desc=f"{phase} {before + epoch + 1}/{before + epochs}",
            ) as bar:  # fmt: skip
                for done, batch in enumerate(batches, start=first + 1):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * task.rate(phase, place.step, steps)
                    self._seed()
                    loss += self._step(batch)
                    place.step += 1
                    bar.update()
                    if done % LOOK == 0 or done == self.steps:
                        bar.set_postfix(loss=f"{_finite(loss) / done:.3f}", refresh=False)
                    late = time.monotonic() - saved > 60 * options.save_minutes
                    what = self.processes.most(max(self.signal, SAVE if late else GO))
                    if what != GO and done < self.steps:
                        place.loss = _finite(loss)
                        place.seconds = earlier + time.monotonic() - start
                        self._save()
                        saved = time.monotonic()
                        if what == STOP:
                            raise StoppedError
            place.loss = _finite(loss)
            place.seconds = earlier + time.monotonic() - start
            self._end_epoch(phase, before + epoch + 1)
            self._save()
            saved = time.monotonic()
            if self.processes.most(self.signal) == STOP:
                raise StoppedError

    def _step(self, batch: Any) -> torch.Tensor:
        """One step of the optimiser; returns the loss."""
        assert self.optimizer is not None
        device = self.processes.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.options.amp):
            loss = self.task.loss(self.model, self.processes.place(batch))
        total = loss if self.pruner is None else loss + self.pruner.penalty()
        self.optimizer.zero_grad()
        total.backward()
        if self.task.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()
        return loss.detach()

    def _seed(self) -> None:
        """Set what torch draws in this step, such as dropout."""
        key = (self.options.seed, self.place.phase, self.place.step, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _end_epoch(self, phase: Phase, epoch: int) -> None:
        """Score the model and write a row."""
        assert self.optimizer is not None
        place, steps = self.place, self.steps
        loss = float(self.processes.sum(torch.tensor(place.loss))) / self.processes.ranks / steps
        zeros = 0.0
        if self.pruner is not None:
            masks = self.pruner.masks.values()
            zeros = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
        metrics = self.task.metrics(evaluate(self.task, self.model, self.processes))
        row = {
            "phase": phase,
            "epoch": epoch,
            "step": epoch * steps,
            "rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss if place.step else None,
            **metrics,
            "sparsity": zeros,
            "seconds": place.seconds,
        }
        place.loss = 0.0
        if self.processes.first:
            self.journal.add(row)
            shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
            tqdm.write(f"{phase} epoch {epoch}: {shown}")

    # ---------------------------------------------------------------- state

    def _save(self) -> None:
        """Write the checkpoint; all processes take part, the first writes."""
        assert self.optimizer is not None
        state = {
            "options": self.options.recorded(),
            "place": vars(self.place),
            "model": get_model_state_dict(self.model, options=WHOLE),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=WHOLE),
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
        }
        if self.processes.first:
            _replace(self.checkpoint, lambda path: torch.save(state, path))
        self.processes.most(GO)  # none ends, and begins again, before the file is there

    def _take_state(self) -> None:
        """Take the rest of the checkpoint, now that there are an optimiser and a Pruner."""
        assert self.state is not None
        assert self.optimizer is not None
        set_optimizer_state_dict(
            self.model, self.optimizer, self.state["optimizer"], options=PLACED
        )
        set_model_state_dict(self.model, self.state["model"], options=PLACED)
        if self.pruner is not None:
            self.pruner.load_state_dict(self.state["pruner"])
        self.state = None

    def _save_dense(self) -> None:
        plain = self._plain()
        if self.processes.first:
            _replace(self.options.out / "dense.safetensors", partial(save_model, plain))

    def _plain(self) -> nn.Module:
        """The model on the CPU as `build` makes it, with the masks of its layers."""
        plain = self.task.build()
        state = get_model_state_dict(self.model, options=WHOLE)
        if self.processes.first:
            plain.load_state_dict(state)
        trained = getattr(self.model, "module", self.model)
        for name, module in trained.named_modules():
            if hasattr(module, "gs_pruned"):
                plain.get_submodule(name).gs_pruned = module.gs_pruned
        return plain

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Have the first Ctrl-C, or SIGTERM, stop the run at the end of a step."""

        def stop(number: int, _: object) -> None:
            if self.signal == STOP and not self.processes.together:
                raise KeyboardInterrupt
            self.signal = STOP
            if self.processes.first:
                tqdm.write("stopping after this step; once more to stop without saving")

        kinds = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(kind, stop) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)


def _finite(loss: torch.Tensor) -> float:
    value = float(loss)
    if not np.isfinite(value):
        raise SystemExit(f"the loss is {value}: a smaller learning rate may help")
    return value


def make_pruner(
    model: nn.Module, optimizer: torch.optim.Optimizer, options: Options, steps: int
) -> Pruner:
    """The Pruner that the options ask for, with a schedule for so many steps."""
    return Pruner(
        model,
        optimizer=optimizer,
        schedule=make_schedule(options.schedule, steps),
        criterion=options.criterion,
        rewindable=False,
        **_pruning(options),
    )


def _pruning(options: Options) -> dict[str, Any]:
    """The arguments of Pruner that say what is pruned to what."""
    fixed = isinstance(parse_pattern(options.pattern), NM)
    return {
        "pattern": options.pattern,
        "sparsity": None if fixed else options.sparsity,
        "scope": options.scope,
        "include": options.include,
        "exclude": options.exclude,
        "min_per_group": options.min_per_group,
    }


def make_schedule(name: str, steps: int) -> Schedule | None:
    """A schedule by its name, over the first steps of so many.

    Without steps it is None: the Pruner then prunes at once.
    """
    if steps == 0:
        return None
    end = max(2, int(RAMP * steps))
    every = max(1, end // CHOICES)
    return {  # all from step 1 on, when criteria have seen a gradient
        "cubic": lambda: cubic(1, end, every),
        "linear": lambda: linear(1, end, every),
        "one-shot": lambda: one_shot(1),
        "iterative": lambda: iterative(rounds=5, every=max(1, end // 5), start=1),
        "admm": lambda: admm(1, end, every),
    }[name]()


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, processes: Processes | None = None) -> Tally:
    """The sums over all test samples, in evaluation mode; with processes, each takes its part of the samples."""
    # Shards of FSDP2 are gathered in every forward pass: there all processes need the same number of them.
    divided = processes is not None and processes.ranks > 1 and not processes.sharded
    rank, ranks = (processes.rank, processes.ranks) if processes and divided else (0, 1)
    inner = model
    if processes is not None and processes.ranks > 1:
        processes.agree_on_buffers(model)
        inner = getattr(model, "module", model)
    inner.eval()
    sums: Tally = {}
    for batch in task.test_batches(rank, ranks):
        placed = batch if processes is None else processes.place(batch)
        for name, value in task.tally(inner, placed).items():
            value = value.double().cpu()
            sums[name] = sums[name] + value if name in sums else value
    if processes is not None and divided:
        sums = {name: processes.sum(value) for name, value in sums.items()}
    return sums


def _replace(path: Path, write: Any) -> None:
    """Write a file so that there is always a whole one."""
    new = path.with_name(path.name + ".new")
    write(new)
    os.replace(new, path)
