"""compose, add and stack: the dense product, sum and stack, with exactly the capabilities that the parts share."""

from typing import assert_type

import pytest
import torch
from torch import Tensor

from cryofm_ops import (
    CTF,
    FourierGaussian,
    FourierMask,
    FourierMultiplier,
    FourierOperator,
    Gaussian,
    GridMismatchError,
    Identity,
    LinearGaussian,
    LinearOperator,
    LowPass,
    MissingWedge,
    Operator,
    OperatorError,
    PseudoInvertible,
    SpectralNoise,
    WhiteNoise,
    add,
    compose,
    gaussian_likelihood,
    rfft,
    stack,
)

WEDGE = MissingWedge(-50, 50)
BLUR = LowPass(4.0, voxel_size=1.5, edge_fraction=0.9)
CONTRAST = CTF(defocus_u_angstrom=3000.0, voxel_size_angstrom=1.7)
PARTS = (Operator, LinearOperator, PseudoInvertible, FourierMultiplier)


class OnlyTransfer:
    """A stranger's shift by one voxel: nothing but a transfer."""

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        phase = torch.exp(-2j * torch.pi * torch.fft.fftfreq(shape[1], dtype=torch.float64))
        return phase[:, None].expand(shape[0], -1, shape[2] // 2 + 1)


class Window:
    """A stranger's real-space mask."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return x * (torch.arange(x.shape[-1]) % 2)

    def adjoint(self, y: Tensor, /) -> Tensor:
        return self(y)


class InvertibleWindow(Window):
    def pinv(self, y: Tensor, /) -> Tensor:
        return self(y)


class Rows:
    """A stranger's sum over each row: observations of two axes."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return x.sum(-1)

    def adjoint(self, y: Tensor, /) -> Tensor:
        return y[..., None].expand(*y.shape, 4)


class Square:
    def __call__(self, x: Tensor, /) -> Tensor:
        return x**2


def has(thing):
    return {p for p in PARTS if isinstance(thing, p)}


def dense(operator, shape):
    """The matrix of a linear operator, column by column."""
    n = shape[0] * shape[1] * shape[2]
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return operator(basis).flatten(1).T


LINEAR = {Operator, LinearOperator}
DIAGONAL = {*LINEAR, PseudoInvertible, FourierMultiplier}
CASES = [
    ((WEDGE,), DIAGONAL, {*LINEAR, PseudoInvertible}),
    ((OnlyTransfer(),), DIAGONAL, {*LINEAR, PseudoInvertible}),
    ((WEDGE, BLUR, CONTRAST), DIAGONAL, {*LINEAR, PseudoInvertible}),
    ((OnlyTransfer(), Identity(), WEDGE), DIAGONAL, {*LINEAR, PseudoInvertible}),
    ((Window(), BLUR), LINEAR, LINEAR),
    ((OnlyTransfer(), Window(), WEDGE), LINEAR, LINEAR),
    ((InvertibleWindow(), WEDGE), LINEAR, LINEAR),
    ((InvertibleWindow(), InvertibleWindow()), LINEAR, LINEAR),
    ((Square(), BLUR), {Operator}, {Operator}),
    ((Window(), Square(), OnlyTransfer()), {Operator}, {Operator}),
]


@pytest.mark.parametrize(("parts", "capabilities", "stacked"), CASES)
def test_exactly_the_capabilities_of_all_the_parts(parts, capabilities, stacked):
    assert has(compose(*parts)) == capabilities
    assert has(add(*parts)) == capabilities
    assert has(stack(*parts)) == stacked


@pytest.mark.parametrize("parts", [c[0] for c in CASES if LinearOperator in c[1]])
@pytest.mark.parametrize("kind", [compose, add, stack])
@pytest.mark.slow
def test_linear_parts_against_dense_matrices(parts, kind, oracle, generator):
    matrices = [
        oracle.filter(p.transfer(oracle.shape)) if isinstance(p, FourierMultiplier) else dense(p, oracle.shape)
        for p in parts
    ]
    if kind is compose:
        a = torch.linalg.multi_dot(matrices) if len(matrices) > 1 else matrices[0]
    else:
        a = sum(matrices) if kind is add else torch.cat(matrices)
    operator = kind(*parts)
    x = torch.randn(2, 3, *oracle.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    y = operator(x)
    torch.testing.assert_close(y.flatten(2), x.flatten(2) @ a.T)
    assert y.shape == ((2, 3, len(parts), *oracle.shape) if kind is stack else x.shape)
    r = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    back = operator.adjoint(r)
    torch.testing.assert_close(back.flatten(2), r.flatten(2) @ a)
    torch.testing.assert_close(torch.autograd.grad((y * r).sum(), x)[0], back)
    assert operator(x.detach().float()).dtype == torch.float32
    if PseudoInvertible in has(operator):
        torch.testing.assert_close(operator.pinv(r).flatten(2), r.flatten(2) @ torch.linalg.pinv(a).T)
        torch.testing.assert_close(operator(operator.pinv(y)), y)
        assert operator.pinv(r.float()).dtype == torch.float32


def test_the_last_operator_is_applied_first(generator):
    x = torch.randn(2, 4, 4, 4, generator=generator)
    assert compose(Square(), Window())(x).equal(Window()(x) ** 2)
    torch.testing.assert_close(compose(Square(), BLUR, Square())(x), BLUR(x**2) ** 2)
    torch.testing.assert_close(add(Square(), BLUR)(x), x**2 + BLUR(x))
    torch.testing.assert_close(stack(Square(), BLUR)(x), torch.stack([x**2, BLUR(x)], 1))
    assert (compose(Window(), BLUR)(x) - compose(BLUR, Window())(x)).abs().max() > 0.1


def test_the_identity_takes_nothing_away():
    window = InvertibleWindow()
    for operator in (compose(Identity(), window), compose(window, Identity())):
        assert has(operator) == {*LINEAR, PseudoInvertible}
    assert has(compose(Identity(), Identity())) == DIAGONAL
    assert has(compose(Identity(), Square())) == {Operator}
    x = torch.ones(4, 4, 4)
    assert compose(Identity(), window).pinv(x).equal(window.pinv(x))


def test_the_inverse_of_a_product_is_not_the_product_of_the_inverses(oracle):
    window, blur = dense(InvertibleWindow(), oracle.shape), oracle.filter(WEDGE.transfer(oracle.shape))
    wrong = torch.linalg.pinv(blur) @ torch.linalg.pinv(window)
    assert (torch.linalg.pinv(window @ blur) - wrong).abs().max() > 0.01
    assert not isinstance(compose(InvertibleWindow(), WEDGE), PseudoInvertible)


def test_least_squares_weighs_each_observation_by_its_transfer(generator):
    # Two defoci fill each other's zeros (Wiener without noise).
    near, far = (CTF(defocus_u_angstrom=d, voxel_size_angstrom=1.5) for d in (8000.0, 11000.0))
    both = stack(near, far)
    x = torch.randn(1, 16, 16, generator=generator, dtype=torch.float64)
    y = both(x) + 0.1 * torch.randn(2, 1, 16, 16, generator=generator, dtype=torch.float64)
    m = torch.stack([near.transfer((1, 16, 16)), far.transfer((1, 16, 16))])
    torch.testing.assert_close(rfft(both.pinv(y)), (m * rfft(y)).sum(0) / (m**2).sum(0))
    best = (both(both.pinv(y)) - y).norm()
    assert best < (both(near.pinv(y[0])) - y).norm()
    assert best < (both(x) - y).norm()


def test_observations_of_another_number_of_axes(generator):
    x = torch.randn(5, 2, 3, 4, generator=generator)
    two = stack(Rows(), Rows(), observation_ndim=2)
    assert two(x).shape == (5, 2, 2, 3)
    torch.testing.assert_close((two(x) * two(x)).sum(), (x * two.adjoint(two(x))).sum())
    with pytest.raises(OperatorError, match=r"Rows makes observations of 2 axes; give .*observation_ndim=2"):
        stack(Rows(), Rows())(x)


def test_what_does_not_fit_is_named():
    x = torch.zeros(4, 4, 4)
    for kind in (compose, add, stack):
        with pytest.raises(OperatorError, match="at least one"):
            kind()
        for parts in ((object(),), (WEDGE, object()), (Identity(), object())):
            with pytest.raises(OperatorError, match="object has neither __call__"):
                kind(*parts)
    for kind in (add, stack):
        with pytest.raises(GridMismatchError, match=r"Window \(4, 4, 4\), Rows \(4, 4\)"):
            kind(Window(), Rows())(x)
    for operator in (stack(WEDGE, BLUR), stack(WEDGE, Window())):
        with pytest.raises(GridMismatchError, match=r"\(\*batch, 2, ...\) with 3 axes .* got \(3, 4, 4, 4\)"):
            operator.adjoint(torch.zeros(3, 4, 4, 4))
    with pytest.raises(GridMismatchError, match=r"box \(4, 4, 5\), got a box \(4, 4, 4\)"):
        compose(WEDGE, FourierMask(torch.ones(4, 4, 3), (4, 4, 5)))(x)


def test_a_stack_of_images_keeps_its_ctfs(generator):
    images = CTF(defocus_u_angstrom=torch.tensor([8000.0, 9000.0]), voxel_size_angstrom=1.5)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    torch.testing.assert_close(compose(BLUR, images)(x), BLUR(images(x)))
    torch.testing.assert_close(stack(images, BLUR)(x), torch.stack([images(x), BLUR(x)], 1))


SPECTRAL = SpectralNoise(torch.tensor([2.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        (compose(BLUR, WEDGE), FourierGaussian),
        (add(BLUR, OnlyTransfer()), FourierGaussian),
        (compose(Window(), WEDGE), LinearGaussian),
        (add(Window(), OnlyTransfer()), LinearGaussian),
        (stack(BLUR, WEDGE), LinearGaussian),
        (stack(Window(), BLUR), LinearGaussian),
        (compose(Square(), BLUR), Gaussian),
        (stack(Square(), BLUR), Gaussian),
    ],
)
def test_likelihoods(operator, kind, oracle, generator):
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    y = operator(x) + 0.1
    likelihood = gaussian_likelihood(operator, SPECTRAL, y)
    assert type(likelihood) is kind
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    assert likelihood.log_prob(mean).shape == (2,)
    if kind is Gaussian:
        return
    if kind is LinearGaussian:
        likelihood = LinearGaussian(operator, SPECTRAL, y, tolerance=1e-11)
    a = dense(operator, oracle.shape)
    n = torch.block_diag(*[oracle.filter(SPECTRAL.power(oracle.shape))] * (len(a) // oracle.size))
    gain = 0.7 * a.T @ torch.linalg.inv(n + 0.7 * a @ a.T)
    expected = mean.flatten(1) + (y.flatten() - mean.flatten(1) @ a.T) @ gain.T
    torch.testing.assert_close(likelihood.condition(mean, 0.7).mean.flatten(1), expected)


def test_filter_then_noise_is_not_noise_then_filter(generator):
    # 6 standard errors for each entry of a covariance; the seed is fixed.
    shape, draws = (2, 4, 4), 20000
    blur = LowPass(5.0, voxel_size=1.5, edge_fraction=0.9)
    noise = SpectralNoise(torch.tensor([2.0, 1.0], dtype=torch.float64))
    a, n = dense(blur, shape), dense(FourierMask(noise.power(shape), shape), shape)
    x = torch.zeros(draws, *shape, dtype=torch.float64)
    for sample, expected, other in (
        (noise.sample(blur(x), generator=generator), n, a @ n @ a.T),
        (blur(noise.sample(x, generator=generator)), a @ n @ a.T, n),
    ):
        found = sample.flatten(1).T @ sample.flatten(1) / draws
        error = 6 * ((expected.diag()[:, None] * expected.diag() + expected**2) / draws).sqrt()
        assert ((found - expected).abs() < error).all()
        assert ((found - other).abs() > error).any()


def test_what_the_type_checker_sees() -> None:
    assert_type(compose(BLUR, WEDGE), FourierOperator)
    assert_type(add(OnlyTransfer(), CONTRAST), FourierOperator)
    assert_type(compose(Identity(), InvertibleWindow()), InvertibleWindow)
    assert_type(compose(InvertibleWindow(), Identity()), InvertibleWindow)
    assert_type(compose(Window(), OnlyTransfer()), LinearOperator)
    assert_type(add(Window(), BLUR), LinearOperator)
    assert_type(stack(Window(), BLUR), LinearOperator)
    assert_type(compose(Square(), BLUR), Operator)
    assert_type(add(Square(), Window()), Operator)
    assert_type(stack(Square(), OnlyTransfer()), Operator)
    multiplier: FourierMultiplier = compose(BLUR, OnlyTransfer())
    inverse: PseudoInvertible = stack(BLUR, WEDGE)
    linear: LinearOperator = stack(BLUR, WEDGE)
    y = torch.zeros(4, 4, 4)
    assert_type(gaussian_likelihood(compose(BLUR, WEDGE), WhiteNoise(1), y), FourierGaussian)
    assert_type(gaussian_likelihood(compose(Window(), WEDGE), WhiteNoise(1), y), LinearGaussian)
    assert_type(gaussian_likelihood(compose(Square(), WEDGE), WhiteNoise(1), y), Gaussian)
    assert has(multiplier) == DIAGONAL
    assert has(inverse) == has(linear) == {*LINEAR, PseudoInvertible}
