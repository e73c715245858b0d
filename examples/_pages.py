"""The page of a script that only looks at maps: where --report says, or in its folder."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryofm_io import atomic_write

Show = Callable[..., None]  # a content of cryofm_io.report's, and all its arguments but the first


@contextmanager
def page(path: Path | None, args: argparse.Namespace, *, overwrite: bool = False) -> Iterator[Show]:
    """Something to call with what the page shows; at once refused where it exists; nothing where there is no path."""
    if path is None:
        yield lambda content, *parts: None
        return
    from _record import cost, provenance

    from cryofm_io.report import render

    read = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in ("out", "report")})
    with atomic_write(path, overwrite) as temporary:

        def show(content: Callable[..., dict[str, Any]], *parts: Any) -> None:
            text = render(content(provenance(read) | {"took": cost()}, *parts))
            temporary.write_text(text, encoding="utf-8", errors="replace")  # names of files may hold any bytes

        yield show
