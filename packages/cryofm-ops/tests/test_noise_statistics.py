import pytest
import torch

from cryofm_ops import NoiseError, SpectralNoise, WhiteNoise

TABLE = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
NOISES = [WhiteNoise(0.7), SpectralNoise(TABLE)]


@pytest.mark.parametrize("noise", NOISES, ids=["white", "spectral"])
def test_precision_is_the_inverse_covariance(noise, oracle, generator):
    covariance = oracle.filter(noise.power(oracle.shape))
    r = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(covariance, r.flatten(1).T).T
    torch.testing.assert_close(noise.precision(r).flatten(1), expected)


@pytest.mark.parametrize("noise", NOISES, ids=["white", "spectral"])
def test_draws_have_the_stated_covariance(noise, oracle, generator):
    # 6 standard errors for each of at most 125² entries: a false alarm in 3e-5 of all seeds; the seed is fixed.
    draws = 4000
    signal = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    n = (noise.sample(signal.expand(draws, *oracle.shape), generator=generator) - signal).flatten(1)
    expected = oracle.filter(noise.power(oracle.shape))
    spread = (expected.diagonal().outer(expected.diagonal()) + expected**2) / draws
    assert ((n.T @ n / draws - expected).abs() < 6 * spread.sqrt()).all()
    assert (n.mean(0).abs() < 6 * (expected.diagonal() / draws).sqrt()).all()


@pytest.mark.parametrize("noise", NOISES, ids=["white", "spectral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_seed_same_noise_whatever_the_batch(noise, dtype, generator):
    batch = noise.sample(torch.zeros(3, 3, 4, 5, dtype=dtype), generator=generator)
    one = noise.sample(torch.zeros(3, 4, 5, dtype=dtype), generator=generator.manual_seed(7))
    assert batch.dtype == dtype
    assert torch.equal(batch[0], one)
    assert not torch.equal(batch[0], batch[1])


def test_shells_without_noise_draw_none_and_have_no_precision(generator):
    noise = SpectralNoise(torch.tensor([0.0, 0.0]))
    assert torch.equal(noise.sample(torch.ones(4, 4, 4), generator=generator), torch.ones(4, 4, 4))
    for silent in (noise, WhiteNoise(0)):
        with pytest.raises(NoiseError, match="zero power has no precision"):
            silent.precision(torch.ones(4, 4, 4))


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_impossible_std(std):
    with pytest.raises(NoiseError, match="std of white noise"):
        WhiteNoise(std)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.tensor([1.0, -2.0]), "got -2.0 at entry 1"),
        (torch.tensor([float("nan"), 1.0]), "got nan at entry 0"),
        (torch.ones(1), "at least 2 entries"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.tensor([1, 2]), "int64"),
    ],
)
def test_impossible_tables(table, message):
    with pytest.raises(NoiseError, match=message):
        SpectralNoise(table)
