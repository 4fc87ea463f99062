"""One recipe's capture, put together: data, teacher, plan, store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.errors import ModelError, SettingsError
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.models.heads import head_of, transform_of
from leadspan.models.identity import weights_id
from leadspan.models.loading import check_vocabularies, load_model, load_tokenizer, name_of
from leadspan.pipeline import environment, prepare_data, training_rows
from leadspan.recipe import Recipe
from leadspan.teacher.capture import CapturePlan, Engine, Ranks, capture, check_space, claimed, plan_capture
from leadspan.teacher.config import Codec, Hidden, StoredTargets, TopK
from leadspan.teacher.engine import TransformersEngine, check_causal, head_file, hidden_dtype
from leadspan.teacher.estimate import COMMON_CODECS, Estimate, estimate
from leadspan.teacher.live import freeze
from leadspan.teacher.manifest import HEAD_FILE, MANIFEST_FILE, HeadEntry, Manifest, file_hash, write_atomically
from leadspan.teacher.sequences import Sequences, longest_sequences
from leadspan.teacher.targets import DenseTargets
from leadspan.teacher.vllm import VllmEngine
from leadspan.training.process import process_device, process_state
from leadspan.training.train import uses_bf16

KL_SAMPLE = 256
_EVERYTHING = Supervision(prompt=1, cot=1, answer=1)


@dataclass(frozen=True)
class Capture:
    """What a capture is made of.

    Attributes:
        recipe: The recipe.
        teacher: Its teacher's settings.
        renderer: Tokenizer and template of the data.
        sequences: What the teacher runs over.
        plan: Its packs and shards.
        dtype: Type the teacher computes in.
    """

    recipe: Recipe
    teacher: ModelSettings
    renderer: Renderer
    sequences: Sequences
    plan: CapturePlan
    dtype: torch.dtype

    @property
    def directory(self) -> Path:
        """The store.

        Raises:
            SettingsError: The recipe names none.
        """
        if self.recipe.capture.path is not None:
            return self.recipe.capture.path
        if isinstance(self.recipe.targets, StoredTargets):
            return self.recipe.targets.path
        raise SettingsError(
            "capture.path: missing; give the directory of the store there, or in targets: {kind: store, path: ...}"
        )


def prepare_capture(recipe: Recipe, cuts: Sequence[Policy] = ()) -> Capture:
    """Find the sequences to capture, and plan them.

    Args:
        recipe: The recipe; validation is captured whole, as it is validated.
        cuts: Cuts the store is to serve; the recipe's `capture.cuts`, or its own cut, when empty.

    Raises:
        LeadspanError: Whatever is wrong with the recipe or the data.
    """
    if recipe.teacher is None:
        raise SettingsError("teacher: missing; a capture runs the teacher, so the recipe must name it")
    data = prepare_data(recipe)
    stop, seed = data.renderer.stop_token_id, recipe.seed
    sources = [
        Examples(training_rows(recipe, data.splits, data.renderer, cut), cut, _EVERYTHING, stop, seed, "training set")
        for cut in cuts or recipe.capture.cuts or [recipe.cut]
    ]
    if data.splits.validation is not None:
        sources.append(Examples(data.splits.validation, Full(), _EVERYTHING, stop, seed, "validation set"))
    sequences = longest_sequences(sources)
    plan = plan_capture(sequences, recipe.capture, seed)
    dtype = torch.bfloat16 if uses_bf16(recipe.training) else torch.float32
    return Capture(recipe, recipe.teacher, data.renderer, sequences, plan, dtype)


def run_capture(job: Capture, say: Callable[[str], None]) -> Manifest:
    """Fill the store of a recipe, or what of it is missing.

    Raises:
        TargetsError: Another process captures into it, or it holds another capture.
        CacheError: It cannot be written.
    """
    state, directory = process_state(), job.directory
    ranks = Ranks(state.process_index, state.num_processes, state.wait_for_everyone)
    say("loading the teacher")
    teacher = None if job.recipe.capture.engine == "vllm" else load_teacher(job)
    manifest, head = _describe(job, teacher)
    if ranks.rank:
        ranks.wait()
        return capture(directory, manifest, job.plan, job.sequences, _engine(job, teacher), say, ranks)
    if teacher is not None and not (directory / MANIFEST_FILE).exists():
        say("measuring the codec")
        found = estimate_capture(job, teacher, KL_SAMPLE, (job.recipe.capture.codec,)).codecs[0]
        check_space(directory, found.num_bytes)
        manifest = manifest.model_copy(update={"kl_lost": found.kl_lost})
    with claimed(directory, manifest) as manifest:
        if manifest.head is not None and not _is_there(directory / HEAD_FILE, manifest.head):
            write_atomically(directory / HEAD_FILE, head)
        ranks.wait()
        return capture(directory, manifest, job.plan, job.sequences, _engine(job, teacher), say, ranks)


def estimate_capture(
    job: Capture, teacher: PreTrainedModel, sample_positions: int, codecs: Sequence[Codec] = COMMON_CODECS
) -> Estimate:
    """What codecs take and lose on a sample; KL is against the recipe's student at its start."""
    student = freeze(load_model(job.recipe.student, job.dtype), process_device())
    settings, seed = job.recipe.capture, job.recipe.seed
    num_tokens = _num_tokens(job, head_of(teacher).weight.shape[0])
    return estimate(teacher, student, job.sequences, settings, codecs, num_tokens, sample_positions, seed)


