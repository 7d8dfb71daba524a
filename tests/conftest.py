"""Fixtures for every test: the shared folder, synthetic speech, seeds, and a headless Chromium."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from scipy.signal import lfilter

# A busy machine is slow and not wrong.
settings.register_profile("taae", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taae")

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(autouse=True)
def _seed_torch():
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def unchecked():
    """What users run: without the shape checks of the tests, so that our own errors can be seen."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with recordings and golden data, which the repository does not hold; skips where it is missing."""
    path = Path(os.environ.get("TAAE_SHARED", ROOT.parent / "shared")).resolve()
    if not path.is_dir():
        pytest.skip(f"needs the shared data: {path} does not exist; set TAAE_SHARED to its folder")
    return path


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    """`speech(seconds, sample_rate_hz=16000, seed=0)` -> (n,) float32: buzzing vowels in syllables, with pauses."""

    def make(seconds: float, sample_rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        n = round(seconds * sample_rate_hz)
        wav = np.zeros(0)
        while wav.size < n:
            length = round(rng.uniform(0.12, 0.3) * sample_rate_hz)
            time_s = np.arange(length) / sample_rate_hz
            pitch_hz = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time_s))
            pulses = np.diff(np.floor(np.cumsum(pitch_hz) / sample_rate_hz), prepend=0)
            syllable = pulses + 0.02 * rng.standard_normal(length)
            for formant_hz in rng.uniform([300, 900, 2300], [800, 2000, 3200]):
                radius, angle = np.exp(-np.pi * 90 / sample_rate_hz), 2 * np.pi * formant_hz / sample_rate_hz
                syllable = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], syllable)
            syllable *= np.hanning(length) * rng.uniform(0.3, 1) / np.abs(syllable).max()
            pause = np.zeros(round(rng.choice([0, 0, 0.05, 0.3]) * sample_rate_hz))
            wav = np.concatenate([wav, syllable, pause])
        return (0.5 * wav[:n] + 1e-4 * rng.standard_normal(n)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def launch_chromium():
    """Gives a function that starts a Chromium with further flags; all are closed at the end."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on the PATH")
    with sync_api.sync_playwright() as playwright:
        browsers = []

        def launch(*flags: str):
            browsers.append(playwright.chromium.launch(executable_path=path, args=[*CHROMIUM_FLAGS, *flags]))
            return browsers[-1]

        yield launch
        for browser in browsers:
            browser.close()


@pytest.fixture(scope="session")
def chromium(launch_chromium):
    """One Chromium shared by the tests that need no further flags."""
    return launch_chromium()
