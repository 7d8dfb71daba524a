"""The server over HTTP: blinding, private studies, idempotent writes, and everything that somebody might send it."""

import contextlib
import io
import json
import re
import socket
import threading
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import HTTPException
from starlette.requests import Request

import workbench.listening
from workbench.listening.security import Buckets, Guard, Limits, slot_salt

STATIC_DIR = Path(workbench.listening.__file__).parent / "static"
INJECTION = "<img src=x onerror=window.ran=1>${window.ran=1}{{7*7}}'; DROP TABLE session; --\u202e\x00"


def entry(kind: str, **values) -> dict:
    return {"id": uuid.uuid4().hex, "kind": kind, **values}


class Listener:
    """A listener's page, without a browser."""

    def __init__(self, server, study: str) -> None:
        joined = httpx.post(f"{server.url}/api/t/{study}/join", json={}, headers={"X-Listening": "1"}, timeout=60)
        joined.raise_for_status()
        self.token = joined.json()["token"]
        self.session = joined.json()["session"]
        self.http = server.client(self.token)
        self.rev = 0

    def sync(self, *entries: dict) -> list[dict]:
        answer = self.http.post("/api/session/sync", json={"entries": list(entries)})
        answer.raise_for_status()
        return answer.json()["results"]

    def state(self) -> dict:
        return self.http.get("/api/session").raise_for_status().json()

    def sound(self, trial: int, slot: str) -> httpx.Response:
        return self.http.get(f"/api/session/audio/{trial}/{slot}")

    def rating(self, trial: int, slot: str, score: float) -> dict:
        self.rev += 1
        return entry("rating", trial=trial, slot=slot, score=score, rev=self.rev)

    def submit(self, trial: int, comment: str = "") -> dict:
        slots = self.session["plan"][trial]["slots"]
        return entry("submit", trial=trial, comment=comment, listened_s={slot: 1.0 for slot in slots})


def scores(state: dict) -> dict[str, float]:
    """Of the first trial, by slot."""
    return {slot: rating["score"] for slot, rating in state["ratings"]["0"].items()}


@pytest.fixture(scope="module")
def mushra(make_study):
    return make_study("mushra", anchors_hz="[3500]")


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


def client_list(server) -> set[str]:
    return {row["id"] for row in server.admin.get("/overview").json()["studies"]}


# Files


@pytest.mark.parametrize(
    "path",
    [
        "/sounds/..%2f..%2f/evil.wav",
        "/sounds/clips/..%2f..%2fevil.wav",
        "/sounds/clips/%2e%2e%2fevil.wav",
        "/sounds/.hidden/evil.wav",
        "/sounds/clips/evil.wav%00.txt",
        "/sounds/clips/con:evil.wav",
        "/sounds/clips\\..\\evil/evil.wav",
    ],
)
def test_an_upload_cannot_leave_its_folder(server, path):
    before = {file for file in server.folder.parent.rglob("*") if "sqlite" not in file.name}
    answer = server.admin.put(path, content=server_wav())
    assert answer.status_code in (404, 405, 415, 422), answer.text
    assert {file for file in server.folder.parent.rglob("*") if "sqlite" not in file.name} == before


def server_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600), 16000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.wav", b"this is no sound"),
        ("page.flac", b"<html><script>1</script></html>"),
        ("header.wav", server_wav()[:30]),
        ("empty.wav", b""),
        ("broken.flac", b"fLaC" + bytes(500)),
    ],
)
def test_a_damaged_recording_is_refused_and_leaves_nothing(server, name, data):
    answer = server.upload("damaged", name, data)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{name} cannot be read as audio"
    assert list((server.folder / "sounds" / "damaged").iterdir()) == []
    assert server.upload("damaged", "program.py", b"print()").status_code == 415


