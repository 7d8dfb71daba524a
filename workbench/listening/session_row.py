"""A session as it is stored, with its study and its plan: where a listener is and what may come next."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from workbench.listening import design
from workbench.listening.records import NotFoundError, RefusedError, Stage
from workbench.listening.study import Study


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One row of the table `session`, read."""

    values: sqlite3.Row
    study: Study
    plan: list[design.Trial]
    submitted: list[int]

    @property
    def current_trial(self) -> int:
        return next((index for index in range(len(self.plan)) if index not in self.submitted), len(self.plan))

    @property
    def stage(self) -> Stage:
        if self.values["finished_at"]:
            return "finished"
        if self.study.consent and not self.values["consent_at"]:
            return "consent"
        if self.study.questionnaire and self.values["answers_json"] is None:
            return "questionnaire"
        if self.study.prescreen and self.values["prescreen_json"] is None:
            return "prescreen"
        return "trials" if self.current_trial < len(self.plan) else "finish"

    def trial(self, index: int) -> design.Trial:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.plan):
            raise NotFoundError(f"no trial {str(index)[:12]}; there are {len(self.plan)}, counted from 0")
        return self.plan[index]

    def trial_to_answer(self, index: int) -> design.Trial:
        trial = self.trial(index)
        if self.stage != "trials":
            raise RefusedError(f"the session is at {self.stage!r}; ratings come in trials")
        if index in self.submitted:
            raise RefusedError(f"trial {index} was submitted and cannot change")
        if index > self.current_trial:
            raise RefusedError(f"trial {self.current_trial} comes before trial {index}")
        return trial


def require_stimuli(database: sqlite3.Connection, study: Study) -> None:
    """RefusedError unless every sound of every item is there."""
    rows = database.execute("SELECT item, system FROM stimulus WHERE study = ?", (study.name,))
    there = {(row["item"], row["system"]) for row in rows}
    items = [item.name for item in (*study.items, *study.training_items)]
    wanted = [(item, system) for item in items for system in study.sounds]
    if missing := [pair for pair in wanted if pair not in there]:
        raise RefusedError(f"{len(missing)} sounds are not rendered yet, the first {' / '.join(missing[0])}")
    if not study.items or not study.systems:
        raise RefusedError(f"study {study.name!r} needs at least one item and one system")


def free_row(database: sqlite3.Connection, study_id: str, is_simulated: bool) -> int:
    """The lowest row of the design that nobody holds; simulated listeners do not take those of real ones."""
    query = "SELECT square_row FROM session WHERE study = ? AND holds_row AND is_simulated = ?"
    taken = {row["square_row"] for row in database.execute(query, (study_id, is_simulated))}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def parsed_plan(values: sqlite3.Row) -> list[design.Trial]:
    """The trials that the listener was given when joining."""
    return [
        design.Trial(**entry | {"slots": tuple(entry["slots"]), "systems": tuple(entry["systems"])})
        for entry in json.loads(values["plan_json"])
    ]


def now() -> str:
    """The time in UTC, to the millisecond."""
    return iso(datetime.now(UTC))


def iso(moment: datetime) -> str:
    """A moment as the store writes it; texts sort like times."""
    return moment.isoformat(timespec="milliseconds")
