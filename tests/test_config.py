"""Bottleneck specs, presets and what a configuration refuses; no torch."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taae.config import BottleneckSpec, FSQConfig, ModelConfig, from_dict, load_preset, load_toml, preset_names


@pytest.mark.parametrize(
    ("spec", "frame_rate_hz", "bps"),
    [
        ("1x17^6", 25.0, 625),  # the worked example of section 3.2.2
        ("2x5^6", 25.0, 700),
        ("1x6^6", 25.0, 400),
        ("4x3^6", 25.0, 1000),
        # Table 5 prints the levels that the stages add up to; its tokens per frame say how many stages of 3 there are.
        ("1x4^8", 12.5, 200),
        ("2x3^8", 12.5, 325),
        ("3x3^8", 12.5, 487.5),  # printed as 488
        ("4x3^8", 12.5, 650),
        # Eq. 5 for the same grids in one token: rates that Table 5 does not print, the second equal by chance.
        ("1x5^8", 12.5, 237.5),
        ("1x9^8", 12.5, 325),
        ("1x17^8", 12.5, 412.5),
    ],
)
def test_bit_rates_are_those_of_eq_5_and_table_5(spec, frame_rate_hz, bps):
    assert BottleneckSpec.parse(spec).bits_per_second(frame_rate_hz) == bps


@pytest.mark.parametrize(
    ("spec", "grid_levels"), [("2x3^6", 5), ("3x3^6", 9), ("4x3^6", 17), ("2x5^6", 17), ("2x9^6", 65), ("1x6^6", 6)]
)
def test_stages_add_up_to_the_grid_of_section_3_2_1(spec, grid_levels):
    assert BottleneckSpec.parse(spec).grid_levels == grid_levels


@given(st.integers(1, 3), st.integers(2, 33), st.integers(1, 8))
def test_a_spec_reads_back_what_it_writes_and_its_ceiling_holds_its_codebook(num_stages, levels, dim):
    levels += num_stages > 1 and levels % 2 == 0
    spec = BottleneckSpec(num_stages, levels, dim)
    assert BottleneckSpec.parse(str(spec)) == spec
    bits = spec.bits_per_frame // num_stages
    assert 2 ** (bits - 1) < spec.codebook_size <= 2**bits
    assert spec.exact_bits_per_frame == pytest.approx(num_stages * math.log2(spec.codebook_size))
    assert spec.exact_bits_per_frame <= spec.bits_per_frame + 1e-9


def test_exact_bits_are_below_the_ceiling_by_what_the_paper_rounds_up():
    assert BottleneckSpec.parse("1x17^6").exact_bits_per_frame == pytest.approx(24.5248, abs=1e-4)
    assert BottleneckSpec.parse("2x5^6").exact_bits_per_frame == pytest.approx(27.8631, abs=1e-4)
    assert BottleneckSpec.parse("1x4^8").exact_bits_per_frame == 16.0


def test_continuous_has_no_tokens_and_no_bit_rate():
    spec = BottleneckSpec.parse("continuous")
    assert spec.is_continuous and str(spec) == "continuous" and spec.codebook_size == 0
    with pytest.raises(ValueError, match="no bit rate"):
        spec.bits_per_second(25.0)
    with pytest.raises(ValueError, match="no bit rate"):
        _ = spec.exact_bits_per_frame


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must read"),
        ("5^6", "must read"),
        ("2x5", "must read"),
        ("-1x5^6", "must read"),
        (" 2x5^6", "must read"),
        ("0x5^6", "no levels and no dim"),
        ("1x1^6", "levels >= 2"),
        ("1x5^0", "dim >= 1"),
        ("2x6^6", "odd number of levels"),
        ("1x17^16", "too large"),
        ("999x99999^999", "too large"),
        ("9x17^6", "too large"),
    ],
)
def test_a_spec_that_makes_no_quantiser_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        BottleneckSpec.parse(text)


def test_the_presets_are_those_of_the_paper():
    assert {"mini", "paper-950m", "paper-540m", "paper-240m", "paper-12hz", "paper-causal"} <= set(preset_names())
    main = load_preset("paper-950m")  # section 4.2
    assert (main.sample_rate_hz, main.patch_samples, main.hop_samples, main.frame_rate_hz) == (16000, 320, 640, 25.0)
    assert (main.width, main.head_dim, main.num_heads, main.ff_mult) == (1024, 128, 8, 4)
    assert (main.strides, main.depths, main.latent_dim, main.norm_eps) == ((1, 2), (8, 20), 6, 1e-2)
    assert sum(main.window) + 1 == 128
    assert sorted(main.fsq.train_levels) == [5, 9, 17] and main.fsq.noise_probability == 0.5
    assert load_preset("paper-540m").width == 768 and load_preset("paper-240m").width == 512  # Table 4
    assert main.latency_ms is None


def test_the_12_hz_preset_only_splits_the_larger_block_and_widens_the_bottleneck():
    slow, main = load_preset("paper-12hz"), load_preset("paper-950m")
    assert (slow.frame_rate_hz, slow.hop_samples, slow.latent_dim) == (12.5, 1280, 8)
    assert slow.depths[0] == main.depths[0] and sum(slow.depths) == sum(main.depths)


def test_the_causal_preset_has_a_window_of_64_keys_and_40_ms_latency():
    causal = load_preset("paper-causal")
    assert causal.is_causal and causal.window == (63, 0)
    assert causal.latency_ms == 40.0
    assert causal.receptive_frames[1] == 0


def test_receptive_fields_are_near_those_that_b_2_rounds():
    # B.2 says "approximately" 200 s for both halves and 100 s when causal. The sum over layers that it describes,
    # 2 * (8 * 2.56 + 20 * 5.12) s and half of that, is 246 s and 123 s.
    for preset, layers_s in (("paper-950m", 245.76), ("paper-causal", 122.88)):
        config = load_preset(preset)
        seconds = 2 * sum(config.receptive_frames) / config.frame_rate_hz
        assert layers_s - 4 < seconds < layers_s + 4  # the convolutions, and 127 steps beside the query


@pytest.mark.parametrize("name", preset_names())
def test_a_configuration_survives_json(name):
    config = load_preset(name)
    assert from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match="no preset 'paper-1b'; there are .*paper-950m"):
        load_preset("paper-1b")
    with pytest.raises(ValueError, match="no preset"):
        load_preset("../presets/mini")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"widht": 512}, "unknown key widht; known are .*width"),
        ({"fsq": {"level": 5}}, "fsq: unknown key level"),
        ({"fsq": 5}, "expected a table of keys and values, got 5"),
        ({"width": "512"}, "width must be int, got '512'"),
        ({"width": 512.0}, "width must be int"),
        ({"width": True}, "width must be int"),
        ({"is_causal": 1}, "is_causal must be bool"),
        ({"strides": [1, 2.0]}, "strides must be"),
        ({"strides": 2}, "strides must be"),
        ({"norm_eps": "small"}, "norm_eps must be float"),
        ({"name": 3}, "name must be str"),
        ({"width": 1000}, "multiple of head_dim"),
        ({"rope_dims": 63}, "rope_dims must be even"),
        ({"rope_dims": 256}, "rope_dims must be even and at most head_dim 128"),
        ({"strides": [1, 2, 2]}, "same blocks"),
        ({"strides": [0, 2]}, "strides must be >= 1"),
        ({"window": [64]}, "keys before, keys after"),
        ({"window": [-1, 64]}, "both >= 0"),
        ({"is_causal": True}, "sees no key after the query"),
        ({"norm_eps": 0}, "norm_eps must be positive"),
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"fsq": {"train_levels": []}}, "at least one number"),
        ({"fsq": {"train_levels": [1]}}, "at least one number >= 2"),
        ({"fsq": {"noise_probability": 1.5}}, "noise_probability must be in"),
        ({"fsq": {"noise_mode": "both"}}, "noise_mode must be 'paper' or 'published'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(values, why, unchecked):
    with pytest.raises(ValueError, match=why):
        from_dict(values)


def test_a_file_names_itself_in_its_errors(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("width = 256\nwindow = [31, 32]\n[fsq]\ntrain_levels = [5]\n")
    config = load_toml(path)
    assert (config.name, config.width, config.window) == ("small", 256, (31, 32))
    assert config.fsq == FSQConfig(train_levels=(5,))
    path.write_text("width = ")
    with pytest.raises(ValueError, match="small.toml: not valid TOML"):
        load_toml(path)
    path.write_text("depth = 3")
    with pytest.raises(ValueError, match="small.toml: unknown key depth"):
        load_toml(path)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 512  # pyright: ignore[reportAttributeAccessIssue]


def test_the_configuration_is_read_without_torch():
    code = "import sys, taae, taae.config as c; c.load_preset('mini'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
