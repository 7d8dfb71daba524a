"""Sliding-window attention: every backend against a dense float64 oracle, and never more than the window."""

import importlib.util
import logging

import numpy as np
import pytest
import torch

from taae import attention
from taae.attention import rotary_angles, rotate, window_attention

LENGTHS = [1, 2, 63, 64, 65, 129, 200, 300, 700]
WINDOWS = {64: (31, 32), 128: (63, 64), 256: (127, 128)}
CAUSAL = {64: (63, 0), 128: (127, 0), 256: (255, 0)}
ALL_WINDOWS = [*WINDOWS.values(), *CAUSAL.values()]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def qkv(n: int, dim: int = 8, *, batch: int = 2, heads: int = 2, dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, heads, n, dim, generator=generator).to(dtype) for _ in range(3)]


def oracle(q, k, v, left: int, right: int) -> np.ndarray:
    """One query at a time in float64: softmax over exactly the keys of its window."""
    q, k, v = (tensor.detach().double().numpy() for tensor in (q, k, v))
    result = np.empty_like(q)
    n = q.shape[2]
    for i in range(n):
        window = slice(max(0, i - left), min(n, i + right + 1))
        scores = np.einsum("bhe,bhke->bhk", q[:, :, i], k[:, :, window]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        result[:, :, i] = np.einsum("bhk,bhke->bhe", weights, v[:, :, window])
    return result


@pytest.mark.parametrize("window", ALL_WINDOWS, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_reference_and_blocked_agree_with_the_dense_oracle(n, window):
    left, right = window
    q, k, v = qkv(n, dtype=torch.float64)
    expected = oracle(q, k, v, left, right)
    for backend in ("reference", "blocked", "auto"):
        heads = window_attention(q, k, v, left=left, right=right, backend=backend)
        np.testing.assert_allclose(heads.numpy(), expected, atol=1e-12)
        # float32 has 24 bits, scores reach 30 and values 8.
        heads = window_attention(q.float(), k.float(), v.float(), left=left, right=right, backend=backend)
        np.testing.assert_allclose(heads.numpy(), expected, atol=3e-5)


@pytest.mark.parametrize("window", [(0, 0), (5, 0), (0, 5), (3, 300), (300, 3), (1000, 1000)], ids=str)
@pytest.mark.parametrize("n", [1, 7, 256, 257, 400])
def test_lopsided_and_empty_windows_are_exact_too(n, window):
    left, right = window
    q, k, v = qkv(n, dtype=torch.float64)
    heads = window_attention(q, k, v, left=left, right=right, backend="blocked")
    np.testing.assert_allclose(heads.numpy(), oracle(q, k, v, left, right), atol=1e-12)


def test_a_window_of_the_query_alone_returns_its_value():
    q, k, v = qkv(300)
    assert torch.equal(window_attention(q, k, v, left=0, right=0), v)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("n", [65, 129, 200, 300, 700])
@pytest.mark.parametrize("window", [(63, 64), (63, 0)], ids=str)
def test_keys_outside_the_window_are_never_seen(backend, n, window):
    left, right = window
    q, k, v = qkv(n)
    before = window_attention(q, k, v, left=left, right=right, backend=backend)
    key = n // 2
    k[:, :, key] = 100.0
    v[:, :, key] = 1e4
    after = window_attention(q, k, v, left=left, right=right, backend=backend)
    changed = (before != after).any(dim=-1).any(dim=1).any(dim=0)
    sees = (torch.arange(n) >= key - right) & (torch.arange(n) <= key + left)
    assert torch.equal(changed, sees)


def test_the_published_window_is_63_before_and_64_after():
    n = 300
    scores = torch.zeros(1, 1, n, n)  # equal for every key, so that the result is the mean of the values in the window
    weights = window_attention(scores, scores, torch.eye(n)[None, None], left=63, right=64)
    assert weights[0, 0, 150].nonzero().flatten().tolist() == list(range(150 - 63, 150 + 64 + 1))
    assert weights[0, 0, 150].max() == pytest.approx(1 / 128)


@pytest.mark.parametrize("window", [(63, 64), (63, 0)], ids=str)
@pytest.mark.parametrize("n", [65, 300])
def test_gradients_of_blocked_are_those_of_the_reference(n, window):
    gradients = []
    for backend in ("reference", "blocked"):
        inputs = [tensor.requires_grad_() for tensor in qkv(n, dtype=torch.float64)]
        heads = window_attention(*inputs, left=window[0], right=window[1], backend=backend)
        weights = torch.linspace(-1, 1, heads.numel(), dtype=torch.float64).view_as(heads)
        gradients.append(torch.autograd.grad((heads * weights).sum(), inputs))
    for reference, blocked in zip(*gradients, strict=True):
        torch.testing.assert_close(blocked, reference, rtol=0, atol=1e-12)


def test_blocked_passes_a_gradient_check():
    inputs = [tensor.requires_grad_() for tensor in qkv(9, 3, batch=1, heads=1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: window_attention(q, k, v, left=2, right=1, backend="blocked"), inputs
    )


@pytest.mark.parametrize("window", [(63, 64), (63, 0), (127, 128)], ids=str)
def test_blocked_computes_linearly_many_scores_and_never_a_large_square(monkeypatch, window):
    scores: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counting(q, k, v, **options):
        scores.append(q.shape[-2] * k.shape[-2])
        return attend(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counting)
    totals = {}
    for n in (2048, 4096, 8192):
        scores.clear()
        q, k, v = qkv(n, 4, batch=1, heads=1)
        window_attention(q, k, v, left=window[0], right=window[1], backend="blocked")
        totals[n] = sum(scores)
        assert max(scores) <= 128 * (128 + sum(window))
    assert totals[4096] <= 2.05 * totals[2048] and totals[8192] <= 2.05 * totals[4096]
    # At most 128 more keys a query than its window has.
    assert totals[8192] <= 8192 * (sum(window) + 128)


def test_bfloat16_agrees_within_its_precision():
    q, k, v = qkv(300, dtype=torch.bfloat16)
    heads = window_attention(q, k, v, left=63, right=64)
    assert heads.dtype == torch.bfloat16
    # bf16 has 8 bits of mantissa, and values reach 8.
    np.testing.assert_allclose(heads.float().numpy(), oracle(q, k, v, 63, 64), atol=0.06)


def test_flex_says_on_the_cpu_that_it_needs_cuda():
    with pytest.raises(RuntimeError, match="flex backend needs a CUDA device, got cpu; choose 'blocked'"):
        window_attention(*qkv(8), left=3, right=4, backend="flex")


def test_flash_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs the flash-attn package: pip install 'taae-workbench\[flash\]'"):
        window_attention(*qkv(8), left=3, right=4, backend="flash")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="half precision on CUDA, got torch.float32 on cpu"):
        window_attention(*qkv(8), left=3, right=4, backend="flash")


@pytest.mark.parametrize(("left", "right"), [(63, 64), (63, 0), (127, 128)])
def test_the_flex_mask_is_the_window(left, right):
    n = 700
    mask = attention._flex_mask(n, left, right, torch.device("cpu"))
    positions = torch.arange(n)
    visible = mask.mask_mod(torch.tensor(0), torch.tensor(0), positions[:, None], positions[None])
    distance = positions[None] - positions[:, None]
    assert torch.equal(visible, (-left <= distance) & (distance <= right))
    blocks = torch.nn.functional.pad(visible, (0, -n % 128, 0, -n % 128)).view(6, 128, 6, 128).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks)


def test_an_unknown_backend_is_refused(unchecked):
    with pytest.raises(ValueError, match="must be one of auto, reference, blocked, flex, flash; got 'full'"):
        window_attention(*qkv(8), left=3, right=4, backend="full")  # pyright: ignore[reportArgumentType]


def test_the_choice_is_logged_once(caplog):
    attention._choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="taae.attention"):
        for _ in range(3):
            window_attention(*qkv(8), left=3, right=4)
    assert [record.message for record in caplog.records] == [
        "window attention: blocked backend for torch.float32 on cpu"
    ]


