"""AlphaFold2's losses of what its heads say of a prediction's errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paperops.geometry import Frames
from paperops.models.alphafold2.heads import error_bin_width
from paperops.models.alphafold2.losses import counted_mean
from paperops.nn.precision import wide
from paperops.ops import _checks
from paperops.ops.lddt import lddt


def plddt_loss(
    logits: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    mask: Tensor,
    *,
    cutoff: float = 15.0,
    resolution: Tensor | None = None,
    min_resolution: float = 0.1,
    max_resolution: float = 3.0,
) -> Tensor:
    """Cross-entropy of predicted lDDT-CA, in bins of one width from 0 to 1, with what :func:`paperops.lddt` finds.

    Args:
        logits: ``[*, N, bins]``, of :class:`PerResidueLDDTCaPredictor`.
        pred_positions, target_positions: ``[*, N, 3]``, the predicted and the true CA, in Angstrom: of a
            :class:`Structure` ``positions[-1, ..., 1, :]``. No gradient flows to them.
        mask: ``[*, N]``, bool or floating, which CA have a true place. What the others hold does not matter.
        cutoff: the largest true distance that counts, in Angstrom.
        resolution: ``[*]``, of each sample's experiment, in Angstrom; None: all samples count.
        min_resolution, max_resolution: a sample of another resolution gives 0.

    Returns:
        ``[*]``, float32 at least: means over the mask, 0 where it is. AlphaFold2 gives it a weight of 0.01
        (:data:`WEIGHTS`). Differentiable in the logits.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.6.

    Cost:
        That of :func:`paperops.lddt`, and N rows of logits.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import plddt_loss
        >>> ca = 10 * torch.randn(1, 20, 3)
        >>> plddt_loss(torch.zeros(1, 20, 50), ca, ca, torch.ones(1, 20))  # log(50)
        tensor([3.9120])
    """
    _logits(logits, 2, "[*, N, bins]")
    shape = tuple(logits.shape[:-1])
    for name, value in (("pred_positions", pred_positions), ("target_positions", target_positions)):
        _checks.vectors(name, value, 3, "one CA a residue", like=("pred_positions", pred_positions))
        if tuple(value.shape[:-1]) != shape:
            raise ValueError(
                f"{name} must have shape {[*shape, 3]} for logits of {list(logits.shape)}; got {list(value.shape)}"
            )
    _checks.mask_of("mask", _checks.tensor("mask", mask), shape, "residue", logits, "logits")
    batch, n, bins = math.prod(shape[:-1]), shape[-1], logits.shape[-1]
    counted = mask != 0
    scores = lddt(
        pred_positions.detach().reshape(batch, n, 3), target_positions.detach().reshape(batch, n, 3),
        counted.reshape(batch, n), cutoff, True,
    ).reshape(shape)  # fmt: skip
    label = (scores * bins).floor().clamp(max=bins - 1).to(torch.int64)
    loss = counted_mean(_cross_entropy(logits, label, counted), counted, 1)
    return loss * _resolved(resolution, min_resolution, max_resolution, logits, shape[:-1])


def aligned_error_loss(
    logits: Tensor,
    rotations: Tensor,
    translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    mask: Tensor,
    *,
    max_bin: float = 31.0,
    resolution: Tensor | None = None,
    min_resolution: float = 0.1,
    max_resolution: float = 3.0,
) -> Tensor:
    r"""Cross-entropy of predicted aligned errors with what they are.

    .. math:: e_{ij} = \| T_i^{-1} \circ t_j - T_i^{true\,-1} \circ t^{true}_j \|

    falls into bin :math:`\lceil e_{ij} / w \rceil` of width w = ``max_bin / (bins - 2)``, the last bin at most: bin 0
    is for errors of 0. (So AlphaFold2's code has it and so its weights were trained; the supplement rounds down.)

    Args:
        logits: ``[*, N, N, bins]``, of :class:`TMScoreHead`, 3 bins at least.
        rotations, translations: ``[*, N, 3, 3]`` and ``[*, N, 3]``, the predicted backbone frames, in Angstrom: of a
            :class:`Structure`, ``rotations[-1]`` and ``translations[-1]``. No gradient flows to them.
        target_rotations, target_translations: the true ones, of the same shapes.
        mask: ``[*, N]``, bool or floating, which residues have a true frame. What the others hold, in ``logits`` too,
            does not matter.
        max_bin: what is above goes into the last bin, in Angstrom.
        resolution: ``[*]``, of each sample's experiment, in Angstrom; None: all samples count.
        min_resolution, max_resolution: a sample of another resolution gives 0.

    Returns:
        ``[*]``, float32 at least: means over pairs of the mask, 0 where there is none. AlphaFold2 gives it a weight of
        0.1 (:data:`WEIGHTS`). Differentiable in the logits.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.7.

    Cost:
        In plain torch: 15 operations a pair for the errors, and their memory, 5 numbers a pair; the logits' logarithms
        of softmax are kept for the backward pass.

    Example:
        >>> import torch, paperops
        >>> from paperops.models.alphafold2 import aligned_error_loss
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, 5, 3))
        >>> aligned_error_loss(torch.zeros(1, 5, 5, 64), *frames, *frames, torch.ones(1, 5))  # log(64)
        tensor([4.1589])
    """
    _logits(logits, 3, "[*, N, N, bins]")
    if logits.shape[-3] != logits.shape[-2]:
        raise ValueError(f"logits must be square in its pair dimensions, [*, N, N, bins]; got {list(logits.shape)}")
    shape, bins = tuple(logits.shape[:-2]), logits.shape[-1]
    width = error_bin_width(max_bin, bins)
    _checks.frames("rotations", rotations, "translations", translations)
    _checks.frames("target_rotations", target_rotations, "target_translations", target_translations)
    for name, value in (("translations", translations), ("target_translations", target_translations)):
        if tuple(value.shape[:-1]) != shape:
            raise ValueError(
                f"{name} must have shape {[*shape, 3]} for logits of {list(logits.shape)}; got {list(value.shape)}"
            )
    _checks.mask_of("mask", _checks.tensor("mask", mask), shape, "residue", logits, "logits")
    counted = mask != 0
    with torch.no_grad():
        pred, true = (
            _in_each_frame(*frames, ~counted)
            for frames in ((rotations, translations), (target_rotations, target_translations))
        )
        error = torch.linalg.vector_norm(pred - true, dim=-1)  # [*, N, N]
        label = (error / width).ceil().clamp(max=bins - 1).to(torch.int64)
    pairs = counted[..., :, None] & counted[..., None, :]
    loss = counted_mean(_cross_entropy(logits, label, pairs), pairs, 2)
    return loss * _resolved(resolution, min_resolution, max_resolution, logits, shape[:-1])


def _cross_entropy(logits: Tensor, label: Tensor, counted: Tensor) -> Tensor:
    """-log softmax(logits) [*, bins] at label [*], float32 at least; what does not count may hold anything."""
    logits = wide(logits).masked_fill(~counted[..., None], 0)
    return -torch.log_softmax(logits, -1).gather(-1, label[..., None])[..., 0]


def _in_each_frame(rotations: Tensor, translations: Tensor, gone: Tensor) -> Tensor:
    """[*, N, N, 3]: the origin of frame j seen in frame i; 0 where either is gone."""
    rotations = wide(rotations).masked_fill(gone[..., None, None], 0)
    translations = wide(translations).masked_fill(gone[..., None], 0)
    return Frames(rotations, translations).invert_apply(
        translations[..., None, :, :].expand(*translations.shape[:-1], *translations.shape[-2:])
    )


def _logits(logits: Tensor, dims: int, shape: str) -> None:
    _checks.tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits must have a floating dtype; got {logits.dtype}")
    if logits.dim() < dims or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape {shape}; got {list(logits.shape)}")


def _resolved(
    resolution: Tensor | None, low: float, high: float, logits: Tensor, leading: tuple[int, ...]
) -> Tensor | float:
    """1 where a sample's resolution is between the bounds, else 0."""
    low, high = _checks.positive_number("min_resolution", low), _checks.positive_number("max_resolution", high)
    if resolution is None:
        return 1.0
    _checks.tensor("resolution", resolution)
    if tuple(resolution.shape) != leading or not resolution.is_floating_point():
        raise ValueError(
            f"resolution must be floating, of shape {list(leading)}, one a sample; "
            f"got {resolution.dtype} {list(resolution.shape)}"
        )
    return ((resolution >= low) & (resolution <= high)).to(wide(logits).dtype)
