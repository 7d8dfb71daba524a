"""Who runs the shards of a corpus: this process, Ray, or Slurm. They schedule; `corpus.encode_shard` does the work."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from taae.corpus import CorpusConfig, encode_shard
from taae.files import write_atomic
from taae.manifest import Shard, read_recordings

if TYPE_CHECKING:
    from taae.codec import Codec

logger = logging.getLogger(__name__)

# Ray gives its own processes 15 s to start, which nothing can change (its issue 65983). A busy machine may need more
# the first time; the second time their files are in memory.
RAY_STARTS = 3

# Slurm's own default allows array indices up to 1000.
MAX_ARRAY_TASKS = 1000


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where every worker finds the codec; the arguments of `taae.load` or `taae.load_official`."""

    model: str = "mini"
    official_config: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"


@lru_cache(maxsize=1)  # a worker that runs many shards loads it once
def load_encoder(source: EncoderSource) -> "Codec":
    """The codec, for this process.

    Raises:
        ValueError: As `taae.load`.
    """
    import taae

    if source.official_config is None:
        return taae.load(source.model, device=source.device, dtype=source.dtype)
    return taae.load_official(source.official_config, source.model, device=source.device, dtype=source.dtype)


def run_local(
    source: EncoderSource, config: CorpusConfig, shards: Sequence[Shard], *, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Encode shards one after the other in this process, with a bar of audio on stderr when that is a terminal.

    Returns:
        For each shard what `encode_shard` returns, or {"shard", "error"}: a bad one does not stop the others.
    """
    codec = load_encoder(source)
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    for shard in shards:
        try:
            seconds = sum(recording.seconds for recording in read_recordings(config.manifest, shard))
            with tqdm(total=seconds, desc=f"shard {shard}", bar_format=layout, disable=None, leave=False) as bar:
                yield encode_shard(codec, config, shard, force=force, progress=bar.update)
        except (ValueError, OSError) as error:
            yield {"shard": str(shard), "error": str(error)}


def run_ray(
    source: EncoderSource, config: CorpusConfig, shards: Sequence[Shard], *, cpus: int, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Encode shards as Ray tasks, on the cluster that RAY_ADDRESS names or on this machine, with a bar of shards.

    A task whose machine dies is run again, up to three times. Manifest, audio and output must be on storage that all
    machines see under the same path.

    Args:
        source: Loaded once by every worker.
        config: The corpus.
        shards: Which parts of it.
        cpus: Processor cores, and threads, of a task; on cuda it also gets one GPU.
        force: As `encode_shard`.

    Returns:
        As `run_local`, in the order in which they are done.

    Raises:
        ImportError: If Ray is not installed.
        RuntimeError: If it does not start, or the cluster does not answer.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise ImportError("the engine ray needs Ray: pip install 'taae-workbench[scale]'") from None

    def work(shard: Shard) -> dict[str, Any]:
        import torch

        torch.set_num_threads(cpus)
        return encode_shard(load_encoder(source), config, shard, force=force)

    task = ray.remote(num_cpus=cpus, num_gpus=int(source.device.startswith("cuda")), max_retries=3)(work)
    is_mine = not ray.is_initialized()
    if is_mine:
        _start_ray(ray)
    try:
        pending = {task.remote(shard): shard for shard in shards}
        with tqdm(total=len(pending), desc="shards", unit="shard", disable=None, leave=False) as bar:
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                shard = pending.pop(done)
                bar.update()
                try:
                    yield ray.get(done)
                except RayTaskError as error:
                    yield {"shard": str(shard), "error": str(error.cause)}
                except RayError as error:  # it died more often than it may be run again
                    yield {"shard": str(shard), "error": f"Ray: {error}"}
    finally:
        if is_mine:
            ray.shutdown()


def _start_ray(ray: Any) -> None:
    for attempt in range(1, RAY_STARTS + 1):
        try:
            ray.init(include_dashboard=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises a plain Exception where its processes do not start in time
            ray.shutdown()
            if attempt == RAY_STARTS:
                raise RuntimeError(f"Ray did not start in {attempt} attempts: {error}") from error
            logger.warning("Ray did not start (%s); attempt %d of %d", error, attempt + 1, RAY_STARTS)


def write_sbatch(source: EncoderSource, config: CorpusConfig, *, cpus: int, force: bool = False) -> Path:
    """Write OUT/encode.sbatch, a Slurm array that encodes every shard; submitting it is up to the reader.

    Array task t takes the shards t, t + 1000, t + 2000 ... A task that is killed may be submitted again, alone or
    with all others: what is finished is skipped. Options of `sbatch` on its command line win over those in the script.

    Args:
        source: Loaded by every task.
        config: The corpus, on storage that all machines see.
        cpus: Cores and threads of a task; on cuda it also asks for one GPU.
        force: As `encode_shard`.

    Returns:
        The path of the script.
    """
    out = config.out.resolve()
    tasks = min(config.num_shards, MAX_ARRAY_TASKS)
    options = {
        "--bottleneck": config.bottleneck,
        "--format": config.file_format,
        "--batch-seconds": f"{config.batch_s:g}",
        "--model": _absolute(source.model),
        "--device": source.device,
        "--dtype": source.dtype,
    }
    if source.official_config is not None:
        options["--official-config"] = str(source.official_config.resolve())
    command = [sys.executable, "-m", "taae.cli", "encode-dataset", str(config.manifest.resolve()), str(out)]
    command += [word for pair in options.items() for word in pair] + ["--force"] * force
    gpu = "#SBATCH --gpus-per-task=1\n" if source.device.startswith("cuda") else ""
    script = f"""#!/bin/bash
#SBATCH --job-name=taae-encode
#SBATCH --array=0-{tasks - 1}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpu}#SBATCH --output={out}/encode-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Time limit, partition and account are your cluster's: sbatch --time=... --partition=... {out}/encode.sbatch
export OMP_NUM_THREADS={cpus} OMP_WAIT_POLICY=PASSIVE
failed=0
for ((shard = SLURM_ARRAY_TASK_ID; shard < {config.num_shards}; shard += {tasks})); do
    {shlex.join(command)} --shard "$shard/{config.num_shards}" || failed=1
done
exit $failed
"""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "encode.sbatch", script.encode(), force=True)
    return out / "encode.sbatch"


def _absolute(model: str) -> str:
    return os.path.abspath(model) if os.path.exists(model) else model
