"""From logits to what a store keeps of a position, and back. Pure functions on tensors and arrays.

Legend: `N` positions, `V` vocabulary, `k` entries of a position, `E` entries of all positions one after the other.

A packed entry is one unsigned 32-bit integer, `id << 14 | code`, with `code = round(16383 sqrt(-log p / 128))`: steps
are finest near `log p = 0`, where the mass is (1.4e-4 nats at -0.01, 1e-3 at -0.5, 4.4e-3 at -10). Below -128 nats a
log-probability is kept as -128, less than the smallest float32. Decoded log-probabilities of a head of the distribution
are shifted by one constant per position so that their mass is 1 minus the outside mass, which is kept in float32.
"""

import math

import numpy as np
import torch
from jaxtyping import Float

from leadspan.errors import TargetsError
from leadspan.models.heads import BLOCK, in_blocks, tokens_at
from leadspan.teacher.settings import Precision, Sampled, SparseCodec, TopK, TopP

Arrays = dict[str, np.ndarray]
# 18 bits of id reach 262,144 tokens; with 14 bits of code an entry fills an unsigned 32-bit integer.
_ID_BITS, _CODE_BITS, _RANGE = 18, 14, 128.0
_TOP_CODE = (1 << _CODE_BITS) - 1
# All 16,384 values that a code can stand for, so that decoding is one look-up.
_LOG_PROBS = -((np.arange(_TOP_CODE + 1) / _TOP_CODE) ** 2 * _RANGE).astype(np.float32)


