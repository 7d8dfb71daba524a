import json

import numpy as np
import pytest

from taae import audio
from taae.evaluate import evaluate, read_manifest, summarise

PLAIN = ["si_sdr", "stft_distance"]


class NoisyCodec:
    """Adds noise by bottleneck, and sends 25 frames a second."""

    name = "noisy"
    model_id = bytes(range(8))
    noise = {"1x6^6": 0.1, "2x5^6": 0.01, "continuous": 0.001}

    def __init__(self):
        self.calls = []

    def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
        self.calls.append(bottleneck)
        if wav.max() > 0.9:
            raise RuntimeError("too loud")
        noise = np.random.default_rng(0).standard_normal(wav.size) * self.noise[bottleneck]
        num_frames = -(-wav.size * 25 // sample_rate_hz)
        tokens = None if bottleneck == "continuous" else np.zeros((1, num_frames, int(bottleneck[0])), np.int64)
        return (wav + noise)[None, None], tokens


class BytesCodec:
    def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
        return wav, bytes(wav.size // 1000)


@pytest.fixture
def clips(tmp_path, speech):
    paths = []
    for index, rate in enumerate((16_000, 8_000)):
        paths.append((f"clip{index}", tmp_path / f"{index}.wav"))
        audio.save_wav(paths[-1][1], np.stack([speech(1, rate, seed=index)] * 2), rate)
    return paths


def test_rows_hold_size_rate_and_scores(clips):
    rows = evaluate(NoisyCodec(), clips, ["1x6^6", "2x5^6", "continuous"], metrics=PLAIN, progress=False)
    assert [(row["id"], row["bottleneck"]) for row in rows[:4]] == [
        ("clip0", "1x6^6"),
        ("clip0", "2x5^6"),
        ("clip0", "continuous"),
        ("clip1", "1x6^6"),
    ]
    for row in rows:
        assert row["seconds"] == 1.0
        # 25 frames of 16 or 28 bits, in whole bytes
        assert row["bytes"] == {"1x6^6": 50, "2x5^6": 88, "continuous": None}[row["bottleneck"]]
        assert row["bits_per_second"] == {"1x6^6": 400, "2x5^6": 704, "continuous": None}[row["bottleneck"]]
    assert rows[0]["si_sdr"] < rows[1]["si_sdr"] < rows[2]["si_sdr"]
    assert rows[0]["codec"] == "noisy 0001020304050607"


def test_another_codec_may_send_bytes(clips):
    (row,) = evaluate(BytesCodec(), clips[:1], ["6k"], metrics=PLAIN, progress=False)
    assert (row["codec"], row["bytes"], row["bits_per_second"]) == ("BytesCodec", 16, 128)


def test_a_resumed_run_computes_only_what_is_missing(clips, tmp_path):
    results = tmp_path / "rows.jsonl"
    first = evaluate(NoisyCodec(), clips[:1], ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    with results.open("a") as file:
        file.write('{"codec": "noisy 00010203')  # killed in the middle of a line
    codec = NoisyCodec()
    rows = evaluate(codec, clips, ["1x6^6", "2x5^6"], metrics=PLAIN, results_path=results, progress=False)
    assert codec.calls == ["2x5^6", "1x6^6", "2x5^6"]
    assert rows[0] == first[0]
    assert [json.loads(line) for line in results.read_text().splitlines()] == rows

    again = NoisyCodec()
    assert evaluate(again, clips, ["1x6^6", "2x5^6"], metrics=PLAIN, results_path=results, progress=False) == rows
    assert again.calls == []
    evaluate(again, clips, ["1x6^6"], metrics=["mel_distance"], results_path=results, progress=False)
    assert again.calls == ["1x6^6", "1x6^6"]  # those rows had no mel distance


def test_rows_of_another_codec_are_not_taken_over(clips, tmp_path):
    results = tmp_path / "rows.jsonl"
    evaluate(NoisyCodec(), clips, ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    other = NoisyCodec()
    other.model_id = bytes(8)
    rows = evaluate(other, clips, ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    assert other.calls == ["1x6^6", "1x6^6"]
    assert {row["codec"] for row in rows} == {"noisy 0000000000000000"}
    with pytest.raises(ValueError, match="several codecs"):
        summarise([json.loads(line) for line in results.read_text().splitlines()])


def test_a_failing_clip_is_reported_and_the_others_count(clips, tmp_path, caplog):
    audio.save_wav(tmp_path / "loud.wav", np.ones(1000, "f4"), 16_000)
    results = tmp_path / "rows.jsonl"
    bad = [("loud", tmp_path / "loud.wav"), ("missing", tmp_path / "missing.wav")]
    rows = evaluate(NoisyCodec(), [*bad, *clips], ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    assert rows[0]["error"] == "RuntimeError: too loud"
    assert rows[1]["error"].startswith("FileNotFoundError: no such audio file")
    assert "loud at 1x6^6 failed: too loud" in caplog.text
    summary = summarise(rows)["1x6^6"]
    assert (summary["num_clips"], summary["num_failed"]) == (2, 2)

    audio.save_wav(tmp_path / "missing.wav", np.zeros(16_000, "f4"), 16_000)  # failures are tried again
    again = evaluate(NoisyCodec(), bad, ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    assert "error" in again[0] and "error" not in again[1]


def test_an_undefined_metric_is_null_with_its_reason_and_leaves_the_mean_alone(clips, tmp_path):
    audio.save_wav(tmp_path / "silence.wav", np.zeros(16_000, "f4"), 16_000)
    results = tmp_path / "rows.jsonl"
    pairs = [*clips, ("silence", tmp_path / "silence.wav")]
    rows = evaluate(NoisyCodec(), pairs, ["1x6^6"], metrics=PLAIN, results_path=results, progress=False)
    assert rows[2]["si_sdr"] is None and rows[2]["reasons"] == dict.fromkeys(PLAIN, "the reference is silent")
    summary = summarise(rows)["1x6^6"]
    assert summary["si_sdr"]["num_clips"] == 2 and summary["num_clips"] == 3
    assert summary["si_sdr"]["mean"] == pytest.approx((rows[0]["si_sdr"] + rows[1]["si_sdr"]) / 2)
    assert summary["si_sdr"]["low"] <= summary["si_sdr"]["mean"] <= summary["si_sdr"]["high"]
    assert summary["bits_per_second"] == 400 and summary["seconds"] == 3


def test_mistakes_are_found_before_the_first_clip(clips, tmp_path):
    codec = NoisyCodec()
    with pytest.raises(ValueError, match="unknown metrics loudness"):
        evaluate(codec, clips, ["1x6^6"], metrics=["loudness"], progress=False)
    with pytest.raises(ValueError, match="these come twice: clip0"):
        evaluate(codec, [clips[0], clips[0]], ["1x6^6"], metrics=PLAIN, progress=False)
    for text in ("precious notes", "precious\nnotes", '{"id": 1}\n'):
        (tmp_path / "notes.txt").write_text(text)
        with pytest.raises(ValueError, match="rows? of an evaluation"):
            evaluate(codec, clips, ["1x6^6"], metrics=PLAIN, results_path=tmp_path / "notes.txt", progress=False)
        assert (tmp_path / "notes.txt").read_text() == text
    assert codec.calls == []


def test_manifest_paths_are_relative_to_the_manifest(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    line = {"path": "en/a.flac", "id": "a", "language": "en", "speaker": "s1", "seconds": 2.5, "licence": "CC0"}
    manifest.write_text(json.dumps(line) + "\n\n" + json.dumps(line | {"id": "b"}) + "\n")
    first, second = read_manifest(manifest)
    assert first.path == tmp_path / "en" / "a.flac"
    assert (first.id, first.language, first.speaker, first.seconds, second.id) == ("a", "en", "s1", 2.5, "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a"}\n', r"line 1: expected path, id, .*KeyError\('id'\)"),
        ("not json\n", "line 1"),
        ("[1]\n", "line 1"),
        ("\n", "lists no clips"),
        ('{"path": "a", "id": "a", "language": "", "speaker": "", "seconds": 1}\n' * 2, "come twice: a"),
    ],
)
def test_a_broken_manifest_names_the_line(text, message, tmp_path):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "m.jsonl")


def test_the_shared_manifest_lists_readable_clips(shared):
    clips = read_manifest(shared / "speech" / "dev" / "manifest.jsonl")
    clip = clips[0]
    wav, rate = audio.load_wav(clip.path)
    assert rate == 16_000 and wav.shape[1] / rate == pytest.approx(clip.seconds, abs=0.01)
