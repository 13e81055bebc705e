"""Predicted TM-score, with the logits read once.

The score is one row's: only that row has a gradient, which plain torch computes well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, native, plain, triton
from paperops.reference.nearest import result_dtype
from paperops.reference.predicted_tm_score import EPS, bin_scores


def _reference(logits: Tensor, weights: Tensor, chains: Tensor | None, scores: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[1] == 0:
        return weights.new_zeros(logits.shape[0]), weights.new_zeros(logits.shape[0], dtype=torch.int64)
    pairs = weights[:, :, None] * weights[:, None]  # [B, N, N]
    if chains is not None:
        pairs = pairs * (chains[:, :, None] != chains[:, None])
    wide = logits.to(weights.dtype).masked_fill((pairs == 0)[..., None], 0)
    expected = (torch.softmax(wide, -1) * scores[:, None, None]).sum(-1)  # [B, N, N]
    by_alignment = (expected * pairs).sum(2) / (EPS + pairs.sum(2))  # [B, N]
    row = (by_alignment * weights).argmax(1)
    return by_alignment.gather(1, row[:, None])[:, 0], row


def _fake(logits: Tensor, weights: Tensor, chains: Tensor | None, scores: Tensor) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape[0]), weights.new_empty(weights.shape[0], dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
    logits, weights, chains, scores, row = ctx.saved_tensors
    if logits.shape[1] == 0:
        return torch.zeros_like(logits), None, None, None
    item = torch.arange(logits.shape[0], device=logits.device)
    pairs = weights * weights[item, row][:, None]  # [B, N]
    if chains is not None:
        pairs = pairs * (chains != chains[item, row][:, None])
    wide = logits[item, row].to(weights.dtype).masked_fill((pairs == 0)[..., None], 0)  # [B, N, bins]
    probabilities = torch.softmax(wide, -1)
    above = scores[:, None] - (probabilities * scores[:, None]).sum(-1, keepdim=True)  # [B, N, bins]
    share = grad[:, None] * pairs / (EPS + pairs.sum(1, keepdim=True))  # [B, N]
    found = (share[..., None] * probabilities * above).to(logits.dtype)
    gradient = found.new_zeros(logits.shape)
    gradient[item, row] = found  # each row once: no accumulation
    return gradient, None, None, None


score_op = define(
    "predicted_tm_score",
    "(Tensor logits, Tensor weights, Tensor? chains, Tensor bin_scores) -> (Tensor, Tensor)",
    {
        "reference": plain(_reference),
        "native": native("predicted_tm_score"),
        "triton": triton("predicted_tm_score", "predicted_tm_score"),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    autocast=(),  # sums are in float32 whatever the logits are: a copy of them would only take memory
)


def predicted_tm_score(
    logits: Tensor,
    residue_weights: Tensor | None = None,
    asym_id: Tensor | None = None,
    interface: bool = False,
    max_bin: float = 31,
    bins: int = 64,
) -> Tensor:
    r"""Predicted TM-score (pTM) of predicted aligned errors, and of interfaces (ipTM).

    .. math::
        \mathrm{pTM} = \frac{\sum_j w_{ij} E_{ij}}{\epsilon + \sum_j w_{ij}}
        \quad \text{of the row } i = \arg\max_i \Big( w_i \frac{\sum_j w_{ij} E_{ij}}{\epsilon + \sum_j w_{ij}} \Big),
        \qquad E_{ij} = \sum_b \mathrm{softmax}_b(\mathrm{logits}_{ij})\, \frac{1}{1 + (c_b / d_0)^2}

    with :math:`w_{ij} = w_i w_j`, 0 within a chain where ``interface`` is set, :math:`\epsilon = 10^{-8}`, bin centres
    :math:`c_b = (b + 1/2) \cdot` max_bin / (bins - 2), and :math:`d_0 = 1.24 (\max(n, 19) - 15)^{1/3} - 1.8`, where n
    is the sum of the item's weights.

    Args:
        logits: ``[B, N, N, bins]``, of the error of residue j where residue i's frame is aligned: float16, bfloat16,
            float32 or float64. All sums are in float32 at least.
        residue_weights: w, ``[B, N]``, bool or floating, finite and not negative; None: 1 each. What pairs of weight 0
            hold does not matter.
        asym_id: ``[B, N]``, integers, equal within a chain. Read for ``interface`` only, and required there.
        interface: only pairs of different chains count.
        max_bin: the upper end of the last bin but one, in Angstrom.
        bins: how many bins the logits have, 3 at least.

    Returns:
        ``[B]``, float64 for float64 logits and float32 otherwise; 0 where no pair counts.

    Differentiable in the logits, twice: the gradient is that of the row that attains the maximum, the first of several,
    and 0 elsewhere. Each item of a batch has its own n and row.

    Raises:
        TypeError: not tensors, or of the wrong dtype; a max_bin, bins or interface of another type.
        ValueError: a shape or device that does not fit; weights that require a gradient, are negative or not finite;
            interface without asym_id; max_bin that is not positive; fewer than 3 bins.

    Source:
        Jumper et al., Nature 596 (2021), supplement 1.9.7; Evans et al., bioRxiv 2021.10.04.463034 (interfaces).

    Cost:
        About 6 operations a logit, which are read once; the backward pass reads one row of them and writes their
        gradient. Memory beyond that O(N).

    Example:
        >>> import torch, paperops
        >>> logits = torch.zeros(1, 30, 30, 64)
        >>> logits[..., 2] = 20.0  # errors near 1.2 A everywhere
        >>> paperops.predicted_tm_score(logits)
        tensor([0.5032])
    """
    _checks.pair("logits", logits)
    if logits.dim() != 4:
        raise ValueError(f"logits must have shape [B, N, N, bins]; got {list(logits.shape)}")
    bins, max_bin = _checks.positive_int("bins", bins), _checks.positive_number("max_bin", max_bin)
    if bins < 3:
        raise ValueError(f"bins must be at least 3; got {bins}")
    if logits.shape[3] != bins:
        raise ValueError(f"logits must have bins = {bins} in their last dimension; got {list(logits.shape)}")
    _checks.flag("interface", interface)
    working = result_dtype(logits.dtype)
    if residue_weights is None:
        weights = torch.ones(logits.shape[:2], dtype=working, device=logits.device)  # [B, N]
    else:
        given = _checks.mask_of("residue_weights", residue_weights, logits.shape[:2], "residue", logits, "logits")
        assert given is not None
        weights = _checks.weights("residue_weights", given.to(working), given.shape, logits)  # type: ignore[assignment]
    chains = None
    if asym_id is not None:
        chains = _checks.residue_numbers("asym_id", asym_id, logits.shape[:2], logits, "logits", "chain")
    elif interface:
        raise ValueError("interface=True needs asym_id, the chain of each residue")
    scores = bin_scores(weights.sum(1), max_bin, bins)
    return score_op(logits, weights, chains if interface else None, scores)[0]
