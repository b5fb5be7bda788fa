"""The SQLite file: opened, checked to be ours, brought to the newest schema, written safely.

One file, write-ahead log, immediate transactions, STRICT tables; readable with plain ``sqlite3``.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

from attnpass.errors import StoreError

APPLICATION_ID = 0x41545450
"""``PRAGMA application_id`` of an attnpass database."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, created TEXT NOT NULL, task TEXT NOT NULL, status TEXT NOT NULL,
        settings TEXT NOT NULL, context TEXT NOT NULL, result TEXT
    ) STRICT;
    CREATE TABLE measurements (
        key TEXT PRIMARY KEY, created TEXT NOT NULL, run TEXT, kind TEXT NOT NULL,
        subject TEXT NOT NULL, outcome TEXT NOT NULL, context TEXT NOT NULL, value TEXT NOT NULL
    ) STRICT;
    CREATE INDEX measurements_subject ON measurements (kind, subject);
    CREATE TABLE plans (
        hash TEXT PRIMARY KEY, created TEXT NOT NULL, document TEXT NOT NULL, parameters BLOB
    ) STRICT;
    CREATE TABLE pins (
        structure TEXT PRIMARY KEY, created TEXT NOT NULL, plan TEXT NOT NULL REFERENCES plans
    ) STRICT;
    CREATE TABLE tiles (
        key TEXT PRIMARY KEY, created TEXT NOT NULL, context TEXT NOT NULL, tile TEXT NOT NULL,
        value TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE runs ADD COLUMN name TEXT;
    ALTER TABLE plans ADD COLUMN files TEXT;
    DROP INDEX measurements_subject;
    CREATE INDEX measurements_subject ON measurements (kind, subject, created);
    CREATE INDEX measurements_created ON measurements (created);
    CREATE INDEX measurements_run ON measurements (run, created);
    CREATE INDEX measurements_outcome ON measurements (outcome, created);
    CREATE INDEX runs_created ON runs (created);
    CREATE INDEX runs_task ON runs (task, created);
    CREATE INDEX runs_name ON runs (name, created);
    """,
)
"""SQL scripts, applied in order; ``PRAGMA user_version`` counts the applied ones.

A script that was released is never changed. What only reads takes every version as it is.
"""


def default_path() -> Path:
    """``$ATTNPASS_DB``, else ``attnpass.db`` in the user's cache folder."""
    given = os.environ.get("ATTNPASS_DB")
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("attnpass") / "attnpass.db"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Database:
    """An open database file. A context manager; safe beside other processes on the same file.

    Args:
        path: the file; ``None`` is ``default_path()``.
        read: only read it: no lock is taken or waited for, nothing is made or written, and a file
            that does not exist is empty. Else it is made where it does not exist.

    Attributes:
        version: of the tables as they are: an older one is brought up only where it is written.

    Raises:
        StoreError: the file is corrupt, foreign, of a newer version, or cannot be read (without
            ``read``: or written).
    """

    def __init__(self, path: str | Path | None = None, *, read: bool = False) -> None:
        import sqlite_utils

        self.path = Path(path) if path is not None else default_path()
        with self.errors():
            if self.path.exists() and not self.path.is_file():
                raise OSError("not a regular file")
            self.db = sqlite_utils.Database(self._read_only() if read else self._writable())
            try:
                self.db.execute("PRAGMA foreign_keys=ON")
                version = self._version()
                if read and version == 0:
                    # nothing is there yet: as empty as one in memory
                    self.db.close()
                    self.db = sqlite_utils.Database(memory=True)
                    self.db.conn.isolation_level = None
                if not read:
                    self.db.execute("PRAGMA journal_mode=WAL")
                if not read or version == 0:
                    self._migrate()
                    version = len(MIGRATIONS)
                self.version = version
            except BaseException:
                self.db.close()
                raise

    def _writable(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self.path, timeout=30, isolation_level=None)

    def _read_only(self) -> sqlite3.Connection:
        """A connection that waits for nobody; in memory where there is no file."""
        if not self.path.exists():
            return sqlite3.connect(":memory:", isolation_level=None)
        name = f"file:{quote(os.fsencode(self.path.absolute()))}?mode=ro"
        try:
            connection = sqlite3.connect(name, timeout=1, isolation_level=None, uri=True)
            connection.execute("PRAGMA user_version")
        except sqlite3.OperationalError:
            # on a medium that cannot be written there is no shared memory beside the file
            if (
                os.access(self.path.parent, os.W_OK)
                or self.path.with_name(f"{self.path.name}-wal").exists()
            ):
                raise
            connection = sqlite3.connect(f"{name}&immutable=1", isolation_level=None, uri=True)
        return connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, an error of SQLite or of the file system is raised as a ``StoreError``.

        Raises:
            StoreError: one line with the cure.
        """
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"expected a readable and writable attnpass database at {self.path}, got:"
                f" {error}; choose another with --db FILE or $ATTNPASS_DB"
            ) from error

    def _version(self) -> int:
        """The version of the database, 0 where it is empty; another program's is refused."""
        # one snapshot: another process may be making the same database
        self.db.execute("BEGIN")
        owner = self.db.execute("PRAGMA application_id").fetchone()[0]
        tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        self.db.execute("COMMIT")
        if owner != APPLICATION_ID and tables:
            raise StoreError(
                f"expected an attnpass database at {self.path}, got another program's;"
                " choose another with --db FILE or $ATTNPASS_DB"
            )
        if owner == APPLICATION_ID and version > len(MIGRATIONS):
            raise StoreError(
                f"expected database version <= {len(MIGRATIONS)} at {self.path}, got {version};"
                " upgrade attnpass"
            )
        return int(version) if owner == APPLICATION_ID else 0

    def _migrate(self) -> None:
        """Apply the migrations that the file lacks."""
        with self.transaction():
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self.db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One immediate transaction: read-then-write is safe with other processes.

        Raises:
            StoreError: the file cannot be written.
        """
        with self.errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._roll_back()
                raise
            try:
                self.db.execute("COMMIT")
            except BaseException:
                # a full disk, or Ctrl-C in the moment before or after
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self.db.conn.in_transaction:
            self.db.execute("ROLLBACK")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()
