"""The demonstration of the structure module: a short run, its files, its refusals, and the structure that it builds."""

import importlib
import json
import math

import pytest
import torch

import paperops
from paperops import __main__
from paperops.geometry import Frames, atom37_to_atom14, atom37_to_torsions
from paperops.residues import ATOM37, LETTERS

for module in ("gemmi", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'paperops[demo]'")

from paperops.demos import structure_module  # noqa: E402
from paperops.demos.structure_module import ideal, training  # noqa: E402
from paperops.structures import read_chain, write_mmcif  # noqa: E402


def part_of_the_built_in(path, count=12, aatype=None, mask=None, chain="Q"):
    whole = ideal.helix_turn_helix()
    mask = whole.mask[:count] if mask is None else mask
    aatype = whole.aatype[:count] if aatype is None else aatype
    write_mmcif(path, aatype, whole.positions[:count], mask, chain=chain)
    return path


# --- the built-in structure -----------------------------------------------------------------------------------------


def test_built_in_structure_has_the_torsions_that_it_was_made_of():
    chain = ideal.helix_turn_helix()
    count = len(chain.sequence)
    assert count == 43 and set(chain.sequence) <= set(LETTERS)
    torsions = atom37_to_torsions(chain.aatype, chain.positions, chain.mask)
    degrees = torch.rad2deg(torch.atan2(*torsions.sin_cos.unbind(-1)))  # [N, 7]
    assert (degrees[1:, 0].abs() - 180).abs().max() < 1e-6  # flat, trans
    helices = [*range(1, len(ideal.FIRST)), *range(len(ideal.FIRST) + len(ideal.BETWEEN), count)]
    torch.testing.assert_close(degrees[helices, 1], torch.full((len(helices),), ideal.HELIX[0]).double())
    helices = helices[:-1]  # no residue follows the last
    torch.testing.assert_close(degrees[helices, 2], torch.full((len(helices),), ideal.HELIX[1]).double())


def test_built_in_structure_is_two_helices_side_by_side():
    chain = ideal.helix_turn_helix()
    alpha = chain.positions[:, ATOM37.index("CA")]
    assert (alpha.diff(dim=0).norm(dim=-1) - 3.8).abs().max() < 0.05
    first, second = alpha[:18], alpha[22:]
    for helix in (first, second):  # 1.5 A a residue
        assert abs(float((helix[14] - helix[0]).norm()) / 14 - 1.5) < 0.1
        # right-handed: the triple product of three steps is positive
        steps = helix.diff(dim=0)
        assert (torch.linalg.cross(steps[:-2], steps[1:-1]) * steps[2:]).sum(-1).min() > 0
    axes = [helix[14] - helix[0] for helix in (first, second)]
    assert torch.nn.functional.cosine_similarity(*axes, dim=0) < -0.9
    assert 5.0 < torch.cdist(first, second).min() < 9.0


def test_built_in_structure_has_no_violations():
    chain = ideal.helix_turn_helix()
    atoms = atom37_to_atom14(chain.aatype, chain.positions, chain.mask)
    found = paperops.structural_violations(
        atoms.positions[None], atoms.mask[None], chain.aatype[None], chain.residue_index[None]
    )
    assert not found.per_residue_violation_mask.any()


# --- superposition --------------------------------------------------------------------------------------------------


def test_superposition_undoes_a_motion_and_no_reflection():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    motion = Frames.from_quaternion(torch.tensor([0.3, -0.5, 0.2, 0.9]).double(), torch.tensor([5.0, -300, 2]).double())
    mask = torch.arange(20) < 12
    moved = motion.apply(points)
    torch.testing.assert_close(training.superposed(moved, points, mask), points)
    junk = torch.where(mask[:, None], moved, 100 + moved)  # what is not in the mask follows, but does not count
    torch.testing.assert_close(training.superposed(junk, points, mask)[mask], points[mask])
    mirrored = training.superposed(points * torch.tensor([1.0, 1, -1]), points, mask)
    assert (mirrored - points).norm() > 1


# --- a short run ----------------------------------------------------------------------------------------------------


def test_quick_run_learns_and_writes_what_can_be_read(tmp_path, capsys):
    path = part_of_the_built_in(tmp_path / "in.cif")
    assert structure_module.run(tmp_path / "out", file=path, chain="Q", quick=True) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"predicted.cif", "true.cif", "structure_module.png", "metrics.json"}
    assert (tmp_path / "out" / "structure_module.png").read_bytes()[:4] == b"\x89PNG"
    true, predicted = (read_chain(tmp_path / "out" / f"{name}.cif") for name in ("true", "predicted"))
    source = read_chain(path)
    assert true.sequence == predicted.sequence == source.sequence and predicted.name == "Q"
    assert torch.equal(predicted.mask, source.mask) and torch.equal(predicted.residue_index, source.residue_index)
    # the true structure is moved to the origin, and otherwise as it was read
    shift = source.positions[source.mask].mean(0)
    assert (true.positions - (source.positions - shift))[true.mask].abs().max() < 2e-3
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["residues"] == 12 and metrics["steps"] == 12
    assert all(math.isfinite(value) for value in metrics["scores"].values())
    # the table's RMSD is that of the files
    alpha = ATOM37.index("CA")
    rmsd = (predicted.positions - true.positions)[:, alpha].square().sum(-1).mean().sqrt()
    assert float(rmsd) == pytest.approx(metrics["scores"]["rmsd"], abs=2e-3)
    said = capsys.readouterr().out
    assert "backbone FAPE" in said and "chain Q of in.cif: 12 residues" in said


