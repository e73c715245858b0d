"""One job for each of many files, in several processes; one that fails is named, and the others go on."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from _streams import bar

from cryofm_io import CryoFMError
from cryofm_io.in_use import signals_wait as undisturbed

Item = TypeVar("Item")
ENDS = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if sys.platform != "win32" else set())


def failures(
    job: Callable[[Item], str], items: Sequence[Item], processes: int, *, strict: bool, unit: str
) -> list[str]:
    """Do a job for every item; what went wrong, each by one line.

    Args:
        job: Returns what went wrong, or nothing.
        items: One after the other, as far as there are processes.
        processes: Their number.
        strict: Whether to stop at the first that fails.
        unit: Of an item, for the progress.

    Raises:
        CryoFMError: One failed, and ``strict``.
        OSError: The disk is full, which no other item would mend.
    """
    failed, died = [], []

    def done(item: Item, future: "Future[str]") -> None:
        try:
            if said := future.result():
                failed.append(said)
        except BrokenProcessPool:
            died.append(item)
        shown.update()
        if strict and failed:
            raise CryoFMError(failed[0])

    with bar(total=len(items), unit=unit) as shown:
        with pool(processes) as several:
            with undisturbed():  # what a signal raises while a process forks, Python may drop without a word
                futures = {several.submit(job, item): item for item in items}
            for future in as_completed(futures):
                done(futures[future], future)
        shown.update(-len(died))
        for item in died[:]:  # one of them ended the pool of all
            died.clear()
            with pool(1) as one:
                with undisturbed():
                    future = one.submit(job, item)
                done(item, future)
            if died:
                failed.append(f"{named(item)}: its process died, perhaps of too little memory")
                if strict:
                    raise CryoFMError(failed[-1])
    return failed


def named(item: object) -> str:
    """In a line."""
    return " ".join(map(str, item)) if isinstance(item, tuple) else str(item)


@contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and drop what is not begun when something fails."""
    # Of the other ways only spawning, which imports everything anew, makes this process the parent of its workers.
    how = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    executor = ProcessPoolExecutor(processes, how, initializer=_end_with, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    for number in ENDS:  # the parent speaks for all
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