def test_auto_is_flash_only_for_half_precision_on_cuda_with_the_package(monkeypatch):
    for has_flash in (False, True):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, has=has_flash: object() if has else None)
        for device in ("cpu", "cuda"):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                attention._choose.cache_clear()
                is_flash = has_flash and device == "cuda" and dtype != torch.float32
                assert attention._choose(device, dtype) == ("flash" if is_flash else "blocked")
    attention._choose.cache_clear()


def test_rotation_angles_are_those_of_rope():
    angles = rotary_angles(50, 16, torch.device("cpu"), start=7)
    for position in (0, 1, 49):
        for i in range(8):
            angle = (7 + position) * 10000 ** (-2 * i / 16)
            assert angles[0, position, i] == pytest.approx(np.cos(angle), abs=1e-6)
            assert angles[1, position, i] == pytest.approx(np.sin(angle), abs=1e-6)


def test_rotation_pairs_dimension_i_with_i_plus_half_and_leaves_the_second_half_of_the_head():
    angles = rotary_angles(20, 16, torch.device("cpu"))
    heads = torch.zeros(1, 1, 20, 32)
    heads[..., 3] = 1.0
    turned = rotate(heads, angles)
    assert torch.equal(turned[0, 0, :, 3], angles[0, :, 3])
    assert torch.equal(turned[0, 0, :, 3 + 8], angles[1, :, 3])
    assert turned.count_nonzero(dim=2).nonzero()[:, -1].tolist() == [3, 11]
    noise = torch.randn(1, 1, 20, 32)
    assert torch.equal(rotate(noise, angles)[..., 16:], noise[..., 16:])


