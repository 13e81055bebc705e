"""AlphaFold2's structure module: from the single and the pair representation to atoms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperops.geometry import Frames, frames_to_atom14, torsions_to_frames
from paperops.models.alphafold2.transition import StructureModuleTransition
from paperops.nn import AngleResnet, BackboneUpdate, InvariantPointAttention
from paperops.nn.initialisation import lecun_normal
from paperops.nn.precision import check_dtype
from paperops.ops import _checks
from paperops.reference.nearest import result_dtype


class Structure(NamedTuple):
    """What the structure module gives. Lengths are in Angstrom; all but ``single`` have one entry a block."""

    rotations: Tensor
    """``[no_blocks, *, N, 3, 3]`` of the backbone frames."""
    translations: Tensor
    """``[no_blocks, *, N, 3]`` of the backbone frames."""
    frames: Tensor
    """``[no_blocks, *, N, 7]``: the same, each as a quaternion (w, x, y, z) and a translation."""
    sidechain_frames: Tensor
    """``[no_blocks, *, N, 8, 4, 4]``: the frames of all rigid groups, the backbone's first, as homogeneous matrices.

    A group that the residue lacks has a frame too, where AlphaFold2's code has a rotation of 0: losses mask it."""
    positions: Tensor
    """``[no_blocks, *, N, 14, 3]`` of the atoms."""
    angles: Tensor
    """``[no_blocks, *, N, 7, 2]``: (sin, cos) of omega, phi, psi and chi 1 to 4, of length 1."""
    unnormalized_angles: Tensor
    """``[no_blocks, *, N, 7, 2]``: the same, as the network gives them."""
    states: Tensor
    """``[no_blocks, *, N, c_s]``: the single representation after each block."""
    single: Tensor
    """``[*, N, c_s]``: that of the last block."""


