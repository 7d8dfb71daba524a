"""Who hears what, in which order and slot: Williams squares over trials and slots, balanced as listeners arrive.

A listener is a row number, 0, 1, 2, ...; the store gives the lowest free one. Everything here is a pure function of the
study (with its seed) and the row, so a plan can be made again at any time. Three things are balanced over rows:

- **items**: rows cut a circular list of items into consecutive pieces, so counts differ by one at most at any time;
- **trial order**: rows of a Williams square, in which every trial is at every position, and follows every other one,
  equally often (Williams 1949);
- **slots**: for each item, the listeners who meet it take the rows of a Williams square over its conditions in turn.

Pages that check attention come between the others. Each round of rows is shuffled by the seed, so that a listener
cannot guess the next trial from the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from workbench.listening import attention
from workbench.listening.study import Study

SLOTS = "ABCDEFGHIJKL"  # at most 12 signals a trial (BS.1534-3); the labelled reference is "R", ABX's third sound "X"
LABELLED_REFERENCE = "R"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One page, unblinded: `systems[i]` is behind `slots[i]`; `kind` is what the statistics see.

    A page of kind "attention" has a `target`, the answer that it asks for: see `attention.py`.
    """

    item: str
    kind: Literal["training", "test", "repeat", "attention"]
    slots: tuple[str, ...]
    systems: tuple[str, ...]
    target: str = ""

    def system_of(self, slot: str) -> str:
        """The condition behind a slot. ValueError if the trial has no such slot."""
        if slot not in self.slots:
            raise ValueError(f"this trial has slots {', '.join(self.slots)}, not {slot[:8]!r}")
        return self.systems[self.slots.index(slot)]


