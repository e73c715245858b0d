"""A folder of results that appear together or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryofm_io.errors import OutputExistsError

__all__ = ["output_folder", "refuse_to_lose"]


@contextmanager
def output_folder(
    folder: Path, names: Sequence[str], *, overwrite: bool = False, read: Iterable[Path] = (), former: str = r"(?!)"
) -> Iterator[Path]:
    """A temporary folder, whose files are moved to ``folder`` at the end, and dropped on any exception.

    What a former run has left in ``folder``, beside its ``run.json``, is removed then, so that nobody takes it for a
    part of this one.

    Args:
        folder: Where the results will be; made if need be.
        names: What will be written, as far as it is known.
        overwrite: Whether files that exist may be replaced.
        read: Files that must not be lost to the results.
        former: Regular expression of all names that a former run may have left.

    Yields:
        An empty folder on the same file system.

    Raises:
        OutputExistsError: Before the block, if a file of ``names`` exists and may not be replaced, one that is to be
            ``read`` would go, or ``folder`` cannot be written to; after it, if one has appeared meanwhile (the
            results are kept, and the message says where).

    Example:
        >>> with output_folder(Path("results"), ["run.json"]) as folder:
        ...     _ = (folder / "run.json").write_text("{}")
        >>> os.listdir("results")
        ['run.json']
    """
    folder = folder.resolve()
    existing = [name for name in names if (folder / name).exists()]
    if folders := [name for name in existing if (folder / name).is_dir()]:
        raise OutputExistsError(f"{', '.join(folders)} in {folder}: a folder; give another --out")
    if existing and not overwrite:
        raise OutputExistsError(f"{folder} has {', '.join(existing)} already; give --overwrite to replace")
    refuse_to_lose(read, [*_left_by(folder, former), *(folder / name for name in names)])
    # In the folder or what it will be made in: what lies beside a mount point is on another file system.
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise OutputExistsError(f"{place} is a file; give a folder")
    partial: Path | None
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place))
    except OSError as error:
        raise OutputExistsError(f"{place} cannot be written to ({error.strerror}); give another --out") from None
    try:
        yield partial
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and (appeared := [name for name in names if (folder / name).exists()]):
            kept, partial = partial, None
            raise OutputExistsError(f"{', '.join(appeared)} appeared in {folder} meanwhile; the results are in {kept}")
        left_over = {path.name for path in _left_by(folder, former)}
        for path in sorted(partial.iterdir()):
            os.replace(path, folder / path.name)
            left_over.discard(path.name)
        for name in left_over:
            (folder / name).unlink()
    finally:
        if partial is not None:
            shutil.rmtree(partial)


def refuse_to_lose(read: Iterable[Path], going: Sequence[Path]) -> None:
    """Refuse to replace what is still to be read.

    Args:
        read: Files that are to be read.
        going: Files that will be replaced or removed.

    Raises:
        OutputExistsError: One file is among both, be it by another name.

    Example:
        >>> refuse_to_lose([Path("half1.mrc")], [Path("restored.mrc")])
    """
    for path in read:
        if path.exists() and any(other.exists() and other.samefile(path) for other in going):
            raise OutputExistsError(f"{path} is read, and would be lost to the results; give another --out")


def _left_by(folder: Path, former: str) -> list[Path]:
    if not (folder / "run.json").is_file():
        return []
    return [path for path in folder.iterdir() if re.fullmatch(former, path.name) and not path.is_dir()]
