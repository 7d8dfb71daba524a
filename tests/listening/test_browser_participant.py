"""The listener's page in a real browser: a whole test, servers that die, two tabs, words that want to run, phones."""

import base64
import re

import numpy as np
import pytest

from tests.listening.page_steps import DESKTOP, PHONE, begin, fetched_ahead, hear, rate, saved, slots

pytestmark = pytest.mark.browser
INJECTION = "<img src=x onerror=window.ran=1><script>window.ran=1</script>${window.ran=1}{{7*7}}"
QUESTION = """[
  { name = "equipment", text = "With what?", options = ["headphones", "loudspeakers"], is_required = true },
  { name = "age", text = "How old?", kind = "number", minimum = 18.0, maximum = 99.0 }]""".replace("\n", "")


def scores(server, study: str) -> dict[tuple[int, str], float]:
    rows = server.admin.get(f"/studies/{study}/export/answers.json").json()
    return {(row["trial"], row["slot"]): row["score"] for row in rows}


def test_a_listener_goes_through_a_whole_test(server, make_study, open_page):
    study = make_study("whole", questionnaire=QUESTION, consent='"Do you agree?"', prescreen='["level"]')
    page = open_page(study)
    assert page.locator(".consent").inner_text() == "Do you agree?"
    page.locator(".primary").click()

    page.locator("form .primary").click()  # nothing answered yet
    assert "answer the marked" in page.locator(".error").inner_text()
    page.locator("input[type=number]").fill("7")
    page.locator("label", has_text="headphones").click()
    page.locator("form .primary").click()
    assert "from 18 to 99" in page.locator(".error").inner_text()
    page.locator("input[type=number]").fill("27.5")
    page.locator("form .primary").click()

    assert page.locator(".level .primary").is_disabled()
    page.locator(".level .play").click()
    page.locator(".level .primary:not(:disabled)").click()
    assert "3 pages" in page.locator(".card").inner_text()
    page.locator(".primary").click()

    given = {}
    for trial in range(3):
        page.locator(".where", has_text=f"Page {trial + 1} of 3").wait_for()
        names = slots(page)
        assert names == list("ABCD")  # three systems and the hidden reference
        hear(page, "R")
        for k, slot in enumerate(names):
            given[trial, slot] = 10 * trial + 20 * k + 1
            rate(page, slot, given[trial, slot])
        if trial == 1:
            page.locator(".remarks summary").click()
            page.locator(".remarks textarea").fill("a, b and R: l o u d")  # letters are no shortcuts here
        page.locator(".next").click()
    page.locator("textarea").fill("the end")
    page.locator(".primary").click()
    page.locator("h1", has_text="Done").wait_for()
    assert page.errors == []

    assert scores(server, study) == given
    rows = server.admin.get(f"/studies/{study}/export/answers.json").json()
    assert all(row["listened_s"] >= 0.2 and row["touched"] and row["is_submitted"] for row in rows)
    assert {row["comment"] for row in rows if row["trial"] == 1} == {"a, b and R: l o u d"}
    (listener,) = server.admin.get(f"/studies/{study}/export/listeners.json").json()
    assert listener["answers"] == {"equipment": "headphones", "age": 27.5}
    assert listener["prescreen"] == {"level": {"set": True}}
    assert listener["stage"] == "finished" and listener["comment"] == "the end"
    assert listener["sample_rate_hz"] == 16000
    events = server.admin.get(f"/studies/{study}/export/events.json").json()
    assert {"play", "stop", "switch"} <= {event["kind"] for event in events}
    first = [event["slot"] for event in events if event["trial"] == 0 and event["kind"] == "switch"]
    assert first == ["A", "B", "C", "D"]


def test_only_the_scale_of_the_sound_that_plays_can_be_moved(make_study, open_page):
    page = open_page(make_study("locked"))
    begin(page)
    assert [slider.is_disabled() for slider in page.locator("input[type=range]").all()] == [True] * 4
    hear(page, "B")
    assert [slider.is_disabled() for slider in page.locator("input[type=range]").all()] == [True, False, True, True]
    page.locator(".play").click()
    page.locator(".column.open").wait_for(state="detached")
    hear(page, "R")
    assert [slider.is_disabled() for slider in page.locator("input[type=range]").all()] == [True] * 4


def test_a_page_says_what_is_left_to_do(make_study, open_page):
    page = open_page(make_study("todo", must_listen_s="0.6"))
    begin(page)
    page.locator(".next").click(force=True)  # it is only said to be disabled, so that pressing it can explain
    todo = page.locator(".todo")
    assert todo.inner_text() == "Still to do: listen to the reference, A, B, C and D; rate A, B, C and D."
    for slot in "ABCD":
        rate(page, slot, 40)
    page.locator(".todo", has_text=re.compile("^Still to do: listen to the reference.$")).wait_for()
    assert page.locator(".next").get_attribute("aria-disabled") == "true"
    hear(page, "R")
    page.locator(".todo", has_text="All done").wait_for()


