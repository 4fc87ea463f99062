import json
import time
from pathlib import Path

import pytest
from datasets import Dataset

from leadspan.audit.audit import run_audit
from leadspan.audit.first_answers import BATCH, Located, Locator, settle, without_derivation
from leadspan.audit.settings import AuditSettings
from leadspan.data.prepare import prepare, sections_of
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, NoValidation, Rendering
from leadspan.data.truncation import PostConclusion
from leadspan.errors import CacheError
from leadspan.inputs import first_statements, search_first_answers
from leadspan.models.reading import load_tokenizer
from leadspan.processes import in_batches
from leadspan.traces.read import read_traces
from leadspan.traces.settings import TraceSource
from leadspan.worlds.problems import DeriveAndVerify
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
        found = first_statements(prepared, settings, renderer)
        for row, last, problem in zip(prepared, found, problems, strict=True):
            assert last == sections_of(row).prompt_end + 1 + problem.first_answer  # a tag and a line break


def test_what_was_found_is_kept_and_goes_with_the_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"q {i}", "cot": f"so it is {i}. check.", "answer": "-", "gold": str(i)} for i in range(5)
    ]
    path = write(tmp_path / "t.jsonl", rows)
    settings, renderer = settings_for(path, tmp_path / "cache"), Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    first = first_statements(prepared, settings, renderer)
    assert None not in first
    assert first_statements(prepared.select([3, 1]), settings, renderer) == [first[3], first[1]]
    path.unlink()  # what is known needs no source
    assert first_statements(prepared, settings, renderer) == first
    write(path, rows[:2])
    with pytest.raises(CacheError, match="2 of 3 prepared rows are not in it; the file has changed meanwhile"):
        search_first_answers(prepared.select([1, 2, 3]), settings, renderer, 0)


def test_an_answer_of_the_traces_own_is_no_reference(tmp_path: Path) -> None:
    row: dict[str, object] = {"prompt": "q", "cot": "so it is 7. check.", "answer": "\\boxed{7}"}
    settings = settings_for(write(tmp_path / "t.jsonl", [row]), tmp_path / "cache")
    renderer = Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    assert first_statements(prepared, settings, renderer) == [None]
    found = search_first_answers(prepared, settings, renderer, 0)
    assert without_derivation(PostConclusion(), found.traces, 0).value == 1
    assert found.summary.outcomes["found"] == 1 and found.summary.gold_sources == {"own boxed answer": 1}


@pytest.mark.parametrize("golds", [("7", None), (None, "7"), ("7", "8"), ("8", "7")])
def test_rows_of_the_same_tokens_have_answers_of_their_own(tmp_path: Path, golds: tuple[str | None, ...]) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "q", "cot": "so it is 7. check. no: it is 8.", "answer": "it depends", "gold": gold}
        for gold in golds
    ]
    settings = settings_for(write(tmp_path / "t.jsonl", rows), tmp_path / "cache")
    renderer = Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    start = prepared["prompt_end"][0] + 2
    at = {"7": start + len("so it is "), "8": start + len("so it is 7. check. no: it is "), None: None}
    assert first_statements(prepared, settings, renderer) == [at[gold] for gold in golds]
    sources = search_first_answers(prepared, settings, renderer, 0).summary.gold_sources
    assert sources == {"record": 2} or (None in golds and sources == {"record": 1, "none": 1})


def test_rows_of_a_directory_whose_file_has_another_name_now(tmp_path: Path) -> None:
    row: dict[str, object] = {"prompt": "q", "cot": "so it is 7. check.", "answer": "7", "gold": "7"}
    (tmp_path / "traces").mkdir()
    file = write(tmp_path / "traces" / "a.jsonl", [row])
    settings, renderer = settings_for(file.parent, tmp_path / "cache"), Renderer(character_tokenizer(), Rendering())
    assert prepare(settings.train, renderer, settings).rows["place"][:] == ["a.jsonl:1"]
    file.rename(file.with_name("b.jsonl"))
    prepared = prepare(settings.train, renderer, settings).rows
    assert prepared["place"][:] == ["b.jsonl:1"] and None not in first_statements(prepared, settings, renderer)


