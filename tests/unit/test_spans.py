"""Histories made by hand, and the spans they become."""

from __future__ import annotations

from base64 import b64encode
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.otlp_json import otlp_json
from treadle.controlplane.tracing.otlp_proto import encoded, request_of
from treadle.controlplane.tracing.span_data import HeadFacts, SpanData
from treadle.controlplane.tracing.spans import SPANS_A_NAME, SPANS_A_RUN, project
from treadle.controlplane.tracing.state import ProjectionState
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import (
    FAILURE_KIND_LOST,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_RUN_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_TIMED_OUT,
    Failure,
    FailureKind,
    Payload,
    TraceContext,
)

FACTS = HeadFacts("default", "order-42", 0x1234)
BOOM = Failure(type="ValueError", message="boom", traceback="Traceback: boom")
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
START = (1000, h.RunStarted(workflow="orders", pool="flows", trigger="api"))
DONE = (9000, h.RunCompleted(result=Payload(data=b"secret-result")))
WORK = "0/work#1"


def history(*entries: tuple[int, Message]) -> list[h.HistoryEvent]:
    """Events at the given times (ms), with positions from 1."""
    events = []
    for position, (time_ms, body) in enumerate(entries, start=1):
        kind = next(f.name for f in h.HistoryEvent.DESCRIPTOR.fields if f.message_type is body.DESCRIPTOR)
        fields: dict[str, Any] = {"position": position, "revision": 7, "time_ms": time_ms, kind: body}
        events.append(h.HistoryEvent(**fields))
    return events


def spans(*entries: tuple[int, Message]) -> dict[str, SpanData]:
    """Spans of a history by path; no path comes twice."""
    made, state = project(FACTS, history(*entries), ProjectionState())
    assert state.position == len(entries)
    assert len({span.path for span in made}) == len({span.span_id for span in made}) == len(made)
    return {span.path: span for span in made}


def scheduled(command_id: str = WORK, name: str = "work") -> h.StepScheduled:
    return h.StepScheduled(command_id=command_id, name=name, pool="crm", input=Payload(data=b"secret-input"))


def started(attempt: int, command_id: str = WORK, worker: str = "w1") -> h.AttemptStarted:
    return h.AttemptStarted(command_id=command_id, attempt=attempt, try_number=1, worker_id=worker)


def ms(span: SpanData) -> tuple[int, int]:
    return span.start_ns // 10**6, span.end_ns // 10**6


def test_the_ids_are_what_they_always_were() -> None:
    made = spans(START, (1010, h.TimerStarted(command_id="0/sleep#1", fire_at_ms=2000)), (1020, scheduled()), DONE)
    assert FACTS.trace_id == "657a75220fce054bc56dcc3b1e21f80f"
    assert {path: span.span_id for path, span in made.items()} == {
        "anchor": "cf03b8116c30d15b",
        "step/0/work#1/1": "2208f5c139087f41",
        "timer/0/sleep#1": "f6a42025e5327b66",
        "run": "d24af8bbf0202601",
    }


def test_a_step_that_works() -> None:
    made = spans(
        START, (1020, scheduled()), (1050, started(1)), (1090, h.StepCompleted(command_id=WORK, attempt=1)), DONE
    )
    anchor, step, run = made["anchor"], made[f"step/{WORK}/1"], made["run"]
    assert (anchor.name, anchor.kind, anchor.parent_id, ms(anchor)) == ("run orders", "internal", "", (1000, 1000))
    assert anchor.attributes == {
        "treadle.namespace": "default",
        "treadle.run.id": "order-42",
        "treadle.workflow.name": "orders",
        "treadle.span.source": "history",
        "treadle.run.incarnation": "0000000000001234",
        "treadle.run.trigger": "api",
    }
    assert (step.name, step.kind, step.parent_id, ms(step)) == ("step work", "producer", anchor.span_id, (1020, 1090))
    assert {k: v for k, v in step.attributes.items() if k not in anchor.attributes} == {
        "treadle.step.id": WORK,
        "treadle.step.name": "work",
        "treadle.step.kind": "task",
        "treadle.step.outcome": "success",
        "treadle.attempt.number": 1,
        "treadle.attempt.outcome": "success",
        "treadle.attempt.queue_ms": 30,
        "treadle.pool.name": "crm",
        "treadle.worker.id": "w1",
    }
    assert (step.status, step.links, step.events) == ("unset", (), ())
    assert (run.name, run.parent_id, ms(run), run.status) == ("execute orders", anchor.span_id, (1000, 9000), "ok")
    assert run.attributes[a.RUN_OUTCOME] == "success"
    assert "secret" not in repr(made)


