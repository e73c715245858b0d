"""A folder of results that appear together or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cryofm_io.errors import OutputExistsError
from cryofm_io.in_use import held_folder, left_by_the_dead, partial_path

__all__ = ["output_folder", "refuse_to_lose"]

_RECORD = "run.json"


@contextmanager
def output_folder(
    folder: Path, names: Sequence[str], *, overwrite: bool = False, read: Iterable[Path] = ()
) -> Iterator[Path]:
    """A temporary folder, whose files are moved to ``folder`` at the end, and dropped on any exception.

    ``run.json`` moves last: where it is, all the others are.  Who is killed while they move is made up for by the next
    call.  The results of a former run, which its ``run.json`` names in ``results_sha256``, are removed then, so that
    nobody takes them for a part of this one.  No other run has the folder meanwhile.

    Args:
        folder: Where the results will be; made if need be.
        names: What will be written, as far as it is known.
        overwrite: Whether files that exist may be replaced.
        read: Files that must not be lost to the results.

    Yields:
        An empty folder within ``folder``, and so on the same file system.

    Raises:
        InUseError: Before the block, if another run has the folder.
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
    with _made(folder), held_folder(folder):
        for whole in left_by_the_dead(folder, ".whole-"):
            _move(whole, folder)
        existing = [name for name in names if (folder / name).exists()]
        if folders := [name for name in existing if (folder / name).is_dir()]:
            raise OutputExistsError(f"{', '.join(folders)} in {folder}: a folder; give another --out")
        if existing and not overwrite:
            raise OutputExistsError(f"{folder} has {', '.join(existing)} already; give --overwrite to replace")
        refuse_to_lose(read, [*_left_by(folder), *(folder / name for name in names)])
        partial = partial_path(folder / "results")
        try:
            partial.mkdir()
            yield partial
            if not overwrite and (appeared := [name for name in names if (folder / name).exists()]):
                kept = folder / partial.name.removeprefix(".partial-")
                partial.rename(kept)
                raise OutputExistsError(
                    f"{', '.join(appeared)} appeared in {folder} meanwhile; the results are in {kept}"
                )
            whole = folder / partial.name.replace(".partial-", ".whole-", 1)
            _into_place(partial, whole, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, and those that it lies in; what was made for it is removed again if nothing came to lie there."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        raise OutputExistsError(f"{place} is a file; give a folder") from None
    except OSError as error:
        raise OutputExistsError(f"{folder} cannot be written to ({error.strerror}); give another --out") from None
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _into_place(partial: Path, whole: Path, folder: Path) -> None:
    """Move results in place, although Ctrl-C or a signal comes: all is computed, and half of it would be worse."""
    while True:
        try:
            if partial.exists():
                partial.rename(whole)
            if whole.exists():
                _move(whole, folder)
            return
        except KeyboardInterrupt:
            continue


def _move(whole: Path, folder: Path) -> None:
    """Move results in place; what is done twice does no harm, so that it can be done again."""
    names = sorted(os.listdir(whole), key=lambda name: (name == _RECORD, name))
    for path in _left_by(folder):
        if path.name not in names:
            path.unlink()
    if _RECORD in names:
        (folder / _RECORD).unlink(missing_ok=True)  # it tells of others
    for name in names:
        os.replace(whole / name, folder / name)
    whole.rmdir()


def _left_by(folder: Path) -> list[Path]:
    """What the record of a former run names, and that record; whatever else there is belongs to somebody."""
    record = folder / _RECORD
    try:
        named = list(json.loads(record.read_text(encoding="utf-8"))["results_sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        named = []
    paths = [record, *(folder / name for name in named if isinstance(name, str) and name == os.path.basename(name))]
    return [path for path in paths if path.is_file()]
