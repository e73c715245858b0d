"""What the scripts say: on streams that may die, and of how far they are."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tqdm import tqdm

A_MINUTE = 60.0


class Outlived(io.TextIOBase):
    """A stream that the work outlives: when nobody reads it any more, or its disk is full, what is said is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that has no Å

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether somebody looks on."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write it, if that can be."""
        with self._or_silent():
            self._stream.write(text)
            if "\n" in text:
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with self._or_silent():
            self._stream.flush()

    @contextmanager
    def _or_silent(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # what is left in its buffer has to go somewhere at the end
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def outlived_streams() -> Iterator[None]:
    """Standard output and errors that may die."""
    with open(os.devnull, "w") as nowhere:  # for one that was closed before
        out, errors = (Outlived(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(errors):
            yield


class Lines(tqdm):  # type: ignore[misc]
    """One line a minute, for log files."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.said = time.monotonic()
        super().__init__(*args, **options, mininterval=A_MINUTE, miniters=1)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Say how far it is, if a minute has gone by."""
        if msg is None and time.monotonic() - self.said >= A_MINUTE:
            self.said = time.monotonic()
            print(str(self).strip(), file=sys.stderr)


def bar(*args: Any, **options: Any) -> "tqdm[Any]":
    """How far something is, as `tqdm` shows it to who looks on."""
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(*args, file=sys.stderr, leave=False, **options)
