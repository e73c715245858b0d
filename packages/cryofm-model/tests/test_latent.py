"""The autoencoder, its loss and its scores by hand, latents in their units, and the file of them."""

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cryofm_model import CryoFMError, Hourglass, HourglassConfig, Normalization, WeightsError, load_prior
from cryofm_model.latent import (
    DIT_4,
    DIT_8,
    VAE_4,
    VAE_8,
    Autoencoder,
    AutoencoderConfig,
    Codec,
    Decoded,
    LatentPrior,
    autoencoding_loss,
    load_latent,
    save_latent,
)

TINY = AutoencoderConfig(widths=(8, 16), depth=1, channels=2, groups=4)
FLOW = HourglassConfig(widths=(16,), depths=(1,), patch=2, head_width=16, channels=2, conditioning=8)


def parameters(network, config):
    with torch.device("meta"):
        return {name: p.shape for name, p in network(config).named_parameters()}


@pytest.fixture
def codec():
    torch.manual_seed(0)
    autoencoder = Autoencoder(TINY).eval().requires_grad_(False)
    crops = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return Codec.measured(autoencoder, Normalization(), 1.5, crops)


@pytest.fixture
def prior(codec):
    network = Hourglass(FLOW).requires_grad_(False)
    with torch.no_grad():
        network.patch_out.proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    return LatentPrior(network.eval(), codec, about={"license": "mine"})


