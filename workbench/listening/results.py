"""What the admin's page shows and saves of a study: statistics and what the plots need, as plain values, and files."""

import io
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.listening import screening, stats, webmushra
from workbench.listening.store import Store
from workbench.listening.study import REFERENCE, Study

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json", "parquet")
EQUIPMENT = "equipment"  # the question by which results are split, unless another one is asked for


def summary(store: Store, study_id: str, by: str = EQUIPMENT) -> dict[str, Any]:
    """Statistics of a study, on submitted trials that are neither training nor a check of attention.

    Real listeners count as soon as one has submitted a trial; until then simulated ones are shown, and `is_simulated`
    says so.

    Args:
        store: Has the study.
        study_id: Its name.
        by: A question with options: results come once more for each of its answers, in `groups`.

    Returns:
        method, is_simulated, num_listeners, num_finished, excluded and flagged (listener -> reason), flags,
        demographics (question -> answer -> number), groups (see `split`), and what belongs to the method: `systems` and
        tests.
    """
    study = store.study(study_id)
    listeners = store.progress(study_id)
    is_simulated = _is_simulated(listeners)
    frame = store.ratings_frame(study_id) if study.method == "mushra" else store.choices_frame(study_id)
    submitted = frame[frame["is_submitted"] & (frame["is_simulated"] == is_simulated)]
    frame = submitted[submitted["kind"] == "test"]
    counted = [entry for entry in listeners if entry["is_simulated"] == is_simulated]
    verdicts = screening.screen_study(study, submitted, store.exclusions(study_id))
    left_out = screening.excluded(verdicts)
    kept = frame[~frame["listener"].isin(left_out)]
    result: dict[str, Any] = {
        "method": study.method,
        "method_label": study.method_label,
        "is_simulated": is_simulated,
        "num_listeners": len(counted),
        "num_finished": sum(bool(entry["finished"]) for entry in counted),
        "num_kept": int(kept["listener"].nunique()),
        "num_answers": len(kept),
        "excluded": left_out,
        "flagged": screening.flagged(verdicts),
        "departures": study.departures(),
        "flags": [],
        "demographics": _demographics(store, study, {entry["listener"] for entry in counted} - left_out.keys()),
    }
    if len(kept):
        repeats = submitted[(submitted["kind"] == "repeat") & ~submitted["listener"].isin(left_out)]
        result |= {"mushra": _mushra, "abx": _abx, "ab": _ab, "acr": _acr}[study.method](study, kept, repeats)
        result["groups"] = split(store, study, kept, by)
    return _plain(result)


def split(store: Store, study: Study, kept: "pd.DataFrame", by: str) -> dict[str, Any]:
    """Results by what listeners answered to the question `by`; nobody was drawn into a group, so compare with care.

    Returns:
        question (its text, "" where the study does not ask it), groups: each answer with its `num_listeners` and
        `systems` (mushra, acr) or `pairs` (abx, ab).
    """
    question = next((question for question in study.questionnaire if question.name == by and question.options), None)
    if question is None:
        return {"question": "", "groups": []}
    answers = answers_to(store, study, by)
    given = kept["listener"].map(lambda name: answers.get(name, stats.NO_ANSWER))
    pairs = {"abx": _abx, "ab": _ab}.get(study.method)
    groups = []
    for answer in [*question.options, stats.NO_ANSWER]:
        part: Any = kept[given == answer]
        if not len(part):
            continue
        if pairs is None:
            ratings = part if study.method == "mushra" else part.assign(system=part["system_a"])
            found: dict[str, Any] = {"systems": stats.summary(ratings).to_dict("records")}
        else:
            found = pairs(study, part, part)
        groups.append({"answer": answer, "num_listeners": part["listener"].nunique(), **found})
    return {"question": question.text, "groups": groups}


def answers_to(store: Store, study: Study, question: str) -> dict[str, str]:
    """Listener -> answer to a question of the questionnaire; who gave none is left out."""
    frame = store.listeners_frame(study.name)
    answers = zip(frame["listener"], frame["answers"], strict=True) if len(frame) else []
    return {name: str(given[question]) for name, given in answers if given.get(question)}


def export(store: Store, study_id: str, name: str) -> bytes:
    """A file: `name` is one of `EXPORTS`."""
    if name == "study.json":
        return json.dumps(store.study(study_id).as_dict(), indent=2).encode()
    if name == "webmushra.csv":
        real = webmushra.results_csv(store, study_id, is_simulated=_is_simulated(store.progress(study_id)))
        return next(iter(real.values())).encode()
    what, _, suffix = name.partition(".")
    frame = _FRAMES[what](store, study_id)
    if suffix == "parquet":
        buffer = io.BytesIO()
        _flat(frame).to_parquet(buffer, index=False)
        return buffer.getvalue()
    if suffix == "json":
        return str(frame.to_json(orient="records", indent=1)).encode()
    return _flat(frame).to_csv(index=False).encode()


def _is_simulated(listeners: list[dict[str, Any]]) -> bool:
    """Whether nobody but simulated listeners has submitted anything yet."""
    has_answers = any(entry["num_submitted"] for entry in listeners if not entry["is_simulated"])
    return not has_answers and any(entry["is_simulated"] for entry in listeners)


