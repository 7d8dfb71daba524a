"""The live page: its sessions, its buffer, and the whole of it with a fake microphone in a real browser."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from taae.audio import load_wav, save_wav
from workbench import live
from workbench.live import LiveError, LiveSession, LiveSessions, LiveSettings

pytest.importorskip("gradio", reason="needs the extra `app`")

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).parent / "tiny_live_server.py"
STATIC = ROOT / "workbench" / "ui" / "static"
HOP = 640


@pytest.fixture(scope="module")
def codec():
    """What `tiny_live_server.py` serves."""
    spec = importlib.util.spec_from_file_location("tiny_live_server", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_causal_codec()


def offline(codec, pcm: np.ndarray, bottleneck: str = "2x5^6") -> np.ndarray:
    """What the codec makes of whole frames of int16, as int16."""
    tokens = codec.encode(torch.from_numpy(pcm.astype(np.float32) / 32768)[None, None], bottleneck)
    return (codec.decode(tokens, bottleneck)[0, 0] * 32768).round().clamp(-32768, 32767).numpy().astype(np.int16)


def pcm_of(wav: np.ndarray) -> np.ndarray:
    return np.rint(wav * 32767).astype(np.int16)


# Sessions


def test_a_session_gives_what_the_codec_gives_and_counts(codec, speech):
    pcm = pcm_of(speech(2.0))
    session = LiveSession(codec)
    settings = LiveSettings(bottleneck="1x6^6")
    answers = [session.push(pcm[start : start + 500].tobytes(), settings) for start in range(0, len(pcm), 500)]
    heard = np.frombuffer(b"".join(data for data, _ in answers), "<i2")
    assert len(heard) == len(pcm) == 50 * HOP
    assert np.abs(heard.astype(int) - offline(codec, pcm, "1x6^6")).max() <= 1
    assert sum(counts["frames"] for _, counts in answers) == 50
    assert sum(counts["bits"] for _, counts in answers) == 50 * 16
    assert sum(counts["lost"] for _, counts in answers) == 0


def test_bitrate_loss_and_gain_change_while_it_runs(codec, speech):
    pcm = pcm_of(speech(1.6))
    session = LiveSession(codec, seed=1)
    first, _ = session.push(pcm[: 10 * HOP].tobytes(), LiveSettings(bottleneck="2x5^6"))
    assert np.abs(np.frombuffer(first, "<i2").astype(int) - offline(codec, pcm[: 10 * HOP])).max() <= 1
    _, counts = session.push(pcm[10 * HOP : 20 * HOP].tobytes(), LiveSettings(bottleneck="4x3^6", loss=0.5))
    assert counts["bits"] == 400 and 1 <= counts["lost"] <= 9
    silence, counts = session.push(bytes(2 * 20 * HOP), LiveSettings(loss=1.0))
    assert counts["lost"] == 20 and not any(silence[10 * HOP :])
    session.push(pcm[:HOP].tobytes(), LiveSettings(gain_db=20.0))


def test_what_a_session_cannot_take_is_said(codec):
    session = LiveSession(codec)
    for pcm in (b"\0\0\0", bytes(2 * 2 * 16000 + 2)):
        with pytest.raises(LiveError, match="16-bit samples of at most 2 s"):
            session.push(pcm, LiveSettings())
    for wrong, words in (
        ({"loss": 1.5}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"gain_db": float("nan")}, "gain"),
        ({"bottleneck": "continuous"}, "choose a bitrate"),
        ({"bottleneck": "7"}, "7"),
    ):
        with pytest.raises(LiveError, match=words):
            LiveSettings(**wrong)


def test_sessions_are_few_and_those_left_alone_make_room(codec):
    now = time.monotonic()
    sessions = LiveSessions(codec, clock=lambda: now)
    names = [sessions.start() for _ in range(live.MAX_SESSIONS)]
    assert len(set(names)) == live.MAX_SESSIONS
    with pytest.raises(LiveError, match="speaking already"):
        sessions.start()
    sessions.stop(names[0])
    with pytest.raises(LiveError, match="press Start again"):
        sessions.get(names[0])
    sessions.start()
    now += live.IDLE_S + 5
    sessions.start()
    with pytest.raises(LiveError, match="press Start again"):
        sessions.get(names[1])


def test_without_a_causal_model_one_sentence_says_so(tiny_codec, codec, monkeypatch):
    assert LiveSessions(codec).codec() is codec
    monkeypatch.setattr(live, "EMBEDDED", "no-such-model")
    with pytest.raises(LiveError, match="needs a causal model, and this installation has none"):
        LiveSessions(tiny_codec).start()


# The browser


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Address of the app in a process of its own."""
    folder = tmp_path_factory.mktemp("live")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(port), str(folder / "listening")],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            try:
                urlopen(address, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def opened(context, address: str):
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    return page


@pytest.mark.browser
def test_the_buffer_knows_its_delay_plays_in_order_and_drops_what_is_only_delay(chromium):
    page = chromium.new_page()
    page.add_script_tag(content=(STATIC / "live_line.js").read_text() + "; window.LineQueue = LineQueue;")
    result = page.evaluate(
        """() => {
          const queue = new LineQueue(256, 128), heard = [], delays = [];
          let next = 0;
          const block = (n) => Int16Array.from({ length: n }, () => ++next);
          const play = () => {
            const output = new Float32Array(128);
            queue.play(output);
            heard.push(...output.map((value) => Math.round(value * 32768)));
            delays.push(queue.delay);
          };
          play(); play();                      // nothing has come: silence
          queue.add(block(128)); play();       // not enough to begin
          queue.add(block(200)); play(); play();
          play();                              // 72 samples, then a gap
          const gaps = queue.gaps;
          queue.add(block(4000));
          for (let k = 0; k < LineQueue.WINDOW; k++) { queue.low = 3000; queue.trim(); }
          play();
          return { heard, delays, gaps, last: heard.at(-1), queued: queue.queued };
        }"""
    )
    assert result["heard"][: 3 * 128] == [0] * (3 * 128)
    assert result["heard"][3 * 128 : 3 * 128 + 328] == list(range(1, 329))
    assert result["heard"][3 * 128 + 328 : 6 * 128] == [0] * (3 * 128 - 328)
    assert result["gaps"] == 1
    assert result["delays"][3:5] == [3 * 128, 3 * 128] and result["delays"][5] is None
    # 3000 - 256 samples were always left over and have gone; what follows them is played.
    assert result["last"] == 328 + (3000 - 256) + 128
    assert result["queued"] == 4000 - (3000 - 256) - 128
    page.close()


@pytest.mark.browser
def test_a_fake_microphone_is_heard_through_the_codec_and_through_lost_packets(
    launch_chromium, url, codec, speech, tmp_path
):
    spoken = speech(30.0, 48000)
    save_wav(tmp_path / "voice.wav", 0.5 * spoken / np.abs(spoken).max(), 48000)
    browser = launch_chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}",
    )
    page = opened(browser.new_context(), f"{url}live/")
    page.locator("#status", has_text="Press Start").wait_for()
    assert "tiny-causal" in page.locator("#model").inner_text()
    assert page.locator("#bitrate option").all_inner_texts() == [
        "0.4 kbit/s (1x6^6)", "0.625 kbit/s (1x17^6)", "0.7 kbit/s (2x5^6)", "1 kbit/s (4x3^6)"
    ]  # fmt: skip
    page.locator("#start").click()
    page.wait_for_function("live.numFrames >= 75")
    page.wait_for_function("/\\d+ ms/.test(document.getElementById('latency').textContent)")
    delay_ms = int(re.search(r"\d+", page.locator("#latency").inner_text())[0])
    assert 40 <= delay_ms < 3000
    assert page.locator("#rate").inner_text() == "700 bit/s"
    assert page.locator("#lost").inner_text() == "0.0 %"
    page.locator("#start").click()
    page.locator("#status", has_text="Stopped").wait_for()

    def saved(name: str) -> np.ndarray:
        with page.expect_download() as download:
            page.locator(f"#save-{name}").click()
        wav, rate = load_wav(Path(download.value.path()))
        assert rate == 16000 and len(wav) == 1
        return np.rint(wav[0] * 32768).astype(np.int16)

    microphone, heard = saved("spoken"), saved("heard")
    assert len(heard) % HOP == 0 and 75 * HOP <= len(heard) <= len(microphone)
    # Echo cancellation and gain control would leave a tenth of it; how exactly Chromium resamples is its own affair.
    assert 0.35 < np.abs(microphone).max() / 32768 < 0.6
    difference = np.abs(heard.astype(int) - offline(codec, microphone[: len(heard)]))
    # A latent on a boundary may go the other way in one frame, and is heard in those after it.
    assert np.median(difference) <= 1 and (difference <= 2).mean() > 0.5
    assert np.abs(heard).max() > 100

    page.evaluate(
        "document.getElementById('loss').value = 40; document.getElementById('loss').oninput({ target: loss })"
    )
    page.locator("#bitrate").select_option("1x6^6")
    page.locator("#start").click()
    page.wait_for_function("live.numFrames >= 150 && document.getElementById('rate').textContent === '400 bit/s'")
    lost = float(page.locator("#lost").inner_text().removesuffix(" %"))
    assert 20 < lost < 60  # 150 draws of 0.4
    page.locator("#start").click()
    assert page.errors == []


