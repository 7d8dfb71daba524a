import os
import random
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taae import entropy
from taae.bitstream import HEADER_BYTES, BitstreamError, Header, expect_model, pack, read_header, unpack
from taae.config import BottleneckSpec
from taae.files import write_atomic

ROOT = Path(__file__).parents[1]
MODEL_ID = b"example!"
SPECS = "1x6^6 1x17^6 2x5^6 4x3^6 4x3^8 1x2^1 1x2^62 1x65535^3 19x3^2 2x9^5 1x64^10 1x65^2".split()


def header_of(spec: str, num_frames: int, **changes) -> Header:
    header = Header(
        model_id=MODEL_ID,
        sample_rate_hz=16000,
        num_samples=640 * num_frames,
        num_frames=num_frames,
        bottleneck=BottleneckSpec.parse(spec),
        gain_db=-3.5,
    )
    return replace(header, **changes)


def random_tokens(spec: str, num_frames: int, seed: int = 0) -> np.ndarray:
    bottleneck = BottleneckSpec.parse(spec)
    generator = np.random.default_rng(seed)
    return generator.integers(0, bottleneck.codebook_size, (num_frames, bottleneck.num_stages))


def speech_like_tokens(spec: str, num_frames: int, correlation: float = 0.7) -> np.ndarray:
    """Tokens of latents that change slowly: each stage rounds what the one before left over (Eq. 3, 4)."""
    bottleneck = BottleneckSpec.parse(spec)
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((num_frames, bottleneck.dim))
    for frame in range(1, num_frames):
        latents[frame] = correlation * latents[frame - 1] + np.sqrt(1 - correlation**2) * latents[frame]
    left = np.tanh(latents)
    tokens = []
    for stage in range(bottleneck.num_stages):
        scale = (bottleneck.levels - 1.0) ** -stage
        step = 2 * scale / (bottleneck.levels - 1)
        digits = np.clip(np.floor((left + scale) / step + 0.5), 0, bottleneck.levels - 1).astype(np.int64)
        left = left - (digits * step - scale)
        tokens.append(digits @ bottleneck.levels ** np.arange(bottleneck.dim))
    return np.stack(tokens, axis=1)


def with_checksum(data: bytes) -> bytes:
    """What a faulty or hostile program could write: any bytes, and the checksum right."""
    return data[:35] + struct.pack(">I", zlib.crc32(data[39:], zlib.crc32(data[:35]))) + data[39:]


def files_of_both_modes() -> list[bytes]:
    packed = pack(header_of("2x5^6", 5), random_tokens("2x5^6", 5))
    coded = pack(header_of("4x3^6", 12), speech_like_tokens("4x3^6", 12), entropy=True)
    assert not read_header(packed).is_entropy_coded
    assert read_header(coded).is_entropy_coded
    return [packed, coded]


@st.composite
def headers_and_tokens(draw):
    levels = draw(st.one_of(st.integers(2, 9), st.integers(2, 2**16 - 1)))
    max_dim = next(dim for dim in range(62, 0, -1) if levels**dim <= 2**62)
    num_stages = draw(st.integers(1, 3)) if levels % 2 and levels < 100 else 1
    spec = BottleneckSpec(num_stages, levels, draw(st.integers(1, max_dim)))
    num_frames = draw(st.integers(0, 40))
    token = st.integers(0, spec.codebook_size - 1)
    if draw(st.booleans()):  # few different tokens, so that the entropy coder wins too
        token = st.sampled_from(draw(st.lists(token, min_size=1, max_size=3)))
    count = num_frames * num_stages
    tokens = draw(st.lists(token, min_size=count, max_size=count))
    header = Header(
        model_id=draw(st.binary(min_size=8, max_size=8)),
        sample_rate_hz=draw(st.integers(1, 2**24 - 1)),
        num_samples=draw(st.integers(1, 2**48 - 1)) if num_frames else 0,
        num_frames=num_frames,
        bottleneck=spec,
        gain_db=draw(st.floats(-770, 770, width=32)),
    )
    return header, np.array(tokens, dtype=np.int64).reshape(num_frames, num_stages)


