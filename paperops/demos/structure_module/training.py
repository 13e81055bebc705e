"""The structure module, fitted to one structure from representations that know nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import paperops
from paperops.geometry import Atoms, Frames, atom37_to_atom14, atom37_to_frames
from paperops.models import alphafold2
from paperops.structures import Chain

ANGSTROM = 10.0  # by which FAPE is divided


class Plan(NamedTuple):
    """Sizes and steps. AlphaFold2's: 384 and 128 channels, 12 heads, 8 blocks."""

    c_s: int = 128
    c_z: int = 32
    c_ipa: int = 16
    heads: int = 4
    blocks: int = 3
    steps: int = 900  # at most
    learning_rate: float = 2e-3
    last_learning_rate: float = 4e-5
    warm_up: int = 50
    enough: float = 0.5  # stop once the backbone's FAPE is below, in Angstrom


class Target(NamedTuple):
    """The true structure, with its centre at the origin, as one sample."""

    aatype: Tensor  # [1, N]
    residue_index: Tensor  # [1, N]
    positions: Tensor  # [1, N, 37, 3]
    mask: Tensor  # [1, N, 37]
    atoms: Atoms  # [1, N, 14]
    backbone: Frames  # [1, N]
    resolved: Tensor  # [1, N], bool: which residues have a backbone frame


class Fit(NamedTuple):
    """How the training went, and what it led to."""

    structure: alphafold2.Structure
    plddt: Tensor  # [N], the head's
    losses: dict[str, list[float]]  # "loss", "backbone", "sidechain", "torsion", of each step
    fape: list[float]  # of the last block's backbone, without a clamp, in Angstrom, of each step


def target_of(chain: Chain) -> Target:
    """What the losses compare with. Raises ValueError where fewer than 3 residues have a backbone."""
    centre = chain.positions[chain.mask].mean(0)
    positions, mask, aatype = (chain.positions - centre).float()[None], chain.mask[None], chain.aatype[None]
    groups = atom37_to_frames(aatype, positions, mask)
    target = Target(
        aatype, chain.residue_index[None], positions, mask, atom37_to_atom14(aatype, positions, mask),
        Frames(groups.rotations[:, :, 0], groups.translations[:, :, 0]), groups.mask[:, :, 0],
    )  # fmt: skip
    if (count := int((target.resolved & target.atoms.mask.any(-1)).sum())) < 3:
        of = "residues of a known type with N, CA and C"
        raise ValueError(f"chain {chain.name} has {count} {of}; the demonstration takes 3 at least")
    return target


class Folder(nn.Module):
    """Fixed random numbers for each residue and pair, learned embeddings of them, and the structure module."""

    noise: Tensor
    pair_noise: Tensor

    def __init__(self, residues: int, plan: Plan) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(1, residues, 64))
        self.register_buffer("pair_noise", torch.randn(1, residues, residues, 16))
        self.embed_single, self.embed_pair = nn.Linear(64, plan.c_s), nn.Linear(16, plan.c_z)
        self.structure_module = alphafold2.StructureModule(
            c_s=plan.c_s, c_z=plan.c_z, c_ipa=plan.c_ipa, c_resnet=64, no_heads_ipa=plan.heads, no_blocks=plan.blocks,
            dropout_rate=0.0,
        )  # fmt: skip
        self.plddt = alphafold2.PerResidueLDDTCaPredictor(50, plan.c_s, 64)

    def forward(self, aatype: Tensor) -> tuple[alphafold2.Structure, Tensor]:
        """The structure and the logits of its confidence."""
        single, pair = self.embed_single(self.noise), self.embed_pair(self.pair_noise)
        structure = self.structure_module(single, pair, aatype)
        return structure, self.plddt(structure.single)


