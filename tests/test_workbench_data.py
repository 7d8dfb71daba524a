import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from taae.evaluate import Clip, read_manifest
from workbench import datasets, published, rooms
from workbench.datasets import Card, LengthBins, Selection

ROOT = Path(__file__).parents[1]


def workbench(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workbench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """A corpus with the layout of LibriSpeech: 3 speakers, 40 clips of 1 to 20.5 s."""
    root = tmp_path_factory.mktemp("LibriSpeech")
    for index in range(40):
        speaker, chapter = 100 + index % 3, 7
        path = root / "test-clean" / f"{speaker}" / f"{chapter}" / f"{speaker}-{chapter}-{index:04}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(round((1 + index / 2) * 16_000)), 16_000)
    return root


@pytest.fixture(scope="module")
def mls(tmp_path_factory):
    """As MLS: splits, few short clips."""
    root = tmp_path_factory.mktemp("mls_polish")
    rng = np.random.default_rng(0)
    for index in range(24):
        split = ("train", "dev", "test")[index % 3]
        path = root / split / "audio" / "9" / "8" / f"9_8_{index:06}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 6.0 if index % 8 == 1 else 12.0
        soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * 16_000)), 16_000)
    return root


# Cards


def test_cards_hold_what_the_paper_says_of_its_data():
    cards = datasets.cards()
    libri_light, english = cards["libri-light"], cards["mls-english"]
    assert (libri_light.hours + english.hours) / 1000 == pytest.approx(
        published.number("text/4.1/training-data").value / 1000, rel=0.03
    )
    test_clean = cards["librispeech-test-clean"]
    assert test_clean.selection.num_clips == published.number("text/4.1/test-clips").value
    assert test_clean.selection.seconds == (5.0, 10.0)
    assert (min(test_clean.length_bins.centres_s), max(test_clean.length_bins.centres_s)) == (3, 25)
    assert cards["librispeech-train-clean-360"].hours == pytest.approx(360, rel=0.02)
    languages = {row.split()[0] for row in published.table("table07").rows}
    foreign = {name: card for name, card in cards.items() if name.startswith("mls-") and name != "mls-english"}
    assert {name.removeprefix("mls-").capitalize() for name in foreign} == languages
    for card in foreign.values():
        assert card.selection.num_clips == published.number("text/a.5/clips-a-language").value


def test_every_card_says_where_it_is_from_and_what_is_not_known():
    for card in datasets.cards().values():
        assert card.title and card.role and card.licence and card.citation and card.hours > 0
        assert card.sample_rate_hz == 16_000
        for archive in card.files:
            assert archive.url.startswith("https://")
            assert archive.bytes == "unverified" or archive.bytes > 10**8
            assert archive.md5 == "unverified" or len(bytes.fromhex(archive.md5)) == 16
            assert archive.sha256 == "unverified" or len(bytes.fromhex(archive.sha256)) == 32
        if card.layout == "manifest":
            rows = [json.loads(line) for line in gzip.decompress(card.listing.read_bytes()).decode().splitlines()]
            assert len(rows) == card.num_clips
            assert sum(row["seconds"] for row in rows) / 3600 == pytest.approx(card.hours, abs=0.05)
            assert all(row["sha256"] and row["licence"] for row in rows)
    with pytest.raises(ValueError, match="no data set 'vctk'; there are libri-light"):
        datasets.card("vctk")


# Lists and selections


def test_a_corpus_is_listed_with_speakers_lengths_and_checksums(librispeech):
    rows = list(datasets.clips(datasets.card("librispeech-test-clean"), librispeech, with_checksums=True))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows) and len(rows) == 40
    (row,) = (row for row in rows if row["id"] == "101-7-0004")
    assert row["seconds"] == 3.0 and row["speaker"] == "101" and row["language"] == "en"
    content = (librispeech / row["path"]).read_bytes()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_selection_follows_the_rule_and_its_seed_alone(librispeech):
    rows = list(datasets.clips(datasets.card("librispeech-test-clean"), librispeech))
    rule = Selection(seconds=(5.0, 10.0), num_clips=6, seed=1)
    chosen = datasets.select(rows, rule)
    assert len({row["id"] for row in chosen}) == 6
    assert all(5 <= row["seconds"] <= 10 and "not published" in row["selection"] for row in chosen)
    assert datasets.select(rows[::-1], rule) == chosen
    assert datasets.select(rows, replace(rule, seed=2)) != chosen
    everything = datasets.select(rows, replace(rule, num_clips=900))
    assert [row["seconds"] for row in sorted(everything, key=lambda row: row["seconds"])] == [
        5 + i / 2 for i in range(11)
    ]


