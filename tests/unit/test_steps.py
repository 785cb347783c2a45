from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import treadle.worker
from treadle.protocol.errors import ConfigError, NotDeterministic
from treadle.worker import Retry, Step, Workflow, now, random, step, step_info, uuid4, workflow
from treadle.worker.app import Registry, collect, load_app


@step(pool="csv", timeout="2m", retry=Retry(attempts=2))
async def validate(upload: str) -> int:
    return len(upload)


@step
def create(count: int) -> str:
    return "c" * count


@step
def wraps_another(count: int) -> str:
    return f"{create.function(count)}!"


@workflow
async def imports(upload: str) -> list[str]:
    size = await validate(upload)
    return [await create(size), await wraps_another(size)]


@workflow(name="renamed", pool="flows")
async def other() -> None:
    """Does nothing."""


def test_public_names() -> None:
    assert treadle.worker.__all__ == (
        "step",
        "workflow",
        "Step",
        "Workflow",
        "Retry",
        "Fatal",
        "RetryAfter",
        "StepInfo",
        "step_info",
        "progress",
        "heartbeat",
        "last_progress",
        "defer",
        "Deferred",
        "now",
        "random",
        "uuid4",
        "sleep_until",
        "receive",
        "receive_question",
        "Question",
        "publish_state",
        "changed",
        "set_tags",
        "start_child",
        "ChildRun",
        "continue_as_new",
        "Event",
        "send_event",
        "wait_for_event",
        "Saga",
        "Occurrence",
        "FailedRun",
        "RaisedError",
        "TreadleError",
        "ConfigError",
        "PayloadError",
        "PayloadTooLarge",
        "PayloadUnreadable",
        "NotDeterministic",
        "StepError",
        "StepTimedOut",
        "HeartbeatMissed",
        "AttemptTimedOut",
        "QueueTimedOut",
        "StepLost",
        "StepCancelled",
        "RunFailed",
        "RunTimedOut",
        "RunCancelled",
        "RunTerminated",
        "RunIdConflict",
        "MapFailed",
        "CompensationFailed",
    )
    assert all(hasattr(treadle.worker, name) for name in treadle.worker.__all__)


def test_the_import_is_light() -> None:
    script = (
        "import sys, treadle.worker; print([m for m in ('grpc', 'aio_pika', 'pydantic', 'redis') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout == "[]\n", done.stderr


def test_what_a_step_knows() -> None:
    assert isinstance(validate, Step)
    assert (validate.name, validate.pool, validate.timeout_ms, validate.executor) == (
        "validate",
        "csv",
        120_000,
        "async",
    )
    assert validate.retry_message is not None
    assert validate.retry_message.attempts == 2
    assert (create.pool, create.executor, create.retry_message) == (None, "thread", None)
    assert Step(create.function, retry=Retry.never).at_most_once


def test_what_a_workflow_knows() -> None:
    assert isinstance(imports, Workflow)
    assert (imports.name, imports.pool) == ("imports", "default")
    assert (other.name, other.pool, other.__doc__) == ("renamed", "flows", "Does nothing.")


def test_outside_workflows_steps_are_plain_functions() -> None:
    assert create(3) == "ccc"  # type: ignore[comparison-overlap]
    assert create.function(3) == "ccc"
    assert asyncio.run(validate("abc")) == 3


def test_a_workflow_can_be_tested_by_calling_it() -> None:
    assert asyncio.run(imports("abc")) == ["ccc", "ccc!"]
    assert create(1) == "c"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step(pool="Bad Pool")(create.function), "invalid pool name 'Bad Pool'"),
        (lambda: step(name="a/b")(create.function), "invalid step name 'a/b'"),
        (lambda: step(timeout="soon")(create.function), "step create: timeout 'soon'"),
        (lambda: step(timeout=0)(create.function), "give more than 0"),
        (lambda: step(executor="async")(create.function), "executor='async' needs an `async def`"),
        (lambda: step(executor="thread")(validate.function), "executor='thread' needs a plain `def`"),
        (lambda: step(executor="gpu")(create.function), "executor 'gpu'"),  # type: ignore[call-overload]
        (lambda: step(int), "is not a function"),
        (lambda: workflow(create.function), "write it as `async def`"),
        (lambda: workflow(pool="UP")(imports.function), "invalid pool name 'UP'"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_generators_are_refused() -> None:
    async def numbers() -> Any:
        yield 1

    with pytest.raises(ConfigError, match="a generator cannot be a step"):
        step(numbers)


def test_step_info_needs_a_step() -> None:
    with pytest.raises(ConfigError, match="call it inside a @step"):
        step_info()


def test_time_and_chance_are_ordinary_outside_workflows() -> None:
    assert abs(now() - datetime.now(UTC)) < timedelta(minutes=1)
    assert isinstance(uuid4(), uuid.UUID)
    assert 0 <= random().random() < 1


def test_a_module_is_collected() -> None:
    registry = collect(sys.modules[__name__])
    assert set(registry.workflows) == {"imports", "renamed"}
    assert set(registry.steps) == {"validate", "create", "wraps_another"}


def test_two_of_one_name_are_refused_with_both_places() -> None:
    twin = step(name="create")(wraps_another.function)
    with pytest.raises(ConfigError) as caught:
        collect([create, create, twin])
    assert "two steps are named 'create'" in str(caught.value)
    assert str(caught.value).count("test_steps.py:") == 2


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a workflow nor a step"):
        Registry().add(create.function)  # type: ignore[arg-type]


APP = """
from treadle.worker import step, workflow

@step
def hello(name: str) -> str:
    return name

@workflow
async def greet(name: str) -> str:
    return await hello(name)

apps = [greet]
"""


def test_apps_are_loaded_from_files_modules_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    file = tmp_path / "shop_app.py"
    file.write_text(APP)
    for target in (str(file), "shop_app"):
        registry = load_app(target)
        assert set(registry.workflows) == {"greet"}
        assert set(registry.steps) == {"hello"}
    assert set(load_app("shop_app:apps").workflows) == {"greet"}
    assert set(load_app("shop_app:hello").steps) == {"hello"}
    sys.modules.pop("shop_app")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "bad.py:1: invalid syntax: def broken(:"),
        ("x = 1\nimport not_there_at_all\n", "ModuleNotFoundError at "),
        ("x = 1\n1 / 0\n", "bad.py:2: division by zero"),
        ("x = 1\n", "has neither workflows nor steps"),
    ],
)
def test_apps_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_app(str(file))
    assert message in str(caught.value)
    sys.modules.pop("bad", None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere/app.py", "there is no such file"),
        ("no_such_module_here", "there is no module 'no_such_module_here'"),
        ("json:nothing", "json has no 'nothing'"),
        ("json:dumps", "function is not an app"),
    ],
)
def test_apps_that_are_not_there(target: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_app(target)
    assert message in str(caught.value)


def test_a_workflow_that_reads_the_clock_is_refused_at_registration() -> None:
    @workflow
    async def clock() -> str:
        return datetime.now(UTC).isoformat()

    with pytest.raises(NotDeterministic, match=r"test_steps\.py:\d+: datetime\.now\(\): use treadle\.worker\.now\(\)"):
        Registry().add(clock)
