import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leadspan.data.examples import NO_WEIGHT, Examples
from leadspan.data.prepare import prepare, sections_of, split
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, HeldOutShare, HeldOutSource, NoValidation, Rendering
from leadspan.data.supervision import APPENDED, ByGap, RandomTokens, Supervision
from leadspan.data.truncation import (
    Budget,
    Endpoints,
    Full,
    Lead,
    LeadAnswer,
    LeadCot,
    Mix,
    Policy,
    PostConclusion,
    Schedule,
    Tail,
)
from leadspan.errors import CacheError, DataError
from leadspan.inputs import first_statements
from leadspan.traces.read import read_traces
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource
from toys import character_tokenizer, toy_examples, write_traces

COT_ONLY = Supervision(prompt=0, cot=1, answer=0)


@pytest.mark.parametrize(
    "supervision",
    [
        pytest.param(Supervision(prompt=0, cot=0, answer=1), id="A"),
        pytest.param(Supervision(prompt=1, cot=0, answer=1), id="P+A"),
        pytest.param(COT_ONLY, id="CoT"),
        pytest.param(Supervision(prompt=0, cot=1, answer=1), id="CoT+A"),
        pytest.param(Supervision(prompt=1, cot=1, answer=0), id="P+CoT"),
        pytest.param(Supervision(prompt=1, cot=1, answer=1), id="P+CoT+A"),
    ],
)
@pytest.mark.parametrize("policy", [Full(), LeadAnswer(p=0.5), Tail(p=0.6)], ids=lambda p: p.label)
def test_weights_follow_the_sections_of_the_whole_sequence(
    tmp_path: Path, policy: Policy, supervision: Supervision
) -> None:
    examples, _ = toy_examples(tmp_path, policy, supervision)
    by_section = {0: supervision.prompt, 1: supervision.cot, 2: supervision.answer}
    for i in range(len(examples)):
        example = examples[i]
        expected = [by_section[int(s)] for s in example.section_ids]
        expected[0] = 0.0
        assert example.weights.tolist() == expected
        assert example.weights[-1] > 0
        assert len(example.input_ids) == len(example.weights) == len(example.section_ids) == examples.lengths[i]


