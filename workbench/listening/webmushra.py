"""webMUSHRA's files: reading its YAML configurations, writing its CSV results. Formats only.

A configuration's pages become items, its stimuli C1, C2, ... systems with a file for each item. Nested lists keep their
meaning: pages in a row are in order, and a list that begins with the word `random` is shuffled as a whole, lists inside
it staying together.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.listening.store import Store
from workbench.listening.study import REFERENCE, Study
from workbench.listening.study_file import read_yaml, resolve, slug

_METHODS = {"mushra": "mushra", "paired_comparison": "ab"}
_NOT_TESTS = ("generic", "consent", "volume", "finish", "headphones_test")
_QUESTIONS = {"text": "text", "long_text": "long_text", "number": "number", "likert": "likert"}


def load(path: str | Path, root: str | Path | None = None) -> Study:
    """Read a configuration; its paths begin at `root`, or at its own folder."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration: {path}")
    values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    return to_study(values, root or path.parent, root=root, source=str(path))


def to_study(
    values: Mapping[str, Any], folder: str | Path, *, root: str | Path | None = None, source: str = "webMUSHRA"
) -> Study:
    """The study that a parsed configuration describes.

    Args:
        values: What `read_yaml` gave.
        folder: Where relative paths begin.
        root: No path may leave this folder.
        source: What errors call it.

    Raises:
        ValueError: If a page cannot be had here (BS.1116, Likert scales of sounds, spatial tests), pages differ in
            their stimuli or anchors, or a file is missing.
    """
    if not isinstance(values.get("pages"), list):
        raise ValueError(f"{source}: expected a list `pages`")
    pages: list[Mapping[str, Any]] = []
    order = _ordered(values["pages"], pages, source)
    tests = [page for page in pages if page["type"] not in _NOT_TESTS]
    if not tests:
        raise ValueError(f"{source}: no page of a listening test; this reads {' and '.join(_METHODS)}")
    kinds = {str(page["type"]) for page in tests}
    if len(kinds) > 1 or not kinds <= set(_METHODS):
        raise ValueError(
            f"{source}: pages of type {', '.join(sorted(kinds))}; a study here has one method, "
            f"{' or '.join(_METHODS)}. Split the configuration, or leave the other pages out"
        )
    names = [list(_stimuli(page, source)) for page in tests]
    anchors = [_anchors(page) for page in tests]
    for page, have, low_passed in zip(tests, names, anchors, strict=True):
        if sorted(have) != sorted(names[0]) or low_passed != anchors[0]:
            raise ValueError(
                f"{source}: page {page.get('id')!r} has {', '.join([*have, *map(str, low_passed)])}, page "
                f"{tests[0].get('id')!r} {', '.join([*names[0], *map(str, anchors[0])])}; all must have the same"
            )
    consent = next((page for page in pages if page["type"] == "consent"), {})
    finish = next((page for page in pages if page["type"] == "finish"), {})
    study = {
        "name": slug(str(values.get("testId") or "webmushra")),
        "title": str(values.get("testname") or "Listening test")[:200],
        "method": _METHODS[kinds.pop()],
        "items": [
            {"name": _name(page), "reference": page.get("reference"), "files": _stimuli(page, source)} for page in tests
        ],
        "systems": [{"name": name} for name in names[0]],
        "anchors_hz": anchors[0],
        "order": order if order[0] == "random" or len(order) > 2 else [],
        "question": str(tests[0].get("content") or ""),
        "allows_no_preference": any(page.get("unforced") for page in tests),
        "must_move": bool(tests[0].get("strict", False)),
        "must_listen_s": 0.0,
        "prescreen": ["level"] if any(page["type"] == "volume" for page in pages) else [],
        "instructions": "\n\n".join(str(page.get("content") or "") for page in pages if page["type"] == "generic"),
        "consent": str(consent.get("content") or ""),
        "thanks": str(finish.get("content") or "Thank you for listening."),
        "questionnaire": [_question(entry, source) for entry in finish.get("questionnaire") or []],
        "source": f"webMUSHRA configuration {values.get('testId', '')}".strip(),
    }
    return resolve(study, folder, source=source, root=root)


