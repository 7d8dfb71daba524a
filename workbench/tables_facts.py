"""Our rows of the tables that state facts: Tables 1, 4, 10, 11, 12, Fig. 4, the sentences, and the talk.

Facts about TAAE come from the presets; those about Encodec, DAC and Mimi from their classes in `transformers`, built
without weights. What only their authors can know is quoted in the paper and "not run" here.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from taae.config import BottleneckSpec, ModelConfig, load_preset
from taae.discriminators import golden_ratio_sizes
from taae.rates import real_time_factor
from workbench import published
from workbench.published import Number
from workbench.verdicts import ABLATIONS, Cell, Outcome, close, exact, not_run, outcome, trend

QUOTED = "quoted by the paper from the codec's authors; nothing to compute"
_APPROXIMATELY = 0.01  # "approximately 950M"
_OTHER_COUNT = 0.07  # published counts of other codecs, which leave out what training alone needs


def table01() -> Outcome:
    """The quantiser's positions, from Eq. 1."""
    import torch

    from taae.fsq import quantize

    cells = []
    for number in published.table("table01").cells:
        levels = int(number.row.removeprefix("l"))
        latents = torch.atanh(torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64))[None, :, None]
        positions = quantize(latents, levels).unique()
        place = int(number.column.removeprefix("position "))
        cells.append(exact(number, float(positions[place]), f"Eq. 1 with {levels} levels"))
    return outcome("table01", cells)


def table04() -> Outcome:
    """Model sizes, counted; their quality needs trainings."""
    cells = []
    for number in published.table("table04").cells:
        if number.column != "Param. count":
            cells.append(not_run(number, f"{ABLATIONS} of three sizes"))
            continue
        cells.append(_about(number, parameters(number.row)))
    return outcome("table04", cells)


def table10(
    checkpoint: str = "mini", *, device: str = "cpu", num_clips: int = 3, lengths_s: tuple[int, ...] = (5, 30, 60)
) -> Outcome:
    """Real-time factors on this machine. A preset without weights will do: time does not depend on them.

    Args:
        checkpoint: What is timed as TAAE.
        device: "cpu" or "cuda".
        num_clips: Of each length; the paper takes 1000.
        lengths_s: Of the table's 5, 30 and 60 s, those that are timed.
    """
    import torch

    import taae
    from taae.model import num_parameters

    codec = taae.load(checkpoint, device=device)
    is_paper = "H100" in _device_name(device) and num_parameters(codec.model) > 900e6
    wavs = _speech(codec.sample_rate_hz, max(lengths_s))
    wait = torch.cuda.synchronize if device == "cuda" else None
    ours = {}
    for length_s in lengths_s:
        clips = [torch.from_numpy(wavs[: length_s * codec.sample_rate_hz])[None, None]] * num_clips
        timed = real_time_factor(
            lambda wav: codec.decode(codec.encode(wav)), clips, codec.sample_rate_hz, synchronize=wait
        )
        ours[f"RTF ({length_s}s)"] = timed.fastest
    size = f"{num_parameters(codec.model) / 1e6:.1f}M parameters"
    reason = f"{codec.name} ({size}) on {_device_name(device)}, fastest of {num_clips}"
    cells = []
    for number in published.table("table10").cells:
        if number.column == "Parameters (M)":
            cells.append(_parameters_of(number))
        elif number.row != "TAAE":
            cells.append(not_run(number, f"needs an H100 and the weights of {number.row}"))
        elif number.column not in ours:
            cells.append(not_run(number, f"needs clips of {number.column[5:-2]} s, which this run left out"))
        elif is_paper:
            assert number.value is not None
            cells.append(close(number, ours[number.column], 0.5 * number.value, reason))
        else:
            row = published.table("table10")
            others = [(value, ours[c]) for c in ours if c != number.column and (value := row.cell("TAAE", c).value)]
            cells.append(trend(number, ours[number.column], others, reason))
    notes = ["The factors say whether longer clips are cheaper by the second, as in the paper; a CPU is no H100."]
    return outcome("table10", cells, notes=[] if is_paper else notes, setup={"device": _device_name(device)})