def test_long_clips_are_cut_only_where_short_ones_do_not_suffice(mls):
    rows = list(datasets.clips(datasets.card("mls-polish"), mls))
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    rule = Selection(seconds=(5.0, 10.0), num_clips=10, seed=0, splits=("test", "dev"), crop=True)
    chosen = datasets.select(rows, rule)
    assert len(chosen) == 10 and all(row["split"] != "train" for row in chosen)
    whole = [row for row in chosen if "cut" not in row]
    assert len(whole) == sum(row["seconds"] == 6.0 and row["split"] != "train" for row in rows) > 0
    for row in chosen:
        if "cut" in row:
            assert row["id"].endswith("-cut") and row["cut"][0] == 0
            assert 5 <= row["cut"][1] == row["seconds"] <= 10


def test_length_bins_are_a_second_either_side_of_their_centre(librispeech):
    rows = list(datasets.clips(datasets.card("librispeech-test-clean"), librispeech))
    bins = LengthBins(centres_s=(3.0, 5.0, 15.0), half_width_s=1.0, max_clips=4, seed=0)
    chosen = datasets.select_by_length(rows, bins)
    assert [row["length_bin_s"] for row in chosen] == [3.0] * 4 + [5.0] * 4 + [15.0] * 4
    assert all(abs(row["seconds"] - row["length_bin_s"]) <= 1 for row in chosen)
    assert len({row["id"] for row in chosen}) == 12


def test_the_commands_build_verify_and_select(librispeech, mls, tmp_path):
    listing = tmp_path / "list.jsonl.gz"
    done = workbench("data", "build", "librispeech-test-clean", "--root", librispeech, "--out", listing, cwd=tmp_path)
    assert done.returncode == 0 and "40 clips" in done.stdout, done.stderr
    again = tmp_path / "again.jsonl.gz"
    card = datasets.card("librispeech-test-clean")
    datasets.write_listing(datasets.clips(card, librispeech, with_checksums=True), again)
    assert listing.read_bytes() == again.read_bytes()

    done = workbench("data", "select", "mls-polish", "--root", mls, "--out", "chosen", cwd=tmp_path)
    assert done.returncode == 0 and "only 16 clips fit, 500 were asked for" in done.stderr
    assert "not published" in done.stdout
    clips = read_manifest(tmp_path / "chosen" / "manifest.jsonl")
    assert len(clips) == 16
    for clip in clips:
        assert soundfile.info(clip.path).duration == pytest.approx(clip.seconds, abs=1e-3)
        assert 5 <= clip.seconds <= 10
    cut = next(clip for clip in clips if clip.id.endswith("-cut"))
    original = next(mls.rglob(f"{cut.id.removesuffix('-cut')}.flac"))
    wav, _ = soundfile.read(cut.path)
    np.testing.assert_array_equal(wav, soundfile.read(original)[0][: wav.size])

    done = workbench("data", "select", "libri-light", "--root", mls, "--out", "x", cwd=tmp_path)
    assert (
        done.returncode == 1
        and done.stderr.strip() == "workbench: libri-light has no rule for this; its role is training"
    )
    done = workbench("data", "build", "mls-dutch", "--root", tmp_path / "nowhere", cwd=tmp_path)
    assert done.returncode == 1 and "no recordings in" in done.stderr and "mls_dutch.tar.gz there" in done.stderr


