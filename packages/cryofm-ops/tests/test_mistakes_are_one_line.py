"""What authors get wrong first ends in one line that names the argument; what they transform passes through."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch

from cryofm_ops import (
    CryoFMError,
    FourierMask,
    FourierProjector,
    Identity,
    Mask,
    PoissonLikelihood,
    Projector,
    Proximal,
    StudentTLikelihood,
    VoxelNoise,
    WhiteNoise,
    gaussian_likelihood,
    in_model_units,
    joint,
    random_rotations,
    rfft,
)
from cryofm_ops.testing import check_operator

BOX = (4, 4, 4)
VOLUME = (-3, -2, -1)
Y = torch.randn(BOX, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROTATIONS = random_rotations(2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SHIFTS = torch.tensor([[0.3, -0.2], [0.0, 0.5]], dtype=torch.float64)


class Units:
    mean, std = 0.1, 2.0


class Flat:
    def __call__(self, x):
        return x.sum(-3)

    def adjoint(self, y):
        return y


class LogProb:
    def __init__(self, log_prob):
        self.log_prob = log_prob


def gaussian(y, operator=None):
    return gaussian_likelihood(operator or Identity(), WhiteNoise(0.3), y)


def conditioned(log_prob):
    return Proximal(LogProb(log_prob)).condition(Y, 1.0)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: gaussian(Y.numpy()), "observation must be a tensor, got ndarray; torch.from_numpy"),
        (lambda: PoissonLikelihood(Identity(), Y.abs().numpy()), "observation must be a tensor, got ndarray"),
        (lambda: StudentTLikelihood(Identity(), Y.numpy(), scale=1.0), "observation must be a tensor, got ndarray"),
        (lambda: Mask(np.ones(BOX)), "a mask must be a tensor, got ndarray; torch.from_numpy"),
        (lambda: FourierMask(np.ones((4, 4, 3)), BOX), "a mask must be a tensor, got ndarray"),
        (lambda: VoxelNoise(np.ones(BOX)), "the std of a voxelwise noise must be a tensor, got ndarray"),
        (lambda: FourierProjector(ROTATIONS.numpy(), SHIFTS, BOX), "rotations must be a tensor, got ndarray"),
        (lambda: Projector(ROTATIONS, SHIFTS.numpy(), BOX), "shifts_px must be a tensor, got ndarray"),
        (lambda: FourierProjector(ROTATIONS, SHIFTS, BOX)(Y.numpy()), "a volume must be a tensor, got ndarray"),
        (lambda: FourierProjector(ROTATIONS, SHIFTS, BOX)(Y.half()), "float32 or float64, got torch.float16"),
        (lambda: Projector(ROTATIONS, SHIFTS, BOX)(Y.int()), "float32 or float64, got torch.int32"),
        (lambda: gaussian(Y + 0j), "observation must be real floating point, got torch.complex128"),
        (lambda: gaussian(Y, rfft).log_prob(Y), "must make a real tensor of a volume, it made torch.complex128"),
        (lambda: gaussian(Y / 0 * 0), "observation has 64 values that are not finite"),
        (lambda: gaussian(Y[:0]), "observation is empty"),
        (lambda: gaussian(Y.half()), "observation must be float32 or float64, got torch.float16"),
        (lambda: gaussian(Y.int()), "observation must be real floating point, got torch.int32"),
        (lambda: WhiteNoise(0.3).sample(Y, generator=None), "generator must be a torch.Generator, got None"),
        (
            lambda: conditioned(lambda x: x.detach().sum().item()),
            "log_prob of LogProb must be a real tensor, it is float",
        ),
        (lambda: conditioned(lambda x: x.detach().numpy().sum()), "must be a real tensor, it is float64"),
        (lambda: conditioned(lambda x: rfft(x).sum(VOLUME)), "must be a real tensor, it is torch.complex128"),
        (
            lambda: conditioned(lambda x: -(x - Y[:3]).square().sum(VOLUME)),
            "of LogProb fails for volumes (4, 4",
        ),
        (
            lambda: conditioned(lambda x: torch.from_numpy(x.numpy()).sum(VOLUME)),
            "fails for volumes (4, 4, 4): C",
        ),
        (lambda: gaussian(Y, Identity), "the operator is the class Identity; give an object of it"),
        (lambda: gaussian_likelihood(Identity(), WhiteNoise, Y), "the noise is the class WhiteNoise; give an object"),
        (
            lambda: WhiteNoise(torch.ones(3)),
            "must be a number, got a tensor of shape (3,); VoxelNoise",
        ),
        (lambda: WhiteNoise("0.3"[:0]), "std of white noise must be a number, got ''"),
        (
            lambda: gaussian(Y, torch.Tensor.half).log_prob(Y),
            "must make float32 or float64 of a volume, it made",
        ),
        (lambda: gaussian(Y, lambda x: x.mul_(0.5)).log_prob(Y.clone()), "writes into the volume that it is given"),
        (
            lambda: gaussian(Y[0], Flat()).condition(Y, 1.0),
            "adjoint of Flat makes (4, 4) of data of volumes (4, 4, 4)",
        ),
        (lambda: in_model_units(gaussian(Y), "0.1"), "a normalization has a mean and a std; str has not"),
        (lambda: check_operator(Identity), "what is checked is the class Identity; give an object of it"),
        (lambda: in_model_units(in_model_units(gaussian(Y), Units()), Units()), "in model units already"),
        (lambda: joint([in_model_units(gaussian(Y), Units()), gaussian(Y)]), "add those in data units"),
        (lambda: joint([in_model_units(LogProb(len), Units()), gaussian(Y)]), "add those in data units"),
    ],
)
def test_a_mistake_is_named_in_one_line(mistake, words):
    with pytest.raises(CryoFMError, match=re.escape(words)) as caught:
        mistake()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Projector, FourierProjector])
def test_projectors_pass_what_torch_transforms(kind):
    project = kind(ROTATIONS, SHIFTS, BOX)
    y, v = project(Y), Y.flip(0)
    torch.testing.assert_close(torch.func.vjp(project, Y)[1](y)[0], project.adjoint(y))
    torch.testing.assert_close(torch.func.jvp(project, (Y,), (v,))[1], project(v))
    torch.testing.assert_close(torch.func.vmap(project)(torch.stack((Y, v)))[1], project(v))
    torch.testing.assert_close(torch.func.vmap(project.adjoint)(torch.stack((y, 2 * y)))[1], 2 * project.adjoint(y))

    def energy(x):
        return project(x).pow(3).sum()

    slope = torch.func.grad(energy)(Y)
    torch.testing.assert_close(slope, 3 * project.adjoint(y**2))
    torch.testing.assert_close(
        torch.func.jvp(torch.func.grad(energy), (Y,), (v,))[1], 6 * project.adjoint(y * project(v))
    )
    by_pose = torch.func.grad(lambda r: kind(r, SHIFTS, BOX)(Y).square().sum())(ROTATIONS)
    assert by_pose.shape == ROTATIONS.shape
    assert by_pose.any()


@pytest.mark.parametrize("counts", [Y.abs().round(), Y.abs().round().float()])
def test_counts_tell_their_precision(counts):
    assert PoissonLikelihood(Identity(), counts).dtype == counts.dtype


def test_the_kit_says_what_to_install(monkeypatch):
    from cryofm_ops import testing

    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(ImportError, match=r"pip install 'cryofm-ops\[testing\]'"):
        runpy.run_path(testing.__file__)
