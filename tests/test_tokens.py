"""TokenSpec: the flat vocabulary, delay patterns, and which combinations of stages an encoder emits."""

from fractions import Fraction
from itertools import product
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taae.config import BottleneckSpec
from taae.fsq import detokenize, split_digits, split_stages, tokenize
from taae.tokens import TokenSpec

SPECIALS = ("bos", "eos", "pad")
RESIDUAL = ["2x3", "2x5", "2x9", "3x3", "4x3", "2x7", "3x5", "1x6", "1x17"]


def random_tokens(spec: TokenSpec, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randint(size, shape, generator=generator) for size in spec.codebook_sizes]
    return torch.stack(stages, dim=-1)


def all_combinations(spec: TokenSpec) -> torch.Tensor:
    return torch.tensor(list(product(*map(range, spec.codebook_sizes))))


def emitted_by_eq_3(levels: int, num_stages: int) -> set[tuple[int, ...]]:
    """Run Eq. 1 and 3 in exact fractions on every boundary of every stage, on points between them, and on -1 and 1."""
    found, resolution = set(), 8 * (levels - 1) ** num_stages
    for numerator in range(-resolution, resolution + 1):
        residual, frame = Fraction(numerator, resolution), []
        for stage in range(num_stages):
            scale = Fraction(1, (levels - 1) ** stage)
            frame.append(floor((levels - 1) * (residual / scale + 1) / 2 + Fraction(1, 2)))
            residual -= scale * (Fraction(2 * frame[-1], levels - 1) - 1)
        found.add(tuple(frame))
    return found


# --- vocabulary ---


def test_ids_of_the_stages_come_first_and_the_specials_follow():
    spec = TokenSpec.from_bottleneck("2x5^6", specials=SPECIALS)
    assert spec.codebook_sizes == (15625, 15625)
    assert spec.offsets == (0, 15625)
    assert spec.special_ids == {"bos": 31250, "eos": 31251, "pad": 31252}
    assert spec.vocabulary_size == 31253


def test_a_shared_vocabulary_counts_one_codebook():
    spec = TokenSpec.from_bottleneck("4x3^6", specials=SPECIALS, shared_vocabulary=True)
    assert spec.offsets == (0, 0, 0, 0)
    assert spec.special_ids == {"bos": 729, "eos": 730, "pad": 731}
    assert spec.vocabulary_size == 732


def test_flatten_goes_frame_by_frame_and_adds_the_offsets():
    spec = TokenSpec.from_bottleneck("2x5^6")
    assert spec.flatten(torch.tensor([[[1, 2], [3, 15624]]])).tolist() == [[1, 15627, 3, 31249]]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 2**40), min_size=1, max_size=5),
    shared_vocabulary=st.booleans(),
    num_items=st.integers(0, 3),
    num_frames=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_flatten_and_delay_have_exact_inverses(sizes, shared_vocabulary, num_items, num_frames, seed):
    spec = TokenSpec(codebook_sizes=tuple(sizes), specials=SPECIALS, shared_vocabulary=shared_vocabulary)
    tokens = random_tokens(spec, num_items, num_frames, seed=seed)
    ids = spec.flatten(tokens)
    assert ids.shape == (num_items, num_frames * spec.num_stages) and ids.dtype == torch.int64
    assert torch.equal(spec.unflatten(ids), tokens)
    assert torch.equal(spec.undelay(spec.delay(tokens)), tokens)


def test_delay_moves_stage_j_by_j_steps_and_pads_the_corners():
    spec = TokenSpec(codebook_sizes=(10, 10, 10), specials=("pad",))
    tokens = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    pad = 30
    assert spec.delay(tokens).tolist() == [[[1, pad, pad], [4, 12, pad], [pad, 15, 23], [pad, pad, 26]]]


