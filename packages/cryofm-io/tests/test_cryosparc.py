"""cryoSPARC's data sets say of particles what a STAR file of the same says, and its jobs' half maps are found.

What a pose means is from public sources: cryoSPARC's developer gave pyem the matrix below for a rotation vector and its
author saw RELION reconstruct with the angles (asarnow/pyem, pull request 5). cryoDRGN 4.3.1 reads a data set such as
this one, and the STAR file that we write of it, to the same rotations (2e-7), shifts (4e-8) and CTFs (1e-7).
"""

import numpy as np
import pytest

from cryofm_io import (
    DensityMap,
    InputFileError,
    MapWarning,
    find_cryosparc_maps,
    images_on_disk,
    read_images,
    read_poses,
    read_subtomogram_poses,
    write_map,
)

COUNT = 7
FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/tilt_A", "<f4", (2,)),
    ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/psize_A", "<f4"),
]


@pytest.fixture
def particles(tmp_path):
    """A project with a stack, and what a refinement says of it; shifts are in pixels twice as large as the images'."""
    rng = np.random.default_rng(0)
    (tmp_path / "J3" / "extract").mkdir(parents=True)
    (tmp_path / "J9").mkdir()
    stack = rng.normal(size=(COUNT, 12, 12)).astype(np.float32)
    write_map(tmp_path / "J3" / "extract" / "some.mrcs", DensityMap(stack, 1.2))
    table = np.zeros(COUNT, FIELDS)
    table["uid"] = rng.permutation(COUNT) + 2**60
    table["blob/path"], table["blob/idx"] = b">J3/extract/some.mrcs", rng.permutation(COUNT)
    table["blob/psize_A"], table["alignments3D/psize_A"] = 1.2, 2.4
    table["ctf/df1_A"], table["ctf/df2_A"] = rng.uniform(8e3, 2e4, (2, COUNT))
    table["ctf/df_angle_rad"], table["ctf/phase_shift_rad"] = rng.uniform(0, 3, (2, COUNT))
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["alignments3D/pose"], table["alignments3D/shift"] = rng.normal(size=(COUNT, 3)), rng.normal(size=(COUNT, 2))
    table["alignments3D/pose"][0] = 0
    return tmp_path / "J9" / "P1_J9_004_particles.cs", table, stack


def save(path, table):
    with path.open("wb") as file:
        np.save(file, table)


def test_particles_are_what_a_refinement_says(particles):
    path, table, stack = particles
    save(path, table)
    images, on_disk = read_images(path), images_on_disk(path)
    assert np.array_equal(images.data, stack[table["blob/idx"]])
    assert np.array_equal(on_disk.read(range(COUNT)), images.data)
    assert images.voxel_size == on_disk.voxel_size == pytest.approx(1.2)
    assert images.ctf.defocus_u_angstrom == pytest.approx(table["ctf/df1_A"])
    assert images.ctf.defocus_angle_deg == pytest.approx(np.degrees(table["ctf/df_angle_rad"]), rel=1e-6)
    assert images.ctf.phase_shift_deg == pytest.approx(np.degrees(table["ctf/phase_shift_rad"]), rel=1e-6)
    assert images.ctf.voltage_kv == pytest.approx(300)
    assert images.poses.shifts == pytest.approx(2.4 * table["alignments3D/shift"], rel=1e-6)
    for found, vector in zip(read_poses(path).rotations, table["alignments3D/pose"].astype(float), strict=True):
        assert found == pytest.approx(relions_matrix(vector), abs=1e-6)


