"""The most resident memory that a process had.

Not ``ru_maxrss``, which a process takes over from the one that started it: a benchmark that makes a map of 400³ before
it runs a script on it would find its own memory there.

``python _peak.py FILE SCRIPT ARGUMENTS...`` runs a script and writes to FILE what it took, in MiB.
"""

import runpy
import sys
from pathlib import Path


def peak_resident_mib(*, reset: bool = False) -> int:
    """Of this process, in MiB; since now, if the peak of what came before is to be forgotten."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main(file: str, script: str, *arguments: str) -> None:
    """Run the script as its own command line would."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        Path(file).write_text(str(peak_resident_mib()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
