import json
from pathlib import Path

import pytest

from leadspan.audit.audit import run_audit
from leadspan.audit.config import AuditSettings
from leadspan.audit.prepared import search_first_answers, with_first_answers
from leadspan.data.config import DataSettings, NoValidation, Rendering, TraceSource
from leadspan.data.prepare import prepare, sections_of
from leadspan.data.sections import Renderer
from leadspan.errors import CacheError
from leadspan.models.loading import load_tokenizer
from leadspan.worlds.derive_and_verify import DeriveAndVerify
from toys import character_tokenizer


def settings_for(path: Path, cache: Path, **source: object) -> DataSettings:
    return DataSettings(
        train=TraceSource(path=str(path), **source), validation=NoValidation(), max_refused_share=1, cache_dir=cache
    )


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_generated_problem_states_its_answer_where_it_says(tmp_path: Path) -> None:
    """The world knows the first statement of each of its chains of thought, with checks and without."""
    for num_checks in (0, 1):
        problems = DeriveAndVerify(num_checks=num_checks).problems(60, 0, "train")
        rows: list[dict[str, object]] = [
            {"prompt": p.prompt, "cot": p.cot, "answer": p.answer, "gold": p.answer} for p in problems
        ]
        path = write(tmp_path / f"{num_checks}.jsonl", rows)
        settings, renderer = settings_for(path, tmp_path / "cache"), Renderer(character_tokenizer(), Rendering())
        prepared = prepare(settings.train, renderer, settings).rows
        found = with_first_answers(prepared, settings, renderer)
        for row, problem in zip(found, problems, strict=True):
            sections = sections_of(row)
            assert sections.first_answer == sections.prompt_end + 1 + problem.first_answer  # a tag and a line break


def test_what_was_found_is_kept_and_goes_with_the_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"q {i}", "cot": f"so it is {i}. check.", "answer": "-", "gold": str(i)} for i in range(5)
    ]
    path = write(tmp_path / "t.jsonl", rows)
    settings, renderer = settings_for(path, tmp_path / "cache"), Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    first = with_first_answers(prepared, settings, renderer)["first_answer"][:]
    assert None not in first
    path.unlink()  # what is known needs no source
    shuffled = with_first_answers(prepared, settings, renderer).select([3, 1])
    assert shuffled["first_answer"][:] == [first[3], first[1]]
    write(path, rows[:2])
    with pytest.raises(CacheError, match="2 of 3 prepared rows are not in it; it has changed meanwhile"):
        search_first_answers(prepared.select([1, 2, 3]), settings, renderer, 0)


def test_an_answer_of_the_traces_own_is_no_reference(tmp_path: Path) -> None:
    row: dict[str, object] = {"prompt": "q", "cot": "so it is 7. check.", "answer": "\\boxed{7}"}
    settings = settings_for(write(tmp_path / "t.jsonl", [row]), tmp_path / "cache")
    renderer = Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    assert with_first_answers(prepared, settings, renderer)["first_answer"][:] == [None]
    found = search_first_answers(prepared, settings, renderer, 0)
    assert found.summary.outcomes["found"] == 1 and found.summary.gold_sources == {"own boxed answer": 1}


@pytest.mark.shared
@pytest.mark.slow
def test_a_plan_has_the_break_point_of_the_audit(shared: Path, tmp_path: Path) -> None:
    settings = settings_for(shared / "traces" / "deepseek_r1.jsonl", tmp_path, limit=40)
    tokenizer = shared / "tokenizer-qwen3"
    renderer = Renderer(load_tokenizer(str(tokenizer)), Rendering())
    found = search_first_answers(prepare(settings.train, renderer, settings).rows, settings, renderer, 0)
    audited = run_audit(AuditSettings(data=settings, tokenizer=str(tokenizer)))
    assert found.summary == audited.first_answers and found.summary.outcomes["found"] > 20
