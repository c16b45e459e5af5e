"""Jasper, dense residual, with the names of NVIDIA's published model: a checkpoint of it loads.

Ten blocks of five convolutions in time, each with a batch norm; what comes out of a block goes, through a convolution
of one tap, to the end of every later one. Frames behind the end of a shorter recording are zero in front of every
convolution.

References
----------
J. Li et al.: Jasper: an end-to-end convolutional neural acoustic model. arXiv 1904.03288, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

BLANK = 28  # of CTC, behind the 28 characters
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"


@dataclass(frozen=True)
class Stage:
    """One block, or several alike.

    Attributes
    ----------
    channels : int
    taps : int
    repeats : int
        Convolutions of a block.
    residual : bool
        Whether outputs of the blocks before are added.
    """

    channels: int
    taps: int
    repeats: int = 5
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.2
    residual: bool = True


def _network(blocks: list[Stage], *ends: tuple[int, int, int], channels: int) -> list[Stage]:
    """The blocks between a first convolution of stride 2 and the last ones, given as channels, taps, dilation."""
    first = Stage(channels, 11, repeats=1, stride=2, residual=False)
    last = [
        Stage(width, taps, repeats=1, dilation=dilation, dropout=0.4, residual=False)
        for width, taps, dilation in ends
    ]
    return [first, *blocks, *last]


SIZES = {
    "10x5": _network(
        [
            Stage(channels, taps, dropout=dropout)
            for channels, taps, dropout in (
                (256, 11, 0.2), (384, 13, 0.2), (512, 17, 0.2), (640, 21, 0.3), (768, 25, 0.3),
            )
            for _ in range(2)
        ],
        (896, 29, 2), (1024, 1, 1), channels=256,
    ),
    "base": _network(
        [Stage(c, t, repeats=3) for c, t in ((192, 11), (192, 13), (256, 13), (256, 17))],
        (320, 21, 2), (512, 1, 1), channels=192,
    ),
    "small": _network(
        [Stage(c, t, repeats=2, dropout=0.1) for c, t in ((128, 11), (160, 13), (192, 13))],
        (192, 17, 2), (256, 1, 1), channels=128,
    ),
    "tiny": _network(
        [Stage(64, 7, repeats=1, dropout=0.1)], (64, 9, 2), (128, 1, 1), channels=64
    ),
}  # fmt: skip


def shortened(lengths: torch.Tensor, convolution: nn.Conv1d) -> torch.Tensor:
    """Frames after a convolution."""
    (taps,), (stride,), (dilation,) = (
        convolution.kernel_size,
        convolution.stride,
        convolution.dilation,
    )
    padding = convolution.padding[0]
    assert isinstance(padding, int)
    return (lengths + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def _masked(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """[N, C, T] with zeros from each length on."""
    if lengths is None:
        return x
    frames = torch.arange(x.shape[2], device=x.device)
    return x.masked_fill(frames[None, None] >= lengths[:, None, None], 0)


def _convolved(
    inputs: int, outputs: int, taps: int, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    padding = taps // 2 * dilation
    return [
        nn.Conv1d(inputs, outputs, taps, stride, padding, dilation, bias=False),
        nn.BatchNorm1d(outputs, eps=1e-3, momentum=0.1),
    ]


class Block(nn.Module):
    """Convolutions, and the sum with what came out of the blocks before.

    Parameters
    ----------
    inputs : int
        Channels of the last of the outputs before.
    panes : list of int
        Channels of all outputs before that are added; empty without a residual.
    """

    def __init__(self, inputs: int, stage: Stage, panes: list[int]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for i in range(stage.repeats):
            modules += _convolved(
                inputs if i == 0 else stage.channels,
                stage.channels,
                stage.taps,
                stage.stride,
                stage.dilation,
            )
            if i + 1 < stage.repeats:
                modules += [nn.ReLU(), nn.Dropout(stage.dropout)]
        self.conv = nn.ModuleList(modules)
        self.res = nn.ModuleList(
            nn.ModuleList(_convolved(pane, stage.channels, 1)) for pane in panes
        )
        self.out = nn.Sequential(nn.ReLU(), nn.Dropout(stage.dropout))

    def forward(
        self, before: list[torch.Tensor], lengths: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Outputs before, [N, C, T] each, to those for the next block, and their lengths."""
        x, after = before[-1], lengths
        for module in self.conv:
            if isinstance(module, nn.BatchNorm1d | nn.ReLU | nn.Dropout):
                x = module(x)
            else:
                x = module(_masked(x, after))
                after = None if after is None else shortened(after, module)
        for pane, (convolution, norm) in zip(before, self.res, strict=False):
            x = x + norm(convolution(_masked(pane, lengths)))
        x = self.out(x)
        return ([*before, x] if len(self.res) else [x]), after


class Encoder(nn.Module):
    def __init__(self, features: int, stages: list[Stage]) -> None:
        super().__init__()
        blocks, panes, inputs = [], [], features
        for stage in stages:
            if stage.residual:
                panes.append(inputs)
            blocks.append(Block(inputs, stage, panes if stage.residual else []))
            inputs = stage.channels
        self.layers = nn.ModuleList(blocks)
        self.channels = inputs


class Decoder(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(channels, classes, 1))


class Jasper(nn.Module):
    """Log-mel features [N, 64, T] to log-probabilities of characters and blank, [N, T / 2, 29].

    Parameters
    ----------
    size : str
        One of SIZES; "10x5" is the published model.
    """

    def __init__(self, size: str = "10x5", features: int = 64, classes: int = BLANK + 1) -> None:
        super().__init__()
        self.encoder = Encoder(features, SIZES[size])
        self.decoder = Decoder(self.encoder.channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_uniform_(module.weight)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """With `lengths` [N], in frames, only those count, and their number after the network is returned too."""
        outputs = [x]
        for block in self.encoder.layers:
            outputs, lengths = block(outputs, lengths)
        logits = self.decoder.layers(outputs[-1])
        return logits.transpose(1, 2).log_softmax(dim=2), lengths
