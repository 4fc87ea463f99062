import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from leadspan.data.examples import Examples
from leadspan.data.packing import pack
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Lead, Middle, Mix, Policy, RandomWindow, Tail
from leadspan.errors import CacheError, TargetsError
from leadspan.inputs import prepare_data
from leadspan.losses.chunked import chunked_loss
from leadspan.losses.settings import LossSettings, ReverseKl, check_loss
from leadspan.models.loading import load_model
from leadspan.pipeline.run import prepare_capture
from leadspan.recipe import Recipe
from leadspan.stages import checked_teacher
from leadspan.teacher.capture import run_capture
from leadspan.teacher.fill import merge_stores
from leadspan.teacher.manifest import read_manifest, write_manifest
from leadspan.teacher.store import TargetStore
from leadspan.teacher.targets import DenseTargets, SparseTargets, freeze, live_targets, teacher_logits
from stores import captured, copy_of, stored


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TargetStore]:
    return captured(tmp_path_factory.mktemp("full"), cut={"kind": "full"})


def under(recipe: Recipe, policy: Policy, supervision: Supervision | None = None) -> Examples:
    data = prepare_data(recipe)
    stop = data.renderer.stop_token_id
    return Examples(data.splits.train, policy, supervision or Supervision(), stop, recipe.seed, "training set")


