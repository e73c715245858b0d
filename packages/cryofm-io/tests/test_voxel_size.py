"""A voxel size that is given mends whatever a file says about size; without it the field that is wrong is named."""

import numpy as np
import pytest
import raw_mrc

from cryofm_io import CryoFMError, DensityMap, MapWarning, read_images, read_map, read_mask

DATA = np.random.default_rng(5).normal(size=(6, 6, 6)).astype(np.float32)
WRONG = {
    "cell of one axis": ({"cell": (9.0, 9.0, 1.5)}, "CELLA"),
    "MZ": ({"sampling": (6, 6, 8), "cell": (9.0, 9.0, 9.0)}, "MX, MY, MZ"),
    "one per cent": ({"cell": (9.0, 9.0, 9.09)}, "CELLA"),
    "rubbish angles": ({"angles": (1e-30, 5e20, 3.0)}, "CELLB"),
    "NaN angles": ({"angles": (np.nan, 90.0, 90.0)}, "CELLB"),
    "skewed": ({"angles": (90.0, 90.0, 120.0)}, "CELLB"),
    "NaN": ({"cell": (9.0, np.nan, 9.0)}, "CELLA"),
    "infinite": ({"cell": (9.0, 9.0, np.inf)}, "CELLA"),
    "negative": ({"cell": (9.0, 9.0, -9.0)}, "CELLA"),
    "absurd": ({"cell": (9e30, 9e30, 9e30)}, "CELLA"),
    "none": ({"cell": (0.0, 0.0, 0.0)}, "CELLA"),
    "no sampling": ({"sampling": (0, 0, 0), "cell": (9.0, 9.0, 9.0)}, "MX, MY, MZ"),
}


@pytest.mark.parametrize("absurd", [1e5, 1e300])
def test_what_is_asked_for_is_a_voxel_size_too(tmp_path, absurd):
    with pytest.raises(CryoFMError, match="is the voxel size right"):
        read_map(raw_mrc.write(tmp_path / "map.mrc", DATA), voxel_size=absurd)


@pytest.mark.parametrize("kind", WRONG)
def test_maps_and_masks(tmp_path, kind):
    how, field = WRONG[kind]
    path = raw_mrc.write(tmp_path / "map.mrc", DATA, **how)
    with pytest.raises(CryoFMError, match=rf"map\.mrc: .*{field}.*--voxel-size") as caught:
        read_map(path)
    assert "\n" not in str(caught.value)
    with pytest.warns(MapWarning, match=rf"{field}.*1\.5 Å asked for and used") as warned:
        assert read_map(path, voxel_size=1.5).voxel_size == 1.5
    assert len(warned) == 1
    mask = raw_mrc.write(tmp_path / "mask.mrc", DATA > 0, **how)
    with pytest.warns(MapWarning, match="asked for and used"):
        assert read_mask(mask, DensityMap(DATA, 1.5), voxel_size=1.5).shape == DATA.shape


@pytest.mark.parametrize("kind", ["NaN", "negative", "none", "no sampling", "absurd"])
def test_images(tmp_path, kind):
    how, field = WRONG[kind]
    if kind == "negative":
        how = {"cell": (-9.0, -9.0, 1.5)}
    path = raw_mrc.write(tmp_path / "images.mrcs", DATA, **how)
    with pytest.raises(CryoFMError, match=rf"{field}.*--voxel-size"):
        read_images(path)
    with pytest.warns(MapWarning, match="asked for and used"):
        assert read_images(path, voxel_size=1.5).voxel_size == 1.5


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("rlnImagePixelSize", ("0", "0"), "no pixel size in the STAR file"),
        ("rlnImagePixelSize", ("nan", "1.5"), "no pixel size in the STAR file"),
        ("rlnImagePixelSize", ("wide", "1.5"), "holds no number in row 1"),
        ("rlnImagePixelSize", ("1.5", "1.6"), r"pixels of 1\.5 and 1\.6 Å"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*taken as not stated")
def test_star_files(tmp_path, column, values, found):
    raw_mrc.write(tmp_path / "images.mrcs", DATA, cell=(0.0, 0.0, 0.0))
    rows = "".join(f"{i + 1}@images.mrcs {value}\n" for i, value in enumerate(values))
    path = tmp_path / "images.star"
    path.write_text(f"data_particles\n\nloop_\n_rlnImageName #1\n_{column} #2\n{rows}", encoding="utf-8")
    with pytest.raises(CryoFMError, match=found):
        read_images(path)
    with pytest.warns(MapWarning, match=rf"{found}.*1\.5 Å asked for and used"):
        assert read_images(path, voxel_size=1.5).voxel_size == 1.5
