"""Poses mean what RELION means, and a STAR file written is a STAR file read."""

import attrs
import mrcfile
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofm_io import (
    CryoFMError,
    GeometryError,
    ImageCtf,
    ImageStack,
    InputFileError,
    OutputExistsError,
    Poses,
    read_images,
    read_subtomogram_poses,
    write_poses,
)

RNG = np.random.default_rng(0)


def test_angles_are_relions():
    """Written out: R = Rz(−psi) Ry(−tilt) Rz(−rot), turning coordinate axes by rot, then tilt, then psi."""

    def z(a):
        return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])

    def y(a):
        return np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])

    angles = np.array([[10.0, 20, 30], [-170, 100, 5], [0, 0, 77]])
    rot, tilt, psi = np.deg2rad(angles).T
    expected = [z(c) @ y(b) @ z(a) for a, b, c in zip(rot, tilt, psi, strict=True)]
    np.testing.assert_allclose(Poses.from_angles(angles, np.zeros((3, 2))).rotations, expected, atol=1e-12)


def test_angles_of_any_rotation_give_it_back():
    special = Rotation.from_euler("ZYZ", [[0, 0, 0], [50, 0, 20], [50, 180, 20]], degrees=True).as_matrix()
    rotations = np.concatenate([Rotation.random(50, rng=RNG).as_matrix(), special])
    poses = Poses(rotations, np.zeros((53, 2)))
    again = Poses.from_angles(poses.angles_deg, poses.shifts)
    np.testing.assert_allclose(again.rotations, rotations, atol=1e-9)
    assert (poses.angles_deg[:, 1] >= 0).all()


@pytest.mark.parametrize(
    "rotation", [np.diag([1, 1, -1.0]), 1.01 * np.eye(3), np.full((3, 3), np.nan)], ids=["mirror", "scaled", "nan"]
)
def test_what_is_no_rotation(rotation):
    with pytest.raises(GeometryError, match="pose 1 is no rotation"):
        Poses(np.stack([np.eye(3), rotation]), np.zeros((2, 2)))
    with pytest.raises(GeometryError, match=r"\(3, 3\)"):
        Poses(np.eye(3), np.zeros(2))
    with pytest.raises(GeometryError, match="pose 0"):
        Poses(np.eye(3)[None], [[np.nan, 0]])


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Six images with CTFs of two microscopes, stored in a folder with a space in its name."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my classes" / "stack.mrcs"
    path.parent.mkdir()
    with mrcfile.new(path, data=RNG.normal(size=(6, 9, 9)).astype(np.float32)) as file:
        file.voxel_size = 1.5
    images = read_images(path.relative_to(tmp_path))
    voltage, cs = np.array([300, 200, 300, 300, 200, 200]), np.array([2.7, 1.4, 2.7, 2.7, 1.4, 1.4])
    u, angle = RNG.uniform(5e3, 2e4, size=6), RNG.uniform(0, 180, size=6)
    ctf = ImageCtf(u, 0.9 * u, angle, voltage, cs, np.full(6, 0.1), np.zeros(6))
    return attrs.evolve(images, ctf=ctf, voxel_size=1.504054)


def test_what_is_written_is_read(stack, tmp_path):
    poses = Poses(Rotation.random(6, rng=RNG).as_matrix(), RNG.normal(scale=5, size=(6, 2)))
    write_poses("out/poses.star", stack, poses)
    again = read_images("out/poses.star")
    assert np.array_equal(again.data, stack.data)
    assert again.names == stack.names
    assert again.voxel_size == stack.voxel_size
    np.testing.assert_allclose(again.poses.rotations, poses.rotations, atol=1e-7)
    np.testing.assert_allclose(again.poses.shifts, poses.shifts, atol=1e-6)
    for field, values in attrs.asdict(stack.ctf).items():
        np.testing.assert_allclose(getattr(again.ctf, field), values, atol=1e-6, err_msg=field)
    write_poses("bare.star", attrs.evolve(stack, ctf=None), poses)
    assert read_images("bare.star").ctf is None
    assert [p.name for p in tmp_path.iterdir()].count("bare.star") == 1


