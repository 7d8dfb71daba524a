"""What the researcher asks: `/api/admin`, behind a token that travels in the Authorization header."""

import json
import os
import re
import tempfile
import threading
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from workbench.listening import results, study_file, webmushra
from workbench.listening.jobs import RenderJobs
from workbench.listening.security import Guard, read_body, read_json
from workbench.listening.simulate import simulate_store
from workbench.listening.store import NotFoundError, RefusedError, Store
from workbench.listening.study import Study

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.()+-]{0,99}")


def admin_routes(store: Store, guard: Guard, jobs: RenderJobs, *, sounds: Path) -> APIRouter:
    """The routes of the admin's page and of scripts. `sounds` is the folder of uploaded recordings."""

    def check(request: Request) -> None:
        guard.enter(request)
        guard.admin(request)

    router = APIRouter(prefix="/api/admin", dependencies=[Depends(check)])
    computing = threading.Lock()

    @router.get("/overview")
    def overview() -> dict[str, Any]:
        """Everything that the first page shows."""
        studies = [asdict(row) | {"job": jobs.of(row.id)} for row in store.studies()]
        return {"studies": studies, "presets": study_file.preset_names(), "sounds": _folders(sounds)}

    @router.post("/studies", status_code=201)
    async def create(request: Request) -> dict[str, Any]:
        """A draft from a study file, TOML or YAML (also webMUSHRA's) by content type; its rendering begins."""
        suffix = ".toml" if "toml" in request.headers.get("content-type", "") else ".yaml"
        text = _decoded(await read_body(request, guard.limits.study_bytes))
        study = await _told(_study_of, text, suffix, sounds)
        await _told(store.create_study, study)
        jobs.start(study.name)
        return {"id": study.name, "departures": study.departures()}

    @router.get("/studies/{study_id}")
    def details(study_id: str) -> dict[str, Any]:
        """One study: its definition, how far it is, who takes part."""
        study = _plain(store.study, study_id)
        row = next(row for row in store.studies() if row.id == study_id)
        return {
            "study": study.as_dict(),
            "public": study.public(),
            "conditions": study.conditions,
            "departures": study.departures(),
            "row": asdict(row),
            "job": jobs.of(study_id),
            "listeners": store.progress(study_id),
        }

    @router.post("/studies/{study_id}/render")
    def render(study_id: str) -> dict[str, Any]:
        """Render again what is missing."""
        _plain(store.study, study_id)
        jobs.start(study_id)
        return {"job": jobs.of(study_id)}

    @router.post("/studies/{study_id}/status")
    async def status(study_id: str, request: Request) -> dict[str, Any]:
        """Open or close: `{"status": "open"}`."""
        body = await read_json(request, 1024)
        await _told(store.set_status, study_id, body.get("status"))
        return {"status": store.status(study_id)}

    @router.post("/studies/{study_id}/preview")
    def preview(study_id: str) -> dict[str, Any]:
        """A link that shows the study to the admin before it is open; its answers count nowhere."""
        session = _plain(store.join, study_id, is_preview=True)
        return {"address": f"/t/{study_id}#{session.token}"}

    @router.post("/studies/{study_id}/simulate")
    async def simulate(study_id: str, request: Request) -> dict[str, Any]:
        """Simulated listeners for a demonstration; they are marked SIMULATED wherever they appear."""
        body = await read_json(request, 1024)
        count = body.get("count", 24)
        if not isinstance(count, int) or not 1 <= count <= 200:
            raise HTTPException(422, "count is a whole number from 1 to 200")
        await _told(simulate_store, store, study_id, count)
        return {"listeners": await _told(store.progress, study_id)}

    @router.delete("/studies/{study_id}")
    def delete(study_id: str) -> dict[str, Any]:
        """A study with everything in it, unless it is open."""
        _plain(store.delete_study, study_id)
        return {}

    @router.delete("/studies/{study_id}/listeners/{listener}")
    def delete_listener(study_id: str, listener: str) -> dict[str, Any]:
        """Erases one person's data."""
        _plain(store.delete_listener, study_id, listener)
        return {}

    @router.post("/studies/{study_id}/listeners/{listener}/exclude")
    async def exclude(study_id: str, listener: str, request: Request) -> dict[str, Any]:
        """Leaves a listener out for a recorded cause; `{"cause": ""}` takes them back."""
        body = await read_json(request, 4096)
        if not isinstance(body.get("cause"), str):
            raise HTTPException(422, "cause is a text")
        await _told(store.exclude_listener, study_id, listener, body["cause"])
        return {}

    @router.get("/studies/{study_id}/results")
    def study_results(study_id: str, by: str = results.EQUIPMENT) -> Response:
        """Statistics and what the plots need; one computation at a time, so that pages which ask often do no harm."""
        with computing:
            return Response(json.dumps(_plain(results.summary, store, study_id, by)), media_type="application/json")

    @router.get("/studies/{study_id}/export/{name}")
    def export(study_id: str, name: str) -> Response:
        """A file of the results; see `results.EXPORTS`."""
        _plain(store.study, study_id)
        if name not in results.EXPORTS:
            raise HTTPException(404, f"there are {', '.join(results.EXPORTS)}")
        data = _plain(results.export, store, study_id, name)
        disposition = f'attachment; filename="{study_id}-{name}"'
        media_type = "text/csv" if name.endswith(".csv") else "application/octet-stream"
        return Response(data, media_type=media_type, headers={"content-disposition": disposition})

    @router.get("/backup")
    def backup() -> Response:
        """The whole file of studies, copied while it is in use."""
        descriptor, path = tempfile.mkstemp(suffix=".sqlite")
        os.close(descriptor)
        store.backup(path, force=True)
        name = "listening-backup.sqlite"
        return FileResponse(path, filename=name, background=BackgroundTask(os.unlink, path))

    @router.put("/sounds/{folder}/{name}", status_code=201)
    async def upload(folder: str, name: str, request: Request) -> dict[str, Any]:
        """One recording into a folder that study files can name; only what decodes as audio stays."""
        target = _target(sounds, folder, name)
        data = await read_body(request, guard.limits.sound_bytes)
        seconds = await run_in_threadpool(_store_sound, target, data)
        return {"folder": folder, "name": name, "seconds": seconds}

    return router


