"""Which bundled prior a script takes where the command line names none: the data say it."""

import argparse

import attrs
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryofm_io import DensityMap, write_map
from cryofm_model import load_prior

maps = pytest.importorskip("_maps")


@pytest.fixture(scope="module")
def prior(small_prior):
    return load_prior(small_prior)


def halves(voxel_size, blur=1.0):
    """Two maps of a ball of white density that is blurred by so many voxels, with noise."""
    rng, shape = np.random.default_rng(0), (24, 28, 32)
    away = np.sqrt(sum((axis - n / 2) ** 2 for axis, n in zip(np.ogrid[:24, :28, :32], shape, strict=True)))
    density = gaussian_filter(rng.normal(size=shape), blur, mode="wrap") * np.clip((12 - away) / 6, 0, 1)
    noisy = [density + 0.5 * density.std() * rng.normal(size=shape) for _ in range(2)]
    return maps.Measured(tuple(DensityMap(y.astype(np.float32), voxel_size) for y in noisy))


@pytest.fixture
def chosen(monkeypatch, prior, capsys):
    """What is chosen, which priors' room is asked for, and what is said."""

    def chosen(given, **flags):
        monkeypatch.setattr(maps, "load_prior", lambda name: attrs.evolve(prior, about={"name": name}))
        args, rooms = argparse.Namespace(**{"prior": None, **flags}), []
        found = maps.fitting_prior(args, prior, given, rooms.append)
        return args.prior, found.about.get("name"), rooms == [found], capsys.readouterr().out

    return chosen


def test_data_beyond_its_reach_take_the_finer_prior(chosen):
    name, loaded, told, said = chosen(halves(1.0))
    assert name == loaded == "cryofm-tiny-fine"
    assert told
    assert "prior cryofm-tiny-fine, for data to 2" in said


@pytest.mark.parametrize("given", [halves(1.0, blur=2.5), halves(1.44, blur=2.0)])
def test_fine_voxels_alone_do_not(chosen, given):
    name, loaded, told, said = chosen(given)
    assert (name, loaded, told) == ("cryofm-tiny", None, True)
    assert "prior cryofm-tiny, for data to" in said


def test_maps_of_a_few_voxels_of_the_prior_have_another_voxel_size(prior):
    like = halves(0.01).maps[0]
    with pytest.raises(maps.CryoFMError, match=r"32 × 28 × 24 .* 0.01 Å are 0.32 Å wide, .*--voxel-size"):
        maps.PriorGrid.of(like, prior)


def test_coarse_voxels_need_no_second_look(chosen):
    name, _, told, said = chosen(halves(1.5))
    assert (name, told) == ("cryofm-tiny", False)  # it was told before anything was read
    assert "prior cryofm-tiny" in said


def test_of_one_map_its_resolution_says_it(chosen):
    one = maps.Measured(halves(1.0).maps[:1])
    assert chosen(one, resolution=2.4)[0] == "cryofm-tiny-fine"
    assert chosen(one, resolution=3.4)[0] == "cryofm-tiny"
    assert chosen(one)[0] == "cryofm-tiny"


def test_a_name_wins(chosen, small_prior):
    for name in ("cryofm-tiny", "cryofm-tiny-fine", str(small_prior)):
        assert chosen(halves(1.0), prior=name)[:3] == (name, None, False)


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "half1.mrc", tmp_path / "half2.mrc"
    for path, half in zip(paths, halves(1.01).maps, strict=True):
        write_map(path, half)
    return paths


@pytest.fixture
def denoise(monkeypatch, files, tmp_path):
    """denoise.py with these flags, without a prior's name."""
    denoise, script = pytest.importorskip("denoise"), pytest.importorskip("_command_line")

    def run(*flags):
        monkeypatch.setattr("sys.argv", ["denoise.py", *map(str, (*files, "--out", tmp_path / "out", *flags))])
        return script.exit_code(denoise.main)

    return run


def test_a_dry_run_tells_what_the_finer_prior_takes(denoise, tmp_path, capsys):
    assert denoise("--dry-run") == 0
    said = capsys.readouterr().out
    assert said.index("prior cryofm-tiny-fine") < said.index("needs about")
    assert said.count("needs about") == 1
    assert "a grid of 32 × 28 × 24 voxels of the prior's" in said
    assert not (tmp_path / "out").exists()


def test_what_the_halves_agree_about_has_to_be_signal(chosen, monkeypatch):
    for end, fits in ((0.33, "cryofm-tiny"), (0.4, "cryofm-tiny-fine")):
        monkeypatch.setattr(maps, "signal_end", lambda *_, end=end, **__: end)
        name, _, told, said = chosen(halves(1.0))
        assert (name, told) == (fits, True)
        assert f"of which what is finer than {1 / end:.3g} Å is no signal" in said
