"""Which files of this repository a piece of code depends on, and their hash: what decides whether a result still holds.

Imports are read, not run: a function that imports when it is called counts like any other.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock

from workbench.bias import EXAMPLES

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("taae", "workbench")
# CPython 3.11 counts the depth of a syntax tree in one place for all threads, and says SystemError when it is wrong.
_PARSER = Lock()
# Presets, weights, printed numbers, results, recordings: anything may read them.
_DATA = (ROOT / "data_manifests", ROOT / "benchmarks" / "results", EXAMPLES)


def digest(source: str) -> str:
    """SHA-256 of everything that Python code `source` may use of this repository."""
    return _hash(tuple(sorted(files_of(source))))


def files_of(source: str) -> set[Path]:
    """The modules that Python code imports, directly or not, and the data of the repository.

    Of a subpackage everything is taken, since it may choose its modules by name; so are all data of `taae`.
    """
    found: set[Path] = set()
    waiting = _imported(source)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            if path.suffix == ".py":
                waiting |= _imports_of(path) - found
    data = [path for path in (ROOT / "taae").rglob("*") if path.suffix != ".py"]
    data += [path for path in (ROOT / "workbench").glob("*") if path.suffix != ".py"]
    data += [path for folder in _DATA for path in folder.rglob("*")]
    return found | {path for path in data if _is_source(path)}


@cache
def _imports_of(path: Path) -> set[Path]:
    return _imported(path.read_text(encoding="utf-8"))


def _imported(source: str) -> set[Path]:
    names: set[str] = set()
    with _PARSER:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # import_module, python -m
            names.add(node.value)
    return {path for name in names for path in _files_of_module(name)}


@cache
def _files_of_module(name: str) -> tuple[Path, ...]:
    parts = name.split(".")
    if parts[0] not in _PACKAGES or not all(part.isidentifier() for part in parts):
        return ()
    path = ROOT.joinpath(*parts)
    if len(parts) > 2:
        return _files_of_module(".".join(parts[:2]))
    if len(parts) == 2 and path.is_dir():
        return tuple(path for path in path.rglob("*") if _is_source(path))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (path,) if path.is_file() else ()


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyi"


@cache
def _hash(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
