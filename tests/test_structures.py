"""Reading and writing structure files: small ones written here, and real ones where the shared data are."""

import builtins
import gzip
import importlib
import math

import pytest
import torch

from paperops import residues
from paperops.geometry import Frames, frames_to_atom14, torsions_to_frames
from paperops.residues import ATOM37, LETTERS

gemmi = pytest.importorskip("gemmi", reason="gemmi is not installed: pip install 'paperops[demo]'")

from paperops.structures import read_chain, write_mmcif  # noqa: E402


def at_location(row, name, occupancy):
    return row | {"label_alt_id": name, "occupancy": occupancy}


FIELDS = (
    "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
).split()


def ideal(letters, offset=0.0):
    """Atoms of ideal residues by name, 3.8 A apart: a list of dictionaries."""
    aatype = torch.tensor([LETTERS.index(letter) for letter in letters])
    count = len(letters)
    frames = Frames(
        torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        torch.stack([torch.tensor([3.8 * n + offset, 0.0, 0.0], dtype=torch.float64) for n in range(count)]),
    )
    torsions = torch.tensor([math.sin(2.5), math.cos(2.5)], dtype=torch.float64).expand(count, 7, 2)
    atoms = frames_to_atom14(aatype, *torsions_to_frames(aatype, *frames, torsions))
    return [
        {name: atoms[n, place].tolist() for place, name in enumerate(residues.ATOM14[kind]) if name}
        for n, kind in enumerate(aatype.tolist())
    ]


def lines(letters, chain="A", names=None, numbers=None, offset=0.0, model=1, labels=True, **changed):
    """Rows of _atom_site for ideal residues, as dictionaries."""
    found = []
    for n, atoms in enumerate(ideal(letters, offset)):
        name = names[n] if names else residues.NAMES[LETTERS.index(letters[n])]
        number = str(numbers[n] if numbers else n + 1)
        digits = number.rstrip("ABCDEFGH")
        for atom, place in atoms.items():
            found.append(
                {
                    "group_PDB": "ATOM", "type_symbol": atom[0], "label_atom_id": atom, "label_alt_id": ".",
                    "label_comp_id": name, "label_asym_id": chain, "label_entity_id": "1",
                    "label_seq_id": str(n + 1) if labels else ".", "pdbx_PDB_ins_code": number[len(digits) :] or "?",
                    "Cartn_x": f"{place[0]:.3f}", "Cartn_y": f"{place[1]:.3f}", "Cartn_z": f"{place[2]:.3f}",
                    "occupancy": "1.00", "B_iso_or_equiv": "20.00", "auth_seq_id": digits, "auth_asym_id": chain,
                    "pdbx_PDB_model_num": str(model),
                }
                | changed
            )  # fmt: skip
    return found


def hetero(name, atom="O", element="O", chain="A", number=900, **changed):
    return {
        "group_PDB": "HETATM", "type_symbol": element, "label_atom_id": atom, "label_alt_id": ".",
        "label_comp_id": name, "label_asym_id": "W" if name == "HOH" else "L",
        "label_entity_id": "3" if name == "HOH" else "2", "label_seq_id": ".", "pdbx_PDB_ins_code": "?",
        "Cartn_x": "50.0", "Cartn_y": "50.0", "Cartn_z": "50.0", "occupancy": "1.00", "B_iso_or_equiv": "20.0",
        "auth_seq_id": str(number), "auth_asym_id": chain, "pdbx_PDB_model_num": "1",
    } | changed  # fmt: skip


def cif(path, rows):
    text = "data_TEST\nloop_\n" + "".join(f"_atom_site.{field}\n" for field in FIELDS)
    for number, row in enumerate(rows):
        text += " ".join(str(number + 1) if field == "id" else row[field] for field in FIELDS) + "\n"
    text += (
        "#\nloop_\n_entity.id\n_entity.type\n1 polymer\n2 non-polymer\n3 water\n4 polymer\n#\n"
        "loop_\n_entity_poly.entity_id\n_entity_poly.type\n1 polypeptide(L)\n4 polydeoxyribonucleotide\n#\n"
    )
    path.write_text(text)
    return path


