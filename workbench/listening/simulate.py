"""Listeners with a known answer, to try a study out and to test everything between a page and a p value.

They are marked as simulated where they join, and carry the mark into every table, file and plot. A `Truth` says how
good every system is; a listener adds strictness, a taste for each system, and noise. Through HTTP a listener knows only
what a browser knows, and finds out by ear which sound it hears: `Ear` compares it with the rendered files. So a wrong
sound behind a slot would show in the results.
"""

import io
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from workbench.listening.attention import BAND, instruction, targets
from workbench.listening.render import Stimulus
from workbench.listening.sessions import SIMULATED_AGENT, Sessions
from workbench.listening.store import Store
from workbench.listening.study import REFERENCE, Question, Study

USER_AGENT = f"{SIMULATED_AGENT} listener"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The known answer.

    Attributes:
        quality: System -> mean score, 0 to 100. The hidden reference is 100 and cannot be set.
        sd_listener, sd_taste, sd_item, sd_rating: Standard deviations of strictness, of a listener's taste for a
            system, of an item, and of one rating.
        careless: Share of listeners who rate at random.
        hears: For abx, the chance to hear a difference of 100 points; smaller differences in proportion.
    """

    quality: Mapping[str, float]
    sd_listener: float = 6.0
    sd_taste: float = 4.0
    sd_item: float = 4.0
    sd_rating: float = 7.0
    careless: float = 0.0
    hears: float = 2.0
    seed: int = 0

    def of(self, system: str) -> float:
        """Mean score of a system."""
        return 100.0 if system == REFERENCE else self.quality[system]


@dataclass
class Listener:
    """One person: `number` and the truth's seed make the same person every time."""

    truth: Truth
    number: int
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng([self.truth.seed, self.number])
        self._strictness = self._generator.normal(0, self.truth.sd_listener)
        self.is_careless = bool(self._generator.random() < self.truth.careless)

    def score(self, system: str, item: str) -> float:
        """A rating from 0 to 100, whole as sliders give it."""
        truth = self.truth
        if self.is_careless:
            return float(self._generator.integers(0, 101))
        if system == REFERENCE:  # most find it; some are not quite sure
            return float(round(100 - min(9.0, abs(self._generator.normal(0, 3)))))
        taste = self._fixed(f"taste {self.number} {system}") * truth.sd_taste
        liking = self._fixed(f"item {item}") * truth.sd_item
        noise = self._generator.normal(0, truth.sd_rating)
        return float(round(min(100.0, max(0.0, truth.of(system) + self._strictness + taste + liking + noise))))

    def choose(self, method: str, systems: Mapping[str, str], item: str) -> str:
        """An answer to abx, ab or acr; `systems` says what is behind each slot."""
        first, second = systems["A"], systems.get("B", "")
        if method == "acr":
            return str(1 + min(4, int(self.score(first, item) / 20)))
        if method == "ab":
            return "A" if self.score(first, item) >= self.score(second, item) else "B"
        distance = abs(self.truth.of(first) - self.truth.of(second)) / 100
        is_heard = not self.is_careless and self._generator.random() < min(1.0, self.truth.hears * distance)
        right = "A" if systems["X"] == first else "B"
        return right if is_heard else str(self._generator.choice(["A", "B"]))

    def answers(self, questions: Iterable[Question]) -> dict[str, Any]:
        """A filled-in questionnaire, made up."""
        return {
            question.name: str(self._generator.choice(list(question.options)))
            if question.options
            else (question.minimum if question.kind == "number" else "SIMULATED")
            for question in questions
        }

    def _fixed(self, key: str) -> float:
        """A normal number that belongs to a name: the same for everybody who asks."""
        return float(np.random.default_rng([self.truth.seed, zlib.crc32(key.encode())]).normal())


class Ear:
    """Finds out which stimulus a wav file is, by its samples: dither of 24 bits is all that may differ."""

    def __init__(self, stimuli: Iterable[Stimulus]) -> None:
        self._known: list[tuple[str, str, np.ndarray]] = []
        for stimulus in stimuli:
            wav, _ = soundfile.read(stimulus.path, dtype="float64")
            self._known.append((stimulus.item, stimulus.system, wav))

    def identify(self, data: bytes) -> tuple[str, str]:
        """`(item, system)` of a sound. ValueError if it is none of those that were rendered."""
        wav, _ = soundfile.read(io.BytesIO(data), dtype="float64")
        for item, system, known in self._known:
            if len(known) == len(wav) and np.abs(known - wav).max() < 4 / 2**23:
                return item, system
        raise ValueError("this sound was not rendered for the study")


def default_truth(study: Study, seed: int = 0) -> Truth:
    """Systems spread evenly from 80 down to 30 in the study's order, anchors where they belong."""
    names = [system.name for system in study.systems]
    spread = np.linspace(80, 30, len(names)) if len(names) > 1 else [60.0]
    quality = dict(zip(names, map(float, spread), strict=True)) | {"anchor35": 20.0, "anchor70": 60.0}
    return Truth(quality=quality, seed=seed)


