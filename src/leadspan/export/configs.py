"""Files of settings that train on an exported data set: TRL, Axolotl, LLaMA-Factory.

They take the optimiser and the length of the run from the recipe. Their length limit is the longest exported example,
so that no trainer cuts again. All three average the loss over the labels of a step, as leadspan
does.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe
from leadspan.training.settings import ByExamples

# All three pass the name on to Transformers, which has no one_cycle; `remarks` says so.
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup", "one_cycle": "cosine"}
_NO_MODEL = "DIRECTORY-OF-THE-STUDENT"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported data set.

    Attributes:
        directory: Where it lies.
        recipe: The recipe it was made from.
        longest: Tokens of its longest example.
        has_validation: Whether it has uncut validation examples.
    """

    directory: Path
    recipe: Recipe
    longest: int
    has_validation: bool

    @property
    def model(self) -> str:
        """Starting weights, as a path or a name; a placeholder for a student that the recipe builds from a config."""
        student = self.recipe.student
        return student.path if isinstance(student, Pretrained) else _NO_MODEL

    @property
    def examples_per_step(self) -> int:
        """Examples of an optimiser step; 8 where the recipe packs to a token budget."""
        batching = self.recipe.training.batching
        return batching.examples_per_step if isinstance(batching, ByExamples) else 8

    @property
    def remarks(self) -> list[str]:
        """The properties of the recipe that these settings cannot express."""
        training = self.recipe.training
        remarks = ["Cross-entropy on the truncated traces alone: no teacher takes part."]
        # Each of these would go unseen: the trainer would run, and train something else.
        if self.model == _NO_MODEL:
            remarks.append(f"The recipe builds its student from a config: save it, and write its path for {_NO_MODEL}.")
        if training.lora is not None:
            remarks.append("The recipe trains LoRA adapters; these settings train all weights.")
        if not isinstance(training.batching, ByExamples):
            remarks.append("The recipe packs to a token budget; a step here has 8 examples instead.")
        if training.schedule == "one_cycle":
            remarks.append("The recipe's one_cycle schedule is not available here; cosine replaces it.")
        return remarks


def trl_script(exported: Exported) -> str:
    """A script that runs `SFTTrainer` on the saved data set."""
    training = exported.recipe.training
    options: dict[str, Any] = {
        "output_dir": str(exported.directory / "trl"),
        "max_length": exported.longest,
        "packing": False,  # packed rows would need flash attention, which keeps them apart
        **_optimisation(exported, warmup="warmup_steps"),  # Transformers takes a number below 1 as a share
        "gradient_checkpointing": training.gradient_checkpointing,
        "seed": exported.recipe.seed,
    }
    has_bf16 = "torch.cuda.is_available() and torch.cuda.is_bf16_supported()"
    bf16 = has_bf16 if training.precision == "auto" else str(training.precision == "bfloat16")
    lines = "\n".join([*(f"    {name}={value!r}," for name, value in options.items()), f"    bf16={bf16},"])
    evaluated = ', eval_dataset=data["validation"]' if exported.has_validation else ""
    return (
        f"{_comment(exported)}"
        "import torch\n"
        "from datasets import load_from_disk\n"
        "from transformers import AutoTokenizer\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        f"data = load_from_disk({str(exported.directory / 'dataset')!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({exported.recipe.tokenizer_path!r})\n"
        f"settings = SFTConfig(\n{lines}\n)\n"
        f"trainer = SFTTrainer(\n    {exported.model!r}, args=settings, processing_class=tokenizer, "
        f'train_dataset=data["train"]{evaluated}\n)\n'
        "trainer.train()\n"
    )


def axolotl_yaml(exported: Exported) -> str:
    """Settings of `axolotl train`; the empty `type` says that the rows are tokenised."""
    training = exported.recipe.training

    def rows(name: str) -> list[dict[str, Any]]:
        path = str(exported.directory / f"{name}.parquet")
        return [{"path": path, "ds_type": "parquet", "split": "train", "type": None}]

    values: dict[str, Any] = {
        "base_model": exported.model,
        "tokenizer_config": exported.recipe.tokenizer_path,
        "datasets": rows("train"),
        **({"test_datasets": rows("validation")} if exported.has_validation else {}),
        "dataset_prepared_path": str(exported.directory / "axolotl-prepared"),
        "output_dir": str(exported.directory / "axolotl"),
        "sequence_len": exported.longest,
        "sample_packing": False,
        "optimizer": "adamw_torch",
        **_optimisation(exported, epochs="num_epochs", batch="micro_batch_size", schedule="lr_scheduler"),
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": "auto" if training.precision != "float32" else False,
        "seed": exported.recipe.seed,
    }
    return _comment(exported) + to_yaml(values)


def llama_factory_yaml(exported: Exported) -> str:
    """Settings of `llamafactory-cli train`."""
    values: dict[str, Any] = {
        "model_name_or_path": exported.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "template": "empty",
        "dataset": "leadspan",  # required, and not read where `tokenized_path` is given
        "tokenized_path": str(exported.directory / "dataset"),
        "cutoff_len": exported.longest,
        "output_dir": str(exported.directory / "llama-factory"),
        **_optimisation(exported),  # gradient checkpointing is on by default there
        "bf16": exported.recipe.training.precision != "float32",
        "seed": exported.recipe.seed,
    }
    return _comment(exported) + to_yaml(values)


CONFIGS: dict[str, Callable[[Exported], str]] = {
    "trl_sft.py": trl_script,
    "axolotl.yaml": axolotl_yaml,
    "llama_factory.yaml": llama_factory_yaml,
}
"""Name of each file and the function that writes it."""


def _optimisation(
    exported: Exported,
    epochs: str = "num_train_epochs",
    batch: str = "per_device_train_batch_size",
    schedule: str = "lr_scheduler_type",
    warmup: str = "warmup_ratio",
) -> dict[str, Any]:
    """The optimiser and the length of the run, under the names that a trainer has for them."""
    training = exported.recipe.training
    # A recipe has steps or epochs, never both.
    length = {"max_steps": training.steps} if training.epochs is None else {epochs: training.epochs}
    return {
        **length,
        batch: 1,  # no padding, whatever the lengths; accumulation makes steps of the recipe's size
        "gradient_accumulation_steps": exported.examples_per_step,
        "learning_rate": training.learning_rate,
        schedule: _SCHEDULES[training.schedule],
        warmup: training.warmup_share,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "max_grad_norm": training.max_grad_norm,
    }


def _comment(exported: Exported) -> str:
    cut = exported.recipe.cut.label
    lines = [f"Written by `leadspan export` from the recipe {json.dumps(exported.recipe.name)}, cut {cut}."]
    return "".join(f"# {line}\n" for line in [*lines, *exported.remarks])


def to_yaml(values: dict[str, Any]) -> str:
    """A mapping as YAML, keys in their order."""
    stream = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    # A path is never broken over two lines.
    writer.width = 4096
    writer.dump(values, stream)
    return stream.getvalue()
