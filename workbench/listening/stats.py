"""Results of a listening test: summaries, intervals and tests, as pure functions of a table of ratings.

Ratings are a table with the columns listener, item, system, score. Listeners are what varies: intervals and tests
resample or compare listeners, never single ratings, which are not independent. Needs pandas, and statsmodels for
`mixed_model` (extra `listening`).
"""

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from workbench.listening.frames import Table

NO_ANSWER = "no answer"
NUM_DRAWS = 10_000  # BS.1534-3, attachment 3


def hinges(values: Any) -> tuple[float, float, float]:
    """Lower hinge, median and upper hinge of Tukey, the median in both halves when n is odd (BS.1534-3, section 9)."""
    ordered = np.sort(np.asarray(values, float))
    half = (len(ordered) + 1) // 2
    return float(np.median(ordered[:half])), float(np.median(ordered)), float(np.median(ordered[-half:]))


def outliers(values: Any) -> np.ndarray:
    """Which values lie more than 1.5 IQR beyond the hinges. To be removed only for a recorded cause (BS.1534-3)."""
    low, _, high = hinges(values)
    reach = 1.5 * (high - low)
    array = np.asarray(values, float)
    return (array < low - reach) | (array > high + reach)


def table_of(ratings: Table) -> Table:
    """Mean score of every listener (row) for every system (column), over items; nan where someone never rated one."""
    return ratings.pivot_table(index="listener", columns="system", values="score", aggfunc="mean")


