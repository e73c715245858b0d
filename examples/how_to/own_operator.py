"""An operator of your own: a domain that moves from particle to particle.

The average is blurred there and sharp elsewhere. No filter does that, and no operator that ships; two methods say it:
what the microscope does to a volume, and the exact transpose.

    python examples/how_to/own_operator.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import LowPass, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator
from cryofm_sampling import restore


class FlexibleDomain:
    """A x = (1 − w) x + w B x: B blurs, and w rises from 0 on the left to 1 on the right."""

    blur = LowPass(8.0, voxel_size=1.5, edge_fraction=1.0)

    def w(self, x):
        return torch.linspace(-6, 6, x.shape[-1]).sigmoid().to(x)

    def __call__(self, x, /):  # (*batch, z, y, x)
        return (1 - self.w(x)) * x + self.w(x) * self.blur(x)

    def adjoint(self, y, /):  # the other way round: the weight comes first
        return (1 - self.w(y)) * y + self.blur.adjoint(self.w(y) * y)


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
operator, noise = FlexibleDomain(), WhiteNoise(0.03)
observed = noise.sample(operator(truth), generator=generator)
likelihood = gaussian_likelihood(operator, noise, observed)  # linear and Gaussian: by conjugate gradients
draw = restore(prior, likelihood, shape=tuple(truth.shape), generator=generator)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "own_operator.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "own_operator.png", prior.voxel_size, overwrite=True)
print("FlexibleDomain passes", ", ".join(check_operator(FlexibleDomain())))