def normalise(logits: Float[torch.Tensor, "N V"]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masses of a distribution, their sum, and its normaliser.

    The masses are PyTorch's softmax, which on a CPU takes half the time of `exp`. It does not add in cascade and is off
    by a factor, 1.5e-5 over 151,936 tokens; `sum` does, so that dividing by it takes the factor off.

    Returns:
        Masses up to that factor, [N, V]; their sum, in float64, [N]; `log sum exp z`, [N].
    """
    masses = torch.softmax(logits, -1)
    total = masses.sum(-1).double()
    # The largest logit has the largest mass, and `log sum exp z = z - log p` for any token.
    return masses, total, (logits.amax(-1) + (total / masses.amax(-1)).log()).to(logits.dtype)


def entropies(
    logits: Float[torch.Tensor, "N V"], masses: Float[torch.Tensor, "N V"], total: torch.Tensor, logsumexp: torch.Tensor
) -> torch.Tensor:
    """`-sum p log p` in nats, [N], from what `normalise` returns."""
    if logits.is_cuda:
        weighted = torch.bmm(masses[:, None, :], logits[:, :, None])[:, 0, 0]  # reads both once
    else:  # on a CPU a batch of such products takes five times as long as one after the other
        weighted = torch.stack([torch.dot(*row) for row in zip(masses, logits, strict=True)])
    return logsumexp - weighted / total


def encode(
    logits: Float[torch.Tensor, "N V"],
    labels: torch.Tensor,
    codec: SparseCodec,
    temperatures: list[float],
    offsets: Float[torch.Tensor, "N"] | None = None,  # a dimension name
) -> Arrays:
    """Encode the distributions of some positions.

    Args:
        logits: The teacher's logits, float32 or wider.
        labels: The next token of each position, whose log-probability is kept.
        codec: What to keep.
        temperatures: Temperatures whose `logsumexp(z / T)` is kept, and the outside mass of `top_k` and `top_p`.
        offsets: For `sampled`: one uniform number in [0, 1) per position.

    Returns:
        Arrays of one value per position (`outside`, `entropy`, `label_log_prob`, `logsumexp_T`, `outside_T`, and
        `num_entries` where supports differ in size), and of one value per entry (`entries`, or `token_ids` and
        `log_probs`; `counts`).

    Raises:
        TargetsError: A distribution is not finite, or an id does not fit a packed entry.
    """
    masses, total, logsumexp = normalise(logits)
    entropy = entropies(logits, masses, total, logsumexp)
    if not bool(torch.isfinite(entropy).all()):
        raise TargetsError("the teacher's logits are not finite; capture in float32, or look at its weights")
    arrays: Arrays = {}
    if drawn := isinstance(codec, Sampled):
        assert offsets is not None, "drawn supports need uniform numbers"
        ids, counts = _draw(masses, codec.num_samples, offsets)
        keep = counts > 0
        arrays["counts"] = counts[keep].to(torch.uint8).cpu().numpy()
    else:
        ids = _largest(logits, min(codec.k if isinstance(codec, TopK) else codec.max_tokens, logits.shape[1]))
        keep = torch.ones_like(ids, dtype=torch.bool)
        if isinstance(codec, TopP):
            mass = (masses.gather(1, ids) / total[:, None]).cumsum(1)
            # A token is kept while the mass *before* it is below `p`, so that the kept mass reaches `p`.
            keep[:, 1:] = mass[:, :-1] < codec.p
    if not isinstance(codec, TopK):
        # Top-k has the same number everywhere and stores none.
        arrays["num_entries"] = keep.sum(1).to(torch.int32).cpu().numpy().astype(np.uint16)
    # Rounding may lift the log-probability of an almost certain token above 0, which a packed entry cannot hold.
    log_probs = (logits.gather(1, ids) - logsumexp[:, None]).clamp_(max=0.0)
    arrays |= pack_entries(ids[keep].cpu().numpy(), log_probs[keep].float().cpu().numpy(), codec.precision)
    arrays["outside"] = _outside(masses, total, ids, keep, repeats=drawn)
    arrays["entropy"] = entropy.to(torch.float16).cpu().numpy()
    arrays["label_log_prob"] = (logits.gather(1, labels[:, None])[:, 0] - logsumexp).float().cpu().numpy()
    for temperature in temperatures:
        if temperature == 1.0:
            arrays[logsumexp_column(1.0)] = logsumexp.float().cpu().numpy()
            continue
        masses, total, normaliser = normalise(logits / temperature)
        arrays[logsumexp_column(temperature)] = normaliser.float().cpu().numpy()
        if not drawn:
            arrays[outside_column(temperature)] = _outside(masses, total, ids, keep, repeats=False)
    return arrays


def logsumexp_column(temperature: float) -> str:
    """Name of the column of a temperature's normalisers."""
    return f"logsumexp_{temperature:g}"


def outside_column(temperature: float) -> str:
    """Name of the column of the mass outside the support at a temperature."""
    return "outside" if temperature == 1.0 else f"outside_{temperature:g}"


def pack_entries(ids: np.ndarray, log_probs: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """Entries in the chosen precision.

    Raises:
        TargetsError: An id has more than 18 bits.
    """
    if precision == "float32":
        return {"token_ids": ids.astype(np.uint32), "log_probs": log_probs.astype(np.float32)}
    if len(ids) and int(ids.max()) >> _ID_BITS:
        raise TargetsError(
            f"token id {int(ids.max())} does not fit the {_ID_BITS} bits of a packed entry; "
            "set capture.codec.precision: float32"
        )
    # The square root spends codes where the mass is: near log p = 0.
    code = np.rint(np.sqrt(np.minimum(-log_probs, _RANGE) / _RANGE) * _TOP_CODE).astype(np.uint32)
    return {"entries": ids.astype(np.uint32) << np.uint32(_CODE_BITS) | code}


def decode(arrays: Arrays, codec: SparseCodec) -> Arrays:
    """Entries of some positions as rectangles: `token_ids`, `log_probs` and, for drawn supports, `sample_weights`.

    Args:
        arrays: Columns as `encode` returns them.
        codec: The codec that made them.

    Returns:
        Arrays [N, k]; unused slots have id 0, log-probability -inf and weight 0.
    """
    num_positions = len(arrays["label_log_prob"])
    if "entries" in arrays:
        entries = arrays["entries"]
        flat_ids, flat = (entries >> np.uint32(_CODE_BITS)).astype(np.int64), _LOG_PROBS[entries & np.uint32(_TOP_CODE)]
    else:
        flat_ids, flat = arrays["token_ids"].astype(np.int64), arrays["log_probs"]
    if isinstance(codec, TopK):
        shape = (num_positions, len(flat) // max(1, num_positions))
        ids, log_probs, counts = flat_ids.reshape(shape), flat.reshape(shape), None
    else:
        sizes = arrays["num_entries"].astype(np.int64)
        used = np.arange(sizes.max(initial=1)) < sizes[:, None]
        ids, log_probs = np.zeros(used.shape, dtype=np.int64), np.full(used.shape, -np.inf, dtype=np.float32)
        ids[used], log_probs[used] = flat_ids, flat
        counts = np.zeros(used.shape, dtype=np.float32)
        if "counts" in arrays:
            counts[used] = arrays["counts"]
    if isinstance(codec, Sampled):
        assert counts is not None, "drawn supports have counts"
        return {"token_ids": ids, "log_probs": log_probs, "sample_weights": counts / codec.num_samples}
    if codec.precision == "packed":
        # Rounded entries: each row is shifted so that its mass is exactly `1 - outside`. A row without mass stays.
        inside = np.exp(log_probs).sum(1, dtype=np.float64)
        target_mass = 1.0 - arrays["outside"].astype(np.float64)
        shift = np.where(target_mass > 0, np.log(np.maximum(target_mass, np.finfo(np.float64).tiny) / inside), 0.0)
        log_probs = np.minimum(log_probs + shift.astype(np.float32)[:, None], np.float32(0.0))
    return {"token_ids": ids, "log_probs": log_probs}


def _largest(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the `k` largest logits, largest first: the `k` blocks of 64 with the largest maxima hold them."""
    num_tokens = logits.shape[1]
    # So many blocks would be candidates that a plain top-k is faster.
    if k * BLOCK * 2 > num_tokens:
        return logits.topk(k, dim=-1).indices
    blocks = in_blocks(logits, -math.inf)
    best = blocks.amax(-1).topk(k, dim=-1).indices
    candidates = blocks.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    index = candidates.topk(k, dim=-1).indices
    return best.gather(1, index // BLOCK) * BLOCK + index % BLOCK


def _draw(masses: torch.Tensor, number: int, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Systematic sampling: the tokens under the points `(i + offset) / n` of the cumulative distribution.

    Returns:
        Ids [N, n], ascending, and counts [N, n]: the whole count at a token's last draw, 0 at its others.
    """
    steps = torch.arange(number, device=masses.device, dtype=torch.float64)
    # Equal spacing gives counts of floor or ceil of `n p`: less variance than independent draws, and still unbiased.
    ids = tokens_at(masses, (steps + offsets.to(steps)[:, None]) / number)
    is_last = torch.ones_like(ids, dtype=torch.bool)
    is_last[:, :-1] = ids[:, 1:] != ids[:, :-1]
    # Points ascend, so equal ids are neighbours: a count is the distance to the last draw of the token before.
    last_indices = torch.where(is_last, torch.arange(1, number + 1, device=ids.device), 0)
    previous = torch.cummax(torch.nn.functional.pad(last_indices, (1, 0))[:, :-1], dim=1).values
    return ids, torch.where(is_last, last_indices - previous, 0)


def _outside(
    masses: torch.Tensor, total: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor, repeats: bool
) -> np.ndarray:
    """Mass of the tokens that are not kept; summed over them where it is too small for `1 - inside`."""
    inside = torch.where(keep, masses.gather(1, ids), 0.0).sum(1, dtype=torch.float64)
    outside = 1.0 - inside / total
    # 1 - inside has an error of about 1e-7: below 1e-3 that shows in the fourth digit, so the rest is summed itself.
    small = outside < 1e-3
    if bool(small.any()):
        rest = masses[small]
        remainder = (
            torch.zeros_like(rest[:, :1]) if repeats else torch.where(keep[small], 0.0, rest.gather(1, ids[small]))
        )
        rest.scatter_(1, ids[small], remainder.expand_as(ids[small]))
        outside[small] = rest.sum(1, dtype=torch.float64) / total[small]
    return outside.clamp_(min=0.0).float().cpu().numpy()
