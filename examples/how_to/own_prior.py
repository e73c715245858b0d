"""A prior of your own: one that knows the symmetry of the specimen.

A prior is a velocity field, (x, t) ↦ v. This one shows the bundled network the volume and the volume turned by half a
turn, and takes the mean: a flow of volumes of C2 symmetry.

    python examples/how_to/own_prior.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import restore
from cryofm_sampling.testing import check_prior


class TwofoldAboutZ:
    """v(x) = ½ (v(x) + R⁻¹ v(R x)) for a half turn R about the z axis through voxel n // 2."""

    def __init__(self, prior):
        self.prior, self.normalization = prior, prior.normalization
        # What samplers want to know besides; of another network `calibrate(prior, examples, ...)` measures them.
        self.signal_power, self.denoising_error = prior.signal_power, prior.denoising_error

    def __call__(self, x, t, /):  # (*batch, z, y, x), and t: one for all, or one for each
        return (self.prior(x, t) + turned(self.prior(turned(x), t))) / 2


def turned(x):
    return x.flip(-1, -2).roll((1, 1), (-1, -2))


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
noise = WhiteNoise(0.3)
observed = noise.sample(truth, generator=generator)
likelihood = gaussian_likelihood(Identity(), noise, observed)
draw = restore(TwofoldAboutZ(prior), likelihood, shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "own_prior.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "own_prior.png", prior.voxel_size, overwrite=True)
print("TwofoldAboutZ passes", ", ".join(check_prior(TwofoldAboutZ(prior), box=(8, 8, 8))))
