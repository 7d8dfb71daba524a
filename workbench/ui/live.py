"""The live page: the microphone through the codec and back, in pieces over plain HTTP. Needs the extra `app`.

A piece goes out when the answer to the last one has come, with all that was spoken meanwhile; so a slow line makes the
pieces longer and nothing piles up. WebSockets would need one more package and save a few bytes a frame.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from workbench.compare import BOTTLENECKS, bitrate_label
from workbench.live import MAX_PIECE_S, LiveError, LiveSessions, LiveSettings

if TYPE_CHECKING:
    from taae.codec import Codec

STATIC_DIR = Path(__file__).parent / "static"
FILES = ("live.html", "live.css", "live.js", "live_line.js", "page.css", "recorder.js")
Work = Callable[[Request], Awaitable[Response]]


def routes(codec: "Codec") -> list[Route]:
    """The page under /live/ and what it asks for; `codec` is used if it is causal, else the embedded causal model."""
    sessions = LiveSessions(codec)

    def answer(work: Work) -> Work:
        async def handle(request: Request) -> Response:
            try:
                return await work(request)
            except LiveError as error:
                return JSONResponse({"error": str(error)}, status_code=409)

        return handle

    async def to_page(request: Request) -> Response:
        return RedirectResponse("live/")

    async def page(request: Request) -> Response:
        return FileResponse(STATIC_DIR / "live.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(STATIC_DIR / name) if name in FILES else Response(status_code=404)

    async def status(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(lambda: describe(sessions.codec())))

    async def start(request: Request) -> Response:
        return JSONResponse({"session": await run_in_threadpool(sessions.start)})

    async def stop(request: Request) -> Response:
        sessions.stop(request.query_params.get("session", ""))
        return JSONResponse({})

    async def push(request: Request) -> Response:
        if int(request.headers.get("content-length", "0")) > 4 * MAX_PIECE_S * sessions.codec().sample_rate_hz:
            raise LiveError(f"at most {MAX_PIECE_S:g} s at a time")
        session, settings = sessions.get(request.query_params.get("session", "")), _settings(request)
        pcm, counts = await run_in_threadpool(session.push, await request.body(), settings)
        return Response(pcm, media_type="application/octet-stream", headers={"X-Live": json.dumps(counts)})

    return [
        Route("/live", to_page),
        Route("/live/", page),
        Route("/live/status", answer(status)),
        Route("/live/start", answer(start), methods=["POST"]),
        Route("/live/push", answer(push), methods=["POST"]),
        Route("/live/stop", answer(stop), methods=["POST"]),
        Route("/live/{name}", file),
    ]


def describe(codec: "Codec") -> dict:
    """What the page shows of the model."""
    return {
        "model": codec.name,
        "millions": round(sum(parameter.numel() for parameter in codec.model.parameters()) / 1e6, 1),
        "sample_rate_hz": codec.sample_rate_hz,
        "hop_samples": codec.hop_samples,
        "latency_ms": codec.config.latency_ms,
        "bitrates": [
            {"bottleneck": spec, "label": bitrate_label(spec, codec.frame_rate_hz)}
            for spec in BOTTLENECKS
            if spec != "continuous"  # has no tokens to send
        ],
    }


def _settings(request: Request) -> LiveSettings:
    query = request.query_params
    try:
        return LiveSettings(
            bottleneck=query.get("bottleneck", "2x5^6"),
            loss=float(query.get("loss", "0")),
            gain_db=float(query.get("gain_db", "0")),
        )
    except LiveError:
        raise
    except ValueError as error:
        raise LiveError(str(error)) from None