def pdb(path, rows):
    text = ""
    for number, row in enumerate(rows):
        x, y, z = (float(row[f"Cartn_{axis}"]) for axis in "xyz")
        blank = {".": " ", "?": " "}
        atom = row["label_atom_id"]
        text += (
            f"{row['group_PDB']:<6}{number + 1:>5} {(' ' + atom) if len(atom) < 4 else atom:<4}"
            f"{blank.get(row['label_alt_id'], row['label_alt_id'])}{row['label_comp_id']:>3} {row['auth_asym_id']}"
            f"{row['auth_seq_id']:>4}{blank.get(row['pdbx_PDB_ins_code'], row['pdbx_PDB_ins_code'])}   "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{float(row['occupancy']):6.2f}{20.0:6.2f}          {row['type_symbol']:>2}\n"
        )
    path.write_text(text + "TER\nEND\n")
    return path


def at(chain, residue, atom):
    index = ATOM37.index(atom)
    assert chain.mask[residue, index], f"{atom} of residue {residue} is not there"
    return chain.positions[residue, index].tolist()


def expected_position(letters, residue, atom):
    return [round(value, 3) for value in ideal(letters)[residue][atom]]


EVERY = LETTERS


@pytest.mark.parametrize("form", ["cif", "pdb", "ent", "cif.gz", "pdb.gz", "CIF", "no suffix"])
def test_all_residues_in_all_formats(tmp_path, form):
    rows = lines(EVERY)
    path = (cif if "cif" in form.lower() else pdb)(tmp_path / "some.txt", rows)
    target = tmp_path / (f"some.{form}" if form != "no suffix" else "some")
    target.write_bytes(gzip.compress(path.read_bytes()) if form.endswith("gz") else path.read_bytes())
    chain = read_chain(target)
    assert chain.sequence == EVERY and chain.name == "A" and chain.notes == ()
    assert chain.aatype.tolist() == list(range(20)) and chain.residue_index.tolist() == list(range(1, 21))
    assert chain.positions.shape == (20, 37, 3) and chain.positions.dtype == torch.float64
    assert torch.equal(chain.mask, residues.tables().atom37_exists[:20])
    for n, atoms in enumerate(ideal(EVERY)):
        for atom in atoms:
            assert at(chain, n, atom) == expected_position(EVERY, n, atom)
    assert not chain.positions[~chain.mask].any()


def test_missing_atoms_and_residues(tmp_path):
    rows = [row for row in lines("AKWGA") if row["label_seq_id"] not in ("3",)]
    rows = [row for row in rows if not (row["label_comp_id"] == "LYS" and row["label_atom_id"] in ("CE", "NZ"))]
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert chain.sequence == "AKGA" and chain.residue_index.tolist() == [1, 2, 4, 5]
    lysine = chain.mask[1]
    assert lysine[ATOM37.index("CD")] and not lysine[ATOM37.index("CE")] and not lysine[ATOM37.index("NZ")]
    assert "1 residues within the chain are missing, in 1 gaps" in chain.notes
    assert "1 residues lack atoms: LYS" in chain.notes


def test_selenomethionine_is_methionine(tmp_path):
    rows = lines("AMA", names=["ALA", "MSE", "ALA"])
    for row in rows:
        if row["label_comp_id"] == "MSE":
            row["group_PDB"] = "HETATM"
            if row["label_atom_id"] == "SD":
                row.update(label_atom_id="SE", type_symbol="SE")
    for write in (cif, pdb):
        chain = read_chain(write(tmp_path / "a.x", rows))
        assert chain.sequence == "AMA"
        assert at(chain, 1, "SD") == expected_position("AMA", 1, "SD")
        assert torch.equal(chain.mask, residues.tables().atom37_exists[chain.aatype])
        assert chain.notes == ("1 selenomethionines (MSE) read as methionines",)


