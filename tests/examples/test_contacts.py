"""The contact import: its steps and its workflow as plain functions on the real file, and the demo as a person runs it."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path

import pytest
from examples.contacts import app

from treadle.testing import Lab
from treadle.worker import Fatal, RunFailed

EXAMPLE = Path(app.__file__).parent
AIRPORTS = app.Upload("ada@example.com", str(EXAMPLE / "airports.csv"))
BROKEN = app.Upload("ada@example.com", str(EXAMPLE / "broken.csv"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder that the example writes to."""
    monkeypatch.setattr(app, "HOME", tmp_path / "home")
    yield tmp_path / "home"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


class MailServer:
    """Takes one mail over SMTP and keeps its text."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self._thread = threading.Thread(target=self._serve)
        self.port: int = self._socket.getsockname()[1]
        self.mail = ""

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rw", newline="") as wire:
            wire.write("220 ready\r\n")
            wire.flush()
            for line in wire:
                word = line.split()[0].upper()
                wire.write({"DATA": "354 go on\r\n", "QUIT": "221 bye\r\n"}.get(word, "250 fine\r\n"))
                wire.flush()
                if word == "DATA":
                    self.mail = "".join(iter(wire.readline, ".\r\n"))
                    wire.write("250 taken\r\n")
                    wire.flush()
                if word == "QUIT":
                    return

    def __enter__(self) -> MailServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._socket.close()


def stored(home: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(home / "contacts.db")) as database:
        return database.execute("SELECT key, name, city, state, zip_code FROM contacts ORDER BY key").fetchall()


def mails(home: Path) -> list[EmailMessage]:
    return [message_from_bytes(path.read_bytes(), policy=policy.default) for path in sorted(home.glob("mails/*.eml"))]


def bodies(home: Path) -> list[str]:
    return [json.loads(line)["step"] for line in (home / "ledger.jsonl").read_text().splitlines()]


def test_the_file_is_the_whole_list() -> None:
    assert len((EXAMPLE / "airports.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3376


def test_validate_reports_the_real_rows_without_city_or_state(home: Path) -> None:
    report = asyncio.run(app.validate(AIRPORTS))
    assert report.ok
    assert (len(report.contacts), len(report.errors)) == (3364, 12)
    assert report.errors[0] == "line 1138: no city and no state"
    assert report.contacts[0] == app.Contact("00M", "Thigpen", "Bay Springs", "MS")
    assert len({contact.key for contact in report.contacts}) == 3364


def test_validate_refuses_the_broken_file_and_says_why(home: Path) -> None:
    report = asyncio.run(app.validate(BROKEN))
    assert not report.ok
    assert report.errors == [
        "line 2: no city and no state",
        "line 4: no name and no city and no state",
        "line 5: no state",
        "line 6: no iata",
        "line 7: no city and no state",
        "line 10: 02A is there already",
    ]


def test_validate_refuses_a_file_without_rows(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("iata,name,city,state\n")
    assert not asyncio.run(app.validate(app.Upload("ada@example.com", str(tmp_path / "empty.csv")))).ok


def test_a_missing_file_is_not_retried(home: Path) -> None:
    with pytest.raises(Fatal, match=r"nowhere\.csv"):
        asyncio.run(app.validate(app.Upload("ada@example.com", "nowhere.csv")))


def test_zip_codes_are_found_by_city_and_state(home: Path) -> None:
    perry, unknown = app.Contact("01G", "Perry-Warsaw", "Perry", "NY"), app.Contact("X", "X", "Atlantis", "NY")
    found = asyncio.run(app.add_zip_codes(1, [perry, unknown]))
    assert [contact.zip_code for contact in found] == ["14530", ""]
    assert perry.zip_code == "", "the input is left alone"


def test_contacts_are_created_once_however_often_the_step_runs(home: Path) -> None:
    contacts = [app.Contact("01G", "Perry-Warsaw", "Perry", "NY", "14530")]
    assert app.create_contacts(contacts) == 1  # type: ignore[comparison-overlap]
    assert app.create_contacts(contacts) == 1  # type: ignore[comparison-overlap]
    assert stored(home) == [("01G", "Perry-Warsaw", "Perry", "NY", "14530")]


def test_the_workflow_imports_the_real_file(home: Path) -> None:
    summary = asyncio.run(app.import_contacts(AIRPORTS))
    assert (summary.imported, len(summary.errors)) == (3364, 12)
    rows = stored(home)
    assert len(rows) == len({row[0] for row in rows}) == 3364
    assert sum(not row[4] for row in rows) == summary.without_zip_code < 300
    assert bodies(home) == ["validate", *["add_zip_codes"] * 9, "create_contacts", "notify"]
    (mail,) = mails(home)
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "3364 contacts imported")
    assert len(mail.get_content().splitlines()) == 12


def test_the_workflow_only_tells_of_a_broken_file(home: Path) -> None:
    summary = asyncio.run(app.import_contacts(BROKEN))
    assert (summary.imported, len(summary.errors)) == (0, 6)
    assert not (home / "contacts.db").exists()
    assert bodies(home) == ["validate", "notify"]
    assert [mail["Subject"] for mail in mails(home)] == ["nothing imported: 6 rows are invalid"]


# --- durably, in a lab: retries, timeouts and other processes' pools count, and no time is lost -----------------------


def test_the_durable_import_gets_over_the_first_bad_moment_of_the_address_service(home: Path, lab: Lab) -> None:
    run = lab.start(app.import_contacts, AIRPORTS)
    summary = run.result()
    assert (summary.imported, len(summary.errors)) == (3364, 12)
    assert run.steps == ["validate", *["add_zip_codes"] * 9, "create_contacts", "notify"]
    first = [call for call in lab.calls(app.add_zip_codes) if call.args[0] == 1]
    assert [call.attempt for call in first] == [1, 2], "its first attempt finds the service away"
    assert timedelta(seconds=0.5) <= first[1].at - first[0].at <= timedelta(seconds=1.5)
    assert len(lab.calls(app.add_zip_codes)) == 10
    (mail,) = mails(home)
    (notified,) = lab.calls(app.notify)
    assert mail["Message-ID"] == f"<{notified.idempotency_key}@contacts.example.com>"


def test_a_crm_that_is_away_for_long_is_waited_for(lab: Lab) -> None:
    few = app.Report(True, [app.Contact("01G", "Perry-Warsaw", "Perry", "NY")])
    lab.replace(app.validate, returns=few)
    lab.replace(app.add_zip_codes, calls=lambda chunk, contacts: contacts)
    lab.replace(app.create_contacts, outcomes=[ConnectionError("CRM away")] * 4 + [1])
    lab.replace(app.notify, returns=None)
    run = lab.start(app.import_contacts, AIRPORTS)
    assert run.result() == app.Summary(1, 1, [])
    assert [call.attempt for call in lab.calls(app.create_contacts)] == [1, 2, 3, 4, 5]
    assert [call.args[1] for call in lab.calls(app.notify)] == ["1 contacts imported"]


def test_a_crm_that_stays_away_fails_the_run_and_nobody_is_told_otherwise(lab: Lab) -> None:
    lab.replace(app.validate, returns=app.Report(True, [app.Contact("01G", "Perry-Warsaw", "Perry", "NY")]))
    lab.replace(app.add_zip_codes, calls=lambda chunk, contacts: contacts)
    lab.replace(app.create_contacts, raises=ConnectionError("CRM away"))
    run = lab.start(app.import_contacts, AIRPORTS)
    with pytest.raises(RunFailed, match="step create_contacts failed after 5 attempts: ConnectionError: CRM away"):
        run.result()
    assert lab.calls(app.notify) == []


def test_a_validation_that_hangs_is_tried_again_after_its_two_minutes(lab: Lab) -> None:
    lab.replace(app.validate, hangs=True)
    run = lab.start(app.import_contacts, AIRPORTS)
    with pytest.raises(RunFailed, match="step validate timed out after 5 attempts"):
        run.result()
    began = [call.at for call in lab.calls(app.validate)]
    assert all(later - at > timedelta(minutes=2) for at, later in pairwise(began))


def test_the_input_for_the_command_line_is_one() -> None:
    given = json.loads((EXAMPLE / "upload.json").read_text())
    upload = app.Upload(**given.pop("upload"))
    assert given == {}
    assert (EXAMPLE.parents[1] / upload.file).samefile(EXAMPLE / "airports.csv")


def test_mail_goes_to_the_server_when_there_is_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MailServer() as server:
        monkeypatch.setenv("CONTACTS_SMTP", f"127.0.0.1:{server.port}")
        app.notify.function("ada@example.com", "3 contacts imported", ["line 2: no city"])
    assert "Subject: 3 contacts imported" in server.mail
    assert "line 2: no city" in server.mail
    assert mails(home) == []
