"""Which maps of the EMDB are fit to train on (paper, section 4.1)."""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from cryofm_model.errors import CryoFMError

__all__ = ["Curation", "curated"]

_RESOLUTION = 3.0  # Å; must be better
_SIDE = 576.0  # Å; at most
_COLUMNS = ("id", "resolution", "method", "side", "half_maps", "helical")
_YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@attrs.frozen
class Curation:
    """What `curated` decided.

    Attributes:
        accepted: ids, in the order of the list.
        refused: ids, and why each was refused.
    """

    accepted: tuple[str, ...]
    refused: Mapping[str, str]

    def choose(self, paths: Sequence[Path]) -> list[Path]:
        """The files of accepted maps: ``emd_1234.map.gz`` and ``EMD-1234.mrc`` are both those of EMD-1234.

        Raises:
            CryoFMError: none of the files is one.

        Warns:
            UserWarning: accepted maps have no file.
        """
        files = {_plain(path.name.split(".")[0]): path for path in paths}
        chosen = [files[_plain(id)] for id in self.accepted if _plain(id) in files]
        missing = [id for id in self.accepted if _plain(id) not in files]
        if not chosen:
            raise CryoFMError(
                f"none of the {len(paths)} files is one of the {len(self.accepted)} accepted maps; name the files "
                "after their ids, as emd_1234.map.gz"
            )
        if missing:
            several = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
            warnings.warn(f"no file for {len(missing)} of {len(self.accepted)} accepted maps: {several}", stacklevel=2)
        return chosen


def curated(path: Path) -> Curation:
    """Apply the paper's limits to a list of maps.

    Accepted is what has a resolution better than 3.0 Å, comes from single-particle analysis, has half maps (so that
    the resolution is that of a gold-standard FSC), is not helical, and has no side above 576 Å. The paper's authors
    also left out what looked wrong to the eye: delete those lines.

    Args:
        path: CSV with the columns id, resolution (Å), method, side (the longest, Å), half_maps and helical (yes or
            no), in any order; others are ignored.

    Raises:
        CryoFMError: the file cannot be read, a column is missing, it has no lines, or an id is there twice.

    >>> import tempfile
    >>> list = Path(tempfile.mkdtemp(), "maps.csv")
    >>> _ = list.write_text("id,resolution,method,side,half_maps,helical\\n"
    ...                     "EMD-1,2.8,single particle,300,yes,no\\nEMD-2,3.4,single particle,300,yes,no\\n")
    >>> curated(list)
    Curation(accepted=('EMD-1',), refused={'EMD-2': 'resolution 3.4 Å is not better than 3 Å'})
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="")
            columns, rows = list(table.fieldnames or []), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CryoFMError(f"{path} is no readable CSV file ({error}); give a list of maps") from None
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise CryoFMError(f"{path} lacks the columns {', '.join(missing)}; it has {_line(columns) or 'none'}")
    if not rows:
        raise CryoFMError(f"{path} lists no maps")
    twice = [id for id, count in Counter(row["id"].strip() for row in rows).items() if count > 1]
    if twice:
        raise CryoFMError(f"{path} lists {_line(twice)} more than once; leave one line of each")
    reasons = {row["id"].strip(): _reason(row) for row in rows}
    return Curation(
        tuple(id for id, reason in reasons.items() if not reason),
        {id: reason for id, reason in reasons.items() if reason},
    )


def _reason(row: Mapping[str, str]) -> str:
    """Why a map is refused; nothing if it is not."""
    values = {column: row[column].strip() for column in _COLUMNS}
    try:
        resolution, side = float(values["resolution"]), float(values["side"])
        half_maps, helical = (_YES_NO[values[column].lower()] for column in ("half_maps", "helical"))
    except (ValueError, KeyError):
        return "not understood: " + ", ".join(
            f"{column} {values[column]!r}" for column in ("resolution", "side", "half_maps", "helical")
        )
    if not 0 < resolution < _RESOLUTION:
        return f"resolution {resolution:g} Å is not better than {_RESOLUTION:g} Å"
    if _plain(values["method"]) != "singleparticle":
        return f"method {values['method']!r} is not single particle"
    if not half_maps:
        return "there are no half maps"
    if helical:
        return "helical"
    if not 0 < side <= _SIDE:
        return f"side {side:g} Å is not within {_SIDE:g} Å"
    return ""


def _line(names: Sequence[str]) -> str:
    """Names, however long and of however many lines, on one line."""
    line = ", ".join(" ".join(name.split()) for name in names)
    return line if len(line) < 200 else f"{line[:200]} ..."


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())
