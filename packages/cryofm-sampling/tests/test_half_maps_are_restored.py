"""`restore_half_maps` as a library: a prior that knows its data, no files, no other package."""

from types import SimpleNamespace

import attrs
import pytest
import torch

from cryofm_ops import (
    CoverageNoise,
    Envelope,
    FourierMask,
    GridMismatchError,
    Identity,
    MissingWedge,
    RemoveMean,
    WhiteNoise,
    coverage_from_tilts,
    fourier_filter,
    frequencies,
    gaussian_likelihood,
    radial,
    random_rotations,
)
from cryofm_sampling import (
    CapabilityError,
    Checkpoint,
    Guided,
    PlugAndPlay,
    Rescaled,
    SettingError,
    coverage_model,
    directional_model,
    local_model,
    restore_half_maps,
    restore_map,
    restore_missing_wedge,
    stationary_model,
    summarise,
    wedge_model,
)
from cryofm_sampling.half_maps._fsc import correlation
from cryofm_sampling.half_maps.solvent import Solvent
from cryofm_sampling.half_maps.tilts import doubt_of_tilts
from cryofm_sampling.testing import GaussianPrior

SHAPE = (20, 20, 20)
SCALE = 3.0  # by which the data are multiplied to be the prior's
POWER = 50 * torch.exp(-torch.linspace(0, 6, 11))


@pytest.fixture
def prior():
    return Rescaled(GaussianPrior(POWER, SHAPE), SimpleNamespace(mean=0.0, std=1.0))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def made(noise=0.3, seed=0):
    """A truth that the prior knows, in data units, and two halves of it."""
    generator = seeded(seed)
    white = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    truth = fourier_filter(white[0], radial(POWER, SHAPE).sqrt()) / SCALE
    return truth, truth + noise * white[1], truth + noise * white[2]


def error(x, truth):
    return float((x - x.mean() - truth + truth.mean()).square().sum() / (truth - truth.mean()).square().sum())


@pytest.mark.slow
def test_the_result_is_better_than_the_halves_and_says_what_it_is(prior):
    truth, one, two = made()
    told = []
    result = restore_half_maps(
        prior, one, two, generator=seeded(1), scale=SCALE, samples=2, callback=lambda *step: told.append(step)
    )
    assert error(result.map, truth) < 0.7 * error(result.observed, truth)
    # The prior is Gaussian: its mean is the linear filter's, but for the power, which the halves show.
    assert error(result.map, truth) < 1.1 * error(result.linear, truth)
    assert all(error(half, truth) < error(data, truth) for half, data in zip(result.halves, (one, two), strict=True))
    assert len(result.samples) == 2
    assert not torch.equal(*result.samples)
    assert result.fsc.shape == result.noise_power.shape == result.self_consistency.shape == (11,)
    assert result.noise_power[3:].mean() == pytest.approx(0.09, rel=0.1)
    assert 0.8 < result.slope_of_the_other_half < 1.3
    assert result.scale.normalization.scale == SCALE
    assert result.nfe == result.settings["iterations"] == 8
    assert result.sampling["algorithm"] == "PosteriorFlow"
    total = 3 * 8 + (2 + 1) * 25  # a sample of one half alone tells whether they are wide enough
    assert told[-1] == ("restoring", total, total)
    assert [done for _, done, _ in told] == list(range(1, total + 1))


@pytest.mark.slow
def test_samples_are_as_far_from_the_map_as_the_truth_whatever_the_prior_thinks_of_itself(prior):
    truth, one, two = made()
    too_sure = Rescaled(GaussianPrior(POWER / 4, SHAPE), SimpleNamespace(mean=0.0, std=1.0))
    wide, widened = (
        restore_half_maps(prior, one, two, generator=seeded(1), scale=SCALE, samples=8) for prior in (prior, too_sure)
    )
    assert wide.widening == pytest.approx(1, abs=0.15)
    assert widened.widening > 1.15
    for result in (wide, widened):
        summary = summarise(torch.stack(result.samples))
        far = (truth - truth.mean() - summary.mean).abs() / summary.std / (1 + 1 / 8) ** 0.5
        inside = far < 1.4149  # 80 % of Student's t with 7 degrees of freedom
        assert 0.74 < float(inside.float().mean()) < 0.86