def test_what_does_not_fit_the_vocabulary_is_refused():
    spec = TokenSpec.from_bottleneck("2x5^6", specials=SPECIALS)
    good = torch.zeros(1, 3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="stage 1 must be in 0 ... 15624, got 15625"):
        spec.flatten(torch.tensor([[[0, 15625]]]))
    with pytest.raises(ValueError, match="stage 0 must be in 0 ... 15624, got -1"):
        spec.is_emitted(torch.tensor([[-1, 0]]))
    with pytest.raises(ValueError, match="frame has 2 tokens"):
        spec.flatten(good[..., :1])
    with pytest.raises(ValueError, match="multiple of 2"):
        spec.unflatten(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids of stage 1 must be in 15625 ... 31249, got 7"):
        spec.unflatten(torch.tensor([[0, 7]]))
    with pytest.raises(ValueError, match="ids of stage 0 must be in 0 ... 15624, got 31251"):
        spec.unflatten(torch.tensor([[31251, 15625]]))
    broken = spec.delay(good)
    broken[0, 0, 1] = 15625
    with pytest.raises(ValueError, match="before stage j starts"):
        spec.undelay(broken)
    with pytest.raises(ValueError, match="at least 1, 2"):
        spec.undelay(torch.zeros(1, 0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="fewer than 2 tokens"):
        spec.valid_next(good)


def test_a_spec_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="codebook"):
        TokenSpec.from_bottleneck("continuous")
    with pytest.raises(ValueError, match="different names"):
        TokenSpec.from_bottleneck("2x5^6", specials=("pad", "pad"))
    with pytest.raises(ValueError, match="not those of the bottleneck 2x5\\^6"):
        TokenSpec(codebook_sizes=(15625,), bottleneck=BottleneckSpec.parse("2x5^6"))
    with pytest.raises(ValueError, match="int64"):
        TokenSpec(codebook_sizes=(2**62, 2**62))
    with pytest.raises(ValueError, match='special called "pad"'):
        TokenSpec.from_bottleneck("2x5^6").delay(torch.zeros(1, 1, 2, dtype=torch.int64))


# --- combinations of stages ---


@pytest.mark.parametrize(
    ("bottleneck", "num_all", "num_in_range", "num_emitted"),
    [("2x5", 25, 21, 21), ("4x3", 81, 55, 31), ("2x9", 81, 73, 73), ("3x3", 27, 19, 15), ("1x17", 17, 17, 17)],
)
def test_combinations_of_one_dimension_are_counted(bottleneck, num_all, num_in_range, num_emitted):
    spec = TokenSpec.from_bottleneck(f"{bottleneck}^1")
    frames = all_combinations(spec)
    assert len(frames) == num_all
    assert int(spec.is_in_range(frames).sum()) == num_in_range
    assert int(spec.is_emitted(frames).sum()) == num_emitted
    assert spec.is_in_range(frames)[spec.is_emitted(frames)].all()


@pytest.mark.parametrize("bottleneck", RESIDUAL)
def test_emitted_combinations_are_those_of_eq_3(bottleneck):
    spec = TokenSpec.from_bottleneck(f"{bottleneck}^1")
    levels, num_stages = spec.bottleneck.levels, spec.num_stages
    frames = all_combinations(spec)
    emitted = {tuple(frame) for frame in frames[spec.is_emitted(frames)].tolist()}
    assert emitted == emitted_by_eq_3(levels, num_stages)


@pytest.mark.parametrize("bottleneck", RESIDUAL)
def test_emitted_combinations_are_those_of_our_tokenizer(bottleneck):
    spec = TokenSpec.from_bottleneck(f"{bottleneck}^1")
    # Includes -1, 1 and, where L - 1 is a power of two, every tie of every stage exactly.
    bounded = torch.linspace(-1, 1, 1 + 64 * (spec.bottleneck.grid_levels - 1), dtype=torch.float64)[:, None]
    emitted = set(map(tuple, split_stages(bounded, spec.bottleneck)[..., 0].tolist()))
    frames = all_combinations(spec)
    assert emitted == set(map(tuple, frames[spec.is_emitted(frames)].tolist()))


@pytest.mark.parametrize("bottleneck", ["2x5^2", "3x3^2", "4x3^2", "1x6^3"])
def test_valid_next_allows_a_token_exactly_where_an_emitted_frame_continues_with_it(bottleneck):
    spec = TokenSpec.from_bottleneck(bottleneck)
    size, k = spec.codebook_sizes[0], spec.num_stages
    frames = all_combinations(spec)
    # Whether a prefix of j + 1 tokens occurs in some emitted frame, for all prefixes at once.
    occurs = spec.is_emitted(frames).view((size,) * k)
    for j in reversed(range(k)):
        prefixes = torch.tensor(list(product(range(size), repeat=j)), dtype=torch.int64).view(size**j, j)
        assert torch.equal(spec.valid_next(prefixes), occurs.reshape(-1, size))
        occurs = occurs.any(dim=-1)


def test_the_mask_after_the_lowest_token_keeps_the_upper_half_of_each_dimension():
    spec = TokenSpec.from_bottleneck("2x5^2")
    mask = spec.valid_next(torch.tensor([0]))  # both dimensions at -1: what is left is not below 0
    assert mask.nonzero().flatten().tolist() == [12, 13, 14, 17, 18, 19, 22, 23, 24]
    assert spec.valid_levels(torch.tensor([0])).tolist() == [[False, False, True, True, True]] * 2


def test_the_mask_of_stage_0_takes_no_memory():
    mask = TokenSpec.from_bottleneck("1x17^6").valid_next(torch.zeros(1000, 0, dtype=torch.int64))
    assert mask.shape == (1000, 17**6)
    assert mask.untyped_storage().nbytes() == 1
    assert mask[999, -1].item() is True


@pytest.mark.parametrize(("bottleneck", "percent"), [("2x5^6", 65), ("4x3^6", 90), ("2x9^6", 46), ("1x6^6", 0)])
def test_share_of_uniform_random_frames_that_decoding_clips(bottleneck, percent):
    spec = TokenSpec.from_bottleneck(bottleneck)
    one = TokenSpec.from_bottleneck(bottleneck.replace("^6", "^1"))
    exact = 1 - (1 - one.clip_rate(all_combinations(one))) ** 6
    assert round(100 * exact) == percent
    # 40,000 draws: standard error below 0.0025
    assert spec.clip_rate(random_tokens(spec, 4, 10_000)) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("bottleneck", ["2x5^6", "4x3^6", "1x17^6"])
def test_decoding_clips_exactly_the_frames_that_are_out_of_range(bottleneck):
    spec = TokenSpec.from_bottleneck(bottleneck)
    levels, dim = spec.bottleneck.levels, spec.bottleneck.dim
    tokens = random_tokens(spec, 2, 500)
    scales = torch.tensor([(levels - 1) ** -stage for stage in range(spec.num_stages)], dtype=torch.float64)
    values = 2 * split_digits(tokens, levels, dim) / (levels - 1) - 1  # dyadic numbers, so the sum is exact
    unclipped = (values * scales[:, None]).sum(-2)
    is_same = (detokenize(tokens, spec.bottleneck) == unclipped).all(-1)
    assert torch.equal(is_same, spec.is_in_range(tokens))


@pytest.mark.parametrize("bottleneck", ["2x5^6", "4x3^6", "3x7^4"])
def test_every_frame_of_an_encoder_is_emitted_and_none_is_clipped(bottleneck):
    spec = TokenSpec.from_bottleneck(bottleneck)
    latents = 3 * torch.randn(4, 2000, spec.bottleneck.dim, generator=torch.Generator().manual_seed(0))
    tokens = tokenize(latents, spec.bottleneck)
    assert spec.is_emitted(tokens).all()
    assert spec.clip_rate(tokens) == 0.0


def test_a_sampler_that_masks_with_valid_next_samples_only_emitted_frames():
    spec = TokenSpec.from_bottleneck("4x3^6")
    generator = torch.Generator().manual_seed(0)
    frames = torch.zeros(200, 0, dtype=torch.int64)
    for _ in range(spec.num_stages):
        chosen = torch.multinomial(spec.valid_next(frames).double(), 1, generator=generator)
        frames = torch.cat([frames, chosen], dim=-1)
    assert spec.is_emitted(frames).all()


def test_without_a_bottleneck_every_combination_is_valid():
    spec = TokenSpec(codebook_sizes=(1024, 512))
    assert spec.valid_next(torch.tensor([[5]])).tolist() == [[True] * 512]
    assert spec.is_emitted(torch.tensor([[1023, 511]])).tolist() == [True]
    assert spec.clip_rate(torch.tensor([[1023, 511]])) == 0.0
    with pytest.raises(ValueError, match="from_bottleneck"):
        spec.valid_levels(torch.tensor([[5]]))


# --- parallel partition ---

GROUPS = ((0, 1, 2), (3, 4, 5))


def test_partition_gives_the_tokens_of_the_dimensions_alone():
    latents = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    spec = TokenSpec.from_bottleneck("1x17^6")
    parts = spec.partition(tokenize(latents, spec.bottleneck), GROUPS)
    half = BottleneckSpec.parse("1x17^3")
    assert torch.equal(parts[..., :1], tokenize(latents[..., :3], half))
    assert torch.equal(parts[..., 1:], tokenize(latents[..., 3:], half))
    assert spec.partitioned(GROUPS).codebook_sizes == (4913, 4913)


@pytest.mark.parametrize("groups", [GROUPS, ((5, 0), (1,), (4, 2, 3)), ((5, 4, 3, 2, 1, 0),)])
def test_partition_has_an_exact_inverse_up_to_the_largest_token(groups):
    spec = TokenSpec.from_bottleneck("1x17^6", specials=("pad",))
    tokens = random_tokens(spec, 2, 300)
    tokens[0, :2, 0] = torch.tensor([17**6 - 1, 17**6 - 2])  # above 2^24, where float32 loses odd numbers
    parts = spec.partition(tokens, groups)
    assert parts.dtype == torch.int64
    assert torch.equal(spec.unpartition(parts, groups), tokens)
    flat = spec.partitioned(groups)
    assert torch.equal(flat.unflatten(flat.flatten(parts)), parts)


def test_partition_refuses_residual_stages_and_wrong_groups():
    with pytest.raises(ValueError, match="single-stage"):
        TokenSpec.from_bottleneck("2x5^6").partition(torch.zeros(1, 1, 1, dtype=torch.int64), GROUPS)
    spec = TokenSpec.from_bottleneck("1x17^6")
    for groups in (((0, 1, 2), (3, 4)), ((0, 1, 2), (2, 3, 4, 5)), ((0, 1, 2, 3, 4, 5), ())):
        with pytest.raises(ValueError, match="each dimension 0 ... 5 once"):
            spec.partitioned(groups)
    with pytest.raises(ValueError, match="stage 1 must be in 0 ... 4912, got 4913"):
        spec.unpartition(torch.tensor([[0, 4913]]), GROUPS)
