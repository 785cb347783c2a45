"""Lines that tell a person, event by event, what a run does. Pure text; the mark before a line says it without colour.

▶ run import_contacts   upload-42
  ✓ validate            12 ms
  ⟳ add_zip_codes       attempt 1 failed: TimeoutError: no answer · retry in 1 s
  ⚡ add_zip_codes       attempt 2 lost: its worker died · starts again elsewhere
  ✓ add_zip_codes       attempt 3 · 840 ms
✓ COMPLETED in 3.2 s   result 3376
"""

from __future__ import annotations

import json
from typing import Final

from treadle.client.timeline import StepView, Timeline
from treadle.client.views import RunStatus
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent

__all__ = ("MARKS", "duration_text", "failure_text", "payload_text", "progress_line", "said_line", "unread_text")

MARKS: Final[dict[str, str]] = {
    "queued": "…",
    "running": "▶",
    "retrying": "⟳",
    "waiting": "◷",
    "sleeping": "◷",
    "quarantined": "⚠",
    "completed": "✓",
    "failed": "✗",
    "cancelled": "⊘",
    "abandoned": "⊘",
    "terminated": "⊘",
    "needs-attention": "⚠",
    "deferred": "◷",
    "lost": "⚡",
    "released": "↩",
}
"""The mark of each state of runs, steps and attempts."""

LOST_WORDS: Final = {
    "closed": "its worker died",
    "silent": "its worker fell silent",
    "denied": "its worker no longer has it",
}
"""Why an attempt or owner was lost, for people."""

_NAME_WIDTH = 18


