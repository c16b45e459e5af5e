"""Train a ResNet, prune it to a pattern, convert it, and measure what came out.

python -m examples.resnet50.train --data glyphs --depth 18
torchrun --nproc-per-node 8 -m examples.resnet50.train --data /data/imagenet --amp
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer import Option

from examples.common.options import Options, run
from examples.common.outcome import main
from examples.common.task import Phase, Tally, Task, read_weights
from examples.resnet50.data import Batch, Data, FolderData, GlyphData, in_turn, order
from examples.resnet50.model import ResNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetOptions(Options):
    """Flags of this script beside those of all."""

    out: Annotated[Path, Option(help="Folder to write to: checkpoint, logs, models, results.")] = (
        Path("build/resnet50")
    )
    data: Annotated[str, Option(help='A folder with train/ and val/, or "glyphs".')] = "glyphs"
    fonts: Annotated[Path | None, Option(help="For glyphs: a folder of fonts.")] = None
    size: Annotated[int, Option(help="Pixels on a side; 0 takes 64 for glyphs, else 224.")] = 0
    depth: Annotated[int, Option(help="10, 18, 34, 50, 101 or 152.")] = 50
    width: Annotated[int, Option(help="Channels of the first stage; 64 is the usual network.")] = 64
    lr: Annotated[float, Option(help="Highest rate for 256 samples a step, dense.")] = 0.256
    prune_lr: Annotated[float, Option(help="The same, while pruning and fine-tuning.")] = 0.064
    momentum: Annotated[float, Option(help="Of SGD.")] = 0.875
    weight_decay: Annotated[float, Option(help="Of weights, not of norms and biases.")] = 3.05e-5
    smoothing: Annotated[float, Option(help="Of labels.")] = 0.1
    warmup: Annotated[float, Option(help="Share of the steps in which the rate rises.")] = 0.05
    test_images: Annotated[int, Option(help="Score by so many; 0 takes all.")] = 0
    workers: Annotated[int, Option(help="Processes that read images from a folder.")] = 4

    FREE = (*Options.FREE, "workers")

    @property
    def pixels(self) -> int:
        return self.size or (64 if self.data == "glyphs" else 224)


class Classify(Task):
    """Images to classes, by a ResNet."""

    metric = "top1"

    def __init__(self, options: ResNetOptions) -> None:
        super().__init__(options)
        self.o = options
        self.data: Data
        if options.data == "glyphs":
            self.data = GlyphData(options.pixels, options.fonts, options.seed)
        else:
            self.data = FolderData(
                Path(options.data), options.pixels, options.seed, options.workers
            )
        self.build = partial(ResNet, options.depth, options.width, self.data.classes)

    def initial(self) -> nn.Module:
        torch.manual_seed(self.o.seed)
        model = self.build()
        if self.o.weights is not None:
            state = dict(read_weights(self.o.weights))
            if state["fc.weight"].shape != model.fc.weight.shape:
                print(f"{self.o.weights} has {len(state['fc.weight'])} classes: fc begins anew")
                state |= {f"fc.{name}": p.detach() for name, p in model.fc.named_parameters()}
            model.load_state_dict(state)
        return model

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return [block for i in range(1, 5) for block in model.get_submodule(f"layer{i}")]

    def optimizer(self, model: nn.Module, phase: Phase, ranks: int) -> torch.optim.Optimizer:
        """SGD with momentum; only weight matrices decay."""
        lr = (self.o.lr if phase == "dense" else self.o.prune_lr) * self.o.batch * ranks / 256
        weights = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [
            {"params": weights, "weight_decay": self.o.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=lr, momentum=self.o.momentum)

    def rate(self, phase: Phase, step: int, steps: int) -> float:
        """A linear rise, then half a cosine down to 0."""
        rise = self.o.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))

    def steps(self, ranks: int) -> int:
        steps = self.data.samples // (self.o.batch * ranks)
        if steps == 0:
            raise SystemExit(
                f"{self.data.samples} images do not fill a batch of {self.o.batch} in {ranks} processes"
            )
        return steps

    def batches(self, epoch: int, first: int, rank: int, ranks: int) -> Iterable[Batch]:
        rows = order(self.data.samples, self.o.seed, epoch, self.o.batch, rank, ranks)
        return self.data.train(epoch, rows[first:])

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return cross_entropy(model(x), y, label_smoothing=self.o.smoothing)

    def test_batches(self, rank: int, ranks: int) -> Iterable[Batch]:
        samples = self.data.test_samples()
        count = min(samples, self.o.test_images or samples)
        batches = in_turn(count, self.o.batch, rank, ranks)
        return self.data.test([[row * samples // count for row in batch] for batch in batches])

    def tally(self, model: nn.Module, batch: Any) -> Tally:
        x, y, group = batch
        logits = model(x).float()
        top = logits.topk(min(5, self.data.classes)).indices
        right = top[:, 0] == y
        same = self.data.same.to(y.device)
        counts = torch.zeros(2, self.data.groups, dtype=torch.float64, device=y.device)
        counts[0].index_add_(0, group, right.double())
        counts[1].index_add_(0, group, torch.ones_like(y, dtype=torch.float64))
        return {
            "loss": cross_entropy(logits, y, reduction="sum"),
            "top5": (top == y[:, None]).any(dim=1).sum(),
            "folded": (same[top[:, 0]] == same[y]).sum(),
            "by_group": counts,  # right ones and all, for every group
        }

    def metrics(self, tally: Tally) -> dict[str, float]:
        right, count = tally["by_group"].sum(dim=1).tolist()
        figures = {
            "top1": 100 * right / count,
            "top5": 100 * float(tally["top5"]) / count,
            "test_loss": float(tally["loss"]) / count,
        }
        if self.o.data == "glyphs":
            figures["folded"] = 100 * float(tally["folded"]) / count
        return figures

    def example(self) -> tuple[torch.Tensor]:
        return next(iter(self.data.test([[0]])))[:1]

    def dense_forms(self, model: nn.Module) -> dict[str, Callable[[], Any]]:
        """In torch's usual order of memory, and with the channels last, which is faster on some machines."""
        (x,) = self.example()
        last = ResNet(self.o.depth, self.o.width, self.data.classes)
        last.load_state_dict(model.state_dict())
        last = last.eval().to(memory_format=torch.channels_last)
        z = x.contiguous(memory_format=torch.channels_last)
        return {"dense": partial(model, x), "dense, channels last": partial(last, z)}


if __name__ == "__main__":
    run(partial(main, Classify), ResNetOptions)
