"""The benchmark itself: what it compares with is the same network, and its numbers are what they are called."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from taae.attention import window_attention
from taae.config import load_preset

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def module():
    """`module(name)` is a script of benchmarks/, which import each other by name."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    sys.path.insert(0, str(BENCHMARKS))
    yield load
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(("left", "right"), [(63, 64), (63, 0), (3, 5)])
@pytest.mark.parametrize("n", [1, 64, 200])
def test_the_dense_attention_of_the_benchmark_has_the_window(module, n, left, right):
    dense_attention = module("speed_worker").dense_attention
    q, k, v = torch.randn(3, 2, 3, n, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    expected = window_attention(q, k, v, left=left, right=right, backend="reference")
    torch.testing.assert_close(dense_attention(q, k, v, left=left, right=right, backend="auto"), expected)


def test_the_950m_model_takes_62_gflop_for_a_second_of_audio(module):
    # 900 layer-tokens a second and half, each 2 x 16 x 1024^2, are 60.4; convolutions and attention make the rest.
    assert module("speed_report").gflop_per_s(load_preset("paper-950m")) == pytest.approx(62.2, abs=0.05)


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0])
def test_the_exponent_is_that_of_a_power_law_and_short_recordings_do_not_count(module, power):
    cells = {length: {"cpu_s": [3e-3 * length**power]} for length in (30, 60, 300)} | {5: {"cpu_s": [99.0]}}
    assert module("speed_report").exponent(cells) == pytest.approx(power)


def row(variant: str, length_s: float, cpu_s: float, name: str = "mini", **changes) -> dict:
    times = {"wall_s": [cpu_s] * 3, "cpu_s": [cpu_s] * 3, "memory_mb": 10.0, "gemm_gflops_per_cpu_s": 100.0}
    return {"kind": "codec", "name": name, "variant": variant, "audio_s": length_s} | times | changes


def record(rows: list[dict]) -> dict:
    machine = {"processor": "P", "family": "1/2", "vectors": [], "cores": 2, "threads": 2, "python": "3", "torch": "2"}
    about = {"when": "now", "commit": "c", "machine": machine, "used_by_others": 0.25, "options": {"rounds": 3}}
    return about | {"rows": rows, "streaming": []}


def test_the_page_holds_the_numbers_of_the_record_and_says_which_targets_are_missed(module, tmp_path, monkeypatch):
    report = module("speed_report")
    rows = [row("float32 dense", 30, 12.0, "paper-950m"), row("bfloat16", 30, 4.0, "paper-950m")]
    rows += [row("float32 dense", 300, 9.0), row("float32", 30, 0.25), row("float32", 300, 2.5)]
    rows.append({"kind": "peer", "name": "DAC", "variant": "-", "unavailable": "needs transformers"})
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text("before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PLOT", plot)
    for _ in range(2):  # writing again changes nothing
        report.write(json.loads(json.dumps(record(rows))))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| 950M, 30 s: CPU of float32 dense / bfloat16 | >= 4.5 | 3.00 | **no** |" in text
    assert "| mini, 300 s: CPU of float32 dense / float32 | >= 3 | 3.60 | yes |" in text
    assert "| mini float32: RTF(300 s) / RTF(30 s) | <= 1.1 | 1.00 | yes |" in text
    assert "| 950M, 30 s: CPU of bfloat16 plain / bfloat16 | >= 1.4 | not measured |  |" in text
    assert "| DAC |  | needs transformers |" in text and "others had" not in text
    # 62.2 GFLOP a second of audio, 30 s in 4 s at 100 GFLOP/s.
    assert "share of the matrix product's rate | >= 65 % | 467% | yes |" in text
    assert plot.read_text().count("<circle") == 5 and "950M bfloat16" in plot.read_text()


def test_a_page_without_its_markers_is_left_alone(module, tmp_path, monkeypatch):
    report = module("speed_report")
    page = tmp_path / "page.md"
    page.write_text("nothing to fill\n")
    monkeypatch.setattr(report, "PAGE", page)
    with pytest.raises(ValueError, match="must hold '<!-- tables: begin -->'"):
        report.write(record([]))
    assert page.read_text() == "nothing to fill\n"
