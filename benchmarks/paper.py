"""The paper's tables: ``python benchmarks/paper.py --prior NAME|FOLDER --maps DIR --out NAME``.

The paper's protocol (see ``_protocol.py``): a crop is degraded to two half maps, each is restored by itself, the
average of both results is compared with the truth; of the missing wedge there is one map. Noise is estimated from the
halves; how it depends on direction is estimated too, or told (``--alpha told``), which is said beside the number; the
scale is told. Leaves NAME.csv, a line for every map, row and method, and NAME.md, the tables with the paper's rows
beside ours.

Tables 1, 2, 3 and 5 are made with ``--algorithm default``, what `restore` chooses by itself, or ``paper``: Alg. 1, in
the wedge Alg. 2, both to the letter (λ_max = 5, 1000 steps). A prior without measured statistics, such as a published
one, runs the latter. Tables 8 and 9 are Alg. 1 and 2 with λ_max 1, 5, 10 and 50, 200, 1000 steps. ``--max-push`` and
``--steps`` give others, one or more. Boxes other than 64³ scale λ_max by √(voxels / 64³).

A killed run goes on where it was when the same line is given again, and rows, maps and methods can be added to the
same NAME. Under torchrun the ranks share the work.

Other programs: ``--write-degraded DIR`` leaves DIR/ROW/MAP_half1.mrc and _half2.mrc (of the wedge MAP.mrc) and
DIR/truth/MAP.mrc. ``--compare NAME=DIR`` scores what a program made of them: DIR/ROW/MAP.mrc, or MAP_half1.mrc and
MAP_half2.mrc, which are averaged; what is not there counts as failed. ``--write-restored DIR`` leaves ours so.
"""

import argparse
import csv
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import attrs
import torch
from _inputs import clean
from _paper_tables import GRIDS, TABLES, report
from _protocol import (
    ANISOTROPIC,
    ROWS,
    VOXEL,
    WEDGE,
    WEDGE_ROW,
    Degraded,
    Score,
    crop,
    degraded,
    sides,
    wiener,
)
from torch import Tensor
from tqdm import tqdm

import cryofm_model
import cryofm_ops
from cryofm_io import CryoFMError, DensityMap, atomic_write, read_map, write_map
from cryofm_model import CalibratedPrior, Prior, load_prior
from cryofm_sampling import Guided, Inpainting, PlugAndPlay, Sampler, everyone, is_first, joined, restore

PUSHES, STEPS = (5.0,), (1000,)  # published
GRID_PUSHES, GRID_STEPS = (1.0, 5.0, 10.0), (50, 200, 1000)
KEYS = ("map", "box", "row", "method", "alpha", "prior")
COLUMNS = (*KEYS, *(field.name for field in attrs.fields(Score)), "failed", "evaluations", "seconds")
ERRORS = (cryofm_ops.CryoFMError, cryofm_model.CryoFMError)  # of algorithms and networks
PLAIN = ("degraded", "Wiener")  # methods without a prior
MAPS = (".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz", ".ccp4.gz")


@attrs.frozen
class Method:
    """A way to an estimate: a name, and the sampler that makes it of a half; None: what `restore` chooses."""

    name: str
    sampler: Sampler | None = None


def paper_methods(row: str, pushes: Sequence[float], steps: Sequence[int], side: int) -> Iterator[Method]:
    """Alg. 1 or 2 with every setting."""
    if row == WEDGE_ROW:
        yield from (Method(f"Alg. 2, N {n}", Inpainting(n)) for n in steps)
        return
    for push, n in product(pushes, steps):
        scaled = push * (side / 64) ** 1.5
        yield Method(f"Alg. 1, λ {push:g}, N {n}", Guided(n, "paper", scaled, rescaled=False))


