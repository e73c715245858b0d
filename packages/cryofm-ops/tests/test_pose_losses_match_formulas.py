import math

import pytest
import torch

from cryofm_ops import CryoFMError, GridMismatchError, psi_bg, psi_cor, psi_sg


@pytest.fixture
def pair(generator):
    shape = (3, 4, 5)
    p, y = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (2, 1))
    return p, y[0]


def loop(p, y):
    """p·y, ‖p‖ and ‖y‖ by loops over one image."""
    pixels = list(zip(p.flatten().tolist(), y.flatten().tolist(), strict=True))
    return sum(a * b for a, b in pixels), math.hypot(*(a for a, _ in pixels)), math.hypot(*(b for _, b in pixels))


def test_correlation_against_loops(pair):
    p, y = pair
    expected = [[-(s[0]) / (s[1] * s[2]) for s in (loop(p[b, k], y[k]) for k in range(3))] for b in range(2)]
    for psi in (psi_cor, psi_sg):
        torch.testing.assert_close(psi(p, y), torch.tensor(expected, dtype=torch.float64))


def test_gradients_against_formulas(pair):
    p, y = pair
    p.requires_grad_()
    norm_p, norm_y = (torch.sqrt((i.detach() ** 2).sum((-2, -1), keepdim=True)) for i in (p, y))
    product = (p.detach() * y).sum((-2, -1), keepdim=True)
    along = product * p.detach() / (norm_p**3 * norm_y)
    (cor,) = torch.autograd.grad(psi_cor(p, y).sum(), p)
    torch.testing.assert_close(cor, along - y / (norm_p * norm_y))
    assert (cor * p).sum((-2, -1)).abs().max() < 1e-12  # the norm is not pushed
    (sg,) = torch.autograd.grad(psi_sg(p, y).sum(), p)
    torch.testing.assert_close(sg, (-y / (norm_p * norm_y)).expand_as(p))
    assert torch.autograd.gradcheck(psi_cor, (p, y))
    assert torch.autograd.gradcheck(lambda p: psi_bg(p, y, 0.6), p)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_background_against_loops(pair, q):
    p, y = pair
    found = psi_bg(p, y, q)
    for k in range(3):
        values = sorted(y[k].flatten().tolist())
        at = q * (len(values) - 1)
        low, high = values[math.floor(at)], values[math.ceil(at)]
        threshold = low + (high - low) * (at - math.floor(at))
        for b in range(2):
            pairs = zip(p[b, k].flatten().tolist(), y[k].flatten().tolist(), strict=True)
            assert found[b, k].item() == pytest.approx(sum(v * v for v, i in pairs if i < threshold))


def test_background_of_q_zero_is_empty(pair):
    assert not psi_bg(*pair, 0.0).any()


@pytest.mark.parametrize("zero", ["p", "y", "both"])
def test_a_zero_image_has_no_correlation_and_a_finite_gradient(pair, zero):
    p, y = (torch.zeros_like(i) if zero in (name, "both") else i for name, i in zip("py", pair, strict=True))
    p = p.clone().requires_grad_()
    for psi in (psi_cor, psi_sg):
        value = psi(p, y)
        (gradient,) = torch.autograd.grad(value.sum(), p)
        assert not value.any()
        assert not gradient.any()


def test_what_does_not_fit_is_named(pair):
    p, y = pair
    for psi in (psi_cor, psi_sg, lambda p, y: psi_bg(p, y, 0.5)):
        with pytest.raises(GridMismatchError, match=r"\(2, 3, 4, 5\) and \(3, 4, 4\)"):
            psi(p, y[..., :4])
    with pytest.raises(CryoFMError, match=r"from 0 to 1, got 70"):
        psi_bg(p, y, 70)
