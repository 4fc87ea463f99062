import errno
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import hold_process
from benchmarks.hold_process import run_ranks

from leadspan.cli import main
from leadspan.costs.flops import head_only
from leadspan.costs.memory import BatchSize
from leadspan.errors import CacheError, ModelError, SettingsError, TargetsError
from leadspan.files import write_atomically
from leadspan.inputs import prepare_data
from leadspan.pipeline.run import prepare_capture, run
from leadspan.planning.prediction import cost_model_of
from leadspan.processes import fork_server
from leadspan.recipe import Recipe
from leadspan.settings import validate
from leadspan.status import StatusHandler
from leadspan.teacher.capture import run_capture
from leadspan.teacher.fill import merge_stores
from leadspan.teacher.manifest import write_manifest
from leadspan.teacher.settings import CaptureSettings, TopK
from leadspan.teacher.shards import ShardWriter
from leadspan.teacher.store import TargetStore
from recipes import metrics, toy_recipe, write_recipe
from stores import capture_recipe, captured, copy_of, stored
from toys import VOCAB, tiny


def capture_of(recipe: Recipe) -> TargetStore:
    run_capture(prepare_capture(recipe))
    assert recipe.capture.path is not None
    return TargetStore(recipe.capture.path)


def shards(store: Path) -> dict[str, int]:
    """Names, which hold the hashes, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (store / "shards").glob("*.arrow")}


def losses(directory: Path) -> list[float]:
    return [line[key] for line in metrics(directory) for key in ("loss", "eval_loss", "divergence/cot") if key in line]


def process_for(recipe: Recipe) -> BaseProcess:
    return fork_server(["leadspan.pipeline.run"]).Process(target=in_child, args=(recipe,))


def in_child(recipe: Recipe) -> None:
    torch.set_num_threads(1)
    capture_of(recipe)


@pytest.mark.slow
def test_a_hidden_store_gives_the_run_of_the_live_teacher(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path, steps=4)
    live, read = run(recipe), run(stored(recipe, tmp_path / "stored"))
    assert losses(tmp_path / "stored") == pytest.approx(losses(recipe.output), rel=1e-5)
    # the teacher's head computes logits either way, its body does not; planned as it is counted
    assert live.train is not None and read.train is not None and read.prediction is not None
    assert read.train.flops.teacher_head == live.train.flops.teacher_head > 0 == read.train.flops.teacher_body
    assert read.prediction.flops == read.train.flops and read.prediction.memory.teacher == 4 * 48 * 85
    of_teacher = ("teacher_body", "teacher_attention")
    assert read.train.flops == live.train.flops.model_copy(update=dict.fromkeys(of_teacher, 0))


@pytest.mark.slow
def test_a_plan_counts_the_head_of_a_hidden_store_before_it_is_captured(tmp_path: Path) -> None:
    recipe = stored(capture_recipe(tmp_path), tmp_path / "run")
    renderer = prepare_data(recipe).renderer
    head = cost_model_of(recipe, renderer).memory.teacher
    assert head == head_only(48, 85)
    captured(tmp_path)
    assert cost_model_of(recipe, renderer).memory.teacher == head
    sparse = recipe.model_copy(update={"capture": recipe.capture.model_copy(update={"codec": TopK()})})
    targets = recipe.targets.model_copy(update={"path": tmp_path / "later"})
    assert cost_model_of(sparse.model_copy(update={"targets": targets}), renderer).memory.teacher is None
    peak = replace(cost_model_of(recipe, renderer).memory, num_ranks=4, sharding="fsdp2").peak(BatchSize(100, 60))
    assert peak.teacher == 4 * 48 * 85  # whole on every rank


@pytest.mark.slow
def test_workers_read_the_store_and_no_teacher_is_named(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path, steps=4)
    run(recipe)
    alone = Recipe.model_validate(stored(recipe, tmp_path / "alone").model_dump() | {"teacher": None})
    result = run(alone.model_copy(update={"training": alone.training.model_copy(update={"num_workers": 2})}))
    assert losses(tmp_path / "alone") == pytest.approx(losses(recipe.output), rel=1e-5)
    assert result.train is not None and result.train.flops.teacher_body == 0


@pytest.mark.parametrize("temperature", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_top_k_of_the_whole_vocabulary_gives_the_run_of_the_live_teacher(tmp_path: Path, temperature: float) -> None:
    codec = {"kind": "top_k", "k": 85, "precision": "float32"}
    loss = {"kl_weight": 0.5, "temperature": temperature}
    recipe, _ = captured(tmp_path, steps=4, codec=codec, loss=loss, temperatures=[1.0, 2.0])
    run(recipe)
    run(stored(recipe, tmp_path / "stored"))
    assert losses(tmp_path / "stored") == pytest.approx(losses(recipe.output), rel=1e-5)
    other = Recipe.model_validate(stored(recipe, tmp_path / "other").model_dump() | {"loss": {"temperature": 3.0}})
    with pytest.raises(TargetsError, match=r"loss\.temperature is 3, .*capture\.temperatures: \[1\.0, 3\]"):
        run(other)


@pytest.mark.parametrize(
    ("temperatures", "fault"),
    [([2.0], "1.0 is missing"), ([1.0, 1.0], "only once"), ([1.0, 2.0, 2.0000001], "only once")],
)
def test_a_store_has_the_normalisers_of_each_temperature_once(temperatures: list[float], fault: str) -> None:
    with pytest.raises(SettingsError, match=rf"  temperatures \[.*\]: .*{fault}"):
        validate(CaptureSettings, {"temperatures": temperatures}, "capture")


@pytest.mark.slow
@pytest.mark.parametrize("codec", [{"kind": "top_k", "k": 20}, {"kind": "top_p", "p": 0.9}, {"kind": "sampled"}])
def test_every_codec_trains(tmp_path: Path, codec: dict) -> None:
    recipe, _ = captured(tmp_path, steps=6, codec=codec)
    result = run(stored(recipe, tmp_path / "stored"))
    assert result.train is not None and result.train.final_loss < result.train.first_loss


@pytest.mark.slow
def test_a_capture_goes_on_where_it_was_left_and_mends_what_is_gone(tmp_path: Path) -> None:
    recipe, store = captured(tmp_path)
    before = shards(store.directory)
    assert len(before) > 2
    capture_of(recipe)
    assert shards(store.directory) == before
    gone = sorted(before)[1]
    (store.directory / "shards" / gone).unlink()
    said: list[str] = []
    with StatusHandler(said.append):
        after = shards(capture_of(recipe).directory)
    assert f"{store.directory / 'shards' / gone}: missing, captured again" in said
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {gone}


def flip_a_bit(path: Path) -> bytes:
    """Change one bit in the middle of a file; its content before."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 4
    path.write_bytes(changed)
    return content


