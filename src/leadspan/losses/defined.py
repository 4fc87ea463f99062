"""Which losses and token selections are defined on what a store keeps, or a server returns, of each distribution."""

from collections.abc import Collection

from leadspan.data.supervision import ByTeacherEntropy, TokenSelection
from leadspan.errors import TargetsError
from leadspan.losses.settings import AnyDivergence, JensenShannon, LossSettings, ReverseKl, SkewReverseKl
from leadspan.teacher.settings import Hidden, KeptTargets, Sampled

# f-divergences: with the tail as one outcome they are lower bounds of the full ones (data-processing inequality).
_OVER_A_TAIL = ("forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl", "total_variation")


def check_loss(
    loss: LossSettings, selection: TokenSelection | None, kept_targets: KeptTargets | None, where: str
) -> None:
    """Refuse a loss or a token selection that is not defined on what a store keeps.

    `kept_targets` is None of a teacher that runs here, which limits nothing; `where` names store, capture or server.

    Raises:
        TargetsError: The loss's temperature is not kept, its divergence is not defined on what is kept, or positions
            are selected by an entropy that is not kept.
    """
    if kept_targets is None:
        return
    if isinstance(selection, ByTeacherEntropy) and kept_targets.engine != "transformers":
        raise TargetsError(
            f"{where}: supervision.token_selection.kind is {selection.kind}, and {kept_targets.engine} returns no "
            "entropy; run or capture the teacher with Transformers, or select by gap, divergence or student_entropy"
        )
    if isinstance(kept_targets.codec, Hidden):  # the whole distribution, at any temperature
        return
    if loss.stop == "event" and isinstance(kept_targets.codec, Sampled):
        raise TargetsError(needs_probabilities(where))
    if loss.temperature not in kept_targets.temperatures:
        remedy = f"capture with capture.temperatures: [1.0, {loss.temperature:g}]"
        if kept_targets.engine != "transformers":
            remedy = f"{kept_targets.engine} returns no others: run or capture the teacher with Transformers"
        raise TargetsError(
            f"{where}: loss.temperature is {loss.temperature:g}, and only the normalisers at "
            f"{', '.join(f'{t:g}' for t in kept_targets.temperatures)} are kept; {remedy}, or train at one of these"
        )
    try:
        check_defined(
            isinstance(kept_targets.codec, Sampled), kept_targets.temperatures, loss.divergence, loss.temperature
        )
    except TargetsError as error:
        raise TargetsError(f"{where}: {error}") from None


def needs_probabilities(where: str) -> str:
    """The message that drawn tokens do not give the probability of a stop."""
    return (
        f"loss.stop is event, and {where} keeps tokens that were drawn, not the probability of every end of a turn; "
        "take a live teacher, capture top_k, top_p or hidden targets, or set loss.stop: tokens"
    )


def check_defined(is_drawn: bool, tails: Collection[float], divergence: AnyDivergence, temperature: float) -> None:
    """Refuse a divergence that a sparse support does not define.

    `tails` are the temperatures at which the mass of the tail was kept.

    Raises:
        TargetsError: It is neither the policy gradient nor an f-divergence, it needs a tail that was not kept, or it is
            not the forward KL and the support was drawn.
    """
    if divergence.kind == "policy_gradient":  # of the drawn token, whose probability is always kept
        return
    # These are infinite where the teacher's tail is rounded to 0.
    needs_log_tail = (
        isinstance(divergence, ReverseKl)
        or (isinstance(divergence, JensenShannon) and divergence.beta == 1)
        or (isinstance(divergence, SkewReverseKl) and divergence.alpha == 0)
    )
    if is_drawn:
        if divergence.kind != "forward_kl":
            raise TargetsError(
                f"loss.divergence is {divergence.kind}, and a sampled support estimates the forward KL only; "
                "set loss.divergence={kind: forward_kl}, or capture top_k, top_p or hidden targets"
            )
    elif needs_log_tail and temperature not in tails:
        raise TargetsError(
            f"loss.divergence is {divergence.kind} at temperature {temperature:g}, which needs the logarithm of the "
            "tail's mass, and the sparse targets do not keep that mass at this temperature; "
            "set loss.temperature=1 or another divergence, or capture with this temperature in capture.temperatures"
        )
    elif divergence.kind not in _OVER_A_TAIL:
        raise TargetsError(
            f"loss.divergence is {divergence.kind}, which is not defined with the tail as one outcome; "
            f"set one of {', '.join(_OVER_A_TAIL)}, or capture hidden targets"
        )
