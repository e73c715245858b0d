"""Ab initio models from class averages that RELION made: ``python benchmarks/class_averages.py FOLDERS... --out CSV``.

A folder is a set: classes.mrcs.gz as RELION wrote them, poses.csv (of the classes with more than two particles: what
their members show, at its densest, and their share) and truth.mrc.gz. The twelve classes of the most particles go
through examples/abinitio.py with its defaults; so do these with numbers 3, 7 and 11 replaced by junk: noise, an arc at
the mask's edge, and half of a particle. Of the first model FSC_0.5 after alignment over rotation, shift and hand, and
the median error of its poses (of a truth that a half-turn leaves as it is, up to that turn: no image tells the two
apart), are written beside what was said of it. ``right`` is a verdict that does not call a model above 20 Å determined,
and does so of one below 16.

    python benchmarks/class_averages.py --make MODELS... --snr 0.5 --sets FOLDER

makes sets, where ``relion_refine`` of RELION 3.1 or later is installed: 1,600 particles of an atomic model at 3.75 Å
in random views, off centre by 5 Å rms, defocus .8 to 2 µm, B = 100 Å², white noise; 20 classes, 12 iterations, the
background set to zero. ``--initial-model MODELS... --out CSV`` has RELION's own initial model of the same particles.
"""

import argparse
import csv
import gzip
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from _alignment import aligned, ball, resolution, sample, transform
from _table import write_csv
from numpy.typing import NDArray
from scipy.fft import irfftn, rfftn
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from cryofm_io import (
    DensityMap,
    ImageCtf,
    ImageStack,
    Poses,
    read_images,
    read_map,
    read_poses,
    simulate_density,
    write_map,
    write_poses,
)
from cryofm_ops import (
    CTF,
    Envelope,
    FourierProjector,
    angular_distance_deg,
    compose,
    fourier_filter,
    pose_difference_deg,
    random_rotations,
)

SCRIPT = Path(__file__).parents[1] / "examples" / "abinitio.py"
TOOL = "relion_refine"
PARTICLES, SIZE, CLASSES, USED = 1600, 3.75, 20, 12
JUNK = (2, 6, 10)  # by size, from 0
NEAR = 35.0  # degrees around the densest pose
POOR, GOOD = 20.0, 16.0  # Å
AXES, BAND, ALIKE = 2000, 7, 0.95  # half-turns; frequencies, units of 1/n; a dimer has .997, others .83 at most
NEARBY = 0.06  # the distance of two axes, radians
COLUMNS = ("class", "rot", "tilt", "psi", "x", "y", "share", "near")  # near: part of the members within 35°


