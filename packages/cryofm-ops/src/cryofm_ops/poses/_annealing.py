"""Poses annealed on their evidence: an image after the other is drawn anew, given all the others where they are.

Common lines of noisy images are in doubt one by one, and what their sum prefers is often wrong; the evidence
(`pose_log_evidence`), which takes all that several images say of a place at once, knows the right poses well. Of one
image at a pose, given the others, it is p(y_k | y_others): normal, with the mean C A⁻¹ y and the covariance
S − C A⁻¹ Cᵀ, for A the covariance of the others, C that of the image with them and S its own. A is factored once for
all poses of the image that are tried, and they are proposed by common lines. One is drawn at a temperature that falls
(Kirkpatrick, Gelatt & Vecchi, Science 220, 1983), so that images that hold each other at wrong poses come free; at the
end the best is taken.
"""

import math
from collections.abc import Callable, Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops.poses._central_slices import band
from cryofm_ops.poses._refinement import phase
from cryofm_ops.poses.evidence import MODEL_ERROR, ball, signal_and_error

Proposals = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
_TEMPERATURES = (5.0, 3.0, 2.0, 1.5, 1.0, 0.0, 0.0)  # of the sweeps; at 0 the best is taken


@torch.no_grad()
def annealed(
    images: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    propose: Proposals,
    streams: Sequence[torch.Generator],
    *,
    diameter_px: float,
    noise: Tensor,
    spread_px: float,
) -> tuple[Tensor, Tensor]:
    """Poses of every chain, annealed by itself.

    Args:
        images: `(K, n, n)`.
        rotations: object to view, `(C, K, 3, 3)`, to begin with.
        shifts_px: what centres the images, `(C, K, 2)`.
        propose: poses (rotations `(N, 3, 3)`, shifts `(N, 2)`) of image k, by the rotations and shifts of all.
        streams: of random numbers, for each chain.
        diameter_px: of the object.
        noise: of each image, `(K, radius)`, at the frequencies that are used; see `pose_log_evidence`.
        spread_px: standard deviation of the shifts; 0 where they are none.
    """
    evidence = _Conditional.of(images, diameter_px, noise)
    rotations, shifts_px = rotations.clone(), shifts_px.clone()
    for R, s, stream in zip(rotations, shifts_px, streams, strict=True):  # views, which are written to
        for temperature in _TEMPERATURES:
            for k in torch.randperm(len(images), generator=stream, device=stream.device).tolist():
                turns, moves = propose(k, R, s)
                turns, moves = torch.cat((R[k, None], turns)), torch.cat((s[k, None], moves))
                log = evidence.given(k, R, s)(turns, moves)
                if spread_px:
                    log = log - moves.square().sum(-1) / (2 * spread_px**2)
                i = _drawn(log, temperature, stream)
                R[k], s[k] = turns[i], moves[i]
    return rotations, shifts_px


def _drawn(log: Tensor, temperature: float, stream: torch.Generator) -> int:
    if not temperature:
        return int(log.argmax())
    likelihood = ((log - log.max()) / temperature).exp()
    return int(torch.multinomial(likelihood.to(stream.device), 1, generator=stream))


@attrs.frozen(eq=False)
class _Conditional:
    """log p(y_k | y_others), all at given poses."""

    k: Tensor  # (m, 2)
    n: int
    y: Tensor  # (K, m)
    amplitude: Tensor  # (K, m), √P
    error: Tensor  # (K, m)
    scale: float

    @classmethod
    def of(cls, images: Tensor, diameter_px: float, noise: Tensor) -> Self:
        n, radius = images.shape[-1], noise.shape[-1]
        k = band(radius, images.device)
        y = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))[..., k[:, 1], k[:, 0]]
        signal, error = signal_and_error(y, k, noise, MODEL_ERROR)
        return cls(k, n, y, signal.sqrt(), error, math.pi * diameter_px / n)

    def given(self, k: int, rotations: Tensor, shifts_px: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Of image k, at poses `(N, 3, 3)` and `(N, 2)`, up to a constant, `(N,)`."""
        others = [i for i in range(len(rotations)) if i != k]
        points = self._points(rotations[others]).flatten(0, 1)
        amplitude, error = self.amplitude[others].flatten(), torch.diag(self.error[others].flatten() / 2)
        known = []
        data = self._data(self.y[others], shifts_px[others])
        for A, y in zip(self._covariances(points, points, amplitude, amplitude), data, strict=True):
            factor = torch.linalg.cholesky(A + error)
            white = torch.linalg.solve_triangular(factor, y.reshape(-1, 1), upper=False)
            known.append((factor.float(), white.float()))  # what is below costs most, and is precise enough
        own, own_error = self.amplitude[k].float(), torch.diag(self.error[k] / 2).float()
        points, amplitude = points.float(), amplitude.float()

        def log(turns: Tensor, moves: Tensor) -> Tensor:
            places = self._points(turns).float()
            N, m = places.shape[:2]
            seen = self._covariances(places.flatten(0, 1), points, own.repeat(N), amplitude)
            itself = self._covariances(places[0], places[0], own, own)  # the same however it is turned
            total = places.new_zeros(N)
            for C, S, (factor, white), y in zip(seen, itself, known, self._data(self.y[k], moves), strict=True):
                V = torch.linalg.solve_triangular(factor, C.mT, upper=False)
                mean = (V.mT @ white).view(N, m)
                V = V.mT.view(N, m, -1)
                root = torch.linalg.cholesky(S + own_error - V @ V.mT)
                rest = torch.linalg.solve_triangular(root, (y - mean)[..., None], upper=False)
                log_root = root.diagonal(dim1=-2, dim2=-1).log()
                total = total - rest.square().sum((-2, -1)) / 2 - log_root.sum(-1)
            return total

        return log

    def _points(self, rotations: Tensor) -> Tensor:
        return (self.k.to(rotations) @ rotations[..., :2, :]).double()

    def _data(self, y: Tensor, shifts_px: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of what the images have when they are centred."""
        centred = y * phase(-shifts_px, self.k, self.n)
        return centred.real.to(self.error), centred.imag.to(self.error)

    def _covariances(self, a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
        """Of real parts, and of imaginary ones, which a field that is real correlates at p and −p."""
        squares, products = a.square().sum(-1)[:, None] + b.square().sum(-1), 2 * a @ b.mT
        near, far = (ball(d.clamp(min=0).sqrt() * self.scale) for d in (squares - products, squares + products))
        amplitude = of_a[:, None] * of_b / 2
        return amplitude * (near + far), amplitude * (near - far)
