"""Pages that check attention, rules on repeats, and results split by what people listened with."""

import json
from typing import Any

import pandas as pd
import pytest

from tests.listening.small_study import open_store
from tests.listening.test_design import study_of
from workbench import figures_listening, tables_listening
from workbench.listening import attention, report, results, screening, simulate, stats, webmushra
from workbench.listening.design import make_plan, public_trial
from workbench.listening.study import Item

EQUIPMENT = {"name": "equipment", "text": "With what?", "options": ["headphones", "loudspeakers"]}
METHODS = ("mushra", "abx", "ab", "acr")


@pytest.mark.parametrize("method", METHODS)
def test_attention_pages_lie_between_others_and_say_what_to_answer(method):
    study = study_of(6, 2, method=method, attention_per_listener=2)
    without = study_of(6, 2, method=method)
    for row in range(6):
        plan = make_plan(study, row)
        places = [place for place, trial in enumerate(plan) if trial.kind == "attention"]
        assert len(places) == 2 and places[0] > 0 and places[1] < len(plan) - 1 and places[1] - places[0] >= 2
        assert [trial for trial in plan if trial.kind != "attention"] == make_plan(without, row)
        for place, trial in enumerate(plan):
            page = public_trial(trial, place, study, 1.0)
            assert page["kind"] == "test"
            assert ("instruction" in page) == (place in places)
            if place in places:
                assert page["instruction"] == attention.instruction(study, trial.target)
    assert make_plan(study, 3) == make_plan(study, 3)


def test_abx_asks_for_the_answer_that_ears_would_not_give():
    study = study_of(6, 2, method="abx", attention_per_listener=3)
    for trial in (trial for row in range(8) for trial in make_plan(study, row) if trial.kind == "attention"):
        assert trial.system_of(trial.target) != trial.system_of("X")


def test_the_sounds_are_those_of_the_training_where_there_are_any():
    study = study_of(4, 2, attention_per_listener=2, training_items=(Item(name="t", reference="t.wav"),))
    assert {trial.item for trial in make_plan(study, 1) if trial.kind == "attention"} == {"t"}


def test_mushra_asks_for_no_band_in_which_an_untouched_scale_stands():
    study = study_of(2, 2, attention_per_listener=1)
    assert attention.targets(study) == ["0", "20", "60", "80"]
    assert attention.instruction(study, "20").endswith("put every scale between 20 and 40 (“Poor”).")
    assert [attention.is_met(study, "20", score) for score in (19.9, 20, 40, 40.1)] == [False, True, True, False]
    acr = study_of(2, 2, method="acr", attention_per_listener=1)
    assert attention.instruction(acr, "5").endswith("choose “Excellent”.")


def rows(listener: str, trial: int, target: str, scores: list[float]) -> list[dict]:
    return [
        {"listener": listener, "trial": trial, "kind": "attention", "target": target, "score": score}
        for score in scores
    ]


def test_who_answers_otherwise_is_flagged_with_what_was_asked_and_given():
    study = study_of(4, 2, attention_per_listener=2)
    answers = pd.DataFrame(
        rows("good", 2, "20", [20, 30, 40]) + rows("good", 5, "80", [100, 80, 90])
        + rows("hasty", 2, "60", [60, 70, 80]) + rows("hasty", 4, "0", [10, 77, 20])
    )  # fmt: skip
    good, hasty = screening.attention(study, answers)
    assert (good.is_flagged, good.is_excluded, good.num_items) == (False, False, 2)
    assert (hasty.is_flagged, hasty.is_excluded, hasty.num_mistakes) == (True, False, 1)
    assert hasty.reason == "attention check failed on 1 of 2 pages: asked for 0 to 20, got 77"
    strict = study_of(4, 2, attention_per_listener=2, excludes_inattentive=True)
    assert [verdict.is_excluded for verdict in screening.attention(strict, answers)] == [False, True]


