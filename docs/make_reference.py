"""Write docs/cli.md from `--help` and docs/settings.md from the settings' docstrings; `--check` fails when stale."""

import re
import sys
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from leadspan.cli import COMMANDS, build_parser
from leadspan.faults import models_in
from leadspan.recipe import Recipe
from leadspan.settings import field_docstrings
from leadspan.study.settings import Study
from leadspan.worlds.files import WorldFiles

HERE = Path(__file__).parent


def cli_reference() -> str:
    """Every command's help as a Markdown page."""
    import os

    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    parts = ["# Command reference", "", "Made from `--help` by `make docs`.", ""]
    parts += ["```text", parser.format_help().strip(), "```", ""]
    commands = parser._subparsers._group_actions[0].choices  # type: ignore[union-attr]  # argparse has no public way
    for name in COMMANDS:
        parts += [f"## leadspan {name}", "", "```text", commands[name].format_help().strip(), "```", ""]
    return "\n".join(parts)


def settings_reference() -> str:
    """Every settings class below `Recipe`, `Study` and `WorldFiles`, one table each."""
    parts = ["# Settings reference", "", "Made from the settings' docstrings by `make docs`.", ""]
    seen: list[type[BaseModel]] = [Recipe, Study, WorldFiles]
    for model in seen:
        parts += [
            f"## {model.__name__}",
            "",
            *_summary(model),
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        meanings = field_docstrings(model)
        for key, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
            meaning = " ".join(meanings.get(key, field.description or "").split()).replace("|", "\\|")
            parts.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {meaning} |")
            seen += [found for found in models_in(field.annotation) if found not in seen]
        parts.append("")
    return "\n".join(parts)


def _summary(model: type[BaseModel]) -> list[str]:
    return [" ".join(paragraph.split()) + "\n" for paragraph in (model.__doc__ or "").split("\n\n")]


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json(exclude_defaults=True) if value.model_dump(exclude_defaults=True) else "defaults"
    return str(value).replace("\n", "\\n")  # a line end would break the row of the table


def _type_name(annotation: Any) -> str:
    found = models_in(annotation)
    if found:
        links = " or ".join(f"[{m.__name__}](#{m.__name__.lower()})" for m in dict.fromkeys(found))
        return {list: "list of ", dict: "by name: "}.get(get_origin(annotation), "") + links
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    for prefix in ("typing.", "pathlib.", "leadspan.data.settings."):
        text = text.replace(prefix, "")
    # The limits of an element: Pydantic's own way to write them says nothing to a reader.
    text = re.sub(r"Annotated\[(\w+), FieldInfo\(.*?\]\)\]", r"\1", text)
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    return f"`{text}`".replace("|", "\\|")


def main() -> int:
    """Write or check the pages."""
    stale = []
    for path, text in ((HERE / "cli.md", cli_reference()), (HERE / "settings.md", settings_reference())):
        text = text.rstrip() + "\n"
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        sys.stderr.write(f"stale: docs/{', docs/'.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