@pytest.mark.slow
def test_scale_and_envelope_are_found_where_they_are_not_given(prior):
    _, one, two = made()
    told = set()
    result = restore_half_maps(
        prior, one, two, generator=seeded(1), voxel_size=1.5, callback=lambda *step: told.add(step[0])
    )
    assert len(result.scale.trials) >= 7
    assert told == {"scale", "restoring"}
    assert 0 <= result.b_factor <= 300
    told = {"b_factor": result.b_factor, "solvent_contrast": result.solvent_contrast}
    known = restore_half_maps(prior, one, two, generator=seeded(1), voxel_size=1.5, **told)
    assert (known.b_factor, known.solvent_contrast) == (result.b_factor, result.solvent_contrast)
    scales = known.scale.normalization.scale, result.scale.normalization.scale
    assert scales[0] == pytest.approx(scales[1], rel=0.1)  # sought in the same way


def in_solvent(contrast, noise, seed=0):
    """What the prior knows, as it is in a solvent, and two halves of that."""
    truth, one, two = made(noise, seed)
    seen = Solvent(contrast, 1.5)(truth)
    return seen, one - truth + seen, two - truth + seen


@pytest.mark.slow
def test_a_solvent_is_told_the_prior_and_stays_in_the_map(prior):
    truth, one, two = in_solvent(0.7, noise=1.0)
    how = {"generator": seeded(1), "voxel_size": 1.5, "scale": SCALE, "b_factor": 0.0, "samples": 1}
    result, plain = (restore_half_maps(prior, one, two, **how, solvent_contrast=k) for k in (0.7, None))
    assert (result.solvent_contrast, plain.solvent_contrast) == (0.7, 0.0)
    coarse = (frequencies(SHAPE) < 0.12).float()
    errors = [error(fourier_filter(x, coarse), fourier_filter(truth, coarse)) for x in (result.map, plain.map)]
    assert errors[0] < 0.8 * errors[1]
    assert all(error(x, truth) < 1.5 for x in (*result.samples, *result.halves, result.linear))


@pytest.mark.parametrize("contrast", [0.0, 0.7])
@pytest.mark.slow
def test_the_solvent_is_found(prior, contrast, monkeypatch):
    for name in ("_PENALTY", "_INSIDE_PENALTY"):  # what is known of proteins
        monkeypatch.setattr(f"cryofm_sampling.half_maps.envelope.{name}", 0.0)
    _, one, two = in_solvent(contrast, noise=0.6)
    result = restore_half_maps(prior, one, two, generator=seeded(1), voxel_size=1.5, scale=SCALE)
    assert result.solvent_contrast == pytest.approx(contrast, abs=0.25)


@pytest.mark.parametrize("told", [None, 0.0])
@pytest.mark.slow
def test_coarse_halves_have_no_envelope_and_their_scale_is_not_that_of_sharp_proteins(prior, told):
    _, one, two = made()
    coarse = restore_half_maps(prior, one, two, generator=seeded(1), voxel_size=12.0, b_factor=told)
    unitless = restore_half_maps(prior, one, two, generator=seeded(1))
    assert coarse.b_factor == 0
    assert coarse.scale.trials == unitless.scale.trials  # by cross-validation alone, whatever B is told


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_the_generator_goes_on(prior):
    _, one, two = made()
    generator = seeded(3)
    first, again, later = (
        restore_half_maps(prior, one, two, generator=generator, scale=SCALE, samples=1)
        for generator in (generator, seeded(3), generator)
    )
    assert torch.equal(first.map, again.map)
    assert torch.equal(first.samples[0], again.samples[0])
    assert not torch.equal(first.samples[0], later.samples[0])


@pytest.mark.filterwarnings("ignore:one half, restored")
def test_a_half_depends_on_the_other_by_its_model_and_scale_alone(prior):
    _, one, two = made()
    _, _, other = made(seed=5)
    model = stationary_model(one, two)
    results = [
        restore_half_maps(prior, one, half, generator=seeded(0), observe=model, scale=SCALE) for half in (two, other)
    ]
    assert torch.equal(results[0].halves[0], results[1].halves[0])
    assert not torch.equal(results[0].halves[1], results[1].halves[1])


