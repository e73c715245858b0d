"""The public names of the packages against those of their last release: ``nox -s api``.

``packages/PACKAGE/api.txt`` holds what a release promised, a line a name: functions with their signatures, classes with
their public members, of the package and of its public folders' `__all__`. Every difference must

- come with a later version in ``pyproject.toml``: the last number for what is new, the one before for what breaks code
  that worked (a name, parameter, default or base taken away; a parameter or an attribute that must now be given);
- be named, in backticks, in that version's section of ``CHANGELOG.md``.

A Protocol never gains a member, whatever the version: objects that strangers wrote would no longer be one.
``-- --write`` writes the files anew, which is part of a release.
"""

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import griffe

PACKAGES = ("cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model")
SPECIAL = re.compile(r"__\w+__")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where something changed that was not announced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="*", help="folders (default all four)")
    parser.add_argument("--write", action="store_true", help="the names of today as those of a release")
    args = parser.parse_args(arguments)
    faults = []
    for folder in args.packages or [Path("packages", name) for name in PACKAGES]:
        promised, today = folder / "api.txt", api(folder)
        version = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        if args.write:
            promised.write_text(f"{folder.name} {version}\n" + "\n".join(today) + "\n", encoding="utf-8")
            print(f"{promised}: {len(today)} lines of {version}")
            continue
        first, *then = promised.read_text(encoding="utf-8").splitlines()
        changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
        found = list(compare(then, today, first.split()[-1], version, announced(changelog, version)))
        faults += [f"{folder.name}: {fault}" for fault in found]
        print(f"{folder.name} {version}: {len(today)} lines, {len(set(then) ^ set(today))} of them not as in {first}")
    print(*faults, sep="\n")
    return 1 if faults else 0


def api(folder: Path) -> list[str]:
    """A line for each public name of a package and of its public folders."""
    siblings = [folder, *(other for other in folder.parent.glob("cryofm-*") if other != folder)]
    loader = griffe.GriffeLoader(search_paths=[other / "src" for other in siblings])
    for other in siblings:
        loader.load(other.name.replace("-", "_"))
    loader.resolve_aliases(external=False)
    return sorted(set(names(loader.modules_collection[folder.name.replace("-", "_")])))


def names(module: griffe.Module) -> Iterator[str]:
    for name in module.exports or ():
        yield from lines(f"{module.path}.{name}", module[str(name)], module.package.path)
    for name, inner in module.modules.items():
        if not name.startswith("_") and inner.is_init_module:
            yield from names(inner)


def lines(path: str, found: griffe.Object | griffe.Alias, package: str) -> Iterator[str]:
    """`path` and, of a class, its public members, inherited ones included."""
    try:
        found = found.final_target if found.is_alias else found
    except griffe.AliasResolutionError:
        yield f"{path}: from {found.target_path}"
        return
    if found.package.path != package:
        yield f"{path}: from {found.path}"
    elif found.is_module:
        yield f"{path}: module"
    elif found.is_function:
        yield f"{path}{signature(found)}"
    elif found.is_class:
        yield f"{path}: class({', '.join(str(base).rpartition('.')[2] for base in found.bases)})"
        if "__init__" not in found.all_members and any("attrs." in str(d.value) for d in found.decorators):
            yield f"{path}.__init__({', '.join(fields(found))})"
        for name, member in found.all_members.items():
            special = SPECIAL.fullmatch(name) and name != "__attrs_post_init__" and member.is_function
            if special or not name.startswith("_"):
                yield from lines(f"{path}.{name}", member, package)
    else:
        yield f"{path}: {found.annotation}"


def fields(found: griffe.Class) -> Iterator[str]:
    """What the constructor of an attrs class takes, bases first; a field declared again is where it is last."""
    found_so_far: dict[str, tuple[bool, str]] = {}
    for one in (*reversed(found.mro()), found):
        for name, field in one.attributes.items():
            annotation, value = str(field.annotation), str(field.value)
            no_field = "property" in field.labels or field.annotation is None or "ClassVar" in annotation
            if no_field or "init=False" in value:
                continue
            default = field.value is not None and ("attrs.field(" not in value or re.search("default=|factory=", value))
            keyword = "kw_only=True" in value or any("kw_only=True" in str(d.value) for d in one.decorators)
            found_so_far.pop(name, None)
            found_so_far[name] = keyword, f"{name.lstrip('_')}: {annotation}{' = ...' if default else ''}"
    keywords = [field for keyword, field in found_so_far.values() if keyword]
    yield from (field for keyword, field in found_so_far.values() if not keyword)
    yield from ["*", *keywords] if keywords else []


