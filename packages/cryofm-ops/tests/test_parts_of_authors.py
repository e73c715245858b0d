"""Masks, voxelwise noise, adjoints by autograd, operators as on paper, counts and outliers."""

import math

import pytest
import torch

from cryofm_ops import (
    Conjugate,
    FourierMultiplier,
    GridMismatchError,
    Identity,
    LinearOperator,
    LowPass,
    Mask,
    MissingWedge,
    NoiseError,
    ObservationError,
    OperatorError,
    PoissonLikelihood,
    PseudoInvertible,
    Scale,
    StudentTLikelihood,
    VoxelNoise,
    WhiteNoise,
    add,
    adjoint_of,
    compose,
    gaussian_likelihood,
    stack,
)

BOX = (3, 4, 5)
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(2, *BOX, generator=GENERATOR, dtype=torch.float64)
WEDGE, LOW = MissingWedge(-50, 60), LowPass(4.0, voxel_size=1.0)


class Stranger:
    """Linear, with nothing of ours."""

    def __call__(self, x):
        return x * torch.linspace(0, 2, x.shape[-1], dtype=x.dtype)

    adjoint = __call__


def dense(operator):
    n = math.prod(BOX)
    return operator(torch.eye(n, dtype=torch.float64).reshape(n, *BOX)).flatten(1).T


@pytest.mark.parametrize(
    ("written", "made"),
    [
        (2 * WEDGE, compose(Scale(2), WEDGE)),
        (WEDGE * 0.5, compose(Scale(0.5), WEDGE)),
        (-WEDGE, compose(Scale(-1), WEDGE)),
        (WEDGE @ LOW, compose(WEDGE, LOW)),
        (WEDGE + LOW, add(WEDGE, LOW)),
        (WEDGE - LOW, add(WEDGE, compose(Scale(-1), LOW))),
        (Stranger() @ WEDGE, compose(Stranger(), WEDGE)),
        (WEDGE @ Stranger(), compose(WEDGE, Stranger())),
        (Stranger() + WEDGE, add(Stranger(), WEDGE)),
        (Stranger() - Identity(), add(Stranger(), Scale(-1))),
        (2 * (WEDGE @ Stranger() + Identity()), add(compose(Scale(2), WEDGE, Stranger()), Scale(2))),
        (3 * stack(WEDGE, LOW), compose(Scale(3), stack(WEDGE, LOW))),
    ],
)
def test_operators_as_on_paper(written, made):
    assert torch.allclose(dense(written), dense(made))
    for capability in (LinearOperator, FourierMultiplier):
        assert isinstance(written, capability) == isinstance(made, capability)
    y = written(X)
    assert torch.allclose(written.adjoint(y), made.adjoint(y))


def test_what_is_no_operator_is_no_term():
    for wrong in (lambda: WEDGE @ 2, lambda: WEDGE + 1, lambda: WEDGE * WEDGE, lambda: "2" * WEDGE, lambda: 1 - WEDGE):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(OperatorError, match="finite"):
        math.inf * WEDGE


def test_fourier_parts_stay_invertible():
    assert isinstance(2 * WEDGE, PseudoInvertible)
    assert torch.allclose((2 * WEDGE).pinv(2 * WEDGE(X)), WEDGE(X))
    assert not Scale(0.0).pinv(X).any()


def test_a_mask_and_its_pseudo_inverse():
    w = torch.zeros(BOX, dtype=torch.float64)
    w[0], w[1] = 1, 0.5
    mask = Mask(w)
    assert torch.equal(mask(X), w * X)
    assert torch.allclose(mask.pinv(mask(X)), (w > 0) * X)
    assert torch.equal(Mask(w > 0)(X), (w > 0) * X)
    with pytest.raises(GridMismatchError, match="the mask has box"):
        mask(torch.zeros(4, 4, 4))
    for wrong in (torch.zeros(BOX), torch.ones(2, *BOX), torch.full(BOX, math.nan)):
        with pytest.raises(OperatorError, match="mask"):
            Mask(wrong)