def _answers(store: Store, study_id: str) -> "pd.DataFrame":
    is_mushra = store.study(study_id).method == "mushra"
    return store.ratings_frame(study_id) if is_mushra else store.choices_frame(study_id)


_FRAMES: dict[str, Callable[[Store, str], "pd.DataFrame"]] = {
    "answers": _answers,
    "listeners": lambda store, study_id: store.listeners_frame(study_id),
    "events": lambda store, study_id: store.events_frame(study_id),
}
EXPORTS = ["study.json", "webmushra.csv", *(f"{what}.{suffix}" for what in _FRAMES for suffix in FORMATS)]


def _mushra(study: Study, kept: "pd.DataFrame", repeats: "pd.DataFrame") -> dict[str, Any]:
    table = stats.table_of(kept)
    order = stats.summary(kept)
    scores = kept.groupby("system")["score"]
    systems = [
        row
        | {"kind": study.kind_of(row["system"]), "scores": scores.get_group(row["system"]).tolist()}
        | {"outliers": int(stats.outliers(scores.get_group(row["system"])).sum())}
        for row in order.to_dict("records")
    ]
    result: dict[str, Any] = {"systems": systems, "flags": screening.flags(kept)}
    result["pairs"] = stats.compare_pairs(table[list(order["system"])]).to_dict("records") if len(systems) > 1 else []
    result["friedman"] = _try(lambda: stats.friedman(table))
    result["anova"] = _try(lambda: stats.repeated_measures_anova(table))
    result["mixed"] = _try(lambda: stats.mixed_model(kept, REFERENCE if REFERENCE in table else table.columns[0]))
    result["agreement"] = screening.agreement(kept)
    if len(repeats):
        result["repeats"] = screening.repeat_differences(kept, repeats).to_dict("records")
    return result


def _abx(study: Study, kept: "pd.DataFrame", _: "pd.DataFrame") -> dict[str, Any]:
    """Every pair on its own, over listeners and items."""
    pairs = []
    for pair, group in kept.groupby(_pair_names(kept)):
        first, second = json.loads(str(pair))
        test = stats.abx_test(int(group["is_correct"].to_numpy().sum()), len(group))
        pairs.append({"a": first, "b": second, "num_listeners": group["listener"].nunique(), **test})
    return {"pairs": pairs}


def _ab(study: Study, kept: "pd.DataFrame", _: "pd.DataFrame") -> dict[str, Any]:
    pairs = []
    for pair, group in kept.groupby(_pair_names(kept)):
        first, second = json.loads(str(pair))
        counts = [int((group["chosen"] == name).to_numpy().sum()) for name in (first, second, "")]
        entry = {"a": first, "b": second, "num_listeners": group["listener"].nunique(), "num_none": counts[2]}
        pairs.append(entry | (_try(lambda counts=counts: stats.preference_test(*counts)) or {}))
    return {"pairs": pairs}


def _acr(study: Study, kept: "pd.DataFrame", _: "pd.DataFrame") -> dict[str, Any]:
    """Mean opinion scores; the interval comes from a bootstrap over listeners."""
    ratings = kept.assign(system=kept["system_a"])
    order = stats.summary(ratings).sort_values("mean", ascending=False)
    scores = ratings.groupby("system")["score"]
    systems = [
        row | {"kind": study.kind_of(row["system"]), "scores": scores.get_group(row["system"]).tolist()}
        for row in order.to_dict("records")
    ]
    table = stats.table_of(ratings)
    pairs = stats.compare_pairs(table[list(order["system"])]).to_dict("records") if len(systems) > 1 else []
    return {"systems": systems, "pairs": pairs}


def _pair_names(kept: "pd.DataFrame") -> Any:
    """The two systems of every trial, whichever was A."""
    return [json.dumps(sorted(pair)) for pair in zip(kept["system_a"], kept["system_b"], strict=True)]


def _demographics(store: Store, study: Study, listeners: set[str]) -> dict[str, dict[str, int]]:
    if not study.questionnaire or not listeners:
        return {}
    frame = store.listeners_frame(study.name)
    answers = dict(zip(frame["listener"], frame["answers"], strict=True))
    chosen = {name: given for name, given in answers.items() if name in listeners}
    return {
        question.text: stats.count_by(chosen, question.name) for question in study.questionnaire if question.options
    }


def _try(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A test that cannot be computed from these answers says why, and the others still show."""
    try:
        return call()
    except (ValueError, RuntimeError, ImportError, np.linalg.LinAlgError) as error:
        return {"error": str(error)}


def _flat(frame: Any) -> Any:
    """For formats that are tables: dicts as JSON, and texts that a spreadsheet would run as formulas are quoted."""
    frame = frame.copy()
    for column in frame.columns:
        if frame[column].map(lambda value: isinstance(value, dict)).any():
            frame[column] = frame[column].map(json.dumps)
        elif frame[column].map(lambda value: isinstance(value, str)).any():
            frame[column] = frame[column].map(lambda value: webmushra.inert(value) if isinstance(value, str) else value)
    return frame


def _plain(value: Any) -> Any:
    """Without numpy's types, and None where there is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
