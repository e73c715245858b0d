"""What one restored half says of the other, and where the restoration ends."""

import pytest
import torch

from cryofm_ops import Envelope, fourier_filter, frequencies, radial_mean, rfft
from cryofm_sampling.half_maps.checks import held_out
from cryofm_sampling.half_maps.join import joined, last_trusted

SHAPE = (32, 32, 32)


def made(noise=0.5):
    """A smooth truth and two halves of it."""
    generator = torch.Generator().manual_seed(0)
    white = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    truth = 5 * Envelope(40.0, 1.5)(white[0])
    return truth, truth + noise * white[1], truth + noise * white[2]


def wiener(half, truth, noise=0.5):
    signal = (5 * Envelope(40.0, 1.5).transfer(SHAPE)).square()
    return fourier_filter(half, (signal / (signal + noise**2)).float())


def test_a_right_result_raises_no_doubt():
    truth, one, two = made()
    judged = held_out((truth + wiener(one, truth)) / 2, one, two)
    assert judged.doubts == ()
    assert judged.slope == pytest.approx(1, abs=0.05)
    assert judged.gain > 0
    assert judged.explained > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x, one: 0.4 * x, "multiplied by 2.5"),
        (lambda x, one: 2 * x, "multiplied by 0.5"),
        (lambda x, one: x.roll(3, 0), "multiplied|worse"),
        (lambda x, one: x + 0.7 * x.flip(0), "worse|explains less|multiplied"),
        (lambda x, one: torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)), "multiplied"),
    ],
)
def test_wrong_results_do(wrong, said):
    truth, one, two = made()
    judged = held_out(wrong(truth, one), one, two)
    assert any(torch.tensor([part in "; ".join(judged.doubts) for part in said.split("|")]))


def test_what_data_know_better_ends_the_restoration():
    _, one, two = made(noise=0.02)
    blurred = fourier_filter(one, (frequencies(SHAPE) < 0.25).float())  # nothing beyond half of Nyquist
    end = last_trusted(blurred, one, two)
    assert 0.4 < end < 0.6
    assert last_trusted(one, one, two) == 1.0


def test_many_small_losses_are_a_loss():
    shape = (48, 48, 48)
    x, *n = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    one, two = x + n[0], x + n[1]
    fine = (frequencies(shape) > 0.25).float()
    # Some half an error in each shell, and several in all of them.
    end = last_trusted(one + 0.25 * fourier_filter(n[2], fine), one, two)
    assert 0.45 < end < 0.75


def test_the_join_takes_each_from_where_it_is_due():
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, *SHAPE, generator=generator)
    both = joined(low, high, 0.5)
    weights = [
        radial_mean((rfft(both) * rfft(x).conj()).real, SHAPE) / radial_mean(rfft(x).abs() ** 2, SHAPE)
        for x in (low, high)
    ]
    torch.testing.assert_close(weights[0][2:6] - weights[1][2:6], torch.ones(4), atol=0.3, rtol=0)
    torch.testing.assert_close(weights[0][11:] - weights[1][11:], -torch.ones(6), atol=0.2, rtol=0)
    assert torch.equal(joined(low, high, 1.0), low)
    torch.testing.assert_close(joined(low, low, 0.5), low)


def test_at_the_limit_of_the_prior_the_join_is_hard():
    """Whatever the prior restored stays, to its last shell."""
    low = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    kept = joined(low, torch.zeros(SHAPE), 0.5, limit=0.5)
    shells = radial_mean(rfft(kept).abs() ** 2, SHAPE) / radial_mean(rfft(low).abs() ** 2, SHAPE)
    assert (shells[:9] > 0.85).all()
    assert (shells[10:] < 0.01).all()


@pytest.mark.parametrize("a", [0.7, 1.0, 1.5])
def test_a_prediction_that_is_the_other_half_times_a_number_is_judged_by_it(a):
    """Every shell correlates as the halves do, which here are one; |y − a y|² is (1 − a)² of |y|²."""
    y = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    judged = held_out(a * y, y, y)
    assert judged.slope == pytest.approx(1 / a)
    assert judged.gain == pytest.approx(0, abs=1e-9)
    assert judged.explained == pytest.approx(-((1 - a) ** 2), abs=1e-9)
