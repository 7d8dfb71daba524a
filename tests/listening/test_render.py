import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.listening.small_study import make_study, write_sounds
from workbench.listening import peers, study_file
from workbench.listening.render import Stimulus, render_study, salted_wav


def samples(path_or_bytes):
    source = io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else path_or_bytes
    return np.asarray(soundfile.read(source, dtype="int32")[0], np.int32) >> 8


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    study = make_study(folder)
    return study, folder, render_study(study, folder / "data")


def of(stimuli: list[Stimulus], item: str, system: str) -> Stimulus:
    return next(s for s in stimuli if s.item == item and s.system == system)


def test_all_sounds_of_an_item_agree_in_size_rate_length_and_header(rendered):
    study, _, stimuli = rendered
    assert len(stimuli) == 4 * 6
    for item in ("item0", "item3"):
        files = [Path(s.path).read_bytes() for s in stimuli if s.item == item]
        assert len({len(data) for data in files}) == 1 and len({data[:44] for data in files}) == 1
        info = soundfile.info(io.BytesIO(files[0]))
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_24")


def test_all_sounds_are_at_the_level_of_the_study_but_anchors_keep_the_gain_of_their_reference(rendered):
    study, _, stimuli = rendered
    for stimulus in stimuli:
        if not stimulus.system.startswith("anchor"):
            assert stimulus.lufs == pytest.approx(-23, abs=0.01)
        else:
            assert stimulus.gain_db == of(stimuli, stimulus.item, "reference").gain_db


def test_no_two_slots_are_equal_in_bytes_and_all_sound_the_same(rendered):
    _, _, stimuli = rendered
    path = of(stimuli, "item0", "reference").path
    labelled, hidden = salted_wav(path, b"session 1, trial 0, R"), salted_wav(path, b"session 1, trial 0, C")
    assert labelled != hidden and len(labelled) == len(hidden) and labelled[:44] == hidden[:44]
    assert salted_wav(path, b"session 1, trial 0, R") == labelled  # a second fetch is the same file
    difference = samples(labelled) - samples(hidden)
    assert np.abs(difference).max() == 2  # steps of 24 bits
    # Most samples differ, so there is no stretch that a hash of a part would find.
    assert (difference != 0).mean() > 0.6
    assert samples(labelled).mean() == pytest.approx(samples(path).mean(), abs=0.05)


def test_rendering_again_gives_the_same_files_and_uses_the_cache(tmp_path, monkeypatch):
    class Counting:
        identity, bits_per_second, calls = "counting 1", 500.0, 0

        def reconstruct(self, wav, sample_rate_hz):
            Counting.calls += 1
            return 0.5 * wav

    monkeypatch.setattr("workbench.listening.render.open_codec", lambda text: Counting())
    study = make_study(tmp_path, 2, systems=["counting"])
    first = render_study(study, tmp_path / "data")
    assert Counting.calls == 2 and of(first, "item0", "counting").bits_per_second == 500
    assert render_study(study, tmp_path / "data") == first and Counting.calls == 2
    # Half as loud: matching the level has to undo exactly that.
    gain = of(first, "item0", "counting").gain_db - of(first, "item0", "reference").gain_db
    assert gain == pytest.approx(20 * np.log10(2), abs=1e-3)
    Counting.identity = "counting 2"
    render_study(study, tmp_path / "data")
    assert Counting.calls == 4


def test_levels_can_be_left_alone(tmp_path):
    stimuli = render_study(make_study(tmp_path, 1, matches_level=False), tmp_path / "data")
    assert len({stimulus.gain_db for stimulus in stimuli}) == 1


def test_a_peak_that_would_clip_takes_all_sounds_of_the_item_down(tmp_path):
    stimuli = render_study(make_study(tmp_path, 1, loudness_lufs=-6.0), tmp_path / "data")
    assert max(np.abs(samples(s.path)).max() for s in stimuli) == pytest.approx(0.98 * 2**23, abs=2)
    levels = [of(stimuli, "item0", system).lufs for system in ("reference", "fine", "rough", "coarse")]
    assert max(levels) < -7 and np.ptp(levels) < 0.05