def test_archives_are_compared_with_their_card(tmp_path):
    content = b"a tape archive"
    card = replace(
        datasets.card("librispeech-test-clean"),
        files=(
            datasets.Archive(
                url="https://x/a.tar", bytes=len(content), md5="unverified", sha256=hashlib.sha256(content).hexdigest()
            ),
            datasets.Archive(url="https://x/b.tar", bytes="unverified", md5="unverified", sha256="unverified"),
        ),
    )
    assert isinstance(card, Card)
    first, second = datasets.verify_archives(card, tmp_path)
    assert first == "a.tar: missing; get it with: wget -c https://x/a.tar" and second.startswith("b.tar: missing")
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(content)
    (unknown,) = datasets.verify_archives(card, tmp_path)
    assert unknown == f"b.tar: no checksum is known; its sha256 is {hashlib.sha256(content).hexdigest()}"
    (tmp_path / "a.tar").write_bytes(content[:-1] + b"!")
    assert datasets.verify_archives(card, tmp_path)[0].startswith("a.tar: sha256 is ")
    (tmp_path / "a.tar").write_bytes(content[:-1])
    assert datasets.verify_archives(card, tmp_path)[0] == "a.tar: 13 bytes, expected 14"


# Noise and rooms


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("kind", ["white", "speech-shaped", "babble"])
def test_noise_is_mixed_at_its_ratio(kind, snr_db, speech):
    wav = 0.05 * speech(2.0)
    talkers = [speech(3.0, seed=seed) for seed in range(1, 4)]
    noise = rooms.make_noise(kind, wav.size, np.random.default_rng(0), talkers)
    mixed = rooms.add_noise(wav, noise, snr_db)
    ratio = 10 * np.log10(np.sum(wav.astype("f8") ** 2) / np.sum((mixed - wav.astype("f8")) ** 2))
    assert ratio == pytest.approx(snr_db, abs=0.01)


def test_a_mix_that_would_clip_is_turned_down_as_a_whole(speech):
    wav = speech(1.0)
    mixed = rooms.add_noise(wav, np.random.default_rng(0).standard_normal(wav.size), -20)
    assert np.abs(mixed).max() == pytest.approx(0.99, abs=1e-3)


def test_speech_shaped_noise_has_the_spectrum_of_speech(speech):
    from scipy.signal import welch

    talkers = [speech(4.0, seed=seed) for seed in range(4)]
    noise = rooms.make_noise("speech-shaped", 160_000, np.random.default_rng(0), talkers)
    ours = welch(noise, nperseg=512)[1]
    theirs = np.mean([welch(talker, nperseg=512)[1] for talker in talkers], axis=0)
    level_db = 10 * np.log10(ours / theirs)[4:200]
    assert np.std(level_db) < 2 < np.std(10 * np.log10(theirs)[4:200])


@pytest.fixture(scope="module")
def response():
    return rooms.impulse_response(rooms.Room(reverberation_s=0.3))


def test_the_direct_sound_comes_first_after_its_way(response):
    room = rooms.Room(reverberation_s=0.3)
    distance = np.linalg.norm(np.subtract(room.talker_m, room.microphone_m))
    arrival = distance / rooms.SPEED_OF_SOUND_M_S * 16_000
    peak = int(np.abs(response[: int(arrival) + 20]).argmax())
    assert abs(peak - arrival) <= 1
    assert response[peak] == pytest.approx(1 / (4 * np.pi * distance), rel=0.25)  # cut between two samples
    assert np.abs(response[: peak - 41]).max() < 1e-3 * response[peak]


def test_energy_decays_as_the_room_was_asked_to(response):
    energy = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1])
    energy -= energy[0]
    start, end = (int(np.argmax(energy < level)) for level in (-5, -25))
    slope = np.polyfit(np.arange(start, end) / 16_000, energy[start:end], 1)[0]
    assert -60 / slope == pytest.approx(0.3, rel=0.25)  # Eyring's formula holds for a diffuse field, a box is not one


def test_talker_and_microphone_may_change_places(response):
    room = rooms.Room(reverberation_s=0.3)
    swapped = replace(room, talker_m=room.microphone_m, microphone_m=room.talker_m)
    np.testing.assert_allclose(rooms.impulse_response(swapped), response, atol=1e-9)


