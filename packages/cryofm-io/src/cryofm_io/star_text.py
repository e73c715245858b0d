"""The text of STAR files as RELION writes and reads it: by lines, blanks between values, quotes where need be.

CIF, from which STAR comes, is stricter: there a value cannot begin with ``data_``, ``$`` or ``#`` without quotes, and
RELION's often do. So a line of a loop with as many values as the loop has columns is a row, whatever it begins with.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from cryofm_io.errors import CryoFMError, InputFileError
from cryofm_io.foreign_tables import refuse_foreign_file

__all__ = ["Block", "quoted", "read_star", "tokens"]

_BLANKS = re.compile("[^ \t]+")
_ODD_SPACES = re.compile("[\x0b\x0c\x1c-\x1f]")  # blanks to str.split, and none to STAR
_NEEDS_QUOTES = re.compile(r"""^$|^[?.]$|^['"_#$\[\];]|[ \t]|^(data_|save_|loop_|global_|stop_)""", re.IGNORECASE)
_ENDS_QUOTE = {quote: re.compile(f"{quote}(?=[ \t]|$)") for quote in "'\""}
_ALLOWED_BYTES, _MOST_RATIO = 2**23, 12  # of compressed files: more is no table of images


@attrs.frozen
class Block:
    """One ``data_`` block: of the wanted columns the values by lower-case name; a pair is a column of one."""

    name: str
    columns: dict[str, list[str]] = attrs.field(factory=dict)

    def column(self, tag: str) -> list[str] | None:
        """The values of a column, whatever its capitals."""
        return self.columns.get(tag.lower())


def read_star(path: Path, wanted: Iterable[str]) -> list[Block]:
    """Read the wanted columns of a STAR file.

    It is UTF-8, with or without a mark; bytes that are not become lone surrogates, as in Python's names of files.

    Raises:
        InputFileError: Not a STAR file.
    """
    if not path.is_file():
        raise InputFileError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a STAR file")
    refuse_foreign_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"\x1f\x8b":
            limit = max(_ALLOWED_BYTES, _MOST_RATIO * path.stat().st_size)
            with gzip.open(path) as stream:
                content = stream.read(limit + 1)
            if len(content) > limit:
                raise InputFileError(f"{path}: a small file that unpacks to more than {limit} bytes; unpack it first")
            return _parse(path, io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", "\n"), wanted)
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as lines:
            return _parse(path, lines, wanted)
    except InputFileError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
        raise InputFileError(f"{path}: not a readable STAR file ({error})") from None


def _parse(path: Path, lines: Iterable[str], wanted: Iterable[str]) -> list[Block]:
    kept = {f"_{tag.lower()}" for tag in wanted}
    blocks: list[Block] = []
    tags: list[str] | None = None  # of the loop that is open
    store: list[tuple[int, list[str]]] = []  # where its wanted columns go
    has_rows = False
    for number, line, after_blank, following in _with_neighbours(lines):
        if not blocks or tags is None or not _is_row(line, len(tags), has_rows, after_blank, following):
            if line.startswith("#"):
                continue
            first = line.split(maxsplit=1)[0].lower()
            if first.startswith("data_"):
                blocks.append(Block(line[5:].strip().lower()))
                tags = None
            elif blocks and first == "loop_":
                tags, has_rows = [], False
            elif blocks and first.startswith("_") and tags is not None and not has_rows:
                tags.append(first)
            elif blocks and first.startswith("_"):
                tags = None
                if first in kept:
                    blocks[-1].columns[first[1:]] = tokens(line)[1:2]
            elif tags is not None and tags:
                count = len(tokens(line))
                message = f"line {number}: {count} values for {len(tags)} columns of data_{blocks[-1].name}"
                raise InputFileError(f"{path}: not a readable STAR file ({message})")
            elif not blocks or tags is not None:
                raise InputFileError(f"{path}: not a readable STAR file (line {number}: {line[:60]!r})")
            continue
        if not has_rows:
            has_rows = True
            store = [(i, []) for i, tag in enumerate(tags) if tag in kept]
            names = [*blocks[-1].columns, *(tags[i][1:] for i, _ in store)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                said = f"line {number}: data_{blocks[-1].name} has {twice} twice"
                raise InputFileError(f"{path}: not a readable STAR file ({said})")
            blocks[-1].columns.update({tags[i][1:]: values for i, values in store})
        cells = tokens(line)
        for i, values in store:
            values.append(cells[i])
    return blocks


def _with_neighbours(lines: Iterable[str]) -> Iterator[tuple[int, str, bool, str]]:
    """Number and text of each line that is not blank, whether one that is came before, and the line that follows."""
    previous: tuple[int, str, bool] | None = None
    blank = False
    for number, raw in enumerate(lines, 1):
        line = raw.strip(" \t\r\n")
        if not line:
            blank = True
            continue
        if previous is not None:
            yield *previous, line
        previous, blank = (number, line, blank), False
    if previous is not None:
        yield *previous, ""


def _is_row(line: str, columns: int, has_rows: bool, after_blank: bool, following: str) -> bool:
    if not columns:
        return False
    first = line[:7].lower()
    if first[0] not in "#_dl":  # the rest is costly
        return len(tokens(line)) == columns or _before_comment(line, columns)
    if first.startswith("#") and (after_blank or first[1:2] in ("", " ", "\t")):
        return False
    cells = tokens(line)
    if len(cells) != columns and not _before_comment(line, columns):
        return False
    if first.startswith("_"):  # otherwise a name of a column, or of a pair after the loop
        return columns > 1 and (not after_blank if has_rows else not cells[1].startswith("#"))
    if columns == 1 and first.startswith("loop_"):
        return False
    if columns == 1 and first.startswith("data_"):  # the next block, where its columns follow
        return not after_blank and not following.lower().startswith(("loop_", "_", "#"))
    return True


def _before_comment(line: str, columns: int) -> bool:
    cells = tokens(line)
    return len(cells) > columns and cells[columns].startswith("#")


def tokens(line: str) -> list[str]:
    """The values of a line; a quote ends where a blank follows, and without such an end it is part of the value.

    Example:
        >>> tokens("'a b' it's \\t'tis 5")
        ['a b', "it's", "'tis", '5']
    """
    if "'" not in line and '"' not in line:
        if line.isascii() and not _ODD_SPACES.search(line):
            return line.split()
        return _BLANKS.findall(line)
    found = []
    at, without_end = 0, set()
    while word := _BLANKS.search(line, at):
        start, at = word.span()
        quote = line[start]
        if quote in _ENDS_QUOTE and quote not in without_end:
            end = _ENDS_QUOTE[quote].search(line, start + 1)
            if end:
                at = end.end()
                found.append(line[start + 1 : end.start()])
                continue
            without_end.add(quote)  # nor is there one farther on
        found.append(word.group())
    return found


def quoted(value: str) -> str:
    """A value as it stands in a line, in quotes if need be.

    Raises:
        CryoFMError: No line of a STAR file can hold it.

    Example:
        >>> quoted("000001@a b.mrcs"), quoted("it's"), quoted("data_1")
        ("'000001@a b.mrcs'", "it's", "'data_1'")
    """
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CryoFMError(f"{value!r} is no text that a STAR file can hold; rename the file") from None
    if not _NEEDS_QUOTES.search(value) and "\n" not in value and "\r" not in value:
        return value
    for quote in "'\"":
        if tokens(f"{quote}{value}{quote}") == [value] and "\n" not in value and "\r" not in value:
            return f"{quote}{value}{quote}"
    raise CryoFMError(f"{value!r} cannot stand in a STAR file, which knows no way to quote it; rename the file")