def simulate_store(store: Store, study_id: str, num_listeners: int, truth: Truth | None = None) -> list[str]:
    """Let listeners go through an open study, straight into the store; returns their names."""
    study = store.study(study_id)
    truth = truth or default_truth(study)
    begun = sum(entry["is_simulated"] for entry in store.progress(study_id))
    names = []
    for number in range(begun, begun + num_listeners):
        session = store.join(study_id, user_agent=USER_AGENT, is_simulated=True)
        listener = Listener(truth, number)

        def keep(entries: list[dict[str, Any]], token: str = session.token) -> None:
            for entry in entries:
                _apply(store, token, entry)

        def hear(trial: int, slots: list[str], token: str = session.token) -> dict[str, tuple[str, str]]:
            return store.sounds_behind(token, trial, slots)

        _take_part(listener, study, session.plan, keep, hear)
        names.append(session.listener)
    return names


def simulate_http(
    base_url: str,
    study_id: str,
    number: int,
    truth: Truth,
    ear: Ear,
    *,
    study: Study,
    timeout_s: float = 30.0,
) -> dict[str, Any]:
    """One listener through the routes of `api.py`, knowing what a browser knows.

    Args:
        base_url: Such as http://127.0.0.1:7860.
        study_id: An open study.
        number: Which person.
        truth: The known answer.
        ear: Of the study's stimuli.
        study: For the questionnaire.
        timeout_s: Of a request.

    Returns:
        The session at its end, as the page sees it, with the seconds of every request in "latencies_s".
    """
    try:
        import httpx
    except ImportError:
        raise ImportError("simulating over HTTP needs httpx: pip install 'taae-workbench[listening]'") from None
    import time

    latencies_s: list[float] = []
    with httpx.Client(
        base_url=base_url, timeout=timeout_s, headers={"x-listening": "1", "user-agent": USER_AGENT}
    ) as client:

        def ask(method: str, path: str, **kwargs: Any) -> "httpx.Response":
            begin = time.perf_counter()
            answer = client.request(method, path, **kwargs)
            latencies_s.append(time.perf_counter() - begin)
            answer.raise_for_status()
            return answer

        headers = {"x-session": str(ask("POST", f"/api/t/{study_id}/join", json={}).json()["token"])}
        plan = ask("GET", "/api/session", headers=headers).json()["plan"]

        def keep(entries: list[dict[str, Any]]) -> None:
            sent = [{"id": f"sim-{number}-{len(latencies_s)}-{index}"} | entry for index, entry in enumerate(entries)]
            results = ask("POST", "/api/session/sync", headers=headers, json={"entries": sent}).json()["results"]
            if refused := [result for result in results if result["status"] != "saved"]:
                raise RuntimeError(f"the server refused: {refused[0].get('reason')}")

        def hear(trial: int, slots: list[str]) -> dict[str, tuple[str, str]]:
            return {
                slot: ear.identify(ask("GET", f"/api/session/audio/{trial}/{slot}", headers=headers).content)
                for slot in slots
            }

        _take_part(Listener(truth, number), study, plan, keep, hear)
        session = ask("GET", "/api/session", headers=headers).json()
    return session | {"latencies_s": latencies_s}


def _take_part(
    listener: Listener,
    study: Study,
    plan: list[dict[str, Any]],
    keep: Callable[[list[dict[str, Any]]], None],
    hear: Callable[[int, list[str]], dict[str, tuple[str, str]]],
) -> None:
    """From consent to finish, in the entries that a page sends."""
    keep(
        [
            {"kind": "consent"},
            {"kind": "questionnaire", "answers": listener.answers(study.questionnaire)},
            {"kind": "prescreen", "results": {"simulated": True}},
        ]
    )
    for page in plan:
        trial, slots = page["trial"], page["slots"]
        sounds = hear(trial, slots)
        item = sounds[slots[0]][0]
        target = _target(listener, study, page)
        entries: list[dict[str, Any]] = [{"kind": "start", "trial": trial}]
        if study.method == "mushra":
            entries += [
                {
                    "kind": "rating",
                    "trial": trial,
                    "slot": slot,
                    "score": listener.score(sounds[slot][1], item) if target is None else float(target) + BAND / 2,
                    "rev": 1,
                }
                for slot in slots
            ]
        else:
            answer = target or listener.choose(study.method, {slot: sounds[slot][1] for slot in slots}, item)
            entries.append({"kind": "choice", "trial": trial, "answer": answer, "rev": 1})
        heard_s = math.ceil(max(1.0, study.must_listen_s))
        entries.append({"kind": "submit", "trial": trial, "listened_s": {slot: float(heard_s) for slot in slots}})
        keep(entries)
    keep([{"kind": "finish"}])


def _target(listener: Listener, study: Study, page: dict[str, Any]) -> str | None:
    """What the page asks for in so many words; the careless do not read it."""
    if listener.is_careless or "instruction" not in page:
        return None
    return next(target for target in targets(study) if instruction(study, target) == page["instruction"])


def _apply(store: Sessions, token: str, entry: dict[str, Any]) -> None:
    kind, values = entry["kind"], {key: value for key, value in entry.items() if key != "kind"}
    calls: dict[str, Callable[..., Any]] = {
        "consent": store.save_consent,
        "questionnaire": store.save_questionnaire,
        "prescreen": store.save_prescreen,
        "start": store.start_trial,
        "rating": store.save_rating,
        "choice": store.save_choice,
        "submit": store.submit_trial,
        "finish": store.finish,
    }
    calls[kind](token, **values)
