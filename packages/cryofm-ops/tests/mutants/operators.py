"""Broken operators, and the correct ones of which they are made."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from cryofm_ops import Identity
from cryofm_ops.fourier.grid import fourier_filter, friedel_weights, half_shape, irfft, rfft
from mutants._register import box, mutant, ramp

OPERATORS: list[tuple[Any, str]] = []


class Masked:
    """The correct operator of which most mutants are made: multiply voxel by voxel."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return x * ramp(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        return y * ramp(y)

    def pinv(self, y: Tensor, /) -> Tensor:
        return y / ramp(y)


class HalfSpectrum:
    """Correct: measures the half spectrum, real and imaginary parts apart."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.view_as_real(rfft(x))

    def adjoint(self, y: Tensor, /) -> Tensor:
        weights = friedel_weights(self.shape).to(y.dtype)
        return irfft(torch.view_as_complex(y.contiguous()) / weights, self.shape)


class Gain:
    """Correct: a Fourier filter that advances the phase by half a voxel along x, without the Nyquist column."""

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        k = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
        m = torch.polar(torch.ones_like(k), math.pi * k)
        m[k == 0.5] = 1
        return m.expand(half_shape(shape))

    def __call__(self, x: Tensor, /) -> Tensor:
        return fourier_filter(x, self.transfer(box(x)).to(torch.complex64 if x.dtype == torch.float32 else None))

    def adjoint(self, y: Tensor, /) -> Tensor:
        return fourier_filter(y, self.transfer(box(y)).conj().to(torch.complex64 if y.dtype == torch.float32 else None))


@mutant(OPERATORS, "dot_test")
class TransposedMask(Masked):
    def adjoint(self, y):
        return y * ramp(y).flatten().flip(0).reshape(box(y))


@mutant(OPERATORS, "dot_test")
class MissingFriedelWeight(HalfSpectrum):
    def __init__(self):
        super().__init__((4, 4, 4))

    def adjoint(self, y):
        return irfft(torch.view_as_complex(y.contiguous()), self.shape)


@mutant(OPERATORS, "transfer_hermitian")
class WrongNyquist(Gain):
    def transfer(self, shape):
        k = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
        return torch.polar(torch.ones_like(k), math.pi * k).expand(half_shape(shape))


@mutant(OPERATORS, "dot_test")
class HalfVoxelShiftBothWays(Gain):
    def adjoint(self, y):
        return self(y)


@mutant(OPERATORS, "transfer_is_operator")
class ConjugatedTransfer(Gain):
    def __call__(self, x):
        return super().adjoint(x)

    def adjoint(self, y):
        return Gain.__call__(self, y)


@mutant(OPERATORS, "transfer_grid")
class FullGridTransfer(Gain):
    def transfer(self, shape):
        return torch.ones(shape)


@mutant(OPERATORS, "deterministic")
class NoiseInside(Masked):
    def __call__(self, x):
        return x * ramp(x) + 0.01 * torch.randn_like(x)


@mutant(OPERATORS, "global_random_state")
class GlobalSeed(Masked):
    def __call__(self, x):
        torch.manual_seed(0)
        return x * ramp(x) * torch.rand(box(x), dtype=x.dtype)


@mutant(OPERATORS, "input_unchanged")
class MutatedInput(Masked):
    def __call__(self, x):
        return x.data.mul_(ramp(x))


@mutant(OPERATORS, "input_unchanged")
class MutatedByAdjoint(Masked):
    def adjoint(self, y):
        return y.mul_(ramp(y))


@mutant(OPERATORS, "dot_test")
class UnnormalisedAdjoint(Masked):
    def adjoint(self, y):
        return y * ramp(y) * math.prod(box(y))


@mutant(OPERATORS, "linearity")
class Offset(Masked):
    def __call__(self, x):
        return x * ramp(x) + 1


@mutant(OPERATORS, "linearity")
class NormalisesItsInput(Masked):
    """Right for noise of any scale up to a factor, NaN for a zero volume."""

    def __call__(self, x):
        return x / x.std(dim=(-3, -2, -1), keepdim=True)


@mutant(OPERATORS, "linearity")
class FirstResultKept(Masked):
    kept: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def __call__(self, x):
        return self.kept.setdefault(tuple(x.shape), x * ramp(x))


@mutant(OPERATORS, "linearity")
class SinglePrecisionInside(Masked):
    def __call__(self, x):
        return (x.float() * ramp(x).float()).to(x.dtype)


@mutant(OPERATORS, "shape_and_batch")
class MeanOverTheBatch(Masked):
    def __call__(self, x):
        return x - x.mean()


@mutant(OPERATORS, "shape_and_batch")
class LosesTheBatch(Masked):
    def __call__(self, x):
        return (x * ramp(x)).reshape(-1, *box(x))


@mutant(OPERATORS, "adjoint_contract")
class AdjointSumsTheBatch(Masked):
    def adjoint(self, y):
        return (y * ramp(y)).flatten(0, -4).sum(0) if y.ndim > 3 else y * ramp(y)


@mutant(OPERATORS, "dtype_and_device")
class AlwaysSingle(Masked):
    def __call__(self, x):
        return (x * ramp(x)).float()


@mutant(OPERATORS, "dtype_and_device")
class ComplexResult(Masked):
    def __call__(self, x):
        return torch.fft.ifftn(torch.fft.fftn(x))


@mutant(OPERATORS, "gradient")
class Detached(Masked):
    def __call__(self, x):
        return x.detach() * ramp(x)


@mutant(OPERATORS, "adjoint_is_autograd")
class StraightThrough(Masked):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * ramp(x)

        @staticmethod
        def backward(ctx, g):
            return g

    def __call__(self, x):
        return self.Function.apply(x)


@mutant(OPERATORS, "dense_matrix")
class AdjointWithOneWrongVoxel(Masked):
    def adjoint(self, y):
        m = ramp(y).clone()
        m[0, 0, 0] *= 1.001
        return y * m


@mutant(OPERATORS, "composition")
class AdjointOfTheLastInput(Masked):
    """Remembers which voxels its last input had, and back-projects to those alone."""

    def __call__(self, x):
        self.seen = (x.detach() != 0).to(x.dtype).expand_as(x) * (x.detach() > 0)
        return x * ramp(x)

    def adjoint(self, y):
        return y * ramp(y) * self.seen


@mutant(OPERATORS, "moore_penrose")
class PinvIsTheAdjoint(Masked):
    def pinv(self, y):
        return self.adjoint(y)


@mutant(OPERATORS, "moore_penrose")
class PinvDividesByZero(Masked):
    def __call__(self, x):
        return x * (ramp(x) > 0.5)

    def adjoint(self, y):
        return y * (ramp(y) > 0.5)

    def pinv(self, y):
        return y / (ramp(y) > 0.5).to(y.dtype)


GOOD_OPERATORS = [Masked(), Gain(), Identity()]
