"""One self-contained page of what a run gave (extra ``[report]``), and commands for ChimeraX beside it.

``run`` gathers what there is, ``content`` makes numbers and figures of it, ``volumes`` packs maps as bytes, ``page``
writes the HTML by the templates beside it, ``chimerax`` the commands. A page holds its content as JSON: it can be made
again, or set beside another (``compare``), without the maps.
"""

from cryofm_io.report.page import read_report, render, write_report
from cryofm_io.report.tools import halves_content, inspection_content, mask_content, model_content, scores_content

__all__ = [
    "halves_content",
    "inspection_content",
    "mask_content",
    "model_content",
    "read_report",
    "render",
    "scores_content",
    "write_report",
]
