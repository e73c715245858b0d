"""FSC curves as RELION's STAR files and as EMDB's XML."""

import os
from xml.etree import ElementTree

import numpy as np

from cryofm_io.atomic import atomic_write
from cryofm_io.fsc import FscCurve
from cryofm_io.masked_fsc import MaskedFsc

__all__ = ["write_fsc_star", "write_fsc_xml"]


def write_fsc_star(path: str | os.PathLike[str], curves: MaskedFsc, overwrite: bool = False) -> None:
    """Write what RELION's postprocessing calls ``data_fsc``: corrected, unmasked, masked and randomised curves.

    Args:
        path: The .star file; it appears only when complete.
        curves: All over the same shells.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> curve = FscCurve(np.array([0.1]), np.array([0.5]), np.array([18]))
        >>> write_fsc_star("fsc.star", MaskedFsc(curve, curve, curve, curve, 12.0))
        >>> from pathlib import Path
        >>> Path("fsc.star").read_text().splitlines()[-1].split()
        ['1', '0.100000', '10.000000', '0.500000', '0.500000', '0.500000', '0.500000']
    """
    columns = [
        "rlnSpectralIndex",
        "rlnResolution",
        "rlnAngstromResolution",
        "rlnFourierShellCorrelationCorrected",
        "rlnFourierShellCorrelationUnmaskedMaps",
        "rlnFourierShellCorrelationMaskedMaps",
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    ]
    parts = [
        np.nan_to_num(curve.correlation)
        for curve in (curves.corrected, curves.unmasked, curves.masked, curves.randomised)
    ]
    rows: list[tuple[float, ...]] = [(0, 0.0, 999.0, 1.0, 1.0, 1.0, 1.0)]  # frequency 0, as RELION has it
    for i, frequency in enumerate(curves.masked.frequency):
        rows.append((i + 1, float(frequency), float(1 / frequency), *(float(part[i]) for part in parts)))
    with atomic_write(path, overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("\ndata_fsc\n\nloop_\n")
        file.writelines(f"_{name} #{i + 1}\n" for i, name in enumerate(columns))
        file.writelines(f"{row[0]:12.0f} " + " ".join(f"{x:12.6f}" for x in row[1:]) + "\n" for row in rows)


def write_fsc_xml(path: str | os.PathLike[str], curve: FscCurve, title: str = "", overwrite: bool = False) -> None:
    """Write a curve in the form that EMDB takes.

    Args:
        path: The .xml file; it appears only when complete.
        curve: Its values; NaN becomes 0.
        title: What is compared.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> write_fsc_xml("fsc.xml", FscCurve(np.array([0.1]), np.array([0.5]), np.array([18])))
        >>> [point.text for point in ElementTree.parse("fsc.xml").iter() if point.tag in ("x", "y")]
        ['0.1', '0.5']
    """
    root = ElementTree.Element("fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient")
    for x, y in zip(curve.frequency, np.nan_to_num(curve.correlation), strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{x:.7g}"
        ElementTree.SubElement(point, "y").text = f"{y:.6g}"
    ElementTree.indent(root)
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as file:
        ElementTree.ElementTree(root).write(file, encoding="UTF-8", xml_declaration=True)
        file.write(b"\n")
