"""The paper's limits on training maps, one by one."""

import pytest

from cryofm_model import CryoFMError
from cryofm_model.data.curation import curated

HEADER = "id,resolution,method,side,half_maps,helical"
GOOD = "EMD-1,2.99,Single-particle,576,yes,no"


@pytest.fixture
def table(tmp_path):
    def write(*lines, encoding="utf-8"):
        path = tmp_path / "maps.csv"
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return path

    return write


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("EMD-2,3.0,single particle,300,yes,no", "resolution 3 Å is not better than 3 Å"),
        ("EMD-2,2.5,subtomogram averaging,300,yes,no", "method 'subtomogram averaging' is not single particle"),
        ("EMD-2,2.5,singleParticle,300,no,no", "there are no half maps"),
        ("EMD-2,2.5,SINGLE PARTICLE,300,TRUE,1", "helical"),
        ("EMD-2,2.5,single particle,576.1,1,0", "side 576.1 Å is not within 576 Å"),
        ("EMD-2,n/a,single particle,300,yes,no", "not understood: resolution 'n/a'"),
        ("EMD-2,nan,single particle,300,yes,no", "resolution nan Å is not better"),
        ("EMD-2,0,single particle,300,yes,no", "resolution 0 Å is not better"),
        ("EMD-2,2.5,single particle,300,perhaps,no", "half_maps 'perhaps'"),
        ("EMD-2,2.5,single particle", "not understood"),
    ],
)
def test_one_good_and_one_refused(table, line, reason):
    decision = curated(table(HEADER, line, GOOD))
    assert decision.accepted == ("EMD-1",)
    assert list(decision.refused) == ["EMD-2"]
    assert reason in decision.refused["EMD-2"]


def test_columns_in_any_order_with_others_and_a_byte_order_mark(table):
    path = table(
        "note,helical,half_maps,side,method,resolution,id",
        "x,no, yes ,300,single particle, 2.1,EMD-9 ",
        encoding="utf-8-sig",
    )
    assert curated(path).accepted == ("EMD-9",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("id,resolution,method", "EMD-1,2,x"),
            "lacks the columns side, half_maps, helical; it has id, resolution, method",
        ),
        (("",), "lacks the columns"),
        ((HEADER,), "lists no maps"),
        ((HEADER, GOOD, GOOD), "lists EMD-1 more than once"),
    ],
)
def test_lists_that_are_none(table, lines, message):
    with pytest.raises(CryoFMError, match=message):
        curated(table(*lines))


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(CryoFMError, match="no readable CSV file"):
        curated(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CryoFMError, match="no readable CSV file"):
        curated(tmp_path / "binary.csv")


def test_files_of_accepted_maps(table, tmp_path):
    decision = curated(
        table(HEADER, GOOD, "EMD-22,2.0,single particle,100,yes,no", "EMD-3,4.0,single particle,9,yes,no")
    )
    one, two, three = (tmp_path / name for name in ("emd_1.map.gz", "EMD-22.mrc", "emd_3.map"))
    assert decision.choose([three, two, one]) == [one, two]
    with pytest.warns(UserWarning, match="no file for 1 of 2 accepted maps: EMD-22"):
        assert decision.choose([three, one]) == [one]
    with pytest.raises(CryoFMError, match="none of the 1 files is one of the 2 accepted maps"):
        decision.choose([three])