def logits_of(
    recipe: Recipe, store: TargetStore, examples: Examples, count: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of some examples, live and stored."""
    assert recipe.teacher is not None
    teacher = freeze(load_model(recipe.teacher, torch.float32))
    some = [examples[i] for i in range(count)]
    live = live_targets(teacher, pack(some))
    read = store.targets(store.collate(some), store.load_head())
    assert isinstance(read, DenseTargets)
    return teacher_logits(live, slice(None)), teacher_logits(read, slice(None))


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("prompt", [0, 1], ids=["cot and answer", "everything"])
def test_one_capture_serves_every_smaller_lead_cut_and_supervision(full, p: float, prompt: int) -> None:
    recipe, store = full
    live, read = logits_of(recipe, store, under(recipe, Lead(p=p), Supervision(prompt=prompt)))
    torch.testing.assert_close(read, live, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_appended_end_of_turn_and_a_mix_are_served(full) -> None:
    recipe, store = full
    for policy in (Lead(p=0.4, stop="append_eos"), Mix(policy=Lead(p=0.5), whole_share=0.5)):
        live, read = logits_of(recipe, store, under(recipe, policy))
        torch.testing.assert_close(read, live, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "policy", [Tail(p=0.5), Tail(p=0.5, keep_prompt=False), Middle(p=0.6), RandomWindow(p=0.6)], ids=lambda p: p.label
)
def test_cuts_that_change_the_context_are_refused_with_both_hashes(full, policy: Policy) -> None:
    recipe, store = full
    examples = under(recipe, policy)
    with pytest.raises(TargetsError, match=r"example [0-9a-f]{32}.*hash [0-9a-f]{32}.*hash [0-9a-f]{32}.*at token \d+"):
        store.find(examples[0])


@pytest.mark.slow
def test_a_cut_that_changes_the_context_can_be_captured_beside_the_others(tmp_path: Path) -> None:
    cuts = [{"kind": "lead", "p": p} for p in (0.25, 0.5, 0.75)] + [{"kind": "tail", "p": 0.5}]
    recipe, store = captured(tmp_path, cuts=cuts)
    data = prepare_data(recipe)
    assert data.splits.validation is not None
    assert store.manifest.num_sequences == 2 * len(data.splits.train) + len(data.splits.validation)
    for policy in (Lead(p=0.75), Lead(p=0.3), Tail(p=0.5)):
        live, read = logits_of(recipe, store, under(recipe, policy))
        torch.testing.assert_close(read, live, rtol=1e-5, atol=1e-5)
    with pytest.raises(TargetsError, match=r"is shorter than what is needed; capture with this cut in capture\.cuts"):
        store.find(under(recipe, Full())[0])


def test_a_trace_that_was_not_captured_is_refused(full, tmp_path: Path) -> None:
    _, store = full
    other = toy_examples_of_other_traces(tmp_path)
    with pytest.raises(TargetsError, match="no sequence of this trace was captured"):
        store.find(other[0])


def toy_examples_of_other_traces(directory: Path) -> Examples:
    from toys import toy_examples

    return toy_examples(directory, number=60)[0].__class__(
        toy_examples(directory, number=60)[0].rows.with_format(None).select([59]), Full(), Supervision(), 0, 0, "others"
    )


def test_reading_copies_nothing_and_any_process_can(full) -> None:
    recipe, store = full
    example = under(recipe, Lead(p=0.5))[3]
    again = pickle.loads(pickle.dumps(store))
    positions = np.arange(2, 9)
    one, two = store.read(example, positions), again.read(example, positions)
    np.testing.assert_array_equal(one["hidden"], two["hidden"])
    assert not one["hidden"].flags.owndata and not one["hidden"].flags.writeable
    scattered = store.read(example, np.array([2, 5, 8]))["hidden"].reshape(3, -1)
    np.testing.assert_array_equal(scattered, one["hidden"].reshape(7, -1)[::3])


@pytest.mark.slow
def test_anyone_with_pyarrow_can_read_it(tmp_path: Path) -> None:
    """The recipe of docs/store.md, without a line of leadspan."""
    _, store = captured(tmp_path, codec={"kind": "top_k", "k": 7})
    position = 0
    for path in sorted((store.directory / "shards").glob("*.arrow")):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for row in table.to_pylist():
            entries = np.array(row["entries"], dtype=np.uint32).reshape(-1, 7)
            assert len(entries) == len(row["input_ids"]) - 1 == len(row["outside"]) == len(row["section"])
            probability = np.exp(-128 * ((entries & 16383) / 16383) ** 2).sum(1)
            np.testing.assert_allclose(probability + row["outside"], 1, atol=5e-3)
            assert ((entries >> 14) < 100).all()
            position += len(entries)
    assert position == store.manifest.num_positions


def bucketed_kl(found: SparseTargets, log_q: np.ndarray) -> np.ndarray:
    """Oracle: `sum_K p log(p / q) + P log(P / Q)` in float64, one position at a time."""
    values = []
    for row in range(len(log_q)):
        log_p = found.log_probs[row].double().numpy()
        used = np.isfinite(log_p)
        ids, p = found.token_ids[row].numpy()[used], np.exp(log_p[used])
        kept = np.zeros(log_q.shape[1], dtype=bool)
        kept[ids] = True
        outside, rest = 1 - p.sum(), np.exp(log_q[row][~kept]).sum()
        tail = outside * np.log(outside / rest) if outside > 1e-9 and rest else 0.0
        values.append((p * (log_p[used] - log_q[row][ids])).sum() + tail)
    return np.array(values)


@pytest.mark.slow
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence_and_fewer_are_a_lower_bound(tmp_path: Path) -> None:
    means = {}
    for k in (85, 20, 5):
        codec = {"kind": "top_k", "k": k, "precision": "float32"}
        recipe, store = captured(tmp_path / str(k), codec=codec, cut={"kind": "full"})
        examples = [under(recipe, Full())[i] for i in range(4)]
        assert recipe.teacher is not None
        teacher, student = (freeze(load_model(m, torch.float32)) for m in (recipe.teacher, recipe.student))
        log_p, log_q = (
            torch.log_softmax(teacher_logits(live_targets(m, pack(examples)), slice(None)).double(), -1).numpy()
            for m in (teacher, student)
        )
        full_kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
        found = store.targets(store.collate(examples), None)
        assert isinstance(found, SparseTargets) and store.manifest.num_tokens == 85
        kl = bucketed_kl(found, log_q)
        if k == 85:
            np.testing.assert_allclose(kl, full_kl, atol=2e-6)
        assert (kl <= full_kl + 2e-6).all()
        means[k] = kl.mean()
    assert means[85] > means[20] > means[5] > 0


@pytest.mark.slow
def test_kept_temperatures_are_exact_and_others_are_refused(tmp_path: Path) -> None:
    codec = {"kind": "top_k", "k": 10, "precision": "float32"}
    recipe, store = captured(tmp_path, codec=codec, temperatures=[1.0, 2.0])
    examples = [under(recipe, Lead(p=0.7))[i] for i in range(3)]
    found = store.targets(store.collate(examples), None)
    assert isinstance(found, SparseTargets) and recipe.teacher is not None
    teacher = freeze(load_model(recipe.teacher, torch.float32))
    logits = teacher_logits(live_targets(teacher, pack(examples)), slice(None)).double()
    expected = torch.log_softmax(logits / 2, -1).gather(1, found.token_ids)
    torch.testing.assert_close(found.tempered(2.0).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TargetsError, match=r"loss\.temperature is 3"):
        found.tempered(3.0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["packed", "float32"])
@pytest.mark.parametrize(
    "kind", [{"kind": "top_k", "k": 3}, {"kind": "top_p", "p": 0.4}], ids=lambda codec: codec["kind"]
)
def test_the_tail_is_kept_at_every_temperature(tmp_path: Path, kind: dict, precision: str) -> None:
    """Reverse KL asks for the logarithm of the tail: against the teacher's own distribution as k + 1 outcomes."""
    codec = kind | {"precision": precision}
    recipe, store = captured(tmp_path, codec=codec, temperatures=[1.0, 0.5, 2.0])
    examples = [under(recipe, Lead(p=0.7))[i] for i in range(3)]
    found = store.targets(store.collate(examples), None)
    assert isinstance(found, SparseTargets) and recipe.teacher is not None
    teacher = freeze(load_model(recipe.teacher, torch.float32))
    logits = teacher_logits(live_targets(teacher, pack(examples)), slice(None)).double()
    for temperature in (0.5, 1.0, 2.0):
        p = torch.softmax(logits / temperature, -1)
        used = found.log_probs > -torch.inf
        p.scatter_add_(1, found.token_ids, torch.where(used, -p.gather(1, found.token_ids), 0.0))
        torch.testing.assert_close(found.tail_mass[temperature].double(), p.sum(1), rtol=2e-4, atol=1e-7)
        inside = found.tempered(temperature).double().exp().sum(1)
        torch.testing.assert_close(inside + found.tail_mass[temperature], torch.ones_like(inside), rtol=0, atol=1e-6)
        loss = LossSettings(kl_weight=1, divergence=ReverseKl(), temperature=temperature)
        check_loss(loss, None, store.manifest.kept_targets, "store")
        head = torch.eye(85, requires_grad=True)
        value, _ = chunked_loss(torch.zeros(len(inside), 85), head, found, pack(examples)["labels"],
                                torch.zeros(len(inside)), torch.ones(len(inside)), loss)  # fmt: skip
        assert torch.isfinite(value) and value > 0
    only_one = replace(found, tail_mass={1.0: found.tail_mass[1.0]})
    with pytest.raises(TargetsError, match="do not keep that mass at this temperature"):
        chunked_loss(torch.zeros(9, 85), torch.eye(85), only_one.select(torch.arange(len(inside)) < 9),
                     torch.zeros(9, dtype=torch.long), torch.zeros(9), torch.ones(9), loss)  # fmt: skip


@pytest.mark.slow
def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    _, store = captured(tmp_path, codec={"kind": "top_k", "k": 5})
    manifest = store.directory / "manifest.json"
    for version in (1, 3):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": version}))
        with pytest.raises(CacheError, match=f"format {version}, this version reads 2; capture again"):
            TargetStore(store.directory)


@pytest.mark.slow
def test_a_manifest_that_cannot_be_read_is_not_called_missing(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match=r"manifest\.json: not found; give the directory of a store"):
        TargetStore(tmp_path)
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(TargetsError, match=r"manifest\.json: cannot be read \(not a regular file\)"):
        TargetStore(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CacheError, match=r"manifest\.json: damaged \(no JSON object"):
        TargetStore(tmp_path)


def test_a_loss_that_a_store_does_not_define_is_refused_from_its_manifest_alone(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path, codec={"kind": "top_k", "k": 5}, temperatures=[1.0, 2.0])
    for loss, message in (
        ({"temperature": 3.0}, r"store: loss\.temperature is 3, and only the normalisers at 1, 2 are kept"),
        ({"divergence": {"kind": "adaptive_kl"}}, r"store: loss\.divergence is adaptive_kl, which is not defined"),
    ):
        changed = Recipe.model_validate(stored(recipe, tmp_path / "run").model_dump() | {"loss": loss})
        with pytest.raises(TargetsError, match=message):
            checked_teacher(changed)
    allowed = {"divergence": {"kind": "reverse_kl"}, "temperature": 2.0}
    changed = Recipe.model_validate(stored(recipe, tmp_path / "run").model_dump() | {"loss": allowed})
    assert checked_teacher(changed).kept_targets == recipe.capture.kept_targets


def test_a_missing_or_short_shard_and_a_missing_head_are_refused(full, tmp_path: Path) -> None:
    _, store = full
    gone = copy_of(store, tmp_path / "gone")
    shard = sorted((gone / "shards").iterdir())[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CacheError, match=rf"{shard.name}: missing"):
        TargetStore(gone)
    shard.write_bytes(content[:-100])
    with pytest.raises(CacheError, match=rf"{shard.name}: damaged \({len(content) - 100} bytes instead of"):
        TargetStore(gone)
    shard.write_bytes(content)
    (gone / "head.safetensors").unlink()
    with pytest.raises(CacheError, match=r"head\.safetensors: cannot be read"):
        TargetStore(gone).load_head()


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_found(full, tmp_path: Path) -> None:
    """`verify` finds every flip; reading finds every one in a row that is read, or the row is as it was."""
    recipe, store = full
    examples = under(recipe, Full())
    whole = [store.collate([examples[i]])["hidden"].clone() for i in range(len(examples))]
    broken = copy_of(store, tmp_path / "flipped")
    shard = sorted((broken / "shards").iterdir())[0]
    content = shard.read_bytes()
    places = [*np.random.default_rng(0).integers(0, 8 * len(content), 60).tolist(), 0, 8 * len(content) - 1]
    noticed = 0
    for bit in places:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(bytes(changed))
        with pytest.raises(CacheError, match=shard.name):
            TargetStore(broken).verify()
        try:
            opened = TargetStore(broken)
            for i, expected in enumerate(whole):
                assert torch.equal(opened.collate([examples[i]])["hidden"], expected)
        except (CacheError, TargetsError):
            noticed += 1
    assert noticed > 40


@pytest.mark.parametrize("is_short", [False, True], ids=["flipped", "short"])
@pytest.mark.parametrize("name", ["manifest.json", "head.safetensors"])
def test_a_damaged_manifest_or_head_is_found(full, tmp_path: Path, name: str, is_short: bool) -> None:
    _, store = full
    broken = copy_of(store, tmp_path / "store")
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / name).write_bytes(bytes(content[:-5] if is_short else content))
    with pytest.raises(CacheError, match=rf"{name}.*(damaged|cannot be read)"):
        TargetStore(broken).verify()


