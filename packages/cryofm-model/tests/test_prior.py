"""A prior survives its file, and a file that is no prior is refused by name."""

import json
from importlib.resources import files
from types import SimpleNamespace
from typing import Protocol, runtime_checkable

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from cryofm_model import (
    CalibratedPrior,
    Hourglass,
    HourglassConfig,
    Normalization,
    Prior,
    UNet,
    UNetConfig,
    WeightsError,
    load_prior,
    save_prior,
)

SMALL_UNET = UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)
SMALL_HOURGLASS = HourglassConfig(widths=(24, 48), depths=(1, 1), kernel=3, head_width=24, conditioning=8)


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    network.float()  # as files hold them
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.eval()


def make_prior(network):
    return CalibratedPrior(
        network=network,
        normalization=Normalization(0.05, 0.1),
        voxel_size=2.0,
        box=32,
        signal_power=torch.tensor([4.0, 1 / 3, 1e-7 / 3]),
        denoising_error=torch.tensor([[0.1, 0.01], [0.9, 0.5]]),
        about={"license": "Apache-2.0"},
    )


@runtime_checkable
class Calibrated(Protocol):
    """As cryofm_sampling has it."""

    @property
    def signal_power(self) -> torch.Tensor: ...

    @property
    def denoising_error(self) -> torch.Tensor: ...


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("network", [UNet(SMALL_UNET), Hourglass(SMALL_HOURGLASS)], ids=["unet", "hourglass"])
def test_round_trip_is_bit_exact(tmp_path, network):
    prior = make_prior(randomised(network))
    save_prior(prior, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        again = load_prior(source)
        for name, tensor in prior.network.state_dict().items():
            assert torch.equal(tensor, again.network.state_dict()[name]), name
            assert tensor.stride() == again.network.state_dict()[name].stride(), name  # channels last stays so
        assert (again.normalization, again.voxel_size, again.box) == (prior.normalization, 2.0, 32)
        assert torch.equal(again.signal_power, prior.signal_power)
        assert torch.equal(again.denoising_error, prior.denoising_error)
        assert again.about == {"license": "Apache-2.0"}
        assert again.network.config == network.config
        x = torch.randn(2, 32, 32, 24, generator=torch.Generator().manual_seed(1))
        assert torch.equal(again(x, torch.tensor(0.3)), prior(x, torch.tensor(0.3)))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.usefixtures("double")
def test_weights_are_in_single_precision_whatever_torch_makes_modules_in():
    network = load_prior("cryofm-tiny").network
    assert {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_a_prior_without_statistics_is_not_calibrated(tmp_path):
    calibrated = make_prior(randomised(UNet(SMALL_UNET)))
    fields = {field.name: getattr(calibrated, field.name) for field in attrs.fields(Prior)}
    save_prior(Prior(**fields), tmp_path / "plain.safetensors")
    plain = load_prior(tmp_path / "plain.safetensors")
    assert type(plain) is Prior
    assert not isinstance(plain, Calibrated)
    assert not isinstance(plain.to("cpu"), Calibrated)
    measured = plain.with_statistics(calibrated)
    for prior in (measured, measured.to("cpu")):
        assert isinstance(prior, Calibrated)
        assert torch.equal(prior.signal_power, calibrated.signal_power)
        assert torch.equal(prior.denoising_error, calibrated.denoising_error)
        assert (prior.voxel_size, prior.about) == (2.0, {"license": "Apache-2.0"})


@pytest.mark.usefixtures("single")
def test_the_error_per_shell_travels_where_it_was_measured(tmp_path):
    calibrated = make_prior(randomised(UNet(SMALL_UNET)))
    assert not hasattr(calibrated, "denoising_spectrum")
    spectrum = torch.tensor([[0.1, 0.5, 0.02, 0.01], [0.9, 3.0, 0.7, 0.1]])
    measured = SimpleNamespace(
        signal_power=calibrated.signal_power,
        denoising_error=calibrated.denoising_error,
        denoising_spectrum=spectrum,
    )
    prior = calibrated.with_statistics(measured)
    save_prior(prior, tmp_path / "model.safetensors")
    again = load_prior(tmp_path)
    for one in (prior, again, again.to("cpu")):
        assert isinstance(one, CalibratedPrior)
        assert torch.equal(one.denoising_spectrum, spectrum)
        assert torch.equal(one.signal_power, calibrated.signal_power)
        assert one.about == {"license": "Apache-2.0"}


def test_the_same_prior_is_the_same_file(tmp_path):
    about = {"license": "Apache-2.0", "zebra": 'a\n\u2028"\\ é 𝄞\x7f', "maps": "m.mrc", "author": "1"}
    prior = attrs.evolve(make_prior(UNet(SMALL_UNET)), about=about)
    save_prior(prior, tmp_path / "prior.safetensors")
    header = (tmp_path / "prior.safetensors").read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])  # which the library leaves to chance
    assert dict(load_prior(tmp_path / "prior.safetensors").about) == about


@pytest.mark.parametrize("network", [UNet(SMALL_UNET), Hourglass(SMALL_HOURGLASS)], ids=["unet", "hourglass"])
def test_half_the_bytes_round_the_weights_alone(tmp_path, network):
    prior = make_prior(randomised(network))
    save_prior(prior, tmp_path / "model.safetensors", dtype=torch.bfloat16)
    again = load_prior(tmp_path).network.state_dict()
    learnt = {name for name, _ in network.named_parameters()}
    for name, tensor in network.state_dict().items():
        assert torch.equal(again[name], tensor.bfloat16().float() if name in learnt else tensor), name