def test_every_try_is_a_sibling_that_links_to_the_one_before() -> None:
    made = spans(
        START,
        (1020, scheduled()),
        (1030, started(1)),
        (1040, h.AttemptFailed(command_id=WORK, attempt=1, failure=BOOM, retry_at_ms=2040)),
        (2040, h.StepRetried(command_id=WORK, try_number=2)),
        (2050, started(2, worker="w2")),
        (3000, h.AttemptLost(command_id=WORK, attempt=2, reason="closed", counted=True, worker_id="w2")),
        (3010, started(3, worker="w3")),
        (3500, h.AttemptReleased(command_id=WORK, attempt=3, reason="drain")),
        (3510, started(4)),
        (3600, h.StepFailed(command_id=WORK, attempt=4, failure=Failure(kind=FAILURE_KIND_TIMED_OUT, type="TimedOut"))),
        (3700, h.RunFailed(failure=BOOM)),
    )
    tries = [made[f"step/{WORK}/{n}"] for n in (1, 2, 3, 4)]
    assert [span.attributes[a.ATTEMPT_OUTCOME] for span in tries] == ["failure", "lost", "released", "timeout"]
    assert [ms(span) for span in tries] == [(1020, 1040), (2040, 3000), (3000, 3500), (3500, 3600)]
    assert [span.status for span in tries] == ["error", "error", "unset", "error"]
    assert [span.attributes.get(a.ERROR_TYPE) for span in tries] == ["ValueError", "Lost", None, "TimedOut"]
    assert [span.attributes.get(a.STEP_OUTCOME) for span in tries] == [None, None, None, "timeout"]
    assert [span.attributes.get(a.WORKER_ID) for span in tries] == ["w1", "w2", "w3", "w1"]
    assert tries[0].attributes[a.RETRY_DELAY_MS] == 1000
    assert not tries[0].links
    for before, span in pairwise(tries):
        (link,) = span.links
        assert (link.trace_id, link.span_id) == (before.trace_id, before.span_id)
        assert link.attributes == {"treadle.link.type": "retry_of"}
    (event,) = tries[0].events
    assert (event.name, event.time_ns) == ("exception", 1040 * 10**6)
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.stacktrace"] == "Traceback: boom"
    run = made["run"]
    assert (run.status, run.attributes[a.RUN_OUTCOME], run.description) == ("error", "failure", "ValueError: boom")


def test_a_local_step_takes_as_long_as_it_says() -> None:
    made = spans(
        START,
        (1500, h.AttemptFailed(command_id="0/a#1", attempt=1, failure=BOOM, name="a", local=True, duration_ms=100)),
        (1800, h.StepRetried(command_id="0/a#1", try_number=2)),
        (2000, h.StepCompleted(command_id="0/a#1", attempt=2, name="a", local=True, duration_ms=150)),
        (2000, h.StepCompleted(command_id="0/b#1", attempt=1, name="b", local=True, duration_ms=5000)),
        (2100, h.AttemptStarted(command_id="0/c#1", attempt=1, worker_id="w1", name="c", local=True)),
        (2400, h.StepCompleted(command_id="0/c#1", attempt=1, name="c", local=True, duration_ms=20)),
    )
    assert ms(made["step/0/a#1/1"]) == (1400, 1500)
    assert ms(made["step/0/a#1/2"]) == (1850, 2000)
    assert ms(made["step/0/b#1/1"]) == (1000, 2000), "no span begins before its run"
    assert ms(made["step/0/c#1/1"]) == (2100, 2400)
    step = made["step/0/a#1/2"]
    assert (step.kind, step.attributes[a.LOCAL], a.POOL in step.attributes) == ("internal", True, False)


def test_a_local_step_whose_owner_left_is_released() -> None:
    made = spans(
        START,
        (1100, h.AttemptStarted(command_id="0/c#1", attempt=1, worker_id="w1", name="c", local=True)),
        (1200, h.RunReleased(reason="drain")),
        (1300, h.AttemptStarted(command_id="0/c#1", attempt=2, worker_id="w2", name="c", local=True)),
        (
            1400,
            h.StepFailed(command_id="0/c#1", attempt=2, name="c", local=True, failure=Failure(kind=FAILURE_KIND_LOST)),
        ),
    )
    assert made["step/0/c#1/1"].attributes[a.ATTEMPT_OUTCOME] == "released"
    assert made["step/0/c#1/2"].attributes[a.ATTEMPT_OUTCOME] == "lost"
    assert made["step/0/c#1/2"].attributes[a.ERROR_TYPE] == "_OTHER"


