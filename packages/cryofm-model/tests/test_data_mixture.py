"""A mixture draws what it says, and a draw depends on its seed, step and place alone."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cryofm_model import CryoFMError, Normalization
from cryofm_model.data import MapSet
from cryofm_model.data.mixture import Imitated, Mixture
from cryofm_model.data.realism import MARGIN, imitate_measured

UNITS = Normalization()
EMPTY = -UNITS.mean / UNITS.std


class Constant:
    """Crops of one value."""

    def __init__(self, value):
        self.value = value

    def crops(self, batch, side, rng):
        return torch.full((batch, side, side, side), self.value)


def density(seed):
    rng = np.random.default_rng(seed)
    z = np.full((24, 26, 28), EMPTY, np.float16)
    z[8:16, 8:16, 8:16] = rng.uniform(1, 9, (8, 8, 8))
    return z


@pytest.fixture
def sources():
    pytest.importorskip("scipy")
    return MapSet([density(0)], UNITS), MapSet([density(1), density(2)], UNITS)


def test_fractions():
    mixture = Mixture([(Constant(1.0), 0.08), (Constant(2.0), 0.62), (Constant(3.0), 0.3)])
    counts = Counter(mixture.crops(5000, 1, np.random.default_rng(0)).flatten().tolist())
    assert [counts[value] / 5000 for value in (1.0, 2.0, 3.0)] == pytest.approx([0.08, 0.62, 0.3], abs=0.02)


def test_the_mixture_of_the_bundled_prior_written_out(sources):
    measured, simulated = sources
    ours = Mixture([(measured, 0.08), (Imitated(simulated, 0.5, UNITS, 1.5), 0.92)])
    rng = np.random.default_rng([2, 7])
    kinds, expected = Counter(), []
    for _ in range(80):
        if rng.random() < 0.08:
            kinds["measured"] += 1
            expected.append(measured.crops(1, 16, rng)[0].numpy())
        elif rng.random() < 0.5:
            kinds["imitated"] += 1
            crop = simulated.crops(1, 16 + 2 * MARGIN, rng)[0].numpy() * UNITS.std + UNITS.mean
            crop = imitate_measured(crop, 1.5, rng)[MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
            expected.append((crop - UNITS.mean) / UNITS.std)
        else:
            kinds["simulated"] += 1
            expected.append(simulated.crops(1, 16, rng)[0].numpy())
    assert min(kinds.values()) >= 2
    assert len(kinds) == 3
    crops = ours.crops(80, 16, np.random.default_rng([2, 7])).numpy()
    np.testing.assert_allclose(crops, np.stack(expected), atol=1e-4)


def test_nothing_but_its_generator_matters(sources):
    measured, simulated = sources
    mixture = Mixture([(measured, 0.2), (Imitated(simulated, 0.5, UNITS, 1.5), 0.8)])

    def draw(seed, step, place):
        return mixture.crops(1, 12, np.random.default_rng([seed, step, place]))

    keys = [(seed, step, place) for seed in range(2) for step in range(4) for place in range(4)]
    once = {key: draw(*key) for key in keys}
    with ThreadPoolExecutor(4) as pool:  # another order, in other threads
        for key, crop in zip(reversed(keys), pool.map(lambda key: draw(*key), reversed(keys)), strict=True):
            assert torch.equal(crop, once[key]), key
    assert len({crop.numpy().tobytes() for crop in once.values()}) == len(keys)


@pytest.mark.slow
def test_another_process_draws_the_same(tmp_path):
    np.save(tmp_path / "map.npy", density(0))
    program = f"""
import numpy as np
from cryofm_model import Normalization
from cryofm_model.data import MapSet
maps = MapSet([np.load({str(tmp_path / "map.npy")!r}, mmap_mode="r")], Normalization())
np.save({str(tmp_path / "crops.npy")!r}, maps.crops(3, 12, np.random.default_rng([5, 17, 1])).numpy())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    here = MapSet([density(0)], UNITS).crops(3, 12, np.random.default_rng([5, 17, 1])).numpy()
    assert np.array_equal(here, np.load(tmp_path / "crops.npy"))


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.5, -0.5), (1.0, 0.0), (float("nan"), 0.5)])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(CryoFMError, match="positive and sum to 1"):
        Mixture([(Constant(0.0), fraction) for fraction in fractions])


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(CryoFMError, match="sum to 1"):
        Mixture([])
