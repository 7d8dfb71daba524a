"""Published cells get one verdict each, and the verdict is right."""

import numpy as np
import pytest

from workbench import (
    baselines,
    codec_facts,
    published,
    rows,
    tables,
    tables_codebook,
    tables_facts,
    tables_listening,
    verdicts,
)
from workbench.baselines.protocol import Encoded, Reconstructing
from workbench.measured import METRICS, Bench
from workbench.verdicts import TREND, Cell, claim, close, exact, not_run, trend


def number(number_id):
    return published.number(number_id)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(num_clips=1, scores=tmp_path_factory.mktemp("scores"))


def verdict_of(outcome, number_id):
    return next(cell.verdict for cell in outcome.cells if cell.id == number_id)


def test_printed_digits_decide_what_is_exact():
    pesq = number("table02/taae-700/pesq")  # 3.09
    assert [verdicts.agrees(pesq, ours) for ours in (3.0851, 3.0949, 3.0951, 3.084)] == [True, True, False, False]
    epsilon = next(n for n in published.table("text").cells if n.column == "Layer norm epsilon")  # 1 x 10^-2
    assert verdicts.agrees(epsilon, 0.01) and not verdicts.agrees(epsilon, 0.011)
    assert verdicts.agrees(number("table02/taae-no-quant/bps"), "–")
    assert verdicts.agrees(number("table11/mimi/causal"), "yes") and not verdicts.agrees(
        number("table11/mimi/causal"), "No"
    )


def test_better_depends_on_the_direction_of_the_metric():
    mel, stoi = number("table02/taae-700/mel"), number("table02/taae-700/stoi")  # 0.86, lower; 0.92, higher
    assert [close(mel, ours, 0.05, "").verdict for ours in (0.89, 0.80, 0.95)] == ["reproduced", "better", "differs"]
    assert [close(stoi, ours, 0.01, "").verdict for ours in (0.911, 0.95, 0.80)] == ["reproduced", "better", "differs"]


def test_a_trend_is_an_order_and_no_number():
    pesq = number("table02/taae-700/pesq")  # 3.09, above 2.96 at 400 and below 3.12 without quantisation
    assert trend(pesq, 1.5, [(2.96, 1.4), (3.12, 1.6)], "").verdict == TREND
    assert trend(pesq, 3.09, [(2.96, 3.2), (3.12, 3.3)], "").verdict == "differs"
    assert trend(pesq, 1.5, [(3.09, 1.9)], "").verdict == TREND  # equal in the paper
    assert trend(pesq, 1.5, [], "").verdict == "differs"


def test_what_did_not_run_has_a_reason_and_no_number():
    mel = number("table02/taae-700/mel")
    assert not_run(mel, "needs weights").ours is None
    with pytest.raises(ValueError, match="say what is missing"):
        not_run(mel, "")
    with pytest.raises(ValueError, match="does not go with"):
        Cell(id="x", row="", column="", printed="1", ours=1.0, verdict="not run", reason="x")
    with pytest.raises(ValueError, match="verdict must be one of"):
        Cell(id="x", row="", column="", printed="1", ours=1.0, verdict="fine", reason="x")  # type: ignore[arg-type]


def test_an_outcome_needs_every_cell_once():
    cells = [not_run(n, "later") for n in published.table("table03").cells]
    assert len(verdicts.outcome("table03", reversed(cells)).cells) == 10
    for wrong in (cells[1:], [*cells, cells[0]], [*cells, not_run(number("table02/taae-700/mel"), "x")]):
        with pytest.raises(RuntimeError, match="every published cell once"):
            verdicts.outcome("table03", wrong)


def test_an_outcome_survives_its_file(tmp_path):
    outcome = tables_facts.table01()
    outcome.save(tmp_path / "outcome.json")
    assert verdicts.load(tmp_path / "outcome.json").rows() == outcome.rows()
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not the outcome"):
        verdicts.load(tmp_path / "other.json")


def test_table_1_is_exact():
    assert tables_facts.table01().counts() == {"exact": 17}


def test_presets_have_the_parameters_of_table_4():
    sizes = {row: codec_facts.parameters(row) for row in ("240M", "540M", "950M")}
    assert sizes == pytest.approx({"240M": 239.696204, "540M": 537.263436, "950M": 953.319756})
    assert tables_facts.table04().counts()["reproduced"] == 3


