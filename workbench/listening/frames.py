"""What a study gathered as tables, unblinded; previews are left out. Columns are documented at each function."""

import json
import sqlite3
from datetime import datetime
from typing import Any

from workbench.listening.study import Study

Table = Any  # a pandas.DataFrame; what pandas says about its types does not pass a type checker


def ratings(database: sqlite3.Connection, study: Study) -> Table:
    """MUSHRA scores, one row each.

    Columns: study, listener, is_simulated, is_finished, cause (of an exclusion, or ""), trial, kind ("training",
    "test", "repeat", "attention"), target (what an attention page asked for, or ""), item, system, system_kind, slot,
    score, touched, rev, is_submitted, seconds (of the trial, nan where its beginning or end is not known), listened_s,
    comment, at.
    """
    rows = []
    for session, plan, trials in _sessions(database, study):
        for entry in database.execute("SELECT * FROM rating WHERE session = ? ORDER BY trial, slot", (session["id"],)):
            trial = plan[entry["trial"]]
            system = trial["systems"][trial["slots"].index(entry["slot"])]
            page = trials.get(entry["trial"])
            rows.append(
                _who(session)
                | {
                    "trial": entry["trial"],
                    "kind": trial["kind"],
                    "target": trial.get("target", ""),
                    "item": trial["item"],
                    "system": system,
                    "system_kind": study.kind_of(system),
                    "slot": entry["slot"],
                    "score": entry["score"],
                    "touched": bool(entry["touched"]),
                    "rev": entry["rev"],
                    **_page(page),
                    "listened_s": _listened(page).get(entry["slot"], float("nan")),
                    "at": entry["at"],
                }
            )
    columns = "system system_kind slot score touched rev is_submitted seconds comment listened_s at"
    return _frame(rows, columns)


def choices(database: sqlite3.Connection, study: Study) -> Table:
    """Answers of ABX, AB and ACR, one row a trial.

    Columns: those of `ratings` that concern the listener and the trial, and system_a, system_b ("" for acr), x (the
    system behind X), answer, chosen (the system behind the answer, "" for none and for acr), is_correct (abx), score
    (acr, 1 to 5).
    """
    rows = []
    for session, plan, trials in _sessions(database, study):
        for entry in database.execute("SELECT * FROM choice WHERE session = ? ORDER BY trial", (session["id"],)):
            trial = plan[entry["trial"]]
            systems = dict(zip(trial["slots"], trial["systems"], strict=True))
            is_acr = study.method == "acr"
            chosen = "" if is_acr else systems.get(entry["answer"], "")
            rows.append(
                _who(session)
                | {
                    "trial": entry["trial"],
                    "kind": trial["kind"],
                    "target": trial.get("target", ""),
                    "item": trial["item"],
                    "system_a": systems["A"],
                    "system_b": systems.get("B", ""),
                    "x": systems.get("X", ""),
                    "answer": entry["answer"],
                    "chosen": chosen,
                    "is_correct": bool(chosen) and chosen == systems.get("X"),
                    "score": float(entry["answer"]) if is_acr else float("nan"),
                    "rev": entry["rev"],
                    **_page(trials.get(entry["trial"])),
                    "at": entry["at"],
                }
            )
    columns = "system_a system_b x answer chosen is_correct score rev is_submitted seconds comment at"
    return _frame(rows, columns)


def listeners(database: sqlite3.Connection, study: Study, progress: list[dict[str, Any]]) -> Table:
    """One row a listener: `Store.progress`, then square_row, seed, consent_at, answers, prescreen (dicts), comment."""
    import pandas as pd

    query = "SELECT * FROM session WHERE study = ? AND NOT is_preview"
    stored = {row["listener"]: row for row in database.execute(query, (study.name,))}
    return pd.DataFrame(
        [
            entry
            | {key: stored[entry["listener"]][key] for key in ("square_row", "seed", "consent_at", "comment")}
            | {
                "answers": json.loads(stored[entry["listener"]]["answers_json"] or "{}"),
                "prescreen": json.loads(stored[entry["listener"]]["prescreen_json"] or "{}"),
            }
            for entry in progress
        ]
    )


def events(database: sqlite3.Connection, study: Study) -> Table:
    """The player's log.

    Columns: study, listener, is_simulated, id, trial, kind, slot, pos_s, ctx_time, wall, body, received_at.
    """
    import pandas as pd

    rows = database.execute(
        """SELECT session.study, listener, is_simulated, event.id, trial, kind, slot, pos_s, ctx_time, wall,
           body_json AS body, received_at FROM event JOIN session ON session.id = event.session
           WHERE session.study = ? AND NOT is_preview ORDER BY session.id, wall, event.id""",
        (study.name,),
    )
    names = [column[0] for column in rows.description]
    return pd.DataFrame(rows.fetchall(), columns=names).astype({"is_simulated": bool})


def _sessions(database: sqlite3.Connection, study: Study):
    query = "SELECT * FROM session WHERE study = ? AND NOT is_preview ORDER BY id"
    for session in database.execute(query, (study.name,)).fetchall():
        pages = database.execute("SELECT * FROM trial WHERE session = ?", (session["id"],))
        yield session, json.loads(session["plan_json"]), {page["idx"]: page for page in pages}


_FIRST = "study listener is_simulated is_finished cause trial kind target item"


def _who(session: sqlite3.Row) -> dict[str, Any]:
    return {
        "study": session["study"],
        "listener": session["listener"],
        "is_simulated": bool(session["is_simulated"]),
        "is_finished": session["finished_at"] is not None,
        "cause": session["cause"],
    }


def _page(page: sqlite3.Row | None) -> dict[str, Any]:
    seconds = float("nan")
    if page and page["started_at"] and page["submitted_at"]:
        begin, end = datetime.fromisoformat(page["started_at"]), datetime.fromisoformat(page["submitted_at"])
        seconds = (end - begin).total_seconds()
    return {
        "is_submitted": bool(page and page["submitted_at"]),
        "seconds": seconds,
        "comment": page["comment"] if page else "",
    }


def _listened(page: sqlite3.Row | None) -> dict[str, float]:
    return json.loads(page["listened_json"] or "{}") if page else {}


def _frame(rows: list[dict[str, Any]], columns: str) -> Table:
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("tables need pandas: pip install 'taae-workbench[listening]'") from None
    return pd.DataFrame(rows, columns=[*_FIRST.split(), *columns.split()])
