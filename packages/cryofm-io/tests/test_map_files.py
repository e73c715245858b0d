"""What is written is a valid MRC file and is read back unchanged, whatever order its axes are stored in."""

import gzip
import itertools
import logging

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryofm_io import DensityMap, read_map, write_map


def random_map(shape=(5, 6, 7), **fields):
    data = np.random.default_rng(sum(shape)).normal(size=shape)
    return DensityMap(data, **({"voxel_size": 1.37} | fields))


def assert_same(a, b):
    assert np.array_equal(a.data, b.data)
    for name in ("voxel_size", "origin", "nstart", "labels"):
        assert getattr(a, name) == getattr(b, name), name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    hundredths=st.integers(101, 2000),
    nstart=st.tuples(*[st.integers(-500, 500)] * 3),
    suffix=st.sampled_from([".mrc", ".map", ".ccp4", ".mrc.gz", ".map.bz2"]),
)
def test_round_trip_is_exact(tmp_path, shape, hundredths, nstart, suffix):
    path = tmp_path / f"map{suffix}"
    before = random_map(
        shape,
        voxel_size=hundredths / 100,
        nstart=nstart,
        origin=(1.5, -2.25, 0.0),
        space_group=0,
        labels=["a b", "c"],
    )
    write_map(path, before, overwrite=True)
    assert_same(read_map(path), before)
    assert read_map(path).data.flags.writeable  # torch warns of arrays that are not


def test_file_is_valid_and_its_header_is_right(tmp_path, capsys):
    path = tmp_path / "map.mrc"
    density = random_map((5, 6, 7), voxel_size=1.37, origin=(1.0, 2.0, 3.0), nstart=(-3, -2, -1))
    write_map(path, density)
    assert mrcfile.validate(path), capsys.readouterr().out
    with mrcfile.open(path) as file:
        header = file.header
        assert np.array_equal(file.data, density.data)
    assert header.cella.tolist() == tuple(np.float32([7 * 1.37, 6 * 1.37, 5 * 1.37]).tolist())
    assert header.origin.tolist() == (1.0, 2.0, 3.0)
    assert (header.nxstart, header.nystart, header.nzstart) == (-3, -2, -1)
    assert (header.dmin, header.dmax) == (density.data.min(), density.data.max())
    assert header.dmean == pytest.approx(density.data.mean(dtype=float))
    assert header.rms == pytest.approx(density.data.std(dtype=float))


def test_equal_maps_give_equal_files_also_when_compressed(tmp_path):
    for name in ("a.mrc.gz", "another name.mrc.gz"):
        write_map(tmp_path / name, random_map())
    first, second = (path.read_bytes() for path in tmp_path.iterdir())
    assert first == second
    assert gzip.decompress(first)[1024:] == random_map().data.tobytes()


def test_only_the_newest_ten_labels_fit(tmp_path):
    write_map(tmp_path / "map.mrc", random_map(labels=[str(i) for i in range(12)] + ["x" * 99]))
    assert read_map(tmp_path / "map.mrc").labels == (*map(str, range(3, 12)), "x" * 80)


@pytest.mark.parametrize("codes", list(itertools.permutations((1, 2, 3))))
def test_stored_axes_are_brought_to_zyx(tmp_path, caplog, codes):
    density = random_map((4, 5, 6), origin=(10.0, 20.0, 30.0), nstart=(1, 2, 3))
    mapc, mapr, maps = codes
    sizes = {1: 6, 2: 5, 3: 4}
    stored = np.empty((sizes[maps], sizes[mapr], sizes[mapc]), dtype=np.float32)
    for z, y, x in np.ndindex(4, 5, 6):
        place = {1: x, 2: y, 3: z}
        stored[place[maps], place[mapr], place[mapc]] = density.data[z, y, x]
    path = tmp_path / "permuted.mrc"
    with mrcfile.new(path, data=stored) as file:
        file.header.mapc, file.header.mapr, file.header.maps = codes
        file.header.mx, file.header.my, file.header.mz = 6, 5, 4
        file.header.cella = tuple(1.37 * n for n in (6, 5, 4))
        # NCSTART, NRSTART, NSSTART belong to columns, rows and sections (MRC2014); ORIGIN to x, y, z.
        start = {1: 1, 2: 2, 3: 3}
        file.header.nxstart, file.header.nystart, file.header.nzstart = start[mapc], start[mapr], start[maps]
        file.header.origin = (10.0, 20.0, 30.0)
        file.header.nlabl = 0
    with caplog.at_level(logging.INFO, logger="cryofm_io"):
        assert_same(read_map(path), density)
    assert len(caplog.messages) == (codes != (1, 2, 3))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16])
def test_other_modes_become_float32(tmp_path, dtype):
    data = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    with mrcfile.new(tmp_path / "map.mrc", data=data) as file:
        file.voxel_size = 2.0
    assert np.array_equal(read_map(tmp_path / "map.mrc").data, data.astype(np.float32))


def test_big_endian_files_are_read(tmp_path):
    data = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    with mrcfile.new(tmp_path / "map.mrc", data=data) as file:
        file.voxel_size = 2.0
    assert np.array_equal(read_map(tmp_path / "map.mrc").data, data.astype(np.float32))


def test_header_rounding_does_not_lengthen_the_voxel_size(tmp_path):
    # 1.2156 Å as ChimeraX writes it: three cells, each rounded by itself, that no single number reproduces
    write_map(tmp_path / "map.mrc", random_map((104, 70, 92)))
    with mrcfile.open(tmp_path / "map.mrc", mode="r+") as file:
        file.header.cella = (111.835205, 85.092, 126.4224)
    density = read_map(tmp_path / "map.mrc")
    assert density.voxel_size == 1.2156
    write_map(tmp_path / "again.mrc", density)
    assert_same(read_map(tmp_path / "again.mrc"), density)
