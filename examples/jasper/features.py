"""Sound to features: 64 logarithms of mel energies every 10 ms, and what disturbs them in training."""

from __future__ import annotations

from functools import cache

import torch

RATE = 16_000  # Hz
WINDOW, HOP, FFT = RATE // 50, RATE // 100, 512  # samples: 20 ms every 10 ms
BANDS = 64
PREEMPHASIS = 0.97
MULTIPLE = 16  # frames of a batch are filled up to one of this


@cache
def mel_bands() -> torch.Tensor:
    """Triangles of height 1 between 0 Hz and half the rate, equal on the mel scale: float32 [64, 257].

    mel(f) = 2595 log10(1 + f / 700), as HTK has it.
    """
    top = 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * top / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """Samples in [-1, 1] at 16 kHz, [S], to features [64, 1 + S // 160], each band with mean 0 and deviation 1."""
    x = torch.cat([sound[:1], sound[1:] - PREEMPHASIS * sound[:-1]])
    spectrum = torch.stft(
        x, FFT, HOP, WINDOW, torch.hann_window(WINDOW), center=True, pad_mode="constant",
        return_complex=True,
    )  # fmt: skip
    energies = mel_bands() @ spectrum.abs().square()
    x = (energies + 2**-24).log()
    return (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-5)


def masked(
    x: torch.Tensor, generator: torch.Generator, bands: int = 2, times: int = 2
) -> torch.Tensor:
    """SpecAugment: some bands and some times of [64, T] become 0 (arXiv 1904.08779)."""
    x = x.clone()

    def span(limit: int, length: int) -> slice:
        width = int(torch.randint(limit + 1, (), generator=generator))
        start = int(torch.randint(max(1, length - width), (), generator=generator))
        return slice(start, start + width)

    for _ in range(bands):
        x[span(BANDS // 4, BANDS)] = 0
    for _ in range(times):
        x[:, span(min(20, x.shape[1] // 8), x.shape[1])] = 0
    return x


def faster(sound: torch.Tensor, speed: float) -> torch.Tensor:
    """Sound played so many times as fast, its pitch with it: float32 [S] to [S / speed]."""
    length = round(len(sound) / speed)
    return torch.nn.functional.interpolate(
        sound[None, None], length, mode="linear", align_corners=True
    )[0, 0]
