"""The tables of ``paper.py`` in Markdown: ours, and the paper's rows beside them (``published.csv``)."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from _protocol import ANISOTROPIC, SPECTRAL, VOXEL, WEDGE_ROW, Score, Summary

TABLES = {1: SPECTRAL[:3], 5: SPECTRAL[3:], 2: ANISOTROPIC, 3: (WEDGE_ROW,), 8: SPECTRAL + ANISOTROPIC, 9: (WEDGE_ROW,)}
GRIDS = (8, 9)  # tables of settings
PUBLISHED = Path(__file__).with_name("published.csv")
EVALUATIONS = {1: "3998", 2: "3998", 3: "1000", 5: "3998"}  # of CryoFM in the paper, both halves
HEAD = """# The paper's tables

{n} maps, {box}³ voxels of {voxel} Å. Two halves are degraded, each is restored by itself, their average is compared
with the truth (of the wedge there is one map). The noise is estimated from the halves, α (the noise by direction) as
said, the scale is told. FR: no result, or an FSC_0.5 worse than 30 Å. Mean ± standard deviation over maps (n − 1),
failures excluded as in the paper, and included: what does not exist then has FSC_AUC 0 and the side of the box as
FSC_0.5. Wiener: the best filter per shell, told the truth's power. Evaluations of the network are of both halves,
seconds the median for both. The paper's 32 maps are others.
"""

Line = dict[str, str]


def with_sd(value: tuple[float, float], digits: int) -> str:
    """A mean and its standard deviation, as far as there are any."""
    mean, sd = value
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")


def published(table: int) -> list[Line]:
    """The paper's own rows."""
    with PUBLISHED.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["table"] == str(table)]


def number(text: str) -> float:
    """Of a cell that may be empty."""
    return float(text) if text else math.nan


