"""A test of whether two models differ, by flipping the signs of their differences problem by problem."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from leadspan.statistics.resampling import Runs, score_tables


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Outcome of a sign-flip test.

    Attributes:
        p_value: Two-sided probability of a mean difference at least as large if signs were arbitrary.
        difference: Mean difference, first minus second.
        num_flips: Sign patterns that were counted; all of them where `is_exact`.
        is_exact: Whether every pattern was counted.
    """

    p_value: float
    difference: float
    num_flips: int
    is_exact: bool


def sign_flip_test(first: Runs, second: Runs, num_flips: int = 20_000, seed: int = 0) -> SignFlip:
    """Whether two models differ on the same problems, without any assumption on the scores' distribution.

    Under the null the difference d_p of a problem (means over runs and samples) is as likely d_p as -d_p. The p-value
    is the share of sign patterns whose mean difference is, in absolute value, at least the one seen; with random
    patterns (1 + hits) / (1 + patterns), so that it is never 0. All patterns are counted where 14 problems or fewer
    differ. The test is about these trained models: variation from seed to seed is not part of it.

    **Source**: Fisher, The Design of Experiments (1935), section 21; Phipson and Smyth, Stat. Appl. Genet. Mol. Biol.
    9 (2010), article 39, for the added one.

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    tables = score_tables({"first": first, "second": second}).values()
    means = [np.mean([np.nanmean(table, axis=1) for table in of_model], axis=0) for of_model in tables]
    gaps = means[0] - means[1]
    # Problems without a difference have the same sum under either sign.
    differing = gaps[np.abs(gaps) > 1e-12]
    is_exact = len(differing) <= 14
    if is_exact:
        patterns = [np.array(list(product((1.0, -1.0), repeat=len(differing))))]
    else:
        generator = np.random.default_rng(seed)
        # 1,000 patterns at a time bound the memory.
        sizes = [min(1000, num_flips - done) for done in range(0, num_flips, 1000)]
        patterns = (generator.choice((1.0, -1.0), (size, len(differing))) for size in sizes)
    # 1e-9 below: the pattern that was seen must count as a hit, whatever the order of summation rounds to.
    seen, hits, number = abs(differing.sum()) - 1e-9, 0, 0
    for signs in patterns:
        hits += int(np.count_nonzero(np.abs(signs @ differing) >= seen))
        number += len(signs)
    p_value = hits / number if is_exact else (1 + hits) / (1 + number)
    return SignFlip(p_value, float(gaps.mean()), number, is_exact)
