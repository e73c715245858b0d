"""Our FSC beside that of other programs: ``python benchmarks/fsc_programs.py HALF1 HALF2 ... --out CSV``.

RELION's ``relion_postprocess``, cryoDRGN (``pip install cryodrgn``, GPL: only run here) and
torch-fourier-shell-correlation, each if it is installed; and ours with other random phases. Shells are not cut alike: a
coefficient k belongs to shell round(|k|) for us and RELION, to floor(|k|) + 1 for cryoDRGN, and is shared linearly by
two shells by the last. RELION and the last sum over a half transform, in which those of the plane k_x = 0 are twice. So
each is held against our curve as it is, and against a plain loop over its own shells. Cubic maps, shells 2 to N/2 - 1.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _table import write_csv
from numpy.typing import NDArray

from cryofm_io import DensityMap, MaskError, automatic_mask, masked_fsc, read_map, write_map
from cryofm_io.star_text import read_star

Floats = NDArray[np.floating]
Shares = Callable[[Floats, int], Floats]  # of coefficients of that |k| in a shell
UNMASKED, MASKED, RANDOM, CORRECTED = "unmasked", "masked", "randomised", "corrected"


def rounded(k: Floats, shell: int) -> Floats:
    """Ours, and RELION's."""
    return np.asarray(np.rint(k) == shell, float)


def below(k: Floats, shell: int) -> Floats:
    """That of cryoDRGN."""
    return np.asarray((k >= shell - 1) & (k < shell), float)


def between(k: Floats, shell: int) -> Floats:
    """That of torch-fourier-shell-correlation."""
    return np.asarray(np.maximum(1 - np.abs(k - shell), 0))


def by_loop(a: Floats, b: Floats, shares: Shares, *, half: bool) -> Floats:
    """FSC of shells 0 to N/2 - 1 by their shares; ``half``: of the half transform as it is."""
    n = len(a)
    one, two = (np.fft.rfftn(x) if half else np.fft.fftn(x) for x in (a, b))
    line = np.rint(np.fft.fftfreq(n) * n)
    last = np.arange(n // 2 + 1) if half else line
    k = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + last**2)
    curve = [1.0]
    for shell in range(1, n // 2):
        w = shares(k, shell)
        cross, *powers = ((w * (x * y.conj()).real).sum() for x, y in ((one, two), (one, one), (two, two)))
        curve.append(cross / np.sqrt(powers[0] * powers[1]))
    return np.array(curve)


def relion(one: Floats, two: Floats, mask: Floats, size: float) -> dict[str, Floats]:
    """Its curves, from shell 0 on."""
    if not shutil.which("relion_postprocess"):
        return {}
    tags = {UNMASKED: "UnmaskedMaps", MASKED: "MaskedMaps", CORRECTED: "Corrected"}
    labels = {name: f"rlnFourierShellCorrelation{tag}" for name, tag in tags.items()}
    labels |= {RANDOM: "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"}
    with tempfile.TemporaryDirectory() as folder:
        files = {"i": "half1_unfil.mrc", "i2": "half2_unfil.mrc", "mask": "mask.mrc"}
        for name, data in zip(files.values(), (one, two, mask), strict=True):
            write_map(Path(folder, name), DensityMap(data, size))
        line = ["relion_postprocess", "--force_mask", "--angpix", f"{size}", "--o", f"{folder}/post"]
        line += [word for flag, name in files.items() for word in (f"--{flag}", f"{folder}/{name}")]
        subprocess.run(line, check=True, capture_output=True)
        blocks = read_star(Path(folder, "post.star"), labels.values())
    columns = {name: [block.column(label) for block in blocks] for name, label in labels.items()}
    return {name: np.array(next(filter(None, found)), float) for name, found in columns.items()}


def cryodrgn(one: Floats, two: Floats, mask: Floats, size: float) -> dict[str, Floats]:
    """Likewise."""
    try:
        import torch
        from cryodrgn.commands_utils.fsc import correct_fsc, get_fsc_curve  # type: ignore[import-not-found]
    except ImportError:
        return {}
    x, y, m = (torch.from_numpy(np.asarray(part, np.float32)) for part in (one, two, mask))
    unmasked, masked = get_fsc_curve(x, y), get_fsc_curve(x, y, m)
    corrected = correct_fsc(masked, x, y, float(unmasked.pixres[unmasked.fsc < 0.8].iloc[0]), m)
    found = {UNMASKED: unmasked, MASKED: masked, CORRECTED: corrected}
    return {name: curve.fsc.to_numpy() for name, curve in found.items()}


def teamtomo(one: Floats, two: Floats, mask: Floats, size: float) -> dict[str, Floats]:
    """Likewise."""
    try:
        import torch
        from torch_fourier_shell_correlation import fourier_shell_correlation  # type: ignore[import-not-found]
    except ImportError:
        return {}
    pairs = {UNMASKED: (one, two), MASKED: (one * mask, two * mask)}
    found = {
        name: fourier_shell_correlation(*(torch.from_numpy(x).double() for x in pair)) for name, pair in pairs.items()
    }
    return {name: curve.numpy() for name, curve in found.items()}


def ours(one: Floats, two: Floats, mask: Floats, size: float, seed: int = 1) -> dict[str, Floats]:
    """With other random phases than those which all are held against."""
    both = masked_fsc(one, two, size, mask, seed=seed)
    found = {UNMASKED: both.unmasked, MASKED: both.masked, RANDOM: both.randomised, CORRECTED: both.corrected}
    return {name: np.concatenate([[1.0], np.nan_to_num(curve.correlation)]) for name, curve in found.items()}


# Whether of the half transform as it is, and whose share a coefficient is.
PROGRAMS = {ours: (False, rounded), relion: (True, rounded), cryodrgn: (False, below), teamtomo: (True, between)}


def compared(path: Path, other: Path) -> list[dict[str, object]]:
    """A row for each program and curve."""
    first = read_map(path)
    size, one, two = first.voxel_size, first.data, read_map(other).data
    mask = automatic_mask((one + two) / 2, size)
    if mask is None:
        raise MaskError(f"{path}: nothing stands out of the map, so that there is no mask")
    pairs = {UNMASKED: (one, two), MASKED: (one * mask, two * mask)}
    own, used, rows = ours(one, two, mask, size, seed=0), slice(2, len(one) // 2), []
    for program, (half, shares) in PROGRAMS.items():
        for name, values in program(one, two, mask, size).items():
            row: dict[str, object] = {"map": path.name, "program": program.__name__, "curve": name}
            difference = np.abs(values[used] - own[name][used])
            row |= {"largest": f"{difference.max():.4f}", "mean": f"{difference.mean():.4f}", "by_its_own_shells": ""}
            if name in pairs:
                loop = by_loop(*pairs[name], shares, half=half)
                row["by_its_own_shells"] = f"{np.abs(values[used] - loop[used]).max():.1g}"
            rows.append(row)
            print(*row.values())
    return rows


def main() -> None:
    """Parse the command line, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("halves", type=Path, nargs="+", help="first and second half maps in turn")
    parser.add_argument("--out", type=Path, required=True, help=".csv")
    args = parser.parse_args()
    if len(args.halves) % 2:
        parser.error("give half maps in pairs")
    write_csv(args.out, [row for i in range(0, len(args.halves), 2) for row in compared(*args.halves[i : i + 2])])


if __name__ == "__main__":
    main()
