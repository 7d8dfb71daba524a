"""Rendering in the background: one study after the other, with progress that the admin can read."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.listening.render import render_study
from workbench.listening.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """How far the rendering of a study is."""

    state: Literal["waiting", "running", "done", "failed"]
    fraction: float = 0.0
    what: str = ""


class RenderJobs:
    """Renders studies in one thread: codecs share the processor anyway.

    Nothing is lost when the server dies: what was rendered lies in the cache, and the admin can start again.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")

    def start(self, study_id: str) -> None:
        """Queue a study; one that is under way is left alone."""
        with self._lock:
            job = self._jobs.get(study_id)
            if job and job.state in ("waiting", "running"):
                return
            self._jobs[study_id] = Job("waiting")
        self._pool.submit(self._render, study_id)

    def of(self, study_id: str) -> dict[str, Any] | None:
        """The last job of a study, None if this server has rendered nothing of it."""
        job = self._jobs.get(study_id)
        return None if job is None else asdict(job)

    def _render(self, study_id: str) -> None:
        def report(fraction: float, what: str) -> None:
            self._jobs[study_id] = Job("running", fraction, what)

        report(0.0, "")
        try:
            self.store.set_stimuli(study_id, render_study(self.store.study(study_id), self.folder, report))
        except Exception as error:
            # Whatever a codec or a file does wrong, the admin reads it, and the thread lives for the next study.
            logger.exception("study %s could not be rendered", study_id)
            self._jobs[study_id] = Job("failed", 0.0, str(error)[:500] or type(error).__name__)
        else:
            self._jobs[study_id] = Job("done", 1.0)
