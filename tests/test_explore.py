"""What the explorers show is right."""

import math

import numpy as np
import pytest
import torch

import taae
from taae.config import BottleneckSpec
from workbench import explore, figures_explore


@pytest.fixture(scope="module")
def codec():
    return taae.load("mini")


def test_rates_and_the_redundancy_of_stages():
    row = explore.level_row("2x5^6")
    assert (row["bits_per_second"], row["codes_per_stage"], row["grid_levels"]) == (700, 15625, 17)
    assert row["redundancy"] == pytest.approx(2 * math.log2(5) / math.log2(17) - 1)  # 13.6 %
    assert explore.level_row("1x17^6")["redundancy"] == pytest.approx(0)


def test_lattices_nest_as_in_table_1():
    assert explore.lattice(5).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert set(explore.lattice(3)) < set(explore.lattice(5)) < set(explore.lattice(9))
    assert not set(explore.lattice(5)) < set(explore.lattice(6))


@pytest.mark.parametrize("text", ["2x5^6", "3x3^6", "4x3^6", "1x6^6", "1x17^6"])
@pytest.mark.parametrize("value", [-1.0, -0.43, 0.3, 1.0])
def test_stages_add_up_to_the_direct_quantiser(text, value):
    spec = BottleneckSpec.parse(text)
    total = explore.decomposition(value, text)[-1]["sum"]
    grid = explore.lattice(spec.grid_levels)
    assert np.abs(grid - max(-1, min(1, total))).min() < 1e-9
    assert abs(total - value) <= 1 / (spec.grid_levels - 1) + 1e-9


def test_sums_of_two_stages_of_five_levels():
    # -1 ... 1 in halves plus -1/4 ... 1/4 in eighths: 21 values, 4 beyond the ends, reached 2 + 2 + 1 + 1 ... ways.
    found = explore.sum_lattice(5, 2)
    assert (found["combinations"], found["values"], found["on_grid"]) == (25, 21, 17)
    assert found["share_outside"] == pytest.approx(4 / 25)


def test_stages_never_leave_the_interval_when_they_come_from_a_quantiser():
    latents = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 3
    assert explore.clip_rate(latents, "2x5^6") == 0
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        explore.decomposition(1.2, "2x5^6")


def test_use_of_levels_and_codes():
    latents = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    assert explore.level_use(latents, 3).tolist() == [[0.25, 0.25, 0.5], [0, 1, 0]]
    assert explore.code_counts(latents, "1x3^2").tolist() == [2, 1, 1]


def test_bigrams_and_their_lift():
    rows = explore.bigrams(np.array([1, 2, 1, 2, 1, 2, 3, 3]), 1)
    assert (rows[0]["first"], rows[0]["second"], rows[0]["times"]) == (1, 2, 3)
    assert rows[0]["lift"] == pytest.approx((3 / 7) / (3 / 8 * 3 / 8))


def test_a_code_can_be_heard(codec):
    quiet, other = (explore.sound_of_code(codec, token, "2x5^6", num_frames=5) for token in (7812, 0))
    assert len(quiet) == len(other) == 5 * 640 and np.abs(quiet - other).max() > 1e-3
    with pytest.raises(ValueError, match=r"0 \.\.\. 15624"):
        explore.sound_of_code(codec, 15625, "2x5^6")


def test_traversing_moves_one_dimension_only(codec, speech):
    wav = speech(1.0)
    bounded = torch.tanh(explore.latents_of(codec, [wav]))
    same, moved = explore.traverse(codec, wav, 2, [float(bounded[0, 2]), -1.0])
    assert len(same) == len(wav) and np.abs(same - moved).max() > 1e-3
    with pytest.raises(ValueError, match=r"0 \.\.\. 5, got 6"):
        explore.traverse(codec, wav, 6, [0.0])
    rows = explore.level_effects(codec, wav)
    assert [row["dimension"] for row in rows] == list(range(6)) and all(row["change_db"] > -60 for row in rows)


