import numpy as np
import pytest

from taae import metrics
from taae.metrics_mosnet import MOSNet, find_weights, load_mosnet, mosnet_magnitudes, mosnet_score

WIDTHS = [1] + [width for width in (16, 32, 64, 128) for _ in range(3)]


@pytest.fixture(scope="module")
def arrays():
    """What the Keras file holds, in its order, with random values that keep the signal alive."""
    rng = np.random.default_rng(0)
    shapes = []
    for before, after in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        shapes += [(3, 3, before, after), (after,)]
    shapes += [(512, 512), (128, 512), (512,)] * 2 + [(256, 128), (128,), (128, 1), (1,)]
    return [
        (rng.standard_normal(shape) * (1.4 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.1)).astype("f4")
        for shape in shapes
    ]


@pytest.fixture(scope="module")
def weights(arrays, tmp_path_factory):
    """A file as `keras.Model.save_weights` of TensorFlow 2.0 writes it; layers without weights are groups too."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("mosnet") / "cnn_blstm.h5"
    layers = {"input_1": 0, "reshape": 0} | {f"conv2d{f'_{i}' if i else ''}": 2 for i in range(12)}
    layers |= {"reshape_1": 0, "bidirectional": 6, "time_distributed": 0, "time_distributed_1": 2, "dropout": 0}
    layers |= {"frame": 2, "avg": 0}
    rest = iter(arrays)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([name.encode() for name in layers])
        for layer, count in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}/part_{9 - index}:0".encode() for index in range(count)]  # not in alphabetical order
            group.attrs["weight_names"] = names
            for name in names:
                group[name.decode()] = next(rest)
    return path


def keras_forward(arrays, magnitudes):
    """The network in plain numpy, from the documentation of Keras: channels last, 'same' padding, gates i f c o."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    features = magnitudes[:, :, None].astype(np.float64)
    for index in range(12):
        kernel, bias = arrays[2 * index], arrays[2 * index + 1]
        stride = 3 if index % 3 == 2 else 1
        width = features.shape[1]
        out = -(-width // stride)
        total = max((out - 1) * stride + 3 - width, 0)
        padded = np.pad(features, ((1, 1), (total // 2, total - total // 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[:, ::stride]  # (t, f, c, 3, 3)
        features = np.maximum(np.einsum("tfcyx,yxco->tfo", windows, kernel) + bias, 0)
    frames = features.reshape(len(features), -1)
    outputs = []
    for offset, order in ((24, 1), (27, -1)):
        kernel, recurrent, bias = arrays[offset : offset + 3]
        h = c = np.zeros(128)
        states = []
        for frame in frames[::order]:
            i, f, g, o = np.split(frame @ kernel + h @ recurrent + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states.append(h)
        outputs.append(np.array(states)[::order])
    hidden = np.maximum(np.concatenate(outputs, 1) @ arrays[30] + arrays[31], 0)
    return (hidden @ arrays[32] + arrays[33])[:, 0]


def test_the_network_computes_what_keras_does(arrays, weights):
    import torch

    magnitudes = np.abs(np.random.default_rng(1).standard_normal((37, 257))).astype("f4")
    expected = keras_forward(arrays, magnitudes)
    with torch.inference_mode():
        scores = load_mosnet(weights)(torch.from_numpy(magnitudes)[None])[0].numpy()
    assert expected.std() > 0.01  # else nothing is compared
    np.testing.assert_allclose(scores, expected, atol=1e-4 * expected.std())  # float32 against float64


def test_the_size_is_that_of_the_original():
    # 1.18 million; torch's second set of LSTM biases, 2 x 512 zeros, does not count
    assert sum(parameter.numel() for parameter in MOSNet().parameters()) - 1024 == 1_178_721


def test_magnitudes_are_those_of_librosa(speech):
    librosa = pytest.importorskip("librosa")
    wav = speech(1.3)
    expected = librosa.stft(
        wav, n_fft=512, hop_length=256, win_length=512, window=np.hamming(512), center=True, pad_mode="reflect"
    )
    np.testing.assert_allclose(mosnet_magnitudes(wav), np.abs(expected).T, atol=1e-5 * np.abs(expected).max())


def test_mosnet_is_a_metric_where_its_weights_are(weights, arrays, speech, monkeypatch):
    monkeypatch.setenv("TAAE_MOSNET", str(weights))
    clean, noisy = speech(1.0), speech(1.0, seed=1)
    assert "mosnet" in metrics.check_metrics(None) and metrics.unavailable_metrics() == {}
    scores = metrics.score(clean, noisy, 16_000, ["mosnet"])
    assert scores["mosnet"] == pytest.approx(keras_forward(arrays, mosnet_magnitudes(noisy)).mean(), rel=1e-3)
    assert scores == metrics.score(noisy, noisy, 16_000, ["mosnet"])  # no reference is needed
    assert metrics.score(clean[:100], noisy[:100], 16_000, ["mosnet"], reasons=(reasons := {}))
    assert reasons == {"mosnet": "MOSNet needs 257 samples at 16 kHz"}


def test_missing_weights_say_how_to_get_them(monkeypatch, speech, tmp_path):
    monkeypatch.delenv("TAAE_MOSNET", raising=False)
    assert "mosnet" not in metrics.check_metrics(None)
    assert "unavailable: MOSNet needs its weights: download" in metrics.unavailable_metrics()["mosnet"]
    with pytest.raises(FileNotFoundError, match="github.com/lochenchou/MOSNet, set TAAE_MOSNET"):
        metrics.score(speech(1), speech(1), 16_000, ["mosnet"])
    with pytest.raises(FileNotFoundError, match="no MOSNet weights at .*nowhere"):
        find_weights(tmp_path / "nowhere.h5")
    with pytest.raises(FileNotFoundError, match="download"):
        mosnet_score(speech(1))


def test_another_file_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "text.h5").write_text("weights")
    with pytest.raises(ValueError, match=r"text.h5 is not a Keras file"):
        load_mosnet(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        file.create_group("dense").attrs["weight_names"] = [b"dense/kernel:0"]
        file["dense"]["dense/kernel:0"] = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"expected 34 arrays, the first \(3, 3, 1, 16\); got 1, the first \(4, 4\)"):
        load_mosnet(tmp_path / "other.h5")
