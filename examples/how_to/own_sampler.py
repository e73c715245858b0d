"""A sampler of your own: the flow of the posterior, by Euler steps.

At every time the prior says what it expects of the clean volume, x − t v; the data correct it; and a step leads from
noise towards that. `streams` gives every volume of a batch noise of its own, and `iterate` keeps checkpoints.
What comes out is one sample; `samples=8` would average eight of them.

    python examples/how_to/own_sampler.py [FOLDER]
"""

import sys
from pathlib import Path

import attrs
import torch

from cryofm_io import DensityMap, normalise_clean, plot_slices, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood, radial, standard_normal
from cryofm_sampling import Draw, Run, iterate, restore, streams
from cryofm_sampling.testing import check_sampler


@attrs.frozen
class PosteriorEuler:
    """x_s = (1 − s) x̂ + s/t (x_t − (1 − t) x̂), x̂ the mean of N(x − t v, P t² / ((1 − t)² P + t²)) given the data."""

    steps: int = 20

    @torch.no_grad()
    def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None, checkpoint=None):
        box, ratio = shape[-3:], torch.logspace(1.5, -1.5, self.steps)  # of noise to signal
        times, P = [*(ratio / (1 + ratio)).tolist(), 0.0], radial(velocity.signal_power, box)
        noises = streams(generator, shape[:-3])
        x = torch.stack([standard_normal(torch.zeros(box, dtype=P.dtype), noise) for noise in noises]).reshape(shape)

        def step(i, x):
            t, s = times[i], times[i + 1]
            guess = x - t * velocity(x, torch.tensor(t).to(x))
            clean = likelihood.condition(guess, P * t**2 / ((1 - t) ** 2 * P + t**2)).mean
            return (1 - s) * clean + s / t * (x - (1 - t) * clean), clean

        told = {"run": Run(self, velocity, likelihood, shape), "callback": callback, "checkpoint": checkpoint}
        x = iterate(step, x, self.steps, streams=noises, **told)
        return Draw(x, self.steps, attrs.asdict(self))


prior, generator = load_prior(), torch.Generator().manual_seed(0)
deposited = read_map(Path(__file__).parents[1] / "data" / "EMD-3488.mrc.gz")
density = DensityMap(normalise_clean(deposited.data)[0], deposited.voxel_size)  # the brightest voxel is 1
truth = torch.from_numpy(to_grid(density, prior.voxel_size)[0][19:51, 19:51, 19:51].copy())
observed = WhiteNoise(0.1).sample(truth, generator=generator)
likelihood, shape = gaussian_likelihood(Identity(), WhiteNoise(0.1), observed), tuple(truth.shape)
draw = restore(prior, likelihood, shape=shape, generator=generator, sampler=PosteriorEuler(), samples=1)

before, after = (float((v - truth).square().sum() / truth.square().sum()) for v in (observed, draw.x))
print(f"squared error, relative: {before:.3f} of the data, {after:.3f} restored by {draw.settings['algorithm']}")
out = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write_map(out / "own_sampler.mrc", DensityMap(draw.x.numpy(), prior.voxel_size), overwrite=True)
volumes = {"data": observed.numpy(), "restored": draw.x.numpy(), "truth": truth.numpy()}
plot_slices(volumes, out / "own_sampler.png", prior.voxel_size, overwrite=True)
print("PosteriorEuler passes", ", ".join(check_sampler(PosteriorEuler(100))))
