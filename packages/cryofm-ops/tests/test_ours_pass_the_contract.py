"""Every operator, noise and likelihood of this package under its own contract kit."""

import pytest
import torch

from cryofm_ops import (
    CTF,
    AnisotropicNoise,
    DoubleTilt,
    Envelope,
    FourierMask,
    FourierProjector,
    Identity,
    LowPass,
    Mask,
    MissingWedge,
    NoiseSum,
    PoissonLikelihood,
    Projector,
    Proximal,
    RadialFilter,
    RemoveMean,
    SpectralNoise,
    StudentTLikelihood,
    VoxelNoise,
    WhiteNoise,
    add,
    adjoint_of,
    compose,
    cone_alpha,
    gaussian_likelihood,
    random_rotations,
    stack,
    standard_normal,
    wedge_alpha,
)
from cryofm_ops.testing import parametrize_with_checks

BOX = (3, 5, 4)
GENERATOR = torch.Generator().manual_seed(11)
ROTATIONS = random_rotations(2, generator=GENERATOR, dtype=torch.float64)
SHIFTS = torch.tensor([[0.3, -0.7], [0.0, 1.0]], dtype=torch.float64)
OPTICS = CTF(defocus_u_angstrom=9000.0, defocus_v_angstrom=7000.0, defocus_angle_deg=30.0, voxel_size_angstrom=2.0)
WEDGE = MissingWedge(-60, 40)
COLOURED = SpectralNoise(torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64))
Y = standard_normal(torch.zeros(BOX, dtype=torch.float64), GENERATOR)


WEIGHTS = Y.abs().clamp(max=1) * (Y > -0.5)


@pytest.fixture(autouse=True)
def _fewer_cases_in_the_quick_tests(request, monkeypatch):
    if request.config.option.markexpr == "not slow":
        monkeypatch.setattr("cryofm_ops.testing._run._SHARE", 0.08)


class Voxelwise:
    """Linear, and diagonal in no Fourier space."""

    def __call__(self, x):
        return x * torch.linspace(0, 2, x.shape[-1], dtype=x.dtype)

    adjoint = __call__


class Saturation:
    """Not linear."""

    def __call__(self, x):
        return torch.tanh(x)


@parametrize_with_checks(
    [
        Identity(),
        LowPass(5.0, voxel_size=1.5),
        RadialFilter(torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)),
        RemoveMean(),
        Envelope(30.0, voxel_size=1.5),
        OPTICS,
        WEDGE,
        MissingWedge(-50, 60, "x", edge_deg=10),
        DoubleTilt(MissingWedge(-60, 60), MissingWedge(-50, 40, "x")),
        compose(LowPass(5.0, voxel_size=1.5), OPTICS),
        compose(Voxelwise(), WEDGE),
        compose(Saturation(), WEDGE),
        add(Identity(), OPTICS),
        add(Voxelwise(), OPTICS),
        stack(WEDGE, OPTICS),
        stack(Voxelwise(), WEDGE),
    ],
    level="0.2",
)
def test_operators_of_any_box(check):
    check()


@parametrize_with_checks(
    [
        FourierMask(OPTICS.transfer(BOX), BOX),
        Projector(ROTATIONS, SHIFTS, BOX, ctf=OPTICS),
        FourierProjector(ROTATIONS, SHIFTS, BOX, ctf=OPTICS),
        Mask(WEIGHTS),
        -2 * Mask(WEIGHTS) @ WEDGE + OPTICS,
        adjoint_of(lambda x: x[..., 1:] - x[..., :-1], BOX),
    ],
    shapes=[BOX],
    level="0.2",
)
def test_operators_of_one_box(check):
    check()


@parametrize_with_checks(
    [
        WhiteNoise(0.7),
        WhiteNoise(0.0),
        COLOURED,
        SpectralNoise(torch.tensor([0.0, 1.0], dtype=torch.float64)),
        AnisotropicNoise(COLOURED.radial_power, wedge_alpha(-45, 30, alpha_amplitude=3)),
        AnisotropicNoise(COLOURED.radial_power, cone_alpha((1, 2, 3), 40, alpha_amplitude=0.5)),
        NoiseSum([WhiteNoise(0.3), COLOURED]),
    ],
    level="0.2",
)
def test_noises(check):
    check()


@parametrize_with_checks(
    [
        gaussian_likelihood(Identity(), COLOURED, Y),
        gaussian_likelihood(OPTICS, COLOURED, Y),
        gaussian_likelihood(WEDGE, WhiteNoise(0.0), WEDGE(Y)),
        gaussian_likelihood(WEDGE, AnisotropicNoise(COLOURED.radial_power, wedge_alpha(-45, 30, 3)), Y),
        gaussian_likelihood(Voxelwise(), COLOURED, Y),
        gaussian_likelihood(stack(WEDGE, OPTICS), WhiteNoise(0.5), torch.stack([Y, Y])),
        gaussian_likelihood(Saturation(), COLOURED, Y),
        gaussian_likelihood(WEDGE, VoxelNoise(0.5 + WEIGHTS), Y),
        gaussian_likelihood(Mask(WEIGHTS), WhiteNoise(0.5), Y),
        PoissonLikelihood(OPTICS, Y.square().round(), background=1.0),
        StudentTLikelihood(Saturation(), Y, scale=0.3),
        Proximal(StudentTLikelihood(Identity(), Y, scale=0.3)),
        Proximal(gaussian_likelihood(Mask(WEIGHTS), WhiteNoise(0.3), Y)),
    ],
    shapes=[BOX],
    level="0.2",
)
def test_likelihoods(check):
    check()


@parametrize_with_checks([VoxelNoise(0.5 + WEIGHTS)], shapes=[BOX], level="0.2")
def test_noise_of_one_box(check):
    check()
