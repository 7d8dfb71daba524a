import sys

import numpy as np
import pytest

from taae import metrics
from taae.audio import load_wav, to_mono
from taae.evaluate import evaluate, read_manifest, summarise
from workbench import baselines, published
from workbench.baselines import AmrNb, Codec2, Opus, SpeechCodec, Speex, UnavailableError
from workbench.baselines.classical import ogg_packets
from workbench.baselines.protocol import envelope, pack_tokens

CLASSICAL = [name for name, entry in baselines.CATALOGUE.items() if entry.is_classical]


@pytest.fixture
def make():
    def load(name):
        try:
            return baselines.load(name)
        except UnavailableError as error:
            pytest.skip(str(error))

    return load


@pytest.mark.parametrize("name", ["Codec2 700C", "Speex nb0", "Speex wb2", "AMR-NB 4.75", "Opus 6k"])
def test_a_program_gives_as_many_samples_as_went_in_and_sounds_alike(name, make, speech):
    codec, wav = make(name), speech(1.7)
    assert isinstance(codec, SpeechCodec)
    (mode,) = codec.bitrates
    decoded, data = codec.reconstruct(wav, mode, sample_rate_hz=16_000)
    assert decoded.shape == wav.shape and isinstance(data, bytes)
    similarity = np.corrcoef(envelope(wav, 16_000), envelope(decoded, 16_000))[0, 1]
    assert similarity > 0.8
    # At any rate that comes: here the wav of a music player.
    again, _ = codec.reconstruct(np.repeat(wav, 3), mode, sample_rate_hz=48_000)
    assert again.shape == (3 * wav.size,)


@pytest.mark.parametrize("name", [name for name in CLASSICAL if not name.startswith(("Opus", "AMR"))])
def test_what_a_program_sends_has_its_nominal_rate(name, make, speech):
    codec = make(name)
    (rate,) = codec.bitrates.values()
    data = codec.encode(speech(4.0)[:: 16_000 // codec.sample_rate_hz], codec.mode).data
    # 4 s are whole frames; files would hold more, whole bytes for every frame and the silence at the end
    assert 8 * len(data) == pytest.approx(4 * rate, abs=8)


def test_programs_of_variable_rate_send_what_they_need(make, speech):
    amr, opus = make("AMR-NB 4.75"), make("Opus 6k")
    noise = np.random.default_rng(0).standard_normal(4 * 8000).astype("f4") * 0.1
    wav = speech(4.0)
    assert 8 * len(amr.encode(noise, "4.75").data) == pytest.approx(4 * 4750, abs=64)  # a silence frame at most
    pauses = np.concatenate([wav[::2][:8000], np.zeros(3 * 8000, "f4")])
    assert 8 * len(amr.encode(pauses, "4.75").data) < 0.7 * 4 * 4750
    assert 4000 < 8 * len(opus.encode(wav, "6k").data) / 4 < 7500


def test_the_delay_of_codec2_is_found(make, speech):
    codec = make("Codec2 1200")
    built_in = codec.delay_samples
    # Its analysis looks ahead and its synthesis overlaps: some tens of milliseconds, the same for every recording.
    delays = [codec.measure_delay([speech(3.0, seed=seed)], 16000) for seed in range(3)]
    assert max(delays) - min(delays) <= 40  # 5 ms
    assert abs(np.median(delays) - built_in) <= 40


@pytest.mark.parametrize(("name", "delay"), [("AMR-NB 12.2", 40), ("Speex wb2", 0), ("Opus 16k", 0)])
def test_delays_of_waveform_codecs_are_found_to_a_sample(name, delay, make, shared):
    codec = make(name)
    assert codec.delay_samples == delay
    clips = [clip for clip in read_manifest(shared / "speech/dev/manifest.jsonl") if clip.language == "en"][::9]
    wavs = [to_mono(load_wav(clip.path)[0]) for clip in clips]
    assert codec.measure_delay(wavs, 16_000, by_envelope=False) == pytest.approx(delay, abs=1)


def test_codec2_on_real_speech_scores_as_was_measured_elsewhere(make, shared):
    # On 25 clips of LibriSpeech: raw PESQ 2.12 and STOI 0.732 at 700 bit/s, 3.21 and 0.906 for AMR at 4.75 kbit/s.
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clips = [clip for clip in read_manifest(shared / "speech/dev/manifest.jsonl") if clip.language == "en"][::8][:5]
    for name, expected_pesq, expected_stoi in (("Codec2 700C", 2.12, 0.732), ("AMR-NB 4.75", 3.21, 0.906)):
        codec = make(name)
        rows = evaluate(codec, [(c.id, c.path) for c in clips], ["-"], metrics=["pesq_raw_nb", "stoi"], progress=False)
        (entry,) = summarise(rows).values()
        assert entry["pesq_raw_nb"]["mean"] == pytest.approx(expected_pesq, abs=0.3)  # five other clips
        assert entry["stoi"]["mean"] == pytest.approx(expected_stoi, abs=0.05)


def test_higher_rates_of_opus_sound_better(make, shared):
    pytest.importorskip("pesq")
    clip = read_manifest(shared / "speech/dev/manifest.jsonl")[0]
    wav = to_mono(load_wav(clip.path)[0])
    scores = [
        metrics.pesq_raw_nb(wav, make(f"Opus {rate}").reconstruct(wav, rate, sample_rate_hz=16_000)[0])
        for rate in ("6k", "12k")
    ]
    assert scores[1] > scores[0] + 0.4


def test_ogg_packets_span_pages():
    def page(segments, content):
        return b"OggS" + bytes(22) + bytes([len(segments), *segments]) + content

    data = page([2, 255], b"ab" + b"c" * 255) + page([1, 3], b"d" + b"efg")
    assert ogg_packets(data) == [b"ab", b"c" * 255 + b"d", b"efg"]
    with pytest.raises(ValueError, match="no Ogg page at byte 0"):
        ogg_packets(b"RIFF")


def test_tokens_are_packed_most_significant_bit_first():
    assert pack_tokens(np.array([[1, 5], [2, 6]]), (4, 8)) == bytes([0b01_101_10_1, 0b10_000000])
    assert len(pack_tokens(np.zeros((25, 2), np.int64), (15625, 15625))) == 88  # 700 bits


@pytest.mark.parametrize(
    ("family", "mode", "message"),
    [(Codec2, "800", "450, 700C"), (Speex, "nb9", "nb0, nb1"), (AmrNb, "5", "4.75, 5.15"), (Opus, "1k", "6k, 9k")],
)
def test_an_unknown_mode_is_named(family, mode, message):
    with pytest.raises(ValueError, match=message):
        family(mode)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("Codec2 450", "apt-get install codec2"),
        ("Speex nb0", "apt-get install speex"),
        ("AMR-NB 4.75", "apt-get install sox"),
        ("Opus 6k", "apt-get install opus-tools"),
    ],
)
def test_a_missing_program_is_named_with_its_package(name, command, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match=f"unavailable: needs .*, get it with: {command}"):
        baselines.load(name)


