"""Rollouts as examples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from leadspan.data.packing import pack
from leadspan.data.prepare import prepare
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, NoValidation, Rendering
from leadspan.data.supervision import ANSWER, COT, PROMPT, Supervision
from leadspan.errors import DataError
from leadspan.evaluation.sampling import encode
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings, ReverseKl
from leadspan.models.loading import load_model
from leadspan.rollout.rows import Prompt, Rollout, RowMaker, Turn, overlaps, rollout_prompts, to_rollout
from leadspan.rollout.settings import RolloutSettings, TaskPrompts
from leadspan.teacher.targets import freeze, live_targets
from leadspan.traces.settings import TraceSource
from toys import TEMPLATE, character_tokenizer, tiny, toy_examples

OPENS = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
END = 0  # <|im_end|>


def maker(template: str = TEMPLATE, supervision: Supervision | None = None, budget: int = 64) -> RowMaker:
    rendering = Rendering(assistant_turn="append")
    renderer = Renderer(character_tokenizer(template), rendering)
    return RowMaker(renderer, supervision or Supervision(cot=2, answer=1), budget, seed=0)


def rollout(rows: RowMaker, text: str, prompt: str = "<|im_start|>user\nadd<|im_end|>\n") -> Rollout:
    ids = encode(rows.renderer.tokenizer, prompt + rows.renderer.opening)
    new = encode(rows.renderer.tokenizer, text)
    return to_rollout(Turn(0, 0, len(new), False), Prompt(tuple(ids), "key", "line 1"), new, {END}, (64, None))


@pytest.mark.parametrize(("cap", "ids", "ending"), [(2, (5, 6), "horizon"), (16, (5, 6, 7), "stop")])
def test_a_stored_rollout_that_is_shorter_than_its_cap_has_ended_its_turn(cap: int, ids: object, ending: str) -> None:
    """With 7, say: an end of the teacher of the capture, which a recipe without a teacher does not know."""
    made = to_rollout(Turn(0, 0, cap, False), Prompt((1, 2), "key", "line 1"), [5, 6, 7], {END}, (64, None))
    assert (made.new_ids, made.ending) == (ids, ending)


@pytest.mark.parametrize(
    ("template", "text", "cot"),
    [
        (TEMPLATE, "<think>one</think>two<|im_end|>", 5),
        (TEMPLATE, "<think>one", 4),
        (TEMPLATE, "<think>", 1),
        (TEMPLATE, "two<|im_end|>", 0),
        (TEMPLATE, "<|im_end|>", 0),
        (TEMPLATE, "\n", 1),  # nothing that says which it is
        (OPENS, "one</think>two<|im_end|>", 4),
        (OPENS, "one", 3),
        (OPENS, "<|im_end|>", 1),
    ],
)
def test_sections_of_what_the_student_writes(template: str, text: str, cot: int) -> None:
    rows = maker(template)
    made = rollout(rows, text)
    example, prompt = rows.example(made), len(made.prompt.ids)
    answer = len(made.new_ids) - cot
    assert example.section_ids.tolist() == [PROMPT] * prompt + [COT] * cot + [ANSWER] * answer
    assert example.weights.tolist() == [0.0] * prompt + [2.0] * cot + [1.0] * answer
    assert example.input_ids.tolist() == [*made.prompt.ids, *made.new_ids]


def test_the_prompt_is_learnt_where_it_is_supervised_but_for_its_first_token() -> None:
    rows = maker(supervision=Supervision(prompt=0.5))
    made = rollout(rows, "one")
    assert rows.example(made).weights[: len(made.prompt.ids)].tolist() == [0.0] + [0.5] * (len(made.prompt.ids) - 1)


@pytest.mark.parametrize(
    ("cap", "drawn", "window", "expected", "ending"),
    [
        (4, [7, 8, 9, 10], None, [7, 8, 9, 10], "horizon"),
        (4, [7, 8, END, 9], None, [7, 8, END], "stop"),
        (4, [7, 8, 9, END], None, [7, 8, 9, END], "stop"),
        (4, [7, 8, 9, 10, END], None, [7, 8, 9, 10], "horizon"),  # drawn beyond the cap: never counts as ended
        (1, [7], None, [7], "horizon"),
        (1, [END], None, [END], "stop"),
        (64, [7] * 64, None, [7] * 64, "budget"),
        (64, [7] * 64, 13, [7] * 3, "window"),
        (4, [7, 8, 9, 10], 13, [7, 8, 9], "window"),
    ],
)
def test_what_ends_a_rollout(cap: int, drawn: list[int], window: int | None, expected: list[int], ending: str) -> None:
    prompt = Prompt(tuple(range(20, 30)), "key", "line 1")
    made = to_rollout(Turn(0, 0, cap, cap == 64), prompt, drawn, {END, 3}, (64, window))
    assert (list(made.new_ids), made.ending) == (expected, ending)


@pytest.mark.parametrize(
    ("horizon", "at_end"), [(8, 0.0), (7, 0.5), (4, 1.0), (3, 0.0), (1, 1.0), (5, 1.0), (40, None)]
)
def test_overlap_of_a_rollout_and_at_the_end_of_the_horizon(horizon: int, at_end: float | None) -> None:
    rows = maker(TEMPLATE, Supervision(prompt=1))
    made = rollout(rows, "add1add1")
    prompt = len(made.prompt.ids)
    agreement = np.array([0] * (prompt - 1) + [1, 1, 0, 1, np.nan, 1, 0, 0])
    assert overlaps(rows.example(made), prompt, agreement, horizon) == (pytest.approx(4 / 7), at_end)


@pytest.mark.slow
def test_a_cut_row_has_no_end_target_and_the_losses_of_the_whole_row_up_to_its_cut() -> None:
    rows = maker(budget=64)
    whole = rollout(rows, "<think>one and two</think>three<|im_end|>")
    student = load_model(tiny(seed=1), torch.float64)
    teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64))
    loss = LossSettings(kl_weight=1, divergence=ReverseKl(), compiled=False)

    def per_position(made: Rollout) -> torch.Tensor:
        """The divergence at every new token, by weights that single it out."""
        found = []
        for place in range(len(made.new_ids)):
            example = rows.example(made)
            chosen = np.zeros_like(example.weights)
            chosen[len(made.prompt.ids) + place] = 1
            batch = pack([replace(example, weights=chosen)])
            with torch.no_grad():
                found.append(batch_loss(student, batch, live_targets(teacher, batch), loss, end_ids=(0, 2)).loss_sum)
        return torch.stack(found)

    expected = per_position(whole)
    for horizon in (1, 2, 9, len(whole.new_ids) - 1):
        turn = Turn(0, 0, horizon, False)
        cut = to_rollout(turn, whole.prompt, whole.new_ids, {END}, (64, None))
        assert cut.ending == "horizon" and END not in cut.new_ids
        assert (rows.example(cut).weights > 0).sum() == horizon
        torch.testing.assert_close(per_position(cut), expected[:horizon])


def test_prompts_of_traces_end_where_generation_begins_and_come_once(tmp_path: Path) -> None:
    renderer = toy_examples(tmp_path, number=5)[1]
    rows = toy_rows(tmp_path).select([0, 1, 2, 3, 4, 0, 1])
    prompts = rollout_prompts(RolloutSettings(), rows, renderer, None)
    texts = [renderer.tokenizer.decode(list(prompt.ids)) for prompt in prompts]
    asked = [[{"role": "user", "content": f"add {i} to itself{'!' * (i % 3)}"}] for i in range(5)]
    assert texts == [renderer.prompt_text(messages) for messages in asked]


def toy_rows(directory: Path) -> Dataset:
    renderer = Renderer(character_tokenizer(), Rendering())
    source = TraceSource(path=str(directory / "traces.jsonl"))
    settings = DataSettings(train=source, validation=NoValidation(), cache_dir=directory / "cache")
    return prepare(source, renderer, settings).rows


def test_prompts_of_a_task_and_a_window_that_one_of_them_fills(tmp_path: Path) -> None:
    toy_examples(tmp_path, number=2)
    (tmp_path / "task.jsonl").write_text('{"problem": "add 1", "gold": "2"}\n{"problem": "add 1 and 2", "gold": "3"}\n')
    renderer = Renderer(character_tokenizer(), Rendering())
    task = {"name": "sums", "path": str(tmp_path / "task.jsonl")}
    settings = RolloutSettings(prompts=TaskPrompts.model_validate({"kind": "task", "task": task, "system": "add"}))
    rows = toy_rows(tmp_path)
    prompts = rollout_prompts(settings, rows, renderer, None)
    asked = [{"role": "system", "content": "add"}, {"role": "user", "content": "add 1"}]
    assert renderer.tokenizer.decode(list(prompts[0].ids)) == renderer.prompt_text(asked)
    longest = len(prompts[1].ids)
    assert rollout_prompts(settings, rows, renderer, longest + 1) == prompts
    message = rf"1 of 2 prompts leave no room .* window of {longest} tokens \(task sums, problem 2 has {longest}\)"
    with pytest.raises(DataError, match=message):
        rollout_prompts(settings, rows, renderer, longest)
