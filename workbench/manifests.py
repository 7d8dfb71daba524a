"""Lists of the recordings that models are trained and measured on: sources, licences, checksums. Never the audio.

python -m workbench.manifests build <folder with manifest.jsonl> data_manifests/<name>.jsonl.gz
python -m workbench.manifests verify data_manifests/<name>.jsonl.gz <folder>
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

# Transcripts stay out: the list says which recordings, the recordings say the rest.
_KEYS = (
    "id",
    "path",
    "seconds",
    "language",
    "speaker",
    "corpus",
    "licence",
    "source_repo",
    "source_head",
    "original_path",
    "cut",
)


def build(folder: Path, out: Path) -> int:
    """Write the list of `folder/manifest.jsonl` with the SHA-256 of every file; returns how many clips it names.

    Raises:
        ValueError: If the folder has no manifest or a clip is missing.
    """
    rows = []
    for row in tqdm(_read(folder / "manifest.jsonl"), desc="hashing", unit="clip"):
        path = folder / row["path"]
        if not path.is_file():
            raise ValueError(f"{folder / 'manifest.jsonl'} names {row['path']}, which is not there")
        kept = {key: row[key] for key in _KEYS if row.get(key) is not None}
        rows.append(kept | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    out.write_bytes(gzip.compress(text.encode(), mtime=0))  # no time stamp: the same list is the same file
    return len(rows)


def verify(listing: Path, folder: Path) -> list[str]:
    """Compare a folder with a list: one line for each clip that is missing or differs, none when all is well."""
    problems = []
    for row in tqdm(_read(listing), desc="verifying", unit="clip"):
        path = folder / row["path"]
        if not path.is_file():
            problems.append(f"{row['path']}: missing; it is {row['original_path']} of {row['corpus']}")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != row["sha256"]:
            problems.append(f"{row['path']}: sha256 is {found[:12]}..., expected {row['sha256'][:12]}...")
    return problems


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"no list of recordings at {path}")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def main(arguments: list[str]) -> int:
    """Run `build` or `verify` from the shell; 0 when all is well, 1 when clips differ, 2 for a wrong call."""
    if len(arguments) != 3 or arguments[0] not in ("build", "verify"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if arguments[0] == "build":
            print(f"{build(Path(arguments[1]), Path(arguments[2]))} clips")
            return 0
        problems = verify(Path(arguments[1]), Path(arguments[2]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(problems) or "every clip is as listed")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
