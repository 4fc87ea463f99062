"""Size of a store of the teacher's targets, the cost of its capture, and what it saves a run."""

from dataclasses import dataclass

from leadspan.costs.flops import FlopsByPart, forward_attention, forward_body, forward_head
from leadspan.data.examples import Examples
from leadspan.errors import TargetsError
from leadspan.inputs import PreparedData, teacher_source
from leadspan.planning.prediction import CostModel
from leadspan.recipe import Recipe
from leadspan.teacher.codecs import bytes_per_position
from leadspan.teacher.settings import Hidden, KeptTargets, Sampled, TopK


@dataclass(frozen=True, slots=True)
class StoreCost:
    """A store of the teacher's targets at every position that training passes through, each trace once.

    Attributes:
        num_bytes: Its rows as `teacher.shards` writes them, and the head where hidden states are stored; keys, offsets
            and the validation set come on top. Of `top_p` and `sampled`, whose supports the data decides, the most that
            it can be.
        capture_flops: One forward pass of the teacher over these traces and the uncut validation set; 0 where the
            teacher is not known.
        validation_flops: Part of `capture_flops` that is the validation set.
        saved_flops: What a run with a live teacher saves by reading it: the teacher's passes, but for its head where
            hidden states are stored.
    """

    num_bytes: int
    capture_flops: int
    validation_flops: int
    saved_flops: int

    @property
    def net_flops(self) -> int:
        """What is saved when this run alone pays for the capture; negative where the capture costs more."""
        return self.saved_flops - self.capture_flops


def planned_targets(recipe: Recipe) -> KeptTargets:
    """What is kept in the store a recipe reads; of one that is not there yet, as `capture` would write it."""
    try:
        kept_targets = teacher_source(recipe).kept_targets
    except TargetsError:  # the store is yet to be captured
        kept_targets = None
    return kept_targets or recipe.capture.kept_targets


def store_cost(
    recipe: Recipe, model: CostModel, data: PreparedData, examples: Examples, flops: FlopsByPart
) -> StoreCost | None:
    """What a store for some examples costs and saves; None where nothing is known of the teacher.

    `model` and `flops`, those of training on the examples, are with a live teacher, where one is known.
    """
    teacher = model.memory.teacher
    if teacher is None:
        return None
    num_rows, by_stage = len(examples.rows), examples.lengths
    # A policy that changes over training needs of every trace the longest stage; shorter ones are its prefixes.
    lengths = [max(by_stage[row::num_rows]) for row in range(num_rows)]
    kept_targets = planned_targets(recipe)
    codec, is_hidden, tokens = kept_targets.codec, isinstance(kept_targets.codec, Hidden), teacher.vocab_size
    positions = sum(length - 1 for length in lengths)  # the last token predicts nothing that is trained
    if isinstance(codec, Hidden):
        # Stored as the run computes, unless the codec names a type; the head always is.
        width_of_run = 2 if model.memory.use_bf16 else 4
        width = {"teacher": width_of_run, "float32": 4, "bfloat16": 2}[codec.dtype]
        # 4 bytes of token id, 1 of section, then the hidden state.
        num_bytes = positions * (4 + 1 + width * teacher.hidden_size) + width_of_run * teacher.head_params
    else:
        most = 0 if isinstance(codec, TopK) else codec.num_samples if isinstance(codec, Sampled) else codec.max_tokens
        per_position = bytes_per_position(codec, len(kept_targets.temperatures), tokens, min(most, tokens))
        num_bytes = round(positions * per_position)
    of_validation = [] if data.validation is None else data.validation.lengths
    trained, validated = (
        sum(
            forward_body(teacher, length)
            + forward_attention(teacher, length)
            + (0 if is_hidden else forward_head(teacher, length - 1))
            for length in ([] if teacher.is_head_only else split)  # a teacher without a body is not run
        )
        for split in (lengths, of_validation)
    )
    return StoreCost(
        num_bytes=num_bytes,
        capture_flops=trained + validated,
        validation_flops=validated,
        saved_flops=flops.teacher_body + flops.teacher_attention + (0 if is_hidden else flops.teacher_head),
    )
