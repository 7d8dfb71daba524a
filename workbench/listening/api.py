"""What the listener's page asks: `/api/t/<study>` and `/api/session`.

Everything that the page has to keep comes through `/api/session/sync`, in the order in which it happened, as often as
the page likes: the store takes each entry once. A token travels in a header and never in an address, which logs keep.
"""

import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from workbench.listening.render import salted_wav
from workbench.listening.security import Guard, read_json, slot_salt
from workbench.listening.store import NotFoundError, RefusedError, Session, Store

logger = logging.getLogger(__name__)

Trial = Annotated[int, Field(ge=0, lt=10_000)]
Revision = Annotated[int, Field(ge=0, lt=2**53)]
Slot = Annotated[str, Field(pattern="^[A-Z]$")]


class _Entry(BaseModel):
    """One thing that the page wants kept; `id` is the page's own name for it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(max_length=64)]


class _Consent(_Entry):
    kind: Literal["consent"]


class _Answers(_Entry):
    kind: Literal["questionnaire"]
    answers: Annotated[dict[str, JsonValue], Field(max_length=200)]


class _Prescreen(_Entry):
    kind: Literal["prescreen"]
    results: dict[str, JsonValue]


class _Device(_Entry):
    kind: Literal["device"]
    sample_rate_hz: Annotated[float, Field(gt=0, lt=1e6)]
    base_latency_s: Annotated[float, Field(ge=0, lt=60)] = 0.0
    output_latency_s: Annotated[float, Field(ge=0, lt=60)] = 0.0


class _Start(_Entry):
    kind: Literal["start"]
    trial: Trial


class _Rating(_Entry):
    kind: Literal["rating"]
    trial: Trial
    slot: Slot
    score: Annotated[float, Field(ge=0, le=100)]
    rev: Revision
    touched: bool = True


class _Choice(_Entry):
    kind: Literal["choice"]
    trial: Trial
    answer: Annotated[str, Field(max_length=8)]
    rev: Revision


class _Events(_Entry):
    kind: Literal["events"]
    events: Annotated[list[dict[str, JsonValue]], Field(max_length=1000)]


class _Submit(_Entry):
    kind: Literal["submit"]
    trial: Trial
    comment: Annotated[str, Field(max_length=5000)] = ""
    listened_s: dict[Slot, Annotated[float, Field(ge=0, lt=1e6)]] = {}
    loop: JsonValue = None


class _Finish(_Entry):
    kind: Literal["finish"]
    comment: Annotated[str, Field(max_length=5000)] = ""


Entry = Annotated[
    _Consent | _Answers | _Prescreen | _Device | _Start | _Rating | _Choice | _Events | _Submit | _Finish,
    Field(discriminator="kind"),
]
_ENTRY: TypeAdapter[Any] = TypeAdapter(Entry)
MAX_ENTRIES = 200  # of one request


def participant_routes(store: Store, guard: Guard, key: bytes) -> APIRouter:
    """The routes of the listener's page."""
    router = APIRouter(prefix="/api")

    @router.get("/t/{study_id}")
    async def study(study_id: str, request: Request) -> dict[str, Any]:
        """What the page shows before anybody has joined; a private study exists only for its previews."""
        guard.enter(request)
        token = request.headers.get("x-session", "")
        return await run_in_threadpool(_public_study, store, study_id, token)

    @router.post("/t/{study_id}/join")
    async def join(study_id: str, request: Request) -> dict[str, Any]:
        """A new listener, who has agreed; the token is in this answer and nowhere else."""
        guard.enter(request)
        guard.join(request)
        await read_json(request, guard.limits.json_bytes)
        agent = request.headers.get("user-agent", "")[:300]
        session = await _told(store.join, study_id, user_agent=agent)
        return {"token": session.token, "session": session_json(session)}

    @router.get("/session")
    async def session(request: Request) -> dict[str, Any]:
        """Where the listener is."""
        guard.enter(request)
        return session_json(await _told(store.session, guard.session(request)))

    @router.post("/session/sync")
    async def sync(request: Request) -> dict[str, Any]:
        """Keep entries, in order. Each is answered with "saved", or with "refused" and a reason,."""
        guard.enter(request)
        token = guard.session(request)
        body = await read_json(request, guard.limits.json_bytes)
        entries = body.get("entries")
        if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
            raise HTTPException(400, f"expected at most {MAX_ENTRIES} entries")
        return {"results": await run_in_threadpool(lambda: [_keep(store, token, entry) for entry in entries])}

    @router.get("/session/audio/{trial}/{slot}")
    async def sound(trial: int, slot: str, request: Request) -> Response:
        """One slot as wav, with dither of its own: equal sounds differ in bytes, all sounds agree in size."""
        guard.enter(request)
        token = guard.session(request)
        if not 0 <= trial < 10_000 or len(slot) != 1:
            raise HTTPException(404, "there is no such sound")
        path = await _told(store.stimulus_path, token, trial, slot)
        wav = await run_in_threadpool(salted_wav, path, slot_salt(key, token, trial, slot))
        return Response(wav, media_type="audio/wav")

    return router


