"""Beam search, with the length norm and the coverage penalty of GNMT (arXiv 1609.08144, equation 14)."""

from __future__ import annotations

import torch

from examples.gnmt.model import BOS, EOS, GNMT, PAD

Sentence = list[int]

BLOCK = 64  # words


def highest(heights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row [N, words], and where they are: `topk`, faster for few of many.

    They are in those `count` blocks of words whose maxima are the highest, and maxima are found by vectorised code.
    """
    rows, words = heights.shape
    blocks = words // BLOCK
    if blocks < 2 * count:
        return heights.topk(count, dim=1)
    cut = heights[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    best = cut.amax(dim=2).topk(count, dim=1).indices
    place = best[:, :, None] * BLOCK + torch.arange(BLOCK, device=heights.device)
    rest = torch.arange(blocks * BLOCK, words, device=heights.device).expand(rows, -1)
    place = torch.cat([place.flatten(1), rest], dim=1)
    top, among = heights.gather(1, place).topk(count, dim=1)
    return top, place.gather(1, among)


@torch.inference_mode()
def translate(
    model: GNMT,
    sources: torch.Tensor,
    lengths: torch.Tensor,
    beam: int = 5,
    length_norm: float = 0.6,
    coverage: float = 0.1,
    steps: int | None = None,
    to_the_end: bool = False,
) -> list[Sentence]:
    """The best translation of every source, without its end mark.

    Parameters
    ----------
    sources : Tensor of int64, [N, S]
    lengths : Tensor of int64, [N]
    beam : int
        Hypotheses that are followed.
    length_norm : float
        The power alpha of ((5 + length) / 6), by which log-probabilities are divided.
    coverage : float
        The weight beta of log(min(attention that a source word got, 1)).
    steps : int, optional
        The longest translation; half again as long as the longest source, and 10 more, if not given.
    to_the_end : bool
        Go all steps even if every sentence has its translations: for measurements.
    """
    n, places = sources.shape
    device = sources.device
    steps = steps or places + places // 2 + 10
    memory = model.remember(sources, lengths).repeat(beam)
    present = ~memory.absent[:, 0]
    first_row = torch.arange(n, device=device)[:, None] * beam
    words = torch.full((n * beam, 1), BOS, device=device)
    paths = words[:, :0]
    # Only one hypothesis at first: all of them would be the same.
    scores = torch.full((n, beam), -torch.inf, device=device)
    scores[:, 0] = 0
    seen = torch.zeros(n * beam, places, device=device)
    state = None
    best = [(-float("inf"), Sentence()) for _ in range(n)]
    found = [0] * n

    for length in range(1, steps + 1):
        logits, shares, state = model.decoder(words, memory, state)
        seen = seen + shares[:, 0]
        heights = logits[:, 0].float()
        total = heights.logsumexp(dim=1)  # of all, those that are ruled out too
        heights[:, [PAD, BOS]] = -torch.inf
        if length == steps:  # whatever is open ends here
            heights[:, :EOS] = heights[:, EOS + 1 :] = -torch.inf
        height, word = highest(heights, min(2 * beam, heights.shape[1]))
        chances = scores[:, :, None] + (height - total[:, None]).view(n, beam, -1)
        top, place = chances.flatten(1).topk(2 * beam, dim=1)
        rows = first_row + place.div(word.shape[1], rounding_mode="floor")
        choice = word.view(n, -1).gather(1, place)
        ends = choice == EOS

        # What ends among the first `beam` has a translation; the best others are followed.
        covered = (seen.clamp(1e-9, 1).log() * present).sum(dim=1)
        value = top / ((5 + length) / 6) ** length_norm + coverage * covered[rows]
        for i, rank in (ends[:, :beam] & top[:, :beam].isfinite()).nonzero().tolist():
            if found[i] < beam:
                found[i] += 1
                if value[i, rank] > best[i][0]:
                    best[i] = float(value[i, rank]), paths[rows[i, rank]].tolist()
        if min(found) == beam and not to_the_end:
            break
        follow = ends.int().argsort(dim=1, stable=True)[:, :beam]
        scores = top.gather(1, follow).masked_fill(ends.gather(1, follow), -torch.inf)
        rows = rows.gather(1, follow).flatten()
        words = choice.gather(1, follow).view(-1, 1)
        paths = torch.cat([paths[rows], words], dim=1)
        seen = seen[rows]
        state = [(h[:, rows], c[:, rows]) for h, c in state]
    return [sentence for _, sentence in best]
