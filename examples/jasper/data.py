"""Recordings and their texts, by manifests as NVIDIA's recipe writes them.

A folder holds train.json, dev.json to score by after every epoch, and others for the last scores. Each is a list of
{"transcript": text, "files": [{"fname": path, "speed": 1.0}, ...], "original_duration": seconds}; paths are relative to
the folder. Of several files, at other speeds, training takes one at a time; the first is the original.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import typer
from scipy.signal import resample_poly

from examples.common.batching import alike, longest_first
from examples.gnmt import debian
from examples.jasper import speech
from examples.jasper.decode import encode
from examples.jasper.features import BANDS, MULTIPLE, RATE, faster, log_mel, masked

SPEEDS = (0.9, 1.1)
NOISE = (10.0, 30.0)  # dB below the sound

# Features [N, 64, T] and their lengths [N], classes of the texts [N, S] and their lengths [N], numbers of the rows [N].
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Recording:
    text: str
    files: list[Path]
    seconds: float


class Manifest:
    """One set of recordings.

    Parameters
    ----------
    file : Path
        The manifest.
    longest : float
        Seconds; longer ones are left out.
    """

    def __init__(self, file: Path, longest: float = float("inf")) -> None:
        try:
            rows = json.loads(file.read_text("utf-8"))
            found = [
                Recording(
                    row["transcript"],
                    [file.parent / each["fname"] for each in row["files"]],
                    float(row["original_duration"]),
                )
                for row in rows
            ]
        except FileNotFoundError:
            raise SystemExit(f"{file} is not there; a corpus is a folder of {__doc__!s}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(f"{file} is no manifest: {error!r}; expected {__doc__!s}") from None
        self.recordings = [r for r in found if r.seconds <= longest and encode(r.text)]

    def __len__(self) -> int:
        return len(self.recordings)

    def batch(self, rows: list[int], epoch: int | None = None, seed: int = 0) -> Batch:
        """Some recordings; of a training epoch, disturbed in a way that follows from seed, epoch and row."""
        features, texts = [], []
        for row in rows:
            recording = self.recordings[row]
            if epoch is None:
                features.append(log_mel(read(recording.files[0])))
            else:
                features.append(disturbed(recording, (seed, epoch, row)))
            texts.append(torch.tensor(encode(recording.text)))
        lengths = torch.tensor([x.shape[1] for x in features])
        frames = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
        x = torch.zeros(len(rows), BANDS, frames)
        for place, each in zip(x, features, strict=True):
            place[:, : each.shape[1]] = each
        words = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return x, lengths, words, torch.tensor([len(t) for t in texts]), torch.tensor(rows)


def read(file: Path) -> torch.Tensor:
    """The samples of a mono file in [-1, 1], at 16 kHz."""
    sound, rate = soundfile.read(file, dtype="float32")
    if sound.ndim > 1:
        sound = sound.mean(axis=1)
    if rate != RATE:
        common = np.gcd(rate, RATE)
        sound = resample_poly(sound, RATE // common, rate // common).astype(np.float32)
    return torch.from_numpy(sound)


def disturbed(recording: Recording, key: tuple[int, ...]) -> torch.Tensor:
    """Features of a recording at some speed, with noise and with bands and times left out, by the key alone."""
    draw = np.random.default_rng(key)
    generator = torch.Generator().manual_seed(int(draw.integers(2**62)))
    if len(recording.files) > 1:
        sound = read(recording.files[draw.integers(len(recording.files))])
    else:
        sound = faster(read(recording.files[0]), float(draw.uniform(*SPEEDS)))
    power = float(sound.square().mean()) * 10 ** (-float(draw.uniform(*NOISE)) / 10)
    sound = sound + power**0.5 * torch.randn(sound.shape, generator=generator)
    return masked(log_mel(sound), generator)


def batches(
    manifest: Manifest, size: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1
) -> list[list[int]]:
    """The rows of every batch of an epoch for one process: recordings of alike length stand together."""
    lengths = [recording.seconds for recording in manifest.recordings]
    return alike(lengths, size, seed, epoch, rank, ranks)


def in_order(manifest: Manifest, size: int, rank: int = 0, ranks: int = 1) -> Iterator[list[int]]:
    """All rows in batches, the longest recordings first, divided among processes."""
    return longest_first(
        [recording.seconds for recording in manifest.recordings], size, rank, ranks
    )


app = typer.Typer(add_completion=False)


@app.callback()
def _menu() -> None:
    """Data of the example."""


@app.command()
def prepare(
    out: Path = speech.CORPUS,
    count: int = 12_000,
    tests: int = 400,
    texts: Path = debian.CORPUS,
) -> None:
    """Have the synthesisers of Debian speak a corpus, for --data synth."""
    speech.prepare(out, count, tests, texts)


if __name__ == "__main__":
    app()
