"""The contract of cryofm-ops, as a stranger's project runs it."""

import torch
from beam_tilt import BeamTilt

from cryofm_ops import Gaussian, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator, parametrize_with_checks


@parametrize_with_checks([BeamTilt(1, 2.0), BeamTilt(-2, 0.5)], level="0.2")
def test_contract(check):
    check()


def test_it_is_an_operator_at_once():
    check_operator(BeamTilt(1, 2.0))


def test_data_seen_through_it_are_conditioned_on():
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    operator = BeamTilt(1, 2.0)
    data = gaussian_likelihood(operator, WhiteNoise(1e-4), operator(x))
    assert isinstance(data, Gaussian)
    torch.testing.assert_close(data.condition(torch.zeros_like(x), 1.0).mean, x, atol=2e-2, rtol=0)