@pytest.mark.slow
def test_parts_of_a_store_are_read_as_one_and_must_belong_together(full, tmp_path: Path) -> None:
    recipe, store = full
    changes = {"cut": {"kind": "tail", "p": 0.5}, "capture": recipe.capture.model_copy(update={"path": tmp_path / "b"})}
    run_capture(prepare_capture(Recipe.model_validate(recipe.model_dump() | changes)))
    tail = TargetStore(tmp_path / "b")
    (tmp_path / "both").mkdir()
    for part in (store, tail):
        shutil.copytree(
            part.directory, tmp_path / "both" / f"part {part.manifest.num_sequences} {part.manifest.plan_hash}"
        )
    both = TargetStore(tmp_path / "both")
    assert both.verify() == both.manifest.num_sequences == store.manifest.num_sequences + tail.manifest.num_sequences
    assert both.manifest.num_positions == store.manifest.num_positions + tail.manifest.num_positions
    for policy in (Lead(p=0.6), Tail(p=0.5)):
        live, read = logits_of(recipe, both, under(recipe, policy))
        torch.testing.assert_close(read, live, rtol=1e-5, atol=1e-5)
    merged = merge_stores([both.directory], tmp_path / "merged")
    assert (
        merged.num_sequences == TargetStore(tmp_path / "merged").verify() < both.manifest.num_sequences
    )  # validation was in both
    _, other = captured(tmp_path / "other", codec={"kind": "top_k", "k": 4})
    shutil.copytree(other.directory, tmp_path / "both" / "z")
    with pytest.raises(TargetsError, match="z: codec is"):
        TargetStore(tmp_path / "both")


