"""Class averages of a known object: what is left out is predicted where the poses are right, and junk is not."""

import math
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch

from cryofm_ops import FourierProjector, ImagesInBand, radial, radial_mean, random_rotations, rfft
from cryofm_sampling import Trust, calibrate, models_of_class_averages
from cryofm_sampling.models.ranked import Refining
from cryofm_sampling.models.trust import agreement, predicted_by_others, reprojections
from cryofm_sampling.testing import MixturePrior

N, RADIUS, UNITS = 16, 6, SimpleNamespace(mean=0.05, std=0.2)


def truth():
    """Gaussians in a ball, the brightest voxel 1."""
    generator = torch.Generator().manual_seed(1)
    centres = 2.5 * torch.randn(10, 3, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5)
    centres = centres - centres.mean(0)
    i = torch.arange(N) - N // 2
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 2.5) for a in range(3))
    volume = torch.einsum("az,ay,ax->zyx", z, y, x)
    return volume / volume.max()


@attrs.frozen(eq=False)
class Named:
    """A prior with its normalization."""

    prior: object
    normalization: object
    signal_power: torch.Tensor
    denoising_error: torch.Tensor

    def __call__(self, x, t, /):
        return self.prior(x, t)


@pytest.fixture(scope="module")
def prior():
    """It knows the object up to a tenth of its power."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    z = (truth() - UNITS.mean) / UNITS.std
    power = radial(0.1 * radial_mean(rfft(z).abs() ** 2, (N, N, N)), (N, N, N))
    family = MixturePrior(torch.ones(1), z[None], power[None])
    examples = family.sample(4, generator=torch.Generator().manual_seed(3))
    known = calibrate(family, examples, generator=torch.Generator().manual_seed(4))
    torch.set_default_dtype(before)
    return Named(family, UNITS, known.signal_power, known.denoising_error)


@pytest.fixture(scope="module")
def views():
    rotations = random_rotations(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return rotations, FourierProjector(rotations, torch.zeros(12, 2).double(), (N, N, N))(truth())


def left_out(prior, images, rotations):
    data = ImagesInBand.of(images, RADIUS, torch.zeros(RADIUS).double())
    refine = Refining(prior, data, 0.5, torch.Generator().manual_seed(0), None)
    return predicted_by_others(refine, rotations, torch.zeros(len(rotations), 2).double(), 4)


@pytest.mark.slow
def test_images_are_predicted_at_right_poses_and_junk_is_not(prior, views):
    rotations, images = views
    right, by_ring = left_out(prior, images, rotations)
    assert right.min() > 0.8
    assert by_ring.min() > 0.7
    wrong, lost = left_out(prior, images, random_rotations(12, generator=torch.Generator().manual_seed(9)).double())
    assert wrong.mean() < 0.7 * right.mean()
    assert lost[3:].mean() < 0.6 * by_ring[3:].mean()
    junk = images.clone()
    noise = torch.randn(N, N, generator=torch.Generator().manual_seed(5)).double()
    junk[4] = noise * images.std() * (images[4] > 0.1 * images[4].max())
    predicted, by_ring = left_out(prior, junk, rotations)
    trust = Trust(torch.zeros(3), predicted, predicted, by_ring)
    assert trust.outliers == [4]


def test_agreement_is_a_correlation_over_what_noise_leaves():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 9, 9, generator=generator, dtype=torch.float64)
    noise = torch.tensor([1.0, 2.0, 40.0], dtype=torch.float64)
    data = ImagesInBand.of(images, 3, noise, model_error=0.0)
    made = data.spectra + 2 * torch.randn(data.spectra.shape, generator=generator, dtype=torch.complex128)
    _, by_ring = agreement(data, made)
    ring = data.k.norm(dim=-1).round().long() - 1
    for r in range(3):
        at = ring == r
        y, p = data.spectra[:, at], made[:, at]
        clean = (1 - noise[r] / y.abs().square().mean(-1)).clamp(min=0)
        cross = [
            np.corrcoef(np.r_[a.real, a.imag, -a.real, -a.imag], np.r_[b.real, b.imag, -b.real, -b.imag])[0, 1]
            for a, b in zip(y.numpy(), p.numpy(), strict=True)
        ]
        expected = float((clean.sqrt() * torch.tensor(cross)).sum() / clean.sum()) if clean.median() > 0.1 else math.nan
        assert float(by_ring[r]) == pytest.approx(expected, nan_ok=True)


def test_reprojections_are_those_of_the_truth(views):
    rotations, images = views
    data = ImagesInBand.of(images, RADIUS, torch.zeros(RADIUS).double())
    made = reprojections(data, truth()[None], rotations[None], torch.zeros(1, 12, 2).double())[0]
    assert (made - data.spectra).norm() < 0.03 * data.spectra.norm()


@pytest.mark.parametrize(
    ("by_ring", "frequency"),
    [([0.9, 0.8, 0.6, 0.4, 0.1], 3.5), ([0.9, 0.9], 2.0), ([0.3, 0.9], 0.0), ([0.9, math.nan, 0.9], 1.0 + 0.4 / 0.9)],
)
def test_how_far_images_are_predicted(by_ring, frequency):
    trust = Trust(torch.zeros(3), torch.ones(4), torch.ones(4), torch.tensor(by_ring))
    assert trust.frequency == pytest.approx(frequency)


@pytest.mark.slow
def test_junk_is_left_out_and_what_is_inverted_is_put_right(prior, views, monkeypatch):
    """The poses are told, as common lines have tests of their own."""
    rotations, images = views
    images = images.clone()
    noise = torch.randn(N, N, generator=torch.Generator().manual_seed(5)).double()
    images[4] = noise * images.std() * (images[4] > 0.1 * images[4].max())
    images[8] *= -3

    def told(some, *, chains, **_):
        own = [int((images - image).abs().sum((-2, -1)).argmin()) for image in some]
        own = [8 if (image - images[8] / -3).abs().max() < 1e-9 else i for i, image in zip(own, some, strict=True)]
        nearly = torch.stack([rotations[own], rotations[own]])
        return SimpleNamespace(
            rotations=nearly, shifts_px=torch.zeros(2, len(own), 2).double(), log_evidence=torch.zeros(2).double()
        )

    monkeypatch.setattr("cryofm_sampling.models.class_averages.sample_poses", told)
    scales = torch.tensor([-3.0 if i == 8 else 1.0 for i in range(12)])
    monkeypatch.setattr("cryofm_sampling.models.class_averages.image_scales", lambda _: scales)
    counted = []
    models = models_of_class_averages(
        prior,
        images,
        noise=torch.zeros(RADIUS).double(),
        diameter_px=12.0,
        max_shift_px=0.5,
        generator=torch.Generator().manual_seed(0),
        chains=2,
        keep=1,
        levels=4,
        callback=counted.append,
    )
    assert models.used.tolist() == [i for i in range(12) if i != 4]
    assert models.rotations.shape == (1, 11, 3, 3)
    assert models.image_scales[8] == -3
    assert sum(counted) == models.nfe
    assert models.trust.outliers == []
    assert models.trust.predicted.min() > 0.7
    assert (models.trust.differences_deg < 3).all()
