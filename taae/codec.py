"""The codec: audio to tokens to bytes and back, at any length, rate and loudness.

Long audio goes through the model in pieces that overlap by its receptive field. A piece sees everything that the
whole would show it, so the result is that of one pass up to float32 rounding (about 1e-5 in latents and audio).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from taae.audio import MAX_PEAK, check_rates, loudness_gain, resample, to_mono
from taae.bitstream import ENCODER_DTYPES, BitstreamError, Bytes, Header, expect_model, pack, read_header, unpack
from taae.checkpoint import RVQ, load_model
from taae.config import BottleneckSpec
from taae.fast import Kernels, is_fast_wanted, speed_up
from taae.fsq import bottleneck_codes, detokenize, tokenize
from taae.longfile import mono_memmap, resample_blocks, take
from taae.model import TAAE
from taae.official import load_official_model
from taae.packed import Weights, has_bfloat16

Progress = Callable[[float], None]

logger = logging.getLogger(__name__)


def load(
    source: str | Path = "mini", *, device: str = "cpu", dtype: str = "float32", kernels: Kernels = "auto"
) -> "Codec":
    """Load a codec.

    Args:
        source: An embedded model ("mini"), a model folder, or a preset (random weights, with a warning).
        device: Where torch runs it, "cpu" or "cuda".
        dtype: "float32", or for decoding and preview "bfloat16", "int8" (8-bit weights and activations, on a CPU) or
            "float16": all of them change tokens, and files say so.
        kernels: "plain" are torch's modules, the reference. "fast" folds and packs the weights for the CPU
            (`taae.fast`); in float32 its results differ from the reference by rounding alone. "auto" is fast for
            bfloat16 and int8 on a CPU, else plain.

    Raises:
        ValueError: If there is no such model, device or dtype, they do not go together, or the files are damaged.
        RuntimeError: If fast kernels are needed, and this torch has none.
    """
    model, model_id = load_model(source)
    if (Path(source).resolve().parent / RVQ).is_file():
        logger.warning(
            "%s was trained with an RVQ, whose %s is not read here; it gets FSQ or no bottleneck", source, RVQ
        )
    return Codec(model, model_id, device=device, dtype=dtype, kernels=kernels)


def load_official(
    config_path: str | Path,
    weights_path: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    kernels: Kernels = "auto",
) -> "Codec":
    """Load a published stable-codec checkpoint, `model_config.json` with `model.safetensors` or `.ckpt`, strictly.

    Raises:
        ValueError: If a key is missing, unknown or of another shape; nothing is skipped. Else as `load`.
        RuntimeError: As `load`.
    """
    model, model_id = load_official_model(config_path, weights_path)
    return Codec(model, model_id, device=device, dtype=dtype, kernels=kernels)


class Codec:
    """A TAAE for inference with its bottleneck and file format.

    Attributes:
        model: The network; `encode_latents` and `decode_latents` are its two halves.
        model_id: 8 bytes that name its weights in `.taae` files.
        dtype: Of what goes through the network.
        precision: What it computes in, as files name it: "float32", "bfloat16", "float16" or "int8".
        is_fast: Whether the layers are those of `taae.fast`; `model` was changed then, and has no plain weights.
    """

    def __init__(
        self, model: TAAE, model_id: bytes, *, device: str = "cpu", dtype: str = "float32", kernels: Kernels = "auto"
    ) -> None:
        if dtype not in ENCODER_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(ENCODER_DTYPES)}, got {dtype!r}")
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device must be one that torch knows, such as cpu or cuda; got {device!r}") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but torch finds none here; choose cpu")
        self.is_fast = is_fast_wanted(self.device, dtype, kernels)
        self.precision = dtype
        if self.is_fast:
            if dtype == "bfloat16" and not has_bfloat16():
                logger.info("this processor does not multiply bfloat16; float32 takes its place")
                self.precision = "float32"
            model = speed_up(model, cast(Weights, self.precision))
            self.dtype: torch.dtype = model.encoder.conv_in.conv.weight.dtype
        else:
            self.dtype = getattr(torch, dtype)
            model = model.to(self.device, self.dtype)
        self.model = model.eval().requires_grad_(False)
        self.model_id = model_id
        self.config = model.config

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def hop_samples(self) -> int:
        return self.config.hop_samples

    @property
    def frame_rate_hz(self) -> float:
        return self.config.frame_rate_hz

    def encode(
        self,
        wav: Float[Tensor, "b 1 n"],
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        progress: Progress | None = None,
    ) -> Int64[Tensor, "b s k"]:
        """Audio at the model's rate to tokens, s = ceil(n / hop_samples). The level of the audio is left as it is.

        Raises:
            ValueError: If the shape, the values or the bottleneck are not what the model takes.
        """
        return tokenize(self._encode_latents(wav, progress), self._spec(bottleneck)).cpu()

    def decode(
        self,
        tokens: Int64[Tensor, "b s k"],
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b 1 n"]:
        """Tokens to audio at the model's rate, n = s * hop_samples. It is not limited to [-1, 1].

        Raises:
            ValueError: If tokens are outside their codebook, or the bottleneck does not fit.
        """
        if tokens.dim() != 3 or tokens.is_floating_point():
            raise ValueError(f"tokens must be integers (b, s, k), got {tokens.dtype} {tuple(tokens.shape)}")
        return self._decode_codes(detokenize(tokens.long().to(self.device), self._spec(bottleneck)), progress)

    def encode_batch(
        self, wavs: Sequence[Float[Tensor, "1 _"]], bottleneck: str | BottleneckSpec = "2x5^6"
    ) -> list[Int64[Tensor, "_ k"]]:
        """Encode items of any lengths; each gets the tokens it has alone, since only equally long ones share a pass."""
        return self._in_equal_groups([wav[None] for wav in wavs], lambda batch: self.encode(batch, bottleneck))

    def decode_batch(
        self, tokens: Sequence[Int64[Tensor, "_ k"]], bottleneck: str | BottleneckSpec = "2x5^6"
    ) -> list[Float[Tensor, "1 _"]]:
        """The inverse of `encode_batch`."""
        return self._in_equal_groups([item[None] for item in tokens], lambda batch: self.decode(batch, bottleneck))

    def compress(
        self,
        wav: np.ndarray | Tensor,
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        sample_rate_hz: int | None = None,
        entropy: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """Compress a recording to the bytes of a `.taae` file (docs/bitstream.md).

        Channels are averaged, the rate converted, and the loudness brought to -20 LUFS; the gain is stored.

        Args:
            wav: (n,), (channels, n) or (1, channels, n); floats in [-1, 1] or integers.
            bottleneck: Not continuous.
            sample_rate_hz: Of `wav`; the model's when left out.
            entropy: Code the tokens with an adaptive range coder where that is smaller.
            progress: Called with the fraction done.

        Raises:
            ValueError: If the audio is empty, not finite or of an unknown shape, or the bottleneck is continuous.
        """
        each = self.compress_each(wav, [bottleneck], sample_rate_hz=sample_rate_hz, entropy=entropy, progress=progress)
        return each[0]

    def compress_each(
        self,
        wav: np.ndarray | Tensor,
        bottlenecks: Sequence[str | BottleneckSpec],
        *,
        sample_rate_hz: int | None = None,
        entropy: bool = False,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """`compress` at several bitrates; the encoder runs once.

        Raises:
            ValueError: As `compress`.
        """
        specs = [self._token_spec(bottleneck) for bottleneck in bottlenecks]
        mono, rate_hz = to_mono(wav), self._rate(sample_rate_hz)
        latents, gain = self._analyse(resample(mono, rate_hz, self.sample_rate_hz), progress)
        return [self._pack(latents, spec, rate_hz, len(mono), gain, entropy) for spec in specs]

    def compress_file(
        self,
        path: str | Path,
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        entropy: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """`compress` for an audio file of any length: it is read in blocks, and memory does not grow with it.

        The mono audio at the model's rate waits in a temporary file, 64 kB a second.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: As `compress`, or if the file is not audio.
        """
        spec = self._token_spec(bottleneck)
        with mono_memmap(path, self.sample_rate_hz) as (at_model_rate, rate_hz, num_samples):
            latents, gain = self._analyse(at_model_rate, progress)
        return self._pack(latents, spec, rate_hz, num_samples, gain, entropy)

    def decompress(self, data: Bytes, *, progress: Progress | None = None) -> Float[Tensor, "1 1 n"]:
        """Decode the bytes of a `.taae` file: as many samples as went in, at their rate and level, within [-1, 1].

        Raises:
            BitstreamError: If the bytes are damaged or of another model.
        """
        header, codes = self._unpack(data)
        wav = self._decode_codes(codes, progress)
        return self._restore(wav, header.num_samples, header.sample_rate_hz, _from_db(header.gain_db))

    def decompress_blocks(
        self, data: Bytes, *, progress: Progress | None = None
    ) -> Iterator[Float32[np.ndarray, " n"]]:
        """What `decompress` gives, block by block, for recordings that should not be in memory whole.

        Raises:
            BitstreamError: As `decompress`, before the first block.
        """
        header, codes = self._unpack(data)
        gain = _from_db(header.gain_db)
        blocks = (_undo_gain(piece, gain) for piece in self._decoded_pieces(codes, progress))
        num_model_samples = -(-header.num_samples * self.sample_rate_hz // header.sample_rate_hz)
        restored = resample_blocks(take(blocks, num_model_samples), self.sample_rate_hz, header.sample_rate_hz)
        return (block.clip(-1, 1) for block in take(restored, header.num_samples))

    def reconstruct(
        self,
        wav: np.ndarray | Tensor,
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        sample_rate_hz: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Float[Tensor, "1 1 n"], Int64[Tensor, "s k"] | None]:
        """What `decompress(compress(wav))` gives, and the tokens; also for "continuous", which has none.

        Raises:
            ValueError: As `compress`.
        """
        spec = self._spec(bottleneck)
        mono, rate_hz = to_mono(wav), self._rate(sample_rate_hz)
        at_model_rate = resample(mono, rate_hz, self.sample_rate_hz)

        def half(offset: float) -> Progress:
            return lambda done: progress(offset + done / 2) if progress else None

        latents, gain = self._analyse(at_model_rate, half(0.0))
        tokens = None if spec.is_continuous else tokenize(latents, spec)
        codes = bottleneck_codes(latents, spec) if tokens is None else detokenize(tokens, spec)
        decoded = self._decode_codes(codes, half(0.5))
        return self._restore(decoded, len(mono), rate_hz, gain), None if tokens is None else tokens[0].cpu()

    def _rate(self, sample_rate_hz: int | None) -> int:
        if sample_rate_hz is None:
            return self.sample_rate_hz
        check_rates(sample_rate_hz)
        return int(sample_rate_hz)  # 16000.0 is whole too

    def _spec(self, bottleneck: str | BottleneckSpec) -> BottleneckSpec:
        spec = BottleneckSpec.parse(bottleneck)
        if not spec.is_continuous and spec.dim != self.config.latent_dim:
            raise ValueError(f"bottleneck {spec} has {spec.dim} dimensions, {self.name} has {self.config.latent_dim}")
        return spec

    def _token_spec(self, bottleneck: str | BottleneckSpec) -> BottleneckSpec:
        spec = self._spec(bottleneck)
        if spec.is_continuous:
            raise ValueError("a continuous bottleneck has no tokens to store; choose one such as '2x5^6'")
        return spec

    def _num_frames(self, num_samples: int, rate_hz: int) -> int:
        at_model_rate = -(-num_samples * self.sample_rate_hz // rate_hz)
        return -(-at_model_rate // self.hop_samples)

    def _analyse(self, at_model_rate: np.ndarray, progress: Progress | None) -> tuple[Float[Tensor, "1 s d"], float]:
        """Latents of mono audio (n,) at the model's rate brought to -20 LUFS, and the gain that did it."""
        # Rounded to what a file holds, float32 dB, so that a file and `reconstruct` agree.
        gain = _from_db(float(np.float32(20 * math.log10(loudness_gain(at_model_rate, self.sample_rate_hz)))))
        return self._encode_latents(torch.from_numpy(at_model_rate)[None, None], progress, gain), gain

    def _pack(
        self, latents: Tensor, spec: BottleneckSpec, rate_hz: int, num_samples: int, gain: float, entropy: bool
    ) -> bytes:
        tokens = tokenize(latents, spec)[0]
        header = Header(
            model_id=self.model_id,
            sample_rate_hz=rate_hz,
            num_samples=num_samples,
            num_frames=len(tokens),
            bottleneck=spec,
            gain_db=20 * math.log10(gain),
            encoder_dtype=self.precision,
        )
        return pack(header, tokens.cpu().numpy(), entropy=entropy)

    def _unpack(self, data: Bytes) -> tuple[Header, Float[Tensor, "1 s d"]]:
        header = read_header(data)
        expect_model(header, self.model_id, self.name)
        wanted = self._num_frames(header.num_samples, header.sample_rate_hz)
        if wanted != header.num_frames:
            raise BitstreamError(
                f"{header.num_samples} samples at {header.sample_rate_hz} Hz are {wanted} frames of {self.name}, "
                f"the file has {header.num_frames}; a faulty program wrote it"
            )
        _, tokens = unpack(data)  # last, since a few bytes of entropy-coded tokens may claim to be days
        return header, detokenize(torch.from_numpy(tokens)[None].to(self.device), header.bottleneck)

    def _restore(self, wav: Tensor, num_samples: int, rate_hz: int, gain: float) -> Tensor:
        decoded = _undo_gain(wav[..., : -(-num_samples * self.sample_rate_hz // rate_hz)], gain)
        restored = resample(decoded, self.sample_rate_hz, rate_hz)[:num_samples]
        return torch.from_numpy(restored.clip(-1, 1))[None, None]

    @torch.inference_mode()
    def _encode_latents(self, wav: Tensor, progress: Progress | None, gain: float = 1.0) -> Float[Tensor, "b s d"]:
        if not isinstance(wav, Tensor):
            raise ValueError(f"wav must be a torch tensor, got {type(wav).__name__}; torch.from_numpy makes one")
        if wav.dim() != 3 or wav.shape[1] != 1:
            raise ValueError(
                f"wav must be (batch, 1, samples), got {tuple(wav.shape)}; for stereo, average the channels"
            )
        if wav.numel() == 0:
            raise ValueError(f"wav is empty: shape {tuple(wav.shape)}")
        if not wav.is_floating_point():
            raise ValueError(f"wav must hold floats in [-1, 1], got {wav.dtype}; divide int16 by 32768")
        hop = self.hop_samples
        pieces = []
        for start, stop, first, last in self._pieces(-(-wav.shape[-1] // hop), progress):
            piece = wav[..., first * hop : last * hop] * gain
            if not piece.isfinite().all():
                raise ValueError(f"wav holds {int((~piece.isfinite()).sum())} values that are NaN or infinite")
            latents = self.model.encode_latents(piece.to(self.device, self.dtype))
            if not latents.isfinite().all():
                raise RuntimeError(
                    f"{self.name} gave NaN or infinite latents in {self.dtype}; use float32, check weights"
                )
            pieces.append(latents[:, start - first : stop - first].float())
        return torch.cat(pieces, dim=1)

    def _decode_codes(self, codes: Tensor, progress: Progress | None) -> Float[Tensor, "b 1 n"]:
        return torch.cat(list(self._decoded_pieces(codes, progress)), dim=-1)

    def _decoded_pieces(self, codes: Tensor, progress: Progress | None) -> Iterator[Float[Tensor, "b 1 n"]]:
        if codes.shape[1] == 0:
            raise ValueError("there are no tokens to decode")
        hop = self.hop_samples
        for start, stop, first, last in self._pieces(codes.shape[1], progress):
            with torch.inference_mode():
                wav = self.model.decode_latents(codes[:, first:last].to(self.dtype))
            yield wav[..., (start - first) * hop : (stop - first) * hop].float().cpu()

    def _pieces(self, num_frames: int, progress: Progress | None) -> Iterator[tuple[int, int, int, int]]:
        """Frames (start, stop) to keep and (first, last) to compute, for each piece of a long recording."""
        before, after = self.config.receptive_frames
        length = max(
            4500, before + after
        )  # three minutes: a tenth of the work is overlap for `mini`, at most half for any
        if num_frames <= length + before + after:
            length = num_frames
        for start in range(0, num_frames, length):
            stop = min(start + length, num_frames)
            yield start, stop, max(0, start - before), min(num_frames, stop + after)
            if progress:
                progress(stop / num_frames)

    def _in_equal_groups(self, items: list[Tensor], run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        groups: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            length = item.shape[-1] if item.is_floating_point() else item.shape[1]
            groups.setdefault(length, []).append(index)
        results: dict[int, Tensor] = {}
        for indices in groups.values():
            results.update(zip(indices, run(torch.cat([items[i] for i in indices])), strict=True))
        return [results[index] for index in range(len(items))]


def _undo_gain(wav: Tensor, gain: float) -> np.ndarray:
    # A file may claim any gain; what overflows float32 would come out of the resampler as NaN.
    return (wav[0, 0].double() / gain).clamp(-MAX_PEAK, MAX_PEAK).float().numpy()


def _from_db(gain_db: float) -> float:
    return 10 ** (gain_db / 20)
