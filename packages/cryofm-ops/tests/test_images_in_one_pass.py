"""`ToeplitzGaussian`: images in one pass equal the dense matrices, and conjugate gradients over projections."""

import math

import attrs
import pytest
import torch

from cryofm_ops import (
    CTF,
    Conjugate,
    FourierProjector,
    GridMismatchError,
    NoiseError,
    ObservationError,
    SpectralNoise,
    ToeplitzGaussian,
    WhiteNoise,
    fourier_filter,
    friedel_weights,
    gaussian_likelihood,
    in_model_units,
    radial,
    random_rotations,
)
from cryofm_ops.testing import check_likelihood

BOX = (5, 6, 4)
NOISE = SpectralNoise(torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64))


def images(box, k, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(k, generator=generator, dtype=dtype)
    shifts = 0.7 * torch.randn(k, 2, generator=generator, dtype=dtype)
    ctf = CTF(defocus_u_angstrom=torch.linspace(4000, 9000, k), voxel_size_angstrom=3.0)
    y = torch.randn(k, *box[1:], generator=generator, dtype=dtype)
    return FourierProjector(rotations, shifts, box, ctf), y


def dense(project, y, noise):
    """Aᵀ Σ⁻¹ A and Aᵀ Σ⁻¹ y of central slices by sums over frequencies, written out."""
    _, height, width = project.shape
    grids = torch.meshgrid(*(torch.arange(n).double() - n // 2 for n in project.shape), indexing="ij")
    v = torch.stack(grids[::-1], -1).reshape(-1, 3)  # (x, y, z)
    p = torch.cartesian_prod(*(torch.arange(n).double() - n // 2 for n in (height, width))).flip(-1)  # (x, y)
    power, ctf = noise.power((1, height, width))[0], project.ctf.transfer((1, height, width))[:, 0]
    h, b = torch.zeros(len(v), len(v)).double(), torch.zeros(len(v)).double()
    for k, (rotation, shift) in enumerate(zip(project.rotations, project.shifts_px, strict=True)):
        for i, fy in enumerate(torch.fft.fftfreq(height).tolist()):
            for j, fx in enumerate(torch.fft.rfftfreq(width).tolist()):
                f = torch.tensor([fx, fy]).double()
                q = rotation.T[:, :2] @ f
                if (f.abs() == 0.5).any() or (q.abs() > 0.5).any():
                    continue
                wave = torch.polar(torch.ones(len(v)).double(), -2 * math.pi * (v @ q)) * ctf[k, i, j]
                wave = wave * torch.exp(2j * math.pi * (f @ shift)) / math.sqrt(height * width)
                seen = torch.polar(torch.ones(len(p)).double(), -2 * math.pi * (p @ f)).to(wave)
                observed = (y[k].flatten() * seen).sum() / math.sqrt(height * width)
                weight = friedel_weights((1, height, width))[j].double() / power[i, j]
                h += weight * (wave.conj()[:, None] * wave).real
                b += weight * (wave.conj() * observed).real
    return h, b


class ScaledUnits:
    mean, std = 0.1, 2.0


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_the_normal_equations_are_those_of_the_dense_matrix():
    project, y = images(BOX, 4)
    found = ToeplitzGaussian.from_images([(project, y)], NOISE, shape=BOX)
    h, b = dense(project, y, NOISE)
    unit = torch.eye(len(h), dtype=torch.float64).reshape(-1, *BOX)
    assert relative(found.data.flatten(), b) < 2e-3
    assert relative(found.normal(unit).flatten(1), h) < 2e-3
    mean = torch.randn(BOX, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    posterior = found.condition(mean, 0.3).mean.flatten()
    exact = torch.linalg.solve(torch.eye(len(h)).double() / 0.3 + h, mean.flatten() / 0.3 + b)
    assert relative(posterior - mean.flatten(), exact - mean.flatten()) < 2e-3


def test_log_prob_is_the_weighted_residual():
    """Of slices alone, with what Nyquist holds as a constant: for an odd image there is none."""
    box = (5, 5, 5)
    project, y = images(box, 3)
    found = ToeplitzGaussian.from_images([(project, y)], WhiteNoise(0.5), shape=box)
    h, b = dense(project, y, WhiteNoise(0.5))
    x = torch.randn(2, *box, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = x.flatten(1)
    exact = -0.5 * ((flat @ h * flat).sum(1) - 2 * flat @ b + y.square().sum() / 0.25)
    assert torch.allclose(found.log_prob(x), exact, rtol=1e-3)
    assert found.observations == y.numel()
    assert found.energy == pytest.approx(float(y.square().sum() / 0.25))


def test_batches_are_summed_in_any_split_and_of_any_iterable():
    project, y = images(BOX, 6)
    whole = ToeplitzGaussian.from_images([(project, y)], NOISE, shape=BOX)
    parts = (
        (
            FourierProjector(
                project.rotations[k],
                project.shifts_px[k],
                BOX,
                CTF(defocus_u_angstrom=project.ctf.defocus_u_angstrom[k], voxel_size_angstrom=3.0),
            ),
            y[k],
        )
        for k in (slice(0, 1), slice(1, 4), slice(4, 6))
    )
    split = ToeplitzGaussian.from_images(parts, NOISE, shape=BOX)
    assert torch.allclose(split.spectrum, whole.spectrum, rtol=1e-12, atol=1e-12 * float(whole.spectrum.max()))
    assert torch.allclose(split.data, whole.data, rtol=1e-10)
    assert (split.observations, split.energy) == (whole.observations, pytest.approx(whole.energy))


@pytest.mark.slow
def test_it_keeps_its_contract():
    found = ToeplitzGaussian.from_images([images((5, 5, 5), 3)], WhiteNoise(0.5), shape=(5, 5, 5))
    passed = check_likelihood(found)  # seconds
    assert {"condition_is_dense_solve", "log_prob_gradient", "posterior_contract"} <= set(passed)
    assert isinstance(in_model_units(found, ScaledUnits()), Conjugate)


def test_the_error_is_that_of_conjugate_gradients_over_projections():
    """Of an object inside of the box, by white noise, from images that the projector made."""
    n, k = 12, 8
    box = (n, n, n)
    project, _ = images(box, k, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    power = radial(torch.tensor([300.0, 30.0, 3.0, 0.3]), box)
    x = fourier_filter(torch.randn(box, generator=generator), power.sqrt())
    axis = torch.arange(n) - n // 2
    r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    x = x * torch.sigmoid(2 * (0.38 * n - r))
    noise = WhiteNoise(3.0)
    y = noise.sample(project(x), generator=generator)
    streamed = ToeplitzGaussian.from_images([(project, y)], noise, shape=box).condition(torch.zeros(box), power)
    solved = attrs.evolve(gaussian_likelihood(project, noise, y), tolerance=1e-3).condition(torch.zeros(box), power)
    error, expected = (relative(posterior.mean, x) ** 2 for posterior in (streamed, solved))
    assert error < 1.02 * expected


@pytest.mark.parametrize("k", [1, 30])
def test_what_is_not_measured_keeps_a_wide_prior(k):
    """Gridding's error must not make the system indefinite, however wide the prior."""
    box = (8, 8, 8)
    found = ToeplitzGaussian.from_images([images(box, k, dtype=torch.float32)], WhiteNoise(1e-3), shape=box)
    posterior = attrs.evolve(found, tolerance=1e-3).condition(torch.ones(2, *box), 1e6)
    draw = posterior.sample(torch.Generator().manual_seed(0))
    assert posterior.mean.isfinite().all()
    assert draw.isfinite().all()
    assert not torch.equal(draw[0], draw[1])


def test_what_does_not_fit_is_refused():
    project, y = images(BOX, 2)
    with pytest.raises(GridMismatchError, match=r"a projector of 2 poses and box \(5, 6, 4\) with images"):
        ToeplitzGaussian.from_images([(project, y[:1])], NOISE, shape=BOX)
    with pytest.raises(GridMismatchError, match="box"):
        ToeplitzGaussian.from_images([(project, y)], NOISE, shape=(6, 6, 6))
    with pytest.raises(NoiseError, match="without noise"):
        ToeplitzGaussian.from_images([(project, y)], WhiteNoise(0.0), shape=BOX)
    with pytest.raises(ObservationError, match="no images"):
        ToeplitzGaussian.from_images([], NOISE, shape=BOX)
    with pytest.raises(ObservationError, match="not finite"):
        ToeplitzGaussian.from_images([(project, torch.full_like(y, math.nan))], NOISE, shape=BOX)
    found = ToeplitzGaussian.from_images([(project, y)], NOISE, shape=BOX)
    with pytest.raises(GridMismatchError, match="the data have box"):
        found.log_prob(torch.zeros(4, 4, 4, dtype=torch.float64))