def signature(function: griffe.Function) -> str:
    """As it would be written, without `self` and with `...` for defaults."""
    kinds = griffe.ParameterKind
    given = [p for p in function.parameters if p.name not in ("self", "cls")]
    parts, keyword = [], False
    for i, p in enumerate(given):
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(p.kind, "")
        if p.kind is kinds.keyword_only and not keyword and not any(q.kind is kinds.var_positional for q in given):
            parts.append("*")
        keyword = keyword or p.kind is kinds.keyword_only
        annotation = f": {p.annotation}" if p.annotation is not None else ""
        parts.append(f"{stars}{p.name}{annotation}{'' if p.default is None or stars else ' = ...'}")
        last = i + 1 == len(given) or given[i + 1].kind is not kinds.positional_only
        if p.kind is kinds.positional_only and last:
            parts.append("/")
    returns = f" -> {function.returns}" if function.returns is not None else ""
    return f"({', '.join(parts)}){returns}"


def announced(changelog: str, version: str) -> str:
    """The section of a version."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)
    return next((section for section in sections if section.split(maxsplit=1)[:1] == [version]), "")


def compare(old: list[str], new: list[str], released: str, version: str, section: str) -> Iterator[str]:
    """What is wrong with the difference, a line each."""
    before, after = ({re.split(r"[(:]", line, maxsplit=1)[0]: line for line in some} for some in (old, new))
    protocols = {path for path, line in before.items() if re.search(r": class\(.*\bProtocol\b", line)}
    steps = [int(b) - int(a) for a, b in zip(released.split(".")[:2], version.split(".")[:2], strict=True)]
    breaking_allowed = steps[0] > 0 or (steps[0] == 0 and steps[1] > 0)
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was == now:
            continue
        owner = path.rpartition(".")[0]
        if was is None and owner in protocols:
            yield f"{path} is new in a Protocol that was released in {released}: write a Protocol of its own"
            continue
        breaks = now is None or (was is not None and breaking(was, now))
        if breaks and not breaking_allowed:
            yield f"{path} breaks what {released} promised ({was} became {now}): the version must be a later minor one"
        elif version == released:
            yield f"{path} is not as in {released}: the version must be a later one"
        name = owner.rpartition(".")[2] if owner in before.keys() | after.keys() else path.rpartition(".")[2]
        if not re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", section):
            yield f"{path} is not as in {released}: `{name}` must be named in the section of {version} of CHANGELOG.md"


def breaking(was: str, now: str) -> bool:
    """Whether code that was right for one line of the API can be wrong for the other."""
    if ("(" in was.split(":")[0]) != ("(" in now.split(":")[0]):
        return True  # a function that is none any more, or the other way
    if ": class(" in was:
        return not set(bases(was)) <= set(bases(now))
    if "(" not in was or re.match(r"[\w.]+: ", was):
        return False  # an attribute of another type, which nobody can judge from here
    one, other = (arguments(line) for line in (was, now))
    if [p for p, _ in other["positional"][: len(one["positional"])]] != [p for p, _ in one["positional"]]:
        return True
    if other["only"] > one["only"] or not one["stars"] <= other["stars"]:
        return True
    defaults = dict(one["positional"] + one["keyword"])
    for name, default in other["positional"] + other["keyword"]:
        if not default and defaults.get(name, True):
            return True
    reachable = {name for name, _ in other["keyword"] + other["positional"][other["only"] :]}
    return not {name for name, _ in one["keyword"]} <= reachable


def bases(line: str) -> list[str]:
    return [base for base in re.split(r",\s*", line.partition("(")[2].rstrip(")")) if base]


def arguments(line: str) -> dict:
    """Names of parameters, each with whether it has a default; how many are positional only; `*` and `**`."""
    a = ast.parse(f"def f{line[line.index('(') :]}: ...").body[0].args
    positional = [*a.posonlyargs, *a.args]
    none = len(positional) - len(a.defaults)
    return {
        "positional": [(p.arg, i >= none) for i, p in enumerate(positional)],
        "keyword": [(p.arg, default is not None) for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)],
        "only": len(a.posonlyargs),
        "stars": {kind for kind, there in (("*", a.vararg), ("**", a.kwarg)) if there},
    }


if __name__ == "__main__":
    sys.exit(main())
