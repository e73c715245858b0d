"""What the benchmarks share: their results as a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryofm_io import atomic_write


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns, in place of what is there."""
    with atomic_write(path, overwrite=True) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
