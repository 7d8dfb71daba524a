"""ONNX: what onnxruntime computes is what torch computes, for every length, window and stride."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from taae.checkpoint import random_model, save_model
from taae.codec import Codec
from taae.config import ModelConfig
from taae.export import export_onnx
from taae.fsq import quantize

onnx = pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

ROOT = Path(__file__).resolve().parents[1]
TINY = ModelConfig(
    name="tiny", patch_samples=8, width=32, head_dim=16, rope_dims=8, depths=(1, 2), window=(5, 6), layer_scale_init=0.5
)
CONFIGS = [
    TINY,
    dataclasses.replace(TINY, name="causal", window=(5, 0), is_causal=True),
    dataclasses.replace(TINY, name="ahead", window=(0, 3), strides=(2, 3)),
    dataclasses.replace(TINY, name="blind", window=(0, 0), strides=(1, 2, 2), depths=(1, 0, 1), rope_dims=0),
]
# float32 through ten layers; the values are about 1.
TOLERANCE = 2e-5


def codec_of(config: ModelConfig) -> Codec:
    """A model whose every parameter matters."""
    model, _ = random_model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Codec(model, b"tinytiny")


def session(path: Path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def exported(request, tmp_path_factory):
    """A codec and its two sessions."""
    codec = codec_of(request.param)
    paths = export_onnx(codec, tmp_path_factory.mktemp("onnx") / "model")
    return codec, session(paths["encoder"]), session(paths["decoder"])


@pytest.mark.parametrize(("b", "n"), [(1, 1), (1, 15), (1, 16), (3, 17), (2, 6 * 16), (1, 97 * 16 + 3), (1, 20_000)])
def test_both_halves_are_those_of_torch(exported, b, n):
    codec, encoder, decoder = exported
    wav = torch.randn(b, 1, n, generator=torch.Generator().manual_seed(n))
    with torch.inference_mode():
        latents = codec.model.encode_latents(wav)
        codes = quantize(latents, 17)
        heard = codec.model.decode_latents(codes)
    (onnx_latents,) = encoder.run(None, {"wav": wav.numpy()})
    (onnx_heard,) = decoder.run(None, {"codes": codes.numpy()})
    # 20,000 samples are 2500 positions, beyond one table of angles.
    np.testing.assert_allclose(onnx_latents, latents.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(onnx_heard, heard.numpy(), rtol=0, atol=TOLERANCE)
    assert np.abs(onnx_latents).max() > 0.1 and np.abs(onnx_heard).max() > 0.01


def test_the_window_is_the_model_s_and_not_all_there_is(exported):
    codec, encoder, _ = exported
    before, after = codec.config.receptive_frames
    hop, num_frames = codec.hop_samples, 2 * (before + after) + 9
    wav = np.random.default_rng(0).standard_normal((1, 1, num_frames * hop)).astype(np.float32)
    struck = wav.copy()
    middle = num_frames // 2
    struck[..., middle * hop : (middle + 1) * hop] += 1
    changed = np.abs(encoder.run(None, {"wav": wav})[0] - encoder.run(None, {"wav": struck})[0]).max(axis=2)[0]
    frames = np.flatnonzero(changed > 1e-4)
    assert middle - after <= frames[0] <= middle <= frames[-1] <= middle + before


def test_names_rates_and_identity_are_in_the_file(tmp_path):
    codec = codec_of(CONFIGS[1])
    paths = export_onnx(codec, tmp_path)
    for path in paths.values():
        metadata = session(path).get_modelmeta().custom_metadata_map
        assert metadata == {
            "model": "causal",
            "model_id": b"tinytiny".hex(),
            "sample_rate_hz": "16000",
            "hop_samples": "16",
            "is_causal": "true",
        }
    with pytest.raises(FileExistsError, match="encoder.onnx exists"):
        export_onnx(codec, tmp_path)
    with pytest.raises(ValueError, match="only float32 on a CPU is exported, got torch.bfloat16"):
        export_onnx(Codec(random_model(TINY)[0], b"tinytiny", dtype="bfloat16"), tmp_path, force=True)
    with pytest.raises(ValueError, match="packed layers cannot be exported"):
        export_onnx(Codec(random_model(TINY)[0], b"tinytiny", kernels="fast"), tmp_path, force=True)


def test_the_command_writes_both_files(tmp_path):
    save_model(codec_of(TINY).model, tmp_path / "model")

    options = ["export", str(tmp_path / "onnx"), "--onnx", "--model", str(tmp_path / "model")]
    command = [sys.executable, "-m", "taae.cli", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "onnx" / name) for name in ("encoder.onnx", "decoder.onnx")
    ]
    wav = np.zeros((1, 1, 32), np.float32)
    assert session(tmp_path / "onnx" / "encoder.onnx").run(None, {"wav": wav})[0].shape == (1, 2, 6)