def test_the_file_is_relions(stack, tmp_path):
    poses = Poses.from_angles(np.tile([[10.0, 20, 30]], (6, 1)), np.tile([[1.5, -2]], (6, 1)))
    write_poses("poses.star", attrs.evolve(stack, ctf=None), poses)
    lines = [line for line in (tmp_path / "poses.star").read_text().splitlines() if line]
    assert lines == [
        "# version 30001",
        "data_optics",
        "loop_",
        "_rlnOpticsGroupName #1",
        "_rlnOpticsGroup #2",
        "_rlnImageSize #3",
        "_rlnImageDimensionality #4",
        "_rlnImagePixelSize #5",
        "opticsGroup1\t1\t9\t2\t1.504054",
        "# version 30001",
        "data_particles",
        "loop_",
        "_rlnImageName #1",
        "_rlnAngleRot #2",
        "_rlnAngleTilt #3",
        "_rlnAnglePsi #4",
        "_rlnOriginXAngst #5",
        "_rlnOriginYAngst #6",
        "_rlnOpticsGroup #7",
        *(
            f"'00000{i}@my classes/stack.mrcs'\t10.000000\t20.000000\t30.000000\t1.500000\t-2.000000\t1"
            for i in range(1, 7)
        ),
    ]


def test_refusals(stack, tmp_path):
    poses = Poses.from_angles(np.zeros((6, 3)), np.zeros((6, 2)))
    (tmp_path / "poses.star").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_poses("poses.star", stack, poses)
    assert (tmp_path / "poses.star").read_text() == "mine"
    write_poses("poses.star", stack, poses, overwrite=True)
    with pytest.raises(GeometryError, match="6 images and 2 poses"):
        write_poses("b.star", stack, Poses(poses.rotations[:2], poses.shifts[:2]))
    with pytest.raises(CryoFMError, match="no names"):
        write_poses("b.star", ImageStack(stack.data, 1.5), poses)


def star(path, columns, rows, optics=""):
    path.write_text("\n".join([optics, "data_particles", "loop_", *(f"_{name}" for name in columns), *rows, ""]))
    return path


PARTICLE, BOX = (10.0, 20.0, 30.0), (-40.0, 50.0, 60.0)
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
TILTS = ("cryofmTiltMin", "cryofmTiltMax")


def test_subtomograms_are_turned_by_their_own_angles_and_then_by_those_of_their_box(tmp_path):
    own, box = (Poses.from_angles([angles], [[0, 0]]).rotations[0] for angles in (PARTICLE, BOX))
    plain = star(tmp_path / "3.star", ("rlnImageName", *ANGLES), ["1.mrc 10 20 30"])
    read = read_subtomogram_poses(plain)
    np.testing.assert_allclose(read.rotations, [own], atol=1e-12)
    assert (len(read), read.tilts_deg) == (1, None)
    columns = ("rlnTomoName", *ANGLES, "rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_cryofmTiltMin\n_cryofmTiltMax\n1 -60 60\n2 -51 40\n"
    rows = [f"T{group} 10 20 30 -40 50 60 {group}" for group in (2, 1)]
    read = read_subtomogram_poses(star(tmp_path / "5.star", (*columns, "rlnOpticsGroup"), rows, optics))
    np.testing.assert_allclose(read.rotations, [box @ own] * 2, atol=1e-12)
    np.testing.assert_array_equal(read.tilts_deg, [[-51, 40], [-60, 60]])


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("rlnImageName", *ANGLES), "1@stack.mrcs 0 0 0", "lists images of single particles"),
        (("rlnImageName", "rlnAngleRot", "rlnAnglePsi"), "1.mrc 0 0", "rlnAngleTilt not; add them"),
        (("rlnImageName",), "1.mrc", "no table lists particles and their angles"),
        (("rlnImageName", *ANGLES, "cryofmTiltMin"), "1.mrc 0 0 0 -60", "cryofmTiltMax not; add them"),
        (("rlnImageName", *ANGLES, *TILTS), "1.mrc 0 0 0 60 -60", "tilts from 60 to -60 in row 1 .*1.mrc"),
        (("rlnImageName", *ANGLES, *TILTS), "1.mrc 0 0 0 -60 nan", "cryofmTiltMax is nan in row 1"),
        (("rlnImageName", *ANGLES), "1.mrc 0 x 0", "no number in row 1"),
    ],
)
def test_subtomograms_whose_poses_cannot_be_known_are_refused(tmp_path, columns, row, message):
    with pytest.raises(InputFileError, match=message):
        read_subtomogram_poses(star(tmp_path / "particles.star", columns, [row]))


def test_the_nearest_rotations_are_taken():
    """Of single precision, and with an error along every axis."""
    true = Rotation.random(5, rng=np.random.default_rng(0)).as_matrix()
    found = Poses.nearest((true * [1.001, 0.999, 1.0]).astype(np.float32), np.zeros((5, 2))).rotations
    assert np.abs(found @ found.mT - np.eye(3)).max() < 1e-12
    assert np.abs(found - true).max() < 1e-3


