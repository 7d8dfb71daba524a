"""Every notebook is thin, stripped and parameterised, and runs end to end in small."""

import ast
import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def code_of(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def parameters_of(path: Path) -> nbformat.NotebookNode:
    cells = [cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path.name} has {len(cells)} cells tagged parameters"
    return cells[0]


def test_there_are_notebooks():
    assert {"b1_layernorm_epsilon", "b4_filterbanks", "b5_discriminator_bias", "b5_learned_bias"} <= set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_holds_no_logic(path):
    tree = ast.parse("\n".join(code_of(path)))
    defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert defined == []
    lines = [line for source in code_of(path) for line in source.splitlines() if line.strip()]
    assert len(lines) <= 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_committed_as_written(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_parameters_are_typed_explained_and_small_in_the_tests(path):
    cell = parameters_of(path)
    mock = cell.metadata.nbmake.mock
    assert mock["profile"] == "small"
    defaults = {}
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name), f"not typed: {line}"
        assert "  # " in line, f"not explained: {line}"
        defaults[node.target.id] = ast.literal_eval(node.value)
    assert set(mock) <= set(defaults), f"mocks of no parameter: {set(mock) - set(defaults)}"
    assert all(mock[name] != defaults[name] for name in mock)
    # A parameter that nothing reads is a promise that is not kept.
    names = [n.id for source in code_of(path) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    assert [name for name in defaults if names.count(name) < 2] == []


@pytest.mark.notebook
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    from nbmake.nb_run import NotebookRun

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not one of the user's
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PLOTLY_RENDERER", "json")  # no copy of plotly.js
    result = NotebookRun(path, default_timeout=500).execute()
    assert result.error is None, result.error.trace
    outputs = [output for cell in result.nb.cells for output in cell.get("outputs", [])]
    shown = "".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    assert "Small profile: this run shows that the notebook works" in shown
    assert any("application/json" in output.get("data", {}) for output in outputs)  # a figure
