import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, write_map
from cryofm_model import (
    ConditionalPrior,
    Normalization,
    Prior,
    UNet,
    UNet3D,
    UNet3DConfig,
    UNetConfig,
    save_prior,
)
from cryofm_sampling import EnvelopeFit, ScaledNormalization, calibrate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # where the scripts find _command_line.py


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    """All that is drawn is drawn, on few pixels: layout and PNG at full size took a third of these tests' time."""
    plots = pytest.importorskip("cryofm_io.plots")
    full = plots._figure

    def small(width, height):
        figure = full(width, height)
        figure.set(dpi=30, layout_engine="none")
        return figure

    monkeypatch.setattr(plots, "_figure", small)


@pytest.fixture(scope="session")
def small_prior(tmp_path_factory):
    """A file with an untrained prior: for what does not depend on how good a prior is."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)).eval()
    generator = torch.Generator().manual_seed(0)
    examples = torch.randn(2, 16, 16, 16, generator=generator)
    measured = calibrate(lambda x, t: network(x, t), examples, generator=generator, times=(0.1, 0.5, 0.9))
    path = tmp_path_factory.mktemp("prior") / "small.safetensors"
    save_prior(Prior(network, Normalization(), 1.5, 32).with_statistics(measured), path)
    return path


@pytest.fixture(scope="session")
def conditional(tmp_path_factory):
    """A file with an untrained prior that may be shown a volume, of the second generation's kind, with guidance."""
    torch.manual_seed(0)
    config = UNet3DConfig(widths=(8, 16), depths=(1, 1), attention=(1,), conditions=2, tags=2, conditioning=8, groups=4)
    prior = ConditionalPrior(UNet3D(config).eval(), Normalization(clip=False), 1.5, 32, tag=1, weight=0.5)
    path = tmp_path_factory.mktemp("conditional") / "small.safetensors"
    save_prior(prior, path)
    return path


@pytest.fixture(scope="session")
def half_maps(tmp_path_factory):
    """Two half maps on an odd, non-cubic grid with an origin and a start of their own."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, (25, 28, 31)), indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 6) for c in rng.uniform(7, 19, (12, 3)))
    folder = tmp_path_factory.mktemp("halves")
    for name in ("half1", "half2"):
        noisy = 3 * density + rng.normal(0, 0.3, density.shape)
        write_map(folder / f"{name}.mrc", DensityMap(noisy, 1.3, origin=(1.3, -2.6, 3.9), nstart=(1, -2, 3)))
    return folder / "half1.mrc", folder / "half2.mrc"


@pytest.fixture
def run(monkeypatch, small_prior):
    """examples/denoise.py with these arguments."""
    denoise, script = pytest.importorskip("denoise"), pytest.importorskip("_command_line")

    def run(*arguments, prior=small_prior):
        monkeypatch.setattr("sys.argv", ["denoise.py", *map(str, arguments), "--prior", str(prior)])
        status = script.exit_code(denoise.main)
        return 0 if status == 3 and prior == small_prior else status  # of an untrained prior there are doubts

    return run


@pytest.fixture
def scale_given(monkeypatch):
    """No search for it."""
    fit = EnvelopeFit(ScaledNormalization(Normalization(), 0.5), 0.0, (), 0.0, 0)
    monkeypatch.setattr("cryofm_sampling.half_maps.restore.fit_envelope", lambda *_, **__: fit)
