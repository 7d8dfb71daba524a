"""What the page can do beside playing: blind test, equal loudness, difference, token editing, a file to share."""

import base64
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
from scipy.stats import binom

from taae import bitstream

pytest.importorskip("gradio", reason="needs the extra `app`")
from workbench.ui.page import PLAYER_SCRIPTS, share_template
from workbench.ui.token_edit import edit_tokens

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "workbench" / "listening" / "static", ROOT / "workbench" / "ui" / "static")


@pytest.fixture(scope="module")
def coded(tiny_codec, speech) -> bytes:
    return tiny_codec.compress(speech(1.0), "2x5^6")


def test_an_edited_file_differs_in_its_token_alone(coded):
    header, tokens = bitstream.unpack(coded)
    edited_header, edited = bitstream.unpack(edit_tokens(coded, [(3, 1, 77), (0, 0, 5**6 - 1)]))
    assert edited_header == header
    expected = tokens.copy()
    expected[3, 1], expected[0, 0] = 77, 5**6 - 1
    assert np.array_equal(edited, expected)
    assert edit_tokens(coded, []) == coded


@pytest.mark.parametrize("edit", [(999, 0, 1), (-1, 0, 1), (0, 2, 1), (0, 0, 5**6), (0, 0, -1), (0, 0), (0, 0, "1")])
def test_an_edit_outside_the_file_is_refused(coded, edit):
    with pytest.raises(ValueError, match="edit|below"):
        edit_tokens(coded, [edit])


def test_a_recording_longer_than_a_minute_is_not_edited(tiny_codec):
    with pytest.raises(ValueError, match="1500"):
        edit_tokens(tiny_codec.compress(np.zeros(61 * 16000, np.float32), "1x6^6"), [])


@pytest.fixture(scope="module")
def blank(chromium):
    page = chromium.new_page()
    for name in PLAYER_SCRIPTS:
        page.add_script_tag(path=next(folder / name for folder in FOLDERS if (folder / name).exists()))
    yield page
    page.close()


@pytest.mark.browser
def test_the_chance_of_guessing_is_the_binomial_one(blank):
    found = blank.evaluate("[...Array(11).keys()].map((correct) => AbxGame.chance(correct, 10))")
    assert found == pytest.approx(binom.sf(np.arange(-1, 10), 10, 0.5), rel=1e-12)


@pytest.mark.browser
def test_equal_loudness_and_difference_are_what_they_say(blank):
    report = {"original_loudness_lufs": -20.0, "versions": [{"loudness_lufs": -26.0}, {"loudness_lufs": None}]}
    wavs = [[0.5, -0.25, 0.0], [0.25, 0.0, 0.125], [0.5, 0.5, 0.5]]
    matched, difference, both = blank.evaluate(
        """([wavs, report]) => [[true, false], [false, true], [true, true]].map(([isMatched, isDifference]) =>
          Tools.sounds(wavs.map((wav) => Float32Array.from(wav)), report, { isMatched, isDifference })
            .map((wav) => [...wav]))""",
        [wavs, report],
    )
    original, first, second = map(np.array, wavs)
    gain = 10 ** (6 / 20)
    assert matched == [pytest.approx(wav, abs=1e-6) for wav in (original, gain * first, second)]
    assert difference == [pytest.approx(wav, abs=1e-6) for wav in (original, first - original, second - original)]
    assert both[1] == pytest.approx(gain * first - original, abs=1e-6)


@pytest.fixture(scope="module")
def listened(chromium, tmp_path_factory):
    """The first example, coded by the tiny codec, in a browser."""
    folder = tmp_path_factory.mktemp("tools")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "tiny_server.py"), str(port), str(folder / "listening")]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        for _ in range(1800):  # a busy machine may take minutes
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(".status", has_text="Ready: American woman").wait_for()
        page.locator("#listen").click()
        page.locator(".version", has_text="0.7 kbit/s").click()
        yield page
        assert page.errors == []
        context.close()
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.browser
def test_a_changed_token_is_decoded_and_heard(listened, tiny_codec):
    page = listened
    with page.expect_download() as download:
        page.locator("tbody tr").nth(2).locator("a", has_text=".taae").click()
    data = Path(download.value.path()).read_bytes()
    lane = page.locator(".tokens-lane canvas")
    box = lane.bounding_box()
    lane.click(position={"x": 0.3 * box["width"], "y": 5})
    frame = int(page.locator(".token-editor strong").inner_text().split()[1].strip(",")) - 1
    _, tokens = bitstream.unpack(data)
    inputs = page.locator(".token-editor input")
    assert [int(field.input_value()) for field in inputs.all()] == tokens[frame].tolist()
    assert page.locator(".play").get_attribute("aria-label") == "Pause"  # a click on a token is heard
    inputs.nth(1).fill("1234")
    with page.expect_response("**/tokens/edit") as response:
        inputs.nth(1).press("Enter")
    page.locator(".token-editor", has_text="1 changed").wait_for()
    wav = np.frombuffer(response.value.body()[44:], "<i2") / 32768
    expected = tiny_codec.decompress(edit_tokens(data, [(frame, 1, 1234)])).numpy().reshape(-1)
    assert np.abs(wav - expected).max() <= 1 / 32768 + 1e-6
    before = tiny_codec.decompress(data).numpy().reshape(-1)
    assert np.abs(wav - before).max() > 1e-3
    page.locator(".token-editor .chip", has_text="Undo all").click()
    page.locator(".token-editor .chip", has_text="Undo all").wait_for(state="hidden")
    inputs.nth(1).fill("99999999")
    inputs.nth(1).press("Enter")
    page.locator(".token-editor", has_text="must be below").wait_for()


