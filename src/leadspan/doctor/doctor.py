"""Checks of a recipe that run the real code: each gives a verdict, a figure and a remedy.

The models are run over the beginnings of a few training examples, through the same packing, forward pass and loss as
training.
"""

import torch

from leadspan.data.examples import Examples
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Budget, Full
from leadspan.doctor.check_inputs import Check, CheckInputs
from leadspan.doctor.fit_checks import (
    disk_and_memory,
    end_of_turn,
    ends_of_turns,
    padding,
    served_teacher,
    stored_targets,
    tokenizers,
)
from leadspan.doctor.loss_checks import EXCERPT_TOKENS, invariance, labels, likelihoods, self_divergence
from leadspan.doctor.rollout_checks import rollouts
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.recipe import Recipe
from leadspan.status import Progress, report_status
from leadspan.teacher.targets import freeze
from leadspan.training.process import process_device

_CHECKS = (
    self_divergence,
    likelihoods,
    tokenizers,
    ends_of_turns,
    padding,
    labels,
    end_of_turn,
    invariance,
    stored_targets,
    served_teacher,
    rollouts,
    disk_and_memory,
)


def examine(recipe: Recipe, num_examples: int) -> list[Check]:
    """Run every check of a recipe.

    Raises:
        LeadspanError: The data or a model cannot even be loaded.
    """
    report_status("preparing data")
    data = prepare_data(recipe)
    report_status("loading models")
    device = process_device()
    # In float32, so that a difference is a fault and not rounding.
    student = freeze(load_model(recipe.student, torch.float32), device)
    local = recipe.local_teacher
    teacher = None if local is None else freeze(load_model(local, torch.float32, is_frozen=True), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    stop = data.renderer.stop_token_id
    complete, begun = (
        Examples(data.splits.train, policy, everything, stop, recipe.seed, "training set")
        for policy in (Full(), Budget(num_tokens=EXCERPT_TOKENS))
    )
    # Uncut and with all positions weighted: the checks look for faults in any section.
    sample, excerpts = ([rows[i] for i in range(min(num_examples, len(rows)))] for rows in (complete, begun))
    inputs = CheckInputs(recipe, data, student, teacher, sample, excerpts, device)
    checks: list[Check] = []
    progress = Progress("checking", len(_CHECKS), "checks", are_alike=False)
    for number, check in enumerate(_CHECKS):
        progress.report(number, f", {check.__name__.replace('_', ' ')}")
        checks += check(inputs)
    return checks