def test_the_keyboard_is_enough(server, make_study, open_page):
    study = make_study("keyboard")
    page = open_page(study)
    page.locator(".primary").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".steps").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".trial").wait_for()
    for slot, steps in {"A": 3, "B": -2, "C": 1, "D": -1}.items():
        page.keyboard.press(slot.lower())
        page.locator(f".sound.heard[data-slot='{slot}']").wait_for()
        for _ in range(abs(steps)):
            page.keyboard.press("PageUp" if steps > 0 else "PageDown")
        page.keyboard.press("ArrowUp")
    page.keyboard.press("r")
    page.locator(".sound.heard[data-slot='R']").wait_for()
    page.keyboard.press("[")
    page.keyboard.press("Escape")
    page.keyboard.press(" ")
    page.locator(".play[aria-label=Play]").wait_for()
    page.locator(".next[aria-disabled=false]").focus()
    page.keyboard.press("Enter")
    page.locator(".where", has_text="Page 2 of 3").wait_for()
    saved(page)
    assert scores(server, study) == {(0, "A"): 81, (0, "B"): 31, (0, "C"): 61, (0, "D"): 41}


def test_a_server_that_dies_and_comes_back_loses_nothing(server, make_study, open_page):
    study = make_study("unplugged")
    page = open_page(study)
    begin(page)
    hear(page, "R")
    rate(page, "A", 10)
    saved(page)
    fetched_ahead(page, trial=1, num_sounds=5)
    server.kill()
    for slot, score in {"B": 20, "C": 30, "D": 40, "A": 15}.items():
        rate(page, slot, score)
    page.locator(".saved.waiting", has_text="Not saved yet").wait_for()
    page.locator(".next").click()  # the next page is there although the server is not
    page.locator(".where", has_text="Page 2 of 3").wait_for()
    rate(page, "A", 55)
    page.locator(".saved.waiting").wait_for()
    server.start()
    page.evaluate("window.dispatchEvent(new Event('online'))")  # a browser says so when its network is back
    saved(page)
    assert scores(server, study) == {(0, "A"): 15, (0, "B"): 20, (0, "C"): 30, (0, "D"): 40, (1, "A"): 55}
    assert page.errors == []


def test_a_page_that_is_closed_while_the_server_is_away_sends_the_rest_later(server, make_study, open_page):
    study = make_study("closed-tab")
    page = open_page(study)
    begin(page)
    rate(page, "A", 10)
    saved(page)
    server.kill()
    rate(page, "B", 22)
    page.locator(".saved.waiting").wait_for()
    again = page.again
    page.close(run_before_unload=False)
    server.start()
    page = again()
    page.locator(".trial").wait_for()
    saved(page)
    assert scores(server, study) == {(0, "A"): 10, (0, "B"): 22}
    assert [page.locator("output").nth(k).inner_text() for k in range(4)] == ["10", "22", "–", "–"]
    assert page.locator(".where").inner_text() == "Page 1 of 3"


def test_a_double_click_on_next_submits_one_page(server, make_study, open_page):
    study = make_study("double")
    page = open_page(study)
    page.locator(".primary").dblclick()  # one listener, not two
    page.locator(".steps").wait_for()
    page.locator(".primary").click()
    page.locator(".trial").wait_for()
    hear(page, "R")
    for slot in slots(page):
        rate(page, slot, 50)
    page.evaluate("document.querySelector('.next').click(); document.querySelector('.next')?.click()")
    page.locator(".where", has_text="Page 2 of 3").wait_for()
    saved(page)
    (listener,) = server.admin.get(f"/studies/{study}").json()["listeners"]
    assert listener["num_submitted"] == 1


def test_the_newer_of_two_tabs_goes_on_and_the_older_one_stops(server, make_study, open_page):
    study = make_study("two-tabs")
    first = open_page(study)
    begin(first)
    rate(first, "A", 30)
    saved(first)
    second = first.again()
    second.locator(".trial").wait_for()
    first.locator("h1", has_text="in another tab").wait_for()
    assert first.locator("input").count() == 0
    assert second.locator("output").first.inner_text() == "30"
    rate(second, "A", 60)
    saved(second)
    first.locator(".primary", has_text="Go on here").click()
    first.locator(".trial").wait_for()
    second.locator("h1", has_text="in another tab").wait_for()
    assert first.locator("output").first.inner_text() == "60"
    rate(first, "A", 65)
    saved(first)
    assert scores(server, study) == {(0, "A"): 65}
    assert len(server.admin.get(f"/studies/{study}").json()["listeners"]) == 1


