"""The adapter against a stand-in of vLLM with the calls that its weight transfer documents, run by a real model.

The engine has a model of its own, with weights of no use until the first update: what it draws is the student's only if
every update reaches it.
"""

import base64
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from leadspan import stages
from leadspan.errors import SettingsError
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.models.loading import load_model, save_student
from leadspan.models.settings import Pretrained
from leadspan.pipeline.run import run
from leadspan.rollout.settings import RolloutSettings
from leadspan.rollout.vllm_engine import VllmDrawing, check_can_draw
from leadspan.settings import validate
from recipes import toy_recipe
from toys import TEMPLATE, character_tokenizer, tiny


class Engine:
    """As `vllm.LLM`."""

    def __init__(self, model: str, load_format: str, weight_transfer_config: Any, **options: Any):
        assert load_format == "dummy" and weight_transfer_config.backend == "ipc" and options["skip_tokenizer_init"]
        self.model = load_model(tiny(seed=99), torch.float32, for_training=False)
        self.options, self.calls = options, []

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        self.calls.append(("init", request["init_info"]))

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        info = request["update_info"]
        assert "ipc_handles" not in info  # what an engine in another process could not be sent
        tensors = pickle.loads(base64.b64decode(info["ipc_handles_pickled"]))
        weights = dict(zip(info["names"], tensors, strict=True))
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def generate(self, inputs: list[Any], options: list[Any], use_tqdm: bool) -> list[Any]:
        assert all(o.ignore_eos and o.n == 1 and not o.detokenize for o in options)
        prompts = [one["prompt_token_ids"] for one in inputs]
        ids = [greedy(self.model, prompt, o.max_tokens) for prompt, o in zip(prompts, options, strict=True)]
        told = [[{token: SimpleNamespace(logprob=-0.25 * token)} for token in new] for new in ids]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=new, logprobs=said)])
            for new, said in zip(ids, told, strict=True)
        ]


def greedy(model: Any, prompt: list[int], number: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(number):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


class Factory:
    """As `WeightTransferTrainerFactory`: its engine sends the parameters of a module, here by value."""

    @staticmethod
    def trainer_init(*, init_info: Any, client: Any, source: Any) -> Any:
        client.init_weight_transfer_engine({"packed": False})

        def send_weights() -> None:
            client.start_weight_update()
            names, tensors = zip(*[(name, p.detach().clone()) for name, p in source.named_parameters()], strict=True)
            client.update_weights({"names": list(names), "ipc_handles": list(tensors)})
            client.finish_weight_update()

        assert init_info.rank == 0
        return SimpleNamespace(send_weights=send_weights)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", LLM=Engine, SamplingParams=SimpleNamespace)
    module("vllm.config", WeightTransferConfig=SimpleNamespace)
    module("vllm.distributed", weight_transfer=None)
    module("vllm.distributed.weight_transfer", ModuleSource=lambda m: m, WeightTransferTrainerFactory=Factory)
    module("vllm.distributed.weight_transfer.ipc_engine", IPCTrainerInitInfo=SimpleNamespace)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")


def test_what_is_drawn_is_of_the_weights_as_they_are(stand_in: None, tmp_path: Path) -> None:
    student = load_model(tiny(seed=1), torch.float32)
    save_student(student, character_tokenizer(), TEMPLATE, 0, tmp_path / "student")
    plain = load_model(Pretrained(path=str(tmp_path / "student")), torch.float32, for_training=False)
    where = Pretrained(path=str(tmp_path / "student"))
    drawing = VllmDrawing(where, student, Vllm(options={"gpu_memory_utilization": 0.3}), 1024, False)
    engine = drawing._llm
    assert engine.options["gpu_memory_utilization"] == 0.3 and engine.options["max_model_len"] == 1024
    prompts, caps = [[7, 8, 9], [10, 11]], [4, 6]
    sampling = SamplingSettings(temperature=1.0, max_new_tokens=6)
    draws = []
    for _ in range(2):
        drawn = drawing.draw(prompts, caps, ["a", "b"], [0], sampling, with_log_probs=True)
        assert all(log_probs == [-0.25 * token for token in ids] for ids, log_probs in drawn)
        new = [ids for ids, _ in drawn]
        draws.append(new)
        assert new == [greedy(plain, prompt, cap) for prompt, cap in zip(prompts, caps, strict=True)]
        with torch.no_grad():
            for model in (student, plain):
                generator = torch.Generator().manual_seed(3)
                for parameter in model.parameters():
                    parameter += torch.randn(parameter.shape, generator=generator)
    assert draws[0] != draws[1]
    assert engine.calls == [("init", {"packed": False}), *["start", "finish", "reset"] * 2]


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (RolloutSettings, {"max_model_len": 64}, "engine.options has max_model_len, which training sets itself"),
        (RolloutSettings, {"dtype": "half"}, "options has dtype, which the model and the setting of precision give"),
        (SamplingSettings, {"revision": "x"}, "options has revision"),
        (SamplingSettings, {"max_num_seqs": 8}, "engine.options has max_num_seqs, which is batch_size: set that"),
    ],
)
def test_options_that_are_given_to_vllm_anyway_are_refused(settings: Any, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(settings, {"engine": {"kind": "vllm", "options": options}}, "engine")


def test_a_run_draws_with_it_in_every_step(stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "check_can_draw", lambda: None)  # there is no GPU here
    engines: list[Engine] = []
    monkeypatch.setattr(sys.modules["vllm"], "LLM", lambda **options: engines.append(Engine(**options)) or engines[0])
    save_student(load_model(tiny(seed=1), torch.float32), character_tokenizer(), TEMPLATE, 0, tmp_path / "student")
    rollout = {"engine": {"kind": "vllm"}, "max_new_tokens": 5, "horizon": {"kind": "fixed", "tokens": 3}}
    student = {"kind": "pretrained", "path": str(tmp_path / "student")}
    loss = {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}}
    recipe = toy_recipe(tmp_path / "toy", student=student, rollout=rollout, loss=loss, steps=2, keep="last")
    run(recipe)
    assert engines[0].calls[1:] == ["start", "finish", "reset"] * 2
    trained = load_model(Pretrained(path=str(recipe.student_directory)), torch.float32, for_training=False)
    start = load_model(Pretrained(path=str(tmp_path / "student")), torch.float32, for_training=False)
    last = dict(engines[0].model.named_parameters())["model.norm.weight"]
    assert not torch.equal(last, start.model.norm.weight) and not torch.equal(last, trained.model.norm.weight)
    lines = [json.loads(line) for line in (recipe.output / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all(line["tokens"] <= 3 for line in lines)


def test_where_vllm_cannot_draw_is_told_before_models_are_loaded(tmp_path: Path, monkeypatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else present(name))
    with pytest.raises(SettingsError, match=r"vllm is not installed; pip install 'leadspan\[vllm\]'"):
        check_can_draw()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "vllm" else present(name))
    with pytest.raises(SettingsError, match="not 1 on cpu"):
        check_can_draw()
    rollout = {"engine": {"kind": "vllm"}, "max_new_tokens": 300}
    with pytest.raises(SettingsError, match=r"rollout\.engine\.kind is vllm, .* without adapters"):
        toy_recipe(tmp_path, rollout=rollout, loss={"kl_weight": 1})
