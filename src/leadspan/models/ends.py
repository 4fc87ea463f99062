"""The tokens with which a model ends a turn, as its own files name them."""

from transformers import GenerationConfig, PreTrainedModel

from leadspan.models.loading import load_config, name_of
from leadspan.models.reading import reading
from leadspan.models.settings import ModelSettings, Pretrained


def end_ids_of(model: PreTrainedModel) -> list[int]:
    """Those of a loaded model's generation config, ascending."""
    return _ids(model.generation_config)


def load_end_ids(settings: ModelSettings) -> list[int]:
    """Those of a model's generation config, or where it has none, of its config; no weights are read.

    Raises:
        ModelError: The config cannot be read.
    """
    config = load_config(settings)
    if isinstance(settings, Pretrained):
        with reading(f"model {settings.path}"):
            try:
                return _ids(GenerationConfig.from_pretrained(settings.path, revision=settings.revision or "main"))
            except OSError:  # there is none, as with many base models
                pass
    with reading(f"model {name_of(settings)}"):
        return _ids(GenerationConfig.from_model_config(config))


def _ids(config: GenerationConfig | None) -> list[int]:
    end_ids = None if config is None else config.eos_token_id
    id_list = end_ids if isinstance(end_ids, list) else [end_ids]
    # A config may hold one id, a list, or None, alone or within the list.
    return sorted({token for token in id_list if isinstance(token, int)})
