"""The entry of structural violations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference, residues
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

CYSTEINE, PROLINE, UNKNOWN = residues.LETTERS.index("C"), residues.LETTERS.index("P"), 20

STEP, SPACING = 3.8, 6.0
"""Angstrom between CA along a strand, and between strands: 137 cubic Angstrom a residue, as in a folded protein."""


def compact_positions(aatype: Tensor, seed: int) -> Tensor:
    """A compact chain [B, N, 14, 3] in float64, about 0: of a protein's density and bond lengths.

    Strands go to and fro on a grid; side chains zigzag away from them, and meet those of other strands here and there.
    """
    batch, n = aatype.shape
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    side = max(2, round((n * STEP * SPACING * SPACING) ** (1 / 3) / STEP))  # residues of a strand
    wide = max(1, round(side * STEP / SPACING))  # strands of a sheet
    number = torch.arange(n)
    strand, place = number // side, number % side
    sheet, row = strand // wide, strand % wide
    forward = 1 - 2 * (strand % 2)
    x = torch.where(forward > 0, place, side - 1 - place) * STEP
    y = torch.where(sheet % 2 == 0, row, wide - 1 - row) * SPACING
    ca = torch.stack([x, y, sheet * SPACING], -1).double() + 0.2 * random(batch, n, 3)  # [B, N, 3]
    along = torch.nn.functional.normalize(
        forward[:, None] * torch.tensor([1.0, 0, 0], dtype=torch.float64) + 0.15 * random(batch, n, 3), dim=-1
    )
    turn = math.pi * number + 0.5 * random(batch, n)  # neighbours in a strand point to opposite sides
    out = torch.stack([0 * turn, turn.cos(), turn.sin()], -1)
    out = torch.nn.functional.normalize(out - (out * along).sum(-1, keepdim=True) * along, dim=-1)
    across = torch.linalg.cross(along, out)
    n_atom = ca - 1.3 * along + 0.66 * across
    c = ca + 1.4 * along + 0.6 * across
    o = c + 0.4 * along + 1.16 * across
    atoms = [n_atom, ca, c, o, ca + 1.2 * out - 0.95 * across]
    for number_of_atom in range(5, 14):
        bend = 0.9 * random(batch, n, 3) + (1 - 2 * (number_of_atom % 2)) * along
        atoms.append(atoms[-1] + 1.5 * torch.nn.functional.normalize(out + bend, dim=-1))
    found = torch.stack(atoms, 2)  # [B, N, 14, 3]
    return found - ca.mean(1, keepdim=True)[:, :, None] if n else found


def protein_arguments(
    batch: int, n: int, device: torch.device, dtype: torch.dtype, spread: float | None = None
) -> dict[str, Any]:
    """Residues of all types, as many atoms as they have; compact chains, or with ``spread`` points around 0."""
    generator = torch.Generator().manual_seed(1000 * batch + n)
    aatype = torch.randint(0, 20, (batch, n), generator=generator)
    if spread is None:
        positions = compact_positions(aatype, n)
    else:
        positions = spread * torch.randn((batch, n, 14, 3), generator=generator, dtype=torch.float64)
    return {
        "positions": positions.to(device, dtype),
        "mask": residues.tables().atom14_exists[aatype].to(device, dtype),
        "aatype": aatype.to(device),
        "residue_index": torch.arange(n, device=device).expand(batch, n).contiguous(),
    }


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    # With another tolerance no distance of coordinates of few bits can be equal to a bound.
    odd: dict[str, Any] = {"clash_overlap_tolerance": 1.43}

    def integers(*rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=device)

    small = protein_arguments(2, 3, device, dtype, spread=1.2)
    small["aatype"] = integers([CYSTEINE, PROLINE, CYSTEINE], [0, 7, PROLINE])
    yield Sample("small", small, gradcheck=True)
    small = protein_arguments(1, 3, device, dtype, spread=1.2)
    chains = {"asym_id": integers([0, 0, 1]), "residue_index": integers([4, 5, 4])}
    tolerances = {"clash_overlap_tolerance": 0.7, "violation_tolerance_factor": 3.0}
    yield Sample("two small chains", small | chains | tolerances, gradcheck=True)

    one = protein_arguments(2, 1, device, dtype, spread=1.0)
    yield Sample("one residue", one | odd)
    none = {name: value[:, :0] for name, value in one.items()}
    yield Sample("no residues", none)
    compact = protein_arguments(2, 37, device, dtype)
    yield Sample("compact", compact | odd)
    one_by_one = compact["mask"].clone()
    one_by_one[0, 5:9] = 0
    one_by_one[:, ::3, 4:] = 0
    one_by_one[1, 7:] = 0
    hidden = compact["positions"].masked_fill((one_by_one == 0)[..., None], float("nan"))
    hidden[:, 0, 13] = float("inf") if not one_by_one[:, 0, 13].any() else 0.0
    yield Sample("NaN in masked atoms", compact | odd | {"positions": hidden, "mask": one_by_one != 0})
    unknown = compact["aatype"].clone()
    unknown[:, 3::5] = UNKNOWN
    yield Sample(
        "unknown residues", compact | odd | {"aatype": unknown, "mask": torch.ones_like(one_by_one)}, large=True
    )
    far = {"positions": compact["positions"] + 300}
    yield Sample("300 A away", compact | odd | far, large=True)

    # Of samples that are alike to a kernel, one is enough for the interpreter.
    chains = protein_arguments(2, 29, device, dtype) | odd
    number = chains["residue_index"]
    asym_id = (number >= 13).to(torch.int32)
    yield Sample("two chains", chains | {"asym_id": asym_id, "residue_index": number - 13 * asym_id})
    gaps = number + 7 * (number // 6)
    yield Sample("gaps", chains | {"residue_index": gaps.to(torch.int32)}, large=True)
    back = {"residue_index": number.flip(1), "aatype": chains["aatype"].to(torch.uint8)}
    yield Sample("numbered backwards", chains | back, large=True)
    yield Sample("one number for all", chains | {"residue_index": torch.zeros_like(number)}, large=True)
    prolines = torch.where(number % 2 == 1, PROLINE, chains["aatype"])
    yield Sample("prolines", chains | {"aatype": prolines, "mask": torch.ones_like(chains["mask"])}, large=True)

    dense = protein_arguments(1, 23, device, dtype, spread=2.0) | odd
    yield Sample("overlapping", dense)
    yield Sample("all masked", dense | {"mask": torch.zeros_like(dense["mask"])})
    bridged = torch.where(dense["residue_index"] % 3 == 0, CYSTEINE, dense["aatype"])
    yield Sample("bridged cysteines", dense | {"aatype": bridged, "mask": torch.ones_like(dense["mask"])})
    yield Sample("coincident", dense | {"positions": torch.full_like(dense["positions"], 3.0)})
    strict = {"clash_overlap_tolerance": 0, "violation_tolerance_factor": 0}
    wide = torch.promote_types(dtype, torch.float32)  # 0 is a tolerance with which distances can be equal to bounds
    yield Sample("no tolerance", protein_arguments(1, 11, device, wide, spread=2.0) | strict)
    yield Sample(
        "nothing can clash", dense | {"clash_overlap_tolerance": 50.0, "violation_tolerance_factor": 1e4}, large=True
    )
    yield Sample("131 residues", protein_arguments(1, 131, device, dtype) | odd, large=True)


def _refused(device: torch.device) -> Iterator[Refused]:
    good = protein_arguments(2, 4, device, torch.float32)

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    positions, mask = good["positions"], good["mask"]
    yield Refused("not a tensor", call(positions=[0.0]), TypeError, "positions must be a torch.Tensor; got list")
    yield Refused("integer positions", call(positions=positions.long()), TypeError, "positions must be float16.*int64")
    shape = r"positions must have shape \[B, N, 14, 3\]; got "
    yield Refused("positions of rank 3", call(positions=positions[0]), ValueError, shape + r"\[4, 14, 3\]")
    atoms37 = positions.new_zeros(2, 4, 37, 3)
    yield Refused("37 atoms", call(positions=atoms37), ValueError, shape + r"\[2, 4, 37, 3\]")
    yield Refused(
        "2 coordinates", call(positions=positions[..., :2]), ValueError, r"positions must have shape \[\*, 3\]"
    )
    yield Refused("no mask", call(mask=None), TypeError, "mask must be a torch.Tensor; got NoneType")
    yield Refused(
        "mask of residues", call(mask=mask[..., 0]), ValueError, r"mask must have shape \[2, 4, 14\], one value a atom"
    )
    yield Refused("integer mask", call(mask=mask.long()), TypeError, "mask must be bool or floating.*torch.int64")
    yield Refused("mask with gradient", call(mask=mask.clone().requires_grad_()), ValueError, "mask takes no gradient")
    for name in ("aatype", "residue_index", "asym_id"):
        number = good["residue_index"]
        yield Refused(
            f"{name} of floats", call(**{name: number.float()}), TypeError, f"{name} must have an integer dty"
        )
        yield Refused(
            f"{name} of one chain",
            call(**{name: number[0]}),
            ValueError,
            rf"{name} must have shape \[2, 4\].*got \[4\]",
        )
        yield Refused(f"{name} short", call(**{name: number[:, 1:]}), ValueError, rf"{name} must have shape \[2, 4\]")
        yield Refused(f"{name} list", call(**{name: [[0]]}), TypeError, f"{name} must be a torch.Tensor; got list")
        elsewhere = call(**{name: number.to("meta")})
        yield Refused(f"{name} elsewhere", elsewhere, ValueError, f"{name} must be on the device of positions")
    yield Refused("mask elsewhere", call(mask=mask.to("meta")), ValueError, "mask must be on the device of positions")
    if device.type == "cpu":
        for kind in (21, -1):
            aatype = good["aatype"].clone()
            aatype[1, 2] = kind
            yield Refused(f"aatype {kind}", call(aatype=aatype), ValueError, f"aatype must be types of .*got {kind}")
    for name in ("violation_tolerance_factor", "clash_overlap_tolerance"):
        for value in (-1.0, float("inf"), float("nan")):
            yield Refused(
                f"{name} {value}", call(**{name: value}), ValueError, f"{name} must be finite and not negative; got"
            )
        yield Refused(f"{name} True", call(**{name: True}), TypeError, f"{name} must be a number; got bool")


def _sizes(sample: Sample) -> tuple[int, int, int]:
    """Pairs of residues, residues, and bytes of the inputs."""
    arguments = sample.arguments
    b, n = arguments["aatype"].shape
    return b * n * (n - 1) // 2, b * n, sum(value.nbytes for value in arguments.values() if isinstance(value, Tensor))


def _cost(sample: Sample) -> Cost:
    """A distance for each pair of residues; all pairs of atoms within a residue and with the ten nearest ones."""
    pairs, n, size = _sizes(sample)
    wide = torch.promote_types(sample.arguments["positions"].dtype, torch.float32).itemsize
    return Cost(8.0 * pairs + 9.0 * n * (91 + 5 * 196), float(size + 2 * n * 14 * (wide + 8)))


def _backward_cost(sample: Sample) -> Cost:
    """The same distances, and the gradient of positions written."""
    forward = _cost(sample)
    return Cost(forward.operations, forward.bytes)


def _bench(n: int) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        return Sample(f"N={n}", protein_arguments(1, n, device, dtype))

    return make


def _bench_cases() -> Iterator[BenchCase]:
    for devices, sizes in ((("cpu",), (128, 256, 512)), (("cuda",), (256, 1024, 4096))):
        for n in sizes:
            yield BenchCase(f"N={n}", _bench(n), devices=devices)
            yield BenchCase(f"N={n}, with backward", _bench(n), backward=True, devices=devices)


ENTRIES = (
    Entry(
        name="structural_violations",
        family="structural_violations",
        function=paperops.structural_violations,
        reference=reference.structural_violations,
        samples=_samples,
        refused=_refused,
        differentiable=("positions",),
        batched=("positions", "mask", "aatype", "residue_index", "asym_id"),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=(
            "csrc/common",
            "csrc/structural_violations",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/structural_violations*.py",
            "paperops/ops/structural_violations.py",
            "paperops/reference/structural_violations.py",
        ),
        widens=True,
        twice=True,
    ),
)
