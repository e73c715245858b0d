"""A stranger's operator, noise and prior meet our Protocols under the type checkers, and run in Alg. 1."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cryofm_model import load_prior
from cryofm_ops import FourierDiagonal, Likelihood, LinearOperator, Noise, Operator, gaussian_likelihood
from cryofm_sampling import Callback, Draw, Guided, Renoising, VelocityField, restore_half_maps
from cryofm_sampling.testing import SamplerError, check_batching, check_dtype

spec = importlib.util.spec_from_file_location("stranger", Path(__file__).with_name("stranger.py"))
assert spec is not None
assert spec.loader is not None
stranger = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stranger)


def test_it_imports_nothing_of_ours() -> None:
    assert "cryofm" not in Path(__file__).with_name("stranger.py").read_text()


def test_capabilities_are_seen() -> None:
    operator = stranger.Saturation(2.0)
    noise = stranger.UnevenNoise(torch.ones(4, 4, 4))
    assert isinstance(operator, Operator)
    assert not isinstance(operator, LinearOperator)
    assert isinstance(noise, Noise)
    assert isinstance(stranger.Counted(), VelocityField)
    likelihood = gaussian_likelihood(operator, noise, torch.zeros(4, 4, 4))
    assert isinstance(likelihood, Likelihood)
    assert not isinstance(likelihood, FourierDiagonal)


def test_alg_1_inverts_it() -> None:
    generator = torch.Generator().manual_seed(0)
    std = torch.linspace(0.02, 0.2, 8)[:, None, None].expand(8, 8, 8)
    truth = torch.randn(8, 8, 8, generator=generator)
    operator, noise = stranger.Saturation(1.5), stranger.UnevenNoise(std)
    data = noise.sample(operator(truth), generator=generator)
    velocity = stranger.Counted()
    likelihood = gaussian_likelihood(operator, noise, data)
    for guidance, least, most in (("gaussian", 0.8, 1.25), ("paper", 0.0, 3.0)):
        draw = Guided(steps=100, guidance=guidance)(
            velocity, likelihood, shape=(8, 8, 8), generator=torch.Generator().manual_seed(1)
        )
        # A posterior sample explains the data: the residual is as large as the noise. Alg. 1 as published only says
        # that it is small.
        chi_2 = ((operator(draw.x) - data) / std).square().mean()
        assert least < chi_2 < most
        assert (draw.x - truth).square().mean() < 0.6 * truth.square().mean()
    assert velocity.calls == 200


class Flattened:
    """A sampler of the right volumes that forgets how their batch was shaped."""

    def __call__(
        self,
        velocity: VelocityField,
        likelihood: Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Draw:
        x = Renoising((0.5,))(velocity, likelihood, shape=shape, generator=generator).x
        return Draw(x.reshape(-1, *shape[-3:]), 1, {})


def test_a_sampler_that_reshapes_the_batch_is_told() -> None:
    with pytest.raises(SamplerError, match=r"asked for \(2, 2, .*, it gives \(4, "):
        check_batching(Flattened())
    with pytest.raises(SamplerError, match=r"asked for \(4, 3, 5\), it gives \(1, 4, 3, 5\)"):
        check_dtype(Flattened())


def test_half_maps_of_a_stranger_s_operator_and_noise_are_restored():
    """With the prior that ships: a detector whose noise and whose gain differ from voxel to voxel."""
    generator = torch.Generator().manual_seed(0)
    n = 32
    grid = torch.stack(torch.meshgrid(*[torch.arange(n)] * 3, indexing="ij"), -1).float()
    centres = 9 + 14 * torch.rand(12, 3, generator=generator)
    truth = sum(torch.exp(-(grid - c).square().sum(-1) / 4) for c in centres)
    gain = torch.linspace(0.5, 1.5, n)
    std = 0.05 + 0.3 * torch.linspace(0, 1, n)[:, None, None].expand(n, n, n)

    class Gain:
        def __call__(self, x, /):
            return gain * x

        adjoint = __call__

    halves = [stranger.UnevenNoise(std).sample(gain * truth, generator=generator) for _ in range(2)]

    def observe(y, fraction):
        return gaussian_likelihood(Gain(), stranger.UnevenNoise(std * fraction**0.5), y)

    prior = load_prior("cryofm-tiny")
    result = restore_half_maps(prior, *halves, generator=generator, observe=observe, operator=Gain(), scale=1.0)
    told = float((result.map - truth).square().sum() / truth.square().sum())
    naive = float(((halves[0] + halves[1]) / 2 / gain - truth).square().sum() / truth.square().sum())
    assert told < 0.4 * naive
    assert 0.8 < result.slope_of_the_other_half < 1.25
