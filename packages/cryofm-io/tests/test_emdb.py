"""An entry of the EMDB is found as it is downloaded: by its header, by the names of its files, unpacked or not."""

import pytest

from cryofm_io import InputFileError, find_emdb_entry, read_emdb_header

HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<emd emdb_id="EMD-{id}" version="3.0.3.5" xmlns="http://pdbe.org/empiar">
  <admin><current_status><code>{status}</code></current_status></admin>
  <structure_determination_list><structure_determination><method>singleParticle</method>
    <singleparticle_processing><final_reconstruction>
      <resolution units="Å">{resolution}</resolution></final_reconstruction></singleparticle_processing>
  </structure_determination></structure_determination_list>
  <map format="CCP4"><file>emd_{id}.map.gz</file>
    <cell><a units="Å">90.0</a><b units="Å">100.5</b><c units="Å">80.0</c></cell>
    <contour_list><contour primary="false"><level>9.0</level></contour>
      <contour primary="true"><level>0.025</level></contour></contour_list></map>
  <interpretation>
    <segmentation_list><segmentation><file>emd_{id}_msk_1.map</file></segmentation></segmentation_list>
    <half_map_list><half_map><file>emd_{id}_half_map_1.map.gz</file></half_map>
      <half_map><file>emd_{id}_half_map_2.map.gz</file></half_map></half_map_list>
  </interpretation>
</emd>
"""
MIRROR = ("map/emd_1234.map.gz", "other/emd_1234_half_map_1.map.gz", "other/emd_1234_half_map_2.map.gz")


@pytest.fixture
def entry(tmp_path):
    """A folder with such files, and the header."""

    def entry(*names, header="header/emd-1234.xml", **changes):
        folder = tmp_path / "EMD-1234"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        if header is not None:
            (folder / header).parent.mkdir(parents=True, exist_ok=True)
            text = HEADER.format(**{"id": 1234, "status": "REL", "resolution": "2.90"} | changes)
            (folder / header).write_text(text, encoding="utf-8")
        return folder

    return entry


def names(found):
    return found.map and found.map.name, found.half_maps and [file.name for file in found.half_maps]


def test_a_mirror(entry):
    folder = entry(*MIRROR, "masks/emd_1234_msk_1.map", "other/emd_1234_additional_1.map.gz", "images/emd_1234.png")
    (folder / "header" / "emd-1234-v19.xml").write_text("<emdEntry accessCode='1234'/>")
    found = find_emdb_entry(folder)
    assert names(found) == ("emd_1234.map.gz", ["emd_1234_half_map_1.map.gz", "emd_1234_half_map_2.map.gz"])
    assert found.mask == folder / "masks" / "emd_1234_msk_1.map"
    header = found.header
    assert (header.id, header.resolution, header.contour, header.side) == ("EMD-1234", 2.9, 0.025, 100.5)
    assert (header.methods, header.helical) == (("singleParticle",), False)


def test_files_beside_each_other_unpacked_and_without_a_header(entry):
    folder = entry("emd_1234.map", "EMD_1234_half_map_1.mrc", "emd_1234_half_map_2.map", header=None)
    found = find_emdb_entry(folder)
    assert names(found) == ("emd_1234.map", ["EMD_1234_half_map_1.mrc", "emd_1234_half_map_2.map"])
    assert (found.header, found.mask) == (None, None)


def test_names_of_the_header_win(entry):
    folder = entry("emd_1234.map", "emd_1234_half_map_1.map", "emd_1234_half_map_2.map", "sharp.map")
    header = folder / "header" / "emd-1234.xml"
    header.write_text(header.read_text(encoding="utf-8").replace("emd_1234.map.gz", "sharp.map.gz"), encoding="utf-8")
    assert find_emdb_entry(folder).map.name == "sharp.map"


def test_one_map_or_halves_alone(entry):
    folder = entry("map/emd_1234.map.gz")
    assert names(find_emdb_entry(folder)) == ("emd_1234.map.gz", None)
    (folder / "map" / "emd_1234.map.gz").unlink()
    entry(*MIRROR[1:])
    assert names(find_emdb_entry(folder))[0] is None


def test_of_several_masks_none_is_chosen(entry):
    assert find_emdb_entry(entry(*MIRROR, "masks/emd_1234_msk_1.map")).mask is not None
    text = "emd_1234_msk_2.map"
    folder = entry(*MIRROR, f"masks/{text}", header=None)
    (folder / "header" / "emd-1234.xml").unlink()
    assert find_emdb_entry(folder).mask is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "without maps of the EMDB"),
        (MIRROR[:2], "holds one half map, emd_1234_half_map_1.map.gz, and not the other"),
        (("emd_1.map", "emd_2.map"), "maps of several entries"),
    ],
)
def test_what_is_missing_is_told(entry, files, said):
    with pytest.raises(InputFileError, match=said):
        find_emdb_entry(entry(*files))


def test_two_headers_are_two_entries(entry):
    folder = entry(*MIRROR)
    (folder / "header" / "emd-5.xml").write_text(HEADER.format(id=5, status="REL", resolution=3), encoding="utf-8")
    with pytest.raises(InputFileError, match="several entries: EMD-1234, EMD-5"):
        find_emdb_entry(folder)


def test_what_the_header_does_not_tell(entry):
    folder = entry(resolution="")
    assert read_emdb_header(folder / "header" / "emd-1234.xml").resolution is None
    folder = entry(status="HPUB")
    with pytest.raises(InputFileError, match="not released"):
        read_emdb_header(folder / "header" / "emd-1234.xml")
    with pytest.raises(InputFileError, match="cannot be read as XML"):
        read_emdb_header(folder / "none.xml")
