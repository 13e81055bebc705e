"""Definition of lDDT over one atom a residue, as AlphaFold2 scores CA atoms (supplement 1.9.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)


def lddt(
    pred_positions: Tensor, target_positions: Tensor, mask: Tensor, cutoff: float = 15.0, per_residue: bool = False
) -> Tensor:
    """See :func:`paperops.lddt`."""
    working = result_dtype(pred_positions.dtype)

    def distances(positions: Tensor) -> Tensor:  # [B, N, N]
        difference = positions.detach().to(working)[:, :, None] - positions.detach().to(working)[:, None]
        return difference.square().sum(-1).sqrt()

    true, error = distances(target_positions), (distances(target_positions) - distances(pred_positions)).abs()
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    pairs = (true < cutoff) & (mask != 0)[:, :, None] & (mask != 0)[:, None] & ~itself  # [B, N, N]
    kept = sum((pairs & (error < threshold)).to(working) for threshold in THRESHOLDS)
    assert isinstance(kept, Tensor)
    over = 2 if per_residue else (1, 2)
    count = pairs.sum(over).to(working)
    return torch.where(count == 0, 1, kept.sum(over) / (len(THRESHOLDS) * count).clamp(min=1))