def table11() -> Outcome:
    """Receptive fields and latency: TAAE from its presets, the others from the configuration of their classes."""
    facts = {"TAAE (Non-Causal)": _taae_fields("paper-950m"), "TAAE (Causal)": _taae_fields("paper-causal")}
    facts |= {name: make() for name, make in _PEER_FIELDS.items()}
    cells = []
    for number in published.table("table11").cells:
        ours, reason = facts.get(number.row, {}).get(number.column, (None, ""))
        if ours is None:
            cells.append(not_run(number, reason or QUOTED))
        elif "~" in number.printed and not isinstance(ours, str):
            assert number.value is not None
            cells.append(close(number, ours, 0.05 * number.value, reason))
        elif number.row == "DAC" and not isinstance(ours, str):
            assert number.value is not None
            cells.append(close(number, ours, 0.07 * number.value, reason))
        else:
            cells.append(exact(number, ours, reason))
    notes = [
        "Total receptive field of TAAE: all 56 layers together see 246 s (123 s when causal). The paper's ~200 s and "
        "~100 s are those of the 40 layers at 25 Hz alone: 40 x 5.12 s = 204.8 s, 40 x 2.56 s = 102.4 s."
    ]
    return outcome("table11", cells, notes=notes)


def table12() -> Outcome:
    """Characteristics of the baselines; what a class can tell is checked, training data are quoted."""
    cells = []
    for number in published.table("table12").cells:
        if number.column == "#Params (M)":
            cells.append(_parameters_of(number))
        elif number.column == "Causal" and number.row in ("DAC", "Mimi"):
            ours, reason = _PEER_FIELDS[number.row]()["Causal"]
            cells.append(exact(number, ours, reason) if ours is not None else not_run(number, reason))
        else:
            cells.append(not_run(number, QUOTED))
    return outcome("table12", cells)


def fig04(demographics: dict[str, dict[str, int]] | None = None) -> Outcome:
    """Demographics, from a study with real listeners; None where there is none."""
    missing = "needs a listening test with real listeners; simulated answers are no people"
    cells = []
    for number in published.table("fig04").cells:
        counts = next((c for q, c in (demographics or {}).items() if q.casefold() == number.row.casefold()), {})
        given = sum(count for answer, count in counts.items() if answer != "no answer")
        found = next((count for answer, count in counts.items() if answer.casefold() == number.column.casefold()), None)
        if not given or found is None:
            cells.append(not_run(number, missing))
        else:
            cells.append(close(number, 100 * found / given, 10.0, f"{given} of our listeners"))
    shares = [number.value for number in published.table("fig04").cells if number.value is not None]
    fits = [n for n in range(10, 31) if all(abs(100 * round(s * n / 100) / n - s) < 0.06 for s in shares)]
    notes = [
        f"The printed shares are whole numbers of people only for {', '.join(map(str, fits))} of up to 30 answers."
    ]
    return outcome("fig04", cells, notes=notes)


def text() -> Outcome:
    """Numbers in the sentences of the paper, from presets and functions."""
    facts = _text_facts()
    cells = []
    for number in published.table("text").cells:
        value, reason = facts.get(number.column, (None, ""))
        if value is None:
            cells.append(not_run(number, "a fact about the authors' own run; nothing here to compute or to count"))
        elif number.column == "Parameters":
            cells.append(_about(number, value))
        elif number.unit == "h":
            assert number.value is not None
            cells.append(close(number, value, 0.05 * number.value, reason))
        else:
            cells.append(exact(number, value, reason))
    return outcome("text", cells)


