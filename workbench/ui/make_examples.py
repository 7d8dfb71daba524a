"""Speak the example sentences of the page with two free synthesisers (Debian packages flite and espeak-ng).

Run `python -m workbench.ui.make_examples`; it writes `examples/*.flac`, 16 kHz mono. The sentences are our own.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import soundfile
import soxr

SAMPLE_RATE_HZ = 16000
EXAMPLES_DIR = Path(__file__).parent / "examples"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One spoken sentence: `synthesiser` is "flite" or "espeak-ng", `voice` one of its voices."""

    title: str
    synthesiser: str
    voice: str
    text: str

    @property
    def path(self) -> Path:
        """Where the recording lies."""
        return EXAMPLES_DIR / f"{self.title.lower().replace(' ', '-')}.flac"


EXAMPLES = (
    Example(
        title="American woman",
        synthesiser="flite",
        voice="slt",
        text="A good codec keeps the voice and throws away the rest. This whole sentence fits into one text message.",
    ),
    Example(
        title="American man",
        synthesiser="flite",
        voice="rms",
        text="Now the sharp sounds: six thick thistles, chips and cheese.",
    ),
    Example(
        title="Scottish man",
        synthesiser="flite",
        voice="awb",
        text="The ferry leaves the harbour at seven, if the weather holds.",
    ),
    Example(
        title="German",
        synthesiser="espeak-ng",
        voice="de",
        text="Guten Morgen. Heute übertragen wir Sprache mit sehr wenigen Bits.",
    ),
    Example(
        title="French",
        synthesiser="espeak-ng",
        voice="fr-fr",
        text="Bonjour, combien de bits faut-il pour reconnaître une voix ?",
    ),
)


def speak(example: Example, path: Path) -> None:
    """Writes the sentence of `example` to `path` as a wav file at the synthesiser's own rate."""
    if example.synthesiser == "flite":
        command = ["flite", "-voice", example.voice, "-t", example.text, "-o", str(path)]
    else:
        command = ["espeak-ng", "-v", example.voice, "-s", "150", "-w", str(path), example.text]
    subprocess.run(command, check=True)


def main() -> None:
    """Writes all examples."""
    EXAMPLES_DIR.mkdir(exist_ok=True)
    for example in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            spoken = Path(folder) / "spoken.wav"
            speak(example, spoken)
            wav, sample_rate_hz = soundfile.read(spoken, dtype="float32")
        wav = soxr.resample(wav, sample_rate_hz, SAMPLE_RATE_HZ)
        wav *= 0.5 / abs(wav).max()
        soundfile.write(example.path, wav, SAMPLE_RATE_HZ, subtype="PCM_16")
        print(f"{example.path.name}: {len(wav) / SAMPLE_RATE_HZ:.1f} s, {example.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
