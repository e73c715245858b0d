"""Simulated maps against the sum over atoms that they stand for, frequency by frequency."""

import gzip

import numpy as np
import pytest

from cryofm_io import GeometryError, InputFileError, MapWarning, simulate_density

gemmi = pytest.importorskip("gemmi")

ATOMS = [("C", 0.0, 0.0, 0.0, 20), ("N", 3.1, -2.0, 4.2, 25), ("O", -4.4, 5.0, 1.3, 40), ("S", 6.0, 6.5, -5.1, 60)]


@pytest.fixture
def model(tmp_path):
    lines = [
        f"ATOM  {i:5d}  {element:<3} ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}          {element:>2}\n"
        for i, (element, x, y, z, b) in enumerate(ATOMS, 1)
    ]
    path = tmp_path / "model.pdb"
    path.write_text("".join(lines) + "END\n")
    return path


def structure_factor(k, shape, voxel_size, b_base=20.0):
    """Σ f(k) exp(−B k²/4) exp(−2πi k·r) over the atoms, centred in the box; k (x, y, z) in 1/Å."""
    position = np.array([atom[1:4] for atom in ATOMS])
    position += np.array(shape[::-1]) * voxel_size / 2 - (position.min(0) + position.max(0)) / 2
    b = np.array([atom[4] for atom in ATOMS], dtype=float)
    b += b_base - np.percentile(b, 5)
    s2 = (k**2).sum()
    f = [gemmi.Element(atom[0]).c4322.calculate_sf(s2 / 4) for atom in ATOMS]
    return (np.array(f) * np.exp(-b * s2 / 4) * np.exp(-2j * np.pi * position @ k)).sum()


@pytest.mark.parametrize(("voxel_size", "b_base"), [(1.5, 20.0), (1.5, -10.0), (2.0, 50.0)])
def test_every_frequency_is_the_sum_over_the_atoms(model, voxel_size, b_base):
    density = simulate_density(model, voxel_size, resolution=2.1 * voxel_size, b_base=b_base, ice=0)
    spectrum = np.fft.fftn(density) * voxel_size**3
    largest = abs(spectrum[0, 0, 0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        index = np.array([rng.integers(-(n // 3), n // 3 + 1) for n in density.shape])
        k = (index / (np.array(density.shape) * voxel_size))[::-1]
        if np.linalg.norm(k) > 0.85 / (2.1 * voxel_size):
            continue  # beyond the low-pass's flat part
        wanted = structure_factor(k, density.shape, voxel_size, b_base)
        assert abs(spectrum[tuple(index)] - wanted) < 0.01 * largest


def test_nothing_is_left_beyond_the_resolution(model):
    density = simulate_density(model, 1.5, resolution=5.0)
    spectrum = np.abs(np.fft.fftn(density))
    k = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, 1.5) for n in density.shape), indexing="ij")))
    assert spectrum[k > 1 / 5.0].max() < 1e-4 * spectrum.max()


def test_ice_lowers_the_inside_and_leaves_the_outside(model):
    without, with_ice = (simulate_density(model, 1.5, ice=ice) for ice in (0.0, 1.0))
    assert with_ice.sum() < without.sum()
    assert abs(with_ice[0]).max() < 1e-2 * with_ice.max()


def test_turning_the_model_turns_the_map(model):
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y
    density = simulate_density(model, 1.5, margin=12)
    turned = simulate_density(model, 1.5, margin=12, rotation=quarter)
    z, y, x = density.shape
    assert turned.shape == (z, x, y)
    # (x, y) -> (-y, x); voxel i lies at i - n/2 from the centre, so flipping moves by one voxel
    expected = np.roll(np.flip(density.transpose(0, 2, 1), 2), 1, 2)
    np.testing.assert_allclose(turned, expected, atol=2e-3 * density.max())


def test_without_b_factors_the_surface_moves_more(tmp_path):
    rng = np.random.default_rng(0)
    position = rng.normal(size=(200, 3)) * 6
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C\n"
        for i, (x, y, z) in enumerate(position, 1)
    ]
    path = tmp_path / "model.pdb"
    path.write_text("".join(lines) + "END\n")
    uneven, even = (simulate_density(path, 1.5, b_base=20, b_scale=scale, ice=0) for scale in (1.0, 0.0))
    assert 0.3 * even.max() < uneven.max() < even.max()


