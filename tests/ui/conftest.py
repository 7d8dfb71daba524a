"""A tiny codec for the tests of the page."""

import importlib.util
from pathlib import Path

import pytest

TINY_SERVER = Path(__file__).parent / "tiny_server.py"


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
