"""The two pictures are drawn without a display and show what they should."""

import sys

import numpy as np
import pytest

from cryofm_io import FscCurve, GridMismatchError, MissingExtraError, fsc, plot_fsc, plot_slices

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


def test_volumes_of_different_shapes(tmp_path):
    with pytest.raises(GridMismatchError, match="different shapes"):
        plot_slices(VOLUMES | {"c": np.zeros((4, 4, 4))}, tmp_path / "slices.png", 1.5)
