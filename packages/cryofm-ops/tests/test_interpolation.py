import itertools
import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import i0

from cryofm_ops import GeometryError, GridMismatchError
from cryofm_ops.fourier import interpolation
from cryofm_ops.fourier.interpolation import gather, scatter
from cryofm_ops.fourier.kernels import TRILINEAR, KaiserBessel

KERNELS = [TRILINEAR, KaiserBessel(2.0), KaiserBessel(1.25)]
SHAPE = (3, 4, 5)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def points(*batch, seed=1):
    """Inside, outside and across every face of the grid; two of them on voxels."""
    p = torch.rand(*batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 9 - 2
    p[..., 0, :] = torch.tensor([4.0, 3.0, 2.0])
    p[..., 1, :] = torch.tensor([0.0, 1.0, 0.0])
    return p


def weight(kernel, distance):
    if abs(distance) >= kernel.width / 2:
        return 0.0
    if kernel is TRILINEAR:
        return 1 - abs(distance)
    beta = kernel.beta
    return (i0(beta * math.sqrt(1 - (2 * distance / kernel.width) ** 2)) - 1) / (i0(beta) - 1)


def matrix(kernel, p):
    """The dense matrix of `gather`, from the definition, voxel by voxel."""
    rows = [
        [
            weight(kernel, z - k) * weight(kernel, y - j) * weight(kernel, x - i)
            for k, j, i in itertools.product(*map(range, SHAPE))
        ]
        for x, y, z in p.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_no_points_are_no_values(dtype):
    none = torch.zeros(0, 3, dtype=torch.float64)
    values = gather(draw(*SHAPE, dtype=dtype), none, TRILINEAR)
    assert (values.shape, values.dtype) == ((0,), dtype)
    assert torch.equal(scatter(values, none, SHAPE, TRILINEAR), torch.zeros(SHAPE, dtype=dtype))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_both_equal_the_dense_matrix(kernel, dtype, monkeypatch):
    monkeypatch.setattr(interpolation, "_POINTS_ON_CPU", 7)  # several chunks, the last one not full
    p = points(40)
    dense = matrix(kernel, p).to(dtype)
    grid, values = draw(*SHAPE, dtype=dtype), draw(40, dtype=dtype)
    torch.testing.assert_close(gather(grid, p, kernel), dense @ grid.flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(scatter(values, p, SHAPE, kernel).flatten(), dense.T @ values, atol=1e-6, rtol=0)
    inner = torch.vdot(gather(grid, p, kernel), values) - torch.vdot(
        grid.flatten(), scatter(values, p, SHAPE, kernel).flatten()
    )
    assert inner.abs() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS[:2], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_two_derivatives_in_values_and_positions(kernel, dtype):
    p = points(2, 6)[:, 2:].requires_grad_()
    grid, values = draw(*SHAPE, dtype=dtype).requires_grad_(), draw(2, 4, dtype=dtype).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda grid, p: gather(grid, p, kernel), (grid, p), fast_mode=True)
        assert check(lambda values, p: scatter(values, p, SHAPE, kernel), (values, p), fast_mode=True)


BATCHES = [((), ()), ((2,), ()), ((), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3))]


@pytest.mark.parametrize(("of_grid", "of_points"), BATCHES, ids=str)
def test_batches_broadcast(of_grid, of_points):
    grid, p = draw(*of_grid, *SHAPE, dtype=torch.float32), points(*of_points, 5).float()
    batch = torch.broadcast_shapes(of_grid, of_points)
    values = gather(grid, p)
    assert values.shape == (*batch, 5)
    assert values.dtype == torch.float32
    grids, ps = grid.expand(*batch, *SHAPE), p.expand(*batch, 5, 3)
    spread = scatter(values, p, SHAPE)
    for i in itertools.product(*map(range, batch)):
        torch.testing.assert_close(values[i], gather(grids[i], ps[i]))
        torch.testing.assert_close(spread[i], scatter(values[i], ps[i], SHAPE))


@pytest.mark.parametrize("oversampling", [1.0, 1.25, 2.0, 4.0])
def test_the_kernels_transform_equals_quadrature(oversampling):
    kernel = KaiserBessel(oversampling)
    for x in (0.0, 0.1, 0.25, 0.5):
        expected = 2 * quad(lambda t, x=x: weight(kernel, t) * math.cos(2 * math.pi * x * t), 0, 2)[0]
        assert float(kernel.transform(torch.tensor(x))) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_is_flat_at_its_edge_and_has_the_published_beta():
    kernel = KaiserBessel(2.0)
    assert kernel.beta == pytest.approx(math.pi * math.sqrt(4**2 / 2**2 * (2 - 0.5) ** 2 - 0.8))  # Beatty et al., eq. 5
    edge = torch.tensor([-2.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = kernel(edge)
    assert value.abs().max() < 1e-7
    (slope,) = torch.autograd.grad(value.sum(), edge)
    step = weight(kernel, 2 - 1e-6) / 1e-6
    torch.testing.assert_close(slope, torch.tensor([step, -step], dtype=torch.float64), atol=0, rtol=1e-4)


def test_no_points_and_wrong_points():
    assert gather(draw(*SHAPE), draw(0, 3)).shape == (0,)
    assert scatter(draw(0), draw(0, 3), SHAPE).abs().max() == 0
    with pytest.raises(GeometryError, match=r"points must be real \(..., n, 3\), got torch.float64 of shape \(4, 2\)"):
        gather(draw(*SHAPE), draw(4, 2))
    with pytest.raises(GridMismatchError, match=r"values of shape \(5,\) for points of shape \(4, 3\)"):
        scatter(draw(5), draw(4, 3), SHAPE)