def test_rate_and_quality(codec, speech):
    rows = explore.rate_distortion(codec, [speech(2.0)], ["1x2^6", "1x17^6", "continuous"])
    assert [row["trained"] for row in rows] == ["no", "yes", "no"]
    assert rows[0]["bits_per_second"] == 150 and math.isinf(rows[2]["bits_per_second"])
    assert rows[0]["mel_distance"] > rows[2]["mel_distance"]  # two levels lose most


@pytest.mark.parametrize("levels", [5, 6])
def test_three_quantisers(levels):
    latents = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    rows = {row["quantiser"]: row for row in explore.three_fsqs(latents, levels)}
    assert rows["published code"]["same_as_Eq_1"] == 1
    assert rows["the same, preserve_symmetry"]["same_as_Eq_1"] > 0.999
    assert all(row["positions"] == levels for row in rows.values())
    lowest, highest = (rows["vector-quantize-pytorch"][key] for key in ("lowest", "highest"))
    assert (lowest == -highest) == (levels % 2 == 1)


def test_ties_are_where_the_published_code_differs():
    rows = explore.three_fsqs(torch.zeros(10, 6), 6)  # tanh 0 lies between the third and the fourth of six levels
    assert rows[1]["same_as_Eq_1"] == 0


def test_figures_show_the_functions():
    latents = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    assert figures_explore.code_use(latents, "1x3^6").data[0].y[0] >= 1
    assert figures_explore.level_use(latents, 5).data[0].z.shape == (6, 5)
    steps = figures_explore.decomposition("4x3^6", 0.3)
    assert (
        list(steps.data[0].y) == pytest.approx([0, 0, 0.5, 0.25, 0.25]) and "off by +0.0500" in steps.layout.title.text
    )
    nested, others = figures_explore.lattices(9).data
    assert sorted(set(nested.y)) == [3, 5, 9] and sorted(set(others.y)) == [2, 4, 6, 7, 8]
    rows = [
        {"bits_per_second": 350.0, "trained": "yes", "stoi": 0.8},
        {"bits_per_second": math.inf, "trained": "no", "stoi": 0.9},
    ]
    figure = figures_explore.rate_distortion(rows)
    assert [trace.name for trace in figure.data] == ["trained levels"] and figure.layout.shapes[0].y0 == 0.9
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    spectrum = figures_explore.spectra({"tone": tone}, 16000, "a tone").data[0]
    assert abs(spectrum.x[int(np.argmax(spectrum.y))] - 1000) < 130


def test_staircases_show_the_quantisers_that_are_compared():
    curves = explore.staircases(6)
    assert curves["Eq. 1"][1] == pytest.approx(curves["published code"][1])
    assert curves["Eq. 1"][1][0] == -1 and curves["Eq. 1"][1][-1] == 1
    assert max(curves["vector-quantize-pytorch"][1]) == pytest.approx(2 / 3)  # its even levels are not symmetric
    assert len(figures_explore.quantisers(6).data) == 4


def test_moving_a_control_draws_anew():
    drawn = []
    widget = figures_explore.controls(
        lambda levels, metric: drawn.append((levels, metric)), levels=[5, 9, 3], metric=["b", "a"]
    )
    levels, metric, output = widget.children
    assert type(levels).__name__ == "SelectionSlider" and levels.options == (3, 5, 9)
    assert type(metric).__name__ == "Dropdown" and metric.options == ("b", "a")
    assert drawn[-1] == (5, "b")  # the first of each is shown
    levels.value = 9
    assert drawn[-1] == (9, "b")
    metric.value = "a"
    assert drawn[-1] == (9, "a")


def test_a_moved_dimension_is_drawn_and_heard(codec):
    wav = (0.1 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)).astype("f4")
    figure, player = figures_explore.traversal(codec, wav, 2, 0.5)
    assert [trace.name for trace in figure.data] == ["as it is", "Dimension 2 at 0.5"]
    assert list(figure.data[0].y) != list(figure.data[1].y) and len(player.data) > 2 * len(wav)
    assert len(figures_explore.code_sound(codec, 100).data) > 2 * 16000
