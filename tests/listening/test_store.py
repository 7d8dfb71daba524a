import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.listening.small_study import heard, make_study, open_store
from workbench.listening.render import render_study
from workbench.listening.store import NotFoundError, RefusedError, Store

ROOT = Path(__file__).resolve().parents[2]
NASTY = (
    "<script>alert(1)</script>",
    "'; DROP TABLE rating; --",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://x")',
    "${7*7} {{7*7}} %s %n \\",
    "\u202egnp.exe \U0001f600 \x00 nul",
    "../../etc/passwd",
)


@pytest.fixture
def opened(tmp_path):
    store, study = open_store(tmp_path)
    yield store, study
    store.close()


def rate_all(store, token, page, score=50.0):
    for slot in page["slots"]:
        store.save_rating(token, page["trial"], slot, score, rev=1)
    return store.submit_trial(token, page["trial"], listened_s=heard(page))


def test_a_listener_goes_through_and_comes_back_at_any_point(opened):
    store, study = opened
    joined = store.join(study.name, user_agent="test")
    assert len(joined.token) >= 43 and joined.stage == "trials" and joined.listener == "L001"
    store.start_trial(joined.token, 0)
    store.save_rating(joined.token, 0, "A", 71.0, rev=1)
    again = store.session(joined.token)
    assert again.token == "" and again.plan == joined.plan
    assert again.ratings == {0: {"A": {"score": 71.0, "rev": 1, "touched": True}}} and again.current_trial == 0
    for page in joined.plan:
        session = rate_all(store, joined.token, page)
    assert session.stage == "finish" and session.submitted == [0, 1, 2, 3]
    store.finish(joined.token)
    store.finish(joined.token)
    assert store.session(joined.token).stage == "finished"
    frame = store.ratings_frame(study.name)
    assert len(frame) == 4 * 6 and frame["is_submitted"].all() and frame["is_finished"].all()
    assert set(frame["system"]) == {"reference", "anchor35", "anchor70", "fine", "rough", "coarse"}
    first = frame[frame["trial"] == 0].iloc[0]
    assert first["slot"] == "A" and first["score"] == 71.0 and first["seconds"] >= 0 and first["listened_s"] == 2.0


def test_nothing_that_leaves_through_a_session_names_a_system_or_an_item(opened):
    store, study = opened
    text = str(store.join(study.name)).lower()
    assert not re.search(r"fine|rough|coarse|anchor|item\d|hidden|sha256|\.wav", text)


def test_an_overtaken_revision_is_told_what_the_store_holds(opened):
    store, study = opened
    token = store.join(study.name).token
    assert store.save_rating(token, 0, "A", 10, rev=5).is_accepted
    for rev in (5, 4):  # the second tab, and a request that was late
        late = store.save_rating(token, 0, "A", 90, rev=rev)
        assert (late.is_accepted, late.rev, late.value) == (False, 5, 10.0)
    assert store.save_rating(token, 0, "A", 90, rev=6).value == 90.0
    assert store.session(token).ratings[0]["A"]["score"] == 90.0


def test_a_slider_once_touched_stays_touched(opened):
    store, study = opened
    token = store.join(study.name).token
    store.save_rating(token, 0, "A", 10, rev=1, touched=True)
    store.save_rating(token, 0, "A", 0, rev=2, touched=False)
    assert store.session(token).ratings[0]["A"]["touched"] is True


