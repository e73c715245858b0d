"""Line figures as data: what the templates draw, and what a page keeps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.fsc import FscCurve

__all__ = ["figure", "fsc_figure", "histogram", "of_resolution"]

_FINEST = 7  # ticks
_BINS = 80


def figure(
    name: str,
    title: str,
    note: str,
    series: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    *,
    xlabel: str,
    ylabel: str,
    ticks: Sequence[tuple[float, str]],
    ylim: tuple[float, float] | None = None,
    levels: Sequence[tuple[float, str]] = (),
    dashed: Sequence[str] = (),
    band: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """A figure; x rises, values may be NaN, ``levels`` are horizontal lines, ``band`` has x and half a width."""
    finite = [y[np.isfinite(y)] for _, y in series.values()]
    every = np.concatenate([y for y in finite if y.size] or [np.array([0.0, 1.0])])
    low, high = ylim or (float(every.min()), float(every.max()))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    first, last = min(float(x[0]) for x, _ in series.values()), max(float(x[-1]) for x, _ in series.values())
    if last <= first:
        first, last = first - 0.5, last + 0.5
    return {
        "name": name,
        "title": title,
        "note": note,
        "xlabel": xlabel,
        "ylabel": ylabel,
        "xlim": [first, last],
        "ylim": [low, high],
        "xticks": [list(tick) for tick in ticks],
        "yticks": [[y, f"{y:.4g}"] for y in _round_steps(low, high)],
        "levels": [list(level) for level in levels],
        "band": None if band is None else {"x": _plain(band[0]), "y": _plain(band[1])},
        "series": [
            {"label": label, "x": _plain(x), "y": _plain(y), "dashed": label in dashed, "colour": i % 8}
            for i, (label, (x, y)) in enumerate(series.items())
        ],
    }


def of_resolution(last: float, *, squared: bool = False) -> list[tuple[float, str]]:
    """Ticks in Å on an axis of frequency, or of its square, that ends at the frequency ``last``."""
    places = np.linspace(0, last**2 if squared else last, _FINEST)[1:]
    return [(float(at), f"{1 / (math.sqrt(at) if squared else at):.3g}") for at in places]


def fsc_figure(
    name: str, title: str, note: str, curves: Mapping[str, FscCurve], dashed: Sequence[str] = ()
) -> dict[str, Any]:
    """FSC curves with the thresholds and the band of noise."""
    longest = max(curves.values(), key=lambda curve: float(curve.frequency[-1]))
    return figure(
        name,
        title,
        note,
        {label: (curve.frequency, curve.correlation) for label, curve in curves.items()},
        xlabel="resolution (Å)",
        ylabel="Fourier shell correlation",
        ticks=of_resolution(float(longest.frequency[-1])),
        ylim=(-0.15, 1.03),
        levels=[(0.5, "0.5"), (0.143, "0.143")],
        dashed=dashed,
        band=(longest.frequency, 1 / np.sqrt(np.maximum(longest.n_voxels, 1))),
    )


def histogram(maps: Mapping[str, NDArray[Any]], low: float, high: float) -> dict[str, Any]:
    """How many voxels have which density, one scale for all."""
    edges = np.linspace(low, high, _BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    counts = {}
    for label, data in maps.items():
        count = np.histogram(data, _BINS, (low, high))[0].astype(float)
        counts[label] = (middle, np.log10(np.where(count > 0, count, np.nan)))
    return figure(
        "histogram",
        "Histogram",
        "How many voxels have which density (a logarithmic scale). A good map has a narrow peak, the solvent, and a "
        "tail on its right, the molecule.",
        counts,
        xlabel="density",
        ylabel="log₁₀ voxels",
        ticks=[(x, f"{x:.3g}") for x in _round_steps(low, high)],
    )


def _round_steps(low: float, high: float) -> list[float]:
    span = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{step * i:.10g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _plain(values: NDArray[Any]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