def talk(name: str, of_paper: Outcome | None) -> Outcome:
    """A table of the talk repeats one of the paper: its verdicts are taken from there, cell by cell.

    Args:
        name: "talk.objective" and such.
        of_paper: The outcome of the table in the paper; None if it did not run.
    """
    cells = []
    found = {(cell.row, cell.column): cell for cell in (of_paper.cells if of_paper else ())}
    for number in published.table(name).cells:
        same = found.get((number.row, number.column))
        if same is None:
            cells.append(not_run(number, "a word of the talk, or its table of the paper was not run here"))
            continue
        values = {key: getattr(same, key) for key in ("ours", "verdict", "reason")}
        cells.append(Cell(id=number.id, row=number.row, column=number.column, printed=number.printed, **values))
    return outcome(name, cells)


# Table of the talk -> table of the paper that it repeats.
TALK = {
    "talk.levels": "table01",
    "talk.objective": "table02",
    "talk.perceptual": "table03",
    "talk.scaling": "table04",
    "talk.mls": "table07",
    "talk.text": None,
}


@cache
def parameters(size: str) -> float:
    """Millions of parameters of a preset of Table 4, "240M" and such, built without memory."""
    import torch

    from taae.model import TAAE, num_parameters

    with torch.device("meta"):
        return num_parameters(TAAE(load_preset(f"paper-{size.lower()}"))) / 1e6


@cache
def peer_parameters(name: str) -> float | None:
    """Millions of parameters of a codec's class, built without memory; None without transformers or such a class."""
    try:
        import transformers
    except ImportError:
        return None
    import torch

    classes: dict[str, Callable[[Any], Any]] = {
        "Encodec": lambda t: t.EncodecModel(t.EncodecConfig()),
        "Mimi": lambda t: t.MimiModel(t.MimiConfig()),
        "DAC": lambda t: t.DacModel(_dac_config(t)),
    }
    if name not in classes:
        return None
    with torch.device("meta"):
        model = classes[name](transformers)
    return sum(p.numel() for p in model.parameters()) / 1e6


def total_receptive_field_s(config: ModelConfig, *, at_latent_rate_only: bool = False) -> float:
    """Sum over all attention layers of encoder and decoder of what each can see (B.2.1), in seconds."""
    keys = sum(config.window) + 1
    total = 0.0
    for block, depth in enumerate(config.depths):
        rate_hz = config.sample_rate_hz / config.patch_samples / math.prod(config.strides[: block + 1])
        if not at_latent_rate_only or rate_hz == config.frame_rate_hz:
            total += 2 * depth * keys / rate_hz
    return total


def dac_receptive_fields_s(ratios: tuple[int, ...] = (2, 4, 5, 8), sample_rate_hz: int = 16_000) -> tuple[float, float]:
    """Largest of a layer, and total, of a DAC with these strides: kernels 7, dilations 1, 3, 9, strided kernels 2s."""
    largest, total, jump = 0, 1, 1

    def add(kernel: int, dilation: int = 1) -> None:
        nonlocal largest, total
        largest = max(largest, ((kernel - 1) * dilation + 1) * jump)
        total += (kernel - 1) * dilation * jump

    add(7)
    for stride in ratios:
        for dilation in (1, 3, 9):
            add(7, dilation)
        add(2 * stride)
        jump *= stride
    add(3)
    add(7)
    for stride in reversed(ratios):
        add(2)  # a transposed kernel of 2s reaches two frames of its input
        jump //= stride
        for dilation in (1, 3, 9):
            add(7, dilation)
    add(7)
    return largest / sample_rate_hz, total / sample_rate_hz


def _about(number: Number, ours: float) -> Cell:
    assert number.value is not None
    return close(number, ours, _APPROXIMATELY * number.value, "counted on the preset without weights")


def _parameters_of(number: Number) -> Cell:
    ours = parameters("950m") if number.row == "TAAE" else peer_parameters(number.row)
    if ours is None:
        return not_run(number, "needs the codec's own package; no class of transformers")
    if number.row == "TAAE":
        return _about(number, ours)
    assert number.value is not None
    return close(number, ours, _OTHER_COUNT * number.value, "counted on the class of transformers, without weights")


