"""How a run is steered and ends: cancel, terminate, sweep, delete, accept."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, schedule, sleep, value

from treadle.controlplane.machine import Settings
from treadle.controlplane.machine.indexes import status_of
from treadle.controlplane.machine.requests import (
    AcceptRun,
    CancelRun,
    FireTimer,
    Reported,
    Request,
    RunReply,
    TerminateRun,
)
from treadle.controlplane.store.port import Change, Outcome, Want
from treadle.protocol.errors import NotFound, RunClosed
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job
from treadle.v1.run_service_pb2 import (
    RunStatus,
)
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_TERMINATED,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_COMPLETED,
    VERDICT_STALE,
    AttemptReport,
)


def parked(*, cached: bool = False, worker_id: str = "O") -> Rig:
    """A run that waits for a step; nobody owns it."""
    rig = Rig()
    owner = rig.with_step(worker_id=worker_id)
    assert owner.say(park={"cached": cached}).answer == ANSWER_OK
    return rig


# --- cancel and terminate ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["queued", "waiting", "open", "parked"])
def test_a_cancel_is_an_input_recorded_once(state: str) -> None:
    rig = parked() if state == "parked" else Rig()
    if state != "parked":
        rig.start()
    if state == "open":
        rig.open()
    elif state == "waiting":
        rig.claim(rig.run_job(), unregistered=True)
    before = rig.head.state
    for request_id in ("c1", "c1", "c2"):
        assert isinstance(rig.cancel_run(request_id), RunReply)
    assert rig.kinds().count("cancel_requested") == 1 and rig.head.cancel_requested
    assert rig.head.state == (RUN_STATE_QUEUED if state == "parked" else before)
    if state == "open":
        assert rig.head.watch_due_ms == rig.now + 2_000 >= rig.timers()[""]


ACTS: dict[str, Request] = {
    "cancel": CancelRun("x", "r"),
    "terminate": TerminateRun("x", "r"),
    "accept": AcceptRun("x", "r"),
}


@pytest.mark.parametrize("act", list(ACTS))
def test_what_steers_a_run_is_refused_when_there_is_none_or_it_is_closed(act: str) -> None:
    rig = Rig()
    assert isinstance(rig.ask(ACTS[act]), NotFound)
    rig.start()
    if act == "accept":
        reply = rig.ask(ACTS[act])
        assert isinstance(reply, RunClosed) and reply.reason == "NOT_STOPPED"
    rig.terminate()
    assert isinstance(rig.ask(ACTS[act]), RunClosed) and rig.decision.change is None


@pytest.mark.parametrize("act", list(ACTS))
def test_what_steers_a_run_is_answered_as_before_when_it_is_asked_again(act: str) -> None:
    """The answer was lost, and the run has its outcome meanwhile."""
    rig = Rig()
    rig.start()
    if act == "accept":
        rig.open().say(diverged={"expected": "x", "found": "y"})
    assert isinstance(rig.ask(ACTS[act]), RunReply)
    if act != "terminate":
        rig.terminate("other")
    assert isinstance(rig.ask(ACTS[act]), RunReply) and rig.decision.change is None


@pytest.mark.parametrize("state", ["queued", "waiting", "open", "parked", "stopped"])
def test_a_terminate_closes_at_once(state: str) -> None:
    rig = parked() if state == "parked" else Rig()
    if state != "parked":
        rig.start()
    owner: Owner | None = None
    if state in ("open", "stopped"):
        owner = rig.open()
    if state == "stopped" and owner is not None:
        owner.say(diverged={"expected": "x", "found": "y"})
    elif state == "waiting":
        rig.claim(rig.run_job(), unregistered=True)
    job = rig.run_job()
    reply = rig.terminate()
    head = rig.head
    assert isinstance(reply, RunReply) and reply.head == head and rig.last("run_terminated").reason == "why"
    assert (head.state, head.outcome, head.closed_ms) == (RUN_STATE_CLOSED, RUN_OUTCOME_TERMINATED, rig.now)
    assert not head.HasField("owner") and status_of(head) == RunStatus.RUN_STATUS_TERMINATED
    assert rig.indexes() == {"s:ns:terminated", "w:ns:wf:terminated"}
    gone = ("R", "A", owner.token) if owner is not None and state == "open" else None
    assert rig.decision.owner_gone == gone
    assert rig.claim(job).verdict == VERDICT_STALE


def test_the_head_is_closed_first_and_rows_are_swept_in_pages() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    for page in range(5):
        owner.say(*(schedule(f"0/s#{page}-{n}") for n in range(100)))
    assert rig.head.open_commands == 500 and len(rig.timers()) == 501
    token = rig.hold("A", "0/s#0-0").token
    rig.terminate()
    assert len(rig.fields()) == 1_000 and rig.head.sweeping and rig.timers()[""] == rig.now
    assert (
        rig.claim(Job(run_id="run-1", kind=JOB_KIND_STEP, command_id="0/s#1-1", try_number=1)).verdict == VERDICT_STALE
    )
    told, left = [], [500]
    for _ in range(10):
        change = rig.fire().change
        told += [(order.token, order.reason) for order in rig.decision.cancels]
        assert change is not None and len(change.del_fields) <= 400
        left.append(rig.head.open_commands)
    swept = rig.head
    assert left == sorted(left, reverse=True) and left[1] > 0 and not swept.sweeping
    assert not rig.fields() and swept.open_commands == 0 and told == [(token, "run closed")]
    assert rig.timers() == {"": rig.head.delete_at_ms}


def test_a_row_that_nobody_can_read_does_not_keep_a_sweep_from_its_end() -> None:
    rig = Rig()
    rig.with_step(schedule(), sleep())
    (loaded,) = rig.store.load_now([Want(RUN)])
    damaged = Change(RUN, loaded.revision, 7, loaded.head, set_fields={"c:0/sleep#1": b"\xff\xff\xff"})
    assert rig.store.commit_now([damaged])[0].outcome is Outcome.OK
    rig.terminate()
    rig.fire()
    rig.fire()
    assert not rig.head.sweeping and not rig.fields() and list(rig.timers()) == [""]


def test_a_sweep_goes_before_the_retention() -> None:
    rig = Rig()
    rig.with_step()
    rig.terminate()
    rig.wait(rig.settings.retention_ms + 1)
    rig.fire()
    rig.fire()
    assert rig.head.state == RUN_STATE_CLOSED and not rig.fields()
    rig.fire()
    assert not rig.head.state


def test_a_retention_ends_in_a_tombstone() -> None:
    rig = Rig()
    head = rig.start().head
    rig.open().say(complete={"result": value("r")})
    assert rig.timers()[""] <= rig.now + rig.settings.retention_ms == rig.head.delete_at_ms
    rig.wait(rig.settings.retention_ms - 1)
    rig.fire()
    assert rig.head.state == RUN_STATE_CLOSED and rig.timers()[""] == rig.now + 1
    rig.wait(1)
    change = rig.fire().change
    assert change is not None and change.delete and change.tombstone_ms == rig.settings.tombstone_ms
    assert not rig.head.state and not rig.timers() and not rig.indexes()
    rig.fire()
    assert rig.decision.orphans == [""]
    assert rig.start().head.incarnation == head.incarnation


# --- stopped runs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["open", "parked"])
def test_a_history_that_grew_too_long_stops_the_run_until_somebody_accepts(state: str) -> None:
    rig = Rig(Settings(history_limit=10))
    owner = rig.with_step(*(schedule(f"0/s#{n}") for n in range(8)))
    if state == "parked":
        owner.say(park={})
    rig.report(rig.hold("A", "0/s#0").token, command_id="0/s#0")
    assert rig.head.state == RUN_STATE_NEEDS_ATTENTION and "limit is 10" in rig.head.attention
    assert not rig.decision.jobs and rig.kinds()[-1] == "run_halted" and "a:ns:wf" in rig.indexes()
    assert owner.say().answer == ANSWER_LEASE_LOST
    rig.register()
    assert rig.head.state == RUN_STATE_NEEDS_ATTENTION, "only a person lets it go on"
    rig.accept()
    assert rig.head.state == RUN_STATE_QUEUED and rig.head.attention == ""
    rig.open("B")
    rig.report(rig.hold("A", "0/s#1").token, command_id="0/s#1")
    assert rig.head.state == RUN_STATE_OPEN, "for as many events again"


def test_accept_names_what_need_not_be_asked_for_again() -> None:
    rig = Rig()
    owner = rig.with_step()
    owner.say(diverged={"expected": "x", "found": "y"})
    length = rig.head.length
    rig.accept("a1")
    assert rig.head.accepted_until == length == rig.last("run_accepted").until
    assert rig.head.state == RUN_STATE_QUEUED and rig.head.wake_dispatch_id in rig.outbox()
    assert rig.claim(rig.run_job()).grant.run.accepted_until == length
    rig.accept("a1")
    assert rig.decision.change is None


# --- batches -------------------------------------------------------------------------------------------------------------
def test_rows_that_a_batch_names_are_seen_beside_a_timer_of_the_run() -> None:
    """A page of fields is loaded for a sweep; a report that rides along must not take its row for settled."""
    rig = Rig()
    rig.start()
    owner = rig.open()
    for page in range(4):
        owner.say(*(schedule(f"0/s#{page}-{n}") for n in range(100)))
    last = "0/s#3-99"
    told = AttemptReport(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=last)
    told.token, told.kind = rig.hold("A", last).token, REPORT_KIND_COMPLETED
    for beside in (FireTimer(""), rig.look("")):
        assert getattr(rig.decide(beside, Reported(told)).replies[1], "answer", None) == ANSWER_OK
    rig.terminate()
    replies = rig.batch(FireTimer(""), Reported(told))
    assert getattr(replies[1], "answer", None) == ANSWER_SETTLED
    assert rig.head.sweeping and len(rig.fields()) == 800, "swept when it fires alone"
    assert rig.timers()[""] <= rig.now