def test_a_trial_closes_only_when_all_is_rated_moved_and_heard_and_in_order(opened):
    store, study = opened
    joined = store.join(study.name)
    page, token = joined.plan[0], joined.token
    with pytest.raises(RefusedError, match="not yet rated: A, B, C, D, E, F"):
        store.submit_trial(token, 0, listened_s=heard(page))
    for slot in page["slots"]:
        store.save_rating(token, 0, slot, 50, rev=1, touched=slot != "C")
    with pytest.raises(RefusedError, match="slider not yet moved: C"):
        store.submit_trial(token, 0, listened_s=heard(page))
    store.save_rating(token, 0, "C", 50, rev=2)
    with pytest.raises(RefusedError, match="not yet heard for 0.5 s: B"):
        store.submit_trial(token, 0, listened_s=heard(page) | {"B": 0.1})
    with pytest.raises(RefusedError, match="trial 0 comes before trial 1"):
        store.save_rating(token, 1, "A", 50, rev=1)
    store.submit_trial(token, 0, listened_s=heard(page), comment="fine")
    assert store.submit_trial(token, 0, comment="again").comments == {0: "fine"}  # twice changes nothing
    with pytest.raises(RefusedError, match="was submitted and cannot change"):
        store.save_rating(token, 0, "A", 1, rev=99)
    with pytest.raises(RefusedError, match="'trials', trial 1 of 4"):
        store.finish(token)


@pytest.mark.parametrize("score", [-0.1, 100.1, float("nan"), float("inf"), True, "50", None])
def test_scores_outside_the_scale_are_refused(opened, score):
    store, study = opened
    token = store.join(study.name).token
    with pytest.raises(ValueError, match="score must be a number from 0 to 100"):
        store.save_rating(token, 0, "A", score, rev=1)
    assert store.session(token).ratings == {}


def test_consent_questionnaire_and_prescreen_come_first_where_there_are_any(tmp_path):
    question = {"name": "equipment", "text": "?", "options": ["headphones", "other"], "is_required": True}
    store, study = open_store(tmp_path, 1, consent="Agree?", questionnaire=[question], prescreen=["level"])
    token = store.join(study.name).token
    with pytest.raises(RefusedError, match="at 'consent'"):
        store.save_rating(token, 0, "A", 1, rev=1)
    store.save_consent(token)
    assert store.session(token).stage == "questionnaire"
    for answers, message in (({}, "required"), ({"equipment": "ears"}, "options"), ({"age": 3}, "no question 'age'")):
        with pytest.raises(ValueError, match=message):
            store.save_questionnaire(token, answers)
    store.save_questionnaire(token, {"equipment": "headphones"})
    assert store.session(token).stage == "prescreen"
    store.save_prescreen(token, {"level_db": -3})
    assert store.session(token).stage == "trials"
    row = store.listeners_frame(study.name).iloc[0]
    assert row["answers"] == {"equipment": "headphones"} and row["prescreen"] == {"level_db": -3} and row["consent_at"]
    store.close()


def test_events_are_stored_once_however_often_they_are_sent(opened):
    store, study = opened
    token = store.join(study.name).token
    events = [
        {"id": f"0000-event-{i}", "trial": 0, "kind": "switch", "slot": "A", "wall": i, "to": "B"} for i in range(5)
    ]
    assert store.add_events(token, events) == 5
    assert store.add_events(token, events[2:] + [events[0] | {"id": "0000-event-9", "kind": "underrun"}]) == 1
    frame = store.events_frame(study.name)
    assert len(frame) == 6 and json.loads(frame["body"].iloc[0]) == {"to": "B"}
    assert store.progress(study.name)[0]["num_underruns"] == 1
    other = store.join(study.name).token
    assert store.add_events(other, events) == 5  # one listener cannot use up the names of another
    with pytest.raises(ValueError, match="kind is one of"):
        store.add_events(token, [{"id": "00000000", "kind": "<script>"}])
    with pytest.raises(ValueError, match="at most 1000"):
        store.add_events(token, [{"id": f"{i:08d}", "kind": "play"} for i in range(1001)])


