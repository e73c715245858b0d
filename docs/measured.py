"""Tables of the site, made of benchmarks/results/*.csv: ``python docs/measured.py`` writes them into the pages.

A page says where, between ``<!-- NAME -->`` and ``<!-- end -->``; tests hold the pages to what was measured.
"""

import csv
import re
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DATA = {  # rows of coverage.csv
    "spectral 4.3A": "noise of 4.3 Å",
    "anisotropic ±30°": "noise strong beyond ±30° of tilt",
    "wedge ±60°, noisy": "missing wedge of ±60°, noise of 4.3 Å",
    "wedge ±60°": "missing wedge of ±60°, no noise",
    "half blurred": "one half blurred to 8 Å, white noise",
    "every second voxel": "every second voxel seen, little noise",
    "half unseen": "one half of the box seen, little noise",
}


def _lines(name: str) -> list[dict[str, str]]:
    with (BENCHMARKS / "results" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _intervals(mean: dict[str, float]) -> list[str]:
    return [f"{mean[f'inside_{level}']:.0%}" for level in (50, 80, 95)] + [f"{mean['factor']:.2f}"]


def _drawn(**keys: str) -> list[dict[str, str]]:
    """Lines of coverage.csv of what `restore` draws by itself."""
    found = (line for line in _lines("coverage.csv") if line["sampler"] == "default")
    return [line for line in found if all(line[key] == value for key, value in keys.items())]


def _mean(lines: list[dict[str, str]]) -> dict[str, float]:
    """Over maps; lines that are means themselves do not count."""
    single = [line for line in lines if not line["map"].startswith("mean")]
    names = ("inside_50", "inside_80", "inside_95", "factor", "variance", "error_map")
    return {name: sum(float(line[name]) for line in single) / len(single) for name in names}


def coverage() -> str:
    """How often the truth lies within the samples' intervals, by kind of data."""
    rows = []
    for row, name in DATA.items():
        mean = _mean(_drawn(row=row, scale="1.0"))
        rows.append([name, *_intervals(mean), f"{mean['variance']:.2f}"])
    return _table(["data", "50 %", "80 %", "95 %", "factor", "variance over squared error"], rows)


def coverage_by_scale() -> str:
    """The same by the scale that was told, over the true one, of the maps that were told several."""
    lines = _drawn(row="spectral 4.3A")
    maps = {line["map"] for line in lines if line["scale"] == "0.8"}
    rows = []
    for scale in sorted({line["scale"] for line in lines}, key=float):
        mean = _mean([line for line in lines if line["scale"] == scale and line["map"] in maps])
        rows.append([f"{float(scale):g}", *_intervals(mean), f"{mean['error_map']:.3f}"])
    return _table(["told over true", "50 %", "80 %", "95 %", "factor", "error of the map"], rows)


def release() -> str:
    """The data terms of the second release as they stand, and as they are meant."""
    rows = [[line["fault"], line["quantity"], line["release"], line["right"]] for line in _lines("release.csv")]
    return _table(["where", "what", "release", "right"], rows)


def gains() -> str:
    """The table of the first README."""
    sys.path.insert(0, str(BENCHMARKS))
    from _paper_tables import first_page

    return first_page(_lines("paper.csv"), _lines("paper_measured.csv"))


def tables() -> dict[str, str]:
    """By the name that a page calls it."""
    made = (coverage, coverage_by_scale, release, gains)
    return {function.__name__: function().strip() for function in made}


def written(text: str, tables: dict[str, str]) -> str:
    """A page with the tables that it asks for."""
    place = re.compile(r"<!-- (\w+) -->\n.*?\n<!-- end -->", re.DOTALL)
    return place.sub(lambda found: f"<!-- {found[1]} -->\n\n{tables[found[1]]}\n\n<!-- end -->", text)


def main() -> None:
    """Write what has changed."""
    made = tables()
    for page in Path(__file__).parent.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if (new := written(text, made)) != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
