import math

import pytest
import torch

from cryofm_ops import GeometryError, angular_distance_deg, random_rotations, so3_grid, subdivide

ORDERS = range(4)
COUNT = {0: 72, 1: 576, 2: 4608, 3: 36864}
MEAN = {0: 28.4, 1: 14.1, 2: 7.07, 3: 3.55}
MAX = {0: 56, 1: 28, 2: 14, 3: 7}


def nearest(order: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance in degrees of n random rotations from the nearest of the grid, and which one that is."""
    found = random_rotations(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    trace = found.flatten(1) @ so3_grid(order).flatten(1).mT
    best = trace.max(1)
    return ((best.values - 1) / 2).clamp(-1, 1).acos().rad2deg(), best.indices


@pytest.mark.parametrize("order", ORDERS)
def test_rotations_are_rotations_and_all_different(order):
    grid = so3_grid(order)
    assert len(grid) == COUNT[order]
    torch.testing.assert_close(grid @ grid.mT, torch.eye(3, dtype=torch.float64).expand_as(grid))
    torch.testing.assert_close(torch.linalg.det(grid), torch.ones(len(grid), dtype=torch.float64))
    assert len(grid.flatten(1).mul(1e6).round().unique(dim=0)) == len(grid)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.slow
def test_distances_from_random_rotations(order):
    distance, _ = nearest(order, 2000)
    assert distance.mean() == pytest.approx(MEAN[order], rel=0.03)
    assert distance.max() < MAX[order]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.slow
def test_as_many_random_rotations_are_nearest_to_each(order):
    n = 100_000
    _, index = nearest(order, n)
    counts = torch.bincount(index, minlength=COUNT[order]).double()
    assert counts.std() / counts.mean() < 0.1  # 0.03 and 0.08 of it are counting noise


def ring_centres(side: int) -> list[tuple[float, float]]:
    """(z, φ) of the pixels in the ring scheme: equations 4 to 9 of Górski et al. (2005), pixel by pixel."""
    centres = []
    for i in range(1, side):  # north polar cap
        centres += [(1 - i**2 / (3 * side**2), math.pi / (2 * i) * (j - 0.5)) for j in range(1, 4 * i + 1)]
    for i in range(side, 3 * side + 1):  # equatorial belt
        s = (i - side + 1) % 2
        z = 4 / 3 - 2 * i / (3 * side)
        centres += [(z, math.pi / (2 * side) * (j - s / 2)) for j in range(1, 4 * side + 1)]
    return centres + [(-z, phi) for z, phi in centres if z > 2 / 3]


@pytest.mark.parametrize("order", ORDERS)
def test_directions_are_the_healpix_centres(order):
    # What looks along +z in the view is the third row of R, in the object's axes.
    directions = so3_grid(order)[:, 2]
    assert len(directions.mul(1e6).round().unique(dim=0)) == 12 * 4**order
    reference = torch.tensor(
        [
            ((1 - z * z) ** 0.5 * math.cos(phi), (1 - z * z) ** 0.5 * math.sin(phi), z)
            for z, phi in ring_centres(2**order)
        ],
        dtype=torch.float64,
    )
    assert len(reference) == 12 * 4**order
    distance = torch.cdist(directions[:: 6 * 2**order], reference)
    assert distance.amin(0).max() < 1e-6
    assert distance.amin(1).max() < 1e-6


def test_nested_pixels_of_the_first_base_pixel():
    # nside = 2: pixels 0 to 3 of the nested scheme are south, east, west and north of the centre of base pixel 0.
    z = so3_grid(1)[:: 6 * 2, 2, 2][:4]
    torch.testing.assert_close(z, torch.tensor([1 / 3, 2 / 3, 2 / 3, 11 / 12], dtype=torch.float64))


@pytest.mark.parametrize(("order", "reach"), [(0, 29.0), (1, 16.6), (2, 9.0)])
def test_children_lie_in_their_parents(order, reach):
    index = torch.arange(COUNT[order])
    children = subdivide(index, order)
    assert sorted(children.flatten().tolist()) == list(range(COUNT[order + 1]))
    distance = angular_distance_deg(so3_grid(order)[:, None], so3_grid(order + 1, children))
    # Half the diagonal of a cell; a plain Hopf grid has children 48 degrees away near a pole, at any order.
    assert distance.max() < reach


def test_cells_by_index_equal_the_grid():
    index = torch.tensor([[0, 5], [4607, 17]])
    torch.testing.assert_close(so3_grid(2, index), so3_grid(2)[index])
    assert so3_grid(2, index, dtype=torch.float32).dtype == torch.float32


def test_impossible_cells_are_named():
    with pytest.raises(GeometryError, match="got -1"):
        so3_grid(-1)
    with pytest.raises(GeometryError, match="cells 0 to 71, asked for 3 to 72"):
        so3_grid(0, torch.tensor([3, 72]))