@settings(max_examples=150, deadline=None)
@given(headers_and_tokens(), st.booleans())
def test_unpack_of_pack_is_the_identity(header_and_tokens, entropy_mode):
    header, tokens = header_and_tokens
    data = pack(header, tokens, entropy=entropy_mode)
    back, back_tokens = unpack(data)
    assert replace(back, is_entropy_coded=False) == header
    assert back_tokens.dtype == np.int64
    np.testing.assert_array_equal(back_tokens, tokens)
    assert read_header(data) == back


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("num_frames", [0, 1, 7, 300])
def test_packed_payload_has_exactly_the_ceiled_bits_most_significant_first(spec, num_frames):
    tokens = random_tokens(spec, num_frames)
    num_bits = (BottleneckSpec.parse(spec).codebook_size - 1).bit_length()
    bits = "".join(f"{token:0{num_bits}b}" for token in tokens.ravel().tolist())
    assert len(bits) == header_of(spec, num_frames).packed_payload_bits
    bits += "0" * (-len(bits) % 8)
    expected = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    data = pack(header_of(spec, num_frames), tokens)
    assert data[HEADER_BYTES:] == expected
    np.testing.assert_array_equal(unpack(data)[1], tokens)


@pytest.mark.parametrize(("spec", "bps"), [("1x6^6", 400), ("1x17^6", 625), ("2x5^6", 700), ("4x3^6", 1000)])
def test_eight_seconds_of_packed_tokens_are_the_bit_rate_of_the_paper(spec, bps):
    data = pack(header_of(spec, 8 * 25), random_tokens(spec, 8 * 25))
    assert 8 * (len(data) - HEADER_BYTES) == 8 * bps
    assert len(pack(header_of(spec, 0), random_tokens(spec, 0))) == HEADER_BYTES == 39


def test_chunks_join_without_a_seam_and_an_hour_packs_in_a_moment():
    tokens = random_tokens("2x5^6", 90_000)  # three chunks
    start = time.perf_counter()
    data = pack(header_of("2x5^6", 90_000), tokens)
    back = unpack(data)[1]
    assert time.perf_counter() - start < 2  # 0.02 s measured; a loop over tokens would take longer than 2 s
    assert len(data) == HEADER_BYTES + 90_000 * 28 // 8
    np.testing.assert_array_equal(back, tokens)


@pytest.mark.parametrize("name", ["packed", "entropy"])
def test_the_example_of_the_documentation_is_what_pack_writes(name):
    page = (ROOT / "docs/bitstream.md").read_text(encoding="utf-8")
    match = re.search(rf"```hex {name}\n(.*?)```", page, re.DOTALL)
    assert match is not None
    if name == "packed":
        header, tokens = header_of("2x5^6", 3, num_samples=1900), [[1, 15624], [7812, 0], [9000, 12345]]
    else:
        header, tokens = header_of("2x5^6", 4), [[7812, 7812]] * 3 + [[7813, 7811]]
    documented = bytes.fromhex(match[1])
    assert pack(header, np.array(tokens), entropy=name == "entropy") == documented
    assert unpack(documented)[1].tolist() == tokens


@pytest.mark.parametrize("spec", ["1x6^6", "1x17^6", "2x5^6", "4x3^6"])
def test_entropy_coding_saves_a_tenth_of_correlated_tokens(spec):
    tokens = speech_like_tokens(spec, 250)
    header = header_of(spec, 250)
    packed, coded = pack(header, tokens), pack(header, tokens, entropy=True)
    assert len(coded) - HEADER_BYTES < 0.9 * (len(packed) - HEADER_BYTES)
    np.testing.assert_array_equal(unpack(coded)[1], tokens)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("num_frames", [0, 1, 2, 60])
