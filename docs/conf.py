"""Sphinx's configuration, and nothing else; ``nox -s docs`` runs it on the root of the repository.

The root, so that the READMEs are pages where they stand and their links work here and there.
"""

import re

project = "CryoFM toolkit"
root_doc = "docs/index"
include_patterns = [
    "CONTRIBUTING.md",
    "docs/**.md",
    "examples/README.md",
    "examples/*/README.md",
    "benchmarks/*.md",
    "benchmarks/results/*.md",
    "packages/*/*.md",
]
exclude_patterns = [".*", "**/.*", "docs/build", "*output"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = project
html_extra_path = ["html"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

highlight_language = "text"
default_role = "py:obj"
maximum_signature_line_length = 100
napoleon_custom_sections = [("Attributes", "params_style")]


def _marked(found):
    """A piece of a docstring's line as reStructuredText."""
    name, after = found[1], found[2]
    if name is None:  # | or *
        return "\\" + found[0]
    if name.startswith("`."):  # .name is of any object, no link
        name = f"`{name}`"
    return name + ("\\ " if after else "")  # `scale`²


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text but for `names` and examples."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[i] = re.sub(r"(``.*?``|`[^`]*`)(?=(\w)?)|[|*]", _marked, line)


def setup(app):
    """Before napoleon, which makes fields of the sections."""
    app.connect("autodoc-process-docstring", plain, priority=400)
