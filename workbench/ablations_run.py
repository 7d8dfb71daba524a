"""Train and measure the variants of `ablations`: resumable, one run after the other, seeds on the outside."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taae.audio import loudness_gain, resample, to_mono
from taae.checkpoint import RVQ, load_model
from taae.codec import Codec
from taae.config import BottleneckSpec
from taae.evaluate import Clip, evaluate, load_mono, read_manifest, summarise
from taae.files import write_atomic
from taae.fsq import split_digits
from taae.model import num_parameters
from taae.rates import codebook_use
from taae.rvq import ResidualVQ
from workbench import ablations, notebook
from workbench.ablations import METRICS, RVQ_MODE, Result, Results

_TIMED_S = 30  # as in Table 10


def ablate(
    names: Sequence[str] = (),
    *,
    seeds: int = 3,
    num_steps: int | None = None,
    out: Path = ablations.RUNS,
    results: Path = ablations.RESULTS,
    limit_s: float = math.inf,
    shared: Path | None = None,
    num_clips: int = ablations.NUM_CLIPS,
    say: Callable[[str], None] = print,
) -> Results:
    """Train what is not trained yet, measure it, and write `results` after every run.

    Args:
        names: Ablations or variants; all by default.
        seeds: How many; seed 0 of all variants comes before seed 1 of any.
        num_steps: Of the base; the recipe's by default.
        out: Folder of the runs; a run that is finished is read, one that was killed is resumed.
        results: File of the results: all runs of these names, seeds and steps that are there.
        limit_s: No training after so many seconds; a later call goes on. The recogniser of the perceptual loss, some
            minutes, is trained in one go.
        shared: Folder that holds the speech; `notebook.shared_folder()` by default.
        num_clips: English development clips to measure on.
        say: Gets lines of progress.

    Raises:
        ValueError: If a name is unknown, or the speech is not there.
    """
    shared = shared or notebook.shared_folder()
    if shared is None or not (shared / ablations.TRAIN).is_file():
        raise ValueError(f"the ablations need {ablations.TRAIN} below the shared folder; set TAAE_SHARED to it")
    num_steps = num_steps or ablations.default_steps()
    clips = development_clips(shared, num_clips)
    setup = _setup(shared, clips, num_steps)
    wanted = [(name, seed) for seed in range(seeds) for name in ablations.choose(names)]
    begun, found, num_left = time.monotonic(), [], 0
    out.mkdir(parents=True, exist_ok=True)
    _share_packed(out)
    missing = [job for job in wanted if _finished(*job, num_steps, out, setup) is None]
    bound = f", at most {limit_s / 60:.0f} minutes" if math.isfinite(limit_s) else ""
    minutes = _estimate_s(missing, num_steps) / 60
    say(f"{len(wanted)} runs, {len(missing)} to train: about {minutes:.0f} CPU minutes{bound}")
    command = _command(names, seeds, num_steps)
    for index, (name, seed) in enumerate(wanted):
        result = _finished(name, seed, num_steps, out, setup)
        if result is None:
            left_s = limit_s - (time.monotonic() - begun)
            if left_s <= 0:
                num_left += 1
                continue
            result = _train_and_measure(name, seed, num_steps, out, shared, clips, setup, left_s)
            if result is None:
                num_left += 1
                continue
            mode = next(reversed(result.scores))
            say(
                f"{index + 1:3}/{len(wanted)} {name} seed {seed}: {result.train_cpu_s:.0f} CPU s, "
                f"STOI {result.scores[mode]['stoi']:.3f} at {mode}"
            )
        found.append(result)
        if (name, seed) in missing:
            Results(command=command, setup=setup, runs=tuple(found)).save(results)
    if num_left:
        say(f"the time is over; {num_left} runs are left for another call")
    Results(command=command, setup=setup, runs=tuple(found)).save(results)
    return Results(command=command, setup=setup, runs=tuple(found))


def development_clips(shared: Path, num_clips: int) -> list[Clip]:
    """English clips of the development set, from all over it, as many speakers as possible."""
    found = [clip for clip in read_manifest(shared / ablations.DEV) if clip.language == "en"]
    places = np.linspace(0, len(found) - 1, min(num_clips, len(found))).round().astype(int)
    return [found[place] for place in dict.fromkeys(places.tolist())]


class RVQCodec:
    """An autoencoder with a residual vector quantiser, behind the verb that `evaluate` asks for."""

    def __init__(self, codec: Codec, rvq: ResidualVQ) -> None:
        self.codec, self.rvq, self.name = codec, rvq.eval(), f"{codec.name} RVQ"

    def reconstruct(self, wav: Any, bottleneck: str = RVQ_MODE, *, sample_rate_hz: int) -> tuple[np.ndarray, None]:
        """Decoded audio (n,) at the rate it came in, and no bytes: RVQ has no file format here."""
        mono = to_mono(wav)
        at_model_rate = resample(mono, sample_rate_hz, self.codec.sample_rate_hz)
        gain = loudness_gain(at_model_rate, self.codec.sample_rate_hz)
        with torch.inference_mode():
            latents = self.codec.model.encode_latents(torch.from_numpy(at_model_rate * np.float32(gain))[None, None])
            decoded = self.codec.model.decode_latents(self.rvq.detokenize(self.rvq.tokenize(latents)))
        restored = decoded[0, 0, : len(at_model_rate)].numpy() / gain
        return resample(restored, self.codec.sample_rate_hz, sample_rate_hz)[: len(mono)].clip(-1, 1), None

    def tokens(self, wav: np.ndarray) -> np.ndarray:
        """(s, k) of mono audio (n,) at the model's rate."""
        with torch.inference_mode():
            return self.rvq.tokenize(self.codec.model.encode_latents(torch.from_numpy(wav)[None, None]))[0].numpy()


