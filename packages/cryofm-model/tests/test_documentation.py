"""The examples in docstrings and in the README run, and the README names what is public."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import cryofm_model

MODULES = [
    "cryofm_model",
    *(f"cryofm_model.{info.name}" for info in pkgutil.iter_modules(cryofm_model.__path__)),
]
TRAINING = {
    "cryofm_model.train": "tqdm",
    "cryofm_model.data.map_cache": "cryofm_io",
    "cryofm_model.data.realism": "scipy",
    "cryofm_model.data.particles": "scipy",
}
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name in TRAINING:  # what the extra [train] brings
        pytest.importorskip(TRAINING[name])
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
