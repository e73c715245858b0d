"""A setting out of range is refused by the error that says so, which names it."""

import math

import pytest

from cryofm_sampling import (
    AbInitio,
    BlindGuided,
    Checkpoint,
    Flow,
    Guided,
    Inpainting,
    PlugAndPlay,
    PlugAndPlayLoss,
    PosteriorFlow,
    Renoising,
    ScaledNormalization,
    SettingError,
    Tiled,
)
from cryofm_sampling.testing import GaussianPrior

PRIOR = GaussianPrior(1.0)


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        (lambda: Guided(steps=0), "Guided: 'steps' must be >= 1: 0"),
        (lambda: Guided(guidance="mode"), "Guided: 'guidance' must be in .* \\(got 'mode'\\)"),
        (lambda: Guided(max_push=math.nan), "'max_push'"),
        (lambda: BlindGuided(max_push=0.0), "'max_push'"),
        (lambda: PlugAndPlay(time=1.5), "PlugAndPlay: 'time' must be < 1: 1.5"),
        (lambda: PlugAndPlay(time=0.0), "'time' must be > 0"),
        (lambda: PlugAndPlayLoss(PRIOR, 1.5), "'fraction'"),
        (lambda: PosteriorFlow(1), "'steps'"),
        (lambda: PosteriorFlow(2.5), "'steps'.*2.5"),
        (lambda: PosteriorFlow(first=8), "'first'.*PlugAndPlay"),
        (lambda: PlugAndPlay(math.inf), "'iterations'.*inf"),
        (lambda: Renoising(chains=0), "'chains'"),
        (lambda: Inpainting(0), "'steps'"),
        (lambda: Flow(0), "'steps'"),
        (lambda: Flow(integrator="leapfrog"), "'integrator'"),
        (lambda: Tiled(PRIOR, 0, 0), "'tile'"),
        (lambda: ScaledNormalization(None, 0.0), "'scale'"),
        (lambda: Checkpoint("a", -1), "'every_seconds'"),
        (lambda: AbInitio(levels=1), "'levels'"),
        (lambda: AbInitio(ratios=(20.0, 0.0)), r"'ratios' must be positive and fall, got \(20.0, 0.0\)"),
        (lambda: AbInitio(ratios=(0.1, 20.0)), "'ratios'"),
    ],
)
def test_it_is_refused_by_name(refused, name):
    with pytest.raises(SettingError, match=name):
        refused()
