"""An entry of the EMDB as it is downloaded: its header, and which of its files are what.

A mirror has ``EMD-1234/header/emd-1234.xml``, ``map/emd_1234.map.gz``, ``other/emd_1234_half_map_1.map.gz`` and ``_2``,
``masks/emd_1234_msk_1.map``; a person may have them beside each other, unpacked, or some of them only.
"""

import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from cryofm_io.errors import InputFileError

__all__ = ["EmdbEntry", "EmdbHeader", "find_emdb_entry", "read_emdb_header"]

_HELICES = ("helicalArray", "filament")  # states of aggregation
_KIND = r"\.(map|mrc|ccp4)(\.gz)?"
_MAP, _MASK = re.compile(rf"emd_\d+{_KIND}"), re.compile(rf"emd_\d+_msk(_\d+)?{_KIND}")
_HALVES = [re.compile(rf"emd_\d+_half(_map)?_{k}{_KIND}") for k in (1, 2)]


@attrs.frozen
class EmdbHeader:
    """What a header of the EMDB's schema 3 says.

    Attributes:
        id: Such as EMD-1234.
        resolution: Å; None where it is not told, as is all that follows.
        contour: The level that its authors recommend.
        side: Of the longest side, Å.
        methods: Such as singleParticle.
        helical: Whether it has helical symmetry.
        map: Name of the file.
        half_maps: Names.
        masks: Names.
    """

    id: str
    resolution: float | None
    contour: float | None
    side: float | None
    methods: tuple[str, ...]
    helical: bool
    map: str
    half_maps: tuple[str, ...]
    masks: tuple[str, ...]


@attrs.frozen
class EmdbEntry:
    """Files of an entry that are there; the mask is that of the only one."""

    header: EmdbHeader | None
    map: Path | None
    half_maps: tuple[Path, Path] | None
    mask: Path | None


def read_emdb_header(path: str | os.PathLike[str]) -> EmdbHeader:
    """Read a header.

    Raises:
        InputFileError: It is no header of schema 3, or not of a released entry.

    Example:
        >>> with open("emd-1.xml", "w") as file:
        ...     _ = file.write("<emd emdb_id='EMD-1'><map><file>emd_1.map.gz</file></map></emd>")
        >>> read_emdb_header("emd-1.xml").map
        'emd_1.map.gz'
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError) as error:
        raise InputFileError(f"{path} cannot be read as XML ({error})") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # without a namespace
    if root.tag != "emd" or "emdb_id" not in root.attrib:
        raise InputFileError(f"{path} is no EMDB header of schema 3, but <{root.tag}>")
    status = _text(root, "admin/current_status/code")
    if status not in ("", "REL"):
        raise InputFileError(f"{path} is of an entry that is not released ({status})")
    methods = _texts(root, "structure_determination_list/*/method")
    states = _texts(root, "structure_determination_list/*/aggregation_state")
    helical = "helical" in methods or any(state in _HELICES for state in states)
    sides = [_number(_text(root, f"map/cell/{axis}")) for axis in "abc"]
    primary = _text(root, "map/contour_list/contour[@primary='true']/level")
    return EmdbHeader(
        id=root.attrib["emdb_id"],
        resolution=_number(_text(root, "structure_determination_list/*/*/final_reconstruction/resolution")),
        contour=_number(primary or _text(root, "map/contour_list/contour/level")),
        side=None if None in sides else max(side for side in sides if side is not None),
        methods=tuple(dict.fromkeys(methods)),
        helical=helical or next(root.iter("helical_parameters"), None) is not None,
        map=_text(root, "map/file"),
        half_maps=tuple(_texts(root, "interpretation/half_map_list/half_map/file", "interpretation/half_map_list/*")),
        masks=tuple(_texts(root, "interpretation/segmentation_list/segmentation/file")),
    )


def find_emdb_entry(folder: str | os.PathLike[str]) -> EmdbEntry:
    """Find the files of an entry in its folder and the folders in that, by the header's word or by their names.

    Raises:
        InputFileError: There is neither a map nor both half maps, there are several entries, or only one half is there.

    Example:
        >>> import os
        >>> os.makedirs("EMD-1/map")
        >>> open("EMD-1/map/emd_1.map.gz", "w").close()
        >>> find_emdb_entry("EMD-1").map.name
        'emd_1.map.gz'
    """
    folder = Path(folder)
    files = sorted(file for depth in ("*", "*/*") for file in folder.glob(depth) if file.is_file())
    header = _header(folder, [file for file in files if file.suffix.lower() == ".xml"])
    maps = _named(files, (header.map,) if header else (), _MAP)
    if len({_stem(file.name) for file in maps}) > 1:
        raise InputFileError(f"{folder} holds maps of several entries: {', '.join(file.name for file in maps)}")
    names = header.half_maps if header and len(header.half_maps) == 2 else ()
    halves = [_named(files, names[k : k + 1], _HALVES[k]) for k in range(2)]
    if bool(halves[0]) != bool(halves[1]):
        there = (halves[0] or halves[1])[0].name
        raise InputFileError(f"{folder} holds one half map, {there}, and not the other; fetch that, too")
    if not maps and not halves[0]:
        raise InputFileError(f"{folder}: a folder without maps of the EMDB (emd_1234.map.gz, …_half_map_1.map.gz)")
    masks = _named(files, header.masks if header else (), _MASK)
    return EmdbEntry(
        header=header,
        map=maps[0] if maps else None,
        half_maps=(halves[0][0], halves[1][0]) if halves[0] else None,
        mask=masks[0] if len(masks) == 1 else None,
    )


def _header(folder: Path, files: Sequence[Path]) -> EmdbHeader | None:
    """The first that can be read; older schemas lie beside it."""
    found: dict[str, EmdbHeader] = {}
    for file in files:
        try:
            header = read_emdb_header(file)
        except InputFileError:
            continue
        found.setdefault(header.id, header)
    if len(found) > 1:
        raise InputFileError(f"{folder} holds several entries: {', '.join(found)}; give the folder of one")
    return next(iter(found.values()), None)


def _named(files: Iterable[Path], names: Sequence[str], pattern: re.Pattern[str]) -> list[Path]:
    """Files of these names, unpacked or not; of such names, if none is there."""
    files = list(files)
    stems = {_stem(name) for name in names if name}
    told = [file for file in files if _stem(file.name) in stems]
    return told or [file for file in files if pattern.fullmatch(file.name.lower())]


def _stem(name: str) -> str:
    return name.lower().removesuffix(".gz")


def _text(root: ET.Element, path: str) -> str:
    return (root.findtext(path) or "").strip()


def _texts(root: ET.Element, *paths: str) -> list[str]:
    """Of all elements on the first of the paths that has some."""
    found = next((found for path in paths if (found := root.findall(path))), [])
    return [(element.text or "").strip() for element in found]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
