"""Our rows of the measured tables (2 to 10), each published cell with a verdict.

Every function takes a `Bench` and gives an `Outcome`. A model smaller than the paper's is compared by the order of its
rows. What has no weights here is "not run", with the command that gets them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from taae.config import BottleneckSpec
from taae.rates import codebook_use, token_rate
from workbench import baselines, published
from workbench.baselines import UnavailableError
from workbench.measured import METRICS, Bench, metrics
from workbench.published import Number
from workbench.verdicts import ABLATIONS, TOLERANCES, Cell, Outcome, claim, close, exact, not_run, outcome, trend

# Codecs that run on any machine with the Debian packages: from the lowest rate to what telephones use.
LIVE_PEERS = ("Codec2 450", "Codec2 700C", "Codec2 1300", "Codec2 3200", "Speex wb0", "AMR-NB 4.75", "Opus 6k")

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
_RATES = ("bits_per_second", "tokens_per_frame", "tokens_per_second")
_LANGUAGES = {
    "Italian": "it",
    "Polish": "pl",
    "Dutch": "nl",
    "French": "fr",
    "Portuguese": "pt",
    "German": "de",
    "Spanish": "es",
}


def table02(bench: Bench) -> Outcome:
    """Objective metrics on clean speech, with classical codecs beside."""
    cells = list(_quality("table02", bench, lambda row: BOTTLENECKS.get(row.removeprefix("TAAE "))))
    return _finished("table02", cells, bench, beside=bench.beside(LIVE_PEERS))


def table03(bench: Bench) -> Outcome:
    """With and without perceptual loss; both need a training."""
    return _finished("table03", [not_run(number, ABLATIONS) for number in published.table("table03").cells], bench)


def table05(bench: Bench) -> Outcome:
    """Latent rates; at 25 Hz the model under test, rates from Eq. 5."""
    specs = {
        "12.5 Hz 4x8": ("1x4^8", 12.5),
        "12.5 Hz 5x8": ("2x3^8", 12.5),
        "12.5 Hz 9x8": ("3x3^8", 12.5),
        "12.5 Hz 17x8": ("4x3^8", 12.5),
        "25 Hz 6x6": ("1x6^6", 25.0),
        "25 Hz 17x6": ("2x5^6", 25.0),
    }
    cells = []
    for number in published.table("table05").cells:
        spec, rate = BottleneckSpec.parse(specs[number.row][0]), specs[number.row][1]
        if number.metric in _RATES:
            cells.append(_rate(number, spec, rate))
        elif number.column in ("Latent (Hz)", "FSQ L", "FSQ d"):
            ours = {"Latent (Hz)": rate, "FSQ L": spec.grid_levels, "FSQ d": spec.dim}[number.column]
            cells.append(exact(number, ours, f"of the bottleneck {spec}"))
        elif rate != 25.0:
            cells.append(not_run(number, f"{ABLATIONS} at 12.5 Hz"))
    cells += _taae("table05", {row: spec for row, (spec, rate) in specs.items() if rate == 25.0}, bench)
    return _finished("table05", cells, bench)


def table06(bench: Bench) -> Outcome:
    """Causal against non-causal: the non-causal model under test, Mimi where it is here."""
    table = published.table("table06")
    spec = BottleneckSpec.parse("2x5^6")
    cells = [_rate(n, spec, 25.0) for n in table.cells if n.metric in _RATES and n.row.startswith("TAAE")]
    cells += [
        not_run(n, f"{ABLATIONS}: a causal finetuning")
        for n in table.cells
        if n.row == "TAAE (causal)" and n.metric in METRICS
    ]
    cells += _peer([n for n in table.cells if n.row == "Mimi"], "Mimi 1100", bench)
    row = [n for n in table.cells if n.row == "TAAE (non-causal)" and n.metric in METRICS]
    return _finished("table06", cells + _alone(row, bench), bench)


def table07(bench: Bench) -> Outcome:
    """Seven languages. For a small model: does a language lose no more against English than in the paper?"""
    cells: list[Cell] = []
    english = published.table("table02").values("TAAE 700")
    spec = BottleneckSpec.parse("2x5^6")
    ours_english = bench.ours([str(spec)])[str(spec)]
    for row in published.table("table07").rows:
        word, name = row.split(" ", 1)
        numbers = [number for number in published.table("table07").cells if number.row == row]
        language = _LANGUAGES[word]
        if name != "TAAE":
            printed = next(number.printed for number in numbers if number.metric == "bits_per_second")
            cells += _peer(numbers, f"{name} {printed}", bench, language)
            continue
        cells += [_rate(number, spec, 25.0) for number in numbers if number.metric in _RATES]
        measured = [number for number in numbers if number.metric in METRICS]
        if not bench.clips(language):
            missing = f"needs clips in {word}: {bench.manifest or 'the examples'} has none"
            cells += [not_run(number, missing) for number in measured]
            continue
        means = bench.ours([str(spec)], language)[str(spec)]
        for number in measured:
            cells.append(_against_english(number, means, ours_english, english, bench, language))
    return _finished("table07", cells, bench)


def table08(bench: Bench) -> Outcome:
    """HuBERT units with a unit vocoder, and TAAE."""
    cells = list(_quality("table08", bench, lambda row: BOTTLENECKS.get(row.removeprefix("TAAE "))))
    return _finished("table08", cells, bench)


def table09(bench: Bench, *, tokens_per_code: int = 10) -> Outcome:
    """Use of the codebook and Huffman coding, of the tokens of all clips in the bench's language.

    Args:
        bench: Its clips give the tokens.
        tokens_per_code: With less tokens for each code of the codebook, entropy reads too low and is not compared.
    """
    import torch

    codec = bench.codec
    wavs = [_wav(clip, codec.sample_rate_hz) for clip in bench.clips()]
    rows: dict[str, list[Any]] = {}
    for label, text in (("400", "1x6^6"), ("700", "2x5^6")):
        spec = BottleneckSpec.parse(text)
        parts = [codec.encode(torch.from_numpy(wav)[None, None], spec)[0].numpy() for wav in wavs]
        tokens = np.concatenate(parts)  # (frames of all clips, k)
        rows[f"TAAE ({label} BPS)"] = [spec, [codebook_use(stage, spec.codebook_size) for stage in tokens.T]]
    cells: list[Cell] = []
    notes: list[str] = []
    for label, (spec, uses) in rows.items():
        bits = " + ".join(f"{use.huffman_bits:.2f}" for use in uses)
        notes.append(
            f"{label}: {uses[0].num_tokens:,} tokens, {uses[0].num_used:,} of {spec.codebook_size:,} codes occur; "
            f"entropy {' and '.join(f'{use.entropy_bits:.2f}' for use in uses)} bit, Huffman {bits} bit. "
            f"With N tokens the entropy cannot exceed log2 N = {np.log2(uses[0].num_tokens):.2f} bit."
        )
    for number in published.table("table09").cells:
        label = next((label for label in rows if number.row.startswith(label)), None)
        if label is None:
            cells.append(_table09_peer(number))
            continue
        spec, uses = rows[label]
        if number.column == "Codebook Size":
            cells.append(exact(number, spec.codebook_size, f"Eq. 6 for {spec}"))
        elif number.column == "BPS":
            cells.append(exact(number, spec.bits_per_second(codec.frame_rate_hz), f"Eq. 5 for {spec}"))
        elif uses[0].num_tokens < tokens_per_code * spec.codebook_size:
            need = f"{tokens_per_code * spec.codebook_size:,}"
            cells.append(not_run(number, f"needs {need} tokens to compare, got {uses[0].num_tokens:,}; see the notes"))
        else:
            cells.append(_table09_taae(number, uses, rows, codec.frame_rate_hz, bench))
    return _finished("table09", cells, bench, notes=notes)


def fig03(bench: Bench, lengths_s: Sequence[float], bottleneck: str = "2x5^6") -> tuple[Outcome, dict[float, Any]]:
    """Quality over the length of what is sent; the paper draws Fig. 3 and prints no number of it."""
    curves = bench.by_length(bottleneck, lengths_s)
    rows = [
        {"seconds": f"{length_s:g}"}
        | {name: f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for name, row in metrics.items()}
        | {"pieces": str(metrics["stoi"]["num_clips"])}
        for length_s, metrics in curves.items()
    ]
    notes = [
        f"{bench.describe()} at {bottleneck}: the same speech, joined by speaker, sent in pieces of each length; the "
        "paper takes other utterances for each length."
    ]
    if left_out := [f"{length_s:g}" for length_s in lengths_s if length_s not in curves]:
        notes.append(f"Left out, since no speaker's clips are so long together: {', '.join(left_out)} s.")
    title = "Figure 3: quality over length"
    return Outcome(name="fig03", title=title, beside=rows, notes=notes, setup=bench.setup()), curves


def _table09_taae(number: Number, uses: list, rows: dict, frame_rate_hz: float, bench: Bench) -> Cell:
    reason = f"{bench.describe()}, {uses[0].num_tokens:,} tokens"
    if number.column == "Huffman-Coded":
        ours = frame_rate_hz * sum(use.huffman_bits for use in uses)
    else:
        ours = uses[int(number.row[-1]) - 1].normalized_entropy
    if bench.is_papers_model:
        return close(number, ours, TOLERANCES[str(number.metric)], reason)
    others = []
    for other in published.table("table09").cells:
        label = next((label for label in rows if other.row.startswith(label)), None)
        if label is None or other.column != number.column or other.id == number.id or other.value is None:
            continue
        its = rows[label][1]
        if number.column == "Huffman-Coded":
            others.append((other.value, frame_rate_hz * sum(use.huffman_bits for use in its)))
        else:
            others.append((other.value, its[int(other.row[-1]) - 1].normalized_entropy))
    return trend(number, ours, others, reason)


def _table09_peer(number: Number) -> Cell:
    name = number.row.split(" ")[0]
    if number.column == "Codebook Size":
        stage = 1 if "Acoustic" in number.row else 0
        row = next(row for row in STREAMS if row.startswith(name))
        return exact(number, STREAMS[row][0][stage], "of the codec's description")
    if number.column == "BPS":
        sizes, frame_rate_hz = STREAMS[f"{name} {number.printed}"]
        return exact(number, token_rate(sizes, float(frame_rate_hz)).bits_per_second, "Eq. 5 for its codebooks")
    return not_run(number, _unavailable(NAMES[name]) or "its tokens were not counted: only TAAE's are, so far")


def _quality(name: str, bench: Bench, bottleneck_of: Callable[[str], str | None]) -> Iterable[Cell]:
    """Rates and metrics of every row: TAAE from the model under test, the others from the catalogue."""
    table = published.table(name)
    taae = {row: spec for row in table.rows if (spec := bottleneck_of(row)) is not None}
    for row in table.rows:
        numbers = [number for number in table.cells if number.row == row]
        if row in taae:
            spec = BottleneckSpec.parse(taae[row])
            yield from (_rate(number, spec, 25.0) for number in numbers if number.metric in _RATES)
        else:
            yield from _peer(numbers, row, bench)
    yield from _taae(name, taae, bench)


def _taae(name: str, rows: dict[str, str], bench: Bench) -> list[Cell]:
    """Metrics of rows of the model under test; rows of a small one are compared with each other."""
    table, means = published.table(name), bench.ours(list(rows.values()))
    cells = []
    for number in table.cells:
        if number.row not in rows or number.metric not in METRICS:
            continue
        ours = means[rows[number.row]].get(number.metric)
        if ours is None:
            cells.append(not_run(number, _no_metric(number.metric)))
        elif bench.is_papers_model:
            cells.append(close(number, ours, TOLERANCES[number.metric], bench.describe()))
        else:
            others = [
                (value, means[spec][number.metric])
                for row, spec in rows.items()
                if row != number.row and (value := table.cell(row, number.column).value) is not None
            ]
            cells.append(trend(number, ours, others, bench.describe()))
    return cells


def _alone(numbers: Sequence[Number], bench: Bench) -> list[Cell]:
    """One row at 700 bit/s that has no other row of ours to compare with."""
    means = bench.ours(["2x5^6"])["2x5^6"]
    cells = []
    for number in numbers:
        assert number.metric is not None
        if number.metric not in means:
            cells.append(not_run(number, _no_metric(number.metric)))
        elif bench.is_papers_model:
            cells.append(close(number, means[number.metric], TOLERANCES[number.metric], bench.describe()))
        else:
            reason = f"{bench.describe()}: another model, and no second row to compare it with"
            cells.append(claim(number, means[number.metric], reason, holds=False))
    return cells


def _against_english(
    number: Number, means: dict, ours_english: dict, english: dict, bench: Bench, language: str
) -> Cell:
    metric = str(number.metric)
    if metric not in means:
        return not_run(number, _no_metric(metric))
    reason = bench.describe(language)
    if bench.is_papers_model:
        return close(number, means[metric], TOLERANCES[metric], reason)
    sign = -1 if number.better == "lower" else 1
    assert number.value is not None
    paper_loss, our_loss = sign * (english[metric] - number.value), sign * (ours_english[metric] - means[metric])
    text = f"{reason}; against English it loses {our_loss:+.2f}, in the paper {paper_loss:+.2f}"
    return claim(number, means[metric], text, holds=our_loss <= max(0.0, paper_loss) + TOLERANCES[metric])


def _peer(numbers: Sequence[Number], row: str, bench: Bench, language: str = "en") -> list[Cell]:
    """All cells of a row of another codec: its rates by Eq. 5, its metrics where its weights are here."""
    sizes, frame_rate_hz = STREAMS[row]
    rate = token_rate(sizes, float(frame_rate_hz))
    name, _, mode = row.partition(" ")
    cells = [exact(n, getattr(rate, n.metric), "Eq. 5 for its codebooks") for n in numbers if n.metric in _RATES]
    measured = [number for number in numbers if number.metric not in _RATES]
    missing = _unavailable(NAMES[name])
    if not missing and not bench.clips(language):
        missing = f"needs clips in {language}: {bench.manifest or 'the examples'} has none"
    if missing:
        return cells + [not_run(number, missing) for number in measured]
    mode = mode or next(iter(baselines.load(NAMES[name]).bitrates))
    means = bench.other(NAMES[name], mode, language)
    reason = f"{NAMES[name]} on {len(bench.clips(language))} clips of {bench.manifest or 'the examples'}"
    for number in measured:
        if number.metric not in means:
            cells.append(not_run(number, _no_metric(number.metric)))
        elif number.value is None:
            cells.append(not_run(number, "the paper gives none: the codec is not aligned in time"))
        else:
            cells.append(close(number, means[number.metric], TOLERANCES[number.metric], reason))
    return cells


def _rate(number: Number, spec: BottleneckSpec, frame_rate_hz: float) -> Cell:
    if spec.is_continuous:
        return exact(number, "–", "a continuous bottleneck has no tokens")
    rate = token_rate((spec.codebook_size,) * spec.num_stages, float(frame_rate_hz))
    return exact(number, getattr(rate, str(number.metric)), f"Eq. 5 for {spec} at {frame_rate_hz:g} Hz")


def _unavailable(name: str) -> str:
    """What a codec of the catalogue needs; "" if it is here."""
    try:
        baselines.load(name)
    except UnavailableError as error:
        return str(error)
    return ""


def _no_metric(metric: str | None) -> str:
    from taae.metrics import unavailable_metrics

    return f"{metric}: {unavailable_metrics().get(str(metric), 'not defined on these clips')}"


def _wav(clip: Any, sample_rate_hz: int) -> np.ndarray:
    from taae.audio import loudness_gain, resample
    from taae.evaluate import load_mono

    wav, rate_hz = load_mono(clip.path)
    wav = resample(wav, rate_hz, sample_rate_hz)
    return (wav * loudness_gain(wav, sample_rate_hz)).astype(np.float32)


def _finished(name: str, cells: Iterable[Cell], bench: Bench, notes: Sequence[str] = (), **about: Any) -> Outcome:
    notes = list(notes)
    if not bench.is_papers_model:
        notes.append(
            f"Rows of TAAE are {bench.codec.name}, {bench.num_parameters / 1e6:.1f}M parameters; the paper's has 950M. "
            "Its verdicts say only whether the order of the paper's numbers holds."
        )
    if missing := [metric for metric in METRICS if metric not in metrics()]:
        notes.append(f"Not computed on this machine: {', '.join(missing)}.")
    return outcome(name, cells, notes=notes, setup=bench.setup(), **about)
