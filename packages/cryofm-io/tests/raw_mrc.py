"""MRC files byte by byte, so that every field can be wrong on purpose."""

import struct

import numpy as np

VOXEL = 1.5


def header(shape, order="<", **how):
    """The 1024 bytes before the data of a map ``(z, y, x)`` of 1.5 Å voxels; ``how`` changes fields."""
    nz, ny, nx = shape
    sampling = how.get("sampling", (nx, ny, nz))
    fields = [
        (0, "3i", (nx, ny, nz)),
        (12, "i", (how.get("mode", 2),)),
        (16, "3i", how.get("nstart", (0, 0, 0))),
        (28, "3i", sampling),
        (40, "3f", how.get("cell", tuple(VOXEL * n for n in sampling))),
        (52, "3f", how.get("angles", (90.0, 90.0, 90.0))),
        (64, "3i", how.get("axes", (1, 2, 3))),
        (76, "3f", (*how.get("stats", (0.0, 0.0)), 0.0)),
        (88, "2i", (how.get("ispg", 1), how.get("nsymbt", 0))),
        (196, "3f", how.get("origin", (0.0, 0.0, 0.0))),
    ]
    content = bytearray(1024)
    for at, kind, values in fields:
        struct.pack_into(order + kind, content, at, *values)
    if "imod" in how:
        content[152:156] = b"IMOD"
        struct.pack_into("<i", content, 156, how["imod"])
    content[208:212] = how.get("map", b"MAP ")
    content[212:216] = how.get("stamp", b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    return bytes(content)


def write(path, data, order="<", stored=None, **how):
    """A file of these values, as float32 unless ``stored`` bytes are given."""
    body = np.asarray(data, order + "f4").tobytes() if stored is None else stored
    path.write_bytes(header(np.shape(data), order, **how) + body)
    return path
