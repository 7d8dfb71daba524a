"""An explorer in JupyterLab: a slider moves, and the picture follows."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("jupyterlab")
playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab that serves a copy of one explorer."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "fsq_levels.ipynb", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    own = {name: str(tmp_path / name.lower()) for name in (*names, "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    environment = os.environ | own | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    settings = tmp_path / "jupyterlab_settings_dir/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells off the screen are there too
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=test", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token=test").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
                time.sleep(0.2)
        yield f"{address}/lab/tree/fsq_levels.ipynb?token=test"
    finally:
        process.terminate()  # it stops its kernels
        process.wait(30)


def run_all(page):
    """Run every cell; asked again until one has begun, for JupyterLab forgets what it is told before it is ready."""
    begun = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(10):
        page.locator(".lm-MenuBar-item", has_text="Run").click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        try:
            return begun.first.wait_for(timeout=9_000)
        except playwright.TimeoutError:
            pass
    raise AssertionError(f"no cell was run; the notebook is: {page.locator('.jp-Notebook').inner_text()}")


@pytest.mark.slow
def test_a_slider_of_an_explorer_changes_its_picture(chromium, lab):
    with chromium.new_context(viewport={"width": 1100, "height": 3200}) as context:  # all cells are on screen
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.goto(lab)
        page.get_by_role("heading", name="Levels of FSQ").wait_for()
        run_all(page)
        title = page.locator(".js-plotly-plot .gtitle")
        title.filter(has_text="0.3 in 4x3^6: 0.25, off by +0.0500").first.wait_for()
        page.locator(".widget-hslider [role=slider]").focus()
        page.keyboard.press("ArrowRight")  # the next of the values, in twentieths
        title.filter(has_text="0.35 in 4x3^6").first.wait_for()
        page.locator(".widget-dropdown select").select_option("1x6^6")
        title.filter(has_text="0.35 in 1x6^6: 0.2, off by +0.1500").first.wait_for()
        assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
