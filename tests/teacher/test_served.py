"""Served teachers against a real server on loopback: the values, the refusals, what is repeated and what is not."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leadspan.data.packing import Batch, pack
from leadspan.data.sections import Renderer
from leadspan.data.settings import Rendering
from leadspan.errors import LeadspanError, SettingsError, TargetsError
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.settings import validate
from leadspan.stages import teacher_source
from leadspan.teacher import server as client
from leadspan.teacher.codecs import decode, encode
from leadspan.teacher.engine import ServedEngine
from leadspan.teacher.settings import ServedTeacher, ServedTeachers, TopK
from leadspan.teacher.source import RemoteTeacher
from leadspan.teacher.targets import SparseTargets, freeze, live_targets, teacher_logits
from recipes import toy_recipe
from servers import TeacherOnLoopback, serving
from toys import TEMPLATE, VOCAB, character_tokenizer, tiny, toy_examples

K = 12


@pytest.fixture(scope="module")
def loopback() -> Iterator[TeacherOnLoopback]:
    with serving(
        load_model(tiny(hidden=48, seed=2), torch.float32, for_training=False), character_tokenizer()
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, loopback: TeacherOnLoopback) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)
    loopback.faults.clear()
    loopback.asked.clear()


def teacher(server: TeacherOnLoopback, **changes: Any) -> RemoteTeacher:
    values = {"url": server.url, "model": "big", "k": K, "timeout": 5.0, "retries": 2, **changes}
    remote = RemoteTeacher(validate(ServedTeacher, values, "teacher"))
    remote.shared_tokens(VOCAB, VOCAB)
    return remote


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    examples, _ = toy_examples(tmp_path_factory.mktemp("served"))
    return pack([examples[i] for i in range(3)])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """One example, so that a fault has one request that it can befall."""
    examples, _ = toy_examples(tmp_path_factory.mktemp("single"))
    return pack([examples[0]])


@pytest.mark.parametrize("api", ["vllm", "sglang"])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_values_are_those_of_the_teacher_run_here(loopback, batch: Batch, api: str, ahead: bool) -> None:
    local = live_targets(freeze(load_model(tiny(hidden=48, seed=2), torch.float32)), batch)
    codec = TopK(k=K, precision="float32")
    arrays = encode(teacher_logits(local, slice(None)), batch["labels"], codec, [1.0])
    expected = decode(arrays, codec)
    remote = teacher(loopback, api=api)
    if ahead:
        remote.ask_ahead([batch])
    found = remote.targets(batch)
    assert isinstance(found, SparseTargets) and len(loopback.asked) == 3
    assert np.array_equal(found.token_ids.numpy(), expected["token_ids"])
    np.testing.assert_allclose(found.log_probs, expected["log_probs"], atol=1e-5)
    np.testing.assert_allclose(found.tail_mass[1.0], arrays["outside"], atol=1e-5)
    assert found.label_log_probs is not None
    np.testing.assert_allclose(found.label_log_probs, arrays["label_log_prob"], atol=1e-5)


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_ends_of_turns_are_in_the_support_as_far_as_the_server_names_them(loopback, batch: Batch, api: str) -> None:
    """SGLang names those that it is asked for; vLLM the sequence's own token besides the likeliest."""
    local = live_targets(freeze(load_model(tiny(hidden=48, seed=2), torch.float32)), batch)
    log_p, labels = teacher_logits(local, slice(None)).log_softmax(-1), batch["labels"]
    remote = teacher(loopback, api=api)
    plain = remote.targets(batch)
    ends = tuple(labels.bincount().topk(2).indices.tolist())  # often a label, seldom likely
    remote.end_ids = ends
    found = remote.targets(batch)
    assert isinstance(found, SparseTargets) and isinstance(plain, SparseTargets)
    assert torch.equal(found.token_ids[:, :K], plain.token_ids) and torch.equal(found.log_probs[:, :K], plain.log_probs)
    for column, end in zip((K, K + 1), ends, strict=True):
        is_listed = (plain.token_ids == end).any(1)
        is_named = ~is_listed & ((labels == end) | torch.full_like(is_listed, api == "sglang"))
        assert (found.token_ids[:, column] == end).all() and is_named.any() and (api == "sglang" or not is_named.all())
        expected = torch.where(is_named, log_p[:, end], -torch.inf)
        torch.testing.assert_close(found.log_probs[:, column], expected, atol=1e-5, rtol=0)
    mass = found.log_probs.exp().sum(1) + found.tail_mass[1.0]
    torch.testing.assert_close(mass, torch.ones_like(mass))


