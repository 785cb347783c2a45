"""Import a contact list: check every row, look up zip codes, create the contacts, tell the user.

    treadle dev examples/contacts/app.py
    treadle run start import_contacts -i @examples/contacts/upload.json --watch

Contacts, mails and the ledger are written to the folder CONTACTS_HOME (default: .treadle/contacts).
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import smtplib
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from uuid import uuid4

import zipcodes

from treadle.worker import ConfigError, Fatal, Retry, StepInfo, step, step_info, workflow

HOME = Path(os.environ.get("CONTACTS_HOME") or ".treadle/contacts")
CHUNK = 400  # rows that are looked up by one step
TOLERATED = 0.05  # share of invalid rows that are left out; with more, the upload is refused
LOOKUP_SECONDS = float(os.environ.get("CONTACTS_LOOKUP_SECONDS") or 0)  # how slow the address service plays
MISSING = ("", "NA")  # how exports of spreadsheets write "nothing"


@dataclass
class Upload:
    user: str
    file: str  # a path that the csv workers can read


@dataclass
class Contact:
    key: str
    name: str
    city: str
    state: str
    zip_code: str = ""


@dataclass
class Report:
    ok: bool
    contacts: list[Contact] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Summary:
    imported: int
    without_zip_code: int
    errors: list[str]


@step(pool="csv", timeout="2m")
async def validate(upload: Upload) -> Report:
    """Check every row: report the invalid ones, and refuse the file when they are too many."""
    ledger("validate")
    try:
        text = Path(upload.file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise Fatal(f"{upload.file}: there is no such file; upload it again") from error  # no retry would find it
    report, seen = Report(ok=True), set[str]()
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        missing = [column for column in ("iata", "name", "city", "state") if (row.get(column) or "").strip() in MISSING]
        if missing:
            report.errors.append(f"line {number}: no {' and no '.join(missing)}")
        elif row["iata"] in seen:
            report.errors.append(f"line {number}: {row['iata']} is there already")
        else:
            seen.add(row["iata"])
            report.contacts.append(Contact(row["iata"], row["name"].strip(), row["city"].strip(), row["state"].strip()))
    rows = len(report.contacts) + len(report.errors)
    report.ok = rows > 0 and len(report.errors) <= rows * TOLERATED
    return report


@step(pool="enrich", retry=Retry(attempts=8, initial="1s", cap="5m"), timeout="2m")
async def add_zip_codes(chunk: int, contacts: list[Contact]) -> list[Contact]:
    """Look up the zip codes of one chunk; a place that is not known keeps none."""
    ledger("add_zip_codes", chunk)
    found = await asyncio.to_thread(zip_codes, {contact.state for contact in contacts})
    await asyncio.sleep(LOOKUP_SECONDS)
    if chunk == 1 and (now := attempt()) is not None and now.try_number == 1:
        raise ConnectionError("the address service does not answer")  # real ones have bad moments; this one, its first
    return [replace(one, zip_code=found[one.state].get(one.city.upper(), "")) for one in contacts]


@step(pool="crm")
def create_contacts(contacts: list[Contact]) -> int:  # a sync function is fine: it runs in a thread
    """Write the contacts. The key decides, so an attempt that is run again doubles nothing."""
    ledger("create_contacts")
    HOME.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(HOME / "contacts.db", timeout=30)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS contacts (key TEXT PRIMARY KEY, name, city, state, zip_code)")
        database.executemany("INSERT OR REPLACE INTO contacts VALUES (?, ?, ?, ?, ?)", map(astuple, contacts))
    return len(contacts)


@step
def notify(user: str, subject: str, lines: list[str]) -> None:  # no pool: runs where the workflow runs
    """Send a mail: to the server CONTACTS_SMTP ("host:port"), or else into a folder."""
    ledger("notify")
    now = attempt()
    key = now.idempotency_key if now else uuid4().hex  # equal in all attempts, so no mail comes twice
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "contacts@example.com", user, subject
    mail["Message-ID"] = f"<{key}@contacts.example.com>"
    mail.set_content("\n".join(lines) + "\n")
    if server := os.environ.get("CONTACTS_SMTP"):
        with smtplib.SMTP(server, timeout=30) as smtp:
            smtp.send_message(mail)
    else:
        (HOME / "mails").mkdir(parents=True, exist_ok=True)
        (HOME / "mails" / f"{key}.eml").write_bytes(mail.as_bytes())


@workflow
async def import_contacts(upload: Upload) -> Summary:
    report = await validate(upload)
    if not report.ok:
        await notify(upload.user, f"nothing imported: {len(report.errors)} rows are invalid", report.errors)
        return Summary(0, 0, report.errors)
    chunks = [report.contacts[start : start + CHUNK] for start in range(0, len(report.contacts), CHUNK)]
    looked_up = await asyncio.gather(*(add_zip_codes(number, chunk) for number, chunk in enumerate(chunks, start=1)))
    contacts = [contact for chunk in looked_up for contact in chunk]
    total = await create_contacts(contacts)
    await notify(upload.user, f"{total} contacts imported", report.errors or ["all rows are valid"])
    return Summary(total, sum(not contact.zip_code for contact in contacts), report.errors)


# --- what the steps share

_reading = threading.Lock()  # chunks come at the same time; each state is read once in a process


def zip_codes(states: set[str]) -> dict[str, dict[str, str]]:
    """Return the first zip code of each city of these states; the names of cities in capitals."""
    with _reading:
        return {state: _zip_codes_of(state) for state in states}


@cache
def _zip_codes_of(state: str) -> dict[str, str]:
    cities: dict[str, str] = {}
    for entry in zipcodes.filter_by(state=state):
        for city in (entry["city"], *entry["acceptable_cities"]):
            cities.setdefault(city.upper(), entry["zip_code"])
    return cities


def attempt() -> StepInfo | None:
    """Return what the worker knows about this attempt; None in a plain call, as in a test."""
    try:
        return step_info()
    except ConfigError:
        return None


def ledger(name: str, chunk: int | None = None) -> None:
    """Note that the body of a step begins: one line, in one write."""
    HOME.mkdir(parents=True, exist_ok=True)
    entry: dict[str, object] = {"step": name, "chunk": chunk, "pid": os.getpid(), "time": time.time()}
    if now := attempt():
        entry |= {"run": now.run_id, "command": now.command_id, "attempt": now.attempt}
    with (HOME / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
