"""Files that claim more than they hold cost next to nothing, and no file brings out an error of another family."""

import bz2
import gzip
import time
import tracemalloc
import warnings
from unittest import mock

import numpy as np
import pytest
import raw_mrc

from cryofm_io import CryoFMError, DensityMap, InputFileError, MapWarning, read_images, read_map, write_map

DATA = np.random.default_rng(5).normal(size=(8, 8, 8)).astype(np.float32)
VALID = raw_mrc.header(DATA.shape) + DATA.tobytes()
BOMB = gzip.compress(VALID) + gzip.compress(bytes(2**28), 9)


def cheaply(read, path, limit=2**22):
    """What reading raises or returns, if it takes neither time nor memory."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MapWarning)
            return read(path)
    except CryoFMError as error:
        return error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < limit, f"{peak} bytes for a file of {path.stat().st_size}"
        assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "content",
    [
        raw_mrc.header((900, 900, 900), nsymbt=100) + bytes(100),
        raw_mrc.header((8, 8, 8), nsymbt=2**31 - 1) + bytes(2048),
        raw_mrc.header((8, 8, 8), nsymbt=-5) + bytes(2048),
        raw_mrc.header((2**31 - 1,) * 3) + bytes(2048),
        raw_mrc.header((-1, 8, 8)) + bytes(2048),
        raw_mrc.header((30000, 30000, 1), mode=101) + bytes(2048),
        gzip.compress(raw_mrc.header((900, 900, 900)) + bytes(100)),
        gzip.compress(raw_mrc.header((8, 8, 8), nsymbt=2**31 - 1) + bytes(2048)),
        bz2.compress(raw_mrc.header((900, 900, 900)) + bytes(100)),
        bz2.compress(raw_mrc.header((400, 400, 400)) + bytes(100)),
        gzip.compress(VALID)[:-100],
        gzip.compress(VALID)[:-5] + b"12345",
        b"\x1f\x8b",
        b"BZh9" + bytes(100),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_what_claims_more_than_it_holds_is_refused_at_once(tmp_path, content):
    path = tmp_path / "map.mrc"
    path.write_bytes(content)
    error = cheaply(read_map, path)
    assert isinstance(error, InputFileError)
    assert str(path) in str(error)
    assert isinstance(cheaply(read_images, path), InputFileError)


def test_what_follows_a_valid_map_is_not_unpacked(tmp_path):
    path = tmp_path / "map.mrc.gz"
    path.write_bytes(BOMB)
    assert np.array_equal(cheaply(read_map, path).data, DATA)
    with pytest.warns(MapWarning, match="more data than the header says"):
        read_map(path)


def test_a_compressed_file_is_unpacked_once(tmp_path):
    write_map(tmp_path / "map.mrc.gz", DensityMap(DATA, 1.5))
    with mock.patch("gzip.GzipFile", wraps=gzip.GzipFile) as opened:
        read_map(tmp_path / "map.mrc.gz")
    assert opened.call_count == 1


def test_a_stack_of_no_thickness_in_a_stack_of_volumes(tmp_path):
    path = raw_mrc.write(tmp_path / "map.mrc", DATA, ispg=401, sampling=(8, 8, 0), cell=(12, 12, 12))
    with pytest.warns(MapWarning, match="MZ is 0"), pytest.raises(CryoFMError, match="MX, MY, MZ"):
        read_map(path)


def test_a_few_images_of_a_large_stack_cost_their_own_size(tmp_path):
    with (tmp_path / "stack.mrcs").open("wb") as file:  # sparse: 1 GiB
        file.write(raw_mrc.header((4096, 256, 256), ispg=0))
        file.seek(1024 + 7 * 4 * 256**2)
        file.write(np.random.default_rng(0).normal(size=(2, 256, 256)).astype("<f4").tobytes())
        file.truncate(1024 + 4096 * 4 * 256**2)
    (tmp_path / "two.star").write_text("data_\n\nloop_\n_rlnImageName\n8@stack.mrcs\n9@stack.mrcs\n", encoding="utf-8")
    assert cheaply(read_images, tmp_path / "two.star", limit=2**23).data.shape == (2, 256, 256)


STAR = b"""data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
1 1.5 300 2.7 0.1

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnAngleRot #4
_rlnAngleTilt #5
_rlnAnglePsi #6
1@a.mrcs 1 9e3 1 2 3
2@a.mrcs 1 9e3 1 2 3
"""


def mutants(content, rng, count):
    """Copies with bytes, or header fields of four bytes, changed, cut off or put in."""
    odd = [0, 1, -1, 2**31 - 1, -(2**31), 255, 16, 101, 401]
    for _ in range(count):
        made = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(made)))
            match rng.integers(4):
                case 0:
                    made[at] ^= 1 << int(rng.integers(8))
                case 1:
                    field = 4 * int(rng.integers(0, 56))
                    made[field : field + 4] = np.int32(rng.choice(odd)).tobytes()
                case 2:
                    del made[at : at + int(rng.integers(1, 400))]
                case _:
                    made[at:at] = rng.bytes(int(rng.integers(1, 40)))
            if not made:
                break
        yield bytes(made)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mrc", "gz", "bz2", "star"])
def test_fuzz(tmp_path, kind):
    rng = np.random.default_rng(sum(kind.encode()))
    raw_mrc.write(tmp_path / "a.mrcs", DATA, ispg=0)
    content = {"mrc": VALID, "gz": gzip.compress(VALID), "bz2": bz2.compress(VALID), "star": STAR}[kind]
    path = tmp_path / ("map.star" if kind == "star" else "map.mrc")
    for made in mutants(content, rng, 400):
        path.write_bytes(made)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's would mean that a value slipped through
            for read in (read_images,) if kind == "star" else (read_map, read_images):
                cheaply(read, path)
