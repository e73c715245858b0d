"""A mask: all that was deposited of one part of a map.

Focused refinement leaves a map of a part, 0 elsewhere. There it says nothing, and not that there is nothing: the mask
is part of the operator, and the prior fills in the rest.

    python examples/how_to/masked.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import Mask, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator
from cryofm_sampling import restore

prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
axis = torch.linspace(-1, 1, len(truth))
r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + (axis + 0.2) ** 2).sqrt()
mask = Mask(torch.sigmoid(20 * (1.05 - r)))  # a soft ball
noise = WhiteNoise(0.05)
observed = noise.sample(mask(truth), generator=generator)
likelihood = gaussian_likelihood(mask, noise, observed)
draw = restore(prior, likelihood, shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "masked.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "masked.png", prior.voxel_size, overwrite=True)
small = Mask(mask.weights[:5, :4, :3])
print("the mask passes", ", ".join(check_operator(small, shapes=[(5, 4, 3)])))
