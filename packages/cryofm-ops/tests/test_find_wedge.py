"""The tilts of a map are found where it has a wedge, whatever its shape and noise, and nothing where it has none."""

import pytest
import torch

from cryofm_ops import GridMismatchError, MissingWedge, find_wedge, fourier_filter, frequencies

ISOTROPIC, ALONG_Z, ALONG_X = (1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.7, 0.7, 3.0)
TILTS = [(-50, 50, "y"), (-60, 60, "y"), (-60, 40, "x"), (-35, 65, "y"), (-70, 70, "x")]


def molecule(shape, extent, seed=0):
    """Gaussian atoms, scattered as widely along (z, y, x) as told."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.arange(n) - n / 2 for n in shape]
    centres = 3.5 * torch.tensor(extent) * torch.randn(60, 3, generator=generator)
    parts = [torch.exp(-((axis[None] - centres[:, i, None]) ** 2) / 4) for i, axis in enumerate(axes)]
    return torch.einsum("nz,ny,nx->zyx", *parts)


def noise(x, level, seed):
    white = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    coloured = fourier_filter(white, (0.1 + 2 * frequencies(tuple(x.shape))).sqrt().float())
    return coloured * level * x.std() / coloured.std()


@pytest.mark.parametrize(
    ("shape", "extent"), [((32, 32, 32), ISOTROPIC), ((32, 32, 32), ALONG_Z), ((40, 28, 33), ALONG_X)]
)
@pytest.mark.parametrize("level", [0, 0.3, 3])
@pytest.mark.slow
def test_tilts_are_found(shape, level, extent):
    x = molecule(shape, extent)
    for low, high, axis in TILTS:
        wedge = MissingWedge(low, high, axis)
        maps = [wedge(x + noise(x, level, seed)) for seed in (1, 2)]
        for found in (find_wedge(maps[0]), find_wedge(*maps)):
            assert found is not None
            assert found.tilts.tilt_axis == axis
            assert found.tilts.tilt_min == pytest.approx(low, abs=1)
            assert found.tilts.tilt_max == pytest.approx(high, abs=1)
            for off in (-2, 0, 2):
                assert found.agrees(MissingWedge(low - off, high + off, axis))
            for off in (10, 20):
                assert not found.agrees(MissingWedge(low - off, high + off, axis))
            assert not found.agrees(MissingWedge(low, high, "x" if axis == "y" else "y"))


@pytest.mark.parametrize("extent", [ISOTROPIC, ALONG_Z, ALONG_X])
@pytest.mark.parametrize("level", [0, 0.1, 1])
def test_shape_alone_is_no_wedge(extent, level):
    x = molecule((40, 40, 40), extent)
    maps = [x + noise(x, level, seed) for seed in (1, 2)]
    assert find_wedge(maps[0]) is None
    assert find_wedge(*maps) is None


@pytest.mark.parametrize("low", [0.05, 0.2])
def test_noise_that_fills_the_wedge_hides_no_edge(low):
    """As of reconstruction or of rounding; halves tell by what they share."""
    x = molecule((48, 48, 48), ISOTROPIC)
    maps = [MissingWedge(-50, 50)(x) + noise(x, low, seed) for seed in (1, 2)]
    for found in (find_wedge(maps[0]), find_wedge(*maps)):
        assert found is not None
        assert found.agrees(MissingWedge(-50, 50))


def test_the_mean_of_a_map_tells_nothing():
    x = MissingWedge(-40, 55, "x")(molecule((32, 32, 32), ISOTROPIC))
    found = [find_wedge(x - x.mean() + level) for level in (0, 10)]
    assert found[0] is not None
    assert found[0].tilts == found[1].tilts


def test_a_part_of_a_tomogram_keeps_its_edges():
    """Cutting a box blurs them, most beside the tilt axis."""
    x = sum(molecule((72, 72, 72), ISOTROPIC, k).roll((9 * k, -7 * k, 11 * k), (0, 1, 2)) for k in range(3))
    for level in (0.5, 2):
        part = MissingWedge(-50, 50)(x + noise(x, level, 1))[12:52, 20:60, 16:56]
        found = find_wedge(part)
        assert found is not None
        assert found.agrees(MissingWedge(-50, 50))
        assert not found.agrees(MissingWedge(-65, 65))


def test_what_is_no_volume_or_no_pair_is_refused():
    with pytest.raises(GridMismatchError):
        find_wedge(torch.zeros(2, 8, 8, 8))
    with pytest.raises(GridMismatchError):
        find_wedge(torch.zeros(8, 8, 8), torch.zeros(8, 8, 9))


def test_an_empty_map_and_a_tiny_box_have_none():
    assert find_wedge(torch.zeros(16, 16, 16)) is None
    assert find_wedge(torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(0))) is None
