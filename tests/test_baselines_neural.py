import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from taae.audio import resample
from taae.evaluate import evaluate
from workbench import published
from workbench.baselines import SpeechCodec
from workbench.baselines.protocol import pack_tokens

transformers = pytest.importorskip("transformers")

from workbench.baselines.neural import Dac, EnCodec, Mimi, XCodec2  # noqa: E402
from workbench.baselines.packages import SemantiCodec, SpeechTokenizer, Taae  # noqa: E402
from workbench.baselines.unit_hifigan import HubertUnits, UnitHiFiGAN, load_vocoder  # noqa: E402

# The published shapes in time and codebooks, small in width.
SMALL = {
    EnCodec: transformers.EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16),
    Dac: transformers.DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=32,
        hidden_size=128,
        n_codebooks=12,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
    ),
    Mimi: transformers.MimiConfig(
        num_filters=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        upsample_groups=32,
    ),
    XCodec2: transformers.Xcodec2Config(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        encoder_hidden_size=4,
        quantization_dim=96,
        semantic_model_config=transformers.Wav2Vec2BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_depthwise_kernel_size=3,
            feature_projection_input_dim=160,
        ),
    ),
}
# Of section 4.4 and Table 2; 4^8 codes at 50 Hz for X-codec2.
BITRATES = {EnCodec: (1500, 3000), Dac: (1000, 2000), Mimi: (550, 1100), XCodec2: (800,)}


