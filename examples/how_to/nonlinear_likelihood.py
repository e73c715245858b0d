"""A likelihood of your own, not linear: a detector that saturates.

What is bright comes out darker than it is, y = 0.3 tanh(x / 0.3) + noise. `log_prob` is all that is needed, and
differentiable in x; the constant does not matter. `restore` finds the most probable volume of every pass.

    python examples/how_to/nonlinear_likelihood.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops.testing import check_likelihood
from cryofm_sampling import restore


class Saturated:
    """Log p(y | x) = −½ Σ (y − 0.3 tanh(x / 0.3))² / 0.02²."""

    def __init__(self, y):
        self.y = y

    def log_prob(self, x, /):  # (*batch, z, y, x) -> (*batch,)
        return -0.5 * ((self.y - detector(x)) / 0.02).square().sum((-3, -2, -1))


def detector(x):
    return 0.3 * torch.tanh(x / 0.3)


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
observed = detector(truth) + 0.02 * torch.randn(truth.shape, generator=generator)
draw = restore(prior, Saturated(observed), shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "nonlinear_likelihood.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "nonlinear_likelihood.png", prior.voxel_size, overwrite=True)
print("Saturated passes", ", ".join(check_likelihood(Saturated(torch.zeros(4, 4, 4)), shapes=[(4, 4, 4)])))
