"""Train Jasper, prune it to a pattern, convert it, and measure what came out.

python -m examples.jasper.train --size small
torchrun --nproc-per-node 8 -m examples.jasper.train --data /data/librispeech --amp
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jiwer
import torch
from pytorch_optimizer import NovoGrad
from torch import nn
from torch.nn.functional import ctc_loss
from tqdm import tqdm
from typer import Option

from examples.common.options import Options, run
from examples.common.outcome import main
from examples.common.task import Phase, Tally, Task
from examples.jasper import speech
from examples.jasper.data import Batch, Manifest, batches, in_order
from examples.jasper.decode import greedy, prefix_search
from examples.jasper.features import BANDS
from examples.jasper.model import BLANK, Jasper

FRAMES = 704  # of the recording that is timed: 7 seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class JasperOptions(Options):
    """Flags of this script beside those of all."""

    out: Annotated[Path, Option(help="Folder to write to: checkpoint, logs, models, results.")] = (
        Path("build/jasper")
    )
    data: Annotated[str, Option(help='A folder of manifests, or "synth".')] = "synth"
    size: Annotated[
        Literal["10x5", "base", "small", "tiny"],
        Option(help="The published network of 333 M weights, or one of 11, 2.8 or 0.1 M."),
    ] = "10x5"
    longest: Annotated[float, Option(help="Seconds; longer recordings are not trained on.")] = 16.7
    lr: Annotated[float, Option(help="Highest rate of NovoGrad, dense.")] = 0.01
    prune_lr: Annotated[float, Option(help="The same, while pruning and fine-tuning.")] = 0.005
    weight_decay: Annotated[float, Option(help="Of all weights.")] = 1e-3
    warmup: Annotated[float, Option(help="Share of the steps in which the rate rises.")] = 0.05
    beam: Annotated[int, Option(help="Texts that the prefix search follows; 0 leaves it out.")] = 32
    epochs: Annotated[int, Option(help="Of dense training; 0 goes on from --weights.")] = 400
    prune_epochs: Annotated[int, Option(help="Of pruning, with fine-tuning.")] = 100
    batch: Annotated[int, Option(help="Recordings of a step, in every process.")] = 64


class Transcribe(Task):
    """Recordings to their texts, by Jasper."""

    metric = "wer"

    def __init__(self, options: JasperOptions) -> None:
        super().__init__(options)
        self.o = options
        folder = speech.CORPUS if options.data == "synth" else Path(options.data)
        if options.data == "synth" and not (folder / "train.json").exists():
            raise SystemExit(
                "--data synth: run first\n    python -m examples.jasper.data prepare\n"
                "which has synthesisers of Debian speak a corpus"
            )
        self.train = Manifest(folder / "train.json", options.longest)
        self.dev = Manifest(folder / "dev.json")
        others = sorted(set(folder.glob("*.json")) - {folder / "train.json", folder / "dev.json"})
        self.tests = {"dev": self.dev} | {file.stem: Manifest(file) for file in others}
        self.build = partial(Jasper, options.size)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return model.encoder.layers  # type: ignore[return-value, union-attr]

    def optimizer(self, model: nn.Module, phase: Phase, ranks: int) -> torch.optim.Optimizer:
        """NovoGrad with the betas of the published recipe."""
        rate = self.o.lr if phase == "dense" else self.o.prune_lr
        return NovoGrad(
            model.parameters(), rate, betas=(0.95, 0.0), weight_decay=self.o.weight_decay,
            grad_averaging=False,
        )  # fmt: skip

    def rate(self, phase: Phase, step: int, steps: int) -> float:
        """A linear rise, then a parabola down to 0."""
        rise = self.o.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return float((1 - (step - rise) / (steps - rise)) ** 2)

    def steps(self, ranks: int) -> int:
        steps = len(self.train) // self.o.batch // ranks
        if steps == 0:
            raise SystemExit(
                f"{len(self.train)} recordings do not fill a batch of {self.o.batch} "
                f"in {ranks} processes"
            )
        return steps

    def batches(self, epoch: int, first: int, rank: int, ranks: int) -> Iterable[Batch]:
        for rows in batches(self.train, self.o.batch, self.o.seed, epoch, rank, ranks)[first:]:
            yield self.train.batch(rows, epoch, self.o.seed)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self._losses(model, batch)[0].mean()

    def _losses(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, ...]:
        """CTC's loss of every recording, log-probabilities and their lengths."""
        x, frames, words, letters, _ = batch
        chances, lengths = model(x, frames)
        chances = chances.float()
        losses = ctc_loss(
            chances.transpose(0, 1), words, lengths, letters, blank=BLANK, reduction="none",
            zero_infinity=True,
        )  # fmt: skip
        return losses, chances, lengths

    def test_batches(self, rank: int, ranks: int) -> Iterable[Batch]:
        return map(self.dev.batch, in_order(self.dev, self.o.batch, rank, ranks))

    def tally(self, model: nn.Module, batch: Any) -> Tally:
        losses, chances, lengths = self._losses(model, batch)
        texts = [self.dev.recordings[row].text for row in batch[4].tolist()]
        errors, words = word_errors(texts, greedy(chances, lengths))
        return {
            "loss": losses.sum(),
            "letters": batch[3].sum(),
            "errors": torch.tensor(errors),
            "words": torch.tensor(words),
        }

    def metrics(self, tally: Tally) -> dict[str, float]:
        """Word error rate in percent, by greedy decoding, and CTC's loss in nats a letter."""
        return {
            "wer": 100 * float(tally["errors"] / tally["words"]),
            "test_loss": float(tally["loss"] / tally["letters"]),
        }

    @torch.inference_mode()
    def figures(self, model: nn.Module) -> dict[str, float]:
        """Word error rates of all sets in percent, greedy and by prefix search."""
        found = {}
        for name, manifest in self.tests.items():
            counts = {"greedy": [0, 0], "beam": [0, 0]}
            for rows in tqdm(list(in_order(manifest, 16)), desc=f"hearing {name}", leave=False):
                x, frames, *_ = manifest.batch(rows)
                chances, lengths = model(x, frames)
                heard = {"greedy": greedy(chances, lengths)}
                if self.o.beam:
                    heard["beam"] = [
                        prefix_search(each[:length].numpy(), self.o.beam)
                        for each, length in zip(chances, lengths, strict=True)
                    ]
                texts = [manifest.recordings[row].text for row in rows]
                for how, them in heard.items():
                    counts[how] = [
                        a + b for a, b in zip(counts[how], word_errors(texts, them), strict=True)
                    ]
            found |= {
                f"wer_{name}_{how}": 100 * errors / words
                for how, (errors, words) in counts.items()
                if words
            }
        return found

    def example(self) -> tuple[torch.Tensor]:
        """Features of 7 seconds, [1, 64, 704]."""
        return (torch.randn(1, BANDS, FRAMES, generator=torch.Generator().manual_seed(0)),)


def word_errors(texts: list[str], heard: list[str]) -> tuple[int, int]:
    """Words that must be changed, left out or put in, and words of the texts."""
    found = jiwer.process_words([text.lower() for text in texts], heard)
    errors = found.substitutions + found.deletions + found.insertions
    return errors, found.hits + found.substitutions + found.deletions


def train(options: JasperOptions) -> None:
    """Train Jasper, prune it to a pattern, convert it, and measure what came out."""
    main(Transcribe, options)


if __name__ == "__main__":
    run(train, JasperOptions)
