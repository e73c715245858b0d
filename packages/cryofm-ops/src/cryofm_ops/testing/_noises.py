"""The contract of a noise model, check by check.

The statistical checks compare sums of squares of whitened draws with the χ² distribution. Each raises a false
alarm with a probability of at most 1e-6, split evenly over the quantities it looks at (Bonferroni).
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import Shape, fourier_filter, half_shape, rfft
from cryofm_ops.protocols import SpectralPower
from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import call, each_alone, expect, expect_close, fail, norm, unchanged
from cryofm_ops.testing._multipliers import mate
from cryofm_ops.testing._statistics import chi_square

__all__: list[str] = []

_DRAWS, _AT_ONCE = 4000, 500  # fewer of a slow noise, and at least as many as are drawn at once
_SECONDS = 0.3  # of CPU time for the draws


def silent(noise: Any, shapes: Sequence[Shape]) -> bool:
    """Whether a stationary noise has coefficients without any noise."""
    if not isinstance(noise, SpectralPower):
        return False
    powers = [noise.power(s) for s in shapes]
    return any(not p.is_complex() and not bool((p > 0).all()) for p in powers)


def sample_contract(noise: Any, case: Case) -> None:
    """A noisy y has the shape, dtype and device of y, and y itself is left alone."""
    for dtype in (torch.float64, torch.float32):
        y = case.volume().to(dtype)
        generator = torch.Generator(y.device).manual_seed(case.seed)
        noisy = unchanged(lambda y=y, g=generator: noise.sample(y, generator=g), y, "sample(y)", case)  # type: ignore[misc]
        expect(noisy.shape == y.shape, f"a sample of shape {tuple(y.shape)}, as y", f"{tuple(noisy.shape)}", case)
        expect(noisy.dtype == dtype, f"a sample of dtype {dtype}, as y", f"a lost dtype: {noisy.dtype}", case)
        expect(noisy.device == y.device, f"a sample on device {y.device}, as y", f"{noisy.device}", case)


def sample_uses_its_generator(noise: Any, case: Case) -> None:
    """The same generator state gives the same draw, the next state another, and the global state has no part."""
    y = case.volume()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed + 1)  # not what the generator has
        before = torch.random.get_rng_state()
        first = _sample(noise, y, case)
        expect(
            torch.equal(before, torch.random.get_rng_state()),
            "sample to draw from its generator alone",
            "a changed global random state",
            case,
        )
        torch.manual_seed(case.seed + 2)
        again = _sample(noise, y, case)
    expect(torch.equal(first, again), "the same draw from the same generator state", "another one", case)
    generator = torch.Generator(y.device).manual_seed(case.seed)
    one, two = (call(lambda: noise.sample(y.clone(), generator=generator), "sample(y)", case).clone() for _ in range(2))
    silent = torch.equal(one, y) and torch.equal(two, y)  # noise of zero power
    expect(silent or not torch.equal(one, two), "a new draw from every call", "the same draw twice", case)


def sample_adds(noise: Any, case: Case) -> None:
    """The noise does not depend on y: sample(y) − y is the same for every y."""
    y = case.volume()
    alone = _sample(noise, torch.zeros_like(y), case)
    expect_close(_sample(noise, y, case) - y, alone, norm(y) + norm(alone), "sample(y) − y equal to sample(0)", case)


def batch_draws(noise: Any, case: Case) -> None:
    """Every element of a batch has noise of its own, and the first draws do not depend on how many follow."""
    y = torch.zeros(3, *case.shape, dtype=torch.float64, device=case.device)
    three = _sample(noise, y, case)
    if not three.any():  # noise of zero power
        return
    expect(not torch.equal(three[0], three[1]), "independent noise over a batch", "the same noise twice", case)
    fault = "draws that depend on how many follow, as torch.randn's do (see cryofm_ops.standard_normal)"
    expect_close(_sample(noise, y[:2], case), three[:2], norm(three), "the first 2 of 3 draws", case, fault=fault)


def precision_symmetric(noise: Any, case: Case) -> None:
    """Σ⁻¹ is linear, symmetric and positive, and leaves r alone."""
    r = case.volume()
    s = case.drawn(r.shape, 1)
    pr, ps = unchanged(lambda: noise.precision(r), r, "Σ⁻¹ r", case), _precision(noise, s, case)
    expect(pr.shape == r.shape, f"Σ⁻¹ r of shape {tuple(r.shape)}", f"{tuple(pr.shape)}", case)
    expect(pr.dtype == r.dtype, f"Σ⁻¹ r of dtype {r.dtype}", f"a lost dtype: {pr.dtype}", case)
    expect_close(_precision(noise, 2 * r - s, case), 2 * pr - ps, norm(pr) + norm(ps), "Σ⁻¹(2 r − s)", case)
    expect_close((pr * s).sum(), (r * ps).sum(), norm(pr) * norm(s), "Σ⁻¹ symmetric", case)
    quadratic = (r * pr).flatten(-3).sum(-1)
    expect(bool((quadratic > 0).all()), "⟨r, Σ⁻¹ r⟩ > 0", f"{float(quadratic.min()):.3g}", case)


def precision_contract(noise: Any, case: Case) -> None:
    """Σ⁻¹ treats every element of a batch by itself, in the dtype of r, and gives the same bits every time."""
    r = case.volume()
    whole = _precision(noise, r, case)
    expect(torch.equal(whole, _precision(noise, r, case)), "the same Σ⁻¹ r twice", "another", case)
    alone = each_alone(noise.precision, r, "Σ⁻¹ r", case)
    fault = "the elements of a batch mixed by precision"
    expect_close(whole, alone, norm(alone), "Σ⁻¹ of a batch equal to that of each alone", case, fault=fault)
    for dtype in (torch.float64, torch.float32):
        found = _precision(noise, r.to(dtype), case).dtype
        expect(found == dtype, f"Σ⁻¹ r of dtype {dtype}, as r", f"a lost dtype: {found}", case)


def covariance(noise: Any, case: Case) -> None:
    """Draws have the covariance that `precision` inverts: ⟨w, Σ⁻¹ n⟩² / ⟨w, Σ⁻¹ w⟩ is χ² for any w.

    w: random volumes, single voxels, and waves. Statistical: up to 4000 draws, false alarm 1e-6.
    """
    n = _draws(noise, case).flatten(1)
    w = _directions(case)
    pw = _precision(noise, w, case).flatten(1)
    variance = (w.flatten(1) * pw).sum(1)
    chi_square((n @ pw.T).square().sum(0) / variance, len(n), "the variance of whitened draws along w", case)


def draws_are_centred(noise: Any, case: Case) -> None:
    """The mean of many draws is 0 along any w: noise has no offset. Statistical: up to 4000 draws, false alarm 1e-6."""
    draws = _draws(noise, case).flatten(1)
    w = _directions(case)
    pw = _precision(noise, w, case).flatten(1)
    variance = (w.flatten(1) * pw).sum(1) / len(draws)
    chi_square((pw @ draws.mean(0)).square() / variance, 1, "the square of the mean of whitened draws along w", case)


def power_grid(noise: Any, case: Case) -> None:
    """N(k) is real, finite, not negative, on the half grid, and N(−k) = N(k)."""
    power = _power(noise, case)
    half = half_shape(case.shape)
    expect(tuple(power.shape[-3:]) == half, f"a power on the half grid {half}", f"shape {tuple(power.shape)}", case)
    fine = power.is_floating_point() and bool((power.isfinite() & (power >= 0)).all())
    expect(fine, "a real, finite power of at least 0", "another", case)
    expect_close(power, mate(power, case), 0, "N(−k) = N(k)", case)


def zero_power_has_no_precision(noise: Any, case: Case) -> None:
    """Noise that is silent somewhere has no Σ⁻¹, and says so with a ValueError instead of dividing by zero."""
    try:
        noise.precision(case.drawn(case.shape, 0))
    except ValueError:
        return
    fail("precision to raise a ValueError where the power is 0", "a result", case)


def power_is_precision(noise: Any, case: Case) -> None:
    """Σ⁻¹ divides every Fourier coefficient by N(k)."""
    r = case.volume()
    expected = fourier_filter(r, 1 / _power(noise, case).double())
    expect_close(_precision(noise, r, case), expected, norm(expected), "Σ⁻¹ r equal to r̃ / N", case, rtol=1e-6)


def power_is_variance(noise: Any, case: Case) -> None:
    """Draws have E|ñ(k)|² = N(k), coefficient by coefficient. Statistical: up to 4000 draws, false alarm 1e-6."""
    power = _power(noise, case).double()
    spectrum = rfft(_draws(noise, case))
    silent = power == 0
    scale = max(float(spectrum.abs().max()), 1e-300)
    expect(bool((spectrum[:, silent].abs() <= 1e-6 * scale).all()), "no noise where N = 0", "some", case)
    own = spectrum[:, ~silent].abs().square().sum(0) / power[~silent]  # χ²: 1 degree where k = −k, else 2 halves
    z, y, x = (torch.arange(n, device=power.device) for n in half_shape(case.shape))
    real = (2 * z % case.shape[0] == 0)[:, None, None] & (2 * y % case.shape[1] == 0)[:, None]
    real = (real & (2 * x % case.shape[2] == 0))[~silent]
    degrees = torch.where(real, 1.0, 2.0)
    if degrees.numel():
        chi_square(own * degrees, len(spectrum) * degrees, "the variance of ñ(k) over N(k)", case)


def _sample(noise: Any, y: Tensor, case: Case) -> Tensor:
    generator = torch.Generator(y.device).manual_seed(case.seed)
    return call(lambda: noise.sample(y.clone(), generator=generator), "sample(y)", case).clone()


def _precision(noise: Any, r: Tensor, case: Case) -> Tensor:
    return call(lambda: noise.precision(r.clone()), "Σ⁻¹ r", case).clone()


def _power(noise: Any, case: Case) -> Tensor:
    return call(lambda: noise.power(case.shape), "power(shape)", case).to(case.device)


def _draws(noise: Any, case: Case) -> Tensor:
    """Draws `(n, z, y, x)` of the noise alone, as many as there is time for."""
    y = torch.zeros(_AT_ONCE, *case.shape, dtype=torch.float64, device=case.device)
    generator = torch.Generator(y.device).manual_seed(case.seed)
    start, draws = time.process_time(), list[Tensor]()
    while not draws or (len(draws) * _AT_ONCE < _DRAWS and time.process_time() - start < _SECONDS):
        draws.append(call(lambda: noise.sample(y.clone(), generator=generator), "sample(y)", case).clone())
    return torch.cat(draws)


def _directions(case: Case) -> Tensor:
    """Along which draws are looked at: random volumes, single voxels, and waves."""
    return torch.cat([case.normal((8, *case.shape), 1), _voxels(case), _waves(case)])


def _voxels(case: Case) -> Tensor:
    size = math.prod(case.shape)
    unit = torch.zeros(4, size, dtype=torch.float64, device=case.device)
    for i in range(4):
        unit[i, (case.seed + i * (size // 4 + 1)) % size] = 1
    return unit.reshape(-1, *case.shape)


def _waves(case: Case) -> Tensor:
    """The constant, the three axes' longest and shortest waves."""
    waves = [torch.ones(case.shape, dtype=torch.float64, device=case.device)]
    for axis, n in enumerate(case.shape):
        for k in {1, n // 2}:
            phase = 2 * math.pi * k / n * torch.arange(n, dtype=torch.float64, device=case.device)
            line = phase.cos() if k * 2 == n else (phase + 0.3).cos()
            waves.append(line.reshape([-1 if a == axis else 1 for a in range(3)]).expand(case.shape))
    return torch.stack(waves)