def test_tokens_that_the_student_lacks_are_in_the_tail(loopback, batch: Batch) -> None:
    whole, remote = teacher(loopback).targets(batch), teacher(loopback)
    remote.shared_tokens(40, 40)
    found = remote.targets(batch)
    assert isinstance(found, SparseTargets) and isinstance(whole, SparseTargets)
    is_beyond = whole.token_ids >= 40
    assert is_beyond.any() and (found.log_probs[is_beyond] == -torch.inf).all() and int(found.token_ids.max()) < 40
    mass = found.log_probs.exp().sum(1) + found.tail_mass[1.0]
    torch.testing.assert_close(mass, torch.ones_like(mass))


def without_own(answer: Any) -> Any:
    """Prompt log-probabilities of another prompt: the first weighted token of ours is not among them."""
    answer["choices"][0]["prompt_logprobs"][3] = {str(200 + i): {"logprob": -3.0} for i in range(K)}
    return answer


def fewer(answer: Any) -> Any:
    row = answer["choices"][0]["prompt_logprobs"][2]
    answer["choices"][0]["prompt_logprobs"][2] = dict(list(row.items())[: K - 4])
    return answer


def valued(value: float) -> Any:
    def changed(answer: Any) -> Any:
        next(iter(answer["choices"][0]["prompt_logprobs"][4].values()))["logprob"] = value
        return answer

    return changed


def of_token(name: str) -> Any:
    def changed(answer: Any) -> Any:
        row = answer["choices"][0]["prompt_logprobs"][4]
        row[name] = {"logprob": max(value["logprob"] for value in row.values())}
        return answer

    return changed


def shorter(answer: Any) -> Any:
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without_own, r"12 of 12 tokens at position 2, without the data's token \d+; it scored another text"),
        (fewer, "returned 8 of 12 tokens at position 1"),
        (valued(float("nan")), "no log-probabilities at position 3: their exponentials add up to nan"),
        (valued(3.0), "no log-probabilities at position 3"),
        (shorter, "prompt log-probabilities for"),
        (of_token("-4"), "tokens -4 to .* at position 3: no ids of tokens"),
        (of_token("99999999999999999999"), "to 99999999999999999999 at position 3: no ids of tokens"),
        (lambda answer: {"choices": [{"text": "a"}]}, "no log-probabilities of the prompt"),
        (lambda answer: {"choices": [{"prompt_logprobs": [None, {"1": None}]}]}, "no log-probabilities of the prompt"),
        (lambda answer: (400, "prompt_logprobs of 12 is above 10"), "status 400: prompt_logprobs of 12 is above 10"),
        (lambda answer: (307, ""), "refused with status 307"),
        (lambda answer: (200, "[" * 100_000), "/v1/completions answers with JSON that is nested too deeply"),
    ],
)
def test_an_answer_that_is_none_is_refused_at_once(loopback, single: Batch, fault: Any, message: str) -> None:
    loopback.faults[:] = [fault]
    with pytest.raises(TargetsError, match=message):
        teacher(loopback).targets(single)


def late(answer: Any) -> Any:
    time.sleep(0.4)
    return answer


@pytest.mark.parametrize(
    "fault",
    [
        lambda answer: (503, "busy"),
        lambda answer: (429, "slow down"),
        lambda answer: (529, "overloaded"),
        late,
        lambda answer: json.dumps(answer).encode()[:100],  # dies in its answer
        lambda answer: (200, json.dumps(answer)[:100]),  # ends its answer early
    ],
)
def test_what_may_pass_is_repeated_and_told_when_it_does_not(loopback, single: Batch, fault: Any) -> None:
    options = {"timeout": 0.3}
    good = teacher(loopback).targets(single)
    loopback.faults[:] = [fault, fault]
    again = teacher(loopback, **options).targets(single)
    assert isinstance(good, SparseTargets) and isinstance(again, SparseTargets)
    assert torch.equal(good.log_probs, again.log_probs)
    assert not loopback.faults
    loopback.faults[:] = [fault] * 3
    with pytest.raises(TargetsError, match=r"failed 3 times, at last with .*teacher\.retries, and resume"):
        teacher(loopback, **options).targets(single)


