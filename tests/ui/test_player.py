"""The player's audio, rendered by Chromium, against a numpy model of gain envelopes and looping."""

import base64
import math
from pathlib import Path

import numpy as np
import pytest

import workbench.ui

pytestmark = pytest.mark.browser
PLAYER_JS = Path(workbench.ui.__file__).parent / "static" / "player.js"

RENDER = """async ([encoded, sampleRate, seconds, actions]) => {
  const wavs = encoded.map((text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
  const context = new OfflineAudioContext(1, Math.round(seconds * sampleRate), sampleRate);
  const player = new SyncPlayer(context);
  player.load(wavs);
  const positions = actions.map(([method, when, ...rest]) => { player[method](...rest, when); return player.active; });
  const rendered = (await context.startRendering()).getChannelData(0);
  let text = "";
  for (const byte of new Uint8Array(rendered.buffer)) text += String.fromCharCode(byte);
  return [btoa(text), positions];
}"""


def _wavs(sample_rate_hz: int, num_versions: int = 4, seconds: float = 1.7) -> np.ndarray:
    noise = np.random.default_rng(7).uniform(-0.9, 0.9, (num_versions, int(seconds * sample_rate_hz)))
    return noise.astype(np.float32)


def _session(seed: int, num_versions: int = 4) -> list[tuple]:
    """Everything a listener can do, some of it faster than the fades allow. Each is (method, when, *arguments)."""
    rng = np.random.default_rng(seed)
    actions: list[tuple] = [("select", 0.0, 2), ("play", 0.02)]
    when = 0.021  # within the first fade-in
    for _ in range(20):
        actions.append(("select", when, int(rng.integers(num_versions))))
        when += float(rng.choice([0.0031, 0.03, 0.11]))
    actions += [("seek", when + 0.1, 0.4), ("seek", when + 0.102, 1.3)]
    actions += [("select", when + 0.4, 1), ("select", when + 0.4, 3)]
    actions += [("setLoop", when + 0.5, 0.25, 0.9), ("select", when + 1.0, 0)]
    actions += [("pause", when + 2.2), ("select", when + 2.3, 1), ("seek", when + 2.4, 0.5), ("play", when + 2.5)]
    actions += [("setLoop", when + 3.2, 0.1, 0.2), ("select", when + 3.5, 2)]
    return actions


def _model(wavs: np.ndarray, sample_rate_hz: int, seconds: float, actions: list[tuple]) -> np.ndarray:
    """The specification of the player: runs of looped samples, gated, times one gain per version."""

    def round(value: float) -> int:  # halves go up, as in JavaScript
        return math.floor(value + 0.5)

    num_versions, n = wavs.shape
    total = round(seconds * sample_rate_hz)
    fade = round(0.005 * sample_rate_hz)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade + 1) / fade)
    gains = np.zeros((num_versions, total))
    gains[0] = 1
    runs: list[dict] = []
    active, switch_free, quiet_from, rest, region, playing = 0, 0, 0, 0, (0, n), False

    def ramp(row: np.ndarray, start: int, curve: np.ndarray) -> None:
        row[start:] = curve[-1]
        row[start : start + fade + 1] = curve[: max(0, total - start)]

    def position(frame: int) -> int:
        run = runs[-1]
        first, last = run["region"]
        return first + (run["offset"] + max(0, frame - run["frame"])) % (last - first)

    def start(frame: int, at: int) -> None:
        gate = np.zeros(total)
        ramp(gate, frame, rise)
        runs.append({"frame": frame, "offset": at - region[0], "gate": gate, "region": region})

    def stop(frame: int) -> int:
        first = max(frame, runs[-1]["frame"] + fade + 128)
        ramp(runs[-1]["gate"], first, rise[::-1])
        return first

    for method, when, *arguments in actions:
        frame = round(when * sample_rate_hz)
        if method == "select" and arguments[0] != active:
            frame = max(frame, switch_free)
            if playing or frame < quiet_from:
                ramp(gains[active], frame, rise[::-1])
                ramp(gains[arguments[0]], frame + fade, rise)
                switch_free = frame + 2 * fade + 128
            else:
                gains[active, frame:], gains[arguments[0], frame:] = 0, 1
            active = arguments[0]
        elif method == "play":
            start(max(frame, quiet_from), rest)
            playing = True
        elif method == "pause":
            frame = stop(frame)
            rest, quiet_from, playing = position(frame), frame + fade, False
        elif method == "seek":
            target = min(max(round(arguments[0] * sample_rate_hz), region[0]), region[1] - 1)
            if playing:
                start(stop(frame) + fade, target)
            else:
                rest = target
        elif method == "setLoop":
            frame = stop(frame)
            at = position(frame + fade)
            first = round(arguments[0] * sample_rate_hz)
            last = max(round(arguments[1] * sample_rate_hz), first + round(0.5 * sample_rate_hz))
            region = (first, last)
            start(frame + fade, at if first <= at < last else first)

    rendered = np.zeros(total)
    for run in runs:
        first, last = run["region"]
        looped = wavs[:, first:last].astype(np.float64)
        looped[:, : fade + 1] *= rise
        looped[:, -fade - 1 :] *= rise[::-1]
        index = (run["offset"] + np.arange(total - run["frame"])) % (last - first)
        rendered[run["frame"] :] += (gains[:, run["frame"] :] * looped[:, index]).sum(0) * run["gate"][run["frame"] :]
    return rendered