def test_words_of_researchers_and_listeners_never_run(server, make_study, open_page):
    text = "'" + INJECTION + "'"
    study = make_study(
        "injection",
        question=text,
        consent=text,
        instructions=text,
        thanks=text,
        scale=f"[{', '.join([text] * 5)}]",
        questionnaire=f"[{{ name = 'remark', text = {text}, options = [{text}, 'other'] }}]",
    )
    page = open_page(study)
    assert page.locator(".consent").inner_text() == INJECTION
    page.locator(".primary").click()
    page.locator(".option", has_text="onerror").click()
    page.locator("form .primary").click()
    page.locator(".steps").wait_for()
    page.locator(".primary").click()
    page.locator(".trial").wait_for()
    assert page.locator(".question p").inner_text() == INJECTION
    hear(page, "R")
    for slot in slots(page):
        rate(page, slot, 95)  # who puts the hidden reference below 90 is left out of the results
    page.locator(".remarks summary").click()
    page.locator(".remarks textarea").fill(INJECTION)
    page.locator(".next").click()
    page.locator(".where", has_text="Page 2 of 3").wait_for()
    saved(page)
    assert page.evaluate("window.ran") is None
    assert page.locator("img, main script").count() == 0

    admin = open_page("", f"{server.url}/admin#token={server.admin_token}")
    admin.locator(".study-card").first.wait_for()
    admin.goto(f"{server.url}/admin#{study}")
    admin.locator(".plot").wait_for()
    assert INJECTION in admin.locator(".results").inner_text()  # an answer of the questionnaire
    assert admin.evaluate("window.ran") is None
    assert admin.locator("img, main script").count() == 0
    assert page.errors == admin.errors == []


@pytest.mark.parametrize(
    ("method", "answers"), [("abx", ["A", "B"]), ("ab", ["A", "B", "none"]), ("acr", list("54321"))]
)
def test_one_answer_is_asked_of_abx_ab_and_acr(server, make_study, open_page, method, answers):
    more = {"allows_no_preference": "true"} if method == "ab" else {}
    study = make_study(f"choice-{method}", method, **more)
    page = open_page(study)
    begin(page)
    assert [button.get_attribute("data-answer") for button in page.locator(".answer").all()] == answers
    for button in page.locator(".sound").all():
        hear(page, button.get_attribute("data-slot"))
    assert "choose an answer" in page.locator(".todo").inner_text()
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.locator(".next[aria-disabled=false]").click()
    page.locator(".where", has_text="Page 2 of").wait_for()
    saved(page)
    (row,) = server.admin.get(f"/studies/{study}/export/answers.json").json()
    assert row["answer"] == answers[1] and row["is_submitted"]
    assert page.errors == []


@pytest.mark.parametrize("method", ["mushra", "abx"])
def test_a_page_that_checks_attention_says_so_in_place_of_its_question(server, make_study, open_page, method):
    study = make_study(f"attention-{method}", method, attention_per_listener="1", question='"How is it?"')
    page = open_page(study)
    begin(page)
    pages = 3 + 1 if method == "mushra" else 9 + 1
    for number in range(pages):
        page.locator(".where", has_text=f"Page {number + 1} of {pages}").wait_for()
        is_check = page.locator(".question.instructed").count() == 1
        text = page.locator(".question").inner_text()
        assert is_check == (text != "How is it?") and is_check == ("This page checks" in text)
        for button in page.locator(".sound").all():
            hear(page, button.get_attribute("data-slot"))
            if page.locator(".column.open input").count():
                low = int(re.search(r"between (\d+)", text).group(1)) if is_check else 45
                page.locator(".column.open input").fill(str(low + 7))
        if method == "abx":
            wanted = re.search("“(.*)”", text)
            page.locator(".answer", has_text=wanted.group(1) if wanted else "X is A").click()
        page.locator(".next[aria-disabled=false]").click()
        if is_check:
            break
    page.locator(".where", has_text=f"Page {number + 2} of {pages}").wait_for()
    saved(page)
    rows = server.admin.get(f"/studies/{study}/export/answers.json").json()
    assert {row["kind"] for row in rows} == {"test", "attention"}
    results = server.admin.get(f"/studies/{study}/results").json()
    assert results["flagged"] == {}
    assert page.errors == []


@pytest.mark.parametrize("method", ["mushra", "abx"])
def test_a_phone_needs_no_sideways_scrolling(make_study, open_page, method):
    page = open_page(make_study(f"phone-{method}", method), viewport=PHONE, has_touch=True, is_mobile=True)
    for step in (".card .primary", ".steps", ".trial"):
        page.locator(step).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        too_wide = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility() &&
              e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.className)"""
        )
        assert too_wide == []
        if step != ".trial":
            page.locator(".primary").click()
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, summary, input")].filter((e) => e.checkVisibility() &&
          e.getBoundingClientRect().height < 40).map((e) => e.className || e.textContent)"""
    )
    assert small == []  # a thumb has to hit it