def williams_row(num: int, row: int) -> list[int]:
    """One row of a Williams square of `num` treatments; rows repeat after `williams_rows(num)`.

    In all rows together every treatment is at every position equally often, and follows every other one equally often.
    Source: E. J. Williams, Aust. J. Chem. 2 (1949) 149. For an odd number the square has a mirrored twin.
    """
    zigzag = [(index + 1) // 2 if index % 2 else -(index // 2) for index in range(num)]  # 0, 1, -1, 2, -2, ...
    shift, is_mirrored = row % num, num % 2 == 1 and row // num % 2 == 1
    order = [(value + shift) % num for value in zigzag]
    return order[::-1] if is_mirrored else order


def williams_rows(num: int) -> int:
    """How many rows the square has: `num` when even, twice that when odd (1 and 2 need no twin)."""
    return num if num % 2 == 0 or num == 1 else 2 * num


def make_plan(study: Study, row: int) -> list[Trial]:
    """The trials of the listener in `row`: training first, then test with repeats mixed into the second half."""
    training = [
        trial
        for index, item in enumerate(study.training_items)
        for trial in _trials(study, item.name, "training", num_before=row, salt=index)
    ]
    items, num_before = _items_of(study, row)
    trials = {item: _trials(study, item, "test", num_before=num_before[item], salt=0) for item in items}
    order = _prune(study.order, trials.keys()) if study.order else ("random", *items)
    if order[0] == "random" and all(isinstance(entry, str) for entry in order[1:]):
        everything = [trial for item in order[1:] for trial in trials[item]]
        test = [everything[index] for index in _shuffled_row(study.seed, "order", len(everything), row)]
    else:
        test = [trial for item in _walk(study.seed, order, row, "order") for trial in trials[item]]
    return training + _with_attention(study, _with_repeats(study, test, row), row)


def public_trial(trial: Trial, index: int, study: Study, seconds: float) -> dict[str, Any]:
    """What the browser may see: nothing that depends on a system; a repeat looks like any other trial."""
    asked = {"instruction": attention.instruction(study, trial.target)} if trial.kind == "attention" else {}
    return asked | {
        "trial": index,
        "kind": "training" if trial.kind == "training" else "test",
        "slots": list(trial.slots),
        "has_reference": study.offers_reference,
        "seconds": round(seconds, 3),
    }


def _items_of(study: Study, row: int) -> tuple[list[str], dict[str, int]]:
    """A row's items, and for each how many earlier rows have it."""
    names = [item.name for item in study.items]
    generator = _generator(study.seed, "items")
    ring = [names[index] for index in generator.permutation(len(names))[: study.num_items or len(names)]]
    count = study.items_per_listener or len(ring)
    places = range(row * count, (row + 1) * count)
    return [ring[place % len(ring)] for place in places], {
        ring[place % len(ring)]: place // len(ring) for place in places
    }


def _trials(study: Study, item: str, kind: Literal["training", "test"], *, num_before: int, salt: int) -> list[Trial]:
    """The pages that one item needs, for the listener who comes after `num_before` others."""
    key = f"{kind} {salt} {item}"
    if study.method == "mushra":
        conditions = study.conditions
        order = _shuffled_row(study.seed, key, len(conditions), num_before)
        systems = tuple(conditions[index] for index in order)
        return [Trial(item=item, kind=kind, slots=tuple(SLOTS[: len(systems)]), systems=systems)]
    if study.method == "acr":
        return [Trial(item=item, kind=kind, slots=("A",), systems=(name,)) for name in study.conditions]
    trials = []
    for pair in study.all_pairs:
        for repetition in range(study.repetitions):
            turn = num_before * study.repetitions + repetition
            case = _shuffled(study.seed, f"{key} {pair}", 4, turn)  # A and B swapped or not, X either of them
            first, second = pair[::-1] if case % 2 else pair
            if study.method == "ab":
                trials.append(Trial(item=item, kind=kind, slots=("A", "B"), systems=(first, second)))
            else:
                unknown = second if case // 2 else first
                trials.append(Trial(item=item, kind=kind, slots=("A", "B", "X"), systems=(first, second, unknown)))
    return trials


def _with_repeats(study: Study, test: list[Trial], row: int) -> list[Trial]:
    """Repeats come from anywhere, never right after the first time unless nothing else is left to come between."""
    generator = _generator(study.seed, "repeats", row)
    last = len(test)
    keyed: list[tuple[float, Trial]] = [(float(index), trial) for index, trial in enumerate(test)]
    for index in generator.permutation(max((last + 1) // 2, study.repeats_per_listener))[: study.repeats_per_listener]:
        first = test[index]
        count = len(first.systems)
        other = _shuffled_row(study.seed, f"repeat {first.item}", count, row)
        systems = tuple(first.systems[place] for place in other)
        earliest = min(max(last / 2, index + 1.01), last)
        key = generator.uniform(earliest, last + 0.5)
        keyed.append((key, Trial(item=first.item, kind="repeat", slots=first.slots, systems=systems)))
    return [trial for _, trial in sorted(keyed, key=lambda pair: pair[0])]


def _with_attention(study: Study, test: list[Trial], row: int) -> list[Trial]:
    """Spread over the test, never its first page nor two in a row; on sounds of the training where there are any."""
    generator = _generator(study.seed, "attention", row)
    names = [item.name for item in study.training_items] or [trial.item for trial in test]
    places = generator.permutation(max(0, len(test) - 1))[: study.attention_per_listener]
    for place in sorted(map(int, places), reverse=True):
        trials = _trials(study, str(generator.choice(names)), "test", num_before=row, salt=place + 1)
        like = trials[int(generator.integers(len(trials)))]
        wanted = attention.targets(study)
        if study.method == "abx":  # the wrong answer, which nobody gives who only listens
            wanted = ["B" if like.system_of("A") == like.system_of("X") else "A"]
        test.insert(place + 1, replace(like, kind="attention", target=str(generator.choice(wanted))))
    return test


def _walk(seed: int, order: Sequence[Any], row: int, path: str) -> list[str]:
    """The items of a nested order; every "random" level is a Williams square of its own."""
    entries = order[1:]
    places = _shuffled_row(seed, path, len(entries), row) if order[0] == "random" else range(len(entries))
    items = []
    for place in places:
        entry = entries[place]
        items += [entry] if isinstance(entry, str) else _walk(seed, entry, row, f"{path} {place}")
    return items


def _prune(order: Sequence[Any], keep: Any) -> tuple[Any, ...]:
    """The order without items that this listener does not get."""
    entries = [entry if isinstance(entry, str) else _prune(entry, keep) for entry in order[1:]]
    return (order[0], *(entry for entry in entries if (entry in keep if isinstance(entry, str) else len(entry) > 1)))


def _shuffled_row(seed: int, key: str, num: int, turn: int) -> list[int]:
    """Positions are balanced after `num` turns already; the mirrored twin of an odd square fills every second round."""
    return williams_row(num, _shuffled(seed, key, num, turn) + num * (turn // num % 2)) if num else []


def _shuffled(seed: int, key: str, num: int, turn: int) -> int:
    """0 to num - 1 once in every round of `num` turns, in an order that the seed shuffles anew for each round."""
    return int(_generator(seed, key, turn // num).permutation(num)[turn % num])


def _generator(seed: int, key: str, number: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, number, *key.encode()])
