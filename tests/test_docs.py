"""The site's pages: what they tell one to type is there, and every page is reached. Sphinx is not needed for that."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [path for path in DOCS.rglob("*.md") if "build" not in path.parts]
READMES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("packages/*/*.md"),
    *ROOT.glob("benchmarks/**/*.md"),
]
LINE = re.compile(r"""(?<!["'])(?:python|torchrun .*) (examples|benchmarks)/(\w+)\.py([^`"\n#]*)""")


@pytest.fixture
def own(monkeypatch):
    """A module of docs/."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module


def lines(folder):
    """(script, the rest) of every line that runs a script of the folder, on the pages and in the READMEs."""
    found = set()
    for page in [*PAGES, *READMES]:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        found |= {
            (script, rest.split("  ")[0].strip()) for where, script, rest in LINE.findall(text) if where == folder
        }
    return sorted(found)


@pytest.fixture(scope="module")
def parsers():
    """Of the scripts, by name."""
    made = {}

    def parse_args(self, *_, **__):
        made[sys.argv[0]] = self
        raise SystemExit

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        for path in ROOT.glob("examples/[a-z]*.py"):
            patched.setattr(sys, "argv", [path.stem])
            with pytest.raises(SystemExit):
                pytest.importorskip(path.stem).main()
    return made


def test_scripts_take_the_lines_of_the_pages(parsers, monkeypatch):
    def refuse(self, message):
        raise ValueError(f"{self.prog}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    found = [(script, rest) for script, rest in lines("examples") if not re.search(r"…|\.\.\.|\$", rest)]
    assert len(found) > 30
    for script, rest in found:
        if "--help" not in rest:
            parsers[script].parse_args(shlex.split(rest))


def test_benchmarks_know_the_flags_of_the_pages():
    found = lines("benchmarks")
    assert len(found) > 15
    for script, rest in found:
        source = (ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
        for flag in re.findall(r"(?<!\S)--[\w-]+", rest):
            assert re.search(rf'"(--)?{flag[2:]}"', source), (script, flag)


def test_flags_by_themselves_are_flags(parsers):
    known = {"--help", "--no-tutorials", "--external_reconstruct"}  # of the build, of RELION
    for parser in parsers.values():
        known |= {flag for action in parser._actions for flag in action.option_strings}
    for page in PAGES:
        for flag in re.findall(r"`(--[\w-]+)", page.read_text(encoding="utf-8")):
            assert flag in known, (page.name, flag)


def test_every_page_is_in_a_toctree():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    names = [name for tree in trees for name in tree.splitlines() if name and not name.startswith(":")]
    listed = [(DOCS / f"{name}.md").resolve() for name in names]
    assert len(set(listed)) == len(listed)
    wanted = {path.resolve() for path in (*PAGES, *READMES)} - {DOCS / "index.md", ROOT / "README.md"}
    assert set(listed) == wanted


def test_the_evidence_exists():
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"`([\w/-]+\.py)::(test_\w+)`", page.read_text(encoding="utf-8")))
    assert len(named) > 20
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)


def test_every_how_to_is_shown():
    page = (DOCS / "how_to.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples" / "how_to").glob("*.py"):
        assert f"{{literalinclude}} ../examples/how_to/{path.name}\n" in page


def test_the_first_python_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "start.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})
    assert "torch.Size([32, 32, 32]) torch.Size([17])" in capsys.readouterr().out


def test_a_physics_of_deepinv_is_an_operator_and_a_prior_its_denoiser():
    from cryofm_ops.testing import check_operator
    from cryofm_sampling.testing import GaussianPrior

    class EveryOther:
        """As deepinv has them."""

        def A(self, x):
            return x[..., ::2, :, :]

        def A_adjoint(self, y):
            return torch.stack([y, torch.zeros_like(y)], -3).flatten(-4, -3)

    names = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "from" / "deepinv.md").read_text("utf-8"), re.DOTALL):
        exec(block, names)
    assert "dot_test" in check_operator(names["Physics"](EveryOther()), shapes=[(4, 4, 2)])
    y = torch.randn(2, 1, 4, 4, 4)
    found = names["denoiser_of"](GaussianPrior(2.0))(y, 0.5)  # of power 2, in noise of variance .25
    torch.testing.assert_close(found, y * 2 / (2 + 0.25))


def test_tables_are_of_what_was_measured(own):
    measured = own("measured")
    tables = measured.tables()
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    assert [measured.written(text, tables) for text in pages] == pages  # else run docs/measured.py
    assert {name for text in pages for name in re.findall("<!-- (\\w+) -->\n\n\\|", text)} == set(tables)
    assert "| 0.8 | 52% | 84% | 95% | 0.91 | 0.289 |" in tables["coverage_by_scale"]  # as cryofm-sampling's README says
    for table in tables.values():
        rows = table.strip().splitlines()
        assert len({row.count("|") for row in rows}) == 1
        assert "nan" not in table


def test_tutorials_are_run_where_something_has_changed(own, tmp_path, monkeypatch, capsys):
    tutorials = own("tutorials")
    monkeypatch.setattr(tutorials, "ROOT", tmp_path)
    monkeypatch.setattr(tutorials, "BUILD", tmp_path / "build")
    for folder in ("examples", "docs/tutorials"):
        (tmp_path / folder).mkdir(parents=True)
    page, script = tmp_path / "docs" / "tutorials" / "one.md", tmp_path / "examples" / "one.py"
    page.write_text(
        "```sh\npython examples/one.py --out made\n```\n![a](../build/tutorials/one/a.png) build/tutorials/one/said.txt"
    )
    source = "import pathlib, sys; f = pathlib.Path(sys.argv[-1]); f.mkdir(); (f / 'a.png').touch(); print('in', f)"
    picture, said = (tmp_path / "build" / "one" / name for name in ("a.png", "said.txt"))

    def runs(*arguments):
        monkeypatch.setattr(sys, "argv", ["tutorials.py", *arguments])
        tutorials.main()
        return capsys.readouterr().out.count("python examples/one.py")

    script.write_text(source)
    pytest.importorskip("matplotlib")
    assert runs("--no-tutorials") == 0
    assert picture.stat().st_size > 1000
    assert "--no-tutorials" in said.read_text()
    assert [runs(), runs()] == [1, 0]
    assert said.read_text() == "in made\n"
    script.write_text(source + "\n")
    assert [runs("--no-tutorials"), runs(), runs()] == [0, 1, 0]
    script.write_text("raise SystemExit('broken')")
    with pytest.raises(SystemExit, match="broken"):
        tutorials.main()
    script.write_text(source.replace("a.png", "b.png"))
    with pytest.raises(SystemExit, match=r"shows a\.png"):
        tutorials.main()


def test_broken_links_are_named(own, tmp_path):
    links = own("links")
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="#top">2</a><img src="c.png"><a href="https://x.org">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html">3</a>')
    pages = {path: links.Page(path) for path in tmp_path.glob("*.html")}
    found = sorted(links.broken(tmp_path, pages))
    assert found == ["a.html: #top: no such place", "a.html: b.html#here: no such place", "a.html: c.png: no such file"]