def test_other_residues_are_unknown_with_their_backbones(tmp_path):
    rows = lines("ASKA", names=["ALA", "SEP", "UNK", "ALA"])
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert chain.sequence == "AXXA" and chain.aatype.tolist() == [0, 20, 20, 0]
    for n in (1, 2):
        assert [ATOM37[i] for i in chain.mask[n].nonzero()[:, 0]] == ["N", "CA", "C", "CB", "O"]
    assert "2 residues of unknown type, of which the backbone was read: SEP, UNK" in chain.notes


def test_first_model_unless_another_is_asked_for(tmp_path):
    rows = lines("AG") + lines("AG", offset=10.0, model=7)
    path = cif(tmp_path / "a.cif", rows)
    first, seventh = read_chain(path), read_chain(path, model=7)
    assert first.notes == ("2 models, of which the first was read",) and seventh.notes == ()
    torch.testing.assert_close(seventh.positions[0, 1] - first.positions[0, 1], torch.tensor([10.0, 0, 0]).double())
    with pytest.raises(ValueError, match=r"has no model 2; there are 1, 7"):
        read_chain(path, model=2)


def test_likeliest_alternate_location(tmp_path):
    """Of a whole residue, by its occupancy; the first by name among equals; what has no such location stays."""
    rows = []
    for row in lines("SSS"):
        moved = row | {"Cartn_y": f"{float(row['Cartn_y']) + 1:.3f}"}
        number, atom = row["label_seq_id"], row["label_atom_id"]
        if number == "1" and atom in ("CB", "OG"):  # the second is likelier
            rows += [
                at_location(row, "A", "0.40"),
                at_location(moved, "B", "0.60"),
            ]
        elif number == "2" and atom == "OG":  # equal, and B comes first
            rows += [
                at_location(moved, "B", "0.50"),
                at_location(row, "A", "0.50"),
            ]
        elif number == "3" and atom == "OG":  # only B has this one
            rows += [at_location(row, "B", "0.30")]
        elif number == "3" and atom == "CB":
            rows += [
                at_location(row, "A", "0.70"),
                at_location(moved, "B", "0.30"),
            ]
        else:
            rows.append(row)
    for write in (cif, pdb):
        chain = read_chain(write(tmp_path / "a.x", rows))
        for residue, atom, shift in (
            (0, "CB", 1),
            (0, "OG", 1),
            (0, "CA", 0),
            (1, "OG", 0),
            (2, "CB", 0),
            (2, "OG", 0),
        ):
            x, y, z = expected_position("SSS", residue, atom)
            assert at(chain, residue, atom) == [x, pytest.approx(y + shift), z], (residue, atom)
        assert any(note.startswith("3 alternate locations or residues") for note in chain.notes)


@pytest.mark.parametrize("occupancies, expected", [(("0.30", "0.70"), "ATA"), (("0.50", "0.50"), "ASA")])
def test_microheterogeneity(tmp_path, occupancies, expected):
    """Serine or threonine at one place: the likelier, or the one whose location comes first by name."""
    first, last = lines("AAA")[:5], lines("AAA")[10:]
    middle = []
    for letter, location, occupancy in zip("ST", "AB", occupancies):
        changed = {"label_alt_id": location, "occupancy": occupancy}
        middle += [row | changed for row in lines(f"A{letter}A") if row["label_seq_id"] == "2"]
    chain = read_chain(cif(tmp_path / "a.cif", first + middle + last))
    assert chain.sequence == expected and chain.residue_index.tolist() == [1, 2, 3]
    assert any("alternate locations or residues" in note for note in chain.notes)
    assert torch.equal(chain.mask, residues.tables().atom37_exists[chain.aatype])


def test_insertion_codes_move_the_numbers_up(tmp_path):
    rows = lines("AGSTV", numbers=["52", "52A", "52B", "53", "60"], labels=False)
    for write in (pdb, cif):
        chain = read_chain(write(tmp_path / "a.x", rows))
        assert chain.sequence == "AGSTV" and chain.residue_index.tolist() == [52, 53, 54, 55, 62]
        assert "2 residues have insertion codes; the numbers of those that follow move up" in chain.notes
        assert "6 residues within the chain are missing, in 1 gaps" in chain.notes


