"""Running a capture: teacher, codec, manifest, store."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from leadspan.costs.flops import forward_attention, forward_body, forward_head
from leadspan.environment import environment
from leadspan.errors import ModelError
from leadspan.files import write_atomically
from leadspan.models.config import Pretrained
from leadspan.models.heads import head_of, transform_of
from leadspan.models.identity import weights_id
from leadspan.models.loading import check_vocabularies, load_model, load_tokenizer, name_of
from leadspan.models.shapes import shape_from
from leadspan.study.storing.job import Capture
from leadspan.teacher.capture import Engine, Ranks, capture, check_space
from leadspan.teacher.claim import claimed, foreign_files, set_aside_damaged
from leadspan.teacher.config import Codec, Hidden, TopK
from leadspan.teacher.engine import TransformersEngine, check_causal, head_file, hidden_dtype
from leadspan.teacher.estimate import COMMON_CODECS, Estimate, estimate
from leadspan.teacher.live import freeze
from leadspan.teacher.manifest import HEAD_FILE, MANIFEST_FILE, HeadEntry, Manifest, file_hash
from leadspan.teacher.targets import DenseTargets
from leadspan.teacher.vllm import VllmEngine
from leadspan.training.process import process_device, process_state

KL_SAMPLE = 256


def run_capture(job: Capture, say: Callable[[str], None]) -> Manifest:
    """Fill the store of a recipe, or what of it is missing.

    Raises:
        TargetsError: Another process captures into it, or it holds another capture.
        CacheError: It cannot be written.
    """
    started = time.perf_counter()
    state, directory = process_state(), job.directory
    ranks = Ranks(state.process_index, state.num_processes, state.wait_for_everyone)
    say("loading the teacher")
    teacher = None if job.recipe.capture.engine == "vllm" else load_teacher(job)
    manifest, head = _describe(job, teacher)
    if ranks.rank:
        ranks.wait()
        return capture(directory, manifest, job.plan, job.sequences, _engine(job, teacher), say, ranks, started)
    if teacher is not None and not (directory / MANIFEST_FILE).exists():
        say("measuring the codec")
        found = estimate_capture(job, teacher, KL_SAMPLE, (job.recipe.capture.codec,)).codecs[0]
        check_space(directory, found.num_bytes)
        manifest = manifest.model_copy(update={"kl_lost": found.kl_lost})
    with claimed(directory, manifest) as manifest:
        if manifest.head is not None and not _is_there(directory / HEAD_FILE, manifest.head):
            write_atomically(directory / HEAD_FILE, head)
        for path in foreign_files(directory):
            say(f"{path}: no shard, left alone")
        for path in set_aside_damaged(directory):
            say(f"{path}: damaged, set aside and made anew")
        ranks.wait()
        return capture(directory, manifest, job.plan, job.sequences, _engine(job, teacher), say, ranks, started)


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
        flops=_flops(job),
        versions=environment(seed),
    )
    return manifest, content


def _flops(job: Capture) -> int | None:
    """Operations of the forward pass over all sequences; the head only where logits are asked for."""
    try:
        shape = shape_from(job.teacher)
    except ModelError:
        return None
    with_head = not isinstance(job.recipe.capture.codec, Hidden)
    return sum(
        forward_body(shape, n) + forward_attention(shape, n) + with_head * forward_head(shape, n - 1)
        for n in job.plan.lengths
    )


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