@pytest.mark.shared
@pytest.mark.slow
def test_a_plan_has_the_break_point_of_the_audit(shared: Path, tmp_path: Path) -> None:
    settings = settings_for(shared / "traces" / "deepseek_r1.jsonl", tmp_path, limit=40)
    tokenizer = shared / "tokenizer-qwen3"
    renderer = Renderer(load_tokenizer(str(tokenizer)), Rendering())
    found = search_first_answers(prepare(settings.train, renderer, settings).rows, settings, renderer, 0)
    audited = run_audit(AuditSettings(data=settings, tokenizer=str(tokenizer)))
    assert found.summary == audited.first_answers and found.summary.outcomes["found"] > 20


def stating(path: Path, cache: Path, number: int = 20) -> tuple[Dataset, DataSettings, Renderer]:
    """Prepared rows whose gold is an expression that is spelt otherwise in the chain of thought."""
    rows: list[dict[str, object]] = [
        {"prompt": f"q {i}", "cot": f"so it is $2x + {i}$. check.", "answer": "-", "gold": f"${i} + 2x$"}
        for i in range(1, number + 1)
    ]
    settings, renderer = settings_for(write(path, rows), cache), Renderer(character_tokenizer(), Rendering())
    return prepare(settings.train, renderer, settings).rows, settings, renderer


def test_when_the_time_is_spent_the_rest_is_left_and_nothing_is_kept(tmp_path: Path) -> None:
    rows, settings, renderer = stating(tmp_path / "t.jsonl", tmp_path / "cache")
    spent = search_first_answers(rows, settings, renderer, 0, seconds=0)
    assert (spent.num_left, spent.summary.num_traces, spent.summary.lsp_star) == (20, 0, None)
    assert not (tmp_path / "cache" / "first_answers").exists()
    whole = search_first_answers(rows, settings, renderer, 0)
    assert whole.num_left == 0 and whole.summary.outcomes["found"] == 20
    assert search_first_answers(rows, settings, renderer, 0, seconds=0) == whole  # known, so no time is needed


def test_answers_that_other_rules_gave_are_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, settings, renderer = stating(tmp_path / "t.jsonl", tmp_path / "cache", 3)
    read = Path.read_bytes
    for edited in ("", "numbers.py", "first_answers.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=edited: read(path) + b"#" * (path.name == name))
        search_first_answers(rows, settings, renderer, 0)
    assert len(list((tmp_path / "cache" / "first_answers").iterdir())) == 3


@pytest.mark.slow
def test_traces_count_whole_or_not_at_all_where_comparisons_are_left(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows, settings, renderer = stating(path, tmp_path / "cache")
    assert len(rows) == 20
    batches = in_batches(Locator(renderer).examine, read_traces(settings.train), BATCH, 1)
    located = [one for batch in batches for one in batch if isinstance(one, Located)]
    assert all(not candidate.is_equal for one in located for candidate in one.candidates.candidates)
    assert settle(located, 1, deadline=time.monotonic()) == ([], 0)
    assert settle(located, 1, deadline=time.monotonic() + 1e6) == settle(located, 1)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", '{"found": {', '{"found": {}, "num_undecided": 0}', "[]", "\udc80", "flip"])
def test_a_damaged_file_of_the_cache_is_made_anew(tmp_path: Path, text: str) -> None:
    rows, settings, renderer = stating(tmp_path / "t.jsonl", tmp_path / "cache", 3)
    found = search_first_answers(rows, settings, renderer, 0)
    (kept,) = (tmp_path / "cache" / "first_answers").iterdir()
    good = kept.read_bytes()
    undecided = good.index(b'"num_undecided": ') + 17
    flipped = good[:undecided] + b"1" + good[undecided + 1 :]
    kept.write_bytes(flipped if text == "flip" else text.encode(errors="surrogateescape"))
    assert search_first_answers(rows, settings, renderer, 0) == found
    assert kept.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    rows, settings, renderer = stating(tmp_path / "t.jsonl", tmp_path / "cache", 3)
    (tmp_path / "cache" / "first_answers").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot be written .*; make room there, or set data\.cache_dir"):
        first_statements(rows, settings, renderer)
