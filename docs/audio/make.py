"""Make the recordings that README links: `python docs/audio/make.py`, with Codec2 on the path."""

from pathlib import Path

import soundfile

import taae
from taae.audio import load_wav, to_mono
from workbench import baselines

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "workbench" / "ui" / "examples"
VOICES = ("american-woman", "scottish-man")


def main() -> None:
    """Sends each voice through each codec; 16-bit FLAC at 16 kHz."""
    mini, causal, codec2 = taae.load("mini"), taae.load("mini-causal"), baselines.load("Codec2 700C")
    versions = {
        "mini-400": (mini, "1x6^6"),
        "mini-700": (mini, "2x5^6"),
        "mini-causal-700": (causal, "2x5^6"),
        "codec2-700c": (codec2, "700C"),
    }
    for voice in VOICES:
        wav, rate_hz = load_wav(EXAMPLES / f"{voice}.flac")
        for version, (codec, mode) in versions.items():
            decoded = to_mono(codec.reconstruct(to_mono(wav), mode, sample_rate_hz=rate_hz)[0])
            soundfile.write(HERE / f"{voice}-{version}.flac", decoded, rate_hz, subtype="PCM_16")


if __name__ == "__main__":
    main()
