"""Damaged and made-up files of every kind that is read: ``python tests/fuzz/run.py [--files 21000] [--seed 0]``.

Of each file it is asked whether reading it ends in an error of ours or in a value (any other error is raw), within five
seconds, within twice the memory that its real size justifies, and, of the states of runs, whether what is believed is
what was written. Files that fail are kept in ``--keep``. The kinds share the files as `SHARE` says.
"""

import argparse
import bz2
import gzip
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from cryofm_io import CryoFMError as FileError
from cryofm_io import DensityMap, ImageStack, Poses, read_images, read_map, write_map, write_poses
from cryofm_model import CryoFMError as ModelError
from cryofm_model import Normalization, Prior, UNet, UNetConfig, load_prior, save_prior
from cryofm_model.data.curation import curated
from cryofm_model.train import TrainConfig, read_recipe
from cryofm_model.train import checkpoint as training
from cryofm_ops import CryoFMError, FourierGaussian, rfft
from cryofm_sampling import Checkpoint, Guided
from cryofm_sampling.testing import GaussianPrior

OURS = (FileError, ModelError, CryoFMError)
SECONDS, FLOOR = 5.0, 24 * 2**20  # of time; of memory that what reads takes itself, bytes
RATIO = 1032  # of deflate: what a compressed file may hold for its size
NUMBERS = (0, 1, -1, 2, 255, 2**15, 2**31 - 1, -(2**31), 2**30, 1000, 401, 101)
WORDS = (
    *("nan", "inf", "-inf", "1e400", "-1", "0", "9" * 30, "9" * 5000, "true", "''", '"', "'", "\0", "\ufeff", "\ud7ff"),
    *("[]", "{}", "[" * 3000, "data_", "loop_", "save_", "_rln", "#", ";", "$x", ",", "\t", "\r", "0@x", "1@", "1@.."),
)
UNET = UNetConfig(widths=(4, 8), depths=(1, 1), up_depths=(1,), patch=2, conditioning=8)
RUN = TrainConfig(crops=6, stages=((0.5, 32, 2), (1.0, 64, 2)), lr=1e-3, report_every=2)
RECIPE = """voxel_size = 1.5
box = 64
[network]
kind = "unet"
widths = [4, 8]
depths = [1, 1]
up_depths = [1]
conditioning = 8
[training]
crops = 6
stages = [[0.5, 32, 2], [1.0, 64, 2]]
lr = 1e-3
schedule = "cosine"
ema = 0.9
report_every = 2
[data]
place = "density"
measured = 0.1
"""
LIST = (
    "id,resolution,method,side,half_maps,helical\nEMD-1,2.8,single particle,300,yes,no\nEMD-2,3.4,helical,300,yes,no\n"
)

Damage = Callable[[bytes, random.Random], bytes]


class Hung(BaseException):
    """Reading did not come to an end."""


@attrs.define
class Kind:
    """Files of a kind: a sound one, how it is damaged, and how it is read.

    Attributes:
        path: where it is read from; a damaged file takes the place of a sound one.
        damage: makes another of its bytes.
        read: what is believed; raises an error of ours for what is refused.
        state: whether what is believed has to be what was written.
    """

    path: Path
    damage: Damage
    read: Callable[[], Any]
    state: bool = False


