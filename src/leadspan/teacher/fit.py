"""Whether a store is what a run needs: of its data and teacher, over its vocabulary."""

from typing import Any

from leadspan.costs.flops import ModelShape, head_only
from leadspan.errors import TargetsError
from leadspan.teacher.config import Hidden
from leadspan.teacher.manifest import Manifest, check_same
from leadspan.teacher.store import TargetStore


def shared_tokens(store: TargetStore, student_rows: int, tokenizer_size: int) -> int | None:
    """How many tokens of a store and a student's head are compared; None for all of the head.

    Raises:
        TargetsError: The heads are padded differently, and the store's distributions are over the padding too.
    """
    stored = store.manifest.num_tokens
    if stored == student_rows:
        return None
    if store.is_dense or stored == tokenizer_size:
        return tokenizer_size
    raise TargetsError(
        f"{store.directory}: its distributions are over {stored} tokens, the student's head has {student_rows} rows, "
        f"the tokenizer {tokenizer_size} tokens; capture with capture.vocabulary: tokenizer (or codec hidden)"
    )


def check_same_origin(store: TargetStore, identity: dict[str, Any]) -> None:
    """Check that a store is of the data and the teacher of a run.

    Args:
        store: The store.
        identity: Fields of the manifest and the values they must have.

    Raises:
        TargetsError: Names each field that differs.
    """
    place = f"{store.directory}, captured from {store.manifest.teacher}"
    check_same(store.manifest.model_dump(mode="json"), identity, place)


def stored_head(manifest: Manifest) -> ModelShape | None:
    """Shape of the teacher's head, which training computes logits with; None for a store that needs none."""
    return head_only(manifest.hidden_size, manifest.num_tokens) if isinstance(manifest.codec, Hidden) else None