def test_a_try_that_is_cancelled_in_the_queue_is_one_more_attempt() -> None:
    made = spans(
        START,
        (1020, scheduled()),
        (1030, started(1)),
        (1040, h.AttemptFailed(command_id=WORK, attempt=1, failure=BOOM, retry_at_ms=2040)),
        (2040, h.StepRetried(command_id=WORK, try_number=2)),
        (2100, h.StepCancelled(command_id=WORK, attempt=1)),
    )
    assert made[f"step/{WORK}/1"].attributes[a.ATTEMPT_OUTCOME] == "failure"
    second = made[f"step/{WORK}/2"]
    assert (ms(second), second.status, a.WORKER_ID in second.attributes) == ((2040, 2100), "unset", False)
    assert second.attributes[a.ATTEMPT_OUTCOME] == second.attributes[a.STEP_OUTCOME] == "cancelled"


def test_a_retry_that_was_only_planned_has_no_span() -> None:
    failed = (1040, h.AttemptFailed(command_id=WORK, attempt=1, failure=BOOM, retry_at_ms=2040))
    for end in ((1100, h.StepCancelled(command_id=WORK, attempt=1)), (1100, h.RunTerminated())):
        made = spans(START, (1020, scheduled()), (1030, started(1)), failed, end)
        assert [path for path in made if path.startswith("step")] == [f"step/{WORK}/1"]


def test_a_quarantined_step_waits_for_nobody() -> None:
    made = spans(
        START,
        (1020, scheduled()),
        (1030, started(1)),
        (1040, h.AttemptLost(command_id=WORK, attempt=1, reason="closed", counted=True)),
        (1040, h.StepQuarantined(command_id=WORK, losses=5)),
        (5000, h.RunTerminated()),
    )
    assert [path for path in made if path.startswith("step")] == [f"step/{WORK}/1"]


def test_a_close_ends_what_is_open() -> None:
    made = spans(
        START,
        (1020, scheduled()),
        (1025, scheduled("0/other#1", "other")),
        (1026, h.TimerStarted(command_id="0/sleep#1", fire_at_ms=99_000)),
        (1030, started(1)),
        (2000, h.RunTerminated(reason="enough")),
    )
    assert made[f"step/{WORK}/1"].attributes[a.STEP_OUTCOME] == "cancelled"
    assert made["step/0/other#1/1"].attributes[a.ATTEMPT_OUTCOME] == "cancelled"
    assert made["timer/0/sleep#1"].attributes[a.WAIT_OUTCOME] == "cancelled"
    assert all(span.end_ns == 2000 * 10**6 for path, span in made.items() if path != "anchor")
    assert made["run"].attributes[a.RUN_OUTCOME] == "cancellation"
    assert list(made)[-1] == "run"


@pytest.mark.parametrize(
    ("end", "outcome", "status"),
    [
        (h.RunCompleted(), "success", "ok"),
        (h.RunFailed(failure=BOOM), "failure", "error"),
        (h.RunFailed(failure=Failure(kind=FAILURE_KIND_TIMED_OUT)), "timeout", "error"),
        (h.RunFailed(failure=Failure(kind=FAILURE_KIND_RUN_TIMED_OUT)), "timeout", "error"),
        (h.RunCancelled(), "cancellation", "unset"),
        (h.RunTerminated(), "cancellation", "unset"),
    ],
)
def test_outcomes_of_runs(end: Message, outcome: str, status: str) -> None:
    run = spans(START, (2000, end))["run"]
    assert (run.attributes[a.RUN_OUTCOME], run.status) == (outcome, status)


@pytest.mark.parametrize("kind", [FAILURE_KIND_QUEUE_TIMED_OUT, FAILURE_KIND_STEP_TIMED_OUT])
def test_a_step_that_came_to_a_limit_says_so(kind: FailureKind.ValueType) -> None:
    """Nobody held it: its span is the wait."""
    scheduled = h.StepScheduled(command_id=WORK, name="work", pool="crm")
    made = spans(START, (1100, scheduled), (3100, h.StepFailed(command_id=WORK, failure=Failure(kind=kind))))
    span = made[f"step/{WORK}/1"]
    assert (ms(span), span.attributes[a.ATTEMPT_OUTCOME], span.status) == ((1100, 3100), "timeout", "error")


