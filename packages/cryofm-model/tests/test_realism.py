"""Each effect of `imitate_measured` does what its description says."""

import numpy as np
import pytest

from cryofm_model.data.realism import MARGIN, imitate_measured

pytest.importorskip("scipy")
SIDE, VOXEL = 48, 1.5


@pytest.fixture(scope="module")
def molecule():
    """Atoms in a ball, each a Gaussian of 1.2 Å; solvent 0."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1) * VOXEL
    density = np.zeros((SIDE,) * 3)
    while density.sum() < 200:
        place = rng.uniform(-14, 14, 3)
        if np.linalg.norm(place) < 14:
            density += np.exp(-((grid - place - SIDE * VOXEL / 2) ** 2).sum(-1) / (2 * 1.2**2))
    return (density / density.max()).astype(np.float32)


@pytest.fixture(scope="module")
def distance():
    """Å from the molecule's surface, negative inside."""
    grid = (np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1) - SIDE / 2) * VOXEL
    return np.linalg.norm(grid, axis=-1) - 14


class Coins:
    """A generator whose coins (blur? halo?) fall as told."""

    def __init__(self, seed, *coins):
        rng, self.coins = np.random.default_rng(seed), iter(coins)
        self.uniform, self.standard_normal = rng.uniform, rng.standard_normal

    def random(self):
        return next(self.coins)


HEADS, TAILS = 0.0, 0.9
SEEDS = range(12)


def imitate(molecule, seed, blur, halo):
    return imitate_measured(molecule, VOXEL, Coins(seed, blur, halo))


def power(volume):
    frequency = np.fft.fftfreq(SIDE, VOXEL)
    s = np.sqrt(sum(f**2 for f in np.meshgrid(*[frequency] * 3, indexing="ij")))
    shells = np.round(s * SIDE * VOXEL).astype(int).ravel()
    return np.bincount(shells, (np.abs(np.fft.fftn(volume)) ** 2).ravel()) / np.bincount(shells)


@pytest.mark.parametrize("blur", [HEADS, TAILS])
@pytest.mark.parametrize("halo", [HEADS, TAILS])
def test_values(molecule, blur, halo):
    before = molecule.copy()
    imitations = [imitate(molecule, seed, blur, halo) for seed in SEEDS]
    for imitated in imitations:
        assert imitated.shape == molecule.shape
        assert imitated.dtype == np.float32
        assert imitated.min() >= 0
        assert 0.9 - 1e-4 < imitated.max() / molecule.max() < 1.1 + (0.1 if halo == HEADS else 1e-4)
    assert len({imitated.tobytes() for imitated in imitations}) == len(imitations)
    assert np.array_equal(imitations[3], imitate(molecule, 3, blur, halo))
    assert np.array_equal(molecule, before)


def test_each_coin_is_fair(molecule):
    """Half of the crops are blurred and half have a halo: seen by how often noise is drawn."""
    small = np.ascontiguousarray(molecule[16:32, 16:32, 16:32])
    draws = []
    for seed in range(200):
        coins = Coins(seed)
        rng, normal = np.random.default_rng([seed]), coins.standard_normal
        coins.random = rng.random
        coins.standard_normal = lambda *a, normal=normal: (draws.append(1), normal(*a))[1]
        imitate_measured(small, VOXEL, coins)
    assert 165 < len(draws) < 235  # 200 expected, standard deviation 10


def test_low_frequencies_gain_on_high_ones(molecule):
    """Contrast and B factor: against power at 6 to 8 Å, more at 24 Å and less at 4 Å, on average."""
    gain = np.mean([power(imitate(molecule, seed, TAILS, TAILS)) for seed in range(60)], 0) / power(molecule)
    middle = gain[round(SIDE * VOXEL / 8) : round(SIDE * VOXEL / 6) + 1].mean()
    assert gain[round(SIDE * VOXEL / 24)] > 1.3 * middle
    assert gain[round(SIDE * VOXEL / 4)] < 0.7 * middle


def test_a_blur_comes_and_goes(molecule, distance):
    """Some parts of the molecule are what they would be without (up to the scale); others have lost detail."""
    for seed in SEEDS:
        sharp, blurred = imitate(molecule, seed, TAILS, TAILS), imitate(molecule, seed, HEADS, TAILS)
        inside = (distance < 0) & (sharp > 0.1 * sharp.max())
        ratio = blurred[inside] / sharp[inside]
        counts, edges = np.histogram(ratio, np.arange(0, 3, 0.005))
        kept = counts.max() / inside.sum()  # the ratio of the scales
        assert 0.1 < kept < 0.95
        assert np.std(ratio) > 0.01
        detail = slice(round(SIDE * VOXEL / 5), round(SIDE * VOXEL / 4) + 1)
        scale = edges[counts.argmax()] ** 2
        assert power(blurred)[detail].mean() < scale * power(sharp)[detail].mean()


def test_the_halo_is_in_the_solvent_and_strongest_near_the_molecule(molecule):
    ndimage = pytest.importorskip("scipy.ndimage")
    distance = ndimage.distance_transform_edt(molecule < 0.15) * VOXEL
    core, near, far = molecule > 0.6, (distance > 2) & (distance < 4), distance > 18
    rms = []
    for seed in range(40):
        halo = imitate(molecule, seed, TAILS, HEADS) - imitate(molecule, seed, TAILS, TAILS)
        rms.append([np.sqrt(np.mean(halo[where] ** 2)) for where in (core, near, far)])
    in_core, in_near, in_far = np.sqrt(np.mean(np.square(rms), 0))
    assert in_core < 0.3 * in_far
    assert in_near > 1.1 * in_far
    assert in_far == pytest.approx(0.02 / np.sqrt(3) / np.sqrt(2), rel=0.2)  # uniform to 0.02; the negative half is cut


def test_the_halo_is_correlated(molecule):
    """Amplitudes that fall over 1/L, L from 4 to 10 Å, are an autocorrelation exp(-(π r / L)²): .25 to .8 at 1.5 Å."""
    near, far = [], []
    for seed in range(20):
        corner = imitate(molecule, seed, TAILS, HEADS)[:, :8, :8]
        corner = corner - corner.mean()
        near.append(np.mean(corner[1:] * corner[:-1]) / np.mean(corner**2))
        far.append(np.mean(corner[12:] * corner[:-12]) / np.mean(corner**2))
    assert 0.15 < min(near) < 0.5 < max(near) < 0.85
    assert abs(np.mean(far)) < 0.1


def test_an_empty_crop_stays_finite():
    for seed in range(8):
        empty = np.zeros((20, 21, 22), np.float32)
        assert np.isfinite(imitate_measured(empty, VOXEL, np.random.default_rng(seed))).all()


def test_the_margin_holds_what_wraps_around():
    """The filters are periodic: what stands at one face appears within the margin of the opposite one, not beyond."""
    wall = np.zeros((40, 40, 40), np.float32)
    wall[:4] = np.random.default_rng(0).uniform(0, 1, (4, 40, 40))
    leaked = []
    for seed in range(20):
        imitated = imitate(wall, seed, TAILS, TAILS)
        leaked.append(imitated[-MARGIN - 4 : -MARGIN].max() / imitated[:4].max())
    assert np.median(leaked) < 0.05
