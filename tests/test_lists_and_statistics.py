"""curate_emdb.py and calibrate_prior.py as their users run them."""

import csv

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, write_map
from cryofm_io.report import read_report
from cryofm_model import (
    CalibratedConditionalPrior,
    ConditionalPrior,
    Normalization,
    Prior,
    UNet3D,
    UNet3DConfig,
    load_prior,
    save_prior,
)
from cryofm_model.data import MapSet
from cryofm_model.data.curation import curated
from cryofm_model.data.pairs import degraded
from cryofm_sampling import calibrate

script = pytest.importorskip("_command_line")
curate_emdb, calibrate_prior = pytest.importorskip("curate_emdb"), pytest.importorskip("calibrate_prior")

HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<emd emdb_id="{id}" version="3.0.3.5"{namespace}>
  <admin><current_status><code>{status}</code></current_status><title>Made up</title></admin>
  <structure_determination_list><structure_determination structure_determination_id="1">
    <method>{method}</method><aggregation_state>{state}</aggregation_state>
    <{processing} image_processing_id="1"><final_reconstruction>
      <applied_symmetry>{symmetry}</applied_symmetry>
      {resolution}<resolution_method>FSC 0.143 CUT-OFF</resolution_method>
    </final_reconstruction></{processing}>
  </structure_determination></structure_determination_list>
  <map format="CCP4"><file>emd.map.gz</file><dimensions><col>256</col><row>256</row><sec>256</sec></dimensions>
    <cell><a units="Å">{a}</a><b units="Å">270.0</b><c units="Å">270.0</c></cell>
    <pixel_spacing><x units="Å">1.05</x><y units="Å">1.05</y><z units="Å">1.05</z></pixel_spacing></map>
  <interpretation>{halves}</interpretation>
