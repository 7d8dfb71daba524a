"""The runner: parameters, the cache, time limits, failures, and the report."""

import ast
import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from workbench import cli, execution, profiles, published, reproduce, sources, tables_facts, verdicts

ROOT = Path(__file__).resolve().parents[1]


def write_notebook(folder: Path, name: str, parameters: str, *sources: str) -> None:
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")


LEVELS = "from workbench import tables_facts\ntables_facts.table01().save(results)"


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks, and an empty cache."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(profiles, "NOTEBOOKS", folder)
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return folder


def test_every_published_table_and_figure_has_a_notebook():
    names = set(profiles.names())
    for number in range(1, 13):
        assert any(name.startswith(f"table{number:02d}_") for name in names)
    assert {"fig02_mushra", "fig03_length", "fig04_demographics", "text_numbers"} <= names
    assert {"00_start_here", "fsq_levels", "fsq_codebook_use", "latent_traversal"} <= names
    assert {"rate_distortion", "three_fsqs"} <= names
    assert reproduce.FIRST in names
    giving = [name for name in profiles.choose([], "smoke") if "results" in profiles.parameters(name)]
    assert len(giving) == 16


def test_notebooks_are_chosen_by_name_or_beginning():
    assert profiles.choose(["table02", "fsq"], "smoke") == [
        *("fsq_codebook_use", "fsq_levels", "table02_objective_metrics")
    ]
    with pytest.raises(ValueError, match="no notebook 'table13'"):
        profiles.choose(["table13"], "smoke")


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu", "full"])
def test_a_profile_names_parameters_that_exist(profile, monkeypatch):
    monkeypatch.setattr(profiles.notebook, "find_manifest", lambda name: Path(name))
    chosen = profiles.choose([], profile)
    known = {key for name in chosen for key in profiles.parameters(name)}
    assert set(profiles.PLANS[profile].values) - {"seconds"} <= known
    values = profiles.settings(chosen, profile, {})
    assert values["table02_objective_metrics"]["num_clips"] == {"smoke": 2, "cpu": 20, "gpu": 200, "full": 900}[profile]


def test_misspelt_and_wrong_parameters_are_refused():
    chosen = ["table02_objective_metrics", "table05_latent_rate"]
    with pytest.raises(ValueError, match="no notebook of this run has num_clip; they have checkpoint"):
        profiles.settings(chosen, "smoke", {"num_clip": 3})
    with pytest.raises(ValueError, match="num_clips of table02_objective_metrics is like 20, got 'many'"):
        profiles.settings(chosen, "smoke", {"num_clips": "many"})
    assert profiles.settings(chosen, "smoke", {"num_clips": 5})["table05_latent_rate"]["num_clips"] == 5
    assert profiles.setting("num_clips=5") == ("num_clips", 5)
    assert profiles.setting("checkpoint=runs/mine") == ("checkpoint", "runs/mine")
    assert profiles.setting("lengths_s=[3.0, 6]") == ("lengths_s", [3.0, 6])
    with pytest.raises(ValueError, match="KEY=VALUE"):
        profiles.setting("num_clips")
    answer = CliRunner().invoke(cli.app, ["reproduce", "--profile", "huge"])
    assert answer.exit_code == 2 and "profile must be one of smoke" in answer.output


def test_a_missing_manifest_becomes_the_examples_and_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TAAE_SHARED", str(tmp_path))
    values = profiles.settings(["table02_objective_metrics"], "cpu", {})
    assert values["table02_objective_metrics"]["manifest"] == ""
    assert "using the examples of the repository: no manifest at" in capsys.readouterr().err


def test_every_published_number_has_a_verdict_whatever_ran():
    outcomes = reproduce.complete([tables_facts.table01()])
    cells = [cell for outcome in outcomes for cell in outcome.cells]
    wanted = [number.id for table in published.load().values() for number in table.cells]
    assert [cell.id for cell in cells] == wanted and len(wanted) > 1000
    by_name = {outcome.name: outcome for outcome in outcomes}
    assert by_name["talk.levels"].counts() == {"exact": 17}
    assert by_name["table02"].counts() == {"not run": 117}


