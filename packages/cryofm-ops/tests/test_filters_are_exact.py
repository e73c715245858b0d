"""Every Fourier-diagonal operator against the dense matrix of its transfer, and each filter against its formula."""

import itertools
import math

import pytest
import torch

from cryofm_ops import (
    CTF,
    DoubleTilt,
    Envelope,
    FourierMask,
    FourierMultiplier,
    FourierOperator,
    GridMismatchError,
    Identity,
    LinearOperator,
    LowPass,
    MissingWedge,
    OperatorError,
    PseudoInvertible,
    RadialFilter,
    RemoveMean,
    add,
    compose,
    half_shape,
    radial,
    stack,
)

SMOOTH = LowPass(4.0, voxel_size=1.5, edge_fraction=0.8)
WEDGE = MissingWedge(-30, 70)
ASTIGMATIC = CTF(
    defocus_u_angstrom=3000.0,
    defocus_v_angstrom=2500.0,
    defocus_angle_deg=25.0,
    phase_shift_deg=20.0,
    voxel_size_angstrom=1.7,
)


def any_mask(shape):
    """Complex, and Hermitian since it is the transform of a real kernel."""
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return FourierMask.from_full_grid(torch.fft.fftn(kernel))


OPERATORS = {
    "low pass": lambda shape: SMOOTH,
    "hard low pass": lambda shape: LowPass(4.0, voxel_size=1.5, edge_fraction=0),
    "radial": lambda shape: RadialFilter(torch.tensor([1.0, -0.3, 0.1], dtype=torch.float64)),
    "mask": any_mask,
    "without mean": lambda shape: RemoveMean(),
    "wedge": lambda shape: WEDGE,
    "soft wedge about x": lambda shape: MissingWedge(-50, 65, "x", edge_deg=20),
    "double tilt": lambda shape: DoubleTilt(WEDGE, MissingWedge(-60, 40, "x")),
    "ctf": lambda shape: ASTIGMATIC,
    "product": lambda shape: compose(any_mask(shape), WEDGE, SMOOTH),
    "sum": lambda shape: add(ASTIGMATIC, Identity(), any_mask(shape)),
}


@pytest.fixture(params=OPERATORS)
def operator(request, oracle):
    return OPERATORS[request.param](oracle.shape)


