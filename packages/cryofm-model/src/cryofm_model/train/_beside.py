"""What lies in the folder of a run while a process has it: a lock, and the next checkpoint until it is whole.

The lock is one of the system (`flock`), which ends with the process that holds it, however that dies; the file tells
who it is. Where there are no such locks (Windows, some shared disks) runs are not kept apart.
"""

import os
import re
import secrets
import shutil
import socket
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryofm_model.errors import CryoFMError

__all__ = ["held", "new_partial", "sweep"]

_HOLDER = re.compile(r"process \d{1,10} on [^\n]{1,255}\n")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs from the folder of a run until the block is left.

    Raises:
        CryoFMError: another run has it, which is named by the number of its process, or nothing can be written there.
    """
    if sys.platform == "win32":
        yield
        return
    lock = folder / ".run.lock"
    try:
        descriptor = _locked(lock, folder)
    except OSError as error:
        raise CryoFMError(f"{folder} cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def new_partial(folder: Path) -> Path:
    """A folder in that of the run, with a name that nobody can foresee and that tells which process made it."""
    partial = folder / f".checkpoint.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.partial"
    partial.mkdir()
    return partial


def sweep(folder: Path) -> None:
    """Remove the folders of `new_partial` whose processes, of this machine, live no more; ``folder`` is held."""
    ours = re.compile(rf"\.checkpoint\.{_machine()}-(\d{{1,10}})-[0-9a-f]{{16}}\.partial")
    for name in os.listdir(folder):
        if (found := ours.fullmatch(name)) and not _lives(int(found[1])):
            shutil.rmtree(folder / name, ignore_errors=True)


def _locked(lock: Path, folder: Path) -> int:
    """The descriptor of the file `lock`, which is ours and no other process's."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            _lock(descriptor, lock, folder)
            with suppress(FileNotFoundError):  # who had it before may have removed it just now
                if os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(descriptor)):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, lock: Path, folder: Path) -> None:
    import fcntl  # which Windows has not, where nothing is locked

    there = os.pread(descriptor, 400, 0).decode(errors="replace") if _is_file(descriptor) else "?"
    if there and not _HOLDER.fullmatch(there):
        raise CryoFMError(f"{lock} is no lock of a run, whose place it takes; move it elsewhere")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = there.strip() or "another process"
        raise CryoFMError(f"{folder} is in use by {who}; wait for its end, or choose another folder") from None
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
