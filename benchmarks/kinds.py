"""Nucleic acids, sugars, membrane proteins: ``python benchmarks/kinds.py MODELS... --out CSV`` (needs gemmi).

A map is simulated of every atomic model (3.1 Å, B from 20 Å² on), and degraded and restored by the paper's protocol
(see ``_protocol.py``): two levels of noise, ±30° and the wedge. Beside FSC_AUC and error of the whole map stands recall
where the nearest atom (within 3 Å) is of protein, nucleic acid or sugar: the part of the truth's density there where
the estimate has density too.

``--count`` only says what the models are made of: atoms of each, hydrogens and waters left out, and the hydrophobic
stretches of protein, which tell a membrane protein with helices where the file does not: 19 residues with a mean
hydropathy (Kyte and Doolittle) of 1.6 or more. One may lie within a soluble protein; a β-barrel has none.

A killed run goes on where it was when the same line is given again.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from _inputs import calibrated_prior
from _protocol import VOXEL, WEDGE_ROW, Score, corner, crop, degraded, wiener
from _table import write_csv
from numpy.typing import NDArray
from paper import Case, estimate, name_of, seed_of
from scipy.spatial import KDTree
from torch import Tensor

from cryofm_io import normalise_clean, simulate_density
from cryofm_io.atomic_model import read_model
from cryofm_model import Prior

if TYPE_CHECKING:
    import gemmi

KINDS = ("protein", "nucleic acid", "sugar", "other")
ROWS = ("spectral 4.3A", "spectral 3.2A", "anisotropic ±30°", WEDGE_ROW)
SIDE = 64
REACH = 3.0  # Å
DENSITY = 0.15
STRETCH, HYDROPHOBIC = 19, 1.6  # residues; Kyte and Doolittle
HYDROPATHY = {"A": 1.8, "R": -4.5, "N": -3.5, "D": -3.5, "C": 2.5, "Q": -3.5, "E": -3.5, "G": -0.4, "H": -3.2, "I": 4.5}
HYDROPATHY |= {"L": 3.8, "K": -3.9, "M": 1.9, "F": 2.8, "P": -1.6, "S": -0.8, "T": -0.7, "W": -0.9, "Y": -1.3, "V": 4.2}


def kind_of(residue: "gemmi.Residue") -> int:
    """Which of `KINDS` a residue is."""
    import gemmi

    known = gemmi.find_tabulated_residue(residue.name)
    sugar = known.kind in (gemmi.ResidueKind.PYR, gemmi.ResidueKind.KET)
    return 0 if known.is_amino_acid() else 1 if known.is_nucleic_acid() else 2 if sugar else 3


def stretches(chain: "gemmi.Chain") -> int:
    """Hydrophobic stretches that do not overlap."""
    import gemmi

    known = [gemmi.find_tabulated_residue(residue.name) for residue in chain]
    codes = [one.one_letter_code.upper() for one in known if one.is_amino_acid()]
    values = np.array([HYDROPATHY[code] for code in codes if code in HYDROPATHY])
    if len(values) < STRETCH:
        return 0
    means = np.convolve(values, np.full(STRETCH, 1 / STRETCH), "valid")
    found, i = 0, 0
    while i < len(means):
        here = means[i] >= HYDROPHOBIC
        found, i = found + here, i + (STRETCH if here else 1)
    return found


def composition(path: Path) -> dict[str, object]:
    """What the file's own model is made of."""
    model = read_model(path, 0)
    atoms = Counter({kind: 0 for kind in range(len(KINDS))})
    for chain in model:
        for residue in chain:
            atoms[kind_of(residue)] += len(residue)
    named = {f"atoms, {kind}": atoms[i] for i, kind in enumerate(KINDS)}
    return {"model": name_of(path), **named, "hydrophobic stretches": max(map(stretches, model))}


def simulated(path: Path) -> tuple[Tensor, NDArray[np.int_]]:
    """A crop of a model's map, and which of `KINDS` is nearest to each of its voxels; −1 where no atom is near."""
    density = simulate_density(path, VOXEL, resolution=3.1)
    atoms = [(site.atom.pos.tolist(), kind_of(site.residue)) for site in read_model(path, 60_000).all()]
    place, kinds = np.array([xyz for xyz, _ in atoms]), np.array([kind for _, kind in atoms])
    # The molecule lies in the middle of its box, which is padded as its crop is.
    padded = np.pad(normalise_clean(density)[0], [(max(0, (SIDE - n + 1) // 2),) * 2 for n in density.shape])
    place = place[:, ::-1] - (place.min(0) + place.max(0))[::-1] / 2 + np.array(padded.shape) / 2 * VOXEL
    voxels = (np.indices((SIDE,) * 3).reshape(3, -1).T + corner(padded, SIDE)) * VOXEL
    distance, nearest = KDTree(place).query(voxels, distance_upper_bound=REACH)
    near = np.isfinite(distance)
    labels = np.full(len(voxels), -1)
    labels[near] = kinds[nearest[near]]
    return torch.from_numpy(crop(padded, SIDE)), labels.reshape((SIDE,) * 3)


def line_of(case: Case, labels: NDArray[np.int_], method: str, x: Tensor) -> dict[str, object]:
    """Scores of the whole, and the recall of every kind; empty where there is none of it."""
    score, true = Score.of(x, case.truth, VOXEL), case.truth > DENSITY
    line: dict[str, object] = {"map": case.name, "row": case.row, "method": method}
    line |= {"auc": round(score.auc, 4), "error": round(score.error, 4), "recall": round(score.recall, 4)}
    for i, kind in enumerate(KINDS[:3]):
        there = true & torch.from_numpy(labels == i)
        line[f"voxels, {kind}"] = int(there.sum())
        line[f"recall, {kind}"] = round(float((x > DENSITY)[there].float().mean()), 4) if there.any() else ""
    return line


def lines(path: Path, prior: Prior, precision: str, known: set[tuple[str, str]]) -> Iterator[dict[str, object]]:
    """Of one model, those that are not known."""
    name = name_of(path)
    rows = [row for row in ROWS if (name, row) not in known]
    if not rows:
        return
    truth, labels = simulated(path)
    for row in rows:
        alpha = "estimated" if row.startswith("anisotropic") else ""
        numbers = torch.Generator().manual_seed(seed_of(name, row))
        case = Case(name, row, truth, degraded(row, truth, numbers, "estimated"), alpha)
        yield line_of(case, labels, "Wiener", wiener(case.data.of_mean, truth))
        yield line_of(case, labels, "restored", estimate(case, None, prior, "cpu", precision)[0])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, nargs="+", help="PDB or mmCIF files, .gz too")
    add("--count", action="store_true", help="only count what they are made of")
    add("--prior", default="cryofm-tiny", help="name or file of a prior (default cryofm-tiny)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", type=Path, required=True, help="CSV")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Count, or restore; write the CSV after every row."""
    args = parse(arguments)
    if args.count:
        write_csv(args.out, [composition(path) for path in args.models])
        return
    table: list[dict[str, object]] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            table += csv.DictReader(file)
    methods = Counter((str(line["map"]), str(line["row"])) for line in table)
    known = {case for case, count in methods.items() if count == 2}
    table = [line for line in table if (line["map"], line["row"]) in known]
    prior = calibrated_prior(args.prior)
    for path in args.models:
        for line in lines(path, prior, args.precision, known):
            table.append(line)
            write_csv(args.out, table)
            print(*line.values(), sep="\t", flush=True)


if __name__ == "__main__":
    sys.exit(main())