def test_scores_depend_only_on_the_distance_of_positions():
    q, k, _ = qkv(100, 32, dtype=torch.float64)
    scores = []
    for start in (0, 1234):
        angles = rotary_angles(100, 16, torch.device("cpu"), start=start).double()
        scores.append(rotate(q, angles) @ rotate(k, angles).transpose(-1, -2))
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-4)  # the angles are rounded to float32
    assert not torch.allclose(scores[0], q @ k.transpose(-1, -2), atol=1.0)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["blocked", "flex", "flash"])
@pytest.mark.parametrize("window", [(63, 64), (63, 0), (127, 128)], ids=str)
@pytest.mark.parametrize("n", [1, 65, 128, 300, 700])
def test_gpu_backends_agree_with_the_oracle(backend, n, window):
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("needs the flash-attn package")
    dtype, atol = (torch.float16, 1e-2) if backend == "flash" else (torch.float32, 1e-4)  # fp16 has 11 bits, values 8
    q, k, v = qkv(n, 64, dtype=dtype)
    on_gpu = [tensor.cuda() for tensor in (q, k, v)]
    heads = window_attention(*on_gpu, left=window[0], right=window[1], backend=backend)
    np.testing.assert_allclose(heads.float().cpu().numpy(), oracle(q, k, v, *window), atol=atol)


@pytest.mark.gpu
@needs_gpu
def test_flex_gradients_are_those_of_the_reference():
    gradients = []
    for backend in ("reference", "flex"):
        inputs = [tensor.cuda().requires_grad_() for tensor in qkv(300, 64)]
        heads = window_attention(*inputs, left=63, right=64, backend=backend)
        gradients.append(torch.autograd.grad((heads * heads.detach().sign()).sum(), inputs))
    for reference, flex in zip(*gradients, strict=True):
        torch.testing.assert_close(flex, reference, rtol=0, atol=1e-3)  # float32 on the tensor cores' TF32