def test_cot_only_at_half(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Lead(p=0.5), COT_ONLY)
    full, _ = toy_examples(tmp_path)
    assert len(examples) == 12
    for i in range(12):
        whole = full[i].input_ids
        assert examples[i].input_ids.tolist() == whole[: max(1, len(whole) // 2)].tolist()
        assert set(examples[i].section_ids[examples[i].weights > 0]) == {1}


def test_counts_by_hand(tmp_path: Path) -> None:
    full, _ = toy_examples(tmp_path)
    counts = toy_examples(tmp_path, Lead(p=0.5))[0].counts
    total = sum(len(full[i].input_ids) for i in range(12))
    assert counts.num_examples == counts.num_kept == 12
    assert counts.tokens_before == total == sum(counts.section_tokens_before.values())
    assert counts.tokens_after == sum(len(full[i].input_ids) // 2 for i in range(12))
    assert (counts.lost_question, counts.lost_think_end, counts.lost_answer, counts.lost_stop) == (
        0,
        12,
        12,
        12,
    )
    whole = full.counts
    assert (whole.lost_question, whole.lost_think_end, whole.lost_answer, whole.lost_stop) == (0, 0, 0, 0)
    tail = toy_examples(tmp_path, Tail(p=0.5, keep_prompt=False))[0].counts
    assert (tail.lost_question, tail.lost_think_end, tail.lost_stop) == (12, 0, 0)


def test_appended_stop_is_a_hard_target_of_its_own(tmp_path: Path) -> None:
    examples, renderer = toy_examples(tmp_path, Lead(p=0.5, stop="append_eos"), COT_ONLY)
    example = examples[0]
    assert example.input_ids[-1] == renderer.stop_token_id
    assert example.section_ids[-1] == APPENDED and example.weights[-1] == 1
    assert examples.counts.lost_stop == 0
    assert examples.counts.section_tokens_after["appended"] == 12


def test_masked_closing_tag_is_context(tmp_path: Path) -> None:
    examples, renderer = toy_examples(tmp_path, LeadAnswer(p=0.4, stop="mask_think_end"))
    closing = renderer.tokenizer.convert_tokens_to_ids("</think>")
    for i in range(len(examples)):
        at = examples[i].input_ids.tolist().index(closing)
        assert examples[i].weights[at] == 0 and examples[i].weights[at + 1] == 1


def test_examples_without_weight_are_dropped_and_counted(tmp_path: Path) -> None:
    answer_only = Supervision(prompt=0, cot=0, answer=1)
    examples, _ = toy_examples(tmp_path, Lead(p=0.89), answer_only)
    dropped = examples.counts.dropped[NO_WEIGHT]
    assert 0 < dropped < 12 and len(examples) == examples.counts.num_kept == 12 - dropped


def test_nothing_left_to_learn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training set: lead 0.1 leaves no weighted position in any of 12 examples"):
        toy_examples(tmp_path, Lead(p=0.1), COT_ONLY)


def settings_for(path: Path, **more: object) -> DataSettings:
    values = {
        "train": TraceSource(path=str(path)),
        "validation": NoValidation(),
        "cache_dir": path.parent / "cache",
    }
    return DataSettings.model_validate(values | more)


def test_rows_are_reused_until_something_changes(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl")
    settings = settings_for(path)
    renderer = Renderer(character_tokenizer(), Rendering())
    first = prepare(settings.train, renderer, settings).rows.cache_files
    assert prepare(settings.train, renderer, settings).rows.cache_files == first
    write_traces(path, 13)
    assert prepare(settings.train, renderer, settings).rows.cache_files != first
    steps = Renderer(character_tokenizer(), Rendering(step_delimiter="\n"))
    assert prepare(settings.train, steps, settings).rows.cache_files != first


def test_traces_that_change_while_they_are_read_are_refused_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_traces(tmp_path / "t.jsonl")
    content, settings, renderer = path.read_text(), settings_for(path), Renderer(character_tokenizer(), Rendering())

    def growing(source: TraceSource) -> Iterator[Trace | Refusal]:
        yield from read_traces(source)
        path.write_text(content + content.splitlines(keepends=True)[0])

    with monkeypatch.context() as context, pytest.raises(DataError, match="changed while it was read"):
        context.setattr("leadspan.data.prepare.read_traces", growing)
        prepare(settings.train, renderer, settings)
    assert not list((tmp_path / "cache" / "traces").iterdir())
    path.write_text(content)
    assert prepare(settings.train, renderer, settings).num_read == 12


@pytest.mark.slow
def test_worker_processes_give_the_same_rows(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl", 460)
    renderer = Renderer(character_tokenizer(), Rendering())
    alone = prepare(TraceSource(path=str(path)), renderer, settings_for(path)).rows
    settings = settings_for(path, num_workers=2, cache_dir=tmp_path / "other")
    shared = prepare(settings.train, renderer, settings).rows
    assert alone[:] == shared[:]


def test_the_cache_has_few_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_traces(tmp_path / "t.jsonl", 150)
    renderer = Renderer(character_tokenizer(), Rendering())
    monkeypatch.setattr("leadspan.data.prepare._ROWS_PER_BATCH", 100)  # of 64 at a time: 128 and 22
    rows = prepare(TraceSource(path=str(path)), renderer, settings_for(path)).rows
    assert [len(batch) for batch in rows.data.to_batches()] == [128, 22]
    assert [len(ids) for ids in rows["input_ids"][:]] == rows["num_tokens"][:]


def test_refused_share_is_checked_again_on_reuse(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl")
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "p", "cot": "", "answer": "a"}) + "\n")
    renderer = Renderer(character_tokenizer(), Rendering())
    loose = settings_for(path, max_refused_share=0.1)
    assert prepare(loose.train, renderer, loose).refused == {"empty chain of thought": 1}
    with pytest.raises(DataError, match=r"1 x empty chain of thought, e.g. t.jsonl:13"):
        prepare(loose.train, renderer, settings_for(path))


def test_held_out_questions_are_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": f"q{i % 10}", "cot": f"c {i}", "answer": "a"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_for(path, validation=HeldOutShare(share=0.2))
    splits = split(settings, Renderer(character_tokenizer(), Rendering()), seed=0)
    assert splits.validation is not None
    train, held = set(splits.train["question_id"]), set(splits.validation["question_id"])
    assert len(held) == 2 and len(train) == 8 and not train & held
    assert len(splits.train) + len(splits.validation) == 40


def test_when_all_questions_are_held_out_the_error_says_so(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl", 1)
    with pytest.raises(DataError, match=r"the 1 questions of 1 traces are held out.*validation: \{kind: none\}"):
        split(settings_for(path, validation=HeldOutShare(share=0.1)), Renderer(character_tokenizer(), Rendering()), 0)


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    settings = settings_for(write_traces(tmp_path / "t.jsonl", 3), cache_dir=tmp_path / "t.jsonl" / "cache")
    with pytest.raises(
        CacheError, match=r"t\.jsonl/cache/traces/.*cannot be written \(Not a directory\).*data.cache_dir"
    ):
        prepare(settings.train, Renderer(character_tokenizer(), Rendering()), settings)


def test_a_held_out_question_is_not_trained_on_under_another_system_prompt(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"prompt": f"q{i % 10}", "system": f"be {'very ' * (i // 10)}brief", "cot": f"c {i}", "answer": "a"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    renderer = Renderer(character_tokenizer(), Rendering())
    splits = split(settings_for(path, validation=HeldOutShare(share=0.2)), renderer, seed=0)

    def asked(rows: Any) -> set[str]:
        return {renderer.tokenizer.decode(ids).split("user\n")[1][:2] for ids in rows["input_ids"]}

    assert splits.validation is not None
    assert len(asked(splits.validation)) == 2 and not asked(splits.train) & asked(splits.validation)


def test_a_validation_source_that_shares_questions_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = write_traces(tmp_path / "t.jsonl", 12), write_traces(tmp_path / "v.jsonl", 12)
    with other.open("a") as file:
        file.write(json.dumps({"prompt": "another", "cot": "c", "answer": "a"}) + "\n")
    source = HeldOutSource(source=TraceSource(path=str(other)))
    split(settings_for(path, validation=source), Renderer(character_tokenizer(), Rendering()), seed=0)
    assert f"{other}: 12 of its 13 questions are in the training source too" in caplog.text


def test_lengths_and_numbers_are_counted(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl", 20)
    renderer = Renderer(character_tokenizer(), Rendering())
    lengths = prepare(TraceSource(path=str(path)), renderer, settings_for(path)).rows["num_tokens"][:]
    limit = sorted(lengths)[14]
    splits = split(settings_for(path, max_tokens=limit, num_train=10), renderer, seed=0)
    long = sum(n > limit for n in lengths)
    assert splits.left_out == {f"longer than {limit} tokens": long, "not drawn": 20 - long - 10}
    with pytest.raises(DataError, match=r"data.num_train = 21: only 20 traces can be used"):
        split(settings_for(path, num_train=21), renderer, seed=0)
    with pytest.raises(DataError, match=rf"num_train = 21: only {20 - long} .* {long} longer than {limit} tokens;"):
        split(settings_for(path, max_tokens=limit, num_train=21), renderer, seed=0)
    with pytest.raises(DataError, match=r"no trace is left; left out so far: [0-9]+ longer than 5 tokens;"):
        split(settings_for(path, max_tokens=5), renderer, seed=0)


def test_traces_that_are_drawn_leave_nothing_beside_the_checked_rows(tmp_path: Path) -> None:
    path = write_traces(tmp_path / "t.jsonl", 12)
    settings = settings_for(path, num_train=5)
    renderer = Renderer(character_tokenizer(), Rendering())
    train = split(settings, renderer, 3).train
    everything = prepare(settings.train, renderer, settings).rows
    order = np.random.default_rng(3).permutation(12)[:5]
    assert train["place"][:] == [f"t.jsonl:{row + 1}" for row in order]
    first_statements(train, settings, renderer)
    (rows,) = everything.cache_files
    names = {file.name for file in Path(rows["filename"]).parent.iterdir()}
    assert names == {"rows.arrow", "summary.json", "digests.json"}


def test_rows_keep_their_sections(tmp_path: Path) -> None:
    examples, renderer = toy_examples(tmp_path)
    row = examples.rows.with_format(None)[3]
    sections = sections_of(row)
    text = renderer.tokenizer.decode(np.array(row["input_ids"])[sections.prompt_end : sections.cot_end])
    assert text.startswith("<think>\nstep 0: 3 + 0 = 3") and text.endswith("</think>")


def test_validation_is_full_whatever_the_policy(tmp_path: Path) -> None:
    examples, renderer = toy_examples(tmp_path, Lead(p=0.5))
    full = Examples(examples.rows.with_format(None), Full(), Supervision(), renderer.stop_token_id, 0, "validation set")
    assert full.counts.tokens_after == full.counts.tokens_before


def test_a_schedule_has_every_trace_once_per_stage(tmp_path: Path) -> None:
    policy = Schedule(policy=Lead(), start=0.25, end=1.0, num_stages=4)
    examples, _ = toy_examples(tmp_path, policy, Supervision(prompt=1))
    alone = [toy_examples(tmp_path, Lead(p=p), Supervision(prompt=1))[0] for p in (0.25, 0.5, 0.75, 1.0)]
    assert (examples.num_stages, len(examples)) == (4, 48)
    for stage, of_stage in enumerate(alone):
        for i in range(12):
            assert examples[12 * stage + i].input_ids.tolist() == of_stage[i].input_ids.tolist()
    assert examples.counts.tokens_after == sum(of_stage.counts.tokens_after for of_stage in alone)
    assert examples.counts.num_examples == 48


def test_rows_read_a_few_at_a_time_are_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Schedule(policy=Lead(), start=0.89, end=1.0, num_stages=2)
    answer_only = Supervision(prompt=0, cot=0, answer=1)
    at_once, _ = toy_examples(tmp_path, policy, answer_only)
    monkeypatch.setattr("leadspan.data.examples.ROWS_AT_ONCE", 5)  # 12 rows: two whole parts and the rest
    parts, _ = toy_examples(tmp_path, policy, answer_only)
    assert parts.counts == at_once.counts and parts.lengths == at_once.lengths and parts.teachers == at_once.teachers
    assert list(parts.example_ids) == list(at_once.example_ids) and len(set(parts.example_ids)) == 12
    assert list(parts.layouts) == list(at_once.layouts) and parts.layouts[-1] == at_once.layouts[len(at_once) - 1]
    for index in parts.usable:
        assert parts[index].input_ids.tolist() == at_once[index].input_ids.tolist()
        assert parts[index].example_id == list(parts.example_ids)[index]


def test_a_stage_may_lack_some_traces_but_not_all(tmp_path: Path) -> None:
    policy = Schedule(policy=Lead(), start=0.89, end=1.0, num_stages=2)
    answer_only = Supervision(prompt=0, cot=0, answer=1)
    examples, _ = toy_examples(tmp_path, policy, answer_only)
    missing = examples.lengths.count(0)
    assert examples.counts.dropped == {NO_WEIGHT: missing} and 0 < missing < 12 and 0 not in examples.lengths[12:]
    first = {"number": 1, "num_examples": 12, "num_kept": 12 - missing, "dropped": {NO_WEIGHT: missing}}
    assert examples.counts.worst_stage is not None and examples.counts.worst_stage.model_dump() == first
    with pytest.raises(DataError, match=r"lead 0.1 leaves no weighted position in any of 12 examples"):
        toy_examples(tmp_path, Schedule(policy=Lead(), start=0.1, end=1.0), answer_only)


def test_post_conclusion_finds_the_answer_of_each_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    traces = [
        ("we add.\n\nso it is 12.\n\ncheck: 12 it is.", "12"),
        ("we add.\n\nso it is 13.\n\nno: it is 12.", "12"),
        ("we add.\n\nso it is 13.", "12"),
        ("we add.\n\nso it is 12.", None),
    ]
    rows = [{"prompt": f"q{i}", "cot": cot, "answer": "12", "gold": gold} for i, (cot, gold) in enumerate(traces)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_for(path)
    renderer = Renderer(character_tokenizer(), Rendering())
    prepared = prepare(settings.train, renderer, settings).rows
    stated = first_statements(prepared, settings, renderer)
    examples = Examples(prepared, PostConclusion(), Supervision(), renderer.stop_token_id, 0, "training set", stated)
    texts = [renderer.tokenizer.decode(examples[i].input_ids) for i in range(len(examples))]
    assert [text.partition("<think>")[2] for text in texts] == [
        "\nwe add.\n\nso it is 12.\n\n</think>\n\n12<|im_end|>\n",
        "\nwe add.\n\nso it is 13.\n\nno: it is 12.\n</think>\n\n12<|im_end|>\n",
    ]
    assert examples.counts.dropped == {"the chain of thought states no known answer": 2}


def test_a_random_share_of_every_weight_is_drawn_once_per_example(tmp_path: Path) -> None:
    supervision = Supervision(prompt=0, cot=1, answer=2)
    plain, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), supervision)
    drawing = supervision.model_copy(update={"token_selection": RandomTokens(share=0.3)})
    drawn, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), drawing)
    again, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), drawing)
    other, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), drawing, seed=1)
    for i in range(12):
        before, after = plain[i].weights[:-1], drawn[i].weights[:-1]
        for weight in (1, 2):
            assert (after == weight).sum() == max(1, int(0.3 * (before == weight).sum()))
        assert set(after[before == 0]) <= {0.0} and drawn[i].weights[-1] == plain[i].weights[-1] == 1
        assert drawn.layouts[i].num_weighted == (drawn[i].weights > 0).sum()
        assert drawn.layouts[i].num_scored == plain.layouts[i].num_weighted
        assert drawn[i].weights.tolist() == again[i].weights.tolist()
    assert any(drawn[i].weights.tolist() != other[i].weights.tolist() for i in range(12))
    assert drawn.counts.weighted_tokens < 0.35 * plain.counts.weighted_tokens


