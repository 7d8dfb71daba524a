"""Did anything move since we last looked? (`tests/golden/make.py`)"""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taae.bitstream import unpack

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def make():
    return runpy.run_path(str(GOLDEN / "make.py"))


def test_the_numbers_of_a_tiny_model_have_not_moved(make):
    golden, now = load_file(GOLDEN / "tiny.safetensors"), make["compute"]()
    assert set(now) == set(golden)
    for name, value in golden.items():
        if not value.is_floating_point():
            continue
        torch.testing.assert_close(
            now[name].detach(), value, rtol=0, atol=2e-5
        )  # other processors sum in another order
    assert torch.equal(now["tokens"], golden["tokens"])
    assert golden["latents"].std() > 0.3 and len(golden["tokens"].unique()) > 30


def test_an_old_file_still_decodes_to_the_same_audio(make):
    golden = load_file(GOLDEN / "tiny.safetensors")
    data = bytes(golden["file"].tolist())
    header, _ = unpack(data)
    assert (header.model_id, header.num_samples, header.sample_rate_hz) == (b"golden 1", 1990, 22050)
    decompressed = make["build"](make["CONFIG"]).decompress(data)
    torch.testing.assert_close(decompressed, golden["decompressed"], rtol=0, atol=2e-5)
