"""The how-tos run as they stand, to a map and a picture, in at most 40 lines that import our packages alone."""

import ast
import io
import runpy
import tokenize
from pathlib import Path

import pytest

from cryofm_io import read_map

pytest.importorskip("matplotlib")
FOLDER = Path(__file__).parents[1] / "examples" / "how_to"
PACKAGES = {"cryofm_io", "cryofm_model", "cryofm_ops", "cryofm_sampling", "torch", "attrs", "sys", "pathlib"}
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_how_to(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script.name, str(tmp_path)])
    names = runpy.run_path(str(script))
    assert names["after"] < names["before"]
    assert read_map(tmp_path / f"{script.stem}.mrc").shape == (32, 32, 32)
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 10_000
    assert " pass" in capsys.readouterr().out.splitlines()[-1]
    source = script.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert "check_" in ast.unparse(tree.body[-1])
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in named} <= PACKAGES
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {token.start[0] for token in tokens if token.type not in NO_CODE}
    assert len(code - prose) <= 40


def test_there_is_one_for_every_part():
    assert len(list(FOLDER.glob("*.py"))) >= 9
