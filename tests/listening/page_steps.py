"""What a listener does on the page, one step each; every step waits until it has had its effect."""

import re

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def begin(page):
    """From the welcome to the first trial of a study without questionnaire and checks."""
    page.locator(".primary").click()
    page.locator(".steps").wait_for()
    page.locator(".primary").click()
    page.locator(".trial").wait_for()


def hear(page, slot: str):
    """Long enough for the rule of the studies here, 0.2 s."""
    page.locator(f".sound[data-slot='{slot}']").click()
    page.locator(f".sound.sounding[data-slot='{slot}']").wait_for()
    page.locator(f".sound.heard[data-slot='{slot}']").wait_for()


def rate(page, slot: str, score: int):
    hear(page, slot)
    page.locator(".column.open input").fill(str(score))


def slots(page) -> list[str]:
    return [button.get_attribute("data-slot") for button in page.locator(".column .sound").all()]


def saved(page):
    page.locator(".saved.saved", has_text=re.compile("^Saved$")).wait_for()


def fetched_ahead(page, trial: int, num_sounds: int):
    """All sounds of a coming page are in the browser."""
    page.wait_for_function(
        """([part, count]) => performance.getEntriesByType("resource")
          .filter(({ name, responseEnd }) => name.includes(part) && responseEnd > 0).length >= count""",
        arg=[f"/audio/{trial}/", num_sounds],
    )