def test_loss_falls_and_a_seed_repeats():
    target = training.target_of(ideal.helix_turn_helix())
    plan = training.Plan(c_s=32, c_z=8, c_ipa=8, heads=2, blocks=2, steps=20, warm_up=3, learning_rate=3e-3)
    fits = []
    for _ in range(2):
        torch.manual_seed(3)
        fits.append(training.train(target, plan, lambda error: None))
    assert fits[0].fape == fits[1].fape and len(fits[0].fape) == 21
    for history in fits[0].losses.values():
        assert len(history) == 20
        assert history[-1] < history[0]
    assert fits[0].losses["loss"][-1] < 0.75 * fits[0].losses["loss"][0]
    assert fits[0].fape[-1] < fits[0].fape[0] - 0.3


def test_training_stops_when_it_is_near_enough():
    target = training.target_of(ideal.helix_turn_helix())
    plan = training.Plan(c_s=32, c_z=8, c_ipa=8, heads=2, blocks=2, steps=20, warm_up=3, enough=100.0)
    fit = training.train(target, plan, lambda error: None)
    assert len(fit.fape) == 1
    assert training.score(fit.structure, target).fape == pytest.approx(fit.fape[0])


def test_the_true_structure_scores_perfectly():
    """Its frames and atoms as a prediction: FAPE is the root of eps, lDDT 1, RMSD 0."""
    target = training.target_of(ideal.helix_turn_helix())
    torch.manual_seed(0)
    structure, _ = training.Folder(43, training.Plan(c_s=32, c_z=8, c_ipa=8, heads=2, blocks=2))(target.aatype)
    exact = structure._replace(
        rotations=target.backbone.rotations[None], translations=target.backbone.translations[None],
        positions=target.atoms.positions[None],
    )  # fmt: skip
    scores = training.score(exact, target)
    assert scores.fape == pytest.approx(0.01, rel=0.01) and scores.lddt == 1
    assert scores.rmsd < 1e-4 and scores.violations == 0