def line(i, name, alternate, residue, number, xyz, occupancy="  1.00", b=" 20.00", element=None, record="ATOM  "):
    x, y, z = xyz
    return (
        f"{record}{i:5d}  {name:<3s}{alternate or ' '}{residue:<3s} A{number:>4s}{' ' * (5 - len(number[4:]))}"
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy}{b}          {(name[0] if element is None else element):>2s}\n"
    )


def helix(alternates=(None,), occupancies=None, change=lambda i: {}):
    """Twelve residues of three atoms; the alternates of an atom are at its place, so that one whole atom is right."""
    occupancies = occupancies or ["  1.00"] * len(alternates)
    lines = []
    for i in range(12):
        for k, (name, radius, rise) in enumerate((("N", 1.5, -0.9), ("CA", 2.3, 0.0), ("O", 1.9, 2.3))):
            for alternate, occupancy in zip(alternates, occupancies, strict=True):
                angle = np.deg2rad(100 * i + 30 * k)
                xyz = (radius * np.cos(angle), radius * np.sin(angle), 1.5 * i + rise)
                how = {"residue": "ALA", "number": f"{i + 1:4d}", "occupancy": occupancy} | change(i)
                lines.append(line(len(lines) + 1, name, alternate, xyz=xyz, **how))
    return "".join(lines)


@pytest.fixture
def simulate(tmp_path):
    def simulate(text, name="model.pdb", **how):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return simulate_density(path, **how)

    return simulate


@pytest.mark.parametrize(
    "text",
    [
        helix("AB", ["  0.50", "  0.50"]),
        helix("BA", ["  0.30", "  0.70"]),
        helix("ABC", ["  0.33"] * 3),
        helix("B", ["  0.50"]),
        helix("1", ["  0.50"]),
        helix(occupancies=["  0.00"]),
        helix(occupancies=["      "]),
        helix(occupancies=["  0.30"]),
        helix("AB", ["  0.00", "  0.00"]),
        # numbers with insertion codes: 1, 1A, 1B, 2, ...
        helix(change=lambda i: {"number": f"{i // 3 + 1:4d}" + ["", "A", "B"][i % 3]}),
        helix("AB", ["  0.50"] * 2, change=lambda i: {"number": f"{i // 3 + 1:4d}" + ["", "A", "B"][i % 3]}),
        # all with one number, as a program may leave them
        helix(change=lambda i: {"number": "   1"}),
        # waters by the names of several programs, hydrogens
        helix()
        + "".join(
            line(90 + i, "OH2", None, w, f"{90 + i:4d}", (20 * i, 0, 0)) for i, w in enumerate(("HOH", "TIP", "SOL"))
        ),
        helix() + line(99, "HA", None, "ALA", "  12", (30, 30, 30)),
    ],
)
def test_every_atom_counts_once_and_whole(simulate, text):
    np.testing.assert_allclose(simulate(text), simulate(helix()), atol=1e-5)


def test_two_residues_in_one_place(simulate):
    """The likelier one stays, all of it; what only the other has in a residue that both share stays too."""
    other = helix("B", ["  0.40"], change=lambda i: {"residue": "SER"} if i == 5 else {}).splitlines(keepends=True)[
        15:18
    ]
    mixed = helix("A", ["  0.60"]) + "".join(other)
    np.testing.assert_allclose(simulate(mixed), simulate(helix()), atol=1e-5)
    only_in_b = [x for i, x in enumerate(helix("AB", ["  0.60", "  0.40"]).splitlines(keepends=True)) if i != 12]
    np.testing.assert_allclose(simulate("".join(only_in_b)), simulate(helix()), atol=1e-5)


def test_missing_elements_are_guessed(simulate):
    for element in ("X", ""):
        guessed = simulate(helix(change=lambda i, element=element: {"element": element}))
        np.testing.assert_allclose(guessed, simulate(helix()), atol=1e-5)
    with pytest.warns(MapWarning, match="1 atoms have no element"):  # beyond the tables
        assert simulate(helix() + line(99, "ES", None, "ES", "  99", (0, 0, 9), element="ES")).max() > 0


