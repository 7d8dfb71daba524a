"""`python -m workbench.listening`: make, render, try out and evaluate a listening test from the shell."""

import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="listening",
    help="Listening tests: MUSHRA, ABX, AB and ACR with codecs rendered on demand.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[
    Path,
    typer.Option("--folder", metavar="DIR", envvar="TAAE_LISTENING", help="Where the server keeps studies and sounds."),
]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name in addresses, such as first-test.")]
Simulated = Annotated[bool, typer.Option("--simulated", help="The simulated listeners instead of the real ones.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
DEFAULT_FOLDER = Path("runs/listening")


@app.command()
def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The study file to write, such as first-test.toml.")],
    preset: Annotated[str, typer.Option(help="bs1534-3-strict or taae-paper.")] = "bs1534-3-strict",
    items: Annotated[str, typer.Option(help="Folder of recordings, seen from FILE.")] = "clips",
    force: Force = False,
) -> None:
    """Write a study file to fill in."""
    from taae.files import write_atomic
    from workbench.listening import study_file

    if preset not in study_file.preset_names():
        raise ValueError(f"no preset {preset!r}; there are {', '.join(study_file.preset_names())}")
    text = _TEMPLATE.format(
        preset=json.dumps(preset),
        name=study_file.slug(path.stem),
        items=json.dumps(items),
        seed=secrets.randbelow(2**31),
    )
    write_atomic(path, text.encode(), force=force)
    _say(f"{path}: fill it in, then: python -m workbench.listening render {path}")


@app.command()
def render(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Study file (.toml, .yaml), webMUSHRA's too.")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Read a study, render every sound, and put it into the store as a draft."""
    from workbench.listening import render as rendering

    study = _load(path)
    store = _store(folder)
    for text in study.departures():
        _complain(f"note: {text}")
    stimuli = rendering.render_study(study, folder / "stimuli", _progress)
    print(file=sys.stderr)
    store.create_study(study, stimuli)
    store.close()
    _say(f"{study.name}: {len(stimuli)} sounds; open it: python -m workbench.listening status {study.name} open")


@app.command()
def status(
    study: StudyName,
    value: Annotated[str, typer.Argument(metavar="draft|open|closed", help="The new status; left out: print it.")] = "",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Open a study to listeners, close it, or say which it is."""
    store = _store(folder)
    if value:
        store.set_status(study, value)  # pyright: ignore[reportArgumentType]
    done = [entry for entry in store.progress(study) if entry["finished"] and not entry["is_simulated"]]
    _say(f"{study}: {store.status(study)}, {len(done)} listeners finished")


@app.command()
def release(
    study: StudyName,
    hours: Annotated[float, typer.Option(min=0, help="Without a sign of life.")] = 24.0,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Give the places of those who stopped halfway to newcomers, so that the design stays balanced."""
    _say(f"{study}: {_store(folder).release_idle(study, 3600 * hours)} places are free again; their data stay")


@app.command()
def simulate(
    study: StudyName,
    listeners: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 24,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    url: Annotated[str, typer.Option(help="Go through this server instead of straight into the store.")] = "",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Send simulated listeners through an open study; they stay marked as SIMULATED."""
    from workbench.listening import simulate as simulation

    store = _store(folder)
    asked = store.study(study)
    truth = simulation.default_truth(asked, seed)
    if url:
        ear = simulation.Ear(store.stimuli(study))
        for number in range(listeners):
            simulation.simulate_http(url, study, number, truth, ear, study=asked)
    else:
        simulation.simulate_store(store, study, listeners, truth)
    _say(f"{study}: {listeners} SIMULATED listeners finished")


@app.command()
def stats(
    study: StudyName,
    by: Annotated[str, typer.Option(metavar="QUESTION", help="Split the results by its answers.")] = "equipment",
    folder: Folder = DEFAULT_FOLDER,
    simulated: Simulated = False,
    as_json: Json = False,
) -> None:
    """Post-screening, medians, intervals and tests, and once more for each kind of equipment."""
    from workbench.listening import report

    result = report.evaluate(_store(folder), study, is_simulated=simulated, by=by)
    _say(json.dumps(result) if as_json else "\n".join(report.as_text(result)))


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the files.")],
    folder: Folder = DEFAULT_FOLDER,
    force: Force = False,
) -> None:
    """Write answers, listeners and events as CSV, JSON and Parquet, and webMUSHRA's CSV."""
    from workbench.listening import report

    names = report.export(_store(folder), study, out, force=force)
    _say(f"{out}: {', '.join(names)}")


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The copy.")],
    folder: Folder = DEFAULT_FOLDER,
    force: Force = False,
) -> None:
    """Copy the store while it is in use."""
    _store(folder).backup(out, force=force)
    _say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def plan(
    difference: Annotated[float, typer.Argument(help="The smallest difference that matters, in points of 100.")],
    items: Annotated[int, typer.Option(min=1, help="Items that each listener rates.")] = 10,
    systems: Annotated[int, typer.Option(min=2, help="Systems that are compared with each other.")] = 5,
    power: Annotated[float, typer.Option(help="Wanted chance to find the difference.")] = 0.8,
    sd_taste: Annotated[float, typer.Option(help="How differently listeners weigh a system; from a pilot.")] = 6.0,
    sd_rating: Annotated[float, typer.Option(help="Noise of one rating; from a pilot.")] = 12.0,
) -> None:
    """Say how many listeners a MUSHRA study needs."""
    from workbench.listening.power import listeners_needed

    count = listeners_needed(
        difference, items, wanted=power, num_systems=systems, sd_taste=sd_taste, sd_rating=sd_rating
    )
    _say(
        f"{count} listeners after screening find a difference of {difference:g} points with a chance of {power:.0%} "
        f"({items} items, all pairs of {systems} systems, 5 % level, Bonferroni; paired t test)"
    )


def main() -> None:
    """Run the command on `sys.argv`; an error is one line and exit code 1."""
    try:
        app(standalone_mode=True)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _complain(" ".join(str(error).split()))
        sys.exit(1)


def _load(path: Path) -> Any:
    from workbench.listening import study_file, webmushra

    if path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
        if "pages" in study_file.read_yaml(text, str(path)):
            return webmushra.load(path)
    return study_file.load(path)


def _store(folder: Path) -> Any:
    from workbench.listening.store import Store

    folder.mkdir(parents=True, exist_ok=True)
    return Store(folder / "studies.sqlite")


def _progress(fraction: float, what: str) -> None:
    print(f"\r{fraction:4.0%} {what[:60]:60}", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str) -> None:
    print(f"listening: {text}", file=sys.stderr)


_TEMPLATE = """\
# A listening test. Paths begin at this file's folder; every key is explained in workbench/listening/study.py.
preset = {preset}
name = "{name}"                  # in its address: /t/{name}
title = "Speech codecs at low bitrates"
items = {items}                  # a folder of recordings of at most 12 s, or a list of files
training_items = []              # recordings for training, which bs1534-3-strict asks for
# A codec at a bitrate is rendered on demand; {{ name = "mine", folder = "renders/mine" }} takes files named like items.
systems = ["taae 1x6^6", "taae 2x5^6", "codec2 700C"]
seed = {seed}                    # of the design; keep it to yourself while the test is open
"""
