"""Studies, sessions and ratings in one SQLite file that survives kill -9 (WAL, synchronous=FULL).

Every method is one transaction: when it has returned, what it stored is on disk. Many threads and processes may use one
file. A session is found by its token, of which the file holds only a hash. What leaves through `Session` is blind.
"""

import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.listening import frames
from workbench.listening.frames import Table
from workbench.listening.records import NotFoundError, RefusedError, Saved, Session, Status, StudyRow
from workbench.listening.session_row import SessionRow, iso, now, parsed_plan, require_stimuli
from workbench.listening.sessions import Sessions
from workbench.listening.study import Study

if TYPE_CHECKING:
    from workbench.listening.render import Stimulus

__all__ = ["NotFoundError", "RefusedError", "Saved", "Session", "Store", "StudyRow"]


class Store(Sessions):
    """The file of all studies. Thread-safe; open one per process.

    Raises:
        ValueError: If the file is no store, or was written by a newer version.
    """

    @property
    def path(self) -> Path:
        return self._database.path

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    # Studies

    def create_study(self, study: Study, stimuli: "Sequence[Stimulus]" = ()) -> str:
        """Add a study as a draft and return its id, which is `study.name`. RefusedError if the name is taken."""
        with self._database.write() as database:
            if database.execute("SELECT 1 FROM study WHERE id = ?", (study.name,)).fetchone():
                raise RefusedError(f"there is a study {study.name!r} already; give the new one another name")
            database.execute(
                "INSERT INTO study (id, study_json, sha256, status, created) VALUES (?, ?, ?, 'draft', ?)",
                (study.name, json.dumps(study.as_dict()), study.sha256, now()),
            )
            _insert_stimuli(database, study, stimuli)
        return study.name

    def set_stimuli(self, study_id: str, stimuli: "Sequence[Stimulus]") -> None:
        """Replace the rendered stimuli of a draft (`render.render_study`). RefusedError once somebody has joined."""
        study = self.study(study_id)
        with self._database.write() as database:
            if database.execute("SELECT 1 FROM session WHERE study = ? AND NOT is_preview", (study_id,)).fetchone():
                raise RefusedError(f"study {study_id!r} has listeners, who must all hear the same; make a new study")
            database.execute("DELETE FROM stimulus WHERE study = ?", (study_id,))
            _insert_stimuli(database, study, stimuli)

    def set_status(self, study_id: str, status: Status) -> None:
        """Open or close a study. RefusedError if stimuli are missing when it is to be opened.

        A closed study takes no newcomers; who has begun may finish.
        """
        if status not in ("draft", "open", "closed"):
            raise ValueError(f"status must be draft, open or closed, got {status!r}")
        study = self.study(study_id)
        with self._database.write() as database:
            if status == "open":
                require_stimuli(database, study)
            database.execute("UPDATE study SET status = ? WHERE id = ?", (status, study_id))

    def delete_study(self, study_id: str) -> None:
        """Remove a study with everything in it. RefusedError while it is open."""
        if self.status(study_id) == "open":
            raise RefusedError(f"study {study_id!r} is open; close it before you delete it")
        with self._database.write() as database:
            database.execute("DELETE FROM study WHERE id = ?", (study_id,))
        self._database.erase_log()

    def studies(self) -> list[StudyRow]:
        """All studies, newest first."""
        rows = self._database.read().execute(
            """SELECT study.*, (SELECT count(*) FROM stimulus WHERE study = study.id) AS num_stimuli,
               count(*) FILTER (WHERE NOT is_preview AND NOT is_simulated) AS num_real,
               count(finished_at) FILTER (WHERE NOT is_preview AND NOT is_simulated) AS num_done,
               count(*) FILTER (WHERE is_simulated AND NOT is_preview) AS num_simulated
               FROM study LEFT JOIN session ON session.study = study.id GROUP BY study.id
               ORDER BY study.created DESC, study.rowid DESC"""
        )
        found = []
        for row in rows:
            study = self._parsed(row)
            found.append(
                StudyRow(
                    id=row["id"],
                    title=study.title,
                    method=study.method_label,
                    status=row["status"],
                    created=row["created"],
                    num_stimuli=row["num_stimuli"],
                    num_joined=row["num_real"],
                    num_finished=row["num_done"],
                    num_simulated=row["num_simulated"],
                    sha256=row["sha256"],
                )
            )
        return found

    def status(self, study_id: str) -> Status:
        """Draft (private), open, or closed."""
        return self._study_row(study_id)["status"]

    def stimuli(self, study_id: str) -> "list[Stimulus]":
        """The rendered stimuli, unblinded."""
        from workbench.listening.render import Stimulus

        self._study_row(study_id)
        rows = self._database.read().execute("SELECT * FROM stimulus WHERE study = ? ORDER BY rowid", (study_id,))
        names = [field.name for field in fields(Stimulus)]
        values = [{name: row[name] for name in names} for row in rows]
        unknown = {"lufs": math.nan, "bits_per_second": math.nan}
        return [Stimulus(**unknown | {k: v for k, v in entry.items() if v is not None}) for entry in values]  # pyright: ignore

    # Administration

    def sounds_behind(self, token: str, trial: int, slots: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Slot -> (item, system): unblinded, for simulated listeners alone. RefusedError for a real one."""
        row = self._row(self._database.read(), token)
        if not row.values["is_simulated"]:
            raise RefusedError("only simulated listeners may know what they hear")
        planned = row.trial(trial)
        return {slot: (planned.item, planned.system_of(slot)) for slot in slots}

    def progress(self, study_id: str) -> list[dict[str, Any]]:
        """One dict a listener, previews left out.

        Keys: listener, is_simulated, stage, num_submitted, num_trials, created, last_seen, finished, user_agent,
        sample_rate_hz, num_underruns, num_blurs, cause.
        """
        self._study_row(study_id)
        database = self._database.read()
        rows = database.execute(
            """SELECT session.*, study_json, sha256,
               (SELECT json_group_array(idx) FROM trial
                WHERE session = session.id AND submitted_at NOT NULL) AS submitted,
               (SELECT count(*) FROM event WHERE session = session.id AND kind = 'underrun') AS num_underruns,
               (SELECT count(*) FROM event WHERE session = session.id AND kind = 'blur') AS num_blurs
               FROM session JOIN study ON study.id = session.study
               WHERE study = ? AND NOT is_preview ORDER BY session.id""",
            (study_id,),
        ).fetchall()
        listeners = []
        for values in rows:
            row = SessionRow(values, self._parsed(values), parsed_plan(values), json.loads(values["submitted"]))
            listeners.append(
                {
                    "listener": values["listener"],
                    "is_simulated": bool(values["is_simulated"]),
                    "stage": row.stage,
                    "num_submitted": len(row.submitted),
                    "num_trials": len(row.plan),
                    "created": values["created"],
                    "last_seen": values["last_seen"],
                    "finished": values["finished_at"] or "",
                    **{
                        key: values[key]
                        for key in ("user_agent", "sample_rate_hz", "num_underruns", "num_blurs", "cause")
                    },
                }
            )
        return listeners

    def release_idle(self, study_id: str, idle_s: float) -> int:
        """Let newcomers take the rows of unfinished listeners who were idle this long (their data stays). How many."""
        self._study_row(study_id)
        before = iso(datetime.now(UTC) - timedelta(seconds=idle_s))
        with self._database.write() as database:
            return database.execute(
                "UPDATE session SET holds_row = 0 "
                "WHERE study = ? AND holds_row AND finished_at IS NULL AND last_seen < ?",
                (study_id, before),
            ).rowcount

    def delete_listener(self, study_id: str, listener: str) -> None:
        """Erase one person's data, answers and events, from the file and its write-ahead log. Backups keep them."""
        with self._database.write() as database:
            self._change_listener(
                database.execute("DELETE FROM session WHERE study = ? AND listener = ?", (study_id, listener)), listener
            )
        self._database.erase_log()

    def exclude_listener(self, study_id: str, listener: str, cause: str) -> None:
        """Leave a listener out of the statistics for a recorded cause; an empty cause takes them back in."""
        with self._database.write() as database:
            change = "UPDATE session SET cause = ? WHERE study = ? AND listener = ?"
            self._change_listener(database.execute(change, (cause[:500], study_id, listener)), listener)

    def exclusions(self, study_id: str) -> dict[str, str]:
        """Listener -> recorded cause."""
        return {row["listener"]: row["cause"] for row in self.progress(study_id) if row["cause"]}

    def ratings_frame(self, study_id: str) -> Table:
        """MUSHRA scores, one row each, unblinded; see `frames.ratings`."""
        return frames.ratings(self._database.read(), self.study(study_id))

    def choices_frame(self, study_id: str) -> Table:
        """Answers of ABX, AB and ACR, one row a trial; see `frames.choices`."""
        return frames.choices(self._database.read(), self.study(study_id))

    def listeners_frame(self, study_id: str) -> Table:
        """One row a listener; see `frames.listeners`."""
        return frames.listeners(self._database.read(), self.study(study_id), self.progress(study_id))

    def events_frame(self, study_id: str) -> Table:
        """Everything that the player logged; see `frames.events`."""
        return frames.events(self._database.read(), self.study(study_id))

    def backup(self, target: str | Path, *, force: bool = False) -> None:
        """Copy the file while it is in use, all or nothing. FileExistsError unless `force`."""
        self._database.backup(target, force=force)

    def _change_listener(self, cursor: sqlite3.Cursor, listener: str) -> None:
        if cursor.rowcount == 0:
            raise NotFoundError(f"no listener {listener[:16]!r} in this study")


def _insert_stimuli(database: sqlite3.Connection, study: Study, stimuli: "Sequence[Stimulus]") -> None:
    items = {item.name for item in (*study.items, *study.training_items)}
    for stimulus in stimuli:
        if stimulus.item not in items or stimulus.system not in study.sounds:
            raise ValueError(f"study {study.name!r} has no sound {stimulus.item!r} / {stimulus.system!r}")
        values = asdict(stimulus)
        columns = ", ".join(values)
        places = ", ".join("?" * len(values))
        database.execute(
            f"INSERT INTO stimulus (study, {columns}) VALUES (?, {places})",
            (study.name, *(None if value != value else value for value in values.values())),  # nan is NULL
        )