def enliven(model):
    """Fresh models have empty codebooks and let most of the signal die; give every layer a gain of about one."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("original0"):
                value.fill_(1.4)  # length of a filter under weight norm
            elif value.ndim >= 2:
                value.normal_(0, 1.4 / value[0].numel() ** 0.5)
        for name, value in model.named_buffers():
            if name.endswith(("codebook.embed", "codebook.embed_sum")):
                value.normal_()
            elif name.endswith("cluster_usage"):
                value.fill_(1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for family, config in SMALL.items():
        model = getattr(transformers, family.class_name)(config)
        enliven(model)
        model.save_pretrained(root / family.__name__)
    return root


@pytest.mark.parametrize("family", SMALL)
def test_bitrates_of_the_paper_follow_from_the_shapes(family, folders):
    codec = family(folders / family.__name__)
    assert isinstance(codec, SpeechCodec)
    assert dict(codec.bitrates) == {str(rate): rate for rate in BITRATES[family]}
    printed = {cell.value for cell in published.table("table02").cells if cell.column == "BPS"}
    assert family is XCodec2 or set(BITRATES[family]) <= printed


@pytest.mark.parametrize("family", SMALL)
def test_encode_and_decode_are_those_of_the_model(family, folders, speech):
    codec = family(folders / family.__name__)
    wav = speech(1.0, codec.sample_rate_hz)
    frames = -(-wav.size // round(codec.sample_rate_hz / codec.frame_rate_hz))
    reference = getattr(transformers, family.class_name).from_pretrained(folders / family.__name__).eval()
    outputs = []
    for mode, count in zip(codec.bitrates, codec.num_codebooks, strict=True):
        encoded = codec.encode(wav, mode)
        assert abs(len(encoded.tokens) - frames) <= 1 and encoded.tokens.shape[1] == count
        assert len(np.unique(encoded.tokens)) > 3  # not one token for everything
        assert encoded.data == pack_tokens(encoded.tokens, codec.codebook_sizes(count))
        assert 8 * len(encoded.data) == pytest.approx(codec.bitrates[mode], rel=0.1)  # of one second
        outputs.append(codec.decode(encoded))
        assert outputs[-1].shape == wav.shape
        # What the model itself makes of these tokens, by another call.
        codes = torch.from_numpy(encoded.tokens.T.copy())[None]
        with torch.inference_mode():
            if family is EnCodec:
                expected = reference.decoder(reference.quantizer.decode(codes.transpose(0, 1)))
            elif family is Dac:
                expected = reference.decoder(reference.quantizer.from_codes(codes)[0])
            else:
                expected = reference.decode(codes)[0]
        expected = expected.numpy().ravel()[: wav.size]
        assert np.abs(expected).max() > 1e-6
        np.testing.assert_allclose(outputs[-1][: expected.size], expected, atol=1e-4 * np.abs(expected).max())
    assert len(outputs) == 1 or not np.allclose(outputs[0], outputs[1], atol=1e-6)  # more codebooks, another sound


@pytest.mark.parametrize("family", [EnCodec, Mimi])
def test_codecs_at_24_khz_get_an_upsampled_wav_and_are_brought_back(family, folders, speech):
    codec, wav = family(folders / family.__name__), speech(0.73)
    mode = next(iter(codec.bitrates))
    decoded, data = codec.reconstruct(wav, mode, sample_rate_hz=16_000)
    encoded = codec.encode(resample(wav, 16_000, 24_000), mode)
    assert decoded.shape == wav.shape and data == encoded.data
    np.testing.assert_array_equal(decoded, resample(codec.decode(encoded), 24_000, 16_000)[: wav.size])
    with pytest.raises(ValueError, match=f"{codec.name} has the modes {mode}, .*; got '64'"):
        codec.reconstruct(wav, "64", sample_rate_hz=16_000)


def test_dac_gives_back_what_does_not_fill_a_frame(folders, speech):
    codec, wav = Dac(folders / "Dac"), speech(0.5)[:7777]
    encoded = codec.encode(wav, "1000")
    assert len(encoded.tokens) == 25 and codec.decode(encoded).shape == (7777,)
    assert codec.encode(wav, "1000").tokens.tolist() == encoded.tokens.tolist()  # no dropout of codebooks


def test_a_neural_codec_goes_through_the_evaluation(folders, speech, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", speech(1.0), 16_000)
    rows = evaluate(
        *(EnCodec(folders / "EnCodec"), [("a", tmp_path / "a.wav")], ["1500", "3000"]),
        metrics=["stft_distance"],
        progress=False,
    )
    assert [row["bits_per_second"] for row in rows] == [1504, 3000]  # 75 frames in whole bytes
    assert rows[0]["codec"] == "EnCodec" and rows[0]["stft_distance"] != rows[1]["stft_distance"]


def test_a_folder_with_another_model_is_refused(folders):
    with pytest.raises(ValueError, match="holds a model of type 'dac', EnCodec needs 'encodec'"):
        EnCodec(folders / "Dac")


# HuBERT and its vocoder

VOCODER = {
    "num_embeddings": 40,
    "embedding_dim": 24,
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "dur_predictor_params": {
        "encoder_embed_dim": 24,
        "var_pred_hidden_dim": 24,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


@pytest.fixture(scope="module")
def vocoder_files(tmp_path_factory):
    """As fairseq stores them: weights of convolutions split by weight norm, under "generator"."""
    folder = tmp_path_factory.mktemp("vocoder")
    torch.manual_seed(1)
    model = UnitHiFiGAN(VOCODER)
    state = {}
    for name, value in model.state_dict().items():
        is_split = value.ndim == 3 and not name.startswith("dur_predictor")
        if is_split:
            value = torch.randn_like(value) * 0.15
            state[f"{name}_v"] = value * 3  # its length does not matter
            state[f"{name}_g"] = value.norm(dim=(1, 2), keepdim=True)
        else:
            state[name] = torch.randn_like(value) * 0.3
    torch.save({"generator": state}, folder / "vocoder.pt")
    (folder / "config.json").write_text(json.dumps(VOCODER))
    return folder, state


def test_the_vocoder_is_that_of_another_implementation(vocoder_files):
    folder, state = vocoder_files
    ours = load_vocoder(folder / "config.json", folder / "vocoder.pt")
    config = transformers.SeamlessM4TConfig(
        unit_embed_dim=24,
        lang_embed_dim=0,
        spkr_embed_dim=0,
        unit_hifi_gan_vocab_size=40,
        upsample_initial_channel=64,
        upsample_rates=VOCODER["upsample_rates"],
        upsample_kernel_sizes=VOCODER["upsample_kernel_sizes"],
        resblock_kernel_sizes=VOCODER["resblock_kernel_sizes"],
        resblock_dilation_sizes=VOCODER["resblock_dilation_sizes"],
        variance_predictor_kernel_size=3,
    )
    from transformers.models.seamless_m4t.modeling_seamless_m4t import (
        SeamlessM4THifiGan,
        SeamlessM4TVariancePredictor,
    )

    generator, durations = SeamlessM4THifiGan(config).eval(), SeamlessM4TVariancePredictor(config).eval()
    weights = ours.state_dict()
    generator.load_state_dict(
        {
            name.replace("ups.", "upsampler."): value
            for name, value in weights.items()
            if not name.startswith(("dict.", "dur_predictor."))
        }
    )
    durations.load_state_dict(
        {
            name.removeprefix("dur_predictor.").replace(".0.", "."): value
            for name, value in weights.items()
            if name.startswith("dur_predictor.")
        }
    )
    units = torch.tensor([3, 9, 3, 0, 39])
    with torch.inference_mode():
        embedded = ours.dict(units)[None]
        torch.testing.assert_close(ours.dur_predictor(embedded), durations(embedded))
        frames = torch.clamp(torch.round(torch.exp(durations(embedded)) - 1).long(), min=1)[0]
        spread = embedded[0].repeat_interleave(frames, dim=0).T[None]
        expected = generator(spread)[0]
        wav = ours(units)
    assert wav.numel() == 320 * int(frames.sum())
    assert expected.std() > 1e-3
    torch.testing.assert_close(wav, expected, rtol=0, atol=1e-5)
    norms = torch.linalg.vector_norm(weights["conv_pre.weight"], dim=(1, 2))
    torch.testing.assert_close(norms, state["conv_pre.weight_g"].flatten())


def test_a_vocoder_that_does_not_fit_is_refused(vocoder_files, tmp_path):
    folder, _ = vocoder_files
    (tmp_path / "config.json").write_text(json.dumps(VOCODER | {"num_embeddings": 41}))
    with pytest.raises(ValueError, match=r"vocoder.pt does not fit .*config.json"):
        load_vocoder(tmp_path / "config.json", folder / "vocoder.pt")


def test_hubert_units_are_the_nearest_centres_and_come_back_as_sound(vocoder_files, tmp_path, speech):
    folder, _ = vocoder_files
    for name in ("config.json", "vocoder.pt"):
        shutil.copy(folder / name, tmp_path / name)
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 7
    )
    torch.manual_seed(2)
    hubert = transformers.HubertModel(config).eval()
    hubert.save_pretrained(tmp_path / "hubert")
    wav = speech(1.0)
    with torch.inference_mode():
        features = hubert(torch.from_numpy(wav)[None], output_hidden_states=True).hidden_states[2][0].numpy()
    centres = features[:: len(features) // 40][:40]  # some of the frames themselves
    np.save(tmp_path / "kmeans.npy", centres)
    codec = HubertUnits(tmp_path, layer=2)
    encoded = codec.encode(wav, "300")
    assert dict(codec.bitrates) == {"300": 300}  # 40 units take 6 bits, 50 times a second
    distances = ((features[:, None] - centres[None]) ** 2).sum(-1)
    assert encoded.tokens[:, 0].tolist() == distances.argmin(1).tolist()
    assert codec.decode(encoded).shape == wav.shape
    assert 8 * len(encoded.data) == pytest.approx(300, abs=16)


# Packages of their authors


def test_speech_tokenizer_is_called_as_its_package_wants(monkeypatch, tmp_path, speech):
    # The package cannot be imported beside a CPU build of torch; this checks shapes and the number of codebooks.
    class Model(torch.nn.Module):
        def encode(self, x, n_q=None, st=None):
            assert x.shape == (1, 1, 16_000)
            return torch.arange(n_q * 50).reshape(n_q, 1, 50) % 1024

        def decode(self, codes, st=0):
            return codes.sum(0).repeat_interleave(320, dim=-1)[None].float() / 1e4

    module = SimpleNamespace(SpeechTokenizer=SimpleNamespace(load_from_checkpoint=lambda config, weights: Model()))
    monkeypatch.setitem(__import__("sys").modules, "speechtokenizer", module)
    for name in ("config.json", "SpeechTokenizer.pt"):
        (tmp_path / name).touch()
    codec = SpeechTokenizer(tmp_path)
    encoded = codec.encode(speech(1.0), "1500")
    assert encoded.tokens[:2].tolist() == [[0, 50, 100], [1, 51, 101]] and 8 * len(encoded.data) == 1504
    assert codec.decode(encoded)[0] == pytest.approx(0.015)


def test_semanticodec_is_asked_for_the_variants_of_the_paper(monkeypatch, speech):
    made = []

    class Model:
        def __init__(self, token_rate, semantic_vocab_size):
            made.append((token_rate, semantic_vocab_size))
            self.frames = token_rate // 2

        def encode(self, path):
            assert path.endswith("in.wav")
            return torch.tensor([[[16383, 8191]] * self.frames])

        def decode(self, tokens):
            return np.full((1, 1, 16_000), float(tokens[0, 0, 1]) / 8191)

    monkeypatch.setitem(__import__("sys").modules, "semanticodec", SimpleNamespace(SemantiCodec=Model))
    codec = SemantiCodec()
    for mode in ("337.5", "675"):
        encoded = codec.encode(speech(1.0), mode)
        assert 8 * len(encoded.data) == pytest.approx(codec.bitrates[mode], abs=16)
        assert codec.decode(encoded).tolist() == [1.0] * 16_000
    assert made == [(25, 16384), (50, 16384)]


def test_a_published_taae_is_loaded_strictly_and_sends_700_bits_a_second(shared, tmp_path, speech):
    golden = shared / "reference" / "golden" / "tiny"
    shutil.copy(golden / "config.json", tmp_path / "model_config.json")
    shutil.copy(golden / "state_dict.safetensors", tmp_path / "model.safetensors")
    codec = Taae(tmp_path)
    modes = dict(codec.bitrates)
    wav = speech(1.0)
    for mode in modes:
        decoded, data = codec.reconstruct(wav, mode, sample_rate_hz=16_000)
        expected, tokens = codec.codec.reconstruct(wav, mode, sample_rate_hz=16_000)
        np.testing.assert_allclose(decoded, np.asarray(expected).ravel(), atol=1e-4)
        assert 8 * len(data) == pytest.approx(modes[mode], abs=8)