def open_run(name: str, run: Path) -> tuple[Codec, RVQCodec | None]:
    """The trained model of a run, and what stands around it if it has an RVQ."""
    from safetensors.torch import load_file

    from taae.config import build
    from taae.rvq import RVQConfig

    codec = Codec(*load_model(run / "model"))
    changes = ablations.variants()[name].rvq
    if not changes:
        return codec, None
    rvq = build(RVQConfig, changes, name).build(codec.config.latent_dim)
    rvq.load_state_dict(load_file(run / RVQ))
    return codec, RVQCodec(codec, rvq)


def quantiser_use(tokens: np.ndarray, alphabet: int) -> dict[str, float]:
    """How well the symbols of a quantiser are used, tokens (s, symbols of a frame), each of `alphabet` values.

    FSQ is counted by its digits, since some minutes of speech cannot fill its codebooks of 15,625 entries; RVQ by its
    stages. "bits" is the sum of the entropies of a frame's symbols, "capacity" what it could be. That symbols depend on
    each other is not counted.
    """
    uses = [codebook_use(column, alphabet) for column in tokens.T]
    capacity = len(uses) * math.log2(alphabet)
    bits = sum(use.entropy_bits for use in uses)
    return {
        "bits": bits,
        "capacity": capacity,
        "bits_share": bits / capacity,
        "used_share": float(np.mean([use.num_used / alphabet for use in uses])),
        "num_frames": float(len(tokens)),
    }


def latency(codec: Codec, seconds: int = _TIMED_S, repeats: int = 2) -> dict[str, float]:
    """What coding costs: processor seconds per second of audio (fastest of `repeats`), and what it must wait for.

    The quantiser is left out: its time is next to nothing. "lookahead_s" is how far ahead encoder and decoder see, one
    frame included.
    """
    wav = np.random.default_rng(0).standard_normal(seconds * codec.sample_rate_hz).astype(np.float32) * 0.1
    fastest = math.inf
    for _ in range(repeats):
        begun = time.process_time()
        codec.reconstruct(wav, "continuous")
        fastest = min(fastest, time.process_time() - begun)
    after = codec.config.receptive_frames[1]
    return {"cpu_s_per_s": fastest / seconds, "lookahead_s": (2 * after + 1) / codec.frame_rate_hz}


def _train_and_measure(
    name: str, seed: int, num_steps: int, out: Path, shared: Path, clips: Sequence[Clip], setup: dict, left_s: float
) -> Result | None:
    from taae.monitor import read_log
    from taae.train import train
    from taae.training_state import checkpoints, step_of

    run, variant = ablations.run_folder(name, seed, num_steps, out), ablations.variants()[name]
    config = ablations.recipe(name, seed, num_steps, out)
    if config.recogniser:
        _ensure_recogniser(out, shared)
    clock, begun = run / "cpu_s.json", time.process_time()
    before = json.loads(clock.read_text()) if clock.is_file() else 0.0
    try:
        run.mkdir(parents=True, exist_ok=True)
        train(config, run, shared, resume=bool(checkpoints(run / "checkpoints")), stop_after_s=left_s)
    finally:
        spent = before + time.process_time() - begun
        write_atomic(clock, json.dumps(spent).encode(), force=True)
    if step_of(checkpoints(run / "checkpoints")[-1]) < config.num_steps:
        return None
    rows = read_log(run)
    codec, rvq = open_run(name, run)
    modes = [RVQ_MODE] if rvq else list(variant.bottlenecks)
    pairs = [(clip.id, clip.path) for clip in clips]
    scored = evaluate(rvq or codec, pairs, modes, metrics=METRICS, progress=False)
    if failed := [row for row in scored if "error" in row]:
        raise RuntimeError(f"{name} seed {seed}: {len(failed)} clips failed, the first with {failed[0]['error']}")
    means = summarise(scored)
    losses = {key: rows[-1][key] for key in ("mel", "magnitude", "perceptual", "commitment", "norm") if key in rows[-1]}
    result = Result(
        variant=name,
        seed=seed,
        num_steps=config.num_steps,
        recipe_sha256=ablations.recipe_sha256(name, seed, num_steps),
        num_parameters=num_parameters(codec.model),
        train_cpu_s=spent,
        losses=losses,
        scores={mode: {m: means[mode][m]["mean"] for m in METRICS if m in means[mode]} for mode in modes},
        bits={mode: _use(codec, rvq, mode, clips) for mode in modes},
        latency=latency(codec),
    )
    write_atomic(run / "result.json", json.dumps({"setup": setup, "result": asdict(result)}).encode(), force=True)
    return result


