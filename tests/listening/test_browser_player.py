"""The player's audio, rendered by Chromium offline and live, against a numpy model of gain envelopes and looping."""

import base64
import math
from pathlib import Path

import numpy as np
import pytest

import workbench.listening

pytestmark = pytest.mark.browser
STATIC_DIR = Path(workbench.listening.__file__).parent / "static"
SCRIPTS = [STATIC_DIR / "player.js", STATIC_DIR / "listening_log.js"]
SECURE_PAGE = "http://localhost/live"  # a worklet needs a secure origin; the engine itself does not

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

# Plays live, does `steps`, [milliseconds to wait, method, ...arguments], and gives everything that left for the sound
# card as [first frame, samples], and the events of the player.
RECORD = """async ([encoded, sampleRate, steps]) => {
  const wavs = encoded.map((text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
  const context = new AudioContext({ sampleRate });
  const code = `registerProcessor("recorder", class extends AudioWorkletProcessor {
    process(inputs) {
      this.port.postMessage([currentFrame, inputs[0][0]?.slice() ?? new Float32Array(128)]);
      return true;
    }
  })`;
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const output = context.createGain();
  const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  output.connect(recorder);
  output.connect(context.destination);
  const blocks = [];
  await new Promise((resolve) => (recorder.port.onmessage = resolve));
  // The first block may come long before the second.
  await new Promise((resolve) => setTimeout(resolve, 200));
  recorder.port.onmessage = ({ data }) => blocks.push(data);
  const player = new SyncPlayer(context, output);
  player.load(wavs);
  const events = [];
  const log = new ListeningLog(player, (event) => events.push(event));
  for (const [wait, method, ...rest] of steps) {
    await new Promise((resolve) => setTimeout(resolve, wait));
    player[method](...rest);
  }
  await new Promise((resolve) => setTimeout(resolve, 300));
  const heard = player.versions.map((_, index) => log.secondsOf(index));
  const end = context.currentTime;
  log.dispose();
  await context.close();
  const sound = new Float32Array(128 * blocks.length);
  blocks.forEach(([, block], k) => sound.set(block, 128 * k));
  let text = "";
  for (const byte of new Uint8Array(sound.buffer)) text += String.fromCharCode(byte);
  return [btoa(text), blocks.map(([frame]) => frame), events, heard, end];
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
    for script in SCRIPTS:
        page.add_script_tag(path=script)
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


@pytest.fixture(scope="module")
def secure_page(chromium):
    page = chromium.new_page()
    page.route(SECURE_PAGE, lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(SECURE_PAGE)
    for script in SCRIPTS:
        page.add_script_tag(path=script)
    yield page
    page.close()


def _play_live(page, wavs: np.ndarray, sample_rate_hz: int, steps: list[tuple]):
    encoded = [base64.b64encode(wav.tobytes()).decode() for wav in wavs]
    text, frames, events, heard_s, end_s = page.evaluate(RECORD, [encoded, sample_rate_hz, steps])
    return np.frombuffer(base64.b64decode(text), dtype=np.float32), frames, events, heard_s, end_s


def test_live_playing_loses_no_block_and_is_never_silent_between_versions(secure_page):
    """Clicks as fast as a hand, through a real AudioContext; the log of the player says when each took effect."""
    rate = 48000
    wavs = _wavs(rate)
    wavs[np.abs(wavs) < 0.01] = 0.01  # so that a zero at the output is silence
    rng = np.random.default_rng(5)
    steps: list[tuple] = [(0, "play"), (300, "setLoop", 0.1, 1.6)]
    for _ in range(30):
        steps.append((int(rng.integers(30, 260)), "select", int(rng.integers(len(wavs)))))
    for _ in range(3):  # a machine that is too busy to feed its sound card says nothing about the player
        sound, frames, events, heard_s, end_s = _play_live(secure_page, wavs, rate, steps)
        if set(np.diff(frames)) == {128}:
            break
    assert set(np.diff(frames)) == {128}  # no block was lost
    methods = {"play": "play", "switch": "select", "loop": "setLoop"}
    actions: list[tuple] = []
    for event in events:
        assert event["kind"] in methods, event  # no underrun either
        arguments = {"switch": [event["version"]], "loop": [0.1, 1.6]}.get(event["kind"], [])
        actions.append((methods[event["kind"]], event["time"], *arguments))
    assert len([action for action in actions if action[0] == "select"]) > 15
    total = frames[0] + len(sound)
    expected = _model(wavs, rate, total / rate, actions)[frames[0] :]
    assert np.abs(sound - expected).max() < 1e-6

    started = round(actions[0][1] * rate) - frames[0] + 1
    silent = np.flatnonzero(sound[started:] == 0)
    longest = max(len(run) for run in np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1))
    assert longest <= 2
    assert sum(heard_s) == pytest.approx(end_s - actions[0][1], abs=1e-3)
    assert min(heard_s) > 0


def test_a_starved_sound_card_is_logged_as_an_underrun(player_page):
    """A context whose clock stands still while the wall goes on, as when the device is not fed."""
    kinds = player_page.evaluate(
        """async () => {
          const context = Object.assign(new EventTarget(), { state: "running" });
          const start = performance.now();
          let stopped = null; // when the clock stops
          const read = () => 1 + ((stopped ?? performance.now()) - start) / 1000;
          Object.defineProperty(context, "currentTime", { get: read });
          const player = { versions: [1], isPlaying: true, active: 0, position: 0, context };
          const kinds = [];
          const log = new ListeningLog(player, ({ kind, body }) => kinds.push([kind, body.seconds]));
          const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
          await wait(800); // a clock that runs as it should
          const before = kinds.length;
          stopped = performance.now();
          const lost = () => kinds.reduce((sum, [kind, seconds]) => sum + (kind === "underrun" ? seconds : 0), 0);
          while (lost() < 0.4) await wait(50);
          const stood = (performance.now() - stopped) / 1000;
          window.dispatchEvent(new Event("blur"));
          log.dispose();
          return [before, kinds, stood];
        }"""
    )
    before, events, stood_s = kinds
    assert before == 0
    lost_s = sum(seconds for kind, seconds in events if kind == "underrun")
    assert 0.4 <= lost_s <= stood_s
    assert events[-1][0] == "blur"
