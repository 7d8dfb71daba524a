"""Who is left out, and why: post-screening of ITU-R BS.1534-3 (section 4.1.2), attention, reliability, and flags.

Ratings are a table with the columns listener, item, system, score, one row each; other columns are not looked at. A
listener who rated an item more than once counts with the mean.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.listening.attention import is_met, words
from workbench.listening.frames import Table
from workbench.listening.study import REFERENCE, Study

HIGH = 90.0  # a hidden reference below it is a mistake, a mid anchor above it too
MOST_MISTAKES = 0.15  # of the items
EXEMPT = 0.25  # of the listeners: above, an item's mid anchor counts for nobody
MID_ANCHOR = "anchor70"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One rule applied to one listener.

    Attributes:
        rule: "hidden reference", "mid anchor", "attention", "repeats", or "recorded cause".
        num_mistakes, num_items: Items (or pages) counted, those that are exempt left out.
        is_excluded: Whether the rule leaves the listener out.
        is_flagged: Whether somebody should have a look at the listener, who may stay in.
        reason: In words.
    """

    listener: str
    rule: str
    num_mistakes: int
    num_items: int
    is_excluded: bool
    is_flagged: bool = False
    reason: str

    @property
    def fraction(self) -> float:
        return self.num_mistakes / self.num_items if self.num_items else 0.0


def screen_study(study: Study, answers: Table, causes: dict[str, str]) -> list[Verdict]:
    """Every rule that a study has: those of `screen` for mushra, attention pages and repeats.

    Args:
        study: Says whether inattentive listeners are left out or only flagged.
        answers: Submitted rows of `Store.ratings_frame` or `Store.choices_frame`, of all kinds.
        causes: Listener -> recorded cause for leaving them out.
    """
    tests = answers[answers["kind"] == "test"]
    verdicts = screen(tests, causes) if study.method == "mushra" else recorded(tests, causes)
    verdicts += attention(study, answers[answers["kind"] == "attention"])
    if study.max_repeat_difference:
        verdicts += unsteady(study, tests, answers[answers["kind"] == "repeat"])
    return verdicts


def screen(ratings: Table, causes: dict[str, str] | None = None) -> list[Verdict]:
    """Every rule for every listener.

    - hidden reference: below 90 on more than 15 % of the items;
    - mid anchor (7 kHz): above 90 on more than 15 % of the items, items left out where more than 25 % of the listeners
      put it above 90;
    - `causes`: listener -> recorded cause for which the experimenter leaves someone out.

    A rule whose sound is not in the study has no verdicts.
    """
    listeners = list(dict.fromkeys(ratings["listener"]))
    verdicts = recorded(ratings, causes or {})
    scores = ratings.groupby(["system", "listener", "item"])["score"].mean()
    present = set(scores.index.get_level_values("system"))
    if REFERENCE in present:
        is_mistake = scores[REFERENCE] < HIGH
        verdicts += _verdicts("hidden reference", is_mistake, listeners, f"hidden reference below {HIGH:g}", 0)
    if MID_ANCHOR in present:
        is_mistake = scores[MID_ANCHOR] > HIGH
        share = is_mistake.groupby(level="item").mean()
        exempt = set(share[share > EXEMPT].index)
        counted = is_mistake[~is_mistake.index.get_level_values("item").isin(exempt)]
        verdicts += _verdicts("mid anchor", counted, listeners, f"7 kHz anchor above {HIGH:g}", len(exempt))
    return verdicts


def recorded(answers: Table, causes: dict[str, str]) -> list[Verdict]:
    """Listeners whom the experimenter leaves out for a recorded cause."""
    listeners = set(answers["listener"])
    return [
        Verdict(listener=name, rule="recorded cause", num_mistakes=0, num_items=0, is_excluded=True, reason=cause)
        for name, cause in causes.items()
        if name in listeners and cause
    ]


