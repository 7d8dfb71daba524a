"""The Transformer Audio AutoEncoder of "Scaling Transformers for Low-Bitrate High-Quality Speech Coding".

    import taae

    codec = taae.load()
    data = codec.compress(wav, bottleneck="2x5^6", sample_rate_hz=44100)
    wav = codec.decompress(data)

`import taae` is cheap: torch is imported with the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taae.codec import Codec, load, load_official

__version__ = "0.1.0"
__all__ = ["Codec", "__version__", "load", "load_official"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("taae.codec"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
