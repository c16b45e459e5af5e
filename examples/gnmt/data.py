"""Sentence pairs from line-parallel text files, cut into the pieces of a joint vocabulary.

A folder holds train.en, train.de, dev.en, dev.de, test.en, test.de, and further sets for the last scores, line by line
the translation of each other; other languages by --source and --target. The vocabulary is made by sentencepiece (BPE)
from the training text when it is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import typer

from examples.common.batching import alike, longest_first
from examples.gnmt import debian
from examples.gnmt.model import BOS, EOS, PAD, UNK

# Sources [N, S], their lengths [N], targets [N, T] that begin with BOS and end with EOS.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Pairs:
    """One set: the pieces of every pair, sources first, and the target's text."""

    sources: list[list[int]]
    targets: list[list[int]]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: list[int]) -> Batch:
        sources = [torch.tensor([*self.sources[row], EOS]) for row in rows]
        targets = [torch.tensor([BOS, *self.targets[row], EOS]) for row in rows]
        lengths = torch.tensor([len(source) for source in sources])
        return _padded(sources), lengths, _padded(targets)


def _padded(sentences: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=PAD)


class Corpus:
    """A folder of parallel text.

    Parameters
    ----------
    folder : Path
    source, target : str
        Endings of the files.
    words : int
        Size of the vocabulary, if it must be made.
    longest : int
        Training pairs with more pieces on either side are left out.
    """

    def __init__(self, folder: Path, source: str, target: str, words: int, longest: int) -> None:
        self.folder, self.languages = folder, (source, target)
        texts = self._texts("train")
        self.pieces = vocabulary(folder, words, texts)
        self.words = self.pieces.get_piece_size()
        pairs = self._encoded(texts)
        short = [
            i
            for i in range(len(pairs))
            if max(len(pairs.sources[i]), len(pairs.targets[i])) <= longest
        ]
        self.train = Pairs(*([column[i] for i in short] for column in vars(pairs).values()))
        stems = {path.stem for path in folder.glob(f"*.{source}")} - {"train"}
        self.tests = {stem: self._encoded(self._texts(stem)) for stem in sorted(stems)}
        if not self.tests:
            raise SystemExit(f"{folder} has no dev.{source} and dev.{target} to score by")

    def _texts(self, stem: str) -> tuple[list[str], list[str]]:
        files = [self.folder / f"{stem}.{language}" for language in self.languages]
        for file in files:
            if not file.exists():
                raise SystemExit(f"{file} is not there; a corpus is a folder of {__doc__!s}")
        source, target = (file.read_text("utf-8").splitlines() for file in files)
        if len(source) != len(target):
            raise SystemExit(
                f"{files[0]} has {len(source)} lines and {files[1]} {len(target)}: "
                "line i of one must be the translation of line i of the other"
            )
        return source, target

    def _encoded(self, texts: tuple[list[str], list[str]]) -> Pairs:
        source, target = (self.pieces.encode(side) for side in texts)
        return Pairs(source, target, texts[1])


def vocabulary(
    folder: Path, words: int, texts: tuple[list[str], list[str]]
) -> sentencepiece.SentencePieceProcessor:
    """The vocabulary in a folder, made from the texts of both languages if it is not there."""
    path = folder / f"bpe-{words}.model"
    if not path.exists():
        new = path.with_name(f"{path.name}.{os.getpid()}")
        with new.open("wb") as file:
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter([*texts[0], *texts[1]]),
                    model_writer=file,
                    vocab_size=words,
                    model_type="bpe",
                    character_coverage=0.9999,
                    pad_id=PAD,
                    unk_id=UNK,
                    bos_id=BOS,
                    eos_id=EOS,
                    minloglevel=2,
                )
            except RuntimeError as error:
                new.unlink()
                raise SystemExit(
                    f"no vocabulary of {words} pieces from {folder}: {error}"
                ) from None
        new.replace(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def batches(
    pairs: Pairs, size: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1
) -> list[list[int]]:
    """The rows of every batch of an epoch for one process: pairs of alike length stand together, batches do not."""
    lengths = [len(a) + len(b) for a, b in zip(pairs.sources, pairs.targets, strict=True)]
    return alike(lengths, size, seed, epoch, rank, ranks)


def in_order(pairs: Pairs, size: int, rank: int = 0, ranks: int = 1) -> Iterator[list[int]]:
    """All rows in batches, the longest pairs first, divided among processes."""
    return longest_first([len(source) for source in pairs.sources], size, rank, ranks)


app = typer.Typer(add_completion=False)


@app.callback()
def _menu() -> None:
    """Data of the example."""


@app.command()
def prepare(out: Path = debian.CORPUS) -> None:
    """Make an English-German corpus from Debian packages, for --data debian; nothing is installed."""
    debian.prepare(out)


if __name__ == "__main__":
    app()