def attention(study: Study, answers: Table) -> list[Verdict]:
    """One verdict for each listener who met attention pages: flagged for any page that was answered otherwise."""
    value = "score" if study.method == "mushra" else "answer"
    verdicts = []
    for listener, mine in answers.groupby("listener", sort=False):
        pages, missed = 0, []
        for _, page in mine.groupby("trial"):
            target, given = page["target"].iloc[0], list(page[value])
            pages += 1
            if not all(is_met(study, target, answer) for answer in given):
                wrong = next(answer for answer in given if not is_met(study, target, answer))
                missed.append(
                    f"asked for {words(study, target)}, got {wrong if isinstance(wrong, str) else f'{wrong:g}'}"
                )
        what = f"attention check failed on {len(missed)} of {pages} pages"
        verdicts.append(
            Verdict(
                listener=str(listener),
                rule="attention",
                num_mistakes=len(missed),
                num_items=pages,
                is_excluded=bool(missed) and study.excludes_inattentive,
                is_flagged=bool(missed),
                reason=f"{what}: {'; '.join(missed)}" if missed else what,
            )
        )
    return verdicts


def unsteady(study: Study, ratings: Table, repeats: Table) -> list[Verdict]:
    """One verdict for each listener with repeats: flagged where the mean |difference| is above the study's limit."""
    limit = study.max_repeat_difference
    verdicts = []
    for row in repeat_differences(ratings, repeats).to_dict("records"):
        is_over = row["mean_difference"] > limit
        verdicts.append(
            Verdict(
                listener=row["listener"],
                rule="repeats",
                num_mistakes=int(is_over),
                num_items=row["num"],
                is_excluded=is_over and study.excludes_inattentive,
                is_flagged=is_over,
                reason=f"the second rating of {row['num']} sounds differs by {row['mean_difference']:.1f} points on "
                f"average; {'more' if is_over else 'not more'} than {limit:g}",
            )
        )
    return verdicts


def excluded(verdicts: list[Verdict]) -> dict[str, str]:
    """Listener -> all reasons, for those who are left out."""
    return _reasons(verdict for verdict in verdicts if verdict.is_excluded)


def flagged(verdicts: list[Verdict]) -> dict[str, str]:
    """Listener -> all reasons, for those who are flagged and nevertheless stay in."""
    left_out = excluded(verdicts)
    return _reasons(verdict for verdict in verdicts if verdict.is_flagged and verdict.listener not in left_out)


def keep(ratings: Table, verdicts: list[Verdict]) -> Table:
    """The ratings of those who stay."""
    return ratings[~ratings["listener"].isin(excluded(verdicts))]


def repeat_differences(ratings: Table, repeats: Table) -> Table:
    """How far listeners are from themselves: mean and largest |difference| of an item's second rating from its first.

    Returns:
        A table of listener, num, mean_difference, largest_difference.
    """
    keys = ["listener", "item", "system"]
    both = ratings[[*keys, "score"]].merge(repeats[[*keys, "score"]], on=keys, suffixes=("_first", "_second"))
    both["difference"] = (both["score_second"] - both["score_first"]).abs()
    table = both.groupby("listener")["difference"].agg(num="size", mean_difference="mean", largest_difference="max")
    return table.reset_index()


def agreement(ratings: Table) -> dict[str, float]:
    """Listener -> Spearman's correlation of their scores with the mean of the others', over (item, system).

    nan where someone gave the same score to everything or shares nothing with others.
    """
    from scipy.stats import rankdata

    table = ratings.pivot_table(index=["item", "system"], columns="listener", values="score", aggfunc="mean")
    result = {}
    for listener in table.columns:
        others = table.drop(columns=listener).mean(axis=1)
        pair = np.stack([table[listener].to_numpy(), others.to_numpy()])
        pair = pair[:, ~np.isnan(pair).any(axis=0)]
        is_flat = pair.shape[1] < 3 or bool((np.ptp(pair, axis=1) == 0).any())
        ranks = [rankdata(row) for row in pair]
        result[str(listener)] = math.nan if is_flat else float(np.corrcoef(*ranks)[0, 1])
    return result


