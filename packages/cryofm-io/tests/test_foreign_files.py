"""Files of other programs: read where they can be, otherwise refused by what they are and what converts them."""

import shutil
import subprocess

import attrs
import numpy as np
import pytest
import raw_mrc

from cryofm_io import (
    DensityMap,
    InputFileError,
    MapWarning,
    check_same_grid,
    read_images,
    read_map,
    read_mask,
    read_poses,
    read_subtomogram_poses,
    write_map,
)

DATA = np.random.default_rng(5).normal(size=(6, 6, 6)).astype(np.float32)
STACK = DATA[:5]


@pytest.mark.parametrize("order", ["<", ">"])
def test_without_map_in_the_header(tmp_path, order):
    """As SPIDER and cryoDRGN's own test data have it."""
    how = {"map": b"\0\0\0\0", "stamp": b"\0\0\0\0"}
    with pytest.warns(MapWarning, match=r"a\.mrc: no 'MAP' at byte 208"):
        assert np.array_equal(read_map(raw_mrc.write(tmp_path / "a.mrc", DATA, order, **how)).data, DATA)
    with pytest.warns(MapWarning, match=r"a\.mrcs: no 'MAP' at byte 208"):
        stack = read_images(raw_mrc.write(tmp_path / "a.mrcs", STACK, order, **how, ispg=0))
    assert np.array_equal(stack.data, STACK)


def test_rubbish_angles_of_a_stack(tmp_path):
    path = raw_mrc.write(tmp_path / "a.mrcs", STACK, angles=(np.nan, 2e33, -7.0))
    with pytest.warns(MapWarning, match=r"a\.mrcs: cell angles .* mean nothing for images"):
        assert read_images(path).voxel_size == 1.5