def test_an_excerpt_is_cut_and_faded_and_higher_rates_become_48_khz(tmp_path):
    time_s = np.arange(96000 * 2) / 96000
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(2 * np.pi * 440 * time_s), 96000)
    item = {"name": "part", "reference": "long.wav", "start_s": 0.5, "stop_s": 1.5}
    study = study_file.resolve(
        {"name": "s", "title": "S", "items": [item], "systems": ["copy"], "anchors_hz": [3500]}, tmp_path
    )

    class Copy:
        identity, bits_per_second = "copy", float("nan")

        def reconstruct(self, wav, sample_rate_hz):
            assert sample_rate_hz == 48000
            return wav

    from workbench.listening import render

    original, render.open_codec = render.open_codec, lambda text: Copy()
    try:
        stimuli = render_study(study, tmp_path / "data")
    finally:
        render.open_codec = original
    reference = of(stimuli, "part", "reference")
    assert (reference.seconds, reference.sample_rate_hz) == (1.0, 48000)
    wav = samples(reference.path)
    assert abs(wav[0]) < 0.01 * np.abs(wav).max() and abs(wav[-1]) < 0.01 * np.abs(wav).max()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "fine" / "item1.wav").unlink(), "item 'item1': no file called item1.wav"),
        (lambda f: shutil.copy(f / "fine/item1.wav", f / "fine/item1.flac"), "2 files called item1.wav"),
        (lambda f: (f / "fine" / "item1.wav").write_bytes(b"RIFFnonsense"), "system 'fine': cannot read"),
        (lambda f: soundfile.write(f / "fine/item1.wav", np.ones(32000), 16000), "lasts 2.00 s, the reference 0.61 s"),
        (lambda f: soundfile.write(f / "clips/item1.wav", np.zeros(9760), 16000), "is silent; take another excerpt"),
        (lambda f: soundfile.write(f / "clips/item1.wav", np.ones(99), 16000), "lasts 0.01 s, may last 0.5 to 60 s"),
    ],
)
def test_a_sound_that_cannot_be_used_is_named_with_its_item(tmp_path, break_it, message):
    study = make_study(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError) as caught:
        render_study(study, tmp_path / "data")
    assert message in str(caught.value)


def test_a_sound_that_is_late_is_reported(tmp_path, caplog, speech):
    study = make_study(tmp_path, 1)
    wav = speech(2.0)
    soundfile.write(tmp_path / "clips" / "item0.wav", wav, 16000)
    for system, delay in (("fine", 0), ("rough", 640), ("coarse", 0)):
        soundfile.write(tmp_path / system / "item0.wav", np.concatenate([np.zeros(delay), wav])[: len(wav)], 16000)
    with caplog.at_level(logging.WARNING):
        render_study(study, tmp_path / "data")
    assert [record.getMessage() for record in caplog.records] == [
        "study 'small', item 'item0', system 'rough': 40 ms later than the reference"
    ]


def test_an_unknown_codec_is_refused_before_anything_is_rendered(tmp_path):
    with pytest.raises(ValueError, match="no codec 'mp3 128k'; write a family and a setting"):
        render_study(make_study(tmp_path, 1, systems=["mp3 128k"]), tmp_path / "data")


def test_the_embedded_codec_and_a_live_peer_are_rendered(tmp_path, speech):
    if shutil.which("c2enc") is None:
        pytest.skip("needs the Debian package codec2")
    write_sounds(tmp_path, 1)
    soundfile.write(tmp_path / "clips" / "item0.wav", speech(1.2), 16000)
    study = study_file.resolve(
        {"name": "s", "title": "S", "items": "clips", "systems": ["taae 2x5^6", "codec2 700C"]}, tmp_path
    )
    stimuli = render_study(study, tmp_path / "data")
    assert of(stimuli, "item0", "taae 2x5^6").bits_per_second == 700
    assert of(stimuli, "item0", "codec2 700C").bits_per_second == 700
    reference = samples(of(stimuli, "item0", "reference").path).astype(float)
    for system in ("taae 2x5^6", "codec2 700C"):
        coded = samples(of(stimuli, "item0", system).path).astype(float)
        energies = [np.convolve(wav**2, np.ones(800), mode="same") ** 0.5 for wav in (reference, coded)]
        assert np.asarray(np.corrcoef(energies))[0, 1] > 0.6  # the same syllables at the same time


def test_a_bottleneck_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="has 6 dimensions, not 8"):
        peers.open_codec("taae 1x5^8")