def bits(content: bytes, rng: random.Random) -> bytes:
    """A few bits or bytes changed, a part cut off, moved, doubled or filled with anything."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data) or 1), rng.randrange(1, 65)
        match rng.randrange(8):
            case 0 | 1 | 2 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 3 if data:
                data[at] = rng.randrange(256)
            case 4:
                del data[at:]
            case 5:
                data += rng.randbytes(length)
            case 6:
                data[at : at + length] = rng.randbytes(length)
            case _:
                data[at:at] = data[at : at + length]
    return bytes(data)


def start_of(length: int, usual: Damage = bits) -> Damage:
    """The same, most of it among the first bytes, where files say what they are."""

    def damage(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return usual(content, rng)
        return usual(content[:length], rng) + content[length:]

    return damage


def words(content: bytes, rng: random.Random) -> bytes:
    """A text with words and lines changed, doubled or left out, or bytes of no text."""
    if rng.random() < 0.25:
        return bits(content, rng)
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        parts = lines[at].replace("=", " = ").replace(",", " , ").split(" ")
        match rng.randrange(5):
            case 0 | 1:
                parts[rng.randrange(len(parts))] = rng.choice(WORDS)
                lines[at] = " ".join(parts)
            case 2:
                lines[at] = rng.choice(WORDS)
            case 3:
                del lines[at : at + rng.randrange(1, 4)]
                lines = lines or [""]
            case _:
                lines[at:at] = lines[at : at + rng.randrange(1, 4)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mrc(content: bytes, rng: random.Random) -> bytes:
    """A map of which a word of the header, or anything, is changed."""
    if rng.random() < 0.4:
        return start_of(1024)(content, rng)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = 4 * rng.randrange(256)
        value = struct.pack("<i", rng.choice(NUMBERS)) if rng.random() < 0.6 else struct.pack("<f", rng.choice(FLOATS))
        data[at : at + 4] = value
    return bytes(data)


FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 1.5, 90.0)


def packed(content: bytes, rng: random.Random) -> bytes:
    """A damaged map that is then compressed, or a compressed one that is then damaged; sometimes with much behind."""
    press = rng.choice((lambda data: gzip.compress(data, 1), bz2.compress))
    plain = gzip.decompress(content)
    match rng.randrange(4):
        case 0:
            return press(mrc(plain, rng))
        case 1:
            return bits(press(plain), rng)
        case 2:
            return start_of(20)(content, rng)
        case _:
            return press(mrc(plain, rng)) + BOMB


BOMB = gzip.compress(bytes(2**24), 9)


def tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose description is changed as a text, its length kept true or not."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.4:
        return start_of(8 + length)(content, rng)
    head = content[8 : 8 + length]
    old, new = rng.choice(
        (
            (b"F32", b"F64"),
            (b"F32", b"BOOL"),
            (b"[", b"[0,"),
            (b"data_offsets", b"data_offset"),
            (b"shape", b"shap"),
            (b":[", b":[-"),
            (b"1", b"9"),
            (b"0", str(2**62).encode()),
            (b'"', b'\\"'),
        )
    )
    places = [i for i in range(len(head)) if head.startswith(old, i)]
    if places:
        at = rng.choice(places)
        head = head[:at] + new + head[at + len(old) :]
    told = len(head) if rng.random() < 0.8 else rng.choice((0, 2**40, 2**63, len(head) + 1))
    return told.to_bytes(8, "little") + head + content[8 + length :]


def table(content: bytes, rng: random.Random) -> bytes:
    """A NumPy file whose description is changed as a text, its length kept true or not, or values in it."""
    if rng.random() < 0.3:
        return start_of(10 + int.from_bytes(content[8:10], "little"))(content, rng)
    if rng.random() < 0.4:
        at = 4 * rng.randrange(len(content) // 4)
        return content[:at] + struct.pack("<f", rng.choice(FLOATS)) + content[at + 4 :]
    length = int.from_bytes(content[8:10], "little")
    head = words(content[10 : 10 + length], rng)
    if rng.random() < 0.5:
        for old, new in (
            (b"(3,)", b"(%d,)"),
            (b"(3,)", b"(-%d,)"),
            (b"<f4", b"<f8"),
            (b"<u4", b"|O"),
            (b"/idx", b"/id"),
        ):
            if rng.random() < 0.3:
                head = head.replace(old, new.replace(b"%d", str(10 ** rng.randrange(1, 25)).encode()))
    told = len(head) if rng.random() < 0.8 else rng.choice((0, 1, length - 1, 65535))
    return content[:8] + (told % 65536).to_bytes(2, "little") + head + content[10 + length :]


def data_set(path: Path, stack: Path) -> None:
    """Three images with poses and CTFs, as cryoSPARC lists them."""
    numbers = ("blob/psize_A", *(f"ctf/{name}" for name in ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm")))
    fields = [("uid", "<u8"), ("blob/path", f"|S{len(str(stack))}"), ("blob/idx", "<u4")]
    fields += [(name, "<f4") for name in (*numbers, "ctf/amp_contrast", "alignments3D/psize_A")]
    fields += [("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,))]
    rows = np.ones(3, dtype=fields)
    rows["uid"], rows["blob/path"], rows["blob/idx"], rows["ctf/accel_kv"] = (
        range(3),
        str(stack).encode(),
        range(3),
        300,
    )
    with path.open("wb") as file:
        np.save(file, rows)


def sampler_run(path: Path | None, until: int = 4) -> torch.Tensor:
    """A run of four steps, which is killed after so many, or goes on."""

    class Killed(Exception):
        pass

    def callback(step: int, total: int, x_0: torch.Tensor) -> None:
        if step == until < total:
            raise Killed

    y = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = FourierGaussian(torch.ones(4, 4, 3, dtype=torch.float64), rfft(y), (4, 4, 4))
    prior = GaussianPrior(torch.tensor([3.0, 1.0], dtype=torch.float64))
    state = None if path is None else Checkpoint(path, 0, keep=True)
    try:
        generator = torch.Generator().manual_seed(3)
        return Guided(steps=4)(prior, data, shape=(4, 4, 4), generator=generator, callback=callback, checkpoint=state).x
    except Killed:
        return y


def trained(folder: Path) -> Callable[[], Any]:
    """Steps, voxels and tensors of a training that goes on."""
    network, averaged = UNet(UNET), UNet(UNET)
    optimisers = [torch.optim.AdamW(network.parameters(), lr=0.1)]
    training._fill(optimisers)
    training.save(folder, RUN, list(RUN.plan())[1], network, averaged, optimisers)

    def read() -> Any:
        for values in training._state(network, averaged, optimisers).values():
            with torch.no_grad():
                values.zero_()
        number, seen = training.resume(folder, RUN, network, averaged, optimisers)
        state = training._state(network, averaged, optimisers)
        return number, seen, {name: value.clone() for name, value in state.items()}

    return read


def kinds(folder: Path) -> dict[str, Kind]:
    """One sound file of every kind."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    data = rng.normal(size=(8, 8, 8)).astype(np.float32)
    for name in ("map.mrc", "map.mrc.gz", "stack.mrcs"):
        write_map(folder / name, DensityMap(data, 1.5))
    names = [f"{i:06d}@{folder / 'stack.mrcs'}" for i in (1, 2, 3)]
    images = ImageStack(data[:3], 1.5, names)
    write_poses(folder / "images.star", images, Poses.from_angles(np.zeros((3, 3)), np.zeros((3, 2))))
    data_set(folder / "images.cs", folder / "stack.mrcs")
    (folder / "list.csv").write_text(LIST)
    (folder / "recipe.toml").write_text(RECIPE)
    save_prior(Prior(UNet(UNET).eval(), Normalization(), 1.5, 32), folder / "prior.safetensors")
    sampler_run(folder / "state", until=2)
    (folder / "run").mkdir()
    train = trained(folder / "run")
    last = next((folder / "run").glob("checkpoint-*"))

    def recipe() -> Any:
        read = read_recipe(folder / "recipe.toml")
        next(iter(read.training.plan()))
        return read

    return {
        "mrc": Kind(folder / "map.mrc", mrc, lambda: read_map(folder / "map.mrc")),
        "mrc as images": Kind(folder / "stack.mrcs", mrc, lambda: read_images(folder / "stack.mrcs")),
        "gz, bz2": Kind(folder / "map.mrc.gz", packed, lambda: read_map(folder / "map.mrc.gz")),
        "star": Kind(folder / "images.star", words, lambda: read_images(folder / "images.star")),
        "cs": Kind(folder / "images.cs", table, lambda: read_images(folder / "images.cs")),
        "csv": Kind(folder / "list.csv", words, lambda: curated(folder / "list.csv")),
        "toml": Kind(folder / "recipe.toml", words, recipe),
        "safetensors": Kind(folder / "prior.safetensors", tensors, lambda: load_prior(folder / "prior.safetensors")),
        "sampler state": Kind(folder / "state", tensors, lambda: sampler_run(folder / "state"), state=True),
        "training state": Kind(last / "state.safetensors", tensors, train, state=True),
        "training progress": Kind(last / "progress.json", words, train, state=True),
    }


