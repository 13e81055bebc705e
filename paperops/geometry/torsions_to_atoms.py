"""From torsion angles to the frames of the rigid groups, and from these to atoms (AlphaFold2 supplement, 1.8.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops import residues
from paperops.geometry.frames import Frames
from paperops.ops import _checks
from paperops.reference.nearest import result_dtype

GROUPS = 8


def torsions_to_frames(aatype: Tensor, rotations: Tensor, translations: Tensor, torsions: Tensor) -> Frames:
    r"""The frames of a residue's eight rigid groups, from its backbone's frame and its torsion angles.

    .. math::

        T_g = T_{p(g)} \circ T^{lit}_{r, g} \circ R_x(\hat\alpha_g), \qquad \hat\alpha = \alpha / |\alpha|

    Group 0 is the backbone, groups 1 to 7 are turned by omega, phi, psi and chi1 to chi4. The parent p(g) is the
    backbone, and for chi2 to chi4 the group of the chi before.

    Args:
        aatype: ``[*]``, the residues' types in the order of :data:`paperops.residues.LETTERS`, 20 for unknown, integer.
        rotations: ``[*, 3, 3]``, of the backbone's frames, from local to global.
        translations: ``[*, 3]``, of the backbone's frames, in Angstrom, of the rotations' dtype.
        torsions: ``[*, 7, 2]``, (sin, cos) of omega, phi, psi, chi1 to chi4, of any length: they are normalised. (0, 0)
            stands for an angle of 0, without a gradient. For a chi that the residue lacks, the turn of an identity.

    Returns:
        :class:`Frames` ``[*, 8]``, float64 if an input is and float32 otherwise; differentiable in all three.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20 (where that can be read
            without waiting for a device).

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 24, lines 1 to 10, and Algorithm 25.

    Cost:
        About 500 operations a residue, in plain torch.

    Example:
        >>> import torch, paperops
        >>> aatype = torch.tensor([paperops.residues.LETTERS.index(letter) for letter in "GW"])
        >>> backbone = paperops.geometry.Frames.identity(2)
        >>> torsions = torch.tensor([0.0, -1.0]).expand(2, 7, 2)  # all of 180 degrees
        >>> frames = paperops.geometry.torsions_to_frames(aatype, *backbone, torsions)
        >>> paperops.geometry.frames_to_atom14(aatype, *frames).shape
        torch.Size([2, 14, 3])
    """
    _checks.frames("rotations", rotations, "translations", translations)
    _checks.vectors("torsions", torsions, 2, "(sin, cos) each")
    shape = tuple(translations.shape[:-1])
    if tuple(torsions.shape) != (*shape, GROUPS - 1, 2):
        raise ValueError(f"torsions must have shape {[*shape, GROUPS - 1, 2]}; got {list(torsions.shape)}")
    if torsions.device != rotations.device:
        raise ValueError(f"torsions must be on the device of rotations, {rotations.device}; got {torsions.device}")
    aatype = _checks.residue_types("aatype", aatype, shape, rotations, "rotations")

    dtype = result_dtype(torch.promote_types(rotations.dtype, torsions.dtype))
    tables = residues.tables(rotations.device, dtype)
    backbone = Frames(rotations.to(dtype), translations.to(dtype))
    sine, cosine = _of_length_1(torsions.to(dtype))[..., None, :].unbind(-1)  # [*, 7, 1]
    literature = tables.frame_rotations[aatype][..., 1:, :, :]  # [*, 7, 3, 3]
    x, y, z = literature.unbind(-1)
    turned = torch.stack([x, cosine * y + sine * z, cosine * z - sine * y], -1)  # literature @ R_x
    origins = tables.frame_translations[aatype][..., 1:, :]

    on_backbone = backbone.unsqueeze(-1).compose(Frames(turned[..., :4, :, :], origins[..., :4, :]))  # omega to chi1
    chain = [Frames(on_backbone.rotations[..., 3, :, :], on_backbone.translations[..., 3, :])]
    for group in (4, 5, 6):  # chi2 to chi4
        chain.append(chain[-1].compose(Frames(turned[..., group, :, :], origins[..., group, :])))
    return Frames(
        torch.cat(
            [backbone.rotations[..., None, :, :], on_backbone.rotations]
            + [frame.rotations[..., None, :, :] for frame in chain[1:]],
            -3,
        ),
        torch.cat(
            [backbone.translations[..., None, :], on_backbone.translations]
            + [frame.translations[..., None, :] for frame in chain[1:]],
            -2,
        ),
    )


def _of_length_1(torsions: Tensor) -> Tensor:
    """(sin, cos) of length 1; (0, 1) for (0, 0)."""
    largest = torsions.detach().abs().amax(-1, keepdim=True)  # divided by first: squares may overflow or vanish
    zero = largest == 0
    scaled = torsions / largest.masked_fill(zero, 1)
    angle_0 = torch.stack([torch.zeros_like(scaled[..., 0]), torch.ones_like(scaled[..., 1])], -1)
    scaled = torch.where(zero, angle_0, scaled)
    return scaled / torch.sqrt(scaled.square().sum(-1, keepdim=True))


def frames_to_atom14(aatype: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    r"""The positions of a residue's atoms, each placed by the frame of its rigid group.

    .. math:: x_a = T_{g(r, a)} \circ x^{lit}_{r, a}

    Args:
        aatype: ``[*]``, the residues' types, 0 to 20, integer.
        rotations: ``[*, 8, 3, 3]``, of the rigid groups' frames, as :func:`torsions_to_frames` gives them.
        translations: ``[*, 8, 3]``, of the same, in Angstrom.

    Returns:
        ``[*, 14, 3]``, in Angstrom, in the order of :data:`paperops.residues.ATOM14`; 0 where there is no atom. float64
        for float64 frames and float32 otherwise; differentiable in the frames, by sums of a fixed order.

    Raises:
        TypeError, ValueError: as :func:`torsions_to_frames`.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 24, lines 11 to 13.

    Cost:
        8 x 14 points a residue, of which 14 are kept, in plain torch.

    Example:
        >>> import torch, paperops
        >>> glycine = torch.tensor([paperops.residues.LETTERS.index("G")])
        >>> frames = paperops.geometry.Frames.identity(1, 8)
        >>> paperops.geometry.frames_to_atom14(glycine, *frames)[0, 1]  # CA, the backbone's origin
        tensor([0., 0., 0.])
    """
    _checks.frames("rotations", rotations, "translations", translations)
    if translations.dim() < 2 or translations.shape[-2] != GROUPS:
        raise ValueError(
            f"rotations must have shape [*, {GROUPS}, 3, 3], one frame a rigid group; got {list(rotations.shape)}"
        )
    aatype = _checks.residue_types("aatype", aatype, tuple(translations.shape[:-2]), rotations, "rotations")
    dtype = result_dtype(rotations.dtype)
    tables = residues.tables(rotations.device, dtype)
    local = tables.atom14_positions[aatype][..., None, :, :]  # [*, 1, 14, 3]
    placed = Frames(rotations.to(dtype), translations.to(dtype))
    every = Frames(placed.rotations, placed.translations).apply(local.expand(*placed.translations.shape[:-1], 14, 3))
    # A gather's derivative would add up in no fixed order.
    groups = torch.arange(GROUPS, device=rotations.device)[:, None]
    mine = (tables.atom14_group[aatype][..., None, :] == groups) & tables.atom14_exists[aatype][..., None, :]
    return every.masked_fill(~mine[..., None], 0).sum(-3)  # [*, 8, 14, 3] -> [*, 14, 3]