def test_numbers_that_go_back_move_up(tmp_path):
    chain = read_chain(pdb(tmp_path / "a.pdb", lines("AGSTV", numbers=[8, 9, 1, 2, 5])))
    assert chain.residue_index.tolist() == [8, 9, 10, 11, 14]
    assert any("do not ascend at 1 places" in note for note in chain.notes)


def test_negative_numbers(tmp_path):
    chain = read_chain(pdb(tmp_path / "a.pdb", lines("AGS", numbers=[-1, 0, 1])))
    assert chain.residue_index.tolist() == [-1, 0, 1] and chain.notes == ()


def test_waters_ligands_and_hydrogens_are_left_out(tmp_path):
    rows = lines("AGA")
    rows.insert(5, rows[0] | {"label_atom_id": "H", "type_symbol": "H"})
    rows += [hetero("HOH", number=901), hetero("HOH", number=902), hetero("GOL", "C1", "C", number=903)]
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert chain.sequence == "AGA" and chain.notes == ("2 waters left out", "1 other molecules left out: GOL")
    assert torch.equal(chain.mask, residues.tables().atom37_exists[chain.aatype])


def test_terminal_oxygen_is_kept_and_unexpected_atoms_are_not(tmp_path):
    rows = lines("AG")
    rows += [
        rows[-1] | {"label_atom_id": "OXT", "Cartn_x": "9.0"},
        rows[-1] | {"label_atom_id": "XX1", "type_symbol": "C"},
    ]
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert at(chain, 1, "OXT")[0] == 9.0 and chain.mask.sum() == 10
    assert chain.notes == ("1 atoms of unexpected names left out: GLY XX1",)


def test_atoms_without_positions_are_not_there(tmp_path):
    rows = lines("AG")
    rows[4]["Cartn_x"] = "?"
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert chain.mask.sum() == 8 and chain.positions.isfinite().all()
    assert "1 atoms of unexpected names left out: ALA CB without a position" in chain.notes


def test_arginine_has_nh1_next_to_cd(tmp_path):
    rows = lines("RRA")
    for row in rows:
        if row["label_seq_id"] == "2" and row["label_atom_id"].startswith("NH"):
            row["label_atom_id"] = {"NH1": "NH2", "NH2": "NH1"}[row["label_atom_id"]]
    chain = read_chain(cif(tmp_path / "a.cif", rows))
    assert chain.notes == ("NH1 and NH2 exchanged in 1 arginines",)
    for residue in (0, 1):
        for atom in ("NH1", "NH2"):
            assert at(chain, residue, atom) == expected_position("RRA", residue, atom)


def test_chains(tmp_path):
    nucleic = [
        hetero(name, atom, atom[0], "D", number, group_PDB="ATOM", label_asym_id="D", label_entity_id="4")
        | {"label_seq_id": str(number), "Cartn_x": f"{number}.{len(atom)}"}
        for number, name in ((1, "DA"), (2, "DG"), (3, "DT"))
        for atom in ("P", "O5'", "C5'", "C4'", "C3'", "O3'", "C1'")
    ]
    rows = nucleic + lines("AGS", chain="B") + lines("VV", chain="C")
    path = cif(tmp_path / "a.cif", rows)
    chain = read_chain(path)
    assert chain.name == "B" and chain.sequence == "AGS"
    assert "chains D (nucleic acid), B (protein), C (protein), of which B was read" in chain.notes
    assert read_chain(path, "C").sequence == "VV"
    with pytest.raises(ValueError, match=r"has no chain 'X'; there are D \(nucleic acid\), B \(protein\), C \(prot"):
        read_chain(path, "X")
    with pytest.raises(ValueError, match=r"chain 'D' of .* is nucleic acid, no protein; proteins are B, C"):
        read_chain(path, "D")
    with pytest.raises(ValueError, match=r"has no protein; its chains are D \(nucleic acid\)"):
        read_chain(cif(tmp_path / "b.cif", nucleic))
    with pytest.raises(ValueError, match=r"has no protein; its chains are A \(no polymer\)"):
        read_chain(cif(tmp_path / "c.cif", [hetero("HOH")]))


