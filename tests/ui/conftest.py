"""A headless Chromium for the tests of the page, skipped with the reason where there is none, and a tiny codec."""

import importlib.util
import shutil
from pathlib import Path

import pytest

TINY_SERVER = Path(__file__).parent / "tiny_server.py"
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


@pytest.fixture(scope="session")
def tiny_codec():
    """The codec that `tiny_server.py` serves."""
    spec = importlib.util.spec_from_file_location("tiny_server", TINY_SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_codec()


@pytest.fixture(scope="session")
def example() -> Path:
    """One of the recordings that the page offers, 3 s at 16 kHz."""
    import workbench.ui

    return Path(workbench.ui.__file__).parent / "examples" / "scottish-man.flac"
