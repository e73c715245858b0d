"""The CTF against scalar arithmetic, the literature and its symmetries."""

import itertools
import math

import pytest
import torch

from cryofm_ops import CTF, OperatorError

VOXEL = 1.3


def ctf(**settings):
    return CTF(**{"defocus_u_angstrom": 9000.0, "voxel_size_angstrom": VOXEL, **settings})


def test_wavelength_of_the_literature():
    # Relativistic de Broglie wavelength in the form of the textbooks: 12.2643 / √(V + 0.97845e-6 V²) Å.
    for kilovolts in (80, 120, 200, 300):
        v = 1e3 * kilovolts
        textbook = 12.2643 / math.sqrt(v + 0.97845e-6 * v**2)
        assert float(ctf(voltage_kv=kilovolts).wavelength_angstrom) == pytest.approx(textbook, rel=1e-5)
    assert float(ctf(voltage_kv=300.0).wavelength_angstrom) == pytest.approx(0.0196875, abs=1e-7)
    assert float(ctf(voltage_kv=200.0).wavelength_angstrom) == pytest.approx(0.0250793, abs=1e-7)


@pytest.mark.parametrize("box", [(1, 12, 10), (1, 7, 9), (3, 6, 5), (1, 26, 4), (1, 4, 26)])  # 26 × 1.3 rounds
def test_scalar_formula(box):
    u, v, angle, kilovolts, cs, w, phase = 9500.0, 7800.0, 35.0, 200.0, 2.0, 0.07, 30.0
    found = ctf(
        defocus_u_angstrom=u,
        defocus_v_angstrom=v,
        defocus_angle_deg=angle,
        voltage_kv=kilovolts,
        spherical_aberration_mm=cs,
        amplitude_contrast=w,
        phase_shift_deg=phase,
    ).transfer(box)
    wavelength = 0.0250793404
    for z, y, x in itertools.product(range(box[0]), range(box[1]), range(box[2] // 2 + 1)):
        kz, ky, kx = ((i if i <= (n - 1) // 2 else i - n) / (n * VOXEL) for i, n in zip((z, y, x), box, strict=True))
        theta = math.atan2(ky, kx)
        aliases = [theta, -theta] if 2 * x == box[2] or 2 * y == box[1] else [theta]
        defocus = [(u + v + (u - v) * math.cos(2 * (a - math.radians(angle)))) / 2 for a in aliases]
        k2 = kx**2 + ky**2 + kz**2
        df_k2 = sum(defocus) / len(defocus) * (kx**2 + ky**2) + (u + v) / 2 * kz**2
        chi = math.pi * wavelength * df_k2 - math.pi / 2 * cs * 1e7 * wavelength**3 * k2**2
        chi += math.radians(phase) + math.asin(w)
        assert float(found[z, y, x]) == pytest.approx(math.sin(chi), abs=1e-6)


def test_sign_first_zero_and_overfocus():
    n, first, wavelength = 64, 9, 0.0196874888
    k = first / (n * VOXEL)
    # χ = π at k, solved for the defocus
    zero = (1 - math.asin(0.1) / math.pi + 0.5 * 2.7e7 * wavelength**3 * k**4) / (wavelength * k**2)
    row = ctf(defocus_u_angstrom=zero).transfer((1, 1, n))[0, 0]
    assert float(row[0]) == pytest.approx(0.1)
    assert float(row[first]) == pytest.approx(0, abs=1e-6)
    assert (row[:first] > 0).all()
    assert row[first + 1] < 0
    assert ctf(defocus_u_angstrom=-zero).transfer((1, 1, n))[0, 0, 4] < 0
    plate = ctf(defocus_u_angstrom=0.0, amplitude_contrast=0.0, phase_shift_deg=90.0, spherical_aberration_mm=0.0)
    torch.testing.assert_close(plate.transfer((4, 4, 4)), torch.ones(4, 4, 3, dtype=torch.float64))


def test_the_axis_of_astigmatism():
    u, v, box = 12000.0, 7000.0, (1, 15, 15)
    round_u, round_v = ctf(defocus_u_angstrom=u).transfer(box)[0], ctf(defocus_u_angstrom=v).transfer(box)[0]
    i = torch.arange(1, 8)

    def at(angle):
        return ctf(defocus_u_angstrom=u, defocus_v_angstrom=v, defocus_angle_deg=angle).transfer(box)[0]

    torch.testing.assert_close(at(0)[0, i], round_u[0, i])  # along x
    torch.testing.assert_close(at(0)[i, 0], round_v[i, 0])  # along y
    torch.testing.assert_close(at(45)[i, i], round_u[i, i])  # along +x, +y
    torch.testing.assert_close(at(45)[-i, i], round_v[-i, i])
    torch.testing.assert_close(at(30)[i, 3], at(-30)[-i, 3])  # mirrored
    torch.testing.assert_close(at(30), at(210))
    torch.testing.assert_close(at(90)[1:8, 1:], at(0)[1:8, 1:].T)  # by a quarter turn


def test_each_image_of_a_stack_has_its_own():
    u, angle = torch.tensor([8000.0, 9000.0, 12000.0]), torch.tensor([0.0, 30.0, 60.0])
    stack = ctf(defocus_u_angstrom=u, defocus_v_angstrom=u - 500, defocus_angle_deg=angle, voltage_kv=200)
    images = torch.randn(3, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        one = ctf(
            defocus_u_angstrom=float(u[i]),
            defocus_v_angstrom=float(u[i]) - 500,
            defocus_angle_deg=float(angle[i]),
            voltage_kv=200.0,
        )
        for method in ("__call__", "adjoint", "pinv"):
            torch.testing.assert_close(getattr(stack, method)(images)[i], getattr(one, method)(images[i]))


def test_the_plane_of_a_volume_is_the_image():
    settings = {"defocus_v_angstrom": 7000.0, "defocus_angle_deg": 20.0}
    volume, image = ctf(**settings).transfer((6, 8, 8)), ctf(**settings).transfer((1, 8, 8))
    torch.testing.assert_close(volume[:1], image)


def test_differentiable_in_the_defocus():
    u = torch.tensor([9000.0, 12000.0], dtype=torch.float64, requires_grad=True)
    v, angle = u.detach() - 700, torch.tensor(20.0, dtype=torch.float64, requires_grad=True)

    def of(u, angle):
        return ctf(defocus_u_angstrom=u, defocus_v_angstrom=v, defocus_angle_deg=angle).transfer((1, 4, 5))

    assert torch.autograd.gradcheck(of, (u, angle), eps=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"defocus_u_angstrom": math.nan}, "defocus_u_angstrom of a CTF must be finite, got nan"),
        ({"defocus_u_angstrom": torch.tensor([1.0, torch.inf])}, "defocus_u_angstrom .* got inf"),
        ({"voltage_kv": 0.0}, "voltage_kv of a CTF must be finite, 1 to 1e.04, got 0"),
        ({"amplitude_contrast": 7.0}, "amplitude_contrast .* 0 to 1, got 7"),
        ({"voxel_size_angstrom": 0.0}, "voxel_size_angstrom .* got 0"),
    ],
)
def test_impossible_values_are_named(settings, message):
    with pytest.raises(OperatorError, match=message):
        ctf(**settings)
