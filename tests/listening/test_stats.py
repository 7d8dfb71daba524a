"""Every number here is printed somewhere, can be worked out by hand, or comes from an independent implementation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from workbench.listening import power, screening, stats

# Hollander & Wolfe 1973, p. 140: three ways to round first base, 22 players.
ROUNDING = np.array(
    "5.40 5.50 5.55 5.85 5.70 5.75 5.20 5.60 5.50 5.55 5.50 5.40 5.90 5.85 5.70 5.45 5.55 5.60 5.40 5.40 5.35 5.45 "
    "5.50 5.35 5.25 5.15 5.00 5.85 5.80 5.70 5.25 5.20 5.10 5.65 5.55 5.45 5.60 5.35 5.45 5.05 5.00 4.95 5.50 5.50 "
    "5.40 5.45 5.55 5.50 5.55 5.55 5.35 5.45 5.50 5.55 5.50 5.45 5.25 5.65 5.60 5.40 5.70 5.65 5.55 6.30 6.30 "
    "6.25".split(),
    float,
).reshape(22, 3)


def ratings_of(cube):
    listeners, items, systems = cube.shape
    return pd.DataFrame(
        [
            {"listener": f"L{a}", "item": f"i{b}", "system": f"s{c}", "score": cube[a, b, c]}
            for a, b, c in itertools.product(range(listeners), range(items), range(systems))
        ]
    )


def test_friedman_is_that_of_hollander_and_wolfe():
    result = stats.friedman(ROUNDING)
    assert result["statistic"] == pytest.approx(11.1429, abs=1e-4)
    assert result["p"] == pytest.approx(0.003805, abs=1e-6)
    assert result["kendalls_w"] == pytest.approx(11.142857 / 44)


def test_the_permutation_test_is_fishers_of_darwins_maize():
    # Fisher 1935, section 21: 863 of 32 768 signs give a sum of 314 or more; two-sided 1726.
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert stats.permutation_test(differences) == 1726 / 32768


def test_drawn_permutations_come_close_to_all_of_them_and_never_give_zero():
    differences = np.random.default_rng(0).integers(-9, 14, 20)
    sums = {0: 1}  # how many signs give each sum, one difference after the other
    for value in differences.tolist():
        grown: dict[int, int] = {}
        for total, count in sums.items():
            for signed in (total - value, total + value):
                grown[signed] = grown.get(signed, 0) + count
        sums = grown
    exact = sum(count for total, count in sums.items() if abs(total) >= abs(differences.sum())) / 2**20
    assert 0.01 < exact < 0.9
    # 20 000 draws have a standard error of at most 0.0035.
    assert stats.permutation_test(differences, num_draws=20_000) == pytest.approx(exact, abs=0.012)
    assert stats.permutation_test(np.full(30, 5.0)) == pytest.approx(1 / 10_001)


def test_wilcoxon_is_that_of_the_depression_data():
    # Hollander & Wolfe 1973, p. 29: V = 40, two-sided p = 0.03906.
    x = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    y = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    row = stats.compare_pairs(pd.DataFrame({"x": x, "y": y})).iloc[0]
    assert row["wilcoxon_p"] == pytest.approx(0.0390625)
    assert row["effect"] == pytest.approx((40 - 5) / 45)


def test_holm_is_the_textbook_example():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.01, np.nan, 0.02]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)


def test_hinges_hold_the_median_twice_when_n_is_odd():
    assert stats.hinges([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert stats.hinges([1, 2, 3, 4]) == (1.5, 2.5, 3.5)
    assert stats.outliers([10, 11, 12, 13, 40]).tolist() == [False, False, False, False, True]


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        scores = pd.DataFrame({"listener": range(24), "score": generator.normal(60, 10, 24)})
        low, high = stats.bootstrap_interval(scores, num_draws=500, seed=seed)
        hits += low <= 60 <= high
    assert 0.90 <= hits / 200 <= 0.98  # percentile intervals of 24 are a little narrow


def test_the_bootstrap_resamples_listeners_and_not_ratings():
    # Two listeners who agree with themselves over 50 items are still two.
    scores = pd.DataFrame({"listener": ["a"] * 50 + ["b"] * 50, "score": [40.0] * 50 + [60.0] * 50})
    assert stats.bootstrap_interval(scores) == (40.0, 60.0)


def test_the_summary_is_sorted_and_counts_listeners():
    table = stats.summary(ratings_of(np.arange(24.0).reshape(4, 3, 2)), num_draws=100)
    assert list(table["system"]) == ["s1", "s0"]
    assert list(table["num_listeners"]) == [4, 4] and list(table["num_ratings"]) == [12, 12]
    assert table["median"].tolist() == [12.0, 11.0] and table["mean"].tolist() == [12.0, 11.0]


def test_the_anova_is_that_of_statsmodels_and_spheric_data_need_no_correction():
    from statsmodels.stats.anova import AnovaRM

    table = np.random.default_rng(0).normal(0, 1, (12, 4)) + np.arange(4)
    result = stats.repeated_measures_anova(table)
    long = ratings_of(table[:, None, :])
    theirs = AnovaRM(long, "score", "listener", within=["system"]).fit().anova_table
    assert result["f"] == pytest.approx(theirs["F Value"].iloc[0])
    assert result["p"] == pytest.approx(theirs["Pr > F"].iloc[0])
    assert 1 / 3 <= result["greenhouse_geisser"] <= result["epsilon"] <= 1
    assert stats.repeated_measures_anova(table[:, :2])["greenhouse_geisser"] == pytest.approx(1.0)


def test_epsilon_is_that_of_its_definition_on_a_known_covariance():
    # Box's epsilon by centred covariance: trace^2 / ((k - 1) * sum of squares), from unreduced data.
    table = np.random.default_rng(3).normal(0, [1, 2, 4], (40, 3))
    covariance = np.cov(table, rowvar=False)
    centring = np.eye(3) - 1 / 3
    eigenvalues = np.linalg.eigvalsh(centring @ covariance @ centring)
    expected = eigenvalues.sum() ** 2 / (2 * (eigenvalues**2).sum())
    assert stats.repeated_measures_anova(table)["greenhouse_geisser"] == pytest.approx(expected)


def test_the_mixed_model_of_a_balanced_study_is_the_one_on_paper():
    generator = np.random.default_rng(0)
    cube = (
        50
        + generator.normal(0, 8, (8, 1, 1))
        + generator.normal(0, 5, (1, 6, 1))
        + generator.normal(0, 6, (8, 6, 3))
        + np.array([0, 5, 10])
    )
    result = stats.mixed_model(ratings_of(cube), "s0")
    means = cube.mean((0, 1))
    residual = cube - cube.mean((1, 2), keepdims=True) - cube.mean((0, 2), keepdims=True) - means + 2 * cube.mean()
    variance = (residual**2).sum() / (8 * 6 * 3 - 8 - 6 - 3 + 2)
    for system, index in (("s1", 1), ("s2", 2)):
        effect = result["effects"][system]
        assert effect["difference"] == pytest.approx(means[index] - means[0], abs=1e-6)
        assert effect["se"] == pytest.approx(np.sqrt(2 * variance / 48), rel=1e-3)  # REML is iterative
    assert result["sd_residual"] == pytest.approx(np.sqrt(variance), rel=1e-3)
    assert 3 < result["sd_listener"] < 16 and 1 < result["sd_item"] < 12


def test_the_mixed_model_names_a_baseline_that_is_not_there():
    with pytest.raises(ValueError, match="no ratings of the baseline 'mp3'; there are s0, s1"):
        stats.mixed_model(ratings_of(np.zeros((2, 2, 2))), "mp3")


def test_abx_is_the_binomial_table():
    result = stats.abx_test(12, 16)
    assert result["p"] == pytest.approx(0.0384064)  # 2517 of 65 536
    assert (result["low"], result["high"]) == pytest.approx((0.4762, 0.9273), abs=1e-4)  # Clopper & Pearson 1934
    assert stats.abx_test(5, 10)["p"] == pytest.approx(638 / 1024)
    with pytest.raises(ValueError, match="got 11 of 10"):
        stats.abx_test(11, 10)


def test_the_sign_test_leaves_ties_out():
    assert stats.preference_test(9, 1, 30)["p"] == pytest.approx(22 / 1024)
    assert stats.preference_test(9, 1, 30)["share_a"] == 0.9


def test_the_papers_demographics_are_fifteen_and_seven_of_twenty_two():
    given = {f"L{i}": {"affiliation": "academia" if i < 15 else "industry"} for i in range(22)} | {"L22": {}, "L23": {}}
    counts = stats.count_by(given, "affiliation")
    assert counts == {"academia": 15, "industry": 7, "no answer": 2}
    assert round(100 * counts["academia"] / 22, 1) == 68.2 and round(100 * counts["industry"] / 22, 1) == 31.8


def test_intraclass_correlations_are_those_of_shrout_and_fleiss_1979():
    table = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert screening.intraclass_correlation(table) == pytest.approx((0.29, 0.62), abs=0.005)


def test_power_is_that_of_the_tables():
    assert power.paired_power(0.5, 34) == pytest.approx(0.8077775, abs=1e-6)  # G*Power 3, two-sided, 5 %
    assert power.paired_power(0.8, 15) == pytest.approx(0.8213, abs=1e-3)
    assert power.paired_power(0.0, 20) == pytest.approx(0.05)
    needed = power.listeners_needed(5, 10, num_systems=4)
    assert power.power(5, needed, 10, num_systems=4) >= 0.8 > power.power(5, needed - 1, 10, num_systems=4)


def test_power_agrees_with_simulated_studies():
    generator = np.random.default_rng(0)
    taste = generator.normal(0, 6, (4000, 20, 2))
    noise = generator.normal(0, 12 / np.sqrt(10), (4000, 20, 2))
    scores = taste + noise + np.array([0, 5])
    p = scipy_stats.ttest_rel(scores[:, :, 0], scores[:, :, 1], axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(power.power(5, 20, 10), abs=0.02)  # standard error 0.008


def test_a_pilot_gives_back_the_deviations_that_it_was_made_with():
    generator = np.random.default_rng(5)
    cube = (
        generator.normal(0, 9, (60, 1, 1)) + generator.normal(0, 5, (60, 1, 4)) + generator.normal(0, 10, (60, 12, 4))
    )
    assert power.from_ratings(ratings_of(cube)) == pytest.approx((5, 10), rel=0.15)


def test_abx_planning_reaches_the_wanted_power_for_good():
    trials, right = power.abx_needed(0.75)
    assert scipy_stats.binom.sf(right - 1, trials, 0.5) <= 0.05 < scipy_stats.binom.sf(right - 2, trials, 0.5)
    for count in range(trials, trials + 60):
        critical = next(k for k in range(count + 1) if scipy_stats.binom.sf(k - 1, count, 0.5) <= 0.05)
        assert scipy_stats.binom.sf(critical - 1, count, 0.75) >= 0.8
