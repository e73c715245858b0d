"""The page of a script that only looks at maps: where --report says, or in its folder."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _record import cost, named_files, provenance

from cryofm_io import atomic_write, output_folder

MOST = 20  # files of a kind that a page lists
Show = Callable[..., None]  # a content of cryofm_io.report's, and all its arguments but the first


@contextmanager
def page(path: Path | None, args: argparse.Namespace, *, overwrite: bool = False) -> Iterator[Show]:
    """Something to call with what the page shows; at once refused where it exists; nothing where there is no path."""
    if path is None:
        yield lambda content, *parts: None
        return
    from cryofm_io.report import render

    line = {name: value for name, value in vars(args).items() if name not in ("out", "report")}
    many = {
        name: f"{len(value)} files" for name, value in line.items() if isinstance(value, list) and len(value) > MOST
    }
    read = argparse.Namespace(**line | many)
    with atomic_write(path, overwrite) as temporary:

        def show(content: Callable[..., dict[str, Any]], *parts: Any) -> None:
            text = render(content(provenance(read) | {"took": cost()}, *parts))
            temporary.write_text(text, encoding="utf-8", errors="replace")  # names of files may hold any bytes

        yield show


@contextmanager
def folder_with_page(args: argparse.Namespace, names: list[str]) -> Iterator[tuple[Path, Show]]:
    """The folder of the command line for files of those names and their page, which appear together; and its `page`."""
    results = output_folder(args.out, [*names, "report.html"], overwrite=args.overwrite, read=named_files(args))
    with results as folder, page(folder / "report.html", args) as show:
        yield folder, show