def test_voxelwise_noise_with_an_operator_of_fourier_space_is_a_dense_solve():
    std = 0.2 + Y.abs()
    likelihood = gaussian_likelihood(WEDGE, VoxelNoise(std), X)
    assert isinstance(likelihood, Conjugate)
    A = dense(WEDGE)
    precision = torch.diag(std.flatten() ** -2)
    posterior = torch.linalg.inv(torch.eye(len(A)).double() / 0.7 + A.T @ precision @ A)
    exact = posterior @ (A.T @ precision @ X.flatten())
    found = likelihood.condition(torch.zeros_like(X), 0.7).mean.flatten()
    assert torch.allclose(found, exact, atol=1e-4)
    with pytest.raises(NoiseError, match="positive finite numbers"):
        VoxelNoise(torch.zeros(BOX))
    with pytest.raises(GridMismatchError, match="std of shape"):
        VoxelNoise(std).precision(torch.zeros(4, 4, 4))


def test_the_adjoint_of_a_function():
    for function in (lambda x: x.cumsum(-1), lambda x: x.flatten(-3)[..., ::7], lambda x: x.sum((-1, -2, -3))):
        operator = adjoint_of(function, BOX)
        A = function(torch.eye(60, dtype=torch.float64).reshape(60, *BOX)).reshape(60, -1).T
        y = torch.randn(2, *operator(X).shape, generator=GENERATOR, dtype=torch.float64)
        assert torch.allclose(operator.adjoint(y).flatten(1), y.reshape(2, -1) @ A)
    with torch.no_grad(), torch.inference_mode():
        assert adjoint_of(lambda x: 2 * x, BOX).adjoint(X).equal(2 * X)
    with pytest.raises(OperatorError, match="no gradient passes"):
        adjoint_of(lambda x: x.detach(), BOX).adjoint(X)
    with pytest.raises(GridMismatchError, match="the function makes"):
        adjoint_of(lambda x: x[..., 1:], BOX).adjoint(X)


def test_counts_have_the_density_of_poisson():
    rate, counts = X.square() + 1, Y.square().mul(3).round()
    found = PoissonLikelihood(Identity(), counts, background=1.0)
    exact = torch.distributions.Poisson(rate).log_prob(counts) - torch.distributions.Poisson(
        counts.clamp(min=1e-300)
    ).log_prob(counts)
    assert found.log_prob(X.square()).item() == pytest.approx(exact.sum().item())
    x = torch.full(BOX, -50.0, dtype=torch.float64, requires_grad=True)  # rates below 0
    value = found.log_prob(x)
    value.backward()
    assert value.isfinite()
    assert (x.grad[counts > 0] > 0).all()
    with pytest.raises(ObservationError, match="negative"):
        PoissonLikelihood(Identity(), -counts - 1)
    with pytest.raises(GridMismatchError, match="the counts have shape"):
        found.log_prob(torch.zeros(4, 4, 4, dtype=torch.float64))


def test_outliers_have_the_density_of_students_t():
    found = StudentTLikelihood(Identity(), Y, scale=0.3, degrees=5)
    density = torch.distributions.StudentT(torch.tensor(5.0).double(), X, 0.3)
    exact = (density.log_prob(Y) - density.log_prob(X)).sum()
    assert found.log_prob(X).item() == pytest.approx(exact.item())
    normal = gaussian_likelihood(Identity(), WhiteNoise(0.3), Y).log_prob(X).item()
    assert StudentTLikelihood(Identity(), Y, scale=0.3, degrees=1e8).log_prob(X).item() == pytest.approx(
        normal, rel=1e-4
    )
    for wrong in ({"scale": 0.0}, {"scale": 1.0, "degrees": -1.0}):
        with pytest.raises(NoiseError, match="Student's t"):
            StudentTLikelihood(Identity(), Y, **wrong)
