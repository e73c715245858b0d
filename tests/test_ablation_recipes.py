"""The recipes of the paper's ablations (F.1, F.2, F.4, figure 9): as published, and in small with one change each."""

from pathlib import Path

import attrs
import pytest
import torch

from cryofm_model import CRYOFM_VARIANTS, Hourglass
from cryofm_model.latent import DIT_4, DIT_8, VAE_4, VAE_8
from cryofm_model.train import read_recipe
from cryofm_model.train.checkpoint import differences

RECIPES = Path(__file__).parents[1] / "benchmarks" / "recipes"
EXAMPLES = Path(__file__).parents[1] / "examples" / "recipes"
MILLIONS = {"p4-d1": 335.18, "p2-d1": 335.10, "p8-d1": 335.87, "p4-d0": 377.75, "p4-d2": 316.06}  # Table 7


@pytest.mark.parametrize("name", MILLIONS)
def test_the_variants_of_table_7_are_cryofm_s_with_another_network(name):
    here = EXAMPLES / "cryofm-s.toml" if name == "p4-d1" else RECIPES / "ablation" / f"{name}.toml"
    recipe, base = read_recipe(here), read_recipe(EXAMPLES / "cryofm-s.toml")
    assert attrs.evolve(recipe.network, time_code="fp32") == CRYOFM_VARIANTS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in recipe.build().parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.005)
    assert attrs.evolve(recipe, network=base.network, machine=base.machine) == base


@pytest.mark.parametrize(
    ("name", "table"),
    [
        *((variant, "network") for variant in MILLIONS),
        *((crops, "data") for crops in ("centre-crop", "random-crop", "random-rotation")),
        ("not-normalised", "normalization"),
    ],
)
def test_small_runs_differ_from_their_base_in_one_table(name, table):
    recipe = read_recipe(RECIPES / "ablation" / f"small-{name}.toml")
    base = read_recipe(RECIPES / "ablation" / "small-p4-d1.toml")
    same = {table: getattr(base, table)}
    if name in ("p2-d1", "p8-d1"):  # whose crops cost most and least: as many as take about as long
        same["training"] = attrs.evolve(recipe.training, crops=base.training.crops)
    assert attrs.evolve(recipe, **same) == base
    assert bool(differences(attrs.asdict(recipe), attrs.asdict(base))) == (name != "p4-d1")
    if table == "network":  # the depth at the coarsest level, and what Table 7 varies
        assert recipe.network.patch == CRYOFM_VARIANTS[name].patch
        assert len(recipe.network.widths) == len(CRYOFM_VARIANTS[name].widths)


def test_the_four_augmentations_are_f1s():
    names = ("centre-crop", "random-crop", "p4-d1", "random-rotation")
    data = [read_recipe(RECIPES / "ablation" / f"small-{name}.toml").data for name in names]
    kinds = [(one.place, one.turn) for one in data]
    assert kinds == [("centre", "none"), ("uniform", "none"), ("uniform", "rot24"), ("uniform", "so3")]


@pytest.mark.parametrize(("d", "vae", "dit", "steps"), [(4, VAE_4, DIT_4, 588_480), (8, VAE_8, DIT_8, 1_097_872)])
def test_latent_models_are_those_of_f4(d, vae, dit, steps):
    published, flow = (read_recipe(RECIPES / "latent" / f"{kind}-{d}.toml") for kind in ("vae", "lfm"))
    assert (published.network, flow.network) == (vae, dit)
    for recipe, expected in ((published, steps), (flow, 300_000)):
        step = next(recipe.training.plan())
        assert recipe.training.crops * 32**3 == expected * step.voxels  # Table 10, F.4.2
    small, small_flow = (read_recipe(RECIPES / "latent" / f"small-{kind}-{d}.toml") for kind in ("vae", "lfm"))
    assert small.network.factor == d
    assert small.network.channels == small_flow.network.channels == vae.channels
    assert isinstance(small_flow.build(), Hourglass)
