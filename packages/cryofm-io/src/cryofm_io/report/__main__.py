"""``python -m cryofm_io.report RUN_FOLDER`` makes the page again; ``--compare RUN1 RUN2`` sets runs side by side."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cryofm_io.errors import CryoFMError
from cryofm_io.report.compare import compared
from cryofm_io.report.page import folder_content, read_report, write_page, write_report


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 for what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m cryofm_io.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that a script left")
    parser.add_argument("--compare", action="store_true", help="two runs side by side, in one page")
    page = "the page to write (default report.html in the run's folder, compare.html here)"
    parser.add_argument("--out", type=Path, help=page)
    args = parser.parse_args(arguments)
    if args.compare != (len(args.runs) == 2) or len(args.runs) > 2:
        parser.error("give one run, or --compare and two")
    try:
        if args.compare:
            path = args.out or Path("compare.html")
            first, second = (_content(run) for run in args.runs)
            write_page(path, compared(first, second, [str(run) for run in args.runs]), overwrite=True)
        elif args.out:
            path = args.out
            write_page(path, _content(args.runs[0]), overwrite=True)
        else:
            path = write_report(args.runs[0], overwrite=True)
    except (CryoFMError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _content(run: Path) -> dict[str, Any]:
    page = run if run.is_file() else run / "report.html"
    return read_report(page) if page.is_file() else folder_content(run)


if __name__ == "__main__":
    sys.exit(main())
