"""What a step has, and as which rows: prompts, traces and lengths by its number alone, and rollouts as examples.

Only overlaps carry over from step to step: an adaptive horizon follows them, and the record stores them. So a resumed
run has the same steps as one without a break. Shares are exact over the run: of the first `n` items, `floor(share * n)`
are of the kind.

A row that was ended by its horizon, the full length or the window has no end-of-turn target: its last token is an
ordinary one, and the row never counts as ended.
"""

import functools
import hashlib
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset

from leadspan.costs.flops import ExampleSize
from leadspan.data.examples import Example
from leadspan.data.sections import Renderer
from leadspan.data.supervision import ANSWER, COT, PROMPT, RandomTokens, Supervision, draw_tokens
from leadspan.data.truncation import kept_tokens
from leadspan.errors import DataError
from leadspan.evaluation.sampling import encode
from leadspan.evaluation.tasks import load_task, task_prompts
from leadspan.rollout.settings import AdaptiveHorizon, RolloutSettings, TaskPrompts, first_of


@dataclass(frozen=True, slots=True)
class Turn:
    """One rollout to draw."""

    prompt: int  # its number
    sample: int  # its number among those of the prompt in this step
    cap: int  # most new tokens
    is_whole: bool  # whether it may reach the full length, whatever the horizon


@dataclass(frozen=True, slots=True)
class StepCourse:
    """The content of a step: rollouts, ended after `horizon` new tokens unless whole, and indices of traces."""

    horizon: int
    turns: tuple[Turn, ...]
    traces: tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """The steps of a run."""

    settings: RolloutSettings  # shares and horizon
    num_prompts: int
    traces: Sequence[int]  # indices of the training examples that may be mixed in
    examples_per_step: int  # examples of a step, all ranks; a multiple of the samples of a prompt
    num_steps: int
    seed: int  # of the order

    def step(self, number: int, overlaps: Sequence[float | None] = ()) -> StepCourse:
        """The content of a step.

        `overlaps` are those of the steps before; an adaptive horizon follows them.
        """
        settings, seed, cold = self.settings, self.seed, self.settings.num_cold_steps
        rule, budget, samples = settings.horizon, settings.max_new_tokens, settings.samples_per_prompt
        if isinstance(rule, AdaptiveHorizon):
            horizon = rule.after(overlaps, budget)
        else:
            horizon = rule.at(max(0, number - cold), self.num_steps - cold, budget)
        # A group of traces has as many examples as a prompt has samples, so steps of any mix are equally large.
        per_step = self.examples_per_step // samples
        # Groups of traces in the first steps: all groups of a cold start, and a share of those after it.
        before, of_traces = (
            min(n, cold) * per_step + first_of(settings.trace_share, max(0, n - cold) * per_step)
            for n in (number, number + 1)
        )
        # Rollouts are numbered on from the steps before, so that the shares hold over the run and not step by step.
        first = number * per_step - before  # groups of rollouts in the steps before
        turns, num_samples = [], Counter[int]()  # of each prompt: at the border of two passes it may come twice
        for group in range(first, first + per_step - (of_traces - before)):
            prompt = _pass(self.num_prompts, f"{seed}:prompts:{group // self.num_prompts}")[group % self.num_prompts]
            for rollout in range(group * samples, (group + 1) * samples):
                # The one at which the count of whole rollouts goes up.
                is_whole = first_of(settings.whole_share, rollout + 1) > first_of(settings.whole_share, rollout)
                turns.append(Turn(prompt, num_samples[prompt], budget if is_whole else horizon, is_whole))
                num_samples[prompt] += 1
        traces, total = [], len(self.traces)
        for at in range(before * samples, of_traces * samples):
            traces.append(self.traces[_pass(total, f"{seed}:traces:{at // total}")[at % total]])
        return StepCourse(horizon, tuple(turns), tuple(traces))


