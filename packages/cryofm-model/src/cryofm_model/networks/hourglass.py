"""The 3-D hourglass transformer of CryoFM (paper section 4.2, appendix B.1, figures 2, 12 and 13).

K. Crowson et al., "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion
Transformers", ICML 2024 (arXiv 2401.11605), in three dimensions. The tensors are named as in the published
checkpoints, which therefore load by strict keys.
"""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from cryofm_model.errors import CryoFMError
from cryofm_model.networks.blocks import SHUFFLED, UNSHUFFLED, Level, Linear, Projection, RMSNorm, Split
from cryofm_model.networks.embeddings import FourierFeatures
from cryofm_model.networks.hourglass_config import HourglassConfig

__all__ = ["Hourglass"]


class Hourglass(nn.Module):
    """Velocity v(x_t, t) of the flow.

    Patches become tokens; each level transforms them, keeps a copy and merges 2³ of them into one token of
    the next; the last level sees the whole volume; the way back splits the tokens, mixes in the copies and
    transforms again. For speed run it under autocast: `.to(torch.bfloat16)` would round the frequencies
    of the time code. Second derivatives exist on a CPU; PyTorch's fused global attention has none there, so ask
    for them under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        config: the sizes.
        generator: draws the initial weights (a fresh one with seed 0 if None). Nothing is drawn on the meta
            device: build there what a file will fill (`load_state_dict(..., assign=True)`).

    Attributes:
        recompute: whether gradients compute every block again in the backward pass instead of keeping what it
            held: about half of the memory for a third more time. False at first; set it at any time.

    >>> config = HourglassConfig(widths=(16, 32), depths=(1, 1), patch=2, kernel=3, head_width=16)
    >>> network = Hourglass(config, generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(1, 8, 8, 12), torch.tensor(0.5)).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(self, config: HourglassConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        *outer, last = zip(config.widths, config.depths, strict=True)
        width, voxels = config.widths[0], config.patch**3 * config.channels
        self.patch_in = Projection(voxels, width)
        self.time_emb = FourierFeatures(config.conditioning, config.time_code)
        self.time_in_proj = Linear(config.conditioning, config.conditioning)
        self.down_levels = nn.ModuleList(Level(config, w, n, config.kernel) for w, n in outer)
        self.up_levels = nn.ModuleList(Level(config, w, n, config.kernel) for w, n in outer)
        self.mid_level = Level(config, *last, None)
        self.merges = nn.ModuleList(Projection(8 * fine, coarse) for fine, coarse in pairwise(config.widths))
        self.splits = nn.ModuleList(Split(coarse, fine) for fine, coarse in pairwise(config.widths))
        self.out_norm = RMSNorm(width)
        self.patch_out = Projection(width, voxels, zero=True)
        self._draw(generator or torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity, of the shape of x.

        Args:
            x: (batch, z, y, x) in model units; (batch, z, y, x, channel) where there are several channels.
            t: time in [0, 1], 1 being noise; scalar or (batch,). The network knows the 1001 times τ/1000, and
                t is rounded to the nearest: the time code of a τ in between is nothing it was trained on.

        Raises:
            CryoFMError: a shape that does not fit, with the sides that do.
        """
        self._check(x, t)
        patch = self.config.patch
        condition = self.time_in_proj(self.time_emb(t.reshape(-1)).to(self.time_in_proj.weight.dtype))
        tokens = x if self.config.channels > 1 else x[..., None]
        tokens = self.patch_in(rearrange(tokens, f"{SHUFFLED} -> {UNSHUFFLED}", p=patch, q=patch, r=patch))

        skips: list[Tensor] = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            tokens = level(tokens, condition, recompute=self.recompute)
            skips.append(tokens)
            tokens = merge(rearrange(tokens, f"{SHUFFLED} -> {UNSHUFFLED}", p=2, q=2, r=2))
        tokens = self.mid_level(tokens, condition, recompute=self.recompute)
        for level, split in zip(reversed(self.up_levels), reversed(self.splits), strict=True):
            tokens = level(split(tokens, skips.pop()), condition, recompute=self.recompute)

        voxels: Tensor = self.patch_out(self.out_norm(tokens))
        voxels = rearrange(voxels, f"{UNSHUFFLED} -> {SHUFFLED}", p=patch, q=patch, r=patch)
        return voxels.reshape(x.shape)

    def _check(self, x: Tensor, t: Tensor) -> None:
        channels = self.config.channels
        expected = "(batch, z, y, x)" if channels == 1 else f"(batch, z, y, x, {channels})"
        if x.ndim != 4 + (channels > 1) or (channels > 1 and x.shape[-1] != channels):
            raise CryoFMError(f"the network needs a volume {expected}; found {tuple(x.shape)}")
        self.config.check_box(x.shape[1:4])
        if t.shape not in ((), x.shape[:1]):
            raise CryoFMError(f"t must be a scalar or ({x.shape[0]},), one time a volume; found {tuple(t.shape)}")

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, Linear) and not module.weight.is_meta:
                bound = 0.0 if module.zero else module.in_features**-0.5
                weight = torch.empty(module.weight.shape, device=generator.device)
                module.weight.copy_(weight.uniform_(-bound, bound, generator=generator))
        features = self.time_emb.weight
        if not features.is_meta:
            features.copy_(torch.randn(features.shape, generator=generator, device=generator.device))
