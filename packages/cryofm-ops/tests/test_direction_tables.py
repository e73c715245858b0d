import itertools

import pytest
import torch

from cryofm_ops import DirectionTable, NoiseError, cone_alpha, directional, hemisphere
from cryofm_ops.fourier.directions import directions


def test_directions_by_hand():
    shape = (4, 3, 5)
    found = directions(shape)
    assert found.dtype == torch.float64
    for k, j, i in itertools.product((0, 1, -2, -1), (0, 1, -1), (0, 1, 2)):
        v = torch.tensor([i / 5, j / 3, k / 4], dtype=torch.float64)
        torch.testing.assert_close(found[k, j, i], v / v.norm() if v.any() else v)


@pytest.mark.parametrize("n", [20, 143, 1000])
def test_hemisphere_is_even(n):
    u = hemisphere(n)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(n, dtype=torch.float64))
    # Exact means over the sphere of x², y², z² are 1/3; of z⁴ and x²y² 1/5 and 1/15.
    assert (u.T @ u / n - torch.eye(3) / 3).abs().max() < 1.5 / n
    assert abs(float((u[:, 2] ** 4).mean()) - 1 / 5) < 1.5 / n
    assert abs(float((u[:, 0] ** 2 * u[:, 1] ** 2).mean()) - 1 / 15) < 1.5 / n
    nearest = torch.rad2deg((u @ u.T).abs().fill_diagonal_(0).amax(1).clamp(max=1).acos())
    spacing = float(torch.rad2deg(torch.tensor(2 * torch.pi / n).sqrt()))
    assert (nearest < 1.2 * spacing).all()
    assert (nearest > 0.3 * spacing).all()


def test_interpolation_is_even_bounded_and_close(generator):
    u = hemisphere(200)  # 10° apart
    table = DirectionTable(u, 1 + 3 * u[:, 2] ** 2 + u[:, 0] * u[:, 1], 5)
    d = torch.nn.functional.normalize(torch.randn(2, 300, 3, generator=generator, dtype=torch.float64), dim=-1)
    assert table(d).shape == (2, 300)
    assert torch.equal(table(d), table(-d))
    assert table(d).min() >= table.values.min()
    assert table(d).max() <= table.values.max()
    torch.testing.assert_close(table(d), 1 + 3 * d[..., 2] ** 2 + d[..., 0] * d[..., 1], atol=0.2, rtol=0)


def test_interpolation_by_hand(generator):
    u, values = hemisphere(7), torch.arange(7.0, dtype=torch.float64)
    d = torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)
    weights = [float(torch.exp(-(1 - (d @ v) ** 2) / (2 * torch.deg2rad(torch.tensor(15.0)) ** 2))) for v in u]
    expected = sum(w * float(v) for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert float(DirectionTable(u, values, 15)(d[None])[0]) == pytest.approx(expected)


def test_a_large_grid_is_interpolated_in_pieces():
    table = DirectionTable(hemisphere(6), torch.arange(6.0), 20)
    d = directions((24, 24, 60)).flatten(0, 2)[1:]  # 17,855 directions, more than one piece
    picked = torch.tensor([0, 8191, 8192, 17000])
    assert table(d).dtype == torch.float64
    torch.testing.assert_close(table(d)[picked], table(d[picked]), rtol=1e-5, atol=0)


def test_constant_term_takes_the_mean_over_the_sphere():
    found = directional(lambda d: 3 * d[..., 1] ** 2, (5, 5, 5))
    assert float(found[0, 0, 0]) == pytest.approx(1, abs=0.01)
    assert float(found[1, 2, 1]) == pytest.approx(3 * 4 / 6)


@pytest.mark.parametrize("shape", [(5, 7, 9), (4, 6, 8)])
def test_both_halves_of_a_column_agree(shape):
    found = directional(cone_alpha((1, 2, 2), 35, 3), shape)
    for i in (0, -1) if shape[2] % 2 == 0 else (0,):
        for k, j in itertools.product(range(shape[0]), range(shape[1])):
            assert found[k, j, i] == found[-k % shape[0], -j % shape[1], i]


def test_impossible_tables():
    u, values = hemisphere(5), torch.ones(5)
    for bad in (u[:, :2], 2 * u, u[0]):
        with pytest.raises(NoiseError, match=r"unit vectors \(n, 3\)"):
            DirectionTable(bad, values, 10)
    for bad in (values[:4], -values, values / 0):
        with pytest.raises(NoiseError, match="one for each of 5 directions"):
            DirectionTable(u, bad, 10)
    with pytest.raises(NoiseError, match="width_deg"):
        DirectionTable(u, values, 0)
