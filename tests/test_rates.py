import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taae import rates
from taae.config import BottleneckSpec
from workbench import published

CODEBOOKS = {  # Table 9 and section 4.4: sizes of a frame's codebooks, frames a second
    "DAC 1000": ([1024] * 2, 50.0),
    "DAC 2000": ([1024] * 4, 50.0),
    "Encodec 1500": ([1024] * 2, 75.0),
    "Encodec 3000": ([1024] * 4, 75.0),
    "SpeechTokenizer 1000": ([1024] * 2, 50.0),
    "SpeechTokenizer 1500": ([1024] * 3, 50.0),
    "SemantiCodec 337.5": ([16384, 8192], 12.5),
    "SemantiCodec 675": ([16384, 8192], 25.0),
    "Mimi 550": ([2048] * 4, 12.5),
    "Mimi 1100": ([2048] * 8, 12.5),
    "TAAE 400": ([6**6], 25.0),
    "TAAE 700": ([5**6] * 2, 25.0),
}


@pytest.mark.parametrize("row", CODEBOOKS)
def test_the_rates_of_table_2_follow_from_the_codebooks(row):
    rate = rates.token_rate(*CODEBOOKS[row])
    printed = published.table("table02").values(row)
    assert rate.bits_per_second == printed["bits_per_second"]
    assert (rate.tokens_per_frame, rate.tokens_per_second) == (
        printed["tokens_per_frame"],
        printed["tokens_per_second"],
    )


@pytest.mark.parametrize("spec", ["1x6^6", "2x5^6", "4x3^6", "1x17^6"])
def test_equation_5_is_that_of_the_bottleneck(spec):
    bottleneck = BottleneckSpec.parse(spec)
    rate = rates.token_rate([bottleneck.codebook_size] * bottleneck.num_stages, 25.0)
    assert rate.bits_per_second == bottleneck.bits_per_second(25.0)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200))
def test_huffman_lengths_make_a_full_code_within_a_bit_of_the_entropy(counts):
    lengths = rates.huffman_lengths(counts)
    shares = np.array(counts) / sum(counts)
    entropy = -(shares * np.log2(shares)).sum()
    mean = (shares * lengths).sum()
    if len(counts) > 1:
        assert sum(2.0**-length for length in lengths.tolist()) == pytest.approx(1)  # Kraft: nothing is wasted
        assert entropy - 1e-9 <= mean < entropy + 1
    order = np.argsort(counts)
    assert all(np.diff(lengths[order])[np.diff(np.array(counts)[order]) > 0] <= 0)  # what is frequent is short


def test_huffman_lengths_of_a_textbook_example():
    # CLRS, figure 16.3: f a b c d e with 45 13 12 16 9 5 thousand: 224 000 bits
    counts = [45, 13, 12, 16, 9, 5]
    lengths = rates.huffman_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert np.dot(counts, lengths) == 224
    assert rates.huffman_lengths([7]).tolist() == [1]


def test_codebook_use_of_known_distributions():
    uniform = rates.codebook_use(np.arange(1024).repeat(3).reshape(2, -1), 1024)
    assert (uniform.normalized_entropy, uniform.huffman_bits, uniform.perplexity) == (1, 10, pytest.approx(1024))
    assert (uniform.num_used, uniform.num_tokens) == (1024, 3072)
    half = rates.codebook_use([0] * 4 + [1] * 2 + [2, 3], 1024)  # 1/2, 1/4, 1/8, 1/8
    assert half.entropy_bits == pytest.approx(1.75) and half.huffman_bits == 1.75
    assert half.normalized_entropy == pytest.approx(0.175)
    constant = rates.codebook_use([5, 5], 17**6)
    assert (constant.entropy_bits, constant.huffman_bits, constant.num_used) == (0, 1, 1)


def test_a_random_draw_of_46656_codes_has_the_entropy_of_scipy():
    from scipy.stats import entropy

    shares = np.random.default_rng(0).dirichlet(np.full(46656, 2.0))
    tokens = np.random.default_rng(1).choice(46656, 400_000, p=shares)
    use = rates.codebook_use(tokens, 46656)
    assert use.entropy_bits == pytest.approx(entropy(np.bincount(tokens), base=2), abs=1e-9)
    assert use.entropy_bits < use.huffman_bits < use.entropy_bits + 0.05
    assert use.entropy_bits < entropy(shares, base=2)  # few samples read low


def test_huffman_bits_per_second_adds_the_stages():
    skewed, even = [0, 0, 0, 0, 1, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3]
    tokens = np.stack([skewed, even], -1)[None]  # (1, 8, 2)
    assert rates.huffman_bits_per_second(tokens, [4, 4], 25.0) == 25 * (1.75 + 2)
    with pytest.raises(ValueError, match=r"must be \(..., 3\), got \(1, 8, 2\)"):
        rates.huffman_bits_per_second(tokens, [4, 4, 4], 25.0)


def test_tokens_of_torch_are_taken():
    import torch

    assert rates.codebook_use(torch.tensor([[0, 1], [1, 0]]), 2).normalized_entropy == 1


@pytest.mark.parametrize(
    ("tokens", "size", "message"),
    [
        ([], 4, "whole numbers, at least one"),
        ([0.5], 4, "whole numbers"),
        ([0, 4], 4, r"must be in 0 \.\.\. 3, got 0 \.\.\. 4"),
        ([-1], 4, r"must be in 0 \.\.\. 3"),
        ([0], 1, "at least 2 codes"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens, size, message):
    with pytest.raises(ValueError, match=message):
        rates.codebook_use(tokens, size)


def test_rates_without_codebooks_are_refused():
    for sizes in ([], [1024, 1]):
        with pytest.raises(ValueError, match="codebooks of 2 codes or more"):
            rates.token_rate(sizes, 25.0)


def test_the_real_time_factor_counts_work_after_the_warm_up(monkeypatch):
    clock, calls = [0.0], []

    def process(wav):
        calls.append(wav.shape[-1])
        clock[0] += 100 if len(calls) <= 2 else 0.5

    def synchronize():
        clock[0] += 0.25

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    wavs = [np.zeros((1, n)) for n in (16_000, 32_000)]
    factor = rates.real_time_factor(process, wavs, 16_000, num_warm_up=2, synchronize=synchronize)
    assert calls == [16_000, 16_000, 16_000, 32_000]
    assert (factor.mean, factor.fastest, factor.num_clips, factor.audio_s) == (1.5 / 3, 0.375, 2, 3)
    assert math.isfinite(factor.mean)
    with pytest.raises(ValueError, match="no wavs"):
        rates.real_time_factor(process, [], 16_000)