# Prompts and traces, each at the border of two passes: four orders are in use at a time.
@functools.lru_cache(maxsize=4)
def _pass(number: int, seed: str) -> tuple[int, ...]:
    """The order of one pass over `number` items."""
    order = list(range(number))
    random.Random(seed).shuffle(order)
    return tuple(order)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt."""

    ids: tuple[int, ...]  # including the generation header and an opening think tag in it
    key: str  # hash of the ids and the teacher
    place: str  # where it comes from, for messages
    teacher: str = ""  # name of the teacher that scores its rollouts, where there are several


def rollout_prompts(
    settings: RolloutSettings, rows: Dataset, renderer: Renderer, window: int | None
) -> Sequence[Prompt]:
    """The prompts of a run, each once, in the order of their source: training rows, or the problems of a task.

    Raises:
        DataError: A prompt leaves no room for a new token in the window, or the task cannot be read.
    """
    candidates: list[tuple[Sequence[int], str, str]] = []  # token ids, where they come from, the teacher
    if isinstance(settings.prompts, TaskPrompts):
        task, system = settings.prompts.task, settings.prompts.system
        for number, text in enumerate(task_prompts(task.name, load_task(task), renderer, system), 1):
            candidates.append((encode(renderer.tokenizer, text), f"task {task.name}, problem {number}", ""))
    else:
        # The opening think tag, where the template writes it before the student does.
        opening = encode(renderer.tokenizer, renderer.opening)
        columns: Any = rows.select_columns(["input_ids", "prompt_end", "place", "teacher"]).with_format("numpy")
        for row in columns:
            ids = [*row["input_ids"][: row["prompt_end"]].tolist(), *opening]
            candidates.append((ids, str(row["place"]), str(row["teacher"])))
    by_key: dict[str, Prompt] = {}
    for ids, place, teacher in candidates:
        # Several traces may answer one prompt; each teacher scores its own rollouts of it.
        key = _hash_of(ids, teacher)[:16]
        by_key[key] = Prompt(tuple(ids), key, place, teacher)
    prompts = list(by_key.values())
    full = [prompt for prompt in prompts if window is not None and len(prompt.ids) >= window]
    if full:
        raise DataError(
            f"rollout.prompts: {len(full)} of {len(prompts)} prompts leave no room for a new token in the student's "
            f"window of {window} tokens ({full[0].place} has {len(full[0].ids)}); leave them out, with data.max_tokens "
            "or in the file, or take a student with a longer window"
        )
    return prompts


def _hash_of(ids: Sequence[int], teacher: str) -> str:
    """SHA-256 of token ids and, where it has one, the name of their teacher."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int32).tobytes() + teacher.encode()).hexdigest()


Ending = Literal["stop", "horizon", "budget", "window"]
"""What ended a rollout: a token that ends the turn; its horizon; the full length; the model's window."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was drawn for a turn, up to its end."""

    turn: Turn
    prompt: Prompt
    new_ids: tuple[int, ...]  # the token that ended the turn included
    ending: Ending
    log_probs: tuple[float, ...] = ()  # with which each of these tokens was drawn; empty where that is not needed


def to_rollout(
    turn: Turn,
    prompt: Prompt,
    drawn: Sequence[int],
    stop_ids: Collection[int],
    limits: tuple[int, int | None],
    log_probs: Sequence[float] = (),
) -> Rollout:
    """Take drawn ids up to the first that ends the turn, or to the cap.

    `limits` are the full length, and the model's window where it has one. Ids after an end of turn have no meaning.
    What is shorter than its cap has ended its turn, also where the token that did is not among `stop_ids`.
    """
    budget, window = limits
    cap = room(turn, prompt, window)
    end = next((i + 1 for i, token in enumerate(drawn[:cap]) if token in stop_ids), None)
    if end is None and len(drawn) < cap:  # of a store, whose teacher this recipe need not name
        end = len(drawn)
    if end is not None:
        return Rollout(turn, prompt, tuple(drawn[:end]), "stop", tuple(log_probs[:end]))
    # The tightest of the three limits ended it.
    ending: Ending = "window" if cap < turn.cap else "horizon" if cap < budget else "budget"
    return Rollout(turn, prompt, tuple(drawn[:cap]), ending, tuple(log_probs[:cap]))


