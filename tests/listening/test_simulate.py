import csv
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.listening.small_study import NASTY_CELL, SYSTEMS, make_study, open_store, write_sounds
from workbench import figures_listening
from workbench.listening import cli, render, report, results, screening, simulate, stats, webmushra

ROOT = Path(__file__).resolve().parents[2]
TRUTH = simulate.Truth(
    quality={"fine": 80.0, "rough": 64.0, "coarse": 36.0, "anchor35": 20.0, "anchor70": 50.0}, sd_item=2.0
)
ORDER = ["reference", "fine", "rough", "anchor70", "coarse", "anchor35"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """24 simulated listeners, two of whom are careless, went through a study with training and repeats."""
    folder = tmp_path_factory.mktemp("finished")
    write_sounds(folder)
    training = [{"name": "training", "reference": "clips/item0.wav", "files": {n: f"{n}/item0.wav" for n in SYSTEMS}}]
    systems = [{"name": name} for name in SYSTEMS]
    items = [{"reference": f"clips/item{i}.wav", "files": {n: f"{n}/item{i}.wav" for n in SYSTEMS}} for i in range(4)]
    question = {"name": "equipment", "text": "With what?", "options": ["headphones", "speakers"]}
    values = {"items": items, "training_items": training, "systems": systems, "repeats_per_listener": 2}
    store, study = open_store(folder, questionnaire=[question], consent="yes", **values)
    simulate.simulate_store(store, study.name, 22, TRUTH)
    careless = simulate.Truth(quality=TRUTH.quality, careless=1.0, seed=9)
    simulate.simulate_store(store, study.name, 2, careless)
    yield store, study
    store.close()


def kept_ratings(store, study):
    frame = store.ratings_frame(study.name)
    test = frame[(frame["kind"] == "test") & frame["is_submitted"]]
    return screening.keep(test, screening.screen(test)), test, frame


def test_the_known_answer_comes_back(finished):
    store, study = finished
    kept, test, frame = kept_ratings(store, study)
    assert len(test) == 24 * 4 * 6 and len(frame) == 24 * (4 + 1 + 2) * 6
    out = screening.excluded(screening.screen(test))
    assert set(out) == {"S023", "S024"}  # the careless ones, for the hidden reference
    assert all("hidden reference below 90" in reason for reason in out.values())
    summary = stats.summary(kept)
    assert list(summary["system"]) == ORDER
    for row in summary.to_dict("records"):
        wanted = 97.6 if row["system"] == "reference" else TRUTH.of(row["system"])
        assert row["mean"] == pytest.approx(wanted, abs=5)  # strictness 6 and taste 4 over 22 listeners, items 2 over 4
    table = stats.table_of(kept)
    assert stats.friedman(table)["p"] < 1e-10
    pairs = stats.compare_pairs(table)
    assert (pairs["wilcoxon_holm"] < 0.05).all() and (pairs["permutation_holm"] < 0.05).all()
    for row in pairs.to_dict("records"):
        assert np.sign(row["difference"]) == np.sign(ORDER.index(row["b"]) - ORDER.index(row["a"]))
    effects = stats.mixed_model(kept, "rough")["effects"]
    assert effects["fine"]["difference"] == pytest.approx(16, abs=6) and effects["fine"]["p"] < 1e-6
    assert effects["coarse"]["difference"] == pytest.approx(-28, abs=6)


def test_equal_systems_are_not_told_apart(tmp_path):
    store, study = open_store(tmp_path, 4)
    same = simulate.Truth(quality=dict.fromkeys((*SYSTEMS, "anchor35", "anchor70"), 50.0), sd_item=0.0, seed=4)
    simulate.simulate_store(store, study.name, 16, same)
    table = stats.table_of(store.ratings_frame(study.name))[list(SYSTEMS)]
    assert stats.friedman(table)["p"] > 0.05
    assert (stats.compare_pairs(table)["permutation_holm"] > 0.05).all()
    store.close()


def test_simulated_listeners_are_marked_wherever_they_appear(finished, tmp_path):
    store, study = finished
    assert all(row["is_simulated"] for row in store.progress(study.name))
    assert store.studies()[0].num_simulated == 24 and store.studies()[0].num_joined == 0
    assert store.ratings_frame(study.name)["is_simulated"].all()
    rows = list(csv.DictReader(io.StringIO(results.export(store, study.name, "answers.csv").decode())))
    assert {row["is_simulated"] for row in rows} == {"True"}
    assert results.summary(store, study.name)["is_simulated"] is True
    with pytest.raises(ValueError, match="only simulated listeners; pass --simulated"):
        report.evaluate(store, study.name)
    assert "SIMULATED listeners" in report.as_text(report.evaluate(store, study.name, is_simulated=True))[0]
    assert webmushra.results_csv(store, study.name)["mushra.csv"].count("\n") == 1  # the head alone
    kept, _, _ = kept_ratings(store, study)
    figures: list[Any] = [figures_listening.mushra_boxes(kept), figures_listening.pair_differences(kept)]
    for figure in figures:
        assert figure.layout.title.text.startswith("SIMULATED: ")
        assert "n = 22 listeners, 4 items" in figure.layout.title.text
    mixed = pd.concat([kept, kept.assign(is_simulated=False, listener="L001")])
    with pytest.raises(ValueError, match="cannot share a figure"):
        figures_listening.mushra_boxes(mixed)


def test_the_webmushra_export_holds_every_rating_under_its_names(finished):
    store, study = finished
    text = webmushra.results_csv(store, study.name, is_simulated=True)["mushra.csv"]
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = "session_test_id equipment session_uuid trial_id rating_stimulus rating_score rating_time rating_comment"
    assert list(rows[0]) == columns.split()
    assert {row["session_test_id"] for row in rows} == {"small SIMULATED"}
    assert len(rows) == 24 * 6 * 6  # four tests and two repeats, no training
    frame = store.ratings_frame(study.name)
    frame = frame[frame["kind"] == "test"].set_index(["listener", "item", "system"])["score"]
    for row in rows:
        if "(repeat)" not in row["trial_id"]:
            score = frame.loc[(row["session_uuid"], row["trial_id"], row["rating_stimulus"])]
            assert float(row["rating_score"]) == score


def test_parquet_and_json_hold_the_same_scores(finished):
    store, study = finished
    parquet = pd.read_parquet(io.BytesIO(results.export(store, study.name, "answers.parquet")))
    from_json = pd.DataFrame(json.loads(results.export(store, study.name, "answers.json")))
    assert parquet["score"].tolist() == from_json["score"].tolist() == store.ratings_frame(study.name)["score"].tolist()


def test_cells_that_a_spreadsheet_would_run_are_made_inert():
    assert webmushra.inert(NASTY_CELL) == "'" + NASTY_CELL
    assert webmushra.inert("-5") == "-5" and webmushra.inert(-5.0) == "-5.0" and webmushra.inert("fine") == "fine"


def test_figures_show_the_hinges_that_the_tables_state(finished):
    store, study = finished
    kept, _, _ = kept_ratings(store, study)
    figure: Any = figures_listening.mushra_boxes(kept)
    boxes = [trace for trace in figure.data if trace.type == "box"]
    summary = stats.summary(kept)
    assert [box.median[0] for box in boxes] == summary["median"].tolist()
    assert [box.q1[0] for box in boxes] == summary["q1"].tolist()
    assert all("n = 22" in box.name for box in boxes)
    counts = {"academia": 15, "industry": 7, "no answer": 2}
    figure = figures_listening.demographics(counts, "Affiliation")
    assert figure.layout.title.text == "Affiliation (n = 22 of 24)"
    assert list(figure.data[0].text) == ["15 (68.2%)", "7 (31.8%)"]
    curve: Any = figures_listening.power_curves([5.0], num_items=10, num_systems=4).data[0]
    assert np.all(np.diff(curve.y) > 0)


@pytest.mark.parametrize("method", ["abx", "ab", "acr"])
def test_the_other_methods_come_back_too(tmp_path, method):
    store, study = open_store(tmp_path, 3, method=method, anchors_hz=[], repetitions=2 if method == "abx" else 1)
    # abx: fine differs from the reference by 2 points, coarse by 60
    truth = simulate.Truth(quality={"fine": 98.0, "rough": 70.0, "coarse": 40.0}, hears=1.6, seed=2)
    simulate.simulate_store(store, study.name, 16, truth)
    result = report.evaluate(store, study.name, is_simulated=True)
    if method == "acr":
        assert [row["system"] for row in result["systems"]] == ["reference", "fine", "rough", "coarse"]
    else:
        by_system = {({row["a"], row["b"]} - {"reference"}).pop(): row for row in result["pairs"]}
        assert by_system["coarse"]["p"] < 1e-6
        if method == "abx":
            assert by_system["coarse"]["proportion"] > 0.9 and by_system["fine"]["p"] > 0.05
            assert by_system["coarse"]["num_trials"] == 16 * 3 * 2
    assert "n = 16" in "\n".join(report.as_text(result))
    store.close()


def test_an_ear_tells_every_stimulus_through_its_dither_and_refuses_others(tmp_path):
    stimuli = render.render_study(make_study(tmp_path, 2), tmp_path / "data")
    ear = simulate.Ear(stimuli)
    for stimulus, salt in itertools.product(stimuli, (b"a", b"b")):
        assert ear.identify(render.salted_wav(stimulus.path, salt)) == (stimulus.item, stimulus.system)
    with pytest.raises(ValueError, match="not rendered for the study"):
        ear.identify((tmp_path / "clips" / "item0.wav").read_bytes())


def test_real_listeners_cannot_ask_what_they_hear(tmp_path):
    from workbench.listening.store import RefusedError

    store, study = open_store(tmp_path, 1)
    token = store.join(study.name).token
    with pytest.raises(RefusedError, match="only simulated"):
        store.sounds_behind(token, 0, ["A"])
    assert store.join(study.name, user_agent="SIMULATED listener").is_simulated
    store.close()


def test_a_study_runs_from_the_shell_from_file_to_statistics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(cli.app, arguments)
        return str(done.exception) if done.exception else done.stdout

    write_sounds(tmp_path)
    run("new", "first-test.toml", "--preset", "taae-paper")
    assert "exists" in run("new", "first-test.toml")
    text = Path("first-test.toml").read_text()
    systems = ", ".join(f'{{ name = "{name}", folder = "{name}" }}' for name in SYSTEMS)
    given = 'systems = ["taae 1x6^6", "taae 2x5^6", "codec2 700C"]'
    assert given in text
    Path("first-test.toml").write_text(text.replace(given, f"systems = [{systems}]\nnum_items = 4"))
    assert "16 sounds" in run("render", "first-test.toml")
    assert "not open" in run("simulate", "first-test")
    assert "first-test: open, 0 listeners" in run("status", "first-test", "open")
    assert "8 SIMULATED listeners finished" in run("simulate", "first-test", "--listeners", "8")
    assert "pass --simulated" in run("stats", "first-test")
    result = json.loads(run("stats", "first-test", "--simulated", "--json"))
    assert [row["system"] for row in result["systems"]] == ["reference", "fine", "rough", "coarse"]
    assert "8 of 8 SIMULATED listeners finished" in run("stats", "first-test", "--simulated")
    run("export", "first-test", "out")
    assert {"answers.csv", "answers.parquet", "webmushra.csv"} <= {path.name for path in Path("out").iterdir()}
    run("backup", "copy.sqlite")
    assert Path("copy.sqlite").stat().st_size > 10_000
    assert "no study 'other'" in run("stats", "other")
    assert "58 listeners" in run("plan", "5", "--items", "25", "--systems", "8")


def test_a_mistake_is_one_line_and_no_torch_is_needed_to_hear_about_it(tmp_path):
    code = "import sys; from workbench.listening.cli import main; sys.argv = ['x', 'render', 'gone.toml']\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr == "listening: no such study file: gone.toml\n"