@pytest.fixture(scope="module")
def player_page(chromium):
    page = chromium.new_page()
    page.add_script_tag(path=PLAYER_JS)
    yield page
    page.close()


def _render(page, wavs, sample_rate_hz, seconds, actions) -> np.ndarray:
    encoded = [base64.b64encode(wav.tobytes()).decode() for wav in wavs]
    text, _ = page.evaluate(RENDER, [encoded, sample_rate_hz, seconds, actions])
    return np.frombuffer(base64.b64decode(text), dtype=np.float32)


@pytest.mark.parametrize("sample_rate_hz", [8000, 16000, 22050, 24000, 44100, 48000])
def test_what_is_heard_is_the_model_of_envelopes_and_loops(player_page, sample_rate_hz):
    wavs, actions = _wavs(sample_rate_hz), _session(seed=3)
    heard = _render(player_page, wavs, sample_rate_hz, 6.0, actions)
    expected = _model(wavs, sample_rate_hz, 6.0, actions)
    assert np.abs(expected).max() > 0.5  # the session is not silence
    assert np.abs(heard - expected).max() < 1e-6


def test_a_version_late_by_one_sample_is_noticed(player_page):
    wavs, actions = _wavs(16000), _session(seed=3)
    late = wavs.copy()
    late[1] = np.roll(late[1], 1)
    heard = _render(player_page, late, 16000, 6.0, actions)
    assert np.abs(heard - _model(wavs, 16000, 6.0, actions)).max() > 0.5


def test_a_switch_never_sounds_two_versions_at_once(player_page):
    # a version of ones beside one of zeros renders the gain of the former
    wavs = np.stack([np.ones(16000, np.float32), np.zeros(16000, np.float32)])
    only_first = _render(player_page, wavs, 16000, 0.5, [("play", 0.0), ("select", 0.2, 1)])
    only_second = _render(player_page, wavs[::-1], 16000, 0.5, [("play", 0.0), ("select", 0.2, 1)])
    around = slice(3000, 3600)
    assert np.minimum(only_first[around], only_second[around]).max() == 0.0
    assert (only_first[around] + only_second[around] < 1).sum() <= 2 * 80 + 1


def test_the_player_refuses_versions_of_different_lengths(player_page):
    message = player_page.evaluate(
        """() => { try {
          new SyncPlayer(new OfflineAudioContext(1, 8, 8000)).load([new Float32Array(5), new Float32Array(6)]);
        } catch (error) { return error.message; } }"""
    )
    assert message == "versions differ in length"
