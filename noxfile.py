"""Everything one does with this repository.

``nox -s demo | train-smoke | quick | tests | lint | types | api | build``, and, longer,
``docs | lowest | siblings | robust | fuzz | faults``; ``release`` is the dry run of one.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.sessions = ["tests", "lint", "types", "build"]
nox.options.reuse_existing_virtualenvs = True

PACKAGES = ("cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model")
EXTRAS = {
    "cryofm-io": "[atomic,plot,report]",
    "cryofm-ops": "[testing]",
    "cryofm-sampling": "[likelihood]",
    "cryofm-model": "[train]",
}
# Tensors in tests are tiny: threads would spend their time waiting for each other, on a busy machine ten times as long.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# What others warn of themselves, under `-W error`.
NOT_OURS = ("ignore:`torch.jit.script` is deprecated:DeprecationWarning",)  # torch's own derivatives in forward mode
CODE = ("packages", "examples", "benchmarks", "docs", "tests", "noxfile.py")


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
    install_all(session, "pytest-xdist", "griffe")
    suites = [f"packages/{package}/tests" for package in PACKAGES]
    parallel = ("-n", "2", "--dist", "loadfile")
    session.run("python", "-m", "pytest", "-q", *parallel, *suites, "tests", *session.posargs, env=ONE_THREAD)


@nox.session
def quick(session: nox.Session) -> None:
    """The packages' fast tests, stopping at the first that fails: the inner loop."""
    install_all(session, "pytest-xdist")
    suites = [f"packages/{package}/tests" for package in PACKAGES]
    fast = ("-x", "-n", "2", "--dist", "loadfile", "-m", "not slow")
    session.run("python", "-m", "pytest", "-q", *fast, *suites, *session.posargs, env=ONE_THREAD)


def lowest_versions(extras: dict[str, str]) -> list[str]:
    """The oldest versions that the packages declare, of their own needs and of extras, as pip's constraints."""
    lowest: dict[str, tuple[int, ...]] = {}
    for package, wanted in extras.items():
        project = tomllib.loads(Path("packages", package, "pyproject.toml").read_text(encoding="utf-8"))["project"]
        declared = [*project["dependencies"]]
        for extra in re.findall(r"\w+", wanted):
            declared += project["optional-dependencies"][extra]
        for requirement in declared:
            if found := re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement):
                version = tuple(map(int, found[2].split(".")))
                lowest[found[1]] = max(lowest.get(found[1], ()), version)
    return [f"{name}=={'.'.join(map(str, version))}" for name, version in sorted(lowest.items())]


@nox.session
@nox.parametrize("what", ("packages", "scripts"))
def lowest(session: nox.Session, what: str) -> None:
    """The tests at the oldest versions that are declared; training asks for a later torch than the rest."""
    extras = {
        "packages": {
            "cryofm-io": "[atomic,plot,report,test]",
            "cryofm-ops": "[testing]",
            "cryofm-sampling": "[likelihood,test]",
            "cryofm-model": "[test]",
        },
        "scripts": EXTRAS | {"cryofm-io": "[atomic,plot,report,test]"},
    }[what]
    versions = Path(session.create_tmp(), "lowest.txt").resolve()
    versions.write_text("\n".join(lowest_versions(extras)) + "\n", encoding="utf-8")
    session.install("-c", str(versions), *(f"./packages/{package}{extra}" for package, extra in extras.items()))
    session.log(versions.read_text(encoding="utf-8"))
    suites = (
        ["packages/cryofm-model/tests", "tests"] if what == "scripts" else [f"packages/{p}/tests" for p in PACKAGES]
    )
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites, *session.posargs)