def test_a_flac_whose_end_is_damaged_is_refused(server):
    """Its header is in order; only decoding it all finds out."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000, format="FLAC")
    data = file.getvalue()
    assert server.upload("damaged", "whole.flac", data).status_code == 201
    assert server.upload("damaged", "cut.flac", data[: len(data) // 2]).status_code == 422
    assert [path.name for path in (server.folder / "sounds" / "damaged").iterdir()] == ["whole.flac"]


def test_a_huge_upload_is_refused_before_and_while_it_comes(server):
    path = "/sounds/clips/huge.wav"

    def peak_memory() -> int:
        """Bytes that the server ever had."""
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status).group(1))

    before = peak_memory()
    # A header alone: the server answers before any of the 2^40 bytes came.
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        lines = [f"PUT /api/admin{path} HTTP/1.1", "Host: x", "X-Listening: 1", f"Content-Length: {2**40}"]
        lines.append(f"Authorization: Bearer {server.admin_token}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    with contextlib.suppress(httpx.TransportError):  # the server may hang up while the body still comes
        answer = server.admin.put(path, content=(bytes(2**20) for _ in range(300)))
        assert answer.status_code == 413
    assert peak_memory() - before < 150 * 2**20  # the limit is 64 MiB, and pieces and the whole are there at once
    assert not (server.folder / "sounds" / "clips" / "huge.wav").exists()
    assert not list((server.folder / "sounds" / "clips").glob(".part-*"))
    assert server.admin.get("/overview").status_code == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.key", "clips/../../secret.key", "nowhere"])
def test_a_study_file_cannot_name_files_outside(server, path):
    text = f'name = "outside"\ntitle = "Outside"\nitems = ["{path}"]\nsystems = []'
    answer = server.admin.post("/studies", content=text, headers={"Content-Type": "application/toml"})
    assert answer.status_code == 422
    assert "outside of the folder" in answer.json()["detail"] or "there is no" in answer.json()["detail"]


def test_a_yaml_file_that_builds_objects_is_refused(server):
    text = "title: !!python/object/apply:os.system ['echo evil']"
    answer = server.admin.post("/studies", content=text, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422
    assert server.admin.post("/studies", content=b"x" * (2**20 + 1)).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/listening/../store.py",
        "/listening/%2e%2e/store.py",
        "/listening/..%2f..%2f..%2fapp.py",
        "/listening//etc/passwd",
    ],
)
def test_static_files_cannot_be_left(server, path):
    answer = server.client().get(path)
    assert answer.status_code == 404


def test_a_failed_rendering_is_told_and_can_be_repeated(server):
    server.upload("short", "short.wav", server_wav())
    text = 'name = "short"\ntitle = "Too short"\nitems = "short"\nsystems = [{ name = "x", folder = "clips" }]'
    server.admin.post("/studies", content=text, headers={"Content-Type": "application/toml"}).raise_for_status()
    for _ in range(200):
        job = server.admin.get("/studies/short").json()["job"]
        if job["state"] == "failed":
            break
        threading.Event().wait(0.05)
    assert job["state"] == "failed" and "short" in job["what"]
    refused = server.admin.post("/studies/short/status", json={"status": "open"})
    assert refused.status_code == 409 and "not rendered" in refused.json()["detail"]
    assert server.admin.post("/studies/short/render").json()["job"]["state"] in ("waiting", "running", "failed")


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Listening": "1"}, 409),  # our own page: let in, though this study is not open
        ({"X-Listening": "1", "Origin": "https://evil.example"}, 403),
        ({"X-Listening": "1", "Origin": "null"}, 403),
        ({"X-Listening": "1", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"X-Listening": "1", "Sec-Fetch-Site": "same-site"}, 403),
        ({"X-Listening": "1", "Sec-Fetch-Site": "same-origin"}, 409),
    ],
)
def test_other_sites_cannot_change_anything(server, make_study, headers, status):
    if "untouched" not in client_list(server):
        make_study("untouched", is_open=False)
    answer = httpx.post(f"{server.url}/api/t/untouched/join", json={}, headers=headers)
    assert answer.status_code == status


def test_no_preflight_is_granted(server):
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-listening,content-type",
    }
    for path in ("/api/session/sync", "/api/admin/studies", "/api/t/x/join"):
        answer = httpx.options(f"{server.url}{path}", headers=headers)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/overview"),
        ("POST", "/studies"),
        ("GET", "/studies/mushra"),
        ("GET", "/studies/mushra/results"),
        ("GET", "/studies/mushra/export/answers.csv"),
        ("DELETE", "/studies/mushra"),
        ("DELETE", "/studies/mushra/listeners/L001"),
        ("GET", "/backup"),
        ("PUT", "/sounds/clips/x.wav"),
    ],
)
def test_the_admin_s_side_needs_the_token(server, method, path):
    for token in ("", "Bearer", f"Bearer {server.admin_token}x", f"Basic {server.admin_token}"):
        headers = {"X-Listening": "1", "Authorization": token}
        answer = httpx.request(method, f"{server.url}/api/admin{path}", headers=headers)
        assert answer.status_code in (401, 429)
    assert server.admin.get("/overview").status_code == 200  # guesses of others do not lock the admin out


def test_guessing_a_token_is_slowed_down(server):
    answers = [
        httpx.get(f"{server.url}/api/admin/overview", headers={"Authorization": f"Bearer guess{k}"}).status_code
        for k in range(15)
    ]
    assert answers[-1] == 429


def _request(address: str, method: str = "GET", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "headers": raw, "client": (address, 1), "path": "/"})


def test_limits_are_per_listener_and_per_address():
    limits = Limits(
        address_burst=5, address_rate=1e-6, session_burst=2, session_rate=1e-6, join_burst=1, join_rate=1e-6
    )
    guard = Guard("a" * 16, limits)
    for _ in range(2):
        guard.session(_request("1.1.1.1", x_session="t" * 43))
    with pytest.raises(HTTPException) as refusal:
        guard.session(_request("2.2.2.2", x_session="t" * 43))
    assert refusal.value.status_code == 429
    assert int(refusal.value.headers["retry-after"]) > 0
    guard.session(_request("1.1.1.1", x_session="u" * 43))
    for _ in range(5):
        guard.enter(_request("1.1.1.1"))
    with pytest.raises(HTTPException):
        guard.enter(_request("1.1.1.1"))
    guard.enter(_request("2.2.2.2"))
    guard.join(_request("1.1.1.1"))
    with pytest.raises(HTTPException):
        guard.join(_request("1.1.1.1"))
    with pytest.raises(ValueError, match="at least 16"):
        Guard("short", limits)


def test_a_flood_of_addresses_does_not_fill_the_memory():
    buckets = Buckets(burst=2, rate=1e-6, capacity=100)
    for number in range(10_000):
        buckets.take(str(number))
    assert len(buckets._levels) <= 101
    assert buckets.take("9999") == 0 and buckets.take("9999") > 0  # the newest are not forgotten


# What is sent with every page


def test_pages_bring_a_strict_policy_and_nothing_inline(server, mushra):
    for path in (f"/t/{mushra}", "/admin", "/listening/participant.js", "/api/t/none", "/t/UPPER"):
        headers = httpx.get(f"{server.url}{path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe" not in policy and "http:" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
    for path in STATIC_DIR.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"https?://(?!www\.w3\.org)", text), path
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=", text), path
            assert set(re.findall(r'src="(.*?)"', text)) <= {f"/listening/{file.name}" for file in STATIC_DIR.iterdir()}


def test_no_token_is_in_the_log(server, mushra):
    listener = Listener(server, mushra)
    listener.sync(listener.rating(0, "A", 50))
    listener.sound(0, "A")
    httpx.post(f"{server.url}/api/session/sync", content=b"{", headers={"X-Session": listener.token})
    address = server.admin.post(f"/studies/{mushra}/preview").json()["address"]
    text = server.log.read_text()
    assert "POST /api/session/sync" in text  # the log is on
    assert listener.token not in text
    assert address.partition("#")[2] not in text
    assert server.admin_token not in text
    key = (server.folder / "secret.key").read_bytes()
    assert key.hex() not in text and len(key) == 32
    assert (server.folder / "secret.key").stat().st_mode & 0o777 == 0o600


def test_the_backup_is_a_store_with_everything(server, mushra, tmp_path):
    from workbench.listening.store import Store

    (tmp_path / "backup.sqlite").write_bytes(server.admin.get("/backup").content)
    store = Store(tmp_path / "backup.sqlite")
    assert {row.id for row in store.studies()} >= {mushra}
    assert len(store.ratings_frame(mushra)) > 0
    store.close()
