"""Settings of the loss, and which of them are defined on what a store keeps, or a server returns, of a distribution."""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from leadspan.data.supervision import ByTeacherEntropy, TokenSelection
from leadspan.errors import TargetsError
from leadspan.faults import Rule
from leadspan.settings import Settings
from leadspan.teacher.settings import Hidden, KeptTargets, Sampled

# f-divergences: with the tail as one outcome they are lower bounds of the full ones (data-processing inequality).
_OVER_A_TAIL = ("forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl", "total_variation")


def _clear_of_zero(value: float) -> float:
    # What is left of two nearly equal numbers is in proportion to the value: float32 leaves it four digits at 0.001,
    # none at 1e-7.
    if 0 < value < 0.001:
        raise ValueError("too near to 0 for the digits of float32; give 0, which is defined by its limit, or 0.001")
    return value


def _clear_of_limits(value: float) -> float:
    if 0.999 < value < 1:
        raise ValueError("too near to 1 for the digits of float32; give 1, which is defined by its limit, or 0.999")
    return _clear_of_zero(value)


Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_clear_of_limits)]
Exponent = Annotated[float, Field(ge=0), AfterValidator(_clear_of_zero)]
# Nearer to 1 the mixture is the distribution itself to the digits of float32.
SkewShare = Annotated[float, Field(ge=0, le=0.999)]


class ForwardKl(Settings):
    """`KL(p || q)`, the teacher's side first: covers what the teacher does (Hinton et al., arXiv 1503.02531)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKl(Settings):
    """`KL(q || p)`, the student's side first: seeks the teacher's modes (Gu et al., arXiv 2306.08543)."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JensenShannon(Settings):
    """Generalised Jensen-Shannon divergence (Agarwal et al., arXiv 2306.13649)."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: Share = 0.5
    """Weight of the teacher in the mixture; 0 is defined as forward, 1 as reverse KL."""


class SkewForwardKl(Settings):
    """`KL(p || alpha p + (1 - alpha) q)` (Ko et al., arXiv 2402.03898)."""

    kind: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: SkewShare = 0.1
    """Share of the teacher in the mixture."""


class SkewReverseKl(Settings):
    """`KL(q || alpha q + (1 - alpha) p)` (Ko et al., arXiv 2402.03898)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: SkewShare = 0.1
    """Share of the student in the mixture."""


class TotalVariation(Settings):
    """Half the absolute difference (Wen et al., arXiv 2307.15190)."""

    kind: Literal["total_variation"] = "total_variation"


class AlphaBeta(Settings):
    """The alpha-beta divergence (Wang et al., arXiv 2505.04560): (1, 0) is forward, (0, 1) reverse KL."""

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: Exponent = 0.2
    """Exponent of the teacher."""
    beta: Exponent = 0.7
    """Exponent of the student."""

    def conflicts(self) -> Iterator[Rule]:
        """The divergence is defined."""
        if self.alpha + self.beta == 0:
            yield ("alpha", "beta"), "alpha and beta are both 0; at least one of them must be above 0"


class AdaptiveKl(Settings):
    """Forward and reverse KL, weighed by where the two distributions differ (Wu et al., arXiv 2404.02657)."""

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    mass: float = Field(default=0.5, gt=0, lt=1)
    """Cumulative probability of the teacher's head."""


class PolicyGradient(Settings):
    """The reverse KL by the drawn token alone, for teachers that return one number per token (REINFORCE).

    Its gradient is that of `-A log q[y]` at the drawn token `y`, with the advantage `A = log p[y] - log q[y]` held
    constant; over many draws the mean of the gradient is the gradient of `KL(q || p)`, and the mean of the value is
    `KL(q || p)`.
    """

    kind: Literal["policy_gradient"] = "policy_gradient"


# Functions of the two distributions; the policy gradient is one of a drawn token.
_Exact = ForwardKl | ReverseKl | JensenShannon | SkewForwardKl | SkewReverseKl | TotalVariation | AlphaBeta | AdaptiveKl
AnyDivergence = Annotated[_Exact | PolicyGradient, Field(discriminator="kind")]


class LossSettings(Settings):
    """`(1 - kl_weight) * CE + kl_weight * temperature^2 * D(teacher, student)` at every weighted position.

    Source: Chen et al., arXiv 2512.21002 (kl_weight 0.5, temperature 1, forward KL); the factor `temperature^2` is
    Hinton et al., arXiv 1503.02531, section 2.
    """

    kl_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's distribution; the rest goes to the tokens of the trace. 0 needs no teacher."""
    divergence: AnyDivergence = ForwardKl()
    """How the student is compared with the teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of both models in the divergence; the cross-entropy is always at temperature 1."""
    stop: Literal["tokens", "event"] | None = None
    """How the divergence treats tokens that end a turn. `tokens`: each token by itself. `event`: all tokens that end a
    turn for student, teacher or data are one outcome, so that a teacher whose end-of-turn token is not the student's
    does not teach the student never to stop. The cross-entropy keeps the data's token. `event` needs a teacher that the
    recipe names; where it gives a few tokens of each distribution and lacks one of these, they and its tail are one
    outcome. Absent: `event` with a rollout, else `tokens`."""
    ratio_cap: float = Field(default=2.0, ge=1)
    """Upper limit of the ratio that weighs positions of older rollouts: the student's probability of the drawn tokens
    now, divided by that at the time of the draw (`rollout.steps_per_draw`)."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Positions projected to the vocabulary at a time; chosen for the device when absent."""
    compiled: bool | None = None
    """Compile the arithmetic on the logits (the same figures to rounding, several times faster); chosen by the size of
    the vocabulary and the presence of a compiler when absent."""

    def conflicts(self) -> Iterator[Rule]:
        """A policy gradient is at temperature 1, where the probabilities of drawn tokens are stored."""
        if isinstance(self.divergence, PolicyGradient) and self.temperature != 1:
            text = (
                f"divergence is policy_gradient at temperature {self.temperature:g}, and its probabilities are those "
                "of temperature 1: set temperature: 1"
            )
            yield ("divergence", "temperature"), text


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