def summary(ratings: Table, *, confidence: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0) -> Table:
    """One row a system, best median first.

    Columns: system, num_listeners, num_ratings, median, q1, q3, iqr, mean, low, high. Medians and hinges are over all
    ratings; the interval of the mean comes from a bootstrap over listeners.
    """
    import pandas as pd

    rows = []
    for system, group in ratings.groupby("system"):
        q1, median, q3 = hinges(group["score"])
        low, high = bootstrap_interval(group, confidence=confidence, num_draws=num_draws, seed=seed)
        rows.append(
            {
                "system": system,
                "num_listeners": group["listener"].nunique(),
                "num_ratings": len(group),
                "median": median,
                "q1": q1,
                "q3": q3,
                "iqr": q3 - q1,
                "mean": float(group.groupby("listener")["score"].mean().mean()),
                "low": low,
                "high": high,
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["median", "mean"], ascending=False, ignore_index=True) if rows else table


def bootstrap_interval(
    ratings: Table, *, confidence: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over listeners' means, listeners drawn with replacement; nan for one listener."""
    means = ratings.groupby("listener")["score"].mean().to_numpy()
    if len(means) < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    draws = means[generator.integers(0, len(means), (num_draws, len(means)))].mean(axis=1)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def permutation_test(differences: Any, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> float:
    """Two-sided p value of paired differences under random signs (BS.1534-3, attachment 3).

    Exact over all 2^n signs where that is no more than `num_draws`, otherwise drawn; a draw counts itself, so p > 0.
    """
    values = np.asarray(differences, float)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return math.nan
    observed = abs(values.sum())
    tolerance = 1e-9 * max(1.0, np.abs(values).sum())
    if 2 ** len(values) <= max(num_draws, 2**15):
        signs = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1) * 2 - 1
        return float((np.abs(signs @ values) >= observed - tolerance).mean())
    signs = np.random.default_rng(seed).choice([-1, 1], (num_draws, len(values)))
    return float((1 + (np.abs(signs @ values) >= observed - tolerance).sum()) / (num_draws + 1))


def holm(p_values: Any) -> np.ndarray:
    """P values adjusted for all being looked at (Holm 1979); nan stays nan and does not count."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    order = [index for index in np.argsort(p) if not np.isnan(p[index])]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def friedman(table: Any) -> dict[str, float]:
    """Friedman's test over listeners (rows) and systems (columns), ties corrected; listeners with a gap are left out.

    Returns:
        statistic (chi squared), df, p, kendalls_w (0 no agreement, 1 the same order by all), num_listeners.
    """
    values = np.asarray(table, float)
    values = values[~np.isnan(values).any(axis=1)]
    num_listeners, num_systems = values.shape
    if num_systems < 3 or num_listeners < 2:
        return {"statistic": math.nan, "df": num_systems - 1, "p": math.nan, "kendalls_w": math.nan} | {
            "num_listeners": num_listeners
        }
    result = scipy_stats.friedmanchisquare(*values.T)
    return {
        "statistic": float(result.statistic),
        "df": num_systems - 1,
        "p": float(result.pvalue),
        "kendalls_w": float(result.statistic) / (num_listeners * (num_systems - 1)),
        "num_listeners": num_listeners,
    }


def compare_pairs(table: Table, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Table:
    """Every pair of systems, over listeners who rated both.

    Columns: a, b, num_listeners, difference (mean of a - b), wilcoxon_p, wilcoxon_holm, permutation_p,
    permutation_holm, effect (matched rank-biserial correlation, 1: everyone puts a above b).
    """
    import pandas as pd

    rows = []
    for a, b in itertools.combinations(table.columns, 2):
        difference = (table[a] - table[b]).dropna().to_numpy()
        moved = difference[difference != 0]
        ranks = scipy_stats.rankdata(np.abs(moved))
        rows.append(
            {
                "a": a,
                "b": b,
                "num_listeners": len(difference),
                "difference": float(difference.mean()) if len(difference) else math.nan,
                "wilcoxon_p": float(np.asarray(scipy_stats.wilcoxon(difference))[1]) if len(moved) else math.nan,
                "permutation_p": permutation_test(difference, num_draws=num_draws, seed=seed),
                "effect": float((np.sign(moved) * ranks).sum() / ranks.sum()) if len(moved) else 0.0,
            }
        )
    result = pd.DataFrame(rows)
    if rows:
        result["wilcoxon_holm"] = holm(result["wilcoxon_p"])
        result["permutation_holm"] = holm(result["permutation_p"])
    return result


def repeated_measures_anova(table: Any) -> dict[str, float]:
    """One-way repeated-measures ANOVA over listeners (rows) and systems (columns), Huynh-Feldt corrected.

    Source: BS.1534-3, attachment 4.

    Returns:
        f, df1, df2 (uncorrected), p (uncorrected), epsilon (Huynh-Feldt, at most 1), greenhouse_geisser, p_corrected.
    """
    values = np.asarray(table, float)
    values = values[~np.isnan(values).any(axis=1)]
    n, k = values.shape
    if k < 2 or n < 2:
        raise ValueError(f"needs two systems and two listeners who rated all of them, got {k} and {n}")
    mean = values.mean()
    between = n * ((values.mean(axis=0) - mean) ** 2).sum()
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + mean
    df1, df2 = k - 1, (k - 1) * (n - 1)
    f = float(between / df1 / ((residual**2).sum() / df2))
    covariance = np.cov(residual, rowvar=False)  # of double-centred data, so its eigenvalues are those that count
    geisser = float(np.trace(covariance) ** 2 / (df1 * (covariance**2).sum()))
    epsilon = min(1.0, (n * df1 * geisser - 2) / (df1 * (n - 1 - df1 * geisser))) if n - 1 > df1 * geisser else 1.0
    return {
        "f": f,
        "df1": df1,
        "df2": df2,
        "p": float(scipy_stats.f.sf(f, df1, df2)),
        "epsilon": float(epsilon),
        "greenhouse_geisser": geisser,
        "p_corrected": float(scipy_stats.f.sf(f, df1 * epsilon, df2 * epsilon)),
    }


def mixed_model(ratings: Table, baseline: str) -> dict[str, Any]:
    """Score ~ system + (1 | listener) + (1 | item), by restricted maximum likelihood.

    It takes listeners and items as drawn from larger crowds, and copes with ratings that are missing. It holds that
    listeners differ in how strict they are and not in what they prefer; where they do, its intervals are too narrow,
    and those of `bootstrap_interval` and the permutation test are not.

    Returns:
        baseline; effects: system -> {difference from the baseline, se, low, high, p}; sd_listener, sd_item,
        sd_residual; num_ratings.

    Raises:
        ValueError: If the baseline is not there, or there is less than two of something.
        ImportError: If statsmodels is not installed.
    """
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
        from statsmodels.tools.sm_exceptions import ConvergenceWarning
    except ImportError:
        raise ImportError("the mixed model needs statsmodels: pip install 'taae-workbench[listening]'") from None
    systems = sorted(set(ratings["system"]))
    if baseline not in systems:
        raise ValueError(f"no ratings of the baseline {baseline!r}; there are {', '.join(systems)}")
    others = [system for system in systems if system != baseline]
    if not others or ratings["listener"].nunique() < 2 or ratings["item"].nunique() < 2:
        raise ValueError("a mixed model needs two systems, two listeners and two items at least")
    listeners, items = (_indicators(ratings[name], sorted(set(ratings[name]))) for name in ("listener", "item"))
    columns = [[str(index) for index in range(matrix.shape[1])] for matrix in (listeners, items)]
    crossed = VCSpec(["listener", "item"], [[columns[0]], [columns[1]]], [[listeners], [items]])
    fixed = np.column_stack([np.ones(len(ratings)), _indicators(ratings["system"], others)])
    model = MixedLM(ratings["score"].to_numpy(float), fixed, np.zeros(len(ratings)), exog_vc=crossed)
    with warnings.catch_warnings():
        # A variance of zero lies on the edge of what is allowed; statsmodels warns about it, and the estimate stands.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        fit = model.fit(reml=True, method=["lbfgs", "powell"])
    if not np.isfinite(fit.scale) or fit.scale <= 0:
        raise RuntimeError("the mixed model found no solution; use the permutation tests, or ask for more ratings")
    names = list(model.exog_vc.names)
    variance = {name: float(value) for name, value in zip(names, fit.vcomp, strict=True)}
    effects = {}
    for index, system in enumerate(others, start=1):
        estimate, se = float(fit.fe_params[index]), float(fit.bse_fe[index])
        effects[system] = {
            "difference": estimate,
            "se": se,
            "low": estimate - 1.96 * se,
            "high": estimate + 1.96 * se,
            "p": float(2 * scipy_stats.norm.sf(abs(estimate) / se)),
        }
    return {
        "baseline": baseline,
        "effects": effects,
        "sd_listener": math.sqrt(max(0.0, variance["listener"])),
        "sd_item": math.sqrt(max(0.0, variance["item"])),
        "sd_residual": math.sqrt(float(fit.scale)),
        "num_ratings": len(ratings),
    }


def abx_test(num_correct: int, num_trials: int, *, confidence: float = 0.95) -> dict[str, float]:
    """Could it be guessing? One-sided exact binomial test against one half, with a Clopper-Pearson interval.

    Returns:
        proportion, p, low, high. Pooling listeners tests whether anyone hears a difference, not how many do.
    """
    if not 0 <= num_correct <= num_trials or num_trials < 1:
        raise ValueError(f"need 0 <= correct <= trials and a trial, got {num_correct} of {num_trials}")
    result = scipy_stats.binomtest(num_correct, num_trials, 0.5, alternative="greater")
    interval = scipy_stats.binomtest(num_correct, num_trials, 0.5).proportion_ci(confidence, method="exact")
    return {
        "num_correct": num_correct,
        "num_trials": num_trials,
        "proportion": num_correct / num_trials,
        "p": float(result.pvalue),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def preference_test(num_a: int, num_b: int, num_none: int = 0, *, confidence: float = 0.95) -> dict[str, float]:
    """Is one preferred? Two-sided sign test; answers without a preference are reported and not counted.

    Returns:
        share_a of those who prefer one, p, low, high, num_none.
    """
    decided = num_a + num_b
    if min(num_a, num_b, num_none) < 0 or decided < 1:
        raise ValueError(f"need counts, and someone with a preference; got {num_a}, {num_b}, {num_none}")
    result = scipy_stats.binomtest(num_a, decided, 0.5)
    interval = result.proportion_ci(confidence, method="exact")
    return {
        "num_a": num_a,
        "num_b": num_b,
        "num_none": num_none,
        "share_a": num_a / decided,
        "p": float(result.pvalue),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def count_by(answers: Mapping[str, Mapping[str, Any]], question: str) -> dict[str, int]:
    """How many listeners gave each answer; who gave none counts as "no answer" (the paper's Fig. 4 has 22 of 24)."""
    counts: dict[str, int] = {}
    for given in answers.values():
        answer = str(given.get(question, "") or NO_ANSWER)
        counts[answer] = counts.get(answer, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (pair[0] == NO_ANSWER, -pair[1], pair[0])))


def _indicators(values: Any, names: list[str]) -> np.ndarray:
    return (values.to_numpy()[:, None] == np.array(names, dtype=object)).astype(float)