class StructureModule(nn.Module):
    r"""From representations to backbone frames, torsion angles and atoms, in blocks that share their weights.

    In each block invariant point attention and a transition renew the single representation, which gives an update of
    each residue's backbone frame and seven torsion angles; angles, frames and ideal geometry place the atoms. Between
    blocks the rotations pass no gradient (line 20 of the algorithm).

    Args:
        c_s, c_z: channels of the single and the pair representation.
        c_ipa: channels of queries, keys and values of a head of the attention.
        c_resnet: channels of the network of angles.
        no_heads_ipa, no_qk_points, no_v_points: heads of the attention, and their query and value points.
        dropout_rate: after the attention and after the transition.
        no_blocks: times that the block is run.
        no_transition_layers: layers of the transition.
        no_resnet_blocks: blocks of the network of angles.
        no_angles: torsion angles of a residue: 7.
        trans_scale_factor: Angstroms in the unit of length inside.
        epsilon: under roots, in the attention and of the angles.
        inf: what a masked pair's logit loses where ``finite_mask``.
        is_multimer: AlphaFold-Multimer's projections in the attention, or the monomer model's.
        finite_mask: False: a masked residue attends to nothing, is attended by none, may hold anything, NaN too, and
            its results are 0: representations, angles and atoms; its frames are the identity, at the origin. True: as
            in AlphaFold2 and OpenFold, where it attends to everything and has results; nothing then may be NaN.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``layer_norm_s``, ``layer_norm_z``, ``linear_in``, ``ipa``, ``layer_norm_ipa``,
    ``transition``, ``bb_update``, ``angle_resnet``. Its checkpoints load with ``strict=True``. They start as in
    AlphaFold2, with updates that are the identity.

    Shapes:
        ``forward(s, z, aatype, mask=None, *, initial=None)``: s ``[*, N, c_s]``; z ``[*, N, N, c_z]``; aatype
        ``[*, N]``, integers from 0 to 20 in the order of :data:`paperops.residues.LETTERS`, 20 unknown; mask
        ``[*, N]``, bool or floating, 1 = keep; initial, frames of ``[*, N]`` in Angstrom to start from, the identity
        by default. Returns a :class:`Structure`.

    Frames, angles and atoms are float32 at least, under autocast too. The frames are kept as quaternions of length 1,
    so that the rotations of every block are orthogonal to rounding. Moving ``initial`` moves the result alike.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named; a type of residue outside 0 to 20 (looked for
            on a CPU only).

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 20; Evans et al. (AlphaFold-Multimer), 2022.

    Cost:
        That of ``no_blocks`` attentions (:func:`paperops.invariant_point_attention`: z is read once in each, and no
        tensor of N x N x heads is made); all else grows as N. With a mask z is copied once more.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import StructureModule
        >>> module = StructureModule(c_s=16, c_z=8, c_ipa=4, c_resnet=8, no_heads_ipa=2, no_blocks=3)
        >>> s, z, aatype = torch.randn(1, 5, 16), torch.randn(1, 5, 5, 8), torch.randint(0, 20, (1, 5))
        >>> structure = module(s, z, aatype)
        >>> structure.positions.shape, structure.frames.shape, structure.single.shape
        (torch.Size([3, 1, 5, 14, 3]), torch.Size([3, 1, 5, 7]), torch.Size([1, 5, 16]))
    """

    def __init__(
        self,
        c_s: int = 384,
        c_z: int = 128,
        c_ipa: int = 16,
        c_resnet: int = 128,
        no_heads_ipa: int = 12,
        no_qk_points: int = 4,
        no_v_points: int = 8,
        dropout_rate: float = 0.1,
        no_blocks: int = 8,
        no_transition_layers: int = 1,
        no_resnet_blocks: int = 2,
        no_angles: int = 7,
        trans_scale_factor: float = 10,
        epsilon: float = 1e-8,
        inf: float = 1e5,
        is_multimer: bool = False,
        *,
        finite_mask: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.c_s, self.c_z = _checks.positive_int("c_s", c_s), _checks.positive_int("c_z", c_z)
        self.no_blocks = _checks.positive_int("no_blocks", no_blocks)
        if _checks.positive_int("no_angles", no_angles) != 7:
            raise ValueError(f"no_angles must be 7, omega, phi, psi and chi 1 to 4; got {no_angles}")
        self.trans_scale_factor = _checks.positive_number("trans_scale_factor", trans_scale_factor)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_norm_s = nn.LayerNorm(self.c_s, **made)
        self.layer_norm_z = nn.LayerNorm(self.c_z, **made)
        self.linear_in = nn.Linear(self.c_s, self.c_s, **made)
        self.ipa = InvariantPointAttention(
            c_s, c_z, c_ipa, no_heads_ipa, no_qk_points, no_v_points, inf, epsilon, is_multimer,
            finite_mask=finite_mask, **made,
        )  # fmt: skip
        self.ipa_dropout = nn.Dropout(_checks.probability("dropout_rate", dropout_rate))
        self.layer_norm_ipa = nn.LayerNorm(self.c_s, **made)
        self.transition = StructureModuleTransition(c_s, no_transition_layers, dropout_rate, **made)
        self.bb_update = BackboneUpdate(c_s, **made)
        self.angle_resnet = AngleResnet(c_s, c_resnet, no_resnet_blocks, no_angles, epsilon, **made)
        lecun_normal(self.linear_in)

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        for layer in (self.layer_norm_s, self.layer_norm_z, self.layer_norm_ipa):
            layer.reset_parameters()
        lecun_normal(self.linear_in)
        for part in (self.ipa, self.transition, self.bb_update, self.angle_resnet):
            part.reset_parameters()

    def forward(
        self, s: Tensor, z: Tensor, aatype: Tensor, mask: Tensor | None = None, *, initial: Frames | None = None
    ) -> Structure:
        """The :class:`Structure` of s, z and the types of residues, see the class."""
        aatype, valid = self._check(s, z, aatype, mask, initial)
        gone = None if valid is None or self.ipa.finite_mask else ~valid  # [*, N]
        quaternions, translations = self._start(s, initial, gone)
        if gone is not None:  # what does not exist may hold anything
            s = s.masked_fill(gone[..., None], 0)
            z = z.masked_fill((gone[..., :, None] | gone[..., None, :])[..., None], 0)
        dtype = self.linear_in.weight.dtype  # autocast's layers take from s what they need; the sums keep its digits
        s_initial = self.layer_norm_s(s.to(dtype))
        z = self.layer_norm_z(z if dtype == torch.float32 else z.to(dtype))
        s = self.linear_in(s_initial).to(dtype)

        blocks: list[tuple[Tensor, ...]] = []
        for _ in range(self.no_blocks):
            before = Frames.from_quaternion(quaternions, translations)
            s = s + self.ipa(s, z, *before, mask)
            s = self.transition(self.layer_norm_ipa(self.ipa_dropout(s)))
            turn, shift = self.bb_update.quaternions(s)
            quaternions = _unit(_product(quaternions, turn))
            translations = before.apply(shift)
            blocks.append((quaternions, translations, *self.angle_resnet(s, s_initial), s))
            quaternions = quaternions.detach()
        quaternions, translations, raw, angles, states = (torch.stack(parts) for parts in zip(*blocks, strict=True))
        return self._structure(aatype, quaternions, translations, raw, angles, states, gone)

    def _start(self, s: Tensor, initial: Frames | None, gone: Tensor | None) -> tuple[Tensor, Tensor]:
        """Quaternions [*, N, 4] and translations [*, N, 3], in the unit of length inside."""
        dtype = result_dtype(self.linear_in.weight.dtype)
        if initial is None:
            translations = torch.zeros((*s.shape[:-1], 3), dtype=dtype, device=s.device)
            return torch.cat([torch.ones_like(translations[..., :1]), translations], -1), translations
        rotations, translations = (value.to(dtype) for value in initial)
        if gone is not None:
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            rotations = torch.where(gone[..., None, None], identity, rotations)
            translations = translations.masked_fill(gone[..., None], 0)
        translations = translations / self.trans_scale_factor
        return Frames(rotations, translations).to_quaternion(), translations

    def _structure(
        self, aatype: Tensor, quaternions: Tensor, translations: Tensor, raw: Tensor, angles: Tensor, states: Tensor,
        gone: Tensor | None,
    ) -> Structure:  # fmt: skip
        """Atoms of the stacked blocks, and what a masked residue has instead."""
        translations = translations * self.trans_scale_factor
        if gone is not None:
            away = gone[..., None]
            one = torch.eye(4, dtype=quaternions.dtype, device=quaternions.device)[0]
            quaternions = torch.where(away, one, quaternions)
            translations, states = translations.masked_fill(away, 0), states.masked_fill(away, 0)
            raw, angles = (value.masked_fill(away[..., None], 0) for value in (raw, angles))
        rotations, _ = Frames.from_quaternion(quaternions)
        aatype = aatype.expand(self.no_blocks, *aatype.shape)
        groups = torsions_to_frames(aatype, rotations, translations, angles)  # [no_blocks, *, N, 8]
        positions = frames_to_atom14(aatype, *groups)  # [no_blocks, *, N, 14, 3]
        matrices = _homogeneous(groups)
        if gone is not None:
            positions = positions.masked_fill(gone[..., None, None], 0)
            identity = torch.eye(4, dtype=matrices.dtype, device=matrices.device)
            matrices = torch.where(gone[..., None, None, None], identity, matrices)
        frames = torch.cat([quaternions, translations], -1)
        return Structure(rotations, translations, frames, matrices, positions, angles, raw, states, states[-1])

    def _check(
        self, s: Tensor, z: Tensor, aatype: Tensor, mask: Tensor | None, initial: Frames | None
    ) -> tuple[Tensor, Tensor | None]:
        """The types, as int64, and the mask, as bool, once all arguments are known to fit."""
        _checks.vectors("s", s, self.c_s, f"c_s = {self.c_s} channels")
        check_dtype("s", s, self.linear_in.weight)
        if s.dim() < 2:
            raise ValueError(f"s must have shape [*, N, {self.c_s}]; got {list(s.shape)}")
        _checks.pair("z", z)
        check_dtype("z", z, self.linear_in.weight)
        shape = (*s.shape[:-1], s.shape[-2], self.c_z)
        if z.shape != shape:
            raise ValueError(f"z must have shape {list(shape)} for s of {list(s.shape)}; got {list(z.shape)}")
        aatype = _checks.residue_types("aatype", aatype, s.shape[:-1], s, "s")
        if initial is not None:
            if not isinstance(initial, Frames):
                raise TypeError(f"initial must be a paperops.geometry.Frames; got {type(initial).__name__}")
            _checks.frames("initial.rotations", initial.rotations, "initial.translations", initial.translations)
            parameters = self.linear_in.weight.dtype
            if result_dtype(initial.rotations.dtype) != result_dtype(parameters):
                raise TypeError(f"initial of {initial.rotations.dtype} does not go with parameters of {parameters}")
            if initial.translations.shape[:-1] != s.shape[:-1]:
                raise ValueError(
                    f"initial must have shape {list(s.shape[:-1])} for s of {list(s.shape)}; "
                    f"got {list(initial.translations.shape[:-1])}"
                )
            if initial.translations.device != s.device:
                raise ValueError(f"initial must be on the device of s, {s.device}; got {initial.translations.device}")
        return aatype, _checks.residue_mask("mask", mask, s.shape[:-1], s, "s")

    def extra_repr(self) -> str:
        return f"c_s={self.c_s}, c_z={self.c_z}, no_blocks={self.no_blocks}"


def _product(p: Tensor, q: Tensor) -> Tensor:
    """Quaternions [*, 4] of the rotations p after q."""
    a, b, c, d = p.unbind(-1)
    w, x, y, z = q.unbind(-1)
    parts = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return torch.stack(parts, -1)


def _unit(quaternions: Tensor) -> Tensor:
    return quaternions / torch.linalg.vector_norm(quaternions, dim=-1, keepdim=True)


def _homogeneous(frames: Frames) -> Tensor:
    """[*, 4, 4] matrices (R, t; 0, 1)."""
    upper = torch.cat([frames.rotations, frames.translations[..., None]], -1)  # [*, 3, 4]
    lower = torch.eye(4, dtype=upper.dtype, device=upper.device)[3]
    return torch.cat([upper, lower.expand(*upper.shape[:-2], 1, 4)], -2)
