"""Runs the lines of the tutorials' pages: ``python docs/tutorials.py [--no-tutorials]``.

The first ```sh block of docs/tutorials/NAME.md is one line, whose last word is the folder for the results; here that is
docs/build/tutorials/NAME, with what was printed in said.txt. It is run again only if the line, the script or the
packages have changed. With ``--no-tutorials`` nothing is run: pictures that are not there yet say so.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "docs" / "build" / "tutorials"
SOURCES = ("examples/*.py", "packages/*/src/**/*.py", "packages/*/src/**/*.safetensors")


def line_of(page: Path) -> list[str]:
    """The command, as words."""
    blocks: list[str] = re.findall(r"```sh\n(.*)\n```", page.read_text(encoding="utf-8"))
    return blocks[0].split()


def key_of(words: list[str]) -> str:
    """Of all that the results depend on, versions of others' packages aside."""
    files = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
    used = [path for path in files if path.parent.name != "examples" or path.name[0] == "_" or path.name in words[1]]
    digest = hashlib.sha256(" ".join(words).encode())
    for path in used:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(words: list[str], folder: Path) -> None:
    """The line, beside the folder that it then replaces. A script that doubts its result (3) has made one."""
    start, made = time.monotonic(), folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    line = [sys.executable, *words[1:-1], str(made)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    told = [line for line in done.stderr.splitlines(keepends=True) if line.startswith("warning")]
    said = (done.stdout + "".join(told)).replace(str(made), words[-1])
    (made / "said.txt").write_text(said, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    print(f"{' '.join(words)}: {time.monotonic() - start:.0f} s", flush=True)


def placeholder(path: Path) -> None:
    """For a file that a page shows and that was never made."""
    said = "Not made: this build was told --no-tutorials."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, said, ha="center", va="center")
        figure.savefig(path)
    else:
        path.write_text(f"{said}\n", encoding="utf-8")


def main() -> None:
    """Run what has changed, or show what is there."""
    for page in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
        words, folder = line_of(page), BUILD / page.stem
        key, kept = key_of(words), folder / "key.txt"
        if "--no-tutorials" not in sys.argv[1:] and (not kept.exists() or kept.read_text() != key):
            run(words, folder)
            kept.write_text(key)
        for name in re.findall(rf"build/tutorials/{page.stem}/([\w.]+)", page.read_text(encoding="utf-8")):
            if not (folder / name).exists():
                if kept.exists():
                    sys.exit(f"{page.name} shows {name}, which the script does not make")
                placeholder(folder / name)


if __name__ == "__main__":
    main()
