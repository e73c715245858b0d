"""Unknown parameters: a map whose B factor nobody noted.

A `Blind` likelihood estimates what it does not know, given a volume: `refine(x)` is the likelihood with the B factor
that explains the data best. Restoring and refining take turns.

    python examples/how_to/unknown_parameters.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import Envelope, FourierGaussian, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_likelihood
from cryofm_sampling import PlugAndPlay, restore


class UnknownBlur:
    """y = exp(−B ν² / 4) x + n with an unknown B, of the values that are tried."""

    trials = tuple(range(0, 320, 20))  # Å²

    def __init__(self, y):
        self.shape = tuple(y.shape)
        self.each = [gaussian_likelihood(Envelope(b, voxel_size=1.5), WhiteNoise(0.02), y) for b in self.trials]

    def refine(self, x, /):
        best = torch.stack([likelihood.log_prob(x) for likelihood in self.each]).argmax(0)  # of every volume by itself
        w, y = (torch.stack([getattr(self.each[i], name) for i in best.flatten()]) for name in ("precision", "data"))
        half = w.shape[-3:]
        return FourierGaussian(w.reshape(*best.shape, *half), y.reshape(*best.shape, *half), self.shape)


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
observed = WhiteNoise(0.02).sample(Envelope(160, voxel_size=1.5)(truth), generator=generator)
blind, shape = UnknownBlur(observed), tuple(truth.shape)
likelihood = blind.each[len(blind.trials) // 4]  # a first guess: B = 80
for passes in (4, 4, 8):
    draw = restore(prior, likelihood, shape=shape, generator=generator, sampler=PlugAndPlay(passes))
    likelihood = blind.refine(draw.x)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "unknown_parameters.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "unknown_parameters.png", prior.voxel_size, overwrite=True)
print("UnknownBlur passes", ", ".join(check_likelihood(UnknownBlur(torch.ones(4, 4, 4)))))