def test_residues_that_share_a_number_are_refused(tmp_path):
    """They are one residue to gemmi, or alternates of one: all but one would be lost."""
    several = r"several residues of chain A have the number"
    twice = lines("AG") + lines("AG", offset=40.0)
    for name, rows in (
        ("repeated", lines("AAA", numbers=[1, 1, 1])),
        ("different", lines("AGS", numbers=[1, 1, 1])),
        ("overflow", lines("AAA", numbers=["****"] * 3)),
        ("two chains of one name", twice),
    ):
        with pytest.raises(ValueError, match=several):
            read_chain(pdb(tmp_path / f"{name}.pdb", rows))
    with pytest.raises(ValueError, match=rf"{several} 1 \(ALA\)"):
        read_chain(cif(tmp_path / "twice.cif", twice))


def test_places_in_the_sequence_tell_residues_of_one_number_apart(tmp_path):
    chain = read_chain(cif(tmp_path / "a.cif", [row | {"auth_seq_id": "7"} for row in lines("AGS")]))
    assert chain.sequence == "AGS" and chain.residue_index.tolist() == [1, 2, 3] and chain.notes == ()


def test_residues_without_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="residue ALA of chain A has no number"):
        read_chain(pdb(tmp_path / "a.pdb", lines("AGA", numbers=["    "] * 3)))


def test_an_atom_that_comes_again_is_told(tmp_path):
    rows = lines("AG")
    rows.insert(5, rows[4] | {"Cartn_x": "9.0"})
    chain = read_chain(pdb(tmp_path / "a.pdb", rows))
    assert at(chain, 0, "CB") == expected_position("AG", 0, "CB")
    assert chain.notes == ("1 atoms come again, and the likeliest or first was taken: ALA CB",)


@pytest.mark.parametrize("form", ["cif", "pdb", "cif.gz"])
def test_byte_order_mark(tmp_path, form):
    path = (pdb if form == "pdb" else cif)(tmp_path / "plain", lines("AGSTV"))
    marked = tmp_path / f"a.{form}"
    content = b"\xef\xbb\xbf# a comment\n" * (form != "pdb") + path.read_bytes()
    if form == "pdb":
        content = b"\xef\xbb\xbf" + content
    marked.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    chain, plain = read_chain(marked), read_chain(path)
    assert chain.sequence == "AGSTV" and chain.notes == () and torch.equal(chain.positions, plain.positions)
    assert torch.equal(chain.mask, plain.mask)


def test_blank_lines_and_comments_before_either_format(tmp_path):
    before = b"\n" * 60 + b"# a comment, data_ and {\n" * 3 + b" \n" * 60
    for write in (cif, pdb):
        path = write(tmp_path / "a.txt", lines("AGS"))
        path.write_bytes(before + path.read_bytes())
        assert read_chain(path).sequence == "AGS"


@pytest.mark.parametrize("bad", ["********", "   x.xxx", "        ", "     nan", "1.0  2.0"])
@pytest.mark.parametrize("column", [30, 38, 46])
def test_pdb_coordinates_that_are_no_numbers(tmp_path, bad, column):
    text = pdb(tmp_path / "whole.pdb", lines("AG")).read_text().splitlines()
    text[4] = text[4][:column] + bad + text[4][column + 8 :]
    (tmp_path / "a.pdb").write_text("\n".join(text))
    chain = read_chain(tmp_path / "a.pdb")
    assert chain.notes == ("1 atoms left out, whose coordinates are no numbers", "1 residues lack atoms: ALA")
    assert not chain.mask[0, ATOM37.index("CB")] and chain.mask.sum() == 8