def volumes(oracle, generator, dtype=torch.float64):
    return torch.randn(2, 3, *oracle.shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.slow
def test_application_adjoint_and_inverse_are_the_dense_ones(operator, oracle, generator):
    a = oracle.filter(operator.transfer(oracle.shape))  # which fails where A is not real
    x = volumes(oracle, generator)
    for found, dense in ((operator(x), a), (operator.adjoint(x), a.T), (operator.pinv(x), torch.linalg.pinv(a))):
        torch.testing.assert_close(found.flatten(-3), x.flatten(-3) @ dense.T)


def test_without_mean(oracle, generator):
    x = volumes(oracle, generator)
    torch.testing.assert_close(RemoveMean()(x), x - x.mean((-3, -2, -1), keepdim=True))


def test_moore_penrose(operator, oracle, generator):
    x = volumes(oracle, generator)
    y = operator(x)
    torch.testing.assert_close(operator(operator.pinv(y)), y)
    torch.testing.assert_close(operator.pinv(operator(operator.pinv(x))), operator.pinv(x))
    for projection in (lambda v: operator(operator.pinv(v)), lambda v: operator.pinv(operator(v))):
        torch.testing.assert_close((projection(x) * y).sum(), (x * projection(y)).sum())


def test_float32_follows_the_volume_and_nothing_is_mutated(operator, oracle, generator):
    x = volumes(oracle, generator, torch.float32)
    before = x.clone()
    for method in (operator, operator.adjoint):
        assert method(x).dtype == torch.float32
        torch.testing.assert_close(method(x), method(x.double()).float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(method(x)[1, 2], method(x[1, 2]))
    assert operator.pinv(x).dtype == torch.float32
    assert x.equal(before)


def test_the_device_follows_the_volume(operator, oracle):
    x = torch.zeros(oracle.shape, device="meta")
    for method in (operator, operator.adjoint, operator.pinv):
        assert method(x).device == x.device


def test_the_gradient_is_the_adjoint(operator, oracle, generator):
    x = volumes(oracle, generator).requires_grad_()
    y = volumes(oracle, generator)
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(y))


def test_capabilities(operator):
    assert isinstance(operator, FourierOperator)
    assert isinstance(operator, LinearOperator)
    assert isinstance(operator, PseudoInvertible)
    assert isinstance(operator, FourierMultiplier)


def test_the_inverse_is_zero_where_the_transfer_is_rounding():
    tiny = RadialFilter(torch.tensor([1.0, 1e-7]))
    checkerboard = 1 - 2 * (torch.arange(4).expand(1, 1, 4) % 2).double()
    assert tiny.pinv(checkerboard.float()).abs().max() == 0
    torch.testing.assert_close(tiny.pinv(checkerboard), 1e7 * checkerboard)
    both = checkerboard.float().expand(2, 1, 1, 4)
    assert stack(tiny, tiny).pinv(both).abs().max() == 0
    faint = FourierMask(torch.tensor([1.0, 1e-9]).reshape(2, 1, 1, 1).expand(2, 1, 1, 3), (1, 1, 4))
    torch.testing.assert_close(faint.pinv(faint(both)), both)  # each of a batch against its own largest
    assert RadialFilter(torch.zeros(2)).pinv(torch.ones(4, 4, 4)).abs().max() == 0


def test_low_pass_formula():
    box, resolution, voxel, edge = (3, 4, 12), 5.0, 1.4, 0.5
    found = LowPass(resolution, voxel, edge).transfer(box)
    for z, y, x in itertools.product(*map(range, half_shape(box))):
        k = [min(i, n - i) / (n * voxel) for i, n in zip((z, y, x), box, strict=True)]  # 1/Å
        start, stop = (1 - edge / 2) / resolution, (1 + edge / 2) / resolution
        fraction = min(max((math.hypot(*k) - start) / (stop - start), 0), 1)
        assert float(found[z, y, x]) == pytest.approx(0.5 * (1 + math.cos(math.pi * fraction)), abs=1e-12)


def test_low_pass_at_and_beyond_nyquist():
    at_half = LowPass(6.0, voxel_size=1.5).transfer((8, 8, 8))
    assert float(at_half[0, 0, 2]) == pytest.approx(0.5)  # 0.25 cycles/voxel are 1/(6 Å)
    hard = LowPass(10.0, voxel_size=1.0, edge_fraction=0).transfer((1, 1, 30))
    assert hard[0, 0].tolist() == [1.0] * 4 + [0.0] * 12
    assert (LowPass(1.0, voxel_size=1.5).transfer((8, 8, 8)) == 1).all()
    nyquist = LowPass(3.0, voxel_size=1.5, edge_fraction=0).transfer((8, 8, 8))
    assert (float(nyquist[0, 0, 4]), float(nyquist[4, 4, 4])) == (1, 0)


def test_radial_filter_is_interpolated_and_its_corners_are_the_last_value():
    found = RadialFilter(torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)).transfer((1, 8, 8))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.5, 1.0, 3.0, 5.0], dtype=torch.float64))
    assert float(found[0, 4, 4]) == 5
    assert float(found[0, 1, 1]) == pytest.approx(2**0.5 / 8 * 4)


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 4, 5)])
def test_masks_on_the_half_and_on_the_full_grid_are_one(shape):
    mask = any_mask(shape)
    torch.testing.assert_close(FourierMask(mask.mask, shape).transfer(shape), mask.transfer(shape))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rolled = [x.roll(s, (0, 1, 2)) * kernel[s] for s in itertools.product(*map(range, shape))]
    torch.testing.assert_close(mask(x), torch.stack(rolled).sum(0))  # the convolution


def test_boolean_masks():
    kept = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    symmetric = kept | kept.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
    a = FourierMask.from_full_grid(symmetric)
    x = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(a(a(x)), a(x))
    assert symmetric[..., :3].double().equal(a.transfer((4, 4, 4)))


def test_masks_that_are_not_hermitian_are_refused_by_their_first_coefficient():
    mask = torch.ones(4, 4, 3, dtype=torch.complex128)
    mask[1, 2, 1] = 5  # its mate is in the other half: anything goes
    FourierMask(mask, (4, 4, 4))
    mask[1, 2, 0] = 3
    with pytest.raises(OperatorError, match=r"index \(1, 2, 0\) it is 3\+0j, .* mate is 2\+0j"):
        FourierMask(mask, (4, 4, 4))
    full = torch.ones(4, 4, 4)
    full[2, 3, 1] = 3
    with pytest.raises(OperatorError, match=r"index \(2, 1, 3\) it is 1, .* mate is 2\."):
        FourierMask.from_full_grid(full)
    half_voxel = torch.exp(-1j * torch.pi * torch.fft.rfftfreq(4, dtype=torch.float64)).expand(4, 4, 3)
    with pytest.raises(OperatorError, match=r"index \(0, 0, 2\).*Nyquist"):
        FourierMask(half_voxel, (4, 4, 4))
    FourierMask(half_voxel, (4, 4, 5))