def test_a_study_is_private_until_it_is_opened_and_a_preview_counts_nowhere(tmp_path):
    study = make_study(tmp_path, 1)
    store = Store(tmp_path / "studies.sqlite")
    store.create_study(study)
    with pytest.raises(RefusedError, match="6 sounds are not rendered yet, the first item0 / reference"):
        store.set_status(study.name, "open")
    store.set_stimuli(study.name, render_study(study, tmp_path / "data"))
    with pytest.raises(RefusedError, match="not open"):
        store.join(study.name)
    preview = store.join(study.name, is_preview=True)
    rate_all(store, preview.token, preview.plan[0])
    assert store.ratings_frame(study.name).empty and store.progress(study.name) == []
    store.set_status(study.name, "open")
    token = store.join(study.name).token
    store.set_status(study.name, "closed")
    with pytest.raises(RefusedError):
        store.join(study.name)
    assert store.save_rating(token, 0, "A", 3, rev=1).is_accepted  # who has begun may finish
    with pytest.raises(RefusedError, match="must all hear the same"):
        store.set_stimuli(study.name, [])
    row = store.studies()[0]
    assert (row.id, row.status, row.num_joined, row.num_stimuli) == ("small", "closed", 1, 6)
    store.close()


def test_rows_of_the_design_are_given_as_listeners_come_and_go(opened):
    store, study = opened
    for _ in range(3):
        store.join(study.name)
    store.join(study.name, is_simulated=True)
    store.delete_listener(study.name, "L002")
    assert store.join(study.name).listener == "L005"  # numbers are not given twice
    rows = dict(zip(*(store.listeners_frame(study.name)[key] for key in ("listener", "square_row")), strict=True))
    assert rows == {"L001": 0, "L003": 2, "S004": 0, "L005": 1}
    assert store.release_idle(study.name, 3600) == 0
    assert store.release_idle(study.name, -1) == 4
    store.join(study.name)
    assert store.listeners_frame(study.name)["square_row"].iloc[-1] == 0


def test_a_sound_is_served_for_this_trial_and_the_next_and_no_other(opened):
    store, study = opened
    joined = store.join(study.name)
    by_path = {stimulus.path: stimulus for stimulus in store.stimuli(study.name)}
    reference = by_path[str(store.stimulus_path(joined.token, 0, "R"))]
    assert reference.system == "reference"
    systems = [by_path[str(store.stimulus_path(joined.token, 0, slot))] for slot in joined.plan[0]["slots"]]
    assert {s.item for s in systems} == {reference.item} and len({s.system for s in systems}) == 6
    store.stimulus_path(joined.token, 1, "A")
    with pytest.raises(RefusedError, match="comes before trial 2"):
        store.stimulus_path(joined.token, 2, "A")
    for slot in ("Z", "../A", "", "reference"):
        with pytest.raises(NotFoundError):
            store.stimulus_path(joined.token, 0, slot)
    for trial in (-1, 99, True):
        with pytest.raises(NotFoundError):
            store.stimulus_path(joined.token, trial, "A")


def test_tokens_are_not_in_the_file_and_unknown_ones_are_not_repeated(opened, tmp_path):
    store, study = opened
    token = store.join(study.name).token
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("studies.sqlite*"))
    assert token.encode() not in everything
    for wrong in ("", token[:-1], token + "x", "' OR 1=1 --"):
        with pytest.raises(NotFoundError) as caught:
            store.session(wrong)
        assert token[:8] not in str(caught.value)


def test_injection_strings_are_stored_verbatim_everywhere(tmp_path):
    question = {"name": "note", "text": NASTY[0], "kind": "long_text"}
    store, study = open_store(tmp_path, 1, title=NASTY[1], consent=NASTY[2], thanks=NASTY[4], questionnaire=[question])
    assert store.study(study.name).title == NASTY[1] and store.study(study.name).public()["consent"] == NASTY[2]
    for text in NASTY:
        joined = store.join(study.name, user_agent=text)
        store.save_consent(joined.token)
        store.save_questionnaire(joined.token, {"note": text})
        for slot in joined.plan[0]["slots"]:
            store.save_rating(joined.token, 0, slot, 5, rev=1)
        store.add_events(joined.token, [{"id": "event-0001", "kind": "play", "body": text}])
        store.submit_trial(joined.token, 0, comment=text, listened_s=heard(joined.plan[0]), loop=[text])
        store.exclude_listener(study.name, joined.listener, text)
        assert store.session(joined.token).comments == {0: text}
    listeners = store.listeners_frame(study.name)
    assert listeners["user_agent"].tolist() == list(NASTY) == [row["note"] for row in listeners["answers"]]
    assert store.exclusions(study.name) == dict(zip(listeners["listener"], NASTY, strict=True))
    assert set(store.ratings_frame(study.name)["comment"]) == set(NASTY)
    assert {json.loads(body)["body"] for body in store.events_frame(study.name)["body"]} == set(NASTY)
    store.close()


