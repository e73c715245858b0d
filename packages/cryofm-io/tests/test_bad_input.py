"""Every kind of bad file gets the named error, and a message that says where and what to do."""

import gzip
import warnings

import mrcfile
import numpy as np
import pytest

from cryofm_io import (
    CryoFMError,
    DensityMap,
    GeometryError,
    InputFileError,
    MapWarning,
    check_same_grid,
    read_map,
    write_map,
)


@pytest.fixture
def good(tmp_path):
    """A function that writes a good file with header fields changed."""

    def write(data=None, name="map.mrc", **fields):
        path = tmp_path / name
        data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32) if data is None else data
        with mrcfile.new(path, data=data, overwrite=True) as file:
            file.voxel_size = 1.5
            for field, value in fields.items():
                file.header[field] = value
        return path

    return write


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputFileError, match=r"nowhere\.mrc: no such file"):
        read_map(tmp_path / "nowhere.mrc")
    with pytest.raises(InputFileError, match="a folder"):
        read_map(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 1024, 1024 + 4 * 50])
def test_truncated(good, keep):
    path = good()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputFileError, match=r"map\.mrc: .*(truncated|not an MRC)"):
        read_map(path)


def test_truncated_gzip(tmp_path):
    path = tmp_path / "map.mrc.gz"
    write_map(path, DensityMap(np.random.default_rng(0).normal(size=(20, 20, 20)), 1.5))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputFileError, match=r"map\.mrc\.gz: .*truncated"):
        read_map(path)


def test_not_mrc(tmp_path):
    for name, content in [("text.mrc", b"hello " * 999), ("page.mrc.gz", gzip.compress(b"<html>" * 999))]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputFileError, match=f"{name}: not an MRC"):
            read_map(tmp_path / name)


def test_header_that_asks_for_the_impossible(good):
    with pytest.raises(InputFileError, match=r"map\.mrc: "):
        read_map(good(nx=2**31 - 1, ny=2**31 - 1, nz=2**31 - 1))
    with pytest.raises(InputFileError, match=r"map\.mrc: "):
        read_map(good(mode=77))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile|numpy")
@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf")])
def test_values_that_are_not_finite(good, value, word):
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    data[1, 2, 3] = data[3, 0, 0] = value
    with pytest.raises(InputFileError, match=rf"2 values .* {word} at \(z, y, x\) = \(1, 2, 3\)"):
        read_map(good(data))


def test_constant(good):
    with pytest.raises(InputFileError, match=r"map\.mrc: every voxel is 3"):
        read_map(good(np.full((4, 5, 6), 3, np.float32)))


@pytest.mark.filterwarnings("ignore:.*larger than expected")
def test_empty(good):
    with pytest.raises(InputFileError, match=r"map\.mrc: .*empty"):
        read_map(good(nz=0))


def test_voxel_size_zero_is_asked_for(good):
    path = good(cella=(0, 0, 0))
    with pytest.raises(InputFileError, match="--voxel-size"):
        read_map(path)
    with pytest.warns(MapWarning, match=r"no voxel size .* 1\.2 Å asked for and used"):
        assert read_map(path, voxel_size=1.2).voxel_size == 1.2


def test_voxel_size_of_exactly_one_warns_unless_it_was_given(good):
    path = good(cella=(6, 5, 4))
    with pytest.warns(MapWarning, match="exactly 1 Å"):
        assert read_map(path).voxel_size == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_map(path, voxel_size=1.0).voxel_size == 1.0


def test_a_voxel_size_in_nanometres_warns(good):
    with pytest.warns(MapWarning, match=r"voxel size of 0\.12 Å; is it in nm"):
        assert read_map(good(cella=(0.72, 0.6, 0.48))).voxel_size == 0.12


def test_option_wins_over_the_header(good):
    with pytest.warns(MapWarning, match=r"1\.5 Å in the file, 1\.52 Å asked for and used"):
        assert read_map(good(), voxel_size=1.52).voxel_size == 1.52
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_map(good(), voxel_size=1.51).voxel_size == 1.51


