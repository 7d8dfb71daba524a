"""Study files: TOML or YAML over a preset, with paths and short forms.

    preset = "bs1534-3-strict"
    name = "first-test"
    title = "Speech at 700 bit/s"
    items = "clips"                                   # a folder of references, or a list of paths or tables
    training_items = ["training/hello.wav"]
    systems = ["taae 2x5^6", "codec2 700C", { name = "mine", folder = "renders/mine" }]

A folder of a system holds one file per item, named like the item. The keys are the attributes of `study.Study`.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from workbench.listening.study import Study
from workbench.listening.values import build

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")

_PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names for the key `preset`."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load(path: str | Path, root: str | Path | None = None) -> Study:
    """Read a study file, TOML or YAML by its suffix; its folder is where relative paths begin.

    Args:
        path: The file. Its stem is the study's name where the file gives none.
        root: No path of the study may leave this folder; None for a file of one's own.

    Raises:
        ValueError: If something is wrong; the text names file, key and remedy.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such study file: {path}")
    text = path.read_text(encoding="utf-8")
    values = parse(text, path.suffix, str(path))
    return resolve({"name": slug(path.stem)} | values, path.parent, source=str(path), root=root)


def parse(text: str, suffix: str, source: str) -> dict[str, Any]:
    """The values of a study file, ".toml", ".yaml" or ".yml"."""
    if suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{source}: not valid TOML: {error}") from None
    if suffix not in (".yaml", ".yml"):
        raise ValueError(f"{source}: a study file ends in .toml, .yaml or .yml, not in {suffix!r}")
    return read_yaml(text, source)


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Plain values only: a YAML file cannot name Python objects here."""
    try:
        import yaml
    except ImportError:
        raise ImportError(f"{source}: YAML needs pyyaml: pip install 'taae-workbench[listening]'") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected keys and values, got {type(values).__name__}")
    return values


def resolve(
    values: Mapping[str, Any], folder: str | Path, *, source: str = "study", root: str | Path | None = None
) -> Study:
    """Make a study of a file's values: preset below, paths against `folder`, short forms written out.

    Raises:
        ValueError: If a key is unknown or wrong, a file is missing, or a path leaves `root`.
    """
    merged = _with_preset(values, source)
    place = _Place(Path(folder), None if root is None else Path(root).resolve(), source)
    if unknown := sorted(set(merged) - {entry.name for entry in fields(Study)}):
        raise ValueError(
            f"{source}: unknown key {', '.join(unknown)}; known are preset, {', '.join(e.name for e in fields(Study))}"
        )
    for key in ("items", "training_items"):
        merged[key] = place.items(merged.get(key, []), key)
    merged["systems"] = [place.system(entry) for entry in place.list_of(merged.get("systems", []), "systems")]
    return build(Study, merged, source)


def slug(text: str) -> str:
    """The nearest name that a study may have: "My Test 2" -> "my-test-2"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:64].strip("-") or "study"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where paths of a study file begin and where they must stay."""

    folder: Path
    root: Path | None
    source: str

    def path(self, text: Any, key: str) -> Path:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{self.source}: {key}: expected a path, got {text!r}")
        path = (self.folder / text).resolve()
        if self.root is not None and not path.is_relative_to(self.root):
            raise ValueError(f"{self.source}: {key}: {text!r} leads outside of the folder of stimuli; copy it there")
        if not path.exists():
            raise ValueError(f"{self.source}: {key}: there is no {text!r} in {self.folder}")
        return path

    def list_of(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.source}: {key}: expected a list, got {value!r}")
        return list(value)

    def items(self, value: Any, key: str) -> list[dict[str, Any]]:
        if isinstance(value, str):
            folder = self.path(value, key)
            paths = [folder] if folder.is_file() else sorted(folder.iterdir())
            paths = [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES]
            if not paths:
                raise ValueError(f"{self.source}: {key}: no audio ({', '.join(AUDIO_SUFFIXES)}) in {folder}")
            return [self.item(str(path), key) for path in paths]
        return [self.item(entry, key) for entry in self.list_of(value, key)]

    def item(self, entry: Any, key: str) -> dict[str, Any]:
        entry = {"reference": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or "reference" not in entry:
            raise ValueError(f"{self.source}: {key}: expected a path or a table with `reference`, got {entry!r}")
        files = entry.get("files", {})
        if not isinstance(files, Mapping):
            raise ValueError(f"{self.source}: {key}: files: expected a table of system and path, got {files!r}")
        reference = self.path(entry["reference"], key)
        return (
            {"name": reference.stem}
            | dict(entry)
            | {
                "reference": str(reference),
                "files": {name: str(self.path(path, f"{key}: files: {name}")) for name, path in files.items()},
            }
        )

    def system(self, entry: Any) -> dict[str, Any]:
        if isinstance(entry, str):
            return {"name": entry, "codec": entry}
        if not isinstance(entry, Mapping):
            raise ValueError(f"{self.source}: systems: expected a codec or a table, got {entry!r}")
        if entry.get("folder"):
            return dict(entry) | {"folder": str(self.path(entry["folder"], "systems: folder"))}
        return {"name": entry.get("codec", "")} | dict(entry)


def _with_preset(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    values = dict(values)
    name = values.pop("preset", None)
    if name is None:
        return values
    if name not in preset_names():
        raise ValueError(f"{source}: no preset {name!r}; there are {', '.join(preset_names())}")
    return tomllib.loads((_PRESETS / f"{name}.toml").read_text(encoding="utf-8")) | values
