"""Frozen dataclasses from the plain values of a TOML, YAML or JSON file, with errors that name the key."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def build(cls: type[T], values: Any, source: str) -> T:
    """Fill a dataclass; lists become tuples, tables the dataclasses that its fields ask for.

    Raises:
        ValueError: If a key is unknown or missing, a value has the wrong type, or the class refuses it; the text begins
            with `source` and the key.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected a table of keys and values, got {values!r}")
    known = {entry.name: entry for entry in fields(cls)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(str(key) for key in set(values) - set(known)):
        raise ValueError(f"{source}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [
        name
        for name, entry in known.items()
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{source}: {missing[0]} is missing")
    hints = typing.get_type_hints(cls)
    converted = {key: _convert(value, hints[key], f"{source}: {key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _convert(value: Any, wanted: Any, where: str) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return _tuples(value)
    if is_dataclass(wanted):
        return value if isinstance(value, typing.cast(type, wanted)) else build(typing.cast(type, wanted), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise ValueError(f"{where} must have {len(inner)} values, got {len(value)}")
        return tuple(_convert(entry, inner[0], f"{where} {index + 1}") for index, entry in enumerate(value))
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} must be one of {', '.join(map(str, inner))}; got {value!r}")
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            raise ValueError(f"{where} must be a table of texts, got {value!r}")
        return dict(value)
    assert origin is not types.UnionType, f"{where}: fields of this kind are not read here"
    numbers = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, numbers) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{where} must be {_WORDS[wanted]}, got {value!r}")
    return float(value) if wanted is float else value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