</emd>
"""
HALF = "<half_map><file>emd_half_map_{}.map.gz</file></half_map>"
GOOD = {
    "namespace": "",
    "status": "REL",
    "method": "singleParticle",
    "state": "particle",
    "processing": "singleparticle_processing",
    "symmetry": "<point_group>C1</point_group>",
    "resolution": '<resolution units="Å" res_type="BY AUTHOR">2.7</resolution>',
    "a": "268.8",
    "halves": f"<half_map_list>{HALF.format(1)}{HALF.format(2)}</half_map_list>",
}
HELIX = "<helical_parameters><delta_z>4.8</delta_z><delta_phi>1.2</delta_phi></helical_parameters>"
HEADERS = {  # what is other than in a good one, and why it is refused; nothing where it is not
    "EMD-1001": ({}, ""),
    "EMD-1002": ({"namespace": ' xmlns="http://example.org/emdb"', "a": "576.0"}, ""),
    "EMD-1003": ({"resolution": GOOD["resolution"].replace("2.7", "3.4")}, "resolution 3.4 Å is not better than 3 Å"),
    "EMD-1004": ({"method": "subtomogramAveraging", "processing": "subtomogram_averaging_processing"}, "not single"),
    "EMD-1005": ({"halves": "<additional_map_list/>"}, "there are no half maps"),
    "EMD-1006": ({"symmetry": HELIX}, "helical"),
    "EMD-1007": ({"state": "filament"}, "helical"),
    "EMD-1008": ({"a": "600"}, "side 600 Å is not within 576 Å"),
    "EMD-1009": ({"resolution": ""}, "not understood: resolution ''"),
    "EMD-1010": ({"status": "OBS"}, "not released (OBS)"),
}


@pytest.fixture
def headers(tmp_path):
    for id, (other, _) in HEADERS.items():
        folder = tmp_path / "emdb" / id / "header"
        folder.mkdir(parents=True)
        (folder / f"{id.lower()}.xml").write_text(HEADER.format(id=id, **GOOD | other), encoding="utf-8")
    return tmp_path / "emdb"


@pytest.fixture
def run(monkeypatch):
    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, arguments)])
        return script.exit_code(module.main)

    return run


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_ten_headers_are_accepted_or_refused(run, headers, tmp_path, capsys):
    (headers / "other.xml").write_text("<emdEntry accessCode='1'/>")
    assert run(curate_emdb, headers, "--out", tmp_path / "lists", "--hold-out", 0) == 0
    assert "2 maps to train on, 0 held out, 9 refused" in capsys.readouterr().out
    content = read_report(tmp_path / "lists" / "report.html")
    assert [number["value"] for number in content["numbers"]] == ["2", "0", "9"]
    assert content["figures"][0]["series"][0]["y"] == [1, 2]
    decision = curated(tmp_path / "lists" / "train.csv")
    assert decision.accepted == ("EMD-1001", "EMD-1002")
    assert not decision.refused
    refused = {row["id"]: row["reason"] for row in rows(tmp_path / "lists" / "refused.csv")}
    for id, (_, reason) in HEADERS.items():
        if reason:
            assert reason in refused.get(id, refused.get(f"{id.lower()}.xml", ""))
    assert "no EMDB header of schema 3, but <emdEntry>" in refused["other.xml"]
    assert rows(tmp_path / "lists" / "train.csv")[1]["side"] == "576"


def test_the_hold_out_is_by_seed_and_does_not_change_with_other_entries(tmp_path):
    ids = [f"EMD-{i}" for i in range(1000, 1200)]
    chosen = curate_emdb.held_out(ids, 32, 0)
    assert len(chosen) == 32
    assert curate_emdb.held_out(ids[::-1], 32, 0) == chosen
    assert curate_emdb.held_out(ids, 32, 1) != chosen
    later = curate_emdb.held_out([*ids, *(f"EMD-{i}" for i in range(5000, 5020))], 32, 0)
    assert len(later & chosen) >= 32 - 20 * 32 // 100  # at most as many as there are new ones near the front


def test_held_out_entries_are_in_their_own_list(run, headers, tmp_path, capsys):
    assert run(curate_emdb, headers, "--out", tmp_path / "lists", "--hold-out", 1) == 0
    lists = [[row["id"] for row in rows(tmp_path / "lists" / name)] for name in ("train.csv", "held_out.csv")]
    assert sorted(lists[0] + lists[1]) == ["EMD-1001", "EMD-1002"]
    assert len(lists[1]) == 1
    assert run(curate_emdb, headers, "--out", tmp_path / "lists") == 2
    assert "already; give --overwrite to replace" in capsys.readouterr().err
    assert run(curate_emdb, tmp_path / "lists", "--out", tmp_path / "none") == 2


@pytest.fixture
def bare(small_prior, tmp_path):
    known = load_prior(small_prior)
    save_prior(
        Prior(known.network, known.normalization, 1.5, 16, about={"license": "X"}), tmp_path / "bare.safetensors"
    )
    return tmp_path / "bare.safetensors"


def test_statistics_are_those_of_calibrate(run, bare, tmp_path, capsys):
    maps = tmp_path / "maps"
    maps.mkdir()
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(24)], indexing="ij"), -1)
    for name in ("a", "b"):
        x = sum(np.exp(-((grid - c) ** 2).sum(-1) / 6) for c in rng.uniform(6, 18, (20, 3)))
        write_map(maps / f"{name}.mrc", DensityMap(x, 1.5))
    line = (bare, "--maps", maps, "--number", 3, "--out", tmp_path / "known.safetensors")
    assert run(calibrate_prior, *line, "--report", tmp_path / "page.html") == 0
    assert "3 crops of 16³ voxels of 1.5 Å, of 2 maps" in capsys.readouterr().out
    before, after = load_prior(bare), load_prior(tmp_path / "known.safetensors")
    for one, other in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert after.about["license"] == "X"
    files = sorted(maps.iterdir())
    crops = MapSet.from_files(files, before.normalization, 1.5).crops(3, 16, np.random.default_rng(0))
    expected = calibrate(before, crops, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after.denoising_error, expected.denoising_error)
    torch.testing.assert_close(after.signal_power, expected.signal_power)
    drawn = read_report(tmp_path / "page.html")["figures"][0]["series"][0]["y"]
    assert np.allclose(drawn, expected.denoising_error[:, 1] / crops.square().mean(), rtol=1e-3)
    torch.testing.assert_close(after.denoising_spectrum, expected.denoising_spectrum)
    assert run(calibrate_prior, *line) == 2  # before it measures anything
    assert "exists; give another --out, or --overwrite" in capsys.readouterr().err
    assert run(calibrate_prior, bare, "--maps", maps, "--out", bare, "--overwrite") == 2
    assert run(calibrate_prior, bare, "--maps", tmp_path / "nowhere", "--out", tmp_path / "x.safetensors") == 2


def test_a_conditional_prior_is_measured_with_crops_shown(run, tmp_path):
    torch.manual_seed(0)
    config = UNet3DConfig(widths=(8, 16), depths=(1, 1), attention=(1,), conditions=2, tags=2, conditioning=8, groups=4)
    prior = ConditionalPrior(UNet3D(config).eval(), Normalization(clip=False), 1.5, 16, tag=1, weight=2.0)
    save_prior(prior, tmp_path / "bare.safetensors")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(24)], indexing="ij"), -1)
    x = sum(np.exp(-((grid - c) ** 2).sum(-1) / 6) for c in rng.uniform(6, 18, (20, 3)))
    write_map(tmp_path / "a.mrc", DensityMap(x, 1.5))
    line = (tmp_path / "bare.safetensors", "--maps", tmp_path / "a.mrc", "--number", 2)
    assert run(calibrate_prior, *line, "--out", tmp_path / "known.safetensors") == 0
    known = load_prior(tmp_path / "known.safetensors")
    assert isinstance(known, CalibratedConditionalPrior)
    assert (known.tag, known.weight) == (1, 2.0)
    crops = MapSet.from_files([tmp_path / "a.mrc"], prior.normalization, 1.5).crops(2, 16, np.random.default_rng(0))
    calls, rng, shown = [], np.random.default_rng(0), []
    for crop in crops:
        shown.append((torch.from_numpy(degraded((0.04 + 0.09 * crop).numpy(), rng)) - 0.04) / 0.09)

    def velocity(x, t):
        calls.append(t)
        return prior.given(x, t, shown[(len(calls) - 1) // 15], 1)

    expected = calibrate(velocity, crops, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(known.denoising_error, expected.denoising_error)
