"""The documentation site: README.md and docs/ as HTML, in which every link leads somewhere."""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def build(source: Path) -> subprocess.CompletedProcess[str]:
    """Sphinx as `make docs` calls it."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-d", "build/doctrees"]
    return subprocess.run([*command, ".", "build/docs"], cwd=source, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the site is made from, and the site."""
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "docs", copy / "docs")
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / page, copy)
    done = build(copy)
    assert done.returncode == 0, done.stderr
    return copy


def test_every_page_is_in_the_sidebar_and_every_link_leads_somewhere(source: Path) -> None:
    site = source / "build" / "docs"
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.rglob("*.html")}
    written = {path.relative_to(source).with_suffix(".html") for path in source.glob("*.md")}
    written |= {path.relative_to(source).with_suffix(".html") for path in source.glob("docs/**/*.md")}
    assert written <= {path.relative_to(site) for path in pages}
    sidebar = {
        urlsplit(link["href"]).path for link in pages[site / "README.html"].select(".sidebar-tree a.reference.internal")
    }
    assert {str(page) for page in written} - sidebar == {"README.html"}
    broken = [
        f"{path.name}: {link['href']}"
        for path, page in pages.items()
        for link in page.select("a[href]")
        if not _leads_somewhere(path, str(link["href"]), pages)
    ]
    assert not broken


def _leads_somewhere(page: Path, address: str, pages: dict[Path, BeautifulSoup]) -> bool:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not parts.fragment or target not in pages:
        return target.is_file()
    return pages[target].find(id=unquote(parts.fragment)) is not None


def test_broken_links_are_errors(source: Path) -> None:
    page = source / "docs" / "hub.md"
    links = "[x](no-page.md) [x](cuts.md#no-anchor) [x](#no-anchor-here)"
    page.write_text(f"{page.read_text(encoding='utf-8')}\n{links}\n", encoding="utf-8")
    done = build(source)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) >= 3 and done.stderr.count("hub.md") == 3
    assert all(f"'{target}'" in done.stderr for target in ("no-page.md", "no-anchor", "no-anchor-here"))
