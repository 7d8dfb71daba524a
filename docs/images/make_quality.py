"""Draw quality over bitrate from stored results: `python docs/images/make_quality.py`, with Chromium and playwright."""

import io
import json
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from workbench.figures_quality import quality_over_bitrate

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results" / "quality-en.json"


def main() -> None:
    """Writes quality.png beside this file."""
    figure = quality_over_bitrate(json.loads(RESULTS.read_text())["rows"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 480})
        page.set_content(figure.to_html(include_plotlyjs=True))
        page.locator(".legend").wait_for()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(128, dither=Image.Dither.NONE).save(HERE / "quality.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
