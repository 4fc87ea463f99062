"""The counter of the source tree counts right, and CONTRIBUTING and the decisions name places that exist."""

import re
from pathlib import Path

from house import report

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = '''"""A module."""

SIZE = 3  # why it is 3


def area(found, width):  # noqa: ANN001
    # a comment
    place = found * width
    return place * SIZE


class Box:
    other: int = 1

    def _double(self):
        return area(self.other, 2)
'''


def test_the_figures_of_a_small_tree(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "module.py").write_text(MODULE)
    (tmp_path / "__init__.py").touch()
    figures = dict(re.findall(r"^(\S.*?)  +(\S.*)$", report(tmp_path).partition("\n\n")[0], re.MULTILINE))
    assert figures == {
        "Python lines": "16",
        "files": "1 of more than 3 lines",
        "largest file": "16 lines, room/module.py",
        "functions": "2, 50% of them private",
        "functions over 60 lines": "0",
        "functions of at most 3 lines": "50.0%",
        "functions used once": "1",
        "private functions used once": "0",
        # SIZE, area, found, width, place, Box, other, _double, self
        "vague names": "33.33% of 9 bound names (3)",
        "comment lines": "12.50% (2)",
    }


def test_contributing_names_places_that_exist() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = re.findall(r"\| `(\S+)\.py: (\w+)` \|", text)
    assert len(places) == 8
    for path, name in places:
        source = (REPOSITORY / "src" / "leadspan" / f"{path}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{path}: {name}"


def test_decisions_name_files_that_exist() -> None:
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("0*.md"))
    names = [
        (page.name, name) for page in pages for name in re.findall(r"`([\w/]+\.py)\b", page.read_text(encoding="utf-8"))
    ]
    roots = (REPOSITORY / "src" / "leadspan", REPOSITORY)
    assert len(names) > 10
    assert not [(page, name) for page, name in names if not any((root / name).exists() for root in roots)]
