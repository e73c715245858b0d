"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryofm_io.errors import OutputExistsError

__all__ = ["atomic_write"]


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; choose another name or allow overwriting (--overwrite)")


@contextmanager
def atomic_write(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Write a file beside its final place and rename it when it is complete.

    Args:
        path: The final name; its folder is made if need be.
        overwrite: Whether an existing file may be replaced.

    Yields:
        A path in the same folder, with the same ending, that does not exist yet.  It is renamed to
        ``path`` at the end of the block, and removed if the block is left by any exception, Ctrl-C included.

    Raises:
        OutputExistsError: ``path`` exists and ``overwrite`` is false, or ``path`` is a folder.

    Example:
        >>> with atomic_write("results/run.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> os.listdir("results")
        ['run.json']
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The token goes in front: writers choose the format by the name's ending.  The file itself is left to
    # the caller to create, so that it gets the permissions of an ordinary new file.
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _refuse_existing(path, overwrite)  # it may have appeared meanwhile
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