@pytest.mark.parametrize(
    ("name", "start", "command"),
    [
        ("particles.cs", b"\x93NUMPY\x01\0", "read_images"),
        ("average.EM", b"\x06\0\0\x05", "e2proc3d.py"),
        ("stack.tif", b"II*\0", "tif2mrc"),
        ("disguised.mrc", b"MM\0*", "tif2mrc"),
        ("volume.hdf", b"\x89HDF\r\n", "e2proc3d.py"),
        ("average.dm4", b"\0\0\0\x04", "dm2mrc"),
        ("array.npy", b"\x93NUMPY\x01\0", "mrcfile.write"),
        ("model.pdb", b"HEADER", "simulate_density"),
        ("images.star", b"data_", "read_images"),
    ],
)
def test_other_formats_name_what_converts_them(tmp_path, name, start, command):
    path = tmp_path / name
    path.write_bytes(start + bytes(4000))
    with pytest.raises(InputFileError, match=command) as caught:
        read_map(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_unsigned_bytes_are_told_by_dmin_and_dmax(tmp_path, order):
    values = np.arange(216, dtype=np.uint8).reshape(6, 6, 6)
    how = {"mode": 0, "stored": values.tobytes()}
    path = tmp_path / "bytes.mrc"
    assert read_map(raw_mrc.write(path, values, order, stats=(0.0, 215.0), **how)).data.max() == 215
    assert read_map(raw_mrc.write(path, values, order, stats=(-128.0, 127.0), **how)).data.min() == -128
    assert read_map(raw_mrc.write(path, values, order, **how)).data.max() == 215  # they would jump
    assert read_map(raw_mrc.write(path, values, order, stats=(0.0, 215.0), imod=1, **how)).data.min() == -128


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stats", [(0.0, 65535.0), (0.0, 0.0)])
def test_integers_of_two_bytes_without_a_sign(tmp_path, order, stats):
    x = np.linspace(-1, 1, 24)
    density = np.exp(-3 * (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
    wanted = np.rint(60000 * density)
    stored = wanted.astype(f"{order}u2")
    path = raw_mrc.write(tmp_path / "map.mrc", stored, order, mode=1, stored=stored.tobytes(), stats=stats)
    assert np.array_equal(read_map(path).data, wanted)
    signed = (wanted - 30000).astype(f"{order}i2")
    path = raw_mrc.write(tmp_path / "map.mrc", signed, order, mode=1, stored=signed.tobytes())
    assert np.array_equal(read_map(path).data, signed)


@pytest.mark.parametrize("stats", [(0.0, 0.0), (0.0, 100.0), (1.0, -1.0), (np.nan, np.nan)])
@pytest.mark.parametrize("low", [0, -128, -20])
def test_bytes_of_which_nobody_says_whether_they_have_a_sign(tmp_path, low, stats):
    x = np.linspace(-1, 1, 24)
    density = np.exp(-3 * (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
    top = {0: 255, -128: 127, -20: 127}[low]
    wanted = np.rint(low + (top - low) * density + np.random.default_rng(0).normal(0, 3, density.shape)).clip(low, top)
    stored = wanted.astype("u1" if low == 0 else "i1")
    path = raw_mrc.write(tmp_path / "bytes.mrc", stored, mode=0, stored=stored.tobytes(), stats=stats)
    assert np.array_equal(read_map(path).data, wanted)


@pytest.mark.parametrize("low", [0, -128])
def test_a_mask_of_bytes(tmp_path, low):
    wanted = np.linspace(0, 1, DATA.size).reshape(DATA.shape)
    levels = np.rint(255 * wanted)
    stored = (levels + low).astype("u1" if low == 0 else "i1")
    how = {"mode": 0, "stored": stored.tobytes(), "imod": int(low != 0)}
    path = raw_mrc.write(tmp_path / "mask.mrc", stored, **how)
    with pytest.warns(MapWarning, match="from 0 to 255"):
        np.testing.assert_allclose(read_mask(path, DensityMap(DATA, 1.5)), levels / 255, atol=1e-6)


def test_signed_byte_mask_of_imod(tmp_path):
    wanted = DATA > 0.5
    stored = (wanted.astype(int) - 128).astype("i1")
    path = raw_mrc.write(tmp_path / "mask.mrc", stored, mode=0, stored=stored.tobytes(), imod=1)
    assert np.array_equal(read_mask(path, DensityMap(DATA, 1.5)), wanted)


def test_four_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 16, size=(4, 3, 5)).astype(np.uint8)
    padded = np.concatenate([values, np.zeros((4, 3, 1), np.uint8)], axis=2)  # a row begins a byte
    stored = padded[..., ::2] | padded[..., 1::2] << 4
    assert stored.shape == (4, 3, 3)
    path = raw_mrc.write(tmp_path / "packed.mrc", values, mode=101, stored=stored.tobytes())
    assert np.array_equal(read_map(path).data, values)


@pytest.mark.parametrize(("mode", "name"), [(3, "complex"), (5, "obsolete"), (7, "32-bit integers"), (16, "colours")])
def test_modes_that_are_no_density_are_named(tmp_path, mode, name):
    with pytest.raises(InputFileError, match=f"MODE {mode}: .*{name}"):
        read_map(raw_mrc.write(tmp_path / "map.mrc", DATA, mode=mode))


@pytest.mark.filterwarnings("ignore::cryofm_io.MapWarning")
@pytest.mark.parametrize(
    "how",
    [
        {"ispg": 0},
        {"ispg": -1},
        {"ispg": 0, "sampling": (6, 6, 1)},
        {"ispg": 401},
        {"ispg": 630, "sampling": (6, 6, 0), "cell": (9, 9, 9)},
        {"ispg": 401, "sampling": (6, 6, 1)},
    ],
)
def test_one_volume_by_any_name_is_written_as_a_volume(tmp_path, how):
    path = raw_mrc.write(tmp_path / "map.mrc", DATA, **how)
    density = read_map(path, voxel_size=1.5)
    assert np.array_equal(density.data, DATA)
    write_map(tmp_path / "out.mrc", density)
    assert read_map(tmp_path / "out.mrc").space_group == 1
    assert np.frombuffer((tmp_path / "out.mrc").read_bytes()[88:92], "<i4") == 1


def test_a_volume_marked_as_a_stack(tmp_path):
    cube = raw_mrc.write(tmp_path / "cube.mrc", DATA, ispg=0, sampling=(6, 6, 1))
    with pytest.warns(MapWarning, match="read as a volume"):
        assert read_map(cube).voxel_size == 1.5
    assert len(read_images(cube).data) == 6  # for who takes it for images
    slab = raw_mrc.write(tmp_path / "slab.mrc", DATA[:4], ispg=0, sampling=(6, 6, 1), cell=(9, 9, 6))
    with pytest.warns(MapWarning, match="read as a volume"):  # by its cell
        assert read_map(slab).voxel_size == 1.5
    with pytest.raises(InputFileError, match="found a stack"):
        read_map(raw_mrc.write(tmp_path / "stack.mrc", STACK, ispg=0, sampling=(6, 6, 1)))
    with pytest.raises(InputFileError, match="found a stack"):
        read_map(raw_mrc.write(tmp_path / "two.mrc", DATA, ispg=401, sampling=(6, 6, 3)))


def test_one_place_said_in_two_ways_is_one_grid():
    first = DensityMap(DATA, 1.5, nstart=(-3, -3, 2))
    second = DensityMap(DATA, 1.5, origin=(-4.5, -4.5, 3.0))
    check_same_grid(first, second)
    check_same_grid(first, attrs.evolve(second, nstart=(-3, -3, 2)))
    with pytest.raises(ValueError, match="differ in origin"):
        check_same_grid(first, attrs.evolve(second, origin=(-4.5, -4.5, 4.5)))


def test_an_origin_that_is_no_number(tmp_path):
    with pytest.warns(MapWarning, match="ORIGIN"):
        assert read_map(raw_mrc.write(tmp_path / "map.mrc", DATA, origin=(np.nan, 0, 0))).origin == (0, 0, 0)


def test_labels_are_utf_8_and_older_ones_are_read(tmp_path):
    label = "größer als 3 Å → " + "ß" * 40
    write_map(tmp_path / "map.mrc", DensityMap(DATA, 1.5, labels=[label]))
    kept = read_map(tmp_path / "map.mrc").labels[0]
    assert label.startswith(kept)
    assert len(kept.encode()) in (79, 80)
    content = bytearray((tmp_path / "map.mrc").read_bytes())
    content[224:304] = "3 Å".encode("latin-1").ljust(80)
    (tmp_path / "map.mrc").write_bytes(content)
    assert read_map(tmp_path / "map.mrc").labels == ("3 Å",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.par", "C PSI THETA PHI\n1 0 0 0\n", r"par2star\.py --stack"),
        ("a.tbl", "1 1 1 0 0 0 10 20 30\n", r"Dynamo's; .* dynamo2warp -i table\.tbl"),
        ("a.em", "\0\0", r"motl2relion in\.em"),
        ("a.cistem", "\0\0", "wizard Export Refinement Package"),
        ("a.star", "data_\nloop_\n_cisTEMPositionInStack\n_cisTEMAnglePsi\n1 0\n", "wizard Export Refinement Package"),
        ("a.star", "data_\nloop_\n_wrpAngleRot1\n_wrpSourceName\n10 a.tomostar\n", r"M's; .* sed -E"),
    ],
)
def test_particles_of_other_programs_are_refused_by_name(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    for read in (read_poses, read_subtomogram_poses):
        with pytest.raises(InputFileError, match=said):
            read(tmp_path / name)


@pytest.mark.skipif(shutil.which("sed") is None, reason="needs sed")
@pytest.mark.parametrize("poses", ["1", ""], ids=["several in time", "one"])
def test_what_converts_the_particles_of_m_does(tmp_path, poses):
    columns = [f"wrp{name}{poses}" for name in ("CoordinateX", "AngleRot", "AngleTilt", "AnglePsi")] + ["wrpSourceName"]
    table = ["data_", "loop_", *(f"_{name} #{i}" for i, name in enumerate(columns, 1)), "5.0 0 90 0 a.tomostar", ""]
    (tmp_path / "in.star").write_text("\n".join(table))
    with pytest.raises(InputFileError) as refused:
        read_subtomogram_poses(tmp_path / "in.star")
    command = str(refused.value)[str(refused.value).index("sed") :]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert np.allclose(read_subtomogram_poses(tmp_path / "out.star").rotations[0, 2], [1, 0, 0], atol=1e-6)