def methods(row: str, args: argparse.Namespace, of: Sequence[int] = tuple(TABLES)) -> list[Method]:
    """Those that the tables asked for need of a row."""
    found: dict[str, Method] = {}
    for table in args.tables:
        if row not in TABLES[table] or table not in of:
            continue
        if table in GRIDS:
            more = paper_methods(row, args.max_push or GRID_PUSHES, args.steps or GRID_STEPS, args.box)
        elif args.algorithm == "paper":
            more = paper_methods(row, args.max_push or PUSHES, args.steps or STEPS, args.box)
        else:
            evaluations = args.steps or [None]
            more = (
                Method("default" if n is None else f"plug-and-play, {n}", n and PlugAndPlay(n)) for n in evaluations
            )
        found |= {method.name: method for method in more}
    return list(found.values())


def seed_of(*words: str) -> int:
    """A seed that depends on nothing else, so that a map's data are the same in every run."""
    return zlib.crc32("|".join(words).encode())


def folder_of(row: str) -> str:
    """A row's name as a folder's."""
    return row.replace(" ", "_").replace("±", "").replace("°", "")


def name_of(path: Path) -> str:
    """A map's name without what says how it is written."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


@attrs.frozen(eq=False)
class Case:
    """One map in one row."""

    name: str
    row: str
    truth: Tensor
    data: Degraded
    alpha: str

    def line(
        self, method: str, x: Tensor | None, evaluations: int, seconds: float, prior: str = ""
    ) -> dict[str, object]:
        """What is known of an estimate, as the CSV has it."""
        score = Score.of(x, self.truth, VOXEL, WEDGE if self.row == WEDGE_ROW else None)
        keys = (self.name, len(self.truth), self.row, method, self.alpha, prior)
        values = {key: float(f"{value:.7g}") for key, value in attrs.asdict(score).items()}
        rest = {"failed": int(score.failed), "evaluations": evaluations, "seconds": round(seconds, 2)}
        return dict(zip(KEYS, keys, strict=True)) | values | rest


def case_of(path: Path, row: str, args: argparse.Namespace) -> Case:
    """Degrade a map; the same one every time."""
    truth = torch.from_numpy(crop(clean(path, VOXEL), args.box))
    name, alpha = name_of(path), args.alpha if row in ANISOTROPIC else ""
    data = degraded(row, truth, torch.Generator().manual_seed(seed_of(name, row)), args.alpha)
    return Case(name, row, truth, data, alpha)


def estimate(
    case: Case, sampler: Sampler | None, prior: Prior, device: str, precision: str
) -> tuple[Tensor, int, float]:
    """Restore each half by itself: the average, how often the network was evaluated, and seconds."""
    start, evaluations = time.perf_counter(), 0
    results: list[Tensor] = []
    for likelihood in case.data.likelihoods:
        on_device = attrs.evolve(likelihood, precision=likelihood.precision.to(device), data=likelihood.data.to(device))
        numbers = torch.Generator(device).manual_seed(seed_of(case.name, case.row, "prior"))
        with torch.autocast(numbers.device.type, torch.bfloat16, enabled=precision == "bf16"):
            draw = restore(prior, on_device, shape=sides(case.truth), generator=numbers, sampler=sampler, samples=1)
        results.append(draw.x.float().cpu())
        evaluations += draw.nfe
    return average(results), evaluations, time.perf_counter() - start


def restored(case: Case, method: Method, prior: Prior, args: argparse.Namespace) -> dict[str, object]:
    """Compare what is made of a case with the truth."""
    x, evaluations, seconds = None, 0, 0.0
    try:
        x, evaluations, seconds = estimate(case, method.sampler, prior, args.device, args.precision)
    except ERRORS as error:
        print(f"{case.name}, {case.row}, {method.name}: {error}", file=sys.stderr, flush=True)
    if args.write_restored is not None and x is not None:
        leave(args.write_restored / folder_of(case.row) / f"{case.name}.mrc", x)
    return case.line(method.name, x, evaluations, seconds, prior_name(args))


def average(maps: Sequence[Tensor]) -> Tensor:
    """The mean of one or two maps."""
    return maps[0] if len(maps) == 1 else (maps[0] + maps[1]) / 2


def compared(case: Case, name: str, folder: Path) -> dict[str, object]:
    """Score what another program left of a case."""
    found = find(folder / folder_of(case.row), case.name)
    maps = [read_map(path) for path in found]
    for path, density in zip(found, maps, strict=True):
        if density.shape != sides(case.truth) or abs(density.voxel_size - VOXEL) > 1e-3 * VOXEL:
            raise CryoFMError(
                f"{path} has {density.shape} voxels of {density.voxel_size:.4g} Å; bring it to the grid of the "
                f"degraded maps, {sides(case.truth)} voxels of {VOXEL} Å"
            )
    x = average([torch.from_numpy(density.data.astype("float32")) for density in maps]) if maps else None
    return case.line(name, x, 0, math.nan)


def find(folder: Path, name: str) -> list[Path]:
    """The one result, or both halves'; nothing where there is none."""
    for stems in ([name], [f"{name}_half1", f"{name}_half2"]):
        found = [path for stem in stems for end in MAPS if (path := folder / f"{stem}{end}").exists()]
        if len(found) == len(stems):
            return found
    return []


