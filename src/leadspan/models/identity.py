"""What a model's files say without loading it: the identity of its weights, and the tokens that end its turns."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import GenerationConfig, PreTrainedModel

from leadspan.errors import ModelError
from leadspan.models.loading import load_config, name_of
from leadspan.models.reading import reading
from leadspan.models.settings import ModelSettings, Pretrained, RandomInit

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def weights_id(settings: ModelSettings) -> str:
    """SHA-256 over a model's config and weight files, in pieces; of random weights over their config and seed.

    Raises:
        ModelError: A Hub model is not in the local cache, or a directory has no weights.
    """
    digest = hashlib.sha256()
    if isinstance(settings, RandomInit):
        digest.update(settings.model_dump_json(include={"config", "seed"}).encode())
        return digest.hexdigest()[:32]
    directory = _directory(settings.path, settings.revision)
    if settings.gguf_file is not None:
        files = [directory / settings.gguf_file]
    else:
        weights = sorted(path for pattern in _WEIGHTS for path in directory.glob(pattern))
        files = [directory / "config.json", *weights] if weights else []
    if not files or not files[-1].is_file():
        names = settings.gguf_file or " or ".join(_WEIGHTS)
        raise ModelError(f"model {settings.path}: no {names} in {directory}; give a model's directory")
    if settings.quantization is not None:
        digest.update(f"{settings.quantization};".encode())
    # Names without directories: a model is the same in any directory.
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:32]


def content_id(settings: ModelSettings) -> str:
    """`weights_id` for any model that can be loaded: one on the Hub, which may not be downloaded yet, has its commit.

    Raises:
        ModelError: It cannot be read.
    """
    if not isinstance(settings, RandomInit) and not Path(settings.path).is_dir():
        return f"{settings.path}@{load_config(settings)._commit_hash}"
    return weights_id(settings)


def _directory(path: str, revision: str | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        raise ModelError(
            f"model {path}: not in the local cache, so its weights cannot be compared with those of a store; "
            "download it, or leave the teacher out of a recipe that trains from a store"
        ) from None


def end_ids_of(model: PreTrainedModel) -> list[int]:
    """Tokens with which a loaded model ends a turn, by its generation config, ascending."""
    return _ids(model.generation_config)


def load_end_ids(settings: ModelSettings) -> list[int]:
    """The same of a model's generation config, or where it has none, of its config; no weights are read.

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
