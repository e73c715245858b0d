"""Models from images at poses that are nearly right, nearly wrong, and in files."""

import math
from types import SimpleNamespace

import attrs
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    CTF,
    FourierProjector,
    ImagesInBand,
    pose_difference_deg,
    radial,
    radial_mean,
    random_rotations,
    rfft,
    rotation_from_vector,
)
from cryofm_sampling import AbInitio, CapabilityError, Checkpoint, CheckpointError, SettingError, calibrate
from cryofm_sampling.testing import MixturePrior

N, K, UNITS = 16, 6, SimpleNamespace(mean=0.05, std=0.2)


def truth():
    """Gaussians in a ball, the brightest voxel 1."""
    centres = 2.5 * torch.randn(10, 3, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    centres = centres - centres.mean(0)
    i = torch.arange(N) - N // 2
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 2.5) for a in range(3))
    volume = torch.einsum("az,ay,ax->zyx", z, y, x)
    return volume / volume.max()


@pytest.fixture(scope="module")
def problem():
    """A prior that knows the object up to a tenth of its power, images of another scale, and their poses."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    z = (truth() - UNITS.mean) / UNITS.std
    power = radial_mean(rfft(z).abs() ** 2, (N, N, N))
    family = MixturePrior(torch.ones(1), z[None], radial(0.1 * power, (N, N, N))[None])
    examples = family.sample(4, generator=torch.Generator().manual_seed(3))
    prior = calibrate(family, examples, generator=torch.Generator().manual_seed(4))
    rotations = random_rotations(K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = 7 * FourierProjector(rotations, torch.zeros(K, 2), (N, N, N))(truth())
    data = ImagesInBand.of(images, 6, torch.zeros(6))
    torch.set_default_dtype(before)
    return prior, data, rotations


def turned(rotations, degrees, seed):
    axes = torch.randn(K, 3, generator=torch.Generator().manual_seed(seed))
    return rotation_from_vector(degrees * axes / axes.norm(dim=-1, keepdim=True)) @ rotations


def run(problem, starts, seed=0, **options):
    prior, images, _ = problem
    rotations = torch.stack(starts)
    return AbInitio(levels=8, max_shift_px=1.0)(
        prior,
        images,
        normalization=UNITS,
        rotations=rotations,
        shifts_px=torch.zeros(len(starts), K, 2),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


@pytest.mark.slow
def test_right_poses_are_told_from_wrong_ones(problem):
    rotations = problem[-1]
    wrong = random_rotations(K, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    models = run(problem, [wrong, turned(rotations, 3.0, 4)])
    assert models.chain.tolist() == [1, 0]
    assert models.misfit[0] < 0.5 * models.misfit[1]
    correlation = torch.corrcoef(torch.stack((models.x[0].flatten(), truth().flatten())))[0, 1]
    assert correlation > 0.85
    assert models.nfe == 11


def test_the_scale_of_the_images_is_found_and_does_not_matter(problem):
    prior, images, rotations = problem
    one = run(problem, [rotations])
    assert float(one.scale[0]) * 7 == pytest.approx(1, abs=0.3)
    other = run((prior, images.scaled(torch.tensor([100.0])), rotations), [rotations])
    torch.testing.assert_close(other.x, one.x, atol=2e-2, rtol=0)
    assert float(other.scale[0]) == pytest.approx(float(one.scale[0]) / 100, rel=1e-2)


@pytest.mark.slow
def test_noisy_images_count_as_the_exact_posterior_says():
    """Of white noise within a small ball, whose posterior mean is a matter of linear algebra."""
    i = (torch.arange(N) - N // 2).double()
    ball = (i.square() + i[:, None].square() + i[:, None, None].square() <= 3.5**2).double()
    mean, variance = 0.5 * ball, 0.0625 * ball

    def velocity(x, t):
        x_0 = mean + variance * (1 - t) / ((1 - t) ** 2 * variance + t**2) * (x - (1 - t) * mean)
        return (x - x_0) / t

    x = mean + variance.sqrt() * torch.randn(9, N, N, N, generator=torch.Generator().manual_seed(6)).double()
    prior = calibrate(velocity, x[1:], generator=torch.Generator().manual_seed(4))
    rotations = random_rotations(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    project = FourierProjector(rotations, torch.zeros(12, 2).double(), (N, N, N))
    clean = project(x[0])
    noise = clean.var() / 5
    images = clean + noise.sqrt() * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).double()
    data = ImagesInBand.of(images, 7, noise.expand(7) * N**2)
    model = AbInitio(levels=8, refine_below=1e-9)(
        prior,
        data,
        normalization=SimpleNamespace(mean=0.0, std=1.0),
        rotations=rotations[None],
        shifts_px=torch.zeros(1, 12, 2).double(),
        generator=torch.Generator().manual_seed(0),
    ).x[0]

    units = torch.eye(N**3).double()[ball.flatten() > 0].reshape(-1, N, N, N)
    likelihood = data.at(rotations.expand(len(units), -1, -1, -1), torch.zeros(len(units), 12, 2).double())
    A, r = (
        likelihood.operator(units),
        likelihood.observation - likelihood.operator(mean.expand(len(units), -1, -1, -1))[0],
    )
    A, b = A.flatten(1), likelihood.noise.precision(A).flatten(1)
    exact = 0.5 + torch.linalg.solve(b @ A.mT + torch.eye(len(units)).double() / 0.0625, b @ r.flatten())
    ours, best = (torch.corrcoef(torch.stack((v, x[0][ball > 0])))[0, 1] for v in (model[ball > 0], exact))
    assert ours > 0.9 * best


@pytest.mark.slow
def test_poses_come_nearer(problem):
    rotations = problem[-1]
    start = turned(rotations, 6.0, 5)
    found = run(problem, [start]).rotations[0]
    assert pose_difference_deg(found, rotations) < 0.7 * pose_difference_deg(start, rotations)


@pytest.mark.parametrize("name", ["C4", "D2", "T"])
@pytest.mark.slow
def test_symmetric_models_from_mates_of_the_poses(name):
    """Each image at a mate of its pose, a little off; the prior knows the object's power alone."""
    group = torch.from_numpy(Rotation.create_group(name).as_matrix())
    part = torch.tensor([[3.0, 1.0, 2.0], [2.0, -2.5, -1.0], [1.0, 2.0, -3.0]]).double()
    centres = (group @ part.mT).mT.flatten(0, 1)
    i = (torch.arange(N) - N // 2).double()
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 2.5) for a in range(3))
    volume = torch.einsum("az,ay,ax->zyx", z, y, x)
    volume = volume / volume.max()
    mean = (volume - UNITS.mean) / UNITS.std
    power = radial_mean(rfft(mean).abs() ** 2, (N, N, N))
    family = MixturePrior(torch.ones(1), 0 * mean[None], radial(power, (N, N, N))[None])
    examples = family.sample(4, generator=torch.Generator().manual_seed(3)).double()
    prior = calibrate(family, examples, generator=torch.Generator().manual_seed(4))
    rotations = random_rotations(K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = FourierProjector(rotations, torch.zeros(K, 2).double(), (N, N, N))(volume)
    start = turned(rotations, 6.0, 5).double() @ group[torch.arange(K) % len(group)]
    told, untold = (
        run((prior, ImagesInBand.of(images, 6, torch.zeros(6).double(), symmetry=G), rotations), [start])
        for G in (group, None)
    )
    found = told.rotations[0]
    assert pose_difference_deg(rotations, found, group) < 0.5 * pose_difference_deg(rotations, start, group)
    assert pose_difference_deg(rotations, found) > 20
    inner = told.x[0, 1:, 1:, 1:]  # about its middle voxel
    assert (inner - inner.flip(-1, -2)).abs().max() < 0.05 * inner.max()  # all three have the half turn about z
    right, less = (torch.corrcoef(torch.stack((m.x.flatten(), volume.flatten())))[0, 1] for m in (told, untold))
    assert right > max(0.97, float(less) + 0.01)


@pytest.mark.slow
def test_poses_of_noisy_particles_are_found_from_nowhere(problem):
    """With CTFs, a signal-to-noise ratio of 1, and nothing known of poses or scale."""
    prior, generator = problem[0], torch.Generator().manual_seed(7)
    rotations = random_rotations(40, generator=generator, dtype=torch.float64)
    shifts = 2 * torch.rand(40, 2, generator=generator).double() - 1
    ctf = CTF(defocus_u_angstrom=8000 + 17000 * torch.rand(40, generator=generator), voxel_size_angstrom=5.0)
    images = 7 * FourierProjector(rotations, shifts, (N, N, N), ctf)(truth())
    noise = images.var()
    images = images + noise.sqrt() * torch.randn(images.shape, generator=generator).double()
    data = ImagesInBand.of(images, 6, noise.expand(6) * N**2, ctf=ctf)
    anywhere = random_rotations(40, generator=generator, dtype=torch.float64)
    models = AbInitio(levels=10, ratios=(10.0, 0.4), draw_above=0.0, max_shift_px=1.0)(
        prior,
        data,
        normalization=UNITS,
        rotations=anywhere[None],
        shifts_px=torch.zeros(1, 40, 2).double(),
        generator=generator,
    )
    found, moved = models.rotations[0], models.shifts_px[0]
    assert pose_difference_deg(anywhere, rotations) > 60
    assert pose_difference_deg(found, rotations) < 12
    assert (moved - shifts).abs().median() < 0.35  # of 0.5, were they not found
    assert float(models.scale[0]) * 7 == pytest.approx(1, abs=0.3)
    assert torch.corrcoef(torch.stack((models.x[0].flatten(), truth().flatten())))[0, 1] > 0.9


@pytest.mark.slow
def test_resumed_is_uninterrupted(problem, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, total, x):
        assert total == 11
        assert math.isfinite(float(x.sum()))
        if step == 5:
            raise Killed

    starts = [problem[-1], turned(problem[-1], 4.0, 6)]
    whole = run(problem, starts)
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(Killed):
        run(problem, starts, checkpoint=checkpoint, callback=kill)
    assert checkpoint.path.exists()
    resumed = run(problem, starts, checkpoint=checkpoint)
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.rotations, whole.rotations)
    assert not checkpoint.path.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images: {"images": attrs.evolve(images, spectra=images.spectra.roll(1, 0))}, "set of images"),
        (lambda images: {"images": attrs.evolve(images, noise=1.01 * images.noise)}, "set of images"),
        (lambda images: {"images": attrs.evolve(images, ctf=0.99 * images.ctf)}, "set of images"),
        (lambda images: {"images": attrs.evolve(images, symmetry=torch.eye(3)[None])}, "set of images"),
        (lambda images: {"rotations": turned(torch.eye(3).expand(K, 3, 3), 1.0, 6)[None]}, "set of first poses"),
        (lambda images: {"shifts_px": torch.full((1, K, 2), 0.1)}, "set of first poses"),
        (lambda images: {"normalization": SimpleNamespace(mean=0.051, std=0.2)}, "normalization"),
    ],
)
def test_the_checkpoint_of_other_images_or_poses_is_refused(problem, change, said, tmp_path):
    prior, images, _ = problem

    def go(images=images, **change):
        asked = {
            "normalization": UNITS,
            "rotations": torch.eye(3).expand(1, K, 3, 3),
            "shifts_px": torch.zeros(1, K, 2),
        }
        options = {"generator": torch.Generator().manual_seed(0), "checkpoint": Checkpoint(tmp_path / "run", 0)}
        AbInitio(levels=2)(prior, images, **(asked | options | change))

    def kill(step, total, x_0):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(callback=kill)
    with pytest.raises(CheckpointError, match=rf"\(another {said}\)"):
        go(**change(images))


