"""What a listening test asks, about which sounds. `study_file.load` reads one from TOML or YAML.

A system is a codec at a bitrate (see `render.open_codec`) or files that somebody rendered. Numbers are those of ITU-R
BS.1534-3 where the study is strict.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from workbench.listening.values import build

Method = Literal["mushra", "abx", "ab", "acr"]
METHODS = ("mushra", "abx", "ab", "acr")
REFERENCE = "reference"
ANCHORS = {3500: "anchor35", 7000: "anchor70"}  # the names of webMUSHRA's files
MAX_SIGNALS = 12  # in one trial, BS.1534-3 section 5.1
MAX_ITEM_S = 12.0

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_NOT_NEGATIVE = (
    *("num_items", "items_per_listener", "repeats_per_listener", "max_repeat_difference", "attention_per_listener"),
    *("must_listen_s", "seed"),
)
_DEFAULT_QUESTIONS = {
    "mushra": "How good is each sound compared with the reference?",
    "abx": "Which of A and B is X?",
    "ab": "Which of the two do you prefer?",
    "acr": "How good is the quality of this sound?",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One thing to be judged: a codec at a bitrate, or files that somebody rendered."""

    name: str
    codec: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 80:
            raise ValueError(f"a system's name has 1 to 80 characters, got {self.name!r}")
        if self.name in (REFERENCE, *ANCHORS.values()):
            raise ValueError(f"a system cannot be called {self.name!r}, which is made by itself; choose another name")
        if self.codec and self.folder:
            raise ValueError(f"system {self.name!r} has a codec and a folder; keep one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One recording.

    Attributes:
        name: Unique; files of folder systems carry it.
        reference: Path of the original.
        files: System -> path, for systems that have neither codec nor folder.
        start_s: Where the excerpt begins.
        stop_s: Where it ends; 0 for the end of the file.
    """

    name: str
    reference: str
    files: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 0.0
    stop_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 120:
            raise ValueError(f"an item's name has 1 to 120 characters, got {self.name!r}")
        if self.start_s < 0 or (self.stop_s and self.stop_s <= self.start_s):
            raise ValueError(f"item {self.name!r}: start_s {self.start_s} and stop_s {self.stop_s} hold no sound")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One line of the questionnaire. `kind` "choice" and "likert" need options; numbers have `minimum`, `maximum`."""

    name: str
    text: str
    kind: Literal["choice", "likert", "text", "long_text", "number"] = "choice"
    options: tuple[str, ...] = ()
    is_required: bool = False
    minimum: float = 0.0
    maximum: float = 200.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", self.name):
            raise ValueError(f"a question's name is a word of letters, digits and _, got {self.name!r}")
        if (self.kind in ("choice", "likert")) != bool(self.options):
            raise ValueError(f"question {self.name!r}: options belong to kinds choice and likert, and only to them")

    def check(self, answer: Any) -> str:
        """What is wrong with an answer, "" when nothing is; None and "" are no answer."""
        if answer is None or answer == "":
            return f"{self.name}: an answer is required" if self.is_required else ""
        if self.kind == "number":
            if isinstance(answer, bool) or not isinstance(answer, int | float):
                return f"{self.name}: expected a number"
            return "" if self.minimum <= answer <= self.maximum else f"{self.name}: not within its limits"
        if not isinstance(answer, str) or len(answer) > 5000:
            return f"{self.name}: expected a text of at most 5000 characters"
        return f"{self.name}: not one of the options" if self.options and answer not in self.options else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A listening test.

    Attributes:
        name: In addresses: lower-case letters, digits and "-".
        method: "mushra", "abx", "ab" or "acr" (absolute category rating, P.800).
        question: Asked in every trial.
        items, training_items: Recordings; training comes first and is never counted.
        systems: What is judged, beside the hidden reference and the anchors.
        pairs: For abx and ab, names of two systems or "reference"; empty: every system against the reference.
        anchors_hz: Low-pass anchors to add, of 3500 and 7000.
        has_labelled_reference: The listener can hear the reference, called so (mushra, ab).
        has_hidden_reference: It is also among the sounds to judge (mushra, acr).
        is_strict: Refuse what BS.1534-3 does not allow, instead of warning.
        scale: Labels of five bands, best first.
        allows_no_preference: "No preference" is an answer of ab.
        repetitions: How often a listener meets each pair of an item (abx, ab).
        num_items: Draw this many of `items` by the seed; 0 for all.
        items_per_listener: Each listener gets this many, balanced over listeners; 0 for all.
        repeats_per_listener: Items that come a second time, to see how reliable a listener is (mushra).
        max_repeat_difference: Points by which second ratings may differ from the first on average, before
            post-screening flags the listener; 0 for no such rule.
        attention_per_listener: Pages that ask for a certain answer instead of a judgement; others are flagged.
        excludes_inattentive: Leave those out whom the last two flag; otherwise they are only named.
        order: Nested order of items, ("random" or "fixed", item or order, ...); empty: all at random.
        seed: Of the design.
        loudness_lufs: Level that references are brought to; stimuli follow the reference. BS.1770.
        matches_level: Bring every system to the loudness of its reference.
        must_move: A slider has to be moved, though it may go back.
        must_listen_s: Seconds of every sound that have to be heard before a trial can be closed.
        prescreen: Pages before the training: "level", "headphones".
        consent: Text to agree to; empty: no consent page.
        instructions: Text before the training.
        thanks: Text at the end.
        questionnaire: Asked once. Results are split by a question of the name "equipment".
        source: Where the protocol is from; shown to the admin.
    """

    name: str
    title: str
    method: Method = "mushra"
    question: str = ""
    items: tuple[Item, ...] = ()
    training_items: tuple[Item, ...] = ()
    systems: tuple[System, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    anchors_hz: tuple[int, ...] = ()
    has_labelled_reference: bool = True
    has_hidden_reference: bool = True
    is_strict: bool = False
    scale: tuple[str, ...] = ("Excellent", "Good", "Fair", "Poor", "Bad")
    allows_no_preference: bool = False
    repetitions: int = 1
    num_items: int = 0
    items_per_listener: int = 0
    repeats_per_listener: int = 0
    max_repeat_difference: float = 0.0
    attention_per_listener: int = 0
    excludes_inattentive: bool = False
    order: tuple[Any, ...] = ()
    seed: int = 0
    loudness_lufs: float = -23.0
    matches_level: bool = True
    must_move: bool = True
    must_listen_s: float = 0.5
    prescreen: tuple[str, ...] = ("level", "headphones")
    consent: str = ""
    instructions: str = ""
    thanks: str = "Thank you for listening."
    questionnaire: tuple[Question, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.name):
            raise ValueError(
                f"name has 1 to 64 lower-case letters, digits and '-', such as first-test; got {self.name!r}"
            )
        if not self.title or len(self.title) > 200:
            raise ValueError(f"title has 1 to 200 characters, got {len(self.title)}")
        for key in _NOT_NEGATIVE:
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if self.repetitions < 1:
            raise ValueError(f"repetitions must be at least 1, got {self.repetitions}")
        if len(self.scale) != 5:
            raise ValueError(f"scale needs five labels, best first; got {len(self.scale)}")
        if unknown := [hz for hz in self.anchors_hz if hz not in ANCHORS]:
            raise ValueError(f"anchors_hz may hold 3500 and 7000, got {unknown[0]}")
        if unknown := [page for page in self.prescreen if page not in ("level", "headphones")]:
            raise ValueError(f"prescreen may hold 'level' and 'headphones', got {unknown[0]!r}")
        _unique("systems", [system.name for system in self.systems])
        _unique("items and training_items", [item.name for item in (*self.items, *self.training_items)])
        _unique("questionnaire", [question.name for question in self.questionnaire])
        self._check_items()
        self._check_conditions()
        if self.is_strict and (faults := self.departures()):
            raise ValueError(f"not allowed by BS.1534-3: {'; '.join(faults)}. Mend it, or set is_strict = false")

    def _check_items(self) -> None:
        names = [item.name for item in self.items]
        if self.num_items > len(names):
            raise ValueError(f"num_items is {self.num_items}, but there are {len(names)} items; add some or lower it")
        if self.items_per_listener > (count := self.num_items or len(names)):
            raise ValueError(f"items_per_listener is {self.items_per_listener}, but there are {count} items")
        if self.repeats_per_listener > (self.items_per_listener or count):
            raise ValueError(f"repeats_per_listener is {self.repeats_per_listener}, more than a listener has items")
        if self.repeats_per_listener and self.method != "mushra":
            raise ValueError(f"repeats_per_listener is for mushra; with {self.method} use repetitions")
        if self.max_repeat_difference and not self.repeats_per_listener:
            raise ValueError("max_repeat_difference compares repeats, but repeats_per_listener is 0")
        if self.order and sorted(_leaves(self.order)) != sorted(names):
            raise ValueError("order must name every item exactly once")
        if self.order and self.num_items:
            raise ValueError("order and num_items exclude each other: order names every item")

    def _check_conditions(self) -> None:
        for system in self.systems:
            if system.codec or system.folder:
                continue
            without = [item.name for item in (*self.items, *self.training_items) if system.name not in item.files]
            if without:
                raise ValueError(
                    f"system {system.name!r} has no codec, no folder, and no file for item {without[0]!r}; "
                    "give one of the three"
                )
        known = [REFERENCE, *self.anchor_names, *(system.name for system in self.systems)]
        for pair in self.pairs:
            if len(pair) != 2 or pair[0] == pair[1] or any(name not in known for name in pair):
                raise ValueError(f"pairs hold two different names of {', '.join(known)}; got {list(pair)}")
        if self.pairs and self.method not in ("abx", "ab"):
            raise ValueError(f"pairs are for abx and ab, not for {self.method}")
        if self.method == "mushra" and len(self.conditions) > MAX_SIGNALS:
            raise ValueError(
                f"{len(self.conditions)} signals in a trial, at most {MAX_SIGNALS} can be judged (BS.1534-3): "
                f"{', '.join(self.conditions)}; split the study"
            )

    # What follows from the fields

    @property
    def method_label(self) -> str:
        """What the method may call itself: a test without anchors is not MUSHRA (BS.1534-3)."""
        if self.method != "mushra":
            return {"abx": "ABX", "ab": "AB preference", "acr": "ACR"}[self.method]
        if self.is_strict:
            return "MUSHRA (BS.1534-3)"
        return "MUSHRA" if set(self.anchors_hz) == {3500, 7000} else "MUSHRA-style, no anchor"

    @property
    def asked(self) -> str:
        """The question, or the usual one of the method."""
        return self.question or _DEFAULT_QUESTIONS[self.method]

    @property
    def offers_reference(self) -> bool:
        """Whether a trial has the labelled reference; ABX and ACR never do."""
        return self.has_labelled_reference and self.method in ("mushra", "ab")

    @property
    def anchor_names(self) -> list[str]:
        return [ANCHORS[hz] for hz in self.anchors_hz]

    @property
    def conditions(self) -> list[str]:
        """What is judged of one item, by name."""
        hidden = [REFERENCE] if self.has_hidden_reference and self.method in ("mushra", "acr") else []
        return [*hidden, *self.anchor_names, *(system.name for system in self.systems)]

    @property
    def all_pairs(self) -> list[tuple[str, str]]:
        """For abx and ab: `pairs`, or every condition against the reference."""
        return [*self.pairs] or [(REFERENCE, name) for name in self.conditions if name != REFERENCE]

    @property
    def sounds(self) -> list[str]:
        """Every stimulus that an item needs, the reference first."""
        return [REFERENCE, *(name for name in self.conditions if name != REFERENCE)]

    @property
    def sha256(self) -> str:
        """Of the study as JSON."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def kind_of(self, system: str) -> Literal["reference", "anchor", "codec", "files"]:
        """What a condition is."""
        if system == REFERENCE:
            return "reference"
        if system in ANCHORS.values():
            return "anchor"
        found = next((entry for entry in self.systems if entry.name == system), None)
        if found is None:
            raise ValueError(f"study {self.name!r} has no system {system!r}; it has {', '.join(self.sounds)}")
        return "codec" if found.codec else "files"

    def departures(self) -> list[str]:
        """Where the study leaves BS.1534-3, in words; empty for methods other than mushra."""
        if self.method != "mushra":
            return [f"method is {self.method}, not mushra"] if self.is_strict else []
        wanted = max(5, -(-3 * len(self.systems) // 2))
        num_items = self.num_items or len(self.items)
        checks = {
            "the 3.5 and 7 kHz anchors are mandatory (anchors_hz)": set(self.anchors_hz) == {3500, 7000},
            "a hidden reference is mandatory (has_hidden_reference)": self.has_hidden_reference,
            "a labelled reference is mandatory (has_labelled_reference)": self.has_labelled_reference,
            "training is mandatory (training_items)": bool(self.training_items),
            f"{len(self.systems)} systems want at least {wanted} items, there are {num_items}": num_items >= wanted,
        }
        return [text for text, is_met in checks.items() if not is_met]

    def public(self) -> dict[str, Any]:
        """What a listener's page may know: no system, no item, no seed, no order."""
        return {
            "name": self.name,
            "title": self.title,
            "method": self.method,
            "method_label": self.method_label,
            "question": self.asked,
            "scale": list(self.scale),
            "has_labelled_reference": self.offers_reference,
            "allows_no_preference": self.allows_no_preference,
            "must_move": self.must_move,
            "must_listen_s": self.must_listen_s,
            "prescreen": list(self.prescreen),
            "consent": self.consent,
            "instructions": self.instructions,
            "thanks": self.thanks,
            "questionnaire": [asdict(question) for question in self.questionnaire],
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "study") -> Self:
        """The study that `as_dict` wrote."""
        return build(cls, values, source)


def _unique(key: str, names: list[str]) -> None:
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{key}: {double!r} is there twice; names must differ")


def _leaves(order: tuple[Any, ...]) -> list[str]:
    if order[0] not in ("random", "fixed"):
        raise ValueError(f"an order begins with 'random' or 'fixed', got {order[0]!r}")
    return [leaf for entry in order[1:] for leaf in (_leaves(tuple(entry)) if not isinstance(entry, str) else [entry])]
