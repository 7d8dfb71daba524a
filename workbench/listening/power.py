"""How many listeners a study needs, and what it can find: paired comparison of two systems, before anyone has listened.

A listener's mean score of a system over `num_items` items varies by how differently people weigh that system
(`sd_taste`) and by the noise of each rating (`sd_rating`). In a comparison of two systems both enter twice:

    sd of a listener's difference = sqrt(2 sd_taste^2 + 2 sd_rating^2 / num_items)

How strict a listener is does not matter: it cancels. The defaults are guesses; better ones come from a pilot
(`from_ratings`).
"""

import math

import numpy as np
from scipy import stats

from workbench.listening.frames import Table

SD_TASTE, SD_RATING = 6.0, 12.0
MOST_LISTENERS = 10_000


def difference_sd(num_items: int, sd_taste: float = SD_TASTE, sd_rating: float = SD_RATING) -> float:
    """Standard deviation over listeners of the difference of two systems' means."""
    if num_items < 1 or sd_taste < 0 or sd_rating < 0:
        raise ValueError(f"need items and deviations >= 0, got {num_items}, {sd_taste}, {sd_rating}")
    return math.sqrt(2 * sd_taste**2 + 2 * sd_rating**2 / num_items)


def paired_power(effect: float, num_listeners: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test; the Wilcoxon and the sign-flip test come within 5 % of it on scores.

    Args:
        effect: Difference of means in standard deviations of the listeners' differences (Cohen's d_z).
        num_listeners: At least 2.
        alpha: Level; divide it by the number of comparisons (Bonferroni, what Holm guarantees at least).
    """
    if num_listeners < 2:
        raise ValueError(f"a paired test needs two listeners, got {num_listeners}")
    df, shift = num_listeners - 1, effect * math.sqrt(num_listeners)
    critical = stats.t.ppf(1 - alpha / 2, df)
    return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))


def power(
    difference: float,
    num_listeners: int,
    num_items: int,
    *,
    num_systems: int = 2,
    alpha: float = 0.05,
    sd_taste: float = SD_TASTE,
    sd_rating: float = SD_RATING,
) -> float:
    """Chance to find a true `difference` in points between two systems, all pairs of `num_systems` being compared."""
    pairs = max(1, num_systems * (num_systems - 1) // 2)
    return paired_power(difference / difference_sd(num_items, sd_taste, sd_rating), num_listeners, alpha / pairs)


def listeners_needed(
    difference: float,
    num_items: int,
    *,
    wanted: float = 0.8,
    num_systems: int = 2,
    alpha: float = 0.05,
    sd_taste: float = SD_TASTE,
    sd_rating: float = SD_RATING,
) -> int:
    """The smallest number of listeners (after screening) with at least the wanted power.

    Raises:
        ValueError: If the difference is 0, or more than 10 000 listeners would be needed.
    """
    if difference == 0 or not 0 < wanted < 1:
        raise ValueError(f"needs a difference other than 0 and a power between 0 and 1, got {difference}, {wanted}")

    def enough(count: int) -> bool:
        reached = power(
            difference, count, num_items, num_systems=num_systems, alpha=alpha, sd_taste=sd_taste, sd_rating=sd_rating
        )
        return reached >= wanted

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > 2 * MOST_LISTENERS:
            raise ValueError(
                f"a difference of {difference:g} points needs more than {MOST_LISTENERS} listeners; "
                "more items help only against the noise of ratings"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def abx_needed(share_correct: float, *, wanted: float = 0.8, alpha: float = 0.05) -> tuple[int, int]:
    """Trials, and right answers among them, that tell `share_correct` from guessing with the wanted power.

    The first number from which the power stays (a binomial test's power goes up and down).
    """
    if not 0.5 < share_correct <= 1:
        raise ValueError(f"share_correct must be above one half, got {share_correct}")
    counts = np.arange(1, 2000)
    critical = stats.binom.isf(alpha, counts, 0.5).astype(int) + 1  # fewest right answers with p <= alpha
    reached = stats.binom.sf(critical - 1, counts, share_correct)
    if reached[-1] < wanted:
        raise ValueError(f"{share_correct:.0%} right answers need more than {counts[-1]} trials; choose a larger share")
    index = int(np.flatnonzero(reached < wanted)[-1]) + 1 if (reached < wanted).any() else 0
    return int(counts[index]), int(critical[index])


def from_ratings(ratings: Table) -> tuple[float, float]:
    """`(sd_taste, sd_rating)` of a pilot with every listener, item and system, by its mean squares."""
    table = ratings.groupby(["listener", "item", "system"])["score"].mean().unstack(["item", "system"])
    if table.isna().any().any():
        raise ValueError("the pilot has gaps; every listener must have rated every item with every system")
    shape = [ratings[name].nunique() for name in ("listener", "item", "system")]
    cube = table.sort_index(axis=1).to_numpy().reshape(shape)
    num_listeners, num_items, num_systems = shape
    if min(shape) < 2:
        raise ValueError(f"the pilot needs two listeners, items and systems at least, got {shape}")
    over_items = cube.mean(axis=1)
    taste = over_items - over_items.mean(0) - over_items.mean(1, keepdims=True) + over_items.mean()
    taste_ms = num_items * (taste**2).sum() / ((num_listeners - 1) * (num_systems - 1))
    # What is left after every two-way mean: the noise of one rating.
    rest = (
        cube
        - cube.mean(0, keepdims=True)
        - cube.mean(1, keepdims=True)
        - cube.mean(2, keepdims=True)
        + cube.mean((0, 1), keepdims=True)
        + cube.mean((0, 2), keepdims=True)
        + cube.mean((1, 2), keepdims=True)
        - cube.mean()
    )
    rest_ms = (rest**2).sum() / ((num_listeners - 1) * (num_items - 1) * (num_systems - 1))
    return math.sqrt(max(0.0, taste_ms - rest_ms) / num_items), math.sqrt(rest_ms)
