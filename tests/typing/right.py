"""What type checkers make of steps and workflows; checked by running one over this file, never imported."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, assert_type

from treadle.worker import Retry, Step, Workflow, step, workflow


@step(pool="csv", retry=Retry(attempts=2), timeout="2m")
async def validate(upload: str, *, strict: bool = False) -> list[int]:
    return [len(upload)]


@step
def create(count: int) -> str:
    return "c" * count


@step(executor="process")
def heavy(count: int) -> float:
    return count / 2


@step
async def notify(user: str) -> None:
    assert user


@workflow
async def imports(upload: str, limit: int = 3) -> dict[str, int]:
    assert_type(await validate(upload, strict=True), list[int])
    assert_type(await create(limit), str)
    assert_type(await heavy(1), float)
    assert_type(await notify("a"), None)
    both = await asyncio.gather(create(1), heavy(2), validate("a"))
    assert_type(both, tuple[str, float, list[int]])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(create(3))
    assert_type(task.result(), str)
    return {}


@workflow(name="renamed", pool="flows")
async def renamed() -> int:
    return 1


call: Coroutine[Any, Any, str] = create(1)
assert_type(create.name, str)
first: Step[[int], str] = create
second: Workflow[[], int] = renamed
run: Coroutine[Any, Any, dict[str, int]] = imports("u", limit=1)
