"""The command `python -m workbench`. Each verb is a few lines over a module that is imported when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="workbench",
    help="Everything around the codec: data, baselines, reproduction.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(name="data", help="Corpora: what they are, lists of their clips, selections from them.")
app.add_typer(data)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A card of data_manifests/, such as librispeech-test-clean.")]
Root = Annotated[Path, typer.Option(metavar="DIR", help="The unpacked corpus.")]


@app.callback()
def _root() -> None:
    """Keep `data` a verb of its own."""


@data.command(name="list")
def list_cards(name: Annotated[str | None, typer.Argument(metavar="NAME")] = None) -> None:
    """Print the corpora, or one card with the commands that fetch it."""
    from workbench import datasets

    if name is None:
        for card in datasets.cards().values():
            print(f"{card.name:28}{card.hours:10,.1f} h  {card.licence:12.12}  {card.role}")
        return
    card = datasets.card(name)
    for key in ("title", "role", "homepage", "licence", "licence_url", "citation", "language", "hours", "num_clips"):
        print(f"{key:12}{getattr(card, key)}")
    for archive in card.files:
        print(f"wget -c {archive.url}  # {archive.bytes} bytes, md5 {archive.md5}")


@data.command()
def build(
    name: Name,
    root: Root,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="By default the card's list.")] = None,
) -> None:
    """List every clip of a corpus with its length, speaker and SHA-256."""
    from workbench import datasets, manifests

    card = datasets.card(name)
    target = out or card.listing
    if card.layout == "manifest":
        count = manifests.build(root, target)
    else:
        count = datasets.write_listing(datasets.clips(card, root, with_checksums=True), target)
    print(f"{target}: {count} clips")


@data.command()
def verify(
    name: Name,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="The unpacked corpus, against the list.")] = None,
    archives: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The downloaded files, against the card.")
    ] = None,
) -> None:
    """Compare what is on disk with what should be: clips with the list, archives with the card."""
    from workbench import datasets, manifests

    if (root is None) == (archives is None):
        raise typer.BadParameter("give --root or --archives")
    card = datasets.card(name)
    problems = manifests.verify(card.listing, root) if root else datasets.verify_archives(card, Path(str(archives)))
    print("\n".join(problems) or "all is as listed")
    if problems:
        raise typer.Exit(1)


@data.command()
def select(
    name: Name,
    root: Root,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets manifest.jsonl, and clips that had to be cut.")],
    by_length: Annotated[bool, typer.Option("--by-length", help="The bins of Fig. 3 instead.")] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Another draw than the card's.")] = None,
) -> None:
    """Draw clips by the paper's rule and our seed; the authors' own list is not published."""
    from dataclasses import replace

    from workbench import datasets

    card = datasets.card(name)
    rule = card.length_bins if by_length else card.selection
    if rule is None:
        raise ValueError(f"{name} has no rule for this; its role is {card.role}")
    if seed is not None:
        rule = replace(rule, seed=seed)
    rows = datasets.clips(card, root)
    if isinstance(rule, datasets.LengthBins):
        chosen = datasets.select_by_length(rows, rule)
    else:
        chosen = datasets.select(rows, rule)
        if len(chosen) < rule.num_clips:
            print(f"only {len(chosen)} clips fit, {rule.num_clips} were asked for", file=sys.stderr)
    datasets.write_selection(chosen, root, out)
    print(f"{out / 'manifest.jsonl'}: {len(chosen)} clips, {sum(r['seconds'] for r in chosen):.0f} s; {datasets.OURS}")


@data.command()
def variant(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Of clean clips.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets the clips as FLAC and manifest.jsonl.")],
    noise: Annotated[str | None, typer.Option(help="white, speech-shaped or babble.")] = None,
    snr_db: Annotated[float, typer.Option(help="Energy of the speech over the noise.")] = 10.0,
    reverberation_s: Annotated[float | None, typer.Option(help="Far field: a room that rings so long.")] = None,
    seed: int = 0,
) -> None:
    """Make noisy or far-field versions of clips."""
    from typing import get_args

    from taae.evaluate import read_manifest
    from workbench import rooms

    if noise is not None and noise not in get_args(rooms.Noise):
        raise typer.BadParameter(f"noise must be one of {', '.join(get_args(rooms.Noise))}, got {noise}")
    room = rooms.Room(reverberation_s=reverberation_s) if reverberation_s is not None else None
    clips = read_manifest(manifest)
    rooms.make_variant(clips, out, noise=noise, snr_db=snr_db, room=room, seed=seed)  # type: ignore[arg-type]
    print(f"{out / 'manifest.jsonl'}: {len(clips)} clips")


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Such as table02; all if left out.")
    ] = None,
    profile: Annotated[str, typer.Option(help="smoke, cpu, gpu or full.")] = "smoke",
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter; repeat for more.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default a folder with the date in runs/.")] = None,
    workers: Annotated[int, typer.Option(help="Notebooks at a time.")] = 2,
    limit_s: Annotated[float | None, typer.Option(help="Seconds of work for one notebook.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Take nothing from the cache.")] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Print the notebooks and their parameters, and run none.")
    ] = False,
) -> None:
    """Run the notebooks and write report.html, in which every published number stands beside ours."""
    from typing import get_args

    from workbench import profiles
    from workbench import reproduce as runner

    if profile not in get_args(profiles.Profile):
        raise typer.BadParameter(f"profile must be one of {', '.join(get_args(profiles.Profile))}, got {profile}")
    if show:
        for name in profiles.choose(names or [], profile) if names else profiles.names():  # type: ignore[arg-type]
            print(f"{name:36}" + ", ".join(f"{key}={value!r}" for key, value in profiles.parameters(name).items()))
        return
    values = dict(profiles.setting(text) for text in given or [])
    kwargs = {"given": values, "out": out, "workers": workers, "limit_s": limit_s, "is_fresh": fresh}
    folder, done = runner.run(names or [], profile, **kwargs)  # type: ignore[arg-type]
    print(folder / "report.html")
    if any(ran.status not in ("ok", "cached") for ran in done):
        raise typer.Exit(1)


@app.command()
def ablate(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Such as window or rvq; all if left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the base; by default those of ablations.toml.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Of the runs; by default runs/ablations.")] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default benchmarks/results/ablations.json.")
    ] = None,
    limit_minutes: Annotated[float | None, typer.Option(help="Stop then; the same command goes on.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    show: Annotated[bool, typer.Option("--list", help="Print the ablations and their variants, and run none.")] = False,
) -> None:
    """Train the small models of the ablations, seed by seed, and measure them; what is finished is not repeated."""
    from workbench import ablations

    if show:
        for name, of in ablations.ablations().items():
            print(f"{name:18}" + ", ".join(f"{key} ({ablations.variants()[key].label})" for key in of))
        return
    import torch

    from workbench import ablations_run

    torch.set_num_threads(threads)
    found = ablations_run.ablate(
        names or [],
        seeds=seeds,
        num_steps=steps,
        out=out or ablations.RUNS,
        results=results or ablations.RESULTS,
        limit_s=60 * limit_minutes if limit_minutes is not None else float("inf"),
    )
    print(f"{results or ablations.RESULTS}: {len(found.runs)} runs")


def main() -> None:
    """Run the command on `sys.argv`; an error is one line."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"workbench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
