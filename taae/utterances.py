"""Whole utterances with what is said in them, for the CTC head: a random crop has no known transcript."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taae.audio import load_wav, loudness_gain, resample, to_mono
from taae.config import ModelConfig
from taae.crops import FailedClips
from taae.perceptual import CTCConfig, CTCHead


@dataclass(frozen=True, slots=True, kw_only=True)
class CTCTrainingConfig:
    """How the CTC head is trained beside the autoencoder.

    Attributes:
        weight: Of its loss.
        batch_size: Utterances in every micro-batch; only the encoder hears them.
        longest_s: Longer ones are left out.
        max_failed_share: As for crops.
        head: Its alphabet and size.
    """

    weight: float = 1.0
    batch_size: int = 4
    longest_s: float = 8.0
    max_failed_share: float = 0.01
    head: CTCConfig = field(default_factory=CTCConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.longest_s <= 0 or self.weight < 0:
            raise ValueError(
                f"batch_size and longest_s must be positive and weight not negative, got {self.batch_size}, "
                f"{self.longest_s} and {self.weight}"
            )


class Spoken(NamedTuple):
    """Utterances, padded with zeros at the end; the first `num_frames` latents of each say its transcript."""

    wav: Float[Tensor, "b 1 n"]
    transcripts: list[str]
    num_frames: list[int]


class Utterances:
    """Random utterances of a manifest; `batch(step)` is a pure function of (seed, stream, step) and the files.

    Raises:
        ValueError: If the manifest is no file, or none of its lines has a `transcript` that can be read at this rate.
    """

    def __init__(
        self, manifest: Path, config: CTCTrainingConfig, model: ModelConfig, *, seed: int, stream: int = 0
    ) -> None:
        if not manifest.is_file():
            raise ValueError(f"[ctc] needs a manifest with transcripts, and {manifest} is no file; leave [ctc] out")
        head = CTCHead(config.head, model.latent_dim)
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
        self.rows = [
            (manifest.parent / row["path"], row["transcript"])
            for row in rows
            if row.get("transcript")
            and row["seconds"] <= config.longest_s
            and head.is_readable(row["transcript"], int(row["seconds"] * model.frame_rate_hz))
        ]
        if not self.rows:
            raise ValueError(
                f"[ctc]: none of the {len(rows)} lines of {manifest} has a transcript, lasts {config.longest_s} s at "
                "most and is slow enough to be read; raise ctc.longest_s, or leave [ctc] out"
            )
        self.config, self.model, self.seed, self.stream = config, model, seed, stream
        self.failed = FailedClips(config.max_failed_share)

    def batch(self, step: int) -> Spoken:
        """Utterances of one step.

        Raises:
            ValueError: If too many of them cannot be read.
        """
        rng = np.random.default_rng((self.seed, self.stream, step))
        wavs, transcripts = [], []
        while len(wavs) < self.config.batch_size:
            path, transcript = self.rows[int(rng.integers(len(self.rows)))]
            try:
                wav, rate_hz = load_wav(path)
            except (ValueError, OSError) as error:
                self.failed.add(str(path), error)
                continue
            self.failed.passed()
            mono = resample(to_mono(wav), rate_hz, self.model.sample_rate_hz)
            wavs.append(mono * loudness_gain(mono, self.model.sample_rate_hz))
            transcripts.append(transcript)
        longest = max(len(wav) for wav in wavs)
        padded = np.stack([np.pad(wav, (0, longest - len(wav))) for wav in wavs])[:, None].astype(np.float32)
        num_frames = [-(-len(wav) // self.model.hop_samples) for wav in wavs]
        return Spoken(torch.from_numpy(padded), transcripts, num_frames)