def results_csv(store: Store, study_id: str, *, is_simulated: bool = False) -> dict[str, str]:
    """File name -> text as webMUSHRA's server writes it: mushra.csv or paired_comparison.csv.

    Submitted test trials and repeats; training and attention pages are left out. Simulated listeners are written only
    when asked for, under a test id that ends in " SIMULATED". Texts that a spreadsheet would run as a formula get an
    apostrophe in front.
    """
    study = store.study(study_id)
    listeners = store.listeners_frame(study_id)
    answers = {row["listener"]: row["answers"] for row in listeners.to_dict("records")}
    test_id = f"{study.name} SIMULATED" if is_simulated else study.name
    questions = [question.name for question in study.questionnaire]
    is_mushra = study.method == "mushra"
    frame = store.ratings_frame(study_id) if is_mushra else store.choices_frame(study_id)
    frame = frame[
        frame["is_submitted"] & frame["kind"].isin(["test", "repeat"]) & (frame["is_simulated"] == is_simulated)
    ]
    if is_mushra:
        columns = ["session_uuid", "trial_id", "rating_stimulus", "rating_score", "rating_time", "rating_comment"]
    else:
        columns = ["trial_id", "choice_reference", "choice_non_reference", "choice_answer", "choice_time"]
        columns.append("choice_comment")
    lines = [["session_test_id", *questions, *columns]]
    for row in frame.to_dict("records"):
        who = [test_id, *(answers[row["listener"]].get(name, "") for name in questions)]
        milliseconds = "" if row["seconds"] != row["seconds"] else round(1000 * row["seconds"])
        trial = f"{row['item']} (repeat)" if row["kind"] == "repeat" else row["item"]
        if is_mushra:
            what = [row["listener"], trial, row["system"], f"{row['score']:g}", milliseconds, row["comment"]]
        else:
            first, second = sorted((row["system_a"], row["system_b"]), key=lambda name: name != REFERENCE)
            what = [trial, first, second, row["chosen"] or row["answer"], milliseconds, row["comment"]]
        lines.append([inert(value) for value in [*who, *what]])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return {"mushra.csv" if is_mushra else "paired_comparison.csv": buffer.getvalue()}


def inert(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay."""
    text = str(value)
    is_text = isinstance(value, str) and not _is_number(text)
    return f"'{text}" if is_text and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _ordered(entries: list[Any], pages: list[Mapping[str, Any]], source: str) -> list[Any]:
    """The nested order of items; every page found is added to `pages`."""
    is_random = bool(entries) and entries[0] == "random"
    order: list[Any] = ["random" if is_random else "fixed"]
    for entry in entries[1:] if is_random else entries:
        if isinstance(entry, list):
            inner = _ordered(entry, pages, source)
            if len(inner) > 1:
                order.append(inner)
        elif isinstance(entry, Mapping) and "type" in entry:
            pages.append(entry)
            if entry["type"] not in _NOT_TESTS:
                order.append(_name(entry))
        else:
            raise ValueError(f"{source}: pages hold tables with a `type` and lists, got {entry!r}")
    # A list of one list is that list: webMUSHRA needs the outer one for its introduction and its end.
    return order[1] if len(order) == 2 and isinstance(order[1], list) else order


def _name(page: Mapping[str, Any]) -> str:
    return str(page.get("id") or page.get("name") or "")


def _stimuli(page: Mapping[str, Any], source: str) -> dict[str, Any]:
    stimuli = page.get("stimuli")
    if not isinstance(stimuli, Mapping) or not stimuli or "reference" not in page:
        raise ValueError(f"{source}: page {page.get('id')!r} needs `reference` and `stimuli`, a table of name and path")
    return {str(name): path for name, path in stimuli.items()}


def _anchors(page: Mapping[str, Any]) -> list[int]:
    return [hz for key, hz in (("createAnchor35", 3500), ("createAnchor70", 7000)) if page.get(key)]


def _question(entry: Any, source: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or entry.get("type") not in _QUESTIONS:
        raise ValueError(f"{source}: questionnaire: expected a type of {', '.join(_QUESTIONS)}, got {entry!r}")
    question: dict[str, Any] = {
        "name": str(entry.get("name")),
        "text": str(entry.get("label") or entry.get("name")),
        "kind": _QUESTIONS[entry["type"]],
        "is_required": not entry.get("optional", False),
    }
    if entry["type"] == "likert":
        question["options"] = [str(option["value"]) for option in entry.get("response") or []]
    if entry["type"] == "number":
        question |= {"minimum": float(entry.get("min", 0)), "maximum": float(entry.get("max", 1000))}
    return question


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
