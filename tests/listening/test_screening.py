import math

import numpy as np
import pandas as pd
import pytest

from workbench.listening import screening


def table(scores):
    """`scores[listener][system]` is a list over items."""
    return pd.DataFrame(
        [
            {"listener": listener, "system": system, "item": f"i{index}", "score": float(score)}
            for listener, systems in scores.items()
            for system, values in systems.items()
            for index, score in enumerate(values)
        ]
    )


def verdict_of(ratings, listener, rule):
    return next(v for v in screening.screen(ratings) if v.listener == listener and v.rule == rule)


def test_one_low_hidden_reference_of_seven_is_forgiven_and_two_are_not():
    # 1 of 7 is 14.3 %, 2 of 7 is 28.6 %; "one and you are out" is a known mistake of another tool.
    ratings = table({"one": {"reference": [80] + [100] * 6}, "two": {"reference": [80, 89.9] + [95] * 5}})
    assert not verdict_of(ratings, "one", "hidden reference").is_excluded
    two = verdict_of(ratings, "two", "hidden reference")
    assert two.is_excluded and two.fraction == pytest.approx(2 / 7)
    assert two.reason == "hidden reference below 90 on 2 of 7 items (29%); more than 15%"
    assert list(screening.excluded(screening.screen(ratings))) == ["two"]
    assert set(screening.keep(ratings, screening.screen(ratings))["listener"]) == {"one"}


def test_exactly_fifteen_percent_and_exactly_ninety_are_allowed():
    ratings = table({"edge": {"reference": [0] * 3 + [90] * 17}})
    verdict = verdict_of(ratings, "edge", "hidden reference")
    assert verdict.fraction == 0.15 and not verdict.is_excluded


def test_the_mid_anchor_rule_leaves_out_items_where_a_quarter_of_listeners_agree():
    # Item 0: 3 of 8 above 90 (37.5 %), so it counts for nobody. Items 1 and 2: only "deaf" (12.5 %).
    scores = {f"L{i}": {"anchor70": [95 if i < 2 else 60, 50, 50, 50, 50]} for i in range(7)}
    scores["deaf"] = {"anchor70": [95, 95, 95, 50, 50]}
    ratings = table(scores)
    deaf = verdict_of(ratings, "deaf", "mid anchor")
    assert (deaf.num_mistakes, deaf.num_items, deaf.is_excluded) == (2, 4, True)
    assert "1 items exempt" in deaf.reason
    assert verdict_of(ratings, "L0", "mid anchor").num_mistakes == 0
    assert list(screening.excluded(screening.screen(ratings))) == ["deaf"]


def test_exactly_a_quarter_is_no_exemption():
    ratings = table({f"L{i}": {"anchor70": [95 if i == 0 else 50, 50]} for i in range(4)})
    assert verdict_of(ratings, "L0", "mid anchor").num_items == 2
    assert verdict_of(ratings, "L0", "mid anchor").is_excluded  # 1 of 2


def test_at_16_khz_everybody_may_take_the_mid_anchor_for_the_reference():
    ratings = table({f"L{i}": {"anchor70": [97] * 6, "reference": [100] * 6} for i in range(8)})
    verdicts = screening.screen(ratings)
    assert screening.excluded(verdicts) == {}
    assert {v.num_items for v in verdicts if v.rule == "mid anchor"} == {0}


def test_a_recorded_cause_excludes_and_is_kept_as_the_reason():
    ratings = table({"a": {"reference": [100]}, "b": {"reference": [100]}})
    verdicts = screening.screen(ratings, {"b": "used loudspeakers", "gone": "not in the table"})
    assert screening.excluded(verdicts) == {"b": "used loudspeakers"}


def test_without_anchors_there_are_no_verdicts_about_them():
    ratings = table({"a": {"x": [50, 60]}})
    assert screening.screen(ratings) == []


def test_repeats_say_how_far_listeners_are_from_themselves():
    first = table({"a": {"x": [50, 60], "y": [10, 20]}})
    second = table({"a": {"x": [55], "y": [30]}})
    row = screening.repeat_differences(first, second).iloc[0]
    assert (row["num"], row["mean_difference"], row["largest_difference"]) == (2, 12.5, 20)


def test_agreement_is_one_for_those_who_order_alike_and_minus_one_for_the_contrary():
    up, down = [10, 40, 70, 90], [90, 70, 40, 10]
    scores = {name: {"x": up} for name in "abcde"} | {"f": {"x": down}, "flat": {"x": [50] * 4}}
    result = screening.agreement(table(scores))
    assert result["a"] == pytest.approx(1) and result["f"] == pytest.approx(-1) and math.isnan(result["flat"])


def test_bimodality_is_five_ninths_for_a_flat_distribution_and_more_for_two_camps():
    flat = np.linspace(0, 100, 2001)
    assert screening.bimodality(flat) == pytest.approx(5 / 9, abs=2e-3)
    # By hand for 20 + 20: no skew, excess (39 / (38 * 37)) * (41 * (1 - 3) + 6), correction 3 * 39^2 / (38 * 37).
    camps = screening.bimodality(np.array([10.0] * 20 + [90.0] * 20))
    assert camps == pytest.approx(1 / (39 * (41 * -2 + 6) / 1406 + 3 * 39**2 / 1406))
    assert screening.bimodality(np.random.default_rng(0).normal(50, 10, 2000)) == pytest.approx(1 / 3, abs=0.05)


def test_flags_name_a_ceiling_and_a_small_crowd():
    ratings = table({f"L{i}": {"x": [90 + i, 95], "y": [88, 92]} for i in range(3)})
    text = " ".join(screening.flags(ratings))
    assert "median of 80 or more" in text and "3 listeners" in text
