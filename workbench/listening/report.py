"""The results of one study as text and as files: what the command line prints and writes."""

from pathlib import Path
from typing import Any

from taae.files import write_atomic
from workbench.listening import results
from workbench.listening.store import Store


def evaluate(store: Store, study_id: str, *, is_simulated: bool = False, by: str = results.EQUIPMENT) -> dict[str, Any]:
    """`results.summary`, refused where it would be about other listeners than were asked for, or split by nothing."""
    asked = [question.name for question in store.study(study_id).questionnaire if question.options]
    if by != results.EQUIPMENT and by not in asked:
        raise ValueError(f"study {study_id!r} has no question {by!r} with options; it has {', '.join(asked) or 'none'}")
    result = results.summary(store, study_id, by)
    if not result["num_listeners"]:
        raise ValueError(f"study {study_id!r} has no listeners yet")
    if result["is_simulated"] != is_simulated:
        has, remedy = ("real", "leave --simulated out") if is_simulated else ("only simulated", "pass --simulated")
        raise ValueError(f"study {study_id!r} has {has} listeners; {remedy}")
    return result


def as_text(result: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    mark = "SIMULATED " if result["is_simulated"] else ""
    lines = [
        f"{result['method_label']}: {result['num_finished']} of {result['num_listeners']} {mark}listeners finished, "
        f"{result['num_kept']} kept, {result['num_answers']} answers"
    ]
    lines += [f"excluded {listener}: {reason}" for listener, reason in result["excluded"].items()]
    lines += [f"flagged {listener}: {reason}" for listener, reason in result["flagged"].items()]
    lines += [_system(row) for row in result.get("systems", [])]
    if (friedman := result.get("friedman") or {}).get("p") is not None:
        lines.append(f"Friedman: chi2({friedman['df']}) = {friedman['statistic']:.2f}, p = {friedman['p']:.2g}")
    lines += [_pair(row) for row in result.get("pairs", [])]
    groups = result.get("groups", {"question": "", "groups": []})
    for group in groups["groups"]:
        lines.append(f"{groups['question']} {group['answer']}: n = {group['num_listeners']}")
        lines += [f"  {_system(row)}" for row in group.get("systems", [])]
        lines += [f"  {_pair(row)}" for row in group.get("pairs", [])]
    lines += [f"note: {text}" for text in (*result["flags"], *result["departures"])]
    return lines


def export(store: Store, study_id: str, folder: Path, *, force: bool = False) -> list[str]:
    """Write every file of `results.EXPORTS`; returns their names. Tables have a column `is_simulated`.

    Raises:
        FileExistsError: If a file is there and `force` is false.
    """
    store.study(study_id)
    folder.mkdir(parents=True, exist_ok=True)
    for name in results.EXPORTS:
        write_atomic(folder / name, results.export(store, study_id, name), force=force)
    return results.EXPORTS


def _system(row: dict[str, Any]) -> str:
    return (
        f"{row['system']:24} median {row['median']:5.1f}  IQR {row['iqr']:5.1f}  mean {row['mean']:5.1f}  "
        f"95 % CI {_number(row['low'])} to {_number(row['high'])}  n = {row['num_listeners']}"
    )


def _pair(row: dict[str, Any]) -> str:
    if "difference" in row:
        return (
            f"{row['a']} - {row['b']}: {_number(row['difference'])} points, Wilcoxon-Holm p = "
            f"{_number(row['wilcoxon_holm'], '.2g')}, permutation-Holm p = {_number(row['permutation_holm'], '.2g')}"
        )
    if "num_correct" in row:
        right = f"{row['num_correct']} of {row['num_trials']} right"
        return f"{row['a']} / {row['b']}: {right}, binomial p = {row['p']:.2g}, n = {row['num_listeners']}"
    if "num_a" in row:
        counts = f"{row['num_a']} to {row['num_b']}, {row['num_none']} without preference"
        return f"{row['a']} / {row['b']}: {counts}, sign test p = {row['p']:.2g}, n = {row['num_listeners']}"
    return f"{row['a']} / {row['b']}: {row.get('error', 'no answers')}"


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
