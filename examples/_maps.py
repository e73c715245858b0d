"""The maps that the scripts restore: from files or the example that ships, and on the grid of a prior."""

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import attrs
import numpy as np
import torch
from _command_line import by, check_disk, has_bf16, in_tiles, tell_plan, time_of_one
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import (
    DensityMap,
    FscCurve,
    GridTransform,
    InputFileError,
    check_contrast,
    check_half_maps,
    find_cryosparc_maps,
    find_emdb_entry,
    fsc,
    map_size,
    normalise_clean,
    particle_diameter,
    read_map,
    read_mask,
)
from cryofm_model import (
    BUNDLED_PRIORS,
    CalibratedPrior,
    CryoFMError,
    Prior,
    bundled_prior_for,
    fitted_to_particle,
    load_prior,
)
from cryofm_model.weights.choice import COARSE, FINE
from cryofm_ops import (
    AnisotropicNoise,
    FourierOperator,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling import (
    Flow,
    Guided,
    Inpainting,
    PlugAndPlay,
    PosteriorFlow,
    Sampler,
    Tiled,
    check_memory,
    signal_end,
)

DATA = Path(__file__).parent / "data"
TRIALS, SIDE = 45, 48  # evaluations for scale and envelope, about, of a cube of that side (`fit_envelope`)
TRIALS_OF_ONE = 56  # for the scale of a map with a wedge, of all of it
_FEWEST = 8  # voxels of a prior that a map has to be wide
DEMO_MAP, DEMO_CURVES = DATA / "EMD-3488.mrc.gz", DATA / "fsc_curves.csv"
Volume = NDArray[np.floating]


class Measured(NamedTuple):
    """One map or two half maps less their medians, the mean of these, and what else is known."""

    maps: tuple[DensityMap, ...]
    median: float = 0.0
    truth: DensityMap | None = None
    fsc: FscCurve | None = None  # between half maps from files


def take_entry(args: argparse.Namespace) -> None:
    """Of a folder of the EMDB or a cryoSPARC job: the half maps, or the map and its resolution, and the mask.

    Of a line that names files, or nothing, that stays as it is.

    Raises:
        InputFileError: It has none that the script can take.
    """
    if args.half1 is None or args.half2 is not None or not args.half1.is_dir():
        return
    folder, entry = args.half1, find_cryosparc_maps(args.half1) or find_emdb_entry(args.half1)
    told = None if entry.header is None else entry.header.resolution
    if entry.half_maps is not None and vars(args).get("resolution") is None:
        args.half1, args.half2 = entry.half_maps
    elif entry.map is not None and "resolution" in vars(args) and (args.resolution or told):
        args.half1, args.resolution = entry.map, args.resolution or told
    else:
        raise InputFileError(f"{folder} holds no half maps, and no map with a header that tells its resolution")
    args.mask = args.mask or entry.mask
    said = [str(path) for path in (args.half1, args.half2, args.mask) if path is not None]
    if entry.header is not None:
        resolution = "no resolution" if told is None else f"{told:g} Å"
        contour = "" if entry.header.contour is None else f", contour {entry.header.contour:g}"
        said.append(f"by its header {resolution}{contour}")
    print(f"{folder}: {', '.join(said)}")


def read_half_maps(half1: Path, half2: Path, *, voxel_size: float | None, allow_masked: bool) -> Measured:
    """Two half maps, judged by whether they can tell their noise."""
    maps = [read_map(path, voxel_size=voxel_size) for path in (half1, half2)]
    curve = check_half_maps(*maps, allow_masked=allow_masked)
    (one, median1), (two, median2) = (less_median(maps.pop(0)) for _ in range(2))
    return Measured((one, two), (median1 + median2) / 2, fsc=curve)


def read_one_map(path: Path, *, voxel_size: float | None) -> Measured:
    """A single map."""
    density, median = less_median(read_map(path, voxel_size=voxel_size))
    check_contrast(density.data)
    return Measured((density,), median)


def check_room(
    args: argparse.Namespace,
    path: Path,
    prior: Prior,
    names: list[str],
    sampler: Sampler | Flow,
    *,
    halves: bool,
    each: int = 1,
) -> None:
    """Refuse, before anything is read, a job for which there is too little memory or disk; say what it needs.

    Where only the data can tell whether a finer prior is taken, what it needs is said when `fitting_prior` has done so.

    Args:
        args: The command line.
        path: Of a map like those that are given; its header is read.
        prior: The one that was chosen.
        names: Of the results.
        sampler: That will restore.
        halves: Whether two half maps are given.
        each: Evaluations of the network for one of the sampler's.
    """
    size = map_size(path, voxel_size=args.voxel_size)
    bundled = args.prior is None or args.prior in BUNDLED_PRIORS
    coarse = bundled and size.voxel_size > COARSE  # whose prior takes the map's voxels or coarser
    target = GridTransform.of(size, size.voxel_size if coarse else prior.voxel_size).target
    said = args.prior is not None or 2 * size.voxel_size >= FINE
    check_grid(args, prior, target, size.shape, names, sampler, halves=halves, each=each, said=said)


def check_grid(
    args: argparse.Namespace,
    prior: Prior,
    target: tuple[int, int, int],
    own: tuple[int, int, int],
    names: list[str],
    sampler: Sampler | Flow,
    *,
    halves: bool = False,
    each: int = 1,
    said: bool = True,
) -> Tiled:
    """The same of a grid of the prior's, and the map's own; it is said if it is to be. The prior, on that grid."""
    tiled, gradients = in_tiles(prior, target, args.precision), isinstance(sampler, Guided)
    need = check_memory(target, tiled, device=device_of(prior), gradients=gradients, own=own, samples=args.samples)
    map_bytes = 4 * math.prod(own)
    state = 8 * math.prod(target) * (3 + args.samples) if vars(args).get("checkpoint") is not None else 0
    disk = check_disk(args.out, map_bytes * sum(name.endswith(".mrc") for name in names), map_bytes, state)
    if said:
        restoring = each * evaluations(sampler, halves=halves, samples=args.samples)
        words, more = trials(args, prior, target, halves=halves)
        told = f"{restoring} evaluations that restore{words}, less where much is solvent"
        tell_plan(args, need, disk, tiled, target, restoring + more, told, gradients=gradients)
    return tiled


def trials(args: argparse.Namespace, prior: Prior, target: tuple[int, int, int], *, halves: bool) -> tuple[str, float]:
    """What finds scale and envelope where the line does not tell them: in words, and how many evaluations."""
    line = vars(args)
    if not isinstance(prior, CalibratedPrior):
        return "", 0
    if halves and None in (line.get("scale"), line.get("b_factor")):
        return f", and some {TRIALS} of a cube of {SIDE} that find the scale", TRIALS * min(
            1.0, SIDE**3 / math.prod(target)
        )
    if "tilt_min" in line and not halves and args.scale is None:
        return f", and some {TRIALS_OF_ONE} that find the scale", TRIALS_OF_ONE
    return "", 0


def evaluations(sampler: Sampler | Flow, *, halves: bool, samples: int) -> int:
    """Of the network, that restore one map, or two halves and with `PlugAndPlay` their mean, and draw samples."""
    if isinstance(sampler, PlugAndPlay):
        drawing = PosteriorFlow() if halves else PosteriorFlow(first=sampler)
        more = samples and halves  # one that tells how far samples are to spread
        return (3 if halves else 1) * sampler.iterations + drawing.nfe * (samples + bool(more))
    if isinstance(sampler, Flow):
        return sampler.calls
    assert isinstance(sampler, Guided | Inpainting)
    each = 2 * sampler.steps - 1 if isinstance(sampler, Guided) else sampler.steps  # with its gradients
    return (2 if halves else 1) * each + PosteriorFlow().nfe * samples


def plan_to_denoise(maps: Sequence[DensityMap], name: str | None) -> str:
    """What denoise.py would do with one map or two half maps, and what that takes, in words.

    Raises:
        ValueError: It would not.
    """
    args, cpu = argparse.Namespace(prior=name), torch.device("cpu")
    prior = fitting_prior(args, load_prior(name or "cryofm-tiny"), Measured(tuple(maps)), lambda _: None)
    target = GridTransform.of(maps[0], prior.voxel_size).target
    tiled = in_tiles(prior, target, "bf16" if has_bf16(cpu) else "fp32")
    memory = check_memory(target, tiled, device=cpu, own=maps[0].shape)
    pair = len(maps) == 2
    finding = pair * TRIALS * min(1.0, SIDE**3 / math.prod(target))  # scale and envelope
    minutes = (evaluations(PlugAndPlay(8), halves=pair, samples=0) + finding) * time_of_one(tiled, target, cpu) / 60
    return (
        f"a grid of {by(target)} voxels of {prior.voxel_size:.3g} Å, {memory} of memory, about {minutes:.2g} min "
        "here and now, less where much is solvent"
    )


def less_median(density: DensityMap) -> tuple[DensityMap, float]:
    """A map less its median, and that.

    Beside a large constant transforms in single precision lose the map; and a mask makes a plateau of it, on which
    everything agrees. What is left of the solvent the prior finds.
    """
    median = float(np.median(density.data))
    return attrs.evolve(density, data=density.data - median), median


def demo_map(side: float = math.inf) -> DensityMap:
    """EMD-3488 (human haemoglobin) without its solvent's noise; its middle, in a cube of that side in Å."""
    deposited = read_map(DEMO_MAP)
    clean, scale = normalise_clean(deposited.data)
    whole = attrs.evolve(deposited, data=scale.inverse(clean))
    if side == math.inf:
        return whole
    n = round(side / whole.voxel_size)
    box = tuple(slice(m // 2 - n // 2, m // 2 - n // 2 + n) for m in whole.shape)
    origin = [p + whole.voxel_size * part.start for p, part in zip(whole.position, reversed(box), strict=True)]
    return DensityMap(whole.data[box], whole.voxel_size, origin)


def demo_half_maps(
    level: str, seed: int, what: str = "noise", alpha_variance: Callable[[Tensor], Tensor] | None = None
) -> Measured:
    """The truth, and two halves with noise of one of the paper's levels (section 5.1), times α of the direction."""
    truth = demo_map()
    x = torch.from_numpy(truth.data)
    with DEMO_CURVES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    signal = radial_mean(rfft(x).abs() ** 2, truth.shape)
    frequency = np.linspace(0, 0.5 / truth.voxel_size, len(signal))
    # The last entries repeat beyond the curve's 3 Å, and its largest value at frequency 0.
    correlation = np.interp(frequency, [float(r["freq"]) for r in rows], [float(r[level]) for r in rows])
    f = torch.from_numpy(correlation).clamp(1e-4, 1 - 1e-6).to(x)
    power = signal * (1 - f) / f
    noise = SpectralNoise(power) if alpha_variance is None else AnisotropicNoise(power, alpha_variance)
    generator = torch.Generator().manual_seed(seed)
    halves = tuple(attrs.evolve(truth, data=noise.sample(x, generator=generator).numpy()) for _ in range(2))
    print(f"example: {DEMO_MAP.name} (human haemoglobin), in two halves with {what} of the paper's level {level}")
    return Measured(halves, truth=truth)


def device_of(prior: Prior) -> torch.device:
    """Where its network computes."""
    return next(prior.network.parameters()).device


def fitting_prior(args: argparse.Namespace, prior: Prior, given: Measured, room: Callable[[Prior], None]) -> Prior:
    """The prior of the command line; where it names none, the bundled one that fits the data.

    ``cryofm-tiny-fine`` where the data reach what ``cryofm-tiny`` does not know. For coarse maps the one of whole
    particles, its voxels set by their size, also in the place of a bundled one that is named. Which one, and why, is
    printed; the command line names it from then on.

    Args:
        args: The command line.
        prior: What it names, or ``cryofm-tiny``.
        given: The data.
        room: `check_room`, of a prior; called where that was left to be said.

    Raises:
        CryoFMError: None fits.
    """
    voxel_size = given.maps[0].voxel_size
    coarse = voxel_size > COARSE and (args.prior is None or args.prior in BUNDLED_PRIORS)
    if coarse or args.prior == "cryofm-tiny-particles":
        args.prior = "cryofm-tiny-particles"
        return whole_particle_prior(prior, given)
    if args.prior is not None:
        return prior
    resolution = vars(args).get("resolution") or half_map_resolution(given)
    seen = f"for data to {resolution:.3g} Å" if resolution < math.inf else f"for voxels of {voxel_size:.3g} Å"
    if resolution < FINE and (end := end_of_signal(given.maps)) > resolution:
        resolution, seen = end, f"{seen}, of which what is finer than {end:.3g} Å is no signal"
    args.prior = bundled_prior_for(voxel_size, resolution=resolution)
    if args.prior == "cryofm-tiny-fine":
        seen = f"{seen}, beyond the 3 Å of cryofm-tiny"
        prior = load_prior(args.prior).to(device_of(prior))
    print(f"prior {args.prior}, {seen}")
    if 2 * voxel_size < FINE:
        room(prior)
    return prior


def half_map_resolution(given: Measured) -> float:
    """Where the FSC of two halves falls below 0.143, in the whole box, Å; infinite for one map alone."""
    if len(given.maps) < 2:
        return math.inf
    one, two = given.maps
    return (given.fsc or fsc(one.data, two.data, one.voxel_size)).resolution(0.143)


def end_of_signal(maps: Sequence[DensityMap]) -> float:
    """Where halves begin to agree about what is no signal, Å; 0 where nothing of that kind is found."""
    one, *other = maps
    if not other:
        return 0.0
    found = estimate_noise_power(*(torch.from_numpy(map.data) for map in maps), allow_masked=True)
    return 1 / signal_end(found, one.shape, voxel_size=one.voxel_size)


def whole_particle_prior(prior: Prior, given: Measured) -> Prior:
    """The bundled prior of whole particles, its voxels set by the size of the one in the maps; where ``prior`` is.

    Raises:
        CryoFMError: It does not fit.
    """
    voxel_size, shape = given.maps[0].voxel_size, given.maps[0].shape
    particles = load_prior("cryofm-tiny-particles").to(device_of(prior))
    tensors = [torch.from_numpy(map.data) for map in given.maps]
    mean = sum(tensors[1:], tensors[0]) / len(tensors)
    if len(tensors) == 2:
        noise = estimate_noise_power(tensors[0], tensors[1], allow_masked=True)
        mean = fourier_filter(mean, radial(noise.signal_power / (noise.signal_power + noise.noise_power / 2), shape))
    diameter = particle_diameter(mean.numpy(), voxel_size)
    fitted = fitted_to_particle(particles, diameter, voxel_size=voxel_size, shape=shape)
    print(f"prior cryofm-tiny-particles, for a particle of {diameter:.0f} Å in voxels of {voxel_size:.3g} Å")
    return fitted


@attrs.frozen(eq=False)
class PriorGrid:
    """The way of a map to the grid of a prior, and back."""

    like: DensityMap
    mask: Volume | None
    transform: GridTransform
    device: torch.device

    @classmethod
    def of(cls, like: DensityMap, prior: Prior, mask: Path | None = None) -> Self:
        """For maps like this one, with a mask for the result on the same grid.

        Raises:
            CryoFMError: They are a few voxels of the prior wide: a wrong voxel size.
        """
        # The prior's voxel size and not a voxel more: padding would break the noise's independent Fourier coefficients.
        grid = GridTransform.of(like, prior.voxel_size)
        width = max(like.shape) * like.voxel_size
        if max(grid.target) < _FEWEST:
            raise CryoFMError(
                f"maps of {by(like.shape)} voxels of {like.voxel_size:.3g} Å are {width:.2g} Å wide, less than "
                f"{_FEWEST} voxels of the prior: is that their voxel size? --voxel-size tells another"
            )
        device = device_of(prior)
        print(f"map {by(like.shape)} voxels of {like.voxel_size:.4g} Å, on {device}")
        finest = 2 * max(grid.voxel_size, like.voxel_size)
        print(f"grid {by(grid.target)} voxels of {grid.voxel_size:.4g} Å: the prior restores to {finest:.2f} Å")
        return cls(like, None if mask is None else read_mask(mask, like, voxel_size=like.voxel_size), grid, device)

    @property
    def band(self) -> float:
        """The map's Nyquist frequency over that of the prior's grid."""
        return self.transform.voxel_size / self.like.voxel_size

    @property
    def voxel_size(self) -> float:
        """Å, of the prior's grid."""
        return self.transform.voxel_size

    def forward(self, x: Tensor, /) -> Tensor:
        """A map on the grid of the prior."""
        return torch.from_numpy(self.transform.forward(x.cpu().numpy())).to(x)

    def inverse(self, x: Tensor, /) -> Tensor:
        """A volume of the prior's grid on the map's."""
        return torch.from_numpy(self.transform.inverse(x.cpu().numpy())).to(x)

    @property
    def where(self) -> Tensor | None:
        """The mask, on the prior's device."""
        return None if self.mask is None else torch.from_numpy(self.mask).to(self.device)

    def tensors(self, given: Measured) -> list[Tensor]:
        """The measured maps, on the prior's device."""
        return [torch.from_numpy(map.data).to(self.device) for map in given.maps]

    def written(self, x: Tensor, solvent: float = 0.0) -> Volume:
        """What is to be written of a map without solvent: masked, or, where there is no mask, in its solvent."""
        result: Volume = x.cpu().numpy()
        if self.mask is not None:
            return result * self.mask
        return result + solvent if solvent else result

    def compare(self, a: Volume, b: Volume, region: FourierOperator | None = None) -> FscCurve:
        """FSC on the prior's grid, inside the mask, of all coefficients or those of a region.

        It ends with the shells that the input has: a mask makes correlated density of finer ones.
        """
        a, b = (self.transform.forward(x) for x in (a, b))
        if region is not None:
            a, b = (region(torch.from_numpy(x)).numpy() for x in (a, b))
        mask = None if self.mask is None else self.transform.forward(self.mask)
        curve = fsc(a, b, self.transform.voxel_size, mask)
        measured = curve.frequency < (1 + 1e-6) / (2 * self.like.voxel_size)
        return FscCurve(curve.frequency[measured], curve.correlation[measured], curve.n_voxels[measured])