@pytest.mark.slow
def test_a_capture_over_a_damaged_shard_makes_it_anew(tmp_path: Path) -> None:
    recipe, store = captured(tmp_path)
    before = shards(store.directory)
    bad = sorted(store.directory.glob("shards/*.arrow"))[1]
    content = flip_a_bit(bad)
    foreign = [store.directory / "shards" / name for name in ("foo-bar.arrow", "00000-copy.arrow")]
    for path in foreign:
        path.touch()
    said: list[str] = []
    with StatusHandler(said.append):
        run_capture(prepare_capture(recipe))
    assert f"{bad}: damaged, moved aside and captured again" in said
    assert {f"{path}: not a shard, ignored" for path in foreign} < set(said)
    after = shards(store.directory)
    assert bad.read_bytes() == content and (store.directory / "damaged" / f"0-{bad.name}").exists()
    assert {name for name, time in after.items() if before.get(name) != time} == {bad.name, *(p.name for p in foreign)}
    assert TargetStore(store.directory).verify() == store.manifest.num_sequences


@pytest.mark.slow
def test_a_damaged_row_is_told_before_models_are_loaded(tmp_path: Path) -> None:
    recipe, store = captured(tmp_path)
    for path in store.directory.glob("shards/*.arrow"):
        flip_a_bit(path)
    said: list[str] = []
    with (
        StatusHandler(said.append),
        pytest.raises(CacheError, match=r"arrow: damaged \(.*it moves damaged shards aside"),
    ):
        run(stored(recipe, tmp_path / "run"))
    assert said[-1] == "looking up targets"