@pytest.mark.parametrize("size", [(768, 1024), (844, 390), (1000, 700)])
def test_twelve_signals_fit_a_tablet(server, make_study, open_page, size):
    if "twelve" not in {row["id"] for row in server.admin.get("/overview").json()["studies"]}:
        systems = ", ".join(f'{{ name = "s{number}", folder = "fine" }}' for number in range(11))
        make_study("twelve", systems=f"[{systems}]")
    width, height = size
    page = open_page("twelve", viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    begin(page)
    assert len(slots(page)) == 12
    page_width, spare, gap, narrowest, shift = page.evaluate(
        """() => {
          const boxes = (query) => [...document.querySelectorAll(query)].map((e) => e.getBoundingClientRect());
          const [board] = boxes(".board");
          const [buttons, tracks] = [boxes(".column .sound"), boxes(".track")];
          const middle = ({ left, right }) => (left + right) / 2;
          return [
            document.documentElement.scrollWidth,
            board.right - buttons.at(-1).right,
            Math.min(...buttons.slice(1).map((button, k) => button.left - buttons[k].right)),
            Math.min(...buttons.map(({ width }) => width)),
            Math.max(...tracks.map((track, k) => Math.abs(middle(track) - middle(buttons[k])))),
          ];
        }"""
    )
    assert page_width <= width and spare >= 0  # inside the page and the card
    assert gap >= 2 and narrowest >= 32 and shift < 3  # apart, wide enough for a finger, above their scales


def test_the_test_works_on_plain_http_in_a_local_network(launch_chromium, server, make_study):
    study = make_study("lan")
    browser = launch_chromium("--host-resolver-rules=MAP lab.example 127.0.0.1")
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"http://lab.example:{server.port}/t/{study}")
    assert page.evaluate("[window.isSecureContext, typeof crypto.randomUUID]") == [False, "undefined"]
    begin(page)
    rate(page, "A", 70)
    saved(page)
    assert scores(server, study) == {(0, "A"): 70}


def test_the_headphone_check_plays_what_only_headphones_give_away(server, make_study, open_page):
    """The Huggins pitch is in the phase between the ears and in nothing else; the antiphase tone cancels in the air."""
    page = open_page(make_study("tones"))
    rounds = page.evaluate(
        """() => { let seed = 1;
          const random = () => (seed = (16807 * seed) % 2147483647) / 2147483647;
          const coded = (wav) => {
            let text = "";
            for (const byte of new Uint8Array(wav.buffer)) text += String.fromCharCode(byte);
            return btoa(text);
          };
          return ["huggins", "antiphase"].map((kind) =>
            HeadphoneTones.round(kind, 44100, 1, random).map((ears) => ears.map(coded))); }"""
    )
    huggins, antiphase = (
        np.array([[np.frombuffer(base64.b64decode(wav), np.float32) for wav in ears] for ears in intervals], float)
        for intervals in rounds
    )  # (interval, ear, sample)
    frequencies = np.fft.rfftfreq(huggins.shape[2], 1 / 44100)
    band = (frequencies > 570) & (frequencies < 630)
    beside = ((frequencies > 300) & (frequencies < 540)) | ((frequencies > 660) & (frequencies < 2000))
    for k, (left, right) in enumerate(np.fft.rfft(huggins)):
        cross = left * np.conj(right)
        expected = -1 if k == 1 else 1
        assert np.real(cross[band]).sum() / np.abs(cross[band]).sum() == pytest.approx(expected, abs=0.02)
        assert np.real(cross[beside]).sum() / np.abs(cross[beside]).sum() == pytest.approx(1, abs=0.02)
        # One ear alone hears no difference in level: the band is turned, not raised.
        level = np.mean(np.abs(right[band]) ** 2) / np.mean(np.abs(left[band]) ** 2)
        assert level == pytest.approx(1, abs=0.1)
    loudness = np.sqrt((antiphase**2).mean(axis=2))
    assert loudness[1] == pytest.approx(loudness[0] / 2, rel=0.01)  # 6 dB down, in both ears
    in_air = np.abs(antiphase.sum(axis=1)).max(axis=1)
    assert sorted(in_air > 0.01) == [False, True, True] and in_air[1] > 0.1


def test_a_browser_that_keeps_nothing_still_takes_part(server, make_study, chromium):
    study = make_study("no-storage")
    context = chromium.new_context(viewport=DESKTOP)
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{server.url}/t/{study}#{'x' * 43}")  # a link to a session that was deleted
    page.locator("h1", has_text="does not exist any more").wait_for()
    page.locator(".primary", has_text="Start anew").click()
    begin(page)
    rate(page, "A", 40)
    saved(page)
    assert scores(server, study) == {(0, "A"): 40}
    context.close()
