"""A likelihood of your own, not Gaussian: one voxel in twenty is wrong.

Hot pixels, X-rays, subtomograms of something else. A normal distribution would believe them; one with a second, wide
component does not.

    python examples/how_to/not_gaussian.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops.testing import check_likelihood
from cryofm_sampling import restore


class Outliers:
    """y = x + n, where n has the standard deviation 0.1, or, one time in twenty, 1."""

    def __init__(self, y):
        self.y = y

    def log_prob(self, x, /):  # (*batch, z, y, x) -> (*batch,)
        r = self.y - x
        good = torch.distributions.Normal(0, 0.1).log_prob(r) + torch.tensor(0.95).log()
        wrong = torch.distributions.Normal(0, 1.0).log_prob(r) + torch.tensor(0.05).log()
        return torch.logaddexp(good, wrong).sum((-3, -2, -1))


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
std = torch.where(torch.rand(truth.shape, generator=generator) < 0.05, 1.0, 0.1)
observed = truth + std * torch.randn(truth.shape, generator=generator)
draw = restore(prior, Outliers(observed), shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "not_gaussian.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "not_gaussian.png", prior.voxel_size, overwrite=True)
print("Outliers passes", ", ".join(check_likelihood(Outliers(torch.zeros(4, 4, 4)), shapes=[(4, 4, 4)])))