def test_a_local_step_that_was_told_to_end_has_a_span() -> None:
    ended = h.StepCancelled(command_id="0/l#1", attempt=1, name="l", local=True)
    span = spans(START, (2000, ended))["step/0/l#1/1"]
    assert span.attributes[a.ATTEMPT_OUTCOME] == "cancelled" and span.status == "unset"


def test_a_timer_says_when_it_was_to_fire() -> None:
    made = spans(
        START,
        (1100, h.TimerStarted(command_id="0/sleep#1", fire_at_ms=2100)),
        (1100, h.TimerStarted(command_id="0/sleep#2", fire_at_ms=9100)),
        (2105, h.TimerFired(command_id="0/sleep#1")),
        (2110, h.TimerCancelled(command_id="0/sleep#2")),
    )
    fired, cancelled = made["timer/0/sleep#1"], made["timer/0/sleep#2"]
    assert (fired.name, ms(fired), fired.attributes[a.WAIT_OUTCOME]) == ("sleep", (1100, 2105), "fired")
    assert fired.attributes["treadle.timer.fire_at"] == 2100
    assert (ms(cancelled), cancelled.attributes[a.WAIT_OUTCOME]) == ((1100, 2110), "cancelled")


def test_the_caller_is_linked_and_not_joined() -> None:
    body = h.RunStarted(workflow="orders", caller=TraceContext(traceparent=CALLER, tracestate="v=1"))
    anchor = spans((1000, body))["anchor"]
    (link,) = anchor.links
    assert (link.trace_id, link.span_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert (link.flags, link.state, link.attributes) == (1, "v=1", {"treadle.link.type": "started_by"})
    assert anchor.trace_id == FACTS.trace_id


def test_a_scheduled_run_says_which_occurrence_it_is() -> None:
    body = h.RunStarted(workflow="orders", trigger="schedule")
    body.occurrence.schedule_id, body.occurrence.scheduled_ms = "nightly", 900
    found = spans((1000, body))["anchor"].attributes
    assert (found[a.TRIGGER], found[a.SCHEDULE], found[a.SCHEDULED_AT]) == ("schedule", "nightly", 900)
    assert a.SCHEDULE not in spans((1000, h.RunStarted(workflow="orders", trigger="api")))["anchor"].attributes


@pytest.mark.parametrize("text", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff" + CALLER[2:]])
def test_a_caller_that_makes_no_sense_is_left_out(text: str) -> None:
    body = h.RunStarted(workflow="orders", caller=TraceContext(traceparent=text))
    assert spans((1000, body))["anchor"].links == ()


LONG = history(
    (1000, h.RunStarted(workflow="orders", trigger="api", caller=TraceContext(traceparent=CALLER))),
    (1020, scheduled()),
    (1026, h.TimerStarted(command_id="0/sleep#1", fire_at_ms=1900)),
    (1030, started(1)),
    (1040, h.AttemptFailed(command_id=WORK, attempt=1, failure=BOOM, retry_at_ms=2040)),
    (1900, h.TimerFired(command_id="0/sleep#1")),
    (2040, h.StepRetried(command_id=WORK, try_number=2)),
    (2050, started(2)),
    (2090, h.StepCompleted(command_id=WORK, attempt=2)),
    DONE,
)


def request(made: list[SpanData]) -> bytes:
    return request_of([(span.namespace, entry) for span, entry in zip(made, encoded(made), strict=True)])


def test_a_history_that_is_projected_twice_gives_equal_bytes() -> None:
    first, _ = project(FACTS, LONG, ProjectionState())
    second, _ = project(FACTS, [h.HistoryEvent.FromString(e.SerializeToString()) for e in LONG], ProjectionState())
    assert request(first) == request(second)
    assert len(first) == 5


def test_the_json_document_has_the_same_spans() -> None:
    made, _ = project(FACTS, LONG, ProjectionState())
    document = otlp_json(made)
    for scopes in document["resourceSpans"][0]["scopeSpans"]:
        for one in [*scopes["spans"], *(link for span in scopes["spans"] for link in span.get("links", ()))]:
            for name in {"traceId", "spanId", "parentSpanId"} & one.keys():
                one[name] = b64encode(bytes.fromhex(one[name])).decode()  # protobuf's own JSON has ids in base64
    assert ParseDict(document, TracesData()).SerializeToString() == request(made)
    assert otlp_json([]) == {"resourceSpans": []}


@pytest.mark.parametrize("cut", range(len(LONG) + 1))
def test_pages_do_not_matter(cut: int) -> None:
    whole, end = project(FACTS, LONG, ProjectionState())
    one, state = project(FACTS, LONG[:cut], ProjectionState())
    two, last = project(FACTS, LONG[max(0, cut - 2) :], state)  # pages may overlap
    assert one + two == whole
    assert last == end
    assert project(FACTS, LONG[cut:], state)[0] == two, "the state that was given has changed"


def test_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="event 4 of run 'order-42' follows 1"):
        project(FACTS, [LONG[0], LONG[3]], ProjectionState())


def test_too_many_steps_of_a_name_become_one_summary() -> None:
    entries: list[tuple[int, Message]] = [START]
    entries += [(2000 + n, scheduled(f"0/work#{n}")) for n in range(10_000)]
    for n in range(10_000):
        entries.append((20_000 + n, started(1, f"0/work#{n}")))
        entries.append((20_000 + n, h.StepCompleted(command_id=f"0/work#{n}", attempt=1)))
    entries += [(31_000, scheduled("0/last#1", "last")), (40_000, h.RunCompleted())]
    made = spans(*entries)
    assert len(made) == 1 + SPANS_A_NAME + 1 + 1 + 1
    summary = made["summary/work"]
    assert (summary.name, ms(summary)) == ("step work", (2000 + SPANS_A_NAME, 29_999))
    assert summary.attributes["treadle.fanout.steps"] == 10_000 - SPANS_A_NAME
    assert summary.attributes["treadle.fanout.attempts.success"] == 10_000 - SPANS_A_NAME
    assert "step/0/last#1/1" in made
    assert a.DROPPED not in made["run"].attributes


def test_the_budget_of_a_run_keeps_room_for_its_end() -> None:
    entries: list[tuple[int, Message]] = [START]
    for n in range(6_000):
        entries.append((2000, h.TimerStarted(command_id=f"0/sleep#{n}", fire_at_ms=1)))
        entries.append((2000, h.TimerFired(command_id=f"0/sleep#{n}")))
    made = spans(*entries, DONE)
    assert len(made) <= SPANS_A_RUN
    assert made["run"].attributes[a.DROPPED] == 6_000 + 2 - len(made)


# --- a run that goes on after it had closed ----------------------------------------------------------------------------
def test_a_continued_run_has_spans_of_its_own_for_what_it_does_again() -> None:
    failed = h.RunFailed(failure=BOOM)
    sleep = h.TimerStarted(command_id="0/sleep#1", fire_at_ms=9000)
    child = h.ChildScheduled(command_id="0/ship#1", workflow="ship", run_id="s")
    made = spans(
        START,
        (1100, scheduled()),
        (1200, started(1)),
        (1300, h.StepFailed(command_id=WORK, attempt=1, failure=BOOM)),
        (1350, sleep),
        (1360, child),
        (1400, failed),
        (5000, h.RunRetried(number=1)),
        (5100, scheduled()),
        (5200, started(2)),
        (5250, sleep),
        (5260, child),
        (5300, h.StepCompleted(command_id=WORK, attempt=2)),
        (6000, h.TimerFired(command_id="0/sleep#1")),
        (6100, h.ChildCompleted(command_id="0/ship#1")),
        (9000, h.RunCompleted()),
    )
    assert set(made) == {
        "anchor",
        f"step/{WORK}/1",
        f"step/{WORK}/2",
        "timer/0/sleep#1",
        "timer/0/sleep#1~1",
        "child/0/ship#1",
        "child/0/ship#1~1",
        "run",
        "run~1",
    }
    assert ms(made["run"]) == (1000, 1400) and made["run"].status == "error"
    assert ms(made["run~1"]) == (5000, 9000) and made["run~1"].status == "ok"
    assert ms(made[f"step/{WORK}/2"]) == (5100, 5300)


def test_a_quarantined_step_that_goes_on_has_another_attempt() -> None:
    made = spans(
        START,
        (1100, scheduled()),
        (1200, started(1)),
        (1300, h.AttemptLost(command_id=WORK, attempt=1, reason="closed")),
        (1300, h.StepQuarantined(command_id=WORK, losses=5)),
        (4000, h.StepUnquarantined(command_id=WORK)),
        (4100, started(2)),
        (4200, h.StepCompleted(command_id=WORK, attempt=2)),
        DONE,
    )
    assert ms(made[f"step/{WORK}/2"]) == (4000, 4200)