def released(package: str) -> str | None:
    """The tag of the oldest release that today's siblings still permit, or None where there is none yet."""
    version = tomllib.loads(Path("packages", package, "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    line = version.rpartition(".")[0]
    tags = subprocess.run(["git", "tag", "--list", f"{package}@{line}.*"], capture_output=True, text=True, check=True)
    return min(tags.stdout.split(), key=lambda tag: int(tag.rpartition(".")[2]), default=None)


@nox.session
@nox.parametrize("package", PACKAGES)
def siblings(session: nox.Session, package: str) -> None:
    """The tests of one package with the oldest releases of the others that it permits; and a stranger's with both."""
    made = Path(session.create_tmp()).resolve()
    newest, oldest = made / "newest", made / "oldest"
    wheel = ("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    session.run(*wheel, str(newest), *(str(Path("packages", name)) for name in PACKAGES))
    for name in PACKAGES:
        if tag := released(name):
            session.run("git", "worktree", "add", "--force", "--detach", str(made / tag), tag, external=True)
            session.run(*wheel, str(oldest), str(made / tag / "packages" / name))
            session.run("git", "worktree", "remove", "--force", str(made / tag), external=True)
        else:
            session.log(f"{name} has no release yet: the oldest one permitted is this one")
            session.run(*wheel, str(oldest), str(Path("packages", name)))
    own = next(newest.glob(f"{package.replace('-', '_')}-*.whl"))
    others = [str(path) for path in oldest.glob("*.whl") if not path.name.startswith(package.replace("-", "_"))]
    session.install("-c", "constraints.txt", f"{own}[test]", *others)
    stranger = Path("tests", "third_party").resolve()
    suites = [str(Path("packages", package, "tests").resolve())]
    pytest = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    if package == "cryofm-ops":  # which is all that the stranger's project needs
        suites.append(str(stranger))
        session.install("--no-deps", str(stranger))
        session.install("--force-reinstall", "--no-deps", *map(str, oldest.glob("cryofm_ops-*.whl")))
        session.run(*pytest, str(stranger))
        session.install("--force-reinstall", "--no-deps", str(own))
    with session.chdir(session.create_tmp()):  # so that only the installed wheels can be imported
        session.run(*pytest, *suites, *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
@nox.parametrize("how", ("order", "optimised", "double", "threads", "warnings"))
def robust(session: nox.Session, how: str) -> None:
    """The tests as others may run them: in any order, `python -O`, in float64, with two threads, under `-W error`."""
    install_all(session, "pytest-randomly", "pytest-xdist")
    order = ("-p", "randomly") if how == "order" else ("-p", "no:randomly")
    python = ("python", "-O") if how == "optimised" else ("python",)
    more = {"double": ("-p", "double"), "warnings": ("-W", "error", *(f"-W{one}" for one in NOT_OURS))}.get(how, ())
    suites = [f"packages/{package}/tests" for package in PACKAGES]
    # Two that sleep while they wait: on a busy machine those that spin take hours.
    two = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    env = ONE_THREAD | {"PYTHONPATH": "tests/robust"} | (two if how == "threads" else {})
    parallel = ("-n", "2", "--dist", "loadfile")
    session.run(
        *(*python, "-m", "pytest", "-q", *parallel, *order, *more, "-m", "not slow", *suites, *session.posargs), env=env
    )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged files for five minutes: none may end in a raw error, take long, take memory, or be believed."""
    install_all(session)
    session.run("python", "tests/fuzz/run.py", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Every script killed, starved and interrupted at random moments for five minutes: nothing may be lost."""
    install_all(session)
    session.run("python", "tests/faults/run.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, docs/build/html/index.html; tutorials that have changed are run, or none: ``-- --no-tutorials``."""
    install_all(session, "sphinx", "furo", "myst-parser")
    session.run("python", "docs/measured.py")
    session.run("python", "docs/tutorials.py", *session.posargs)
    strict = ("--fresh-env", "--fail-on-warning", "--keep-going", "--quiet")
    session.run("python", "-m", "sphinx", *strict, "-c", "docs", ".", "docs/build/html")
    session.run("python", "docs/links.py", "docs/build/html")


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
def api(session: nox.Session) -> None:
    """The public names against those of the last release: no change unannounced; ``-- --write`` is part of one."""
    session.install("griffe")
    session.run("python", "tests/api.py", *session.posargs)


@nox.session
@nox.parametrize("package", PACKAGES)
def build(session: nox.Session, package: str) -> None:
    """Build the wheels; install one alone, with what it declares, and run its own tests against it; slow ones not."""
    dist = Path(session.create_tmp()) / "dist"
    folders = [str(Path("packages", name)) for name in PACKAGES]
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), *folders)
    wheel = next(dist.glob(f"{package.replace('-', '_')}-*.whl"))
    session.install("-c", "constraints.txt", "--find-links", str(dist), "--force-reinstall", f"{wheel}[test]")
    tests = Path("packages", package, "tests").resolve()
    with session.chdir(session.create_tmp()):  # so that only the installed wheel can be imported
        quick = ("-m", "not slow", "-p", "no:cacheprovider")
        session.run("python", "-m", "pytest", "-q", *quick, str(tests), env={"PYTHONSAFEPATH": "1"})


@nox.session
def release(session: nox.Session) -> None:
    """``-- PACKAGE``: what a release of it would upload, built and checked; nothing leaves this machine."""
    (package,) = session.posargs
    folder = Path("packages", package)
    version = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if not re.search(
        rf"^## {re.escape(version)} – \d{{4}}-\d\d-\d\d$", (folder / "CHANGELOG.md").read_text("utf-8"), re.M
    ):
        session.warn(f"{folder}/CHANGELOG.md has no section '## {version} – DATE' yet")
    session.install("build", "griffe", "twine")
    session.run("python", "tests/api.py", str(folder))
    dist = Path(session.create_tmp(), package)
    session.run("python", "-m", "build", "--outdir", str(dist), str(folder))
    session.run("python", "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    for path in sorted(dist.iterdir()):
        session.log(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")
    session.log(f"to release it: git tag {package}@{version} && git push --tags && twine upload {dist}/*")
