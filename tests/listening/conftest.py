"""A server of listening tests in a process of its own, and studies made through its API as a researcher would."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from tests.listening.page_steps import DESKTOP

ROOT = Path(__file__).resolve().parents[2]
ADMIN_TOKEN = "an-admin-token-for-tests"
RATE_HZ = 16_000
NOISES = {"fine": 0.001, "rough": 0.01, "coarse": 0.1}  # system -> level of the noise that it adds


@dataclass
class ListeningServer:
    """Starts, kills and asks one server; the port and the folder stay."""

    folder: Path
    log: Path
    port: int
    process: subprocess.Popen | None = None
    admin: httpx.Client = field(init=False)
    admin_token: str = ADMIN_TOKEN
    systems: dict[str, float] = field(default_factory=lambda: dict(NOISES))

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "X-Listening": "1"}
        self.admin = httpx.Client(base_url=f"{self.url}/api/admin", headers=headers, timeout=60)
        self.clients = [self.admin]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "listening_server.py"), str(self.port), str(self.folder)]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TAAE_ADMIN_TOKEN": ADMIN_TOKEN,
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        for _ in range(3600):  # a busy machine may take minutes
            assert self.process.poll() is None, self.log.read_text()
            try:
                httpx.get(f"{self.url}/admin", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self.log.read_text()}")

    def kill(self) -> None:
        """As a power cut would: no handler runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        for client in self.clients:
            client.close()

    def client(self, token: str = "") -> httpx.Client:
        """As a listener's page asks."""
        headers = {"X-Listening": "1"} | ({"X-Session": token} if token else {})
        self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=60))
        return self.clients[-1]

    def upload(self, folder: str, name: str, data: bytes) -> httpx.Response:
        return self.admin.put(f"/sounds/{folder}/{name}", content=data)

    def make_study(self, text: str, *, is_open: bool = True) -> str:
        """From a TOML study file to a rendered, open study."""
        created = self.admin.post("/studies", content=text, headers={"Content-Type": "application/toml"})
        assert created.status_code == 201, created.text
        study = created.json()["id"]
        for _ in range(1200):
            details = self.admin.get(f"/studies/{study}").json()
            if details["job"]["state"] in ("done", "failed"):
                break
            time.sleep(0.05)
        assert details["job"]["state"] == "done", details["job"]
        if is_open:
            self.admin.post(f"/studies/{study}/status", json={"status": "open"}).raise_for_status()
        return study


def wav_bytes(wav: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory, speech):
    """A running server with three recordings in `clips`, and a folder for each of three systems."""
    folder = tmp_path_factory.mktemp("listening")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ListeningServer(folder, tmp_path_factory.mktemp("log") / "server.log", port)
    server.start()
    rng = np.random.default_rng(0)
    for index in range(3):
        wav = speech(1.5, RATE_HZ, seed=index)
        server.upload("clips", f"clip{index}.wav", wav_bytes(wav)).raise_for_status()
        for system, level in NOISES.items():
            noisy = wav + level * rng.standard_normal(len(wav))
            server.upload(system, f"clip{index}.wav", wav_bytes(noisy)).raise_for_status()
    yield server
    server.stop()


def study_text(name: str, method: str = "mushra", **more: str) -> str:
    """A study file over the uploads of `server`; `more` is TOML by key."""
    systems = [f'{{ name = "{system}", folder = "{system}" }}' for system in NOISES]
    keys = {
        "items": '"clips"',
        "systems": f"[{', '.join(systems)}]",
        "prescreen": "[]",
        "must_listen_s": "0.2",
    } | more
    lines = [f'name = "{name}"', 'title = "A test of tests"', f'method = "{method}"']
    return "\n".join(lines + [f"{key} = {value}" for key, value in keys.items()])


@pytest.fixture(scope="module")
def make_study(server):
    """`make_study(name, method="mushra", is_open=True, **toml)` -> the id of a rendered study."""

    def make(name: str, method: str = "mushra", *, is_open: bool = True, **more: str) -> str:
        return server.make_study(study_text(name, method, **more), is_open=is_open)

    return make


@pytest.fixture(scope="module")
def mushra(make_study):
    return make_study("mushra", anchors_hz="[3500]")


@pytest.fixture
def open_page(chromium, server):
    """`open_page(study, **context)` -> a page whose errors are kept; `page.again()` is a second tab."""
    contexts = []

    def open_in(context, address):
        page = context.new_page()
        page.set_default_timeout(120_000)  # the test machine may be busy
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console", lambda message: page.errors.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(address)
        page.again = lambda: open_in(context, address)
        return page

    def make(study: str, address: str = "", **context):
        contexts.append(chromium.new_context(**{"viewport": DESKTOP} | context))
        return open_in(contexts[-1], address or f"{server.url}/t/{study}")

    yield make
    for context in contexts:
        context.close()
