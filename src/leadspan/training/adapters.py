"""Low-rank adapters of a student, by PEFT."""

import re
import warnings
from functools import partial
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from leadspan.errors import ModelError
from leadspan.training.settings import Lora


def with_adapters(student: PreTrainedModel, settings: Lora) -> PeftModel:
    """The student wrapped with low-rank adapters, its own weights frozen.

    Raises:
        ModelError: The settings name no module of the model.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),  # annotated as int, used as a factor
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks for a name that Transformers deprecates.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = cast(PeftModel, get_peft_model(student, config))
    except (ValueError, re.error) as error:
        raise ModelError(f"training.lora: {error}") from None
    # PEFT takes a list of which some name nothing.
    names = [f".{name}" for name in cast(Any, model.base_model).targeted_module_names]
    for target in settings.target_modules if isinstance(settings.target_modules, list) else ():
        if not any(name.endswith(f".{target}") for name in names):
            raise ModelError(f"training.lora.target_modules: the model has no module {target!r}; leave it out")
    resolved = cast(LoraConfig, model.peft_config["default"])
    if isinstance(resolved.target_modules, set):
        resolved.target_modules = sorted(resolved.target_modules)  # a set is saved in another order by every process
    # "auto" would ask the Hub for the config of a directory that has a GGUF file alone. Embeddings are never resized.
    cast(Any, model).save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model
