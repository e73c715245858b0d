"""The page itself, by the templates beside it, and back to what it says."""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryofm_io.atomic import atomic_write
from cryofm_io.errors import InputFileError, MissingExtraError
from cryofm_io.report.chimerax import chimerax_commands, model_commands
from cryofm_io.report.content import FORMAT, content_of
from cryofm_io.report.large import large_content
from cryofm_io.report.models import Pairs, models_content, views
from cryofm_io.report.others import likelihood_content, samples_content
from cryofm_io.report.run import Run, input_file

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["folder_content", "read_report", "render", "write_page", "write_report"]

_CONTENT = re.compile(r'<script type="application/json" id="content">(.*?)</script>', re.DOTALL)


def write_report(folder: str | os.PathLike[str], *, overwrite: bool = False, **known: Any) -> Path:
    """Leave ``report.html`` in a run's folder, and beside it ``open.cxc`` for ChimeraX.

    The page needs no other file and no network.  A run is a folder with ``run.json`` and ``restored.mrc``,
    ``model_01.mrc``, ``sample_01.mrc`` or ``likelihood.csv``; whatever else of `Run` lies there, or where ``run.json``
    says that the inputs lie, is taken in. Where inputs are gone, the content of the page that is there already is shown
    again.

    Args:
        folder: Of the run.
        overwrite: Whether files that exist may be replaced.
        known: Fields of `cryofm_io.report.run.Run` that need not be read, or lie nowhere, such as ``halves``; of models
            ``pairs``, the images and the best model's projections ``(K, y, x)``; of a map larger than memory
            ``measured``, the one or two `cryofm_io.MapOnDisk`; of likelihoods ``cubes``, the densities by name.

    Returns:
        The page.

    Raises:
        InputFileError: The folder is none of a run.
        MissingExtraError: jinja2 is not installed.
        OutputExistsError: The page exists and ``overwrite`` is false.
    """
    folder, page = Path(folder), Path(folder) / "report.html"
    environment()  # first what may be missing
    content = folder_content(folder, **known)
    write_page(page, content, overwrite=overwrite)
    files = [name for name in ("linear.mrc", "restored.mrc", "uncertainty.mrc") if (folder / name).is_file()]
    models = [name for one in content["volumes"] if (folder / (name := f"{one['name']}.mrc")).is_file()]
    if not files and not models:
        return page
    with atomic_write(folder / "open.cxc", overwrite) as temporary:
        commands = chimerax_commands(content, files) if files else model_commands(content, models)
        temporary.write_text(commands, encoding="utf-8")
    return page


def folder_content(folder: Path, *, pairs: Pairs | None = None, **known: Any) -> dict[str, Any]:
    """What a page of a folder says: of models, of samples, of likelihoods, or of a restored map."""
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def former() -> dict[str, Any] | None:
        page = folder / "report.html"
        return read_report(page) if page.is_file() else None

    def holds(name: str) -> bool:
        return bool(record) and (folder / name).is_file()

    if not record and (kept := former()) is not None:
        return kept  # of a script that only looks at maps
    if holds("model_01.mrc"):
        return models_content(folder, pairs, former())
    if holds("likelihood.csv"):
        return likelihood_content(folder, known.get("cubes"), None if "cubes" in known else former())
    if holds("restored.mrc") and "checked_voxels" in record:
        return large_content(folder, known.get("measured"), None if "measured" in known else former())
    if holds("sample_01.mrc") and not holds("restored.mrc"):
        return samples_content(folder)
    run = Run.of(folder, **known)
    if run.halves is None and run.observed is None and (kept := former()) is not None:
        return kept
    content, particles = content_of(run), record.get("settings", {}).get("particles")
    listed = None if particles is None else input_file(record, particles, folder)
    return content if listed is None else content | {"sphere": views(listed)}


def write_page(path: Path, content: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write content as a page."""
    text = render(content)
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # names of files may hold any bytes


def render(content: dict[str, Any]) -> str:
    """The page as text."""
    return environment().get_template("report.html").render(content, content=content)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a page says, without the maps that it was made of.

    Raises:
        InputFileError: The file is none of these pages.
    """
    try:
        found = _CONTENT.search(Path(path).read_text(encoding="utf-8"))
        content = json.loads(found[1]) if found else {}
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path} is no report of a run ({error}); make it again from the run's folder") from None
    if content.get("format") != FORMAT:
        raise InputFileError(f"{path} is no report of this version; make it again from the run's folder")
    return dict(content)


@cache  # templates are compiled once
def environment() -> "Environment":
    """Of the templates."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("reports need jinja2: pip install 'cryofm-io[report]'") from error
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["path"] = _path
    made.filters["area"] = _area
    made.filters["embedded"] = lambda content: json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return made


def _path(series: dict[str, Any], figure: dict[str, Any], width: float, height: float) -> str:
    """A line in a box of that size, as SVG has it; it is broken where a value is missing."""
    steps, pen = [], "M"
    for x, y in zip(series["x"], series["y"], strict=True):
        if x is None or y is None:
            pen = "M"
            continue
        steps.append(f"{pen}{_along(x, figure['xlim'], width):.1f} {height - _along(y, figure['ylim'], height):.1f}")
        pen = "L"
    return "".join(steps)


def _area(figure: dict[str, Any], width: float, height: float) -> str:
    """The band about 0."""
    x, y = figure["band"]["x"], figure["band"]["y"]
    both = {"x": [*x, *x[::-1]], "y": [*y, *(-value for value in y[::-1])]}
    return _path(both, figure, width, height) + "Z"


def _along(value: float, limits: list[float], length: float) -> float:
    return length * (value - limits[0]) / (limits[1] - limits[0])