def test_what_is_deleted_is_gone_from_the_file(opened, tmp_path):
    store, study = opened
    joined = store.join(study.name, user_agent="a very particular browser")
    rate_all(store, joined.token, joined.plan[0])
    store.add_events(joined.token, [{"id": "event-of-this-person", "kind": "play"}])
    store.delete_listener(study.name, joined.listener)
    assert store.ratings_frame(study.name).empty and store.events_frame(study.name).empty
    files = b"".join(path.read_bytes() for path in tmp_path.glob("studies.sqlite*"))
    assert b"a very particular browser" not in files and b"event-of-this-person" not in files
    with pytest.raises(NotFoundError):
        store.session(joined.token)
    with pytest.raises(NotFoundError):
        store.delete_listener(study.name, joined.listener)


def test_an_open_study_cannot_be_deleted_and_a_closed_one_leaves_nothing(opened):
    store, study = opened
    token = store.join(study.name).token
    with pytest.raises(RefusedError, match="close it"):
        store.delete_study(study.name)
    store.set_status(study.name, "closed")
    store.delete_study(study.name)
    assert store.studies() == []
    for call in (lambda: store.session(token), lambda: store.study(study.name), lambda: store.progress(study.name)):
        with pytest.raises(NotFoundError):
            call()


def test_abx_answers_are_scored_and_ab_and_acr_have_their_own(tmp_path):
    store, study = open_store(tmp_path, 2, method="abx", anchors_hz=[], must_listen_s=0.0, repetitions=4)
    joined = store.join(study.name)
    assert joined.plan[0]["slots"] == ["A", "B", "X"] and not joined.plan[0]["has_reference"]
    with pytest.raises(ValueError, match="takes a choice"):
        store.save_rating(joined.token, 0, "A", 50, rev=1)
    with pytest.raises(ValueError, match="one of A, B"):
        store.save_choice(joined.token, 0, "X", rev=1)
    by_path = {str(s.path): s.system for s in store.stimuli(study.name)}
    for page in joined.plan:
        sounds = {slot: by_path[str(store.stimulus_path(joined.token, page["trial"], slot))] for slot in "ABX"}
        right = "A" if sounds["A"] == sounds["X"] else "B"
        answer = right if page["trial"] % 4 else {"A": "B", "B": "A"}[right]
        store.save_choice(joined.token, page["trial"], answer, rev=1)
        assert not store.save_choice(joined.token, page["trial"], right, rev=1).is_accepted
        store.submit_trial(joined.token, page["trial"])
    frame = store.choices_frame(study.name)
    assert len(frame) == 2 * 3 * 4 and frame["is_correct"].sum() == 18
    assert frame["is_correct"].tolist() == [trial % 4 != 0 for trial in range(24)]
    store.close()


