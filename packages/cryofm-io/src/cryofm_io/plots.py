"""Three pictures: FSC curves, central slices, images beside projections (extra ``[plot]``)."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.atomic import atomic_write
from cryofm_io.errors import GridMismatchError, MissingExtraError
from cryofm_io.fsc import FscCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_fsc", "plot_pairs", "plot_slices"]

_MOST_PAIRS = 100


def plot_fsc(
    curves: Mapping[str, FscCurve],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draw FSC curves with the thresholds 0.5 and 0.143 and the band ±1/√N of pure noise.

    Args:
        curves: By the label shown in the legend.
        path: The picture; its ending gives the format (.png, .pdf, .svg).
        title: What is compared, for instance "against the truth" or "self-consistency, not resolution".
        overwrite: Whether an existing file may be replaced.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> a, noise = np.random.default_rng(0).normal(size=(2, 16, 16, 16))
        >>> from cryofm_io import fsc
        >>> plot_fsc({"noisy": fsc(a, a + noise, voxel_size=1.5)}, "fsc.png")
    """
    figure = _figure(7, 4.2)
    axes = figure.add_subplot()
    longest = max(curves.values(), key=lambda curve: float(curve.frequency[-1]))
    band = 1 / np.sqrt(longest.n_voxels)
    axes.fill_between(longest.frequency, -band, band, color="0.85", linewidth=0, label="noise, ±1/√N")
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color="0.5", linewidth=0.8, linestyle="--")
        axes.annotate(f"{threshold:g}", (1.005, threshold), xycoords=("axes fraction", "data"), va="center", size=8)
    for label, curve in curves.items():
        axes.plot(curve.frequency, curve.correlation, label=label)
    lowest = min(float(np.nan_to_num(curve.correlation).min()) for curve in curves.values())
    axes.set(xlim=(0, longest.frequency[-1]), ylim=(min(lowest, -0.1) - 0.03, 1.03), title=title)
    axes.set(xlabel="resolution (Å)", ylabel="Fourier shell correlation")
    ticks = np.linspace(0, longest.frequency[-1], 7)[1:]
    axes.set_xticks(ticks, [f"{1 / tick:.3g}" for tick in ticks])
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path, overwrite)


