"""From a study file to exported files and statistics: simulated listeners whose answer is known, over HTTP."""

import csv
import io
import threading
import time

import numpy as np
import pytest

from workbench.listening.simulate import Ear, Truth, simulate_http
from workbench.listening.store import Store

TRUTH = Truth(quality={"fine": 80.0, "rough": 55.0, "coarse": 25.0, "anchor35": 40.0}, seed=1)


def _simulate(server, study_id: str, numbers: range, num_threads: int) -> list[dict]:
    """Every number is one listener; as many at once as there are threads."""
    store = Store(server.folder / "studies.sqlite")
    study, ear = store.study(study_id), Ear(store.stimuli(study_id))
    store.close()
    left, sessions, faults = list(numbers), [], []

    def work() -> None:
        while left:
            try:
                sessions.append(simulate_http(server.url, study_id, left.pop(), TRUTH, ear, study=study, timeout_s=120))
            except Exception as error:  # a thread would swallow it
                faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    return sessions


def test_24_simulated_listeners_give_back_the_answer_that_was_built_in(server, make_study):
    question = '[{ name = "equipment", text = "With what?", options = ["headphones", "loudspeakers"] }]'
    study = make_study("known-answer", anchors_hz="[3500]", repeats_per_listener="1", questionnaire=question)
    sessions = _simulate(server, study, range(24), num_threads=4)
    assert {session["stage"] for session in sessions} == {"finished"}
    assert all(session["is_simulated"] for session in sessions)

    rows = list(csv.DictReader(io.StringIO(server.admin.get(f"/studies/{study}/export/answers.csv").text)))
    assert len(rows) == 24 * (3 + 1) * 5  # three items, one of them twice, five sounds
    assert {row["is_simulated"] for row in rows} == {"True"}
    webmushra = list(csv.DictReader(io.StringIO(server.admin.get(f"/studies/{study}/export/webmushra.csv").text)))
    assert {row["rating_stimulus"] for row in webmushra} == {"reference", "anchor35", "fine", "rough", "coarse"}
    assert {row["session_test_id"] for row in webmushra} == {f"{study} SIMULATED"}

    results = server.admin.get(f"/studies/{study}/results").json()
    assert results["is_simulated"] and results["num_finished"] == 24
    found = {entry["system"]: entry for entry in results["systems"]}
    assert list(found) == ["reference", "fine", "rough", "anchor35", "coarse"]  # the order of the truth
    exported = [row for row in rows if row["kind"] == "test" and row["listener"] not in results["excluded"]]
    for system, entry in found.items():
        scores = [float(row["score"]) for row in exported if row["system"] == system]
        assert entry["median"] == np.median(scores) and entry["num_ratings"] == len(scores)
        if system != "reference":
            # 24 listeners with a taste of 4 and a strictness of 6 know the mean to 1.5; items move it by 4 / sqrt(3).
            assert entry["mean"] == pytest.approx(TRUTH.quality[system], abs=3 * np.hypot(1.5, 2.3))
            assert entry["low"] < entry["mean"] < entry["high"]
    assert results["friedman"]["p"] < 1e-6
    assert {(pair["a"], pair["b"]) for pair in results["pairs"] if pair["permutation_holm"] < 0.05} >= {
        ("reference", "coarse"),
        ("fine", "rough"),
        ("rough", "coarse"),
    }
    order = np.array([row["slot"] for row in rows if row["system"] == "reference"])
    assert set(order) == set("ABCDE")  # the hidden reference was behind every slot
    (answers,) = results["demographics"].values()
    assert sum(answers.values()) == results["num_kept"]


@pytest.mark.slow
def test_a_hundred_listeners_at_once_lose_and_double_nothing(server, make_study, record_property):
    study = make_study("crowd")
    begin = time.monotonic()
    sessions = _simulate(server, study, range(100), num_threads=100)
    latencies_ms = 1000 * np.concatenate([session["latencies_s"] for session in sessions])
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    record_property("p99_ms", float(p99))
    print(f"{len(latencies_ms)} requests in {time.monotonic() - begin:.1f} s: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    rows = server.admin.get(f"/studies/{study}/export/answers.json").json()
    keys = {(row["listener"], row["trial"], row["slot"]) for row in rows}
    assert len(rows) == len(keys) == 100 * 3 * 4
    assert all(row["is_submitted"] for row in rows)
    # What each listener was told at the end is what the file holds.
    stored = sorted((row["trial"], row["slot"], row["score"]) for row in rows)
    told = sorted(
        (int(trial), slot, rating["score"])
        for session in sessions
        for trial, slots in session["ratings"].items()
        for slot, rating in slots.items()
    )
    assert stored == told
    listeners = server.admin.get(f"/studies/{study}/export/listeners.json").json()
    assert sorted(listener["square_row"] for listener in listeners) == list(range(100))
    assert p99 < 20_000  # bounded even with a hundred threads of simulation on the same two cores
