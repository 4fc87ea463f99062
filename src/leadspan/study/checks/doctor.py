"""Checks of a recipe that run what they check: each with a verdict, a figure and a remedy.

The models are run over a few training examples, uncut, through the same packing, forward pass and loss as training.
"""

from collections.abc import Callable

import torch

from leadspan.data.examples import Examples
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.recipe import Recipe
from leadspan.study.checks.fit_checks import end_of_turn, padding, room, same_text, store
from leadspan.study.checks.loss_checks import invariance, labels, likelihoods, self_divergence
from leadspan.study.checks.patient import Check, Patient
from leadspan.teacher.live import freeze
from leadspan.training.process import process_device

_CHECKS = (self_divergence, likelihoods, same_text, padding, labels, end_of_turn, invariance, store, room)


def examine(recipe: Recipe, num_examples: int, say: Callable[[str], None]) -> list[Check]:
    """Run every check of a recipe.

    Raises:
        LeadspanError: The data or a model cannot even be loaded.
    """
    say("preparing data")
    data = prepare_data(recipe)
    say("loading models")
    device = process_device()
    student = freeze(load_model(recipe.student, torch.float32), device)
    teacher = None if recipe.teacher is None else freeze(load_model(recipe.teacher, torch.float32), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    stop = data.renderer.stop_token_id
    whole = Examples(data.splits.train, Full(), everything, stop, recipe.seed, "training set")
    sample = [whole[i] for i in range(min(num_examples, len(whole)))]
    patient = Patient(recipe, data, student, teacher, sample, device)
    found: list[Check] = []
    for check in _CHECKS:
        say(f"checking: {check.__name__.replace('_', ' ')}")
        found += check(patient)
    return found
