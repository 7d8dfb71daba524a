"""A listener's page, without a browser."""

import uuid

import httpx


def entry(kind: str, **values) -> dict:
    return {"id": uuid.uuid4().hex, "kind": kind, **values}


class Listener:
    """A listener's page, without a browser."""

    def __init__(self, server, study: str) -> None:
        joined = httpx.post(f"{server.url}/api/t/{study}/join", json={}, headers={"X-Listening": "1"}, timeout=60)
        joined.raise_for_status()
        self.token = joined.json()["token"]
        self.session = joined.json()["session"]
        self.http = server.client(self.token)
        self.rev = 0

    def sync(self, *entries: dict) -> list[dict]:
        answer = self.http.post("/api/session/sync", json={"entries": list(entries)})
        answer.raise_for_status()
        return answer.json()["results"]

    def state(self) -> dict:
        return self.http.get("/api/session").raise_for_status().json()

    def sound(self, trial: int, slot: str) -> httpx.Response:
        return self.http.get(f"/api/session/audio/{trial}/{slot}")

    def rating(self, trial: int, slot: str, score: float) -> dict:
        self.rev += 1
        return entry("rating", trial=trial, slot=slot, score=score, rev=self.rev)

    def submit(self, trial: int, comment: str = "") -> dict:
        slots = self.session["plan"][trial]["slots"]
        return entry("submit", trial=trial, comment=comment, listened_s={slot: 1.0 for slot in slots})


def client_list(server) -> set[str]:
    return {row["id"] for row in server.admin.get("/overview").json()["studies"]}
