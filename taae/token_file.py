"""Tokens as a numpy `.npz` file: what a `.taae` file holds, for programs that want integers. No torch.

    tokens          int64 (s, k)   s frames, k residual stages; each 0 ... L^d - 1
    bottleneck      str            "2x5^6"
    model_id        str            16 hexadecimal digits; the model whose tokens these are
    sample_rate_hz  int64          of the recording, not of the model
    num_samples     int64          of the recording, at that rate
    gain_db         float64        gain that brought the recording to -20 LUFS before encoding
    encoder_dtype   str            "float32", or what else the encoder ran in; where it is absent, float32

`numpy.load(path)["tokens"]` is all that a language model needs; the others let `taae decode` give back the recording.
"""

import io

import numpy as np

from taae.bitstream import Header
from taae.config import BottleneckSpec

_NAMES = ("tokens", "bottleneck", "model_id", "sample_rate_hz", "num_samples", "gain_db")


def dump_tokens(header: Header, tokens: np.ndarray) -> bytes:
    """The bytes of a token file.

    Args:
        header: As `taae.bitstream.unpack` gives it; `is_entropy_coded` is not kept.
        tokens: Integers (s, k).
    """
    file = io.BytesIO()
    np.savez(
        file,
        tokens=tokens.astype(np.int64),
        bottleneck=np.array(str(header.bottleneck)),
        model_id=np.array(header.model_id.hex()),
        sample_rate_hz=np.array(header.sample_rate_hz, dtype=np.int64),
        num_samples=np.array(header.num_samples, dtype=np.int64),
        gain_db=np.array(header.gain_db, dtype=np.float64),
        encoder_dtype=np.array(header.encoder_dtype),
    )
    return file.getvalue()


def parse_tokens(data: bytes) -> tuple[Header, np.ndarray]:
    """The inverse of `dump_tokens`; `taae.bitstream.pack` checks the range of the tokens.

    Raises:
        ValueError: If the bytes are damaged or no token file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            missing = [name for name in _NAMES if name not in file]
            if missing:
                raise ValueError(f"it has no array {', '.join(missing)}")
            tokens, bottleneck, model_id, sample_rate_hz, num_samples, gain_db = (file[name] for name in _NAMES)
            encoder_dtype = str(file["encoder_dtype"]) if "encoder_dtype" in file else "float32"
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be integers (s, k), got {tokens.dtype} {tokens.shape}")
        header = Header(
            model_id=bytes.fromhex(str(model_id)),
            sample_rate_hz=int(sample_rate_hz),
            num_samples=int(num_samples),
            num_frames=len(tokens),
            bottleneck=BottleneckSpec.parse(str(bottleneck)),
            gain_db=float(gain_db),
            encoder_dtype=encoder_dtype,
        )
    except Exception as error:  # damage makes numpy and zipfile raise a dozen kinds
        raise ValueError(f"not a token file, or a damaged one: {error}") from None
    return header, tokens.astype(np.int64)
