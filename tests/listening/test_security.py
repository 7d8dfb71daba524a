"""What somebody might do to the server: files, other sites, guesses, floods; and what it says about its secrets."""

import contextlib
import io
import re
import socket
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.requests import Request

import workbench.listening
from tests.listening.conftest import ADMIN_TOKEN
from tests.listening.http_listener import Listener, client_list
from tests.listening.small_study import open_store
from workbench.listening.security import Buckets, Guard, Limits
from workbench.listening.server import build_server

STATIC_DIR = Path(workbench.listening.__file__).parent / "static"


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


# Every route of the application, so that a new one cannot forget its guard.


def _routes(app) -> list[tuple[str, str]]:
    """(method, path) below /api, with names for what the path leaves open."""
    names = {
        "study_id": "small",
        "listener": "L001",
        "name": "answers.csv",
        "trial": "0",
        "slot": "A",
        "folder": "clips",
    }
    found = []
    for part in app.routes:  # newer versions of FastAPI keep the routers that were included
        for route in part.original_router.routes if hasattr(part, "original_router") else [part]:
            if isinstance(route, APIRoute) and route.path.startswith("/api/") and "{rest:path}" not in route.path:
                path = re.sub(r"{(\w+)}", lambda match: names[match.group(1)], route.path)
                found += [(method, path) for method in sorted(route.methods)]
    return found


@pytest.fixture
def guarded(tmp_path):
    """`guarded(**limits)` -> a client with an admin's and a listener's tokens, beside a small open study."""
    store, study = open_store(tmp_path, 1)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "X-Session": store.join(study.name).token}
    store.close()

    def make(**limits) -> TestClient:
        app = build_server(tmp_path, admin_token=ADMIN_TOKEN, limits=Limits(**limits))
        return TestClient(app, headers=headers)

    return make


def test_no_route_that_changes_something_takes_requests_from_elsewhere(guarded):
    client = guarded()
    changing = [route for route in _routes(client.app) if route[0] != "GET"]
    assert len(changing) >= 11
    for method, path in changing:
        for foreign in ({}, {"X-Listening": "1", "Origin": "https://evil.example"}):
            assert client.request(method, path, headers=foreign).status_code == 403, (method, path)
    assert client.get("/api/session").status_code == 200


def test_every_route_counts_the_requests_of_an_address(guarded):
    client = guarded(address_burst=2, address_rate=1e-6)
    assert [client.get("/api/session").status_code for _ in range(3)] == [200, 200, 429]
    for method, path in _routes(client.app):
        answer = client.request(method, path, headers={"X-Listening": "1"})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0, (method, path)


def test_every_route_of_a_listener_counts_the_requests_of_a_session(guarded):
    client = guarded(session_burst=1, session_rate=1e-6)
    assert [client.get("/api/session").status_code for _ in range(2)] == [200, 429]
    for method, path in _routes(client.app):
        if path.startswith("/api/session"):
            assert client.request(method, path, headers={"X-Listening": "1"}).status_code == 429, path


def test_new_listeners_and_wrong_tokens_are_counted(guarded):
    client = guarded(join_burst=2, join_rate=1e-6, guess_burst=2, guess_rate=1e-6)
    joins = [client.post("/api/t/small/join", json={}, headers={"X-Listening": "1"}).status_code for _ in range(3)]
    assert joins == [200, 200, 429]
    wrong = {"Authorization": "Bearer wrong-wrong-wrong-wrong"}
    assert [client.get("/api/admin/overview", headers=wrong).status_code for _ in range(3)] == [401, 401, 429]
    assert client.get("/api/admin/overview").status_code == 200  # guesses of others do not lock the admin out


def test_no_route_of_the_admin_answers_without_the_token(guarded):
    client = guarded(guess_burst=1000)
    routes = [route for route in _routes(client.app) if route[1].startswith("/api/admin")]
    assert len(routes) >= 14
    for method, path in routes:
        for token in ("", "Bearer", f"Bearer {ADMIN_TOKEN}x", f"Basic {ADMIN_TOKEN}"):
            answer = client.request(method, path, headers={"X-Listening": "1", "Authorization": token})
            assert answer.status_code == 401, (method, path)


def test_tokens_are_as_long_as_they_should_be_and_never_the_same(guarded, tmp_path):
    client = guarded()
    tokens = [
        client.post("/api/t/small/join", json={}, headers={"X-Listening": "1"}).json()["token"] for _ in range(20)
    ]
    assert len(set(tokens)) == 20 and min(map(len, tokens)) >= 43  # 256 bits
    letters = [token[place] for token in tokens for place in range(43)]
    assert len(set(letters)) > 50  # of the 64 of base64
    made = {build_server(tmp_path).state.admin_token for _ in range(5)}
    assert len(made) == 5 and min(map(len, made)) >= 32


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
