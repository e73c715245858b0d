"""What makes a run the run that it is: settings, seeds, data and prior, told apart without keeping them.

Settings and seeds must be the same. Data and prior must be but for rounding, so that no hash would do: they are
computed again, by transforms, gradients and networks, whose last bits differ between machines and numbers of threads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops import Blind, Conjugate, CryoFMError, FourierDiagonal, Likelihood, irfft
from cryofm_sampling._common import log_prob_and_gradient, split_shape, velocity_at
from cryofm_sampling.protocols import VelocityField

__all__ = ["Run", "differences"]

# What rounding may change, of the root mean square: ten times what single precision was seen to, against double.
_TRANSFORMS = 1e-5  # and tables
_OPERATORS = 1e-4
_NETWORKS = 1e-3  # and searches, and conjugate gradients
_SUMS = 64
_STATISTICS = ("signal_power", "denoising_error", "denoising_spectrum")

Sketch = list[float]
Fingerprint = dict[str, dict[str, Any]]


@attrs.frozen(eq=False)
class Run:
    """What a sampler was asked to do: a checkpoint belongs to one run."""

    sampler: Any  # an attrs class
    velocity: VelocityField
    data: Likelihood | FourierDiagonal | Blind | Mapping[str, Sequence[Tensor]]  # by name, where it is no likelihood
    shape: tuple[int, ...]

    @torch.inference_mode(False)
    @torch.no_grad()
    def fingerprint(self, state: Tensor, streams: Sequence[torch.Generator]) -> Fingerprint:
        """Everything that the result depends on, as plain values, at the start."""
        seeds = hashlib.sha256(b"".join(stream.get_state().numpy().tobytes() for stream in streams))
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(0), dtype=state.real.dtype)
        noise = noise.to(state.device)
        one = noise.reshape(-1, *split_shape(self.shape)[1])[0]
        settings = {
            "sampler": type(self.sampler).__name__,
            **attrs.asdict(self.sampler),
            "shape": list(self.shape),
            "dtype": str(state.dtype),
            "seed": seeds.hexdigest()[:8],
        }
        statistics = {name: getattr(self.velocity, name) for name in _STATISTICS if hasattr(self.velocity, name)}
        if isinstance(self.data, Mapping):
            sketches_of_data = {name: [_sketch(values) for values in tensors] for name, tensors in self.data.items()}
        else:
            with torch.autocast(noise.device.type, enabled=False):  # as when it is sampled with
                sketches_of_data = {"likelihood": _sketches_of(self.data, noise)}
        sketches = {
            "velocity field": [_sketch(velocity_at(self.velocity, one[None], 0.5, any_value=True), _NETWORKS)],
            **{name: [_sketch(table)] for name, table in statistics.items()},
            **sketches_of_data,
        }
        return {"settings": json.loads(json.dumps(settings, default=_plain)), "sketches": sketches}


def _plain(value: object) -> object:
    """A setting that JSON does not know; numbers of numpy are numbers."""
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def differences(theirs: Fingerprint, ours: Fingerprint) -> list[str]:
    """In what two fingerprints differ, for an error message."""
    set_there, set_here = theirs["settings"], ours["settings"]
    seen_there, seen_here = theirs["sketches"], ours["sketches"]
    return [
        f"{name}: {set_there.get(name)} there, {set_here.get(name)} here"
        for name in set_here | set_there
        if set_there.get(name) != set_here.get(name)
    ] + [
        f"another {name}"
        for name in seen_here | seen_there
        if not _same(seen_there.get(name, []), seen_here.get(name, []))
    ]


def _sketches_of(
    likelihood: Likelihood | FourierDiagonal | Blind, x: Tensor, slack: float = _OPERATORS
) -> list[Sketch]:
    """Sketches that other data, another operator or another noise would change."""
    if isinstance(likelihood, FourierDiagonal):
        W, y = likelihood.spectral_precision(), likelihood.spectral_data()
        # In space, where one voxel is one value; weighed as with a white prior, as y without its noise may be anything.
        y = irfft(torch.where(W > 0, y / (1 + 1 / W), 0), split_shape(x.shape)[1])
        return [_sketch(torch.where(W.isfinite(), W.sqrt(), -1)), _sketch(y)]
    if isinstance(likelihood, Likelihood):
        try:
            return [_sketch(log_prob_and_gradient(likelihood, x)[1], slack)]
        except CryoFMError:  # noiseless data have no density
            if not isinstance(likelihood, Conjugate):
                raise
    if isinstance(likelihood, Conjugate):
        return [_sketch(likelihood.condition(x, 1.0).mean, _NETWORKS)]
    return _sketches_of(likelihood.refine(x), x, _NETWORKS)


def _sketch(values: Tensor, slack: float = _TRANSFORMS) -> Sketch:
    """How much rounding may change a sum, and sums of every 64th value times fixed random signs.

    One value among n is seen to change by more than slack · √(n / 64) times their root mean square (with `_TRANSFORMS`
    4e-4 in a box of 48³, 5e-3 in one of 256³), all of them, independently, by a few times slack. Less is not seen.
    """
    real = torch.view_as_real(values) if values.is_complex() else values
    v = real.detach().flatten().to("cpu", torch.float64)
    v = torch.where(v.isfinite(), v, 0)  # NaN would differ from itself
    v = torch.nn.functional.pad(v, (0, -len(v) % _SUMS))
    signs = 2 * torch.randint(2, v.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8) - 1
    sums: Sketch = (v * signs).reshape(-1, _SUMS).sum(0).tolist()
    return [slack * float(v.norm()) / _SUMS**0.5, *sums]


def _same(theirs: Sequence[Sketch], ours: Sequence[Sketch]) -> bool:
    return len(theirs) == len(ours) and all(
        abs(a - b) <= max(there[0], here[0])
        for there, here in zip(theirs, ours, strict=True)
        for a, b in zip(there, here, strict=True)
    )
