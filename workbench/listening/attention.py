"""Pages that ask for a certain answer, so that whoever does not read or does not listen shows.

The page looks like the others; in place of the question stands what to answer. Judged by `screening.attention`.
"""

from workbench.listening.records import answers_of
from workbench.listening.study import Study

BAND = 20.0  # width of a band of the scale, in points
_REST = 50.0  # where an untouched slider stands, so its band is never asked for


def targets(study: Study) -> list[str]:
    """What such a page may ask for: the lower end of a band of the scale, or an answer."""
    if study.method == "mushra":
        lows = [BAND * k for k in range(5)]
        return [f"{low:g}" for low in lows if not low <= _REST <= low + BAND]
    return list(answers_of(study))


def instruction(study: Study, target: str) -> str:
    """What the page says instead of its question."""
    begin = "This page checks that the instructions are read. Whatever you hear:"
    if study.method == "mushra":
        label = study.scale[4 - int(float(target) / BAND)]
        return f"{begin} put every scale between {words(study, target).replace(' to ', ' and ')} (“{label}”)."
    labels = {
        "acr": dict(zip("54321", study.scale, strict=True)),
        "abx": {"A": "X is A", "B": "X is B"},
        "ab": {"A": "A is better", "B": "B is better", "none": "No preference"},
    }
    return f"{begin} choose “{labels[study.method][target]}”."


def words(study: Study, target: str) -> str:
    """What was asked for, in short."""
    return f"{float(target):g} to {float(target) + BAND:g}" if study.method == "mushra" else target


def is_met(study: Study, target: str, answer: float | str) -> bool:
    """Whether a score (mushra) or an answer is the one that was asked for."""
    if study.method == "mushra":
        return float(target) <= float(answer) <= float(target) + BAND
    return answer == target
