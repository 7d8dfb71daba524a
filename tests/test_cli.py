"""The `taae` command as users run it: a process, real files, exit codes."""

import dataclasses
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from taae.bitstream import HEADER_BYTES, Header, pack, unpack
from taae.checkpoint import load_model, save_model
from taae.config import BottleneckSpec, ModelConfig
from taae.model import TAAE
from taae.official import load_official_model
from taae.token_file import dump_tokens, parse_tokens

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "taae.cli"]

# name: (sample rate in Hz, channels, seconds)
CORPUS = {
    "plain.wav": (16_000, 1, 1.01),
    "rates/narrow.WAV": (8_000, 1, 0.7),
    "rates/wide.flac": (96_000, 2, 0.5),
    "rates/short.wav": (16_000, 1, 0.01),
    "lossy/vorbis.ogg": (44_100, 1, 0.6),
    "lossy/opus.opus": (48_000, 1, 0.6),
    "lossy/layer3.mp3": (44_100, 2, 0.6),
}


# Importing torch takes longer than what most tests ask of the command. So one process imports it once and forks for
# every command: a process of its own with real files for stdin, stdout and stderr, and a start that costs nothing.
FORK_SERVER = """
import gc, json, os, sys
import scipy.signal, torch._dynamo
import taae.cli, taae.codec
gc.freeze()
for line in open(int(sys.argv[1])):
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(request["cwd"])
        for descriptor, path in enumerate(request["files"]):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        sys.argv = ["taae", *request["args"]]
        try:
            taae.cli.main()
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(stop.code)  # tearing torch down takes longer than most commands
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def fork_server(tmp_path_factory) -> Iterator[None]:
    requests, ours = os.pipe()
    folder = tmp_path_factory.mktemp("stdio")
    command = [sys.executable, "-c", FORK_SERVER, str(requests)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, pass_fds=[requests]) as process,
        open(ours, "w") as file,
    ):
        os.close(requests)
        assert process.stdout is not None
        taae.server = (file, process.stdout, [folder / name for name in ("stdin", "stdout", "stderr")])
        yield


def taae(*args, cwd: Path = ROOT, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    requests, replies, (stdin_path, stdout_path, stderr_path) = taae.server
    for path, data in ((stdin_path, stdin), (stdout_path, b""), (stderr_path, b"")):
        path.write_bytes(data)
    paths = [str(stdin_path), str(stdout_path), str(stderr_path)]
    print(json.dumps({"args": list(map(str, args)), "cwd": str(cwd), "files": paths}), file=requests, flush=True)
    return subprocess.CompletedProcess(
        args, int(replies.readline()), stdout_path.read_bytes(), stderr_path.read_bytes()
    )


def succeed(*args, **kwargs) -> bytes:
    """Stdout of a command that must work and must have nothing to complain about."""
    done = taae(*args, **kwargs)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr."""
    text = done.stderr.decode()
    assert text.startswith("taae: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text


def files_in(folder: Path) -> set[str]:
    """Every file, hidden and temporary ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def tiny_model(folder: Path, seed: int, **changes) -> Path:
    torch.manual_seed(seed)
    config = ModelConfig(name="tiny", width=32, head_dim=16, rope_dims=8, depths=(1, 1), window=(7, 8), **changes)
    save_model(TAAE(config), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, speech) -> Path:
    """Every format and odd rate, a broken file, and two files that are none of our business."""
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (name, (rate_hz, channels, seconds)) in enumerate(CORPUS.items()):
        wav = np.stack([speech(seconds, rate_hz, seed + channel) for channel in range(channels)], axis=1)
        (folder / name).parent.mkdir(exist_ok=True)
        subtype = "OPUS" if name.endswith("opus") else None
        soundfile.write(folder / name, wav, rate_hz, format="OGG" if subtype else None, subtype=subtype)
    (folder / "broken.wav").write_bytes(b"RIFF and nothing else")
    (folder / "notes.txt").write_text("not audio")
    (folder / ".hidden.wav").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def compressed(corpus, model) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """The corpus through `taae compress --json`."""
    folder = corpus.parent / f"{corpus.name}-taae"
    return folder, taae("compress", corpus, folder, "--model", model, "--bottleneck", "2x5^6", "--json")


@pytest.fixture(scope="module")
def decompressed(compressed, model) -> Path:
    folder = compressed[0].with_name(f"{compressed[0].name}-wav")
    succeed("decompress", compressed[0], folder, "--model", model)
    return folder


@pytest.fixture(scope="module")
def taae_file(model, tmp_path_factory) -> Path:
    """A file of `model` with known tokens: 1.01 s at 16 kHz."""
    header = Header(
        model_id=load_model(model)[1],
        sample_rate_hz=16_000,
        num_samples=16_160,
        num_frames=26,
        bottleneck=BottleneckSpec.parse("2x5^6"),
        gain_db=-3.5,
    )
    path = tmp_path_factory.mktemp("taae") / "known.taae"
    path.write_bytes(pack(header, np.arange(52).reshape(26, 2) * 300))
    return path


# Folders of every format


def test_a_folder_becomes_the_same_tree_of_files_and_a_broken_file_does_not_stop_the_others(compressed, corpus):
    folder, done = compressed
    assert done.returncode == 1
    assert str(corpus / "broken.wav") in complaint(done)
    assert files_in(folder) == {str(Path(name).with_suffix(".taae")) for name in CORPUS}
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [row for row in rows if "error" in row]
    assert [row["input"] for row in failed] == [str(corpus / "broken.wav")]
    assert {row["input"] for row in rows} == {str(corpus / name) for name in [*CORPUS, "broken.wav"]}


@pytest.mark.parametrize("name", CORPUS)
def test_json_tells_the_size_of_every_file_and_the_payload_is_28_bits_a_started_frame(compressed, corpus, name):
    folder, done = compressed
    rows = {row["input"]: row for row in map(json.loads, done.stdout.splitlines())}
    row, data = rows[str(corpus / name)], (folder / name).with_suffix(".taae").read_bytes()
    num_samples, rate_hz = soundfile.info(corpus / name).frames, CORPUS[name][0]
    num_frames = -(-num_samples * 25 // rate_hz)
    assert num_samples == round(CORPUS[name][2] * rate_hz) or name.endswith("mp3")  # mp3 pads
    assert row["output"] == str((folder / name).with_suffix(".taae"))
    assert (row["num_samples"], row["sample_rate_hz"], row["seconds"]) == (num_samples, rate_hz, num_samples / rate_hz)
    assert (row["tokens_shape"], row["bits_per_frame"], row["payload_bits"]) == ([num_frames, 2], 28, 28 * num_frames)
    assert row["bytes"] == len(data) == HEADER_BYTES + -(-28 * num_frames // 8)
    assert row["bits_per_second"] == pytest.approx(28 * num_frames * rate_hz / num_samples)
    assert row["file_bits_per_second"] == pytest.approx(8 * len(data) * rate_hz / num_samples)
    assert row["compression_ratio"] == pytest.approx(2 * num_samples / len(data))


@pytest.mark.parametrize("name", CORPUS)
def test_decompressed_files_have_the_rate_and_the_exact_number_of_samples_of_the_original(decompressed, corpus, name):
    original = soundfile.info(corpus / name)
    back = soundfile.info((decompressed / name).with_suffix(".wav"))
    assert (back.frames, back.samplerate, back.channels) == (original.frames, original.samplerate, 1)


def test_tokens_of_encode_are_those_of_compress_and_decode_gives_the_same_audio(
    corpus, compressed, decompressed, model
):
    source, folder = corpus / "rates", corpus.parent / f"{corpus.name}-npz"
    succeed("encode", source, folder / "npz", "--model", model)
    succeed("decode", folder / "npz", folder / "flac", "--model", model, "--format", "flac")
    assert files_in(folder / "npz") == {"narrow.npz", "wide.npz", "short.npz"}
    for name in ("narrow", "wide", "short"):
        header, tokens = unpack((compressed[0] / "rates" / f"{name}.taae").read_bytes())
        with np.load(folder / "npz" / f"{name}.npz") as file:
            np.testing.assert_array_equal(file["tokens"], tokens)
            assert file["tokens"].dtype == np.int64
            assert (str(file["bottleneck"]), str(file["model_id"])) == ("2x5^6", header.model_id.hex())
            assert (int(file["num_samples"]), int(file["sample_rate_hz"])) == (
                header.num_samples,
                header.sample_rate_hz,
            )
        flac, _ = soundfile.read(folder / "flac" / f"{name}.flac", dtype="int16")
        wav, _ = soundfile.read(decompressed / "rates" / f"{name}.wav", dtype="int16")
        np.testing.assert_array_equal(flac, wav)


@pytest.mark.slow
def test_every_development_clip_comes_back_with_all_its_samples_after_700_bits_a_second(shared, model, tmp_path):
    clips = sorted((shared / "speech" / "dev").rglob("*.flac"))
    if not clips:
        pytest.skip(f"needs recordings in {shared / 'speech' / 'dev'}")
    rows = succeed("compress", shared / "speech" / "dev", tmp_path / "taae", "--model", model, "--json").splitlines()
    succeed("decompress", tmp_path / "taae", tmp_path / "wav", "--model", model)
    by_input = {row["input"]: row for row in map(json.loads, rows)}
    assert set(by_input) == set(map(str, clips))
    for clip in clips:
        original, row = soundfile.info(clip), by_input[str(clip)]
        started_frames = -(-original.frames * 25 // original.samplerate)
        assert row["payload_bits"] * 25 == 700 * started_frames
        back = (tmp_path / "wav" / clip.relative_to(shared / "speech" / "dev")).with_suffix(".wav")
        assert (soundfile.info(back).frames, soundfile.info(back).samplerate) == (original.frames, original.samplerate)


def test_a_published_checkpoint_is_a_model_too(shared, corpus, tmp_path):
    folder = shared / "reference" / "golden" / "tiny"
    config, weights = folder / "config.json", folder / "state_dict.safetensors"
    if not config.is_file():
        pytest.skip(f"needs {config}")
    arguments = ["--official-config", config, "--model", weights, "--bottleneck", "1x17^6", "--json"]
    row = json.loads(succeed("encode", corpus / "plain.wav", tmp_path / "plain.npz", *arguments))
    assert row["model_id"] == load_official_model(config, weights)[1].hex()
    assert row["tokens_shape"] == [-(-16_160 // 80), 1]  # patches of 40 samples, stride 2


def test_convert_writes_a_published_checkpoint_as_a_folder_of_half_the_size(shared, tmp_path):
    folder = shared / "reference" / "golden" / "tiny"
    arguments = ["--official-config", folder / "config.json", "--model", folder / "state_dict.safetensors"]
    succeed("convert", tmp_path / "full", *arguments)
    succeed("convert", tmp_path / "half", "--model", tmp_path / "full", "--dtype", "bfloat16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    full, half = (load_model(tmp_path / name)[0] for name in ("full", "half"))
    direct, _ = load_official_model(folder / "config.json", folder / "state_dict.safetensors")
    wav = 0.1 * torch.randn(1, 1, 1600)
    assert torch.equal(full.encode_latents(wav), direct.encode_latents(wav))
    # bfloat16 has 8 bits of mantissa
    torch.testing.assert_close(half.encode_latents(wav), full.encode_latents(wav), atol=0.1, rtol=0.05)
    assert "exists" in complaint(taae("convert", tmp_path / "half", "--model", tmp_path / "full"))


def test_stdin_and_stdout_carry_the_same_bytes_as_files(corpus, compressed, decompressed, model):
    wav = (corpus / "plain.wav").read_bytes()
    data = succeed("compress", "-", "-", "--model", model, stdin=wav)
    assert data == (compressed[0] / "plain.taae").read_bytes()
    back = succeed("decompress", "-", "-", "--model", model, stdin=data)
    assert back == (decompressed / "plain.wav").read_bytes()


def test_the_suffix_of_the_output_chooses_its_format(taae_file, model, tmp_path):
    path = tmp_path / "back.opus"
    row = json.loads(succeed("decompress", taae_file, path, "--model", model, "--json"))
    back = soundfile.info(path)
    assert (back.format, back.subtype) == ("OGG", "OPUS")
    assert (back.frames, back.samplerate) == (16_160, 16_000)
    assert (row["output_bytes"], row["bytes"]) == (path.stat().st_size, taae_file.stat().st_size)


def test_entropy_coding_is_smaller_and_holds_the_same_tokens(corpus, compressed, model, tmp_path):
    path = tmp_path / "plain.taae"
    row = json.loads(succeed("compress", corpus / "plain.wav", path, "--model", model, "--entropy", "--json"))
    header, tokens = unpack(path.read_bytes())
    np.testing.assert_array_equal(tokens, unpack((compressed[0] / "plain.taae").read_bytes())[1])
    assert header.is_entropy_coded and row["is_entropy_coded"]
    assert path.stat().st_size < (compressed[0] / "plain.taae").stat().st_size
    assert row["payload_bits"] == 8 * (path.stat().st_size - HEADER_BYTES)


# Overwriting, interrupting, continuing


def test_an_existing_output_is_kept_until_force_is_given(taae_file, model, tmp_path):
    target = tmp_path / "back.wav"
    target.write_text("precious")
    done = taae("decompress", taae_file, target, "--model", model)
    assert (done.returncode, target.read_text()) == (1, "precious")
    assert f"{target} exists" in complaint(done) and "--force" in complaint(done)
    os.link(target, tmp_path / "old")
    assert b"26x2 tokens" in succeed("decompress", taae_file, target, "--model", model, "--force")
    assert soundfile.info(target).frames == 16_160
    assert (
        tmp_path / "old"
    ).read_text() == "precious"  # the new file took the name; it was not written over the old one
    assert files_in(tmp_path) == {"back.wav", "old"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_whole_files_only_and_can_be_continued(taae_file, model, tmp_path, number, code):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in "abd":
        shutil.copy(taae_file, source / f"{name}.taae")
    os.mkfifo(source / "c.taae")  # the run stops here until somebody writes
    # A shell that starts pytest in the background may have told its children to ignore Ctrl-C.
    code_to_run = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import taae.cli; taae.cli.main()"
    )
    arguments = ["decompress", str(source), str(target), "--model", str(model)]
    process = subprocess.Popen(
        [sys.executable, "-c", code_to_run, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    with open(source / "c.taae", "wb"):  # returns as soon as the process has opened the other end
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, b"")
    assert errors.decode() == ("taae: interrupted\n" if number == signal.SIGINT else "")
    assert files_in(target) == {"a.wav", "b.wav"}
    if number == signal.SIGTERM:
        return  # continuing does not depend on the signal
    finished = {name: (target / name).stat().st_mtime_ns for name in files_in(target)}

    (source / "c.taae").unlink()
    shutil.copy(taae_file, source / "c.taae")
    done = succeed("decompress", source, target, "--model", model, "--skip-existing")
    assert done == b"2 files written, 2 skipped, 0 failed\n"
    assert files_in(target) == {"a.wav", "b.wav", "c.wav", "d.wav"}
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == finished
    assert {soundfile.info(target / name).frames for name in files_in(target)} == {16_160}


@pytest.mark.parametrize("verb", ["info", "decompress"])
def test_a_reader_that_goes_away_ends_the_run_without_a_word(taae_file, model, verb):
    ours, theirs = os.pipe()
    os.close(ours)
    command = [*COMMAND, verb, taae_file, *(["-", "--model", model] if verb == "decompress" else [])]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_an_error(taae_file):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "info", taae_file], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "No space left on device" in complaint(done)


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("compress missing.wav out.taae", 1, "no such file or folder: missing.wav"),
        ("compress good.wav nowhere/out.taae", 1, "no such folder: nowhere"),
        ("compress good.wav good.wav --force", 1, "good.wav is the input too"),
        ("compress folder good.wav", 1, "folder is a folder, so the output must be one too"),
        ("compress folder -", 1, "folder is a folder, so the output must be one too"),
        ("compress folder out", 1, "folder holds no files that end in .flac, .mp3, .ogg, .opus, .wav"),
        ("compress twins out", 1, "would both become out/a.taae"),
        ("decompress good.wav out.doc", 2, "cannot write audio as 'doc'; choose one of wav, flac, ogg, opus, mp3"),
        ("decompress good.wav out.wav --format doc", 2, "cannot write audio as 'doc'"),
        ("compress good.wav out.taae --bottleneck 2x6^6", 2, "odd number of levels"),
        ("compress good.wav out.taae --bottleneck continuous", 2, "no tokens to store"),
        ("compress good.wav out.taae --dtype int4", 2, "int4"),
        ("compress good.wav out.taae --fast", 2, "--fast"),
        ("compress good.wav", 2, "OUT"),
        ("compress good.wav - --json", 2, "both want stdout"),
        ("compress good.wav out.taae --force --skip-existing", 2, "exclude each other"),
        ("explode good.wav", 2, "explode"),
        ("", 2, "command"),
        ("info missing.taae", 1, "no such file: missing.taae"),
        ("info good.wav", 1, "good.wav: neither a .taae file nor a token file"),
        ("eval --json report.json", 2, "either --manifest, or --reference and --degraded"),
        ("eval --reference good.wav --degraded missing.wav", 1, "no such audio file: missing.wav"),
        ("eval --manifest m.jsonl --json nowhere/report.json", 1, "no such folder: nowhere"),
    ],
)
def test_every_mistake_is_one_line_with_its_exit_code_and_writes_nothing(tmp_path, arguments, code, message):
    soundfile.write(tmp_path / "good.wav", np.zeros(1600), 16_000)
    for name in ("folder/notes.txt", "twins/a.wav", "twins/a.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = files_in(tmp_path)
    done = taae(*arguments.split(), cwd=tmp_path)
    assert message in complaint(done)
    assert (done.returncode, done.stdout, files_in(tmp_path)) == (code, b"", before)


def test_every_bad_file_of_a_folder_gets_its_line_and_the_good_one_is_decoded(taae_file, model, tmp_path):
    data = taae_file.read_bytes()
    header, tokens = unpack(data)
    stranger = Header(
        model_id=b"stranger",
        **{
            name: getattr(header, name)
            for name in ("sample_rate_hz", "num_samples", "num_frames", "bottleneck", "gain_db")
        },
    )
    contents = {
        "altered": data[:-1] + bytes([data[-1] ^ 0x10]),
        "empty": b"",
        "good": data,
        "stranger": pack(stranger, tokens),
        "truncated": data[:-5],
    }
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / f"{name}.taae").write_bytes(content)
    done = taae("decompress", "in", "out", "--model", model, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == b"1 files written, 0 skipped, 4 failed\n"
    words = {"altered": "checksum", "empty": "empty", "stranger": b"stranger".hex(), "truncated": "truncated"}
    lines = done.stderr.decode().splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [f"in/{name}.taae" for name in words]
    for line, word in zip(lines, words.values(), strict=True):
        assert word in line
    assert files_in(tmp_path / "out") == {"good.wav"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nosuch"], "no model 'nosuch'"),
        (["--device", "moon"], "moon"),
        (["--bottleneck", "2x5^8"], "bottleneck 2x5^8 has 8 dimensions, tiny has 6"),
    ],
)
def test_a_codec_that_cannot_be_had_is_one_line(model, tmp_path, options, message):
    soundfile.write(tmp_path / "good.wav", np.zeros(1600), 16_000)
    done = taae("compress", "good.wav", "out.taae", "--model", model, *options, cwd=tmp_path)
    assert (done.returncode, files_in(tmp_path)) == (1, {"good.wav"})
    assert message in complaint(done)


def test_debug_shows_where_an_error_came_from(tmp_path):
    (tmp_path / "bad.taae").write_bytes(b"TAAE and nothing else, but longer than a header")
    done = taae("--debug", "info", "bad.taae", cwd=tmp_path)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr and b"BitstreamError" in done.stderr


# Information


def test_info_of_a_taae_file_is_the_truth(taae_file):
    record = json.loads(succeed("info", taae_file, "--json"))
    header, tokens = unpack(taae_file.read_bytes())
    assert record == {
        "source": str(taae_file),
        "kind": "taae",
        "bytes": 39 + 91,
        "model_id": header.model_id.hex(),
        "encoder_dtype": "float32",
        "bottleneck": "2x5^6",
        "tokens_shape": list(tokens.shape),
        "codebook_size": 5**6,
        "bits_per_frame": 28,
        "payload_bits": 26 * 28,
        "bits_per_second": pytest.approx(26 * 28 / 1.01),
        "seconds": 1.01,
        "num_samples": 16_160,
        "sample_rate_hz": 16_000,
        "gain_db": -3.5,
        "is_entropy_coded": False,
        "file_bits_per_second": pytest.approx(8 * 130 / 1.01),
        "compression_ratio": pytest.approx(2 * 16_160 / 130),
    }
    assert b"2x5^6" in succeed("info", taae_file)
    assert json.loads(succeed("info", "-", "--json", stdin=taae_file.read_bytes())) == record | {"source": "-"}


def test_info_names_what_else_than_float32_encoded_a_file(taae_file, tmp_path):
    header, tokens = unpack(taae_file.read_bytes())
    header = dataclasses.replace(header, encoder_dtype="int8")
    (tmp_path / "int8.taae").write_bytes(pack(header, tokens))
    (tmp_path / "int8.npz").write_bytes(dump_tokens(header, tokens))
    for name in ("int8.taae", "int8.npz"):
        assert json.loads(succeed("info", tmp_path / name, "--json"))["encoder_dtype"] == "int8"
    old = dict(np.load(tmp_path / "int8.npz"))
    del old["encoder_dtype"]  # as files were before
    np.savez(tmp_path / "old.npz", **old)
    assert parse_tokens((tmp_path / "old.npz").read_bytes())[0].encoder_dtype == "float32"


def test_info_reads_a_token_file_and_refuses_a_damaged_one(taae_file, tmp_path):
    header, tokens = unpack(taae_file.read_bytes())
    data = dump_tokens(header, tokens)
    (tmp_path / "good.npz").write_bytes(data)
    record = json.loads(succeed("info", "good.npz", "--json", cwd=tmp_path))
    assert (record["kind"], record["bytes"], record["tokens_shape"]) == ("tokens", len(data), [26, 2])
    assert (record["payload_bits"], record["bottleneck"], record["seconds"]) == (26 * 28, "2x5^6", 1.01)
    tokens[3, 1] = 5**6
    (tmp_path / "bad.npz").write_bytes(dump_tokens(header, tokens))
    done = taae("info", "bad.npz", cwd=tmp_path)
    assert done.returncode == 1
    assert "tokens of 2x5^6 lie in 0 ... 15624, got 0 ... 15625" in complaint(done)


def test_info_of_the_largest_preset_has_the_numbers_of_the_paper():
    record = json.loads(succeed("info", "paper-950m", "--json"))
    assert (record["num_parameters"], record["has_weights"], record["model_id"]) == (953_319_756, False, None)
    assert (record["frame_rate_hz"], record["hop_samples"], record["latency_ms"]) == (25, 640, None)
    rates = {row["bottleneck"]: row["bits_per_second"] for row in record["bottlenecks"]}
    assert rates == {"1x6^6": 400, "1x17^6": 625, "2x5^6": 700, "4x3^6": 1000}
    # Before the stride of 2 a window is half as many latent frames as behind it: (8 / 2 + 20) windows of 63 and 64.
    assert record["receptive_frames"] == [24 * 63 + 12, 24 * 64 + 12]


def test_info_of_a_model_folder_names_its_weights(model):
    record = json.loads(succeed("info", model, "--json"))
    loaded, model_id = load_model(model)
    assert (record["name"], record["model_id"], record["has_weights"]) == ("tiny", model_id.hex(), True)
    assert record["num_parameters"] == sum(parameter.numel() for parameter in TAAE(loaded.config).parameters())


def test_a_token_file_survives_its_round_trip_and_damage_is_a_value_error(taae_file):
    header, tokens = unpack(taae_file.read_bytes())
    data = dump_tokens(header, tokens)
    again, same = parse_tokens(data)
    assert again == header
    np.testing.assert_array_equal(same, tokens)
    bare = io.BytesIO()
    np.save(bare, tokens)
    pickled = io.BytesIO()
    np.savez(
        pickled, tokens=np.array([{}]), bottleneck="2x5^6", model_id="00", sample_rate_hz=1, num_samples=1, gain_db=0
    )
    lacking = io.BytesIO()
    np.savez(lacking, tokens=tokens)
    for damaged in (
        b"",
        b"PK\3\4",
        data[:-30],
        data[: len(data) // 2],
        bare.getvalue(),
        pickled.getvalue(),
        lacking.getvalue(),
    ):
        with pytest.raises(ValueError, match="token file"):
            parse_tokens(damaged)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=3):
            damaged[position] = rng.integers(256)
        try:
            parse_tokens(bytes(damaged))
        except ValueError:
            pass  # the only error a damaged file may raise


# Terminals


def read_terminal(descriptor: int) -> str:
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()


def test_bytes_do_not_go_to_a_terminal(taae_file):
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "decompress", taae_file, "-"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    assert (done.returncode, read_terminal(ours)) == (2, "")
    assert "terminal" in complaint(done)
    os.close(ours)


def test_a_terminal_on_stderr_gets_a_progress_bar(taae_file, model, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    target = tmp_path / "back.wav"
    command = [*COMMAND, "decompress", taae_file, target, "--model", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        output = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0
    assert "1/1 known.taae" in shown and "100%|" in shown
    assert output == f"{target}: 1.01 s, 26x2 tokens of 2x5^6, 721 bit/s\n"  # 728 bits in 1.01 s


# Evaluation and training


def test_eval_scores_every_clip_at_every_bottleneck_and_continues_from_its_results(corpus, model, tmp_path):
    lines = [
        {"path": str(corpus / "plain.wav"), "id": "plain", "language": "en", "speaker": "s", "seconds": 1.01},
        {"path": "missing.wav", "id": "missing", "language": "en", "speaker": "s", "seconds": 1},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = [
        "eval",
        "--manifest",
        "m.jsonl",
        "--model",
        model,
        "--results",
        "rows.jsonl",
        "--metric",
        "mel_distance",
    ]
    arguments += ["--bottleneck", "1x6^6", "--bottleneck", "continuous", "--json"]
    done = taae(*arguments, "report.json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1].startswith("taae: 2 of 4 evaluations failed")
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {(row["id"], row["bottleneck"]): row for row in report["rows"]}
    assert rows["plain", "1x6^6"]["bytes"] == 26 * 2  # 16 bits a frame
    assert rows["plain", "continuous"]["bytes"] is None
    assert "missing.wav" in rows["missing", "1x6^6"]["error"]
    assert report["summary"]["1x6^6"]["mel_distance"]["mean"] == rows["plain", "1x6^6"]["mel_distance"]
    assert report["summary"]["1x6^6"]["num_failed"] == 1

    # The missing clip turns up: only what failed is done again.
    shutil.copy(corpus / "plain.wav", tmp_path / "missing.wav")
    again = json.loads(succeed(*arguments, "-", cwd=tmp_path))
    assert [row["mel_distance"] for row in again["rows"][:2]] == [row["mel_distance"] for row in again["rows"][2:]]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6


def test_eval_compares_two_recordings(tmp_path, speech):
    clean = speech(1.0)
    noise = np.random.default_rng(0).standard_normal(clean.size)
    noise -= clean * (noise @ clean) / (clean @ clean)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) / 10  # 20 dB below
    soundfile.write(tmp_path / "a.wav", clean, 16_000, "FLOAT")
    soundfile.write(tmp_path / "b.wav", clean + noise, 16_000, "FLOAT")
    soundfile.write(tmp_path / "c.wav", clean, 8_000, "FLOAT")
    arguments = ["eval", "--reference", "a.wav", "--metric", "si_sdr", "--json", "-", "--degraded"]
    assert json.loads(succeed(*arguments, "b.wav", cwd=tmp_path))["scores"]["si_sdr"] == pytest.approx(20, abs=0.1)
    done = taae(*arguments, "c.wav", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["rates_hz"] == [16_000, 8_000] and report["cropped_samples"] == 16_000
    assert "a.wav lasts 1.000 s, c.wav 2.000 s; their common beginning was compared" in done.stderr.decode()
    assert "they must start and end together" in complaint(taae(*arguments, "c.wav", "--no-crop", cwd=tmp_path))


def test_train_writes_a_model_folder_and_refuses_a_used_one(tmp_path, speech):
    soundfile.write(tmp_path / "clip.wav", speech(2.0), 16_000)
    clip = {"path": "clip.wav", "id": "clip", "seconds": 2.0, "corpus": "test"}
    (tmp_path / "m.jsonl").write_text(json.dumps(clip))
    recipe = """
        num_steps = 2
        is_bf16 = false
        [data]
        manifest = "m.jsonl"
        segment_s = 0.64
        batch_size = 2
        [model]
        width = 32
        head_dim = 16
        rope_dims = 8
        strides = [1, 2]
        depths = [1, 1]
        window = [7, 8]
    """
    (tmp_path / "recipe.toml").write_text(recipe)
    arguments = ["train", "--config", "recipe.toml", "--run", "runs/one", "--shared", "."]
    done = taae(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    trained, _ = load_model(tmp_path / "runs/one/model")
    assert (trained.config.width, trained.config.depths) == (32, (1, 1))
    again = taae(*arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert "--resume" in complaint(again)


# Start


def test_no_help_imports_torch_and_help_tells_the_exit_codes():
    script = """
import os, sys
from taae.cli import main
for verb in ("", "compress", "decompress", "encode", "decode", "info", "eval", "train"):
    sys.argv = ["taae", *verb.split(), "--help"]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, verb
heavy = {"torch", "numpy", "scipy", "soundfile", "tqdm"} & set(sys.modules)
print("heavy imports:", heavy or "none", os.environ["OMP_WAIT_POLICY"])
"""
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("heavy imports: none PASSIVE\n")
    assert "--bottleneck KxL^D" in done.stdout
    for line in ("0  all done", "1  a file, a model or a clip failed", "2  the command line", "130  interrupted"):
        assert line in done.stdout


def test_version_is_that_of_the_package():
    import taae as package

    done = subprocess.run([*COMMAND, "--version"], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"taae {package.__version__}\n".encode(), b"")
