"""FSQ: Eq. 1-6 and Table 1 against their formulas, an independent package, and what the published code computed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taae import fsq
from taae.config import BottleneckSpec, FSQConfig
from taae.fsq import (
    bottleneck_codes,
    combine_digits,
    detokenize,
    draw_levels,
    quantize,
    quantize_hybrid,
    split_digits,
    split_stages,
    tokenize,
)

RESIDUAL = ["2x5^6", "2x3^6", "3x3^6", "4x3^6", "2x9^6"]
LATENTS = hnp.arrays(np.float32, (1, 7, 6), elements=st.floats(-30, 30, width=32))


def spec(text: str) -> BottleneckSpec:
    return BottleneckSpec.parse(text)


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eq_1(x: float, levels: int) -> float:
    return 2 / (levels - 1) * math.floor((levels - 1) * (math.tanh(x) + 1) / 2 + 1 / 2) - 1


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, np.ndarray]:
    path = shared / "reference" / "golden" / "fsq" / "fsq.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with np.load(path) as arrays:
        return dict(arrays)


def golden_latents(golden) -> torch.Tensor:
    return torch.from_numpy(golden["z"]).transpose(1, 2).contiguous()  # (b, d, s) -> (b, s, d)


# Eq. 1 and Table 1


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 9, 17, 33, 1000])
def test_quantize_is_eq_1(levels):
    z = 2 * latents(2, 50, 6)
    codes = quantize(z, levels)
    assert codes.dtype == torch.float32
    expected = [eq_1(float(value), levels) for value in z.flatten()]
    np.testing.assert_allclose(codes.flatten().numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("levels", [2, 3, 5, 9, 17])
def test_the_grid_is_table_1_and_symmetric(levels):
    grid = quantize(torch.linspace(-9, 9, 20001)[None, :, None], levels).unique()
    assert grid.tolist() == [2 * i / (levels - 1) - 1 for i in range(levels)]
    assert torch.equal(grid, -grid.flip(0))


def test_table_1_each_grid_holds_those_before_it():
    grids = [
        set(quantize(torch.linspace(-9, 9, 20001)[None, :, None], levels).unique().tolist()) for levels in (3, 5, 9)
    ]
    assert grids[0] == {-1, 0, 1} and grids[1] == {-1, -0.5, 0, 0.5, 1}
    assert grids[2] == {-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1}
    assert grids[0] < grids[1] < grids[2]


def test_each_dimension_may_have_its_own_levels():
    z = latents(2, 30, 3)
    codes = quantize(z, [3, 6, 17])
    for dim, levels in enumerate((3, 6, 17)):
        assert torch.equal(codes[..., dim : dim + 1], quantize(z[..., dim : dim + 1], levels))


def test_quantising_twice_is_quantising_once_wherever_tanh_is_undone():
    codes = quantize(latents(2, 50, 6), 9)
    inner = codes.abs() < 1
    again = quantize(torch.atanh(codes.double().clamp(-0.999, 0.999)), 9)
    assert torch.equal(again[inner].float(), codes[inner])


def test_bfloat16_latents_are_rounded_in_full_precision():
    z = latents(4, 200, 6).bfloat16()
    assert torch.equal(quantize(z, 17), quantize(z.float(), 17))
    assert quantize(z, 17).dtype == torch.float32
    bounded = torch.tanh(z)  # what rounding in bfloat16 would cost
    careless = 2 / 16 * torch.floor(16 * (bounded + 1) / 2 + 0.5) - 1
    assert (careless.float() != quantize(z, 17)).float().mean() > 0.01


@pytest.mark.parametrize(
    ("levels", "why"), [(1, "at least 2, got 1"), ([5, 5], "one per dimension"), ([5, 1, 5], "at least 2")]
)
def test_impossible_levels_are_refused(levels, why):
    with pytest.raises(ValueError, match=why):
        quantize(latents(1, 4, 3), levels)


def test_an_independent_package_agrees_with_eq_1_and_the_token_order():
    package = pytest.importorskip("vector_quantize_pytorch")
    z = 2 * latents(2, 300, 6)
    for levels in (3, 4, 5, 6):
        other = package.FSQ([levels] * 6, preserve_symmetry=True).eval()
        codes, tokens = other(z)
        np.testing.assert_allclose(quantize(z, levels).numpy(), codes.detach().numpy(), atol=1e-6)
        assert torch.equal(tokenize(z, spec(f"1x{levels}^6"))[..., 0], tokens.long())


# What the published code computed


@pytest.mark.parametrize("levels", [3, 4, 5, 6, 9, 17])
def test_codes_and_tokens_are_those_of_the_published_code(golden, levels):
    z = golden_latents(golden)
    np.testing.assert_allclose(quantize(z, levels).numpy(), golden[f"codes_{levels}"], atol=1e-6)
    np.testing.assert_array_equal(tokenize(z, spec(f"1x{levels}^6")).numpy(), golden[f"idx_{levels}"])


def test_mixed_levels_are_those_of_the_published_code(golden):
    z, codes = golden_latents(golden), golden["codes_mixed"]
    levels = [len(np.unique(codes[..., dim].round(5))) for dim in range(6)]
    assert len(set(levels)) > 1
    np.testing.assert_allclose(quantize(z, levels).numpy(), codes, atol=1e-6)
    digits = torch.from_numpy(np.rint((codes + 1) / 2 * (np.array(levels) - 1)).astype(np.int64))
    weights = torch.tensor([1, *np.cumprod(levels)[:-1].tolist()])
    np.testing.assert_array_equal((digits * weights).sum(-1).numpy(), golden["idx_mixed"][..., 0])


@pytest.mark.parametrize(
    ("text", "name"), [("1x6^6", "1x46656_400bps"), ("2x5^6", "2x15625_700bps"), ("4x3^6", "4x729_1000bps")]
)
def test_residual_tokens_are_those_of_the_published_presets(golden, text, name):
    bottleneck = spec(text)
    tokens = tokenize(golden_latents(golden), bottleneck)
    for stage in range(bottleneck.num_stages):
        np.testing.assert_array_equal(tokens[..., stage].numpy(), golden[f"res_{name}_ids{stage}"][..., 0])
    # The published decoder does not clip; tokens of an encoder never need it.
    codes = detokenize(tokens, bottleneck).transpose(1, 2).numpy()
    np.testing.assert_allclose(codes, golden[f"res_{name}_decoded"], atol=1e-6)


def test_eq_4_taken_literally_is_another_and_worse_quantiser(golden):
    z = golden_latents(golden).double()
    first = quantize(z, 5)
    literal = first + quantize(4 * (z - first), 5) / 4  # tanh in each stage
    np.testing.assert_allclose(literal.transpose(1, 2).numpy(), golden["eq4_literal_2x5"], atol=1e-9)
    bounded = torch.tanh(z)
    ours = detokenize(tokenize(z, spec("2x5^6")), spec("2x5^6"))
    assert (ours - bounded).abs().mean() < 0.033 < 0.12 < (literal - bounded).abs().mean()


@pytest.mark.parametrize("levels", [5, 17])
def test_exact_ties_go_up_as_in_eq_1_where_the_published_code_rounds_to_even(golden, levels):
    ties = golden[f"tie_in_{levels}"][0]
    assert [i + 0.5 for i in range(levels - 1)] == [(tie + 1) / 2 * (levels - 1) for tie in ties]
    ours = split_stages(torch.from_numpy(ties)[:, None], spec(f"1x{levels}^1")).flatten()
    assert ours.tolist() == list(range(1, levels))
    published = golden[f"tie_level_{levels}"].tolist()
    assert published == [2 * math.ceil(i / 2) for i in range(levels - 1)]
    assert [a - b for a, b in zip(ours.tolist(), published, strict=True)] == [1, 0] * ((levels - 1) // 2)


def test_the_latent_zero_has_the_token_of_eq_1_and_not_that_of_the_published_code():
    assert tokenize(torch.zeros(1, 1, 6), spec("1x6^6")).item() == 3 * (6**6 - 1) // 5 == 27993
    assert 2 * (6**6 - 1) // 5 == 18662  # the published code


# Tokens


@pytest.mark.parametrize("text", RESIDUAL)
@given(z=LATENTS)
@example(z=np.zeros((1, 7, 6), np.float32))
@example(z=np.full((1, 7, 6), 30, np.float32))
@example(z=np.full((1, 7, 6), -30, np.float32))
def test_residual_stages_add_up_to_the_direct_quantiser_exactly(text, z):
    bottleneck = spec(text)
    z = torch.from_numpy(z)
    codes = detokenize(tokenize(z, bottleneck), bottleneck)
    assert torch.equal(codes, quantize(z, bottleneck.grid_levels))
    assert torch.equal(codes, bottleneck_codes(z, bottleneck))


@pytest.mark.parametrize("text", RESIDUAL)
def test_stages_add_up_at_every_tie_and_just_beside_it(text):
    bottleneck = spec(text)
    num_ties = bottleneck.grid_levels - 1
    ties = (torch.arange(num_ties, dtype=torch.float64) + 0.5) * 2 / num_ties - 1
    beside = torch.cat([torch.nextafter(ties, ties + side) for side in (-1, 0, 1)])
    digits = split_stages(beside[:, None], spec(text.replace("^6", "^1")))
    assert digits.min() >= 0 and digits.max() < bottleneck.levels
    half = (bottleneck.levels - 1) // 2
    scales = torch.tensor([1.0 / (bottleneck.levels - 1) ** stage for stage in range(bottleneck.num_stages)])
    summed = ((digits[..., 0] - half) / half * scales.double()).sum(-1)
    direct = 2 / num_ties * torch.floor(num_ties * (beside + 1) / 2 + 0.5) - 1
    torch.testing.assert_close(summed, direct, rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", RESIDUAL)
def test_each_stage_rounds_what_the_earlier_ones_left_as_eq_3_says(text):
    bottleneck = spec(text)
    z = 1.5 * latents(1, 2000, 6).double()
    tokens, left = tokenize(z, bottleneck), torch.tanh(z)
    for stage in range(bottleneck.num_stages):
        scale = 1.0 / (bottleneck.levels - 1) ** stage
        level = torch.floor((left / scale + 1) / 2 * (bottleneck.levels - 1) + 0.5).clamp(0, bottleneck.levels - 1)
        assert torch.equal(split_digits(tokens[..., stage], bottleneck.levels, 6), level.long())
        left = left - scale * (2 / (bottleneck.levels - 1) * level - 1)
    assert left.abs().max() <= 1 / (bottleneck.grid_levels - 1) + 1e-12


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 10**6))
def test_digits_and_tokens_are_inverse(levels, dim, seed):
    digits = torch.randint(levels, (3, 5, dim), generator=torch.Generator().manual_seed(seed))
    tokens = combine_digits(digits, levels)
    assert tokens.dtype == torch.int64
    assert torch.equal(split_digits(tokens, levels, dim), digits)
    by_hand = sum(int(digit) * levels**i for i, digit in enumerate(digits[0, 0]))  # dimension 0 least significant
    assert tokens[0, 0].item() == by_hand


def test_tokens_are_exact_up_to_17_to_the_6():
    bottleneck = spec("1x17^6")
    tokens = torch.cat([torch.arange(1000), torch.randint(17**6, (5000,)), torch.arange(17**6 - 1000, 17**6)])
    codes = detokenize(tokens[None, :, None], bottleneck)
    again = tokenize(torch.atanh(codes.double().clamp(-1 + 1e-9, 1 - 1e-9)), bottleneck)
    assert again.dtype == torch.int64
    assert torch.equal(again[0, :, 0], tokens)
    assert tokenize(torch.full((1, 1, 6), 50.0), bottleneck).item() == 17**6 - 1


def test_bfloat16_latents_have_the_tokens_of_their_values():
    z = latents(1, 500, 6).bfloat16()
    assert torch.equal(tokenize(z, spec("1x17^6")), tokenize(z.double(), spec("1x17^6")))


def test_detokenize_clips_what_no_encoder_emits():
    bottleneck = spec("2x5^6")
    top, bottom = torch.full((1, 1, 2), 5**6 - 1), torch.zeros(1, 1, 2, dtype=torch.int64)
    assert detokenize(top, bottleneck).tolist() == [[[1.0] * 6]]  # 1 + 1/4 unclipped
    assert detokenize(bottom, bottleneck).tolist() == [[[-1.0] * 6]]
    high = combine_digits(torch.tensor([[[4, 4, 3, 2, 0, 0], [0, 4, 4, 2, 4, 0]]]), 5)
    codes = detokenize(high[:, None], bottleneck)[0, 0]
    assert codes.tolist() == [0.75, 1.0, 0.75, 0.0, -0.75, -1.0]


def test_impossible_tokens_are_refused():
    bottleneck = spec("2x5^6")
    with pytest.raises(ValueError, match="has 2 tokens a frame, got 1"):
        detokenize(torch.zeros(1, 3, 1, dtype=torch.int64), bottleneck)
    for token in (-1, 5**6):
        with pytest.raises(ValueError, match="lie in 0 ... 15624"):
            detokenize(torch.full((1, 3, 2), token), bottleneck)
    with pytest.raises(ValueError, match="continuous bottleneck has no tokens"):
        tokenize(latents(1, 3, 6), spec("continuous"))
    with pytest.raises(ValueError, match="continuous bottleneck has no tokens"):
        detokenize(torch.zeros(1, 3, 0, dtype=torch.int64), spec("continuous"))
    with pytest.raises(ValueError, match="has 8 dimensions, the model's latents have 6"):
        tokenize(latents(1, 3, 6), spec("1x4^8"))


def test_no_frames_are_no_tokens():
    assert tokenize(torch.zeros(1, 0, 6), spec("2x5^6")).shape == (1, 0, 2)
    assert detokenize(torch.zeros(1, 0, 2, dtype=torch.int64), spec("2x5^6")).shape == (1, 0, 6)


def test_continuous_codes_are_tanh():
    z = latents(2, 10, 6)
    assert torch.equal(bottleneck_codes(z, spec("continuous")), torch.tanh(z))
    assert bottleneck_codes(z.bfloat16(), spec("continuous")).dtype == torch.float32


# Training


def modes(z: torch.Tensor, levels: int, **options) -> np.ndarray:
    """For every item: "noise", "round" or "tanh", after checking that all of its values agree."""
    codes, bounded, names = quantize_hybrid(z, levels, **options), torch.tanh(z), []
    grid = quantize(z, levels)
    for item, tanh, rounded in zip(codes, bounded, grid, strict=True):
        if torch.allclose(item, tanh, rtol=0, atol=1e-6):
            names.append("tanh")
        elif torch.allclose(item, rounded, rtol=0, atol=1e-6):
            names.append("round")
        else:
            # Every value of a noisy item is off the grid and off tanh: one draw for an item, not for an element.
            assert ((item - tanh).abs() > 1e-7).all() and ((item - rounded).abs() > 1e-7).all()
            names.append("noise")
    return np.array(names)


@pytest.mark.parametrize(
    ("mode", "probability", "shares"),
    [
        ("paper", 0.5, {"noise": 0.5, "round": 0.5, "tanh": 0.0}),
        ("paper", 0.0, {"noise": 0.0, "round": 1.0, "tanh": 0.0}),
        ("paper", 1.0, {"noise": 1.0, "round": 0.0, "tanh": 0.0}),
        ("paper", 0.2, {"noise": 0.2, "round": 0.8, "tanh": 0.0}),
        ("published", 0.5, {"noise": 0.5, "round": 0.25, "tanh": 0.25}),
        ("published", 0.2, {"noise": 0.8, "round": 0.16, "tanh": 0.04}),
    ],
)
def test_items_are_drawn_in_the_stated_shares(mode, probability, shares):
    generator = torch.Generator().manual_seed(1)
    drawn = modes(latents(2000, 2, 3), 9, noise_probability=probability, noise_mode=mode, generator=generator)
    for name, share in shares.items():
        # Four standard deviations of a share of 2000 draws.
        assert abs((drawn == name).mean() - share) <= 4 * math.sqrt(share * (1 - share) / 2000)


@pytest.mark.parametrize("levels", [5, 17])
def test_noise_is_uniform_over_one_step_and_not_clipped(levels):
    z = torch.cat([latents(200, 20, 6), torch.full((200, 20, 6), 20.0)])
    step = 2 / (levels - 1)
    codes = quantize_hybrid(z, levels, noise_probability=1.0, generator=torch.Generator().manual_seed(2))
    noise = ((codes - torch.tanh(z)) / step).flatten()
    assert noise.min() >= -0.5 - 1e-6 and noise.max() <= 0.5 + 1e-6
    n = noise.numel()
    assert abs(noise.mean()) < 4 * math.sqrt(1 / 12 / n)
    assert noise.var().item() == pytest.approx(1 / 12, rel=4 * math.sqrt(0.8 / n))  # kurtosis 1.8
    histogram = torch.histc(noise, 10, -0.5, 0.5) / n
    assert (histogram - 0.1).abs().max() < 4 * math.sqrt(0.09 / n)
    assert 1 + 0.49 * step < codes.max() <= 1 + 0.5 * step + 1e-6


@pytest.mark.parametrize("mode", ["paper", "published"])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_gradient_is_that_of_tanh_in_every_mode(mode, probability):
    z = latents(40, 5, 6).double().requires_grad_()
    codes = quantize_hybrid(z, 9, noise_probability=probability, noise_mode=mode)
    (gradient,) = torch.autograd.grad(codes.sum(), z)
    torch.testing.assert_close(gradient, 1 - torch.tanh(z) ** 2, rtol=0, atol=1e-12)


def test_the_published_mode_computes_what_the_published_code_did_with_the_same_draws(golden, monkeypatch):
    keep, no_noise = golden["train_mask_keep"].reshape(-1, 1, 1), golden["train_mask_nonoise"].reshape(-1, 1, 1)
    # A draw below the probability 1/2 keeps tanh, and another below it brings noise; noise is drawn last.
    draws = iter([0.9 * (1 - keep), 0.9 * no_noise, golden["train_rand"][:, :, 0]])
    monkeypatch.setattr(fsq.torch, "rand", lambda *shape, **options: torch.from_numpy(next(draws)).float())
    z = torch.from_numpy(golden["train_z"])
    codes = quantize_hybrid(z, 17, noise_mode="published")
    np.testing.assert_allclose(codes.numpy(), golden["train_codes"], atol=1e-6)
    assert next(draws, None) is None
    assert 0 < (keep * no_noise).mean() < 1 and 0 < (no_noise * (1 - keep)).mean() < 1


def test_a_generator_makes_training_repeatable():
    z = latents(16, 5, 6)
    first, second = (quantize_hybrid(z, 9, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, quantize_hybrid(z, 9, generator=torch.Generator().manual_seed(8)))


def test_levels_are_drawn_uniformly_from_the_set():
    config, generator = FSQConfig(), torch.Generator().manual_seed(0)
    drawn = [draw_levels(config, generator) for _ in range(3000)]
    for levels in (5, 9, 17):
        assert abs(drawn.count(levels) / 3000 - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)
    assert set(drawn) == {5, 9, 17}


def test_fewer_noise_levels_cover_the_error_of_more_levels():
    # Section 3.2.1: with at least the smallest number of levels seen in training, the error stays within its noise.
    z = 2 * latents(4, 500, 6)
    for levels in (5, 6, 9, 17):
        assert (quantize(z, levels) - torch.tanh(z)).abs().max() <= 1 / (5 - 1) + 1e-6
