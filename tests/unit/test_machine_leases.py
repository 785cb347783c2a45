"""Who is alive (A6, A7), what a lost holder costs (A8, A9), and who may settle a held step (A4, A11)."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import POLICY, RUN, Rig, local, schedule

from treadle.controlplane.machine.env import Settings
from treadle.controlplane.machine.leases import Loss, judge
from treadle.controlplane.machine.requests import CheckLease, Claimed, Reported
from treadle.controlplane.store.port import Outcome, ShardRound, WorkerView
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, FAILURE_KIND_TIMED_OUT
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    HeldToken,
    Holder,
    WorkerRecord,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_RELEASED,
    AttemptReport,
    CancelCommand,
    Command,
)

STEP = "0/s#1"
NOW = 100_000
MINE, OTHER = HeldToken(token=b"mine"), HeldToken(token=b"other")


def record(**fields: object) -> WorkerRecord:
    """A worker that beat just now (its own clock began 50 s later) and lists the token."""
    made = WorkerRecord(worker_id="A", last_beat_ms=NOW, beat_sent_ms=NOW - 50_000, held=[MINE])
    for name, value in fields.items():
        if name == "held":
            made.ClearField("held")
            made.held.extend(value)  # type: ignore[arg-type]
        else:
            setattr(made, name, value)
    return made


FRESH = ShardRound(last_round_ms=NOW - 1_000, back_at_ms=0)
STALE = ShardRound(last_round_ms=NOW - 3_001, back_at_ms=0)


@pytest.mark.parametrize(
    ("of", "lease_set", "sent", "round", "loss"),
    [
        # alive
        (record(), NOW - 60_000, 0, FRESH, None),
        # its session ended: after the grace; a drain counts nothing
        (record(closed_ms=NOW - 499), NOW - 60_000, 0, FRESH, None),
        (record(closed_ms=NOW - 500), NOW, 0, FRESH, Loss("closed", True)),
        (record(closed_ms=NOW - 500), NOW, 0, STALE, Loss("closed", True)),
        (record(closed_ms=NOW - 500, drained=True), NOW, 0, FRESH, Loss("closed", False)),
        # silence: the latest of last beat, lease set and back at; a round older than 3 s decides nothing
        (record(last_beat_ms=NOW - 5_000), NOW - 5_000, 0, FRESH, Loss("silent", False)),
        (record(last_beat_ms=NOW - 4_999), NOW - 60_000, 0, FRESH, None),
        (record(last_beat_ms=NOW - 60_000), NOW - 4_999, 0, FRESH, None),
        (record(last_beat_ms=NOW - 60_000), NOW - 60_000, 0, ShardRound(NOW - 1, NOW - 4_999), None),
        (
            record(last_beat_ms=NOW - 60_000),
            NOW - 60_000,
            0,
            ShardRound(NOW - 1, NOW - 5_000),
            Loss("silent", False),
        ),
        (record(last_beat_ms=NOW - 60_000), NOW - 60_000, 0, STALE, None),
        (
            record(last_beat_ms=NOW - 60_000),
            NOW - 60_000,
            0,
            ShardRound(NOW - 3_000, 0),
            Loss("silent", False),
        ),
        (record(last_beat_ms=NOW - 60_000), NOW - 60_000, 0, ShardRound(0, 0), None),
        # no record: silence since lease set
        (None, NOW - 4_999, 0, FRESH, None),
        (None, NOW - 5_000, 0, FRESH, Loss("silent", False)),
        (None, NOW - 5_000, 0, STALE, None),
        # denied: only by a beat sent 4 s after the send time of the claim, on the worker's clock
        (record(held=[]), NOW - 1_000, 46_001, FRESH, None),
        (record(held=[]), NOW - 1_000, 46_000, FRESH, Loss("denied", False)),
        (record(held=[OTHER]), NOW - 1_000, 46_000, STALE, Loss("denied", False)),
        (record(held=[OTHER, MINE]), NOW - 1_000, 46_000, FRESH, None),
        (record(held=[], closed_ms=NOW - 1), NOW - 1_000, 46_000, FRESH, None),
    ],
)
def test_judge(of: WorkerRecord | None, lease_set: int, sent: int, round: ShardRound, loss: Loss | None) -> None:
    holder = Holder(worker_id="A", token=b"mine", sent_ms=sent or 49_000, lease_set_ms=lease_set)
    assert judge(holder, WorkerView(of, round, NOW), Settings()) == loss


def running(**more: bool) -> Rig:
    """A step whose holder A beats, and lists it."""
    rig = Rig()
    rig.with_step(schedule(**more))  # type: ignore[arg-type]
    rig.session()
    rig.beat(tokens=[rig.hold().token])
    return rig


def test_a_living_holder_is_looked_at_ever_less_often_without_an_event() -> None:
    rig = running()
    length, token, steps = rig.head.length, rig.the_row().holder.token, []
    for _ in range(5):
        rig.now = rig.the_row().holder.lease_due_ms
        rig.beat(tokens=[token])
        assert STEP in rig.due()
        rig.check()
        steps.append(rig.the_row().holder.lease_due_ms - rig.now)
        assert rig.timers()[STEP] == rig.the_row().due_ms == rig.the_row().holder.lease_due_ms
    assert steps == [4_000, 8_000, 15_000, 15_000, 15_000]
    assert rig.head.length == length and rig.the_row().holder.token == token


@pytest.mark.parametrize(
    ("how", "reason", "counted"),
    [
        ("killed", "closed", True),
        ("drained", "closed", False),
        ("frozen", "silent", False),
        ("denies", "denied", False),
    ],
)
def test_a_lost_holder_is_replaced(how: str, reason: str, counted: bool) -> None:
    rig = running()
    old = rig.the_row()
    if how in ("killed", "drained"):
        rig.end_session(drained=how == "drained")
        rig.wait(500)
    elif how == "frozen":
        rig.rounds(5_000)
    else:
        rig.wait(4_000)
        rig.beat(tokens=[b"another"])
    rig.check()
    row, lost = rig.the_row(), rig.last("attempt_lost")
    assert (lost.reason, lost.counted, lost.worker_id) == (reason, counted, "A")
    assert (lost.attempt, lost.try_number) == (1, 1)
    assert (row.state, row.lost_count) == (COMMAND_STATE_QUEUED, int(counted)) and not row.HasField("holder")
    assert row.dispatch_id != old.dispatch_id and row.dispatch_id in rig.outbox()
    assert rig.timers()[STEP] <= row.due_ms


def test_a_frozen_holder_may_be_replaced_only_after_its_right_has_ended() -> None:
    rig = running()
    rig.rounds(4_900)
    rig.check()
    assert rig.the_row().state == COMMAND_STATE_HELD
    rig.rounds(100)
    rig.check()
    assert rig.the_row().state == COMMAND_STATE_QUEUED


@pytest.mark.parametrize("change", ["token", "lease set"])
def test_a_check_that_read_something_older_decides_nothing(change: str) -> None:
    """A6: the row is read first; the commit looks whether it still is what was read."""
    rig = Rig()
    rig.with_step()
    item = rig.item(rig.step_job())
    rig.session()
    first = rig.send(item)
    rig.end_session()
    rig.wait(500)
    look = rig.look()
    if change == "token":
        rig.report(first.grant.token, REPORT_KIND_RELEASED)
    else:
        rig.send(item)
    before = rig.row()
    rig.ask(look)
    assert rig.row() == before and rig.decision.change is None


def test_a_check_meets_a_report_in_one_batch() -> None:
    rig = running()
    token = rig.the_row().holder.token
    rig.end_session()
    rig.wait(500)
    done = AttemptReport(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=STEP, token=token)
    done.kind = REPORT_KIND_COMPLETED
    look = rig.look()
    rig.batch(Reported(done), look)
    assert rig.kinds()[-1] == "step_completed"
    rig = running()
    token = rig.the_row().holder.token
    rig.end_session()
    rig.wait(500)
    done.incarnation, done.token = rig.head.incarnation, token
    replies = rig.batch(rig.look(), Reported(done))
    assert getattr(replies[1], "answer", None) == ANSWER_LEASE_LOST and rig.the_row().state == COMMAND_STATE_QUEUED


def test_of_two_replicas_that_decide_on_the_same_revision_one_commits() -> None:
    rig = Rig()
    rig.with_step()
    job = rig.step_job()
    first, second = rig.decide(Claimed(rig.item(job), "A", "R")), rig.decide(Claimed(rig.item(job), "B", "S"))
    assert rig.commit(first) is Outcome.OK and rig.commit(second) is Outcome.CONFLICT
    assert rig.the_row().holder.worker_id == "A"


# --- at most once (A9) ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["closed", "silent", "denied"])
def test_a_lost_at_most_once_step_fails_but_one_that_was_never_started_goes_on(how: str) -> None:
    rig = running(at_most_once=True)
    if how == "closed":
        rig.end_session()
        rig.wait(500)
    elif how == "silent":
        rig.rounds(5_000)
    else:
        rig.wait(4_000)
        rig.beat(tokens=[])
    rig.check()
    if how == "denied":
        assert rig.the_row().state == COMMAND_STATE_QUEUED and rig.kinds()[-1] == "attempt_lost"
    else:
        assert rig.last("step_failed").failure.kind == FAILURE_KIND_LOST and rig.row() is None


# --- timeouts and cancels of held steps (A11) ------------------------------------------------------------------------------
def test_a_timeout_is_settled_without_its_holder_5_s_after_the_deadline() -> None:
    rig = Rig()
    rig.with_step(schedule(timeout_ms=3_000))
    rig.session()
    token = rig.hold().token
    for _ in range(7):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        if STEP in rig.due():
            rig.check()
    assert rig.the_row().state == COMMAND_STATE_HELD and rig.the_row().due_ms == rig.now + 1_000
    rig.wait(1_000)
    rig.beat(tokens=[token])
    rig.check()
    failed = rig.last("attempt_failed").failure
    assert failed.kind == FAILURE_KIND_TIMED_OUT and rig.the_row().state == COMMAND_STATE_BACKOFF
    assert [(order.token, order.reason) for order in rig.decision.cancels] == [(token, "timed out")]
    assert rig.report(token).answer == ANSWER_LEASE_LOST


def test_never_before_lease_set_and_5_s() -> None:
    """A11: the same claim, answered again, may be started for another 4 s."""
    rig = Rig()
    rig.with_step(schedule(timeout_ms=1_000))
    rig.session()
    item = rig.item(rig.step_job())
    token = rig.send(item).grant.token
    rig.wait(5_900)
    rig.send(item)
    for _ in range(4):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        rig.check()
        assert rig.the_row().state == COMMAND_STATE_HELD
    rig.wait(1_000)
    rig.beat(tokens=[token])
    rig.check()
    assert rig.the_row().state == COMMAND_STATE_BACKOFF


def test_a_timeout_that_the_holder_reports_is_a_failure_like_any_other() -> None:
    rig = Rig()
    rig.with_step(schedule(timeout_ms=1_000))
    token = rig.hold().token
    rig.wait(1_000)
    assert rig.fail(token, "TimedOut").answer == ANSWER_OK
    assert rig.the_row().state == COMMAND_STATE_BACKOFF and rig.the_row().try_number == 2


def test_a_holder_found_lost_comes_before_its_timeout() -> None:
    rig = Rig()
    rig.with_step(schedule(timeout_ms=1_000))
    rig.session()
    rig.hold()
    rig.rounds(10_000)
    rig.check()
    assert rig.kinds()[-1] == "attempt_lost" and rig.the_row().try_number == 1


CANCEL = Command(command_id=STEP, cancel=CancelCommand())


def test_a_cancel_waits_for_the_report_and_is_told_again_at_each_check() -> None:
    rig = Rig()
    owner = rig.with_step()
    rig.session()
    token = rig.hold().token
    owner.say(CANCEL)
    for _ in range(20):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        if STEP in rig.due():
            rig.check()
            assert [order.token for order in rig.decision.cancels] == [token]
    assert rig.the_row().state == COMMAND_STATE_HELD
    rig.end_session()
    rig.wait(500)
    rig.check()
    assert rig.kinds()[-1] == "step_cancelled" and rig.row() is None


def test_a_cancelled_step_that_also_times_out_is_not_tried_again() -> None:
    rig = Rig()
    owner = rig.with_step(schedule(timeout_ms=1_000))
    rig.session()
    token = rig.hold().token
    owner.say(CANCEL)
    rig.wait(6_000)
    rig.beat(tokens=[token])
    rig.check()
    assert rig.kinds()[-1] == "step_cancelled" and rig.row() is None


# --- owners ----------------------------------------------------------------------------------------------------------------
def owned() -> Rig:
    rig = Rig()
    rig.start()
    rig.session()
    rig.open()
    return rig


@pytest.mark.parametrize(("how", "counted"), [("closed", True), ("silent", False), ("denied", False)])
def test_a_lost_owner_is_replaced(how: str, counted: bool) -> None:
    rig = owned()
    old = rig.head.owner.token
    if how == "closed":
        rig.end_session()
        rig.wait(500)
    elif how == "silent":
        rig.rounds(5_000)
    else:
        rig.wait(4_000)
        rig.beat(tokens=[])
    rig.check("")
    head, lost = rig.head, rig.last("run_owner_lost")
    assert (lost.reason, lost.counted, lost.worker_id) == (how, counted, "A")
    assert (head.state, head.losses) == (RUN_STATE_QUEUED, int(counted)) and not head.HasField("owner")
    assert head.wake_dispatch_id in rig.outbox() and rig.timers()[""] <= head.watch_due_ms
    assert rig.open("B").token != old


def test_a_living_owner_keeps_its_run() -> None:
    rig = owned()
    token = rig.head.owner.token
    for _ in range(30):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        if "" in rig.due():
            rig.fire("")
            rig.check("")
            assert rig.timers()[""] > rig.now
    assert (rig.head.state, rig.head.owner.token, rig.head.owner.lease_step_ms) == (RUN_STATE_OPEN, token, 15_000)


def test_an_owners_request_defeats_a_check_under_way() -> None:
    rig = Rig()
    rig.start()
    rig.session()
    owner = rig.open()
    rig.end_session()
    rig.wait(500)
    look = rig.look("")
    assert judge(rig.head.owner, look.view, rig.settings) == Loss("closed", True)
    assert owner.say().answer == ANSWER_OK
    rig.ask(look)
    assert rig.head.state == RUN_STATE_OPEN and rig.decision.change is None


def test_owners_that_die_in_a_row_stop_the_run() -> None:
    rig = Rig()
    rig.start()
    alone = []
    for n in range(5):
        rig.open(f"W{n}")
        alone.append(rig.head.alone)
        assert rig.last("run_opened").alone == rig.head.alone
        rig.kill("")
    assert alone == [False, False, True, True, True]
    assert (rig.head.state, rig.head.losses) == (RUN_STATE_NEEDS_ATTENTION, 5)
    assert "died" in rig.head.attention and rig.kinds()[-1] == "run_halted" and not rig.decision.jobs
    rig.accept()
    assert (rig.head.state, rig.head.losses) == (RUN_STATE_QUEUED, 0)


@pytest.mark.parametrize(
    ("said", "losses"),
    [("start", 1), ("nothing", 1), ("step", 0), ("checkpoint", 0), ("park", 0), ("release", 0), ("diverged", 0)],
)
def test_an_event_that_the_owner_commits_ends_the_count(said: str, losses: int) -> None:
    """A8; the start of a local step apart."""
    rig = Rig()
    rig.start()
    rig.open()
    rig.kill("")
    owner = rig.open("B")
    if said == "start":
        owner.say(local())
    elif said == "step":
        owner.say(schedule())
    elif said == "checkpoint":
        owner.say(checkpoints=[rig.checkpoint()])
    elif said == "nothing":
        owner.say()
    elif said == "diverged":
        owner.say(diverged={"expected": "x", "found": "y"})
    else:
        owner.say(**{said: {}})
    assert rig.head.losses == losses


def test_a_step_that_failed_is_not_a_loss() -> None:
    rig = Rig()
    rig.with_step(schedule(retry=POLICY))
    for _ in range(2):
        rig.report(rig.hold().token, REPORT_KIND_FAILED)
        rig.now = rig.the_row().due_ms
        rig.fire(STEP)
    assert rig.the_row().lost_count == 0


def test_checks_of_what_is_not_held_decide_nothing() -> None:
    rig = owned()
    view = WorkerView(None, ShardRound(0, 0), rig.now)
    for check in (CheckLease("", b"x" * 16, rig.now, view), CheckLease("0/nothing#1", b"", 0, view)):
        rig.ask(check)
        assert rig.decision.change is None
    rig.terminate()
    rig.ask(CheckLease("", b"x" * 16, rig.now, view))
    assert rig.decision.change is None
