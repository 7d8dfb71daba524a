"""Losses that listen: Eq. 9 and the CTC head."""

import itertools
import json

import pytest
import torch

from taae.perceptual import CTCConfig, CTCHead, WavLM, perceptual_loss


def noise(samples: int = 3200, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """A WavLM in small, built as WavLM-Large is, with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 8, 8),
        conv_kernel=(10, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        num_buckets=8,
        max_bucket_distance=16,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wavlm")
    transformers.WavLMModel(config).save_pretrained(folder)
    return folder


def test_eq_9_weighs_every_layer_by_its_size():
    target = [torch.tensor([[1.0, -3.0]]), torch.tensor([[200.0, 200.0]])]
    decoded = [torch.tensor([[2.0, -3.0]]), torch.tensor([[100.0, 300.0]])]
    assert perceptual_loss(target, decoded).item() == pytest.approx((0.5 / 2 + 100 / 200) / 2)
    assert perceptual_loss(target, target) == 0


def test_features_are_the_layers_that_transformers_returns(wavlm_folder):
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    features = WavLM(wavlm_folder)(noise())
    prepare = Wav2Vec2FeatureExtractor(do_normalize=True)
    inputs = prepare(list(noise()[:, 0].numpy()), sampling_rate=16000, return_tensors="pt").input_values
    model = WavLMModel.from_pretrained(wavlm_folder).eval()
    reference = model(inputs, output_hidden_states=True)
    assert len(features) == 3
    for layer, expected in zip(features[:2], reference.hidden_states[1:3], strict=True):
        torch.testing.assert_close(layer, expected, atol=1e-5, rtol=1e-5)
    last = model.encoder.layer_norm(features[2])
    torch.testing.assert_close(last, reference.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_wavlm_is_frozen_but_its_gradient_reaches_the_speech(wavlm_folder):
    wavlm = WavLM(wavlm_folder).train()
    assert not wavlm.training and not wavlm.model.training
    assert not any(parameter.requires_grad for parameter in wavlm.parameters())
    wavlm.double()
    wav, decoded = noise().double(), noise(seed=1).double().requires_grad_()
    target = wavlm(wav)

    def score(samples: torch.Tensor) -> torch.Tensor:
        return perceptual_loss(target, wavlm(samples))

    (gradient,) = torch.autograd.grad(score(decoded), decoded)
    direction = gradient / gradient.abs().max()
    slope = (score(decoded + 1e-6 * direction) - score(decoded - 1e-6 * direction)) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_wavlm_hears_items_apart_and_ignores_their_level(wavlm_folder):
    wavlm = WavLM(wavlm_folder)
    alone, loud = wavlm(noise()[:1])[-1], wavlm(torch.cat([noise()[:1], 5 * noise()[1:]]))[-1]
    torch.testing.assert_close(alone, loud[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wavlm(noise())[-1], loud, atol=1e-4, rtol=1e-4)


def test_wavlm_without_its_files_or_weights_is_refused(wavlm_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match="it has no config.json; download the model"):
        WavLM(tmp_path)
    (tmp_path / "config.json").write_text((wavlm_folder / "config.json").read_text())
    with pytest.raises(ValueError, match=f"no WavLM at {tmp_path}: "):
        WavLM(tmp_path)
    weights = load_file(wavlm_folder / "model.safetensors")
    weights.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing \(first \['encoder.layers.1.attention.k_proj.weight"):
        WavLM(tmp_path)


def test_wavlm_whose_sizes_do_not_fit_is_refused(wavlm_folder, tmp_path):
    config = json.loads((wavlm_folder / "config.json").read_text()) | {"intermediate_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((wavlm_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="0 weights are missing .*, 9 have another shape"):
        WavLM(tmp_path)


def test_ctc_is_the_likelihood_of_all_alignments():
    head = CTCHead(CTCConfig(symbols="ab", channels=8), latent_dim=3)
    latents = torch.randn(2, 4, 3)
    log_probabilities = head(latents)
    expected = []
    for item, (text, frames) in enumerate([("ab", 4), ("b", 3)]):
        likelihood = torch.zeros(())
        for path in itertools.product(range(3), repeat=frames):
            merged = [symbol for symbol, _ in itertools.groupby(path)]
            if "".join("ab"[symbol - 1] for symbol in merged if symbol) == text:
                likelihood = likelihood + log_probabilities[item, range(frames), list(path)].sum().exp()
        expected.append(-likelihood.log() / len(text))
    loss = head.loss(latents, ["ab", "b"], [4, 3])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_ctc_head_learns_and_teaches_the_latents():
    """An optimiser over the head changes every one of its parameters, and its gradient writes text into latents."""
    torch.manual_seed(1)
    head = CTCHead(CTCConfig(channels=32), latent_dim=6)
    latents = torch.randn(2, 25, 6, requires_grad=True)
    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    optimizer = torch.optim.AdamW([latents, *head.parameters()], lr=2e-2)
    texts = ["hello", "well, it's"]
    first = head.loss(latents, texts, [25, 25]).item()
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(latents, texts, [25, 25]).backward()
        optimizer.step()
    assert head.loss(latents, texts, [25, 25]).item() < 0.05 * first
    assert head.transcribe(latents) == ["hello", "well it's"]
    for name, parameter in head.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_latents_beyond_an_item_do_not_count():
    head = CTCHead(CTCConfig(channels=8), latent_dim=6)
    latents = torch.randn(1, 20, 6)
    padded = torch.cat([latents, torch.randn(1, 5, 6)], dim=1)
    torch.testing.assert_close(head.loss(padded, ["abc"], [20]), head.loss(latents, ["abc"], [20]))


def test_transcripts_become_symbols_and_back():
    characters, phonemes = (
        CTCHead(CTCConfig(), latent_dim=2),
        CTCHead(CTCConfig(symbols="HH AH0 L OW1", is_phonemes=True), latent_dim=2),
    )
    assert characters.encode('  "Don\'t,\n go -  42!" ') == characters.encode("don't go")
    assert characters.encode("a b") == [3, 1, 4]
    assert phonemes.encode("HH AH0 L OW1") == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"phonemes \['ZH'\] are not in the alphabet HH AH0 L OW1"):
        phonemes.encode("L ZH")


def test_speech_too_fast_for_the_latents_adds_nothing():
    head = CTCHead(CTCConfig(), latent_dim=6)
    latents = torch.randn(1, 5, 6, requires_grad=True)
    assert head.is_readable("hello", 6) and not head.is_readable("hello", 5)  # a blank must part the two l
    loss = head.loss(latents, ["hello"], [5])
    loss.backward()
    assert loss == 0 and latents.grad is not None and (latents.grad == 0).all()
    assert head.loss(latents.detach(), ["helo"], [5]) > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"symbols": "aa"}, "symbols must be different and at least one, got 'aa'"),
        ({"symbols": " ", "is_phonemes": True}, "symbols must be different"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_impossible_heads_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        CTCConfig(**options)
