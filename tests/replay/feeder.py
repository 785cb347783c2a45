"""Feeds one execution by hand, event by event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.replay.harness import START_MS
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.worker_service_pb2 import Command
from treadle.worker.loop.execution import WorkflowExecution
from treadle.worker.loop.port import RunContext, Turn


class Feeder:
    """Feeds one execution, in order, with a second between events."""

    def __init__(
        self, flow: Any, *args: Any, accepted_until: int = 0, run_id: str = "r", known_signals: Sequence[str] = ()
    ) -> None:
        context = RunContext("default", run_id, 3, flow.name, accepted_until)
        self.execution = WorkflowExecution(context, flow)
        given = flow.signature.encode_call(args, {})
        self.feed(run_started=h.RunStarted(input=given, known_signals=known_signals))

    def feed(self, time_ms: int | None = None, **kind: Any) -> WorkflowExecution:
        position = self.execution.fed + 1
        at = START_MS + 1000 * position if time_ms is None else time_ms
        self.execution.feed(h.HistoryEvent(position=position, time_ms=at, **kind))
        return self.execution

    def take(self) -> Turn:
        return self.execution.take()

    def record(self, command: Command) -> None:
        if command.WhichOneof("kind") == "start_timer":
            fire_at = START_MS + command.start_timer.delay_ms
            event = h.TimerStarted(command_id=command.command_id, digest=command.digest, fire_at_ms=fire_at)
            self.feed(timer_started=event)
        else:
            s = command.schedule_step
            self.feed(
                step_scheduled=h.StepScheduled(
                    command_id=command.command_id,
                    digest=command.digest,
                    name=s.name,
                    input=s.input,
                    on_cancel=s.on_cancel,
                )
            )

    def complete(self, command_id: str, value: Any, **more: Any) -> None:
        result = Payload(data=json.dumps(value).encode())
        self.feed(step_completed=h.StepCompleted(command_id=command_id, result=result, **more))

    def result(self) -> Any:
        outcome = self.execution.outcome
        assert outcome is not None
        assert outcome.result is not None, outcome
        return json.loads(outcome.result.data)

    def failure(self) -> Failure:
        outcome = self.execution.outcome
        assert outcome is not None
        assert outcome.failure is not None, outcome
        return outcome.failure
