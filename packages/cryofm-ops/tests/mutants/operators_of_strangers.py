"""Mistakes that authors of operators make, each with the check that tells of it, and words of what that says."""

import math
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, friedel_weights, irfft
from mutants._register import box, named, ramp
from mutants.operators import Gain, HalfSpectrum, Masked

OPERATORS: list[tuple[Any, str, str]] = []


class Saturating:
    """Correct: not linear, and it does not claim to be."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.tanh(x * ramp(x))


@named(OPERATORS, "linearity", "nonlinear operator that poses as linear")
class SaturatingWithAdjoint(Saturating):
    """The derivative's transpose at zero does not make it linear."""

    def adjoint(self, y):
        return y * ramp(y)


@named(OPERATORS, "dot_test", "nonlinear operator that poses as linear")
class Magnitudes(Masked):
    def __call__(self, x):
        return (x * ramp(x)).abs()


@named(OPERATORS, "linearity", "affine operator")
class SolventAdded(Masked):
    def __call__(self, x):
        return x * ramp(x) + 0.1 * (1 - ramp(x))


@named(OPERATORS, "dense_matrix", "nonlinear operator that poses as linear")
class Rounded(Masked):
    """As detectors count."""

    def __call__(self, x):
        return x * ramp(x) + (x.detach().round() - x.detach())


@named(OPERATORS, "linearity", "float64 lost inside A")
class SinglePrecisionTable(Masked):
    def __call__(self, x):
        return (x.float() * ramp(x).float()).double() if x.dtype == torch.float64 else x * ramp(x)


@named(OPERATORS, "float64_kept", "float64 lost inside A x")
class SaturatingInSinglePrecision(Saturating):
    def __call__(self, x):
        return super().__call__(x.float()).to(x.dtype)


@named(OPERATORS, "shape_and_batch", "volumes of a batch mixed")
class ScaledByTheBatch(Saturating):
    def __call__(self, x):
        return super().__call__(x / x.abs().max().clamp(min=1))


@named(OPERATORS, "shape_and_batch", "volumes of a batch mixed")
class ShiftedAlongTheBatch(Masked):
    """An axis counted from the front."""

    def __call__(self, x):
        return x.roll(1, 0)


@named(OPERATORS, "adjoint_contract", "volumes of a batch mixed by Aᵀ y")
class AdjointOfTheMean(Masked):
    def adjoint(self, y):
        return (y - y.mean(0, keepdim=True) * (y.ndim > 3)) * ramp(y)


@named(OPERATORS, "shape_and_batch", "NaN in")
class LogOfNegativeValues(Saturating):
    def __call__(self, x):
        return torch.log(x)


@named(OPERATORS, "linearity", "NaN in")
class DividedByItsNorm(Masked):
    def __call__(self, x):
        return x * ramp(x) * (x.norm() / x.norm())


@named(OPERATORS, "input_unchanged", "a changed input")
class PaddedInPlace(Masked):
    def pinv(self, y):
        y[..., 0] = 0
        return y / ramp(y)


@named(OPERATORS, "dtype_and_device", "a lost dtype: torch.float64")
class DoubleTable(Masked):
    def __call__(self, x):
        return x * ramp(x).double()


@named(OPERATORS, "adjoint_contract", "a lost dtype: torch.float32")
class SingleAdjoint(Masked):
    def adjoint(self, y):
        return (y * ramp(y)).float()


@named(OPERATORS, "deterministic", "does the operator add noise, or keep state?")
class NoiseFromItsOwnGenerator(Masked):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x):
        return x * ramp(x) + 0.01 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


@named(OPERATORS, "result_is_own", "a result that the next call writes into")
class ReusedBuffer(Masked):
    def __init__(self):
        self.buffers = {}

    def __call__(self, x):
        if x.requires_grad:
            return x * ramp(x)
        return torch.mul(x, ramp(x), out=self.buffers.setdefault((x.shape, x.dtype), torch.empty_like(x)))


@named(OPERATORS, "any_layout", "another layout")
class ReadsMemoryInOrder(Masked):
    def __call__(self, x):
        flat = torch.as_strided(x, (x.numel(),), (1,), x.storage_offset())
        return flat.reshape(x.shape) * ramp(x)


