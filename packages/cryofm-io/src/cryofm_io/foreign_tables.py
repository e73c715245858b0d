"""Tables of particles that other programs write: refused by name, with what makes a STAR file of RELION of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryofm_io.errors import InputFileError

if TYPE_CHECKING:
    from cryofm_io.star_text import Block

__all__ = ["FOREIGN_COLUMNS", "refuse_foreign_columns", "refuse_foreign_file"]

_CISTEM = "cisTEM's; its wizard Export Refinement Package writes RELION's format too"
_M = (
    "M's; its angles are RELION's by another name: sed -E 's/wrpAngle(Rot|Tilt|Psi)1? /rlnAngle\\1 /; "
    "s/wrpSourceName/rlnMicrographName/' in.star > out.star"
)
_BY_ENDING = {
    ".par": "FREALIGN's or cisTEM's; pyem converts it: par2star.py --stack STACK --apix ANGSTROM in.par out.star",
    ".cistem": _CISTEM,
    ".tbl": "Dynamo's; dynamo2m converts it: dynamo2warp -i table.tbl -tm table_map.doc -o out.star",
    ".em": "a motive list; reliontomotools converts it: motl2relion in.em -o out.star -p ANGSTROM",
}
_BY_COLUMN = {"cisTEMAnglePsi": _CISTEM, "wrpAngleRot": _M, "wrpAngleRot1": _M}  # of one pose in time, or several
FOREIGN_COLUMNS = tuple(_BY_COLUMN)


def refuse_foreign_file(path: Path) -> None:
    """By the ending of its name.

    Raises:
        InputFileError: It is none of RELION's or cryoSPARC's.
    """
    if whose := _BY_ENDING.get(path.suffix.lower()):
        raise InputFileError(f"{path}: a table of particles of another program, {whose}")


def refuse_foreign_columns(path: Path, blocks: "Sequence[Block]") -> None:
    """By the names of its columns, where those of RELION are missing.

    Raises:
        InputFileError: They are another program's.
    """
    for column, whose in _BY_COLUMN.items():
        if any(block.column(column) for block in blocks):
            raise InputFileError(f"{path}: a table of particles of another program, {whose}")
