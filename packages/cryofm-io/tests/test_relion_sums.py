"""RELION's sums are read as it writes them; their ratio is the map, and the weights are the precision of its noise."""

import mrcfile
import numpy as np
import pytest

from cryofm_io import (
    CryoFMError,
    GeometryError,
    InputFileError,
    ReconstructionSums,
    read_reconstruction_sums,
)

N, P = 16, 32
NAME = "run_it003_half2_class001_external_reconstruct"


def radius(p=P):
    k = np.fft.fftfreq(p) * p
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(p // 2 + 1) ** 2)


def distance(n):
    x = np.arange(n) - n // 2
    return np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)


def spectrum_of(volume, p=P):
    """What RELION's sums are of without noise, over the weights: of the volume in the middle of P³, times sinc²."""
    n = len(volume)
    padded = np.pad(volume * np.sinc(distance(n) / p) ** 2, p // 2 - n // 2)
    return np.fft.rfftn(np.fft.ifftshift(padded)) / n**2


def blob(rng):
    """Well inside the box, and smooth."""
    r = np.stack(np.meshgrid(*3 * [np.arange(N) - N // 2], indexing="ij"), -1)
    return sum(np.exp(-((r - c) ** 2).sum(-1) / 5) for c in rng.uniform(-2, 2, (5, 3)))


def friedel(w):
    """W(k) = W(−k), which the column kx = 0 holds twice."""
    w = w.copy()
    w[..., 0] = (w[..., 0] + np.roll(w[::-1, ::-1, 0], (1, 1), (0, 1))) / 2
    return w


def sums(data, weight, **changes):
    made = {"box": N, "current_size": N, "voxel_size": 2.0, "tau2": np.ones(N // 2 + 1), "fsc": np.ones(N // 2 + 1)}
    return ReconstructionSums(data.astype("c8"), weight.astype("f4"), **(made | changes))


@pytest.mark.parametrize(("unevenness", "error"), [(0.0, 5e-3), (0.3, 5e-2)])
def test_the_map_is_found_whatever_the_weights(unevenness, error):
    rng = np.random.default_rng(0)
    volume = blob(rng)
    weight = friedel(1 + unevenness * rng.uniform(-1, 1, (P, P, P // 2 + 1))) * np.exp(-radius() / 20)
    made = sums(spectrum_of(volume) * weight * (radius() <= N), weight * (radius() <= N))
    within = distance(N) < 6
    assert np.abs(made.map() - volume)[within].max() < error * volume.max()
    assert np.abs(made.map(20)[2:-2, 2:-2, 2:-2] - volume)[within].max() < error * volume.max()


def test_wiener_is_less_where_the_signal_is_weak():
    rng = np.random.default_rng(1)
    tau2 = np.linspace(2, 0.1, N // 2 + 1)
    spectrum, weight = spectrum_of(blob(rng)) * (radius() <= N), np.full((P, P, P // 2 + 1), 0.25)
    shell = np.minimum(np.rint(radius() / 2), N // 2).astype(int)
    plain = sums(spectrum * weight, weight, tau2=tau2).map(wiener=True)
    filtered = np.fft.irfftn(spectrum * weight / (weight + 1 / (8 * tau2[shell]))) * N**2
    by_hand = np.fft.fftshift(filtered)[8:-8, 8:-8, 8:-8] / np.sinc(distance(N) / P) ** 2
    np.testing.assert_allclose(plain, by_hand, atol=1e-5)


@pytest.mark.parametrize("side", [N, 20, 28])
def test_the_precision_is_that_of_the_maps_noise(side):
    rng = np.random.default_rng(2)
    k = np.fft.fftfreq(P) * P
    across = np.abs(k)[:, None, None] / np.maximum(radius(), 1)
    weight = 0.5 * (1 + 8 * across) * (radius() <= N)  # more along z, and nothing beyond
    total = 0
    for _ in range(40):
        # Noise of every sum has the variance w, per component.
        noise = np.fft.rfftn(rng.normal(size=(P, P, P)), norm="ortho") * np.sqrt(2 * weight)
        made = sums(noise, weight)
        # The window that undoes the interpolation is another matter.
        flat = made.map(side) * np.sinc(np.minimum(distance(side) / P, 0.5)) ** 2
        total = total + np.abs(np.fft.rfftn(flat, norm="ortho")) ** 2 / 40
    W = made.precision(side)
    inside = radius(side) * N / side < N / 2 - 2
    assert (W[inside] > 0).all()
    for part in (inside & (across_of(side) > 0.8), inside & (across_of(side) < 0.4)):
        assert np.mean((W * total)[part]) == pytest.approx(1, abs=0.1)


def across_of(side):
    return np.abs(np.fft.fftfreq(side) * side)[:, None, None] / np.maximum(radius(side), 1)


def test_precision_does_not_hang_on_the_side():
    weight = friedel(5 + 3 * np.cos(np.arange(P // 2 + 1) / 9) + 0 * radius())
    made = sums(np.zeros(weight.shape), weight)
    fine, coarse = made.precision(2 * N), made.precision()
    np.testing.assert_allclose(fine[:6:2, :6:2, :6:2], coarse[:3, :3, :3], rtol=0.02)
    np.testing.assert_allclose(coarse, friedel(coarse), rtol=1e-5)


def test_what_was_not_measured_counts_for_nothing():
    rng = np.random.default_rng(4)
    weight = friedel(rng.uniform(1, 2, (P, P, P // 2 + 1)))
    gap = np.abs(np.fft.fftfreq(P) * P)[:, None, None] > 0.9 * radius()
    weight[gap & (radius() > 3)] = -1e-14  # as rounding leaves it
    W = sums(np.zeros((P, P, P // 2 + 1)), weight).precision()
    assert (W >= 0).all()
    assert W[6, 0, 0] == W[-6, 0, 0] == 0
    assert W[0, 6, 0] > 0
    assert (W[radius(N) > N / 2 - 0.5] == 0).all()  # the last shell is not complete


def test_uneven_weights_cost_what_the_precision_says():
    rng = np.random.default_rng(5)
    weight = friedel(rng.uniform(0, 1, (P, P, P // 2 + 1)) ** 4 + 1e-6) * (radius() <= N)
    total, plain = 0, 0
    for _ in range(30):
        noise = np.fft.rfftn(rng.normal(size=(P, P, P)), norm="ortho") * np.sqrt(2 * weight)
        made = sums(noise, weight)
        flat = made.map() * np.sinc(distance(N) / P) ** 2
        total = total + np.abs(np.fft.rfftn(flat, norm="ortho")) ** 2 / 30
        ratio = np.fft.fftshift(np.fft.irfftn(noise / np.maximum(weight, 1e-6))) * N**2
        plain = plain + np.abs(np.fft.rfftn(ratio[8:-8, 8:-8, 8:-8], norm="ortho")) ** 2 / 30
    inside = (radius(N) > 1) & (radius(N) < N / 2 - 2)
    assert np.mean((made.precision() * total)[inside]) == pytest.approx(1, abs=0.1)
    assert total[inside].mean() < plain[inside].mean() / 20  # of data over weights


def write(folder, *, relion5=False, half="_half2", model=True, general=(), drop=None, shape=(P, P, P // 2 + 1)):
    """What RELION leaves, by its names as seen from the folder it was started in."""
    name = NAME.replace("_half2", half)
    rng = np.random.default_rng(0)
    arrays = {part: rng.uniform(1, 2, shape).astype("f4") for part in ("data_real", "data_imag", "weight")}
    for part, array in arrays.items():
        if part != drop:
            with mrcfile.new(folder / f"{name}_{part}.mrc") as file:
                file.set_data(array)
    pairs = {
        "rlnExtReconsDataReal": f"job/{name}_data_real.mrc",
        "rlnExtReconsDataImag": f"job/{name}_data_imag.mrc",
        "rlnExtReconsWeight": f"job/{name}_weight.mrc",
        "rlnExtReconsResult": f"job/{name}.mrc",
        "rlnExtReconsResultStarfile": f"job/{name}_out.star",
        "rlnTau2FudgeFactor": 2.0,
        "rlnPaddingFactor": 2.0,
        "rlnReferenceDimensionality": 3,
        "rlnOriginalImageSize": N,
        "rlnCurrentImageSize": 12,
    }
    if relion5:
        pairs |= {"rlnPixelSize": 3.25, "rlnParticleDiameter": 120.0}
    pairs |= dict(general)
    rows = [f"{i:12d} {2.0 / (i + 1):12.6f} {1 - i / 10:12.6f}" for i in range(N // 2 + 1)]
    star = folder / f"{name}.star"
    star.write_text(
        "\n# version 30001\n\ndata_external_reconstruct_general\n\n"
        + "\n".join(f"_{tag:40s} {value}" for tag, value in pairs.items())
        + "\n\n\n# version 30001\n\ndata_external_reconstruct_tau2\n\nloop_ \n_rlnSpectralIndex #1 \n"
        + "_rlnReferenceTau2 #2 \n_rlnGoldStandardFsc #3 \n"
        + "\n".join(rows)
        + "\n\n"
    )
    if model:
        (folder / "run_it002_half2_model.star").write_text("data_model_general\n\n_rlnPixelSize   1.75\n")
    return star, arrays


def test_files_of_relion_3_1(tmp_path):
    star, arrays = write(tmp_path)
    found = read_reconstruction_sums(star)  # not from where RELION was started
    assert np.array_equal(found.data, arrays["data_real"] + 1j * arrays["data_imag"])
    assert np.array_equal(found.weight, arrays["weight"])
    assert (found.box, found.current_size, found.voxel_size, found.padding, found.half) == (N, 12, 1.75, 2.0, 2)
    assert found.tau2[1] == pytest.approx(2.0)  # the factor in it
    assert found.fsc[3] == pytest.approx(0.7)
    assert str(found.result) == f"job/{NAME}.mrc"


def test_files_of_relion_5_tell_the_voxel_size(tmp_path):
    star, _ = write(tmp_path, relion5=True)
    assert read_reconstruction_sums(star).voxel_size == 3.25
    assert read_reconstruction_sums(star, voxel_size=3.0).voxel_size == 3.0


def test_the_joined_call_has_no_half(tmp_path):
    star, _ = write(tmp_path, half="")
    (tmp_path / "run_it002_half2_model.star").rename(tmp_path / "run_it002_half1_model.star")
    found = read_reconstruction_sums(star)
    assert (found.half, found.voxel_size) == (None, 1.75)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": False}, InputFileError, "nothing tells the voxel size"),
        ({"drop": "weight"}, InputFileError, "weight.mrc"),
        ({"general": {"rlnReferenceDimensionality": 2}}, GeometryError, "2 dimensions"),
        ({"general": {"rlnCurrentImageSize": "x"}}, InputFileError, "rlnCurrentImageSize holds what is no number"),
        ({"general": {"rlnOriginalImageSize": 18}}, GeometryError, "9 and 9 shells"),
        ({"general": {"rlnCurrentImageSize": 40}}, GeometryError, "current size 40"),
        ({"shape": (P, P, P // 2)}, GeometryError, "no padded half grid"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, changes, error, said):
    star, _ = write(tmp_path, **changes)
    with pytest.raises(error, match=said):
        read_reconstruction_sums(star)


def test_other_star_files_are_refused(tmp_path):
    (tmp_path / "a.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    with pytest.raises(InputFileError, match="external_reconstruct_general"):
        read_reconstruction_sums(tmp_path / "a.star")
    with pytest.raises(CryoFMError, match="a side of 40"):
        sums(np.zeros((P, P, P // 2 + 1)), np.ones((P, P, P // 2 + 1))).map(40)