def overlaps(
    example: Example, prompt_tokens: int, agreement: np.ndarray, horizon: int
) -> tuple[float | None, float | None]:
    """Share of new tokens at which the likeliest tokens agree: over all, and over the last quarter of the horizon.

    `agreement` is, at each weighted position of an example made of a rollout, 1 where they were the same, else 0; NaN
    where that is not known.
    """
    new = np.flatnonzero(example.weights > 0) - prompt_tokens  # below 0 in a supervised prompt
    is_known = (new >= 0) & ~np.isnan(agreement)
    # The last quarter, rounded up. Whole rollouts go on beyond the horizon, where they say nothing of it.
    at_end = is_known & (new >= horizon - -(-horizon // 4)) & (new < horizon)
    overall, end = (float(agreement[mask].mean()) if mask.any() else None for mask in (is_known, at_end))
    return overall, end


def room(turn: Turn, prompt: Prompt, window: int | None) -> int:
    """New tokens that a rollout may have."""
    return turn.cap if window is None else min(turn.cap, window - len(prompt.ids))


@dataclass(frozen=True)
class RowMaker:
    """Makes examples of rollouts; the tenths of an example are of its prompt and the full length, `budget`."""

    renderer: Renderer
    supervision: Supervision
    budget: int
    seed: int

    def example(self, rollout: Rollout, captured: Sequence[int] | None = None) -> Example:
        """Prompt and new tokens; the new ones have weights, and the prompt where it is supervised.

        The chain of thought includes its closing tag. It is all new tokens where thinking is not closed, and none where
        it was never opened, neither by the prompt nor by the first characters, which in a short rollout may be only the
        beginning of a tag.

        Targets are looked up by `captured`: the new tokens of the stored rollout that it is a prefix of.
        """
        prompt, new = rollout.prompt.ids, rollout.new_ids
        text, tags = self.text(new), self.renderer.rendering
        if tags.think_close in text:
            # The fewest tokens whose text has the tag, which may be split among tokens; all longer ones have it, too.
            lengths = range(len(new) + 1)
            cot = bisect_left(lengths, True, key=lambda length: tags.think_close in self.text(new[:length]))
        else:
            # A text that is still empty, or half a tag, may yet become a chain of thought.
            start = text.strip()
            opens = start.startswith(tags.think_open) or tags.think_open.startswith(start)
            cot = len(new) if self.renderer.opening or opens else 0
        sections = np.repeat(np.array([PROMPT, COT, ANSWER], np.int8), [len(prompt), cot, len(new) - cot])
        supervision = self.supervision
        weights = np.array([supervision.prompt, supervision.cot, supervision.answer], np.float32)[sections]
        weights[0] = 0.0  # nothing predicts the first token
        ids = np.array([*prompt, *new], dtype=np.int64)
        # Of the full length, so that a tenth is the same part of a rollout whatever its horizon.
        tenths = (10 * np.arange(len(ids)) // (len(prompt) + self.budget)).astype(np.int8)
        # A store knows a rollout by the hash of its full length, of which this one may be a prefix.
        uncut = [*prompt, *(new if captured is None else captured)]
        example_id = _hash_of(uncut, rollout.prompt.teacher)[:32]
        selection = supervision.token_selection
        if isinstance(selection, RandomTokens):
            weights = draw_tokens(weights, selection, example_id, self.seed)
        return Example(ids, weights, sections, tenths, example_id, rollout.prompt.teacher)

    def size(self, example: Example) -> ExampleSize:
        """Tokens, positions with a loss, and positions that the models' scores select from."""
        selection, weights = self.supervision.token_selection, example.weights[example.weights > 0]
        if selection is None or isinstance(selection, RandomTokens):
            return ExampleSize(len(example.input_ids), len(weights))
        # As `losses.selection`: a share of every group of equal weight, and at least one of each.
        groups = np.unique(weights, return_counts=True)[1]
        selected = sum(kept_tokens(selection.share, int(number)) for number in groups)
        return ExampleSize(len(example.input_ids), selected, len(weights))

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens kept."""
        return cast(str, self.renderer.tokenizer.decode(list(ids), skip_special_tokens=False))
