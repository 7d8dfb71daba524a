"""Other codecs behind one protocol: neural ones with their real classes, classical ones as real programs.

Nothing is simulated. What is not here raises `UnavailableError`, which says what is needed and how to get it. torch and
transformers are imported only when a neural codec is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from workbench import published
from workbench.baselines.classical import (
    AMR_MODES,
    CODEC2_MODES,
    OPUS_MODES,
    SPEEX_MODES,
    AmrNb,
    Codec2,
    Opus,
    Speex,
)
from workbench.baselines.protocol import Encoded, Reconstructing, SpeechCodec, UnavailableError

__all__ = [
    "AMR_MODES",
    "CATALOGUE",
    "CODEC2_MODES",
    "OPUS_MODES",
    "SPEEX_MODES",
    "AmrNb",
    "Codec2",
    "Encoded",
    "Entry",
    "Opus",
    "SpeechCodec",
    "Speex",
    "UnavailableError",
    "facts",
    "load",
    "status",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A codec that the workbench knows.

    Attributes:
        make: Gives the codec, or raises `UnavailableError`.
        row: Its name in Tables 2, 10, 11 and 12; None if it is in none.
        is_classical: A program, not a network.
    """

    make: Callable[[], Reconstructing]
    row: str | None = None
    is_classical: bool = False


def _neural(module: str, name: str) -> Reconstructing:
    return getattr(import_module(f"workbench.baselines.{module}"), name)()


def _classical(family: type[Reconstructing], modes: tuple[str, ...]) -> dict[str, Entry]:
    entries = {mode: Entry(make=partial(family, mode), is_classical=True) for mode in modes}
    return {f"{family.family} {mode}": entry for mode, entry in entries.items()}  # type: ignore[attr-defined]


CATALOGUE: dict[str, Entry] = {
    "EnCodec": Entry(make=partial(_neural, "neural", "EnCodec"), row="Encodec"),
    "DAC": Entry(make=partial(_neural, "neural", "Dac"), row="DAC"),
    "Mimi": Entry(make=partial(_neural, "neural", "Mimi"), row="Mimi"),
    "SpeechTokenizer": Entry(make=partial(_neural, "packages", "SpeechTokenizer"), row="SpeechTokenizer"),
    "SemantiCodec": Entry(make=partial(_neural, "packages", "SemantiCodec"), row="SemantiCodec"),
    "HuBERT + unit HiFi-GAN": Entry(make=partial(_neural, "unit_hifigan", "HubertUnits"), row="unitHiFi-GAN"),
    "stable-codec": Entry(make=partial(_neural, "packages", "Taae"), row="TAAE"),
    "X-codec2": Entry(make=partial(_neural, "neural", "XCodec2")),
    **_classical(Codec2, CODEC2_MODES),
    **_classical(Speex, SPEEX_MODES),
    **_classical(AmrNb, AMR_MODES),
    **_classical(Opus, OPUS_MODES),
}


def load(name: str) -> Reconstructing:
    """A codec of the catalogue.

    Raises:
        ValueError: If there is no such codec.
        UnavailableError: If what it needs is not here.
    """
    if name not in CATALOGUE:
        raise ValueError(f"no codec {name!r}; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name].make()


def status() -> dict[str, str]:
    """Name -> "available", or the sentence that says what is missing. Loads what is here."""
    found = {}
    for name, entry in CATALOGUE.items():
        try:
            entry.make()
            found[name] = "available"
        except UnavailableError as error:
            found[name] = str(error)
    return found


def facts(name: str) -> dict[str, str]:
    """What Tables 10, 11 and 12 print about a codec of the catalogue: column -> cell; empty if they do not have it.

    For TAAE the receptive fields are those of the non-causal model.

    Raises:
        ValueError: If there is no such codec.
    """
    if name not in CATALOGUE:
        raise ValueError(f"no codec {name!r}; there are {', '.join(CATALOGUE)}")
    row = CATALOGUE[name].row
    cells = [cell for table in ("table10", "table11", "table12") for cell in published.table(table).cells]
    return {cell.column: cell.printed for cell in cells if cell.row in (row, f"{row} (Non-Causal)")}