def train(target: Target, plan: Plan, tick: Callable[[float], None]) -> Fit:
    """Fit a new model to the target; ``tick`` is called after each step with the backbone's FAPE."""
    folder = Folder(target.aatype.shape[1], plan)
    optimizer = torch.optim.Adam(folder.parameters(), lr=plan.learning_rate)
    losses: dict[str, list[float]] = {name: [] for name in ("loss", "backbone", "sidechain", "torsion")}
    errors: list[float] = []
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, plan)
        structure, logits = folder(target.aatype)
        found = _losses(structure, logits, target)
        errors.append(backbone_error(structure, target))
        for name, history in losses.items():
            history.append(getattr(found, name).item())
        tick(errors[-1])
        if errors[-1] < plan.enough:
            break
        optimizer.zero_grad()
        found.loss.sum().backward()
        nn.utils.clip_grad_norm_(folder.parameters(), 1.0)
        optimizer.step()
    else:  # the last step has changed the weights once more
        with torch.no_grad():
            structure, logits = folder(target.aatype)
        errors.append(backbone_error(structure, target))
    detached = alphafold2.Structure(*(value.detach() for value in structure))
    return Fit(detached, alphafold2.compute_plddt(logits.detach())[0], losses, errors)


def _learning_rate(step: int, plan: Plan) -> float:
    """Up in a line, then down by the same factor a step."""
    decayed = (plan.last_learning_rate / plan.learning_rate) ** (step / plan.steps)
    return plan.learning_rate * min(1.0, (step + 1) / plan.warm_up) * decayed


def _losses(structure: alphafold2.Structure, logits: Tensor, target: Target) -> alphafold2.StructureLoss:
    """AlphaFold2's, but for the clamp of the backbone's: from random representations most errors lie beyond it."""
    return alphafold2.structure_loss(
        structure, target.aatype, target.positions, target.mask, target.residue_index, clamped_share=0.0,
        plddt_logits=logits, weights=alphafold2.WEIGHTS._replace(violation=0.0),
    )  # fmt: skip


@torch.no_grad()
def backbone_error(structure: alphafold2.Structure, target: Target) -> float:
    """FAPE of the last block's backbone, without a clamp, in Angstrom."""
    loss = alphafold2.backbone_fape(
        structure.rotations[-1:], structure.translations[-1:], *target.backbone, target.resolved, clamped_share=0.0,
        length_scale=1.0,
    )  # fmt: skip
    return loss.item()


class Scores(NamedTuple):
    """How near the prediction is to the target."""

    fape: float  # of the backbone, in Angstrom
    sidechain_fape: float  # of all atoms in all groups' frames, in Angstrom
    lddt: float
    rmsd: float  # of CA, after superposition, in Angstrom
    violations: int  # residues with one
    true_violations: int  # of the target itself
    clashes: float  # mean overlap, in Angstrom


@torch.no_grad()
def score(structure: alphafold2.Structure, target: Target) -> Scores:
    """The scores of the last block."""
    atoms, alpha, resolved = structure.positions[-1], target.backbone.translations, target.resolved
    losses = alphafold2.structure_loss(
        structure, target.aatype, target.positions, target.mask, target.residue_index, clamped_share=0.0
    )
    moved = superposed(structure.translations[-1][0], alpha[0], resolved[0])
    found = [
        paperops.structural_violations(places, target.atoms.mask, target.aatype, target.residue_index)
        for places in (atoms, target.atoms.positions)
    ]
    return Scores(
        fape=backbone_error(structure, target),
        sidechain_fape=losses.sidechain.item() * ANGSTROM,
        lddt=paperops.lddt(structure.translations[-1], alpha, resolved).item(),
        rmsd=(moved - alpha[0])[resolved[0]].square().sum(-1).mean().sqrt().item(),
        violations=int(found[0].per_residue_violation_mask.sum()),
        true_violations=int(found[1].per_residue_violation_mask.sum()),
        clashes=found[0].clash_mean_loss.item(),
    )


def superposed(points: Tensor, onto: Tensor, mask: Tensor) -> Tensor:
    """Points ``[N, 3]`` turned and moved so that those of the mask ``[N]`` are nearest to the others (Kabsch)."""
    centre, other = points[mask].mean(0), onto[mask].mean(0)
    left, _, right = torch.linalg.svd((points[mask] - centre).T @ (onto[mask] - other))
    sign = torch.ones(3, dtype=points.dtype)
    sign[2] = torch.det(left @ right).sign()
    return (points - centre) @ (left * sign) @ right + other
