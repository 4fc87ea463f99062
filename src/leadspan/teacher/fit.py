"""Whether a store is what a run needs: of its data and teacher, over its vocabulary."""

from typing import Any

from leadspan.errors import TargetsError
from leadspan.teacher.manifest import check_same
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