def _taae_fields(preset: str) -> dict[str, tuple[float | str | None, str]]:
    config = load_preset(preset)
    per_layer = (sum(config.window) + 1) / config.frame_rate_hz
    reason = f"preset {preset}"
    return {
        "Max Per-Layer RF": (per_layer, f"{reason}: {sum(config.window) + 1} keys at {config.frame_rate_hz:g} Hz"),
        "Total RF": (total_receptive_field_s(config), f"{reason}: all layers; see the note"),
        "Causal": ("Yes" if config.is_causal else "No", reason),
        "Latency": ("N/A" if config.latency_ms is None else config.latency_ms, f"{reason}: one latent frame"),
        "Chunked Inference": ("No", "pieces overlap by the receptive field and give what one pass gives"),
    }


def _mimi_fields() -> dict[str, tuple[float | str | None, str]]:
    config = _config("MimiConfig")
    if config is None:
        return {}
    per_layer = config.sliding_window / config.frame_rate
    reason = "MimiConfig of transformers"
    return {
        "Max Per-Layer RF": (per_layer, f"{reason}: {config.sliding_window} keys at {config.frame_rate:g} Hz"),
        "Total RF": (2 * config.num_hidden_layers * per_layer, f"{reason}: encoder and decoder transformer"),
        "Causal": ("Yes" if config.use_causal_conv else "No", reason),
        "Latency": (1000 / config.frame_rate, f"{reason}: one frame"),
    }


def _encodec_fields() -> dict[str, tuple[float | str | None, str]]:
    config = _config("EncodecConfig")
    if config is None:
        return {}
    reason = f"EncodecConfig of transformers: {config.num_lstm_layers} LSTM layers"
    unlimited = ("Unlimited", reason) if config.num_lstm_layers else (None, "")
    frame_ms = 1000 * math.prod(config.upsampling_ratios) / config.sampling_rate
    return {
        "Max Per-Layer RF": unlimited,
        "Total RF": unlimited,
        "Causal": ("Yes" if config.use_causal_conv else "No", "EncodecConfig of transformers"),
        "Latency": (frame_ms, "EncodecConfig of transformers: one frame"),
    }


def _dac_fields() -> dict[str, tuple[float | str | None, str]]:
    largest, total = dac_receptive_fields_s()
    reason = "kernels and dilations of DAC at strides 2, 4, 5, 8"
    return {
        "Max Per-Layer RF": (largest, reason),
        "Total RF": (total, reason),
        "Causal": ("No", "its convolutions are centred"),
        "Latency": (total / 2, f"half of the total: {reason}"),
    }


_PEER_FIELDS: dict[str, Callable[[], dict[str, tuple[float | str | None, str]]]] = {
    "Encodec": _encodec_fields,
    "DAC": _dac_fields,
    "Mimi": _mimi_fields,
}


