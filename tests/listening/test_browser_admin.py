"""The researcher's page in a real browser: from an empty server to results, files and a deleted listener."""

import csv
import io
import json
import re

import httpx
import numpy as np
import pytest

from tests.listening.conftest import NOISES, study_text, wav_bytes
from tests.listening.page_steps import PHONE, hear, rate, saved, slots

pytestmark = pytest.mark.browser
EQUIPMENT = '[{ name = "equipment", text = "With what?", options = ["headphones", "loudspeakers"] }]'


@pytest.fixture
def admin(server, open_page):
    page = open_page("", f"{server.url}/admin")
    page.locator("input[type=password]").fill(server.admin_token)
    page.keyboard.press("Enter")
    page.locator("a", has_text="New study").wait_for()
    return page


def confirm(page, name: str = "Yes"):
    page.locator("dialog[open] button", has_text=name).click()
    page.locator("dialog").wait_for(state="detached")


def rate_one_page(page, score: int):
    hear(page, "R")
    for slot in slots(page):
        rate(page, slot, score)
    page.locator(".next[aria-disabled=false]").click()


def download(page, label: str, row: str = "") -> bytes:
    with page.expect_download() as waiting:
        page.locator(".downloads p", has_text=row).locator(".chip", has_text=label).click()
    with open(waiting.value.path(), "rb") as file:
        return file.read()


def test_a_wrong_token_is_refused_and_the_right_one_stays_out_of_the_address(server, open_page):
    page = open_page("", f"{server.url}/admin")
    page.locator("input[type=password]").fill("not the token at all")
    page.locator("button", has_text="Enter").click()
    page.locator(".error", has_text="not the token").wait_for()
    page.goto(f"{server.url}/admin#token={server.admin_token}")
    page.reload()
    page.locator("a", has_text="New study").wait_for()
    assert page.url == f"{server.url}/admin"
    assert page.errors == []


