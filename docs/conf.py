"""Sphinx settings of the documentation site: README.md is its home, `make docs` builds it into build/docs.

The source directory is the repository, so that links in README.md and docs/ mean the same here and in the repository.
"""

from pathlib import Path

from sphinx.application import Sphinx

project = "leadspan"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md"]
exclude_patterns = [".*", "build", "runs", "src", "tests", "weights"]  # which would be searched for pages otherwise
myst_heading_anchors = 4
html_theme = "furo"
html_title = "leadspan"
html_copy_source = False
html_use_index = False

# Read from top to bottom, as a user goes.
CONTENTS = {
    "Begin": "docs/tutorial docs/glossary docs/symptoms",
    "Train": "docs/cuts docs/losses docs/templates docs/store docs/served docs/on_policy",
    "Measure": "docs/evaluation docs/grading docs/study docs/frontier docs/report",
    "Plan and pass on": "docs/costs docs/audit docs/export docs/hub docs/trackers docs/resume",
    "Look up": "docs/architectures docs/cli docs/settings docs/benchmarks docs/studies/README",
    "Change leadspan": "CONTRIBUTING docs/decisions/README docs/log CHANGELOG",
}


def add_sidebar(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the contents to the home page only here: elsewhere README.md is read as it is."""
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n\n```{toctree}\n:hidden:\n:caption: " + "\n".join([caption, "", *pages.split(), "```"])


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Lead from index.html, which browsers and servers open, to the home page."""
    if app.builder.format == "html" and error is None:
        page = f'<!doctype html><title>leadspan</title><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register both."""
    app.connect("source-read", add_sidebar)
    app.connect("build-finished", write_index)
