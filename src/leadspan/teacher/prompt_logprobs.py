"""Log-probabilities of a prompt, as engines return them: the likeliest tokens of every position, nothing of the rest.

Position `t` of a sequence of `T` tokens has seen tokens `0 .. t` and is about token `t + 1`, so there are `T - 1` of
them. Of `log p` at temperature 1 no entropy follows, and no normaliser of another temperature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leadspan.errors import TargetsError
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.entries import pack_entries
from leadspan.teacher.settings import Precision

PromptLogprobs = Sequence[Mapping[int, float] | None]
"""Nothing for the first token, then for each token of the prompt a mapping from token id to log-probability, of the
likeliest tokens and of the token itself."""

# Precision of 1 minus the sum of float32 probabilities; a tail of 0 would make divergences infinite that need its
# logarithm.
_LEAST_TAIL = 2.0**-24
_MASS_TOLERANCE = 1e-3  # log-probabilities that a server computed in bfloat16 may add up to a little more than 1


@dataclass(frozen=True, slots=True)
class Support:
    """The likeliest tokens at every position of one sequence.

    Attributes:
        token_ids: The likeliest tokens by falling log-probability, int64, [T - 1, k]; then `end_ids`, where given.
        log_probs: Theirs, float32; at most 0, and -inf of an end token that is unknown or among the likeliest.
        outside: Mass of all other tokens, float32, [T - 1]; at least 2^-24.
        label_log_probs: Log-probability of the sequence's own next token, float32, [T - 1].
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    outside: np.ndarray
    label_log_probs: np.ndarray

    def columns(self, precision: Precision) -> Arrays:
        """The columns of a store with codec `top_k`."""
        packed: dict[str, Any] = pack_entries(self.token_ids.reshape(-1), self.log_probs.reshape(-1), precision)
        return packed | {"outside": self.outside, "label_log_prob": self.label_log_probs}


def read_support(
    answer: PromptLogprobs | None, input_ids: np.ndarray, k: int, who: str, setting: str, end_ids: Sequence[int] = ()
) -> Support:
    """The `k` likeliest tokens of every position, and what the answer says of some others.

    Args:
        answer: What an engine returned for the sequence.
        input_ids: The sequence, [T].
        k: Tokens requested.
        who: The engine, for errors.
        setting: The setting that says how many tokens are requested.
        end_ids: Tokens to keep besides, where the answer has them.

    Raises:
        TargetsError: The answer is of another length or of other tokens, has fewer than `k`, or holds no
            log-probabilities or ids that no token has.
    """
    if answer is None or len(answer) != len(input_ids):
        num_returned = "none" if answer is None else len(answer)
        raise TargetsError(f"{who} returned {num_returned} prompt log-probabilities for {len(input_ids)} tokens")
    shape = (len(input_ids) - 1, k + len(end_ids))
    ids, log_probs, labels = np.empty(shape, np.int64), np.empty(shape), np.empty(shape[0])
    ids[:, k:] = end_ids
    # The first token has no log-probability, since nothing precedes it.
    for t, (entry, token) in enumerate(zip(answer[1:], input_ids[1:].tolist(), strict=True)):
        # Servers add the prompt's own token to the likeliest; it is cut off where it is not among them.
        likeliest = sorted(entry.items(), key=lambda item: -item[1])[:k] if entry else []
        if len(likeliest) < k or entry is None or token not in entry:
            has = "with" if entry and token in entry else "without"
            remedy = f"it must return them all: lower {setting} or raise what the server allows (vLLM: --max-logprobs)"
            if len(likeliest) == k:  # it always returns the text's own token
                remedy = "it answers for another text: look at what lies between, and at what it serves"
            raise TargetsError(
                f"{who} returned {len(likeliest)} of {k} tokens at position {t}, {has} the data's token {token}; "
                f"{remedy}"
            )
        tokens, log_probs[t, :k] = zip(*likeliest, strict=True)
        if not 0 <= min(tokens) <= max(tokens) < 2**31:
            raise TargetsError(
                f"{who} returned tokens {min(tokens)} to {max(tokens)} at position {t}: no ids of tokens"
            )
        ids[t, :k] = tokens
        log_probs[t, k:] = [-np.inf if i in ids[t, :k] else entry.get(i, -np.inf) for i in end_ids]
        labels[t] = entry[token]
    mass = np.exp(log_probs).sum(1)
    is_wrong = ~np.isfinite(mass) | (mass > 1 + _MASS_TOLERANCE) | ~np.isfinite(labels)
    if is_wrong.any():
        t = int(is_wrong.argmax())
        raise TargetsError(
            f"{who} returned no log-probabilities at position {t}: their exponentials add up to {mass[t]:.6g} "
            f"(that of the data's token: {labels[t]:.6g}); look at its weights, and at its --logprobs-mode"
        )
    return Support(
        token_ids=ids,
        log_probs=np.minimum(log_probs, 0.0).astype(np.float32),
        outside=np.clip(1.0 - mass, _LEAST_TAIL, 1.0).astype(np.float32),
        label_log_probs=np.minimum(labels, 0.0).astype(np.float32),
    )
