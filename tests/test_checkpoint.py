"""Model folders, their identity, and published checkpoints read strictly."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import taae
from taae import checkpoint
from taae.checkpoint import fused_state, load_fused_state, load_model, random_model, save_model
from taae.config import ModelConfig, load_preset
from taae.model import TAAE
from taae.official import convert_state, load_official_model, read_official_config

TINY = ModelConfig(name="tiny", patch_samples=8, width=32, head_dim=16, rope_dims=8, depths=(1, 2), window=(3, 4))


def wav(n: int = 200) -> Tensor:
    return 0.3 * torch.randn(1, 1, n, generator=torch.Generator().manual_seed(0))


# Our own folders


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_folder_in_float32_gives_the_model_back_exactly(tmp_path, is_fused):
    model = random_model(TINY)[0] if is_fused else TAAE(TINY)
    save_model(model, tmp_path / "new" / "model")
    loaded, identity = load_model(tmp_path / "new" / "model")
    assert loaded.config == TINY and len(identity) == 8 and not loaded.training
    assert not any("parametrizations" in key for key in loaded.state_dict())
    torch.testing.assert_close(loaded.encode_latents(wav()), model.encode_latents(wav()), rtol=0, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_in_bfloat16_halves_the_matrices_and_keeps_the_vectors(tmp_path):
    model = random_model(TINY)[0]
    save_model(model, tmp_path, torch.bfloat16)
    for key, value in load_file(tmp_path / "model.safetensors").items():
        assert value.dtype == (torch.float32 if value.dim() == 1 else torch.bfloat16)
        assert torch.equal(value.float(), model.state_dict()[key].to(value.dtype).float())
    loaded, _ = load_model(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    error = (loaded.encode_latents(wav()) - model.encode_latents(wav())).norm() / model.encode_latents(wav()).norm()
    assert 0 < error < 0.02  # bf16 has 8 bits of mantissa


def test_the_decoder_may_have_a_file_of_its_own(tmp_path):
    model = random_model(TINY)[0]
    save_model(model, tmp_path, has_decoder_file=True)
    assert all(key.startswith("decoder.") for key in load_file(tmp_path / "decoder.safetensors"))
    loaded, identity = load_model(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name

    (tmp_path / "decoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="decoder.safetensors is damaged"):
        load_model(tmp_path)
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights do not fit the model: missing \['decoder\."):
        load_model(tmp_path)
    with torch.no_grad():
        model.decoder.conv_in.conv.weight.mul_(2)
    save_model(model, tmp_path, has_decoder_file=True)
    assert load_model(tmp_path)[1] != identity, "the decoder counts"
    decoder = (tmp_path / "decoder.safetensors").read_bytes()
    save_model(model, tmp_path)
    assert not (tmp_path / "decoder.safetensors").exists()
    (tmp_path / "decoder.safetensors").write_bytes(decoder)
    with pytest.raises(ValueError, match="holds weights twice: decoder.* remove one"):
        load_model(tmp_path)


def test_the_identity_depends_on_weights_and_configuration_and_on_nothing_else(tmp_path):
    model = random_model(TINY)[0]
    for name in ("one", "two"):
        save_model(model, tmp_path / name)
    first, second = load_model(tmp_path / "one")[1], load_model(tmp_path / "two")[1]
    assert first == second == load_model(str(tmp_path / "one"))[1]
    # A later version may know more fields; the identity is of what is written.
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))  # other spaces
    assert load_model(tmp_path / "two")[1] == first
    config["model"]["window"] = [4, 4]
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path / "two")[1] != first
    with torch.no_grad():
        model.encoder.blocks[0][0].mlp.to_out.bias[0] += 1
    save_model(model, tmp_path / "two")
    assert load_model(tmp_path / "two")[1] != first


def test_saving_replaces_a_folder_and_an_interrupted_save_leaves_it(tmp_path, monkeypatch):
    save_model(random_model(TINY, 0)[0], tmp_path)
    before = load_model(tmp_path)[1]

    def fail(*arguments, **options):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_atomic", fail)
        with pytest.raises(OSError, match="disk full"):
            save_model(random_model(TINY, 1)[0], tmp_path)
    assert load_model(tmp_path)[1] == before
    save_model(random_model(TINY, 1)[0], tmp_path)
    assert load_model(tmp_path)[1] != before


def test_random_weights_are_the_same_for_the_same_seed_and_do_not_touch_the_global_one():
    torch.manual_seed(5)
    (one, first), (two, second), (other, third) = random_model(TINY), random_model(TINY), random_model(TINY, 1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert first == second != third
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.encoder.conv_in.conv.weight, other.encoder.conv_in.conv.weight)


def test_fused_weights_load_into_a_weight_normed_model_and_back():
    model = TAAE(TINY)
    state = fused_state(model)
    other = TAAE(TINY)
    load_fused_state(other, state)
    torch.testing.assert_close(other.encode_latents(wav()), model.encode_latents(wav()), rtol=0, atol=1e-6)
    for key, value in fused_state(other).items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6)


def test_a_preset_without_weights_is_random_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_preset", lambda name: TINY)
    model, _ = load_model("paper-240m")
    assert "paper-240m has no weights here: they are random" in caplog.text
    assert model.config == TINY


def test_an_unknown_model_lists_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="no model 'nothing'; give a folder .* or a preset .*paper-950m"):
        load_model("nothing")
    with pytest.raises(ValueError, match="no model"):
        load_model(tmp_path / "absent")


def damage_config(text):
    return lambda folder: (folder / "config.json").write_text(text)


def damage_weights(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no model folder: it has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no model folder: it has no config.json"),
        (damage_config("{"), "config.json is damaged"),
        (damage_config("[1]"), "config.json is damaged"),
        (damage_config("{}"), "config.json is damaged.*model"),
        (damage_config('{"model": 3}'), "expected a table"),
        (damage_config('{"model": {"fsq": null}}'), "expected a table"),
        (damage_config('{"model": {"widht": 3}}'), "config.json: unknown key widht"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors is damaged"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
            "model.safetensors is damaged",
        ),
        (
            damage_weights(lambda state: state.pop("encoder.conv_in.conv.bias")),
            r"missing \['encoder.conv_in.conv.bias'\]",
        ),
        (damage_weights(lambda state: state.update(extra=torch.zeros(1))), r"missing none, unknown \['extra'\]"),
        (
            damage_weights(lambda state: state.update({"encoder.conv_in.conv.bias": torch.zeros(7)})),
            r"encoder.conv_in.conv.bias is \(7,\), not \(32,\)",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path, damage, why, unchecked):
    save_model(random_model(TINY)[0], tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=why):
        load_model(tmp_path)


# Published checkpoints

LAYER = {
    "pre_norm.gamma": "attention_norm.gain",
    "self_attn.to_qkv.weight": "attention.to_qkv.weight",
    "self_attn.to_out.weight": "attention.to_out.weight",
    "self_attn.q_norm.weight": "attention.q_norm.weight",
    "self_attn.q_norm.bias": "attention.q_norm.bias",
    "self_attn.k_norm.weight": "attention.k_norm.weight",
    "self_attn.k_norm.bias": "attention.k_norm.bias",
    "self_attn_scale.scale": "attention_scale.scale",
    "ff_norm.gamma": "mlp_norm.gain",
    "ff.ff.0.proj.weight": "mlp.to_value_and_gate.weight",
    "ff.ff.0.proj.bias": "mlp.to_value_and_gate.bias",
    "ff.ff.2.weight": "mlp.to_out.weight",
    "ff.ff.2.bias": "mlp.to_out.bias",
    "ff_scale.scale": "mlp_scale.scale",
}


def published_state(model: TAAE) -> dict[str, Tensor]:
    """The published spelling of a weight-normed model, written apart from the converter."""
    config, ours, state = model.config, dict(model.named_parameters()), {}
    last = len(config.strides)
    inverse = 10000.0 ** (-torch.arange(0, config.rope_dims, 2) / config.rope_dims)
    for half, depths, inside in (("encoder", config.depths, 2), ("decoder", config.depths[::-1], 0)):
        convolutions = {"0": "conv_in", str(last + 2): "conv_out"}
        for block, depth in enumerate(depths):
            stride = (config.strides if half == "encoder" else config.strides[::-1])[block]
            if stride > 1 and half == "encoder":
                convolutions[f"{block + 1}.layers.1"] = f"downsample.{block}"
            if stride > 1 and half == "decoder":
                convolutions[f"{block + 1}.layers.2"] = f"upsample.{block}"
            for layer in range(depth):
                prefix = f"{half}.layers.{block + 1}.layers.{inside}.{layer + 1}"
                for published, name in LAYER.items():
                    state[f"{prefix}.{published}"] = ours[f"{half}.blocks.{block}.{layer}.{name}"]
                for norm in ("pre_norm", "ff_norm"):
                    state[f"{prefix}.{norm}.beta"] = torch.zeros(config.width)
                state[f"{prefix}.rope.inv_freq"] = inverse
        for published, name in convolutions.items():
            for part, key in (("weight_g", "original0"), ("weight_v", "original1")):
                state[f"{half}.layers.{published}.{part}"] = ours[f"{half}.{name}.conv.parametrizations.weight.{key}"]
            if f"{half}.{name}.conv.bias" in ours:
                state[f"{half}.layers.{published}.bias"] = ours[f"{half}.{name}.conv.bias"]
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def published_config(config: ModelConfig) -> dict:
    half = {
        "channels": config.width,
        "c_mults": [1] * len(config.strides),
        "strides": list(config.strides),
        "transformer_depths": list(config.depths),
        "sliding_window": list(config.window),
        "latent_dim": config.latent_dim,
        "use_snake": False,
        "layer_scale": True,
    }
    return {
        "model_type": "autoencoder",
        "sample_rate": config.sample_rate_hz,
        "model": {
            "encoder": {"type": "taae", "config": half | {"in_channels": config.patch_samples}},
            "decoder": {"type": "taae", "config": half | {"out_channels": config.patch_samples}},
            "bottleneck": {"type": "dithered_fsq", "config": {"dim": 6, "levels": 17, "noise_dropout": 0.5}},
            "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": config.patch_samples}},
            "latent_dim": config.latent_dim,
        },
        "_oracle": {"head_dim": config.head_dim, "rope_dims": config.rope_dims},
    }


class Published:
    def __init__(self, folder):
        self.config_path, self.weights_path = folder / "model_config.json", folder / "model.safetensors"
        self.model = TAAE(TINY)
        with torch.no_grad():  # lengths of 1 would hide a norm over the wrong dimension
            for name, parameter in self.model.named_parameters():
                if name.endswith("original0"):
                    parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))
        self.state = published_state(self.model)
        self.values = published_config(TINY)
        self.write()

    def write(self):
        self.config_path.write_text(json.dumps(self.values))
        save_file(self.state, self.weights_path)

    def load(self):
        return load_official_model(self.config_path, self.weights_path)


@pytest.fixture
def published(tmp_path):
    return Published(tmp_path)


def assert_same(model: TAAE, other: TAAE) -> None:
    latents = other.encode_latents(wav())
    torch.testing.assert_close(model.encode_latents(wav()), latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode_latents(latents), other.decode_latents(latents), rtol=0, atol=1e-6)


def test_a_published_checkpoint_gives_its_model_in_every_spelling(published, tmp_path):
    model, identity = published.load()
    assert_same(model, published.model)
    plain = published.state
    newer = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in plain.items()
    }
    random = {key: torch.randn_like(value) for key, value in plain.items()}
    spellings = {
        "plain.ckpt": {"state_dict": plain},
        "bare.ckpt": plain,
        "newer.ckpt": {"state_dict": newer},
        "tuned.ckpt": {"state_dict": {f"autoencoder.{key}": value for key, value in plain.items()}, "epoch": 3},
        # The average is what users want; the raw weights beside it differ.
        "ema.ckpt": {
            "state_dict": {f"autoencoder.{key}": value for key, value in random.items()}
            | {f"autoencoder_ema.ema_model.{key}": value for key, value in newer.items()}
            | {"discriminator.weight": torch.zeros(3), "autoencoder_ema.step": torch.tensor(3)}
        },
    }
    for name, contents in spellings.items():
        torch.save(contents, tmp_path / name)
        other, other_identity = load_official_model(published.config_path, tmp_path / name)
        assert_same(other, published.model)
        assert other_identity == identity, name


def test_window_and_head_size_of_a_published_checkpoint_reach_the_codec(published):
    codec = taae.load_official(published.config_path, published.weights_path)
    assert (codec.config.window, codec.config.head_dim, codec.hop_samples) == ((3, 4), 16, 16)
    assert codec.encode(wav(), "1x17^6").shape == (1, 13, 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state.pop("decoder.layers.0.bias"), "missing .*decoder.conv_in.conv.bias"),
        (lambda state: state.pop("encoder.layers.0.weight_g"), "direction .* but no length"),
        (lambda state: state.pop("encoder.layers.0.weight_v"), "length .* but no direction"),
        (lambda state: state.pop("encoder.layers.2.layers.2.2.ff.ff.2.bias"), "missing .*blocks.1.1.mlp.to_out.bias"),
        (lambda state: state.update({"encoder.layers.9.bias": torch.zeros(1)}), "unknown key encoder.layers.9.bias"),
        (lambda state: state.update({"encoder.layers.1.layers.2.1.alpha": torch.zeros(1)}), "unknown key .*alpha"),
        (lambda state: state.update({"encoder.layers.1.layers.2.3.pre_norm.gamma": torch.zeros(32)}), "unknown"),
        (lambda state: state.update({"encoder.layers.0.alpha": torch.zeros(1)}), "unknown key encoder.layers.0.alpha"),
        (lambda state: state.update({"decoder.layers.4.bias": torch.zeros(8)}), "unknown .*decoder.conv_out.conv.bias"),
        (lambda state: state.update({"quantizer.scale": torch.zeros(1)}), "unknown key quantizer.scale"),
        (
            lambda state: state.update({"encoder.layers.1.layers.2.1.pre_norm.beta": torch.ones(32)}),
            "pre_norm.beta holds other values",
        ),
        (
            lambda state: state.update({"encoder.layers.1.layers.2.1.rope.inv_freq": torch.ones(4)}),
            "inv_freq holds other values",
        ),
        (lambda state: state.update({"decoder.layers.0.bias": torch.zeros(31)}), r"is \(31,\), not \(32,\)"),
        (lambda state: state.clear(), "no encoder or decoder weights"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(published, change, why):
    change(published.state)
    published.write()
    with pytest.raises(ValueError, match=why):
        published.load()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m["encoder"]["config"].update(conformer=True), "conformer"),
        (lambda m: m["encoder"]["config"].update(use_snake=True), "use_snake"),
        (lambda m: m["encoder"]["config"].update(layer_scale=False), "layer_scale"),
        (lambda m: m["encoder"]["config"].update(c_mults=[1, 2]), "c_mults"),
        (lambda m: m["decoder"]["config"].update(strides=[2, 1]), "strides"),
        (lambda m: m["decoder"]["config"].update(sliding_window=[7, 8]), "sliding_window"),
        (lambda m: m["decoder"].update(soft_clip=True), "soft_clip"),
        (lambda m: m.pop("bottleneck"), "not a stable-codec configuration"),
        (lambda m: m["encoder"]["config"].update(channels=30), "multiple of head_dim"),
    ],
)
def test_a_configuration_of_another_model_is_refused(published, change, why):
    change(published.values["model"])
    published.write()
    with pytest.raises(ValueError, match=why):
        published.load()


def test_missing_and_broken_files_are_refused(published, tmp_path):
    with pytest.raises(ValueError, match="published one is called model_config.json"):
        load_official_model(tmp_path / "absent.json", published.weights_path)
    with pytest.raises(ValueError, match="no weights at"):
        load_official_model(published.config_path, tmp_path / "absent.ckpt")
    for name, contents in (
        ("a.safetensors", b"nothing"),
        ("a.ckpt", b"nothing"),
        ("b.ckpt", b""),
        ("c.ckpt", b"PK\3\4"),
    ):
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(ValueError, match="damaged|no checkpoint"):
            load_official_model(published.config_path, tmp_path / name)
    published.config_path.write_text("{")
    with pytest.raises(ValueError, match="not a stable-codec configuration"):
        published.load()


def test_a_checkpoint_that_would_run_code_is_refused(published, tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    torch.save({"state_dict": Harm()}, tmp_path / "harm.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
        load_official_model(published.config_path, tmp_path / "harm.ckpt")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "numbers.ckpt")
    with pytest.raises(ValueError, match="no state_dict of tensors"):
        load_official_model(published.config_path, tmp_path / "numbers.ckpt")


def test_without_a_head_size_the_configuration_has_the_published_one(published):
    del published.values["_oracle"]
    published.values["model"]["encoder"]["config"]["channels"] = 256
    published.values["model"]["decoder"]["config"]["channels"] = 256
    published.write()
    config = read_official_config(published.config_path)
    assert (config.head_dim, config.rope_dims, config.width) == (128, 64, 256)


def test_every_published_key_of_the_main_model_is_mapped(shared):
    path = shared / "reference" / "golden" / "keys.txt"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    config = load_preset("paper-950m")
    inverse = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    state = {}
    for key, shape, kind in rows:
        with torch.device("cpu" if kind == "buffer" else "meta"):
            state[key] = inverse if key.endswith("inv_freq") else torch.zeros(json.loads(shape))
    assert len(state) == 969
    with torch.device("meta"):
        model = TAAE(config).fuse_weight_norm()
    converted = convert_state(state, config)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    num_buffers = sum(kind == "buffer" for _, _, kind in rows)
    num_lengths = sum(key.endswith("weight_g") for key in state)
    assert len(state) == len(expected) + num_buffers + num_lengths
    assert sum(value.numel() for key, value in state.items() if value.device.type == "cpu") == 116_480
