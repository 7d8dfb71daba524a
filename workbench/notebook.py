"""What every notebook shares: its provenance on screen, a word when a number comes from a toy, tables, sounds.

Notebooks hold no logic: parameters, calls of `workbench`, and what the result shows. A parameters cell carries small
values as nbmake mocks, among them `profile = "small"`, so that the tests run every notebook end to end.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import taae

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "torch", "plotly")

Profile = Literal["full", "small"]


def begin(profile: str, *, seed: int, toy: str = "") -> None:
    """Seed torch, and show provenance and, where a reader could take a number for the paper's, a warning.

    Args:
        profile: "full", or "small" for a run that only shows that the notebook works.
        seed: Of everything random.
        toy: What is smaller than in the paper, as a sentence.

    Raises:
        ValueError: If there is no such profile.
    """
    from IPython.display import Markdown, display

    torch.manual_seed(seed)
    facts = provenance(profile, seed=seed)
    display(Markdown(banner(facts["profile"], toy) + " · ".join(f"{key} {value}" for key, value in facts.items())))


def provenance(profile: str, *, seed: int) -> dict[str, Any]:
    """What a number depends on beside the notebook and its parameters.

    Raises:
        ValueError: If `profile` is neither "full" nor "small".
    """
    if profile not in ("full", "small"):
        raise ValueError(f'profile must be "full" or "small", got {profile!r}')
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"
    return {
        "profile": profile,
        "seed": seed,
        "taae": taae.__version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": device,
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def banner(profile: str, toy: str) -> str:
    """Markdown that says what is small here; "" where nothing is."""
    lines = []
    if profile == "small":
        lines.append("**Small profile: this run shows that the notebook works. Its numbers mean nothing.**")
    if toy:
        lines.append(f"**Toy: {toy}**")
    return "".join(f"> {line}\n>\n" for line in lines) + "\n" * bool(lines)


def git_commit() -> str:
    """Short hash of the checkout, with "+" when files differ from it; "unknown" outside of one."""
    try:
        run = {"cwd": ROOT, "capture_output": True, "text": True, "check": True, "timeout": 20}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + "+" * bool(changed)


def shared_folder() -> Path | None:
    """The folder with recordings that the repository does not hold (TAAE_SHARED, else ../shared); None if missing."""
    folder = Path(os.environ.get("TAAE_SHARED", ROOT.parent / "shared"))
    return folder.resolve() if folder.is_dir() else None


def find_manifest(name: str) -> Path | None:
    """`name` below the shared folder; None for "", which stands for the examples in the repository.

    Raises:
        ValueError: If there is no such file.
    """
    if not name:
        return None
    path = (shared_folder() or ROOT.parent / "shared") / name
    if not path.is_file():
        raise ValueError(f'no manifest at {path}; set TAAE_SHARED to its folder, or name "" for the examples')
    return path


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; floats with two decimals, numbers to the right.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    keys = list(rows[0])
    marks = ["--:" if isinstance(rows[0][key], int | float) else ":--" for key in keys]
    body = [[f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows]
    lines = [[key.replace("_", " ") for key in keys], marks, *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Display `markdown_table`."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(rows)))


def show_sounds(sounds: Mapping[str, np.ndarray], sample_rate_hz: int) -> None:
    """A player for each sound, (n,); levels stay as they are, so that they compare."""
    from IPython.display import Audio, Markdown, display

    loudest = max(float(np.abs(wav).max()) for wav in sounds.values())
    for title, wav in sounds.items():
        display(Markdown(title), Audio(wav / max(loudest, 1.0), rate=sample_rate_hz, normalize=False))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
