"""One self-contained page of what a run gave (extra ``[report]``), and commands for ChimeraX beside it.

``run`` gathers what there is, ``content`` makes numbers and figures of it, ``volumes`` packs maps as bytes, ``page``
writes the HTML by the templates beside it, ``chimerax`` the commands. A page holds its content as JSON: it can be made
again, or set beside another (``compare``), without the maps.

Why the surface is ours, 140 lines at the end of ``templates/viewer.js`` and 8 kB of a page (weighed in November 2026;
MB as a page would hold them, deflated, and packages that ``pip`` would install): the maps are in the page for their
slices anyhow, and a graphics processor finds any level of them at once, coloured by any other map. K3D 3.2 (MIT, 1.1
MB, 27 packages, IPython among them) can do the same, and was tried: 0.7 to 1.1 s for each level of 100³ voxels on two
busy cores, by a JavaScript interface that is not documented, in pages of which most have less than 0.4 MB in all.
Plotly 7.1 (MIT, 2.0 MB, 3 packages) takes a mesh for each level and map, of 1.1 to 1.8 MB for such a map, and cannot
colour its own surfaces of volumes by a second one. NGL in nglview 4.0 (MIT, 0.4 MB, 97 packages) has no wheel; Mol*
in ipymolstar 0.1 is 2.0 MB and 24 packages, in dash-molstar under the LGPL; NiiVue in ipyniivue 2.4 is 2.1 MB and 30
packages; what trame-vtk 2.11 has of vtk.js (0.6 MB) finds no surface of a volume; 3Dmol.js, the best fit, is in no
package for Python, for py3Dmol fetches it from the network.
"""

from cryofm_io.report.making import calibration_content, curation_content, made_maps_content, training_content
from cryofm_io.report.page import read_report, render, write_report
from cryofm_io.report.tools import halves_content, inspection_content, mask_content, model_content, scores_content

__all__ = [
    "calibration_content",
    "curation_content",
    "halves_content",
    "inspection_content",
    "made_maps_content",
    "mask_content",
    "model_content",
    "read_report",
    "render",
    "scores_content",
    "training_content",
    "write_report",
]
