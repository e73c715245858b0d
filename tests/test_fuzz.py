"""A few seconds of ``nox -s fuzz``: see tests/fuzz/run.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("tqdm")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_damaged_files_are_refused_or_read(tmp_path):
    spec = importlib.util.spec_from_file_location("fuzz_run", Path(__file__).parent / "fuzz" / "run.py")
    fuzz = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_run"] = fuzz  # where attrs looks for it
    spec.loader.exec_module(fuzz)
    for name, counts in fuzz.fuzz(150, seed=1, keep=tmp_path).items():
        assert counts["refused"] > 0, name
        assert counts.total() == counts["read"] + counts["refused"], (name, counts)