@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"", mtime=0), b"\xef\xbb\xbf"], ids=str)
def test_an_empty_file_is_called_empty(tmp_path, content):
    (tmp_path / "a.pdb").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pdb is no structure: it is empty"):
        read_chain(tmp_path / "a.pdb")


def test_broken_compression(tmp_path):
    whole = gzip.compress(cif(tmp_path / "a.cif", lines("AG")).read_bytes())
    for content in (whole[:-20], whole[:20] + b"\xff" * 20 + whole[40:], whole[:2]):
        (tmp_path / "a.cif.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.cif\.gz is no mmCIF or PDB file"):
            read_chain(tmp_path / "a.cif.gz")


@pytest.mark.parametrize("model", [True, 1.0, "1"])
def test_model_is_an_int(tmp_path, model):
    with pytest.raises(TypeError, match=f"model must be an int; got {type(model).__name__}"):
        read_chain(cif(tmp_path / "a.cif", lines("AG")), model=model)


def test_tensors_are_not_made_atom_by_atom(tmp_path, monkeypatch):
    """A tensor an atom took seconds for a thousand residues."""
    path, made, tensor = cif(tmp_path / "a.cif", lines(EVERY)), [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given, **named: made.append(1) or tensor(*given, **named))
    read_chain(path)
    assert 0 < len(made) < 10