def test_receptive_fields_of_table_11():
    outcome = tables_facts.table11()
    ours = {cell.id: cell.ours for cell in outcome.cells}
    assert ours["table11/taae-non-causal/max-per-layer-rf"] == pytest.approx(5.12)
    # 2 x (8 x 2.56 + 20 x 5.12); the paper's ~200 s leaves the first eight layers out.
    assert ours["table11/taae-non-causal/total-rf"] == pytest.approx(245.76)
    assert verdict_of(outcome, "table11/taae-non-causal/total-rf") == "differs"
    assert verdict_of(outcome, "table11/taae-causal/latency") == "exact"
    assert verdict_of(outcome, "table11/mimi/total-rf") == "reproduced"  # 2 x 8 layers x 20 s
    assert codec_facts.dac_receptive_fields_s()[1] == pytest.approx(0.724, abs=1e-3)


def test_numbers_in_the_text_that_differ_are_known():
    outcome = tables_facts.text()
    wrong = {cell.column: cell.ours for cell in outcome.cells if cell.verdict == "differs"}
    assert wrong == {"Clips of train-clean-360": 104014, "Largest gain of a layer norm": pytest.approx(20)}
    assert outcome.counts()["exact"] >= 36


def test_figure_4_has_22_answers_and_simulated_people_do_not_count():
    outcome = tables_facts.fig04()
    assert "only for 22 of" in outcome.notes[0]
    counts, is_simulated = tables_listening.demographics()
    assert is_simulated and sum(counts["Equipment"].values()) == 24
    assert tables_listening.fig04(counts, is_simulated=True).counts() == {"not run": 6}
    people = {"Affiliation": {"Academia": 15, "Industry": 7, "no answer": 2}}
    cells = {cell.id: cell for cell in tables_facts.fig04(people).cells}
    assert cells["fig04/affiliation/academia"].ours == pytest.approx(68.18, abs=0.01)


def test_the_talk_repeats_the_papers_verdicts():
    outcome = tables_facts.talk("talk.levels", tables_facts.table01())
    assert outcome.counts() == {"exact": 17}
    assert tables_facts.talk("talk.levels", None).counts() == {"not run": 17}


def test_simulated_ratings_are_marked_and_rank_as_their_truth():
    ratings = tables_listening.ratings(num_listeners=12, num_items=6)
    assert ratings["is_simulated"].all() and ratings["listener"].str.startswith("SIMULATED").all()
    outcome = tables_listening.fig02(ratings)
    assert [row["system"] for row in outcome.beside] == ["reference", *tables_listening.SYSTEMS]
    assert outcome.notes[0].startswith("SIMULATED") and outcome.setup["simulated"] is True
    with pytest.raises(ValueError, match="no database"):
        tables_listening.ratings("nowhere.sqlite", "study")


def test_table_2_has_rates_of_all_codecs_and_measures_the_embedded_model(bench):
    outcome = tables.table02(bench)
    rates = [c for c in outcome.cells if c.column in ("BPS", "TPF", "TPS")]
    assert {c.verdict for c in rates} == {"exact"} and len(rates) == 39
    ours = {c.id: c for c in outcome.cells}
    means = bench.ours(["1x6^6", "2x5^6"])
    stoi = ours["table02/taae-700/stoi"]
    assert stoi.ours == pytest.approx(means["2x5^6"]["stoi"]) and 0.6 < stoi.ours < 1
    assert stoi.verdict in (TREND, "differs") and "8.7M parameters" in stoi.reason
    missing = ours["table02/mimi-1100/pesq"]
    assert missing.verdict == "not run" and "hf download kyutai/mimi" in missing.reason
    assert [row["codec"] for row in outcome.beside] == list(tables.LIVE_PEERS)


def test_a_codec_whose_weights_are_here_is_measured(bench, monkeypatch):
    class Noisy(Reconstructing):
        name, sample_rate_hz, bitrates = "noisy", 16_000, {"1000": 1000.0, "2000": 2000.0}

        def encode(self, wav, mode):
            noise = np.random.default_rng(0).normal(0, 0.003 if mode == "2000" else 0.03, len(wav))
            return Encoded(mode=mode, num_samples=len(wav), data=b"", stream=(wav + noise).astype("<f4").tobytes())

        def decode(self, encoded):
            return np.frombuffer(encoded.stream, "<f4")

    monkeypatch.setitem(baselines.CATALOGUE, "DAC", baselines.Entry(make=Noisy, row="DAC"))
    cells = {c.id: c for c in tables.table02(Bench(num_clips=1)).cells}
    low, high = cells["table02/dac-1000/si-sdr"], cells["table02/dac-2000/si-sdr"]
    assert high.ours == pytest.approx(low.ours + 20, abs=0.5)  # a tenth of the noise
    assert high.verdict == "better" and "DAC on 1 clips" in high.reason


