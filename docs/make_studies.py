"""Write the figures of a study's page from its runs: `python docs/make_studies.py STUDY_DIRECTORY docs/studies/PAGE.md`.

What stands between the two markers of the page is replaced; the rest is written by hand. Every verdict is computed from
paired intervals over problems and seeds and expects no outcome.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leadspan.errors import LeadspanError
from leadspan.evaluation.statistics import retention
from leadspan.results import Interval
from leadspan.study.break_points import break_points
from leadspan.study.frontier import build_frontiers, load_runs
from leadspan.study.record import load_study
from leadspan.study.rows import Frontier, Row
from leadspan.study.sentences import kept_text
from leadspan.study.words import percent, percent_interval, points, quantity
from leadspan.worlds.files import load_world

BEGIN, END = "<!-- begin: made by docs/make_studies.py -->", "<!-- end -->"
TARGET = 0.9
"""Share of the uncut student's accuracy that a cut must keep."""
MARGIN = 0.1
"""Two accuracies are alike when the interval of their difference lies within so many of each other."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is asked of two conditions, by the names the study gives them."""

    left: str
    kind: Literal["better than", "like"]
    right: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what decides it, and further conditions to show."""

    text: str
    claims: tuple[Claim, ...]
    shown: tuple[str, ...] = ()


LEAD, MIX = "lead 0.5", "mix 0.9 lead 0.5"
LEFT_OR_RIGHT = Question(
    "Is left better than right, with the question kept?",
    (
        Claim(MIX, "better than", "mix 0.9 tail 0.5"),
        Claim(MIX, "better than", "mix 0.9 middle 0.5"),
        Claim(LEAD, "better than", "tail 0.5"),
    ),
    ("full",),
)
WINDOW = Question(
    "Does `lead` beat `random_window`?",
    (Claim(MIX, "better than", "mix 0.9 random_window 0.5"), Claim(LEAD, "better than", "random_window 0.5")),
)
TOKENS = Question(
    "What do equal tokens change?",
    (
        Claim(f"{MIX}, equal tokens", "better than", MIX),
        Claim(f"{LEAD}, equal tokens", "better than", LEAD),
        Claim(f"{MIX}, equal tokens", "like", "full"),
    ),
)
TEACHER = Question("Does the teacher matter?", (Claim(MIX, "better than", f"{MIX}, cross-entropy"),))
SUPERVISIONS = ("full, CoT", "full, P+CoT", "full, P+CoT+A")
ALIKE = Question(
    "Are all supervisions with CoT alike, and above the answer alone?",
    (*(Claim(name, "like", "full") for name in SUPERVISIONS), Claim("full", "better than", "full, A")),
)
SMALL = Question(
    "Do small students flatten?",
    (
        Claim("mix 0.9 lead 0.25", "like", "full"),
        Claim("mix 0.9 lead 0.25, small student", "like", "full, small student"),
        Claim(MIX, "like", "full"),
        Claim(f"{MIX}, small student", "like", "full, small student"),
    ),
)
QUESTIONS: dict[str, tuple[Question, ...]] = {
    "checked": (ALIKE, LEFT_OR_RIGHT, SMALL, WINDOW, TOKENS, TEACHER),
    "stated": (
        ALIKE,
        Question(
            "Does CoT alone fail where the answer is not in it?",
            (
                Claim("full, CoT+A, unstated", "better than", "full, CoT, unstated"),
                Claim("full, CoT+A, unstated", "better than", "full, P+CoT, unstated"),
                Claim("full, P+CoT+A, unstated", "like", "full, CoT+A, unstated"),
                Claim("full, CoT+A, unstated", "better than", "full, A, unstated"),
            ),
            ("full, CoT",),
        ),
        LEFT_OR_RIGHT,
        SMALL,
        WINDOW,
        TOKENS,
        TEACHER,
    ),
}
"""Questions by the first task of a study."""


def page_figures(directory: Path) -> str:
    """All questions of a study, answered from its complete trials.

    Raises:
        LeadspanError: The study, its runs or its world cannot be read.
    """
    frontiers = [frontier for frontier in build_frontiers(load_runs([directory])) if frontier.students]
    rows = {row.runs[0].name: row for frontier in frontiers for row in frontier.students}
    parts = [_provenance(directory, list(rows.values())), *_saturation(frontiers), _break_points(frontiers)]
    parts += [_answer(question, rows) for question in QUESTIONS[frontiers[0].task]]
    return "\n\n".join([*parts, _termination(list(rows.values())), _everything(frontiers)])


def _provenance(directory: Path, rows: Sequence[Row]) -> str:
    record = load_study(directory)
    trials = [trial for trial in record.trials if trial.control != "before"]
    runs = [run for row in rows for run in row.runs]
    dates = sorted(run.environment["date"][:10] for run in runs)
    devices = ", ".join(dict.fromkeys(run.train.device for run in runs if run.train))
    versions = ", ".join(f"{key} {runs[0].environment[key]}" for key in ("leadspan", "torch", "transformers"))
    before = sum(trial.seconds or 0 for trial in record.trials if trial.control == "before")
    seconds = sum(trial.seconds or 0 for trial in trials)
    done, failed = (len([trial for trial in trials if trial.state == state]) for state in ("done", "failed"))
    return (
        f"{done} trials done, {failed} failed, {len(trials) - done - failed} to do; seeds "
        f"{', '.join(map(str, record.study['seeds']))} of the order of examples and the random cuts (teacher, base and "
        f"world are the same for all); {rows[0].num_problems} held-out problems, greedy. Trained on {devices}; {versions}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. The trials' wall times add up to "
        f"{quantity('seconds', seconds)}, those of the runs before them to {quantity('seconds', before)}."
    )


def _saturation(frontiers: Sequence[Frontier]) -> list[str]:
    parts = ["## Does accuracy saturate in p?"]
    for frontier in frontiers:
        members = [row for row in _leads(frontier) if row.cut_kind == "mix"]
        for full in [row for row in frontier.students if any(member.reference == row.label for member in members)]:
            own = sorted((row for row in members if row.reference == full.label), key=lambda row: row.p or 0.0)
            if len(own) < 2:
                continue
            kept = [row for row in own if row.kept and row.kept.ratio and row.kept.ratio.low >= TARGET]
            name = full.runs[0].name
            verdict = (
                f"**Yes, by p = {kept[0].p:g}**: the lower bound of what it keeps is {percent(TARGET)} or more."
                if kept
                else f"**Not below 1**: no tested p is shown to keep {percent(TARGET)}."
            )
            parts += [f"{frontier.task}, beside `{name}`: {verdict}", _table([*own, full])]
    return parts


def _break_points(frontiers: Sequence[Frontier]) -> str:
    lines = [
        "## Does the break point follow (|P| + f |CoT|) / T?",
        "f: share of the chain of thought before the answer first stands, by the world's own record; P, CoT, T: mean tokens of "
        f"a trace; measured: the smallest p from which on a mix keeps {percent(TARGET)} of the uncut student's accuracy.",
        "| traces | f | P | CoT | T | predicted | measured |\n|:--|--:|--:|--:|--:|--:|:--|",
    ]
    for frontier in frontiers:
        for found in break_points(frontier, TARGET):
            row = frontier.row(found.rows[0])
            if row is None or row.cut_kind != "mix" or row.control or not _leads_in(row):
                continue
            numbers = " | ".join(_predicted(row))
            measured = found.reason or "" if found.measured is None else _place(found.measured)
            lines[-1] += f"\n| {frontier.task}, `{_family(row)}` | {numbers} | {measured} |"
    return "\n\n".join(lines)


def _predicted(row: Row) -> list[str]:
    """f, mean tokens of the sections, and LSP*, as they are shown."""
    traces = Path(row.runs[0].recipe["data"]["train"]["path"])
    share = load_world(traces.parent).sets[traces.stem].first_answer
    assert row.cut is not None, "students have counts"
    prompt, cot = (row.cut.section_tokens_before[name] / row.cut.num_examples for name in ("prompt", "cot"))
    total = row.cut.tokens_before / row.cut.num_examples
    place = "none" if share is None else f"{(prompt + share * cot) / total:.2f}"
    return ["none" if share is None else f"{share:.2f}", f"{prompt:.0f}", f"{cot:.0f}", f"{total:.0f}", place]


def _answer(question: Question, rows: dict[str, Row]) -> str:
    claims = [claim for claim in question.claims if claim.left in rows and claim.right in rows]
    missing = [f"`{claim.left}` or `{claim.right}`" for claim in question.claims if claim not in claims]
    found = [_judge(claim, rows) for claim in claims]
    names = dict.fromkeys(name for claim in claims for name in (claim.left, claim.right))
    shown = [rows[name] for name in dict.fromkeys((*names, *question.shown)) if name in rows]
    verdicts = [f"- `{claim.left}` {claim.kind} `{claim.right}`: {text}" for claim, (_, text) in zip(claims, found)]
    verdicts += [f"- not run: {text}" for text in missing]
    overall = _overall([holds for holds, _ in found])
    return "\n\n".join([f"## {question.text}", f"**{overall}**", "\n".join(verdicts), _table(shown)])


def _judge(claim: Claim, rows: dict[str, Row]) -> tuple[bool | None, str]:
    """Whether a claim holds (None: cannot be told), and the difference in words."""
    left, right = rows[claim.left], rows[claim.right]
    difference = retention(_scores(left), _scores(right)).difference
    if claim.kind == "better than":
        holds = True if difference.low > 0 else False if difference.high < 0 else None
        word = {True: "yes", False: "no, worse", None: "not told apart"}[holds]
    else:
        inside = -MARGIN <= difference.low and difference.high <= MARGIN
        holds = True if inside else False if difference.low > 0 or difference.high < 0 else None
        word = {True: "yes", False: "no", None: "cannot be told"}[holds]
    return holds, f"{word}, {points(difference)}"


def _overall(outcomes: Sequence[bool | None]) -> str:
    if not outcomes:
        return "Not run."
    if all(outcomes):
        return "Yes."
    if not any(outcomes):
        return "No." if all(outcome is False for outcome in outcomes) else "Not shown."
    return "In part."


def _termination(rows: Sequence[Row]) -> str:
    cuts = [row for row in rows if row.control is None and row.runs[0].recipe["supervision"] == _usual(rows)]
    ordered = sorted(cuts, key=lambda row: -row.termination.value)
    good = [f"`{row.runs[0].name}`" for row in ordered if row.termination.low >= TARGET]
    bad = [f"`{row.runs[0].name}`" for row in ordered if row.termination.high < TARGET]
    text = f"Shown to end {percent(TARGET)} of its answers or more: {', '.join(good) or 'none'}. Shown to end fewer: "
    return "\n\n".join(["## Which policy terminates?", f"{text}{', '.join(bad) or 'none'}.", _table(ordered)])


def _usual(rows: Sequence[Row]) -> dict[str, object]:
    return next(row.runs[0].recipe["supervision"] for row in rows if row.cut_kind == "full")


def _everything(frontiers: Sequence[Frontier]) -> str:
    students = [row for frontier in frontiers for row in frontier.students]
    extra = [row for frontier in frontiers for row in frontier.rows if row.role != "student"]
    return "\n\n".join(["## All conditions", _table([*extra, *students])])


def _leads(frontier: Frontier) -> list[Row]:
    return [row for row in frontier.students if row.control is None and _leads_in(row)]


def _leads_in(row: Row) -> bool:
    """Whether the policy, or that of the mix, is a lead, and the teacher's targets are learnt."""
    recipe = row.runs[0].recipe
    cut = recipe["cut"]
    return (cut.get("policy") or cut)["kind"] == "lead" and recipe["teacher"] is not None


def _family(row: Row) -> str:
    name = row.runs[0].name
    return name.replace(f" {row.p:g}", "", 1) if row.p is not None else name


def _place(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _scores(row: Row) -> list[dict[str, list[int]]]:
    return [found.correct for found in row.evaluations]


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "| condition | task | accuracy | terminated | of full's accuracy | tokens | training time |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for row in {(row.task, row.label): row for row in rows}.values():
        costs = row.costs or {}
        spent = [quantity(name, costs[name].value) if name in costs else "" for name in ("tokens", "seconds")]
        accuracy, ended = percent_interval(row.accuracy), percent_interval(row.termination)
        cells = [f"`{row.runs[0].name}`", row.task, accuracy, ended, kept_text(row), *spent]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Replace what stands between the markers of the page."""
    directory, page = Path(sys.argv[1]), Path(sys.argv[2])
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.stderr.write(f"{page}: it lacks the lines {BEGIN} and {END}; add them\n")
        return 2
    try:
        figures = page_figures(directory)
    except LeadspanError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    page.write_text(f"{head}{BEGIN}\n\n{figures}\n\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