def test_masks_belong_to_one_box():
    mask = FourierMask(torch.ones(4, 4, 3), (4, 4, 4))
    with pytest.raises(GridMismatchError, match=r"for a box \(4, 4, 4\), got a box \(4, 4, 5\)"):
        mask(torch.zeros(4, 4, 5))
    with pytest.raises(GridMismatchError, match=r"\(4, 4, 4\) is not on the half grid \(4, 4, 3\).*from_full_grid"):
        FourierMask(torch.ones(4, 4, 4), (4, 4, 4))
    with pytest.raises(OperatorError, match="finite, got 48 values"):
        FourierMask(torch.full((4, 4, 3), torch.nan), (4, 4, 4))


def test_bad_parameters_are_named():
    for arguments, message in (
        ((0.0, 1.5), "resolution of a low pass .* got 0"),
        ((4.0, math.nan), "voxel_size of a low pass .* got nan"),
        ((4.0, 1.5, 2.5), "edge_fraction must be from 0 .* got 2.5"),
    ):
        with pytest.raises(OperatorError, match=message):
            LowPass(*arguments)
    for table, message in (
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.ones(1), r"at least 2 entries, .* shape \(1,\)"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.tensor([1.0, torch.inf]), "got inf at entry 1"),
    ):
        with pytest.raises(OperatorError, match=message):
            RadialFilter(table)


def test_volumes_that_do_not_fit_are_named():
    images = CTF(defocus_u_angstrom=torch.tensor([1e4, 2e4, 3e4]), voxel_size_angstrom=1.0)
    for shape in ((1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(GridMismatchError, match=r"each of a batch \(3,\).*expand the volume"):
            images(torch.zeros(shape))
    assert images(torch.zeros(5, 3, 1, 8, 8)).shape == (5, 3, 1, 8, 8)
    with pytest.raises(GridMismatchError, match=r"got shape \(8, 8\)"):
        SMOOTH(torch.zeros(8, 8))

    class Full(FourierOperator):
        def transfer(self, shape, /):
            return torch.ones(shape)

    with pytest.raises(GridMismatchError, match=r"Full has a transfer of shape \(4, 4, 4\).*half grid is \(4, 4, 3\)"):
        Full()(torch.zeros(4, 4, 4))


def test_a_transfer_for_a_batch_of_one_is_that_of_all():
    class One(FourierOperator):
        def transfer(self, shape, /):
            return SMOOTH.transfer(shape)[None]

    x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(One()(x), SMOOTH(x))
    torch.testing.assert_close(One().adjoint(x), SMOOTH(x))


def test_whole_numbers_are_filtered_as_numbers():
    x = torch.arange(64).reshape(4, 4, 4)
    torch.testing.assert_close(SMOOTH(x), SMOOTH(x.to(torch.get_default_dtype())))


def test_an_envelope_is_that_of_relion():
    """Amplitudes fall as exp(−B ν² / 4): of B = 80 Å² at 4 Å e^{−1.25} is left, and its inverse brings all back."""
    n, voxel_size = 24, 1.5
    x = torch.cos(2 * math.pi * 9 * torch.arange(n, dtype=torch.float64) / n).expand(n, n, n)  # a period of 4 Å
    envelope = Envelope(80.0, voxel_size)
    torch.testing.assert_close(envelope(x), math.exp(-1.25) * x)
    torch.testing.assert_close(Envelope(-80.0, voxel_size)(envelope(x)), x)
    torch.testing.assert_close(radial(envelope.table(13), (n, n, n))[0, 0], envelope.transfer((n, n, n))[0, 0])


@pytest.mark.parametrize("values", [(math.nan, 1.5), (math.inf, 1.5), (50.0, 0.0), (50.0, math.nan)])
def test_envelopes_that_cannot_be_are_refused(values):
    with pytest.raises(OperatorError, match="of an envelope must be finite"):
        Envelope(*values)