def test_a_run_is_kept_and_its_report_reads_offline(notebooks, tmp_path, capsys):
    figure = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2, word])).show()"
    write_notebook(
        notebooks, "table01_levels", 'results: str = ""  # file\nword: int = 3  # of the figure', LEVELS, figure
    )
    write_notebook(notebooks, "table99_broken", "seed: int = 0  # unused", "raise RuntimeError('on purpose')")
    folder, done = reproduce.run([], "smoke", given={"word": 7}, out=tmp_path / "first")
    assert [(ran.name, ran.status) for ran in done] == [("table01_levels", "ok"), ("table99_broken", "failed")]
    assert "on purpose" in done[1].error
    again, second = reproduce.run([], "smoke", given={"word": 7}, out=tmp_path / "second")
    assert [ran.status for ran in second] == ["cached", "failed"]
    assert second[0].outcome.rows() == done[0].outcome.rows()
    _, third = reproduce.run(["table01"], "smoke", given={"word": 8}, out=tmp_path / "third")
    assert third[0].status == "ok" and third[0].key != done[0].key  # another parameter, another hash

    html = (folder / "report.html").read_text()
    assert html.count("plotly.js v") >= 1 and not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", html)
    assert '"y": [1, 2, 7]' in html or '"y":[1,2,7]' in html
    assert "on purpose" in html and "Table 12" in html
    rows = list(csv.DictReader((folder / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == sum(len(table.cells) for table in published.load().values())
    assert all(row["verdict"] in verdicts.VERDICTS and row["reason"] for row in rows)
    assert all((row["ours"] == "") == (row["verdict"] == "not run") for row in rows)
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["notebooks"][0]["parameters"] == {"word": 7} and len(facts["source_sha256"]) == 64
    executed = nbformat.read(folder / "notebooks" / "table01_levels.ipynb", 4)
    assert any(cell.get("outputs") for cell in executed.cells)


def test_a_notebook_that_takes_too_long_is_stopped(notebooks, tmp_path):
    write_notebook(notebooks, "slow", "seed: int = 0  # unused", "while True:\n    pass")
    _, done = reproduce.run(["slow"], "smoke", limit_s=6, out=tmp_path / "out")
    assert (done[0].status, done[0].error) == ("out of time", "took more than 6 s of work")
    assert done[0].seconds < 100


def test_a_notebook_that_waits_for_nothing_is_stopped(notebooks, tmp_path):
    write_notebook(notebooks, "stuck", "seed: int = 0  # unused", "import time\ntime.sleep(600)")
    _, done = reproduce.run(["stuck"], "smoke", limit_s=6, out=tmp_path / "out")
    assert done[0].status == "out of time" and "did nothing for" in done[0].error
    assert done[0].seconds < 100


def test_work_is_counted_over_all_processes():
    loop = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
    code = (
        f"import subprocess, sys\n{loop.format(0.5)}subprocess.run([sys.executable, '-c', {loop.format(1)!r}])\n"
        "print(1, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()  # both have done their work, and the child is gone
        assert 1.5 <= execution.processor_seconds(process.pid) < 3
        process.stdin.close()
    assert execution.processor_seconds(process.pid) == 0


@pytest.mark.timeout(200)
def test_a_killed_run_goes_on_where_it_was(notebooks, tmp_path):
    write_notebook(notebooks, "table01_quick", 'results: str = ""  # file', LEVELS)
    marker = tmp_path / "second"
    slow = f"import pathlib, time\npath = pathlib.Path({str(marker)!r})\nif not path.exists():\n    time.sleep(600)"
    write_notebook(notebooks, "table02_slow", "seed: int = 0  # unused", slow)
    code = (
        "import sys; from pathlib import Path; from workbench import profiles, reproduce\n"
        f"profiles.NOTEBOOKS, reproduce.RUNS = Path({str(notebooks)!r}), Path({str(tmp_path / 'runs')!r})\n"
        f"reproduce.run([], 'smoke', out=Path({str(tmp_path / 'out')!r}), workers=1, limit_s=900)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    kept = tmp_path / "runs" / "reproduce-cache"
    for _ in range(1500):
        if list(kept.glob("*/done.json")):
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    children = subprocess.run(["pgrep", "-f", str(notebooks / "table02_slow.ipynb")], capture_output=True, text=True)
    for pid in map(int, children.stdout.split()):
        os.kill(pid, signal.SIGTERM)
    marker.touch()
    _, done = reproduce.run([], "smoke", out=tmp_path / "out", workers=1)
    assert [(ran.name, ran.status) for ran in done] == [("table01_quick", "cached"), ("table02_slow", "ok")]


def test_an_interrupted_run_leaves_no_process(notebooks, tmp_path):
    marker = tmp_path / "kernel"
    source = f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_notebook(notebooks, "slow", "seed: int = 0  # unused", source)
    code = (
        "from pathlib import Path; from workbench import profiles, reproduce\n"
        f"profiles.NOTEBOOKS, reproduce.RUNS = Path({str(notebooks)!r}), Path({str(tmp_path / 'runs')!r})\n"
        f"reproduce.run(['slow'], 'smoke', out=Path({str(tmp_path / 'out')!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in error
    for _ in range(100):
        if not Path(f"/proc/{marker.read_text()}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{marker.read_text()}").exists()


def test_missing_trainings_are_made_and_given_to_the_notebooks(notebooks, tmp_path, monkeypatch, capsys):
    shows = "from pathlib import Path\nprint(Path(toys).read_text() if toys else 'stored')"
    write_notebook(notebooks, "ablation_one", 'toys: str = ""  # file', shows)
    write_notebook(notebooks, "table98", "seed: int = 0  # unused", "seed")
    plan = dataclasses.replace(profiles.PLANS["cpu"], train_limit_s=60, values={})
    monkeypatch.setitem(profiles.PLANS, "cpu", plan)
    asked = []

    def train(results, limit_s, running):
        asked.append(limit_s)
        if len(asked) == 3:
            return "the speech is not here"
        results.write_text(f"trained {len(asked)}")
        return ""

    monkeypatch.setattr(reproduce.execution, "train_ablations", train)

    def shown(out, **more):
        folder, done = reproduce.run([], "cpu", out=tmp_path / out, **more)
        assert {ran.status for ran in done} <= {"ok", "cached"}
        return (folder / "notebooks" / "ablation_one.ipynb").read_text()

    assert "trained 1" in shown("first") and asked == [60]
    assert "beside them trains the small models that the ablations lack: at most 1 minutes" in capsys.readouterr().out
    assert "trained 2" in shown("second")  # another content, another key
    assert '"stored' in shown("third") and "the stored results: the speech is not here" in capsys.readouterr().out
    given = tmp_path / "mine.json"
    given.write_text("trained 1")
    assert "trained 1" in shown("fourth", given={"toys": str(given)}) and len(asked) == 3
    assert "cached      ablation_one" in capsys.readouterr().out  # the same content elsewhere


def test_what_code_depends_on_is_read_from_its_imports():
    of_tables = {path.relative_to(ROOT).as_posix() for path in sources.files_of("from workbench import tables")}
    assert {"workbench/tables.py", "workbench/measured.py", "workbench/baselines/classical.py"} <= of_tables
    assert {"taae/codec.py", "taae/pretrained/mini/model.safetensors", "data_manifests/published.json"} <= of_tables
    assert not [name for name in of_tables if "listening" in name or name == "workbench/report.py"]
    of_start = {path.relative_to(ROOT).as_posix() for path in sources.files_of(profiles.code("00_start_here"))}
    assert "workbench/figures_explore.py" in of_start and "workbench/tables.py" not in of_start
    assert sources.digest("from workbench import tables") != sources.digest("from workbench import report")


def test_the_key_follows_what_a_result_depends_on(notebooks, tmp_path, monkeypatch):
    write_notebook(notebooks, "one", "seed: int = 0  # x", "seed")
    plain = reproduce.key_of("one", {})
    assert reproduce.key_of("one", {"seed": 1}) != plain
    (tmp_path / "list.jsonl").write_text("{}\n")
    monkeypatch.setenv("TAAE_SHARED", str(tmp_path))
    with_list = reproduce.key_of("one", {"manifest": "list.jsonl"})
    (tmp_path / "list.jsonl").write_text("{ }\n")
    assert reproduce.key_of("one", {"manifest": "list.jsonl"}) != with_list
    write_notebook(notebooks, "one", "seed: int = 0  # x", "seed + 1")
    assert reproduce.key_of("one", {}) != plain


def test_the_command_lists_notebooks_without_running_any():
    answer = CliRunner().invoke(cli.app, ["reproduce", "table02", "--list"])
    assert answer.exit_code == 0 and answer.output.startswith("table02_objective_metrics")
    assert "num_clips=20" in answer.output


def test_one_thread_at_a_time_parses_sources(monkeypatch):
    """CPython 3.11 raises SystemError now and then when two do."""
    inside, most, parse = [], [], ast.parse

    def slow_parse(source, *rest, **named):
        inside.append(source)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(source)
        return parse(source, *rest, **named)

    monkeypatch.setattr(ast, "parse", slow_parse)
    codes = [f"import taae.fsq\nx = {number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(sources.files_of, codes))
    assert max(most) == 1 and len(most) >= 8 and found[0] == found[7]