def leave(path: Path, x: Tensor) -> None:
    """Write a map, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_map(path, DensityMap(x.numpy(), VOXEL))


def write_degraded(case: Case, folder: Path) -> None:
    """The data of a case and its truth, for another program."""
    leave(folder / "truth" / f"{case.name}.mrc", case.truth)
    ends = [""] if len(case.data.maps) == 1 else ["_half1", "_half2"]
    for end, x in zip(ends, case.data.maps, strict=True):
        leave(folder / folder_of(case.row) / f"{case.name}{end}.mrc", x)


def prior_name(args: argparse.Namespace) -> str:
    """As the CSV has it."""
    return Path(args.prior).name + (", bf16" if args.precision == "bf16" else "")


class Lines:
    """The lines of all ranks; each adds to a file of its own, so that nothing is lost however a run ends."""

    def __init__(self, out: str, rank: int) -> None:
        self.csv = Path(f"{out}.csv")
        self.own = self.csv if rank == 0 else Path(f"{out}.rank-{rank}.csv")
        if self.own.exists():  # the last line of a run that was killed may be none
            text = self.own.read_bytes()
            os.truncate(self.own, text.rfind(b"\n") + 1)
        self.others = sorted(self.csv.parent.glob(f"{self.csv.stem}.rank-*.csv"))
        self.known = {tuple(line[key] for key in KEYS) for path in {self.csv, *self.others} for line in read(path)}

    def add(self, line: dict[str, object]) -> None:
        """Of a case, at once."""
        self.known.add(tuple(str(line[key]) for key in KEYS))
        new = not self.own.exists() or not self.own.stat().st_size
        with self.own.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerow(line)

    def gathered(self) -> list[dict[str, str]]:
        """Of all ranks, which have done; in one file from now on."""
        parts = sorted(self.csv.parent.glob(f"{self.csv.stem}.rank-*.csv"))
        lines = [line for path in (self.csv, *parts) for line in read(path)]
        order = {row: i for i, row in enumerate(ROWS)}
        lines.sort(key=lambda line: (line["map"], order[line["row"]]))
        with atomic_write(self.csv, overwrite=True) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(lines)
        for part in parts:
            part.unlink()
        return lines


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(paths: Sequence[Path], prior: Prior, lines: Lines, args: argparse.Namespace, rank: int, size: int) -> None:
    """Add what the lines lack of every map and row."""
    rows = [row for row in ROWS if any(row in TABLES[table] for table in args.tables)]
    cases = list(product(paths, rows))[rank::size]
    for path, row in tqdm(cases, unit=" cases", file=sys.stdout, disable=not is_first(), leave=False):
        alpha = args.alpha if row in ANISOTROPIC else ""

        def lacking(method: str, prior: str = "", path: Path = path, row: str = row, alpha: str = alpha) -> bool:
            return (name_of(path), str(args.box), row, method, alpha, prior) not in lines.known

        todo = [method for method in methods(row, args) if lacking(method.name, prior_name(args))]
        plain, others = [kind for kind in PLAIN if lacking(kind)], [name for name in args.compare if lacking(name)]
        if not (todo or plain or others or args.write_degraded):
            continue
        case = case_of(path, row, args)
        if args.write_degraded is not None:
            write_degraded(case, args.write_degraded)
        for kind in plain:
            x = case.data.mean if kind == "degraded" else wiener(case.data.of_mean, case.truth)
            lines.add(case.line(kind, x, 0, 0.0))
        for name in others:
            lines.add(compared(case, name, args.compare[name]))
        for method in todo:
            lines.add(restored(case, method, prior, args))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--maps", type=Path, required=True, help="folder of maps that the prior was not trained on; or one map")
    add("--prior", default="cryofm-tiny", help="name, file or folder of a prior (default cryofm-tiny)")
    add(
        "--tables",
        type=tables,
        default=tables("1,2,3,5"),
        help=f"of {','.join(map(str, sorted(TABLES)))} (default 1,2,3,5)",
    )
    add(
        "--algorithm", choices=("default", "paper"), default="default", help="of tables 1, 2, 3 and 5 (default default)"
    )
    add("--alpha", choices=("told", "estimated"), default="estimated", help="noise by direction (default estimated)")
    add("--max-push", type=float, nargs="+", help="λ_max of Alg. 1")
    add("--steps", type=int, nargs="+", help="N of Alg. 1 and 2; of the default, network evaluations of plug-and-play")
    add("--limit", type=int, help="how many of the maps (default all)")
    add("--box", type=int, default=64, help="side of the crops, a multiple of 8 (default 64)")
    add("--write-degraded", type=Path, metavar="DIR", help="leave the halves for other programs")
    add("--write-restored", type=Path, metavar="DIR", help="leave what the one method of this call made of them")
    add(
        "--compare",
        type=named,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="score what a program made of them",
    )
    add("--device", default="cpu", help="torch device (default cpu)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", required=True, help="beginning of the names of both results")
    args = parser.parse_args(arguments)
    args.compare = dict(args.compare)
    return args


def tables(text: str) -> list[int]:
    """Numbers of tables, or what argparse makes a message of."""
    numbers = [int(part) for part in text.split(",")]
    if wrong := [n for n in numbers if n not in TABLES]:
        raise argparse.ArgumentTypeError(f"there is no table {wrong[0]} here, but {sorted(TABLES)}")
    return numbers


def named(text: str) -> tuple[str, Path]:
    """NAME=DIR, or what argparse makes a message of."""
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"give NAME=DIR with a folder that exists, not {text!r}")
    return name, Path(folder)


def maps_of(path: Path, limit: int | None) -> list[Path]:
    """The maps of a folder, in order of their names."""
    found = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.name.endswith(MAPS))
    if not found:
        raise CryoFMError(f"no map (MRC or CCP4) in {path}")
    return found[:limit]


def chosen_prior(args: argparse.Namespace) -> Prior:
    """The prior; without statistics, the paper's algorithm."""
    prior = load_prior(args.prior).to(args.device)
    if abs(prior.voxel_size - VOXEL) > 1e-3 * VOXEL:
        raise CryoFMError(
            f"the noise levels are of voxels of {VOXEL} Å, the prior {args.prior} has {prior.voxel_size:g} Å"
        )
    if args.algorithm == "default" and not isinstance(prior, CalibratedPrior):
        args.algorithm = "paper"
        if is_first():
            print(f"{args.prior} has no measured statistics, which the default needs: the paper's algorithms run")
    return prior


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write both results."""
    args = parse(arguments)
    with joined(args.device):
        group = everyone()
        rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
        prior = chosen_prior(args)
        lines = Lines(args.out, rank)
        measure(maps_of(args.maps, args.limit), prior, lines, args, rank, size)
    if rank == 0:  # all have done
        chosen = {method.name for row in ROWS for method in methods(row, args, [1, 2, 3, 5])}
        text = report(lines.gathered(), args.tables, chosen, args.box)
        with atomic_write(Path(f"{args.out}.md"), overwrite=True) as temporary:
            temporary.write_text(text)
        print(text)


if __name__ == "__main__":
    try:
        main()
    except (CryoFMError, *ERRORS) as error:
        sys.exit(f"error: {error}")
