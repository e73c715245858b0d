"""The U-Net of the second generation: names, shapes and numbers against the published formulas, written once more."""

import math
from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from cryofm_model import (
    CRYOFM2,
    CRYOFM2_CONDITIONAL,
    ConditionalPrior,
    CryoFMError,
    Normalization,
    Prior,
    UNet3D,
    UNet3DConfig,
    WeightsError,
    load_prior,
    save_prior,
)

SMALL = UNet3DConfig(widths=(32, 64), depths=(1, 2), attention=(1,), conditions=2, tags=3, conditioning=24)
DEEP = UNet3DConfig(widths=(8, 16, 24), depths=(2, 2, 2), attention=(0, 2), conditions=1, conditioning=12, groups=4)
TOLD = {"voxel_size": 2.0, "box": 16}


def names(widths: tuple[int, ...], conditions: int, tags: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dicts."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    def resnet(name: str, a: int, b: int) -> None:
        layer(f"{name}.norm1", a)
        layer(f"{name}.conv1", b, a, 3, 3, 3)
        layer(f"{name}.time_emb_proj", 2 * b, 256)
        layer(f"{name}.norm2", b)
        layer(f"{name}.conv2", b, b, 3, 3, 3)
        if a != b:
            layer(f"{name}.conv_shortcut", b, a, 1, 1, 1)

    def attention(name: str, b: int, norm: bool) -> None:
        if norm:
            layer(f"{name}.group_norm", b)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{name}.{part}", b, b)

    w = widths
    layer("conv_in", w[0], 1 + conditions, 3, 3, 3)
    layer("time_embedding.linear_1", 256, 64)
    layer("time_embedding.linear_2", 256, 256)
    for level, b in enumerate(w):
        for i, a in enumerate([w[max(level - 1, 0)], b]):
            resnet(f"down_blocks.{level}.resnets.{i}", a, b)
            if level >= 2:
                attention(f"down_blocks.{level}.attentions.{i}", b, True)
        if level < 3:
            layer(f"down_blocks.{level}.downsamplers.0.conv", b, b, 3, 3, 3)
    for i in range(2):
        resnet(f"mid_block.resnets.{i}", w[3], w[3])
    attention("mid_block.attentions.0", w[3], False)
    inputs = [(1024, 1024, 768), (768, 512, 384), (384, 256, 192), (192, 128, 128)]
    for level, (b, sums) in enumerate(zip(reversed(w), inputs, strict=True)):
        for i, a in enumerate(sums):
            resnet(f"up_blocks.{level}.resnets.{i}", a, b)
            if level < 2:
                attention(f"up_blocks.{level}.attentions.{i}", b, True)
        if level < 3:
            layer(f"up_blocks.{level}.upsamplers.0.conv", b, b, 3, 3, 3)
    layer("conv_norm_out", w[0])
    layer("conv_out", 1, w[0], 3, 3, 3)
    if tags:
        shapes["class_embedding.weight"] = (tags, 256)
    return shapes


@pytest.mark.parametrize(
    ("config", "parameters", "entries"),
    [(CRYOFM2, 168_089_089, 380), (CRYOFM2_CONDITIONAL, 168_092_097, 381)],
    ids=["pretrain", "conditional"],
)
def test_names_and_shapes_are_the_published_ones(config, parameters, entries):
    with torch.device("meta"):
        state = UNet3D(config).state_dict()
    assert (sum(a.numel() for a in state.values()), len(state)) == (parameters, entries)
    found = {name: tuple(a.shape) for name, a in state.items()}
    assert found == names(config.widths, config.conditions, config.tags)


def randomised(config: UNet3DConfig, seed: int = 0) -> UNet3D:
    """No weight at a neutral value, norms and biases included."""
    network, generator = UNet3D(config), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        spread = 0.3 if parameter.ndim == 1 else 1.4 / math.sqrt(parameter[0].numel())
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1) * 0.2
    return network.eval().requires_grad_(False)


