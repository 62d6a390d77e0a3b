"""Ledger of a run: one SQLite file that only the driver writes. Items delivered or failed and why, and the state of each shard.

The disk is the truth for what exists; the ledger is the truth for what failed, what was consumed and what was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import A_RUN, UserError
from pipeline.core.records import Item, Outcome
from pipeline.storage.shards import Entry, Shard, number_of
from pipeline.storage.uids import Uids

SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    uid TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 1, shard TEXT, license TEXT NOT NULL DEFAULT '', views INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '', timings TEXT NOT NULL DEFAULT '{}',
    finished REAL NOT NULL, source TEXT NOT NULL DEFAULT '', url TEXT NOT NULL DEFAULT '',
    sha256 TEXT NOT NULL DEFAULT '', credit TEXT NOT NULL DEFAULT '{}', facts TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS item_by_shard ON item (shard);
CREATE TABLE IF NOT EXISTS shard (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, objects INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    finished REAL NOT NULL, passes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""

# Sums over all items, kept current by triggers, so that frequent queries need not scan ten million rows.
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

COMMIT_S, COMMIT_ITEMS = 0.5, 1000  # most seconds and most items that wait for one transaction
CACHE_KB = 131072
LOG_PAGES = 8192  # pages of the write-ahead log that trigger an SQLite checkpoint

# Columns that ledgers of earlier versions lack -> SQL default for their values.
ADDED = {"source": "''", "url": "''", "sha256": "''", "credit": "'{}'", "facts": "'{}'"}
ITEM_COLUMNS = (
    "uid, state, reason, detail, tries, shard, views, bytes, worker, timings, finished, license, source, url, sha256, credit, "
    "facts"
).split(", ")
RECORD = f"""
INSERT INTO item ({", ".join(ITEM_COLUMNS)}) VALUES ({", ".join("?" * len(ITEM_COLUMNS))})
ON CONFLICT (uid) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in ITEM_COLUMNS[1:])}
"""
FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # SQLite's names for a full disk: of its file, of its log's index


@dataclass(frozen=True)
class Kept:
    """State of a shard in the ledger: complete or deleted. passes: how often a cycle trains on each of its objects."""

    state: str
    objects: int
    bytes: int
    passes: int


def train_shards(kept: Mapping[str, Kept]) -> dict[int, Kept]:
    """Shard number -> Kept of the train shards, ascending."""
    return {number_of(name): kept[name] for name in sorted(kept) if name.startswith("train")}


@dataclass(frozen=True)
class Owed:
    """Number of items (`count`) with one state, source and license. named: True if the ledger has their author."""

    state: str
    source: str
    license: str
    named: bool
    count: int


def _still(path: Path) -> bool:
    """True if nobody writes the ledger, and its folder cannot be written: SQLite would want to put its log there to read it."""
    beside = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
    return not os.access(path.parent, os.W_OK) and not any(one.exists() and one.stat().st_size for one in beside)


class Ledger:
    """Item states: delivered, failed. Shard states: complete, deleted. An item without a row was never finished.

    Items are committed in batches, at most COMMIT_S seconds after `record`; all reads and writes here include the waiting items.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        if readonly and not path.exists():
            raise UserError(f"{path.parent} holds no run (no {path.name})", A_RUN)
        self.path = path
        if path.is_dir():
            raise self._unreadable(IsADirectoryError("it is a folder"))
        mode = "rwc" if not readonly else "ro&immutable=1" if _still(path) else "ro"
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        self._db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
        self._waiting: list[tuple[Any, ...]] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._flusher: threading.Thread | None = None
        with self._full_disk_as_os_error():
            self._prepare(readonly)

    def _prepare(self, readonly: bool) -> None:
        try:
            if readonly:
                if not self._columns("shard"):  # the run is just starting
                    here = SCHEMA.replace("TABLE IF NOT EXISTS", "TEMP TABLE")
                    self._db.executescript(here.replace("INDEX IF NOT EXISTS", "INDEX temp."))
                if not self._columns("tally"):  # the run is just starting, or an earlier version wrote the ledger
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
            if readonly or not isinstance(error, sqlite3.OperationalError):  # which a full disk is
                raise self._unreadable(error) from None
            raise

    def _unreadable(self, error: BaseException) -> UserError:
        hint = "move it away: the command that made the run writes it again from the shards, and lvsm-data verify does without"
        return UserError(f"{self.path} cannot be read: {error}", hint)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._closing.set()
        if self._flusher:
            self._flusher.join()
        try:
            self.flush()
        finally:
            self._db.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise self._unreadable(error) from None

    @property
    def db(self) -> sqlite3.Connection:
        """Connection for reading; writes the waiting items first, unless the disk is full."""
        with contextlib.suppress(OSError):
            self.flush()
        return self._db

    def finished_uids(self) -> Uids:
        """Uids of all items that ended, delivered or failed."""
        return Uids(uid for (uid,) in self.db.execute("SELECT uid FROM item INDEXED BY item_by_shard"))

    def record(self, outcome: Outcome, shard: str | None) -> None:
        """Queue how one item ended; committed at most COMMIT_S seconds later. shard: name of a delivered item's shard.

        Raises OSError, without queueing the item, if COMMIT_ITEMS items wait and the disk is full.
        """
        if len(self._waiting) >= COMMIT_ITEMS:
            self.flush()
        scene = outcome.scene
        item = scene.item if scene else outcome.item  # of a delivered item, as its shard has it
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
                json.dumps(scene.facts if scene else {}),
            )
        )
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_regularly, name="ledger", daemon=True)
            self._flusher.start()

    def _flush_regularly(self) -> None:
        while not self._closing.wait(COMMIT_S):
            with contextlib.suppress(OSError, sqlite3.Error):  # raised again when the driver writes
                self.flush()

    def flush(self) -> None:
        """Write the waiting items. Raises OSError if the disk is full; the items then stay queued."""
        if self._waiting:
            with self._writing():
                pass

    def add_shard(self, shard: Shard, passes: int = 0) -> int:
        """Record a shard as complete on disk and exactly its objects as delivered into it, even if a crash lost their own rows.

        Returns how many other items are forgotten, which the ledger had there: a damaged journal lost them.
        """
        with self._writing():
            state = "complete" if shard.entries else "deleted"  # an empty shard has no file
            row = (shard.name, state, len(shard.entries), shard.rows, shard.file_bytes, time.time(), passes)
            columns = "name, state, objects, rows, bytes, finished, passes"
            self._db.execute(f"INSERT OR REPLACE INTO shard ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            return self._book(shard.entries, shard.name)

    def book(self, entries: Sequence[Entry], shard: str) -> int:
        """Record exactly the objects in an open shard's journal as delivered into that shard.

        Returns how many other items are forgotten, as `add_shard` does.
        """
        with self._writing():
            return self._book(entries, shard)

    def _book(self, entries: Sequence[Entry], shard: str) -> int:
        booked = {uid for (uid,) in self._db.execute("SELECT uid FROM item WHERE shard = ?", (shard,))}
        lost = booked - {entry.item.uid for entry in entries}
        self._db.executemany("DELETE FROM item WHERE uid = ?", [(uid,) for uid in lost])
        now = time.time()
        self._db.executemany(
            "INSERT INTO item (uid, state, shard, views, bytes, finished, license, source, url, sha256, credit, facts) "
            "VALUES (?, 'delivered', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (uid) DO UPDATE SET state = 'delivered', reason = '', detail = '', "
            "shard = excluded.shard, views = excluded.views, bytes = excluded.bytes, "
            "license = excluded.license, source = excluded.source, sha256 = excluded.sha256, "
            "url = IFNULL(NULLIF(excluded.url, ''), url), "  # shard rows do not hold the path of a local file
            "credit = excluded.credit, facts = excluded.facts",
            [
                (each.item.uid, shard, each.views, each.image_bytes, now, *_origin(each.item), json.dumps(each.facts))
                for each in entries
                if each.item.uid not in booked
            ],
        )
        return len(lost)

    def delete_shards(self, names: Iterable[str]) -> None:
        """Mark used shards as deleted; afterwards their files may be removed."""
        with self._writing():
            self._db.executemany("UPDATE shard SET state = 'deleted' WHERE name = ?", [(name,) for name in names])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Transaction: the waiting items, then the `with` block's statements, or nothing. Raises OSError if the disk is full."""
        with self._lock, self._full_disk_as_os_error():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                rows = list(self._waiting)
                self._db.executemany(RECORD, rows)
                yield
            del self._waiting[: len(rows)]

    @contextlib.contextmanager
    def _full_disk_as_os_error(self) -> Iterator[None]:
        """Turn SQLite's errors for a full disk into OSError (ENOSPC)."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname in FULL:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path)) from error
            raise

    def kept(self) -> dict[str, Kept]:
        """Shard name -> its state, objects, bytes and passes."""
        rows = self.db.execute("SELECT name, state, objects, bytes, passes FROM shard")
        return {name: Kept(*rest) for name, *rest in rows}

    def shards(self) -> dict[str, str]:
        """Shard name -> state."""
        return dict(self.db.execute("SELECT name, state FROM shard"))

    def forget_missing(self, on_disk: Iterable[str]) -> list[str]:
        """Forget items whose shard is gone without a recorded deletion: they are rendered again. Returns these shards."""
        present = set(on_disk)
        states = self.shards()
        known = {name for (name,) in self.db.execute("SELECT DISTINCT shard FROM item WHERE shard IS NOT NULL")}
        gone = [name for name in sorted(known | set(states)) if name not in present and states.get(name) != "deleted"]
        with self._writing():
            self._db.executemany("DELETE FROM item WHERE shard = ?", [(name,) for name in gone])
            self._db.executemany("DELETE FROM shard WHERE name = ?", [(name,) for name in gone])
        return gone

    def forget_failed(self, uid: str | None = None) -> int:
        """Forget every failure, or that of one item, so that it is tried again. Returns the number of failures."""
        with self._writing():
            query = "DELETE FROM item WHERE state = 'failed' AND (?1 IS NULL OR uid = ?1)"
            return self._db.execute(query, (uid,)).rowcount

    def failed_uids(self) -> set[str]:
        """Uids of all items that failed."""
        return {uid for (uid,) in self.db.execute("SELECT uid FROM item WHERE state = 'failed'")}

    def counts(self) -> dict[str, int]:
        """State -> number of items."""
        return self._sums("state")

    def reasons(self) -> dict[str, int]:
        """Reason -> number of failed items, most frequent first."""
        return self._sums("reason", "failed")

    def _sums(self, column: str, state: str | None = None) -> dict[str, int]:
        """Value of a tally column -> number of items in `state` (None: any state), most frequent first."""
        query = (
            f"SELECT {column}, SUM(items) FROM tally WHERE state = IFNULL(?, state) GROUP BY 1 HAVING SUM(items) > 0"
        )
        return dict(self.db.execute(f"{query} ORDER BY 2 DESC, 1", (state,)))

    def examples(self, reason: str, limit: int) -> list[tuple[str, str, int]]:
        """(uid, detail, tries) of the first `limit` items that failed for a reason."""
        query = "SELECT uid, detail, tries FROM item WHERE state = 'failed' AND reason = ? ORDER BY uid LIMIT ?"
        return list(self.db.execute(query, (reason, limit)))

    def with_fact(self, place: str, value: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (uid, facts) of delivered items whose facts have `value` (None: any) at a place, which SQLite calls $.a.b."""
        facts = self._read("facts")
        fact = f"json_extract({facts}, ?1)"
        query = f"SELECT uid, {facts} FROM item WHERE state = 'delivered' AND {fact} = IFNULL(?2, {fact}) ORDER BY uid"
        for uid, found in self.db.execute(query, (place, value)):
            yield uid, json.loads(found)

    def ends_by_url(self) -> list[tuple[str, str, int]]:
        """(url, failure reason or "" if delivered, number of items), sorted."""
        return list(self.db.execute("SELECT url, reason, COUNT(*) FROM item GROUP BY url, reason ORDER BY url, reason"))

    def licenses(self) -> dict[str, int]:
        """License -> number of delivered items, most frequent first."""
        return self._sums("license", "delivered")

    def owed(self) -> list[Owed]:
        """Numbers of items by state, source, license as recorded, and whether the author is known."""
        source, credit = self._read("source"), self._read("credit")
        query = (
            f"SELECT state, {source} AS source, license, INSTR({credit}, ?) > 0 AS named, COUNT(*) "
            "FROM item GROUP BY 1, 2, 3, 4"
        )
        rows = self.db.execute(query, ('"author":',))  # a key: inside a JSON value the quotes would be escaped
        return [Owed(*row) for row in rows]

    def works(self) -> Iterator[tuple[Item, str]]:
        """Yield (item, shard name) of everything delivered, by uid; one row at a time, so that any number fits into memory."""
        fields = ", ".join(self._read(name) for name in ("source", "url", "sha256", "credit"))
        query = f"SELECT uid, license, shard, {fields} FROM item WHERE state = 'delivered' ORDER BY uid"
        for uid, license_name, shard, source, url, sha256, credit in self.db.execute(query):
            yield Item(uid, source, url, license_name, sha256, json.loads(credit)), shard or ""

    def _columns(self, table: str = "item") -> set[str]:
        return {name for _, name, *_ in self._db.execute(f"PRAGMA table_info({table})")}

    def _read(self, name: str) -> str:
        """SQL expression for a column of the item table; its default if an earlier version's ledger lacks the column."""
        return name if name in self._columns() else ADDED[name]

    def copy(self, path: Path) -> None:
        """Write a consistent copy of the whole ledger to another file."""
        path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as to:
            self.db.backup(to)

    def snapshot(self) -> None:
        """Begin a read transaction: all later reads show the same moment of a run that goes on."""
        self._db.execute("BEGIN")

    def totals(self) -> dict[str, int]:
        """Total views and image bytes of delivered items; number and file bytes of complete shards."""
        views, image_bytes = self.db.execute("SELECT TOTAL(views), TOTAL(bytes) FROM tally").fetchone()
        shards, file_bytes = self.db.execute(
            "SELECT COUNT(*), TOTAL(bytes) FROM shard WHERE state = 'complete'"
        ).fetchone()
        return {"views": int(views), "image_bytes": int(image_bytes), "shards": shards, "shard_bytes": int(file_bytes)}

    def busy(self) -> tuple[float, int]:
        """Seconds that all workers were busy, added up, and number of workers."""
        query = "SELECT TOTAL(json_extract(timings, '$.total')), COUNT(DISTINCT worker) FROM item WHERE worker <> ''"
        seconds, workers = self.db.execute(query).fetchone()
        return float(seconds), int(workers)

    def timeline(self) -> list[tuple[float, str, int]]:
        """(unix time, state, views) of every item, ordered by that time."""
        return list(self.db.execute("SELECT finished, state, views FROM item ORDER BY finished"))

    def delivered_in(self) -> dict[str, str]:
        """Delivered uid -> shard."""
        return dict(self.db.execute("SELECT uid, shard FROM item WHERE state = 'delivered'"))

    def delivered_by_split(self) -> dict[str, int]:
        """train, val -> number of delivered items."""
        return self._sums("split", "delivered")

    def ended(self, state: str) -> Iterator[tuple[str, str, str, str, str, str]]:
        """Yield (uid, source, license, reason, detail, facts as JSON) of all items of a state, delivered or failed, by uid."""
        source, facts = self._read("source"), self._read("facts")
        query = f"SELECT uid, {source}, license, reason, detail, {facts} FROM item WHERE state = ? ORDER BY uid"
        yield from self.db.execute(query, (state,))

    def licenses_of(self) -> dict[str, str]:
        """Delivered uid -> license, if recorded: earlier versions lost some licenses in a crash."""
        return dict(self.db.execute("SELECT uid, license FROM item WHERE state = 'delivered' AND license <> ''"))


def _origin(item: Item) -> tuple[str, str, str, str, str]:
    """Values for the columns license, source, url, sha256 and credit (JSON)."""
    credit = {name: value for name, value in item.credit.items() if value}
    return item.license, item.source, item.url, item.sha256, json.dumps(credit)
