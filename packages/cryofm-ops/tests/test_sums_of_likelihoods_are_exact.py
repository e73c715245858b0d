"""Several data sets of one volume, of any mixture of kinds, against one dense system."""

import itertools
import math

import pytest
import torch

from cryofm_ops import (
    BlockNoise,
    FourierGaussian,
    GridMismatchError,
    Identity,
    Joint,
    LinearGaussian,
    MissingWedge,
    NoiseError,
    OperatorError,
    Proximal,
    SpectralNoise,
    WhiteNoise,
    gaussian_likelihood,
    half_shape,
    irfft,
    joint,
    radial,
    rfft,
)

SHAPE = (4, 3, 5)
N = math.prod(SHAPE)
F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Rows:
    """y = M x, a vector."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, x):
        return x.flatten(-3) @ self.matrix.T

    def adjoint(self, y):
        return (y @ self.matrix).unflatten(-1, SHAPE)


class LogProb:
    def __init__(self, likelihood):
        self.log_prob = likelihood.log_prob


class OnlyCondition:
    def __init__(self, likelihood):
        self.condition = likelihood.condition


def spectral(seed):
    noise = SpectralNoise(torch.tensor([0.3 + seed, 2.0, 0.2], dtype=F64))
    return gaussian_likelihood(MissingWedge(-50, 50, "yx"[seed % 2]), noise, draw(*SHAPE, seed=seed))


def linear(seed):
    m = draw(7 + 4 * seed, N, seed=10 + seed)
    return gaussian_likelihood(Rows(m), WhiteNoise(0.5 + seed), draw(len(m), seed=20 + seed))


PARTS = {
    "spectral": lambda: [spectral(0)],
    "two spectral": lambda: [spectral(0), spectral(1)],
    "linear": lambda: [linear(0)],
    "two linear": lambda: [linear(0), linear(1)],
    "log_prob": lambda: [Proximal(LogProb(linear(2)), 1e-6, 1000)],
    "two log_prob": lambda: [Proximal(LogProb(linear(2)), 1e-6, 1000), LogProb(spectral(2))],
}
MIXTURES = [
    names
    for k in (1, 2, 3)
    for names in itertools.combinations(PARTS, k)
    if len({name.split()[-1] for name in names}) == k
]


def quadratic(likelihood):
    """H and b of log p = −½ x·H x + b·x + const, from its gradients."""
    x = torch.zeros(N + 1, *SHAPE, dtype=F64)
    x[1:] = torch.eye(N, dtype=F64).reshape(N, *SHAPE)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.log_prob(x).sum(), x)
    b = gradient[0].flatten()
    return b - gradient[1:].flatten(1), b


@pytest.mark.slow
@pytest.mark.parametrize("names", MIXTURES, ids=" + ".join)
def test_any_mixture_equals_the_dense_posterior(names, oracle_filter):
    parts = [part for name in names for part in PARTS[name]()]
    data = joint(parts)
    mean, V = draw(2, *SHAPE, seed=5), radial(torch.tensor([3.0, 0.5], dtype=F64), SHAPE)
    each = [quadratic(part) for part in parts]
    H, b = sum(h for h, _ in each), sum(b for _, b in each)
    x = draw(3, *SHAPE, seed=6)
    expected = torch.stack([sum(part.log_prob(one) for part in parts) for one in x])
    found = data.log_prob(x)
    torch.testing.assert_close(found - found[0], expected - expected[0], atol=1e-8, rtol=1e-8)
    inverse = torch.linalg.inv(oracle_filter(V))
    expected = torch.linalg.solve(inverse + H, (mean.flatten(1) @ inverse + b).T).T
    posterior = data.condition(mean, V)
    torch.testing.assert_close(posterior.mean.flatten(1), expected, atol=1e-3, rtol=0)


@pytest.fixture
def oracle_filter():
    def matrix(V):
        eye = torch.eye(N, dtype=F64).reshape(N, *SHAPE)
        return irfft(V * rfft(eye), SHAPE).reshape(N, N)

    return matrix


def test_what_the_parts_are_decides_what_the_sum_is():
    assert type(spectral(0) + spectral(1)) is FourierGaussian
    assert type(linear(0) + linear(1)) is LinearGaussian
    assert type(joint([linear(0)])) is LinearGaussian
    total = spectral(0) + linear(0) + LogProb(linear(1)) + spectral(1)
    assert type(total) is Joint
    assert (total.spectral is not None, len(total.others)) == (True, 2)
    assert type(sum([spectral(0), spectral(1), linear(0)])) is Joint


def test_draws_of_a_mixture_have_the_posterior_covariance(oracle_filter):
    data = spectral(0) + linear(0)
    V = radial(torch.tensor([3.0, 0.5], dtype=F64), SHAPE)
    posterior = data.condition(torch.zeros(SHAPE, dtype=F64), V)
    n = 3000
    x = posterior.deviations([torch.Generator().manual_seed(k) for k in range(n)]).flatten(1)
    H = quadratic(spectral(0))[0] + quadratic(linear(0))[0]
    expected = torch.linalg.inv(torch.linalg.inv(oracle_filter(V)) + H)
    spread = (expected.diagonal().outer(expected.diagonal()) + expected**2) / n
    assert ((x.T @ x / n - expected).abs() < 6 * spread.sqrt()).all()


def test_noiseless_coefficients_hold_beside_noisy_ones():
    truth = draw(*SHAPE)
    hard = gaussian_likelihood(MissingWedge(-50, 50), WhiteNoise(0), MissingWedge(-50, 50)(truth))
    noisy = gaussian_likelihood(Identity(), WhiteNoise(0.5), truth + 0.5 * draw(*SHAPE, seed=1))
    total = hard + noisy
    W = hard.spectral_precision()
    x = rfft(total.condition(torch.zeros(SHAPE, dtype=F64), 1.0).mean)
    torch.testing.assert_close(x[W.isinf()], rfft(truth)[W.isinf()])
    posterior = (hard + linear(0)).condition(torch.zeros(SHAPE, dtype=F64), 1.0)
    torch.testing.assert_close(rfft(posterior.mean)[W.isinf()], rfft(truth)[W.isinf()])


@pytest.mark.parametrize(("small", "large"), [((4, 6, 5), (8, 9, 10)), ((5, 5, 5), (10, 10, 10))])
def test_maps_of_one_field_of_view_at_two_voxel_sizes(small, large):
    # A band-limited volume of the coarse grid's frequencies is the same on both.
    k = [torch.fft.fftfreq(n, 1 / n).abs() for n in large[:2]] + [torch.fft.rfftfreq(large[2], 1 / large[2])]
    inside = [axis < n / 2 for axis, n in zip(k, small, strict=True)]
    band = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    x = irfft(rfft(draw(*large)) * band, large)
    spectrum = rfft(x)
    coarse = torch.zeros(half_shape(small), dtype=spectrum.dtype)
    index = [torch.fft.fftfreq(n, 1 / n).long() for n in small[:2]] + [torch.arange(small[2] // 2 + 1)]
    for (a, i), (b, j), (c, m) in itertools.product(*map(enumerate, index)):
        if 2 * abs(int(i)) < small[0] and 2 * abs(int(j)) < small[1] and 2 * int(m) < small[2]:
            coarse[a, b, c] = spectrum[i, j, m]
    on_coarse = irfft(coarse, small) * (math.prod(small) / math.prod(large)) ** 0.5
    # At the voxels that both have, it has the same values:
    if all(n % m == 0 for n, m in zip(large, small, strict=True)):
        step = [n // m for n, m in zip(large, small, strict=True)]
        torch.testing.assert_close(on_coarse, x[:: step[0], :: step[1], :: step[2]])
    y = gaussian_likelihood(Identity(), WhiteNoise(0.3), on_coarse)
    data = joint([y], shape=large)
    assert data.shape == large
    torch.testing.assert_close(data.spectral_data()[data.spectral_precision() > 0], spectrum[band])
    other = on_coarse + irfft(torch.where(coarse != 0, rfft(draw(*small, seed=3)), 0), small)
    d = rfft(other) - rfft(on_coarse)
    shifted = torch.zeros(half_shape(large), dtype=d.dtype)
    shifted[band] = gaussian_likelihood(Identity(), WhiteNoise(0.3), other).spectral_data().new_tensor(0)
    moved = joint([gaussian_likelihood(Identity(), WhiteNoise(0.3), other)], shape=large)
    torch.testing.assert_close(moved.log_prob(x), y.log_prob(other), atol=1e-8, rtol=1e-8)
    with pytest.raises(GridMismatchError, match=r"the data have boxes .* give joint\(\.\.\., shape=\)"):
        joint([y, gaussian_likelihood(Identity(), WhiteNoise(0.3), x)])
    both = joint([y, gaussian_likelihood(Identity(), WhiteNoise(0.3), x)], shape=large)
    assert both.spectral_precision().max() > both.spectral_precision().min() > 0


def test_blocks_are_the_noises_side_by_side():
    noise = BlockNoise([WhiteNoise(1.0), SpectralNoise(torch.tensor([4.0, 0.5], dtype=F64))], [(3,), (2, 3, 4)])
    r = draw(2, 27)
    expected = torch.cat([r[:, :3], noise.noises[1].precision(r[:, 3:].reshape(2, 2, 3, 4)).flatten(1)], 1)
    torch.testing.assert_close(noise.precision(r), expected)
    a = noise.sample(torch.zeros(27, dtype=F64), generator=torch.Generator().manual_seed(0))
    b = noise.sample(torch.zeros(27, dtype=F64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(a, b)
    assert not (a == 0).any()
    with pytest.raises(GridMismatchError, match="make 27 numbers, got"):
        noise.precision(r[:, 1:])
    with pytest.raises(NoiseError, match="every noise needs the shape of its data: 1 and 2"):
        BlockNoise([WhiteNoise(1.0)], [(3,), (4,)])


def test_a_conjugate_without_log_prob_may_be_the_only_one_beside_spectra():
    total = joint([spectral(0), OnlyCondition(linear(0))])
    expected = (spectral(0) + linear(0)).condition(torch.zeros(SHAPE, dtype=F64), 1.0).mean
    torch.testing.assert_close(total.condition(torch.zeros(SHAPE, dtype=F64), 1.0).mean, expected)
    with pytest.raises(OperatorError, match="OnlyCondition has no log_prob to add"):
        joint([OnlyCondition(linear(0)), linear(1)])


def test_what_cannot_be_joined_is_named():
    class Poses:
        def refine(self, x):
            return self

    with pytest.raises(OperatorError, match="likelihoods is empty"):
        joint([])
    with pytest.raises(OperatorError, match="Poses has no log_prob to add: its poses are unknown, so refine it first"):
        joint([spectral(0), Poses()])
    wrong = gaussian_likelihood(Rows(draw(7, N)), WhiteNoise(1.0), draw(8)) + linear(0)
    with pytest.raises(GridMismatchError, match=r"Rows makes \(7,\) of a volume .* has shape \(8,\)"):
        wrong.log_prob(torch.zeros(SHAPE, dtype=F64))
