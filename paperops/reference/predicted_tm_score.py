"""Definition of the predicted TM-score (AlphaFold2 supplement 1.9.7, AlphaFold-Multimer for interfaces)."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype

EPS = 1e-8
"""Added to each row's sum of weights."""


def bin_scores(residues: Tensor, max_bin: float, bins: int) -> Tensor:
    """What a pair of each bin contributes to a TM-score of so many residues ``[B]``: ``[B, bins]``."""
    step = max_bin / (bins - 2)  # bins - 1 boundaries from 0 to max_bin, and one more bin beyond
    centres = (torch.arange(bins, dtype=residues.dtype, device=residues.device) + 0.5) * step
    d0 = 1.24 * (residues.clamp(min=19) - 15) ** (1 / 3) - 1.8  # [B]
    return 1 / (1 + (centres / d0[:, None]) ** 2)


def predicted_tm_score(
    logits: Tensor,
    residue_weights: Tensor | None = None,
    asym_id: Tensor | None = None,
    interface: bool = False,
    max_bin: float = 31,
    bins: int = 64,
) -> Tensor:
    """See :func:`paperops.predicted_tm_score`."""
    working = result_dtype(logits.dtype)
    logits = logits.to(working)
    batch, n = logits.shape[:2]
    if n == 0:
        return logits.sum((1, 2, 3))
    weights = logits.new_ones(batch, n) if residue_weights is None else residue_weights.to(working)  # [B, N]
    pairs = weights[:, :, None] * weights[:, None]  # [B, N, N]
    if interface:
        assert asym_id is not None
        pairs = pairs * (asym_id[:, :, None] != asym_id[:, None])
    scores = bin_scores(weights.sum(1), max_bin, bins)  # [B, bins]
    probabilities = torch.softmax(logits.masked_fill((pairs == 0)[..., None], 0), -1)
    expected = (probabilities * scores[:, None, None]).sum(-1)  # [B, N, N]
    by_alignment = (expected * pairs).sum(2) / (EPS + pairs.sum(2))  # [B, N]
    best = (by_alignment * weights).argmax(1, keepdim=True)
    return by_alignment.gather(1, best)[:, 0]