def junk(images: NDArray[np.float32], voxel_size: float, diameter: float) -> NDArray[np.float32]:
    """The images with three of them replaced."""
    images, n, rng = images.copy(), images.shape[-1], np.random.default_rng(0)
    y, x = (axis - n // 2 for axis in np.ogrid[:n, :n])
    radius, angle = voxel_size * np.hypot(y, x), np.arctan2(y, x)
    inside, spread = radius < diameter / 2, float(images.std())
    noise, arc, half = JUNK
    images[noise] = rng.normal(0, 2 * spread, (n, n)) * inside
    images[arc] = 5 * spread * (np.abs(radius - 0.46 * diameter) < 5) * (np.abs(angle) < 0.8)
    images[half] *= x > 0
    return images


def run(folder: Path, kind: str, flags: list[str]) -> dict[str, object]:
    """One set, as it is or with junk."""
    with (folder / "poses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:USED]
    facts = json.loads((folder / "set.json").read_text())
    images = read_images(folder / "classes.mrcs.gz", voxel_size=facts["voxel_size"])
    stored = [int(name.partition("@")[0]) for name in images.names]
    data = images.data[[stored.index(int(row["class"])) for row in rows]]
    if kind == "junk":
        data = junk(data, facts["voxel_size"], facts["mask_diameter"])
    angles = [[float(row[name]) for name in ("rot", "tilt", "psi")] for row in rows]
    true = torch.from_numpy(Poses.from_angles(angles, np.zeros((len(rows), 2))).rotations).float()
    with tempfile.TemporaryDirectory() as temporary:
        out, stack = Path(temporary) / "out", Path(temporary) / "classes.mrcs"
        write_map(stack, DensityMap(data, facts["voxel_size"]))
        start = time.perf_counter()
        line = [sys.executable, str(SCRIPT), str(stack), "--mask-diameter", f"{facts['mask_diameter']:g}"]
        done = subprocess.run([*line, "--out", str(out), *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        seconds = time.perf_counter() - start
        record = json.loads((out / "run.json").read_text())
        model = read_map(out / "model_01.mrc")
        found = torch.from_numpy(read_poses(out / "poses.star").rotations).float()
    left_out = [int(re.sub("@.*", "", name)) - 1 for name in record["left_out"]]
    used = [i for i in range(len(rows)) if i not in left_out]
    real = [j for j, i in enumerate(used) if kind != "junk" or i not in JUNK]
    size, box = model.voxel_size, len(model.data)
    whole = read_map(folder / "truth.mrc.gz")
    grid = size / whole.voxel_size * (np.indices((box,) * 3) - box // 2) + len(whole.data) // 2
    truth = torch.from_numpy(map_coordinates(whole.data, grid, order=3).astype(np.float32))
    R, T = found[real], true[[used[j] for j in real]]
    fsc05 = resolution(aligned(torch.from_numpy(model.data.copy()), truth, R, T), truth, size)
    determined = bool(record["determined"])
    right = not (determined and fsc05 > POOR) and not (not determined and fsc05 < GOOD)
    return {
        "set": folder.name,
        "kind": kind,
        "fsc05": round(fsc05, 1),
        "pose_error_deg": round(float(pose_difference_deg(R, T, half_turn(truth))), 1),
        "chains_that_agree": record["chains_that_agree"],
        "predicted_to": record["predicted_to_angstrom"],
        "determined": determined,
        "right": right,
        "junk_left_out": len(set(left_out) & set(JUNK)) if kind == "junk" else "",
        "others_left_out": len(set(left_out) - set(JUNK if kind == "junk" else ())),
        "seconds": round(seconds),
    }


def half_turn(x: torch.Tensor) -> torch.Tensor:
    """The rotations `(G, 3, 3)` that leave a cube as it is: none but the identity, or a half-turn as well."""
    n, points = len(x), ball(BAND)
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2] * 3, indexing="ij"), -1).flip(-1).float()
    mass = x.clamp(min=0)
    centre = (grid * mass[..., None]).sum((0, 1, 2)) / mass.sum()
    table = transform(x, BAND + 1)

    def about_its_centre(at: torch.Tensor) -> torch.Tensor:
        phase = 2 * math.pi / n * (at @ centre)
        return sample(table, at) * torch.polar(torch.ones_like(phase), phase)

    own = about_its_centre(points)

    def turned(axes: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
        axes = axes / axes.norm(dim=-1, keepdim=True)
        turns = 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3)
        scores = torch.stack([(own.conj() * about_its_centre(points @ turn)).real.sum() for turn in turns])
        best = int(scores.argmax())
        return float(scores[best] / own.abs().square().sum()), axes[best], turns[best]

    i = torch.arange(AXES) + 0.5  # a spiral over the hemisphere, and then near its best axis
    z, angle = 1 - i / AXES, math.pi * (3 - math.sqrt(5)) * i
    _, axis, _ = turned(torch.stack(((1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z), -1))
    score, _, turn = turned(axis + NEARBY * torch.cartesian_prod(*3 * [torch.linspace(-1, 1, 7)]))
    return torch.stack((torch.eye(3), turn) if score > ALIKE else (torch.eye(3),))


def make(model: Path, snr: float, sets: Path) -> None:
    """A set of averages of one structure."""
    name = f"{model.name.split('.')[0]}-snr{snr:g}"
    if (sets / name).exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truth, mask, rotations, shifts = particles(model, snr, name, folder)
        relion(
            f"--iter 12 --K {CLASSES} --tau2_fudge 2 --particle_diameter {mask} --psi_step 12 --offset_range 3 --norm "
            "--scale --pad 2 --maxsig 60 --strict_highres_exp 14 --dont_check_norm",
            folder,
        )
        keep(folder, sets / name, rotations, shifts, truth, mask)


def initial_model(model: Path, snr: float) -> dict[str, object]:
    """What RELION makes of the particles themselves: its initial model by stochastic gradients, with its defaults."""
    name = f"{model.name.split('.')[0]}-snr{snr:g}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        density, mask, rotations, _ = particles(model, snr, name, folder)
        start = time.perf_counter()
        relion(
            "--sgd_ini_iter 50 --sgd_inbetween_iter 200 --sgd_fin_iter 50 --sgd_write_iter 50 --sgd_ini_resol 35 "
            "--sgd_fin_resol 15 --sgd_ini_subset 100 --sgd_fin_subset 500 --sgd --denovo_3dref --K 1 --sym C1 "
            f"--particle_diameter {mask} --oversampling 1 --healpix_order 1 --offset_range 6 --pad 1 --pool 30 --j 1",
            folder,
        )
        found = torch.from_numpy(read_poses(max(folder.glob("run_it*_data.star"))).rotations).float()
        made = read_map(max(folder.glob("run_it*_class001.mrc")), voxel_size=SIZE)
    truth = torch.from_numpy(density)
    return {
        "set": name,
        "kind": f"RELION's initial model of {PARTICLES} particles",
        "fsc05": round(
            resolution(aligned(torch.from_numpy(made.data.copy()), truth, found, rotations), truth, SIZE), 1
        ),
        "pose_error_deg": round(float(pose_difference_deg(found, rotations, half_turn(truth))), 1),
        **dict.fromkeys(("chains_that_agree", "predicted_to", "determined", "right", "junk_left_out"), ""),
        "others_left_out": "",
        "seconds": round(time.perf_counter() - start),
    }


def relion(flags: str, folder: Path) -> None:
    """A run on the particles of that folder."""
    line = f"{TOOL} --i particles.star --o ./run --ctf --zero_mask --flatten_solvent --offset_step 2 --random_seed 1"
    done = subprocess.run(f"{line} --preread_images {flags}".split(), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{TOOL} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def particles(
    model: Path, snr: float, name: str, folder: Path
) -> tuple[NDArray[np.float32], int, torch.Tensor, torch.Tensor]:
    """Images of one structure, in that folder; its density, the mask's diameter, and the true poses, shifts in Å."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    truth, diameter = whole(model)
    n = len(truth)
    rotations = random_rotations(PARTICLES, generator=generator)
    shifts = 5 / SIZE * torch.randn(PARTICLES, 2, generator=generator)
    u = 8000 + 12000 * torch.rand(PARTICLES, generator=generator)
    ctf = CTF(defocus_u_angstrom=u, defocus_v_angstrom=u, defocus_angle_deg=0 * u, voxel_size_angstrom=SIZE)
    y = FourierProjector(rotations, shifts, (n, n, n))(torch.from_numpy(truth))
    y = fourier_filter(y[:, None], compose(Envelope(100.0, SIZE), ctf).transfer((1, n, n)).float())[:, 0]
    axis = torch.arange(n) - n // 2
    radius = SIZE * (axis.square() + axis[:, None].square()).sqrt()
    y += (y[:, radius < diameter / 2].var(1).mean() / snr).sqrt() * torch.randn(y.shape, generator=generator)
    outside = y[:, radius > 0.58 * diameter]
    y = (y - outside.mean(1)[:, None, None]) / outside.std(1)[:, None, None]
    one = np.ones(PARTICLES)
    names = [f"{i + 1:06d}@particles.mrcs" for i in range(PARTICLES)]
    microscope = ImageCtf(u.numpy(), u.numpy(), 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one)
    write_map(folder / "particles.mrcs", DensityMap(y.numpy(), SIZE))
    unknown = Poses(np.tile(np.eye(3), (PARTICLES, 1, 1)), np.zeros((PARTICLES, 2)))
    write_poses(folder / "particles.star", ImageStack(y.numpy(), SIZE, names, microscope), unknown)
    return truth, round(1.12 * diameter), rotations, SIZE * shifts


def whole(model: Path) -> tuple[NDArray[np.float32], float]:
    """The density of a model at `SIZE` in a cube of 1.75 times its diameter, and the diameter in Å."""
    fine = 1.5
    turn = Rotation.random(rng=np.random.default_rng(zlib.crc32(model.name.split(".")[0].encode()))).as_matrix()
    density = np.maximum(simulate_density(model, fine, resolution=5.0, margin=9.0, rotation=turn), 0)
    at = np.argwhere(density > 0.1 * np.percentile(density, 99.9))
    mass = density[tuple(at.T)]
    centre = mass @ at / mass.sum()
    diameter = 2 * fine * float(np.sqrt(((at - centre) ** 2).sum(1).max()))
    k = [np.fft.fftfreq(side) for side in density.shape[:2]] + [np.fft.rfftfreq(density.shape[2])]
    nu = np.sqrt(k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2)
    edge = np.clip((nu * 2.1 * SIZE / fine - 0.9) / 0.1, 0, 1)
    smooth = irfftn(np.asarray(rfftn(density)) * (1 + np.cos(np.pi * edge)) / 2, s=density.shape)
    n = max(44, 2 * math.ceil(1.75 * diameter / 2 / SIZE))
    grid = SIZE / fine * (np.indices((n, n, n)) - n // 2) + centre[:, None, None, None]
    return map_coordinates(np.asarray(smooth), grid, order=3).astype(np.float32), diameter


def keep(
    folder: Path, target: Path, R: torch.Tensor, shifts: torch.Tensor, truth: NDArray[np.float32], mask: float
) -> None:
    """What a set is, of RELION's last iteration."""
    last = max(folder.glob("run_it*_data.star"))
    found = read_poses(last)
    label = class_numbers(last)
    frame = torch.from_numpy(found.rotations).float().mT  # of a particle's image in that of its class
    view = frame @ R
    moved = torch.einsum("kij,kj->ki", frame[:, :2, :2], shifts - torch.from_numpy(found.shifts).float())
    rows: list[dict[str, float]] = []
    for number in np.unique(label):
        own = torch.from_numpy(label == number)
        if own.sum() <= 2:
            continue
        middle, near = densest(view[own])
        angles = Poses(middle[None].double().numpy(), np.zeros((1, 2))).angles_deg[0].round(3)
        centre = moved[own][near].mean(0).double().numpy().round(3)
        share, close = (round(float(part.double().mean()), 5) for part in (own, near))
        values = (int(number), *angles.tolist(), *centre.tolist(), share, close)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    rows.sort(key=lambda row: -row["share"])
    target.mkdir(parents=True)
    write_csv(target / "poses.csv", rows)
    (target / "set.json").write_text(json.dumps({"voxel_size": SIZE, "mask_diameter": float(mask)}) + "\n")
    with gzip.GzipFile(target / "classes.mrcs.gz", "wb", mtime=0) as file:
        file.write(max(folder.glob("run_it*_classes.mrcs")).read_bytes())
    write_map(folder / "truth.mrc", DensityMap(truth, SIZE), overwrite=True)
    with gzip.GzipFile(target / "truth.mrc.gz", "wb", mtime=0) as file:
        file.write((folder / "truth.mrc").read_bytes())
    print(target, len(rows), "classes", flush=True)


def class_numbers(star: Path) -> NDArray[np.int64]:
    """The class of each particle."""
    lines = star.read_text().partition("data_particles")[2].splitlines()
    column = next(int(line.split("#")[1]) for line in lines if line.startswith("_rlnClassNumber")) - 1
    return np.array([int(line.split()[column]) for line in lines if "@" in line])


def densest(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pose that most others are near, as the mean of these, and which they are."""
    distance = torch.stack([angular_distance_deg(view.expand_as(views), views) for view in views])
    near = distance[(distance < NEAR).sum(-1).argmax()] < NEAR
    for _ in range(5):
        u, _, v = torch.linalg.svd(views[near].mean(0))
        middle = u @ v
        near = angular_distance_deg(middle.expand_as(views), views) < NEAR
    return middle, near


def main() -> None:
    """Parse the command line; run, or make sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, help="sets")
    add("--out", type=Path, help="CSV; rows that it has are not computed again")
    add("--kinds", nargs="+", choices=("plain", "junk"), default=["plain", "junk"])
    add("--make", nargs="+", type=Path, default=[], metavar="MODEL", help="PDB or mmCIF files, .gz too")
    add("--initial-model", nargs="+", type=Path, default=[], metavar="MODEL", help="the same, for RELION's own")
    add("--snr", type=float, default=0.5, help="of a particle's pixel, within its diameter (default 0.5)")
    add("--sets", type=Path, default=Path("class_averages"), help="where sets are made")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="what examples/abinitio.py is given beside")
    args = parser.parse_args()
    if (args.make or args.initial_model) and shutil.which(TOOL) is None:
        sys.exit(f"{TOOL} of RELION is not on the PATH: nothing was made (Debian: package relion)")
    for model in args.make:
        make(model, args.snr, args.sets)
    if not args.folders and not args.initial_model:
        return
    if args.out is None:
        parser.error("--out is needed")
    rows: list[dict[str, object]] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    for model in args.initial_model:
        rows.append(initial_model(model, args.snr))
        write_csv(args.out, rows)
        print(*rows[-1].values(), flush=True)
    for folder in args.folders:
        for kind in args.kinds:
            if (folder.name, kind) not in {(row["set"], row["kind"]) for row in rows}:
                rows.append(run(folder, kind, args.flags))
                write_csv(args.out, rows)
                print(*rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