@pytest.mark.slow
def test_a_constant_beneath_the_halves_is_found(prior):
    _, one, two = made()
    plain, lifted = (
        restore_half_maps(prior, one + constant, two + constant, generator=seeded(0), scale=SCALE)
        for constant in (0, 10)
    )
    torch.testing.assert_close(lifted.map, plain.map, atol=1e-3, rtol=0)
    assert lifted.offset == pytest.approx(plain.offset + 10, abs=1e-3)


class Blur:
    """A stranger's operator: two neighbours averaged, along x."""

    def __call__(self, x, /):
        return (x + x.roll(1, -1)) / 2

    def adjoint(self, y, /):
        return (y + y.roll(-1, -1)) / 2


@pytest.mark.slow
def test_a_stranger_s_operator_and_noise_go_through_it(prior):
    truth, _, _ = made()
    generator, noise = seeded(7), WhiteNoise(0.2)
    halves = [noise.sample(Blur()(truth), generator=generator) for _ in range(2)]

    def observe(y, fraction):
        return gaussian_likelihood(Blur(), WhiteNoise(0.2 * fraction**0.5), y)

    told = restore_half_maps(prior, *halves, generator=seeded(0), observe=observe, operator=Blur(), scale=SCALE)
    plain = restore_half_maps(prior, *halves, generator=seeded(0), scale=SCALE)
    assert error(told.map, truth) < 0.8 * error(plain.map, truth)
    assert 0.8 < told.slope_of_the_other_half < 1.2


@pytest.mark.slow
def test_noise_that_depends_on_direction_is_used(prior):
    truth, _, _ = made()

    def alpha(u):
        return 1 + 30 * u[..., 2].square()

    from cryofm_ops import AnisotropicNoise

    noise, generator = AnisotropicNoise(torch.full((11,), 0.02), alpha), seeded(2)
    one, two = (noise.sample(truth, generator=generator) for _ in range(2))
    told = restore_half_maps(
        prior, one, two, generator=seeded(0), observe=directional_model(one, two, alpha), scale=SCALE
    )
    plain, found = (
        restore_half_maps(prior, one, two, generator=seeded(0), observe=model, scale=SCALE)
        for model in (stationary_model(one, two), None)
    )
    assert error(told.map, truth) < 0.9 * error(plain.map, truth)
    assert error(told.linear, truth) < 0.9 * error(plain.linear, truth)
    assert error(found.map, truth) < 1.03 * error(told.map, truth)  # what nobody told is found