def test_a_selection_by_score_counts_what_it_will_select(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Full(), Supervision(token_selection=ByGap(share=0.25)))
    for layout in examples.layouts:
        assert layout.num_weighted == layout.num_scored // 4
    assert (examples[0].weights > 0).sum() == examples.layouts[0].num_scored  # selected when the models have run


def test_a_policy_that_finds_no_steps_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = "first " * 20
    thoughts = [f"{begun}\n{begun}", f"{begun}\n\n{begun}", f"{begun}\r\n\r\n{begun}"]
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": f"q{i}", "cot": thoughts[min(i, 2)], "answer": "a"} for i in range(4)]
    for number_of_rows, warned in ((1, 0), (2, 1), (3, 0), (4, 0)):  # without a step: 1 of 1, of 2, of 3, of 4
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:number_of_rows]))
        made = prepare(TraceSource(path=str(path)), Renderer(character_tokenizer(), Rendering()), settings_for(path))
        caplog.clear()
        for policy in (Lead(p=0.7), Lead(p=0.7, align="step")):
            if (policy.align, number_of_rows) == ("step", 1):
                with pytest.raises(DataError, match=r"no weighted position .*; set data\.rendering\.step_delimiter"):
                    Examples(made.rows, policy, Supervision(), 2, 0, "training set")
                continue
            examples = Examples(made.rows, policy, Supervision(), 2, 0, "training set")
            assert examples.counts.without_steps == 1
        assert len(caplog.messages) == warned
        if warned:
            assert caplog.messages[0].startswith(
                "training set: lead 0.7 cuts between steps, but the chains of thought of 1 of"
            )


def test_policies_that_cut_between_steps() -> None:
    policies: list[Policy] = [
        Endpoints(p=0.5),
        PostConclusion(),
        Budget(num_tokens=9, align="step"),
        Mix(policy=LeadCot(align="step")),
        Schedule(policy=Endpoints(p=0.5), start=0.5, end=1.0),
    ]
    assert all(policy.needs_steps for policy in policies)
    others: list[Policy] = [
        Full(),
        Lead(),
        Mix(policy=LeadCot()),
        Tail(p=0.5),
        Schedule(policy=Lead(), start=0.5, end=1),
    ]
    assert not any(policy.needs_steps for policy in others)
