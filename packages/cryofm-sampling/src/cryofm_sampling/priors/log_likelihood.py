"""The log-likelihood of a map under a flow prior (CryoFM, appendix B.2).

Along dx/dt = v(x, t) the density obeys d log p_t(x_t)/dt = −∇·v (Grathwohl et al., FFJORD, ICLR 2019), and at t = 1 it
is that of white noise. With time running from data to noise,

    log p_0(x_0) = log N(x_1; 0, 1) + ∫₀¹ ∇·v(x_t, t) dt,

with a plus, where B.2 has a minus: a flow that spreads the data out (∇·v > 0) starts from a higher density. The
divergence is Hutchinson's (1990) estimate zᵀ (∂v/∂x) z, with the same probe z from t = 0 to 1.
"""

import math
from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from cryofm_ops import ConvergenceError
from cryofm_sampling._common import backward, split_shape, streams, velocity_at, white_noise
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.protocols import VelocityField

__all__ = ["LogLikelihood", "log_likelihood"]

_MOST_STEPS = 1000


@attrs.frozen(eq=False)
class LogLikelihood:
    """What `log_likelihood` found.

    Attributes:
        nats: log p(x), `(*batch,)`.
        standard_error: of `nats`, over the probes; NaN for a single probe. It says nothing of the solver's error.
        voxels: in a volume.
        nfe: network evaluations spent on each volume, backward passes counted, `(*batch,)`.
        settings: of the run, as plain values.
    """

    nats: Tensor
    standard_error: Tensor
    voxels: int
    nfe: Tensor
    settings: Mapping[str, object]

    @property
    def bits_per_voxel(self) -> Tensor:
        """−log₂ p(x) per voxel, `(*batch,)`: the less, the likelier."""
        return -self.nats / (self.voxels * math.log(2))

    @property
    def bits_per_voxel_error(self) -> Tensor:
        """The standard error of `bits_per_voxel`."""
        return self.standard_error / (self.voxels * math.log(2))


