import math

import attrs
import pytest
import torch

from cryofm_ops import (
    Blind,
    BlindGaussian,
    BlindProjections,
    Conjugate,
    CryoFMError,
    FourierProjector,
    GeometryError,
    Likelihood,
    LinearGaussian,
    ObservationError,
    WhiteNoise,
    angular_distance_deg,
    in_model_units,
    psi_bg,
    psi_cor,
    psi_sg,
    random_rotations,
)

N = 20


def blobs(seed: int) -> torch.Tensor:
    """Gaussian blobs inside a ball: a volume `(N, N, N)`."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(25, 3, generator=generator, dtype=torch.float64).clamp(-1.6, 1.6)
    i = torch.arange(N, dtype=torch.float64) - N // 2
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 3) for a in range(3))
    return torch.einsum("az,ay,ax->zyx", z, y, x)


@pytest.fixture(scope="module")
def data():
    """A volume, poses, and its images at these poses."""
    generator = torch.Generator().manual_seed(11)
    rotations = random_rotations(5, generator=generator, dtype=torch.float64)
    shifts = 2 * torch.rand(5, 2, generator=generator, dtype=torch.float64) - 1
    volume = blobs(0)
    return volume, rotations, shifts, FourierProjector(rotations, shifts, (N, N, N))(volume)


@attrs.frozen
class Affine:
    mean: float = 0.2
    std: float = 0.7


@pytest.mark.parametrize(("stop_gradient", "q", "w"), [(False, 0.7, 1.0), (True, 0.0, 1.0), (False, 0.7, 0.01)])
def test_the_papers_loss_at_the_poses_found(data, stop_gradient, q, w):
    volume, rotations, shifts, images = data
    blind = BlindProjections(images, 1.5, stop_gradient=stop_gradient, background=q, background_weight=w)
    assert isinstance(blind, Blind)
    assert not isinstance(blind, Likelihood)
    likelihood = blind.refine(volume)
    assert isinstance(likelihood, Likelihood)
    assert angular_distance_deg(likelihood.projector.rotations, rotations).max() < 0.5
    assert (likelihood.projector.shifts_px - shifts).abs().max() < 0.05
    x = (volume + blobs(1)).requires_grad_()
    p = FourierProjector(likelihood.projector.rotations, likelihood.projector.shifts_px, (N, N, N))(x)
    loss = sum((psi_sg if stop_gradient else psi_cor)(p[k : k + 1], images[k : k + 1]) for k in range(5))
    loss = loss + w * sum(psi_bg(p[k : k + 1], images[k : k + 1], q) for k in range(5))
    value = likelihood.log_prob(x)
    torch.testing.assert_close(value, -loss[0] / 5)
    (found,), (expected,) = torch.autograd.grad(value, x), torch.autograd.grad(-loss[0] / 5, x)
    torch.testing.assert_close(found, expected)


def test_poses_that_are_known(data):
    volume, rotations, shifts, images = data
    likelihood = BlindProjections(images, 1.5, background=0.0).at(rotations, shifts)
    assert likelihood.log_prob(volume).item() == pytest.approx(1)
    assert likelihood.projector.rotations is rotations
    gaussian = BlindGaussian(images, 1.5, noise=WhiteNoise(0.5)).at(rotations, shifts)
    assert gaussian.log_prob(volume).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_every_volume_of_a_batch_has_its_own_poses(data):
    volume, _, _, images = data
    batch = torch.stack((volume, blobs(2)))
    blind = BlindProjections(images, 1.5)
    likelihood = blind.refine(batch)
    assert likelihood.projector.rotations.shape == (2, 5, 3, 3)
    for i in range(2):
        torch.testing.assert_close(likelihood.log_prob(batch)[i], blind.refine(batch[i]).log_prob(batch[i]))


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.slow
def test_a_guided_step_raises_the_correlation(data, stop_gradient):
    """One line of Algorithm 3: poses at x̂_0, then a step along the normalised gradient."""
    _, _, _, images = data
    x = torch.stack((blobs(2), blobs(3)))
    blind = BlindProjections(images, 1.5, stop_gradient=stop_gradient, background=0.0)
    likelihoods, values = [], []
    for _ in range(3):
        x = x.requires_grad_()
        likelihoods.append(blind.refine(x))
        value = likelihoods[-1].log_prob(x)
        values.append(value.detach())
        (g,) = torch.autograd.grad(value.sum(), x)
        x = (x + g / g.flatten(1).norm(dim=1)[:, None, None, None]).detach()
        assert (likelihoods[-1].log_prob(x) > values[-1]).all()
    assert (values[-1] > values[0] + 0.003).all()


@pytest.mark.slow
def test_the_gaussian_form(data):
    volume, rotations, shifts, images = data
    likelihood = BlindGaussian(images, 1.5, noise=WhiteNoise(0.5)).refine(volume)
    assert isinstance(likelihood, LinearGaussian)
    assert isinstance(likelihood, Conjugate)
    x = blobs(1)
    expected = FourierProjector(rotations, shifts, (N, N, N))(x) - images
    assert likelihood.log_prob(x).item() == pytest.approx(-0.5 * expected.square().sum().item() / 0.25, rel=0.02)
    posterior = likelihood.condition(torch.zeros_like(volume), 1.0)
    assert torch.nn.functional.cosine_similarity(posterior.mean.flatten(), volume.flatten(), dim=0) > 0.9


@pytest.mark.slow
def test_in_model_units(data):
    volume, _, _, images = data
    z = (volume - 0.2) / 0.7
    for blind in (BlindProjections(images, 1.5), BlindGaussian(images, 1.5, noise=WhiteNoise(0.5))):
        model = in_model_units(blind, Affine())
        assert isinstance(model, Blind)
        assert not isinstance(model, Likelihood)
        plain, refined = blind.refine(volume), model.refine(z)
        assert isinstance(refined, Conjugate) == isinstance(plain, Conjugate)
        torch.testing.assert_close(refined.log_prob(z + 0.1), plain.log_prob(volume + 0.07))


def test_bad_input_is_named(data):
    _, _, _, images = data
    with pytest.raises(GeometryError, match=r"must be square.*\(5, 20, 19\)"):
        BlindProjections(images[..., 1:], 1)
    with pytest.raises(ObservationError, match="1 values that are not finite"):
        BlindGaussian(torch.where(images == images.max(), math.nan, images), 1, noise=WhiteNoise(1))
    with pytest.raises(CryoFMError, match="from 0 to 1, got 70"):
        BlindProjections(images, 1, background=70)
    with pytest.raises(CryoFMError, match="not negative, got -1"):
        BlindProjections(images, 1, background_weight=-1)
    with pytest.raises(GeometryError, match="needs images"):
        BlindProjections(images, 1).refine(torch.ones(21, 21, 21))
