"""The health panel: it finds what is wrong in a log where something is, and nothing where nothing is."""

import json
import re

import numpy as np
import pytest

from workbench.health import figures, findings, main, page
from workbench.run_log import Run, read_run

STEPS = np.arange(10, 610, 10)
SCALES, LAYERS = ("78", "126", "1418"), range(5)


def healthy(rng: np.random.Generator) -> list[dict]:
    """A log as a good run writes it."""
    rows = []
    for step in STEPS:
        share, noise = step / STEPS[-1], rng.normal(1, 0.02)
        row = {"step": int(step), "reconstruction": (2 - share) * noise, "stft": (1 - 0.5 * share) * noise}
        row |= {"discriminator": 2 - 0.8 * share, "feature_matching": 0.4 * (1 - np.exp(-8 * share)) * noise + 0.02}
        row |= {"norm": 2 * noise, "norm/encoder": noise, "discriminator_norm": 0.5 * noise, "wav": 0.05}
        row |= {"codebook/entropy": 0.4 + 0.5 * share, "codebook/lowest": 0.2 + 0.5 * share, "codebook/distinct": 0.9}
        for scale in SCALES:
            row[f"accuracy/{scale}"] = 0.5 + 0.3 * share * noise
            row |= {f"matching/{scale}/{layer}": (layer + 1) * 0.1 * noise for layer in LAYERS}
        rows.append(row)
    return rows


def run_of(rows: list[dict], **config) -> Run:
    return Run(name="test", rows=rows, config={"gradient_norm": 10.0} | config, maps={})


@pytest.fixture
def rows() -> list[dict]:
    return healthy(np.random.default_rng(0))


def verdicts(run: Run) -> dict[str, str]:
    return {finding.topic: finding.verdict for finding in findings(run)}


def test_a_good_run_is_normal_throughout(rows):
    judged = verdicts(run_of(rows))
    assert set(judged.values()) == {"normal"}
    assert {"Discriminator accuracy by scale", "Feature matching", "Codebook use", "Loss: stft"} <= set(judged)


@pytest.mark.parametrize(
    ("topic", "verdict", "change"),
    [
        ("Discriminator accuracy by scale", "watch", {f"accuracy/{scale}": 0.5 for scale in SCALES}),
        ("Discriminator accuracy by scale", "watch", {f"accuracy/{scale}": 0.99 for scale in SCALES}),
        ("Gradient norm of the discriminator", "act", {"discriminator_norm": 1e-7}),
        ("Gradient norm of the autoencoder", "watch", {"norm": 50.0}),
        ("Codebook use", "act", {"codebook/lowest": 0.02}),
        ("Codebook use", "watch", {"codebook/entropy": 0.3}),
        ("Loss: reconstruction", "watch", {"reconstruction": 2.0}),
    ],
)
def test_each_trouble_is_found_and_only_that(rows, topic, verdict, change):
    judged = verdicts(run_of([row | change for row in rows]))
    assert judged.pop(topic) == verdict
    assert set(judged.values()) == {"normal"}


def test_spikes_and_runaway_features_are_found(rows):
    rows[-5]["norm"] = 900.0
    for index, row in enumerate(rows[-6:]):
        row["feature_matching"] = 0.5 * (index + 1)
    judged = verdicts(run_of(rows))
    assert judged["Gradient norm of the autoencoder"] == "watch" and judged["Feature matching"] == "watch"


def test_a_discriminator_that_has_won_is_worse_with_the_adversarial_term(rows):
    won = [row | {f"accuracy/{scale}": 0.99 for scale in SCALES} for row in rows]
    with_term = run_of(won, adversarial={"adversarial_weight": 1.0})
    assert verdicts(with_term)["Discriminator accuracy by scale"] == "act"


def test_float16_is_judged_by_its_skipped_steps(rows):
    assert "float16" not in verdicts(run_of(rows))
    assert verdicts(run_of(rows, is_fp16=True))["float16"] == "normal"
    often = [row | ({"skipped": 1.0} if index % 2 else {}) for index, row in enumerate(rows)]
    assert verdicts(run_of(often, is_fp16=True))["float16"] == "watch"


def test_figures_hold_the_numbers_of_the_log(rows):
    for row in rows[::2]:
        del row["accuracy/126"]  # a scale that those steps did not draw
    run = Run(name="test", rows=rows, config={}, maps=two_maps())
    made = figures(run)
    accuracy = {trace.name: trace for trace in made["Discriminator accuracy by scale (0.5 is chance)"].data}
    assert list(accuracy) == ["78", "126", "1418"] and len(accuracy["126"].x) == len(rows) // 2
    assert accuracy["78"].y[-1] == rows[-1]["accuracy/78"]
    layers = made["Feature matching by layer, mean over scales"].data
    assert [trace.name for trace in layers] == [f"layer {layer}" for layer in LAYERS]
    assert layers[2].y[0] == pytest.approx(np.mean([rows[0][f"matching/{scale}/2"] for scale in SCALES]))
    grid = made["Feature matching by scale and layer, now"].data[0]
    assert np.shape(grid.z) == (3, 5) and grid.z[0][4] == pytest.approx(0.5, rel=0.05)
    profile = made["Sensitivity of the loss “matching” by frequency, over the run (Eq. 12)"].data[0]
    assert list(profile.x) == ["0", "200"]
    np.testing.assert_allclose(profile.z[:, 0], 0, atol=1e-12)  # even sensitivity is 0 dB everywhere
    assert profile.z[2, 1] == pytest.approx(20 * np.log10(4 / ((4 + 4) / 5)))
    names = {trace.name for trace in made["Gradient norms of the autoencoder"].data}
    assert names == {"norm", "norm/encoder"}


def two_maps() -> dict[int, dict[str, np.ndarray]]:
    """Even at first, then four times as much in one of five bands."""
    even = np.full((5, 3), 0.1)
    uneven = np.ones((5, 3))
    uneven[2] = 4
    frequencies_hz = np.linspace(0, 8000, 5)
    return {step: {"matching": values, "frequencies_hz": frequencies_hz} for step, values in ((0, even), (200, uneven))}


def test_the_page_is_written_from_a_run_folder_and_needs_no_network(rows, tmp_path, capsys):
    folder = tmp_path / "my <run>"
    (folder / "sensitivity").mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"gradient_norm": 10.0}))
    for step, arrays in two_maps().items():
        np.savez(folder / f"sensitivity/step-{step:08d}.npz", **arrays)  # pyright: ignore[reportArgumentType]
    assert read_run(folder).maps.keys() == {0, 200}
    assert main([str(folder)]) == 0
    text = (folder / "health.html").read_text()
    assert "<strong class='normal'>Yes.</strong>" in text and "Health of my &lt;run&gt; at step 600" in text
    assert text.count("<h2>") == len(figures(read_run(folder))) and "Plotly.newPlot" in text
    assert not re.search(r"<(script|link)[^>]+(src|href)=", text)
    assert "normal  Codebook use" in capsys.readouterr().out


def test_reconstruction_runs_have_a_page_too(rows):
    kept = ("step", "norm", "mel", "codebook/entropy", "codebook/lowest", "codebook/distinct")
    plain = [{name: value for name, value in (row | {"mel": row["stft"]}).items() if name in kept} for row in rows]
    assert "Discriminator accuracy by scale" not in verdicts(run_of(plain))
    assert "Feature matching" not in page(run_of(plain))


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 1
    assert "has 0 rows in log.jsonl" in capsys.readouterr().err
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
