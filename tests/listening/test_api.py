"""The server over HTTP: blinding, private studies, idempotent writes, and everything that somebody might send it."""

import io
import json
import re
import threading
import uuid

import httpx
import numpy as np
import pytest
import soundfile

from tests.listening.http_listener import Listener, client_list, entry
from workbench.listening.security import slot_salt

INJECTION = "<img src=x onerror=window.ran=1>${window.ran=1}{{7*7}}'; DROP TABLE session; --\u202e\x00"


def scores(state: dict) -> dict[str, float]:
    """Of the first trial, by slot."""
    return {slot: rating["score"] for slot, rating in state["ratings"]["0"].items()}


# Blinding


def test_no_name_of_a_system_or_an_item_reaches_the_page(server, mushra):
    listener = Listener(server, mushra)
    texts = [
        json.dumps(listener.session),
        listener.http.get("/api/session").text,
        listener.http.get(f"/api/t/{mushra}").text,
    ]
    sounds = [listener.sound(0, slot) for slot in ["R", *listener.session["plan"][0]["slots"]]]
    texts += [str(dict(sound.headers)) for sound in sounds]
    for text in texts:
        assert not re.search("fine|rough|coarse|clip|anchor35|seed|square", text)
    assert listener.session["plan"][0] == {
        "trial": 0,
        "kind": "test",
        "slots": ["A", "B", "C", "D", "E"],
        "has_reference": True,
        "seconds": 1.5,
    }


def test_sounds_of_a_trial_differ_in_nothing_but_their_sound(server, mushra):
    listener = Listener(server, mushra)
    answers = {slot: listener.sound(0, slot) for slot in ["R", *"ABCDE"]}
    assert {answer.status_code for answer in answers.values()} == {200}
    headers = [{k: v for k, v in answer.headers.items() if k != "date"} for answer in answers.values()]
    assert all(header == headers[0] for header in headers)
    assert headers[0]["cache-control"] == "no-store"  # nothing is quicker because it was heard before
    assert not {"etag", "last-modified", "content-disposition", "age"} & headers[0].keys()
    assert len({answer.content[:44] for answer in answers.values()}) == 1  # the same header: format, rate, length
    assert len({answer.content for answer in answers.values()}) == 6  # no two are equal in bytes
    wavs = {slot: soundfile.read(io.BytesIO(answer.content), dtype="int32")[0] >> 8 for slot, answer in answers.items()}
    same = [slot for slot in "ABCDE" if np.abs(wavs[slot] - wavs["R"]).max() <= 2]
    assert len(same) == 1  # the hidden reference: its dither and that of the labelled one are a step each
    assert listener.sound(0, "A").content == answers["A"].content  # asking twice averages nothing away
    other = Listener(server, mushra)
    assert other.sound(0, "R").content != answers["R"].content


def test_the_salt_of_a_slot_needs_the_key_of_the_server():
    salts = {slot_salt(key, "token", trial, slot) for key in (b"1", b"2") for trial in (0, 1) for slot in "AB"}
    assert len(salts) == 8
    assert slot_salt(b"1", "token", 0, "A") == slot_salt(b"1", "token", 0, "A")


def test_later_trials_cannot_be_heard_ahead(server, mushra):
    listener = Listener(server, mushra)
    assert listener.sound(1, "A").status_code == 200  # the page fetches the next one ahead
    assert listener.sound(2, "A").status_code == 409
    assert [listener.sound(0, slot).status_code for slot in ("F", "X", "AA", "%2e%2e")] == [404] * 4


def test_a_draft_exists_only_for_its_previews_and_a_closed_study_for_those_who_began(server, make_study):
    study = make_study("private", is_open=False)
    client = server.client()
    assert client.get(f"/api/t/{study}").status_code == 404
    assert client.get(f"/api/t/{study}").json() == client.get("/api/t/no-such-study").json()
    assert client.post(f"/api/t/{study}/join", json={}).status_code == 409
    address = server.admin.post(f"/studies/{study}/preview").json()["address"]
    preview = server.client(address.partition("#")[2])
    assert preview.get(f"/api/t/{study}").json()["status"] == "draft"
    assert preview.get("/api/session").json()["is_preview"] is True
    server.admin.post(f"/studies/{study}/status", json={"status": "open"}).raise_for_status()
    listener = Listener(server, study)
    server.admin.post(f"/studies/{study}/status", json={"status": "closed"}).raise_for_status()
    assert client.get(f"/api/t/{study}").status_code == 410
    assert client.post(f"/api/t/{study}/join", json={}).status_code == 409
    assert listener.sync(listener.rating(0, "A", 50))[0]["status"] == "saved"
    progress = server.admin.get(f"/studies/{study}").json()["listeners"]
    assert [entry["listener"] for entry in progress] == ["L001"]  # the preview is nobody


