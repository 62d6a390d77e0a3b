"""The run's memory: one SQLite file that only the driver writes. Who was delivered, who failed and why, which shard is where.

The disk is the truth for what exists; the ledger is the truth for what failed, what was consumed and what was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.storage.shards import Entry, Shard, number_of
from pipeline.storage.uids import Uids

SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    uid TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 1, shard TEXT, license TEXT NOT NULL DEFAULT '', views INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '', timings TEXT NOT NULL DEFAULT '{}',
    finished REAL NOT NULL, source TEXT NOT NULL DEFAULT '', url TEXT NOT NULL DEFAULT '',
    sha256 TEXT NOT NULL DEFAULT '', credit TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS item_by_shard ON item (shard);
CREATE TABLE IF NOT EXISTS shard (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, objects INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    finished REAL NOT NULL, passes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""

# Sums over all items, kept by triggers: nothing that is asked often reads ten million lines.
SPLIT = "IFNULL(SUBSTR({0}shard, 1, INSTR({0}shard, '-') - 1), '')"
SUMS = f"""
SELECT state, reason, license, {SPLIT.format("")} AS split, COUNT(*) AS items, SUM(views) AS views, SUM(bytes) AS bytes
FROM item GROUP BY 1, 2, 3, 4
"""
_ADD = f"""
INSERT INTO tally
VALUES ({{0}}.state, {{0}}.reason, {{0}}.license, {SPLIT.format("{0}.")}, {{1}}1, {{1}}{{0}}.views, {{1}}{{0}}.bytes)
ON CONFLICT DO UPDATE SET items = items + excluded.items, views = views + excluded.views, bytes = bytes + excluded.bytes;
"""
TALLY = f"""
BEGIN IMMEDIATE;
CREATE TABLE tally (
    state TEXT NOT NULL, reason TEXT NOT NULL, license TEXT NOT NULL, split TEXT NOT NULL,
    items INTEGER NOT NULL, views INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (state, reason, license, split)
) WITHOUT ROWID;
INSERT INTO tally {SUMS};
CREATE TRIGGER item_comes AFTER INSERT ON item BEGIN {_ADD.format("new", "")} END;
CREATE TRIGGER item_goes AFTER DELETE ON item BEGIN {_ADD.format("old", "-")} END;
CREATE TRIGGER item_changes AFTER UPDATE ON item BEGIN {_ADD.format("old", "-")} {_ADD.format("new", "")} END;
COMMIT;
"""

COMMIT_S, COMMIT_ITEMS = 0.5, 1000  # how long, and how many, items wait for their transaction
CACHE_KB = 131072
LOG_PAGES = 8192  # of the log, before they are written to their places

# Columns that ledgers of earlier versions lack -> what stands for a value there.
ADDED = {"source": "''", "url": "''", "sha256": "''", "credit": "'{}'"}
RECORD = f"""
INSERT INTO item (uid, state, reason, detail, tries, shard, views, bytes, worker, timings, finished, license, source, url, sha256,
credit) VALUES ({", ".join("?" * 16)}) ON CONFLICT (uid) DO UPDATE SET state = excluded.state, reason = excluded.reason,
detail = excluded.detail, tries = excluded.tries, shard = excluded.shard, views = excluded.views, bytes = excluded.bytes,
worker = excluded.worker, timings = excluded.timings, finished = excluded.finished, license = excluded.license,
source = excluded.source, url = excluded.url, sha256 = excluded.sha256, credit = excluded.credit
"""
FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # what SQLite calls it, in the file and in the index of its log


@dataclass(frozen=True)
class Kept:
    """What the ledger knows of a shard. state: complete, deleted. passes: how often a cycle trains on each of its objects."""

    state: str
    objects: int
    bytes: int
    passes: int


def train_shards(kept: Mapping[str, Kept]) -> dict[int, Kept]:
    """Of all shards those to train on, by number, ascending."""
    return {number_of(name): kept[name] for name in sorted(kept) if name.startswith("train")}


@dataclass(frozen=True)
class Owed:
    """So many items ended alike. named: whether the ledger knows an author."""

    state: str
    source: str
    license: str
    named: bool
    count: int


class Ledger:
    """Item states: delivered, failed. Shard states: complete, deleted. An item without a row was never finished.

    Items are written many at a time, at most COMMIT_S after `record`; whatever is read or written here knows of all of them.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        if readonly and not path.exists():
            raise UserError(f"{path.parent} holds no run (no {path.name})", "give the --out of a run")
        self.path = path
        uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        self._db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
        self._waiting: list[tuple[Any, ...]] = []
        self._turn = threading.RLock()
        self._closing = threading.Event()
        self._clock: threading.Thread | None = None
        with self._telling():
            self._prepare(readonly)

    def _prepare(self, readonly: bool) -> None:
        try:
            if readonly:
                if not self._columns("shard"):  # its run begins this moment
                    here = SCHEMA.replace("TABLE IF NOT EXISTS", "TEMP TABLE")
                    self._db.executescript(here.replace("INDEX IF NOT EXISTS", "INDEX temp."))
                if not self._columns("tally"):  # the same, or an earlier version wrote it
                    self._db.execute(f"CREATE TEMP VIEW tally AS {SUMS}")
                return
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            self._db.executescript(SCHEMA)
            for name in ADDED.keys() - self._columns():
                self._db.execute(f"ALTER TABLE item ADD COLUMN {name} TEXT NOT NULL DEFAULT {ADDED[name]}")
            if "passes" not in self._columns("shard"):
                self._db.execute("ALTER TABLE shard ADD COLUMN passes INTEGER NOT NULL DEFAULT 0")
            if not self._columns("tally"):
                self._db.executescript(TALLY)
        except sqlite3.DatabaseError as error:
            self._db.close()
            if readonly:
                raise self._unreadable(error) from None
            raise

    def _unreadable(self, error: BaseException) -> UserError:
        hint = "lvsm-data verify looks at the shards without it, once it is moved away"
        return UserError(f"{self.path} cannot be read: {error}", hint)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._closing.set()
        if self._clock:
            self._clock.join()
        try:
            self.flush()
        finally:
            self._db.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise self._unreadable(error) from None

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for reading: items that waited are written now, unless the disk is full."""
        with contextlib.suppress(OSError):
            self.flush()
        return self._db

    def finished_uids(self) -> Uids:
        """Every uid that ended, one way or the other."""
        return Uids(uid for (uid,) in self.db.execute("SELECT uid FROM item INDEXED BY item_by_shard"))

    def record(self, outcome: Outcome, shard: str | None) -> None:
        """Says how one item ended, which is written at most COMMIT_S later. shard: where a delivered one went.

        Raises OSError, without having heard of the item, where too many wait for a disk that is full.
        """
        if len(self._waiting) >= COMMIT_ITEMS:
            self.flush()
        scene = outcome.scene
        item = scene.item if scene else outcome.item  # what the shard says, where there is one
        self._waiting.append(
            (
                item.uid,
                "delivered" if scene else "failed",
                outcome.reason,
                outcome.detail,
                outcome.tries,
                shard,
                scene.view_count if scene else 0,
                scene.jpeg_bytes if scene else 0,
                outcome.worker,
                json.dumps({stage: round(seconds, 4) for stage, seconds in outcome.timings.items()}),
                time.time(),
                *_origin(item),
            )
        )
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, name="ledger", daemon=True)
            self._clock.start()

    def _tick(self) -> None:
        while not self._closing.wait(COMMIT_S):
            with contextlib.suppress(OSError, sqlite3.Error):  # the driver is told when it writes
                self.flush()

    def flush(self) -> None:
        """Writes the items that wait. Raises OSError where the disk is full; then they go on waiting."""
        if self._waiting:
            with self._writing():
                pass

    def add_shard(self, shard: Shard, passes: int = 0) -> None:
        """A shard stands complete on disk. Its items count as delivered even if a crash ate their own lines."""
        with self._writing():
            state = "complete" if shard.entries else "deleted"  # of one that holds nothing there is no file
            row = (shard.name, state, len(shard.entries), shard.rows, shard.file_bytes, time.time(), passes)
            columns = "name, state, objects, rows, bytes, finished, passes"
            self._db.execute(f"INSERT OR REPLACE INTO shard ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            booked = {uid for (uid,) in self._db.execute("SELECT uid FROM item WHERE shard = ?", (shard.name,))}
            self._book([entry for entry in shard.entries if entry.item.uid not in booked], shard.name)

    def book(self, entries: Sequence[Entry], shard: str) -> None:
        """What the journal of an open shard holds, and nothing else, is delivered into it."""
        names = json.dumps([entry.item.uid for entry in entries])
        with self._writing():
            self._db.execute(
                "DELETE FROM item WHERE shard = ? AND uid NOT IN (SELECT value FROM json_each(?))", (shard, names)
            )
            self._book(entries, shard)

    def _book(self, entries: Sequence[Entry], shard: str) -> None:
        now = time.time()
        self._db.executemany(
            "INSERT INTO item (uid, state, shard, views, bytes, finished, license, source, url, sha256, credit) "
            "VALUES (?, 'delivered', ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (uid) DO UPDATE SET state = 'delivered', reason = '', detail = '', "
            "shard = excluded.shard, views = excluded.views, bytes = excluded.bytes, "
            "license = excluded.license, source = excluded.source, sha256 = excluded.sha256, "
            "url = IFNULL(NULLIF(excluded.url, ''), url), "  # a row does not tell where a local file lies
            "credit = excluded.credit",
            [(entry.item.uid, shard, entry.views, entry.image_bytes, now, *_origin(entry.item)) for entry in entries],
        )

    def delete_shards(self, names: Iterable[str]) -> None:
        """Shards were used, and their files may go: nobody will miss them."""
        with self._writing():
            self._db.executemany("UPDATE shard SET state = 'deleted' WHERE name = ?", [(name,) for name in names])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """All of it, after the items that waited, or nothing. Raises OSError where the disk is full."""
        with self._turn, self._telling():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                rows = list(self._waiting)
                self._db.executemany(RECORD, rows)
                yield
            del self._waiting[: len(rows)]

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Raises OSError where SQLite finds that the disk is full."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname in FULL:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path)) from error
            raise

    def kept(self) -> dict[str, Kept]:
        """Shard name -> what is known of it."""
        rows = self.db.execute("SELECT name, state, objects, bytes, passes FROM shard")
        return {name: Kept(*rest) for name, *rest in rows}

    def shards(self) -> dict[str, str]:
        """Shard name -> state."""
        return dict(self.db.execute("SELECT name, state FROM shard"))

    def forget_missing(self, on_disk: Iterable[str]) -> list[str]:
        """Forgets items whose shard is gone though nobody recorded its deletion; they will be rendered again."""
        present = set(on_disk)
        states = self.shards()
        known = {name for (name,) in self.db.execute("SELECT DISTINCT shard FROM item WHERE shard IS NOT NULL")}
        gone = [name for name in sorted(known | set(states)) if name not in present and states.get(name) != "deleted"]
        with self._writing():
            self._db.executemany("DELETE FROM item WHERE shard = ?", [(name,) for name in gone])
            self._db.executemany("DELETE FROM shard WHERE name = ?", [(name,) for name in gone])
        return gone

    def forget_failed(self) -> int:
        """Forgets every failure, so that these items are tried again. Returns how many."""
        with self._writing():
            return self._db.execute("DELETE FROM item WHERE state = 'failed'").rowcount

    def counts(self) -> dict[str, int]:
        """State -> number of items."""
        return self._sums("state")

    def reasons(self) -> dict[str, int]:
        """Reason -> number of failed items, most frequent first."""
        return self._sums("reason", "failed")

    def _sums(self, column: str, state: str | None = None) -> dict[str, int]:
        """Value of a column of the tally -> number of items of a state, most first."""
        query = (
            f"SELECT {column}, SUM(items) FROM tally WHERE state = IFNULL(?, state) GROUP BY 1 HAVING SUM(items) > 0"
        )
        return dict(self.db.execute(f"{query} ORDER BY 2 DESC, 1", (state,)))

    def examples(self, reason: str, limit: int) -> list[tuple[str, str, int]]:
        """(uid, detail, tries) of the first `limit` items that failed for a reason."""
        query = "SELECT uid, detail, tries FROM item WHERE state = 'failed' AND reason = ? ORDER BY uid LIMIT ?"
        return list(self.db.execute(query, (reason, limit)))

    def ends_by_url(self) -> list[tuple[str, str, int]]:
        """(url, reason or "" for a delivered one, number of items)."""
        return list(self.db.execute("SELECT url, reason, COUNT(*) FROM item GROUP BY url, reason ORDER BY url, reason"))

    def licenses(self) -> dict[str, int]:
        """License -> number of delivered items, most frequent first."""
        return self._sums("license", "delivered")

    def owed(self) -> list[Owed]:
        """Counts by how items ended, source, license as recorded, and whether an author is known."""
        source, credit = self._read("source"), self._read("credit")
        query = (
            f"SELECT state, {source} AS source, license, INSTR({credit}, ?) > 0 AS named, COUNT(*) "
            "FROM item GROUP BY 1, 2, 3, 4"
        )
        rows = self.db.execute(query, ('"author":',))  # inside a value its quotes would be escaped
        return [Owed(*row) for row in rows]

    def works(self) -> Iterator[tuple[Item, str]]:
        """(item, shard) of everything delivered, by uid; one at a time, so that any number fits."""
        fields = ", ".join(self._read(name) for name in ADDED)
        query = f"SELECT uid, license, shard, {fields} FROM item WHERE state = 'delivered' ORDER BY uid"
        for uid, license_name, shard, source, url, sha256, credit in self.db.execute(query):
            yield Item(uid, source, url, license_name, sha256, json.loads(credit)), shard or ""

    def _columns(self, table: str = "item") -> set[str]:
        return {name for _, name, *_ in self._db.execute(f"PRAGMA table_info({table})")}

    def _read(self, name: str) -> str:
        """A column of the item table, or what stands for it where an earlier version wrote the ledger."""
        return name if name in self._columns() else ADDED[name]

    def copy(self, path: Path) -> None:
        """Writes all of it, as it is at one moment, to another file."""
        path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as to:
            self.db.backup(to)

    def snapshot(self) -> None:
        """From here on every read shows the same moment of a run that goes on."""
        self._db.execute("BEGIN")

    def totals(self) -> dict[str, int]:
        """Views and image bytes delivered, and shard files' bytes."""
        views, image_bytes = self.db.execute("SELECT TOTAL(views), TOTAL(bytes) FROM tally").fetchone()
        shards, file_bytes = self.db.execute(
            "SELECT COUNT(*), TOTAL(bytes) FROM shard WHERE state = 'complete'"
        ).fetchone()
        return {"views": int(views), "image_bytes": int(image_bytes), "shards": shards, "shard_bytes": int(file_bytes)}

    def busy(self) -> tuple[float, int]:
        """Seconds that workers took in all, and how many workers there were."""
        query = "SELECT TOTAL(json_extract(timings, '$.total')), COUNT(DISTINCT worker) FROM item WHERE worker <> ''"
        seconds, workers = self.db.execute(query).fetchone()
        return float(seconds), int(workers)

    def timeline(self) -> list[tuple[float, str, int]]:
        """(unix time, state, views) of every item in the order in which they ended."""
        return list(self.db.execute("SELECT finished, state, views FROM item ORDER BY finished"))

    def delivered_in(self) -> dict[str, str]:
        """Delivered uid -> shard."""
        return dict(self.db.execute("SELECT uid, shard FROM item WHERE state = 'delivered'"))

    def delivered_by_split(self) -> dict[str, int]:
        """train, val -> number of delivered items."""
        return self._sums("split", "delivered")

    def licenses_of(self) -> dict[str, str]:
        """Delivered uid -> license, where one is on record: of some objects earlier versions lost it in a crash."""
        return dict(self.db.execute("SELECT uid, license FROM item WHERE state = 'delivered' AND license <> ''"))


def _origin(item: Item) -> tuple[str, str, str, str, str]:
    """The columns license, source, url, sha256 and credit."""
    credit = {name: value for name, value in item.credit.items() if value}
    return item.license, item.source, item.url, item.sha256, json.dumps(credit)
