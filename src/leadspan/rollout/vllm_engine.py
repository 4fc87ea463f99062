"""Rollouts drawn by vLLM on the GPU of the training; its weights are updated in place before every step.

Not part of an installation without the extra: `pip install leadspan[vllm]`.

**Source**: vLLM's weight transfer, backend `ipc` (docs.vllm.ai, training/weight_transfer, version 0.29 and later): a
trainer engine made by `WeightTransferTrainerFactory.trainer_init` reads the parameters of a module in `send_weights`,
and drives any object with the four methods of `VLLMWeightSyncClient`; `vllm.LLM` has methods of the same names.
"""

import base64
import importlib.util
import os
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from leadspan.errors import ModelError, SettingsError
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.evaluation.vllm_engine import sampling_fields
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.ranks import process_device, process_state

# The engine's process unpickles handles of the GPU's memory; they come from this process alone.
_UNPICKLES = "VLLM_ALLOW_INSECURE_SERIALIZATION"
_REMEDY = "pip install 'leadspan[vllm]', or use rollout.engine.kind=transformers"


def check_can_draw() -> None:
    """Refuse rollouts by vLLM where it cannot draw, before models are loaded.

    Raises:
        SettingsError: It is not installed, there is no CUDA device, or this is one of several processes.
    """
    device, number = process_device().type, process_state().num_processes
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError(f"rollout.engine: vllm is not installed; {_REMEDY}")
    if device != "cuda" or number > 1:
        here = f"{number} on {device}"
        raise SettingsError(f"rollout.engine: vllm shares a GPU with one process that trains, not {here}; {_REMEDY}")


class VllmDrawing:
    """Draws from a student's weights as they are."""

    def __init__(
        self, student: ModelSettings, model: torch.nn.Module, engine: Vllm, window: int | None, use_bf16: bool
    ):
        """Start vLLM with the student's config; from the first draw on its weights are those of `model`, in training.

        Raises:
            ModelError: vLLM is too old.
        """
        os.environ.setdefault(_UNPICKLES, "1")
        try:
            from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # an extra
            from vllm.config import WeightTransferConfig  # pyright: ignore[reportMissingImports]
            from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
                ModuleSource,
                WeightTransferTrainerFactory,
            )
            from vllm.distributed.weight_transfer.ipc_engine import (  # pyright: ignore[reportMissingImports]
                IPCTrainerInitInfo,
            )
        except ImportError as error:
            raise ModelError(f"rollout.engine: vLLM cannot be imported ({error}); {_REMEDY}") from None
        assert isinstance(student, Pretrained), "checked with the recipe"
        self._to_parameters = SamplingParams
        self._llm: Any = LLM(
            model=student.path,
            revision=student.revision,
            skip_tokenizer_init=True,
            load_format="dummy",  # the weights come by the first update
            dtype="bfloat16" if use_bf16 else "float32",
            max_model_len=window,
            weight_transfer_config=WeightTransferConfig(backend="ipc"),
            **engine.options,
        )
        llm = self._llm

        def update_weights(update_info: dict[str, Any]) -> None:
            # The handles of GPU memory pickled, as by vLLM's own HTTP client: a message holds plain values only.
            if (handles := update_info.get("ipc_handles")) is not None:
                pickled = base64.b64encode(pickle.dumps(handles)).decode()
                update_info = {name: value for name, value in update_info.items() if name != "ipc_handles"}
                update_info["ipc_handles_pickled"] = pickled
            llm.update_weights({"update_info": update_info})

        # `VLLMWeightSyncClient` of an engine in a process of its own on this machine.
        client = SimpleNamespace(
            init_weight_transfer_engine=lambda init_info: llm.init_weight_transfer_engine({"init_info": init_info}),
            start_weight_update=llm.start_weight_update,
            update_weights=update_weights,
            finish_weight_update=lambda weight_version=None: llm.finish_weight_update(),
        )
        self._sender: Any = WeightTransferTrainerFactory.trainer_init(
            init_info=IPCTrainerInitInfo(rank=0), client=client, source=ModuleSource(model)
        )

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        caps: Sequence[int],
        keys: Sequence[str],
        stop_ids: Sequence[int],
        settings: SamplingSettings,
        with_log_probs: bool = False,
    ) -> list[tuple[list[int], list[float]]]:
        """New token ids for prompts from the student's weights as they are now, up to the cap of each.

        With their log-probabilities at temperature 1, or none. Each prompt has a random stream, which its key names.

        Raises:
            ModelError: vLLM returned something else than one sample for each prompt.
        """
        self._sender.send_weights()
        self._llm.reset_prefix_cache()  # what it holds is of the weights before
        fields = [sampling_fields(key, cap, stop_ids, settings) for key, cap in zip(keys, caps, strict=True)]
        more = {"logprobs": 0} if with_log_probs else {}  # 0 besides the drawn token's own
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(
            inputs, [self._to_parameters(**values, **more) for values in fields], use_tqdm=False
        )
        if [len(output.outputs) for output in outputs] != [1] * len(prompts):
            raise ModelError(f"rollout.engine: vLLM returned {len(outputs)} outputs for {len(prompts)} prompts")
        samples: list[tuple[list[int], list[float]]] = []
        for drawn in (output.outputs[0] for output in outputs):
            ids = list(drawn.token_ids)
            entries = zip(drawn.logprobs, ids, strict=True) if with_log_probs else ()
            samples.append((ids, [float(entry[token].logprob) for entry, token in entries]))
        return samples