def _use(codec: Codec, rvq: RVQCodec | None, mode: str, clips: Sequence[Clip]) -> dict[str, float]:
    parts = []
    for clip in clips:
        wav, rate_hz = load_mono(clip.path)
        wav = resample(wav, rate_hz, codec.sample_rate_hz)
        wav = (wav * loudness_gain(wav, codec.sample_rate_hz)).astype(np.float32)
        if rvq:
            parts.append(rvq.tokens(wav))
            continue
        spec = BottleneckSpec.parse(mode)
        tokens = codec.encode(torch.from_numpy(wav)[None, None], spec)[0]  # (s, k)
        parts.append(split_digits(tokens, spec.levels, spec.dim).flatten(1).numpy())
    return quantiser_use(np.concatenate(parts), rvq.rvq.codebook_size if rvq else BottleneckSpec.parse(mode).levels)


def _finished(name: str, seed: int, num_steps: int, out: Path, setup: dict) -> Result | None:
    path = ablations.run_folder(name, seed, num_steps, out) / "result.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    is_same = stored["setup"] == setup and stored["result"]["recipe_sha256"] == ablations.recipe_sha256(
        name, seed, num_steps
    )
    if not is_same:
        raise ValueError(
            f"{path.parent} holds a run of another recipe or on other data; choose another --out, or delete it"
        )
    return Result(**stored["result"])


def _setup(shared: Path, clips: Sequence[Clip], num_steps: int) -> dict[str, Any]:
    import hashlib

    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.id.encode() + clip.path.read_bytes())
    config = ablations.recipe("base", 0, num_steps)
    return {
        "train_manifest": ablations.TRAIN,
        "train_sha256": hashlib.sha256((shared / ablations.TRAIN).read_bytes()).hexdigest(),
        "dev_manifest": ablations.DEV,
        "clips": [clip.id for clip in clips],
        "clips_sha256": digest.hexdigest(),
        "num_steps": num_steps,
        "crops_per_step": config.data.batch_size,
        "segment_s": config.data.segment_s,
        "metrics": list(METRICS),
    }


def _command(names: Sequence[str], seeds: int, num_steps: int) -> str:
    return " ".join(["python -m workbench ablate", *names, f"--seeds {seeds} --steps {num_steps}"])


def _estimate_s(jobs: Sequence[tuple[str, int]], num_steps: int) -> float:
    """Processor seconds on a core like ours: 0.12 s a step of the base, and 10 s to measure."""
    factors = {"size-large": 1.9, "size-small": 0.8, "perceptual": 0.7, "continued": 0.5}
    return sum(10 + 0.12 * num_steps * factors.get(name, 1.0) for name, _ in jobs)


def _share_packed(out: Path) -> None:
    """The trainer keeps its packed speech beside the run; all runs of a repository share one."""
    packed = out.parent / "packed"
    packed.mkdir(exist_ok=True)
    if not (out / "packed").exists():
        os.symlink("../packed", out / "packed")


def _ensure_recogniser(out: Path, shared: Path) -> None:
    from workbench.ablations_recogniser import train_recogniser

    if not (ablations.recogniser_folder(out) / "model.safetensors").is_file():
        train_recogniser(shared / ablations.TRAIN, ablations.recogniser_folder(out), **ablations.recogniser_recipe())


def stored_or_trained(file: str = "", names: Sequence[str] = (), *, minutes: float = 0.0) -> Results:
    """What a notebook shows: the results in `file` ("" for the stored ones), or newly trained ones.

    Args:
        file: Written by `workbench ablate`.
        names: Ablations or variants that are trained if `minutes` is above 0; runs/ablations/results.json gets them.
        minutes: Of training at most; 0 trains nothing.
    """
    if minutes > 0:
        return ablate(names, limit_s=60 * minutes, results=ablations.RUNS / "results.json")
    return ablations.load(Path(file)) if file else ablations.load()
