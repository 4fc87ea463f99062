"""Running a capture: load the teacher, describe the store in its manifest, fill the store.

A `CaptureJob` holds plain settings and the sequences; it knows nothing of the recipe or study that composes it.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from leadspan.costs.flops import forward_attention, forward_body, forward_head
from leadspan.data.sections import Renderer
from leadspan.errors import CacheError, ModelError
from leadspan.files import file_hash, free_bytes, write_atomically
from leadspan.models.heads import head_shape, head_weight, transform_of
from leadspan.models.loading import load_config, load_model, name_of, weights_id
from leadspan.models.reading import check_vocabulary, load_own_tokenizer
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.models.shapes import shape_from
from leadspan.processes import environment
from leadspan.status import report_status
from leadspan.teacher.capture_plan import COMMON_CODECS, CapturePlan, Estimate, Sequences, estimate
from leadspan.teacher.engine import ServedEngine, TransformersEngine, VllmEngine, hidden_dtype
from leadspan.teacher.fill import Engine, Ranks, claimed, fill_store, set_aside_damaged
from leadspan.teacher.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    HeadEntry,
    Manifest,
    checked_for_capture,
)
from leadspan.teacher.settings import AnyTeacher, CaptureSettings, Codec, Hidden, Served, TopK
from leadspan.teacher.shards import finished_shards
from leadspan.teacher.targets import freeze

KL_SAMPLE = 256
"""Positions on which the codec of a store is measured before its capture: it takes seconds, for one manifest field."""


@dataclass(frozen=True)
class CaptureJob:
    """Everything that a capture needs.

    Attributes:
        settings: What is stored, and how.
        teacher: Where the teacher comes from.
        student: Where the student's starting weights come from; a codec's loss is measured against it.
        renderer: Tokenizer and template of the data.
        sequences: What the teacher runs over.
        plan: Its packs and shards.
        dtype: Type the teacher computes in.
        device: Device of this process.
        ranks: This process as one of several.
        seed: Seed of the measured sample.
        directory: The store; None for a job that is only estimated.
        undrawn: The most positions of each rollout that is to be drawn first; empty for a job that runs.
    """

    settings: CaptureSettings
    teacher: AnyTeacher
    student: ModelSettings
    renderer: Renderer
    sequences: Sequences
    plan: CapturePlan
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks
    seed: int
    directory: Path | None
    undrawn: Sequence[int] = ()


def run_capture(job: CaptureJob) -> Manifest:
    """Fill the store of a job, or the missing part of it.

    Raises:
        SettingsError: The job names no store.
        TargetsError: Another process captures into it, or it holds another capture.
        CacheError: It cannot be written, or the disk has less free space than it will take.
    """
    started, directory, ranks = time.perf_counter(), checked_for_capture(job.directory), job.ranks
    report_status("loading the teacher")
    teacher = load_teacher(job) if job.settings.engine == "transformers" else None
    manifest, head = _describe(job, teacher)
    # A new store only: one that is resumed has its measurement in the manifest.
    if ranks.rank == 0 and teacher is not None and not (directory / MANIFEST_FILE).exists():
        report_status("measuring the codec")
        measured = estimate_capture(job, teacher, KL_SAMPLE, (job.settings.codec,)).codecs[0]
        if (free := free_bytes(directory)) < measured.num_bytes:
            raise CacheError(
                f"{directory}: the store takes about {measured.num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
                "free space, choose a smaller capture.codec, or another capture.path"
            )
        manifest = manifest.model_copy(update={"kl_lost": measured.kl_lost})
    with contextlib.ExitStack() as claim:
        if ranks.rank == 0:
            manifest = claim.enter_context(claimed(directory, manifest))
            head_path = directory / HEAD_FILE
            # Gigabytes for a large vocabulary, so a head that is there and whole is not written again.
            if manifest.head is not None and not (head_path.exists() and file_hash(head_path) == manifest.head.sha256):
                write_atomically(head_path, head)
            for path in sorted({*(directory / SHARDS_DIR).iterdir()} - {*finished_shards(directory).values()}):
                report_status(f"{path}: not a shard, ignored")
            for path in (directory / SHARDS_DIR / shard.name for shard in manifest.shards):
                if not path.exists():
                    report_status(f"{path}: missing, captured again")
            for path in set_aside_damaged(directory):
                report_status(f"{path}: damaged, moved aside and captured again")
        ranks.wait()  # until the first rank has claimed the store and set damaged shards aside
        engine: Engine
        if teacher is not None:
            engine = TransformersEngine(teacher, job.settings, manifest.num_tokens)
        else:
            codec, longest = job.settings.codec, max(job.plan.lengths)
            assert isinstance(codec, TopK), "the settings refuse others"
            if isinstance(job.teacher, Served):
                engine = ServedEngine(job.teacher, codec, manifest.num_tokens, job.renderer, longest)
            else:
                assert isinstance(job.teacher, Pretrained), "checked for the manifest"
                engine = VllmEngine(job.teacher, codec, longest, job.dtype)
        return fill_store(directory, manifest, job.plan, job.sequences, engine, ranks, started)


def estimate_capture(
    job: CaptureJob, teacher: PreTrainedModel, sample_positions: int, codecs: Sequence[Codec] = COMMON_CODECS
) -> Estimate:
    """Size and loss of codecs on a sample; the KL is against the recipe's student before training."""
    student = freeze(load_model(job.student, job.dtype), job.device)
    num_tokens = head_shape(teacher)[0] if job.settings.vocabulary == "head" else job.renderer.num_ids
    engine = TransformersEngine(teacher, job.settings, num_tokens)
    return estimate(engine, student, job.sequences, codecs, sample_positions, job.seed)


