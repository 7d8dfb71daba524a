"""Change single tokens of a `.taae` file and hear what they carried. Needs the extra `app`."""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from taae import audio, bitstream
from workbench.listening.security import read_json

if TYPE_CHECKING:
    from taae.codec import Codec

MAX_FRAMES = 1500  # a minute; longer recordings would keep the machine busy for every click
MAX_BODY_BYTES = 256 * 1024


def edit_tokens(data: bytes, edits: Sequence[Sequence[int]]) -> bytes:
    """A `.taae` file with other tokens at some places, everything else as it was.

    Args:
        data: The file, of at most `MAX_FRAMES` frames.
        edits: Each (frame, stage, token).

    Raises:
        ValueError: If the file is damaged or too long, or an edit is not three numbers within its bounds.
    """
    header, tokens = bitstream.unpack(data, max_frames=MAX_FRAMES)
    tokens = tokens.copy()
    num_values = header.bottleneck.levels**header.bottleneck.dim
    for edit in edits:
        if len(edit) != 3 or not all(isinstance(value, int) for value in edit):
            raise ValueError(f"an edit is (frame, stage, token), got {edit}")
        frame, stage, token = edit
        if not (0 <= frame < tokens.shape[0] and 0 <= stage < tokens.shape[1] and 0 <= token < num_values):
            raise ValueError(f"frame, stage and token must be below {(*tokens.shape, num_values)}, got {edit}")
        tokens[frame, stage] = token
    return bitstream.pack(header, tokens)


def routes(codec: "Codec") -> APIRouter:
    """POST /tokens/edit: `{"file": base64 of a .taae file, "edits": [[frame, stage, token]]}` -> wav."""
    router = APIRouter()

    @router.post("/tokens/edit")
    async def edit(request: Request) -> Response:
        """Decodes the edited file; JSON, so that no other site can ask without a preflight."""
        body = await read_json(request, MAX_BODY_BYTES)
        return Response(await run_in_threadpool(_decoded, codec, body), media_type="audio/wav")

    return router


def _decoded(codec: "Codec", body: dict[str, Any]) -> bytes:
    try:
        edits = [list(map(_whole, edit)) for edit in body.get("edits", [])]
        data = edit_tokens(base64.b64decode(body.get("file", ""), validate=True), edits)
        rate_hz = bitstream.read_header(data).sample_rate_hz
        wav = audio.to_mono(codec.decompress(data))
    except (ValueError, TypeError, binascii.Error) as error:
        raise HTTPException(422, str(error)) from error
    file = io.BytesIO()
    audio.save_wav(file, np.asarray(wav), rate_hz)
    return file.getvalue()


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected whole numbers, got {value!r}")
    return value
