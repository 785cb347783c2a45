"""Histories made by hand, and the steps they tell of."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from treadle.client.timeline import Timeline, name_of, timeline_of
from treadle.client.views import RunStatus
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, Failure, Payload

BOOM = Failure(type="ValueError", message="boom")


def history(*entries: tuple[int, Message]) -> list[h.HistoryEvent]:
    """Events at the given times (ms), with positions from 1."""
    events = []
    for position, (time_ms, body) in enumerate(entries, start=1):
        kind = next(f.name for f in h.HistoryEvent.DESCRIPTOR.fields if f.message_type is body.DESCRIPTOR)
        fields: dict[str, Any] = {"position": position, "time_ms": time_ms, kind: body}
        events.append(h.HistoryEvent(**fields))
    return events


START = (1000, h.RunStarted(workflow="w", pool="flows", trigger="api"))
OPENED = (1010, h.RunOpened(worker_id="w1"))


def scheduled(command_id: str = "0/work#1", pool: str = "crm") -> h.StepScheduled:
    return h.StepScheduled(command_id=command_id, name=name_of(command_id), pool=pool)


def test_a_pool_step_that_works() -> None:
    line = timeline_of(
        history(
            START,
            OPENED,
            (1020, scheduled()),
            (1030, h.AttemptStarted(command_id="0/work#1", attempt=1, try_number=1, worker_id="w2")),
            (1090, h.StepCompleted(command_id="0/work#1", attempt=1, result=Payload(data=b"1"))),
            (1100, h.RunCompleted(result=Payload(data=b"2"))),
        )
    )
    step = line.steps["0/work#1"]
    assert (step.name, step.kind, step.pool, step.state) == ("work", "pool", "crm", "completed")
    assert step.duration_ms == 70
    (attempt,) = step.attempts
    assert (attempt.number, attempt.outcome, attempt.worker, attempt.duration_ms) == (1, "completed", "w2", 60)
    assert (line.status, line.duration_ms, line.workflow) == (RunStatus.COMPLETED, 100, "w")
    assert line.completed is not None
    assert line.completed.result.data == b"2"


def test_failed_lost_and_released_attempts_are_told_apart() -> None:
    events = history(
        START,
        (1020, scheduled()),
        (1030, h.AttemptStarted(command_id="0/work#1", attempt=1, worker_id="a")),
        (1040, h.AttemptFailed(command_id="0/work#1", attempt=1, failure=BOOM, retry_at_ms=2040, duration_ms=9)),
        (2040, h.StepRetried(command_id="0/work#1", try_number=2)),
        (2050, h.AttemptStarted(command_id="0/work#1", attempt=2, worker_id="b")),
        (3000, h.AttemptLost(command_id="0/work#1", attempt=2, reason="closed", counted=True)),
        (3010, h.AttemptStarted(command_id="0/work#1", attempt=3, worker_id="c", alone=True)),
        (3500, h.AttemptReleased(command_id="0/work#1", attempt=3, reason="drain")),
        (3510, h.AttemptStarted(command_id="0/work#1", attempt=4, worker_id="d")),
        (3600, h.StepCompleted(command_id="0/work#1", attempt=4)),
    )
    step = timeline_of(events).steps["0/work#1"]
    assert [a.outcome for a in step.attempts] == ["failed", "lost", "released", "completed"]
    assert [a.number for a in step.attempts] == [1, 2, 3, 4]
    assert step.attempts[0].error is not None
    assert step.attempts[1].reason == "closed"
    assert step.attempts[2].alone
    assert step.count("lost") == 1
    assert step.error is None


def test_states_between_attempts() -> None:
    timeline = Timeline()
    states = []
    for event in history(
        (1000, scheduled()),
        (1001, h.StepWaiting(command_id="0/work#1", name="work")),
        (1002, h.AttemptStarted(command_id="0/work#1", attempt=1)),
        (1003, h.AttemptFailed(command_id="0/work#1", attempt=1, failure=BOOM, retry_at_ms=2000)),
        (2000, h.StepRetried(command_id="0/work#1", try_number=2)),
        (2001, h.StepQuarantined(command_id="0/work#1", losses=5)),
    ):
        step = timeline.feed(event)
        assert step is not None
        states.append((step.state, step.due_ms, step.reason))
    assert states == [
        ("queued", None, ""),
        ("waiting", None, "no worker of pool 'crm' has the step 'work'"),
        ("running", None, ""),
        ("retrying", 2000, ""),
        ("queued", None, ""),
        ("quarantined", None, "5 workers died of it"),
    ]


def test_a_step_that_fails_for_good_keeps_the_last_error() -> None:
    final = Failure(type="KeyError", message="gone", attempts=2)
    events = history(
        (1000, scheduled()),
        (1002, h.AttemptStarted(command_id="0/work#1", attempt=1)),
        (1003, h.AttemptFailed(command_id="0/work#1", attempt=1, failure=BOOM, retry_at_ms=1500)),
        (1504, h.AttemptStarted(command_id="0/work#1", attempt=2)),
        (1506, h.StepFailed(command_id="0/work#1", attempt=2, failure=final)),
        (1510, h.RunFailed(failure=final)),
    )
    line = timeline_of(events)
    step = line.steps["0/work#1"]
    assert [a.outcome for a in step.attempts] == ["failed", "failed"]
    assert (step.state, step.error, step.end_ms) == ("failed", final, 1506)
    assert (line.status, line.failure) == (RunStatus.FAILED, final)


def test_an_at_most_once_step_that_was_lost_counts_the_loss_once() -> None:
    events = history(
        (1000, scheduled()),
        (1002, h.AttemptStarted(command_id="0/work#1", attempt=1)),
        (1003, h.AttemptLost(command_id="0/work#1", attempt=1, reason="silent")),
        (1003, h.StepFailed(command_id="0/work#1", attempt=1, failure=Failure(kind=FAILURE_KIND_LOST))),
    )
    assert [a.outcome for a in timeline_of(events).steps["0/work#1"].attempts] == ["lost"]


def test_local_steps_appear_with_their_outcome() -> None:
    events = history(
        START,
        OPENED,
        (1050, h.AttemptFailed(command_id="0/n#1", attempt=1, name="n", local=True, failure=BOOM, duration_ms=30)),
        (1200, h.StepCompleted(command_id="0/n#1", attempt=2, name="n", local=True, duration_ms=50)),
    )
    step = timeline_of(events).steps["0/n#1"]
    assert (step.kind, step.start_ms, step.end_ms) == ("local", 1020, 1200)
    assert [(a.number, a.outcome, a.start_ms, a.duration_ms) for a in step.attempts] == [
        (1, "failed", 1020, 30),
        (2, "completed", 1150, 50),
    ]


def test_the_loss_of_an_owner_loses_the_local_steps_that_it_announced() -> None:
    line = timeline_of(
        history(
            START,
            OPENED,
            (1050, h.AttemptStarted(command_id="0/n#1", attempt=1, name="n", local=True, worker_id="w1")),
            (1060, scheduled()),
            (1061, h.AttemptStarted(command_id="0/work#1", attempt=1, worker_id="w2")),
            (1200, h.RunOwnerLost(worker_id="w1", reason="closed", counted=True)),
        )
    )
    assert line.steps["0/n#1"].attempts[0].outcome == "lost"
    assert line.steps["0/work#1"].attempts[0].outcome == "running"
    assert (line.owner, line.owners_lost) == ("", 1)


def test_timers_sleep_fire_and_are_cancelled() -> None:
    events = history(
        START,
        (1010, h.TimerStarted(command_id="0/sleep#1", fire_at_ms=3010)),
        (1010, h.TimerStarted(command_id="0/sleep#2", fire_at_ms=9010)),
        (3012, h.TimerFired(command_id="0/sleep#1")),
    )
    line = timeline_of(events)
    first, second = line.steps["0/sleep#1"], line.steps["0/sleep#2"]
    assert (first.kind, first.state, first.duration_ms) == ("timer", "completed", 2002)
    assert (second.state, second.due_ms) == ("sleeping", 9010)
    line.feed(h.HistoryEvent(position=5, time_ms=3013, timer_cancelled=h.TimerCancelled(command_id="0/sleep#2")))
    assert second.state == "cancelled"


def test_closing_the_run_abandons_what_is_open() -> None:
    events = history(
        START,
        (1020, scheduled()),
        (1030, h.AttemptStarted(command_id="0/work#1", attempt=1)),
        (1040, h.RunTerminated(reason="enough")),
    )
    line = timeline_of(events)
    step = line.steps["0/work#1"]
    assert (step.state, step.attempts[0].outcome, step.attempts[0].end_ms) == ("abandoned", "cancelled", 1040)
    assert (line.status, line.reason, line.closed_ms) == (RunStatus.TERMINATED, "enough", 1040)


def test_what_a_person_must_look_at() -> None:
    timeline = timeline_of(history(START, OPENED, (1100, h.RunDiverged(expected="step a", found="step b"))))
    assert timeline.status is RunStatus.NEEDS_ATTENTION
    assert "expected step a, found step b" in timeline.reason
    timeline.feed(h.HistoryEvent(position=4, time_ms=1200, run_accepted=h.RunAccepted()))
    assert (timeline.status, timeline.reason) == (RunStatus.RUNNING, "")


def test_an_event_of_a_newer_control_plane_moves_the_time_only() -> None:
    timeline = timeline_of(history(START))
    assert timeline.feed(h.HistoryEvent(position=2, time_ms=5000)) is None
    assert (timeline.now_ms, timeline.position, timeline.status) == (5000, 2, RunStatus.RUNNING)


def test_a_run_without_its_worker_waits() -> None:
    timeline = timeline_of(history(START, (1100, h.RunWaiting(workflow="w"))))
    assert timeline.status is RunStatus.WAITING
    assert timeline.reason == "no worker has the workflow 'w'"


def test_a_run_that_goes_on_after_it_had_closed() -> None:
    failure = Failure(type="ValueError", message="boom")
    events = history(
        (1000, h.RunStarted(workflow="w")),
        (1100, scheduled()),
        (1200, h.AttemptStarted(command_id="0/work#1", attempt=1, worker_id="a")),
        (1300, h.StepFailed(command_id="0/work#1", attempt=1, failure=failure)),
        (1400, h.RunFailed(failure=failure, hook_run_id="h")),
    )
    timeline = timeline_of(events)
    assert (timeline.status, timeline.hook_run_id) == (RunStatus.FAILED, "h")
    more = history(
        *[(event.time_ms, getattr(event, event.WhichOneof("kind") or "")) for event in events],
        (5000, h.RunRetried(number=1)),
        (5100, scheduled()),
        (5200, h.AttemptStarted(command_id="0/work#1", attempt=2, worker_id="b")),
    )
    timeline = timeline_of(more)
    step = timeline.steps["0/work#1"]
    assert (timeline.status, timeline.failure, timeline.closed_ms) == (RunStatus.RUNNING, None, None)
    assert (timeline.retries, timeline.hook_run_id) == (1, "")
    assert (step.state, step.end_ms, [a.outcome for a in step.attempts]) == ("running", None, ["failed", "running"])
