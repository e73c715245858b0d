"""Who has a folder of results: a lock while a process works there, and names that tell who made what is not whole yet.

The lock is one of the system (`flock`), which ends with the process that holds it, however that dies; the file tells
who it is. Where there are no such locks (Windows, some shared disks) runs are not kept apart.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryofm_io.errors import InUseError, OutputExistsError

__all__ = ["held_folder", "partial_path", "signals_wait", "sweep_partials"]

_HOLDER = re.compile(r"process \d{1,10} on [^\n]{1,255}\n")
_PARTIAL = re.compile(r"\.(?:partial|whole)-([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{16}(?:-.*)?", re.DOTALL)
_LONGEST = 40  # characters of the name that a temporary one repeats: names have a limit of 255 bytes


@contextmanager
def held_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs from a folder until the block is left, and remove what runs that died have left half-written.

    Raises:
        InUseError: Another run has it, which is named by the number of its process.
        OutputExistsError: Nothing can be written there, or a file of somebody else's is in the place of the lock.

    Example:
        >>> Path("results").mkdir()
        >>> with held_folder("results"):
        ...     os.listdir("results")
        ['.run.lock']
        >>> os.listdir("results")
        []
    """
    folder = Path(folder)
    if sys.platform == "win32":
        sweep_partials(folder)
        yield
        return
    lock = folder / ".run.lock"
    with signals_wait() as let_them_come:
        try:
            descriptor = _locked(lock, folder)
        except OSError as error:
            raise OutputExistsError(
                f"{folder} cannot be written to ({error.strerror}); choose another folder"
            ) from None
        try:
            let_them_come()
            sweep_partials(folder)
            yield
        finally:
            with signals_wait():
                sweep_partials(folder)  # of workers that were killed with this process
                lock.unlink(missing_ok=True)
                os.close(descriptor)


@contextmanager
def signals_wait() -> Iterator[Callable[[], None]]:
    """What Ctrl-C and the like raise comes at the end of the block, or when what is yielded is called.

    Blocking them would not do: another thread, of some library, takes them then, and the main one gets what they raise.
    """
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # others do not get it
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's
                before[number] = signal.signal(number, lambda number, _: came.append(number))

    def let_them_come() -> None:
        while before:
            signal.signal(*before.popitem())
        if came:
            signal.raise_signal(came.pop())

    try:
        yield let_them_come
    finally:
        let_them_come()


def partial_path(path: str | os.PathLike[str]) -> Path:
    """A name beside ``path``, for what is to be renamed to it when it is whole.

    Nobody can foresee it; it tells which process made it, for `sweep_partials`, and ends as ``path`` does.

    Example:
        >>> partial_path("results/map.mrc").name.endswith("-map.mrc")
        True
    """
    path = Path(path)
    return path.with_name(f".partial-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}-{path.name[-_LONGEST:]}")


def sweep_partials(folder: str | os.PathLike[str]) -> None:
    """Remove files and folders of the names that `partial_path` makes, whose processes, of this machine, live no more.

    Example:
        >>> sweep_partials(".")
    """
    with suppress(OSError):  # a folder that cannot be read has to be told where it is used
        for path in left_by_the_dead(Path(folder), ".partial-"):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def left_by_the_dead(folder: Path, kind: str) -> list[Path]:
    """What processes of this machine that live no more left in a folder, by name."""
    found = ((name, _PARTIAL.fullmatch(name)) for name in sorted(os.listdir(folder)) if name.startswith(kind))
    return [folder / name for name, match in found if match and match[1] == _machine() and not _lives(int(match[2]))]


def _locked(lock: Path, folder: Path) -> int:
    """The descriptor of the file `lock`, which is ours and no other process's."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            _lock(descriptor, lock, folder)
            with suppress(FileNotFoundError):  # who had it before may have removed it just now
                if os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(descriptor)):
                    os.ftruncate(descriptor, 0)
                    with suppress(OSError):  # of a full disk: whoever comes next is told less
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
        raise OutputExistsError(f"{lock} is no lock of a run, whose place it takes; move it elsewhere")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = there.strip() or "another process"
        raise InUseError(f"{folder} is in use by {who}; wait for its end, or choose another folder") from None
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
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