def plot_slices(
    volumes: Mapping[str, NDArray[Any]],
    path: str | os.PathLike[str],
    voxel_size: float,
    *,
    through: Sequence[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Draw central slices of volumes side by side, with one grey scale and a scale bar.

    A column per volume; rows are the slices across z, y and x. The grey scale is the last volume's, so that a noisy
    input does not wash out what is compared with it.

    Args:
        volumes: ``(z, y, x)`` by title, all of one shape; the cleanest last.
        path: The picture; its ending gives the format (.png, .pdf, .svg).
        voxel_size: Å.
        through: The voxel (z, y, x) that the slices meet in, such as the centre of a mask; n // 2 by default.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GridMismatchError: The volumes differ in shape, or ``through`` is no voxel of theirs.
        MissingExtraError: matplotlib is not installed.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> input, restored = np.random.default_rng(0).normal(size=(2, 12, 14, 16))
        >>> plot_slices({"input": input, "restored": restored}, "slices.png", voxel_size=1.5)
    """
    shapes = {label: volume.shape for label, volume in volumes.items()}
    if len(set(shapes.values())) != 1:
        raise GridMismatchError(f"slices of volumes with different shapes: {shapes}; bring them to one grid first")
    z, y, x = next(iter(shapes.values()))
    k, j, i = through = (z // 2, y // 2, x // 2) if through is None else tuple(through)
    if not all(0 <= at < n for at, n in zip(through, (z, y, x), strict=True)):
        raise GridMismatchError(f"slices through voxel {through} of a volume of shape {(z, y, x)}")
    slices = {label: {"z": v[k], "y": v[:, j], "x": v[:, :, i]} for label, v in volumes.items()}
    cleanest = next(reversed(slices.values()))
    low, high = np.percentile(np.concatenate([image.ravel() for image in cleanest.values()]), [0.5, 99.8])

    scale = 2.6 / max(x, y, z)  # inches per voxel
    heights = [y, z, z]
    figure = _figure(scale * max(x, y) * len(volumes) + 0.5, scale * sum(heights) + 0.6)
    grid = figure.subplots(3, len(volumes), squeeze=False, gridspec_kw={"height_ratios": heights})
    bar = _round_length(max(x, y) * voxel_size / 3)
    for column, (label, by_axis) in enumerate(slices.items()):
        for row, (axis, image) in enumerate(by_axis.items()):
            axes = grid[row, column]
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(f"across {axis}")
            if row == 0:
                axes.set_title(label, size=10)
        start = 0.05 * x
        axes = grid[0, column]
        axes.plot(
            [start, start + bar / voxel_size],
            [0.06 * y] * 2,
            color="white",
            linewidth=3,
            solid_capstyle="butt",
        )
        if column == 0:
            axes.annotate(f"{bar:g} Å", (start, 0.1 * y), color="white", size=8)
    _save(figure, path, overwrite)


def plot_pairs(
    images: NDArray[Any],
    projections: NDArray[Any],
    path: str | os.PathLike[str],
    *,
    marked: Sequence[int] = (),
    overwrite: bool = False,
) -> None:
    """Draw each image beside the projection of a model at its pose, with their correlation.

    The image is on the left. Its grey scale is its own, and the projection's too, since their units may differ.

    Args:
        images: ``(K, y, x)``; the first 100 are drawn.
        projections: ``(K, y, x)``, in the same order.
        path: The picture; its ending gives the format (.png, .pdf, .svg).
        marked: Numbers of images that do not fit, from 0: in a red frame. One whose projection is constant has none.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GridMismatchError: The two differ in shape.
        MissingExtraError: matplotlib is not installed.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> images, noise = np.random.default_rng(0).normal(size=(2, 5, 12, 12))
        >>> plot_pairs(images, images + noise, "pairs.png")
    """
    if images.shape != projections.shape or images.ndim != 3:
        raise GridMismatchError(f"images (K, y, x) of shape {images.shape} and projections of {projections.shape}")
    count, (_, y, x) = min(len(images), _MOST_PAIRS), images.shape
    columns = max(min(count, 2), round(math.sqrt(count / 2 * y / x)))
    rows = math.ceil(count / columns)
    correlations = [
        float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if np.ptp(b) else math.nan
        for a, b in zip(images, projections, strict=True)
    ]
    # One set of axes, in units of an image's width: a hundred of them would take ten seconds.
    width, height = 2.15, y / x + 0.25
    figure = _figure(max(width * columns, 3.5), height * rows + 0.3)
    axes = figure.add_subplot()
    for k, (image, projection) in enumerate(zip(images[:count], projections[:count], strict=True)):
        left, bottom = width * (k % columns), -height * (k // columns)
        for start, shown in ((left, image), (left + 1.03, projection)):
            low, high = np.percentile(shown, [0.5, 99.8])
            extent = (start, start + 1, bottom, bottom + y / x)
            axes.imshow(shown, "gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="nearest")
        label = f"{k + 1}: left out" if math.isnan(correlations[k]) else f"{k + 1}: {correlations[k]:.2f}"
        colour = "red" if k in marked else "black"
        axes.text(left + 1.015, bottom + y / x + 0.04, label, ha="center", va="bottom", size=8, color=colour)
        if k in marked:
            across, up = (left, left + 2.03), (bottom, bottom + y / x)
            axes.plot([*across, *across[::-1], left], [up[0], up[0], up[1], up[1], up[0]], "r", lw=1.5)
    axes.set(xlim=(0, width * columns - 0.12), ylim=(-height * (rows - 1), height), aspect="equal")
    axes.set_axis_off()
    drawn = "" if count == len(images) else f", {count} of {len(images)} drawn"
    title = f"image | projection: correlation (mean {np.nanmean(correlations):.2f}{drawn})"
    figure.suptitle(title, size=8)
    _save(figure, path, overwrite)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'cryofm-io[plot]'") from error
    # A figure of its own: pyplot would keep global state and choose a display.
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: str | os.PathLike[str], overwrite: bool) -> None:
    with atomic_write(path, overwrite) as temporary:
        figure.savefig(temporary)


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, … that is not longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= length)