def optimisation_set(folder, tilts, *, version, particles, series="data_{name}"):
    """As RELION 4 and 5 write it: tilts of each tomogram by its name, about x and y in degrees."""
    (folder / "series").mkdir(exist_ok=True)
    heads, tables = ["data_global", "loop_", "_rlnTomoName", "_rlnTomoHand"], []
    rows = [f"{name} -1" for name in tilts]
    for name, own in tilts.items():
        if version == 4:
            turn = Rotation.from_euler("xyz", [(x, y, 85) for x, y in own], degrees=True).as_matrix()
            projected = [" ".join(f"[{a:.9f},{b:.9f},{c:.9f},7]" for a, b, c in 1.3 * matrix) for matrix in turn]
            tables += [f"data_{name}", "loop_", *(f"_rlnTomoProj{axis}" for axis in "XYZ"), *projected, ""]
        else:
            text = [series.format(name=name), "loop_", "_rlnTomoXTilt", "_rlnTomoYTilt", *(f"{x} {y}" for x, y in own)]
            (folder / "series" / f"{name}.star").write_text("\n".join([*text, ""]))
    if version == 5:
        heads, rows = [*heads, "_rlnTomoTiltSeriesStarFile"], [f"{row} series/{row.split()[0]}.star" for row in rows]
    (folder / "tomograms.star").write_text("\n".join([*heads, *rows, "", *tables]))
    star(folder / "particles.star", ("rlnTomoName", *ANGLES, "rlnTomoVisibleFrames"), particles)
    text = ["data_", "_rlnTomoParticlesFile particles.star", "_rlnTomoTomogramsFile tomograms.star", ""]
    (folder / "set.star").write_text("\n".join(text))
    return folder / "set.star"


@pytest.mark.parametrize("version", [4, 5])
def test_tilts_are_those_of_the_frames_in_which_a_particle_is_seen(tmp_path, version):
    tilts = {"TS_01": [(0, -51), (0, -10), (0, 42)], "TS_02": [(5, -38), (5, 60)]}
    particles = ["TS_02 10 20 30 [1,1]", "TS_01 0 0 0 [1,1,1]", "TS_01 0 0 0 [0,1,1]"]
    path = optimisation_set(tmp_path, tilts, version=version, particles=particles)
    read = read_subtomogram_poses(path)
    assert read.tilts_deg[1:] == pytest.approx(np.array([[-51, 42], [-10, 42]]), abs=1e-4)
    # What a tilt measures is across the beam; of that, what has no part along y, has the angle that a wedge is told.
    for tilt, found in zip((-38, 60), read.tilts_deg[0], strict=True):
        beam = (Rotation.from_euler("y", tilt, degrees=True) * Rotation.from_euler("x", 5, degrees=True)).as_matrix()[2]
        x, _, z = np.cross([0, 1, 0], beam)
        assert found == pytest.approx(np.degrees(np.arctan(z / x)), abs=1e-4)
    np.testing.assert_allclose(read.rotations[0], Poses.from_angles([PARTICLE], [[0, 0]]).rotations[0], atol=1e-12)


@pytest.mark.parametrize(
    ("tilts", "particles", "words"),
    [
        ({"T1": [(0, -60), (0, 60)]}, ["T2 0 0 0 [1,1]"], "no tomogram T2"),
        ({"T1": [(0, -60), (0, 60)]}, ["T1 0 0 0 [1,1,1]"], "rlnTomoVisibleFrames in row 1"),
        ({"T1": [(0, -60), (0, 60)]}, ["T1 0 0 0 [0,0]"], "rlnTomoVisibleFrames in row 1"),
        ({"T1": [(60, 0), (0, 60)]}, ["T1 0 0 0 [1,1]"], "60° off the plane across y"),
        ({"T1": [(0, "x"), (0, 60)]}, ["T1 0 0 0 [1,1]"], "the tilts of T1 are no numbers"),
        ({"T1": [(0, 10)]}, ["T1 0 0 0 [1]"], "tilts from 10 to 10 in row 1"),
    ],
)
def test_sets_whose_tilts_cannot_be_known_are_refused(tmp_path, tilts, particles, words):
    with pytest.raises(InputFileError, match=words):
        read_subtomogram_poses(optimisation_set(tmp_path, tilts, version=5, particles=particles))
