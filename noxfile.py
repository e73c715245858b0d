"""Everything one does with this repository: ``nox -s demo | train-smoke | tests | lint | types | build``."""

from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.sessions = ["tests", "lint", "types", "build"]
nox.options.reuse_existing_virtualenvs = True

PACKAGES = ("cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model")
EXTRAS = {
    "cryofm-io": "[atomic,plot]",
    "cryofm-ops": "[testing]",
    "cryofm-sampling": "[likelihood]",
    "cryofm-model": "[train]",
}
CODE = ("packages", "examples", "benchmarks", "tests", "noxfile.py")


def install_all(session: nox.Session, *tools: str) -> None:
    """Install the four packages from this checkout, and what else the session runs."""
    folders = [f"./packages/{package}{EXTRAS.get(package, '')}" for package in PACKAGES]
    session.install("-c", "constraints.txt", *folders, *tools)


@nox.session
def demo(session: nox.Session) -> None:
    """Restore the shipped map from two noisy halves; the results are in demo-output/."""
    install_all(session)
    session.run("python", "examples/denoise.py", "--out", "demo-output", "--overwrite", *session.posargs)


@nox.session(name="train-smoke")
def train_smoke(session: nox.Session) -> None:
    """Train a small prior on made-up helices for two minutes, and restore the shipped map with it (badly)."""
    install_all(session)
    made = Path(session.create_tmp())
    for folder, first, last in (("maps", "0", "11"), ("kept-back", "12", "15")):
        session.run("python", "tests/helix_bundles.py", str(made / folder), first, last)
    recipe, out = "examples/recipes/smoke.toml", "train-smoke-output"
    data = ("--maps", str(made / "maps"), "--validation", str(made / "kept-back"))
    session.run("python", "examples/train_prior.py", recipe, *data, "--out", out)
    session.run("python", "examples/denoise.py", "--prior", out, "--out", f"{out}/restored", "--overwrite")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test of every package, and the examples on tiny input."""
    install_all(session)
    suites = [f"packages/{package}/tests" for package in PACKAGES]
    session.run("python", "-m", "pytest", "-q", *suites, "tests", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Types, under mypy --strict and under pyright, a stranger's operator included."""
    install_all(session, "mypy", "basedpyright")
    sources = [f"packages/{package}/src" for package in PACKAGES]
    for package in PACKAGES:
        name = package.replace("-", "_")
        session.run("mypy", "--strict", f"packages/{package}/src/{name}")
    typed = ("examples", "tests/stranger.py", "tests/typed_stranger.py")
    session.run("mypy", "--strict", *typed)
    session.run("mypy", "--strict", "benchmarks")
    # Pyright would take the .venv that the README has nox in.
    python = str(Path(session.bin, "python"))
    session.run("basedpyright", "--pythonpath", python, *sources, *typed)


@nox.session
@nox.parametrize("package", PACKAGES)
def build(session: nox.Session, package: str) -> None:
    """Build the wheels; install one alone, with what it declares, and run its own tests against it."""
    dist = Path(session.create_tmp()) / "dist"
    folders = [str(Path("packages", name)) for name in PACKAGES]
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), *folders)
    wheel = next(dist.glob(f"{package.replace('-', '_')}-*.whl"))
    session.install("-c", "constraints.txt", "--find-links", str(dist), "--force-reinstall", f"{wheel}[test]")
    tests = Path("packages", package, "tests").resolve()
    with session.chdir(session.create_tmp()):  # so that only the installed wheel can be imported
        session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), env={"PYTHONSAFEPATH": "1"})
