"""Where a map lies in space is where it lay, through every script that writes one of what it reads."""

import importlib

import mrcfile
import numpy as np
import pytest

from cryofm_io import DensityMap, read_map, write_map

pytest.importorskip("jinja2")
from cryofm_io.report import read_report

script = pytest.importorskip("_command_line")
SHAPE, AT, VOXEL_SIZE = (23, 26, 28), (8, 15, 12), 1.37
PLACES = {
    "origin": {"origin": (-31.5, 12.25, 208.0)},
    "nstart": {"nstart": (-40, 17, 3)},
    "both": {"origin": (5.48, 0.0, -2.74), "nstart": (4, 0, -2)},
    "crossed": {"nstart": (-40, 17, 3)},  # sections along x
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Two raw half maps in a place, of a lopsided particle that is not in the middle."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    signal = sum(np.exp(-((grid - AT - c) ** 2).sum(-1) / 5) for c in rng.uniform(-4, 4, (9, 3)))
    made = {}

    def halves(place):
        if place in made:
            return made[place]
        folder = tmp_path_factory.mktemp(place)
        made[place] = [folder / "half1.mrc", folder / "half2.mrc"]
        for path in made[place]:
            noisy = (3 * signal + 0.1 * rng.normal(size=SHAPE)).astype(np.float32)
            write_map(path, DensityMap(noisy, VOXEL_SIZE, **PLACES[place]))
            if place == "crossed":
                with mrcfile.open(path, "r+") as file:
                    starts = [int(file.header[name]) for name in ("nxstart", "nystart", "nzstart")]
                    file.set_data(np.ascontiguousarray(noisy.transpose(2, 1, 0)))
                    file.header.mapc, file.header.maps = 3, 1
                    file.header.nxstart, file.header.nystart, file.header.nzstart = starts[::-1]
                    file.header.mx, file.header.my, file.header.mz = SHAPE[::-1]
                    file.header.cella = tuple(VOXEL_SIZE * n for n in SHAPE[::-1])
        return made[place]

    return halves


TWO = ("--steps", 2, "--scale", 0.3, "--b-factor", 0)
LINES = {
    "denoise": (*TWO, "--halves"),
    "anisotropic": TWO,
    "missing_wedge": ("--tilt-min", -60, "--tilt-max", 60, "--steps", 2, "--scale", 0.3),
    "large_map": TWO,
    "mask": (),
}


@pytest.mark.parametrize(
    ("name", "place"),
    [*(("denoise", place) for place in PLACES), *((name, "crossed") for name in LINES if name != "denoise")],
)
def test_a_map_stays_where_it_was(name, place, halves, small_prior, tmp_path, monkeypatch):
    given = halves(place)
    before = [read_map(path) for path in given]
    known = PLACES[place]
    assert before[0].position == pytest.approx(known.get("origin") or np.multiply(VOXEL_SIZE, known["nstart"]))
    maps = given if name in ("denoise", "anisotropic", "large_map", "mask") else given[:1]
    out = tmp_path / ("out.mrc" if name == "mask" else "out")
    line = [*maps, *LINES[name], "--out", out, *(() if name == "mask" else ("--prior", small_prior))]
    line += ["--state", tmp_path / "state"] if name == "large_map" else []
    line += ["--samples", 2] if place == "origin" else []
    monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, line)])
    assert script.exit_code(importlib.import_module(name).main) in (0, 3)  # of an untrained prior there are doubts

    written = [out] if name == "mask" else sorted(out.glob("*.mrc"))
    assert len(written) == {"denoise": 4, "anisotropic": 2}.get(name, 1) + 3 * (place == "origin")
    mean = sum(half.data for half in before)
    for path in written:
        after = read_map(path)
        for field in ("shape", "voxel_size", "origin", "nstart", "position"):
            assert getattr(after, field) == pytest.approx(getattr(before[0], field)), (path.name, field)
        if path.name != "uncertainty.mrc":
            assert max(shift(mean, after.data)) <= (name == "mask"), path.name  # whose shape is another
    if name != "mask":
        page = read_report(out / "report.html")
        assert page["grid"]["position"] == pytest.approx(before[0].position)
        assert page["grid"]["shape"] == list(before[0].shape)


def shift(one, two):
    """Voxels by which the second is moved, where they are most alike."""
    alike = np.fft.ifftn(np.fft.fftn(two - two.mean()) * np.fft.fftn(one - one.mean()).conj()).real
    return [min(int(i), n - int(i)) for i, n in zip(np.unravel_index(alike.argmax(), SHAPE), SHAPE, strict=True)]