def _config(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        return None
    return getattr(transformers, name)()


def _dac_config(transformers: Any) -> Any:
    """Of the published 16 kHz model."""
    return transformers.DacConfig(downsampling_ratios=[2, 4, 5, 8], n_codebooks=12, sampling_rate=16_000)


def _text_facts() -> dict[str, tuple[float, str]]:
    """Column of the table `text` -> value and where it is from."""
    config, causal = load_preset("paper-950m"), load_preset("paper-causal")
    reason, keys = "preset paper-950m", sum(config.window) + 1
    facts: dict[str, float] = {
        "Sample rate": config.sample_rate_hz / 1000,
        "Patch size": config.patch_samples,
        "Transformer blocks before downsampling": config.depths[0],
        "Transformer blocks after downsampling": config.depths[1],
        "Embedding dimension": config.width,
        "Head dimension": config.head_dim,
        "Layer norm epsilon": config.norm_eps,
        "Attention window": keys,
        "Parameters": parameters("950m"),
        "Bottleneck dimensions": config.latent_dim,
        "Receptive field of a layer": keys / config.frame_rate_hz,
        "Receptive field, causal": (sum(causal.window) + 1) / causal.frame_rate_hz,
        "Latency of the causal model": causal.latency_ms or math.nan,
    }
    found = {name: (float(value), reason) for name, value in facts.items()}
    gain_db = 20 * math.log10(config.norm_eps**-0.5)
    found["Largest gain of a layer norm"] = (
        gain_db,
        "1 / sqrt(eps), since eps is added to a variance; 1 / eps is 40 dB",
    )
    for place, size in enumerate(golden_ratio_sizes()):
        found[f"FFT size {place}"] = (float(size), "hops shrink by the golden ratio from 1148")
    found |= _recipe_facts() | _card_facts()
    for column, spec in (("BPS of L=17, d=6 at 25 Hz", "1x17^6"), ("BPS of 2 stages of 5 levels at 25 Hz", "2x5^6")):
        found[column] = (BottleneckSpec.parse(spec).bits_per_second(config.frame_rate_hz), f"Eq. 5 for {spec}")
    for column, spec in (("Codebook size at 400 bit/s", "1x6^6"), ("Codebook size at 700 bit/s", "2x5^6")):
        found[column] = (float(BottleneckSpec.parse(spec).codebook_size), f"Eq. 6 for {spec}")
    return found


def _recipe_facts() -> dict[str, tuple[float, str]]:
    """Of the recipes that repeat section 4.2."""
    from taae.discriminators import STFTDiscriminatorConfig
    from taae.recipe import load_config, recipe_names

    recipes = {Path(name).stem: load_config(Path(name)) for name in recipe_names() if "paper-" in name}
    before, after, causal = (recipes[f"paper-{name}"] for name in ("pretrain", "finetune", "causal"))
    discriminator = STFTDiscriminatorConfig()
    assert before.adversarial is not None
    facts: dict[str, float] = {
        "Learning rate": before.adamw_lr,
        "Weight decay": before.weight_decay,
        "Training segment": before.data.segment_s,
        "Batch size": before.data.batch_size * before.micro_batches,
        "Pretraining": before.num_steps,
        "Finetuning": after.num_steps,
        "Causal finetuning": causal.num_steps,
        "Decay of the reconstruction losses": before.adversarial.gamma,
        "Discriminator channels": discriminator.channels,
        "Power of the magnitudes": discriminator.alpha,
    }
    return {name: (float(value), "of the recipe that repeats section 4.2; not run") for name, value in facts.items()}


def _card_facts() -> dict[str, tuple[float, str]]:
    """Of the cards in data_manifests/: what the sources of the corpora say, and our rules of selection."""
    from workbench import datasets

    light, mls = datasets.card("libri-light"), datasets.card("mls-english")
    clean, test = datasets.card("librispeech-train-clean-360"), datasets.card("librispeech-test-clean")
    german = datasets.card("mls-german")
    facts: dict[str, tuple[float, str]] = {
        "Libri-Light": (light.hours, "hours by the source of the corpus"),
        "MLS English": (mls.hours, "hours by the source of the corpus"),
        "Training data": (light.hours + mls.hours, "sum of the two corpora"),
        "Hours of train-clean-360": (clean.hours, "hours by the source of the corpus"),
        "Clips of train-clean-360": (float(clean.num_clips or math.nan), "clips by the source of the corpus"),
    }
    reason = "our selection repeats the paper's rule"
    if test.selection is not None:
        facts["Test clips"] = (float(test.selection.num_clips), reason)
    if german.selection is not None:
        facts["Clips a language"] = (float(german.selection.num_clips), reason)
    return facts


def _speech(sample_rate_hz: int, seconds: int) -> np.ndarray:
    """The examples of the repository, repeated."""
    from workbench.bias import SAMPLE_RATE_HZ, speech_clips

    assert sample_rate_hz == SAMPLE_RATE_HZ
    wav = np.concatenate(speech_clips()).astype(np.float32)
    return np.resize(wav, seconds * sample_rate_hz)


def _device_name(device: str) -> str:
    import os
    import platform

    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