def test_missing_atoms_unknown_residues_and_gaps_are_trained_around(tmp_path):
    whole = ideal.helix_turn_helix()
    mask, aatype = whole.mask[:14].clone(), whole.aatype[:14].clone()
    mask[2, ATOM37.index("N")] = False  # no frame
    mask[5] = False  # not there
    aatype[8] = 20
    mask[8, 5:] = False
    path = part_of_the_built_in(tmp_path / "in.cif", 14, aatype, mask)
    assert structure_module.run(tmp_path / "out", file=path, quick=True) == 0
    predicted = read_chain(tmp_path / "out" / "predicted.cif")
    assert len(predicted.sequence) == 12 and 6 not in predicted.residue_index and 9 not in predicted.residue_index
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    assert all(math.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("file", [None, "part"])
def test_picture_cuts_nothing(tmp_path, monkeypatch, file):
    """Every point of the traces and of the side chains is inside its axes."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k))
    path = None if file is None else part_of_the_built_in(tmp_path / "in.cif")
    assert structure_module.run(tmp_path / "out", file=path, quick=True) == 0
    space = figures[0].axes[0]
    assert space.name == "rectilinear" and space.get_aspect() == 1  # so that data are where the limits say
    drawn = [torch.tensor(line.get_xydata()) for line in space.lines]
    drawn += [torch.tensor(dots.get_offsets().tolist()).double() for dots in space.collections]
    assert len(drawn) == 3 and all(len(points) > 10 for points in drawn)
    (left, right), (low, high) = space.get_xlim(), space.get_ylim()
    inner = torch.tensor([right - left, high - low]).double() * 0.02  # lines have a width
    points = torch.cat(drawn)
    assert (points - inner >= torch.tensor([left, low])).all() and (points + inner <= torch.tensor([right, high])).all()


# --- the command line -----------------------------------------------------------------------------------------------


def refused(capsys, *words):
    """What the command says, on one line, once it has refused."""
    assert __main__.main(["demo", *map(str, words)]) == 2
    return " ".join(capsys.readouterr().out.split())


def test_command_line_refuses(tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    nowhere = tmp_path / "nowhere.cif"
    assert "nowhere.cif" in refused(capsys, "structure_module", nowhere, *out)
    bad = tmp_path / "bad.cif"
    bad.write_text("not a structure\n")
    assert "bad.cif is no" in refused(capsys, "structure_module", bad, *out)
    good = part_of_the_built_in(tmp_path / "good.cif")
    said = refused(capsys, "structure_module", good, "--chain", "Z", *out)
    assert "has no chain 'Z'; there are Q (protein)" in said
    mask = torch.zeros(12, 37, dtype=torch.bool)
    mask[:, ATOM37.index("CA")] = True
    traces = part_of_the_built_in(tmp_path / "trace.cif", mask=mask)
    said = refused(capsys, "structure_module", traces, *out)
    assert "chain Q has 0 residues of a known type with N, CA and C; the demonstration takes 3 at least" in said
    assert "goes with a file" in refused(capsys, "structure_module", "--chain", "A", *out)
    assert "lmnet3d takes no file; got" in refused(capsys, "lmnet3d", good, *out)
    assert "lmnet3d takes no chain; got A" in refused(capsys, "lmnet3d", "--chain", "A", *out)
    assert not (tmp_path / "out").exists()


def test_too_long_a_chain_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(structure_module, "TOO_LONG", 10)
    path = part_of_the_built_in(tmp_path / "in.cif")
    assert "has 12 residues; the demonstration takes 10 at most" in refused(capsys, "structure_module", path)


def test_command_line_lists_it(capsys):
    assert __main__.main(["demo"]) == 0
    assert "structure_module: AlphaFold2's structure module" in capsys.readouterr().out


def test_without_gemmi(tmp_path, monkeypatch, capsys):
    found = importlib.import_module

    def missing(name, *rest):
        if name == "gemmi":
            raise ImportError("No module named 'gemmi'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert structure_module.run(tmp_path / "out") == 2
    assert "needs gemmi" in " ".join(capsys.readouterr().out.split())
