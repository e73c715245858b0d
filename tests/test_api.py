"""What the check of the public names lets pass, and what it does not."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("griffe")

PACKAGE = Path(__file__).parents[1] / "packages"
main = runpy.run_path(str(Path(__file__).with_name("api.py")))["main"]

CODE = """
from typing import Protocol

import attrs

__all__ = ["Made", "Shown", "apply"]


class Shown(Protocol):
    def show(self) -> str: ...


@attrs.frozen
class Made:
    size: int
    name: str = "one"
    _hidden: int = attrs.field(default=1, init=False)

    def grow(self, by: int, *, most: int = 9) -> int:
        return self.size + by


def apply(x: float, y: float = 0.0) -> float:
    return x + y
"""


def made(folder, code, version="0.2.0", said=""):
    package = folder / "cryofm-made"
    (package / "src" / "cryofm_made").mkdir(parents=True, exist_ok=True)
    (package / "src" / "cryofm_made" / "__init__.py").write_text(code)
    (package / "pyproject.toml").write_text(f'[project]\nname = "cryofm-made"\nversion = "{version}"\n')
    (package / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## {version} – Unreleased\n\n{said}\n\n## 0.1.0\n\n`apply`\n"
    )
    return str(package)


@pytest.mark.parametrize(
    ("old", "new", "version", "said", "fault"),
    [
        ("", "", "0.2.0", "", ""),
        ("x + y", "y + x", "0.2.0", "", ""),
        ("y: float = 0.0)", "y: float = 0.0, z: float = 1.0)", "0.2.0", "- `apply` has z.", "must be a later one"),
        ("y: float = 0.0)", "y: float = 0.0, z: float = 1.0)", "0.2.1", "- apply has z.", "`apply` must be named"),
        ("y: float = 0.0)", "y: float = 0.0, z: float = 1.0)", "0.2.1", "- `apply(z=)` is new.", ""),
        ("y: float = 0.0)", "y: float)", "0.2.1", "- `apply` needs y.", "must be a later minor one"),
        ("y: float = 0.0)", "y: float)", "0.3.0", "- `apply` needs y.", ""),
        ("y: float = 0.0)", "y: float)", "1.0.0", "- `apply` needs y.", ""),
        ("apply(x: float", "apply(z: float", "0.2.1", "- `apply`", "must be a later minor one"),
        ("apply(x: float", "apply(x: float, /", "0.2.1", "- `apply`", "must be a later minor one"),
        ("by: int, *", "by: int = 1, *", "0.2.1", "- `Made.grow`", ""),
        ("by: int, *, most", "by: int, *, largest", "0.2.1", "- `Made.grow`", "must be a later minor one"),
        ("by: int, *, most", "by: int, most", "0.2.1", "- `Made.grow`", ""),
        ("    size: int\n", "    size: int\n    kind: str\n", "0.2.1", "- `Made`", "Made.__init__ breaks"),
        ('"one"\n', '"one"\n    kind: str = "a"\n', "0.2.1", "- `Made`", ""),
        ("(Protocol)", "", "0.2.1", "- `Shown`", "must be a later minor one"),
        ('"Shown", ', "", "0.3.0", "- `Shown` is gone.", ""),
        ("-> str: ...", "-> str: ...\n    def hide(self) -> str: ...", "1.0.0", "- `Shown`", "new in a Protocol"),
        ("def grow", "def shrink(self): ...\n    def grow", "0.2.1", "- `Made.shrink`", ""),
        ("def grow", "def _shrink(self): ...\n    def grow", "0.2.0", "", ""),
    ],
)
def test_a_difference_is_announced_and_a_protocol_stays(tmp_path, capsys, old, new, version, said, fault):
    package = made(tmp_path, CODE)
    assert main([package, "--write"]) == 0
    changed = CODE.replace(old, new) if old else CODE
    assert (changed == CODE) == (old == new)
    made(tmp_path, changed, version, said)
    status = main([package])
    assert status == bool(fault), capsys.readouterr().out
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model"])
def test_every_public_name_has_a_line(name):
    promised = (PACKAGE / name / "api.txt").read_text(encoding="utf-8")
    assert promised.startswith(f"{name} 0.")
    assert " at 0x" not in promised


def test_the_packages_keep_what_they_promised():
    assert main([]) == 0


def test_a_field_that_a_subclass_declares_again_is_taken_once(tmp_path):
    code = CODE.replace(
        "def apply", '@attrs.frozen\nclass More(Made):\n    name: str = "two"\n    kind: int = 0\n\n\ndef apply'
    )
    package = Path(made(tmp_path, code.replace('"Made", ', '"Made", "More", ')))
    assert main([str(package), "--write"]) == 0
    assert (
        "cryofm_made.More.__init__(size: int, name: str = ..., kind: int = ...)\n" in (package / "api.txt").read_text()
    )
