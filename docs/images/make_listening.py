"""Take the screenshots of docs/listening.md: `python docs/images/make_listening.py`; needs Chromium and c2enc."""

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "workbench" / "ui" / "examples"
TOKEN = "token-for-the-screenshots"
STUDY = """preset = "bs1534-3-strict"
name = "first-test"
title = "Speech at a few hundred bits per second"
is_strict = false                  # five short recordings are less than the standard asks for

items = "clips"
training_items = ["training/scottish-man.flac"]
systems = ["taae 2x5^6", "taae 1x6^6", "codec2 1200", "codec2 700C"]
"""
ABX = """name = "can-you-hear-it"
title = "0.4 or 0.7 kbit/s?"
method = "abx"
items = "clips"
systems = ["taae 1x6^6", "taae 2x5^6"]
pairs = [["taae 1x6^6", "taae 2x5^6"]]
prescreen = []
"""


QUICK = """name = "quick"
title = "Two codecs"
items = "clips"
systems = ["taae 2x5^6", "codec2 700C"]
prescreen = []
attention_per_listener = 1
"""


class Camera:
    """Pages of one server, and pictures of them."""

    def __init__(self, browser: Browser, url: str, folder: Path) -> None:
        self.browser, self.url, self.folder = browser, url, folder

    def open(self, path: str, width: int = 1280, height: int = 860, **options) -> Page:
        """A page in a browser that knows nothing of the others."""
        page = self.browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{self.url}{path}")
        return page

    def take(self, page: Page, name: str, *, is_whole: bool = True) -> None:
        """A picture with few colours, a quarter of the bytes."""
        page.mouse.move(0, 0)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=is_whole))).convert("RGB")
        if not is_whole:  # without the empty part of the page
            end = page.evaluate("Math.round(main.lastElementChild.getBoundingClientRect().bottom + 40)")
            picture = picture.crop((0, 0, picture.width, min(picture.height, end)))
        path = self.folder / f"listening-{name}.png"
        picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)

    def tour(self) -> None:
        """From an empty server to results."""
        admin = self.open("/admin")
        admin.locator("input").fill(TOKEN)
        admin.keyboard.press("Enter")
        admin.locator("text=New study").click()
        folder = admin.get_by_label("Folder")
        files = admin.get_by_label("Recordings")
        clips = sorted(EXAMPLES.glob("*.flac"))
        for name, chosen in {"training": clips[-1:], "clips": clips[:-1]}.items():
            folder.fill(name)
            files.set_input_files(chosen)
            admin.locator(".folders", has_text=name).wait_for()
        for text in (QUICK, ABX, STUDY):
            if admin.locator(".code").count() == 0:
                admin.goto(f"{self.url}/admin#new")
            admin.locator(".code").fill(text)
            if text is STUDY:
                admin.locator(".folders").wait_for()
                self.take(admin, "new")
            admin.locator(".primary", has_text="Create").click()
            admin.locator(".buttons .primary:not(:disabled)", has_text="Open").click()
            admin.locator(".link").wait_for()
        self.listen()
        admin.locator("button", has_text="Simulate 24").click()
        admin.locator(".results", has_text="24 of 24 finished").wait_for()
        self.take(admin, "results")
        admin.goto(f"{self.url}/admin")
        admin.locator(".study-card").first.wait_for()
        self.take(admin, "studies", is_whole=False)

    def listen(self) -> None:
        """Previews would be marked as such, so these are listeners; they never finish."""
        page = self.open("/t/first-test")
        page.locator(".consent").wait_for()
        self.take(page, "welcome", is_whole=False)
        self._to_trial(page)
        self._rate(page, 4)
        self.take(page, "mushra")
        phone = self.open("/t/first-test", 390, 844, has_touch=True, is_mobile=True, color_scheme="dark")
        self._to_trial(phone)
        self._rate(phone, 3)
        self.take(phone, "phone")
        abx = self.open("/t/can-you-hear-it")
        abx.locator(".primary").click()
        abx.locator(".steps").wait_for()
        abx.locator(".primary").click()
        for slot in "ABX":
            abx.locator(f".sound[data-slot={slot}]").click()
            abx.locator(f".sound.heard[data-slot={slot}]").wait_for()
        self.take(abx, "abx", is_whole=False)

        self._attention()

    def _attention(self) -> None:
        """Pages of a third study up to the first one that checks attention."""
        page = self.open("/t/quick")
        page.locator(".primary").click()
        page.locator(".steps").wait_for()
        page.locator(".primary").click()
        page.locator(".where", has_text="Page 1 of").wait_for()
        while page.locator(".question.instructed").count() == 0:
            where = page.locator(".where").inner_text()
            for button in page.locator(".sound").all():
                button.click()
                page.locator(f".sound.heard[data-slot={button.get_attribute('data-slot')}]").wait_for()
                if page.locator(".column.open input").count():
                    page.locator(".column.open input").fill("61")
            page.locator(".next[aria-disabled=false]").click()
            page.wait_for_function("was => !!document.querySelector('.trial') && was !== where.textContent", arg=where)
        page.locator(".sound[data-slot=A]").click()
        page.locator(".saved.saved", has_text="Saved").wait_for()
        self.take(page, "attention", is_whole=False)

    def _to_trial(self, page: Page) -> None:
        page.locator(".primary", has_text="agree").click()
        page.locator("form").wait_for()
        page.locator(".option", has_text="headphones").click()
        page.locator("form .primary").click()
        page.locator(".level .play").click()
        page.locator(".level .primary:not(:disabled)").click()
        page.locator(".check").wait_for()
        if page.viewport_size["width"] > 800:
            page.locator(".saved.saved").wait_for()
            self.take(page, "headphones", is_whole=False)
        for number in range(1, 7):
            page.locator(".check", has_text=f"Round {number} of 6").wait_for()
            page.locator(".check .primary").click()
            page.locator(".answers .answer:not(:disabled)").first.click()
        page.locator(".check .soft, .steps").first.wait_for()  # chance decides whether the machine has headphones
        if page.locator(".check .soft").count():
            page.locator(".check .soft").click()
        page.locator(".steps").wait_for()
        page.locator(".primary").click()
        page.locator(".trial").wait_for()

    def _rate(self, page: Page, count: int) -> None:
        page.locator(".sound[data-slot=R]").click()
        page.locator(".sound.heard[data-slot=R]").wait_for()
        for k, slot in enumerate("ABCDEFG"[:count]):
            page.locator(f".sound[data-slot={slot}]").click()
            page.locator(f".sound.heard[data-slot={slot}]").wait_for()
            page.locator(".column.open input").fill(str([62, 28, 97, 45][k]))
        page.locator(".saved.saved", has_text="Saved").wait_for()


def main() -> None:
    """Starts app.py on a free port with an empty folder, and stops it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "app.py", "--port", str(port), "--listening", folder]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TAAE_ADMIN_TOKEN": TOKEN})
        try:
            while server.poll() is None:
                try:
                    urlopen(f"{url}/admin").close()
                    break
                except OSError:
                    time.sleep(0.2)
            with sync_playwright() as playwright:
                flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
                Camera(browser, url, options.out).tour()
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