def test_the_first_echoes_are_those_of_the_six_walls():
    room = rooms.Room(
        size_m=(7.0, 5.0, 3.5), talker_m=(2.0, 1.5, 1.2), microphone_m=(4.2, 3.1, 1.9), reverberation_s=0.2
    )
    response = rooms.impulse_response(room)
    reflection = np.sqrt(1 - room.absorption)
    expected = np.zeros_like(response)
    talker, microphone = np.array(room.talker_m), np.array(room.microphone_m)
    images = [(talker, 1.0)]
    for axis in range(3):
        for wall in (0.0, room.size_m[axis]):
            image = talker.copy()
            image[axis] = 2 * wall - talker[axis]
            images.append((image, reflection))
    for image, gain in images:
        distance = np.linalg.norm(image - microphone)
        delay = distance / rooms.SPEED_OF_SOUND_M_S * 16_000
        at = np.arange(int(delay) - 39, int(delay) + 41)
        inside = (at >= 0) & (at < expected.size)
        expected[at[inside]] += (
            gain / (4 * np.pi * distance) * np.sinc(at - delay) * (0.5 + 0.5 * np.cos(np.pi * (at - delay) / 40))
        )[inside]
    expected = rooms._highpass(expected, 16_000)
    # Up to the first echo of two walls: one after the other, of two axes or of one.
    ways = [[abs(x - y), x + y, 2 * z - x - y] for x, y, z in zip(talker, microphone, room.size_m, strict=True)]
    straight, low, high = np.array(ways).T
    two_walls = [
        np.linalg.norm([*np.minimum(low, high)[[i, j]], straight[3 - i - j]]) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    first = int(min(two_walls) / rooms.SPEED_OF_SOUND_M_S * 16_000) - 41
    assert (
        sum(np.linalg.norm(image - microphone) / rooms.SPEED_OF_SOUND_M_S * 16_000 < first for image, _ in images) >= 2
    )
    np.testing.assert_allclose(response[:first], expected[:first], atol=1e-6)


def test_far_field_speech_keeps_its_length_level_and_place(speech):
    wav = speech(2.0)
    wet = rooms.far_field(wav, rooms.Room(reverberation_s=0.3))
    assert wet.shape == wav.shape
    assert np.mean(wet.astype("f8") ** 2) == pytest.approx(np.mean(wav.astype("f8") ** 2), rel=1e-4)
    lags = np.correlate(wet[4000:28_000].astype("f8"), wav[4100:27_900].astype("f8"))
    assert abs(int(lags.argmax()) - 100) <= 2


def test_rooms_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"\(9.0, 1.0, 1.0\) is not inside a room"):
        rooms.Room(talker_m=(9.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="no wall gives 0 s"):
        rooms.Room(reverberation_s=0)


def test_variants_are_seeded_and_remember_the_clean_clip(speech, tmp_path):
    clips = []
    for index in range(3):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.2 * speech(1.0, seed=index), 16_000)
        clips.append(Clip(id=f"clip{index}", path=path, language="en", speaker=f"s{index}", seconds=1.0))
    for folder in ("one", "two"):
        rooms.make_variant(clips, tmp_path / folder, noise="babble", snr_db=5.0, seed=3)
    rooms.make_variant(clips, tmp_path / "other", noise="babble", snr_db=5.0, seed=4)
    first, second, other = (
        soundfile.read(tmp_path / folder / "clip1.flac", dtype="int16")[0] for folder in ("one", "two", "other")
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    rows = [json.loads(line) for line in (tmp_path / "one" / "manifest.jsonl").read_text().splitlines()]
    assert [Path(row["clean_path"]) for row in rows] == [clip.path.resolve() for clip in clips]
    assert rows[0]["snr_db"] == 5.0 and rows[0]["noise"] == "babble" and rows[0]["reverberation_s"] is None
    assert [clip.id for clip in read_manifest(tmp_path / "one" / "manifest.jsonl")] == ["clip0", "clip1", "clip2"]
    with pytest.raises(ValueError, match="choose noise, a room or both"):
        rooms.make_variant(clips, tmp_path / "none")
