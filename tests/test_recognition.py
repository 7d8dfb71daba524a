import functools
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taae.audio import load_wav, to_mono
from workbench import recognition
from workbench.recognition import pocketsphinx_recogniser, transformers_recogniser, wer_table, word_errors

TEXTS = st.lists(st.sampled_from(["a", "be", "sea", "dee"]), max_size=8).map(" ".join)


@given(TEXTS.filter(bool), TEXTS)
def test_word_errors_are_those_of_jiwer(reference, hypothesis):
    jiwer = pytest.importorskip("jiwer")
    errors, count = word_errors(reference, hypothesis)
    assert errors / count == pytest.approx(jiwer.wer(reference, hypothesis))


def test_case_and_punctuation_are_no_words():
    assert word_errors("Well-known, isn’t it?", "WELL KNOWN ISN'T IT") == (0, 4)
    assert word_errors("one two three", "one four") == (2, 3)
    assert word_errors("", "noise") == (1, 0)


def said_by_peak(wav):
    return "loud words" if np.abs(wav).max() > 0.5 else "words"


def test_the_table_sets_coding_apart_from_the_recogniser():
    loud, soft = np.full(400, 0.9, "f4"), np.full(400, 0.1, "f4")
    table = wer_table(
        *([loud, loud], {"same": [loud, loud], "softer": [soft, loud]}, ["very loud words", None]),
        recogniser=lambda: said_by_peak,
    )
    assert table["original"]["wer"]["mean"] == pytest.approx(1 / 3)  # one clip has a transcript
    assert table["original"]["dwer"]["mean"] == table["same"]["dwer"]["mean"] == 0
    assert table["softer"]["wer"]["mean"] == pytest.approx(2 / 3) and table["softer"]["wer"]["num_words"] == 3
    dwer = table["softer"]["dwer"]
    assert dwer["mean"] == 1 / 4 and dwer["low"] == 0 and dwer["high"] == 0.5 and dwer["num_clips"] == 2
    assert table["softer"]["hypotheses"] == ["words", "loud words"]
    assert wer_table([loud], {}, recogniser=lambda: said_by_peak)["original"]["wer"] is None
    with pytest.raises(ValueError, match="same has 1 clips, there are 2 originals"):
        wer_table([loud, loud], {"same": [loud]}, recogniser=lambda: said_by_peak)


@pytest.mark.slow
def test_pocketsphinx_understands_speech_and_less_of_it_in_noise(shared):
    pytest.importorskip("pocketsphinx")
    lines = (shared / "speech/dev/manifest.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["language"] == "en" and row["transcript"]]
    rows = sorted(rows, key=lambda row: row["seconds"])[2:4]
    wavs = [to_mono(load_wav(shared / "speech/dev" / row["path"])[0]) for row in rows]
    rng = np.random.default_rng(0)
    noisy = [wav + 0.02 * rng.standard_normal(wav.size).astype("f4") for wav in wavs]
    table = wer_table(wavs, {"noisy": noisy}, [row["transcript"] for row in rows])
    assert table["original"]["wer"]["mean"] < 0.6 < table["noisy"]["wer"]["mean"]
    # The state of other clips does not leak into the next.
    assert pocketsphinx_recogniser()(wavs[1]) == table["original"]["hypotheses"][1]


def test_a_missing_recogniser_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    recognition._MADE.clear()
    with pytest.raises(ImportError, match="pip install pocketsphinx"):
        wer_table([np.zeros(100, "f4")], {})
    with pytest.raises(ValueError, match="hf download openai/whisper-base.en"):
        transformers_recogniser(tmp_path)


def test_a_recogniser_on_disk_is_used(tmp_path, speech):
    """A CTC network whose bias makes it say one letter a frame, so that the result is known."""
    transformers = pytest.importorskip("transformers")
    import torch

    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor()
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(tmp_path)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7, vocab_size=7
    )
    model = transformers.Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 1, 0]))
    model.save_pretrained(tmp_path)
    table = wer_table([speech(1.0)], {}, ["a"], recogniser=functools.partial(transformers_recogniser, str(tmp_path)))
    assert table["original"]["hypotheses"] == ["A"] and table["original"]["wer"]["mean"] == 0