SHARE = {
    **{"mrc": 0.24, "mrc as images": 0.1, "gz, bz2": 0.12, "star": 0.11, "cs": 0.05, "csv": 0.06, "toml": 0.08},
    **{"safetensors": 0.08, "sampler state": 0.09, "training state": 0.04, "training progress": 0.03},
}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hung` in what takes longer on a processor of its own, or many times as long beside other work."""

    def hung(*_: object) -> None:
        raise Hung

    timers = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
    before = {number: signal.signal(number, hung) for number in timers.values()}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory() -> int:
    """Most resident memory since `forget_peak`, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> int:
    """Begin to measure; what is resident now."""
    tracemalloc.reset_peak()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def same(a: Any, b: Any) -> bool:
    """Whether two states are."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, tuple) else bool(a == b)


def verdict(kind: Kind, content: bytes, sound: Any) -> str:
    """What reading a file of that content comes to."""
    kind.path.write_bytes(content)
    size = len(content) * (RATIO if content[:2] in (b"\x1f\x8b", b"BZ") else 1)
    before, traced = forget_peak(), tracemalloc.get_traced_memory()[0]
    found: Any = None
    try:
        with at_most(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read()
        said = "read"
    except OURS as error:
        said = "refused" if "\n" not in str(error) else "raw: of several lines"
    except Hung:
        return "hung"
    except Exception as error:
        return f"raw: {type(error).__name__} {error}"[:200]
    if max(peak_memory() - before, tracemalloc.get_traced_memory()[1] - traced) > FLOOR + 2 * size:
        return "memory"
    if said == "read" and kind.state and not same(found, sound):
        return "believed"
    return said


def fuzz(files: int, seed: int, keep: Path | None = None) -> dict[str, Counter[str]]:
    """Verdicts of so many files, by kind."""
    found: dict[str, Counter[str]] = {}
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds(Path(folder)).items():
            rng, content = random.Random(f"{seed} {name}"), kind.path.read_bytes()
            sound = kind.read()
            found[name] = Counter()
            for i in range(max(1, round(files * SHARE[name]))):
                damaged = kind.damage(content, rng)
                said = verdict(kind, damaged, sound)
                found[name][said.split(":")[0]] += 1
                if said not in ("read", "refused"):
                    print(f"{name} {i}: {said}", file=sys.stderr)
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{name.replace(', ', '-').replace(' ', '-')}-{i}").write_bytes(damaged)
            kind.path.write_bytes(content)
    tracemalloc.stop()
    return found


def main() -> int:
    """Fuzz, print the verdicts, and say by the status whether there was a bad one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=21000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    args = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, resource.RLIM_INFINITY))
    begun = time.monotonic()
    found = fuzz(args.files, args.seed, args.keep)
    columns = ("read", "refused", "raw", "hung", "memory", "believed")
    print(f"{'kind':20}{'files':>8}" + "".join(f"{column:>10}" for column in columns))
    total: Counter[str] = Counter()
    for name, counts in found.items():
        print(f"{name:20}{counts.total():8}" + "".join(f"{counts[column]:10}" for column in columns))
        total += counts
    print(f"{'all':20}{total.total():8}" + "".join(f"{total[column]:10}" for column in columns))
    print(json.dumps({"seed": args.seed, "seconds": round(time.monotonic() - begun), **total}))
    return int(total.total() != total["read"] + total["refused"])


if __name__ == "__main__":
    sys.exit(main())
