"""A noise of your own: ice that is thicker at one end of the specimen.

Every plane is noisier than the one before. A noise says how it is drawn, and its inverse covariance.

    python examples/how_to/own_noise.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import Identity, gaussian_likelihood, standard_normal
from cryofm_ops.testing import check_noise
from cryofm_sampling import restore


class ThickerIce:
    """Independent noise whose standard deviation rises along z."""

    def std(self, y):
        return torch.linspace(0.05, 0.5, y.shape[-3]).to(y)[:, None, None]

    def sample(self, y, /, *, generator):
        return y + self.std(y) * standard_normal(y, generator)  # one volume of a batch after the other

    def precision(self, r, /):
        return r / self.std(r) ** 2


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
noise = ThickerIce()
observed = noise.sample(truth, generator=generator)
likelihood = gaussian_likelihood(Identity(), noise, observed)
draw = restore(prior, likelihood, shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "own_noise.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "own_noise.png", prior.voxel_size, overwrite=True)
print("ThickerIce passes", ", ".join(check_noise(ThickerIce())))
