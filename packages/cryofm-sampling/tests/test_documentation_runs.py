"""Every example in a docstring and in the README runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import cryofm_sampling

README = Path(__file__).parents[1] / "README.md"
MODULES = ["cryofm_sampling", *(m.name for m in pkgutil.walk_packages(cryofm_sampling.__path__, "cryofm_sampling."))]
SLOW = {"cryofm_sampling.testing"}


@pytest.fixture(autouse=True)
def float64():
    """Examples are shown in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODULES]
)
def test_docstrings(name):
    # `restore` the function hides `restore` the module as an attribute, not from importlib.
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.slow
@pytest.mark.skipif(not README.exists(), reason="the README is not beside these tests")
def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_public_names_are_deliberate():
    assert sorted(cryofm_sampling.__all__) == cryofm_sampling.__all__
    for name in cryofm_sampling.__all__:
        assert getattr(cryofm_sampling, name).__doc__
