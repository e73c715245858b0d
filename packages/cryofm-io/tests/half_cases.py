"""Half maps of a made-up molecule, and what people do to them."""

import numpy as np
from scipy.ndimage import gaussian_filter

from cryofm_io import fourier_resample


def molecule(n=40):
    """Atoms in a few bent rows, of no symmetry, in the middle of an ``n``³ box; the largest value is 1."""
    rng = np.random.default_rng(11)
    steps = rng.normal(size=(5, 24, 3)) + rng.normal(size=(5, 1, 3))
    places = np.cumsum(steps, 1).reshape(-1, 3)
    places = n // 2 + (places - places.mean(0)) * (0.13 * n / places.std())
    data = np.zeros((n, n, n))
    np.add.at(data, tuple(np.clip(np.rint(places).astype(int), 2, n - 3).T), 1)
    data = gaussian_filter(data, 1.0)
    return data / data.max()


def frequency(shape):
    return np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))


def noise(shape, deviation, seed):
    """Of a reconstruction: its power rises with the frequency."""
    white = np.random.default_rng(seed).normal(size=shape)
    made = np.fft.ifftn(np.fft.fftn(white) * np.sqrt(0.05 + frequency(shape))).real
    return deviation * made / made.std()


def halves(deviation=0.1, n=40, seed=0):
    truth = molecule(n)
    return [truth + noise(truth.shape, deviation, 2 * seed + half) for half in (0, 1)]


def mask(n=40):
    """A soft one, tight about the molecule."""
    wide = gaussian_filter((molecule(n) > 0.1).astype(float), 2.0)
    return np.clip(3 * wide, 0, 1)


def flattened(data):
    """As RELION leaves it: outside a sphere that touches the box next to nothing, and no steps."""
    axes = [np.arange(n) - n // 2 for n in data.shape]
    radius = np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))
    edge = np.clip((radius - data.shape[0] / 2) / 3, 0, 1)
    return data * (1 + np.cos(np.pi * edge)) / 2 + 1e-5 * np.random.default_rng(9).normal(size=data.shape)


def finer(data, more):
    return fourier_resample(data, [n + more for n in data.shape])