@pytest.mark.browser
def test_tools_change_the_sound_and_keep_place_and_version(listened):
    page = listened
    for name in ("Equal loudness", "Difference"):
        button = page.locator(".tools .chip", has_text=name)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
    assert page.locator(".version[aria-pressed=true] strong").inner_text() == "0.7 kbit/s"
    for name in ("Equal loudness", "Difference"):
        page.locator(".tools .chip", has_text=name).click()


@pytest.mark.browser
def test_ten_rounds_of_abx_end_in_a_verdict(listened):
    page = listened
    page.locator(".tools .chip", has_text="Can you hear it?").click()
    dialog = page.locator("dialog.abx")
    assert "0.7 kbit/s" in dialog.inner_text()
    page.keyboard.press("x")
    assert dialog.locator(".version[aria-pressed=true]").inner_text() == "X"
    page.keyboard.press("1")  # a key of the page behind, which rests
    for number in range(10):
        assert f"Round {number + 1} of 10" in dialog.inner_text()
        page.keyboard.press("b")  # in every round
        assert dialog.locator(".version[aria-pressed=true]").inner_text() == "B"
        dialog.locator(".soft").first.click()
    assert "of 10 right" in dialog.inner_text()
    dialog.locator(".soft", has_text="Close").click()
    dialog.wait_for(state="detached")
    assert page.locator(".version[aria-pressed=true] strong").inner_text() == "0.7 kbit/s"


@pytest.mark.browser
def test_a_shared_file_plays_offline_and_asks_for_nothing(listened, chromium, tmp_path):
    with listened.expect_download() as download:
        listened.locator(".tools .chip", has_text="Share").click()
    assert download.value.suggested_filename == "american-woman.html"
    text = Path(download.value.path()).read_text()
    evil = text.replace('"name":"american-woman"', '"name":"\\u003c/script>\\u003cimg src=x onerror=window.ran=1>"')
    assert evil != text
    (tmp_path / "shared.html").write_text(evil)
    context = chromium.new_context(offline=True)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "shared.html").as_uri())
    page.locator(".version").first.wait_for()
    assert page.locator(".version").count() == 4
    page.keyboard.press("Space")
    page.locator(".now", has_text=re.compile(r"0:00\.[2-9]|0:0[1-9]")).wait_for()
    assert "onerror" in page.locator(".title h2").inner_text()
    assert page.evaluate("window.ran") is None
    assert asked == [(tmp_path / "shared.html").as_uri()] and errors == []
    link = page.locator("tbody tr").nth(1).locator("a").last.get_attribute("href")
    assert base64.b64decode(link.split(",")[1])[:4] == bitstream.MAGIC
    context.close()


def test_the_template_holds_every_script_and_nothing_from_elsewhere():
    template = share_template()
    assert template.index("COMPARISON_JSON") < template.index("class SyncPlayer")  # the first one is replaced
    for word in ("PAGE_CSS", "PAGE_SCRIPTS", "https://", 'src="'):
        assert word not in template
    for name in ("SyncPlayer", "Pictures", "ComparisonView", "AbxGame", "TokenStrip"):
        assert f"class {name}" in template


@pytest.mark.browser
def test_sharing_says_when_the_server_no_longer_has_the_sounds(listened):
    page = listened
    page.route("**/*.taae", lambda route: route.fulfill(status=404))
    page.locator(".tools .chip", has_text="Share").click()
    page.locator(".status.error", has_text="The file could not be made: the server no longer has").wait_for()
    page.unroute("**/*.taae")
