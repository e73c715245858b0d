"""One entry of an archive of half maps restored, and one report of all: what the Snakefile beside this file calls.

The table is a CSV file with a header: `name`, `half1`, `half2`, and a column for every flag of ``denoise.py`` that
differs from entry to entry, such as `b_factor` or `voxel_size`; an empty cell gives none. Paths are relative to the
table.

``restore`` leaves STATES/NAME.json: "restored", "in doubt", or "refused" where ``denoise.py`` would not take the maps.
That is a result, and the archive goes on. Where flags or the machine are at fault (memory, disk, a kill) there is no
such file and the status is not 0, so that the workflow tries again; ``denoise.py`` then goes on where it was.

Standard library alone: it runs where Snakemake runs, and where it does not.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

DENOISE = Path(__file__).parents[1] / "denoise.py"
COLUMNS = ("name", "half1", "half2")
PATHS = ("half1", "half2", "mask")
STATES = {0: "restored", 3: "in doubt", 2: "refused"}  # by the status of denoise.py
ELSEWHERE = ("denoise.py", "out of memory", "GiB", "disk", "No space left", "Permission denied")  # of flags, machine
SHOWN = {  # of run.json
    "FSC_AUC of the halves": ("half_map_fsc_auc",),
    "restored to (Å)": ("restored_to_angstrom",),
    "scale": ("scale",),
    "B (Å²)": ("b_factor",),
    "slope of the other half": ("slope_of_the_other_half",),
    "gain in FSC": ("held_out", "gain"),
}
NOTE = "Restored maps are for viewing and for building models, never for claims of resolution."


def entries(table: str | Path) -> dict[str, dict[str, str]]:
    """The table's rows by name, their paths absolute; `ValueError` where it is no such table."""
    table = Path(table)
    with table.open(newline="", encoding="utf-8") as file:
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(file)]
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise ValueError(f"{table}: needs the columns {', '.join(COLUMNS)}, and a row")
    for row in rows:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", row["name"]):
            raise ValueError(f"{table}: a name is letters, digits, '.', '_' and '-', got {row['name']!r}")
        row.update({key: str(table.absolute().parent / row[key]) for key in PATHS if row.get(key)})
    twice = [name for name, count in Counter(row["name"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{table}: more than one entry has the name {twice[0]}")
    return {row["name"]: row for row in rows}


def flags(entry: dict[str, str]) -> list[str]:
    """Of ``denoise.py``, by the columns of an entry."""
    own = {key: value for key, value in entry.items() if key not in COLUMNS and value}
    return [part for key, value in own.items() for part in (f"--{key.replace('_', '-')}", value)]


def restore(args: argparse.Namespace) -> int:
    """One entry; its state, when it is known."""
    entry = entries(args.table)[args.name]
    results, checkpoint = args.out / "entries" / args.name, args.out / "unfinished" / args.name
    checkpoint.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(DENOISE), entry["half1"], entry["half2"], "--out", str(results), "--overwrite"]
    command += ["--checkpoint", str(checkpoint / "state"), *flags(entry), *args.flags]
    said: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            said += re.findall(r"^(?:warning|error|usage): (.*)", line)
    last = said[-1] if said else ""
    state = STATES.get(process.returncode)
    refused_the_maps = not any(word in last for word in ELSEWHERE)
    if state is None or (state == "refused" and not refused_the_maps):
        return process.returncode or 1
    shutil.rmtree(checkpoint)
    note = "; ".join(said[:-1]) if state == "in doubt" else last if state == "refused" else ""
    write(args.out / "states" / f"{args.name}.json", json.dumps({"state": state, "note": note}))
    return 0


def row(out: Path, name: str) -> dict[str, object]:
    """What the report says of an entry."""
    state_file, run_file = out / "states" / f"{name}.json", out / "entries" / name / "run.json"
    state = {"state": "not done", "note": f"see logs/{name}.log"}
    if state_file.exists():
        state = json.loads(state_file.read_text(encoding="utf-8"))
    found: dict[str, object] = {}
    if state["state"] in ("restored", "in doubt"):
        run = json.loads(run_file.read_text(encoding="utf-8"))
        for title, keys in SHOWN.items():
            value = run
            for key in keys:
                value = value[key]
            found[title] = value
    return {
        "name": name,
        "state": state["state"],
        **{title: found.get(title, "") for title in SHOWN},
        "note": state["note"],
    }


def report(args: argparse.Namespace) -> int:
    """All entries, those that are not done included."""
    rows = [row(args.out, name) for name in entries(args.table)]
    titles, counts = list(rows[0]), Counter(str(row["state"]) for row in rows)
    said = [
        "# Restored maps",
        f"{len(rows)} entries: {', '.join(f'{count} {state}' for state, count in counts.most_common())}.",
        "\n".join(
            ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
            + ["| " + " | ".join(_shown(value) for value in row.values()) + " |" for row in rows]
        ),
        NOTE,
    ]
    write(args.out / "report.md", "\n\n".join(said) + "\n")
    lines = [titles, *(list(map(str, row.values())) for row in rows)]
    temporary = args.out / ".report.csv"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    temporary.replace(args.out / "report.csv")
    return 0


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|") or "–"


def write(path: Path, text: str) -> None:
    """A file that appears only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True)
    for job, what in ((restore, "one entry"), (report, "report.md and report.csv of all")):
        one = jobs.add_parser(job.__name__, help=what)
        one.add_argument("--table", type=Path, required=True, help="CSV")
        one.add_argument("--out", type=Path, required=True, help="folder of the archive")
        one.set_defaults(job=job)
        if job is restore:
            one.add_argument("--name", required=True, help="of the entry")
            one.add_argument("flags", nargs="*", help="of denoise.py, after --, for all entries")
    return parser.parse_args(arguments)


def main() -> int:
    """Parse the command line and do it."""
    args = parse()
    job: int = args.job(args)
    return job


if __name__ == "__main__":
    sys.exit(main())