@pytest.mark.parametrize("option", [0.0, -1.0, np.nan])
def test_impossible_option(good, option):
    with pytest.raises(GeometryError, match="must be positive"):
        read_map(good(), voxel_size=option)


def test_invalid_axis_codes_warn(good):
    path = good(mapc=0, mapr=0, maps=0)
    with pytest.warns(MapWarning, match=r"invalid axis codes \(0, 0, 0\)"):
        assert read_map(path).shape == (4, 5, 6)


def test_voxels_that_are_not_cubes(good):
    with pytest.raises(GeometryError, match=r"map\.mrc: .*not cubes"):
        read_map(good(cella=(6 * 1.5, 5 * 1.5, 4 * 1.502)))
    assert read_map(good(cella=(6 * 1.5, 5 * 1.5, 4 * 1.501))).voxel_size == pytest.approx(1.5, rel=1e-3)


def test_skewed_cell(good):
    with pytest.raises(GeometryError, match="cell angles"):
        read_map(good(cellb=(90, 90, 120)))


def test_images_and_stacks(good):
    rng = np.random.default_rng(0)
    for data, fields in [
        (rng.normal(size=(5, 6)), {}),  # one image
        (rng.normal(size=(3, 5, 6)), {"ispg": 0, "mz": 1, "cella": (9, 7.5, 1.5)}),  # MRC2014 image stack
        (rng.normal(size=(2, 3, 4, 5)), {}),  # stack of volumes
    ]:
        with pytest.raises(InputFileError, match="expected a 3-D map"):
            read_map(good(data.astype(np.float32), **fields))
    with pytest.raises(InputFileError, match="expected a 3-D map"):
        read_map(good(name="images.mrcs"))


def test_complex_data(good):
    with pytest.raises(InputFileError, match="expected a 3-D map of real values"):
        read_map(good(np.ones((4, 5, 6), np.complex64)))


def test_damaged_machine_stamp_is_read_with_a_warning(good):
    with pytest.warns(MapWarning, match=r"map\.mrc: .*machine stamp"):
        assert read_map(good(machst=(0, 0, 0x44, 0x44))).shape == (4, 5, 6)


def test_one_root_for_all_errors():
    import cryofm_io.errors as errors

    classes = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(classes) > 5
    assert all(issubclass(c, CryoFMError) and issubclass(c, ValueError) for c in classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((4, 4, 5))}, r"shape .*\(4, 4, 4\) and \(4, 4, 5\)"),
        ({"voxel_size": 1.51}, r"voxel size: 1\.5 Å and 1\.51 Å"),
        ({"origin": (0, 0, 1.5)}, r"origin: \(0\.0, 0\.0, 0\.0\) and \(0\.0, 0\.0, 1\.5\)"),
        ({"nstart": (1, 0, 0)}, r"nstart: \(0, 0, 0\) and \(1, 0, 0\)"),
    ],
)
def test_two_grids(change, message):
    first = {"data": np.zeros((4, 4, 4)), "voxel_size": 1.5}
    with pytest.raises(CryoFMError, match=message):
        check_same_grid(DensityMap(**first), DensityMap(**(first | change)))


@pytest.mark.parametrize(("stamp", "flags", "signed"), [(1146047817, 0, False), (1146047817, 1, True), (0, 0, True)])
def test_bytes_that_imod_wrote_unsigned(good, stamp, flags, signed):
    stored = np.arange(66, 66 + 120, dtype=np.uint8).reshape(4, 5, 6)
    path = good(stored.view(np.int8))
    content = bytearray(path.read_bytes())
    content[152:160] = np.array([stamp, flags], "<i4").tobytes()
    path.write_bytes(content)
    expected = stored.view(np.int8) if signed else stored
    np.testing.assert_array_equal(read_map(path).data, expected.astype(np.float32))
