"""The pictures are drawn without a display and show what they should."""

import sys

import numpy as np
import pytest

from cryofm_io import FscCurve, GridMismatchError, MissingExtraError, fsc, plot_fsc, plot_pairs, plot_slices

VOLUMES = dict(zip("ab", np.random.default_rng(0).normal(size=(2, 9, 10, 12)), strict=True))


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cryofm-io\[plot\]'"):
        plot_slices(VOLUMES, tmp_path / "slices.png", 1.5)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_does_not_import_matplotlib():
    import subprocess

    code = "import sys, cryofm_io; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure")
    figures, save = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, p: (figures.append(self), save(self, p)))
    return figures


def test_fsc_plot(tmp_path, drawn):
    a, b = VOLUMES.values()
    curve = fsc(a, a + b, 1.5)
    broken = FscCurve(curve.frequency, np.full(6, np.nan), curve.n_voxels)
    plot_fsc({"raw": curve, "empty": broken}, tmp_path / "fsc.png", title="self-consistency, not resolution")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert np.array_equal(lines["raw"].get_ydata(), curve.correlation)
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert levels == [0.5, 0.143]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1 / np.sqrt(curve.n_voxels[0]))
    for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        assert float(label.get_text()) == pytest.approx(1 / tick, rel=0.01)
    assert (tmp_path / "fsc.png").read_bytes().startswith(b"\x89PNG")


def test_slice_plot(tmp_path, drawn):
    plot_slices(VOLUMES, tmp_path / "slices.png", 1.5)
    pictures = [axes.images[0] for axes in drawn[0].axes]
    assert len({picture.get_clim() for picture in pictures}) == 1  # one grey scale
    a, b = VOLUMES.values()
    expected = [a[4], b[4], a[:, 5], b[:, 5], a[:, :, 6], b[:, :, 6]]
    for picture, slice_ in zip(pictures, expected, strict=True):
        assert np.array_equal(picture.get_array(), slice_)
    bar = drawn[0].axes[0].lines[0].get_xdata()
    assert drawn[0].axes[0].texts[0].get_text() == f"{1.5 * (bar[1] - bar[0]):g} Å"


def test_slices_through_another_voxel(tmp_path, drawn):
    plot_slices(VOLUMES, tmp_path / "slices.png", 1.5, through=(1, 9, 0))
    a, b = VOLUMES.values()
    expected = [a[1], b[1], a[:, 9], b[:, 9], a[:, :, 0], b[:, :, 0]]
    for axes, slice_ in zip(drawn[0].axes, expected, strict=True):
        assert np.array_equal(axes.images[0].get_array(), slice_)
    with pytest.raises(GridMismatchError, match=r"through voxel \(1, 90, 0\)"):
        plot_slices(VOLUMES, tmp_path / "none.png", 1.5, through=(1, 90, 0))


def test_volumes_of_different_shapes(tmp_path):
    with pytest.raises(GridMismatchError, match="different shapes"):
        plot_slices(VOLUMES | {"c": np.zeros((4, 4, 4))}, tmp_path / "slices.png", 1.5)


def test_pairs_that_do_not_fit(tmp_path, drawn):
    """Marked ones are in a red frame; one without a projection is said to be left out."""
    images = np.random.default_rng(0).normal(size=(4, 12, 12))
    projections = images.copy()
    projections[3] = 0
    plot_pairs(images, projections, tmp_path / "pairs.png", marked=[1, 3])
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["1: 1.00", "2: 1.00", "3: 1.00", "4: left out"]
    assert [text.get_color() == "red" for text in axes.texts] == [False, True, False, True]
    frames = [tuple(np.round((line.get_xdata()[0], line.get_ydata()[0]), 6)) for line in axes.lines]
    corners = [tuple(np.round(axes.images[2 * k].get_extent(), 6)[[0, 2]]) for k in (1, 3)]
    assert frames == corners


@pytest.mark.parametrize("count", [1, 7, 103])
@pytest.mark.slow
def test_pairs(tmp_path, drawn, count):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 12, 12))
    projections = images + np.linspace(0, 3, count)[:, None, None] * rng.normal(size=images.shape)
    plot_pairs(images, 5 * projections - 2, tmp_path / "pairs.png")
    (axes,) = drawn[0].axes
    shown = min(count, 100)
    assert len(axes.images) == 2 * shown
    assert len(axes.texts) == shown
    places = set()
    for k, text in enumerate(axes.texts):
        left, right = axes.images[2 * k : 2 * k + 2]
        assert np.array_equal(left.get_array(), images[k])
        assert np.array_equal(right.get_array(), 5 * projections[k] - 2)
        assert left.get_extent()[0] < text.get_position()[0] < right.get_extent()[1]
        places |= {tuple(left.get_extent()), tuple(right.get_extent())}
        number, correlation = text.get_text().split(": ")
        assert int(number) == k + 1
        a, b = ((v - v.mean()) / v.std() for v in (images[k], projections[k]))
        assert float(correlation) == pytest.approx((a * b).mean(), abs=0.0051)
    assert len(places) == 2 * shown
    assert ("100 of 103 drawn" in drawn[0].get_suptitle()) == (count == 103)
    with pytest.raises(GridMismatchError, match="images"):
        plot_pairs(images, projections[:, :5], tmp_path / "b.png")
