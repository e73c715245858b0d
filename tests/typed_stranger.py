"""For the type checkers alone: each assignment is a claim that a stranger's class has the capability."""

import torch
from stranger import Counted, Saturation, UnevenNoise
from torch import Tensor

from cryofm_ops import (
    CTF,
    Blind,
    BlindProjections,
    Conjugate,
    FourierGaussian,
    FourierMultiplier,
    FourierOperator,
    Gaussian,
    Identity,
    Likelihood,
    LinearGaussian,
    LinearOperator,
    LowPass,
    MissingWedge,
    Noise,
    Operator,
    Projector,
    PseudoInvertible,
    WhiteNoise,
    add,
    compose,
    gaussian_likelihood,
    in_model_units,
    stack,
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

# Of composed operators too.
ctf, wedge, low = CTF(defocus_u_angstrom=9000.0, voxel_size_angstrom=1.5), MissingWedge(-60, 60), LowPass(6.0, 1.5)
projector = Projector(torch.eye(3)[None], torch.zeros(1, 2), (4, 4, 4))
filters: FourierOperator = compose(low, ctf)
multiplier: FourierMultiplier = add(low, ctf)
after_projection: LinearOperator = compose(projector, wedge)
saturated: Operator = compose(Saturation(2.0), wedge)
least_squares: PseudoInvertible = stack(low, wedge)
closed_form: FourierGaussian = gaussian_likelihood(compose(low, wedge), WhiteNoise(1.0), data)
by_iteration: Conjugate = gaussian_likelihood(compose(projector, wedge), WhiteNoise(1.0), data[:1])
blind: Blind = BlindProjections(data[:1], max_shift_px=1.0)


class Units:
    """Data in units of their own."""

    mean = 0.04
    std = 0.09


blind_in_model_units: Blind = in_model_units(blind, Units())
