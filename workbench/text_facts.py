"""Numbers in the sentences of the paper that presets, recipes and corpus cards repeat (`published.table("text")`)."""

import math
from pathlib import Path

from taae.config import BottleneckSpec, load_preset
from taae.discriminators import golden_ratio_sizes
from workbench import codec_facts


def text_facts() -> dict[str, tuple[float, str]]:
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
        "Parameters": codec_facts.parameters("950m"),
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