def evaluated(
    p: dict[str, Tensor], config: UNet3DConfig, x: Tensor, t: Tensor, more: Tensor, tag: int | None
) -> Tensor:
    """The published formulas in float64, on a state dict: no module of ours, no fused attention."""
    p = {name: a.double() for name, a in p.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = p[f"{name}.weight"]
        return F.conv3d(h, weight, p[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        grouped = h.reshape(len(h), config.groups, -1)
        mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, unbiased=False)
        h = ((grouped - mean) / torch.sqrt(variance + 1e-5)).reshape(h.shape)
        return h * p[f"{name}.weight"][:, None, None, None] + p[f"{name}.bias"][:, None, None, None]

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    half = config.widths[0] // 2
    f = torch.tensor([10000 ** (-j / half) for j in range(half)], dtype=torch.float64)
    angle = 1000 * t.double()[:, None] * f
    e = silu(linear("time_embedding.linear_1", torch.cat([angle.cos(), angle.sin()], 1)))
    e = linear("time_embedding.linear_2", e)
    if tag is not None:
        e = e + p["class_embedding.weight"][tag]

    def block(name: str, h: Tensor) -> Tensor:
        u = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", h)))
        s, b = linear(f"{name}.time_emb_proj", silu(e))[..., None, None, None].tensor_split(2, 1)
        u = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", u) * (1 + s) + b))
        return (conv(f"{name}.conv_shortcut", h) if f"{name}.conv_shortcut.weight" in p else h) + u

    def attend(name: str, h: Tensor) -> Tensor:
        if f"{name}.to_q.weight" not in p:
            return h
        g = norm(f"{name}.group_norm", h) if f"{name}.group_norm.weight" in p else h
        tokens = g.flatten(2).transpose(1, 2)
        q, k, v = (linear(f"{name}.{part}", tokens) for part in ("to_q", "to_k", "to_v"))
        heads = [
            torch.softmax(q[..., c : c + 8] @ k[..., c : c + 8].transpose(1, 2) / math.sqrt(8), -1) @ v[..., c : c + 8]
            for c in range(0, q.shape[-1], 8)
        ]
        return h + linear(f"{name}.to_out.0", torch.cat(heads, -1)).transpose(1, 2).reshape(h.shape)

    h = conv("conv_in", torch.cat([x[:, None], more], 1).double())
    skips, last = [h], len(config.widths) - 1
    for level, depth in enumerate(config.depths):
        for i in range(depth):
            h = attend(f"down_blocks.{level}.attentions.{i}", block(f"down_blocks.{level}.resnets.{i}", h))
            skips.append(h)
        if level < last:
            h = conv(f"down_blocks.{level}.downsamplers.0.conv", h, stride=2)
            skips.append(h)
    h = attend("mid_block.attentions.0", block("mid_block.resnets.0", h))
    h = block("mid_block.resnets.1", h)
    for level, depth in enumerate(reversed(config.depths)):
        for i in range(depth + 1):
            h = block(f"up_blocks.{level}.resnets.{i}", torch.cat([h, skips.pop()], 1))
            h = attend(f"up_blocks.{level}.attentions.{i}", h)
        if level < last:
            for axis in (2, 3, 4):
                h = h.repeat_interleave(2, axis)
            h = conv(f"up_blocks.{level}.upsamplers.0.conv", h)
    assert not skips
    return conv("conv_out", silu(norm("conv_norm_out", h)))[:, 0]


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.slow
def test_the_network_is_the_published_formulas(config):
    network, exact = randomised(config), randomised(config).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 12, generator=generator)
    more = torch.randn(2, config.conditions, 4, 8, 12, generator=generator)
    nothing = torch.zeros_like(more)
    for t, tag in [([0.001, 0.997], None), ([0.4, 1.0], config.tags - 1), ([0.3333, 0.7777], 0)]:
        tag = tag if config.tags else None
        times = torch.tensor(t)
        for shown, condition in ((more, more), (nothing, None)):
            expected = evaluated(network.state_dict(), config, x, times, shown, tag)
            assert (network(x, times, condition, tag) - expected).norm() < 1e-5 * expected.norm()
            more_exactly = exact(x.double(), times, None if condition is None else condition.double(), tag)
            torch.testing.assert_close(more_exactly, expected, rtol=0, atol=3e-5)  # angles are in single precision
    single = network(x[:1], torch.tensor(0.4), more[:1])
    torch.testing.assert_close(single, network(x, torch.tensor([0.4, 0.1]), more)[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("single")
def test_the_time_code_is_that_of_single_precision_whatever_follows():
    """An integer τ is met exactly from a time in fp32, and bf16 rounds the code and not the angle."""
    network = randomised(SMALL)
    tau = torch.arange(1001.0)
    exact = network._time_code(tau.double() / 1000, torch.float32, 1)
    assert torch.equal(network._time_code((tau / 1000).float(), torch.float32, 1), exact)
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, torch.tensor(0.997))
    full = network(x, torch.tensor(0.997))
    assert (rounded - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1,)}, "one width and one depth per level"),
        ({"attention": (2,)}, "at levels that there are"),
        ({"groups": 5}, "multiples of groups 5"),
        ({"widths": (32, 68), "groups": 4}, "head_width 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(CryoFMError, match=message):
        attrs.evolve(SMALL, **change)


def test_what_the_network_does_not_take_is_refused():
    network, x, t = randomised(SMALL), torch.zeros(1, 8, 8, 8), torch.tensor(0.5)
    with pytest.raises(CryoFMError, match="every side a multiple of 2"):
        network(torch.zeros(1, 8, 7, 8), t)
    with pytest.raises(CryoFMError, match=r"condition must be \(1, 2, 8, 8, 8\)"):
        network(x, t, torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(CryoFMError, match="knows 3 tags"):
        network(x, t, None, 3)


def folder(tmp_path: Path, name: str, network: UNet3D) -> Path:
    (tmp_path / name).mkdir()
    save_file(network.state_dict(), tmp_path / name / "model.safetensors")
    (tmp_path / name / "config.yaml").write_text("a: !!python/object/apply:os.system [ls]\n")
    return tmp_path / name


@pytest.mark.slow
def test_a_folder_is_a_prior_that_is_shown_a_volume(tmp_path):
    network = randomised(SMALL)
    source = folder(tmp_path, "cryofm2-emready", network)
    prior = load_prior(source, **TOLD)
    assert isinstance(prior, ConditionalPrior)
    assert (prior.network.config, prior.tag, prior.weight) == (SMALL, 0, 0.5)
    assert prior.normalization == Normalization(clip=False)
    x, y = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.25)
    shown = torch.stack([y, torch.ones_like(y)], 1)
    torch.testing.assert_close(prior.given(x, t, y, 2), network(x, t, shown, 2), rtol=1e-5, atol=1e-6)
    one = network(x, t, torch.stack([y[:1].expand_as(y), torch.ones_like(y)], 1), 0)
    torch.testing.assert_close(prior.given(x, t, y[0], None), one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prior(x, t), network(x, t, None, 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(CryoFMError, match="knows 3 tags"):
        prior.given(x, t, y, 3)

    save_prior(prior, tmp_path / "ours.safetensors")
    again = load_prior(tmp_path / "ours.safetensors")
    assert isinstance(again, ConditionalPrior)
    assert (again.tag, again.weight, again.normalization) == (0, 0.5, Normalization(clip=False))
    assert torch.equal(again.given(x, t, y, 1), prior.given(x, t, y, 1))


@pytest.mark.slow
def test_which_network_it_is_is_told_by_tensors_name_or_keyword_and_never_guessed(tmp_path, monkeypatch):
    # The shapes of the published networks, of which nobody needs the weights here.
    monkeypatch.setattr("cryofm_model.weights.published_unet3d.CRYOFM2", attrs.evolve(SMALL, conditions=1, tags=0))
    monkeypatch.setattr("cryofm_model.weights.published_unet3d.CRYOFM2_CONDITIONAL", SMALL)
    network = randomised(SMALL)
    for name, tag, weight in (("cryofm2-emhancer", 1, 2.0), ("cryofm2-emready", 0, 0.5)):
        prior = load_prior(folder(tmp_path, name, network))
        assert isinstance(prior, ConditionalPrior)
        assert (prior.tag, prior.weight, prior.voxel_size, prior.box) == (tag, weight, 1.5, 64)
        assert prior.about == {"model": name, "license": "Apache-2.0"}
    downloads = folder(tmp_path, "downloads", network)
    with pytest.raises(WeightsError, match='pass model="emhancer" or'):
        load_prior(downloads)
    both = folder(tmp_path, "emhancer-and-emready", network)
    with pytest.raises(WeightsError, match="may be emhancer or emready"):
        load_prior(both)
    told = load_prior(downloads, model="emready")
    assert isinstance(told, ConditionalPrior)
    assert told.tag == 0
    with pytest.raises(WeightsError, match="is not pretrain: its network takes a volume and a flag"):
        load_prior(downloads, model="pretrain")
    with pytest.raises(WeightsError, match="model must be one of pretrain, emhancer, emready"):
        load_prior(downloads, model="emreddy")
    with pytest.raises(WeightsError, match="leaves no kernel to say"):
        load_prior(downloads, kernel=7)
    plain = load_prior(folder(tmp_path, "any", randomised(attrs.evolve(SMALL, conditions=1, tags=0))))
    assert type(plain) is Prior
    assert plain.about["model"] == "cryofm2-pretrain"
    with pytest.raises(WeightsError, match="says its own model"):
        load_prior(model="emready")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    state = randomised(SMALL).state_dict()

    def attempt(message: str, changes: dict[str, Tensor | None]) -> None:
        tensors = {key: value for key, value in (state | changes).items() if value is not None}
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            load_prior(tmp_path, **TOLD)

    attempt("mid_block.resnets.1.norm1.bias is missing", {"mid_block.resnets.1.norm1.bias": None})
    attempt("down_blocks.1.resnets.0.conv2.weight is missing", {"down_blocks.1.resnets.0.conv2.weight": None})
    attempt("blocks of the levels", {"down_blocks.7.resnets.0.conv2.weight": torch.zeros(1)})
    attempt("blocks of the levels", {"down_blocks.1.resnets.9999.conv2.weight": torch.zeros(1)})
    attempt(r"conv_out.weight is \(1, 32, 3, 3, 1\), expected", {"conv_out.weight": torch.zeros(1, 32, 3, 3, 1)})
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="pass voxel_size"):
        load_prior(tmp_path)


@pytest.mark.parametrize("weight", [0.0, 2.0], ids=["plain", "guided"])
@pytest.mark.slow
def test_trajectories_are_the_published_ones(weight):
    """Euler and midpoint steps from t = 1 to 0 with a volume shown, by the formulas alone, in float64."""
    sampling = pytest.importorskip("cryofm_sampling")
    network = randomised(SMALL)
    for key in ("conv_out.weight", "conv_out.bias"):
        network.state_dict()[key].mul_(0.2)  # so that the flow does not explode, and differences with it
    prior = ConditionalPrior(network, Normalization(clip=False), 1.5, 8, tag=2, weight=weight)
    y = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1))
    state, shown = network.state_dict(), torch.stack([y, torch.ones_like(y)])[None]

    def v(x: Tensor, t: float) -> Tensor:
        given, nothing = (
            evaluated(state, SMALL, x, torch.tensor([t], dtype=torch.float64), more, 2)
            for more in (shown.double(), torch.zeros_like(shown).double())
        )
        return (1 + weight) * given - weight * nothing

    still = sampling.Flow(1)(lambda x, t: 0 * x, shape=(1, 8, 8, 8), generator=torch.Generator().manual_seed(5)).x
    for integrator in ("euler", "midpoint"):
        flow, x = sampling.Flow(4, integrator, "even"), still.double()
        for i in range(4):
            t = 1 - i / 4
            x = x - v(x - v(x, t) / 8, t - 1 / 8) / 4 if integrator == "midpoint" else x - v(x, t) / 4
        field = sampling.Conditioned(prior, y)
        found = flow(field, shape=(1, 8, 8, 8), generator=torch.Generator().manual_seed(5))
        assert (found.x - x).norm() < 1e-5 * x.norm()
        assert found.nfe == (1 + (weight > 0)) * (4 if integrator == "euler" else 8)