def flexible(envelope, seed=0):
    """A truth that the prior knows, and two halves of it, blurred, one side of which is 16 times as noisy."""
    truth, generator = made(seed=seed)[0], seeded(seed + 5)
    side = torch.where(torch.arange(SHAPE[2]) < SHAPE[2] // 2, 0.1, 0.4).expand(SHAPE)
    blurred = envelope(truth)
    one, two = (blurred + side * torch.randn(SHAPE, generator=generator) for _ in range(2))
    return truth, one, two, side.square() / side.square().mean()


@pytest.mark.parametrize("bands", [1, 2])
def test_noise_that_differs_from_place_to_place_is_used(bands):
    """Mean and draws of the posterior are those of a dense matrix, whatever the range of variances and spectra."""
    shape, generator = (6, 6, 6), seeded(3)
    one, two = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    variances = 0.05 + 2 * torch.rand(bands, *shape, generator=generator, dtype=torch.float64) ** 3
    model = stationary_model(one, two).blurred(Envelope(100.0, 1.5), contrast=0.2)
    model = attrs.evolve(model, variances=variances)
    power = model.noise_on(shape)[0] * radial(torch.logspace(0, -5, 4, dtype=torch.float64), shape)
    model = attrs.evolve(model, noise_on=lambda _: (power, torch.ones_like(power)))
    V = radial(torch.tensor([1e4, 1.0], dtype=torch.float64), shape)

    basis = torch.eye(216, dtype=torch.float64).reshape(216, *shape)

    def matrix(filter):
        return fourier_filter(basis, filter).reshape(216, 216)

    band = (2 * bands * frequencies(shape)).long().clamp(max=bands - 1)
    P = [matrix((band == b).double()) for b in range(bands)]
    inner = sum(p @ torch.diag(1 / D.flatten()) @ p for p, D in zip(P, variances, strict=True))
    A, root = model.predict(basis).reshape(216, 216), matrix(power.rsqrt() * RemoveMean().transfer(shape) * 2**0.5)
    precision = torch.linalg.inv(matrix(V)) + A @ root @ inner @ root @ A
    likelihood = model.observe(one, 1 / 2)
    posterior = attrs.evolve(likelihood, tolerance=1e-10).condition(torch.zeros_like(one), V)
    expected = torch.linalg.solve(precision, A @ root @ inner @ root @ one.flatten())
    torch.testing.assert_close(posterior.mean.flatten(), expected, rtol=1e-5, atol=1e-6)
    many = attrs.evolve(likelihood, tolerance=1e-4).condition(torch.zeros(100, *shape, dtype=torch.float64), V)
    draws = (many.sample(generator) - many.mean).flatten(1)
    white = draws @ torch.linalg.cholesky(precision)  # of variance 1 in every direction
    assert white.square().mean() == pytest.approx(1, abs=6 * (2 / white.numel()) ** 0.5)
    soon = attrs.evolve(likelihood, max_iterations=40).condition(torch.zeros_like(one), V).mean
    wrong = soon.flatten() - expected
    assert wrong @ precision @ wrong < 1e-5 * expected @ precision @ expected


def test_where_noise_is_stronger_is_found_whatever_its_colour():
    n, generator = 40, seeded(2)
    side = torch.where(torch.arange(n) < n // 2, 1.0, 3.0).expand(n, n, n)
    steep = radial(torch.logspace(2, -2, 21), (n, n, n))
    halves = [fourier_filter(side * torch.randn(n, n, n, generator=generator), steep) for _ in range(2)]
    found = local_model(*halves).variances
    assert found.shape == (1, n, n, n)
    assert found[..., 28:32].mean() > 3 * found[..., 8:12].mean()  # 9, as smooth as it is looked for


def test_with_local_noise_the_envelope_told_is_removed(prior):
    envelope = Envelope(60.0, 1.5)
    truth, one, two, variance = flexible(envelope)
    noisy = attrs.evolve(local_model(one, two), variances=variance[None])  # of such a box a local mean is the whole
    how = {"voxel_size": 1.5, "scale": SCALE, "solvent_contrast": 0.0}
    plain, local, sharp = (
        restore_half_maps(prior, one, two, generator=seeded(1), observe=model, b_factor=b, **how)
        for model, b in ((None, 60.0), (noisy, 60.0), (noisy, 0.0))
    )
    assert (local.b_factor, sharp.b_factor) == (60.0, 0.0)
    assert error(local.map, truth) < 0.95 * error(plain.map, truth)
    assert error(local.map, truth) < 0.9 * error(sharp.map, truth)


def test_an_envelope_is_no_matter_of_a_likelihood_of_ones_own(prior):
    _, one, two = made()
    with pytest.raises(SettingError, match="b_factor and solvent_contrast"):
        restore_half_maps(
            prior,
            one,
            two,
            generator=seeded(0),
            b_factor=60.0,
            scale=SCALE,
            observe=lambda y, fraction: gaussian_likelihood(Identity(), WhiteNoise(fraction**0.5), y),
        )


def test_beyond_the_band_nothing_was_measured():
    _, one, two = made()
    model = stationary_model(one, two, band=0.5)
    assert (model.noise_power[6:] > 1e3).all()
    assert not model.gain[radial(torch.arange(11.0), SHAPE) > 6].any()


def test_a_wedge_with_halves_and_without(prior):
    truth, one, two = made(noise=0.1)
    tilts = MissingWedge(-60, 60)
    one, two = tilts(one), tilts(two)
    model = wedge_model(one, two, tilts)
    assert isinstance(model.operator, FourierMask)
    assert model.missing is not None
    assert model.noise_power[3:].mean() == pytest.approx(0.01, rel=0.15)  # where something was measured
    noisy = restore_half_maps(prior, one, two, generator=seeded(0), observe=model, scale=SCALE)
    assert error(tilts(noisy.map), tilts(truth)) < error(tilts(noisy.observed), tilts(truth))
    clean = restore_missing_wedge(prior, tilts(truth), tilts, generator=seeded(0), scale=SCALE, samples=1)
    torch.testing.assert_close(tilts(clean.map), tilts(clean.observed), atol=1e-3, rtol=0)
    assert clean.missing is not None
    # In the wedge the mean of a Gaussian prior is 0, and a sample has its power.
    assert clean.missing(clean.map).square().sum() < 1e-3 * clean.missing(truth).square().sum()
    power = clean.missing(clean.samples[0]).square().sum() / clean.missing(truth).square().sum()
    assert 0.2 < power < 5  # most of it in a few coefficients


def near_the_beam(count, generator):
    """Rotations of particles that lie within 45° of one way up, such as in a membrane."""
    rotations = random_rotations(10 * count, generator=generator, dtype=torch.float32)
    return rotations[rotations[:, 2, 2] > 0.7][:count]


def averages(rotations, tilts, sigma=2.0, seed=0):
    """A truth that the prior knows, and the half maps that subtomograms of these poses average to."""
    truth, _, _ = made(seed=seed)
    coverage = coverage_from_tilts(rotations, tilts, SHAPE)
    noise = CoverageNoise(torch.full((2,), sigma**2), coverage / 2, SHAPE, least=0.5)  # half of them each
    return truth, *(noise.measured(noise.sample(truth, generator=seeded(seed + i))) for i in (1, 2))


def test_one_particle_is_a_tilt_series():
    tilts = MissingWedge(-60, 60)
    one, two = (tilts(half) for half in made()[1:])
    plain = wedge_model(one, two, tilts)
    model = coverage_model(one, two, lambda shape: coverage_from_tilts(torch.eye(3)[None], tilts, shape))
    assert (model.doubts, plain.doubts) == ((), ())
    for name in ("noise_power", "signal_power"):
        torch.testing.assert_close(getattr(model, name), getattr(plain, name), check_dtype=False)
    torch.testing.assert_close(model.missing.transfer(SHAPE), plain.missing.transfer(SHAPE), check_dtype=False)
    for shape in (SHAPE, (12, 12, 12)):
        y = torch.zeros(shape, dtype=torch.float64)
        found, expected = (m.on(shape).observe(y, 1).spectral_precision() for m in (model, plain))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:.* of the map's power lies within the wedge")
def test_the_noise_of_an_average_is_less_where_more_particles_measured(prior):
    rotations, tilts = near_the_beam(60, seeded(0)), MissingWedge(-50, 50)
    truth, one, two = averages(rotations, tilts)
    model = coverage_model(one, two, lambda shape: coverage_from_tilts(rotations, tilts, shape))
    coverage = coverage_from_tilts(rotations, tilts, SHAPE)
    W = model.observe(one, 1).spectral_precision()
    assert not W[coverage == 0].any()
    seen = (coverage > 0) & (radial(torch.arange(11.0), SHAPE) > 2)
    torch.testing.assert_close(W[seen].double(), (coverage / 8)[seen], rtol=0.35, atol=0)  # m / σ², of each half
    assert W[seen].double().div(coverage[seen] / 8).mean() == pytest.approx(1, abs=0.07)
    assert model.doubts == ()
    assert model.record["most"] == coverage.max()

    told, turned, wedged = (
        restore_half_maps(prior, one, two, generator=seeded(0), observe=m, scale=SCALE)
        for m in (model, stationary_model(one, two), wedge_model(one, two, tilts))
    )
    assert error(told.map, truth) < 0.95 * error(turned.map, truth)
    assert error(told.map, truth) < 0.95 * error(wedged.map, truth)


def test_poses_of_other_particles_are_told():
    rotations, tilts = near_the_beam(60, seeded(0)), MissingWedge(-50, 50)
    _, one, two = averages(rotations, tilts)
    lying = rotations @ rotations.new_tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # z of the particle is x of these
    with pytest.warns(UserWarning, match="by the poses|the poses make noise"):
        model = coverage_model(one, two, lambda shape: coverage_from_tilts(lying, tilts, shape))
    assert len(model.doubts) == 1
    halves = made()[1:]  # with power and noise everywhere
    with pytest.warns(UserWarning, match=r"make noise 2\.9 times.* the halves have it (0\.9|1\.0) times there"):
        coverage_model(*halves, lambda shape: coverage_from_tilts(rotations, tilts, shape))
    with pytest.warns(UserWarning, match="of the power that the halves share lies where no particle measured"):
        coverage_model(*halves, MissingWedge(-50, 50).transfer)


def test_a_wedge_of_other_tilts_is_told(prior):
    truth, _, _ = made()
    y = MissingWedge(-60, 60, "x")(truth)
    told = "looks measured from -60 to 60 degrees about x.*as was told"
    with pytest.warns(UserWarning, match=f"{told}$"), pytest.warns(UserWarning, match=f"{told}: do not trust"):
        result = restore_missing_wedge(
            prior, y, MissingWedge(-60, 60), generator=seeded(0), scale=SCALE, sampler=PlugAndPlay(iterations=2)
        )
    assert len(result.doubts) == 1


def test_power_where_nothing_was_measured_is_told():
    """Where a map has no wedge at all."""
    truth, one, two = made()
    for maps in ((truth,), (one, two)):
        assert "of the map's power lies within the wedge" in doubt_of_tilts(MissingWedge(-60, 60), *maps)


def test_halves_of_other_tilts_are_told(prior):
    _, one, two = made()
    halves = [MissingWedge(-50, 50)(x) for x in (one, two)]
    assert wedge_model(*halves, MissingWedge(-51, 52)).doubts == ()
    with pytest.warns(UserWarning, match="looks measured from -50 to 50 degrees about y, and not from -60 to 60"):
        model = wedge_model(*halves, MissingWedge(-60, 60))
    how = {"generator": seeded(0), "scale": SCALE, "sampler": PlugAndPlay(iterations=2)}
    with pytest.warns(UserWarning, match="do not trust"):
        assert restore_half_maps(prior, *halves, observe=model, **how).doubts == model.doubts
    turned = [MissingWedge(-60, 40)(x) for x in (one, two)]
    assert "the sign" in doubt_of_tilts(MissingWedge(-40, 60), *turned)


@pytest.mark.filterwarnings("ignore::cryofm_sampling.MisfitWarning", "ignore:one half, restored")
def test_a_scale_far_too_high_is_told(prior):
    """Far above its scale a Gaussian prior of little power takes density for noise."""
    _, one, two = made()
    with pytest.warns(UserWarning, match=r"multiplied by .* to predict the other.*do not trust"):
        restore_half_maps(prior, one, two, generator=seeded(0), scale=300.0)


class Mirrored(GaussianPrior):
    """Denoises to the mirror image."""

    def __call__(self, x, t, /):
        v = super().__call__(x, t)
        return (x - (x - t * v).flip(-1)) / t


@pytest.mark.filterwarnings("ignore::cryofm_sampling.MisfitWarning", "ignore:one half, restored")
def test_where_the_prior_helps_nowhere_the_map_is_the_data():
    """Filtered by shells, which changes no shell's correlation with the truth."""
    truth, one, two = made()
    wrong = Rescaled(Mirrored(POWER, SHAPE), SimpleNamespace(mean=0.0, std=1.0))
    with pytest.warns(UserWarning, match="predicts the other worse"):
        result = restore_half_maps(
            wrong, one, two, generator=seeded(0), scale=SCALE, samples=1, observe=stationary_model(one, two)
        )
    assert result.held_out.worse
    had, got = (correlation(x, truth) for x in ((one + two) / 2, result.map))
    torch.testing.assert_close(got[1:], had[1:], atol=0.02, rtol=0)
    assert not torch.equal(result.samples[0], result.map)


@pytest.mark.slow
def test_a_killed_call_goes_on_to_the_same_bits(prior, tmp_path):
    _, one, two = made()
    how = {"scale": SCALE, "samples": 1}
    undisturbed = restore_half_maps(prior, one, two, generator=seeded(0), **how)
    state = Checkpoint(tmp_path / "state", every_seconds=0)

    def killed(_, done, __):
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_half_maps(prior, one, two, generator=seeded(0), checkpoint=state, callback=killed, **how)
    left_over = []
    result = restore_half_maps(
        prior, one, two, generator=seeded(0), checkpoint=state, callback=lambda *step: left_over.append(step), **how
    )
    assert len(left_over) < 30 + 25
    assert torch.equal(result.map, undisturbed.map)
    assert torch.equal(result.samples[0], undisturbed.samples[0])
    assert len(list(tmp_path.iterdir())) == 5  # until the results are written
    state.remove_parts(5)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_is_refused(prior):
    _, one, two = made()
    with pytest.raises(GridMismatchError, match=r"\(20, 20, 20\) and \(20, 20, 19\)"):
        restore_half_maps(prior, one, two[..., 1:], generator=seeded(0))
    with pytest.raises(GridMismatchError, match="one volume"):
        restore_half_maps(prior, one[None], two[None], generator=seeded(0))
    with pytest.raises(SettingError, match="samples"):
        restore_half_maps(prior, one, two, generator=seeded(0), samples=-1)
    with pytest.raises(SettingError, match="goes with observe"):
        restore_half_maps(prior, one, two, generator=seeded(0), operator=Identity())
    with pytest.raises(CapabilityError, match="normalization"):
        restore_half_maps(GaussianPrior(1.0, SHAPE), one, two, generator=seeded(0), scale=1.0)


def test_one_map_of_a_stated_resolution(prior):
    truth, one, two = made(noise=0.5)
    both = (one + two) / 2
    # Where the FSC of the halves falls below 0.143: noise of 0.25 against the power of the truth over SCALE².
    fsc = (POWER / SCALE**2) / (POWER / SCALE**2 + 0.25)
    resolution = 2 * 1.5 * 10 / float((fsc > 0.143).nonzero().max())
    result = restore_map(prior, both, resolution=resolution, voxel_size=1.5, generator=seeded(0), scale=SCALE)
    assert error(result.map, truth) < 0.75 * error(both, truth)
    # In a solvent, which the result keeps; not told of it, the prior is shown too little at low frequencies.
    solvent = Solvent(0.7, 1.5)
    weakened = solvent(truth)
    ice = both + weakened - truth
    told, untold = (
        restore_map(
            prior, ice, resolution=resolution, voxel_size=1.5, generator=seeded(0), scale=SCALE, solvent_contrast=k
        ).map
        for k in (0.7, 0.0)
    )
    assert error(told, weakened) < error(untold, weakened)
    with pytest.raises(SettingError, match="cannot be that of"):
        restore_map(prior, both, resolution=2.0, voxel_size=1.5, generator=seeded(0))


@pytest.mark.filterwarnings("ignore::cryofm_sampling.MisfitWarning")
@pytest.mark.slow
def test_a_prior_without_statistics_restores_boxes_larger_than_where_scales_are_sought():
    """By the paper's algorithm, at the scale of the brightest voxels."""
    exact = GaussianPrior(POWER, (66, 8, 8))
    prior = SimpleNamespace(mean=0.0, std=1.0)

    class Uncalibrated:
        normalization = prior

        def __call__(self, x, t, /):
            return exact(x, t)

    generator = torch.Generator().manual_seed(0)
    x = fourier_filter(torch.randn(66, 8, 8, generator=generator), radial(POWER, (66, 8, 8)).sqrt())
    halves = [x + 0.1 * torch.randn(66, 8, 8, generator=generator) for _ in range(2)]
    result = restore_half_maps(Uncalibrated(), *halves, generator=generator, sampler=Guided(2, "paper"))
    assert result.scale.trials == ()
    assert result.map.isfinite().all()
