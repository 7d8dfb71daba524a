"""A study of short noises, rendered for real, for tests of the back end."""

from pathlib import Path

import numpy as np
import soundfile

from workbench.listening import render, study_file
from workbench.listening.store import Store
from workbench.listening.study import Study

RATE_HZ = 16_000
SYSTEMS = ("fine", "rough", "coarse")
NASTY_CELL = '=HYPERLINK("http://x")'


def write_sounds(folder: Path, num_items: int = 4, seconds: float = 0.6) -> None:
    """References in `folder/clips`, one with more noise for each system in `folder/<system>`."""
    for name in ("clips", *SYSTEMS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(num_items):
        generator = np.random.default_rng(index)
        count = round(seconds * RATE_HZ) + 160 * index
        wav = np.convolve(generator.normal(0, 0.1, count), np.ones(4) / 4, mode="same")
        soundfile.write(folder / "clips" / f"item{index}.wav", wav, RATE_HZ)
        for system, level in zip(SYSTEMS, (0.01, 0.03, 0.1), strict=True):
            noisy = wav + generator.normal(0, level, count)
            soundfile.write(folder / system / f"item{index}.wav", noisy, RATE_HZ)


def make_study(folder: Path, num_items: int = 4, **values) -> Study:
    """The study over those sounds; `values` are keys of the study file."""
    write_sounds(folder, num_items)
    given = {
        "name": "small",
        "title": "Small",
        "items": "clips",
        "systems": [{"name": name, "folder": name} for name in SYSTEMS],
        "anchors_hz": [3500, 7000],
        "prescreen": [],
        "seed": 3,
    }
    return study_file.resolve(given | values, folder)


def open_store(folder: Path, num_items: int = 4, **values) -> tuple[Store, Study]:
    """A store with that study, rendered and open."""
    study = make_study(folder, num_items, **values)
    store = Store(folder / "studies.sqlite")
    store.create_study(study, render.render_study(study, folder / "data"))
    store.set_status(study.name, "open")
    return store, study


def heard(page: dict) -> dict[str, float]:
    """Every slot of a public trial, heard for two seconds."""
    return dict.fromkeys(page["slots"], 2.0)
