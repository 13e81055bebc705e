"""What one writes without a library: plain torch, eager."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    grid_sample,
    layer_norm,
    linear,
    max_pool2d,
    pad,
    relu,
    softplus,
)

from paperops import residues

from .. import unfolded
from . import NotComparable

NAME = "torch eager"
UNASKED = ("cpu", "cuda")


def available(device: torch.device) -> str | None:
    return None


def memory(op: str, arguments: dict[str, Any]) -> int:
    """The matrix of distances [B, N, M], once, and for the backward pass once more; or the differences of points."""
    if "q_points" in arguments:  # [B, N, N, H, Pq, 3] and its square
        points = arguments["q_points"]
        return 2 * points.numel() * points.shape[1] * points.element_size()
    if op.startswith("frame_aligned"):  # points in frames, predicted and true, [B, F, P, 3], and their difference
        positions, frames = arguments["pred_positions"], arguments["frames_mask"]
        passes = 5 if positions.requires_grad else 3  # its square root's and its own gradient
        return passes * positions.numel() * frames.shape[-1] * positions.element_size()
    if op == "lddt":  # differences [B, N, N, 3] and their squares
        positions = arguments["pred_positions"]
        return 2 * positions.numel() * positions.shape[1] * positions.element_size()
    if op == "predicted_tm_score":  # probabilities, and their products with the scores of bins
        return (4 if arguments["logits"].requires_grad else 2) * arguments["logits"].nbytes
    if op == "structural_violations":  # tensors [B, N, N, 14, 14], several times
        positions = arguments["positions"]
        tensors = 16 if positions.requires_grad else 12
        return tensors * positions.shape[0] * (14 * positions.shape[1]) ** 2 * positions.element_size()
    if op in ("local_attention_2d", "shift_conv_2d", "acmix"):
        return unfolded.memory(op, arguments)
    if "x" not in arguments or "y" not in arguments:
        return 0  # not an op on pairs
    x, y = arguments["x"], arguments["y"]
    passes = 2 if x.requires_grad else 1
    return passes * x.shape[0] * x.shape[1] * y.shape[1] * x.element_size()


def knn(x: Tensor, y: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    distances, indices = torch.cdist(x, y).topk(k, dim=2, largest=False)  # [B, N, k]
    return distances.square(), indices


def chamfer_distance(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    distances = torch.cdist(x, y)  # [B, N, M]
    forth, back = distances.min(dim=2).values, distances.min(dim=1).values  # [B, N], [B, M]
    return (forth.square().mean(1) + back.square().mean(1)).mean(), None


def f_score(x: Tensor, y: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    distances = torch.cdist(x, y)  # [B, N, M]
    precision = (distances.amin(2) <= radius).to(x.dtype).mean(1)  # [B]
    recall = (distances.amin(1) <= radius).to(x.dtype).mean(1)  # [B]
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0), precision, recall


def hausdorff_distance(x: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(x, y)  # [B, N, M]
    return torch.maximum(distances.amin(2).amax(1), distances.amin(1).amax(1))  # [B]


def triangle_contract(a: Tensor, b: Tensor, direction: str = "outgoing") -> Tensor:
    a, b = a.movedim(-1, -3), b.movedim(-1, -3)  # [*, D, N, N]
    product = a @ b.transpose(-1, -2) if direction == "outgoing" else a.transpose(-1, -2) @ b
    return product.movedim(-3, -1)


def triangle_multiplicative_update(
    x: Tensor,
    p_in_weight: Tensor,
    g_in_weight: Tensor,
    p_out_weight: Tensor,
    g_out_weight: Tensor,
    direction: str = "outgoing",
    mask: Tensor | None = None,
    norm_in_weight: Tensor | None = None,
    norm_in_bias: Tensor | None = None,
    p_in_bias: Tensor | None = None,
    g_in_bias: Tensor | None = None,
    norm_out_weight: Tensor | None = None,
    norm_out_bias: Tensor | None = None,
    p_out_bias: Tensor | None = None,
    g_out_bias: Tensor | None = None,
    eps: float = 1e-5,
    gate_position: str = "after_projection",
) -> Tensor:
    """The triangle multiplicative update as it is written in models, with the projections of a and b in one product."""
    h = layer_norm(x, x.shape[-1:], norm_in_weight, norm_in_bias, eps)  # [*, N, N, C]
    ab = torch.sigmoid(linear(h, g_in_weight, g_in_bias)) * linear(h, p_in_weight, p_in_bias)  # [*, N, N, 2D]
    a, b = (ab if mask is None else ab * mask[..., None]).chunk(2, -1)
    t = triangle_contract(a, b, direction)  # [*, N, N, D]
    t = layer_norm(t, t.shape[-1:], norm_out_weight, norm_out_bias, eps)
    gate = torch.sigmoid(linear(h, g_out_weight, g_out_bias))
    if gate_position == "before_projection":
        return linear(gate * t, p_out_weight, p_out_bias)
    return gate * linear(t, p_out_weight, p_out_bias)


def invariant_point_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_points: Tensor,
    k_points: Tensor,
    v_points: Tensor,
    z: Tensor,
    rotations: Tensor,
    translations: Tensor,
    head_weights: Tensor,
    bias: Tensor | None = None,
    bias_weight: Tensor | None = None,
    bias_bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Invariant point attention as it is written in models: a tensor of differences, softmax, four products."""

    def to_global(points: Tensor) -> Tensor:  # [B, N, H, P, 3]
        return points @ rotations[:, :, None].mT + translations[:, :, None, None]

    channels = q.shape[3]
    q_points, k_points, v_points = to_global(q_points), to_global(k_points), to_global(v_points)
    logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * math.sqrt(1 / (3 * channels))  # [B, H, N, N]
    if bias is None:
        assert bias_weight is not None
        bias = linear(z, bias_weight, bias_bias)
    logits = logits + math.sqrt(1 / 3) * bias.permute(0, 3, 1, 2)
    distances = (q_points[:, :, None] - k_points[:, None]).square().sum(-1)  # [B, N, N, H, Pq]
    weights = softplus(head_weights) * math.sqrt(1 / (3 * q_points.shape[3] * 4.5))
    logits = logits - 0.5 * (distances * weights[:, None]).sum(-1).permute(0, 3, 1, 2)
    if mask is not None:
        logits = logits + 1e5 * (mask[:, :, None] * mask[:, None] - 1)[:, None].to(logits.dtype)
    a = torch.softmax(logits, -1)
    o = (a.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
    reached = (a @ v_points.transpose(1, 2).flatten(3)).unflatten(-1, (-1, 3)).transpose(1, 2)  # [B, N, H, Pv, 3]
    o_points = (reached - translations[:, :, None, None]) @ rotations[:, :, None]
    o_pair = a.to(z.dtype).transpose(1, 2) @ z  # [B, N, H, Cz]
    return o, o_points, torch.sqrt(o_points.square().sum(-1) + 1e-8), o_pair


def lddt(
    pred_positions: Tensor, target_positions: Tensor, mask: Tensor, cutoff: float = 15.0, per_residue: bool = False
) -> Tensor:
    """lDDT as it is written in models: two matrices of distances, and their difference."""
    true, found = (
        torch.sqrt((positions[:, :, None] - positions[:, None]).square().sum(-1) + 1e-10)
        for positions in (target_positions, pred_positions)
    )
    keep = mask.to(true.dtype)
    pairs = (true < cutoff) * keep[:, :, None] * keep[:, None]
    pairs = pairs * (1 - torch.eye(mask.shape[1], dtype=true.dtype, device=mask.device))  # [B, N, N]
    error = (true - found).abs()
    below = 0.25 * sum((error < threshold).to(true.dtype) for threshold in (0.5, 1.0, 2.0, 4.0))
    over = (2,) if per_residue else (1, 2)
    return (1e-10 + (pairs * below).sum(over)) / (1e-10 + pairs.sum(over))


def predicted_tm_score(
    logits: Tensor,
    residue_weights: Tensor | None = None,
    asym_id: Tensor | None = None,
    interface: bool = False,
    max_bin: float = 31,
    bins: int = 64,
) -> Tensor:
    """The predicted TM-score as it is written in models: probabilities of all pairs, then their expectation."""
    weights = logits.new_ones(logits.shape[:2]) if residue_weights is None else residue_weights.to(logits.dtype)
    step = max_bin / (bins - 2)
    centres = (torch.arange(bins, device=logits.device) + 0.5) * step
    d0 = 1.24 * (weights.sum(1).clamp(min=19) - 15) ** (1 / 3) - 1.8  # [B]
    scores = 1 / (1 + (centres / d0[:, None]) ** 2)  # [B, bins]
    expected = (torch.softmax(logits, -1) * scores[:, None, None].to(logits.dtype)).sum(-1)  # [B, N, N]
    pairs = weights[:, :, None] * weights[:, None]
    if interface and asym_id is not None:
        pairs = pairs * (asym_id[:, :, None] != asym_id[:, None])
    by_alignment = (expected * pairs / (1e-8 + pairs.sum(2, keepdim=True))).sum(2)
    best = (by_alignment * weights).argmax(1, keepdim=True)
    return by_alignment.gather(1, best)[:, 0]


def structural_violations(
    positions: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Violations as they are written in models: a tensor of all pairs of atoms, of floating masks too."""
    table = residues.tables(positions.device, positions.dtype)
    lower, upper = (bound[aatype] for bound in residues.distance_bounds(1.5, 12.0, positions.device, positions.dtype))
    mask = mask.to(positions.dtype) * table.atom14_exists[aatype]  # [B, N, 14]
    means, bond_loss, bond_violated = _bond_violations(positions, mask, aatype, residue_index, asym_id)

    number = torch.arange(14, device=positions.device)
    c, n, sulphur = ((number == place).to(positions.dtype) for place in (2, 0, 5))
    radii = table.radii[aatype] * mask
    differences = positions[:, :, None, :, None] - positions[:, None, :, None]  # [B, N, N, 14, 14, 3]
    distances = torch.sqrt(1e-10 + (differences**2).sum(-1))
    pairs = mask[:, :, None, :, None] * mask[:, None, :, None]
    place = torch.arange(positions.shape[1], device=positions.device)
    pairs = pairs * (place[:, None] < place)[..., None, None]
    follows = residue_index[:, :, None] + 1 == residue_index[:, None]
    if asym_id is not None:
        follows = follows & (asym_id[:, :, None] == asym_id[:, None])
    pairs = pairs * (1 - follows[..., None, None] * c[:, None] * n)
    cysteine = aatype == residues.LETTERS.index("C")
    bridges = (cysteine[:, :, None] & cysteine[:, None])[..., None, None] * sulphur[:, None] * sulphur
    pairs = pairs * (1 - bridges)
    touching = pairs * (radii[:, :, None, :, None] + radii[:, None, :, None])
    overlap = pairs * relu(touching - 1.5 - distances)
    clash_mean = overlap.sum((1, 2, 3, 4)) / (1e-6 + pairs.sum((1, 2, 3, 4)))
    clash_loss = overlap.sum((1, 3)) + overlap.sum((2, 4))
    clash = pairs * (distances < touching - 1.5)
    clashes = (clash.sum((1, 3)) + clash.sum((2, 4))).long()

    inside = torch.sqrt(1e-10 + ((positions[:, :, :, None] - positions[:, :, None]) ** 2).sum(-1))  # [B, N, 14, 14]
    pairs = mask[..., None] * mask[:, :, None] * (1 - torch.eye(14, dtype=mask.dtype, device=mask.device))
    error = pairs * (relu(lower - inside) + relu(inside - upper))
    within_loss = error.sum(-1) + error.sum(-2)
    within = (pairs * ((inside < lower) | (inside > upper))).amax(-1) > 0
    violated = bond_violated | ((clashes > 0) | within).any(-1)
    clashing, atoms = clashes > 0, mask.sum((1, 2)).long()
    per_atom = (clash_loss, clashes, clashing, within_loss, within)
    return *means, clash_mean, violated, bond_loss, bond_violated, *per_atom, atoms


def _bond_violations(
    positions: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    connected = residue_index[:, 1:] - residue_index[:, :-1] == 1
    if asym_id is not None:
        connected = connected & (asym_id[:, 1:] == asym_id[:, :-1])
    ca, c, n, next_ca = positions[:, :-1, 1], positions[:, :-1, 2], positions[:, 1:, 0], positions[:, 1:, 1]
    bond = connected * mask[:, :-1, 2] * mask[:, 1:, 0]
    length, ca_c, n_ca = (torch.sqrt(1e-6 + ((a - b) ** 2).sum(-1)) for a, b in ((c, n), (ca, c), (n, next_ca)))
    to_ca, to_n, to_next = (ca - c) / ca_c[..., None], (n - c) / length[..., None], (next_ca - n) / n_ca[..., None]
    proline = (aatype[:, 1:] == residues.LETTERS.index("P")).to(positions.dtype)
    usual, special = zip(residues.C_N_LENGTH, residues.C_N_LENGTH_DEVIATION, strict=True)
    mean, deviation = ((1 - proline) * a + proline * b for a, b in zip(usual, special, strict=True))
    terms = (
        (length, mean, deviation, bond),
        ((to_ca * to_n).sum(-1), *residues.COS_CA_C_N, bond * mask[:, :-1, 1]),
        ((-to_n * to_next).sum(-1), *residues.COS_C_N_CA, bond * mask[:, 1:, 1]),
    )
    losses = [there * relu(torch.sqrt(1e-6 + (x - mean) ** 2) - 12 * deviation) for x, mean, deviation, there in terms]
    means = [loss.sum(1) / (1e-6 + term[3].sum(1)) for loss, term in zip(losses, terms, strict=True)]
    total = losses[0] + losses[1] + losses[2]
    return means, 0.5 * (pad(total, (0, 1)) + pad(total, (1, 0))), pad(total > 0, (0, 1)) | pad(total > 0, (1, 0))


def frame_aligned_point_error(
    pred_rotations: Tensor,
    pred_translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    frames_mask: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    positions_mask: Tensor,
    length_scale: float = 10.0,
    pair_mask: Tensor | None = None,
    l1_clamp_distance: float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """FAPE as it is written in models: all points in all frames, by the frames' inverses."""

    def local(rotations: Tensor, translations: Tensor, positions: Tensor) -> Tensor:  # R^T x - R^T t, [*, F, P, 3]
        return positions[..., None, :, :] @ rotations - translations[..., None, :] @ rotations

    difference = local(pred_rotations, pred_translations, pred_positions)
    difference = difference - local(target_rotations, target_translations, target_positions)
    error = torch.sqrt(difference.square().sum(-1) + eps)  # [*, F, P]
    if l1_clamp_distance is not None:
        error = error.clamp(min=0, max=l1_clamp_distance)
    error = error / length_scale * frames_mask[..., None] * positions_mask[..., None, :]
    if pair_mask is not None:
        norm = (frames_mask[..., None] * positions_mask[..., None, :] * pair_mask).sum((-1, -2))
        return (error * pair_mask).sum((-1, -2)) / (eps + norm)
    error = error.sum(-1) / (eps + frames_mask.sum(-1))[..., None]
    return error.sum(-1) / (eps + positions_mask.sum(-1))


def frame_aligned_point_error_terms(
    *,
    frame_chains: Tensor,
    position_chains: Tensor,
    clamped_weight: float = 1.0,
    unclamped_weight: float = 0.0,
    between_clamped_weight: float = 1.0,
    between_unclamped_weight: float = 0.0,
    eps: float = 1e-8,
    **geometry: Tensor,
) -> tuple[Tensor, ...]:
    """The loss as it is written in models: an error for each kind of pairs, clamped and not."""
    within = (frame_chains[..., None] == position_chains[..., None, :]).to(geometry["frames_mask"].dtype)
    terms = []
    for pair_mask, scale, clamp in ((within, 10.0, 10.0), (1 - within, 20.0, 30.0)):
        settings: Any = {**geometry, "length_scale": scale, "pair_mask": pair_mask, "eps": eps}
        terms += [frame_aligned_point_error(l1_clamp_distance=limit, **settings) for limit in (clamp, None)]
    weights = (clamped_weight, unclamped_weight, between_clamped_weight, between_unclamped_weight)
    loss = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)
    return loss, *(term.detach() for term in terms)


def output_size(x: Tensor, scale: Tensor) -> tuple[int, int]:
    height, width = (max(1, round(n * r)) for n, r in zip(x.shape[2:], scale.tolist(), strict=True))
    return height, width


def _sampled(x: Tensor, scale: Tensor, size: Any, places: tuple[float, ...], padding_mode: str) -> Tensor:
    """x at these places of each cell, by a grid that is differentiable in the scale."""
    size = size or output_size(x, scale)
    offsets = torch.tensor(places, dtype=scale.dtype, device=x.device)
    rows, columns = (
        (torch.arange(cells, dtype=scale.dtype, device=x.device)[:, None] + offsets).flatten() / r * 2 / pixels - 1
        for cells, r, pixels in zip(size, scale, x.shape[2:], strict=True)
    )
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([across, down], -1).to(x.dtype).expand(len(x), -1, -1, -1)  # [B, k * Ho, k * Wo, 2]
    return grid_sample(x, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def dynopool_2d(x: Tensor, scale: Tensor, output_size: Any = None, mode: str = "max") -> Tensor:
    samples = _sampled(x, scale, output_size, (0.25, 0.75), "border")  # [B, C, 2 * Ho, 2 * Wo]
    return max_pool2d(samples, 2) if mode == "max" else avg_pool2d(samples, 2)


def resample_2d(x: Tensor, scale: Tensor, output_size: Any = None, padding_mode: str = "border") -> Tensor:
    return _sampled(x, scale, output_size, (0.5,), padding_mode)


def local_attention_2d(*, padding_mode: str = "reflect", **arguments: Any) -> Tensor:
    if padding_mode not in ("reflect", "zeros"):
        raise NotComparable(f"unfolding pads, and has no border {padding_mode!r}")
    return unfolded.local_attention_2d(padding_mode=padding_mode, **arguments)


shift_conv_2d = unfolded.shift_conv_2d
acmix = unfolded.acmix
