"""lDDT over one atom a residue, counted without an N x N tensor.

The dispatcher's op gives counts, which are exact: whatever adds them up, and in whatever order, finds the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, native, plain, triton
from paperops.reference.lddt import THRESHOLDS
from paperops.reference.nearest import result_dtype


def _reference(pred: Tensor, target: Tensor, mask: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """How many pairs each residue has, and of how many thresholds their errors stay below: int64 [B, N] both."""
    working = result_dtype(pred.dtype)
    true, found = (_distances(positions.to(working)) for positions in (target, pred))
    pairs = (true < cutoff) & mask[:, :, None] & mask[:, None]  # [B, N, N]
    pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    error = (true - found).abs().masked_fill(~pairs, float("inf"))
    kept = torch.stack([(error < threshold).sum(2) for threshold in THRESHOLDS]).sum(0)
    return pairs.sum(2), kept


def _distances(positions: Tensor) -> Tensor:
    """[B, N, N]"""
    return (positions[:, :, None] - positions[:, None]).square().sum(-1).sqrt()


def _fake(pred: Tensor, target: Tensor, mask: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    return tuple(mask.new_empty(mask.shape, dtype=torch.int64) for _ in range(2))  # type: ignore[return-value]


lddt_op = define(
    "lddt",
    "(Tensor pred_positions, Tensor target_positions, Tensor mask, float cutoff) -> (Tensor, Tensor)",
    {"reference": plain(_reference), "native": native("lddt"), "triton": triton("lddt", "lddt")},
    fake=_fake,
)


def lddt(
    pred_positions: Tensor, target_positions: Tensor, mask: Tensor, cutoff: float = 15.0, per_residue: bool = False
) -> Tensor:
    r"""Local distance difference test of predicted against true positions, one atom a residue (CA).

    .. math::
        \mathrm{lDDT}_i = \frac{1}{4 |P_i|} \sum_{j \in P_i} \sum_{t \in \{0.5, 1, 2, 4\}}
                          [\,|d_{ij} - d^{\mathrm{true}}_{ij}| < t\,],
        \qquad P_i = \{ j \ne i : d^{\mathrm{true}}_{ij} < \mathrm{cutoff} \}

    over the residues that are not masked; of a whole item, with the pairs of all residues together.

    Args:
        pred_positions, target_positions: ``[B, N, 3]``, in Angstrom, of one dtype: float16, bfloat16, float32 or
            float64. Distances come from differences, in float32 at least.
        mask: ``[B, N]``, bool or floating; a residue of mask 0 is masked, of any other value is not. What masked
            residues hold does not matter.
        cutoff: the largest true distance that counts, in Angstrom; positive.
        per_residue: the score of each residue instead of each item's.

    Returns:
        ``[B]``, or ``[B, N]`` per residue, from 0 to 1, float64 for float64 positions and float32 otherwise. Where
        there is no pair (a masked residue, a residue or an item by itself) the score is 1, as AlphaFold2's is. A pair
        whose true distance is NaN does not count; one whose predicted distance is NaN misses every threshold.

    Not differentiable: it is a count, and the result never requires a gradient. A distance or an error that lies on a
    bound to within rounding may fall on either side.

    Raises:
        TypeError: not tensors, or of the wrong dtype; a cutoff that is no number, a per_residue that is no bool.
        ValueError: a shape or device that does not fit; a mask that requires a gradient; a cutoff that is not positive.

    Source:
        Mariani et al., Bioinformatics 29 (2013); Jumper et al., Nature 596 (2021), supplement 1.9.6.

    Cost:
        About 9 operations a pair of residues, and 15 more where it is within the cutoff; memory O(N).

    Example:
        >>> import torch, paperops
        >>> true = torch.tensor([[[0.0, 0.0, 0.0], [3.8, 0.0, 0.0], [7.6, 0.0, 0.0]]])
        >>> moved = true + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
        >>> paperops.lddt(moved, true, torch.ones(1, 3), per_residue=True)
        tensor([[0.7500, 0.7500, 0.5000]])
    """
    _checks.clouds(pred_positions, target_positions, ("pred_positions", "target_positions"))
    if pred_positions.shape[2] != 3:
        raise ValueError(f"pred_positions must have shape [B, N, 3]; got {list(pred_positions.shape)}")
    if target_positions.shape != pred_positions.shape:
        raise ValueError(
            f"target_positions must have the shape of pred_positions, {list(pred_positions.shape)}; "
            f"got {list(target_positions.shape)}"
        )
    _checks.tensor("mask", mask)
    valid = _checks.residue_mask("mask", mask, pred_positions.shape[:2], pred_positions, "pred_positions")
    cutoff = _checks.positive_number("cutoff", cutoff)
    _checks.flag("per_residue", per_residue)
    pairs, kept = lddt_op(pred_positions.detach(), target_positions.detach(), valid, cutoff)
    if not per_residue:
        pairs, kept = pairs.sum(1), kept.sum(1)
    working = torch.float64 if pred_positions.dtype == torch.float64 else torch.float32
    score = kept.to(working) / (len(THRESHOLDS) * pairs.clamp(min=1)).to(working)
    return score.masked_fill(pairs == 0, 1)
