"""The data terms of the second generation's release: ours against dense calculations, theirs as far off as is said."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryofm_ops import FourierGaussian, Identity, VoxelNoise, gaussian_likelihood, rfft

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
release = pytest.importorskip("release")
BOX = (4, 6, 5)


def dense(weights: Tensor) -> Tensor:
    """Fᵀ W F for weights on the whole grid, by a matrix of exponentials."""
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in BOX), indexing="ij")
    k = torch.stack([g.flatten() for g in grids], 1)
    phase = (k / torch.tensor(BOX)) @ k.T
    F = torch.exp(-2j * torch.pi * phase) / len(k) ** 0.5
    return (F.conj().T @ (weights.flatten()[:, None] * F)).real


def whole(half: Tensor) -> Tensor:
    """Radially symmetric weights on all frequencies, from those with kx ≥ 0."""
    x = torch.arange(BOX[2])
    return half[..., torch.minimum(x, BOX[2] - x)]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, *BOX, generator=generator, dtype=torch.float64)
    f = [torch.fft.fftfreq(n).abs() for n in BOX[:2]] + [torch.fft.rfftfreq(BOX[2])]
    k = (f[0][:, None, None] ** 2 + f[1][:, None] ** 2 + f[2] ** 2).sqrt().double()
    return x, y, 1 / (0.1 + 20 * k**3)


def test_our_data_term_is_the_dense_one_and_the_release_s_is_not(case):
    """Denoise: L = ½ Σ w_k |X_k − Y_k|² with w = 1/((1 − F) P)."""
    x, y, w = case
    likelihood = FourierGaussian(w, rfft(y), BOX)
    r = (x - y).flatten()
    exact = dense(whole(w)) @ r
    x = x.requires_grad_()
    (ours,) = torch.autograd.grad(-likelihood.log_prob(x), x)
    torch.testing.assert_close(ours.flatten(), exact)
    torch.testing.assert_close(-release.gradient(w, x.detach(), y).flatten(), exact)

    # The release's: an axis too many, and every term with every weight of its (ky, kx).
    misfit = torch.fft.fftn(x - y, norm="ortho").abs().square()[None]
    broadcast = (whole(w)[:, None] * misfit).sum() / 2
    (theirs,) = torch.autograd.grad(broadcast, x)
    summed = release.summed_over_kz(w)
    torch.testing.assert_close(theirs.flatten(), dense(whole(summed)) @ r)
    torch.testing.assert_close(theirs, -release.gradient(summed, x.detach(), y))
    assert release.cosine(theirs, ours) < 0.95


def test_local_noise_of_a_tile_is_its_own():
    generator = torch.Generator().manual_seed(0)
    variances = 0.1 + torch.rand(3, *BOX, generator=generator, dtype=torch.float64)
    x, *data = torch.randn(4, *BOX, generator=generator, dtype=torch.float64)
    for variance, y in zip(variances, data, strict=True):
        likelihood = gaussian_likelihood(Identity(), VoxelNoise(variance.sqrt()), y)
        at = x.clone().requires_grad_()
        (ours,) = torch.autograd.grad(-likelihood.log_prob(at), at)
        torch.testing.assert_close(ours, (x - y) / variance)
        theirs = (1 / variances).sum(0) * (x - y)  # the weights of all tiles of the batch
        assert release.cosine(theirs, ours) < 0.97


@pytest.mark.parametrize(("power", "steps"), [(9.0, 50), (1e-4, 50)])
def test_amplitudes_are_those_of_steps_done(power, steps):
    """Euler's rule on the flow of a Gaussian prior, asked at the beginning of a step and at its end."""
    x = {False: 1.0, True: 1.0}
    for at_end in x:
        for i in range(steps):
            t = 1 - (i + at_end) / steps
            x_0 = (1 - t) * power / ((1 - t) ** 2 * power + t**2) * x[at_end]
            v = (x[at_end] - x_0) / t if t > 0 else -x[at_end]  # its limit
            x[at_end] -= v / steps
        found = release.amplitude(torch.tensor([power], dtype=torch.float64), steps, at_end)
        assert float(found) == pytest.approx(x[at_end])
    assert x[False] != pytest.approx(x[True], rel=1e-3)


def test_the_table_says_what_its_formulas_do(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["release.py", "--out", str(tmp_path / "table.csv")])
    release.main()
    rows = (tmp_path / "table.csv").read_text().splitlines()
    committed = Path(release.__file__).parent / "results" / "release.csv"
    assert rows == committed.read_text().splitlines()
