"""The examples in docstrings and in the README run, and the README names what is public."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import cryofm_model

MODULES = ["cryofm_model", *(m.name for m in pkgutil.walk_packages(cryofm_model.__path__, "cryofm_model."))]
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name.split(".")[1:2] in (["data"], ["train"]):  # what the extra [train] brings
        for needed in ("cryofm_io", "scipy", "tqdm"):
            pytest.importorskip(needed)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, extraglobs={"torch": torch}, optionflags=flags).failed == 0


def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_readme_names_everything_public():
    text = README.read_text()
    assert [name for name in cryofm_model.__all__ if f"`{name}" not in text] == []
