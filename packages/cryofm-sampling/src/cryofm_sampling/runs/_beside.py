"""What lies beside a checkpoint while a run has it: a lock, and the next state until it is whole.

The lock is one of the system (`flock`), which ends with the process that holds it, however that dies; the file tells
who it is. Where there are no such locks (Windows, some shared disks) runs are not kept apart.
"""

import os
import re
import secrets
import socket
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryofm_sampling.errors import CheckpointError

__all__ = ["held", "partial_of", "sweep", "write_whole"]

_HOLDER = re.compile(r"process \d{1,10} on [^\n]{1,255}\n")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs from the file `path` until the block is left.

    Raises `CheckpointError` where another run has it, with the number of its process, or where nothing can be written.
    """
    if sys.platform == "win32":
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = _locked(lock, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def partial_of(path: Path) -> Path:
    """A name beside `path` that nobody can foresee and that tells which process will write there."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.partial")


def write_whole(path: Path, content: bytes) -> None:
    """Write beside `path` and rename; a file or a link that is there already is not opened."""
    partial = partial_of(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(path: Path) -> None:
    """Remove what processes of this machine that live no more left of `path`, which the caller holds."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}-(\d{{1,10}})-[0-9a-f]{{16}}\.partial")
    for name in os.listdir(path.parent):
        if (found := ours.fullmatch(name)) and not _lives(int(found[1])):
            path.with_name(name).unlink(missing_ok=True)


def _locked(lock: Path, path: Path) -> int:
    """The descriptor of the file `lock`, which is ours and no other process's."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            _lock(descriptor, lock, path)
            with suppress(FileNotFoundError):  # who had it before may have removed it just now
                if os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(descriptor)):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, lock: Path, path: Path) -> None:
    import fcntl  # which Windows has not, where nothing is locked

    there = os.pread(descriptor, 400, 0).decode(errors="replace") if _is_file(descriptor) else "?"
    if there and not _HOLDER.fullmatch(there):
        raise CheckpointError(f"{lock} is no lock of a run, whose place it takes; move it elsewhere")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = there.strip() or "another process"
        raise CheckpointError(f"{path} is in use by {who}; wait for its end, or choose another file") from None
    except OSError:
        pass  # a disk without locks


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _lives(process: int) -> bool:
    """Whether another process of that number is there, or may be."""
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return True
    if process == os.getpid():  # whose state the caller would know
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