def test_what_it_needs(problem):
    _, images, rotations = problem
    with pytest.raises(CapabilityError, match="AbInitio needs a Calibrated velocity field"):
        run((lambda x, t: x, images, rotations), [rotations])
    with pytest.raises(SettingError, match="poses of 6 images"):
        run(problem, [rotations[:5]])
    with pytest.raises(SettingError, match=r"got \(2, 6, 3, 3\) and \(1, 6, 2\)"):
        AbInitio(max_shift_px=1.0)(
            *problem[:2],
            normalization=UNITS,
            rotations=torch.stack([rotations, rotations]),
            shifts_px=torch.zeros(1, K, 2),
            generator=torch.Generator(),
        )


@pytest.mark.slow
def test_autocast_reaches_the_network_alone(problem):
    prior, images, rotations = problem
    starts = [turned(rotations, 4.0, seed) for seed in (1, 2)]
    plain = run(problem, starts)
    seen = []

    class Watched:
        signal_power = prior.signal_power
        denoising_error = prior.denoising_error
        denoising_spectrum = prior.denoising_spectrum

        def __call__(self, x, t):
            seen.append(torch.is_autocast_enabled("cpu"))
            with torch.autocast("cpu", enabled=False):
                return prior(x, t)

    with torch.autocast("cpu", torch.bfloat16):
        rounded = run((Watched(), images, rotations), starts)
    assert all(seen)
    assert torch.equal(plain.x, rounded.x)
    assert torch.equal(plain.misfit, rounded.misfit)


@pytest.mark.slow
def test_poses_of_another_precision_are_taken(problem):
    prior, images, rotations = problem
    singles = run((prior, images, rotations), [rotations.float()])
    assert singles.x.dtype == images.noise.dtype