def test_a_dead_server_is_told_with_its_address(loopback, single: Batch) -> None:
    remote = teacher(loopback, url="http://127.0.0.1:9", retries=1)
    with pytest.raises(TargetsError, match=r"teacher big at http://127\.0\.0\.1:9: .* failed 2 times"):
        remote.targets(single)


def test_a_key_comes_from_the_environment_and_is_in_no_error(loopback, single: Batch, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="the environment has no TEACHER_KEY"):
        teacher(loopback, api_key_env="TEACHER_KEY").targets(single)
    monkeypatch.setenv("TEACHER_KEY", "sesame-4711")
    loopback.faults[:] = [lambda answer: (401, "no such key: sesame-4711")]
    with pytest.raises(TargetsError) as refused:
        teacher(loopback, api_key_env="TEACHER_KEY").targets(single)
    assert "sesame" not in str(refused.value) and "***" in str(refused.value)
    for filling in range(290, 325, 5):  # the page is cut within the key
        loopback.faults[:] = [lambda answer, filling=filling: (401, "x" * filling + "sesame-4711")]
        with pytest.raises(TargetsError, match="refused with status 401: xxx") as refused:
            teacher(loopback, api_key_env="TEACHER_KEY").targets(single)
        assert "s" not in str(refused.value).rpartition("xxx")[2]
    assert {key for _, _, key in loopback.asked} == {"Bearer sesame-4711"}
    with pytest.raises(SettingsError) as told:
        validate(ServedTeacher, {"url": "http://h", "model": "m", "api_key_env": "sesame-4711"}, "teacher")
    assert "sesame" not in str(told.value)


@pytest.mark.parametrize("paths", [("/v1/completions", "/tokenize"), ("/v1/completions",), ("/generate",)])
def test_another_tokenizer_is_refused_with_or_without_tokenize(paths: tuple[str, ...]) -> None:
    model = load_model(tiny(vocab=VOCAB + 8), torch.float32, for_training=False)
    renderer = Renderer(character_tokenizer(), Rendering())
    api = "sglang" if "/generate" in paths else "vllm"
    with serving(model, character_tokenizer(), paths) as server:
        remote = teacher(server, api=api)
        remote.check_origin(renderer)
        assert remote.window == (1024 if "/tokenize" in paths else None)
        other = character_tokenizer()
        other.add_tokens(["What"])
        server.tokenizer = other
        with pytest.raises(TargetsError, match="its tokenizer is not that of the data"):
            teacher(server, api=api).check_origin(renderer)


def test_another_template_is_refused_unless_that_is_meant() -> None:
    model = load_model(tiny(hidden=48, seed=2), torch.float32, for_training=False)
    renderer = Renderer(character_tokenizer(), Rendering())
    with serving(model, character_tokenizer(TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"))) as server:
        with pytest.raises(TargetsError, match=r"chat template writes prompts differently .*check_template: false"):
            teacher(server).check_origin(renderer)
        teacher(server, check_template=False).check_origin(renderer)


@pytest.mark.parametrize("kind", [int, str])
def test_an_example_beyond_the_servers_window_is_refused(loopback, tmp_path: Path, kind: type) -> None:
    examples, renderer = toy_examples(tmp_path)
    remote = teacher(loopback)
    vars(loopback.model.config)["max_position_embeddings"] = kind(max(examples.lengths))  # a server may send text
    try:
        remote.check_origin(renderer, None)
        with pytest.raises(TargetsError, match=f"set data.max_tokens: {max(examples.lengths) - 1}"):
            remote.check_serves(examples, range(len(examples)))
    finally:
        loopback.model.config.max_position_embeddings = 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"temperature": 2}}, "server returns no others: run or capture the teacher with Transformers"),
        ({"loss": {"divergence": {"kind": "adaptive_kl"}}}, "not defined with the tail as one outcome"),
        ({"supervision": {"token_selection": {"kind": "teacher_entropy", "share": 0.5}}}, "server returns no entropy"),
        (
            {"loss": {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}}, "rollout": {}},
            "policy_gradient knows the teacher's probability of one token",
        ),
        (
            {
                "loss": {"kl_weight": 1, "stop": "tokens"},
                "rollout": {"cold_start": {"steps": 2, "divergence": {"kind": "adaptive_kl"}}},
            },
            "not defined with the tail as one outcome",
        ),
        ({"teacher": {"url": "host:8000"}}, "not the address of a server"),
        ({"teacher": {"url": "http://host:99999"}}, "Port out of range 0-65535"),
        ({"capture": {"engine": "server", "codec": {"kind": "hidden"}}}, "engine server returns the likeliest tokens"),
    ],
)
def test_what_a_server_cannot_give_is_refused_in_the_recipe(tmp_path: Path, changes: Any, message: str) -> None:
    served = {"kind": "server", "url": "http://localhost:8000/v1/", "model": "big", **changes.pop("teacher", {})}
    assert toy_recipe(tmp_path, teacher={**served, "url": "http://localhost:8000/v1/"}).teacher.url.endswith(":8000")
    with pytest.raises(LeadspanError, match=message):
        toy_recipe(tmp_path, teacher=served, **changes)