@pytest.mark.parametrize(
    "content", [b"", b"no structure\n", b"data_x\n_a.b 1\n", b"data_x\nloop_\n_atom_site.id\n", bytes(range(256)) * 40]
)
@pytest.mark.parametrize("suffix", ["cif", "pdb", "cif.gz", "txt"])
def test_no_structure(tmp_path, content, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.{suffix} is no "):
        read_chain(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.cif"):
        read_chain(tmp_path / "nowhere.cif")
    with pytest.raises(IsADirectoryError):
        read_chain(tmp_path)


def test_without_gemmi(tmp_path, monkeypatch):
    path = cif(tmp_path / "a.cif", lines("AG"))
    found = importlib.import_module

    def missing(name, *rest):
        if name == "gemmi":
            raise ImportError("No module named 'gemmi'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs gemmi .*pip install gemmi"):
        read_chain(path)
    assert builtins.__import__("paperops.structures")  # importing it needs none


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.cif", "a.cif.gz"])
def test_written_is_read_again(tmp_path, name):
    chain = read_chain(cif(tmp_path / "in.cif", lines(EVERY)))
    numbers = torch.arange(20) * 2 - 3
    plddt = torch.linspace(1, 100, 20)
    mask = chain.mask.clone()
    mask[3] = False  # a residue with no atoms
    positions = chain.positions.masked_fill(~mask[..., None], math.nan)
    path = tmp_path / name
    write_mmcif(path, chain.aatype, positions, mask, residue_index=numbers, plddt=plddt, chain="Q", name="trial")
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")
    again = read_chain(path)
    kept = torch.arange(20) != 3
    assert again.name == "Q" and again.sequence == EVERY[:3] + EVERY[4:]
    assert torch.equal(again.residue_index, numbers[kept]) and torch.equal(again.mask, mask[kept])
    torch.testing.assert_close(
        again.positions, chain.positions.masked_fill(~mask[..., None], 0)[kept], rtol=0, atol=6e-4
    )
    factors = {
        residue.seqid.num: {atom.b_iso for atom in residue} for residue in gemmi.read_structure(str(path))[0]["Q"]
    }
    assert factors[-3] == {1.0} and factors[35] == {100.0}
    assert gemmi.read_structure(str(path)).name == "trial"


def test_written_by_default_from_1(tmp_path):
    aatype, mask = torch.tensor([20, 7]), torch.zeros(2, 37)
    mask[:, :3] = 1
    write_mmcif(tmp_path / "a.cif", aatype, torch.rand(2, 37, 3), mask)
    chain = read_chain(tmp_path / "a.cif")
    assert chain.sequence == "XG" and chain.residue_index.tolist() == [1, 2] and chain.name == "A"


@pytest.mark.parametrize(
    "numbers, sequence, places",
    [
        (None, "(ALA)(GLY)(SER)", [1, 2, 3]),
        ([2, 3, 6], "(UNK)(ALA)(GLY)(UNK)(UNK)(SER)", [2, 3, 6]),
        ([-1, 0, 4], "(ALA)(GLY)(SER)", None),
        ([1, 2, 10**9], "(ALA)(GLY)(SER)", None),
    ],
)
def test_the_sequence_is_written_and_no_unit_cell(tmp_path, numbers, sequence, places):
    """With the residue that has no atoms; numbers that are passed over are unknown residues."""
    mask = torch.ones(3, 37)
    mask[1] = 0
    index = None if numbers is None else torch.tensor(numbers)
    path = tmp_path / "a.cif"
    write_mmcif(path, torch.tensor([0, 7, 15]), torch.rand(3, 37, 3), mask, residue_index=index)
    block = gemmi.cif.read(str(path)).sole_block()
    assert not [item for item in ("_cell.", "_symmetry.") if item in path.read_text()]
    names = sequence[1:-1].split(")(")
    structure = gemmi.read_structure(str(path))
    assert structure.entities[0].full_sequence == names
    assert list(block.find_values("_entity_poly_seq.mon_id")) == names
    letters = {"ALA": "A", "GLY": "G", "SER": "S", "UNK": "X"}
    assert block.find_values("_entity_poly.pdbx_seq_one_letter_code")[0] == "".join(letters[name] for name in names)
    labels = [residue.label_seq for residue in structure[0]["A"]]
    assert labels == ([None] * 2 if places is None else [places[0], places[2]])
    expected = [1, 3] if numbers is None else [numbers[0], numbers[2]]
    assert read_chain(path).residue_index.tolist() == expected


def writing_refusals():
    positions = torch.rand(2, 37, 3)
    yield "14 atoms", {"positions": positions[:, :14]}, ValueError, r"positions must have shape \[N, 37, 3\]"
    yield "type", {"aatype": torch.tensor([0, 21])}, ValueError, "from 0 to 20; got 21"
    yield "mask", {"mask": torch.ones(2, 36)}, ValueError, r"mask must have shape \[2, 37\]"
    yield "no mask", {"mask": None}, TypeError, "mask must be a torch.Tensor"
    yield "no atoms", {"mask": torch.zeros(2, 37)}, ValueError, "at least one atom"
    yield "nan", {"positions": positions * math.nan}, ValueError, "positions must be finite"
    yield "descending", {"residue_index": torch.tensor([2, 1])}, ValueError, "residue_index must ascend"
    yield "numbers", {"residue_index": torch.tensor([2, 3, 4])}, ValueError, r"residue_index must have shape \[2\]"
    yield "floats", {"residue_index": torch.tensor([2.0, 3.0])}, TypeError, "residue_index must have an integer dtype"
    yield "confidence", {"plddt": torch.tensor([0.5, 101])}, ValueError, "plddt must be from 0 to 100"
    yield "confidences", {"plddt": torch.tensor([0.5])}, ValueError, r"plddt must have shape \[2\]"
    yield "integer confidence", {"plddt": torch.tensor([5, 6])}, TypeError, "plddt must have a floating dtype"
    yield "chain", {"chain": "A B"}, ValueError, "chain must be a word; got 'A B'"
    yield "name", {"name": ""}, ValueError, "name must be a word; got ''"
    yield "folder", {}, OSError, "nowhere"


@pytest.mark.parametrize("changed, error, words", [pytest.param(*case, id=name) for name, *case in writing_refusals()])
def test_writing_refuses(tmp_path, changed, error, words):
    given = {"aatype": torch.tensor([0, 7]), "positions": torch.rand(2, 37, 3), "mask": torch.ones(2, 37)} | changed
    path = tmp_path / "nowhere" / "a.cif"
    with pytest.raises(error, match=words):
        write_mmcif(path, **given)
    assert not path.exists()
