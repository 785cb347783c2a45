"""What handles the failures of a workflow: when it is asked for, and what it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import ConfigError
from treadle.protocol.payloads import decode
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import FailedRunInfo, Failure, FailureHandler, Payload
from treadle.v1.worker_service_pb2 import OwnerRequest
from treadle.worker import FailedRun, RaisedError, continue_as_new, receive, step, workflow
from treadle.worker.app import Registry
from treadle.worker.core.feed import Feed
from treadle.worker.core.last_word import say_outcome
from treadle.worker.loop.execution import WorkflowExecution
from treadle.worker.loop.port import RunContext
from treadle.worker.specs import handlers_of, specs_of


@step(pool="p")
async def pooled(x: int) -> int:
    return x


@step
async def tell(failed: FailedRun) -> None:
    """Handles failures."""


@workflow(on_failure=tell)
async def handled(x: int) -> int:
    return await pooled(x)


def told(run: Feeder) -> dict[str, Any]:
    outcome = run.execution.outcome
    assert outcome is not None and outcome.hook is not None
    assert (outcome.hook.workflow, outcome.hook.pool) == ("handled.on_failure", "default")
    failed: dict[str, Any] = json.loads(outcome.hook.input.data)["failed"]
    return failed


def fail(run: Feeder) -> None:
    run.record(run.take().commands[0])
    failure = Failure(type="Boom", message="no", attempts=5)
    run.feed(step_failed=h.StepFailed(command_id="0/pooled#1", attempt=5, failure=failure))


def test_it_is_told_of_the_run_its_error_and_its_input() -> None:
    run = Feeder(handled, 4)
    fail(run)
    failed = told(run)
    assert (failed["id"], failed["workflow"], failed["input"], failed["input_omitted"]) == (
        "r",
        "handled",
        {"x": 4},
        False,
    )
    assert failed["error"]["type"] == "StepError" and failed["error"]["cause"]["type"] == "Boom"


def test_a_run_whose_time_is_over_is_handled_and_a_cancelled_one_is_not() -> None:
    run = Feeder(handled, 4)
    run.feed(run_timed_out=h.RunTimedOut(timeout_ms=5000))
    assert run.execution.outcome is not None and run.execution.outcome.cancelled
    error = told(run)["error"]
    assert (error["type"], error["message"]) == ("RunTimedOut", "it ran longer than its timeout of 5 s")
    run = Feeder(handled, 4)
    run.feed(cancel_requested=h.CancelRequested(reason="no"))
    assert run.execution.outcome is not None and run.execution.outcome.hook is None


def test_a_large_input_is_left_out() -> None:
    @workflow(on_failure=tell, name="handled")
    async def large(x: str) -> int:
        return await pooled(len(x))

    run = Feeder(large, "x" * (600 << 10))
    fail(run)
    assert (told(run)["input"], told(run)["input_omitted"]) == ({}, True)


def started_by_server(flow: Any, given: Payload, *, omitted: bool = False, feeds: int = 1) -> list[WorkflowExecution]:
    """Feed the beginning of a hook's history that the control plane wrote, several times over."""
    failure = Failure(type="RunTimedOut", message="too long")
    info = FailedRunInfo(run_id="r", workflow="handled", failure=failure, input_omitted=omitted)
    event = h.HistoryEvent(position=1, time_ms=1000, run_started=h.RunStarted(input=given, failed_run=info))
    found = []
    for _ in range(feeds):
        found.append(WorkflowExecution(RunContext("default", "hook", 3, flow.name, 0), flow))
        found[-1].feed(event)
    return found


def handed(execution: WorkflowExecution) -> FailedRun:
    assert execution.outcome is not None and execution.outcome.result is not None, execution.outcome
    failed: FailedRun = decode(execution.outcome.result, FailedRun, what="result")
    return failed


@workflow
async def echo(failed: FailedRun) -> FailedRun:
    return failed


def test_a_hook_that_the_control_plane_started_gets_the_same_as_others() -> None:
    given = handled.signature.encode_call((4,), {})
    first, again = started_by_server(echo, given, feeds=2)
    error = RaisedError("RunTimedOut", "too long")
    assert handed(first) == handed(again) == FailedRun("r", "handled", error, {"x": 4})
    (none,) = started_by_server(echo, Payload())
    assert handed(none) == FailedRun("r", "handled", error)
    (large,) = started_by_server(echo, Payload(), omitted=True)
    assert handed(large) == FailedRun("r", "handled", error, input_omitted=True)
    (large,) = started_by_server(echo, Payload(data=b'{"x":"%s"}' % (b"x" * (600 << 10))))
    assert handed(large).input_omitted, "it came from the blob store, with another size than it has there"


def test_a_hook_that_cannot_open_the_arguments_is_left_to_another_worker() -> None:
    (sealed,) = started_by_server(echo, Payload(data=b"?", encoding="aes"))
    assert sealed.outcome is None and sealed.divergence is not None and "aes" in sealed.divergence.found


def test_a_hook_of_a_hook_is_told_what_that_was_called_with() -> None:
    @workflow(on_failure=tell)
    async def fails(failed: FailedRun) -> None:
        raise ValueError(failed.id)

    (execution,) = started_by_server(fails, handled.signature.encode_call((4,), {}))
    outcome = execution.outcome
    assert outcome is not None and outcome.hook is not None
    assert json.loads(outcome.hook.input.data)["failed"]["input"]["failed"]["input"] == {"x": 4}


@workflow(on_failure=tell)
async def goes_on(x: int) -> None:
    await receive("number", int)
    continue_as_new(x + 1)


def test_a_run_that_cannot_go_on_as_new_for_its_unread_signals_fails_with_its_hook() -> None:
    run = Feeder(goes_on, 4)
    for number in range(1002):
        run.feed(signal_received=h.SignalReceived(name="number", signal_id=f"s{number}", data=Payload(data=b"1")))
    feed = Feed(lambda context: run.execution, run.execution.context, always_replay=False)
    request, outcome = OwnerRequest(), run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    say_outcome(request, feed, outcome)
    said = request.fail
    assert said.failure.type == "TooManyUnread" and "1001 signals were not received" in said.failure.message
    assert said.failure.final and len(request.unread) == 100
    failed = json.loads(said.hook.input.data)["failed"]
    assert (said.hook.workflow, failed["error"]["type"], failed["input"]) == (
        "goes_on.on_failure",
        "TooManyUnread",
        {"x": 4},
    )


def test_workers_say_what_handles_failures() -> None:
    specs = specs_of(Registry().add(handled), ["handled", "handled.on_failure"])
    assert handlers_of(specs) == {"handled": FailureHandler(workflow="handled.on_failure", pool="default")}


def test_it_is_registered_with_its_workflow() -> None:
    assert set(Registry().add(handled).workflows) == {"handled", "handled.on_failure"}


def test_it_takes_one_argument() -> None:
    @step
    async def two(failed: FailedRun, more: int) -> None:
        """Wrong."""

    for wrong in (two, "tell"):
        with pytest.raises(ConfigError, match="on_failure"):
            workflow(on_failure=wrong)(handled.function)  # type: ignore[arg-type]