def load_teacher(job: Capture) -> PreTrainedModel:
    """The frozen teacher on its device, checked against the data's vocabulary and for what a prefix needs.

    Raises:
        ModelError: It does not fit.
    """
    teacher = freeze(load_model(job.teacher, job.dtype), process_device())
    name = name_of(job.teacher)
    own = load_tokenizer(job.teacher.path, job.teacher.revision) if isinstance(job.teacher, Pretrained) else None
    check_vocabularies(job.renderer.tokenizer, {"teacher": own}, {"teacher": head_of(teacher).weight.shape[0]})
    check_causal(teacher, max(job.plan.lengths), name)
    return teacher


def _describe(job: Capture, teacher: PreTrainedModel | None) -> tuple[Manifest, bytes]:
    """The manifest of a capture, and the content of the head's file."""
    settings, content, entry = job.recipe.capture, b"", None
    if teacher is None:
        config = AutoConfig.from_pretrained(_pretrained(job).path, revision=_pretrained(job).revision).get_text_config()
        rows, width = config.vocab_size, config.hidden_size
    else:
        rows, width = head_of(teacher).weight.shape
        if isinstance(settings.codec, Hidden):
            weight, transform = head_of(teacher).weight, transform_of(teacher)
            targets = DenseTargets(weight.new_empty(0, width), weight, transform.scale, transform.cap)
            content, entry = head_file(targets, _num_tokens(job, rows))
    seed = job.recipe.seed
    manifest = Manifest(
        teacher=name_of(job.teacher),
        teacher_revision=job.teacher.revision if isinstance(job.teacher, Pretrained) else None,
        weights_hash=weights_id(job.teacher),
        tokenizer_hash=job.renderer.tokenizer_hash,
        template_hash=job.renderer.template_hash,
        engine=settings.engine,
        dtype=str(job.dtype).removeprefix("torch."),
        codec=settings.codec,
        hidden_dtype=str(hidden_dtype(settings, job.dtype)).removeprefix("torch.") if entry else None,
        temperatures=sorted(set(settings.temperatures)),
        num_tokens=_num_tokens(job, rows),
        hidden_size=width,
        head=entry,
        plan_hash=job.plan.fingerprint,
        num_sequences=len(job.sequences),
        num_positions=sum(n - 1 for n in job.plan.lengths),
        versions=environment(seed),
    )
    return manifest, content


def _engine(job: Capture, teacher: PreTrainedModel | None) -> Engine:
    settings = job.recipe.capture
    if teacher is not None:
        return TransformersEngine(teacher, settings, _num_tokens(job, head_of(teacher).weight.shape[0]))
    assert isinstance(settings.codec, TopK), "the settings refuse others"
    return VllmEngine(_pretrained(job), settings.codec, max(job.plan.lengths))


def _num_tokens(job: Capture, head_rows: int) -> int:
    return head_rows if job.recipe.capture.vocabulary == "head" else len(job.renderer.tokenizer)


def _pretrained(job: Capture) -> Pretrained:
    if not isinstance(job.teacher, Pretrained):
        raise ModelError("capture.engine: vllm loads weights from a directory or the Hub; the teacher has none")
    return job.teacher


def _is_there(path: Path, head: HeadEntry) -> bool:
    return path.exists() and file_hash(path) == head.sha256
