"""One file or a folder of them: which output belongs to which input, and a run that outlives a bad file. No torch."""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from taae.files import write_atomic

STREAM = "-"  # stdin as a source, stdout as a target

Progress = Callable[[float], None]
Convert = Callable[[str, Progress], tuple[BinaryIO | bytes, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion: paths, or `STREAM`."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: what its conversion had to tell, or the error that stopped it."""

    job: Job
    record: dict[str, Any]
    error: Exception | None = None


def plan(source: str, target: str, *, suffixes: Iterable[str], target_suffix: str) -> list[Job]:
    """Pair inputs with outputs: a file with a file, or every file of a folder with one at the same place in another.

    Args:
        source: A file, a folder or `STREAM`.
        target: A file or `STREAM`; for a folder a folder, made where it is missing.
        suffixes: Endings, such as ".wav", of the files to take from a folder; letter case and hidden files are ignored.
        target_suffix: Ending of the files in the target folder.

    Raises:
        ValueError: If the two do not fit together, the folder has no such files, or two of them would get one name.
        FileNotFoundError: If the source, or the folder of a target file, does not exist.
    """
    if source != STREAM and os.path.isdir(source):
        return _plan_folder(Path(source), target, {suffix.lower() for suffix in suffixes}, target_suffix)
    if source != STREAM and not os.path.exists(source):
        raise FileNotFoundError(f"no such file or folder: {source}")
    if target != STREAM:
        check_folder(target)
        if source != STREAM and os.path.exists(target) and os.path.samefile(source, target):
            raise ValueError(f"{target} is the input too; choose another name")
    return [Job(source, target)]


def check_folder(target: str) -> None:
    """Make sure that a file can be written in the end.

    Raises:
        FileNotFoundError: If the folder of the file does not exist.
    """
    folder = Path(target).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; create it first")


def _plan_folder(source: Path, target: str, suffixes: set[str], target_suffix: str) -> list[Job]:
    if target == STREAM or os.path.isfile(target):
        raise ValueError(f"{source} is a folder, so the output must be one too, not {target}")
    found = []
    for folder, subfolders, names in os.walk(source):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in suffixes]
    if not found:
        raise ValueError(f"{source} holds no files that end in {', '.join(sorted(suffixes))}")
    by_target: dict[str, str] = {}
    for path in found:
        name = str(Path(target, path.relative_to(source)).with_suffix(target_suffix))
        if name in by_target:
            raise ValueError(f"{by_target[name]} and {path} would both become {name}; rename one")
        by_target[name] = str(path)
    return [Job(source=path, target=name) for name, path in by_target.items()]


def split_existing(jobs: Sequence[Job], *, force: bool, skip_existing: bool) -> tuple[list[Job], list[Job]]:
    """Jobs to do and jobs to skip, before any work is lost on a name that is taken.

    Raises:
        FileExistsError: If an output exists and neither flag says what to do.
    """
    if force:
        return list(jobs), []
    existing = [job for job in jobs if job.target != STREAM and os.path.lexists(job.target)]
    if existing and not skip_existing:
        others = f" and {len(existing) - 1} more outputs exist" if len(existing) > 1 else " exists"
        raise FileExistsError(f"{existing[0].target}{others}; give --force to overwrite or --skip-existing to keep")
    return [job for job in jobs if job not in set(existing)], existing


def run(jobs: Sequence[Job], convert: Convert, *, force: bool) -> Iterator[Outcome]:
    """Convert and write one job after the other, with a bar on stderr when it is a terminal.

    An output appears whole or not at all. A job that fails is an `Outcome` with its error; the others still run.

    Args:
        jobs: From `plan`.
        convert: Takes a source and a function to call with the fraction done; returns what to write (bytes or a file)
            and a record.
        force: Overwrite.

    Raises:
        BrokenPipeError: If nobody reads stdout any more.
    """
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=len(jobs), bar_format=layout, disable=None, leave=False) as bar:
        for index, job in enumerate(jobs):

            def show(done: float, index: int = index) -> None:
                bar.update(index + done - bar.n)

            bar.set_description_str(f"{index + 1}/{len(jobs)} {os.path.basename(job.source)}")
            try:
                data, record = convert(job.source, show)
                with io.BytesIO(data) if isinstance(data, bytes) else data as file:
                    _write(job.target, file, force=force)
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever is wrong with one file, the others may be fine
                yield Outcome(job, {}, error)
            else:
                yield Outcome(job, record)
            show(1.0)


def _write(target: str, file: BinaryIO, *, force: bool) -> None:
    if target == STREAM:
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, file, force=force)