def test_rates_of_table_5_follow_from_equation_5(bench):
    outcome = tables.table05(bench)
    facts = [c for c in outcome.cells if c.column in ("Latent (Hz)", "FSQ d", "BPS", "TPF", "TPS")]
    assert {c.verdict for c in facts} == {"exact"}
    levels = {c.row: c.ours for c in outcome.cells if c.column == "FSQ L"}
    assert levels == {
        **{"12.5 Hz 4x8": 4, "12.5 Hz 5x8": 5, "12.5 Hz 9x8": 9, "12.5 Hz 17x8": 17},
        **{"25 Hz 6x6": 6, "25 Hz 17x6": 17},
    }
    assert verdict_of(outcome, "table05/12.5-hz-4x8/pesq") == "not run"


def test_a_language_that_loses_more_than_in_the_paper_differs(bench):
    english = published.table("table02").values("TAAE 700")
    pesq = number("table07/german-taae/pesq")  # 2.83, English 3.09: a loss of 0.26
    for ours, verdict in ((2.0, TREND), (1.7, TREND), (1.6, "differs")):
        cell = rows.against_english(pesq, {"pesq_raw_nb": ours}, {"pesq_raw_nb": 2.0}, english, bench, "de")
        assert cell.verdict == verdict
    outcome = tables.table07(bench)
    assert verdict_of(outcome, "table07/dutch-taae/stoi") == "not run"
    assert verdict_of(outcome, "table07/german-taae/stoi") != "not run"


def test_few_tokens_are_not_compared_and_the_notes_say_why(bench):
    outcome = tables_codebook.table09(bench)
    assert verdict_of(outcome, "table09/taae-700-bps/codebook-size") == "exact"
    assert verdict_of(outcome, "table09/taae-700-bps/huffman-coded") == "not run"
    assert "cannot exceed log2 N" in outcome.notes[0]
    assert verdict_of(outcome, "table09/semanticodec-acoustic/codebook-size") == "exact"
    counted = tables_codebook.table09(bench, tokens_per_code=0)
    cell = next(c for c in counted.cells if c.id == "table09/taae-700-bps-rfsq-1/normalized-entropy")
    assert 0 < cell.ours < 1 and cell.verdict in (TREND, "differs")


def test_every_measured_table_is_complete(bench):
    for make in (tables.table03, tables.table06, tables.table08):
        outcome = make(bench)
        assert len(outcome.cells) == len(published.table(outcome.name).cells)
        assert all(cell.reason for cell in outcome.cells)


def test_times_need_no_weights_and_a_cpu_is_no_h100():
    outcome = tables_facts.table10("mini", num_clips=1, lengths_s=(1, 2))
    assert verdict_of(outcome, "table10/taae/rtf-5s") == "not run"
    assert verdict_of(outcome, "table10/taae/parameters-m") == "reproduced"
    outcome = tables_facts.table10("mini", num_clips=1, lengths_s=(5, 30))
    cell = next(c for c in outcome.cells if c.id == "table10/taae/rtf-5s")
    assert cell.verdict in (TREND, "differs") and "CPU" in cell.reason and 0 < cell.ours < 10


def test_a_preset_without_weights_is_not_measured():
    with pytest.raises(ValueError, match="random weights"):
        _ = Bench(checkpoint="paper-950m").codec


def test_clips_come_from_all_over_and_in_one_language():
    clips = Bench(num_clips=2).clips()
    assert [clip.id for clip in clips] == ["american-man", "scottish-man"]
    assert [clip.id for clip in Bench().clips("fr")] == ["french"]
    assert Bench().clips("pl") == []


def test_claims_and_facts_keep_our_number():
    stoi = number("table02/taae-700/stoi")
    assert claim(stoi, 0.5, "why", holds=False).ours == 0.5 and exact(stoi, 0.92, "why").verdict == "exact"
    assert set(METRICS) == {n.metric for n in published.table("table02").cells if n.row == "TAAE 700"} - {
        *("bits_per_second", "tokens_per_frame", "tokens_per_second")
    }
