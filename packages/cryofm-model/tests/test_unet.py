"""The U-Net: preconditioning, locality, independence of the batch."""

import pytest
import torch

from cryofm_model import UNet, UNetConfig

SMALL = UNetConfig(widths=(8, 16, 24), depths=(1, 1, 1), up_depths=(1, 1), conditioning=8)


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    network = UNet(SMALL).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return network


def test_untrained_is_the_best_linear_denoiser_of_unit_variance_data():
    network = UNet(SMALL)
    x_t = torch.randn(3, 8, 8, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.4, 1.0])
    s = t[:, None, None, None]
    # E[x_1 - x_0 | x_t] for independent white x_0 and x_1
    expected = (s - (1 - s)) / (s**2 + (1 - s) ** 2) * x_t
    torch.testing.assert_close(network(x_t, t), expected)


def test_moving_the_input_moves_the_output(network):
    assert network.config.multiple == 8
    x = torch.zeros(1, 192, 8, 8)
    x[:, 88:96] = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor(0.5)
    moved = network(x.roll(8, 1), t)
    torch.testing.assert_close(network(x, t).roll(8, 1)[:, 80:-80], moved[:, 80:-80], rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_do_not_see_each_other(network):
    x = torch.randn(3, 8, 16, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.5, 0.9])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, t), alone, rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="must have n, n and n - 1 entries"):
        UNetConfig(widths=(8, 16), depths=(1,), up_depths=(1,))


def test_a_box_that_does_not_fit_is_refused(network):
    with pytest.raises(ValueError, match="multiple of 8"):
        network(torch.zeros(1, 8, 12, 8), torch.tensor(0.5))


def test_bf16_on_a_box_whose_coarsest_grid_is_smaller_than_a_kernel():
    torch.manual_seed(0)
    network = UNet(UNetConfig(widths=(8, 16, 24), depths=(1, 1, 1), up_depths=(1, 1), conditioning=8))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for side in (8, 16, 24):  # coarsest grids of 1, 2 and 3 voxels
        x, t = torch.randn(2, side, side, side), torch.tensor(0.3)
        exact = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x, t)
        assert (rounded - exact).norm() < 0.05 * exact.norm()
        gradients = []
        for velocity in (exact, rounded):
            network.zero_grad()
            velocity.square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()
