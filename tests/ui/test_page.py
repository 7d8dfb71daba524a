"""The page by Gradio's client and in a real browser, with a tiny model behind it."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest

from taae import bitstream
from taae.audio import load_wav, save_wav

pytest.importorskip("gradio", reason="needs the extra `app`")
gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `app`")

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the server keeps what is uploaded and made."""
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def server_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def url(folder, server_log):
    """Address of a server in a process of its own, as `app.py` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "tiny_server.py"), str(port), str(folder / "listening")]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with server_log.open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(1800):  # a busy machine may take minutes
            try:
                urlopen(address, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server_log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page(chromium, url):
    context = chromium.new_context(viewport=DESKTOP)
    yield _opened(context, url)
    context.close()


@pytest.fixture(scope="module")
def listened_page(chromium, url):
    """The first example, coded; shared by tests that only look and play."""
    context = chromium.new_context(viewport=DESKTOP)
    page = _opened(context, url)
    _listen(page)
    yield page
    context.close()


@pytest.fixture
def listened(listened_page):
    """`listened_page`, stopped at its beginning at the lowest bitrate."""
    if listened_page.locator(".play").get_attribute("aria-label") == "Pause":
        listened_page.locator(".play").click()
    listened_page.locator(".stage").focus()
    for key in ("Escape", "1", "Home"):
        listened_page.keyboard.press(key)
    yield listened_page
    assert listened_page.errors == []


def _opened(context, url):
    """A page on which nothing may go wrong in silence, with the addresses it asked for in `page.asked`."""
    page = context.new_page()
    page.set_default_timeout(90_000)  # the test machine may be busy
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    page.locator(".status", has_text="Ready: American woman").wait_for()
    return page


def _listen(page):
    page.locator("#listen").click()
    page.locator(".player.loaded .version").first.wait_for()


def _seconds(page) -> float:
    minutes, seconds = page.locator(".now").inner_text().split(":")
    return 60 * float(minutes) + float(seconds)


def _active(page) -> str:
    return page.locator(".version[aria-pressed=true] strong").inner_text()


def test_the_client_gets_the_report_and_files_that_decode(url, tiny_codec, example):
    client = gradio_client.Client(url, verbose=False)
    report, files = client.predict(gradio_client.handle_file(example), ["2x5^6", "1x6^6"], api_name="/listen")
    names = {Path(file).name: Path(file) for file in files}
    assert [version["bottleneck"] for version in report["versions"]] == ["1x6^6", "2x5^6"]
    wav, rate = load_wav(example)
    for version in report["versions"]:
        data = names[version["taae_file"]].read_bytes()
        assert len(data) == version["num_bytes"]
        assert bitstream.read_header(data).num_samples == wav.shape[1]
        heard, heard_rate = load_wav(names[version["wav_file"]])
        assert heard_rate == rate
        # 16-bit wav: at most half a step from what the file decodes to
        assert np.abs(heard - tiny_codec.decompress(data).numpy()[0]).max() <= 0.5 / 32768 + 1e-7
    assert np.array_equal(load_wav(names[report["original_file"]])[0], wav)


def test_the_client_gets_one_sentence_for_a_corrupt_file(url, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(100))
    client = gradio_client.Client(url, verbose=False)
    with pytest.raises(Exception, match=r"^Cannot read noise\.wav as audio: [^\n]*$"):
        client.predict(gradio_client.handle_file(tmp_path / "noise.wav"), ["1x6^6"], api_name="/listen")


def test_files_of_the_server_are_not_served(url, page):
    for path in ("/etc/passwd", str(Path(__file__)), str(Path.cwd() / ".git" / "config")):
        assert page.request.get(f"{url}gradio_api/file={path}").status == 403


def test_one_press_then_keys_switch_versions_while_the_position_runs_on(page):
    _listen(page)
    assert page.locator(".version strong").all_inner_texts() == ["Original", "0.4 kbit/s", "0.7 kbit/s", "Continuous"]
    assert page.evaluate("document.activeElement.className") == "play"
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.now').textContent > '0:00.30'")
    assert _active(page) == "0.4 kbit/s"
    duration = float(page.locator(".stage").get_attribute("aria-valuemax"))
    before = _seconds(page)
    page.keyboard.press("2")
    assert _active(page) == "0.7 kbit/s"
    after = _seconds(page)
    assert (after - before) % duration < 1.0  # neither back to the start nor away; the recording begins anew at its end
    page.wait_for_function(f"Math.abs(document.querySelector('.now').textContent.split(':')[1] - {after}) > 0.2")
    page.keyboard.press("0")
    assert _active(page) == "Original"
    page.keyboard.press("Space")
    stopped = _seconds(page)
    page.keyboard.press("1")
    assert _active(page) == "0.4 kbit/s"
    assert _seconds(page) == stopped
    page.keyboard.press("ArrowLeft")
    assert _seconds(page) == pytest.approx(max(0, stopped - 1), abs=0.011)
    assert page.errors == []


def test_dragging_on_the_pictures_loops_and_escape_leaves_the_loop(listened):
    page = listened
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 50, steps=4)
    page.mouse.up()
    duration = float(page.locator(".stage").get_attribute("aria-valuemax"))
    start, end = map(float, re.findall(r"[\d.]+", page.locator(".loop-clear").inner_text()))
    assert (start, end) == pytest.approx((0.25 * duration, 0.75 * duration), abs=0.02)
    assert start <= _seconds(page) + 0.01 < end
    page.keyboard.press("Escape")
    assert page.locator(".loop-clear").is_hidden()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 200)
    assert _seconds(page) == pytest.approx(0.9 * duration, abs=0.02)


def test_the_pictures_show_the_sound_and_not_a_blank(listened):
    page = listened
    colours = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".lane")].map((lane) => {
          const canvas = lane.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [lane.classList[1], new Set(new Uint32Array(data.buffer)).size];
        }))"""
    )
    assert list(colours) == ["waveform", "original", "coded", "difference"]
    assert colours["waveform"] >= 2
    assert min(colours[lane] for lane in ("original", "coded", "difference")) > 100


