"""Two runs in one page."""

from typing import Any

from cryofm_io.errors import InputFileError
from cryofm_io.report.figures import of_resolution

__all__ = ["compared"]


def compared(first: dict[str, Any], second: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The content of a page that sets two side by side, the numbers of both, their curves and their maps.

    Raises:
        InputFileError: One of them restored no map.
    """
    if any("restored" not in [volume["name"] for volume in one["volumes"]] for one in (first, second)):
        raise InputFileError("models, samples and likelihoods are not compared; give two runs that restored a map")
    both = list(zip(names, (first, second), strict=True))
    told = [{number["label"]: number for number in [*one["numbers"], *one["more_numbers"]]} for one in (first, second)]
    rows = [
        [label, *(one.get(label, {}).get("value", "") for one in told), (told[0] | told[1])[label]["note"]]
        for label in told[0] | told[1]
    ]
    same = all(first["grid"][key] == second["grid"][key] for key in ("shape", "voxel_size", "position"))
    volumes = [volume | {"name": f"{volume['name']} · {name}"} for name, one in both for volume in one["volumes"]]
    if not same:
        volumes = [volume | {"name": f"{volume['name']} · {names[0]}"} for volume in first["volumes"]]
    keep = [volume for volume in volumes if volume["name"].split(" · ")[0] in ("restored", "uncertainty")]
    if same:
        before = [volume for volume in volumes if volume["name"].split(" · ")[0] in ("linear", "input")]
        keep.insert(0, max(before, key=lambda volume: volume["name"].startswith("linear")))
    warnings = [f"{name}: {warning}" for name, one in both for warning in one["warnings"]]
    if not same:
        warnings.insert(0, f"The runs lie on different grids: only the maps of {names[0]} are shown.")
    return first | {
        "title": " and ".join(names),
        "verdict": " ".join(f"{name}: {one['verdict']}" for name, one in both),
        "trusted": False if False in (first["trusted"], second["trusted"]) else first["trusted"] and second["trusted"],
        "numbers": [],
        "more_numbers": [],
        "comparison": {"names": names, "rows": rows},
        "warnings": warnings,
        "scores": [],
        "sphere": None,
        "pairs": None,
        "figures": _figures(both),
        "places": None,
        "volumes": keep,
        "provenance": {
            "rows": [[f"{name}: {label}", value] for name, one in both for label, value in one["provenance"]["rows"]],
            "repeat": None,
        },
    }


def _figures(both: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Those that both have, in one, with the limits of both."""
    (_, first), (_, second) = both
    others = {figure["name"]: figure for figure in second["figures"]}
    figures = []
    for figure in first["figures"]:
        other = others.get(figure["name"])
        if other is None:
            continue
        pairs = list(zip((name for name, _ in both), (figure, other), strict=True))
        series = [
            one | {"label": f"{one['label']} · {name}", "dashed": name == both[1][0]}
            for name, made in pairs
            for one in made["series"]
        ]
        xlim, ylim = (
            [min(figure[key][0], other[key][0]), max(figure[key][1], other[key][1])] for key in ("xlim", "ylim")
        )
        ticks = figure["xticks"]
        if figure["xlabel"].startswith("resolution"):
            squared = figure["name"] == "wilson"
            ticks = of_resolution(xlim[1] ** 0.5 if squared else xlim[1], squared=squared)
        figures.append(figure | {"series": series, "xlim": xlim, "ylim": ylim, "xticks": ticks})
    return figures
