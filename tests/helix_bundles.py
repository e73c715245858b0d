"""Bundles of α-helices as PDB files: ``python tests/helix_bundles.py FOLDER FIRST LAST``, numbers that are seeds."""

import sys
from pathlib import Path
from string import ascii_letters

import numpy as np
from numpy.typing import NDArray

# An ideal α-helix of alanine: radius in Å, angle in degrees and height in Å
# of each atom about the axis; the next residue is 100° and 1.5 Å on.
ATOMS = {
    "N": (1.55, -27.7, -0.9),
    "CA": (2.29, 0.0, 0.0),
    "C": (1.66, 26.9, 1.1),
    "O": (2.0, 20.0, 2.3),
    "CB": (3.3, -17.0, -0.2),
}


def helix(residues: int) -> NDArray[np.float64]:
    """Atoms of a helix along z about the origin, (residues · 5, 3)."""
    turn, rise = np.arange(residues)[:, None] * 100.0, np.arange(residues)[:, None] * 1.5
    radius, angle, height = np.array(list(ATOMS.values())).T
    angle = np.deg2rad(angle + turn)
    z = height + rise - 0.75 * residues
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], -1).reshape(-1, 3)


def write_bundle(path: Path, seed: int) -> None:
    """16 to 40 helices of 15 to 30 residues, 10 Å apart on a hexagonal grid, each tilted and shifted,
    a chain of its own."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    grid = [(10.0 * (i + j / 2), 10.0 * j * 0.75**0.5) for i in range(-3, 4) for j in range(-3, 4)]
    lines: list[str] = []
    for chain, (x, y) in zip(ascii_letters, rng.permutation(grid)[: rng.integers(16, 41)], strict=False):
        tilt = Rotation.from_rotvec(np.deg2rad(rng.uniform(-25, 25, 3)))
        shift = np.array([x, y, rng.uniform(-8, 8)])
        atoms = tilt.apply(helix(int(rng.integers(15, 31)))) + shift
        for index, (position, b) in enumerate(zip(atoms, rng.uniform(15, 60, len(atoms)), strict=True)):
            name, residue = list(ATOMS)[index % 5], index // 5 + 1
            xyz = "".join(f"{c:8.3f}" for c in position)
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {name:<3} ALA {chain}{residue:4d}    {xyz}  1.00{b:6.2f}{name[0]:>12}\n"
            )
    path.write_text("".join(lines) + "END\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(int(sys.argv[2]), int(sys.argv[3]) + 1):
        write_bundle(folder / f"bundle{number:02d}.pdb", number)