@pytest.mark.parametrize(
    ("config", "published", "ours"), [(VAE_4, 55_312_063, 160_973_501), (VAE_8, 83_653_863, 245_966_053)]
)
def test_the_autoencoders_are_stable_diffusions_in_three_dimensions(config, published, ours):
    shapes = parameters(Autoencoder, config)
    assert sum(shape.numel() for shape in shapes.values()) == ours
    # In two dimensions a kernel of 3³ has a third of its weights, and an image three colours, in and out.
    flat = sum(shape.numel() // (3 if shape[-1] == 3 and len(shape) == 5 else 1) for shape in shapes.values())
    assert flat + 2 * 2 * config.widths[0] * 9 + 2 == published


def test_the_transformers_over_latents():
    counts = [sum(shape.numel() for shape in parameters(Hourglass, config).values()) for config in (DIT_4, DIT_8)]
    w = 1024  # attention, feed-forward, the gains of their norms, and 16 scales of heads
    block = 4 * w**2 + 9 * w**2 + 2 * 256 * w + 16
    rest = 256**2 + w  # the time code's map, and the last norm
    assert counts == [12 * block + rest + 2 * 8 * channels * w for channels in (3, 4)] == [169_985_216, 170_001_600]


def test_shapes_and_what_is_refused(codec):
    x = torch.zeros(2, 3, 8, 8, 12)
    z = codec.encode(x)
    assert z.shape == codec.latent_shape(tuple(x.shape)) == (2, 3, 8, 4, 6)
    assert codec.decode(z).shape == x.shape
    with pytest.raises(CryoFMError, match="every side must be a multiple of 2"):
        codec.encode(torch.zeros(8, 8, 9))
    with pytest.raises(CryoFMError, match=r"a latent must be \(batch, 2 · z, y, x\), found \(1, 7, 4, 4\)"):
        codec.autoencoder.decode(torch.zeros(1, 7, 4, 4))
    with pytest.raises(CryoFMError, match="5 channels for 2³ voxels compress to no more than a half"):
        attrs.evolve(TINY, channels=5)
    with pytest.raises(CryoFMError, match="must be multiples of 3 groups"):
        attrs.evolve(TINY, groups=3)
    with pytest.raises(CryoFMError, match="the codec's latents have 2 channels"):
        LatentPrior(Hourglass(attrs.evolve(FLOW, channels=1)), codec)
    with pytest.raises(CryoFMError, match="std must be 2 values, each a finite number above 0"):
        attrs.evolve(codec, std=torch.tensor([1.0, 0.0]))


def test_channels_lie_one_behind_the_other_along_z(codec):
    x = torch.randn(1, 8, 8, 8)
    moments = codec.autoencoder.encoder(x[:, None])[0]  # (means and log variances of the channels, z, y, x)
    mean, log_variance = codec.autoencoder.encode(x)
    for c in range(2):
        assert torch.equal(mean[0, 4 * c : 4 * c + 4], moments[c])
        assert torch.equal(log_variance[0, 4 * c : 4 * c + 4], moments[2 + c])


def test_loss_by_hand():
    class Stub(nn.Module):
        config = attrs.evolve(TINY, kl=0.5)

        def forward(self, x, noise):
            assert noise.shape == (1, 4, 2, 2)
            assert noise.flatten().tolist() == list(range(16))  # the first values of x_1
            return x + 0.25, torch.full((1, 4, 2, 2), 3.0), torch.zeros(1, 4, 2, 2)

    x_1 = torch.arange(64.0).reshape(1, 4, 4, 4)
    loss = autoencoding_loss(Stub(), torch.zeros(1, 4, 4, 4), torch.tensor([0.5]), x_1)
    kl = 16 * 0.5 * 3.0**2  # ½ (μ² + 1 − 1 − 0) of each of 16 values
    assert loss.tolist() == [pytest.approx(0.25 + 0.5 * kl / 64)]


def test_latents_are_samples_of_q_in_their_units(codec):
    crops = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(300, 1, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    z = torch.cat([codec.encode(crops[i % 3, None], noise[i]) for i in range(300)]).reshape(300, 2, -1)
    torch.testing.assert_close(z.mean((0, 2)), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(z.std((0, 2)), torch.ones(2), atol=0.03, rtol=0)
    noise = torch.randn(1, 8, 4, 4)
    mean, log_variance = codec.autoencoder.encode(crops[:1])
    raw = (mean + torch.exp(0.5 * log_variance) * noise).reshape(2, 4, 4, 4)
    expected = torch.stack([(raw[c] - codec.mean[c]) / codec.std[c] for c in range(2)])
    torch.testing.assert_close(codec.encode(crops[:1], noise).reshape(2, 4, 4, 4), expected)
    torch.testing.assert_close(codec.decode(codec.encode(crops[0])), codec.autoencoder.decode(mean)[0])


def test_the_network_sees_channels_where_the_latent_has_them_along_z(prior):
    z, t = torch.randn(3, 8, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    v = prior(z, t)
    for i in range(3):
        grid = torch.stack([z[i, :4], z[i, 4:]], -1)[None]
        expected = prior.network(grid, t[i])[0]
        torch.testing.assert_close(v[i, :4], expected[..., 0])
        torch.testing.assert_close(v[i, 4:], expected[..., 1])
    assert prior.multiple == 4
    assert prior(z[0], t[0]).shape == z[0].shape


def test_a_decoded_likelihood_is_one_of_latents_with_a_gradient(codec):
    class Data:
        def log_prob(self, x):
            return -(x - 0.5).square().sum((-3, -2, -1))

    z = torch.randn(2, 8, 4, 4, requires_grad=True)
    value = Decoded(Data(), codec).log_prob(z)
    density = 0.09 * codec.decode(z) + 0.04
    torch.testing.assert_close(value, -(density - 0.5).square().flatten(1).sum(1))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.abs().flatten(1).sum(1).min() > 0


@pytest.mark.usefixtures("single")
def test_one_file(prior, tmp_path):
    path = tmp_path / "model.safetensors"
    save_latent(prior, path)
    again = load_latent(tmp_path)
    assert isinstance(again, LatentPrior)
    z, x = torch.randn(8, 4, 4), torch.randn(8, 8, 8)
    assert torch.equal(again(z, torch.tensor(0.3)), prior(z, torch.tensor(0.3)))
    assert torch.equal(again.codec.encode(x), prior.codec.encode(x))
    assert torch.equal(again.codec.decode(z), prior.codec.decode(z))
    assert (again.codec.normalization, again.codec.voxel_size, again.codec.box) == (Normalization(), 1.5, 8)
    assert again.about == {"license": "mine"}
    with pytest.raises(WeightsError, match="exists; pass overwrite=True"):
        save_latent(prior.codec, path)
    save_latent(prior.codec, path, dtype=torch.bfloat16, overwrite=True)
    alone = load_latent(path)
    assert isinstance(alone, Codec)
    assert torch.equal(alone.std, prior.codec.std)  # no weight: kept to the bit
    with pytest.raises(WeightsError, match=r"is of latents, not of volumes; cryofm_model.latent.load_latent reads it"):
        load_prior(path)


def test_what_is_no_file_of_latents_is_refused_by_name(prior, tmp_path):
    path = tmp_path / "latent.safetensors"
    save_latent(prior, path)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()

    def refused(match, tensors=tensors, **changed):
        content = {key: value for key, value in (metadata | changed).items() if value is not None}
        save_file(tensors, tmp_path / "other.safetensors", content)
        with pytest.raises(WeightsError, match=match):
            load_latent(tmp_path / "other.safetensors")

    refused("says format 'cryofm-prior-1', expected 'cryofm-latent-1'", format="cryofm-prior-1")
    refused(r"metadata lack \['latent_std'\]", latent_std=None)
    refused("std must be 2 values", latent_std="[1.0, -1.0]")
    refused("std must be 2 values", latent_std="[1.0, NaN]")
    refused("mean must be 2 values", latent_mean="[1.0]")
    refused("voxel_size must be a finite number above 0", voxel_size="inf")
    refused("is of none of its networks", network=None)
    refused(
        "too few for an autoencoder of depth 500",
        autoencoder='{"widths": [8, 16], "depth": 500, "groups": 4, "channels": 2}',
    )
    key = "autoencoder.decoder.out.weight"
    refused("decoder.out.weight is missing", {k: v for k, v in tensors.items() if k != key})
    refused(r"decoder.out.weight is \(1,\), expected", tensors | {key: torch.zeros(1)})
    with pytest.raises(WeightsError, match="no weights at"):
        load_latent(tmp_path / "nowhere")


def test_scores_by_hand():
    pytest.importorskip("cryofm_io")
    pytest.importorskip("tqdm")
    from cryofm_model.latent.training import ae_fsc, ae_l1

    rng = np.random.default_rng(0)
    V, W = (rng.standard_normal((8, 8, 8)).astype(np.float32) for _ in range(2))
    W = V + 0.5 * W
    F, G = np.fft.fftn(V), np.fft.fftn(W)
    shells = {}
    for index in np.ndindex(8, 8, 8):
        r = round(float(np.linalg.norm([i if i < 5 else i - 8 for i in index])))
        shells.setdefault(r, []).append((F[index], G[index]))
    curve = []
    for r in range(1, 5):
        f, g = np.array(shells[r]).T
        curve.append(np.sum(f * g.conj()).real / np.sqrt(np.sum(abs(f) ** 2) * np.sum(abs(g) ** 2)))
    assert ae_fsc(torch.from_numpy(V), torch.from_numpy(W)) == pytest.approx(np.mean(curve), abs=0.01)
    expected = sum(abs(float(V[i]) - float(W[i])) for i in np.ndindex(8, 8, 8)) / 512
    assert ae_l1(torch.from_numpy(V), torch.from_numpy(W)) == pytest.approx(expected, rel=1e-5)