@named(OPERATORS, "any_layout", "view size is not compatible")
class Views(Masked):
    def __call__(self, x):
        return x.view(*x.shape[:-3], -1).mul(ramp(x).flatten()).view(x.shape)


@named(OPERATORS, "dot_test", "⟨x, Aᵀ y⟩ equal to ⟨A x, y⟩")
class ShiftedByOneTooMany(Masked):
    def __call__(self, x):
        return x.roll(1, -1)

    def adjoint(self, y):
        return y.roll(-2, -1)


@named(OPERATORS, "dot_test", "⟨x, Aᵀ y⟩ equal to ⟨A x, y⟩")
class NegatedAdjoint(Masked):
    def adjoint(self, y):
        return -y * ramp(y)


@named(OPERATORS, "dot_test", "⟨x, Aᵀ y⟩")
class AxesTransposed(Masked):
    def __call__(self, x):
        return x.transpose(-1, -3)

    def adjoint(self, y):
        return y


@named(OPERATORS, "adjoint_is_autograd", "vector-Jacobian product")
class FriedelWeightTwice(HalfSpectrum):
    def __init__(self):
        super().__init__((4, 4, 4))

    def adjoint(self, y):
        return super().adjoint(y / friedel_weights(self.shape)[..., None])


@named(OPERATORS, "dot_test", "⟨x, Aᵀ y⟩")
class CroppedFromTheOtherEnd(Masked):
    def __call__(self, x):
        return x[..., 1:]

    def adjoint(self, y):
        return torch.nn.functional.pad(y, (0, 1))


@named(OPERATORS, "dot_test", "⟨x, Aᵀ y⟩")
class KernelNotFlipped(Masked):
    kernel = (0.5, 0.3, 0.2)

    def __call__(self, x):
        return sum(w * x.roll(i, -2) for i, w in enumerate(self.kernel))

    adjoint = __call__


class Decay(Gain):
    """Correct: amplitudes fall, phases turn."""

    def transfer(self, shape):
        k = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
        return super().transfer(shape) * torch.exp(-k)

    def pinv(self, y):
        return fourier_filter(y, 1 / self.transfer(box(y)))


@named(OPERATORS, "moore_penrose", "A A⁺ A x equal to A x")
class ConjugateForInverse(Decay):
    def pinv(self, y):
        return self.adjoint(y)


@named(OPERATORS, "moore_penrose", "A A⁺ A x equal to A x")
class WienerForInverse(Decay):
    def pinv(self, y):
        m = self.transfer(box(y))
        return fourier_filter(y, m.conj() / (m.abs() ** 2 + 1e-3))


@named(OPERATORS, "transfer_is_operator", "A x by its transfer")
class CentredTransfer(Decay):
    """Zero frequency in the middle, as in a picture of it; along z it is m(−k) = m(k)* all the same."""

    def transfer(self, shape):
        k = torch.fft.fftfreq(shape[0], dtype=torch.float64).abs()[:, None, None]
        return torch.exp(-k).expand(shape[0], shape[1], shape[2] // 2 + 1)

    def __call__(self, x):
        centred = torch.fft.fftshift(self.transfer(box(x)), 0)
        return irfft(torch.fft.rfftn(x, dim=(-3, -2, -1), norm="ortho") * centred, box(x)).to(x.dtype)


@named(OPERATORS, "transfer_is_operator", "A x by its transfer")
class UnnormalisedTransform(Gain):
    def __call__(self, x):
        return super().__call__(x) * math.prod(box(x)) ** 0.5


@named(OPERATORS, "gradient", "a result without a graph")
class WithoutGraph(Masked):
    def __call__(self, x):
        with torch.no_grad():
            return x * ramp(x)


@named(OPERATORS, "gradient", "the slope of A")
class GradientOfHalf(Saturating):
    def __call__(self, x):
        y = super().__call__(x)
        return (y + y.detach()) / 2


@named(OPERATORS, "global_random_state", "a changed state")
class DrawsAndThrowsAway(Masked):
    def __call__(self, x):
        torch.rand(1)
        return x * ramp(x)


GOOD_OPERATORS = [Saturating(), Decay()]