def _study_of(text: str, suffix: str, sounds: Path) -> Study:
    """Paths of the file begin in the folder of uploaded recordings and cannot leave it."""
    values = study_file.parse(text, suffix, "study file")
    if "pages" in values:
        return webmushra.to_study(values, sounds, root=sounds)
    return study_file.resolve(values, sounds, source="study file", root=sounds)


def _folders(sounds: Path) -> dict[str, list[str]]:
    return {
        folder.name: sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
        for folder in sorted(sounds.iterdir())
        if folder.is_dir()
    }


def _target(sounds: Path, folder: str, name: str) -> Path:
    """Names of plain letters, so that no path can leave the folder, whatever a system makes of dots and slashes."""
    if not _NAME.fullmatch(folder) or not _NAME.fullmatch(name):
        raise HTTPException(422, "names of folders and files have letters, digits, spaces and _.()+- only")
    if Path(name).suffix.lower() not in study_file.AUDIO_SUFFIXES:
        raise HTTPException(415, f"recordings are {', '.join(study_file.AUDIO_SUFFIXES)}")
    return sounds / folder / name


def _store_sound(target: Path, data: bytes) -> float:
    """Decodes it all once, so that a damaged file is refused here and not in the middle of a rendering."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=target.parent, prefix=".part-", suffix=target.suffix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        try:
            with soundfile.SoundFile(part) as sound:
                num_frames = sum(len(block) for block in sound.blocks(1 << 16))
                seconds = num_frames / sound.samplerate
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            raise HTTPException(422, f"{target.name} cannot be read as audio") from error
        if num_frames == 0:
            raise HTTPException(422, f"{target.name} holds no sound")
        os.replace(part, target)
        return round(seconds, 3)
    finally:
        Path(part).unlink(missing_ok=True)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HTTPException(422, "a study file is UTF-8 text") from error


async def _told(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await run_in_threadpool(_plain, call, *args, **kwargs)


def _plain(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call of the store, its errors as HTTP."""
    try:
        return call(*args, **kwargs)
    except NotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except RefusedError as error:
        raise HTTPException(409, str(error)) from error
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise HTTPException(422, str(error)) from error