def session_json(session: Session) -> dict[str, Any]:
    """A session as its page may see it."""
    return {
        "study": session.study_id,
        "stage": session.stage,
        "plan": session.plan,
        "current_trial": session.current_trial,
        "ratings": session.ratings,
        "choices": session.choices,
        "comments": session.comments,
        "submitted": session.submitted,
        "is_simulated": session.is_simulated,
        "is_preview": session.is_preview,
    }


def _public_study(store: Store, study_id: str, token: str) -> dict[str, Any]:
    try:
        is_member = bool(token) and store.session(token).study_id == study_id
    except NotFoundError:
        is_member = False
    try:
        status = store.status(study_id)
        if not is_member and status == "draft":
            raise NotFoundError
        if not is_member and status == "closed":
            raise HTTPException(410, "This listening test is closed.")
        return store.study(study_id).public() | {"status": status}
    except NotFoundError as error:
        raise HTTPException(404, "There is no listening test here. Please check the link.") from error


async def _told(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call of the store in a thread, its errors as HTTP."""
    try:
        return await run_in_threadpool(call, *args, **kwargs)
    except NotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except RefusedError as error:
        raise HTTPException(409, str(error)) from error
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _keep(store: Store, token: str, values: Any) -> dict[str, Any]:
    name = values.get("id") if isinstance(values, dict) else None
    try:
        entry = _ENTRY.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"][1:]))
        return {"id": name, "status": "refused", "reason": f"{where}: {first['msg']}".removeprefix(": ")}
    try:
        return {"id": entry.id, "status": "saved"} | _apply(store, token, entry)
    except NotFoundError as error:
        try:
            store.session(token)
        except NotFoundError:
            raise HTTPException(404, "there is no such session") from error
        return {"id": entry.id, "status": "refused", "reason": str(error)}
    except ValueError as error:  # RefusedError too
        return {"id": entry.id, "status": "refused", "reason": str(error)}


def _apply(store: Store, token: str, entry: Any) -> dict[str, Any]:
    match entry:
        case _Consent():
            store.save_consent(token)
        case _Answers():
            store.save_questionnaire(token, entry.answers)
        case _Prescreen():
            store.save_prescreen(token, entry.results)
        case _Device():
            store.save_device(
                token,
                sample_rate_hz=entry.sample_rate_hz,
                base_latency_s=entry.base_latency_s,
                output_latency_s=entry.output_latency_s,
            )
        case _Start():
            store.start_trial(token, entry.trial)
        case _Rating():
            saved = store.save_rating(token, entry.trial, entry.slot, entry.score, rev=entry.rev, touched=entry.touched)
            return {"rev": saved.rev, "value": saved.value}
        case _Choice():
            saved = store.save_choice(token, entry.trial, entry.answer, rev=entry.rev)
            return {"rev": saved.rev, "value": saved.value}
        case _Events():
            store.add_events(token, entry.events)
        case _Submit():
            store.submit_trial(token, entry.trial, comment=entry.comment, listened_s=entry.listened_s, loop=entry.loop)
        case _Finish():
            store.finish(token, comment=entry.comment)
    return {}