def groups(lines: Sequence[Line], row: str) -> dict[tuple[str, str, str], list[Line]]:
    """The lines of a row, by method, what is known of direction, and prior."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if line["row"] == row:
            found.setdefault((line["method"], line["alpha"], line["prior"]), []).append(line)
    return found


def summary(group: Sequence[Line], box: int) -> Summary:
    """Of the lines of several maps."""
    names = [field.name for field in attrs.fields(Score)]
    return Summary.of([Score(**{name: float(line[name]) for name in names}) for line in group], box * VOXEL)


def table_of(table: int, lines: Sequence[Line], chosen: set[str], box: int) -> Iterator[str]:
    """Table 1, 2, 3 or 5 in Markdown: ours, and the paper's."""
    gap = table == 3
    columns = ["", "", "maps", "FR", "FSC_AUC", "FSC_0.5, Å", "failures included: FSC_AUC", "FSC_0.5, Å"]
    columns += [*(["FSC_AUC in the wedge"] if gap else []), "evaluations", "seconds"]
    yield f"## Table {table}\n"
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for row in TABLES[table]:
        first = row
        for (method, alpha, prior), group in groups(lines, row).items():
            if method.startswith("Alg.") and method not in chosen:
                continue  # of the other tables
            found = summary(group, box)
            name = ", ".join(part for part in (method, alpha and f"α {alpha}", prior) if part)
            cells = [
                first,
                name,
                str(found.n),
                f"{found.fail_rate:.2f}",
                with_sd(found.auc, 3),
                with_sd(found.fsc05, 2),
            ]
            cells += [with_sd(found.auc_of_all, 3), with_sd(found.fsc05_of_all, 2)]
            cells += [with_sd(found.auc_gap, 3)] if gap else []
            seconds = sorted(float(line["seconds"]) for line in group)[len(group) // 2]
            cells += [group[0]["evaluations"], f"{seconds:.0f}"] if prior else ["", ""]
            yield "| " + " | ".join(cells) + " |"
            first = ""
        for line in published(table):
            if line["row"] == row:
                pairs = [(number(line[key]), number(line[f"{key}_sd"])) for key in ("auc", "fsc05", "auc_gap")]
                auc, fsc05, inside = (
                    with_sd(pairs[0], 2 if line["auc_sd"] else 4),
                    with_sd(pairs[1], 2),
                    with_sd(pairs[2], 2),
                )
                cells = [first, f"*paper: {line['method']}*", "32", line["fr"], auc, fsc05, "", ""]
                cells += [inside] if gap else []
                evaluations = ("1000" if gap else "3998") if line["method"] == "CryoFM" else ""
                yield "| " + " | ".join([*cells, evaluations, ""]) + " |"
                first = ""


def grid_of(table: int, lines: Sequence[Line], box: int) -> Iterator[str]:
    """Table 8 or 9 in Markdown: FSC_AUC of ours, and the paper's after it."""
    rows, paper = TABLES[table], {(line["row"], line["method"]): line["auc"] for line in published(table)}
    of_rows = {row: groups(lines, row) for row in rows}
    kinds = dict.fromkeys((method, prior) for row in rows for method, _, prior in of_rows[row])
    wanted = [kind for kind in kinds if kind[0] == "degraded" or kind[0].startswith("Alg.")]
    yield f"## Table {table}\n"
    yield "FSC_AUC, failures excluded (how many of how many maps failed, where some did); in brackets the paper's.\n"
    yield "| | " + " | ".join(rows) + " |"
    yield "|---" * (len(rows) + 1) + "|"
    for method, prior in wanted:
        cells = []
        for row in rows:
            group = [line for (m, _, p), group in of_rows[row].items() if (m, p) == (method, prior) for line in group]
            if not group:
                cells.append("")
                continue
            found = summary(group, box)
            bad = sum(int(line["failed"]) for line in group)
            own = f"{found.auc[0]:.3f}" + (f", {bad}/{found.n} failed" if bad else "")
            cells.append(own + (f" ({paper[row, method]})" if (row, method) in paper else ""))
        yield f"| {method}{', ' + prior if prior else ''} | " + " | ".join(cells) + " |"


def report(lines: Sequence[Line], tables: Sequence[int], chosen: set[str], box: int) -> str:
    """All tables asked for; of the settings of Alg. 1 and 2 tables 1, 2, 3 and 5 have the chosen ones only."""
    lines = [line for line in lines if line["box"] == str(box)]
    parts = [HEAD.format(n=len({line["map"] for line in lines}), box=box, voxel=VOXEL)]
    for table in sorted(tables):
        text = grid_of(table, lines, box) if table in GRIDS else table_of(table, lines, chosen, box)
        parts.append("\n".join(text) + "\n")
    return "\n".join(parts)


NAMES = {  # of the rows, for who does not know the paper
    "spectral 3.2A": "noise level 3.2 Å",
    **{f"spectral {level}A": f"{level} Å" for level in ("4.3", "6.1", "8.5", "15")},
    "anisotropic ±45°": "noise strong beyond ±45° of tilt",
    "anisotropic ±30°": "beyond ±30°",
    "anisotropic ±15°": "beyond ±15°",
    WEDGE_ROW: "missing wedge, ±60°",
}


def first_page(simulated: Sequence[Line], measured: Sequence[Line]) -> str:
    """What the README of the repository shows: means of FSC_AUC, failures included, of maps of either kind."""

    def mean(lines: Sequence[Line], row: str, method: str) -> str:
        found = next(group for (m, a, _), group in groups(lines, row).items() if m == method and a in ("", "estimated"))
        return f"{summary(found, 64).auc_of_all[0]:.3f}".removeprefix("0")

    paper = {line["row"]: line["auc"] for t in (1, 2, 3, 5) for line in published(t) if line["method"] == "CryoFM"}
    rows = [
        "| | degraded | linear | **restored** | measured maps: linear | **restored** | the paper |",
        "|---" * 7 + "|",
    ]
    for row, name in NAMES.items():
        cells = [mean(simulated, row, method) for method in ("degraded", "Wiener", "default")]
        cells += [mean(measured, row, method) for method in ("Wiener", "default")]
        cells[2], cells[4] = f"**{cells[2]}**", f"**{cells[4]}**"
        rows.append(f"| {name} | {' | '.join(cells)} | {paper[row].removeprefix('0')} |")
    return "\n".join(rows) + "\n"
