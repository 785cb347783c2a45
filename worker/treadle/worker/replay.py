"""Replay of recorded histories against the code that is here: what a worker would do with them, with no run behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from treadle.protocol.errors import ConfigError
from treadle.protocol.sealing import UNREAD, values_of
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent, HistoryFile
from treadle.worker.app import Registry
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop.port import Execution, Outcome, RunContext

__all__ = ("Replayed", "replay_history")


_NO_LIMIT: Final = 1 << 30
_PLAIN: Final = ("", "json")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        run_id, workflow: Which run.
        events: How many its history has.
        position: First event that code and history disagree at; 0: they agree.
        expected, found: What the history has there, and what the code does; in words.
    """

    run_id: str
    workflow: str
    events: int
    position: int = 0
    expected: str = ""
    found: str = ""

    @property
    def differs(self) -> bool:
        """Whether code and history disagree."""
        return self.position > 0


def replay_history(registry: Registry, history: HistoryFile) -> Replayed:
    """Execute the code over a history, with the worker's own execution. No step runs.

    A history that is open need not be at the end of the code; one that is closed must end as it is recorded.

    Raises:
        ConfigError: The history has values that cannot be read: they are encrypted, or only in a blob store.
    """
    events = history.events
    _check_readable(history)
    workflow = code_name(events[0].run_started.workflow, events[0].run_started.version)
    if workflow not in registry.workflows:
        known = ", ".join(sorted(registry.workflows)) or "none"
        found = f"has no such workflow; it has: {known}"
        return Replayed(history.run_id, workflow, len(events), 1, f"workflow {workflow!r}", found)
    context = RunContext(
        namespace=history.namespace,
        run_id=history.run_id,
        incarnation=history.incarnation,
        workflow=workflow,
        accepted_until=max((event.run_accepted.until for event in events), default=0),
        retried_at=max((event.position for event in events if event.HasField("run_retried")), default=0),
        passed_until=len(events),
        marks=frozenset(event.change_marked.name for event in events if event.HasField("change_marked")),
        payload_limit=history.payload_limit or _NO_LIMIT,
    )
    execution = execution_factory(registry)(context)
    try:
        position, expected, found = _difference(execution, events)
    finally:
        execution.close()
    return Replayed(history.run_id, workflow, len(events), position, expected, found)


def _check_readable(history: HistoryFile) -> None:
    for event in history.events:
        kind = event.WhichOneof("kind") or ""
        if not kind or kind in UNREAD:
            continue
        message = getattr(event, kind)
        values = values_of(message)
        sealed = [getattr(message, name).encoding for name in values.payloads]
        sealed += [getattr(message, name).sealed.encoding for name in values.failures]
        if any(encoding not in _PLAIN for encoding in sealed):
            raise ConfigError(
                f"the history of run {history.run_id!r} has a value that cannot be read, at event {event.position}: "
                "download it with `treadle run history RUN -o FILE`, with --keys-file and --blobs as its workers have them"
            )


def _difference(execution: Execution, events: Sequence[HistoryEvent]) -> tuple[int, str, str]:
    for event in events:
        execution.feed(event)
        if execution.divergence is not None:
            return event.position, execution.divergence.expected, execution.divergence.found
    last = events[-1]
    expected = _end(last)
    found = _outcome(execution.outcome)
    if not expected or expected == found:
        return 0, "", ""
    if execution.outcome is None:
        turn = execution.take()
        asks = [c.command_id for c in turn.commands] + [c.command_id for c in turn.local_calls]
        found = f"goes on: it asks for {', '.join(asks[:3])}" if asks else "goes on: it waits"
    return last.position, expected, found


def _end(event: HistoryEvent) -> str:
    """How a closed history ends, in words; "": it is open, or was ended from outside."""
    kind = event.WhichOneof("kind")
    if kind == "run_completed":
        return _returned(event.run_completed.result)
    if kind == "run_failed":
        return f"raises {event.run_failed.failure.type}"
    return "ends cancelled" if kind == "run_cancelled" else ""


def _outcome(outcome: Outcome | None) -> str:
    if outcome is None:
        return "goes on"
    if outcome.cancelled:
        return "ends cancelled"
    if outcome.failure is not None:
        return f"raises {outcome.failure.type}"
    return _returned(outcome.result or Payload())


def _returned(result: Payload) -> str:
    text = result.data.decode("utf-8", "replace") or "null"
    return f"returns {text if len(text) <= 300 else text[:297] + '...'}"
