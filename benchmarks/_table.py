"""What the benchmarks share: their results as a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cryofm_io import atomic_write


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns, in place of what is there."""
    with atomic_write(path, overwrite=True) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def means_of_maps(lines: Sequence[Mapping[str, object]], scores: Sequence[str]) -> list[dict[str, object]]:
    """Of lines of maps, one for every value of the columns between the map's name and the scores."""
    table: list[dict[str, object]] = []
    kinds = [tuple(value for key, value in line.items() if key != "map" and key not in scores) for line in lines]
    for kind in dict.fromkeys(kinds):
        same = [line for line, own in zip(lines, kinds, strict=True) if own == kind]
        values = {key: round(float(np.mean([float(str(line[key])) for line in same])), 4) for key in scores}
        table.append({**same[0], "map": f"mean of {len(same)}", **values})
    return table