def test_loading_leaves_the_random_state_alone(saved):
    state = torch.random.get_rng_state()
    load_prior(saved)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_times_are_not_rounded_to_the_precision_of_the_weights():
    seen = []

    class Network(torch.nn.Linear):
        def forward(self, x, t):
            seen.append(t)
            return x

    prior = make_prior(Network(1, 1).bfloat16())
    prior(torch.zeros(2, 2, 2), torch.tensor(0.3))
    assert torch.equal(seen[0], torch.tensor([0.3]))


def test_a_file_of_ours_says_everything_itself(saved):
    with pytest.raises(WeightsError, match="says its own time_code, voxel_size"):
        load_prior(saved, time_code="fp32", voxel_size=2.0)


@pytest.mark.parametrize(("name", "voxel_size", "most"), [("cryofm-tiny", 1.5, 14), ("cryofm-tiny-fine", 1.0, 8)])
def test_bundled_prior_denoises(name, voxel_size, most):
    prior = load_prior(name)
    assert prior.voxel_size == voxel_size
    assert (files("cryofm_model") / "weights" / f"{name}.safetensors").stat().st_size < most * 2**20
    assert prior.denoising_error.shape[1] == 2
    assert (prior.denoising_error.diff(dim=0)[:, 0] > 0).all()
    z, y, x = torch.meshgrid(*(torch.arange(32.0) - 16,) * 3, indexing="ij")
    helix = sum(  # a rod of blobs 5 Å apart, in a solvent of zero density
        torch.exp(-((z - 3.3 * i) ** 2 + y**2 + x**2) / 6) for i in range(-3, 4)
    )
    x_0 = (helix - prior.normalization.mean) / prior.normalization.std
    x_1 = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.5)
    x_t = torch.lerp(x_0, x_1, t)
    error = (x_t - t * prior(x_t, t) - x_0).square().mean()
    linear = x_0.var() / (1 + x_0.var())  # the best multiple of x_t / (1 - t) leaves this
    assert error < 0.5 * linear


def test_batch_dimensions_and_times():
    prior = make_prior(randomised(UNet(SMALL_UNET)))
    x = torch.randn(2, 3, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    together = prior(x, t)
    assert together.shape == x.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(prior(x[i, j], t[i, j]), together[i, j], rtol=1e-4, atol=1e-5)
    assert prior(x.double(), torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float64


def test_gradient_flows_to_the_input():
    prior = make_prior(randomised(UNet(SMALL_UNET)))
    x = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    prior(x, torch.tensor(0.5)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_no_file_is_overwritten_unasked(tmp_path):
    prior = make_prior(UNet(SMALL_UNET))
    save_prior(prior, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="exists; pass overwrite=True"):
        save_prior(prior, tmp_path / "a.safetensors")
    save_prior(prior, tmp_path / "a.safetensors", overwrite=True)


def test_a_file_is_as_readable_as_any_other(tmp_path, saved):
    (tmp_path / "other").touch()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_strangers_network_cannot_be_saved(tmp_path):
    with pytest.raises(WeightsError, match="cannot save a Identity"):
        save_prior(make_prior(torch.nn.Identity()), tmp_path / "a.safetensors")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_prior(make_prior(UNet(SMALL_UNET)), path)
    return path


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_missing_unexpected_and_misshapen_tensors_are_named(saved):
    tensors, metadata = load_file(saved), metadata_of(saved)
    del tensors["stem.bias"]
    tensors["surplus"] = torch.zeros(1)
    tensors["out.weight"] = torch.zeros(2, 3)
    save_file(tensors, saved, metadata)
    with pytest.raises(WeightsError) as error:
        load_prior(saved)
    for part in (
        "stem.bias is missing",
        "surplus is not expected",
        "out.weight is (2, 3), expected (8, 8, 3, 3, 3)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "says format 'other'"),
        ("network", "gan", "unknown network 'gan'"),
        ("voxel_size", "0", "voxel_size"),
        ("config", '{"depth": 3}', "depth"),
        ("box", "many", "do not describe a prior"),
    ],
)
def test_metadata_that_make_no_prior(saved, key, value, message):
    save_file(load_file(saved), saved, {**metadata_of(saved), key: value})
    with pytest.raises(WeightsError, match=message):
        load_prior(saved)


def test_missing_metadata_are_named(saved):
    metadata = metadata_of(saved)
    del metadata["signal_power"]
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(WeightsError, match=r"lack \['signal_power'\]"):
        load_prior(saved)


def test_a_header_of_any_length_is_no_pickle(tmp_path, saved):
    prior = load_prior(saved)
    first_bytes = set()
    for extra in range(0, 256, 8):  # headers are padded to multiples of 8 bytes
        path = tmp_path / f"{extra}.safetensors"
        save_prior(attrs.evolve(prior, about={"note": "x" * extra}), path)
        first_bytes.add(path.read_bytes()[0])
        assert load_prior(path).about == {"note": "x" * extra}
    assert 0x80 in first_bytes  # as a pickle begins


def test_pickles_truncated_files_and_nothing_are_refused(tmp_path, saved):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="is a pickle"):
        load_prior(tmp_path / "a.pt")
    (tmp_path / "short.safetensors").write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_prior(tmp_path / "short.safetensors")
    with pytest.raises(WeightsError, match="no weights at"):
        load_prior(tmp_path / "cryofm-huge")


def test_prior_is_a_value():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        make_prior(UNet(SMALL_UNET)).voxel_size = 1.0
