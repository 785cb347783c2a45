"""The pure parts of the API: views, reasons, page tokens, checks, fleets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from treadle.controlplane.api import checks
from treadle.controlplane.api.fleet import PoolFleet, sum_up, worker_state
from treadle.controlplane.api.pages import Cursor, page_size, read_token, write_token
from treadle.controlplane.api.views import brief, reason_of, run_view, status_name
from treadle.protocol.errors import FieldInvalid, Refused
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent, RunCompleted, RunFailed, RunTerminated
from treadle.v1.pool_service_pb2 import WorkerState
from treadle.v1.run_service_pb2 import ConflictPolicy, RunStatus, StartRunRequest
from treadle.v1.state_pb2 import RunHead, RunOutcome, RunState, WorkerRecord


def head(state: RunState.ValueType = RunState.RUN_STATE_QUEUED, **more: object) -> RunHead:
    base = RunHead(
        namespace="default", run_id="r1", incarnation=7, workflow="import_contacts", pool="crm", state=state, length=3
    )
    base.MergeFrom(RunHead(**more))  # type: ignore[arg-type]
    return base


@pytest.mark.parametrize(
    ("state", "outcome", "status"),
    [
        ("QUEUED", "UNSPECIFIED", "running"),
        ("OPEN", "UNSPECIFIED", "running"),
        ("PARKED", "UNSPECIFIED", "running"),
        ("WAITING", "UNSPECIFIED", "waiting"),
        ("NEEDS_ATTENTION", "UNSPECIFIED", "needs_attention"),
        ("CLOSED", "COMPLETED", "completed"),
        ("CLOSED", "FAILED", "failed"),
        ("CLOSED", "CANCELLED", "cancelled"),
        ("CLOSED", "TERMINATED", "terminated"),
    ],
)
def test_status_is_one_word_for_each_state(state: str, outcome: str, status: str) -> None:
    record = head(RunState.Value(f"RUN_STATE_{state}"), outcome=RunOutcome.Value(f"RUN_OUTCOME_{outcome}"))
    assert status_name(run_view(record).status) == status


def test_a_view_has_the_outcome_of_its_last_event() -> None:
    closed = head(RunState.RUN_STATE_CLOSED, outcome=RunOutcome.RUN_OUTCOME_COMPLETED, closed_ms=5)
    done = HistoryEvent(position=3, run_completed=RunCompleted(result=Payload(data=b"7")))
    view = run_view(closed, done)
    assert (view.result.data, view.closed_ms, len(view.trace_id)) == (b"7", 5, 32)
    assert run_view(closed, done).trace_id == view.trace_id

    failed = head(RunState.RUN_STATE_CLOSED, outcome=RunOutcome.RUN_OUTCOME_FAILED)
    failure = Failure(type="ValueError", message="x" * 900, traceback="…", cause=Failure(type="OSError"))
    view = run_view(failed, HistoryEvent(run_failed=RunFailed(failure=failure)))
    assert view.failure == failure
    short = brief(view).failure
    assert (short.type, len(short.message), short.traceback, short.HasField("cause")) == ("ValueError", 300, "", False)

    ended = head(RunState.RUN_STATE_CLOSED, outcome=RunOutcome.RUN_OUTCOME_TERMINATED)
    assert run_view(ended, HistoryEvent(run_terminated=RunTerminated(reason="wrong file"))).reason == "wrong file"


def test_the_reason_says_why_nothing_happens_and_what_to_do() -> None:
    queued = head(queued_ms=1_000)
    assert reason_of(queued, PoolFleet(), 1_001) == (
        "no live worker in pool 'crm': start one with `treadle worker APP --pool crm`"
    )
    busy = PoolFleet(workers=2, run_slots=4, runs_open=4)
    assert reason_of(queued, busy, 2_000) == ""
    assert reason_of(queued, busy, 43_000) == ("queued for 42 s in pool 'crm': 4 of 4 run slots in use on 2 worker(s)")
    waiting = head(RunState.RUN_STATE_WAITING)
    assert "has the workflow 'import_contacts'" in reason_of(waiting, busy, 0)
    assert "has come" in reason_of(waiting, PoolFleet(workers=1, workflows={"import_contacts"}), 0)
    assert reason_of(head(RunState.RUN_STATE_NEEDS_ATTENTION, attention="diverged"), None, 0) == "diverged"
    assert reason_of(head(RunState.RUN_STATE_OPEN), busy, 10**9) == ""


def test_page_tokens_come_back_and_are_bound_to_their_list() -> None:
    cursor = Cursor(1_700_000_000_000, "run-ü")
    token = write_token(cursor, "default", 4)
    assert read_token(token, "default", 4) == cursor
    assert read_token("", "default", 4) is None
    flipped = ("A" if token[0] != "A" else "B") + token[1:]
    for wrong, filters in ((token, ("default", 5)), (flipped, ("default", 4)), ("~~~", ()), ("ü", ()), ("A", ())):
        with pytest.raises(FieldInvalid, match="page_token") as caught:
            read_token(wrong, *filters)
        assert caught.value.field == "page_token"
    assert [page_size(n) for n in (0, 1, 1000, 5000)] == [50, 1, 1000, 1000]


def test_checks_name_field_and_value() -> None:
    assert checks.run_of("", "r 1") == ("default", "r 1")
    wrong: dict[str, Callable[[], object]] = {
        "namespace": lambda: checks.namespace_of("Prod!"),
        "run_id": lambda: checks.run_of("", ""),
        "pool": lambda: checks.pool_of("a_b"),
        "request_id": lambda: checks.request_id_of(""),
        "workflow": lambda: checks.workflow_of("a\nb"),
        "reason": lambda: checks.reason_of("x" * 1001),
        "statuses": lambda: checks.statuses_of([99]),  # type: ignore[list-item]
        "conflict_policy": lambda: checks.policy_of(StartRunRequest(conflict_policy=99)),  # type: ignore[arg-type]
    }
    for field, call in wrong.items():
        with pytest.raises(FieldInvalid) as caught:
            call()
        assert caught.value.field == field
    with pytest.raises(FieldInvalid, match="must not begin with '~'"):
        checks.run_of("", "~schedule/nightly")  # those are names of records
    assert len(checks.statuses_of([])) == 7
    assert checks.statuses_of([RunStatus.RUN_STATUS_FAILED] * 2) == [RunStatus.RUN_STATUS_FAILED]
    assert checks.policy_of(StartRunRequest()) == ConflictPolicy.CONFLICT_POLICY_REJECT
    checks.check_payload("input", Payload(data=b"x" * 90), 100)
    with pytest.raises(Refused, match=r"input has 1\d\d bytes, the limit is 100") as refused:
        checks.check_payload("input", Payload(data=b"x" * 100), 100)
    assert refused.value.reason == "PAYLOAD_TOO_LARGE"


def test_only_live_workers_count() -> None:
    now = 100_000
    live = WorkerRecord(worker_id="a", pool="crm", last_beat_ms=now - 1, step_slots=4, steps_running=1, workflows=["w"])
    records = [
        live,
        WorkerRecord(worker_id="b", pool="crm", last_beat_ms=now - 5_000, step_slots=4),
        WorkerRecord(worker_id="c", pool="crm", last_beat_ms=now, closed_ms=now, step_slots=4),
        WorkerRecord(worker_id="d", pool="crm", last_beat_ms=now, draining=True, step_slots=4),
    ]
    states = [worker_state(record, now) for record in records]
    assert states == [
        WorkerState.WORKER_STATE_LIVE,
        WorkerState.WORKER_STATE_SILENT,
        WorkerState.WORKER_STATE_GONE,
        WorkerState.WORKER_STATE_DRAINING,
    ]
    (pool,) = sum_up(records, now).values()
    assert (pool.workers, pool.step_slots, pool.steps_running, pool.workflows) == (1, 4, 1, {"w"})