# The catalogue


def test_every_codec_of_the_paper_is_in_the_catalogue_with_its_facts():
    rows = {entry.row for entry in baselines.CATALOGUE.values()}
    assert {row.split()[0] for row in published.table("table02").rows} <= rows
    assert baselines.facts("Mimi") == {
        "Parameters (M)": "80",
        "RTF (5s)": "0.0047",
        "RTF (30s)": "0.0007",
        "RTF (60s)": "0.0003",
        "Max Per-Layer RF": "20s",
        "Total RF": "~320s",
        "Causal": "Yes",
        "Latency": "80ms",
        "Chunked Inference": "No",
        "Training Datasets": "Predominantly English speech (7 million hours)",
        "Multilingual Speech": "Likely",
        "Domain": "Speech",
        "#Params (M)": "80",
    }
    assert baselines.facts("stable-codec")["Max Per-Layer RF"] == "5.12s"
    assert baselines.facts("Codec2 450") == {}
    for ask in (baselines.facts, baselines.load):
        with pytest.raises(ValueError, match="no codec 'Lyra'; there are EnCodec, DAC"):
            ask("Lyra")


def test_what_is_not_here_says_how_to_get_it(monkeypatch, tmp_path):
    from workbench.baselines import neural, packages, unit_hifigan

    for module in (neural, packages, unit_hifigan):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    status = baselines.status()
    for name, needs in {
        "EnCodec": f"hf download facebook/encodec_24khz --local-dir {tmp_path}/encodec_24khz",
        "DAC": "hf download descript/dac_16khz",
        "Mimi": "hf download kyutai/mimi",
        "X-codec2": "hf download HKUSTAudio/xcodec2-hf",
        "SpeechTokenizer": "hf download fnlp/SpeechTokenizer",
        "SemantiCodec": "pip install git+https://github.com/haoheliu/SemantiCodec-inference.git",
        "HuBERT + unit HiFi-GAN": "hf download facebook/hubert-base-ls960",
        "stable-codec": "hf download stabilityai/stable-codec-speech-16k",
    }.items():
        assert "unavailable: needs " in status[name] and needs in status[name], status[name]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnavailableError, match=r"pip install 'taae-workbench\[baselines\]'"):
        baselines.load("Mimi")
