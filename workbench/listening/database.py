"""One SQLite file for many threads and processes, of which nothing that was committed gets lost.

WAL with synchronous=FULL: a commit is on the disk when it returns (kill -9 and a power cut included). Readers never
wait; writers of one process take turns at a lock, those of other processes wait inside SQLite.
"""

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_APPLICATION_ID = 0x7AAE1E57  # in the file's header: it is one of ours
_BUSY_MS = 30_000

# Each entry takes a file from the version that is its index to the next; never change one that was released.
_MIGRATIONS = (
    """
    CREATE TABLE study (
        id TEXT PRIMARY KEY, study_json TEXT NOT NULL, sha256 TEXT NOT NULL, status TEXT NOT NULL,
        created TEXT NOT NULL, num_joined INTEGER NOT NULL DEFAULT 0, num_previews INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE stimulus (
        study TEXT NOT NULL REFERENCES study ON DELETE CASCADE, item TEXT NOT NULL, system TEXT NOT NULL,
        path TEXT NOT NULL, sha256 TEXT NOT NULL, seconds REAL NOT NULL, sample_rate_hz INTEGER NOT NULL,
        gain_db REAL NOT NULL, lufs REAL, bits_per_second REAL,
        PRIMARY KEY (study, item, system)
    ) STRICT;
    CREATE TABLE session (
        id INTEGER PRIMARY KEY AUTOINCREMENT, token_sha256 TEXT NOT NULL UNIQUE,
        study TEXT NOT NULL REFERENCES study ON DELETE CASCADE, listener TEXT NOT NULL,
        is_simulated INTEGER NOT NULL, is_preview INTEGER NOT NULL,
        square_row INTEGER NOT NULL, holds_row INTEGER NOT NULL, seed INTEGER NOT NULL, plan_json TEXT NOT NULL,
        user_agent TEXT NOT NULL, sample_rate_hz REAL, base_latency_s REAL, output_latency_s REAL,
        created TEXT NOT NULL, last_seen TEXT NOT NULL, consent_at TEXT, answers_json TEXT, prescreen_json TEXT,
        finished_at TEXT, comment TEXT NOT NULL DEFAULT '', cause TEXT NOT NULL DEFAULT '',
        UNIQUE (study, listener)
    ) STRICT;
    CREATE TABLE trial (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE, idx INTEGER NOT NULL,
        started_at TEXT, submitted_at TEXT, comment TEXT NOT NULL DEFAULT '', listened_json TEXT, loop_json TEXT,
        PRIMARY KEY (session, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rating (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE, trial INTEGER NOT NULL, slot TEXT NOT NULL,
        score REAL NOT NULL CHECK (score BETWEEN 0 AND 100), rev INTEGER NOT NULL, touched INTEGER NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (session, trial, slot)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE choice (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE, trial INTEGER NOT NULL,
        answer TEXT NOT NULL, rev INTEGER NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (session, trial)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE event (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE, id TEXT NOT NULL,
        trial INTEGER, kind TEXT NOT NULL, slot TEXT, pos_s REAL, ctx_time REAL, wall REAL, body_json TEXT,
        received_at TEXT NOT NULL,
        PRIMARY KEY (session, id)
    ) STRICT, WITHOUT ROWID;
    """,
)


class Database:
    """Connections to one file: one a thread for reading, and one writer at a time.

    Raises:
        ValueError: If the file is no store, or was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.RLock()
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} for the store; make it first")
        try:
            self._migrate()
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(f"{self.path} cannot be used as a store of listening tests: {error}") from None
        except ValueError:
            self.close()
            raise

    def read(self) -> sqlite3.Connection:
        """This thread's connection; rows can be asked by column name."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed to disk at the end, taken back on an error."""
        connection = self.read()
        with self._lock:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def erase_log(self) -> None:
        """Move everything from the write-ahead log into the file and empty the log, so that deleted data are gone."""
        with self._lock:
            self.read().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def backup(self, target: str | Path, *, force: bool) -> None:
        """Copy the file while others read and write it; the copy is one file without a log.

        Raises:
            FileExistsError: If the target exists and `force` is false.
        """
        target = Path(target).resolve()
        if target == self.path:
            raise ValueError(f"{target} is the store itself; choose another name for the copy")
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; choose another name, or use force (--force) to overwrite it")
        temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            copy = sqlite3.connect(temporary)
            try:
                self.read().backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
                if (verdict := copy.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                    raise RuntimeError(f"the copy of {self.path} is damaged: {verdict}; check the disk")
            finally:
                copy.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def _connect(self) -> sqlite3.Connection:
        # Each connection serves the thread that asked; only `close` touches those of others.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten: people may ask for that
        with self._lock:
            self._connections.append(connection)
        return connection

    def _migrate(self) -> None:
        with self.write() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if num_tables and application != _APPLICATION_ID:
                raise ValueError(f"{self.path} is a database of another program; choose another file")
            if version > len(_MIGRATIONS):
                raise ValueError(
                    f"{self.path} has version {version}, this program knows {len(_MIGRATIONS)}: "
                    "update the workbench, or use an older file"
                )
            for number in range(version, len(_MIGRATIONS)):
                for statement in _MIGRATIONS[number].split(";\n"):  # executescript would commit by itself
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number + 1}")
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