def test_a_join_keeps_both_of_two_traces_that_a_cut_makes_equal_and_the_mean_loss(tmp_path: Path) -> None:
    rows = [{"prompt": "add 1 to itself", "cot": f"way {i}", "answer": "it is 2."} for i in range(2)]
    (tmp_path / "pair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": {"path": str(tmp_path / "pair.jsonl")}, "validation": {"kind": "none"}}
    cut = {"kind": "lead_answer", "num_tokens": 3}
    recipe, store = captured(tmp_path, data=data | {"cache_dir": str(tmp_path / "cache")}, cut=cut)
    other = copy_of(store, tmp_path / "other")
    write_manifest(store.manifest.model_copy(update={"kl_lost": 0.25}), other)
    write_manifest(store.manifest.model_copy(update={"kl_lost": 0.05}), store.directory)
    assert merge_stores([store.directory, other], tmp_path / "joined").kl_lost == pytest.approx(0.15)
    first, second = under(recipe, recipe.cut)
    assert first.example_id != second.example_id and np.array_equal(first.input_ids, second.input_ids)
    joined = TargetStore(tmp_path / "joined")
    assert joined.manifest.num_sequences == store.manifest.num_sequences == 2
    for example in (first, second):
        joined.find(example)


def test_the_manifest_says_what_it_is(full) -> None:
    _, store = full
    found = read_manifest(store.directory)
    assert found == store.manifest and found.complete
    assert (found.num_tokens, found.hidden_size, found.hidden_dtype) == (85, 48, "float32")
    assert found.num_positions == sum(shard.num_positions for shard in found.shards)
    assert {"leadspan", "torch", "transformers"} <= found.versions.keys()
    with pytest.raises(TargetsError, match=r"manifest\.json: not found"):
        read_manifest(store.directory.parent)
