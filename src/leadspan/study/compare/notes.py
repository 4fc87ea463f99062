"""What a reader must know before comparing the rows of a frontier."""

from collections.abc import Sequence

from leadspan.study.compare.conditions import has_teacher, seed_of
from leadspan.study.compare.rows import Row


def notes_on(rows: Sequence[Row]) -> list[str]:
    """One sentence for each thing that stands against a comparison of the rows, or that says how it was made."""
    students = [row for row in rows if row.role == "student"]
    return [*_reference_notes(students), *_seed_notes(rows), *_measurement_notes(students)]


def _reference_notes(students: Sequence[Row]) -> list[str]:
    fulls = [row for row in students if row.cut_kind == "full"]
    used = list(dict.fromkeys(row.reference for row in students if row.reference))
    if not fulls:
        return ["No student was trained on uncut traces (cut.kind: full), so nothing is relative to one."]
    notes: list[str] = []
    alone = [row.label for row in students if row.reference is None and row.label not in (*used, *_usable(fulls))]
    if alone:
        rule = "is none of the same student, with a teacher, that is no control"
        notes.append(f"Compared with no uncut run, as there {rule}: {', '.join(alone)}.")
    if len(used) > 1:
        rule = "each row is compared with the one whose recipe differs from its own in the fewest settings"
        notes.append(f"{len(used)} conditions are uncut ({', '.join(used)}): {rule}.")
    return notes


def _usable(fulls: Sequence[Row]) -> list[str]:
    return [row.label for row in fulls if row.control is None and has_teacher(row.runs[0].recipe)]


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    """Rows whose comparison leaves out a run of theirs or of their reference's, or pairs different seeds."""
    seeds = {row.label: tuple(seed_of(run) for run in row.runs) for row in rows}
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.kept is None or row.reference is None or row.kept.seeds == seeds[row.label] == seeds[row.reference]:
            continue
        compared, other = row.kept.seeds, seeds[row.reference]
        if set(compared) <= set(other):
            how = f"compared with {row.reference} over the seeds both have ({_listed(compared)})."
        else:
            how = (
                f"no seed is also one of {row.reference}, so its seeds ({_listed(compared)}) are compared with that "
                f"one's ({_listed(other)})."
            )
        labels.setdefault(how, []).append(row.label)
    return [f"{', '.join(found)}: {how}" for how, found in labels.items()]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _measurement_notes(students: Sequence[Row]) -> list[str]:
    trained = [run.train for row in students for run in row.runs if run.train is not None]
    devices = "; ".join(dict.fromkeys(train.device for train in trained))
    sources = "; ".join(dict.fromkeys(train.memory_source for train in trained))
    notes = []
    if len({train.device for train in trained}) > 1:
        notes.append(f"Times come from different devices ({devices}): compare FLOPs or tokens instead.")
    if len({train.memory_source for train in trained}) > 1:
        notes.append(f"Peak memory was measured in different ways ({sources}): it cannot be compared.")
    if any((row.runs[0].recipe.get("targets") or {}).get("kind") == "store" for row in students):
        notes.append("Targets came from a store: what its capture cost, once for all that read it, is in no row.")
    return notes
