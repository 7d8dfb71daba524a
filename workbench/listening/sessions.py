"""The listener's half of the store: join, resume, rate, submit, finish. Found by token, and blind."""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.listening import design
from workbench.listening.database import Database
from workbench.listening.records import (
    MAX_COMMENT_CHARS,
    MAX_EVENTS,
    MAX_SESSION_EVENTS,
    NotFoundError,
    RefusedError,
    Saved,
    Session,
    answers_of,
    checked_json,
    checked_number,
    checked_revision,
    event_values,
)
from workbench.listening.session_row import SessionRow, free_row, now, parsed_plan, require_stimuli
from workbench.listening.study import REFERENCE, Study

SIMULATED_AGENT = "SIMULATED"


class Sessions:
    """What `store.Store` does for listeners."""

    def __init__(self, path: str | Path) -> None:
        self._database = Database(path)
        self._studies: dict[tuple[str, str], Study] = {}

    def join(
        self, study_id: str, *, user_agent: str = "", is_simulated: bool = False, is_preview: bool = False
    ) -> Session:
        """A new listener takes the lowest free row of the design. RefusedError unless the study is open (or a preview).

        A user agent that begins with "SIMULATED" says so of itself, which is how simulated listeners join over HTTP.
        The token is `secrets.token_urlsafe(32)`; this is the only time it is given.
        """
        token = secrets.token_urlsafe(32)
        study = self.study(study_id)
        is_simulated = is_simulated or user_agent.startswith(SIMULATED_AGENT)
        with self._database.write() as database:
            row = database.execute("SELECT * FROM study WHERE id = ?", (study_id,)).fetchone()
            if row is None:
                raise NotFoundError(f"no study {study_id[:64]!r}")
            if row["status"] != "open" and not is_preview:
                raise RefusedError("this listening test is not open")
            require_stimuli(database, study)
            counter = "num_previews" if is_preview else "num_joined"
            database.execute(f"UPDATE study SET {counter} = {counter} + 1 WHERE id = ?", (study_id,))
            letter = "P" if is_preview else "S" if is_simulated else "L"
            square_row = 0 if is_preview else free_row(database, study_id, is_simulated)
            plan = design.make_plan(study, square_row)
            database.execute(
                """INSERT INTO session (token_sha256, study, listener, is_simulated, is_preview, square_row, holds_row,
                   seed, plan_json, user_agent, created, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (
                    _hash(token),
                    study_id,
                    f"{letter}{row[counter] + 1:03d}",
                    is_simulated,
                    is_preview,
                    square_row,
                    not is_preview,
                    study.seed,
                    json.dumps([asdict(trial) for trial in plan]),
                    str(user_agent)[:400],
                    now(),
                    now(),
                ),
            )
        return self._session(token, reveal=True)

    def session(self, token: str) -> Session:
        """Where a listener is: to resume after a crash, on a second tab, on another day."""
        return self._session(token)

    def save_consent(self, token: str) -> None:
        """The listener agreed, now. Idempotent: the first time counts."""
        with self._at(token) as (database, row):
            database.execute(
                "UPDATE session SET consent_at = coalesce(consent_at, ?) WHERE id = ?", (now(), row.values["id"])
            )

    def save_questionnaire(self, token: str, answers: Mapping[str, Any]) -> None:
        """Answers by name of question, checked against the study's questionnaire; ValueError names what is wrong."""
        with self._at(token) as (database, row):
            questions = {question.name: question for question in row.study.questionnaire}
            if unknown := [str(name)[:40] for name in answers if name not in questions]:
                raise ValueError(f"the questionnaire has no question {unknown[0]!r}")
            faults = [text for name, question in questions.items() if (text := question.check(answers.get(name)))]
            if faults:
                raise ValueError("; ".join(faults))
            kept = {name: answers[name] for name in questions if answers.get(name) not in (None, "")}
            database.execute("UPDATE session SET answers_json = ? WHERE id = ?", (checked_json(kept), row.values["id"]))

    def save_prescreen(self, token: str, results: Mapping[str, Any]) -> None:
        """Results of level setting and headphone checks, any JSON object up to 16 kB; the last one counts."""
        with self._at(token) as (database, row):
            database.execute(
                "UPDATE session SET prescreen_json = ? WHERE id = ?", (checked_json(dict(results)), row.values["id"])
            )

    def save_device(
        self, token: str, *, sample_rate_hz: float, base_latency_s: float = 0.0, output_latency_s: float = 0.0
    ) -> None:
        """What the browser's audio output says about itself."""
        values = [
            checked_number(value, "device", 0, 1e6) for value in (sample_rate_hz, base_latency_s, output_latency_s)
        ]
        with self._at(token) as (database, row):
            database.execute(
                "UPDATE session SET sample_rate_hz = ?, base_latency_s = ?, output_latency_s = ? WHERE id = ?",
                (*values, row.values["id"]),
            )

    def stimulus_path(self, token: str, trial: int, slot: str) -> Path:
        """The sound behind a slot ("R" is the labelled reference) of the current trial, the next, or an earlier one.

        Send `render.salted_wav(path, salt)` and not the file: see there.
        """
        database = self._database.read()
        row = self._row(database, token)
        planned = row.trial(trial)
        if trial > row.current_trial + 1:
            raise RefusedError(f"trial {row.current_trial} comes before trial {trial}")
        if slot == design.LABELLED_REFERENCE and row.study.offers_reference:
            system = REFERENCE
        elif slot in planned.slots:
            system = planned.system_of(slot)
        else:
            raise NotFoundError(f"trial {trial} has no slot {str(slot)[:8]!r}")
        query = "SELECT path FROM stimulus WHERE study = ? AND item = ? AND system = ?"
        return Path(database.execute(query, (row.study.name, planned.item, system)).fetchone()["path"])

    def start_trial(self, token: str, trial: int) -> None:
        """The trial is on the screen. Idempotent: the first time counts."""
        with self._at(token) as (database, row):
            row.trial(trial)
            database.execute(
                """INSERT INTO trial (session, idx, started_at) VALUES (?, ?, ?)
                   ON CONFLICT DO UPDATE SET started_at = coalesce(started_at, excluded.started_at)""",
                (row.values["id"], trial, now()),
            )

    def save_rating(self, token: str, trial: int, slot: str, score: float, *, rev: int, touched: bool = True) -> Saved:
        """Store a MUSHRA score of 0 to 100, unless the store holds this or a newer revision of (trial, slot)."""
        score, rev = checked_number(score, "score", 0, 100), checked_revision(rev)
        with self._at(token) as (database, row):
            planned = row.trial_to_answer(trial)
            if row.study.method != "mushra":
                raise ValueError(f"a trial of {row.study.method} takes a choice, not a score")
            if slot not in planned.slots:
                raise NotFoundError(f"trial {trial} has no slot {str(slot)[:8]!r}")
            key = (row.values["id"], trial, slot)
            changed = database.execute(
                """INSERT INTO rating (session, trial, slot, score, rev, touched, at) VALUES (?, ?, ?, ?, ?, ?, ?)
                   ON CONFLICT DO UPDATE SET score = excluded.score, rev = excluded.rev, at = excluded.at,
                   touched = max(touched, excluded.touched) WHERE excluded.rev > rating.rev""",
                (*key, score, rev, bool(touched), now()),
            ).rowcount
            kept = database.execute("SELECT * FROM rating WHERE session = ? AND trial = ? AND slot = ?", key).fetchone()
        return Saved(is_accepted=changed == 1, rev=kept["rev"], value=kept["score"])

    def save_choice(self, token: str, trial: int, answer: str, *, rev: int) -> Saved:
        """Store the answer of an ABX ("A", "B"), AB ("A", "B", "none") or ACR ("1" to "5") trial; see `save_rating`."""
        rev = checked_revision(rev)
        with self._at(token) as (database, row):
            row.trial_to_answer(trial)
            allowed = answers_of(row.study)
            if answer not in allowed:
                raise ValueError(
                    f"an answer of {row.study.method} is one of {', '.join(allowed) or 'none: it has scores'}"
                )
            key = (row.values["id"], trial)
            changed = database.execute(
                """INSERT INTO choice (session, trial, answer, rev, at) VALUES (?, ?, ?, ?, ?)
                   ON CONFLICT DO UPDATE SET answer = excluded.answer, rev = excluded.rev, at = excluded.at
                   WHERE excluded.rev > choice.rev""",
                (*key, answer, rev, now()),
            ).rowcount
            kept = database.execute("SELECT * FROM choice WHERE session = ? AND trial = ?", key).fetchone()
        return Saved(is_accepted=changed == 1, rev=kept["rev"], value=kept["answer"])

    def add_events(self, token: str, events: Iterable[Mapping[str, Any]]) -> int:
        """Store what the player logged; returns how many were new.

        Each is `{"id": unique text of the client, "trial": int, "kind": one of EVENT_KINDS, "slot": "A", "pos_s":
        float, "ctx_time": float, "wall": milliseconds, ...}`; sending one twice stores it once. At most 1000 a call.
        """
        rows = [event_values(event) for event in events]
        if len(rows) > MAX_EVENTS:
            raise ValueError(f"{len(rows)} events in one call, at most {MAX_EVENTS}; send them in parts")
        with self._at(token) as (database, row):
            session, received_at = row.values["id"], now()
            stored = database.execute("SELECT count(*) FROM event WHERE session = ?", (session,)).fetchone()[0]
            if stored + len(rows) > MAX_SESSION_EVENTS:
                raise RefusedError(f"the session has {stored} events, at most {MAX_SESSION_EVENTS} are kept")
            return database.executemany(
                "INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(session, *values, received_at) for values in rows],
            ).rowcount

    def submit_trial(
        self,
        token: str,
        trial: int,
        *,
        comment: str = "",
        listened_s: Mapping[str, float] | None = None,
        loop: Any = None,
    ) -> Session:
        """Close a trial; its ratings cannot change afterwards. Submitting it twice changes nothing.

        `listened_s` counts the seconds that each slot was heard, as the page measured them. RefusedError names the
        slots that are not rated, moved or heard as the study asks, or the trial that comes first.
        """
        if not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS:
            raise ValueError(f"a comment has at most {MAX_COMMENT_CHARS} characters")
        heard = {str(slot): checked_number(value, "listened_s", 0, 1e6) for slot, value in (listened_s or {}).items()}
        with self._at(token) as (database, row):
            row.trial(trial)
            if trial not in row.submitted:
                planned = row.trial_to_answer(trial)
                self._check_answers(database, row, trial, planned, heard)
                database.execute(
                    """INSERT INTO trial (session, idx, submitted_at, comment, listened_json, loop_json)
                       VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET submitted_at = excluded.submitted_at,
                       comment = excluded.comment, listened_json = excluded.listened_json,
                       loop_json = excluded.loop_json""",
                    (row.values["id"], trial, now(), comment, checked_json(heard), checked_json(loop)),
                )
        return self._session(token)

    def finish(self, token: str, *, comment: str = "") -> None:
        """The listener is done. RefusedError while a trial is not submitted. Idempotent."""
        if not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS:
            raise ValueError(f"a comment has at most {MAX_COMMENT_CHARS} characters")
        with self._at(token) as (database, row):
            if row.stage == "finished":
                return
            if row.stage != "finish":
                raise RefusedError(f"the session is at {row.stage!r}, trial {row.current_trial} of {len(row.plan)}")
            database.execute(
                "UPDATE session SET finished_at = ?, comment = ? WHERE id = ?", (now(), comment, row.values["id"])
            )

    def study(self, study_id: str) -> Study:
        """The study as it was created."""
        return self._parsed(self._study_row(study_id))

    # Inside

    def _study_row(self, study_id: str) -> sqlite3.Row:
        row = self._database.read().execute("SELECT * FROM study WHERE id = ?", (study_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"no study {study_id[:64]!r}")
        return row

    def _parsed(self, row: sqlite3.Row) -> Study:
        """A study never changes, so each is read once; another of the same name has another hash."""
        key = (row["study"] if "study" in row.keys() else row["id"], row["sha256"])
        if key not in self._studies:
            self._studies[key] = Study.from_dict(json.loads(row["study_json"]))
        return self._studies[key]

    @contextmanager
    def _at(self, token: str) -> Iterator[tuple[sqlite3.Connection, SessionRow]]:
        """A transaction on one session, which notes that the listener was there."""
        with self._database.write() as database:
            row = self._row(database, token)
            yield database, row
            database.execute("UPDATE session SET last_seen = ? WHERE id = ?", (now(), row.values["id"]))

    def _row(self, database: sqlite3.Connection, token: str) -> SessionRow:
        values = database.execute(
            """SELECT session.*, study_json, sha256 FROM session JOIN study ON study.id = session.study
               WHERE token_sha256 = ?""",
            (_hash(token),),
        ).fetchone()
        if values is None:
            raise NotFoundError("no such session; it was deleted, or the link is incomplete")
        query = "SELECT idx FROM trial WHERE session = ? AND submitted_at IS NOT NULL"
        submitted = [row["idx"] for row in database.execute(query, (values["id"],))]
        return SessionRow(values, self._parsed(values), parsed_plan(values), submitted)

    def _session(self, token: str, *, reveal: bool = False) -> Session:
        database = self._database.read()
        row = self._row(database, token)
        session = row.values["id"]
        seconds = {
            entry["item"]: entry["seconds"]
            for entry in database.execute(
                "SELECT item, seconds FROM stimulus WHERE study = ? AND system = ?", (row.study.name, REFERENCE)
            )
        }
        ratings: dict[int, dict[str, dict[str, Any]]] = {}
        for entry in database.execute("SELECT * FROM rating WHERE session = ?", (session,)):
            kept = {"score": entry["score"], "rev": entry["rev"], "touched": bool(entry["touched"])}
            ratings.setdefault(entry["trial"], {})[entry["slot"]] = kept
        return Session(
            token=token if reveal else "",
            listener=row.values["listener"],
            study_id=row.study.name,
            stage=row.stage,
            plan=[
                design.public_trial(trial, index, row.study, seconds[trial.item])
                for index, trial in enumerate(row.plan)
            ],
            current_trial=row.current_trial,
            ratings=ratings,
            choices={
                entry["trial"]: {"answer": entry["answer"], "rev": entry["rev"]}
                for entry in database.execute("SELECT * FROM choice WHERE session = ?", (session,))
            },
            comments={
                entry["idx"]: entry["comment"]
                for entry in database.execute("SELECT * FROM trial WHERE session = ? AND comment != ''", (session,))
            },
            submitted=sorted(row.submitted),
            is_simulated=bool(row.values["is_simulated"]),
            is_preview=bool(row.values["is_preview"]),
        )

    def _check_answers(
        self, database: sqlite3.Connection, row: SessionRow, index: int, trial: design.Trial, heard: Mapping[str, float]
    ) -> None:
        key = (row.values["id"], index)
        if row.study.method == "mushra":
            rated = {
                entry["slot"]: entry["touched"]
                for entry in database.execute("SELECT * FROM rating WHERE session = ? AND trial = ?", key)
            }
            if missing := [slot for slot in trial.slots if slot not in rated]:
                raise RefusedError(f"not yet rated: {', '.join(missing)}")
            if row.study.must_move and (still := [slot for slot in trial.slots if not rated[slot]]):
                raise RefusedError(f"slider not yet moved: {', '.join(still)}")
        elif not database.execute("SELECT 1 FROM choice WHERE session = ? AND trial = ?", key).fetchone():
            raise RefusedError("not yet answered")
        if unheard := [slot for slot in trial.slots if heard.get(slot, 0.0) < row.study.must_listen_s]:
            raise RefusedError(f"not yet heard for {row.study.must_listen_s:g} s: {', '.join(unheard)}")


def _hash(token: str) -> str:
    return hashlib.sha256(str(token).encode("utf-8", "replace")).hexdigest()
