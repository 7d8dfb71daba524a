"""Means of a codec on clips, for the tables: the model under test, and every other codec that this machine has.

Scores are kept clip by clip in a folder that tables share, so that no clip is coded twice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taae.evaluate import Clip, evaluate, load_mono, read_manifest, summarise
from workbench import baselines, notebook
from workbench.bias import EXAMPLES

# Our names of the metrics -> the paper's.
LABELS = {
    "si_sdr": "SI-SDR",
    "mel_distance": "Mel",
    "stft_distance": "STFT",
    "pesq_raw_nb": "PESQ",
    "stoi": "STOI",
    "mosnet": "MOSNet",
}
METRICS = tuple(LABELS)
PAPER_PARAMETERS = 900e6  # a model above this is taken for the paper's
RANDOM_WEIGHTS = "a preset has random weights; name a folder with trained ones"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and on what.

    Attributes:
        checkpoint: An embedded model, a model folder, or a folder with a published stable-codec checkpoint.
        manifest: JSON lines below the shared folder; "" for the examples of the repository.
        num_clips: At most so many of a language, from all over the manifest.
        scores: Folder for the scores of single clips; None keeps nothing.
        device: "cpu", "cuda", or "auto".
        seconds: Clips of this length are taken, as in section 4.1; ignored for the examples.
    """

    checkpoint: str = "mini"
    manifest: str = ""
    num_clips: int = 20
    scores: Path | None = None
    device: str = "auto"
    seconds: tuple[float, float] = (5.0, 10.0)

    @cached_property
    def codec(self) -> Any:
        """The model under test.

        Raises:
            ValueError: If `checkpoint` names a preset that has no weights.
        """
        import torch

        import taae
        from taae import config

        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        folder = Path(self.checkpoint)
        if (folder / "model_config.json").is_file():
            weights = next(iter([*folder.glob("*.safetensors"), *folder.glob("*.ckpt")]), folder / "model.safetensors")
            return taae.load_official(folder / "model_config.json", weights, device=device)
        embedded = Path(taae.__file__).parent / "pretrained" / self.checkpoint
        if self.checkpoint in config.preset_names() and not embedded.is_dir():
            raise ValueError(f"{self.checkpoint}: {RANDOM_WEIGHTS}")
        return taae.load(self.checkpoint, device=device)

    @cached_property
    def num_parameters(self) -> int:
        """Of the model under test."""
        from taae.model import num_parameters

        return num_parameters(self.codec.model)

    @property
    def is_papers_model(self) -> bool:
        """Whether the model under test is as large as the paper's; if not, only trends can be compared."""
        return self.num_parameters > PAPER_PARAMETERS

    def clips(self, language: str = "en") -> list[Clip]:
        """Clips in a language; empty if there are none."""
        path = notebook.find_manifest(self.manifest)
        if path is None:
            found = [clip for clip in example_clips() if clip.language == language]
        else:
            low, high = self.seconds
            found = [c for c in read_manifest(path) if c.language == language and low <= c.seconds <= high]
        places = np.linspace(0, len(found) - 1, min(self.num_clips, len(found))).round().astype(int)
        return [found[place] for place in dict.fromkeys(places.tolist())]

    def describe(self, language: str = "en") -> str:
        """Model and clips, for the reason of a verdict."""
        size = f"{self.num_parameters / 1e6:.1f}M" if self.num_parameters < 1e8 else f"{self.num_parameters / 1e6:.0f}M"
        clips = self.clips(language)
        return f"{self.codec.name} ({size} parameters) on {len(clips)} clips of {self.manifest or 'the examples'}"

    def setup(self) -> dict[str, Any]:
        """For the provenance."""
        clips = self.clips()
        return {
            "checkpoint": self.checkpoint,
            "parameters": self.num_parameters,
            "manifest": self.manifest or "examples",
            "num_clips": len(clips),
            "clips_sha256": _digest(clips),
            "device": str(self.codec.device),
        }

    def ours(self, bottlenecks: Sequence[str], language: str = "en") -> dict[str, dict[str, float]]:
        """Bottleneck -> metric -> mean of the model under test."""
        return self._means(self.codec, bottlenecks, language)

    def other(self, name: str, mode: str, language: str = "en") -> dict[str, float]:
        """Metric -> mean of a codec of the catalogue.

        Raises:
            UnavailableError: If it is not here.
        """
        return self._means(self._load(name), [mode], language)[mode]

    def beside(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Codecs that the paper does not have, each at its first mode; those that are not here say so."""
        rows: list[dict[str, Any]] = []
        for name in names:
            row = {"codec": name, "BPS": "not run"} | dict.fromkeys((LABELS[metric] for metric in metrics()), "–")
            try:
                codec = self._load(name)
                mode = next(iter(codec.bitrates))
                means = self._means(codec, [mode], "en")[mode]
                row |= {"BPS": f"{codec.bitrates[mode]:g}"}
                row |= {LABELS[metric]: f"{mean:.2f}" for metric, mean in means.items()}
            except baselines.UnavailableError as error:
                row["codec"] = str(error)
            rows.append(row)
        return rows

    def by_length(self, bottleneck: str, lengths_s: Sequence[float]) -> dict[float, dict[str, Any]]:
        """Fig. 3: speech joined by speaker, sent in pieces (`quality_by_length`); too long ones are left out."""
        from taae.audio import resample
        from workbench.quality import quality_by_length

        rate_hz = self.codec.sample_rate_hz
        speakers: dict[str, list[np.ndarray]] = {}
        for clip in self.clips():
            wav, clip_rate_hz = load_mono(clip.path)
            # The examples are a sentence each of different speakers; together they are long enough.
            speakers.setdefault(clip.speaker if self.manifest else "", []).append(resample(wav, clip_rate_hz, rate_hz))
        joined = [np.concatenate(wavs) for wavs in speakers.values()]
        longest_s = max(map(len, joined), default=0) / rate_hz
        possible = [length_s for length_s in lengths_s if length_s <= longest_s]
        return quality_by_length(self.codec, joined, rate_hz, bottleneck, possible or lengths_s)

    def _load(self, name: str) -> Any:
        loaded = self.__dict__.setdefault("_loaded", {})
        if name not in loaded:
            loaded[name] = baselines.load(name)
        return loaded[name]

    def _means(self, codec: Any, modes: Sequence[str], language: str) -> dict[str, dict[str, float]]:
        clips = self.clips(language)
        if not clips:
            raise ValueError(f"no clips in language {language!r} in {self.manifest or 'the examples'}")
        path = None
        if self.scores is not None:
            self.scores.mkdir(parents=True, exist_ok=True)
            path = self.scores / f"{_file_name(codec)}-{_digest(clips)[:12]}.jsonl"
        pairs = [(clip.id, clip.path) for clip in clips]
        rows = evaluate(codec, pairs, list(modes), metrics=metrics(), results_path=path, progress=False)
        if failed := [row for row in rows if "error" in row]:
            raise RuntimeError(f"{len(failed)} of {len(rows)} clips failed, the first with {failed[0]['error']}")
        return {
            mode: {name: entry[name]["mean"] for name in metrics() if name in entry}
            for mode, entry in summarise(rows).items()
        }


def metrics() -> list[str]:
    """The paper's metrics that this machine can compute."""
    from taae.metrics import unavailable_metrics

    return [name for name in METRICS if name not in unavailable_metrics()]


def example_clips() -> list[Clip]:
    """The recordings in the repository."""
    languages = {"french": "fr", "german": "de"}
    clips = []
    for path in sorted(EXAMPLES.glob("*.flac")):
        wav, rate_hz = load_mono(path)
        language = languages.get(path.stem, "en")
        clips.append(Clip(id=path.stem, path=path, language=language, speaker=path.stem, seconds=len(wav) / rate_hz))
    return clips


def _file_name(codec: Any) -> str:
    model_id = getattr(codec, "model_id", b"")
    return (
        f"{str(codec.name).replace(' ', '-')}{'-' + model_id.hex() if isinstance(model_id, bytes) and model_id else ''}"
    )


def _digest(clips: Sequence[Clip]) -> str:
    """Of the clips' ids and bytes."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.id.encode() + clip.path.read_bytes())
    return digest.hexdigest()
