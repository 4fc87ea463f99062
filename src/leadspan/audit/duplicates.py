"""Exact and near duplicates: equal token ids, and MinHash with locality-sensitive hashing.

Source: Broder, On the resemblance and containment of documents (1997); shingles of five words (of five letters in
scripts without spaces) and a Jaccard similarity of 0.8 as in Lee et al., arXiv 2107.06499. Hashing and look-up are
datasketch's.
"""

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

from leadspan.audit.findings import Duplicates
from leadspan.audit.overlap import ngrams
from leadspan.data.questions import words

# 128 permutations estimate a similarity to about 0.04 (standard error of a mean of 128 matches at 0.8).
NUM_PERM = 128
SHINGLE_WORDS = 5
_SCHEME = "affine32"
# Its permutations are drawn once, for all signatures.
_EMPTY = MinHash(num_perm=NUM_PERM, scheme=_SCHEME)
_MOST_EXAMPLES = 5


def signature(text: str) -> np.ndarray:
    """MinHash values of the word 5-grams of a text (of all its words where it has fewer), shape [128]."""
    tokens = words(text)
    shingles = set(ngrams(tokens, min(SHINGLE_WORDS, max(1, len(tokens)))))
    values = _EMPTY.copy()
    # Sorted, so that the order of a set does not matter.
    values.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return values.hashvalues


def find_duplicates(
    example_ids: Sequence[str], questions: Sequence[str], signatures: Sequence[np.ndarray], locations: Sequence[str],
    threshold: float,
) -> Duplicates:  # fmt: skip
    """Count traces that repeat an earlier one; of a group of equals all but the first are counted.

    Args:
        example_ids: Hash of the token ids of each trace.
        questions: Hash of its question.
        signatures: MinHash values of its chain of thought and answer.
        locations: Its file and line.
        threshold: Estimated Jaccard similarity from which two are near duplicates.
    """
    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERM)
    hashes: list[MinHash] = []
    exact: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    num_exact = num_near = 0
    for i, example_id in enumerate(example_ids):
        minhash = MinHash(num_perm=NUM_PERM, hashvalues=signatures[i], permutations=_EMPTY.permutations, scheme=_SCHEME)
        hashes.append(minhash)
        # An exact copy is no near duplicate too, so it is neither looked up nor indexed.
        if example_id in exact:
            num_exact += 1
            pairs.append((locations[i], locations[exact[example_id]]))
            continue
        exact[example_id] = i
        # The index returns candidates; the estimated similarity decides.
        earlier = [int(str(key)) for key in index.query(minhash) if minhash.jaccard(hashes[int(str(key))]) >= threshold]
        if earlier:
            num_near += 1
            pairs.append((locations[i], locations[min(earlier)]))
        index.insert(str(i), minhash)
    return Duplicates(
        num_questions=len(set(questions)), num_exact=num_exact, num_near=num_near, threshold=threshold,
        examples=pairs[:_MOST_EXAMPLES],
    )  # fmt: skip