def test_repeats_that_differ_too_much_are_flagged():
    study = study_of(4, 1, repeats_per_listener=2, max_repeat_difference=15)
    cases = [("steady", 0, 50, 60), ("steady", 1, 50, 70), ("wild", 0, 50, 80), ("wild", 1, 50, 49)]
    first, second = (
        pd.DataFrame([{"listener": c[0], "item": c[1], "system": "s", "score": float(c[at])} for c in cases])
        for at in (2, 3)
    )
    steady, wild = screening.unsteady(study, first, second)
    assert not steady.is_flagged and "15.0 points on average; not more than 15" in steady.reason  # (10 + 20) / 2
    assert wild.is_flagged and "15.5 points on average; more than 15" in wild.reason  # (30 + 1) / 2
    with pytest.raises(ValueError, match="repeats_per_listener is 0"):
        study_of(4, 1, max_repeat_difference=15)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Eight attentive listeners and two careless ones, with attention pages, repeats and a question on equipment."""
    folder = tmp_path_factory.mktemp("checked")
    values = {"attention_per_listener": 2, "repeats_per_listener": 1, "max_repeat_difference": 25}
    store, study = open_store(folder, 3, anchors_hz=[], questionnaire=[EQUIPMENT], **values)
    truth = simulate.Truth(quality={"fine": 80.0, "rough": 60.0, "coarse": 30.0}, seed=3)
    simulate.simulate_store(store, study.name, 8, truth)
    simulate.simulate_store(store, study.name, 2, simulate.Truth(quality=truth.quality, careless=1.0, seed=11))
    yield store, study
    store.close()


def test_the_careless_are_flagged_and_attention_pages_count_nowhere(checked):
    store, study = checked
    frame = store.ratings_frame(study.name)
    assert set(frame[frame["kind"] == "attention"]["target"]) <= {"0", "20", "60", "80"}
    assert len(frame[frame["kind"] == "attention"]) == 10 * 2 * 4
    verdicts = screening.screen_study(study, frame, {})
    assert {verdict.listener for verdict in verdicts if verdict.rule == "attention" and verdict.is_flagged} == {
        "S009",
        "S010",
    }
    result = results.summary(store, study.name)
    assert result["num_answers"] == result["num_kept"] * 3 * 4  # neither repeats nor attention pages
    told = result["excluded"] | result["flagged"]
    assert {"S009", "S010"} <= told.keys()
    table = webmushra.results_csv(store, study.name, is_simulated=True)["mushra.csv"]
    assert len(table.splitlines()) == 1 + 10 * (3 + 1) * 4


def test_one_who_fails_stays_in_unless_the_study_says_otherwise(tmp_path):
    counted = {}
    for excludes in (False, True):
        folder = tmp_path / str(excludes)
        folder.mkdir()
        values = {"attention_per_listener": 1, "excludes_inattentive": excludes, "method": "acr"}
        store, study = open_store(folder, 2, anchors_hz=[], **values)
        truth = simulate.Truth(quality={"fine": 80.0, "rough": 60.0, "coarse": 30.0}, seed=3)
        simulate.simulate_store(store, study.name, 3, truth)
        joined = store.join(study.name, is_simulated=True)
        for trial, page in enumerate(joined.plan):
            store.save_choice(joined.token, trial, "3" if "“Fair”" not in page.get("instruction", "") else "1", rev=1)
            store.submit_trial(joined.token, trial, listened_s={"A": 2.0})
        result = results.summary(store, study.name)
        counted[excludes] = (result["num_kept"], list(result["excluded"]), list(result["flagged"]))
        text = "\n".join(report.as_text(result))
        assert f"{'excluded' if excludes else 'flagged'} S004: attention check failed on 1 of 1 pages" in text
        store.close()
    assert counted == {False: (4, [], ["S004"]), True: (3, ["S004"], [])}


def test_results_are_split_by_equipment(checked):
    store, study = checked
    result = results.summary(store, study.name)
    answers = results.answers_to(store, study, "equipment")
    assert len(answers) == 10
    frame = store.ratings_frame(study.name)
    frame = frame[(frame["kind"] == "test") & ~frame["listener"].isin(result["excluded"])]
    split = result["groups"]
    assert split["question"] == "With what?"
    assert [group["answer"] for group in split["groups"]] == ["headphones", "loudspeakers"]
    assert sum(group["num_listeners"] for group in split["groups"]) == result["num_kept"]
    for group in split["groups"]:
        mine = frame[frame["listener"].map(answers) == group["answer"]]
        for row in group["systems"]:
            scores = mine[mine["system"] == row["system"]]["score"]
            assert row["median"] == scores.median() and row["num_ratings"] == len(scores)
            assert row["num_listeners"] == group["num_listeners"]
    text = "\n".join(report.as_text(result))
    for group in split["groups"]:
        assert f"With what? {group['answer']}: n = {group['num_listeners']}" in text
    assert results.summary(store, study.name, "age")["groups"] == {"question": "", "groups": []}
    with pytest.raises(ValueError, match="no question 'age' with options; it has equipment"):
        report.evaluate(store, study.name, is_simulated=True, by="age")
    json.dumps(result, allow_nan=False)


def test_choices_are_split_too_and_who_did_not_answer_is_a_group(tmp_path):
    store, study = open_store(tmp_path, 2, method="abx", anchors_hz=[], questionnaire=[EQUIPMENT], must_listen_s=0)
    for answers in ({"equipment": "headphones"}, {}):
        joined = store.join(study.name)
        store.save_questionnaire(joined.token, answers)
        for trial in range(len(joined.plan)):
            store.save_choice(joined.token, trial, "A", rev=1)
            store.submit_trial(joined.token, trial)
    result = results.summary(store, study.name)
    first, second = result["groups"]["groups"]
    assert (first["answer"], second["answer"]) == ("headphones", stats.NO_ANSWER)
    for whole, *parts in zip(result["pairs"], first["pairs"], second["pairs"], strict=True):
        assert [part["num_trials"] for part in parts] == [2, 2] and whole["num_trials"] == 4
        assert sum(part["num_correct"] for part in parts) == whole["num_correct"]
    store.close()


def test_figure_2_is_drawn_for_each_kind_of_equipment(tmp_path):
    made_up = tables_listening.ratings(num_listeners=8, num_items=4)
    counts = made_up.groupby("equipment")["listener"].nunique()
    figure: Any = figures_listening.boxes_by(made_up, "equipment")
    assert [trace.name for trace in figure.data] == [f"{name} (n = {count})" for name, count in counts.items()]
    assert figure.layout.title.text.startswith("SIMULATED: ")
    for trace, (_, part) in zip(figure.data, made_up.groupby("equipment"), strict=True):
        assert trace.median[0] == part[part["system"] == "reference"]["score"].median()
    shown = tables_listening.by_equipment(made_up)
    assert len(shown) == 7 * len(counts) and {row["equipment"] for row in shown} == set(counts.index)

    store, study = open_store(tmp_path, 1, anchors_hz=[], questionnaire=[EQUIPMENT], must_listen_s=0)
    for answers in ({"equipment": "headphones"}, {}):
        joined = store.join(study.name)
        store.save_questionnaire(joined.token, answers)
        for slot in joined.plan[0]["slots"]:
            store.save_rating(joined.token, 0, slot, 95, rev=1)
        store.submit_trial(joined.token, 0)
    store.close()
    real = tables_listening.ratings(str(tmp_path / "studies.sqlite"), study.name)
    assert dict(zip(real["listener"], real["equipment"], strict=True)) == {"L001": "headphones", "L002": "no answer"}