def relions_matrix(vector):
    """Rodrigues' formula with the signs of the pull request."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(angle, 1e-30)
    k = np.array([[0, z, -y], [-z, 0, x], [y, -x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def test_relions_angles_of_a_vector_by_hand(particles):
    path, table, _ = particles
    table["alignments3D/pose"][:4] = [(0, 0, 0.5), (0, 0.5, 0), (0.5, 0, 0), (0, 0, -0.25)]
    save(path, table)
    rot, tilt, psi = read_poses(path).angles_deg[:4].T
    # About z only rot + psi is told, about y it is tilt, and about x tilt between a quarter turn to y and back.
    assert (rot + psi)[[0, 3]] == pytest.approx(np.degrees([0.5, -0.25]), abs=1e-4)
    assert [rot[1], tilt[1], psi[1]] == pytest.approx([0, np.degrees(0.5), 0], abs=1e-4)
    assert [rot[2], tilt[2], psi[2]] == pytest.approx([-90, np.degrees(0.5), 90], abs=1e-4)


def test_what_is_missing_is_taken_from_the_passthrough_file(particles):
    path, table, _ = particles
    save(path, table)
    whole = read_images(path)
    here = ["uid", "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"]
    save(path, table[here])
    with pytest.raises(InputFileError, match="without images"):
        read_images(path)
    there = table[[name for name, *_ in FIELDS if name not in here[1:]]]
    save(path.with_name("P1_J9_passthrough_particles.cs"), there[np.random.default_rng(1).permutation(COUNT)])
    joined = read_images(path)
    assert np.array_equal(joined.data, whole.data)
    assert np.array_equal(joined.poses.rotations, whole.poses.rotations)
    save(path.with_name("P1_J9_passthrough_particles.cs"), there[1:])  # of other particles
    with pytest.raises(InputFileError, match="without images"):
        read_images(path)


def test_class_averages_have_no_poses(particles):
    path, table, stack = particles
    save(path, table[["blob/path", "blob/idx", "blob/psize_A"]][2:])
    images = read_images(path)
    assert np.array_equal(images.data, stack[table["blob/idx"][2:]])
    assert (images.ctf, images.poses) == (None, None)


def test_what_is_not_modelled_is_told(particles):
    path, table, _ = particles
    table["ctf/tilt_A"] = 0.3
    save(path, table)
    with pytest.warns(MapWarning, match="ctf/tilt_A are not modelled"):
        read_images(path)


def header(description):
    """A file of NumPy's that is hardly more than what it says of itself."""
    text = description.encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(72)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x94CSDAT\0\0", "a compressed data set; unpack it"),
        (b"\x93NUMPY\x01\0\x10", "not a readable data set"),
        (b"", "not a readable data set"),
        (b"\x93NUMPY\x01\0\x10\0{'descr': [('uid',", "not a readable data set"),  # NumPy: TokenError
        (header("{'descr': [('uid', '<u8')], 'fortran_order': False, 'shape': (10000000000000,)}"), "72 bytes of an"),
        (
            b"\x93NUMPY\x02\0\x00\x00\x00\x68{'descr'",
            "a header longer than the file",
        ),  # for which NumPy would make room
        (np.array([(b"a\nb", 1)], [("blob/path", "S3"), ("blob/idx", "<u4")]), "is no path of images"),
        (np.zeros(3), "not a data set"),
        (np.array([(1, {})], [("uid", "<u8"), ("blob/path", object)]), "not a readable data set"),
        (np.zeros(2, [("blob/path", "S3"), ("blob/idx", "<f4", (2,))]), "another kind"),
        (np.zeros(2, [("blob/path", "S3"), ("blob/idx", "<u4"), ("alignments3D/pose", "<f4")]), "another kind"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, content, words):
    path = tmp_path / "some.cs"
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    with pytest.raises(InputFileError, match=words) as refused:
        read_poses(path)
    assert "\n" not in str(refused.value)


def test_no_subtomograms(particles):
    path, table, _ = particles
    save(path, table)
    with pytest.raises(InputFileError, match="no subtomograms"):
        read_subtomogram_poses(path)


def test_half_maps_of_the_last_iteration(tmp_path):
    assert find_cryosparc_maps(tmp_path) is None
    for iteration in ("002", "010"):
        for name in ("map", "map_half_A", "map_half_B", "map_sharp", "mask_refine", "mask_fsc"):
            (tmp_path / f"cryosparc_P3_J14_{iteration}_volume_{name}.mrc").touch()
    found = find_cryosparc_maps(tmp_path)
    assert [path.name[17:] for path in (*found.half_maps, found.mask)] == [
        "010_volume_map_half_A.mrc",
        "010_volume_map_half_B.mrc",
        "010_volume_mask_refine.mrc",
    ]
    found.half_maps[1].unlink()
    with pytest.raises(InputFileError, match="one half map"):
        find_cryosparc_maps(tmp_path)
    (tmp_path / "P3_J15_000_volume_map_half_A.mrc").touch()
    with pytest.raises(InputFileError, match="several jobs"):
        find_cryosparc_maps(tmp_path)
