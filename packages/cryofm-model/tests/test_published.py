"""Published checkpoints: their names and shapes, what is inferred and what must be told, and back again."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cryofm_model import (
    CRYOFM_L,
    CRYOFM_S,
    CRYOFM_VARIANTS,
    Hourglass,
    HourglassConfig,
    Normalization,
    UNet,
    UNetConfig,
    WeightsError,
    export_published,
    load_prior,
    save_prior,
)
from cryofm_model.weights.published import infer_config, published_prior

# As small as heads of 64 features allow; two levels, kernel 7.
TINY = HourglassConfig(widths=(64, 128), depths=(1, 1), patch=2, conditioning=16)
TOLD = {"voxel_size": 2.0, "box": 16}


def published(config: HourglassConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dicts, in the paper's patches of 4."""
    w = config.widths
    shapes: dict[str, tuple[int, ...]] = {
        "patch_in.proj.weight": (w[0], 64),
        "time_emb.weight": (128, 1),
        "time_in_proj.weight": (256, 256),
        "out_norm.scale": (w[0],),
        "patch_out.proj.weight": (64, w[0]),
    }

    def blocks() -> Iterator[tuple[str, int]]:
        for level, (width, depth) in enumerate(zip(w, config.depths, strict=True)):
            last = level == len(w) - 1
            for stage in ("mid_level",) if last else (f"down_levels.{level}", f"up_levels.{level}"):
                yield from ((f"{stage}.{i}", width) for i in range(depth))

    for block, c in blocks():
        shapes |= {
            f"{block}.self_attn.scale": (c // 64,),
            f"{block}.self_attn.norm.linear.weight": (c, 256),
            f"{block}.self_attn.qkv_proj.weight": (3 * c, c),
            f"{block}.self_attn.pos_emb.freqs": (c // 64, 5),
            f"{block}.self_attn.out_proj.weight": (c, c),
            f"{block}.ff.norm.linear.weight": (c, 256),
            f"{block}.ff.up_proj.weight": (6 * c, c),
            f"{block}.ff.down_proj.weight": (c, 3 * c),
        }
    for level, (fine, coarse) in enumerate(itertools.pairwise(w)):
        shapes |= {
            f"merges.{level}.proj.weight": (coarse, 8 * fine),
            f"splits.{level}.proj.weight": (8 * fine, coarse),
            f"splits.{level}.fac": (1,),
        }
    return shapes


def on_meta(config: HourglassConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Hourglass(config).state_dict()


@pytest.mark.parametrize(("config", "entries"), [(CRYOFM_S, 136), (CRYOFM_L, 171)], ids=["S", "L"])
def test_names_and_shapes_are_the_published_ones(config: HourglassConfig, entries: int) -> None:
    found = {name: tuple(a.shape) for name, a in on_meta(config).items()}
    assert len(found) == entries
    assert found == published(config)


@pytest.mark.parametrize(
    "config",
    [
        *CRYOFM_VARIANTS.values(),
        CRYOFM_L,
        TINY,
        HourglassConfig(
            widths=(36, 72), depths=(1, 3), patch=3, head_width=12, channels=2, conditioning=8, ff_factor=2
        ),
    ],
    ids=[*CRYOFM_VARIANTS, "L", "tiny", "two channels"],
)
def test_the_configuration_follows_from_the_shapes(config: HourglassConfig) -> None:
    assert infer_config({name: tuple(a.shape) for name, a in on_meta(config).items()}) == config


@pytest.mark.parametrize(
    ("config", "name", "voxel_size", "box"), [(CRYOFM_S, "CryoFM-S", 1.5, 64), (CRYOFM_L, "CryoFM-L", 3.0, 128)]
)
def test_the_published_networks_are_known(config: HourglassConfig, name: str, voxel_size: float, box: int) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in published(config).items()}
    prior = published_prior(Path("no/config"), tensors, {}, time_code=None, voxel_size=None, box=None)
    assert (prior.voxel_size, prior.box, prior.normalization) == (voxel_size, box, Normalization(0.04, 0.09))
    assert prior.about == {"model": name, "license": "Apache-2.0"}
    assert prior.network.config == attrs.evolve(config, time_code="bf16")  # the paper's precision


def state() -> dict[str, Tensor]:
    """Float32 weights none of which is at a neutral value, nor exact in bf16."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (a + 0.1 * torch.randn(a.shape, generator=generator)).float()
        for name, a in Hourglass(TINY, generator=generator).state_dict().items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(state(), tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("name", ["", "model.safetensors"], ids=["folder", "file"])
def test_a_published_checkpoint_evaluates_as_its_network(folder: Path, name: str) -> None:
    prior = load_prior(folder / name, time_code="fp32", **TOLD)
    network = Hourglass(TINY)
    network.load_state_dict(state(), strict=True)
    x, t = torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.8])
    assert torch.equal(prior(x, t), network(x, t))
    assert not any(p.requires_grad for p in prior.network.parameters())
    assert (prior.voxel_size, prior.box, prior.about) == (2.0, 16, {})


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        (None, "bf16"),
        ("model:\n  width: 64\n", "bf16"),
        ("a: !!python/object/apply:os.system [ls]\nb:\n    use_fp32_time_emb: true  # yes\n", "fp32"),
        ("use_fp32_time_emb: False", "bf16"),
        ("# use_fp32_time_emb: true\n", "bf16"),
        ("{'use_fp32_time_emb': True}", "fp32"),
        ("use_fp32_time_emb: !!bool 'yes'", "fp32"),
    ],
)
def test_the_time_code_is_what_the_configuration_says(folder: Path, yaml: str | None, expected: str) -> None:
    if yaml is not None:
        (folder / "config.yaml").write_text(yaml)
    assert load_prior(folder, **TOLD).network.config.time_code == expected
    assert load_prior(folder, time_code="fp16", **TOLD).network.config.time_code == "fp16"


def test_a_word_that_is_neither_yes_nor_no_is_asked_about(folder: Path) -> None:
    (folder / "config.yaml").write_text("use_fp32_time_emb: perhaps")
    with pytest.raises(WeightsError, match="says use_fp32_time_emb 'perhaps'; pass time_code"):
        load_prior(folder, **TOLD)


def test_a_stranger_s_network_must_say_what_it_was_trained_on(folder: Path) -> None:
    for told in ({}, {"voxel_size": 2.0}, {"box": 16}):
        with pytest.raises(WeightsError, match=r"widths \(64, 128\).*pass voxel_size \(Å\) and box \(voxels\)"):
            load_prior(folder, **told)


def test_another_kernel_is_told_since_no_tensor_tells_it(folder: Path) -> None:
    x, t = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3])
    velocities = []
    for kernel in (None, 7, 5):
        prior = load_prior(folder, kernel=kernel, **TOLD)
        assert prior.network.config.kernel == (kernel or 7)
        velocities.append(prior(x, t))
    assert torch.equal(velocities[0], velocities[1])
    assert not torch.allclose(velocities[0], velocities[2])
    with pytest.raises(WeightsError, match="kernel must be a whole number from 1 to 1024, found 0"):
        load_prior(folder, kernel=0, **TOLD)
    with pytest.raises(WeightsError, match="says its own kernel"):
        load_prior(kernel=5)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    def attempt(message: str, **changes: Tensor | None) -> None:
        tensors = {key: value for key, value in (state() | changes).items() if value is not None}
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            load_prior(folder, **TOLD)

    attempt(
        r"up_levels\.0\.0\.self_attn\.scale is missing; extra is .*fac is \(2,\), expected \(1,\)",
        **{"up_levels.0.0.self_attn.scale": None, "splits.0.fac": torch.zeros(2), "extra": torch.zeros(1)},
    )
    attempt(r"no CryoFM checkpoint: time_in_proj\.weight is missing", **{"time_in_proj.weight": None})
    attempt(r"patch_in\.proj\.weight is \(64,\), expected a matrix", **{"patch_in.proj.weight": torch.zeros(64)})
    attempt(
        r"mid_level\.0\.self_attn\.out_proj\.weight is missing",
        **{key: None for key in state() if key.startswith("mid_level")},
    )
    attempt(r"down_levels\.0\.1\.self_attn\.scale is missing", **{"down_levels.0.2.self_attn.scale": torch.zeros(1)})
    attempt("widths .* are not multiples of head_width", **{"mid_level.0.self_attn.pos_emb.freqs": torch.zeros(1, 5)})


def test_both_formats_keep_every_bit(folder: Path) -> None:
    prior = load_prior(folder, time_code="fp16", **TOLD)
    save_prior(prior, folder / "ours.safetensors")
    ours = load_prior(folder / "ours.safetensors")
    assert ours.network.config == prior.network.config
    assert (ours.voxel_size, ours.box, ours.normalization) == (2.0, 16, prior.normalization)
    export_published(ours, folder / "theirs.safetensors")
    theirs = load_file(folder / "theirs.safetensors")
    assert list(theirs) == list(load_file(folder / "model.safetensors"))
    for key, value in state().items():
        assert theirs[key].dtype == torch.float32
        assert torch.equal(theirs[key].view(torch.int32), value.view(torch.int32)), key
    with pytest.raises(WeightsError, match="exists; pass overwrite=True"):
        export_published(ours, folder / "theirs.safetensors")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_weights_are_mapped_and_not_copied(folder: Path) -> None:
    prior = load_prior(folder, **TOLD)
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(folder / "model.safetensors"))]
    mapped = [range(int(first, 16), int(end, 16)) for first, end in ranges]
    assert all(any(p.data_ptr() in r for r in mapped) for p in prior.network.parameters())


def test_only_an_hourglass_is_exported(tmp_path: Path) -> None:
    prior = attrs.evolve(load_prior(), network=UNet(UNetConfig(widths=(8,), depths=(1,), up_depths=())))
    with pytest.raises(WeightsError, match="an Hourglass, not a UNet"):
        export_published(prior, tmp_path / "a.safetensors")