def test_an_unknown_atom_is_no_uranium(simulate):
    with pytest.warns(MapWarning, match="1 atoms have no element"):
        made = simulate(helix() + line(99, "UNK", None, "UNX", "  99", (6, 0, 9), element="X"))
    assert np.array_equal(made, simulate(helix() + line(99, "C1", None, "UNX", "  99", (6, 0, 9), element="C")))


def test_b_factors_that_cannot_be(simulate):
    lines = helix().splitlines(keepends=True)
    lines[4] = lines[4][:60] + "   nan" + lines[4][66:]
    with pytest.warns(MapWarning, match="1 atoms have no B factor"):
        np.testing.assert_allclose(simulate("".join(lines)), simulate(helix()), atol=1e-5)


def test_endings_compression_and_byte_order_marks(simulate):
    whole = simulate(helix())
    for content, name in [
        (gzip.compress(helix().encode()), "MODEL.PDB.GZ"),
        (helix(), "MODEL.ENT"),
        (b"\xef\xbb\xbf" + b"REMARK gr\xf6\xdfer\n" + helix().encode(), "model.txt"),
    ]:
        np.testing.assert_allclose(simulate(content, name), whole, atol=1e-5)


def test_mmcif_with_what_is_missing(simulate, tmp_path):
    structure = gemmi.read_pdb_string(helix())
    structure.setup_entities()
    text = structure.make_mmcif_document().as_string()
    whole = simulate(helix())
    np.testing.assert_allclose(simulate(text, "model.cif"), whole, atol=1e-5)
    document = gemmi.cif.read_string(text)
    for row in document.sole_block().find("_atom_site.", ["occupancy", "type_symbol"]):
        row[0], row[1] = "?", "?"
    with pytest.warns(MapWarning, match="no element"):
        np.testing.assert_allclose(simulate(document.as_string(), "model.cif"), whole, atol=1e-5)
    row = document.sole_block().find("_atom_site.", ["Cartn_x"])[3]
    row[0] = "?"
    with (
        pytest.warns(MapWarning, match="no element"),
        pytest.warns(MapWarning, match="1 atoms have no position"),
    ):
        assert simulate(document.as_string(), "model.cif").max() > 0


def test_mmcif_without_columns_and_behind_another_block(simulate):
    structure = gemmi.read_pdb_string(helix())
    structure.setup_entities()
    document = structure.make_mmcif_document()
    wanted = ["group_PDB", "label_atom_id", "label_comp_id", "Cartn_x", "Cartn_y", "Cartn_z", "auth_seq_id"]
    rows = document.sole_block().find("_atom_site.", wanted)
    loop = "loop_\n" + "".join(f"_atom_site.{name}\n" for name in wanted) + "".join(" ".join(r) + "\n" for r in rows)
    with pytest.warns(MapWarning, match="no element"):
        made = simulate(f"data_cell\n_cell.length_a 1\n\ndata_atoms\n{loop}", "model.cif")
    np.testing.assert_allclose(made, simulate(helix(change=lambda i: {"b": "  0.00"})), atol=1e-5)


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.diag([1, 1, -1]), 2 * np.eye(3), np.full((3, 3), np.nan)])
def test_an_assembly_whose_transform_is_no_motion_is_the_model(simulate, matrix):
    rows = "".join(
        f"REMARK 350   BIOMT{i + 1}   1{x:10.6f}{y:10.6f}{z:10.6f}        0.00000\n"
        for i, (x, y, z) in enumerate(matrix)
    )
    text = f"REMARK 350 BIOMOLECULE: 1\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A\n{rows}"
    np.testing.assert_allclose(simulate(text + helix()), simulate(helix()), atol=1e-5)


