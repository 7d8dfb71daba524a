"""One measured configuration in a process of its own: `benchmarks/speed.py` starts these and asks them in turn.

    python benchmarks/speed_worker.py codec mini "float32 dense"
    python benchmarks/speed_worker.py peer "Codec2 700C" -

It says in one line of JSON that it is ready, or why not; then, for each number of seconds on stdin, what it took to
encode and decode so much speech. A process apiece makes the memory of a configuration its own, and its threads too.
"""

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import taae
from taae.audio import load_wav, resample, to_mono
from taae.config import BottleneckSpec
from taae.fsq import detokenize, tokenize

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, RECIPE = ROOT / "workbench" / "ui" / "examples", ROOT / "taae" / "recipes" / "mini-first.toml"
SPEC = BottleneckSpec.parse("2x5^6")
BATCH = 8  # crops of a training step
MODES = {"EnCodec": "1500", "DAC": "1000", "Mimi": "550"}
GEMM_ROWS = 1500  # 30 s at 50 Hz

Prepare = Callable[[float], Callable[[], object]]  # seconds of audio to what is measured


def speech(seconds: float, rate_hz: int) -> np.ndarray:
    """The examples of the page, one after the other and again, (n,)."""
    pieces = [load_wav(path) for path in sorted(EXAMPLES.glob("*.flac"))]
    mono = np.concatenate([resample(to_mono(wav), rate, rate_hz) for wav, rate in pieces])
    return np.resize(mono, round(seconds * rate_hz)).astype(np.float32)


