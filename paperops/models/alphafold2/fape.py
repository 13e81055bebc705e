"""AlphaFold2's two uses of the frame aligned point error: backbones over all blocks, and side chains at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.ops import _checks, frame_aligned_point_error, frame_aligned_point_error_terms


def backbone_fape(
    rotations: Tensor,
    translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    mask: Tensor,
    *,
    asym_id: Tensor | None = None,
    clamped_share: float | Tensor = 1.0,
    length_scale: float = 10.0,
    l1_clamp_distance: float = 10.0,
    between_length_scale: float = 20.0,
    between_l1_clamp_distance: float = 30.0,
    eps: float = 1e-4,
) -> Tensor:
    r"""The frame aligned point error of the backbones of all blocks: every residue's CA in every residue's frame.

    .. math:: \mathrm{mean}_l \big( c\, \mathrm{FAPE}_{clamped}(T^l, t^l) + (1 - c)\, \mathrm{FAPE}(T^l, t^l) \big)

    With ``asym_id`` it is the sum of two such terms, of pairs within and pairs between chains.

    Args:
        rotations, translations: ``[blocks, *, N, 3, 3]`` and ``[blocks, *, N, 3]``, the predicted frames, in Angstrom:
            of a :class:`Structure`.
        target_rotations, target_translations: ``[*, N, 3, 3]`` and ``[*, N, 3]``, the true ones: group 0 of
            :func:`paperops.geometry.atom37_to_frames`.
        mask: ``[*, N]``, bool or floating, which residues have a true frame. What the others hold does not matter.
        asym_id: ``[*, N]``, the number of each residue's chain.
        clamped_share: c, a number or one for each sample, ``[*]``, from 0 to 1. AlphaFold2 draws it for each sample
            (OpenFold's ``use_clamped_fape``): 1 in nine of ten, else 0; AlphaFold-Multimer has 1.
        length_scale, l1_clamp_distance: by which the error is divided, and beyond which it is clamped, in Angstrom.
        between_length_scale, between_l1_clamp_distance: those of pairs between chains.
        eps: under the root and in the denominators.

    Returns:
        ``[*]``; AlphaFold2 gives it a weight of 0.5 (:data:`WEIGHTS`). Differentiable in all frames, without memory for
        pairs: see :func:`paperops.frame_aligned_point_error_terms`.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 20, line 17, Algorithm 28, and 1.11.5 (clamping); Evans
        et al. (AlphaFold-Multimer), 2022 (chains).

    Example:
        >>> import torch
        >>> from paperops.geometry import Frames
        >>> from paperops.models.alphafold2 import backbone_fape
        >>> true = Frames.from_three_points(*torch.randn(3, 1, 6, 3))
        >>> blocks = [value.expand(8, *value.shape) for value in true]
        >>> backbone_fape(*blocks, *true, torch.ones(1, 6))  # sqrt(eps) / 10
        tensor([0.0010])
    """
    _checks.frames("rotations", rotations, "translations", translations)
    _checks.frames("target_rotations", target_rotations, "target_translations", target_translations)
    if translations.dim() < 3 or translations.shape[0] == 0:
        raise ValueError(f"translations must have shape [blocks, *, N, 3]; got {list(translations.shape)}")
    if translations.shape[1:] != target_translations.shape:
        raise ValueError(
            f"target_translations must have shape {list(translations.shape[1:])}, one for each residue of "
            f"translations; got {list(target_translations.shape)}"
        )
    _checks.mask_of(
        "mask", _checks.tensor("mask", mask), translations.shape[1:-1], "residue", translations, "translations"
    )
    if asym_id is not None and tuple(_checks.tensor("asym_id", asym_id).shape) != tuple(mask.shape):
        raise ValueError(f"asym_id must have shape {list(mask.shape)}, one chain a residue; got {list(asym_id.shape)}")
    share = _share(clamped_share, translations)
    found = frame_aligned_point_error_terms(
        rotations, translations, target_rotations, target_translations, mask, translations, target_translations, mask,
        asym_id, asym_id, length_scale=length_scale, l1_clamp_distance=l1_clamp_distance,
        between_length_scale=between_length_scale, between_l1_clamp_distance=between_l1_clamp_distance,
        clamped_weight=share, unclamped_weight=1 - share, between_clamped_weight=share,
        between_unclamped_weight=1 - share, eps=eps,
    )  # fmt: skip
    return found.loss.mean(0)


def sidechain_fape(
    sidechain_frames: Tensor,
    positions: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    frames_mask: Tensor,
    target_positions: Tensor,
    positions_mask: Tensor,
    *,
    length_scale: float = 10.0,
    l1_clamp_distance: float = 10.0,
    eps: float = 1e-4,
) -> Tensor:
    """The frame aligned point error of all atoms in the frames of all rigid groups.

    Args:
        sidechain_frames: ``[*, N, 8, 4, 4]``, the predicted frames: of a :class:`Structure`, ``sidechain_frames[-1]``.
        positions: ``[*, N, 14, 3]``, the predicted atoms, in Angstrom: ``positions[-1]``.
        target_rotations, target_translations: ``[*, N, 8, 3, 3]`` and ``[*, N, 8, 3]``, the true frames
            (:func:`paperops.geometry.atom37_to_frames`; the alternative rotations where
            :func:`rename_symmetric_atoms` says so).
        frames_mask: ``[*, N, 8]``, bool or floating, which of them there are. What the others hold does not matter.
        target_positions, positions_mask: ``[*, N, 14, 3]`` and ``[*, N, 14]``, the true atoms, renamed.
        length_scale, l1_clamp_distance: by which the error is divided, and beyond which it is clamped, in Angstrom.
        eps: under the root and in the denominators.

    Returns:
        ``[*]``; AlphaFold2 gives it a weight of 0.5 (:data:`WEIGHTS`). Differentiable, without memory for pairs: see
        :func:`paperops.frame_aligned_point_error`.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 20, line 28, and Algorithm 28.

    Example:
        >>> import torch, paperops
        >>> from paperops.models.alphafold2 import sidechain_fape
        >>> atoms, there = torch.randn(1, 5, 14, 3), torch.ones(1, 5, 14)
        >>> frames = paperops.geometry.Frames.identity(1, 5, 8)
        >>> matrices = torch.eye(4).expand(1, 5, 8, 4, 4)
        >>> sidechain_fape(matrices, atoms + 100, *frames, torch.ones(1, 5, 8), atoms, there)
        tensor([1.0000])
    """
    _checks.tensor("sidechain_frames", sidechain_frames)
    if sidechain_frames.dim() < 4 or tuple(sidechain_frames.shape[-3:]) != (8, 4, 4):
        raise ValueError(f"sidechain_frames must have shape [*, N, 8, 4, 4]; got {list(sidechain_frames.shape)}")
    shape = tuple(sidechain_frames.shape[:-3])  # [*, N]
    _checks.frames("target_rotations", target_rotations, "target_translations", target_translations)
    for name, value, per in (
        ("positions", positions, (14, 3)), ("target_translations", target_translations, (8, 3)),
        ("frames_mask", frames_mask, (8,)), ("target_positions", target_positions, (14, 3)),
        ("positions_mask", positions_mask, (14,)),
    ):  # fmt: skip
        if tuple(_checks.tensor(name, value).shape) != (*shape, *per):
            raise ValueError(
                f"{name} must have shape {[*shape, *per]} for sidechain_frames of {list(sidechain_frames.shape)}; "
                f"got {list(value.shape)}"
            )
    pred_rotations, pred_translations = sidechain_frames[..., :3, :3], sidechain_frames[..., :3, 3]

    def groups(value: Tensor, dims: int) -> Tensor:  # [*, N, 8 or 14, ...] -> [*, 8 N or 14 N, ...]
        return value.flatten(-2 - dims, -1 - dims)

    return frame_aligned_point_error(
        groups(pred_rotations, 2), groups(pred_translations, 1), groups(target_rotations, 2),
        groups(target_translations, 1), groups(frames_mask, 0), groups(positions, 1), groups(target_positions, 1),
        groups(positions_mask, 0), length_scale, None, l1_clamp_distance, eps,
    )  # fmt: skip


def _share(value: float | Tensor, translations: Tensor) -> float | Tensor:
    """clamped_share, once it is known to be right."""
    if not isinstance(value, Tensor):
        return _checks.probability("clamped_share", value)
    if tuple(value.shape) != tuple(translations.shape[1:-2]) or not value.is_floating_point():
        raise ValueError(
            f"clamped_share must be a number or floating, of shape {list(translations.shape[1:-2])}, one a sample; "
            f"got {value.dtype} {list(value.shape)}"
        )
    if value.numel() and _checks.values_are_free(value):
        low, high = (float(bound) for bound in value.detach().aminmax())
        if not (0 <= low and high <= 1):
            raise ValueError(f"clamped_share must be from 0 to 1; got {low if not 0 <= low else high}")
    return value.to(torch.promote_types(value.dtype, torch.float32))
