"""Figures 2 and 4: a listening test, from a study's database or from SIMULATED listeners, marked as such."""

from pathlib import Path
from typing import Any

import numpy as np

from workbench import tables_facts
from workbench.listening import screening, stats
from workbench.listening.frames import Table
from workbench.listening.simulate import Listener, Truth
from workbench.listening.study import REFERENCE, Question
from workbench.verdicts import Outcome

# Section 4.3: 24 listeners, 25 recordings. Simulated ones judge systems without a real name: nothing is known of those.
NUM_LISTENERS, NUM_ITEMS = 24, 25
SYSTEMS = tuple(f"made-up system {letter}" for letter in "ABCDEF")
QUESTIONS = (
    Question(name="affiliation", text="Affiliation", kind="choice", options=("Academia", "Industry")),
    Question(
        name="field", text="Field", kind="choice", options=("Audio or music production and research", "Something else")
    ),
    Question(
        name="equipment",
        text="Equipment",
        kind="choice",
        options=("Headphones", "Laptop speakers", "Professional-grade speakers"),
    ),
)


def ratings(
    database: str = "",
    study: str = "",
    *,
    seed: int = 0,
    num_listeners: int = NUM_LISTENERS,
    num_items: int = NUM_ITEMS,
) -> Table:
    """MUSHRA ratings of a study, screened; without a database those of SIMULATED listeners, whose answer is made up.

    Beside the columns of `Store.ratings_frame` there is `equipment`, the listener's answer or "no answer".

    Args:
        database: Of `workbench.listening`; "" for simulated listeners.
        study: In the database.
        seed: Of the simulation.
        num_listeners: Simulated.
        num_items: Simulated.

    Raises:
        ValueError: If the study has no ratings of real listeners.
    """
    if not database:
        return _simulated(seed, num_listeners, num_items)
    from workbench.listening import results
    from workbench.listening.store import Store

    if not Path(database).is_file():
        raise ValueError(f"no database of listening tests at {database}")
    store = Store(database)
    try:
        frame = store.ratings_frame(study)
        frame = frame[frame["is_submitted"] & ~frame["is_simulated"]]
        tests = frame[frame["kind"] == "test"]
        if not len(tests):
            raise ValueError(f"study {study!r} has no submitted ratings of real listeners")
        asked = store.study(study)
        left_out = screening.excluded(screening.screen_study(asked, frame, store.exclusions(study)))
        answers = results.answers_to(store, asked, results.EQUIPMENT)
        equipment = tests["listener"].map(lambda name: answers.get(name, stats.NO_ANSWER))
        return tests.assign(equipment=equipment)[~tests["listener"].isin(left_out)]
    finally:
        store.close()


def fig02(table: Table) -> Outcome:
    """Statistics of the ratings; the paper draws Fig. 2 and prints no number of it."""
    simulated = bool(table["is_simulated"].all())
    rows = [
        {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in row.items()}
        for row in stats.summary(table).to_dict("records")
    ]
    tests = stats.friedman(stats.table_of(table))
    notes = [f"Friedman over listeners: {', '.join(f'{name} {value:.3g}' for name, value in tests.items())}."]
    if simulated:
        notes.insert(
            0, "SIMULATED: nobody listened. The systems' true scores are made up; only the statistics are real."
        )
    setup = {"listeners": int(table["listener"].nunique()), "simulated": simulated}
    return Outcome(name="fig02", title="Figure 2: results of MUSHRA test", beside=rows, notes=notes, setup=setup)


def by_equipment(table: Table) -> list[dict[str, Any]]:
    """`stats.summary` of each kind of equipment, for display: BS.1534-3 wants one kind a test, the paper had three."""
    rows = []
    for equipment, part in table.groupby("equipment"):
        for row in stats.summary(part).to_dict("records"):
            shown = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in row.items()}
            rows.append({"equipment": equipment} | shown)
    return rows


def demographics(database: str = "", study: str = "", *, seed: int = 0) -> tuple[dict[str, dict[str, int]], bool]:
    """Question -> answer -> number of listeners, and whether they are SIMULATED."""
    if not database:
        answers = {
            f"S{number}": Listener(Truth(quality={}, seed=seed), number).answers(QUESTIONS)
            for number in range(NUM_LISTENERS)
        }
        return {question.text: stats.count_by(answers, question.name) for question in QUESTIONS}, True
    from workbench.listening import results
    from workbench.listening.store import Store

    if not Path(database).is_file():
        raise ValueError(f"no database of listening tests at {database}")
    store = Store(database)
    try:
        found = results.summary(store, study)
    finally:
        store.close()
    return found["demographics"], found["is_simulated"]


def fig04(counts: dict[str, dict[str, int]], *, is_simulated: bool) -> Outcome:
    """Shares of real listeners; simulated ones are drawn, and not compared."""
    return tables_facts.fig04(None if is_simulated else counts)


def _simulated(seed: int, num_listeners: int, num_items: int) -> Table:
    import pandas as pd

    truth = Truth(quality=dict(zip(SYSTEMS, map(float, np.linspace(80, 30, len(SYSTEMS))), strict=True)), seed=seed)
    rows: list[dict[str, Any]] = []
    for number in range(num_listeners):
        equipment = Listener(truth, number).answers(QUESTIONS)["equipment"]
        listener = Listener(truth, number)
        for item in range(num_items):
            for system in (REFERENCE, *SYSTEMS):
                rows.append(
                    {
                        "listener": f"SIMULATED {number}",
                        "equipment": equipment,
                        "item": f"item {item}",
                        "system": system,
                        "system_kind": "reference" if system == REFERENCE else "codec",
                        "score": listener.score(system, f"item {item}"),
                        "is_simulated": True,
                    }
                )
    return pd.DataFrame(rows)
