"""Independent oracles: brute-force transforms and dense matrices."""

import cmath
import itertools
import math

import pytest
import torch
from torch import Tensor

Shape = tuple[int, int, int]


class Oracle:
    """The unitary DFT of a box as a dense matrix, rows and columns in (z, y, x) order."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.size = math.prod(shape)

        def dft(n: int) -> Tensor:
            rows = [[cmath.exp(-2j * math.pi * j * k / n) / math.sqrt(n) for j in range(n)] for k in range(n)]
            return torch.tensor(rows, dtype=torch.complex128)

        z, y, x = (dft(n) for n in shape)
        self.matrix = torch.kron(torch.kron(z, y), x)

    def full(self, half: Tensor) -> Tensor:
        """Expand a half grid to the full one, flat, by Friedel's law, coefficient by coefficient."""
        nz, ny, nx = self.shape
        out = [
            half[k, j, i] if i <= nx // 2 else half[-k % nz, -j % ny, nx - i].conj()
            for k, j, i in itertools.product(range(nz), range(ny), range(nx))
        ]
        return torch.stack(out)

    def filter(self, half: Tensor) -> Tensor:
        """The real matrix that multiplies Fourier coefficients by `half`."""
        diagonal = self.full(half).to(torch.complex128)
        dense = self.matrix.conj().T @ (diagonal[:, None] * self.matrix)
        assert dense.imag.abs().max() < 1e-9
        return dense.real


@pytest.fixture(params=[(4, 4, 4), (5, 5, 5), (3, 4, 5)], ids=str, scope="session")
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param)


@pytest.fixture
def single():
    """Torch's own default precision, for what is printed in it or is about it (`nox -s robust` sets another)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