def test_the_table_has_the_numbers_of_the_report(page, example):
    page.locator(".chip", has_text="Scottish man").click()
    page.locator(".status", has_text="Scottish man").wait_for()
    page.locator("#bitrates label", has_text="Continuous").click()
    _listen(page)
    cells = page.locator("tbody tr").nth(2).locator("td").all_inner_texts()
    num_frames = -(-load_wav(example)[0].shape[1] // 640)
    num_bytes = bitstream.HEADER_BYTES + -(-28 * num_frames // 8)
    assert cells[:3] == [str(2 * num_frames), f"{28 * num_frames:,}", f"{num_bytes:,} B"]
    assert re.fullmatch(r"\d\.\d{3}", cells[5])  # STOI
    links = page.locator("tbody tr").nth(2).locator("a")
    assert links.all_inner_texts() == [".wav", ".taae"]
    with page.expect_download() as download:
        links.nth(1).click()
    assert download.value.suggested_filename == "scottish-man-2x5-6.taae"
    assert len(Path(download.value.path()).read_bytes()) == num_bytes


def test_no_request_leaves_the_machine(listened, url, server_log):
    assert len(listened.asked) > 10
    hosts = {urlparse(address).hostname for address in listened.asked if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(url).hostname}
    # The server tried to reach nothing but what it was made to try, as a control.
    assert set(re.findall("OUTSIDE (.*)", server_log.read_text())) == {"control.invalid"}


def test_a_phone_needs_no_sideways_scrolling(chromium, url):
    context = chromium.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = _opened(context, url)
    for label in ("0.625", "1 kbit/s"):
        page.locator("#bitrates label", has_text=label).click()
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        too_wide = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility() &&
              !e.closest(".visually-hidden") && e.getBoundingClientRect().right > innerWidth + 0.5)
              .map((e) => e.className)"""
        )
        assert too_wide == []
        _listen(page)
    context.close()


def test_every_control_is_reached_by_the_tab_key_and_shows_it(listened):
    page = listened
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached: dict[str, bool] = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, is_shown = page.evaluate(
            """() => { const e = document.activeElement, box = e.closest("#bitrates label") ?? e;
              return [e.getAttribute("aria-label") || e.closest("label")?.innerText || e.innerText || e.tagName,
                      getComputedStyle(box).outlineStyle !== "none"]; }"""
        )
        reached[name.split("\n")[0]] = is_shown
    wanted = {"Choose a file", "Record", "American woman", "0.4 kbit/s", "Listen", "Play", "Position in the recording"}
    wanted |= {"Save american-woman-1x6-6.taae", "What the numbers mean"}
    assert wanted <= set(reached)
    assert all(reached[name] for name in wanted)


def test_a_taae_file_opens_alone(page, tiny_codec, example, tmp_path):
    wav, rate = load_wav(example)
    (tmp_path / "stored.taae").write_bytes(tiny_codec.compress(wav, "1x17^6", sample_rate_hz=rate))
    page.locator("input[type=file]").set_input_files(tmp_path / "stored.taae")
    page.locator(".status", has_text="Ready: stored.taae").wait_for()
    _listen(page)
    assert page.locator(".version strong").all_inner_texts() == ["0.625 kbit/s"]
    assert page.locator(".version kbd").inner_text() == "1"
    assert page.locator(".lane").count() == 2
    assert "holds no original" in page.locator(".notes").inner_text()
    assert page.errors == []


def test_a_corrupt_upload_gets_a_message_and_leaves_the_last_result(page, tmp_path):
    _listen(page)
    (tmp_path / "broken.flac").write_bytes(b"fLaC" + bytes(50))
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.flac")
    page.locator(".status", has_text="Ready: broken.flac").wait_for()
    page.locator("#listen").click()
    toast = page.locator(".toast-body")
    toast.wait_for()
    assert "Cannot read broken.flac as audio" in toast.inner_text()
    assert "Traceback" not in page.inner_text("body")
    assert page.locator(".version").count() == 4
    assert page.locator(".title h2").inner_text() == "american-woman"
    page.locator(".chip", has_text="French").click()
    page.locator(".status", has_text="French").wait_for()
    page.locator("#listen").click()
    page.locator(".title h2", has_text="french").wait_for()
    toast.wait_for(state="detached")  # the message goes when it no longer holds


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(page, tmp_path):
    with (tmp_path / "huge.wav").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    page.asked.clear()
    page.locator("input[type=file]").set_input_files(tmp_path / "huge.wav")
    page.locator(".status.error").wait_for()
    assert page.locator(".status").inner_text() == "huge.wav has 65 MB; at most 64 MB, please."
    assert not [address for address in page.asked if "upload" in address]


def test_formats_that_only_the_browser_decodes_are_sent_as_wav(page, speech, tmp_path):
    save_wav(tmp_path / "voice.ogg", speech(1.0, 24000), 24000)
    (tmp_path / "voice.ogg").rename(tmp_path / "voice.weba")
    page.locator("input[type=file]").set_input_files(tmp_path / "voice.weba")
    page.locator(".status", has_text="Ready: voice.wav.").wait_for()


def test_words_from_outside_are_shown_and_never_run(page, example, tmp_path):
    name = "${window.ran=1}<img src=x onerror=window.ran=1>{{value}}.flac"
    (tmp_path / name).write_bytes(example.read_bytes())
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    page.locator(".status", has_text="Ready: ${window.ran=1}<img").wait_for()
    _listen(page)
    assert "onerror" in page.locator(".title h2").inner_text()
    assert page.evaluate("window.ran") is None
    assert page.locator("main img").count() == 0


def test_the_microphone_is_recorded_as_it_is(launch_chromium, url, folder, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(10 * 48000) / 48000)
    save_wav(tmp_path / "tone.wav", tone, 48000)
    browser = launch_chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'tone.wav'}",
    )
    page = _opened(browser.new_context(viewport=DESKTOP), url)
    page.locator(".record").click()
    page.wait_for_function("/Stop .[2-9]/.test(document.querySelector('.record').innerText)")
    page.locator(".record").click()
    page.locator(".status", has_text="Ready: recording.wav").wait_for()
    (recording,) = folder.rglob("recording.wav")
    wav, rate = load_wav(recording)
    assert wav.shape[0] == 1 and wav.shape[1] >= rate
    # With the browser's echo cancelling, noise suppression and gain control on, this tone arrives at 0.05.
    middle = wav[0, rate // 4 : rate // 4 * 3]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.02)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * rate / len(middle) == pytest.approx(440, abs=4)
    _listen(page)
    assert page.locator(".title h2").inner_text() == "recording"
    assert page.errors == []


def test_without_a_secure_origin_the_page_says_why_it_cannot_record(chromium, url):
    context = chromium.new_context(viewport=DESKTOP)
    context.add_init_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page = _opened(context, url)
    page.locator(".record").click()
    assert "https" in page.locator(".status.error").inner_text()
    context.close()


def test_app_py_says_in_one_line_that_there_is_no_such_model(tmp_path):
    command = [sys.executable, str(ROOT / "app.py"), "--model", str(tmp_path / "nowhere")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert finished.stderr.startswith("app.py: ")
    assert len(finished.stderr.splitlines()) == 1