def test_entropy_coding_is_never_larger_and_falls_back_to_packed(spec, num_frames):
    for tokens in (random_tokens(spec, num_frames), np.zeros_like(random_tokens(spec, num_frames))):
        packed = pack(header_of(spec, num_frames), tokens)
        tried = pack(header_of(spec, num_frames), tokens, entropy=True)
        assert tried == packed or len(tried) < len(packed)
        assert read_header(tried).is_entropy_coded == (tried != packed)
        np.testing.assert_array_equal(unpack(tried)[1], tokens)


def test_uniform_tokens_of_a_full_codebook_stay_packed():
    data = pack(header_of("1x2^62", 200), random_tokens("1x2^62", 200), entropy=True)
    assert not read_header(data).is_entropy_coded
    assert pack(header_of("1x65^2", 50), np.zeros((50, 1), int), entropy=True)[5] == 0  # more levels than it takes


def encode_as_documented(digits: np.ndarray, levels: int) -> bytes:
    """The page's words once more, slowly: contexts are tuples, and one long number takes the place of carries."""
    num_frames, dim, num_stages = digits.shape
    half = (levels - 1) // 2
    common, counts, previous = {}, {}, {}
    low, interval, num_bytes = 0, 2**48, 0
    for frame in range(num_frames):
        for i in range(dim):
            position, path = 0, ()
            for stage in range(num_stages):
                near = previous.get((i, stage), 0) - position * (levels - 1) + half
                near = max(-1, min(near, levels))
                context = (path, near)
                first = [1 + int(4 / (1 + abs(v - near))) for v in range(levels)]
                shared, own = common.get(context, first), counts.get((i, context), [0] * levels)
                weights = [own[v] * sum(shared) + 32 * shared[v] for v in range(levels)]
                digit = int(digits[frame, i, stage])
                step = interval // sum(weights)
                low, interval = low + step * sum(weights[:digit]), step * weights[digit]
                while interval < 2**40:
                    low, interval, num_bytes = low * 256, interval * 256, num_bytes + 1
                more_shared = [c + (v == digit) for v, c in enumerate(shared)]
                more_own = [c + (v == digit) for v, c in enumerate(own)]
                common[context] = [(c + 1) // 2 for c in more_shared] if sum(shared) >= 1024 else more_shared
                counts[i, context] = [c // 2 for c in more_own] if sum(own) >= 256 else more_own
                position = position * (levels - 1) + digit - half
                previous[i, stage] = position
                path += (digit,)
    for unit in (2**40, 2**32):
        num_bytes += 1
        end = -(-low // unit)
        if (end + 1) * unit <= low + interval:
            break
    return end.to_bytes(num_bytes, "big")


@pytest.mark.parametrize(("levels", "num_frames"), [(2, 900), (3, 900), (6, 500), (17, 200), (64, 40)])
def test_entropy_coder_writes_what_the_documentation_describes(levels, num_frames):
    generator = np.random.default_rng(levels)
    digits = np.minimum(generator.geometric(0.4, (num_frames, 2, 3)) - 1, levels - 1)[..., : 3 if levels % 2 else 1]
    assert entropy.encode_digits(digits, levels) == encode_as_documented(digits, levels)


@pytest.mark.parametrize("levels", [2, 5, 64])
def test_range_coder_stays_exact_when_counts_are_halved_and_carries_ripple(levels):
    generator = np.random.default_rng(levels)
    rare = generator.random((3000, 2, 2)) < 0.01
    digits = np.where(rare, generator.integers(0, levels, rare.shape), levels - 1)
    payload = entropy.encode_digits(digits, levels)
    np.testing.assert_array_equal(entropy.decode_digits(payload, 3000, 2, 2, levels), digits)
    # The bound by which a reader refuses absurd frame counts holds for the cheapest digits too.
    constant = entropy.encode_digits(np.full((3000, 2, 2), levels - 1), levels)
    assert 3000 * 4 * (levels - 1) <= entropy.MAX_ALTERNATIVES_PER_BYTE * len(constant)


@pytest.mark.parametrize("data", files_of_both_modes(), ids=["packed", "entropy"])
def test_every_flipped_bit_every_cut_and_every_extra_byte_is_found(data):
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 128 >> bit % 8
        with pytest.raises(BitstreamError):
            unpack(flipped)
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            unpack(data[:length])
    for extra in (b"\0", b"\xff", data, bytes(1000)):
        with pytest.raises(BitstreamError):
            unpack(data + extra)


def test_mutated_bytes_give_an_error_or_tokens_but_never_a_crash():
    generator = random.Random(0)
    num_read = 0
    for data in files_of_both_modes():
        for _ in range(1500):
            mutated = bytearray(data)
            for _ in range(generator.randint(1, 4)):
                kind, at = generator.randrange(3), generator.randrange(len(mutated))
                if kind == 0:
                    mutated[at] = generator.randrange(256)
                elif kind == 1:
                    mutated.insert(at, generator.randrange(256))
                else:
                    del mutated[at]
            altered = bytes(mutated)
            if altered != data:
                with pytest.raises(BitstreamError):
                    unpack(altered)
            try:  # the same with a right checksum, so that everything behind it is reached
                header, tokens = unpack(with_checksum(altered), max_frames=10_000)
            except BitstreamError:
                continue
            num_read += 1
            assert tokens.shape == (header.num_frames, header.bottleneck.num_stages)
            assert 0 <= tokens.min() <= tokens.max() < header.bottleneck.codebook_size
    assert num_read > 100  # otherwise the checks behind the checksum were not reached


@given(st.binary(max_size=80))
def test_any_bytes_after_a_right_beginning_are_read_or_refused(tail):
    for beginning in (b"", b"TAAE\1", b"TAAE\1\0", b"TAAE\1\1"):
        data = beginning + tail
        for candidate in (data, with_checksum(data) if len(data) >= HEADER_BYTES else data):
            try:
                unpack(candidate, max_frames=10_000)
            except BitstreamError:
                pass


@pytest.mark.parametrize(("encoder_dtype", "bits"), [("float32", 0), ("bfloat16", 2), ("float16", 4), ("int8", 6)])
@pytest.mark.parametrize("entropy", [False, True])
def test_what_the_encoder_ran_in_is_in_the_flags_and_float32_changes_no_byte(encoder_dtype, bits, entropy):
    header, tokens = header_of("2x5^6", 40), np.full((40, 2), 7812)
    plain = pack(header, tokens, entropy=entropy)
    data = pack(replace(header, encoder_dtype=encoder_dtype), tokens, entropy=entropy)
    assert data[5] == plain[5] | bits and plain[5] == int(entropy)
    assert (data[:5], data[6:35], data[39:]) == (plain[:5], plain[6:35], plain[39:])  # the checksum covers the flags
    found, back = unpack(data)
    assert found.encoder_dtype == encoder_dtype and found.is_entropy_coded == entropy
    np.testing.assert_array_equal(back, tokens)
    with pytest.raises(ValueError, match="encoder_dtype must be one of float32, bfloat16, float16, int8, got 'int4'"):
        replace(header, encoder_dtype="int4")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"RIFF" + data[4:], r"starts with b'RIFF', expected b'TAAE'"),
        (lambda data: data[:4] + b"\2" + data[5:], "version 2, expected 1"),
        (lambda data: data[:5] + b"\x82" + data[6:], r"flags 130, expected 0 \.\.\. 7; use a newer program"),
        (lambda data: data[:5] + b"\x08" + data[6:], r"flags 8, expected 0 \.\.\. 7"),
        (lambda data: data[:5] + b"\x06" + data[6:], "checksum"),
        (lambda data: data[:20], "truncated: 20 bytes, expected 39"),
        (lambda data: data[:-1], "truncated: 56 bytes, expected 57"),
        (lambda data: data + b"\0", "too long: 58 bytes, expected 57"),
        (lambda data: data[:-1] + b"\x10", "checksum"),
        (lambda data: with_checksum(data[:-1] + b"\x11"), "last 4 bits are not zero"),
        (lambda data: with_checksum(data[:39] + b"\xff\xff" + data[41:]), "token 16383 is outside the codebook of 2x5"),
        (lambda data: data[:14] + bytes(3) + data[17:], "sample_rate_hz must be 1"),
        (lambda data: data[:27] + b"\0" + data[28:], "header is damaged"),
        (lambda data: data[:27] + bytes(4) + data[31:], "continuous"),
        (lambda data: data[:31] + struct.pack(">f", float("nan")) + data[35:], "gain_db must be finite"),
        (lambda data: data[:23] + b"\xff" * 4 + data[27:], "truncated: 57 bytes, expected 15032385572"),
    ],
)
def test_a_refusal_says_what_came_and_what_was_expected(change, text):
    data = pack(header_of("2x5^6", 5), np.zeros((5, 2), int))
    with pytest.raises(BitstreamError, match=text):
        unpack(change(data))


