"""What the owner of a run says: fencing, numbers, REWIND, NEWS, commands, checkpoints, last words."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import POLICY, RUN, Owner, Rig, local, schedule, sleep, value

from treadle.controlplane.machine import Settings
from treadle.controlplane.machine.requests import Asked
from treadle.protocol.errors import RunClosed
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, Failure
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    COMMAND_STATE_TIMER,
    RUN_OUTCOME_CANCELLED,
    RUN_OUTCOME_COMPLETED,
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_REWIND,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    CancelCommand,
    Command,
    OwnerRequest,
    ReportKind,
)

LOCAL = "0/l#1"


def opened() -> tuple[Rig, Owner]:
    rig = Rig()
    rig.start()
    return rig, rig.open()


# --- who may speak --------------------------------------------------------------------------------------------------
def test_each_request_renews_the_lease_but_only_with_a_later_send_time() -> None:
    rig, owner = opened()
    rig.wait(700)
    owner.catch_up()
    ask = owner.request()
    assert owner.send(ask, "S").answer == ANSWER_OK
    holder = rig.head.owner
    assert (holder.lease_set_ms, holder.sent_ms, holder.replica_id) == (rig.now, ask.sent_ms, "S")
    late = owner.request()
    late.sent_ms -= 5_000
    owner.send(late)
    assert rig.head.owner.sent_ms == ask.sent_ms


LAST_WORDS: list[dict[str, Any]] = [
    {},
    {"park": {}},
    {"complete": {}},
    {"fail": {}},
    {"cancelled": {}},
    {"release": {}},
    {"diverged": {}},
]


@pytest.mark.parametrize("word", LAST_WORDS, ids=str)
def test_only_the_owner_speaks(word: dict[str, Any]) -> None:
    rig, old = opened()
    rig.kill("")
    for _ in ("queued", "open"):
        before = rig.head
        assert old.say(schedule(), **word).answer == ANSWER_LEASE_LOST
        assert rig.head == before and rig.decision.change is None
        if before.state == RUN_STATE_QUEUED:
            rig.open("B")
    rig.terminate()
    assert old.say(schedule(), **word).answer == ANSWER_SETTLED and rig.decision.change is None
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert old.say(**word).answer == ANSWER_SETTLED
    rig.wait(rig.settings.tombstone_ms)
    assert old.say(**word).answer == ANSWER_UNKNOWN and rig.decision.unknown == [0]


# --- numbers, and what comes twice ----------------------------------------------------------------------------------
def test_a_request_that_comes_twice_is_recorded_once() -> None:
    rig, owner = opened()
    owner.catch_up()
    ask = owner.request(schedule(), sleep(), checkpoints=[rig.checkpoint(result=value("r"))])
    first = owner.send(ask)
    length = rig.head.length
    assert first.answer == ANSWER_OK and first.position == length == 5
    assert first.revision == rig.revision_at(5)
    rig.wait(10)
    again = owner.send(ask)
    assert again.answer == ANSWER_OK and rig.head.length == length and rig.head.open_commands == 2
    assert [event.position for event in again.events] == [3, 4, 5]
    assert again.events[2].step_completed.result == value("r"), "whole: nothing of it is known to be here"
    assert rig.head.owner.lease_set_ms == rig.now


def test_both_copies_in_one_batch_are_recorded_once() -> None:
    rig, owner = opened()
    owner.catch_up()
    ask = Asked(owner.request(schedule()), "A", "R")
    replies = rig.batch(ask, ask)
    assert [getattr(reply, "answer", None) for reply in replies] == [ANSWER_OK, ANSWER_OK]
    assert rig.kinds().count("step_scheduled") == 1


def test_a_gap_in_the_numbers_means_that_the_store_lost_something() -> None:
    rig, owner = opened()
    owner.catch_up()
    owner.request(schedule())
    length = rig.head.length
    assert owner.send(owner.request(sleep())).answer == ANSWER_REWIND
    assert rig.head.length == length


@pytest.mark.parametrize(
    ("seen", "told", "revision"),
    [(2, 3, "right"), (3, 3, "right"), (3, 0, "right"), (2, 2, "wrong"), (0, 1, "wrong"), (9, 9, "wrong")],
)
def test_an_owner_that_was_told_something_else_rewinds(seen: int, told: int, revision: str) -> None:
    """R4; the history has two events."""
    rig, owner = opened()
    ask = owner.request(schedule())
    ask.seen, ask.told = seen, told
    ask.told_revision = rig.revision_at(told) if revision == "right" else 77
    assert owner.send(ask).answer == ANSWER_REWIND
    assert (rig.head.length, rig.head.owner_seq, rig.head.state) == (2, 0, RUN_STATE_OPEN)
    assert rig.head.seen <= rig.head.length
    ask = owner.request(release={"reason": "rewind"})
    ask.seen = ask.told = 9
    assert owner.send(ask).answer == ANSWER_OK, "whatever it was told: it gives back what it holds"
    assert rig.head.state == RUN_STATE_QUEUED and rig.kinds()[-1] == "run_released"
    assert rig.open("B").say().answer == ANSWER_OK


def test_after_redis_went_back_an_owner_rewinds_and_the_next_one_goes_on() -> None:
    rig, owner = opened()
    owner.say(sleep("0/sleep#1"))
    state = rig.store.snapshot()
    owner.say(schedule())
    rig.store.restore(state)
    rig.cancel_run()
    length = rig.head.length
    told = owner.request(sleep("0/sleep#2"))
    told.told = told.seen = length
    told.told_revision = 5
    assert owner.send(told).answer == ANSWER_REWIND and rig.head.length == length


# --- answers bring what was not seen --------------------------------------------------------------------------------
def test_an_answer_brings_the_events_behind_seen_without_what_the_owner_just_sent() -> None:
    rig, owner = opened()
    rig.cancel_run()
    ask = owner.request(schedule(), checkpoints=[rig.checkpoint(result=value("big"))])
    reply = owner.send(ask)
    assert [event.position for event in reply.events] == [1, 2, 3, 4, 5]
    assert not reply.events[3].step_scheduled.HasField("input")
    assert not reply.events[4].step_completed.HasField("result") and list(reply.result_omitted) == [LOCAL]
    stored = rig.history()
    assert stored[3].step_scheduled.input.data and stored[4].step_completed.result == value("big")


def test_news_that_the_owner_has_not_confirmed_is_on_the_watch() -> None:
    rig, owner = opened()
    owner.say()
    assert rig.head.watch_due_ms == 0 and rig.head.seen == 2
    rig.cancel_run()
    assert rig.head.watch_due_ms == rig.now + 2_000
    owner.send(owner.request())
    assert rig.head.watch_due_ms, "it has not seen it"
    owner.say()
    assert rig.head.watch_due_ms == 0 and rig.head.seen == 3


# --- R5 -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", [w for w in LAST_WORDS if set(w) & {"park", "complete", "fail", "cancelled"}], ids=str)
def test_park_and_close_need_that_everything_was_seen(word: dict[str, Any]) -> None:
    rig, owner = opened()
    owner.catch_up()
    rig.cancel_run()
    ask = owner.request(**word)
    reply = owner.send(ask)
    assert reply.answer == ANSWER_NEWS and [e.WhichOneof("kind") for e in reply.events] == ["cancel_requested"]
    assert rig.head.state == RUN_STATE_OPEN and rig.head.owner.token == owner.token
    again = owner.send(ask)
    assert again.answer == ANSWER_NEWS and rig.head.state == RUN_STATE_OPEN, "its answer was lost: the same one"
    assert [event.position for event in again.events] == [3]
    assert owner.say(**word).answer == ANSWER_OK and rig.head.state != RUN_STATE_OPEN


def test_a_request_that_brings_commands_of_its_own_cannot_end_the_run() -> None:
    rig, owner = opened()
    reply = owner.say(schedule(), complete={})
    assert reply.answer == ANSWER_NEWS and reply.position == 3 and rig.head.open_commands == 1


def test_a_parked_run_is_held_by_nobody() -> None:
    rig, owner = opened()
    owner.say(schedule())
    assert owner.say(park={"cached": True}).answer == ANSWER_OK
    head = rig.head
    assert (head.state, head.cached_by, head.watch_due_ms) == (RUN_STATE_PARKED, "A", 0)
    assert not head.HasField("owner") and rig.timers()[""], "no open run is without a time"
    assert owner.say(park={}).answer == ANSWER_LEASE_LOST


def test_a_result_that_comes_with_the_park_is_not_missed() -> None:
    rig, owner = opened()
    owner.say(schedule())
    token = rig.hold().token
    owner.catch_up()
    park = owner.request(park={})
    rig.report(token)
    assert owner.send(park).answer == ANSWER_NEWS


@pytest.mark.parametrize(
    ("word", "kind", "outcome"),
    [
        ({"complete": {"result": value("r")}}, "run_completed", RUN_OUTCOME_COMPLETED),
        ({"fail": {"failure": Failure(type="Boom")}}, "run_failed", RUN_OUTCOME_FAILED),
        ({"cancelled": {}}, "run_cancelled", RUN_OUTCOME_CANCELLED),
    ],
)
def test_a_run_is_closed_once_with_one_outcome(word: dict[str, Any], kind: str, outcome: int) -> None:
    rig, owner = opened()
    owner.say(schedule())
    owner.catch_up()
    ask = owner.request(**word)
    assert owner.send(ask).answer == ANSWER_OK
    head = rig.head
    assert (head.state, head.outcome, rig.kinds()[-1]) == (RUN_STATE_CLOSED, outcome, kind)
    assert head.sweeping and head.closed_ms == rig.now and not head.HasField("owner")
    assert owner.send(ask).answer == ANSWER_SETTLED, "sent twice"
    assert isinstance(rig.terminate(), RunClosed)
    assert rig.cancel_run() and rig.kinds()[-1] == kind


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_cancel_that_was_seen_too_late_is_shown(cancelled: bool) -> None:
    """R8: code that had returned stays returned."""
    rig, owner = opened()
    if cancelled:
        rig.cancel_run()
    owner.say(complete={})
    assert rig.last("run_completed").cancel_too_late is cancelled


def _said_twice(rig: Rig, owner: Owner, *commands: Command, **more: Any) -> tuple[OwnerRequest, OwnerRequest]:
    """Two requests that say the same under two numbers, the second not waiting for the answer to the first."""
    owner.catch_up()
    return owner.request(*commands, **more), owner.request(*commands, **more)


@pytest.mark.parametrize("kind", [REPORT_KIND_COMPLETED, REPORT_KIND_FAILED, REPORT_KIND_LOST])
@pytest.mark.parametrize("has_begun", [False, True])
def test_an_outcome_that_is_said_under_two_numbers_is_recorded_once(
    kind: ReportKind.ValueType, has_begun: bool
) -> None:
    """A5: rows do not tell what is settled."""
    rig, owner = announced() if has_begun else opened()
    failure = Failure(type="Boom", final=True)
    first, again = _said_twice(rig, owner, checkpoints=[rig.checkpoint(kind=kind, failure=failure, retry=POLICY)])
    assert owner.send(first).answer == ANSWER_OK
    length = rig.head.length
    assert owner.send(again).answer == ANSWER_OK
    assert rig.head.length == length and rig.head.open_commands == 0


@pytest.mark.parametrize("command", [sleep(), schedule(), local()])
def test_what_has_an_outcome_that_the_owner_was_not_fed_is_not_begun_again(command: Command) -> None:
    """R7: rows do not tell what is settled."""
    rig, owner = opened()
    first, again = _said_twice(rig, owner, command)
    owner.send(first)
    if command.HasField("start_timer"):
        rig.wait(10_000)
        rig.fire("0/sleep#1")
    elif command.HasField("schedule_step"):
        rig.report(rig.hold().token)
    else:
        checkpoint = owner.request(checkpoints=[rig.checkpoint()])
        checkpoint.seq, again.seq = again.seq, checkpoint.seq
        owner.send(checkpoint)
    kinds = rig.kinds()
    assert owner.send(again).answer == ANSWER_OK
    assert rig.kinds() == kinds and rig.head.open_commands == 0 and not rig.fields()


# --- commands -------------------------------------------------------------------------------------------------------
def test_a_timer_is_due_from_its_commit() -> None:
    rig, owner = opened()
    owner.say(sleep(delay_ms=1_234))
    row = rig.the_row("0/sleep#1")
    assert (row.state, row.due_ms) == (COMMAND_STATE_TIMER, rig.now + 1_234)
    assert rig.timers()["0/sleep#1"] == rig.last("timer_started").fire_at_ms == rig.now + 1_234
    owner.say(sleep(delay_ms=9))
    assert rig.kinds().count("timer_started") == 1, "R7"


def test_a_timer_may_be_cancelled_once() -> None:
    rig, owner = opened()
    owner.say(sleep())
    cancel = Command(command_id="0/sleep#1", cancel=CancelCommand())
    owner.say(cancel)
    owner.say(cancel)
    assert rig.kinds()[-1] == "timer_cancelled" and rig.row("0/sleep#1") is None and "0/sleep#1" not in rig.timers()


# --- local steps ----------------------------------------------------------------------------------------------------
def test_a_checkpoint_is_recorded_at_the_next_position() -> None:
    rig, owner = opened()
    reply = owner.say(checkpoints=[rig.checkpoint(result=value("r"), duration_ms=4)])
    done = rig.last("step_completed")
    assert reply.position == 3 and (done.local, done.name, done.digest, done.result) == (True, "l", 3, value("r"))
    assert rig.head.open_commands == 0 and not rig.fields()


def test_a_local_step_is_tried_again_by_whoever_owns_the_run_then() -> None:
    rig, owner = opened()
    failed = rig.checkpoint(kind=REPORT_KIND_FAILED, failure=Failure(type="Boom"), retry=POLICY)
    owner.say(checkpoints=[failed])
    row = rig.the_row(LOCAL)
    assert (row.state, row.try_number, row.due_ms) == (COMMAND_STATE_BACKOFF, 2, rig.now + 1_000)
    assert rig.last("attempt_failed").local and rig.head.retrying == 1
    owner.say(park={})
    rig.wait(1_000)
    rig.fire(LOCAL)
    assert rig.kinds()[-1] == "step_retried" and rig.head.state == RUN_STATE_QUEUED, "it wakes"
    assert (rig.the_row(LOCAL).state, rig.the_row(LOCAL).due_ms) == (COMMAND_STATE_HELD, 0)
    owner = rig.open("B")
    owner.say(checkpoints=[rig.checkpoint(try_number=2)])
    assert rig.row(LOCAL) is None and (rig.head.retrying, rig.head.open_commands) == (0, 0)


def test_a_local_step_that_failed_for_good() -> None:
    rig, owner = opened()
    failed = rig.checkpoint(kind=REPORT_KIND_FAILED, failure=Failure(type="Boom", final=True), retry=POLICY)
    owner.say(checkpoints=[failed])
    assert rig.last("step_failed").local and rig.head.open_commands == 0 == rig.head.retrying


def announced(**more: Any) -> tuple[Rig, Owner]:
    """A local step that may start at most once has started."""
    rig = Rig(**more)
    rig.start()
    owner = rig.open()
    owner.say(local())
    assert rig.last("attempt_started").local and rig.the_row(LOCAL).state == COMMAND_STATE_HELD
    return rig, owner


@pytest.mark.parametrize("how", ["lost", "release", "diverged", "stopped", "drain"])
def test_an_announced_local_step_without_an_outcome_is_lost_with_its_owner(how: str) -> None:
    """A9: its start was committed, so the next owner must not start it again."""
    rig, owner = announced(settings=Settings(history_limit=4)) if how == "stopped" else announced()
    if how == "lost":
        rig.kill("")
    elif how == "release":
        owner.say(release={"reason": "drain"})
    elif how == "diverged":
        owner.say(diverged={"expected": "x", "found": "y"})
    elif how == "drain":
        owner.say(checkpoints=[rig.checkpoint(kind=REPORT_KIND_LOST)])
    else:
        rig.cancel_run()
        assert rig.head.state == RUN_STATE_NEEDS_ATTENTION
    failed = rig.last("step_failed")
    assert failed.failure.kind == FAILURE_KIND_LOST and failed.local and failed.command_id == LOCAL
    assert rig.row(LOCAL) is None and not rig.head.started_locals and rig.head.open_commands == 0


def test_an_announced_local_step_with_an_outcome_is_not_lost() -> None:
    rig, owner = announced()
    owner.say(checkpoints=[rig.checkpoint(result=value("r"))])
    rig.kill("")
    assert "step_failed" not in rig.kinds() and rig.head.open_commands == 0


def test_the_outcome_that_comes_with_a_release_is_kept() -> None:
    rig, owner = announced()
    owner.say(checkpoints=[rig.checkpoint(result=value("r"))], release={"reason": "drain"})
    assert "step_failed" not in rig.kinds() and rig.kinds()[-2:] == ["step_completed", "run_released"]


# --- release, divergence --------------------------------------------------------------------------------------------
def test_a_release_asks_for_another_owner_and_counts_nothing() -> None:
    rig, owner = opened()
    before = rig.head.wake_dispatch_id
    owner.say(release={"reason": "no slot"})
    head = rig.head
    assert (head.state, head.losses, rig.last("run_released").reason) == (RUN_STATE_QUEUED, 0, "no slot")
    assert head.wake_dispatch_id != before and head.wake_dispatch_id in rig.outbox()
    assert owner.say(release={}).answer == ANSWER_LEASE_LOST
    rig.open("B")
    assert (rig.head.seen, rig.head.owner_seq) == (0, 0), "what the next owner has seen is its own"


@pytest.mark.parametrize("by", ["register", "hour", "person"])
def test_a_divergence_stops_the_run_until_fitting_code_comes(by: str) -> None:
    rig, owner = opened()
    assert owner.say(diverged={"expected": "x", "found": "y"}).answer == ANSWER_OK
    head = rig.head
    assert head.state == RUN_STATE_NEEDS_ATTENTION and "x" in head.attention and not head.HasField("owner")
    assert rig.indexes() == {"s:ns:needs_attention", "w:ns:wf:needs_attention", "a:ns:wf", "x:ns:attention"}
    assert rig.kinds()[-1] == "run_diverged" and not rig.decision.jobs
    assert owner.say().answer == ANSWER_LEASE_LOST
    rig.cancel_run()
    assert rig.head.state == RUN_STATE_NEEDS_ATTENTION, "news changes nothing"
    if by == "register":
        rig.register()
    elif by == "person":
        rig.accept()
    else:
        for _ in range(5):  # its entry among the timers moves only when it fires
            if rig.head.state == RUN_STATE_NEEDS_ATTENTION:
                rig.now = max(rig.now, rig.timers()[""])
                rig.fire()
        assert rig.now == head.watch_due_ms
    assert rig.head.state == RUN_STATE_QUEUED and rig.head.wake_dispatch_id in rig.outbox()
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"}


def test_an_owner_of_another_run_is_answered_about_this_one_only() -> None:
    rig, owner = opened()
    reply = owner.send(OwnerRequest(run_id=RUN.run_id, incarnation=rig.head.incarnation, token=b"", seq=1))
    assert reply.answer == ANSWER_LEASE_LOST and rig.decision.change is None
