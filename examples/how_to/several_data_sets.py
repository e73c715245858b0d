"""Several data sets at once: a dual-axis tomogram.

Two tilt series about two axes, of different noise. What one does not see the other does; `+` puts the likelihoods
together, in closed form where they are diagonal in Fourier space.

    python examples/how_to/several_data_sets.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import FourierDiagonal, MissingWedge, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_likelihood
from cryofm_sampling import restore

prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())


def tilt_series(axis, std, x):
    """The likelihood of the tomogram of one tilt series."""
    wedge, noise = MissingWedge(-50, 50, axis), WhiteNoise(std)
    return gaussian_likelihood(wedge, noise, noise.sample(wedge(x), generator=generator))


first, second = tilt_series("y", 0.1, truth), tilt_series("x", 0.2, truth)
both = first + second  # `joint([first, second, ...])` for many, and for maps of several voxel sizes
assert isinstance(both, FourierDiagonal)
shape = tuple(truth.shape)
observed = restore(prior, first, shape=shape, generator=generator).x  # what one of them alone tells
draw = restore(prior, both, shape=shape, generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "several_data_sets.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "several_data_sets.png", prior.voxel_size, overwrite=True)
small = torch.zeros(4, 4, 4)
print("both pass", ", ".join(check_likelihood(tilt_series("y", 0.1, small) + tilt_series("x", 0.2, small))))
