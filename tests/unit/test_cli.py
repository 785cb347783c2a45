"""The command line's pure half: parsing, exit codes, messages, rows and JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from treadle.cli.__main__ import app, main
from treadle.cli.doctor import check_lines
from treadle.cli.draw import Row, header_lines, last_error, step_rows
from treadle.cli.exits import Exit, exit_code
from treadle.cli.json_input import read_object
from treadle.cli.options import Connection
from treadle.cli.output import emit
from treadle.cli.plain import plain, plain_payload, plain_run, plain_timeline
from treadle.cli.run_list import parse_since
from treadle.client.progress import duration_text, failure_text, payload_text, progress_line
from treadle.client.timeline import Timeline, timeline_of
from treadle.client.views import RunInfo, RunStatus, run_info
from treadle.protocol import errors
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.pool_service_pb2 import Check
from treadle.v1.run_service_pb2 import RUN_STATUS_FAILED, RUN_STATUS_RUNNING, Run

BOOM = Failure(type="ValueError", message="boom\nmore", traceback="Traceback …\nValueError: boom")


def event(position: int, time_ms: int, **body: object) -> h.HistoryEvent:
    return h.HistoryEvent(position=position, time_ms=time_ms, revision=2**63 + 1, **body)  # type: ignore[arg-type]


HISTORY = [
    event(1, 1000, run_started=h.RunStarted(workflow="imports", pool="flows")),
    event(2, 1005, run_opened=h.RunOpened(worker_id="w0")),
    event(3, 1010, step_scheduled=h.StepScheduled(command_id="0/enrich#1", name="enrich", pool="zip")),
    event(4, 1020, attempt_started=h.AttemptStarted(command_id="0/enrich#1", attempt=1, worker_id="w1")),
    event(5, 1520, attempt_lost=h.AttemptLost(command_id="0/enrich#1", attempt=1, reason="closed")),
    event(6, 1530, attempt_started=h.AttemptStarted(command_id="0/enrich#1", attempt=2, worker_id="w2")),
    event(
        7,
        1630,
        attempt_failed=h.AttemptFailed(command_id="0/enrich#1", attempt=2, failure=BOOM, retry_at_ms=2630),
    ),
    event(8, 2640, attempt_started=h.AttemptStarted(command_id="0/enrich#1", attempt=3, worker_id="w3")),
    event(9, 3480, step_completed=h.StepCompleted(command_id="0/enrich#1", attempt=3)),
    event(10, 3490, step_completed=h.StepCompleted(command_id="0/n#1", name="n", local=True, duration_ms=4, attempt=1)),
    event(11, 3491, timer_started=h.TimerStarted(command_id="0/sleep#1", fire_at_ms=63_491)),
]


def info(**more: object) -> RunInfo:
    base = Run(run_id="r1", namespace="default", workflow="imports", pool="flows", length=11, created_ms=1000)
    base.status, base.trace_id, base.incarnation = RUN_STATUS_RUNNING, "ab" * 16, 2**64 - 1
    base.MergeFrom(Run(**more))  # type: ignore[arg-type]
    return run_info(base)


# --- parsing


@pytest.mark.parametrize(
    "words",
    [["run", "lst"], ["run", "show"], ["run", "list", "-o", "xml"], ["nonsense"], ["run", "start", "w", "--idd", "x"]],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_options_become_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_SERVER", "treadle:7430")
    monkeypatch.setenv("TREADLE_TOKEN", "tdl_1_x")
    words = ["run", "list", "--status", "failed", "--status", "cancelled", "--since", "1h", "-o", "jsonl", "--tls"]
    _, bound, _ = app().parse_args([*words, "--namespace", "prod"], exit_on_error=False)
    assert bound.arguments["filters"].status == ["failed", "cancelled"]
    assert bound.arguments["output"] == "jsonl"
    connection = bound.arguments["connection"]
    assert (connection.server, connection.namespace, connection.token) == ("treadle:7430", "prod", "tdl_1_x")
    assert connection.credentials() is not None


def test_plaintext_to_another_machine_must_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pools", "--server", "treadle.example:7430"]) == Exit.USAGE
    assert "--insecure" in capsys.readouterr().err
    with pytest.raises(errors.ConfigError):
        Connection(tls_cert="only-one.pem").credentials()


def test_nobody_there_exits_4_with_the_address_and_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "show", "r1", "--server", "127.0.0.1:1"]) == Exit.UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "127.0.0.1:1" in captured.err
    assert "fix: start" in captured.err


def test_input_is_json_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "in.json"
    file.write_text('{"a": 1}')
    assert read_object('{"name": "Ada"}') == {"name": "Ada"}
    assert read_object(f"@{file}") == {"a": 1}
    for wrong in ("[1]", "{", "@" + str(tmp_path / "gone.json"), '"text"'):
        with pytest.raises(errors.ConfigError):
            read_object(wrong)


def test_since_is_a_span_or_a_time() -> None:
    assert parse_since("1h30m") == timedelta(minutes=90)
    assert parse_since("2026-11-22T10:00+00:00") == datetime(2026, 11, 22, 10, tzinfo=UTC)
    with pytest.raises(errors.ConfigError, match="--since"):
        parse_since("yesterday")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("x"), 3),
        (errors.Unavailable("x"), 4),
        (errors.ResultTimeout("x"), 5),
        (errors.FieldInvalid("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.PayloadError("x"), 2),
        (errors.RunFailed("x"), 1),
        (errors.RunIdConflict("x"), 1),
        (errors.RunClosed("x"), 1),
        (errors.Refused("x"), 1),
    ],
)
def test_exit_codes(error: errors.TreadleError, code: int) -> None:
    assert exit_code(error) == code


# --- drawing


def test_show_lists_attempts_when_there_is_something_to_tell() -> None:
    rows = step_rows(timeline_of(HISTORY))
    assert rows == [
        Row(0, "completed", "enrich", "pool zip", "2.5 s", "3 attempts"),
        Row(1, "lost", "1 lost", "w1", "500 ms", "its worker died"),
        Row(1, "retrying", "2 failed", "w2", "100 ms", "ValueError: boom"),
        Row(1, "completed", "3 completed", "w3", "840 ms", ""),
        Row(0, "completed", "n", "local", "4 ms", ""),
        Row(0, "sleeping", "sleep", "timer", "0 ms", "until in 1 m 00 s"),
    ]


def test_header_and_last_error() -> None:
    failed = info(closed_ms=4200, failure=BOOM, status=RUN_STATUS_FAILED)
    head = header_lines(failed, timeline_of(HISTORY))
    assert head[0] == "imports   r1   ✗ failed in 3.2 s"
    assert "11 events" in head[1]
    assert head[-1] == "  error  ValueError: boom"
    assert last_error(timeline_of(HISTORY)) == ("enrich, attempt 2", BOOM)
    assert last_error(Timeline()) is None
    assert header_lines(info(deadline_ms=61_000), Timeline())[-1].startswith("  must end by 1970-01-01")
    assert "it cleans up" in header_lines(info(deadline_ms=61_000, timed_out=True), Timeline())[-1]
    assert plain_run(info(deadline_ms=61_000))["deadline"] == "1970-01-01T00:01:01.000+00:00"
    assert plain_run(info())["deadline"] is None and not plain_run(info())["timed_out"]
    waits = header_lines(info(reason="no live worker in pool 'flows'"), Timeline())
    assert waits[-1] == "  no live worker in pool 'flows'"


def test_progress_says_that_a_run_is_asked_to_end() -> None:
    event = h.HistoryEvent(position=2, time_ms=61_000)
    event.run_timed_out.CopyFrom(h.RunTimedOut(timeout_ms=60_000, close_at_ms=121_000, raised=True))
    timeline = Timeline()
    assert progress_line("r1", timeline, event) == "  ⊘ the run's timeout of 1 m 00 s is over · 1 m 00 s to clean up"
    assert timeline.timed_out


def test_progress_marks_lost_and_retried_attempts() -> None:
    timeline = Timeline()
    lines = [line for one in HISTORY if (line := progress_line("r1", timeline, one))]
    assert lines == [
        "▶ run imports            r1",
        "  ⚡ enrich             attempt 1 lost: its worker died · starts again elsewhere",
        "  ▶ enrich             attempt 2 started",
        "  ⟳ enrich             attempt 2 failed: ValueError: boom · retry in 1 s",
        "  ▶ enrich             attempt 3 started",
        "  ✓ enrich             attempt 3 · 840 ms",
        "  ✓ n                  4 ms",
        "  ◷ sleep              1 m 00 s",
    ]
    done = event(12, 4200, run_completed=h.RunCompleted(result=Payload(data=b'{"n":1}')))
    assert progress_line("r1", timeline, done) == '✓ COMPLETED in 3.2 s   result {"n": 1}'


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (3200, "3.2 s"),
        (2000, "2 s"),
        (59_960, "1 m 00 s"),
        (125_000, "2 m 05 s"),
        (12_000_000, "3 h 20 m"),
    ],
)
def test_durations(ms: int, text: str) -> None:
    assert duration_text(ms) == text


def test_texts_are_cut() -> None:
    assert failure_text(Failure(type="E", message="x" * 500), limit=20).endswith("…")
    assert payload_text(Payload(data=b"x", encoding="aes")) == "<1 bytes, aes>"
    assert payload_text(Payload()) == "null"


def test_doctor_lines() -> None:
    checks = [Check(name="redis", ok=True, detail="7.0"), Check(name="amqp", detail="refused", remedy="start it")]
    assert check_lines("h:1", checks) == [
        "✓ control plane   answers at h:1",
        "✓ redis   7.0",
        "✗ amqp   refused",
        "    fix: start it",
    ]


# --- JSON


def test_json_keeps_what_readers_would_round() -> None:
    run = plain_run(info(result=Payload(data=b'{"a":[1]}')))
    assert (run["incarnation"], run["result"], run["status"]) == (str(2**64 - 1), {"a": [1]}, "running")
    first = plain(HISTORY[0])
    assert first["revision"] == str(2**63 + 1)
    assert (first["position"], first["time_ms"]) == (1, 1000)
    assert json.loads(json.dumps(first)) == first
    assert plain(Check(ok=True, name="x")) == {"name": "x", "ok": True}


def test_json_of_steps() -> None:
    enrich, *_ = plain_timeline(timeline_of(HISTORY))
    assert [a["outcome"] for a in enrich["attempts"]] == ["lost", "failed", "completed"]
    assert enrich["attempts"][1]["error"]["type"] == "ValueError"
    assert enrich["started_at"] == "1970-01-01T00:00:01.010+00:00"


def test_payloads_of_a_codec_stay_closed() -> None:
    assert plain_payload(Payload(data=b"\x00", encoding="aes")) == {"encoding": "aes", "base64": "AA=="}
    assert plain_payload(Payload(data=b"{")) == {"encoding": "", "base64": "ew=="}


def test_output_forms(capsys: pytest.CaptureFixture[str]) -> None:
    values = [{"a": 1}, {"a": 2}]
    emit(values, "json", lambda: None)
    assert json.loads(capsys.readouterr().out) == values
    emit(values, "jsonl", lambda: None)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == values


def test_statuses_are_read_as_people_write_them() -> None:
    assert RunStatus.of("NEEDS_ATTENTION") is RunStatus.NEEDS_ATTENTION
    assert RunStatus.of("Failed").closed
    with pytest.raises(errors.FieldInvalid, match="use one of running"):
        RunStatus.of("broken")