# Writes


def test_sending_everything_twice_stores_it_once(server, mushra):
    listener = Listener(server, mushra)
    events = [{"id": uuid.uuid4().hex, "trial": 0, "kind": "play", "slot": "A", "pos_s": 0.1, "ctx_time": 1, "wall": 2}]
    batch = [entry("start", trial=0), entry("events", events=events)]
    batch += [listener.rating(0, slot, 10 * k) for k, slot in enumerate("ABCDE")]
    batch.append(listener.submit(0, "a comment"))
    first = listener.sync(*batch)
    assert {result["status"] for result in first} == {"saved"}
    state = listener.state()
    again = listener.sync(*batch)
    # The trial is closed: its ratings are refused and stay as they are, and submitting it again is nothing new.
    assert [result["status"] for result in again] == ["saved", "saved", *["refused"] * 5, "saved"]
    assert listener.state() == state
    assert state["submitted"] == [0] and state["current_trial"] == 1
    assert scores(state) == {"A": 0, "B": 10, "C": 20, "D": 30, "E": 40}
    rows = server.admin.get(f"/studies/{mushra}/export/events.json").json()
    assert [row["id"] for row in rows].count(events[0]["id"]) == 1


def test_an_overtaken_write_is_answered_with_what_is_stored(server, mushra):
    listener = Listener(server, mushra)
    old, new = listener.rating(0, "A", 20), listener.rating(0, "A", 80)
    assert listener.sync(new, old)[1] == {"id": old["id"], "status": "saved", "rev": 2, "value": 80}
    assert listener.state()["ratings"]["0"]["A"]["score"] == 80


def test_a_trial_cannot_be_submitted_before_it_is_done(server, mushra):
    listener = Listener(server, mushra)
    ratings = [listener.rating(0, slot, 50) for slot in "ABCD"]
    unheard = entry("submit", trial=0, listened_s={slot: 0.1 for slot in "ABCDE"})
    results = listener.sync(*ratings, listener.submit(0), listener.rating(0, "E", 50), unheard)
    assert "not yet rated: E" in results[4]["reason"]
    assert "not yet heard" in results[6]["reason"]
    assert listener.state()["submitted"] == []
    assert listener.sync(listener.rating(1, "A", 50))[0]["status"] == "refused"


def test_kill_9_in_the_middle_of_a_trial_loses_nothing(server, mushra):
    listener = Listener(server, mushra)
    listener.sync(listener.rating(0, "A", 11), listener.rating(0, "B", 22))
    before = listener.state()
    server.kill()
    server.start()
    assert listener.state() == before
    assert listener.sync(listener.rating(0, "C", 33))[0]["status"] == "saved"
    assert {slot: rating["score"] for slot, rating in listener.state()["ratings"]["0"].items()} == {
        "A": 11,
        "B": 22,
        "C": 33,
    }


