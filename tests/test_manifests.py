import gzip
import json

import pytest

from workbench.manifests import build, main, verify


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "speech"
    source.mkdir()
    rows = []
    for name in ("a", "b"):
        (source / f"{name}.flac").write_bytes(name.encode() * 100)
        rows.append(
            {
                "path": f"{name}.flac",
                "id": name,
                "seconds": 1.0,
                "transcript": "SECRET",
                "corpus": "C",
                "original_path": name,
            }
        )
    (source / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


def test_a_list_names_every_clip_with_its_checksum_and_no_transcript(folder, tmp_path):
    assert build(folder, tmp_path / "list.jsonl.gz") == 2
    text = gzip.decompress((tmp_path / "list.jsonl.gz").read_bytes()).decode()
    assert "SECRET" not in text
    assert [len(json.loads(line)["sha256"]) for line in text.splitlines()] == [64, 64]
    assert verify(tmp_path / "list.jsonl.gz", folder) == []


def test_verify_names_what_is_missing_and_what_differs(folder, tmp_path):
    build(folder, tmp_path / "list.jsonl.gz")
    (folder / "a.flac").unlink()
    (folder / "b.flac").write_bytes(b"other")
    missing, differing = verify(tmp_path / "list.jsonl.gz", folder)
    assert missing.startswith("a.flac: missing")
    assert differing.startswith("b.flac: sha256")
    assert main(["verify", str(tmp_path / "list.jsonl.gz"), str(folder)]) == 1


def test_the_same_clips_give_the_same_file(folder, tmp_path):
    build(folder, tmp_path / "one.gz")
    build(folder, tmp_path / "two.gz")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


@pytest.mark.parametrize("name", ["train", "dev"])
def test_the_committed_lists_are_those_of_the_shared_speech(shared, name, request):
    listing = request.config.rootpath / "data_manifests" / f"speech.{name}.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(listing.read_bytes()).decode().splitlines()]
    originals = [json.loads(line) for line in (shared / "speech" / name / "manifest.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [row["path"] for row in originals]
    assert all(row["licence"] for row in rows)
