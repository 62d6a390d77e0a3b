"""Status of a run, for `lvsm-data status`: the ledger's counts and, while the driver lives, its last status file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from pipeline.config.source_table import names
from pipeline.core import licenses
from pipeline.core.disk import read_json
from pipeline.core.errors import UserError
from pipeline.core.text import duration, last_line, reasons_text, size
from pipeline.cycle.snapshot import take_snapshot
from pipeline.run.left_out import LeftOut, Untold, left_out, untold
from pipeline.run.progress import doing
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import IDENTITY, identity_of, is_locked
from pipeline.storage.shards import complete_shards, widths_in
from pipeline.storage.uploads import DRIVER, lives_elsewhere

SHOWN_FAILURES = 5  # failures listed per reason
SHOWN_LICENSES = 6
SHOWN_SCENES = 5


def read_status(run: Path) -> dict[str, Any]:
    """Counts from the ledger, rates and workers from the driver's last status file. Raises UserError if there is no run.

    state: running, finished (n delivered), stopped (by the user, with fewer), exhausted (the source has no more objects), refused
    (`why` says it), interrupted (the driver died). undecided: number and some uids of imported scenes whose cameras could not be
    told by their pictures; left_out: views that such scenes do without; untold: views that nothing vouches for. cycle: a Snapshot
    as a dict, None if the run is no cycle.
    """
    with Ledger(run / "ledger.sqlite", readonly=True) as ledger:
        counts, totals = ledger.counts(), ledger.totals()
        reasons = ledger.reasons()
        by_license = licenses.tally(ledger.licenses())
        failures = [
            {"uid": uid, "reason": reason, "detail": detail, "tries": tries}
            for reason in reasons
            for uid, detail, tries in ledger.examples(reason, SHOWN_FAILURES)
        ]
        cycle = take_snapshot(run, ledger)
        missing = _missing(run, ledger)
        imported = _of_imports(run, ledger)
    path = run / "status.json"
    last: dict[str, Any] = {}
    # it tells of the last moments alone, and the next session writes it
    with contextlib.suppress(UserError, FileNotFoundError):
        last = read_json(path)
    state = last.get("state", "interrupted")
    if is_locked(run) or lives_elsewhere(run):
        state = "running"
    elif state == "running":
        state = "interrupted"
    live = {"views_per_s", "objects_per_h", "eta_s", "workers"}
    return {
        "run": str(run),
        "state": state,
        "why": last.get("why", "") if state == "refused" else "",
        "n": last.get("n"),
        "delivered": counts.get("delivered", 0),
        "failed": counts.get("failed", 0),
        "reasons": reasons,
        "failures": failures,
        **imported,
        "licenses": by_license,
        **totals,
        "shards_missing": missing,
        "updated": last.get("updated"),
        "cycle": dataclasses.asdict(cycle) | {"text": cycle.lines()} if cycle else None,
        **{name: last[name] if state == "running" and name in last else None for name in sorted(live)},
    }


def _of_imports(run: Path, ledger: Ledger) -> dict[str, Any]:
    """`undecided`, `left_out` and `untold` of `read_status`; without reading the ledger where the run is no import."""
    source = identity_of(run).get("source") if (run / IDENTITY).exists() else None
    scenes = ledger.with_fact("$.cameras_fit.says", "undecided") if source in names("posed") else []
    uids = [uid for uid, _ in scenes]
    without, views = dataclasses.asdict(left_out(ledger, source)), dataclasses.asdict(untold(ledger, source))
    return {"undecided": {"scenes": len(uids), "uids": uids[:SHOWN_SCENES]}, "left_out": without, "untold": views}


def _missing(run: Path, ledger: Ledger) -> int:
    """Number of finished shards that are gone from a run's folder. 0 for runs of object stores, whose shards are not here."""
    if (run / DRIVER).exists():
        return 0
    widths = widths_in(run)
    there = complete_shards(run, widths) if widths else set()
    return sum(1 for name, state in ledger.shards().items() if state != "deleted" and name not in there)


def status_text(status: dict[str, Any]) -> str:
    """Format the result of `read_status` for people."""
    failed = f" ({reasons_text(status['reasons'])})" if status["failed"] else ""
    why = f": {status['why'].splitlines()[0]}" if status["why"] else ""
    lines = [
        f"{status['run']}: {status['state']}{why}",
        f"delivered {status['delivered']} of {status['n'] or '?'}, failed {status['failed']}{failed}",
        f"{status['views']} views, {size(status['image_bytes'])} of images; "
        f"{status['shards']} finished shards, {size(status['shard_bytes'])}",
    ]
    if missing := status["shards_missing"]:
        lines.append(f"{missing} of these shards are gone: the same command makes their objects again")
    lines += _import_lines(status)
    if by_license := status["licenses"]:
        first = dict(list(by_license.items())[:SHOWN_LICENSES])
        more = f" and {len(by_license) - SHOWN_LICENSES} more" if len(by_license) > SHOWN_LICENSES else ""
        lines.append(f"licenses: {reasons_text(first)}{more}")
    rendered = status["cycle"] and status["delivered"] == status["n"]
    if status["state"] == "running" and status["objects_per_h"] is not None and not rendered:
        age = time.time() - status["updated"]
        lines.append(
            f"{status['views_per_s']:.1f} views/s, {status['objects_per_h']:.0f} objects/h, "
            f"ETA {duration(status['eta_s'])} (as of {age:.0f} s ago)"
        )
        for worker in status["workers"]:
            lines.append(f"  worker {worker['worker']}: {worker['done']} done, {doing(worker)}")
    if status["cycle"]:
        lines += status["cycle"]["text"]
    for failure in status["failures"]:
        lines.append(f"  {failure['uid']}: {failure['reason']} {last_line(failure['detail'])}".rstrip())
    if len(status["failures"]) < status["failed"]:
        lines.append(f"  ... and {status['failed'] - len(status['failures'])} more failures")
    return "\n".join([*lines, *_next_step(status)])


def _import_lines(status: dict[str, Any]) -> list[str]:
    """Lines on scenes and views whose cameras are undecided, and on views that were left out."""
    lines = []
    if count := status["undecided"]["scenes"]:
        uids = status["undecided"]["uids"]
        more = ", ..." if count > len(uids) else ""
        lines.append(f"cameras of {count} scenes cannot be told by their pictures (undecided): {', '.join(uids)}{more}")
    without = LeftOut(**status["left_out"])
    if without.scenes:
        lines.append(f"left out: {without.text}")
        lines += [f"  {uid}: {says}" for uid, says in without.first]
    views = Untold(**status["untold"])
    if views.views:
        lines.append(f"nothing vouches for {views.text}")
        lines += [f"  {uid}: {says}" for uid, says in views.first]
    return lines


def _next_step(status: dict[str, Any]) -> list[str]:
    """Line that says what the same command would do, or what a refusal suggests."""
    if status["state"] in ("stopped", "interrupted"):
        return ["the same command goes on where it stopped"]
    if status["state"] == "exhausted":
        again = "; with --retry-failed also those that failed" if status["failed"] and not status["cycle"] else ""
        return [f"the source has no more objects; the same command takes what it has got since{again}"]
    return [f"hint: {hint}" for hint in status["why"].splitlines()[1:]]
