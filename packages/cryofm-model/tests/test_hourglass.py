"""The network against a slow reference in NumPy float64, written from the formulas alone."""

import itertools
import math
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cryofm_model.errors import CryoFMError
from cryofm_model.networks.blocks import FeedForward, Projection, RMSNorm, SelfAttention, Split
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import HourglassConfig

Array = NDArray[np.float64]

# Three levels, two heads with two rotary frequencies an axis, nothing equal that could be confused.
SMALL = HourglassConfig(
    widths=(24, 48, 72), depths=(1, 2, 1), patch=2, kernel=3, head_width=24, conditioning=10, ff_factor=2
)
TINY = HourglassConfig(widths=(12, 12), depths=(1, 1), patch=2, kernel=2, head_width=12, conditioning=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(config: HourglassConfig, dtype: torch.dtype = torch.float64) -> Hourglass:
    """A network none of whose weights is at a neutral value, in `dtype`."""
    network = Hourglass(config, generator=generator())
    for name, p in network.named_parameters():
        noise = torch.randn(p.shape, generator=generator(len(name)))
        if p.ndim == 2:
            p.data = noise / p.shape[1] ** 0.5
        else:
            p.data *= (0.3 * noise).exp()
    # so small that the ε of both norms counts
    network.patch_in.proj.weight.data *= 1e-3
    return network.to(dtype)


# --- the reference: one volume (z, y, x, channel), one time code ---


class Reference:
    def __init__(self, network: Hourglass) -> None:
        self.config = network.config
        self.w = {name: a.double().numpy() for name, a in network.state_dict().items()}
        self.trace: dict[str, Array] = {}

    def forward(self, x: Array, code: Array) -> Array:
        config, w = self.config, self.w
        condition = w["time_in_proj.weight"] @ code
        tokens = self.keep("patch_in", to_tokens(x, config.patch) @ w["patch_in.proj.weight"].T)
        positions = [token_centres(tokens.shape[:3])]
        skips = []
        last = len(config.widths) - 1
        for level in range(last):
            tokens = self.level(f"down_levels.{level}", tokens, positions[-1], condition, config.kernel)
            skips.append(tokens)
            positions.append(to_tokens(positions[-1], 2).reshape(*positions[-1][::2, ::2, ::2].shape[:3], 8, 3).mean(3))
            tokens = self.keep(f"merges.{level}", to_tokens(tokens, 2) @ w[f"merges.{level}.proj.weight"].T)
        tokens = self.level("mid_level", tokens, positions[-1], condition, None)
        for level in reversed(range(last)):
            up = from_tokens(tokens @ w[f"splits.{level}.proj.weight"].T, 2)
            skip, fac = skips[level], w[f"splits.{level}.fac"]
            tokens = self.keep(f"splits.{level}", skip + fac * (up - skip))
            tokens = self.level(f"up_levels.{level}", tokens, positions[level], condition, config.kernel)
        tokens = self.keep("out_norm", rms_norm(tokens, w["out_norm.scale"]))
        return from_tokens(tokens @ w["patch_out.proj.weight"].T, config.patch)

    def level(self, name: str, x: Array, positions: Array, condition: Array, kernel: int | None) -> Array:
        for i in range(sum(key.startswith(f"{name}.") and key.endswith("ff.up_proj.weight") for key in self.w)):
            x = self.attention(f"{name}.{i}.self_attn", x, positions, condition, kernel)
            x = self.feed_forward(f"{name}.{i}.ff", x, condition)
        return self.keep(name, x)

    def attention(self, name: str, x: Array, positions: Array, condition: Array, kernel: int | None) -> Array:
        w, d = self.w, self.config.head_width
        y = rms_norm(x, 1 + w[f"{name}.norm.linear.weight"] @ condition) @ w[f"{name}.qkv_proj.weight"].T
        q, k, v = np.moveaxis(y.reshape(*y.shape[:3], 3, -1, d), 3, 0)
        root = np.sqrt(w[f"{name}.scale"])[:, None]
        for site in itertools.product(*map(range, x.shape[:3])):
            for a in (q, k):
                a[site] *= root / np.sqrt((a[site] ** 2).sum(-1, keepdims=True) + 1e-6)
                a[site] = rotate(a[site], positions[site], w[f"{name}.pos_emb.freqs"])
        out = np.zeros_like(v)
        for site in itertools.product(*map(range, x.shape[:3])):
            keys = tuple(slice(*window(i, n, kernel or n)) for i, n in zip(site, x.shape[:3], strict=True))
            for h in range(q.shape[3]):
                weights = np.exp(k[keys][..., h, :] @ q[site][h])
                out[site][h] = np.einsum("zyx, zyxd -> d", weights, v[keys][..., h, :]) / weights.sum()
        return self.keep(name, x + out.reshape(x.shape) @ w[f"{name}.out_proj.weight"].T)

    def feed_forward(self, name: str, x: Array, condition: Array) -> Array:
        w = self.w
        y = rms_norm(x, 1 + w[f"{name}.norm.linear.weight"] @ condition) @ w[f"{name}.up_proj.weight"].T
        value, gate = np.split(y, 2, -1)
        gelu = gate * 0.5 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
        return self.keep(name, x + (value * gelu) @ w[f"{name}.down_proj.weight"].T)

    def keep(self, name: str, value: Array) -> Array:
        self.trace[name] = value
        return value


def to_tokens(x: Array, p: int) -> Array:
    """Feature ((dz p + dy) p + dx) C + c of a token is channel c of its voxel (dz, dy, dx)."""
    channels = x.shape[-1]
    out = np.empty((x.shape[0] // p, x.shape[1] // p, x.shape[2] // p, p**3 * channels))
    for dz, dy, dx in itertools.product(range(p), repeat=3):
        first = ((dz * p + dy) * p + dx) * channels
        out[..., first : first + channels] = x[dz::p, dy::p, dx::p]
    return out


def from_tokens(tokens: Array, p: int) -> Array:
    channels = tokens.shape[-1] // p**3
    out = np.empty((*(n * p for n in tokens.shape[:3]), channels))
    for dz, dy, dx in itertools.product(range(p), repeat=3):
        first = ((dz * p + dy) * p + dx) * channels
        out[dz::p, dy::p, dx::p] = tokens[..., first : first + channels]
    return out


def token_centres(grid: tuple[int, ...]) -> Array:
    out = np.empty((*grid, 3))
    for site in itertools.product(*map(range, grid)):
        for axis, (i, n) in enumerate(zip(site, grid, strict=True)):
            half = n / max(grid)  # the axis spans ± half; the centre of cell i of n
            out[(*site, axis)] = -half + 2 * half * (i + 0.5) / n
    return out


def rms_norm(x: Array, gain: Array) -> Array:
    rms: Array = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * gain / rms


def rotate(x: Array, position: Array, freqs: Array) -> Array:
    """x (heads, d): features i and i + n are turned by angle i of [z f, y f, x f]."""
    out = x.copy()
    for h in range(len(x)):
        angles = [p * f for p in position for f in freqs[h]]
        for i, angle in enumerate(angles):
            j = i + len(angles)
            out[h, i] = x[h, i] * math.cos(angle) - x[h, j] * math.sin(angle)
            out[h, j] = x[h, j] * math.cos(angle) + x[h, i] * math.sin(angle)
    return out


def window(i: int, n: int, kernel: int) -> tuple[int, int]:
    start = min(max(i - kernel // 2, 0), n - kernel)
    return start, start + kernel


# --- the network against it ---


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SMALL, (16, 16, 24)),
        (attrs.evolve(SMALL, widths=(24, 48), depths=(2, 1), kernel=4), (16, 16, 16)),
        (attrs.evolve(SMALL, widths=(48, 24), depths=(1, 1), channels=2), (8, 12, 8, 2)),
        (attrs.evolve(SMALL, widths=(48,), depths=(2,), patch=3), (3, 9, 12)),
    ],
    ids=["three levels", "even kernel in a cube", "two channels", "global only"],
)
@pytest.mark.slow
def test_every_stage_follows_the_formulas(config: HourglassConfig, shape: tuple[int, ...]) -> None:
    network = filled(config)
    x = torch.randn(2, *shape, generator=generator(1), dtype=torch.float64)
    t = torch.tensor([0.237, 0.9])
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = output

    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
    with torch.no_grad():
        velocity = network(x, t)
    for i, code in enumerate(found["time_emb"].double().numpy()):
        reference = Reference(network)
        expected = reference.forward(x[i].numpy().reshape(*shape[:3], -1), code)
        assert len(reference.trace) >= 7
        for name, value in reference.trace.items():
            np.testing.assert_allclose(found[name][i].numpy(), value, rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(velocity[i].numpy(), expected.reshape(shape), rtol=1e-9, atol=1e-9)
        assert 0.1 < expected.std() < 10


@pytest.mark.parametrize(
    ("config", "shape"),
    [(SMALL, (16, 16, 24)), (attrs.evolve(SMALL, widths=(24, 48), depths=(1, 1)), (8, 8, 8))],
    ids=["three levels", "cube"],
)
def test_input_gradient_is_that_of_the_reference(config: HourglassConfig, shape: tuple[int, ...]) -> None:
    network = filled(config).requires_grad_(False)
    x, direction, cotangent = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    x.requires_grad_()
    t = torch.tensor([0.237])
    (gradient,) = torch.autograd.grad(network(x[None], t)[0], x, cotangent)
    code, reference = network.time_emb(t)[0].double().numpy(), Reference(network)

    def along(step: float) -> float:
        moved = (x.detach() + step * direction).numpy()[..., None]
        return float((reference.forward(moved, code)[..., 0] * cotangent.numpy()).sum())

    step = 1e-4  # Richardson: the error is of the order step⁴
    slope = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


def test_rotary_frequencies_run_from_pi_to_ten_pi_interleaved_over_the_heads() -> None:
    network = Hourglass(SMALL)
    freqs = network.state_dict()["down_levels.1.0.self_attn.pos_emb.freqs"]
    ratio = 10 ** (1 / 4)  # 2 heads × 2 frequencies
    expected = math.pi * torch.tensor([[1, ratio**2], [ratio, ratio**3]])
    torch.testing.assert_close(freqs, expected)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_gradients_are_finite_even_where_the_volume_is_empty(t: float) -> None:
    network = filled(SMALL, torch.float32)
    x = torch.zeros(1, 16, 16, 16, requires_grad=True)
    network(x, torch.tensor(t)).square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in network.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_volumes_of_a_batch_do_not_mix_and_a_scalar_time_is_everybody_s() -> None:
    network, x = filled(SMALL), torch.randn(2, 16, 16, 16, generator=generator(1), dtype=torch.float64)
    t = torch.tensor([0.2, 0.7])
    alone = [network(x[i : i + 1], t[i]) for i in range(2)]
    torch.testing.assert_close(network(x, t), torch.cat(alone))
    torch.testing.assert_close(network(x, t[0]), network(x, t[0].expand(2)))


# dtype, bound for one stage, bound for the network of 21 stages; measured: 0.9 and 9 %, 0.13 and 1.2 %
LOW = pytest.mark.parametrize(
    ("dtype", "stage", "whole"), [(torch.bfloat16, 0.015, 0.15), (torch.float16, 0.002, 0.02)], ids=["bf16", "fp16"]
)


@pytest.mark.usefixtures("single")
@LOW
def test_autocast_stays_as_near_as_its_precision(dtype: torch.dtype, stage: float, whole: float) -> None:
    network, x = filled(SMALL, torch.float32), torch.randn(1, 16, 16, 24, generator=generator(1))
    calls: list[tuple[nn.Module, Any, Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((module, inputs, output))

    stages = [m for m in network.modules() if isinstance(m, SelfAttention | FeedForward | Split | Projection)]
    hooks = [module.register_forward_hook(keep) for module in stages]
    exact = network(x, torch.tensor(0.4))
    for hook in hooks:
        hook.remove()
    with torch.autocast("cpu", dtype):
        low = network(x, torch.tensor(0.4))
        assert low.dtype == dtype
        assert (low - exact).norm() < whole * exact.norm()
        assert len(calls) == len(stages) == 20
        for module, inputs, output in calls:
            change = output - inputs[0] if output.shape == inputs[0].shape else output  # what a residual block adds
            assert (module(*inputs) - output).norm() < stage * change.norm(), type(module).__name__


@pytest.mark.usefixtures("single")
def test_statistics_are_in_fp32_whatever_the_tokens_are_in() -> None:
    large, small = torch.full((8,), 300.0), torch.full((8,), 1e-2)  # squares beyond fp16, squares that vanish in it
    for x in (large, small):
        torch.testing.assert_close(RMSNorm(8)(x.half()).float(), RMSNorm(8)(x), rtol=2e-3, atol=0)
    attention = filled(SMALL, torch.float32).mid_level[0].self_attn
    attention.qkv_proj.weight.data *= 300
    x, condition = torch.randn(1, 2, 3, 2, 72, generator=generator(1)), torch.randn(1, 10, generator=generator(2))
    exact = attention(x, condition)
    with torch.autocast("cpu", torch.float16):
        low = attention(x, condition)
    assert (low - exact).norm() < 0.002 * (exact - x).norm()


# --- weights ---


def test_initial_weights_come_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (Hourglass(SMALL, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, a in first.state_dict().items():
        assert torch.equal(a, again.state_dict()[name])
        assert torch.equal(a, other.state_dict()[name]) == (
            name.endswith(("norm.linear.weight", "out_proj.weight", "down_proj.weight", "patch_out.proj.weight"))
            or a.ndim == 1
            or name.endswith("freqs")
        )
        if a.ndim == 2 and a.any() and not name.endswith(("freqs", "time_emb.weight")):  # uniform in ± fan-in^−½
            bound = a.shape[1] ** -0.5
            assert 0.9 * bound < a.abs().max() <= bound
            assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    scales = [a.unique().tolist() for name, a in first.state_dict().items() if a.ndim == 1]
    assert {tuple(s) for s in scales} == {(10.0,), (0.5,), (1.0,)}
    x = torch.randn(1, 16, 16, 16, generator=generator(1))
    assert not first(x, torch.tensor(0.5)).any()  # it starts as v = 0


# --- what does not fit ---


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        ((1, 12, 16, 16), (), r"multiple of 8 voxels and at least 16; found \(z, y, x\) = \(12, 16, 16\)"),
        ((1, 16, 16, 8), (), "at least 16"),
        ((16, 16, 16), (), r"volume \(batch, z, y, x\); found \(16, 16, 16\)"),
        ((1, 1, 16, 16, 16), (), r"found \(1, 1, 16, 16, 16\)"),
        ((2, 16, 16, 16), (3,), r"scalar or \(2,\).* found \(3,\)"),
        ((2, 16, 16, 16), (2, 1), r"found \(2, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple[int, ...], t: tuple[int, ...], message: str) -> None:
    with pytest.raises(CryoFMError, match=message):
        Hourglass(SMALL)(torch.zeros(x), torch.zeros(t))


def test_the_smallest_side_is_enough() -> None:
    for kernel in (3, 4, 7):
        config = attrs.evolve(TINY, kernel=kernel)
        side = config.smallest_side
        assert Hourglass(config)(torch.zeros(1, side, side, side), torch.tensor(0.5)).shape == (1,) + 3 * (side,)
        assert (side - config.multiple) // config.patch < kernel  # a smaller one would not hold the window


def test_channels_are_the_last_axis() -> None:
    with pytest.raises(CryoFMError, match=r"\(batch, z, y, x, 2\); found \(1, 8, 8, 8\)"):
        Hourglass(attrs.evolve(TINY, channels=2))(torch.zeros(1, 8, 8, 8), torch.tensor(0.5))


@pytest.mark.usefixtures("single")
def test_recomputing_changes_no_gradient() -> None:
    network = filled(SMALL, torch.float32)
    x = torch.randn(1, 16, 16, 16, generator=generator(1))
    gradients = []
    for recompute in (False, True):
        network.recompute = recompute
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((network(leaf, torch.tensor(0.3)) * x).sum(), leaf)
        gradients.append(g)
    assert torch.equal(*gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("recompute", [False, True])
@sdpa_kernel(SDPBackend.MATH)  # on a CPU, PyTorch's fused global attention differentiates once
def test_second_derivatives_are_those_of_finite_differences(recompute: bool) -> None:
    network = filled(attrs.evolve(SMALL, widths=(24, 48), depths=(1, 1))).requires_grad_(False)
    network.recompute = recompute
    x, direction, cotangent = torch.randn(3, 1, 8, 8, 8, generator=generator(1), dtype=torch.float64)

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        (g,) = torch.autograd.grad((network(at, torch.tensor(0.3)) * cotangent).sum(), at)
        return g

    step = 1e-4  # Richardson: the error is of the order step⁴
    difference = 8 * (gradient(x + step * direction) - gradient(x - step * direction))
    difference -= gradient(x + 2 * step * direction) - gradient(x - 2 * step * direction)
    x.requires_grad_()
    (first,) = torch.autograd.grad((network(x, torch.tensor(0.3)) * cotangent).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), x)
    torch.testing.assert_close(second, difference / (12 * step), rtol=1e-5, atol=1e-5 * float(second.abs().max()))
    assert second.any()