@lru_cache(maxsize=2)  # of both frame rates; a new one would be made in each layer
def _mask(n: int, left: int, right: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril_(right).triu_(-left)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, left: int, right: int, backend: str) -> Tensor:
    """The window as a mask of n x n, as code without blocks has it on a CPU."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(q.shape[2], left, right))


def codec_run(model: str, variant: str) -> Prepare:
    """Encode and decode by one of our paths, "dtype" or "dtype plain"; or, "dtype dense", as code without them does.

    That is the plain network on the whole recording at once, with a dense mask in its attention.
    """
    dtype, _, path = variant.partition(" ")
    kernels: Any = {"": "auto", "dense": "plain"}.get(path, path)
    codec = taae.load(model, dtype=dtype, kernels=kernels)
    if path == "dense":
        taae.model.window_attention = dense_attention  # type: ignore[attr-defined]

    @torch.inference_mode()
    def dense(wav: Tensor) -> None:
        latents = codec.model.encode_latents(wav.to(codec.dtype)).float()
        codec.model.decode_latents(detokenize(tokenize(latents, SPEC), SPEC).to(codec.dtype))

    def ours(wav: Tensor) -> None:
        codec.decode(codec.encode(wav, SPEC), SPEC)

    def prepare(seconds: float) -> Callable[[], object]:
        wav = torch.from_numpy(speech(seconds, codec.sample_rate_hz))[None, None]
        return partial(dense if path == "dense" else ours, wav)

    return prepare


def peer_run(name: str) -> Prepare:
    """Another codec, at its own rate."""
    from workbench import baselines

    with tempfile.TemporaryDirectory() as folder:
        codec = _with_random_weights(name, folder) if name in MODES else baselines.load(name)
    mode = MODES.get(name, next(iter(codec.bitrates)))

    def prepare(seconds: float) -> Callable[[], object]:
        wav = speech(seconds, codec.sample_rate_hz)
        return lambda: codec.decode(codec.encode(wav, mode))

    return prepare


def _with_random_weights(name: str, folder: str) -> Any:
    """The class of transformers at the size of the published checkpoint, by way of a folder as that is."""
    try:
        import transformers
    except ImportError:
        from workbench.baselines import UnavailableError

        raise UnavailableError(name, "transformers", "pip install 'taae-workbench[baselines]'") from None
    from workbench.baselines import neural

    # Defaults are those of encodec_24khz and kyutai/mimi; of DAC they are not those of dac_16khz.
    dac = {"downsampling_ratios": [2, 4, 5, 8], "upsampling_ratios": [8, 5, 4, 2], "n_codebooks": 12}
    family, model, config = {
        "EnCodec": (neural.EnCodec, "EncodecModel", lambda: transformers.EncodecConfig()),
        "DAC": (neural.Dac, "DacModel", lambda: transformers.DacConfig(**dac)),
        "Mimi": (neural.Mimi, "MimiModel", lambda: transformers.MimiConfig()),
    }[name]
    getattr(transformers, model)(config()).save_pretrained(folder)
    return family(folder)


def training_run(model: str) -> Prepare:
    """A step of training with reconstruction losses on eight crops: forward, backward, update."""
    from taae.config import load_preset
    from taae.learner import Learner
    from taae.model import TAAE
    from taae.objectives import GeneratorLosses, Reconstruct
    from taae.recipe import load_config

    recipe = load_config(RECIPE)
    config = load_preset(model)
    network = TAAE(config).train()
    reconstruct = Reconstruct(network, torch.bfloat16)
    learner = Learner(network, reconstruct, recipe, {})
    losses = GeneratorLosses(recipe, config.sample_rate_hz)
    generator = torch.Generator().manual_seed(0)

    def prepare(seconds: float) -> Callable[[], object]:
        wav = torch.from_numpy(speech(seconds, config.sample_rate_hz)).reshape(BATCH, 1, -1)

        def step() -> None:
            decoded = reconstruct(wav, 17, generator).decoded
            learner.backward(losses(wav, decoded, generator).total)
            learner.update(1.0, 0)

        return step

    return prepare


def discriminator_run(variant: str) -> Prepare:
    """An update of the discriminator (16 channels) and its gradient in the speech, for one crop."""
    import discriminator

    config = discriminator.variants(16)[variant]
    ensemble = discriminator.fresh(config)

    def prepare(seconds: float) -> Callable[[], object]:
        wav = torch.from_numpy(speech(discriminator.SECONDS, discriminator.RATE_HZ))[None, None]

        def steps() -> None:
            for seed in range(round(seconds / discriminator.SECONDS)):  # the scales that are drawn differ in size
                view = discriminator.view_of(config, ensemble, seed)
                discriminator.discriminator_update(config, ensemble, wav, 0.9 * wav, view)
                discriminator.speech_gradient(config, ensemble, wav, 0.9 * wav, view)

        return steps

    return prepare


def gemm_gflops(dtype: torch.dtype) -> float:
    """Operations of the widest matrix product of paper-950m, in billions per processor second; best of eight."""
    linear = torch.nn.Linear(1024, 8192, bias=False, dtype=dtype).requires_grad_(False)
    rows = torch.randn(GEMM_ROWS, 1024).to(dtype)
    times = []
    for _ in range(8):
        started = cpu_s()
        linear(rows)
        times.append(cpu_s() - started)
    return 2 * GEMM_ROWS * 1024 * 8192 / min(times) / 1e9


def cpu_s() -> float:
    """Processor time of this process, its threads and the programs that it ran."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def resident_mb() -> float:
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def make(kind: str, name: str, variant: str) -> Prepare:
    """What is measured."""
    if kind == "codec":
        return codec_run(name, variant)
    if kind == "peer":
        return peer_run(name)
    return training_run(name) if kind == "training" else discriminator_run(variant)


def main() -> None:
    """Answer until stdin ends."""
    kind, name, variant = sys.argv[1:4]
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.manual_seed(0)
    try:
        prepare = make(kind, name, variant)
    except (ImportError, RuntimeError, ValueError) as error:
        print(json.dumps({"unavailable": str(error)}), file=answers, flush=True)
        return
    prepare(2.56)()
    print(json.dumps({"base_mb": resident_mb(), "threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        if line.startswith("gemm"):
            answer = {"gflops": gemm_gflops(getattr(torch, line.split()[1]))}
        else:
            run = prepare(float(line))
            started, cpu_started = time.perf_counter(), cpu_s()
            run()
            answer = {"wall_s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu_started, "peak_mb": peak_mb()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