@torch.inference_mode(False)  # under which nothing has a gradient
@torch.no_grad()
def log_likelihood(
    velocity: VelocityField,
    x: Tensor,
    /,
    *,
    generator: torch.Generator,
    probes: int = 4,
    distribution: Literal["rademacher", "gaussian"] = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    units: Literal["data", "model"] = "data",
) -> LogLikelihood:
    """Log p(x) under the prior, by its probability flow.

    Args:
        velocity: the prior, smooth in x.
        x: `(*batch, z, y, x)`; every volume is solved for by itself.
        generator: of the probes; every volume has its own stream.
        probes: random vectors over which the divergence is averaged; each costs a backward pass at every evaluation.
        distribution: of the probes' elements. ±1 (`"rademacher"`) leaves the Jacobian's diagonal without error, and
            never has the larger variance.
        rtol: relative tolerance of the adaptive solver, Dormand and Prince's of order 5 ("dopri5" of torchdiffeq).
        atol: its absolute tolerance, for each of x and the divergence per voxel, as root mean squares. Both are of a
            voxel, so the error in nats grows with their number, faster than the probes': bundled prior, crops of 16³, 4
            probes: 0.1 to 12 nats at 1e-4 and 0.5 to 10 at the default (700 to 760 evaluations, 1.6 to 1.9 times as
            many), beside a standard error of 21 to 25.
        steps: so many even steps of a Runge–Kutta method of order 4 instead. For networks that round their time, as the
            published ones do to 1/1000: they are constant in t between jumps, and at each jump the adaptive solver
            shrinks its step and begins anew, while even steps see only the trend. They must be many, for v changes
            fast near t = 0 and 1: on those crops 10, 20, 40 steps are up to 1700, 430, 38 nats off.
        units: of x and of the density. `"data"`: those of the prior's `.normalization`, which adds −n log(std) for n
            voxels; model units if it has none. `"model"`: model units.

    Raises `CapabilityError` without torchdiffeq (extra `likelihood`) or if no gradient passes through the prior,
    `SettingError` for settings out of range, `ConvergenceError` where the adaptive solver needs more than 1000 steps,
    or steps too small.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> x = torch.ones(8, 8, 8)
    >>> found = log_likelihood(GaussianPrior(1.0), x, generator=torch.Generator().manual_seed(0))
    >>> exact = -0.5 * 512 * (1 + math.log(2 * math.pi))
    >>> round(float(found.nats), 1), round(exact, 1)
    (-726.5, -726.5)
    """
    try:
        import torchdiffeq  # type: ignore[import-untyped]
    except ImportError:
        raise CapabilityError("log_likelihood needs torchdiffeq: pip install 'cryofm-sampling[likelihood]'") from None
    if any(not hasattr(n, "__index__") or n < 1 for n in (probes, 1 if steps is None else steps)):
        raise SettingError(f"probes and steps must be whole numbers from 1, got {probes} and {steps}")
    if distribution not in ("rademacher", "gaussian") or units not in ("data", "model"):
        raise SettingError(
            f'distribution must be "rademacher" or "gaussian" and units "data" or "model", '
            f"got {distribution!r} and {units!r}"
        )
    if not (0 < rtol < math.inf and 0 < atol < math.inf):
        raise SettingError(f"rtol and atol must be positive and finite, got {rtol} and {atol}")
    batch, box = split_shape(x.shape)
    if not x.is_floating_point() or not x.isfinite().all():
        raise SettingError(f"the map x must be finite, and of a floating-point type, got {x.dtype}")
    n = math.prod(box)
    normalization = getattr(velocity, "normalization", None) if units == "data" else None
    if normalization is not None:
        x = (x - normalization.mean) / normalization.std
    if steps is None:  # the last step ends at t = 1: beyond it no prior knows anything
        options = {"max_num_steps": _MOST_STEPS, "step_t": torch.ones(1, dtype=torch.float64, device=x.device)}
        solver = {"method": "dopri5", "rtol": rtol, "atol": atol, "options": options}
        settings: dict[str, object] = {"solver": "dopri5", "rtol": rtol, "atol": atol}
    else:
        # Not "step_size", whose rounding may add a step of length 0.
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=x.device)
        solver = {"method": "rk4", "options": {"grid_constructor": lambda *_: grid}}
        settings = {"solver": "rk4", "steps": steps}

    def solve(x_0: Tensor, stream: torch.Generator) -> tuple[Tensor, int]:
        """Log p_0(x_0) by each probe, and the number of evaluations."""
        z = torch.stack([white_noise(box, stream, x_0) for _ in range(probes)])
        if distribution == "rademacher":
            z = torch.where(z > 0, 1.0, -1.0).to(x_0)
        nfe = 0

        def flow(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal nfe
            nfe += 1 + probes
            with torch.enable_grad():
                x_t = state[0].detach().requires_grad_()
                v = velocity_at(velocity, x_t, min(float(t), 1.0))  # 1 and a rounding error
            products = (probe * backward(v, x_t, probe, "the prior", retain_graph=True) for probe in z)
            # Per voxel, so that the tolerances mean the same for x and for the divergence.
            return v.detach(), torch.stack([product.mean() for product in products])

        times = torch.tensor([0.0, 1.0], device=x_0.device, dtype=torch.float64)
        try:
            x_1, divergence = torchdiffeq.odeint(flow, (x_0, x_0.new_zeros(probes)), times, **solver)
        except AssertionError as error:  # how torchdiffeq gives up
            raise ConvergenceError(
                f"the flow's solver gave up at rtol {rtol}, atol {atol} ({error}): loosen them, or set steps for a "
                "prior that rounds its time"
            ) from None
        log_p_1 = -0.5 * (x_1[-1].double().square().sum() + n * math.log(2 * math.pi))
        return log_p_1 + n * divergence[-1].double(), nfe

    volumes = zip(x.reshape(-1, *box).clone(), streams(generator, batch), strict=True)
    found, nfe = zip(*(solve(x_0, stream) for x_0, stream in volumes), strict=True)
    nats = torch.stack(found)
    if normalization is not None:
        nats = nats - n * math.log(normalization.std)
    error = nats.std(1) / probes**0.5 if probes > 1 else nats.new_full((len(nats),), math.nan)
    settings |= {"probes": probes, "distribution": distribution, "units": units}
    return LogLikelihood(
        nats.mean(1).reshape(batch), error.reshape(batch), n, torch.tensor(nfe).reshape(batch), settings
    )
