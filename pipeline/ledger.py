"""The run's memory: one SQLite file that only the driver writes. Who was delivered, who failed and why, which shard is where.

The disk is the truth for what exists; the ledger is the truth for what failed, what was consumed and what was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.scene import Item, Outcome, UserError
from pipeline.shards import Entry, Shard, number_of

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

# Columns that ledgers of earlier versions lack -> what stands for a value there.
ADDED = {"source": "''", "url": "''", "sha256": "''", "credit": "'{}'"}
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
    """Item states: delivered, failed. Shard states: complete, deleted. An item without a row was never finished."""

    def __init__(self, path: Path, readonly: bool = False) -> None:
        if readonly and not path.exists():
            raise UserError(f"{path.parent} holds no run (no {path.name})", "give the --out of a run")
        self.path = path
        mode = "ro" if readonly else "rwc"
        self.db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None)
        if not readonly:
            with self._telling():
                self._prepare()

    def _prepare(self) -> None:
        try:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self.db.executescript(SCHEMA)
            for name in ADDED.keys() - self._columns():
                self.db.execute(f"ALTER TABLE item ADD COLUMN {name} TEXT NOT NULL DEFAULT {ADDED[name]}")
            if "passes" not in self._columns("shard"):
                self.db.execute("ALTER TABLE shard ADD COLUMN passes INTEGER NOT NULL DEFAULT 0")
        except sqlite3.Error:
            self.db.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.db.close()
        if isinstance(error, sqlite3.DatabaseError):
            hint = "lvsm-data verify looks at the shards without it, once it is moved away"
            raise UserError(f"{self.path} cannot be read: {error}", hint) from None

    def finished_uids(self) -> set[str]:
        """Every uid that ended, one way or the other."""
        return {uid for (uid,) in self.db.execute("SELECT uid FROM item")}

    def record(self, outcome: Outcome, shard: str | None) -> None:
        """Writes how one item ended. shard: where a delivered one went."""
        scene = outcome.scene
        item = scene.item if scene else outcome.item  # what the shard says, where there is one
        with self._writing():
            self.db.execute(
                "INSERT OR REPLACE INTO item (uid, state, reason, detail, tries, shard, views, bytes, worker, timings, finished, "
                "license, source, url, sha256, credit) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    item.uid,
                    "delivered" if scene else "failed",
                    outcome.reason,
                    outcome.detail,
                    outcome.tries,
                    shard,
                    len(scene.c2w) if scene else 0,
                    scene.jpeg_bytes if scene else 0,
                    outcome.worker,
                    json.dumps({stage: round(seconds, 4) for stage, seconds in outcome.timings.items()}),
                    time.time(),
                    *_origin(item),
                ),
            )

    def add_shard(self, shard: Shard, passes: int = 0) -> None:
        """A shard stands complete on disk. Its items count as delivered even if a crash ate their own lines."""
        with self._writing():
            self.db.execute(
                "INSERT OR REPLACE INTO shard (name, state, objects, rows, bytes, finished, passes) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                # of one that holds nothing there is no file
                (
                    shard.name,
                    "complete" if shard.entries else "deleted",
                    len(shard.entries),
                    shard.rows,
                    shard.file_bytes,
                    time.time(),
                    passes,
                ),
            )
            self._book(shard.entries, shard.name)

    def book(self, entries: Sequence[Entry], shard: str) -> None:
        """What the journal of an open shard holds, and nothing else, is delivered into it."""
        names = json.dumps([entry.item.uid for entry in entries])
        with self._writing():
            self.db.execute(
                "DELETE FROM item WHERE shard = ? AND uid NOT IN (SELECT value FROM json_each(?))", (shard, names)
            )
            self._book(entries, shard)

    def _book(self, entries: Sequence[Entry], shard: str) -> None:
        now = time.time()
        self.db.executemany(
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
            self.db.executemany("UPDATE shard SET state = 'deleted' WHERE name = ?", [(name,) for name in names])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """All of it or nothing. Raises OSError where the disk is full."""
        with self._telling(), self.db:
            self.db.execute("BEGIN IMMEDIATE")
            yield

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
            self.db.executemany("DELETE FROM item WHERE shard = ?", [(name,) for name in gone])
            self.db.executemany("DELETE FROM shard WHERE name = ?", [(name,) for name in gone])
        return gone

    def forget_failed(self) -> int:
        """Forgets every failure, so that these items are tried again. Returns how many."""
        return self.db.execute("DELETE FROM item WHERE state = 'failed'").rowcount

    def counts(self) -> dict[str, int]:
        """State -> number of items."""
        return dict(self.db.execute("SELECT state, COUNT(*) FROM item GROUP BY state"))

    def reasons(self) -> dict[str, int]:
        """Reason -> number of failed items, most frequent first."""
        query = "SELECT reason, COUNT(*) FROM item WHERE state = 'failed' GROUP BY reason ORDER BY 2 DESC, 1"
        return dict(self.db.execute(query))

    def examples(self, reason: str, limit: int) -> list[tuple[str, str, int]]:
        """(uid, detail, tries) of the first `limit` items that failed for a reason."""
        query = "SELECT uid, detail, tries FROM item WHERE state = 'failed' AND reason = ? ORDER BY uid LIMIT ?"
        return list(self.db.execute(query, (reason, limit)))

    def ends_by_url(self) -> list[tuple[str, str, int]]:
        """(url, reason or "" for a delivered one, number of items)."""
        return list(self.db.execute("SELECT url, reason, COUNT(*) FROM item GROUP BY url, reason ORDER BY url, reason"))

    def licenses(self) -> dict[str, int]:
        """License -> number of delivered items, most frequent first."""
        query = "SELECT license, COUNT(*) FROM item WHERE state = 'delivered' GROUP BY license ORDER BY 2 DESC, 1"
        return dict(self.db.execute(query))

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
        return {name for _, name, *_ in self.db.execute(f"PRAGMA table_info({table})")}

    def _read(self, name: str) -> str:
        """A column of the item table, or what stands for it where an earlier version wrote the ledger."""
        return name if name in self._columns() else ADDED[name]

    def snapshot(self) -> None:
        """From here on every read shows the same moment of a run that goes on."""
        self.db.execute("BEGIN")

    def totals(self) -> dict[str, int]:
        """Views and image bytes delivered, and shard files' bytes."""
        views, image_bytes = self.db.execute("SELECT TOTAL(views), TOTAL(bytes) FROM item").fetchone()
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
        query = (
            "SELECT SUBSTR(shard, 1, INSTR(shard, '-') - 1), COUNT(*) FROM item WHERE state = 'delivered' GROUP BY 1"
        )
        return dict(self.db.execute(query))

    def licenses_of(self) -> dict[str, str]:
        """Delivered uid -> license, where one is on record: of some objects earlier versions lost it in a crash."""
        return dict(self.db.execute("SELECT uid, license FROM item WHERE state = 'delivered' AND license <> ''"))


def _origin(item: Item) -> tuple[str, str, str, str, str]:
    """The columns license, source, url, sha256 and credit."""
    credit = {name: value for name, value in item.credit.items() if value}
    return item.license, item.source, item.url, item.sha256, json.dumps(credit)
