"""On-policy distillation: drawing inside training against plain `generate`, and a 10 % against full length.

Drawing: the rollouts of one step, by the student that trains, against `generate` over the same prompts in batches of
the same size with the same caps; both in turn in one process. Random weights over 4,096 tokens seldom end a turn, so
that both sides draw to the cap; new tokens a second are compared. Horizon: two runs of the same recipe, `share` 0.1 and
1 of the full length, in processes of their own through the same pipeline as `leadspan distill`; training time of the
steps, the first one as long as the others. Prediction: that of both runs from one calibration of the recipe before,
written by the runs themselves beside what they measured. The prompts are those of real traces, read by both.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.plans import model, ran, recipe, write_tokenizer
from benchmarks.record import Figure, Outcome, Spread
from leadspan.data.truncation import Full, Lead
from leadspan.evaluation.sampling import batches_of_like_length
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.planning.plan import calibration_of
from leadspan.recipe import Recipe
from leadspan.rollout.drawing import RolloutInputs, draw_rollouts, drawing_twin
from leadspan.stages import rollout_inputs

FULL, STEPS, ROUNDS = 320, 3, 3
SHARES = (0.1, 1.0)
SETTINGS = {
    "student": model(128, 4),
    "teacher": model(192, 4),
    "data": {"max_tokens": 1024, "num_train": 60},
    "loss": {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}},
    "training": {
        "steps": STEPS,
        "batching": {"kind": "examples", "examples_per_step": 16, "examples_per_batch": 4},
        "learning_rate": 1e-4,
        "keep": "last",
        "report_to": [],
    },
}


def run() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        tokenizer = write_tokenizer(directory)
        recipes = {share: with_horizon(directory, tokenizer, share) for share in SHARES}
        calibration_of(recipes[1.0], prepare_data(recipes[1.0]), [Full(), Lead(p=0.25)], True)
        rates = drawing_rates(recipes[1.0])
        runs = {share: ran(made) for share, made in recipes.items()}
    trained = {share: train for share, (_, train) in runs.items()}
    errors = {share: (found.seconds or 0.0) / train.steady_seconds - 1 for share, (found, train) in runs.items()}
    ratios = [ours / plain for ours, plain in zip(*rates.values(), strict=True)]
    seconds = {share: train.steady_seconds for share, train in trained.items()}
    drawing = {share: train.step_seconds.rollout for share, train in trained.items() if train.step_seconds}
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"full length": FULL, "steps": STEPS, "rounds": ROUNDS, "student": SETTINGS["student"]},
        sides={name: Spread.of(values, "tokens/s") for name, values in rates.items()}
        | {f"horizon {share:g}: step": Spread.of([value / STEPS]) for share, value in seconds.items()},
        figures=[
            Figure("tokens a second of drawing in training / plain generate", statistics.median(ratios), 0.9, "higher"),
            Figure("training time, horizon of 10 % / full rollouts", seconds[0.1] / seconds[1.0], 0.2),
            Figure("operations, horizon of 10 % / full rollouts", trained[0.1].flops.total / trained[1.0].flops.total),
            Figure("largest error of the predicted time", max(map(abs, errors.values())), 0.15),
            Figure("share of drawing in the time of full rollouts", drawing[1.0] / trained[1.0].seconds),
        ],
        details={"errors of the predicted time": {f"{share:g}": error for share, error in errors.items()}},
    )


def with_horizon(directory: Path, tokenizer: Path, share: float) -> Recipe:
    rollout = {"max_new_tokens": FULL, "horizon": {"kind": "share", "share": share}, "batch_size": 16}
    plan = {"break_point_seconds": 0, "calibration": str(directory / "rates.json")}
    return recipe(directory, tokenizer, f"horizon {share}", rollout=rollout, plan=plan, **SETTINGS)


def drawing_rates(made: Recipe) -> dict[str, list[float]]:
    """New tokens a second of both sides, round by round."""
    assert made.rollout is not None, "as given"
    inputs = rollout_inputs(made, prepare_data(made), made.rollout)
    student = drawing_twin(load_model(made.student, torch.float32), made.student)
    rates: dict[str, list[float]] = {"drawing in training": [], "plain generate": []}
    for step in range(ROUNDS):
        turns = [(step, turn) for turn in inputs.course.step(step).turns]
        start = time.perf_counter()
        drawn = draw_rollouts(student, inputs, turns, use_bf16=False)
        new = [_up_to_stop(list(one.new_ids), inputs.stop_ids) for one in drawn]
        rates["drawing in training"].append(sum(new) / (time.perf_counter() - start))
        prompts = [list(inputs.prompts[turn.prompt].ids) for _, turn in turns]
        start = time.perf_counter()
        num_tokens = _plain(student, prompts, inputs)
        rates["plain generate"].append(num_tokens / (time.perf_counter() - start))
    return rates


@torch.inference_mode()
def _plain(student: PreTrainedModel, prompts: list[list[int]], inputs: RolloutInputs) -> int:
    settings, num_tokens = inputs.course.settings, 0
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(inputs.stop_ids),
        pad_token_id=inputs.stop_ids[0],
        return_dict_in_generate=False,  # else that of the draws before, which the model keeps
    )
    for indices in batches_of_like_length(prompts, settings.batch_size):
        batch = [prompts[i] for i in indices]
        longest, pad = max(map(len, batch)), inputs.stop_ids[0]
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        new = student.generate(ids, attention_mask=mask, generation_config=config)[:, longest:]
        num_tokens += sum(_up_to_stop(row, inputs.stop_ids) for row in new.tolist())
    return num_tokens


def _up_to_stop(ids: list[int], stop_ids: tuple[int, ...]) -> int:
    return next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
