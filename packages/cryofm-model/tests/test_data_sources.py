"""Files that become training maps, and what happens to those that cannot."""

import warnings

import numpy as np
import pytest

from cryofm_model import CryoFMError, Normalization
from cryofm_model.data import MapSet

cryofm_io = pytest.importorskip("cryofm_io")

UNITS = Normalization()


@pytest.fixture
def write(tmp_path):
    def write(name, voxel_size=1.5, **change):
        rng = np.random.default_rng(0)
        grid = np.stack(np.meshgrid(*map(np.arange, (30, 28, 26)), indexing="ij"), -1)
        density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 30) for c in rng.uniform(8, 20, (12, 3)))
        for place, value in change.get("values", {}).items():
            density[place] = value
        cryofm_io.write_map(tmp_path / name, cryofm_io.DensityMap(change.get("scale", 1.0) * density, voxel_size))
        return tmp_path / name

    return write


def read(paths, **options):
    return MapSet.from_files(paths, UNITS, 1.5, **options)


@pytest.fixture
def bad(write, tmp_path):
    """Name of each bad file and what is said of it."""
    good = write("spoilt.mrc")
    content = bytearray(good.read_bytes())
    content[1024 + 400 : 1024 + 404] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.mrc").write_bytes(content)
    cryofm_io.write_map(tmp_path / "constant.mrc", cryofm_io.DensityMap(np.ones((9, 9, 9)), 1.5))
    (tmp_path / "short.mrc").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "text.mrc").write_text("no map")
    write("inverted.mrc", scale=-1.0)
    dot = np.zeros((20, 20, 20))
    dot[10, 10, 10] = 1
    cryofm_io.write_map(tmp_path / "dot.mrc", cryofm_io.DensityMap(dot, 1.5))
    return {
        "nan.mrc": "not finite",
        "constant.mrc": "every voxel is 1",
        "short.mrc": "truncated",
        "text.mrc": "not an MRC",
        "absent.mrc": "no such file",
        "inverted.mrc": "is the contrast inverted",
        "dot.mrc": "1 voxels with density, 500 are worth",
    }


@pytest.mark.parametrize("cache", [False, True])
def test_bad_maps_among_good_ones_are_named_and_left_out(write, bad, tmp_path, cache):
    paths = [write("a.mrc"), *(tmp_path / name for name in bad), write("b.mrc")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maps = read(paths, cache=tmp_path / "cache" if cache else None)
    assert len(maps.maps) == 2
    messages = [str(w.message) for w in caught if "is left out" in str(w.message)]
    assert len(messages) == len(bad)
    for message, (name, reason) in zip(messages, bad.items(), strict=True):
        assert message.startswith(f"{name} is left out: ")
        assert reason in message


def test_nothing_but_bad_maps_is_an_error(bad, tmp_path):
    with (
        pytest.raises(CryoFMError, match=r"no density to train on in 1 files; .*nan.mrc is left out: .*not finite"),
        pytest.warns(cryofm_io.MapWarning),
    ):
        read([tmp_path / "nan.mrc"])
    with pytest.raises(CryoFMError, match="no density to train on in 0 files"):
        read([])


def test_model_units_by_their_definition(write):
    path = write("a.mrc", scale=7.0)
    density = cryofm_io.read_map(path).data
    top = np.percentile(density, 99.999)
    expected = (np.clip(density, 0, top) / top - 0.04) / 0.09
    np.testing.assert_allclose(read([path]).maps[0].astype(float), expected, atol=4e-3)


def test_the_voxel_size_is_met(write):
    maps = read([write("fine.mrc", voxel_size=0.75)]).maps
    assert maps[0].shape == (15, 14, 13)


def test_cached_maps_are_the_same_and_are_not_read_again(write, tmp_path, monkeypatch):
    paths, cache = [write("a.mrc"), write("b.mrc", scale=3.0)], tmp_path / "cache"
    plain, first = read(paths), read(paths, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(cryofm_io, "read_map", lambda *_: pytest.fail("read again"))
        second = read(paths, cache=cache)
    draws = [maps.crops(4, 12, np.random.default_rng(1)).numpy() for maps in (plain, first, second)]
    assert np.array_equal(draws[0], draws[1])
    assert np.array_equal(draws[0], draws[2])


def test_other_settings_and_changed_files_are_other_entries(write, tmp_path):
    path, cache = write("a.mrc"), tmp_path / "cache"
    first = read([path], cache=cache).maps[0]
    assert read([path], cache=cache).maps[0].shape == first.shape
    coarse = MapSet.from_files([path], UNITS, 2.0, cache=cache).maps[0]
    other = MapSet.from_files([path], Normalization(0.0, 0.1), 1.5, cache=cache).maps[0]
    assert coarse.shape != first.shape
    assert not np.array_equal(other, first)
    path.unlink()
    write("a.mrc", values={(15, 14, 13): 0.0})
    assert not np.array_equal(read([path], cache=cache).maps[0], first)


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}           C\n"
        for i, ((x, y, z), b) in enumerate(
            zip(rng.uniform(-12, 12, (300, 3)), rng.uniform(10, 60, 300), strict=True), 1
        )
    ]
    (tmp_path / "1AAA.pdb").write_text("".join(lines) + "END\n")
    return tmp_path / "1AAA.pdb"


def test_atomic_models_are_simulated(model, tmp_path, monkeypatch):
    pytest.importorskip("gemmi")
    cache = tmp_path / "cache"
    maps = read([model], variants=3, cache=cache).maps
    assert len(maps) == 3
    assert len({m.tobytes() for m in maps}) == 3
    assert max(float(m.max()) for m in maps) == pytest.approx((1 - 0.04) / 0.09, abs=0.01)
    monkeypatch.setattr(cryofm_io, "simulate_density", lambda *_, **__: pytest.fail("simulated again"))
    again = read([model], variants=2, cache=cache).maps
    assert all(np.array_equal(a, b) for a, b in zip(again, maps, strict=False))


def test_a_model_that_is_none_is_left_out(write, tmp_path):
    pytest.importorskip("gemmi")
    (tmp_path / "broken.cif").write_text("no model")
    with pytest.warns(cryofm_io.MapWarning, match=r"broken\.cif is left out: .*no (readable atomic model|atoms)"):
        assert len(read([tmp_path / "broken.cif", write("a.mrc")], variants=1).maps) == 1


def test_a_missing_extra_is_no_bad_map(model, write, monkeypatch):
    def without_gemmi(*_, **__):
        raise cryofm_io.MissingExtraError("simulating maps needs gemmi")

    monkeypatch.setattr(cryofm_io, "simulate_density", without_gemmi)
    with pytest.raises(cryofm_io.MissingExtraError):
        read([model, write("a.mrc")])
