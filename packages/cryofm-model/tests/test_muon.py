"""Muon against the singular value decomposition, and the weights that belong to it."""

import torch
from torch import nn

from cryofm_model import Hourglass, HourglassConfig, UNet, UNetConfig
from cryofm_model.train.muon import Muon, inner_weights, orthogonalised


def names(network):
    chosen = {id(p) for p in inner_weights(network)}
    return {name for name, p in network.named_parameters() if id(p) in chosen}


def test_orthogonalised_has_the_singular_vectors_and_values_near_1():
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 24), (12, 40), (40, 12)):
        matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.mT @ orthogonalised(matrix) @ vh.mT
        values = inside.diagonal()
        assert values.min() > 0.6
        assert values.max() < 1.25
        torch.testing.assert_close(inside, torch.diag(values), rtol=0, atol=1e-6)


def test_a_step_follows_the_nesterov_momentum():
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(3, 6, 8, generator=generator)
    weight = nn.Parameter(start.clone())
    optimiser = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
    first = 0.1 * gradients[0]
    second = 0.9 * first + 0.1 * gradients[1]
    expected = start
    for gradient, average in zip(gradients, (first, second), strict=True):
        expected = 0.95 * expected - 0.1 * orthogonalised(0.1 * gradient + 0.9 * average)
    torch.testing.assert_close(weight.detach(), expected)


def test_a_convolution_steps_as_the_matrix_of_its_inputs():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(16, 2, 3, 1, 1, generator=generator)
    convolution, matrix = nn.Parameter(torch.zeros(16, 2, 3, 1, 1)), nn.Parameter(torch.zeros(16, 6))
    convolution.grad, matrix.grad = gradient, gradient.reshape(16, 6)
    Muon([convolution, matrix], lr=0.1).step()
    torch.testing.assert_close(convolution.detach().reshape(16, 6), matrix.detach())
    norm = torch.linalg.matrix_norm(matrix.detach(), 2).item()
    assert 0.7 < norm / (0.1 * (16 / 6) ** 0.5) < 1.25  # taller than wide: longer steps


def test_bf16_products_step_nearly_the_same_way():
    gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    full, rounded = nn.Parameter(torch.zeros(24, 40)), nn.Parameter(torch.zeros(24, 40))
    for weight, dtype in ((full, None), (rounded, torch.bfloat16)):
        weight.grad = gradient
        Muon([weight], lr=0.1, dtype=dtype).step()
    assert rounded.dtype == full.dtype
    apart = (rounded - full).norm() / full.norm()
    assert 0 < apart < 0.05


def test_the_inner_weights_of_a_unet():
    network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8))
    blocks = ("down.0.0", "down.1.0", "up.0.0")
    convolutions = {f"{block}.{conv}.weight" for block in blocks for conv in ("conv_in", "conv_out")}
    assert names(network) == convolutions | {"merge.0.weight", "split.0.weight"}


def test_the_inner_weights_of_an_hourglass():
    network = Hourglass(HourglassConfig(widths=(16, 32), depths=(1, 1), patch=2, kernel=3, head_width=16))
    blocks = ("down_levels.0.0", "up_levels.0.0", "mid_level.0")
    linear = ("self_attn.qkv_proj", "self_attn.out_proj", "ff.up_proj", "ff.down_proj")
    inner = {f"{block}.{part}.weight" for block in blocks for part in linear}
    assert names(network) == inner | {"merges.0.proj.weight", "splits.0.proj.weight"}
