"""Take the screenshot of the page: `python docs/images/make_page.py [--model mini]`, with Chromium and playwright."""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]


def take(url: str, path: Path, width: int) -> None:
    """Codes the first example at every bitrate and stops two seconds into 0.7 kbit/s."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(url)
        page.locator(".status", has_text="Ready").wait_for()
        for box in page.locator("#bitrates input").all():
            box.check()
        page.locator("#listen").click()
        page.locator(".version", has_text="0.7 kbit/s").click(timeout=120_000)
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)  # a quarter of the bytes
        browser.close()


def main() -> None:
    """Starts app.py on a free port, and stops it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "page.png")
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port), "--model", options.model], cwd=ROOT)
    try:
        while server.poll() is None:
            try:
                urlopen(f"http://127.0.0.1:{port}/").close()
                break
            except OSError:
                time.sleep(0.2)
        take(f"http://127.0.0.1:{port}/", options.out, options.width)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
