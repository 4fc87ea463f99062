"""List the recipes that come with leadspan, print one, or copy it with the recipes that it names."""

import argparse
import itertools
import re
from pathlib import Path

from leadspan.text import print_plain

RECIPES = Path(__file__).parents[1] / "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, and where to."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print or copy; all are listed if absent")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory to copy it to, with the recipes it names")


def run(options: argparse.Namespace) -> None:
    """List, print or copy."""
    import difflib

    from leadspan.errors import SettingsError
    from leadspan.files import write_atomically

    # The recipes below a folder belong to commands (init, demo), and are not for copying.
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))}
    if options.name is None:
        if options.output is not None:
            raise SettingsError("recipes: --output needs the NAME of a recipe")
        width = max(map(len, texts))
        for name, text in texts.items():
            # The first sentence of the comment on top; a schema for editors is no part of it.
            first = itertools.takewhile(re.compile(r"# \S").match, text.splitlines()[:2])
            comment = " ".join(line.removeprefix("# ") for line in first)
            print_plain(f"{name:<{width}}  {re.split(r'[.:](?= [A-Z]|$)', comment)[0]}")
        return
    name = options.name.removesuffix(".yaml")
    if name not in texts:
        near = difflib.get_close_matches(name, texts, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(texts)}"
        raise SettingsError(f"recipes: there is no recipe {options.name!r}; {hint}")
    if options.output is None:
        print_plain(texts[name].rstrip("\n"))
        return
    names = [name]
    for each in names:  # grows while the loop runs: a recipe may name others, and they further ones
        mentioned = dict.fromkeys(re.findall(r"(\w+)\.yaml", texts[each]))
        names += [recipe for recipe in mentioned if recipe in texts and recipe not in names]
    copies = {options.output / f"{each}.yaml": texts[each] for each in names}
    for path, text in copies.items():
        # All are checked before the first is written.
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SettingsError(f"{path}: exists already, with other content; give another --output")
    for path, text in copies.items():
        write_atomically(path, text)
        print_plain(f"wrote {path}")