@pytest.mark.slow
def test_a_selection_by_what_the_teacher_said_reads_it_from_the_store(tmp_path: Path) -> None:
    recipe, store = captured(tmp_path, codec={"kind": "top_k", "k": 5})
    selection = {"token_selection": {"kind": "teacher_entropy", "share": 0.5}}
    values = stored(recipe, tmp_path / "run").model_dump() | {"teacher": None, "supervision": selection}
    result = run(Recipe.model_validate(values))
    assert result.train is not None and result.train.final_loss > 0
    # vLLM returns no entropy: its stores say so in their manifest
    of_vllm = store.manifest.model_copy(update={"engine": "vllm"})
    write_manifest(of_vllm, store.directory)
    said: list[str] = []
    with (
        StatusHandler(said.append),
        pytest.raises(TargetsError, match=r"store: .*kind is teacher_entropy, and vllm returns no entropy"),
    ):
        run(Recipe.model_validate(values | {"output": tmp_path / "other"}))
    assert said == []
    capture = {"capture": {"engine": "vllm", "codec": {"kind": "top_k", "k": 5}}, "supervision": selection}
    with pytest.raises(TargetsError, match=r"capture\.codec top_k 5: .*vllm returns no entropy"):
        prepare_capture(Recipe.model_validate(recipe.model_dump() | capture))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"teacher": tiny(hidden=48, seed=3).model_dump()}, "weights_hash is", id="teacher"),
        pytest.param({"codec": {"kind": "top_k", "k": 5}}, "codec is", id="codec"),
        pytest.param({"cut": {"kind": "lead", "p": 0.6}}, "holds other sequences", id="cut"),
        pytest.param(
            {"data": {"rendering": {"think_open": "<think>", "step_delimiter": "\n"}}}, "template_hash", id="t"
        ),
    ],
)
def test_a_store_is_not_added_to_by_another_capture(tmp_path: Path, changes: dict, message: str) -> None:
    recipe, _ = captured(tmp_path)
    if "data" in changes:
        changes = {"data": recipe.data.model_dump(mode="json") | changes["data"]}
    with pytest.raises(TargetsError, match=message):
        capture_of(capture_recipe(tmp_path, **changes))


@pytest.mark.slow
def test_a_store_of_another_teacher_tokenizer_or_template_is_not_trained_from(tmp_path: Path) -> None:
    recipe, store = captured(tmp_path)
    other = stored(recipe, tmp_path / "run").model_copy(update={"teacher": tiny(hidden=48, seed=9)})
    with pytest.raises(TargetsError, match=r"captured from random qwen3 \(seed 2\): weights_hash is .* expected"):
        run(other)
    from toys import TEMPLATE, character_tokenizer

    character_tokenizer(TEMPLATE.replace("<|im_start|>", "<|im_start|> ")).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(TargetsError, match="template_hash is"):
        run(stored(recipe, tmp_path / "run2"))
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["step"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(TargetsError, match="tokenizer_hash is"):
        run(stored(recipe, tmp_path / "run3"))
    assert store.verify() == store.manifest.num_sequences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "divergence", "message"),
    [
        ({"kind": "top_k", "k": 5}, "alpha_beta", "not defined with the tail as one outcome"),
        ({"kind": "sampled"}, "reverse_kl", "a sampled support estimates the forward KL only"),
    ],
)
def test_a_divergence_the_codec_does_not_define_is_refused_before_anything_is_loaded(
    tmp_path: Path, codec: dict, divergence: str, message: str
) -> None:
    recipe, _ = captured(tmp_path, codec=codec)
    changed = Recipe.model_validate(
        stored(recipe, tmp_path / "run").model_dump() | {"loss": {"divergence": {"kind": divergence}}}
    )
    said: list[str] = []
    with (
        StatusHandler(said.append),
        pytest.raises(TargetsError, match=f"store: loss.divergence is {divergence}.*{message}"),
    ):
        run(changed)
    assert said == []
    live = Recipe.model_validate(recipe.model_dump() | {"loss": {"divergence": {"kind": divergence}}})
    with pytest.raises(TargetsError, match=rf"capture\.codec {codec['kind']}.*: loss.divergence is {divergence}"):
        prepare_capture(live)


@pytest.mark.slow
def test_a_cut_the_store_cannot_serve_is_refused_before_training(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path)
    for number, cut in enumerate(({"kind": "tail", "p": 0.5}, {"kind": "lead", "p": 0.9})):
        changed = Recipe.model_validate(stored(recipe, tmp_path / f"run{number}").model_dump() | {"cut": cut})
        with pytest.raises(TargetsError, match=r"capture with this cut in capture\.cuts"):
            run(changed)


