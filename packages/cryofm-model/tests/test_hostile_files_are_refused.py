"""Damaged and made-up priors and recipes end in our own errors, in little time and memory."""

import json
import random
import resource
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cryofm_model import (
    CryoFMError,
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
from cryofm_model.weights.published import export_published

UNET = UNetConfig(widths=(4, 8), depths=(1, 1), up_depths=(1,), conditioning=8)
HOURGLASS = HourglassConfig(widths=(16, 32), depths=(1, 1), patch=2, kernel=3, head_width=16, conditioning=16)
SECONDS, BYTES = 5.0, 300 * 2**20  # of a file; of all of them together


def prior(network):
    made = Prior(network, Normalization(), 1.5, 16, about={"note": "made up"})
    kind = type(
        "Measured", (), {"signal_power": torch.ones(3), "denoising_error": torch.tensor([[0.1, 0.2], [0.5, 0.4]])}
    )
    return made.with_statistics(kind())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture(autouse=True)
def bounds():
    """Whatever a test reads, it takes little more memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * (1 if sys.platform == "darwin" else 1024) < BYTES


def refused(read, error, path):
    """Whether a file is refused; any other error is raised."""
    since, said = time.monotonic(), None
    try:
        read()
    except error as refusal:
        said = str(refusal)
    assert time.monotonic() - since < SECONDS
    assert said is None or (str(path) in said and "\n" not in said)
    return said is not None


def damaged(content, kind, rng, head):
    content = bytearray(content)
    place = rng.randrange(len(content))
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "header":
        content[rng.randrange(8, head)] ^= 1 << rng.randrange(8)
    elif kind == "byte of the header":
        content[rng.randrange(8, head)] = rng.choice(b'0123456789"[]{},:-eE.nN\\\0\xff')
    elif kind == "length":
        content[rng.randrange(8)] = rng.randrange(256)
    elif kind == "truncated":
        del content[place:]
    elif kind == "extended":
        content += rng.randbytes(rng.randrange(1, 100))
    return bytes(content)


@pytest.mark.parametrize("kind", ["unet", "hourglass", "published"])
@pytest.mark.slow
def test_damaged_priors(kind, path):
    told = {}
    if kind == "published":
        network = Hourglass(HourglassConfig(widths=(64, 128), depths=(1, 1), patch=2, conditioning=16))
        export_published(Prior(network, Normalization(), 1.5, 16), path)
        told = {"voxel_size": 1.5, "box": 16}
    else:
        save_prior(prior(UNet(UNET) if kind == "unet" else Hourglass(HOURGLASS)), path)
    content, rng, count = path.read_bytes(), random.Random(kind), 0
    head = 8 + int.from_bytes(content[:8], "little")
    kinds = {"bit": 15, "header": 60, "byte of the header": 60, "length": 15, "truncated": 15, "extended": 5}
    for mutation, times in kinds.items():
        for _ in range(times):
            path.write_bytes(damaged(content, mutation, rng, head))
            count += refused(lambda: load_prior(path, **told), WeightsError, path)
    assert count > 70


HOSTILE = [
    *("nan", "inf", "-inf", "1e400", "-1", "0", "", "x", "null", "true", "[]", "{}", "3.5", "9" * 5000, "[" * 9000),
    *("1e6", "[1e6, 1]", "[1000000, 1]", "[65536, 65536]", "[[1, 2], [3]]", '["a"]', "[1e999, NaN]", "\ud800", "[[]]"),
    *('{"mean": NaN, "std": 1}', '{"mean": 0, "std": Infinity}', '{"mean": 0, "std": "1"}', '{"mean": null}'),
    *('{"widths": 3}', '{"widths": [4, 8], "depths": [1000000, 1], "up_depths": [1]}', '{"patch": 1e9}'),
    *('{"patch": 1000000}', '{"conditioning": 3}', '{"widths": [1, 1], "depths": [1e6, 1]}', '{"kernel": "7"}'),
    *(json.dumps({"widths": [4] * n, "depths": [1] * n, "up_depths": [1] * (n - 1)}) for n in (16, 10**5)),
    json.dumps({"widths": [65536] * 16, "depths": [1] * 16, "up_depths": [1] * 15, "patch": 64, "conditioning": 65536}),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "hourglass"])
def test_made_up_metadata(kind, path):
    save_prior(prior(UNet(UNET) if kind == "unet" else Hourglass(HOURGLASS)), path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    accepted = []
    for key in metadata:
        for value in HOSTILE:
            try:
                save_file(tensors, path, {**metadata, key: value})
            except (UnicodeEncodeError, TypeError):  # which no file can hold
                continue
            if not refused(lambda: load_prior(path), WeightsError, path):
                accepted.append((key, value))
    assert {key for key, _ in accepted} <= {"note", "voxel_size", "signal_power", "box"}
    assert {value for key, value in accepted if key != "note"} <= {
        "3.5",
        "1e6",
        "[1e6, 1]",
        "[1000000, 1]",
        "[65536, 65536]",
    }


def test_made_up_tensors(path):
    save_prior(prior(UNet(UNET)), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for change in (
        {"stem.bias": torch.zeros(4, dtype=torch.uint8)},
        {"stem.bias": torch.zeros(4, dtype=torch.bool)},
        {"stem.bias": torch.zeros(4, dtype=torch.float8_e4m3fn)},
        {"stem.bias": torch.zeros(4, dtype=torch.int32)},
        {"stem.bias": torch.zeros(0)},
        {"stem.bias": torch.tensor(0.0)},
    ):
        save_file(load_file(path) | change, path, metadata)
        with pytest.raises(WeightsError, match=r"the weights do not fit their network: stem\.bias is"):
            load_prior(path)


def test_made_up_published_tensors(path):
    network = Hourglass(HourglassConfig(widths=(64, 128), depths=(1, 1), patch=2, conditioning=16))
    good = network.state_dict()
    for name in (
        "mid_level.99999999.x",
        f"mid_level.{'9' * 4999}.x",
        "down_levels.7.0.x",
        "mid_level.2000.self_attn.scale",
    ):
        save_file({**good, name: torch.zeros(1)}, path)
        assert refused(lambda: load_prior(path, voxel_size=1.5, box=16), WeightsError, path), name
    for name, shape in (
        ("mid_level.0.self_attn.pos_emb.freqs", (10**6, 1)),
        ("time_in_proj.weight", (10**6, 1)),
        ("patch_in.proj.weight", (1, 10**6)),
        ("mid_level.0.ff.down_proj.weight", (1, 10**6)),
        ("mid_level.0.self_attn.out_proj.weight", (10**6, 1)),
    ):
        save_file({**good, name: torch.zeros(shape, dtype=torch.uint8)}, path)
        assert refused(lambda: load_prior(path, voxel_size=1.5, box=16), WeightsError, path), name


@pytest.mark.parametrize("count", [9_000, 20_000, 10**5])
@pytest.mark.slow
def test_headers_that_are_all_of_the_file(count, path):
    """Tensors of no size: nothing but their names takes memory."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"mid_level.{i}.x": entry for i in range(count)} | {"patch_in.proj.weight": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert refused(lambda: load_prior(path), WeightsError, path)


def test_a_configuration_that_cannot_be_read(path):
    save_file(Hourglass(HOURGLASS).state_dict(), path)
    (path.parent / "config.yaml").mkdir()
    with pytest.raises(WeightsError, match=r"config\.yaml cannot be read"):
        load_prior(path.parent)


@pytest.mark.parametrize(
    "told", [{"voxel_size": float("nan")}, {"box": 0}, {"box": "8"}, {"kernel": "7"}, {"time_code": "x"}]
)
def test_what_is_told_is_checked(told, path):
    save_file(Hourglass(HOURGLASS).state_dict(), path)
    with pytest.raises(CryoFMError, match=next(iter(told))):
        load_prior(path, **{"voxel_size": 1.5, "box": 16, **told})


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_disk_takes(name):
    with pytest.raises(WeightsError, match="no weights at"):
        load_prior(name)


RECIPE = """
voxel_size = 1.5
box = 64
[network]
kind = "unet"
widths = [4, 8]
depths = [1, 1]
up_depths = [1]
patch = 2
conditioning = 8
[training]
crops = 6
stages = [[0.5, 32, 2], [1.0, 64, 2]]
lr = 1e-3
weight_decay = 0.01
schedule = "cosine"
warmup = 3
clip = 1.0
ema = 0.9
report_every = 2
seed = 0
[data]
place = "density"
turn = "rot24"
measured = 0.1
imitated = 0.5
observed = 0.0
[machine]
micro_batch = 2
recompute = false
[normalization]
mean = 0.04
std = 0.09
"""
TOKENS = [
    *(
        "nan",
        "inf",
        "-inf",
        "+inf",
        "1e400",
        "-1",
        "0",
        "-0.0",
        "1e6",
        "0x10",
        "9" * 30,
        "9" * 5000,
        "true",
        '"x"',
        "''",
    ),
    *("[]", "[[]]", "{}", "{a = 1}", "1979-05-27", "12:00:00", "[1, [2, [3]]]", "[" * 5000, '"\\uD800"', "[nan, 1]"),
    *("[1e6, 1]", "[1000000, 1]", "[[nan, 32, 2]]", "[[1.0, inf, 2]]", "[[1.0, 32.5, 2]]", "[[1.0, 0, 2]]", "[[1.0]]"),
]


def finite(values):
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return values is None or isinstance(values, str) or abs(values) < 1e300
    return all(map(finite, values))


def read(path):
    import attrs

    from cryofm_model.train import read_recipe

    recipe = read_recipe(path)
    assert finite(attrs.asdict(recipe))
    next(iter(recipe.training.plan()))


@pytest.mark.slow
def test_damaged_and_made_up_recipes(tmp_path):
    pytest.importorskip("tqdm")
    path, rng, count = tmp_path / "recipe.toml", random.Random(0), 0
    path.write_text(RECIPE)
    read(path)
    lines = RECIPE.strip().splitlines()
    for i, line in enumerate(lines):
        if " = " in line:
            for token in TOKENS:
                key = line.split(" = ")[0]
                path.write_text("\n".join([*lines[:i], f"{key} = {token}", *lines[i + 1 :]]))
                count += refused(lambda: read(path), CryoFMError, path)
        else:
            for table in (f"{line[1:-1]} = 3", f"{line[1:-1]} = [1]", f"[{line}]", "[a.b]"):
                path.write_text("\n".join([*lines[:i], table, *lines[i + 1 :]]))
                count += refused(lambda: read(path), CryoFMError, path)
    for _ in range(300):
        content = bytearray(RECIPE.encode())
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content) // 2, 2 * len(content))])
        count += refused(lambda: read(path), CryoFMError, path)
    assert count > 900


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a = 1\n" * 10**5, b"a" + b".a" * 10**5 + b" = 1", b"[[[" * 10**4, b""]
)
def test_recipes_that_are_none(content, tmp_path):
    pytest.importorskip("tqdm")
    (tmp_path / "recipe.toml").write_bytes(content)
    assert refused(lambda: read(tmp_path / "recipe.toml"), CryoFMError, tmp_path / "recipe.toml")
    assert refused(lambda: read(tmp_path), CryoFMError, tmp_path)