def assembly(expression, moves=("1", "2", "X0"), columns=("id", "type"), chains="Axp"):
    """The helix with the tables that tell an assembly: move 2 goes 40 Å along x, the others stay."""
    structure = gemmi.read_pdb_string(helix())
    structure.setup_entities()
    document = structure.make_mmcif_document()
    block = document.sole_block()
    copies = block.init_loop("_pdbx_struct_assembly_gen.", ["assembly_id", "oper_expression", "asym_id_list"])
    copies.add_row(["1", gemmi.cif.quote(expression), chains])
    names = [f"matrix[{i}][{j}]" for i in "123" for j in "123"] + [f"vector[{i}]" for i in "123"]
    table = block.init_loop("_pdbx_struct_oper_list.", [*columns, *names])
    for move in moves:
        shift = "40" if move == "2" else "0"
        table.add_row([move, *["?"] * (len(columns) - 1), *"100010001", shift, "0", "0"])
    return document.as_string()


@pytest.mark.parametrize(
    ("expression", "columns", "count"),
    [
        ("1,2", ("id", "type"), 2),  # no table of assemblies, which gemmi asks for
        ("1-2", ("id",), 2),
        ("(1-2)", ("id",), 2),
        ("(X0)(1-2)", ("id", "type"), 2),  # products, of which gemmi takes the first factor
        ("(1,2)(1,2)", ("id", "type"), 3),  # one place twice
        ("1,1", ("id", "type"), 1),
        ("1,X0", ("id", "type"), 1),
        ("(1,7)", ("id", "type"), 1),  # a move that is not told
        ("(1-9999)(1-9999)", ("id", "type"), 1),
    ],
)
def test_copies_of_an_assembly_are_those_that_are_told(simulate, expression, columns, count):
    made = simulate(assembly(expression, columns=columns), "model.cif", ice=0)
    one = simulate(helix(), ice=0)
    assert made.sum() == pytest.approx(count * one.sum(), rel=1e-3)
    assert made.max() == pytest.approx(one.max(), rel=0.02)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_ends_of_lines_of_other_systems(simulate, end):
    np.testing.assert_array_equal(simulate(helix().replace("\n", end)), simulate(helix()))


def test_conformations_of_long_names(simulate):
    structure = gemmi.read_pdb_string(helix())
    structure.setup_entities()
    document = structure.make_mmcif_document()
    for i, row in enumerate(document.sole_block().find("_atom_site.", ["label_alt_id"])):
        row[0] = ("AA", "A")[i % 2]  # of atoms that are in one place each
    np.testing.assert_allclose(simulate(document.as_string(), "model.cif"), simulate(helix()), atol=1e-5)


def test_an_assembly_without_transform_is_the_model(simulate):
    structure = gemmi.read_pdb_string(helix())
    structure.setup_entities()
    document = structure.make_mmcif_document()
    block = document.sole_block()
    block.init_loop("_pdbx_struct_assembly.", ["id"]).add_row(["1"])
    block.init_loop("_pdbx_struct_assembly_gen.", ["assembly_id", "oper_expression", "asym_id_list"]).add_row(
        ["1", "7", "Axp,nowhere"]
    )
    np.testing.assert_allclose(simulate(document.as_string(), "model.cif"), simulate(helix()), atol=1e-5)


def test_atoms_far_off_are_named_before_they_cost_memory(simulate):
    with pytest.raises(InputFileError, match=r"model\.pdb: its atoms span .* far off"):
        simulate(helix() + line(99, "CA", None, "ALA", "  99", (9999.999, 9999.999, 9999.999)))


@pytest.mark.parametrize("how", [{"voxel_size": np.nan}, {"resolution": 0}, {"ice": np.inf}, {"margin": -1}])
def test_lengths_that_cannot_be(simulate, how):
    with pytest.raises(GeometryError):
        simulate(helix(), **how)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 999, b"data_x\n_atom_site.id\n", b"\x1f\x8b123", b"ATOM" + b"9" * 999, b"ATOM\nATOM\n"]
)
def test_files_of_another_kind(simulate, content):
    for name in ("model.pdb", "model.cif"):
        with pytest.raises(InputFileError, match="model") as caught:
            simulate(content, name)
        assert "\n" not in str(caught.value)


def test_a_file_without_atoms_is_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"none\.pdb"):
        simulate_density(tmp_path / "none.pdb")
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(InputFileError, match="no atoms"):
        simulate_density(tmp_path / "empty.pdb")
