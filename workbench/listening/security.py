"""What stands between the network and the store: headers, limits, tokens, and no request from other sites.

Out of scope: encryption (put a proxy with TLS in front), listeners who program their browser to analyse the sounds, and
whoever can read the server's files.
"""

import hashlib
import hmac
import json
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_HEADER = "x-session"
OWN_HEADER = "x-listening"  # no other site can send it, because no preflight request is ever granted
OWN_PREFIXES = ("/api/", "/t/", "/admin", "/listening/")

_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class SecureHeaders:
    """ASGI middleware: the headers above on every answer of the listening pages, and none of it stays in a cache."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(OWN_PREFIXES):
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["cache-control"] = "no-cache" if scope["path"].startswith("/listening/") else "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may come, and how fast. Rates are per second, with a burst that an idle client has saved up.

    Attributes:
        json_bytes: Of a request of a listener's page.
        study_bytes: Of a study file.
        sound_bytes: Of one uploaded recording.
        address_burst, address_rate: Requests of one address; a whole laboratory may share it.
        join_burst, join_rate: New listeners of one address.
        session_burst, session_rate: Requests of one listener.
        guess_burst, guess_rate: Wrong admin tokens of one address.
    """

    json_bytes: int = 256 * 1024
    study_bytes: int = 1024 * 1024
    sound_bytes: int = 64 * 2**20
    address_burst: float = 1000
    address_rate: float = 300
    join_burst: float = 150
    join_rate: float = 1
    session_burst: float = 120
    session_rate: float = 20
    guess_burst: float = 10
    guess_rate: float = 0.1


@dataclass
class Buckets:
    """A token bucket per key; those that are full again are forgotten, so that memory stays bounded."""

    burst: float
    rate: float
    capacity: int = 10_000
    _levels: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, count: float = 1.0) -> float:
        """Takes `count` tokens and gives 0, or takes none and gives the seconds until there are enough."""
        now = time.monotonic()
        with self._lock:
            level, since = self._levels.get(key, (self.burst, now))
            level = min(self.burst, level + (now - since) * self.rate)
            if level < count:
                return (count - level) / self.rate
            if len(self._levels) >= self.capacity:
                full_s = self.burst / self.rate
                self._levels = {k: v for k, v in self._levels.items() if now - v[1] < full_s} or {}
                if len(self._levels) >= self.capacity:  # a flood from many addresses: forget the oldest half
                    recent = sorted(self._levels.items(), key=lambda entry: entry[1][1])[self.capacity // 2 :]
                    self._levels = dict(recent)
            self._levels[key] = (level - count, now)
            return 0.0


class Guard:
    """The checks that handlers call; every one raises HTTPException.

    Args:
        admin_token: What the admin has to send; at least 16 characters.
        limits: See `Limits`.
    """

    def __init__(self, admin_token: str, limits: Limits) -> None:
        if len(admin_token) < 16:
            raise ValueError(f"the admin token needs at least 16 characters, got {len(admin_token)}")
        self.limits = limits
        self._admin_digest = hashlib.sha256(admin_token.encode()).digest()
        self._addresses = Buckets(limits.address_burst, limits.address_rate)
        self._joins = Buckets(limits.join_burst, limits.join_rate)
        self._sessions = Buckets(limits.session_burst, limits.session_rate)
        self._guesses = Buckets(limits.guess_burst, limits.guess_rate)

    def enter(self, request: Request) -> None:
        """Every request of the API: not too many of them, and whatever changes something comes from our own pages."""
        _refuse_after(self._addresses.take(_address(request)))
        if request.method in ("GET", "HEAD"):
            return
        site = request.headers.get("sec-fetch-site", "same-origin")
        origin = request.headers.get("origin")
        is_ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if OWN_HEADER not in request.headers or site not in ("same-origin", "none") or not is_ours:
            raise HTTPException(403, "this request did not come from a page of this server")

    def join(self, request: Request) -> None:
        """A new listener is about to be made."""
        _refuse_after(self._joins.take(_address(request)))

    def session(self, request: Request) -> str:
        """The listener's token from the header."""
        token = request.headers.get(SESSION_HEADER, "")
        if not 20 <= len(token) <= 100:
            raise HTTPException(404, "there is no such session")
        _refuse_after(self._sessions.take(hashlib.sha256(token.encode()).hexdigest()))
        return token

    def admin(self, request: Request) -> None:
        """The request is the admin's."""
        address = _address(request)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        if kind.lower() == "bearer" and hmac.compare_digest(digest, self._admin_digest):
            return
        _refuse_after(self._guesses.take(address))
        raise HTTPException(401, "this needs the admin token", {"www-authenticate": "Bearer"})


async def read_body(request: Request, limit: int) -> bytes:
    """The body, not more than `limit` bytes of it, whatever its headers promise."""
    promised = request.headers.get("content-length", "0")
    if not promised.isdecimal() or int(promised) > limit:
        raise HTTPException(413, f"at most {limit // 1024} kB, please")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise HTTPException(413, f"at most {limit // 1024} kB, please")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """A JSON object."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    try:
        value = json.loads(await read_body(request, limit), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected valid JSON") from error
    if not isinstance(value, dict):
        raise HTTPException(400, "expected a JSON object")
    return value


def server_key(path: Path) -> bytes:
    """A secret that only the server knows, made at the first start; the dither of every slot depends on it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()


def slot_salt(key: bytes, token: str, trial: int, slot: str) -> bytes:
    """Stays for one slot of one listener, and tells nothing to those who lack the key."""
    return hmac.digest(key, f"{token}/{trial}/{slot}".encode(), "sha256")


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _refuse_after(seconds: float) -> None:
    if seconds > 0:
        raise HTTPException(429, "too many requests, please wait", {"retry-after": str(math.ceil(seconds))})


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
