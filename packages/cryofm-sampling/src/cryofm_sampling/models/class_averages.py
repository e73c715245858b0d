"""Models of class averages: poses from common lines, then the prior, briefly in all chains and fully in the best."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops import ImagesInBand, Normalization, average_rings, image_scales, sample_poses
from cryofm_sampling._common import calibrated
from cryofm_sampling.models.ranked import LeftOut, RankedModels, Refining, normalization_of
from cryofm_sampling.models.trust import Trust, folds
from cryofm_sampling.protocols import VelocityField

__all__ = ["models_of_class_averages"]

_SEARCHED = 13  # highest frequency of the pose search, in units of 1/box
_SHORT = 8  # levels of noise that choose among the chains
_ROUNDS = 3  # in which images may be left out that the others do not predict
_FEWEST = 5  # images that must be left


def models_of_class_averages(
    prior: VelocityField,
    images: Tensor,
    /,
    *,
    noise: Tensor,
    diameter_px: float,
    max_shift_px: float,
    generator: torch.Generator,
    symmetry: Tensor | None = None,
    chains: int = 8,
    keep: int = 3,
    levels: int = 20,
    callback: Callable[[int], object] | None = None,
) -> RankedModels:
    """Ranked models of a few class averages at unknown poses.

    Args:
        prior: `Calibrated`, with a `.normalization`.
        images: `(K, n, n)`, centred and masked, in the prior's box; their scale is unknown.
        noise: power of their transforms (not normalised) at the frequencies 1.. of 1/box, as many as are used.
        diameter_px: of the particle.
        max_shift_px: how far off centre the images may be.
        generator: all randomness.
        symmetry: rotations of a point group `(G, 3, 3)`, imposed on the models.
        chains: of the pose search.
        keep: models to make of the best of them.
        levels: of noise, one network evaluation each and model.
        callback: is told of network evaluations.

    Raises what `sample_poses` and `AbInitio` raise.
    """
    units = normalization_of(prior)
    power = calibrated(prior, "models_of_class_averages").signal_power
    expected = _expected(power, units, len(noise), images.shape[-1])
    scales = image_scales(images)
    images = images / scales[:, None, None]
    short, nfe, rounds, used = min(_SHORT, levels), 0, 0, torch.arange(len(images), device=images.device)
    left_out: list[LeftOut] = []
    while True:
        rings = average_rings(images[used], expected, noise.to(images))
        N, m = rings.noise, rings.transfer
        poses = sample_poses(
            images[used],
            chains=chains,
            generator=generator,
            diameter_px=diameter_px,
            noise=N[..., :_SEARCHED],
            max_shift_px=max_shift_px,
            symmetry=symmetry,
            transfer=None if m is None else m[:, :_SEARCHED],
        )
        data = ImagesInBand.of(images[used], len(noise), N, symmetry=symmetry, transfer=m)
        refine = Refining(prior, data, max_shift_px, generator, callback)
        screened = refine(poses.rotations, poses.shifts_px, levels=short)
        trust = Trust.of(refine, screened, short)
        strangers = trust.outliers
        nfe += evaluations(len(used), chains, 0, levels)
        rounds += 1
        if rounds == _ROUNDS or not strangers or len(used) - len(strangers) < _FEWEST:
            break
        usual = float(trust.predicted.median())
        left_out += [LeftOut(int(used[i]), float(trust.predicted[i]), usual) for i in strangers]
        used = used[[i for i in range(len(used)) if i not in strangers]]
    best = min(keep, chains)
    models = refine(screened.rotations[:best], screened.shifts_px[:best], levels=levels)
    log_evidence = poses.log_evidence[screened.chain][models.chain]
    scores = {"misfit": models.misfit, "log_evidence_of_first_poses": log_evidence}
    nfe += (levels + 3) * best
    missing = tuple(sorted(left_out, key=lambda one: one.number))
    return RankedModels(models.x, models.rotations, models.shifts_px, scores, nfe, trust, scales, used, missing)


def evaluations(images: int, chains: int, keep: int, levels: int) -> int:
    """Network evaluations of `models_of_class_averages` where it leaves no image out.

    >>> evaluations(12, 8, 3, 20)
    223
    """
    return (min(_SHORT, levels) + 3) * (chains + folds(images)) + (levels + 3) * min(keep, chains)


def _expected(signal_power: Tensor, units: Normalization, radius: int, n: int) -> Tensor:
    """Power of projections of what the prior knows, in boxes of side n, at the frequencies 1..radius."""
    at = torch.arange(1, radius + 1).to(signal_power) * (len(signal_power) - 1) / (n / 2)
    power = torch.lerp(signal_power[at.floor().long()], signal_power[at.ceil().long()], at.frac())
    return n**3 * units.std**2 * power
