"""Which losses a sparse support of the teacher's distribution defines."""

from collections.abc import Collection, Sequence

from leadspan.data.selection import ByTeacherEntropy, TokenSelection
from leadspan.errors import TargetsError
from leadspan.losses.config import AnyDivergence, JensenShannon, LossSettings, ReverseKl, SkewReverseKl
from leadspan.teacher.config import Codec, Hidden, Sampled

_OVER_A_TAIL = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
)


def check_codec(
    loss: LossSettings, codec: Codec, temperatures: Sequence[float], tails: Collection[float], place: str
) -> None:
    """Refuse a loss that what a store keeps does not define.

    Args:
        loss: The loss.
        codec: What is kept of a distribution.
        temperatures: Temperatures whose normalisers are kept.
        tails: Temperatures at which the mass outside the support is kept.
        place: The store, or the settings of its capture, for errors.

    Raises:
        TargetsError: Its temperature is not kept, or its divergence is not defined.
    """
    if isinstance(codec, Hidden):
        return
    if loss.temperature not in temperatures:
        raise TargetsError(
            f"{place}: loss.temperature is {loss.temperature:g}, and the store keeps the normalisers of "
            f"{', '.join(f'{t:g}' for t in temperatures)}; capture with capture.temperatures: "
            f"[1.0, {loss.temperature:g}], or train at one of these"
        )
    try:
        check_defined(isinstance(codec, Sampled), tails, loss.divergence, loss.temperature)
    except TargetsError as error:
        raise TargetsError(f"{place}: {error}") from None


def check_selection(selection: TokenSelection | None, engine: str, place: str) -> None:
    """Refuse a token selection by what a store does not keep.

    Args:
        selection: How positions are selected.
        engine: What ran the teacher; vLLM returns no entropy.
        place: The store, or the settings of its capture, for errors.

    Raises:
        TargetsError: It is by the teacher's entropy, and that is not kept.
    """
    if isinstance(selection, ByTeacherEntropy) and engine == "vllm":
        raise TargetsError(
            f"{place}: supervision.token_selection.kind is {selection.kind}, and a store captured with vLLM keeps no "
            "entropy; capture with capture.engine: transformers, or select by gap, divergence or student_entropy"
        )


def check_defined(is_drawn: bool, tails: Collection[float], divergence: AnyDivergence, temperature: float) -> None:
    """Refuse a divergence that a sparse support does not define.

    Args:
        is_drawn: Whether the support was drawn.
        tails: Temperatures at which the mass of the tail was kept.
        divergence: The divergence.
        temperature: Its temperature.

    Raises:
        TargetsError: It is no f-divergence, it needs a tail that was not kept, or it is not the forward KL and the
            support was drawn.
    """
    if is_drawn:
        if divergence.kind != "forward_kl":
            raise TargetsError(
                f"loss.divergence is {divergence.kind}, and a sampled support estimates the forward KL only; "
                "set loss.divergence={kind: forward_kl}, or capture top_k, top_p or hidden targets"
            )
    elif _needs_log_tail(divergence) and temperature not in tails:
        raise TargetsError(
            f"loss.divergence is {divergence.kind} at temperature {temperature:g}, which asks for the logarithm of the "
            "tail's mass, and the sparse targets do not keep that mass at this temperature; "
            "set loss.temperature=1, another divergence, or capture anew, with this temperature in capture.temperatures"
        )
    elif divergence.kind not in _OVER_A_TAIL:
        raise TargetsError(
            f"loss.divergence is {divergence.kind}, which is not defined with the tail as one outcome; "
            f"set one of {', '.join(_OVER_A_TAIL)}, or capture hidden targets"
        )


def _needs_log_tail(divergence: AnyDivergence) -> bool:
    """Whether a tail of the teacher that is rounded to nothing makes the divergence infinite."""
    match divergence:
        case ReverseKl():
            return True
        case JensenShannon():
            return divergence.beta == 1
        case SkewReverseKl():
            return divergence.alpha == 0
        case _:
            return False
