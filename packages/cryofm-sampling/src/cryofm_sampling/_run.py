"""What makes a run the run that it is: settings, seeds, data and prior, told apart without keeping them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops import Blind, Conjugate, CryoFMError, FourierDiagonal, Likelihood
from cryofm_sampling._common import split_shape, time_like
from cryofm_sampling.protocols import VelocityField

__all__ = ["Run", "differences"]

_SAME = 1e-3  # of the root mean square: far above rounding, far below what other data or another prior would make


@attrs.frozen(eq=False)
class Run:
    """What a sampler was asked to do: a checkpoint belongs to one run."""

    sampler: Any  # an attrs class
    velocity: VelocityField
    likelihood: Likelihood | FourierDiagonal | Blind
    shape: tuple[int, ...]

    def identity(self, state: Tensor, streams: Sequence[torch.Generator]) -> dict[str, object]:
        """Everything that the result depends on, as plain values, at the start."""
        seeds = hashlib.sha256(b"".join(stream.get_state().numpy().tobytes() for stream in streams))
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(0), dtype=state.real.dtype)
        noise = noise.to(state.device)
        one = noise.reshape(-1, *split_shape(self.shape)[1])[0]
        identity = {
            "sampler": type(self.sampler).__name__,
            **attrs.asdict(self.sampler),
            "shape": list(self.shape),
            "dtype": str(state.dtype),
            "seed": seeds.hexdigest()[:8],
            "velocity field": _sketch(self.velocity(one, time_like(0.5, one))),
            "likelihood": _sketch(_told_by(self.likelihood, noise)),
        }
        plain: dict[str, object] = json.loads(json.dumps(identity, default=str))
        return plain


def differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """In what two identities differ, for an error message."""
    return [
        f"another {name}" if _is_sketch(value) else f"{name}: {theirs.get(name)} there, {value} here"
        for name, value in ours.items()
        if not _same(theirs.get(name), value)
    ]


def _told_by(likelihood: Likelihood | FourierDiagonal | Blind, x: Tensor) -> Tensor:
    """Numbers that other data, another operator or another noise would change."""
    if isinstance(likelihood, FourierDiagonal):
        W, y = likelihood.spectral_precision(), likelihood.spectral_data()
        parts = (torch.where(W.isfinite(), W, -1), torch.view_as_real(torch.where(W > 0, y, 0)))
        return torch.cat([part.flatten() for part in parts])
    if not isinstance(likelihood, Likelihood):
        return _told_by(likelihood.refine(x), x)
    try:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(likelihood.log_prob(x).sum(), x)
    except CryoFMError:  # noiseless data have no density
        if not isinstance(likelihood, Conjugate):
            raise
        return likelihood.condition(x.detach(), 1.0).mean
    return gradient


def _sketch(values: Tensor) -> list[float]:
    """Root mean square, and projections on fixed random signs: any change moves them, rounding hardly does."""
    v = values.detach().flatten().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    signs = (2 * torch.randint(2, (len(v),), generator=generator, dtype=torch.int8) - 1 for _ in range(4))
    return [float(v.square().mean().sqrt()), *(float(v @ sign.double()) / len(v) ** 0.5 for sign in signs)]


def _is_sketch(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(number, float) for number in value)


def _same(theirs: Any, ours: Any) -> bool:
    if not (_is_sketch(theirs) and _is_sketch(ours)):
        return bool(theirs == ours)
    return all(abs(a - b) <= _SAME * max(theirs[0], ours[0]) for a, b in zip(theirs, ours, strict=True))