def test_two_writers_in_two_processes_lose_nothing(tmp_path):
    store, study = open_store(tmp_path, 1)
    tokens = [store.join(study.name).token for _ in range(2)]
    code = """
import sys
from workbench.listening.store import Store
store = Store(sys.argv[1])
for rev in range(1, 101):
    for token in sys.argv[2:]:
        store.save_rating(token, 0, "A", rev % 100, rev=rev)
        store.add_events(token, [{"id": f"{__import__('os').getpid()}-{rev:04d}", "kind": "play"}])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "studies.sqlite"), *tokens]
    writers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    assert len(store.events_frame(study.name)) == 2 * 2 * 100
    for token in tokens:
        assert store.session(token).ratings[0]["A"] == {"score": 0.0, "rev": 100, "touched": True}
    store.close()


def test_many_threads_share_one_store(opened):
    store, study = opened
    failures, tokens = [], [store.join(study.name).token for _ in range(12)]

    def work(token):
        try:
            for rev in range(1, 21):
                store.save_rating(token, 0, "B", rev, rev=rev)
                assert store.session(token).ratings[0]["B"]["rev"] == rev
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.ratings_frame(study.name)["score"].tolist() == [20.0] * 12


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_confirmed(tmp_path):
    store, study = open_store(tmp_path, 1)
    token = store.join(study.name).token
    store.close()
    code = """
import sys
from workbench.listening.store import Store
store = Store(sys.argv[1])
for rev in range(int(sys.argv[3]), 10**9):
    saved = store.save_rating(sys.argv[2], 0, "A", rev % 101, rev=rev)
    store.add_events(sys.argv[2], [{"id": f"event-{rev:09d}", "kind": "play"}])
    print(rev, flush=True)
"""
    path, last, confirmed = tmp_path / "studies.sqlite", 0, set()
    for round_number in range(3):
        command = [sys.executable, "-c", code, str(path), token, str(last + 1)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                last = int(line)
                confirmed.add(f"event-{last:09d}")
                if last % 50 == 17 + round_number:  # at an arbitrary moment: the writer does not wait for us
                    os.kill(writer.pid, signal.SIGKILL)
                    break
            rest = [int(text) for text in writer.stdout.read().split("\n")[:-1]]  # printed before the signal came
            confirmed |= {f"event-{rev:09d}" for rev in rest}
            last = max([last, *rest])
        assert writer.returncode == -signal.SIGKILL
        store = Store(path)
        kept = store.session(token).ratings[0]["A"]
        events = store.events_frame(study.name)["id"].tolist()
        store.close()
        # One more write may have reached the disk before its confirmation could be printed.
        assert last <= kept["rev"] <= last + 1 and kept["score"] == kept["rev"] % 101
        assert confirmed <= set(events) and len(events) == len(set(events)) <= len(confirmed) + round_number + 1
        last = kept["rev"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_backup_is_taken_while_others_write_and_opens_as_a_store(opened, tmp_path):
    store, study = opened
    token = store.join(study.name).token
    stop = threading.Event()

    def write():
        rev = 0
        while not stop.is_set():
            rev += 1
            store.save_rating(token, 0, "A", rev % 100, rev=rev)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        store.backup(tmp_path / "copy.sqlite")
    finally:
        stop.set()
        writer.join()
    with pytest.raises(FileExistsError, match="--force"):
        store.backup(tmp_path / "copy.sqlite")
    store.backup(tmp_path / "copy.sqlite", force=True)
    assert not list(tmp_path.glob(".*.tmp*")) and not list(tmp_path.glob("copy.sqlite-*"))
    copy = Store(tmp_path / "copy.sqlite")
    assert copy.session(token).ratings == store.session(token).ratings
    copy.close()
    with pytest.raises(ValueError, match="the store itself"):
        store.backup(tmp_path / "studies.sqlite", force=True)


def test_files_of_others_and_of_newer_versions_are_left_alone(tmp_path):
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE birds (name)")
    other.commit()
    other.close()
    with pytest.raises(ValueError, match="database of another program"):
        Store(tmp_path / "other.sqlite")
    Store(tmp_path / "new.sqlite").close()
    newer = sqlite3.connect(tmp_path / "new.sqlite")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(ValueError, match="has version 99, this program knows 1"):
        Store(tmp_path / "new.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, but long enough to look like a file of some kind" * 20)
    with pytest.raises(ValueError, match="cannot be used as a store"):
        Store(tmp_path / "text.sqlite")


def test_commits_are_synchronous(opened):
    store, _ = opened
    connection = store._database.read()
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
