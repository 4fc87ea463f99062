"""What a reader must know before comparing the rows of a frontier."""

from collections.abc import Sequence

from leadspan.report.rows import Row
from leadspan.teacher.settings import Served, StoredTargets


def notes_on(rows: Sequence[Row], clock: str | None) -> list[str]:
    """One sentence for each reservation about comparing the rows, and for each choice behind the comparison.

    Args:
        rows: All rows of a task.
        clock: Why times cannot be compared; None where they can.
    """
    students = [row for row in rows if row.role == "student"]
    notes = [*_reference_notes(students), *_seed_notes(rows)]
    if clock:
        notes.append(f"Times are not compared, as {clock}; policies are ranked by FLOPs instead.")
    sources = dict.fromkeys(run.train.memory_source for row in students for run in row.runs if run.train)
    if len(sources) > 1:
        notes.append(f"Peak memory was measured in different ways ({'; '.join(sources)}): it cannot be compared.")
    recipes = [row.runs[0].recipe for row in students]
    if any(recipe and isinstance(recipe.targets, StoredTargets) for recipe in recipes):
        notes.append("Targets came from a store. Its capture, which ran once for all its readers, is in no row's cost.")
    if any(recipe and isinstance(recipe.teacher, Served) and recipe.store_path is None for recipe in recipes):
        notes.append("A server ran the teacher: its memory and operations are in no row, only the time spent waiting.")
    return notes


def _reference_notes(students: Sequence[Row]) -> list[str]:
    fulls = [row for row in students if row.cut_kind == "full"]
    references = list(dict.fromkeys(row.reference for row in students if row.reference))
    if not fulls:
        return ["No student was trained on uncut traces (cut.kind: full), so nothing is relative to one."]
    notes: list[str] = []
    candidates = {row.label for row in fulls if row.control is None and _has_teacher(row)}
    alone = [row.label for row in students if row.reference is None and row.label not in {*references, *candidates}]
    if alone:
        rule = "is none of the same student, with a teacher, that is no control"
        notes.append(f"Compared with no uncut run, as there {rule}: {', '.join(alone)}.")
    if len(references) > 1:
        rule = "each row is compared with the one whose recipe differs from its own in the fewest settings"
        notes.append(f"{len(references)} conditions are uncut ({', '.join(references)}): {rule}.")
    return notes


def _has_teacher(row: Row) -> bool:
    recipe = row.runs[0].recipe
    return recipe is not None and recipe.has_teacher


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    """Rows whose comparison omits a run of theirs or of their reference's, or pairs different seeds."""
    seeds = {row.label: tuple(row.seeds) for row in rows}
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.retention is None or row.reference is None:
            continue
        compared, of_reference = row.retention.seeds, seeds[row.reference]
        if compared == seeds[row.label] == of_reference:
            continue
        if set(compared) <= set(of_reference):
            how = f"compared with {row.reference} over the seeds both have ({', '.join(map(str, compared))})."
        else:
            how = (
                f"no seed is also one of {row.reference}, so its seeds ({', '.join(map(str, compared))}) are compared "
                f"with those of {row.reference} ({', '.join(map(str, of_reference))})."
            )
        labels.setdefault(how, []).append(row.label)
    return [f"{', '.join(names)}: {how}" for how, names in labels.items()]