@pytest.mark.browser
def test_the_live_page_is_one_click_away_and_one_click_back(chromium, url):
    page = opened(chromium.new_context(), url)
    page.get_by_role("link", name="Speak live through the codec").click()
    page.locator("#status", has_text="Press Start").wait_for()
    page.get_by_role("link", name="Compare recordings").click()
    page.locator("#listen").wait_for()
    assert page.errors == []
    page.context.close()


@pytest.mark.browser
def test_a_page_without_a_causal_model_says_so_and_stays_off(chromium, url, tiny_codec, monkeypatch):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from workbench.ui.live import routes

    monkeypatch.setattr(live, "EMBEDDED", "no-such-model")
    answer = TestClient(Starlette(routes=routes(tiny_codec))).get("/live/status")
    assert answer.status_code == 409
    page = chromium.new_page()
    page.route("**/live/status", lambda route: route.fulfill(status=409, body=answer.text))
    page.goto(f"{url}live/")
    status = page.locator("#status.error")
    status.wait_for()
    assert "needs a causal model, and this installation has none" in status.inner_text()
    assert page.locator("#start").is_disabled()
    page.close()


@pytest.mark.browser
def test_where_the_browser_lends_no_microphone_the_page_says_why(chromium, url):
    context = chromium.new_context()
    context.add_init_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page = opened(context, f"{url}live/")
    page.locator("#status.error", has_text="https").wait_for()
    assert page.locator("#start").is_disabled()
    context.close()


@pytest.mark.browser
def test_only_files_of_the_page_are_served_and_wrong_requests_get_a_sentence(chromium, url):
    request = chromium.new_context().request
    assert request.get(f"{url}live/live.js").status == 200
    for name in ("page.py", "..%2Flive.py", "view.js"):
        assert request.get(f"{url}live/{name}").status == 404
    session = request.post(f"{url}live/start").json()["session"]
    for query, words in (
        (f"session={session}&loss=x", "could not convert"),
        (f"session={session}&bottleneck=continuous", "choose a bitrate"),
        ("session=none", "press Start again"),
    ):
        answer = request.post(f"{url}live/push?{query}", data=bytes(2 * HOP))
        assert answer.status == 409 and words in answer.json()["error"]
    answer = request.post(f"{url}live/push?session={session}", data=bytes(10**6))
    assert answer.status == 409 and "at most 2 s" in answer.json()["error"]
    good = request.post(f"{url}live/push?session={session}", data=bytes(2 * HOP))
    assert good.status == 200 and len(good.body()) == 2 * HOP