def test_a_study_from_recordings_to_results_and_a_deleted_listener(server, admin, open_page, speech):
    # New: recordings, a study file with a mistake, then without.
    admin.locator("a", has_text="New study").click()
    admin.get_by_label("Folder").fill("fresh")
    sounds = [
        {"name": f"new{k}.wav", "mimeType": "audio/wav", "buffer": wav_bytes(speech(1.0, 16000, seed=k))}
        for k in range(2)
    ]
    broken = {"name": "broken.wav", "mimeType": "audio/wav", "buffer": b"no sound"}
    admin.get_by_label("Recordings").set_input_files([*sounds, broken])
    admin.locator(".uploads .error", has_text="broken.wav cannot be read as audio").wait_for()
    admin.locator(".folders", has_text="fresh 2 files: new0.wav, new1.wav").wait_for()
    for system in NOISES:
        rng = np.random.default_rng(0)
        for k in range(2):
            wav = speech(1.0, 16000, seed=k)
            noisy = wav_bytes(wav + NOISES[system] * rng.standard_normal(len(wav)))
            server.upload(system, f"new{k}.wav", noisy).raise_for_status()
    text = study_text("from-admin", items='"fresh"', questionnaire=EQUIPMENT)
    admin.get_by_label("Study file", exact=True).fill(text.replace("prescreen", "prescren"))
    admin.locator(".primary", has_text="Create").click()
    admin.locator(".error", has_text="unknown key prescren").wait_for()
    admin.get_by_label("Study file", exact=True).fill(text)
    admin.locator(".primary", has_text="Create").click()

    # Private: rendered, and nobody can see it.
    admin.locator(".buttons .primary:not(:disabled)", has_text="Open").wait_for()
    assert admin.locator(".head .status").inner_text() == "draft"
    assert admin.locator(".link").count() == 0
    assert httpx.get(f"{server.url}/api/t/from-admin").status_code == 404

    # Preview: marked, and it counts nowhere.
    with admin.expect_popup() as popup:
        admin.locator("button", has_text="Preview").click()
    preview = popup.value
    preview.set_default_timeout(120_000)
    preview.locator(".where", has_text="PREVIEW").wait_for()
    assert "#" not in preview.url
    preview.locator("form .primary").click()
    preview.locator(".steps").wait_for()
    preview.locator(".primary").click()
    preview.locator(".trial").wait_for()
    rate_one_page(preview, 50)
    preview.locator(".where", has_text="Page 2 of 2").wait_for()
    saved(preview)
    preview.close()
    assert admin.locator(".people").inner_text() == "Nobody has joined yet."

    # Open: a listener comes, and the page that is open shows how far they are.
    admin.locator(".buttons .primary", has_text="Open").click()
    admin.locator(".head .status.open").wait_for()
    link = admin.locator(".link a").get_attribute("href")
    listener = open_page("", f"{server.url}{link}")
    listener.locator(".primary").click()
    listener.locator(".option", has_text="headphones").click()
    listener.locator("form .primary").click()
    listener.locator(".steps").wait_for()
    listener.locator(".primary").click()
    listener.locator(".trial").wait_for()
    admin.locator(".people tr", has_text="L001").filter(has_text="0/2").wait_for()
    rate_one_page(listener, 95)
    admin.locator(".people tr", has_text="L001").filter(has_text="1/2").wait_for()
    listener.locator(".where", has_text="Page 2 of 2").wait_for()
    rate_one_page(listener, 92)
    listener.locator("h1", has_text="last page").wait_for()
    listener.locator(".primary").click()
    listener.locator("h1", has_text="Done").wait_for()
    admin.locator(".people tr", has_text="L001").filter(has_text="finished").wait_for()

    # Results and files.
    admin.locator(".results", has_text="1 listeners counted, 1 of 1 finished").wait_for()
    assert admin.locator(".results svg.plot .row").count() == 4
    assert admin.locator(".results svg.plot").first.locator("text", has_text="n = 1").count() == 4
    assert "headphones (n = 1)" in admin.locator(".results .group").inner_text()
    rows = list(csv.DictReader(io.StringIO(download(admin, "CSV", "Answers").decode())))
    assert sorted(float(row["score"]) for row in rows) == [92.0] * 4 + [95.0] * 4
    (person,) = json.loads(download(admin, "JSON", "Listeners"))
    assert person["answers"] == {"equipment": "headphones"}
    assert download(admin, "PARQUET", "Events")[:4] == b"PAR1"
    assert download(admin, "webMUSHRA CSV").startswith(b"session_test_id,equipment,session_uuid")

    # Left out with a cause, and taken back in.
    admin.locator("button", has_text="Leave out").click()
    admin.get_by_label("Cause").fill("wore one earbud")
    confirm(admin)
    admin.locator(".results", has_text="wore one earbud").wait_for()
    admin.locator("button", has_text="Take back in").click()
    admin.locator(".results svg.plot").wait_for()

    # Closed: who has the link is told so.
    admin.locator("button", has_text=re.compile("^Close$")).click()
    admin.locator(".head .status.closed").wait_for()
    late = open_page("", f"{server.url}{link}")
    late.locator("h1", has_text="closed").wait_for()

    # One listener's data on request: asked twice, then gone from page, files and session.
    admin.locator("button", has_text="Delete data").click()
    confirm(admin, "Cancel")
    admin.locator("button", has_text="Delete data").click()
    confirm(admin)
    admin.locator(".people", has_text="Nobody has joined yet.").wait_for()
    assert json.loads(download(admin, "JSON", "Answers")) == []
    listener.reload()
    listener.locator("h1", has_text="does not exist any more").wait_for()
    assert b"wore one earbud" not in (server.folder / "studies.sqlite").read_bytes()

    # The study itself.
    admin.locator("button", has_text=re.compile("^Delete$")).click()
    confirm(admin)
    admin.locator(".studies, .empty").first.wait_for()
    assert admin.locator(".study-card", has_text="from-admin").count() == 0
    assert admin.errors == [] and listener.errors == []


def test_simulated_listeners_are_marked_on_every_part_of_the_page(server, admin, make_study):
    study = make_study("show", questionnaire=EQUIPMENT, attention_per_listener="1", repeats_per_listener="1")
    admin.goto(f"{server.url}/admin#{study}")
    admin.locator("button", has_text="Simulate 24").click()
    admin.locator(".results", has_text="24 of 24 finished").wait_for()
    assert admin.locator(".results > p .badge").inner_text() == "SIMULATED"
    assert admin.locator(".people .badge").all_inner_texts() == ["SIMULATED"] * 24
    plots = admin.locator(".results svg.plot")
    assert plots.count() >= 1 and plots.locator(".mark").all_text_contents() == ["SIMULATED"] * plots.count()
    assert "SIMULATED" in admin.locator(".results h3", has_text="By equipment").inner_text()
    admin.locator("summary", has_text="Reliability").click()
    assert admin.locator("details[open] tbody tr").count() > 10
    admin.goto(f"{server.url}/admin#")
    admin.locator(".study-card", has_text=study).filter(has_text="24 SIMULATED").wait_for()
    assert admin.errors == []


def test_the_researchers_page_fits_a_phone(server, make_study, open_page):
    study = make_study("pocket")
    page = open_page(
        "", f"{server.url}/admin#token={server.admin_token}", viewport=PHONE, has_touch=True, is_mobile=True
    )
    page.locator(".study-card").first.wait_for()
    for place in ("", "new", study):
        page.goto(f"{server.url}/admin#{place}")
        page.locator({"": ".study-card", "new": ".code", study: ".downloads"}[place]).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], place
    assert page.errors == []
