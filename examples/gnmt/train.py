"""Train GNMT, prune it to a pattern, convert it, and measure what came out.

python -m examples.gnmt.train --size small
torchrun --nproc-per-node 8 -m examples.gnmt.train --data /data/wmt16 --words 32320 --amp
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from sacrebleu.metrics import BLEU
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from typer import Option

from examples.common.options import Options, run
from examples.common.outcome import main
from examples.common.task import Phase, Tally, Task
from examples.gnmt import debian
from examples.gnmt.data import Batch, Corpus, Pairs, batches, in_order
from examples.gnmt.model import GNMT, PAD, SIZES
from examples.gnmt.translate import translate

WARMUP, FLAT, HALVINGS = 200, 2 / 3, 4
STEPS = 30  # pieces of the sentence that is timed, and of its translation


@dataclasses.dataclass(frozen=True, kw_only=True)
class GNMTOptions(Options):
    """Flags of this script beside those of all."""

    out: Annotated[Path, Option(help="Folder to write to: checkpoint, logs, models, results.")] = (
        Path("build/gnmt")
    )
    data: Annotated[str, Option(help='A folder of parallel text files, or "debian".')] = "debian"
    source: Annotated[str, Option(help="Ending of the files to translate from.")] = "en"
    target: Annotated[str, Option(help="Ending of the files to translate to.")] = "de"
    words: Annotated[int, Option(help="Pieces of the joint vocabulary.")] = 8000
    longest: Annotated[int, Option(help="Training pairs of more pieces are left out.")] = 50
    size: Annotated[
        Literal["full", "base", "small", "tiny"], Option(help="1024, 512, 256 or 64 hidden units.")
    ] = "full"
    dropout: Annotated[float, Option(help="Of what goes into a layer.")] = 0.2
    lr: Annotated[float, Option(help="Highest rate of Adam, dense.")] = 2e-3
    prune_lr: Annotated[float, Option(help="The same, while pruning and fine-tuning.")] = 1e-3
    smoothing: Annotated[float, Option(help="Of the words that are to be predicted.")] = 0.1
    beam: Annotated[int, Option(help="Hypotheses that a translation follows.")] = 5
    bleu: Annotated[int, Option(help="Sentences of each set to translate in the end.")] = 500
    # The classifier is the largest matrix of all, and is pruned.
    include: Annotated[list[str] | None, Option(help="Name or glob to prune; again for more.")] = (
        dataclasses.field(default=("*",))  # type: ignore[assignment]
    )
    epochs: Annotated[int, Option(help="Of dense training; 0 goes on from --weights.")] = 6
    prune_epochs: Annotated[int, Option(help="Of pruning, with fine-tuning.")] = 6
    batch: Annotated[int, Option(help="Sentences of a step, in every process.")] = 128


class Translate(Task):
    """Sentences to their translations, by GNMT."""

    metric = "accuracy"
    clip = 5.0

    def __init__(self, options: GNMTOptions) -> None:
        super().__init__(options)
        self.o = options
        folder = debian.CORPUS if options.data == "debian" else Path(options.data)
        if options.data == "debian" and not (folder / "train.en").exists():
            raise SystemExit(
                "--data debian: run first\n    python -m examples.gnmt.data prepare\n"
                "which makes the corpus from Debian packages in a cache, without installing them"
            )
        self.corpus = Corpus(folder, options.source, options.target, options.words, options.longest)
        self.dev = self.corpus.tests.get("dev", next(iter(self.corpus.tests.values())))
        hidden = SIZES[options.size]
        self.build = partial(GNMT, self.corpus.words, hidden, dropout=options.dropout)

    def optimizer(self, model: nn.Module, phase: Phase, ranks: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            model.parameters(), self.o.lr if phase == "dense" else self.o.prune_lr
        )

    def rate(self, phase: Phase, step: int, steps: int) -> float:
        """An exponential rise from 1 %, a constant, and halvings in the last third."""
        warmup = min(WARMUP, steps // 10)
        if step < warmup:
            return float(0.01 ** (1 - step / warmup))
        late = step / steps - FLAT
        return 0.5 ** (0 if late < 0 else 1 + int(late / (1 - FLAT) * HALVINGS))

    def steps(self, ranks: int) -> int:
        steps = len(self.corpus.train) // self.o.batch // ranks
        if steps == 0:
            raise SystemExit(
                f"{len(self.corpus.train)} pairs do not fill a batch of {self.o.batch} "
                f"in {ranks} processes"
            )
        return steps

    def batches(self, epoch: int, first: int, rank: int, ranks: int) -> Iterable[Batch]:
        for rows in batches(self.corpus.train, self.o.batch, self.o.seed, epoch, rank, ranks)[
            first:
        ]:
            yield self.corpus.train.batch(rows)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        logits, words = self._predicted(model, batch)
        return cross_entropy(logits, words, ignore_index=PAD, label_smoothing=self.o.smoothing)

    def test_batches(self, rank: int, ranks: int) -> Iterable[Batch]:
        return map(self.dev.batch, in_order(self.dev, self.o.batch, rank, ranks))

    def tally(self, model: nn.Module, batch: Any) -> Tally:
        logits, words = self._predicted(model, batch)
        counted = words != PAD
        return {
            "loss": cross_entropy(logits.float(), words, ignore_index=PAD, reduction="sum"),
            "right": ((logits.argmax(dim=1) == words) & counted).sum(),
            "words": counted.sum(),
        }

    def metrics(self, tally: Tally) -> dict[str, float]:
        """Share of the next pieces that are predicted right, in percent, and their cross-entropy in nats."""
        return {
            "accuracy": 100 * float(tally["right"] / tally["words"]),
            "test_loss": float(tally["loss"] / tally["words"]),
        }

    def _predicted(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sources, lengths, targets = batch
        logits = model(sources, lengths, targets[:, :-1])
        return logits.flatten(0, 1), targets[:, 1:].flatten()

    def figures(self, model: nn.Module) -> dict[str, float]:
        """BLEU of every set, by beam search."""
        found = {}
        for name, pairs in self.corpus.tests.items() if self.o.bleu else ():
            count = min(self.o.bleu, len(pairs))
            chosen = [i * len(pairs) // count for i in range(count)]
            part = Pairs(*([column[i] for i in chosen] for column in vars(pairs).values()))
            texts = [""] * count
            for rows in tqdm(list(in_order(part, 32)), desc=f"translating {name}", leave=False):
                sources, lengths, _ = part.batch(rows)
                for row, pieces in zip(
                    rows, translate(model, sources, lengths, self.o.beam), strict=True
                ):
                    texts[row] = self.corpus.pieces.decode(pieces)
            found[f"bleu_{name}"] = BLEU().corpus_score(texts, [part.texts]).score
        return found

    def example(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A sentence of 30 pieces and its translation of 30."""
        words = torch.randint(
            4, self.corpus.words, (2, STEPS), generator=torch.Generator().manual_seed(0)
        )
        return words[:1], torch.tensor([STEPS]), words[1:]

    def call(self, model: nn.Module) -> Callable[[], Any]:
        """Translate a sentence of 30 pieces into one of 30."""
        sources, lengths, _ = self.example()
        return lambda: translate(model, sources, lengths, self.o.beam, steps=STEPS, to_the_end=True)


def train(options: GNMTOptions) -> None:
    """Train GNMT, prune it to a pattern, convert it, and measure what came out."""
    main(Translate, options)


if __name__ == "__main__":
    run(train, GNMTOptions)