def test_ratings_that_were_confirmed_survive_a_kill_under_fire(server, mushra):
    """Many listeners write as fast as they can; whatever was answered before the kill is there after it."""
    listeners = [Listener(server, mushra) for _ in range(6)]
    confirmed: dict[str, int] = {}

    def write(listener: Listener) -> None:
        for score in range(1, 1000):
            try:
                listener.sync(listener.rating(0, "A", score / 10))
            except httpx.TransportError:
                return
            confirmed[listener.token] = score

    threads = [threading.Thread(target=write, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    while sum(confirmed.values()) < 60 and any(thread.is_alive() for thread in threads):
        threads[0].join(0.01)
    server.kill()
    for thread in threads:
        thread.join()
    server.start()
    assert sum(confirmed.values()) >= 60
    for listener in listeners:
        stored = listener.state()["ratings"]["0"]["A"]["score"] * 10
        # The one that was under way when the power went may be there or not.
        assert round(stored) in (confirmed[listener.token], confirmed[listener.token] + 1)


def test_deleting_a_listener_ends_their_session(server, make_study):
    study = make_study("deleted")
    listener = Listener(server, study)
    listener.sync(listener.rating(0, "A", 50))
    assert server.admin.delete(f"/studies/{study}/listeners/L001").status_code == 200
    assert listener.http.get("/api/session").status_code == 404
    assert listener.http.post("/api/session/sync", json={"entries": [listener.rating(0, "A", 60)]}).status_code == 404
    assert server.admin.get(f"/studies/{study}/export/answers.json").json() == []


# What somebody might send


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "1", "kind": "rating", "trial": 0, "slot": "A", "score": 101, "rev": 1},
        {"id": "1", "kind": "rating", "trial": 0, "slot": "A", "score": "50", "rev": 1},
        {"id": "1", "kind": "rating", "trial": 0, "slot": "A", "score": True, "rev": 1},
        {"id": "1", "kind": "rating", "trial": -1, "slot": "A", "score": 50, "rev": 1},
        {"id": "1", "kind": "rating", "trial": 0, "slot": "../A", "score": 50, "rev": 1},
        {"id": "1", "kind": "rating", "trial": 0, "slot": "A", "score": 50, "rev": 2**60},
        {"id": "1", "kind": "rating", "trial": 0, "slot": "A", "score": 50, "rev": 1, "listener": "L002"},
        {"id": "1" * 65, "kind": "consent"},
        {"id": "1", "kind": "delete"},
        {"id": "1", "kind": "submit", "trial": 0, "comment": "x" * 5001},
        {"id": "1", "kind": "events", "events": [{"id": "short"}]},
        {"id": "1", "kind": "events", "events": [{"id": "long enough", "kind": INJECTION}]},
        {"id": "1", "kind": "questionnaire", "answers": {INJECTION: "1"}},
        ["no object"],
        None,
    ],
)
def test_an_entry_that_is_no_entry_is_refused_and_the_next_one_stored(server, mushra, bad):
    listener = Listener(server, mushra)
    good = listener.rating(0, "B", 42)
    results = listener.sync(bad, good)
    assert results[0]["status"] == "refused"
    assert results[0]["reason"]
    assert results[1]["status"] == "saved"
    assert "A" not in listener.state()["ratings"]["0"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"entries": 1}', 400),
        (b'{"entries": [{"id": "1", "kind": "rating", "trial": 0, "slot": "A", "rev": 1, "score": NaN}]}', 400),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
        (b'{"entries": [' + b"1," * 300 + b"1]}", 400),
        (b'{"entries": ["' + b"x" * 300_000 + b'"]}', 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(server, mushra, body, status):
    listener = Listener(server, mushra)
    answer = listener.http.post("/api/session/sync", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert listener.http.post("/api/session/sync", content=b"{}").status_code == 415


def test_words_from_outside_come_back_as_they_were(server, make_study):
    question = '[{ name = "remark", text = "<b>Anything?</b>", kind = "text" }]'
    study = make_study("injected", questionnaire=question)
    listener = Listener(server, study)
    text = INJECTION.replace("\x00", "")
    results = listener.sync(entry("questionnaire", answers={"remark": text}))
    assert results[0]["status"] == "saved"
    ratings = [listener.rating(0, slot, 50) for slot in listener.session["plan"][0]["slots"]]
    listener.sync(*ratings, listener.submit(0, "=HYPERLINK(1)"))
    listeners = server.admin.get(f"/studies/{study}/export/listeners.json").json()
    assert listeners[0]["answers"] == {"remark": text}
    # A spreadsheet must not run what a listener wrote.
    table = server.admin.get(f"/studies/{study}/export/answers.csv").text
    assert "'=HYPERLINK(1)" in table
    assert not re.search(r"(^|,)\"?=", table)
    assert client_list(server) >= {study}  # the table of sessions was not dropped