def altered_entropy_file(**changes) -> bytes:
    """A file whose header is not that of its payload, with a right checksum."""
    header = header_of("2x5^6", 40)
    coded = pack(header, np.full((40, 2), 7812), entropy=True)
    other = replace(header, **changes)
    front = pack(replace(other, num_frames=0, num_samples=0), np.zeros((0, other.bottleneck.num_stages), int))[:35]
    front = front[:5] + b"\1" + front[6:17] + coded[17:23] + other.num_frames.to_bytes(4, "big") + front[27:]
    return with_checksum(front + bytes(4) + coded[39:])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_frames": 2**32 - 1}, "at most 16777216 allowed"),
        ({"num_frames": 2**24}, "are 201326592 digits"),
        ({"num_frames": 2**20}, "cannot hold 1048576 frames"),
        ({"num_frames": 12}, "digits end in byte"),
        ({"num_frames": 2}, "too long or altered"),
        ({"bottleneck": BottleneckSpec(1, 65, 6)}, "takes 2 to 64 levels, got 65"),
    ],
)
def test_an_entropy_coded_file_whose_header_lies_is_refused(changes, text):
    assert unpack(altered_entropy_file())[1].tolist() == [[7812, 7812]] * 40
    with pytest.raises(BitstreamError, match=text):
        unpack(altered_entropy_file(**changes))


