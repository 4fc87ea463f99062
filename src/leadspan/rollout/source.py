"""The examples of every step, made when the step begins: rollouts of the student as it is then, and traces.

A draw depends on the student's weights and on `(seed, step, prompt, sample)`, not on batches, ranks or earlier draws.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from leadspan.costs.flops import ExampleSize, Shapes, StepCounts
from leadspan.data.examples import Example
from leadspan.data.packing import Batch
from leadspan.data.supervision import RandomTokens, layout_sizes
from leadspan.errors import RunError
from leadspan.evaluation.sampling import seed_of
from leadspan.evaluation.settings import Vllm
from leadspan.ranks import process_state
from leadspan.rollout.drawing import RolloutInputs, draw_rollouts, drawing_twin
from leadspan.rollout.record import ROLLOUTS_FILE, RolloutLine, RolloutRecord
from leadspan.rollout.rows import Rollout, StepCourse, Turn, overlaps
from leadspan.rollout.vllm_engine import VllmDrawing


class Rollouts:
    """Makes the micro-batches of a run step by step."""

    def __init__(self, inputs: RolloutInputs):
        self.inputs = inputs
        self.num_examples = inputs.course.num_prompts * inputs.course.settings.samples_per_prompt
        self.num_cold_steps = inputs.course.settings.num_cold_steps
        self.loss_at = inputs.loss_at
        self.counts: list[StepCounts] = []
        self._lines: list[list[RolloutLine]] = []
        self._overlaps: list[float | None] = []
        self._drawn: dict[int, dict[Turn, Rollout]] = {}  # by step
        self._batches: list[list[tuple[Rollout | None, Example]]] = []
        self._record = RolloutRecord(inputs.directory / ROLLOUTS_FILE)
        self._twin: PreTrainedModel | VllmDrawing | None = None
        self._shapes: Shapes | None = None
        self._recomputes = self._use_bf16 = self._is_recalled = False

    def prepare(self, shapes: Shapes, num_steps: int, recompute: bool, use_bf16: bool) -> None:
        """Receive shapes, gradient checkpointing and precision, by which a step is drawn and its cost is counted."""
        assert num_steps == self.inputs.course.num_steps, "planned alike"
        self._shapes, self._recomputes, self._use_bf16 = shapes, recompute, use_bf16

    def recall(self, step: int) -> None:
        """Read the record of the steps before this one, and remove the lines of later ones.

        Raises:
            RunError: The record of an earlier step is missing or damaged.
        """
        if self._is_recalled:  # every step asks for it, and the record is read once
            return
        self._is_recalled = True
        courses = [self.inputs.course.step(number) for number in range(step)]  # horizons do not matter here
        # The first process rewrites the file before the others read it.
        with process_state().main_process_first():
            writes = process_state().is_main_process
            self._lines = self._record.begin([len(course.turns) for course in courses], writes)
        for number, (course, lines) in enumerate(zip(courses, self._lines, strict=True)):
            self.counts.append(self._count(number, course, lines))
        self._overlaps += [_mean(lines, "end_overlap") for lines in self._lines]

    def batches(self, step: int, student: torch.nn.Module) -> list[Batch]:
        """This rank's micro-batches of a step.

        Raises:
            ModelError: The student's weights are sharded.
            RunError: No rollout or trace of the step has a position with a loss.
        """
        self.recall(step)
        if step not in self._drawn:  # drawn with an earlier step, or restored from a checkpoint
            self._draw(step, student)
        inputs, drawn, self._batches = self.inputs, self._drawn.pop(step), []
        for group in self._groups(step):
            self._batches.append([])
            for item in group:
                if isinstance(item, int):
                    rollout, example = None, inputs.traces[item]
                else:
                    rollout, example = drawn[item], inputs.rows.example(drawn[item], inputs.stored_ids(item))
                self._batches[-1].append((rollout, example))
        # The record and counts of the step, with the rollouts of all ranks.
        rank_lines = [
            (rollout.turn, self._line(step, rollout, example))
            for batch in self._batches
            for rollout, example in batch
            if rollout is not None
        ]
        course, of_turns = self._course(step), dict(gather_object(rank_lines))
        # In the order of the turns, not by rank: any number of ranks writes the same record.
        lines = [of_turns[turn] for turn in course.turns]
        self._lines.append(lines)
        self.counts.append(self._count(step, course, lines))
        # Asked of all ranks' examples, so that all of them raise.
        if not self.counts[-1].weighted:
            raise RunError(
                f"step {step}: no example has a position with a loss; give the sections that the student writes a "
                "weight (supervision.cot, supervision.answer)"
            )
        packed = [inputs.collate([example for _, example in batch]) for batch in self._batches]
        if inputs.is_stale(step):
            for row, batch in zip(packed, self._batches, strict=True):
                old = []
                for rollout, example in batch:
                    # Log-probability with which each token was drawn; NaN of those that were not: traces and prompts.
                    drawn_from = np.full(len(example.input_ids), np.nan, np.float32)
                    if rollout is not None:
                        drawn_from[len(rollout.prompt.ids) :] = rollout.log_probs
                    old.append(drawn_from[example.weights > 0])
                row["drawn_log_probs"] = torch.from_numpy(np.concatenate(old))
                is_vllm = isinstance(inputs.course.settings.engine, Vllm)
                row["drawn_from"] = None if is_vllm else inputs.rows.renderer.num_ids
        return packed

    def _course(self, step: int) -> StepCourse:
        """The content of a step; an adaptive horizon follows the steps that ended before its rollouts were drawn."""
        return self.inputs.course.step(step, self._overlaps[: self.inputs.drawn_with(step).start])

    def _groups(self, step: int) -> list[list[Turn | int]]:
        """Turns and traces of this rank's micro-batches."""
        course, size, state = self._course(step), self.inputs.examples_per_batch, process_state()
        # Dealt to the ranks micro-batch by micro-batch, as planned batches are.
        items: list[Turn | int] = [*course.turns, *course.traces]
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        return groups[state.process_index :: state.num_processes]

    def _draw(self, step: int, student: torch.nn.Module) -> None:
        """Draw this rank's rollouts of a step, and of the steps that are drawn together with it."""
        steps = self.inputs.drawn_with(step)
        turns = [(n, item) for n in steps for group in self._groups(n) for item in group if isinstance(item, Turn)]
        self._drawn = {n: {} for n in steps}
        if self.inputs.stored is not None:  # whole rollouts, of which each step takes the beginning
            drawn = [self.inputs.rollout(turn, self.inputs.stored_ids(turn) or []) for _, turn in turns]
        elif turns:
            if self._twin is None:  # once a run: both kinds follow the student's weights
                engine, origin = self.inputs.course.settings.engine, self.inputs.student
                if isinstance(engine, Vllm):
                    self._twin = VllmDrawing(origin, student, engine, self.inputs.window, self._use_bf16)
                else:
                    self._twin = drawing_twin(student, origin)
            # Only draws that are used after an update need their old probabilities.
            drawn = draw_rollouts(self._twin, self.inputs, turns, self._use_bf16, with_log_probs=len(steps) > 1)
        else:
            drawn = []
        for (n, turn), rollout in zip(turns, drawn, strict=True):
            self._drawn[n][turn] = rollout

    def state(self) -> tuple[dict[str, Any], tuple[str, int, str]]:
        """Draws of all ranks for later steps; name, size and SHA-256 of the record as it stands."""
        rank_draws = gather_object([
            (str(n), (astuple(turn), (rollout.new_ids, rollout.log_probs)))
            for n, drawn in self._drawn.items()
            for turn, rollout in drawn.items()
        ])  # fmt: skip
        made: dict[str, Any] = {str(n): [] for n in self._drawn}
        for n, drawn in rank_draws:
            made[n].append(drawn)
        return made, self._record.written()

    def restore(self, made: Mapping[str, Any]) -> None:
        """Restore the draws of a `state`, which may have passed through JSON."""
        self._drawn = {int(n): {} for n in made}
        for n, pairs in made.items():
            for values, drawn in pairs:
                turn = Turn(*values)
                self._drawn[int(n)][turn] = self.inputs.rollout(turn, *drawn)

    def end_step(self, agreements: Sequence[torch.Tensor]) -> None:
        """Write the rollouts of the step with their overlaps to the record.

        Args:
            agreements: For each micro-batch of this rank, at its weighted positions, 1 where the likeliest tokens of
                student and teacher were the same.
        """
        step, state = len(self._lines) - 1, process_state()
        course = self._course(step)
        shown: dict[Turn, tuple[float | None, float | None]] = {}
        for batch, agreement in zip(self._batches, agreements, strict=True):
            # Agreements come for the packed row; they are cut into those of its examples.
            ends = list(itertools.accumulate(int((example.weights > 0).sum()) for _, example in batch))[:-1]
            for (rollout, example), values in zip(batch, np.split(agreement.cpu().numpy(), ends), strict=True):
                if rollout is not None:
                    shown[rollout.turn] = overlaps(example, len(rollout.prompt.ids), values, course.horizon)
        # Every process keeps all overlaps, since an adaptive horizon is decided on each.
        shown = dict(gather_object(list(shown.items())))
        self._lines[step] = [
            replace(line, overlap=shown[turn][0], end_overlap=shown[turn][1])
            for line, turn in zip(self._lines[step], course.turns, strict=True)
        ]
        self._overlaps.append(_mean(self._lines[step], "end_overlap"))
        if state.is_main_process:
            self._record.append(self._lines[step])

    def figures(self, first: int, last: int) -> dict[str, float]:
        """Figures of the rollouts of the steps from `first` up to `last`, for a log line."""
        lines = [line for of_step in self._lines[first:last] for line in of_step]
        if not lines:
            return {}
        # The horizon may change within a log line; the others are means over its rollouts.
        figures = {"horizon": float(self._course(last - 1).horizon)}
        figures["tokens"] = sum(line.tokens for line in lines) / len(lines)
        for name in ("overlap", "end_overlap"):
            if (mean := _mean(lines, name)) is not None:
                figures[name] = mean
        endings = Counter(line.ending for line in lines)
        figures |= {f"ended_by_{ending}": number / len(lines) for ending, number in sorted(endings.items())}
        return {f"rollout/{name}": value for name, value in figures.items()}

    def _line(self, step: int, rollout: Rollout, example: Example) -> RolloutLine:
        turn, prompt, size = rollout.turn, rollout.prompt, self.inputs.rows.size(example)
        return RolloutLine(
            step=step,
            prompt=prompt.key,
            sample=turn.sample,
            seed=seed_of(self.inputs.key(step, turn), self.inputs.course.seed),
            prompt_tokens=len(prompt.ids),
            tokens=len(rollout.new_ids),
            weighted=size.weighted,
            scored=size.scored,
            cap=turn.cap,
            whole=turn.is_whole,
            ending=rollout.ending,
            text=self.inputs.rows.text(rollout.new_ids),
        )

    def _count(self, step: int, course: StepCourse, lines: list[RolloutLine]) -> StepCounts:
        """Tokens and operations of a step: drawing, and training on what was drawn and on the traces."""
        assert self._shapes is not None, "prepared before"
        selection = self.inputs.rows.supervision.token_selection
        sizes = [ExampleSize(line.prompt_tokens + line.tokens, line.weighted, line.scored) for line in lines]
        scored = None if isinstance(selection, RandomTokens) else selection
        sizes += layout_sizes((self.inputs.traces.layouts[i] for i in course.traces), scored)
        flops = self.inputs.training_flops(step, self._shapes, sizes, self._recomputes)
        drawing = self.inputs.drawing_flops(self._shapes[0], [(line.prompt_tokens, line.tokens) for line in lines])
        return StepCounts.of(sizes, flops.model_copy(update={"rollout": drawing}))


def _mean(lines: Sequence[RolloutLine], name: str) -> float | None:
    """Mean of a figure over the rollouts that have it; None where none does."""
    values = [value for line in lines if (value := getattr(line, name)) is not None]
    return sum(values) / len(values) if values else None