def test_a_teacher_without_a_name_would_be_that_of_all_traces_and_is_refused() -> None:
    one = {"url": "http://localhost:8000", "model": "big"}
    with pytest.raises(SettingsError, match=r"by_name\. = '': String should have at least 1 char"):
        validate(ServedTeachers, {"by_name": {"": one, "code": one}}, "teacher")


def test_a_column_of_the_traces_names_the_teacher_of_each(loopback, tmp_path: Path) -> None:
    toy_examples(tmp_path)
    path = tmp_path / "traces.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "by": "one" if i % 3 else "two"}) + "\n" for i, row in enumerate(rows)))
    other = load_model(tiny(hidden=32, seed=7), torch.float32, for_training=False)
    with serving(other, character_tokenizer()) as server:
        by_name = {
            name: {"url": each.url, "model": name, "k": K, "retries": 0}
            for name, each in (("one", loopback), ("two", server))
        }
        source = {"path": str(path), "columns": {"teacher": "by"}}
        data = {"train": source, "validation": {"kind": "none"}, "cache_dir": str(tmp_path / "cache")}
        teachers = {"kind": "servers", "by_name": by_name}
        recipe = toy_recipe(tmp_path / "toy", teacher=teachers, data=data, cut={"kind": "full"})
        prepared = prepare_data(recipe)
        examples = prepared.examples
        assert sorted(examples.teachers) == ["one"] * 8 + ["two"] * 4
        remote = teacher_source(recipe)
        remote.shared_tokens(VOCAB, VOCAB)
        remote.check_origin(prepared.renderer, recipe.teacher)
        remote.check_serves(examples, examples.usable)
        found = remote.targets(pack([examples[i] for i in range(len(examples))]))
        apart = [
            teacher(loopback if example.teacher == "one" else server).targets(pack([example]))
            for example in (examples[i] for i in range(len(examples)))
        ]
    assert torch.equal(found.log_probs, torch.cat([targets.log_probs for targets in apart]))
    assert {body["model"] for _, body, _ in loopback.asked} == {"one", "big"}
    less = recipe.model_copy(
        update={"teacher": ServedTeachers(by_name={"one": recipe.teacher.by_name["one"]})}  # pyright: ignore
    )
    with pytest.raises(TargetsError, match=r"names the teacher 'two', and teacher\.by_name has one"):
        teacher_source(less).check_serves(examples, examples.usable)
    assert isinstance(less.teacher, ServedTeachers)
    engine = ServedEngine(less.teacher, TopK(k=K), VOCAB, prepared.renderer, 100)
    loopback.asked.clear()
    with pytest.raises(TargetsError, match="names the teacher 'two'"):
        engine(sorted((examples[i] for i in range(len(examples))), key=lambda example: example.teacher))
    engine.of("one").pool.shutdown()
    assert not loopback.asked  # a process would not end before the answers to all that it has asked
    without = {**data, "train": {"path": str(path)}}
    with pytest.raises(SettingsError, match=r"set data\.train\.columns\.teacher"):
        toy_recipe(tmp_path / "toy", teacher=teachers, data=without)
