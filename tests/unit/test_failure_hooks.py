"""What handles the failures of a workflow: when it is asked for, and what it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import ConfigError
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Failure
from treadle.worker import FailedRun, step, workflow
from treadle.worker.app import Registry


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


def test_it_is_registered_with_its_workflow() -> None:
    assert set(Registry().add(handled).workflows) == {"handled", "handled.on_failure"}


def test_it_takes_one_argument() -> None:
    @step
    async def two(failed: FailedRun, more: int) -> None:
        """Wrong."""

    for wrong in (two, "tell"):
        with pytest.raises(ConfigError, match="on_failure"):
            workflow(on_failure=wrong)(handled.function)  # type: ignore[arg-type]
