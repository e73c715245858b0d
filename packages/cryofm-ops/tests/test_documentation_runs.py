import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cryofm_ops

MODULES = ["cryofm_ops", *(m.name for m in pkgutil.walk_packages(cryofm_ops.__path__, "cryofm_ops."))]
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.slow
def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


def test_every_public_name_is_in_the_readme_and_documented():
    text = README.read_text(encoding="utf-8")
    for name in cryofm_ops.__all__:
        assert f"`{name}" in text, name
        assert getattr(cryofm_ops, name).__doc__, name
