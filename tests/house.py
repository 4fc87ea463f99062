"""Print the figures of the source tree that CONTRIBUTING names: sizes, fragments, vague names and comments.

This is a report, not a gate: it shows a slide, and never fails. Run `python tests/house.py [DIRECTORY]`; the
directory is `src/leadspan` by default. It needs the standard library alone.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

LONG, SHORT = 60, 3
# Participles and pronouns: they say how a value came about, not what it is.
_WORDS = "found one own other others place places kept parts told left held made given asked wanted whole known"
VAGUE = frozenset(re.findall(r"\w+", _WORDS))
NUM_WORST = 15


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` to its end, without decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def uses(trees: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is read, as a variable or an attribute; an import or a definition is no use."""
    names: Counter[str] = Counter()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names[node.id] += 1
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names[node.attr] += 1
    return names


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module binds: variables, parameters, functions, classes and annotated fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def comment_lines(source: str) -> int:
    """Lines that hold a comment, alone or after code; marks for tools are none."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_mark = re.match(r"#\s*(noqa|type:|fmt:|pragma|pyright|!)", token.string) is not None
        if token.type == tokenize.COMMENT and not is_mark:
            lines.add(token.start[0])
    return len(lines)


def report(directory: Path) -> str:
    """The figures of all Python files below a directory, one a line, the worst places last."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(directory.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    lines = {path: source.count("\n") for path, source in sources.items()}
    functions = [(path, function) for path, tree in trees.items() for function in functions_of(tree)]
    lengths = [num_lines(function) for _, function in functions]
    num_uses = uses(trees.values())
    private = [function for _, function in functions if function.name.startswith("_")]
    names = [(path, name.strip("_")) for path, tree in trees.items() for name in bound_names(tree)]
    vague = [(path, name) for path, name in names if name in VAGUE]
    comments = {path: comment_lines(source) for path, source in sources.items()}
    total, largest = sum(lines.values()), max(lines, key=lines.__getitem__)
    figures = [
        ("Python lines", f"{total:,}"),
        ("files", f"{sum(n > SHORT for n in lines.values())} of more than {SHORT} lines"),
        ("largest file", f"{lines[largest]} lines, {largest.relative_to(directory)}"),
        ("functions", f"{len(functions):,}, {len(private) / len(functions):.0%} of them private"),
        (f"functions over {LONG} lines", str(sum(length > LONG for length in lengths))),
        (f"functions of at most {SHORT} lines", f"{sum(n <= SHORT for n in lengths) / len(functions):.1%}"),
        ("functions used once", str(sum(num_uses[function.name] == 1 for _, function in functions))),
        ("private functions used once", str(sum(num_uses[function.name] == 1 for function in private))),
        ("vague names", f"{len(vague) / len(names):.2%} of {len(names):,} bound names ({len(vague)})"),
        ("comment lines", f"{sum(comments.values()) / total:.2%} ({sum(comments.values())})"),
    ]
    table = [f"{label:<32}{value}" for label, value in figures]
    by_word = ", ".join(f"{word} {n}" for word, n in Counter(name for _, name in vague).most_common())
    worst = Counter(str(path.relative_to(directory)) for path, _ in vague).most_common(NUM_WORST)
    table += ["", f"vague names by word: {by_word}"]
    table += [f"most vague names: {n:>3}  {path}" for path, n in worst]
    rooms: dict[str, list[int]] = {}
    for path in lines:
        room = rooms.setdefault(path.relative_to(directory).parts[0], [0, 0, 0, 0])
        room[0] += lines[path]
        room[1] += comments[path]
        room[2] += sum(where == path for where, _ in vague)
        room[3] += sum(where == path for where, _ in names)
    table += ["", f"{'room':<20}{'lines':>8}{'comments':>10}{'vague':>8}"]
    for room, (n_lines, n_comments, n_vague, n_names) in rooms.items():
        if n_lines > SHORT:
            share = n_vague / max(1, n_names)
            table.append(f"{room:<20}{n_lines:>8,}{n_comments / n_lines:>10.1%}{share:>8.1%}")
    return "\n".join(table)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "src" / "leadspan"
    sys.stdout.write(report(Path(sys.argv[1]) if len(sys.argv) > 1 else default) + "\n")