def test_an_entropy_coded_payload_without_its_end_or_with_more_is_refused_in_spite_of_its_checksum():
    data = files_of_both_modes()[1]
    for num_cut in range(2, 20):
        with pytest.raises(BitstreamError, match="bytes end before its digits"):
            unpack(with_checksum(data[:-num_cut]))
    with pytest.raises(BitstreamError, match="digits end in byte"):
        unpack(with_checksum(data + bytes(2)))


def test_absurd_frame_counts_allocate_nothing():
    packed = bytearray(pack(header_of("1x2^1", 8), np.zeros((8, 1), int)))
    packed[23:27] = b"\xff" * 4
    for data in (with_checksum(bytes(packed)), altered_entropy_file(num_frames=2**32 - 1)):
        tracemalloc.start()
        with pytest.raises(BitstreamError):
            unpack(data, max_frames=2**40)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 100_000


@pytest.mark.parametrize("data", files_of_both_modes(), ids=["packed", "entropy"])
def test_max_frames_is_a_limit_and_its_error_names_it(data):
    num_frames = read_header(data).num_frames
    assert len(unpack(data, max_frames=num_frames)[1]) == num_frames
    with pytest.raises(BitstreamError, match=f"at most {num_frames - 1} allowed; raise max_frames"):
        unpack(data, max_frames=num_frames - 1)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (np.zeros((2, 2), np.float32), "must be integers, got float32"),
        (np.zeros((2, 2), bool), "must be integers, got bool"),
        (np.zeros((3, 2), int), r"\(2, 2\) as the header says, got \(3, 2\)"),
        (np.zeros((2, 1), int), r"got \(2, 1\)"),
        (np.zeros((1, 2, 2), int), "one item of a batch"),
        (np.full((2, 2), -1), r"lie in 0 ... 15624, got -1"),
        (np.full((2, 2), 15625), r"got 15625"),
        (np.full((2, 2), 2**64 - 1, np.uint64), "got 18446744073709551615"),
    ],
)
@pytest.mark.parametrize("entropy_mode", [False, True])
def test_pack_refuses_tokens_that_do_not_fit(tokens, text, entropy_mode):
    with pytest.raises(ValueError, match=text):
        pack(header_of("2x5^6", 2), tokens, entropy=entropy_mode)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_id": b"short"}, "8 bytes, got 5"),
        ({"sample_rate_hz": 0}, "sample_rate_hz must be 1 ... 16777215, got 0"),
        ({"sample_rate_hz": 2**24}, "got 16777216"),
        ({"num_samples": -1}, "num_samples must be 0"),
        ({"num_samples": 2**48}, "num_samples must be 0"),
        ({"num_frames": 2**32}, "num_frames must be 0"),
        ({"num_frames": 0}, "no samples means no frames; got 1280 samples, 0 frames"),
        ({"num_samples": 0}, "no samples means no frames; got 0 samples, 2 frames"),
        ({"gain_db": float("nan")}, "gain_db must be finite"),
        ({"gain_db": float("-inf")}, "gain_db must be finite"),
        ({"gain_db": 1e300}, "gain_db must be finite"),
        ({"bottleneck": BottleneckSpec.parse("continuous")}, "continuous bottleneck has no tokens"),
        ({"bottleneck": BottleneckSpec(1, 65536, 2)}, "at most 65535 levels"),
    ],
)
def test_header_refuses_what_does_not_fit_its_field(changes, text):
    with pytest.raises(ValueError, match=text):
        replace(header_of("2x5^6", 2), **changes)


