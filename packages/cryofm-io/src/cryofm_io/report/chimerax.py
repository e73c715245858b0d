"""Commands for ChimeraX, as its documentation has them (volume, color sample, marker, view)."""

from typing import Any

__all__ = ["chimerax_commands", "model_commands"]

_PLACES = 10


def chimerax_commands(content: dict[str, Any], files: list[str]) -> str:
    """A file that opens the maps of a run at one contour and looks at what changed.

    Args:
        content: Of the report.
        files: Of the maps in the same folder, the restored one among them.
    """
    number = {name: i + 1 for i, name in enumerate(files)}
    restored, linear, spread = (number.get(f"{name}.mrc") for name in ("restored", "linear", "uncertainty"))
    lines = [
        "# Open with ChimeraX. Written by the commands' documentation; it was not run when it was made.",
        "# It has to lie beside the maps that it opens: ChimeraX takes file names from where this file is.",
        *(f"open {name}" for name in files),
        "set bgColor white",
        "lighting soft",
        *(f"volume #{i} style surface step 1 level {content['level']:.6g}" for i in (linear, restored) if i),
    ]
    if linear:
        lines += [f"volume #{linear} color #8f9bb3 transparency 0.6"]
    if restored:
        lines += [f"volume #{restored} color #d9a441"]
    if restored and spread:
        highest = next(volume["high"] for volume in content["volumes"] if volume["name"] == "uncertainty")
        lines += [
            f"hide #{spread} models",
            "# where it is red, the maps that the data allow differ: there the map is the prior's word",
            f"color sample #{restored} map #{spread} palette 0,#2c7bb6:{highest / 2:.6g},#ffffbf:{highest:.6g},#d7191c",
        ]
    marker = len(files) + 1
    places = (content["places"] or [])[:_PLACES]
    if places:
        lines += ["# what changed beyond the noise, the largest first: green came, magenta went"]
    for place in places:
        position = ",".join(f"{x:.2f}" for x in place["position"])
        color = "#2ca02c" if place["z"] > 0 else "#c2399e"
        lines += [f"marker #{marker} position {position} radius 1.2 color {color}"]
    lines += [f"view #{marker if places else restored}"]
    return "\n".join(lines) + "\n"


def model_commands(content: dict[str, Any], files: list[str]) -> str:
    """A file that opens models side by side, at one contour."""
    lines = [
        "# Open with ChimeraX. Written by the commands' documentation; it was not run when it was made.",
        "# It has to lie beside the maps that it opens: ChimeraX takes file names from where this file is.",
        *(f"open {name}" for name in files),
        "set bgColor white",
        "lighting soft",
        *(f"volume #{i + 1} style surface step 1 level {content['level']:.6g}" for i in range(len(files))),
        "tile",
        "view",
    ]
    return "\n".join(lines) + "\n"
