"""The listening tests as one ASGI application, which `workbench.ui.page` is mounted beside."""

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from workbench.listening.admin_api import admin_routes
from workbench.listening.api import participant_routes
from workbench.listening.jobs import RenderJobs
from workbench.listening.security import Guard, Limits, SecureHeaders, server_key
from workbench.listening.store import Store

STATIC_DIR = Path(__file__).parent / "static"
ADMIN_TOKEN_VARIABLE = "TAAE_ADMIN_TOKEN"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the listening tests of one server are kept.

    Attributes:
        folder: Made where it is missing, readable by its owner alone.
    """

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "studies.sqlite"

    @property
    def sounds(self) -> Path:
        """Uploaded recordings, a folder each; no path of a study may leave it."""
        return self.folder / "sounds"

    @property
    def stimuli(self) -> Path:
        """What was rendered, by content hash."""
        return self.folder / "stimuli"

    def prepare(self) -> None:
        """Makes the folders."""
        for folder in (self.folder, self.sounds, self.stimuli):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def build_server(folder: str | Path, *, admin_token: str = "", limits: Limits | None = None) -> FastAPI:
    """The application; it opens the store at once and closes it when the server stops.

    Args:
        folder: Keeps ratings and sounds.
        admin_token: At least 16 characters; empty to make one, which `app.state.admin_token` then holds.
        limits: What may come, and how fast.

    Raises:
        ValueError: If the store is damaged or newer than this program, or the token is too short.
        OSError: If the folder cannot be written.
    """
    place = Place(Path(folder))
    place.prepare()
    token = admin_token or secrets.token_urlsafe(24)
    guard = Guard(token, limits or Limits())
    store = Store(place.database)
    key = server_key(place.folder / "secret.key")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    # No generated documentation: it loads scripts from elsewhere.
    app = FastAPI(title="Listening tests", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.admin_token = token
    app.state.store = store
    app.add_middleware(SecureHeaders)
    app.add_exception_handler(HTTPException, _as_json)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.include_router(participant_routes(store, guard, key))
    jobs = RenderJobs(store, place.stimuli)
    app.include_router(admin_routes(store, guard, jobs, sounds=place.sounds))
    app.mount("/listening", StaticFiles(directory=STATIC_DIR), name="listening")

    @app.get("/t/{study_id}", include_in_schema=False)
    async def participant(study_id: str) -> Response:
        """The same page for every study; it asks for the study itself."""
        if not re.fullmatch(r"[a-z0-9-]{1,64}", study_id):
            return JSONResponse({"detail": "there is no such page"}, 404)
        return FileResponse(STATIC_DIR / "participant.html")

    @app.get("/admin", include_in_schema=False)
    async def admin() -> Response:
        return FileResponse(STATIC_DIR / "admin.html")

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def unknown(rest: str) -> Response:
        """Nothing below /api reaches another application that is mounted beside."""
        return JSONResponse({"detail": "there is no such address"}, 404)

    return app


async def _as_json(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


async def _not_valid(_: Request, error: Exception) -> Response:
    """Without the value that was sent: it may be anything, and logs and pages need not repeat it."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": "; ".join(str(entry["msg"]) for entry in error.errors()[:3])}, 422)
