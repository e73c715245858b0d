"""Files that appear whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryofm_io.errors import OutputExistsError
from cryofm_io.in_use import partial_path, sweep_partials

__all__ = ["atomic_write"]

_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_swept: set[Path] = set()  # folders that this process has looked through


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; give the name of a file")
    if not path.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{path} exists; choose another name or allow overwriting (--overwrite)")
    if not path.is_file():
        raise OutputExistsError(f"{path} is no ordinary file (a device or a pipe); give the name of a file")
    # The rights say what the owner wants; root, and renaming in a folder, would pass by them.
    if not path.stat().st_mode & _ANY_WRITE or not os.access(path, os.W_OK):
        raise OutputExistsError(f"{path} is read-only; choose another name, or make it writable first")


def _target(path: Path) -> Path:
    """Where a symbolic link leads, so that the link stays; other paths as they are."""
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # which Python says it depends on its version
        raise OutputExistsError(f"{path} is a symbolic link that leads back to itself; remove it") from None


@contextmanager
def atomic_write(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Write a file beside its final place and rename it when it is complete.

    A file that is replaced keeps its permissions, and a symbolic link stays one: what it leads to is replaced.  What
    processes that were killed have left half-written in its folder is removed.

    Args:
        path: The final name; its folder is made if need be.
        overwrite: Whether an existing file may be replaced.

    Yields:
        An empty file in the same folder, with the same ending and the permissions of the final one, to be opened and
        written.  It is renamed to ``path`` at the end of the block, and removed if the block is left by any exception,
        Ctrl-C included.

    Raises:
        OutputExistsError: ``path`` exists and ``overwrite`` is false, or ``path`` is read-only, a folder or a device.

    Example:
        >>> with atomic_write("results/run.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> os.listdir("results")
        ['run.json']
    """
    path = _target(Path(path))
    _refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep_partials(path.parent)
    # Writers choose the format by the name's ending.  A file that is there already, or a link, is not opened.
    temporary = partial_path(path)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
    try:
        if mode is not None:
            temporary.chmod(mode)
        yield temporary
        _refuse_existing(path, overwrite)  # it may have appeared meanwhile
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
