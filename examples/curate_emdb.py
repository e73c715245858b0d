"""Choose maps to train on from EMDB headers: ``python examples/curate_emdb.py HEADERS --out FOLDER``.

HEADERS are header files of the EMDB's schema 3 (``emd-1234.xml``), or folders that hold some anywhere, such as a mirror
of ftp.ebi.ac.uk/pub/databases/emdb/structures. The paper's limits (section 4.1) apply: single particles, a resolution
better than 3.0 Å, half maps, no helix, no side above 576 Å.

FOLDER gets train.csv, which train_prior.py takes as --list; held_out.csv, ``--hold-out`` of the accepted entries chosen
by seed and entry alone, so that later entries leave most of the choice as it is; refused.csv, with the reasons; and
report.html. The
paper's authors also left out what looked wrong to the eye: delete those lines.
"""

import argparse
import csv
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from _first import check_line
from _flags import named_folder, natural, seed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("headers", type=Path, nargs="+", help="header files (XML), or folders that hold some")
    add("--out", type=named_folder, required=True, help="folder for the lists")
    add(
        "--hold-out", type=natural, default=32, help="accepted entries that are kept back (default 32, as in the paper)"
    )
    add("--seed", type=seed, default=0, help="of what is kept back (default 0)")
    add("--overwrite", action="store_true", help="replace lists that exist")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

from _command_line import exit_code, signals
from _pages import Show, folder_with_page
from _streams import bar

from cryofm_io import CryoFMError, InputFileError, read_emdb_header
from cryofm_io.report import curation_content
from cryofm_model.data.curation import Curation, curated

COLUMNS = ("id", "resolution", "method", "side", "half_maps", "helical")
FILES = ("train.csv", "held_out.csv", "refused.csv")
Entry = dict[str, str]


def entry_of(path: Path) -> Entry:
    """What a header says that the limits are about.

    Raises:
        InputFileError: it is no header of schema 3, or not of a released entry.
    """
    header = read_emdb_header(path)
    return {
        "id": header.id,
        "resolution": "" if header.resolution is None else f"{header.resolution:g}",
        "method": ", ".join(header.methods),
        "side": "" if header.side is None else f"{header.side:g}",
        "half_maps": "yes" if len(header.half_maps) >= 2 else "no",
        "helical": "yes" if header.helical else "no",
    }


def headers(paths: Sequence[Path]) -> Iterator[Path]:
    """The files, and those in folders."""
    for path in paths:
        yield from sorted(path.rglob("*.xml")) if path.is_dir() else [path]


def entries_of(paths: Sequence[Path]) -> tuple[list[Entry], dict[str, str]]:
    """Of all headers, each entry once; and why files are none."""
    entries: dict[str, Entry] = {}
    wrong = {}
    for path in bar(list(headers(paths)), unit=" headers", desc="reading"):
        try:
            entry = entry_of(path)
        except InputFileError as error:
            wrong[path.name] = str(error)
        else:
            entries[entry["id"]] = entry
    return list(entries.values()), wrong


def held_out(ids: Sequence[str], number: int, seed: int) -> set[str]:
    """As many ids, as if drawn by lot; which depends on seed and id alone."""
    return set(sorted(ids, key=lambda id: zlib.crc32(f"{seed}|{id}".encode()))[:number])


def write(path: Path, columns: Sequence[str], rows: Sequence[Entry]) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def run(args: argparse.Namespace, folder: Path, show: Show) -> Curation:
    """The whole job, to lists in ``folder``."""
    entries, wrong = entries_of(args.headers)
    if not entries:
        reason = f" ({next(iter(wrong.values()))})" if wrong else ""
        raise CryoFMError(f"no headers of released entries in {', '.join(map(str, args.headers))}{reason}")
    train, kept_back, refused = (folder / name for name in FILES)
    write(train, COLUMNS, entries)
    decision = curated(train)  # whose word counts when it is trained on, too
    out = held_out(decision.accepted, args.hold_out, args.seed)
    accepted = [entry for entry in entries if entry["id"] in decision.accepted]
    lists = [[entry for entry in accepted if (entry["id"] in out) == back] for back in (False, True)]
    write(train, COLUMNS, lists[0])
    write(kept_back, COLUMNS, lists[1])
    reasons = {**decision.refused, **wrong}
    write(refused, ("id", "reason"), [{"id": id, "reason": reason} for id, reason in reasons.items()])
    show(curation_content, *lists, reasons)
    print(f"{len(accepted) - len(out)} maps to train on, {len(out)} held out, {len(reasons)} refused; see {args.out}")
    return decision


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    with ExitStack() as stack, folder_with_page(args, list(FILES)) as (folder, show):
        run(args, folder, show)
        stack.enter_context(signals(signal.SIG_IGN))  # what is left to do takes a moment


if __name__ == "__main__":
    sys.exit(exit_code(main))
