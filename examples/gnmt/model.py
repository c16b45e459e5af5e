"""GNMT v2, with the names of NVIDIA's published model: a checkpoint of it loads.

Four layers of LSTM in the encoder, the first in both directions, and four in the decoder. The decoder's first asks a
normalised Bahdanau attention for a context, which all further layers see beside their input; residuals begin at the
third layer.

References
----------
Y. Wu et al.: Google's neural machine translation system. arXiv 1609.08144, 2016. D. Bahdanau et al.: Neural machine
translation by jointly learning to align and translate. arXiv 1409.0473, 2014. T. Salimans, D. P. Kingma: Weight
normalization. arXiv 1602.07868, 2016 (of the attention's vector).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PAD, UNK, BOS, EOS = range(4)

SIZES = {"full": 1024, "base": 512, "small": 256, "tiny": 64}

Hidden = tuple[torch.Tensor, torch.Tensor]


class Memory(NamedTuple):
    """What the decoder sees of the source: sequences are padded, [N, S, ...].

    Attributes
    ----------
    context : Tensor [N, S, H]
        Outputs of the encoder.
    keys : Tensor [N, S, H]
        The same as the attention compares them.
    absent : Tensor of bool, [N, 1, S]
        Where a source has ended.
    """

    context: torch.Tensor
    keys: torch.Tensor
    absent: torch.Tensor

    def repeat(self, times: int) -> Memory:
        """Every source so often in a row."""
        return Memory(*(part.repeat_interleave(times, dim=0) for part in self))


class Attention(nn.Module):
    """Bahdanau's attention with a normalised vector: score = g v/|v| . tanh(W_q query + W_k context + b)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(hidden, hidden, bias=False)
        self.linear_k = nn.Linear(hidden, hidden, bias=False)
        self.linear_att = nn.Parameter(torch.empty(hidden))
        self.normalize_scalar = nn.Parameter(torch.full((1,), hidden**-0.5))
        self.normalize_bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, queries: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [N, T, H] to contexts [N, T, H] and the weights of the source's places, [N, T, S]."""
        pairs = self.linear_q(queries)[:, :, None] + memory.keys[:, None] + self.normalize_bias
        vector = self.linear_att / self.linear_att.norm() * self.normalize_scalar
        scores = torch.tanh(pairs) @ vector.to(pairs.dtype)
        shares = scores.float().masked_fill(memory.absent, -torch.inf).softmax(dim=-1)
        return shares.to(memory.context.dtype) @ memory.context, shares


class Encoder(nn.Module):
    def __init__(self, embedder: nn.Embedding, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [(hidden, True), (2 * hidden, False), *[(hidden, False)] * (layers - 2)]
        self.rnn_layers = nn.ModuleList(
            nn.LSTM(size, hidden, batch_first=True, bidirectional=both) for size, both in sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.embedder = embedder

    def forward(self, sources: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Words [N, S] to outputs [N, S, H]; `lengths` [N], in any order."""
        x = self.dropout(self.embedder(sources))
        first, *others = self.rnn_layers
        # Only the reverse direction must know where a source ends.
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(first(packed)[0], batch_first=True, total_length=x.shape[1])
        for i, layer in enumerate(others):
            y, _ = layer(self.dropout(x))
            x = y if i == 0 else x + y
        return x


class RecurrentAttention(nn.Module):
    """The first layer of the decoder, and the attention that it asks."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(hidden, hidden, batch_first=True)
        self.attn = Attention(hidden)


class Classifier(nn.Module):
    def __init__(self, hidden: int, words: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x)


class Decoder(nn.Module):
    def __init__(self, embedder: nn.Embedding, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.att_rnn = RecurrentAttention(hidden)
        self.rnn_layers = nn.ModuleList(
            nn.LSTM(2 * hidden, hidden, batch_first=True) for _ in range(layers - 1)
        )
        self.embedder = embedder
        self.classifier = Classifier(hidden, embedder.num_embeddings)
        self.dropout = nn.Dropout(dropout)

    def memory(self, context: torch.Tensor, lengths: torch.Tensor) -> Memory:
        """What is the same for all steps of a sentence."""
        places = torch.arange(context.shape[1], device=context.device)
        absent = places[None, None] >= lengths.to(context.device)[:, None, None]
        return Memory(context, self.att_rnn.attn.linear_k(context), absent)

    def forward(
        self, words: torch.Tensor, memory: Memory, state: list[Hidden] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[Hidden]]:
        """Words [N, T] to logits [N, T, words], shares of the source [N, T, S] and the state after them."""
        before: list[Hidden] | list[None] = state or [None] * (1 + len(self.rnn_layers))
        x = self.dropout(self.embedder(words))
        x, after = self.att_rnn.rnn(x, before[0])
        context, shares = self.att_rnn.attn(x, memory)
        states = [after]
        for i, layer in enumerate(self.rnn_layers):
            y, after = layer(self.dropout(torch.cat([x, context], dim=2)), before[i + 1])
            states.append(after)
            x = y if i == 0 else x + y
        return self.classifier(x), shares, states


class GNMT(nn.Module):
    """Sources [N, S] and targets [N, T] to logits of the next words, [N, T, words].

    Parameters
    ----------
    words : int
        Of the vocabulary, which both languages share.
    hidden : int
        1024 in the published model.
    """

    def __init__(
        self, words: int, hidden: int = 1024, layers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        embedder = nn.Embedding(words, hidden, padding_idx=PAD)
        self.encoder = Encoder(embedder, hidden, layers, dropout)
        self.decoder = Decoder(embedder, hidden, layers, dropout)
        for name, parameter in self.named_parameters():
            if "normalize" not in name:
                nn.init.uniform_(parameter, -0.1, 0.1)
        with torch.no_grad():
            embedder.weight[PAD].zero_()

    def forward(
        self, sources: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        return self.decoder(targets, self.remember(sources, lengths))[0]

    def remember(self, sources: torch.Tensor, lengths: torch.Tensor) -> Memory:
        """Read the sources, [N, S], of which the first `lengths` words count."""
        return self.decoder.memory(self.encoder(sources, lengths), lengths)