def intraclass_correlation(table: np.ndarray) -> tuple[float, float]:
    """Agreement of raters who judged the same targets: ICC(2,1) of one rater, ICC(2,k) of the mean of all.

    Source: Shrout & Fleiss 1979, two-way random effects, absolute agreement.

    Args:
        table: (targets, raters), complete.
    """
    num_targets, num_raters = table.shape
    if num_targets < 2 or num_raters < 2:
        raise ValueError(f"needs at least two targets and two raters, got {table.shape}")
    if np.isnan(table).any():
        raise ValueError("every rater must have judged every target; leave out those who did not")
    mean = table.mean()
    by_target = num_raters * ((table.mean(axis=1) - mean) ** 2).sum() / (num_targets - 1)
    by_rater = num_targets * ((table.mean(axis=0) - mean) ** 2).sum() / (num_raters - 1)
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + mean
    error = (residual**2).sum() / ((num_targets - 1) * (num_raters - 1))
    single = (by_target - error) / (
        by_target + (num_raters - 1) * error + num_raters * (by_rater - error) / num_targets
    )
    average = (by_target - error) / (by_target + (by_rater - error) / num_targets)
    return float(single), float(average)


def bimodality(scores: np.ndarray) -> float:
    """Sarle's coefficient with the correction for small samples; above 5/9 (a flat distribution) suggests two camps."""
    n = len(scores)
    if n < 4 or np.ptp(scores) == 0:
        return math.nan
    centred = np.asarray(scores, float) - np.mean(scores)
    second = (centred**2).mean()
    skew = (centred**3).mean() / second**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    excess = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * ((centred**4).mean() / second**2 - 3) + 6)
    return float((skew**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))))


def flags(ratings: Table) -> list[str]:
    """What a reader of the results should know, in sentences: ceiling, two camps, too few listeners, rows missing."""
    found = []
    tested = ratings[ratings["system"] != REFERENCE]
    medians = tested.groupby("system")["score"].median()
    if len(medians) and (medians >= 80).mean() > 0.5:
        found.append(
            "Most systems have a median of 80 or more: the test hardly tells them apart (BS.1534-3 asks for BS.1116)."
        )
    for system, scores in ratings.groupby("system")["score"]:
        if bimodality(scores.to_numpy()) > 5 / 9:
            found.append(
                f"Scores of {system} fall into two camps (bimodality above 5/9): look at the plot, not at a mean."
            )
    num_listeners = ratings["listener"].nunique()
    if num_listeners < 20:
        found.append(f"{num_listeners} listeners; BS.1534-3 finds 20 sufficient in most cases.")
    counts = ratings.groupby("listener")["score"].size()
    if len(counts) and counts.min() < counts.max():
        found.append(f"Not everyone rated as much: {counts.min()} to {counts.max()} scores a listener.")
    return found


def _reasons(verdicts: Iterable[Verdict]) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        reasons.setdefault(verdict.listener, []).append(verdict.reason)
    return {listener: "; ".join(texts) for listener, texts in reasons.items()}


def _verdicts(rule: str, is_mistake: Any, listeners: list[str], what: str, num_exempt: int) -> list[Verdict]:
    verdicts = []
    for listener in listeners:
        mine = is_mistake[is_mistake.index.get_level_values("listener") == listener]
        mistakes, count = int(mine.sum()), len(mine)
        is_excluded = count > 0 and mistakes / count > MOST_MISTAKES + 1e-12
        share = (
            f"{what} on {mistakes} of {count} items ({mistakes / count:.0%})" if count else f"{what}: no item counts"
        )
        exempt = f", {num_exempt} items exempt" if num_exempt else ""
        verdicts.append(
            Verdict(
                listener=listener,
                rule=rule,
                num_mistakes=mistakes,
                num_items=count,
                is_excluded=is_excluded,
                reason=f"{share}; {'more' if is_excluded else 'not more'} than {MOST_MISTAKES:.0%}{exempt}",
            )
        )
    return verdicts
