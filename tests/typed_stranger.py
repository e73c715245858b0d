"""For the type checkers alone: each assignment is a claim that a stranger's class has the capability."""

import torch
from stranger import Counted, Saturation, UnevenNoise
from torch import Tensor

from cryofm_ops import (
    FourierGaussian,
    Gaussian,
    Identity,
    Likelihood,
    LinearGaussian,
    Noise,
    Operator,
    WhiteNoise,
    gaussian_likelihood,
)
from cryofm_sampling import Draw, Guided, VelocityField

operator: Operator = Saturation(2.0)
noise: Noise = UnevenNoise(torch.ones(4, 4, 4))
prior: VelocityField = Counted()
data: Tensor = torch.zeros(4, 4, 4)

# What the parts allow is seen by the type checker, not discovered at run time.
neither: Gaussian = gaussian_likelihood(Saturation(2.0), UnevenNoise(torch.ones(4, 4, 4)), data)
linear: LinearGaussian = gaussian_likelihood(Identity(), UnevenNoise(torch.ones(4, 4, 4)), data)
diagonal: FourierGaussian = gaussian_likelihood(Identity(), WhiteNoise(1.0), data)
likelihood: Likelihood = neither
draw: Draw = Guided()(prior, likelihood, shape=(4, 4, 4), generator=torch.Generator())