@pytest.mark.slow
def test_a_directory_that_is_no_store_and_a_missing_path_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = capture_recipe(tmp_path)
    assert recipe.capture.path is not None
    recipe.capture.path.mkdir()
    (recipe.capture.path / "notes.txt").write_text("mine")
    with pytest.raises(TargetsError, match="not empty and not a store"):
        capture_of(recipe)
    (recipe.capture.path / "notes.txt").unlink()
    unnamed = recipe.capture.path / ".manifest.json.4711.tmp"
    unnamed.write_text("{")  # of a capture that was killed before its manifest had its name
    assert capture_of(recipe).manifest.complete and not unnamed.exists()
    with pytest.raises(SettingsError, match=r"capture\.path: missing"):
        run_capture(prepare_capture(toy_recipe(tmp_path)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(CacheError, match=r"takes about .* GB, 5e-09 GB are free"):
        capture_of(capture_recipe(tmp_path, path=str(tmp_path / "not" / "there")))


def test_a_teacher_whose_positions_change_with_the_length_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    teacher = tiny(hidden=48, max_position_embeddings=64, rope_parameters=rope)
    with pytest.raises(ModelError, match=r"dynamic position embedding changes .* longer than 64"):
        captured(tmp_path, teacher=teacher.model_dump())


def test_a_teacher_that_states_no_longest_sequence_is_captured(tmp_path: Path) -> None:
    config = {"model_type": "bloom", "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    assert captured(tmp_path, teacher={"kind": "random_init", "config": config})[1].manifest.complete


def no_space(writer: ShardWriter) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_stores_of_one_teacher_merge_without_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, lead = captured(tmp_path)
    other = Recipe.model_validate(
        recipe.model_dump()
        | {"capture": recipe.capture.model_copy(update={"path": tmp_path / "full"}), "cut": {"kind": "full"}}
    )
    full = capture_of(other)
    write_atomically(tmp_path / "merged" / ".manifest.json.7.tmp", "")  # as a kill before the first rename leaves it
    with monkeypatch.context() as context, pytest.raises(OSError, match="No space left"):
        context.setattr(ShardWriter, "close", no_space)
        merge_stores([lead.directory, full.directory], tmp_path / "merged")
    merged = merge_stores([lead.directory, full.directory], tmp_path / "merged")
    with pytest.raises(TargetsError, match="holds a complete store"):
        merge_stores([lead.directory, full.directory], tmp_path / "merged")
    opened = TargetStore(tmp_path / "merged")
    # validation is captured whole in both, training cut in one and whole in the other
    assert opened.verify() == merged.num_sequences == lead.manifest.num_sequences + full.manifest.num_sequences - 8
    run(stored(recipe, tmp_path / "run", tmp_path / "merged"))
    codec = capture_recipe(tmp_path, path=str(tmp_path / "sparse"), codec={"kind": "top_k", "k": 4})
    with pytest.raises(TargetsError, match="codec is"):
        merge_stores([lead.directory, capture_of(codec).directory], tmp_path / "never")


@pytest.mark.slow
def test_two_processes_do_not_capture_into_one_store(tmp_path: Path) -> None:
    import fcntl

    recipe = capture_recipe(tmp_path)
    assert recipe.capture.path is not None
    recipe.capture.path.mkdir()
    with (recipe.capture.path / "capture.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(TargetsError, match=r"another process \(id 4711\) captures into it"):
            capture_of(recipe)
    assert capture_of(recipe).verify()


@pytest.mark.slow
def test_of_two_processes_at_one_store_the_second_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    many = {"positions_per_shard": 60, "tokens_per_batch": 140, "codec": {"kind": "sampled", "num_samples": 20}}
    recipe = capture_recipe(tmp_path, **many)
    first = process_for(recipe)
    first.start()
    while not list(tmp_path.glob("store/shards/*.arrow")):
        assert first.is_alive()
        time.sleep(0.001)
    os.kill(first.pid or 0, signal.SIGSTOP)  # it holds the store, however slow this process is
    before = shards(tmp_path / "store")
    with pytest.raises(TargetsError, match=rf"another process \(id {first.pid}\) captures into it"):
        capture_of(recipe)
    assert shards(tmp_path / "store") == before
    os.kill(first.pid or 0, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0 and TargetStore(tmp_path / "store").verify()
    assert before.items() < shards(tmp_path / "store").items()


@pytest.mark.slow
def test_kill_9_at_twenty_moments_loses_only_open_shards(tmp_path: Path) -> None:
    many = {"positions_per_shard": 60, "tokens_per_batch": 140, "codec": {"kind": "sampled", "num_samples": 20}}
    whole = capture_recipe(tmp_path, path=str(tmp_path / "whole"), **many)
    process = process_for(whole)
    process.start()
    process.join()
    expected = shards(tmp_path / "whole")
    assert process.exitcode == 0 and len(expected) > 20
    recipe = capture_recipe(tmp_path, path=str(tmp_path / "killed"), **many)
    draw = random.Random(0)
    killed = 0
    while killed < 20:
        before = shards(tmp_path / "killed") if (tmp_path / "killed" / "shards").exists() else {}
        process = process_for(recipe)
        process.start()
        wanted = len(before) + draw.randint(0, 5)
        while process.is_alive() and len(list((tmp_path / "killed").glob("shards/*.arrow"))) < wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
        after = shards(tmp_path / "killed") if (tmp_path / "killed" / "shards").exists() else {}
        assert before.items() <= after.items()  # what was whole is neither lost nor written again
        if len(after) == len(expected):  # finished: begin again, so that every kill meets a capture at work
            assert after.keys() == expected.keys()
            for name in draw.sample(sorted(after), len(after) - 3):
                (tmp_path / "killed" / "shards" / name).unlink()
    store = capture_of(recipe)
    assert store.verify() == store.manifest.num_sequences
    assert shards(store.directory).keys() == expected.keys()
    assert store.manifest.seconds > 0
    assert not list(store.directory.glob("**/.*.tmp"))


def capture_until_shard_2(recipe: Path) -> None:
    """In a process of its own, in which files can no longer grow from the third shard on."""
    begin = ShardWriter.__init__

    def late(self: ShardWriter, directory: Path, number: int, manifest: Any) -> None:
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        begin(self, directory, number, manifest)

    pytest.MonkeyPatch().setattr(ShardWriter, "__init__", late)
    raise SystemExit(main(["capture", str(recipe)]))


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_what_is_whole_is_kept(tmp_path: Path) -> None:
    recipe = capture_recipe(tmp_path, positions_per_shard=600)
    ended = hold_process.run(tmp_path, partial(capture_until_shard_2, write_recipe(recipe, tmp_path / "r.yaml")))
    assert ended.code == 2 and ended.is_clean, ended.said
    assert "cannot be written (File too large); 2 of" in ended.said
    assert recipe.capture.path is not None
    kept = shards(recipe.capture.path)
    assert len(kept) == 2 and not list(recipe.capture.path.glob("**/.*.tmp"))
    store = capture_of(recipe)
    assert kept.items() <= shards(store.directory).items() and store.verify()


@pytest.mark.slow
def test_two_ranks_fill_the_store_of_one(tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        recipe = capture_recipe(tmp_path, path=str(tmp_path / name), codec={"kind": "sampled"})
        path = write_recipe(recipe, tmp_path / f"{name}.yaml")
        for ended in run_ranks(tmp_path, ["capture", str(path)], ranks):
            assert ended.code == 0, ended.said
    assert shards(tmp_path / "one").keys() == shards(tmp_path / "two").keys()
    assert TargetStore(tmp_path / "two").verify()


@pytest.mark.slow
def test_a_store_is_read_while_another_process_captures_elsewhere(tmp_path: Path) -> None:
    _, store = captured(tmp_path)
    other = capture_recipe(tmp_path, path=str(tmp_path / "other"), positions_per_shard=60, tokens_per_batch=140)
    process = process_for(other)
    process.start()
    rounds = 0
    while process.is_alive() or rounds == 0:
        assert TargetStore(store.directory).verify() == store.manifest.num_sequences
        rounds += 1
    assert process.exitcode == 0
    assert TargetStore(tmp_path / "other").verify() == store.manifest.num_sequences


@pytest.mark.slow
def test_one_capture_serves_a_sweep_of_cuts(tmp_path: Path) -> None:
    """p in {1, .75, .5, .25} from one store against four live runs."""
    recipe, store = captured(tmp_path, cut={"kind": "full"}, steps=3)
    for p in (1.0, 0.75, 0.5, 0.25):
        cut = {"cut": {"kind": "lead", "p": p}, "output": tmp_path / f"live{p}"}
        live = Recipe.model_validate(recipe.model_dump() | cut)
        run(live)
        run(stored(live, tmp_path / f"stored{p}"))
        assert losses(tmp_path / f"stored{p}") == pytest.approx(losses(live.output), rel=1e-5)
    assert copy_of(store, tmp_path / "copy").exists()
