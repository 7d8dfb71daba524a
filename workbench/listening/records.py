"""What goes into and comes out of the store: blind sessions, saved revisions, checks on what a browser sends."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.listening.study import Study

Status = Literal["draft", "open", "closed"]
Stage = Literal["consent", "questionnaire", "prescreen", "trials", "finish", "finished"]
EVENT_KINDS = ("play", "stop", "switch", "seek", "loop", "blur", "focus", "resume", "underrun", "volume", "error")
MAX_COMMENT_CHARS = 5000
MAX_EVENTS = 1000  # a call
MAX_SESSION_EVENTS = 100_000
MAX_JSON_BYTES = 16_384

_MAX_REV = 2**53  # what a browser can count to


class NotFoundError(ValueError):
    """No such study, token, trial or slot (HTTP 404). The text never repeats a token."""


class RefusedError(ValueError):
    """It exists but must not be done now (HTTP 409): study not open, trial submitted already, slots not yet rated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRow:
    """One line of the list of studies. Previews are not counted; `num_joined` and `num_finished` are real listeners."""

    id: str
    title: str
    method: str
    status: Status
    created: str
    num_stimuli: int
    num_joined: int
    num_finished: int
    num_simulated: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What became of a write with a revision: `is_accepted` is false when a newer or equal revision was there.

    `rev` and `value` are what the store holds now, so that an overtaken page can catch up.
    """

    is_accepted: bool
    rev: int
    value: Any


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a listener's page may know: slots, no system names, no item names, no seed.

    Attributes:
        token: The secret of this listener, for the cookie or the address; only `join` fills it, elsewhere "".
        listener: "L001", "S001" when simulated, "P001" in a preview: how exports and the admin call them.
        study_id: Of the study.
        stage: What the page has to show.
        plan: Public trials in order, each `{"trial": 0, "kind": "training" | "test", "slots": ["A", ...],
            "has_reference": bool, "seconds": float}`; sounds are fetched as (trial, slot), the labelled reference as
            slot "R".
        current_trial: First trial that is not submitted; `len(plan)` when all are.
        ratings: trial -> slot -> {"score", "rev", "touched"}.
        choices: trial -> {"answer", "rev"}.
        comments: trial -> text, of submitted trials.
        submitted: Numbers of submitted trials.
        is_simulated: A simulated listener.
        is_preview: The admin trying the study; never exported or counted.
    """

    token: str
    listener: str
    study_id: str
    stage: Stage
    plan: list[dict[str, Any]]
    current_trial: int
    ratings: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    comments: dict[int, str] = field(default_factory=dict)
    submitted: list[int] = field(default_factory=list)
    is_simulated: bool = False
    is_preview: bool = False


def answers_of(study: Study) -> tuple[str, ...]:
    """What may be answered in a trial of `study`; empty for mushra, which has scores."""
    ab = ("A", "B", "none") if study.allows_no_preference else ("A", "B")
    return {"mushra": (), "abx": ("A", "B"), "ab": ab, "acr": ("1", "2", "3", "4", "5")}[study.method]


def event_values(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """An event as columns of the table; ValueError names what is wrong with it."""
    known = ("id", "trial", "kind", "slot", "pos_s", "ctx_time", "wall")
    name, kind, slot, trial = event.get("id"), event.get("kind"), event.get("slot"), event.get("trial")
    if not isinstance(name, str) or not 8 <= len(name) <= 64:
        raise ValueError("an event's id is a text of 8 to 64 characters")
    if kind not in EVENT_KINDS:
        raise ValueError(f"an event's kind is one of {', '.join(EVENT_KINDS)}; got {str(kind)[:40]!r}")
    if slot is not None and (not isinstance(slot, str) or len(slot) > 4):
        raise ValueError("an event's slot is a letter")
    if trial is not None and (isinstance(trial, bool) or not isinstance(trial, int) or not 0 <= trial < 100_000):
        raise ValueError("an event's trial is its number")
    numbers = [None if event.get(key) is None else checked_number(event[key], key, -1e15, 1e15) for key in known[4:]]
    return (
        name,
        trial,
        kind,
        slot,
        *numbers,
        checked_json({key: event[key] for key in event if key not in known} or None),
    )


def checked_number(value: Any, name: str, low: float, high: float) -> float:
    """A finite number between two bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # nan fails too
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {str(value)[:40]}")
    return float(value)


def checked_revision(rev: Any) -> int:
    """A number that a browser counts up."""
    if isinstance(rev, bool) or not isinstance(rev, int) or not 0 <= rev <= _MAX_REV:
        raise ValueError(f"rev must be a whole number from 0 to 2^53, got {str(rev)[:40]}")
    return rev


def checked_json(value: Any) -> str:
    """A value as JSON, if it is not too long."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"this cannot be stored as JSON: {error}") from None
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, at most {MAX_JSON_BYTES}")
    return text
