"""Rows of the measured tables: rates by Eq. 5, metrics of the model under test, and those of other codecs.

A model smaller than the paper's is compared by the order of its rows. What has no weights here is "not run", with the
command that gets them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taae.config import BottleneckSpec
from taae.rates import token_rate
from workbench import baselines, published
from workbench.baselines import UnavailableError
from workbench.measured import METRICS, Bench, metrics
from workbench.published import Number
from workbench.verdicts import TOLERANCES, Cell, Outcome, claim, close, exact, not_run, outcome, trend

# Rows of TAAE -> bottleneck, and of the others -> name in the catalogue.
BOTTLENECKS = {"400": "1x6^6", "700": "2x5^6", "no quant.": "continuous"}
NAMES = {
    "DAC": "DAC",
    "Encodec": "EnCodec",
    "SpeechTokenizer": "SpeechTokenizer",
    "SemantiCodec": "SemantiCodec",
    "Mimi": "Mimi",
    "unitHiFi-GAN": "HuBERT + unit HiFi-GAN",
}
# Codebooks of a frame, and frames a second, as section 4.4, Table 9 and A.7 describe the codecs.
STREAMS: dict[str, tuple[tuple[int, ...], float]] = {
    "DAC 1000": ((1024,) * 2, 50),
    "DAC 2000": ((1024,) * 4, 50),
    "Encodec 1500": ((1024,) * 2, 75),
    "Encodec 3000": ((1024,) * 4, 75),
    "SpeechTokenizer 1000": ((1024,) * 2, 50),
    "SpeechTokenizer 1500": ((1024,) * 3, 50),
    "SemantiCodec 337.5": ((16384, 8192), 12.5),
    "SemantiCodec 675": ((16384, 8192), 25),
    "Mimi 550": ((2048,) * 4, 12.5),
    "Mimi 1100": ((2048,) * 8, 12.5),
    "unitHiFi-GAN": ((1000,), 50),
}
NO_PHASE_DB = -20.0  # SI-SDR of a model whose phases are free
RATES = ("bits_per_second", "tokens_per_frame", "tokens_per_second")


def quality(name: str, bench: Bench, bottleneck_of: Callable[[str], str | None]) -> Iterable[Cell]:
    """Rates and metrics of every row: TAAE from the model under test, the others from the catalogue."""
    table = published.table(name)
    taae = {row: spec for row in table.rows if (spec := bottleneck_of(row)) is not None}
    for row in table.rows:
        numbers = [number for number in table.cells if number.row == row]
        if row in taae:
            spec = BottleneckSpec.parse(taae[row])
            yield from (rate(number, spec, 25.0) for number in numbers if number.metric in RATES)
        else:
            yield from peer_row(numbers, row, bench)
    yield from taae_rows(name, taae, bench)


def taae_rows(name: str, rows: dict[str, str], bench: Bench) -> list[Cell]:
    """Metrics of rows of the model under test; rows of a small one are compared with each other."""
    table, means = published.table(name), bench.ours(list(rows.values()))
    cells = []
    for number in table.cells:
        if number.row not in rows or number.metric not in METRICS:
            continue
        ours = means[rows[number.row]].get(number.metric)
        if ours is None:
            cells.append(not_run(number, missing_metric(number.metric)))
        elif bench.is_papers_model:
            cells.append(close(number, ours, TOLERANCES[number.metric], bench.describe()))
        elif number.metric == "si_sdr" and ours < NO_PHASE_DB:
            reason = f"{bench.describe()}: trained on spectra, its phases are free, so that SI-SDR says nothing"
            cells.append(claim(number, ours, reason, holds=False))
        else:
            others = [
                (value, means[spec][number.metric])
                for row, spec in rows.items()
                if row != number.row and (value := table.cell(row, number.column).value) is not None
            ]
            cells.append(trend(number, ours, others, bench.describe()))
    return cells


def against_english(
    number: Number, means: dict, ours_english: dict, english: dict, bench: Bench, language: str
) -> Cell:
    """One metric of another language: of a small model, whether it loses more than in the paper."""
    metric = str(number.metric)
    if metric not in means:
        return not_run(number, missing_metric(metric))
    reason = bench.describe(language)
    if bench.is_papers_model:
        return close(number, means[metric], TOLERANCES[metric], reason)
    sign = -1 if number.better == "lower" else 1
    assert number.value is not None
    paper_loss, our_loss = sign * (english[metric] - number.value), sign * (ours_english[metric] - means[metric])
    text = f"{reason}; against English it loses {our_loss:+.2f}, in the paper {paper_loss:+.2f}"
    return claim(number, means[metric], text, holds=our_loss <= max(0.0, paper_loss) + TOLERANCES[metric])


def peer_row(numbers: Sequence[Number], row: str, bench: Bench, language: str = "en") -> list[Cell]:
    """All cells of a row of another codec: its rates by Eq. 5, its metrics where its weights are here."""
    sizes, frame_rate_hz = STREAMS[row]
    rate = token_rate(sizes, float(frame_rate_hz))
    name, _, mode = row.partition(" ")
    cells = [exact(n, getattr(rate, n.metric), "Eq. 5 for its codebooks") for n in numbers if n.metric in RATES]
    measured = [number for number in numbers if number.metric not in RATES]
    missing = missing_codec(NAMES[name])
    if not missing and not bench.clips(language):
        missing = f"needs clips in {language}: {bench.manifest or 'the examples'} has none"
    if missing:
        return cells + [not_run(number, missing) for number in measured]
    mode = mode or next(iter(baselines.load(NAMES[name]).bitrates))
    means = bench.other(NAMES[name], mode, language)
    reason = f"{NAMES[name]} on {len(bench.clips(language))} clips of {bench.manifest or 'the examples'}"
    for number in measured:
        if number.metric not in means:
            cells.append(not_run(number, missing_metric(number.metric)))
        elif number.value is None:
            cells.append(not_run(number, "the paper gives none: the codec is not aligned in time"))
        else:
            cells.append(close(number, means[number.metric], TOLERANCES[number.metric], reason))
    return cells


def rate(number: Number, spec: BottleneckSpec, frame_rate_hz: float) -> Cell:
    """BPS, TPF or TPS of TAAE, from Eq. 5."""
    if spec.is_continuous:
        return exact(number, "–", "a continuous bottleneck has no tokens")
    rate = token_rate((spec.codebook_size,) * spec.num_stages, float(frame_rate_hz))
    return exact(number, getattr(rate, str(number.metric)), f"Eq. 5 for {spec} at {frame_rate_hz:g} Hz")


def missing_codec(name: str) -> str:
    """What a codec of the catalogue needs; "" if it is here."""
    try:
        baselines.load(name)
    except UnavailableError as error:
        return str(error)
    return ""


def missing_metric(metric: str | None) -> str:
    """Why a metric has no value."""
    from taae.metrics import unavailable_metrics

    return f"{metric}: {unavailable_metrics().get(str(metric), 'not defined on these clips')}"


def finished(name: str, cells: Iterable[Cell], bench: Bench, notes: Sequence[str] = (), **about: Any) -> Outcome:
    """The outcome of a measured table, with what a reader must know of the model and the machine."""
    notes = list(notes)
    if not bench.is_papers_model:
        notes.append(
            f"Rows of TAAE are {bench.codec.name}, {bench.num_parameters / 1e6:.1f}M parameters; the paper's has 950M. "
            "Its verdicts say only whether the order of the paper's numbers holds."
        )
    if missing := [metric for metric in METRICS if metric not in metrics()]:
        notes.append(f"Not computed on this machine: {', '.join(missing)}.")
    return outcome(name, cells, notes=notes, setup=bench.setup(), **about)