def test_gain_is_rounded_as_stored_and_its_limits_are_finite_factors_in_float32():
    assert header_of("2x5^6", 1, gain_db=0.1).gain_db == float(np.float32(0.1)) != 0.1
    for gain_db in (-770.0, 770.0):
        factor = np.float32(10 ** (gain_db / 20))
        assert np.isfinite(factor)
        assert factor > 0


def test_a_file_of_another_model_is_refused_by_name():
    header = header_of("2x5^6", 1)
    expect_model(header, MODEL_ID, "mini")
    with pytest.raises(BitstreamError, match="model 6578616d706c6521, this is mini .6f74686572212121.; load the model"):
        expect_model(header, b"other!!!", "mini")


def test_bitstream_does_not_import_torch():
    code = "import sys, taae.bitstream; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_write_refuses_to_overwrite_without_force(tmp_path):
    path = tmp_path / "a.taae"
    write_atomic(path, b"first", force=False)
    with pytest.raises(FileExistsError, match=r"a\.taae exists; .*--force"):
        write_atomic(path, b"second", force=False)
    assert path.read_bytes() == b"first"
    write_atomic(path, b"second", force=True)
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.taae"]


def test_a_write_that_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    # The kernel stops the write after 4096 bytes, as a full disk does.
    code = (
        "import resource, signal, sys\n"
        "from taae.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_atomic(sys.argv[1], bytes(100_000), force=True)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    (tmp_path / "old.taae").write_bytes(b"old")
    for name in ("old.taae", "new.taae"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "File too large"
    assert os.listdir(tmp_path) == ["old.taae"]
    assert (tmp_path / "old.taae").read_bytes() == b"old"


def test_write_follows_links_respects_the_umask_and_refuses_devices_and_folders(tmp_path):
    target = tmp_path / "target.taae"
    target.write_bytes(b"old")
    link = tmp_path / "link.taae"
    link.symlink_to(target)
    write_atomic(link, b"new", force=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert target.stat().st_mode == ordinary.stat().st_mode
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match="folder or a device"):
            write_atomic(path, b"new", force=True)
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "a.taae", b"new", force=False)