def duration_text(ms: float) -> str:
    """Return a duration as people say it: "12 ms", "3.2 s", "2 m 05 s", "3 h 20 m"."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        text = f"{ms / 1000:.1f}"
        return f"{text.removesuffix('.0')} s"
    seconds = round(ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} m"


def failure_text(failure: Failure, *, limit: int = 200) -> str:
    """Return type and first line of the message."""
    first = failure.message.partition("\n")[0]
    text = f"{failure.type or 'error'}: {first}" if first else failure.type or "error"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def payload_text(payload: Payload, *, limit: int = 120) -> str:
    """Return the JSON of a payload in one line, shortened."""
    if payload.encoding not in ("", "json"):
        return f"<{len(payload.data)} bytes, {payload.encoding}>"
    text = payload.data.decode("utf-8", "replace") or "null"
    try:
        text = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        text = repr(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def progress_line(run_id: str, timeline: Timeline, event: HistoryEvent) -> str | None:
    """Feed the event to the timeline and return the line that tells of it; None when it is not worth one."""
    step = timeline.feed(event)
    kind = event.WhichOneof("kind") or ""
    if step is not None:
        told = _step_line(kind, event, step)
        if told is None:
            return None
        mark, text = told
        return f"  {mark} {step.name:<{_NAME_WIDTH}} {text}"
    return _run_line(run_id, kind, event, timeline)


def _step_line(kind: str, event: HistoryEvent, step: StepView) -> tuple[str, str] | None:
    number = step.attempts[-1].number if step.attempts else 0
    again = f"attempt {number} · " if number > 1 else ""
    match kind:
        case "step_completed":
            took = step.attempts[-1].duration_ms or 0
            outside = " · from outside" if event.step_completed.from_outside else ""
            return MARKS["completed"], again + duration_text(took) + outside
        case "step_deferred":
            return MARKS["deferred"], "waits to be finished from outside"
        case "attempt_failed":
            wait = duration_text(max(event.attempt_failed.retry_at_ms - event.time_ms, 0))
            error = failure_text(event.attempt_failed.failure)
            return MARKS["retrying"], f"attempt {number} failed: {error} · retry in {wait}"
        case "attempt_lost":
            why = LOST_WORDS.get(event.attempt_lost.reason, event.attempt_lost.reason)
            return MARKS["lost"], f"attempt {number} lost: {why} · starts again elsewhere"
        case "attempt_released":
            why = event.attempt_released.reason
            return MARKS["released"], f"attempt {number} given back ({why}) · starts again elsewhere"
        case "attempt_started" if number > 1:
            alone = " in a process of its own" if event.attempt_started.alone else ""
            return MARKS["running"], f"attempt {number} started{alone}"
        case "step_failed":
            return MARKS["failed"], f"failed: {failure_text(event.step_failed.failure)}"
        case "step_cancelled":
            return MARKS["cancelled"], "cancelled"
        case "step_unquarantined":
            return MARKS["retrying"], "goes on: somebody let it"
        case "step_waiting" | "step_quarantined":
            return MARKS[step.state], step.reason
        case "child_scheduled":
            return MARKS["running"], f"child {step.run_id}"
        case "child_completed":
            return MARKS["completed"], duration_text(step.duration_ms or 0)
        case "child_failed":
            return MARKS[step.state], f"{step.state}: {failure_text(event.child_failed.failure)}"
        case "event_wait_started":
            return MARKS["sleeping"], step.reason
        case "event_matched":
            return MARKS["completed"], f"event {payload_text(event.event_matched.event.data)}"
        case "event_wait_timed_out":
            return MARKS["completed"], step.reason
        case "event_wait_refused":
            return MARKS["failed"], event.event_wait_refused.reason
        case "event_sent":
            return MARKS["completed"], f"sent {payload_text(event.event_sent.data)}"
        case "signal_received":
            data = payload_text(event.signal_received.data)
            return MARKS["released" if step.kind == "question" else "completed"], f"{step.kind} {data}"
        case "signal_answered":
            if step.error is not None:
                return MARKS["failed"], f"refused: {failure_text(step.error)}"
            return MARKS["completed"], f"answered {payload_text(event.signal_answered.result)}"
        case "timer_started":
            return MARKS["sleeping"], duration_text(max(event.timer_started.fire_at_ms - event.time_ms, 0))
        case _:
            return None


def _run_line(run_id: str, kind: str, event: HistoryEvent, timeline: Timeline) -> str | None:
    match kind:
        case "run_started" if timeline.part > 1:
            return f"{MARKS['running']} run {timeline.workflow:<{_NAME_WIDTH - 2}}   {run_id}   part {timeline.part}"
        case "run_started":
            return f"{MARKS['running']} run {timeline.workflow:<{_NAME_WIDTH - 2}}   {run_id}"
        case "run_owner_lost":
            why = LOST_WORDS.get(event.run_owner_lost.reason, event.run_owner_lost.reason)
            return f"  {MARKS['lost']} the run was lost: {why} · goes on elsewhere"
        case "run_waiting" | "run_diverged" | "run_halted":
            return f"  {MARKS[timeline.status.value]} {timeline.reason}"
        case "run_continued":
            return f"  {MARKS['released']} continues as new with {payload_text(event.run_continued.input)}"
        case "run_retried":
            step = event.run_retried.from_command
            return f"  {MARKS['retrying']} goes on" + (f" from {step}" if step else " where it failed")
        case "run_accepted":
            return f"  {MARKS['running']} accepted"
        case "change_marked":
            return f"  {MARKS['running']} takes the new way of change {event.change_marked.name!r}"
        case "tags_set":
            said = (f"{tag.key}={tag.value}" if tag.value else f"no {tag.key}" for tag in event.tags_set.tags)
            return f"  {MARKS['running']} tags {', '.join(said)}"
        case "cancel_requested":
            why = event.cancel_requested.reason
            return f"  {MARKS['cancelled']} cancel was asked for" + (f": {why}" if why else "")
        case "run_timed_out":
            over = duration_text(event.run_timed_out.timeout_ms)
            left = duration_text(event.run_timed_out.close_at_ms - event.time_ms)
            return f"  {MARKS['cancelled']} the run's timeout of {over} is over · {left} to clean up"
        case _ if timeline.closed_ms is not None:
            return outcome_line(timeline)
        case _:
            return None


def said_line(step: str, said: Payload) -> str:
    """Return the line that tells how far a step is."""
    return f"  {MARKS['running']} {step:<{_NAME_WIDTH}} {payload_text(said)}"


def unread_text(timeline: Timeline) -> str:
    """Return what a closed run had not received, in words."""
    some = ", ".join(timeline.unread[:5]) + (" …" if len(timeline.unread) > 5 else "")
    return f"not received when it ended: {some}"


def outcome_line(timeline: Timeline) -> str:
    """Return the line that tells how a closed run ended."""
    text = f"{MARKS[timeline.status.value]} {timeline.status.name} in {duration_text(timeline.duration_ms)}"
    if timeline.status is RunStatus.COMPLETED and timeline.completed is not None:
        late = "   (the cancel came too late)" if timeline.completed.cancel_too_late else ""
        late += f"   ({unread_text(timeline)})" if timeline.unread else ""
        return f"{text}   result {payload_text(timeline.completed.result)}{late}"
    if timeline.failure is not None:
        return f"{text}   {failure_text(timeline.failure)}"
    return f"{text}   {timeline.reason}" if timeline.reason else text