def load_teacher(job: CaptureJob) -> PreTrainedModel:
    """The frozen teacher on its device, checked against the data's vocabulary and for outputs that a prefix shares.

    Raises:
        ModelError: It does not fit the data or runs on a server; or its rotary frequencies change with the length of
            the whole sequence, and a sequence is long enough for that.
    """
    if isinstance(job.teacher, Served):
        raise ModelError(
            f"teacher {job.teacher.identity}: --dry-run measures codecs on whole distributions, and a server returns "
            "none; capture without it"
        )
    teacher = freeze(load_model(job.teacher, job.dtype, is_frozen=True), job.device)
    check_vocabulary(job.renderer.tokenizer, "teacher", load_own_tokenizer(job.teacher), head_shape(teacher)[0])
    longest, config = max(job.plan.lengths), teacher.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):  # or by layer type
        # These types choose frequencies by the length of the whole sequence, so a prefix of the outputs is not the
        # output of the prefix.
        if rope.get("rope_type") not in ("dynamic", "longrope"):
            continue
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest > original:
            raise ModelError(
                f"teacher {name_of(job.teacher)}: its {rope['rope_type']} position embedding changes with sequences "
                f"longer than {original} tokens (here up to {longest}), so the outputs of a prefix are not the prefix "
                f"of the outputs; set data.max_tokens: {original}, or train with targets: {{kind: live}}"
            )
    return teacher


def _describe(job: CaptureJob, teacher: PreTrainedModel | None) -> tuple[Manifest, bytes]:
    """The manifest of a capture, and the content of the head's file."""
    settings, content, entry, flops = job.settings, b"", None, None
    dtype = str(job.dtype).removeprefix("torch.")
    if isinstance(job.teacher, Served):
        name = identity = job.teacher.identity
        # A server does not report its head: log-probabilities are read for the rows of the student's.
        rows, width, dtype = shape_from(job.student).vocab_size, 0, "that of the server"
    else:
        name, identity = name_of(job.teacher), weights_id(job.teacher)
        if teacher is not None:
            rows, width = head_shape(teacher)
        elif not isinstance(job.teacher, Pretrained):
            raise ModelError("capture.engine: vllm loads weights from a directory or the Hub; the teacher has none")
        elif job.teacher.gguf_file is not None or job.teacher.quantization is not None:
            raise ModelError(
                "capture.engine: vllm supports neither gguf_file nor quantization here; set capture.engine=transformers"
            )
        else:
            config = load_config(job.teacher).get_text_config()
            rows, width = config.vocab_size, config.hidden_size
        with contextlib.suppress(ModelError):  # a shape that cannot be read is no reason not to capture
            shape, lengths = shape_from(job.teacher), job.plan.lengths
            flops = sum(forward_body(shape, n) + forward_attention(shape, n) for n in lengths)
            # Hidden states are stored before the head, so nothing is projected.
            if not isinstance(settings.codec, Hidden):
                flops += sum(forward_head(shape, n - 1) for n in lengths)
    num_tokens = rows if settings.vocabulary == "head" else job.renderer.num_ids
    if teacher is not None and isinstance(settings.codec, Hidden):
        # The first rows only, as in the distribution: what follows them is padding of the vocabulary.
        head, transform = head_weight(teacher)[:num_tokens], transform_of(teacher)
        content = save({"weight": head.detach().cpu().contiguous()})
        digest = hashlib.sha256(content).hexdigest()
        entry = HeadEntry(sha256=digest, scale=transform.scale, softcap=transform.cap)
    manifest = Manifest(
        teacher=name,
        teacher_revision=job.teacher.revision if isinstance(job.teacher, Pretrained) else None,
        weights_hash=identity,
        tokenizer_hash=job.renderer.tokenizer_hash,
        template_hash=job.renderer.template_hash,
        engine=settings.engine,
        dtype=dtype,
        codec=settings.codec,
        hidden_dtype=str(hidden_dtype(settings.codec, job.dtype)).removeprefix("torch.") if entry else None,
        temperatures=sorted(set(settings.temperatures)),
        num_tokens=num_tokens,
        hidden_size=width,
        head=entry,
        plan_hash=job.plan.content_hash,
        num_sequences=len(job.sequences),
        num_positions=sum(n - 1 for n in job.plan.lengths),
        flops=flops,
        versions=environment(job.seed),
    )
    return manifest, content
