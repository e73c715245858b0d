"""Files that are no MRC files: what they seem to be, and what converts them."""

from pathlib import Path

__all__ = ["endings", "what_else"]

_EMAN = "e2proc3d.py IN OUT.mrc (EMAN2)"
_EMAN_2D = "e2proc2d.py IN OUT.mrcs (EMAN2)"
_BY_ENDING = {
    ".cs": ("a cryoSPARC data set, which lists images", "cryofm_io.read_images reads it"),
    ".em": ("an EM file", _EMAN),
    ".tif": ("a TIFF file", "tif2mrc IN OUT.mrc (IMOD)"),
    ".tiff": ("a TIFF file", "tif2mrc IN OUT.mrc (IMOD)"),
    ".eer": ("a movie in EER", "relion_convert_to_tiff, then tif2mrc IN OUT.mrc (IMOD)"),
    ".dm3": ("a DigitalMicrograph file", "dm2mrc IN OUT.mrc (IMOD)"),
    ".dm4": ("a DigitalMicrograph file", "dm2mrc IN OUT.mrc (IMOD)"),
    ".hdf": ("an HDF5 file", _EMAN),
    ".hdf5": ("an HDF5 file", _EMAN),
    ".h5": ("an HDF5 file", _EMAN),
    ".spi": ("a SPIDER file", _EMAN),
    ".spider": ("a SPIDER file", _EMAN),
    ".vol": ("a SPIDER or Xmipp volume", _EMAN),
    ".xmp": ("an Xmipp image", _EMAN_2D),
    ".stk": ("a SPIDER or Xmipp stack", _EMAN_2D),
    ".hed": ("an IMAGIC file", _EMAN_2D),
    ".img": ("an IMAGIC file", _EMAN_2D),
    ".npy": ("a NumPy array", "mrcfile.write('OUT.mrc', numpy.load('IN'), voxel_size=1.5)"),
    ".npz": ("a NumPy archive", "mrcfile.write('OUT.mrc', numpy.load('IN')['KEY'], voxel_size=1.5)"),
    ".pdb": ("an atomic model", "cryofm_io.simulate_density makes a map of it"),
    ".ent": ("an atomic model", "cryofm_io.simulate_density makes a map of it"),
    ".cif": ("an atomic model", "cryofm_io.simulate_density makes a map of it"),
    ".mmcif": ("an atomic model", "cryofm_io.simulate_density makes a map of it"),
    ".star": ("a STAR file, which lists images", "cryofm_io.read_images reads it"),
    ".zip": ("a ZIP archive", "unzip IN"),
}
# By their first bytes, whatever the name says.
_BY_CONTENT = (
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"\x89HDF", ".hdf"),
    (b"\x93NUMPY", ".npy"),
    (b"PK\x03\x04", ".zip"),
)


def endings(path: Path) -> list[str]:
    """The last two endings of a file's name, in small letters; also of a name that begins with dots.

    >>> endings(Path("Half.MRC.gz")), endings(Path("..mrcs"))
    (['.mrc', '.gz'], ['.', '.mrcs'])
    """
    return [f".{part.lower()}" for part in path.name.split(".")[1:]][-2:]


def what_else(path: Path, raw: bytes) -> str | None:
    """What a file without ``MAP`` is, by its first bytes or its name, and the command that converts it.

    Example:
        >>> what_else(Path("particles.cs"), b"")
        'a cryoSPARC data set, which lists images, not an MRC file; cryofm_io.read_images reads it'
    """
    ending = next((one for one in reversed(endings(path)) if one not in (".gz", ".bz2")), "")
    by_content = next((known for magic, known in _BY_CONTENT if raw.startswith(magic)), None)
    if by_content == ".npy" and ending == ".cs":  # cryoSPARC's tables are NumPy's
        by_content = None
    found = _BY_ENDING.get(by_content or ending)
    if found is None:
        return None
    kind, command = found
    verb = "" if command.startswith("cryofm_io") else "convert it: "
    return f"{kind}, not an MRC file; {verb}{command}"
