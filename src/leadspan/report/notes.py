"""What a reader must know before comparing the rows of a frontier."""

from collections.abc import Sequence

from leadspan.report.rows import Row
from leadspan.teacher.settings import Served, StoredTargets


def notes_on(rows: Sequence[Row], clock: str | None) -> list[str]:
    """One sentence for each reason not to compare some rows, and for each choice behind the comparison.

    Args:
        rows: All rows of a task.
        clock: Why times cannot be compared; None where they can.
    """
    students = [row for row in rows if row.role == "student"]
    notes = [*_reference_notes(students), *_seed_notes(rows)]
    if clock:
        notes.append(f"Times are not compared, because {clock}; policies are ranked by FLOPs instead.")
    # A process counts what it holds, an allocator what it handed out.
    sources = dict.fromkeys(run.train.memory_source for row in students for run in row.runs if run.train)
    if len(sources) > 1:
        notes.append(f"Peak memory was measured in different ways ({'; '.join(sources)}) and cannot be compared.")
    recipes = [row.runs[0].recipe for row in students]
    if any(recipe and isinstance(recipe.targets, StoredTargets) for recipe in recipes):
        notes.append("Targets came from a store; no row's cost includes its capture, which ran once for all students.")
    if any(recipe and isinstance(recipe.teacher, Served) and recipe.store_path is None for recipe in recipes):
        notes.append("A server ran the teacher; costs include the time spent waiting for it, not its memory and FLOPs.")
    return notes


def _reference_notes(students: Sequence[Row]) -> list[str]:
    fulls = [row for row in students if row.cut_kind == "full"]
    references = list(dict.fromkeys(row.reference for row in students if row.reference))
    if not fulls:
        return ["No student was trained on uncut traces (cut.kind: full), so nothing can be compared with one."]
    notes: list[str] = []
    recipes = {row.label: row.runs[0].recipe for row in fulls if row.control is None}
    candidates = {label for label, recipe in recipes.items() if recipe is not None and recipe.has_teacher}
    alone = [row.label for row in students if row.reference is None and row.label not in {*references, *candidates}]
    if alone:
        rule = "of the same student was distilled from a teacher and is no control"
        notes.append(f"Compared with no uncut run, because none {rule}: {', '.join(alone)}.")
    # A reader has to know which of several baselines a row has.
    if len(references) > 1:
        rule = "each row is compared with the one whose recipe differs from its own in the fewest settings"
        notes.append(f"{len(references)} conditions are uncut ({', '.join(references)}): {rule}.")
    return notes


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    """The rows whose comparison omits a run of theirs or of their reference's, or pairs different seeds."""
    seeds = {row.label: tuple(row.seeds) for row in rows}
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.retention is None or row.reference is None:
            continue
        compared, of_reference = row.retention.seeds, seeds[row.reference]
        # All seeds were compared with their own: nothing to say.
        if compared == seeds[row.label] == of_reference:
            continue
        if set(compared) <= set(of_reference):
            how = f"compared with {row.reference} over the shared seeds ({', '.join(map(str, compared))})."
        else:
            how = (
                f"no seed is shared with {row.reference}, so its seeds ({', '.join(map(str, compared))}) are compared "
                f"with those of {row.reference} ({', '.join(map(str, of_reference))})."
            )
        # Rows that share a reason share a sentence.
        labels.setdefault(how, []).append(row.label)
    return [f"{', '.join(names)}: {how}" for how, names in labels.items()]
