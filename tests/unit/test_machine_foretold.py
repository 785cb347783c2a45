"""What follows from the result of a pool step, said beside its report: in one commit, if that result stands next (R10)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, schedule, value

from treadle.controlplane.machine.requests import Asked, Reported
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_OPEN, RUN_STATE_QUEUED
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_REWIND,
    ANSWER_SETTLED,
    REPORT_KIND_COMPLETED,
    AttemptReport,
    Foretold,
    OwnerRequest,
)

TOLD_MS = 1_000_077
NEXT = schedule("0/s#2")


class Both:
    """Worker O owns the run and has executed its step: report and request, as they go up in one frame."""

    def __init__(self, *, executed_by: str = "O") -> None:
        self.rig = Rig()
        self.owner: Owner = self.rig.with_step()
        self.grant = self.rig.hold(executed_by)
        self.owner.catch_up()

    def reported(self, **more: Any) -> Reported:
        told = AttemptReport(
            run_id=RUN.run_id,
            incarnation=self.rig.head.incarnation,
            command_id="0/s#1",
            token=self.grant.token,
            kind=REPORT_KIND_COMPLETED,
            result=value("r"),
            ended_ms=TOLD_MS,
        )
        told.MergeFrom(AttemptReport(**more))
        return Reported(told)

    def follows(self, *commands: Any, **more: Any) -> OwnerRequest:
        foretold = Foretold(command_id="0/s#1", attempt=1, ended_ms=TOLD_MS)
        return self.owner.request(*commands, **{"foretold": foretold, **more})

    def send(self, ask: OwnerRequest) -> list[int]:
        """Both in one batch; returns the answers."""
        replies: list[Any] = self.rig.batch(self.reported(), Asked(ask, "O", "R"))
        self.reply = replies[1]
        return [reply.answer for reply in replies]


def kinds(events: list[HistoryEvent]) -> list[str]:
    return [str(event.WhichOneof("kind")) for event in events]


def test_report_and_the_next_step_are_one_commit() -> None:
    both = Both()
    seen = both.owner.seen
    both.rig.credit(JOB_KIND_STEP, "O")
    assert both.send(both.follows(NEXT)) == [ANSWER_OK, ANSWER_OK]
    *_, completed, scheduled, begun = both.rig.history()
    assert kinds([completed, scheduled, begun]) == ["step_completed", "step_scheduled", "attempt_started"]
    assert completed.revision == scheduled.revision == begun.revision
    assert (completed.position, completed.step_completed.ended_ms) == (seen + 1, TOLD_MS)
    assert both.rig.head.seen == seen + 1, "later owners take the way that this one took"
    assert both.rig.offers[-1] == (JOB_KIND_STEP, "s", "O"), "it may have the slot that has just become free"
    (pushed,) = both.rig.decision.grants
    assert pushed.grant.job.command_id == "0/s#2"


def test_the_answer_brings_the_event_without_the_result_that_came_from_there() -> None:
    both = Both()
    both.send(both.follows(NEXT))
    assert kinds(list(both.reply.events)) == ["step_completed", "step_scheduled"]
    assert not both.reply.events[0].step_completed.HasField("result")
    assert list(both.reply.result_omitted) == ["0/s#1"]
    assert both.reply.position == both.rig.head.length
    assert both.rig.last("step_completed").result == value("r"), "the history has it"


def test_report_and_the_end_are_one_commit() -> None:
    both = Both()
    assert both.send(both.follows(complete={"result": value("end")})) == [ANSWER_OK, ANSWER_OK]
    assert both.rig.head.state == RUN_STATE_CLOSED and both.rig.kinds()[-2:] == ["step_completed", "run_completed"]


@pytest.mark.parametrize(("duration_ms", "prefers"), [(9, "O"), (10, "")])
def test_only_what_follows_a_short_step_stays_with_its_worker(duration_ms: int, prefers: str) -> None:
    both = Both()
    ask = both.follows(NEXT)
    both.rig.batch(both.reported(duration_ms=duration_ms), Asked(ask, "O", "R"))
    assert both.rig.offers[-1] == (JOB_KIND_STEP, "s", prefers)


def test_it_may_come_one_commit_later() -> None:
    both = Both()
    ask = both.follows(NEXT)
    both.rig.ask(both.reported())
    assert both.owner.send(ask).answer == ANSWER_OK and both.rig.row("0/s#2") is not None


def test_sent_again_it_changes_nothing() -> None:
    both = Both()
    ask = both.follows(NEXT)
    both.send(ask)
    before = both.rig.history()
    assert both.send(ask) == [ANSWER_SETTLED, ANSWER_OK] and both.rig.history() == before
    assert kinds(list(both.reply.events)) == ["step_completed", "step_scheduled"]


@pytest.mark.parametrize("word", [{}, {"complete": {"result": value("end")}}], ids=["commands", "end"])
def test_where_something_else_came_first_nothing_of_it_is_applied(word: dict[str, Any]) -> None:
    both = Both()
    ask = both.follows(NEXT, **word)
    both.rig.cancel_run()
    assert both.send(ask) == [ANSWER_OK, ANSWER_REWIND]
    head = both.rig.head
    assert both.rig.kinds()[-2:] == ["cancel_requested", "step_completed"] and both.rig.row("0/s#2") is None
    assert (head.state, head.owner_seq) == (RUN_STATE_OPEN, ask.seq - 1), "the number is free for the release"
    both.owner.seq -= 1
    assert both.owner.send(both.owner.request(release={"reason": "rewind"})).answer == ANSWER_OK
    assert both.rig.head.state == RUN_STATE_QUEUED


def test_what_comes_behind_it_is_news_to_an_end_and_nothing_to_commands() -> None:
    ends, goes_on = Both(), Both()
    for both in (ends, goes_on):
        both.rig.ask(both.reported())
        both.rig.cancel_run()
    reply = ends.owner.send(ends.follows(complete={"result": value("end")}))
    assert reply.answer == ANSWER_NEWS and kinds(list(reply.events)) == ["step_completed", "cancel_requested"]
    assert goes_on.owner.send(goes_on.follows(NEXT)).answer == ANSWER_OK and goes_on.rig.row("0/s#2") is not None


@pytest.mark.parametrize(
    "other",
    [{"command_id": "0/s#7"}, {"attempt": 2}, {"ended_ms": TOLD_MS + 1}],
    ids=["another step", "another attempt", "told at another time"],
)
def test_only_the_very_result_counts(other: dict[str, Any]) -> None:
    both = Both()
    foretold = Foretold(**{"command_id": "0/s#1", "attempt": 1, "ended_ms": TOLD_MS, **other})
    assert both.send(both.follows(NEXT, foretold=foretold)) == [ANSWER_OK, ANSWER_REWIND]


def test_a_report_that_was_refused_brings_nothing() -> None:
    """The attempt was lost, and another one runs, or has ended: the coroutine was told what never stood."""
    both = Both()
    ask = both.follows(NEXT)
    both.rig.kill("0/s#1")
    later = both.rig.hold("B")
    assert both.send(ask) == [ANSWER_LEASE_LOST, ANSWER_REWIND]
    both.rig.report(later.token, result=value("other"), ended_ms=TOLD_MS)
    assert both.send(ask) == [ANSWER_SETTLED, ANSWER_REWIND] and both.rig.row("0/s#2") is None


def test_the_time_that_code_was_told_is_taken_from_its_owner_alone() -> None:
    """It is what the code sees as now: no other worker may set it."""
    both = Both(executed_by="X")
    assert both.send(both.follows(NEXT)) == [ANSWER_OK, ANSWER_REWIND]
    assert not both.rig.last("step_completed").ended_ms


def test_an_owner_that_was_replaced_asks_for_nothing_and_its_report_counts() -> None:
    both = Both()
    ask = both.follows(NEXT)
    both.rig.kill("")
    assert both.send(ask) == [ANSWER_OK, ANSWER_LEASE_LOST]
    assert "step_completed" in both.rig.kinds() and both.rig.row("0/s#2") is None


def test_a_release_with_it_takes_along_only_what_came_true() -> None:
    both = Both()
    both.rig.cancel_run()
    both.send(both.follows(NEXT, release={"reason": "drain"}))
    assert both.rig.head.state == RUN_STATE_QUEUED and both.rig.row("0/s#2") is None
