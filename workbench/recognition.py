"""How many words a recogniser gets wrong after coding: by pocketsphinx, or any recogniser on disk. Beyond the paper.

Two rates: against the transcript (`wer`), and against what the recogniser made of the original (`dwer`), which needs no
transcript and counts only what coding changed.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from taae.audio import resample, to_mono
from taae.workers import map_in_order

Recogniser = Callable[[np.ndarray], str]  # wav (n,) at 16 kHz -> words

RATE_HZ = 16_000


def wer_table(
    references: Sequence[np.ndarray],
    decoded: Mapping[str, Sequence[np.ndarray]],
    transcripts: Sequence[str | None] | None = None,
    *,
    sample_rate_hz: int = RATE_HZ,
    recogniser: Callable[[], Recogniser] | None = None,
    num_workers: int = 1,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Word error rates of the originals (row "original") and of every system, all clips of a system as one text.

    Args:
        references: Originals, (n,) each.
        decoded: System -> its versions, in the order of `references`.
        transcripts: What is said; None where it is not known, and for all by default.
        sample_rate_hz: Of all clips.
        recogniser: Makes the recogniser, in every process once; pocketsphinx by default. A function of a module.
        num_workers: Processes that recognise.
        seed: Of the bootstrap over clips.

    Returns:
        Per row: `wer` and `dwer`, each {"mean", "low", "high", "num_words", "num_clips"} with the 95 % interval, or
        None; and the "hypotheses".

    Raises:
        ValueError: If the numbers of clips differ.
        ImportError: If the recogniser's package is missing.
    """
    spoken = list(transcripts) if transcripts is not None else [None] * len(references)
    systems = {"original": list(references), **{name: list(wavs) for name, wavs in decoded.items()}}
    for name, wavs in [*systems.items(), ("transcripts", spoken)]:
        if len(wavs) != len(references):
            raise ValueError(f"{name} has {len(wavs)} clips, there are {len(references)} originals")
    make = recogniser or pocketsphinx_recogniser
    jobs = [
        ((name, index), partial(_arguments, make, wav, sample_rate_hz))
        for name, wavs in systems.items()
        for index, wav in enumerate(wavs)
    ]
    texts: dict[str, list[str]] = {name: [] for name in systems}
    for (name, _), text in map_in_order(_recognise, jobs, num_workers):
        if isinstance(text, Exception):
            raise text
        texts[name].append(text)
    return {
        name: {
            "wer": _rate(spoken, hypotheses, seed),
            "dwer": _rate(texts["original"], hypotheses, seed),
            "hypotheses": hypotheses,
        }
        for name, hypotheses in texts.items()
    }


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Fewest substitutions, insertions and deletions of words, and the number of words that were said.

    Case, punctuation and hyphens do not count; apostrophes belong to their word.
    """
    said, heard = words(reference), words(hypothesis)
    costs = np.arange(len(heard) + 1)
    for row, word in enumerate(said, start=1):
        diagonal = costs[:-1] + np.array([word != other for other in heard], dtype=np.int64)
        best = np.concatenate([[row], np.minimum(diagonal, costs[1:] + 1)])
        # An insertion costs one a step, so the rest of the row is a running minimum.
        steps = np.arange(best.size)
        costs = np.minimum.accumulate(best - steps) + steps
    return int(costs[-1]), len(said)


def words(text: str) -> list[str]:
    """Words in lower case, letters, digits and apostrophes."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower().replace("’", "'"))


def pocketsphinx_recogniser() -> Recogniser:
    """The English model that the package brings; every clip is heard afresh, so their order does not matter.

    Raises:
        ImportError: If the package is missing.
    """
    try:
        package: Any = import_module("pocketsphinx")
    except ImportError as error:
        raise ImportError("word error rates need pocketsphinx, get it with: pip install pocketsphinx") from error

    def recognise(wav: np.ndarray) -> str:
        # A decoder that has heard a clip gives other words for the next, whatever its settings; a new one takes 0.4 s.
        decoder = package.Decoder(samprate=float(RATE_HZ), cmn="batch", loglevel="FATAL")
        decoder.start_utt()
        decoder.process_raw(np.rint(wav.clip(-1, 1) * 32767).astype("<i2").tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() is not None else ""

    return recognise


def transformers_recogniser(folder: str | os.PathLike) -> Recogniser:
    """Any recogniser of transformers in a folder on disk: CTC (wav2vec 2.0, HuBERT, ...) or Whisper and its kind.

    For `wer_table` wrap it: `functools.partial(transformers_recogniser, folder)`.

    Raises:
        ImportError: If transformers is missing.
        ValueError: If the folder holds no recogniser.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise ImportError("this recogniser needs transformers: pip install 'taae-workbench[baselines]'") from error
    import torch

    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"no recogniser in {folder}; get one with: hf download openai/whisper-base.en --local-dir {folder}"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    is_ctc = any("CTC" in name for name in config.architectures or [])
    kind = transformers.AutoModelForCTC if is_ctc else transformers.AutoModelForSpeechSeq2Seq
    model = kind.from_pretrained(folder, local_files_only=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)

    def recognise(wav: np.ndarray) -> str:
        inputs = processor(wav, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            tokens = model(**inputs).logits.argmax(-1) if is_ctc else model.generate(**inputs)
        return processor.batch_decode(tokens, skip_special_tokens=True)[0]

    return recognise


_MADE: dict[Any, Recogniser] = {}


def _arguments(make: Callable[[], Recogniser], wav: Any, sample_rate_hz: int) -> tuple[Any, ...]:
    return make, resample(to_mono(wav), sample_rate_hz, RATE_HZ)


def _recognise(make: Callable[[], Recogniser], wav: np.ndarray) -> str:
    # One recogniser a process; a partial that came through a pipe is a new object each time, its parts are not.
    key = (make.func, make.args, tuple(make.keywords.items())) if isinstance(make, partial) else make
    if key not in _MADE:
        _MADE[key] = make()
    return _MADE[key](wav)


def _rate(references: Sequence[str | None], hypotheses: Sequence[str], seed: int) -> dict[str, Any] | None:
    pairs = [word_errors(said, heard) for said, heard in zip(references, hypotheses, strict=True) if said]
    errors, counts = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    if counts.sum() == 0:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(counts), size=(2000, len(counts)))
    rates = errors[draws].sum(1) / np.maximum(counts[draws].sum(1), 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return {
        "mean": float(errors.sum() / counts.sum()),
        "low": float(low),
        "high": float(high),
        "num_words": int(counts.sum()),
        "num_clips": len(counts),
    }
