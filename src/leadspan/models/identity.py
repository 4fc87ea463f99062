"""The identity of a model's weights, from its files, without loading it."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from leadspan.errors import ModelError
from leadspan.models.loading import load_config
from leadspan.models.settings import ModelSettings, RandomInit

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
