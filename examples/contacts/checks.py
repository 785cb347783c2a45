"""What the demo looks at when a run is over: the database, the mails, the ledger of step bodies, the history."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from examples.contacts.app import MISSING, Summary

from treadle.client.timeline import StepView, Timeline

__all__ = ("Checks", "check_broken", "check_import", "ledger_of")

EXAMPLE = Path(__file__).resolve().parent
COUNT = "SELECT count(*), count(DISTINCT key) FROM contacts"


@dataclass
class Checks:
    """Counts and prints what was found."""

    passed: int = 0
    failed: int = 0

    def __call__(self, fine: bool, text: str) -> None:
        """Note one check."""
        self.passed += fine
        self.failed += not fine
        print(f"  {'✓' if fine else '✗ FAILED:'} {text}", flush=True)


def check_import(
    check: Checks, summary: Summary, timeline: Timeline, output: Path, run_id: str, killed: list[int]
) -> None:
    """Check the run on the whole file, whose worker was killed."""
    valid = valid_keys("airports")
    check(
        summary.imported == len(valid) and len(summary.errors) == 12,
        f"summary: {summary.imported:,} contacts imported, {summary.without_zip_code} of them without zip code, "
        f"{len(summary.errors)} invalid rows left out (the first: {(summary.errors or ['none'])[0]})",
    )
    with closing(sqlite3.connect(output / "contacts.db")) as database:
        rows, distinct = database.execute(COUNT).fetchone()
        keys = {key for (key,) in database.execute("SELECT key FROM contacts")}
    check(
        rows == distinct == len(valid) and keys == valid,
        f"database: {COUNT} → {rows}, {distinct}: each valid row exactly once",
    )
    subject = f"{len(valid)} contacts imported"
    check(subjects(output) == [subject], f"mail: {'; '.join(subjects(output)) or 'none'}")
    chunks = [step for step in timeline.steps.values() if step.name == "add_zip_codes"]
    lost, failed = sum(step.count("lost") for step in chunks), sum(step.count("failed") for step in chunks)
    check(failed == 1, f"retried: {failed} attempt failed by its own error, and its chunk was tried again")
    check(lost > 0, f"lost: {lost} attempts died with their worker, and were run again by the new one")
    entries = ledger_of(output, run_id)
    enrichers = {entry["pid"] for entry in entries if entry["step"] == "add_zip_codes"}
    check(
        len(killed) == 1 and killed[0] in enrichers and len(enrichers) == 2,
        f"chunks were looked up by two processes: {', '.join(map(str, sorted(enrichers)))}",
    )
    check_bodies(check, timeline, entries)


def check_bodies(check: Checks, timeline: Timeline, entries: list[dict[str, Any]]) -> None:
    """Print how often each body ran; check that none ran without an attempt, or after its result was recorded."""
    ran = Counter(str(entry["command"]) for entry in entries)
    print(f"\n    {'step':<18} {'calls':>6} {'bodies':>7} {'failed':>7} {'lost':>7}")
    for name in dict.fromkeys(step.name for step in timeline.steps.values()):
        calls = [step for step in timeline.steps.values() if step.name == name]
        bodies = sum(ran[step.command_id] for step in calls)
        failed, lost = (sum(step.count(outcome) for step in calls) for outcome in ("failed", "lost"))
        print(f"    {name:<18} {len(calls):>6} {bodies:>7} {failed:>7} {lost:>7}")
    print()
    wrong = [step.command_id for step in timeline.steps.values() if not plausible(step, ran[step.command_id])]
    check(not wrong, "each body ran once for each attempt in the history" + (f", but not {wrong}" if wrong else ""))
    ends = {step.command_id: step.end_ms or 0 for step in timeline.steps.values()}
    late = [entry for entry in entries if entry["time"] * 1000 > ends.get(entry["command"], 0)]
    check(not late, "no body began after its result was recorded" + (f", but {late}" if late else ""))


def plausible(step: StepView, bodies: int) -> bool:
    """One that was given back never began, and a lost one may have died before its body did; every other one ran it once."""
    begun = len(step.attempts) - step.count("released")
    return begun - step.count("lost") <= bodies <= begun


def check_broken(check: Checks, summary: Summary, timeline: Timeline, output: Path, run_id: str) -> None:
    """Check that the broken file was only told of."""
    check(
        summary.imported == 0 and len(summary.errors) == 6,
        f"summary: nothing imported, {len(summary.errors)} rows are invalid: {'; '.join(summary.errors[:2])}; …",
    )
    steps = [step.name for step in timeline.steps.values()]
    bodies = [str(entry["step"]) for entry in ledger_of(output, run_id)]
    check(steps == bodies == ["validate", "notify"], f"only these steps ran: {', '.join(bodies)}")
    with closing(sqlite3.connect(output / "contacts.db")) as database:
        rows, _ = database.execute(COUNT).fetchone()
    check(rows == len(valid_keys("airports")), f"database: as before, {rows} contacts")
    wanted = "nothing imported: 6 rows are invalid"
    check(subjects(output).count(wanted) == 1 and len(subjects(output)) == 2, f"mail: {wanted}")


def valid_keys(name: str) -> set[str]:
    """Return the keys of the rows that have a city and a state, as the file itself tells."""
    with (EXAMPLE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["iata"] for row in csv.DictReader(file) if {row["city"], row["state"]}.isdisjoint(MISSING)}


def subjects(output: Path) -> list[str]:
    """Return the subjects of the mails."""
    mails = [message_from_bytes(path.read_bytes(), policy=policy.default) for path in output.glob("mails/*.eml")]
    return sorted(str(mail["Subject"]) for mail in mails)


def ledger_of(output: Path, run_id: str) -> list[dict[str, Any]]:
    """Return what the step bodies of a run noted when they began."""
    ledger = output / "ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry.get("run") == run_id]
